"""Where the primary is that Sentinels watch over.

The question is one command on a connection of its own, which lives as long as the question. redis-py's discovery was
used first: it takes the cancellation of whoever asks for an answer that did not come, and left connections behind
that kept the loop from being closed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ports import StoreAway
from ...tasks import Tasks
from .link import login, reach
from .pipeline import Pipeline, RedisError, Reply, pack
from .reasons import NO_PRIMARY, UNREACHABLE, Unreached, hung_up, refused, unreached
from .servers import Address, Finder, Fixed, Servers

#: Seconds for which a Sentinel may think.
TIMEOUT = 0.5
#: … and once most of them agree, how long the others are waited for: one of them may know of a later failover.
STRAGGLERS = 0.05
_WANTS_ONE = "; it wants a password: sentinel_password (and sentinel_user) in the store's URL"


def finder_of(servers: Servers) -> Finder:
    """What finds the primary that these servers are, or watch over."""
    return Sentinels(servers) if servers.master else Fixed(servers.hosts[0])


@dataclass(frozen=True, slots=True)
class Word:
    """What one Sentinel says of the primary. `epoch` grows with each failover that it knows of."""

    address: Address
    epoch: int
    replicas: int


def believed(words: Sequence[Word]) -> Word | None:
    """The word that counts: whoever knows of the latest failover, and what most say where they differ all the same.
    (One that stays behind has been seen to name the old primary for minutes, with the epoch of the others.)"""
    votes = Counter(word.address for word in words)
    return max(words, key=lambda word: (word.epoch, votes[word.address]), default=None)


class Sentinels:
    """The Sentinels of one URL. All are asked: one alone may be cut off from the others."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        #: How many replicas they know, up or down, as they said when they were last asked for the primary.
        self.promotable: int | None = None

    async def find(self) -> Address:
        """Where the primary is now. Raises StoreAway where none of them knows."""
        told = await self._told()
        word = believed([each for each in told.values() if isinstance(each, Word)])
        if word is None:
            each_says = "; ".join(f"{host}: {told[host]}" for host in self._servers.hosts)
            why = f"no Sentinel knows a primary `{self._servers.master}` that is up ({each_says})"
            names = [each.name for each in told.values() if isinstance(each, Unreached)]
            # One that answers says more than one that does not.
            raise Unreached(next((name for name in names if name != UNREACHABLE), UNREACHABLE), why)
        self.promotable = word.replicas
        return word.address

    async def _told(self) -> dict[Address, Word | Unreached]:
        """What each of them says: its word, or why it has none. No more are waited for than can make a difference."""
        questions = Tasks(lambda _: None)  # what one raises is raised here
        asked = {questions.start(self._asked(host)): host for host in self._servers.hosts}
        loop = asyncio.get_running_loop()
        silent = Unreached(UNREACHABLE, f"no answer within {TIMEOUT:g} s")
        told: dict[Address, Word | Unreached] = dict.fromkeys(self._servers.hosts, silent)
        waiting = set(asked)
        ends = loop.time() + TIMEOUT
        try:
            while waiting and (left := ends - loop.time()) > 0:
                heard, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                told.update((asked[task], task.result()) for task in heard)
                named = Counter(word.address for word in told.values() if isinstance(word, Word))
                if max(named.values(), default=0) * 2 > len(asked):
                    ends = min(ends, loop.time() + STRAGGLERS)
        finally:
            await questions.cancel()
        return told

    async def _asked(self, host: Address) -> Word | Unreached:
        """What one of them says of the primary; or why it does not answer, or knows none that is up."""
        # `server_name` is the primary's: a Sentinel is known by the host that the URL names.
        tls = None if self._servers.tls is None else replace(self._servers.tls, server_name=None)
        pipeline: Pipeline | None = None
        try:
            async with asyncio.timeout(TIMEOUT):
                pipeline = await reach(tls, host, lambda _: None, None)
                return await self._question(pipeline)
        except OSError as error:  # TimeoutError and ssl.SSLError are
            return unreached(error, tls, within=TIMEOUT)
        except StoreAway as away:
            return hung_up(away.why, tls)
        finally:
            if pipeline is not None:
                pipeline.abort("the question was answered")

    async def _question(self, pipeline: Pipeline) -> Word | Unreached:
        servers = self._servers
        for command in login(servers.sentinel_user, servers.sentinel_password):
            reply = await pipeline.call(pack(*command))
            if isinstance(reply, RedisError):
                return refused("AUTH", reply, "; check sentinel_user and sentinel_password in the store's URL")
        return _read(await pipeline.call(pack(b"SENTINEL", b"MASTER", servers.master.encode())))


def _read(reply: Reply) -> Word | Unreached:
    if isinstance(reply, RedisError):
        reason = refused("SENTINEL MASTER", reply, _WANTS_ONE if reply.code == "NOAUTH" else "")
        return Unreached(NO_PRIMARY, reason.why) if reply.code == "ERR" else reason
    if not isinstance(reply, list):
        return Unreached(NO_PRIMARY, f"answers SENTINEL MASTER with {reply!r}")
    said = [word.decode(errors="replace") for word in reply]
    state = dict(zip(said[::2], said[1::2], strict=False))
    flags, role = state.get("flags", ""), state.get("role-reported", "")
    for down in ("s_down", "o_down"):
        if down in flags.split(","):
            return Unreached(NO_PRIMARY, f"it sees that server as down ({flags})")
    if "master" not in flags.split(",") or role != "master":
        return Unreached(NO_PRIMARY, f"what it names calls itself no primary (flags {flags}, role {role})")
    address = Address(state["ip"], int(state["port"]))
    return Word(address, int(state.get("config-epoch", "0")), int(state.get("num-slaves", "0")))

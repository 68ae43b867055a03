"""Writes of large records: each over a connection of its own, and never larger than the server accepts.

A server closes the connection of a command that is over `proto-max-bulk-len` or `client-query-buffer-limit`, and the
connection of a reply over `client-output-buffer-limit`. On the shared connection that would end every other request of
that moment. Both input limits are 1 MiB at least, so a smaller command needs no such care. A proxy or a managed service
may have lower limits, and answers with an error.

The limits are read with CONFIG GET if the user may do that. If not they are learned: a command that fails three times,
while the shared connection answers, is refused for good, and so is each one that is not smaller, for ten minutes.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial

from ...ports import RecordTooLarge, StoreAway
from ..findings import Finding, Severity
from .link import CONNECT_TIMEOUT, Link, logged_in, visit
from .pipeline import Pipeline, RedisError, Reply, pack
from .servers import Servers
from .waited import Unacknowledged, unacknowledged, wrote

#: Bytes of a command from which it has a connection of its own.
LARGE = 512 << 10
#: Bytes by which a command must stay below the limit of the query buffer, for what the server adds.
_MARGIN = 64 << 10
#: How often a command may fail before it counts as refused for good, and for how many seconds it then does.
_FAILURES = 3
_REMEMBERED = 600.0
#: The same where replicas did not acknowledge it, which has other causes too.
_UNACKNOWLEDGED = 10
#: Seconds between two tries, and for which one call goes on trying: a client waits.
_PAUSE = 0.05
_PATIENCE = 1.0
#: Large writes that are under way at once.
_AT_ONCE = 4
#: Bytes a second that a connection carries at least.
_SLOWEST = 2 << 20
_NAMES = (b"proto-max-bulk-len", b"client-query-buffer-limit", b"client-output-buffer-limit")
#: The finding about a server whose limits are below what the routes may store.
RECORD_LIMIT = "record-limit"
LIMITS = pack(b"CONFIG", b"GET", *_NAMES)

#: What servers, proxies and managed services reply to a command or a value over their limit.
_TOO_LARGE = re.compile(
    r"invalid bulk length|too (?:big|large|long)|max(?:imum)?(?: \w+){0,3} (?:size|length)|"
    r"(?:size|length) (?:limit|exceed)|exceeds? .{0,40}(?:limit|size|length|maximum)",
    re.IGNORECASE,
)


def too_large(reply: RedisError, size: int) -> RecordTooLarge | None:
    """The refusal that an error reply to a command of `size` bytes is, if it speaks of a size."""
    if not _TOO_LARGE.search(str(reply)):
        return None
    return RecordTooLarge(f"Redis refuses a command of {size} bytes: {reply}", size=size)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The sizes that a server accepts, in bytes; 0 for no limit. `names` are the settings, for people."""

    value: int = 0
    command: int = 0
    reply: int = 0
    replica: int = 0

    def over(self, size: int) -> tuple[str, int]:
        """The setting that refuses a command, or a record, of `size` bytes, and how much it accepts; empty if none."""
        for name, limit, most in (
            ("proto-max-bulk-len", self.value, self.value),
            ("client-query-buffer-limit", self.command, self.command - _MARGIN),
            # Replies to other requests wait in the same buffer.
            ("client-output-buffer-limit normal", self.reply, self.reply // 2),
            ("client-output-buffer-limit replica", self.replica, self.replica // 2),
        ):
            if limit and size > most:
                return name, limit
        return "", 0


def read_limits(reply: Reply) -> ServerLimits | None:
    """The limits in the reply to `LIMITS`; None where the user may not read them."""
    if not isinstance(reply, list):
        return None
    found = dict(zip(reply[::2], reply[1::2], strict=False))
    if not {*_NAMES} <= found.keys():
        return None
    try:
        # Each class of clients: its name, the hard limit, the soft one, and for how many seconds that may be passed.
        words = found[_NAMES[2]].split()
        classes = {name: tuple(map(int, words[at + 1 : at + 3])) for at, name in enumerate(words) if name.isalpha()}
        normal, replica = classes.get(b"normal", (0, 0)), classes.get(b"slave", classes.get(b"replica", (0, 0)))
        return ServerLimits(
            int(found[_NAMES[0]]), int(found[_NAMES[1]]), min(filter(None, normal), default=0), replica[0]
        )
    except (ValueError, IndexError):
        return None


def limits_of(reply: Reply, largest: int) -> tuple[Finding, ...]:
    """The finding about a server that refuses the record of a response of `largest` bytes, its fields included."""
    limits = read_limits(reply)
    name, limit = ("", 0) if limits is None else limits.over(largest + _MARGIN)
    if not limit:
        return ()
    text = (
        f"it refuses records of the largest responses that the routes keep: {name} is {limit} bytes, and max_response "
        f"is {largest}. Such a response is not replayed (409 response-not-kept); lower max_response, or raise {name}"
    )
    return (Finding(RECORD_LIMIT, Severity.WARN, text),)


class LargeWrites:
    """The large writes to the server that `main` is connected to."""

    def __init__(self, servers: Servers, main: Link) -> None:
        self._servers = servers
        self._main = main
        self._turn = asyncio.Semaphore(_AT_ONCE)
        #: The connection of `main` over which the user was found not to be permitted to read the limits.
        self._unread: Pipeline | None = None
        #: Bytes of the smallest command that was refused for good, and until when that counts.
        self._refused = 0
        self._until = 0.0
        #: Failures in a row that say nothing else, and bytes of the smallest command among them.
        self._failures = self._failing = 0

    async def call(self, packed: bytes, *, replies: int = 1, waits: bool = False, key: bytes = b"") -> Reply:
        """The last of `replies` to a command. As `Waited.call` if `waits` is set and the durability asks for replicas.
        What was written under `key` is read back where the limits of a reply are unknown.

        Raises RecordTooLarge if the server never accepts it, or never returns it: then it may stand, and is to be
        overwritten.
        """
        size, loop = len(packed), asyncio.get_running_loop()
        if self._refused and size >= self._refused and loop.time() < self._until:
            raise RecordTooLarge(
                f"Redis refused a command of {self._refused} bytes a moment ago", size=size, limit=self._refused - 1
            )
        within = CONNECT_TIMEOUT + self._servers.wait / 1000 + size / _SLOWEST
        began = loop.time()
        async with self._turn:
            while True:
                main, address, sent = self._main.pipeline, self._main.address, [False]
                if main is None or address is None:
                    raise StoreAway(self._main.trouble, ambiguous=False)
                write = partial(self._write, packed, replies, waits, key, sent)
                try:
                    reply = await visit(self._servers, address, write, within=within)
                except RecordTooLarge:
                    raise
                except StoreAway as away:
                    if not sent[0]:
                        raise
                    await self._failed(size, away, main)
                    if loop.time() - began > _PATIENCE:
                        raise
                    continue
                if isinstance(reply, RedisError) and (refused := too_large(reply, size)) is not None:
                    self._learn(size)
                    raise RecordTooLarge(refused.why, size=size, limit=self._refused - 1)
                if size >= self._failing:
                    self._failing = self._failures = 0
                return reply

    async def _failed(self, size: int, away: StoreAway, main: Pipeline) -> None:
        """Count a failure of a command that was sent. Raises RecordTooLarge if it is one too many; StoreAway if the
        server is away, so that the command's size is not what failed."""
        await asyncio.sleep(_PAUSE)
        if self._main.pipeline is not main:
            raise away
        await main.call(pack(b"PING"))
        self._failing = min(size, self._failing or size)
        self._failures += 1
        if self._failures < (_UNACKNOWLEDGED if isinstance(away, Unacknowledged) else _FAILURES):
            if isinstance(away, Unacknowledged):
                raise away
            return
        self._learn(self._failing)
        raise RecordTooLarge(
            f"Redis failed at commands of {self._refused} bytes each time, and answers others: {away.why}",
            size=size,
            limit=self._refused - 1,
        )

    def _learn(self, size: int) -> None:
        """Nothing of this size, or larger, is sent for a while."""
        self._refused, self._until = size, asyncio.get_running_loop().time() + _REMEMBERED
        self._failing = self._failures = 0

    async def _write(
        self,
        packed: bytes,
        replies: int,
        waits: bool,
        key: bytes,
        sent: list[bool],
        pipeline: Pipeline,
    ) -> Reply:
        size, limits = len(packed), None
        await logged_in(self._servers, pipeline)
        if self._unread is not self._main.pipeline:
            limits = read_limits(await pipeline.call(LIMITS))
            if limits is None:
                self._unread = self._main.pipeline
            elif (over := limits.over(size))[1]:
                raise RecordTooLarge(
                    f"Redis accepts no record of {size} bytes: {over[0]} is {over[1]}", size=size, limit=over[1]
                )
        sent[0] = True
        reply = await pipeline.call(packed, replies)
        if replies > 1:
            reply = reply[-1]
        if isinstance(reply, RedisError) or (waits and not wrote(reply)):
            return reply
        if waits and self._servers.replicas:
            acks = await pipeline.call(pack(b"WAIT", b"%d" % self._servers.replicas, b"%d" % self._servers.wait))
            if (away := unacknowledged(acks, self._servers.replicas)) is not None:
                raise away
        if key and limits is None:
            await pipeline.call(pack(b"GET", key))
        return reply

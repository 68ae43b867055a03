"""Where the primary is that Sentinels watch over.

The question is one command on a connection of its own, which lives as long as the question. redis-py's discovery was
used first: it takes the cancellation of whoever asks for an answer that did not come, and left connections behind
that kept the loop from being closed.
"""

from __future__ import annotations

import asyncio
import ssl

from ...ports import StoreAway
from .pipeline import Pipeline, RedisError, Reply, pack
from .servers import Address, Finder, Fixed, Servers

#: Seconds for which one Sentinel may think. Three that hang are passed over within two.
TIMEOUT = 0.5


def finder_of(servers: Servers) -> Finder:
    """What finds the primary that these servers are, or watch over."""
    return Sentinels(servers) if servers.master else Fixed(servers.hosts[0])


class Sentinels:
    """The Sentinels of one URL. Whoever answered last is asked first."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._hosts = list(servers.hosts)
        self._replicas: int | None = None

    async def find(self) -> Address:
        """Where the primary is now. Raises StoreAway where none of them knows."""
        for host in list(self._hosts):
            state = await self._asked(host)
            if state is None:
                continue
            flags = state.get("flags", "").split(",")
            if "master" not in flags or "s_down" in flags or "o_down" in flags:
                continue
            self._hosts.remove(host)
            self._hosts.insert(0, host)
            self._replicas = int(state.get("num-slaves", "0"))
            return Address(state["ip"], int(state["port"]))
        asked = ", ".join(map(str, self._servers.hosts))
        raise StoreAway(f"no Sentinel of {asked} knows a primary `{self._servers.master}` that is up", ambiguous=False)

    async def promotable(self) -> int | None:
        """How many replicas they know, up or down; as they said when they were last asked for the primary."""
        return self._replicas

    async def close(self) -> None: ...

    async def _asked(self, host: Address) -> dict[str, str] | None:
        """What one of them says of the primary; None where it does not answer, or does not know it."""
        pipeline: Pipeline | None = None
        try:
            async with asyncio.timeout(TIMEOUT):
                pipeline = await self._reach(host)
                return _read(await self._question(pipeline))
        except (OSError, StoreAway):  # TimeoutError and ssl.SSLError are OSErrors
            return None
        finally:
            if pipeline is not None:
                pipeline.abort("the question was answered")

    async def _reach(self, host: Address) -> Pipeline:
        tls = self._servers.tls
        context: ssl.SSLContext | None = None if tls is None else tls.context
        # `server_name` is the primary's: a Sentinel is known by the host that the URL names.
        name = None if tls is None else host.host
        _, pipeline = await asyncio.get_running_loop().create_connection(
            lambda: Pipeline(lambda _: None), host.host, host.port, ssl=context, server_hostname=name
        )
        return pipeline

    async def _question(self, pipeline: Pipeline) -> Reply:
        servers = self._servers
        if servers.sentinel_password:
            user = (servers.sentinel_user.encode(),) if servers.sentinel_user else ()
            reply = await pipeline.call(pack(b"AUTH", *user, servers.sentinel_password.encode()))
            if isinstance(reply, RedisError):
                return reply
        return await pipeline.call(pack(b"SENTINEL", b"MASTER", servers.master.encode()))


def _read(reply: Reply) -> dict[str, str] | None:
    if not isinstance(reply, list):
        return None
    words = [word.decode(errors="replace") for word in reply]
    return dict(zip(words[::2], words[1::2], strict=False))

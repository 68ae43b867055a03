"""Which server takes writes, and how it is found: by its address, or by asking Sentinels.

redis-py asks the Sentinels; the connection itself is a `Pipeline`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError as LibraryError

from ...ports import StoreAway
from ...tasks import Tasks

T = TypeVar("T")

#: Seconds for which one Sentinel may think. Three that hang are passed over within two.
SENTINEL_TIMEOUT = 0.5
_LONGEST_QUESTION = 5.0


class Address(NamedTuple):
    """Of a server: host and port, or the path of its Unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """How the servers are known, and who we are to them. `server_name` is the primary's, where it is not its host;
    the files are what redis-py makes its own context of, for the Sentinels."""

    context: ssl.SSLContext
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Servers:
    """What a store's URL names. `hosts` are Sentinels where `master` is the name that they know it by.

    `replicas`: how many must have a claim, a takeover or a Keep before it counts; 0 is durability `single`.
    `wait`: for how many milliseconds they may take.
    """

    hosts: tuple[Address, ...]
    master: str = ""
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    sentinel_user: str = ""
    sentinel_password: str = field(default="", repr=False)
    replicas: int = 0
    wait: int = 200
    tls: Tls | None = None

    def finder(self) -> Finder:
        return _Sentinels(self) if self.master else _One(self.hosts[0])


class Finder(Protocol):
    """Finds the server that takes writes."""

    async def find(self) -> Address:
        """Where it is now. Raises StoreAway where nobody knows."""

    async def promotable(self) -> int | None:
        """How many replicas could be promoted, as far as anybody but the server itself knows."""

    async def close(self) -> None: ...


class _One:
    """A server at an address that does not change."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def find(self) -> Address:
        return self._address

    async def promotable(self) -> int | None:
        return None

    async def close(self) -> None: ...


class _Sentinels:
    """The primary that Sentinels watch over."""

    def __init__(self, servers: Servers) -> None:
        self._master = servers.master
        self._asked = ", ".join(map(str, servers.hosts))
        options: dict[str, object] = {"socket_timeout": SENTINEL_TIMEOUT, "socket_connect_timeout": SENTINEL_TIMEOUT}
        if servers.sentinel_password:
            options |= {"username": servers.sentinel_user or None, "password": servers.sentinel_password}
        if (tls := servers.tls) is not None:
            options |= {
                "ssl": True,
                "ssl_ca_certs": tls.ca,
                "ssl_certfile": tls.cert,
                "ssl_keyfile": tls.key,
                "ssl_cert_reqs": "required" if tls.verify else "none",
                "ssl_check_hostname": tls.verify,
            }
        hosts = [(host.host, host.port) for host in servers.hosts]
        self._asking = Tasks(lambda _: None)  # whoever asked is told
        self._sentinels = Sentinel(hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]

    async def find(self) -> Address:
        try:
            host, port = await self._answered(self._sentinels.discover_master(self._master))
        except (LibraryError, OSError) as error:
            raise StoreAway(
                f"no Sentinel of {self._asked} knows a primary `{self._master}`", ambiguous=False
            ) from error
        return Address(str(host), int(port))

    async def promotable(self) -> int | None:
        try:
            state = await self._answered(self._sentinels.sentinels[0].sentinel_master(self._master))
        except (LibraryError, OSError):
            return None
        return int(state["num-slaves"]) if isinstance(state, dict) else None

    async def close(self) -> None:
        await self._asking.finish(_LONGEST_QUESTION)
        await self._asking.cancel()
        await self._sentinels.aclose()

    async def _answered(self, question: Awaitable[T]) -> T:
        """What redis-py says to it. Whoever asks may be cancelled; the question is not, and ends by its own timeouts:
        redis-py takes a cancellation for an answer that did not come, or leaves a connection half made."""

        async def asked() -> T:
            return await question

        return await asyncio.shield(self._asking.start(asked()))

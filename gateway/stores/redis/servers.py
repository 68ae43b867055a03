"""Which server takes writes: by its address, as Sentinels know it (sentinels.py), or of a cluster (cluster.py)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


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
    """How the servers are known, and who we are to them. `server_name` is the primary's, where it is not its host."""

    context: ssl.SSLContext
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Servers:
    """What a store's URL names. `hosts` are Sentinels where `master` is the name that they know it by, and nodes of a
    `cluster`, of which one that answers is enough.

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
    cluster: bool = False


class Finder(Protocol):
    """Finds the server that takes writes."""

    async def find(self) -> Address:
        """Where it is now. Raises StoreAway where nobody knows."""

    @property
    def promotable(self) -> int | None:
        """How many replicas could be promoted, as far as anybody but the server itself knows."""


class Fixed:
    """A server at an address that does not change."""

    promotable = None

    def __init__(self, address: Address) -> None:
        self._address = address

    async def find(self) -> Address:
        return self._address

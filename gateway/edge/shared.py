"""What all connections of clients have in common."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from ..core.limit import Limit
from ..engine.driver import Driver
from ..ports import Clock, Observer
from ..shadow import Shadows
from ..tasks import Tasks
from .aside import Aside
from .descriptors import Descriptors
from .door import Door
from .halves import Halves
from .likeness import Likeness
from .origins import Origins
from .outbox import Outbox
from .pool import Pool
from .proxies import Proxies
from .wire import RequestHeads


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds, and how many there may be: `limits` of the file.

    `body`: without a byte of it; `rate`: bytes of it per second once it has taken `grace`, or 0; `write`: without
    taking a byte; `response`: without a byte of a response that has begun; `tunnel`: how long a connection that left
    HTTP may be silent; `pipelined`: requests that are read ahead of their answers.
    """

    head: float = 10.0
    body: float = 60.0
    rate: int = 500
    grace: float = 20.0
    write: float = 60.0
    idle: float = 75.0
    response: float = 300.0
    tunnel: float = 3600.0
    handshake: float = 10.0
    connections: int = 10_000
    per_address: int = 10_000
    pipelined: int = 16


class Member(Protocol):
    """A connection, as those see it that look after all of them."""

    def drain(self, quiet: float = 0.0) -> None: ...

    def abort(self) -> None: ...

    def check(self, now: float) -> None: ...


@dataclass(eq=False)
class Shared:
    """The rooms behind, and the connections that there are."""

    door: Door
    driver: Driver
    shadows: Shadows
    tasks: Tasks
    pools: dict[str, Pool]
    clock: Clock
    observer: Observer
    descriptors: Descriptors
    patience: Patience
    protocols: frozenset[bytes]
    heads: RequestHeads
    origins: Origins | None
    proxies: Proxies | None

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.connections: set[Member] = set()
        self._from: Counter[str] = Counter()
        self.draining = False
        #: What the last head of all looked like: a new connection's may look so too.
        self.like: Likeness | None = None
        self.outbox = Outbox(self.loop)
        self.aside = Aside(self.loop)
        self.halves = Halves(self.loop)
        self.longest_head = self.door.bounds.head + self.door.bounds.target
        self.emptied: asyncio.Event | None = None

    def take_up(
        self,
        door: Door,
        heads: RequestHeads,
        protocols: frozenset[bytes],
        origins: Origins | None,
        proxies: Proxies | None,
    ) -> None:
        """From the next head on, requests go by these; what is under way goes on by what it came by."""
        self.door = door
        self.heads = heads
        self.protocols = protocols
        self.origins = origins
        self.proxies = proxies

    def full(self, peer: str) -> Limit | None:
        """What a connection of `peer` would be too many for. A trusted proxy brings everybody, and what comes over a
        Unix socket has no address: neither is counted by address."""
        patience = self.patience
        if len(self.connections) >= patience.connections:
            return Limit.CONNECTIONS
        if self._from[peer] >= patience.per_address and not (self.proxies is not None and self.proxies.trusts(peer)):
            return Limit.CONNECTIONS_PER_ADDRESS
        return None

    def enter(self, connection: Member, peer: str) -> None:
        """One connection more."""
        self.connections.add(connection)
        if peer:
            self._from[peer] += 1

    def forget(self, connection: Member, peer: str) -> None:
        """It is gone; told once."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        if peer:
            self._from[peer] -= 1
            if not self._from[peer]:
                del self._from[peer]
        if self.emptied is not None and not self.connections:
            self.emptied.set()

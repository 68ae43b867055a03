"""What all connections of clients have in common."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from ..exchange import Gate
from ..ports import Clock, Observer
from ..shadow import Shadows
from .door import Door, Head
from .origins import Origins
from .outbox import Outbox
from .pool import Pool
from .proxies import Proxies
from .upgrade import PROTOCOLS
from .wire import PLAIN, RequestHeads


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds; and how many there may be. `tunnel`: how long a connection that has
    left HTTP may be silent."""

    head: float = 10.0
    body: float = 60.0
    idle: float = 75.0
    connections: int = 10_000
    tunnel: float = 3600.0


class Member(Protocol):
    """A connection, as those see it that look after all of them."""

    def drain(self, quiet: float = 0.0) -> None: ...

    def abort(self) -> None: ...

    def check(self, now: float) -> None: ...


class Shared:
    """The rooms behind, and the connections that there are."""

    def __init__(
        self,
        door: Door,
        gate: Gate,
        pools: dict[str, Pool],
        clock: Clock,
        observer: Observer,
        patience: Patience | None = None,
        *,
        protocols: frozenset[bytes] = PROTOCOLS,
        heads: RequestHeads = PLAIN,
        origins: Origins | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.door = door
        self.gate = gate
        self.pools = pools
        self.clock = clock
        self.observer = observer
        self.patience = patience or Patience()
        self.protocols = protocols
        self.heads = heads
        self.origins = origins
        self.proxies = proxies
        self.shadows = Shadows(gate)
        self.connections: set[Member] = set()
        self.draining = False
        self.outbox = Outbox(self.loop)
        self.longest_head = door.bounds.head + door.bounds.target
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

    def exposes(self, head: Head) -> bytes:
        """What an answer of the service tells the browser, besides what the service itself does."""
        return b"" if self.origins is None else self.origins.exposes(head.method, head.fields)

    def forget(self, connection: Member) -> None:
        self.connections.discard(connection)
        if self.emptied is not None and not self.connections:
            self.emptied.set()

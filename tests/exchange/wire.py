"""A store at the end of a wire that can break, stall, lose replies, and deliver commands late or twice.

Not a mock: at its far end is the real `MemoryStore`, which tests/stores holds to the core's transitions.
The wire decides only when a command gets there and whether its reply comes back. What was written to it
cannot be taken back: a caller that is cancelled has cancelled nothing.

With a `Belfry`, which the wires to one store share, it tells who listens of each settlement, as Redis does.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.awaitable import Bell
from gateway.core.record import Done, Found, Record, Settlement, Stamp, State
from gateway.ports import RecordTooLarge, StoreAway, StoreFull
from gateway.stores.codec import encode
from gateway.stores.memory import MemoryStore


@dataclass(frozen=True)
class Fault:
    """What happens to one command. All durations in seconds; nothing of it is the store's own doing.

    lost     it is done, and its reply is lost
    dropped  it is not done, and nobody says so
    late     its connection breaks, and it is done that much later all the same
    again    it is done and answered, and delivered a second time that much later
    slow     it takes so long
    full     the store has no room
    raises   the adapter has a bug
    """

    lost: bool = False
    dropped: bool = False
    late: float | None = None
    again: float | None = None
    slow: float = 0.0
    full: bool = False
    raises: Exception | None = None


LOST, DROPPED, FULL = Fault(lost=True), Fault(dropped=True), Fault(full=True)


def late(seconds: float) -> Fault:
    return Fault(late=seconds)


def again(seconds: float) -> Fault:
    return Fault(again=seconds)


def slow(seconds: float) -> Fault:
    return Fault(slow=seconds)


@dataclass(frozen=True)
class Landed:
    """A command that reached the store: when, which, for which record, and what the store said."""

    at: float
    verb: str
    name: bytes
    what: Any
    result: Any


class WireBell(Bell):
    """The bell of one who listens over a wire: subscribed a trip after it was asked for, heard of after another."""

    def __init__(self, wire: Wire, name: bytes) -> None:
        super().__init__()
        self._wire = wire
        self.name = name
        self.subscribed = self.acknowledged = False

    @property
    def hears(self) -> bool:
        return self.acknowledged

    def close(self) -> None:
        self._wire.bells.discard(self)


class Belfry:
    """The wires of one store whose listeners are told."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []

    def ring(self, name: bytes) -> None:
        """A record has left its flight."""
        for wire in self.wires:
            wire.tell(name)


class Wire:
    """One process's connection to the shared store."""

    kind = "memory"

    def __init__(self, store: MemoryStore, *, latency: float = 0.0005, belfry: Belfry | None = None) -> None:
        self._store = store
        self._belfry = belfry
        if belfry is not None:
            belfry.wires.append(self)
        self.bells: set[WireBell] = set()
        #: How long a published message takes; another connection carries it.
        self.told_after = latency
        #: Bytes of the largest record that the store takes; 0 for any.
        self.largest = 0
        self._deaf = False
        #: The connection that tells of settlements hangs: nobody knows, and nothing comes.
        self.mute = False
        self._loop = asyncio.get_running_loop()
        self.latency = latency
        self.landed: list[Landed] = []
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._pending: dict[asyncio.Future[Any], asyncio.TimerHandle | None] = {}
        self._back = asyncio.Event()
        self._back.set()

    # ── The hand of the test ──────────────────────────────────────────────────────────────────────

    def next(self, verb: str, *faults: Fault) -> None:
        """What happens to the next commands of this verb, one after another."""
        self._faults[verb].extend(faults)

    def cut(self, seconds: float | None = None, *, arrives: bool = False) -> None:
        """The connection breaks, for so long or until `mend`. What was under way arrives, or does not."""
        self._back.clear()
        for future, command in self._pending.items():
            if command is not None and not arrives:
                command.cancel()
            if not future.done():
                future.set_exception(StoreAway("the wire broke", ambiguous=True))
        self._pending.clear()
        self.deafen()
        if seconds is not None:
            self._loop.call_later(seconds, self.mend)

    def mend(self) -> None:
        self._back.set()
        self.hear()

    def deafen(self, seconds: float | None = None) -> None:
        """The connection that tells of settlements ends, for so long or until `hear`; the other one goes on."""
        for bell in self.bells:
            bell.subscribed = bell.acknowledged = False
        self._deaf = True
        if seconds is not None:
            self._loop.call_later(seconds, self.hear)

    def hear(self) -> None:
        self._deaf = False
        for bell in self.bells:
            self._subscribe(bell)

    def told(self, verb: str) -> list[Any]:
        """What the store said to each command of this verb that reached it."""
        return [command.result for command in self.landed if command.verb == verb]

    # ── The port ──────────────────────────────────────────────────────────────────────────────────

    @property
    def available(self) -> bool:
        return self._back.is_set()

    @property
    def trouble(self) -> str:
        return "" if self.available else "the wire is cut"

    async def open(self) -> None: ...

    async def close(self) -> None:
        self.cut()

    async def wait_available(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._back.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def claim(self, name: bytes, claim: Record) -> Done | Found:
        result: Done | Found = await self._call("claim", name, claim, self._store.claim, claim)
        return result

    async def settle(self, name: bytes, settlement: Settlement) -> Done | Found:
        result: Done | Found = await self._call("settle", name, settlement, self._store.settle, settlement)
        return result

    async def compare_and_swap(self, name: bytes, stamp: Stamp, to: Record | None) -> Done | Found:
        verb = "compare_and_swap"
        result: Done | Found = await self._call(verb, name, to, self._store.compare_and_swap, stamp, to)
        return result

    async def get(self, name: bytes) -> Found | None:
        result: Found | None = await self._call("get", name, None, self._store.get)
        return result

    def listen(self, name: bytes) -> Bell:
        if self._belfry is None:
            return Bell()
        bell = WireBell(self, name)
        self.bells.add(bell)
        if not self._deaf:
            self._subscribe(bell)
        return bell

    def tell(self, name: bytes) -> None:
        """The store publishes: whoever is subscribed by now hears of it a trip later."""
        if self.mute or self._deaf:
            return
        for bell in self.bells:
            if bell.name == name and bell.subscribed:
                self._loop.call_later(self.told_after, bell.ring)

    def _subscribe(self, bell: WireBell) -> None:
        def subscribed() -> None:
            if not self._deaf:
                bell.subscribed = True
                self._loop.call_later(self.latency, acknowledged)

        def acknowledged() -> None:
            if bell.subscribed:
                bell.acknowledged = True
                bell.ring()

        self._loop.call_later(self.latency, subscribed)

    def _call(
        self, verb: str, name: bytes, what: Any, command: Callable[..., None], *arguments: Any
    ) -> asyncio.Future[Any]:
        if not self.available:
            raise StoreAway("the wire is cut", ambiguous=False)
        faults = self._faults[verb]
        fault = faults.popleft() if faults else Fault()
        record = what.record if isinstance(what, Settlement) else what
        if self.largest and record is not None and (size := len(encode(record))) > self.largest:
            raise RecordTooLarge(f"{size} bytes are too many", size=size, limit=self.largest)
        if fault.full:
            raise StoreFull("no room")
        if fault.raises is not None:
            raise fault.raises
        later = self._loop.call_later
        future: asyncio.Future[Any] = self._loop.create_future()

        def land() -> Any:
            # The memory store replies before the call returns: that is its atomicity.
            replies: list[Any] = []
            command(name, *arguments, replies.append)
            (result,) = replies
            if isinstance(result, StoreAway):
                raise result
            self.landed.append(Landed(self._loop.time(), verb, name, what, result))
            if self._belfry is not None and _left_its_flight(what, result):
                self._belfry.ring(name)
            return result

        def arrive() -> None:
            result = land()
            if fault.again is not None:
                later(fault.again, land)
            if future in self._pending:
                self._pending[future] = None
                later(self.latency, answer, result)

        def answer(result: Any) -> None:
            self._pending.pop(future, None)
            if not future.done():
                future.set_result(result)

        def fail() -> None:
            self._pending.pop(future, None)
            if not future.done():
                future.set_exception(StoreAway("the reply was lost", ambiguous=True))

        if fault.lost or fault.dropped or fault.late is not None:
            if not fault.dropped:
                later(self.latency + (fault.late or 0.0), land)
            later(2 * self.latency, fail)
        else:
            self._pending[future] = later(self.latency + fault.slow, arrive)
        return future


def _left_its_flight(what: Any, result: Any) -> bool:
    """Whether this command made a record anything but in flight."""
    to = what.record if isinstance(what, Settlement) else what
    if result not in (Done.DONE, Done.FORGOT, Done.WON):
        return False
    return to is None or to.state is not State.IN_FLIGHT

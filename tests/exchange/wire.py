"""A store at the end of a wire that can break, stall, lose replies, and deliver commands late or twice.

Not a mock: at its far end is the real `MemoryStore`, which tests/stores holds to the core's transitions.
The wire decides only when a command gets there and whether its reply comes back. What was written to it
cannot be taken back.

With a `Belfry`, which the wires to one store share, it notifies subscribers of each settlement, as Redis does.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.core.record import Done, Found, NewClaim, NewKeep, Record, Settlement, Stamp, State
from gateway.ports import RecordTooLarge, StoreAway, StoreFull, Subscription
from gateway.stores.codec import encode
from gateway.stores.memory import MemoryStore

from .interrupt import ProcessLoop


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


class WireSubscription(Subscription):
    """A subscription over a wire: made a trip after it was asked for, active after another."""

    def __init__(self, wire: Wire, name: bytes, notify: Callable[[], None]) -> None:
        self._wire = wire
        self.name = name
        self.made = self.acknowledged = False
        self._notify = notify

    @property
    def active(self) -> bool:
        return self.acknowledged

    def notify(self) -> None:
        if self in self._wire.subscriptions:
            self._notify()

    def close(self) -> None:
        self._wire.subscriptions.discard(self)


class Belfry:
    """The wires of one store that notifies."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []

    def ring(self, name: bytes) -> None:
        """A record has left its flight."""
        for wire in self.wires:
            wire.publish(name)


class Command:
    """A command that was sent, and whose reply has not come back. `landing` is its way to the store, None once it is
    there."""

    def __init__(self, reply: Callable[[Any], None]) -> None:
        self.reply = reply
        self.landing: asyncio.TimerHandle | None = None


class Wire:
    """One process's connection to the shared store. `here` has the callbacks of that process. `short`: a completed
    record is reported as `Stored` where the port allows it, as Redis does."""

    kind = "memory"
    claims_refused = ""

    def __init__(
        self,
        store: MemoryStore,
        *,
        latency: float = 0.0005,
        belfry: Belfry | None = None,
        here: ProcessLoop | None = None,
        short: bool = False,
    ) -> None:
        self._store = store
        self._belfry = belfry
        if belfry is not None:
            belfry.wires.append(self)
        self.subscriptions: set[WireSubscription] = set()
        #: How long a published message takes; another connection carries it.
        self.told_after = latency
        #: Bytes of the largest record that the store takes; 0 for any.
        self.largest = 0
        self._deaf = False
        #: The connection that notifies hangs: it seems to work, and nothing comes.
        self.mute = False
        self._loop = asyncio.get_running_loop()
        self._here = here or ProcessLoop(self._loop)  # type: ignore[arg-type]
        self._short = short
        self.latency = latency
        self.landed: list[Landed] = []
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._pending: list[Command] = []
        self._cut = False
        self._waiting: list[Callable[[bool], None]] = []

    # ── The hand of the test ──────────────────────────────────────────────────────────────────────

    def next(self, verb: str, *faults: Fault) -> None:
        """What happens to the next commands of this verb, one after another."""
        self._faults[verb].extend(faults)

    def cut(self, seconds: float | None = None, *, arrives: bool = False) -> None:
        """The connection breaks, for so long or until `mend`. What was under way arrives, or does not."""
        self._cut = True
        pending, self._pending = self._pending, []
        for command in pending:
            if command.landing is not None and not arrives:
                command.landing.cancel()
            self._here.call_soon(command.reply, StoreAway("the wire broke", ambiguous=True))
        self.deafen()
        if seconds is not None:
            self._loop.call_later(seconds, self.mend)

    def mend(self) -> None:
        self._cut = False
        waiting, self._waiting = self._waiting, []
        for reply in waiting:
            self._here.call_soon(reply, True)
        self.hear()

    def deafen(self, seconds: float | None = None) -> None:
        """The connection that notifies ends, for so long or until `hear`; the other one goes on."""
        for subscription in self.subscriptions:
            subscription.made = subscription.acknowledged = False
        self._deaf = True
        if seconds is not None:
            self._loop.call_later(seconds, self.hear)

    def hear(self) -> None:
        self._deaf = False
        for subscription in self.subscriptions:
            self._subscribe(subscription)

    def told(self, verb: str) -> list[Any]:
        """What the store said to each command of this verb that reached it."""
        return [command.result for command in self.landed if command.verb == verb]

    # ── The port ──────────────────────────────────────────────────────────────────────────────────

    @property
    def available(self) -> bool:
        return not self._cut

    @property
    def trouble(self) -> str:
        return "" if self.available else "the wire is cut"

    async def open(self) -> None: ...

    async def close(self) -> None:
        self.cut()

    def when_available(self, seconds: float, reply: Callable[[bool], None]) -> None:
        if self.available:
            reply(True)
            return

        def up(available: bool) -> None:
            timer.cancel()
            reply(available)

        def over() -> None:
            if up in self._waiting:
                self._waiting.remove(up)
                reply(False)

        timer = self._here.call_later(seconds, over)
        self._waiting.append(up)

    def claim(self, name: bytes, claim: NewClaim | Record, reply: Callable[[Any], None]) -> None:
        record = claim if isinstance(claim, Record) else claim.record
        if self._short and isinstance(claim, NewClaim):

            def answer(result: Any) -> None:
                reply(_as_stored(result, record))

            self._call("claim", name, record, answer, self._store.claim, claim)
        else:
            self._call("claim", name, record, reply, self._store.claim, claim)

    def settle(self, name: bytes, settlement: Settlement | NewKeep, reply: Callable[[Any], None]) -> None:
        what = settlement
        if isinstance(what, NewKeep):
            what = Settlement(what.kind, what.holder, what.record)
        self._call("settle", name, what, reply, self._store.settle, settlement)

    def compare_and_swap(self, name: bytes, stamp: Stamp, to: Record | None, reply: Callable[[Any], None]) -> None:
        self._call("compare_and_swap", name, to, reply, self._store.compare_and_swap, stamp, to)

    def get(self, name: bytes, reply: Callable[[Any], None]) -> None:
        self._call("get", name, None, reply, self._store.get)

    def subscribe(self, name: bytes, notify: Callable[[], None]) -> Subscription:
        if self._belfry is None:
            return Subscription()
        subscription = WireSubscription(self, name, notify)
        self.subscriptions.add(subscription)
        if not self._deaf:
            self._subscribe(subscription)
        return subscription

    def publish(self, name: bytes) -> None:
        """The store publishes: each subscription that is made by now is notified a trip later."""
        if self.mute or self._deaf:
            return
        for subscription in self.subscriptions:
            if subscription.name == name and subscription.made:
                self._here.call_later(self.told_after, subscription.notify)

    def _subscribe(self, subscription: WireSubscription) -> None:
        def made() -> None:
            if not self._deaf:
                subscription.made = True
                self._here.call_later(self.latency, acknowledged)

        def acknowledged() -> None:
            if subscription.made:
                subscription.acknowledged = True
                subscription.notify()

        self._loop.call_later(self.latency, made)

    def _call(
        self,
        verb: str,
        name: bytes,
        what: Any,
        reply: Callable[[Any], None],
        call: Callable[..., None],
        *arguments: Any,
    ) -> None:
        here = self._here
        if here.dead:
            return
        if here.still:  # a task of its background work
            here.call_soon(self._call, verb, name, what, reply, call, *arguments)
            return
        if not self.available:
            reply(StoreAway("the wire is cut", ambiguous=False))
            return
        faults = self._faults[verb]
        fault = faults.popleft() if faults else Fault()
        record = what.record if isinstance(what, Settlement) else what
        if self.largest and record is not None and (size := len(encode(record))) > self.largest:
            reply(RecordTooLarge(f"{size} bytes are too many", size=size, limit=self.largest))
            return
        if fault.full:
            reply(StoreFull("no room"))
            return
        if isinstance(fault.raises, StoreAway):
            reply(fault.raises)
            return
        if fault.raises is not None:
            raise fault.raises
        later = self._loop.call_later
        command = Command(reply)

        def land() -> Any:
            # The memory store replies before the call returns: that is its atomicity.
            replies: list[Any] = []
            call(name, *arguments, replies.append)
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
            command.landing = None
            if command in self._pending:
                here.call_later(self.latency, answer, result)

        def answer(result: Any) -> None:
            if command in self._pending:
                self._pending.remove(command)
                reply(result)

        def fail() -> None:
            reply(StoreAway("the reply was lost", ambiguous=True))

        if fault.lost or fault.dropped or fault.late is not None:
            if not fault.dropped:
                later(self.latency + (fault.late or 0.0), land)
            here.call_later(2 * self.latency, fail)
        else:
            self._pending.append(command)
            command.landing = later(self.latency + fault.slow, arrive)


def _as_stored(result: Any, claim: Record) -> Any:
    """What Redis replies to a claim that finds the answer to the same request."""
    if not isinstance(result, Found):
        return result
    record = result.record
    if record.state is not State.COMPLETED or record.fingerprint != claim.fingerprint:
        return result
    answer = record.answer
    if answer is None or answer.body is None:
        return result
    return answer.status, answer.head, answer.body, record.first_seen, record.expires


def _left_its_flight(what: Any, result: Any) -> bool:
    """Whether this command made a record anything but in flight."""
    to = what.record if isinstance(what, Settlement) else what
    if result not in (Done.DONE, Done.FORGOT, Done.WON):
        return False
    return to is None or to.state is not State.IN_FLIGHT

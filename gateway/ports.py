"""The seams: what the exchange asks of the world, and what the world promises it.

Store     remembers records. It keeps promises about atomicity and holds no policy.
Upstream  runs one attempt and says Answered, NotSent or Lost, honestly.
Client    whoever waits for the reply. It may leave; the exchange does not care.
Clock     time that goes on while the host sleeps.
Observer  is told what happened, once per request.
Trace     goes with one request, and says to others where in their traces it belongs.

No exception of a library passes its adapter; the ones here are all that there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from .account import Account, DuplicateKind, VerdictName
from .core.limit import Limit
from .core.message import Request
from .core.outcome import LostReason, Outcome
from .core.record import Done, Found, NewClaim, NewKeep, Record, Settlement, Stamp
from .core.reply import Reply
from .core.streams import StreamTypes
from .core.values import value
from .trace import UNTRACED, Trace, untraced


class StoreAway(Exception):
    """The store did not do it, or did not say so.

    `ambiguous`: the command may have been done, or may be done yet. A claim must then be asked again
    by the same holder, or released by it until the store has answered.
    """

    def __init__(self, why: str, *, ambiguous: bool) -> None:
        super().__init__(why)
        self.why = why
        self.ambiguous = ambiguous


class StoreFull(StoreAway):
    """The store has no room for another record. Nothing was written."""

    def __init__(self, why: str) -> None:
        super().__init__(why, ambiguous=False)


class RecordTooLarge(StoreAway):
    """The store refuses this record for good, whenever it is sent: it is over a limit of the store. A smaller record is
    accepted. `size` is in bytes; `limit` too, 0 if it is unknown. What stood before still stands."""

    def __init__(self, why: str, *, size: int, limit: int = 0) -> None:
        super().__init__(why, ambiguous=False)
        self.size = size
        self.limit = limit


class StoreRefused(StoreAway):
    """The store answers, and is not fit to be trusted with claims: its message says what to change. Nothing was
    written. Settlements are made all the same."""

    def __init__(self, why: str) -> None:
        super().__init__(why, ambiguous=False)


class IdentityChanged(StoreRefused):
    """The store's keys are those of another configuration: under this one a key that lives would not be found.
    No policy forwards over that."""


class RecordUnreadable(StoreAway):
    """The record that is there was written by another version, or by nobody: refused, never guessed at, and
    never run over. Nothing was written."""

    def __init__(self, why: str) -> None:
        super().__init__(why, ambiguous=False)


class StoreUnusable(Exception):
    """The store can never work as it is configured. Its message says what to do."""


class Subscription:
    """A subscription to the changes of one record.

    While it is `active`, every Keep, Hold and Release of the record calls its `notify`, whichever process makes it; a
    claim does not. `notify` is also called each time the subscription becomes active: at first, possibly before
    `Store.subscribe` returns, and after its connection was lost. A caller that reads the record after each call misses
    nothing that came before. `notify` may be called without a change. It is not called when a lease lapses, when the
    life of a record ends or when a store loses a record, so a waiter also reads the record from time to time, and more
    often while the subscription is not active.

    This class is the subscription of a store without notifications: it is never active.
    """

    @property
    def active(self) -> bool:
        """Whether a settlement made now would call `notify`."""
        return False

    def close(self) -> None:
        """End the subscription; `notify` is not called any more. May be called more than once."""


#: A stored answer: its status, head and body, when it was first seen and when it expires (in milliseconds since 1970).
Stored = tuple[int, bytes, bytes, int, int]

#: A reply receives the result of one store call exactly once, possibly before the call returns: the result, or the
#: StoreAway that says why there is none. It must not raise; what it raises is reported to the observer and dropped.
ClaimReply = Callable[[Done | Found | Stored | StoreAway], None]
WriteReply = Callable[[Done | Found | StoreAway], None]
GetReply = Callable[[Found | StoreAway | None], None]


class Store(Protocol):
    """Records by name. Each verb is atomic against every other process on the same store, and does what
    `core.record.claimed`, `settled` and `replaced` define. A result is reported only once it is as durable as the
    store makes it. The age of a record is measured by the store's clock.

    The verbs are called in the thread of the loop that opened the store, return at once and do not raise. A call
    cannot be cancelled: a caller that has lost interest ignores its reply.
    """

    @property
    def kind(self) -> str:
        """`memory`, `sqlite` or `redis`: the name of the store in metrics and messages."""

    async def open(self) -> None:
        """Make ready. Raises StoreUnusable if it can never work; a store that is away is no error."""

    async def close(self) -> None:
        """Close it. Each outstanding call gets its reply, at worst a StoreAway; later calls get a StoreAway."""

    @property
    def available(self) -> bool:
        """Whether a call made now would be likely to be answered."""

    @property
    def trouble(self) -> str:
        """Why it is not available, for people; empty while it is."""

    @property
    def claims_refused(self) -> str:
        """Why new claims are refused although the store answers, for people; empty while they are accepted. What is
        stored can still be read."""

    def claim(self, name: bytes, claim: NewClaim | Record, reply: ClaimReply) -> None:
        """Reply WON, or the record that stands in the way. A repeated claim of the same holder is WON while that claim
        is in flight. For a NewClaim the reply may be Stored instead of Found: the answer of a completed record with
        the same mark and with a body. For a Record it is never Stored."""

    def settle(self, name: bytes, settlement: Settlement | NewKeep, reply: WriteReply) -> None:
        """Reply DONE, FORGOT, GONE, or the record that stands under another holder."""

    def compare_and_swap(self, name: bytes, precondition: Stamp, to: Record | None, reply: WriteReply) -> None:
        """Write `to`, or delete the record if `to` is None. Reply WON if `precondition` still holds, or if `to` was
        written before and its state still stands; GONE if there is no record; otherwise the record that stands."""

    def get(self, name: bytes, reply: GetReply) -> None:
        """Reply the record of this name, None if there is none."""

    def subscribe(self, name: bytes, notify: Callable[[], None]) -> Subscription:
        """Subscribe to the changes of a record. Returns at once and never fails: the subscription becomes active as
        soon as it can. All subscriptions of a store share its connections."""

    def when_available(self, seconds: float, reply: Callable[[bool], None]) -> None:
        """Reply True as soon as the store is available, at once if it is; False after `seconds`. A store that cannot
        notice its return replies at once."""


@value
class Page:
    """Part of a walk over all records. `records` are as their headers say: none has its answer. `looked`: how many
    names were met; `unreadable`: how many of them are no records that this gate reads. `cursor`: where the walk goes
    on, empty at its end. `share`: how much of the store lies behind, from 0 to 1, about."""

    records: tuple[tuple[bytes, Found], ...]
    cursor: str
    looked: int
    unreadable: int
    share: float


@runtime_checkable
class Catalogue(Protocol):
    """What a store may offer besides: to be walked through. A record that is there from the walk's beginning to its end
    is met, once or more often; one that comes or goes meanwhile may be missed."""

    async def walk(self, cursor: str, most: int) -> Page:
        """About `most` names from `cursor` on, empty for the beginning. The bodies of answers are not read. Raises
        StoreAway; ValueError where the cursor is none of this store's."""


class Stream(Protocol):
    """The rest of a response whose head is known. The exchange owns it: it is read to its end, whether or not a client
    reads it, and without a client what comes is discarded."""

    @property
    def length(self) -> int | None:
        """Bytes of the whole body, where the upstream declared them."""

    def attach(self, sink: Sink) -> None:
        """Give everything to `sink` from now on, what was held back first."""

    def pause(self) -> None:
        """Read no more for now: the sink's buffer is full. A sink that stays full for too long is cut off."""

    def resume(self) -> None: ...

    def detach(self) -> None:
        """The client has gone: read on, and discard what comes."""

    def tell(self, told: Callable[[Outcome | None], None], until: float) -> None:
        """Call `told` once, possibly before this returns: with Answered once the response was read to its end, with
        Lost once it broke off, with None if neither has happened by `until` (in the clock's seconds). After None it may
        be called again. A client must not hold the upstream back past `until`."""

    def let_go(self) -> bool:
        """From now on the response lives only as long as a client reads it. Returns whether one does."""

    def finish(self, *, clean: bool) -> None:
        """End the response for its client: whole, or cut off. What comes after that is discarded."""


class Sink(Protocol):
    """Where a stream flows to."""

    def write(self, data: bytes) -> None: ...

    def end(self, *, clean: bool) -> None:
        """The response ended; `clean` if it was whole."""


class Attempt(Protocol):
    """One request on its way to the upstream. It is written at most once to each target, and to a second one only if
    the upstream has answered with a redirect, which declares that nothing ran."""

    @property
    def sent(self) -> bool:
        """Whether any byte of it may have reached the upstream, at the target where it is now."""

    @property
    def followed(self) -> int:
        """How many redirects it has followed."""

    @property
    def stream(self) -> Stream | None:
        """The rest of the response, where the outcome is an Answered that was not read whole."""

    def tell(self, told: Callable[[Outcome | None], None], until: float) -> None:
        """Call `told` once with the outcome, possibly before this returns; with None if there is none by `until` (in
        the clock's seconds). After None it may be called again."""

    def abandon(self, reason: LostReason) -> None:
        """Stop. The outcome, or that of the stream, is reported before this returns, or never. If there is none yet, it
        becomes NotSent or Lost for this reason; after a redirect, before the next byte is sent, it is that redirect."""


class Upstream(Protocol):
    """A service behind the gate."""

    def attempt(
        self,
        request: Request,
        *,
        number: int,
        send_by: float,
        limit: int,
        streams: StreamTypes,
        follows: frozenset[int],
    ) -> Attempt:
        """Begin an attempt. The first byte is sent by `send_by` or never. A response whose body passes
        `limit` bytes, or that is a stream by one of these types, is reported before it is whole. A redirect whose
        status is in `follows`, and that asks for the same request at the same origin, is followed."""


class Client(Protocol):
    """Whoever waits for the reply."""

    @property
    def gone(self) -> bool:
        """Whether it has hung up."""

    def reply(self, reply: Reply, stream: Stream | None = None) -> None:
        """Answer it, once. Does nothing if it has gone (but detaches the stream). Raises nothing: a client that cannot
        be answered is cut off, and does not wait for ever."""

    def cut_off(self) -> None:
        """Close its connection: it cannot be answered."""

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Call this if it hangs up before it is answered; None forgets the call."""


class Clock(Protocol):
    """CLOCK_BOOTTIME and the wall."""

    def now(self) -> float:
        """Seconds that go on while the host is suspended. Only differences mean anything."""

    def wall(self) -> int:
        """Milliseconds since 1970: for people, never for decisions."""


class Observer(Protocol):
    """Is told. It never raises, never waits, and decides nothing."""

    def finished(self, account: Account) -> None:
        """A request has been answered, or its client has gone."""

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        """The store answered a call, or did not."""

    def store_forgot(self, route: str) -> None:
        """A claim of ours was gone when it was settled: the store lost what it had acknowledged."""

    def limited(self, limit: Limit) -> None:
        """Somebody met a limit, and it was kept."""

    def alarm(self, what: str, **facts: object) -> None:
        """Something that a person should hear of."""


class Nobody:
    """The observer that does not care."""

    def finished(self, account: Account) -> None: ...

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None: ...

    def store_forgot(self, route: str) -> None: ...

    def limited(self, limit: Limit) -> None: ...

    def alarm(self, what: str, **facts: object) -> None: ...


__all__ = [
    "UNTRACED",
    "Account",
    "Attempt",
    "Catalogue",
    "ClaimReply",
    "Client",
    "Clock",
    "DuplicateKind",
    "GetReply",
    "IdentityChanged",
    "Nobody",
    "Observer",
    "Page",
    "RecordTooLarge",
    "RecordUnreadable",
    "Sink",
    "Store",
    "StoreAway",
    "StoreFull",
    "StoreRefused",
    "StoreUnusable",
    "Stored",
    "Stream",
    "Subscription",
    "Trace",
    "Upstream",
    "VerdictName",
    "WriteReply",
    "untraced",
]

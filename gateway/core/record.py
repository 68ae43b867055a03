"""The life of a record. This file is the one source of truth; docs/design.md draws it.

Theory of operation
-------------------
::

              claim                    keep
    (absent) ───────▶  in flight  ───────────────▶  completed ──▶ (window ends)
        ▲                │   │  hold, or the lease lapsed
        │    release     │   └───────────────▶  in doubt ──▶ (doubt window ends)
        └────────────────┘                        │  keep by its holder (a late answer), takeover, operator
                                                  ▼
                                      completed · in flight (attempt 2) · absent

Every change names the state *and* the holder that it saw, and is made only where both still stand.
The holder alone would let a takeover overwrite a record that its owner has completed meanwhile.

A *holder* id is minted for one claim and serves that claim and its re-asks. Once a settlement was sent
for it, it is dead: a settlement that arrives late can then never touch somebody else's claim.

There is no heartbeat. An exchange ends before its lease, whatever it is doing; a claim past its lease
therefore belongs to a process that died or was paused, and *is* in doubt without anybody writing so.

Time: every write states the life that it sets, in the record. The store counts the life down by its own
clock, and age = life − what is left. The clocks of two gateways are never compared. Durations are
milliseconds; instants are milliseconds since 1970 and are shown to people, never decided by.

A store performs `claimed`, `settled` and `replaced` atomically, in whatever way it can. The functions
here say what it must come to; the memory store calls them, and tests/stores/contract.py holds every
other store against them.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, IntEnum, StrEnum
from typing import Any

from .fingerprint import Fingerprint
from .message import Answer
from .values import value

#: Bytes of a holder id. 96 random bits: unique among the claims of one key, which is all that is asked.
HOLDER_BYTES = 12


class State(IntEnum):
    """What a record says of itself. That it is absent, or has lapsed, it cannot say."""

    IN_FLIGHT = 1
    COMPLETED = 2
    IN_DOUBT = 3


class Doubt(IntEnum):
    """Why nobody knows whether it ran."""

    NONE = 0
    LOST = 1  # bytes were sent; the connection broke, or what came back was no response
    TIMEOUT = 2  # bytes were sent; nothing came back in time
    STATUS = 3  # the upstream's status says that somebody gave up while it may still happen
    DECLARED = 4  # the upstream said `unknown`
    STOPPED = 5  # this gate was stopped while it waited
    LAPSED = 6  # the owner died or was paused; never written by it


@value
class Record:
    """What is remembered under (service, namespace, scope, key).

    `life` is what the last write set, `expires` the instant at which that ends by the writer's wall
    clock. `window` and `lease` are the claim's own: a new configuration changes no live key. `status`
    is what the upstream last said, 0 for nothing. `trace` names the run among traces (its trace's id and its
    span's), where the answer is that of a run that somebody recorded.
    """

    state: State
    holder: bytes
    attempt: int
    fingerprint: Fingerprint
    route: str
    first_seen: int
    expires: int
    life: int
    lease: int
    window: int
    status: int = 0
    doubt: Doubt = Doubt.NONE
    answer: Answer | None = None
    trace: bytes = b""

    def __repr__(self) -> str:
        said = f" {self.status}" if self.status else ""
        return f"<{self.state.name.lower()} #{self.attempt} by {self.holder.hex()[:8]}{said}>"

    @property
    def written(self) -> int:
        """The instant of the last write, in milliseconds since 1970, by its writer's clock."""
        return self.expires - self.life

    def lapsed(self, age: int) -> bool:
        """Whether a claim of this age is past its lease, and so in doubt."""
        return self.state is State.IN_FLIGHT and age >= self.lease


@value
class Found:
    """A record as the store shows it. `age` is the time since its last write, by the store's clock."""

    record: Record
    age: int

    @property
    def left(self) -> int:
        """What is left of the record's life, in milliseconds."""
        return self.record.life - self.age


class Kind(StrEnum):
    """What is done with a claim."""

    KEEP = "keep"
    RELEASE = "release"
    HOLD = "hold"


@value
class Settlement:
    """What is to be done with a claim: `record` is what stands afterwards, None for absent."""

    kind: Kind
    holder: bytes
    record: Record | None

    @property
    def movable(self) -> tuple[State, ...]:
        """The states that this settlement moves, where its holder stands."""
        return _MOVABLE[self.kind]

    @property
    def tells_again(self) -> bool:
        """Whether it is written where nothing is found: the store forgot, the gate did not."""
        return self.kind is not Kind.RELEASE


_MOVABLE = {
    Kind.KEEP: (State.IN_FLIGHT, State.IN_DOUBT),
    Kind.HOLD: (State.IN_FLIGHT,),
    Kind.RELEASE: (State.IN_FLIGHT,),
}


@value
class Stamp:
    """The state and holder that somebody saw, and under which a change is still meant.

    Where `lapsed_for` is given, a record in flight must besides be that many milliseconds past its
    lease: the store tests the lapse again.
    """

    state: State
    holder: bytes
    lapsed_for: int | None = None

    def stands(self, found: Found) -> bool:
        record = found.record
        if record.state is not self.state or record.holder != self.holder:
            return False
        if self.lapsed_for is None or record.state is not State.IN_FLIGHT:
            return True
        return found.age >= record.lease + self.lapsed_for


class Done(Enum):
    """How a write ended that was not refused."""

    WON = "won"  # the claim, or the change, is made and is the caller's
    DONE = "done"  # the settlement stands, by this call or an earlier one of the same holder
    FORGOT = "forgot"  # nothing was there; the settlement was written again
    GONE = "gone"  # nothing was there, and nothing was written


class Write(Enum):
    """What a transition does besides putting a new record."""

    LEAVE = "leave"
    DELETE = "delete"
    AGAIN = "again"  # the same bytes written again under the life that is left


Change = Record | Write


def claimed(found: Found | None, claim: Record) -> tuple[Done | Found, Change]:
    """Take a key that is absent. Asked again by the same holder, it is won if still in flight."""
    if found is None:
        return Done.WON, claim
    if made_before(found, claim):
        return Done.WON, Write.AGAIN
    return found, Write.LEAVE


def settled(found: Found | None, settlement: Settlement | NewKeep) -> tuple[Done | Found, Change]:
    """Settle a claim of the settlement's holder."""
    if found is None:
        if settlement.tells_again and settlement.record is not None:
            return Done.FORGOT, settlement.record
        return Done.GONE, Write.LEAVE
    record = found.record
    if record.holder == settlement.holder and record.state in settlement.movable:
        return Done.DONE, settlement.record if settlement.record is not None else Write.DELETE
    result = refused(found, settlement)
    return result, Write.AGAIN if result is Done.DONE else Write.LEAVE


def refused(found: Found, settlement: Settlement | NewKeep) -> Done | Found:
    """What it means that a settlement moved nothing: it had been made before, or another holds the key."""
    record, meant = found.record, settlement.record
    if record.holder == settlement.holder and meant is not None and record.state is meant.state:
        return Done.DONE
    return found


def replaced(found: Found | None, stamp: Stamp, to: Record | None) -> tuple[Done | Found, Change]:
    """Take over a key in doubt, or do what an operator says, if what was seen still stands."""
    if found is None:
        return Done.GONE, Write.LEAVE
    if stamp.stands(found):
        return Done.WON, to if to is not None else Write.DELETE
    if to is not None and made_before(found, to):
        return Done.WON, Write.AGAIN
    return found, Write.LEAVE


def made_before(found: Found, claim: Record | NewClaim) -> bool:
    """Whether `claim`, a takeover or an operator's answer, asked for again, was made and stands: then it is won."""
    record = found.record
    return record.holder == claim.holder and record.state is claim.state


# ── The records that the gate writes ──────────────────────────────────────────────────────────────


def claim(
    fingerprint: Fingerprint, *, holder: bytes, route: str, lease: int, life: int, window: int, wall: int
) -> Record:
    """A first claim, made at the instant `wall`."""
    return Record(State.IN_FLIGHT, holder, 1, fingerprint, route, wall, wall + life, life, lease, window)


def takeover(seen: Record, *, holder: bytes, route: str, lease: int, life: int, window: int, wall: int) -> Record:
    """The claim of a second run: a fresh holder and a fresh life; the first sight is remembered, and the doubt
    that it takes over from, for the release of a run that never was."""
    return replace(
        seen,
        state=State.IN_FLIGHT,
        holder=holder,
        attempt=seen.attempt + 1,
        route=route,
        expires=wall + life,
        life=life,
        lease=lease,
        window=window,
        doubt=Doubt.LAPSED if seen.state is State.IN_FLIGHT else seen.doubt,
        answer=None,
    )


def keep(claim: Record, answer: Answer, *, wall: int, trace: bytes = b"") -> Settlement:
    """Store the answer for the claim's window, from now; `trace` is that of its run."""
    record = Record(
        State.COMPLETED,
        claim.holder,
        claim.attempt,
        claim.fingerprint,
        claim.route,
        claim.first_seen,
        wall + claim.window,
        claim.window,
        claim.lease,
        claim.window,
        answer.status,
        Doubt.NONE,
        answer,
        trace,
    )
    return Settlement(Kind.KEEP, claim.holder, record)


class ClaimTerms:
    """The part that all claims of a route have in common. Durations are milliseconds; `life` is that of a claim.

    `encoder` belongs to the codec of the store, which keeps there what it has prepared for these terms.
    """

    __slots__ = ("encoder", "lease", "life", "route", "window")

    def __init__(self, *, route: str, lease: int, life: int, window: int) -> None:
        self.route = route
        self.lease = lease
        self.life = life
        self.window = window
        self.encoder: Any = None


class NewClaim:
    """A first claim that a store can write without a Record. `wall` is the instant of the claim in milliseconds since
    1970."""

    __slots__ = ("_record", "fingerprint", "holder", "terms", "wall")

    state = State.IN_FLIGHT

    def __init__(self, terms: ClaimTerms, fingerprint: Fingerprint, holder: bytes, wall: int) -> None:
        self.terms = terms
        self.fingerprint = fingerprint
        self.holder = holder
        self.wall = wall
        self._record: Record | None = None

    @property
    def lease(self) -> int:
        """The lease of its record, in milliseconds."""
        return self.terms.lease

    @property
    def life(self) -> int:
        """The life of its record, in milliseconds."""
        return self.terms.life

    @property
    def record(self) -> Record:
        """The record that `claim` makes of it; always the same object."""
        record = self._record
        if record is None:
            terms = self.terms
            record = self._record = claim(
                self.fingerprint,
                holder=self.holder,
                route=terms.route,
                lease=terms.lease,
                life=terms.life,
                window=terms.window,
                wall=self.wall,
            )
        return record


class NewKeep:
    """The Keep of a first claim that a store can write without a Record: a whole answer, and no trace. It has the
    attributes of a `Settlement`, and of its record those that a store writes besides the bytes. `wall` is the instant
    of the answer in milliseconds since 1970."""

    __slots__ = ("_record", "body", "claim", "head", "status", "wall")

    state = State.COMPLETED
    kind = Kind.KEEP
    movable = _MOVABLE[Kind.KEEP]
    tells_again = True

    def __init__(self, claim: NewClaim, status: int, head: bytes, body: bytes, wall: int) -> None:
        self.claim = claim
        self.status = status
        self.head = head
        self.body = body
        self.wall = wall
        self._record: Record | None = None

    @property
    def holder(self) -> bytes:
        """The holder of its claim."""
        return self.claim.holder

    @property
    def lease(self) -> int:
        """The lease of its record, in milliseconds."""
        return self.claim.terms.lease

    @property
    def life(self) -> int:
        """The life of its record, in milliseconds: its window."""
        return self.claim.terms.window

    @property
    def expires(self) -> int:
        """The instant at which its window ends, in milliseconds since 1970."""
        return self.wall + self.claim.terms.window

    @property
    def record(self) -> Record:
        """The record that `keep` makes of it; always the same object."""
        record = self._record
        if record is None:
            answer = Answer(self.status, self.head, self.body)
            record = self._record = keep(self.claim.record, answer, wall=self.wall).record
            assert record is not None
        return record


def without_body(settlement: Settlement | NewKeep) -> Settlement | None:
    """The same Keep, of a record that says only that the request ran; None if there is nothing to leave out. The fields
    are left out too, since nothing replays them."""
    record = settlement.record
    if record is None or record.answer is None or (record.answer.body is None and not record.answer.head):
        return None
    answer = replace(record.answer, head=b"", body=None)
    return Settlement(settlement.kind, settlement.holder, replace(record, answer=answer))


def hold(claim: Record, *, doubt: Doubt, status: int, wall: int) -> Settlement:
    """Mark the claim in doubt, for its doubt window from now."""
    life = claim.life - claim.lease
    return Settlement(
        Kind.HOLD,
        claim.holder,
        replace(
            claim,
            state=State.IN_DOUBT,
            life=life,
            expires=wall + life,
            doubt=doubt,
            status=status or claim.status,
        ),
    )


def release(claim: Record, *, elapsed: int, wall: int) -> Settlement:
    """Free the key. A takeover that turned out not to run goes back in doubt, for what is left of it."""
    if claim.attempt < 2:
        return Settlement(Kind.RELEASE, claim.holder, None)
    life = max(claim.life - elapsed, 1)
    back = replace(
        claim,
        state=State.IN_DOUBT,
        attempt=claim.attempt - 1,
        life=life,
        expires=wall + life,
        doubt=Doubt.LAPSED if claim.doubt is Doubt.NONE else claim.doubt,
    )
    return Settlement(Kind.RELEASE, claim.holder, back)


def answered(seen: Record, answer: Answer, *, holder: bytes, wall: int) -> Record:
    """What an operator says came of a doubt. The holder is a fresh one: whoever held the doubt and still brings an
    answer finds that another's record stands, and tells its client what everybody else is told."""
    return replace(
        seen,
        state=State.COMPLETED,
        holder=holder,
        expires=wall + seen.window,
        life=seen.window,
        status=answer.status,
        doubt=Doubt.NONE,
        answer=answer,
    )

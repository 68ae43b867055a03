"""The phases in which a key is acquired: claimed, taken over, or watched while another process has it.

    CLAIMING      the store was sent a claim
    TAKING_OVER   the store was sent a takeover of a key in doubt
    BACKING_OFF   the store failed; the same command is sent again once it is back
    WATCHING      another process has the key; the record is read again when it may have changed
    PAUSING       the key was freed; each process claims it after a random pause
    DONE          the machine is not in the table any more

At most one call of the store is outstanding. In CLAIMING and TAKING_OVER only its reply, a fault or a cut ends the
phase. So a reply always belongs to the current phase. In DONE it is ignored, because its claim was abandoned.
"""

from __future__ import annotations

import math
from typing import Any

from ..core import record as records
from ..core.conclusion import record_of
from ..core.decide import Forward, Refuse, Replay, Wait, resolve
from ..core.message import Answer
from ..core.policy import Policy, StoreDown
from ..core.problem import Label, Problem, Refusal
from ..core.record import Done, Found, NewClaim, Record, Stamp
from ..core.reply import Again, Reply
from ..ports import IdentityChanged, RecordTooLarge, RecordUnreadable, StoreAway, Stored, StoreFull, StoreRefused
from .io import Io
from .machine import BACKING_OFF, CLAIMING, PAUSING, TAKING_OVER, WATCHING, Machine, event
from .request import GuardedRequest

#: Seconds between two reads of a watched record: the first pause, the longest, and the factor by which it grows.
FIRST_PAUSE = 0.025
LONGEST_PAUSE = 0.25
PAUSE_GROWS = 1.5
#: The same while the store notifies of settlements. A lost notification is then noticed within a second.
FIRST_SLOW_PAUSE = 0.25
LONGEST_SLOW_PAUSE = 1.0
#: Stores round ages to milliseconds. This many seconds after its lapse, a record has certainly lapsed.
PAST_LAPSE = 0.002
#: Longest pause, in seconds, between the release of a watched key and the next claim of this process.
JITTER = 0.05
#: Pause, in seconds, before the machine waits for a store that failed. Without it a store that fails and reports itself
#: back in the same turn would be called in a loop.
BACK_OFF = 0.02

NO_ROOM = (
    "The idempotency store is full: it has no room for a new key. The request was not executed; retry it later with "
    "the same key."
)
TOO_LARGE = (
    "The idempotency store refuses the record of this key: it is over a limit of the store. The request was not "
    "executed; report it to the service."
)


class Watch:
    """What is known of a watched record, and when it is read again. Instants are the clock's, in seconds."""

    __slots__ = ("judged", "next_lapse", "pause", "read_again", "reading", "slow_pause", "unread_until")

    def __init__(self) -> None:
        #: Whether a read is outstanding, and whether the record may have changed since it was sent.
        self.reading = self.read_again = False
        self.pause, self.slow_pause = FIRST_PAUSE, FIRST_SLOW_PAUSE
        #: When the verdict on the record may change for some waiter although the record does not.
        self.next_lapse = math.inf
        #: When a store that keeps failing makes the waiters give up.
        self.unread_until = math.inf
        #: The policies, by identity, for which a verdict on the record is known.
        self.judged: set[int] = set()

    def next_read(self, now: float, *, notified: bool) -> float:
        """Return when to read next. `notified`: the store notifies of settlements."""
        if notified:
            pause, self.slow_pause = self.slow_pause, min(self.slow_pause * PAUSE_GROWS, LONGEST_SLOW_PAUSE)
        else:
            pause, self.pause = self.pause, min(self.pause * PAUSE_GROWS, LONGEST_PAUSE)
        return now + pause


class Acquisition(Machine):
    """Acquires the key for one of its requests, or finds what answers them. It knows no upstream: `_won` says what
    happens with a key that was acquired."""

    __slots__ = (
        "_called_at", "_error", "_found", "_precondition", "ambiguous", "claim", "owns", "patience_ends", "t0",
        "unprotected", "watch",
    )  # fmt: skip

    def __init__(self, io: Io, request: GuardedRequest) -> None:
        super().__init__(io, request)
        #: The claim that the store was sent, and the instant from which deadlines count: when the claimant arrived, or
        #: for a later claim just before it was sent.
        self.claim: NewClaim | Record | None = None
        self.t0 = 0.0
        #: Whether the machine treats the claim as its own: it was won, or the claimant runs without the store.
        self.owns = False
        #: Whether a claim whose reply was lost may still land.
        self.ambiguous = False
        #: Whether the claimant runs without the store.
        self.unprotected = False
        self.patience_ends = 0.0
        #: The state and the holder that a takeover expects; None for a claim.
        self._precondition: Stamp | None = None
        self._called_at = 0.0
        self._error: StoreAway | None = None
        #: The record of another holder, as it was seen last.
        self._found: Record | None = None
        #: Set while the machine is subscribed to the changes of the record: in WATCHING, and until a takeover.
        self.watch: Watch | None = None

    @property
    def standing(self) -> Record | None:
        return record_of(self.claim) if self.owns and self.claim is not None else self._found

    # ── Claiming and taking over ──────────────────────────────────────────────────────────────────

    @event
    def begin(self) -> None:
        """Claim the key for the request that the machine was made for."""
        request = self.claimant
        assert request is not None
        self._claim(request, request.started)

    def _claim(self, request: GuardedRequest, t0: float) -> None:
        """Claim the key. Each claim has its own holder id, and its repetitions keep it: the store answers them WON
        while that claim is in flight."""
        io = self.io
        self._found = None
        claim = NewClaim(request.terms, request.fingerprint, io.mint(), io.wall())
        self._command(request.policy, claim, None, t0)

    def _take_over(self, seen: Found, now: float) -> None:
        """Take over a key in doubt for the claimant."""
        request, record = self._ensure_claimant(), seen.record
        terms = request.terms
        claim = records.takeover(
            record,
            holder=self.io.mint(),
            route=terms.route,
            lease=terms.lease,
            life=terms.life,
            window=terms.window,
            wall=self.io.wall(),
        )
        self._command(request.policy, claim, Stamp(record.state, record.holder, request.policy.margin), now)

    def _ensure_claimant(self) -> GuardedRequest:
        """Return the claimant. Without one, the first waiter becomes it."""
        if self.claimant is None:
            self.claimant = next(iter(self.waiters))
            self._detach(self.claimant)
        return self.claimant

    def _command(self, policy: Policy, claim: NewClaim | Record, precondition: Stamp | None, t0: float) -> None:
        self.claim, self._precondition = claim, precondition
        self.t0 = self._called_at = t0
        self.ambiguous = False
        self.patience_ends = t0 + min(policy.store_wait, policy.send_by) / 1000
        self._send()

    def _send(self) -> None:
        """Send the command, for the first time or again. A repetition has the same holder and the same `t0`, because
        the claim may date from the first time."""
        assert self.claim is not None
        if self._precondition is None:
            self.phase = CLAIMING
            self.io.claim(self, self.claim)
        else:
            assert isinstance(self.claim, Record)
            self.phase = TAKING_OVER
            self.io.compare_and_swap(self, self._precondition, self.claim)

    @event
    def store_replied(self, result: Any) -> None:
        """The outstanding call of the store has ended: with its result, or with the exception that says why not."""
        phase = self.phase
        if phase is CLAIMING:
            self._claim_replied("claim", result)
        elif phase is TAKING_OVER:
            self._claim_replied("takeover", result)
        elif phase is WATCHING:
            self._read_replied(result)
        else:
            self._settle_replied(result)

    def _claim_replied(self, operation: str, result: Any) -> None:
        io = self.io
        now = io.now()
        io.store_called(self.claimant, operation, self._called_at, now, failed=isinstance(result, Exception))
        if result is Done.WON:
            self.owns = True
            self._won(now)
        elif type(result) is tuple:
            self._replay(result, now)
        elif isinstance(result, Found):
            self._abandon_if_ambiguous()
            self._claimant_waits()
            self._judge(result, now)
        elif result is Done.GONE:
            self._abandon_if_ambiguous()
            self._claim(self._ensure_claimant(), now)
        elif isinstance(result, StoreAway):
            self.ambiguous = self.ambiguous or result.ambiguous
            self._error = result
            if isinstance(result, StoreFull | StoreRefused | RecordTooLarge) or now >= self.patience_ends:
                self._give_up(result, now)
            else:
                self.phase = BACKING_OFF
                io.timer(self, min(now + BACK_OFF, self.patience_ends))
        else:
            raise result

    @event
    def store_back(self, up: bool) -> None:
        """The store is available again, or was not in time."""
        if self.phase is BACKING_OFF:
            self._try_again(self.io.now(), up=up)

    def _try_again(self, now: float, *, up: bool) -> None:
        """Send the command again while the patience lasts. After a long stall, a later claim could land after its last
        release in the background."""
        if up and now < self.patience_ends:
            self._called_at = now
            self._send()
        else:
            assert self._error is not None
            self._give_up(self._error, now)

    def _give_up(self, error: StoreAway, now: float) -> None:
        """Run without the store if the policy says so, else refuse everyone. A takeover never runs without the store,
        because an earlier run may have taken effect."""
        request = self._ensure_claimant()
        forward = request.policy.store_down is StoreDown.FORWARD and self._precondition is None
        if forward and not isinstance(error, RecordUnreadable | IdentityChanged):
            self.owns = self.unprotected = self.ambiguous = True
            request.summary.detail = error.why
            self._won(now)
        else:
            self._abandon_if_ambiguous()
            self._refuse_everyone(error)

    def _refuse_everyone(self, error: StoreAway) -> None:
        everyone = self._everyone()
        self._end()
        self.io.refuse(everyone, store_refusal(error), error.why)

    def _abandon_if_ambiguous(self) -> None:
        """If a reply was lost, release the claim in the background, because it may still land."""
        claim, self.claim = self.claim, None
        if self.ambiguous and claim is not None:
            self.ambiguous = False
            self.io.abandon_claim(self, claim, self.t0)

    def _claimant_waits(self) -> None:
        """Make the claimant a waiter again, the first of them."""
        request, self.claimant = self.claimant, None
        if request is not None:
            self.waiters = {request: None, **self.waiters}

    def _won(self, now: float) -> None:
        raise NotImplementedError

    # ── Deciding on a record ──────────────────────────────────────────────────────────────────────

    def _replay(self, stored: Stored, now: float) -> None:
        """A completed record answers the claimant and all waiters that sent the same. For others, read the record."""
        status, head, body, first_seen, expires = stored
        reply = Again(Answer(status, head, body), Label.REPLAYED, first_seen, expires)
        self._abandon_if_ambiguous()
        claimant = self._ensure_claimant()
        self.claimant = None
        alike = [request for request in self.waiters if request.mark == claimant.mark]
        for request in alike:
            self._detach(request)
        if not self.waiters:
            self._end()
        self.io.replay(claimant, reply)
        for request in alike:
            self.io.replay(request, reply)
        if self.waiters:
            self._watch(0.0, now, now, set())

    def _judge(self, found: Found, now: float) -> None:
        """Judge each waiter by its own fingerprint and policy on a record of the store: answer it, take the key over
        for it, or let it wait."""
        record = self._found = found.record
        self.owns, self.mark = False, b""
        self.trace = record.trace
        verdicts: dict[tuple[bytes, int], Forward | Replay | Refuse | Wait] = {}
        answers: list[tuple[GuardedRequest, Reply]] = []
        next_lapse = math.inf
        taker = None
        for request in self.waiters:
            alike = request.mark, id(request.policy)
            verdict = verdicts.get(alike)
            if verdict is None:
                verdict = verdicts[alike] = resolve(found, request.fingerprint, request.policy)
            if isinstance(verdict, Wait):
                next_lapse = min(next_lapse, now + verdict.lease_left / 1000 + PAST_LAPSE)
            elif not isinstance(verdict, Forward):
                answers.append((request, reply_of(verdict)))
            elif taker is None:
                taker = request
        for request, _ in answers:
            self._detach(request)
        if not self.waiters:
            self._end()
        self.io.share(answers, record, trace=record.trace)
        if taker is not None:
            self._detach(taker)
            self.claimant = taker
            self._unsubscribe()
            self._take_over(found, now)
        elif self.waiters:
            self._watch(now + (record.lease - found.age) / 1000, now, next_lapse, {policy for _, policy in verdicts})

    # ── Watching another process ──────────────────────────────────────────────────────────────────

    def _watch(self, lease_ends: float, now: float, next_lapse: float, judged: set[int]) -> None:
        self.phase = WATCHING
        self.lease_ends = lease_ends
        watch = self.watch
        if watch is None:
            watch = self.watch = Watch()
            self.io.subscribe(self)
        watch.next_lapse, watch.judged = next_lapse, judged
        for request in self.waiters:
            if request.machine is None:
                request.begin_waiting(now)
                self.io.arm(self, request)
        self._plan_read(watch, now, next_lapse)

    def _watch_for(self, request: GuardedRequest) -> None:
        watch = self.watch
        assert watch is not None
        if id(request.policy) not in watch.judged:
            watch.judged.add(id(request.policy))  # under its policy the record may lapse sooner
            watch.next_lapse = 0.0
            self._read()

    def _plan_read(self, watch: Watch, now: float, next_lapse: float = math.inf) -> None:
        self.io.timer(self, min(watch.next_read(now, notified=self.io.subscribed(self)), next_lapse))

    @event
    def notified(self) -> None:
        """The watched record may have been settled."""
        if self.phase is WATCHING:
            self._read()

    @event
    def timer(self) -> None:
        """The timer of the machine is due."""
        now = self.io.now()
        if self.phase is WATCHING:
            self._read()
        elif self.phase is PAUSING:
            self._claim(self._ensure_claimant(), now)
        elif self.phase is BACKING_OFF:
            if now < self.patience_ends:
                self.io.wait_for_store(self, self.patience_ends)
            else:
                self._try_again(now, up=False)

    def _read(self) -> None:
        """Read the watched record. A change during an outstanding read may be newer than its reply: read again."""
        watch = self.watch
        assert watch is not None
        if watch.reading:
            watch.read_again = True
        else:
            watch.reading = True
            self._called_at = self.io.now()
            self.io.get(self)

    def _read_replied(self, result: Any) -> None:
        io, watch, seen, first = self.io, self.watch, self._found, next(iter(self.waiters))
        assert watch is not None
        now = io.now()
        io.store_called(first, "look", self._called_at, now, failed=isinstance(result, Exception))
        watch.reading = False
        if isinstance(result, StoreAway):
            watch.unread_until = min(watch.unread_until, now + first.policy.store_wait / 1000)
            if now >= watch.unread_until:
                self._refuse_everyone(result)
            elif watch.read_again:
                watch.read_again = False
                io.timer(self, now + FIRST_PAUSE)
            else:  # not at once at a past lapse: a failing store would be read in a loop
                self._plan_read(watch, now)
            return
        if isinstance(result, Exception):
            raise result
        watch.unread_until = math.inf
        if result is None:
            self._unsubscribe()
            self._found = None
            self.phase = PAUSING
            io.timer(self, now + io.jitter() * JITTER)
            return
        record = result.record
        unchanged = seen is not None and record.holder == seen.holder and record.state is seen.state
        if unchanged and now < watch.next_lapse:
            self._plan_read(watch, now, watch.next_lapse)
        else:
            self._judge(result, now)
        if watch.read_again and self.phase is WATCHING:
            watch.read_again = False
            self._read()

    def _unsubscribe(self) -> None:
        if self.watch is not None:
            self.watch = None
            self.io.unsubscribe(self)

    # ── The end ───────────────────────────────────────────────────────────────────────────────────

    def _end(self) -> None:
        super()._end()
        if self.watch is not None:
            self._unsubscribe()

    def _hand_over(self) -> None:
        if self.phase in (CLAIMING, TAKING_OVER, BACKING_OFF) and self.claim is not None:
            claim, self.claim = self.claim, None
            self.io.abandon_claim(self, claim, self.t0)

    def _settle_replied(self, result: Any) -> None:
        """Ignore it: only an Exchange sends settlements."""


def reply_of(verdict: Replay | Refuse) -> Reply:
    """Return the reply to a duplicate that a record answers."""
    if isinstance(verdict, Refuse):
        return verdict.refusal
    record = verdict.record
    assert record.answer is not None
    return Again(record.answer, Label.REPLAYED, record.first_seen, record.expires)


def store_refusal(error: StoreAway) -> Refusal:
    """Return the 503 for a store that failed. If the store answers and refuses the record, its text says so."""
    problem = Problem.IDENTITY_CHANGED if isinstance(error, IdentityChanged) else Problem.STORE_UNAVAILABLE
    why = NO_ROOM if isinstance(error, StoreFull) else TOO_LARGE if isinstance(error, RecordTooLarge) else ""
    return Refusal(problem, retry_after=1, instead=why)


__all__ = ["Acquisition", "reply_of", "store_refusal"]

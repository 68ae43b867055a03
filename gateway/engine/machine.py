"""The requests at one key of this process, and the rules that hold in every phase.

A machine does no I/O. Events are methods, called by the driver; effects are calls on `io`. A handler sets the state
first and calls `io` last. Answers are sent before any call that may raise. Events that arrive during a handler are
queued: an `io` call may lead to a reply or to a new request before it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import update_wrapper
from typing import Any, TypeVar, TypeVarTuple

from ..core.decide import mismatch
from ..core.fingerprint import difference
from ..core.problem import Problem, Refusal
from ..core.record import Record
from .io import Io
from .request import GuardedRequest

Ts = TypeVarTuple("Ts")
M = TypeVar("M", bound="Machine")


class Phase(Enum):
    """Where a machine stands."""

    # The phases of `acquisition` ...
    CLAIMING = auto()
    TAKING_OVER = auto()
    BACKING_OFF = auto()
    WATCHING = auto()
    PAUSING = auto()
    # ... and of `exchange`.
    FORWARDING = auto()
    LATE = auto()
    STREAMING = auto()
    SETTLING = auto()
    OVERDUE = auto()
    KEEPING = auto()
    LINGERING = auto()
    DONE = auto()


#: The phases as names of this module: looking up a member of an Enum costs 38 ns more, on Python 3.11.
(
    CLAIMING, TAKING_OVER, BACKING_OFF, WATCHING, PAUSING, FORWARDING, LATE, STREAMING, SETTLING, OVERDUE, KEEPING,
    LINGERING, DONE,
) = Phase  # fmt: skip


def event(handler: Callable[[M, *Ts], None]) -> Callable[[M, *Ts], None]:
    """Make a method an event: it never raises, and is queued while another handler of the machine runs. One packet of
    the store carries many replies, so that an exception here would lose those of other requests."""

    def guarded(self: M, *args: *Ts) -> None:
        if self._busy:
            if self._inbox is None:
                self._inbox = []
            self._inbox.append((handler, args))
            return
        self._busy = True
        try:
            handler(self, *args)
        except Exception as error:
            self._fault(error)
        if self._inbox is not None:
            self._handle_inbox()
        self._busy = False

    update_wrapper(guarded, handler)
    return guarded


class Machine:
    """All requests at one key: at most one claimant, for which the key is claimed and which then runs, and any number
    of waiters."""

    __slots__ = ("_busy", "_inbox", "claimant", "io", "lease_ends", "mark", "name", "phase", "trace", "waiters")

    def __init__(self, io: Io, request: GuardedRequest) -> None:
        """Begin with the first request of a key that is not in the table."""
        self.io = io
        self.name = request.name
        self.phase = CLAIMING
        #: None while nothing is claimed and nothing runs. Its client may have left.
        self.claimant: GuardedRequest | None = request
        #: In order of arrival.
        self.waiters: dict[GuardedRequest, None] = {}
        #: When the lease of the standing record ends, in the clock's seconds.
        self.lease_ends = 0.0
        #: The mark of the claimant whose claim stands: requests with it need no comparison. Empty if none stands.
        self.mark = b""
        #: The trace context of the run that the standing record belongs to.
        self.trace = b""
        self._busy = False
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None

    @property
    def waiting(self) -> int:
        """The number of waiting duplicates. While another process is watched, the first waiter counts as a claimant."""
        count = len(self.waiters)
        return count - 1 if count and self.claimant is None else count

    @property
    def standing(self) -> Record | None:
        """The record that the store holds, if it is known: this machine's claim, or the record of another holder."""
        raise NotImplementedError

    # ── Requests ──────────────────────────────────────────────────────────────────────────────────

    @event
    def joined(self, request: GuardedRequest) -> None:
        """Another request for this key has arrived."""
        if self.phase is DONE:
            self.io.rejoin(request)
            return
        try:
            self._join(request)
        except Exception as error:
            if request in self.waiters:
                raise
            self.io.failed(error)  # a request that cannot be compared must not harm the others
            self.io.refuse([request], Refusal(Problem.OVERLOADED))

    def _join(self, request: GuardedRequest) -> None:
        """Let a request wait: first the comparison with the standing record, then the caps."""
        io = self.io
        request.begin_waiting(io.now())
        if self._refuse_mismatch(request):
            return
        if (cap := io.full(self)) is not None:
            io.limited(cap)
            io.share([(request, self._in_flight())], self.standing)
            return
        self.waiters[request] = None
        io.arm(self, request)
        if self.phase is WATCHING:
            self._watch_for(request)

    def _watch_for(self, request: GuardedRequest) -> None:
        """Another request waits for the watched record."""

    def _refuse_mismatch(self, request: GuardedRequest) -> bool:
        """Answer 422 if this request differs from the one in the standing record. Return whether it does."""
        if request.mark == self.mark or (record := self.standing) is None:
            return False
        mine = request.fingerprint
        if (different := difference(record.fingerprint, mine)) is None:
            return False
        if request in self.waiters:
            self._detach(request)
        self.io.share([(request, mismatch(different, record, mine, request.policy))])
        return True

    @event
    def left(self, request: GuardedRequest) -> None:
        """A waiter's client has left. A claimant's client may leave without an effect: its request may have run, and
        its duplicates need the outcome."""
        if request in self.waiters:
            self._detach(request)
            self._end_if_unused()
            self.io.finish(request)

    @event
    def wait_over(self, request: GuardedRequest) -> None:
        """A waiter has waited as long as it may."""
        if request in self.waiters:
            self._detach(request)
            self._end_if_unused()
            self.io.share([(request, self._in_flight())], self.standing)

    def _in_flight(self) -> Refusal:
        return Refusal(Problem.IN_FLIGHT, retry_after=max(1, min(2, int(self.lease_ends - self.io.now()))))

    def _detach(self, request: GuardedRequest) -> None:
        del self.waiters[request]
        if request.machine is not None:
            self.io.disarm(request)

    def _end_if_unused(self) -> None:
        if not self.waiters and self.phase in (WATCHING, PAUSING):
            self._end()

    def _everyone(self) -> list[GuardedRequest]:
        """Detach all requests, the claimant first."""
        claimant, self.claimant = self.claimant, None
        everyone = list(self.waiters)
        for request in everyone:
            self._detach(request)
        return everyone if claimant is None else [claimant, *everyone]

    def _end(self) -> None:
        """Leave the table. This comes before the last answers: while a client is answered, its next request may
        arrive."""
        if self.phase is not DONE:
            self.phase = DONE
            self.io.forget(self)
            self.io.cancel_timer(self)

    # ── The end of the process, and faults ────────────────────────────────────────────────────────

    @event
    def stop(self) -> None:
        """Abandon a running attempt, and forward nothing more: the grace of the process is over."""
        self._stop()

    @event
    def cut(self) -> None:
        """End at once, without answers: the process is about to end. Open claims and settlements are sent in the
        background."""
        if self.phase is not DONE:
            self._hand_over()
            everyone = self._everyone()
            self._end()
            for request in everyone:
                self.io.finish(request)

    def _fault(self, error: Exception) -> None:
        """Handle a fault of the gateway: settle as `cut` does, and answer everyone."""
        self.io.failed(error)
        try:
            if self.phase is not DONE:
                self._hand_over()
                self._answer_fault()
        except Exception as again:
            self.io.failed(again)
            self._end()
        self.io.disconnect(self._everyone())

    def _answer_fault(self) -> None:
        """Refuse everyone: nothing was forwarded."""
        everyone = self._everyone()
        self._end()
        self.io.refuse(everyone, Refusal(Problem.OVERLOADED))

    def _stop(self) -> None: ...

    def _hand_over(self) -> None:
        """Hand the claim or the settlement that the store may hold to the background work."""
        raise NotImplementedError

    def _handle_inbox(self) -> None:
        while self._inbox:
            handler, args = self._inbox.pop(0)
            try:
                handler(self, *args)
            except Exception as error:
                self._fault(error)


__all__ = ["Machine", "Phase", "event"]

"""The phases in which the one request of a key runs and is settled.

    FORWARDING  the request was forwarded
    LATE        its client was answered 504; the upstream may still answer
    STREAMING   the response is a stream, or too long to be stored: the client gets it as it arrives
    SETTLING    the store was sent the settlement. Nothing was answered before, except a 504 or a stream
    OVERDUE     a stream has not ended in time: the key is in doubt, and its client still reads
    KEEPING     an overdue stream has ended; the store was sent its Keep
    LINGERING   the store has not acknowledged the settlement; it is sent again in the background

`begun` is set before the request is forwarded, since a call that fails may have sent bytes. `attempt.sent` is trusted
only once the attempt has ended or was abandoned.
"""

from __future__ import annotations

import math
from typing import Any

from ..account import VerdictName
from ..core import record as records
from ..core.conclusion import (
    claimant_reply,
    first_seen,
    outcome_unknown,
    record_of,
    settlement_of,
    unfinished,
    unsettled_label,
    waiters_reply,
)
from ..core.decide import PassReason, Reason, Refuse, Replay, Settle, in_doubt, resolve, settle
from ..core.outcome import Answered, Lost, LostReason, NotSent, NotSentReason, Outcome
from ..core.problem import Label, Problem, Refusal
from ..core.record import Done, Found, Kind, NewClaim, NewKeep, Settlement
from ..core.reply import Live, Reply
from ..ports import RecordTooLarge, StoreAway, Stream
from .acquisition import Acquisition, reply_of
from .io import Io
from .machine import FORWARDING, KEEPING, LATE, LINGERING, OVERDUE, SETTLING, STREAMING, Phase, event
from .request import GuardedRequest
from .run import Run, stored_bytes


class Exchange(Acquisition):
    """Runs the request that has acquired the key, settles the claim, and answers every request at the key."""

    __slots__ = ("_later_reply", "_retries", "run")

    def __init__(self, io: Io, request: GuardedRequest) -> None:
        super().__init__(io, request)
        self.run: Run | None = None
        #: The reply for later requests while a settlement is not acknowledged, or a stream is overdue.
        self._later_reply: Reply | None = None
        #: Settlements in the background.
        self._retries = 0

    @property
    def route(self) -> str:
        """The route of the claim or of the watched record; empty while it is not known whose the key is."""
        if self.owns and self.claim is not None:
            return self.claim.terms.route if isinstance(self.claim, NewClaim) else self.claim.route
        return "" if self._found is None else self._found.route

    # ── Running ───────────────────────────────────────────────────────────────────────────────────

    def _won(self, now: float) -> None:
        """The key is the claimant's: forward the request, unless it is too late for that."""
        io, request, claim = self.io, self._ensure_claimant(), self.claim
        assert claim is not None
        policy, summary = request.policy, request.summary
        run = self.run = Run(claim, policy, self.t0)
        self.mark = request.mark
        self.lease_ends = self.t0 + policy.lease / 1000
        self.trace = summary.trace.context
        summary.verdict = VerdictName.FORWARD
        summary.attempt = run.number
        if self.unprotected:
            summary.unprotected = PassReason.STORE_DOWN.value
        if self.waiters:  # until now there was nothing to compare them with
            for waiter in list(self.waiters):
                self._refuse_mismatch(waiter)
        send_by = self.t0 + policy.send_by / 1000
        if now > send_by:
            self._conclude(run, NotSent(NotSentReason.TOO_LATE), now)
        elif io.stopping:
            self._conclude(run, NotSent(NotSentReason.STOPPED), now)
        else:
            upstream = io.upstream(request)
            self.phase = FORWARDING
            run.begun = True
            run.forwarded_at = now
            timeout = self.t0 + policy.timeout / 1000
            run.attempt = io.forward(self, request, upstream, number=run.number, send_by=send_by, until=timeout)

    @event
    def attempt_ended(self, outcome: Outcome | None) -> None:
        """The attempt has ended; or, with None, it has no outcome by its deadline."""
        io, phase, run = self.io, self.phase, self.run
        if run is None:
            return
        if phase is FORWARDING and outcome is None:
            phase = self.phase = LATE
            timeout = outcome_unknown(Problem.UPSTREAM_TIMEOUT, unprotected=self.unprotected)
            io.answer(self._ensure_claimant(), timeout)
            if io.now() < run.ends_by:
                assert run.attempt is not None
                io.wait_for_attempt(self, run.attempt, run.ends_by)
                return
        if phase in (FORWARDING, LATE) and outcome is not None:
            self._conclude(run, outcome, io.now())
        elif phase is LATE:
            assert run.attempt is not None
            self.phase = SETTLING  # from now on the attempt's own outcome is ignored
            io.abandon(run.attempt, LostReason.TIMEOUT)
            self._conclude(run, Lost(LostReason.TIMEOUT), io.now())

    def _conclude(self, run: Run, outcome: Outcome, now: float) -> None:
        """Decide on the outcome of the attempt. A response that cannot be stored is settled at its end, unless its head
        releases or holds the claim."""
        if run.attempt is not None:
            self.io.attempted(self._ensure_claimant(), outcome, run.forwarded_at, now)
        verdict = settle(outcome, run.policy)
        if run.stream is not None and verdict.kind is Kind.KEEP:
            assert isinstance(outcome, Answered)
            if now < run.ends_by:
                self._stream(run, outcome)
                return
            # The deadline has passed, for example after a stall. Another process may hold the key.
            self._break_off()
            outcome = unfinished(outcome.response.status)
            verdict = settle(outcome, run.policy)
        self._settle(run, outcome, verdict, now)

    def _stream(self, run: Run, outcome: Answered) -> None:
        """Give the response to its client as it arrives, and read it to its end whether or not the client does."""
        request = self._ensure_claimant()
        stream = run.stream
        assert stream is not None
        self.phase = STREAMING
        run.streaming = True
        run.outcome = outcome
        request.drop_body()  # the response may go on for minutes
        label = unsettled_label(Label.NOT_KEPT, acknowledged=True, unprotected=self.unprotected)
        self.io.answer(request, Live(outcome.response, label, first_seen(run.claim)), stream)
        self.io.wait_for_stream(self, stream, run.ends_by)

    @event
    def stream_ended(self, outcome: Outcome | None) -> None:
        """The response was read to its end or broke off; None if neither has happened by the instant asked for."""
        now, run = self.io.now(), self.run
        if self.phase is STREAMING and run is not None:
            assert isinstance(run.outcome, Answered)
            outcome = outcome or unfinished(run.outcome.response.status)
            self._settle(run, outcome, settle(outcome, run.policy), now)
        elif self.phase is OVERDUE and run is not None:
            if isinstance(outcome, Answered):
                self._settle_as(KEEPING, run, outcome, settle(outcome, run.policy), now)
            else:
                self._end_stream(clean=False)
                self._linger()

    # ── Settling ──────────────────────────────────────────────────────────────────────────────────

    def _settle(self, run: Run, outcome: Outcome, verdict: Settle, now: float) -> None:
        summary, attempt = self._ensure_claimant().summary, run.attempt
        if not isinstance(outcome, Answered):
            summary.detail = outcome.detail
        if attempt is not None and attempt.followed:
            summary.detail = f"{summary.detail} (redirects followed: {attempt.followed})".lstrip()
        summary.settlement, summary.reason = verdict.kind, verdict.reason
        self._settle_as(SETTLING, run, outcome, verdict, now)

    def _settle_as(self, phase: Phase, run: Run, outcome: Outcome, verdict: Settle, now: float) -> None:
        """Settle, and wait for the reply in this phase."""
        elapsed, wall = int((now - run.t0) * 1000), self.io.wall()
        settlement = settlement_of(
            verdict, outcome, run.claim, run.policy, elapsed=elapsed, wall=wall, trace=self.trace
        )
        self.phase = phase
        run.outcome, self._called_at = outcome, now
        self._send_settlement(run, settlement)

    def _send_settlement(self, run: Run, settlement: Settlement | NewKeep) -> None:
        run.settlement, run.acknowledged = settlement, False
        try:
            self.io.settle(self, settlement)
        except Exception as error:
            self._settle_replied(error)

    def _settle_replied(self, result: Any) -> None:
        io, run = self.io, self.run
        if run is None or run.settlement is None or self.phase not in (SETTLING, KEEPING):
            return
        settlement = run.settlement
        if isinstance(result, RecordTooLarge) and (shorter := io.shortened(settlement, result, self.route)) is not None:
            if self.claimant is not None:
                self.claimant.summary.reason = Reason.OVER_LIMIT
            self._send_settlement(run, shorter)
            return
        failed = isinstance(result, Exception)
        if failed and not isinstance(result, StoreAway):
            io.failed(result)
        now = io.now()
        io.store_called(self.claimant, "settle", self._called_at, now, failed=failed)
        run.acknowledged = not failed
        if settlement.kind is Kind.RELEASE and not failed and (result is Done.GONE or self.ambiguous):
            io.repeat_release(self, settlement, self.route, self.lease_ends)
        if self.phase is KEEPING:
            self._keep_replied(run, settlement, result)
        elif isinstance(result, Found):
            self._superseded(run, result, now)
        else:
            if result is Done.FORGOT and not self.unprotected:
                io.store_forgot(self.route)
            self._answer(run, settlement, now)

    def _answer(self, run: Run, settlement: Settlement | NewKeep, now: float) -> None:
        """Answer the claimant, then the waiters."""
        io, request, outcome = self.io, self._ensure_claimant(), run.outcome
        assert outcome is not None
        acknowledged, unprotected = run.acknowledged, self.unprotected
        if settlement.kind is Kind.KEEP:
            request.summary.record_bytes = stored_bytes(settlement)
        stream, mine = run.stream, None
        live = stream is not None
        if not run.streaming:
            mine = claimant_reply(
                outcome, settlement, run.claim, acknowledged=acknowledged, live=live, unprotected=unprotected
            )
        shared: Reply | Found | None = None
        if run.streaming and self._overdue(run):
            assert settlement.record is not None
            shared = in_doubt(settlement.record)
            self.phase = OVERDUE
        elif self.waiters or not acknowledged:
            claim = record_of(run.claim)
            shared = waiters_reply(
                outcome, settlement, claim, run.policy, acknowledged=acknowledged, unprotected=unprotected
            )
        self.claimant = None
        if not acknowledged:
            self._settle_in_background(run, settlement)
        if self.phase is OVERDUE or not acknowledged:
            assert not isinstance(shared, Found)
            self._later_reply = shared
            if self.phase is not OVERDUE:
                self.phase = LINGERING
                run.outcome = None
        elif not self.waiters or not (shared is None or isinstance(shared, Found)):
            self._end()
        if mine is not None:
            io.answer(request, mine, stream)
        io.finish(request)
        if shared is not None and not isinstance(shared, Found):
            self._share(shared)
        if stream is not None:
            self._go_on_with(run, stream, clean=isinstance(outcome, Answered))
        else:
            run.attempt = None  # it holds the request's body, and this machine: a cycle would wait for the collector
        if self.waiters:
            assert shared is None or isinstance(shared, Found)
            self._acquire_again(shared, now)

    def _go_on_with(self, run: Run, stream: Stream, *, clean: bool) -> None:
        """Keep reading a stream whose claim is settled, or close one that has ended."""
        if self.phase is OVERDUE:
            self.io.wait_for_stream(self, stream, math.inf)
        elif run.streaming:
            stream.finish(clean=clean)
        elif run.attempt is not None:
            self.io.read_on(run.attempt, run.ends_by)

    def _share(self, reply: Reply) -> None:
        """Answer the waiters. They are detached first, because the driver may answer them over several turns."""
        self.io.share([(waiter, reply) for waiter in self._everyone()], self.standing, trace=self.trace, attached=True)

    def _acquire_again(self, found: Found | None, now: float) -> None:
        """Drop the run and begin again for the waiters that it did not answer: claim the free key, or judge `found`."""
        self.run = self.claim = None
        self.owns = self.unprotected = self.ambiguous = False
        self.mark = b""
        if found is None:
            self._claim(self._ensure_claimant(), now)
        else:
            self._judge(found, now)

    def _superseded(self, run: Run, found: Found, now: float) -> None:
        """Another holder's record stands. The claimant is answered from it too, so that all clients see one result."""
        io, request, stream = self.io, self._ensure_claimant(), run.stream
        request.summary.settlement = request.summary.reason = None  # it settled nothing
        self._alarm()
        verdict = resolve(found, request.fingerprint, run.policy)
        self.claimant = None
        if not self.waiters:
            self._end()
        if isinstance(verdict, Replay | Refuse):
            io.share([(request, reply_of(verdict))], found.record, trace=found.record.trace)
        else:
            io.answer(request, in_doubt(found.record))
            io.finish(request)
        if run.streaming:
            self._break_off()
        elif stream is not None and run.attempt is not None:
            stream.detach()
            io.read_on(run.attempt, run.ends_by)
        if self.waiters:
            self._acquire_again(found, now)

    def _alarm(self) -> None:
        self.io.alarm("another holder's record stands where a claim of ours was settled", self.route)

    # ── Settlements that the store has not acknowledged, and streams that have not ended ─────────

    def _join(self, request: GuardedRequest) -> None:
        if self._later_reply is None:
            super()._join(request)
            return
        request.begin_waiting(self.io.now())
        if not self._refuse_mismatch(request):
            self.io.share([(request, self._later_reply)], self.standing, trace=self.trace, attached=True)

    def _settle_in_background(self, run: Run, settlement: Settlement | NewKeep, *, claimed: bool = True) -> None:
        """Settle in the background. Until that has ended, later requests get `_later_reply`, so that the response
        stays in memory."""
        life = run.policy.claim_life if settlement.record is None else settlement.record.life
        unprotected = self.unprotected
        until = self.lease_ends if unprotected else self.io.now() + life / 1000
        self.io.retry_settlement(
            self, settlement, self.route, until=until, held=run.body_bytes, claimed=claimed, unprotected=unprotected
        )
        self._retries += 1
        if settlement.kind is Kind.RELEASE and self.ambiguous:
            self.io.repeat_release(self, settlement, self.route, self.lease_ends)

    @event
    def retried(self, result: Done | Found | None) -> None:
        """A settlement in the background has ended; None if the store never acknowledged it."""
        self._retries -= 1
        if self.run is None:
            return
        # The Hold of an overdue stream may find the Keep of that stream.
        if isinstance(result, Found) and result.record.holder != self.run.claim.holder:
            self._alarm()
            self._end_stream(clean=False)
        if self.phase is LINGERING:
            self._linger()

    def _keep_replied(self, run: Run, settlement: Settlement | NewKeep, result: Any) -> None:
        if isinstance(result, Exception):
            self._remember(run, settlement)
            # A missing record is no loss of the store: an operator may have resolved the doubt.
            self._settle_in_background(run, settlement, claimed=False)
            self.phase = LINGERING
        else:
            if isinstance(result, Found):
                self._alarm()
            self._end()
        self._end_stream(clean=not isinstance(result, Found))

    def _remember(self, run: Run, settlement: Settlement | NewKeep) -> Reply:
        """Set what later requests get while the settlement is not acknowledged."""
        outcome = run.outcome or Lost(LostReason.STOPPED)
        shared = waiters_reply(
            outcome, settlement, record_of(run.claim), run.policy, acknowledged=False, unprotected=self.unprotected
        )
        assert shared is not None
        assert not isinstance(shared, Found)
        self._later_reply = shared
        return shared

    def _linger(self) -> None:
        """End, unless a settlement is still sent in the background."""
        if self._retries:
            self.phase = LINGERING
        else:
            self._end()

    def _overdue(self, run: Run) -> bool:
        """Whether a stream that has not ended in time is still read by its client."""
        if not isinstance(run.outcome, Lost) or run.outcome.reason is not LostReason.TIMEOUT:
            return False
        return run.stream is not None and run.stream.let_go()

    def _end_stream(self, *, clean: bool) -> None:
        if self.run is not None and self.run.stream is not None:
            self.run.stream.finish(clean=clean)

    def _break_off(self) -> None:
        """Abandon the attempt. A client that reads its response must see that it broke off."""
        if self.run is not None and self.run.attempt is not None:
            self.io.abandon(self.run.attempt, LostReason.STOPPED)
            self._end_stream(clean=False)
            self.run.broken_off = True

    # ── The end of the process, and faults ────────────────────────────────────────────────────────

    def _stop(self) -> None:
        run, running = self.run, (FORWARDING, LATE, STREAMING, OVERDUE)
        if run is None or run.attempt is None:
            return
        if self.phase in running or (self.phase is SETTLING and run.stream is not None):
            self.io.abandon(run.attempt, LostReason.STOPPED)

    def _hand_over(self) -> None:
        """If a settlement was sent, repeat that one: a different one could write a false doubt. Otherwise hold a
        forwarded request, unless its attempt, once abandoned, has sent nothing."""
        run = self.run
        if self.phase is LINGERING:
            return
        if run is None:
            super()._hand_over()
            return
        self._break_off()
        if self.phase is OVERDUE:
            return
        if run.settlement is not None:
            if not run.acknowledged:
                self._settle_in_background(run, run.settlement, claimed=self.phase is not KEEPING)
        elif not run.begun or (run.attempt is not None and not run.attempt.sent):
            self.run = None
            self.io.abandon_claim(self, run.claim, run.t0)
        else:
            wall = self.io.wall()
            run.settlement = records.hold(record_of(run.claim), doubt=records.Doubt.STOPPED, status=0, wall=wall)
            self._settle_in_background(run, run.settlement)

    def _answer_fault(self) -> None:
        """Answer the claimant 502 if its request may have run. The settlement decides what the waiters get."""
        run = self.run
        if run is None or run.settlement is None:
            super()._answer_fault()
            return
        shared = self._later_reply
        if shared is None:
            shared = Refusal(Problem.IN_FLIGHT, retry_after=1)  # settled: the next try finds the record
            if not run.acknowledged:
                shared = self._remember(run, run.settlement)
        request, self.claimant = self.claimant, None
        self._linger()
        if request is not None and run.begun:
            self.io.answer(request, outcome_unknown(Problem.UPSTREAM_LOST, unprotected=self.unprotected))
            self.io.finish(request)
        elif request is not None:
            self.io.refuse([request], Refusal(Problem.OVERLOADED))
        self._share(shared)


__all__ = ["Exchange"]

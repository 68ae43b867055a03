"""What follows from the outcome of a run: the settlement of its claim, and the replies to the requests at its key.

Pure functions. `core.decide.settle` gives the verdict on an outcome; these say what the verdict comes to.
"""

from __future__ import annotations

from typing import assert_never

from . import record as records
from .decide import Refuse, Settle, in_doubt, outcome_line, resolve
from .message import Answer, remembered
from .outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from .policy import Policy
from .problem import Label, Problem, Refusal
from .record import Found, Kind, NewClaim, NewKeep, Record, Settlement
from .reply import Again, First, Live, Reply

#: The detail of a 502 or 504 for a run without the store, whose outcome is unknown.
UNREMEMBERED = (
    "The request was sent and no complete answer came back; nobody knows whether it ran. The store was away, so that "
    "it may run again when it is sent again: ask the service before you act."
)


def settlement_of(
    verdict: Settle,
    outcome: Outcome,
    claim: Record | NewClaim,
    policy: Policy,
    *,
    elapsed: int,
    wall: int,
    trace: bytes = b"",
    answer: Answer | None = None,
) -> Settlement | NewKeep:
    """Return the settlement of `claim`. `elapsed` counts from the claim, in milliseconds; `wall` is the time of day in
    milliseconds since 1970. `answer` is stored in place of what a replay needs of the response."""
    if verdict.kind is Kind.KEEP:
        if answer is None:
            assert isinstance(outcome, Answered)
            answer = remembered(
                outcome.response,
                keep=policy.keep_headers,
                drop=policy.drop_headers,
                tombstone=verdict.tombstone,
                more=outcome_line(outcome.response),
            )
        if isinstance(claim, NewClaim) and answer.body is not None and not trace:
            return NewKeep(claim, answer.status, answer.head, answer.body, wall)
        return records.keep(record_of(claim), answer, wall=wall, trace=trace)
    if verdict.kind is Kind.HOLD:
        return records.hold(record_of(claim), doubt=verdict.doubt, status=status_of(outcome), wall=wall)
    return records.release(record_of(claim), elapsed=elapsed, wall=wall)


def record_of(claim: Record | NewClaim) -> Record:
    """Return the record of a claim."""
    return claim if isinstance(claim, Record) else claim.record


def first_seen(claim: Record | NewClaim) -> int:
    """Return the instant of the first claim of the key, in milliseconds since 1970."""
    return claim.first_seen if isinstance(claim, Record) else claim.wall


def claimant_reply(
    outcome: Outcome,
    settlement: Settlement | NewKeep,
    claim: Record | NewClaim,
    *,
    acknowledged: bool,
    live: bool,
    unprotected: bool,
) -> Reply:
    """Return the reply to the request that ran. `acknowledged`: the store has the settlement. `live`: the rest of the
    response follows its head. `unprotected`: it ran without the store."""
    if isinstance(settlement, NewKeep) and isinstance(outcome, Answered):
        label = unsettled_label(Label.STORED, acknowledged=acknowledged, unprotected=unprotected)
        return First(outcome.response, label, settlement.claim.wall, settlement.expires if acknowledged else None)
    record = settlement.record
    match outcome:
        case NotSent():
            # A second run that never was leaves the doubt of the first.
            return not_sent(outcome) if record is None else in_doubt(record)
        case Lost():
            return outcome_unknown(Problem.UPSTREAM_LOST, unprotected=unprotected)
        case Answered(response):
            form = Live if live else First
            if settlement.kind is not Kind.KEEP:
                return form(response, _not_kept_label(settlement), first_seen(claim))
            assert record is not None
            expires = record.expires if acknowledged else None
            return form(response, _keep_label(settlement, acknowledged, unprotected), first_seen(claim), expires)
        case _:
            assert_never(outcome)


def waiters_reply(
    outcome: Outcome,
    settlement: Settlement | NewKeep,
    claim: Record,
    policy: Policy,
    *,
    acknowledged: bool,
    unprotected: bool,
) -> Reply | Found | None:
    """Return what the other requests at the key get: a reply for all of them; a record that each of them resolves by
    its own policy; or None if they have to claim the key again. While the settlement is not `acknowledged`, it is also
    what later requests get, and never a record."""
    record = settlement.record
    if isinstance(outcome, Answered) and settlement.kind is Kind.RELEASE:
        if outcome.completeness is not Completeness.WHOLE:
            return None if acknowledged else Refusal(Problem.IN_FLIGHT, retry_after=1)
        answer = remembered(outcome.response, keep=policy.keep_headers, drop=policy.drop_headers, replayed=False)
        return Again(answer, _not_kept_label(settlement), claim.first_seen, replayed=False)
    if isinstance(outcome, NotSent):
        return not_sent(outcome) if record is None else in_doubt(record)
    assert record is not None
    if settlement.kind is not Kind.KEEP:
        return Found(record, 0) if acknowledged else in_doubt(record)
    assert record.answer is not None
    if record.answer.body is None:
        not_kept = resolve(Found(record, 0), claim.fingerprint, policy)
        assert isinstance(not_kept, Refuse)
        return not_kept.refusal
    label = Label.REPLAYED if acknowledged else _keep_label(settlement, acknowledged, unprotected)
    return Again(record.answer, label, claim.first_seen, record.expires if acknowledged else None)


def _keep_label(settlement: Settlement | NewKeep, acknowledged: bool, unprotected: bool) -> Label:
    assert settlement.record is not None and settlement.record.answer is not None
    kept = Label.NOT_KEPT if settlement.record.answer.body is None else Label.STORED
    return unsettled_label(kept, acknowledged=acknowledged, unprotected=unprotected)


def unsettled_label(kept: Label, *, acknowledged: bool, unprotected: bool) -> Label:
    """Return the label of a response whose Keep has the label `kept` once the store has acknowledged it."""
    return Label.UNPROTECTED if unprotected else kept if acknowledged else Label.NOT_STORED


def _not_kept_label(settlement: Settlement | NewKeep) -> Label:
    """Return `in-doubt` for a Hold and for the Release of a takeover: both leave a doubt. Any other Release means that
    nothing ran, whether or not the store has acknowledged it."""
    return Label.RELEASED if settlement.record is None else Label.IN_DOUBT


def outcome_unknown(problem: Problem, *, unprotected: bool) -> Refusal:
    """Return the 502 or 504 of a run whose outcome is unknown. A run without the store is not held: its text and its
    label say so."""
    if not unprotected:
        return Refusal(problem)
    return Refusal(problem, label=Label.UNPROTECTED, instead=UNREMEMBERED)


def not_sent(outcome: NotSent) -> Refusal:
    """Return the refusal of a request of which no byte was sent."""
    if outcome.reason is not NotSentReason.UNREACHABLE:
        return Refusal(Problem.OVERLOADED, retry_after=1, label=Label.RELEASED)
    return Refusal(Problem.UPSTREAM_UNREACHABLE, retry_after=1)


def unfinished(status: int) -> Lost:
    """Return the outcome of a response that had begun, and had not ended when its exchange had to."""
    return Lost(LostReason.TIMEOUT, "the response had not ended in time", status)


def status_of(outcome: Outcome) -> int:
    """Return the last status that the upstream sent, 0 for none."""
    match outcome:
        case Answered(response):
            return response.status
        case Lost(status=status):
            return status
        case NotSent():
            return 0
        case _:
            assert_never(outcome)

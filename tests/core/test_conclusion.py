"""What follows from the outcome of a run, as a table: who gets what, with and without the store's acknowledgement."""

from __future__ import annotations

import pytest

from gateway.core import record as records
from gateway.core.conclusion import (
    UNREMEMBERED,
    claimant_reply,
    outcome_unknown,
    settlement_of,
    status_of,
    unfinished,
    waiters_reply,
)
from gateway.core.decide import settle
from gateway.core.fingerprint import Fingerprint
from gateway.core.message import Answer, Response
from gateway.core.outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from gateway.core.policy import Policy
from gateway.core.problem import Problem, Refusal
from gateway.core.record import Doubt, Found, Kind, Record, State
from gateway.core.reply import Again, First, Live, Reply

POLICY = Policy()
FIRST = records.claim(
    Fingerprint(b"rrrr" + b"q" * 16 + b"c" * 16, b""),
    holder=b"h" * 12, route="pay", lease=60_000, life=90_000, window=86_400_000, wall=1_000_000,
)  # fmt: skip
SECOND = records.takeover(
    FIRST, holder=b"i" * 12, route="pay", lease=60_000, life=90_000, window=86_400_000, wall=1_100_000
)
FIELDS = ((b"Content-Type", b"text/plain"), (b"Date", b"Tue, 01 Dec 2026 03:00:00 GMT"))

WHOLE = Answered(Response(201, FIELDS, b"ok"))
LARGE = Answered(Response(200, FIELDS), Completeness.OVER_LIMIT)
BUSY = Answered(Response(429, FIELDS, b"later"))
BUSY_STREAM = Answered(Response(429, FIELDS), Completeness.STREAM)
GATEWAY_TIMEOUT = Answered(Response(504, FIELDS, b"?"))
BROKEN = Lost(LostReason.CLOSED, "", 200)
UNREACHABLE = NotSent(NotSentReason.UNREACHABLE)
NO_CONNECTION = NotSent(NotSentReason.NO_CONNECTION)


def text(reply: Reply | Found | None) -> str:
    """Describe a reply as `status label`, with `live`, `replay`, `expires` or the slug of its problem."""
    match reply:
        case None:
            return "claim again"
        case Found(record, 0):
            return f"record {record.state.name.lower()}"
        case Refusal():
            return f"{reply.problem.status} {reply.problem.slug} {reply.shown_as}"
        case First(response, label, 1_000_000, expires) | Live(response, label, 1_000_000, expires):
            live = " live" if isinstance(reply, Live) else ""
            return f"{response.status} {label}{live}{' expires' if expires else ''}"
        case Again(answer, label, 1_000_000, expires, replayed):
            return f"{answer.status} {label}{' replay' if replayed else ''}{' expires' if expires else ''}"
        case _:
            raise AssertionError(reply)


#: The run, and what the claimant and the waiters get: acknowledged, not acknowledged, and without the store.
TABLE: dict[str, tuple[Record, Outcome, tuple[str, str], tuple[str, str], tuple[str, str]]] = {
    "keep": (
        FIRST, WHOLE,
        ("201 stored expires", "201 replayed replay expires"),
        ("201 not-stored", "201 not-stored replay"),
        ("201 unprotected", "201 unprotected replay"),
    ),
    "keep without the body": (
        FIRST, LARGE,
        ("200 not-kept live expires", "409 response-not-kept not-kept"),
        ("200 not-stored live", "409 response-not-kept not-kept"),
        ("200 unprotected live", "409 response-not-kept not-kept"),
    ),
    "hold of a response": (
        FIRST, GATEWAY_TIMEOUT,
        ("504 in-doubt", "record in_doubt"),
        ("504 in-doubt", "409 in-doubt in-doubt"),
        ("504 in-doubt", "409 in-doubt in-doubt"),
    ),
    "hold of a lost response": (
        FIRST, BROKEN,
        ("502 upstream-lost in-doubt", "record in_doubt"),
        ("502 upstream-lost in-doubt", "409 in-doubt in-doubt"),
        ("502 upstream-lost unprotected", "409 in-doubt in-doubt"),
    ),
    "release of a response": (
        FIRST, BUSY,
        ("429 released", "429 released"),
        ("429 released", "429 released"),
        ("429 released", "429 released"),
    ),
    "release of a response, second run": (
        SECOND, BUSY,
        ("429 in-doubt", "429 in-doubt"),
        ("429 in-doubt", "429 in-doubt"),
        ("429 in-doubt", "429 in-doubt"),
    ),
    "release of a stream": (
        FIRST, BUSY_STREAM,
        ("429 released live", "claim again"),
        ("429 released live", "409 in-flight in-flight"),
        ("429 released live", "409 in-flight in-flight"),
    ),
    "not sent": (
        FIRST, UNREACHABLE,
        ("502 upstream-unreachable released", "502 upstream-unreachable released"),
        ("502 upstream-unreachable released", "502 upstream-unreachable released"),
        ("502 upstream-unreachable released", "502 upstream-unreachable released"),
    ),
    "no connection in time": (
        FIRST, NO_CONNECTION,
        ("503 overloaded released", "503 overloaded released"),
        ("503 overloaded released", "503 overloaded released"),
        ("503 overloaded released", "503 overloaded released"),
    ),
    "not sent, second run": (
        SECOND, UNREACHABLE,
        ("409 in-doubt in-doubt", "409 in-doubt in-doubt"),
        ("409 in-doubt in-doubt", "409 in-doubt in-doubt"),
        ("409 in-doubt in-doubt", "409 in-doubt in-doubt"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", TABLE)
def test_who_gets_what(run: str) -> None:
    claim, outcome, stored, not_stored, without_store = TABLE[run]
    settlement = settlement_of(settle(outcome, POLICY), outcome, claim, POLICY, elapsed=5, wall=2_000_000)
    live = isinstance(outcome, Answered) and outcome.completeness is not Completeness.WHOLE
    for expected, acknowledged, unprotected in (
        (stored, True, False),
        (not_stored, False, False),
        (without_store, False, True),
    ):
        how = {"acknowledged": acknowledged, "unprotected": unprotected}
        mine = claimant_reply(outcome, settlement, claim, live=live, **how)
        theirs = waiters_reply(outcome, settlement, claim, POLICY, **how)
        assert (text(mine), text(theirs)) == expected, how


def test_what_runs_without_the_store_is_not_promised_to_be_held() -> None:
    for problem in (Problem.UPSTREAM_LOST, Problem.UPSTREAM_TIMEOUT):
        assert outcome_unknown(problem, unprotected=True).detail == UNREMEMBERED
        assert outcome_unknown(problem, unprotected=False).detail == problem.detail


def test_a_record_has_what_its_run_came_to() -> None:
    def record(outcome: Outcome, claim: Record = FIRST, **more: object) -> Record:
        verdict = settle(outcome, POLICY)
        made = settlement_of(verdict, outcome, claim, POLICY, elapsed=5_000, wall=2_000_000, **more)  # type: ignore[arg-type]
        assert made.holder == claim.holder
        assert made.record is not None
        return made.record

    kept = record(WHOLE, trace=b"t" * 24)
    assert (kept.state, kept.status, kept.trace, kept.expires) == (State.COMPLETED, 201, b"t" * 24, 88_400_000)
    assert kept.answer == Answer(201, b"Content-Type: text/plain\r\n", b"ok")
    assert record(WHOLE, answer=Answer(201, b"", b"")).answer == Answer(201, b"", b"")
    large = record(LARGE).answer
    assert large is not None
    assert large.body is None
    held = record(BROKEN)
    assert (held.state, held.doubt, held.status, held.written) == (State.IN_DOUBT, Doubt.LOST, 200, 2_000_000)
    freed = record(UNREACHABLE, SECOND)
    assert (freed.state, freed.attempt, freed.life) == (State.IN_DOUBT, 1, 85_000)
    assert settlement_of(settle(BUSY, POLICY), BUSY, FIRST, POLICY, elapsed=0, wall=0).kind is Kind.RELEASE


def test_the_status_of_an_outcome_is_what_the_upstream_sent_last() -> None:
    assert [status_of(each) for each in (WHOLE, BROKEN, UNREACHABLE, unfinished(206))] == [201, 200, 0, 206]

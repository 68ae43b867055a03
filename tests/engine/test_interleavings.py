"""Interleavings that have run a request twice, lost an answer, or gave it to another client, in a draft of the machine.

Each test fails if the rule that it names is taken out.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from gateway.core import record as records
from gateway.core.conclusion import record_of
from gateway.core.outcome import Lost, LostReason
from gateway.core.policy import OnDoubt, StoreDown
from gateway.core.record import Done, Doubt, Found, Kind, Record, State
from gateway.engine.exchange import Exchange
from gateway.engine.machine import Phase
from gateway.engine.request import GuardedRequest
from gateway.ports import StoreAway

from .support import UNREACHABLE, FakeAttempt, FakeStream, HostileIo, RecordingIo, request_for, streamed, whole

GONE = StoreAway("no reply", ambiguous=True)
DOWN = StoreAway("no connection", ambiguous=False)


def running(io: RecordingIo, request: GuardedRequest | None = None) -> Exchange:
    """A machine whose request was forwarded."""
    machine = io.join(request or request_for())
    machine.store_replied(Done.WON)
    assert machine.phase is Phase.FORWARDING
    io.took()
    return machine


def another(record: Record, **changes: object) -> Record:
    return replace(record, holder=b"another     ", **changes)  # type: ignore[arg-type]


def in_doubt(record: Record) -> Record:
    held = records.hold(another(record), doubt=Doubt.LOST, status=0, wall=0).record
    assert held is not None
    return held


def answers(io: RecordingIo, request: GuardedRequest) -> list[str]:
    return repr(request.client).split(", ")


# ── 1: the attempt is abandoned before the claim is let go ─────────────────────────────────────────


@pytest.mark.parametrize("ending", ["cut", "fault"])
def test_an_attempt_that_waits_for_its_connection_is_abandoned_before_its_claim(ending: str) -> None:
    """Otherwise the claim is free, another gateway claims it, and then the connection comes."""
    io = RecordingIo()
    io.attempt_made = lambda attempt: setattr(attempt, "sent", False)
    machine = running(io)
    if ending == "cut":
        machine.cut()
    else:
        machine.attempt_ended("no outcome")  # type: ignore[arg-type]
        io.calls.remove(("failed",))
    assert io.names()[:2] == ["abandon", "abandon_claim"]
    assert io.attempts[0].abandoned == [LostReason.STOPPED]
    assert machine.phase is Phase.DONE


def test_what_was_sent_when_the_process_ends_is_held_not_released() -> None:
    io = RecordingIo()
    machine = running(io)
    machine.cut()
    (abandon, retry) = io.took()
    assert (abandon[0], retry[0]) == ("abandon", "retry_settlement")
    assert (retry[1].kind, retry[1].record.doubt) == (Kind.HOLD, Doubt.STOPPED)


def test_an_attempt_that_failed_while_it_began_may_have_sent_something() -> None:
    io = RecordingIo()
    machine = io.join(first := request_for())

    def fails(attempt: FakeAttempt) -> None:
        raise RuntimeError("after the first byte")

    io.attempt_made = fails
    io.took()
    machine.store_replied(Done.WON)
    calls = io.took()
    assert [call[0] for call in calls] == ["forward", "failed", "retry_settlement", "answer"]
    assert calls[2][1].kind is Kind.HOLD
    assert answers(io, first) == ["502 upstream-lost"]
    assert io.join(second := request_for()) is machine
    assert answers(io, second) == ["409 in-doubt"]


# ── 2: a takeover never runs without the store ─────────────────────────────────────────────────────


def test_a_takeover_whose_replies_are_all_lost_runs_nothing() -> None:
    """`store_down: forward` holds for a first run. Here the first run is known."""
    io = RecordingIo()
    first = request_for(on_doubt=OnDoubt.RERUN, store_down=StoreDown.FORWARD)
    machine = io.join(first)
    machine.store_replied(Found(in_doubt(io.took()[0][1]), 5))
    assert machine.phase is Phase.TAKING_OVER
    for _ in range(100):
        machine.store_replied(GONE)
        if machine.phase is Phase.DONE:
            break
        io.time += 0.1
        machine.timer()
        machine.store_back(True)
    names = io.names()
    assert "forward" not in names
    assert names[-2:] == ["abandon_claim", "refuse"]
    assert answers(io, first) == ["503 store-unavailable"]


def test_a_first_request_runs_without_the_store_if_its_route_says_so() -> None:
    io = RecordingIo()
    machine = io.join(first := request_for(store_down=StoreDown.FORWARD))
    machine.store_replied(GONE)
    machine.timer()
    io.time = machine.patience_ends
    machine.store_back(False)
    assert machine.phase is Phase.FORWARDING
    machine.attempt_ended(UNREACHABLE)
    machine.store_replied(Done.GONE)
    assert [call[0] for call in io.took()][-4:] == ["forward", "settle", "repeat_release", "answer"]
    assert (answers(io, first), first.summary.unprotected) == (["502 upstream-unreachable"], "store_down")


# ── 3: what is abandoned is one claim, never the current holder ────────────────────────────────────


def test_a_claim_that_is_found_taken_after_its_reply_was_lost_is_abandoned_by_its_own_holder() -> None:
    io = RecordingIo()
    machine = io.join(request_for(on_doubt=OnDoubt.RERUN))
    claim = io.took()[0][1]
    machine.store_replied(GONE)
    machine.timer()
    machine.store_back(True)
    assert io.took()[-1] == ("claim", claim), "the same holder"
    machine.store_replied(Found(in_doubt(claim), 5))
    abandoned, (_, _, takeover) = io.took()
    assert abandoned == ("abandon_claim", claim.holder)
    assert takeover.holder != claim.holder
    machine.store_replied(Done.WON)
    machine.attempt_ended(whole())
    machine.store_replied(Done.DONE)
    assert [call for call in io.took() if call[0] in ("abandon_claim", "repeat_release")] == []


# ── 4: another's answer is never given, whatever the phase ─────────────────────────────────────────


def reach(phase: Phase) -> tuple[RecordingIo, Exchange]:
    io = RecordingIo()
    machine = running(io, request_for())
    match phase:
        case Phase.LATE:
            machine.attempt_ended(None)
        case Phase.STREAMING | Phase.OVERDUE | Phase.KEEPING:
            io.attempts[0].stream = FakeStream()
            machine.attempt_ended(streamed())
            if phase is not Phase.STREAMING:
                machine.stream_ended(None)
                machine.store_replied(Done.DONE)
            if phase is Phase.KEEPING:
                machine.stream_ended(streamed())
        case Phase.SETTLING:
            machine.attempt_ended(whole())
        case Phase.LINGERING:
            machine.attempt_ended(whole())
            machine.store_replied(GONE)
    assert machine.phase is phase
    io.took()
    return io, machine


RUNNING = [
    Phase.FORWARDING, Phase.LATE, Phase.STREAMING, Phase.SETTLING, Phase.OVERDUE, Phase.KEEPING, Phase.LINGERING,
]  # fmt: skip


@pytest.mark.parametrize("phase", RUNNING)
def test_other_credentials_are_refused_at_once(phase: Phase) -> None:
    io, machine = reach(phase)
    other, different = request_for(credentials=b"other"), request_for(body=b"another")
    assert io.join(other) is machine
    assert io.join(different) is machine
    assert answers(io, other) == ["422 credentials-differ"]
    assert answers(io, different) == ["422 key-reused"]
    assert not machine.waiters


def test_other_credentials_that_came_before_the_claim_was_won_are_refused_then() -> None:
    io = RecordingIo()
    machine = io.join(request_for())
    io.join(other := request_for(credentials=b"other"))
    io.join(same := request_for())
    assert answers(io, other) == ["no answer"], "nothing to compare with yet"
    machine.store_replied(Done.WON)
    assert answers(io, other) == ["422 credentials-differ"]
    assert list(machine.waiters) == [same]


# ── 5: the next request of a client arrives inside its answer ──────────────────────────────────────

ENDINGS = {
    "keep": (whole(), None, ["201 replayed"]),
    "release": (UNREACHABLE, None, ["201 stored"]),
    "keep, not acknowledged": (whole(), GONE, ["201 not-stored"]),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pipelined_request_joins_inside_the_answer(ending: str) -> None:
    outcome, failure, expected = ENDINGS[ending]
    io = HostileIo()
    first, second = request_for(), request_for()
    client = first.client
    client.inside = lambda: io.join(second)  # type: ignore[attr-defined]
    machine = io.join(first)
    assert machine.phase is Phase.FORWARDING
    if failure is not None:
        io.replies.append(failure)
    machine.attempt_ended(outcome)
    if ending == "release":
        assert len(io.attempts) == 2, "nothing ran the first time"
        io.table[first.name].attempt_ended(whole())
    else:
        assert len(io.attempts) == 1
    assert answers(io, second) == expected
    assert len(client.replies) == 1  # type: ignore[attr-defined]


# ── 6: a Hold is shared by policy ──────────────────────────────────────────────────────────────────


def test_an_acknowledged_hold_is_taken_over_once_and_refused_to_the_others() -> None:
    io = HostileIo()
    rerun = {"on_doubt": OnDoubt.RERUN, "max_attempts": 2}
    hold = request_for()
    first, second, third = (request_for(route="b", **rerun) for _ in range(3))
    machine = io.join(hold)
    others = [request_for(), first, second, request_for(), third]
    for request in others:
        assert io.join(request) is machine
    io.took()
    machine.attempt_ended(Lost(LostReason.CLOSED))
    assert answers(io, hold) == ["502 upstream-lost"]
    assert [answers(io, others[0]), answers(io, others[3])] == [["409 in-doubt"]] * 2
    assert [call[1] for call in io.took() if call[0] == "forward"] == [2]
    assert machine.claimant is first
    machine.attempt_ended(whole())
    assert answers(io, first) == ["201 stored"]
    assert answers(io, second) == answers(io, third) == ["201 replayed"]
    assert len(io.attempts) == 2


# ── 7: another gateway's claim stands where ours was settled ───────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
def test_a_superseded_run_gives_its_waiters_the_others_answer(stream: bool) -> None:
    io = RecordingIo()
    machine = running(io, claimant := request_for())
    assert machine.claim is not None
    claim = record_of(machine.claim)
    io.join(waiter := request_for())
    if stream:
        io.attempts[0].stream = FakeStream()
        machine.attempt_ended(streamed())
        machine.stream_ended(streamed())
    else:
        machine.attempt_ended(whole())
    live = another(claim)
    machine.store_replied(Found(live, 5))
    assert machine.phase is Phase.WATCHING
    assert machine.claimant is None
    calls = [call[0] for call in io.took()]
    assert "alarm" in calls
    assert "repeat_release" not in calls
    assert claimant.summary.settlement is None
    if stream:
        assert answers(io, claimant) == ["200 not-kept live"]
        assert "break off" in io.attempts[0].stream.calls  # type: ignore[union-attr]
    else:
        assert answers(io, claimant) == ["409 in-doubt"]
    kept = records.keep(live, records.Answer(200, b"", b"theirs"), wall=0).record
    assert kept is not None
    machine.notified()
    machine.store_replied(Found(kept, 5))
    assert answers(io, waiter) == ["200 replayed"]
    assert len(io.attempts) == 1


# ── 8: a read that is older than the notification behind it ───────────────────────────────────────


def watching(io: RecordingIo, *requests: GuardedRequest) -> tuple[Exchange, Record]:
    machine = io.join(requests[0])
    for request in requests[1:]:
        io.join(request)
    live = another(io.took()[0][1])
    machine.store_replied(Found(live, 5))
    assert machine.phase is Phase.WATCHING
    return machine, live


def test_a_notification_during_a_read_is_followed_by_another_read() -> None:
    io = RecordingIo()
    first, second = request_for(), request_for()
    machine, live = watching(io, first, second)
    machine.notified()
    io.took()
    machine.notified()
    assert io.names() == [], "one read at a time"
    machine.store_replied(Found(live, 7))
    assert "get" in io.names()
    machine.store_replied(None)
    assert machine.phase is Phase.PAUSING
    machine.left(first)
    io.time += 40
    io.took()
    machine.timer()
    (claim,) = io.took()
    assert (claim[0], machine.claimant, machine.t0) == ("claim", second, io.time)
    machine.store_replied(Done.WON)
    assert len(io.attempts) == 1, "it has the full time, counted from its own claim"


def test_a_key_that_nobody_waits_for_is_not_claimed() -> None:
    io = RecordingIo()
    machine, _ = watching(io, first := request_for())
    machine.notified()
    machine.store_replied(None)
    machine.left(first)
    assert (machine.phase, io.table) == (Phase.DONE, {})
    io.took()
    machine.timer()
    assert io.took() == []


# ── 9: a store that fails and reports itself back at once ─────────────────────────────────────────


def test_a_store_that_fails_and_is_back_at_once_is_called_every_20_ms() -> None:
    io = RecordingIo()
    machine = io.join(request_for(store_wait=1_000_000, timeout=2_000_000))
    claim = io.took()[0][1]
    t0, tries = machine.t0, []
    for _ in range(500):
        machine.store_replied(GONE)
        machine.store_back(True)
        assert io.timer_at is not None
        io.time = io.timer_at
        machine.timer()
        machine.store_back(True)
        tries.append(io.time)
        assert (record_of(machine.claim), machine.t0) == (claim, t0)  # type: ignore[arg-type]
    assert min(later - earlier for earlier, later in pairwise(tries)) >= 0.02 - 1e-9


def test_a_process_that_stood_still_past_its_patience_does_not_try_again() -> None:
    """The claim could land after the last release of it."""
    io = RecordingIo()
    machine = io.join(first := request_for())
    machine.store_replied(GONE)
    io.time += 3600
    io.took()
    machine.timer()
    machine.store_back(True)
    assert io.names() == ["abandon_claim", "refuse"]
    assert answers(io, first) == ["503 store-unavailable"]


# ── 10: one settlement per holder ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", ["cut", "fault"])
def test_a_settlement_that_was_sent_is_the_one_that_is_sent_again(ending: str) -> None:
    io = RecordingIo()
    machine = running(io, first := request_for())
    machine.attempt_ended(whole())
    sent = io.took()[-1][1]
    if ending == "cut":
        machine.cut()
    else:
        machine._fault(RuntimeError("of ours"))
    retries = [call[1] for call in io.took() if call[0] == "retry_settlement"]
    assert retries == [sent]
    assert sent.kind is Kind.KEEP
    machine.store_replied(Done.DONE)
    assert io.took() == []
    if ending == "fault":
        assert answers(io, first) == ["502 upstream-lost"]
        io.join(second := request_for())
        assert answers(io, second) == ["201 not-stored"]


def test_without_a_late_phase_the_504_and_the_end_are_one_turn() -> None:
    io = RecordingIo()
    machine = running(io, first := request_for(late=0))
    ends_by = first.policy.ends_by / 1000
    attempt = io.attempts[0]

    def abandoned(reason: LostReason) -> None:
        machine.attempt_ended(Lost(reason))

    attempt.abandon = abandoned  # type: ignore[method-assign]
    io.time = machine.t0 + ends_by
    machine.attempt_ended(None)
    calls = io.took()
    assert [call[0] for call in calls] == ["answer", "abandon", "settle"]
    assert (calls[2][1].kind, calls[2][1].record.state) == (Kind.HOLD, State.IN_DOUBT)
    machine.store_replied(Done.DONE)
    assert answers(io, first) == ["504 upstream-timeout"]
    assert machine.phase is Phase.DONE

"""Interleavings that broke a rule of the machine once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core import record as records
from gateway.core.limit import Limit
from gateway.core.policy import OnDoubt
from gateway.core.problem import Refusal
from gateway.core.record import Done, Found, Kind
from gateway.engine.machine import Phase

from .support import UNREACHABLE, FakeStream, RecordingIo, request_for, streamed, whole
from .test_interleavings import DOWN, GONE, another, answers, in_doubt, reach, running, watching

RERUN = {"on_doubt": OnDoubt.RERUN, "max_attempts": 2}


def kept(record: records.Record) -> records.Record:
    result = records.keep(another(record), records.Answer(200, b"", b"theirs"), wall=0).record
    assert result is not None
    return result


# A ── REPEAT is lost for a Release whose acknowledgement is lost


def test_a_release_of_an_ambiguous_claim_is_repeated_although_its_reply_was_lost() -> None:
    io = RecordingIo()
    machine = io.join(request_for())
    machine.store_replied(GONE)  # the first claim may land at any time
    machine.timer()
    machine.store_back(True)
    machine.store_replied(Done.WON)  # the repetition was won
    machine.attempt_ended(UNREACHABLE)  # nothing was sent
    machine.store_replied(GONE)  # the reply to the Release is lost too
    machine.retried(Done.GONE)  # acknowledged in the background; now the first claim lands
    assert "repeat_release" in io.names()


# B ── KEEPING: the Keep is not sent again


@pytest.mark.parametrize("ending", ["cut", "fault"])
def test_a_keep_of_an_overdue_stream_is_sent_again(ending: str) -> None:
    io, machine = reach(Phase.KEEPING)
    if ending == "cut":
        machine.cut()
    else:
        machine._fault(RuntimeError("of ours"))
    assert [call[1].kind for call in io.took() if call[0] == "retry_settlement"] == [Kind.KEEP]


# C ── requests that were detached before a call that raises are never answered


@pytest.mark.parametrize("broken", ["compare_and_swap", "mint"])
def test_a_call_that_raises_while_a_takeover_begins_costs_no_other_request_its_answer(broken: str) -> None:
    io = RecordingIo()
    taker, other = request_for(route="b", **RERUN), request_for()
    machine, live = watching(io, taker, other)
    machine.notified()

    def raises(*args: Any) -> Any:
        raise RuntimeError(broken)

    setattr(io, broken, raises)
    machine.store_replied(Found(in_doubt(live), 5))
    assert answers(io, taker) != ["no answer"]
    assert answers(io, other) != ["no answer"]


def test_a_subscribe_that_raises_costs_nobody_a_replay() -> None:
    io = RecordingIo()
    machine = io.join(first := request_for())
    io.join(same := request_for())
    io.join(request_for(body=b"other"))

    def raises(*args: Any) -> Any:
        raise RuntimeError("no connection")

    io.subscribe = raises  # type: ignore[method-assign]
    machine.store_replied((200, b"", b"kept", 0, 10**15))
    assert answers(io, first) != ["no answer"]
    assert answers(io, same) != ["no answer"]


def test_a_stream_that_cannot_be_ended_costs_the_waiters_not_their_answer() -> None:
    io = RecordingIo()
    machine = running(io)
    io.join(waiter := request_for())
    stream = io.attempts[0].stream = FakeStream()
    machine.attempt_ended(streamed())

    def raises(*, clean: bool) -> None:
        raise RuntimeError("of the connection")

    machine.stream_ended(streamed())
    stream.finish = raises  # type: ignore[method-assign]
    machine.store_replied(Done.DONE)
    assert answers(io, waiter) != ["no answer"]


# D ── a fault while a request joins


def test_a_request_that_cannot_join_is_answered_and_ends_nothing_else() -> None:
    io = RecordingIo()
    machine = running(io, first := request_for())

    def raises(*args: Any) -> Limit | None:
        raise RuntimeError("of ours")

    io.full = raises  # type: ignore[method-assign]
    io.join(second := request_for())
    assert answers(io, second) != ["no answer"]
    assert io.attempts[0].abandoned == [], "the run of another request goes on"
    machine.attempt_ended(whole())
    machine.store_replied(Done.DONE)
    assert answers(io, first) == ["201 stored"]


# E ── a failed read is repeated at once, without a pause


@pytest.mark.parametrize("how", ["lapsed", "other policy joined", "replay for others"])
def test_a_store_that_fails_is_not_read_in_a_loop(how: str) -> None:
    io = RecordingIo()
    if how == "replay for others":
        machine = io.join(request_for())
        io.join(request_for(body=b"other"))
        machine.store_replied((200, b"", b"kept", 0, 10**15))
        machine.timer()
    else:
        machine, live = watching(io, request_for(wait=600_000))
        if how == "lapsed":
            io.time += live.lease / 1000 + 1  # the lease lapses while the store is away
            machine.timer()
        else:
            io.join(request_for(route="b", **RERUN))
    reads = 0
    began = io.time
    while machine.phase is Phase.WATCHING and io.time < began + 1 and reads < 1000:
        reads += 1
        machine.store_replied(DOWN)
        assert io.timer_at is not None
        io.time = max(io.time, io.timer_at)
        machine.timer()
    assert reads <= 60, "20 ms apart"


# F ── a stream of a process that stood still


def test_the_502_of_a_stream_that_was_cut_off_has_no_stream() -> None:
    io = RecordingIo()
    machine = running(io, first := request_for())
    io.attempts[0].stream = FakeStream()
    io.time += 3600
    machine.attempt_ended(streamed())
    machine.store_replied(Done.DONE)
    ((reply, stream),) = first.client.replies  # type: ignore[attr-defined]
    assert isinstance(reply, Refusal)
    assert stream is None


# G ── stop while a settlement is under way


@pytest.mark.parametrize("kind", ["released", "overdue"])
def test_a_stop_while_it_settles_ends_the_stream(kind: str) -> None:
    io = RecordingIo()
    machine = running(io)
    io.attempts[0].stream = FakeStream()
    if kind == "released":
        machine.attempt_ended(streamed(429))
    else:
        machine.attempt_ended(streamed())
        machine.stream_ended(None)
    assert machine.phase is Phase.SETTLING
    io.stopping = True
    machine.stop()
    machine.store_replied(Done.DONE)
    assert io.attempts[0].abandoned != []


# H ── a machine that has ended and is still in the table


# J ── waiters that were never compared


def test_a_forward_that_raises_gives_other_credentials_no_fact_of_the_run() -> None:
    io = RecordingIo()
    machine = io.join(request_for())
    io.join(other := request_for(credentials=b"other"))

    def raises(attempt: Any) -> None:
        raise RuntimeError("after the first byte")

    io.attempt_made = raises
    machine.store_replied(Done.WON)
    assert answers(io, other) == ["422 credentials-differ"]


# M ── memory of a lingering machine


def test_a_lingering_machine_drops_its_attempt() -> None:
    _, machine = reach(Phase.LINGERING)
    assert machine.run is not None
    assert machine.run.attempt is None, "it holds the request with its body"


# O ── a fault of what was never forwarded


def test_a_fault_before_anything_was_forwarded_is_a_503() -> None:
    io = RecordingIo()
    machine = io.join(first := request_for())
    io.time += 3600
    machine.store_replied(Done.WON)
    assert machine.phase is Phase.SETTLING
    assert not io.attempts
    machine._fault(RuntimeError("of ours"))
    assert answers(io, first) == ["503 overloaded"]


# Q ── a fault within the answer to a fault


# T ── a notification during a read that fails


def test_a_notification_during_a_read_that_fails_is_not_lost() -> None:
    io = RecordingIo()
    io.is_subscribed = True
    machine, _ = watching(io, request_for())
    machine.notified()
    machine.notified()
    machine.store_replied(DOWN)
    assert io.timer_at is not None
    assert io.timer_at - io.time <= 0.025


# I ── the claimant's summary


def test_a_tail_that_cannot_be_read_costs_the_claimant_not_its_summary() -> None:
    io = RecordingIo()
    machine = running(io, first := request_for())
    io.attempts[0].stream = FakeStream()
    machine.attempt_ended(streamed(429))

    def raises(*args: Any) -> None:
        raise RuntimeError("of ours")

    io.read_on = raises  # type: ignore[method-assign]
    machine.store_replied(Done.DONE)
    assert getattr(first.summary, "finished", False)


# D2 ── a fault of one waiter's own events


# K ── pipelined requests on a store that replies synchronously


# L ── the body of a claimant whose client has left


def test_the_body_of_a_claimant_that_left_is_given_back() -> None:
    from gateway.edge.line import Visit

    given = []

    class Line:
        def give_back(self, visit: Any) -> None:
            given.append(visit)

    io = RecordingIo()
    first = request_for()
    visit = Visit(Line(), SimpleNamespace(version="1.1"), None, True)  # type: ignore[arg-type]
    visit.asked = True
    first.client = visit
    machine = io.join(first)
    visit.leave()  # while it is claimant: its body must stay
    assert given == []
    machine.store_replied(Found(another(io.took()[0][1]), 5))
    assert machine.phase is Phase.DONE
    assert given == [visit]


# R ── background work that cannot be handed over


def test_a_retry_that_cannot_begin_leaves_no_machine_in_the_table() -> None:
    io = RecordingIo()
    machine = running(io)
    machine.attempt_ended(whole())
    original = io.retry_settlement
    calls = []

    def raises_once(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no task")
        original(*args, **kwargs)

    io.retry_settlement = raises_once  # type: ignore[method-assign]
    machine.store_replied(GONE)
    assert len(calls) == 2, "the fault handed it over"
    machine.retried(Done.DONE)
    assert (machine.phase, io.table) == (Phase.DONE, {})


# S ── a fault of the store at the settlement is reported


def test_a_fault_of_the_store_at_the_settlement_is_reported() -> None:
    io = RecordingIo()
    machine = running(io)
    machine.attempt_ended(whole())
    machine.store_replied(RuntimeError("of the store"))
    assert len(io.errors) == 1

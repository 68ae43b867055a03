"""Faults of the gateway inside a handler: every request is answered, and the key is settled.

Each test fails if the rule that it names is taken out.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.policy import OnDoubt
from gateway.core.record import Done, Found, Kind
from gateway.engine.machine import Phase

from .support import FakeStream, RecordingIo, request_for, streamed, whole
from .test_interleavings import answers, in_doubt, running


class Broken(RecordingIo):
    """Raises from the call that `broken` names."""

    broken = ""

    def _break(self, name: str) -> None:
        if self.broken == name:
            self.broken = ""
            raise RuntimeError(name)

    def compare_and_swap(self, *args: Any) -> None:
        super().compare_and_swap(*args)
        self._break("compare_and_swap")

    def timer(self, *args: Any) -> None:
        super().timer(*args)
        self._break("timer")

    def wait_for_stream(self, *args: Any) -> None:
        super().wait_for_stream(*args)
        self._break("wait_for_stream")


@pytest.mark.parametrize("ending", ["cut", "fault"])
def test_the_keep_of_an_overdue_stream_is_sent_again(ending: str) -> None:
    """The Hold before it was acknowledged, the Keep was not."""
    io = RecordingIo()
    machine = running(io)
    io.attempts[0].stream = FakeStream()
    machine.attempt_ended(streamed())
    machine.stream_ended(None)
    machine.store_replied(Done.DONE)
    machine.stream_ended(streamed())
    assert machine.phase is Phase.KEEPING
    sent = io.took()[-1][1]
    machine.cut() if ending == "cut" else machine._fault(RuntimeError("of ours"))
    assert [call[1] for call in io.took() if call[0] == "retry_settlement"] == [sent]
    assert sent.kind is Kind.KEEP


def test_waiters_that_a_record_answers_are_answered_although_the_takeover_fails() -> None:
    io = Broken()
    machine = io.join(first := request_for(on_doubt=OnDoubt.RERUN))
    io.join(hold := request_for())
    io.broken = "compare_and_swap"
    machine.store_replied(Found(in_doubt(io.took()[0][1]), 5))
    assert answers(io, hold) == ["409 in-doubt"]
    assert answers(io, first) == ["503 overloaded"]
    assert io.table == {}
    assert len(io.errors) == 1


def test_the_claimant_is_given_its_replay_although_the_record_cannot_be_watched_for_others() -> None:
    io = Broken()
    machine = io.join(first := request_for())
    io.join(other := request_for(body=b"another"))
    io.broken = "timer"
    machine.store_replied((200, b"", b"theirs", 0, 0))
    assert answers(io, first) == ["200 replayed"]
    assert answers(io, other) == ["503 overloaded"]
    assert io.table == {}


def test_the_summary_of_a_stream_is_finished_although_its_end_cannot_be_waited_for() -> None:
    io = Broken()
    machine = running(io, first := request_for())
    io.attempts[0].stream = FakeStream()
    machine.attempt_ended(streamed())
    machine.stream_ended(None)
    io.broken = "wait_for_stream"
    machine.store_replied(Done.DONE)
    assert first.summary.finished  # type: ignore[attr-defined]
    assert (machine.phase, io.table) == (Phase.DONE, {})


def test_a_request_that_cannot_be_compared_is_refused_and_ends_nothing_else() -> None:
    io = RecordingIo()
    machine = running(io, first := request_for())
    broken = request_for()
    del broken.mark
    machine.joined(broken)
    assert answers(io, broken) == ["503 overloaded"]
    machine.attempt_ended(whole())
    machine.store_replied(Done.DONE)
    assert answers(io, first) == ["201 stored"]

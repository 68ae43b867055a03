"""The driver: streams whose claim is settled, and caps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gateway.core.conclusion import record_of
from gateway.core.outcome import LostReason
from gateway.core.record import Done, Found
from gateway.edge.budget import Budget
from gateway.edge.deadlines import Deadlines
from gateway.edge.line import Visit
from gateway.edge.upstream import LiveStream
from gateway.engine.driver import Driver
from gateway.engine.machine import Phase
from gateway.ports import Nobody

from .support import FakeAttempt, FakeStream, RecordingIo, request_for, streamed
from .test_interleavings import another, running


class SlowStore:
    """Keeps the reply of each call."""

    def __init__(self) -> None:
        self.replies: list[tuple[str, Any, Callable[[Any], None]]] = []

    def claim(self, name: bytes, claim: Any, reply: Callable[[Any], None]) -> None:
        self.replies.append(("claim", claim, reply))

    def settle(self, name: bytes, settlement: Any, reply: Callable[[Any], None]) -> None:
        self.replies.append(("settle", settlement, reply))

    def get(self, name: bytes, reply: Callable[[Any], None]) -> None:
        self.replies.append(("get", None, reply))

    def subscribe(self, name: bytes, notify: Callable[[], None]) -> Any:
        return SimpleNamespace(active=True, close=lambda: None)


class Service:
    def __init__(self) -> None:
        self.attempts: list[Any] = []

    def attempt(self, request: Any, **how: Any) -> Any:
        attempt = TellingAttempt()
        self.attempts.append(attempt)
        return attempt


class TellingAttempt(FakeAttempt):
    told: Any = None

    def tell(self, told: Any, until: float) -> None:
        self.told = told


class TellingStream(FakeStream):
    told: Any = None

    def tell(self, told: Any, until: float) -> None:
        self.told = told


class Client(SimpleNamespace):
    gone = False

    def __init__(self) -> None:
        super().__init__(replies=[])

    def reply(self, reply: Any, stream: Any = None) -> None:
        self.replies.append(reply)

    def when_gone(self, call: Any) -> None: ...


def world(**caps: int) -> tuple[Driver, SlowStore, Service]:
    clock = SimpleNamespace(now=lambda: 1000.0, wall=lambda: 1_000_000)
    store, service = SlowStore(), Service()

    def failed(error: BaseException) -> None:
        raise error

    driver = Driver(
        store,  # type: ignore[arg-type]
        {"service": service},
        clock,
        Nobody(),
        None,  # type: ignore[arg-type]
        Deadlines(clock, failed),
        Budget(1 << 20),
        mint=lambda: b"h" * 12,
        jitter=lambda: 0.5,
        failed=failed,
        **caps,
    )
    return driver, store, service


def ask(name: bytes = b"name") -> Any:
    request = request_for()
    request.name = name
    request.client = Client()  # type: ignore[assignment]
    return request


async def test_a_tail_that_begins_after_the_stop_is_ended() -> None:
    """Otherwise the drain waits for it."""
    driver, store, service = world()
    driver.begin(ask())
    store.replies.pop()[2](Done.WON)
    (attempt,) = service.attempts
    attempt.stream = TellingStream()
    attempt.told(streamed(429))
    driver.stop()
    store.replies.pop()[2](Done.DONE)
    assert set(attempt.abandoned) == {LostReason.STOPPED}


async def test_a_cut_ends_the_tails() -> None:
    driver, store, service = world()
    driver.begin(ask())
    store.replies.pop()[2](Done.WON)
    (attempt,) = service.attempts
    attempt.stream = TellingStream()
    attempt.told(streamed(429))
    store.replies.pop()[2](Done.DONE)
    driver.cut()
    assert set(attempt.abandoned) == {LostReason.STOPPED}


async def test_the_first_request_of_a_watched_key_counts_for_no_cap() -> None:
    """It waits in the place of a claimant; its first duplicate is the first waiter."""
    driver, store, _ = world(per_key=1)
    driver.begin(first := ask())
    _, claim, reply = store.replies.pop()
    reply(Found(another(record_of(claim)), 5))
    driver.begin(second := ask())
    assert (first.client.replies, second.client.replies) == ([], [])
    assert (driver.in_flight(), driver.waiters()) == ({"pay": 1}, {"pay": 1}), "the second alone is a waiting duplicate"


async def test_the_502_of_a_stream_that_was_cut_off_leaves_the_connection_usable() -> None:
    """A stream that is attached after it broke off would end the connection behind the 502."""
    done = []
    line = SimpleNamespace(
        full=False,
        render=lambda visit, reply, length=None: b"502",
        write=lambda data: None,
        done=lambda visit, cut=False: done.append(cut),
    )
    visit = Visit(line, SimpleNamespace(version="1.1"), None, True)  # type: ignore[arg-type]
    io = RecordingIo()
    first = request_for()
    first.client = visit
    machine = running(io, first)
    connection = SimpleNamespace(abort=lambda: None, resume_reading=lambda: None)
    stream = LiveStream(SimpleNamespace(), connection, streamed(), None)  # type: ignore[arg-type]
    io.attempts[0].stream = stream  # type: ignore[assignment]
    io.attempts[0].abandon = stream.abandon  # type: ignore[method-assign]
    io.time += 3600
    machine.attempt_ended(streamed())
    machine.store_replied(Done.DONE)
    assert machine.phase is Phase.DONE
    assert done == [False]

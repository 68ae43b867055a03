"""The tools of these tests, tested: time that jumps, a wire that fails as it says, a service that is honest."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from gateway.core.policy import Policy
from gateway.core.record import ClaimTerms, Done, Found, NewClaim, Record
from gateway.ports import StoreAway, StoreFull

from .interrupt import ProcessLoop
from .upstream import Attempt, Plan, Service, answers, breaks, never, streams, unreachable
from .virtual import Spinning, Stuck, VirtualClock, run, virtual
from .wire import DROPPED, FULL, LOST, Wire, again, late, slow
from .world import POLICY, Kill, World, ask

NAME = ask().name


def a_claim(holder: bytes = b"holder......") -> Record:
    return records.claim(ask().fingerprint, holder=holder, route="r", lease=20_000, life=60_000, window=1_000, wall=0)


async def outcome_of(attempt: Attempt, until: float) -> Outcome | None:
    future: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
    attempt.tell(future.set_result, until)
    return await future


async def away(call: object) -> StoreAway:
    with pytest.raises(StoreAway) as caught:
        await call  # type: ignore[misc]
    return caught.value


def test_a_day_passes_at_once() -> None:
    """Nothing is ready, so time jumps to the next timer; the order of timers is kept."""
    order: list[int] = []

    async def story() -> float:
        loop = asyncio.get_running_loop()
        for delay in (3, 1, 2):
            loop.call_later(delay, order.append, delay)
        await asyncio.sleep(86_400)
        return loop.time()

    began = time.perf_counter()
    assert run(story()) == pytest.approx(86_400, abs=0.001)
    assert time.perf_counter() - began < 1
    assert order == [1, 2, 3]


def test_what_would_wait_for_ever_is_stuck() -> None:
    """Where nothing is ready and no timer runs, the test fails instead of hanging."""

    async def story() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        run(story())


def test_what_is_busy_without_time_passing_spins() -> None:
    """A loop that yields for ever at one instant is found."""

    async def story() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Spinning):
        run(story())


@virtual
async def test_a_process_that_stands_still_in_a_callback_is_the_only_one() -> None:
    """Its other callbacks wait, one that it cancels afterwards does not run, and a command that it wrote arrives; other
    processes go on, and a task of theirs too."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[str, float]] = []

    def saw(what: str) -> None:
        seen.append((what, round(loop.time(), 3)))

    here, there = ProcessLoop(loop), ProcessLoop(loop)

    def stands_still() -> None:
        saw("begins")
        here.stand_still(10)
        saw("goes on")
        cancelled.cancel()

    here.call_later(1, stands_still)
    here.call_later(2, saw, "held back")
    cancelled = here.call_later(3, saw, "cancelled")
    there.call_later(4, saw, "there")
    await asyncio.sleep(5)
    saw("task")
    await asyncio.sleep(10)
    assert seen == [("begins", 1), ("there", 4), ("task", 5), ("goes on", 11), ("held back", 11)]


@virtual
async def test_a_process_stands_still_in_a_task() -> None:
    """The background work of a process is a task. In the middle of a step of it, the other tasks go on."""
    loop = asyncio.get_running_loop()
    here = ProcessLoop(loop)
    order: list[str] = []

    async def background() -> None:
        here.stand_still(10)
        order.append("background")

    task = asyncio.ensure_future(background())
    await asyncio.sleep(5)
    order.append("story")
    await task
    assert order == ["story", "background"]
    assert loop.time() == pytest.approx(10, abs=0.01)


@virtual
async def test_a_killed_process_does_nothing_more() -> None:
    """The machine is left where it was, in the middle of a handler. What was written arrives; nothing else is done, and
    the connections of its clients break."""
    world = World()
    gateway = world.process()
    client = gateway.send(by=Kill("claim"))
    await world.passes(30)
    assert gateway.halted
    assert client.gone
    assert client.replies == world.service.attempts == world.errors == []
    assert await world.state() == "lapsed #1"
    assert [command.verb for command in gateway.wire.landed] == ["claim"]


@virtual
async def test_a_claim_that_finds_the_answer_is_answered_in_short() -> None:
    """As Redis does: only for the same request, and only with a body."""
    async with World(max_response=10) as world:
        gateway = world.process()
        world.service.will(answers(), answers(body=b"x" * 20))
        for key in "ab":
            await gateway.send(world.ask(key)).answer()
        await world.passes(1)
        replies: list[object] = []
        for asked in (world.ask("a"), world.ask("a", body=b"other"), world.ask("b")):
            terms = ClaimTerms(route="payments", lease=20_000, life=60_000, window=1_000)
            claim = NewClaim(terms, asked.fingerprint, b"holder......", 0)
            Wire(world.store.port, short=True).claim(asked.name, claim, replies.append)
        await world.passes(1)
        assert [type(reply) for reply in replies] == [tuple, Found, Found]


@virtual
async def test_a_wire_does_to_a_command_what_its_fault_says() -> None:
    """Lost: done, and nobody knows. Dropped: not done, and nobody knows. Full: not done, and known."""
    world = World()
    wire = Wire(world.store.port)
    store = AwaitableStore(wire)
    wire.next("claim", DROPPED, FULL, LOST)
    assert (await away(store.claim(NAME, a_claim()))).ambiguous
    assert await world.store.get(NAME) is None
    with pytest.raises(StoreFull):
        await store.claim(NAME, a_claim())
    assert await world.store.get(NAME) is None
    assert (await away(store.claim(NAME, a_claim()))).ambiguous
    assert await world.store.get(NAME) is not None
    assert await store.claim(NAME, a_claim()) is Done.WON
    assert wire.told("claim") == [Done.WON, Done.WON]


@virtual
async def test_a_wire_delivers_late_and_twice() -> None:
    """A late command is done long after its caller heard that it broke; one delivered again is done again."""
    world = World()
    wire = Wire(world.store.port)
    store = AwaitableStore(wire)
    wire.next("claim", late(3))
    assert (await away(store.claim(NAME, a_claim()))).ambiguous
    await asyncio.sleep(2.9)
    assert await world.store.get(NAME) is None
    await asyncio.sleep(0.2)
    assert await world.store.get(NAME) is not None
    wire.next("settle", again(5))
    release = records.release(a_claim(), elapsed=0, wall=0)
    assert await store.settle(NAME, release) is Done.DONE
    await store.claim(NAME, a_claim())
    await asyncio.sleep(6)
    assert await world.store.get(NAME) is None
    wire.next("get", slow(2))
    began = world.time
    assert await store.get(NAME) is None
    assert world.time - began == pytest.approx(2, abs=0.01)


@virtual
async def test_a_wire_that_is_cut_breaks_what_is_under_way() -> None:
    """What was written may arrive or not; what is asked while it is cut was certainly not done."""
    world = World()
    for arrives in (True, False):
        wire = Wire(world.store.port)
        store = AwaitableStore(wire)
        call = asyncio.ensure_future(store.claim(b"arrives" if arrives else b"lost", a_claim()))
        await asyncio.sleep(0)
        wire.cut(1, arrives=arrives)
        assert (await away(call)).ambiguous
        assert not (await away(_claim(wire))).ambiguous
        assert not wire.available
        assert not await store.wait_available(0.5)
        assert await store.wait_available(1)
        assert wire.available
    assert await world.store.get(b"arrives") is not None
    assert await world.store.get(b"lost") is None


async def _claim(wire: Wire) -> Done | Found:
    return await AwaitableStore(wire).claim(NAME, a_claim())


@virtual
async def test_a_cancelled_call_is_done_all_the_same() -> None:
    """Whoever is cancelled has cancelled nothing: the command is on its way."""
    world = World()
    wire = Wire(world.store.port)
    call = asyncio.ensure_future(_claim(wire))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.sleep(1)
    assert await world.store.get(NAME) is not None


@virtual
async def test_the_service_says_what_came_of_it() -> None:
    """Whole, too long, a stream, ended by its connection, broken, and never sent: each as it was."""

    async def outcome(plan: Plan, *, limit: int = 10, send_by: float = 1.0, until: float = 100.0) -> object:
        clock = VirtualClock(asyncio.get_running_loop())
        service = Service(clock)
        service.will(plan)
        attempt = service.attempt(
            ask().request, number=1, send_by=clock.now() + send_by, limit=limit, streams=Policy().streams
        )
        assert not attempt.sent
        found = await outcome_of(attempt, clock.now() + until)
        sent = not isinstance(found, NotSent)
        assert attempt.sent is sent
        assert len(service.ran) == sent
        return found

    whole = await outcome(answers(200, after=50))
    assert isinstance(whole, Answered)
    assert (whole.completeness, whole.response.body) == (Completeness.WHOLE, b"run 1")
    for plan, how in (
        (answers(200, body=b"x" * 11), Completeness.OVER_LIMIT),
        (answers(200, body=b"x" * 11, drip=1.0), Completeness.OVER_LIMIT),
        (streams(), Completeness.STREAM),
        (answers(200, closes=True), Completeness.UNTIL_CLOSE),
    ):
        found = await outcome(plan)
        assert isinstance(found, Answered)
        assert found.completeness is how
    assert await outcome(breaks()) == Lost(LostReason.CLOSED)
    assert await outcome(unreachable()) == NotSent(NotSentReason.UNREACHABLE)
    assert await outcome(answers(connect=2)) == NotSent(NotSentReason.NO_CONNECTION)
    assert await outcome(never(), until=10.0) is None


@virtual
async def test_an_abandoned_attempt_has_had_its_effect() -> None:
    """Abandoning closes the connection; what the service did is done."""
    clock = VirtualClock(asyncio.get_running_loop())
    service = Service(clock)
    service.will(never())
    attempt = service.attempt(ask().request, number=1, send_by=clock.now() + 1, limit=10, streams=Policy().streams)
    assert await outcome_of(attempt, clock.now() + 5) is None
    attempt.abandon(LostReason.TIMEOUT)
    assert await outcome_of(attempt, clock.now() + 5) == Lost(LostReason.TIMEOUT)
    assert service.effects[b"k"] == 1


def test_what_stays_behind_is_seen() -> None:
    """The world's last look fails a story that leaves a client unanswered or a key that ran twice."""

    async def twice() -> None:
        async with World() as world:
            one, other = world.process(), World().process()
            other.driver.upstreams = {"service": world.service}
            await one.send().answer()
            await other.send().answer()

    async def unanswered() -> None:
        async with World() as world:
            world.process().clients.append(world.process().send())

    with pytest.raises(AssertionError, match="2 effects"):
        run(twice())
    with pytest.raises(AssertionError):
        run(unanswered())


assert POLICY.lease == 20_000

"""Every await of an exchange, once each: cancelled there, cancelled there with the result just arrived and unseen,
killed there, and stood still there. What does the next duplicate see?

The points are not listed: the exchange's task is driven, and the n-th suspension is struck, for n from 1 until the
exchange ends without having come so far. A new await is struck without anybody saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.core.policy import OnDoubt
from gateway.core.record import State

from .upstream import Plan, answers, breaks, never, refuses, streams, unreachable
from .virtual import run
from .wire import DROPPED, LOST, Fault
from .world import LEASE, CancelWaiting, CancelWoken, Driver, Kill, Pause, Process, World

#: What the exchange that is struck goes through: the service's plan, and what befalls the store's commands.
STORIES: dict[str, tuple[Plan, dict[str, list[Fault]]]] = {
    "an answer": (answers(after=1), {}),
    "a late answer": (answers(after=12), {}),
    "no answer": (never(), {}),
    "a loss": (breaks(after=1), {}),
    "a release": (refuses(429, after=1), {}),
    "not sent": (unreachable(after=1), {}),
    "a stream": (streams(after=1, seconds=3), {}),
    "a claim's reply lost": (answers(after=1), {"claim": [LOST]}),
    "a claim not made": (answers(after=1), {"claim": [DROPPED, DROPPED]}),
    "a release after a claim's reply was lost": (unreachable(after=1), {"claim": [LOST], "settle": [LOST]}),
    "a record refused for good": (answers(after=1, body=b"x" * 1000), {}),
    "a keep's reply lost": (answers(after=1), {"settle": [LOST, DROPPED]}),
    "a keep not made": (answers(after=1), {"settle": [DROPPED, DROPPED]}),
}

Strike = Callable[[int, Process], Driver]
STRIKES: dict[str, Strike] = {
    "cancelled": lambda at, _: CancelWaiting(at),
    "cancelled later": lambda at, _: CancelWaiting(at, 0.5),
    "cancelled unseen": lambda at, _: CancelWoken(at),
    "killed": Kill,
    "paused": lambda at, _: Pause(at, LEASE + 10),
}


def each_point(story: Callable[[int], Coroutine[Any, Any, bool]]) -> int:
    """Strike the n-th suspension, for n = 1, 2, …; how many there were."""
    for at in range(1, 100):
        if not run(story(at)):
            return at - 1
    raise AssertionError("it never ends")


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES)
@pytest.mark.parametrize("name", STORIES)
def test_struck_at_every_await(name: str, strike: Strike) -> None:
    """Afterwards the key is not stuck beyond its lease and a second, no retry has a second effect, the answers that
    were given agree, and the settler has finished."""
    plan, faults = STORIES[name]

    async def story(at: int) -> bool:
        async with World() as world:
            here, there = world.process(), world.process()
            world.service.will(plan, answers())
            if "refused for good" in name:
                here.wire.largest = there.wire.largest = 400
            for verb, befalls in faults.items():
                here.wire.next(verb, *befalls)
            driver = strike(at, here)
            first = here.send(by=driver)
            await world.passes(0.5)
            retries = [] if here.halted else [here.send()]
            await world.passes(2)
            retries.append(there.send())
            await world.passes(LEASE + 1 - world.time)
            if not isinstance(driver, Pause):
                assert (await world.state()).split(" #")[0] in ("absent", "completed", "in doubt", "lapsed")
                assert here.halted or len(here.settler) == 0
            await world.passes(12)
            last = there.send()
            assert "in-flight" not in await last.answer()
            said = [client.said for client in (first, *retries, last)]
            complete = {client.complete for client in (first, *retries, last) if _kept(client.said)}
            assert len(complete) <= 1, said
            if driver.reached and isinstance(driver, CancelWaiting | CancelWoken):
                first.gone = True
            if name in ("not sent", "a release") and not isinstance(driver, Kill):
                assert "in-doubt" not in last.said or world.service.ran, "a doubt although nothing was sent"
            return driver.reached

    points = each_point(story)
    assert points >= 3, "claim, outcome and settle at least"


def _kept(said: str) -> bool:
    return any(label in said for label in (" stored: ", " replayed: ", " not-stored: ")) and not said.startswith("429")


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES)
@pytest.mark.parametrize("plan", [answers(after=1), unreachable(after=1), breaks(after=1), never()])
def test_a_takeover_struck_at_every_await(strike: Strike, plan: Plan) -> None:
    """Two runs may be had and no third; what was released is the doubt that it was; nothing is stuck."""

    async def story(at: int) -> bool:
        async with World(on_doubt=OnDoubt.RERUN) as world:
            world.most_effects = 2
            await world.put_in_doubt()
            here, there = world.process(), world.process()
            world.service.will(plan, answers())
            driver = strike(at, here)
            first = here.send(by=driver)
            await world.passes(LEASE + 1)
            found = await world.look()
            assert found is not None
            assert found.record.state is not State.IN_FLIGHT or found.record.lapsed(found.age) or here.halted or (
                isinstance(driver, Pause)
            )  # fmt: skip
            await world.passes(LEASE + 1)
            last = there.send()
            assert "in-flight" not in await last.answer()
            assert len({client.complete for client in (first, last) if _kept(client.said)}) <= 1
            assert world.service.numbers in ([], [2])
            if driver.reached and isinstance(driver, CancelWaiting | CancelWoken):
                first.gone = True
            return driver.reached

    assert each_point(story) >= 4


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES)
def test_a_watch_struck_at_every_await(strike: Strike) -> None:
    """Whoever watches another process's flight owns nothing: struck at any look, the others are answered."""

    async def story(at: int) -> bool:
        async with World() as world:
            here, there = world.process(), world.process()
            world.service.will(refuses(429, after=1.0), answers(after=0.5))
            there.send()
            await world.passes(0.1)
            driver = strike(at, here)
            leader = here.send(by=driver)
            await world.passes(0.01)
            others = [here.send(), there.send()]
            await world.passes(2 * LEASE + 12)
            last = there.send()
            assert await last.answer() in ("201 stored: run 2", "201 replayed: run 2", "409 in-doubt")
            for client in others:
                assert client.gone or client.said != ""
            if driver.reached and isinstance(driver, CancelWaiting | CancelWoken):
                leader.gone = True
            return driver.reached

    assert each_point(story) >= 8


def test_a_waiter_struck_at_every_await() -> None:
    """A waiter that is cancelled is nobody's loss: no count of it stays."""

    for cancel in (CancelWaiting, CancelWoken):

        async def story(at: int, cancel: type[Driver] = cancel) -> bool:
            async with World() as world:
                gate = world.process()
                world.service.will(answers(after=1))
                first = gate.send()
                driver = cancel(at)
                waiter = gate.send(by=driver)
                other = gate.send()
                assert await first.answer() == "201 stored: run 1"
                assert await other.answer() == "201 replayed: run 1"
                waiter.gone = driver.reached
                return driver.reached

        assert each_point(story) >= 2


def test_a_cancelled_leader_leaves_its_waiters_a_leader() -> None:
    """The leader of a flight is cancelled at any await: those who wait look again, and hear what stands."""

    async def story(at: int) -> bool:
        async with World() as world:
            gate = world.process()
            world.service.will(answers(after=1))
            driver = CancelWaiting(at)
            leader = gate.send(by=driver)
            crowd = gate.crowd(5)
            await world.passes(3)
            leader.gone = driver.reached
            said = {client.said for client in crowd}
            assert said <= {"201 stored: run 1", "201 replayed: run 1", "409 in-doubt"}
            assert world.service.effects[b"k"] <= 1
            return driver.reached

    assert each_point(story) >= 3


def test_a_service_that_fails_to_begin_may_have_sent() -> None:
    """The adapter has a bug and raises while it begins an attempt: nobody knows what it wrote, so it is a doubt."""

    class Broken:
        def attempt(self, *args: object, **more: object) -> object:
            raise RuntimeError("a bug")

    async def story() -> None:
        async with World() as world:
            gate = world.process()
            gate.gate.upstreams = {"service": Broken()}  # type: ignore[dict-item]
            world.expected_errors = 1
            client, waiter = gate.send(), gate.send()
            assert await client.answer() == "502 upstream-lost"
            assert await waiter.answer() == "409 in-doubt"
            assert await world.state() == "in doubt #1"

    run(story())


def test_a_route_without_its_service_is_released() -> None:
    """Nothing can have been sent where there was nobody to send it to: the key is free."""

    async def story() -> None:
        async with World() as world:
            gate = world.process()
            gate.gate.upstreams = {}
            world.expected_errors = 1
            await gate.send().answer()
            await world.passes(0.1)
            assert await world.state() == "absent"

    run(story())

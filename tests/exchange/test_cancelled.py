"""Every point of a process, once each: cut there, cut later, stopped and then cut, killed there, and stood still there.
What does the next duplicate get?

A point is a call of a machine on its driver, or the begin of a callback of the process: a result that has arrived, and
that no machine has seen. The points are not listed: the n-th is interrupted, for n from 1 until the story ends without
reaching it. So a new call is interrupted without a change here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.core.policy import OnDoubt
from gateway.core.record import State

from .upstream import Plan, answers, breaks, never, refuses, streams, unreachable
from .virtual import run
from .wire import DROPPED, LOST, Fault, late
from .world import LEASE, Cut, Interruption, Kill, Pause, Stop, World

#: What the request goes through: the service's plan, and what befalls the store's commands.
STORIES: dict[str, tuple[Plan, dict[str, list[Fault]]]] = {
    "an answer": (answers(after=1), {}),
    "a late answer": (answers(after=12), {}),
    "no answer": (never(), {}),
    "a loss": (breaks(after=1), {}),
    "a release": (refuses(429, after=1), {}),
    "not sent": (unreachable(after=1), {}),
    "a stream": (streams(after=1, seconds=3), {}),
    "a stream that is held": (streams(status=502, after=1, seconds=3), {}),
    "a stream of minutes": (streams(after=1, seconds=40), {}),
    "a slow connection": (answers(connect=1, after=1), {}),
    "a claim's reply lost": (answers(after=1), {"claim": [LOST]}),
    "a claim not made": (answers(after=1), {"claim": [DROPPED, DROPPED]}),
    "a release after a claim's reply was lost": (unreachable(after=1), {"claim": [LOST], "settle": [LOST]}),
    "not sent, and a claim that lands late": (unreachable(after=1), {"claim": [late(3)]}),
    "a record refused for good": (answers(after=1, body=b"x" * 1000), {}),
    "a keep's reply lost": (answers(after=1), {"settle": [LOST, DROPPED]}),
    "a keep not made": (answers(after=1), {"settle": [DROPPED, DROPPED]}),
}

Strike = Callable[[int], Interruption]
STRIKES: dict[str, Strike] = {
    "cut": Cut,
    "cut later": lambda at: Cut(at, 0.5),
    "stopped": Stop,
    "killed": Kill,
    "paused": lambda at: Pause(at, LEASE + 10),
}


def each_point(story: Callable[[int], Coroutine[Any, Any, bool]]) -> int:
    """Interrupt the n-th point, for n = 1, 2, …; return how many there were."""
    for at in range(1, 300):
        if not run(story(at)):
            return at - 1
    raise AssertionError("it never ends")


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES)
@pytest.mark.parametrize("name", STORIES)
def test_struck_at_every_point(name: str, strike: Strike) -> None:
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
            befalls_it = strike(at)
            first = here.send(by=befalls_it)
            await world.passes(0.5)
            retries = [] if here.halted else [here.send()]
            await world.passes(2)
            retries.append(there.send())
            await world.passes(LEASE + 1 - world.time)
            if not isinstance(befalls_it, Pause):
                assert (await world.state()).split(" #")[0] in ("absent", "completed", "in doubt", "lapsed")
                assert here.halted or len(here.settler) == 0
            await world.passes(12)
            last = there.send()
            assert "in-flight" not in await last.answer()
            said = [client.said for client in (first, *retries, last)]
            complete = {client.complete for client in (first, *retries, last) if _kept(client.said)}
            assert len(complete) <= 1, said
            if name.startswith(("not sent", "a release")) and not isinstance(befalls_it, Kill):
                assert "in-doubt" not in last.said or world.service.ran, "a doubt although nothing was sent"
            return befalls_it.reached

    points = each_point(story)
    assert points >= 10, "claim, forward, settle, forget, answer and finish, and the callbacks before and between"


def _kept(said: str) -> bool:
    return any(label in said for label in (" stored: ", " replayed: ", " not-stored: ")) and not said.startswith("429")


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES)
@pytest.mark.parametrize("plan", [answers(after=1), unreachable(after=1), breaks(after=1), never()])
def test_a_takeover_struck_at_every_point(strike: Strike, plan: Plan) -> None:
    """Two runs may be had and no third; what was released is the doubt that it was; nothing is stuck."""

    async def story(at: int) -> bool:
        async with World(on_doubt=OnDoubt.RERUN) as world:
            world.most_effects = 2
            await world.put_in_doubt()
            here, there = world.process(), world.process()
            world.service.will(plan, answers())
            befalls_it = strike(at)
            first = here.send(by=befalls_it)
            await world.passes(LEASE + 1)
            found = await world.look()
            assert found is not None
            assert found.record.state is not State.IN_FLIGHT or found.record.lapsed(found.age) or here.halted or (
                isinstance(befalls_it, Pause)
            )  # fmt: skip
            await world.passes(LEASE + 1)
            last = there.send()
            assert "in-flight" not in await last.answer()
            assert len({client.complete for client in (first, last) if _kept(client.said)}) <= 1
            assert world.service.numbers in ([], [2])
            return befalls_it.reached

    assert each_point(story) >= 12


@pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES)
def test_a_watch_struck_at_every_point(strike: Strike) -> None:
    """A watch of another process's claim owns nothing: interrupted at any point, the others are answered."""

    async def story(at: int) -> bool:
        async with World() as world:
            here, there = world.process(), world.process()
            world.service.will(refuses(429, after=1.0), answers(after=0.5))
            there.send()
            await world.passes(0.1)
            befalls_it = strike(at)
            here.send(by=befalls_it)
            await world.passes(0.01)
            others = [here.send(), there.send()]
            await world.passes(2 * LEASE + 12)
            last = there.send()
            assert await last.answer() in ("201 stored: run 2", "201 replayed: run 2", "409 in-doubt")
            for client in others:
                assert client.gone or client.cut or client.said != ""
            return befalls_it.reached

    assert each_point(story) >= 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_waiter_that_leaves_at_every_point(stream: bool) -> None:
    """A waiter that leaves costs the others nothing, whenever it leaves: no count of it stays."""

    class Leaves(Interruption):
        def act(self, process: object) -> None:
            self.waiter.leave()

    async def story(at: int) -> bool:
        async with World() as world:
            gate = world.process()
            world.service.will(streams(after=1, seconds=1) if stream else answers(after=1))
            befalls_it = Leaves(at)
            first = gate.send(by=befalls_it)
            befalls_it.waiter, other = gate.send(), gate.send()
            assert await first.answer() == ("200 not-kept, live" if stream else "201 stored: run 1")
            assert await other.answer() == ("409 response-not-kept" if stream else "201 replayed: run 1")
            return befalls_it.reached

    assert each_point(story) >= 12


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_requests_after_a_cut_are_answered(seconds: float) -> None:
    """The process is cut at any point: a request that comes right after it gets what stands, or runs first."""

    async def story(at: int) -> bool:
        async with World() as world:
            gate = world.process()
            world.service.will(answers(after=1))
            befalls_it = Cut(at, seconds)
            gate.send(by=befalls_it)
            gate.crowd(5)
            await world.passes(3)
            crowd = gate.crowd(5)
            await world.passes(3)
            said = {client.said for client in crowd if not client.cut}
            assert said <= {"201 stored: run 1", "201 replayed: run 1", "409 in-doubt"}
            assert world.service.effects[b"k"] <= 1
            return befalls_it.reached

    assert each_point(story) >= 20


def test_a_service_that_fails_to_begin_may_have_sent() -> None:
    """The adapter has a bug and raises while it begins an attempt: nobody knows what it wrote, so it is a doubt."""

    class Broken:
        def attempt(self, *args: object, **more: object) -> object:
            raise RuntimeError("a bug")

    async def story() -> None:
        async with World() as world:
            gate = world.process()
            gate.driver.upstreams = {"service": Broken()}  # type: ignore[dict-item]
            world.expected_errors = 1
            client, waiter = gate.send(), gate.send()
            assert await client.answer() == "502 upstream-lost"
            assert await waiter.answer() == "409 in-doubt"
            await world.passes(0.1)
            assert await world.state() == "in doubt #1"

    run(story())


def test_a_route_without_its_service_is_released() -> None:
    """Nothing can have been sent where there was nobody to send it to: the key is free."""

    async def story() -> None:
        async with World() as world:
            gate = world.process()
            gate.driver.upstreams = {}
            world.expected_errors = 1
            assert await gate.send().answer() == "503 overloaded"
            await world.passes(0.1)
            assert await world.state() == "absent"

    run(story())

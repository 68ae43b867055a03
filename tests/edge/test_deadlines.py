"""Many deadlines on one timer: each is told, never early, hardly late, and not once it was cleared."""

from __future__ import annotations

import asyncio
import random

from gateway.clock import HostClock
from gateway.edge.deadlines import TICK, Deadlines


def unexpected(error: BaseException) -> None:
    raise error


class Waiter:
    def __init__(self) -> None:
        self.told: list[float] = []

    def due(self) -> None:
        self.told.append(HostClock().now())


async def test_each_is_told_in_time() -> None:
    """A thousand deadlines in any order: none is told before it, all within a few ticks."""
    clock = HostClock()
    deadlines = Deadlines(clock, unexpected)
    dice = random.Random(7)
    waiting = [(Waiter(), clock.now() + dice.uniform(0, 0.5)) for _ in range(1000)]
    for waiter, at in waiting:
        deadlines.set(waiter, at)
    await asyncio.sleep(0.5 + 3 * TICK)
    for waiter, at in waiting:
        assert len(waiter.told) == 1
        assert 0 <= waiter.told[0] - at < 0.2
    deadlines.close()


async def test_what_is_cleared_is_not_told() -> None:
    """Nor does it keep the others from being told."""
    clock = HostClock()
    deadlines = Deadlines(clock, unexpected)
    kept, cleared, later = Waiter(), Waiter(), Waiter()
    at = clock.now() + 0.05
    deadlines.set(kept, at)
    deadlines.clear(cleared, deadlines.set(cleared, at))
    deadlines.clear(cleared, deadlines.set(cleared, at + 0.1))
    deadlines.set(later, at + 0.15)
    await asyncio.sleep(0.4)
    assert (len(kept.told), len(cleared.told), len(later.told)) == (1, 0, 1)
    deadlines.close()


async def test_an_earlier_one_is_not_kept_waiting_by_a_later_one() -> None:
    """The timer stands for the first of them; one that is set while they are told is told too."""
    clock = HostClock()
    deadlines = Deadlines(clock, unexpected)
    first, last = Waiter(), Waiter()

    class Again(Waiter):
        def due(self) -> None:
            super().due()
            if len(self.told) < 3:
                deadlines.set(self, clock.now() + 0.03)

    again = Again()
    deadlines.set(last, clock.now() + 60)
    deadlines.set(first, clock.now() + 0.02)
    deadlines.set(again, clock.now() + 0.02)
    await asyncio.sleep(0.4)
    assert (len(first.told), len(last.told), len(again.told)) == (1, 0, 3)
    deadlines.close()
    await asyncio.sleep(0.05)
    assert last.told == []


async def test_one_that_fails_does_not_cost_the_others_theirs() -> None:
    """What it raises is handed on; those of the same tick, and later ones, are told."""
    clock, failures = HostClock(), list[BaseException]()
    deadlines = Deadlines(clock, failures.append)

    class Broken(Waiter):
        def due(self) -> None:
            super().due()
            raise ValueError("broken")

    waiters = [Broken() if number % 2 else Waiter() for number in range(20)]
    for waiter in waiters:
        deadlines.set(waiter, 1.0)  # long past: all in one tick
    last = Waiter()
    deadlines.set(last, clock.now() + 0.05)
    await asyncio.sleep(0.3)
    assert [len(waiter.told) for waiter in (*waiters, last)] == [1] * 21
    assert [str(failure) for failure in failures] == ["broken"] * 10
    deadlines.close()


async def test_one_that_another_clears_as_it_is_told_is_not_told() -> None:
    """Of two in one tick that end each other only one hears of it."""
    clock = HostClock()
    deadlines = Deadlines(clock, unexpected)

    class Ending(Waiter):
        other: Ending
        tick = 0

        def due(self) -> None:
            super().due()
            deadlines.clear(self.other, self.tick)

    one, two = Ending(), Ending()
    one.other, two.other = two, one
    one.tick = two.tick = deadlines.set(one, 1.0)
    deadlines.set(two, 1.0)
    await asyncio.sleep(0.1)
    assert len(one.told) + len(two.told) == 1
    deadlines.close()

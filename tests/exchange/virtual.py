"""Time that passes only when nobody is busy: a loop that jumps to its next timer as soon as nothing is ready.

A minute of waiting costs a test microseconds, and two runs of one test are the same run. What real time
hides comes to light besides: a loop on which nothing is ready and no timer runs would wait for ever
(`Stuck`), and one that is busy without time passing spins (`Spinning`).
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import signal
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Added to every jump, as a real timer fires a little late. It keeps `sleep(deadline - now)` from asking
#: for a span that the clock is too coarse to show.
TICK = 1e-6
#: Rounds of the loop without time passing, after which it is taken to spin.
ROUNDS = 20_000
#: Seconds of real time after which a test is taken to spin without giving the loop a turn.
PATIENCE = 20.0


class Stuck(AssertionError):
    """Nothing is ready and no timer runs: whoever is awaited would be awaited for ever."""


class Spinning(AssertionError):
    """Something is busy, and no time passes."""


class _Jump(selectors.SelectSelector):
    """Instead of waiting, time jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nothing is ready, and no timer runs")
        if timeout > 0:
            self.now += timeout + TICK
            self.rounds = 0
            return []
        self.rounds += 1
        if self.rounds > ROUNDS:
            raise Spinning(f"{ROUNDS} rounds of the loop at {self.now:.6f} s")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose `time()` is ours."""

    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now

    def run_for(self, seconds: float) -> bool:
        """Run everything else for so long, in the middle of a callback. False if the story ended meanwhile."""
        over: list[None] = []
        self.call_later(seconds, over.append, None)
        waiting = len(self._ready)
        task = asyncio.current_task(self)
        if task is not None:
            asyncio.tasks._leave_task(self, task)
        while not (over or self._stopping):
            self._run_once()
        if task is not None:
            asyncio.tasks._enter_task(self, task)
        for _ in range(waiting):  # the round that this callback belongs to counts on as many
            self.call_soon(_nothing)
        return bool(over)


def _nothing() -> None: ...


class VirtualClock:
    """The `Clock` of whatever runs on the loop. `asleep`: the host was suspended so long; timers stood still."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.asleep = 0.0

    def now(self) -> float:
        return 5_000.0 + self._loop.time() + self.asleep

    def wall(self) -> int:
        return 1_700_000_000_000 + round((self._loop.time() + self.asleep) * 1000)


def run(story: Coroutine[Any, Any, Any]) -> Any:
    """Run a story to its end in virtual time, on a loop of its own."""
    loop = VirtualLoop()
    with _watched():
        try:
            return loop.run_until_complete(story)
        finally:
            _end(loop)


def _end(loop: VirtualLoop) -> None:
    """Cancel what is left, and what its end starts."""
    for _ in range(10):
        if not (left := asyncio.all_tasks(loop)):
            break
        loop.jump.rounds = 0
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left))
    loop.close()


def virtual(story: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test whose time is virtual."""

    @functools.wraps(story)
    def told(*args: Any, **kwargs: Any) -> None:
        run(story(*args, **kwargs))

    return told


@contextmanager
def _watched() -> Any:
    """What spins without ever giving the loop a turn is ended by a signal."""

    def alarm(number: int, frame: FrameType | None) -> None:
        raise Spinning(f"no turn of the loop within {PATIENCE:g} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

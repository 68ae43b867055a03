"""Many deadlines for one timer. Most are met long before they come: a timer of the loop for each costs ten times
as much to set and to cancel."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Protocol

from ..ports import Clock

#: Seconds by which a deadline may be told late. It is never told early.
TICK = 0.02


class Awaiting(Protocol):
    """Whoever has a deadline."""

    def due(self) -> None:
        """It has passed. Called once; another may be set."""


class Deadlines:
    """Those of one loop. Instants are the clock's, in seconds. `failed` is told what somebody's `due` raises: it must
    not cost the others theirs."""

    def __init__(self, clock: Clock, failed: Callable[[BaseException], None]) -> None:
        self._clock = clock
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._ticks: dict[int, set[Awaiting]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0

    def set(self, who: Awaiting, at: float) -> int:
        """Tell `who` once `at` has passed. Give what is returned to `clear`."""
        tick = int(at / TICK) + 1
        waiting = self._ticks.get(tick)
        if waiting is None:
            self._ticks[tick] = {who}
            heapq.heappush(self._order, tick)
            if self._timer is None or tick < self._armed:
                self._arm(tick)
        else:
            waiting.add(who)
        return tick

    def clear(self, who: Awaiting, tick: int) -> None:
        """It is not waited for any more."""
        waiting = self._ticks.get(tick)
        if waiting is not None:
            waiting.discard(who)

    def close(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = tick
        self._timer = self._loop.call_later(max(tick * TICK - self._clock.now(), 0), self._pass)

    def _pass(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._order and self._order[0] * TICK <= now:
            tick = heapq.heappop(self._order)
            waiting = self._ticks[tick]
            while waiting:  # one by one: who is cleared meanwhile is not told
                try:
                    waiting.pop().due()
                except Exception as error:
                    self._failed(error)
            del self._ticks[tick]
        while self._order and not self._ticks[self._order[0]]:
            del self._ticks[heapq.heappop(self._order)]
        if self._order and (self._timer is None or self._order[0] < self._armed):
            self._arm(self._order[0])

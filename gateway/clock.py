"""The clock of a real gate."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial


class HostClock:
    """CLOCK_BOOTTIME, which goes on while the host is suspended, and the wall.

    Where a kernel has no CLOCK_BOOTTIME (macOS), CLOCK_MONOTONIC counts suspends by itself.
    """

    def __init__(self) -> None:
        #: In seconds. Asked ten times per request: a function of ours around it would cost as much again.
        self.now: Callable[[], float] = partial(
            time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        )

    def wall(self) -> int:
        return time.time_ns() // 1_000_000

"""The clock of a real gate."""

from __future__ import annotations

import time


class HostClock:
    """CLOCK_BOOTTIME, which goes on while the host is suspended, and the wall.

    Where a kernel has no CLOCK_BOOTTIME (macOS), CLOCK_MONOTONIC counts suspends by itself.
    """

    def __init__(self) -> None:
        self._id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> float:
        return time.clock_gettime(self._id)

    def wall(self) -> int:
        return time.time_ns() // 1_000_000

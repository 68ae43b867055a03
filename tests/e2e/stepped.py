"""`python -m tests.e2e.stepped run …`: a gateway on a host whose wall clock is off by the milliseconds in the file that
WALL_CLOCK names, and can be stepped by writing there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gateway import cli
from gateway.clock import HostClock


def wall(_: HostClock) -> int:
    return time.time_ns() // 1_000_000 + int(Path(os.environ["WALL_CLOCK"]).read_text())


if __name__ == "__main__":
    HostClock.wall = wall  # type: ignore[method-assign]
    cli.main()

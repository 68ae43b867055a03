"""Places at which a test ends or stops this process, to see that the promise holds there.

`ONCEGATE_FAILPOINT=sent:kill@3` sends SIGKILL when a guarded request reaches `sent` for the third time;
`stop` sends SIGSTOP, and the process goes on where it stood at SIGCONT. Where the variable is not set
nothing is armed, and what is left of all this is one test of a boolean at each place.

A byte that was handed to a transport is not on its way yet: the loop writes once per tick. So the two
places that lie between bytes write them past the transport (plain TCP only, which is what tests have).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from enum import Enum

from .core.instant import instant

#: The log line that precedes the signal.
REACHED = "a failpoint was reached"


class Point(Enum):
    """Where an exchange stands, in the order in which it gets there."""

    CLAIMED = "claimed"
    CONNECTED = "connected"
    FIRST_BYTE = "first_byte"
    SENT = "sent"
    HEAD_READ = "head_read"
    BODY_READ = "body_read"
    STORED = "stored"
    HALF_REPLIED = "half_replied"


_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

#: Whether any place is armed. Tested before anything else here is called.
armed = False
#: What `arm` was given.
spec = ""
_point: Point | None = None
_left = 0
_act: Callable[[], None]


def arm(wanted: str) -> None:
    """Arm one place: `POINT:kill` or `POINT:stop`, `@N` for the Nth time. Raises ValueError that says so."""
    global armed, spec, _point, _left, _act
    point, _, rest = wanted.partition(":")
    action, _, times = rest.partition("@")
    try:
        _point, number, _left = Point(point), _SIGNALS[action], int(times or 1)
    except (ValueError, KeyError):
        points = ", ".join(each.value for each in Point)
        raise ValueError(
            f"ONCEGATE_FAILPOINT={wanted}: expected POINT:kill or POINT:stop, with @N for the Nth time; POINT is one "
            f"of {points}"
        ) from None
    armed, spec = True, wanted

    def act() -> None:
        told = {"time": instant(time.time_ns() // 1_000_000).decode(), "level": "alarm", "message": REACHED}
        os.write(2, json.dumps({**told, "failpoint": wanted}, separators=(",", ":")).encode() + b"\n")
        os.kill(os.getpid(), number)

    _act = act


def reach(point: Point) -> None:
    """A guarded exchange has got to `point`."""
    global _left
    if point is _point:
        _left -= 1
        if _left == 0:
            _act()


def send(transport: asyncio.Transport, data: bytes) -> bytes:
    """Write a request with a stop after its first byte and after its last; says what is left to be written."""
    reach(Point.CONNECTED)
    if _point not in (Point.FIRST_BYTE, Point.SENT):
        return data
    data = _past(transport, data, 1)
    reach(Point.FIRST_BYTE)
    if _point is Point.SENT:
        data = _past(transport, data, len(data))
        reach(Point.SENT)
    return data


def reply(transport: asyncio.Transport, data: bytes) -> bytes:
    """Write a response with a stop in its middle; says what is left to be written."""
    if _point is Point.HALF_REPLIED:
        data = _past(transport, data, len(data) // 2)
        reach(Point.HALF_REPLIED)
    return data


def _past(transport: asyncio.Transport, data: bytes, size: int) -> bytes:
    """Write `size` bytes past the transport, or as many as fit; what is left."""
    if transport.get_write_buffer_size():
        return data
    return data[os.write(transport.get_extra_info("socket").fileno(), data[:size]) :]

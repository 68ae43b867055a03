"""A release of three gates under load; see rolling.py for who asks, and docs/faults.md for the defects it finds."""

from __future__ import annotations

from pathlib import Path

from .rolling import rolling
from .stage import TIMES


async def test_customers_do_not_notice_a_release(tmp_path: Path) -> None:
    """Three gates on one Redis, one of them two workers, are stopped and started again in turn: no answer but 201 and a
    503 that says try again, no connection lost after it had spoken, one effect and one answer for each key, exit 0
    each time."""
    for turn in range(TIMES):
        assert await rolling(tmp_path / str(turn), "") == []

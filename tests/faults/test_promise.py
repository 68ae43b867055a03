"""The promise, with real processes, while things break. Nothing may be found; see scenarios.py for the scenes.

Short by default, and part of `make test`; `make faults` plays everything ten times.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from gateway.failpoints import Point

from . import scenarios as scenes
from .stage import TIMES

SCENES: dict[str, scenes.Scene] = {
    "a gate stands still past its lease": scenes.paused,
    "a rolling restart": scenes.drained,
    "a second signal": scenes.second_signal,
    "clients are cut off": scenes.cut_clients,
    "a crowd through two gates": scenes.crowd,
    "a key used for another request": scenes.another_body,
    "the origin does it and breaks": partial(scenes.upstream_fails, origin="cut"),
    "the origin does it and answers half": partial(scenes.upstream_fails, origin="short"),
    "the origin does it and says 503": partial(scenes.upstream_fails, origin="status=503"),
    "the origin does it and never answers": partial(scenes.upstream_fails, origin="linger=2.5"),
    "the origin answers late": scenes.late_answer,
    "the readers of long answers leave": scenes.readers_leave,
    "the readers of long answers leave, on Redis": partial(scenes.readers_leave, store="redis"),
    "a key used for another request, on Redis": partial(scenes.another_body, store="redis"),
    **{
        f"the origin does it and {what}, for one client each": partial(
            scenes.upstream_fails, origin=origin, store="redis", copies=1
        )
        for what, origin in (("breaks", "cut"), ("answers half", "short"), ("says 503", "status=503"))
    },
    "a window shorter than the exchange": scenes.short_window,
    "a wall clock an hour ahead": scenes.skewed,
    "a Release lands late": scenes.late_release,
    "a claim lands late": scenes.late_claim,
    "a Keep meets a takeover": scenes.keep_meets_takeover,
    "the store forgets": scenes.forgets,
    "the store forgets one record": partial(scenes.forgets, all_of_it=False),
    "the store fails": scenes.store_faults,
    "a release storm": scenes.release_storm,
}


@pytest.mark.parametrize(("store", "copies"), [("sqlite", 3), ("redis", 3), ("redis", 1)])
async def test_a_gate_is_killed_at_each_failpoint(store: str, copies: int, tmp_path: Path) -> None:
    """kill -9 at eight places, side by side: all eight are reached, no key runs twice, none is stuck."""
    for turn in range(TIMES):
        found = await asyncio.gather(
            *(
                scenes.killed(tmp_path / f"{turn}-{point.value}", "", store=store, point=point, copies=copies)
                for point in Point
            )
        )
        assert found == [[]] * len(Point), dict(zip(Point, found, strict=True))


@pytest.mark.parametrize("name", SCENES)
async def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    """The scene's own docstring is the claim."""
    for turn in range(TIMES):
        assert await SCENES[name](tmp_path / str(turn), "") == []

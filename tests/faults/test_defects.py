"""The suite can fail: a gate with one defect is found out by the scene that is there for it.

`make test` tries four of the defects; `make faults` all. docs/faults.md has the table, checked against this one.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from gateway.failpoints import Point

from . import scenarios as scenes
from .defects import DEFECTS
from .rolling import rolling
from .stage import TIMES

#: Which scene finds which defect.
CAUGHT: dict[str, scenes.Scene] = {
    "check-then-set": scenes.crowd,
    "holder-without-state": scenes.keep_meets_takeover,
    "cancel-on-disconnect": scenes.cut_clients,
    "release-on-timeout": partial(scenes.upstream_fails, origin="linger=2.5"),
    "release-on-loss": partial(scenes.upstream_fails, origin="cut"),
    "bare-503-released": partial(scenes.upstream_fails, origin="status=503"),
    "lease-by-the-local-clock": scenes.skewed,
    "answer-before-store": partial(scenes.killed, store="redis", point=Point.HALF_REPLIED, copies=1),
    "holder-id-reused": scenes.late_release,
    "claim-lives-for-the-window": scenes.short_window,
    "lapse-frees-the-key": partial(scenes.killed, store="redis", point=Point.SENT),
    "waiter-stampede": scenes.release_storm,
    "not-told-again": scenes.forgets,
    "release-not-repeated": scenes.late_claim,
    "deadline-from-the-send": scenes.paused,
    "sent-again-when-lost": partial(scenes.upstream_fails, origin="cut"),
    "truncation-kept": partial(scenes.upstream_fails, origin="short"),
    "reset-by-its-reader": scenes.readers_leave,
    "done-at-its-head": scenes.readers_leave,
    "fingerprint-ignored": scenes.another_body,
    "replays-anything": partial(scenes.another_body, store="redis"),
    "stopped-at-once": scenes.drained,
    "guests-cut-off": rolling,
    "drained-without-settling": rolling,
    "runs-not-awaited": rolling,
    "body-not-awaited": scenes.cut_clients,
}
#: Cheap ones, one of each kind: the claim, the settlement, the lease, the wire.
SHORT = ("check-then-set", "bare-503-released", "lapse-frees-the-key", "sent-again-when-lost")


@pytest.mark.parametrize("name", CAUGHT if TIMES > 1 else SHORT)
async def test_a_defect_is_found(name: str, tmp_path: Path) -> None:
    """Something is found, at the latest in the third try: some defects need an order that chance brings."""
    for turn in range(3):
        if await CAUGHT[name](tmp_path / str(turn), name):
            return
    pytest.fail(f"{name} was not found")


def test_every_defect_has_a_scene_and_a_line_in_the_docs() -> None:
    """The table in docs/faults.md names each defect, and the scene that finds it."""
    assert CAUGHT.keys() == DEFECTS.keys()
    told = re.findall(r"^\| `([a-z0-9-]+)` \|.*\| `(\w+)`", Path("docs/faults.md").read_text(), re.MULTILINE)
    scene = {name: (each.func if isinstance(each, partial) else each).__name__ for name, each in CAUGHT.items()}
    assert dict(told) == scene

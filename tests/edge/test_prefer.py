"""`Prefer: wait=n` lowers how long a duplicate waits for the first (RFC 7240 §4.3)."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.core.message import preferred_wait
from tests.harness import Exchange, Origin, ask, configuration, gate


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("wait=10", 10_000),
        ("respond-async, wait=3", 3_000),
        ("Wait = 0", 0),
        ('wait="7"', 7_000),
        ("wait=2; x=1", 2_000),
        ("wait=1, wait=9", 1_000),
        ("wait=-1", None),
        ("wait=soon", None),
        ("wait", None),
        ("return=minimal", None),
    ],
)
def test_what_the_field_says(value: str, wait: int | None) -> None:
    """Whole seconds; the first preference of that name counts; anything else is as if it were not there."""
    assert preferred_wait([(b"Prefer", value.encode())]) == wait


async def test_a_duplicate_waits_no_longer_than_its_client_would() -> None:
    """The first takes its time: a duplicate that would not wait is told so at once; one that says nothing waits."""
    go = asyncio.Event()

    async def answers(exchange: Exchange) -> None:
        await go.wait()
        await exchange.respond()

    origin = await Origin(answers).start()
    async with gate(configuration(origin.url, policy="wait: 20s")) as running:
        first = asyncio.create_task(ask(running.port, key="k1"))
        await origin.until(1)
        patient = asyncio.create_task(ask(running.port, key="k1"))
        began = time.monotonic()
        hurried = await ask(running.port, key="k1", fields=[("Prefer", "wait=0")])
        assert (hurried.status, hurried.problem, hurried.get("X-Should-Retry")) == (409, "in-flight", "true")
        assert time.monotonic() - began < 5
        go.set()
        assert (await first).label == "stored"
        assert (await patient).replayed
    await origin.stop()

"""In real time, on each store: no record dies before its exchange, and every exchange ends before its lease.

The same over all configurations, under virtual time, is tests/exchange/test_properties.py.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from gateway.core.record import State
from tests.harness import Exchange, Origin, RunningGate, ask, configuration, gate
from tests.servers import RedisServer, preferred

STORES = ["memory", "sqlite", "redis"]
LEASE = 0.4 + 0.4 + 5.0


@dataclass(frozen=True)
class Point:
    """An upstream, and what its first client and a retry are given."""

    delay: float
    first: tuple[int, str]
    retry: tuple[int, str]
    stream: bool = False
    piecemeal: bool = False


POINTS = {
    "at once": Point(0.0, (201, "stored"), (201, "replayed")),
    "longer than the window": Point(0.25, (201, "stored"), (201, "replayed")),
    "in drips": Point(0.02, (201, "stored"), (201, "replayed"), piecemeal=True),
    "late": Point(0.6, (504, "in-doubt"), (201, "replayed")),
    "too late": Point(1.5, (504, "in-doubt"), (409, "in-doubt")),
    "a stream": Point(0.1, (201, "not-kept"), (409, "not-kept"), stream=True),
}


@pytest.mark.parametrize("point", POINTS.values(), ids=list(POINTS))
@pytest.mark.parametrize("store", STORES)
async def test_a_record_outlives_its_exchange(store: str, point: Point, tmp_path: object) -> None:
    """With a window of 200 ms, far below the 5.8 s of the lease: the claim is there as long as the exchange goes on."""
    server = RedisServer(preferred()).start() if store == "redis" else None
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/keys.db"}.get(store) or (
        server.url if server else ""
    )

    async def answers(exchange: Exchange) -> None:
        if point.piecemeal:
            await exchange.send(b"HTTP/1.1 201 Created\r\nContent-Length: 8\r\n\r\n")
            for piece in (b"ab", b"cd", b"ef", b"gh"):
                await asyncio.sleep(point.delay)
                await exchange.send(piece)
            return
        await asyncio.sleep(point.delay)
        if point.stream:
            await exchange.send(b"HTTP/1.1 201 Created\r\nContent-Type: text/event-stream\r\n")
            await exchange.send(b"Transfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n0\r\n\r\n")
            return
        await exchange.respond(201, b"01234567", [(b"Content-Type", b"application/json")])

    origin = await Origin(answers).start()
    policy = "window: 200ms, doubt_window: 10s, wait: 3s"
    try:
        async with gate(
            configuration(origin.url, store=url, upstream="timeout: 400ms, late: 400ms", policy=policy)
        ) as running:
            began = time.monotonic()
            first = asyncio.create_task(ask(running.port, key="k1"))
            await origin.until(1)
            looked = asyncio.create_task(_watched(running))
            answer = await first
            assert (answer.status, answer.label) == point.first
            again = await ask(running.port, key="k1")
            assert (again.status, again.label) == point.retry
            assert await looked > 0 or point.delay == 0
            assert time.monotonic() - began < LEASE
            assert origin.effects == {b"k1": 1}
    finally:
        await origin.stop()
        if server is not None:
            server.close()


async def _watched(running: RunningGate) -> int:
    """Look the record up for as long as its exchange goes on: it is there at every look; how many there were."""
    driver = running.app._driver
    assert driver is not None
    looks = 0
    while machines := list(driver):
        for machine in machines:
            found = await running.app.store.get(machine.name)
            if machine in list(driver):
                assert found is not None, "the record died before its exchange"
                assert found.record.state is State.IN_FLIGHT or found.record.answer is not None
                looks += 1
        await asyncio.sleep(0.01)
    return looks

"""The admin listener, through aiohttp's own client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from gateway.app import ONE_GATEWAY
from gateway.clock import HostClock
from gateway.ops.admin import Readiness, admin_app
from gateway.ops.metrics import Tally
from gateway.stores.memory import MemoryStore
from tests.servers import RedisServer, preferred
from tests.stores.worlds import redis_store

AdminClient = TestClient[web.Request, web.Application]
Serve = Callable[[web.Application], Awaitable[AdminClient]]


@pytest.fixture
def ready() -> Readiness:
    return Readiness(MemoryStore(HostClock()), note=ONE_GATEWAY, started=True)


async def said(client: AdminClient, path: str) -> tuple[int, dict[str, str]]:
    async with client.get(path) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_live_from_the_first_moment_to_the_last(aiohttp_client: Serve, ready: Readiness) -> None:
    """GET /live → 200, whether the gate is starting, running or stopping."""
    client = await aiohttp_client(admin_app(ready, Tally()))
    for ready.started, ready.stopping in ((False, False), (True, False), (True, True)):
        assert await said(client, "/live") == (200, {"status": "live"})


async def test_ready_is_two_latches(aiohttp_client: Serve, ready: Readiness) -> None:
    """GET /ready → 503 until it has started, 200, and 503 as soon as it is stopping; and with a store for one
    gateway it says so."""
    client = await aiohttp_client(admin_app(ready, Tally()))
    told = {"store": "memory", "note": "this store protects one gateway; a second instance of the service needs redis"}
    ready.started = False
    starting = {"status": "not ready", "reason": "the gate is starting"}
    assert await said(client, "/ready") == (503, starting | told)
    ready.started = True
    assert await said(client, "/ready") == (200, {"status": "ready", **told})
    ready.stopping = True
    assert await said(client, "/ready") == (503, {"status": "not ready", "reason": "the gate is stopping", **told})


async def test_ready_guarded_says_why_not(aiohttp_client: Serve, ready: Readiness) -> None:
    """GET /ready/guarded → whether a guarded request would be served, and if not, why."""
    client = await aiohttp_client(admin_app(ready, Tally()))
    assert await said(client, "/ready/guarded") == (200, {"status": "ready"})
    ready.stopping = True
    assert await said(client, "/ready/guarded") == (503, {"status": "not ready", "reason": "the gate is stopping"})
    ready.started = ready.stopping = False
    assert await said(client, "/ready/guarded") == (503, {"status": "not ready", "reason": "the gate is starting"})


async def test_a_store_that_is_away_clears_ready_guarded_only(aiohttp_client: Serve) -> None:
    """Redis is away: /ready stays 200, /ready/guarded is 503 with the reason, and without the password; it comes:
    200. Redis is for a fleet, so there is no note."""
    server = RedisServer(preferred())
    store = redis_store(f"redis://:swordfish@127.0.0.1:{server.port}/0")
    await store.open()
    try:
        client = await aiohttp_client(admin_app(Readiness(store, started=True), Tally()))
        assert await said(client, "/ready") == (200, {"status": "ready", "store": "redis"})
        status, told = await said(client, "/ready/guarded")
        assert (status, told["status"]) == (503, "not ready")
        assert told["reason"].startswith(f"store-unavailable: Redis at 127.0.0.1:{server.port} cannot be reached: ")
        assert "swordfish" not in told["reason"]
        server.start()
        with server.client() as operator:
            operator.config_set("requirepass", "swordfish")
            assert await store.wait_available(10)
        assert await said(client, "/ready/guarded") == (200, {"status": "ready"})
    finally:
        await store.close()
        server.close()


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("*/*", "text/plain", plain_text),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text", openmetrics),
    ],
)
async def test_metrics_in_the_format_that_is_asked_for(
    aiohttp_client: Serve, ready: Readiness, accept: str, content_type: str, parse: Callable[..., object]
) -> None:
    """GET /metrics → every family once, in Prometheus' text format or in OpenMetrics, as the scraper asks."""
    tally = Tally()
    tally.store_called("claim", 0.002, failed=False)
    tally.store_called("claim", 0.002, failed=True)
    tally.store_forgot("all")
    tally.in_flight = lambda: {"all": 3}
    client = await aiohttp_client(admin_app(ready, tally))
    async with client.get("/metrics", headers={"Accept": accept}) as response:
        assert response.status == 200
        assert response.content_type == content_type
        text = await response.text()
    families = list(parse(text))  # type: ignore[call-overload]
    names = [family.name for family in families]
    assert len(names) == len(set(names)) > 14
    values = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    assert values["oncegate_store_errors_total", "claim"] == 1
    assert values["oncegate_store_seconds_count", "claim"] == 1
    assert values["oncegate_store_forgot_total",] == 1
    assert values["oncegate_in_flight", "all"] == 3


async def test_what_is_not_there_is_404_and_what_is_not_asked_so_405(aiohttp_client: Serve, ready: Readiness) -> None:
    """The admin listener does what it says and nothing else."""
    client = await aiohttp_client(admin_app(ready, Tally()))
    for path in ("/", "/ready/", "/metrics/all", "/keys"):
        async with client.get(path) as response:
            assert response.status == 404, path
    async with client.post("/metrics") as response:
        assert response.status == 405


async def test_what_stands_against_the_store(aiohttp_client: Serve, ready: Readiness) -> None:
    """GET /ready/guarded names each finding, whether or not it refuses; POST /store/accept says whether there was
    something to accept; GET of it is 405."""
    client = await aiohttp_client(admin_app(ready, Tally()))
    async with client.post("/store/accept") as response:
        assert (response.status, await response.json()) == (200, {"accepted": False})
    standing = {"amnesia": "it forgot"}
    ready.findings = lambda: standing
    ready.accept = lambda: bool(standing.popitem())
    assert await said(client, "/ready/guarded") == (200, {"status": "ready", "findings": {"amnesia": "it forgot"}})
    async with client.post("/store/accept") as response:
        assert (response.status, await response.json()) == (200, {"accepted": True})
    assert await said(client, "/ready/guarded") == (200, {"status": "ready"})
    async with client.get("/store/accept") as response:
        assert response.status == 405


async def test_a_room_can_be_added(aiohttp_client: Serve, ready: Readiness) -> None:
    """`extra` adds routes of others to the listener, beside its own."""

    async def hello(_: web.Request) -> web.Response:
        return web.json_response({"hello": "operator"})

    def add(app: web.Application) -> None:
        app.router.add_get("/hello", hello)

    client = await aiohttp_client(admin_app(ready, Tally(), add))
    assert await said(client, "/hello") == (200, {"hello": "operator"})
    assert (await said(client, "/live"))[0] == 200

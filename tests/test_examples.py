"""Every configuration that we show is run: loaded as it stands, put before a service of the test's own with a real
Redis behind it, and driven through what its comments say.

Whoever adds a file to config/examples/ adds its story here, or `test_every_example_has_a_story` fails.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.app import App
from gateway.settings import Address, Listener, Settings, load
from tests.edge.stand import eventually
from tests.harness import Exchange, Origin, Response, RunningGate, ask
from tests.servers import RedisServer, free_port, preferred

CONFIG = Path(__file__).parent.parent / "config"
EXAMPLES = {path.stem: path for path in (CONFIG / "minimal.yaml", *sorted((CONFIG / "examples").glob("*.yaml")))}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer(preferred()).start()
    yield server
    server.close()


class Shop:
    """An example that runs, and the service behind it."""

    def __init__(self, gate: RunningGate, origin: Origin, settings: Settings) -> None:
        self.gate = gate
        self.origin = origin
        self.settings = settings

    async def post(self, target: str, key: str | None = None, **how: Any) -> Response:
        """A request to the gate; `key` stands in Idempotency-Key."""
        return await ask(self.gate.port, how.pop("method", "POST"), target, key=key, **how)

    @property
    def runs(self) -> int:
        """How many requests have reached the service."""
        return len(self.origin.requests)

    def answers(self, status: int, **how: Any) -> None:
        """What the service says from now on."""
        self.origin.answer = lambda exchange: exchange.respond(status, **how)

    def policy(self, route: str) -> Any:
        (found,) = [each.policy for each in self.settings.routes.routes if each.name == route]
        return found

    async def guards(self, target: str, **how: Any) -> None:
        """The first of two runs and is stored; the second is given its answer."""
        before = self.runs
        first, second = [await self.post(target, **how) for _ in range(2)]
        assert (first.label, second.label, self.runs) == ("stored", "replayed", before + 1)
        assert second.body == first.body

    async def passes(self, target: str, label: str | None = "unprotected", **how: Any) -> None:
        """Each of two runs."""
        before = self.runs
        assert [(await self.post(target, **how)).label for _ in range(2)] == [label, label]
        assert self.runs == before + 2


@asynccontextmanager
async def running(path: Path, redis: RedisServer, folder: Path) -> AsyncIterator[Shop]:
    """The file as it stands, but for where it listens, where its services are and which store is its own."""
    settings = load(path, environ={})
    origin = await Origin().start()
    here = {
        name: replace(upstream, host="127.0.0.1", port=origin.port) for name, upstream in settings.upstreams.items()
    }
    store = redis.url if settings.store.startswith("redis") else f"sqlite:///{folder}/keys.db"
    local = replace(
        settings,
        listen=(Listener(Address("127.0.0.1", 0)),),
        admin=Address("127.0.0.1", free_port()),
        store=store,
        upstreams=here,
    )
    log = io.StringIO()
    app = App(local, out=log)
    try:
        await app.start()
        try:
            yield Shop(RunningGate(app, app.addresses[0][1], log), origin, settings)
        finally:
            app.settings = replace(local, grace=200)
            await app.stop()
    finally:
        await origin.stop()


# ── The stories ───────────────────────────────────────────────────────────────────────────────────


async def minimal(shop: Shop) -> None:
    """Every path is guarded where a key is sent, and passes where none is."""
    await shop.guards("/anything", key="a")
    await shop.passes("/anything")


async def sidecar(shop: Shop) -> None:
    """Orders are guarded for a day where a key is sent; the rest goes through, key or not."""
    await shop.guards("/orders", key="a")
    await shop.guards("/orders/7/items", key="b")
    await shop.passes("/orders")
    await shop.passes("/carts", key="c")
    assert shop.policy("orders").window == 24 * 3600_000


async def payments(shop: Shop) -> None:
    """No charge without a key; what nobody knows the outcome of stays held; the rest is not guarded."""
    assert (await shop.post("/payments")).problem == "key-missing"
    await shop.guards("/payments", key="a")
    assert (await shop.post("/payments", key="a", body=b"another amount")).problem == "key-reused"
    shop.answers(502)
    assert (await shop.post("/payments", key="b")).label == "in-doubt"
    shop.answers(201)
    assert (await shop.post("/payments", key="b")).problem == "in-doubt"
    await shop.passes("/carts", key="c")
    assert (shop.policy("payments").window, shop.policy("payments").doubt_window) == (48 * 3600_000, 30 * 86400_000)


async def orders(shop: Shop) -> None:
    """A doubtful order may run once more, and says so to the service; "out of stock" frees the key."""
    shop.answers(409)
    assert (await shop.post("/orders", key="a")).label == "released"
    shop.answers(502)
    assert (await shop.post("/orders", key="a")).label == "in-doubt"
    shop.answers(201)
    assert (await shop.post("/orders", key="a")).label == "stored"
    assert shop.origin.requests[-1].values(b"idempotency-attempt") == [b"2"]
    await shop.guards("/carts", key="c")
    await shop.passes("/carts")


async def banking(shop: Shop) -> None:
    """Each tenant has keys of its own; a duplicate comes from the same account, for the same day."""

    def of(tenant: str, account: str = "1", day: str = "1") -> list[tuple[str, str]]:
        return [("X-Tenant-Id", tenant), ("X-Account-Id", account), ("X-Value-Date", day)]

    assert (await shop.post("/transfers", key="a")).problem == "scope-missing"
    await shop.guards("/transfers", key="a", fields=of("one"))
    await shop.guards("/transfers", key="a", fields=of("two"))
    await shop.guards("/mandates", key="a", fields=of("one"))
    assert (await shop.post("/transfers", key="a", fields=of("one", account="2"))).problem == "credentials-differ"
    assert (await shop.post("/transfers", key="a", fields=of("one", day="2"))).problem == "key-reused"
    assert (await shop.post("/transfers", fields=of("one"))).problem == "key-missing"


async def public_api(shop: Shop) -> None:
    """ "Not now" frees the key, 403 is an answer; rate limits are not replayed; another host is no route."""
    there = {"host": "api.example.com"}
    for status in (401, 429, 201):
        shop.answers(status)
        assert (await shop.post("/v1/x", key="a", **there)).label == ("stored" if status == 201 else "released")
    shop.answers(403, fields=[(b"X-RateLimit-Remaining", b"1"), (b"X-Kept", b"1")])
    first, again = [await shop.post("/v1/x", key="b", **there) for _ in range(2)]
    assert (first.get("X-RateLimit-Remaining"), again.get("X-RateLimit-Remaining")) == ("1", None)
    assert (again.status, again.replayed, again.get("X-Kept")) == (403, True, "1")
    assert (await shop.post("/v1/x", key="a")).problem == "no-route"


async def two_upstreams(shop: Shop) -> None:
    """One key at two services is two keys."""
    await shop.guards("/x", key="a", host="orders.example.com")
    await shop.guards("/x", key="a", host="billing.example.com")
    assert (await shop.post("/x", host="billing.example.com")).problem == "key-missing"


async def stripe(shop: Shop) -> None:
    """Keys of an API key; failures are replayed; two at once are told so; another account is another request."""

    def by(api_key: str, account: str = "") -> list[tuple[str, str]]:
        return [("Authorization", f"Bearer {api_key}"), *([("Charge-Account", account)] if account else [])]

    await shop.guards("/v1/charges", key="a", fields=by("sk_1"))
    await shop.guards("/v1/charges", key="a", fields=by("sk_2"))
    assert (await shop.post("/v1/charges", key="a", fields=by("sk_1", "acct"))).problem == "credentials-differ"
    shop.answers(500)
    failures = [await shop.post("/v1/charges", key="b", fields=by("sk_1")) for _ in range(2)]
    assert [(each.status, each.label) for each in failures] == [(500, "stored"), (500, "replayed")]
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.respond(200)

    shop.origin.answer = slow
    before = shop.runs
    first = asyncio.create_task(shop.post("/v1/charges", key="c", fields=by("sk_1")))
    await shop.origin.until(before + 1)
    at_once = await shop.post("/v1/charges", key="c", fields=by("sk_1"), seconds=2)
    assert (at_once.status, at_once.problem) == (409, "in-flight")
    go_on.set()
    assert (await first).label == "stored"
    await shop.passes("/v1/charges", label=None, method="GET", fields=by("sk_1"))


async def paypal(shop: Shop) -> None:
    """The API's own header names the key, in each kind of operation its own; Idempotency-Key means nothing here."""
    named = [("Checkout-Request-Id", "a")]
    await shop.guards("/v2/checkout/orders", fields=named)
    await shop.guards("/v1/payments/payouts", fields=named)
    assert shop.origin.requests[0].values(b"checkout-request-id") == [b"a"]
    await shop.passes("/v2/checkout/orders", key="a")
    assert (await shop.post("/v1/payments/payouts", key="a")).problem == "key-missing"
    assert shop.policy("payouts").window == 30 * 86400_000


async def webhooks(shop: Shop) -> None:
    """A delivery runs once after it succeeded, however often it is signed. One that failed in whatever way, or was
    lost, runs again when it comes again; and a forged one with a known id does not shut the genuine one out."""

    def delivery(key: str, signed: str) -> list[tuple[str, str]]:
        return [("webhook-id", key), ("webhook-timestamp", signed), ("webhook-signature", f"v1,{signed}")]

    def event(name: str, signed: str = "s") -> dict[str, Any]:
        return {"body": b'{"id":"%b","type":"paid"}' % name.encode(), "fields": [("Stripe-Signature", signed)]}

    assert (await shop.post("/events", body=b'{"type":"paid"}')).problem == "key-missing"
    shop.answers(500)
    assert (await shop.post("/events", **event("evt_1"))).label == "released"
    shop.answers(200)
    await shop.guards("/events", **event("evt_1"))
    assert (await shop.post("/events", **event("evt_1", "signed anew"))).label == "replayed"
    assert (await shop.post("/events", **event("evt_2"))).label == "stored"
    assert (await shop.post("/hooks/x")).problem == "key-missing"
    for status in (302, 400, 401, 403, 404, 405, 408, 410, 413, 415, 422, 429, 500, 501, 502, 503, 504, 521, 598):
        shop.answers(status)
        assert (await shop.post("/hooks/x", fields=delivery("failed", "s"))).label == "released", status
    before = shop.runs
    forged = [("webhook-id", "known"), ("webhook-signature", "forged")]
    shop.answers(403)
    assert (await shop.post("/hooks/x", body=b"forged", fields=forged)).label == "released"
    shop.answers(204, body=b"")
    for key in ("known", "failed"):
        await shop.guards("/hooks/x", fields=delivery(key, "s"))
    assert shop.runs == before + 3

    async def resets(exchange: Exchange) -> None:
        exchange.reset()

    shop.origin.answer = resets
    assert (await shop.post("/hooks/x", fields=delivery("lost", "s"))).label == "in-doubt"
    shop.answers(500)
    assert (await shop.post("/hooks/x", fields=delivery("lost", "s"))).label == "in-doubt"
    shop.answers(204, body=b"")
    assert (await shop.post("/hooks/x", fields=delivery("lost", "s"))).label == "stored"
    for status, label in ((500, "released"), (502, "released"), (204, "stored")):
        shop.answers(status, body=b"")
        assert (await shop.post("/hooks/x", fields=delivery("a", str(status)))).label == label
    before = shop.runs
    again = await shop.post("/hooks/x", fields=delivery("a", "later"))
    assert (again.status, again.label, shop.runs) == (204, "replayed", before)
    assert not shop.gate.app.tally._unfit, "the signatures are not bound"


async def double_click(shop: Shop) -> None:
    """Two clicks are one order; another cart, or another session, is another; a key in the form counts for itself."""

    def form(text: bytes, session: str = "1", seen: str = "1") -> dict[str, Any]:
        cookies = f"seen={seen}; session={session}"
        urlencoded = ("Content-Type", "application/x-www-form-urlencoded")
        return {"body": text, "fields": [urlencoded, ("Cookie", cookies)]}

    await shop.guards("/checkout", **form(b"cart=7"))
    assert (await shop.post("/checkout", **form(b"cart=7", seen="2"))).label == "replayed"
    await shop.guards("/checkout", **form(b"cart=8"))
    await shop.guards("/checkout", **form(b"cart=7", session="2"))
    await shop.guards("/checkout", **form(b"cart=7&order_key=a"))
    await shop.guards("/checkout", **form(b"cart=7&order_key=b"))
    assert (await shop.post("/checkout", **form(b"cart=9&order_key=b"))).problem == "key-reused"
    assert (await shop.post("/checkout", **form(b"cart=7&order_key=b", session="2"))).problem == "credentials-differ"
    await shop.passes("/search", label=None, **form(b"q=shoes"))
    (checkout,) = [each for each in shop.settings.routes.routes if each.name == "checkout"]
    assert (checkout.policy.window, checkout.derived.policy.window) == (86400_000, 15_000)


async def marketplace(shop: Shop) -> None:
    """A refund is one of its order and of its seller; the service is told one UUID at each try of it, and another for
    another; an event comes in the query; counters are no keys."""

    def refund(number: str, seller: str = "1") -> dict[str, Any]:
        return {"body": b'{"refund":{"number":"%b"}}' % number.encode(), "fields": [("X-Seller-Id", seller)]}

    assert (await shop.post("/orders/1/refunds", body=b'{"refund":{"number":"r-001"}}')).problem == "scope-missing"
    assert (await shop.post("/orders/1/refunds", body=b"{}", fields=[("X-Seller-Id", "1")])).problem == "key-missing"
    assert (await shop.post("/orders/1/refunds", **refund("r-1"))).problem == "key-invalid"
    shop.answers(429)
    assert (await shop.post("/orders/1/refunds", **refund("r-001"))).label == "released"
    shop.answers(201)
    await shop.guards("/orders/1/refunds", **refund("r-001"))
    await shop.guards("/orders/2/refunds", **refund("r-001"))
    await shop.guards("/orders/1/refunds", **refund("r-001", seller="2"))
    told = [request.values(b"paypal-request-id") for request in shop.origin.requests]
    assert told[0] == told[1]
    assert len({uuid for (uuid,) in told}) == 3
    event = "/callbacks/paid?event=0b7f4f0e-8f5a-4a57-9c7e-3a1d2a6f0b11"
    await shop.guards(event)
    assert (await shop.post("/callbacks/paid?event=7")).problem == "key-invalid"
    assert (await shop.post("/callbacks/paid")).problem == "key-missing"
    assert (await shop.post("/carts", key="12")).problem == "key-invalid"
    await shop.guards("/carts", key="cart-0b7f4f0e")


async def shadow(shop: Shop) -> None:
    """Refunds are guarded; everything else goes through, and is counted as what it would have been."""
    assert (await shop.post("/refunds")).problem == "key-missing"
    await shop.guards("/refunds", key="a")
    await shop.passes("/orders")
    for verdict, problem in (("forward", ""), ("replay", ""), ("refuse", "key-missing")):
        if not problem:
            assert (await shop.post("/orders", key="b")).label == "unprotected"
        labels = {"route": "everything-else", "verdict": verdict, "problem": problem}
        await eventually(lambda: shop.gate.count("oncegate_shadow_requests_total", **labels), f"{verdict} is counted")  # noqa: B023


STORIES: dict[str, Callable[[Shop], Awaitable[None]]] = {
    "minimal": minimal,
    "banking": banking,
    "double-click": double_click,
    "marketplace": marketplace,
    "orders": orders,
    "payments": payments,
    "paypal": paypal,
    "public-api": public_api,
    "shadow": shadow,
    "sidecar": sidecar,
    "stripe": stripe,
    "two-upstreams": two_upstreams,
    "webhooks": webhooks,
}


def test_every_example_has_a_story() -> None:
    """What we show is driven, all of it."""
    assert STORIES.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
async def test_an_example_does_what_it_says(name: str, redis: RedisServer, tmp_path: Path) -> None:
    """Its story, through a real gate."""
    with redis.client() as client:
        client.flushall()  # two of them have a service of the same name
    async with running(EXAMPLES[name], redis, tmp_path) as shop:
        await STORIES[name](shop)
        assert shop.gate.count("oncegate_alarms_total") == 0, shop.gate.lines

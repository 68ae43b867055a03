"""What a scrape says after each kind of thing has happened, once, to a real gate.

The metrics, as the design names them:

    oncegate_requests_total{route,verdict}
    oncegate_duplicates_total{route,kind}
    oncegate_settlements_total{route,settlement,reason}
    oncegate_upstream_seconds{route}
    oncegate_overhead_seconds{route,verdict}
    oncegate_store_seconds{operation}
    oncegate_store_errors_total{operation}
    oncegate_store_forgot_total
    oncegate_in_flight{route}
    oncegate_waiters{route}
    oncegate_doubts_total{route,reason}
    oncegate_unprotected_total{route,reason}
    oncegate_duplicate_age_seconds{route}
    oncegate_record_bytes{route}
"""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.decide import Reason
from gateway.core.keyform import Weakness
from gateway.core.record import Kind
from gateway.ports import DuplicateKind, VerdictName
from tests.e2e.crowd import callers, eventually
from tests.harness import Client, Exchange, Origin, Response, RunningGate, ask, configuration, gate, request
from tests.servers import RedisServer, free_port, preferred

assert __doc__ is not None
NAMED = {
    name: set(filter(None, labels.split(","))) for name, labels in re.findall(r"(oncegate_\w+)(?:\{(.*)\})?", __doc__)
}
#: Ours besides: what the gate answered by itself, and how often a person should look.
BESIDES = {
    "oncegate_problems_total": {"route", "problem"},
    "oncegate_alarms_total": set(),
    "oncegate_weak_keys_total": {"route", "kind"},
    "oncegate_limits_total": {"limit"},
    "oncegate_store_finding": {"name"},
    "oncegate_unfit_credentials_total": {"route", "credential"},
    "oncegate_shadow_requests_total": {"route", "verdict", "problem"},
    "oncegate_shadow_duplicates_total": {"route", "kind"},
    "oncegate_shadow_settlements_total": {"route", "settlement", "reason"},
}


class Scrape:
    """What one GET /metrics said."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert name not in self.families, f"{name} is there twice"
            self.families[name] = family

    def values(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The samples of a counter or gauge, or the counts of a histogram, by their labels. Those that are 0 are left
        out if there are labels: `label_sets` has them."""
        family = self.families[name]
        wanted = name if family.type in ("counter", "gauge") else f"{name}_count"
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for sample in family.samples
            if sample.name == wanted and (sample.value or not labels)
        }

    def label_sets(self, name: str) -> set[tuple[str, ...]]:
        """The values of the labels of each sample, in the order of the labels' names, also of those that are 0."""
        family = self.families[name]
        wanted = name if family.type in ("counter", "gauge") else f"{name}_count"
        return {
            tuple(value for _, value in sorted(sample.labels.items()))
            for sample in family.samples
            if sample.name == wanted
        }


async def scrape(running: RunningGate) -> Scrape:
    answer = await ask(running.admin_port, "GET", "/metrics", body=b"")
    assert answer.status == 200
    return Scrape(answer.body.decode())


# ── An origin that answers in every way ───────────────────────────────────────────────────────────


class Origins(Origin):
    """Answers as the last segment of the path says."""

    def __init__(self) -> None:
        super().__init__(self.by_path)
        self.released = asyncio.Event()

    async def by_path(self, exchange: Exchange) -> None:
        match exchange.request.target.rpartition(b"/")[2]:
            case b"held":
                await self.released.wait()
                await exchange.respond()
            case b"never":
                await exchange.reader.read()
            case b"large":
                await exchange.respond(201, b"x" * 2000)
            case b"stream":
                await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
                await exchange.send(b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n0\r\n\r\n")
            case b"until-close":
                await exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
                exchange.close()
            case b"keep":
                await exchange.respond(503, b"", [(b"Idempotency-Outcome", b"keep"), (b"Retry-After", b"1")])
            case b"no-effect":
                await exchange.respond(500, b"", [(b"Idempotency-Outcome", b"no-effect")])
            case b"unknown":
                await exchange.respond(200, b"", [(b"Idempotency-Outcome", b"unknown")])
            case b"429":
                await exchange.respond(429, b"")
            case b"502":
                await exchange.respond(502, b"")
            case b"reset":
                exchange.reset()
            case _:
                await exchange.respond()


@pytest.fixture
async def origin() -> AsyncIterator[Origins]:
    origin = Origins()
    await origin.start()
    yield origin
    origin.released.set()
    await origin.stop()


def text(origin: Origin, store: str = "memory://", policy: str = "max_response: 1KiB") -> str:
    return configuration(
        origin.url,
        store=store,
        policy=policy,
        routes="""
  - {name: impatient, match: {path: /impatient/**}, upstream: origin, wait: 0s}
  - {name: hasty, match: {path: /hasty/**}, upstream: hasty}
  - {name: nowhere, match: {path: /nowhere/**}, upstream: nowhere}
""",
    ).replace(
        "upstreams:\n",
        f"upstreams:\n  hasty: {{url: {origin.url}, timeout: 100ms, late: 0s}}\n"
        f"  nowhere: http://127.0.0.1:{free_port()}\n",
    )


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────


async def test_the_names_are_those_of_the_design(origin: Origins) -> None:
    """GET /metrics of a gate to which nothing has happened → every metric of the design, typed and described, and no
    other but ours."""
    async with gate(text(origin)) as running:
        found = (await scrape(running)).families
    assert len(NAMED) == 14
    assert found.keys() == NAMED.keys() | BESIDES.keys()
    for name, family in found.items():
        assert family.documentation, name
        wanted = (
            "counter" if name.endswith("_total") else "histogram" if name.endswith(("_seconds", "_bytes")) else "gauge"
        )
        assert family.type == wanted, name


# ── Values ────────────────────────────────────────────────────────────────────────────────────────


async def test_each_thing_is_counted_once(origin: Origins) -> None:
    """One of each way to settle a claim and of each way to catch a duplicate; then the scrape says just these, under
    the labels of the design, and every kind and reason that can be had here is among them."""
    async with gate(text(origin)) as running:
        at_start = await scrape(running)

        async def post(path: str, key: str | None = None, **how: object) -> Response:
            return await ask(running.port, target=path, key=key or path, **how)  # type: ignore[arg-type]

        # Every settlement, each by a first request.
        assert (await post("/plain")).label == "stored"
        assert (await post("/keep")).label == "stored"
        assert (await post("/large")).label == "not-kept"
        assert (await post("/stream")).label == "not-kept"
        with closing(await Client.connect(running.port)) as client:
            await client.send(request(target="/until-close", key="/until-close", body=b'{"amount":1}'))
            assert (await client.read()).label == "not-kept"
        assert (await post("/429")).label == "released"
        assert (await post("/no-effect")).label == "released"
        assert (await post("/nowhere")).problem == "upstream-unreachable"
        assert (await post("/502")).label == "in-doubt"
        assert (await post("/unknown")).label == "in-doubt"
        assert (await post("/reset")).problem == "upstream-lost"
        assert (await post("/hasty/never")).problem == "upstream-timeout"

        # Every kind of duplicate.
        assert (await post("/plain")).label == "replayed"
        assert (await post("/plain", body=b"other")).problem == "key-reused"
        assert (await post("/plain", fields=[("Authorization", "Bearer other")])).problem == "credentials-differ"
        assert (await post("/reset")).problem == "in-doubt"
        assert (await post("/large")).problem == "response-not-kept"
        async with callers(4, running.port) as (first, *others), callers(2, running.port) as (lead, impatient):
            data = request(target="/held", key="/held")
            leading = first.send(data)
            await origin.until(12)  # all of the above but /nowhere
            following = [other.send(data) for other in others]
            data = request(target="/impatient/held", key="/impatient/held")
            ahead = lead.send(data)
            await origin.until(13)
            assert (await impatient.send(data)).problem == "in-flight"
            await eventually(lambda: scrape(running), lambda seen: ("all",) in seen.values("oncegate_waiters", "route"))
            now = await eventually(
                lambda: scrape(running), lambda seen: seen.values("oncegate_waiters", "route") == {("all",): 3}
            )
            assert now.values("oncegate_in_flight", "route") == {("all",): 1, ("impatient",): 1}
            origin.released.set()
            assert [(await answer).label for answer in (leading, ahead)] == ["stored", "stored"]
            assert [(await answer).label for answer in following] == ["replayed"] * 3

        # What nothing protects, and what the gate refuses by itself.
        for target, key in (("/open/x", None), ("/open/x", "k"), ("/plain", None)):
            assert (await ask(running.port, target=target, key=key)).status == 201
        assert (await ask(running.port, "GET", "/plain", key="k", body=b"")).status == 201
        assert (await ask(running.port, target="/plain", key="not a key")).problem == "key-invalid"

        seen = await scrape(running)

    assert seen.values("oncegate_settlements_total", "route", "settlement", "reason") == {
        ("all", "keep", "answered"): 2, ("all", "keep", "declared"): 1, ("all", "keep", "over_limit"): 1,
        ("all", "keep", "stream"): 1, ("all", "keep", "until_close"): 1, ("all", "release", "status"): 1,
        ("all", "release", "declared"): 1, ("nowhere", "release", "unreachable"): 1, ("all", "hold", "status"): 1,
        ("all", "hold", "declared"): 1, ("all", "hold", "lost"): 1, ("hasty", "hold", "timeout"): 1,
        ("impatient", "keep", "answered"): 1,
    }  # fmt: skip
    assert seen.values("oncegate_doubts_total", "route", "reason") == {
        ("all", "status"): 1, ("all", "declared"): 1, ("all", "lost"): 1, ("hasty", "timeout"): 1,
    }  # fmt: skip
    duplicates = {
        ("all", "replayed"): 1, ("all", "attached"): 3, ("all", "key_reused"): 1, ("all", "credentials_differ"): 1,
        ("all", "in_doubt"): 1, ("all", "not_kept"): 1, ("impatient", "in_flight"): 1,
    }  # fmt: skip
    assert seen.values("oncegate_duplicates_total", "route", "kind") == duplicates
    assert {kind for _, kind in duplicates} == set(DuplicateKind)
    assert seen.values("oncegate_requests_total", "route", "verdict") == {
        ("all", "forward"): 11, ("hasty", "forward"): 1, ("nowhere", "forward"): 1, ("impatient", "forward"): 1,
        ("all", "replay"): 1, ("all", "refuse"): 5, ("all", "wait"): 3, ("impatient", "wait"): 1,
        ("open", "pass"): 2, ("all", "pass"): 2,
    }  # fmt: skip
    assert {verdict for _, verdict in seen.values("oncegate_requests_total", "route", "verdict")} == set(VerdictName)
    assert seen.values("oncegate_unprotected_total", "route", "reason") == {
        ("open", "key_on_unguarded_route"): 1, ("all", "no_key"): 1,
    }  # fmt: skip
    assert seen.values("oncegate_upstream_seconds", "route") == {
        ("all",): 11, ("hasty",): 1, ("nowhere",): 1, ("impatient",): 1,
    }  # fmt: skip
    assert seen.values("oncegate_record_bytes", "route") == {("all",): 6, ("impatient",): 1}
    by_route: Counter[tuple[str, ...]] = Counter()
    for (route, _), count in duplicates.items():
        by_route[route,] += count
    assert seen.values("oncegate_duplicate_age_seconds", "route") == by_route
    assert seen.values("oncegate_overhead_seconds", "route", "verdict") == {
        labels: count
        for labels, count in seen.values("oncegate_requests_total", "route", "verdict").items()
        if labels[1] in ("forward", "replay", "refuse")
    }
    # Fourteen first requests and five duplicates of finished ones asked; those that attached did not.
    assert seen.values("oncegate_store_seconds", "operation") == {("claim",): 19, ("settle",): 14}
    assert seen.values("oncegate_store_errors_total", "operation") == {}
    assert seen.values("oncegate_store_forgot_total") == {(): 0}
    assert seen.values("oncegate_alarms_total") == {(): 0}
    assert seen.values("oncegate_in_flight", "route") == seen.values("oncegate_waiters", "route") == {}
    settled = seen.values("oncegate_settlements_total", "settlement", "reason")
    assert {settlement for settlement, _ in settled} == {kind.value for kind in Kind}
    # No free connection, too late to send, and stopped are the edge's and the exchange's own tests.
    assert {reason.value for reason in Reason} - {reason for _, reason in settled} == {
        "no_connection", "too_late", "stopped",
    }  # fmt: skip
    for name, family in seen.families.items():
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == (NAMED | BESIDES)[name], sample
        assert seen.label_sets(name) == at_start.label_sets(name), f"{name}: each series is there from the start"


SHOPS = """
  - {name: strict, match: {path: /strict/**}, upstream: origin, missing: refuse, scope: [header:X-Shop]}
  - {name: lenient, match: {path: /lenient/**, methods: [POST]}, upstream: origin, store_down: forward}
  - {name: only-post, match: {path: /only-post/**, methods: [POST]}, upstream: origin, missing: refuse}
  - {name: dim, match: {path: /dim/**}, upstream: origin, mode: shadow}
"""


async def test_each_label_set_is_there_at_0_before_its_first_event(origin: Origins) -> None:
    """A scrape of a gateway that had no request has each label set that each route's policy can produce, all at 0, and
    none that it cannot produce."""
    async with gate(configuration(origin.url, routes=SHOPS)) as running:
        seen = await scrape(running)
    assert {sample.value for family in seen.families.values() for sample in family.samples} == {0.0}

    def of(name: str, route: str) -> set[tuple[str, ...]]:
        """The other labels of this route's samples, in the order of their names."""
        at = sorted((NAMED | BESIDES)[name]).index("route")
        return {each[:at] + each[at + 1 :] for each in seen.label_sets(name) if each[at] == route}

    guarded, passing = {"strict", "lenient", "only-post", "all"}, {"open", "dim"}
    kinds = {(kind.value,) for kind in DuplicateKind}
    for route in guarded:
        assert of("oncegate_requests_total", route) == {(verdict.value,) for verdict in VerdictName}
        assert of("oncegate_duplicates_total", route) == kinds
        assert of("oncegate_doubts_total", route) == {
            (reason,) for reason in ("status", "declared", "lost", "timeout", "stopped")
        }
        assert {reason for reason, _ in of("oncegate_settlements_total", route)} == {reason.value for reason in Reason}
        assert of("oncegate_weak_keys_total", route) == {(weakness.value,) for weakness in Weakness}
        assert ("Digest",) in of("oncegate_unfit_credentials_total", route)
        assert of("oncegate_overhead_seconds", route) == {("forward",), ("replay",), ("refuse",)}
        assert {("in-doubt",), ("store-unavailable",), ("key-reused",)} < of("oncegate_problems_total", route)
    for route in passing:
        assert of("oncegate_requests_total", route) == {("pass",), ("refuse",)}
        assert not of("oncegate_duplicates_total", route) | of("oncegate_settlements_total", route)
        assert ("in-doubt",) not in of("oncegate_problems_total", route)
    assert {route: of("oncegate_unprotected_total", route) for route in guarded | passing} == {
        "strict": {("no_key",)},  # a PUT or DELETE without a key
        "lenient": {("no_key",), ("store_down",)},
        "only-post": set(),
        "all": {("no_key",)},
        "open": {("key_on_unguarded_route",)},
        "dim": {("no_key",), ("shadow",)},
    }
    assert ("key-missing",) in of("oncegate_problems_total", "strict") - of("oncegate_problems_total", "all")
    assert ("scope-missing",) in of("oncegate_problems_total", "strict") - of("oncegate_problems_total", "only-post")
    assert ("method-not-allowed",) in of("oncegate_problems_total", "open") & of("oncegate_problems_total", "strict")
    unrouted = {("no-route",), ("expectation-failed",), ("method-unsupported",)}
    assert of("oncegate_problems_total", "-") >= {*unrouted, ("request-malformed",)}
    assert not unrouted & (of("oncegate_problems_total", "open") | of("oncegate_problems_total", "strict"))
    assert of("oncegate_shadow_duplicates_total", "dim") == kinds
    assert of("oncegate_shadow_settlements_total", "dim") == of("oncegate_settlements_total", "all")
    assert of("oncegate_shadow_requests_total", "dim") >= {("", "forward"), ("", "replay"), ("key-reused", "refuse")}
    for route in guarded | passing - {"dim"}:
        assert not of("oncegate_shadow_requests_total", route)
    operations = {("claim",), ("settle",), ("takeover",), ("look",)}
    assert seen.label_sets("oncegate_store_errors_total") == operations
    assert seen.label_sets("oncegate_store_seconds") == operations
    for gauge in ("oncegate_in_flight", "oncegate_waiters"):
        assert seen.label_sets(gauge) == {(route,) for route in guarded}


async def test_a_scrape_does_not_explode(origin: Origins) -> None:
    """The number of series per route is what docs/metrics.md says: about 155 for a guarded route, 60 in shadow, 10 for
    an unguarded one, and 100 for the gateway itself."""
    async with gate(configuration(origin.url, routes=SHOPS)) as running:
        seen = await scrape(running)
    series = Counter(sample.labels.get("route", "") for family in seen.families.values() for sample in family.samples)
    histograms = sum(
        sample.labels.get("route") == "all"
        for family in seen.families.values()
        for sample in family.samples
        if family.type == "histogram"
    )
    gateway = series[""] + series["-"]
    assert (series["all"] <= 165, histograms <= 95, series["dim"] <= 65, series["open"] <= 12, gateway <= 120) == (
        (True,) * 5
    ), (series, histograms)


async def test_a_scrape_of_many_routes_stops_no_request(origin: Origins) -> None:
    """500 routes, which take some seconds to render: the loop on which requests are served turns meanwhile."""
    routes = "\n".join(f"  - {{name: r{n}, match: {{path: /r{n}}}, upstream: origin}}" for n in range(500))
    async with gate(configuration(origin.url, routes=routes)) as running:
        loop = asyncio.get_running_loop()
        url = f"http://127.0.0.1:{running.admin_port}/metrics"
        scraping = asyncio.create_task(asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read()))
        began = last = loop.time()
        longest = 0.0
        while not scraping.done():
            await asyncio.sleep(0.001)
            now = loop.time()
            longest, last = max(longest, now - last), now
    assert len((await scraping).splitlines()) > 500 * 100
    assert longest < (last - began) / 2, (longest, last - began)


async def test_durations_and_sizes_are_what_they_say(origin: Origins) -> None:
    """An upstream that takes 100 ms: upstream_seconds has them, overhead_seconds has not; record_bytes is the size
    of head and body that were kept; every histogram's buckets run up to its count."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.1)
        await exchange.respond(201, b"b" * 1000, [(b"X-Padding", b"p" * 100)])

    origin.answer = slow
    async with gate(text(origin)) as running:
        await ask(running.port, key="k1")
        await ask(running.port, key="k1")
        seen = await scrape(running)

    def total(name: str, **labels: str) -> float:
        (value,) = [
            sample.value
            for sample in seen.families[name].samples
            if sample.name == f"{name}_sum" and sample.labels.items() >= labels.items()
        ]
        return value

    assert 0.09 <= total("oncegate_upstream_seconds", route="all") < 1  # a timer may be a hair early
    assert 0 < total("oncegate_overhead_seconds", route="all", verdict="forward") < 0.1
    assert 0 < total("oncegate_overhead_seconds", route="all", verdict="replay") < 0.1
    assert 0 <= total("oncegate_duplicate_age_seconds", route="all") < 5
    assert total("oncegate_record_bytes", route="all") == 1000 + len(b"X-Padding: \r\n") + 100
    for name, family in seen.families.items():
        if family.type == "histogram":
            by_labels: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
                    by_labels.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
            for labels, buckets in by_labels.items():
                assert buckets == sorted(buckets), (name, labels)
                counts = [count for _, count in buckets]
                assert counts == sorted(counts)
                assert counts[-1] in (0, *seen.values(name, *sorted(NAMED[name])).values())


async def test_a_store_that_forgets_and_a_store_that_is_away(origin: Origins) -> None:
    """FLUSHALL while a request is in flight: store_forgot_total says 1, and an alarm. Redis is killed: the claim that
    failed is in store_errors_total, once for each try, and not in store_seconds."""
    server = RedisServer(preferred()).start()
    try:
        async with (
            gate(text(origin, store=server.url, policy="store_wait: 0s")) as running,
            callers(1, running.port) as (caller,),
        ):
            answering = caller.send(request(target="/held", key="k1"))
            await origin.until(1)
            with server.client() as client:
                client.flushall()
            origin.released.set()
            assert (await answering).label == "stored"
            seen = await scrape(running)
            assert seen.values("oncegate_store_forgot_total") == {(): 1}
            assert seen.values("oncegate_alarms_total") == {(): 1}
            assert seen.values("oncegate_store_seconds", "operation") == {("claim",): 1, ("settle",): 1}
            assert (await ask(running.port, target="/held", key="k1", body=b"")).label == "replayed"
            server.kill()
            assert (await caller.send(request(target="/held", key="k2"))).problem == "store-unavailable"
            seen = await scrape(running)
            assert seen.values("oncegate_store_errors_total", "operation") == {("claim",): 1}
            assert seen.values("oncegate_store_seconds", "operation") == {("claim",): 2, ("settle",): 1}
            assert seen.values("oncegate_problems_total", "route", "problem") == {("all", "store-unavailable"): 1}
    finally:
        server.close()


async def test_a_refusal_for_want_of_a_store_is_no_pass(origin: Origins) -> None:
    """The store is away: the guarded request that is answered 503 counts as refused, not as passed."""
    store = f"redis://127.0.0.1:{free_port()}/0"
    async with gate(text(origin, store=store, policy="store_wait: 0s")) as running:
        assert (await ask(running.port, key="k1")).problem == "store-unavailable"
        assert (await scrape(running)).values("oncegate_requests_total", "route", "verdict") == {("all", "refuse"): 1}


async def test_a_takeover_and_a_look_at_the_store_are_told_apart(origin: Origins) -> None:
    """Under `rerun` a duplicate of a lost request takes the key over (operation takeover, a second forward); another
    gate's duplicate watches the first (operation look)."""
    server = RedisServer(preferred()).start()
    try:
        rerun = text(origin, store=server.url, policy="on_doubt: rerun")
        async with (
            gate(rerun) as one,
            gate(text(origin, store=server.url)) as other,
            callers(2, one.port, other.port) as (first, second),
        ):
            assert (await ask(one.port, target="/reset", key="k1")).problem == "upstream-lost"
            assert (await ask(one.port, target="/reset", key="k1")).problem == "upstream-lost"
            seen = await scrape(one)
            assert seen.values("oncegate_store_seconds", "operation") == {
                ("claim",): 2, ("takeover",): 1, ("settle",): 2,
            }  # fmt: skip
            assert seen.values("oncegate_requests_total", "verdict") == {("forward",): 2}
            assert seen.values("oncegate_doubts_total", "reason") == {("lost",): 2}
            assert seen.values("oncegate_duplicates_total", "kind") == {}

            data = request(target="/held", key="k2")
            leading = first.send(data)
            await origin.until(3)
            watching = second.send(data)
            await eventually(
                lambda: scrape(other), lambda seen: ("look",) in seen.values("oncegate_store_seconds", "operation")
            )
            origin.released.set()
            assert [(await leading).label, (await watching).label] == ["stored", "replayed"]
            assert (await scrape(other)).values("oncegate_duplicates_total", "kind") == {("attached",): 1}
    finally:
        server.close()

"""Who is let in to the admin listener, through aiohttp's own client."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import schemathesis
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.ops.admin import Audit, Gatekeeper, LocalDesk, Names, Readiness, Recent, Room, admin_app
from gateway.ops.admin.openapi import document
from gateway.ops.metrics import Tally
from gateway.settings import load_text
from gateway.settings.shown import shown
from gateway.stores.memory import MemoryStore
from tests.harness import ask, configuration, gate
from tests.stores.worlds import FakeClock, a_claim, a_holder

TOKEN = "an-operators-token-0123456789"
OPEN = ("/live", "/ready", "/ready/guarded", "/metrics")
CLOSED = ("/keys", "/config", "/openapi.json", "/keys/" + "n" * 43, "/nowhere")
Serve = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]


def the_app(gatekeeper: Gatekeeper, audit: Path | None = None, store: AwaitableStore | None = None) -> web.Application:
    clock = FakeClock()
    store = store or AwaitableStore(MemoryStore(clock))
    text = configuration("http://127.0.0.1:9").replace("service:", "secret: SECRET-OF-NAMES\nservice:")
    written = load_text(text, name="", environ={})
    room = Room(
        LocalDesk(store, clock, a_holder, Recent(clock)),
        lambda: Names(b"test", written.routes.routes),
        Audit(None if audit is None else str(audit), clock, lambda *said, **facts: None),
        lambda: shown(written),
    )
    return admin_app(Readiness(store, started=True), Tally(), room.add, gatekeeper)


async def test_a_token_is_asked_for_everywhere_but_where_probes_look(aiohttp_client: Serve) -> None:
    """Without it 401 and WWW-Authenticate, whether or not the path is there; with another one the same; with it, in."""
    client = await aiohttp_client(the_app(Gatekeeper(TOKEN.encode(), loopback=False)))
    for path in OPEN:
        assert (await client.get(path)).status == 200
    for without in ({}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "Bearer"}):
        for path in CLOSED:
            answer = await client.get(path, headers=without)
            assert (answer.status, answer.content_type) == (401, "application/problem+json")
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="oncegate"'
    for wrong in (TOKEN[:-1], TOKEN + "0", "é" * 29, TOKEN.upper()):
        answer = await client.get("/keys", headers={"Authorization": f"Bearer {wrong}"})
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="oncegate", error="invalid_token"'
        assert TOKEN not in await answer.text()
    for scheme in ("Bearer", "bearer"):
        assert (await client.get("/keys", headers={"Authorization": f"{scheme} {TOKEN}"})).status == 200
    assert (await client.post("/store/accept")).status == 401


async def test_elsewhere_without_a_token_operators_are_refused(aiohttp_client: Serve) -> None:
    """Not on the loopback, no token: probes and metrics; all else is 403 and says what to set."""
    client = await aiohttp_client(the_app(Gatekeeper(loopback=False)))
    for path in OPEN:
        assert (await client.get(path)).status == 200
    for path in CLOSED:
        answer = await client.get(path)
        assert answer.status == 403
        assert "admin.token" in (await answer.json(content_type=None))["detail"]


async def test_a_page_in_a_browser_is_refused(aiohttp_client: Serve) -> None:
    """On the loopback without a token: another origin's form, and a name that was bent to our address, are 403; so is
    an origin where there is a token. This host's own pages and command lines come in."""
    client = await aiohttp_client(the_app(Gatekeeper()))
    here = {"Host": f"127.0.0.1:{client.port}"}
    assert (await client.get("/keys", headers=here)).status == 200
    assert (await client.get("/keys", headers={"Host": "localhost"})).status == 200
    assert (await client.get("/keys", headers={**here, "Origin": f"http://127.0.0.1:{client.port}"})).status == 200
    for headers in ({"Host": "evil.example"}, {**here, "Origin": "http://evil.example"}, {**here, "Origin": "null"}):
        for method, path in (("GET", "/keys"), ("POST", "/store/accept")):
            assert (await client.request(method, path, headers=headers)).status == 403, headers
    assert (await client.get("/live", headers={"Host": "evil.example"})).status == 200
    client = await aiohttp_client(the_app(Gatekeeper(TOKEN.encode())))
    token = {"Authorization": f"Bearer {TOKEN}"}
    assert (await client.get("/keys", headers={**token, "Host": "gate.internal"})).status == 200
    assert (await client.get("/keys", headers={**token, "Origin": "http://evil.example"})).status == 403


async def test_a_gate_goes_by_its_file(tmp_path: Path) -> None:
    """`token_file` is asked for by a running gate, and its settings are shown without it."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    text = configuration("http://127.0.0.1:9").replace("admin: {", f"admin: {{token_file: {tmp_path}/token, ")
    async with gate(text) as running:
        assert (await ask(running.admin_port, "GET", "/config", body=b"", host="127.0.0.1")).status == 401
        fields = [("Authorization", f"Bearer {TOKEN}")]
        answer = await ask(running.admin_port, "GET", "/config", body=b"", fields=fields)
    assert answer.status == 200
    assert TOKEN.encode() not in answer.body
    told = json.loads(answer.body)
    assert (told["admin_token"], told["secret"], told["service"]) == ("…", None, "test")
    assert told["routes"][1]["policy"]["window"] == "1d"


async def test_the_settings_are_shown_without_secrets(aiohttp_client: Serve) -> None:
    """GET /config has every route and limit, and neither the secret nor the store's password."""
    client = await aiohttp_client(the_app(Gatekeeper()))
    text = await (await client.get("/config")).text()
    assert "SECRET-OF-NAMES" not in text
    assert json.loads(text)["secret"] == "…"
    written = configuration("http://127.0.0.1:9", store="redis://user:PASSWORD@127.0.0.1:1/0")
    assert "PASSWORD" not in json.dumps(shown(load_text(written, name="", environ={})))


async def test_an_audit_log_that_cannot_be_written_stops_the_change(aiohttp_client: Serve, tmp_path: Path) -> None:
    """Its folder is away → 503, and the record stands; it is there again → the change is made, both lines on the disk
    before the answer, in a file that only its owner reads."""
    store, claim, name = AwaitableStore(MemoryStore(FakeClock())), a_claim(), "n" * 43
    await store.claim(name.encode(), claim)
    await store.settle(name.encode(), records.hold(claim, doubt=records.Doubt.LOST, status=0, wall=0))
    audit = tmp_path / "later" / "audit.jsonl"
    client = await aiohttp_client(the_app(Gatekeeper(), audit, store))
    record = (await (await client.get(f"/keys/{name}")).json())["record"]
    asked = {"as": "released", "reason": "why", "version": record["version"]}
    answer = await client.post(f"/keys/{name}/resolve", json=asked)
    assert (answer.status, (await answer.json(content_type=None))["type"]) == (503, "urn:oncegate:problem:audit-failed")
    assert await store.get(name.encode()) is not None
    audit.parent.mkdir()
    assert (await client.post(f"/keys/{name}/resolve", json=asked)).status == 200
    assert [json.loads(line)["event"] for line in audit.read_text().splitlines()] == ["asked", "ended"]
    assert audit.stat().st_mode & 0o777 == 0o600


async def test_the_change_is_written_down_before_it_is_made(aiohttp_client: Serve, tmp_path: Path) -> None:
    """When the store is asked, the audit log has `asked` and no end: that is what a gate that dies here leaves."""
    store, claim, name = AwaitableStore(MemoryStore(FakeClock())), a_claim(), "n" * 43
    await store.claim(name.encode(), claim)
    seen: list[str] = []
    audit = tmp_path / "audit.jsonl"

    async def noted(*_: object) -> records.Done:
        seen.append(audit.read_text())
        return records.Done.WON

    client = await aiohttp_client(the_app(Gatekeeper(), audit, store))
    record = (await (await client.get(f"/keys/{name}")).json())["record"]
    store.compare_and_swap = noted  # type: ignore[method-assign]
    asked = {"reason": "why", "version": record["version"], "force": True}
    assert (await client.post(f"/keys/{name}/forget", json=asked)).status == 200
    assert [json.loads(line)["event"] for line in seen[0].splitlines()] == ["asked"]


@pytest.fixture
def served() -> Iterator[int]:
    """The port of a listener in a thread of its own, over twenty records."""
    ready, port = threading.Event(), 0
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        nonlocal port
        store = AwaitableStore(MemoryStore(FakeClock()))
        for number in range(20):
            claim, name = a_claim(), b"%043d" % number
            await store.claim(name, claim)
            if number % 2:
                await store.settle(name, records.hold(claim, doubt=records.Doubt.LOST, status=0, wall=0))
        runner = web.AppRunner(the_app(Gatekeeper(), None, store))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        stop = asyncio.Event()
        loop.call_soon(ready.set)
        ends.append(stop.set)
        await stop.wait()
        await runner.cleanup()

    ends: list[Callable[[], None]] = []
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield port
    loop.call_soon_threadsafe(ends[0])
    thread.join(10)
    loop.close()


CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection, unsupported_method,
]  # fmt: skip


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_the_listener_does_what_its_document_says(served: int, mode: GenerationMode) -> None:
    """schemathesis asks what the OpenAPI document allows, and what it forbids: every answer has a status, type and
    form that the document names, what it forbids is refused, and nothing is a 500."""
    answers: Counter[int] = Counter()
    for result in schemathesis.openapi.from_dict(document()).get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.path in ("/config", "/openapi.json"):
            continue  # it takes nothing, so nothing is forbidden

        @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
        @given(case=operation.as_strategy(generation_mode=mode))
        def play(case: schemathesis.Case) -> None:
            answer = case.call_and_validate(base_url=f"http://127.0.0.1:{served}", checks=CHECKS)
            answers[answer.status_code] += 1

        play()
    assert answers[422 if mode is GenerationMode.NEGATIVE else 200] > 10, answers

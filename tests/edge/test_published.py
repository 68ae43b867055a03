"""`/.well-known/idempotency`: what holds for each route, for whoever may ask."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.edge.stand import edge
from tests.harness import Client, Origin, Response, ask, configuration, request

WELL_KNOWN = "/.well-known/idempotency"
ROUTES = """
  - {name: Secret-Project, match: {path: /pay/**, methods: [POST]}, upstream: origin, window: 48h, missing: refuse,
     namespace: hidden-namespace, scope: [header:X-Tenant], fingerprint: {headers: [X-Currency]}, max_request: 1MiB,
     max_response: 64KiB, wait: 5s, on_doubt: rerun, keep: [404], release: [409], keep_headers: [ETag]}
  - {name: hooks, match: {path: /hooks}, upstream: origin, keep_only: [200, 201, 204]}
  - {name: shadowy, match: {path: /new/**}, upstream: origin, mode: shadow}
  - {name: partner, match: {path: /partner/**, host: partner.example}, upstream: origin}
"""


async def look(port: int, method: str = "GET", target: str = WELL_KNOWN, **how: Any) -> Response:
    return await ask(port, method, target, body=b"", **how)


async def document(port: int, **how: Any) -> dict[str, Any]:
    response = await look(port, **how)
    assert response.status == 200
    assert response.get("Content-Type") == "application/json"
    told: dict[str, Any] = json.loads(response.body)
    return told


async def test_it_says_what_the_configuration_says(origin: Origin) -> None:
    """Each guarded route with where the key goes, its window, what is kept, what a conflict looks like."""
    async with edge(configuration(origin.url, routes=ROUTES, service="internal-service")) as gate:
        told = await document(gate.port)
    pay, hooks, new, opened, everything = told["routes"]
    assert (pay["path"], pay["methods"], pay["guarded"]) == ("/pay/**", ["POST"], True)
    assert pay["key"]["in"] == ["header:Idempotency-Key", "header:X-Idempotency-Key"]
    assert (pay["key"]["required"], pay["key"]["max_length"]) == (True, 255)
    assert pay["scope"] == ["header:X-Tenant"]
    assert pay["same_request"]["parts"][-2:] == ["body", "X-Currency"]
    assert pay["same_request"]["credentials"] == ["header:Authorization", "header:X-API-Key", "header:Api-Key"]
    assert pay["same_request"]["otherwise"][0] == {"status": 422, "type": "urn:oncegate:problem:key-reused"}
    assert (pay["window_seconds"], pay["in_doubt"]["remembered_seconds"]) == (48 * 3600, 7 * 86400)
    assert (pay["kept"]["max_body_bytes"], pay["same_request"]["max_body_bytes"]) == (64 << 10, 1 << 20)
    assert pay["kept"]["only_fields"] == ["Content-Encoding", "ETag"]
    assert pay["in_flight"]["wait_seconds"] == 5
    assert (pay["in_doubt"]["then"], pay["in_doubt"]["max_attempts"]) == ("run again", 2)
    assert 409 in pay["statuses"]["key_is_free_again"]
    assert 502 in pay["statuses"]["outcome_is_unknown"]
    assert pay["statuses"]["600_to_999"] == "outcome_is_unknown"
    assert (pay["statuses"]["only_kept"], hooks["statuses"]["only_kept"]) == (None, [200, 201, 204])
    assert {*range(200, 600)} - set(hooks["statuses"]["key_is_free_again"]) == {200, 201, 204}
    assert hooks["statuses"]["outcome_is_unknown"] == []
    assert hooks["statuses"]["503_with_retry_after"] == hooks["statuses"]["600_to_999"] == "key_is_free_again"
    assert (new, opened) == (
        {"path": "/new/**", "methods": None, "guarded": False},
        {"path": "/open/**", "methods": None, "guarded": False},
    )
    assert (everything["path"], everything["key"]["required"]) == ("/**", False)
    assert everything["in_doubt"]["then"] == {"status": 409, "type": "urn:oncegate:problem:in-doubt"}
    assert not origin.requests, "the service is not asked"


async def test_it_names_nothing_behind_the_gate(origin: Origin) -> None:
    """No name of a route, upstream, namespace or service, no address, no store, no secret."""
    text = configuration(origin.url, routes=ROUTES, service="internal-service", top="secret: sesame")
    async with edge(text) as gate:
        told = (await look(gate.port, host="partner.example")).body.decode()
        addresses = [f":{origin.port}", f":{gate.running.admin_port}", "127.0.0.1"]
    for word in ("Secret-Project", "shadowy", "hidden-namespace", "internal-service", "origin", "memory", "sesame",
                 *addresses):  # fmt: skip
        assert word not in told, word


async def test_a_host_is_told_of_its_own_routes(origin: Origin) -> None:
    """Another host's routes are nobody else's business; the tags differ, and so do the bytes."""
    async with edge(configuration(origin.url, routes=ROUTES)) as gate:
        mine = await look(gate.port, host="Partner.Example:8080")
        theirs = await look(gate.port, host="elsewhere.example")
    assert b"/partner/**" in mine.body
    assert b"partner" not in theirs.body
    assert mine.get("ETag") != theirs.get("ETag")


async def test_a_client_that_has_it_is_told_so(origin: Origin) -> None:
    """If-None-Match with its tag, weak or among others, or `*`: 304 without a body; another tag: the document."""
    async with edge(configuration(origin.url)) as gate:
        first = await look(gate.port)
        tag = first.get("ETag")
        assert tag is not None
        assert tag.startswith('"')
        assert first.get("Cache-Control") == "public, max-age=300"
        for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await look(gate.port, fields=[("If-None-Match", sent)])
            assert (again.status, again.body, again.get("ETag")) == (304, b"", tag)
        other = await look(gate.port, fields=[("If-None-Match", '"other"')])
        assert (other.status, other.body) == (200, first.body)
        assert (await look(gate.port, target=WELL_KNOWN + "?x=1")).body == first.body


async def test_head_is_get_without_the_body_and_the_connection_goes_on(origin: Origin) -> None:
    """HEAD, GET and a guarded POST, pipelined on one connection: each is answered, in order."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        asked = (
            request("HEAD", WELL_KNOWN) + request("GET", WELL_KNOWN) + request("GET", WELL_KNOWN, body=b"odd")
            + request(key="k", body=b"x")
        )  # fmt: skip
        await client.send(asked)
        head, whole, odd = [await client.read(method=method) for method in (b"HEAD", b"GET", b"GET")]
        assert (head.status, head.body) == (200, b"")
        assert head.get("Content-Length") == str(len(whole.body)) == str(len(odd.body))
        assert (await client.read()).label == "stored"
        assert gate.count("oncegate_requests_total", route="-", verdict="pass") == 3
        assert gate.count("oncegate_requests_total", route="-", verdict="refuse") == 0


async def test_a_long_body_does_not_hold_it(origin: Origin) -> None:
    """A GET that declares a long body is answered before it comes, and the connection closed."""
    async with edge(configuration(origin.url)) as gate:
        client = await Client.connect(gate.port)
        await client.send(f"GET {WELL_KNOWN} HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\n".encode())
        response = await client.read(method=b"GET")
        assert (response.status, response.get("Connection")) == (200, "close")
        client.close()


async def test_what_else_is_asked_there_goes_to_the_service(origin: Origin) -> None:
    """POST, another path below, a path that only begins alike."""
    origin.answer = lambda exchange: exchange.respond(200, b"service")
    async with edge(configuration(origin.url)) as gate:
        assert (await look(gate.port, "POST")).body == b"service"
        assert (await look(gate.port, target=WELL_KNOWN + "/x")).body == b"service"
        assert (await look(gate.port, target=WELL_KNOWN + "x")).body == b"service"


@pytest.mark.parametrize(("path", "there"), [("off", None), ("/policy", "/policy")])
async def test_it_can_be_moved_and_turned_off(origin: Origin, path: str, there: str | None) -> None:
    """`policy_path`: elsewhere, or nowhere; its usual place is then the service's."""
    origin.answer = lambda exchange: exchange.respond(200, b"service")
    async with edge(configuration(origin.url, top=f"policy_path: {path}")) as gate:
        assert (await look(gate.port)).body == b"service"
        if there:
            assert b'"routes"' in (await look(gate.port, target=there)).body


async def test_pages_that_are_named_may_read_it(origin: Origin) -> None:
    """With `cors`, the script of a page elsewhere can read it, as it can read the gate's problems."""
    text = configuration(origin.url, top="cors: {origins: [https://shop.example]}")
    async with edge(text) as gate:
        response = await look(gate.port, fields=[("Origin", "https://shop.example")])
    assert response.get("Access-Control-Allow-Origin") == "https://shop.example"
    assert response.get("Vary") == "Origin"

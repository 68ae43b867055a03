"""`mode: shadow` on routes whose key stands elsewhere than in the usual fields, or is derived: nothing waits for the
body that is read beside, and what is counted is what a gate that enforces does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge.stand import ByHand, Edge, edge, eventually
from tests.harness import Client, Origin, ask, configuration

FORM = ("Content-Type", "application/x-www-form-urlencoded")

#: What a route says, and what a request with the key "k-1" looks like; what follows is one with another key.
Sent = dict[str, Any]
PLACES: dict[str, tuple[str, Sent, Sent]] = {
    "body": ("key: {from: 'body:/order/id'}", {"body": b'{"order":{"id":"k-1"}}'}, {"body": b'{"order":{"id":"k-2"}}'}),
    "form": (
        "key: {from: 'form:id'}",
        {"body": b"id=k-1&x=1", "fields": [FORM]},
        {"body": b"id=k-2&x=1", "fields": [FORM]},
    ),
    "query": ("key: {from: 'query:id'}", {"target": "/orders?id=k-1"}, {"target": "/orders?id=k-2"}),
    "path": ("key: {from: 'path:2'}", {"target": "/orders/k-1"}, {"target": "/orders/k-2"}),
    "cookie": (
        "key: {from: 'cookie:op'}, bind: []",
        {"fields": [("Cookie", "op=k-1")]},
        {"fields": [("Cookie", "op=k-2")]},
    ),
    "header": ("key: {from: 'header:X-Op'}", {"fields": [("X-Op", "k-1")]}, {"fields": [("X-Op", "k-2")]}),
    "composite": (
        "key: {from: ['path:2', 'body:/id']}",
        {"target": "/orders/1", "body": b'{"id":"k-1"}'},
        {"target": "/orders/2", "body": b'{"id":"k-1"}'},
    ),
    "derived": (
        "missing: {derive: {from: [target, 'form:cart'], window: 30s}}",
        {"body": b"cart=1", "fields": [FORM]},
        {"body": b"cart=2", "fields": [FORM]},
    ),
    "derived of all": ("missing: derive", {"body": b"one"}, {"body": b"two"}),
}


def counted(gate: Edge, verdict: str, problem: str = "") -> float:
    return gate.count("oncegate_shadow_requests_total", route="all", verdict=verdict, problem=problem)


async def becomes(gate: Edge, verdict: str, problem: str = "", count: int = 1) -> None:
    await eventually(lambda: counted(gate, verdict, problem) == count, f"{count} × {verdict} {problem}")


@pytest.mark.parametrize("place", PLACES)
async def test_duplicates_are_seen_wherever_their_key_stands(origin: Origin, place: str) -> None:
    """One request twice, then one with another key: all three run; one replay would have been."""
    policy, first, other = PLACES[place]
    async with edge(configuration(origin.url, policy=f"mode: shadow, {policy}")) as gate:
        for sent, verdict, count in ((first, "forward", 1), (first, "replay", 1), (other, "forward", 2)):
            response = await ask(gate.port, **sent)
            assert (response.status, response.label, response.replayed) == (201, "unprotected", False)
            await becomes(gate, verdict, count=count)
        assert [received.body for received in origin.requests] == [
            sent.get("body", b'{"amount":1}') for sent in (first, first, other)
        ]
        kept = {"route": "all", "settlement": "keep", "reason": "answered"}
        assert gate.count("oncegate_shadow_settlements_total", **kept) == 2


@pytest.mark.parametrize("place", ["composite", "derived", "body"])
async def test_nothing_of_a_shadow_is_ever_replayed(origin: Origin, tmp_path: Path, place: str) -> None:
    """A key of whatever origin that ran in shadow runs under `enforce` on the same store, and the other way round."""
    policy, first, _ = PLACES[place]
    store = f"sqlite:///{tmp_path}/keys.db"
    async with edge(configuration(origin.url, store=store, policy=f"mode: shadow, {policy}")) as shadow:
        assert (await ask(shadow.port, **first)).label == "unprotected"
        await becomes(shadow, "forward")
        async with edge(configuration(origin.url, store=store, policy=policy)) as enforcing:
            assert [(await ask(enforcing.port, **first)).label for _ in range(2)] == ["stored", "replayed"]
    assert len(origin.requests) == 2


REFUSED: dict[str, tuple[str, Sent, str]] = {
    "no JSON": ("key: {from: 'body:/id'}", {"body": b"{"}, "key-invalid"),
    "compressed": (
        "key: {from: 'body:/id'}",
        {"body": b"\x1f\x8b", "fields": [("Content-Encoding", "gzip")]},
        "key-invalid",
    ),
    "weak": ("key: {from: 'body:/id', weak: refuse}", {"body": b'{"id":7}'}, "key-invalid"),
    "half a composite": ("key: {from: ['body:/a', 'body:/b']}", {"body": b'{"a":"1"}'}, "key-invalid"),
    "none": ("key: {from: 'body:/id'}, missing: refuse", {}, "key-missing"),
    "nothing to derive from": ("missing: {derive: {from: ['body:/id']}}", {}, "key-missing"),
    "too large": ("key: {from: 'body:/id'}, max_request: 8B", {}, "body-too-large"),
    "unreadable where it is bound": ("bind: ['body:/id']", {"key": "k", "body": b"{"}, "scope-missing"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_would_be_refused_for_its_body_is_run(origin: Origin, what: str) -> None:
    """Its key cannot be read, is weak, is missing; its body is over the limit: it is run, and its problem counted."""
    policy, sent, problem = REFUSED[what]
    async with edge(configuration(origin.url, policy=f"mode: shadow, {policy}")) as gate:
        assert (await ask(gate.port, **sent)).status == 201
        await becomes(gate, "refuse", problem)
        assert origin.requests[0].body == sent.get("body", b'{"amount":1}')


async def test_one_without_a_key_passes_as_ever(origin: Origin) -> None:
    """`missing: pass`, and no key in the body: an exchange would not have begun; nothing is counted of it."""
    async with edge(configuration(origin.url, policy="mode: shadow, key: {from: 'body:/id'}")) as gate:
        assert (await ask(gate.port)).status == 201
        await gate.settled()
        assert not gate.running.app.tally._shadow


async def test_a_body_flows_on_while_its_key_is_not_whole(origin: Origin) -> None:
    """The service has each piece as it comes, chunked or sized: the gate does not wait for the end to read the key."""
    service = await ByHand().start()
    policy = "mode: shadow, key: {from: 'body:/id'}"
    try:
        async with edge(configuration(service.url, policy=policy)) as gate:
            client = await gate.connect()
            await client.send(b'POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n{"id":')
            peer = await service.accept()
            await peer.head()
            assert await peer.read(6) == b'{"id":'
            assert not counted(gate, "forward")
            await client.send(b'"k-1"}')
            assert await peer.read(6) == b'"k-1"}'
            await peer.answer()
            assert (await client.read()).body == b"ok"
            await becomes(gate, "forward")
    finally:
        await service.stop()


async def test_a_large_body_is_read_aside(origin: Origin) -> None:
    """1.5 MiB of JSON with its key at the end: it is run, as a small one beside it is, and its double is known."""
    large = json.dumps({"lines": ["x" * 50] * 30_000, "id": "k-1"}).encode()
    async with edge(configuration(origin.url, policy="mode: shadow, key: {from: 'body:/id'}")) as gate:
        both = await asyncio.gather(ask(gate.port, body=large), ask(gate.port, body=b'{"id":"k-2"}'))
        assert [each.status for each in both] == [201, 201]
        await becomes(gate, "forward", count=2)
        assert (await ask(gate.port, body=large)).status == 201
        await becomes(gate, "replay")


async def test_a_client_that_leaves_inside_its_key_is_forgotten(origin: Origin) -> None:
    """No whole body, no key: nothing is counted, no byte stays reserved."""
    async with edge(configuration(origin.url, policy="mode: shadow, key: {from: 'body:/id'}")) as gate:
        client = await Client.connect(gate.port)
        await client.send(b'POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n{"id":')
        await eventually(lambda: gate.server.door.budget.taken == 6, "the beginning is held")
        client.reset()
        await gate.settled()
        assert not gate.running.app.tally._shadow


REQUESTS = st.lists(
    st.tuples(st.sampled_from(["/a", "/b?id=1"]), st.sampled_from([b'{"id":"x"}', b'{"id":"y","n":1}', b"{}", b"{"])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS, policy=st.sampled_from(["missing: derive", "missing: refuse", "missing: pass"]))
async def test_a_shadow_counts_what_a_guard_does(
    origin: Origin, requests: Sequence[tuple[str, bytes]], policy: str
) -> None:
    """Any requests, one after the other, at two gates: each that the one refuses, replays or runs, the other counts."""
    rules = f"key: {{from: 'body:/id'}}, {policy}"
    seen: dict[tuple[str, str], int] = {}
    async with (
        edge(configuration(origin.url, policy=rules)) as enforcing,
        edge(configuration(origin.url, policy=f"mode: shadow, {rules}")) as shadow,
    ):
        for target, body in requests:
            response = await ask(enforcing.port, "POST", target, body=body)
            assert (await ask(shadow.port, "POST", target, body=body)).label == "unprotected"
            verdict = {"stored": "forward", "replayed": "replay", "unprotected": ""}.get(response.label or "", "refuse")
            if verdict:
                at = (verdict, response.problem or "")
                seen[at] = seen.get(at, 0) + 1
                await becomes(shadow, *at, count=seen[at])
        await shadow.settled()
        assert sum(shadow.running.app.tally._shadow.values()) == sum(seen.values())

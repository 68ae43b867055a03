"""`mode: shadow`: nothing is refused, replayed or held back, whatever happens; and what would have been is counted."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.edge.door import Door
from tests.edge.stand import Edge, edge, eventually, head_of
from tests.harness import Client, Exchange, Origin, Response, ask, configuration, request
from tests.servers import RedisServer, preferred

SHADOW = "mode: shadow"


def would(gate: Edge, verdict: str, problem: str = "") -> float:
    """How many requests would have come to this."""
    return gate.count("oncegate_shadow_requests_total", route="all", verdict=verdict, problem=problem)


async def counted(gate: Edge, verdict: str, problem: str = "", count: int = 1) -> None:
    await eventually(lambda: would(gate, verdict, problem) == count, f"{count} × {verdict} {problem}")


def passed(response: Response) -> bool:
    """Whether the service answered, and the gate said that it protected nothing."""
    return (response.status, response.label, response.replayed) == (201, "unprotected", False)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer(preferred()).start()
    yield server
    server.close()


async def test_every_request_is_run_and_duplicates_are_counted(origin: Origin) -> None:
    """Three times one request: it runs three times; the gate would have run one and replayed two."""
    async with edge(configuration(origin.url, policy=SHADOW)) as gate:
        for number in range(3):
            assert passed(await ask(gate.port, key="k"))
            await counted(gate, "replay" if number else "forward", count=number or 1)
        assert origin.effects == {b"k": 3}
        assert gate.count("oncegate_shadow_duplicates_total", route="all", kind="replayed") == 2
        kept = {"route": "all", "settlement": "keep", "reason": "answered"}
        assert gate.count("oncegate_shadow_settlements_total", **kept) == 1
        assert gate.count("oncegate_unprotected_total", route="all", reason="shadow") == 3
        assert gate.count("oncegate_requests_total", route="all", verdict="pass") == 3
        assert gate.count("oncegate_duplicates_total", route="all", kind="replayed") == 0, "nothing was replayed"


REFUSALS = {
    "key-missing": (SHADOW + ", missing: refuse", {}),
    "key-invalid": (SHADOW, {"key": '"open'}),
    "scope-missing": (SHADOW + ", scope: [header:X-Tenant]", {"key": "k"}),
    "body-too-large": (SHADOW + ", max_request: 8B", {"key": "k"}),
}


@pytest.mark.parametrize("problem", REFUSALS)
async def test_what_would_be_refused_at_the_door_is_run(origin: Origin, problem: str) -> None:
    """No key, an unreadable one, no scope, a body over the limit: it is run, and the problem is counted by name."""
    policy, how = REFUSALS[problem]
    async with edge(configuration(origin.url, policy=policy)) as gate:
        assert passed(await ask(gate.port, **how))
        await counted(gate, "refuse", problem)
        assert origin.requests[0].body == b'{"amount":1}'
        assert gate.count("oncegate_problems_total", route="all", problem=problem) == 0, "nobody was told so"


async def test_what_would_be_refused_as_another_request_is_run(origin: Origin) -> None:
    """The same key with another body, and with other credentials: both are run, and counted as what they are."""
    async with edge(configuration(origin.url, policy=SHADOW)) as gate:
        assert passed(await ask(gate.port, key="k"))
        await counted(gate, "forward")
        assert passed(await ask(gate.port, key="k", body=b"other"))
        assert passed(await ask(gate.port, key="k", fields=[("Authorization", "Bearer b")]))
        await counted(gate, "refuse", "key-reused")
        await counted(gate, "refuse", "credentials-differ")
        assert origin.effects == {b"k": 3}


async def test_two_at_once_are_both_run_at_once(origin: Origin) -> None:
    """A duplicate that would have waited for the first does not wait."""
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.respond(201)

    origin.answer = answer
    async with edge(configuration(origin.url, policy=SHADOW)) as gate:
        first = asyncio.create_task(ask(gate.port, key="k"))
        await origin.until(1)
        second = asyncio.create_task(ask(gate.port, key="k"))
        await origin.until(2)
        await counted(gate, "wait")
        go_on.set()
        assert passed(await first)
        assert passed(await second)
        await counted(gate, "forward")


@pytest.mark.parametrize(
    ("status", "more", "settlement", "again"),
    [
        (429, "", "release", ("forward", "", 2)),
        (502, "", "hold", ("refuse", "in-doubt", 1)),
        (799, "", "hold", ("refuse", "in-doubt", 1)),
        (404, "", "keep", ("replay", "", 1)),
        (404, ", keep_only: 2xx", "release", ("forward", "", 2)),
        (502, ", keep_only: 2xx", "release", ("forward", "", 2)),
        (201, ", keep_only: 2xx", "keep", ("replay", "", 1)),
    ],
)
async def test_answers_settle_as_they_would(
    origin: Origin, status: int, more: str, settlement: str, again: tuple[str, str, int]
) -> None:
    """429 frees the key, 502 and 799 hold it, 404 is an answer: the next one would be run, refused, replayed. With
    `keep_only: 2xx` only a success is an answer."""
    origin.answer = lambda exchange: exchange.respond(status)
    async with edge(configuration(origin.url, policy=SHADOW + more)) as gate:
        for _ in range(2):
            assert (await ask(gate.port, key="k")).status == status
            await eventually(lambda: would(gate, "forward"), "it is settled")
        await counted(gate, *again)
        labels = {"route": "all", "settlement": settlement}
        reason = "answered" if settlement == "keep" else "status"
        assert gate.count("oncegate_shadow_settlements_total", **labels, reason=reason) >= 1


async def test_an_answer_that_would_not_be_kept(origin: Origin) -> None:
    """Over `max_response`: it flows to both, and the second would have been told that it was not kept."""
    origin.answer = lambda exchange: exchange.respond(201, b"x" * 100_000)
    async with edge(configuration(origin.url, policy=SHADOW + ", max_response: 64KiB")) as gate:
        for _ in range(2):
            assert (await ask(gate.port, key="k")).body == b"x" * 100_000
            await counted(gate, "forward")
        await counted(gate, "refuse", "response-not-kept")


@pytest.mark.parametrize(
    ("types", "content_type", "length", "again"),
    [
        ("default", b"application/jsonl", b"", ("refuse", "response-not-kept")),
        ("default", b"application/jsonl", b"Content-Length: 3\r\n", ("replay",)),
        ("application/x-feed", b"application/x-feed", b"", ("refuse", "response-not-kept")),
        ("application/x-feed", b"application/jsonl", b"", ("replay",)),
    ],
)
async def test_streams_are_the_same_in_shadow(
    origin: Origin, types: str, content_type: bytes, length: bytes, again: tuple[str, ...]
) -> None:
    """By the route's `stream_types`, and by whether the answer declares its length."""
    framed = length + b"\r\none" if length else b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b" % (content_type, framed)
    origin.answer = lambda exchange: exchange.send(response)
    async with edge(configuration(origin.url, policy=f"{SHADOW}, stream_types: [{types}]")) as gate:
        for _ in range(2):
            assert (await ask(gate.port, key="k")).body == b"one"
            await counted(gate, "forward")
        await counted(gate, *again)


@pytest.mark.parametrize("more", ["", ", keep_only: 2xx"])
async def test_a_client_that_leaves_takes_its_request_with_it(origin: Origin, more: str) -> None:
    """As without a gate. Its retry would have been given the answer that came: it is counted as a replay."""

    async def answer(exchange: Exchange) -> None:
        await exchange.reader.read()

    origin.answer = answer
    async with edge(configuration(origin.url, policy=SHADOW + more)) as gate:
        client = await Client.connect(gate.port)
        await client.send(request(key="k"))
        await origin.until(1)
        client.reset()
        await counted(gate, "forward")
        origin.answer = lambda exchange: exchange.respond(201)
        assert passed(await ask(gate.port, key="k", body=b""))
        await counted(gate, "replay")


@pytest.mark.parametrize(
    ("breaks", "again"), [(False, ("refuse", "response-not-kept")), (True, ("refuse", "in-doubt"))]
)
async def test_a_stream_is_done_at_its_end(origin: Origin, breaks: bool, again: tuple[str, str]) -> None:
    """Until then a duplicate would have waited. Broken off, it would have been in doubt; left by its client, an
    exchange would have read it to its end."""
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.send(b"3\r\none\r\n")
        await go_on.wait()
        if breaks:
            exchange.close()
        else:
            await exchange.reader.read()

    origin.answer = answer
    async with edge(configuration(origin.url, policy=SHADOW)) as gate:
        client = await Client.connect(gate.port)
        await client.send(request(key="k"))
        await head_of(client)
        origin.answer = lambda exchange: exchange.respond(201)
        await ask(gate.port, key="k", body=b"")
        await counted(gate, "wait")
        go_on.set()
        if not breaks:
            client.reset()
        await counted(gate, "forward")
        await ask(gate.port, key="k", body=b"")
        await counted(gate, *again)
        client.reset()


async def test_a_body_that_breaks_off_is_forgotten(origin: Origin) -> None:
    """A client that leaves in the middle of its body: no exchange would have begun, and no byte stays reserved."""
    async with edge(configuration(origin.url, policy=SHADOW)) as gate:
        client = await Client.connect(gate.port)
        await client.send(b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 9\r\n\r\nfour")
        await eventually(lambda: gate.server.door.budget.taken == 4, "the beginning is held")
        client.reset()
        await gate.settled()
        assert not gate.running.app.tally._shadow


async def test_an_unreachable_service_is_told_as_ever(origin: Origin) -> None:
    """502 for the client; nothing would have been kept of it."""
    async with edge(configuration("http://127.0.0.1:9", policy=SHADOW)) as gate:
        for count in (1, 2):
            assert (await ask(gate.port, key="k")).problem == "upstream-unreachable"
            await counted(gate, "forward", count=count)


# ── The store ─────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_of_a_shadow_is_ever_replayed(origin: Origin, tmp_path: Path) -> None:
    """A key that ran in shadow runs under `enforce`, and its answer there is replayed; a shadow of the same store
    does not take that for its own, nor does what it sees change it."""
    store = f"sqlite:///{tmp_path}/keys.db"
    async with edge(configuration(origin.url, store=store, policy=SHADOW)) as shadow:
        assert passed(await ask(shadow.port, key="k"))
        await counted(shadow, "forward")
        async with edge(configuration(origin.url, store=store)) as enforcing:
            first, again = [await ask(enforcing.port, key="k") for _ in range(2)]
            assert (first.label, again.label) == ("stored", "replayed")
            assert first.body == again.body != b""
            assert passed(await ask(shadow.port, key="k", body=b"other"))
            await counted(shadow, "refuse", "key-reused")
            assert passed(await ask(shadow.port, key="new"))
            await counted(shadow, "forward", count=2)
            assert (await ask(enforcing.port, key="k")).label == "replayed"
            assert (await ask(enforcing.port, key="new")).label == "stored"
    assert origin.effects == {b"k": 3, b"new": 2}


async def test_a_store_that_has_stopped_delays_nobody(origin: Origin, redis: RedisServer) -> None:
    """Redis stands still: a request is answered at once, and it is counted that it would have been refused."""
    async with edge(configuration(origin.url, store=redis.url, policy=SHADOW + ", store_wait: 200ms")) as gate:
        assert passed(await ask(gate.port, key="before"))
        await counted(gate, "forward")
        redis.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert passed(await ask(gate.port, key="k"))
        assert time.monotonic() - began < 0.2
        await counted(gate, "refuse", "store-unavailable")
        redis.signal(signal.SIGCONT)


async def test_a_store_that_is_gone_or_full_delays_nobody(origin: Origin, redis: RedisServer) -> None:
    """Redis is killed; a store has no room: both are counted. With `store_down: forward` it would have been run."""
    for policy, verdict, problem in (
        ("", "refuse", "store-unavailable"),
        (", store_down: forward", "forward", ""),
    ):
        async with edge(
            configuration(origin.url, store=redis.url, policy=f"{SHADOW}, store_wait: 100ms{policy}"), alarms=0
        ) as gate:
            redis.kill()
            assert passed(await ask(gate.port, key="k"))
            await counted(gate, verdict, problem)
        redis.start()
    async with edge(configuration(origin.url, store="memory://?max_records=1", policy=SHADOW), alarms=1) as gate:
        for key in ("a", "b"):
            assert passed(await ask(gate.port, key=key))
            await counted(gate, "forward")
        await counted(gate, "refuse", "store-unavailable")


async def test_from_shadow_to_enforce_no_key_is_accepted_anew(origin: Origin, redis: RedisServer) -> None:
    """A fleet that only looked has named no keys: the same routes enforce without --accept-new-keys. From then on
    adding a route in shadow changes nothing for those that enforce, and other keys are refused as ever."""
    own = "namespace: mine"
    async with edge(configuration(origin.url, store=redis.url, policy=f"{SHADOW}, {own}")) as gate:
        assert passed(await ask(gate.port, key="k"))
        await counted(gate, "forward")
    for routes, label in (
        ("", "stored"),
        ("  - {name: new, match: {path: /new}, upstream: origin, namespace: new, mode: shadow}", "replayed"),
        ("  - {name: new, match: {path: /new}, upstream: origin, namespace: new}", "refused"),
    ):
        text = configuration(origin.url, store=redis.url, policy=own, routes=routes)
        async with edge(text, alarms=int(label == "refused")) as gate:
            answer = await ask(gate.port, key="k")
            assert (answer.label, answer.problem) == (label, "identity-changed" if label == "refused" else None)


# ── The watching itself ───────────────────────────────────────────────────────────────────────────


async def test_a_fault_of_the_watching_breaks_nothing(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in it is an alarm; the request is run, its body whole."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Door, "ask", broken)
    async with edge(configuration(origin.url, policy=SHADOW), alarms=1) as gate:
        assert passed(await ask(gate.port, key="k"))
        assert origin.requests[0].body == b'{"amount":1}'


async def test_a_body_that_memory_has_no_room_for_flows_all_the_same(origin: Origin) -> None:
    """`limits.buffers` bounds what is held to look at: past it the gate would have been overloaded."""
    body = b"x" * (3 << 20)
    text = configuration(
        origin.url,
        policy=SHADOW,
        routes="  - {name: big, match: {path: /big}, upstream: origin, mode: shadow, max_request: 2MiB}",
        top="limits: {buffers: 2MiB}\ndefaults: {max_request: 1MiB, max_response: 1MiB}",
    )
    async with edge(text) as gate:
        held = gate.server.door.budget
        assert held.take(1 << 20), "half of it is in use"
        response = await ask(gate.port, "POST", "/big", key="k", body=body[: 2 << 20])
        held.give(1 << 20)
        assert passed(response)
        big = {"route": "big", "verdict": "refuse", "problem": "overloaded"}
        await eventually(lambda: gate.count("oncegate_shadow_requests_total", **big) == 1, "it is counted")
        assert passed(await ask(gate.port, key="k", body=body))
        await counted(gate, "refuse", "body-too-large")
        assert [len(received.body) for received in origin.requests] == [2 << 20, 3 << 20]


async def test_the_log_says_what_would_have_been(origin: Origin) -> None:
    """One line for each, in the words of a guarded request, and `mode: shadow`."""
    async with edge(configuration(origin.url, policy=SHADOW)) as gate:
        for count in (0, 1):
            await ask(gate.port, key="k")
            await counted(gate, "replay" if count else "forward")
        lines = [line for line in gate.running.lines if line.get("mode") == "shadow"]
    first, second = lines
    assert (first["verdict"], first["settlement"], first["reason"]) == ("forward", "keep", "answered")
    assert (second["verdict"], second["duplicate"], second["status"]) == ("replay", "replayed", 201)
    assert first["key"] == second["key"]
    assert first["route"] == "all"

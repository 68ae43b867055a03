"""`response_idle`: a response that has begun and stands still is ended, and one that moves is not."""

from __future__ import annotations

import asyncio

import pytest

from gateway.ports import Account
from tests.edge.stand import GET, OK, ByHand, Edge, drain, edge, head_of, keyed, narrow_client, post
from tests.harness import Client, ask, configuration

BRIEF = "limits: {response_idle: 1s}"
SIZED = OK + b"Content-Length: 100000\r\n\r\nhalf"
CHUNKED = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n"
UNTIL_CLOSE = OK + b"\r\nhalf"


def cut(gate: Edge) -> float:
    return gate.count("oncegate_limits_total", limit="response_idle")


@pytest.mark.parametrize("answer", [SIZED, CHUNKED, UNTIL_CLOSE], ids=["sized", "chunked", "until close"])
async def test_a_response_that_stands_still_is_ended(hand: ByHand, answer: bytes) -> None:
    """Both connections end, the client sees that its response broke off, and the account has the reason."""
    heard: list[Account] = []
    async with edge(configuration(hand.url, top=BRIEF)) as gate:
        finished = gate.server.observer.finished
        gate.server.observer.finished = lambda account: (heard.append(account), finished(account))  # type: ignore[method-assign, assignment, return-value]
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(answer)
        head = await head_of(client)
        assert await peer.ended()
        body = await drain(client)
        assert b"\r\n0\r\n" not in body
        assert len(body) < 200
        assert head.startswith(OK)
        await gate.emptied()
        assert cut(gate) == 1
        (account,) = heard
        assert (account.status, account.detail) == (200, "the response stood still for 1 s")


@pytest.mark.parametrize("answer", [SIZED, CHUNKED], ids=["over max_response", "a stream"])
async def test_a_guarded_response_that_stands_still_is_in_doubt(hand: ByHand, answer: bytes) -> None:
    """It was not read to its end, so a duplicate is never told that it is done."""
    text = configuration(hand.url, top=BRIEF, policy="max_response: 1KiB", upstream="timeout: 2s, late: 2s")
    async with edge(text) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(answer)
        await head_of(client)
        await drain(client)
        assert cut(gate) == 1
        assert await peer.ended()
        await gate.settled()
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.problem) == (409, "in-doubt")
        assert hand.connections == 1


async def test_a_guarded_response_that_outlived_its_lease_is_ended_too(hand: ByHand) -> None:
    """Past the lease it lives as long as its client reads. Once it stands still nothing holds its connections."""
    text = configuration(hand.url, top="limits: {response_idle: 2s}", upstream="timeout: 500ms, late: 500ms")
    async with edge(text) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(CHUNKED)
        for _ in range(6):
            await asyncio.sleep(0.5)
            await peer.send(b"2\r\n:\n\r\n")
        assert cut(gate) == 0
        assert await peer.ended()
        assert b"\r\n0\r\n" not in await drain(client)
        assert cut(gate) == 1
        await gate.settled()
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.problem) == (409, "in-doubt")


async def test_a_guarded_response_that_goes_on_without_its_client_is_done(hand: ByHand) -> None:
    """The limit ends it for the client. The exchange reads on for as long as its lease allows."""
    text = configuration(hand.url, top=BRIEF, policy="max_response: 1KiB", upstream="timeout: 30s")
    async with edge(text) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(SIZED)
        await head_of(client)
        await drain(client)
        assert cut(gate) == 1
        await peer.send(b"x" * (100_000 - 4))
        await gate.settled()
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.problem) == (409, "response-not-kept")


async def test_responses_that_stand_still_give_their_connections_back(hand: ByHand) -> None:
    """They hold every connection that pass-through traffic may have, and the next request is served all the same."""
    async with edge(configuration(hand.url, top=BRIEF, upstream="connections: 4, timeout: 30s")) as gate:
        for _ in range(3):
            client = await gate.connect()
            await client.send(GET)
            peer = await hand.accept()
            await peer.head()
            await peer.send(SIZED)
            await head_of(client)
        waiting = asyncio.ensure_future(ask(gate.port, "GET", "/open/x", body=b""))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"served")
        assert (await waiting).body == b"served"


async def test_a_service_that_neither_reads_nor_answers_is_found_out(narrow: ByHand) -> None:
    """It has begun to answer, and the rest of the request waits for it: `body_timeout` does not count then."""
    async with edge(configuration(narrow.url, top=BRIEF)) as gate:
        client = await gate.connect()
        client.writer.write(post(b"", length=24 << 20) + b"x" * (24 << 20))
        peer = await narrow.accept()
        await peer.head()
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(SIZED)
        await head_of(client)
        await drain(client)
        assert cut(gate) == 1
        peer.reset()


async def test_a_shadow_route_is_no_exception(hand: ByHand) -> None:
    """The response passes through there, and ends in the same way."""
    async with edge(configuration(hand.url, top=BRIEF, policy="mode: shadow")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(SIZED)
        await head_of(client)
        assert await peer.ended()
        assert cut(gate) == 1


# ── What it leaves alone ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("request_", [GET, keyed("k")], ids=["passing", "guarded"])
async def test_an_event_stream_with_a_heartbeat_goes_on(hand: ByHand, request_: bytes) -> None:
    """For many times the limit. A comment line is enough."""
    async with edge(configuration(hand.url, top="limits: {response_idle: 2s}")) as gate:
        client = await gate.connect()
        await client.send(request_)
        peer = await hand.accept()
        await peer.head()
        await peer.send(CHUNKED)
        for _ in range(12):
            await asyncio.sleep(0.5)
            await peer.send(b"2\r\n:\n\r\n")
        await peer.send(b"0\r\n\r\n")
        await head_of(client)
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await client.reader.read(1 << 16)
        assert body.count(b":\n") == 12
        assert cut(gate) == 0


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"], ids=["none", "a 103"])
async def test_a_long_poll_is_left_alone(hand: ByHand, interim: bytes) -> None:
    """Before the head of the final response `timeout` counts, not this limit."""
    async with edge(configuration(hand.url, top="limits: {response_idle: 200ms}")) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(interim)
        await asyncio.sleep(3)
        await peer.answer(b"news")
        assert (await client.read(method=b"GET")).body == b"news"
        assert cut(gate) == 0


async def test_a_client_that_takes_a_little_now_and_then_is_left_alone(hand: ByHand) -> None:
    """The service has long sent everything that fits between the two, and nothing comes from it."""
    async with edge(configuration(hand.url, top=BRIEF)) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        client.writer.transport.pause_reading()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        peer.writer.write(OK + b"Content-Length: %d\r\n\r\n" % (24 << 20) + b"x" * (8 << 20))
        for _ in range(10):
            client.writer.transport.resume_reading()
            assert await client.reader.read(1 << 14)
            await asyncio.sleep(0.4)
        assert cut(gate) == 0
        client.reset()
        assert await peer.ended()


async def test_an_upload_that_moves_keeps_its_response(hand: ByHand) -> None:
    """The service answers before it has read everything, and waits for the rest."""
    async with edge(configuration(hand.url, top=BRIEF)) as gate:
        client = await gate.connect()
        await client.send(post(b"", length=10))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: 4\r\n\r\n")
        await head_of(client)
        for _ in range(10):
            await client.send(b"x")
            await asyncio.sleep(0.4)
        await peer.send(b"done")
        assert await client.reader.readexactly(4) == b"done"
        assert cut(gate) == 0
        peer.close()


async def test_a_websocket_has_a_limit_of_its_own(hand: ByHand) -> None:
    """`tunnel_idle`, which is far longer."""
    async with edge(configuration(hand.url, top="limits: {response_idle: 200ms}")) as gate:
        client = await gate.connect()
        await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await head_of(client)
        await asyncio.sleep(3)
        await peer.send(b"late")
        assert await client.reader.readexactly(4) == b"late"
        client.close()
        assert await peer.ended()
        peer.close()


async def test_a_quiet_connection_behind_a_response_is_idle_and_no_more(hand: ByHand) -> None:
    """Whole responses are not in flight: between two requests `idle` counts alone."""
    async with edge(configuration(hand.url, top="limits: {response_idle: 200ms}")) as gate:
        client: Client = await gate.connect()
        for _ in range(2):
            await client.send(GET)
            peer = await hand.accept()
            await peer.head()
            await peer.answer(b"whole")
            assert (await client.read(method=b"GET")).body == b"whole"
            await asyncio.sleep(2.5)
        assert cut(gate) == 0

"""Unguarded requests that do not end well: an upstream that breaks, a client that leaves, time that runs out."""

from __future__ import annotations

import asyncio

import pytest

from tests.edge.stand import (
    GET,
    ByHand,
    drain,
    edge,
    eventually,
    fields_of,
    head_of,
    piece,
    post,
    values,
)
from tests.harness import ask, configuration, request

# ── Endings that are not clean ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", ["reset", "close"])
@pytest.mark.parametrize(
    "beginning",
    [b"Content-Length: 1000\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"],
    ids=["sized", "chunked"],
)
async def test_a_response_that_breaks_off_is_seen_to(hand: ByHand, beginning: bytes, ending: str) -> None:
    """The client must not take half an answer for a whole one; and it is counted, once."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + beginning)
        await head_of(client)
        getattr(peer, ending)()
        rest = await drain(client)
        assert b"half" in rest
        assert b"0\r\n\r\n" not in rest
        await gate.emptied()
        assert gate.count("oncegate_requests_total", route="open", verdict="pass") == 1


async def test_a_response_without_length_that_is_reset_is_seen_to(hand: ByHand) -> None:
    """A reset is not the end of a response that ends with its connection."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await head_of(client)
        assert await piece(client, 9) == b"4\r\nhalf\r\n"
        peer.reset()
        assert await drain(client) == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 20",
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 150 Odd\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (70 << 10) + b"\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["nothing", "half a line", "rubbish", "no length", "101", "interim body", "control byte", "large head"],
)
async def test_what_is_no_response_is_a_502(hand: ByHand, answer: bytes) -> None:
    """Nothing of it reaches the client, and its connection goes on."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(request("POST", "/orders"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(answer)
        peer.close()
        refused = await client.read()
        assert (refused.status, refused.problem, refused.label) == (502, "upstream-lost", "unprotected")
        assert refused.get("Idempotency-Outcome") == "unknown"
        await client.send(GET)
        second = await hand.accept()
        await second.head()
        await second.answer(b"next")
        assert (await client.read(method=b"GET")).body == b"next"


async def test_an_upstream_that_is_not_there_is_a_502(hand: ByHand) -> None:
    """Nothing was sent: `no-effect`, and worth another try."""
    async with edge(configuration(hand.url)) as gate:
        await hand.stop()
        answer = await ask(gate.port, "POST", "/orders")
        assert (answer.status, answer.problem, answer.label) == (502, "upstream-unreachable", "unprotected")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        assert answer.get("Retry-After") == "1"


async def test_an_upstream_that_does_not_answer_is_a_504(hand: ByHand) -> None:
    """After `timeout`; its connection is given up."""
    async with edge(configuration(hand.url, upstream="timeout: 100ms")) as gate:
        client = await gate.connect()
        await client.send(request("POST", "/orders"))
        peer = await hand.accept()
        await peer.head()
        answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (504, "upstream-timeout", "unprotected")
        assert await peer.ended()


async def test_a_connection_that_does_not_fall_free_in_time_is_a_503(hand: ByHand) -> None:
    """The pool is at its cap and the request was never sent: overloaded, no effect, not a timeout."""
    async with edge(configuration(hand.url, upstream="timeout: 200ms, connections: 1")) as gate:
        holder, waiting = await gate.connect(), await gate.connect()
        await holder.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")  # the answer has begun: no timeout
        await waiting.send(request("POST", "/orders"))
        answer = await waiting.read()
        assert (answer.status, answer.problem, answer.label) == (503, "overloaded", "unprotected")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        await peer.send(b"done")
        assert (await holder.read(method=b"GET")).body == b"done"


async def test_a_long_body_is_not_a_late_answer(hand: ByHand) -> None:
    """The time to answer begins when the upstream has the whole request; a body may take as long as it moves."""
    async with edge(configuration(hand.url, upstream="timeout: 250ms")) as gate:
        client = await gate.connect()
        await client.send(post(b"", length=5))
        peer = await hand.accept()
        await peer.head()
        for letter in b"abcde":
            await asyncio.sleep(0.15)  # what is tested is that time passes
            await client.send(bytes((letter,)))
            assert await peer.read(1) == bytes((letter,))
        await asyncio.sleep(0.15)
        await peer.answer(b"all")
        assert (await client.read()).body == b"all"


async def test_a_body_that_the_upstream_does_not_take_is_a_504(narrow: ByHand) -> None:
    """A body that stands still because the upstream reads no more is not waited for without end."""
    async with edge(configuration(narrow.url, upstream="timeout: 250ms")) as gate:
        client = await gate.connect()
        client.writer.write(post(b"x" * (4 << 20)))
        peer = await narrow.accept()
        peer.writer.transport.pause_reading()
        answer = await client.read()
        assert (answer.status, answer.problem) == (504, "upstream-timeout")


@pytest.mark.parametrize("when", ["before the head", "within the body"])
async def test_a_client_that_leaves_ends_its_request(hand: ByHand, when: str) -> None:
    """Nothing here is protected: the upstream sees the connection end."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        if when == "within the body":
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            await head_of(client)
        client.reset()
        assert await peer.ended()
        await gate.settled()
        assert gate.count("oncegate_requests_total", route="open", verdict="pass") == 1


async def test_a_client_that_leaves_within_its_body_ends_its_request(hand: ByHand) -> None:
    """The upstream does not get a body that looks whole."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(9) == b"4\r\nhalf\r\n"
        client.reset()
        assert await peer.ended()


async def test_a_client_that_leaves_while_it_waits_for_a_connection_costs_none(hand: ByHand) -> None:
    """With the pool at its cap its place in the queue is given up, and the next one is served."""
    async with edge(configuration(hand.url, upstream="connections: 1")) as gate:
        first, leaves, third = [await gate.connect() for _ in range(3)]
        await first.send(GET)
        peer = await hand.accept()
        await peer.head()
        await leaves.send(GET.replace(b"/x", b"/left"))
        await eventually(lambda: gate.pool.waiting == 1, "the second waits")
        await third.send(GET.replace(b"/x", b"/third"))
        await eventually(lambda: gate.pool.waiting == 2, "the third waits")
        leaves.reset()
        await eventually(lambda: gate.pool.waiting == 1, "the second has given up")
        await peer.answer(b"one")
        assert (await peer.head()).startswith(b"GET /open/third ")
        await peer.answer(b"three")
        assert (await first.read(method=b"GET")).body == b"one"
        assert (await third.read(method=b"GET")).body == b"three"
        assert hand.connections == 1


async def test_a_client_that_leaves_while_its_connection_is_made_leaves_it_to_the_next(hand: ByHand) -> None:
    """The connection is made, nothing is written on it, and it serves whoever comes."""
    async with edge(configuration(hand.url)) as gate:
        leaves = await gate.connect()
        await eventually(lambda: gate.server.connections, "it is connected")
        # Both reach the gate within one turn of its loop: the request, and that its client has gone.
        connection = gate.connection
        connection.data_received(GET)
        connection.abort()
        await gate.emptied()
        peer = await hand.accept()
        await eventually(lambda: gate.pool._idle, "the connection is idle")
        client = await gate.connect()
        await client.send(GET)
        await peer.head()
        await peer.answer(b"yours")
        assert (await client.read(method=b"GET")).body == b"yours"
        assert hand.connections == 1
        leaves.reset()


async def test_a_response_may_come_before_the_body_is_whole(hand: ByHand) -> None:
    """The client gets it and its connection ends, for the rest of its body may still be on its way; the
    upstream's connection is not used again."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(post(b"some", length=1 << 20))
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(4) == b"some"
        await peer.answer(b"too much", 413)
        answer = await client.read()
        assert (answer.status, answer.body, answer.get("Connection")) == (413, b"too much", "close")
        assert await client.ended()
        assert await peer.ended()


async def test_whoever_says_close_closes(hand: ByHand) -> None:
    """A head that was written before the request was whole says `Connection: close`; the end of the request in
    time does not make it untrue."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(post(b"half", length=8))
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(4) == b"half"
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        assert values(fields_of(await head_of(client)), b"connection") == [b"close"]
        await client.send(b"half")
        assert await peer.read(4) == b"half"
        await peer.send(b"done")
        assert await piece(client, 4) == b"done"
        assert await client.ended()


async def test_a_body_that_breaks_the_rules_half_way_ends_its_request(hand: ByHand) -> None:
    """The upstream sees no end of the body; the client is told what was wrong."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(9) == b"4\r\nhalf\r\n"
        await client.send(b"xyz\r\n")
        answer = await client.read()
        assert (answer.status, answer.problem, answer.get("Connection")) == (400, "request-malformed", "close")
        assert await peer.ended()
        assert await client.ended()


async def test_a_body_that_breaks_the_rules_after_the_answer_has_begun_cuts_it(hand: ByHand) -> None:
    """A problem cannot be told in the middle of an answer: the client sees it break off."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await head_of(client)
        assert await piece(client, 9) == b"4\r\nhalf\r\n"
        await client.send(b"xyz\r\n")
        assert await drain(client) == b""
        assert await peer.ended()


async def test_trailers_have_no_room_without_end(hand: ByHand) -> None:
    """What stands behind the last chunk is limited as a head is, on either side."""
    endless = b"X: " + b"x" * (400 << 10)
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        peer = await hand.accept()
        await peer.head()
        client.writer.write(endless)
        answer = await client.read()
        assert (answer.status, answer.problem) == (431, "head-too-large")
        assert await peer.ended()

        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n")
        await head_of(client)
        peer.writer.write(endless)
        assert await drain(client) == b"4\r\nbody\r\n"
        assert await peer.ended()

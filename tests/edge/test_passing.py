"""What is not guarded: streamed both ways, framed anew, with the sender's bytes left as they are."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading

import pytest

from gateway.core.outcome import NotSentReason
from gateway.edge.connection import Connection
from gateway.edge.pool import Place, Pool
from tests.edge.stand import SOON, ByHand, Edge, edge, eventually, fields_of, head_of, narrow_client, piece, values
from tests.harness import Client, Exchange, Origin, Response, ask, configuration, request

GET = b"GET /open/x HTTP/1.1\r\nHost: gate.test\r\n\r\n"


def post(body: bytes, *, fields: bytes = b"", length: int | None = None) -> bytes:
    """An unguarded POST, or the beginning of one of `length` bytes."""
    return b"POST /open/x HTTP/1.1\r\nHost: gate.test\r\nContent-Length: %d\r\n%b\r\n%b" % (
        len(body) if length is None else length,
        fields,
        body,
    )


# ── Bodies and framing ────────────────────────────────────────────────────────────────────────────


async def test_one_connection_serves_many_requests_on_either_side(origin: Origin) -> None:
    """Keep-alive: ten requests of one client go over one connection to the gate and one to the origin."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        for number in range(10):
            await client.send(request("POST", f"/open/{number}", body=b"x" * number))
            answer = await client.read()
            assert (answer.status, answer.get("Connection")) == (201, None)
        assert [received.target for received in origin.requests] == [b"/open/%d" % n for n in range(10)]
        assert [len(received.body) for received in origin.requests] == list(range(10))
        assert origin.connections == 1


@pytest.mark.parametrize("size", [0, 1, 100, 1 << 16, 3 << 20])
async def test_a_sized_body_stays_sized_on_both_sides(origin: Origin, size: int) -> None:
    """Content-Length is made anew on each side, once, and every byte of both bodies arrives."""
    sent, returned = os.urandom(size), os.urandom(size)

    async def echo(exchange: Exchange) -> None:
        await exchange.respond(200, returned)

    origin.answer = echo
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(post(sent))
        answer = await client.read()
        (received,) = origin.requests
        assert received.values(b"content-length") == [b"%d" % size]
        assert received.values(b"transfer-encoding") == []
        assert received.body == sent
        assert answer.values("Content-Length") == [str(size)]
        assert answer.values("Transfer-Encoding") == []
        assert answer.body == returned


async def test_a_chunked_body_stays_chunked_on_both_sides(hand: ByHand) -> None:
    """Chunk extensions and trailers are for one hop and are dropped; the data goes on as it comes."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(
            b"POST /open/x HTTP/1.1\r\nHost: a\r\ntransfer-ENCODING: Chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"5;name=value\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"transfer-encoding") == [b"chunked"]
        assert values(fields, b"content-length") == []
        assert values(fields, b"trailer") == []
        assert await peer.read(31) == b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"
        await peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"4;a=b\r\nback\r\n0\r\nX-Sum: 2\r\nSet-Cookie: a=b\r\n\r\n"
        )
        head = await head_of(client)
        assert values(fields_of(head), b"transfer-encoding") == [b"chunked"]
        assert values(fields_of(head), b"trailer") == []
        assert await piece(client, 14) == b"4\r\nback\r\n0\r\n\r\n"
        await client.send(GET)
        await peer.head()
        await peer.answer(b"next")
        assert (await client.read(method=b"GET")).body == b"next"
        assert hand.connections == 1


async def test_a_body_flows_before_it_is_whole(hand: ByHand) -> None:
    """Neither side waits for the other's last byte."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(post(b"first", length=11))
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(5) == b"first"
        await client.send(b"second")
        assert await peer.read(6) == b"second"
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none")
        await head_of(client)
        assert await piece(client, 3) == b"one"
        await peer.send(b"two")
        assert await piece(client, 3) == b"two"
        await peer.send(b"end")
        assert await piece(client, 3) == b"end"


async def test_the_first_bytes_of_a_body_wait_for_the_connection(hand: ByHand) -> None:
    """A body that comes while the connection is made is sent behind the head, in its order."""
    body = os.urandom(200_000)
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(post(body))
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(len(body)) == body
        await peer.answer()
        assert (await client.read()).status == 200


# ── Fields ────────────────────────────────────────────────────────────────────────────────────────

ODD = [
    (b"X-CASE-of", b"Names"),
    (b"x-twice", b"one"),
    (b"Accept", b"b, a"),
    (b"X-Twice", b"two, three"),
    (b"X-Obs", b"caf\xe9 \xc3\xa9\xff"),
    (b"X-Empty", b""),
    (b"x-TWICE", b"one"),
    (b"X-Inner", b"a \t b"),
    (b"Cookie", b"a=b; c=d"),
    (b"!#$%&'*+-.^_`|~09", b"token"),
]


async def test_fields_of_a_request_keep_case_order_repetition_and_bytes(hand: ByHand) -> None:
    """What the client sent end to end reaches the upstream byte for byte."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        lines = b"".join(b"%b: %b\r\n" % line for line in ODD)
        await client.send(b"GET /open/%7e//a?b=%00&c HTTP/1.1\r\nHOST: Gate.Test:8080\r\n" + lines + b"\r\n")
        peer = await hand.accept()
        head = await peer.head()
        assert head.startswith(b"GET /open/%7e//a?b=%00&c HTTP/1.1\r\nHOST: Gate.Test:8080\r\n" + lines)
        await peer.answer()
        await client.read(method=b"GET")


async def test_fields_of_a_response_keep_case_order_repetition_and_bytes(hand: ByHand) -> None:
    """What the upstream sent end to end reaches the client byte for byte, its reason phrase too."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        odd = [*ODD, (b"Set-Cookie", b"a=1"), (b"Date", b"yesterday"), (b"set-cookie", b"b=2")]
        lines = b"".join(b"%b: %b\r\n" % line for line in odd)
        await peer.send(b"HTTP/1.1 299 Odd \xe9 phrase\r\n" + lines + b"Content-Length: 0\r\n\r\n")
        assert await head_of(client) == (b"HTTP/1.1 299 Odd \xe9 phrase\r\n" + lines + b"Content-Length: 0\r\n\r\n")


HOP_BY_HOP = (
    b"Connection: X-One, keep-alive\r\nKeep-Alive: timeout=9\r\nX-One: 1\r\nconnection: x-two\r\nX-Two: 2\r\n"
    b"Proxy-Authenticate: a\r\nProxy-Authorization: b\r\nProxy-Connection: c\r\nTE: trailers\r\nTrailer: X-T\r\n"
    b"Upgrade: none\r\nX-Stays: yes\r\n"
)


async def test_fields_of_one_hop_are_stripped_on_either_side(hand: ByHand) -> None:
    """Those of RFC 9110 §7.6.1, and whatever Connection names; no Connection field is invented."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"GET /open/x HTTP/1.1\r\nHost: a\r\n" + HOP_BY_HOP + b"\r\n")
        peer = await hand.accept()
        own = {b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
        fields = await peer.fields()
        assert [field for field in fields if field[0].lower() not in own] == [(b"Host", b"a"), (b"X-Stays", b"yes")]
        await peer.answer(b"ok", fields=HOP_BY_HOP)
        head = await head_of(client)
        assert fields_of(head) == [(b"X-Stays", b"yes"), (b"Content-Length", b"2")]
        assert await piece(client, 2) == b"ok"


async def test_it_says_where_a_request_came_from(hand: ByHand) -> None:
    """X-Forwarded-For, -Proto and -Host, and Via, where there were none."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"x-forwarded-for") == [b"127.0.0.1"]
        assert values(fields, b"x-forwarded-proto") == [b"http"]
        assert values(fields, b"x-forwarded-host") == [b"gate.test"]
        assert values(fields, b"via") == [b"1.1 oncegate"]
        await peer.answer()
        await client.read(method=b"GET")


async def test_it_adds_itself_to_a_chain_of_proxies(hand: ByHand) -> None:
    """Repeated X-Forwarded-For and Via fields become one each, ours last; the first proxy's word on scheme and
    host stands."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(
            b"GET /open/x HTTP/1.1\r\nHost: inner\r\nX-Forwarded-For: 192.0.2.1\r\nVia: 1.0 fred\r\n"
            b"x-forwarded-for: 192.0.2.2, 192.0.2.3\r\nVIA: 1.1 p.example\r\n"
            b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\r\n"
        )
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"x-forwarded-for") == [b"192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1"]
        assert values(fields, b"via") == [b"1.0 fred, 1.1 p.example, 1.1 oncegate"]
        assert values(fields, b"x-forwarded-proto") == [b"https"]
        assert values(fields, b"x-forwarded-host") == [b"shop.example"]
        await peer.answer()
        await client.read(method=b"GET")


async def test_a_client_does_not_say_which_attempt_it_is(hand: ByHand) -> None:
    """Idempotency-Attempt is the gate's own word, and the labels of a response are too."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"GET /open/x HTTP/1.1\r\nHost: a\r\nIdempotency-Attempt: 7\r\n\r\n")
        peer = await hand.accept()
        assert values(await peer.fields(), b"idempotency-attempt") == []
        await peer.answer(
            fields=b"Idempotent-Replayed: true\r\nIdempotency-Status: stored\r\nIdempotency-Expires: x\r\n"
            b"Idempotency-First-Seen: x\r\nIdempotency-Outcome: keep\r\n"
        )
        answer = await client.read(method=b"GET")
        assert answer.fields == [(b"Content-Length", b"2")]


# ── Labels ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "target", "key", "label", "reason"),
    [
        ("POST", "/orders", None, "unprotected", "no_key"),
        ("PATCH", "/orders", None, "unprotected", "no_key"),
        ("PUT", "/orders", None, "unprotected", "no_key"),
        ("DELETE", "/orders", None, "unprotected", "no_key"),
        ("POST", "/open/x", "k", "unprotected", "key_on_unguarded_route"),
        ("POST", "/open/x", '"', "unprotected", "key_on_unguarded_route"),
        ("DELETE", "/open/x", "k", "unprotected", "key_on_unguarded_route"),
        ("POST", "/open/x", None, None, None),
        ("GET", "/orders", None, None, None),
        ("GET", "/orders", "k", None, None),
        ("GET", "/open/x", "k", None, None),
        ("HEAD", "/orders", "k", None, None),
        ("OPTIONS", "/orders", "k", None, None),
        ("TRACE", "/orders", None, None, None),
    ],
)
async def test_what_is_unprotected_and_should_not_be_is_said_and_counted(
    origin: Origin, method: str, target: str, key: str | None, label: str | None, reason: str | None
) -> None:
    """A keyless write on a guarded route, or a key on an unguarded one; never a safe method, never anything else."""

    async def empty(exchange: Exchange) -> None:
        await exchange.respond(200, b"", [(b"Idempotency-Status", b"stored")])

    origin.answer = empty
    async with edge(configuration(origin.url)) as gate:
        answer = await ask(gate.port, method, target, key=key, body=b"")
        assert answer.status == 200
        assert answer.values("Idempotency-Status") == ([label] if label else [])
        route = "open" if target.startswith("/open") else "all"
        counted = {why: gate.count("oncegate_unprotected_total", route=route, reason=why) for why in (
            "no_key", "key_on_unguarded_route", "safe_method", "unguarded_route"
        )}  # fmt: skip
        assert {why: count for why, count in counted.items() if count} == ({reason: 1} if reason else {})
        assert gate.count("oncegate_requests_total", route=route, verdict="pass") == 1


# ── Responses without a body, interim ones, old clients, until close ──────────────────────────────


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n", b""])
async def test_the_response_to_a_head_has_no_body_whatever_it_says(hand: ByHand, framing: bytes) -> None:
    """Its framing fields tell what a GET would give; the connection goes on behind the head."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET.replace(b"GET", b"HEAD"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
        assert await head_of(client) == b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n"
        await client.send(GET)
        if not framing:
            peer = await hand.accept()  # llhttp, which knows no HEAD, takes it to end with the connection
        await peer.head()
        await peer.answer(b"body")
        assert (await client.read(method=b"GET")).body == b"body"


@pytest.mark.parametrize(
    ("head", "passed"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        (
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: x\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 1000\r\n\r\n",
        ),
    ],
)
async def test_204_and_304_end_with_their_head(hand: ByHand, head: bytes, passed: bytes) -> None:
    """Neither has a body; a 204 has no length either (RFC 9110 §8.6), and the connections go on."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(head)
        assert await head_of(client) == passed
        await client.send(GET)
        await peer.head()
        await peer.answer(b"body")
        assert (await client.read(method=b"GET")).body == b"body"
        assert hand.connections == 1


async def test_interim_responses_are_passed_on(hand: ByHand) -> None:
    """A 103 reaches the client before the final head, less what is for one hop."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-gone\r\nX-Gone: 1\r\n\r\n")
        assert await head_of(client) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n")
        assert await head_of(client) == b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n"
        await peer.answer(b"done")
        assert (await client.read(method=b"GET")).body == b"done"


async def test_an_expectation_is_the_upstreams_to_answer(hand: ByHand) -> None:
    """On an unguarded route `Expect: 100-continue` is forwarded, and so is the 100."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(post(b"", length=5, fields=b"Expect: 100-continue\r\n"))
        peer = await hand.accept()
        assert values(await peer.fields(), b"expect") == [b"100-continue"]
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await head_of(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert await peer.read(5) == b"hello"
        await peer.answer()
        assert (await client.read()).status == 200


async def test_an_expectation_that_is_refused_is_passed_on_and_the_connection_closed(hand: ByHand) -> None:
    """The client was told the final status before it sent its body: nobody knows whether it comes."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(post(b"", length=5, fields=b"Expect: 100-continue\r\n"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"no", 417)
        answer = await client.read()
        assert (answer.status, answer.body, answer.get("Connection")) == (417, b"no", "close")
        assert await client.ended()
        assert await peer.ended()


async def test_an_old_client_gets_neither_chunks_nor_interim_responses(hand: ByHand) -> None:
    """HTTP/1.0: a chunked response flows unframed and ends with the connection, and says so, even where the
    client asked to keep it."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"GET /open/x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        peer = await hand.accept()
        assert (await peer.head()).startswith(b"GET /open/x HTTP/1.1\r\n")
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        assert await head_of(client) == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        assert await piece(client, 6) == b"onetwo"
        assert await client.ended()


async def test_an_old_client_may_keep_its_connection_where_the_length_is_known(origin: Origin) -> None:
    """HTTP/1.0 with `Connection: keep-alive` is told so; without, the connection ends."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        for _ in range(2):
            await client.send(b"GET /open/x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.read(method=b"GET")
            assert (answer.status, answer.get("Connection")) == (201, "keep-alive")
        await client.send(b"GET /open/x HTTP/1.0\r\nHost: a\r\n\r\n")
        assert (await client.read(method=b"GET")).get("Connection") == "close"
        assert await client.ended()


async def test_an_old_client_without_a_host_is_given_one(origin: Origin) -> None:
    """What goes upstream is HTTP/1.1, which wants a Host: the upstream's own, where the client knew none."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(b"GET /open/x HTTP/1.0\r\n\r\n")
        assert (await client.read(method=b"GET")).status == 201
        (received,) = origin.requests
        assert received.values(b"host") == [b"127.0.0.1:%d" % origin.port]
        assert received.values(b"x-forwarded-host") == []


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
async def test_an_old_client_is_told_of_no_transfer_coding(hand: ByHand, method: bytes) -> None:
    """HTTP/1.0 knows no Transfer-Encoding, not even in the response to a HEAD (RFC 9112 §6.1)."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(method + b" /open/x HTTP/1.0\r\nHost: a\r\n\r\n")
        peer = await hand.accept()
        await peer.head()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"" if method == b"HEAD" else b"0\r\n\r\n")
        )
        assert values(fields_of(await head_of(client)), b"transfer-encoding") == []
        assert await client.ended()


async def test_a_response_that_ends_with_its_connection_is_framed_for_the_client(hand: ByHand) -> None:
    """The client's connection goes on, the upstream's does not."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\none")
        assert values(fields_of(await head_of(client)), b"transfer-encoding") == [b"chunked"]
        assert await piece(client, 8) == b"3\r\none\r\n"
        await peer.send(b"two")
        assert await piece(client, 8) == b"3\r\ntwo\r\n"
        peer.close()
        assert await piece(client, 5) == b"0\r\n\r\n"
        await client.send(GET)
        second = await hand.accept()
        await second.head()
        await second.answer(b"next")
        assert (await client.read(method=b"GET")).body == b"next"


# ── Backpressure ──────────────────────────────────────────────────────────────────────────────────

#: What the gate may hold for one connection: a full buffer and what was read at once.
HELD = 1 << 20


async def feed(peer_send: asyncio.StreamWriter, total: int) -> bytes:
    """Write `total` random bytes as fast as they are taken; gives their digest."""
    digest = hashlib.sha256()
    left = total
    while left:
        data = os.urandom(min(1 << 16, left))
        left -= len(data)
        digest.update(data)
        peer_send.write(data)
        await peer_send.drain()
    return digest.digest()


async def drink(reader: asyncio.StreamReader, total: int) -> bytes:
    """Read `total` bytes; gives their digest."""
    digest = hashlib.sha256()
    left = total
    while left:
        data = await reader.read(min(1 << 16, left))
        assert data, f"{left} bytes are missing"
        left -= len(data)
        digest.update(data)
    return digest.digest()


async def test_a_slow_reader_pauses_the_upstream(hand: ByHand) -> None:
    """Of a long response only a bounded part is held: the upstream is not read further until the client reads."""
    total = 24 << 20
    async with edge(configuration(hand.url)) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(peer.writer, total))
            await eventually(lambda: not gate.upstream._transport.is_reading(), "the upstream is paused")
            assert 0 < gate.held <= HELD
            assert not fed.done()
            await head_of(client)
            drunk = group.create_task(drink(client.reader, total))
            while not drunk.done():
                assert gate.held <= HELD
                await asyncio.sleep(0.002)
        assert fed.result() == drunk.result()
        # Whatever was paused goes on: the same two connections serve the next request.
        await client.send(GET)
        await peer.head()
        await peer.answer(b"next")
        assert (await client.read(method=b"GET")).body == b"next"


async def test_a_connection_that_was_paused_at_its_end_serves_again(hand: ByHand) -> None:
    """The last byte of a response may be the one that fills the client's buffer. The upstream's connection,
    which has done its work, must then be read again, or the next request on it hears no answer."""
    body = os.urandom(200 << 10)
    async with edge(configuration(hand.url)) as gate:
        slow = await narrow_client(gate.port)
        gate.clients.append(slow)
        await slow.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.answer(body)
        await eventually(lambda: gate.pool._idle, "the upstream has answered")
        assert gate.connection.full
        assert hand.connections == 1
        quick = await gate.connect()
        await quick.send(GET)
        await peer.head()
        await peer.answer(b"quick")
        assert (await quick.read(method=b"GET")).body == b"quick"
        assert (await slow.read(method=b"GET")).body == body


async def test_a_slow_upstream_pauses_the_client(narrow: ByHand) -> None:
    """Of a long request only a bounded part is held: the client is not read further until the upstream reads."""
    total = 24 << 20
    async with edge(configuration(narrow.url)) as gate:
        client = await gate.connect()
        await client.send(post(b"", length=total))
        peer = await narrow.accept()
        peer.writer.transport.pause_reading()
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(client.writer, total))
            await eventually(lambda: gate.connection._paused, "the client is paused")
            waiting = gate.upstream._transport.get_write_buffer_size
            assert 0 < waiting() <= HELD
            assert not fed.done()
            peer.writer.transport.resume_reading()
            await peer.head()
            drunk = group.create_task(drink(peer.reader, total))
            while not drunk.done():
                if gate.connection._queue:
                    assert waiting() <= HELD
                await asyncio.sleep(0.002)
        assert fed.result() == drunk.result()
        await peer.answer()
        assert (await client.read()).status == 200


async def test_the_first_bytes_of_a_body_may_fill_the_upstream(narrow: ByHand) -> None:
    """What had gathered while the connection was made is more than it takes: the client stays paused, and the
    connection's being there does not say otherwise."""
    total = 8 << 20
    async with edge(configuration(narrow.url)) as gate:
        client = await gate.connect()
        await client.send(post(b"x" * (200 << 10), length=total))
        peer = await narrow.accept()
        peer.writer.transport.pause_reading()
        await eventually(lambda: gate.upstream._transport.get_write_buffer_size(), "the upstream is full")
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(client.writer, total - (200 << 10)))
            await eventually(lambda: gate.connection._paused, "the client is paused")
            for _ in range(100):
                assert gate.upstream._transport.get_write_buffer_size() <= HELD
                await asyncio.sleep(0.002)
            assert not fed.done()
            peer.writer.transport.resume_reading()
            await peer.head()
            await drink(peer.reader, total)
        await peer.answer()
        assert (await client.read()).status == 200


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


async def drain(client: Client) -> bytes:
    """All that comes until the connection ends."""
    data = b""
    async with asyncio.timeout(SOON):
        try:
            while more := await client.reader.read(1 << 16):
                data += more
        except ConnectionError:
            pass
    return data


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
        await eventually(lambda: len(gate.pool._wanting) == 1, "the second waits")
        await third.send(GET.replace(b"/x", b"/third"))
        await eventually(lambda: len(gate.pool._wanting) == 2, "the third waits")
        leaves.reset()
        await eventually(lambda: len(gate.pool._wanting) == 1, "the second has given up")
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


# ── Connections that are used again ───────────────────────────────────────────────────────────────


async def used(gate: Edge, hand: ByHand) -> Client:
    """A client whose first request was answered, so that a connection to the origin lies idle."""
    client = await gate.connect()
    await client.send(GET)
    peer = await hand.accept()
    await peer.head()
    await peer.answer(b"first")
    assert (await client.read(method=b"GET")).body == b"first"
    await eventually(lambda: gate.pool._idle, "the connection is idle")
    return client


async def test_a_fresh_connection_is_used_again(hand: ByHand) -> None:
    """Within a second of its last answer."""
    async with edge(configuration(hand.url)) as gate:
        client = await used(gate, hand)
        (idle,) = gate.pool._idle
        idle.idle_since -= 0.9
        await client.send(GET)
        peer = hand._peers[0]
        await peer.head()
        await peer.answer(b"second")
        assert (await client.read(method=b"GET")).body == b"second"
        assert hand.connections == 1


async def test_a_connection_that_lay_idle_is_not_used_again(hand: ByHand) -> None:
    """After a second it is closed: the upstream may be about to close it too."""
    async with edge(configuration(hand.url)) as gate:
        client = await used(gate, hand)
        (idle,) = gate.pool._idle
        idle.idle_since -= 1.1
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"second")
        assert (await client.read(method=b"GET")).body == b"second"
        assert await hand._peers[0].ended()


async def test_idle_connections_are_closed_when_nobody_comes(hand: ByHand) -> None:
    """By a timer, a second or two after they fell idle."""
    async with edge(configuration(hand.url)) as gate:
        await used(gate, hand)
        assert await hand._peers[0].ended()
        await eventually(lambda: gate.pool._open == 0, "the pool knows")


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(lambda peer: peer.close(), id="end"),
        pytest.param(lambda peer: peer.reset(), id="reset"),
        pytest.param(
            lambda peer: peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsurplus"), id="surplus"
        ),
        pytest.param(lambda peer: peer.writer.write(b"\r\n"), id="an empty line"),
        pytest.param(lambda peer: peer.writer.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n"), id="an unsolicited 408"),
    ],
)
async def test_an_idle_connection_that_stirs_is_given_up(hand: ByHand, ending: object) -> None:
    """Its end, or any byte: the next request goes elsewhere and gets its own answer, without a retry."""
    async with edge(configuration(hand.url)) as gate:
        client = await used(gate, hand)
        ending(hand._peers[0])  # type: ignore[operator]
        await eventually(lambda: not gate.pool._idle, "the gate has noticed")
        await client.send(request("POST", "/orders"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"second")
        assert (await client.read()).body == b"second"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfirst",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
    ],
    ids=["close", "HTTP/1.0", "half a head behind", "a response behind", "chunked HTTP/1.0"],
)
async def test_a_connection_that_ends_or_goes_on_speaking_is_not_used_again(hand: ByHand, response: bytes) -> None:
    """`Connection: close`, and bytes behind the response: the answer is given, the connection given up."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(response)
        assert (await client.read(method=b"GET")).body == b"first"
        assert await peer.ended()
        await client.send(GET)
        second = await hand.accept()
        await second.head()
        await second.answer(b"next")
        assert (await client.read(method=b"GET")).body == b"next"


async def test_bytes_that_nobody_has_read_yet_are_no_answer() -> None:
    """The surplus lies in the kernel, behind the client's next request, when the gate wakes up: it must not be
    taken for that request's answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    speak, spoken = threading.Event(), threading.Event()

    def origin() -> None:
        first, _ = listener.accept()
        with first:
            first.recv(1 << 16)
            first.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
            assert speak.wait(SOON)
            first.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsurplus")
            spoken.set()
            second, _ = listener.accept()
            with second:
                second.recv(1 << 16)
                second.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond")
                second.recv(1 << 16)

    thread = threading.Thread(target=origin, daemon=True)
    thread.start()
    async with edge(configuration(f"http://127.0.0.1:{listener.getsockname()[1]}")) as gate:
        client = await gate.connect()
        await client.send(GET)
        assert (await client.read(method=b"GET")).body == b"first"
        await eventually(lambda: gate.pool._idle, "the connection is idle")
        # The gate's loop is ours, and stands still here: both sides write before it wakes, the client first.
        sock = client.writer.get_extra_info("socket")
        os.write(sock.fileno(), GET)
        speak.set()
        assert spoken.wait(SOON)
        assert (await client.read(method=b"GET")).body == b"second"
    await asyncio.to_thread(thread.join, SOON)
    listener.close()


# ── Second tries ──────────────────────────────────────────────────────────────────────────────────


async def test_a_get_is_tried_again_where_a_used_connection_was_closed(hand: ByHand) -> None:
    """Once, on a fresh connection."""
    async with edge(configuration(hand.url)) as gate:
        client = await used(gate, hand)
        await client.send(GET.replace(b"/x", b"/again"))
        assert (await hand._peers[0].head()).startswith(b"GET /open/again ")
        hand._peers[0].close()
        peer = await hand.accept()
        assert (await peer.head()).startswith(b"GET /open/again ")
        await peer.answer(b"second")
        assert (await client.read(method=b"GET")).body == b"second"
        assert gate.count("oncegate_requests_total", route="open", verdict="pass") == 2


async def test_a_get_is_tried_again_only_once(hand: ByHand) -> None:
    """A fresh connection that is closed too is the upstream's answer: 502."""
    async with edge(configuration(hand.url)) as gate:
        client = await used(gate, hand)
        await client.send(GET)
        await hand._peers[0].head()
        hand._peers[0].close()
        peer = await hand.accept()
        await peer.head()
        peer.close()
        answer = await client.read(method=b"GET")
        assert (answer.status, answer.problem) == (502, "upstream-lost")
        assert hand.connections == 2


async def test_a_get_on_a_fresh_connection_is_not_tried_again(hand: ByHand) -> None:
    """There it was the request, not the connection's age."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        peer.close()
        assert (await client.read(method=b"GET")).problem == "upstream-lost"
        assert hand.connections == 1


@pytest.mark.parametrize(
    "again",
    [
        request("POST", "/open/x"),
        request("DELETE", "/open/x"),
        request("PUT", "/orders", body=b"x"),
        request("GET", "/open/x", body=b"x"),
    ],
    ids=["POST", "DELETE", "PUT", "GET with a body"],
)
async def test_nothing_else_is_tried_again(hand: ByHand, again: bytes) -> None:
    """Nobody knows whether the upstream ran it before it closed."""
    async with edge(configuration(hand.url)) as gate:
        client = await used(gate, hand)
        await client.send(again)
        await hand._peers[0].head()
        hand._peers[0].close()
        answer = await client.read(method=again.split()[0])
        assert (answer.status, answer.problem) == (502, "upstream-lost")
        assert hand.connections == 1


async def test_a_get_whose_answer_had_begun_is_not_tried_again(hand: ByHand) -> None:
    """The client has the head already."""
    async with edge(configuration(hand.url)) as gate:
        client = await used(gate, hand)
        await client.send(GET)
        await hand._peers[0].head()
        await hand._peers[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        hand._peers[0].close()
        with pytest.raises(ConnectionError):
            await client.read(method=b"GET")
        assert hand.connections == 1


# ── The pool ──────────────────────────────────────────────────────────────────────────────────────


async def test_the_pool_makes_no_more_connections_than_it_may(hand: ByHand) -> None:
    """Twelve requests over three connections: each waits its turn and gets its own answer."""
    async with edge(configuration(hand.url, upstream="connections: 3")) as gate:
        clients = [await gate.connect() for _ in range(12)]
        for number, client in enumerate(clients):
            await client.send(GET.replace(b"/x", b"/%d" % number))
        served = 0

        async def serve() -> None:
            nonlocal served
            peer = await hand.accept()
            while served < 12:
                target = (await peer.head()).split()[1]
                served += 1
                await peer.answer(target)

        tasks = [asyncio.ensure_future(serve()) for _ in range(3)]
        answers: list[Response] = await asyncio.gather(*(client.read(method=b"GET") for client in clients))
        assert [answer.body for answer in answers] == [b"/open/%d" % number for number in range(12)]
        assert hand.connections == 3
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_connection_that_breaks_makes_room_for_who_waits(hand: ByHand) -> None:
    """At the cap, whether the one that has a connection loses it or is refused one."""
    async with edge(configuration(hand.url, upstream="connections: 1")) as gate:
        first, second = await gate.connect(), await gate.connect()
        await first.send(GET)
        peer = await hand.accept()
        await peer.head()
        await second.send(GET)
        await eventually(lambda: gate.pool._wanting, "the second waits")
        peer.reset()
        assert (await first.read(method=b"GET")).problem == "upstream-lost"
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"second")
        assert (await second.read(method=b"GET")).body == b"second"


async def test_when_the_upstream_is_gone_everybody_who_waits_hears_so(hand: ByHand) -> None:
    """One after another is refused; none is forgotten."""
    async with edge(configuration(hand.url, upstream="connections: 2")) as gate:
        clients = [await gate.connect() for _ in range(6)]
        for client in clients[:2]:
            await client.send(GET)
        peers = [await hand.accept() for _ in range(2)]
        for client in clients[2:]:
            await client.send(GET)
        await eventually(lambda: len(gate.pool._wanting) == 4, "the others wait")
        await hand.stop()
        answers = await asyncio.gather(*(client.read(method=b"GET") for client in clients))
        assert [answer.problem for answer in answers] == ["upstream-lost"] * 2 + ["upstream-unreachable"] * 4
        assert gate.pool._open == 0
        del peers


class Wanting:
    """Whoever wants a connection of a pool, and writes down what it is told."""

    def __init__(self) -> None:
        self.told: asyncio.Future[Connection | NotSentReason] = asyncio.get_running_loop().create_future()

    def connected(self, connection: Connection) -> None:
        assert connection.usable
        self.told.set_result(connection)

    def unconnected(self, reason: NotSentReason, detail: str) -> None:
        self.told.set_result(reason)


@pytest.mark.parametrize("greeting", [b"", b"220 ready\r\n"], ids=["closes", "speaks first"])
async def test_a_connection_that_was_over_before_it_was_given_is_not_given(origin: Origin, greeting: bytes) -> None:
    """An upstream that ends, or speaks, at once was sent no byte: NotSent, and the pool counts right."""
    async with edge(configuration(origin.url)) as gate:
        pool = Pool(Place("odd", "127.0.0.1", origin.port), gate.running.app.clock, gate.running.app.tasks)
        made = Wanting()
        pool.acquire(made)
        connection = await made.told
        assert isinstance(connection, Connection)
        # It ends, or speaks, while nobody reads it …
        if greeting:
            connection.data_received(greeting)
        else:
            connection.eof_received()
        # … and is given back by somebody who had no use for it, while another waits.
        waits = Wanting()
        pool._wanting.append(waits)
        pool.release(connection)
        assert isinstance(await waits.told, Connection)
        assert pool._open == 1
        pool.release(waits.told.result())  # type: ignore[arg-type]
        pool.close()
        await eventually(lambda: pool._open == 0, "the pool is empty")

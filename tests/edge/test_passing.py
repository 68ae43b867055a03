"""What is not guarded: streamed both ways, framed anew, with the sender's bytes left as they are."""

from __future__ import annotations

import os

import pytest

from tests.edge.stand import (
    GET,
    ByHand,
    edge,
    fields_of,
    head_of,
    piece,
    post,
    values,
)
from tests.harness import Exchange, Origin, ask, configuration, request

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
    """Chunk extensions are for one hop and are dropped; the data goes on as it comes, and so do trailers, less those
    that no trailer may be."""
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
        assert values(fields, b"trailer") == [b"X-Sum"]
        assert await peer.read(41) == b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nX-Sum: 1\r\n\r\n"
        await peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"4;a=b\r\nback\r\n0\r\nX-Sum: 2\r\nSet-Cookie: a=b\r\n\r\n"
        )
        head = await head_of(client)
        assert values(fields_of(head), b"transfer-encoding") == [b"chunked"]
        assert values(fields_of(head), b"trailer") == [b"X-Sum"]
        assert await piece(client, 24) == b"4\r\nback\r\n0\r\nX-Sum: 2\r\n\r\n"
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


@pytest.mark.parametrize("status", [600, 999])
async def test_a_status_that_http_does_not_define_is_passed_on(hand: ByHand, status: int) -> None:
    """Status, reason, fields and body as the service sent them, and its connection serves the next request."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        for turn in range(3):  # the first head like it, and heads like one before
            if turn:
                await client.send(GET)
            await peer.head()
            await peer.send(b"HTTP/1.1 %d Odd Indeed\r\nX-Odd: yes\r\nContent-Length: 4\r\n\r\nbody" % status)
            head = await head_of(client)
            assert head.startswith(b"HTTP/1.1 %d Odd Indeed\r\n" % status)
            assert values(fields_of(head), b"x-odd") == [b"yes"]
            assert await piece(client, 4) == b"body"
        assert hand.connections == 1


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
    """Those of RFC 9110 §7.6.1, and whatever Connection names. Only that trailers are welcome is said anew: they are
    passed on."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"GET /open/x HTTP/1.1\r\nHost: a\r\n" + HOP_BY_HOP + b"\r\n")
        peer = await hand.accept()
        own = {b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
        fields = await peer.fields()
        assert [field for field in fields if field[0].lower() not in own] == [
            (b"Host", b"a"), (b"X-Stays", b"yes"), (b"Connection", b"TE"), (b"TE", b"trailers")
        ]  # fmt: skip
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

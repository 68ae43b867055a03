"""Trailers: passed on both ways where nothing is guarded, dropped where an answer is stored, and never what a head
alone may say (RFC 9110 §6.5)."""

from __future__ import annotations

import pytest

from gateway.edge.wire import last_chunk
from tests.edge.stand import GET, ByHand, edge, fields_of, head_of, keyed, piece, values
from tests.harness import Exchange, Origin, configuration

CHUNKED = b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n%b\r\n5\r\nhello\r\n0\r\n%b\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n%b\r\n5\r\nhello\r\n0\r\n%b\r\n"

#: What no trailer may be, in some of its spellings.
FORBIDDEN = (
    b"Trailer: X", b"transfer_encoding: chunked", b"Connection: close", b"Host: evil", b"TE: x", b"Via: 1.1 a",
    b"Authorization: Basic x", b"Cookie: a=b", b"Set-Cookie: a=b", b"X-Api-Key: x", b"Content-Type: text/html",
    b"Content-Encoding: gzip", b"content_length: 3", b"Cache-Control: no-store", b"Date: x", b"Location: /x",
    b"X-Forwarded-For: 192.0.2.1", b"X_Forwarded_Host: a", b"Forwarded: for=a", b"Idempotency-Key: other",
    b"Idempotency-Attempt: 2", b"Idempotency-Status: stored", b"Idempotency-Outcome: no-effect", b"Expect: x",
    b"Range: bytes=0-1", b"If-Match: x", b"Retry-After: 1", b"WWW-Authenticate: Basic", b"X-Tenant: b",
)  # fmt: skip


def lines(*fields: bytes) -> bytes:
    return b"".join(field + b"\r\n" for field in fields)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "chunk by chunk"])
async def test_trailers_of_a_request_reach_the_service(hand: ByHand, late: bool) -> None:
    """As they came, in their order, announced or not; and the connections go on."""
    trailers = lines(b"X-Sum: 1", b"grpc-status: 0", b"x-sum:  2")
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        whole = CHUNKED % (b"Trailer: X-Sum, Content-Length,\r\nTrailer: grpc-status\r\n", trailers)
        if late:
            cut = whole.index(b"5\r\n")
            await client.send(whole[:cut])
            peer = await hand.accept()
            head = await peer.head()
            await client.send(whole[cut:])
        else:
            await client.send(whole)
            peer = await hand.accept()
            head = await peer.head()
        assert values(fields_of(head), b"trailer") == [b"X-Sum, grpc-status"]
        sent = b"5\r\nhello\r\n0\r\n" + lines(b"X-Sum: 1", b"grpc-status: 0", b"x-sum: 2") + b"\r\n"
        assert await peer.read(len(sent)) == sent
        await peer.answer(b"one")
        assert (await client.read()).body == b"one"
        await client.send(CHUNKED % (b"", b""))  # what the last one trailed is not in the next
        await peer.head()
        assert await peer.read(15) == b"5\r\nhello\r\n0\r\n\r\n"
        await peer.answer(b"two")
        assert (await client.read()).body == b"two"


async def test_trailers_behind_a_pipelined_request_wait_with_it(hand: ByHand) -> None:
    """Each body has its own."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"".join(CHUNKED % (b"", b"X-N: %d\r\n" % n) for n in range(2)))
        for n in range(2):
            peer = await hand.accept()
            await peer.head()
            assert await peer.read(23) == b"5\r\nhello\r\n0\r\nX-N: %d\r\n\r\n" % n
            await peer.answer()
            assert (await client.read()).status == 200


async def test_trailers_behind_an_upgrade_that_was_not_made(hand: ByHand) -> None:
    """What the parser that goes on is told about the framing is none of them."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(CHUNKED % (b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"X-Sum: 1\r\n"))
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(25) == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
        await peer.answer()
        await client.read()


async def test_trailers_of_a_response_reach_the_client(hand: ByHand) -> None:
    """The service was told that they are welcome where the client said so."""
    async with edge(configuration(hand.url)) as gate:
        client, peer = await gate.connect(), None
        for te, said in (
            (b"TE: trailers\r\nConnection: TE\r\n", [b"trailers"]),
            (b"TE: gzip;q=0.5, Trailers\r\n", [b"trailers"]),
            (b"TE: gzip\r\n", []),
            (b"", []),
        ):
            await client.send(GET[:-2] + te + b"\r\n")
            peer = peer or await hand.accept()
            fields = fields_of(await peer.head())
            assert values(fields, b"te") == said
            assert values(fields, b"connection") == ([b"TE"] if said else [])
            await peer.send(ANSWER % (b"Trailer: X-Sum, Set-Cookie\r\n", b"X-Sum: 2\r\nSet-Cookie: a=b\r\n"))
            assert values(fields_of(await head_of(client)), b"trailer") == [b"X-Sum"]
            assert await piece(client, 25) == b"5\r\nhello\r\n0\r\nX-Sum: 2\r\n\r\n"
        assert hand.connections == 1


async def test_the_fields_of_a_surplus_response_are_nobodys_trailers(hand: ByHand) -> None:
    """A second response in one piece with the first is dropped with its connection, its fields and its trailers too."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(ANSWER % (b"", b"X-Mine: 1\r\n") + ANSWER % (b"X-Other: 2\r\n", b"X-More: 3\r\n"))
        await head_of(client)
        assert await piece(client, 26) == b"5\r\nhello\r\n0\r\nX-Mine: 1\r\n\r\n"
        assert await peer.ended()


async def test_an_old_client_gets_no_trailers(hand: ByHand) -> None:
    """In HTTP/1.0 there is no place for them."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"GET /open/x HTTP/1.0\r\nHost: a\r\n\r\n")
        peer = await hand.accept()
        await peer.head()
        await peer.send(ANSWER % (b"Trailer: X-Sum\r\n", b"X-Sum: 2\r\n"))
        assert values(fields_of(await head_of(client)), b"trailer") == []
        assert await piece(client, 5) == b"hello"
        assert await client.ended()


async def test_what_no_trailer_may_be_is_dropped(hand: ByHand) -> None:
    """Framing, routing, credentials, conditions, the gate's own names and what its routes go by: neither way."""
    trailers = lines(b"X-First: 1", *FORBIDDEN, b"X-Last: 1")
    async with edge(configuration(hand.url, policy="scope: [header:X-Tenant]")) as gate:
        client = await gate.connect()
        await client.send(CHUNKED % (b"", trailers))
        peer = await hand.accept()
        await peer.head()
        sent = b"5\r\nhello\r\n0\r\nX-First: 1\r\nX-Last: 1\r\n\r\n"
        assert await peer.read(len(sent)) == sent
        own = [field for field in FORBIDDEN if not field.startswith(b"X-Tenant")]
        await peer.send(ANSWER % (b"", lines(b"X-First: 1", *own, b"X-Last: 1")))
        await head_of(client)
        assert await piece(client, len(sent)) == sent


async def test_neither_a_guarded_request_nor_its_stored_answer_has_trailers(origin: Origin) -> None:
    """Both are read whole: what is stored is what a duplicate gets."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(ANSWER % (b"Trailer: X-Sum\r\n", b"X-Sum: 2\r\n"))

    origin.answer = answer
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        for _ in range(2):
            await client.send(
                b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nTE: trailers\r\nTrailer: X-Sum\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
            )
            read = await client.read()
            assert (read.body, read.values("Trailer"), read.values("X-Sum")) == (b"hello", [], [])
            assert read.values("Content-Length") == ["5"]
        (received,) = origin.requests
        assert received.body == b"hello"
        for name in (b"te", b"trailer", b"x-sum", b"connection"):
            assert received.values(name) == []


async def test_the_strict_recorder_reads_the_trailers(origin: Origin) -> None:
    """h11 finds one well-formed request, and the next behind it."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        for _ in range(2):
            await client.send(CHUNKED % (b"Trailer: X-Sum\r\n", b"X-Sum: 1\r\nContent_Length: 5\r\n"))
            assert (await client.read()).status == 201
        await client.send(keyed("k", b"x"))
        assert (await client.read()).label == "stored"
        assert [received.body for received in origin.requests] == [b"hello", b"hello", b"x"]


def test_the_end_of_a_body_without_trailers_is_what_it_was() -> None:
    """And one whose trailers are all dropped is the same."""
    assert last_chunk([]) == last_chunk([(b"Transfer-Encoding", b"chunked")]) == b"0\r\n\r\n"

"""What is guarded, as bytes: how it is read and forwarded, what is kept of its answer, and what is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from tests.edge.stand import (
    GET,
    OK,
    SOON,
    ByHand,
    Edge,
    Peer,
    drain,
    edge,
    eventually,
    feed,
    fields_of,
    head_of,
    keyed,
    narrow_client,
    not_kept,
    piece,
    values,
)
from tests.harness import Client, Exchange, GateProcess, Origin, Response, ask, configuration
from tests.servers import RedisServer, preferred

# ── How it is read and forwarded ──────────────────────────────────────────────────────────────────


async def test_a_chunked_request_is_forwarded_with_its_length(hand: ByHand) -> None:
    """It is read whole first, and its trailers are dropped."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(
            b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await client.send(b"5\r\nhello\r\n")
        await client.send(b"6;x=y\r\n world\r\n0\r\nX-T: 1\r\n\r\n")
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"content-length") == [b"11"]
        assert values(fields, b"transfer-encoding") == []
        assert await peer.read(11) == b"hello world"
        await peer.answer()
        assert (await client.read()).label == "stored"


@pytest.mark.parametrize(
    ("framing", "body", "length"),
    [
        (b"", b"", []),
        (b"Content-Length: 0\r\n", b"", [b"0"]),
        (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", [b"0"]),
    ],
    ids=["none", "sized", "chunked"],
)
async def test_a_request_without_a_body_is_framed_as_the_client_framed_it(
    hand: ByHand, framing: bytes, body: bytes, length: list[bytes]
) -> None:
    """No length is invented for a request that declared no body."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(b"DELETE /orders/1 HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\n" + framing + b"\r\n" + body)
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"content-length") == length
        assert values(fields, b"transfer-encoding") == []
        await peer.answer()
        assert (await client.read()).label == "stored"


async def test_an_expectation_is_answered_by_the_gate_and_not_forwarded(hand: ByHand) -> None:
    """100 Continue before the body; the upstream is asked only once it is whole."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(
            b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nExpect: 100-Continue\r\n"
            b"Content-Length: 5\r\n\r\n"
        )
        assert await head_of(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert hand.connections == 0
        await client.send(b"hello")
        peer = await hand.accept()
        assert values(await peer.fields(), b"expect") == []
        assert await peer.read(5) == b"hello"
        await peer.answer()
        assert (await head_of(client)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_an_expectation_is_not_met_where_the_request_is_refused_anyway(hand: ByHand) -> None:
    """The client is told at once and sends no body: 413 by its length, 400 by its key."""
    async with edge(configuration(hand.url, policy="max_request: 1KiB")) as gate:
        for key, length, problem in (("k", 1025, "body-too-large"), ('"', 5, "key-invalid")):
            client = await gate.connect()
            await client.send(
                b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: %b\r\nExpect: 100-continue\r\n"
                b"Content-Length: %d\r\n\r\n" % (key.encode(), length)
            )
            head = await head_of(client)
            assert b"Connection: close" in head
            assert problem.encode() in await drain(client)
        assert hand.connections == 0


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize(
    ("framing", "sent", "body"),
    [
        (b"", b"", b""),
        (b"Content-Length: 0\r\n", b"", b""),
        (b"Content-Length: 5\r\n", b"hello", b"hello"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
    ],
    ids=["none", "empty", "sized", "chunked"],
)
@pytest.mark.parametrize("split", [False, True], ids=["one packet", "two packets"])
@pytest.mark.parametrize("target", [b"/orders", b"/open/x"], ids=["guarded", "open"])
async def test_an_upgrade_is_not_made_and_not_forwarded(
    hand: ByHand, framing: bytes, sent: bytes, body: bytes, split: bool, target: bytes
) -> None:
    """`Upgrade: h2c`, as common clients send it, is for one hop. What it framed is read as framed, and a request
    behind it is read as a request."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\n%b%b\r\n" % (target, UPGRADE, framing)
        behind = keyed("behind", b"next")
        if split:
            await client.send(head)
            await client.send(sent + behind)
        else:
            await client.send(head + sent + behind)
        peer = await hand.accept()
        fields = await peer.fields()
        for name in (b"upgrade", b"connection", b"http2-settings"):
            assert values(fields, name) == []
        if values(fields, b"transfer-encoding"):
            assert (await peer.read(len(sent))).endswith(b"0\r\n\r\n")
        else:
            assert await peer.read(len(body)) == body
        await peer.answer(b"one")
        answer = await client.read()
        assert (answer.status, answer.body, answer.get("Connection")) == (200, b"one", None)
        head = await peer.head()
        assert b"Idempotency-Key: behind" in head
        assert await peer.read(4) == b"next"
        await peer.answer(b"two")
        assert (await client.read()).body == b"two"


async def test_the_key_goes_on_under_its_own_name(hand: ByHand) -> None:
    """As the client spelled it, so that the upstream may put a unique constraint on it; the attempt is ours."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(
            b'POST /orders HTTP/1.1\r\nHost: a\r\nx-idempotency-KEY: "k"; v=1\r\nIdempotency-Attempt: 2\r\n'
            b"Content-Length: 0\r\n\r\n"
        )
        peer = await hand.accept()
        fields = await peer.fields()
        assert (b"x-idempotency-KEY", b'"k"; v=1') in fields
        assert values(fields, b"idempotency-key") == []
        assert values(fields, b"idempotency-attempt") == []
        await peer.answer()
        assert (await client.read()).label == "stored"
        # The other field and the bare form name the same operation.
        await client.send(b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n")
        assert (await client.read()).replayed


# ── What is kept of an answer ─────────────────────────────────────────────────────────────────────


async def test_a_status_that_http_does_not_define_can_be_kept(origin: Origin) -> None:
    """A service that declares it an answer gets it replayed."""
    origin.answer = lambda exchange: exchange.respond(799, b"odd", fields=[(b"Idempotency-Outcome", b"keep")])
    async with edge(configuration(origin.url)) as gate:
        for label in ("stored", "replayed"):
            answer = await ask(gate.port, key="k", body=b"")
            assert (answer.status, answer.body, answer.label) == (799, b"odd", label)
        assert origin.effects == {b"k": 1}


async def test_a_replay_is_the_answer_less_what_spoke_of_the_moment(hand: ByHand) -> None:
    """Status, body bytes, and every field with its case, order and repetition; not Date, Set-Cookie, or what was
    for one hop. The upstream's own words under the gate's names reach nobody."""
    body = bytes(range(256)) * 300
    kept = (
        b"Content-Type: application/json\r\nX-Twice: a\r\nVARY: x\r\nx-twice: b, c\r\nX-Obs: caf\xe9\r\nX-Empty: \r\n"
    )
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", b"hello"))
        peer = await hand.accept()
        await peer.head()
        await peer.read(5)
        await peer.send(
            b"HTTP/1.1 201 Made It\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nSet-Cookie: a=b\r\n"
            b"Connection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nIdempotent-Replayed: true\r\n"
            b"Idempotency-Status: replayed\r\nidempotency-expires: never\r\nIdempotency-First-Seen: x\r\n"
            + kept
            + b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for start in range(0, len(body), 10_000):
            part = body[start : start + 10_000]
            await peer.send(b"%x\r\n%b\r\n" % (len(part), part))
        await peer.send(b"0\r\nX-Trailer: 1\r\n\r\n")

        head = await head_of(client)
        assert await piece(client, len(body)) == body
        first = fields_of(head)
        assert head.startswith(b"HTTP/1.1 201 ")
        assert values(first, b"date") == [b"Tue, 15 Nov 1994 08:12:31 GMT"]
        assert values(first, b"set-cookie") == [b"a=b"]
        assert values(first, b"idempotency-status") == [b"stored"]
        assert values(first, b"content-length") == [b"%d" % len(body)]
        assert kept in head
        for name in (
            b"connection",
            b"x-hop",
            b"keep-alive",
            b"transfer-encoding",
            b"idempotent-replayed",
            b"x-trailer",
        ):
            assert values(first, name) == [], name

        await client.send(keyed("k", b"hello"))
        head = await head_of(client)
        assert await piece(client, len(body)) == body
        again = fields_of(head)
        assert head.startswith(b"HTTP/1.1 201 ")
        assert kept in head
        assert values(again, b"idempotent-replayed") == [b"true"]
        assert values(again, b"idempotency-status") == [b"replayed"]
        assert values(again, b"content-length") == [b"%d" % len(body)]
        for name in (b"idempotency-first-seen", b"idempotency-expires"):
            assert values(again, name) == values(first, name) != []
        (date,) = values(again, b"date")
        assert date != b"Tue, 15 Nov 1994 08:12:31 GMT"
        for name in (b"set-cookie", b"connection", b"x-hop", b"keep-alive", b"transfer-encoding", b"x-trailer"):
            assert values(again, name) == [], name
        assert hand.connections == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_is_replayed_without_one(origin: Origin, status: int) -> None:
    """A 204 or 304 ends with its head, the second time too; the connection goes on behind it."""

    async def empty(exchange: Exchange) -> None:
        await exchange.respond(status, fields=[(b"ETag", b"x")])

    origin.answer = empty
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        for replayed in (False, True, True):
            await client.send(keyed("k"))
            answer = await client.read()
            assert (answer.status, answer.body, answer.replayed) == (status, b"", replayed)
            assert answer.get("Content-Length") is None
            assert answer.get("ETag") == "x"
        assert len(origin.requests) == 1


async def test_interim_responses_are_not_kept_and_not_passed_on(hand: ByHand) -> None:
    """They are not the answer; what they carry is not taken into it."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await peer.answer(b"done", 201)
        for _ in range(2):
            head = await head_of(client)
            assert head.startswith(b"HTTP/1.1 201 ")
            assert b"Link" not in head
            assert await piece(client, 4) == b"done"
            if hand.connections == 1 and b"Replayed" not in head:
                await client.send(keyed("k"))


async def test_an_old_client_is_guarded_too(origin: Origin) -> None:
    """HTTP/1.0: the answer, and its replay, with a length; the connection ends unless it was asked to stay."""
    async with edge(configuration(origin.url)) as gate:
        for fields, connection in ((b"", "close"), (b"Connection: keep-alive\r\n", "keep-alive")):
            client = await gate.connect()
            await client.send(keyed("k", b"x", fields=fields, version=b"1.0"))
            answer = await client.read()
            assert (answer.status, answer.get("Connection")) == (201, connection)
            if connection == "close":
                assert await client.ended()
        assert len(origin.requests) == 1


# ── Remember, then speak ──────────────────────────────────────────────────────────────────────────


class Valve:
    """A proxy before a Redis whose replies can be held back."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._tasks: set[asyncio.Task[None]] = set()
        self.open = asyncio.Event()
        self.open.set()

    async def start(self) -> Valve:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there_writer, wait=False))
                group.create_task(self._pump(there_reader, writer, wait=True))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            there_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, wait: bool) -> None:
        while data := await reader.read(1 << 16):
            if wait:
                await self.open.wait()
            writer.write(data)
        raise ConnectionError

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@pytest.fixture
async def valve() -> AsyncIterator[tuple[Valve, redis.Redis]]:
    """A real Redis behind a valve, and a way to look into it past the valve."""
    with RedisServer(preferred()) as server, server.client() as client:
        valve = await Valve(server.port).start()
        yield valve, client
        await valve.stop()


async def test_nothing_is_said_before_the_store_has_acknowledged(
    hand: ByHand, valve: tuple[Valve, redis.Redis]
) -> None:
    """The answer is whole, the store has it, and its acknowledgement is on its way: not a byte has gone to the
    client."""
    held, store = valve
    async with edge(configuration(hand.url, store=held.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        held.open.clear()
        (name,) = [name for name in store.keys("*") if store.type(name) == b"string" and len(name) > 40]
        claim = store.get(name)
        await peer.answer(b"made", 201)
        await eventually(lambda: store.get(name) != claim, "the store has the settlement")
        # The gate is not stuck: others are served meanwhile.
        other = await gate.connect()
        await other.send(GET)
        await peer.head()
        await peer.answer(b"other")
        assert (await other.read(method=b"GET")).body == b"other"
        assert client.reader._buffer == b""  # type: ignore[attr-defined]
        held.open.set()
        answer = await client.read()
        assert (answer.status, answer.body) == (201, b"made")
        assert answer.label == "stored"


# ── Clients that leave ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_client_that_hangs_up_does_not_cancel_its_exchange(hand: ByHand, how: str) -> None:
    """The effect outlives the client: its retry is given the answer, and the upstream is asked once."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", b"body"))
        peer = await hand.accept()
        await peer.head()
        await peer.read(4)
        getattr(client, how)()
        if how == "reset":
            await gate.emptied()
        assert gate.server.door.budget.taken == 4  # its body is still held
        await peer.answer(b"made", 201)
        await gate.settled()
        again = await ask(gate.port, key="k", body=b"body", host="a")
        assert (again.status, again.body, again.label, again.replayed) == (201, b"made", "replayed", True)
        assert hand.connections == 1


async def test_a_duplicate_that_hangs_up_waits_no_more(hand: ByHand) -> None:
    """It owns nothing: its place and its bytes are free at once, while the first goes on."""
    async with edge(configuration(hand.url)) as gate:
        first, second = await gate.connect(), await gate.connect()
        await first.send(keyed("k", b"body"))
        peer = await hand.accept()
        await peer.head()
        await second.send(keyed("k", b"body"))
        await eventually(lambda: gate.server.driver.waiting == 1, "the duplicate waits")
        assert gate.server.door.budget.taken == 8
        second.reset()
        await eventually(lambda: gate.server.driver.waiting == 0, "it waits no more")
        assert gate.server.door.budget.taken == 4
        await peer.read(4)
        await peer.answer(b"made", 201)
        assert (await first.read()).body == b"made"


async def test_a_client_that_hangs_up_before_its_connection_is_made_is_served_all_the_same(hand: ByHand) -> None:
    """From the moment the request is whole it runs to its end."""
    async with edge(configuration(hand.url)) as gate:
        await gate.connect()
        await eventually(lambda: gate.server.connections, "it is connected")
        connection = gate.connection
        connection.data_received(keyed("k", b"body"))
        connection.abort()
        await gate.emptied()
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(4) == b"body"
        await peer.answer(b"made", 201)
        await gate.settled()
        again = await ask(gate.port, key="k", body=b"body", host="a")
        assert (again.status, again.replayed) == (201, True)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_client_that_hangs_up_within_its_body_has_asked_for_nothing(hand: ByHand, how: str) -> None:
    """Nothing is claimed, nothing forwarded, and what was reserved for its body is given back."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", b"x" * 1000)[:-1])
        await eventually(lambda: gate.server.door.budget.taken == 1000, "its body is reserved")
        getattr(client, how)()
        await gate.emptied()
        await gate.settled()
        assert hand.connections == 0
        assert gate.count("oncegate_settlements_total", route="all", settlement="release", reason="lost") == 0


# ── Tombstones ────────────────────────────────────────────────────────────────────────────────────


BODY = os.urandom(5000)


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 5000\r\n", BODY),
        (b"Transfer-Encoding: chunked\r\n", b"3e8\r\n" + BODY[:1000] + b"\r\nfa0\r\n" + BODY[1000:] + b"\r\n0\r\n\r\n"),
        (b"", BODY),
    ],
    ids=["declared", "chunked", "until the connection ends"],
)
@pytest.mark.parametrize("pace", ["at once", "byte by byte"])
async def test_a_body_over_the_limit_is_passed_on_and_not_kept(
    hand: ByHand, framing: bytes, body: bytes, pace: str
) -> None:
    """Too big is not an error: the first client gets every byte, only the replay is lost."""
    async with edge(configuration(hand.url, policy="max_response: 2KiB")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        response = b"HTTP/1.1 202 Accepted\r\n" + framing + b"X-Field: yes\r\n\r\n" + body
        if pace == "at once":
            await peer.send(response)
        else:
            for start in range(0, len(response), 97):
                await peer.send(response[start : start + 97])
                await asyncio.sleep(0)
        if not framing:
            peer.close()
        answer = await client.read()
        assert (answer.status, answer.body, answer.label) == (202, BODY, "not-kept")
        assert answer.get("X-Field") == "yes"
        await gate.settled()
        await not_kept(gate, 202)
        # The connections go on.
        await client.send(keyed("other"))
        if not framing:
            peer = await hand.accept()
        await peer.head()
        await peer.answer(b"next")
        assert (await client.read()).body == b"next"


#: The fields of a stream, and the end of its head.
EVENTS = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "field",
    [
        b"Content-Type: text/event-stream",
        b"content-type:  Text/Event-Stream; charset=utf-8",
        b"Content-Type: multipart/x-mixed-replace; boundary=x",
        b"Content-Type: application/x-ndjson",
        b"Content-Type: application/jsonl; charset=utf-8",
        b"Content-Type: application/json-seq",
        b"Content-Type: application/stream+json",
        b"Content-Type: application/grpc+proto",
        b"Content-Type: application/connect+json",
        b"Content-Type: application/vnd.amazon.eventstream",
        b'Content-Type: multipart/mixed; boundary="-"; deferSpec=20220824',
        b'Content-Type: multipart/mixed;boundary="graphql";subscriptionSpec="1.0"',
        b"X-Accel-Buffering: no",
        b"x-accel-buffering: No",
    ],
)
async def test_a_stream_flows_and_is_not_kept(hand: ByHand, field: bytes) -> None:
    """As soon as its head shows it the client gets each event as it comes. A duplicate is told that it ran once it has
    ended, and not before."""
    async with edge(configuration(hand.url, policy="wait: 0s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + field + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        head = await head_of(client)
        assert values(fields_of(head), b"idempotency-status") == [b"not-kept"]
        await in_flight(gate)
        for event in (b"one", b"two", b"six"):
            await peer.send(b"3\r\n" + event + b"\r\n")
            assert await piece(client, 8) == b"3\r\n" + event + b"\r\n"
        await peer.send(b"0\r\n\r\n")
        assert await piece(client, 5) == b"0\r\n\r\n"
        await not_kept(gate, 200)
        assert hand.connections == 1


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Type: application/x-ndjson\r\nContent-Length: 8\r\n",
        b"Content-Type: text/event-stream\r\nContent-Length: 8\r\n",
        b"X-Accel-Buffering: no\r\nContent-Length: 8\r\n",
        b'Content-Type: multipart/mixed; boundary="-"\r\nTransfer-Encoding: chunked\r\n',
    ],
    ids=["ndjson", "events", "unbuffered", "multipart"],
)
@pytest.mark.parametrize("pace", ["at once", "byte by byte"])
async def test_an_answer_whose_end_is_known_is_no_stream(hand: ByHand, fields: bytes, pace: str) -> None:
    """One that declares its length is kept and replayed, of whatever type it is; so is a finite `multipart/mixed`."""
    body = b'8\r\n{"a": 1}\r\n0\r\n\r\n' if b"chunked" in fields else b'{"a": 1}'
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        peer: Peer | None = None
        for key in ("k", "other"):
            await client.send(keyed(key))
            peer = peer or await hand.accept()
            await peer.head()
            response = OK + fields + b"\r\n" + body
            for piece_of_it in [response] if pace == "at once" else [bytes([byte]) for byte in response]:
                await peer.send(piece_of_it)
                await asyncio.sleep(0)
            answer = await client.read()
            assert (answer.status, answer.body, answer.label) == (200, b'{"a": 1}', "stored")
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.body, again.label) == (200, b'{"a": 1}', "replayed")


async def test_a_route_says_which_types_are_streams(hand: ByHand) -> None:
    """`stream_types` takes the place of the built-in list: an endless feed of its own type goes out piece by piece, and
    finite JSON Lines without a length are kept."""
    async with edge(configuration(hand.url, policy="stream_types: [application/x-feed]")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Type: application/x-feed\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert values(fields_of(await head_of(client)), b"idempotency-status") == [b"not-kept"]
        assert await piece(client, 8) == b"3\r\none\r\n"
        await peer.send(b"0\r\n\r\n")
        assert await piece(client, 5) == b"0\r\n\r\n"
        await client.send(keyed("lines"))
        await peer.head()
        await peer.send(OK + b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.send(b"3\r\none\r\n0\r\n\r\n")
        answer = await client.read()
        assert (answer.body, answer.label) == (b"one", "stored")


async def test_an_answer_that_ends_with_its_connection_is_not_kept(hand: ByHand) -> None:
    """It may have been cut off and nobody could tell; the first client gets what came."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"\r\nsmall")
        peer.close()
        answer = await client.read()
        assert (answer.status, answer.body, answer.label) == (200, b"small", "not-kept")
        await not_kept(gate, 200)


async def test_a_small_stream_that_is_whole_leaves_its_connection_in_order(hand: ByHand) -> None:
    """Head and body came in one packet, and reading was paused between them. The next request on that
    connection must be heard."""
    async with edge(configuration(hand.url, upstream="timeout: 5s")) as gate:
        client = await gate.connect()
        await client.send(keyed("stream"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + EVENTS + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
        assert (await client.read()).body == b"data: 1\n\n"
        await client.send(keyed("next"))
        await peer.head()
        await peer.answer(b"next", 201)
        answer = await client.read()
        assert (answer.status, answer.body, answer.label) == (201, b"next", "stored")
        assert hand.connections == 1


@pytest.mark.parametrize("fields", [b"", b"Connection: keep-alive\r\n"], ids=["plain", "keep-alive"])
async def test_a_stream_to_an_old_client_ends_with_its_connection(hand: ByHand, fields: bytes) -> None:
    """HTTP/1.0 has no chunks: the end of the connection is the end of the stream, even where the client asked
    for it to be kept."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", fields=fields, version=b"1.0"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        head = await head_of(client)
        assert values(fields_of(head), b"connection") == [b"close"]
        assert await piece(client, 3) == b"one"
        await peer.send(b"3\r\ntwo\r\n0\r\n\r\n")
        assert await drain(client) == b"two"


@pytest.mark.parametrize("ending", ["reset", "close"])
async def test_a_stream_that_breaks_off_is_seen_to(hand: ByHand, ending: str) -> None:
    """The client must not take it for whole, and the rest is unknown: in doubt."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await head_of(client)
        assert await piece(client, 8) == b"3\r\none\r\n"
        getattr(peer, ending)()
        assert await drain(client) == b""
        await in_doubt(gate)


# ── Long answers whose clients leave, or do not read ──────────────────────────────────────────────

LONG = os.urandom(300 << 10)
HALF = len(LONG) // 2


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


#: An answer that is not kept: its head, its body's two halves, and what ends it. The last one ends with its connection.
FORMS = {
    "declared": (b"Content-Length: %d\r\n\r\n" % len(LONG), LONG[:HALF], LONG[HALF:], b""),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n", chunked(LONG[:HALF]), chunked(LONG[HALF:]), b"0\r\n\r\n"),
    "a stream": (EVENTS, chunked(LONG[:HALF]), chunked(LONG[HALF:]), b"0\r\n\r\n"),
    "until the end": (b"Content-Type: text/event-stream\r\n\r\n", LONG[:HALF], LONG[HALF:], b""),
}


async def in_flight(gate: Edge) -> None:
    """A duplicate gets 409 in-flight."""
    again = await ask(gate.port, key="k", body=b"", host="a")
    assert (again.status, again.problem) == (409, "in-flight")


async def in_doubt(gate: Edge) -> None:
    """A duplicate gets 409 in-doubt."""
    again = await ask(gate.port, key="k", body=b"", host="a")
    assert (again.status, again.problem, again.label) == (409, "in-doubt", "in-doubt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("moment", ["before the head", "behind the head", "in the middle"])
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_long_answer_outlives_its_client(hand: ByHand, form: str, moment: str, how: str) -> None:
    """Whenever the client leaves: the service is not reset, all that it says is read, and the key is in flight until it
    has said it all."""
    head, half, rest, end = FORMS[form]
    async with edge(configuration(hand.url, policy="max_response: 64KiB, wait: 0s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        if moment != "before the head":
            await peer.send(OK + head)
            if form != "chunked":  # which cannot be seen to be long yet
                await head_of(client)
        if moment == "in the middle":
            await peer.send(half)
            await piece(client, 100 << 10)
        getattr(client, how)()
        if how == "reset":
            await gate.emptied()
        if moment == "before the head":
            await peer.send(OK + head)
        if moment != "in the middle":
            await peer.send(half)
        await in_flight(gate)
        await peer.send(rest[:-1])
        await in_flight(gate)
        await peer.send(rest[-1:] + end)
        if form == "until the end":
            peer.close()
        await gate.settled()
        await not_kept(gate, 200)
        line = next(line for line in gate.running.lines if line.get("settlement"))
        assert (line["settlement"], line["status"]) == ("keep", 200)
        # Its connection goes on.
        if form != "until the end":
            other = await gate.connect()
            await other.send(keyed("other"))
            await peer.head()
            await peer.answer(b"next")
            assert (await other.read()).body == b"next"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("left", [False, True], ids=["with its client", "without"])
async def test_a_long_answer_that_breaks_off_is_in_doubt(hand: ByHand, form: str, left: bool) -> None:
    """Whether or not somebody reads it: what was not read to its end is not done."""
    head, half, _, _ = FORMS[form]
    async with edge(configuration(hand.url, policy="max_response: 64KiB, wait: 0s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + head + half)
        await head_of(client)
        if left:
            client.reset()
            await gate.emptied()
        await in_flight(gate)
        peer.reset()
        if not left:
            await drain(client)
        await gate.settled()
        await in_doubt(gate)
        line = next(line for line in gate.running.lines if line.get("settlement"))
        assert (line["settlement"], line["reason"]) == ("hold", "lost")


async def test_a_client_that_ends_its_side_gets_the_whole_stream(hand: ByHand) -> None:
    """It has asked all that it wanted, and reads on."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        client.writer.write_eof()
        await peer.send(OK + EVENTS + chunked(b"one"))
        await head_of(client)
        assert await piece(client, 8) == b"3\r\none\r\n"
        await peer.send(chunked(b"two") + b"0\r\n\r\n")
        assert await drain(client) == b"3\r\ntwo\r\n0\r\n\r\n"
        await not_kept(gate, 200)


#: Far more than the sockets of a client that does not read take.
MUCH = 16 << 20


@pytest.mark.parametrize(
    ("limits", "upstream"),
    [("limits: {write_timeout: 1s}", "timeout: 60s"), ("", "timeout: 9s, late: 0s")],
    ids=["it takes no byte for write_timeout", "it takes too little in a third of the time"],
)
async def test_a_client_that_does_not_read_is_cut_off_and_the_service_read_on(
    hand: ByHand, limits: str, upstream: str
) -> None:
    """It may hold the service back for a while and no longer: then the rest is read without it, and dropped."""
    async with edge(configuration(hand.url, top=limits, upstream=upstream)) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % MUCH)
        fed = asyncio.ensure_future(feed(peer.writer, MUCH))
        await eventually(lambda: gate.held, "the client's buffer is full")
        await eventually(lambda: not gate.upstream._transport.is_reading(), "the service is held back")
        assert not fed.done()
        await fed
        await gate.settled()
        await not_kept(gate, 200)
        assert gate.count("oncegate_limits_total", limit="write_timeout") == 1
        await gate.emptied()
        assert hand.connections == 1


@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "its client leaves"])
async def test_a_stream_of_minutes_outlives_its_exchange(hand: ByHand, ends: bool) -> None:
    """Past `timeout` and `late` its key is in doubt. Its client reads on; a stream that ends after all is done, and one
    whose client leaves then is let go."""
    async with edge(configuration(hand.url, upstream="timeout: 1s, late: 0s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + EVENTS + chunked(b"one"))
        await head_of(client)
        assert await piece(client, 8) == b"3\r\none\r\n"
        labels = {"route": "all", "settlement": "hold", "reason": "timeout"}
        await eventually(lambda: gate.count("oncegate_settlements_total", **labels), "it is in doubt")
        await in_doubt(gate)
        await peer.send(chunked(b"two"))
        assert await piece(client, 8) == b"3\r\ntwo\r\n"
        if ends:
            await peer.send(b"0\r\n\r\n")
            assert await piece(client, 5) == b"0\r\n\r\n"
            await gate.settled()
            await not_kept(gate, 200)
        else:
            client.reset()
            assert await peer.ended()
            await gate.settled()
            await in_doubt(gate)


async def test_nobody_reads_a_stream_past_its_exchange(hand: ByHand) -> None:
    """Its client has left and it does not end: when its exchange has to end it is in doubt, and the service is let
    go."""
    async with edge(configuration(hand.url, upstream="timeout: 1s, late: 0s", policy="wait: 0s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + EVENTS + chunked(b"one"))
        await head_of(client)
        client.reset()
        await gate.emptied()
        await in_flight(gate)
        assert await peer.ended()
        await gate.settled()
        await in_doubt(gate)


@pytest.mark.parametrize(("status", "again"), [(429, (201, None)), (502, (409, "in-doubt"))])
async def test_a_long_answer_that_is_not_kept_for_its_status_outlives_its_client(
    hand: ByHand, status: int, again: tuple[int, str | None]
) -> None:
    """It is settled at its head, as its status says, and the service is read to the end of it."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 %d Status\r\n" % status + EVENTS + chunked(LONG))
        await head_of(client)
        client.reset()
        await gate.emptied()
        second = asyncio.ensure_future(ask(gate.port, key="k", body=b"", host="a"))
        if status == 429:
            other = await hand.accept()
            await other.head()
            await other.answer(b"made", 201)
        answer = await second
        assert (answer.status, answer.problem) == again
        await peer.send(chunked(LONG) + b"0\r\n\r\n")
        await gate.settled()
        # Nothing has broken it: it serves the next one.
        await eventually(lambda: gate.pool._idle, "its connection is idle")
        assert not peer.reader.at_eof()


@pytest.mark.parametrize("ends", [True, False], ids=["within the grace", "not within it"])
async def test_a_drain_waits_for_a_response_that_nobody_reads(hand: ByHand, ends: bool) -> None:
    """SIGTERM: the service is read to its end, as long as the grace allows, and else in doubt."""
    gate = await GateProcess(configuration(hand.url, top=f"grace: {'30s' if ends else '1s'}")).start()
    with contextlib.closing(gate):
        assert gate.process is not None
        client = await Client.connect(gate.port)
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + EVENTS + chunked(LONG))
        await head_of(client)
        client.reset()
        gate.process.terminate()
        await eventually(lambda: "stopping" in gate.log.read_text(), "it drains")
        if ends:
            await peer.send(chunked(LONG) + b"0\r\n\r\n")
        else:
            assert await peer.ended()
        await asyncio.to_thread(gate.process.wait, SOON)
        lines = [json.loads(line) for line in gate.log.read_text().splitlines()]
        (line,) = [line for line in lines if line.get("settlement")]
        assert (line["settlement"], line["reason"]) == (("keep", "stream") if ends else ("hold", "stopped"))


async def test_a_gate_that_is_killed_within_a_long_answer_leaves_a_doubt(hand: ByHand, tmp_path: Path) -> None:
    """Its client has half of it, and nothing says that it was done: in flight for the lease, and then in doubt."""
    times, store = "timeout: 4s, late: 0s", f"sqlite:///{tmp_path}/keys.db"
    gate = GateProcess(configuration(hand.url, store=store, policy="wait: 0s", upstream=times, top="margin: 100ms"))
    with contextlib.closing(await gate.start()):
        client = await Client.connect(gate.port)
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + EVENTS + chunked(LONG))
        await head_of(client)
        gate.kill()
        await drain(client)
        client.close()
        await gate.start()

        async def told() -> str | None:
            return (await ask(gate.port, key="k", body=b"", host="a")).problem

        seen = [await told()]
        async with asyncio.timeout(SOON):
            while seen[-1] != "in-doubt":
                await asyncio.sleep(0.05)
                seen.append(await told())
        assert set(seen) <= {"in-flight", "in-doubt"}
        assert hand.connections == 1


# ── The bytes that are held ───────────────────────────────────────────────────────────────────────

SCARCE = "limits: {buffers: 1MiB}\ndefaults: {max_request: 1MiB, max_response: 1MiB}"


async def test_bodies_are_reserved_against_one_total(hand: ByHand) -> None:
    """A body that does not fit beside the others is refused, not waited for, and nothing was run; once there is
    room again it is served."""
    async with edge(configuration(hand.url, top=SCARCE)) as gate:
        first = await gate.connect()
        large = b"x" * (700 << 10)
        await first.send(keyed("one", large)[:-1])
        await eventually(lambda: gate.server.door.budget.taken == len(large), "the first is reserved")
        declared = await ask(gate.port, key="two", body=large, host="a")
        assert (declared.status, declared.problem, declared.label) == (503, "overloaded", "refused")
        assert declared.get("Retry-After") == "1"
        chunked = await gate.connect()
        await chunked.send(
            b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: two\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
        )
        assert (await chunked.read()).problem == "overloaded"
        assert hand.connections == 0
        await first.send(b"x")
        peer = await hand.accept()
        await peer.head()
        await peer.read(len(large))
        await peer.answer(b"one")
        assert (await first.read()).body == b"one"
        await first.send(keyed("two", large))
        await peer.head()
        await peer.read(len(large))
        await peer.answer(b"two")
        assert (await first.read()).body == b"two"


async def test_an_answer_that_no_longer_fits_the_total_is_over_the_limit(hand: ByHand) -> None:
    """It is passed on whole and not kept."""
    async with edge(configuration(hand.url, top=SCARCE)) as gate:
        holder, client = await gate.connect(), await gate.connect()
        await holder.send(keyed("held", b"x" * (700 << 10))[:-1])
        await eventually(lambda: gate.server.door.budget.taken, "the other body is reserved")
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        body = os.urandom(600 << 10)
        await peer.answer(body, 201)
        answer: Response = await client.read()
        assert (answer.status, answer.body == body, answer.label) == (201, True, "not-kept")
        holder.reset()
        await not_kept(gate, 201)

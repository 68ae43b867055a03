"""Every way in which an upstream can fail to give an answer, or give it at the wrong time."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

import pytest

from tests.edge.stand import (
    GET,
    HELD,
    OK,
    SOON,
    ByHand,
    Edge,
    Peer,
    drink,
    edge,
    eventually,
    feed,
    fields_of,
    head_of,
    keyed,
    not_kept,
    values,
)
from tests.harness import Client, Origin, ask, configuration

# ── Broken upstreams ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Broken:
    """What an upstream writes and how it goes on; what the client gets; what a duplicate gets then."""

    answer: bytes
    then: str = "close"
    status: int = 502
    problem: str | None = "upstream-lost"
    label: str = "in-doubt"
    again: tuple[int, str | None, str] = (409, "in-doubt", "in-doubt")
    #: Of an answer that is one.
    body: bytes = b"body"
    #: Whether the connection is still in order, and serves the next request.
    reused: bool = False


LATE = {"status": 504, "problem": "upstream-timeout", "then": "stay"}
KEPT = {"status": 200, "problem": None, "label": "stored", "again": (200, None, "replayed")}
EMPTY = {"status": 204, "problem": None, "label": "stored", "again": (204, None, "replayed"), "body": b""}

BROKEN = {
    # It ends too soon
    "nothing, then the end": Broken(b""),
    "nothing, then a reset": Broken(b"", "reset"),
    "half a status line": Broken(b"HTTP/1.1 20"),
    "half a head": Broken(OK + b"Content-Length: 4\r\nX-"),
    "a head without its empty line": Broken(OK + b"Content-Length: 4\r\n"),
    "an interim response only": Broken(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a sized body cut off": Broken(OK + b"Content-Length: 100\r\n\r\nhalf"),
    "a sized body reset": Broken(OK + b"Content-Length: 100\r\n\r\nhalf", "reset"),
    "a sized body one byte short": Broken(OK + b"Content-Length: 5\r\n\r\nhalf"),
    "no body where one was declared": Broken(OK + b"Content-Length: 5\r\n\r\n"),
    "a chunk cut off": Broken(OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf"),
    "no last chunk": Broken(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    "no end of the trailers": Broken(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n"),
    "a body without length, reset": Broken(OK + b"\r\nhalf", "reset"),
    "nothing, then half a close": Broken(b"", "half-close"),
    "half a head, then half a close": Broken(OK + b"Content-Length: 4\r\nX-", "half-close"),
    "half a body, then half a close": Broken(OK + b"Content-Length: 100\r\n\r\nhalf", "half-close"),
    "no last chunk, then half a close": Broken(
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "half-close"
    ),
    # It does not come
    "silence": Broken(b"", **LATE),  # type: ignore[arg-type]
    "silence after half a head": Broken(OK + b"X-", **LATE),  # type: ignore[arg-type]
    "silence after half a body": Broken(OK + b"Content-Length: 100\r\n\r\nhalf", **LATE),  # type: ignore[arg-type]
    "silence without the last chunk": Broken(
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        **LATE,  # type: ignore[arg-type]
    ),
    "silence behind a body without length": Broken(OK + b"\r\nhalf", **LATE),  # type: ignore[arg-type]
    "interim responses only": Broken(b"HTTP/1.1 103 Hints\r\n\r\n" * 3, **LATE),  # type: ignore[arg-type]
    # It comes by single bytes, and is not whole in time
    "a head that drips": Broken(OK + b"X: ", "drip", 504, "upstream-timeout"),
    "interim responses, then a head that drips": Broken(
        b"HTTP/1.1 103 Hints\r\n\r\n" + OK + b"X: ", "drip", 504, "upstream-timeout"
    ),
    "a body that drips": Broken(
        OK + b"Content-Length: 100000\r\n\r\n", "drip", 504, "upstream-timeout"
    ),
    "a chunk that drips": Broken(
        OK + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n", "drip", 504, "upstream-timeout"
    ),
    "a body without length that drips": Broken(OK + b"\r\n", "drip", 504, "upstream-timeout"),
    # It is no HTTP/1.1
    "rubbish": Broken(b"rubbish\r\n\r\n"),
    "a TLS alert": Broken(b"\x15\x03\x01\x00\x02\x02\x46"),
    "HTTP/2": Broken(b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "HTTP/3.7": Broken(b"HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "HTTP/0.9": Broken(b"<html>hello</html>"),
    "ICY": Broken(b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "bare line feeds": Broken(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    "status 99": Broken(b"HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n"),
    "status 2000": Broken(b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    "status abc": Broken(b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"),
    "101": Broken(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "stay"),
    "101 without its fields": Broken(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "stay"),
    "an interim response with a body": Broken(
        b"HTTP/1.1 150 Odd\r\nContent-Length: 4\r\n\r\nevil" + OK + b"Content-Length: 4\r\n\r\ngood", "stay"
    ),
    "too many interim responses": Broken(
        b"HTTP/1.1 103 Hints\r\n\r\n" * 40 + OK + b"Content-Length: 0\r\n\r\n", "stay"
    ),
    "a head that is too large": Broken(OK + b"X: " + b"x" * (70 << 10) + b"\r\nContent-Length: 0\r\n\r\n", "stay"),
    "a head without end": Broken(OK + b"X: " + b"x" * (400 << 10), "stay"),
    "trailers without end": Broken(
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * (400 << 10), "stay"
    ),
    # Its fields are none
    "NUL in a value": Broken(OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n", "stay"),
    "CR in a value": Broken(OK + b"X: a\rb\r\nContent-Length: 0\r\n\r\n", "stay"),
    "LF in a value": Broken(OK + b"X: a\nb\r\nContent-Length: 0\r\n\r\n", "stay"),
    "a control byte in a value": Broken(OK + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n", "stay"),
    "DEL in a value": Broken(OK + b"X: a\x7fb\r\nContent-Length: 0\r\n\r\n", "stay"),
    "NUL in the reason": Broken(b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n", "stay"),
    "a space before the colon": Broken(OK + b"X : a\r\nContent-Length: 0\r\n\r\n", "stay"),
    "a folded value": Broken(OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n", "stay"),
    "no colon": Broken(OK + b"X\r\nContent-Length: 0\r\n\r\n", "stay"),
    "no name": Broken(OK + b": x\r\nContent-Length: 0\r\n\r\n", "stay"),
    # Its framing is none
    "two lengths": Broken(OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody", "stay"),
    "one length twice": Broken(OK + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody", "stay"),
    "a list of lengths": Broken(OK + b"Content-Length: 4, 4\r\n\r\nbody", "stay"),
    "a negative length": Broken(OK + b"Content-Length: -4\r\n\r\nbody", "stay"),
    "a signed length": Broken(OK + b"Content-Length: +4\r\n\r\nbody", "stay"),
    "a hexadecimal length": Broken(OK + b"Content-Length: 0x4\r\n\r\nbody", "stay"),
    "a length that is no number": Broken(OK + b"Content-Length: four\r\n\r\nbody", "stay"),
    "a length without end": Broken(OK + b"Content-Length: 99999999999999999999\r\n\r\nbody", "stay"),
    "a length and a coding": Broken(
        OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "stay"
    ),
    "gzip": Broken(OK + b"Transfer-Encoding: gzip\r\n\r\nbody"),
    "gzip, chunked": Broken(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "stay"),
    "chunked twice": Broken(OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "stay"),
    "a chunk size that is no number": Broken(OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nbody\r\n", "stay"),
    "a chunk that is longer than it says": Broken(
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbodybody\r\n0\r\n\r\n", "stay"
    ),
    "a chunk size without end": Broken(
        OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nbody\r\n", "stay"
    ),
    # It is an answer, with something odd about it
    "surplus bytes": Broken(OK + b"Content-Length: 4\r\n\r\nbodysurplus", "stay", **KEPT),  # type: ignore[arg-type]
    "a second response": Broken(
        OK + b"Content-Length: 4\r\n\r\nbodyHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        "stay",
        **KEPT,  # type: ignore[arg-type]
    ),
    "a reset behind it": Broken(OK + b"Content-Length: 4\r\n\r\nbody", "reset", **KEPT),  # type: ignore[arg-type]
    "half a close behind it": Broken(OK + b"Content-Length: 4\r\n\r\nbody", "half-close", **KEPT),  # type: ignore[arg-type]
    "half a close behind a last chunk": Broken(
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "half-close",
        **KEPT,  # type: ignore[arg-type]
    ),
    "half a close where a length should be": Broken(
        OK + b"\r\nbody", "half-close", 200, None, "not-kept", (409, "response-not-kept", "not-kept")
    ),
    "a body behind a 204": Broken(
        b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nbody", "stay", **EMPTY  # type: ignore[arg-type]
    ),
    "chunks behind a 204": Broken(
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "stay",
        **EMPTY,  # type: ignore[arg-type]
    ),
    "a body without length behind a 204": Broken(
        b"HTTP/1.1 204 No Content\r\n\r\nbody", "close", **EMPTY  # type: ignore[arg-type]
    ),
    "a response behind a 204": Broken(
        b"HTTP/1.1 204 No Content\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\nevil",
        "stay",
        **EMPTY,  # type: ignore[arg-type]
    ),
    "no reason phrase": Broken(
        b"HTTP/1.1 200\r\nContent-Length: 4\r\n\r\nbody", "stay", reused=True, **KEPT  # type: ignore[arg-type]
    ),
    "HTTP/1.0": Broken(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", "close", **KEPT),  # type: ignore[arg-type]
    "a 500": Broken(
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nbody", "close", 500, None, "stored", (500, None, "replayed")
    ),
    "a bare 503": Broken(
        b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbody", "close", 503, None
    ),
    "status 600": Broken(
        b"HTTP/1.1 600 Odd\r\nContent-Length: 4\r\n\r\nbody", "stay", 600, None, reused=True
    ),
    "status 999 in chunks": Broken(
        b"HTTP/1.1 999 Odd\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "stay", 999, None, reused=True,
    ),
    "status 799 and the end": Broken(b"HTTP/1.1 799 Odd\r\n\r\nbody", "close", 799, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_upstream_is_told_as_what_it_is(hand: ByHand, name: str) -> None:
    """Bytes were sent and no whole answer came back: 502 or 504 and in doubt, never a bare 500, never run again,
    and no truncated answer is ever replayed. A whole answer is kept, whatever came behind it. The next request is
    served as if nothing had been."""
    row = BROKEN[name]
    timing = "timeout: 150ms, late: 150ms" if row.status == 504 else "timeout: 20s"
    async with edge(configuration(hand.url, upstream=timing)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", b"body"))
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(4) == b"body"
        peer.writer.write(row.answer)
        if row.then == "close":
            peer.close()
        elif row.then == "reset":
            await peer.writer.drain()
            # A reset overtakes what it comes behind: it is sent once that was read.
            await eventually(lambda: _has_read(gate, row), "the gate has read what was sent")
            peer.reset()
        elif row.then == "half-close":
            peer.writer.write_eof()
        drops = asyncio.ensure_future(drip(peer)) if row.then == "drip" else None
        answer = await client.read(seconds=SOON)
        assert (answer.status, answer.problem, answer.label) == (row.status, row.problem, row.label)
        if row.problem is not None:
            assert answer.get("Idempotency-Outcome") == "unknown"
        else:
            assert answer.body == row.body
        await gate.settled()
        if drops is not None:
            assert await drops > 5  # it never stood still
        again = await ask(gate.port, key="k", body=b"body", host="a")
        assert (again.status, again.problem, again.label) == row.again
        if again.problem is None:
            assert again.body == row.body
        # On the client's own connection too; and nothing was forwarded a second time.
        await client.send(keyed("k", b"body"))
        assert (await client.read()).label == row.again[2]
        assert hand.connections == 1
        if row.reused:
            await next_is_served(gate, peer)
            assert hand.connections == 1
        else:
            await next_is_served(gate, hand)
            assert await rest(peer) == b""


#: Whose head is none, so that nothing of it may be passed on.
HEADLESS = [
    "rubbish", "HTTP/2", "HTTP/3.7", "ICY", "bare line feeds", "status 99", "status 2000", "status abc",
    "a head that is too large", "NUL in a value", "CR in a value", "LF in a value", "a control byte in a value",
    "DEL in a value", "NUL in the reason", "a space before the colon", "a folded value", "no colon", "no name",
    "two lengths", "one length twice", "a list of lengths", "a negative length", "a length without end",
    "a length and a coding", "gzip", "gzip, chunked", "chunked twice",
]  # fmt: skip


@pytest.mark.parametrize("name", HEADLESS)
async def test_a_head_that_is_none_is_not_passed_on(hand: ByHand, name: str) -> None:
    """Where nothing is guarded either: 502, and not a byte of it."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        peer.writer.write(BROKEN[name].answer)
        if BROKEN[name].then == "close":
            peer.close()
        answer = await client.read(method=b"GET", seconds=SOON)
        assert (answer.status, answer.problem) == (502, "upstream-lost")
        assert b"X" not in {field for field, _ in answer.fields}
        await next_is_served(gate, hand)
        assert await rest(peer) == b""


async def next_is_served(gate: Edge, upstream: ByHand | Peer) -> None:
    """The next request reaches the upstream, by a connection made for it or by the one given, and is answered."""
    client = await gate.connect()
    await client.send(keyed("next"))
    peer = await upstream.accept() if isinstance(upstream, ByHand) else upstream
    assert b"\r\nIdempotency-Key: next\r\n" in await peer.head()
    await peer.answer(b"next", 201)
    answer = await client.read()
    assert (answer.status, answer.body, answer.label) == (201, b"next", "stored")


async def rest(peer: Peer) -> bytes:
    """What else the upstream was sent by this connection, which must end."""
    data = b""
    try:
        async with asyncio.timeout(SOON):
            while more := await peer.reader.read(1 << 16):
                data += more
    except ConnectionError:
        pass
    return data


async def drip(peer: Peer) -> int:
    """Write a byte every ten milliseconds until the gate has left; gives how many were written."""
    for count in itertools.count():
        if peer.reader.at_eof() or peer.reader.exception() is not None:
            return count
        peer.writer.write(b"1")
        await asyncio.sleep(0.01)
    raise AssertionError


def _has_read(gate: Edge, row: Broken) -> bool:
    """Whether the gate has taken in what the upstream wrote before its reset."""
    if row.status == 200:
        return not gate.connection._queue
    (machine,) = gate.server.driver
    attempt = machine.run.attempt  # type: ignore[union-attr]
    return not row.answer or attempt._head is not None  # type: ignore[union-attr]


async def test_an_upstream_that_is_not_there_has_no_effect(hand: ByHand) -> None:
    """Refused connections: 502, released, and the next try is forwarded."""
    async with edge(configuration(hand.url)) as gate:
        port = int(hand.url.rpartition(":")[2])
        await hand.stop()
        answer = await ask(gate.port, key="k", body=b"", host="a")
        assert (answer.status, answer.problem, answer.label) == (502, "upstream-unreachable", "released")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        origin = await Origin().start(port)
        answer = await ask(gate.port, key="k", body=b"", host="a")
        assert (answer.status, answer.label, answer.replayed) == (201, "stored", False)
        await origin.stop()


async def test_where_no_connection_falls_free_nothing_was_sent(hand: ByHand) -> None:
    """The pool is at its cap: 503, released; nothing is written later either."""
    async with edge(configuration(hand.url, upstream="timeout: 200ms, late: 0s, connections: 1")) as gate:
        holder = await gate.connect()
        await holder.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: 4\r\n\r\n")
        answer = await ask(gate.port, key="k", body=b"", host="a")
        assert (answer.status, answer.problem, answer.label) == (503, "overloaded", "released")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        await peer.send(b"done")
        assert (await holder.read(method=b"GET")).body == b"done"
        await holder.send(GET)
        assert (await peer.head()).startswith(b"GET ")
        await peer.answer()
        assert (await holder.read(method=b"GET")).body == b"ok"


# ── Answers before the question was whole ─────────────────────────────────────────────────────────

LONG = 6 << 20


async def early(gate: Edge, narrow: ByHand, response: bytes) -> tuple[Client, Peer]:
    """A guarded request whose upstream answers while most of the body is still to be written."""
    client = await gate.connect()
    client.writer.write(keyed("k", b"x" * LONG))
    peer = await narrow.accept()
    await peer.head()
    peer.writer.transport.pause_reading()
    await peer.send(response)
    return client, peer


@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: 4\r\n\r\nbody",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        OK + b"Content-Length: %d\r\n\r\nbody" % (2 << 20),
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["sized", "chunked", "a stream", "over the limit", "302"],
)
async def test_an_early_success_is_no_answer(narrow: ByHand, response: bytes) -> None:
    """It says yes to what it has not read: lost, and in doubt."""
    async with edge(configuration(narrow.url)) as gate:
        client, peer = await early(gate, narrow, response)
        answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (502, "upstream-lost", "in-doubt")
        peer.writer.transport.resume_reading()
        assert await peer.ended()
        again = await ask(gate.port, key="k", body=b"x" * LONG, host="a")
        assert (again.status, again.problem) == (409, "in-doubt")
        assert narrow.connections == 1
        await next_is_served(gate, narrow)


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n"]
)
async def test_an_early_interim_response_is_not_an_early_answer(narrow: ByHand, interim: bytes) -> None:
    """The upstream says that it works on it while the body is still on its way, and answers when it has it all: that
    answer is kept."""
    async with edge(configuration(narrow.url)) as gate:
        client, peer = await early(gate, narrow, interim)
        peer.writer.transport.resume_reading()
        await peer.reader.readexactly(LONG)
        await peer.send(OK + b"Content-Length: 4\r\n\r\ndone")
        answer = await client.read()
        assert (answer.status, answer.label, answer.body) == (200, "stored", b"done")
        again = await ask(gate.port, key="k", body=b"x" * LONG, host="a")
        assert (again.status, again.replayed) == (200, True)


@pytest.mark.parametrize("then", ["stay", "close"])
async def test_an_early_refusal_that_is_complete_is_an_answer(narrow: ByHand, then: str) -> None:
    """A whole 413 is the upstream's word, and beats the write that fails behind it."""
    async with edge(configuration(narrow.url)) as gate:
        client, peer = await early(gate, narrow, b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nmuch")
        if then == "close":
            peer.close()
        answer = await client.read()
        assert (answer.status, answer.body, answer.label) == (413, b"much", "stored")
        again = await ask(gate.port, key="k", body=b"x" * LONG, host="a")
        assert (again.status, again.body, again.label) == (413, b"much", "replayed")
        peer.writer.transport.resume_reading()
        assert await peer.ended()
        assert narrow.connections == 1
        await next_is_served(gate, narrow)


async def test_an_early_refusal_that_is_not_complete_is_no_answer(narrow: ByHand) -> None:
    """Half a 413, and one that would end with its connection, say nothing."""
    for number, response in enumerate(
        (b"HTTP/1.1 413 No\r\nContent-Length: 9\r\n\r\nhalf", b"HTTP/1.1 413 No\r\n\r\nhalf")
    ):
        async with edge(configuration(narrow.url)) as gate:
            client, peer = await early(gate, narrow, response)
            peer.writer.transport.resume_reading()
            peer.writer.write_eof()
            answer = await client.read()
            assert (answer.status, answer.problem, answer.label) == (502, "upstream-lost", "in-doubt"), number
            again = await ask(gate.port, key="k", body=b"x" * LONG, host="a")
            assert (again.status, again.problem) == (409, "in-doubt")
            assert narrow.connections == 2 * number + 1
            await next_is_served(gate, narrow)


# ── Late answers, and bytes that are none ─────────────────────────────────────────────────────────


async def test_a_late_answer_is_given_to_the_retry(hand: ByHand) -> None:
    """504 after `timeout`; the gate listens on, the retry attaches, and both it and whoever comes later get the
    answer. It was asked once."""
    async with edge(configuration(hand.url, upstream="timeout: 150ms, late: 10s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (504, "upstream-timeout", "in-doubt")
        assert answer.get("X-Should-Retry") == "true"
        await client.send(keyed("k"))
        await eventually(lambda: gate.server.driver.waiting == 1, "the retry waits")
        await peer.answer(b"late", 201)
        retry = await client.read()
        assert (retry.status, retry.body, retry.replayed) == (201, b"late", True)
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.body, again.label) == (201, b"late", "replayed")
        assert hand.connections == 1


async def test_a_drip_that_ends_past_the_timeout_is_a_late_answer(hand: ByHand) -> None:
    """The first client is told 504 in the midst of it; once its last byte is there it is kept whole."""
    async with edge(configuration(hand.url, upstream="timeout: 150ms, late: 10s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: 1000\r\n\r\n")
        told, count = asyncio.ensure_future(client.read()), 0
        while not told.done():
            await peer.send(b"1")
            count += 1
            await asyncio.wait([told], timeout=0.01)
        answer = await told
        assert (answer.status, answer.problem, answer.label) == (504, "upstream-timeout", "in-doubt")
        assert 1 < count < 1000
        await peer.send(b"2" * (1000 - count))
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.label) == (200, "replayed")
        assert again.body == b"1" * count + b"2" * (1000 - count)
        await next_is_served(gate, peer)
        assert hand.connections == 1


async def test_a_late_stream_is_read_to_its_end_without_its_client(hand: ByHand) -> None:
    """Its client was told 504: the rest is read for the effect's sake, and a duplicate learns that it ran."""
    async with edge(configuration(hand.url, upstream="timeout: 150ms, late: 10s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        assert (await client.read()).status == 504
        await peer.send(OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.send(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
        await not_kept(gate, 200)
        assert hand.connections == 1
        await next_is_served(gate, peer)
        assert hand.connections == 1


@pytest.mark.parametrize(
    "surplus",
    [OK + b"Content-Length: 5\r\n\r\nwrong", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\r\n", b"x", b"left over"],
    ids=["a response", "an unsolicited 408", "an empty line", "a byte", "what is left of the last answer"],
)
async def test_bytes_that_nobody_asked_for_are_no_answer(hand: ByHand, surplus: bytes) -> None:
    """Whatever an idle connection says is nobody's answer: it is closed, and the next request goes elsewhere."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("one"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"one", 201)
        assert (await client.read()).body == b"one"
        await peer.send(surplus)
        assert await peer.ended()
        await client.send(keyed("two"))
        second = await hand.accept()
        await second.head()
        await second.answer(b"two", 201)
        answer = await client.read()
        assert (answer.body, answer.label) == (b"two", "stored")


@pytest.mark.parametrize(
    "left", [b"left over", b"\0", b"0\r\n\r\n", b"\r\n\r\nleft over"], ids=["text", "NUL", "a last chunk", "lines"]
)
async def test_what_is_left_of_an_answer_spoils_the_next_one(hand: ByHand, left: bytes) -> None:
    """It arrives behind the next request, and before that one's answer: what comes is no response, and the
    request in doubt. Neither the left-over nor the answer behind it is kept."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("one"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"one", 201)
        assert (await client.read()).body == b"one"
        await client.send(keyed("k"))
        assert b"\r\nIdempotency-Key: k\r\n" in await peer.head()
        await peer.send(left)
        await peer.answer(b"two", 201)
        answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (502, "upstream-lost", "in-doubt")
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.problem, again.label) == (409, "in-doubt", "in-doubt")
        first = await ask(gate.port, key="one", body=b"", host="a")
        assert (first.status, first.body, first.label) == (201, b"one", "replayed")
        assert hand.connections == 1
        await next_is_served(gate, hand)
        assert await rest(peer) == b""


@pytest.mark.parametrize("warm", [False, True])
async def test_a_fault_at_the_end_of_a_response_leaves_nobody_waiting(
    hand: ByHand, monkeypatch: pytest.MonkeyPatch, *, warm: bool
) -> None:
    """A fault of ours, where the parser does not call: the response is lost, and its client gets 502 at once."""

    def fails(*_: object) -> None:
        raise RuntimeError("a fault")

    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("0"))
        peer = await hand.accept()
        for number in range(1, 4 if warm else 1):  # what looks like the responses before it is read without the parser
            await peer.head()
            await peer.answer(b"ok")
            assert (await client.read()).status == 200
            await client.send(keyed(str(number)))
        await peer.head()
        monkeypatch.setattr("gateway.edge.upstream.Answered", fails)
        await peer.answer(b"ok")
        answer = await client.read()
        assert (answer.status, answer.problem) == (502, "upstream-lost")
        await peer.ended()


async def test_a_used_connection_that_was_closed_leaves_a_keyed_request_in_doubt(hand: ByHand) -> None:
    """It was written, and nobody knows: it is not written again."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("one"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"one", 201)
        await client.read()
        await client.send(keyed("two"))
        await peer.head()
        peer.close()
        answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (502, "upstream-lost", "in-doubt")
        assert hand.connections == 1


# ── An answer of 100 MB ───────────────────────────────────────────────────────────────────────────

HUGE = 100_000_000


async def test_a_huge_answer_is_passed_on_whole_and_not_kept(hand: ByHand) -> None:
    """Its client gets every byte as it comes, and the gate holds little of it at any time; a duplicate hears that
    it ran. Over a connection that is used again."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % HUGE)
        fields = fields_of(await head_of(client))
        assert values(fields, b"idempotency-status") == [b"not-kept"]
        assert values(fields, b"content-length") == [b"%d" % HUGE]
        fed = asyncio.ensure_future(feed(peer.writer, HUGE))
        drunk = asyncio.ensure_future(drink(client.reader, HUGE))
        most = 0
        while not drunk.done():
            most = max(most, gate.held, gate.server.door.budget.taken)
            await asyncio.wait([drunk], timeout=0.01)
        assert await drunk == await fed
        assert most <= HELD
        await not_kept(gate, 200)
        assert hand.connections == 1
        await gate.settled()
        await next_is_served(gate, peer)
        assert hand.connections == 1


@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_huge_answer_that_is_cut_off_is_not_taken_for_whole(hand: ByHand, ending: str) -> None:
    """A byte short: its client sees the connection end within the body. A duplicate is told that nobody knows what
    became of it."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % HUGE)
        await head_of(client)
        fed = asyncio.ensure_future(feed(peer.writer, HUGE - 1))
        assert await drink(client.reader, HUGE - 1) == await fed
        getattr(peer, ending)()
        assert await client.ended()
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.problem) == (409, "in-doubt")
        assert hand.connections == 1
        await next_is_served(gate, hand)

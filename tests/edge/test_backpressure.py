"""Whoever is slow slows the other side down: what the gate holds for one of its connections stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from gateway.core.decide import PassReason
from gateway.core.message import Request, Response
from gateway.core.outcome import Answered
from gateway.edge.tunnel import Tunnel
from gateway.edge.upstream import LiveStream
from tests.edge.stand import (
    GET,
    HELD,
    OK,
    ByHand,
    Edge,
    Peer,
    drink,
    edge,
    eventually,
    feed,
    head_of,
    keyed,
    narrow_client,
    post,
)
from tests.harness import Origin, configuration

# ── Backpressure ──────────────────────────────────────────────────────────────────────────────────


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


def send_little(gate: Edge) -> None:
    """Whoever is let in from now on has a send buffer that does not grow, as the kernel's grows on a path that it has
    come to know as fast."""
    for listener in gate.listening._listeners:
        for each in listener.sockets:
            with socket.socket(fileno=os.dup(each.fileno())) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)


async def test_a_connection_that_was_paused_at_its_end_serves_again(hand: ByHand) -> None:
    """The last byte of a response may be the one that fills the client's buffer. The upstream's connection,
    which has done its work, must then be read again, or the next request on it hears no answer."""
    async with edge(configuration(hand.url)) as gate:
        send_little(gate)
        peer = None
        for kib in range(100, 140, 4):  # how much the sockets hold is the kernel's to say: a few KiB more or less
            body = os.urandom(kib << 10)
            slow = await narrow_client(gate.port)
            gate.clients.append(slow)
            await slow.send(GET)
            peer = peer or await hand.accept()
            await peer.head()
            await peer.answer(body)
            await asyncio.sleep(0.1)
            if gate.connection.full:
                break
            assert (await slow.read(method=b"GET")).body == body
            slow.close()
            await gate.emptied()
        assert peer is not None
        assert gate.connection.full
        assert gate.pool._idle, "the upstream has answered"
        assert hand.connections == 1
        quick = await gate.connect()
        await quick.send(GET)
        await peer.head()
        await peer.answer(b"quick")
        assert (await quick.read(method=b"GET")).body == b"quick"
        assert (await slow.read(method=b"GET")).body == body


async def test_a_reader_that_is_full_before_the_upstream_is_connected_pauses_it(hand: ByHand) -> None:
    """The last response before it may fill the client's buffer once the next request has begun, and has no
    connection yet to be paused."""
    total, small = 24 << 20, 48 << 10  # of a response that is written at the end of its turn
    begun: list[int] = []
    async with edge(configuration(hand.url)) as gate:
        send_little(gate)
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        await client.send(GET * 12)

        async def serve(peer: Peer) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # ended while idle
                while total not in begun:
                    await peer.head()
                    size = total if gate.connection.full else small
                    begun.append(size)
                    await peer.send(OK + b"Content-Length: %d\r\n\r\n" % size)
                    await feed(peer.writer, size)

        async with asyncio.TaskGroup() as group:

            async def accept() -> None:
                while True:
                    group.create_task(serve(await hand.accept()))

            accepting = group.create_task(accept())
            await eventually(lambda: total in begun, "a long response begins")
            for _ in range(100):
                assert gate.held <= HELD
                await asyncio.sleep(0.002)
            accepting.cancel()
            for size in begun[: begun.index(total) + 1]:
                await head_of(client)
                await drink(client.reader, size)
            client.reset()


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


# ── Answers that are not kept ─────────────────────────────────────────────────────────────────────


async def test_a_slow_reader_of_a_long_answer_pauses_the_upstream(hand: ByHand) -> None:
    """What was held until the tombstone stood has filled the client's buffer: the upstream stays paused."""
    total = 24 << 20
    async with edge(configuration(hand.url, policy="max_response: 1MiB")) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % total)
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(peer.writer, total))
            await eventually(lambda: gate.held, "the client's buffer is full")
            await eventually(lambda: not gate.upstream._transport.is_reading(), "the upstream is paused")
            for _ in range(50):
                assert gate.held <= 2 * HELD
                await asyncio.sleep(0.002)
            assert not fed.done()
            await head_of(client)
            drunk = group.create_task(drink(client.reader, total))
            while not drunk.done():
                assert gate.held <= 2 * HELD
                await asyncio.sleep(0.002)
        assert fed.result() == drunk.result()


# ── Pauses that come from within ──────────────────────────────────────────────────────────────────
#
# uvloop's plain sockets tell that they are full once the loop turns; asyncio's, and TLS, from within `write`.


class Line:
    """A connection to an upstream that is full as soon as anything is written on it; it writes down its pauses."""

    served = 0

    def __init__(self) -> None:
        self.reading = True

    def start(self, receiver: Tunnel, *, bodiless: bool, data: bytes, more: bool) -> None:
        receiver.pause_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None: ...


class Guest:
    """The client's side of a tunnel."""

    http10 = False

    def __init__(self) -> None:
        self.read = True

    def hold_body(self) -> None:
        self.read = False

    def go_on(self) -> None:
        self.read = True


async def test_a_connection_that_is_full_at_once_does_not_let_the_client_go_on(origin: Origin) -> None:
    """It is given, takes the head and the first bytes, and is full: that is what counts, not that it was given."""
    async with edge(configuration(origin.url)) as gate:
        guest, line = Guest(), Line()
        question = Request(b"POST", b"/", [(b"Host", b"a")])
        tunnel = Tunnel(gate.pool, guest, question, PassReason.NO_KEY, length=10, chunked=False, timeout=10)  # type: ignore[arg-type]
        tunnel.request_body(b"half")
        tunnel.request_fed()
        assert not guest.read
        tunnel.connected(line)  # type: ignore[arg-type]
        assert not guest.read
        tunnel.resume_writing()
        assert guest.read
        tunnel.detach()


class Sink:
    """A client that is full as soon as it is given anything."""

    def __init__(self, stream: LiveStream) -> None:
        self.stream = stream

    def write(self, data: bytes) -> None:
        self.stream.pause()

    def end(self, *, clean: bool) -> None: ...


async def test_a_client_that_what_was_held_has_filled_keeps_the_upstream_paused(origin: Origin) -> None:
    """The stream is attached, gives what it held, and the client is full: the upstream is not read until it is
    ready again."""
    async with edge(configuration(origin.url)) as gate:
        line = Line()
        stream = LiveStream(gate.pool, line, Answered(Response(200, ())), None)  # type: ignore[arg-type]
        line.pause_reading()
        stream.write(b"held")
        stream.attach(Sink(stream))
        assert not line.reading
        stream.resume()
        assert line.reading


async def test_a_client_that_leaves_while_it_is_full_holds_nothing_back(origin: Origin) -> None:
    """The upstream is read on at once, and what comes is dropped."""
    async with edge(configuration(origin.url)) as gate:
        line = Line()
        stream = LiveStream(gate.pool, line, Answered(Response(200, ())), None)  # type: ignore[arg-type]
        line.pause_reading()
        stream.write(b"held")
        stream.attach(Sink(stream))
        stream.detach()
        assert line.reading
        stream.write(b"more")
        assert not stream._held

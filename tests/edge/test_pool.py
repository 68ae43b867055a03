"""Connections to an upstream: when they are used again, when a request is tried again, and how many there are."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading

import pytest

from gateway.core.outcome import NotSentReason
from gateway.edge.connection import Connection
from gateway.edge.connector import Place
from gateway.edge.pool import Pool
from tests.edge.stand import (
    GET,
    SOON,
    ByHand,
    Edge,
    Peer,
    edge,
    eventually,
    keyed,
    post,
)
from tests.harness import Client, Origin, Response, configuration, request, reset

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
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
    ],
    ids=[
        "close",
        "HTTP/1.0",
        "half a head behind",
        "a response behind",
        "a bodiless response behind",
        "chunked HTTP/1.0",
    ],
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
        assert not gate.pool._idle
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


async def test_a_second_try_waits_for_nobody(hand: ByHand) -> None:
    """Where as many pass as may, a GET whose used connection was closed has the place of that one: it does not stand
    behind those that wait, and is tried on a fresh connection, once, though another lies idle."""
    async with edge(configuration(hand.url, upstream="connections: 4")) as gate:
        guarded, *clients = [await gate.connect() for _ in range(4)]
        peers: dict[bytes, Peer] = {}
        for number, client in enumerate((guarded, *clients)):
            await client.send(keyed("one") if client is guarded else GET.replace(b"/x", b"/%d" % number))
            peer = await hand.accept()
            await peer.head()
            peers[b"%d" % number] = peer
        for number in (b"0", b"1", b"2", b"3"):
            await peers[number].answer(number, 201)
        for client in (guarded, *clients):
            await client.read()
        await eventually(lambda: len(gate.pool._idle) == 4, "all lie idle")
        for number, client in enumerate(clients):
            await client.send(GET.replace(b"/x", b"/again%d" % number))
        await eventually(lambda: len(gate.pool._passing) == 3, "as many pass as may, and one lies idle")
        (idle,) = gate.pool._idle
        used = next(peer for number, peer in peers.items() if number != b"0")
        head = await used.head()
        used.close()
        fresh = await hand.accept()
        assert await fresh.head() == head
        assert gate.pool._idle == [idle]
        assert len(gate.pool._passing) == 3
        for client in clients:
            reset(client.writer)


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
        await eventually(lambda: gate.pool.waiting, "the second waits")
        peer.reset()
        assert (await first.read(method=b"GET")).problem == "upstream-lost"
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"second")
        assert (await second.read(method=b"GET")).body == b"second"


@pytest.mark.parametrize(
    "behind",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsurplus", b"x", None],
    ids=["a response", "a byte", "the end"],
)
@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
async def test_what_comes_right_behind_an_answer_is_not_the_one_s_who_waits(
    hand: ByHand, monkeypatch: pytest.MonkeyPatch, behind: bytes | None, guarded: bool
) -> None:
    """At the cap a connection goes on to the next request in the same turn of the loop in which its last answer
    was read. What has arrived in that turn lies unread: the one who waits is given a fresh connection, and gets
    its own answer."""
    finish = Connection._finish

    def overtaken(connection: Connection) -> None:
        """The next segment arrives when the answer has been read and the connection is not yet free."""
        monkeypatch.setattr(Connection, "_finish", finish)
        with socket.socket(fileno=os.dup(peer.writer.get_extra_info("socket").fileno())) as sock:
            if behind is None:
                sock.shutdown(socket.SHUT_WR)
            else:
                sock.send(behind)
        assert connection._wire is not None
        arrived, _, _ = select.select([connection._wire.get_extra_info("socket").fileno()], [], [], SOON)
        assert arrived, "the segment lies unread"
        assert connection.usable
        assert gate.pool.waiting
        finish(connection)

    async with edge(configuration(hand.url, upstream="connections: 1")) as gate:
        first, second = await gate.connect(), await gate.connect()
        await first.send(keyed("one") if guarded else post(b""))
        peer = await hand.accept()
        await peer.head()
        await second.send(keyed("two") if guarded else post(b"", fields=b"X-Number: two\r\n"))
        await eventually(lambda: gate.pool.waiting, "the second waits")
        monkeypatch.setattr(Connection, "_finish", overtaken)
        await peer.answer(b"one")
        assert (await first.read()).body == b"one"
        fresh = await hand.accept()
        assert b": two\r\n" in await fresh.head()
        await fresh.answer(b"two", 201)
        answer = await second.read()
        assert (answer.status, answer.body) == (201, b"two")
        assert await peer.ended()
        assert hand.connections == 2


async def test_when_the_upstream_is_gone_everybody_who_waits_hears_so(hand: ByHand) -> None:
    """One after another is refused; none is forgotten."""
    async with edge(configuration(hand.url, upstream="connections: 2")) as gate:
        clients = [await gate.connect() for _ in range(6)]
        for client in clients[:2]:
            await client.send(GET)
        peers = [await hand.accept() for _ in range(2)]
        for client in clients[2:]:
            await client.send(GET)
        await eventually(lambda: gate.pool.waiting == 4, "the others wait")
        await hand.stop()
        answers = await asyncio.gather(*(client.read(method=b"GET") for client in clients))
        assert [answer.problem for answer in answers] == ["upstream-lost"] * 2 + ["upstream-unreachable"] * 4
        assert gate.pool._open == 0
        del peers


async def test_what_passes_through_leaves_connections_to_what_is_guarded(hand: ByHand) -> None:
    """A quarter of them. Three that nobody answers hold what is theirs, the others wait; a guarded request is sent at
    once. One of those goes on whenever one of the three ends: answered, left by its client, or broken off."""
    async with edge(configuration(hand.url, upstream="connections: 4")) as gate:
        clients = [await gate.connect() for _ in range(6)]
        peers: list[Peer] = []
        for client in clients[:3]:
            await client.send(GET)
            peers.append(await hand.accept())
            await peers[-1].head()
        for client in clients[3:]:
            await client.send(GET)
        await eventually(lambda: gate.pool.waiting == 3, "the others wait")
        guarded = await gate.connect()
        await guarded.send(keyed("one"))
        kept = await hand.accept()
        await kept.head()
        await kept.answer(b"kept", 201)
        assert (await guarded.read()).label == "stored"
        assert hand.connections == 4
        assert gate.pool.waiting == 3

        await peers[0].answer(b"first")
        assert (await clients[0].read(method=b"GET")).body == b"first"
        await eventually(lambda: gate.pool.waiting == 2, "one more goes through")
        reset(clients[1].writer)
        await eventually(lambda: gate.pool.waiting == 1, "one more goes through")
        peers[2].reset()
        assert (await clients[2].read(method=b"GET")).problem == "upstream-lost"
        await eventually(lambda: not gate.pool.waiting, "one more goes through")
        await eventually(lambda: len(gate.pool._passing) == 3 and gate.pool._open <= 4, "as many as may")
        for client in clients[3:]:
            reset(client.writer)


class Wanting:
    """Whoever wants a connection of a pool, and writes down what it is told."""

    guarded = True

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


async def test_a_connection_that_ends_before_it_is_handed_over_is_not_counted_twice(origin: Origin) -> None:
    """asyncio's own loop tells the end of a connection whose making was given up; who made it has told so too."""
    async with edge(configuration(origin.url)) as gate:
        pool = Pool(Place("odd", "127.0.0.1", origin.port), gate.running.app.clock, gate.running.app.tasks)
        pool._connector._new().connection_lost(None)
        assert pool.opened == 0
        made = Wanting()
        pool.acquire(made)
        connection = await made.told
        assert isinstance(connection, Connection)
        assert pool.opened == 1
        connection.abort()
        await eventually(lambda: pool.opened == 0, "the pool knows")
        pool.close()

"""A client's connection: its requests in their order, what is read ahead, how long it may take, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator

import pytest

from gateway.edge.direct import DirectVisit
from gateway.edge.door import Door
from tests.edge.stand import (
    GET,
    HELD,
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
    piece,
    post,
    values,
)
from tests.harness import Client, Origin, ask, configuration


def get(name: str) -> bytes:
    return GET.replace(b"/x", b"/" + name.encode())


#: Refused by the door; the connection goes on.
NO_KEY = keyed('"')


# ── Pipelining ────────────────────────────────────────────────────────────────────────────────────


async def test_requests_in_one_packet_are_answered_in_their_order(origin: Origin) -> None:
    """Guarded, passing, refused and replayed ones alike."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("a") + get("1") + NO_KEY + keyed("a") + b"BREW / HTTP/1.1\r\n\r\n" + get("never"))
        answers = [await client.read() for _ in range(5)]
        assert [answer.status for answer in answers] == [201, 201, 400, 201, 501]
        assert [answer.problem for answer in answers] == [None, None, "key-invalid", None, "method-unsupported"]
        assert [answer.replayed for answer in answers] == [False, False, False, True, False]
        assert [answer.get("Connection") for answer in answers] == [None, None, None, None, "close"]
        assert await drain(client) == b""
        assert [received.target for received in origin.requests] == [b"/orders", b"/open/1"]


async def test_a_request_that_was_admitted_directly_is_not_begun_again(hand: ByHand) -> None:
    """A client that takes its last answer late makes its connection look at the queue while the next request runs."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("f2c0a8d1-77b3-4c1e-9d52-0f6f1b8f3a11", b"one"))
        peer = await hand.accept()
        await peer.head()
        await peer.read(3)
        await peer.answer(b"done")
        assert (await client.read()).body == b"done"
        await client.send(keyed("3b9e7f52-1d0c-4a86-8f3b-5e2a9c4d7b60", b"two"))
        await peer.head()
        assert await peer.read(3) == b"two"
        assert isinstance(gate.connection._queue[0], DirectVisit)
        gate.connection._turn()
        assert len(gate.server.driver) == 1
        await peer.answer(b"done")
        assert (await client.read()).body == b"done"


async def test_a_slow_request_holds_back_those_behind_it(hand: ByHand) -> None:
    """The second is not even begun: it could have an effect that the first one's answer would have prevented."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("a", b"one") + keyed("b", b"two") + get("3"))
        peer = await hand.accept()
        assert b"Idempotency-Key: a" in await peer.head()
        assert await peer.read(3) == b"one"
        assert len(gate.connection._queue) == 3
        assert len(gate.server.driver) == 1
        await peer.answer(b"first")
        assert (await client.read()).body == b"first"
        assert b"Idempotency-Key: b" in await peer.head()
        assert await peer.read(3) == b"two"
        await peer.answer(b"second")
        assert (await client.read()).body == b"second"
        assert b"/open/3" in await peer.head()
        await peer.answer(b"third")
        assert (await client.read(method=b"GET")).body == b"third"
        assert hand.connections == 1


async def slow(gate: Edge, hand: ByHand, client: Client, behind: bytes) -> Peer:
    """A guarded request that is not answered yet, and `behind` it on the same connection."""
    await client.send(keyed("slow") + behind)
    peer = await hand.accept()
    await peer.head()
    return peer


async def test_what_is_refused_behind_a_slow_request_waits_its_turn(hand: ByHand) -> None:
    """Whatever is wrong with it, and however it shows: in the order in which they were asked."""
    behind = {
        "key-invalid": NO_KEY,
        "request-malformed": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "body-too-large": keyed("large", b"x" * 3000),
        "head-too-large": keyed("k", fields=b"X: " + b"x" * (70 << 10) + b"\r\n"),
        "version-unsupported": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    }
    async with edge(configuration(hand.url, policy="max_request: 2KiB")) as gate:
        for problem, sent in behind.items():
            client = await gate.connect()
            peer = await slow(gate, hand, client, sent)
            (connection,) = [each for each in gate.server.connections if each._queue]
            await eventually(lambda connection=connection: len(connection._queue) == 2, "both are there")
            await peer.answer(b"first")
            peer.close()
            assert (await client.read()).body == (b"first")
            assert (await client.read()).problem == problem
            again = await ask(gate.port, key="slow", body=b"", host="a")
            assert again.replayed
            gate.server.driver.store._records.clear()  # type: ignore[attr-defined]


async def test_a_body_that_breaks_behind_a_slow_request_waits_its_turn(hand: ByHand) -> None:
    """The first is answered, then the second is told what was wrong, and the connection ends."""
    for target in (b"/open/x", b"/orders"):
        async with edge(configuration(hand.url)) as gate:
            client = await gate.connect()
            broken = (
                b"POST " + target + b" HTTP/1.1\r\nHost: a\r\nIdempotency-Key: b\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n"
            )
            peer = await slow(gate, hand, client, broken)
            await eventually(lambda: len(gate.connection._queue) == 2, "both are there")
            await peer.answer(b"first")
            assert (await client.read()).body == b"first"
            assert (await client.read()).problem == "request-malformed"
            assert await drain(client) == b""
            peer.close()


async def test_a_bounded_number_of_requests_is_read_ahead(hand: ByHand) -> None:
    """Behind a slow one the connection is not read further, though none of them is lost."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        peer = await slow(gate, hand, client, b"")
        count = 2000
        # Packet by packet: what one packet brings is not split.
        for number in range(count):
            client.writer.write(get(str(number)))
            if number < 40:
                await client.writer.drain()
                await asyncio.sleep(0)
        await eventually(lambda: gate.connection._paused, "reading is paused")
        ahead = len(gate.connection._queue)
        assert 16 < ahead <= 128
        await peer.answer(b"slow")
        assert (await client.read()).body == b"slow"
        async with answering(hand, peer) as targets:
            for number in range(count):
                assert (await client.read(method=b"GET")).body == b"/open/%d" % number
        assert targets == [b"/open/%d" % number for number in range(count)]


async def test_a_packet_with_very_many_requests_is_parsed_as_far_as_it_is_read_ahead(hand: ByHand) -> None:
    """As requests they take far more memory than as bytes. All of them are answered, whatever they are."""
    count = 1500
    upgraded = get("x").replace(b"Host", b"Upgrade: h2c\r\nConnection: upgrade\r\nHost")
    for behind, status in ((NO_KEY, 400), (get("x"), 200), (upgraded, 200)):
        async with edge(configuration(hand.url)) as gate:
            client = await gate.connect()
            peer = await slow(gate, hand, client, b"")
            gate.connection.data_received(behind * count)
            most = len(gate.connection._queue)
            assert 16 < most < 700
            await peer.answer(b"slow")
            assert (await client.read()).body == b"slow"
            async with answering(hand, peer):
                for _ in range(count):
                    assert (await client.read(method=behind.split()[0])).status == status
                    most = max(most, len(gate.connection._queue))
            assert most < 700
            peer.close()


@contextlib.asynccontextmanager
async def answering(hand: ByHand, *peers: Peer) -> AsyncIterator[list[bytes]]:
    """Every request on whatever connection, those of `peers` too, is answered with its target; gives the targets."""
    targets: list[bytes] = []

    async def serve(peer: Peer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            while True:
                targets.append((await peer.head()).split()[1])
                await peer.answer(targets[-1])

    async def accept() -> None:
        while True:
            tasks.append(asyncio.ensure_future(serve(await hand.accept())))

    tasks = [asyncio.ensure_future(serve(peer)) for peer in peers]
    tasks.append(asyncio.ensure_future(accept()))
    try:
        yield targets
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_bounded_part_of_a_body_is_read_ahead(hand: ByHand) -> None:
    """An unguarded body behind a slow request waits in the client, not in the gate; and arrives whole."""
    body = os.urandom(6 << 20)
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        peer = await slow(gate, hand, client, b"")
        client.writer.write(post(body))
        await eventually(lambda: gate.connection._paused, "reading is paused")
        assert sum(map(len, gate.connection._queue[1].chunks)) <= HELD
        await peer.answer(b"slow")
        assert (await client.read()).body == b"slow"
        await peer.head()
        assert await peer.read(len(body)) == body
        await peer.answer(b"large")
        assert (await client.read()).body == b"large"


async def test_a_duplicate_behind_its_first_is_given_the_answer(hand: ByHand) -> None:
    """On one connection as on two."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        peer = await slow(gate, hand, client, keyed("slow") * 2)
        await peer.answer(b"once", 201)
        answers = [await client.read() for _ in range(3)]
        assert [answer.body for answer in answers] == [b"once"] * 3
        assert [answer.replayed for answer in answers] == [False, True, True]
        assert hand.connections == 1


async def test_a_client_that_does_not_read_its_answers_is_not_served_more(origin: Origin) -> None:
    """Its next requests are begun only once it has taken what it was given; nothing is lost."""
    large = os.urandom(1 << 20)
    origin.answer = lambda exchange: exchange.respond(200, large)
    async with edge(configuration(origin.url)) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        await client.send(b"".join(keyed(str(number)) for number in range(6)))
        await eventually(lambda: gate.held, "the client's buffer is full")
        await eventually(lambda: len(origin.requests) == 1 and not len(gate.server.driver), "the first is answered")
        assert gate.held <= len(large) + HELD
        assert len(gate.connection._queue) == 5
        assert not gate.connection._queue[0].started
        for number in range(6):
            head = await head_of(client)
            assert b"stored" in head
            assert await piece(client, len(large)) == large, number
        assert len(origin.requests) == 6


async def test_a_client_that_leaves_takes_its_whole_queue_along(hand: ByHand) -> None:
    """Only what was begun runs on; what was read ahead is forgotten, and its bytes given back."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        peer = await slow(gate, hand, client, keyed("b", b"x" * 1000) + post(b"y" * 1000) + keyed("c", b"z" * 99)[:-1])
        await eventually(lambda: len(gate.connection._queue) == 4, "all are there")
        client.reset()
        await gate.emptied()
        await peer.answer(b"slow", 201)
        await gate.settled()
        assert hand.connections == 1
        assert (await ask(gate.port, key="slow", body=b"", host="a")).replayed


async def test_what_was_not_read_yet_goes_with_its_client(hand: ByHand) -> None:
    """Bytes that wait to be parsed while the connection ends ask for nothing: no request, no reserved byte."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        peer = await slow(gate, hand, client, b"")
        connection = gate.connection
        connection.data_received(keyed("b", b"x" * 100) * 1000)
        assert connection._unread
        assert connection._transport is not None
        connection._transport.abort()
        connection.resume()
        await gate.emptied()
        await peer.answer(b"slow", 201)
        await gate.settled()
        assert hand.connections == 1
        assert (await ask(gate.port, key="slow", body=b"", host="a")).replayed


# ── Half-closed ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sent", [GET, keyed("k"), keyed("k") + get("2") + get("3")], ids=["open", "guarded", "three"])
async def test_a_half_closed_client_gets_its_answers(origin: Origin, sent: bytes) -> None:
    """Whoever has asked all it wanted may say so; the connection ends behind the last answer."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(sent)
        client.writer.write_eof()
        for _ in range(sent.count(b" HTTP/1.1")):
            assert (await client.read()).status == 201
        assert await drain(client) == b""


async def test_a_client_that_half_closes_while_it_waits_gets_its_answer(hand: ByHand) -> None:
    """The end comes later than the request, while nothing is there to be said yet."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        peer = await slow(gate, hand, client, b"")
        client.writer.write_eof()
        await eventually(lambda: gate.connection._ended, "the gate has seen the end")
        await peer.answer(b"slow")
        answer = await client.read()
        assert answer.body == b"slow"
        assert answer.get("Connection") == "close"
        assert await drain(client) == b""


@pytest.mark.parametrize("target", ["/orders", "/open/x"])
async def test_a_request_that_ends_within_its_body_is_malformed(hand: ByHand, target: str) -> None:
    """What was asked before it is answered; it is told so; and nothing of it is whole at the upstream."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        half = keyed("half", b"x" * 10).replace(b"/orders", target.encode())[:-5]
        peer = await slow(gate, hand, client, half)
        client.writer.write_eof()
        await eventually(lambda: gate.connection._ended, "the gate has seen the end")
        await peer.answer(b"slow")
        assert (await client.read()).body == b"slow"
        answer = await client.read()
        assert (answer.status, answer.problem, answer.get("Connection")) == (400, "request-malformed", "close")
        assert await drain(client) == b""
        assert hand.connections == 1


async def test_a_client_that_ends_between_requests_just_ends(origin: Origin) -> None:
    """Before the first, within a head, and behind an answer: nothing is said."""
    async with edge(configuration(origin.url)) as gate:
        for sent in (b"", b"GET /open", GET):
            client = await gate.connect()
            await client.send(sent)
            if sent == GET:
                await client.read(method=b"GET")
            client.writer.write_eof()
            assert await drain(client) == b""


# ── Deadlines ─────────────────────────────────────────────────────────────────────────────────────

BRIEF = "limits: {head_timeout: 300ms, body_timeout: 300ms, idle: 300ms, write_timeout: 300ms}"


async def test_a_client_that_says_nothing_is_closed(origin: Origin) -> None:
    """Before its first request, and between two, after `idle`; without a word."""
    async with edge(configuration(origin.url, top=BRIEF)) as gate:
        silent, served = await gate.connect(), await gate.connect()
        await served.send(GET)
        assert (await served.read(method=b"GET")).status == 201
        assert await drain(silent) == b""
        assert await drain(served) == b""


async def test_a_head_that_does_not_come_is_a_408(origin: Origin) -> None:
    """After `head_timeout`, counted from its first byte: a byte now and then does not help."""
    async with edge(configuration(origin.url, top=BRIEF)) as gate:
        silent, trickling = await gate.connect(), await gate.connect()
        await silent.send(b"GET /open/x HTTP/1.1\r\nHo")
        await trickling.send(b"POST /open/x HTTP/1.1\r\nX: ")
        reading = asyncio.ensure_future(trickling.read())
        while not reading.done():
            trickling.writer.write(b"x")
            await asyncio.sleep(0.02)
        for answer in (await silent.read(), reading.result()):
            assert (answer.status, answer.problem, answer.get("Connection")) == (408, "request-timeout", "close")
            assert answer.get("Idempotency-Outcome") == "no-effect"
        assert await drain(silent) == b""
        assert origin.requests == []


@pytest.mark.parametrize("target", [b"/orders", b"/open/x"])
async def test_a_body_that_does_not_come_is_a_408(hand: ByHand, target: bytes) -> None:
    """After `body_timeout` without a byte; the upstream, where it has begun to read, sees no end of it."""
    async with edge(configuration(hand.url, top=BRIEF)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", b"x" * 10).replace(b"/orders", target)[:-5])
        answer = await client.read()
        assert (answer.status, answer.problem, answer.get("Connection")) == (408, "request-timeout", "close")
        if target == b"/open/x":
            assert await (await hand.accept()).ended()
        else:
            assert hand.connections == 0
            assert gate.server.door.budget.taken == 0


async def test_what_a_body_was_refused_for_is_said_even_when_it_does_not_come(origin: Origin) -> None:
    """The first fault is the one that helps."""
    async with edge(configuration(origin.url, top=BRIEF)) as gate:
        client = await gate.connect()
        await client.send(keyed('"', b"x" * 10)[:-5])
        answer = await client.read()
        assert (answer.status, answer.problem, answer.get("Connection")) == (400, "key-invalid", "close")


async def test_the_upstreams_time_is_not_the_clients(hand: ByHand) -> None:
    """No deadline of a client's ends a request that waits for its answer, or whose turn has not come."""
    async with edge(configuration(hand.url, top=BRIEF)) as gate:
        guarded, open_ = await gate.connect(), await gate.connect()
        await guarded.send(keyed("k") + keyed("next", b"x" * 10)[:-5])
        first = await hand.accept()
        await open_.send(GET + b"GET /open/half HT")
        second = await hand.accept()
        begun = [connection._since for connection in gate.server.connections]
        await eventually(lambda: gate.server.loop.time() > max(begun) + 2.5, "the sweeper has come twice")
        for peer in (first, second):
            await peer.head()
            await peer.answer()
        assert (await guarded.read()).status == 200
        assert (await open_.read(method=b"GET")).status == 200


async def test_a_stream_that_stands_still_keeps_its_client(hand: ByHand) -> None:
    """A client that reads, and waits for the next event, is not idle."""
    async with edge(configuration(hand.url, top=BRIEF)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await head_of(client)
        begun = gate.server.loop.time()
        await eventually(lambda: gate.server.loop.time() > begun + 2.5, "the sweeper has come twice")
        await peer.send(b"4\r\nlate\r\n0\r\n\r\n")
        assert await piece(client, 14) == b"4\r\nlate\r\n0\r\n\r\n"


@pytest.mark.parametrize("target", [b"/orders", b"/open/x"])
async def test_a_client_that_closed_both_sides_is_found_out(hand: ByHand, target: bytes) -> None:
    """It looks half-closed. While its answer flows that shows at the next byte; where the answer stands still, as
    an event stream may, it is cut after `idle`, or it would hold the upstream's connection for ever. A guarded one is
    read on without it until its exchange has to end."""
    async with edge(configuration(hand.url, top=BRIEF, upstream="timeout: 2s, late: 0s")) as gate:
        client = await gate.connect()
        await client.send(keyed("k").replace(b"/orders", target))
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await head_of(client)
        client.close()
        await gate.emptied()
        assert await peer.ended()


@pytest.mark.parametrize("what", ["a stream", "an answer", "a last answer"])
async def test_a_client_that_reads_nothing_is_cut(hand: ByHand, what: str) -> None:
    """It holds memory, and maybe an upstream: after `write_timeout` without progress it is let go."""
    async with edge(configuration(hand.url, top=BRIEF)) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        client.writer.transport.pause_reading()
        if what == "a stream":
            await client.send(GET)
            peer = await hand.accept()
            await peer.head()
            peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (24 << 20) + b"x" * (8 << 20))
            assert await peer.ended()
        else:
            await client.send(keyed("k", fields=b"Connection: close\r\n" if what == "a last answer" else b""))
            peer = await hand.accept()
            await peer.head()
            await peer.answer(b"x" * (1 << 20))
        await gate.emptied()


# ── Endings ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_refused_upload_can_be_read_while_it_is_sent(origin: Origin) -> None:
    """The gate says 413 at once, stops its side, and goes on reading for a moment: a reset would take the answer
    with it before the client has read it."""
    async with edge(configuration(origin.url, policy="max_request: 1MiB")) as gate:
        client = await gate.connect()
        client.writer.write(
            b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 3000000\r\n\r\n"
        )
        await eventually(lambda: gate.connection._lingering, "the gate has answered and closes")
        for _ in range(30):  # all of it, before it looks at the answer
            await client.send(b"x" * 100_000)
            await asyncio.sleep(0.005)
        answer = await client.read()
        assert (answer.status, answer.problem, answer.get("Connection")) == (413, "body-too-large", "close")
        assert await drain(client) == b""
        assert origin.requests == []


async def test_a_connection_that_lingers_does_not_linger_for_ever(origin: Origin) -> None:
    """A few seconds, and a few megabytes."""
    async with edge(configuration(origin.url, policy="max_request: 1KiB")) as gate:
        silent, eager = await gate.connect(), await gate.connect()
        for client in (silent, eager):
            await client.send(
                b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 999999999\r\n\r\n"
            )
            assert (await client.read()).status == 413
        with pytest.raises(ConnectionError):
            await feed(eager.writer, 100 << 20)
        await gate.emptied()


async def test_only_so_many_clients_may_be_connected(origin: Origin) -> None:
    """One more is told so and closed, whether it has asked or not; once one has left there is room again."""
    async with edge(configuration(origin.url, top="limits: {connections: 3}")) as gate:
        clients = [await gate.connect() for _ in range(3)]
        for client in clients:
            await client.send(GET)
            assert (await client.read(method=b"GET")).status == 201
        for request in (keyed("k"), b""):
            fourth = await Client.connect(gate.port)
            await fourth.send(request)
            refused = await fourth.read()
            assert (refused.status, refused.problem, refused.get("Retry-After")) == (503, "overloaded", "1")
            assert refused.get("Idempotency-Outcome") == "no-effect"
            assert await fourth.ended()
            fourth.close()
        await eventually(lambda: len(gate.server.connections) == 3, "those that were turned away are gone")
        assert [received for received in origin.requests if received.key] == []
        await clients[0].send(GET)
        assert (await clients[0].read(method=b"GET")).status == 201
        clients[1].close()
        await eventually(lambda: len(gate.server.connections) == 2, "one has left")
        assert (await ask(gate.port, "GET", "/open/x", body=b"")).status == 201


async def test_what_goes_wrong_in_the_gate_is_not_the_clients_fault(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of ours is an alarm for the operator and says nothing to the client; the next one is served."""

    def broken(door: Door, head: object) -> None:
        raise RuntimeError("secret")

    async with edge(configuration(origin.url), alarms=1) as gate:
        client = await gate.connect()
        with monkeypatch.context() as patch:
            patch.setattr(Door, "look", broken)
            await client.send(GET)
            assert await drain(client) == b""
        assert any("secret" in json.dumps(line) for line in gate.running.lines if line["level"] == "alarm")
        assert (await ask(gate.port, "GET", "/open/x", body=b"")).status == 201


# ── Draining ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_stopping_gate_answers_what_is_in_flight(hand: ByHand) -> None:
    """No new connection, no further request; what was begun is answered, with `Connection: close`, and settled.
    What was pipelined behind it is not begun."""
    async with edge(configuration(hand.url)) as gate:
        guarded, open_, idle, half = [await gate.connect() for _ in range(4)]
        await guarded.send(keyed("k") + get("behind"))
        first = await hand.accept()
        await first.head()
        await open_.send(GET)
        second = await hand.accept()
        await second.head()
        await half.send(b"GET /open/half HTTP/1.1\r\n")
        await eventually(lambda: sum(each._in_head for each in gate.server.connections) == 1, "half a head is there")

        stopping = asyncio.ensure_future(gate.running.app.stop())
        assert await drain(idle) == b""
        assert not stopping.done()
        with pytest.raises(ConnectionError):
            await ask(gate.port, "GET", "/open/late", body=b"")

        await first.answer(b"done", 201)
        answer = await guarded.read()
        assert (answer.status, answer.label, answer.get("Connection")) == (201, "stored", "close")
        assert await drain(guarded) == b""
        await second.answer(b"open")
        answer = await open_.read(method=b"GET")
        assert (answer.body, answer.get("Connection")) == (b"open", "close")
        assert await drain(open_) == b""
        await half.send(b"Host: a\r\n\r\n")
        await second.head()
        await second.answer(b"half")
        answer = await half.read(method=b"GET")
        assert (answer.body, answer.get("Connection")) == (b"half", "close")
        for client in (guarded, open_, idle, half):
            client.close()
        stopped = await asyncio.wait_for(stopping, SOON)
        assert (stopped.cut_off, stopped.unsettled) == (0, 0)
        assert hand.connections == 2


async def test_a_stream_that_outlives_the_grace_is_cut_off(hand: ByHand) -> None:
    """Its head said nothing of a close; its client sees that it broke."""
    async with edge(configuration(hand.url, top="grace: 200ms")) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        assert values(fields_of(await head_of(client)), b"connection") == []
        stopped = await asyncio.wait_for(gate.running.app.stop(), SOON)
        assert stopped.cut_off == 1
        assert await drain(client) == b"4\r\nhalf\r\n"
        assert await peer.ended()


# ── The gate's own words ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"X-Request-Id: abc-123\r\n", "abc-123"),
        (b"X-Request-Id: " + b"x" * 129 + b"\r\n", None),
        (b"X-Request-Id: \xff\r\n", None),
        (b"X-Request-Id: \r\n", None),
        (b"", None),
    ],
)
async def test_a_problem_carries_the_requests_id(origin: Origin, sent: bytes, shown: str | None) -> None:
    """The client's own where it is sane, else a fresh one; in the field and in the document."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(keyed('"', fields=sent))
        answer = await client.read()
        assert answer.problem == "key-invalid"
        document = json.loads(answer.body)
        assert document["request_id"] == answer.get("X-Request-Id")
        if shown is not None:
            assert document["request_id"] == shown
        else:
            assert re.fullmatch("[0-9a-f]{16}", document["request_id"])


async def test_a_problem_answers_a_head_without_a_body(origin: Origin) -> None:
    """Its length is that of the document that a GET would give, and the connection goes on."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(b"HEAD / HTTP/1.1\r\n\r\nGET /open/x HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await head_of(client)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert int(values(fields_of(head), b"content-length")[0]) > 0
        assert (await client.read(method=b"GET")).status == 201

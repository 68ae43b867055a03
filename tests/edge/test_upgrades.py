"""Requests that ask for another protocol: which are passed on, what a 101 opens, and what never gets past the gate."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from gateway.ports import Account
from tests.edge.stand import (
    GET,
    HELD,
    ByHand,
    Edge,
    Peer,
    drain,
    drink,
    edge,
    eventually,
    feed,
    fields_of,
    head_of,
    keyed,
    narrow_client,
    piece,
    values,
)
from tests.harness import Client, Origin, configuration
from tests.servers import free_port

BOTH_LOOPS = True

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


def asks(
    protocol: bytes = b"websocket", *, target: bytes = b"/open/ws", method: bytes = b"GET", fields: bytes = b""
) -> bytes:
    """A request for an upgrade, without a body."""
    return b"%b %b HTTP/1.1\r\nHost: gate.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %b\r\n%b\r\n" % (
        method,
        target,
        protocol,
        fields,
    )


async def opened(
    gate: Edge, hand: ByHand, client: Client | None = None, *, target: bytes = b"/open/ws"
) -> tuple[Client, Peer]:
    """A tunnel, with nothing in it yet."""
    client = client or await gate.connect()
    await client.send(asks(target=target))
    peer = await hand.accept()
    await peer.head()
    await peer.send(SWITCHED + b"\r\n")
    await head_of(client)
    return client, peer


# ── A WebSocket ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("target", ["/open/ws", "/orders"], ids=["unguarded route", "GET on a guarded route"])
async def test_a_websocket_goes_through(target: str, secure: bool, tmp_path: Path) -> None:
    """aiohttp's client and server, who check each other's handshake, speak in text, bytes and pings, large and small;
    the client's close reaches the server, and the server's the client."""
    closed: list[int | None] = []

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("chat",), max_msg_size=8 << 20)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4001, message=b"as you like")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data)
            else:
                await socket.send_bytes(message.data)
        closed.append(socket.close_code)
        return socket

    app = web.Application()
    app.router.add_get("/{any:.*}", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    context, tls = None, ""
    if secure:
        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        tls = f"tls: {{ca: {tmp_path / 'ca.pem'}}}"
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    scheme = "https" if secure else "http"
    try:
        async with (
            edge(configuration(f"{scheme}://127.0.0.1:{port}", upstream=tls)) as gate,
            aiohttp.ClientSession() as session,
        ):
            url = f"http://127.0.0.1:{gate.port}{target}"
            async with session.ws_connect(url, protocols=("chat",), compress=15, max_msg_size=8 << 20) as socket:
                assert (socket.protocol, socket.compress) == ("chat", 15)
                for size in (0, 1, 1000, 100_000, 4 << 20):
                    data = os.urandom(size)
                    await socket.send_bytes(data)
                    assert (await socket.receive_bytes()) == data
                    await socket.send_str("é" * size)
                    assert (await socket.receive_str()) == "é" * size
                await socket.ping()
                assert len(gate.server.connections) == 1
                await socket.close(code=4000)
            await eventually(lambda: closed == [4000], "the server has heard the close")
            async with session.ws_connect(url) as socket:
                await socket.send_str("bye")
                assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
                assert socket.close_code == 4001
            await gate.emptied()
            route = "open" if target.startswith("/open") else "all"
            assert gate.count("oncegate_requests_total", route=route, verdict="pass") == 2
    finally:
        await runner.cleanup()


# ── What goes on, and what comes back ─────────────────────────────────────────────────────────────


async def test_the_asking_goes_on_and_the_101_comes_back(hand: ByHand) -> None:
    """Both fields are written anew, the handshake's own go through; bytes that came early are in no one's way."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(asks(b"WebSocket", fields=b"Sec-WebSocket-Key: x\r\nX-Hop: 1\r\nConnection: x-hop\r\n"))
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"connection") == [b"Upgrade"]
        assert values(fields, b"upgrade") == [b"websocket"]
        assert values(fields, b"sec-websocket-key") == [b"x"]
        assert values(fields, b"x-hop") == []
        await client.send(b"early ")
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        assert await head_of(client) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        await peer.send(SWITCHED + b"Sec-WebSocket-Accept: y\r\nIdempotency-Status: stored\r\n\r\nat once ")
        assert await head_of(client) == (
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: y\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        assert await piece(client, 8) == b"at once "
        assert await peer.read(6) == b"early "
        # No HTTP any more: what looks like a request is bytes.
        await client.send(keyed("k"))
        assert await peer.read(len(keyed("k"))) == keyed("k")
        await peer.send(b"\r\n\0\xff")
        assert await piece(client, 4) == b"\r\n\0\xff"
        client.close()
        await peer.ended()
        peer.close()


async def test_a_refusal_is_an_ordinary_response_and_the_connections_go_on(hand: ByHand) -> None:
    """Whatever status but 101 leaves both in HTTP. What the client had sent behind its request is read as HTTP, so a
    keyed request there is guarded: a 426 opens no way past the gate."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(asks() + keyed("k", b"one"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"no", 426, b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        answer = await client.read(method=b"GET")
        assert (answer.status, answer.body, answer.values("Connection")) == (426, b"no", [])
        assert b"Idempotency-Key: k\r\n" in await peer.head()
        assert await peer.read(3) == b"one"
        await peer.answer(b"stored")
        assert (await client.read()).label == "stored"
        await client.send(keyed("k", b"one"))
        assert (await client.read()).replayed
        assert hand.connections == 1


async def test_what_is_sent_before_the_answer_is_held_within_bounds(hand: ByHand) -> None:
    """Until it is known in what protocol it is, little of it is read."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(asks())
        peer = await hand.accept()
        await peer.head()
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(feed(client.writer, 8 << 20))
            await eventually(lambda: gate.connection._paused, "the client is paused")
            assert len(gate.connection._unread) <= HELD
            assert not fed.done()
            await peer.send(SWITCHED + b"\r\n")
            assert await drink(peer.reader, 8 << 20) == await fed
        client.close()
        await peer.ended()
        peer.close()


@pytest.mark.parametrize(
    ("protocol", "goes_on"),
    [
        (b"h2c", None),
        (b"H2C", None),
        (b"h2c, websocket", b"websocket"),
        (b"websocket, h2c", b"websocket"),
        (b"websocket/13", None),
        (b"websocket h2c", None),
        (b"TLS/1.0, HTTP/1.1", None),
        (b"\x0bwebsocket", "400"),
        (b"tcp", None),
        (b"", None),
    ],
)
async def test_only_what_the_file_allows_is_asked_for(
    hand: ByHand, protocol: bytes, goes_on: bytes | str | None
) -> None:
    """In HTTP/2, asked for as h2c, requests would reach the service past their guards. Nothing but names that are
    allowed, written anew, goes on; HTTP2-Settings never does."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(asks(protocol, fields=b"HTTP2-Settings: AAMAAABkAAQ\r\n"))
        if goes_on == "400":
            assert (await client.read(method=b"GET")).status == 400
            assert hand.connections == 0
            return
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"upgrade") == ([goes_on] if goes_on else [])
        assert values(fields, b"connection") == ([b"Upgrade"] if goes_on else [])
        assert values(fields, b"http2-settings") == []
        await peer.answer(b"plain")
        assert (await client.read(method=b"GET")).body == b"plain"


async def test_what_else_the_file_allows(hand: ByHand) -> None:
    """`upgrades` names other protocols, with any method; [] is none at all."""
    for allowed, protocol, goes_on in (("[tcp, foo/2]", b"foo/2, TCP", [b"foo/2, tcp"]), ("[]", b"websocket", [])):
        async with edge(configuration(hand.url, top=f"upgrades: {allowed}")) as gate:
            client = await gate.connect()
            await client.send(asks(protocol, method=b"POST"))
            peer = await hand.accept()
            assert values(await peer.fields(), b"upgrade") == goes_on
            await peer.answer(b"plain")
            assert (await client.read()).body == b"plain"


NO_UPGRADE = {
    "a guarded request": asks(method=b"POST", target=b"/orders", fields=b"Idempotency-Key: k\r\nContent-Length: 0\r\n"),
    "a request with a body": asks(method=b"POST", fields=b"Content-Length: 5\r\n") + b"hello",
    "a chunked one": asks(method=b"POST", fields=b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    "HTTP/1.0": asks().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an Upgrade that Connection does not name": asks().replace(b"keep-alive, Upgrade", b"keep-alive"),
}


@pytest.mark.parametrize("sent", NO_UPGRADE.values(), ids=NO_UPGRADE)
async def test_where_nothing_is_upgraded(hand: ByHand, sent: bytes) -> None:
    """There the field is stripped, and a 101 that comes all the same is no answer: 502, and the connection ends."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(sent)
        peer = await hand.accept()
        fields = await peer.fields()
        assert values(fields, b"upgrade") == values(fields, b"connection") == []
        await peer.send(SWITCHED + b"\r\n")
        refused = await client.read()
        assert (refused.status, refused.problem) == (502, "upstream-lost")
        assert await peer.ended()


async def test_behind_a_request_that_is_being_answered_nothing_is_upgraded(hand: ByHand) -> None:
    """A pipelined request for an upgrade is an ordinary one."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET + asks())
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"first")
        second = await hand.accept()
        assert values(await second.fields(), b"upgrade") == []
        await second.answer(b"second")
        assert [(await client.read(method=b"GET")).body for _ in range(2)] == [b"first", b"second"]


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket, h2c", b"", b"tcp"])
async def test_a_101_to_another_protocol_is_no_answer(hand: ByHand, upgrade: bytes) -> None:
    """The service may only switch to what it was asked for."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(asks())
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % upgrade)
        refused = await client.read(method=b"GET")
        assert (refused.status, refused.problem) == (502, "upstream-lost")
        assert await peer.ended()


async def test_a_101_that_names_nothing_is_known_at_once(hand: ByHand) -> None:
    """llhttp takes it for a message like any other."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        assert ((await client.read()).problem, await peer.ended()) == ("upstream-lost", True)


async def test_a_keyless_write_that_is_upgraded_says_so(hand: ByHand) -> None:
    """On a guarded route the 101 carries `unprotected`, as any answer would."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(asks(method=b"POST", target=b"/orders"))
        peer = await hand.accept()
        await peer.head()
        await peer.send(SWITCHED + b"\r\n")
        assert values(fields_of(await head_of(client)), b"idempotency-status") == [b"unprotected"]
        client.close()
        await peer.ended()
        peer.close()


# ── The bytes ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_slow_reader_slows_the_other_side_down(narrow: ByHand) -> None:
    """Either way, what the gate holds stays bounded, and every byte arrives."""
    total = 8 << 20
    async with edge(configuration(narrow.url)) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        client, peer = await opened(gate, narrow, client)
        relay = gate.connection._relay
        assert relay is not None
        for sender, end, reader in (
            (peer.writer, relay._client, client.reader),
            (client.writer, relay._service, peer.reader),
        ):
            async with asyncio.TaskGroup() as group:
                fed = group.create_task(feed(sender, total))
                await eventually(lambda end=end: not end.other._wire.is_reading(), "the sender is paused")
                assert 0 < end.transport.get_write_buffer_size() <= HELD
                assert not fed.done()
                assert await drink(reader, total) == await fed
        client.close()
        await peer.ended()
        peer.close()


@pytest.mark.parametrize("first", ["client", "service"])
async def test_half_an_end_is_passed_on_as_half_an_end(hand: ByHand, first: str) -> None:
    """Who has no more to say may still listen; with the second half both connections end."""
    async with edge(configuration(hand.url)) as gate:
        client, peer = await opened(gate, hand)
        ends = [(client.reader, client.writer), (peer.reader, peer.writer)]
        (my_reader, mine), (their_reader, theirs) = ends if first == "client" else reversed(ends)
        mine.write(b"last words")
        mine.write_eof()
        async with asyncio.timeout(10):
            assert await their_reader.read() == b"last words"
            theirs.write(b"x" * 100_000)
            theirs.write_eof()
            assert await my_reader.read() == b"x" * 100_000
        await gate.emptied()


@pytest.mark.parametrize("first", ["client", "service"])
async def test_a_reset_ends_both(hand: ByHand, first: str) -> None:
    """Whoever is reset, the other is told, and nothing is left over."""
    async with edge(configuration(hand.url)) as gate:
        client, peer = await opened(gate, hand)
        if first == "client":
            client.reset()
            assert await peer.ended()
        else:
            peer.reset()
            assert await drain(client) == b""
        await gate.emptied()


async def test_a_client_that_leaves_before_the_101(hand: ByHand) -> None:
    """Its request ends like any that passes through, and a 101 that comes late opens nothing."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(asks())
        peer = await hand.accept()
        await peer.head()
        client.reset()
        assert await peer.ended()
        await gate.emptied()


async def test_a_silent_tunnel_is_closed(hand: ByHand) -> None:
    """`tunnel_idle` stands apart from `idle`, which a tunnel may outlive; any byte either way counts. The account
    says why it ended."""
    heard: list[Account] = []
    async with edge(configuration(hand.url, top="limits: {idle: 1ms, tunnel_idle: 1500ms}")) as gate:
        loop, finished = asyncio.get_running_loop(), gate.server.observer.finished
        gate.server.observer.finished = lambda account: (heard.append(account), finished(account))  # type: ignore[method-assign, assignment, return-value]
        client, peer = await opened(gate, hand)
        began = loop.time()
        while loop.time() - began < 3:  # a sign of life, for twice as long as may be silent
            await peer.send(b".")
            assert await piece(client, 1) == b"."
            await asyncio.sleep(0.2)
        assert await client.ended(seconds=10)
        assert await peer.ended()
        await gate.emptied()
        (account,) = heard
        assert (account.status, account.detail) == (101, "no byte either way for 1.5 s")


async def test_a_tunnel_counts_as_a_connection(hand: ByHand) -> None:
    """One client and one connection to the service: both limits know of it."""
    text = configuration(hand.url, upstream="connections: 1, timeout: 500ms", top="limits: {connections: 1}")
    async with edge(text) as gate:
        client, peer = await opened(gate, hand)
        refused = await gate.connect()
        assert (await refused.read(method=b"GET")).status == 503
        client.close()
        await peer.ended()
        peer.close()
        await gate.emptied()
        again, peer = await opened(gate, hand)
        again.close()
        await peer.ended()
        peer.close()


async def test_a_stop_cuts_a_tunnel_off_at_the_end_of_its_grace(hand: ByHand) -> None:
    """Nobody can end another's protocol politely: until then the bytes flow."""
    async with edge(configuration(hand.url)) as gate:
        client, peer = await opened(gate, hand)
        drained = asyncio.ensure_future(gate.listening.drain(0.3))
        await asyncio.sleep(0)
        await peer.send(b"still here")
        assert await piece(client, 10) == b"still here"
        assert await drained == 1
        gate.listening.close()
        assert await client.ended()
        assert await peer.ended()


async def test_the_strict_recorder_reads_the_request(origin: Origin) -> None:
    """h11 finds one well-formed request, which asks for one upgrade."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(asks(fields=b"Connection: close\r\n"))
        assert (await client.read(method=b"GET")).status == 201
        (received,) = origin.requests
        assert received.values(b"upgrade") == [b"websocket"]
        assert received.values(b"connection") == [b"Upgrade"]

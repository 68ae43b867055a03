"""Clients over TLS: a handshake, then a connection like any other. On uvloop, which the gate runs on, and on the
standard loop, because the two differ in what their TLS holds back and in what they tell of an end."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.edge.stand import (
    GET,
    HELD,
    ByHand,
    Edge,
    drain,
    drink,
    edge,
    eventually,
    head_of,
    keyed,
    narrowed,
    piece,
    post,
)
from tests.harness import Client, Origin, configuration

BOTH_LOOPS = True


@dataclass(frozen=True)
class Files:
    """An authority, and the files of a listener that it has signed."""

    ca: trustme.CA
    folder: Path

    def listener(self, tls: str = "") -> str:
        cert = self.folder / "gate.pem"
        return f"{{address: '127.0.0.1:0', tls: {{cert: {cert}{', ' + tls if tls else ''}}}}}"

    def asking(self, clients: str) -> str:
        return self.listener(f"client_ca: {self.folder / 'ca.pem'}, clients: {clients}")

    def client(self, by: trustme.CA | None = None) -> tuple[ssl.SSLContext, bytes]:
        """A client with a certificate of its own, and that certificate in DER."""
        context = self.trusting()
        certificate = (by or self.ca).issue_cert("client.test")
        certificate.configure_cert(context)
        return context, ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "gate.pem")
    return Files(ca, folder)


class TlsClient(Client):
    def reset(self) -> None:
        self.writer.transport.abort()


async def connect(gate: Edge, context: ssl.SSLContext, sock: socket.socket | None = None) -> Client:
    """A client that has made its handshake."""
    if sock is None:
        pair = await asyncio.open_connection("127.0.0.1", gate.port, ssl=context, limit=1 << 16)
    else:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gate.port))
        pair = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="127.0.0.1", limit=4096)
    client = TlsClient(*pair)
    gate.clients.append(client)
    return client


async def test_a_request_over_tls_is_guarded_and_its_answer_replayed(origin: Origin, files: Files) -> None:
    """The service hears that the client came over TLS."""
    async with edge(configuration(origin.url, listen=files.listener())) as gate:
        client = await connect(gate, files.trusting())
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() in (None, "http/1.1")
        for replayed in (False, True):
            await client.send(keyed("k", b"one"))
            answer = await client.read()
            assert (answer.status, answer.replayed) == (201, replayed)
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201
        assert [received.values(b"x-forwarded-proto") for received in origin.requests] == [[b"https"], [b"https"]]


async def test_many_requests_in_one_record_are_answered_in_their_order(origin: Origin, files: Files) -> None:
    """More than are read ahead: what TLS holds meanwhile is not lost."""
    async with edge(configuration(origin.url, listen=files.listener(), top="limits: {pipelined: 2}")) as gate:
        client = await connect(gate, files.trusting())
        await client.send(b"".join(keyed(f"k{n}", b"x" * 300) for n in range(100)))
        for _ in range(100):
            assert (await client.read()).status == 201
        assert len(origin.effects) == 100
        assert gate.count("oncegate_limits_total", limit="pipelined") >= 1


async def test_large_bodies_go_both_ways(hand: ByHand, files: Files) -> None:
    """Byte for byte, with a bounded part of them in the gate while either side does not read."""
    size = 6 << 20
    async with edge(configuration(hand.url, listen=files.listener())) as gate:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)  # or the kernel may take all of it by itself
        client = await connect(gate, files.trusting(), sock)
        data = hashlib.sha256(b"seed").digest() * (size // 32)
        await client.send(post(b"", length=size))
        peer = await hand.accept()
        await peer.head()
        sending = asyncio.ensure_future(client.send(data))
        assert await drink(peer.reader, size) == hashlib.sha256(data).digest()
        await sending
        client.writer.transport.pause_reading()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + data)
        await eventually(lambda: gate.connection.full, "the client has stalled")
        assert gate.connection.unsent() <= HELD
        client.writer.transport.resume_reading()
        await head_of(client)
        assert await drink(client.reader, size) == hashlib.sha256(data).digest()


async def test_the_last_answer_is_whole_and_its_end_is_announced(hand: ByHand, files: Files) -> None:
    """Over TLS too `Connection: close` ends with everything written, and with a close_notify."""
    async with edge(configuration(hand.url, listen=files.listener(), policy="max_response: 8MiB")) as gate:
        client = await connect(gate, files.trusting())
        await client.send(keyed("k", fields=b"Connection: close\r\n"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"x" * (4 << 20))
        await head_of(client)
        assert len(await drain(client)) == 4 << 20
        await gate.emptied()


async def test_other_protocols_go_through_over_tls(hand: ByHand, files: Files) -> None:
    """A WebSocket's bytes, both ways and many of them."""
    async with edge(configuration(hand.url, listen=files.listener())) as gate:
        client = await connect(gate, files.trusting())
        await client.send(b"GET /open/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        assert b"101" in await head_of(client)
        assert await piece(client, 5) == b"hello"
        data = b"0123456789abcdef" * (1 << 16)
        sending = asyncio.ensure_future(client.send(data))
        assert await drink(peer.reader, len(data)) == hashlib.sha256(data).digest()
        await sending
        client.close()
        assert await peer.ended()
        peer.close()


# ── Who may come in ───────────────────────────────────────────────────────────────────────────────


async def refused(gate: Edge, context: ssl.SSLContext) -> bool:
    """Whether a client is not let in. In TLS 1.3 it hears so when it first reads."""
    try:
        client = await connect(gate, context)
        await client.send(keyed("k"))
        return await drain(client) == b""
    except (ssl.SSLError, ConnectionError):
        return True


async def test_a_client_must_show_a_certificate_where_one_is_required(origin: Origin, files: Files) -> None:
    """None, or a stranger's: nothing that it sends is read. What was shown is known by its digest."""
    async with edge(configuration(origin.url, listen=files.asking("required"))) as gate:
        assert await refused(gate, files.trusting())
        assert await refused(gate, files.client(by=trustme.CA())[0])
        context, certificate = files.client()
        client = await connect(gate, context)
        await client.send(keyed("k"))
        assert (await client.read()).status == 201
        (connection,) = [each for each in gate.server.connections if getattr(each, "_certificate", b"")]
        assert connection._certificate == hashlib.sha256(certificate).digest()
        assert len(origin.requests) == 1


async def test_a_client_may_show_a_certificate_where_it_is_optional(origin: Origin, files: Files) -> None:
    """Without one it is nobody in particular; with a stranger's it is refused all the same."""
    async with edge(configuration(origin.url, listen=files.asking("optional"))) as gate:
        plain = await connect(gate, files.trusting())
        await plain.send(GET)
        assert (await plain.read(method=b"GET")).status == 201
        assert gate.connection._certificate == b""
        assert await refused(gate, files.client(by=trustme.CA())[0])
        context, _ = files.client()
        client = await connect(gate, context)
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201


async def test_an_old_version_is_not_spoken(origin: Origin, files: Files) -> None:
    """`minimum: "1.3"` leaves out who speaks 1.2; by default 1.2 is spoken and 1.1 is not."""
    old = files.trusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with edge(configuration(origin.url, listen=files.listener("minimum: '1.3'"))) as gate:
        assert await refused(gate, old)
        client = await connect(gate, files.trusting())
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201
    async with edge(configuration(origin.url, listen=files.listener())) as gate:
        client = await connect(gate, old)
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201


async def test_who_speaks_plainly_to_tls_is_told_so(origin: Origin, files: Files) -> None:
    """Once, and nothing of the request is done."""
    async with edge(configuration(origin.url, listen=files.listener())) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        assert (await drain(client)).startswith(b"HTTP/1.1 400 ")
        await gate.emptied()
        assert origin.requests == []


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a little", "more"]
)
async def test_a_handshake_may_only_take_so_long(origin: Origin, files: Files, sent: bytes) -> None:
    """From its first moment, whatever of it has come; and it is counted among the connections meanwhile."""
    limits = "limits: {handshake: 400ms, connections: 1}"
    async with edge(configuration(origin.url, listen=files.listener(), top=limits)) as gate:
        client = await gate.connect()
        await client.send(sent)
        await eventually(lambda: len(gate.server.connections) == 1, "it is counted")
        assert await refused(gate, files.trusting())
        assert gate.count("oncegate_limits_total", limit="connections") == 1
        assert await drain(client) == b""
        await gate.emptied()
        assert gate.count("oncegate_limits_total", limit="handshake") == 1


async def test_a_handshake_that_breaks_costs_nothing(origin: Origin, files: Files) -> None:
    """Garbage, an end within, a reset within: the place is free again, and no alarm is raised."""
    async with edge(configuration(origin.url, listen=files.listener())) as gate:
        for sent in (b"\x16" + b"garbage" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
            for end in (Client.close, Client.reset):
                client = await gate.connect()
                await client.send(sent)
                end(client)
                await gate.emptied()


async def test_a_client_over_tls_that_reads_nothing_is_cut(hand: ByHand, files: Files) -> None:
    """After `write_timeout`: what is unsent is counted below TLS."""
    limits = "limits: {write_timeout: 500ms}"
    async with edge(configuration(hand.url, listen=files.listener(), top=limits)) as gate:
        client = await connect(gate, files.trusting(), narrowed(socket.socket()))
        client.writer.transport.pause_reading()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (24 << 20) + b"x" * (8 << 20))
        assert await peer.ended()
        await gate.emptied()
        assert gate.count("oncegate_limits_total", limit="write_timeout") == 1


async def test_a_stop_answers_what_came_over_tls(hand: ByHand, files: Files) -> None:
    """In flight it is answered; in its handshake it is let go."""
    async with edge(configuration(hand.url, listen=files.listener())) as gate:
        client = await connect(gate, files.trusting())
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        shaking = await gate.connect()
        await eventually(lambda: len(gate.server.connections) == 2, "both are there")
        draining = asyncio.ensure_future(gate.listening.drain(5))
        assert await drain(shaking) == b""
        await peer.answer(b"done")
        answer = await client.read()
        assert (answer.body, answer.get("Connection")) == (b"done", "close")
        assert await drain(client) == b""
        assert await draining == 0


@pytest.mark.parametrize(
    ("target", "host", "went_on"),
    [
        (b"https://b/orders?q=1", b"b", b"/orders?q=1"),
        (b"HTTPS://b:443/orders", b"b:443", b"/orders"),
        (b"https://b", b"b", b"/"),
        (b"http://b/orders", b"b", b"/orders"),
    ],
    ids=bytes.decode,
)
async def test_a_target_in_absolute_form_is_a_path_and_a_host(
    origin: Origin, files: Files, target: bytes, host: bytes, went_on: bytes
) -> None:
    """As on a plain listener (RFC 9112 §3.2.2): its host counts and not the field's, its path goes on, to where the
    routes say. In origin form to the same host it is the same request."""
    async with edge(configuration(origin.url, listen=files.listener())) as gate:
        client = await connect(gate, files.trusting())
        for asked, field, replayed in ((target, b"a", False), (went_on, host, True)):
            request = keyed("k").replace(b"/orders", asked).replace(b"Host: a", b"Host: " + field)
            await client.send(request)
            answer = await client.read()
            assert (answer.status, answer.replayed) == (201, replayed)
        (received,) = origin.requests
        assert (received.target, received.values(b"host")) == (went_on, [host])


@pytest.mark.parametrize(
    "target", [b"https://a@b/orders", b"https:///orders", b"https://b/orders#c", b"wss://b/orders"], ids=bytes.decode
)
async def test_another_absolute_target_is_refused_over_tls_too(origin: Origin, files: Files, target: bytes) -> None:
    async with edge(configuration(origin.url, listen=files.listener())) as gate:
        client = await connect(gate, files.trusting())
        await client.send(keyed("k").replace(b"/orders", target))
        answer = await client.read()
        assert (answer.status, answer.problem) == (400, "request-malformed")
        assert not origin.requests

"""TCP keepalive on both sides: a host that has vanished is noticed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from gateway.edge import keepalive
from tests.edge.stand import GET, OK, ByHand, edge, head_of
from tests.harness import Client, Origin, configuration

BOTH_LOOPS = True

#: In a network namespace of its own, as its root.
ALONE = ("unshare", "--user", "--map-root-user", "--net")


def is_kept_alive(sock: socket.socket) -> bool:
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    )
    return [sock.getsockopt(*option) for option in options] == [1, 60, 10, 6]


async def test_both_connections_of_a_request_are_probed(hand: ByHand) -> None:
    """By the options that the kernel shows of the real sockets: two minutes until a vanished host is noticed."""
    assert (keepalive.IDLE, keepalive.INTERVAL, keepalive.PROBES) == (60, 10, 6)
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        peer = await hand.accept()
        await peer.head()
        await peer.send(OK + b"Content-Length: 4\r\n\r\n")
        await head_of(client)
        assert is_kept_alive(gate.connection._wire.get_extra_info("socket"))  # type: ignore[union-attr]
        assert is_kept_alive(gate.upstream.wire.get_extra_info("socket"))
        await peer.send(b"done")
        assert await client.reader.readexactly(4) == b"done"


async def test_both_connections_are_probed_over_tls(hand: ByHand, tmp_path: Path) -> None:
    """The TCP connections under it are."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "gate.pem")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(serving)
    trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 4\r\n\r\n")
        await reader.read()

    service = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=serving)
    url = f"https://127.0.0.1:{service.sockets[0].getsockname()[1]}"
    listen = f"{{address: '127.0.0.1:0', tls: {{cert: {tmp_path / 'gate.pem'}}}}}"
    text = configuration(url, listen=listen, upstream=f"tls: {{ca: {tmp_path / 'ca.pem'}}}")
    async with edge(text) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port, ssl=trusting)
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        assert is_kept_alive(gate.connection._wire.get_extra_info("socket"))  # type: ignore[union-attr]
        assert is_kept_alive(gate.upstream.wire.get_extra_info("socket"))
        writer.transport.abort()
        await gate.emptied()
    service.close()


async def test_a_unix_socket_needs_no_probes(origin: Origin, tmp_path: Path) -> None:
    """It has no other host, and is served as before."""
    path = tmp_path / "gate.sock"
    async with edge(configuration(origin.url, listen=f"[127.0.0.1:0, 'unix:{path}']")) as gate:
        client = Client(*await asyncio.open_unix_connection(str(path)))
        gate.clients.append(client)
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201


@pytest.mark.skipif(
    subprocess.run(
        (*ALONE, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"), capture_output=True, check=False
    ).returncode
    != 0,
    reason="this machine allows no network namespaces",
)
@pytest.mark.parametrize("who", ["client", "service"])
async def test_a_host_that_vanishes_is_noticed(who: str) -> None:
    """In the middle of a response, with a real link that goes down, and probes every second (vanished.py)."""
    running = await asyncio.create_subprocess_exec(
        *ALONE, sys.executable, "-m", "tests.edge.vanished", who, stderr=asyncio.subprocess.PIPE
    )
    _, shown = await running.communicate()
    assert running.returncode == 0, shown.decode()

"""Redis over TLS: an authority of our own, and servers that speak it. One without TLS of its own (the wheels') has it
spoken for it, as before many a managed Redis."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from functools import cache
from pathlib import Path
from typing import cast

import trustme

from gateway.tasks import Tasks
from tests.cluster import Node, RedisCluster
from tests.servers import RedisServer, free_port

NAME = "redis.internal"


class Authority:
    """Who signs, and the files of whom it has signed: a server here, one elsewhere, and a gate. And a stranger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ca, stranger = trustme.CA(), trustme.CA()
        ca.cert_pem.write_to_path(folder / "ca.pem")
        stranger.cert_pem.write_to_path(folder / "stranger.pem")
        self._write("server", ca.issue_cert("127.0.0.1"))
        self._write("named", ca.issue_cert(NAME))
        self._write("client", ca.issue_cert("gate.internal"))
        self._write("stranger-client", stranger.issue_cert("gate.internal"))

    def _write(self, name: str, certificate: trustme.LeafCert) -> None:
        certificate.private_key_and_cert_chain_pem.write_to_path(self.folder / f"{name}.pem")
        certificate.private_key_pem.write_to_path(self.folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(self.folder / f"{name}.crt")

    def file(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def ca(self) -> str:
        return f"ca={self.file('ca.pem')}"

    def client(self, name: str = "client") -> str:
        return f"cert={self.file(name + '.crt')}&key={self.file(name + '.key')}"


@cache
def speaks_tls(binary: Path) -> bool:
    """Whether it was built with TLS: it ends at once for want of a certificate, or else of TLS."""
    told = subprocess.run(
        [str(binary), "--port", "0", "--tls-port", str(free_port())], capture_output=True, timeout=10, check=False
    )  # fmt: skip
    return b"No tls-cert-file configured" in told.stdout


class SecureServer:
    """A server with a port for TLS beside its plain one. `clients`: they must show a certificate too."""

    def __init__(
        self, binary: Path, authority: Authority, *, certificate: str = "server", clients: bool = False,
        arguments: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.server = RedisServer(binary, arguments=arguments)
        self.port = free_port()
        self._authority = authority
        self._certificate = certificate
        self._clients = clients
        self._front: Front | None = None
        self.native = speaks_tls(binary)

    async def start(self) -> SecureServer:
        if self.native:
            self.server.arguments += tls_lines(self._authority, self.port, self._certificate, clients=self._clients)
        await asyncio.to_thread(self.server.start)
        if not self.native:
            try:
                front = Front(self.port, self.server.port, self._authority, self._certificate, clients=self._clients)
                self._front = await front.start()
            except BaseException:
                await asyncio.to_thread(self.server.close)
                raise
        return self

    async def close(self) -> None:
        if self._front is not None:
            await self._front.close()
        await asyncio.to_thread(self.server.close)

    def url(self, *options: str, user: str = "", path: str = "/0") -> str:
        return f"rediss://{user}127.0.0.1:{self.port}{path}" + ("?" + "&".join(options) if options else "")


def tls_lines(authority: Authority, port: int, certificate: str, *, clients: bool) -> tuple[str, ...]:
    """How a server that was built with TLS is told to speak it."""
    return (
        "--tls-port", str(port),
        "--tls-cert-file", authority.file(f"{certificate}.crt"),
        "--tls-key-file", authority.file(f"{certificate}.key"),
        "--tls-ca-cert-file", authority.file("ca.pem"),
        "--tls-auth-clients", "yes" if clients else "no",
    )  # fmt: skip


class SecureNode(Node):
    """A node that speaks TLS with everybody: clients, who must show a certificate, and the other nodes. It has a plain
    port too, for the tests."""

    def __init__(self, binary: Path, authority: Authority) -> None:
        super().__init__(binary, whole=False)
        self.tls_port = free_port()
        self.arguments += (*tls_lines(authority, self.tls_port, "server", clients=True), "--tls-cluster", "yes")

    @property
    def announced(self) -> int:
        return self.tls_port


class SecureCluster(RedisCluster):
    """Primaries without replicas that are reached over TLS only, as far as a gate is told."""

    def __init__(self, binary: Path, authority: Authority, *, primaries: int = 3) -> None:
        self._binary = binary
        self._authority = authority
        super().__init__(binary, primaries=primaries, replicas=False)

    def _node(self) -> SecureNode:
        return SecureNode(self._binary, self._authority)

    @property
    def url(self) -> str:
        return "rediss+cluster://" + ",".join(f"127.0.0.1:{node.announced}" for node in self.nodes)


class Front:
    """Speaks TLS for a server that cannot; who begins plainly is let through as he is (another Sentinel's way)."""

    def __init__(self, port: int, to: int, authority: Authority, certificate: str, *, clients: bool) -> None:
        self._to = to
        self._listening = socket.create_server(("127.0.0.1", port))
        self._listening.setblocking(False)
        self._tasks = Tasks(lambda _: None)  # what breaks breaks for the client too
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(authority.file(f"{certificate}.crt"), authority.file(f"{certificate}.key"))
        if clients:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(authority.file("ca.pem"))

    async def start(self) -> Front:
        self._tasks.start(self._accept())
        return self

    async def close(self) -> None:
        await self._tasks.cancel()
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            there, _ = await loop.sock_accept(self._listening)
            self._tasks.start(self._serve(there))

    async def _serve(self, there: socket.socket) -> None:
        begins = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(there, begins.set)
        try:
            await begins.wait()
        except BaseException:
            loop.remove_reader(there)
            there.close()
            raise
        loop.remove_reader(there)
        try:
            speaks_tls = there.recv(1, socket.MSG_PEEK) == b"\x16"  # a handshake record (RFC 8446 §5.1)
        except OSError:
            there.close()
            return
        far, ended = _End(), asyncio.Event()
        near = _End()
        near.other, far.other = far, near
        near.ended = far.ended = ended
        try:
            await loop.create_connection(lambda: far, "127.0.0.1", self._to)
            await loop.connect_accepted_socket(lambda: near, there, ssl=self.context if speaks_tls else None)
            await ended.wait()
        except OSError:  # SSLError is one
            there.close()
        finally:
            for end in (near, far):
                if end.transport is not None:
                    end.transport.abort()


class _End(asyncio.Protocol):
    """One of the two ends of what passes through."""

    transport: asyncio.Transport | None = None
    other: _End
    ended: asyncio.Event

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other.transport is not None:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()

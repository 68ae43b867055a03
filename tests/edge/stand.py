"""What the tests of the edge share: an origin whose every byte the test writes, and a gate that must end clean."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from gateway.edge.client import ClientConnection
from gateway.edge.connection import Connection
from gateway.edge.pool import Pool
from gateway.edge.server import Server
from gateway.edge.shared import Shared
from tests.harness import Client, Field, RunningGate, ask, gate, reset

#: Longest that any of these tests waits for something that should happen at once.
SOON = 10.0


async def eventually(met: Callable[[], object], what: str, seconds: float = SOON) -> None:
    """Wait until `met`, looking again and again."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while not met():
        assert loop.time() < ends, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.002)


# ── An origin by hand ─────────────────────────────────────────────────────────────────────────────


class Peer:
    """One connection that the gate made to an origin by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """The next head, with the empty line that ends it."""
        async with asyncio.timeout(SOON):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def fields(self) -> list[Field]:
        """The fields of the next head, byte for byte."""
        return fields_of(await self.head())

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(SOON):
            return await self.reader.readexactly(size)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"ok", status: int = 200, fields: bytes = b"") -> None:
        await self.send(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), fields, body))

    async def ended(self) -> bool:
        """Whether the gate ends the connection; by a reset too."""
        try:
            async with asyncio.timeout(SOON):
                while await self.reader.read(1 << 16):
                    pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        reset(self.writer)


def fields_of(head: bytes) -> list[Field]:
    """The fields of a head, byte for byte."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]
    return [(name, value.lstrip(b" ")) for name, _, value in (line.partition(b":") for line in lines)]


class ByHand:
    """An origin that does nothing by itself. `accept` gives the connections in the order in which they were made.

    `narrow`: its sockets take little before they stall, and little is sent to them at once.
    """

    def __init__(self, *, narrow: bool = False) -> None:
        self._socket = socket.socket()
        if narrow:
            narrowed(self._socket)
        self._socket.bind(("127.0.0.1", 0))
        self._server: asyncio.Server | None = None
        self._made: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []

    async def start(self) -> ByHand:
        self._server = await asyncio.start_server(self._serve, sock=self._socket, limit=1 << 20)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self._peers.append(peer)
        self._made.put_nowait(peer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many were made so far."""
        return len(self._peers)

    async def accept(self) -> Peer:
        async with asyncio.timeout(SOON):
            return await self._made.get()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self._peers:
            peer.reset()


def narrowed(sock: socket.socket) -> socket.socket:
    """A socket with small buffers and small segments: whoever writes to it soon has to wait."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
    return sock


async def narrow_client(port: int) -> Client:
    """A client whose socket takes little before it stalls, and that reads nothing until it is asked to."""
    sock = narrowed(socket.socket())
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return Client(*await asyncio.open_connection(sock=sock, limit=4096))


# ── A gate that must end clean ────────────────────────────────────────────────────────────────────


@dataclass
class Edge:
    """A running gate, and what is inside of it."""

    running: RunningGate
    #: Lines of the log at level `alarm` that the test brings about on purpose.
    alarms: int = 0
    clients: list[Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.running.port

    @property
    def listening(self) -> Server:
        server = self.running.app._server
        assert server is not None
        return server

    @property
    def server(self) -> Shared:
        return self.listening.shared

    @property
    def pool(self) -> Pool:
        return self.server.pools["origin"]

    async def connect(self) -> Client:
        """A client, closed at the test's end."""
        client = await Client.connect(self.port)
        self.clients.append(client)
        return client

    @property
    def connection(self) -> ClientConnection:
        """The only client's connection, as the gate sees it."""
        (connection,) = self.server.connections
        assert isinstance(connection, ClientConnection)
        return connection

    @property
    def upstream(self) -> Connection:
        """The connection by which the only client's first request is served."""
        visit = self.connection._queue[0]
        served = visit.tunnel or visit._stream
        assert served is not None
        connection: Connection = served._connection  # type: ignore[attr-defined]
        return connection

    @property
    def held(self) -> int:
        """Bytes that wait in the gate for its only client to read."""
        transport = self.connection._transport
        return 0 if transport is None else transport.get_write_buffer_size()

    async def settled(self) -> None:
        """Wait until nothing is under way: no exchange, no claim, no reserved byte, no connection in use."""
        app, driver = self.running.app, self.server.driver

        def leftovers() -> dict[str, object]:
            found = {
                "tasks": len(app.tasks),
                "keys in flight": len(driver),
                "settlements": len(app.settler),
                "waiting": driver.waiting,
                "reserved bytes": self.server.door.budget.taken,
                "requests": sum(len(connection._queue) for connection in self.server.connections),
            }
            for name, pool in self.server.pools.items():
                found[f"{name}: wanting"] = pool.waiting
                found[f"{name}: in use"] = pool._open - len(pool._idle)
                found[f"{name}: unusable"] = sum(not connection.usable for connection in pool._idle)
                found[f"{name}: paused"] = sum(not connection._transport.is_reading() for connection in pool._idle)
            return {what: count for what, count in found.items() if count}

        try:
            await eventually(lambda: not leftovers(), "")
        except AssertionError:
            raise AssertionError(f"left over: {leftovers()}") from None

    async def emptied(self) -> None:
        """Wait until no client is connected."""
        await eventually(lambda: not self.server.connections, "every connection of a client is gone")

    def count(self, metric: str, **labels: str) -> float:
        return self.running.count(metric, **labels)


@contextlib.asynccontextmanager
async def edge(text: str, *, alarms: int = 0) -> AsyncIterator[Edge]:
    """A gate in this process. When the test is through with it nothing may be left over: see `Edge.settled`."""
    loop = asyncio.get_running_loop()
    unexpected: list[str] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        unexpected.append(f"{context.get('message')}: {context.get('exception')!r}")

    loop.set_exception_handler(note)
    try:
        async with gate(text) as running:
            stand = Edge(running, alarms)
            try:
                yield stand
                await stand.settled()
                for client in stand.clients:
                    client.close()
                await stand.emptied()
                await stand.settled()
            finally:
                for client in stand.clients:
                    client.reset()
            assert running.count("oncegate_alarms_total") == stand.alarms, running.lines
        assert not unexpected, unexpected
    finally:
        loop.set_exception_handler(None)


# ── Bytes ─────────────────────────────────────────────────────────────────────────────────────────


async def head_of(client: Client) -> bytes:
    """The next head that a client is sent, byte for byte."""
    async with asyncio.timeout(SOON):
        return await client.reader.readuntil(b"\r\n\r\n")


async def piece(client: Client, size: int) -> bytes:
    """The next `size` bytes that a client is sent."""
    async with asyncio.timeout(SOON):
        return await client.reader.readexactly(size)


def values(fields: list[Field], name: bytes) -> list[bytes]:
    return [value for field, value in fields if field.lower() == name.lower()]


async def drain(client: Client) -> bytes:
    """All that comes until the connection ends."""
    data = b""
    async with asyncio.timeout(SOON):
        try:
            while more := await client.reader.read(1 << 16):
                data += more
        except ConnectionError:
            pass
    return data


#: What the gate may hold for one connection: a full buffer and what was read at once.
HELD = 1 << 20


async def feed(peer_send: asyncio.StreamWriter, total: int) -> bytes:
    """Write `total` random bytes as fast as they are taken; gives their digest."""
    digest = hashlib.sha256()
    left = total
    while left:
        data = os.urandom(min(1 << 16, left))
        left -= len(data)
        digest.update(data)
        peer_send.write(data)
        await peer_send.drain()
    return digest.digest()


async def drink(reader: asyncio.StreamReader, total: int) -> bytes:
    """Read `total` bytes; gives their digest."""
    digest = hashlib.sha256()
    left = total
    while left:
        data = await reader.read(min(1 << 16, left))
        assert data, f"{left} bytes are missing"
        left -= len(data)
        digest.update(data)
    return digest.digest()


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────

#: The beginning of an answer.
OK = b"HTTP/1.1 200 OK\r\n"
#: An unguarded request.
GET = b"GET /open/x HTTP/1.1\r\nHost: gate.test\r\n\r\n"


def post(body: bytes, *, fields: bytes = b"", length: int | None = None) -> bytes:
    """An unguarded POST, or the beginning of one of `length` bytes."""
    return b"POST /open/x HTTP/1.1\r\nHost: gate.test\r\nContent-Length: %d\r\n%b\r\n%b" % (
        len(body) if length is None else length,
        fields,
        body,
    )


def keyed(key: str, body: bytes = b"", *, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A guarded request with a sized body."""
    return b"POST /orders HTTP/%b\r\nHost: a\r\nIdempotency-Key: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        version,
        key.encode(),
        fields,
        len(body),
        body,
    )


async def not_kept(gate: Edge, status: int) -> None:
    """A duplicate is told that it ran, how it was answered, and that the answer was not kept."""
    again = await ask(gate.port, key="k", body=b"", host="a")
    assert (again.status, again.problem, again.label) == (409, "response-not-kept", "not-kept")
    assert again.get("Idempotency-Outcome") == "keep"
    assert again.get("X-Should-Retry") == "false"
    assert b"The service answered %d." % status in again.body

"""A gate before an origin of the test's own, on real sockets; and a client that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h11
from h11 import _abnf, _events, _readers

from gateway.app import App
from gateway.settings import load_text
from tests.servers import free_port

Field = tuple[bytes, bytes]

# h11 reads targets in ASCII alone. The gateway passes the others, too; everything else of h11 stays as strict as it is.
_TARGET = _abnf.request_target.replace(_abnf.vchar, r"[\x21-\x7e\x80-\xff]")
_events.request_target_re = re.compile(_TARGET.encode())
_readers.request_line_re = re.compile(_abnf.request_line.replace(_abnf.request_target, _TARGET).encode())


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a RST. (`abort` alone sends a FIN where nothing lies unread.)"""
    sock = writer.get_extra_info("socket")
    if not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# ── An origin ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Received:
    """A request as the origin got it, parsed by h11 (strict, and not ours)."""

    method: bytes
    target: bytes
    fields: list[Field]
    body: bytes
    connection: int
    raw_fields: list[Field] = field(default_factory=list)

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name.lower()]

    @property
    def key(self) -> bytes | None:
        found = self.values(b"idempotency-key")
        return found[0] if found else None


class Exchange:
    """One request at the origin, and the raw hand with which it is answered."""

    def __init__(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def respond(
        self, status: int = 201, body: bytes = b'{"id":1}', fields: Sequence[Field] = (), *, reason: bytes = b"OK"
    ) -> None:
        head = b"".join(b"%b: %b\r\n" % line for line in fields)
        length = b"" if status in (204, 304) else b"Content-Length: %d\r\n" % len(body)
        await self.send(b"HTTP/1.1 %d %b\r\n%b%b\r\n%b" % (status, reason, head, length, body))

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """End the connection with a RST."""
        reset(self.writer)


Answer = Callable[[Exchange], Awaitable[None]]


async def _created(exchange: Exchange) -> None:
    await exchange.respond(201, b'{"id":"%b"}' % (exchange.request.key or b"-"))


class Origin:
    """A server that records what it is asked and counts effects by key. `answer` may be replaced at will."""

    def __init__(self, answer: Answer = _created) -> None:
        self.answer = answer
        self.requests: list[Received] = []
        self.effects: Counter[bytes | None] = Counter()
        self.connections = 0
        self.arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, port: int = 0) -> Origin:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def until(self, count: int, seconds: float = 10) -> None:
        """Wait until so many requests have arrived whole."""
        async with asyncio.timeout(seconds), self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        parser = h11.Connection(h11.SERVER)
        try:
            while True:
                request, body = None, b""
                while True:
                    event = parser.next_event()
                    if event is h11.NEED_DATA:
                        data = await reader.read(1 << 16)
                        if not data and request is None:
                            return
                        parser.receive_data(data)
                    elif isinstance(event, h11.Request):
                        request = event
                    elif isinstance(event, h11.Data):
                        body += bytes(event.data)
                    elif isinstance(event, h11.EndOfMessage):
                        break
                    else:
                        return
                assert request is not None
                received = Received(
                    request.method, request.target, list(request.headers), body, number,
                    list(request.headers.raw_items()),
                )  # fmt: skip
                async with self.arrived:
                    self.requests.append(received)
                    if request.method not in (b"GET", b"HEAD", b"OPTIONS"):
                        self.effects[received.key] += 1
                    self.arrived.notify_all()
                await self.answer(Exchange(received, reader, writer))
                if writer.is_closing():
                    return
                # Our answers are raw bytes, so h11's own side of the connection is not told of them.
                parser = _again(parser)
        except (ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass
        except RuntimeError as error:
            if "the handler is closed" not in str(error):  # what uvloop says of a connection that was reset
                raise
        finally:
            self._tasks.discard(task)
            writer.close()


def _again(parser: h11.Connection) -> h11.Connection:
    rest, _ = parser.trailing_data
    fresh = h11.Connection(h11.SERVER)
    if rest:
        fresh.receive_data(rest)
    return fresh


# ── A client ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Response:
    """What a client was given, byte for byte."""

    status: int
    fields: list[Field]
    body: bytes
    reason: bytes = b""

    def values(self, name: str) -> list[str]:
        return [value.decode("latin-1") for field, value in self.fields if field.lower() == name.lower().encode()]

    def get(self, name: str) -> str | None:
        found = self.values(name)
        return found[0] if found else None

    @property
    def label(self) -> str | None:
        return self.get("Idempotency-Status")

    @property
    def replayed(self) -> bool:
        return self.get("Idempotent-Replayed") == "true"

    @property
    def problem(self) -> str | None:
        """The slug of the problem that this is."""
        if self.get("Content-Type") != "application/problem+json":
            return None
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["detail"]
        assert document["title"]
        assert document["request_id"]
        return str(document["type"]).removeprefix("urn:oncegate:problem:")


class Client:
    """One connection to a gate."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = h11.Connection(h11.CLIENT)

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, *, method: bytes = b"POST", seconds: float = 20) -> Response:
        """The next response. Raises ConnectionError if the connection ends before it is whole."""
        async with asyncio.timeout(seconds):
            return await self._read(method)

    async def _read(self, method: bytes) -> Response:
        parser = h11.Connection(h11.CLIENT)
        # h11 pairs a response with the request that it saw leave.
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
        parser.send(h11.EndOfMessage())
        rest, _ = self._parser.trailing_data
        if rest:
            parser.receive_data(rest)
        head: h11.Response | None = None
        body = b""
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                raise ConnectionError(f"the response broke off: {error}") from error
            if event is h11.NEED_DATA:
                data = await self.reader.read(1 << 16)
                if not data and head is None:
                    raise ConnectionError("the connection was closed without a response")
                parser.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.InformationalResponse):
                continue
            else:
                raise ConnectionError("the connection was closed within the response")
        self._parser = parser
        assert head is not None
        return Response(head.status_code, list(head.headers.raw_items()), body, bytes(head.reason))

    async def ended(self, seconds: float = 5) -> bool:
        """Whether the gate closes the connection."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Leave with a RST: a FIN alone could be half of a farewell."""
        reset(self.writer)


def request(
    method: str = "POST",
    target: str = "/orders",
    *,
    key: str | None = None,
    body: bytes = b"",
    fields: Sequence[tuple[str, str]] = (),
    host: str = "gate.test",
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    if key is not None:
        lines.append(f"Idempotency-Key: {key}")
    lines += [f"{name}: {value}" for name, value in fields]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def ask(
    port: int,
    method: str = "POST",
    target: str = "/orders",
    *,
    key: str | None = None,
    body: bytes = b'{"amount":1}',
    fields: Sequence[tuple[str, str]] = (),
    host: str = "gate.test",
    seconds: float = 20,
) -> Response:
    """One request on a connection of its own."""
    client = await Client.connect(port)
    try:
        await client.send(request(method, target, key=key, body=body, fields=fields, host=host))
        return await client.read(method=method.encode(), seconds=seconds)
    finally:
        client.close()


# ── A gate ────────────────────────────────────────────────────────────────────────────────────────


def configuration(
    origin: str,
    *,
    store: str = "memory://",
    policy: str = "",
    upstream: str = "",
    routes: str = "",
    top: str = "",
    service: str = "test",
    listen: int | str = 0,
    admin: int = 0,
) -> str:
    """A configuration in YAML. `policy` and `upstream` are comma-separated YAML flow fields, `listen` a port or
    YAML."""
    return f"""
service: {service}
listen: {listen if isinstance(listen, str) else f"127.0.0.1:{listen}"}
admin: {{listen: 127.0.0.1:{admin or free_port()}}}
store: {store}
upstreams:
  origin: {{url: {origin}{", " + upstream if upstream else ""}}}
{top}
routes:
{routes}
  - {{name: open, match: {{path: /open/**}}, upstream: origin, guard: false}}
  - {{name: all, match: {{path: /**}}, upstream: origin{", " + policy if policy else ""}}}
"""


@dataclass
class RunningGate:
    """A gate in this process."""

    app: App
    port: int
    log: io.StringIO

    @property
    def admin_port(self) -> int:
        return self.app.admin_addresses[0][1]

    def count(self, metric: str, **labels: str) -> float:
        """A counter's value, as a scrape would show it."""
        return self.app.tally.registry.get_sample_value(metric, labels) or 0.0

    @property
    def lines(self) -> list[dict[str, object]]:
        """The log so far."""
        self.app.log.close()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@contextlib.asynccontextmanager
async def gate(text: str, *, prepare: Callable[[App], object] = lambda app: None) -> AsyncIterator[RunningGate]:
    """A gate in this process, from its configuration. `prepare` is given it before it starts."""
    log = io.StringIO()
    app = App(load_text(text, name="test.yaml", environ={}), out=log)
    prepare(app)
    await app.start()
    try:
        yield RunningGate(app, app.addresses[0][1], log)
    finally:
        app.settings = _impatient(app.settings)
        await app.stop()


def _impatient(settings: object) -> object:
    import dataclasses

    return dataclasses.replace(settings, grace=200)  # type: ignore[type-var]


class GateProcess:
    """A gate in a process of its own, that can be killed."""

    module = "gateway.cli"
    #: What runs the interpreter, where not we.
    before: Sequence[str] = ()

    def __init__(self, text: str, *, environ: dict[str, str] | None = None, arguments: Sequence[str] = ()) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="oncegate-gate-")
        self.arguments = arguments
        self.port, self.admin_port = free_port(), free_port()
        self.file = Path(self.folder.name) / "gateway.yaml"
        self.file.write_text(text)
        self.log = Path(self.folder.name) / "log"
        self._environ = {**os.environ, **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> GateProcess:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *self.before, sys.executable, "-m", self.module, "run", "--config", str(self.file),
                    "--listen", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.admin_port}", *self.arguments,
                ],
                stdout=out, stderr=out, env=self._environ,
            )  # fmt: skip
        with contextlib.ExitStack() as undo:
            undo.callback(self.kill)
            async with asyncio.timeout(20):
                while not await asyncio.to_thread(self._ready):
                    assert self.process.poll() is None, self.log.read_text()
                    await asyncio.sleep(0.05)
            undo.pop_all()
        return self

    def _ready(self) -> bool:
        """Whether it has started. One that waits for its store (startup_wait) has."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/ready", timeout=2):
                return True
        except urllib.error.HTTPError as refused:
            with refused:
                return "starting" not in json.load(refused)["reason"]
        except OSError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def terminate(self, seconds: float = 20) -> int:
        """SIGTERM; says the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, seconds)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.folder.cleanup()

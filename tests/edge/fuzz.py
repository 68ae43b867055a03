"""Bytes of any kind into a gate in this process, and what must hold whatever they are.

`fed` gives a gate some bytes, cut into packets, and says what came of it. The gate is whole, but for its sockets: the
client's side is a transport that keeps what is written, the upstream a real server on the loopback that parses with
h11. Hypothesis uses it in test_fuzz.py, atheris in search.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import h11
import uvloop

from gateway.core.decide import SAFE
from gateway.edge.client import ClientConnection
from gateway.edge.line import Visit
from gateway.edge.shared import Shared
from tests.edge.stand import Edge, edge, eventually
from tests.harness import Origin, configuration

CORPUS = Path(__file__).parent / "corpus"
_OPEN = re.compile(rb"/open(?:[/?]|$)")
#: What the gate answers only where it, or the upstream, has failed; neither has a reason to.
_FAILURES = (500, 502, 503, 504)
#: How an answer in HTTP/2 begins.
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


class Wire(asyncio.Transport):
    """The client's side of a connection: keeps what is written to it, takes it all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.reading = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "written to a connection that was closed"
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Watched(ClientConnection):
    """Notes the methods of what it answers, in their order: without them nobody can read the answers."""

    def __init__(self, server: Shared) -> None:
        super().__init__(server)
        self.methods: list[bytes] = []

    def done(self, visit: Visit, *, cut: bool = False) -> None:
        self.methods.append(visit.head.method)
        super().done(visit, cut=cut)


@dataclass
class Came:
    """What came of it: the gate's answers in their order, and whether all that was sent was read."""

    answers: list[int] = field(default_factory=list)
    #: With how many of them the gate itself refused.
    refused: int = 0
    whole: bool = True


async def fed(gate: Edge, origin: Origin, sent: bytes, cuts: tuple[int, ...] = ()) -> Came:
    """Send these bytes by a connection of their own, cut at `cuts`; wait until they are dealt with.

    Raises AssertionError where something is left over, where what the gate answers is no HTTP, and where the upstream
    was asked more often than the client was answered.
    """
    asked = len(origin.requests)
    wire, connection = Wire(), Watched(gate.server)
    connection.connection_made(wire)
    start = 0
    for end in (*sorted({cut for cut in cuts if 0 < cut < len(sent)}), len(sent)):
        await _readable(wire)
        if wire.closed:
            break
        connection.data_received(sent[start:end])
        start = end
    await _readable(wire)
    if not wire.closed:
        connection.eof_received()
    await eventually(lambda: wire.closed or not connection._queue, "whatever was asked is answered", 5)
    connection.connection_lost(None)
    await gate.settled()
    assert connection not in gate.server.connections
    came = _read(wire.written, connection.methods)
    forwards = len(origin.requests) - asked
    assert forwards <= len(came.answers) - came.refused or not came.whole, (forwards, came)
    return came


async def _readable(wire: Wire) -> None:
    await eventually(lambda: wire.reading or wire.closed, "the gate reads on", 5)


def _read(written: bytes, methods: list[bytes]) -> Came:
    """The answers, read by h11. Their last may have been broken off."""
    came, rest = Came(), written
    while rest:
        if rest.startswith(_SETTINGS):
            came.whole = False
            return came
        parser = h11.Connection(h11.CLIENT)
        method = methods[len(came.answers)] if len(came.answers) < len(methods) else b"GET"
        method = b"HEAD" if method == b"HEAD" else b"GET"
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "a"), ("Content-Length", "0")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(rest)
        head, event = None, parser.next_event()
        while not isinstance(event, h11.EndOfMessage):
            if event is h11.NEED_DATA:
                came.whole = False
                return came
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.InformationalResponse):
                assert event.status_code == 100
            event = parser.next_event()
        assert head is not None
        assert head.status_code not in _FAILURES, rest
        came.answers.append(head.status_code)
        refused = any(name == b"content-type" and value == b"application/problem+json" for name, value in head.headers)
        came.refused += refused
        rest = parser.trailing_data[0]
    return came


# ── For searches that are not coroutines ──────────────────────────────────────────────────────────


class Stand:
    """A gate and its origin on a loop of their own. `feed` gives it bytes; whatever is wrong then is raised.

    One route is guarded, `/open/**` is not; bodies up to 64 KiB. Keys are remembered from one feed to the next.
    """

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        self._keyed: Counter[bytes] = Counter()
        self.forwarded = self.refused = 0
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._origin = await Origin().start()
        text = configuration(self._origin.url, top="defaults: {max_request: 64KiB}")
        self._gate = await self._stack.enter_async_context(edge(text))

    def feed(self, sent: bytes, cuts: tuple[int, ...] = ()) -> Came:
        """See `fed`. Raises AssertionError too where a guarded key ran twice."""
        origin = self._origin
        came = self._loop.run_until_complete(fed(self._gate, origin, sent, cuts))
        self.forwarded += len(origin.requests)
        self.refused += came.refused
        for received in origin.requests:
            guarded = received.method not in SAFE and not _OPEN.match(received.target)
            if guarded and received.key is not None:
                self._keyed[received.key] += 1
                assert self._keyed[received.key] == 1, received
        origin.requests.clear()
        return came

    def close(self) -> None:
        """Raises AssertionError where anything was left over, or an alarm was logged."""
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.run_until_complete(self._origin.stop())
        self._loop.close()

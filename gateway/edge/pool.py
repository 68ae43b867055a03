"""Connections to one upstream: made when needed, used again while they are fresh, and never too many.

A connection is given away only after its TLS handshake has finished, so whatever goes wrong until then has
sent no byte of a request. TLS 1.3 may refuse a client after that: the request may have been read, and is Lost.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..core.limit import Limit
from ..core.outcome import NotSentReason
from ..ports import Clock
from ..tasks import Tasks
from .connection import Connection, stir
from .deadlines import Deadlines
from .descriptors import EXHAUSTED

#: Seconds for which an idle connection may be used again. Short, because an upstream that closes an idle
#: connection at the moment when we write to it leaves us not knowing whether it ran the request.
IDLE_FOR = 1.0
#: With TLS, where a new one costs two more round trips and a signature.
TLS_IDLE_FOR = 4.0


@dataclass(frozen=True, slots=True)
class Tls:
    """How the upstream is known: by what `context` trusts, and by the name that it is asked for."""

    context: ssl.SSLContext
    server_name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an upstream is. `connect` in seconds, the handshake included; `connections` is the most that are
    open at once; `tls` where it speaks TLS."""

    name: str
    host: str
    port: int
    connect: float = 2.0
    connections: int = 256
    tls: Tls | None = None
    #: Of a Unix socket, instead of host and port.
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


class Wanter(Protocol):
    """Whoever wants a connection. Exactly one of the two comes."""

    @property
    def guarded(self) -> bool:
        """Whether it may take the last connections."""

    def connected(self, connection: Connection) -> None: ...

    def unconnected(self, reason: NotSentReason, detail: str) -> None: ...


class Pool:
    """The connections to `place`."""

    def __init__(
        self, place: Place, clock: Clock, tasks: Tasks, limited: Callable[[Limit], None] = lambda _: None
    ) -> None:
        self.place = place
        self.limited = limited
        self.clock = clock
        #: The upstream as a Host field says it.
        self.authority = (f"[{place.host}]" if ":" in place.host else place.host).encode() + b":%d" % place.port
        if place.path:
            self.authority = place.host.encode()
        self._tasks = tasks
        self._idle_for = IDLE_FOR if place.tls is None else TLS_IDLE_FOR
        self._idle: list[Connection] = []
        self._open = 0
        self._wanting: deque[Wanter] = deque()
        #: A quarter is kept for guarded requests. What passes through holds its connection for as long as its client
        #: reads, and whoever reads slowly on purpose would hold them all.
        self._for_passing = place.connections - place.connections // 4
        self._passing: set[Connection] = set()
        self._admitted: set[Wanter] = set()
        self._queue: deque[Wanter] = deque()
        self._leaving: list[Wanter] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(clock)

    @property
    def opened(self) -> int:
        """How many connections there are, or are being made."""
        return self._open

    @property
    def waiting(self) -> int:
        """How many wait until a connection falls free."""
        return len(self._wanting) + len(self._queue)

    def acquire(self, wanter: Wanter, *, fresh: bool = False) -> None:
        """Give a connection to `wanter`: at the end of this turn where one is idle (and `fresh` is not asked for),
        or once one is made or falls free. Who asks for a fresh one has just lost another, and has its place."""
        if not wanter.guarded:
            if not (fresh or self._has_room()):
                self._queue.append(wanter)
                self.limited(Limit.UPSTREAM_CONNECTIONS)
                return
            self._admitted.add(wanter)
        if self._idle and not fresh:
            if not self._leaving:
                self.loop.call_soon(self._hand_out)
            self._leaving.append(wanter)
        else:
            self._make(wanter)

    def _has_room(self) -> bool:
        """Whether one more may pass through."""
        return len(self._passing) + len(self._admitted) < self._for_passing

    def _make(self, wanter: Wanter) -> None:
        if self._open >= self.place.connections:
            self._wanting.append(wanter)
            self.limited(Limit.UPSTREAM_CONNECTIONS)
            return
        self._open += 1
        self._tasks.start(self._connect(wanter))

    def _hand_out(self) -> None:
        """At the end of a turn of the loop: what lies idle goes to those who came in it. Their requests are written
        back to back, and one look tells of all connections whether they are quiet still (see `edge.outbox`)."""
        leaving, self._leaving = self._leaving, []
        now, idle_for = self.clock.now(), self._idle_for
        given: list[Connection] = []
        while self._idle and len(given) < len(leaving):
            connection = self._idle.pop()
            if now - connection.idle_since <= idle_for and connection.usable:
                given.append(connection)
            else:
                connection.abort()
        stirring = stir(given)
        for wanter in leaving:
            while given and given[-1] in stirring:
                given.pop().abort()
            if not given:
                self._make(wanter)
                continue
            connection = given.pop()
            try:
                self._give(wanter, connection)
            except Exception as error:  # one that fails must not cost the others their connections
                connection.abort()
                self._tasks.failed(error)
        for connection in given:
            connection.abort()

    def forget(self, wanter: Wanter) -> None:
        """`wanter` waits no more."""
        for waiting in (self._wanting, self._leaving, self._queue):
            if wanter in waiting:
                waiting.remove(wanter)
                self._admitted.discard(wanter)
        # Else its connection is being made, and will be given to somebody else or closed.
        self._admit()

    def _give(self, wanter: Wanter, connection: Connection) -> None:
        if not wanter.guarded:
            self._admitted.discard(wanter)
            self._passing.add(connection)
        wanter.connected(connection)

    def _deny(self, wanter: Wanter, reason: NotSentReason, detail: str) -> None:
        self._admitted.discard(wanter)
        wanter.unconnected(reason, detail)
        self._admit()

    def _admit(self) -> None:
        """Let those that pass through want a connection, as far as there is room for them."""
        while self._queue and self._has_room():
            self.acquire(self._queue.popleft())

    def retire(self) -> None:
        """Close what is idle, and whatever falls idle later. What is under way goes on."""
        self._closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def close(self) -> None:
        """As `retire`, and nothing is under way any more."""
        self.retire()
        self.deadlines.close()

    async def _connect(self, wanter: Wanter) -> None:
        place = self.place
        made = False
        try:
            async with asyncio.timeout(place.connect):
                connection = await (self._plain() if place.tls is None else self._secured(place.tls))
            made = True
        except (OSError, ValueError) as error:  # TimeoutError, socket.gaierror, ssl.SSLError; UnicodeError
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                self.limited(Limit.DESCRIPTORS)
                self._deny(wanter, NotSentReason.NO_CONNECTION, f"{place}: {error.strerror}")
                return
            self._deny(wanter, NotSentReason.UNREACHABLE, f"{place}: {self._why(error)}")
            return
        except asyncio.CancelledError:
            self._deny(wanter, NotSentReason.STOPPED, "the gate is being stopped")
            raise
        finally:
            if not made:
                self._open -= 1
                self._serve_next()
        if connection.usable:
            self._give(wanter, connection)
        else:  # it ended, or spoke first, before we could write
            self._deny(wanter, NotSentReason.UNREACHABLE, f"{place}: closed at once")

    async def _plain(self) -> Connection:
        loop, place = asyncio.get_running_loop(), self.place

        def made() -> Connection:
            return Connection(self._fell_idle, self._ended)

        if place.path:
            _, connection = await loop.create_unix_connection(made, place.path)
        else:
            _, connection = await loop.create_connection(made, place.host, place.port)
        return connection

    async def _secured(self, tls: Tls) -> Connection:
        """Two steps where `create_connection(ssl=…)` takes one, because that one keeps the TCP transport to
        itself: see `Connection._wire`."""
        loop, place = asyncio.get_running_loop(), self.place
        wire, _ = await loop.create_connection(asyncio.Protocol, place.host, place.port)
        guard = _Handshake()
        try:
            secure = await loop.start_tls(
                wire, guard, tls.context, server_hostname=tls.server_name, ssl_handshake_timeout=place.connect
            )
            await asyncio.sleep(0)  # what came behind the handshake is told one turn later
            if guard.over or secure is None or wire.is_closing():
                raise ConnectionError(guard.over or "closed in the TLS handshake")
        except BaseException:
            wire.abort()
            raise
        connection = Connection(self._fell_idle, self._ended)
        secure.set_protocol(connection)
        connection.secured(secure, wire)
        return connection

    def _why(self, error: Exception) -> str:
        """What kept a connection from being made, for the log."""
        match error:
            case ssl.SSLCertVerificationError():
                return f"certificate verify failed: {error.verify_message}"
            case ssl.SSLError(reason=str(reason)):
                return f"the TLS handshake failed: {reason.replace('_', ' ').lower()}"
            case TimeoutError() if not str(error):
                return f"no {'answer' if self.place.tls is None else 'TLS handshake'} in {self.place.connect:g} s"
        return str(error) or "closed in the TLS handshake"

    def _fell_idle(self, connection: Connection) -> None:
        if self._wanting and self.place.tls is not None:
            # A close_notify that came in one piece with the response has left the socket, and is told next.
            asyncio.get_running_loop().call_soon(self._pass_on, connection)
        else:
            self._pass_on(connection)

    def _pass_on(self, connection: Connection) -> None:
        self._passing.discard(connection)
        if self._closed or not connection.usable:
            connection.abort()
        elif not self._wanting:
            connection.idle_since = self.clock.now()
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = asyncio.get_running_loop().call_later(self._idle_for, self._sweep)
        elif connection.quiet():
            self._give(self._wanting.popleft(), connection)
        else:
            connection.abort()  # whoever waits is given another once this one has ended
        self._admit()

    def release(self, connection: Connection) -> None:
        """A connection that was given and not used after all."""
        self._fell_idle(connection)

    def _ended(self, connection: Connection) -> None:
        self._open -= 1
        self._passing.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_next()
        self._admit()

    def _serve_next(self) -> None:
        if self._wanting and self._open < self.place.connections:
            self._open += 1
            self._tasks.start(self._connect(self._wanting.popleft()))

    def _sweep(self) -> None:
        self._sweeper = None
        now = self.clock.now()
        stale = [connection for connection in self._idle if now - connection.idle_since > self._idle_for]
        for connection in stale:
            self._idle.remove(connection)
            connection.abort()
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_for, self._sweep)


class _Handshake(asyncio.Protocol):
    """Listens until the handshake is over: a server that speaks or leaves before it was asked is not asked.
    `over` says why."""

    over = ""

    def data_received(self, data: bytes) -> None:
        self.over = self.over or "spoke before it was asked"

    def eof_received(self) -> None:
        self.over = self.over or "closed at once"

    def connection_lost(self, error: Exception | None) -> None:
        self.over = self.over or str(error or "closed at once")

"""Connections to one upstream: made when needed, used again while they are fresh, and never too many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ..core.limit import Limit
from ..core.outcome import NotSentReason
from ..ports import Clock
from ..tasks import Tasks
from .connection import Connection, stir
from .connector import Connector, Place
from .deadlines import Deadlines

#: Seconds for which an idle connection may be used again. Short, because an upstream that closes an idle
#: connection at the moment when we write to it leaves us not knowing whether it ran the request.
IDLE_FOR = 1.0
#: With TLS, where a new one costs two more round trips and a signature.
TLS_IDLE_FOR = 4.0


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
        self._connector = Connector(place, lambda: Connection(self.release, self._ended))
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
        self.deadlines = Deadlines(clock, tasks.failed)

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
        self._connect(wanter)

    def _connect(self, wanter: Wanter) -> None:
        made, unmade = partial(self._made, wanter), partial(self._unmade, wanter)
        self._tasks.start(self._connector.connect(made, unmade))

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

    def _made(self, wanter: Wanter, connection: Connection) -> None:
        if connection.ended:  # before it was one of ours
            self._unmade(wanter, NotSentReason.UNREACHABLE, f"{self.place}: closed at once")
            return
        connection.counted = True
        if connection.usable:
            self._give(wanter, connection)
        else:  # it spoke first, before we could write
            self._deny(wanter, NotSentReason.UNREACHABLE, f"{self.place}: closed at once")

    def _unmade(self, wanter: Wanter, reason: NotSentReason, detail: str) -> None:
        try:
            if reason is NotSentReason.NO_CONNECTION:
                self.limited(Limit.DESCRIPTORS)
            self._deny(wanter, reason, detail)
        finally:
            self._open -= 1
            self._serve_next()

    def release(self, connection: Connection) -> None:
        """A connection has fallen idle, or was given and not used after all."""
        if self._wanting and self.place.tls is not None:
            # A close_notify that came in one piece with the response has left the socket, and is told next.
            self.loop.call_soon(self._pass_on, connection)
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
                self._sweeper = self.loop.call_later(self._idle_for, self._sweep)
        elif connection.quiet():
            self._give(self._wanting.popleft(), connection)
        else:
            connection.abort()  # whoever waits is given another once this one has ended
        if self._queue:
            self._admit()

    def _ended(self, connection: Connection) -> None:
        if not connection.counted:
            return  # whoever makes it hears of it
        self._open -= 1
        self._passing.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_next()
        self._admit()

    def _serve_next(self) -> None:
        if self._wanting and self._open < self.place.connections:
            self._open += 1
            self._connect(self._wanting.popleft())

    def _sweep(self) -> None:
        self._sweeper = None
        now = self.clock.now()
        stale = [connection for connection in self._idle if now - connection.idle_since > self._idle_for]
        for connection in stale:
            self._idle.remove(connection)
            connection.abort()
        if self._idle:
            self._sweeper = self.loop.call_later(self._idle_for, self._sweep)

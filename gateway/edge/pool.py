"""Connections to one upstream: made when needed, used again while they are fresh, and never too many."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from ..core.outcome import NotSentReason
from ..ports import Clock
from ..tasks import Tasks
from .connection import Connection

#: Seconds for which an idle connection may be used again. Short, because an upstream that closes an idle
#: connection at the moment when we write to it leaves us not knowing whether it ran the request.
IDLE_FOR = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an upstream is. `connect` in seconds; `connections` is the most that are open at once."""

    name: str
    host: str
    port: int
    connect: float = 2.0
    connections: int = 256


class Wanter(Protocol):
    """Whoever wants a connection. Exactly one of the two comes."""

    def connected(self, connection: Connection) -> None: ...

    def unconnected(self, reason: NotSentReason, detail: str) -> None: ...


class Pool:
    """The connections to `place`."""

    def __init__(self, place: Place, clock: Clock, tasks: Tasks) -> None:
        self.place = place
        self.clock = clock
        #: The upstream as a Host field says it.
        self.authority = (f"[{place.host}]" if ":" in place.host else place.host).encode() + b":%d" % place.port
        self._tasks = tasks
        self._idle: list[Connection] = []
        self._open = 0
        self._wanting: deque[Wanter] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def acquire(self, wanter: Wanter, *, fresh: bool = False) -> None:
        """Give a connection to `wanter`: at once where one is idle (and `fresh` is not asked for), or
        once one is made or falls free."""
        if not fresh:
            now = self.clock.now()
            while self._idle:
                connection = self._idle.pop()
                if now - connection.idle_since <= IDLE_FOR and connection.quiet():
                    wanter.connected(connection)
                    return
                connection.abort()
        if self._open >= self.place.connections:
            self._wanting.append(wanter)
            return
        self._open += 1
        self._tasks.start(self._connect(wanter))

    def forget(self, wanter: Wanter) -> None:
        """`wanter` waits no more."""
        try:
            self._wanting.remove(wanter)
        except ValueError:
            pass  # its connection is being made, and will be given to somebody else or closed

    def close(self) -> None:
        """Close what is idle, and whatever falls idle later."""
        self._closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _connect(self, wanter: Wanter) -> None:
        place = self.place
        loop = asyncio.get_running_loop()
        made = False
        try:
            async with asyncio.timeout(place.connect):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._fell_idle, self._ended), place.host, place.port
                )
            made = True
        except OSError as error:  # TimeoutError and socket.gaierror are some
            wanter.unconnected(
                NotSentReason.UNREACHABLE,
                f"{place.host}:{place.port}: {str(error) or f'no answer in {place.connect:g} s'}",
            )
            return
        except asyncio.CancelledError:
            wanter.unconnected(NotSentReason.STOPPED, "the gate is being stopped")
            raise
        finally:
            if not made:
                self._open -= 1
                self._serve_next()
        if connection.usable:
            wanter.connected(connection)
        else:  # it ended, or spoke first, before we could write
            wanter.unconnected(NotSentReason.UNREACHABLE, f"{place.host}:{place.port}: closed at once")

    def _fell_idle(self, connection: Connection) -> None:
        if self._closed or not connection.usable:
            connection.abort()
        elif self._wanting:
            self._wanting.popleft().connected(connection)
        else:
            connection.idle_since = self.clock.now()
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = asyncio.get_running_loop().call_later(IDLE_FOR, self._sweep)

    def release(self, connection: Connection) -> None:
        """A connection that was given and not used after all."""
        self._fell_idle(connection)

    def _ended(self, connection: Connection) -> None:
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_next()

    def _serve_next(self) -> None:
        if self._wanting and self._open < self.place.connections:
            self._open += 1
            self._tasks.start(self._connect(self._wanting.popleft()))

    def _sweep(self) -> None:
        self._sweeper = None
        now = self.clock.now()
        stale = [connection for connection in self._idle if now - connection.idle_since > IDLE_FOR]
        for connection in stale:
            self._idle.remove(connection)
            connection.abort()
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_FOR, self._sweep)

"""One request on its connection: the `Client` of its exchange, or the guest of its tunnel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .. import failpoints
from ..core.fields import Field
from ..core.problem import Refusal
from ..core.reply import Reply
from ..ports import Stream
from .connection import Connection
from .door import Head, Way
from .tunnel import Tunnel
from .wire import LAST_CHUNK, chunk


class Host(Protocol):
    """The connection of a visit."""

    full: bool

    @property
    def draining(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    def half(self, data: bytes) -> bytes: ...

    def render(self, visit: Visit, reply: Reply, length: int | None = None) -> bytes: ...

    def account(self, visit: Visit, status: int, refusal: Refusal | None = None, *, detail: str = "") -> None: ...

    def done(self, visit: Visit, *, cut: bool = False) -> None: ...

    def unsaid(self, error: Exception) -> None: ...

    def abort(self) -> None: ...

    def give_back(self, visit: Visit) -> None: ...

    def switch(self, visit: Visit, service: Connection, data: bytes) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Visit:
    """A request, from its head to the last byte of its answer."""

    # How each begins; most end so, too.
    _on_gone: Callable[[], None] | None = None
    _stream: Stream | None = None
    size = 0
    reserved = 0
    #: Its exchange has begun, and holds its body whether or not the client stays.
    asked = False
    complete = False
    answered = False
    gone = False
    rechunk = False
    protocols: tuple[bytes, ...] = ()
    trailers: list[Field] | None = None
    tunnel: Tunnel | None = None
    started = 0.0

    def __init__(self, conn: Host, head: Head, way: Way, keep_alive: bool) -> None:
        self._conn = conn
        self.head = head
        self.way = way
        self.keep_alive = keep_alive
        self.http10 = head.version == "1.0"
        self.chunks: list[bytes] = []

    # ── ports.Client ──────────────────────────────────────────────────────────────────────────────

    def reply(self, reply: Reply, stream: Stream | None = None) -> None:
        try:
            self._reply(reply, stream)
        except Exception as error:
            # A fault of ours, and perhaps within the answer: nothing more can be said here. What was settled stands,
            # and whoever asks again is told it.
            self._conn.unsaid(error)
            if stream is not None:
                stream.detach()

    def _reply(self, reply: Reply, stream: Stream | None) -> None:
        self._on_gone = None
        if self.gone or self.answered:
            self._conn.give_back(self)
            if stream is not None:
                stream.detach()
            return
        self.answered = True
        conn = self._conn
        if self.http10 and stream is not None and stream.length is None:
            self.keep_alive = False  # only the connection's end can end it
        data = conn.render(self, reply, None if stream is None else stream.length)
        if failpoints.armed:
            data = conn.half(data)
        conn.write(data)
        if stream is None:
            conn.done(self)
            return
        self._stream = stream
        self.rechunk = stream.length is None and not self.http10
        if conn.full:
            stream.pause()
        stream.attach(_LiveSink(self))

    def cut_off(self) -> None:
        self._conn.give_back(self)
        self._conn.abort()

    def when_gone(self, call: Callable[[], None] | None) -> None:
        self._on_gone = call
        if call is not None and self.gone:
            self._conn.give_back(self)  # who waits for another's answer gives up
            call()

    # ── tunnel.Guest ──────────────────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        self.answered = True
        self._conn.write(data)

    def refuse(self, refusal: Refusal, detail: str = "") -> None:
        if not self.gone:
            self.answered = True
            self._conn.write(self._conn.render(self, refusal))
            self._conn.done(self)
            self._conn.account(self, refusal.problem.status, refusal, detail=detail)

    def finish(self, status: int, *, reusable: bool) -> None:
        if self.gone:
            return
        if not reusable:
            self.keep_alive = False
        self._conn.account(self, status)
        self._conn.done(self)

    def cut(self, status: int, detail: str = "") -> None:
        if not self.gone:
            self._conn.account(self, status, detail=detail)
            self._conn.done(self, cut=True)

    def switch(self, connection: Connection, data: bytes) -> None:
        self.answered = True
        self._conn.switch(self, connection, data)

    @property
    def flows(self) -> bool:
        """Whether the response has begun and not ended, as it comes from the service."""
        return self._stream is not None or (self.tunnel is not None and self.tunnel.status > 0)

    def keeps_alive(self) -> bool:
        return self.keep_alive and self.complete and not self._conn.draining

    def hold_body(self) -> None:
        if not self.complete:
            self._conn.pause()

    def go_on(self) -> None:
        self._conn.resume()

    # ── From the connection ───────────────────────────────────────────────────────────────────────

    def leave(self) -> None:
        """The client has hung up."""
        self.gone = True
        call, self._on_gone = self._on_gone, None
        if call is not None:
            self._conn.give_back(self)
            call()
        if self.tunnel is not None:
            self.tunnel.guest_gone()
        if self._stream is not None:
            self._stream.detach()

    def full(self) -> None:
        if self.tunnel is not None:
            self.tunnel.guest_full()
        elif self._stream is not None:
            self._stream.pause()

    def ready(self) -> None:
        if self.tunnel is not None:
            self.tunnel.guest_ready()
        elif self._stream is not None:
            self._stream.resume()

    def live(self, data: bytes) -> None:
        if data and not self.gone:
            self._conn.write(chunk(data) if self.rechunk else data)

    def live_end(self, *, clean: bool) -> None:
        self._stream = None
        if self.gone:
            return
        if clean and self.rechunk:
            self._conn.write(LAST_CHUNK)
        self._conn.done(self, cut=not clean)


class _LiveSink:
    """Where the rest of a response that is not kept flows: to the first client."""

    __slots__ = ("_visit",)

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def write(self, data: bytes) -> None:
        self._visit.live(data)

    def end(self, *, clean: bool) -> None:
        self._visit.live_end(clean=clean)

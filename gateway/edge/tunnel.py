"""What passes through unguarded: streamed both ways, with backpressure, without store or limit. A request that asks
for another protocol ends here once the service speaks it (`upgrade.Relay`).

Framing is made anew on each side; field case, order, repetition and bytes are the sender's. A client
that leaves ends its request: nothing here is protected, and the client was told so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..core.decide import SAFE, PassReason
from ..core.fields import Field, fields_of
from ..core.message import RETURNED, Request, listed, returned_lines
from ..core.outcome import LostReason, NotSentReason
from ..core.problem import Label, Problem, Refusal
from .connection import Connection, Head, Receiver
from .origins import ALLOWS
from .pool import Pool
from .render import status_line
from .upgrade import accepts, upgrade_lines
from .wire import CHUNKED, PLAIN, RequestHeads, announced, chunk, last_chunk, sized, trailing_lines

_UNPROTECTED = b"Idempotency-Status: %b\r\n" % Label.UNPROTECTED.encode()


class Guest(Protocol):
    """The client's side of a tunnel."""

    http10: bool

    def write(self, data: bytes) -> None: ...

    def refuse(self, refusal: Refusal, detail: str = "") -> None:
        """Answer with a problem: nothing was written yet. `detail` is for the log."""

    def finish(self, status: int, *, reusable: bool) -> None:
        """The response is written, whole; `reusable` if its end can be seen on the connection."""

    def cut(self, status: int, detail: str = "") -> None:
        """The response broke off: the client must see that it did. `detail` is for the log."""

    def switch(self, connection: Connection, data: bytes) -> None:
        """`data` is the 101 and what came behind it; from then on bytes flow between it and `connection`."""

    def keeps_alive(self) -> bool: ...

    def hold_body(self) -> None:
        """Read no more of the request for now."""

    def go_on(self) -> None:
        """Read the request's body again."""


class Tunnel(Receiver):
    """One unguarded request."""

    guarded = False
    # How each begins; most end so, too.
    _connection: Connection | None = None
    _until = 0.0
    _tick = -1
    _head: Head | None = None
    _rechunk = False
    _closing = False
    _over = False
    _reused = False
    _full = False
    #: The client does not read what was written to it.
    _client_full = False
    _moved = False
    #: What the client has sent at once has been read.
    _fed = False
    _unwritten = b""

    def __init__(
        self,
        pool: Pool,
        guest: Guest,
        request: Request,
        reason: PassReason,
        *,
        length: int | None,
        chunked: bool,
        timeout: float,
        heads: RequestHeads = PLAIN,
        exposes: bytes = b"",
        protocols: tuple[bytes, ...] = (),
    ) -> None:
        self._pool = pool
        self._guest = guest
        self._request = request
        self._reason = reason
        self._chunked = chunked
        self._timeout = timeout
        #: What the client asks to speak instead of HTTP. Such a request has no body.
        self._protocols = protocols
        framing = CHUNKED if chunked else sized(length) if length is not None else b""
        #: Written where the answer lets the page of another origin read it.
        self._exposes = exposes
        self._heads = heads
        framing += upgrade_lines(protocols) if protocols else trailing_lines(fields_of(request.fields), chunked=chunked)
        self._unsent = [heads.head(request, framing, drop_expect=False, authority=pool.authority)]
        self._complete = not chunked and not length
        # Safe and without a body: a reused connection that turns out to be closed costs nothing but a
        # second try (RFC 9112 §9.3.1).
        self._repeatable = self._complete and request.method in SAFE

    @property
    def status(self) -> int:
        return self._head.status if self._head is not None else 0

    def begin(self) -> None:
        self._set_timer()
        self._pool.acquire(self)

    # ── From the client ───────────────────────────────────────────────────────────────────────────

    def request_body(self, data: bytes) -> None:
        if self._over:
            return
        self._moved = True
        framed = chunk(data) if self._chunked else data
        if self._connection is None:
            self._unsent.append(framed)
            if self._fed:
                self._guest.hold_body()
        else:
            self._connection.write(framed)

    def request_end(self, trailers: Sequence[Field] = ()) -> None:
        if self._over or self._complete:
            return
        self._complete = True
        if self._tick >= 0:  # the upstream's time to answer begins when it has the whole request
            self._until = self._pool.clock.now() + self._timeout
        last = self._heads.last_chunk(trailers) if self._chunked else b""
        if self._connection is None:
            self._unsent.append(last)
        else:
            self._connection.write(last, more=False)

    def request_fed(self) -> None:
        """Nothing more has come from the client for now. What comes later waits for a connection, unread."""
        if not self._fed:
            self._fed = True
            if self._connection is None and not self._complete and not self._over:
                self._guest.hold_body()

    def detach(self) -> None:
        if not self._over:
            self._stop()

    def pause(self) -> None:
        self._client_full = True
        if self._connection is not None and not self._over:
            self._connection.pause_reading()

    def resume(self) -> None:
        self._client_full = False
        if self._connection is not None and not self._over:
            self._connection.resume_reading()

    # ── From the pool ─────────────────────────────────────────────────────────────────────────────

    def connected(self, connection: Connection) -> None:
        if self._over:
            self._pool.release(connection)
            return
        self._reused = connection.served > 0
        self._connection = connection
        data = b"".join(self._unsent)
        if not self._repeatable:
            self._unsent = []
        connection.start(self, bodiless=self._request.method == b"HEAD", data=data, more=not self._complete)
        if not self._complete and not self._full:
            self._guest.go_on()

    def unconnected(self, reason: NotSentReason, detail: str) -> None:
        if not self._over:
            self._stop()
            unreachable = reason is NotSentReason.UNREACHABLE
            problem = Problem.UPSTREAM_UNREACHABLE if unreachable else Problem.OVERLOADED
            self._guest.refuse(Refusal(problem, retry_after=1, label=Label.UNPROTECTED), detail)

    # ── From the connection ───────────────────────────────────────────────────────────────────────

    def interim(self, head: Head) -> None:
        if not self._guest.http10:
            self._guest.write(b"%b%b\r\n" % (status_line(head.status, head.reason), returned_lines(head.fields)))

    def switched(self, head: Head, rest: bytes) -> bool:
        connection = self._connection
        if self._over or connection is None or not accepts(head.fields, self._protocols):
            return False
        self._over = True
        self._cancel_timer()
        answer = (
            status_line(head.status, head.reason),
            returned_lines(head.fields),
            _UNPROTECTED if self._reason.unprotected else b"",
            upgrade_lines(tuple(listed(head.fields, b"upgrade"))),
            b"\r\n",
            rest,
        )
        self._guest.switch(connection, b"".join(answer))
        return True

    def head(self, head: Head) -> None:
        self._head = head
        self._cancel_timer()
        if self._client_full and self._connection is not None:
            self._connection.pause_reading()  # it was full before there was a connection to pause
        bodiless = self._request.method == b"HEAD" or head.status in (204, 304)
        framing = b""
        if head.length is not None and head.status != 204:
            framing = sized(head.length)
        elif not bodiless and not self._guest.http10:
            framing = CHUNKED + announced(head.fields) if head.chunked else CHUNKED
            self._rechunk = True
        elif bodiless and head.chunked and self._request.method == b"HEAD" and not self._guest.http10:
            framing = CHUNKED
        unframed = not framing and not bodiless
        if self._exposes and ALLOWS in head.fields.shape.at:
            framing += self._exposes
        connection = b""
        if not self._guest.keeps_alive() or unframed:
            connection = b"Connection: close\r\n"
            self._closing = True
        elif self._guest.http10:
            connection = b"Connection: keep-alive\r\n"
        self._unwritten = b"".join(
            (
                status_line(head.status, head.reason),
                RETURNED.lines(head.fields),
                _UNPROTECTED if self._reason.unprotected else b"",
                framing,
                connection,
                b"\r\n",
            )
        )

    def body(self, data: bytes) -> None:
        framed = chunk(data) if self._rechunk else data
        if self._unwritten:
            head, self._unwritten = self._unwritten, b""
            framed = head + framed
        self._guest.write(framed)

    def whole(self, head: Head, body: bytes) -> None:
        self.head(head)
        if body:
            self.body(body)
        self.end()

    def fed(self) -> None:
        if self._unwritten:
            head, self._unwritten = self._unwritten, b""
            self._guest.write(head)

    def end(self) -> None:
        if self._over:
            return
        head = self._head
        assert head is not None
        self.fed()
        if self._rechunk:
            assert self._connection is not None
            self._guest.write(last_chunk(self._connection.trailers))
        self._over = True
        self._cancel_timer()
        self._guest.finish(head.status, reusable=self._complete and not self._closing)

    def lost(self, reason: LostReason, detail: str) -> None:
        if self._over:
            return
        if self._head is None and self._reused and self._repeatable and reason is LostReason.CLOSED:
            self._connection = None
            self._pool.acquire(self, fresh=True)
            return
        self._stop()
        self.fed()
        if self._head is None:
            self._guest.refuse(Refusal(Problem.UPSTREAM_LOST, label=Label.UNPROTECTED), detail)
        else:
            self._guest.cut(self._head.status, detail)

    def pause_writing(self) -> None:
        self._full = True
        self._guest.hold_body()

    def resume_writing(self) -> None:
        self._full = False
        self._guest.go_on()

    def due(self) -> None:
        self._tick = -1
        if self._over or self._head is not None:
            return
        if self._pool.clock.now() < self._until:
            self._tick = self._pool.deadlines.set(self, self._until)
            return
        if self._moved and not self._complete:
            # A body may take as long as it moves.
            self._moved = False
            self._set_timer()
            return
        sent = self._connection is not None
        self._stop()
        if sent:
            self._guest.refuse(Refusal(Problem.UPSTREAM_TIMEOUT, label=Label.UNPROTECTED))
        else:
            self._guest.refuse(Refusal(Problem.OVERLOADED, retry_after=1, label=Label.UNPROTECTED))

    def _stop(self) -> None:
        self._over = True
        self._cancel_timer()
        if self._connection is not None:
            self._connection.abort()
        else:
            self._pool.forget(self)

    def _set_timer(self) -> None:
        self._until = self._pool.clock.now() + self._timeout
        self._tick = self._pool.deadlines.set(self, self._until)

    def _cancel_timer(self) -> None:
        if self._tick >= 0:
            self._pool.deadlines.clear(self, self._tick)
            self._tick = -1

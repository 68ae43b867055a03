"""One attempt at a guarded request: written at most once, and told honestly: Answered, NotSent or Lost.

NotSent means that no byte of the request was handed to a transport whose handshake had finished.
From the first byte on, anything short of a whole response is Lost.

A 307 or 308 to the same origin declares that nothing ran, and is followed: the attempt goes on with the same request at
the new target. If it ends before the first byte for that target was sent, its outcome is the redirect. From that byte
on, the same holds as for the first target (docs/decisions/0019-redirects.md).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from .. import failpoints
from ..core.decide import SAYS
from ..core.fields import fields_of
from ..core.limit import Limit
from ..core.message import Request, Response
from ..core.outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from ..core.redirect import REDIRECTS, origin, same_origin_target
from ..core.streams import StreamTypes
from ..failpoints import Point
from ..ports import Sink
from .budget import Budget
from .connection import Connection, Head, Receiver
from .pool import Pool
from .wire import RequestHeads, sized

#: Redirects that one attempt follows.
MOST_REDIRECTS = 3
#: Longest body, in bytes, of a redirect that is followed: it is held until the next target was sent to.
LONGEST_REDIRECT = 16 << 10


class GuardedUpstream:
    """The `Upstream` of a pool of connections."""

    def __init__(
        self,
        pool: Pool,
        budget: Budget,
        heads: RequestHeads,
        leads_here: Callable[[Request], bool],
    ) -> None:
        """`leads_here` says whether the routes lead a request to this upstream."""
        self._pool = pool
        self._budget = budget
        self._heads = heads
        self._leads_here = leads_here
        self._origin = origin(b"http" if pool.place.tls is None else b"https", pool.authority)

    def attempt(
        self,
        request: Request,
        *,
        number: int,
        send_by: float,
        limit: int,
        streams: StreamTypes,
        follows: frozenset[int],
    ) -> GuardedAttempt:
        way = self, request, number, follows
        attempt = GuardedAttempt(self._pool, self._budget, self.written(request, number), send_by, limit, streams, way)
        self._pool.acquire(attempt)
        return attempt

    def redirected(self, request: Request, response: Response) -> Request | None:
        """The request that this redirect of `request` asks for, if it is for this upstream."""
        fields = fields_of(response.fields)
        if not SAYS.isdisjoint(fields.shape.at):
            return None  # it declares more than its status, or asks for patience
        target = same_origin_target(request, fields.all(b"location"), self._origin)
        if target is None:
            return None
        onward = request._replace(target=target)
        return onward if self._leads_here(onward) else None

    def written(self, request: Request, number: int) -> bytes:
        """The request as bytes."""
        framing = sized(len(request.body)) if request.body or _declares_body(request) else b""
        authority = self._pool.authority
        head = self._heads.head(request, framing, drop_expect=True, authority=authority, number=number)
        return head + request.body


#: To whom an attempt goes, with which request, of which number, and which redirects it follows.
Way = tuple[GuardedUpstream, Request, int, frozenset[int]]


class GuardedAttempt(Receiver):
    """The attempt, as `ports.Attempt` says; also the receiver of its response."""

    __slots__ = (
        "_budget", "_chunks", "_connection", "_data", "_head", "_limit", "_outcome", "_pool", "_redirect", "_send_by",
        "_size", "_streams", "_tick", "_told", "_trail", "_until", "_way", "sent", "stream",
    )  # fmt: skip
    guarded = True

    def __init__(
        self, pool: Pool, budget: Budget, data: bytes, send_by: float, limit: int, streams: StreamTypes, way: Way
    ) -> None:
        self._pool = pool
        self._budget = budget
        self._data = data
        self._send_by = send_by
        self._limit = limit
        self._streams = streams
        self._way = way
        #: The targets that it has left by a redirect, and the last of those redirects.
        self._trail: tuple[bytes, ...] = ()
        self._redirect: Answered | None = None
        self._connection: Connection | None = None
        self._head: Head | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._outcome: Outcome | None = None
        self._told: Callable[[Outcome | None], None] | None = None
        self._until = 0.0
        self._tick = 0
        self.sent = False
        self.stream: LiveStream | None = None

    # ── Towards the exchange ──────────────────────────────────────────────────────────────────────

    @property
    def followed(self) -> int:
        return len(self._trail)

    def tell(self, told: Callable[[Outcome | None], None], until: float) -> None:
        if self._outcome is not None:
            told(self._outcome)
            return
        self._told = told
        # What comes first: the time asked for, or the last moment to send a first byte.
        self._until = until
        self._tick = self._pool.deadlines.set(self, self._next_deadline())

    def abandon(self, reason: LostReason) -> None:
        if self._outcome is not None:
            if self.stream is not None:
                self.stream.abandon(reason)
            return
        if self._connection is not None:
            self._connection.abort()
        else:
            self._pool.forget(self)
        if self.sent:
            self._conclude(Lost(reason, status=self._head.status if self._head else 0))
        else:
            self._not_sent(NotSentReason.STOPPED, "the gate is being stopped")

    def _next_deadline(self) -> float:
        return self._until if self.sent else min(self._until, self._send_by)

    def due(self) -> None:
        now = self._pool.clock.now()
        if not self.sent and now >= self._send_by:
            self._pool.forget(self)
            self._not_sent(NotSentReason.NO_CONNECTION, "no connection was free in time")
        elif now >= self._until:
            self._tell(None)
        else:
            self._tick = self._pool.deadlines.set(self, self._next_deadline())

    def _conclude(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            if self._size:
                self._budget.give(self._size)
                self._size = 0
            if self._told is not None:
                self._pool.deadlines.clear(self, self._tick)
                self._tell(outcome)

    def _tell(self, outcome: Outcome | None) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(outcome)

    # ── From the pool ─────────────────────────────────────────────────────────────────────────────

    def connected(self, connection: Connection) -> None:
        if self._outcome is not None:
            self._pool.release(connection)
        elif self._pool.clock.now() > self._send_by:
            self._pool.release(connection)
            self._not_sent(NotSentReason.TOO_LATE, "the time to send it had passed")
        else:
            self._connection = connection
            self.sent = True
            data, self._data = self._data, b""
            if failpoints.armed:
                data = failpoints.send(connection.transport, data)
            connection.start(self, bodiless=False, data=data)

    def unconnected(self, reason: NotSentReason, detail: str) -> None:
        self._not_sent(reason, detail)

    def _not_sent(self, reason: NotSentReason, detail: str) -> None:
        """Nothing was sent to this target: the outcome is the redirect that led here, if there was one."""
        self._conclude(self._redirect or NotSent(reason, detail))

    # ── From the connection ───────────────────────────────────────────────────────────────────────

    def head(self, head: Head) -> None:
        if failpoints.armed:
            failpoints.reach(Point.HEAD_READ)
        self._head = head
        if (form := unstorable(head, self._streams, self._limit)) is not None:
            self._overflow(form)

    def body(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.write(data)
            return
        if self._outcome is not None:
            return
        self._chunks.append(data)
        size = len(data)
        if self._size + size > self._limit or not self._budget.take(size):
            self._overflow(Completeness.OVER_LIMIT)
        else:
            self._size += size

    def end(self) -> None:
        if failpoints.armed:
            failpoints.reach(Point.BODY_READ)
        if self.stream is not None:
            self.stream.end()
            return
        head, connection = self._head, self._connection
        assert head is not None and connection is not None
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        refuses = head.status >= 400 or head.status in REDIRECTS
        if connection.early and (not refuses or head.until_close):
            self._conclude(Lost(LostReason.EARLY, "it answered before it had read the request", head.status))
            return
        response = Response(head.status, head.fields, body)
        completeness = Completeness.UNTIL_CLOSE if head.until_close else Completeness.WHOLE
        answered = Answered(response, completeness)
        if head.status not in REDIRECTS or not self._follow(answered):
            self._conclude(answered)

    def whole(self, head: Head, body: bytes) -> None:
        size = len(body)
        if failpoints.armed or size > self._limit or not self._budget.has_room(size):
            self.head(head)
            if body:
                self.body(body)
            self.end()
            return
        self._head = head
        answered = Answered(Response(head.status, head.fields, body))
        if head.status not in REDIRECTS or not self._follow(answered):
            self._conclude(answered)

    def _follow(self, redirect: Answered) -> bool:
        """Go on at the target of a redirect, if it is one to follow."""
        pool, response = self._pool, redirect.response
        upstream, request, number, follows = self._way
        if (
            self._outcome is not None
            or response.status not in follows
            or len(self._trail) >= MOST_REDIRECTS
            or len(response.body) > LONGEST_REDIRECT
            or pool.clock.now() > self._send_by
        ):
            return False
        onward = upstream.redirected(request, response)
        trail = *self._trail, request.target
        if onward is None or onward.target in trail:
            return False
        self._redirect, self._trail, self._way = redirect, trail, (upstream, onward, number, follows)
        self._data = upstream.written(onward, number)
        self._budget.give(self._size)
        self._size, self._chunks = 0, []
        self._head = self._connection = None
        self.sent = False
        pool.loop.call_soon(self._acquire)  # once the connection of the redirect is idle
        return True

    def _acquire(self) -> None:
        if self._outcome is None:
            self._pool.acquire(self)

    def lost(self, reason: LostReason, detail: str) -> None:
        if self.stream is not None:
            self.stream.lost(reason, detail)
            return
        self._conclude(Lost(reason, detail, self._head.status if self._head is not None else 0))

    def _overflow(self, completeness: Completeness) -> None:
        """Too big, or a stream: report what is known, hold the rest until somebody wants it."""
        head, connection = self._head, self._connection
        assert head is not None and connection is not None
        if connection.early:
            connection.abort()
            self._conclude(Lost(LostReason.EARLY, "it answered before it had read the request", head.status))
            return
        if completeness is Completeness.OVER_LIMIT:
            self._pool.limited(Limit.MAX_RESPONSE)
        answered = Answered(Response(head.status, head.fields), completeness)
        upstream, request, number, follows = self._way
        self._way = upstream, request._replace(body=b""), number, follows  # the rest may go on for minutes
        self.stream = LiveStream(self._pool, connection, answered, head.length)
        for data in self._chunks:
            self.stream.write(data)
        self._chunks = []
        connection.pause_reading()
        self._conclude(answered)


class LiveStream:
    """The rest of a response, as `ports.Stream` says: held until a sink is attached, then given to it as it comes, and
    read to its end without one. `answered` is its outcome once it has ended; `length` that of its body, if declared.
    """

    def __init__(self, pool: Pool, connection: Connection, answered: Answered, length: int | None) -> None:
        self._pool = pool
        self._connection = connection
        self._answered = answered
        self._held: list[bytes] = []
        self._sink: Sink | None = None
        self._discards = False
        self._let_go = False
        self._finished: bool | None = None
        self._outcome: Outcome | None = None
        self._told: Callable[[Outcome | None], None] | None = None
        self._until = inf
        self._paused = False
        #: How long the sink may hold the upstream back at a time, and until when it may now.
        self._patience = inf
        self._cut_at = inf
        self._due_at = inf
        self._tick = 0
        self.length = length

    # ── Towards the client ────────────────────────────────────────────────────────────────────────

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        held, self._held = self._held, []
        for data in held:
            sink.write(data)
        if self._finished is not None:
            self._end(sink, clean=self._finished)
        elif self._outcome is None and not self._paused:  # by the sink, which what was held has filled
            self._connection.resume_reading()

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            if self._outcome is None:
                self._connection.pause_reading()
                self._cut_at = self._pool.clock.now() + self._patience
                self._set_timer()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._cut_at = inf
            if self._outcome is None:
                self._connection.resume_reading()

    def detach(self) -> None:
        self._sink = None
        self._held = []
        self._discards = True
        self._paused = False
        self._cut_at = inf
        if self._outcome is None:
            if self._let_go:
                self.abandon(LostReason.TIMEOUT)
            else:
                self._connection.resume_reading()

    # ── Towards the exchange ──────────────────────────────────────────────────────────────────────

    def tell(self, told: Callable[[Outcome | None], None], until: float) -> None:
        if self._outcome is not None:
            told(self._outcome)
        else:
            self._told = told
            self._wait(until)

    def _wait(self, until: float) -> None:
        now = self._pool.clock.now()
        self._until = until
        # The rest of the time is left for reading on without its sink.
        self._patience = inf if self._let_go else max(until - now, 0) / 3
        if self._paused:
            self._cut_at = now + self._patience
        self._set_timer()

    def let_go(self) -> bool:
        self._let_go = True
        if self._sink is None:
            self.abandon(LostReason.TIMEOUT)
        return self._outcome is None

    def finish(self, *, clean: bool) -> None:
        if self._finished is None:
            self._finished = clean
            if self._sink is not None:
                self._end(self._sink, clean=clean)

    def abandon(self, reason: LostReason) -> None:
        if self._outcome is None:
            self._connection.abort()
            self.lost(reason, "")

    def _end(self, sink: Sink, *, clean: bool) -> None:
        self.detach()
        sink.end(clean=clean)

    # ── From the connection ───────────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.write(data)
        elif not self._discards:
            self._held.append(data)

    def end(self) -> None:
        self._conclude(self._answered)

    def lost(self, reason: LostReason, detail: str) -> None:
        self._conclude(Lost(reason, detail, self._answered.response.status))

    def _conclude(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._clear_timer()
        self._tell(outcome)

    def _tell(self, outcome: Outcome | None) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(outcome)

    # ── In the course of time ─────────────────────────────────────────────────────────────────────

    def due(self) -> None:
        self._due_at = inf
        now = self._pool.clock.now()
        if self._sink is not None and now >= self._cut_at:
            self._pool.limited(Limit.WRITE_TIMEOUT)
            self._end(self._sink, clean=False)
        if now >= self._until:
            self._until = inf
            self._tell(None)
        self._set_timer()

    def _set_timer(self) -> None:
        """One timer for both deadlines. It may come too early: then it is set again."""
        at = min(self._until, self._cut_at)
        if self._outcome is None and at < self._due_at:
            self._clear_timer()
            self._due_at = at
            self._tick = self._pool.deadlines.set(self, at)

    def _clear_timer(self) -> None:
        if self._due_at < inf:
            self._due_at = inf
            self._pool.deadlines.clear(self, self._tick)


def unstorable(head: Head, types: StreamTypes, limit: int) -> Completeness | None:
    """Why a response with this head cannot be stored; None if it can, unless it turns out to be too long. A stream
    does not declare its length, and its fields show what it is."""
    if head.length is not None and head.length > limit:
        return Completeness.OVER_LIMIT
    if not (head.chunked or head.until_close):
        return None
    fields = head.fields
    at = fields.shape.at
    streams = any(types.match(fields.values[position]) for position in at.get(b"content-type", ())) or (
        b"x-accel-buffering" in at and any(value.lower() == b"no" for value in fields.all(b"x-accel-buffering"))
    )
    return Completeness.STREAM if streams else None


def _declares_body(request: Request) -> bool:
    at = fields_of(request.fields).shape.at
    return b"content-length" in at or b"transfer-encoding" in at

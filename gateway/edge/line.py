"""The requests of a client and their connection, but for reading. Each request is begun once those before it have been
answered, and refused where it must be."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from functools import partial

from .. import failpoints
from ..core.fields import NONE, Field, Fields, fields_of
from ..core.limit import Limit
from ..core.message import Request, values
from ..core.problem import Problem, Refusal
from ..core.reply import Reply
from ..engine.request import Identified
from ..ports import Account, Stream, VerdictName
from .connection import Connection
from .door import Guarded, Head, Passing, Refused, Way
from .foreign import in_frames
from .published import Told
from .render import CONTINUE, connection_field, problem, render
from .shared import Shared
from .tunnel import Tunnel
from .upgrade import Relay
from .watched import Watch, WatchedTunnel
from .wire import LAST_CHUNK, chunk

#: Seconds for which a connection that is being closed goes on reading: a reset would take the response with it before
#: the client has read it.
_LINGER = 2.0
#: Seconds after a client has connected, or was answered, within which a drain still hears what he asks.
NEXT_WORD = 0.1
#: Largest body of a refused request, in bytes, that is dropped so that its connection goes on. The response does not
#: wait for a body that has not arrived: it is sent at once, and the connection is closed.
DROPPED = 64 << 10


class Visit:
    """A request on its connection, from its head to the last byte of its answer: the `Client` of its exchange, or the
    guest of its tunnel."""

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

    def __init__(self, conn: Line, head: Head, way: Way, keep_alive: bool) -> None:
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
        stream.attach(self)

    def cut_off(self) -> None:
        self._conn.give_back(self)
        self._conn.abort()

    def when_gone(self, call: Callable[[], None] | None) -> None:
        self._on_gone = call
        if call is not None and self.gone:
            self._conn.give_back(self)  # who waits for another's answer gives up
            call()

    # ── ports.Sink, and tunnel.Guest ─────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        if data and not self.gone:
            self.answered = True
            self._conn.write(chunk(data) if self.rechunk else data)

    def end(self, *, clean: bool) -> None:
        self._stream = None
        if self.gone:
            return
        if clean and self.rechunk:
            self._conn.write(LAST_CHUNK)
        self._conn.done(self, cut=not clean)

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
        flow = self.tunnel or self._stream
        if flow is not None:
            flow.detach()

    def full(self) -> None:
        flow = self.tunnel or self._stream
        if flow is not None:
            flow.pause()

    def ready(self) -> None:
        flow = self.tunnel or self._stream
        if flow is not None:
            flow.resume()


class Line(asyncio.Protocol):
    """A connection, and the requests on it in their order: the first is being answered. What is said to it, told of it,
    and how it is closed."""

    def __init__(self, server: Shared) -> None:
        self.server = server
        self._transport: asyncio.Transport | None = None
        #: What the bytes go over in the end: the same, or with TLS the connection under it.
        self._wire: asyncio.Transport | None = None
        #: SHA-256 of the certificate that the client has shown, in DER; empty where it has shown none.
        self._certificate = b""
        self._secure = False
        self._queue: deque[Visit] = deque()
        #: The request whose body is coming in.
        self._reading: Visit | None = None
        self._peer = ""
        self._trusted = self._doubted = False
        self._since = 0.0
        self._deaf = False
        self._lingering = 0.0
        self._paused = False
        self._unread = b""
        self._ended = False
        self._moved = False
        self._unsent = 0
        #: The stream of an HTTP/2 client that is refused; 0 in HTTP/1.1.
        self._stream = 0
        self.full = False
        self._target = b""
        self._feeding = False
        self._turning = False
        self._relay: Relay | None = None

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._moved = True
            self.server.outbox.write(self._transport, data)

    def half(self, data: bytes) -> bytes:
        """For a test that ends the process in the middle of a reply: what is left to be written."""
        return failpoints.reply(self._transport, data) if self._transport is not None else data

    def unsaid(self, error: Exception) -> None:
        """An answer could not be said: nobody must wait for it."""
        self.server.observer.alarm("an answer could not be said; its client was cut off", error=repr(error))
        self.abort()

    def unsent(self) -> int:
        """Bytes that wait in this process for the client to read."""
        if self._transport is None or self._wire is None:
            return 0
        waiting = self._wire.get_write_buffer_size()
        return waiting if self._wire is self._transport else waiting + self._transport.get_write_buffer_size()

    @property
    def draining(self) -> bool:
        return self.server.draining

    def render(self, visit: Visit, reply: Reply, length: int | None = None) -> bytes:
        """Return the bytes of a reply; of a Live one those of its head, for a body of `length`."""
        server, keep_alive = self.server, visit.keeps_alive()
        if not isinstance(reply, Refusal):
            return render(
                reply,
                keep_alive=keep_alive,
                http10=visit.http10,
                wall=server.clock.wall(),
                length=length,
                exposes=b"" if server.origins is None else server.origins.exposes(visit.head.method, visit.head.fields),
            )
        data = problem(
            reply,
            connection=connection_field(keep_alive=keep_alive, http10=visit.http10),
            wall=server.clock.wall(),
            request_id=_request_id(visit.head.fields),
            body_wanted=visit.head.method != b"HEAD",
            origin=b"" if server.origins is None else server.origins.of_problem(visit.head.fields),
        )
        return in_frames(data, self._stream) if self._stream else data

    def account(self, visit: Visit, status: int, refusal: Refusal | None = None, *, detail: str = "") -> None:
        """Tell the observer of a request that had no exchange."""
        head, way = visit.head, visit.way
        account = Account(
            way.route.name if way.route is not None else "-", head.method, head.target, self._client(head.fields)
        )
        account.status = status
        account.request_bytes = visit.size
        if visit.started:
            account.total = self.server.clock.now() - visit.started
        if isinstance(way, Passing):
            if way.reason.unprotected:
                account.unprotected = way.reason.value
                account.label = "unprotected"
        elif not isinstance(way, Told):
            account.verdict = VerdictName.REFUSE
            if isinstance(way, Refused):
                account.weak = way.weak
        if refusal is not None:
            account.problem = refusal.problem.slug
            account.label = refusal.shown_as
        account.detail = detail
        self.server.observer.finished(account)

    def _client(self, fields: Fields) -> str:
        """Who asks, as far as the word of whoever is connected goes."""
        if not self._trusted or self.server.proxies is None:
            return self._peer
        return self.server.proxies.client(self._peer, fields)

    def _reserve(self, visit: Visit) -> bool:
        more = visit.size - visit.reserved
        if not self.server.door.budget.take(more):
            return False
        visit.reserved += more
        return True

    def give_back(self, visit: Visit) -> None:
        if visit.reserved:
            self.server.door.budget.give(visit.reserved)
            visit.reserved = 0

    def pause(self) -> None:
        if self._wire is not None and not self._paused and not self._deaf:
            self._paused = True
            self._wire.pause_reading()

    def resume(self) -> None:
        if self._wire is not None and self._paused:
            self._paused = False
            if self._unread:
                self.server.loop.call_soon(self._read_on)  # not from within the parser
            else:
                self._wire.resume_reading()

    def _read_on(self) -> None:
        """Read what was left unread, and then what comes."""
        raise NotImplementedError

    def abort(self) -> None:
        self.server.outbox.flush()
        self._deafen()
        if self._transport is not None:
            self._transport.abort()

    def _deafen(self) -> None:
        self._unread = b""
        self.resume()
        self._deaf = True

    def _close(self) -> None:
        """Close when everything is written. While the client still sends, read and drop for a moment."""
        self.server.outbox.flush()
        transport = self._transport
        if transport is None:
            return
        unread = self.unsent() > 0
        self._lingering = self.server.loop.time() + (self.server.patience.write if unread else _LINGER)
        lingers = (self._reading is not None or self._deaf or bool(self._queue)) and not self._ended
        queue, self._queue = self._queue, deque()
        self._reading = None
        for visit in queue:
            self.give_back(visit)
        self._deafen()
        if not lingers:
            transport.close()
        elif transport.can_write_eof():
            transport.write_eof()

    # ── Requests in their turn ────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        """Begin the next request, and whatever follows those that are answered at once. Not while the client
        does not read its answers."""
        if self._turning:
            return
        self._turning = True
        try:
            while self._queue and not self._queue[0].started and not self.full:
                self._begin(self._queue[0])
        finally:
            self._turning = False

    def _begin(self, visit: Visit) -> None:
        """It is this request's turn."""
        visit.started = self.server.clock.now()
        way = visit.way
        if isinstance(way, Passing):
            self._begin_tunnel(visit, way)
        elif visit.complete:
            self._body_complete(visit)
        elif isinstance(way, Guarded):
            if visit.head.expects and not visit.size:
                self.write(CONTINUE)
        elif visit.head.expects or (visit.head.length or visit.size) > DROPPED or not self._feeding:
            self._answer(visit, way)  # else once all that has arrived is parsed: the body may be in it

    def _body_complete(self, visit: Visit) -> None:
        way = visit.way
        if isinstance(way, Guarded):
            body = visit.chunks[0] if len(visit.chunks) == 1 else b"".join(visit.chunks)
            visit.chunks = []
            visit.asked = True
            self.server.door.meet(visit.head.fields, way.route)
            if self.server.door.takes_long(way.route, body):
                self.server.tasks.start(self._ask_aside(visit, way, body))
            else:
                ask = self.server.door.ask(
                    visit.head, body, self._client(visit.head.fields), way, self._peer, self._secure
                )
                self._go_on(visit, body, ask)
        elif not isinstance(way, Passing):
            self._answer(visit, way)
        elif visit.tunnel is not None:
            visit.tunnel.request_end(visit.trailers or ())

    async def _ask_aside(self, visit: Visit, way: Guarded, body: bytes) -> None:
        """As `_body_complete`, with what takes long in a thread. Nothing is claimed before it has ended; a client that
        leaves meanwhile has sent its request all the same."""
        server, head = self.server, visit.head
        peer = self._client(head.fields)
        try:
            ask = await server.aside.run(server.door.ask, head, body, peer, way, self._peer, self._secure)
            self._go_on(visit, body, ask)
        except BaseException:
            visit.asked = False
            self.give_back(visit)
            self.abort()
            raise

    def _go_on(self, visit: Visit, body: bytes, ask: Identified | Passing | Refused) -> None:
        """A request whose body is there, and has been read, where that had to be."""
        if isinstance(ask, Identified):
            driver = self.server.driver
            driver.begin(driver.request(visit, ask.request, ask.route, ask.key, ask.name, ask.fingerprint, ask.weak))
            return
        visit.asked = False
        visit.way = ask
        if visit.gone:
            self.give_back(visit)
        elif isinstance(ask, Refused):
            self._answer(visit, ask)
        else:
            visit.chunks = [body] if body else []
            # Its 100 Continue has been said, by us.
            visit.head.fields = fields_of(line for line in visit.head.fields if line[0].lower() != b"expect")
            self._begin_tunnel(visit, ask)

    def _begin_tunnel(self, visit: Visit, way: Passing) -> None:
        head, route, origins = visit.head, way.route, self.server.origins
        kind: Callable[..., Tunnel] = Tunnel
        if way.would is not None:
            watch = Watch(
                self.server.door, self.server.shadows, self.server.aside, head, way, self._client(head.fields)
            )
            kind = partial(WatchedTunnel, watch)
        visit.tunnel = tunnel = kind(
            self.server.pools[route.upstream],
            visit,
            Request(head.method, head.target, head.fields, b"", self._peer, secure=self._secure),
            way.reason,
            length=head.length,
            chunked=head.chunked,
            timeout=route.policy.timeout / 1000,
            heads=self.server.heads,
            exposes=b"" if origins is None else origins.exposes(head.method, head.fields),
            protocols=visit.protocols,
        )
        if self.full:
            tunnel.pause()
        tunnel.begin()
        chunks, visit.chunks = visit.chunks, []
        for data in chunks:
            tunnel.request_body(data)
        if visit.complete:
            tunnel.request_end(visit.trailers or ())
        elif not self._feeding:
            tunnel.request_fed()

    def done(self, visit: Visit, *, cut: bool = False) -> None:
        """A request has been answered: on to the next, or close. `cut`: its response could not be ended."""
        queue = self._queue
        if visit.reserved:
            self.give_back(visit)
        if not queue or queue[0] is not visit:
            return
        queue.popleft()
        if cut:
            self.abort()
            return
        if not visit.keeps_alive():
            self._close()
            return
        if self._paused and len(queue) <= self.server.patience.pipelined:
            self.resume()
        if queue:
            self._turn()
        else:
            self._since = self.server.loop.time()

    def switch(self, visit: Visit, service: Connection, data: bytes) -> None:
        """HTTP ends here: the client is given `data`, and whatever either side sends then is the other's."""
        assert self._transport is not None and self._wire is not None
        self.write(data)
        self.server.outbox.flush()
        early, self._unread = self._unread, b""

        def over() -> None:
            visit.tunnel = None
            visit.size = relay.received
            self.account(visit, 101, detail=relay.detail)
            self.connection_lost(None)

        def silent() -> None:
            self.server.observer.limited(Limit.TUNNEL_IDLE)

        relay = self._relay = Relay(
            self._transport, self._wire, service, idle=self.server.patience.tunnel, over=over, silent=silent
        )
        relay.begin(early, full=self.full, ended=self._ended)

    # ── Refusals ──────────────────────────────────────────────────────────────────────────────────

    def _answer(self, visit: Visit, way: Refused | Told) -> None:
        """Without the service, whatever there may be of a body."""
        if visit.answered:
            return
        visit.answered = True
        server, head, refusal = self.server, visit.head, None
        if isinstance(way, Refused):
            refusal = way.refusal
            if refusal.limit is not None:
                server.observer.limited(refusal.limit)
            status, data = refusal.problem.status, self.render(visit, refusal)
        else:
            status, data = way.answer(
                head.method,
                head.host,
                head.fields,
                connection=connection_field(keep_alive=visit.keeps_alive(), http10=visit.http10),
                wall=server.clock.wall(),
                origin=b"" if server.origins is None else server.origins.of_problem(head.fields),
            )
        self.write(data)
        self.account(visit, status, refusal)
        self.done(visit)

    def _turn_away(self, visit: Visit, refusal: Refusal) -> None:
        """A guarded request shows itself unfit while its body comes in."""
        way = visit.way
        assert isinstance(way, Guarded)
        visit.way = Refused(refusal, way.route)
        visit.chunks = []
        self.give_back(visit)
        if visit.started and visit.size > DROPPED:
            self._answer(visit, visit.way)

    def _broken(self, error: Exception) -> None:
        """The client does not speak HTTP, or no more. What it asked before is answered first."""
        self._deafen()
        what = str(error)
        refusal = Refusal(Problem.REQUEST_MALFORMED, f"{what[:1].upper()}{what[1:]}.")
        if what == "Invalid HTTP version" or "PRI" in what:
            refusal = Refusal(Problem.VERSION_UNSUPPORTED)
        elif what.startswith("Invalid method for HTTP"):  # one of RTSP
            refusal = Refusal(Problem.METHOD_UNSUPPORTED)
        self._last_words(refusal)

    def _refuse_head(self) -> None:
        """The head, or what stands between and behind the chunks of a body, has grown too large."""
        self._deafen()
        bounds = self.server.door.bounds
        over = len(self._target) > bounds.target
        if over:
            self._last_words(Refusal(Problem.TARGET_TOO_LONG, limit=Limit.TARGET))
        else:
            self._last_words(Refusal(Problem.HEAD_TOO_LARGE, limit=Limit.HEAD))

    def _last_words(self, refusal: Refusal) -> None:
        """Refuse the request that is being read, and close once it is told so."""
        visit, self._reading = self._reading, None
        if visit is None:
            head = Head(b"-", self._target[:200], NONE, "1.1", 0)
            visit = Visit(self, head, Refused(refusal), False)
            self._queue.append(visit)
        visit.keep_alive = False
        if isinstance(visit.way, Refused):
            refusal = visit.way.refusal  # what was wrong with it first
        if visit.tunnel is not None:
            # It streams already: whoever reads it must see that it broke.
            answered = visit.answered
            visit.tunnel.detach()
            if answered:
                self.abort()
                return
            visit.tunnel = None
        visit.way = Refused(refusal, visit.way.route)
        visit.chunks = []
        if self._queue[0] is visit:
            self._answer(visit, visit.way)
        else:
            visit.complete = True


def _request_id(fields: Fields) -> str:
    """The client's own id of its request where it sent a sane one, else a fresh one."""
    for value in values(fields, b"x-request-id"):
        if 0 < len(value) <= 128 and value.isascii() and value.decode().isprintable():
            return value.decode()
    return os.urandom(8).hex()


def peer_of(transport: asyncio.Transport) -> str:
    """The address of whoever is connected; empty where it has none (a Unix socket)."""
    peer = transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else ""

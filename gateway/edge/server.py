"""The listening side: requests in their order on each connection, their limits, and the way out.

llhttp (strict) parses. A connection's requests stand in a queue; the first is being answered, those
behind it (pipelined) wait, and past a few of them nothing more is read. A guarded request is read whole
before its exchange begins; anything else streams.

A request that asks for an upgrade is not upgraded (`Upgrade: h2c`, as common clients send it), unless it passes
through unguarded and `upgrades` has the protocol: RFC 9110 §7.8 lets a server ignore the field, and the field is for
one hop. llhttp stops at it, so parsing goes on with a new parser that is told only how the body is framed. Where it
is passed on, what comes behind it is held until it is known in which protocol it is.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import httptools

from .. import failpoints
from ..core import fields
from ..core.fields import Field, Fields, shape_of
from ..core.message import Request, values
from ..core.problem import Problem, Refusal
from ..core.reply import Reply
from ..exchange import Ask, Gate
from ..ports import Account, Clock, Observer, Stream, VerdictName
from ..shadow import Shadows
from .aside import Aside
from .certificate import shown_certificate
from .connection import Connection
from .door import Door, Guarded, Head, Passing, Refused, Told, Way, too_large
from .origins import Origins
from .outbox import Outbox
from .pool import Pool
from .proxies import Proxies, without_hearsay
from .render import CONTINUE, connection_field, problem, render
from .tunnel import Tunnel
from .upgrade import PROTOCOLS, Parser, Relay, offered
from .watched import Watch, WatchedTunnel
from .wire import LAST_CHUNK, PLAIN, RequestHeads, chunk

#: A refused request's body up to this size is read and dropped, so that the connection can go on.
_DROPPED = 64 << 10
#: Seconds, and bytes, for which a connection that is being closed goes on reading: a reset would take
#: the response with it before the client has read it.
_LINGER = 2.0
_LINGER_BYTES = 4 << 20
#: Connections that the kernel keeps for a listener until they are let in.
_BACKLOG = 1024
#: Seconds after a client has connected, or was answered, within which a drain still hears what he asks.
_NEXT_WORD = 0.1
#: Connections over the limit that are told so; beyond them new ones are reset.
_TURNED_AWAY = 256
#: Pipelined requests that are read ahead.
_AHEAD = 16
#: Bytes that are parsed at once: a packet may bring thousands of small requests, each of which takes far more
#: memory as a request than as bytes.
_PIECE = 16 << 10
#: Bytes of an unguarded body that are read ahead of its turn.
_BODY_AHEAD = 256 << 10


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds; and how many there may be. `tunnel`: how long a connection that has
    left HTTP may be silent."""

    head: float = 10.0
    body: float = 60.0
    idle: float = 75.0
    connections: int = 10_000
    tunnel: float = 3600.0


class Server:
    """What the connections of all listeners share."""

    def __init__(
        self,
        door: Door,
        gate: Gate,
        pools: dict[str, Pool],
        clock: Clock,
        observer: Observer,
        patience: Patience | None = None,
        *,
        protocols: frozenset[bytes] = PROTOCOLS,
        heads: RequestHeads = PLAIN,
        origins: Origins | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.door = door
        self.gate = gate
        self.pools = pools
        self.clock = clock
        self.observer = observer
        self.patience = patience or Patience()
        self.protocols = protocols
        self.heads = heads
        self.origins = origins
        self.proxies = proxies
        self.shadows = Shadows(gate)
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.outbox = Outbox(self.loop)
        self.aside = Aside(self.loop)
        self.longest_head = door.bounds.head + door.bounds.target
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    async def listen(self, host: str, port: int, *, shared: bool = False) -> list[tuple[str, int]]:
        """Accept connections; says on which addresses. `shared`: with other processes that listen there too."""
        listener = await self.loop.create_server(
            lambda: ClientConnection(self), host, port, backlog=_BACKLOG, reuse_port=shared or None
        )
        self._listeners.append(listener)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(1.0, self._sweep)
        return [socket.getsockname()[:2] for socket in listener.sockets]

    def take_up(
        self,
        door: Door,
        heads: RequestHeads,
        protocols: frozenset[bytes],
        origins: Origins | None,
        proxies: Proxies | None,
    ) -> None:
        """From the next head on, requests go by these; what is under way goes on by what it came by."""
        self.door = door
        self.heads = heads
        self.protocols = protocols
        self.origins = origins
        self.proxies = proxies

    async def drain(self, seconds: float) -> int:
        """Accept no more, let what is under way be answered; says how many connections were cut off."""
        await self._let_in()
        for listener in self._listeners:
            listener.close()
        for _ in range(2):  # who was let in last is met at the next turn, and what he asks read at the one after
            await asyncio.sleep(0)
        self.draining = True
        self._emptied = asyncio.Event()
        for connection in list(self.connections):
            connection.drain(_NEXT_WORD)
        if self.connections:
            try:
                await asyncio.wait_for(self._emptied.wait(), seconds)
            except TimeoutError:
                pass
        return len(self.connections)

    async def _let_in(self) -> None:
        """Whoever stands in a listener's queue has connected, and may have asked; closing the listener resets him.
        The loop lets in one at each turn. Nothing comes between the last look and the end of the listener, so that
        only who finishes his handshake in that moment is reset, and nothing of his has been read."""
        queue = select.poll()
        for listener in self._listeners:
            for sock in listener.sockets:
                queue.register(sock.fileno(), select.POLLIN)
        for _ in range(_BACKLOG):
            if not queue.poll(0):
                break
            await asyncio.sleep(0)

    def close(self) -> None:
        """Cut off whatever is left."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.abort()
        self.aside.close()

    def exposes(self, head: Head) -> bytes:
        """What an answer of the service tells the browser, besides what the service itself does."""
        return b"" if self.origins is None else self.origins.exposes(head.method, head.fields)

    def forget(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(1.0, self._sweep)
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check(now)


class Visit:
    """One request on its connection: the `Client` of its exchange, or the guest of its tunnel."""

    __slots__ = (
        "_conn", "_on_gone", "_stream", "answered", "asked", "chunks", "complete", "gone", "head", "http10",
        "keep_alive", "protocols", "rechunk", "reserved", "size", "started", "trailers", "tunnel", "way",
    )  # fmt: skip

    def __init__(self, conn: ClientConnection, head: Head, way: Way, keep_alive: bool) -> None:
        self._conn = conn
        self._on_gone: Callable[[], None] | None = None
        self._stream: Stream | None = None
        self.head = head
        self.way = way
        self.keep_alive = keep_alive
        self.http10 = head.version == "1.0"
        self.chunks: list[bytes] = []
        self.size = 0
        self.reserved = 0
        #: Its exchange has begun, and holds its body whether or not the client stays.
        self.asked = False
        self.complete = False
        self.answered = False
        self.gone = False
        self.rechunk = False
        self.protocols: tuple[bytes, ...] = ()
        self.trailers: list[Field] | None = None
        self.tunnel: Tunnel | None = None
        self.started = 0.0

    # ── ports.Client ──────────────────────────────────────────────────────────────────────────────

    def reply(self, reply: Reply, stream: Stream | None = None) -> None:
        self._on_gone = None
        if self.gone or self.answered:
            self._conn.give_back(self)
            if stream is not None:
                stream.abort()
            return
        self.answered = True
        conn = self._conn
        if isinstance(reply, Refusal):
            data = conn.problem(self, reply)
        else:
            if self.http10 and stream is not None and stream.length is None:
                self.keep_alive = False  # only the connection's end can end it
            data = render(
                reply,
                keep_alive=self.keeps_alive(),
                http10=self.http10,
                wall=conn.server.clock.wall(),
                length=stream.length if stream is not None else None,
                exposes=b"" if conn.server.origins is None else conn.server.exposes(self.head),
            )
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
            self._conn.write(self._conn.problem(self, refusal))
            self._conn.done(self)
            self._conn.account(self, refusal.problem.status, refusal, detail=detail)

    def finish(self, status: int, *, reusable: bool) -> None:
        if self.gone:
            return
        if not reusable:
            self.keep_alive = False
        self._conn.account(self, status)
        self._conn.done(self)

    def cut(self, status: int) -> None:
        if not self.gone:
            self._conn.account(self, status)
            self._conn.done(self, cut=True)

    def switch(self, connection: Connection, data: bytes) -> None:
        self.answered = True
        self._conn.switch(self, connection, data)

    def keeps_alive(self) -> bool:
        return self.keep_alive and self.complete and not self._conn.server.draining

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
            self._stream.abort()

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


class _Held:
    """Stands in for the parser while nobody knows whether what comes next is HTTP: behind a request that asks for
    another protocol it is held until that one is answered, and then parsed. (If it is upgraded nobody asks here.)"""

    def __init__(self, conn: ClientConnection) -> None:
        self._conn = conn

    def feed_data(self, data: bytes) -> None:
        self._conn.feed_behind(data)


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._transport: asyncio.Transport | None = None
        self._parser: Parser = httptools.HttpRequestParser(self)
        self._relay: Relay | None = None
        self._queue: deque[Visit] = deque()
        self._reading: Visit | None = None
        self._peer = ""
        self._certificate = b""
        self._trusted = self._doubted = False
        self._target = b""
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._in_head = False
        self._fed = 0
        self._feeding = False
        self._since = 0.0
        self._upgrading = False
        self._synthetic = False
        self._deaf = False
        self._lingering = 0.0
        self._lingered = 0
        self._paused = False
        self._unread = b""
        self._ended = False
        self._moved = False
        self._turning = False
        self.full = False

    # ── asyncio.Protocol ──────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses
        server = self.server
        surplus = len(server.connections) - server.patience.connections
        if surplus >= _TURNED_AWAY:
            transport.abort()
            return
        server.connections.add(self)
        if server.draining:  # he was let in at the last moment
            server.loop.call_later(_NEXT_WORD, self.drain)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._certificate = shown_certificate(transport)
        if server.proxies is not None:
            self._trusted = server.proxies.trusts(self._peer)
            self._doubted = not self._trusted
        self._since = server.loop.time()
        if surplus >= 0:  # one too many, which is told so before it has asked
            self._deafen()
            self._last_words(Refusal(Problem.OVERLOADED, "Too many clients are connected.", retry_after=1))

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.abort()
            return
        if len(data) > _PIECE:
            self._feed_by_pieces(data)
        else:
            self._feed(data)

    def _feed_by_pieces(self, data: bytes) -> None:
        """Parse `data` no further than is read ahead; the rest waits until reading is resumed."""
        for start in range(0, len(data), _PIECE):
            if self._paused:
                self._unread += data[start:]
            if self._paused or self._deaf:
                return
            self._feed(data[start : start + _PIECE])

    def _feed(self, data: bytes) -> None:
        self._fed += len(data)
        self._feeding = True
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    data = self._parse_on(data[upgrade.args[0] :])
                    continue
                except httptools.HttpParserCallbackError as error:
                    # No fault of the client's: an exception of ours comes as the context of the parser's own.
                    self.server.observer.alarm("a request could not be read", error=repr(error.__context__))
                    self.abort()
                    return
                except httptools.HttpParserError as error:
                    if not self._deaf:
                        self._broken(error)
                    return
                break
        finally:
            self._feeding = False
        visit = self._reading
        if visit is not None and visit.tunnel is not None:
            visit.tunnel.request_fed()
        if self._fed > self.server.longest_head and not self._deaf:
            self._refuse_head()

    def eof_received(self) -> bool:
        self._ended = True
        if not self._queue:
            return False
        # Half-closed: whoever waits for an answer may still read it; more requests do not come.
        if self._reading is not None:
            self._deafen()
            self._last_words(Refusal(Problem.REQUEST_MALFORMED, "It ended within its body."))
        else:
            self._queue[-1].keep_alive = False
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._deafen()
        self.server.forget(self)
        queue, self._queue = self._queue, deque()
        self._reading = None
        for visit in queue:
            if visit.answered or not visit.asked:
                self.give_back(visit)
            visit.leave()
            if visit.tunnel is not None:
                self.account(visit, visit.tunnel.status, detail="the client left")

    def pause_writing(self) -> None:
        self.full = True
        if self._queue:
            self._queue[0].full()

    def resume_writing(self) -> None:
        self.full = False
        if self._queue and self._queue[0].started:
            self._queue[0].ready()
        else:
            self._turn()

    # ── llhttp's callbacks ────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self._synthetic or self._deaf:
            return
        self._target = b""
        self._names = []
        self._values = []
        self._in_head = True
        self._since = self.server.loop.time()

    def on_url(self, data: bytes) -> None:
        self._target += data

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._names.append(name)
            self._values.append(value)
        elif (visit := self._reading) is not None and isinstance(visit.way, Passing):
            if visit.trailers is None:
                visit.trailers = []
            visit.trailers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        if self._synthetic:
            if self._reading is not None:
                self._reading.trailers = None  # those of our own head
            return
        parser, values = cast(httptools.HttpRequestParser, self._parser), self._values
        self._in_head = False
        shape = shape_of(self._names)
        size = len(self._target) + shape.size + sum(map(len, values)) + 4 * len(values)
        fields = Fields(shape, values)
        if self._doubted:
            fields = without_hearsay(fields)
        head = Head(
            parser.get_method(), self._target, fields, parser.get_http_version(), size, certificate=self._certificate
        )
        self._upgrading = parser.should_upgrade()
        door = self.server.door
        way = door.look(head)
        visit = Visit(self, head, way, parser.should_keep_alive())
        if isinstance(way, Guarded) and head.length:
            if door.budget.take(head.length):
                visit.reserved = head.length
            else:
                visit.way = Refused(_overloaded(), way.route)
        if self._upgrading and isinstance(way, Passing) and not self._queue:
            visit.protocols = self._offered(head)
        self._reading = visit
        self._queue.append(visit)
        if len(self._queue) == 1:
            self._turn()
        elif len(self._queue) > _AHEAD:
            self.pause()

    def on_body(self, data: bytes) -> None:
        visit = self._reading
        if visit is None:
            return
        self._since = self.server.loop.time()
        self._fed = 0  # counted anew for what stands between and behind the chunks
        visit.size += len(data)
        if visit.tunnel is not None:
            visit.tunnel.request_body(data)
            return
        way = visit.way
        if isinstance(way, Guarded):
            limit = way.route.policy.max_request
            if visit.size > limit:
                self._turn_away(visit, too_large(limit))
            elif visit.size > visit.reserved and not self._reserve(visit):
                self._turn_away(visit, _overloaded())
            else:
                visit.chunks.append(data)
        elif isinstance(way, Passing):
            visit.chunks.append(data)
            if visit.size > _BODY_AHEAD:
                self.pause()
        elif visit.size > _DROPPED and visit.started:
            self._answer(visit, way)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._synthetic = False
        self._fed = 0
        self._since = self.server.loop.time()
        visit, self._reading = self._reading, None
        if visit is None:
            return
        visit.complete = True
        if visit.started:
            self._body_complete(visit)

    # ── The queue ─────────────────────────────────────────────────────────────────────────────────

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
        elif visit.head.expects or (visit.head.length or visit.size) > _DROPPED:
            self._answer(visit, way)

    def _body_complete(self, visit: Visit) -> None:
        way = visit.way
        if isinstance(way, Guarded):
            body = visit.chunks[0] if len(visit.chunks) == 1 else b"".join(visit.chunks)
            visit.chunks = []
            visit.asked = True
            self.server.door.meet(visit.head, way.route)
            if self.server.door.takes_long(way.route, body):
                self.server.gate.tasks.start(self._ask_aside(visit, way, body))
            else:
                ask = self.server.door.ask(visit.head, body, self._client(visit.head), way, self._peer)
                self._go_on(visit, body, ask)
        elif not isinstance(way, Passing):
            self._answer(visit, way)
        elif visit.tunnel is not None:
            visit.tunnel.request_end(visit.trailers or ())

    async def _ask_aside(self, visit: Visit, way: Guarded, body: bytes) -> None:
        """As `_body_complete`, with what takes long in a thread. Nothing is claimed before it has ended; a client that
        leaves meanwhile has sent its request all the same."""
        server = self.server
        client = self._client(visit.head)
        try:
            ask = await server.aside.run(server.door.ask, visit.head, body, client, way, self._peer)
            self._go_on(visit, body, ask)
        except BaseException:
            visit.asked = False
            self.give_back(visit)
            self.abort()
            raise

    def _go_on(self, visit: Visit, body: bytes, ask: Ask | Passing | Refused) -> None:
        """A request whose body is there, and has been read, where that had to be."""
        if isinstance(ask, Ask):
            self.server.gate.begin(ask, visit)
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
            visit.head.fields = fields.fields_of(line for line in visit.head.fields if line[0].lower() != b"expect")
            self._begin_tunnel(visit, ask)

    def _client(self, head: Head) -> str:
        """Who asks, as far as the word of whoever is connected goes."""
        if not self._trusted or self.server.proxies is None:
            return self._peer
        return self.server.proxies.client(self._peer, head.fields)

    def _begin_tunnel(self, visit: Visit, way: Passing) -> None:
        head, route = visit.head, way.route
        kind: Callable[..., Tunnel] = Tunnel
        if way.would is not None:
            watch = Watch(self.server.door, self.server.shadows, head, way, self._client(head))
            kind = partial(WatchedTunnel, watch)
        visit.tunnel = tunnel = kind(
            self.server.pools[route.upstream],
            visit,
            Request(head.method, head.target, head.fields, b"", self._peer),
            way.reason,
            length=head.length,
            chunked=head.chunked,
            timeout=route.policy.timeout / 1000,
            heads=self.server.heads,
            exposes=b"" if self.server.origins is None else self.server.exposes(head),
            protocols=visit.protocols,
        )
        tunnel.begin()
        chunks, visit.chunks = visit.chunks, []
        for data in chunks:
            tunnel.request_body(data)
        if visit.complete:
            tunnel.request_end(visit.trailers or ())
        elif not self._feeding:
            tunnel.request_fed()

    def _answer_refused(self, visit: Visit, way: Refused) -> None:
        if not visit.answered:
            visit.answered = True
            self.write(self.problem(visit, way.refusal))
            self.account(visit, way.refusal.problem.status, way.refusal)
            self.done(visit)

    def _answer(self, visit: Visit, way: Refused | Told) -> None:
        """Without the service, whatever there may be of a body."""
        if isinstance(way, Refused):
            self._answer_refused(visit, way)
        else:
            self._answer_told(visit, way)

    def _answer_told(self, visit: Visit, way: Told) -> None:
        if visit.answered:
            return
        visit.answered = True
        server, head = self.server, visit.head
        status, data = way.published.answer(
            head.method,
            head.host,
            head.fields,
            connection=connection_field(keep_alive=visit.keeps_alive(), http10=visit.http10),
            wall=server.clock.wall(),
            origin=b"" if server.origins is None else server.origins.of_problem(head.fields),
        )
        self.write(data)
        self.account(visit, status)
        self.done(visit)

    def _turn_away(self, visit: Visit, refusal: Refusal) -> None:
        """A guarded request shows itself unfit while its body comes in."""
        way = visit.way
        assert isinstance(way, Guarded)
        visit.way = Refused(refusal, way.route)
        visit.chunks = []
        self.give_back(visit)
        if visit.started and visit.size > _DROPPED:
            self._answer_refused(visit, visit.way)

    def done(self, visit: Visit, *, cut: bool = False) -> None:
        """A request has been answered: on to the next, or close. `cut`: its response could not be ended."""
        self.give_back(visit)
        if not self._queue or self._queue[0] is not visit:
            return
        self._queue.popleft()
        if cut:
            self.abort()
            return
        if not visit.keeps_alive():
            self._close()
            return
        if self._paused and len(self._queue) <= _AHEAD:
            self.resume()
        if self._queue:
            self._turn()
        else:
            self._since = self.server.loop.time()

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

    # ── What cannot be parsed ─────────────────────────────────────────────────────────────────────

    def _parse_on(self, rest: bytes) -> bytes:
        """What to read behind a head that asked for an upgrade: the same framing, without the asking."""
        self._upgrading = False
        visit = self._reading
        if visit is None:
            return b""
        if isinstance(visit.way, Refused):
            self._deafen()
            self._last_words(visit.way.refusal)
            return b""
        visit.keep_alive = visit.head.version == "1.1" and not any(
            b"close" in value.lower() for value in values(visit.head.fields, b"connection")
        )
        if visit.protocols:
            self.on_message_complete()
            self._parser = _Held(self)
            return rest
        self._parser = httptools.HttpRequestParser(self)
        self._synthetic = True
        head = visit.head
        framing = (
            b"Transfer-Encoding: chunked\r\n"
            if head.chunked
            else b"Content-Length: %d\r\n" % head.length
            if head.length
            else b""
        )
        return b"POST / HTTP/1.1\r\nHost: upgraded\r\n%b\r\n" % framing + rest

    def _offered(self, head: Head) -> tuple[bytes, ...]:
        """What the request may be upgraded to. A body would have to be read first, and HTTP/1.0 has no upgrades
        (RFC 9110 §7.8)."""
        if head.has_body or head.version != "1.1":
            return ()
        return offered(head.fields, self.server.protocols)

    def feed_behind(self, data: bytes) -> None:
        """`data` came behind a request for an upgrade."""
        if self._queue:
            self._unread = data
            self.pause()
        else:
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(data)

    def switch(self, visit: Visit, service: Connection, data: bytes) -> None:
        """HTTP ends here: the client is given `data`, and whatever either side sends then is the other's."""
        assert self._transport is not None
        self.write(data)
        self.server.outbox.flush()
        early, self._unread = self._unread, b""

        def over() -> None:
            visit.tunnel = None
            visit.size = relay.received
            self.account(visit, 101, detail=relay.detail)
            self.connection_lost(None)

        relay = self._relay = Relay(self._transport, service, idle=self.server.patience.tunnel, over=over)
        relay.begin(early, full=self.full, ended=self._ended)

    def _broken(self, error: Exception) -> None:
        """The client does not speak HTTP, or no more. What it asked before is answered first."""
        self._deafen()
        what = str(error)
        refusal = Refusal(Problem.REQUEST_MALFORMED, f"{what[:1].upper()}{what[1:]}.")
        if what == "Invalid HTTP version" or "PRI" in what:
            refusal = Refusal(Problem.VERSION_UNSUPPORTED)
        self._last_words(refusal)

    def _refuse_head(self) -> None:
        """The head, or what stands between and behind the chunks of a body, has grown too large."""
        self._deafen()
        bounds = self.server.door.bounds
        over = len(self._target) > bounds.target
        self._last_words(Refusal(Problem.TARGET_TOO_LONG if over else Problem.HEAD_TOO_LARGE))

    def _last_words(self, refusal: Refusal) -> None:
        """Refuse the request that is being read, and close once it is told so."""
        visit, self._reading = self._reading, None
        if visit is None:
            head = Head(b"-", self._target[:200], fields.NONE, "1.1", 0)
            visit = Visit(self, head, Refused(refusal), False)
            self._queue.append(visit)
        visit.keep_alive = False
        if isinstance(visit.way, Refused):
            refusal = visit.way.refusal  # what was wrong with it first
        if visit.tunnel is not None:
            # It streams already: whoever reads it must see that it broke.
            answered = visit.answered
            visit.tunnel.guest_gone()
            if answered:
                self.abort()
                return
            visit.tunnel = None
        visit.way = Refused(refusal, visit.way.route)
        visit.chunks = []
        if self._queue[0] is visit:
            self._answer_refused(visit, visit.way)
        else:
            visit.complete = True

    # ── Writing and closing ───────────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._moved = True
            self.server.outbox.write(self._transport, data)

    def half(self, data: bytes) -> bytes:
        """For a test that ends the process in the middle of a reply: what is left to be written."""
        return failpoints.reply(self._transport, data) if self._transport is not None else data

    def problem(self, visit: Visit, refusal: Refusal) -> bytes:
        server = self.server
        return problem(
            refusal,
            connection=connection_field(keep_alive=visit.keeps_alive(), http10=visit.http10),
            wall=server.clock.wall(),
            request_id=_request_id(visit.head.fields),
            body_wanted=visit.head.method != b"HEAD",
            origin=b"" if server.origins is None else server.origins.of_problem(visit.head.fields),
        )

    def account(self, visit: Visit, status: int, refusal: Refusal | None = None, *, detail: str = "") -> None:
        """Tell the observer of a request that had no exchange."""
        head, way = visit.head, visit.way
        account = Account(
            way.route.name if way.route is not None else "-", head.method, head.target, self._client(head)
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

    def pause(self) -> None:
        if self._transport is not None and not self._paused and not self._deaf:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self._paused:
            self._paused = False
            if self._unread:
                self.server.loop.call_soon(self._read_on)  # not from within the parser
            else:
                self._transport.resume_reading()

    def _read_on(self) -> None:
        data, self._unread = self._unread, b""
        self._feed_by_pieces(data)
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def drain(self, quiet: float = 0.0) -> None:
        """Close if nothing is under way, and nothing was for `quiet` seconds (a request may be on its way, and would be
        reset); else after the answers that are."""
        if self._queue or self._in_head or self._lingering:
            return
        loop = self.server.loop
        left = self._since + quiet - loop.time()
        if left > 0:
            loop.call_later(left, self.drain)
        else:
            self._close()

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
        unread = transport.get_write_buffer_size() > 0
        self._lingering = self.server.loop.time() + (self.server.patience.idle if unread else _LINGER)
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

    def check(self, now: float) -> None:
        """Once a second: has the client taken too long?"""
        patience = self.server.patience
        waited = now - self._since
        if self._relay is not None:
            self._relay.check(now)
        elif self._lingering:
            if now > self._lingering:
                self.abort()
        elif self.full or (self._ended and self._queue and self._queue[0].answered):
            # It does not read its answer, or is not there any more: who closes both sides looks half-closed.
            if self._moved:
                self._moved = False
                self._since = now
            elif waited > patience.idle:
                self.abort()
        elif self._in_head:
            if waited > patience.head and not self._queue:
                self._deafen()
                self._last_words(Refusal(Problem.REQUEST_TIMEOUT, "The head was not there in time."))
        elif self._reading is not None:
            if waited > patience.body and not self._paused and self._queue[0] is self._reading:
                self._deafen()
                self._last_words(Refusal(Problem.REQUEST_TIMEOUT, "The body was not there in time."))
        elif not self._queue and waited > patience.idle:
            self._close()


def _overloaded() -> Refusal:
    return Refusal(Problem.OVERLOADED, "The bodies that it holds fill its memory.", retry_after=1)


def _request_id(fields: Fields) -> str:
    """The client's own id of its request where it sent a sane one, else a fresh one."""
    for value in values(fields, b"x-request-id"):
        if 0 < len(value) <= 128 and value.isascii() and value.decode().isprintable():
            return value.decode()
    return os.urandom(8).hex()

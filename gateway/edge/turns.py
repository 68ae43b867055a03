"""Requests in their turn: each is begun once those before it have been answered, and refused where it must be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..core import fields
from ..core.limit import Limit
from ..core.message import Request
from ..core.problem import Problem, Refusal
from ..engine.request import Identified
from .connection import Connection
from .door import Guarded, Head, Passing, Refused, Told
from .line import Line
from .render import CONTINUE, connection_field
from .shared import Shared
from .tunnel import Tunnel
from .upgrade import Relay
from .visit import Visit
from .watched import Watch, WatchedTunnel

#: Largest body of a refused request, in bytes, that is dropped so that its connection goes on. The response does not
#: wait for a body that has not arrived: it is sent at once, and the connection is closed.
DROPPED = 64 << 10


class Turns(Line):
    """The queue of a connection."""

    def __init__(self, server: Shared) -> None:
        super().__init__(server)
        self._target = b""
        self._feeding = False
        self._turning = False
        self._relay: Relay | None = None

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
            self.server.door.meet(visit.head, way.route)
            if self.server.door.takes_long(way.route, body):
                self._ask_aside(visit, way, body)
            else:
                ask = self.server.door.ask(visit.head, body, self._client(visit.head), way, self._peer, self._secure)
                self._go_on(visit, body, ask)
        elif not isinstance(way, Passing):
            self._answer(visit, way)
        elif visit.tunnel is not None:
            visit.tunnel.request_end(visit.trailers or ())

    def _ask_aside(self, visit: Visit, way: Guarded, body: bytes) -> None:
        """As `_body_complete`, with what takes long in a thread. Nothing is claimed before it has ended; a client that
        leaves meanwhile has sent its request all the same."""
        server, head = self.server, visit.head
        ask = partial(server.door.ask, head, body, self._client(head), way, self._peer, self._secure)
        then, broken = partial(self._go_on, visit, body), partial(self._unasked, visit)
        server.tasks.start(server.aside.hand(ask, then, broken))

    def _unasked(self, visit: Visit) -> None:
        visit.asked = False
        self.give_back(visit)
        self.abort()

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
            visit.head.fields = fields.fields_of(line for line in visit.head.fields if line[0].lower() != b"expect")
            self._begin_tunnel(visit, ask)

    def _begin_tunnel(self, visit: Visit, way: Passing) -> None:
        head, route = visit.head, way.route
        kind: Callable[..., Tunnel] = Tunnel
        if way.would is not None:
            watch = Watch(self.server.door, self.server.shadows, self.server.aside, head, way, self._client(head))
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
            exposes=b"" if self.server.origins is None else self.server.exposes(head),
            protocols=visit.protocols,
        )
        if self.full:
            tunnel.guest_full()
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

    def _answer_refused(self, visit: Visit, way: Refused) -> None:
        if not visit.answered:
            visit.answered = True
            if way.refusal.limit is not None:
                self.server.observer.limited(way.refusal.limit)
            self.write(self.render(visit, way.refusal))
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
        if visit.started and visit.size > DROPPED:
            self._answer_refused(visit, visit.way)

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

"""The reading side of a client's connection: what its bytes ask for.

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
import re
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

import httptools

from ..core.fields import fields_in, pairs_in
from ..core.limit import Limit
from ..core.message import values
from ..core.outcome import LostReason
from ..core.problem import Problem, Refusal
from .chunked import ChunkedBody
from .direct import admit_directly
from .door import Guarded, Head, Passing, Refused, too_large
from .foreign import Http2, beginning
from .likeness import Likeness, of_requests
from .line import DROPPED, NEXT_WORD, Line, Visit, peer_of
from .proxies import without_hearsay
from .shared import Shared
from .upgrade import Parser, offered

#: Bytes that a connection which is being closed still reads, and drops.
_LINGER_BYTES = 4 << 20
#: Connections over the limit that are told so; beyond them new ones are reset.
_TURNED_AWAY = 256
#: Bytes that are parsed at once: a packet may bring thousands of small requests, each of which takes far more
#: memory as a request than as bytes.
_PIECE = 16 << 10
#: Bytes of an unguarded body that are read ahead of its turn.
_BODY_AHEAD = 256 << 10
_PARSER = httptools.HttpRequestParser
#: What the parser reads in place of a byte that is not ASCII: a letter that is part of no method and no version.
_IN_ASCII = bytes(range(128)) + b"x" * 128
_BEFORE_TARGET = re.compile(rb"[\r\n]*[^ ]+ +")
#: How llhttp says that HTTP/2 begins.
_PREFACE = "Pause on PRI/Upgrade"


class ClientConnection(Line):
    """One connection of a client."""

    def __init__(self, server: Shared) -> None:
        super().__init__(server)
        self._parser: Parser = httptools.HttpRequestParser(self)
        #: Names and values in turn, as the parser tells them: of the head, and behind it of the trailers.
        self._lines: list[bytes] = []
        self._in_head = False
        self._fed = 0
        #: What its last head looked like, where it can be said; and whether the parser is in the midst of a message.
        self._like: Likeness | None = None
        self._amid = False
        #: What the client has sent of its request, until its first line is there, and its head has been read.
        self._line = b""
        #: The framing of the body that is read, if it is one in chunks.
        self._chunks: ChunkedBody | None = None
        self._upgrading = False
        self._synthetic = False
        #: What comes is held until it is known in which protocol it is.
        self._held = False
        self._lingered = 0
        self._checked = 0.0
        #: The request whose body is timed, and for how long it has been read.
        self._timed: Visit | None = None
        self._read_for = 0.0
        #: The request whose response is in flight, and when a byte of it was last seen to move.
        self._flowing: Visit | None = None
        self._flowed = 0.0
        #: The descriptor of a client that has ended its side.
        self._half = -1

    # ── asyncio.Protocol ──────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._wire = transport = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses
        server, peer = self.server, peer_of(transport)
        surplus = len(server.connections) - server.patience.connections
        cut = Limit.CONNECTIONS if surplus >= _TURNED_AWAY else server.descriptors.short(transport)
        if cut is not None:
            transport.abort()
            server.descriptors.limited(cut)
            return
        limit = server.full(peer)
        self._enter(peer)
        if limit is not None:  # one too many, which is told so before it has asked
            self._deafen()
            too_many = "Too many clients are connected."
            self._last_words(Refusal(Problem.OVERLOADED, too_many, retry_after=1, limit=limit))

    def secured(self, transport: asyncio.Transport, wire: asyncio.Transport, certificate: bytes) -> None:
        """Like `connection_made`, once the handshake of `transport`, TLS over `wire`, is finished."""
        self._transport, self._wire, self._certificate = transport, wire, certificate
        self._secure = True
        self._enter(peer_of(wire))

    def _enter(self, peer: str) -> None:
        server, self._peer = self.server, peer
        server.enter(self, peer)
        if server.proxies is not None:
            self._trusted = server.proxies.trusts(peer)
            self._doubted = not self._trusted
        self._since = self._checked = server.loop.time()
        if server.draining:  # it was let in at the last moment
            server.loop.call_later(NEXT_WORD, self.drain)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.abort()
            return
        if len(data) > _PIECE:
            self._feed_by_pieces(data)
        elif self._queue or self._amid or not self._read_whole(data, self._like or self.server.like):
            self._feed(data)

    def _read_whole(self, data: bytes, like: Likeness | None) -> bool:
        """Take `data` for the one whole request that it is, if it looks like those before it."""
        if like is None:
            return False
        server, read = self.server, like.read(data)
        if read is None or len(data) > server.door.bounds.head:
            return False
        self._since = server.loop.time()
        if self._doubted:
            read = read[0], read[1], without_hearsay(read[2]), read[3]
        method, target, fields, body = read
        if not (self.full or server.draining):
            peer = self._client(fields) if self._trusted else self._peer
            admitted = admit_directly(server, self, peer, self._peer, self._secure, self._certificate, read)
            if admitted is not None:
                direct, guarded = admitted
                self._queue.append(direct)
                server.driver.begin(guarded)
                return True
        head = Head(method, target, fields, "1.1", 0, self._certificate, self._secure)
        visit = self._seat(head, True)
        visit.complete = True
        if body:
            self._take_body(visit, body)
        self._turn()
        return True

    def _seat(self, head: Head, keep_alive: bool) -> Visit:
        """Queue the request of this head."""
        door = self.server.door
        way = door.look(head)
        visit = Visit(self, head, way, keep_alive)
        if isinstance(way, Guarded) and head.length:
            if door.budget.take(head.length):
                visit.reserved = head.length
            else:
                visit.way = Refused(_overloaded(), way.route)
        self._queue.append(visit)
        return visit

    def _feed_by_pieces(self, data: bytes) -> None:
        """Parse `data` no further than is read ahead; the rest waits until reading is resumed."""
        for start in range(0, len(data), _PIECE):
            if self._paused:
                self._unread += data[start:]
            if self._paused or self._deaf:
                return
            self._feed(data[start : start + _PIECE], more=start + _PIECE < len(data))

    def _feed(self, data: bytes, *, more: bool = False) -> None:
        """Parse `data`. `more`: the client has sent what follows it, too."""
        self._fed += len(data)
        self._feeding = True
        if self._held and not self._queue:
            self._held, self._parser = False, httptools.HttpRequestParser(self)
        try:
            while data and not self._deaf:
                piece, data = self._cut(data)
                try:
                    try:
                        self._parser.feed_data(piece)
                    except httptools.HttpParserUpgrade as upgrade:
                        data = self._parse_on(piece[upgrade.args[0] :] + data)
                except httptools.HttpParserCallbackError as error:
                    # No fault of the client's: an exception of ours comes as the context of the parser's own.
                    self.server.observer.alarm("a request could not be read", error=repr(error.__context__))
                    self.abort()
                    return
                except httptools.HttpParserInvalidMethodError as error:
                    self._begins_otherwise(str(error))
                except httptools.HttpParserError as error:
                    if _PREFACE in str(error) and not self._queue:
                        self._parser = Http2(self.write, self._refuse_stream)
                    elif not self._deaf:
                        self._broken(error)
        finally:
            self._feeding = False
            visit = self._reading
            self._amid = visit is not None or self._in_head or self._synthetic or type(self._parser) is not _PARSER
        if visit is not None:
            if visit.tunnel is not None:
                visit.tunnel.request_fed()
            elif visit.started and not more and not isinstance(visit.way, Guarded | Passing):
                self._answer(visit, visit.way)  # without the rest of its body
        if self._fed > self.server.longest_head and not self._deaf:
            self._refuse_head()

    def _cut(self, data: bytes) -> tuple[bytes, bytes]:
        """The bytes to parse next, and the rest. A message ends where a piece ends, so that every request is known to
        begin where a piece begins."""
        visit = self._reading
        if type(self._parser) is not _PARSER:
            return data, b""
        if visit is not None and visit.head.length:
            size = visit.head.length - visit.size
            return data[:size], data[size:]
        if visit is not None:
            if self._chunks is None:
                self._chunks = ChunkedBody()
            size = self._chunks.end(data)
            return data[:size], data[size:]
        if data[0] in b"\r\n" and self._in_head:  # the end of a head was split
            size = len(data) - len(data.lstrip(b"\r\n"))
        else:
            size = data.find(b"\r\n\r\n") + 4
            if size < 4:
                size = len(data)
        piece = data[:size]
        if not self._line and piece.isascii():
            self._line = piece
        else:
            piece = self._in_ascii(piece)
        return piece, data[size:]

    def _in_ascii(self, piece: bytes) -> bytes:
        """Note more of the line that a request begins with. The parser takes ASCII only, and is given a line in it."""
        before = self._line.lstrip(b"\r\n")
        if b"\n" not in before:
            self._line += piece
            if not piece.isascii():
                begins = 0 if before else len(piece) - len(piece.lstrip(b"\r\n"))
                ends = piece.find(b"\n", begins) if b"\n" in piece[begins:] else len(piece)
                return piece[:ends].translate(_IN_ASCII) + piece[ends:]
        return piece

    def _begins_otherwise(self, why: str, more: bytes = b"") -> None:
        """Refuse a message that does not begin with a known method, once enough of it has arrived to say what it is."""
        self._line += more
        refusal = beginning(self._line, why)
        if refusal is None:
            self._parser = _Instead(partial(self._begins_otherwise, why))
        elif not self._deaf:
            self._deafen()
            self._last_words(refusal)

    def _refuse_stream(self, stream: int) -> None:
        """Answer the first request of an HTTP/2 connection."""
        self._stream = stream
        self._deafen()
        self._last_words(Refusal(Problem.VERSION_UNSUPPORTED, "This is HTTP/2."))

    def eof_received(self) -> bool:
        self._ended = True
        if not self._queue:
            self.server.outbox.flush()  # its last answer may have been said in this turn; the loop closes next
            return False
        # Half-closed: whoever waits for an answer may still read it; more requests do not come.
        if self._reading is not None:
            self._deafen()
            self._last_words(Refusal(Problem.REQUEST_MALFORMED, "It ended within its body."))
        else:
            self._queue[-1].keep_alive = False
        socket = None if self._secure or self._wire is None else self._wire.get_extra_info("socket")
        if socket is not None:
            self._half = socket.fileno()
            self.server.halves.watch(self._half, self.abort)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = self._wire = None
        self._deafen()
        # The parser holds this connection and it the parser: a flood of clients that come and go would wait for the
        # collector by the tens of thousands.
        self._parser = _SPENT
        self.server.forget(self, self._peer)
        if self._half >= 0:
            self.server.halves.forget(self._half, self.abort)
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
        self._lines = []
        self._in_head = True
        self._since = self.server.loop.time()

    def on_url(self, data: bytes) -> None:
        if not self._line.isascii():  # then the line as it came has what the parser was not given
            at = _BEFORE_TARGET.match(self._line).end() + len(self._target)  # type: ignore[union-attr]  # it is a line
            data = self._line[at : at + len(data)]
        self._target += data

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += (name, value)

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._line = b""
        lines, self._lines = self._lines, []  # from here on, trailers
        if self._synthetic:
            return  # it was our own head
        parser: httptools.HttpRequestParser = self._parser  # type: ignore[assignment]  # whose callback this is
        self._in_head = False
        server = self.server
        fields, keep_alive = fields_in(lines), parser.should_keep_alive()
        head_like: Likeness = fields.shape.made(of_requests, of_requests)
        # What it is told by Connection is another thing than what its version says.
        told = not keep_alive or b"connection" in fields.shape.at
        version = parser.get_http_version() if told else "1.1"
        size = 0
        if self._fed + _PIECE > server.door.bounds.head:  # else it cannot be too large, wherever it began
            values = fields.values
            size = len(self._target) + fields.shape.size + sum(map(len, values)) + 4 * len(values)
        if self._doubted:
            fields = without_hearsay(fields)
        head = Head(parser.get_method(), self._target, fields, version, size, self._certificate, self._secure)
        self._upgrading = parser.should_upgrade()
        self._like = head_like.met()
        server.like = self._like or server.like
        first = not self._queue
        visit = self._reading = self._seat(head, keep_alive)
        self._chunks = None
        if self._upgrading and isinstance(visit.way, Passing) and first:
            visit.protocols = self._offered(head)
        if len(self._queue) == 1:
            self._turn()
        elif len(self._queue) > server.patience.pipelined:
            server.observer.limited(Limit.PIPELINED)
            self.pause()

    def on_body(self, data: bytes) -> None:
        if self._reading is not None:
            self._since = self.server.loop.time()
            self._fed = 0  # counted anew for what stands between and behind the chunks
            self._take_body(self._reading, data)

    def _take_body(self, visit: Visit, data: bytes) -> None:
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
        elif visit.size > DROPPED and visit.started:
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
        if self._lines and isinstance(visit.way, Passing):
            visit.trailers = pairs_in(self._lines)
        if visit.started:
            self._body_complete(visit)

    # ── Upgrades ──────────────────────────────────────────────────────────────────────────────────

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
            self._held, self._parser = True, _Instead(self._hold)
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
        self._parser.feed_data(b"POST / HTTP/1.1\r\nHost: upgraded\r\n%b\r\n" % framing)
        return rest

    def _offered(self, head: Head) -> tuple[bytes, ...]:
        """What the request may be upgraded to. A body would have to be read first, and HTTP/1.0 has no upgrades
        (RFC 9110 §7.8)."""
        if head.has_body or head.version != "1.1":
            return ()
        return offered(head.fields, self.server.protocols)

    def _hold(self, data: bytes) -> None:
        """`data` came behind a request for an upgrade that is not answered yet."""
        self._unread += data
        self.pause()

    # ── In the course of time ─────────────────────────────────────────────────────────────────────

    def _read_on(self) -> None:
        data, self._unread = self._unread, b""
        self._feed_by_pieces(data)
        if self._wire is not None and not self._paused:
            self._wire.resume_reading()

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

    def check(self, now: float) -> None:
        """Once a second: has the client taken too long?"""
        patience = self.server.patience
        waited, passed = now - self._since, now - self._checked
        before, self._unsent, self._checked = self._unsent, self.unsent(), now
        if self._relay is not None:
            self._relay.check(now)
        elif self._lingering:
            if 0 < self._unsent < before:
                self._lingering = max(self._lingering, now + patience.write)
            elif now > self._lingering:
                if self._unsent:
                    self.server.observer.limited(Limit.WRITE_TIMEOUT)
                self.abort()
        elif self._unsent or (self._ended and self._queue and self._queue[0].answered):
            # It does not read its answer, or is not there any more: who closes both sides looks half-closed.
            if self._moved or self._unsent < before:
                self._moved = False
                self._since = now
                self._flowing = None
            elif waited > patience.write:
                self.server.observer.limited(Limit.WRITE_TIMEOUT)
                self.abort()
        elif self._queue and self._queue[0].flows and (self._paused or self._reading is not self._queue[0]):
            self._check_response(self._queue[0], now)
        elif self._in_head:
            if waited > patience.head and not self._queue:
                self._too_slow(Limit.HEAD_TIMEOUT, "The head was not there in time.")
        elif self._reading is not None:
            if not self._paused and self._queue[0] is self._reading:
                self._check_body(self._reading, waited, passed)
        elif not self._queue and waited > patience.idle:
            self.server.observer.limited(Limit.IDLE)
            self._close()

    def _check_response(self, visit: Visit, now: float) -> None:
        """The service has begun to answer, and the client has taken all that came: does anything still come?"""
        idle = self.server.patience.response
        if self._moved or self._flowing is not visit:
            self._moved, self._flowing, self._flowed = False, visit, now
        elif now - self._flowed > idle:
            self.server.observer.limited(Limit.RESPONSE_IDLE)
            if visit.tunnel is not None:
                visit.tunnel.lost(LostReason.TIMEOUT, f"the response stood still for {idle:g} s")
            else:
                self.abort()  # its exchange goes on without it, and holds the key unless the response ends in time

    def _check_body(self, visit: Visit, waited: float, passed: float) -> None:
        """`passed` counts only while the body could come: who is held back by us is not slow."""
        patience = self.server.patience
        if self._timed is not visit:
            self._timed, self._read_for = visit, 0.0
        self._read_for += passed
        if waited > patience.body:
            self._too_slow(Limit.BODY_TIMEOUT, "The body was not there in time.")
        elif (self._read_for - patience.grace) * patience.rate > visit.size:
            self._too_slow(Limit.BODY_RATE, f"The body came at less than {patience.rate} bytes a second.")

    def _too_slow(self, limit: Limit, what: str) -> None:
        self._deafen()
        self._last_words(Refusal(Problem.REQUEST_TIMEOUT, what, limit=limit))


class _Instead:
    """Stands in for the parser while what comes is no HTTP/1.1, or may be none; and once the connection has ended."""

    def __init__(self, feed_data: Callable[[bytes], None]) -> None:
        self.feed_data = feed_data


_SPENT = _Instead(lambda _: None)


def _overloaded() -> Refusal:
    return Refusal(Problem.OVERLOADED, "The bodies that it holds fill its memory.", retry_after=1)

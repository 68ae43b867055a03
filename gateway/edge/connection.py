"""One connection to an upstream, and what it reads there. Used by one attempt at a time.

What llhttp (strict) leaves to us: it knows neither the method that was asked (a HEAD has no body) nor
the end of the connection (a response without a length ends there), limits nothing, and takes a 1xx for
a whole message.
"""

from __future__ import annotations

import asyncio
import re
import select
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import httptools

from ..core.fields import Field, Fields, fields_in, pairs_in
from ..core.message import listed
from ..core.outcome import LostReason
from .likeness import Likeness, of_responses

#: Most bytes of a response's head, or of its trailers; and most interim responses before the final one.
HEAD_LIMIT = 64 << 10
INTERIM_LIMIT = 32
#: What a reason phrase may not hold (RFC 9112 §4). llhttp looks for CR and LF only.
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(slots=True)
class Head:
    """The head of a response. `length` is None where none was declared; `until_close` where only the
    connection's end ends the body."""

    status: int
    reason: bytes
    fields: Fields
    length: int | None
    chunked: bool
    until_close: bool


class Receiver:
    """Whoever reads the response. Exactly one of `end` and `lost` comes last, and comes once."""

    __slots__ = ()

    def interim(self, head: Head) -> None: ...

    def head(self, head: Head) -> None: ...

    def body(self, data: bytes) -> None: ...

    def whole(self, head: Head, body: bytes) -> None:
        """As `head`, `body` and `end`, of a response that came in one piece."""

    def fed(self) -> None:
        """What has come so far has been told, and it is not whole."""

    def end(self) -> None: ...

    def lost(self, reason: LostReason, detail: str) -> None: ...

    def switched(self, head: Head, rest: bytes) -> bool:
        """A 101 came, and `rest` behind it. True if that was asked for: the connection is then handed over, and
        nothing more is told here."""
        return False

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Malformed(Exception):
    """What came is no response."""


def stir(connections: Sequence[Connection]) -> set[Connection]:
    """Which of these idle connections have a byte, or an end, that the loop has not read yet."""
    if not connections:
        return set()
    poll = select.poll()
    for connection in connections:
        poll.register(connection.fileno(), select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(0)}
    return {connection for connection in connections if connection.fileno() in ready} if ready else set()


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection to an upstream. `idle` is called when it may serve again, `gone` when it ended."""

    def __init__(self, idle: Callable[[Connection], None], gone: Callable[[Connection], None]) -> None:
        self._idle = idle
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        #: What the bytes go over in the end: the same, or with TLS the connection under it. Only this one knows
        #: what is still unsent; and one that is paused here is read no further, where uvloop's TLS reads on, and
        #: throws away what it has when the end comes.
        self._wire: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._head: Head | None = None
        #: What the last response looked like, where it can be said.
        self._like: Likeness | None = None
        #: The fields behind the last chunk of the response that has just ended.
        self.trailers: list[Field] = []
        self._switching: Head | None = None
        #: Names and values in turn, as the parser tells them: of a head, and behind it of the trailers.
        self._lines: list[bytes] = []
        self._reason = b""
        self._bodiless = False
        self._whole = False
        #: The parser has seen the end of a final response, and is as it was made.
        self._parsed = False
        #: The parser was asked of this response.
        self._asked = False
        #: Whether the response began before the request's last byte was written.
        self.early = False
        self._head_bytes = 0
        self._interims = 0
        self._tainted = False
        self._writing = False
        self._paused = False
        self._fileno = -1
        #: It was handed over, and counts among those that are open until it has ended.
        self.counted = False
        self.idle_since = 0.0
        self.served = 0

    # ── Towards the upstream ──────────────────────────────────────────────────────────────────────

    @property
    def usable(self) -> bool:
        return not self._tainted and self._wire is not None and not self._wire.is_closing()

    @property
    def ended(self) -> bool:
        """Whether there is nothing under it, or not any more."""
        return self._wire is None

    def quiet(self) -> bool:
        """Whether nothing has come since it fell idle. A byte or an end that the loop has not read yet counts:
        read after the next request was written, it would be taken for that one's answer. With TLS the byte may
        be of a ticket and no answer at all; that costs a handshake, and nothing else."""
        return self.usable and not stir([self])

    def fileno(self) -> int:
        """Of the socket under it."""
        if self._fileno < 0:
            assert self._wire is not None
            self._fileno = self._wire.get_extra_info("socket").fileno()
        return self._fileno

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    @property
    def wire(self) -> asyncio.Transport:
        """What the bytes go over in the end: this is what is paused."""
        assert self._wire is not None
        return self._wire

    def start(self, receiver: Receiver, *, bodiless: bool, data: bytes, more: bool = False) -> None:
        """Write a request, or its head and first bytes (`more` to come), and read its response.

        `bodiless`: the response has no body whatever it says (HEAD).
        """
        assert self._receiver is None and self._transport is not None
        self._receiver = receiver
        if self._parser is None or not self._parsed:
            self._parser = httptools.HttpResponseParser(self)
        self._parsed = self._whole = False
        self._head = None
        self._bodiless = bodiless
        if self._asked:
            self._asked = self.early = False
            self._lines, self.trailers, self._reason = [], [], b""
            self._head_bytes = self._interims = 0
        self._writing = more
        self.served += 1
        self._transport.write(data)

    def write(self, data: bytes, *, more: bool = True) -> None:
        """Go on writing the request's body."""
        self._writing = more
        if self._transport is not None and data:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._wire is not None and not self._wire.is_closing():
            self._paused = True
            self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if self._wire is not None and not self._wire.is_closing():
            self._wire.resume_reading()

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Another protocol is spoken from now on. Of its end `connection_lost` must still be told."""
        self._receiver = None
        self._tainted = True
        self.transport.set_protocol(protocol)

    def abort(self) -> None:
        """End it at once; whoever reads hears nothing more."""
        self._receiver = None
        self._tainted = True
        if self._transport is not None:
            self._transport.abort()

    # ── From the upstream ─────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._wire = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses

    def secured(self, transport: asyncio.Transport, wire: asyncio.Transport) -> None:
        """Like `connection_made`, once the handshake of `transport`, TLS over `wire`, is finished."""
        self._transport = transport
        self._wire = wire

    def pause_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:
            # Bytes that nobody asked for: they could be taken for the next request's answer.
            self.abort()
            return
        if self._like is not None and self._head_bytes == 0 and self._read_whole(data, self._like):
            return
        self._head_bytes += len(data)
        self._asked = True
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
            if self._head_bytes > HEAD_LIMIT and not self._whole:
                raise Malformed(f"a head, or trailers, of more than {HEAD_LIMIT} bytes")
        except httptools.HttpParserUpgrade as upgrade:
            head = self._switching
            if head is None or self.early or not self._receiver.switched(head, data[upgrade.args[0] :]):
                self._lose(LostReason.UPGRADED, "a 101 that nobody asked for")
            return
        except (httptools.HttpParserError, Malformed) as error:
            if self._whole:
                self._tainted = True  # surplus bytes behind a whole response
            else:
                # An exception of a callback comes as the context of the parser's own.
                self._lose(LostReason.MALFORMED, str(error.__context__ or error))
                return
        if self._whole:
            self._finish()
        elif self._receiver is not None:
            self._receiver.fed()

    def _read_whole(self, data: bytes, like: Likeness) -> bool:
        """Take `data` for the one whole response that it is, if it looks like those before it."""
        assert self._wire is not None and self._receiver is not None
        if self._bodiless or self._writing or self._head is not None or self._interims:
            return False
        read = like.read(data)
        if read is None or self._wire.get_write_buffer_size():
            return False
        status, reason, fields, body = read
        if len(data) - len(body) > HEAD_LIMIT:
            return False
        head = self._head = Head(int(status), reason, fields, len(body), False, False)
        self._whole = self._parsed = True  # the parser is as it was made, for nobody has asked it
        receiver, self._receiver = self._receiver, None
        try:
            receiver.whole(head, body)
        except Exception as error:
            self._failed(receiver, error)
            return True
        self._free()
        return True

    def eof_received(self) -> bool:
        if self._receiver is None:
            self.abort()
        elif self._head is not None and self._head.until_close and not self._whole and self._said_farewell():
            self._tainted = True
            self._finish()
        else:
            self._lose(LostReason.CLOSED, "the connection was closed before the response was whole")
        return False

    def _said_farewell(self) -> bool:
        """Whether the end that was just heard is the sender's own. Over TLS that takes a close_notify: without
        it, whoever can cut a wire can end a body that has no length (RFC 8446 §6.1). uvloop tells no end without
        one here, only `connection_lost`; asyncio does, so TLS itself is asked: past a close_notify it reads
        nothing, and else it waits for more."""
        if self._wire is self._transport:
            return True
        assert self._transport is not None
        try:
            return not self._transport.get_extra_info("ssl_object").read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:
            return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._receiver is not None:
            self._lose(LostReason.CLOSED, str(error or "the connection was closed"))
        self._transport = self._wire = None
        self._parser = None  # which holds this connection
        self._gone(self)

    def _lose(self, reason: LostReason, detail: str) -> None:
        receiver, self._receiver = self._receiver, None
        self._tainted = True
        if self._transport is not None:
            self._transport.abort()
        if receiver is not None:
            receiver.lost(reason, detail)

    def _finish(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            try:
                receiver.end()
            except Exception as error:
                self._failed(receiver, error)
                return
        self._free()

    def _failed(self, receiver: Receiver, error: Exception) -> None:
        """A receiver failed at the end of its response. Report it as lost, as if the parser had called."""
        self._tainted = True
        if self._transport is not None:
            self._transport.abort()
        receiver.lost(LostReason.MALFORMED, repr(error))

    def _free(self) -> None:
        """The response was told, whole."""
        if self._paused:
            self.resume_reading()  # for its reader's sake; the next one, and its end, must be heard
        if not (self._tainted or self.early or self._writing):
            self._idle(self)  # if it is usable still
        else:
            self._tainted = True
            if self._transport is not None:
                self._transport.abort()  # whatever of the request is still unwritten is not wanted

    # ── llhttp's callbacks ────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self._whole:
            self._tainted = True
        elif self._wire is not None:
            # Told anew for the final response behind an interim one: only its own first byte says anything.
            self.early = self._writing or self._wire.get_write_buffer_size() > 0

    def on_status(self, reason: bytes) -> None:
        if _CONTROL.search(reason):
            raise Malformed("a control byte in the reason phrase")
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += (name, value)

    def on_headers_complete(self) -> None:
        if self._whole:
            return
        assert self._parser is not None
        status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Malformed("another version of HTTP")
        if status < 100:  # the parser takes three digits
            raise Malformed(f"the status {status}")
        head = self._read_head(status)
        if status < 200:
            self._interims += 1
            if status == 101:
                if not self._parser.should_upgrade():
                    raise Malformed("a 101 that names no protocol")
                self._switching = head
                return  # llhttp raises HttpParserUpgrade next
            if self._interims > INTERIM_LIMIT:
                raise Malformed(f"more than {INTERIM_LIMIT} interim responses")
            self._reason = b""
            if self._receiver is not None:
                self._receiver.interim(head)
            return
        if not self._parser.should_keep_alive() or (head.chunked and version == "1.0"):
            self._tainted = True  # HTTP/1.0 has no codings: the framing may be a fault (RFC 9112 §6.1)
        self._head = head
        if self._receiver is not None:
            self._receiver.head(head)
        if self._bodiless:
            self._whole = True

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0  # counted anew for what stands between and behind the chunks
        if self._whole:
            self._tainted = True
        elif self._head is None:
            raise Malformed("an interim response with a body")
        elif self._receiver is not None:
            self._receiver.body(data)

    def on_message_complete(self) -> None:
        if self._head is not None and not self._whole:
            self._whole = self._parsed = True
            if self._lines:
                self.trailers = pairs_in(self._lines)

    def _read_head(self, status: int) -> Head:
        fields = fields_in(self._lines)
        self._lines = []  # from here on, trailers
        made: Likeness = fields.shape.made(of_responses, of_responses)
        self._like = made.met()
        if self._head_bytes > HEAD_LIMIT and fields.shape.size + sum(map(len, fields.values)) > HEAD_LIMIT:
            raise Malformed(f"a head of more than {HEAD_LIMIT} bytes")
        at, length = fields.shape.at, None
        for position in at.get(b"content-length", ()):
            length = int(fields.values[position])
        coded = b"transfer-encoding" in at
        if coded and listed(fields, b"transfer-encoding") != [b"chunked"]:
            raise Malformed("a transfer coding other than chunked")
        until_close = length is None and not coded and not self._bodiless and status not in (204, 304) and status >= 200
        return Head(status, self._reason, fields, length, coded, until_close)

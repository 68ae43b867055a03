"""The writing side of a client's connection: what is said to it, told of it, and how it is closed."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from .. import failpoints
from ..core.fields import Fields
from ..core.message import values
from ..core.problem import Refusal
from ..core.reply import Reply
from ..ports import Account, VerdictName
from .door import Head, Passing, Refused, Told
from .foreign import in_frames
from .render import connection_field, problem, render
from .shared import Shared
from .visit import Visit

#: Seconds for which a connection that is being closed goes on reading: a reset would take the response with it before
#: the client has read it.
_LINGER = 2.0
#: Seconds after a client has connected, or was answered, within which a drain still hears what he asks.
NEXT_WORD = 0.1


class Line(asyncio.Protocol):
    """A connection, and the requests on it in their order: the first is being answered."""

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
                exposes=b"" if server.origins is None else server.exposes(visit.head),
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

    def _client(self, head: Head) -> str:
        """Who asks, as far as the word of whoever is connected goes."""
        if not self._trusted or self.server.proxies is None:
            return self._peer
        return self.server.proxies.client(self._peer, head.fields)

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


def _request_id(fields: Fields) -> str:
    """The client's own id of its request where it sent a sane one, else a fresh one."""
    for value in values(fields, b"x-request-id"):
        if 0 < len(value) <= 128 and value.isascii() and value.decode().isprintable():
            return value.decode()
    return os.urandom(8).hex()

"""TLS with clients: the handshake, before there is a connection that speaks HTTP.

A listener that is given an `ssl` context keeps the connection under TLS to itself; so its bytes are taken plainly, and
TLS is begun over it here. Three things are had that way. What is still unsent can be counted. Reading can be paused
where it is: uvloop's TLS, paused itself, reads on, and throws away what it has when the end comes. And a client is
counted, and may only take so long, from its first byte on.
"""

from __future__ import annotations

import asyncio
import ssl
from hashlib import sha256
from typing import cast

from ..core.limit import Limit
from ..tasks import Tasks
from .client import ClientConnection
from .line import NEXT_WORD, peer_of
from .shared import Shared

#: The first byte of a TLS record that begins a handshake (RFC 8446 §5.1).
_HANDSHAKE = 0x16
#: Seconds that a client may take to say its own farewell once the gate has said its.
_FAREWELL = 5.0
#: Seconds that a handshake under way may still take once the gate drains.
_LAST_HANDSHAKE = 1.0
_NOT_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 38\r\n\r\n"
    b"This port speaks TLS: ask at https://\r\n"
)


class Gatekeeper(asyncio.Protocol):
    """Waits for a client's first bytes, and makes its connection once TLS is spoken."""

    def __init__(self, shared: Shared, context: ssl.SSLContext, tasks: Tasks) -> None:
        self._shared = shared
        self._context = context
        self._tasks = tasks
        self._wire: asyncio.Transport | None = None
        self._peer = ""
        self._began = 0.0
        self._first = b""

    # ── asyncio.Protocol ──────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        shared = self._shared
        self._wire = wire = cast(asyncio.Transport, transport)
        self._peer = peer_of(wire)
        self._began = shared.loop.time()
        limit = shared.full(self._peer) or shared.descriptors.short(wire)
        if limit is not None:  # before its handshake nothing can be said to it
            shared.descriptors.limited(limit)
            wire.abort()
            return
        shared.enter(self, self._peer)
        if shared.draining:  # it was let in at the last moment
            self.drain(NEXT_WORD)

    def data_received(self, data: bytes) -> None:
        wire = self._wire
        if wire is None or wire.is_closing():
            return
        if self._first:
            self._first += data
        elif data[0] != _HANDSHAKE:
            wire.write(_NOT_TLS)
            wire.close()
        else:
            self._first = data
            wire.pause_reading()
            self._tasks.start(self._secure(wire))

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    # ── The handshake ─────────────────────────────────────────────────────────────────────────────

    async def _secure(self, wire: asyncio.Transport) -> None:
        loop, early = self._shared.loop, _Early()
        if wire.is_closing():
            return
        patience = max(self._shared.patience.handshake - (loop.time() - self._began), 0.01)
        handshakes = Tasks(lambda _: None)  # what it raises is raised here
        starting = handshakes.start(
            loop.start_tls(
                wire,
                early,
                self._context,
                server_side=True,
                ssl_handshake_timeout=patience,
                ssl_shutdown_timeout=_FAREWELL,
            )
        )
        await asyncio.sleep(0)  # the task has begun: from here on what is read is TLS's
        if (tls := wire.get_protocol()) is not None and tls is not self:
            _feed(tls, self._first)
        try:
            async with asyncio.timeout(patience + 1):  # where it ended between two turns nobody would tell us
                secure = await starting
        except (TimeoutError, OSError) as error:  # ssl.SSLError among them: it does not speak TLS, or not ours
            if isinstance(error, TimeoutError) or "taking longer" in str(error):
                self._shared.observer.limited(Limit.HANDSHAKE)
            wire.abort()
            return
        except BaseException:
            wire.abort()
            raise
        finally:
            self._leave()
        if secure is None or secure.is_closing() or early.lost:
            wire.abort()
            return
        self._hand_over(cast(asyncio.Transport, secure), wire, early)

    def _hand_over(self, secure: asyncio.Transport, wire: asyncio.Transport, early: _Early) -> None:
        connection = ClientConnection(self._shared)
        secure.set_protocol(connection)
        connection.secured(secure, wire, certificate_of(secure))
        if early.data:
            connection.data_received(early.data)
        if early.ended:
            connection.eof_received()

    def _leave(self) -> None:
        self._wire = None
        self._shared.forget(self, self._peer)

    # ── shared.Member ─────────────────────────────────────────────────────────────────────────────

    def drain(self, quiet: float = 0.0) -> None:
        """A client that has begun its handshake may end it, and be heard; one that has said nothing has so long to
        begin."""
        self._shared.loop.call_later(_LAST_HANDSHAKE if self._first else quiet, self._gone_quiet)

    def _gone_quiet(self) -> None:
        if self._first and self._shared.loop.time() - self._began < _LAST_HANDSHAKE:
            self._shared.loop.call_later(_LAST_HANDSHAKE, self.abort)
        else:
            self.abort()

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    def check(self, now: float) -> None:
        """Once a second: has it said nothing for too long?"""
        if not self._first and now - self._began > self._shared.patience.handshake:
            self._shared.observer.limited(Limit.HANDSHAKE)
            self.abort()


class _Early(asyncio.Protocol):
    """Keeps what comes right behind the handshake, until there is somebody to read it."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.ended = True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True


def _feed(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Give TLS what was read before it was there."""
    tls = cast(asyncio.BufferedProtocol, protocol)
    while data:
        buffer = memoryview(tls.get_buffer(len(data))).cast("B")
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        tls.buffer_updated(size)
        data = data[size:]


def certificate_of(secure: asyncio.Transport) -> bytes:
    """SHA-256 of the certificate that the client has shown and that was verified, in DER; empty where it showed
    none."""
    shown = secure.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return sha256(shown).digest() if shown else b""

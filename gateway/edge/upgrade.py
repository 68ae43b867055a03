"""Another protocol on the same connection: which may be asked for, and the bytes that flow once it is spoken.

The `Upgrade` field is written anew from the protocols that the file allows, so nothing that a client hides in its
spelling goes on. Only a 101 that names one of them opens the tunnel: a proxy that opened it at the mere request
would pass the client's next request on unseen when the service refuses (docs/decisions/0011-upgrades.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ..core.fields import Fields
from ..core.message import listed, named_by_connection
from .connection import Connection

#: Seconds that a service may take for the last bytes of a client that has left.
_LAST = 30.0


def offered(fields: Fields, protocols: frozenset[bytes]) -> tuple[bytes, ...]:
    """The protocols that a request asks for and may be given, in its order of preference."""
    if b"upgrade" not in named_by_connection(fields):  # RFC 9110 §7.8: without that it is another hop's
        return ()
    return tuple(protocol for protocol in listed(fields, b"upgrade") if protocol in protocols)


def accepts(fields: Fields, protocols: tuple[bytes, ...]) -> bool:
    """Whether a 101 with these fields switches to what it was asked for."""
    named = listed(fields, b"upgrade")
    return bool(named) and all(protocol in protocols for protocol in named)


def upgrade_lines(protocols: tuple[bytes, ...]) -> bytes:
    """The fields by which a request asks for one of these, or a 101 says which it is."""
    return b"Connection: Upgrade\r\nUpgrade: %b\r\n" % b", ".join(protocols)


class Parser(Protocol):
    """What parses the bytes of a client."""

    def feed_data(self, data: bytes) -> None: ...


class Relay:
    """Two connections whose bytes are each other's, until either has ended. `wire` is under the client's TLS, or the
    same. `over` is called once, with the client's connection gone; `detail` then says why, where that was the gate's
    doing; `silent`, where that is because nothing moved."""

    def __init__(
        self,
        client: asyncio.Transport,
        wire: asyncio.Transport,
        service: Connection,
        *,
        idle: float,
        over: Callable[[], None],
        silent: Callable[[], None],
    ) -> None:
        self._silent = silent
        self._idle = idle
        self._over = over
        self._since = asyncio.get_running_loop().time()
        self.detail = ""
        self.moved = False
        self._client = _End(self, client, wire, self._client_lost)
        self._service = _End(self, service.transport, service.wire, service.connection_lost)
        self._client.other, self._service.other = self._service, self._client
        client.set_protocol(self._client)
        service.hand_over(self._service)

    @property
    def received(self) -> int:
        """Bytes that the client has sent."""
        return self._client.received

    def begin(self, early: bytes, *, full: bool, ended: bool) -> None:
        """`early` was sent by the client before it had its 101; it may read no more at the moment (`full`), or send
        no more (`ended`)."""
        if early:
            self._client.data_received(early)
        self._client.read(reading=True)
        self._service.read(reading=not full)
        if ended and not self._client.eof_received():
            self.abort()

    def check(self, now: float) -> None:
        """Once in a while: does it still move?"""
        if self.moved:
            self.moved = False
            self._since = now
        elif now - self._since > self._idle:
            self._silent()
            self.detail = f"no byte either way for {self._idle:g} s"
            self.abort()

    def abort(self) -> None:
        self._client.transport.abort()
        self._service.transport.abort()

    def _client_lost(self, error: Exception | None) -> None:
        if not self._service.gone:
            # Nobody looks after the other one now: it may take what it is still owed, but not for ever.
            asyncio.get_running_loop().call_later(_LAST, self._service.transport.abort)
        self._over()


class _End(asyncio.Protocol):
    """One of the two connections. `wire` is what is paused, `lost` its former protocol's own word for its end."""

    other: _End

    def __init__(
        self,
        relay: Relay,
        transport: asyncio.Transport,
        wire: asyncio.Transport,
        lost: Callable[[Exception | None], None],
    ) -> None:
        self._relay = relay
        self._wire = wire
        self._lost = lost
        self.transport = transport
        self.received = 0
        self.ended = self.gone = False

    def data_received(self, data: bytes) -> None:
        self._relay.moved = True
        self.received += len(data)
        if not self.other.transport.is_closing():
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.read(reading=False)

    def resume_writing(self) -> None:
        self._relay.moved = True
        self.other.read(reading=True)

    def read(self, *, reading: bool) -> None:
        if not self._wire.is_closing():
            if reading:
                self._wire.resume_reading()
            else:
                self._wire.pause_reading()

    def eof_received(self) -> bool:
        """Half an end is passed on as half an end. Over TLS there is none, and it ends the whole."""
        self.ended = True
        other = self.other.transport
        if self.other.ended or not other.can_write_eof():
            other.close()
            return False
        other.write_eof()
        return self.transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if self.other.gone:
            pass
        elif error is None:
            self.other.transport.close()  # once it has been sent everything
        else:
            self.other.transport.abort()
        self._lost(error)

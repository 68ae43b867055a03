"""Connections to one upstream as they are made.

One is handed over only after its TLS handshake has finished, so whatever goes wrong until then has sent no byte of a
request. TLS 1.3 may refuse a client after that: the request may have been read, and is Lost.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from ..core.outcome import NotSentReason
from .connection import Connection
from .descriptors import EXHAUSTED
from .keepalive import keep_alive


@dataclass(frozen=True, slots=True)
class Tls:
    """How the upstream is known: by what `context` trusts, and by the name that it is asked for."""

    context: ssl.SSLContext
    server_name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an upstream is. `connect` in seconds, the handshake included; `connections` is the most that are
    open at once; `tls` where it speaks TLS."""

    name: str
    host: str
    port: int
    connect: float = 2.0
    connections: int = 256
    tls: Tls | None = None
    #: Of a Unix socket, instead of host and port.
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


class Connector:
    """Makes the connections to `place`; `new` makes the protocol of one."""

    def __init__(self, place: Place, new: Callable[[], Connection]) -> None:
        self._place = place
        self._new = new

    async def connect(self, made: Callable[[Connection], None], unmade: Callable[[NotSentReason, str], None]) -> None:
        """Make one, and say so: either is called once. NO_CONNECTION means that there was no descriptor for it."""
        place = self._place
        try:
            async with asyncio.timeout(place.connect):
                connection = await (self._plain() if place.tls is None else self._secured(place.tls))
        except (OSError, ValueError) as error:  # TimeoutError, socket.gaierror, ssl.SSLError; UnicodeError
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                unmade(NotSentReason.NO_CONNECTION, f"{place}: {error.strerror}")
            else:
                unmade(NotSentReason.UNREACHABLE, f"{place}: {self._why(error)}")
        except asyncio.CancelledError:
            unmade(NotSentReason.STOPPED, "the gate is being stopped")
            raise
        except Exception as error:  # unexpected: told to the pool's tasks as well
            unmade(NotSentReason.UNREACHABLE, f"{place}: {error!r}")
            raise
        else:
            made(connection)

    async def _plain(self) -> Connection:
        loop, place = asyncio.get_running_loop(), self._place
        if place.path:
            _, connection = await loop.create_unix_connection(self._new, place.path)
        else:
            wire, connection = await loop.create_connection(self._new, place.host, place.port)
            keep_alive(wire.get_extra_info("socket"))
        return connection

    async def _secured(self, tls: Tls) -> Connection:
        """Two steps where `create_connection(ssl=…)` takes one, because that one keeps the TCP transport to
        itself: see `Connection._wire`."""
        loop, place = asyncio.get_running_loop(), self._place
        wire, _ = await loop.create_connection(asyncio.Protocol, place.host, place.port)
        keep_alive(wire.get_extra_info("socket"))
        guard = _Handshake()
        try:
            secure = await loop.start_tls(
                wire, guard, tls.context, server_hostname=tls.server_name, ssl_handshake_timeout=place.connect
            )
            await asyncio.sleep(0)  # what came behind the handshake is told one turn later
            if guard.over or secure is None or wire.is_closing():
                raise ConnectionError(guard.over or "closed in the TLS handshake")
        except BaseException:
            wire.abort()
            raise
        connection = self._new()
        secure.set_protocol(connection)
        connection.secured(secure, wire)
        return connection

    def _why(self, error: Exception) -> str:
        """What kept a connection from being made, for the log."""
        match error:
            case ssl.SSLCertVerificationError():
                return f"certificate verify failed: {error.verify_message}"
            case ssl.SSLError(reason=str(reason)):
                return f"the TLS handshake failed: {reason.replace('_', ' ').lower()}"
            case TimeoutError() if not str(error):
                return f"no {'answer' if self._place.tls is None else 'TLS handshake'} in {self._place.connect:g} s"
        return str(error) or "closed in the TLS handshake"


class _Handshake(asyncio.Protocol):
    """Listens until the handshake is over: a server that speaks or leaves before it was asked is not asked.
    `over` says why."""

    over = ""

    def data_received(self, data: bytes) -> None:
        self.over = self.over or "spoke before it was asked"

    def eof_received(self) -> None:
        self.over = self.over or "closed at once"

    def connection_lost(self, error: Exception | None) -> None:
        self.over = self.over or str(error or "closed at once")

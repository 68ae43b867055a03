"""The settings as the rest of the gate sees them. Durations in milliseconds, sizes in bytes."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..core.policy import HOUR, MINUTE, SECOND, Policy, RouteTable
from . import stores
from .addresses import Address, Network, without_password
from .listeners import Listener
from .tracing import TracingSettings
from .units import show_size

LogFormat = Literal["auto", "json", "text"]
LogKeys = Literal["digest", "full"]
StoreCheck = Literal["strict", "warn", "off"]
OnAmnesia = Literal["warn", "refuse"]


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How a service that speaks TLS is known. `context` is what these were checked with, and what is used."""

    server_name: str
    ca: str | None = None
    verify: bool = True
    cert: str | None = None
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """A service behind the gate, and how long it may take. `tls` where it speaks TLS."""

    name: str
    host: str
    port: int
    connect: int = 2 * SECOND
    timeout: int = Policy().timeout
    late: int = Policy().late
    connections: int = 256
    #: Of a Unix socket, instead of host and port.
    path: str = ""
    tls: TlsSettings | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them together, may ask of the gate."""

    head: int = 64 << 10
    target: int = 16 << 10
    fields: int = 100
    buffers: int = 256 << 20
    waiters: int = 10_000
    waiters_per_key: int = 100
    head_timeout: int = 10 * SECOND
    body_timeout: int = MINUTE
    body_rate: int = 500
    body_grace: int = 20 * SECOND
    write_timeout: int = MINUTE
    idle: int = 75 * SECOND
    response_idle: int = 5 * MINUTE
    tunnel_idle: int = HOUR
    handshake: int = 10 * SECOND
    connections: int = 10_000
    connections_per_address: int = 10_000
    pipelined: int = 16


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How the log is written. `auto` is text on a terminal and JSON elsewhere."""

    format: LogFormat = "auto"
    keys: LogKeys = "digest"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says instead of the file, as it was typed."""

    listen: str | None = None
    admin: str | None = None
    store: str | None = None
    service: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it, checked. `repr` shows neither the secret nor the store's password."""

    service: str
    listen: tuple[Listener, ...]
    admin: Address
    store: str = field(repr=False)
    store_scope: str | None
    store_check: StoreCheck
    on_amnesia: OnAmnesia
    upstreams: Mapping[str, UpstreamSettings]
    routes: RouteTable = field(repr=False)
    secret: bytes = field(repr=False)
    prefix: str
    limits: Limits
    log: LogSettings
    grace: int
    #: How long after a start `/ready` waits for the store to be available once.
    startup_wait: int = 30 * SECOND
    #: What operators must send; empty: nothing, and then they must come from this host.
    admin_token: bytes = field(default=b"", repr=False)
    #: Where their changes are written down besides the log.
    audit: str | None = None
    upgrades: frozenset[bytes] = frozenset((b"websocket",))
    #: None: the browser of a page elsewhere is told nothing of the gate.
    origins: frozenset[bytes] | None = None
    #: Where clients read the policy; None for nowhere.
    policy_path: str | None = "/.well-known/idempotency"
    #: None: what any peer says of where a request came from goes on as it is.
    trusted_proxies: tuple[Network, ...] | None = None
    #: None: no trace is recorded, and what clients send of theirs goes on as it is.
    tracing: TracingSettings | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is no fault, and should be known to whoever wrote it."""
        return (*self._note_on_admin, *self._note_on_store)

    @property
    def largest_response(self) -> int:
        """Bytes of the largest response that a guarded route keeps; 0 without such a route."""
        return max((each.policy.max_response for each in self.routes.routes if each.policy.guard), default=0)

    @property
    def _note_on_store(self) -> tuple[str, ...]:
        if not self.store.startswith("sqlite:"):
            return ()
        bound, largest = int(stores.options(self.store).get("max_bytes", 0)), self.largest_response
        # As `SqliteStore` does, without what depends on the machine.
        if not bound or largest + largest // 128 + (64 << 10) <= bound:
            return ()
        return (
            f"max_bytes of the store ({show_size(bound)}) has no room for the largest responses that the routes keep "
            f"(max_response is {show_size(largest)}): they are not replayed; lower max_response, or raise max_bytes",
        )

    @property
    def _note_on_admin(self) -> tuple[str, ...]:
        if self.admin.loopback or self.admin_token:
            return ()
        return (
            f"the admin listener at {self.admin} has no token and is not on the loopback: it serves /live, /ready, "
            "/ready/guarded and /metrics alone, and refuses operators; set admin.token or admin.token_file",
        )

    @property
    def shown_store(self) -> str:
        """The store's URL for logs and pages, without its password."""
        return without_password(self.store)

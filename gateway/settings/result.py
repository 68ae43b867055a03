"""The settings as the rest of the gate sees them. Durations in milliseconds, sizes in bytes."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import PlainValidator

from ..core.policy import HOUR, MINUTE, SECOND, Policy, RouteTable
from . import stores, values
from .addresses import Address, Network, without_password
from .fields import Duration, Many, ManyOrNone
from .listeners import Listener
from .tracing import TracingSettings
from .units import show_size

LogFormat = Literal["auto", "json", "text"]
LogKeys = Literal["digest", "full"]
StoreCheck = Literal["strict", "warn", "off"]
OnAmnesia = Literal["warn", "refuse"]

MOST_BUFFERS = 1 << 40
MOST_HEAD = 16 << 20


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

    head: Annotated[int, PlainValidator(values.size(least=1 << 10, most=MOST_HEAD))] = 64 << 10
    """The longest head of a request, a size, beyond which it is 431; 64KiB by default."""
    target: Annotated[int, PlainValidator(values.size(least=64, most=MOST_HEAD))] = 16 << 10
    """The longest target of a request, a size, beyond which it is 414; 16KiB by default."""
    fields: Many = 100
    """How many header fields a request may have; 100 by default."""
    buffers: Annotated[int, PlainValidator(values.size(least=1 << 20, most=MOST_BUFFERS))] = 256 << 20
    """How much all bodies that are held at once may take together, a size; 256MiB by default."""
    waiters: ManyOrNone = 10_000
    """How many duplicates may wait at once; 10000 by default."""
    waiters_per_key: ManyOrNone = 100
    """How many of them for one key; 100 by default."""
    head_timeout: Duration = 10 * SECOND
    """How long the head of a request may take to arrive, a duration; 10s by default."""
    body_timeout: Duration = MINUTE
    """How long a client may send no byte of a body, a duration; 60s by default."""
    body_rate: Annotated[int, PlainValidator(values.size(least=0, most=MOST_BUFFERS))] = 500
    """How many bytes of a body a client sends each second at least, a size, or 0 for no such rule; 500B by default."""
    body_grace: Duration = 20 * SECOND
    """How long a body may take however little comes, a duration, before `body_rate` counts; 20s by default."""
    write_timeout: Duration = MINUTE
    """How long a client may take no byte of an answer that waits for it, a duration; 60s by default."""
    idle: Duration = 75 * SECOND
    """How long a connection of a client is kept open between requests, a duration; 75s by default."""
    response_idle: Duration = 5 * MINUTE
    """How long a response that has begun may stand still, without a byte from the service or to the client, a duration;
    5m by default."""
    tunnel_idle: Duration = HOUR
    """How long a WebSocket, or another connection that was upgraded, may be silent both ways, a duration; 1h by
    default."""
    handshake: Duration = 10 * SECOND
    """How long the TLS handshake of a client may take, a duration; 10s by default."""
    connections: Many = 10_000
    """How many clients may be connected at once; 10000 by default."""
    connections_per_address: Many = 10_000
    """How many of them from one address, trusted proxies excepted; 10000 by default."""
    pipelined: Many = 16
    """How many requests of one connection are read ahead of their answers; 16 by default."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How the log is written."""

    format: Annotated[LogFormat, PlainValidator(values.one_of(get_args(LogFormat)))] = "auto"
    """auto (text on a terminal, JSON elsewhere), json or text; auto by default."""
    keys: Annotated[LogKeys, PlainValidator(values.one_of(get_args(LogKeys)))] = "digest"
    """How keys are shown: as a short digest, or in full; digest by default."""


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
        notes = []
        if not self.admin.loopback and not self.admin_token:
            notes.append(
                f"the admin listener at {self.admin} has no token and is not on the loopback: it serves /live, /ready, "
                "/ready/guarded and /metrics alone, and refuses operators; set admin.token or admin.token_file"
            )
        sqlite, largest = self.store.startswith("sqlite:"), self.largest_response
        bound = int(stores.options(self.store).get("max_bytes", 0)) if sqlite else 0
        # As `SqliteStore` does, without what depends on the machine.
        if bound and largest + largest // 128 + (64 << 10) > bound:
            notes.append(
                f"max_bytes of the store ({show_size(bound)}) has no room for the largest responses that the routes "
                f"keep (max_response is {show_size(largest)}): they are not replayed; lower max_response, or raise "
                "max_bytes"
            )
        return tuple(notes)

    @property
    def largest_response(self) -> int:
        """Bytes of the largest response that a guarded route keeps; 0 without such a route."""
        return max((each.policy.max_response for each in self.routes.routes if each.policy.guard), default=0)

    @property
    def shown_store(self) -> str:
        """The store's URL for logs and pages, without its password."""
        return without_password(self.store)

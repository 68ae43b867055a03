"""The shape of the file: every field that works today, documented where it is declared.

What DESIGN names and this version does not do stands in `unknown`: a fault of the file, never ignored.
Values are read by `values`; what several fields must agree on is checked in `check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from ..core.policy import MARGIN, SECOND
from . import addresses, values
from .addresses import Address, Upstream
from .faults import Loc
from .fields import Duration, DurationOrZero, FileName, Flag, Many, Name, Networks, Origins, Protocols, Shape
from .jwt import JwtShape
from .listeners import Listeners, ListenerShape, ListenerTlsShape
from .policy import (
    DeriveShape,
    FingerprintShape,
    KeyShape,
    MatchShape,
    MissingShape,
    PolicyShape,
    RouteShape,
    SendKeyShape,
)
from .result import Limits, LogSettings, OnAmnesia, StoreCheck, UpstreamSettings
from .source import Kind, Scalar
from .tracing import TracingSettings
from .units import show_duration

_UPSTREAM = UpstreamSettings("", "", 0)

#: The shortest margin, in milliseconds: a loaded host runs a timer that late.
LEAST_MARGIN = 100
_LATE = f"{{}} is less than clocks and schedulers may be late; use {show_duration(LEAST_MARGIN)} or more"


class TlsShape(Shape):
    ca: FileName | None = None
    """A PEM file with the certificates of the authorities that are trusted, instead of the system's; the system's by
    default."""
    server_name: Annotated[
        str | None, PlainValidator(values.parsed("a name such as shop.internal", addresses.server_name))
    ] = None
    """The name that is asked for and that the certificate must carry; the host of the URL by default."""
    verify: Flag = True
    """false: take whoever answers at that address for the service; true by default."""
    cert: FileName | None = None
    """A PEM file with a certificate by which the service knows the gate; none by default."""
    key: FileName | None = None
    """A PEM file with its key, where that stands apart; the same file by default."""


class UpstreamShape(Shape):
    url: Annotated[
        Upstream, PlainValidator(values.parsed("a URL such as http://127.0.0.1:9000", addresses.upstream))
    ] = Upstream("", 0)
    """Where the service listens, as http://HOST:PORT or https://HOST:PORT without a path, or as unix:/PATH;
    required."""
    tls: TlsShape | None = None
    """How a service at https:// is known, as {ca: FILE, server_name: NAME, verify: true}; by the system's authorities
    and the host of its URL by default."""
    connect: Duration = _UPSTREAM.connect
    """How long a connection may take to be made, a duration; 2s by default."""
    timeout: Duration = _UPSTREAM.timeout
    """How long an answer may take, a duration from the claim to its last byte, before the client is told 504; 60s by
    default."""
    late: DurationOrZero = _UPSTREAM.late
    """How long an answer is still listened for after that, a duration; 30s by default."""
    connections: Many = _UPSTREAM.connections
    """How many connections may be open to it at once; 256 by default."""


def _url_alone(value: object) -> object:
    return {"url": value} if isinstance(value, Scalar) and value.kind is Kind.TEXT else value


class AdminShape(Shape):
    listen: Annotated[Address, PlainValidator(values.address), AfterValidator(Address.parse)] = Address(
        "127.0.0.1", 8081
    )
    """Where metrics, readiness and the keys of operators are served, as HOST:PORT; 127.0.0.1:8081 by default."""
    token: Annotated[bytes, PlainValidator(values.token)] = b""
    """What operators send as Authorization: Bearer TOKEN for all but readiness and metrics, as ${ONCEGATE_ADMIN_TOKEN};
    none by default, and then they must come from this host."""
    token_file: FileName | None = None
    """A file that holds that token, instead of `token`; none by default."""
    audit: FileName | None = None
    """A file to which every change that an operator asks for is appended, as a line of JSON, and on the disk before it
    is answered; the log alone by default."""


class CorsShape(Shape):
    origins: Origins = frozenset()
    """The origins of pages whose scripts may read what the gate answers, as a list such as [https://shop.example];
    exact ones may send credentials, `*` alone is every page without; required."""


StoreOption = Annotated[str | None, PlainValidator(values.store_option)]


class StoreShape(Shape):
    url: Annotated[str, PlainValidator(values.parsed("a URL such as redis://127.0.0.1:6379/0", str))] = (
        "sqlite:///oncegate.db"
    )
    """Where records are kept: memory://, sqlite:///PATH, redis://[[USER]:PASSWORD@]HOST[:PORT][/DB] or one of its kin
    (docs/redis.md). What the fields beside it say may also stand behind its ?; sqlite:///oncegate.db by default."""
    durability: StoreOption = None
    """What an acknowledged write survives: power or process (SQLite; power by default), single or replicated (Redis;
    single by default)."""
    replicas: StoreOption = None
    """How many replicas must have a write, all of those that can be promoted; required with `replicated`."""
    wait: StoreOption = None
    """How long they may take, a duration from 10ms to 2s; 200ms by default."""
    max_bytes: StoreOption = None
    """How large SQLite's file, or the answers of a store in memory, may become, a size; no bound by default for a file,
    256MiB in memory."""
    max_records: StoreOption = None
    """How many records a store in memory holds; 100000 by default."""
    db: StoreOption = None
    """The number of a database behind a Unix socket; 0 by default."""
    ca: StoreOption = None
    """A PEM file with the authorities that are trusted (rediss://); the system's by default."""
    cert: StoreOption = None
    """A PEM file with a certificate of the gate's own (rediss://); none by default."""
    key: StoreOption = None
    """A PEM file with its key, where that stands apart (rediss://); none by default."""
    server_name: StoreOption = None
    """The name that the server's certificate must carry (rediss://); its host by default."""
    verify: StoreOption = None
    """false: take whoever answers for the Redis (rediss://); true by default."""
    sentinel_user: StoreOption = None
    """The user by which Sentinels know the gate, if not the primary's; none by default."""
    sentinel_password: StoreOption = None
    """The password of Sentinels; none by default."""


class FileShape(Shape):
    service: Name = "default"
    """The name of the API whose keys these are; `default` by default, and required with a store that is shared."""
    listen: Listeners = Field([ListenerShape()])
    """Where clients are served: HOST:PORT, :PORT for every interface, unix:/PATH, a mapping with `address`, or a list
    of these; 127.0.0.1:8080 by default."""
    admin: AdminShape = AdminShape()
    """The listener for those who run it, as {listen: HOST:PORT}."""
    store: Annotated[StoreShape, BeforeValidator(_url_alone)] = StoreShape()
    """Where records are kept, a URL or a mapping with `url`; sqlite:///oncegate.db by default."""
    store_scope: Annotated[str | None, PlainValidator(values.one_of(("single",)))] = None
    """Says `single` where only one gate will ever stand before the service, which memory and SQLite need on Kubernetes;
    not set by default."""
    store_check: Annotated[StoreCheck, PlainValidator(values.one_of(get_args(StoreCheck)))] = "strict"
    """What becomes of a Redis that may lose keys, which evicts for example: strict (guarded requests are refused), warn
    (the log says so) or off (nobody looks); strict by default."""
    on_amnesia: Annotated[OnAmnesia, PlainValidator(values.one_of(get_args(OnAmnesia)))] = "warn"
    """What happens when a Redis has lost its keys while the gate ran: warn (an alarm), or refuse (guarded requests are
    refused until POST /store/accept on the admin listener); warn by default."""
    secret: Annotated[bytes, PlainValidator(values.secret)] = b""
    """Keys the digests, so that nobody who reads the store can guess keys; changing it forgets all of them; none by
    default."""
    prefix: Annotated[str, PlainValidator(values.prefix)] = "og:"
    """What names in Redis begin with, up to 32 characters; og: by default."""
    upstreams: dict[str, Annotated[UpstreamShape, BeforeValidator(_url_alone)]] = Field({})
    """The services behind the gate, by name, each a URL or a mapping; required."""
    defaults: PolicyShape = PolicyShape()
    """What routes say where they do not say otherwise; none of it is required."""
    routes: list[RouteShape] = Field([])
    """Which requests go where and by what rules, the first that matches winning; required."""
    upgrades: Protocols = frozenset((b"websocket",))
    """What requests that are not guarded may be upgraded to, a list; [websocket] by default, [] for nothing."""
    cors: CorsShape | None = None
    """Which pages may read the gate's own problems, and its fields on answers that the service lets them read, as
    {origins: [https://shop.example]}; none by default."""
    policy_path: Annotated[str | None, PlainValidator(values.policy_path)] = "/.well-known/idempotency"
    """Where clients can read the policy of each route as JSON, a path, or off for nowhere; /.well-known/idempotency by
    default."""
    trusted_proxies: Networks | None = None
    """The proxies in front whose word is taken for where a request came from, a list such as [10.0.0.0/8]; what others
    say in X-Forwarded-* and Forwarded is removed. Not set by default: what anybody says goes on as it is, with the
    gate's own added."""
    limits: Limits = Limits()
    """What clients may ask of the gate."""
    log: LogSettings = LogSettings()
    """How the log is written."""
    tracing: TracingSettings | None = None
    """Where traces of guarded requests are sent, as {endpoint: http://collector:4318/v1/traces}, which needs the extra
    `otel`; none by default."""
    margin: Annotated[Duration, AfterValidator(values.bounded(_LATE, least=LEAST_MARGIN))] = MARGIN
    """How long before its lease an exchange must have ended, and how long past it a takeover waits, a duration of at
    least 100ms: more than a host's clock and scheduler may be late; 5s by default."""
    startup_wait: DurationOrZero = 30 * SECOND
    """How long after a start /ready stays 503 while the store was not available yet, a duration; then it is ready for
    unguarded traffic; 0s is ready at once; 30s by default."""
    grace: DurationOrZero | None = None
    """How long exchanges under way may take to finish on a stop, a duration; the longest lease of all routes (timeout,
    late and margin) by default."""


#: Every mapping of the file: where it stands, and the field that a bare value in its place most likely means.
SHAPES: Mapping[type[Any], tuple[str, str]] = {
    FileShape: ("the top level", ""),
    UpstreamShape: ("upstreams.NAME", "url"),
    TlsShape: ("upstreams.NAME.tls", ""),
    PolicyShape: ("a route or `defaults`", ""),
    RouteShape: ("a route", ""),
    MatchShape: ("`match`", "path"),
    KeyShape: ("`key`", "from"),
    MissingShape: ("`missing`", ""),
    DeriveShape: ("`derive`", ""),
    SendKeyShape: ("`send_key`", "to"),
    FingerprintShape: ("`fingerprint`", ""),
    JwtShape: ("a route or `defaults`, in `jwt`", "jwks"),
    AdminShape: ("`admin`", "listen"),
    ListenerShape: ("listen", "address"),
    ListenerTlsShape: ("listen.tls", ""),
    Limits: ("`limits`", ""),
    CorsShape: ("`cors`", "origins"),
    LogSettings: ("`log`", ""),
    StoreShape: ("`store`", "url"),
    TracingSettings: ("`tracing`", "endpoint"),
}


def shape_at(loc: Loc) -> type[Any]:
    """What kind of mapping stands at `loc`, or around it."""
    if loc[:1] == ("upstreams",):  # the step after it is a name, not a field
        loc = loc[1:] and (loc[0], *loc[2:])
    here: type[Any] = FileShape
    for step in loc:
        field = here.model_fields.get(str(step)) if issubclass(here, Shape) else None
        here = (field and _shape_in(field.annotation)) or here
    return here


def _shape_in(annotation: Any) -> type[Any] | None:
    """The mapping that a field takes, alone or in a list."""
    if isinstance(annotation, type) and annotation in SHAPES:
        return annotation
    return next(filter(None, map(_shape_in, get_args(annotation))), None)

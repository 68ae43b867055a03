"""The shape of the file: every field that works today, documented where it is declared.

What DESIGN names and this version does not do stands in TO_COME: a fault of the file, never ignored.
Values are read by `values`; what several fields must agree on is checked in `check`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from ..core.policy import MARGIN, SECOND
from . import values
from .addresses import Address, Upstream
from .fields import (
    Duration,
    DurationOrZero,
    Flag,
    Listen,
    Many,
    ManyOrNone,
    Name,
    Networks,
    Origins,
    Protocols,
    Shape,
)
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
from .result import Limits, LogFormat, LogKeys, LogSettings, OnAmnesia, StoreCheck, UpstreamSettings
from .source import Kind, Scalar
from .tracing import TracingShape

_LIMITS = Limits()
_LOG = LogSettings()
_UPSTREAM = UpstreamSettings("", "", 0)

MOST_BUFFERS = 1 << 40
MOST_HEAD = 16 << 20


class TlsShape(Shape):
    PLACE = "upstreams.NAME.tls"

    ca: Annotated[str | None, PlainValidator(values.file)] = Field(
        None,
        description="A PEM file with the certificates of the authorities that are trusted, instead of the "
        "system's; the system's by default.",
    )
    server_name: Annotated[str | None, PlainValidator(values.server_name)] = Field(
        None,
        description="The name that is asked for and that the certificate must carry; the host of the URL by default.",
    )
    verify: Flag = Field(
        True, description="false: take whoever answers at that address for the service; true by default."
    )
    cert: Annotated[str | None, PlainValidator(values.file)] = Field(
        None, description="A PEM file with a certificate by which the service knows the gate; none by default."
    )
    key: Annotated[str | None, PlainValidator(values.file)] = Field(
        None, description="A PEM file with its key, where that stands apart; the same file by default."
    )


class UpstreamShape(Shape):
    ALONE = "url"
    PLACE = "upstreams.NAME"

    url: Annotated[Upstream, PlainValidator(values.upstream_url)] = Field(
        Upstream("", 0),
        description="Where the service listens, as http://HOST:PORT or https://HOST:PORT without a path, or as "
        "unix:/PATH; required.",
    )
    tls: TlsShape | None = Field(
        None,
        description="How a service at https:// is known, as {ca: FILE, server_name: NAME, verify: true}; by the "
        "system's authorities and the host of its URL by default.",
    )
    connect: Duration = Field(
        _UPSTREAM.connect, description="How long a connection may take to be made, a duration; 2s by default."
    )
    timeout: Duration = Field(
        _UPSTREAM.timeout,
        description="How long an answer may take, a duration from the claim to its last byte, before the client "
        "is told 504; 60s by default.",
    )
    late: DurationOrZero = Field(
        _UPSTREAM.late,
        description="How long an answer is still listened for after that, a duration; 30s by default.",
    )
    connections: Many = Field(
        _UPSTREAM.connections, description="How many connections may be open to it at once; 256 by default."
    )


def _url_alone(value: object) -> object:
    return {"url": value} if isinstance(value, Scalar) and value.kind is Kind.TEXT else value


class AdminShape(Shape):
    TO_COME = frozenset(("tls",))
    ALONE = "listen"
    PLACE = "`admin`"

    listen: Listen = Field(
        Address("127.0.0.1", 8081),
        description="Where metrics, readiness and the keys of operators are served, as HOST:PORT; "
        "127.0.0.1:8081 by default.",
    )
    token: Annotated[bytes, PlainValidator(values.token)] = Field(
        b"",
        description="What operators send as Authorization: Bearer TOKEN for all but readiness and metrics, as "
        "${ONCEGATE_ADMIN_TOKEN}; none by default, and then they must come from this host.",
    )
    token_file: Annotated[str | None, PlainValidator(values.file)] = Field(
        None, description="A file that holds that token, instead of `token`; none by default."
    )
    audit: Annotated[str | None, PlainValidator(values.file)] = Field(
        None,
        description="A file to which every change that an operator asks for is appended, as a line of JSON, and on the "
        "disk before it is answered; the log alone by default.",
    )


class LimitsShape(Shape):
    PLACE = "`limits`"

    head: Annotated[int, PlainValidator(values.size(least=1 << 10, most=MOST_HEAD))] = Field(
        _LIMITS.head, description="The longest head of a request, a size, beyond which it is 431; 64KiB by default."
    )
    target: Annotated[int, PlainValidator(values.size(least=64, most=MOST_HEAD))] = Field(
        _LIMITS.target,
        description="The longest target of a request, a size, beyond which it is 414; 16KiB by default.",
    )
    fields: Many = Field(_LIMITS.fields, description="How many header fields a request may have; 100 by default.")
    buffers: Annotated[int, PlainValidator(values.size(least=1 << 20, most=MOST_BUFFERS))] = Field(
        _LIMITS.buffers,
        description="How much all bodies that are held at once may take together, a size; 256MiB by default.",
    )
    waiters: ManyOrNone = Field(_LIMITS.waiters, description="How many duplicates may wait at once; 10000 by default.")
    waiters_per_key: ManyOrNone = Field(
        _LIMITS.waiters_per_key, description="How many of them for one key; 100 by default."
    )
    head_timeout: Duration = Field(
        _LIMITS.head_timeout,
        description="How long the head of a request may take to arrive, a duration; 10s by default.",
    )
    body_timeout: Duration = Field(
        _LIMITS.body_timeout,
        description="How long a client may send no byte of a body, a duration; 60s by default.",
    )
    body_rate: Annotated[int, PlainValidator(values.size(least=0, most=MOST_BUFFERS))] = Field(
        _LIMITS.body_rate,
        description="How many bytes of a body a client sends each second at least, a size, or 0 for no such rule; 500B "
        "by default.",
    )
    body_grace: Duration = Field(
        _LIMITS.body_grace,
        description="How long a body may take however little comes, a duration, before `body_rate` counts; 20s by "
        "default.",
    )
    write_timeout: Duration = Field(
        _LIMITS.write_timeout,
        description="How long a client may take no byte of an answer that waits for it, a duration; 60s by default.",
    )
    idle: Duration = Field(
        _LIMITS.idle,
        description="How long a connection of a client is kept open between requests, a duration; 75s by default.",
    )
    response_idle: Duration = Field(
        _LIMITS.response_idle,
        description="How long a response that has begun may stand still, without a byte from the service or to the "
        "client, a duration; 5m by default.",
    )
    tunnel_idle: Duration = Field(
        _LIMITS.tunnel_idle,
        description="How long a WebSocket, or another connection that was upgraded, may be silent both ways, a "
        "duration; 1h by default.",
    )
    handshake: Duration = Field(
        _LIMITS.handshake,
        description="How long the TLS handshake of a client may take, a duration; 10s by default.",
    )
    connections: Many = Field(
        _LIMITS.connections, description="How many clients may be connected at once; 10000 by default."
    )
    connections_per_address: Many = Field(
        _LIMITS.connections_per_address,
        description="How many of them from one address, trusted proxies excepted; 10000 by default.",
    )
    pipelined: Many = Field(
        _LIMITS.pipelined,
        description="How many requests of one connection are read ahead of their answers; 16 by default.",
    )


class CorsShape(Shape):
    ALONE = "origins"
    PLACE = "`cors`"

    origins: Origins = Field(
        frozenset(),
        description="The origins of pages whose scripts may read what the gate answers, as a list such as "
        "[https://shop.example]; exact ones may send credentials, `*` alone is every page without; required.",
    )


class LogShape(Shape):
    PLACE = "`log`"

    format: Annotated[LogFormat, PlainValidator(values.one_of({"auto": "auto", "json": "json", "text": "text"}))] = (
        Field(
            _LOG.format,
            description="auto (text on a terminal, JSON elsewhere), json or text; auto by default.",
        )
    )
    keys: Annotated[LogKeys, PlainValidator(values.one_of({"digest": "digest", "full": "full"}))] = Field(
        _LOG.keys, description="How keys are shown: as a short digest, or in full; digest by default."
    )


StoreOption = Annotated[str | None, PlainValidator(values.store_option)]


class StoreShape(Shape):
    ALONE = "url"
    PLACE = "`store`"

    url: Annotated[str, PlainValidator(values.store_url)] = Field(
        "sqlite:///oncegate.db",
        description="Where records are kept: memory://, sqlite:///PATH, redis://[[USER]:PASSWORD@]HOST[:PORT][/DB] or "
        "one of its kin (docs/redis.md). What the fields beside it say may also stand behind its ?; "
        "sqlite:///oncegate.db by default.",
    )
    durability: StoreOption = Field(
        None,
        description="What an acknowledged write survives: power or process (SQLite; power by default), single or "
        "replicated (Redis; single by default).",
    )
    replicas: StoreOption = Field(
        None,
        description="How many replicas must have a write, all of those that can be promoted; required with "
        "`replicated`.",
    )
    wait: StoreOption = Field(None, description="How long they may take, a duration from 10ms to 2s; 200ms by default.")
    max_bytes: StoreOption = Field(
        None,
        description="How large SQLite's file, or the answers of a store in memory, may become, a size; no bound by "
        "default for a file, 256MiB in memory.",
    )
    max_records: StoreOption = Field(None, description="How many records a store in memory holds; 100000 by default.")
    db: StoreOption = Field(None, description="The number of a database behind a Unix socket; 0 by default.")
    ca: StoreOption = Field(
        None,
        description="A PEM file with the authorities that are trusted (rediss://); the system's by default.",
    )
    cert: StoreOption = Field(
        None, description="A PEM file with a certificate of the gate's own (rediss://); none by default."
    )
    key: StoreOption = Field(
        None, description="A PEM file with its key, where that stands apart (rediss://); none by default."
    )
    server_name: StoreOption = Field(
        None, description="The name that the server's certificate must carry (rediss://); its host by default."
    )
    verify: StoreOption = Field(
        None, description="false: take whoever answers for the Redis (rediss://); true by default."
    )
    sentinel_user: StoreOption = Field(
        None, description="The user by which Sentinels know the gate, if not the primary's; none by default."
    )
    sentinel_password: StoreOption = Field(None, description="The password of Sentinels; none by default.")


class FileShape(Shape):
    PLACE = "the top level"

    service: Name = Field(
        "default",
        description="The name of the API whose keys these are; `default` by default, and required with a "
        "store that is shared.",
    )
    listen: Listeners = Field(
        [ListenerShape()],
        description="Where clients are served: HOST:PORT, :PORT for every interface, unix:/PATH, a mapping with "
        "`address`, or a list of these; 127.0.0.1:8080 by default.",
    )
    admin: AdminShape = Field(AdminShape(), description="The listener for those who run it, as {listen: HOST:PORT}.")
    store: Annotated[StoreShape, BeforeValidator(_url_alone)] = Field(
        StoreShape(),
        description="Where records are kept, a URL or a mapping with `url`; sqlite:///oncegate.db by default.",
    )
    store_scope: Annotated[str | None, PlainValidator(values.one_of({"single": "single"}))] = Field(
        None,
        description="Says `single` where only one gate will ever stand before the service, which memory and "
        "SQLite need on Kubernetes; not set by default.",
    )
    store_check: Annotated[
        StoreCheck, PlainValidator(values.one_of({"strict": "strict", "warn": "warn", "off": "off"}))
    ] = Field(
        "strict",
        description="What becomes of a Redis that may lose keys, which evicts for example: strict (guarded requests "
        "are refused), warn (the log says so) or off (nobody looks); strict by default.",
    )
    on_amnesia: Annotated[OnAmnesia, PlainValidator(values.one_of({"warn": "warn", "refuse": "refuse"}))] = Field(
        "warn",
        description="What happens when a Redis has lost its keys while the gate ran: warn (an alarm), or refuse "
        "(guarded requests are refused until POST /store/accept on the admin listener); warn by default.",
    )
    secret: Annotated[bytes, PlainValidator(values.secret)] = Field(
        b"",
        description="Keys the digests, so that nobody who reads the store can guess keys; changing it forgets "
        "all of them; none by default.",
    )
    prefix: Annotated[str, PlainValidator(values.prefix)] = Field(
        "og:", description="What names in Redis begin with, up to 32 characters; og: by default."
    )
    upstreams: dict[str, Annotated[UpstreamShape, BeforeValidator(_url_alone)]] = Field(
        {}, description="The services behind the gate, by name, each a URL or a mapping; required."
    )
    defaults: PolicyShape = Field(
        PolicyShape(), description="What routes say where they do not say otherwise; none of it is required."
    )
    routes: list[RouteShape] = Field(
        [], description="Which requests go where and by what rules, the first that matches winning; required."
    )
    upgrades: Protocols = Field(
        frozenset((b"websocket",)),
        description="What requests that are not guarded may be upgraded to, a list; [websocket] by default, [] for "
        "nothing.",
    )
    cors: CorsShape | None = Field(
        None,
        description="Which pages may read the gate's own problems, and its fields on answers that the service lets "
        "them read, as {origins: [https://shop.example]}; none by default.",
    )
    policy_path: Annotated[str | None, PlainValidator(values.policy_path)] = Field(
        "/.well-known/idempotency",
        description="Where clients can read the policy of each route as JSON, a path, or off for nowhere; "
        "/.well-known/idempotency by default.",
    )
    trusted_proxies: Networks | None = Field(
        None,
        description="The proxies in front whose word is taken for where a request came from, a list such as "
        "[10.0.0.0/8]; what others say in X-Forwarded-* and Forwarded is removed. Not set by default: what anybody "
        "says goes on as it is, with the gate's own added.",
    )
    limits: LimitsShape = Field(LimitsShape(), description="What clients may ask of the gate.")
    log: LogShape = Field(LogShape(), description="How the log is written.")
    tracing: TracingShape | None = Field(
        None,
        description="Where traces of guarded requests are sent, as {endpoint: http://collector:4318/v1/traces}, which "
        "needs the extra `otel`; none by default.",
    )
    margin: Annotated[int, PlainValidator(values.margin)] = Field(
        MARGIN,
        description="How long before its lease an exchange must have ended, and how long past it a takeover "
        "waits, a duration of at least 100ms: more than a host's clock and scheduler may be late; 5s by default.",
    )
    startup_wait: DurationOrZero = Field(
        30 * SECOND,
        description="How long after a start /ready stays 503 while the store was not available yet, a duration; then "
        "it is ready for unguarded traffic; 0s is ready at once; 30s by default.",
    )
    grace: Annotated[int | None, PlainValidator(values.duration_or_zero)] = Field(
        None,
        description="How long exchanges under way may take to finish on a stop, a duration; the longest "
        "lease of all routes (timeout, late and margin) by default.",
    )


def shape_at(loc: tuple[Any, ...]) -> type[Shape]:
    """What kind of mapping stands at `loc`."""
    match loc:
        case ("listen",) | ("listen", int()):
            return ListenerShape
        case ("listen", "tls") | ("listen", _, "tls"):
            return ListenerTlsShape
        case ("admin",):
            return AdminShape
        case ("store",):
            return StoreShape
        case ("limits",):
            return LimitsShape
        case ("cors",):
            return CorsShape
        case ("log",):
            return LogShape
        case ("tracing",):
            return TracingShape
        case ("upstreams", _):
            return UpstreamShape
        case ("upstreams", _, "tls"):
            return TlsShape
        case ("defaults",):
            return PolicyShape
        case ("routes", int()):
            return RouteShape
        case (*_, "match"):
            return MatchShape
        case (*_, "key"):
            return KeyShape
        case (*_, "missing"):
            return MissingShape
        case (*_, "derive"):
            return DeriveShape
        case (*_, "send_key") | (*_, "send_key", int()):
            return SendKeyShape
        case (*_, "fingerprint"):
            return FingerprintShape
        case (*_, "jwt"):
            return JwtShape
    return FileShape


SHAPES: tuple[type[Shape], ...] = (
    FileShape,
    UpstreamShape,
    TlsShape,
    PolicyShape,
    RouteShape,
    MatchShape,
    KeyShape,
    MissingShape,
    DeriveShape,
    SendKeyShape,
    FingerprintShape,
    JwtShape,
    AdminShape,
    ListenerShape,
    ListenerTlsShape,
    LimitsShape,
    CorsShape,
    LogShape,
    StoreShape,
    TracingShape,
)

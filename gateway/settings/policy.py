"""The shape of a route and of `defaults`, each field documented where it is declared."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from ..core.fingerprint import CANONICAL_JSON, RAW
from ..core.key import LONGEST
from ..core.keyed import Part
from ..core.keyform import Format, WeakKeys
from ..core.policy import Missing, Mode, OnDoubt, Policy, StoreDown
from ..core.sent import SentAs
from ..core.source import Source
from . import keys, scopes, values
from .fields import Duration, DurationOrZero, Flag, Name, Shape, Statuses
from .jwt import JwtShape
from .source import Kind, Scalar

_POLICY = Policy()

MOST_REQUEST = 1 << 30
#: A string of Redis has 512 MiB at most, and a record is one.
MOST_RESPONSE = 256 << 20
MOST_COOKIES = 64
MOST_IGNORED = 64
MOST_SOURCES = 8
#: A record counts the parts of its fingerprint in one byte.
MOST_HEADERS = 64


class KeyShape(Shape):
    sources: Annotated[
        tuple[Annotated[Source, PlainValidator(keys.source)], ...] | None,
        BeforeValidator(values.listing("a source such as header:X-Request-Key, or a list of them")),
        AfterValidator(values.at_most(MOST_SOURCES, "sources are too many; use {} at most")),
        AfterValidator(keys.each_once),
    ] = Field(None, alias="from")
    """Where the key stands: header:NAME, body:/json/pointer, form:FIELD, query:NAME, path:N, cookie:NAME, or a list of
    these of which each is a part of it; by default header:Idempotency-Key or header:X-Idempotency-Key, whichever is
    there."""
    form: Annotated[Format, PlainValidator(keys.form)] = Field(_POLICY.key_rule.format, alias="format")
    """The form that a key must have: any, sf-string (in quotes, RFC 8941), uuid, ulid, or a /pattern/ of RE2 for all of
    it; any by default."""
    min_length: Annotated[int, PlainValidator(values.count(least=1, most=LONGEST))] = _POLICY.key_rule.min_length
    """How many characters a key must have, 1 to 255; 1 by default."""
    weak: Annotated[WeakKeys, PlainValidator(values.one_of(WeakKeys))] = _POLICY.key_rule.weak
    """What becomes of a request whose key is a timestamp, a counter, an unset variable or of few different characters:
    count (a metric and the log tell) or refuse (400); count by default."""


class DeriveShape(Shape):
    parts: Annotated[
        tuple[Annotated[Part | Source, PlainValidator(keys.part)], ...],
        BeforeValidator(values.listing("a list such as [method, target, body, credentials]")),
        AfterValidator(keys.parts),
    ] = Field(tuple(sorted(Part)), alias="from")
    """What makes two requests the same click: method, target, body, credentials, or sources, a list; the four by
    default."""
    window: Duration = _POLICY.derive.window
    """How long the answer to the first is given to the second, a duration; 10s by default."""


class MissingShape(Shape):
    derive: DeriveShape = DeriveShape()
    """Derive a key that is missing, as {from: [method, target, body, credentials]}."""


class SendKeyShape(Shape):
    to: Annotated[bytes | None, PlainValidator(keys.sent_field)] = None
    """The field that the service gets, as header:NAME; required."""
    form: Annotated[SentAs, PlainValidator(values.one_of(SentAs))] = Field(SentAs.KEY, alias="as")
    """key, as the client sent it, or uuid, one that follows from service, namespace, scope and key; key by default."""


#: What a word in the mapping's place stands for: known by being these very objects.
_WORDS = {each: MissingShape() for each in Missing}


def _missing(value: object) -> object:
    """A word, or `derive` with its own fields."""
    if isinstance(value, dict) and "derive" in value:
        return value
    return _WORDS[values.one_of(Missing)(value)]


def missing_of(shape: MissingShape) -> Missing:
    """What becomes of a request without a key."""
    return next((word for word, stands in _WORDS.items() if stands is shape), Missing.DERIVE)


def _send_key(value: object) -> object:
    return {"to": value} if isinstance(value, Scalar) else value


def _has_field(shape: SendKeyShape) -> SendKeyShape:
    if shape.to is None:
        raise ValueError("`to` is missing; use {to: header:PayPal-Request-Id, as: uuid}")
    return shape


def _each_once(shapes: tuple[SendKeyShape, ...]) -> tuple[SendKeyShape, ...]:
    names = [(shape.to or b"").lower() for shape in shapes]
    if twice := [shape.to for shape, name in zip(shapes, names, strict=True) if shape.to and names.count(name) > 1]:
        raise ValueError(f"{twice[-1].decode()} stands twice; keep one")
    return shapes


def _one_or_more(value: object) -> object:
    if isinstance(value, dict):
        return [value]
    return values.listing("a field such as header:PayPal-Request-Id, or a list of them")(value)


class FingerprintShape(Shape):
    body: Annotated[str, PlainValidator(values.one_of((RAW, CANONICAL_JSON)))] = RAW
    """How the body counts: raw, byte for byte, or canonical-json, by what its JSON says (RFC 8785; what is no JSON
    counts byte for byte); raw by default."""
    ignore: Annotated[
        frozenset[Annotated[str, PlainValidator(keys.ignored)]],
        BeforeValidator(values.listing("a list such as [query:signature, /metadata/sent_at]")),
        AfterValidator(values.at_most(MOST_IGNORED, "are too many; use {} at most")),
    ] = frozenset()
    """What does not count: query:NAME, form:FIELD, or a JSON Pointer (RFC 6901) into a canonical body; nothing by
    default."""
    headers: Annotated[
        frozenset[Annotated[bytes, PlainValidator(values.part_of_fingerprint)]],
        BeforeValidator(values.listing("a list of headers such as [X-Currency]")),
        AfterValidator(values.at_most(MOST_HEADERS, "headers are too many; use {} at most")),
    ] = frozenset()
    """Headers that count as part of the request, besides Host, Content-Type, Content-Encoding and those that select its
    operation, such as SOAPAction; none by default."""
    host: Flag = _POLICY.recipe.host
    """Whether the name in Host counts. An IP address and a port never do; true by default."""


def _scope(value: object) -> object:
    if isinstance(value, Scalar) and value.text == "public":
        return []
    return values.listing("public or a list such as [header:X-Tenant-Id]")(value)


def _keep_only(value: object) -> object:
    if isinstance(value, Scalar) and value.text == "2xx":
        return [Scalar(str(status), Kind.NUMBER) for status in range(200, 300)]
    listed = values.listing("2xx or a list of statuses such as [200, 204]")(value)
    if not listed:
        raise ValueError("names no status, so that nothing would be kept; use 2xx")
    return listed


class PolicyShape(Shape):
    """What a route may say, and `defaults` for all of them. A field of a route replaces the whole field of
    `defaults`."""

    namespace: Annotated[bytes, PlainValidator(values.name), AfterValidator(str.encode)] = _POLICY.namespace
    """Which part of the API a key belongs to; `default` by default, so that the same key on another path is a
    mismatch."""
    guard: Flag = _POLICY.guard
    """Whether requests with a key are made idempotent; true by default."""
    mode: Annotated[Mode, PlainValidator(values.one_of(Mode))] = _POLICY.mode
    """enforce, or shadow: every request goes through unprotected, and the gate counts what it would have done; enforce
    by default."""
    key: KeyShape = KeyShape()
    """Where the key stands and what it must be, as {from: header:NAME, format: uuid}."""
    missing: Annotated[MissingShape, BeforeValidator(_missing)] = _WORDS[_POLICY.missing]
    """What becomes of a request without a key: pass (unprotected, labelled and counted), refuse (400) or derive (one is
    made of what it says, so that a double click runs once); pass by default."""
    send_key: Annotated[
        tuple[Annotated[SendKeyShape, BeforeValidator(_send_key), AfterValidator(_has_field)], ...],
        BeforeValidator(_one_or_more),
        AfterValidator(_each_once),
    ] = ()
    """Fields in which the service gets the key besides, as header:NAME or {to: header:NAME, as: uuid}, or a list; none
    by default."""
    scope: Annotated[
        tuple[Annotated[str, PlainValidator(scopes.scope_source)], ...],
        BeforeValidator(_scope),
        AfterValidator(values.in_any_order),
    ] = ()
    """Whose key it is: a list of header:NAME, cookie:NAME, jwt:CLAIM and client_cert, which keep tenants apart, or
    public; public by default."""
    jwt: JwtShape | None = None
    """Whose tokens prove the claims of `scope`, as {jwks: FILE or URL, issuer: URL, audience: [NAME]}; required with
    jwt:CLAIM."""
    bind: Annotated[
        tuple[Annotated[str, PlainValidator(keys.bind_source)], ...],
        BeforeValidator(values.listing("a list such as [default, header:X-Account]")),
        AfterValidator(values.in_any_order),
    ] = _POLICY.recipe.bind
    """Whose answer it is: sources (as of a key) that a duplicate must repeat, and `default` for Authorization,
    X-API-Key, Api-Key, or else Cookie; [default] by default."""
    ignore_cookies: Annotated[
        frozenset[Annotated[str, PlainValidator(scopes.ignored_cookie)]],
        BeforeValidator(values.listing("a list of cookies such as [lb, TS*]")),
        AfterValidator(values.at_most(MOST_COOKIES, "cookies are too many; use {} at most, or prefixes")),
    ] = frozenset()
    """Cookies that `default` does not bind, as names or prefixes that end in *, besides those of load balancers, bot
    filters and analytics (docs/scopes.md lists them); none by default."""
    fingerprint: FingerprintShape = FingerprintShape()
    """What counts as the same request, as {body: raw or canonical-json, ignore: [query:NAME, form:FIELD, /POINTER],
    headers: [NAME], host: true or false}."""
    window: Duration = _POLICY.window
    """How long an answer is replayed, a duration from when it was stored; 24h by default."""
    doubt_window: Duration | None = None
    """How long a key whose outcome is unknown is remembered, a duration of at least the lease; the longer of the window
    and 7d by default."""
    wait: DurationOrZero = _POLICY.wait
    """How long a duplicate waits for the first to finish, a duration, before it is answered 409; 25s by default."""
    on_doubt: Annotated[OnDoubt, PlainValidator(values.one_of(OnDoubt))] = _POLICY.on_doubt
    """What becomes of a duplicate when nobody knows whether the first ran: hold (409) or rerun (it runs again); hold by
    default."""
    max_attempts: Annotated[int, PlainValidator(values.count(least=1, most=255))] = _POLICY.max_attempts
    """How many times a key may run under `on_doubt: rerun`, 1 to 255; 2 by default."""
    release: Statuses = _POLICY.release
    """Statuses that mean that nothing was done and the key is free again, besides 401, 407, 421, 423, 425, 429, 503
    with Retry-After, and a 307 or 308 that is not followed; none by default. A 307 or 308 in this list, in `hold`,
    `keep` or `keep_only` is not followed."""
    hold: Statuses = _POLICY.hold
    """Statuses after which nobody knows whether it ran, besides 408, 502, 503, 504, 520 to 527, 598, 599, and 600 to
    999; none by default."""
    keep: Statuses = _POLICY.keep
    """Statuses that are answers to be replayed after all, taken out of the two lists above; none by default."""
    keep_only: Annotated[
        frozenset[Annotated[int, PlainValidator(values.status)]] | None, BeforeValidator(_keep_only)
    ] = _POLICY.keep_only
    """The only statuses that are kept and replayed, 2xx or a list: every other complete answer frees the key, and the
    next request with it runs. It stands without the three lists above; none by default."""
    max_request: Annotated[int, PlainValidator(values.size(most=MOST_REQUEST))] = _POLICY.max_request
    """The longest body of a guarded request, a size, beyond which it is refused with 413; 10MiB by default."""
    max_response: Annotated[int, PlainValidator(values.size(most=MOST_RESPONSE))] = _POLICY.max_response
    """The longest body that is kept for replays, a size, beyond which only the fact is remembered; 1MiB by default."""
    stream_types: Annotated[
        tuple[Annotated[str, PlainValidator(values.stream_type)], ...],
        BeforeValidator(values.listing("a list such as [default, application/x-feed]")),
        AfterValidator(values.in_any_order),
    ] = _POLICY.stream_types
    """Content types of answers that are streams, unless they declare their length: they go out piece by piece and are
    not kept. `default` stands for the built-in list (docs/upstreams.md), * for anything, ;NAME for a parameter;
    [default] by default."""
    store_down: Annotated[StoreDown, PlainValidator(values.one_of(StoreDown))] = _POLICY.store_down
    """What becomes of guarded requests while the store is away: refuse (503) or forward (they run, labelled unprotected
    and counted, and a duplicate may run too); refuse by default."""
    store_wait: DurationOrZero = _POLICY.store_wait
    """How long a guarded request waits for a store that is away, a duration; 3s by default."""
    keep_headers: Annotated[
        frozenset[Annotated[bytes, PlainValidator(values.kept_header)]] | None,
        BeforeValidator(values.listing("a list of headers such as [Content-Type]")),
    ] = _POLICY.keep_headers
    """The only headers of an answer that a replay carries, besides Content-Encoding; all of them by default, less
    Set-Cookie, credential challenges (WWW-Authenticate and kin) and those of one connection. Date is always the
    replay's own, unless a signature covers it."""
    drop_headers: Annotated[
        frozenset[Annotated[bytes, PlainValidator(values.dropped_header)]],
        BeforeValidator(values.listing("a list of headers such as [X-Request-Id]")),
    ] = _POLICY.drop_headers
    """Headers of an answer that a replay does not carry; none by default."""


class MatchShape(Shape):
    path: Annotated[str, PlainValidator(values.path)] = "/**"
    """The paths, with * for anything within a segment and a last /** for everything below; /** by default."""
    host: Annotated[str | None, PlainValidator(values.host)] = None
    """The Host, on any port unless it names one, *.NAME for subdomains; any by default."""
    methods: Annotated[
        frozenset[Annotated[bytes, PlainValidator(values.method)]] | None,
        BeforeValidator(values.listing("a list of methods such as [POST]")),
    ] = None
    """The methods; all but TRACE by default."""


class RouteShape(PolicyShape):
    name: Name = ""
    """What people call the route, in logs and metrics; required."""
    match: MatchShape = MatchShape()
    """Which requests it is for, the first route that matches winning; all by default."""
    upstream: Name = ""
    """The name of the upstream that serves it; required."""

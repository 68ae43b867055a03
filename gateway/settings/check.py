"""From what the file says to Settings: every fault is gathered, and only a file without any is built.

A value that cannot be read is taken out, so that what depends on the others can still be checked; what
depends on it is then left unsaid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from ..core.fingerprint import RAW, Recipe
from ..core.host import beyond_site
from ..core.keyed import Derive
from ..core.keyform import SF_STRING, KeyRule
from ..core.policy import DAY, Match, Policy, Route, RouteTable
from ..core.scope import CLIENT_CERT
from ..core.sent import SendKey
from ..core.source import Place
from . import addresses, extras, listeners, scopes, stores, tls, values
from .addresses import Address
from .faults import Fault, Faults, Loc, short
from .fields import Shape
from .listeners import Listener, ListenerShape, ListenerTls
from .model import SHAPES, FileShape, StoreShape, TlsShape, UpstreamShape, shape_at
from .policy import KeyShape, PolicyShape, RouteShape, missing_of
from .result import Overrides, Settings, TlsSettings, UpstreamSettings
from .source import Kind, Scalar, Source, Value
from .units import show_duration, show_size
from .unknown import unknown

T = TypeVar("T")

_JWT_EXAMPLE = "{jwks: https://id.example/.well-known/jwks.json, issuer: https://id.example/}"


def settings(source: Source, *, name: str, environ: Mapping[str, str], overrides: Overrides) -> Settings:
    """The settings of a file. Raises Faults."""
    # An element of a list stays until the others have been looked at.
    for loc in [loc for loc in source.broken if isinstance(loc[-1], str)]:
        source.prune(loc)
    file = _shaped(source)
    for loc in list(source.broken):
        source.prune(loc)
    check = _Check(source, file, overrides)
    check.top(environ)
    check.tables()
    routes = [check.route(n, shape) for n, shape in enumerate(check.file.routes)]
    check.order(routes)
    if source.faults:
        raise Faults(name, source.faults)
    return check.built(routes)


def _shaped(source: Source) -> FileShape:
    """The file in its shape, less what does not fit, of which each is a fault."""
    while True:
        try:
            return FileShape.model_validate(source.data)
        except ValidationError as error:
            wrong = [(*source.find(each["loc"]), each) for each in error.errors(include_url=False)]
            for loc, value, each in wrong:
                if loc not in source.broken:
                    source.fault(loc, _in_our_words(source, loc, value, each))
            for loc, _, _ in wrong:
                source.prune(loc)


def _in_our_words(source: Source, loc: Loc, value: Value, error: Mapping[str, Any]) -> str:
    """Report what pydantic found to the person who wrote the file. The field that an unknown one most likely means is
    not known to be absent."""
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "extra_forbidden" | "unexpected_keyword_argument":
            message, meant = unknown(str(loc[-1]), value, shape_at(loc[:-1]))
            if meant:
                source.unsure.add((*loc[:-1], meant))
            return message
        case "list_type":
            return f"expected a list, found {values.found(value)}"
        case "model_type" | "dict_type" | "dataclass_type":
            hint, shape = "", shape_at(loc)
            if isinstance(value, Scalar) and value.kind is Kind.TEXT and (alone := SHAPES[shape][1]):
                kind = "header:" if shape is KeyShape and ":" not in value.text else ""
                hint = f"; use {{{alone}: {kind}{value.text}}}"
            return f"expected a mapping, found {values.found(value)}{hint}"
    raise AssertionError(f"no words for {error['type']} at {loc}")


class _Check:
    """What several fields, or the fields and the command line, must agree on."""

    def __init__(self, source: Source, file: FileShape, overrides: Overrides) -> None:
        self.source = source
        self.file = file
        self.service = self._either("service", overrides.service, _name, file.service)
        self.listen = self._listeners(overrides.listen)
        self.admin = self._either("admin", overrides.admin, Address.parse, file.admin.listen)
        self.store = self._either("store", overrides.store, stores.store, self._store(file.store))
        self.overrides = overrides
        self.token = file.admin.token
        self.upstreams = {key: self._upstream(key, shape) for key, shape in file.upstreams.items()}

    def _either(self, option: str, typed: str | None, parse: Callable[[str], T], otherwise: T) -> T:
        """What the command line says, or else the file."""
        if typed is None:
            return otherwise
        try:
            return parse(typed)
        except ValueError as error:
            self.source.faults.append(Fault(f"--{option}", None, str(error)))
            self.source.broken.add((option,))
            return otherwise

    def _store(self, shape: StoreShape) -> str:
        """The store's URL, with what stands in fields beside it behind its `?`."""
        source, url = self.source, shape.url
        if any(loc[0] == "store" for loc in source.broken):
            return url
        beside = [field for field in StoreShape.model_fields if field in shape.model_fields_set and field != "url"]
        if "store" in source.data and "url" not in shape.model_fields_set:
            self.source.wrong(("store", "url"), "is missing; use url: redis://HOST:6379/0")
            return url
        try:
            stores.check_scheme(url)
            for field in beside:
                try:
                    url = stores.with_option(url, field, getattr(shape, field))
                except ValueError as error:
                    self.source.wrong(("store", field), str(error))
            return stores.store(url) if source.sound(*(("store", field) for field in beside)) else shape.url
        except ValueError as error:
            self.source.wrong(("store",) if beside else source.find(("store", "url"))[0], str(error))
            return shape.url

    def _upstream(self, name: str, shape: UpstreamShape) -> UpstreamSettings:
        url, secure = shape.url, self._tls(name, shape)
        timing = shape.connect, shape.timeout, shape.late
        return UpstreamSettings(name, url.host, url.port, *timing, shape.connections, url.path, secure)

    def _listeners(self, typed: str | None) -> tuple[Listener, ...]:
        """Those of the file; `typed` takes the place of the first one's address, and nothing else of it."""
        shapes = self.file.listen
        first = self._either("listen", typed, listeners.parse, shapes[0].address)
        made = [
            Listener(first if n == 0 else shape.address, self._listener_tls(n, shape), shape.mode)
            for n, shape in enumerate(shapes)
        ]
        for n, shape in enumerate(shapes):
            loc = self._listen_loc(n)
            if "address" not in shape.model_fields_set and "listen" in self.source.data and not (typed and n == 0):
                if self.source.sound((*loc, "address")):
                    self.source.wrong((*loc, "address"), "is missing; use address: 127.0.0.1:8080")
            elif any(made[n].address.overlaps(earlier.address) for earlier in made[:n]):
                self.source.wrong(loc, f"{made[n].address} is listened on already; remove one of the two")
            elif "mode" in shape.model_fields_set and isinstance(made[n].address, Address):
                self.source.wrong((*loc, "mode"), "is for a Unix socket; remove it, or use unix:/PATH")
        return tuple(made)

    def _listen_loc(self, n: int) -> Loc:
        """Where the listener stands: in the list, or alone."""
        return ("listen", n) if isinstance(self.source.data.get("listen"), list) else ("listen",)

    def _listener_tls(self, n: int, shape: ListenerShape) -> ListenerTls | None:
        given, loc = shape.tls, (*self._listen_loc(n), "tls")
        if given is None:
            return None
        if given.cert is None:
            if not any(broken[: len(loc)] == loc for broken in self.source.broken):
                self.source.wrong(loc, "the gate needs a certificate; use {cert: FILE, key: FILE}")
            return None
        if given.client_ca is None and "clients" in given.model_fields_set:
            self.source.wrong((*loc, "clients"), "says nothing without client_ca: FILE, which signs their certificates")
            return None
        try:
            context = tls.serving(
                given.cert,
                given.key,
                minimum=given.minimum,
                client_ca=given.client_ca,
                required=given.clients == "required",
            )
        except ValueError as error:
            self.source.wrong(loc, str(error))
            return None
        return ListenerTls(context, **given.model_dump())

    def _tls(self, name: str, shape: UpstreamShape) -> TlsSettings | None:
        source, loc = self.source, ("upstreams", name, "tls")
        if not shape.url.tls:
            if shape.tls is not None and source.sound(loc, ("upstreams", name, "url")) and shape.url.host:
                secure = "https://HOST:PORT"
                source.fault(loc, f"is for a service that speaks TLS; use url: {secure}, or remove it")
            return None
        given = shape.tls or TlsShape()
        if given.ca is not None and not given.verify:
            message = "is for what `verify: false` leaves undone; remove one of the two"
            source.fault((*loc, "ca"), message)
            return None
        try:
            context = tls.context(given.ca, verify=given.verify, protocol="http/1.1")
        except ValueError as error:
            source.fault((*loc, "ca"), str(error))
            return None
        if given.key is not None and given.cert is None:
            source.fault((*loc, "key"), "is the key of a certificate; write cert: FILE beside it")
            return None
        if given.cert is not None:
            try:
                tls.identify(context, given.cert, given.key)
            except ValueError as error:
                source.fault((*loc, "cert"), str(error).removeprefix("cert, key: "))
                return None
        return TlsSettings(given.server_name or shape.url.host, given.ca, given.verify, given.cert, context)

    def top(self, environ: Mapping[str, str]) -> None:
        source, file = self.source, self.file
        for each in self.listen if source.sound(("listen",), ("admin", "listen")) else ():
            if each.address.overlaps(self.admin):
                message = f"the admin listener cannot share {each.address} with the gate; use another port"
                source.fault(("admin", "listen"), message)
        self._cors()
        self._token()
        self._audit()
        self._tracing()
        if any(loc[0] == "store" for loc in source.broken):
            return
        scheme = addresses.scheme_of(self.store)
        line = source.line(("store",)) if self.overrides.store is None else None
        named = self.overrides.service is not None or "service" in source.data
        if scheme in stores.REDIS and not named and source.sound(("service",)):
            message = (
                "is missing, and a shared store needs it: two services on one Redis, called in a chain with "
                "one propagated key, would replay each other's answers; write service: NAME, or give "
                "--service NAME"
            )
            source.faults.append(Fault("service", line, message))
        alone = scheme in ("memory", "sqlite") and file.store_scope is None and source.sound(("store_scope",))
        if alone and "KUBERNETES_SERVICE_HOST" in environ:
            message = (
                "this store protects one gateway; a second instance of the service needs redis. On "
                "Kubernetes use store: redis://HOST:6379/0, or write store_scope: single where there will "
                "only ever be one"
            )
            source.faults.append(Fault("store_scope", line, message))

    def _token(self) -> None:
        """Reads the token's file, where it has one."""
        admin, loc = self.file.admin, ("admin", "token_file")
        if admin.token_file is None or not self.source.sound(loc, ("admin", "token")):
            return
        if admin.token:
            self.source.fault(loc, "says what `token` says too; remove one of the two")
            return
        try:
            self.token = values.token_text(Path(admin.token_file).read_text("utf-8").strip())
        except OSError as error:
            self.source.fault(loc, f"{short(admin.token_file)} cannot be read: {error.strerror}")
        except ValueError as error:
            why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            self.source.fault(loc, f"{short(admin.token_file)} holds no token: {why}")

    def _audit(self) -> None:
        path, loc = self.file.admin.audit, ("admin", "audit")
        if path is None or not self.source.sound(loc):
            return
        folder = Path(path).absolute().parent
        if Path(path).is_dir():
            self.source.fault(loc, f"{short(path)} is a folder; name a file in it")
        elif not folder.is_dir():
            self.source.fault(loc, f"the folder of {short(path)} is not there; make it, or name another file")
        elif not os.access(path if Path(path).exists() else folder, os.W_OK):
            self.source.fault(loc, f"{short(path)} cannot be written by this user; name another file")

    def _tracing(self) -> None:
        """Where traces are to be sent, what sends them must be there."""
        source, shape = self.source, self.file.tracing
        if shape is None or not source.sound(("tracing",)):
            return
        if not shape.endpoint and source.sound(("tracing", "endpoint")):
            source.fault(("tracing", "endpoint"), "is missing; use endpoint: http://collector:4318/v1/traces")
        elif said := extras.missing("otel"):
            source.fault(("tracing",), said)

    def _cors(self) -> None:
        source, cors = self.source, self.file.cors
        if cors is None or any(loc[:2] == ("cors", "origins") for loc in source.broken):
            return
        if "origins" not in cors.model_fields_set:
            source.fault(("cors", "origins"), "is missing; use origins: [https://shop.example]")
        elif not cors.origins:
            source.fault(("cors", "origins"), "names no origin; use [https://shop.example], or remove `cors`")
        elif b"*" in cors.origins and len(cors.origins) > 1:
            source.fault(("cors", "origins"), '`*` is every origin, so it stands alone; use ["*"], or name them')

    def tables(self) -> None:
        source, file = self.source, self.file
        if not file.upstreams and source.sound(("upstreams",)):
            source.fault(("upstreams",), "no upstreams; write upstreams: {NAME: http://HOST:PORT}")
        if not file.routes and source.sound(("routes",)):
            example = f"{{name: all, upstream: {next(iter(file.upstreams), 'NAME')}}}"
            source.fault(("routes",), f"no routes, so every request would be a 404; write routes: [{example}]")
        for key, shape in file.upstreams.items():
            loc = ("upstreams", key)
            try:
                _name(key)
            except ValueError as error:
                source.fault(loc, str(error))
            self._required(loc, shape, url="http://HOST:PORT")

    def _required(self, loc: Loc, shape: Shape, **examples: str) -> None:
        for field, example in examples.items():
            if field not in shape.model_fields_set and self.source.sound((*loc, field)):
                self.source.fault((*loc, field), f"is missing; use {field}: {example}")

    def route(self, n: int, shape: RouteShape) -> Route:
        """The route, with the policy that its own fields, `defaults` and its upstream make."""
        source, loc = self.source, ("routes", n)
        self._required(loc, shape, name="payments", upstream=next(iter(self.upstreams), "NAME"))
        known = self.upstreams and source.sound(("upstreams",), (*loc, "upstream")) and shape.upstream
        if known and shape.upstream not in self.upstreams:
            meant = get_close_matches(shape.upstream, self.upstreams, 1, 0.5)
            hint = f"did you mean `{meant[0]}`?" if meant else f"there are {', '.join(self.upstreams)}"
            source.fault((*loc, "upstream"), f"no upstream is called `{shape.upstream}`; {hint}")
        policy = _policy(shape, self.file.defaults, self.upstreams.get(shape.upstream), self.file.margin)
        self._doubt_window(n, shape, policy)
        self._apart(n, shape, policy, "release", "hold", "keep")
        self._keep_only(n, shape, policy)
        self._apart(n, shape, policy, "keep_headers", "drop_headers")
        self._strings(n, shape, policy)
        self._buffers(n, shape, policy)
        self._scope(n, shape, policy)
        self._ignore(n, shape, policy)
        match = Match(shape.match.path, shape.match.host, shape.match.methods)
        return Route(shape.name, shape.upstream, match, policy)

    def place(self, n: int, shape: RouteShape, field: str) -> Loc:
        """Where a field of a route's policy is written: in the route, in `defaults`, or nowhere."""
        mine = ("routes", n, field)
        if field in shape.model_fields_set or not self.source.sound(mine):
            return mine
        shared = ("defaults", field)
        return shared if self._written(shared) or not self.source.sound(shared) else mine

    def _written(self, loc: Loc) -> bool:
        return self.source.find(loc)[0] == loc

    def _doubt_window(self, n: int, shape: RouteShape, policy: Policy) -> None:
        upstream = ("upstreams", shape.upstream)
        place = self.place(n, shape, "doubt_window")
        timing = ((*upstream, "timeout"), (*upstream, "late"), self.place(n, shape, "window"))
        known = shape.upstream in self.upstreams and self.source.sound(place, *timing)
        if known and policy.doubt_window < policy.lease:
            lease = show_duration(policy.lease)
            self.source.fault(
                place,
                f"{show_duration(policy.doubt_window)} is shorter than the lease of {lease} (timeout, late and "
                f"{show_duration(policy.margin)} of `{shape.upstream}`), in which a request may still run; "
                f"use {lease} or more",
            )

    def _apart(self, n: int, shape: RouteShape, policy: Policy, *lists: str) -> None:
        """Nothing may stand in two of these lists."""
        for first, second in combinations(lists, 2):
            both = sorted((getattr(policy, first) or frozenset()) & getattr(policy, second))
            named = ", ".join(each.decode() if isinstance(each, bytes) else str(each) for each in both)
            message = f"{named} cannot be both in {first} and in {second}; take it out of one"
            if both:
                self._latest([self.place(n, shape, first), self.place(n, shape, second)], message)

    def _keep_only(self, n: int, shape: RouteShape, policy: Policy) -> None:
        beside = [name for name in ("release", "hold", "keep") if getattr(policy, name)]
        if beside and policy.keep_only is not None:
            message = f"keep_only cannot stand beside {' and '.join(beside)}: it says what every status means"
            message = f"{message}; use {', '.join(f'{name}: []' for name in beside)}"
            self._latest([self.place(n, shape, name) for name in ("keep_only", *beside)], message)

    def _latest(self, places: list[Loc], message: str) -> None:
        """A fault of sound places that do not agree, at the one that is written last."""
        if self.source.sound(*places):
            self.source.fault(max(places, key=lambda place: self.source.line(place) or 0), message)

    def _strings(self, n: int, shape: RouteShape, policy: Policy) -> None:
        place = self.place(n, shape, "key")
        elsewhere = [str(source) for source in policy.sources if source.place is not Place.HEADER]
        if policy.key_rule.format == SF_STRING and elsewhere and self.source.sound(place):
            message = f"sf-string is how a field spells a key, and {elsewhere[0]} is none; use uuid, ulid or /PATTERN/"
            self.source.fault((*place, "format"), message)

    def _buffers(self, n: int, shape: RouteShape, policy: Policy) -> None:
        limit = ("limits", "buffers")
        total = self.file.limits.buffers
        for field, value in (("max_request", policy.max_request), ("max_response", policy.max_response)):
            place = self.place(n, shape, field)
            if value <= total or not self.source.sound(place, limit):
                continue
            if self._written(place):
                message = f"more than limits.buffers, which all bodies share; use {show_size(total)} at most"
                self.source.fault(place, message)
            else:
                message = f"less than the {field} of a route; use {show_size(value)} or more"
                self.source.fault(limit, message)

    def _scope(self, n: int, shape: RouteShape, policy: Policy) -> None:
        """What a scope is proven by must be there, and be of use."""
        source, scope, jwt = self.source, self.place(n, shape, "scope"), self.place(n, shape, "jwt")
        if not source.sound(scope):
            return
        if CLIENT_CERT in policy.scope and not self._certificates():
            message = "no listener asks clients for certificates; give one tls: {cert: FILE, client_ca: FILE}"
            source.fault(scope, message)
        claims = [each.decode() for each in policy.scope if each.startswith(b"jwt:")]
        if not source.sound(jwt) or any(loc[: len(jwt)] == jwt for loc in source.broken):
            return
        tokens = policy.tokens
        if tokens is not None and (said := extras.missing("jwt")):
            source.fault(jwt, said)
            return
        if tokens is None:
            if claims:
                message = f"{claims[0]} needs `jwt`, which says whose tokens prove it; write jwt: {_JWT_EXAMPLE}"
                source.fault(scope, message)
            return
        if not claims and jwt[0] == "routes":
            source.fault(jwt, "nothing reads it; write scope: [jwt:sub] too, or remove it")
        for field, value in (("jwks", tokens.jwks), ("issuer", tokens.issuer)):
            if not value:
                source.fault((*jwt, field), f"is missing; write jwt: {_JWT_EXAMPLE}")
        if not tokens.algorithms:
            source.fault((*jwt, "algorithms"), "names none, so that no token would verify; use [RS256]")
        for field, fault in scopes.unusable(tokens) if tokens.jwks else ():
            source.fault((*jwt, field), fault)

    def _certificates(self) -> bool:
        """Whether a listener asks clients for certificates; one with faults may."""
        return any(
            listener.tls is not None and listener.tls.client_ca is not None for listener in self.listen
        ) or not self.source.sound(("listen",))

    def _ignore(self, n: int, shape: RouteShape, policy: Policy) -> None:
        place = (*self.place(n, shape, "fingerprint"), "ignore")
        if policy.recipe.pointers and policy.recipe.body == RAW and self.source.sound(place):
            message = "a JSON Pointer leads into a canonical body only; write body: canonical-json beside it"
            self.source.fault(place, message)

    def order(self, routes: list[Route]) -> None:
        """Names that stand twice, and routes that an earlier one leaves nothing to."""
        names: dict[str, int] = {}
        for n, route in enumerate(routes):
            loc: Loc = ("routes", n)
            first = names.setdefault(route.name, n)
            if route.name and first != n:
                line = self.source.line(("routes", first, "name"))
                message = f"`{route.name}` is the name of routes[{first}] too, on line {line}; use another"
                self.source.fault((*loc, "name"), message)
            if not self.source.whole((*loc, "match")):
                continue
            for earlier in range(n):
                if self.source.whole(("routes", earlier, "match")) and _covers(routes[earlier].match, route.match):
                    place = self.source.find((*loc, "match"))[0]
                    name = f" (`{routes[earlier].name}`)" if routes[earlier].name else ""
                    same = routes[earlier].match == route.match
                    advice = "remove one of them" if same else "put this route before it"
                    message = f"can never match: routes[{earlier}]{name} takes all of it; {advice}"
                    self.source.fault(place, message)
                    break

    def built(self, routes: list[Route]) -> Settings:
        as_written = {name: getattr(self.file, name) for name in _AS_WRITTEN}
        return Settings(
            **as_written,
            service=self.service,
            listen=self.listen,
            admin=self.admin,
            admin_token=self.token,
            audit=self.file.admin.audit,
            store=self.store,
            upstreams=MappingProxyType(self.upstreams),
            routes=RouteTable(routes),
            origins=None if self.file.cors is None else self.file.cors.origins,
            grace=max(route.policy.lease for route in routes) if self.file.grace is None else self.file.grace,
        )


#: Fields that are settings as they stand in the file.
_AS_WRITTEN = (
    "store_scope", "store_check", "on_amnesia", "secret", "prefix", "limits", "log", "upgrades", "trusted_proxies",
    "tracing", "policy_path", "startup_wait",
)  # fmt: skip


def _name(text: str) -> str:
    return values.name(Scalar(text))


#: Fields of a route that the core reads as they stand.
_OF_POLICY = {field.name for field in fields(Policy)} & PolicyShape.model_fields.keys()
_OF_POLICY -= {"missing", "send_key", "scope", "doubt_window"}


def _policy(route: RouteShape, defaults: PolicyShape, upstream: UpstreamSettings | None, margin: int) -> Policy:
    own = route.model_fields_set
    said = {field: getattr(route if field in own else defaults, field) for field in PolicyShape.model_fields}
    shape, plain = PolicyShape.model_construct(**said), Policy()
    sources = shape.key.sources or ()
    in_field = len(sources) == 1 and sources[0].place is Place.HEADER
    return Policy(
        **{field: said[field] for field in _OF_POLICY},
        headers=(sources[0].name.encode(),) if in_field else () if sources else plain.headers,
        sources=() if in_field else sources,
        key_rule=KeyRule(shape.key.form, shape.key.min_length, shape.key.weak),
        missing=missing_of(shape.missing),
        derive=Derive(shape.missing.derive.parts, shape.missing.derive.window),
        send_key=tuple(SendKey(each.to or b"", each.form) for each in shape.send_key),
        scope=tuple(each.encode() for each in shape.scope),
        tokens=None if shape.jwt is None else shape.jwt.tokens(),
        recipe=Recipe(
            shape.bind,
            tuple(sorted(shape.fingerprint.headers)),
            shape.fingerprint.body,
            tuple(sorted(shape.fingerprint.ignore)),
            shape.fingerprint.host,
            beyond_site(route.match.host or ""),
            tuple(sorted(shape.ignore_cookies)),
        ),
        doubt_window=max(shape.window, 7 * DAY) if shape.doubt_window is None else shape.doubt_window,
        timeout=upstream.timeout if upstream else plain.timeout,
        late=upstream.late if upstream else plain.late,
        margin=margin,
    )


def _covers(earlier: Match, later: Match) -> bool:
    """Whether nothing is left for `later`. Says so only where the two spellings show it."""
    stem = earlier.path.removesuffix("/**")
    below = earlier.path.endswith("/**") and (later.path == stem or later.path.startswith(f"{stem}/"))
    return (
        (below or earlier.path == later.path)
        and earlier.host in (None, later.host)
        and (earlier.methods is None or (later.methods is not None and later.methods <= earlier.methods))
    )

"""The looks that a request is given before anything is claimed, in the order that decides which error is seen.

Head limits and framing → route → key and scope in the head → Content-Length over the limit → caps (the
body is reserved against the total) → 100 Continue → body → fingerprint. The server calls `look` with a
head and `ask` with a whole body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..core.decide import Guard, Later, Pass, PassReason, Refuse, admit, identify
from ..core.fields import Fields, Shape
from ..core.fingerprint import CANONICAL_JSON, counted, fingerprint, selects_account
from ..core.key import DERIVED, Key, ScopePart, Unreadable, plain_text, record_name, shadowed
from ..core.keyform import weakness
from ..core.limit import Limit
from ..core.memo import make_room
from ..core.message import Request, listed
from ..core.policy import AMBIGUOUS, Missing, Mode, Route, RouteTable
from ..core.problem import Problem, Refusal
from ..core.scope import Prove, Tokens, nobody, shown
from ..core.sent import with_key
from ..core.source import Reader
from ..core.values import value
from ..engine.request import Identified
from .authority import is_host
from .budget import Budget
from .fit import Fit
from .intermediary import one_hop_less, origin_form, with_host
from .published import Asterisk, Published, Told


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a head may be. Sizes in bytes."""

    head: int = 64 << 10
    target: int = 16 << 10
    fields: int = 200


@dataclass(slots=True)
class Head:
    """A request's head as it was read. `size`: its bytes, about; 0 where they are few. `length` is None where none was
    declared."""

    method: bytes
    target: bytes
    fields: Fields
    version: str
    size: int
    #: SHA-256 of the client's certificate in DER, where its connection showed one.
    certificate: bytes = b""
    #: Whether it came over TLS.
    secure: bool = False
    length: int | None = None
    chunked: bool = False
    expects: bool = False
    host: bytes = b""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


@value
class Guarded:
    """It goes on as a guarded request, once its body is there; or its body decides that (`Later`)."""

    route: Route
    guard: Guard | Later


@value
class Passing:
    """It streams through. `would`: what became of it if its route were not in shadow."""

    route: Route
    reason: PassReason
    would: Guard | Later | Refuse | None = None


_ASTERISK = Asterisk()


@value
class Refused:
    """It is answered with a problem. `route` where one was found; `weak` where that is why its key was refused."""

    refusal: Refusal
    route: Route | None = None
    weak: str = ""


Way = Guarded | Passing | Refused | Told


class Framing:
    """What the names of a head say of its framing: where its Host, its length, its Connection and its coding stand (the
    last of each; -1 where there is none), and whether there is nothing else to be looked at."""

    __slots__ = ("_alike", "coding", "connection", "host", "length", "plain")

    def __init__(self, shape: Shape) -> None:
        hosts, lengths, told, codings = (shape.at.get(name, ()) for name in _FRAMES)
        self.host = hosts[-1] if hosts else -1
        self.length = lengths[-1] if lengths else -1
        self.connection = told[-1] if told else -1
        self.coding = codings[-1] if codings else -1
        self._alike = (
            len(hosts) == 1 and len(told) < 2 and len(codings) + len(lengths) < 2 and b"expect" not in shape.at
        )
        self.plain = self._alike and not told and not codings

    def usual(self, values: Sequence[bytes]) -> bool:
        """Whether its Connection says nothing but that it stays, its coding is `chunked`, and there is nothing else to
        be looked at."""
        return (
            self._alike
            and (self.connection < 0 or values[self.connection] in _STAYS)
            and (self.coding < 0 or values[self.coding] == b"chunked")
        )


_FRAMES = (b"host", b"content-length", b"connection", b"transfer-encoding")
#: How clients say so.
_STAYS = frozenset((b"keep-alive", b"Keep-Alive"))


@dataclass(slots=True, eq=False)
class Met:
    """What is said of every head with these names, this method and target, and this Host, whose other fields say
    nothing of where it goes but by their names: it passes; or it has one key, which stands at `key`."""

    host: bytes
    route: Route
    passes: Passing | None
    key: int = -1

    def key_in(self, values: Sequence[bytes]) -> Key | None:
        """The key of a request that is guarded, if it is spelled as most are, breaks no rule of the route, and shows
        no weakness. None: `admit` must say."""
        text, rule = plain_text(values[self.key]), self.route.policy.key_rule
        if text is None or (rule.in_quotes and text is values[self.key]):
            return None
        if not rule.plain:
            text = text if rule.format.canonical is None else rule.format.canonical(text)
            if rule.fault(text):
                return None
        return Key(text) if weakness(text) is None else None


#: Names, method, target, Host and version.
_Like = tuple[Shape, bytes, bytes, bytes, str]
#: How many such heads are remembered, of at most so many bytes of target and Host.
_MET = 1024
_REMEMBERED = 512
#: Names of fields that are remembered as met before.
_KNOWN = 1000

#: Longest body, in bytes, that is parsed on the loop where a route parses it: half a millisecond of JSON.
_PARSED_HERE = 32 << 10
#: Bytes from which on a body is made canonical aside, and from which on it is digested there: two milliseconds, about.
CANONICAL_HERE = 16 << 10
_DIGESTED_HERE = 1 << 20
#: Methods that count the hops.
_TRACED = frozenset((b"OPTIONS", b"TRACE"))


class Door:
    """Decides where a request goes, by its head; and makes a guarded request of a whole one."""

    def __init__(
        self,
        table: RouteTable,
        *,
        service: bytes,
        secret: bytes = b"",
        bounds: Bounds | None = None,
        budget: Budget,
        hint: Callable[[str], None] = lambda _: None,
        unfit: Callable[[str, str], None] = lambda route, credential: None,
        published: Published | None = None,
        provers: Mapping[Tokens, Prove] | None = None,
    ) -> None:
        self.table = table
        self.service = service
        self.secret = secret
        self.bounds = bounds or Bounds()
        self.budget = budget
        self._hint = hint
        self._fit = Fit(hint, unfit)
        self._published = published
        self._provers = provers or {}
        self._known: set[bytes] = set()
        self._shapes: set[Shape] = set()
        self._met: dict[_Like, Met] = {}

    def look(self, head: Head) -> Way:
        """Where the request goes."""
        fields = head.fields
        names = fields.shape.made(Framing, Framing)
        if head.size > self.bounds.head or not (names.plain or names.usual(fields.values)):
            return self._look(head, names)
        like = fields.shape, head.method, head.target, fields.values[names.host], head.version
        met = self._met.get(like)
        if met is None:
            way = self._look(head, names)
            self._remember(like, head, way)
            return way
        head.host = met.host
        if names.length >= 0:
            head.length = int(fields.values[names.length])
        head.chunked = names.coding >= 0
        if met.passes is not None:
            return met.passes
        key, scope = met.key_in(fields.values), scope_of(met.route, fields, head.certificate)
        if key is None or isinstance(scope, Refusal):
            return self._look(head, names)
        if head.length is not None and head.length > met.route.policy.max_request:
            return Refused(too_large(met.route.policy.max_request), met.route)
        return Guarded(met.route, Guard(key, scope))

    def recall(self, method: bytes, target: bytes, fields: Fields) -> Met | None:
        """What `look` remembers of such a head in HTTP/1.1."""
        values, names = fields.values, fields.shape.made(Framing, Framing)
        if not (names.plain or names.usual(values)):
            return None
        return self._met.get((fields.shape, method, target, values[names.host], "1.1"))

    def _remember(self, like: _Like, head: Head, way: Way) -> None:
        """What was said of a plain head holds for others, unless its fields decide by what they say."""
        _, method, target, host, _ = like
        if not target.startswith(b"/") or method in _TRACED or len(target) + len(host) > _REMEMBERED:
            return
        if isinstance(way, Passing):
            met = None if way.would is not None or way.route.policy.sources else Met(head.host, way.route, way)
        elif isinstance(way, Guarded) and isinstance(way.guard, Guard):
            policy, at = way.route.policy, head.fields.shape.at
            places = [place for name in policy.headers for place in at.get(name, ())]
            reads_more = policy.sources or policy.tokens is not None  # a token is verified once, which takes long
            met = None if reads_more or len(places) != 1 else Met(head.host, way.route, None, places[0])
        else:
            met = None
        if met is not None:
            make_room(self._met, _MET)
            self._met[like] = met

    def _look(self, head: Head, names: Framing) -> Way:
        fault = self._framing(head, names)
        if fault is not None:
            return Refused(fault)
        if self._published is not None and self._published.asks(head.method, head.target):
            return self._published
        if head.target == b"*":
            return _ASTERISK
        route = self.table.match(head.method, head.host, head.target)
        if route is None:
            return Refused(Refusal(Problem.NO_ROUTE))
        if route is AMBIGUOUS or not isinstance(route, Route):
            return Refused(_malformed("The path reads two ways, and they lead to different routes."))
        if head.method in _TRACED and (fault := self._traced(head, route)) is not None:
            return Refused(fault, route)
        policy = route.policy
        prove = nobody if policy.tokens is None else self._provers.get(policy.tokens, nobody)
        verdict = admit(head.method, head.fields, policy, head.target, certificate=head.certificate, prove=prove)
        match verdict:
            case Pass(reason):
                return Passing(route, reason)
            case _ if policy.mode is Mode.SHADOW:
                return Passing(route, PassReason.SHADOW, verdict)
            case Refuse(refusal, weak):
                return Refused(refusal, route, weak or "")
            case Guard() | Later():
                if head.length is not None and head.length > policy.max_request:
                    return Refused(too_large(policy.max_request), route)
                return Guarded(route, verdict)

    def meet(self, fields: Fields, route: Route) -> None:
        """Look at what a guarded request carries that its route does not go by."""
        if fields.shape not in self._shapes:
            self._meet(fields.shape, route)
        self._fit.look(fields, route)

    def takes_long(self, route: Route, body: bytes) -> bool:
        """Whether `ask` reads so much that the loop should not wait for it."""
        policy, size = route.policy, len(body)
        if policy.recipe.body == CANONICAL_JSON:
            return size >= CANONICAL_HERE
        # A multipart body begins so, unless its writer has put a preamble there.
        parses = policy.parses_body or bool(policy.recipe.form_fields) or body.startswith(b"--")
        return size >= _DIGESTED_HERE or (parses and size > _PARSED_HERE)

    def ask(
        self,
        head: Head,
        body: bytes,
        peer: str,
        way: Guarded,
        hop: str = "",
        secure: bool = False,
        *,
        shadow: bool = False,
    ) -> Identified | Passing | Refused:
        """The guarded request, whole; or where it goes instead, now that its body has been read. `peer` asked, `hop`
        handed it on, over TLS if `secure`; in `shadow` its name is one that no gate which enforces finds. May run in
        a thread."""
        request = Request(head.method, head.target, head.fields, body, peer, hop, secure)
        route, guard = way.route, way.guard
        policy = route.policy
        if isinstance(guard, Guard) and not policy.bound:
            print_of = fingerprint(request, policy.recipe, secret=self.secret, certificate=head.certificate)
        else:
            reader = Reader(request)
            elsewhere: dict[str, bytes | None] = {}
            for source in policy.bound:
                found = reader.read(source)
                if isinstance(found, Unreadable):
                    why = f"What its key is bound to, {source}, cannot be read: {found.why}."
                    return Refused(Refusal(Problem.SCOPE_MISSING, why), route)
                elsewhere[str(source)] = found
            derives = isinstance(guard, Later) and policy.missing is Missing.DERIVE
            content = counted(request, policy.recipe) if derives else None  # a derived key is made of it too
            print_of = fingerprint(
                request,
                policy.recipe,
                secret=self.secret,
                certificate=head.certificate,
                elsewhere=elsewhere,
                content=content,
            )
            if isinstance(guard, Later):
                credentials = print_of.credentials
                match identify(
                    request, policy, guard, reader, credentials=credentials, content=content, secret=self.secret
                ):
                    case Pass(reason):
                        return Passing(route, reason)
                    case Refuse(refusal, weak):
                        return Refused(refusal, route, weak or "")
                    case Guard() as guard:
                        pass
        origin = shadowed(guard.origin) if shadow else guard.origin
        name = record_name(self.service, policy.namespace, guard.scope, guard.key, origin=origin, secret=self.secret)
        if policy.send_key:
            request = request._replace(fields=with_key(head.fields, policy.send_key, guard.key, name))
        if guard.origin == DERIVED:
            route = route.derived
        return Identified(request, route, guard.key, name, print_of, guard.weak or "")

    def _meet(self, shape: Shape, route: Route) -> None:
        """Names that guarded requests had not had together before: each that is new is looked at."""
        make_room(self._shapes, _KNOWN)
        self._shapes.add(shape)
        for field in shape.names:
            if field not in self._known and len(self._known) < _KNOWN:
                self._known.add(field)
                self._point_out(field, route)

    def _point_out(self, field: bytes, route: Route) -> None:
        """A field that looks like an account selector and is not bound is pointed out, once."""
        policy, name = route.policy, field.lower()
        if selects_account(field) and name not in policy.recipe.fields and b"header:" + name not in policy.scope:
            shown = field.decode("latin-1")
            self._hint(
                f"requests of route {route.name} carry {shown}, which looks like an account selector: if it does, say "
                f"scope: [header:{shown}] or bind: [default, header:{shown}], or one account's answer may be given to "
                "another that repeats its key"
            )

    def _framing(self, head: Head, names: Framing) -> Refusal | None:
        """What llhttp lets through and HTTP does not (RFC 9112 §3.2, §6.1, §6.3), and our limits.

        Fills in the head's framing.
        """
        bounds = self.bounds
        if names.length >= 0:
            head.length = int(head.fields.values[names.length])
        if len(head.target) > bounds.target:
            return Refusal(
                Problem.TARGET_TOO_LONG,
                f"It has {len(head.target)} bytes; {bounds.target} is the most.",
                limit=Limit.TARGET,
            )
        fields = head.fields
        if head.size > bounds.head or len(fields.values) > bounds.fields:
            return Refusal(
                Problem.HEAD_TOO_LARGE,
                f"At most {bounds.head} bytes and {bounds.fields} fields are accepted.",
                limit=Limit.HEAD if head.size > bounds.head else Limit.FIELDS,
            )
        if head.version not in ("1.1", "1.0"):
            return Refusal(Problem.VERSION_UNSUPPORTED)
        if names.host >= 0:
            head.host = fields.values[names.host].strip(b" \t")
        if not names.plain and (fault := self._unusual(head)) is not None:
            return fault
        if head.host and not is_host(head.host):
            return _malformed("The Host field is not a host.")
        if head.method == b"CONNECT" or (not head.target.startswith(b"/") and not self._led_home(head)):
            scheme = "http:// or https://" if head.secure else "http://"
            return _malformed(f"The target must be a path, or a path behind {scheme} and a host.")
        if b"#" in head.target:
            return _malformed("The target has a fragment.")
        return None

    def _unusual(self, head: Head) -> Refusal | None:
        """Of a head that has more in its framing than just one Host and one length."""
        fields = head.fields
        at = fields.shape.at
        hosts = at.get(b"host", ())
        if b"expect" in at:
            head.expects = head.version == "1.1"
            if any(value.lower() != b"100-continue" for value in fields.all(b"expect")):
                return Refusal(Problem.EXPECTATION_FAILED)
        if b"connection" in at and b"host" in listed(fields, b"connection"):
            return _malformed("The Connection field names Host.")
        if len(hosts) != 1 and not (not hosts and head.version == "1.0"):
            return _malformed("A request has exactly one Host field.")
        if b"transfer-encoding" in at:
            if listed(fields, b"transfer-encoding") != [b"chunked"]:
                return Refusal(Problem.CODING_UNSUPPORTED)
            if head.version == "1.0":
                return _malformed("HTTP/1.0 has no transfer codings.")
            head.chunked = True
        return None

    def _led_home(self, head: Head) -> bool:
        """Whether a target that is no path can be made one, or needs none. Its own authority is then the Host."""
        if head.target == b"*":
            return head.method == b"OPTIONS"
        found = origin_form(head.method, head.target, secure=head.secure)
        if found is None or not is_host(found[0]):
            return False
        head.host, head.target = found
        head.fields = with_host(head.fields, head.host)
        return True

    def _traced(self, head: Head, route: Route) -> Refusal | None:
        """A TRACE would show its client what the gateway and the proxies before it have added: credentials and more."""
        if head.method == b"TRACE":
            if route.match.methods is None:  # it does not name the method
                return Refusal(Problem.METHOD_NOT_ALLOWED)
            if head.has_body:
                return _malformed("A TRACE has no content.")  # RFC 9110 §9.3.8
        if b"max-forwards" not in head.fields.shape.at:
            return None
        try:
            fields = one_hop_less(head.fields)
        except ValueError as error:
            return _malformed(str(error))
        if fields is None:
            return Refusal(Problem.NO_ROUTE, "Max-Forwards ends it here, and the gate itself has nothing there.")
        head.fields = fields
        return None


def scope_of(route: Route, fields: Fields, certificate: bytes) -> tuple[ScopePart, ...] | Refusal:
    """What a request shows of its tenant, on a route that reads no tokens."""
    scope = route.policy.scope
    return shown(scope, fields, certificate, nobody) if scope else ()


def too_large(limit: int) -> Refusal:
    """The refusal of a body that is over its limit."""
    return Refusal(Problem.BODY_TOO_LARGE, f"At most {limit} bytes are guarded.", limit=Limit.MAX_REQUEST)


def _malformed(why: str) -> Refusal:
    return Refusal(Problem.REQUEST_MALFORMED, why)


__all__ = ["Bounds", "Door", "Guarded", "Head", "Passing", "Refused", "Way", "too_large"]

"""Routes: which requests are guarded, and by what rules. All durations are milliseconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import permutations

from .fields import fields_of
from .fingerprint import Recipe
from .key import DEFAULT_HEADERS
from .keyed import Derive
from .keyform import KeyRule
from .memo import Memo
from .message import Request
from .record import ClaimTerms
from .redirect import REDIRECTS
from .scope import Tokens
from .sent import SendKey
from .source import Place, Source, in_body
from .streams import DEFAULT, StreamTypes, stream_types

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

#: How long before its lease an exchange must have ended, and how long past it a takeover waits.
MARGIN = 5 * SECOND


#: How long a derived key whose outcome is unknown is remembered, if its lease is not longer.
DERIVED_DOUBT = 10 * MINUTE


class Missing(Enum):
    """What happens to a guarded request without a key."""

    PASS = "pass"  # noqa: S105
    REFUSE = "refuse"
    DERIVE = "derive"


class Mode(Enum):
    """Whether a route does what it decides, or only counts it."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class OnDoubt(Enum):
    HOLD = "hold"
    RERUN = "rerun"


class StoreDown(Enum):
    REFUSE = "refuse"
    FORWARD = "forward"


#: DESIGN of settling: statuses that say "not done" …
RELEASED = frozenset((307, 308, 401, 407, 421, 423, 425, 429))
#: … and those by which somebody between us and the effect gave up while it may still happen.
HELD = frozenset((408, 502, 503, 504, *range(520, 528), 598, 599))
#: HTTP defines no status from here on (RFC 9110 §15). Those that services send all the same are held too.
UNDEFINED = 600


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one route. Durations in milliseconds, sizes in bytes."""

    namespace: bytes = b"default"
    guard: bool = True
    mode: Mode = Mode.ENFORCE
    #: Where a key is looked for; in all of them. Where there are `sources` it is looked for there, and here not.
    headers: tuple[bytes, ...] = DEFAULT_HEADERS
    sources: tuple[Source, ...] = ()
    key_rule: KeyRule = field(default_factory=KeyRule)
    missing: Missing = Missing.PASS
    #: How a missing key is derived, where it is.
    derive: Derive = field(default_factory=Derive)
    send_key: tuple[SendKey, ...] = ()
    scope: tuple[bytes, ...] = ()
    #: Whose tokens prove what `jwt:` sources of the scope say; None where it has none.
    tokens: Tokens | None = None
    recipe: Recipe = field(default_factory=Recipe)
    window: int = DAY
    doubt_window: int = 7 * DAY
    wait: int = 25 * SECOND
    on_doubt: OnDoubt = OnDoubt.HOLD
    max_attempts: int = 2
    release: frozenset[int] = frozenset()
    hold: frozenset[int] = frozenset()
    keep: frozenset[int] = frozenset()
    #: The only statuses that are kept: every other complete answer frees the key. None: the lists above decide.
    keep_only: frozenset[int] | None = None
    max_request: int = 10 << 20
    max_response: int = 1 << 20
    #: Content types of responses that are streams, as `core.streams` spells them.
    stream_types: tuple[str, ...] = (DEFAULT,)
    store_down: StoreDown = StoreDown.REFUSE
    store_wait: int = 3 * SECOND
    keep_headers: frozenset[bytes] | None = None
    drop_headers: frozenset[bytes] = frozenset()
    timeout: int = 60 * SECOND
    late: int = 30 * SECOND
    margin: int = MARGIN
    #: How long a claim is trusted without being settled.
    lease: int = field(init=False)
    #: How long a claim is remembered: a window shorter than the exchange must not lose it.
    claim_life: int = field(init=False)
    #: How long after t0 the first byte may still be sent; later, the claim is released unused.
    send_by: int = field(init=False)
    #: How long after t0 the exchange ends in Hold, whatever it is doing.
    ends_by: int = field(init=False)
    #: Sources of `recipe.bind` that stand in no field.
    bound: tuple[Source, ...] = field(init=False)
    #: Redirects that are followed. One that the route names in a list is treated as the list says.
    follows: frozenset[int] = field(init=False)
    #: Whether anything but the fingerprint is read from the body.
    parses_body: bool = field(init=False)
    #: What `stream_types` matches.
    streams: StreamTypes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lease = self.timeout + self.late + self.margin
        object.__setattr__(self, "lease", lease)
        object.__setattr__(self, "claim_life", lease + self.doubt_window)
        object.__setattr__(self, "send_by", min(self.timeout, lease // 2))
        object.__setattr__(self, "ends_by", lease - self.margin)
        bound = tuple(map(Source.of, self.recipe.elsewhere))
        derives = self.missing is Missing.DERIVE
        read = [*self.sources, *bound, *(part for part in self.derive.parts if derives and isinstance(part, Source))]
        object.__setattr__(self, "bound", bound)
        named = self.release | self.hold | self.keep | (self.keep_only or frozenset())
        object.__setattr__(self, "follows", REDIRECTS - named)
        object.__setattr__(self, "parses_body", in_body(read))
        object.__setattr__(self, "streams", stream_types(self.stream_types))

    @property
    def enforced(self) -> bool:
        """Whether the route's keys protect anything."""
        return self.guard and self.mode is Mode.ENFORCE

    @property
    def per_request(self) -> tuple[bytes, ...]:
        """What this route goes by besides the key: `Connection` may not claim it for one hop."""
        sources = (*self.scope, *(source.encode() for source in self.recipe.bind))
        named = [source.removeprefix(b"header:") for source in sources if source.startswith(b"header:")]
        named += [b"cookie" for source in sources if source.startswith(b"cookie:")][:1]
        named += [b"authorization" for source in sources if source.startswith(b"jwt:")][:1]
        read = [*self.sources, *(part for part in self.derive.parts if isinstance(part, Source))]
        headers = (source.name.encode() for source in read if source.place is Place.HEADER)
        written = (send.field.lower() for send in self.send_key)
        return (*self.headers, *self.recipe.headers, *named, *headers, *written)

    @property
    def of_derived(self) -> Policy:
        """The rules of a request whose key was derived: its double is caught for a moment, not for a day."""
        return replace(self, window=self.derive.window, doubt_window=max(DERIVED_DOUBT, self.lease))


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a route is for. `path` is a glob: `*` within a segment, `**` at the end for all below."""

    path: str = "/**"
    host: str | None = None
    methods: frozenset[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A rule of the table. `name` is a label for people; nothing that is stored is named by it."""

    name: str
    upstream: str
    match: Match = field(default_factory=Match)
    policy: Policy = field(default_factory=Policy)
    #: The same route for a request whose key was derived; itself where none is.
    derived: Route = field(init=False, repr=False, compare=False)
    #: The part that all claims of the route have in common.
    terms: ClaimTerms = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        policy, derived = self.policy, self
        terms = ClaimTerms(route=self.name, lease=policy.lease, life=policy.claim_life, window=policy.window)
        object.__setattr__(self, "terms", terms)
        if policy.missing is Missing.DERIVE and policy != policy.of_derived:
            derived = Route(self.name, self.upstream, self.match, policy.of_derived)
        object.__setattr__(self, "derived", derived)


class Ambiguous:
    """A path whose two spellings lead to different routes."""

    def __repr__(self) -> str:
        return "AMBIGUOUS"


AMBIGUOUS = Ambiguous()

_UNRESERVED = re.compile(r"%(2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")


_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
#: The longest path, in characters, whose dot segments and doubled slashes are read in every way.
_LONGEST_CROOKED = 2048
_BROKEN = re.compile(r"%(?![0-9a-fA-F]{2})")
_RAW = re.compile("[\x80-\xff]")


def normalised(path: str) -> str:
    """`path` with unreserved escapes decoded, slashes merged and dot segments removed (as nginx and Go do it)."""
    if "%" not in path and "//" not in path and "/." not in path:
        return path
    return _undotted(_merged(_decoded(path)))


def _decoded(path: str) -> str:
    """RFC 3986 §6.2.2.1 and §6.2.2.2."""
    return _ESCAPE.sub(lambda found: found[0].upper(), _UNRESERVED.sub(lambda found: chr(int(found[1], 16)), path))


def _upper(path: str) -> str:
    return _ESCAPE.sub(lambda found: found[0].upper(), path)


def _opened(path: str) -> str:
    """Every escape decoded, once: what WSGI, ASGI and Go route by."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), path)


def _merged(path: str) -> str:
    return re.sub("/{2,}", "/", path)


def _undotted(path: str) -> str:
    """RFC 3986 §5.2.4: an empty segment is one that `..` takes away."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            if len(kept) > 1:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept) or "/"


def _too_crooked(path: str) -> bool:
    """Whether reading `path` in every way would cost more than any honest client asks for (milliseconds)."""
    if len(path) <= _LONGEST_CROOKED:
        return False
    opened = _opened(path)
    return "//" in opened or "/." in opened


def readings(path: str) -> tuple[set[str], set[str]]:
    """Every form in which some upstream may read `path`, each step taken or not, in any order: those with
    the unreserved escapes decoded or none, and those with all of them decoded."""
    opened = _opened(path)
    steps = [step for step, mark in ((_merged, "//"), (_undotted, "/.")) if mark in opened]
    return _forms(path, _decoded, steps) | _forms(path, str, steps), _forms(path, _opened, steps)


def _forms(path: str, decode: Callable[[str], str], steps: Sequence[Callable[[str], str]]) -> set[str]:
    """`path` decoded, with any of `steps` taken before or after, in any order."""
    forms = set()
    for size in range(len(steps) + 1):
        for order in permutations((decode, *steps), size + 1):
            if decode in order:
                form = path
                for step in order:
                    form = step(form)
                forms.add(form)
    return forms


def glob(pattern: str) -> re.Pattern[str]:
    """`*` is any run within a segment; a last segment `**` is the path itself, its slash, and all below.

    Raises ValueError where `pattern` does not begin with `/` or has `**` anywhere but last.
    """
    if not pattern.startswith("/"):
        raise ValueError(f"a path begins with a slash; use {'/' + pattern!r}")
    below = pattern.endswith("/**")
    stem = pattern.removesuffix("/**") if below else pattern
    if "**" in stem:
        raise ValueError("** stands only as the last segment; use * within one")
    body = "[^/]*".join(re.escape(piece) for piece in stem.split("*"))
    return re.compile(body + ("(?:/.*)?" if below else ""), re.DOTALL)


Rule = tuple[Route, Callable[[str], object], Callable[[str], object] | None]


class RouteTable:
    """The routes in their order; the first that matches wins."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        #: A service's clients ask for the same few targets, or else for such with an id in them.
        self._remembered = Memo(self._match, 1024, lambda asked: len(asked[1]) + len(asked[2]) <= 256)
        self._rules = self._made_of(normalised)
        self._opened = self._made_of(_opened)

    def _made_of(self, spell: Callable[[str], str]) -> list[Rule]:
        return [
            (
                route,
                glob(spell(route.match.path)).fullmatch,
                None if route.match.host is None else host_matcher(route.match.host),
            )
            for route in self.routes
        ]

    def match(self, method: bytes, host: bytes, target: bytes) -> Route | Ambiguous | None:
        """The route of a request; None where there is none, AMBIGUOUS where its path reads two ways."""
        return self._remembered[method, host, target]

    def leads_to(self, upstream: str, request: Request) -> bool:
        """Whether this request goes to that upstream, whatever becomes of it there."""
        hosts = fields_of(request.fields).all(b"host")
        route = self.match(request.method, hosts[0] if hosts else b"", request.target)
        return isinstance(route, Route) and route.upstream == upstream

    def _match(self, asked: tuple[bytes, bytes, bytes]) -> Route | Ambiguous | None:
        method, host, target = asked
        path = target.partition(b"?")[0].decode("latin-1")
        if not path.isascii():  # a service may read such a byte as its escape, as which routes spell it
            path = _RAW.sub(lambda found: f"%{ord(found[0]):02X}", path)
        if "%" not in path and "//" not in path and "/." not in path and "#" not in path:
            return self._first(self._rules, method, host, path)
        if "#" in path or _BROKEN.search(path) or _too_crooked(path):
            return AMBIGUOUS
        plain, opened = readings(path)
        plain = {_upper(form) for form in plain}
        route = self._first(self._rules, method, host, _upper(path))
        if any(self._first(self._rules, method, host, form) is not route for form in plain) or any(
            self._first(self._opened, method, host, form) is not route for form in opened
        ):
            return AMBIGUOUS
        return route

    def _first(self, rules: list[Rule], method: bytes, host: bytes, path: str) -> Route | None:
        for route, matches, matches_host in rules:
            methods = route.match.methods
            if (
                (methods is None or method in methods)
                and (matches_host is None or matches_host(host.decode("latin-1").lower()))
                and matches(path)
            ):
                return route
        return None


def host_matcher(pattern: str) -> Callable[[str], object]:
    """A matcher of `Host` values: any port where the pattern names none; `*.` stands for subdomains."""
    pattern = pattern.lower()
    port = "" if re.search(r":\d+$", pattern) else r"\.?(?::\d*)?"
    if pattern.startswith("*."):
        return re.compile(r"[^:/]+\." + re.escape(pattern[2:]) + port).fullmatch
    return re.compile(re.escape(pattern) + port).fullmatch

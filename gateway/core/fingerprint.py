"""What counts as the same request.

Two digests: what the request asks for, and whose credentials it carries. They are kept apart because
their mismatch means different things: other content under one key is a client's mistake (422
`key-reused`); other credentials under one key may be somebody else (422 `credentials-differ`, and not
a word more). Credentials are bound here and not in the scope, or a client that refreshed its token
between two tries would be charged twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

from . import canonical
from .cookies import telling
from .digest import Purpose, begun, body_digest, digest, framed, tag
from .entity import steps, without_fields, without_parameters
from .fields import NONE, Fields, Shape, fields_of, picker
from .host import site
from .memo import Memo
from .message import CREDENTIALS, OPERATION_FIELDS, Request
from .multipart import PLAIN, multipart

#: In a route's `bind`: the default set of credentials.
DEFAULT_BIND = "default"
_HEADER = "header:"
_QUERY, _FORM = "query:", "form:"

#: Version of how requests are digested, a part of every recipe's id. With version 1 the whole Host counted,
#: OPERATION_FIELDS did not, and some boundaries of multipart bodies did.
VERSION = b"2"

_ABSENT = b"\x00"
_NOTHING: Mapping[str, bytes | None] = MappingProxyType({})
_ALWAYS = ("method", "host", "target", "content-type", "content-encoding", "body")

#: `fingerprint.body`: byte for byte, or what the JSON says (RFC 8785).
RAW = "raw"
CANONICAL_JSON = "canonical-json"

_MULTIPART = b"multipart/"
_JSON = re.compile(rb"(?:application|text)/(?:[^;/ \t]+\+)?json[ \t]*(?:;(.*))?", re.IGNORECASE | re.DOTALL)
_URLENCODED = re.compile(rb"application/x-www-form-urlencoded[ \t]*(?:;.*)?", re.IGNORECASE | re.DOTALL)
_FORM_DATA = re.compile(rb"multipart/form-data[ \t]*(?:;.*)?", re.IGNORECASE | re.DOTALL)
_CHARSET = re.compile(rb"charset[ \t]*=[ \t]*(?!\"?utf-?8\"?[ \t]*(?:;|\Z))", re.IGNORECASE)


_ASKED = (b"host", b"content-type", b"content-encoding")
_BOUND = (b"cookie", *CREDENTIALS)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a route's fingerprints are made. `id` (4 bytes) stands in every record that one made.

    `bind` lists SOURCEs of credentials (`default`, `header:x-tenant`); `headers` the fields (lower
    case) that count as part of the request besides. `body` is RAW or CANONICAL_JSON; `ignore` has what
    does not count: JSON Pointers into a canonical body, `query:NAME` for parameters of the target, `form:FIELD` for
    fields of a form. `host` is false if the name in Host does not count. `beyond_site` is
    the route's `match.host` if an address or a port in it tells the route from others: then it counts.
    `ignore_cookies` are the names, or prefixes that end in `*`, of cookies that are no credential, besides
    `cookies.INFRASTRUCTURE`.
    """

    bind: tuple[str, ...] = (DEFAULT_BIND,)
    headers: tuple[bytes, ...] = ()
    body: str = RAW
    ignore: tuple[str, ...] = ()
    host: bool = True
    beyond_site: bytes = b""
    ignore_cookies: tuple[str, ...] = ()
    #: How Host counts: None for not at all, empty for its name, else what counts beside its name.
    hosted: bytes | None = field(init=False)
    parts: tuple[str, ...] = field(init=False)
    fields: frozenset[bytes] = field(init=False)
    #: Those of them that may bind.
    bound: frozenset[bytes] = field(init=False)
    #: Of `bind`, the sources that stand in no field.
    elsewhere: tuple[str, ...] = field(init=False)
    pointers: tuple[canonical.Pointer, ...] = field(init=False)
    #: Names of parameters and of fields of a form that do not count.
    parameters: frozenset[bytes] = field(init=False)
    form_fields: frozenset[bytes] = field(init=False)
    #: Whether target and body count as they are, unless the body is multipart.
    as_sent: bool = field(init=False)
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        parts = _ALWAYS + tuple(name.decode("latin-1") for name in self.headers)
        described = [VERSION, self.body.encode(), b"host" if self.host else b"", self.beyond_site]
        for listed in (self.bind, self.headers, self.ignore, self.ignore_cookies):
            described += [b"%d" % len(listed), *(each.encode() if isinstance(each, str) else each for each in listed)]
        object.__setattr__(self, "hosted", self.beyond_site if self.host else None)
        object.__setattr__(self, "parts", parts)
        pointers = (each for each in self.ignore if each.startswith("/"))
        object.__setattr__(self, "pointers", tuple(tuple(steps(each)) for each in pointers))
        for name, place in (("parameters", _QUERY), ("form_fields", _FORM)):
            named = (each.removeprefix(place).encode() for each in self.ignore if each.startswith(place))
            object.__setattr__(self, name, frozenset(named))
        object.__setattr__(self, "as_sent", self.body == RAW and not self.parameters and not self.form_fields)
        headers = [source for source in self.bind if source.startswith(_HEADER)]
        named = (source.removeprefix(_HEADER).encode() for source in headers)
        elsewhere = tuple(source for source in self.bind if source != DEFAULT_BIND and source not in headers)
        object.__setattr__(self, "elsewhere", elsewhere)
        object.__setattr__(self, "bound", frozenset((*_BOUND, *named)))
        object.__setattr__(self, "fields", self.bound.union(_ASKED, OPERATION_FIELDS, self.headers))
        object.__setattr__(self, "id", digest(Purpose.RECIPE, described)[:4])

    def names(self, shape: Shape) -> _Names:
        """What the names of a head say before its values are read."""
        return _Names(shape, self.bound)


class _Names:
    """The positions of the fields that every fingerprint takes in, and whether it has any that may bind. `counts` has
    how many there are of each of _ASKED, and then the names of OPERATION_FIELDS that are there; `pick` picks their
    values in this order."""

    __slots__ = ("binding", "counts", "pick")

    def __init__(self, shape: Shape, bound: frozenset[bytes]) -> None:
        where = [shape.at.get(name, ()) for name in _ASKED]
        selecting = [(name, place) for name in OPERATION_FIELDS for place in shape.at.get(name, ())]
        hosts, types, codings = map(len, where)
        self.counts: _Counts = hosts, types, codings, tuple(name for name, _ in selecting)
        places = (*sum(where, ()), *(place for _, place in selecting))
        self.pick: Callable[[Sequence[bytes]], tuple[bytes, ...]] = picker(places)
        self.binding = not bound.isdisjoint(shape.at)


_Counts = tuple[int, int, int, tuple[bytes, ...]]
#: Method, host, target, content type and content coding, as parts.
_Front = tuple[bytes, bytes, bytes, bytes, bytes]


class Fingerprint(NamedTuple):
    """A request as its record remembers it. `mark` is the recipe's id (4 bytes) and the digests of the request and of
    its credentials (16 each): two requests with one mark are the same. `tags` has 2 bytes for each part in the
    recipe's order."""

    mark: bytes
    tags: bytes

    @property
    def recipe(self) -> bytes:
        return self.mark[:4]

    @property
    def request(self) -> bytes:
        return self.mark[4:20]

    @property
    def credentials(self) -> bytes:
        return self.mark[20:]

    def __repr__(self) -> str:
        return f"Fingerprint({self.request[:4].hex()}… by {self.credentials[:4].hex()}…)"


class Difference(Enum):
    """How a request fails to be the one that the record remembers, in the order of comparison."""

    RECIPE = "recipe"
    CREDENTIALS = "credentials"
    REQUEST = "request"


class Counted(NamedTuple):
    """The parts of a request that count, as its recipe reads them. `method` includes OPERATION_FIELDS; the body is a
    kind of digest and its segments."""

    method: bytes
    host: bytes
    target: bytes
    content_type: bytes
    content_encoding: bytes
    kind: bytes
    segments: list[bytes]


def counted(request: Request, recipe: Recipe) -> Counted:
    """Read what counts of `request` by `recipe`."""
    fields = fields_of(request.fields)
    names = fields.shape.made(recipe.bound, recipe.names)
    return _counted(request, recipe, names.counts, names.pick(fields.values))


def fingerprint(
    request: Request,
    recipe: Recipe,
    *,
    secret: bytes = b"",
    certificate: bytes = b"",
    elsewhere: Mapping[str, bytes | None] = _NOTHING,
    content: Counted | None = None,
) -> Fingerprint:
    """The fingerprint of `request`. `certificate` stands for the client's (the SHA-256 of its DER), where TLS gave
    one; `elsewhere` has the value (None: absent) at each of the recipe's sources that stand in no field, and raises
    KeyError where one was not read: what is bound is never left out in silence. `content` is what `counted` returned,
    if the caller has it. Of a large body it takes as long as reading it does, and of a canonical one a hundred times
    that."""
    fields = fields_of(request.fields)
    names = fields.shape.made(recipe.bound, recipe.names)
    asked = names.pick(fields.values)
    method, target = request.method, request.target
    as_sent = content is None and recipe.as_sent
    begun = _begun[method, target, names.counts, asked, recipe.hosted, secret] if as_sent else None
    if begun is not None:
        front, tags = begun
        hasher = front.copy()
        body = body_digest(b"raw", (request.body,), secret)
    else:
        content = content or _counted(request, recipe, names.counts, asked)
        hasher, tags = _before(content[:5], secret)
        body = body_digest(content.kind, content.segments, secret)
    hasher.update(framed(body))
    tags += body[:2]
    for name in recipe.headers:
        chosen = _present(fields.all(name))
        hasher.update(framed(chosen))
        tags += tag(name, chosen, secret)
    if names.binding or certificate or recipe.elsewhere:
        bound = _bound(_credentials(fields, recipe, certificate, elsewhere), secret)
    else:
        bound = _unbound(recipe.bind, secret)
    return Fingerprint(recipe.id + hasher.digest()[:16] + bound[:16], tags)


def _asked(
    method: bytes, target: bytes, counts: _Counts, values: tuple[bytes, ...], hosted: bytes | None
) -> tuple[_Front, tuple[bytes, ...], bool]:
    """Read the fields that every fingerprint takes in: the parts before the body, the types, and whether the body is
    one to be digested whole whatever it says."""
    stripped = tuple(value.strip(b" \t") for value in values)
    hosts, types, codings, selecting = counts
    behind = hosts + types + codings
    kinds = stripped[hosts : hosts + types]
    if selecting:  # neither a method nor a name of a field holds a line feed, nor a name a colon
        chosen = zip(selecting, stripped[behind:], strict=True)
        method = b"\n".join((method, *(name + b":" + value for name, value in chosen)))
    host, coded = _hosted(stripped[:hosts], hosted), stripped[hosts + types : behind]
    whole = len(kinds) != 1 or kinds[0][: len(_MULTIPART)].lower() != _MULTIPART
    return (method, host, target, _present(kinds), _present(coded)), kinds, whole


def _hosted(hosts: Sequence[bytes], hosted: bytes | None) -> bytes:
    """Host as a part. A request that names no host, by its address or by nothing, has none."""
    if hosted is None:
        return _ABSENT
    if len(hosts) > 1:  # refused before anything reads it
        return _present([host.lower() for host in hosts])
    name = site(hosts[0]) if hosts else b""
    if hosted:
        return b"\x02" + hosted + b"\n" + name
    return _present([name]) if name else _ABSENT


def _counted(request: Request, recipe: Recipe, counts: _Counts, values: tuple[bytes, ...]) -> Counted:
    target = _less_parameters(request.target, recipe.parameters) if recipe.parameters else request.target
    front, types, whole = _asked(request.method, target, counts, values, recipe.hosted)
    method, host, target, content_type, content_encoding = front
    kind, segments = b"raw", [request.body]
    if not whole or recipe.body == CANONICAL_JSON or recipe.form_fields:
        content_type, kind, segments = _body(types, request.body, recipe, coded=content_encoding != _ABSENT)
    return Counted(method, host, target, content_type, content_encoding, kind, segments)


def _less_parameters(target: bytes, names: frozenset[bytes]) -> bytes:
    path, mark, query = target.partition(b"?")
    kept = without_parameters(query, names) if mark else None
    return path if kept is None else path + mark + kept


def _before(parts: _Front, secret: bytes) -> tuple[blake2b, bytes]:
    """The digest and the tags of all that stands before the body."""
    named = zip(_ALWAYS, parts, strict=False)
    return begun(Purpose.REQUEST, parts, secret), b"".join(tag(name.encode(), part, secret) for name, part in named)


def _begin(
    asked: tuple[bytes, bytes, _Counts, tuple[bytes, ...], bytes | None, bytes],
) -> tuple[blake2b, bytes] | None:
    method, target, counts, values, hosted, secret = asked
    front, _, whole = _asked(method, target, counts, values, hosted)
    return _before(front, secret) if whole else None


#: `_before`, to be copied: many requests of a service share it. None if the body says what counts of its type.
_begun = Memo(_begin, 1024, lambda asked: len(asked[1]) + sum(map(len, asked[3])) <= 512)


def _bound(credentials: list[bytes], secret: bytes) -> bytes:
    return digest(Purpose.CREDENTIALS, credentials, secret)


@lru_cache(maxsize=256)
def _unbound(bind: tuple[str, ...], secret: bytes) -> bytes:
    """The digest of no credentials at all."""
    return _bound(_credentials(NONE, Recipe(bind), b"", _NOTHING), secret)


def difference(seen: Fingerprint, mine: Fingerprint) -> Difference | None:
    """What differs first. An unknown recipe comes first: nothing can be said of what it digested."""
    if seen.mark == mine.mark:
        return None
    if seen.recipe != mine.recipe:
        return Difference.RECIPE
    return Difference.CREDENTIALS if seen.credentials != mine.credentials else Difference.REQUEST


def differing_parts(seen: Fingerprint, mine: Fingerprint, recipe: Recipe) -> list[str]:
    """The names of the parts that differ, never a value; empty where only the full digest knows."""
    return [
        name
        for position, name in enumerate(recipe.parts)
        if seen.tags[2 * position : 2 * position + 2] != mine.tags[2 * position : 2 * position + 2]
    ]


def _present(found: Sequence[bytes]) -> bytes:
    """Absent, empty and repeated are three different things. (No value can hold a line feed.)"""
    return b"\x01" + b"\n".join(found) if found else _ABSENT


def _credentials(
    fields: Fields, recipe: Recipe, certificate: bytes, elsewhere: Mapping[str, bytes | None]
) -> list[bytes]:
    bound: list[bytes] = []
    for source in recipe.bind:
        if source == DEFAULT_BIND:
            at = fields.shape.at
            found = [(name, fields.all(name)) for name in CREDENTIALS if name in at]
            if certificate:
                found.append((b"client-certificate", [certificate]))
            if not found and b"cookie" in at:
                cookies = telling(recipe.ignore_cookies)(fields.all(b"cookie"))
                found = [(b"cookie", cookies)] if cookies else []
            for name, each in found:
                bound += (name, _present(each))
        elif not source.startswith(_HEADER):
            value = elsewhere[source]
            bound += (source.encode(), _ABSENT if value is None else b"\x01" + value)
        else:
            name = source.removeprefix(_HEADER).encode()
            bound += (source.encode(), _present(fields.all(name)))
    return bound


def _body(types: Sequence[bytes], body: bytes, recipe: Recipe, *, coded: bool) -> tuple[bytes, bytes, list[bytes]]:
    """(content type as a part, kind of digest, segments). The boundary of a multipart body is cut out of both.

    A body is taken for JSON where its type says so, or nothing; what is not JSON in fact, or has no canonical form,
    is digested raw. The kinds keep the two apart: no raw body is equal to a canonical one."""
    cut = multipart(types, body)
    if cut is not None:
        segments = cut.segments
        if recipe.form_fields and not coded and cut.kind == PLAIN and _FORM_DATA.fullmatch(cut.content_type):
            segments = [segments[0], *without_fields(segments[1:-1], recipe.form_fields), segments[-1]]
        return _present([cut.content_type]), cut.kind, segments
    if recipe.form_fields and not coded and len(types) == 1 and _URLENCODED.fullmatch(types[0]):
        kept = without_parameters(body, recipe.form_fields)
        return _present(types), b"form", [] if kept is None else [kept]
    if recipe.body == CANONICAL_JSON and not coded and (not types or (len(types) == 1 and _is_json(types[0]))):
        form = canonical.canonical(body, recipe.pointers)
        if form is not None:
            return _present(types), b"canonical-json", [form]
    return _present(types), b"raw", [body]


def _is_json(content_type: bytes) -> bool:
    """Whether this type is JSON in UTF-8 (RFC 8259 §8.1 knows no other; who declares one means something else)."""
    found = _JSON.fullmatch(content_type)
    return found is not None and not _CHARSET.search(found[1] or b"")


_SELECTOR = re.compile(rb".*-(?:account|tenant.*|organization.*)", re.IGNORECASE)


def selects_account(name: bytes) -> bool:
    """Whether a field's name looks like that of an account selector (`*-Account`, `*-Tenant*`,
    `*-Organization*`): whoever sends it and does not bind it may be surprised."""
    return _SELECTOR.fullmatch(name) is not None

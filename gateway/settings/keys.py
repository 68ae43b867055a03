"""What a file says of keys: where they stand, of what form they are, and in which fields the service gets them.

Every reader takes what stands in the file and returns what the field holds, or raises ValueError with words for the
person who wrote the file (see values.py).
"""

from __future__ import annotations

import re

import re2

from ..core import keyform
from ..core.entity import steps
from ..core.fingerprint import DEFAULT_BIND
from ..core.keyed import Part
from ..core.keyform import Format
from ..core.source import Place, Source
from . import scopes, values
from .addresses import NOT_BUILT
from .faults import short
from .source import Kind, Scalar
from .values import found, header, one_of

EXAMPLES = {
    Place.HEADER: "header:X-Request-Key",
    Place.QUERY: "query:request_id",
    Place.COOKIE: "cookie:checkout",
    Place.PATH: "path:2",
    Place.BODY: "body:/order/id",
    Place.FORM: "form:order_id",
}
_PLACES = "header:NAME, body:/POINTER, form:FIELD, query:NAME, path:N or cookie:NAME"
#: Sources of a scope or a credential that DESIGN names and a key does not have.
_OF_NO_KEY = ("jwt", "client_cert")
_LONGEST_NAME = 256

#: A pattern is matched in time linear in the key, by automata of no more memory than this.
_PATTERN = re2.Options()
_PATTERN.max_mem = 1 << 20
_PATTERN.log_errors = False
_LONGEST_PATTERN = 500

FORMATS = {each.name: each for each in (keyform.ANY, keyform.SF_STRING, keyform.UUID, keyform.ULID)}

#: Fields that the gate writes itself, or by which the service knows what it is sent and by whom.
_NOT_OURS = frozenset(
    b"host authorization cookie x-api-key api-key content-type content-encoding expect via forwarded x-forwarded-for "
    b"x-forwarded-proto x-forwarded-host idempotency-attempt".split()
)


def source(value: object) -> Source:
    """Where a key, or something that a key is bound to, stands."""
    match value:
        case Scalar(text, Kind.TEXT) if text:
            kind, colon, rest = text.partition(":")
        case _:
            raise ValueError(f"expected a source such as body:/order/id, found {found(value)}")
    if kind in _OF_NO_KEY:
        raise ValueError(f"the source `{kind}` is {NOT_BUILT}; use {_PLACES}")
    if kind in ("header", "") or kind not in list(Place):
        if colon and kind != "header":
            raise ValueError(f"no source is called `{short(kind)}`; use {_PLACES}")
        return Source.of(values.source(value))
    if rest != rest.strip():
        raise ValueError(f"no space belongs behind the colon; use {kind}:{rest.strip()}")
    return Source(Place(kind), _named(Place(kind), rest))


def _named(place: Place, name: str) -> str:
    example = EXAMPLES[place]
    if not name or len(name) > _LONGEST_NAME:
        raise ValueError(f"what is read there is missing, or too long; use {example}")
    match place:
        case Place.BODY:
            try:
                steps(name)
            except ValueError as error:
                meant = f"body:/{name}" if re.fullmatch(r"[A-Za-z_][\w/]*", name) else example
                raise ValueError(f"{error}; use {meant}") from None
        case Place.PATH:
            if not re.fullmatch(r"[1-9][0-9]?", name):
                raise ValueError(f"segments of a path are counted from 1, up to 99; use {example}")
        case Place.COOKIE:
            if not values.TOKEN.fullmatch(name):
                raise ValueError(f"`{short(name)}` cannot be the name of a cookie; use {example}")
        case _:
            if not name.isprintable():
                raise ValueError(f"a name has printable characters only; use {example}")
    return name


def each_once(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    if not sources:
        raise ValueError("names no source; use [header:X-Request-Key], or leave it out")
    twice = [str(each) for each in sources if sources.count(each) > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands twice; keep one")
    return sources


def bind_source(value: object) -> str:
    if isinstance(value, Scalar) and value.text == DEFAULT_BIND:
        return DEFAULT_BIND
    found = source(value)
    if found.place is Place.HEADER:
        values.same_again(found.name.encode())
    return str(found)


def ignored(value: object) -> str:
    """A part of a request that does not count: `query:NAME`, `form:FIELD` or a JSON Pointer."""
    text = value.text if isinstance(value, Scalar) and value.kind is Kind.TEXT else ""
    place = text.partition(":")[0]
    if place in (Place.QUERY, Place.FORM):
        return str(source(value))
    if place in (Place.HEADER, Place.COOKIE, Place.PATH) and ":" in text:
        why = "always counts" if place == Place.PATH else "counts only if `headers` or `bind` lists it"
        raise ValueError(f"a {place} {why}; use query:NAME, form:FIELD or a JSON Pointer")
    return scopes.pointer(value)


def form(value: object) -> Format:
    """A format by its name, or a pattern between slashes that a whole key must match."""
    text = value.text if isinstance(value, Scalar) and value.kind is Kind.TEXT else ""
    if len(text) < 2 or not text.startswith("/"):
        return FORMATS[one_of((*FORMATS, "/PATTERN/"))(value)]
    if not text.endswith("/"):
        raise ValueError(f"a pattern stands between two slashes; use {short(text)}/")
    pattern = text[1:-1]
    if not pattern or len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"a pattern has 1 to {_LONGEST_PATTERN} characters; use uuid, or [A-Z]{{2}}[0-9]{{10}}")
    try:
        compiled = re2.compile(pattern.encode(), _PATTERN)
    except re2.error as error:
        why = str(error.args[0].decode() if isinstance(error.args[0], bytes) else error)
        raise ValueError(f"`{short(pattern)}` is no pattern that is matched in linear time (RE2): {why}") from None
    return Format(text, compiled.fullmatch)


def sent_field(value: object) -> bytes:
    """`header:NAME`, as it is written: the only place of a request that may be changed on its way."""
    text = value.text if isinstance(value, Scalar) and value.kind is Kind.TEXT else ""
    place, colon, name = text.partition(":")
    if not colon or place != "header":
        if place in list(Place):
            raise ValueError(f"a {place} is the client's and is not changed; use header:NAME")
        meant = f"header:{text}" if values.TOKEN.fullmatch(text) else "header:NAME"
        raise ValueError(f"expected a field such as header:PayPal-Request-Id, found {found(value)}; use {meant}")
    if header(Scalar(name)) in _NOT_OURS:
        raise ValueError(f"{name} says something else to the service; use a field that is for the key")
    return name.encode()


def part(value: object) -> Part | Source:
    """What a key is derived from."""
    if isinstance(value, Scalar) and value.text in list(Part):
        return Part(value.text)
    if isinstance(value, Scalar) and value.kind is Kind.TEXT and ":" not in value.text:
        raise ValueError(f"expected {', '.join(Part)} or a source, found {found(value)}")
    return source(value)


def parts(each: tuple[Part | Source, ...]) -> tuple[Part | Source, ...]:
    """In one order, so that writing them in another forgets no key."""
    if not set(each) - {Part.METHOD, Part.CREDENTIALS}:
        raise ValueError("nothing in it tells one request from the next; add target, body or a source")
    return tuple(sorted(set(each), key=str))

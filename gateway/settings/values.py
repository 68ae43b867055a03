"""The values that fields take: how each is read, and what is said of one that is something else.

Every reader takes what stands in the file and returns what the field holds, or raises ValueError with
words for the person who wrote the file: what was expected, what was found, what to write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sized
from difflib import get_close_matches
from hashlib import blake2b
from typing import TypeVar
from urllib.parse import quote

from ..core.fingerprint import DEFAULT_BIND
from ..core.message import ALWAYS_REPLAYED, FRAMING, HOP_BY_HOP, NEVER_REPLAYED, OWN_RESPONSE_FIELDS
from ..core.policy import glob, normalised
from ..core.streams import DEFAULT, PATTERN
from . import addresses, units
from .faults import short
from .source import Kind, Scalar

T = TypeVar("T")
C = TypeVar("C", bound=Sized)

#: What a key has and a scope has not.
_OF_KEYS_ONLY = ("body", "form", "query", "path")

#: A token of HTTP (RFC 9110 §5.6.2): a header's name, a method, a cookie's name (RFC 6265 §4.1.1).
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_YAML_TRUE = ("true", "yes", "on")
_YAML_FALSE = ("false", "no", "off")


def found(value: object) -> str:
    """What stands in the file, in words."""
    match value:
        case Scalar(text, Kind.TEXT):
            return f"`{short(text)}`" if text else "an empty string"
        case Scalar(text, Kind.NUMBER):
            return f"the number {short(text)}"
        case Scalar(text, Kind.BOOLEAN):
            return f"the boolean {text}"
        case Scalar(text, Kind.DATE):
            return f"the date {short(text)}"
        case Scalar():
            return "nothing"
        case dict():
            return "a mapping"
    return "a list"


def _text(value: object, expected: str) -> str:
    """`value` where it is text, and not what YAML makes of a bare word or number."""
    match value:
        case Scalar(text, Kind.TEXT) if text:
            return text
        case Scalar(text, Kind.NUMBER | Kind.BOOLEAN | Kind.DATE):
            raise ValueError(f'expected {expected}, found {found(value)}; in quotes it is text: "{text}"')
    raise ValueError(f"expected {expected}, found {found(value)}")


def duration(value: object, *, zero: bool = False) -> int:
    match value:
        case Scalar(text, Kind.TEXT | Kind.NUMBER) if text:
            return units.duration(text, zero=zero)
    raise ValueError(f"expected a duration such as 30s, found {found(value)}")


def bounded(refusal: str, *, least: int = 0, most: int = units.LONGEST) -> Callable[[int], int]:
    """Take a duration from `least` to `most`. `refusal` may quote it as `{}`."""

    def check(duration: int) -> int:
        if not least <= duration <= most:
            raise ValueError(refusal.format(units.show_duration(duration)))
        return duration

    return check


def duration_or_zero(value: object) -> int:
    return duration(value, zero=True)


def size(*, least: int = 0, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        match value:
            case Scalar(text, Kind.TEXT | Kind.NUMBER) if text:
                return units.size(text, least=least, most=most)
        raise ValueError(f"expected a size such as 1MiB, found {found(value)}")

    return read


def count(*, least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        match value:
            case Scalar(text, Kind.TEXT | Kind.NUMBER) if re.fullmatch(r"[0-9]{1,12}(?:_[0-9]{3}){0,3}", text):
                number = int(text)
                if not least <= number <= most:
                    raise ValueError(f"{text} is out of bounds; use {least} to {most}")
                return number
        raise ValueError(f"expected a number from {least} to {most}, found {found(value)}")

    return read


def flag(value: object) -> bool:
    match value:
        case Scalar(text, Kind.TEXT | Kind.BOOLEAN):
            # Only what YAML itself calls a boolean may be spelled otherwise than true and false.
            spellings = 3 if value.kind is Kind.BOOLEAN else 1
            if text.lower() in _YAML_TRUE[:spellings]:
                return True
            if text.lower() in _YAML_FALSE[:spellings]:
                return False
    raise ValueError(f"expected true or false, found {found(value)}")


def one_of(choices: Iterable[T]) -> Callable[[object], T]:
    """One of the words that `choices` are, or of the values of an enumeration."""
    words = {str(getattr(each, "value", each)): each for each in choices}
    *others, last = words
    names = f"{', '.join(others)} or {last}" if others else last

    def read(value: object) -> T:
        if isinstance(value, Scalar) and value.text in words:
            return words[value.text]
        written = next(iter(value), "") if isinstance(value, dict) else getattr(value, "text", "")
        meant = get_close_matches(str(written).lower(), words, 1, 0.6)
        raise ValueError(f"expected {names}, found {found(value)}" + (f"; use {meant[0]}" if meant else ""))

    return read


def name(value: object) -> str:
    """A word for people and for paths: a service, an upstream, a route, a namespace."""
    text = _text(value, "a name such as payments")
    if "://" in text:
        raise ValueError(
            "expected a name such as payments, found a URL. Write the URL under `upstreams`, and its name here"
        )
    if not _NAME.fullmatch(text):
        meant = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
        raise ValueError(
            f"`{short(text)}` is not a name: up to 64 letters, digits, `.`, `_` and `-`, a letter or digit first"
            + (f"; use {meant}" if meant else "")
        )
    return text


def prefix(value: object) -> str:
    text = _text(value, "a prefix such as og:")
    if "{" in text or "}" in text:
        raise ValueError("braces would move every key to one slot of a Redis Cluster; use og:")
    if not re.fullmatch(r"[\x21-\x7e]{1,32}", text):
        raise ValueError("a prefix has up to 32 printable ASCII characters and no spaces; use og:")
    return text


def secret(value: object) -> bytes:
    """At most 64 bytes, as BLAKE2b keys are: a longer one is digested. Never quoted in a fault."""
    if not isinstance(value, Scalar) or value.kind is Kind.NOTHING or not value.text:
        what = "an empty string" if isinstance(value, Scalar) and value.kind is Kind.TEXT else found(value)
        raise ValueError(f"expected a secret such as ${{ONCEGATE_SECRET}}, found {what}")
    if value.kind is not Kind.TEXT:
        raise ValueError(f"expected text, found a {value.kind.value}; put the secret in quotes")
    key = value.text.encode()
    return key if len(key) <= 64 else blake2b(key, digest_size=64).digest()


#: The shortest token of the admin listener.
LEAST_TOKEN = 16


def token(value: object) -> bytes:
    """What a field `Authorization: Bearer` can carry (RFC 6750 §2.1). Never quoted in a fault."""
    if not isinstance(value, Scalar) or value.kind is not Kind.TEXT or not value.text:
        raise ValueError("expected a token such as ${ONCEGATE_ADMIN_TOKEN}, in quotes where it looks like a number")
    return token_text(value.text)


def token_text(text: str) -> bytes:
    """The token in `text`."""
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", text):
        raise ValueError("a token is letters, digits, ._~+/- and = at its end; make one: openssl rand -hex 32")
    if len(text) < LEAST_TOKEN:
        raise ValueError(f"shorter than {LEAST_TOKEN} characters can be guessed; make one: openssl rand -hex 32")
    return text.encode()


def address(value: object) -> str:
    """An address, as it is written. A port alone is one to YAML, and refused by those who read it."""
    if isinstance(value, Scalar) and value.kind is Kind.NUMBER:
        return value.text
    return _text(value, "an address such as 127.0.0.1:8080")


def parsed(expected: str, parse: Callable[[str], T]) -> Callable[[object], T]:
    """What `parse` makes of a text."""
    return lambda value: parse(_text(value, expected))


def store_option(value: object) -> str:
    """A field beside a store's URL, as it is written: the URL's scheme knows how it is read."""
    if isinstance(value, Scalar) and value.kind is not Kind.NOTHING and value.text:
        return value.text
    raise ValueError(f"expected a single value, found {found(value)}")


def protocol(value: object) -> bytes:
    """What a request may be upgraded to, in lower case. Never to HTTP: what is asked in it would pass no guard."""
    text = _text(value, "a protocol such as websocket")
    name, slash, version = text.partition("/")
    if not TOKEN.fullmatch(name) or (slash and not TOKEN.fullmatch(version)):
        raise ValueError(f"expected a protocol such as websocket, found {found(value)}")
    if re.fullmatch(r"h2c?|h3|https?|tls|spdy", name.lower()):
        raise ValueError(f"in {text} requests would reach the service past their guards; leave it out")
    return text.lower().encode()


def origin(value: object) -> bytes:
    """A web origin as browsers send it (RFC 6454 §6.2), or `*`."""
    text = _text(value, "an origin such as https://shop.example")
    if text == "*":
        return b"*"
    if text.lower() == "null":
        raise ValueError("null is what every sandboxed page and local file calls itself; leave it out")
    url = addresses.URL.fullmatch(text)
    if url is None:
        raise ValueError(f"the scheme is missing; use https://{text}")
    scheme, where = url["scheme"].lower(), url["where"].lower()
    if not where or url["user"] is not None or "*" in where or not text.isascii():
        raise ValueError(f"expected an origin such as https://shop.example, found {found(value)}")
    plain = f"{scheme}://{where.removesuffix({'http': ':80', 'https': ':443'}.get(scheme, ' '))}"
    if plain != text:
        raise ValueError(f"`{short(text)}` is not how a browser spells an origin; use {plain}")
    return text.encode()


def path(value: object) -> str:
    """A glob that a normalised path can match."""
    text = _text(value, "a path such as /payments/**")
    if not text.startswith("/"):
        raise ValueError(f"a path begins with a slash; use /{text}")
    if "?" in text or "#" in text:
        raise ValueError(f"a path is matched without its query; use {re.split('[?#]', text)[0]}")
    if "{" in text or "}" in text:
        raise ValueError(f"a segment of any name is a star; use {re.sub(r'{[^/]*}?|}', '*', text)}")
    plain = normalised(quote(text, safe="/*%!$&'()+,;=:@"))
    if plain != text:
        raise ValueError(f"`{short(text)}` is not how a path is spelled when it is matched; use {plain}")
    glob(text)
    return text


def policy_path(value: object) -> str | None:
    """One path, or None where nothing is published."""
    if isinstance(value, Scalar) and value.kind is Kind.BOOLEAN:
        if value.text.lower() in _YAML_FALSE:
            return None
        raise ValueError("expected a path or off; use /.well-known/idempotency")
    if "*" in (text := path(value)):
        raise ValueError(f"one path, without stars; use {text.partition('*')[0].rstrip('/') or '/policy'}")
    return text


def host(value: object) -> str:
    text = _text(value, "a host such as shop.example")
    if "://" in text:
        raise ValueError(f"a host is not a URL; use {text.partition('://')[2].partition('/')[0]}")
    if text == "*":
        raise ValueError("every host is what a match without `host` means; leave it out")
    label = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
    if not re.fullmatch(rf"(?:(?:\*\.)?{label}(?:\.{label})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?", text):
        raise ValueError(f"expected a host such as shop.example or *.shop.example, found {found(value)}")
    return text.lower()


def method(value: object) -> bytes:
    text = _text(value, "a method such as POST")
    if not TOKEN.fullmatch(text):
        raise ValueError(f"expected a method such as POST, found {found(value)}")
    if text != text.upper():
        raise ValueError(f"methods are written in capitals; use {text.upper()}")
    return text.encode()


def header(value: object) -> bytes:
    """The name of a field, in lower case."""
    text = _text(value, "the name of a header such as X-Tenant-Id")
    if text.startswith("header:"):
        raise ValueError(f"the name stands alone here; use {text.removeprefix('header:').strip()}")
    return _header(text)


def _header(text: str) -> bytes:
    if not TOKEN.fullmatch(text):
        raise ValueError(f"`{short(text)}` cannot be the name of a header")
    lowered = text.lower().encode()
    if lowered in HOP_BY_HOP | FRAMING:
        raise ValueError(f"{text} belongs to one connection and says nothing of the request; leave it out")
    return lowered


def replayed(value: object) -> bytes:
    """The name of a field that a route may leave to replays, or take from them."""
    field, shown = header(value), getattr(value, "text", "")
    if field == b"date":
        raise ValueError("Date is made anew for each replay, and kept where a signature covers it; leave it out")
    if field in OWN_RESPONSE_FIELDS:
        raise ValueError(f"{shown} is the gate's own, and on every replay; leave it out")
    return field


def kept_header(value: object) -> bytes:
    """The name of a field that replays carry."""
    field = replayed(value)
    if field in NEVER_REPLAYED:
        raise ValueError(f"{getattr(value, 'text', '')} was for one client, and no replay carries it; leave it out")
    return field


def dropped_header(value: object) -> bytes:
    """The name of a field that replays do not carry."""
    field = replayed(value)
    if field in ALWAYS_REPLAYED:
        raise ValueError(f"without {getattr(value, 'text', '')} nobody can read the body; leave it out")
    return field


def part_of_fingerprint(value: object) -> bytes:
    field = header(value)
    if field in (b"host", b"content-type", b"content-encoding"):
        raise ValueError(f"{field.decode()} is part of every fingerprint; leave it out")
    return same_again(field)


#: What says to which trace a try belongs: every try has another.
_OF_TRACES = frozenset((b"traceparent", b"tracestate", b"b3", b"x-b3-traceid", b"x-b3-spanid"))


def same_again(field: bytes) -> bytes:
    """A field that a retry may be asked to repeat."""
    if field in _OF_TRACES:
        raise ValueError(f"{field.decode()} is another with every retry, which would then be a 422; leave it out")
    return field


def source(value: object) -> str:
    """`header:NAME`, in lower case."""
    text = _text(value, "a source such as header:X-Tenant-Id")
    kind, colon, rest = text.partition(":")
    if kind in _OF_KEYS_ONLY:
        raise ValueError(f"a {kind} says what is asked, and proves nothing of who asks; use header:NAME")
    if not colon and TOKEN.fullmatch(text):
        raise ValueError(f"where {text} stands is missing; use header:{text}")
    if kind != "header":
        meant = rest.strip() if TOKEN.fullmatch(rest.strip()) else "NAME"
        raise ValueError(f"no source is called `{short(kind)}`; use header:{meant}")
    if rest != rest.strip():
        raise ValueError(f"no space belongs behind the colon; use header:{rest.strip()}")
    return f"header:{_header(rest).decode()}"


def status(value: object) -> int:
    match value:
        case Scalar(text, Kind.TEXT | Kind.NUMBER) if re.fullmatch(r"[0-9]{1,6}", text):
            if 200 <= int(text) <= 599:
                return int(text)
            raise ValueError(f"{int(text)} is not a final status code (200–599)")
    raise ValueError(f"expected a status such as 409, found {found(value)}")


def stream_type(value: object) -> str:
    """A content type of responses that are streams, in lower case; or `default`, for those that are built in."""
    text = _text(value, "a content type such as application/x-ndjson")
    if text == DEFAULT:
        return text
    if "=" in text:
        raise ValueError(f"a parameter stands without its value; use {re.sub('=[^;]*| ', '', text)}")
    if PATTERN.fullmatch(text) is None:
        raise ValueError(f"expected a content type such as application/x-ndjson, found {found(value)}")
    return text.lower()


def at_most(most: int, refusal: str) -> Callable[[C], C]:
    """Take what has no more than `most` elements. `refusal` follows their number, and quotes `most` as `{}`."""

    def check(elements: C) -> C:
        if len(elements) > most:
            raise ValueError(f"{len(elements)} {refusal.format(most)}")
        return elements

    return check


def listing(expected: str) -> Callable[[object], object]:
    """A list. A single value may stand without the brackets."""

    def read(value: object) -> object:
        if isinstance(value, list):
            return value
        if isinstance(value, Scalar) and value.kind is not Kind.NOTHING:
            return [value]
        raise ValueError(f"expected {expected}, found {found(value)}")

    return read


def in_any_order(values: tuple[str, ...]) -> tuple[str, ...]:
    """Sorted, so that writing a list in another order forgets no key. `default` stays first."""
    return tuple(sorted(set(values), key=lambda value: (value != DEFAULT_BIND, value)))

"""A key out of the sources that a route names; and one for a request that brings none.

Several sources make a composite key: its parts, each written as a quoted string (RFC 8941 §3.3.3), in the route's
order. A quoted string says itself where it ends, so that no two different tuples are written alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .digest import Purpose, body_digest, digest, framed
from .fingerprint import Counted
from .key import COMPOSITE, DERIVED, LONGEST, SENT, Key, Unreadable, plain, read
from .keyform import KeyRule, Weakness, weakness
from .source import Place, Reader, Source
from .values import value

_PRINTABLE = re.compile(rb"[\x20-\x7e]+")


@value
class Keyed:
    """A key, how it came about (`origin`, which stands in its record's name), and whether it is weak."""

    key: Key
    origin: bytes = SENT
    weak: Weakness | None = None


def keyed(reader: Reader, sources: Sequence[Source], rule: KeyRule) -> Keyed | Unreadable | None:
    """The key that stands in `sources`. None where none of it does: a path always does, and counts for nothing here.

    The route's rule is for the parts that a client mints, which a segment of the path beside others is not.
    """
    parts: list[bytes] = []
    absent: list[Source] = []
    weak: list[Weakness | None] = []
    by_client = minted(sources)
    for source in sources:
        found = _part(reader, source, rule if source in by_client else NO_RULE)
        if isinstance(found, Unreadable):
            return found if len(sources) == 1 else Unreadable(f"of its part {source}: {found.why}")
        if found is None:
            absent.append(source)
            continue
        parts.append(found.text)
        if source in by_client:
            weak.append(weakness(found.text))
    if absent:
        partly = any(source not in absent for source in by_client)
        return Unreadable(f"its part {absent[0]} is not there") if partly else None
    text = parts[0] if len(sources) == 1 else b", ".join(map(quoted, parts))
    weakly = weak[0] if all(weak) else None
    origin = SENT if len(sources) == 1 else COMPOSITE
    return rule.refusal(weakly) or Keyed(Key(text), origin, weakly)


#: The rule of a part that no client mints.
NO_RULE = KeyRule()


def minted(sources: Sequence[Source]) -> list[Source]:
    """The parts of a key that its client chooses: all but the segments of a path, unless there is nothing else."""
    return [source for source in sources if source.place is not Place.PATH] or list(sources)


def _part(reader: Reader, source: Source, rule: KeyRule) -> Key | Unreadable | None:
    found = reader.read(source)
    if found is None or isinstance(found, Unreadable):
        return found
    if source.place is Place.HEADER:
        if rule.in_quotes and not found.startswith(b'"'):
            return Unreadable(NO_STRING)
        key = read(found)
    else:
        key = _plain(found)
    if isinstance(key, Key) and not rule.plain:
        if fault := rule.fault(key.text):
            return Unreadable(fault)
        if rule.format.canonical is not None:
            return Key(rule.format.canonical(key.text))
    return key


NO_STRING = "it has not the format that this route asks for, a quoted string as RFC 8941 spells one"


def _plain(text: bytes) -> Key | Unreadable:
    """A key where quotation marks mean nothing."""
    if not text:
        return Unreadable("it is empty")
    if len(text) > LONGEST:
        return Unreadable(f"it has more than {LONGEST} characters")
    if _PRINTABLE.fullmatch(text) is None:
        return Unreadable("it has a character that is not printable ASCII")
    return Key(text)


def quoted(text: bytes) -> bytes:
    """Printable ASCII as a string of RFC 8941 §4.1.6."""
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def written(key: Key) -> bytes:
    """A key as the value of a field: bare where that reads back as the same key."""
    return key.text if plain(key.text) else quoted(key.text)


# ── Derived ───────────────────────────────────────────────────────────────────────────────────────


class Part(StrEnum):
    """What a key may be derived from besides sources."""

    METHOD = "method"
    TARGET = "target"
    BODY = "body"
    CREDENTIALS = "credentials"


@dataclass(frozen=True, slots=True)
class Derive:
    """How a request that brings no key is given one, by which its double is known. `window` in milliseconds."""

    parts: tuple[Part | Source, ...] = tuple(sorted(Part))
    window: int = 10_000


def derived(
    reader: Reader, derive: Derive, content: Counted, credentials: bytes, secret: bytes = b""
) -> Keyed | Unreadable | None:
    """The key that follows from `content`, which is what counts of the request; `credentials` has the digest of those
    that are bound.

    None where a source that it is derived from is not there: all such requests would be one.
    """
    parts: list[bytes] = []
    for part in derive.parts:
        found = _said(reader, part, content, credentials, secret)
        if isinstance(found, Unreadable):
            return Unreadable(f"of {part}: {found.why}")
        if found is None:
            return None
        parts += (str(part).encode(), found)
    return Keyed(Key(digest(Purpose.DERIVED, parts, secret).hex().encode()), DERIVED)


def _said(
    reader: Reader, part: Part | Source, content: Counted, credentials: bytes, secret: bytes
) -> bytes | Unreadable | None:
    match part:
        case Part.METHOD:
            return content.method
        case Part.TARGET:
            return framed(content.host) + content.target
        case Part.BODY:
            return body_digest(content.kind, content.segments, secret)
        case Part.CREDENTIALS:
            return credentials
    return reader.read(part)

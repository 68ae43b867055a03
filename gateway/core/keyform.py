"""What a route asks of its keys besides that they can be read: their format, their length, and that they are no guess.

A weak key is one that two clients may choose alike, or that one client chooses again for its next operation: the
second operation would be given the first one's answer. A key whose variable was never set is the worst of them: each
request of each such client carries it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from .key import Unreadable

#: RFC 9562 §4: any version, in either case.
_UUID = re.compile(rb"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}")
#: Crockford's base 32; the first digit has three bits only.
_ULID = re.compile(rb"[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}")


@dataclass(frozen=True, slots=True)
class Format:
    """A form that keys must have. `matches` takes a key's whole text, in time linear in it. `canonical` returns the one
    spelling of a key that matches, if the form allows several; it accepts any text."""

    name: str
    matches: Callable[[bytes], object] = field(compare=False, repr=False)
    canonical: Callable[[bytes], bytes] | None = field(default=None, compare=False, repr=False)


ANY = Format("any", lambda _: True)
#: Decided where the key is read: its text alone does not tell whether it stood in quotes.
SF_STRING = Format("sf-string", ANY.matches)
#: RFC 9562 §4 writes UUIDs in small letters, the specification of ULIDs writes them in capitals.
UUID = Format("uuid", _UUID.fullmatch, bytes.lower)
ULID = Format("ulid", _ULID.fullmatch, bytes.upper)


class WeakKeys(Enum):
    """What becomes of a request with a weak key."""

    COUNT = "count"
    REFUSE = "refuse"


class Weakness(StrEnum):
    """Why a key is weak. Metrics and logs say these words."""

    TIMESTAMP = "timestamp"
    COUNTER = "counter"
    PLACEHOLDER = "placeholder"
    LOW_VARIETY = "low_variety"


_WEAKLY = {
    Weakness.TIMESTAMP: "looks like a point in time, which two requests may share",
    Weakness.COUNTER: "looks like a counter, which begins again",
    Weakness.PLACEHOLDER: "looks like a variable that was never set",
    Weakness.LOW_VARIETY: "has too few different characters to be drawn at random",
}

#: Unix time in seconds, milliseconds, microseconds or nanoseconds, from 2001 to 2099.
_UNIX = re.compile(rb"(?:[1-3][0-9]{9}|40[0-9]{8})(?:[0-9]{3}){0,3}(?:\.[0-9]{1,9})?")
#: RFC 3339 and its kin: 2026-11-24, with a time or without.
_DATE = re.compile(
    rb"(?:19|20)[0-9]{2}-?[01][0-9]-?[0-3][0-9](?:[T _-]?[0-2][0-9]:?[0-5][0-9](?::?[0-6][0-9](?:[.,][0-9]{1,9})?)?)?"
    rb"(?:Z|[+-][0-2][0-9]:?[0-5][0-9])?",
    re.IGNORECASE,
)
#: Anything else than these characters is in no number and no point in time: most keys are told by it at once.
_TIMELY = re.compile(rb"[0-9TZtz:+ .,_-]{1,40}")
#: A number of so many digits is one that somebody counts up.
_COUNTER = re.compile(rb"[0-9]{1,12}")
#: A key of usual characters with a digit among them. It holds no template, and more than words. Most keys are such.
_ORDINARY = re.compile(rb"[A-Za-z_.:~+/=-]*[0-9][0-9A-Za-z_.:~+/=-]*")
#: A template that nothing filled in (Postman, shells, JavaScript, Ruby, Windows, printf, mustache and related forms),
#: or what a language prints for a value that is not there.
_TEMPLATE = re.compile(
    rb"\{\{[^{}]*\}\}|\{%[^{}]*%\}|[$#@%]\{[^{}]*\}|\{(?:[A-Za-z_$][A-Za-z0-9_.]*|[0-9]?)\}"
    rb"|\$\([^()]*\)|\$\(\([^()]*\)\)|\$[A-Za-z_][A-Za-z0-9_]*|`[^`]*`|\[\[[^\[\]]*\]\]"
    rb"|%!?[A-Za-z]\([^()]*\)|%\([A-Za-z0-9_]+\)[sdrx]|%[A-Za-z_][A-Za-z0-9_]*%|%[sdvixu@](?![A-Za-z0-9])"
    rb"|<%[^<>]*%>|<(?:[A-Za-z_ .:()/-]|(?<=[A-Za-z])[0-9](?=[ >])|0x[0-9A-Fa-f]++)*+>"
    rb"|\[object [A-Za-z]+\]|\(null\)"
)
_WORD = re.compile(
    rb"(?<![A-Za-z0-9])(?:undefined|null|none|nil|nan|infinity|void|empty|string|u?uid|guid|uuidgen|optional\.empty)"
    rb"(?:\(\))?(?![A-Za-z0-9])",
    re.IGNORECASE,
)
#: Fewer different characters than this were not drawn at random.
_VARIETY = 4


def weakness(text: bytes) -> Weakness | None:
    """Why two requests might come by this key independently; None where it shows no reason."""
    if _TIMELY.fullmatch(text):
        if _UNIX.fullmatch(text) or _DATE.fullmatch(text):
            return Weakness.TIMESTAMP
        if _COUNTER.fullmatch(text):
            return Weakness.COUNTER
    if not _ORDINARY.fullmatch(text) and _unset(text):
        return Weakness.PLACEHOLDER
    if len(set(text[:12])) >= _VARIETY or len(set(text)) >= _VARIETY:
        return None
    return Weakness.LOW_VARIETY


def _unset(text: bytes) -> bool:
    """Whether all that could tell this key from another is a variable that was never set. Words beside it (`order-` in
    `order-undefined`) tell nothing apart; a digit may."""
    left = _WORD.sub(b"", _TEMPLATE.sub(b"", text))
    return left != text and re.search(rb"[0-9]", left) is None


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What a route asks of its keys. `plain`: of their text nothing. `in_quotes`: a field must spell them so."""

    format: Format = ANY
    min_length: int = 1
    weak: WeakKeys = WeakKeys.COUNT
    plain: bool = field(init=False)
    in_quotes: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_quotes", self.format == SF_STRING)
        object.__setattr__(self, "plain", self.format in (ANY, SF_STRING) and self.min_length <= 1)

    def fault(self, text: bytes) -> str:
        """Which rule a key's text breaks, in words that do not quote it; empty where it breaks none."""
        if len(text) < self.min_length:
            return f"it has {len(text)} characters; {self.min_length} is the least here"
        if not self.format.matches(text):
            return f"it has not the format that this route asks for, {self.format.name}"
        return ""

    @property
    def spelling(self) -> str:
        """The format whose canonical spelling names records; empty if a key names its record byte for byte."""
        return self.format.name if self.format.canonical else ""

    def refusal(self, weak: Weakness | None) -> Unreadable | None:
        """Why a weak key is refused; None where it is not."""
        if weak is None or self.weak is WeakKeys.COUNT:
            return None
        return Unreadable(f"it {_WEAKLY[weak]}; draw a UUID", weak)

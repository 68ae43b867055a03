"""One value out of a body: JSON (RFC 8259, by a pointer of RFC 6901), or a form (urlencoded, RFC 7578).

Whoever reads the body behind us must find the same value there. So a body is taken whole or not at all, and what the
readers of this world take differently is refused: a member, a field or a part that is there twice, a charset other
than UTF-8, a broken escape.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from . import multipart
from .key import Unreadable

#: Values in a body of JSON, and fields of a form, as far as its commas and brackets tell: more take memory and time
#: out of proportion to their bytes.
MOST_VALUES = 250_000
MOST_FIELDS = 10_000

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
#: RFC 6901 §4: an array's index has no leading zero.
INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_PART_NAME = re.compile(rb';[ \t]*name=(?:"((?:[^"\\]|\\.)*)"|([^;" \t]+))', re.IGNORECASE)
_OTHERWISE_NAMED = re.compile(rb";[ \t]*(?:name\*|filename\*?)[ \t]*=", re.IGNORECASE)

Found = bytes | None | Unreadable


class _Doubled(dict[str, Any]):
    """An object that says some of its members twice."""

    __slots__ = ("twice",)

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        count = Counter(name for name, _ in pairs)
        self.twice = {name for name, times in count.items() if times > 1}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Doubled(pairs)


def no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's decoder knows. Raises ValueError."""
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=no_constant, strict=True)


def parsed(body: bytes) -> Any | Unreadable:
    """The document in a body of JSON. A byte order mark before it is ignored (RFC 8259 §8.1)."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_VALUES:
        return Unreadable(f"the body has more than {MOST_VALUES} values")
    try:
        return _DECODER.decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return Unreadable("the body is not JSON in UTF-8")


def steps(pointer: str) -> list[str]:
    """The reference tokens of a JSON pointer. Raises ValueError where it is none."""
    if not pointer.startswith("/") or re.search("~(?![01])", pointer):
        raise ValueError("a JSON pointer begins with / and has ~ only as ~0 and ~1")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/")]


def pointed(document: Any, pointer: str) -> Found:
    """The text of the string or integer to which `pointer` leads; None where it leads nowhere, or to null."""
    here = document
    for step in steps(pointer):
        if isinstance(here, dict):
            if isinstance(here, _Doubled) and step in here.twice:
                return Unreadable("the body has a member on its way twice")
            if step not in here:
                return None
            here = here[step]
        elif isinstance(here, list) and INDEX.fullmatch(step):
            if int(step) >= len(here):
                return None
            here = here[int(step)]
        else:
            return None
    return _scalar(here)


def _scalar(found: Any) -> Found:
    match found:
        case None:
            return None
        case str():
            try:
                return found.encode()
            except UnicodeEncodeError:
                return Unreadable("it is half of a surrogate pair")
        case bool():
            return Unreadable("it is a boolean")
        case int():
            try:
                return b"%d" % found
            except ValueError:  # more digits than Python writes
                return Unreadable("it is a number of thousands of digits")
        case float():  # as it is spelled: 1.0, 1e3
            return Unreadable("it is a number with a fraction or an exponent; send a string")
    return Unreadable("it is an object or an array")


def parameter(pairs: bytes, name: str, what: str) -> Found:
    """The value of `name` in a query or an urlencoded body (`+` is a space, `%` and two digits an octet)."""
    if pairs.count(b"&") > MOST_FIELDS:
        return Unreadable(f"there are more than {MOST_FIELDS} parameters")
    wanted, found = name.encode(), None
    for pair in pairs.split(b"&"):
        spelled, _, text = pair.partition(b"=")
        if _unescaped(spelled) != wanted:
            continue
        if found is not None:
            return Unreadable(f"{what} is there twice")
        if _BROKEN_ESCAPE.search(text):
            return Unreadable(f"{what} has a broken escape")
        found = _unescaped(text)
    return found


def without_parameters(pairs: bytes, names: frozenset[bytes]) -> bytes | None:
    """A query or an urlencoded body less the parameters of these names, the others byte for byte and in their order.
    None if it has no others. One with more parameters than are read stays as it is, and so does a parameter with a
    semicolon in its value: a service may take what stands behind it for another parameter."""
    if pairs.count(b"&") > MOST_FIELDS:
        return pairs
    kept = [pair for pair in pairs.split(b"&") if b";" in pair or _unescaped(pair.partition(b"=")[0]) not in names]
    return b"&".join(kept) if kept else None


def without_fields(parts: Iterable[bytes], names: frozenset[bytes]) -> list[bytes]:
    """The parts of a multipart form less the fields of these names. Files, and parts that do not say their one name,
    stay."""
    return [part for part in parts if _field_name(part) not in names]


def _field_name(part: bytes) -> bytes | None:
    """The name of a part that is a plain field."""
    named = _named(part.partition(b"\r\n\r\n")[0])
    return None if named is None or named[1] else named[0]


def _unescaped(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text


def form_field(types: Sequence[bytes], body: bytes, name: str) -> Found:
    """The value of a form's field. `types` has the values of `Content-Type`."""
    kind = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    if kind == b"application/x-www-form-urlencoded":
        return parameter(body, name, "the field")
    if kind != b"multipart/form-data":
        return Unreadable("the body is not a form, as Content-Type says") if body else None
    parts = multipart.form(types[0], body)
    if parts is None:
        return Unreadable("the body is not the multipart form that Content-Type says")
    return _part(parts, name.encode())


def _part(segments: Iterable[bytes], wanted: bytes) -> Found:
    found: bytes | None = None
    for segment in segments:
        head, _, content = segment.partition(b"\r\n\r\n")
        named = _named(head)
        if named is None:
            return Unreadable("a part of the form does not say its one name")
        name, otherwise = named
        if name != wanted:
            continue
        if otherwise:
            return Unreadable("the field is a file, or named in two ways")
        if found is not None:
            return Unreadable("the field is there twice")
        found = content
    return found


def _named(head: bytes) -> tuple[bytes, bool] | None:
    """The one name in the head of a part, and whether it is a file or has another name besides; None without one."""
    dispositions = [
        line.partition(b":")[2] for line in head.split(b"\r\n") if line[:20].lower().startswith(b"content-disposition:")
    ]
    names = [_PART_NAME.findall(each) for each in dispositions]
    if len(names) != 1 or len(names[0]) != 1:
        return None
    quoted, token = names[0][0]
    return re.sub(rb"\\(.)", rb"\1", quoted) or token, _OTHERWISE_NAMED.search(dispositions[0]) is not None

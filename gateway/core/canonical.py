"""JSON bodies by what they say, not by how they are spelled: RFC 8785, and RFC 6901 for what is left out.

A canonical form may never make one request of two. RFC 8785 is defined for I-JSON (RFC 7493) alone, and takes every
number for a double: 9007199254740993 would become …992, and of two members with one name a parser keeps one. So a body
has a canonical form only where nothing is lost on the way: UTF-8, no name twice in an object, no lone surrogate, every
number a double that is written back as the same number, and no more than DEEPEST levels. Any other body has none,
and is digested as it came, under another kind, so that it is equal to nothing but itself. A byte order mark before the
JSON is ignored (RFC 8259 §8.1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import rfc8785

from .entity import INDEX, no_constant

#: Levels of arrays and objects. A bound of our own: that of the interpreter depends on who calls, and the same body
#: must be canonical on every way.
DEEPEST = 128

#: Integers of fewer characters are exact as doubles.
_SHORT_INTEGER = 16

#: The tokens of a JSON Pointer (`entity.steps`).
Pointer = Sequence[str]


def canonical(body: bytes, ignored: Sequence[Pointer] = ()) -> bytes | None:
    """`body` as RFC 8785 writes it, without what `ignored` points at; None where it has no such form.

    What is not there to be left out is no fault. An element of an array that is left out moves those behind it up;
    all pointers are followed before anything is taken out.
    """
    try:
        value = _DECODER.decode(body.decode("utf-8-sig"))
        _measured(value)
        _leave_out(value, ignored)
        return rfc8785.dumps(value)
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _integer(text: str) -> int | float:
    return int(text) if len(text) < _SHORT_INTEGER else _number(text)


def _number(text: str) -> float:
    """Raises ValueError where a double does not hold what is written."""
    number = float(text)
    shortest = repr(number)
    if shortest != text and (shortest in ("inf", "-inf") or Decimal(shortest) != Decimal(text)):
        raise ValueError("a number is not a double")
    return number


#: Strict: a control character within a string is no JSON (RFC 8259 §7).
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=no_constant, strict=True
)


def _measured(value: Any) -> None:
    """Raises ValueError where `value` is too deep."""
    level = [value] if type(value) in _HOLDERS else []
    for _ in range(DEEPEST):
        if not level:
            return
        level = [
            each
            for holder in level
            for each in (holder.values() if type(holder) is dict else holder)
            if type(each) in _HOLDERS
        ]
    if level:
        raise ValueError("it is nested too deeply")


_HOLDERS = (dict, list)


def _leave_out(value: Any, ignored: Iterable[Pointer]) -> None:
    """Take out of `value` what each pointer names, where it is there."""
    members: list[tuple[dict[str, Any], str]] = []
    elements: dict[int, tuple[list[Any], set[int]]] = {}
    for tokens in ignored:
        holder = _followed(value, tokens[:-1])
        if isinstance(holder, dict) and tokens[-1] in holder:
            members.append((holder, tokens[-1]))
        elif isinstance(holder, list) and INDEX.fullmatch(tokens[-1]) and int(tokens[-1]) < len(holder):
            elements.setdefault(id(holder), (holder, set()))[1].add(int(tokens[-1]))
    for found, name in members:
        found.pop(name, None)
    for array, indexes in elements.values():
        for index in sorted(indexes, reverse=True):
            del array[index]


def _followed(value: Any, tokens: Pointer) -> Any:
    """What stands at the end of `tokens`; None where nothing does."""
    for token in tokens:
        if isinstance(value, dict):
            value = value.get(token)
        elif isinstance(value, list) and INDEX.fullmatch(token) and int(token) < len(value):
            value = value[int(token)]
        else:
            return None
    return value

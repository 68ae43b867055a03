"""Durations and sizes: a whole number and its unit, `30s`, `1MiB`. Each refusal gives the corrected value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from ..core.policy import DAY, HOUR, MINUTE, SECOND
from .faults import short

DURATIONS = {"d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND, "ms": 1}
SIZES = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}

#: The record has 40 bits for a life, which is a lease (timeout and late) and a doubt window: three of these.
LONGEST = 3650 * DAY

_OTHER_DURATIONS = {
    "ms": ("msec", "msecs", "millis", "millisecond", "milliseconds"),
    "s": ("", "sec", "secs", "second", "seconds"),
    "m": ("min", "mins", "minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "d": ("day", "days"),
}
_OTHER_SIZES = {
    "B": ("", "byte", "bytes"),
    "KiB": ("k", "kb", "ki"),
    "MiB": ("m", "mb", "mi"),
    "GiB": ("g", "gb", "gi"),
}
_WRITTEN = re.compile(r"([0-9]{1,18})([A-Za-z]+)")
_NEARLY = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?[ \t]*([A-Za-z]*)[ \t,]*")


def duration(text: str, *, zero: bool = False) -> int:
    """The milliseconds of `text`. ValueError where it is none, is zero and must not be, or is too long."""
    value = _exact(text, DURATIONS)
    if value is None:
        raise ValueError(_refusal(text, "a duration such as 30s", _duration_meant(text)))
    if value > LONGEST:
        raise ValueError(f"`{short(text)}` is longer than ten years; use {show_duration(LONGEST)} at most")
    if value == 0 and not zero:
        raise ValueError(f"`{short(text)}` is no time at all; use 1ms or more")
    return value


def size(text: str, *, least: int = 0, most: int) -> int:
    """The bytes of `text`. ValueError where it is none, or out of bounds."""
    value = _exact(text, SIZES)
    if value is None:
        raise ValueError(_refusal(text, "a size such as 1MiB", _size_meant(text)))
    if value > most:
        raise ValueError(f"`{short(text)}` is too much; use {show_size(most)} at most")
    if value < least:
        raise ValueError(f"`{short(text)}` is too little; use {show_size(least)} or more")
    return value


def show_duration(value: int) -> str:
    """In the largest unit that says it exactly: 95000 is `95s`."""
    return _show(value, DURATIONS)


def show_size(value: int) -> str:
    """In the largest unit that says it exactly: 1536 is `1536B`, 2048 is `2KiB`."""
    return _show(value, SIZES)


def _exact(text: str, units: Mapping[str, int]) -> int | None:
    found = _WRITTEN.fullmatch(text)
    return None if found is None or found[2] not in units else int(found[1]) * units[found[2]]


def _show(value: int, units: Mapping[str, int]) -> str:
    if value == 0:
        return "0" + ("s" if units is DURATIONS else "B")
    unit = next(unit for unit, worth in units.items() if value % worth == 0)
    return f"{value // units[unit]}{unit}"


def _refusal(text: str, expected: str, meant: str | None) -> str:
    if text.lstrip().startswith("-"):
        return f"expected {expected}, found `{short(text)}`, which is negative"
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) and meant:
        return f"the number {text} has no unit; use {meant}"
    return f"expected {expected}, found `{short(text)}`" + (f"; use {meant}" if meant else "")


def _duration_meant(text: str) -> str | None:
    names = _names(_OTHER_DURATIONS)
    names |= {"w": ("d", 7), "week": ("d", 7), "weeks": ("d", 7)}
    if re.fullmatch("[0-9]{4,15}", text):
        return _without_unit(int(text))
    meant = _meant(text, names, DURATIONS)
    return meant if meant and (_exact(meant, DURATIONS) or 0) <= LONGEST else None


def _without_unit(number: int) -> str | None:
    """Return the meaning of a number from 1000 on: milliseconds if it is round among them, seconds if they are whole
    hours."""
    if number * SECOND > LONGEST and number > LONGEST:
        return None
    if number % 1000 == 0:
        return f"{number // 1000}s or {number}ms"
    if number % 3600 == 0 and number * SECOND <= LONGEST:
        return f"{number}s"
    return f"{number}ms" if number % 60 or number * SECOND > LONGEST else f"{number}s or {number}ms"


def _size_meant(text: str) -> str | None:
    return _meant(text, _names(_OTHER_SIZES), SIZES)


def _names(others: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int]]:
    return {name: (unit, 1) for unit, names in others.items() for name in (unit.lower(), *names)}


def _meant(text: str, names: Mapping[str, tuple[str, int]], units: Mapping[str, int]) -> str | None:
    """What `48 hours`, `1h30m`, `1.5MB` or `30` most likely mean, in our spelling."""
    position, total, pieces = 0, Fraction(0), []
    text = re.sub("(?<=[0-9])_(?=[0-9])", "", text.strip())
    while position < len(text):
        found = _NEARLY.match(text, position)
        if found is None or found[3].lower() not in names:
            return None
        position = found.end()
        unit, times = names[found[3].lower()]
        number = Fraction(found[1] + (f".{found[2]}" if found[2] else ""))
        total += number * times * units[unit]
        pieces.append((number * times, unit))
    if not pieces or total.denominator != 1:
        return None
    number, unit = pieces[0]
    whole = len(pieces) == 1 and number.denominator == 1
    return f"{number}{unit}" if whole else _show(int(total), units)

"""Instants as text. The caller says what time it is."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache


def instant(milliseconds: int) -> bytes:
    """RFC 3339, in UTC, to the millisecond; from milliseconds since 1970."""
    second, rest = divmod(milliseconds, 1000)
    return b"%b.%03dZ" % (_second(second), rest)


@lru_cache(maxsize=1024)
def second_of(second: int) -> str:
    """The same without its fraction and zone, from seconds since 1970."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=1024)
def _second(second: int) -> bytes:
    return second_of(second).encode()


@lru_cache(maxsize=8)
def http_date(second: int) -> bytes:
    """The value of a `Date` field (RFC 9110 §5.6.7), from seconds since 1970."""
    return formatdate(second, usegmt=True).encode()

"""Cookies of a request (RFC 6265 §4.2.1): pairs behind semicolons, in one field or in several."""

from __future__ import annotations

from collections.abc import Sequence


def cookies(fields: Sequence[bytes], name: bytes) -> list[bytes]:
    """Every value under `name` (its case counts, RFC 6265 §5.3) in these `Cookie` fields, as it was sent, quotes
    included. A pair without `=` has no name."""
    found: list[bytes] = []
    for field in fields:
        for pair in field.split(b";"):
            key, equals, value = pair.strip(b" \t").partition(b"=")
            if equals and key.strip(b" \t") == name:
                found.append(value.strip(b" \t"))
    return found

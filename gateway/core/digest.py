"""Digests: BLAKE2b-256, personalised, over length-prefixed parts.

The prefix makes the encoding injective: no two different sequences of parts are the same bytes.
The personalisation keeps a digest made for one purpose from meaning anything for another.
What comes out names live records, so it never changes (tests/core/test_pinned.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from functools import lru_cache
from hashlib import blake2b


class Purpose(bytes, Enum):
    """What a digest is for (at most 16 bytes: RFC 7693 §2.8 has room for no more)."""

    NAME = b"oncegate/name"
    REQUEST = b"oncegate/request"
    CREDENTIALS = b"oncegate/bound"
    PART = b"oncegate/part"
    BODY = b"oncegate/body"
    RECIPE = b"oncegate/recipe"
    SECRET = b"oncegate/secret"
    DERIVED = b"oncegate/derived"


#: Most parts are short; making their prefixes anew was a fifth of a fingerprint's cost.
_PREFIXES = 512
#: A body up to this size is copied rather than digested in pieces.
_SHORT = 16 << 10
_PREFIX = [size.to_bytes(8, "little") for size in range(_PREFIXES)]


def digest(purpose: Purpose, parts: Iterable[bytes], secret: bytes = b"") -> bytes:
    """32 bytes that stand for `parts` in their order. `secret` (at most 64 bytes) keys them."""
    return begun(purpose, parts, secret).digest()


def begun(purpose: Purpose, parts: Iterable[bytes], secret: bytes = b"") -> blake2b:
    """A digest that has begun with `parts`, to be gone on with."""
    hasher = _fresh(purpose, secret).copy()
    hasher.update(b"".join(map(framed, parts)))
    return hasher


def framed(part: bytes) -> bytes:
    """A part behind its length."""
    size = len(part)
    return (_PREFIX[size] if size < _PREFIXES else size.to_bytes(8, "little")) + part


@lru_cache(maxsize=64)
def _fresh(purpose: Purpose, secret: bytes) -> blake2b:
    """To be copied: setting one up anew costs as much as digesting a request."""
    return blake2b(digest_size=32, key=secret, person=purpose.value)


def body_digest(kind: bytes, segments: Sequence[bytes], secret: bytes = b"") -> bytes:
    """As `digest`, for what may be megabytes long: the segments are not copied together first."""
    hasher = _begun_body(kind, secret).copy()
    for part in segments:
        if len(part) < _SHORT:
            hasher.update(framed(part))
        else:
            hasher.update(len(part).to_bytes(8, "little"))
            hasher.update(part)
    return hasher.digest()


@lru_cache(maxsize=16)
def _begun_body(kind: bytes, secret: bytes) -> blake2b:
    return begun(Purpose.BODY, (kind,), secret)


def tag(part: bytes, value: bytes, secret: bytes = b"") -> bytes:
    """Two bytes by which a 422 can say which part of a request differs. Never used for credentials."""
    return digest(Purpose.PART, (part, value), secret)[:2]

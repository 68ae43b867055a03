"""A record as bytes, and back.

Layout of versions 1 and 2, little-endian. What a script must read (version, state, holder) stands first, at
fixed offsets that no later version moves::

    offset  bytes
    0       1     version
    1       1     state in the low four bits, doubt in the high four
    2       1     attempt
    3       12    holder
    15      2     status that the upstream last said, 0 for none
    17      4     recipe of the fingerprint
    21      16    digest of the request
    37      16    digest of the credentials
    53      6     first seen  ┐ milliseconds since 1970
    59      6     expires     ┘
    65      5     life        ┐
    70      5     lease       │ milliseconds
    75      5     window      ┘
    80      1     how many parts the recipe has, n
    81      2n    their tags
            1     length of the route's label, r (at most 255)
            r     label, UTF-8
    — version 2 alone —
            16    id of the trace in which its answer was made
            8     id of the span that made it
    — a completed record goes on —
            1     1: with a body, 0: a tombstone
            4     length of the head, h
            h     field lines as they go on the wire
            …     body, to the end

A record that was cut short is refused as unreadable wherever the layout shows it. It does not show a body
that lost its end, since a body has no length of its own: neither Redis nor SQLite stores half a value.

Version 2 is written where there is a trace to be remembered, version 1 elsewhere, and both are read: a gate that knows
only the first refuses what has a trace, and never runs over it. So all gates are brought to this version before one of
them is told to record traces (docs/tracing.md).

For the six parts of the plain recipe and a label of ten characters the header is 104 bytes; with a name
of 46 (`og:` and 43 characters) that is 150 of our own, and five more where a record is completed. Those five stay: what
could go (a life that equals the window) needs another version, and during a rolling update the gates of this one would
refuse to replay what the new ones have stored.
"""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from functools import lru_cache

from ..core.fingerprint import Fingerprint
from ..core.message import Answer
from ..core.record import ClaimTerms, Doubt, NewClaim, NewKeep, Record, State
from ..ports import Stored

#: The latest version; the earlier ones are read as well.
VERSION = 2
_TRACE_BYTES = 24
#: Offsets (from 0) that scripts and SQL rely on.
STATE_AT = 1
HOLDER_AT = 3
HOLDER_END = 15

#: The mark of a fingerprint is its recipe and both digests. Of each instant the low 4 bytes stand before the high 2.
_FIXED = struct.Struct("<BBB12sH36sIHIH")
_DURATIONS_AT = _FIXED.size
_PARTS_AT = _DURATIONS_AT + 15
_STATES = {int(state): state for state in State}
_DOUBTS = {int(doubt): doubt for doubt in Doubt}


#: How many parts there are, by how many bytes their tags take.
_PARTS = [bytes((size // 2,)) for size in range(512)]


@lru_cache(maxsize=1024)
def _durations(life: int, lease: int, window: int) -> bytes:
    """Each 5 bytes; those of a route's records hardly vary."""
    return (life | lease << 40 | window << 80).to_bytes(15, "little")


@lru_cache(maxsize=1024)
def _read_durations(value: bytes) -> tuple[int, int, int]:
    return tuple(int.from_bytes(value[at : at + 5], "little") for at in (0, 5, 10))  # type: ignore[return-value]


@lru_cache(maxsize=1024)
def _label(route: str) -> bytes:
    """Its length, and the label."""
    label = route.encode()
    if len(label) > 255:
        label = label[:255].decode(errors="ignore").encode()  # not within a character
    return bytes((len(label),)) + label


class Unreadable(ValueError):
    """Bytes that are no record of a version that this gate reads. Refused, never guessed at."""


def _value(
    version: int,
    state: int,
    attempt: int,
    holder: bytes,
    status: int,
    mark: bytes,
    first_seen: int,
    expires: int,
    durations: bytes,
    tags: bytes,
    *rest: bytes,
) -> bytes:
    """Return the bytes of a record. `state` holds the doubt too, and `rest` is what follows the tags."""
    fixed = _FIXED.pack(
        version, state, attempt, holder, status, mark,
        first_seen & 0xFFFF_FFFF, first_seen >> 32, expires & 0xFFFF_FFFF, expires >> 32,
    )  # fmt: skip
    return b"".join((fixed, durations, _PARTS[len(tags)], tags, *rest))


_IN_FLIGHT, _COMPLETED = int(State.IN_FLIGHT), int(State.COMPLETED)


def encode(record: Record | NewClaim | NewKeep) -> bytes:
    """Return the bytes of a record. Those of a NewClaim or a NewKeep are the bytes of its `record`."""
    if isinstance(record, NewClaim):
        terms = record.terms
        claimed, _, label = terms.encoder or _prepared(terms)
        mark, tags = record.fingerprint
        wall = record.wall
        return _value(1, _IN_FLIGHT, 1, record.holder, 0, mark, wall, wall + terms.life, claimed, tags, label)
    if isinstance(record, NewKeep):
        claim, head = record.claim, record.head
        terms = claim.terms
        _, kept, label = terms.encoder or _prepared(terms)
        mark, tags = claim.fingerprint
        return _value(
            1, _COMPLETED, 1, claim.holder, record.status, mark, claim.wall, record.wall + terms.window,
            kept, tags, label, b"\x01", len(head).to_bytes(4, "little"), head, record.body,
        )  # fmt: skip
    answer = record.answer
    mark, tags = record.fingerprint
    rest = [_label(record.route), record.trace]
    if answer is not None:
        kept = b"\x00" if answer.body is None else b"\x01"
        rest += kept, len(answer.head).to_bytes(4, "little"), answer.head, answer.body or b""
    return _value(
        2 if record.trace else 1,
        record.state | record.doubt << 4,
        record.attempt,
        record.holder,
        record.status,
        mark,
        record.first_seen,
        record.expires,
        _durations(record.life, record.lease, record.window),
        tags,
        *rest,
    )


def _prepared(terms: ClaimTerms) -> tuple[bytes, bytes, bytes]:
    """Prepare the durations of a claim and of a Keep and the label of a route, and cache them."""
    made = terms.encoder = (
        _durations(terms.life, terms.lease, terms.window),
        _durations(terms.window, terms.lease, terms.window),
        _label(terms.route),
    )
    return made


_MARK_AT, _INSTANTS_AT = 17, 53
_INSTANTS = struct.Struct("<IHIH")


def stored(value: bytes, mark: bytes) -> Stored | None:
    """The answer of a completed record of a request with this mark, with its body; None where there is anything else
    to be said of it."""
    if value[_MARK_AT:_INSTANTS_AT] != mark or value[STATE_AT] != State.COMPLETED:
        return None
    version = value[0]
    try:
        at = _PARTS_AT + 1 + 2 * value[_PARTS_AT]
        at += 1 + value[at] + (_TRACE_BYTES if version == 2 else 0)
        head_at = at + 5
        body_at = head_at + int.from_bytes(value[at + 1 : head_at], "little")
        if value[at] != 1 or body_at > len(value) or not 1 <= version <= VERSION:
            return None
    except IndexError:
        return None
    seen_low, seen_high, expires_low, expires_high = _INSTANTS.unpack_from(value, _INSTANTS_AT)
    return (
        value[15] | value[16] << 8,
        value[head_at:body_at],
        value[body_at:],
        seen_low | seen_high << 32,
        expires_low | expires_high << 32,
    )


#: No header is longer: 255 parts, a label of 255 bytes, and a trace.
HEADER = _PARTS_AT + 1 + 2 * 255 + 1 + 255 + _TRACE_BYTES
#: How a name looks: unpadded base64url of a digest.
NAME = re.compile(rb"[A-Za-z0-9_-]{43}")


_DIGITS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"


def share_before(name: str) -> float:
    """How many of all names, from 0 to 1, sort before this one, about: they are digests, so they lie evenly. 1 where
    there is no name."""
    if not name:
        return 1.0
    return sum(_DIGITS.find(character) / 64.0 ** (place + 1) for place, character in enumerate(name[:3]))


def header(value: bytes) -> Record:
    """The record of a value's first HEADER bytes, without its answer. Raises Unreadable."""
    try:
        label_at = _PARTS_AT + 1 + 2 * value[_PARTS_AT]
        end = label_at + 1 + value[label_at] + (_TRACE_BYTES if value[0] == 2 else 0)
    except IndexError:
        raise Unreadable("a record that is cut short") from None
    if value[STATE_AT] & 15 != State.COMPLETED:
        return decode(value[:end])
    return replace(decode(value[:end] + b"\x00\x00\x00\x00\x00"), answer=None)


def decode(value: bytes) -> Record:
    """The record of `value`. Raises Unreadable, which says whether a newer gate wrote it."""
    if len(value) < _PARTS_AT + 2:
        raise Unreadable(f"a record of {len(value)} bytes is too short to be one")
    (
        version, state, attempt, holder, status, mark,
        seen_low, seen_high, expires_low, expires_high,
    ) = _FIXED.unpack_from(value)  # fmt: skip
    if not 1 <= version <= VERSION:
        raise Unreadable(f"a record of version {version}; this gate reads versions 1 to {VERSION}")
    life, lease, window = _read_durations(value[_DURATIONS_AT:_PARTS_AT])
    try:
        position = _PARTS_AT + 1
        label_at = position + 2 * value[_PARTS_AT]
        tags = value[position:label_at]
        position = label_at + 1 + value[label_at]
        label = value[label_at + 1 : position].decode()
        trace = b""
        if version > 1:
            trace = value[position : position + _TRACE_BYTES]
            position += _TRACE_BYTES
        if position > len(value):
            raise Unreadable("a record that is cut short")
        answer = None
        if position < len(value):
            kept, length = value[position], int.from_bytes(value[position + 1 : position + 5], "little")
            head_at = position + 5
            position = head_at + length
            if position > len(value):
                raise Unreadable("a record whose answer is cut short")
            answer = Answer(status, value[head_at:position], value[position:] if kept else None)
        elif state & 15 == State.COMPLETED:
            raise Unreadable("a completed record without its answer")
        return Record(
            _STATES[state & 15],
            holder,
            attempt,
            Fingerprint(mark, tags),
            label,
            seen_low | seen_high << 32,
            expires_low | expires_high << 32,
            life,
            lease,
            window,
            status,
            _DOUBTS[state >> 4],
            answer,
            trace,
        )
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise Unreadable(f"a record that cannot be read: {error!r}") from error

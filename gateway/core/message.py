"""Requests and responses as values, and which of their fields travel end to end.

Field names and values are bytes exactly as they came: case, order, repetition and octets above 0x7f
are the sender's. Only comparison lower-cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Field = tuple[bytes, bytes]
Fields = Sequence[Field]

#: RFC 9110 §7.6.1, and the fields that RFC 2616 §13.5.1 listed besides, as other gateways strip them.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

#: Framing is made anew by the gate on each side (RFC 9112 §6), so it never travels either.
FRAMING = frozenset((b"content-length", b"transfer-encoding"))

#: The gate's own words. What a peer sends under these names is removed.
OWN_RESPONSE_FIELDS = frozenset(
    (
        b"idempotent-replayed",
        b"idempotency-status",
        b"idempotency-expires",
        b"idempotency-first-seen",
        b"idempotency-outcome",
    )
)

_NEVER_FORWARDED = HOP_BY_HOP | FRAMING
_NEVER_RETURNED = HOP_BY_HOP | FRAMING | OWN_RESPONSE_FIELDS


class Request(NamedTuple):
    """A whole request, its body read and unchunked."""

    method: bytes
    target: bytes
    fields: Fields
    body: bytes = b""
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole final response of an upstream, or its head with what was read of the body so far."""

    status: int
    fields: Fields
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is remembered of a response, in the form in which it is sent again.

    `head` is the block of field lines as they go on the wire, each ended by CRLF, without those that
    a replay does not carry. `body` is None for a tombstone: it ran, its answer cannot be replayed.
    """

    status: int
    head: bytes
    body: bytes | None


def values(fields: Fields, name: bytes) -> list[bytes]:
    """Every value under `name` (given in lower case), without surrounding white space."""
    return [value.strip(b" \t") for field, value in fields if field.lower() == name]


def listed(fields: Fields, name: bytes) -> list[bytes]:
    """The members of a comma-separated list field (RFC 9110 §5.6.1), in lower case."""
    members: list[bytes] = []
    for value in values(fields, name):
        members.extend(member.strip(b" \t").lower() for member in value.split(b","))
    return [member for member in members if member]


def preferred_wait(fields: Fields) -> int | None:
    """How long the client wants to wait at most, in milliseconds (`Prefer: wait=n`, RFC 7240 §4.3); None if it
    does not say, or not in whole seconds. The first one counts (§2)."""
    for member in listed(fields, b"prefer"):
        name, _, value = member.partition(b";")[0].partition(b"=")
        if name.strip() == b"wait":
            seconds = value.strip(b' \t"')
            return int(seconds) * 1000 if seconds.isdigit() and len(seconds) < 10 else None
    return None


def named_by_connection(fields: Fields) -> frozenset[bytes]:
    """The names that `Connection` declares to be for this hop only."""
    return frozenset(listed(fields, b"connection"))


def forwarded(fields: Fields) -> list[Field]:
    """The fields of a request that go on to the upstream."""
    return _travelling(fields, _NEVER_FORWARDED)


def returned(fields: Fields) -> list[Field]:
    """The fields of a response that go on to the client."""
    return _travelling(fields, _NEVER_RETURNED)


def _travelling(fields: Fields, never: frozenset[bytes]) -> list[Field]:
    for name, _ in fields:
        if len(name) == 10 and name.lower() == b"connection":
            never = never | named_by_connection(fields)
            break
    return [field for field in fields if field[0].lower() not in never]


def lines(fields: Iterable[Field]) -> bytes:
    """The field lines of a head as they go on the wire."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


#: Never part of a replay: it speaks of the moment, or to one client only.
NOT_REPLAYED = frozenset((b"date", b"set-cookie", b"set-cookie2"))


def remembered(
    response: Response,
    *,
    keep: frozenset[bytes] | None = None,
    drop: frozenset[bytes] = frozenset(),
    tombstone: bool = False,
) -> Answer:
    """What a duplicate will be given: the response less what does not survive a replay.

    `keep`, where it is given, lists the only fields that a replay carries; `drop` takes more away.
    Names are in lower case.
    """
    never = NOT_REPLAYED | drop
    fields = [
        field
        for field in returned(response.fields)
        if (name := field[0].lower()) not in never and (keep is None or name in keep)
    ]
    return Answer(response.status, lines(fields), None if tombstone else response.body)

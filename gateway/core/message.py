"""Requests and responses as values, and which of their fields travel end to end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from .fields import Block, Field, Fields, Shape, fields_of
from .memo import Memo
from .values import value

#: Lines of a head: `fields.Fields`, or pairs of which these can be made.
Lines = Sequence[Field]

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

#: Bound to a key unless a route says otherwise.
CREDENTIALS = (b"authorization", b"x-api-key", b"api-key")

#: Fields that select the operation which a request asks for, beside its method and target: a method sent as a field
#: (`X-HTTP-Method-Override` and its variants, Rest.li), a remote procedure (SOAP 1.1, AWS, Next.js), or the event type
#: of a webhook (GitHub, GitLab, Gitea, Bitbucket, Shopify, WooCommerce, CloudEvents). A retry repeats all of them.
OPERATION_FIELDS = (
    b"ce-type",
    b"next-action",
    b"soapaction",
    b"x-amz-target",
    b"x-event-key",
    b"x-gitea-event",
    b"x-github-event",
    b"x-gitlab-event",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    b"x-restli-method",
    b"x-shopify-topic",
    b"x-wc-webhook-topic",
)

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

NEVER_FORWARDED = HOP_BY_HOP | FRAMING
_NEVER_RETURNED = HOP_BY_HOP | FRAMING | OWN_RESPONSE_FIELDS


class Request(NamedTuple):
    """A whole request, its body read and unchunked. `peer` is who asked, as far as that is known; `hop` whoever
    handed it on to us, where that is another; `secure`, whether over TLS."""

    method: bytes
    target: bytes
    fields: Lines
    body: bytes = b""
    peer: str = ""
    hop: str = ""
    secure: bool = False


@value
class Response:
    """A whole final response of an upstream, or its head with what was read of the body so far."""

    status: int
    fields: Lines
    body: bytes = b""


@value
class Answer:
    """What is remembered of a response, in the form in which it is sent again.

    `head` is the block of field lines as they go on the wire, each ended by CRLF, without those that
    a replay does not carry. `body` is None for a tombstone: it ran, its answer cannot be replayed.
    """

    status: int
    head: bytes
    body: bytes | None


def values(fields: Lines, name: bytes) -> list[bytes]:
    """Every value under `name` (given in lower case), without surrounding white space."""
    return fields_of(fields).all(name)


def listed(fields: Lines, name: bytes) -> list[bytes]:
    """The members of a comma-separated list field (RFC 9110 §5.6.1), in lower case."""
    return [member for each in values(fields, name) for member in _members(each)]


def preferred_wait(fields: Lines) -> int | None:
    """How long the client wants to wait at most, in milliseconds (`Prefer: wait=n`, RFC 7240 §4.3); None if it
    does not say, or not in whole seconds. The first one counts (§2)."""
    if b"prefer" not in fields_of(fields).shape.at:
        return None
    for member in listed(fields, b"prefer"):
        name, _, value = member.partition(b";")[0].partition(b"=")
        if name.strip() == b"wait":
            seconds = value.strip(b' \t"')
            return int(seconds) * 1000 if seconds.isdigit() and len(seconds) < 10 else None
    return None


_NOTHING: frozenset[bytes] = frozenset()


def named_by_connection(fields: Lines) -> frozenset[bytes]:
    """The names that `Connection` declares to be for this hop only."""
    fields = fields_of(fields)
    at = fields.shape.at.get(b"connection")
    if at is None:
        return _NOTHING
    if len(at) == 1:
        return _named[fields.values[at[0]]]
    return frozenset(listed(fields, b"connection"))


def _members(value: bytes) -> list[bytes]:
    return [name for member in value.split(b",") if (name := member.strip(b" \t").lower())]


#: The members of one `Connection` field. Clients send few values of it.
_named: Memo[bytes, frozenset[bytes]] = Memo(
    lambda value: frozenset(_members(value)), 256, lambda value: len(value) <= 512
)


def forwarded(fields: Lines) -> list[Field]:
    """The fields of a request that go on to the upstream."""
    fields = fields_of(fields)
    return [fields[position] for position in _FORWARDED.of(fields)]


def returned_lines(fields: Lines) -> bytes:
    """The fields of a response that go on to the client, as they go on the wire."""
    return RETURNED.lines(fields_of(fields))


class Travel:
    """Which names do not travel further. Made few times, for each direction and policy."""

    __slots__ = ("keep", "never")

    def __init__(self, never: frozenset[bytes], keep: frozenset[bytes] | None = None) -> None:
        self.never = never
        self.keep = keep

    def positions(self, shape: Shape) -> tuple[int, ...]:
        """Of the lines that do, as far as the names say it."""
        return self._but(shape, _NOTHING)

    def _but(self, shape: Shape, named: frozenset[bytes]) -> tuple[int, ...]:
        never, keep = self.never | named, self.keep
        return tuple(
            position
            for position, name in enumerate(shape.lowered)
            if name not in never and (keep is None or name in keep)
        )

    def of(self, fields: Fields) -> tuple[int, ...]:
        """Of the lines that do, less what `Connection` names."""
        shape = fields.shape
        named = named_by_connection(fields)
        if named.isdisjoint(shape.at):
            return shape.made((self,), self.positions)
        return self._but(shape, named)

    def lines(self, fields: Fields) -> bytes:
        """Those lines as they go on the wire."""
        shape, values = fields.shape, fields.values
        told, block = shape.made(self, self._usual)
        # One keep-alive, as most say it: no field of that name travels.
        if (
            told
            and not (len(told) == 1 and values[told[0]] == b"keep-alive")
            and not named_by_connection(fields).isdisjoint(shape.at)
        ):
            block = shape.blocks[self.of(fields)]
        return block.template % block.pick(values)

    def _usual(self, shape: Shape) -> tuple[tuple[int, ...], Block]:
        """Where the Connection fields stand, and how the lines are written that travel if those name none."""
        return shape.at.get(b"connection", ()), shape.blocks[self.positions(shape)]


_FORWARDED = Travel(NEVER_FORWARDED)
RETURNED = Travel(_NEVER_RETURNED)


#: Never part of a replay: it speaks of the moment, or to one client only, whatever a route says.
NEVER_REPLAYED = frozenset((b"date", b"set-cookie", b"set-cookie2"))
#: Part of a replay only where `keep_headers` names it: a challenge, or the server's proof that belongs to one (RFC 9110
#: §11.6, §11.7), is spent once it was answered. (Proxy-Authenticate is for one hop.)
CHALLENGES = frozenset((b"www-authenticate", b"authentication-info", b"proxy-authentication-info"))
#: Part of every replay: without it nobody can read the bytes that were stored (RFC 9110 §8.4).
ALWAYS_REPLAYED = frozenset((b"content-encoding",))

_NEVER = _NEVER_RETURNED | NEVER_REPLAYED
_NEVER_UNASKED = _NEVER | CHALLENGES

#: `"date"` as a component of a signature (RFC 9421 §2), and in the list of the drafts before it.
_SIGNED_DATE = re.compile(rb'\([^()]*"date"[^()]*\)', re.IGNORECASE)
_LISTED_DATE = re.compile(rb'headers="(?:[^"]* )?date(?: [^"]*)?"', re.IGNORECASE)
#: What the head of an answer with a date of its own begins with.
DATED = b"Date: "


@lru_cache(maxsize=1024)
def _survives(keep: frozenset[bytes] | None, drop: frozenset[bytes], never: frozenset[bytes]) -> Travel:
    if keep is None:
        return Travel(never | (drop - ALWAYS_REPLAYED))
    return Travel(never | (drop - ALWAYS_REPLAYED), keep | ALWAYS_REPLAYED)


def remembered(
    response: Response,
    *,
    keep: frozenset[bytes] | None = None,
    drop: frozenset[bytes] = _NOTHING,
    tombstone: bool = False,
    replayed: bool = True,
    more: bytes = b"",
) -> Answer:
    """What a duplicate will be given: the response less what does not survive a replay.

    `keep`, where it is given, lists the only fields that a replay carries; `drop` takes more away.
    Names are in lower case. Not `replayed`: it is given at once to those who wait, and a challenge holds for them too.
    `more` has lines of the gateway's own that a replay carries.
    """
    never = _NEVER_UNASKED if keep is None and replayed else _NEVER
    fields = fields_of(response.fields)
    head = _survives(keep, drop, never).lines(fields)
    if signs_date(fields):
        head = b"%b%b\r\n%b" % (DATED, fields.all(b"date")[0], head)
    return Answer(response.status, head + more, None if tombstone else response.body)


def signs_date(fields: Fields) -> bool:
    """Whether a signature covers the one Date of a response: with another it would not verify."""
    at = fields.shape.at
    if len(at.get(b"date", ())) != 1:
        return False
    if b"signature-input" in at and any(_SIGNED_DATE.search(each) for each in fields.all(b"signature-input")):
        return True
    return b"signature" in at and any(_LISTED_DATE.search(each) for each in fields.all(b"signature"))

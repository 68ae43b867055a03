"""Heads on their way to the upstream, and the framing of bodies on either side."""

from __future__ import annotations

from ..core.fields import Fields, fields_of
from ..core.message import NEVER_FORWARDED, Request, Travel, forwarded, named_by_connection

#: Of a keyed request these go on as they came: all but what is written anew. A client does not say for itself which
#: attempt this is.
_ANEW = frozenset((b"x-forwarded-for", b"via", b"idempotency-attempt"))
_KEPT = Travel(NEVER_FORWARDED | _ANEW)
_KEPT_UNEXPECTING = Travel(NEVER_FORWARDED | _ANEW | {b"expect"})
_PSEUDONYM = b"1.1 oncegate"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112 §7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def request_head(
    request: Request, framing: bytes, *, drop_expect: bool, scheme: bytes, authority: bytes, number: int = 1
) -> bytes:
    """The head that goes upstream: the client's, less what was for this hop, plus where it came from.

    `framing` is the field line that frames the body as we send it, or nothing. `authority` is the upstream's
    own: the Host for a client of HTTP/1.0 that sent none (RFC 9112 §3.2 wants one in what we send).
    """
    fields = fields_of(request.fields)
    if b"connection" in fields.shape.at and not named_by_connection(fields).isdisjoint(fields.shape.at):
        fields = fields_of(forwarded(fields))  # what it names is not there, for what is said below
    at, values = fields.shape.at, fields.values
    kept = _KEPT_UNEXPECTING if drop_expect else _KEPT
    hosts = at.get(b"host")
    return b"".join(
        (
            b"%b %b HTTP/1.1\r\n" % (request.method, request.target),
            b"" if hosts else b"Host: %b\r\n" % authority,
            kept.lines(fields),
            _passed_on(fields, b"via", b"Via", _PSEUDONYM),
            _passed_on(fields, b"x-forwarded-for", b"X-Forwarded-For", request.peer.encode()),
            b"" if b"x-forwarded-proto" in at else b"X-Forwarded-Proto: %b\r\n" % scheme,
            b"X-Forwarded-Host: %b\r\n" % values[hosts[0]]
            if hosts and values[hosts[0]] and b"x-forwarded-host" not in at
            else b"",
            b"Idempotency-Attempt: %d\r\n" % number if number > 1 else b"",
            framing,
            b"\r\n",
        )
    )


def _passed_on(fields: Fields, lowered: bytes, name: bytes, mine: bytes) -> bytes:
    """A list that each hop adds itself to."""
    if lowered not in fields.shape.at:
        return b"%b: %b\r\n" % (name, mine) if mine else b""
    chain = [fields.values[position] for position in fields.shape.at[lowered]]
    return b"%b: %b\r\n" % (name, b", ".join((*chain, mine) if mine else chain))


def sized(length: int) -> bytes:
    """The field line of a body of known length."""
    return b"Content-Length: %d\r\n" % length


CHUNKED = b"Transfer-Encoding: chunked\r\n"

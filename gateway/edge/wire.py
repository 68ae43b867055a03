"""Heads on their way to the upstream, and the framing of bodies on either side."""

from __future__ import annotations

from ..core.message import Field, Request, forwarded, lines

#: A client does not say for itself which attempt this is.
_OWN_REQUEST_FIELDS = frozenset((b"idempotency-attempt",))
_CHAIN = b"x-forwarded-for"
_VIA = b"via"
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
    peer = request.peer.encode()
    host: bytes | None = None
    proto = forwarded_host = False
    kept: list[Field] = []
    chain: list[bytes] = []
    via: list[bytes] = []
    for field in forwarded(request.fields):
        name = field[0].lower()
        if name == b"host":
            host = field[1]
        elif name == _CHAIN:
            chain.append(field[1])
            continue
        elif name == _VIA:
            via.append(field[1])
            continue
        elif name == b"x-forwarded-proto":
            proto = True
        elif name == b"x-forwarded-host":
            forwarded_host = True
        elif (drop_expect and name == b"expect") or name in _OWN_REQUEST_FIELDS:
            continue
        kept.append(field)
    if peer:
        chain.append(peer)
    via.append(_PSEUDONYM)
    own = [b"Via: %b\r\n" % b", ".join(via)]
    if chain:
        own.append(b"X-Forwarded-For: %b\r\n" % b", ".join(chain))
    if not proto:
        own.append(b"X-Forwarded-Proto: %b\r\n" % scheme)
    if host is None:
        kept.insert(0, (b"Host", authority))
    elif host and not forwarded_host:
        own.append(b"X-Forwarded-Host: %b\r\n" % host)
    if number > 1:
        own.append(b"Idempotency-Attempt: %d\r\n" % number)
    return b"".join((b"%b %b HTTP/1.1\r\n" % (request.method, request.target), lines(kept), *own, framing, b"\r\n"))


def sized(length: int) -> bytes:
    """The field line of a body of known length."""
    return b"Content-Length: %d\r\n" % length


CHUNKED = b"Transfer-Encoding: chunked\r\n"

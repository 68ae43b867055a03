"""Heads on their way to the upstream, and the framing of bodies on either side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from ..core.fields import Field, Fields, Shape, fields_of
from ..core.key import DEFAULT_HEADERS
from ..core.message import (
    CREDENTIALS,
    NEVER_FORWARDED,
    OPERATION_FIELDS,
    OWN_RESPONSE_FIELDS,
    Request,
    Travel,
    forwarded,
    listed,
    named_by_connection,
)

_NOTHING: frozenset[bytes] = frozenset()
#: Of a keyed request these go on as they came: all but what is written anew. A client does not say for itself which
#: attempt this is, nor what it would speak in HTTP/2.
_ANEW = frozenset((b"x-forwarded-for", b"via", b"idempotency-attempt", b"http2-settings"))
#: Which names with `_` are not for the upstream to take for the same with `-`, besides those that its routes go by.
_MIMICKED = (
    NEVER_FORWARDED
    | _ANEW
    | OWN_RESPONSE_FIELDS
    | {*CREDENTIALS, *DEFAULT_HEADERS, *OPERATION_FIELDS}
    | {b"cookie", b"host", b"expect", b"content-type", b"content-encoding", b"forwarded", b"x-real-ip"}
)
#: What a trailer may not say (RFC 9110 §6.5.1): how a message is framed, routed or read, who sends it, what it is
#: conditional on. Whoever merges trailers into the head must not be told so behind our back.
_NOT_IN_TRAILERS = _MIMICKED | {
    b"accept-encoding", b"age", b"authentication-info", b"cache-control", b"content-disposition",
    b"content-location", b"content-range", b"date", b"expires", b"if-match", b"if-modified-since", b"if-none-match",
    b"if-range", b"if-unmodified-since", b"location", b"max-forwards", b"pragma", b"prefer",
    b"proxy-authentication-info", b"range", b"retry-after", b"set-cookie", b"set-cookie2", b"strict-transport-security",
    b"vary", b"warning", b"www-authenticate", b"x-accel-buffering",
}  # fmt: skip
_PSEUDONYM = b"1.1 oncegate"
LAST_CHUNK = b"0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112 §7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sized(length: int) -> bytes:
    """The field line of a body of known length."""
    return b"Content-Length: %d\r\n" % length


class _Onward(Travel):
    """The fields that go upstream. Without those whose `_` a server that hands its fields on as variables (CGI, WSGI,
    PHP) cannot tell from `-`: `Content_Length` beside `Content-Length`, a name that the gate or its routes go by, or
    any name that is there in both spellings. nginx drops every name with `_`."""

    __slots__ = ("_read", "head")

    def __init__(self, never: frozenset[bytes], read: frozenset[bytes]) -> None:
        super().__init__(never)
        self._read = read
        #: How the heads of a shape are written whole.
        self.head: Callable[[Shape], _Whole | None] = partial(_whole, self)

    def _but(self, shape: Shape, named: frozenset[bytes]) -> tuple[int, ...]:
        return tuple(
            position
            for position in super()._but(shape, named)
            if b"_" not in shape.lowered[position] or not self._mimics(shape.lowered[position], shape)
        )

    def _mimics(self, name: bytes, shape: Shape) -> bool:
        meant = name.replace(b"_", b"-")
        return _reserved(meant, self._read) or meant in shape.at


def _reserved(name: bytes, read: frozenset[bytes]) -> bool:
    return name in _MIMICKED or name in read or name.startswith((b"idempotency-", b"x-forwarded-"))


#: A head as one formatting of (method, target, values picked, peer, scheme, host, framing), what picks the values, and
#: where the Host stands.
_Whole = tuple[bytes, Callable[[Sequence[bytes]], tuple[bytes, ...]], int]
#: A head with one of these goes on as more than its lines and ours.
_ADDED_TO = frozenset((b"connection", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"))


def _whole(travels: _Onward, shape: Shape) -> _Whole | None:
    """How heads of this shape are written, where that is the same for all of them."""
    hosts = shape.at.get(b"host", ())
    if len(hosts) != 1 or not _ADDED_TO.isdisjoint(shape.at):
        return None
    block = shape.blocks[travels.positions(shape)]
    added = b"Via: %b\r\nX-Forwarded-For: %%b\r\nX-Forwarded-Proto: %%b\r\nX-Forwarded-Host: %%b\r\n" % _PSEUDONYM
    return b"%b %b HTTP/1.1\r\n" + block.template + added + b"%b\r\n", block.pick, hosts[0]


@lru_cache(maxsize=16)
def _onward(never: frozenset[bytes], read: frozenset[bytes]) -> _Onward:
    return _Onward(NEVER_FORWARDED | _ANEW | never, read)


class RequestHeads:
    """Writes the heads that go upstream: the client's, less what was for this hop, plus where it came from. `read`
    has the names that the routes go by, in lower case."""

    def __init__(self, read: frozenset[bytes] = _NOTHING) -> None:
        self._read = read
        self._kept = _onward(_NOTHING, read)
        self._kept_unexpecting = _onward(frozenset((b"expect",)), read)

    def head(self, request: Request, framing: bytes, *, drop_expect: bool, authority: bytes, number: int = 1) -> bytes:
        """The head of `request`. `framing` has the field lines that are for the next hop: of the body as we send it,
        if nothing else. `authority` is the upstream's own: the Host for a client of HTTP/1.0 that sent none
        (RFC 9112 §3.2 wants one in what we send)."""
        fields = fields_of(request.fields)
        kept = self._kept_unexpecting if drop_expect else self._kept
        whole: _Whole | None = fields.shape.made(kept.head, kept.head)
        hop = (request.hop or request.peer).encode()
        if whole is not None and number == 1 and hop:
            template, pick, at_host = whole
            values = fields.values
            if values[at_host]:
                scheme = b"https" if request.secure else b"http"
                picked = pick(values)
                return template % (request.method, request.target, *picked, hop, scheme, values[at_host], framing)
        if b"connection" in fields.shape.at and not named_by_connection(fields).isdisjoint(fields.shape.at):
            fields = fields_of(forwarded(fields))  # what it names is not there, for what is said below
        at, values = fields.shape.at, fields.values
        hosts = at.get(b"host")
        return b"".join(
            (
                b"%b %b HTTP/1.1\r\n" % (request.method, request.target),
                b"" if hosts else b"Host: %b\r\n" % authority,
                kept.lines(fields),
                _passed_on(fields, b"via", b"Via", _PSEUDONYM),
                _passed_on(fields, b"x-forwarded-for", b"X-Forwarded-For", hop),
                b""
                if b"x-forwarded-proto" in at
                else b"X-Forwarded-Proto: https\r\n"
                if request.secure
                else b"X-Forwarded-Proto: http\r\n",
                b"X-Forwarded-Host: %b\r\n" % values[hosts[0]]
                if hosts and values[hosts[0]] and b"x-forwarded-host" not in at
                else b"",
                b"Idempotency-Attempt: %d\r\n" % number if number > 1 else b"",
                framing,
                b"\r\n",
            )
        )

    def last_chunk(self, trailers: Sequence[Field]) -> bytes:
        """The end of a chunked request, with those of its trailers that may go on."""
        return last_chunk(trailers, self._read)


#: Those that write what the routes' own fields have no part in.
PLAIN = RequestHeads()


def _passed_on(fields: Fields, lowered: bytes, name: bytes, mine: bytes) -> bytes:
    """A list that each hop adds itself to."""
    if lowered not in fields.shape.at:
        return b"%b: %b\r\n" % (name, mine) if mine else b""
    chain = [fields.values[position] for position in fields.shape.at[lowered]]
    return b"%b: %b\r\n" % (name, b", ".join((*chain, mine) if mine else chain))


# ── Trailers ──────────────────────────────────────────────────────────────────────────────────────


def last_chunk(trailers: Sequence[Field], read: frozenset[bytes] = _NOTHING) -> bytes:
    """The end of a chunked body, with those of its trailers that may go on."""
    if not trailers:
        return LAST_CHUNK
    lines = [b"%b: %b\r\n" % line for line in trailers if _may_trail(line[0], read)]
    return b"0\r\n%b\r\n" % b"".join(lines) if lines else LAST_CHUNK


def _may_trail(name: bytes, read: frozenset[bytes] = _NOTHING) -> bool:
    meant = name.lower().replace(b"_", b"-")
    return meant not in _NOT_IN_TRAILERS and not _reserved(meant, read)


def trailing_lines(fields: Fields, *, chunked: bool) -> bytes:
    """What a request says of trailers, for the next hop: those that it announces behind a chunked body, and that it
    takes them behind the response's (RFC 9110 §6.6.2, §10.1.4)."""
    which: tuple[bool, bool] | None = fields.shape.made(trailing_lines, _speaks_of_trailers)
    if which is None:
        return b""
    announces, takes = which
    lines = announced(fields) if announces and chunked else b""
    if takes and any(member.partition(b";")[0].rstrip() == b"trailers" for member in listed(fields, b"te")):
        lines += b"Connection: TE\r\nTE: trailers\r\n"
    return lines


def _speaks_of_trailers(shape: Shape) -> tuple[bool, bool] | None:
    found = b"trailer" in shape.at, b"te" in shape.at
    return found if any(found) else None


def announced(fields: Fields) -> bytes:
    """The `Trailer` field of a chunked message, without what may not be one."""
    names = [
        name
        for value in fields.all(b"trailer")
        for member in value.split(b",")
        if (name := member.strip(b" \t")) and _may_trail(name)
    ]
    return b"Trailer: %b\r\n" % b", ".join(names) if names else b""

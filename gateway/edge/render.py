"""Verdict → bytes. Nothing else writes a response of a guarded route, or a problem."""

from __future__ import annotations

from http import HTTPStatus
from typing import assert_never

from ..core.decide import outcome_line
from ..core.fields import fields_of
from ..core.instant import http_date, instant
from ..core.message import DATED, Lines, returned_lines
from ..core.problem import NO_EFFECT, PROBLEM_JSON, UNKNOWN, Label, Problem, Refusal, written
from ..core.reply import Again, First, Live
from .origins import ALLOWS

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {
    int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus if status >= 200
}
CLOSE = b"Connection: close\r\n"
#: Methods that no route has to allow by name.
ALLOW = b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
REPLAYED = b"Idempotent-Replayed: true\r\n"
_BODILESS = frozenset((204, 304))
_ADVICE = {True: b"true", False: b"false"}


def status_line(status: int, reason: bytes | None = None) -> bytes:
    """The first line of a response; the standard phrase where no `reason` is given (RFC 9112 §4)."""
    if reason is None:
        return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def render(
    reply: First | Again | Live,
    *,
    keep_alive: bool,
    http10: bool,
    wall: int,
    length: int | None = None,
    exposes: bytes = b"",
) -> bytes:
    """The bytes of a reply that is no problem; of a Live one its head, framed for a body of `length`, or of
    unknown length.

    `wall` is the time of day in milliseconds since 1970. `exposes` is written where the answer lets the page of
    another origin read it.
    """
    connection = connection_field(keep_alive=keep_alive, http10=http10)
    if exposes and _allows(reply):
        connection += exposes
    match reply:
        case First():
            response = reply.response
            lines = _first(reply)
            return whole(response.status, returned(response.fields, wall), lines, b"", connection, response.body)
        case Again():
            answer = reply.answer
            return whole(
                answer.status,
                again(answer.head, wall),
                own(reply.label, reply.first_seen, reply.expires),
                REPLAYED if reply.replayed else b"",
                connection,
                answer.body or b"",
            )
        case Live():
            response = reply.response
            framing = (
                b"Content-Length: %d\r\n" % length
                if length is not None
                else b""
                if http10 or response.status in _BODILESS
                else b"Transfer-Encoding: chunked\r\n"
            )
            lines = _first(reply)
            head = (status_line(response.status), returned(response.fields, wall), lines, framing, connection, b"\r\n")
            return b"".join(head)
        case _:
            assert_never(reply)


def _allows(reply: First | Again | Live) -> bool:
    """Whether the service lets the page of another origin read this answer."""
    if isinstance(reply, Again):
        return any(line.lower().startswith(ALLOWS + b":") for line in reply.answer.head.split(b"\r\n"))
    return ALLOWS in fields_of(reply.response.fields).shape.at


def problem(
    refusal: Refusal, *, connection: bytes, wall: int, request_id: str, body_wanted: bool = True, origin: bytes = b""
) -> bytes:
    """A problem as RFC 9457 tells it. `origin` has the lines for the browser of a page elsewhere."""
    kind = refusal.problem
    body = written(kind.slug, kind.status, kind.title, refusal.detail, request_id=request_id)
    fields = [
        b"Content-Type: %b\r\nDate: %b\r\n" % (PROBLEM_JSON.encode(), http_date(wall // 1000)),
        b"X-Request-Id: %b\r\n" % request_id.encode(),
        b"Idempotency-Status: %b\r\nIdempotency-Outcome: %b\r\n" % (refusal.shown_as.encode(), kind.outcome.encode()),
    ]
    if refusal.retry_after is not None:
        fields.append(b"Retry-After: %d\r\n" % refusal.retry_after)
    if kind.retry is not None:
        advice = _ADVICE[kind.retry]
        fields.append(b"X-Should-Retry: %b\r\nStripe-Should-Retry: %b\r\n" % (advice, advice))
    if kind is Problem.SCOPE_INVALID:
        fields.append(b'WWW-Authenticate: Bearer error="invalid_token"\r\n')  # RFC 9110 §15.5.2, RFC 6750 §3.1
    if kind is Problem.METHOD_NOT_ALLOWED:
        fields.append(ALLOW)
    framing = b"Content-Length: %d\r\n" % len(body)
    return b"".join(
        (status_line(kind.status), *fields, origin, framing, connection, b"\r\n", body if body_wanted else b"")
    )


def connection_field(*, keep_alive: bool, http10: bool) -> bytes:
    """The `Connection` field line of a response, where one is needed (RFC 9112 §9.3)."""
    if keep_alive:
        return b"Connection: keep-alive\r\n" if http10 else b""
    return CLOSE


def returned(lines: Lines, wall: int) -> bytes:
    """The end-to-end fields of a response; with a Date, if it came without (RFC 9110 §6.6.1)."""
    fields = fields_of(lines)
    block = returned_lines(fields)
    if b"date" in fields.shape.at:
        return block
    return block + b"Date: %b\r\n" % http_date(wall // 1000)


def _first(reply: First | Live) -> bytes:
    """The gateway's own lines of a response that is not a replay. (A replay has its outcome among its stored lines.)"""
    lines = own(reply.label, reply.first_seen, reply.expires)
    return lines if reply.label in _OUTCOMES else lines + outcome_line(reply.response)


#: What a gate in front of this one must hear of a response that passes through both: there it is settled by these
#: words, whatever its status, and whatever made this gate release or hold it.
_OUTCOMES = {Label.RELEASED: NO_EFFECT, Label.IN_DOUBT: UNKNOWN}


def again(head: bytes, wall: int) -> bytes:
    """The fields of a stored answer, with a Date."""
    return head if head.startswith(DATED) else b"%bDate: %b\r\n" % (head, http_date(wall // 1000))


def own(label: Label, first_seen: int, expires: int | None) -> bytes:
    """The gate's own lines."""
    if expires is None:
        if (outcome := _OUTCOMES.get(label)) is not None:
            return b"Idempotency-Status: %b\r\nIdempotency-Outcome: %b\r\n" % (label.encode(), outcome.encode())
        return b"Idempotency-Status: %b\r\n" % label.encode()
    return b"Idempotency-Status: %b\r\nIdempotency-First-Seen: %b\r\nIdempotency-Expires: %b\r\n" % (
        label.encode(),
        instant(first_seen),
        instant(expires),
    )


def whole(status: int, fields: bytes, own: bytes, replayed: bytes, connection: bytes, body: bytes) -> bytes:
    """A response of which all is there."""
    if status in _BODILESS:
        return b"".join((status_line(status), fields, own, replayed, connection, b"\r\n"))
    framing = b"Content-Length: %d\r\n" % len(body)
    return b"".join((status_line(status), fields, own, replayed, framing, connection, b"\r\n", body))

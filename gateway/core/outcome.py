"""What came back from the upstream, told honestly: Answered, NotSent or Lost."""

from __future__ import annotations

from enum import Enum

from .message import Response
from .values import value


class Completeness(Enum):
    """Whether a response was read whole, and if not, why its end is not waited for."""

    WHOLE = "whole"
    OVER_LIMIT = "over_limit"
    STREAM = "stream"
    UNTIL_CLOSE = "until_close"


@value
class Answered:
    """A final response: whole, or one whose rest goes to its client as it comes. Of the rest `ports.Stream` has an
    outcome of its own: Answered again once it was read to its end, or Lost."""

    response: Response
    completeness: Completeness = Completeness.WHOLE


class NotSentReason(Enum):
    UNREACHABLE = "unreachable"  # refused, timed out, unresolved, or the handshake failed
    NO_CONNECTION = "no_connection"  # none was free in time
    TOO_LATE = "too_late"  # the deadline for the first byte had passed
    STOPPED = "stopped"  # the gate is being stopped


@value
class NotSent:
    """No byte of the request was handed to a transport whose handshake had finished."""

    reason: NotSentReason
    detail: str = ""


class LostReason(Enum):
    CLOSED = "closed"  # the connection ended before the response did
    MALFORMED = "malformed"  # what came back is no HTTP response
    EARLY = "early"  # a response began before the request was written, and was no complete 4xx or 5xx
    UPGRADED = "upgraded"  # a 101 to a request that asked for none
    TIMEOUT = "timeout"  # nothing complete came before the exchange had to end
    STOPPED = "stopped"  # the gate was stopped while it waited


@value
class Lost:
    """Bytes were sent and no complete response came back: nobody knows. `status` is that of a head, or 0."""

    reason: LostReason
    detail: str = ""
    status: int = 0


Outcome = Answered | NotSent | Lost

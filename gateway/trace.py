"""What goes with one request, and says to others where in their traces it belongs."""

from __future__ import annotations

from .core.message import Request
from .core.outcome import Outcome


class Trace:
    """The way of one request, as it is told to those who follow requests through many services. It never raises, never
    waits, and decides nothing. Instants are the clock's, in seconds.

    This one is of a gate that records none: all of it does nothing.
    """

    __slots__ = ()

    #: What is remembered with the answer, so that a replay can point here: the ids of the trace (16 bytes) and of the
    #: span (8). Empty where nobody records this request.
    context: bytes = b""

    def onward(self, request: Request) -> Request:
        """The request as it goes to the upstream: with our span as its parent, where there is one."""
        return request

    def called(self, operation: str, begun: float, took: float, *, failed: bool) -> None:
        """The store answered a call for this request, or did not."""

    def waits(self, since: float) -> None:
        """It waits for another's answer from now on, until the next call, attempt, or its end."""

    def attempted(self, outcome: Outcome, begun: float, took: float) -> None:
        """This came of its attempt."""

    def follows(self, context: bytes) -> None:
        """Its answer is that of another request, whose `context` this was; empty where that is not known."""


#: The trace of every request of a gate that records none.
UNTRACED = Trace()


def untraced(request: Request, now: float) -> Trace:
    """What begins a trace, in a gate that records none."""
    return UNTRACED

"""What a client is given: one of four values, which `edge.render` alone turns into bytes."""

from __future__ import annotations

from .message import Answer, Response
from .problem import Label, Refusal
from .values import value


@value
class First:
    """The upstream's own response, for the request that was forwarded. Instants in ms since 1970."""

    response: Response
    label: Label
    first_seen: int
    expires: int | None = None


@value
class Again:
    """What was remembered of a response, for a duplicate."""

    answer: Answer
    label: Label
    first_seen: int
    expires: int | None = None
    replayed: bool = True


@value
class Live:
    """The head of a response whose rest flows on after it, to the first client only."""

    response: Response
    label: Label
    first_seen: int
    expires: int | None = None


Reply = First | Again | Live | Refusal

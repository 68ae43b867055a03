"""What happened to one request, as an observer is told of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from .core.decide import Reason
from .core.key import Key
from .core.problem import Problem, Refusal
from .core.record import Kind
from .trace import UNTRACED, Trace


class DuplicateKind(StrEnum):
    """How a duplicate was caught."""

    REPLAYED = "replayed"
    ATTACHED = "attached"
    IN_FLIGHT = "in_flight"
    KEY_REUSED = "key_reused"
    CREDENTIALS_DIFFER = "credentials_differ"
    IN_DOUBT = "in_doubt"
    NOT_KEPT = "not_kept"


#: How a duplicate was caught that is refused with a problem. Other problems catch no duplicate.
CAUGHT = {
    Problem.KEY_REUSED: DuplicateKind.KEY_REUSED,
    Problem.CREDENTIALS_DIFFER: DuplicateKind.CREDENTIALS_DIFFER,
    Problem.IN_DOUBT: DuplicateKind.IN_DOUBT,
    Problem.RESPONSE_NOT_KEPT: DuplicateKind.NOT_KEPT,
    Problem.IN_FLIGHT: DuplicateKind.IN_FLIGHT,
}


class VerdictName(StrEnum):
    """What the core decided on arrival."""

    PASS = "pass"  # noqa: S105
    REFUSE = "refuse"
    FORWARD = "forward"
    REPLAY = "replay"
    WAIT = "wait"


class Account:
    """What happened to one request. Durations in seconds, `None` where there was no such step.

    `name` is the record's; the key's text is here only so that a log may show its digest, or itself
    where the operator turned that on.
    """

    # How each begins; most of it stays so, and is then not written down for each request.
    duplicate: DuplicateKind | None = None
    label: str = ""
    problem: str = ""
    status: int = 0
    key: Key | None = None
    name: bytes = b""
    #: Why its key is weak (core.keyform.Weakness); empty where it is not.
    weak: str = ""
    attempt: int = 0
    settlement: Kind | None = None
    reason: Reason | None = None
    unprotected: str = ""
    total: float = 0.0
    claim: float | None = None
    settle: float | None = None
    upstream: float | None = None
    waited: float | None = None
    age: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    record_bytes: int | None = None
    detail: str = ""
    #: It tells what would have become of a request on a route in shadow; what did is told by an account of its own.
    shadow: bool = False
    trace: Trace = UNTRACED

    def __init__(
        self,
        route: str,
        method: bytes,
        target: bytes,
        peer: str,
        verdict: VerdictName = VerdictName.PASS,
        **told: Any,
    ) -> None:
        """`told` has any of the others by name."""
        self.route = route
        self.method = method
        self.target = target
        self.peer = peer
        self.verdict = verdict
        for name, said in told.items():
            setattr(self, name, said)

    def refused(self, refusal: Refusal) -> None:
        """Take over what a refusal shows its client."""
        self.problem = refusal.problem.slug
        self.status = refusal.problem.status
        self.label = refusal.shown_as

"""One run of a request: its claim, what came of it, and how that was settled."""

from __future__ import annotations

from ..core.outcome import Answered, Outcome
from ..core.policy import Policy
from ..core.record import NewClaim, NewKeep, Record, Settlement
from ..ports import Attempt, Stream


class Run:
    """A run. Instants are the clock's, in seconds. `t0` is the machine's, from which the deadlines count."""

    __slots__ = (
        "acknowledged",
        "attempt",
        "begun",
        "broken_off",
        "claim",
        "ends_by",
        "forwarded_at",
        "number",
        "outcome",
        "policy",
        "settlement",
        "streaming",
        "t0",
    )  # fmt: skip

    def __init__(self, claim: NewClaim | Record, policy: Policy, t0: float) -> None:
        self.claim = claim
        self.policy = policy
        self.t0 = t0
        self.ends_by = t0 + policy.ends_by / 1000
        self.number = claim.attempt if isinstance(claim, Record) else 1
        self.begun = False
        self.forwarded_at = 0.0
        self.attempt: Attempt | None = None
        self.outcome: Outcome | None = None
        #: Whether the response goes to its client as it arrives, because it cannot be stored.
        self.streaming = False
        self.settlement: Settlement | NewKeep | None = None
        self.acknowledged = False
        #: Whether reading the response was abandoned.
        self.broken_off = False

    @property
    def stream(self) -> Stream | None:
        """The stream of a response that cannot be stored, unless it was abandoned."""
        return None if self.attempt is None or self.broken_off else self.attempt.stream

    @property
    def body_bytes(self) -> int:
        """How many bytes of its response's body are in memory."""
        if not isinstance(self.outcome, Answered) or self.stream is not None:
            return 0
        return len(self.outcome.response.body)


def stored_bytes(keep: Settlement | NewKeep) -> int:
    """Return how many bytes of a response a Keep stores."""
    if isinstance(keep, NewKeep):
        return len(keep.head) + len(keep.body)
    assert keep.record is not None
    answer = keep.record.answer
    assert answer is not None
    return len(answer.head) + len(answer.body or b"")


__all__ = ["Run", "stored_bytes"]

"""Findings about a store, and the two that every store can have: it answers, and refuses new claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..ports import Observer


class Severity(Enum):
    """The consequence of a finding: claims are refused, a warning is logged, or only `oncegate doctor` shows it."""

    REFUSE = "refuse"
    WARN = "warn"
    ADVISE = "advise"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the store: a name, and what it means and what to change."""

    name: str
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


#: The store has no room for another key.
FULL = "full"
#: The store refuses every write, for another reason.
WRITES_REFUSED = "writes-refused"
#: Findings by which the store itself refuses new claims. It still returns what it has.
OF_WRITES = (FULL, WRITES_REFUSED)
#: Seconds without a refusal after which a store counts as accepting claims again.
CALM = 5.0


class ClaimRefusals:
    """Turns single refusals of claims into one finding with hysteresis: it stands until the store has accepted writes
    for `CALM` seconds. `now` returns seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last = 0.0
        self.finding: Finding | None = None

    def refused(self, finding: Finding) -> None:
        """Record a refusal. The first text under a name stays, so that one cause raises one alarm."""
        self._last = self._now()
        if self.finding is None or self.finding.name != finding.name:
            self.finding = finding

    def accepted(self) -> None:
        """Record that the store would accept a claim now."""
        if self.finding is not None and self._now() - self._last >= CALM:
            self.finding = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The finding, if it stands."""
        return () if self.finding is None else (self.finding,)


def announce(
    before: tuple[Finding, ...],
    found: tuple[Finding, ...],
    observer: Observer,
    say: Callable[..., None],
    *,
    alarming: tuple[str, ...] = (),
    at: str = "",
) -> None:
    """Report what has changed: a new finding that refuses claims, or whose name is in `alarming`, raises an alarm; any
    other is a warning in the log; one that ended is a line there."""
    for each in found:
        if each not in before:
            if each.severity is Severity.REFUSE or each.name in alarming:
                observer.alarm(each.text, finding=each.name, severity=each.severity.value)
            else:
                say("warning", each.text, finding=each.name)
    where = {"at": at} if at else {}
    for name in {each.name for each in before} - {each.name for each in found}:
        say("info", "what was found wrong with the store is no longer so", finding=name, **where)


def unheard(level: str, what: str, **facts: object) -> None:
    """Write no log."""

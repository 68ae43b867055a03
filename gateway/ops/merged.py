"""The metrics of several processes as one set: sums, without a label that says which process it was.

Counters and distributions add up, and what a process that is gone has last told is kept: a total never goes down.
What is there at the moment (in flight, waiters) adds up over those that live; a finding stands if one of them has it.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from .metrics import Tally


class Merged:
    """What several have told, as one; and what `own` has counted, which is also where the totals of those go that
    are gone. `more`: what else there is to show."""

    def __init__(self, own: Tally, more: Callable[[], Iterable[Metric]] = tuple) -> None:
        self._own = own
        self._more = more
        self._told: dict[object, Mapping[str, Any]] = {}

    def tell(self, who: object, state: Mapping[str, Any]) -> None:
        """What one has counted so far, in place of what it told before."""
        self._told[who] = state

    def leave(self, who: object) -> None:
        """It is gone; what it has counted stays."""
        if (state := self._told.pop(who, None)) is not None:
            self._own.add(state)

    def snapshot(self) -> CollectorRegistry:
        """Return the registry of what there is now, which a thread may render: nothing is counted in it any more."""
        registry = self._one().registry
        registry.register(_Fixed(list(self._more())))
        return registry

    def _one(self) -> Tally:
        one = self._own.copy()
        in_flight, waiters, findings = Count[str](), Count[str](), dict[str, int]()
        for state in self._told.values():
            one.add(state)
            its_in_flight, its_waiters, its_findings = state["now"]
            in_flight.update(its_in_flight)
            waiters.update(its_waiters)
            findings |= its_findings
        one.in_flight, one.waiters, one.findings = (lambda: in_flight), (lambda: waiters), (lambda: findings)
        return one


class _Fixed:
    """A collector of families that are given."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

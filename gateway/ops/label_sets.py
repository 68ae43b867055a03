"""The label sets that a configuration bounds. Each of them is exposed at 0 before its first event.

Prometheus takes the first sample of a series as its start: `increase()` does not see the event that creates a series.
A counter that appears at 1 hides the first payment in doubt and the first duplicate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from pydantic import TypeAdapter

from ..core.decide import IDEMPOTENT, SAFE, PassReason, Reason, settle
from ..core.fields import NONE
from ..core.keyform import Weakness
from ..core.message import Response
from ..core.outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from ..core.policy import Missing, Mode, Policy, Route, StoreDown
from ..core.problem import Problem
from ..core.record import Kind
from ..ports import DuplicateKind, VerdictName

Labels = tuple[str, ...]

#: The label `route` of a request that has no route.
NO_ROUTE = "-"
#: Operations of the store, as `oncegate_store_seconds` and `oncegate_store_errors_total` name them.
OPERATIONS = ("claim", "settle", "takeover", "look")

_BEFORE_ROUTING = frozenset(
    (
        Problem.NO_ROUTE,
        Problem.TARGET_TOO_LONG,
        Problem.VERSION_UNSUPPORTED,
        Problem.CODING_UNSUPPORTED,
        Problem.EXPECTATION_FAILED,
        Problem.METHOD_UNSUPPORTED,
    )
)
_ANYWHERE = frozenset((Problem.REQUEST_MALFORMED, Problem.REQUEST_TIMEOUT, Problem.HEAD_TOO_LARGE, Problem.OVERLOADED))
_UPSTREAM = frozenset((Problem.UPSTREAM_UNREACHABLE, Problem.UPSTREAM_LOST, Problem.UPSTREAM_TIMEOUT))
#: Problems that no route in shadow would give: it waits for nothing.
_NOT_IN_SHADOW = _UPSTREAM | (_ANYWHERE - {Problem.OVERLOADED}) | {Problem.IN_FLIGHT}


class Ended(NamedTuple):
    """The labels that requests of one row share."""

    route: str
    verdict: VerdictName
    duplicate: DuplicateKind | None = None
    settlement: Kind | None = None
    reason: Reason | None = None
    unprotected: str = ""
    problem: str = ""


#: Reads an Ended from the words that JSON made of it.
ENDED = TypeAdapter(Ended)


class LabelSets:
    """The label sets of all routes that were configured since the start. A reload adds to them and removes none: a
    request of a removed route may still be in flight."""

    def __init__(self) -> None:
        self.requests: dict[Ended, None] = {}
        self.shadow: dict[Ended, None] = {}
        self.unfit: dict[Labels, None] = {}
        self.weak: dict[Labels, None] = {}
        #: Names of routes that claim keys.
        self.claiming: dict[str, None] = {}

    def copy(self) -> LabelSets:
        """Return the same sets. What is added to them is not added here."""
        copy = LabelSets()
        for name, found in vars(self).items():
            setattr(copy, name, dict(found))
        return copy

    def add(self, routes: Iterable[Route], credentials: Callable[[Policy], Iterable[str]]) -> None:
        """Add those of `routes`. `credentials` returns the labels of `oncegate_unfit_credentials` for a policy."""
        self.requests |= dict.fromkeys(_unrouted())
        for route in routes:
            name, policy = route.name, route.policy
            self.requests |= dict.fromkeys(_passing(route))
            if not policy.guard:
                continue
            if policy.mode is Mode.SHADOW:
                self.shadow |= dict.fromkeys(_guarded(name, policy, _problems(policy) - _NOT_IN_SHADOW))
            else:
                self.requests |= dict.fromkeys(_guarded(name, policy, _problems(policy)))
                self.claiming[name] = None
            self.unfit |= dict.fromkeys((name, credential) for credential in credentials(policy))
            self.weak |= dict.fromkeys((name, str(weakness)) for weakness in Weakness)


def _unrouted() -> Iterator[Ended]:
    yield Ended(NO_ROUTE, VerdictName.PASS)
    for problem in Problem:
        if problem in _BEFORE_ROUTING | _ANYWHERE:
            yield Ended(NO_ROUTE, VerdictName.REFUSE, problem=problem.slug)


def _passing(route: Route) -> Iterator[Ended]:
    """Requests that are passed through, which every route has."""
    yield Ended(route.name, VerdictName.PASS)
    for problem in Problem:
        if problem in _ANYWHERE | _UPSTREAM | _traces(route):
            yield Ended(route.name, VerdictName.REFUSE, problem=problem.slug)
    for reason in _unprotected(route):
        yield Ended(route.name, VerdictName.PASS, unprotected=reason.value)


def _traces(route: Route) -> frozenset[Problem]:
    """The refusal of TRACE, which a route gives that names no methods."""
    return frozenset((Problem.METHOD_NOT_ALLOWED,) if route.match.methods is None else ())


def _unprotected(route: Route) -> Iterator[PassReason]:
    policy, methods = route.policy, route.match.methods
    if not policy.guard:
        if methods is None or methods - SAFE:
            yield PassReason.KEY_ON_UNGUARDED_ROUTE
        return
    if methods is None or methods & IDEMPOTENT or (policy.missing is Missing.PASS and methods - SAFE):
        yield PassReason.NO_KEY
    if policy.mode is Mode.SHADOW:
        yield PassReason.SHADOW
    elif policy.store_down is StoreDown.FORWARD:
        yield PassReason.STORE_DOWN


def _guarded(name: str, policy: Policy, problems: Iterable[Problem]) -> Iterator[Ended]:
    """Requests that claim a key, or would in shadow mode."""
    for verdict in (VerdictName.FORWARD, VerdictName.REPLAY, VerdictName.WAIT):
        yield Ended(name, verdict)
    for kind in DuplicateKind:
        yield Ended(name, VerdictName.REPLAY, duplicate=kind)
    for settlement, reason in settlements(policy):
        yield Ended(name, VerdictName.FORWARD, settlement=settlement, reason=reason)
    for problem in Problem:
        if problem in problems:
            yield Ended(name, VerdictName.REFUSE, problem=problem.slug)


def _problems(policy: Policy) -> frozenset[Problem]:
    """The problems that a request of a guarded route can be answered with."""
    impossible = set(_BEFORE_ROUTING)
    if policy.missing is Missing.PASS:
        impossible.add(Problem.KEY_MISSING)
    if not policy.scope and not policy.bound:
        impossible.add(Problem.SCOPE_MISSING)
    if policy.tokens is None:
        impossible |= {Problem.SCOPE_INVALID, Problem.SCOPE_UNVERIFIABLE}
    return frozenset(Problem) - impossible


@lru_cache(maxsize=256)
def settlements(policy: Policy) -> tuple[tuple[Kind, Reason], ...]:
    """How claims of this policy can be settled, and why, in a fixed order."""
    answers = [Answered(Response(status, NONE)) for status in range(200, 600)]
    declared = [
        Answered(Response(200, ((b"Idempotency-Outcome", said),))) for said in (b"keep", b"unknown", b"no-effect")
    ]
    forms = [Answered(Response(200, NONE), form) for form in Completeness]
    lost = [Lost(reason) for reason in LostReason]
    unsent = [NotSent(reason) for reason in NotSentReason]
    outcomes: list[Outcome] = [*answers, *declared, *forms, *lost, *unsent]
    verdicts = [settle(outcome, policy) for outcome in outcomes]
    return tuple(dict.fromkeys((verdict.kind, verdict.reason) for verdict in verdicts))

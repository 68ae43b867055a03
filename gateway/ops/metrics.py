"""The metrics of the gate, tallied from one `Account` per request and shown in Prometheus' text format.

The tally is our own: an increment of prometheus-client's metrics costs a lock and a label look-up, and a
guarded request touches eight of them. Its exposition and its types are used as they are. Requests that came
to the same are counted in one *row*; what each counter says of them is worked out when somebody asks.

Each label set that the configuration bounds is exposed at 0 before its first event (label_sets.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter as Count
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..core.limit import Limit
from ..core.policy import Policy, Route
from ..core.record import Kind
from ..ports import Account, VerdictName
from .label_sets import ENDED, OPERATIONS, Ended, Labels, LabelSets

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FINE = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_AGES = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0, 48 * 3600.0, 7 * 24 * 3600.0)
_BYTES = (256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 10485760.0)


#: Requests of a row, or calls of the store, after which what was gathered is sorted in.
_GATHERED = 1024


class Cell:
    """One distribution. `observe` only gathers what is observed; `fold` sorts it in."""

    __slots__ = ("_counts", "_gathered", "_sum", "bounds", "observe")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._gathered: list[float] = []
        self.observe: Callable[[float], None] = self._gathered.append

    def fold(self) -> None:
        """Sort in what was gathered."""
        gathered, counts, below = self._gathered, self._counts, 0
        if not gathered:
            return
        gathered.sort()
        for position, bound in enumerate(self.bounds):
            up_to = bisect_right(gathered, bound)
            counts[position] += up_to - below
            below = up_to
        counts[-1] += len(gathered) - below
        self._sum += sum(gathered)
        gathered.clear()

    @property
    def counts(self) -> list[int]:
        """How many were observed up to each bound, and beyond the last."""
        self.fold()
        return self._counts

    @property
    def sum(self) -> float:
        self.fold()
        return self._sum

    def add(self, counts: list[int], total: float) -> None:
        """What another cell has observed."""
        self._counts = [mine + its for mine, its in zip(self._counts, counts, strict=True)]
        self._sum += total


class Histogram:
    """Distributions by labels."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, labels, bounds
        self._cells: dict[Labels, Cell] = {}

    def cell(self, *labels: str) -> Cell:
        """The distribution under these labels."""
        if (cell := self._cells.get(labels)) is None:
            cell = self._cells[labels] = Cell(self.bounds)
        return cell

    def fold(self) -> None:
        """Sort in what its cells have gathered."""
        for cell in self._cells.values():
            cell.fold()

    def state(self) -> list[Any]:
        return [[labels, cell.counts, cell.sum] for labels, cell in self._cells.items() if any(cell.counts)]

    def add(self, state: list[Any]) -> None:
        for labels, counts, total in state:
            self.cell(*labels).add(counts, total)

    def family(self, from_zero: Iterable[Labels]) -> Metric:
        """Return the samples to expose: those observed, and the label sets of `from_zero` even if nothing was."""
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        shown = {labels: self.cell(*labels) for labels in from_zero} | self._cells
        for labels, cell in shown.items():
            if not any(cell.counts) and labels not in from_zero:
                continue
            running = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip((*map(repr, self.bounds), "+Inf"), cell.counts, strict=True):
                running += count
                buckets.append((bound, running))
            family.add_metric(labels, buckets, cell.sum)
        return family


class Row:
    """Requests that came to the same, and the distributions that they fall into."""

    __slots__ = ("age", "count", "outcome", "overhead", "record_bytes", "upstream")

    def __init__(self, outcome: Ended, tally: Tally) -> None:
        route, verdict = outcome.route, outcome.verdict
        self.outcome = outcome
        self.count = 0
        self.upstream = tally.upstream.cell(route)
        self.record_bytes = tally.record_bytes.cell(route)
        self.age = None if outcome.duplicate is None else tally.age.cell(route)
        #: A wait is the other request's time, and what passes is not timed by us.
        self.overhead = None if verdict in (VerdictName.WAIT, VerdictName.PASS) else tally.overhead.cell(route, verdict)


class Tally:
    """The observer that counts. `in_flight` and `waiters` are asked at each scrape: how many, by route; and
    `findings`: 1 for each that stands, by name. `label_sets` are exposed at 0 before their first event."""

    def __init__(self, label_sets: LabelSets | None = None) -> None:
        self.label_sets = label_sets or LabelSets()
        self._rows: dict[tuple[object, ...], Row] = {}
        self._shadow: Count[tuple[object, ...]] = Count()
        self._unfit: Count[Labels] = Count()
        self._store_errors: defaultdict[str, int] = defaultdict(int, dict.fromkeys(OPERATIONS, 0))
        self._limits = dict.fromkeys(Limit, 0)
        self._forgot = 0
        self._alarms = 0
        self._calls = 0
        self._weak: defaultdict[Labels, int] = defaultdict(int)
        self.upstream = Histogram("oncegate_upstream_seconds", "From forwarding to the answer", ("route",), _SECONDS)
        self.overhead = Histogram(
            "oncegate_overhead_seconds", "The time that the gate itself added", ("route", "verdict"), _FINE
        )
        self.store = Histogram("oncegate_store_seconds", "Calls of the store", ("operation",), _FINE)
        self.age = Histogram(
            "oncegate_duplicate_age_seconds", "How long after the first request a duplicate came", ("route",), _AGES
        )
        self.record_bytes = Histogram("oncegate_record_bytes", "Head and body of answers kept", ("route",), _BYTES)
        self.in_flight: Callable[[], dict[str, int]] = dict
        self.waiters: Callable[[], dict[str, int]] = dict
        self.findings: Callable[[], dict[str, int]] = dict
        self._histograms = (self.upstream, self.overhead, self.store, self.age, self.record_bytes)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def expect(self, routes: Iterable[Route], credentials: Callable[[Policy], Iterable[str]]) -> None:
        """Expose the label sets of these routes from now on, at 0 until something is counted. `credentials` returns
        the labels of `oncegate_unfit_credentials` for a policy."""
        sets = self.label_sets.copy()  # a thread may be rendering the others
        sets.add(routes, credentials)
        self.label_sets = sets

    # ── Several tallies as one ────────────────────────────────────────────────────────────────────

    def copy(self) -> Tally:
        """Return a tally of what there is now, which a thread may render: nothing is counted in it any more."""
        copy = Tally(self.label_sets)
        state = self.state()
        copy.add(state)
        in_flight, waiters, findings = state["now"]
        copy.in_flight, copy.waiters, copy.findings = (lambda: in_flight), (lambda: waiters), (lambda: findings)
        return copy

    def state(self) -> dict[str, Any]:
        """All that it has counted, and what is there now, as values that JSON has room for."""
        return {
            "rows": [[row.outcome, row.count] for row in self._rows.values()],
            "shadow": [[outcome, count] for outcome, count in self._shadow.items()],
            "unfit": [[labels, count] for labels, count in self._unfit.items()],
            "cells": [histogram.state() for histogram in self._histograms],
            "store_errors": self._store_errors,
            "limits": self._limits,
            "forgot": self._forgot,
            "alarms": self._alarms,
            "weak": [[labels, count] for labels, count in self._weak.items()],
            "now": [self.in_flight(), self.waiters(), self.findings()],
        }

    def add(self, state: Mapping[str, Any]) -> None:
        """Count what another has counted, as if it had happened here too. What is there now is not counted."""
        for told, count in state["shadow"]:
            self._shadow[ENDED.validate_python(told)] += count
        for (route, credential), count in state["unfit"]:
            self._unfit[route, credential] += count
        for told, count in state["rows"]:
            outcome = ENDED.validate_python(told)
            row = self._rows.get(outcome)
            if row is None:
                row = self._rows[outcome] = Row(outcome, self)
            row.count += count
        for histogram, cells in zip(self._histograms, state["cells"], strict=True):
            histogram.add(cells)
        for operation, count in state["store_errors"].items():
            self._store_errors[operation] += count
        for limit, count in state["limits"].items():
            self._limits[Limit(limit)] += count
        self._forgot += state["forgot"]
        self._alarms += state["alarms"]
        for labels, count in state["weak"]:
            self._weak[tuple(labels)] += count

    # ── ports.Observer ────────────────────────────────────────────────────────────────────────────

    def finished(self, account: Account) -> None:
        outcome = (
            account.route,
            account.verdict,
            account.duplicate,
            account.settlement,
            account.reason,
            account.unprotected,
            account.problem,
        )
        if account.weak:
            self._weak[account.route, account.weak] += 1
        if account.shadow:
            self._shadow[outcome] += 1
            return
        row = self._rows.get(outcome)
        if row is None:
            row = self._rows[outcome] = Row(Ended(*outcome), self)
        row.count += 1
        if not row.count % _GATHERED:
            self._fold()
        upstream = account.upstream
        if upstream is not None:
            row.upstream.observe(upstream)
        if account.record_bytes is not None:
            row.record_bytes.observe(account.record_bytes)
        if row.age is not None and account.age is not None:
            row.age.observe(account.age)
        if row.overhead is not None:
            row.overhead.observe(max(account.total - (upstream or 0.0), 0.0))

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        if failed:
            self._store_errors[operation] += 1
        else:
            self.store.cell(operation).observe(seconds)
            self._calls += 1
            if not self._calls % _GATHERED:
                self._fold()

    def _fold(self) -> None:
        for histogram in self._histograms:
            histogram.fold()

    def store_forgot(self, route: str) -> None:
        self._forgot += 1
        self._alarms += 1

    def limited(self, limit: Limit) -> None:
        self._limits[limit] += 1

    def alarm(self, what: str, **facts: object) -> None:
        self._alarms += 1

    def unfit(self, route: str, credential: str) -> None:
        """A request carried a credential that does not fit what its route binds."""
        self._unfit[route, credential] += 1

    # ── prometheus_client's Collector ─────────────────────────────────────────────────────────────

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        claiming = self.label_sets.claiming
        from_zero: dict[Histogram, list[Labels]] = {
            histogram: [(route,) for route in claiming] for histogram in (self.upstream, self.age, self.record_bytes)
        }
        from_zero[self.overhead] = [
            (route, verdict)
            for route in claiming
            for verdict in (VerdictName.FORWARD, VerdictName.REPLAY, VerdictName.REFUSE)
        ]
        from_zero[self.store] = [(operation,) for operation in OPERATIONS]
        for histogram in self._histograms:
            yield histogram.family(from_zero[histogram])
        for name, text, label, read in (
            ("oncegate_in_flight", "Exchanges under way", "route", self.in_flight),
            ("oncegate_waiters", "Duplicates attached to an exchange", "route", self.waiters),
            ("oncegate_store_finding", "What stands against the store, by name", "name", self.findings),
        ):
            family = GaugeMetricFamily(name, text, labels=(label,))
            idle = dict.fromkeys(claiming, 0) if label == "route" else {}
            for labelled, value in (idle | read()).items():
                family.add_metric((labelled,), value)
            yield family

    def _counters(self) -> Iterator[Metric]:
        sets = self.label_sets
        real = [(outcome, 0) for outcome in sets.requests]
        real += [(row.outcome, row.count) for row in self._rows.values()]
        shadow = [(outcome, 0) for outcome in sets.shadow]
        shadow += [(Ended(*outcome), count) for outcome, count in self._shadow.items()]  # type: ignore[arg-type]

        def counted(
            name: str,
            text: str,
            labels: Labels,
            of: Callable[[Ended], Labels | None],
            among: Iterable[tuple[Ended, int]] = real,
        ) -> Metric:
            counts: Count[Labels] = Count()
            for outcome, count in among:
                if (found := of(outcome)) is not None:
                    counts[found] += count
            return _counter(name, text, labels, counts)

        yield counted(
            "oncegate_requests", "Requests, by the verdict on arrival", ("route", "verdict"),
            lambda it: (it.route, it.verdict),
        )  # fmt: skip
        yield counted(
            "oncegate_duplicates", "Duplicates caught, by how", ("route", "kind"),
            lambda it: None if it.duplicate is None else (it.route, it.duplicate),
        )  # fmt: skip
        yield counted(
            "oncegate_settlements", "Claims settled, by how and why", ("route", "settlement", "reason"),
            lambda it: (it.route, it.settlement, it.reason) if it.settlement and it.reason else None,
        )  # fmt: skip
        yield counted(
            "oncegate_doubts", "Claims that were put in doubt, by why", ("route", "reason"),
            lambda it: (it.route, it.reason) if it.settlement is Kind.HOLD and it.reason else None,
        )  # fmt: skip
        yield counted(
            "oncegate_unprotected", "Requests that could run twice, by why nothing guarded them", ("route", "reason"),
            lambda it: (it.route, it.unprotected) if it.unprotected else None,
        )  # fmt: skip
        yield counted(
            "oncegate_problems", "Problems answered by the gate itself", ("route", "problem"),
            lambda it: (it.route, it.problem) if it.problem else None,
        )  # fmt: skip
        yield counted(
            "oncegate_shadow_requests", "What would have become of requests on routes in shadow",
            ("route", "verdict", "problem"), lambda it: (it.route, it.verdict, it.problem), shadow,
        )  # fmt: skip
        yield counted(
            "oncegate_shadow_duplicates", "Duplicates that would have been caught, by how", ("route", "kind"),
            lambda it: None if it.duplicate is None else (it.route, it.duplicate), shadow,
        )  # fmt: skip
        yield counted(
            "oncegate_shadow_settlements", "Claims that would have been settled, by how and why",
            ("route", "settlement", "reason"),
            lambda it: (it.route, it.settlement, it.reason) if it.settlement and it.reason else None, shadow,
        )  # fmt: skip
        yield _counter(
            "oncegate_unfit_credentials", "Requests whose credentials do not fit what their route binds",
            ("route", "credential"), dict.fromkeys(sets.unfit, 0) | self._unfit,
        )  # fmt: skip
        yield _counter(
            "oncegate_weak_keys", "Keys that two clients may choose alike", ("route", "kind"),
            dict.fromkeys(sets.weak, 0) | self._weak,
        )  # fmt: skip
        errors: dict[Labels, int] = {(operation,): count for operation, count in self._store_errors.items()}
        yield _counter("oncegate_store_errors", "Calls that the store did not answer", ("operation",), errors)
        limits: dict[Labels, int] = {(limit,): count for limit, count in self._limits.items()}
        yield _counter(
            "oncegate_limits", "Times that a limit was met and kept, by its name in the file", ("limit",), limits
        )
        yield _counter("oncegate_store_forgot", "Acknowledged claims that the store had lost", (), {(): self._forgot})
        yield _counter("oncegate_alarms", "Lines in the log that a person should read", (), {(): self._alarms})


def _counter(name: str, text: str, labels: Labels, counts: Mapping[Labels, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for found, count in counts.items():
        family.add_metric(found, count)
    return family

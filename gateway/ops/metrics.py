"""The metrics of the gate, tallied from one `Account` per request and shown in Prometheus' text format.

The tally is our own: an increment of prometheus-client's metrics costs a lock and a label look-up, and a
guarded request touches eight of them. Its exposition and its types are used as they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..core.record import Kind
from ..ports import Account, VerdictName

Labels = tuple[str, ...]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FINE = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_AGES = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0, 48 * 3600.0, 7 * 24 * 3600.0)
_BYTES = (256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 10485760.0)


class Counter:
    """Counts by labels."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self.name, self.text, self.labels = name, text, labels
        self.values: defaultdict[Labels, int] = defaultdict(int)

    def family(self) -> Metric:
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """Distributions by labels."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, labels, bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums: defaultdict[Labels, float] = defaultdict(float)

    def observe(self, labels: Labels, value: float) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self.bounds) + 1)
        counts[bisect_left(self.bounds, value)] += 1
        self._sums[labels] += value

    def family(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for labels, counts in self._counts.items():
            running = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip((*map(_bound, self.bounds), "+Inf"), counts, strict=True):
                running += count
                buckets.append((bound, running))
            family.add_metric(labels, buckets, self._sums[labels])
        return family


def _bound(value: float) -> str:
    return repr(float(value))


class Tally:
    """The observer that counts. `in_flight` and `waiters` are asked at each scrape: how many, by route."""

    def __init__(self) -> None:
        self.requests = Counter("oncegate_requests", "Requests, by the verdict on arrival", ("route", "verdict"))
        self.duplicates = Counter("oncegate_duplicates", "Duplicates caught, by how", ("route", "kind"))
        self.settlements = Counter(
            "oncegate_settlements", "Claims settled, by how and why", ("route", "settlement", "reason")
        )
        self.doubts = Counter("oncegate_doubts", "Claims that were put in doubt, by why", ("route", "reason"))
        self.unprotected = Counter(
            "oncegate_unprotected", "Requests that could run twice, by why nothing guarded them", ("route", "reason")
        )
        self.refusals = Counter("oncegate_problems", "Problems answered by the gate itself", ("route", "problem"))
        self.store_errors = Counter("oncegate_store_errors", "Calls that the store did not answer", ("operation",))
        self.forgot = Counter("oncegate_store_forgot", "Acknowledged claims that the store had lost", ())
        self.alarms = Counter("oncegate_alarms", "Lines in the log that a person should read", ())
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
        self.forgot.values[()] = 0
        self.alarms.values[()] = 0
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    # ── ports.Observer ────────────────────────────────────────────────────────────────────────────

    def finished(self, account: Account) -> None:
        route, verdict = account.route, account.verdict
        self.requests.values[route, verdict] += 1
        if account.duplicate is not None:
            self.duplicates.values[route, account.duplicate] += 1
            if account.age is not None:
                self.age.observe((route,), account.age)
        if account.settlement is not None and account.reason is not None:
            self.settlements.values[route, account.settlement.value, account.reason.value] += 1
            if account.settlement is Kind.HOLD:
                self.doubts.values[route, account.reason.value] += 1
        if account.unprotected:
            self.unprotected.values[route, account.unprotected] += 1
        if account.problem:
            self.refusals.values[route, account.problem] += 1
        if account.upstream is not None:
            self.upstream.observe((route,), account.upstream)
        if account.record_bytes is not None:
            self.record_bytes.observe((route,), account.record_bytes)
        if verdict is not VerdictName.WAIT and verdict is not VerdictName.PASS:
            self.overhead.observe((route, verdict), max(account.total - (account.upstream or 0.0), 0.0))

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        if failed:
            self.store_errors.values[(operation,)] += 1
        else:
            self.store.observe((operation,), seconds)

    def store_forgot(self, route: str) -> None:
        self.forgot.values[()] += 1
        self.alarms.values[()] += 1

    def alarm(self, what: str, **facts: object) -> None:
        self.alarms.values[()] += 1

    # ── prometheus_client's Collector ─────────────────────────────────────────────────────────────

    def collect(self) -> Iterable[Metric]:
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram):
                yield metric.family()
        for name, text, read in (
            ("oncegate_in_flight", "Exchanges under way", self.in_flight),
            ("oncegate_waiters", "Duplicates attached to an exchange", self.waiters),
        ):
            family = GaugeMetricFamily(name, text, labels=("route",))
            for route, value in read().items():
                family.add_metric((route,), value)
            yield family

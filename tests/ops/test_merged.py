"""The metrics of several processes as one set."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from gateway.core.decide import Reason
from gateway.core.record import Kind
from gateway.ops.merged import Merged
from gateway.ops.metrics import Tally
from gateway.ports import Account, DuplicateKind, VerdictName

#: Seconds, in powers of two: their sum is the same in any order.
ONE = (1 / 1024, 1 / 64, 0.25)
OTHER = (1 / 1024, 1 / 1024, 4.0, 512.0)


def account(total: float) -> Account:
    it = Account("all", b"POST", b"/orders", "127.0.0.1")
    it.verdict = VerdictName.FORWARD
    it.settlement, it.reason = Kind.KEEP, Reason.ANSWERED
    it.total = total
    it.upstream = total / 2
    return it


def caught(duplicate: DuplicateKind) -> Account:
    it = Account("all", b"POST", b"/orders", "127.0.0.1")
    it.verdict, it.duplicate, it.age, it.total = VerdictName.REPLAY, duplicate, 64.0, 1 / 1024
    return it


def told(tally: Tally) -> dict[str, Any]:
    """As it comes over a channel."""
    found: dict[str, Any] = json.loads(json.dumps(tally.state()))
    return found


def tell_all(tally: Tally) -> None:
    """One of each other thing that is counted."""
    tally.finished(caught(DuplicateKind.REPLAYED))
    doubtful = account(1 / 64)
    doubtful.settlement, doubtful.reason, doubtful.verdict = Kind.HOLD, Reason.TIMEOUT, VerdictName.REPLAY
    doubtful.problem, doubtful.unprotected, doubtful.record_bytes = "in-doubt", "no_key", 4096
    doubtful.weak = "counter"
    tally.finished(doubtful)
    shadow = caught(DuplicateKind.KEY_REUSED)
    shadow.shadow, shadow.verdict, shadow.problem = True, VerdictName.REFUSE, "key-reused"
    tally.finished(shadow)
    tally.store_called("claim", 1 / 64, failed=False)
    tally.store_called("settle", 1.0, failed=True)
    tally.store_forgot("all")
    tally.unfit("all", "Digest")
    tally.alarm("something")


def tallies() -> tuple[Tally, Tally]:
    """One that has counted 3 requests and holds 2, one that has counted 4 and holds 1."""
    one, other = Tally(), Tally()
    for total in ONE:
        one.finished(account(total))
    for total in OTHER:
        other.finished(account(total))
    for tally in (one, other):
        tell_all(tally)
    one.in_flight, other.in_flight = (lambda: {"all": 2}), (lambda: {"all": 1})
    one.findings = other.findings = lambda: {"evicts": 1}
    return one, other


def test_two_are_shown_as_one_that_had_counted_it_all() -> None:
    """Two tallies merged → the scrape of one tally that counted what both did: counters, buckets, sums, gauges; a
    finding about the store that they share stands once."""
    one, other = tallies()
    alone = Tally()
    for total in ONE + OTHER:
        alone.finished(account(total))
    tell_all(alone)
    tell_all(alone)
    alone.in_flight, alone.findings = (lambda: {"all": 3}), (lambda: {"evicts": 1})
    merged = Merged(Tally())
    merged.tell(1, told(one))
    merged.tell(2, told(other))
    expected = {line for line in generate_latest(alone.registry).decode().splitlines() if not line.startswith("#")}
    found = {line for line in generate_latest(merged.snapshot()).decode().splitlines() if not line.startswith("#")}
    assert found == expected
    assert list(openmetrics(generate_openmetrics(merged.snapshot()).decode())), "the strict format has no objection"


def test_what_is_told_again_is_not_counted_again() -> None:
    """A tally tells all that it has counted so far, in place of what it told before."""
    one, _ = tallies()
    merged = Merged(Tally())
    for _ in range(3):
        merged.tell(1, told(one))
    assert merged.snapshot().get_sample_value("oncegate_requests_total", {"route": "all", "verdict": "forward"}) == 3


def test_what_has_left_is_counted_and_is_not_there_any_more() -> None:
    """One leaves: its totals and distributions stay, what it held in flight does not; its successor's are added, and
    so are those of the one after."""
    one, other = tallies()
    merged = Merged(Tally())

    def seen() -> tuple[float | None, ...]:
        get = merged.snapshot().get_sample_value
        return (
            get("oncegate_requests_total", {"route": "all", "verdict": "forward"}),
            get("oncegate_overhead_seconds_bucket", {"route": "all", "verdict": "forward", "le": "+Inf"}),
            get("oncegate_in_flight", {"route": "all"}),
        )

    merged.tell(1, told(one))
    merged.tell(2, told(other))
    assert seen() == (7, 7, 3)
    merged.leave(1)
    assert seen() == (7, 7, 1)
    merged.leave(1)
    assert seen() == (7, 7, 1)
    merged.tell(1, told(one))
    merged.leave(1)
    merged.leave(2)
    assert seen() == (10, 10, None)

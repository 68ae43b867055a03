"""The driver of all machines of a process: their store, upstreams, timers and clients.

It holds the table of the keys in flight. A machine calls it through `Io`; replies, outcomes and timers call the events
of the machine directly.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol

from .. import failpoints
from ..core.conclusion import record_of
from ..core.fingerprint import Fingerprint
from ..core.key import Key
from ..core.limit import Limit
from ..core.message import Request
from ..core.outcome import Answered, LostReason, Outcome
from ..core.policy import Route
from ..core.problem import Refusal
from ..core.record import NewClaim, NewKeep, Record, Settlement, Stamp
from ..core.reply import Again, Reply
from ..failpoints import Point
from ..ports import Attempt, Client, Clock, Observer, RecordTooLarge, Store, Stream, Subscription, Upstream
from ..settling import Settler
from ..trace import UNTRACED, Trace, untraced
from .exchange import Exchange
from .io import RequestEvents, RunEvents, StoreEvents
from .machine import Phase
from .request import GuardedRequest

#: Waiters that are answered in one turn of the loop. Ten thousand in one turn would hold up every other request.
SHARED_AT_ONCE = 256
#: Seconds between two looks at the table while it drains.
DRAIN_EVERY = 0.02


class Wheel(Protocol):
    """Many coarse deadlines for one timer."""

    def set(self, who: GuardedRequest, at: float) -> int: ...

    def clear(self, who: GuardedRequest, tick: int) -> None: ...


class Budget(Protocol):
    """`limits.buffers`: the bytes of bodies that the process holds."""

    def take(self, size: int) -> bool:
        """Count these bytes if they fit. If they do not, count that as limited and return False."""

    def hold(self, size: int) -> None:
        """Count these bytes whether or not they fit."""

    def give(self, size: int) -> None:
        """Count these bytes no longer."""


class Driver:
    """`io.Io` of every machine, and the table of machines by the name of their record."""

    def __init__(
        self,
        store: Store,
        upstreams: Mapping[str, Upstream],
        clock: Clock,
        observer: Observer,
        settler: Settler,
        wheel: Wheel,
        budget: Budget,
        *,
        mint: Callable[[], bytes],
        jitter: Callable[[], float],
        failed: Callable[[BaseException], None],
        per_key: int = 100,
        in_all: int = 10_000,
        trace: Callable[[Request, float], Trace] = untraced,
    ) -> None:
        self.store = store
        self.upstreams = upstreams
        self.observer = observer
        self.settler = settler
        self.mint = mint
        self.jitter = jitter
        self.failed = failed
        self.now = clock.now
        self.wall = clock.wall
        self.stopping = False
        self.waiting = 0
        self._wheel = wheel
        self._budget = budget
        #: Whether the last settlement of an unprotected run was dropped for want of room.
        self._dropped = False
        self._per_key = per_key
        self._in_all = in_all
        self._trace = trace
        self._traced = trace is not untraced
        self._loop = asyncio.get_running_loop()
        self._table: dict[bytes, Exchange] = {}
        self._timers: dict[RequestEvents, asyncio.TimerHandle] = {}
        self._subscriptions: dict[RequestEvents, Subscription] = {}
        self._tails: set[_Tail] = set()
        self._sharing = 0

    # ── From the edge ─────────────────────────────────────────────────────────────────────────────

    def request(
        self,
        client: Client,
        request: Request,
        route: Route,
        key: Key,
        name: bytes,
        fingerprint: Fingerprint,
        weak: str = "",
    ) -> GuardedRequest:
        """Make the request that `begin` takes. It has arrived now."""
        now = self.now()
        trace = UNTRACED if self._trace is untraced else self._trace(request, now)
        return GuardedRequest(client, request, route, key, name, fingerprint, started=now, weak=weak, trace=trace)

    def begin(self, request: GuardedRequest) -> None:
        """Answer a request, whatever that takes. Returns at once and never raises."""
        machine = self._table.get(request.name)
        if machine is None:
            machine = self._table[request.name] = Exchange(self, request)
            machine.begin()
        else:
            machine.joined(request)

    rejoin = begin

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(list(self._table.values()))

    def in_flight(self) -> dict[str, int]:
        """Count the keys in flight by route."""
        return Counter(route for machine in self._table.values() if (route := machine.route))

    def waiters(self) -> dict[str, int]:
        """Count the waiting duplicates by route."""
        waiting: Counter[str] = Counter()
        for machine in self._table.values():
            if machine.waiting and machine.route:
                waiting[machine.route] += machine.waiting
        return waiting

    async def drain(self, seconds: float) -> int:
        """Wait until no request is under way, at most this long. Return how many are left."""
        end = self.now() + seconds
        while (left := self.under_way) and self.now() < end:  # noqa: ASYNC110  # a hot path would have to set an event
            await asyncio.sleep(DRAIN_EVERY)
        return left

    @property
    def under_way(self) -> int:
        """How many keys and streams are under way. A settlement in the background does not count."""
        keys = sum(machine.phase is not Phase.LINGERING for machine in self._table.values())
        return keys + len(self._tails) + self._sharing

    def stop(self) -> None:
        """End every attempt, and begin none: what was sent is held, what was not is released."""
        self.stopping = True
        for machine in self:
            machine.stop()
        self._end_tails()

    def _end_tails(self) -> None:
        for tail in list(self._tails):
            tail.attempt.abandon(LostReason.STOPPED)

    def cut(self) -> None:
        """End every machine without an answer."""
        for machine in self:
            machine.cut()
        self._end_tails()

    # ── Timers ────────────────────────────────────────────────────────────────────────────────────

    def timer(self, machine: StoreEvents, at: float) -> None:
        self.cancel_timer(machine)
        self._timers[machine] = self._loop.call_later(max(at - self.now(), 0), self._due, machine)

    def cancel_timer(self, machine: RequestEvents) -> None:
        if self._timers and (handle := self._timers.pop(machine, None)) is not None:
            handle.cancel()

    def _due(self, machine: StoreEvents) -> None:
        del self._timers[machine]
        machine.timer()

    # ── Store ─────────────────────────────────────────────────────────────────────────────────────

    def claim(self, machine: StoreEvents, claim: NewClaim | Record) -> None:
        # A replay points to the trace of its first request, which the short reply does not have.
        self.store.claim(machine.name, record_of(claim) if self._traced else claim, machine.store_replied)

    def compare_and_swap(self, machine: StoreEvents, precondition: Stamp, claim: Record) -> None:
        self.store.compare_and_swap(machine.name, precondition, claim, machine.store_replied)

    def get(self, machine: StoreEvents) -> None:
        self.store.get(machine.name, machine.store_replied)

    def settle(self, machine: RunEvents, settlement: Settlement | NewKeep) -> None:
        reply = partial(_settled, machine) if failpoints.armed else machine.store_replied
        self.store.settle(machine.name, settlement, reply)

    def subscribe(self, machine: StoreEvents) -> None:
        self._subscriptions[machine] = self.store.subscribe(machine.name, machine.notified)

    def subscribed(self, machine: StoreEvents) -> bool:
        subscription = self._subscriptions.get(machine)
        return subscription is not None and subscription.active

    def unsubscribe(self, machine: StoreEvents) -> None:
        subscription = self._subscriptions.pop(machine, None)
        if subscription is not None:
            try:
                subscription.close()
            except Exception as error:
                self.failed(error)

    def wait_for_store(self, machine: StoreEvents, until: float) -> None:
        self.store.when_available(max(until - self.now(), 0), machine.store_back)

    # ── Upstream ──────────────────────────────────────────────────────────────────────────────────

    def upstream(self, request: GuardedRequest) -> Upstream:
        return self.upstreams[request.upstream]

    def forward(
        self,
        machine: RunEvents,
        request: GuardedRequest,
        upstream: Upstream,
        *,
        number: int,
        send_by: float,
        until: float,
    ) -> Attempt:
        if failpoints.armed:
            failpoints.reach(Point.CLAIMED)
        policy = request.policy
        attempt = upstream.attempt(
            request.summary.trace.onward(request.request) if self._traced else request.request,
            number=number,
            send_by=send_by,
            limit=policy.max_response,
            streams=policy.streams,
            follows=policy.follows,
        )
        try:
            attempt.tell(machine.attempt_ended, until)
        except BaseException:
            attempt.abandon(LostReason.STOPPED)
            raise
        return attempt

    def wait_for_attempt(self, machine: RunEvents, attempt: Attempt, until: float) -> None:
        attempt.tell(machine.attempt_ended, until)

    def wait_for_stream(self, machine: RunEvents, stream: Stream, until: float) -> None:
        stream.tell(machine.stream_ended, until)

    def abandon(self, attempt: Attempt, reason: LostReason) -> None:
        attempt.abandon(reason)

    def read_on(self, attempt: Attempt, until: float) -> None:
        _Tail(attempt, self._tails, self.failed).begin(until)
        if self.stopping:
            attempt.abandon(LostReason.STOPPED)

    # ── Requests ──────────────────────────────────────────────────────────────────────────────────

    def full(self, machine: RequestEvents) -> Limit | None:
        if machine.waiting >= self._per_key:
            return Limit.WAITERS_PER_KEY
        return Limit.WAITERS if self.waiting >= self._in_all else None

    def limited(self, limit: Limit) -> None:
        self.observer.limited(limit)

    def arm(self, machine: RequestEvents, request: GuardedRequest) -> None:
        self.waiting += 1
        request.machine = machine
        if request.wait_until <= self.now():
            request.tick = -1
            machine.wait_over(request)
        else:
            request.tick = self._wheel.set(request, request.wait_until)
        request.client.when_gone(request.gone)

    def disarm(self, request: GuardedRequest) -> None:
        self.waiting -= 1
        request.machine = None
        request.client.when_gone(None)
        if request.tick >= 0:
            self._wheel.clear(request, request.tick)

    def answer(self, request: GuardedRequest, reply: Reply, stream: Stream | None = None) -> None:
        request.answer(reply, stream, now=self.now())

    def replay(self, request: GuardedRequest, reply: Again) -> None:
        now, wall = self.now(), self.wall()
        request.answer_duplicate(reply, reply.first_seen, trace=b"", attached=False, now=now, wall=wall)
        self.observer.finished(request.summary)

    def share(
        self,
        replies: Iterable[tuple[GuardedRequest, Reply]],
        record: Record | None = None,
        *,
        trace: bytes = b"",
        attached: bool = False,
    ) -> None:
        seen = None if record is None else record.first_seen
        self._answer_all(
            iter(replies),
            lambda request, reply, now, wall: request.answer_duplicate(
                reply, seen, trace=trace, attached=attached, now=now, wall=wall
            ),
        )

    def refuse(self, requests: Iterable[GuardedRequest], refusal: Refusal, detail: str = "") -> None:
        self._answer_all(
            ((request, refusal) for request in requests),
            lambda request, _, now, wall: request.refuse(refusal, detail, now=now),
        )

    def _answer_all(
        self,
        replies: Iterator[tuple[GuardedRequest, Reply]],
        answer: Callable[[GuardedRequest, Reply, float, int], None],
    ) -> None:
        """Answer some requests now, and the rest in further turns of the loop."""
        now, wall = self.now(), self.wall()
        for request, reply in islice(replies, SHARED_AT_ONCE):
            try:
                answer(request, reply, now, wall)
            except Exception as error:
                self.failed(error)
            self.finish(request)
        if (first := next(replies, None)) is not None:
            self._sharing += 1
            self._loop.call_soon(self._answer_rest, chain((first,), replies), answer)

    def _answer_rest(self, replies: Iterator[tuple[GuardedRequest, Reply]], answer: Any) -> None:
        self._sharing -= 1
        self._answer_all(replies, answer)

    def finish(self, request: GuardedRequest) -> None:
        if request.summary.total == 0.0:
            request.summary.total = self.now() - request.started
        self.observer.finished(request.summary)

    def disconnect(self, requests: Iterable[GuardedRequest]) -> None:
        for request in requests:
            request.client.cut_off()
            self.finish(request)

    # ── Background work ───────────────────────────────────────────────────────────────────────────

    def retry_settlement(
        self,
        machine: RunEvents,
        settlement: Settlement | NewKeep,
        route: str,
        *,
        until: float,
        held: int,
        claimed: bool,
        unprotected: bool,
    ) -> None:
        def ended(result: Any) -> None:
            self._budget.give(held)
            machine.retried(result)

        if not unprotected:
            self._budget.hold(held)
        else:
            dropped, self._dropped = self._dropped, not self._budget.take(held)
            if self._dropped:
                if not dropped:
                    self.alarm("no room for the responses of unprotected requests: they are not stored later", route)
                machine.retried(None)
                return
        claimed = claimed and not unprotected
        self.settler.take(machine.name, settlement, route=route, until=until, ended=ended, claimed=claimed)

    def shortened(self, settlement: Settlement | NewKeep, refused: RecordTooLarge, route: str) -> Settlement | None:
        return self.settler.shortened(settlement, refused, route)

    def abandon_claim(self, machine: StoreEvents, claim: NewClaim | Record, t0: float) -> None:
        self.settler.give_up(machine.name, record_of(claim), t0=t0)

    def repeat_release(
        self, machine: RunEvents, settlement: Settlement | NewKeep, route: str, lease_ends: float
    ) -> None:
        self.settler.repeat(machine.name, settlement, route, lease_ends)

    # ── The table and the observer ────────────────────────────────────────────────────────────────

    def forget(self, machine: RequestEvents) -> None:
        if self._table.get(machine.name) is machine:
            del self._table[machine.name]

    def store_called(
        self, request: GuardedRequest | None, operation: str, began: float, now: float, *, failed: bool
    ) -> None:
        took = now - began
        if request is not None:
            summary = request.summary
            if operation == "settle":
                summary.settle = took
            else:
                summary.claim = (summary.claim or 0.0) + took
            if self._traced:
                summary.trace.called(operation, began, took, failed=failed)
        self.observer.store_called(operation, took, failed=failed)

    def attempted(self, request: GuardedRequest, outcome: Outcome, began: float, now: float) -> None:
        request.summary.upstream = now - began
        if self._traced:
            request.summary.trace.attempted(outcome, began, now - began)

    def store_forgot(self, route: str) -> None:
        self.observer.store_forgot(route)

    def alarm(self, what: str, route: str) -> None:
        self.observer.alarm(what, route=route)


def _settled(machine: RunEvents, result: Any) -> None:
    if failpoints.armed and not isinstance(result, Exception):
        failpoints.reach(Point.STORED)
    machine.store_replied(result)


class _Tail:
    """The rest of a response whose claim is settled."""

    __slots__ = ("_failed", "_kept", "_let_go", "attempt")

    def __init__(self, attempt: Attempt, kept: set[_Tail], failed: Callable[[BaseException], None]) -> None:
        self.attempt = attempt
        self._kept = kept
        self._failed = failed
        self._let_go = False

    def begin(self, until: float) -> None:
        self._kept.add(self)
        assert self.attempt.stream is not None
        self.attempt.stream.tell(self._ended, until)

    def _ended(self, outcome: Outcome | None) -> None:
        stream = self.attempt.stream
        assert stream is not None
        try:
            if outcome is None and not self._let_go:
                self._let_go = True
                if stream.let_go():
                    stream.tell(self._ended, math.inf)
                    return
            stream.finish(clean=isinstance(outcome, Answered))
        except Exception as error:
            self._failed(error)
        self._kept.discard(self)
        self.attempt.abandon(LostReason.STOPPED)


__all__ = ["Driver", "Wheel"]

"""A machine without a driver: every call that it makes is recorded, and the test sends the events.

`RecordingIo` keeps each call as `(name, …)`. A clock that stands still, holders that count up and a jitter of one half
make a story deterministic. `HostileIo` is the same with a store that has replied before the call returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from gateway.core.conclusion import record_of
from gateway.core.fingerprint import Fingerprint
from gateway.core.key import Key
from gateway.core.limit import Limit
from gateway.core.message import Request, Response
from gateway.core.outcome import Answered, Completeness, LostReason, NotSent, NotSentReason, Outcome
from gateway.core.policy import Policy, Route
from gateway.core.problem import Refusal
from gateway.core.record import (
    Done,
    Found,
    NewClaim,
    NewKeep,
    Record,
    Settlement,
    Stamp,
    claimed,
    replaced,
    settled,
    without_body,
)
from gateway.core.record import Write as Change
from gateway.core.reply import Again, Live, Reply
from gateway.engine.exchange import Exchange
from gateway.engine.io import RequestEvents, RunEvents, StoreEvents
from gateway.engine.request import GuardedRequest
from gateway.ports import Attempt, RecordTooLarge, Sink, Stream, Upstream

NAME = b"name"
POLICY = Policy()


class FakeClient:
    """A client that keeps its answer."""

    def __init__(self) -> None:
        self.gone = False
        self.replies: list[tuple[Reply, Stream | None]] = []
        self.inside: Callable[[], None] | None = None

    def reply(self, reply: Reply, stream: Stream | None = None) -> None:
        self.replies.append((reply, stream))
        inside, self.inside = self.inside, None
        if inside is not None:
            inside()

    def when_gone(self, call: Callable[[], None] | None) -> None:
        if call is not None and self.gone:
            call()

    def __repr__(self) -> str:
        return ", ".join(text(reply) for reply, _ in self.replies) or "no answer"


class FakeStream:
    """The rest of a response. `read` says whether its client still reads it."""

    def __init__(self, *, read: bool = True) -> None:
        self.read = read
        self.calls: list[str] = []
        self.length: int | None = None

    def attach(self, sink: Sink) -> None:
        self.calls.append("attach")

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def detach(self) -> None:
        self.calls.append("detach")

    def outcome(self, until: float) -> Any:
        raise AssertionError("the driver awaits nothing")

    def let_go(self) -> bool:
        self.calls.append("let go")
        return self.read

    def finish(self, *, clean: bool) -> None:
        self.calls.append("finish" if clean else "break off")


class FakeAttempt:
    """An attempt: `sent` and `stream` are set by the test."""

    def __init__(self) -> None:
        self.sent = True
        self.followed = 0
        self.stream: FakeStream | None = None
        self.abandoned: list[LostReason] = []

    def outcome(self, until: float) -> Any:
        raise AssertionError("the driver awaits nothing")

    def abandon(self, reason: LostReason) -> None:
        self.abandoned.append(reason)


class RecordingIo:
    """See the module. Calls of the clock, of `subscribed` and of `full` are not recorded."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.time = 1000.0
        self.stopping = False
        self.is_subscribed = False
        self.cap: Limit | None = None
        self.table: dict[bytes, Exchange] = {}
        self.armed: set[GuardedRequest] = set()
        self.errors: list[BaseException] = []
        self.attempts: list[FakeAttempt] = []
        self.attempt_made: Callable[[FakeAttempt], None] = lambda attempt: None
        self.holders = 0
        self.timer_at: float | None = None

    # ── What a test asks ──────────────────────────────────────────────────────────────────────────

    def took(self) -> list[tuple[Any, ...]]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def names(self) -> list[str]:
        return [call[0] for call in self.took()]

    def join(self, request: GuardedRequest) -> Exchange:
        """Let a request arrive, as the driver does."""
        machine = self.table.get(request.name)
        if machine is None:
            machine = self.table[request.name] = Exchange(self, request)
            machine.begin()
        else:
            machine.joined(request)
        return machine

    # ── Io ────────────────────────────────────────────────────────────────────────────────────────

    def now(self) -> float:
        return self.time

    def wall(self) -> int:
        return int(self.time * 1000)

    def mint(self) -> bytes:
        self.holders += 1
        return b"%012d" % self.holders

    def jitter(self) -> float:
        return 0.5

    def timer(self, machine: StoreEvents, at: float) -> None:
        self.timer_at = at
        self.calls.append(("timer", round(at - self.time, 4)))

    def cancel_timer(self, machine: RequestEvents) -> None:
        self.timer_at = None

    def claim(self, machine: StoreEvents, claim: NewClaim | Record) -> None:
        self.calls.append(("claim", record_of(claim)))

    def compare_and_swap(self, machine: StoreEvents, precondition: Stamp, claim: Record) -> None:
        self.calls.append(("compare_and_swap", precondition, claim))

    def get(self, machine: StoreEvents) -> None:
        self.calls.append(("get",))

    def settle(self, machine: RunEvents, settlement: Settlement | NewKeep) -> None:
        self.calls.append(("settle", settlement))

    def subscribe(self, machine: StoreEvents) -> None:
        self.calls.append(("subscribe",))

    def subscribed(self, machine: StoreEvents) -> bool:
        return self.is_subscribed

    def unsubscribe(self, machine: StoreEvents) -> None:
        self.calls.append(("unsubscribe",))

    def wait_for_store(self, machine: StoreEvents, until: float) -> None:
        self.calls.append(("wait_for_store", round(until - self.time, 4)))

    def upstream(self, request: GuardedRequest) -> Upstream: ...  # type: ignore[empty-body]

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
        attempt = FakeAttempt()
        self.attempts.append(attempt)
        self.calls.append(("forward", number))
        self.attempt_made(attempt)
        return attempt

    def wait_for_attempt(self, machine: RunEvents, attempt: Attempt, until: float) -> None:
        self.calls.append(("wait_for_attempt", round(until - self.time, 4)))

    def wait_for_stream(self, machine: RunEvents, stream: Stream, until: float) -> None:
        self.calls.append(("wait_for_stream", round(until - self.time, 4)))

    def abandon(self, attempt: Attempt, reason: LostReason) -> None:
        self.calls.append(("abandon", reason.value))
        attempt.abandon(reason)

    def read_on(self, attempt: Attempt, until: float) -> None:
        self.calls.append(("read_on",))

    def full(self, machine: RequestEvents) -> Limit | None:
        return self.cap

    def limited(self, limit: Limit) -> None:
        self.calls.append(("limited", limit.value))

    def arm(self, machine: RequestEvents, request: GuardedRequest) -> None:
        assert request not in self.armed
        request.machine = machine
        self.armed.add(request)
        request.client.when_gone(partial(machine.left, request))

    def disarm(self, request: GuardedRequest) -> None:
        self.armed.remove(request)
        request.machine = None
        request.client.when_gone(None)

    def answer(self, request: GuardedRequest, reply: Reply, stream: Stream | None = None) -> None:
        self.calls.append(("answer", request, text(reply)))
        request.answer(reply, stream, now=self.time)

    def share(
        self,
        replies: Iterable[tuple[GuardedRequest, Reply]],
        record: Record | None = None,
        *,
        trace: bytes = b"",
        attached: bool = False,
    ) -> None:
        for request, reply in replies:
            self.calls.append(("share", request, text(reply)))
            request.answer_duplicate(
                reply,
                None if record is None else record.first_seen,
                trace=trace,
                attached=attached,
                now=self.time,
                wall=self.wall(),
            )
            self.finish(request)

    def replay(self, request: GuardedRequest, reply: Again) -> None:
        self.share([(request, reply)])

    def refuse(self, requests: Iterable[GuardedRequest], refusal: Refusal, detail: str = "") -> None:
        for request in requests:
            self.calls.append(("refuse", request, text(refusal)))
            request.refuse(refusal, detail, now=self.time)
            self.finish(request)

    def finish(self, request: GuardedRequest) -> None:
        assert request not in self.armed
        assert not getattr(request.summary, "finished", False), "a summary is reported once"
        request.summary.finished = True  # type: ignore[attr-defined]

    def rejoin(self, request: GuardedRequest) -> None:
        self.calls.append(("rejoin",))
        self.join(request)

    def disconnect(self, requests: Iterable[GuardedRequest]) -> None:
        for request in requests:
            self.calls.append(("disconnect", request))
            self.finish(request)

    def retry_settlement(
        self, machine: RunEvents, settlement: Settlement | NewKeep, route: str, *, until: float, **how: Any
    ) -> None:
        self.calls.append(("retry_settlement", settlement))

    def shortened(self, settlement: Settlement | NewKeep, refused: RecordTooLarge, route: str) -> Settlement | None:
        return without_body(settlement)

    def abandon_claim(self, machine: StoreEvents, claim: NewClaim | Record, t0: float) -> None:
        self.calls.append(("abandon_claim", claim.holder))

    def repeat_release(
        self, machine: RunEvents, settlement: Settlement | NewKeep, route: str, lease_ends: float
    ) -> None:
        self.calls.append(("repeat_release", settlement.holder))

    def forget(self, machine: RequestEvents) -> None:
        assert self.table.pop(machine.name) is machine

    def store_called(
        self, request: GuardedRequest | None, operation: str, began: float, now: float, *, failed: bool
    ) -> None: ...

    def attempted(self, request: GuardedRequest, outcome: Outcome, began: float, now: float) -> None: ...

    def store_forgot(self, route: str) -> None:
        self.calls.append(("store_forgot",))

    def alarm(self, what: str, route: str) -> None:
        self.calls.append(("alarm",))

    def failed(self, error: BaseException) -> None:
        self.calls.append(("failed",))
        self.errors.append(error)


class HostileIo(RecordingIo):
    """A store that replies before the call returns, from `records`. `replies` go first: an exception, or a result."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[bytes, tuple[Record, float]] = {}
        self.replies: list[Any] = []

    def found(self, name: bytes) -> Found | None:
        if name not in self.records:
            return None
        record, written = self.records[name]
        age = int((self.time - written) * 1000)
        return Found(record, age) if age < record.life else None

    def put(self, record: Record, name: bytes = NAME) -> None:
        self.records[name] = record, self.time

    def _change(self, name: bytes, result: Done | Found, change: Record | Change) -> Done | Found:
        if isinstance(change, Record):
            self.put(change, name)
        elif change is Change.DELETE:
            del self.records[name]
        return result

    def _reply(self, machine: StoreEvents, call: Callable[[], Any]) -> None:
        machine.store_replied(self.replies.pop(0) if self.replies else call())

    def claim(self, machine: StoreEvents, claim: NewClaim | Record) -> None:
        super().claim(machine, claim)
        name = machine.name
        self._reply(machine, lambda: self._change(name, *claimed(self.found(name), record_of(claim))))

    def compare_and_swap(self, machine: StoreEvents, precondition: Stamp, claim: Record) -> None:
        super().compare_and_swap(machine, precondition, claim)
        name = machine.name
        self._reply(machine, lambda: self._change(name, *replaced(self.found(name), precondition, claim)))

    def get(self, machine: StoreEvents) -> None:
        super().get(machine)
        self._reply(machine, lambda: self.found(machine.name))

    def settle(self, machine: RunEvents, settlement: Settlement | NewKeep) -> None:
        super().settle(machine, settlement)
        name = machine.name
        self._reply(machine, lambda: self._change(name, *settled(self.found(name), settlement)))


def text(reply: Reply) -> str:
    """Describe a reply: `201 stored`, `409 in-flight`, `201 replayed`, `200 not-kept live`."""
    if isinstance(reply, Refusal):
        return f"{reply.problem.status} {reply.problem.slug}"
    if isinstance(reply, Again):
        return f"{reply.answer.status} {reply.label}"
    return f"{reply.response.status} {reply.label}{' live' if isinstance(reply, Live) else ''}"


def request_for(
    policy: Policy = POLICY,
    *,
    body: bytes = b"same",
    credentials: bytes = b"me",
    route: str = "pay",
    at: float = 1000.0,
    **changes: Any,
) -> GuardedRequest:
    """A request for the one key, which asks for `body`."""
    policy = replace(policy, **changes) if changes else policy
    printed = Fingerprint(b"rrrr" + body.ljust(16) + credentials.ljust(16), b"")
    request = Request(b"POST", b"/", (), body)
    return GuardedRequest(
        FakeClient(),
        request,
        Route(route, upstream="service", policy=policy),
        Key(b"k"),
        NAME,
        printed,
        started=at,
    )


def whole(status: int = 201, body: bytes = b"done") -> Answered:
    return Answered(Response(status, (), body))


def streamed(status: int = 200) -> Answered:
    return Answered(Response(status, ()), Completeness.STREAM)


UNREACHABLE = NotSent(NotSentReason.UNREACHABLE)

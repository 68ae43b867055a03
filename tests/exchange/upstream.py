"""A service behind the gate that does what a script says, and tells it honestly.

It counts what it was asked to do. Its effect happens when the request reaches it, whatever becomes of the
answer; a request that was handed to it cannot be called back.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.core.message import Field, Request, Response, values
from gateway.core.outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from gateway.core.streams import StreamTypes
from gateway.ports import Clock, Sink


@dataclass(frozen=True)
class Plan:
    """What comes of one request. Seconds: `connect` to its first byte, then `after` to the answer's head,
    then `drip` until the answer is whole.

    `fails` is NotSent instead of the first byte, `breaks` a connection that ends instead of the answer's
    end, `closes` an answer that only the connection's end ends, `cuts` a stream whose connection ends before it.
    `effect`: whether it does anything.
    """

    connect: float = 0.001
    after: float = 0.01
    drip: float = 0.0
    pieces: int = 4
    status: int = 201
    fields: tuple[Field, ...] = ()
    body: bytes | None = None
    fails: NotSentReason | None = None
    breaks: LostReason | None = None
    closes: bool = False
    cuts: bool = False
    effect: bool = True


NEVER = 1e9


def answers(status: int = 201, *fields: Field, **more: object) -> Plan:
    return Plan(status=status, fields=fields, **more)  # type: ignore[arg-type]


def refuses(status: int = 429, *fields: Field, **more: object) -> Plan:
    """It says that it has not done it, and has not."""
    return Plan(status=status, fields=fields, effect=False, **more)  # type: ignore[arg-type]


def streams(*, chunks: int = 4, seconds: float = 1.0, status: int = 200, **more: object) -> Plan:
    event = (b"Content-Type", b"text/event-stream")
    return Plan(status=status, fields=(event,), drip=seconds, pieces=chunks, body=b"data\n\n" * chunks, **more)  # type: ignore[arg-type]


def unreachable(after: float = 0.001, reason: NotSentReason = NotSentReason.UNREACHABLE) -> Plan:
    return Plan(connect=after, fails=reason)


def breaks(after: float = 0.01, reason: LostReason = LostReason.CLOSED, *, effect: bool = True) -> Plan:
    return Plan(after=after, breaks=reason, effect=effect)


def never() -> Plan:
    return Plan(after=NEVER)


@dataclass(frozen=True)
class Ran:
    """A request that reached the service: when, under which key, which attempt, and whether it did anything."""

    at: float
    key: bytes
    number: int
    effect: bool


class Service:
    """The `Upstream`. `plans` are used one for each attempt, the last one for all that follow."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.plans: deque[Plan] = deque([Plan()])
        self.attempts: list[Attempt] = []
        self.ran: list[Ran] = []
        self.slept_through = False

    def will(self, *plans: Plan) -> None:
        """What comes of the next requests."""
        self.plans = deque(plans)

    @property
    def effects(self) -> Counter[bytes]:
        return Counter(ran.key for ran in self.ran if ran.effect)

    @property
    def numbers(self) -> list[int]:
        """The attempt numbers, in the order in which the requests came."""
        return [ran.number for ran in self.ran]

    def attempt(
        self,
        request: Request,
        *,
        number: int,
        send_by: float,
        limit: int,
        streams: StreamTypes,
        follows: frozenset[int] = frozenset(),
        loop: Any = None,
    ) -> Attempt:
        """`loop` has the callbacks of the process that makes the attempt."""
        plan = self.plans.popleft() if len(self.plans) > 1 else self.plans[0]
        attempt = Attempt(self, plan, request, number, send_by, limit, streams, loop or asyncio.get_running_loop())
        self.attempts.append(attempt)
        return attempt


class Upstream:
    """The service as one process reaches it: the process reads what the service answers, and may be dead."""

    def __init__(self, service: Service, loop: Any) -> None:
        self._service = service
        self._loop = loop

    def attempt(self, request: Request, **more: Any) -> Attempt:
        return self._service.attempt(request, **more, loop=self._loop)


class Waiting:
    """What `tell` does, of an attempt or a stream."""

    def __init__(self, clock: Clock, loop: Any) -> None:
        self._clock = clock
        self._loop = loop
        self._outcome: Outcome | None = None
        self._told: Callable[[Outcome | None], None] | None = None
        self._until = 0.0
        self._deadline: Any = None

    def tell(self, told: Callable[[Outcome | None], None], until: float) -> None:
        if self._outcome is not None:
            told(self._outcome)
        else:
            assert self._told is None, "one call at a time"
            self._told, self._until = told, until
            self._wait()

    def _wait(self) -> None:
        now = self._clock.now()
        if self._too_late(now):
            self._conclude(NotSent(NotSentReason.NO_CONNECTION))
        elif now >= self._until:
            self._report(None)
        elif (left := self._next_deadline() - now) < NEVER:
            self._deadline = self._loop.call_later(left, self._wait)

    def _too_late(self, now: float) -> bool:
        return False

    def _next_deadline(self) -> float:
        return self._until

    def _conclude(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._report(outcome)

    def _report(self, outcome: Outcome | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        told, self._told = self._told, None
        if told is not None:
            told(outcome)


class Attempt(Waiting):
    """One request on its way, as `ports.Attempt` says. It follows no redirect."""

    followed = 0

    def __init__(
        self,
        service: Service,
        plan: Plan,
        request: Request,
        number: int,
        send_by: float,
        limit: int,
        streams: StreamTypes,
        loop: Any,
    ) -> None:
        super().__init__(service.clock, loop)
        self._service = service
        self._plan = plan
        self._key = values(request.fields, b"idempotency-key")[0]
        self._number = number
        self._send_by = send_by
        self._limit = limit
        self._streams = streams
        self._read: list[bytes] = []
        self._pieces: deque[bytes] = deque()
        self._headed = False
        self.sent = False
        self.stream: Flow | None = None
        self.abandoned: LostReason | None = None
        self._timer = self._loop.call_later(plan.connect, self._connected)

    @property
    def open(self) -> bool:
        """Whether its connection still costs something: a timer, or a stream that nobody reads or has ended."""
        if self.stream is not None:
            return not self.stream.over
        return self._outcome is None

    def _too_late(self, now: float) -> bool:
        return not self.sent and now >= self._send_by

    def _next_deadline(self) -> float:
        return self._until if self.sent else min(self._until, self._send_by)

    def abandon(self, reason: LostReason) -> None:
        if self.stream is not None:
            self.stream.abandon(reason)
        elif self._outcome is None:
            self.abandoned = reason
            self._timer.cancel()
            self._conclude(Lost(reason) if self.sent else NotSent(NotSentReason.STOPPED))

    def _connected(self) -> None:
        plan, service = self._plan, self._service
        if self._outcome is not None:
            return
        if plan.fails is not None:
            self._conclude(NotSent(plan.fails))
            return
        if service.clock.now() > self._send_by:
            self._conclude(NotSent(NotSentReason.TOO_LATE))
            return
        self.sent = True
        service.ran.append(Ran(self._loop.time(), self._key, self._number, plan.effect))
        body = plan.body if plan.body is not None else b"run %d" % len(service.ran)
        size = max(1, -(-len(body) // plan.pieces)) if plan.drip else max(1, len(body))
        self._pieces = deque(body[at : at + size] for at in range(0, len(body), size))
        self._timer = self._loop.call_later(plan.after, self._head)

    def _head(self) -> None:
        if self.abandoned is not None:
            return
        if self._plan.breaks is not None:
            self._conclude(Lost(self._plan.breaks))
            return
        self._headed = True
        if any(self._streams.match(value) for value in values(self._plan.fields, b"content-type")):
            self._overflow(Completeness.STREAM)
        self._drip()

    def _drip(self) -> None:
        if self.abandoned is not None or (self.stream is not None and self.stream.over):
            return
        if self.stream is not None and not self.stream.read:
            self.stream.on_read = self._drip
            return
        if not self._pieces:
            self._end()
            return
        piece = self._pieces.popleft()
        if self.stream is None and sum(map(len, self._read)) + len(piece) > self._limit:
            self._overflow(Completeness.OVER_LIMIT)
        if self.stream is not None:
            self.stream.write(piece)
        else:
            self._read.append(piece)
        if self._plan.drip:
            self._timer = self._loop.call_later(self._plan.drip / self._plan.pieces, self._drip)
        else:
            self._drip()

    def _overflow(self, completeness: Completeness) -> None:
        answered = Answered(Response(self._plan.status, self._plan.fields), completeness)
        self.stream = Flow(self._service.clock, answered, self._read, self._loop)
        self._conclude(answered)

    def _end(self) -> None:
        if self.stream is not None:
            if self._plan.cuts:
                self.stream.lost(LostReason.CLOSED)
            else:
                self.stream.end()
            return
        whole = Completeness.UNTIL_CLOSE if self._plan.closes else Completeness.WHOLE
        self._conclude(Answered(Response(self._plan.status, self._plan.fields, b"".join(self._read)), whole))


class Flow(Waiting):
    """The rest of a response, as `ports.Stream` says."""

    length: int | None = None

    def __init__(self, clock: Clock, answered: Answered, read: list[bytes], loop: Any) -> None:
        super().__init__(clock, loop)
        self._answered = answered
        self._held = list(read)
        self._sink: Sink | None = None
        self._let_go = False
        self._finished: bool | None = None
        #: Whether anything more is read, for a sink or without one; and what is to be called then.
        self.read = False
        self.on_read: Callable[[], None] | None = None

    @property
    def over(self) -> bool:
        """Whether its connection costs nothing any more."""
        return self._outcome is not None

    @property
    def abandoned(self) -> LostReason | None:
        return self._outcome.reason if isinstance(self._outcome, Lost) else None

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        for data in self._held:
            sink.write(data)
        if self._finished is not None:
            sink.end(clean=self._finished)
        self._read_on()

    def _read_on(self) -> None:
        self.read = True
        call, self.on_read = self.on_read, None
        if call is not None:
            self._loop.call_soon(call)

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def detach(self) -> None:
        self._sink = None
        self._read_on()
        if self._let_go:
            self.abandon(LostReason.TIMEOUT)

    def let_go(self) -> bool:
        self._let_go = True
        if self._sink is None:
            self.abandon(LostReason.TIMEOUT)
        return self._outcome is None

    def finish(self, *, clean: bool) -> None:
        if self._finished is None:
            self._finished = clean
            sink = self._sink
            self.detach()
            if sink is not None:
                sink.end(clean=clean)

    def abandon(self, reason: LostReason) -> None:
        self.lost(reason)

    def write(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.write(data)
        else:
            self._held.append(data)

    def end(self) -> None:
        self._conclude(self._answered)

    def lost(self, reason: LostReason) -> None:
        self._conclude(Lost(reason, status=self._answered.response.status))

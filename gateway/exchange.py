"""The life of one guarded request, read from top to bottom.

What has to be asked at every `await` here: what if we are cancelled, killed or paused at this point,
and what does the next duplicate then see?

claim     Killed or paused: the claim, if it was made, lapses; then it is in doubt. Cancelled, or the
          reply lost: it is given up, and the settler releases it until the store has answered.
outcome   The client's leaving does not matter: the exchange is not the client's. Killed or paused: the
          lease lapses. Cancelled: the attempt is abandoned and the settler holds (or, where no byte was
          sent, releases) the claim.
stream    The response is too long to be stored, or a stream: its client gets it as it comes, and the claim stays
          in flight until it was read to its end. The client's leaving or slowness does not matter: the response
          is read on without it. Broken off before its end: in doubt. Not over when the exchange has to end: in
          doubt, and from then on it lives as long as its client reads; ended after all, it is kept. Killed or
          paused: the lease lapses. Cancelled: the attempt is abandoned and the settler holds the claim.
settle    Nothing has been said to the client yet, or of a stream not its end. Killed: the lease lapses and the
          client's connection breaks; what it does not know, no duplicate is told otherwise. Cancelled: the
          settler goes on.
wait      Costs nothing and owns nothing. Whoever waits may leave at any time.

No task of an exchange is cancelled because its client left; cancellation means that the process is
being stopped and its grace is over.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar, assert_never

from . import failpoints
from .account import CAUGHT
from .awaitable import AwaitableStore
from .core import record as records
from .core.conclusion import (
    claimant_reply,
    outcome_unknown,
    settlement_of,
    unfinished,
    unsettled_label,
    waiters_reply,
)
from .core.decide import (
    Forward,
    PassReason,
    Reason,
    Refuse,
    Replay,
    Settle,
    Wait,
    in_doubt,
    mismatch,
    resolve,
    settle,
)
from .core.fingerprint import Fingerprint, difference
from .core.key import Key
from .core.message import Request, Response, preferred_wait
from .core.outcome import Answered, Lost, LostReason, NotSent, NotSentReason, Outcome
from .core.policy import Route, StoreDown
from .core.problem import Label, Problem, Refusal
from .core.record import Done, Found, Kind, Record, Settlement, Stamp
from .core.reply import Again, Live, Reply
from .core.values import value
from .failpoints import Point
from .flights import GONE, LOOK_AGAIN, TIMED_OUT, Ending, Failed, Flight, Flights, LookAgain, Stands, Told
from .ports import (
    Account,
    Attempt,
    Client,
    Clock,
    DuplicateKind,
    IdentityChanged,
    Observer,
    RecordTooLarge,
    RecordUnreadable,
    StoreAway,
    StoreFull,
    StoreRefused,
    Stream,
    Trace,
    Upstream,
    VerdictName,
    untraced,
)
from .settling import Settler
from .tasks import Tasks

T = TypeVar("T")

#: How often another process's flight is looked at, in seconds: at first, at last, and by what it grows.
FIRST_LOOK = 0.025
LAST_LOOK = 0.25
LOOK_GROWS = 1.5
#: The same where a bell hears its end. What nobody rings for (a store that forgot, a gate of a version that rings
#: no bells, a connection that has died and not said so) is still seen within a second, at a tenth of the cost.
FIRST_SLOW_LOOK = 0.25
LAST_SLOW_LOOK = 1.0
#: A store tells ages in whole milliseconds: so long after its lapse a record has lapsed by anybody's rounding.
PAST_LAPSE = 0.002
#: After a release elsewhere, one waiter of each process claims once, after up to this long: no herd.
JITTER = 0.05

#: The detail of a 503 whose store answers, and has no room for a new key.
NO_ROOM = (
    "The idempotency store is full: it has no room for a new key. The request was not executed; retry it later with "
    "the same key."
)

#: The same whose store refuses even the record of a claim, which is small.
TOO_LARGE = (
    "The idempotency store refuses the record of this key: it is over a limit of the store. The request was not "
    "executed; report it to the service."
)


@value
class Ask:
    """A guarded request, read whole: what it asks, and under which name."""

    request: Request
    route: Route
    key: Key
    name: bytes
    fingerprint: Fingerprint
    #: Why its key is a weak one; empty where it is not.
    weak: str = ""


@value
class Begun:
    """How far a request has come that was begun without an exchange (edge.express), and goes on as one: `claim` was
    asked for at `t0`, in the clock's seconds."""

    flight: Flight
    t0: float
    claim: Record
    #: What has come of that, or comes yet; None where the key is its own.
    claimed: Callable[[], Coroutine[Any, Any, Done | Found]] | None = None
    #: How long that took, where it was counted.
    claim_took: float | None = None
    #: Its attempt, once it was begun, at `sent_at`; or what prevented that, which may have sent something.
    attempt: Attempt | None = None
    sent_at: float = 0.0
    failure: Exception | None = None
    #: What it is settled by, once the store was told of it at `answered`; and what has come of that, or comes yet.
    settlement: Settlement | None = None
    answered: float = 0.0
    settled: Callable[[], Coroutine[Any, Any, Done | Found]] | None = None


@dataclass(slots=True)
class Gate:
    """What all exchanges of a process share."""

    store: AwaitableStore
    upstreams: dict[str, Upstream]
    clock: Clock
    observer: Observer
    flights: Flights
    settler: Settler
    mint: Callable[[], bytes]
    jitter: Callable[[], float]
    tasks: Tasks
    stopping: bool = False
    #: Begins the trace of a request.
    trace: Callable[[Request, float], Trace] = untraced

    def begin(self, ask: Ask, client: Client) -> None:
        """Start the exchange of a request. Its task belongs to the gate, not to the client."""
        exchange = Exchange(self, ask, client)
        exchange.task = self.tasks.adopt(exchange.run())

    def go_on(self, ask: Ask, client: Client, begun: Begun) -> None:
        """As `begin`, for a request that has come so far."""
        exchange = Exchange(self, ask, client, begun)
        exchange.task = self.tasks.adopt(exchange.run())

    def muster(self) -> None:
        """Whatever flies alone goes on as an exchange, so that the gate's tasks are all that there is to wait for."""
        for alone in self.flights.alone():
            alone.joined()

    def in_flight(self) -> dict[str, int]:
        """Exchanges under way, by route."""
        flying = Counter(flight.standing.route for flight in self.flights if flight.standing is not None)
        flying.update(alone.route for alone in self.flights.alone() if alone.route is not None)
        return flying

    def waiters(self) -> dict[str, int]:
        """Duplicates attached to an exchange, by route."""
        waiting: Counter[str] = Counter()
        for flight in self.flights:
            if flight.standing is not None and flight.waiting:
                waiting[flight.standing.route] += flight.waiting
        return waiting

    def stop(self) -> None:
        """End every attempt under way, and begin none: what was sent is held, what was not is released."""
        self.stopping = True
        self.muster()
        for flight in self.flights:
            if flight.attempt is not None:
                flight.attempt.abandon(LostReason.STOPPED)


class Exchange:
    """One guarded request, from its claim to its settlement, or one duplicate of it."""

    __slots__ = (
        "account",
        "answered",
        "ask",
        "attempt",
        "begun",
        "claim",
        "client",
        "gate",
        "late",
        "lingers",
        "pending",
        "policy",
        "sending",
        "started",
        "stream",
        "t0",
        "task",
        "unprotected",
        "unsure",
        "wait_until",
    )

    def __init__(self, gate: Gate, ask: Ask, client: Client, begun: Begun | None = None) -> None:
        self.gate = gate
        self.ask = ask
        self.client = client
        self.begun = begun
        self.policy = ask.route.policy
        self.started = self.t0 = self.answered = gate.clock.now() if begun is None else begun.t0
        self.wait_until = self.started + self.policy.wait / 1000
        self.task: asyncio.Task[None] | None = None
        self.claim: Record | None = None
        self.unsure = False
        self.unprotected = False
        self.sending = False
        self.lingers = False
        #: The rest of a response that goes on after its claim was settled, and its attempt.
        self.stream: Stream | None = None
        self.attempt: Attempt | None = None
        #: The flight of a response that was not over when its exchange had to end; its claim is in doubt.
        self.late: Flight | None = None
        #: Settlements that the settler has taken and not ended.
        self.pending = 0
        request = ask.request
        self.account = Account(
            ask.route.name,
            request.method,
            request.target,
            request.peer,
            key=ask.key,
            name=ask.name,
            weak=ask.weak,
            request_bytes=len(request.body),
            trace=gate.trace(request, self.started),
        )

    async def run(self) -> None:
        """Lead the flight of this name, or follow the one that there is, until the client has its answer."""
        flights, name = self.gate.flights, self.ask.name
        try:
            try:
                while True:
                    if self.begun is not None:
                        await self._lead(self.begun.flight)
                        break
                    flight = flights.get(name)
                    if flight is None:
                        await self._lead(flights.open(name))
                        break
                    if await self._follow(flight):
                        break
            except Exception as error:
                # Unexpected, so it comes last: the gate's tasks report it, the client learns no detail of it.
                self.gate.tasks.failed(error)
                self._reply(Refusal(Problem.OVERLOADED if self.account.attempt == 0 else Problem.UPSTREAM_LOST))
            finally:
                self._finish()
            if self.stream is not None:
                await self._read_on(self.stream)
        finally:
            self.gate.tasks.leave(self.task)

    # ── Leading: ask the store, and own the key or watch whoever does ─────────────────────────────

    async def _lead(self, flight: Flight) -> None:
        ending: Ending = LOOK_AGAIN
        lists = False
        try:
            ending = await self._claim_and_fly(flight)
            lists = self.lingers
        finally:
            if not lists:
                self.gate.flights.forget(flight)
            flight.end(ending)

    async def _claim_and_fly(self, flight: Flight) -> Ending:
        if self.begun is not None and self.begun.claimed is None:
            self.claim = self.begun.claim
            self.account.claim = self.begun.claim_took
            return await self._fly(flight)
        while True:
            try:
                found: Done | Found | None = await self._claim()
                while isinstance(found, Found):
                    verdict = resolve(found, self.ask.fingerprint, self.policy)
                    if isinstance(verdict, Replay | Refuse):
                        self._answer_from(found, verdict)
                        return Stands(found)
                    if isinstance(verdict, Forward):
                        found = await self._take_over(verdict.seen)
                        continue
                    next_found = await self._watch(flight, found, verdict)
                    if isinstance(next_found, LookAgain):
                        return LOOK_AGAIN
                    found = next_found
                    if found is None:
                        flight.freed()
                        await asyncio.sleep(self.gate.jitter() * JITTER)
            except StoreAway as away:
                changed = isinstance(away, IdentityChanged)
                problem = Problem.IDENTITY_CHANGED if changed else Problem.STORE_UNAVAILABLE
                refusal = Refusal(problem, retry_after=1, instead=_refused_by_store(away))
                self.account.detail = away.why
                if self.account.verdict is VerdictName.PASS:
                    self.account.verdict = VerdictName.REFUSE
                self._reply(refusal)
                return Failed(refusal)
            if found is Done.WON:
                return await self._fly(flight)

    def _claim(self) -> Coroutine[Any, Any, Done | Found]:
        """Claim the key: WON, or what stands. A store that is away is waited for, as the policy says; past that
        the key is ours as far as anybody knows, where the policy says `store_down: forward`."""
        gate, policy, ask = self.gate, self.policy, self.ask
        forward = policy.store_down is StoreDown.FORWARD
        begun, self.begun = self.begun, None
        if begun is not None:
            assert begun.claimed is not None
            first = [begun.claimed]

            def call() -> Coroutine[Any, Any, Done | Found]:
                return first.pop()() if first else gate.store.claim(ask.name, begun.claim)

            return self._ask_for(begun.claim, "claim", call, otherwise_ours=forward)
        if self.account.claim is not None or self.account.verdict is VerdictName.WAIT:
            self.t0 = gate.clock.now()  # at first it is the request's own beginning, a moment ago
        claim = records.claim(
            ask.fingerprint,
            holder=gate.mint(),
            route=ask.route.name,
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=gate.clock.wall(),
        )
        return self._ask_for(claim, "claim", lambda: gate.store.claim(ask.name, claim), otherwise_ours=forward)

    async def _take_over(self, seen: Found) -> Done | Found | None:
        """Take over a key in doubt: WON, what stands now, or None where nothing does any more."""
        gate, policy, ask = self.gate, self.policy, self.ask
        self.t0 = gate.clock.now()
        claim = records.takeover(
            seen.record,
            holder=gate.mint(),
            route=ask.route.name,
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=gate.clock.wall(),
        )
        stamp = Stamp(seen.record.state, seen.record.holder, policy.margin)
        result = await self._ask_for(claim, "takeover", lambda: gate.store.compare_and_swap(ask.name, stamp, claim))
        return None if result is Done.GONE else result

    async def _ask_for(
        self,
        claim: Record,
        operation: str,
        call: Callable[[], Coroutine[Any, Any, Done | Found]],
        *,
        otherwise_ours: bool = False,
    ) -> Done | Found:
        """Ask for a claim until the store has answered, or its patience or the time to send is over.

        A claim that nobody knows of, when it is not won in the end, is given up: the settler releases
        it until the store has answered. (A lost reply, asked again and found taken, may yet land.) With
        `otherwise_ours` it is not given up for the store's being away: it is settled like one that was won.
        """
        gate = self.gate
        give_up = self.t0 + min(self.policy.store_wait, self.policy.send_by) / 1000
        unsure = False
        won = False
        begun = self.t0
        try:
            while True:
                try:
                    result = await call()
                    self._called(operation, begun)
                except StoreAway as away:
                    self._called(operation, begun, failed=True)
                    unsure = unsure or away.ambiguous
                    if isinstance(away, StoreFull | StoreRefused | RecordTooLarge) or not await self._back_before(
                        give_up
                    ):
                        raise
                    begun = gate.clock.now()
                    continue
                won = result is Done.WON
                if not won:
                    return result
                self.claim = claim
                self.unsure = unsure
                return Done.WON
        except StoreAway as away:
            if otherwise_ours and not isinstance(away, RecordUnreadable | IdentityChanged):
                won = self.unprotected = self.unsure = True
                self.claim = claim
                self.account.detail = away.why
                return Done.WON
            raise
        except BaseException:
            # Cancelled, or a bug: the command may have been done all the same.
            unsure = True
            raise
        finally:
            if unsure and not won:
                gate.settler.give_up(self.ask.name, claim, t0=self.t0)

    async def _back_before(self, give_up: float) -> bool:
        """Wait for the store. False once it is too late to ask again: a claim that is asked for after its
        patience is over (we may have stood still) could land after its last release."""
        gate = self.gate
        if (left := give_up - gate.clock.now()) <= 0:
            return False
        await asyncio.sleep(min(0.02, left))
        left = give_up - gate.clock.now()
        return left > 0 and await gate.store.wait_available(left) and gate.clock.now() < give_up

    async def _watch(self, flight: Flight, found: Found, verdict: Wait) -> Found | LookAgain | None:
        """Wait for another process's flight: what it became, None once the key is free, or LOOK_AGAIN
        when this client has stopped waiting (and somebody else here leads on). A store that is away
        meanwhile is waited for, as the policy says.

        It looks when the bell rings, which is first of all when the bell begins to hear: what was settled before
        that is seen by the look, what is settled after it rings. Nobody rings for a lapse, so it looks then too.
        """
        gate = self.gate
        self._waits()
        now = gate.clock.now()
        flight.claimed(found.record, now + (found.record.lease - found.age) / 1000)
        lapses = now + verdict.lease_left / 1000 + PAST_LAPSE
        often, seldom = FIRST_LOOK, FIRST_SLOW_LOOK
        patience: float | None = None
        with gate.store.listen(self.ask.name) as bell:
            self.client.when_gone(bell.ring)
            try:
                while True:
                    now = gate.clock.now()
                    if now >= self.wait_until or self.client.gone:
                        self._reply(self._still_in_flight(flight))
                        return LOOK_AGAIN
                    if bell.hears:
                        pause, seldom = seldom, min(seldom * LOOK_GROWS, LAST_SLOW_LOOK)
                    else:
                        pause, often = often, min(often * LOOK_GROWS, LAST_LOOK)
                    await bell.rung(max(min(now + pause, lapses, self.wait_until) - now, 0))
                    lapses = math.inf
                    begun = gate.clock.now()
                    try:
                        seen = await gate.store.get(self.ask.name)
                        self._called("look", begun)
                    except StoreAway:
                        self._called("look", begun, failed=True)
                        now = gate.clock.now()
                        if patience is None:
                            patience = now + self.policy.store_wait / 1000
                        if now >= patience:
                            raise
                        await gate.store.wait_available(max(min(patience, self.wait_until) - now, 0))
                        continue
                    patience = None
                    if self.client.gone:
                        continue
                    if seen is None:
                        return None
                    verdict_now = resolve(seen, self.ask.fingerprint, self.policy)
                    if not isinstance(verdict_now, Wait):
                        return seen
                    lapses = gate.clock.now() + verdict_now.lease_left / 1000 + PAST_LAPSE
            finally:
                self.client.when_gone(None)

    # ── Flying: the one attempt, and what becomes of it ───────────────────────────────────────────

    async def _fly(self, flight: Flight) -> Ending:
        """The key is ours: forward the request once, settle what comes back, and only then speak."""
        claim = self.claim
        assert claim is not None
        self.account.verdict = VerdictName.FORWARD
        self.account.attempt = claim.attempt
        if self.unprotected:
            self.account.unprotected = PassReason.STORE_DOWN.value
        flight.claimed(claim, self.t0 + claim.lease / 1000)
        flight.trace = self.account.trace.context
        begun = self.begun
        if failpoints.armed and begun is None:
            failpoints.reach(Point.CLAIMED)
        outcome: Outcome | None = None
        attempt: Attempt | None = None
        stream: Stream | None = None
        flows = False
        try:
            outcome, attempt = await self._attempt(flight, claim)
            verdict = settle(outcome, self.policy)
            if attempt is not None and (stream := attempt.stream) is not None:
                self.stream, self.attempt = stream, attempt
                if verdict.kind is Kind.KEEP:
                    assert isinstance(outcome, Answered)
                    flows = self.gate.clock.now() < self.t0 + self.policy.ends_by / 1000
                    if flows:
                        outcome = await self._flow(outcome.response, stream, claim)
                    else:  # we have stood still: another may hold the key by now
                        outcome = unfinished(outcome.response.status)
                        self._cut_off(attempt)
                        stream = None
                    verdict = settle(outcome, self.policy)
            if not isinstance(outcome, Answered):
                self.account.detail = outcome.detail
            if attempt is not None and attempt.followed:
                self.account.detail = f"{self.account.detail} {redirects_followed(attempt.followed)}".lstrip()
            made = None if begun is None else begun.settlement
            settlement = self._settlement(claim, outcome, verdict) if made is None else made
            self.account.settlement, self.account.reason = verdict.kind, verdict.reason
        except BaseException:
            self._let_go(flight, claim)
            raise
        result: Done | Found | None = None
        try:
            try:
                if begun is None or begun.settled is None:
                    result = await self.gate.store.settle(self.ask.name, settlement)
                else:
                    result = await begun.settled()
            except RecordTooLarge as refused:
                shorter = self.gate.settler.shortened(settlement, refused, self.ask.route.name)
                if shorter is None:
                    raise
                settlement, self.account.reason = shorter, Reason.OVER_LIMIT
                result = await self.gate.store.settle(self.ask.name, settlement)
            self._settled(failed=False)
        except StoreAway:
            self._settled(failed=True)
            self._settle_later(flight, settlement, stream)
        except BaseException:
            self._settle_later(flight, settlement, stream)
            self._cut_off(attempt)
            raise
        if settlement.kind is Kind.RELEASE and (result is Done.GONE or self.unsure):
            self.gate.settler.repeat(self.ask.name, settlement, self.ask.route.name, self.t0 + claim.lease / 1000)
        if isinstance(result, Found):
            if flows:
                self._cut_off(attempt)
            elif stream is not None:
                stream.detach()
            return self._superseded(result)
        if result is Done.FORGOT and not self.unprotected:
            self.gate.observer.store_forgot(self.ask.route.name)
        if failpoints.armed and result is not None:
            failpoints.reach(Point.STORED)
        stored = result is not None
        if settlement.kind is Kind.KEEP:
            assert settlement.record is not None
            answer = settlement.record.answer
            assert answer is not None
            self.account.record_bytes = len(answer.head) + len(answer.body or b"")
        theirs = self._shared(outcome, settlement, stored=stored)
        if not flows:
            mine = claimant_reply(
                outcome,
                settlement,
                claim,
                acknowledged=stored,
                live=stream is not None,
                unprotected=self.unprotected,
            )
            self._reply(mine, stream)
            return theirs
        assert stream is not None
        if isinstance(outcome, Lost) and outcome.reason is LostReason.TIMEOUT and stream.let_go():
            # Its client still reads. Nothing else is run here under this key before it has ended.
            self.late, self.lingers = flight, True
            assert settlement.record is not None
            return Told(in_doubt(settlement.record))
        stream.finish(clean=isinstance(outcome, Answered))
        self.stream = None
        return theirs

    async def _flow(self, response: Response, stream: Stream, claim: Record) -> Outcome:
        """The response cannot be stored: its client is given it as it comes, and what becomes of the claim is known at
        its end. The exchange reads it to that end, whether or not the client does."""
        label = unsettled_label(Label.NOT_KEPT, acknowledged=True, unprotected=self.unprotected)
        self._reply(Live(response, label, claim.first_seen), stream)
        # A response may go on for minutes; the request's body is not needed any more.
        self.ask = replace(self.ask, request=self.ask.request._replace(body=b""))
        outcome = await stream.outcome(self.t0 + self.policy.ends_by / 1000)
        self.answered = self.gate.clock.now()
        return outcome or unfinished(response.status)

    async def _read_on(self, stream: Stream) -> None:
        """The claim is settled, or in doubt, and the response goes on: read it to its end for the effect's sake, and
        past the time at which the exchange had to end only as long as its client reads."""
        try:
            outcome = None
            if self.late is None:
                outcome = await stream.outcome(self.t0 + self.policy.ends_by / 1000)
            if outcome is None and stream.let_go():
                outcome = await stream.outcome(math.inf)
            whole = isinstance(outcome, Answered)
            if self.late is not None and outcome is not None and whole:
                whole = await self._keep_late(self.late, outcome)
            stream.finish(clean=whole)
        except Exception as error:
            self.gate.tasks.failed(error)
        finally:
            self._cut_off(self.attempt)
            late, self.late = self.late, None
            if late is not None and not self.pending:
                self.gate.flights.forget(late)

    async def _keep_late(self, flight: Flight, outcome: Outcome) -> bool:
        """A response has ended after its claim was held. False if another holder's record stands by now."""
        gate, claim = self.gate, self.claim
        assert claim is not None
        settlement = self._settlement(claim, outcome, settle(outcome, self.policy))
        began = gate.clock.now()
        try:
            result = await gate.store.settle(self.ask.name, settlement)
        except StoreAway:
            gate.observer.store_called("settle", gate.clock.now() - began, failed=True)
            flight.end(self._shared(outcome, settlement, stored=False))
            # Found again under no name, it was resolved by an operator: no loss of the store's.
            self._settle_later(flight, settlement, None, claimed=False)
            return True
        gate.observer.store_called("settle", gate.clock.now() - began, failed=False)
        gate.flights.forget(flight)  # whatever is still to be said of its Hold
        if isinstance(result, Found):
            self._another_stands()
        return not isinstance(result, Found)

    async def _attempt(self, flight: Flight, claim: Record) -> tuple[Outcome, Attempt | None]:
        gate, policy = self.gate, self.policy
        if self.begun is not None:
            begun, attempt = self.begun.sent_at, self.begun.attempt
            self.sending = True
            if attempt is None:
                raise self.begun.failure or AssertionError("it began, and has no attempt")
            flight.attempt = attempt
        else:
            send_by = self.t0 + policy.send_by / 1000
            begun = self.answered = gate.clock.now()
            if begun > send_by:
                return NotSent(NotSentReason.TOO_LATE), None
            if gate.stopping:
                return NotSent(NotSentReason.STOPPED), None
            upstream = gate.upstreams[self.ask.route.upstream]
            self.sending = True
            request = self.account.trace.onward(self.ask.request)
            attempt = flight.attempt = upstream.attempt(
                request,
                number=claim.attempt,
                send_by=send_by,
                limit=policy.max_response,
                streams=policy.streams,
                follows=policy.follows,
            )
        outcome = await attempt.outcome(self.t0 + policy.timeout / 1000)
        if outcome is None:
            # Its client hears of it now; the exchange listens on, and a retry attaches to what still comes.
            self._reply(outcome_unknown(Problem.UPSTREAM_TIMEOUT, unprotected=self.unprotected))
            outcome = await attempt.outcome(self.t0 + policy.ends_by / 1000)
        if outcome is None:
            attempt.abandon(LostReason.TIMEOUT)
            outcome = Lost(LostReason.TIMEOUT)
        self.answered = gate.clock.now() if self.begun is None else self.begun.answered or gate.clock.now()
        self.account.upstream = self.answered - begun
        self.account.trace.attempted(outcome, begun, self.account.upstream)
        return outcome, attempt

    def _settlement(self, claim: Record, outcome: Outcome, verdict: Settle) -> Settlement:
        clock = self.gate.clock
        elapsed, trace = int((clock.now() - self.t0) * 1000), self.account.trace.context
        return settlement_of(verdict, outcome, claim, self.policy, elapsed=elapsed, wall=clock.wall(), trace=trace)

    def _shared(self, outcome: Outcome, settlement: Settlement, *, stored: bool) -> Ending:
        """What those who are attached to this request are given."""
        claim = self.claim
        assert claim is not None
        shared = waiters_reply(
            outcome, settlement, claim, self.policy, acknowledged=stored, unprotected=self.unprotected
        )
        if shared is None:
            return LOOK_AGAIN
        return Stands(shared) if isinstance(shared, Found) else Told(shared)

    def _another_stands(self) -> None:
        self.gate.observer.alarm(
            "another holder's record stands where a claim of ours was settled", route=self.ask.route.name
        )

    def _superseded(self, found: Found) -> Ending:
        """Another holder's record stands. It is the truth for everybody, this client too: no two clients
        may hold different answers."""
        self.account.settlement = self.account.reason = None  # it settled nothing
        self._another_stands()
        verdict = resolve(found, self.ask.fingerprint, self.policy)
        match verdict:
            case Replay() | Refuse():
                self._answer_from(found, verdict)
            case Wait() | Forward():
                self._reply(in_doubt(found.record))
            case _:
                assert_never(verdict)
        return Stands(found)

    def _let_go(self, flight: Flight, claim: Record) -> None:
        """The exchange was cancelled, or failed, while its request was out."""
        attempt = flight.attempt
        self._cut_off(attempt)
        # An upstream that failed while it began the attempt may have written something.
        if not (self.sending if attempt is None else attempt.sent):
            self.gate.settler.give_up(self.ask.name, claim, t0=self.t0)
            return
        settlement = records.hold(claim, doubt=records.Doubt.STOPPED, status=0, wall=self.gate.clock.wall())
        self._settle_later(flight, settlement, None)

    def _cut_off(self, attempt: Attempt | None) -> None:
        """Nothing more is wanted of this attempt; a client that still reads its response must see that it broke."""
        if attempt is not None:
            attempt.abandon(LostReason.STOPPED)
            if attempt.stream is not None:
                attempt.stream.finish(clean=False)

    def _settle_later(
        self, flight: Flight, settlement: Settlement, stream: Stream | None, *, claimed: bool = True
    ) -> None:
        """The store has not acknowledged the settlement. Until it has, whoever comes is told by us."""
        claim = self.claim
        assert claim is not None
        self.lingers = True
        self.pending += 1

        def ended(result: Done | Found | None) -> None:
            self.pending -= 1
            if self.late is None and not self.pending:  # else its response still goes on, in doubt
                self.gate.flights.forget(flight)
            # A Hold may find the Keep of its own late response.
            if isinstance(result, Found) and result.record.holder != settlement.holder:
                self._another_stands()
                if stream is not None:
                    stream.finish(clean=False)

        if self.unprotected:
            until = self.t0 + claim.lease / 1000
        else:
            life = settlement.record.life if settlement.record is not None else claim.life
            until = self.gate.clock.now() + life / 1000
        self.gate.settler.take(
            self.ask.name,
            settlement,
            route=self.ask.route.name,
            until=until,
            ended=ended,
            claimed=claimed and not self.unprotected,
        )

    # ── Following: attach to a flight of this process ─────────────────────────────────────────────

    async def _follow(self, flight: Flight) -> bool:
        """Wait for the flight that another request here leads. False: it ended without an answer for us."""
        gate, mine = self.gate, self.ask.fingerprint
        self._waits()
        counted = False
        try:
            while True:
                standing = flight.standing
                if standing is not None and (different := difference(standing.fingerprint, mine)) is not None:
                    self._refuse(mismatch(different, standing, mine, self.policy))
                    return True
                if flight.ending is None and not counted:
                    if (cap := gate.flights.full(flight)) is not None:
                        gate.observer.limited(cap)
                        self._refuse(self._still_in_flight(flight))
                        return True
                    gate.flights.waiting += 1
                    counted = True
                news = await flight.news(self.client, gate.clock, self.wait_until)
                if news == GONE:
                    return True
                if news == TIMED_OUT:
                    self._refuse(self._still_in_flight(flight))
                    return True
                match news:
                    case Told(reply):
                        self.account.duplicate = DuplicateKind.ATTACHED
                        self.account.trace.follows(flight.trace)
                        self._age(flight.standing)
                        self._refuse(reply) if isinstance(reply, Refusal) else self._reply(reply)
                        return True
                    case Failed(refusal):
                        self._reply(refusal)
                        return True
                    case Stands(found):
                        verdict = resolve(found, mine, self.policy)
                        if isinstance(verdict, Wait | Forward):
                            return False
                        self.account.trace.follows(flight.trace)
                        self._answer_from(found, verdict)
                        return True
                    case LookAgain():
                        return False
        finally:
            if counted:
                gate.flights.waiting -= 1

    # ── Speaking ──────────────────────────────────────────────────────────────────────────────────

    def _waits(self) -> None:
        """From now on this is a duplicate that waits; no longer than its client would."""
        if self.account.verdict is not VerdictName.WAIT:
            self.account.verdict = VerdictName.WAIT
            self.answered = self.gate.clock.now()
            preferred = preferred_wait(self.ask.request.fields)
            if preferred is not None:
                self.wait_until = min(self.wait_until, self.started + preferred / 1000)
        self.account.trace.waits(self.gate.clock.now())

    def _answer_from(self, found: Found, verdict: Replay | Refuse) -> None:
        record = found.record
        self._age(record)
        self.account.trace.follows(record.trace)
        if isinstance(verdict, Refuse):
            self._refuse(verdict.refusal)
            return
        assert record.answer is not None
        if self.account.verdict is not VerdictName.WAIT:
            self.account.verdict = VerdictName.REPLAY
            self.account.duplicate = DuplicateKind.REPLAYED
        else:
            self.account.duplicate = DuplicateKind.ATTACHED
        self._reply(Again(record.answer, Label.REPLAYED, record.first_seen, record.expires))

    def _refuse(self, refusal: Refusal) -> None:
        self.account.duplicate = CAUGHT.get(refusal.problem, self.account.duplicate)
        if self.account.verdict is not VerdictName.WAIT:
            self.account.verdict = VerdictName.REFUSE
        self._reply(refusal)

    def _still_in_flight(self, flight: Flight) -> Refusal:
        self.account.duplicate = DuplicateKind.IN_FLIGHT
        self._age(flight.standing)
        left = flight.lease_ends - self.gate.clock.now()
        return Refusal(Problem.IN_FLIGHT, retry_after=max(1, min(2, int(left))))

    def _age(self, record: Record | None) -> None:
        if record is not None:
            self.account.age = max(0.0, (self.gate.clock.wall() - record.first_seen) / 1000)

    def _reply(self, reply: Reply, stream: Stream | None = None) -> None:
        account = self.account
        if account.total != 0.0:
            # A 504 went out before; what came of it is for whoever asks again.
            if stream is not None:
                stream.detach()
            return
        if isinstance(reply, Refusal):
            account.problem = reply.problem.slug
            account.status = reply.problem.status
            account.label = reply.shown_as
        else:
            response = reply.answer if isinstance(reply, Again) else reply.response
            account.status = response.status
            account.label = reply.label
            account.response_bytes = len(response.body or b"")
        now = self.gate.clock.now()
        account.total = now - self.started or 1e-9
        if account.verdict is VerdictName.WAIT:
            account.waited = now - self.answered
        self.client.reply(reply, stream)

    def _finish(self) -> None:
        if self.account.total == 0.0:
            self.account.total = self.gate.clock.now() - self.started
        self.gate.observer.finished(self.account)

    def _called(self, operation: str, begun: float, *, failed: bool = False) -> None:
        """A claim, a takeover or a look has ended."""
        took = self.gate.clock.now() - begun
        self.account.claim = (self.account.claim or 0.0) + took
        self.account.trace.called(operation, begun, took, failed=failed)
        self.gate.observer.store_called(operation, took, failed=failed)

    def _settled(self, *, failed: bool) -> None:
        took = self.account.settle = self.gate.clock.now() - self.answered
        self.account.trace.called("settle", self.answered, took, failed=failed)
        self.gate.observer.store_called("settle", took, failed=failed)


def _refused_by_store(away: StoreAway) -> str:
    """The detail of a 503 for a store that answers and does not take the claim; empty for any other."""
    if isinstance(away, StoreFull):
        return NO_ROOM
    return TOO_LARGE if isinstance(away, RecordTooLarge) else ""


def redirects_followed(count: int) -> str:
    """Describe, for the log, an attempt that has followed redirects."""
    return f"(redirects followed: {count})"


__all__ = ["Ask", "Begun", "Exchange", "Gate", "redirects_followed"]

"""Two gateways at one key of one store, driven at random: at most one effect, equal answers, and an end to everything.

The store replies at once, later, or not at all, and a command whose reply was lost may still be carried out. Attempts,
clients, timers, faults and whole processes fail at random. A seed gives the same history each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core import record as records
from gateway.core.conclusion import record_of
from gateway.core.outcome import Lost, LostReason, NotSent, NotSentReason, Outcome
from gateway.core.policy import OnDoubt, Policy
from gateway.core.problem import Refusal
from gateway.core.record import Found, State, settled
from gateway.core.reply import Again
from gateway.engine.exchange import Exchange
from gateway.engine.machine import Phase
from gateway.engine.request import GuardedRequest
from gateway.ports import RecordTooLarge, StoreAway, StoreFull

from .support import NAME, FakeAttempt, FakeStream, HostileIo, request_for, streamed, whole
from .test_table import FaultOfIo, TableIo, hold_invariants

SEEDS = 100
#: Lives of the record in a history, and steps in each.
LIVES = 8
STEPS = 40


class WorldStream(FakeStream):
    """The rest of a response, until `end`."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.outcome_: Outcome | None = None
        self.told: Callable[[Outcome | None], None] | None = None
        self.until = math.inf
        self.is_let_go = False

    def tell(self, told: Callable[[Outcome | None], None], until: float) -> None:
        self.told, self.until = told, until
        if self.outcome_ is not None:
            self._report()

    def end(self, outcome: Outcome) -> None:
        if self.outcome_ is None:
            self.outcome_ = outcome
            self._report()

    def _report(self) -> None:
        told, self.told = self.told, None
        if told is not None:
            told(self.outcome_)

    def leave(self) -> None:
        self.read = False
        if self.is_let_go:
            self.end(Lost(LostReason.TIMEOUT))

    detach = leave

    def let_go(self) -> bool:
        self.is_let_go = True
        if not self.read:
            self.end(Lost(LostReason.TIMEOUT))
        return self.outcome_ is None

    def finish(self, *, clean: bool) -> None:
        assert not clean or not isinstance(self.outcome_, Lost), "what broke off does not end well"
        self.leave()


class WorldAttempt(FakeAttempt):
    """One attempt. Its effect happens when it is sent."""

    def __init__(self, io: WorldIo, machine: Exchange, send_by: float, until: float) -> None:
        super().__init__()
        self.io, self.machine, self.send_by, self.until = io, machine, send_by, until
        self.sent = self.ended = False
        self.number = 0

    def send(self) -> None:
        if not self.sent and not self.ended and self.io.time <= self.send_by:
            self.sent = True
            self.number = self.io.world.effect(self)

    def end(self, outcome: Outcome) -> None:
        if not self.ended:
            self.ended = True
            self.machine.attempt_ended(outcome)

    def abandon(self, reason: LostReason) -> None:
        if not self.ended:
            self.end(Lost(reason) if self.sent else NotSent(NotSentReason.STOPPED))
        elif self.stream is not None:
            self.stream.end(Lost(reason))  # type: ignore[attr-defined]

    def due(self) -> None:
        if self.ended:
            return
        if not self.sent and self.io.time > self.send_by:
            self.end(NotSent(NotSentReason.NO_CONNECTION))
        elif self.io.time >= self.until:
            self.until = math.inf
            self.machine.attempt_ended(None)


class WorldIo(HostileIo, TableIo):
    """One gateway."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.records = world.records
        self.time = world.time
        self.machines: set[Exchange] = set()
        self.running: list[WorldAttempt] = []
        #: Work that may be done at any later moment.
        self.pending: list[Callable[[], None]] = []
        self.background: list[Callable[[], bool]] = []
        self.timer_of: Exchange | None = None

    def mint(self) -> bytes:
        self.world.holders += 1
        return b"%012d" % self.world.holders

    def join(self, request: GuardedRequest) -> Exchange:
        machine = super().join(request)
        self.machines.add(machine)
        return machine

    def risk(self, name: str) -> None:
        self.enter()
        if self.world.faults and self.world.chance(0.004):
            raise FaultOfIo(name)

    # ── Store ─────────────────────────────────────────────────────────────────────────────────────

    def _reply(self, machine: Any, call: Callable[[], Any]) -> None:
        world, reads = self.world, self.outstanding[machine][0] == "get"
        luck = world.random.random() * (1.0 if world.chance(world.trouble) else 0.75) if world.trouble else 0.0
        if luck < 0.6:
            self.reply(machine, self._shorten(machine, call()))
        elif luck < 0.8:
            self.pending.append(lambda: self.reply(machine, self._shorten(machine, call())))
        elif luck < 0.86:
            call()
            self.reply(machine, StoreAway("reply lost", ambiguous=True))
        elif luck < 0.92:
            if not reads:
                world.late.append(call)
            self.reply(machine, StoreAway("reply lost", ambiguous=True))
        elif luck < 0.97:
            self.reply(machine, StoreAway("not sent", ambiguous=False))
        else:
            errors = [StoreFull("full"), RecordTooLarge("large", size=1), RuntimeError("of the store")]
            self.reply(machine, world.random.choice(errors))

    def _shorten(self, machine: Exchange, result: Any) -> Any:
        """Reply to a claim with the stored answer alone, as a store may for a request that is the same."""
        if self.outstanding[machine][0] != "claim" or not isinstance(result, Found) or self.world.chance(0.5):
            return result
        record, answer = result.record, result.record.answer
        if machine.claim is None:  # it has ended
            return result
        same = record.fingerprint == record_of(machine.claim).fingerprint
        if record.state is not State.COMPLETED or answer is None or answer.body is None or not same:
            return result
        return answer.status, answer.head, answer.body, record.first_seen, record.expires

    def _change(self, name: bytes, result: Any, change: Any) -> Any:
        changed = super()._change(name, result, change)
        for io in self.world.gateways:
            for machine in list(io.subscriptions):
                io.pending.append(machine.notified)  # type: ignore[attr-defined]
        return changed

    def wait_for_store(self, machine: Any, until: float) -> None:
        super().wait_for_store(machine, until)
        if self.world.chance(0.3):
            machine.store_back(True)
        else:
            self.pending.append(lambda: machine.store_back(self.time < until and self.world.chance(0.9)))

    def timer(self, machine: Any, at: float) -> None:
        super().timer(machine, at)
        self.timer_of = machine

    # ── Upstream ──────────────────────────────────────────────────────────────────────────────────

    def forward(self, machine: Exchange, *args: Any, send_by: float, until: float, **kwargs: Any) -> Any:
        attempt = WorldAttempt(self, machine, send_by, until)
        super().forward(machine, *args, send_by=send_by, until=until, **kwargs)
        self.running.append(attempt)
        if self.world.chance(0.5):
            attempt.send()
            if attempt.sent and self.world.chance(0.3):
                self.world.respond(attempt)
        return attempt

    def wait_for_attempt(self, machine: Exchange, *args: Any) -> None:
        super().wait_for_attempt(machine, *args)
        assert machine.run is not None
        machine.run.attempt.until = args[-1]  # type: ignore[union-attr]

    def wait_for_stream(self, machine: Exchange, *args: Any) -> None:
        super().wait_for_stream(machine, *args)
        assert machine.run is not None
        machine.run.attempt.stream.tell(machine.stream_ended, args[-1])  # type: ignore[union-attr]

    # ── Background work ───────────────────────────────────────────────────────────────────────────

    def retry_settlement(self, machine: Any, settlement: Any, *args: Any, until: float, **how: Any) -> None:
        super().retry_settlement(machine, settlement, *args, until=until, **how)

        def retry() -> bool:
            if self.time >= until:
                machine.retried(None)
                return True
            result = self._change(NAME, *settled(self.found(NAME), settlement))
            if self.world.chance(0.3):
                return False  # the reply is lost
            machine.retried(result)
            return True

        self.background.append(retry)

    def abandon_claim(self, machine: Any, claim: Any, t0: float) -> None:
        super().abandon_claim(machine, claim, t0)
        release = records.release(record_of(claim), elapsed=int((self.time - t0) * 1000), wall=self.wall())
        self._release(release)

    def repeat_release(self, machine: Any, settlement: Any, *args: Any) -> None:
        super().repeat_release(machine, settlement, *args)
        self._release(settlement)

    def _release(self, settlement: Any) -> None:
        def release() -> bool:
            self._change(NAME, *settled(self.found(NAME), settlement))
            return self.world.chance(0.7)

        self.background.append(release)


class World:
    """The store, the gateways and the service."""

    def __init__(self, seed: int, *, rerun: bool, faults: bool) -> None:
        self.random = random.Random(seed)
        self.policy = Policy(on_doubt=OnDoubt.RERUN if rerun else OnDoubt.HOLD, max_attempts=2)
        self.with_faults = faults
        self.time = 1000.0
        self.records: dict[bytes, tuple[records.Record, float]] = {}
        #: Commands whose reply was lost, and that may still be carried out.
        self.late: list[Callable[[], Any]] = []
        #: Runs that may have had an effect.
        self.effects: list[WorldAttempt] = []
        self.runs = self.holders = 0
        self.gateways: list[WorldIo] = []
        self.gateways = [WorldIo(self), WorldIo(self)]
        #: By response: what its request was. Nothing else may get it.
        self.marks: dict[bytes | None, bytes] = {}
        self.answers: set[tuple[int, bytes | None]] = set()
        self.begin_life()

    def begin_life(self) -> None:
        """The record has ended: the key may be used again."""
        assert not any(io.table or io.pending or io.background for io in self.gateways)
        self.faults = self.with_faults
        self.trouble = self.random.choice([0.1, 0.3, 1.0])
        self.streams_end = self.random.choice([0.1, 0.5])
        self.advances = self.random.choice([[0.01, 0.03, 0.3, 1], [1, 5, 20, 35], [0.01, 0.3, 5, 70]])
        for ended in (self.records, self.late, self.effects, self.answers):
            ended.clear()

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def effect(self, attempt: WorldAttempt) -> int:
        self.runs += 1
        assert attempt.machine.claimant is not None
        self.marks[b"run %d" % self.runs] = attempt.machine.claimant.mark
        self.effects.append(attempt)
        allowed = self.policy.max_attempts if self.policy.on_doubt is OnDoubt.RERUN else 1
        assert len(self.effects) <= allowed, "no run too many"
        return self.runs

    # ── Steps ─────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        io = self.random.choice(self.gateways)
        choices = [self.arrive] * 3 + [self.attempt] * 4 + [self.deliver] * 5 + [self.advance, self.leave, self.land]
        if self.chance(0.01):
            choices = [self.stop, self.kill, self.fail]
        self.random.choice([*choices, self.stream])(io)
        self.check()

    def arrive(self, io: WorldIo) -> None:
        io.join(self.request(io))

    def request(self, io: WorldIo) -> GuardedRequest:
        kinds: list[dict[str, Any]] = [{}, {}, {}, {"body": b"another"}, {"credentials": b"other"}]
        request = request_for(self.policy, at=self.time, **self.random.choice(kinds))
        if self.chance(0.1):  # the client's next request is there already
            request.client.inside = lambda: self.arrive(io)  # type: ignore[attr-defined]
        return request

    def attempt(self, io: WorldIo) -> None:
        running = [attempt for attempt in io.running if not attempt.ended]
        if not running:
            return
        attempt = self.random.choice(running)
        attempt.send()
        if not attempt.sent:
            attempt.end(NotSent(NotSentReason.UNREACHABLE))
        elif self.chance(0.4):
            self.respond(attempt)

    def respond(self, attempt: WorldAttempt) -> None:
        body = b"run %d" % attempt.number
        kind = self.random.choice(["kept", "kept", "released", "held", "lost", "stream"])
        if kind == "released":
            self.effects.remove(attempt)  # the service says so
            attempt.end(whole(429, body))
        elif kind == "lost":
            attempt.end(Lost(LostReason.CLOSED))
        elif kind == "stream":
            attempt.stream = WorldStream(self)
            attempt.end(streamed())
        else:
            attempt.end(whole(201 if kind == "kept" else 504, body))

    def stream(self, io: WorldIo) -> None:
        for attempt in io.running:
            stream = attempt.stream
            if isinstance(stream, WorldStream) and stream.outcome_ is None and self.chance(self.streams_end):
                stream.end(streamed() if self.chance(0.7) else Lost(LostReason.CLOSED))

    def deliver(self, io: WorldIo) -> None:
        """Let the store, the timers and the background work go on."""
        if io.pending:
            io.pending.pop(self.random.randrange(len(io.pending)))()
        elif io.background:
            work = io.background.pop(self.random.randrange(len(io.background)))
            if not work():
                io.background.append(work)
        self.tick(io)

    def tick(self, io: WorldIo) -> None:
        if io.timer_at is not None and io.timer_at <= self.time:
            io.timer_at = None
            io.timer_of.timer()  # type: ignore[union-attr]
        for attempt in list(io.running):
            attempt.due()
            stream = attempt.stream
            if isinstance(stream, WorldStream) and stream.told is not None and stream.until <= self.time:
                stream.until = math.inf
                stream.told(None)
        for request in [request for request in io.requests if request in io.armed]:
            if request.wait_until <= self.time and request in io.armed:
                request.due()

    def advance(self, io: WorldIo) -> None:
        self.time += self.random.choice(self.advances)
        for each in self.gateways:
            each.time = self.time
            self.tick(each)

    def leave(self, io: WorldIo) -> None:
        open_ = [request for request in io.requests if request not in io.finished]
        if not open_:
            return
        request = self.random.choice(open_)
        request.client.gone = True  # type: ignore[misc]
        io.departed.add(request)
        for _, stream in request.client.replies:  # type: ignore[attr-defined]
            if stream is not None:
                stream.leave()
        if request.machine is not None:
            request.machine.left(request)  # type: ignore[attr-defined]

    def land(self, io: WorldIo) -> None:
        """A command that was given up is carried out after all."""
        if self.late:
            self.late.pop(self.random.randrange(len(self.late)))()

    def stop(self, io: WorldIo) -> None:
        """A gateway ends: it mostly stops and goes on for a while, and is cut."""
        if self.chance(0.5):
            io.stopping = True
            for machine in list(io.table.values()):
                machine.stop()
        for _ in range(self.random.randrange(5)):
            self.deliver(io)
        for machine in list(io.table.values()):
            io.departed.update(io.requests)
            machine.cut()
        assert not io.table
        self.check()
        self.retire(io)

    def fail(self, io: WorldIo) -> None:
        """A handler raises."""
        if self.faults:
            for machine in list(io.table.values()):
                machine.left([])  # type: ignore[arg-type]

    def kill(self, io: WorldIo) -> None:
        """A gateway dies. Its commands may still be carried out, its attempts do not go on."""
        for attempt in io.running:
            attempt.ended = True
        io.background.clear()
        self.retire(io)

    def retire(self, io: WorldIo) -> None:
        self.collect(io)
        if io.background and self.chance(0.5):
            for _ in range(20):
                if io.background and io.background[0]():
                    io.background.pop(0)
        self.gateways[self.gateways.index(io)] = WorldIo(self)

    # ── Rules ─────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        for io in self.gateways:
            expected = "of the store", "unhashable"
            for error in io.errors:
                assert isinstance(error, FaultOfIo) or any(part in str(error) for part in expected), error
            for machine in io.machines:
                hold_invariants(io, machine)
            self.collect(io)
            io.machines = {machine for machine in io.machines if machine.phase is not Phase.DONE}
            io.took()

    def collect(self, io: WorldIo) -> None:
        """Compare the answers that are kept; forget the requests that have ended."""
        for request in io.requests:
            for reply, _ in request.client.replies:  # type: ignore[attr-defined]
                if isinstance(reply, Refusal):
                    continue
                answer = reply.answer if isinstance(reply, Again) else reply.response
                assert self.marks.get(answer.body, request.mark) == request.mark, "the answer of another request"
                if answer.status == 201:
                    self.answers.add((answer.status, answer.body))
        if self.policy.on_doubt is OnDoubt.HOLD:
            assert len(self.answers) <= 1, "all answers are the same bytes"
        io.requests = [request for request in io.requests if request not in io.finished]

    def settle(self) -> None:
        """Nothing fails any more: everything comes to its end."""
        self.trouble = self.faults = 0
        self.streams_end = 1.0
        for _ in range(400):
            self.time += 1
            for io in self.gateways:
                io.time = self.time
                for _ in range(len(io.pending) + len(io.background) + 1):
                    self.deliver(io)
                for attempt in list(io.running):
                    if not attempt.ended:
                        attempt.send()
                        if attempt.sent:
                            attempt.end(whole(201, b"run %d" % attempt.number))
                self.stream(io)
                self.check()
            if not any(io.table or io.pending or io.background for io in self.gateways):
                break
        for io in self.gateways:
            assert not io.table, [machine.phase for machine in io.table.values()]
            assert not io.requests, "every request is answered"
            assert not io.armed


@pytest.mark.parametrize("faults", [False, True], ids=["", "faults"])
@pytest.mark.parametrize("rerun", [False, True], ids=["hold", "rerun"])
def test_random_histories(rerun: bool, faults: bool) -> None:
    runs = kept = 0
    for seed in range(SEEDS):
        world = World(seed, rerun=rerun, faults=faults)
        try:
            for _ in range(LIVES):
                for _ in range(STEPS):
                    world.step()
                world.settle()
                kept += len(world.answers)
                world.begin_life()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        runs += world.runs
    assert runs > SEEDS * LIVES // 2
    assert kept > SEEDS * LIVES // 5

"""Random schedules of several gateways at one key: what must hold in each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core import record as records
from gateway.core.conclusion import record_of
from gateway.core.outcome import Answered, Lost, LostReason, NotSent, NotSentReason
from gateway.core.policy import OnDoubt, StoreDown
from gateway.core.record import Found, Kind, State, claimed, replaced, settled
from gateway.core.record import Write as Change
from gateway.engine.machine import Phase
from gateway.ports import StoreAway

from .support import NAME, FakeAttempt, FakeClient, FakeStream, RecordingIo, request_for, streamed, whole


class Base:
    """The store, the service and the time of all gateways."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.time = 1000.0
        self.record: tuple[Any, float] | None = None
        self.ops: list[tuple[str, Callable[[], None]]] = []
        self.effects: list[Any] = []
        self.runs = 0
        self.marks: dict[bytes, bytes] = {}
        self.log: list[Any] = []
        self.trouble = True

    def found(self) -> Found | None:
        if self.record is None:
            return None
        record, written = self.record
        age = int((self.time - written) * 1000)
        return Found(record, age) if age < record.life else None

    def change(self, result: Any, change: Any) -> Any:
        if isinstance(change, Change):
            if change is Change.DELETE:
                self.record = None
        else:
            self.record = change, self.time
        return result


class Attempt2(FakeAttempt):
    def __init__(self, base: Base, machine: Any, send_by: float, until: float) -> None:
        super().__init__()
        self.base, self.machine, self.send_by, self.until = base, machine, send_by, until
        self.sent = False
        self.over = False
        self.told = True
        base.runs += 1
        self.number = base.runs
        self.stream_over = False
        self.stream_told: float | None = None

    def tell(self, outcome: Any) -> None:
        self.told = False
        self.base.log.append(("attempt", self.number, outcome))
        self.machine.attempt_ended(outcome)

    def abandon(self, reason: LostReason) -> None:
        super().abandon(reason)
        if self.over:
            if self.stream is not None and not self.stream_over:
                self.end_stream(Lost(reason))
            return
        self.over = True
        outcome = Lost(reason) if self.sent else NotSent(NotSentReason.STOPPED)
        if self.told:
            self.tell(outcome)

    def end_stream(self, outcome: Any) -> None:
        self.stream_over = True
        if self.stream_told is not None:
            self.stream_told = None
            self.machine.stream_ended(outcome)

    def step(self) -> bool:
        base, rnd = self.base, self.base.random
        now = base.time
        if self.over:
            if self.stream is not None and not self.stream_over:
                if self.stream_told is not None and now >= self.stream_told:
                    self.stream_told = None
                    self.machine.stream_ended(None)
                elif rnd.random() < 0.3:
                    self.end_stream(streamed() if rnd.random() < 0.6 else Lost(LostReason.CLOSED))
                return True
            return False
        if not self.sent:
            if now > self.send_by or rnd.random() < 0.1:
                self.over = True
                self.tell(NotSent(NotSentReason.UNREACHABLE))
            elif rnd.random() < 0.5:
                self.sent = True
                base.effects.append(self.number)
                base.log.append(("sent", self.number))
            return True
        if self.told and now >= self.until:
            self.tell(None)
            return True
        roll = rnd.random()
        if roll < 0.2:
            self.over = True
            outcome = whole(201, b"answer %d" % self.number)
            if self.told:
                self.tell(outcome)
        elif roll < 0.25:
            self.over = True
            if self.told:
                self.tell(Lost(LostReason.CLOSED))
        elif roll < 0.3:
            self.over = True
            base.effects.remove(self.number)
            if self.told:
                self.tell(whole(429, b"later"))
        elif roll < 0.4:
            self.over = True
            self.stream = FakeStream(read=rnd.random() < 0.7)
            if self.told:
                if rnd.random() < 0.3:
                    base.effects.remove(self.number)
                    self.tell(streamed(429))
                else:
                    self.tell(streamed(200))
        return True


class Gateway(RecordingIo):
    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base
        self.timers: dict[Any, float] = {}
        self.waits: list[Any] = []
        self.is_subscribed = base.random.random() < 0.5

    @property
    def time(self) -> float:
        return self.base.time

    @time.setter
    def time(self, value: float) -> None: ...

    def mint(self) -> bytes:
        return self.base.random.randbytes(12)

    def jitter(self) -> float:
        return self.base.random.random()

    def timer(self, machine: Any, at: float) -> None:
        self.timers[machine] = at

    def cancel_timer(self, machine: Any) -> None:
        self.timers.pop(machine, None)

    def _call(self, machine: Any, what: str, apply: Callable[[], Any], *, write: bool = True) -> None:
        base = self.base
        self.base.log.append((what, id(self) % 1000))
        roll = base.random.random() if base.trouble else 1.0
        if roll < 0.15:  # the reply is lost; the command may land, now, later or never
            if write and base.random.random() < 0.6:
                base.ops.append(("late " + what, lambda: base.log.append((what, "landed", apply()))))
            base.ops.append((what + " lost", lambda: machine.store_replied(StoreAway("lost", ambiguous=write))))
        elif roll < 0.2:
            base.ops.append((what + " down", lambda: machine.store_replied(StoreAway("down", ambiguous=False))))
        elif roll < 0.35:
            result = apply()  # applied now, replied later or within the call
            base.log.append((what, result))
            if base.random.random() < 0.5:
                machine.store_replied(result)
            else:
                base.ops.append((what + " reply", lambda: machine.store_replied(result)))
        else:

            def both() -> None:
                result = apply()
                base.log.append((what, result))
                machine.store_replied(result)

            base.ops.append((what, both))

    def claim(self, machine: Any, claim: Any) -> None:
        base = self.base
        self._call(machine, "claim", lambda: base.change(*claimed(base.found(), record_of(claim))))

    def compare_and_swap(self, machine: Any, precondition: Any, claim: Any) -> None:
        base = self.base
        self._call(machine, "cas", lambda: base.change(*replaced(base.found(), precondition, claim)))

    def get(self, machine: Any) -> None:
        self._call(machine, "get", self.base.found, write=False)

    def settle(self, machine: Any, settlement: Any) -> None:
        base = self.base
        self._call(machine, f"settle {settlement.kind}", lambda: base.change(*settled(base.found(), settlement)))

    def wait_for_store(self, machine: Any, until: float) -> None:
        self.waits.append((machine, until))

    def forward(self, machine: Any, request: Any, upstream: Any, *, number: int, send_by: float, until: float) -> Any:
        attempt = Attempt2(self.base, machine, send_by, until)
        self.attempts.append(attempt)
        self.base.log.append(("forward", attempt.number))
        self.base.marks[b"answer %d" % attempt.number] = machine.claimant.mark
        return attempt

    def wait_for_attempt(self, machine: Any, attempt: Any, until: float) -> None:
        attempt = machine.run.attempt
        attempt.until, attempt.told = until, True

    def wait_for_stream(self, machine: Any, stream: Any, until: float) -> None:
        attempt = machine.run.attempt
        if attempt.stream_over:
            machine.stream_ended(streamed())
        else:
            attempt.stream_told = until

    def abandon(self, attempt: Any, reason: LostReason) -> None:
        attempt.abandon(reason)

    def read_on(self, attempt: Any, until: float) -> None:
        attempt.stream_over = True

    def arm(self, machine: Any, request: Any) -> None:
        super().arm(machine, request)
        if request.wait_until <= self.time:
            machine.wait_over(request)
        if request.client.gone:
            machine.left(request)

    def retry_settlement(self, machine: Any, settlement: Any, route: str, **how: Any) -> None:
        self.background(settlement, machine.retried)

    def background(self, settlement: Any, ended: Callable[[Any], None] | None, times: int = 1) -> None:
        base = self.base

        def once() -> None:
            if base.trouble and base.random.random() < 0.3:
                base.ops.append(("retry", once))
                return
            result = base.change(*settled(base.found(), settlement))
            base.log.append(("background", settlement.kind, result))
            if ended is not None:
                ended(result)

        base.ops.append(("retry", once))

    def abandon_claim(self, machine: Any, claim: Any, t0: float) -> None:
        self.base.log.append(("abandon_claim", claim.holder))
        self.released(record_of(claim), t0)

    def released(self, claim: Any, t0: float) -> None:
        release = records.release(claim, elapsed=int((self.time - t0) * 1000), wall=self.wall())
        self.background(release, lambda result: self.last(release))

    def last(self, release: Any) -> None:
        """The last repeat, after everything that was on its way has landed."""
        base = self.base

        def once() -> None:
            if any(name.startswith(("late", "claim", "cas")) for name, _ in base.ops):
                base.ops.append(("repeat", once))
            else:
                base.change(*settled(base.found(), release))

        base.ops.append(("repeat", once))

    def repeat_release(self, machine: Any, settlement: Any, route: str, lease_ends: float) -> None:
        self.last(settlement)


def play(seed: int, *, rerun: bool = False, forward: bool = False, end: bool = False) -> None:
    base = Base(seed)
    rnd = base.random
    gateways = [Gateway(base) for _ in range(2)]
    settings: dict[str, Any] = {"timeout": 10_000, "late": rnd.choice([0, 5_000]), "wait": rnd.choice([0, 500, 20_000])}
    settings["doubt_window"] = 10**9
    settings["window"] = 10**9
    if rerun:
        settings |= {"on_doubt": OnDoubt.RERUN, "max_attempts": 2}
    if forward:
        settings["store_down"] = StoreDown.FORWARD
    requests: list[Any] = []
    jumps = rnd.random() < 0.3
    stopped: set[int] = set()
    cut: set[int] = set()
    for step in range(600):
        base.trouble = step < 300
        base.time += rnd.choice([0, 0.001, 0.02, 0.2])
        if jumps and step < 300 and rnd.random() < 0.02:
            base.time += rnd.choice([1, 6, 12, 30, 3600])
        gateway = rnd.choice(gateways)
        if step < 200 and rnd.random() < 0.15 and id(gateway) not in stopped:
            kind = rnd.random()
            changes = dict(settings)
            if kind < 0.2:
                request = request_for(credentials=b"other", at=base.time, **changes)
            elif kind < 0.3:
                request = request_for(route="b", at=base.time, **{**changes, "on_doubt": OnDoubt.HOLD})
            else:
                request = request_for(at=base.time, **changes)
            requests.append((request, gateway))
            client: FakeClient = request.client  # type: ignore[assignment]
            if rnd.random() < 0.1:
                client.gone = True
            if rnd.random() < 0.2:
                more = request_for(at=base.time, **changes)
                requests.append((more, gateway))

                def inside(gateway: Any = gateway, more: Any = more) -> None:
                    gateway.join(more)

                client.inside = inside
            gateway.join(request)
        if base.ops and rnd.random() < 0.7:
            index = rnd.randrange(len(base.ops))
            _, op = base.ops.pop(index)
            op()
        for attempt in list(gateway.attempts):
            if rnd.random() < 0.3:
                attempt.step()  # type: ignore[attr-defined]
        for machine, at in list(gateway.timers.items()):
            if at <= base.time and gateway.timers.get(machine) == at and rnd.random() < 0.5:
                del gateway.timers[machine]
                machine.timer()
        for entry in list(gateway.waits):
            machine, until = entry
            if base.time >= until or rnd.random() < 0.2:
                gateway.waits.remove(entry)
                machine.store_back(base.time < until)
        for request in list(gateway.armed):
            if request in gateway.armed and (request.wait_until <= base.time):
                request.machine.wait_over(request)
            elif request in gateway.armed and rnd.random() < 0.01:
                request.client.gone = True
                request.machine.left(request)
        for machine in list(gateway.table.values()):
            if machine.phase is Phase.WATCHING and rnd.random() < 0.1:
                machine.notified()
        if end and 100 < step < 300 and rnd.random() < 0.01:
            stopped.add(id(gateway))
            gateway.stopping = True
            for machine in list(gateway.table.values()):
                machine.stop()
        if end and id(gateway) in stopped and rnd.random() < 0.02:
            cut.add(id(gateway))
            for machine in list(gateway.table.values()):
                machine.cut()
    log = base.log
    for gateway in gateways:
        assert not gateway.errors, (gateway.errors, log)
    # Let everything come to its end.
    for _ in range(3000):
        base.trouble = False
        base.time += 0.05
        while base.ops:
            base.ops.pop(rnd.randrange(len(base.ops)))[1]()
            if len(base.ops) == 1 and base.ops[0][0] == "repeat":
                pass
        for gateway in gateways:
            for attempt in list(gateway.attempts):
                attempt.step()  # type: ignore[attr-defined]
            for machine, at in list(gateway.timers.items()):
                if at <= base.time and gateway.timers.get(machine) == at:
                    del gateway.timers[machine]
                    machine.timer()
            waits, gateway.waits = gateway.waits, []
            for machine, _until in waits:
                machine.store_back(True)
            for request in list(gateway.armed):
                if request in gateway.armed and request.wait_until <= base.time:
                    request.machine.wait_over(request)
        if not any(gateway.table for gateway in gateways) and not base.ops:
            break
    for gateway in gateways:
        assert not gateway.errors, (gateway.errors, log)
        assert not gateway.table, [(m.phase, m.waiters) for m in gateway.table.values()]
        assert not gateway.armed
        assert not gateway.timers
    bodies = set()
    for request, gateway in requests:
        client = request.client
        joined = request.summary.total != 0.0 or client.replies
        if not joined:
            continue
        assert len(client.replies) <= 1
        if not client.gone and id(gateway) not in cut:
            assert len(client.replies) == 1, (request.summary, log)
        assert getattr(request.summary, "finished", False), log
        for reply, _stream in client.replies:
            answer = getattr(reply, "answer", None) or getattr(reply, "response", None)
            if answer is not None and answer.status == 201:
                bodies.add(answer.body)
                assert base.marks[answer.body] == request.mark, ("another's answer", log)
    if not forward:
        assert len(base.effects) <= (2 if rerun else 1), (base.effects, log)
        if not rerun:
            assert len(bodies) <= 1, (bodies, log)
    found = base.found()
    if found is not None:
        assert found.record.state is not State.IN_FLIGHT, (found, log)
        if found.record.state is State.IN_DOUBT:
            assert base.effects, ("a doubt although nothing was sent", log)


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("block", range(10))
def test_schedules(block: int, rerun: bool, end: bool) -> None:
    for seed in range(block * 60, block * 60 + 60):
        try:
            play(seed, rerun=rerun, end=end)
        except AssertionError as error:
            text = str(error)
            raise AssertionError(f"seed {seed}: {text[:300]} … {text[-1200:]}") from None


_ = (Answered, Kind, NAME)

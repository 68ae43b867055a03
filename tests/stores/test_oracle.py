"""A random history of verbs leaves every store where `core.record` says."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from gateway.core import record as records
from gateway.core.record import Done, Doubt, Found, Record, Settlement, Stamp, State, Write
from tests.stores.worlds import LEASE, WINDOW, WORLDS, World, a_claim, a_holder, an_answer, every_store

NAMES = [b"a" * 43, b"b" * 43]
names = st.sampled_from(NAMES)
picks = st.integers(0, 5)


class Histories(RuleBasedStateMachine):
    """The store beside the pure transitions, under one time."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world: World = WORLDS[self.kind]()
        self.model: dict[bytes, tuple[Record, int]] = {}
        self.time = 0
        self.claims: list[Record] = []
        self.takeovers: list[tuple[bytes, Stamp, Record]] = []

    @initialize()
    def opened(self) -> None:
        self.loop.run_until_complete(self.world.store.open())

    def teardown(self) -> None:
        self.loop.run_until_complete(self.world.close())
        self.loop.close()

    def found(self, name: bytes) -> Found | None:
        entry = self.model.get(name)
        if entry is None or entry[1] <= self.time:
            return None
        record, ends = entry
        return Found(record, record.life - (ends - self.time))

    def expect(self, name: bytes, told: Done | Found, step: tuple[Done | Found, Record | Write]) -> None:
        """What the store told is what the transition says; and afterwards both hold the same."""
        result, change = step
        if isinstance(change, Record):
            self.model[name] = (change, self.time + change.life)
        elif change is Write.DELETE:
            del self.model[name]
        if isinstance(result, Found):
            assert isinstance(told, Found), f"told {told}, expected {result}"
            assert told.record == result.record
        else:
            assert told is result
        seen, model = self.loop.run_until_complete(self.world.store.get(name)), self.found(name)
        assert (seen is None) == (model is None), f"the store has {seen}, the model {model}"
        if seen is not None and model is not None:
            assert seen.record == model.record
            assert abs(seen.age - model.age) < 4_000

    def pick(self, position: int) -> Record:
        """One of the claims that were ever tried, the dead ones too; or one that nobody knows."""
        return self.claims[-1 - position % len(self.claims)] if self.claims else a_claim()

    @rule(name=names)
    def claim(self, name: bytes) -> None:
        mine = a_claim()
        self.claims.append(mine)
        step = records.claimed(self.found(name), mine)
        self.expect(name, self.loop.run_until_complete(self.world.store.claim(name, mine)), step)

    @rule(name=names, position=picks)
    def claim_again(self, name: bytes, position: int) -> None:
        mine = self.pick(position)
        step = records.claimed(self.found(name), mine)
        self.expect(name, self.loop.run_until_complete(self.world.store.claim(name, mine)), step)

    @rule(name=names, position=picks, body=st.sampled_from([b"", b"{}", None]))
    def keep(self, name: bytes, position: int, body: bytes | None) -> None:
        answer = replace(an_answer(), body=body)
        self._settle(name, records.keep(self.pick(position), answer, wall=WINDOW))

    @rule(name=names, position=picks)
    def hold(self, name: bytes, position: int) -> None:
        self._settle(name, records.hold(self.pick(position), doubt=Doubt.LOST, status=502, wall=0))

    @rule(name=names, position=picks)
    def release(self, name: bytes, position: int) -> None:
        self._settle(name, records.release(self.pick(position), elapsed=1_000, wall=0))

    def _settle(self, name: bytes, settlement: Settlement) -> None:
        step = records.settled(self.found(name), settlement)
        self.expect(name, self.loop.run_until_complete(self.world.store.settle(name, settlement)), step)

    @rule(name=names, position=picks, state=st.sampled_from(State), late=st.sampled_from([None, 5_000]))
    def take_over(self, name: bytes, position: int, state: State, late: int | None) -> None:
        seen = self.pick(position)
        taker = records.takeover(
            seen, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 3, window=WINDOW, wall=self.time
        )
        self.claims.append(taker)
        stamp = Stamp(state, seen.holder, late)
        self.takeovers.append((name, stamp, taker))
        self._replace(name, stamp, taker)

    @rule(position=picks)
    def take_over_again(self, position: int) -> None:
        if self.takeovers:
            self._replace(*self.takeovers[-1 - position % len(self.takeovers)])

    def _replace(self, name: bytes, stamp: Stamp, taker: Record) -> None:
        step = records.replaced(self.found(name), stamp, taker)
        self.expect(name, self.loop.run_until_complete(self.world.store.compare_and_swap(name, stamp, taker)), step)

    @rule(name=names, position=picks, state=st.sampled_from(State))
    def forget(self, name: bytes, position: int, state: State) -> None:
        stamp = Stamp(state, self.pick(position).holder)
        step = records.replaced(self.found(name), stamp, None)
        self.expect(name, self.loop.run_until_complete(self.world.store.compare_and_swap(name, stamp, None)), step)

    # Offset from every boundary, so that a slow machine's seconds change nothing.
    @rule(passed=st.sampled_from([17_000, 43_000, 137_000, 411_000]))
    def time_passes(self, passed: int) -> None:
        self.time += passed
        self.loop.run_until_complete(self.world.pass_time(passed))


@every_store
def test_every_history_ends_where_the_pure_transitions_say(kind: str) -> None:
    """Random claims, settlements, takeovers, operators and time, with live and dead holders, on two keys."""
    machine = type("Histories", (Histories,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200 if kind == "memory" else 40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

"""Duplicates of a flight of another process: one looks for all, and each is answered by what it finds."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from gateway.core.outcome import NotSentReason

from .upstream import answers, breaks, never, refuses, streams, unreachable
from .virtual import virtual
from .world import LEASE, World

#: The longest pause between two looks, the store's trip, and the jitter before a claim.
ONE_LOOK = 0.25 + 0.01
ONE_CLAIM = ONE_LOOK + 0.05


@virtual
async def test_a_flight_elsewhere_is_watched_by_one_for_all() -> None:
    """Fifty duplicates in another process: all get the answer within one look of its Keep, at the cost of one."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=5))
        first = there.send()
        await world.passes(0.5)
        crowd = here.crowd(50)
        await first.answer()
        kept = world.time
        assert {await client.answer() for client in crowd} == {"201 replayed: run 1"}
        assert world.time - kept < ONE_LOOK
        assert Counter(command.verb for command in here.wire.landed).keys() == {"claim", "get"}
        assert len(here.wire.told("claim")) == 1
        assert len(here.wire.told("get")) < 30


@virtual
async def test_the_watch_slows_down() -> None:
    """The first look comes after 25 ms, for the fast; later ones every 250 ms."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(never())
        there.send()
        await world.passes(0.1)
        here.send()
        await world.passes(10)
        looks = [command.at for command in here.wire.landed if command.verb == "get"]
        gaps = [later - sooner for sooner, later in itertools.pairwise(looks)]
        assert looks[0] == pytest.approx(0.1 + 0.025, abs=0.005)
        assert gaps == sorted(gaps) or max(gaps) - min(gaps[-10:]) < 0.001
        assert gaps[-1] == pytest.approx(0.25, abs=0.005)


@virtual
async def test_a_fast_answer_elsewhere_comes_fast() -> None:
    """An answer that took 40 ms elsewhere is not waited for a quarter of a second."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=0.04))
        there.send()
        await world.passes(0.005)
        duplicate = here.send()
        assert await duplicate.answer() == "201 replayed: run 1"
        assert duplicate.at is not None
        assert duplicate.at < 0.1


@virtual
async def test_after_a_release_elsewhere_one_claims() -> None:
    """The key is free again: one waiter of the process claims it, once, within a look; the others wait for it."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(refuses(429, after=3), answers(after=1))
        first = there.send()
        await world.passes(1)
        crowd = here.crowd(50)
        assert await first.answer() == "429 released: run 1"
        freed = world.time
        said = sorted([await client.answer() for client in crowd])
        assert said == ["201 replayed: run 2"] * 49 + ["201 stored: run 2"]
        assert world.service.ran[1].at - freed < ONE_CLAIM
        assert len(here.wire.told("claim")) == 2


@pytest.mark.parametrize("reason", [NotSentReason.UNREACHABLE, NotSentReason.NO_CONNECTION])
@virtual
async def test_no_herd_on_a_service_that_cannot_be_reached(reason: NotSentReason) -> None:
    """Two gates with 50 waiters each before a service that is down: it is tried no more often than there are gates."""
    async with World() as world:
        gates = [world.process(), world.process()]
        world.service.will(unreachable(after=1, reason=reason))
        crowds = [gate.crowd(50) for gate in gates]
        await world.passes(20)
        assert all(client.replies for crowd in crowds for client in crowd)
        assert len(world.service.attempts) <= len(gates)


@pytest.mark.parametrize("gates", [2, 4])
@virtual
async def test_no_herd_on_a_service_that_says_not_now(gates: int) -> None:
    """Each gate claims once after a release elsewhere: as many forwards as gates, for fifty waiters each."""
    async with World() as world:
        processes = [world.process() for _ in range(gates)]
        world.service.will(refuses(429, after=1))
        crowds = [process.crowd(50) for process in processes]
        await world.passes(24)
        assert {client.said[:12] for crowd in crowds for client in crowd} == {"429 released"}
        assert len(world.service.ran) <= gates
        assert all(len(process.wire.told("claim")) <= gates for process in processes)


@virtual
async def test_its_hold_is_seen() -> None:
    """A doubt written elsewhere is told to those who watch, within a look."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(breaks(after=2))
        first = there.send()
        await world.passes(1)
        crowd = here.crowd(5)
        assert await first.answer() == "502 upstream-lost"
        held = world.time
        assert {await client.answer() for client in crowd} == {"409 in-doubt"}
        assert world.time - held < ONE_LOOK


@virtual
async def test_its_tombstone_is_seen() -> None:
    """A stream elsewhere: those who watch are told at its end that its answer is not kept."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(streams(after=2, seconds=5))
        there.send()
        await world.passes(1)
        duplicate = here.send()
        assert await duplicate.answer() == "409 response-not-kept"
        assert duplicate.at == pytest.approx(7, abs=0.3)


@virtual
async def test_its_death_is_a_lapse_and_then_a_doubt() -> None:
    """A gate dies with its request out: 409 in-flight while the lease runs, 409 in-doubt after; never a second run."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=5))
        there.send()
        await world.passes(4.9)
        there.halt()
        early = here.send()
        await world.passes(LEASE - world.time - 1)
        assert early.said == ""
        assert await early.answer() == "409 in-doubt"
        assert early.at == pytest.approx(LEASE, abs=0.3)
        assert await here.send().answer() == "409 in-doubt"
        await world.passes(world.policy.doubt_window / 1000)
        assert await world.state() == "absent"


@virtual
async def test_a_wait_that_ends_before_the_flight() -> None:
    """Whoever has waited for `wait` hears 409 in-flight; the first waiter too, and the watch goes on without it."""
    async with World(wait=4_000) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=7))
        there.send()
        await world.passes(1)
        leader = here.send()
        await world.passes(3)
        crowd = here.crowd(10)
        assert await leader.answer() == "409 in-flight"
        assert leader.at == pytest.approx(5, abs=0.01)
        assert leader.problem.retry_after == 2
        assert {await client.answer() for client in crowd} == {"201 replayed: run 1"}
        assert world.time == pytest.approx(7, abs=0.3)
        assert len(here.wire.told("claim")) == 1


@virtual
async def test_all_waits_end_at_once() -> None:
    """A whole crowd whose wait ends in one instant: each is told once, and the store is not stormed."""
    async with World(wait=2_000) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=8))
        there.send()
        await world.passes(0.5)
        crowd = here.crowd(100)
        await world.passes(3)
        assert {client.said for client in crowd} == {"409 in-flight"}
        assert len(here.wire.told("claim")) <= 2


@virtual
async def test_the_leader_of_a_watch_leaves() -> None:
    """Its client hangs up: the watch goes on for the other waiter."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=5))
        there.send()
        await world.passes(1)
        leader, other = here.send(), here.send()
        await world.passes(1)
        leader.leave()
        assert await other.answer() == "201 replayed: run 1"
        assert len(here.wire.told("claim")) == 1


@virtual
async def test_a_mismatch_with_a_flight_elsewhere() -> None:
    """The leader's fingerprint is compared with the record's, those of the others with it as well."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=5))
        there.send()
        await world.passes(1)
        other = here.send(world.ask(body=b"other"))
        assert await other.answer() == "422 key-reused"
        same = here.send()
        await world.passes(1)
        late = here.send(world.ask(body=b"other"))
        assert await late.answer() == "422 key-reused"
        assert world.time == pytest.approx(2, abs=0.1)
        assert await same.answer() == "201 replayed: run 1"


@virtual
async def test_another_request_takes_the_key_between_two_looks() -> None:
    """The key is freed and claimed for another request before the watch looks again: mine is a mismatch now."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(refuses(429, after=3), answers(after=2))
        first = there.send(world.ask(body=b"a"))
        await world.passes(1)
        mine = here.send(world.ask(body=b"a"))
        assert await first.answer() == "429 released: run 1"
        theirs = there.send(world.ask(body=b"b"))
        assert await mine.answer() == "422 key-reused"
        assert await theirs.answer() == "201 stored: run 2"


@virtual
async def test_a_store_that_forgot_does_not_let_this_process_run_twice() -> None:
    """FLUSHALL while a request is out: a duplicate here attaches, whatever the store has lost."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=3))
        first = gate.send()
        await world.passes(1)
        await world.store_forgets()
        duplicate = gate.send()
        assert await first.answer() == "201 stored: run 1"
        assert await duplicate.answer() == "201 replayed: run 1"
        assert gate.observer.forgot == 1
        assert await world.state() == "completed #1"

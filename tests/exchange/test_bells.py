"""Duplicates of a flight of another process, where the store tells of its end: answered at once, and soon all the same
where it does not."""

from __future__ import annotations

import itertools

import pytest

from gateway.core.policy import OnDoubt
from gateway.engine.acquisition import FIRST_PAUSE, FIRST_SLOW_PAUSE, LONGEST_PAUSE, LONGEST_SLOW_PAUSE

from .upstream import Plan, answers, breaks, never, refuses, streams
from .virtual import virtual
from .world import LEASE, Process, World

#: A published message, a look and its reply, at half a millisecond each, and what the clock adds.
AT_ONCE = 0.003


def looks(process: Process) -> list[float]:
    return [command.at for command in process.wire.landed if command.verb == "get"]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (answers(after=5), "201 replayed: run 1"),
        (breaks(after=5), "409 in-doubt"),
        (streams(after=5, seconds=1), "409 response-not-kept"),
    ],
)
@virtual
async def test_what_is_settled_elsewhere_is_told_at_once(plan: Plan, said: str) -> None:
    """Keep, Hold and tombstone: fifty who wait in another process are answered within one trip and one look."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(plan)
        there.send()
        await world.passes(0.5)
        crowd = here.crowd(50)
        assert {await client.answer() for client in crowd} == {said}
        (settled,) = [command.at for command in there.wire.landed if command.verb == "settle"]
        assert world.time - settled < AT_ONCE


@virtual
async def test_a_release_elsewhere_is_told_at_once() -> None:
    """The key is free: one waiter claims it after its jitter, the others wait for that one."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(refuses(429, after=5), answers(after=1))
        first = there.send()
        await world.passes(0.5)
        crowd = here.crowd(10)
        assert await first.answer() == "429 released: run 1"
        freed = world.time
        assert sorted([await client.answer() for client in crowd])[-1] == "201 stored: run 2"
        assert world.service.ran[1].at - freed < AT_ONCE + 0.025 + 2 * AT_ONCE  # half of the jitter, and a claim
        assert len(here.wire.told("claim")) == 2


@virtual
async def test_waiting_is_nearly_free() -> None:
    """One look as soon as the bell hears, then after 250 ms, and ever more seldom, up to a second; whoever waits."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(never())
        there.send()
        await world.passes(0.1)
        here.crowd(100)
        await world.passes(10)
        seen = looks(here)
        gaps = [later - sooner for sooner, later in itertools.pairwise(seen)]
        assert seen[0] < 0.1 + 2 * AT_ONCE
        assert gaps == sorted(gaps) or max(gaps) - min(gaps[-5:]) < 0.001
        assert gaps[0] == pytest.approx(FIRST_SLOW_PAUSE, abs=0.005)
        assert gaps[-1] == pytest.approx(LONGEST_SLOW_PAUSE, abs=0.005)
        assert len(here.wire.subscriptions) == 1


@virtual
async def test_what_is_settled_before_the_bell_hears_is_seen() -> None:
    """The answer is stored after a duplicate was shown the claim, and before it is subscribed: nobody rings for that.
    The bell rings because it begins to hear, and the look behind that finds the answer."""
    async with World(rings=True) as world:
        here, there = world.process(latency=0.002), world.process()
        world.service.will(answers(after=0.1))
        there.send()
        # Asked here at 97.5 ms, claimed at 99.5, shown at 101.5, subscribed at 103.5; kept there at 102.5.
        await world.passes(0.0975)
        duplicate = here.send()
        assert await duplicate.answer() == "201 replayed: run 1"
        (kept,) = [command.at for command in there.wire.landed if command.verb == "settle"]
        (claimed,) = [command.at for command in here.wire.landed if command.verb == "claim"]
        assert claimed + 0.002 < kept < claimed + 0.004, "that was not the moment"
        assert duplicate.at is not None
        assert duplicate.at - kept < 4 * 0.002 + AT_ONCE < FIRST_PAUSE


@virtual
async def test_what_is_settled_while_a_look_is_under_way_is_seen() -> None:
    """A look has passed the store and not come back when the answer is stored, and the bell rings before it has: that
    ring is not lost."""
    async with World(rings=True) as world:
        here, there = world.process(latency=0.01), world.process()
        here.wire.told_after = 0.0005
        world.service.will(answers(after=0.1525))
        there.send()
        # Shown here at 120 ms, heard at 140; the look lands at 150 and is back at 160. Kept there at 155.
        await world.passes(0.1)
        duplicate = here.send()
        assert await duplicate.answer() == "201 replayed: run 1"
        (kept,) = [command.at for command in there.wire.landed if command.verb == "settle"]
        assert looks(here)[0] < kept < looks(here)[0] + 0.0095, "that was not the moment"
        assert len(looks(here)) == 2
        assert duplicate.at is not None
        assert duplicate.at - kept < 0.03


@virtual
async def test_what_is_settled_while_the_bell_is_deaf_is_seen_when_it_hears() -> None:
    """Its connection is lost and comes back within one slow look, and the answer was stored between: it rings
    because something may have been missed."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=8.75))
        there.send()
        await world.passes(0.1)
        duplicate = here.send()
        await world.passes(8.6)
        assert looks(here)[-1] + LONGEST_SLOW_PAUSE > 8.9, "a look would have come by itself"
        here.wire.deafen(0.1)
        assert await duplicate.answer() == "201 replayed: run 1"
        assert duplicate.at is not None
        assert duplicate.at == pytest.approx(8.8, abs=2 * AT_ONCE)


@virtual
async def test_a_bell_that_is_deaf_is_not_trusted() -> None:
    """While the connection is away, looks come as often as where nobody rings."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(never())
        there.send()
        here.send()
        await world.passes(5)
        here.wire.deafen()
        await world.passes(LONGEST_SLOW_PAUSE)
        before = len(looks(here))
        await world.passes(5)
        gaps = [later - sooner for sooner, later in itertools.pairwise(looks(here)[before:])]
        assert max(gaps) < LONGEST_PAUSE + AT_ONCE


@virtual
async def test_a_bell_that_hangs_holds_nobody_up() -> None:
    """It seems to hear, and nothing comes any more: the slow look finds the answer."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=9.5))
        first = there.send()
        await world.passes(0.1)
        duplicate = here.send()
        await world.passes(1)
        here.wire.mute = True
        await first.answer()
        kept = world.time
        assert await duplicate.answer() == "201 replayed: run 1"
        assert AT_ONCE < world.time - kept < LONGEST_SLOW_PAUSE + AT_ONCE


@virtual
async def test_a_ring_for_nothing_costs_one_look() -> None:
    """Ten rings, and the flight goes on: ten looks, and nobody is told anything."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(never())
        there.send()
        duplicate = here.send()
        await world.passes(5)
        before = len(looks(here))
        for _ in range(10):
            for subscription in here.wire.subscriptions:
                subscription.notify()
            await world.passes(0.01)
        assert len(looks(here)) - before in (10, 11)
        assert duplicate.said == ""


@pytest.mark.parametrize("rings", [True, False])
@virtual
async def test_a_lapse_is_seen_when_it_comes(rings: bool) -> None:
    """A gate dies with its request out. Nobody rings for that: whoever waits is told of the doubt as the lease ends."""
    async with World(rings=rings) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=5))
        there.send()
        await world.passes(1)
        there.halt()
        duplicate = here.send()
        assert await duplicate.answer() == "409 in-doubt"
        assert duplicate.at == pytest.approx(LEASE, abs=0.01)


@virtual
async def test_a_lapsed_claim_is_taken_over_when_its_margin_is_over() -> None:
    """Under `rerun` those who wait are woken a margin past the lapse, and one of them takes over."""
    async with World(rings=True, on_doubt=OnDoubt.RERUN, wait=60_000) as world:
        world.most_effects = 2
        here, there = world.process(), world.process()
        world.service.will(answers(after=1))
        there.send()
        await world.passes(0.5)
        there.halt()
        await world.passes(1.5)
        crowd = here.crowd(5)
        assert sorted({await client.answer() for client in crowd}) == ["201 replayed: run 2", "201 stored: run 2"]
        margin = world.policy.margin / 1000
        assert world.service.ran[-1].at == pytest.approx(LEASE + margin, abs=0.02)


@virtual
async def test_a_first_waiter_that_leaves_changes_nothing() -> None:
    """Its client hangs up: the watch goes on for the others, with the same subscription and without another claim."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=8))
        there.send()
        leader, other = here.send(), here.send()
        await world.passes(7)
        leader.leave()
        await world.passes(2 * AT_ONCE)
        assert len(here.wire.told("claim")) == 1
        assert len(here.wire.subscriptions) == 1
        assert await other.answer() == "201 replayed: run 1"


@virtual
async def test_nothing_runs_for_a_waiter_who_has_left() -> None:
    """The key is released, and the only waiter hangs up while the look that finds it free is on its way back."""
    async with World(rings=True) as world:
        here, there = world.process(latency=0.01), world.process()
        world.service.will(refuses(429, after=0.1425), answers())
        there.send()
        # The look lands at 150 ms and is back at 160. Released there at 145.
        await world.passes(0.1)
        duplicate = here.send()
        await world.passes(0.055)
        duplicate.leave()
        await world.passes(1)
        assert here.wire.told("get") == [None]
        assert len(here.wire.told("claim")) == 1
        assert len(world.service.ran) == 1


@virtual
async def test_who_leaves_listens_no_more() -> None:
    """The only waiter of each key hangs up: their subscriptions end at once, with their timers."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=8))
        for key in "ab":
            there.send(world.ask(key))
        await world.passes(0.1)
        leaves = here.send(world.ask("a"))
        stays = here.send(world.ask("b"))
        await world.passes(0.1)
        assert {each.name for each in here.wire.subscriptions} == {world.ask(key).name for key in "ab"}
        leaves.leave()
        await world.passes(0.01)
        assert {each.name for each in here.wire.subscriptions} == {world.ask("b").name}
        stays.leave()
        await world.passes(0.01)
        assert not here.wire.subscriptions


@virtual
async def test_a_watch_that_is_cut_listens_no_more() -> None:
    """The process ends while it watches: nothing of the watch stays, and its client is not answered."""
    async with World(rings=True) as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=8))
        there.send()
        await world.passes(0.1)
        waiter = here.send()
        await world.passes(1)
        here.cut()
        await world.passes(0.01)
        here.nothing_is_left()
        assert waiter.said == ""

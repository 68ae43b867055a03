"""The store fails: replies are lost, commands land late or twice, it is away, full, or forgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.policy import SECOND
from gateway.core.problem import Label
from gateway.core.record import Done, Found, Kind, NewClaim, Record, Settlement
from gateway.core.reply import Again, First
from gateway.ports import Store

from .upstream import Plan, answers, breaks, never, refuses, streams, unreachable
from .virtual import virtual
from .wire import DROPPED, FULL, LOST, Fault, Wire, again, late, slow
from .world import LEASE, Cut, Pause, World

# ── The claim ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", [LOST, DROPPED, late(0.01)], ids=["made", "not made", "made late"])
@virtual
async def test_a_claim_whose_reply_was_lost_is_asked_again(fault: Fault) -> None:
    """Asked again by the same holder it is won, whether the first was made or not: one run, no doubt."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", fault)
        assert await gate.send().answer() == "201 stored: run 1"
        holders = {command.what.holder for command in gate.wire.landed if command.verb == "claim"}
        assert len(holders) == 1
        assert world.service.numbers == [1]


@virtual
async def test_a_claim_whose_replies_are_all_lost_is_given_up_and_released() -> None:
    """Made, and its gate never heard: 503 after `store_wait`, and in the background the key is freed."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", *[LOST] * 500)
        client = gate.send()
        assert await client.answer() == "503 store-unavailable"
        assert client.at == pytest.approx(world.policy.store_wait / 1000, abs=0.1)
        assert client.problem.retry_after == 1
        await world.passes(0.1)
        assert await world.state() == "absent"
        assert world.service.ran == []
        gate.wire._faults.clear()
        assert await gate.send().answer() == "201 stored: run 1"


@pytest.mark.parametrize("delay", [0.5, 2.0, 4.9, 10.0, LEASE - 3.2])
@virtual
async def test_a_claim_that_lands_after_it_was_given_up_is_released(delay: float) -> None:
    """The release is repeated at 1 s, 5 s and the lease's end: an orphan is gone by lease + 1 s, never a doubt."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", late(3 + delay), *[DROPPED] * 500)
        began = world.time
        assert await gate.send().answer() == "503 store-unavailable"
        await world.passes(delay + 0.001)
        assert await world.state() == "in flight #1"
        await world.passes(LEASE + 1 - (world.time - began))
        assert await world.state() == "absent"
        assert world.service.ran == []


@virtual
async def test_a_release_is_repeated_after_one_second_and_after_five() -> None:
    """What lands soon goes soon, long before the lease's end: at 1 s what came before, at 5 s what came since."""
    async with World() as world:
        gate = world.process()
        for key, delay, gone in (("a", 0.5, 1.1), ("b", 3.0, 5.1)):
            began = world.time
            gate.wire.next("claim", late(delay))
            world.service.will(unreachable())
            assert await gate.send(world.ask(key)).answer() == "502 upstream-unreachable"
            await world.passes(began + delay + 0.1 - world.time)
            assert await world.state(key) == "in flight #1"
            await world.passes(began + gone - world.time)
            assert await world.state(key) == "absent"


@pytest.mark.parametrize("lost", [False, True], ids=["release acknowledged", "release's reply lost"])
@pytest.mark.parametrize("delay", [0.5, 4.0, 15.0])
@virtual
async def test_a_claim_delivered_again_after_its_release_is_released_again(delay: float, *, lost: bool) -> None:
    """Won when asked again, released since nothing was sent; then the first claim lands. It is nobody's, and goes."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", late(delay))
        if lost:
            gate.wire.next("settle", LOST)
        world.service.will(unreachable())
        assert await gate.send().answer() == "502 upstream-unreachable"
        await world.passes(delay)
        assert await world.state() == "in flight #1"
        await world.passes(LEASE + 1 - world.time)
        assert await world.state() == "absent"


@virtual
async def test_a_claim_that_lands_after_a_cut_during_its_release_is_released_again() -> None:
    """The process is cut while its Release is under way, and the first try of the claim lands later: it must not lapse
    into a doubt, since nothing was sent."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", late(3))
        world.service.will(unreachable())
        gate.send(by=Cut("settle"))
        await world.passes(3.1)
        assert await world.state() == "in flight #1"
        await world.passes(LEASE + 1 - world.time)
        assert await world.state() == "absent"


@pytest.mark.parametrize("away", [(0.9, 3.0), (2.2, 10.0), (2.2, 30.0), (0.5, 40.0)])
@virtual
async def test_a_release_is_repeated_although_the_store_is_away(away: tuple[float, float]) -> None:
    """The store is away when the release is to be repeated: each repeat is tried until the next, the last until a
    minute past the lease. The orphan does not outlive the first answer."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", late(2))
        world.service.will(unreachable())
        assert await gate.send().answer() == "502 upstream-unreachable"
        cut, seconds = away
        world.loop.call_later(cut, gate.wire.cut, seconds)
        await world.passes(2.1)
        assert await world.state() == "in flight #1"
        await world.passes(max(cut + seconds, LEASE) + 3 - world.time)
        assert await world.state() == "absent"


@virtual
async def test_a_gate_that_stood_still_asks_no_more() -> None:
    """Its claim's reply was lost, and it stood still past its patience: it does not ask again, for what it asks now
    could land after its last release."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", LOST, late(LEASE))
        client = gate.send(by=Pause("timer", 10))
        assert await client.answer() == "503 store-unavailable"
        assert len(gate.wire.told("claim")) == 1
        await world.passes(LEASE + 20)
        assert await world.state() == "absent"


@virtual
async def test_a_claim_that_another_holds_in_the_end_is_released_too() -> None:
    """Its first try is on its way when another gate's claim is found: when that key is free, the orphan must go."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(refuses(429, after=0.5))
        there.send()
        await world.passes(0.1)
        here.wire.next("claim", late(2.0))
        client = here.send()
        await world.passes(1.9)
        assert client.said == "429 released: run 2"
        await world.passes(0.3)
        assert await world.state() == "in flight #1"
        await world.passes(LEASE + 1 - world.time)
        assert await world.state() == "absent"


@virtual
async def test_a_release_delivered_again_frees_nobody_elses_claim() -> None:
    """A holder that has settled is dead: its release, delivered a second time, does not touch the next claim."""
    async with World() as world:
        gate = world.process()
        world.service.will(refuses(429), answers(after=5))
        gate.wire.next("settle", again(2))
        assert await gate.send().answer() == "429 released: run 1"
        await world.passes(1)
        second = gate.send()
        await world.passes(2)
        assert await world.state() == "in flight #1"
        assert await second.answer() == "201 stored: run 2"


@virtual
async def test_a_keep_delivered_again_does_not_lengthen_the_window() -> None:
    """What is completed does not move: the same Keep, delivered a second time, is told that it is done."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("settle", again(100))
        assert await gate.send().answer() == "201 stored: run 1"
        await world.passes(101)
        assert gate.wire.told("settle") == [Done.DONE, Done.DONE]
        found = await world.look()
        assert found is not None
        assert found.age > 100_000


@virtual
async def test_a_bug_in_the_claim_leaves_no_orphan() -> None:
    """An exception that no adapter should let through, after the claim was made: the client is told nothing of
    it, the key does not stay taken."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", LOST, Fault(raises=RuntimeError("a bug")))
        world.expected_errors = 1
        assert await gate.send().answer() == "503 overloaded"
        await world.passes(1)
        assert await world.state() == "absent"


@virtual
async def test_a_bug_in_the_first_claim_leaves_no_orphan() -> None:
    """The same where the very first command is answered with nonsense: it may have been done."""
    async with World() as world:
        gate = world.process()
        claim = gate.wire.claim

        def nonsense(name: bytes, asked: NewClaim | Record, reply: Callable[[Any], None]) -> None:
            gate.wire.claim = claim  # type: ignore[method-assign]
            claim(name, asked, lambda result: reply(ValueError("what is this?")))

        gate.wire.claim = nonsense  # type: ignore[method-assign]
        world.expected_errors = 1
        assert await gate.send().answer() == "503 overloaded"
        await world.passes(1)
        assert await world.state() == "absent"


@virtual
async def test_a_store_that_is_away_is_waited_for() -> None:
    """Away for less than `store_wait`: the request waits, is claimed when the store is back, and runs."""
    async with World() as world:
        gate = world.process()
        gate.wire.cut(2)
        crowd = gate.crowd(20)
        said = sorted([await client.answer() for client in crowd])
        assert said == ["201 replayed: run 1"] * 19 + ["201 stored: run 1"]
        assert world.time == pytest.approx(2, abs=0.2)


@virtual
async def test_a_store_that_stays_away() -> None:
    """Away for longer: 503 after `store_wait` for everybody who waited for it, at once, and nothing is forwarded."""
    async with World() as world:
        gate = world.process()
        gate.wire.cut()
        crowd = gate.crowd(20)
        await world.passes(2.9)
        late_one = gate.send()
        await world.passes(0.2)
        assert {client.said for client in [*crowd, late_one]} == {"503 store-unavailable"}
        assert crowd[0].problem.retry_after == 1
        assert world.service.attempts == []
        gate.wire.mend()
        assert await gate.send().answer() == "201 stored: run 1"


@virtual
async def test_no_patience_at_all() -> None:
    """`store_wait: 0`: a store that is away is 503 at once, and one that is there is asked once."""
    async with World(store_wait=0) as world:
        gate = world.process()
        assert await gate.send(world.ask("a")).answer() == "201 stored: run 1"
        gate.wire.cut()
        assert await gate.send(world.ask("b")).answer() == "503 store-unavailable"
        assert world.time < 0.1


@virtual
async def test_a_store_that_is_full_refuses_at_once() -> None:
    """No room for another record: 503 without waiting, nothing forwarded, nothing to release."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", FULL)
        assert await gate.send().answer() == "503 store-unavailable"
        assert world.time < 0.01
        await world.passes(1)
        assert gate.wire.landed == []


@virtual
async def test_full_after_a_reply_was_lost_is_given_up() -> None:
    """The first try may have been made, the second found no room: the first must not stay."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", LOST, FULL)
        assert await gate.send().answer() == "503 store-unavailable"
        await world.passes(0.1)
        assert await world.state() == "absent"


@virtual
async def test_a_bug_in_the_settlement_costs_nobody_the_answer() -> None:
    """An exception that no adapter should let through, at the Keep. The claimant and its waiters get the answer,
    labelled not-stored; it is stored in the background."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("settle", Fault(raises=RuntimeError("a bug")))
        world.expected_errors = 1
        first, waiter = gate.send(), gate.send()
        assert await first.answer() == "201 not-stored: run 1"
        assert await waiter.answer() == "201 not-stored: run 1"
        await world.passes(1)
        assert await world.state() == "completed #1"


# ── The watch ─────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_a_store_that_blinks_does_not_end_a_watch() -> None:
    """Away for a second while a flight elsewhere is watched: the crowd waits on, and gets the answer."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=5))
        there.send()
        await world.passes(1)
        crowd = here.crowd(10)
        await world.passes(1)
        here.wire.cut(1)
        assert {await client.answer() for client in crowd} == {"201 replayed: run 1"}


@virtual
async def test_a_lost_look_does_not_end_a_watch() -> None:
    """One look's reply is lost: looking again costs nothing."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=5))
        there.send()
        await world.passes(1)
        duplicate = here.send()
        await world.passes(1)
        here.wire.next("get", LOST, DROPPED)
        assert await duplicate.answer() == "201 replayed: run 1"


@virtual
async def test_a_store_that_goes_away_ends_a_watch_after_its_patience() -> None:
    """Away for longer than `store_wait`: those who watch are told 503, all at once."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=9))
        there.send()
        await world.passes(1)
        crowd = here.crowd(10)
        await world.passes(1)
        here.wire.cut()
        await world.passes(world.policy.store_wait / 1000 + 0.3)
        assert {client.said for client in crowd} == {"503 store-unavailable"}
        assert world.service.numbers == [1]


@virtual
async def test_a_lapse_while_the_store_is_away_does_not_storm_it() -> None:
    """The watched lease ends while the store is away: it is read again after pauses, until the patience is over."""
    async with World() as world:
        here, there = world.process(), world.process()
        there.send()
        await world.passes(0.005)
        there.halt()
        duplicate = here.send()
        await world.passes(LEASE - 0.1 - world.time)
        here.wire.cut()
        here.observer.calls.clear()
        assert await duplicate.answer() == "503 store-unavailable"
        assert duplicate.at == pytest.approx(LEASE + world.policy.store_wait / 1000, abs=0.3)
        assert here.observer.calls.count(("look", True)) < 20


# ── The settlement ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", [LOST, DROPPED, late(1.0)], ids=["made", "not made", "made late"])
@virtual
async def test_an_answer_whose_keep_is_not_acknowledged(fault: Fault) -> None:
    """The client gets the true answer, labelled not-stored; so do waiters, and whoever comes while it is being
    settled in the background; then it is stored, and replayed."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=1))
        here.wire.next("settle", fault, *[DROPPED] * 5)
        first, waiter = here.send(), here.send()
        assert await first.answer() == "201 not-stored: run 1"
        assert await waiter.answer() == "201 not-stored: run 1"
        assert len(here.settler) == 1
        duplicate = here.send()
        assert await duplicate.answer() == "201 not-stored: run 1"
        thief = here.send(world.ask(fields=[(b"Authorization", b"other")]))
        assert await thief.answer() == "422 credentials-differ"
        reply = first.reply_given
        assert isinstance(reply, First)
        assert reply.expires is None
        replay = duplicate.reply_given
        assert isinstance(replay, Again)
        assert (replay.label, replay.replayed, replay.expires) == (Label.NOT_STORED, True, None)
        await world.passes(10)
        assert len(here.settler) == len(here.driver) == 0
        assert await world.state() == "completed #1"
        assert await here.send().answer() == await there.send().answer() == "201 replayed: run 1"
        assert here.observer.forgot == 0


@virtual
async def test_a_store_that_is_away_for_long_at_the_keep() -> None:
    """It is told again until it has answered, with back-off; nobody runs the key meanwhile, here or elsewhere."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(after=1))
        first = here.send()
        await world.passes(0.5)
        here.wire.cut(400)
        assert await first.answer() == "201 not-stored: run 1"
        await world.passes(LEASE)
        assert await here.send().answer() == "201 not-stored: run 1"
        assert await there.send().answer() == "409 in-doubt"
        await world.passes(400)
        assert await there.send().answer() == "201 replayed: run 1"
        assert world.service.effects[b"k"] == 1


@virtual
async def test_it_is_told_the_moment_it_is_back() -> None:
    """However long it was away: a settlement is made within a tenth of a second of its return, before those whom the
    lapsed claim would put off ask again."""
    for away in (5.0, 5.7, 7.1, 9.4, 23.9):
        async with World() as world:
            gate = world.process()
            world.service.will(answers(after=1))
            first = gate.send()
            await world.passes(0.5)
            gate.wire.cut(away)
            assert await first.answer() == "201 not-stored: run 1"
            await world.passes(away - 0.5 - 0.05)
            assert len(gate.settler) == 1
            await world.passes(0.15)
            assert await world.state() == "completed #1", away


@virtual
async def test_what_the_store_never_acknowledges_is_let_go_with_its_life() -> None:
    """Past the record's life there is nothing to say any more: the flight goes, a person is told."""
    async with World(window=60_000) as world:
        gate = world.process()
        gate.wire.next("settle", *[Fault(dropped=True)] * 10_000)
        assert await gate.send().answer() == "201 not-stored: run 1"
        await world.passes(59)
        assert len(gate.driver) == 1
        await world.passes(3)
        assert len(gate.driver) == len(gate.settler) == 0
        assert gate.observer.alarms == ["a settlement was never acknowledged"]


@virtual
async def test_a_doubt_whose_hold_is_not_acknowledged() -> None:
    """Losing a Hold changes nothing: the client hears the doubt, the key lapses into one."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(breaks(after=1))
        first, waiter = here.send(), here.send()
        await world.passes(0.5)
        here.wire.cut(300)
        assert await first.answer() == "502 upstream-lost"
        assert await waiter.answer() == "409 in-doubt"
        assert await here.send().answer() == "409 in-doubt"
        await world.passes(LEASE)
        assert await world.state() == "lapsed #1"
        assert await there.send().answer() == "409 in-doubt"
        await world.passes(300)
        assert await world.state() == "in doubt #1"


@virtual
async def test_a_release_that_is_not_acknowledged() -> None:
    """The client gets the answer, labelled released, since nothing ran; a waiter and a later duplicate get it too;
    once the store has released it, the next one runs."""
    async with World() as world:
        gate = world.process()
        world.service.will(refuses(429, after=1), answers())
        gate.wire.next("settle", *[DROPPED] * 6)
        first, waiter = gate.send(), gate.send()
        assert await first.answer() == "429 released: run 1"
        assert await waiter.answer() == "429 released: run 1"
        assert await gate.send().answer() == "429 released: run 1"
        await world.passes(10)
        assert await world.state() == "absent"
        assert await gate.send().answer() == "201 stored: run 2"


@virtual
async def test_a_late_release_that_is_not_acknowledged() -> None:
    """The first client got its 504. A waiter that joined after it gets the late answer, labelled released."""
    async with World() as world:
        gate = world.process()
        world.service.will(refuses(429, after=12), answers())
        gate.wire.next("settle", *[DROPPED] * 6)
        assert await gate.send().answer() == "504 upstream-timeout"
        assert await gate.send().answer() == "429 released: run 1"
        await world.passes(10)
        assert await gate.send().answer() == "201 stored: run 2"


@virtual
async def test_a_request_that_was_not_sent_and_whose_release_is_not_acknowledged() -> None:
    """Nothing ran, and every client gets that answer until the store has released the key."""
    async with World() as world:
        gate = world.process()
        world.service.will(unreachable(), answers())
        gate.wire.next("settle", *[DROPPED] * 6)
        for _ in range(2):
            client = gate.send()
            assert await client.answer() == "502 upstream-unreachable"
            assert (client.problem.shown_as, client.problem.problem.outcome) == (Label.RELEASED, "no-effect")
        await world.passes(10)
        assert await gate.send().answer() == "201 stored: run 1"


@pytest.mark.parametrize("fault", [LOST, DROPPED], ids=["made", "not made"])
@virtual
async def test_a_stream_whose_tombstone_is_not_acknowledged(fault: Fault) -> None:
    """It has been read to its end: a duplicate is told by this process that it ran and is not kept."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(chunks=3, seconds=3))
        gate.wire.next("settle", fault, *[DROPPED] * 3)
        first = gate.send()
        assert await first.answer() == "200 not-kept, live"
        assert await gate.send().answer() == "409 response-not-kept"
        assert world.time > 3
        await world.passes(10)
        assert first.received == b"data\n\n" * 3
        assert first.ended is True
        assert await world.state() == "completed #1"


@pytest.mark.parametrize("fault", [LOST, DROPPED], ids=["made", "not made"])
@virtual
async def test_a_stream_of_minutes_whose_hold_is_not_acknowledged(fault: Fault) -> None:
    """It goes on, and so does the settlement. Its end is kept, whatever becomes of the doubt."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(chunks=3, seconds=60))
        gate.wire.next("settle", fault, *[DROPPED] * 3)
        first = gate.send()
        await world.passes(LEASE)
        assert await gate.send().answer() == "409 in-doubt"
        await world.passes(60 - LEASE + 1)
        assert first.ended is True
        assert await world.state() == "completed #1"


@virtual
async def test_a_late_keep_of_a_stream_goes_on_in_the_background() -> None:
    """The store is away at its end: its client is not kept waiting, and the fact is remembered once it is back."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(chunks=3, seconds=60))
        first = gate.send()
        await world.passes(LEASE)
        gate.wire.next("settle", *[DROPPED] * 3)
        await world.passes(60 - LEASE + 10)
        assert first.ended is True
        assert await world.state() == "completed #1"
        assert gate.observer.forgot == 0


@virtual
async def test_a_released_stream_whose_release_is_not_acknowledged() -> None:
    """Nobody may run it while the store may still think that it is taken: whoever comes is told to come again."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(status=429), answers())
        gate.wire.next("settle", *[DROPPED] * 3)
        assert await gate.send().answer() == "429 released, live"
        assert await gate.send().answer() == "409 in-flight"
        await world.passes(5)
        world.most_effects = 2
        assert await gate.send().answer() == "201 stored: run 2"


@pytest.mark.parametrize(
    ("plan", "state"), [(answers(after=2), "completed #1"), (breaks(after=2), "in doubt #1")], ids=["Keep", "Hold"]
)
@virtual
async def test_what_the_store_forgot_it_is_told_again(plan: Plan, state: str) -> None:
    """Nothing is there at the settlement: it is written all the same, and counted."""
    async with World() as world:
        gate = world.process()
        world.service.will(plan)
        client = gate.send()
        await world.passes(1)
        await world.store_forgets()
        await client.answer()
        assert await world.state() == state
        assert gate.observer.forgot == 1


@virtual
async def test_what_the_store_forgot_is_counted_in_the_background_too() -> None:
    """The first Keep was dropped, and the store was emptied before the second."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("settle", DROPPED)
        assert await gate.send().answer() == "201 not-stored: run 1"
        await world.store_forgets()
        await world.passes(1)
        assert await world.state() == "completed #1"
        assert gate.observer.forgot == 1


@virtual
async def test_a_forgotten_claim_that_is_released_is_not_counted() -> None:
    """A Release that finds nothing is done: there is nothing to tell the store again."""
    async with World() as world:
        gate = world.process()
        world.service.will(refuses(429, after=1))
        client = gate.send()
        await world.passes(0.5)
        await world.store_forgets()
        assert await client.answer() == "429 released: run 1"
        assert gate.observer.forgot == 0
        assert await world.state() == "absent"


@virtual
async def test_forgotten_and_claimed_elsewhere_is_answered_from_the_record() -> None:
    """The store lost the claim and gave the key to another gate: two ran, which no gate can undo; but the clients of
    the one whose Keep came second are not told its own answer. They hear what stands."""
    async with World() as world:
        world.most_effects = 2
        here, there = world.process(), world.process()
        world.service.will(answers(after=3), answers(after=1))
        first, waiter = here.send(), here.send()
        await world.passes(1)
        await world.store_forgets()
        other = there.send()
        assert await other.answer() == "201 stored: run 2"
        assert await first.answer() == "201 replayed: run 2"
        assert await waiter.answer() == "201 replayed: run 2"
        assert here.observer.alarms == ["another holder's record stands where a claim of ours was settled"]


@virtual
async def test_forgotten_and_in_flight_elsewhere_is_a_doubt() -> None:
    """What stands is another gate's flight: the client is told the doubt; who waited waits for the other's answer."""
    async with World() as world:
        world.most_effects = 2
        here, there = world.process(), world.process()
        world.service.will(answers(after=2), answers(after=4))
        first, waiter = here.send(), here.send()
        await world.passes(1)
        await world.store_forgets()
        other = there.send()
        assert await first.answer() == "409 in-doubt"
        assert await other.answer() == "201 stored: run 2"
        assert await waiter.answer() == "201 replayed: run 2"


@virtual
async def test_a_stream_whose_key_is_anothers_is_cut_off() -> None:
    """Found when it is settled, at once or in the background: its client must not take it for whole."""
    async with World() as world:
        world.most_effects = 2
        here, there = world.process(), world.process()
        world.service.will(streams(after=2, seconds=100), answers(after=0.1), streams(seconds=100), answers(after=0.1))
        first = here.send(world.ask("a"))
        await world.passes(1)
        await world.store_forgets()
        assert await there.send(world.ask("a")).answer() == "201 stored: run 2"
        assert await first.answer() == "200 not-kept, live"
        await world.passes(LEASE)
        assert first.ended is False
        second = here.send(world.ask("b"))
        assert await second.answer() == "200 not-kept, live"
        await world.store_forgets()
        assert await there.send(world.ask("b")).answer() == "201 stored: run 4"
        here.wire.next("settle", *[DROPPED] * 4)
        await world.passes(LEASE + 10)
        assert second.ended is False


@virtual
async def test_a_held_stream_whose_key_is_anothers_is_read_to_its_end() -> None:
    """Its client is given what stands; the service is not reset for that."""
    async with World() as world:
        world.most_effects = 2
        here, there = world.process(), world.process()
        world.service.will(streams(status=502, after=2, seconds=5), answers())
        first = here.send()
        await world.passes(1)
        await world.store_forgets()
        assert await there.send().answer() == "201 stored: run 2"
        assert await first.answer() == "201 replayed: run 2"
        stream = world.service.attempts[0].stream
        assert stream is not None
        await world.passes(4)
        assert not stream.over
        await world.passes(2)
        assert stream.over
        assert stream.abandoned is None


@virtual
async def test_an_owner_that_stood_still_past_its_lease_keeps_its_answer() -> None:
    """Paused until its claim had lapsed: duplicates were told the doubt; then the answer comes, by the holder."""
    async with World() as world:
        here, there = world.process(), world.process()
        first = here.send()
        await world.passes(0.005)
        here.pause(LEASE + 10)
        await world.passes(LEASE + 5)
        assert await there.send().answer() == "409 in-doubt"
        assert await first.answer() == "201 stored: run 1"
        assert await there.send().answer() == "201 replayed: run 1"


@virtual
async def test_a_stream_whose_head_is_read_too_late_is_not_begun() -> None:
    """The process stood still past the end of the exchange: another may hold the key by now. The client gets no byte of
    the response, and the key is in doubt."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(seconds=100))
        client = gate.send()
        await world.passes(0.005)
        gate.pause(LEASE + 10)
        assert await client.answer() == "502 upstream-lost"
        assert (client.stream, client.received) == (None, b"")
        assert await world.state() == "in doubt #1"
        assert world.service.attempts[0].stream.over


@virtual
async def test_a_hold_after_a_cut_that_finds_anothers_record_raises_the_alarm() -> None:
    """The store lost the claim and gave the key to another gateway; the process is cut, and its Hold finds that."""
    async with World() as world:
        world.most_effects = 2
        here, there = world.process(), world.process()
        world.service.will(never(), answers())
        here.send()
        await world.passes(1)
        await world.store_forgets()
        assert await there.send().answer() == "201 stored: run 2"
        here.cut()
        await world.passes(1)
        assert here.observer.alarms == ["another holder's record stands where a claim of ours was settled"]
        assert await there.send().answer() == "201 replayed: run 2"


# ── Stopping ──────────────────────────────────────────────────────────────────────────────────────


@virtual
async def test_stopping_ends_what_is_under_way() -> None:
    """What was sent is held, what was not is released; each client is told which."""
    async with World() as world:
        gate = world.process()
        world.service.will(never(), answers(connect=5))
        sent, unsent = gate.send(world.ask("sent")), gate.send(world.ask("unsent"))
        await world.passes(1)
        gate.driver.stop()
        assert await sent.answer() == "502 upstream-lost"
        assert await unsent.answer() == "503 overloaded (released)"
        assert await world.state("sent") == "in doubt #1"
        assert await world.state("unsent") == "absent"


@virtual
async def test_nothing_is_sent_any_more_once_it_stops() -> None:
    """A claim that is won after the stop is released unused."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", slow(1))
        client = gate.send()
        await world.passes(0.5)
        gate.driver.stop()
        assert await client.answer() == "503 overloaded (released)"
        assert world.service.ran == []
        assert await world.state() == "absent"


@virtual
async def test_drain_waits_for_what_the_store_has_not_acknowledged() -> None:
    """Within its grace the gate goes on settling, then says how much is left."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("settle", *[DROPPED] * 8)
        assert await gate.send().answer() == "201 not-stored: run 1"
        assert await gate.settler.finish(0.5) == 1
        assert await gate.settler.finish(20) == 0
        assert await world.state() == "completed #1"


@virtual
async def test_closing_the_settler_lets_everything_go() -> None:
    """At the end of the grace nothing of it goes on: no task, no flight; the claim lapses."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("settle", *[DROPPED] * 100)
        assert await gate.send().answer() == "201 not-stored: run 1"
        gate.wire.next("claim", *[DROPPED] * 200)
        assert await gate.send(world.ask("b")).answer() == "503 store-unavailable"
        await world.passes(0.2)
        await gate.settler.close()
        assert len(gate.settler) == len(gate.driver) == 0


def test_a_wire_is_a_store() -> None:
    """The wrapper has every member of the port (mypy does not look at tests)."""
    members = [name for name in vars(Store) if not name.startswith("_")]
    assert {"claim", "settle", "when_available"} <= set(members)
    for member in members:
        assert hasattr(Wire, member)
    assert {Done.WON, Found}


@virtual
async def test_a_release_that_finds_another_holder_is_repeated_where_its_claim_may_still_land() -> None:
    """A claim's first try is still on its way; the second is won, and its release finds that another gate's record
    stands. What lands when that record has ended is released as well: it leaves no false doubt."""
    async with World(window=2 * SECOND) as world:
        world.most_effects = 2
        gate, other = world.process(), world.process()
        gate.wire.next("claim", late(4.9))
        gate.wire.next("settle", slow(0.2))
        world.service.will(refuses(429), answers())
        first = gate.send()
        await world.passes(0.15)
        found = await world.look()
        assert found is not None
        await world.store.settle(world.ask().name, Settlement(Kind.RELEASE, found.record.holder, None))
        assert await other.send().answer() == "201 stored: run 2"
        await first.answer()
        await world.passes(3)
        assert await world.state() == "absent", "the window of the answer is over"
        await world.passes(5.5 - world.time)
        assert gate.wire.told("claim")[-1] is Done.WON, "it has landed"
        assert await world.state() == "absent", "the claim that landed late is released"

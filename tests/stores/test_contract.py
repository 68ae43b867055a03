"""What every store promises, on every store that can be had here."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core import record as records
from gateway.core.record import Done, Doubt, Found, Stamp, State
from tests.stores.worlds import LEASE, WINDOW, World, a_claim, a_holder, an_answer, every_store

pytestmark = every_store
NAME = b"n" * 43


async def test_the_first_claim_wins_and_the_second_is_shown_it(world: World) -> None:
    """Claiming is taking what is absent; whoever comes second sees the first one's record, and its age."""
    first, second = a_claim(), a_claim()
    assert await world.store.claim(NAME, first) is Done.WON
    found = await world.store.claim(NAME, second)
    assert isinstance(found, Found)
    assert found.record == first
    assert 0 <= found.age < 2_000


async def test_a_hundred_claims_at_once_have_one_winner(world: World) -> None:
    """However many claim at once, one wins, and all others are shown the winner."""
    claims = [a_claim() for _ in range(100)]
    results = await asyncio.gather(*(world.store.claim(NAME, claim) for claim in claims))
    winners = [claim for claim, result in zip(claims, results, strict=True) if result is Done.WON]
    assert len(winners) == 1
    assert {result.record.holder for result in results if isinstance(result, Found)} == {winners[0].holder}


async def test_a_claim_asked_again_by_its_holder_is_won(world: World) -> None:
    """A claim whose reply was lost is asked again with the same holder, and is won; its life goes on."""
    claim = a_claim()
    assert await world.store.claim(NAME, claim) is Done.WON
    await world.pass_time(10_000)
    assert await world.store.claim(NAME, claim) is Done.WON
    found = await world.store.get(NAME)
    assert found is not None
    assert 10_000 <= found.age < 12_000


async def test_a_claim_asked_again_after_its_settlement_is_not_won(world: World) -> None:
    """A holder that has settled is dead: its claim, asked again late, is shown the answer instead."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0))
    found = await world.store.claim(NAME, claim)
    assert isinstance(found, Found)
    assert found.record.state is State.COMPLETED


async def test_an_answer_comes_back_byte_for_byte(world: World) -> None:
    """What is kept is what is found: status, field lines with any octets, body with any octets."""
    claim = a_claim()
    answer = an_answer(bytes(range(256)) * 17, status=404)
    await world.store.claim(NAME, claim)
    assert await world.store.settle(NAME, records.keep(claim, answer, wall=5)) is Done.DONE
    found = await world.store.claim(NAME, a_claim())
    assert isinstance(found, Found)
    assert found.record.answer == answer
    assert found.record.status == 404


async def test_keep_is_done_once_and_says_so_again(world: World) -> None:
    """A Keep whose reply was lost is sent again, and is told that it is done."""
    claim = a_claim()
    keep = records.keep(claim, an_answer(), wall=0)
    await world.store.claim(NAME, claim)
    assert await world.store.settle(NAME, keep) is Done.DONE
    assert await world.store.settle(NAME, keep) is Done.DONE


async def test_keep_rewrites_the_life_to_the_window(world: World) -> None:
    """An answer is replayed for its window from the moment it was stored, and no longer."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.pass_time(50_000)
    await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0))
    await world.pass_time(WINDOW - 5_000)
    assert await world.store.get(NAME) is not None
    await world.pass_time(6_000)
    assert await world.store.get(NAME) is None
    assert await world.store.claim(NAME, a_claim()) is Done.WON


async def test_a_keep_by_another_holder_changes_nothing(world: World) -> None:
    """Whoever does not hold the key is shown who does."""
    mine, other = a_claim(), a_claim()
    await world.store.claim(NAME, mine)
    found = await world.store.settle(NAME, records.keep(other, an_answer(), wall=0))
    assert isinstance(found, Found)
    assert found.record.holder == mine.holder
    assert found.record.state is State.IN_FLIGHT


async def test_a_late_answer_is_kept_from_in_doubt(world: World) -> None:
    """In doubt is no grave: an answer that still comes is kept by its holder."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    hold = records.hold(claim, doubt=Doubt.TIMEOUT, status=504, wall=0)
    assert await world.store.settle(NAME, hold) is Done.DONE
    found = await world.store.get(NAME)
    assert found is not None
    assert (found.record.state, found.record.doubt, found.record.status) == (State.IN_DOUBT, Doubt.TIMEOUT, 504)
    assert await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0)) is Done.DONE


async def test_a_completed_record_is_never_held_or_released(world: World) -> None:
    """Nothing but an operator's word changes what is completed: not even its own holder's late Hold."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0))
    for late in (records.hold(claim, doubt=Doubt.LOST, status=0, wall=0), records.release(claim, elapsed=0, wall=0)):
        result = await world.store.settle(NAME, late)
        assert isinstance(result, Found)
        assert result.record.state is State.COMPLETED


async def test_release_frees_the_key(world: World) -> None:
    """After a Release the key is absent, and the next request claims it."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    release = records.release(claim, elapsed=0, wall=0)
    assert await world.store.settle(NAME, release) is Done.DONE
    assert await world.store.settle(NAME, release) is Done.GONE
    assert await world.store.claim(NAME, a_claim()) is Done.WON


async def test_a_late_release_does_not_free_somebody_elses_claim(world: World) -> None:
    """A Release that was on its way while the key was freed and claimed anew touches nothing."""
    first, second = a_claim(), a_claim()
    release = records.release(first, elapsed=0, wall=0)
    await world.store.claim(NAME, first)
    await world.store.settle(NAME, release)
    await world.store.claim(NAME, second)
    late = await world.store.settle(NAME, release)
    assert isinstance(late, Found)
    found = await world.store.get(NAME)
    assert found is not None
    assert found.record.holder == second.holder


async def test_what_the_store_forgot_it_is_told_again(world: World) -> None:
    """A Keep or Hold that finds nothing is written: the store forgot, the gate did not."""
    claim = a_claim()
    assert await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0)) is Done.FORGOT
    found = await world.store.get(NAME)
    assert found is not None
    assert found.record.answer == an_answer()
    other = b"o" * 43
    assert await world.store.settle(other, records.hold(claim, doubt=Doubt.LOST, status=0, wall=0)) is Done.FORGOT
    assert await world.store.get(other) is not None


async def test_a_tombstone_has_no_body(world: World) -> None:
    """A tombstone says that it ran and how it ended, and nothing more."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.store.settle(NAME, records.keep(claim, replace(an_answer(), body=None), wall=0))
    found = await world.store.get(NAME)
    assert found is not None
    assert found.record.answer is not None
    assert found.record.answer.body is None


async def test_an_empty_body_is_not_a_tombstone(world: World) -> None:
    """A response without a body is an answer like any other."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.store.settle(NAME, records.keep(claim, an_answer(b"", status=204), wall=0))
    found = await world.store.get(NAME)
    assert found is not None
    assert found.record.answer is not None
    assert found.record.answer.body == b""


async def test_takeover_needs_the_state_and_the_holder_that_were_seen(world: World) -> None:
    """A key in doubt is taken over by one; whoever saw it before is told to look again."""
    first = a_claim()
    await world.store.claim(NAME, first)
    await world.store.settle(NAME, records.hold(first, doubt=Doubt.LOST, status=0, wall=0))
    stamp = Stamp(State.IN_DOUBT, first.holder, 5_000)
    takers = [
        records.takeover(first, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
        for _ in range(20)
    ]
    results = await asyncio.gather(*(world.store.compare_and_swap(NAME, stamp, taker) for taker in takers))
    assert results.count(Done.WON) == 1
    winner = takers[results.index(Done.WON)]
    found = await world.store.get(NAME)
    assert found is not None
    assert (found.record.holder, found.record.attempt) == (winner.holder, 2)


async def test_a_takeover_asked_again_is_won(world: World) -> None:
    """A takeover whose reply was lost is asked again, and is won; its life goes on. Once settled, it is not."""
    first = a_claim()
    await world.store.claim(NAME, first)
    await world.store.settle(NAME, records.hold(first, doubt=Doubt.LOST, status=0, wall=0))
    stamp = Stamp(State.IN_DOUBT, first.holder, 5_000)
    taker = records.takeover(first, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
    assert await world.store.compare_and_swap(NAME, stamp, taker) is Done.WON
    await world.pass_time(10_000)
    assert await world.store.compare_and_swap(NAME, stamp, taker) is Done.WON
    found = await world.store.get(NAME)
    assert found is not None
    assert found.record == taker
    assert 10_000 <= found.age < 12_000
    await world.store.settle(NAME, records.keep(taker, an_answer(), wall=0))
    assert isinstance(await world.store.compare_and_swap(NAME, stamp, taker), Found)


async def test_a_keep_asked_again_keeps_its_life(world: World) -> None:
    """The answer is written again under the life that is left: its window does not begin anew."""
    claim = a_claim()
    keep = records.keep(claim, an_answer(), wall=0)
    await world.store.claim(NAME, claim)
    await world.store.settle(NAME, keep)
    await world.pass_time(10_000)
    assert await world.store.settle(NAME, keep) is Done.DONE
    found = await world.store.get(NAME)
    assert found is not None
    assert 10_000 <= found.age < 12_000


async def test_a_completed_record_is_never_taken_over(world: World) -> None:
    """State in the compare: the holder still stands, but its record has been completed meanwhile."""
    first = a_claim()
    await world.store.claim(NAME, first)
    stamp = Stamp(State.IN_FLIGHT, first.holder, 0)
    await world.pass_time(LEASE + 6_000)
    await world.store.settle(NAME, records.keep(first, an_answer(), wall=0))
    taker = records.takeover(first, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
    result = await world.store.compare_and_swap(NAME, stamp, taker)
    assert isinstance(result, Found)
    assert result.record.state is State.COMPLETED


@pytest.mark.parametrize(("passed", "taken"), [(LEASE - 1_000, False), (LEASE + 3_000, False), (LEASE + 5_500, True)])
async def test_the_lapse_is_tested_in_the_store(world: World, passed: int, taken: bool) -> None:
    """A claim in flight is taken over only 5 s past its lease, by the store's clock, whatever the taker thinks."""
    first = a_claim()
    await world.store.claim(NAME, first)
    await world.pass_time(passed)
    taker = records.takeover(first, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
    result = await world.store.compare_and_swap(NAME, Stamp(State.IN_FLIGHT, first.holder, 5_000), taker)
    assert (result is Done.WON) is taken


async def test_a_released_takeover_goes_back_in_doubt(world: World) -> None:
    """A second run that never was leaves the doubt of the first: Release of attempt 2 does not free the key."""
    first = a_claim()
    await world.store.claim(NAME, first)
    await world.store.settle(NAME, records.hold(first, doubt=Doubt.LOST, status=0, wall=0))
    taker = records.takeover(first, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
    await world.store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, first.holder, 5_000), taker)
    assert await world.store.settle(NAME, records.release(taker, elapsed=1_000, wall=0)) is Done.DONE
    found = await world.store.get(NAME)
    assert found is not None
    assert (found.record.state, found.record.attempt) == (State.IN_DOUBT, 1)


async def test_an_operator_forgets_what_was_shown(world: World) -> None:
    """`forget` names the state and holder that it saw; a record that has moved on stays."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    assert isinstance(await world.store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, claim.holder), None), Found)
    assert await world.store.compare_and_swap(NAME, Stamp(State.IN_FLIGHT, claim.holder), None) is Done.WON
    assert await world.store.compare_and_swap(NAME, Stamp(State.IN_FLIGHT, claim.holder), None) is Done.GONE


async def test_a_claim_lives_for_its_lease_and_its_doubt(world: World) -> None:
    """A window shorter than the exchange cannot lose a claim; a lapsed claim is remembered as doubt."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.pass_time(LEASE + 500_000)
    found = await world.store.get(NAME)
    assert found is not None
    assert found.record.lapsed(found.age)
    await world.pass_time(101_000)
    assert await world.store.get(NAME) is None

"""The counterexamples of docs/model, played on every store.

Each rule of the protocol is a switch of the model; without it Spin finds an order of steps that breaks a promise. Here
such an order meets the real stores with the rule in place. What test_contract.py shows already is not repeated; which
test stands for which rule is told in docs/model/README.md.
"""

from __future__ import annotations

import pytest

from gateway.core import record as records
from gateway.core.decide import Forward, Refuse, Wait, resolve
from gateway.core.policy import OnDoubt, Policy
from gateway.core.problem import Problem
from gateway.core.record import Done, Doubt, Found, Record, Settlement, Stamp, State
from tests.stores.worlds import (
    DOUBT_WINDOW,
    FINGERPRINT,
    LEASE,
    WINDOW,
    World,
    a_claim,
    a_holder,
    an_answer,
    every_store,
)

pytestmark = every_store
NAME = b"n" * 43
MARGIN = 5_000
LIFE = LEASE + DOUBT_WINDOW


def a_takeover(seen: Record) -> Record:
    return records.takeover(seen, holder=a_holder(), route="r", lease=LEASE, life=LIFE, window=WINDOW, wall=0)


def held(claim: Record) -> Settlement:
    return records.hold(claim, doubt=Doubt.LOST, status=0, wall=0)


def released(claim: Record) -> Settlement:
    return records.release(claim, elapsed=0, wall=0)


def kept(claim: Record, body: bytes = b"{}") -> Settlement:
    return records.keep(claim, an_answer(body), wall=0)


async def shown(world: World) -> Found:
    found = await world.store.get(NAME)
    assert found is not None
    return found


async def put_in_doubt(world: World) -> Record:
    first = a_claim()
    await world.store.claim(NAME, first)
    await world.store.settle(NAME, held(first))
    return (await shown(world)).record


async def test_a_release_of_an_earlier_holder_leaves_the_claim_of_the_next(world: World) -> None:
    """FRESH_HOLDER. A claim's reply is lost and another's is found; the key is freed and claimed again by the same
    gate, under a fresh holder; only then does the first claim's release arrive. It touches nothing."""
    other, first, second = a_claim(), a_claim(), a_claim()
    await world.store.claim(NAME, other)
    assert isinstance(await world.store.claim(NAME, first), Found)
    await world.store.settle(NAME, released(other))
    assert await world.store.claim(NAME, second) is Done.WON
    assert isinstance(await world.store.settle(NAME, released(first)), Found)
    third = await world.store.claim(NAME, a_claim())
    assert isinstance(third, Found)
    assert third.record == second


async def test_a_keep_that_lands_late_does_not_move_what_is_completed(world: World) -> None:
    """SETTLE_STATE. The connection of a Keep breaks, it is sent again and is done; a minute later the first one
    lands. The answer ends when it would have ended."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    assert await world.store.settle(NAME, kept(claim)) is Done.DONE
    await world.pass_time(60_000)
    assert await world.store.settle(NAME, kept(claim)) is Done.DONE
    assert 60_000 <= (await shown(world)).age < 62_000
    await world.pass_time(WINDOW - 60_000)
    assert await world.store.get(NAME) is None


async def test_a_takeover_of_a_doubt_that_is_anothers_by_now_is_refused(world: World) -> None:
    """TAKE_HOLDER. Two saw one doubt; the first took it over and left a doubt of its own. The state is what the
    second saw, the holder is not: it must look again, and finds that attempt 2 has been."""
    seen = await put_in_doubt(world)
    stamp = Stamp(State.IN_DOUBT, seen.holder, MARGIN)
    sooner, later = a_takeover(seen), a_takeover(seen)
    assert await world.store.compare_and_swap(NAME, stamp, sooner) is Done.WON
    await world.store.settle(NAME, held(sooner))
    result = await world.store.compare_and_swap(NAME, stamp, later)
    assert isinstance(result, Found)
    assert (result.record.state, result.record.holder, result.record.attempt) == (State.IN_DOUBT, sooner.holder, 2)


async def test_every_store_remembers_how_many_have_run(world: World) -> None:
    """MAX_ATTEMPTS. Attempt 1 is in doubt and may be taken over; so is attempt 2, and may not."""
    policy = Policy(on_doubt=OnDoubt.RERUN, max_attempts=2)
    seen = await put_in_doubt(world)
    assert isinstance(resolve(await shown(world), FINGERPRINT, policy), Forward)
    second = a_takeover(seen)
    await world.store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, seen.holder, MARGIN), second)
    await world.store.settle(NAME, held(second))
    verdict = resolve(await shown(world), FINGERPRINT, policy)
    assert isinstance(verdict, Refuse)
    assert verdict.refusal.problem is Problem.IN_DOUBT


async def test_a_claim_past_its_lease_is_a_doubt(world: World) -> None:
    """LAPSE. Its owner is dead and nobody writes anything: who asks within the lease waits, and after it is told
    the doubt."""
    await world.store.claim(NAME, a_claim())
    await world.pass_time(LEASE - 5_000)
    found = await world.store.claim(NAME, a_claim())
    assert isinstance(found, Found)
    assert isinstance(resolve(found, FINGERPRINT, Policy()), Wait)
    await world.pass_time(5_000)
    found = await world.store.claim(NAME, a_claim())
    assert isinstance(found, Found)
    assert isinstance(resolve(found, FINGERPRINT, Policy()), Refuse)


async def test_a_claim_that_was_given_up_frees_its_key_although_it_has_lapsed(world: World) -> None:
    """GIVE_UP. A claim was made and its gate never heard; the store was away until the claim's lease was over. Its
    release still frees the key: no byte was sent, so there is no doubt."""
    orphan = a_claim()
    await world.store.claim(NAME, orphan)
    await world.pass_time(LEASE + 1_000)
    assert await world.store.settle(NAME, released(orphan)) is Done.DONE
    assert await world.store.get(NAME) is None
    assert await world.store.claim(NAME, a_claim()) is Done.WON


async def test_a_claim_that_lands_after_its_release_goes_with_the_next_one(world: World) -> None:
    """REPEAT. Asked twice, won, released unused; then the first asking lands, and is nobody's. The release that is
    repeated takes it away, and finds nothing where nothing has landed."""
    claim = a_claim()
    assert await world.store.claim(NAME, claim) is Done.WON
    assert await world.store.settle(NAME, released(claim)) is Done.DONE
    assert await world.store.claim(NAME, claim) is Done.WON
    assert await world.store.settle(NAME, released(claim)) is Done.DONE
    assert await world.store.settle(NAME, released(claim)) is Done.GONE
    assert await world.store.claim(NAME, a_claim()) is Done.WON


async def test_a_takeover_that_lands_after_its_release_goes_back_in_doubt_once(world: World) -> None:
    """REPEAT, RELEASE_GOES_BACK. A takeover was given up and lands late: its release puts attempt 1 back in doubt;
    the same release again changes neither the attempt nor the life."""
    seen = await put_in_doubt(world)
    taker = a_takeover(seen)
    assert isinstance(await world.store.settle(NAME, released(taker)), Found)
    assert await world.store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, seen.holder, MARGIN), taker) is Done.WON
    assert await world.store.settle(NAME, released(taker)) is Done.DONE
    await world.pass_time(10_000)
    assert await world.store.settle(NAME, released(taker)) is Done.DONE
    found = await shown(world)
    assert (found.record.state, found.record.attempt) == (State.IN_DOUBT, 1)
    assert 10_000 <= found.age < 12_000


async def test_an_answer_is_kept_although_its_claim_has_lapsed(world: World) -> None:
    """SETTLE_ON. The store was away at the Keep and for longer than the lease; meanwhile the key was a doubt. The
    Keep that is sent on is made, and the doubt is over."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.pass_time(LEASE + 60_000)
    assert await world.store.settle(NAME, kept(claim)) is Done.DONE
    assert (await shown(world)).record.answer == an_answer(b"{}")


async def test_what_may_have_run_is_not_run_again(world: World) -> None:
    """HOLD_UNKNOWN, OUTLIVES_ITS_CLIENT. Sent, and no answer: held, not released. Nobody claims it anew."""
    await put_in_doubt(world)
    found = await world.store.claim(NAME, a_claim())
    assert isinstance(found, Found)
    assert isinstance(resolve(found, FINGERPRINT, Policy()), Refuse)


async def test_an_owner_that_was_taken_over_is_shown_the_answer_that_stands(world: World) -> None:
    """ANSWER_FROM_RECORD. The owner stood still past its lease, the second run was kept; then the first one's answer
    comes. It is not written, and its owner is shown what to tell its client."""
    first = a_claim()
    await world.store.claim(NAME, first)
    await world.pass_time(LEASE + MARGIN + 1_000)
    second = a_takeover(first)
    assert await world.store.compare_and_swap(NAME, Stamp(State.IN_FLIGHT, first.holder, MARGIN), second) is Done.WON
    await world.store.settle(NAME, kept(second, b"second"))
    stands = await world.store.settle(NAME, kept(first, b"first"))
    assert isinstance(stands, Found)
    assert stands.record.answer == an_answer(b"second")
    assert (await shown(world)).record.answer == an_answer(b"second")


@pytest.mark.parametrize("doubt", ["written", "lapsed"])
async def test_a_takeover_begins_a_lease_of_its_own(world: World, doubt: str) -> None:
    """FRESH_LIFE. Taken over long after the first claim: its age counts from the takeover, so nobody takes it over
    again while its owner is at work."""
    seen = a_claim()
    await world.store.claim(NAME, seen)
    if doubt == "written":
        await world.store.settle(NAME, held(seen))
    await world.pass_time(LEASE + MARGIN + 60_000)
    seen = (await shown(world)).record
    second = a_takeover(seen)
    assert await world.store.compare_and_swap(NAME, Stamp(seen.state, seen.holder, MARGIN), second) is Done.WON
    assert 0 <= (await shown(world)).age < 2_000
    await world.pass_time(LEASE - 5_000)
    third = await world.store.compare_and_swap(NAME, Stamp(State.IN_FLIGHT, second.holder, MARGIN), a_takeover(second))
    assert isinstance(third, Found)
    assert (third.record.holder, third.record.attempt) == (second.holder, 2)

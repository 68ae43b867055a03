"""`on_doubt: rerun`: a duplicate may take over a key in doubt, one at a time, and only so often."""

from __future__ import annotations

import pytest

from gateway.core.policy import OnDoubt
from gateway.core.record import Done, State

from .upstream import Plan, answers, breaks, never, refuses, streams, unreachable
from .virtual import virtual
from .wire import DROPPED, LOST, Fault, again, late, slow
from .world import LEASE, Client, Process, World

MARGIN = 5.0


def rerun(**changes: object) -> World:
    """A world whose route accepts a second run."""
    world = World(on_doubt=OnDoubt.RERUN, **changes)
    world.most_effects = world.policy.max_attempts
    return world


def sends_and_stands_still(process: Process, seconds: float) -> Client:
    """A client sends a request, which is forwarded; then the process stands still, before the answer comes."""
    client = process.send()
    process.world.loop.call_later(0.005, process.pause, seconds)
    return client


@virtual
async def test_a_duplicate_takes_a_doubt_over() -> None:
    """The second run is the service's attempt 2; its answer is stored, and is everybody's."""
    async with rerun() as world:
        gate = world.process()
        world.service.will(breaks(), answers(after=1))
        assert await gate.send().answer() == "502 upstream-lost"
        second, third = gate.send(), gate.send()
        assert await second.answer() == "201 stored: run 2"
        assert await third.answer() == "201 replayed: run 2"
        assert world.service.numbers == [1, 2]
        assert await world.state() == "completed #2"
        assert second.account is not None
        assert (second.account.verdict, second.account.attempt) == ("forward", 2)


@virtual
async def test_one_takes_over_among_many() -> None:
    """A hundred duplicates in five processes at once: one second run, and its answer for all."""
    async with rerun() as world:
        await world.put_in_doubt()
        world.service.will(answers(after=1))
        gates = [world.process(latency=0.0005 + 0.0001 * n) for n in range(5)]
        crowds = [gate.crowd(20) for gate in gates]
        said = sorted([await client.answer() for crowd in crowds for client in crowd])
        assert said == ["201 replayed: run 1"] * 99 + ["201 stored: run 1"]
        assert world.service.numbers == [2]


@virtual
async def test_first_sight_is_remembered() -> None:
    """A takeover is a fresh claim with a fresh life, of a key that was first seen long ago."""
    async with rerun() as world:
        await world.put_in_doubt()
        seen = (await world.record()).first_seen
        await world.passes(100)
        gate = world.process()
        world.service.will(answers(after=2))
        client = gate.send()
        await world.passes(1)
        claim = await world.record()
        assert (claim.state, claim.attempt, claim.first_seen) == (State.IN_FLIGHT, 2, seen)
        assert claim.life == world.policy.claim_life
        await client.answer()
        assert (await world.record()).first_seen == seen


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@virtual
async def test_no_more_attempts_than_allowed(most: int) -> None:
    """Each doubt may be taken over until `max_attempts` have run; then it is a doubt for everybody."""
    async with rerun(max_attempts=most) as world:
        gate = world.process()
        world.service.will(breaks())
        for _ in range(most):
            assert await gate.send().answer() == "502 upstream-lost"
        for _ in range(3):
            assert await gate.send().answer() == "409 in-doubt"
        assert world.service.numbers == list(range(1, most + 1))


@virtual
async def test_those_who_wait_for_a_doubt_take_it_over() -> None:
    """In doubt: as `on_doubt` says, for whoever is attached as for whoever comes later. One of them takes over."""
    async with rerun() as world:
        here, there = world.process(), world.process()
        world.service.will(breaks(after=2), answers(after=1))
        first = here.send()
        await world.passes(1)
        crowds = [*here.crowd(20), *there.crowd(20)]
        assert await first.answer() == "502 upstream-lost"
        said = sorted([await client.answer() for client in crowds])
        assert said == ["201 replayed: run 2"] * 39 + ["201 stored: run 2"]
        assert len(here.wire.told("claim")) == len(there.wire.told("claim")) == 1


@virtual
async def test_a_doubt_that_the_store_has_not_heard_of_is_not_taken_over() -> None:
    """While the Hold is not acknowledged there is nothing to take: whoever comes is told the doubt, at once, and
    nothing spins. Once it is, the next one takes over."""
    async with rerun() as world:
        gate = world.process()
        gate.wire.next("settle", *[DROPPED] * 6)
        world.service.will(breaks(after=1), answers())
        first, waiter = gate.send(), gate.send()
        assert await first.answer() == "502 upstream-lost"
        assert await waiter.answer() == "409 in-doubt"
        assert await gate.send().answer() == "409 in-doubt"
        await world.passes(10)
        assert await gate.send().answer() == "201 stored: run 2"


@virtual
async def test_a_lapsed_claim_is_taken_over_after_the_margin() -> None:
    """Its owner is dead. Past the lease it is a doubt; 5 s past it, by the store's clock, it may be taken, and
    whoever comes between waits for that."""
    async with rerun() as world:
        here, there = world.process(), world.process()
        there.send()
        await world.passes(0.005)
        there.halt()
        await world.passes(LEASE - 1)
        assert await world.state() == "in flight #1"
        await world.passes(2)
        client = here.send()
        await world.passes(MARGIN - 1.5)
        assert client.said == ""
        assert await client.answer() == "201 stored: run 2"
        assert client.at == pytest.approx(LEASE + MARGIN, abs=0.5)
        assert world.service.numbers == [1, 2]


@virtual
async def test_an_owner_that_stood_still_is_superseded() -> None:
    """Paused past its lease, and taken over: its own answer is nobody's. Its client and its waiters are answered
    from the record."""
    async with rerun() as world:
        here, there = world.process(), world.process()
        first = sends_and_stands_still(here, LEASE + 10)
        await world.passes(1)
        waiter = here.send()
        await world.passes(LEASE + MARGIN)
        assert await there.send().answer() == "201 stored: run 2"
        assert await first.answer() == "201 replayed: run 2"
        await world.passes(1)
        assert waiter.said in ("201 replayed: run 2", "409 in-flight")
        assert here.observer.alarms == ["another holder's record stands where a claim of ours was settled"]
        assert await world.state() == "completed #2"


@virtual
async def test_an_owner_that_was_superseded_by_a_flight_tells_the_doubt() -> None:
    """The takeover is still out when the first owner comes back: its client is told the doubt; its waiters wait on."""
    async with rerun() as world:
        here, there = world.process(), world.process()
        world.service.will(answers(), answers(after=8))
        first = sends_and_stands_still(here, LEASE + 7)
        await world.passes(LEASE + MARGIN + 0.5)
        other = there.send()
        await world.passes(0.5)
        waiter = here.send()
        assert await first.answer() == "409 in-doubt"
        assert await other.answer() == "201 stored: run 2"
        assert await waiter.answer() == "201 replayed: run 2"


@virtual
async def test_a_superseded_stream_is_not_begun() -> None:
    """Its gate stood still past its lease, and finds another's record: a byte of it was never given."""
    async with rerun() as world:
        here, there = world.process(), world.process()
        world.service.will(streams(seconds=100), answers())
        first = sends_and_stands_still(here, LEASE + 10)
        await world.passes(LEASE + MARGIN + 1)
        assert await there.send().answer() == "201 stored: run 2"
        assert await first.answer() == "201 replayed: run 2"
        assert first.received == b""


@virtual
async def test_a_stream_that_still_runs_here_is_not_run_again_here() -> None:
    """It goes on in doubt. A second run is another gate's to take, for all that it knows: then the first stream is cut
    off at its end, so that no two clients hold different answers."""
    async with rerun() as world:
        here, there = world.process(), world.process()
        world.service.will(streams(chunks=10, seconds=60), answers())
        first = here.send()
        await world.passes(30)
        assert await here.send().answer() == "409 in-doubt"
        assert world.service.numbers == [1]
        assert await there.send().answer() == "201 stored: run 2"
        await world.passes(31)
        assert first.ended is False
        assert here.observer.alarms == ["another holder's record stands where a claim of ours was settled"]
        assert await here.send().answer() == "201 replayed: run 2"


@pytest.mark.parametrize("away", [0.5, 50.0])
@virtual
async def test_a_stream_whose_hold_was_not_acknowledged_is_not_run_again_here(away: float) -> None:
    """The store was away when the exchange had to end. Whether or not it is back before the stream ends, nothing else
    runs here meanwhile, and the end of the stream is kept."""
    async with rerun() as world:
        gate = world.process()
        world.service.will(streams(chunks=10, seconds=40), answers())
        first = gate.send()
        await world.passes(14)
        gate.wire.cut(away + 1)
        await world.passes(10)
        assert await gate.send().answer() == "409 in-doubt"
        await world.passes(18)
        assert first.ended is True
        assert await gate.send().answer() == "409 response-not-kept"
        await world.passes(30)
        assert await world.state() == "completed #1"
        assert await gate.send().answer() == "409 response-not-kept"
        assert world.service.numbers == [1]
        assert gate.observer.alarms == []


@virtual
async def test_a_late_stream_whose_keep_was_not_acknowledged_is_not_run_again_here() -> None:
    """The store is away when the stream ends: its gate knows that it ran, and says so until the store has it."""
    async with rerun() as world:
        gate = world.process()
        world.service.will(streams(chunks=10, seconds=40), answers())
        first = gate.send()
        await world.passes(30)
        assert await world.state() == "in doubt #1"
        gate.wire.next("settle", DROPPED, DROPPED, DROPPED, DROPPED)
        await world.passes(12)
        assert first.ended is True
        assert await gate.send().answer() == "409 response-not-kept"
        await world.passes(60)
        assert await world.state() == "completed #1"
        assert await gate.send().answer() == "409 response-not-kept"
        assert world.service.numbers == [1]
        assert gate.observer.alarms == []


NOTHING_RAN = [
    (unreachable(), "409 in-doubt"),
    (refuses(429), "429 in-doubt: run 1"),
    (refuses(500, (b"Idempotency-Outcome", b"no-effect")), "500 in-doubt: run 1"),
]


@pytest.mark.parametrize(("plan", "said"), NOTHING_RAN, ids=["unreachable", "status", "declared"])
@virtual
async def test_a_takeover_that_did_nothing_leaves_the_doubt(plan: Plan, said: str) -> None:
    """Release of attempt 2: the first run is still in doubt, and the client is not told that nothing ran. The next
    duplicate tries again, as attempt 2."""
    async with rerun() as world:
        await world.put_in_doubt()
        gate = world.process()
        world.service.will(plan, answers())
        client, waiter = gate.send(), gate.send()
        assert await client.answer() == said
        assert await waiter.answer() == said
        assert await world.state() == "in doubt #1"
        assert (await gate.send().answer()).startswith("201 stored")
        assert await world.state() == "completed #2"
        assert set(world.service.numbers) == {2}


@virtual
async def test_a_takeover_that_did_nothing_keeps_what_is_left_of_the_doubt() -> None:
    """Released, it goes back with its remaining life: a service that is down does not shorten or free the doubt."""
    async with rerun(doubt_window=30_000) as world:
        await world.put_in_doubt()
        gate = world.process()
        world.service.will(unreachable(after=3))
        for _ in range(12):
            await gate.send().answer()
            found = await world.look()
            assert found is not None
            assert (found.record.state, found.record.attempt) == (State.IN_DOUBT, 1)
            assert found.left == pytest.approx(world.policy.claim_life - 3_000, abs=50)
            await world.passes(5)
        assert world.service.ran == []


@pytest.mark.parametrize("fault", [LOST, DROPPED, late(0.01)], ids=["made", "not made", "made late"])
@virtual
async def test_a_takeover_whose_reply_was_lost_is_asked_again(fault: Fault) -> None:
    """Found in flight under its own holder, it is won; the service gets it once."""
    async with rerun() as world:
        await world.put_in_doubt()
        gate = world.process()
        gate.wire.next("compare_and_swap", fault)
        assert await gate.send().answer() == "201 stored: run 1"
        assert world.service.numbers == [2]


@virtual
async def test_a_takeover_whose_replies_are_all_lost_is_given_up() -> None:
    """Made, and nobody heard: 503, and in the background it goes back in doubt, there to be taken."""
    async with rerun() as world:
        await world.put_in_doubt()
        gate = world.process()
        gate.wire.next("compare_and_swap", *[LOST] * 500)
        assert await gate.send().answer() == "503 store-unavailable"
        await world.passes(0.1)
        assert await world.state() == "in doubt #1"
        gate.wire._faults.clear()
        assert await gate.send().answer() == "201 stored: run 1"


@pytest.mark.parametrize("delay", [0.5, 3.0, 8.0])
@virtual
async def test_a_takeover_that_lands_late_goes_back_in_doubt(delay: float) -> None:
    """Given up, and landed afterwards: nobody runs it, and by lease + 1 s it is the doubt that it was."""
    async with rerun() as world:
        await world.put_in_doubt()
        gate = world.process()
        gate.wire.next("compare_and_swap", late(3 + delay), *[DROPPED] * 500)
        assert await gate.send().answer() == "503 store-unavailable"
        await world.passes(delay + 0.01)
        assert await world.state() == "in flight #2"
        await world.passes(LEASE + 1 - world.time)
        assert await world.state() == "in doubt #1"
        assert world.service.ran == []


@virtual
async def test_a_takeover_delivered_again_changes_nothing() -> None:
    """What it saw does not stand any more: neither the flight that it began nor its answer is touched."""
    async with rerun() as world:
        await world.put_in_doubt()
        gate = world.process()
        gate.wire.next("compare_and_swap", again(2))
        world.service.will(answers(after=1))
        assert await gate.send().answer() == "201 stored: run 1"
        await world.passes(3)
        assert await world.state() == "completed #2"
        assert gate.wire.told("compare_and_swap")[0] is Done.WON
        assert gate.wire.told("compare_and_swap")[1] is not Done.WON


@virtual
async def test_a_doubt_that_ends_under_a_takeover_is_claimed_anew() -> None:
    """Its window is over between the look and the takeover: nothing is there, so it is a first run again."""
    async with rerun() as world:
        await world.put_in_doubt()
        await world.passes(world.policy.doubt_window / 1000 - 0.1)
        gate = world.process()
        gate.wire.next("compare_and_swap", slow(0.5))
        assert await gate.send().answer() == "201 stored: run 1"
        assert world.service.numbers == [1]


@virtual
async def test_a_takeover_of_what_another_has_taken_over_is_refused() -> None:
    """In doubt again, but of another's second run: whoever saw the first doubt looks again, and there is no third."""
    async with rerun() as world:
        await world.put_in_doubt()
        here, there = world.process(), world.process()
        world.service.will(breaks())
        here.wire.next("compare_and_swap", slow(2))
        late_one = here.send()
        await world.passes(0.5)
        assert await there.send().answer() == "502 upstream-lost"
        assert await world.state() == "in doubt #2"
        assert await late_one.answer() == "409 in-doubt"
        assert world.service.numbers == [2]


@virtual
async def test_the_first_owners_late_answer_beats_a_takeover() -> None:
    """The doubt is answered by its holder before the takeover lands: nobody runs, everybody is given the answer."""
    async with rerun() as world:
        here, there = world.process(), world.process()
        first = sends_and_stands_still(here, LEASE + MARGIN + 1)
        await world.passes(LEASE + MARGIN + 0.7)
        there.wire.next("compare_and_swap", slow(1))
        other = there.send()
        assert await first.answer() == "201 stored: run 1"
        assert await other.answer() == "201 replayed: run 1"
        assert world.service.numbers == [1]


@virtual
async def test_a_takeover_with_a_slow_service_is_held_again() -> None:
    """Attempt 2 has a lease of its own, and ends before it; then there is no third."""
    async with rerun() as world:
        await world.put_in_doubt()
        gate = world.process()
        world.service.will(never())
        assert await gate.send().answer() == "504 upstream-timeout"
        await world.passes(6)
        assert await world.state() == "in doubt #2"
        assert await gate.send().answer() == "409 in-doubt"


@virtual
async def test_under_hold_nothing_is_ever_taken_over() -> None:
    """The default: a doubt is a doubt until its window ends, whoever comes and however often."""
    async with World() as world:
        await world.put_in_doubt()
        gates = [world.process() for _ in range(3)]
        clients: list[Client] = []
        while world.time < world.policy.doubt_window / 1000 - 1:
            clients += [gate.send() for gate in gates]
            await world.passes(60)
        assert {client.said for client in clients} == {"409 in-doubt"}
        assert world.service.attempts == []

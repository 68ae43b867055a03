"""`store_down: forward`: while the store is away requests run, labelled and counted; what they did is remembered."""

from __future__ import annotations

import pytest

from gateway.core.limit import Limit
from gateway.core.policy import StoreDown
from gateway.core.problem import Refusal
from gateway.ports import RecordUnreadable

from .upstream import Plan, answers, breaks, never, refuses, unreachable
from .virtual import virtual
from .wire import FULL, LOST, Fault, late
from .world import LEASE, World

WAIT = 3.0


def forwarding(**changes: object) -> World:
    return World(store_down=StoreDown.FORWARD, **changes)


@virtual
async def test_a_request_runs_labelled_and_counted() -> None:
    """It waits as long as the policy says, then runs; the label and the count say that nothing guarded it."""
    async with forwarding() as world:
        gate = world.process()
        gate.wire.cut()
        client = gate.send()
        assert await client.answer() == "201 unprotected: run 1"
        assert client.at == pytest.approx(WAIT, abs=0.3)
        assert client.account is not None
        assert client.account.unprotected == "store_down"
        assert [ran.key for ran in world.service.ran] == [b"k"]
        await world.passes(LEASE)
        assert await world.state() == "absent", "the store stayed away: nothing is remembered"


@pytest.mark.parametrize(
    ("plan", "told"),
    [(breaks(), "502 upstream-lost (unprotected)"), (never(), "504 upstream-timeout (unprotected)")],
    ids=["lost", "no answer"],
)
@virtual
async def test_what_is_lost_is_labelled_too(plan: Plan, told: str) -> None:
    """Nobody knows whether it ran, and nothing will remember it: the refusal says so, and promises nothing."""
    async with forwarding() as world:
        gate = world.process()
        gate.wire.cut()
        world.service.will(plan)
        client = gate.send()
        assert await client.answer() == told
        refusal = client.reply_given
        assert isinstance(refusal, Refusal)
        assert "it may run again" in refusal.detail
        assert "will not be run again" not in refusal.detail
        await world.passes(LEASE)


@virtual
async def test_a_duplicate_here_attaches_all_the_same() -> None:
    """The local table needs no store: one run for a crowd in one process."""
    async with forwarding() as world:
        gate = world.process()
        gate.wire.cut()
        world.service.will(answers(after=2))
        crowd = gate.crowd(20)
        assert {await client.answer() for client in crowd} == {"201 unprotected: run 1"}
        assert [ran.key for ran in world.service.ran] == [b"k"]


@pytest.mark.parametrize("away", [WAIT + 0.5, WAIT + 5, LEASE - 3])
@virtual
async def test_it_is_remembered_if_the_store_returns_within_the_lease(away: float) -> None:
    """From then on duplicates replay, here and elsewhere; that nothing was claimed is no loss of the store's."""
    async with forwarding() as world:
        gate, other = world.process(), world.process()
        gate.wire.cut(away)
        assert await gate.send().answer() == "201 unprotected: run 1"
        await world.passes(away + 2.5 - world.time)
        assert await world.state() == "completed #1"
        assert await gate.send().answer() == "201 replayed: run 1"
        assert await other.send().answer() == "201 replayed: run 1"
        assert gate.observer.forgot == 0
        assert gate.observer.alarms == []


@virtual
async def test_past_its_lease_it_is_not_written_any_more() -> None:
    """Whoever took the key since may have run it: what is told so late would only hide that."""
    async with forwarding() as world:
        world.most_effects = 2
        gate = world.process()
        gate.wire.cut(LEASE + 2)
        assert await gate.send().answer() == "201 unprotected: run 1"
        await world.passes(LEASE + 5 - world.time)
        assert await world.state() == "absent"
        assert await gate.send().answer() == "201 stored: run 2"


@virtual
async def test_a_claim_that_was_made_unheard_is_the_same_claim() -> None:
    """Every reply is lost, every command done: it runs under that claim's holder, and Keep completes it."""
    async with forwarding() as world:
        gate, other = world.process(), world.process()
        gate.wire.next("claim", *[LOST] * 500)
        assert await gate.send().answer() == "201 unprotected: run 1"
        assert await world.state() == "completed #1"
        assert await other.send().answer() == "201 replayed: run 1"


@virtual
async def test_what_did_not_run_leaves_nothing_behind() -> None:
    """The service refused the connection: released, also a claim that lands after that."""
    async with forwarding() as world:
        gate = world.process()
        world.service.will(unreachable())
        gate.wire.next("claim", late(WAIT + 0.5), *[Fault(dropped=True)] * 500)
        assert await gate.send().answer() == "502 upstream-unreachable"
        await world.passes(0.6)
        assert await world.state() == "in flight #1"
        await world.passes(5)
        assert await world.state() == "absent"


@virtual
async def test_what_the_service_did_not_run_is_released() -> None:
    """The service answered that nothing ran. That is true without a store too, so the label says it."""
    async with forwarding() as world:
        gate = world.process()
        gate.wire.cut()
        world.service.will(refuses(500, (b"Idempotency-Outcome", b"no-effect")))
        assert await gate.send().answer() == "500 released: run 1"
        assert await gate.send().answer() == "500 released: run 1"
        gate.wire.mend()
        await world.passes(LEASE)


@virtual
async def test_a_full_store_is_one_that_is_away() -> None:
    """No room for a claim: it runs unprotected, and the answer is written where that fits."""
    async with forwarding() as world:
        gate = world.process()
        gate.wire.next("claim", FULL)
        assert await gate.send().answer() == "201 unprotected: run 1"
        assert await world.state() == "completed #1"


@virtual
async def test_a_key_that_is_known_to_be_taken_is_not_run_over() -> None:
    """Another gate's request was seen in flight before the store went away: running now would be running twice."""
    async with forwarding() as world:
        gate, other = world.process(), world.process()
        world.service.will(answers(after=8))
        first = other.send()
        await world.passes(0.1)
        second = gate.send()
        await world.passes(0.5)
        gate.wire.cut()
        assert await second.answer() == "503 store-unavailable"
        assert await first.answer() == "201 stored: run 1"
        gate.wire.mend()


@virtual
async def test_a_doubt_that_is_known_is_not_run_over() -> None:
    """The takeover is a claim on a key that may have run: without the store's word it is not made."""
    from gateway.core.policy import OnDoubt

    async with forwarding(on_doubt=OnDoubt.RERUN) as world:
        gate = world.process()
        await world.put_in_doubt()
        gate.wire.next("compare_and_swap", *[Fault(dropped=True)] * 500)
        assert await gate.send().answer() == "503 store-unavailable"
        assert world.service.ran == []


@virtual
async def test_a_record_that_cannot_be_read_is_not_run_over() -> None:
    """It was written by a newer version, say: the store is there, and holds the key."""
    async with forwarding() as world:
        gate = world.process()
        gate.wire.next("claim", *[Fault(raises=RecordUnreadable("a record of version 9"))] * 500)
        assert await gate.send().answer() == "503 store-unavailable"
        assert world.service.ran == []


@virtual
async def test_whoever_ran_it_meanwhile_has_the_word() -> None:
    """Two gates, one of which had the store: both ran, as the policy accepts, and both clients hold one answer."""
    async with forwarding() as world:
        world.most_effects = 2
        gate, other = world.process(), world.process()
        world.service.will(answers(after=1), Plan())
        gate.wire.cut(WAIT + 0.5)
        client = gate.send()
        await world.passes(WAIT + 0.3)
        assert await other.send().answer() == "201 stored: run 2"
        assert await client.answer() == "201 replayed: run 2"


# ── The responses that wait for the store ─────────────────────────────────────────────────────────


@virtual
async def test_a_response_that_waits_for_the_store_counts_in_buffers() -> None:
    """It is in memory until its Keep is acknowledged, so it counts whether or not it fits."""
    async with World() as world:
        gate = world.process(buffers=100)
        world.service.will(answers(body=bytes(5000), after=1))
        client = gate.send()
        await world.passes(0.5)
        gate.wire.cut()
        assert (await client.answer()).startswith("201 not-stored")
        assert gate.budget.taken == 5000
        assert not gate.budget.has_room(1)
        gate.wire.mend()
        await world.passes(5)
        assert await world.state() == "completed #1"
        assert gate.budget.taken == 0
        assert gate.observer.limits == []


@virtual
async def test_an_unprotected_response_without_room_is_not_stored_later() -> None:
    """What waits for an absent store is bounded: past it a response is dropped, counted, and reported once."""
    async with forwarding() as world:
        gate = world.process(buffers=8000)
        gate.wire.cut()
        world.service.will(*[answers(body=bytes(5000))] * 3)
        clients = [gate.send(world.ask(key)) for key in ("one", "two", "three")]
        assert {(await client.answer()).partition(":")[0] for client in clients} == {"201 unprotected"}
        assert gate.budget.taken == 5000
        assert gate.observer.limits == [Limit.BUFFERS] * 2
        assert len([what for what in gate.observer.alarms if "no room" in what]) == 1
        gate.wire.mend()
        await world.passes(5)
        assert sorted([await world.state(key) for key in ("one", "two", "three")]) == [
            "absent",
            "absent",
            "completed #1",
        ]
        assert gate.budget.taken == 0


@virtual
async def test_an_unprotected_response_with_room_again_ends_the_alarm() -> None:
    """The next time that there is no room is reported again."""
    async with forwarding() as world:
        gate = world.process(buffers=8000)
        for outage in (1, 2):
            gate.wire.cut()
            world.service.will(*[answers(body=bytes(5000))] * 2)
            clients = [gate.send(world.ask(f"{key} of {outage}")) for key in ("one", "two")]
            assert {(await client.answer()).partition(":")[0] for client in clients} == {"201 unprotected"}
            assert len([what for what in gate.observer.alarms if "no room" in what]) == outage
            gate.wire.mend()
            await world.passes(5)


@virtual
async def test_a_dropped_response_leaves_its_key_free() -> None:
    """The key is not remembered, so the next request with it runs again, as the label of the first one says."""
    async with forwarding() as world:
        world.most_effects = 2
        gate = world.process(buffers=100)
        gate.wire.cut()
        world.service.will(answers(body=bytes(5000)), answers())
        assert (await gate.send().answer()).startswith("201 unprotected")
        await world.passes(1)
        assert len(gate.driver) == 0
        assert await gate.send().answer() == "201 unprotected: run 2"
        gate.wire.mend()
        await world.passes(LEASE)

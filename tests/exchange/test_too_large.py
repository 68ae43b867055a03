"""A store that refuses one record for good: the request ran, its response is not kept, and every duplicate gets that
answer, here and elsewhere. Nothing is retried for ever."""

from __future__ import annotations

import asyncio

from gateway.core.decide import Reason
from gateway.core.policy import StoreDown
from gateway.core.record import Done, Kind

from .upstream import answers
from .virtual import virtual
from .wire import LOST
from .world import LEASE, Process, World

#: Bytes that have room for a claim, and for a Keep without a body; not for one with this response.
LARGEST = 400
BODY = b"x" * 1000
NOT_KEPT = "409 response-not-kept"


def limited(world: World) -> Process:
    """A process whose store takes no large record, and a service whose next response is one."""
    process = world.process()
    process.wire.largest = LARGEST
    world.service.will(answers(body=BODY, after=1))
    return process


@virtual
async def test_the_response_is_given_and_a_duplicate_is_told_the_truth() -> None:
    """The client has the whole response, labelled `not-kept`; a duplicate here or elsewhere is 409 response-not-kept at
    once; one alarm names the size and the limit. The store is told nothing a second time."""
    async with World() as world:
        gateway, other = limited(world), world.process()
        client = gateway.send()
        assert (await client.answer()).startswith("201 not-kept: xxx")
        assert client.account is not None
        assert (client.account.settlement, client.account.reason) == (Kind.KEEP, Reason.OVER_LIMIT)
        assert await gateway.send().answer() == NOT_KEPT
        assert await other.send().answer() == NOT_KEPT
        assert world.service.numbers == [1]
        (alarm,) = gateway.observer.alarms
        assert "a response was not kept" in alarm
        assert gateway.wire.told("settle") == [Done.DONE], "nothing is retried"
        await world.passes(LEASE)
        assert await other.send().answer() == NOT_KEPT


@virtual
async def test_a_response_whose_fields_are_large() -> None:
    """A response over `max_response` is kept without its body, and its fields alone are over the store's limit: they
    are left out as well."""
    async with World(max_response=10) as world:
        gateway, other = world.process(), world.process()
        gateway.wire.largest = LARGEST
        world.service.will(answers(201, (b"X-Long", BODY), body=b"x" * 20))
        assert (await gateway.send().answer()).startswith("201 not-kept")
        await world.passes(1)
        assert await other.send().answer() == NOT_KEPT
        assert world.service.numbers == [1]


@virtual
async def test_the_waiters_of_this_process_get_what_later_duplicates_get() -> None:
    """Duplicates that wait for the first request are 409 response-not-kept as well: no two duplicates get different
    answers."""
    async with World() as world:
        gateway = limited(world)
        first, *others = gateway.crowd(10)
        assert (await first.answer()).startswith("201 not-kept: xxx")
        assert {await other.answer() for other in others} == {NOT_KEPT}


@virtual
async def test_a_waiter_elsewhere() -> None:
    """A duplicate that waits in another process gets the same."""
    async with World() as world:
        gateway, other = limited(world), world.process()
        client = gateway.send()
        await world.passes(0.5)
        waiter = other.send()
        assert (await client.answer()).startswith("201 not-kept: xxx")
        assert await waiter.answer() == NOT_KEPT


@virtual
async def test_a_refusal_that_the_background_meets() -> None:
    """The store does not confirm the Keep; when it answers again it refuses the record for good. It is settled without
    its body at once, and the settlement ends."""
    async with World() as world:
        gateway, other = world.process(), world.process()
        world.service.will(answers(body=BODY))
        gateway.wire.next("settle", LOST)
        gateway.wire.largest = 0
        client = gateway.send()
        world.loop.call_later(0.0009, lambda: setattr(gateway.wire, "largest", LARGEST))
        answer = await client.answer()
        await world.passes(5)
        assert await world.state() == "completed #1"
        assert answer.startswith(("201 not-stored: xxx", "201 not-kept: xxx"))
        assert len(gateway.wire.told("settle")) <= 2
        assert world.service.numbers == [1]
        await other.send().answer()
        assert world.service.numbers == [1]


@virtual
async def test_the_store_is_away_when_the_short_record_is_sent() -> None:
    """The record is refused for good, and then the store goes away: the short one is sent in the background until the
    store has answered. The client's response is labelled `not-stored` until then."""
    async with World() as world:
        gateway, other = limited(world), world.process()
        gateway.wire.next("settle", LOST, LOST)
        client = gateway.send()
        assert (await client.answer()).startswith("201 not-stored: xxx")
        await world.passes(5)
        assert await other.send().answer() == NOT_KEPT
        assert world.service.numbers == [1]


@virtual
async def test_what_ran_without_the_store() -> None:
    """`store_down: forward`: the store is back before the response, and refuses its record. It is remembered that the
    request ran."""
    async with World(store_down=StoreDown.FORWARD) as world:
        gateway, other = world.process(), world.process()
        gateway.wire.largest = LARGEST
        world.service.will(answers(body=BODY, after=3))
        gateway.wire.cut(4)
        assert (await gateway.send().answer()).startswith("201 unprotected: xxx")
        assert await other.send().answer() == NOT_KEPT
        assert world.service.numbers == [1]


@virtual
async def test_a_claim_that_is_refused_for_good() -> None:
    """Not even the claim is taken: 503 at once, without waiting for the store, and nothing runs."""
    async with World() as world:
        gateway = world.process()
        gateway.wire.largest = 10
        client = gateway.send()
        assert await client.answer() == "503 store-unavailable"
        assert client.at < 0.1
        assert client.problem.detail.startswith("The idempotency store refuses the record of this key")
        assert world.service.ran == []


@virtual
async def test_one_alarm_a_minute() -> None:
    """A route whose responses are all refused raises one alarm a minute, not one for each of them."""
    async with World() as world:
        gateway = world.process()
        gateway.wire.largest = LARGEST
        for number in range(5):
            world.service.will(answers(body=BODY))
            assert (await gateway.send(world.ask(f"k{number}")).answer()).startswith("201 not-kept")
        assert len(gateway.observer.alarms) == 1
        await asyncio.sleep(61)
        world.service.will(answers(body=BODY))
        await gateway.send(world.ask("later")).answer()
        assert len(gateway.observer.alarms) == 2

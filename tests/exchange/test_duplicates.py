"""Duplicates in the process that runs the first: they attach, cost the store nothing, and get its answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.problem import Label
from gateway.core.reply import Again
from gateway.ports import DuplicateKind

from .upstream import answers, breaks, never, refuses, streams, unreachable
from .virtual import virtual
from .wire import slow
from .world import POLICY, Client, World, ask


@virtual
async def test_a_duplicate_attaches_and_gets_the_answer() -> None:
    """Fifty duplicates of a request in flight: one effect, one answer, and the store is asked twice in all."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=2))
        first = gate.send()
        await world.passes(1)
        crowd = gate.crowd(50)
        assert await first.answer() == "201 stored: run 1"
        assert {await client.answer() for client in crowd} == {"201 replayed: run 1"}
        assert {client.at for client in crowd} == {first.at}
        assert len(gate.wire.landed) == 2
        assert {account.duplicate for account in gate.observer.accounts[1:]} == {DuplicateKind.ATTACHED}
        assert gate.observer.accounts[-1].age == pytest.approx(2, abs=0.1)


@virtual
async def test_those_who_come_before_the_claim_is_answered_wait_too() -> None:
    """The flight is listed from before the claim is sent: a burst in one instant makes one claim."""
    async with World() as world:
        gate = world.process()
        crowd = gate.crowd(100)
        said = sorted([await client.answer() for client in crowd])
        assert said == ["201 replayed: run 1"] * 99 + ["201 stored: run 1"]
        assert [command.verb for command in gate.wire.landed] == ["claim", "settle"]


@virtual
async def test_a_replay_is_marked_and_the_first_is_not() -> None:
    """Attached or later, a duplicate is given what was remembered: less Date and Set-Cookie, marked as replayed."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(201, (b"Date", b"now"), (b"Set-Cookie", b"s=1"), (b"Location", b"/1"), after=1))
        first = gate.send()
        attached = gate.send()
        await first.answer()
        for duplicate in (attached, gate.send()):
            await duplicate.answer()
            reply = duplicate.reply_given
            assert isinstance(reply, Again)
            assert (reply.answer.head, reply.replayed) == (b"Location: /1\r\n", True)


@virtual
async def test_after_a_504_a_retry_attaches_to_the_late_answer() -> None:
    """The client was told 504 and asks again: it gets the answer that came after all."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=13))
        assert await gate.send().answer() == "504 upstream-timeout"
        retry = gate.send()
        assert await retry.answer() == "201 replayed: run 1"
        assert retry.at == pytest.approx(13, abs=0.1)


@virtual
async def test_after_a_504_a_retry_hears_of_the_doubt() -> None:
    """Nothing came within `late` either: the retry, attached, is told that nobody knows."""
    async with World() as world:
        gate = world.process()
        world.service.will(never())
        assert await gate.send().answer() == "504 upstream-timeout"
        retry = gate.send()
        assert await retry.answer() == "409 in-doubt"
        assert retry.at == pytest.approx(15, abs=0.1)
        assert retry.problem.retry_after is None


@virtual
async def test_another_request_under_the_key_is_a_mismatch_while_it_is_in_flight() -> None:
    """The fingerprint is compared first, in every state: at once, and without a wait for the first's answer."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=5))
        first = gate.send()
        await world.passes(1)
        other = gate.send(world.ask(body=b'{"amount":2}'))
        thief = gate.send(world.ask(fields=[(b"Authorization", b"Bearer other")]))
        assert await other.answer() == "422 key-reused"
        assert "body" in other.problem.detail
        assert await thief.answer() == "422 credentials-differ"
        assert world.time == pytest.approx(1, abs=0.01)
        assert await first.answer() == "201 stored: run 1"
        assert [account.duplicate for account in gate.observer.accounts[:2]] == [
            DuplicateKind.KEY_REUSED,
            DuplicateKind.CREDENTIALS_DIFFER,
        ]


@virtual
async def test_a_mismatch_that_came_before_the_claim_hears_of_it_with_the_claim() -> None:
    """While it is not known whose claim stands nobody is judged; then each is, by its own fingerprint."""
    async with World() as world:
        gate, elsewhere = world.process(), world.process()
        world.service.will(answers(after=3))
        elsewhere.send(world.ask(body=b"theirs"))
        await world.passes(1)
        gate.wire.next("claim", slow(1))
        leader, same = gate.send(world.ask(body=b"mine")), gate.send(world.ask(body=b"theirs"))
        await world.passes(0.5)
        assert (leader.said, same.said) == ("", "")
        assert await leader.answer() == "422 key-reused"
        assert await same.answer() == "201 replayed: run 1"


@virtual
async def test_a_mismatch_with_a_completed_key() -> None:
    """After a 4xx the detail says that a corrected request needs a new key."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(422))
        await gate.send().answer()
        other = gate.send(world.ask(body=b"corrected"))
        assert await other.answer() == "422 key-reused"
        assert "answered 422" in other.problem.detail
        assert "new key" in other.problem.detail
        thief = gate.send(world.ask(fields=[(b"Authorization", b"Bearer other")]))
        assert await thief.answer() == "422 credentials-differ"
        assert "422" not in thief.problem.more


@virtual
async def test_a_changed_recipe_is_no_mismatch_and_no_run() -> None:
    """What was digested otherwise cannot be compared: 409 policy-changed, never 422 and never a run."""
    async with World() as world:
        gate = world.process()
        await gate.send().answer()
        changed = replace(POLICY, recipe=replace(POLICY.recipe, headers=(b"x-currency",)))
        assert await gate.send(ask(policy=changed)).answer() == "409 policy-changed"
        assert world.service.effects[b"k"] == 1


@virtual
async def test_a_cap_on_the_waiters_of_a_key() -> None:
    """Past the cap a duplicate is told 409 at once, and may come again; those who wait are not disturbed."""
    async with World() as world:
        gate = world.process(per_key=10)
        world.service.will(answers(after=2))
        gate.send()
        await world.passes(0.5)
        crowd = gate.crowd(15)
        await world.passes(0.1)
        said = [client.said for client in crowd]
        assert said == [""] * 10 + ["409 in-flight"] * 5
        crowd[0].leave()
        await world.passes(0.1)
        next_one = gate.send()
        await world.passes(2)
        assert next_one.said == "201 replayed: run 1"
        assert [client.said for client in crowd[1:10]] == ["201 replayed: run 1"] * 9


@virtual
async def test_the_cap_counts_those_who_came_before_the_claim() -> None:
    """A burst in one instant is held to the cap as well."""
    async with World() as world:
        gate = world.process(per_key=10)
        crowd = gate.crowd(31)
        await world.passes(1)
        assert [client.said for client in crowd] == (
            ["201 stored: run 1"] + ["201 replayed: run 1"] * 10 + ["409 in-flight"] * 20
        )


@virtual
async def test_a_cap_on_all_waiters() -> None:
    """The waiters of all keys together have a cap too."""
    async with World() as world:
        gate = world.process(in_all=7)
        world.service.will(answers(after=2))
        keys = [world.ask(f"key-{n}") for n in range(3)]
        for asked in keys:
            gate.send(asked)
        await world.passes(0.5)
        crowd = [gate.send(asked) for asked in keys for _ in range(4)]
        await world.passes(0.1)
        assert sum(client.said == "409 in-flight" for client in crowd) == 5
        assert gate.driver.waiters() == {"payments": 7}
        assert gate.driver.in_flight() == {"payments": 3}


@pytest.mark.parametrize(("left", "advice"), [(12.0, 2), (1.2, 1), (0.4, 1)])
@virtual
async def test_when_the_wait_is_over(left: float, advice: int) -> None:
    """A duplicate waits for `wait`, then hears 409 in-flight, with advice: what is left of the lease, 2 s at most."""
    async with World(wait=500, late=0, timeout=20_000, margin=500) as world:
        gate = world.process()
        world.service.will(never())
        gate.send()
        await world.passes(world.policy.lease / 1000 - left - 0.5)
        late = gate.send()
        began = world.time
        if left < 0.5:
            # The exchange ends sooner than the wait.
            assert await late.answer() == "409 in-doubt"
            return
        assert await late.answer() == "409 in-flight"
        assert late.at == pytest.approx(began + 0.5, abs=0.01)
        assert late.problem.retry_after == advice


@virtual
async def test_a_wait_of_nothing() -> None:
    """`wait: 0`: a duplicate of a flight is told so at once, here and in another process."""
    async with World(wait=0) as world:
        gate, elsewhere = world.process(), world.process()
        world.service.will(answers(after=2))
        first = gate.send()
        await world.passes(1)
        duplicates = [gate.send(), elsewhere.send()]
        await world.passes(0.1)
        assert [client.said for client in duplicates] == ["409 in-flight"] * 2
        assert await first.answer() == "201 stored: run 1"
        assert await gate.send().answer() == "201 replayed: run 1"


@virtual
async def test_a_waiter_may_leave_at_any_time() -> None:
    """Whoever waits owns nothing: it leaves, and neither the flight nor the others notice."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=2))
        first = gate.send()
        crowd = gate.crowd(4)
        await world.passes(1)
        crowd[1].leave()
        await world.passes(0.01)
        assert gate.driver.waiting == 3
        assert await first.answer() == "201 stored: run 1"
        await world.passes(0.01)
        assert [client.said for client in crowd] == [
            "201 replayed: run 1", "", "201 replayed: run 1", "201 replayed: run 1",
        ]  # fmt: skip


@virtual
async def test_a_waiter_that_had_left_before_it_attached() -> None:
    """Its client was gone when its task began: it does not wait, and is counted once."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=2))
        gate.send()
        gone = Client("gone")
        gone.leave()
        await world.passes(1)
        gate.send(client=gone)
        await world.passes(0.01)
        assert gate.driver.waiting == 0


@virtual
async def test_the_leaders_client_leaves_and_the_others_are_answered() -> None:
    """The exchange is not the client's: whoever is attached gets the answer all the same."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=2))
        first, duplicate = gate.send(), gate.send()
        await world.passes(1)
        first.leave()
        assert await duplicate.answer() == "201 replayed: run 1"
        assert world.service.effects[b"k"] == 1


@virtual
async def test_a_release_is_given_to_those_who_wait() -> None:
    """Attached to an exchange that frees the key, a waiter gets *that* answer, unmarked; the next one runs anew."""
    async with World() as world:
        gate = world.process()
        world.service.will(refuses(429, (b"Retry-After", b"9"), after=1), answers())
        first = gate.send()
        crowd = gate.crowd(20)
        assert await first.answer() == "429 released: run 1"
        for client in crowd:
            assert await client.answer() == "429 released: run 1"
            reply = client.reply_given
            assert isinstance(reply, Again)
            assert (reply.label, reply.replayed, reply.expires) == (Label.RELEASED, False, None)
            assert reply.answer.head == b"Retry-After: 9\r\n"
        assert world.service.numbers == [1]
        assert await gate.send().answer() == "201 stored: run 2"


@virtual
async def test_a_released_answer_carries_to_waiters_what_a_replay_carries() -> None:
    """A waiter is a duplicate: what the route takes out of replays it is not given of a released answer either."""
    async with World(drop_headers=frozenset((b"x-session",))) as world:
        gate = world.process()
        world.service.will(refuses(429, (b"X-Session", b"secret"), (b"Set-Cookie", b"s=1"), after=1))
        gate.send()
        waiter = gate.send()
        await waiter.answer()
        reply = waiter.reply_given
        assert isinstance(reply, Again)
        assert reply.answer.head == b""


@virtual
async def test_an_unreachable_service_is_told_to_those_who_wait() -> None:
    """One connection is tried, everybody hears that nothing was run: no herd."""
    async with World() as world:
        gate = world.process()
        world.service.will(unreachable(after=1))
        crowd = gate.crowd(30)
        await world.passes(2)
        assert {client.said for client in crowd} == {"502 upstream-unreachable"}
        assert len(world.service.attempts) == 1
        assert await world.state() == "absent"


@virtual
async def test_a_doubt_is_told_to_those_who_wait() -> None:
    """The first client hears what came; whoever waits hears that nobody knows."""
    async with World() as world:
        gate = world.process()
        world.service.will(breaks(after=1))
        first, waiter = gate.send(), gate.send()
        assert await first.answer() == "502 upstream-lost"
        assert await waiter.answer() == "409 in-doubt"
        assert waiter.account is not None
        assert waiter.account.duplicate is DuplicateKind.IN_DOUBT
        assert await gate.send().answer() == "409 in-doubt"


@virtual
async def test_a_doubtful_status_goes_to_the_first_client_only() -> None:
    """A bare 503 is shown to whoever asked; a duplicate is told the doubt, and what the service last said."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(503, after=1))
        first, waiter = gate.send(), gate.send()
        assert await first.answer() == "503 in-doubt: run 1"
        assert await waiter.answer() == "409 in-doubt"
        assert "503" in waiter.problem.detail


@virtual
async def test_a_tombstone_is_told_to_those_who_wait() -> None:
    """An answer that is not kept cannot be given twice: it ran, it ended so, read the result elsewhere."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(after=1, seconds=2))
        first, waiter = gate.send(), gate.send()
        assert await first.answer() == "200 not-kept, live"
        assert await waiter.answer() == "409 response-not-kept"
        assert "200" in waiter.problem.detail
        assert waiter.account is not None
        assert waiter.account.duplicate is DuplicateKind.NOT_KEPT


@virtual
async def test_after_a_released_stream_one_waiter_runs_anew() -> None:
    """A stream that frees the key is its first client's alone: one of those who wait leads on, for all others."""
    async with World() as world:
        gate = world.process()
        world.service.will(replace(streams(status=429, after=1), effect=False), answers(after=1))
        first = gate.send()
        crowd = gate.crowd(30)
        assert await first.answer() == "429 released, live"
        said = sorted([await client.answer() for client in crowd])
        assert said == ["201 replayed: run 2"] * 29 + ["201 stored: run 2"]
        assert world.service.numbers == [1, 1]


@virtual
async def test_two_duplicates_in_one_instant_with_the_end() -> None:
    """A duplicate that arrives in the instant of the answer gets it from the table or from the store."""
    async with World() as world:
        gate = world.process(latency=0.0)
        world.service.will(answers(after=1))
        first = gate.send()
        clients = []

        def one_more() -> None:
            clients.append(gate.send())

        for n in range(-5, 6):
            world.loop.call_later(1.001 + n * 1e-6, one_more)
        await first.answer()
        await world.passes(1)
        assert {client.said for client in clients} == {"201 replayed: run 1"}

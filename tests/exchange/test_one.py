"""The life of one request: claimed, forwarded once, settled, and only then answered."""

from __future__ import annotations

import pytest

from gateway.core.decide import Reason
from gateway.core.message import Field
from gateway.core.outcome import LostReason, NotSentReason
from gateway.core.record import Doubt, Kind, State
from gateway.core.reply import Again, First

from .upstream import Plan, answers, breaks, never, refuses, streams, unreachable
from .virtual import virtual
from .wire import slow
from .world import LEASE, World

RETRY_AFTER: Field = (b"Retry-After", b"7")


@virtual
async def test_an_answer_is_stored_and_then_given() -> None:
    """Forwarded once, with the attempt's number; stored before it is spoken; replayed to whoever comes later."""
    async with World() as world:
        gate = world.process()
        first = gate.send()
        assert await first.answer() == "201 stored: run 1"
        assert await world.state() == "completed #1"
        later = gate.send()
        assert await later.answer() == "201 replayed: run 1"
        assert world.service.numbers == [1]
        assert [account.verdict for account in gate.observer.accounts] == ["forward", "replay"]
        assert gate.observer.accounts[0].settlement is Kind.KEEP


@virtual
async def test_nothing_is_said_before_the_store_has_it() -> None:
    """Remember, then speak: while the Keep is under way the client hears nothing."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("settle", slow(3))
        client = gate.send()
        await world.passes(2.9)
        assert client.said == ""
        assert await world.state() == "in flight #1"
        assert await client.answer() == "201 stored: run 1"
        assert await world.state() == "completed #1"


@virtual
async def test_first_seen_and_expiry_are_told_as_they_are_stored() -> None:
    """The first client and a replay say the same instants: when the key came, and when its window ends."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=4))
        first = gate.send()
        await first.answer()
        await world.passes(100)
        later = gate.send()
        await later.answer()
        one, other = first.reply_given, later.reply_given
        assert isinstance(one, First)
        assert isinstance(other, Again)
        assert (one.first_seen, one.expires) == (other.first_seen, other.expires)
        assert one.expires is not None
        assert one.expires - one.first_seen == pytest.approx(world.policy.window + 4_000, abs=10)


SETTLED = [
    # what the service does, what its client is told, what the record becomes, what a duplicate is told
    (answers(200), "200 stored: run 1", "completed #1", "200 replayed: run 1"),
    (answers(404), "404 stored: run 1", "completed #1", "404 replayed: run 1"),
    (answers(500), "500 stored: run 1", "completed #1", "500 replayed: run 1"),
    (answers(204, body=b""), "204 stored: ", "completed #1", "204 replayed: "),
    (refuses(429), "429 released: run 1", "absent", None),
    (refuses(503, RETRY_AFTER), "503 released: run 1", "absent", None),
    (answers(503), "503 in-doubt: run 1", "in doubt #1", "409 in-doubt"),
    (answers(504), "504 in-doubt: run 1", "in doubt #1", "409 in-doubt"),
    (refuses(500, (b"Idempotency-Outcome", b"no-effect")), "500 released: run 1", "absent", None),
    (answers(429, (b"Idempotency-Outcome", b"keep")), "429 stored: run 1", "completed #1", "429 replayed: run 1"),
    (answers(200, (b"Idempotency-Outcome", b"unknown")), "200 in-doubt: run 1", "in doubt #1", "409 in-doubt"),
    (breaks(), "502 upstream-lost", "in doubt #1", "409 in-doubt"),
    (breaks(reason=LostReason.UPGRADED), "502 upstream-lost", "in doubt #1", "409 in-doubt"),
    (unreachable(), "502 upstream-unreachable", "absent", None),
    (unreachable(reason=NotSentReason.NO_CONNECTION), "503 overloaded (released)", "absent", None),
    (answers(200, closes=True), "200 not-kept: run 1", "completed #1", "409 response-not-kept"),
    (answers(200, body=b"x" * 2000), "200 not-kept, live", "completed #1", "409 response-not-kept"),
    (answers(200, body=b"x" * 2000, drip=2.0), "200 not-kept, live", "completed #1", "409 response-not-kept"),
    (streams(), "200 not-kept, live", "completed #1", "409 response-not-kept"),
    (streams(cuts=True), "200 not-kept, live", "in doubt #1", "409 in-doubt"),
    (answers(200, body=b"x" * 2000, drip=2.0, cuts=True), "200 not-kept, live", "in doubt #1", "409 in-doubt"),
    (streams(seconds=30), "200 not-kept, live", "in doubt #1", "409 in-doubt"),
    (streams(status=502), "502 in-doubt, live", "in doubt #1", "409 in-doubt"),
]


@pytest.mark.parametrize(("plan", "first", "state", "duplicate"), SETTLED, ids=[row[1] for row in SETTLED])
@virtual
async def test_each_outcome_is_settled_as_the_table_says(
    plan: Plan, first: str, state: str, duplicate: str | None
) -> None:
    """Keep what may have had an effect, free what is declared not to have, hold what nobody knows."""
    async with World(max_response=1000) as world:
        gate = world.process()
        world.service.will(plan, answers(200))
        client = gate.send()
        assert await client.answer() == first
        if "live" in first:
            await world.passes(LEASE - 2)  # it ends within that, or its exchange does
        assert await world.state() == state
        later = gate.send()
        assert await later.answer() == (duplicate or f"200 stored: run {len(world.service.ran)}")


#: With `keep_only: 2xx`: what the service does, what its client gets, what the record becomes, what a duplicate gets.
ONLY_SUCCESS = [
    (answers(200), "200 stored: run 1", "completed #1", "200 replayed: run 1"),
    (answers(204, body=b""), "204 stored: ", "completed #1", "204 replayed: "),
    (answers(302), "302 released: run 1", "absent", None),
    (answers(404), "404 released: run 1", "absent", None),
    (answers(500), "500 released: run 1", "absent", None),
    (answers(503), "503 released: run 1", "absent", None),
    (answers(504), "504 released: run 1", "absent", None),
    (answers(500, (b"Idempotency-Outcome", b"keep")), "500 stored: run 1", "completed #1", "500 replayed: run 1"),
    (answers(500, (b"Idempotency-Outcome", b"unknown")), "500 in-doubt: run 1", "in doubt #1", "409 in-doubt"),
    (breaks(), "502 upstream-lost", "in doubt #1", "409 in-doubt"),
    (answers(500, closes=True), "500 released: run 1", "absent", None),
    (answers(200, body=b"x" * 2000), "200 not-kept, live", "completed #1", "409 response-not-kept"),
    (answers(500, body=b"x" * 2000), "500 released, live", "absent", None),
    (streams(status=502), "502 released, live", "absent", None),
]


@pytest.mark.parametrize(("plan", "first", "state", "duplicate"), ONLY_SUCCESS, ids=[row[1] for row in ONLY_SUCCESS])
@virtual
async def test_each_outcome_is_settled_as_keep_only_says(
    plan: Plan, first: str, state: str, duplicate: str | None
) -> None:
    """Whatever is no success frees the key, so that the next request runs. An unknown outcome is held as ever."""
    async with World(max_response=1000, keep_only=frozenset(range(200, 300))) as world:
        world.most_effects = 2
        gate = world.process()
        world.service.will(plan, answers(200))
        client = gate.send()
        assert await client.answer() == first
        if "live" in first:
            await world.passes(2)  # it ends within that
        assert await world.state() == state
        later = gate.send()
        assert await later.answer() == (duplicate or f"200 stored: run {len(world.service.ran)}")


@virtual
async def test_a_late_failure_frees_the_key_of_a_route_that_keeps_successes() -> None:
    """The client of the first got its 504; the answer that came late is complete, and no success: the next one runs."""
    async with World(keep_only=frozenset((200,))) as world:
        world.most_effects = 2
        gate = world.process()
        world.service.will(answers(500, after=12), answers(200))
        assert await gate.send().answer() == "504 upstream-timeout"
        await world.passes(5)
        assert await world.state() == "absent"
        assert await gate.send().answer() == "200 stored: run 2"


@virtual
async def test_a_stream_is_done_once_it_was_read_to_its_end() -> None:
    """Its client gets it as it comes. Until its end the key is in flight, and nobody is told that it is done; its end
    goes to the client once the store has acknowledged that it ran."""
    async with World(wait=500) as world:
        gate = world.process()
        world.service.will(streams(chunks=5, seconds=10))
        client = gate.send()
        assert await client.answer() == "200 not-kept, live"
        assert client.at == pytest.approx(0.01, abs=0.01)
        await world.passes(5)
        assert await world.state() == "in flight #1"
        assert await gate.send().answer() == "409 in-flight"
        assert client.received == b"data\n\n" * 3
        gate.wire.next("settle", slow(2))
        await world.passes(6)
        assert client.received == b"data\n\n" * 5
        assert client.ended is None
        await world.passes(2)
        assert client.ended is True
        assert await world.state() == "completed #1"
        assert await gate.send().answer() == "409 response-not-kept"


@pytest.mark.parametrize("plan", [streams(after=2, seconds=8), answers(200, after=2, drip=8.0, body=b"x" * 2000)])
@pytest.mark.parametrize("leaves", [1, 3, 9])
@virtual
async def test_a_stream_outlives_its_client(plan: Plan, leaves: float) -> None:
    """The client hangs up before the head, behind it, in the middle: the service is read to its end all the same, and
    the key is in flight until then."""
    async with World(max_response=1000, wait=0) as world:
        gate = world.process()
        world.service.will(plan)
        client = gate.send()
        await world.passes(leaves)
        client.leave()
        await world.passes(9.5 - leaves)
        stream = world.service.attempts[0].stream
        assert stream is not None
        assert not stream.over
        assert await gate.send().answer() == "409 in-flight"
        await world.passes(1)
        assert stream.abandoned is None
        assert await world.state() == "completed #1"
        assert await gate.send().answer() == "409 response-not-kept"


@virtual
async def test_a_stream_without_its_client_ends_with_its_exchange() -> None:
    """Nobody reads it, and it has not ended when the lease is about to: in doubt, and the service is let go."""
    async with World(wait=0) as world:
        gate = world.process()
        world.service.will(streams(seconds=1000))
        client = gate.send()
        await world.passes(1)
        client.leave()
        await world.passes(LEASE - 7)
        stream = world.service.attempts[0].stream
        assert stream is not None
        assert not stream.over
        await world.passes(2)
        assert stream.abandoned is LostReason.TIMEOUT
        assert await world.state() == "in doubt #1"
        assert client.account is not None
        assert (client.account.settlement, client.account.reason) == (Kind.HOLD, Reason.TIMEOUT)


@virtual
async def test_a_stream_of_minutes_goes_on_in_doubt_and_is_kept_at_its_end() -> None:
    """Its exchange has to end before its lease, and then the key is in doubt; its client reads on, and once the stream
    has ended after all a duplicate is told that it ran."""
    async with World() as world:
        here, there = world.process(), world.process()
        world.service.will(streams(chunks=100, seconds=200))
        client = here.send()
        await world.passes(LEASE)
        for gate in (here, there):
            assert await gate.send().answer() == "409 in-doubt"
        await world.passes(200 - LEASE - 1)
        assert await here.send().answer() == "409 in-doubt"
        await world.passes(2)
        assert client.received == b"data\n\n" * 100
        assert client.ended is True
        assert await world.state() == "completed #1"
        for gate in (here, there):
            assert await gate.send().answer() == "409 response-not-kept"


@pytest.mark.parametrize("ends", ["cut", "left", "stopped"])
@virtual
async def test_a_stream_of_minutes_that_does_not_end_stays_in_doubt(ends: str) -> None:
    """It breaks off, its client leaves, or the gate is stopped: the doubt stands, and the service is let go."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(chunks=100, seconds=200, cuts=ends == "cut"))
        client = gate.send()
        await world.passes(100)
        stream = world.service.attempts[0].stream
        assert stream is not None
        assert not stream.over
        if ends == "left":
            client.leave()
        elif ends == "stopped":
            gate.driver.stop()
        await world.passes(101 if ends == "cut" else 0.1)
        assert stream.over
        assert client.ended is (None if ends == "left" else False)
        assert await world.state() == "in doubt #1"
        assert await gate.send().answer() == "409 in-doubt"


@virtual
async def test_a_stream_that_is_stopped_is_in_doubt() -> None:
    """The gate's grace is over while it flows."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(chunks=100, seconds=10))
        client = gate.send()
        await world.passes(5)
        gate.driver.stop()
        await world.passes(0.1)
        assert client.ended is False
        assert await world.state() == "in doubt #1"
        assert client.account is not None
        assert client.account.reason is Reason.STOPPED


@pytest.mark.parametrize(("status", "state"), [(429, "absent"), (502, "in doubt #1")])
@virtual
async def test_a_stream_that_is_not_kept_for_its_status_outlives_its_client_too(status: int, state: str) -> None:
    """It is settled at its head, and read to its end without its client; past the lease nobody waits for that."""
    async with World() as world:
        gate = world.process()
        world.service.will(streams(status=status, seconds=10), streams(status=status, seconds=1000))
        for number, key in enumerate("ab"):
            client = gate.send(world.ask(key))
            await client.answer()
            assert await world.state(key) == state
            client.leave()
            stream = world.service.attempts[number].stream
            assert stream is not None
            await world.passes(9)
            assert not stream.over
            await world.passes(LEASE)
            assert stream.abandoned is (None if key == "a" else LostReason.TIMEOUT)


@virtual
async def test_a_slow_answer_is_told_as_504_and_kept_all_the_same() -> None:
    """At `timeout` the client hears 504; the exchange listens on for `late`, and what still comes is kept."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=12))
        client = gate.send()
        assert await client.answer() == "504 upstream-timeout"
        assert client.at == pytest.approx(10, abs=0.01)
        assert await world.state() == "in flight #1"
        await world.passes(3)
        assert await world.state() == "completed #1"
        assert await gate.send().answer() == "201 replayed: run 1"


@virtual
async def test_the_exchange_ends_before_its_lease_whatever_it_is_doing() -> None:
    """5 s before the lease's end the attempt is abandoned and the key held; nobody listens any more."""
    async with World() as world:
        gate = world.process()
        world.service.will(never())
        client = gate.send()
        await world.passes(LEASE - 5.1)
        assert client.said == "504 upstream-timeout"
        assert await world.state() == "in flight #1"
        await world.passes(0.2)
        assert await world.state() == "in doubt #1"
        assert (await world.record()).doubt is Doubt.TIMEOUT
        assert world.service.attempts[0].abandoned is LostReason.TIMEOUT
        assert await gate.send().answer() == "409 in-doubt"


@virtual
async def test_an_answer_that_drips_past_the_deadline_is_no_answer() -> None:
    """`timeout` runs to the last byte, `late` too: half an answer at the end of both is a doubt."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=8, drip=30))
        assert await gate.send().answer() == "504 upstream-timeout"
        await world.passes(10)
        assert await world.state() == "in doubt #1"


@virtual
async def test_a_claim_won_too_late_is_released_unused() -> None:
    """Past min(timeout, lease/2) nothing is sent any more: the store took that long, and the key is free."""
    async with World(store_wait=15_000) as world:
        gate = world.process()
        gate.wire.next("claim", slow(10.5))
        assert await gate.send().answer() == "503 overloaded (released)"
        assert world.service.attempts == []
        assert await world.state() == "absent"


@virtual
async def test_a_first_byte_that_cannot_be_sent_in_time_is_not_sent() -> None:
    """The queue for a connection is left at the same instant: half of a lease is for the answer."""
    async with World(timeout=30_000, late=0) as world:
        gate = world.process()
        world.service.will(answers(connect=18))
        client = gate.send()
        assert await client.answer() == "503 overloaded (released)"
        assert client.at == pytest.approx(world.policy.lease / 2000, abs=0.01)
        assert await world.state() == "absent"


@virtual
async def test_a_host_that_slept_sends_nothing_late() -> None:
    """Timers stand still while the host is suspended; the clock does not. The claim is seen to be too old."""
    async with World() as world:
        gate = world.process()
        gate.wire.next("claim", slow(1))
        client = gate.send()
        await world.passes(0.5)
        world.clock.asleep = 3600.0
        assert await client.answer() == "503 overloaded (released)"
        assert world.service.ran == []


@virtual
async def test_a_client_that_hangs_up_cancels_nothing() -> None:
    """The effect outlives the client: its answer is stored, for the retry."""
    async with World() as world:
        gate = world.process()
        world.service.will(answers(after=3))
        client = gate.send()
        await world.passes(1)
        client.leave()
        await world.passes(3)
        assert await world.state() == "completed #1"
        assert await gate.send().answer() == "201 replayed: run 1"
        assert client.replies == []


@virtual
async def test_a_stream_that_begins_after_the_504_is_read_to_its_end() -> None:
    """Its client has its answer; the rest is read for the effect's sake, and in doubt where it does not end in time."""
    async with World(wait=0) as world:
        gate = world.process()
        world.service.will(streams(after=12, seconds=2), streams(after=12, seconds=1000))
        assert await gate.send(world.ask("a")).answer() == "504 upstream-timeout"
        await world.passes(3)
        assert await world.state("a") == "in flight #1"
        await world.passes(2)
        assert await world.state("a") == "completed #1"
        assert await gate.send(world.ask("a")).answer() == "409 response-not-kept"
        assert await gate.send(world.ask("b")).answer() == "504 upstream-timeout"
        await world.passes(6)
        assert await gate.send(world.ask("b")).answer() == "409 in-doubt"


@virtual
async def test_keys_do_not_meet() -> None:
    """A thousand keys at once: each runs once, each is answered with its own."""
    async with World() as world:
        gate = world.process()
        clients = [gate.send(world.ask(f"key-{n}")) for n in range(1000)]
        await world.passes(1)
        assert all(client.said.startswith("201 stored") for client in clients)
        assert len({client.said for client in clients}) == 1000


@virtual
async def test_the_lives_of_a_record() -> None:
    """A claim lives for its lease and its doubt window; an answer for its window from the Keep; a doubt for
    its doubt window from the Hold."""
    async with World() as world:
        policy = world.policy
        gate = world.process()
        world.service.will(answers(after=5), breaks(after=5))
        for key, state, life in (("a", State.COMPLETED, policy.window), ("b", State.IN_DOUBT, policy.doubt_window)):
            client = gate.send(world.ask(key))
            await world.passes(1)
            claim = await world.record(key)
            assert (claim.state, claim.life) == (State.IN_FLIGHT, policy.lease + policy.doubt_window)
            assert (claim.lease, claim.window) == (policy.lease, policy.window)
            await client.answer()
            found = await world.look(key)
            assert found is not None
            assert (found.record.state, found.record.life) == (state, life)
            assert found.left == pytest.approx(life, abs=10)
            await world.passes(life / 1000 - 1)
            assert await world.look(key) is not None
            await world.passes(1.1)
            assert await world.look(key) is None

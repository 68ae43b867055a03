"""The port itself, on every store that can be had here: each call gets one reply, whatever becomes of the store or of
the other replies."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.core import record as records
from gateway.core.message import Answer
from gateway.core.record import Done, Doubt, Found, NewClaim, NewKeep, Record, Stamp, State
from gateway.ports import Nobody, Store, StoreAway
from gateway.stores.redis import store as store_module
from tests.edge.stand import eventually
from tests.fleet import Fleet
from tests.servers import RedisServer, binaries, preferred
from tests.stores.worlds import FINGERPRINT, World, a_claim, a_holder, a_new_claim, an_answer, every_store, redis_store

NAME = b"n" * 43
SOON = 10.0
REDIS = list(binaries())
#: Over the size from which a record in Redis is written over a connection of its own.
LARGE = bytes(600 << 10)


class Replies:
    """Collects what the replies of several calls receive, in the order in which it comes."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.each: list[list[Any]] = []

    def reply(self) -> Callable[[Any], None]:
        number, received = len(self.each), list[Any]()
        self.each.append(received)

        def receive(result: Any) -> None:
            self.order.append(number)
            received.append(result)

        return receive

    async def all(self) -> list[Any]:
        """Wait until each has received something; fail if one receives something more a moment later."""
        await eventually(lambda: all(self.each), "each call gets its reply", SOON)
        await asyncio.sleep(0.05)
        assert [len(received) for received in self.each] == [1] * len(self.each)
        return [received[0] for received in self.each]


async def replied(call: Callable[..., None], *arguments: Any) -> Any:
    """The only reply of one call."""
    replies = Replies()
    call(*arguments, replies.reply())
    return (await replies.all())[0]


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The alarms of all observers that do nothing else."""
    raised: list[str] = []
    monkeypatch.setattr(Nobody, "alarm", lambda self, what, **facts: raised.append(f"{what}: {facts}"))
    return raised


def hold(claim: Record) -> records.Settlement:
    return records.hold(claim, doubt=Doubt.LOST, status=0, wall=0)


def every_verb(port: Store, replies: Replies, name: bytes = NAME) -> list[Any]:
    """Call every verb at once, twice where it matters; return the replies that are due, None for a record."""
    new, other = a_new_claim(), a_claim()
    claim, keep = new.record, NewKeep(new, 201, b"A: b\r\n", b"body", 5)
    taker = records.takeover(claim, holder=a_holder(), route="r", lease=1, life=900_000, window=1, wall=0)
    port.get(name, replies.reply())
    port.claim(name, new, replies.reply())
    port.claim(name, other, replies.reply())
    port.settle(name, hold(claim), replies.reply())
    port.compare_and_swap(name, Stamp(State.IN_DOUBT, claim.holder), taker, replies.reply())
    port.settle(name, records.keep(taker, an_answer(), wall=5), replies.reply())
    port.settle(name, keep, replies.reply())
    port.compare_and_swap(name, Stamp(State.COMPLETED, taker.holder), None, replies.reply())
    port.settle(name, keep, replies.reply())
    port.get(name, replies.reply())
    return [None, Done.WON, claim, Done.DONE, Done.WON, Done.DONE, taker.holder, Done.WON, Done.FORGOT, keep.record]


def shown(result: Any, due: Any) -> Any:
    """What a reply is compared by."""
    if not isinstance(result, Found):
        return result
    return result.record.holder if isinstance(due, bytes) else result.record


async def warm(port: Store) -> None:
    """Have every server that scripts are called on load both of them."""
    await replied(port.get, NAME)


@every_store
async def test_each_call_gets_one_reply_in_the_order_of_the_calls(world: World) -> None:
    """Every verb, called in one turn of the loop: each reply comes once, as if the calls had waited for each other."""
    port = world.store.port
    await warm(port)
    replies = Replies()
    due = every_verb(port, replies)
    results = await replies.all()
    assert [shown(result, wanted) for result, wanted in zip(results, due, strict=True)] == due
    assert replies.order == sorted(replies.order)


@every_store
async def test_a_reply_that_raises_costs_no_other_call_its_reply(world: World, alarms: list[str]) -> None:
    """The first and the last of several calls of one turn have replies that raise: the others get theirs, a person is
    told of each, and the store goes on."""
    port = world.store.port
    await warm(port)

    def fails(result: Any) -> None:
        raise RuntimeError("failed on purpose")

    replies = Replies()
    port.get(NAME, fails)
    port.claim(b"o" * 43, a_new_claim(), fails)
    due = every_verb(port, replies)
    port.get(NAME, fails)
    port.when_available(0, fails)
    results = await replies.all()
    assert [shown(result, wanted) for result, wanted in zip(results, due, strict=True)] == due
    await eventually(lambda: len(alarms) == 4, "each is reported", SOON)
    assert all("failed on purpose" in alarm for alarm in alarms)
    assert isinstance(await replied(port.get, NAME), Found)
    assert world.store.available


@every_store
async def test_a_store_that_is_closed_replies_to_what_is_under_way(world: World) -> None:
    """Called and closed in one turn: each call gets one reply, its result or a StoreAway. One that is called later gets
    a StoreAway, and certainly was not done."""
    port = world.store.port
    await warm(port)
    replies = Replies()
    every_verb(port, replies)
    large = records.keep(a_claim(), an_answer(LARGE), wall=5)
    port.settle(b"o" * 43, large, replies.reply())
    await port.close()
    under_way = len(replies.each)
    assert all(replies.each), "each has its reply when close returns"
    every_verb(port, replies)
    port.settle(b"o" * 43, large, replies.reply())
    results = await replies.all()
    assert all(isinstance(result, StoreAway) and not result.ambiguous for result in results[under_way:])
    assert await replied(port.when_available, 60) is False


@every_store
async def test_a_short_reply_is_what_the_record_would_have_replayed(world: World) -> None:
    """A completed record of the same request stands in a claim's way: where the reply is Stored, it has what Found has
    on the other stores. A Record as a claim, another request, and a record without a body are replied to with Found."""
    port = world.store.port
    first = a_new_claim()
    assert await replied(port.claim, NAME, first) is Done.WON
    assert isinstance(await replied(port.claim, NAME, a_new_claim()), Found), "in flight"
    keep = NewKeep(first, 201, b"A: b\r\n", b"body", 7)
    assert await replied(port.settle, NAME, keep) is Done.DONE
    found = await replied(port.claim, NAME, a_claim())
    assert isinstance(found, Found)
    record = found.record
    assert record == keep.record
    assert record.answer == Answer(201, b"A: b\r\n", b"body")
    stored = (201, record.answer.head, record.answer.body, record.first_seen, record.expires)
    short = await replied(port.claim, NAME, a_new_claim())
    if port.kind == "redis":
        assert short == stored
    else:
        assert isinstance(short, Found)
        assert short.record == record
    another = NewClaim.of(first.terms, replace(FINGERPRINT, credentials=b"x" * 16), a_holder(), 5)
    found = await replied(port.claim, NAME, another)
    assert isinstance(found, Found), "another request"
    assert found.record == record
    without = records.without_body(keep)
    assert without is not None
    stamp = Stamp(State.COMPLETED, first.holder)
    assert await replied(port.compare_and_swap, NAME, stamp, without.record) is Done.WON
    found = await replied(port.claim, NAME, a_new_claim())
    assert isinstance(found, Found), "nothing to replay"
    assert found.record == without.record


@every_store
async def test_a_new_claim_and_its_keep_are_written_as_their_records(world: World) -> None:
    """Claimed, claimed again by its holder, kept and kept again by values: what stands is what the records say."""
    port = world.store.port
    new = a_new_claim()
    for _ in range(2):
        assert await replied(port.claim, NAME, new) is Done.WON
    found = await replied(port.get, NAME)
    assert found.record == a_claim(new.holder)
    keep = NewKeep(new, 404, b"", b"", 9)
    for _ in range(2):
        assert await replied(port.settle, NAME, keep) is Done.DONE
    found = await replied(port.get, NAME)
    assert found.record == records.keep(a_claim(new.holder), Answer(404, b"", b""), wall=9).record


@every_store
async def test_an_available_store_says_so_at_once(world: World) -> None:
    """Whatever the time that it is given."""
    for seconds in (0, 60):
        received: list[bool] = []
        world.store.port.when_available(seconds, received.append)
        assert received == [True]


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer(preferred()).start()
    yield server
    server.close()


async def test_replies_come_when_the_store_is_back_or_the_time_is_over(server: RedisServer, alarms: list[str]) -> None:
    """Redis is away: one waiter's time ends first; the others hear at once when it is back, also behind one whose reply
    raises. Closed before it is back: those that still wait hear that it is not there."""
    store = redis_store(server.url)
    port = store.port
    await store.open()
    loop = asyncio.get_running_loop()
    try:
        server.kill()
        await eventually(lambda: not store.available, "it is away", SOON)
        heard: list[tuple[str, bool, float]] = []

        def waiter(name: str) -> Callable[[bool], None]:
            began = loop.time()
            return lambda up: heard.append((name, up, loop.time() - began))

        def fails(up: bool) -> None:
            raise RuntimeError("failed on purpose")

        port.when_available(0.1, waiter("short"))
        port.when_available(60, fails)
        port.when_available(60, waiter("long"))
        await eventually(lambda: heard, "the time is over", SOON)
        ((name, up, after),) = heard
        assert (name, up) == ("short", False)
        assert 0.1 <= after < 5
        assert isinstance(await replied(port.claim, NAME, a_new_claim()), StoreAway)
        server.start()
        await eventually(lambda: len(heard) == 2, "it is back", SOON)
        assert heard[1][:2] == ("long", True)
        assert await replied(port.claim, NAME, a_new_claim()) is Done.WON
        assert sum("failed on purpose" in alarm for alarm in alarms) == 1
        server.kill()
        await eventually(lambda: not store.available, "it is away", SOON)
        port.when_available(60, waiter("last"))
    finally:
        await store.close()
    assert [each[:2] for each in heard[2:]] == [("last", False)]


async def test_calls_of_several_trips_get_one_reply(server: RedisServer) -> None:
    """The server has forgotten the scripts, a record is large, a claim is asked again or has lapsed by two replies: a
    task makes the rest of the call."""
    store = redis_store(server.url)
    port = store.port
    await store.open()
    try:
        with server.client() as client:
            client.script_flush()
        replies = Replies()
        due = every_verb(port, replies)
        results = await replies.all()
        assert [shown(result, wanted) for result, wanted in zip(results[1:3], due[1:3], strict=True)] == due[1:3]
        first = a_new_claim()
        assert await replied(port.claim, b"l" * 43, first) is Done.WON
        assert await replied(port.claim, b"l" * 43, first) is Done.WON
        keep = NewKeep(first, 200, b"", LARGE, 5)
        assert await replied(port.settle, b"l" * 43, keep) is Done.DONE
        assert (await replied(port.claim, b"l" * 43, a_new_claim()))[:3] == (200, b"", LARGE)
        lapsed = a_claim(lease=1)
        assert await replied(port.claim, b"m" * 43, lapsed) is Done.WON
        await asyncio.sleep(0.01)
        assert (await replied(port.claim, b"m" * 43, a_new_claim())).record == lapsed
        assert not store.tasks
    finally:
        await store.close()


async def test_a_task_that_is_cut_off_by_the_end_of_the_store_replies(server: RedisServer) -> None:
    """A large Keep hangs in a server that stands still, another has not begun, when the store is closed: nobody knows
    whether either was done."""
    store = redis_store(server.url)
    await store.open()
    replies = Replies()
    server.signal(signal.SIGSTOP)
    try:
        store.port.settle(NAME, records.keep(a_claim(), an_answer(LARGE), wall=5), replies.reply())
        await asyncio.sleep(0.1)
        store.port.settle(NAME, records.keep(a_claim(), an_answer(LARGE), wall=5), replies.reply())
        assert replies.each == [[], []]
        await store.close()
        results = await replies.all()
    finally:
        server.signal(signal.SIGCONT)
    assert all(isinstance(result, StoreAway) and result.ambiguous for result in results)
    assert not store.tasks


async def test_a_fault_of_the_store_is_a_reply_too(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter has a bug where it reads a reply: that call gets a StoreAway, and may have been done; the others are
    not concerned."""
    store = redis_store(server.url)
    port = store.port
    await store.open()
    try:
        await warm(port)
        claim = a_claim()
        assert await replied(port.claim, NAME, claim) is Done.WON
        broken = [True]
        decode = store_module.decode

        def breaks(value: bytes) -> Record:
            if broken:
                broken.clear()
                raise ZeroDivisionError
            return decode(value)

        monkeypatch.setattr(store_module, "decode", breaks)
        replies = Replies()
        port.get(NAME, replies.reply())
        port.get(NAME, replies.reply())
        away, found = await replies.all()
        assert isinstance(away, StoreAway)
        assert away.ambiguous
        assert found.record == claim
    finally:
        await store.close()


@pytest.mark.parametrize("kind", REDIS)
@pytest.mark.parametrize("settle", ["keep", "hold", "release"])
async def test_a_settlement_elsewhere_notifies(world: World, settle: str, alarms: list[str]) -> None:
    """Another process settles: every subscription is notified, also behind one that raises. One that was closed is not,
    even if another notification of that moment closed it."""
    claim = a_claim()
    settlement = {
        "keep": records.keep(claim, an_answer(), wall=0),
        "hold": hold(claim),
        "release": records.release(claim, elapsed=0, wall=0),
    }[settle]
    other = redis_store(world.server.url)  # type: ignore[attr-defined]
    await other.open()
    port = world.store.port
    rung = {"fails": 0, "hears": 0, "closed": 0, "one": 0, "two": 0}

    def fails() -> None:
        rung["fails"] += 1
        raise RuntimeError("failed on purpose")

    def counts(name: str) -> Callable[[], None]:
        def count() -> None:
            rung[name] += 1

        return count

    pair: list[Any] = []

    def closes(name: str, position: int) -> Callable[[], None]:
        def close() -> None:
            rung[name] += 1
            if len(pair) == 2 and all(each.active for each in pair):
                pair[1 - position].close()

        return close

    try:
        assert await other.claim(NAME, claim) is Done.WON
        failing, hears = port.subscribe(NAME, fails), port.subscribe(NAME, counts("hears"))
        closed = port.subscribe(NAME, counts("closed"))
        assert not hears.active
        await eventually(lambda: hears.active, "it is subscribed", SOON)
        assert rung == {"fails": 1, "hears": 1, "closed": 1, "one": 0, "two": 0}, "each is notified when it is active"
        for position, name in enumerate(("one", "two")):
            pair.append(port.subscribe(NAME, closes(name, position)))
        assert (rung["one"], rung["two"]) == (1, 1), "those that come later too, before subscribe returns"
        closed.close()
        assert await other.settle(NAME, settlement) is Done.DONE
        await eventually(lambda: rung["hears"] == 2, "it is notified", SOON)
        await asyncio.sleep(0.05)
        assert rung["fails"] == 2
        assert rung["closed"] == 1
        assert rung["one"] + rung["two"] == 3, "the first of the two has closed the other"
        assert sum("failed on purpose" in alarm for alarm in alarms) == 2
        for each in (failing, hears, *pair, *pair):
            each.close()
        with world.server.client() as client:  # type: ignore[attr-defined]
            await eventually(lambda: client.pubsub_shardchannels() == [], "nothing is subscribed", SOON)
    finally:
        await other.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_store_that_notifies_nobody_says_so(world: World) -> None:
    """Its subscriptions are never active, and closing them does nothing."""
    rung: list[None] = []
    subscription = world.store.port.subscribe(NAME, lambda: rung.append(None))
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.store.settle(NAME, hold(claim))
    assert not subscription.active
    assert not rung
    subscription.close()
    subscription.close()


@pytest.fixture
def replicas() -> Iterator[Fleet]:
    fleet = Fleet(preferred(), replicas=1, sentinels=0).start()
    yield fleet
    fleet.thaw(*fleet.nodes)
    fleet.close()


async def test_calls_that_wait_for_replicas_get_one_reply(replicas: Fleet) -> None:
    """With durability `replicated`: a claim and a Keep count once the replica has them. It stands still: they may have
    been done. Closed meanwhile: the same."""
    store = redis_store(f"{replicas.nodes[0].url}?durability=replicated&wait=200ms&replicas=1")
    port = store.port
    await store.open()
    try:
        await eventually(lambda: store.available, "it is available", SOON)
        new = a_new_claim()
        assert await replied(port.claim, NAME, new) is Done.WON
        keep = NewKeep(new, 200, b"", b"body", 5)
        assert await replied(port.settle, NAME, keep) is Done.DONE
        assert (await replied(port.claim, NAME, a_new_claim()))[2] == b"body"
        replicas.freeze(replicas.nodes[1])
        away = await replied(port.claim, b"o" * 43, a_new_claim())
        assert isinstance(away, StoreAway)
        assert away.ambiguous
        replies = Replies()
        port.claim(b"p" * 43, a_new_claim(), replies.reply())
        port.settle(b"q" * 43, keep, replies.reply())
        await asyncio.sleep(0.05)
        assert replies.each == [[], []]
    finally:
        await store.close()
    assert all(isinstance(away, StoreAway) and away.ambiguous for away in await replies.all())

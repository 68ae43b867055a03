"""The port itself, on every store that is available here: each call gets exactly one reply, also if the store is closed
or another reply raises."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.core import record as records
from gateway.core.fingerprint import Fingerprint
from gateway.core.message import Answer
from gateway.core.record import Done, Doubt, Found, NewClaim, NewKeep, Record, Stamp, State
from gateway.ports import Nobody, Store, StoreAway
from gateway.stores.codec import encode
from gateway.stores.redis import store as store_module
from gateway.stores.redis.waited import LANES
from tests.edge.stand import eventually
from tests.fleet import Fleet
from tests.servers import RedisServer, binaries, preferred
from tests.stores.worlds import (
    DOUBT_WINDOW,
    FINGERPRINT,
    LEASE,
    WINDOW,
    World,
    a_claim,
    a_holder,
    a_new_claim,
    an_answer,
    every_store,
    redis_store,
)

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
    """Load the script of `get`, so that a get takes one trip."""
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
    """Of several calls in one turn, the replies of the first and the last raise: the others get theirs, each exception
    is reported, and the store goes on."""
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
async def test_a_store_that_is_closed_replies_to_outstanding_calls(world: World) -> None:
    """Called and closed in one turn: each call gets one reply, its result or a StoreAway. A later call gets a StoreAway
    that is not ambiguous."""
    port = world.store.port
    await warm(port)
    replies = Replies()
    every_verb(port, replies)
    large = records.keep(a_claim(), an_answer(LARGE), wall=5)
    port.settle(b"o" * 43, large, replies.reply())
    await port.close()
    outstanding = len(replies.each)
    assert all(replies.each), "each has its reply when close returns"
    every_verb(port, replies)
    port.settle(b"o" * 43, large, replies.reply())
    results = await replies.all()
    assert all(isinstance(result, StoreAway) and not result.ambiguous for result in results[outstanding:])
    assert await replied(port.when_available, 60) is False


@every_store
async def test_a_short_reply_is_what_the_record_would_have_replayed(world: World) -> None:
    """A NewClaim finds the completed record of the same request: on Redis and SQLite the reply is Stored, with the
    contents that Found has in memory. A Record as a claim, another request, and a record without a body get Found."""
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
    if port.kind in ("redis", "sqlite"):
        assert short == stored
    else:
        assert isinstance(short, Found)
        assert short.record == record
    another = NewClaim(first.terms, Fingerprint(FINGERPRINT.mark[:20] + b"x" * 16, FINGERPRINT.tags), a_holder(), 5)
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
    """A NewClaim and its NewKeep, each sent twice: the records in the store are those of `claim` and `keep`."""
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
async def test_the_adapter_returns_records(world: World) -> None:
    """A NewClaim that meets the answer to the same request gets it as a record. A call that is cancelled was made all
    the same, and its reply is ignored."""
    store, new = world.store, a_new_claim()
    cancelled = asyncio.ensure_future(store.claim(NAME, new))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    found = await store.claim(NAME, a_new_claim())
    assert isinstance(found, Found)
    assert found.record == new.record
    keep = NewKeep(new, 201, b"A: b\r\n", b"body", 7)
    assert await store.settle(NAME, keep) is Done.DONE
    found = await store.claim(NAME, a_new_claim())
    assert isinstance(found, Found)
    assert found.record == keep.record


@every_store
async def test_an_available_store_replies_at_once(world: World) -> None:
    """The wait may be long or zero."""
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
    """Redis is away: the wait of one caller ends. The others get True as soon as it is back, also after a reply that
    raises. If the store is closed first, they get False."""
    store = redis_store(server.url)
    port = store.port
    await store.open()
    loop = asyncio.get_running_loop()
    try:
        server.kill()
        await eventually(lambda: not store.available, "it is away", SOON)
        received: list[tuple[str, bool, float]] = []

        def waiter(name: str) -> Callable[[bool], None]:
            began = loop.time()
            return lambda up: received.append((name, up, loop.time() - began))

        def fails(up: bool) -> None:
            raise RuntimeError("failed on purpose")

        port.when_available(0.1, waiter("short"))
        port.when_available(60, fails)
        port.when_available(60, waiter("long"))
        await eventually(lambda: received, "the time is over", SOON)
        ((name, up, after),) = received
        assert (name, up) == ("short", False)
        assert 0.09 <= after < 5  # timers of uvloop have whole milliseconds
        assert isinstance(await replied(port.claim, NAME, a_new_claim()), StoreAway)
        server.start()
        await eventually(lambda: len(received) == 2, "it is back", SOON)
        assert received[1][:2] == ("long", True)
        assert await replied(port.claim, NAME, a_new_claim()) is Done.WON
        assert sum("failed on purpose" in alarm for alarm in alarms) == 1
        server.kill()
        await eventually(lambda: not store.available, "it is away", SOON)
        port.when_available(60, waiter("last"))
    finally:
        await store.close()
    assert [each[:2] for each in received[2:]] == [("last", False)]


async def test_calls_of_several_trips_get_one_reply(server: RedisServer) -> None:
    """The server has forgotten the scripts, a record is large, a claim is asked again: a task makes the rest of the
    call."""
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
        assert not store.tasks
    finally:
        await store.close()


@pytest.mark.parametrize("left", [WINDOW, LEASE + DOUBT_WINDOW + 5_000], ids=["lapsed", "younger than nothing"])
async def test_a_record_that_is_settled_between_the_two_replies_to_a_claim(server: RedisServer, left: int) -> None:
    """SET shows a claim in flight, and PTTL the life of what stands a moment later: by the two it has lapsed, or was
    written in the future. The record is read again, at once with its life."""
    store = redis_store(server.url)
    await store.open()
    try:
        first = a_new_claim()
        assert await store.claim(NAME, first) is Done.WON
        keep = NewKeep(first, 200, b"", b"body", 5)
        assert await store.settle(NAME, keep) is Done.DONE
        replies = Replies()
        call = store_module._Claim(store.port, NAME, a_claim(), replies.reply())
        call.primary = store._fleet.primaries[0]
        call.set_result([encode(first), left])
        (found,) = await replies.all()
        assert found.record == keep.record
    finally:
        await store.close()


async def test_a_task_that_is_cut_off_by_the_end_of_the_store_replies(server: RedisServer) -> None:
    """The store is closed while one large Keep hangs in a frozen server and the task of another has not begun: both get
    an ambiguous StoreAway."""
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
    """Reading a reply fails unexpectedly: that call gets an ambiguous StoreAway, and the other calls their results."""
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
    notified = {"fails": 0, "counts": 0, "closed": 0, "one": 0, "two": 0}

    def fails() -> None:
        notified["fails"] += 1
        raise RuntimeError("failed on purpose")

    def counts(name: str) -> Callable[[], None]:
        def count() -> None:
            notified[name] += 1

        return count

    pair: list[Any] = []

    def closes(name: str, position: int) -> Callable[[], None]:
        def close() -> None:
            notified[name] += 1
            if len(pair) == 2 and all(each.active for each in pair):
                pair[1 - position].close()

        return close

    try:
        assert await other.claim(NAME, claim) is Done.WON
        failing, counted = port.subscribe(NAME, fails), port.subscribe(NAME, counts("counts"))
        closed = port.subscribe(NAME, counts("closed"))
        assert not counted.active
        await eventually(lambda: counted.active, "it is subscribed", SOON)
        assert notified == {"fails": 1, "counts": 1, "closed": 1, "one": 0, "two": 0}, (
            "each is notified when it is active"
        )
        for position, name in enumerate(("one", "two")):
            pair.append(port.subscribe(NAME, closes(name, position)))
        assert (notified["one"], notified["two"]) == (1, 1), "a later subscription too, before subscribe returns"
        closed.close()
        assert await other.settle(NAME, settlement) is Done.DONE
        await eventually(lambda: notified["counts"] == 2, "it is notified", SOON)
        await asyncio.sleep(0.05)
        assert notified["fails"] == 2
        assert notified["closed"] == 1
        assert notified["one"] + notified["two"] == 3, "the first of the two has closed the other"
        assert sum("failed on purpose" in alarm for alarm in alarms) == 2
        for each in (failing, counted, *pair, *pair):
            each.close()
        with world.server.client() as client:  # type: ignore[attr-defined]
            await eventually(lambda: client.pubsub_shardchannels() == [], "nothing is subscribed", SOON)
    finally:
        await other.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_store_without_notifications(world: World) -> None:
    """Its subscriptions are never active, and closing them does nothing."""
    notified: list[None] = []
    subscription = world.store.port.subscribe(NAME, lambda: notified.append(None))
    claim = a_claim()
    await world.store.claim(NAME, claim)
    await world.store.settle(NAME, hold(claim))
    assert not subscription.active
    assert not notified
    subscription.close()
    subscription.close()


@pytest.fixture
def replicas() -> Iterator[Fleet]:
    fleet = Fleet(preferred(), replicas=1, sentinels=0).start()
    yield fleet
    fleet.thaw(*fleet.nodes)
    fleet.close()


async def test_calls_that_wait_for_replicas_get_one_reply(replicas: Fleet) -> None:
    """With durability `replicated`, a claim and a Keep count once the replica has them. With a frozen replica a claim
    gets an ambiguous StoreAway. If the store is closed, each call gets a StoreAway, and a claim may have been made."""
    store = redis_store(f"{replicas.nodes[0].url}?durability=replicated&wait=1s&replicas=1")
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
        assert not store.tasks
        claims, keeps = Replies(), Replies()
        for number in range(2 * LANES):  # more than there are lanes, so that some have not been sent
            port.claim(b"p%042d" % number, a_new_claim(), claims.reply())
            port.settle(b"q%042d" % number, NewKeep(a_new_claim(), 200, b"", b"", 5), keeps.reply())
            await asyncio.sleep(0.02)
        assert not any(claims.each + keeps.each)
    finally:
        await store.close()
    assert all(claims.each + keeps.each), "each has its reply when close returns"
    assert all(isinstance(away, StoreAway) and away.ambiguous for away in await claims.all())
    assert all(isinstance(away, StoreAway) for away in await keeps.all())

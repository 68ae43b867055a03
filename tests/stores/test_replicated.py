"""Durability `replicated`: what counts is what every replica has. Real primaries, replicas and Sentinels."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.record import Done, Doubt, Found, Stamp, State
from gateway.ports import Nobody, StoreAway, StoreRefused
from gateway.stores.redis import Address
from gateway.stores.redis.servers import Fixed
from gateway.stores.redis.waited import Waited
from tests.edge.stand import eventually
from tests.fleet import Fleet
from tests.servers import RedisServer, binaries
from tests.stores.worlds import LEASE, WINDOW, a_claim, a_holder, an_answer, redis_store

NAME = b"n" * 43
WAIT = 0.1
#: `make test` plays a failover on one server, `make faults` on all.
LONG = os.environ.get("ONCEGATE_FAULTS") == "long"
REPLICATED = "durability=replicated&wait=100ms&replicas="


@pytest.fixture(scope="module", params=list(binaries()))
def standing(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(binaries()[request.param], replicas=1, sentinels=0).start()
    yield fleet
    fleet.close()


@pytest.fixture
def fleet(standing: Fleet) -> Iterator[Fleet]:
    """A primary and its replica, empty and in step."""
    with standing.nodes[0].client() as client:
        client.flushall()
    yield standing
    standing.thaw(*standing.nodes)
    standing.until(lambda: standing.in_step(standing.nodes[0]) == 1, "the replica is in step")


@pytest.fixture
async def store(fleet: Fleet) -> AsyncIterator[AwaitableStore]:
    store = redis_store(f"{fleet.nodes[0].url}?{REPLICATED}1")
    await store.open()
    yield store
    await store.close()


def calls(server: RedisServer, command: str) -> int:
    with server.client() as client:
        told = client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    return int(told["calls"])


async def refused_for_want_of_replicas(call: Callable[[], Awaitable[Done | Found]]) -> None:
    began = time.monotonic()
    with pytest.raises(StoreAway, match="0 of 1 replicas have the write") as refused:
        await call()
    assert refused.value.ambiguous, "it was written, so it must be asked again or released"
    assert time.monotonic() - began >= WAIT * 0.9


async def test_a_claim_counts_once_the_replica_has_it(fleet: Fleet, store: AwaitableStore) -> None:
    """The replica stands still: the claim is refused after its wait, though the primary has it. Then the same
    claim is asked again and won, and the replica holds it."""
    replica = fleet.nodes[1]
    fleet.freeze(replica)
    claim = a_claim()
    await refused_for_want_of_replicas(lambda: store.claim(NAME, claim))
    fleet.thaw(replica)
    assert await store.claim(NAME, claim) is Done.WON
    with replica.client() as client:
        assert client.exists("og:" + NAME.decode())


async def test_what_is_asked_again_is_covered_again(fleet: Fleet, store: AwaitableStore) -> None:
    """A claim, a takeover and a Keep that the replica has are asked for again while it stands still. An answer at
    once would say nothing of a replica: each is written again, and waits."""
    first = a_claim()
    taker = records.takeover(first, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
    hold = records.hold(first, doubt=Doubt.LOST, status=0, wall=0)
    asked: list[Callable[[], Awaitable[Done | Found]]] = [
        lambda: store.claim(NAME, first),
        lambda: store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, first.holder), taker),
        lambda: store.settle(NAME, records.keep(taker, an_answer(), wall=0)),
    ]
    for ask in asked:
        if ask is asked[1]:
            await store.settle(NAME, hold)
        assert await ask() in (Done.WON, Done.DONE)
        fleet.freeze(fleet.nodes[1])
        await refused_for_want_of_replicas(ask)
        fleet.thaw(fleet.nodes[1])
        assert await ask() in (Done.WON, Done.DONE)


async def test_a_takeover_and_a_keep_count_once_the_replica_has_them(fleet: Fleet, store: AwaitableStore) -> None:
    """Neither is asked for the second time: it is refused while the replica stands still, and then the replica has
    it, takeover and answer both."""
    claim = a_claim()
    taker = records.takeover(claim, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
    assert await store.claim(NAME, claim) is Done.WON
    await store.settle(NAME, records.hold(claim, doubt=Doubt.LOST, status=0, wall=0))
    asked: list[Callable[[], Awaitable[Done | Found]]] = [
        lambda: store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, claim.holder), taker),
        lambda: store.settle(NAME, records.keep(taker, an_answer(), wall=0)),
    ]
    for ask, state in zip(asked, (State.IN_FLIGHT, State.COMPLETED), strict=True):
        fleet.freeze(fleet.nodes[1])
        await refused_for_want_of_replicas(ask)
        fleet.thaw(fleet.nodes[1])
        assert await ask() in (Done.WON, Done.DONE)
        with fleet.nodes[1].client() as client:
            assert client.get("og:" + NAME.decode())[1] % 16 == state


async def test_a_replay_waits_for_no_replica(fleet: Fleet, store: AwaitableStore) -> None:
    """While claims wait in vain for a replica, on every lane, duplicates of what is done are answered at once."""
    claim = a_claim()
    await store.claim(NAME, claim)
    await store.settle(NAME, records.keep(claim, an_answer(), wall=0))
    fleet.freeze(fleet.nodes[1])
    waiting = [asyncio.ensure_future(store.claim(b"%043d" % n, a_claim())) for n in range(50)]
    await asyncio.sleep(0.02)
    began = time.monotonic()
    found = await store.claim(NAME, a_claim())
    assert isinstance(found, Found)
    assert found.record.state is State.COMPLETED
    assert time.monotonic() - began < WAIT * 0.8
    assert not any(each.done() for each in waiting)
    assert all(isinstance(each, StoreAway) for each in await asyncio.gather(*waiting, return_exceptions=True))


async def test_what_frees_or_doubts_waits_for_no_replica(fleet: Fleet, store: AwaitableStore) -> None:
    """A Hold and a Release count at once: a failover that loses one leaves a claim that lapses into doubt."""
    held, released = a_claim(), a_claim()
    await store.claim(b"h" * 43, held)
    await store.claim(b"r" * 43, released)
    fleet.freeze(fleet.nodes[1])
    began = time.monotonic()
    assert await store.settle(b"h" * 43, records.hold(held, doubt=Doubt.LOST, status=0, wall=0)) is Done.DONE
    assert await store.settle(b"r" * 43, records.release(released, elapsed=0, wall=0)) is Done.DONE
    assert time.monotonic() - began < WAIT * 0.8


async def test_many_writes_wait_together(fleet: Fleet, store: AwaitableStore) -> None:
    """A thousand claims at once cost a few WAITs, not a thousand."""
    before = calls(fleet.nodes[0], "wait")
    won = await asyncio.gather(*(store.claim(b"%043d" % n, a_claim()) for n in range(1000)))
    assert won == [Done.WON] * 1000
    assert 1 <= calls(fleet.nodes[0], "wait") - before <= 20


async def test_a_lane_that_is_lost_leaves_its_claims_unknown(fleet: Fleet, store: AwaitableStore) -> None:
    """Its connection is cut while it waits: the claim may stand, so it is asked for again, and then won."""
    primary, replica = fleet.nodes
    fleet.freeze(replica)
    claim = a_claim()
    asked = asyncio.ensure_future(store.claim(NAME, claim))
    with primary.client() as client:
        await eventually(lambda: client.info("clients")["blocked_clients"] == 1, "the claim waits", 2)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(StoreAway) as lost:
        await asked
    assert lost.value.ambiguous
    fleet.thaw(replica)
    await store.wait_available(5)
    await eventually(lambda: store.available, "it is connected again", 5)
    assert await store.claim(NAME, claim) is Done.WON


async def test_fewer_acknowledgements_than_replicas_are_refused_by_name(fleet: Fleet, store: AwaitableStore) -> None:
    """A second replica comes: within two looks no claim is made any more, and the reason says what to write. It
    goes: claims are made again. An answer is settled all along."""
    primary = fleet.nodes[0]
    claim = a_claim()
    assert await store.claim(NAME, claim) is Done.WON
    second = RedisServer(primary.binary, arguments=("--replicaof", f"127.0.0.1 {primary.port}"))
    await asyncio.to_thread(second.start)
    try:
        await eventually(lambda: not store.available, "the second replica is seen", 5)
        assert "the primary has 2 replicas and replicas=1" in store.trouble
        assert store.trouble.endswith("use replicas=2")
        with pytest.raises(StoreRefused, match="use replicas=2") as refused:
            await store.claim(b"o" * 43, a_claim())
        assert not refused.value.ambiguous
        assert await store.settle(NAME, records.keep(claim, an_answer(), wall=0)) is Done.DONE
    finally:
        second.close()
    await eventually(lambda: store.available, "the second replica is gone", 5)
    assert await store.claim(b"o" * 43, a_claim()) is Done.WON


async def test_a_replica_is_no_place_for_claims(fleet: Fleet) -> None:
    """The URL names a replica: no claim, and the reason says what to name."""
    store = redis_store(fleet.nodes[1].url)
    await store.open()
    try:
        assert not store.available
        assert "is a read-only replica: name its primary" in store.trouble
        with pytest.raises(StoreAway, match="read-only replica"):
            await store.claim(NAME, a_claim())
    finally:
        await store.close()


async def test_a_primary_that_becomes_a_replica_is_left(fleet: Fleet, store: AwaitableStore) -> None:
    """READONLY is an answer of a server that no longer is the one: nothing was written, and the connection is made
    anew."""
    primary, replica = fleet.nodes
    with replica.client() as other, primary.client() as client:
        other.execute_command("REPLICAOF", "NO", "ONE")
        client.execute_command("REPLICAOF", "127.0.0.1", str(replica.port))
        with pytest.raises(StoreAway):
            await store.claim(NAME, a_claim())
        await eventually(lambda: "read-only replica" in store.trouble, "it is named", 5)
        client.execute_command("REPLICAOF", "NO", "ONE")
        other.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
    await eventually(lambda: store.available, "it is the primary again", 5)
    fleet.until(lambda: fleet.in_step(primary) == 1, "the replica is in step")
    claim = a_claim()
    await eventually(lambda: store.available, "it is available", 5)
    assert await store.claim(NAME, claim) is Done.WON


@pytest.fixture(params=list(binaries())[: None if LONG else 1])
def watched(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(binaries()[request.param], replicas=1).start()
    yield fleet
    fleet.thaw(*(node for node in fleet.nodes if node.running))
    fleet.close()


async def test_the_store_follows_its_primary(watched: Fleet) -> None:
    """The primary is killed: within a second of the promotion the store claims on the new one, where what was won
    before still stands. One Sentinel is dead, and is passed over."""
    store = redis_store(watched.url(REPLICATED + "1"))
    await store.open()
    try:
        claim = a_claim()
        assert await store.claim(NAME, claim) is Done.WON
        old = watched.nodes[0]
        old.kill()
        watched.sentinels[0].close()
        new = await asyncio.to_thread(watched.until_promoted, old)
        await eventually(lambda: store.available, "the new primary is found", 3)
        found = await store.claim(NAME, a_claim())
        assert isinstance(found, Found)
        assert found.record.holder == claim.holder
        watched.rejoin(old, new)
        watched.until(lambda: watched.in_step(new) == 1, "the old one follows")
        assert await store.claim(b"o" * 43, a_claim()) is Done.WON
    finally:
        await store.close()


async def test_the_store_leaves_a_primary_that_another_has_replaced(watched: Fleet) -> None:
    """The old primary was frozen, and goes on as if nothing had been: the store asks the Sentinels, not it."""
    store = redis_store(watched.url("durability=single"))
    await store.open()
    try:
        old = watched.nodes[0]
        watched.freeze(old)
        await asyncio.to_thread(watched.until_promoted, old)
        watched.thaw(old)
        await eventually(lambda: store.available, "the new primary is found", 5)
        await asyncio.sleep(1.2)
        assert store.available
        assert await store.claim(NAME, a_claim()) is Done.WON
        with old.client() as client:
            assert not client.exists("og:" + NAME.decode())
    finally:
        await store.close()


async def test_sentinels_that_know_no_such_primary_are_named(watched: Fleet) -> None:
    """The gate starts all the same, and says whom it asked for what."""
    store = redis_store(watched.url().replace("/payments", "/refunds"))
    await store.open()
    try:
        assert not store.available
        assert "knows a primary `refunds`" in store.trouble
        assert f"127.0.0.1:{watched.sentinels[0].port}" in store.trouble
    finally:
        await store.close()


@pytest.mark.parametrize("code", ["NOREPLICAS", "MISCONF"])
@pytest.mark.parametrize("kind", list(binaries()))
async def test_what_is_completed_is_replayed_where_nothing_is_written(kind: str, code: str) -> None:
    """The server takes no writes for now, for want of replicas or of a snapshot that succeeded: a new claim is refused
    by name, a look sees what is there, and a duplicate of what is completed finds it."""
    server = await asyncio.to_thread(RedisServer(binaries()[kind]).start)
    store = redis_store(server.url)
    await store.open()
    try:
        claim = a_claim()
        await store.claim(NAME, claim)
        await store.settle(NAME, records.keep(claim, an_answer(), wall=0))
        with server.client() as client:
            if code == "NOREPLICAS":
                client.config_set("min-replicas-to-write", 1)
            else:
                client.config_set("save", "3600 1")
                shutil.rmtree(server.folder)
                client.execute_command("BGSAVE")
                await eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "it failed", 5)
        found = await store.claim(NAME, a_claim())
        assert isinstance(found, Found)
        assert found.record.state is State.COMPLETED
        assert await store.get(NAME) is not None
        with pytest.raises(StoreAway, match=code) as refused:
            await store.claim(b"o" * 43, a_claim())
        assert not refused.value.ambiguous
    finally:
        await store.close()
        server.close()


async def test_lanes_follow_the_shared_connection(fleet: Fleet, store: AwaitableStore) -> None:
    """The shared connection was lost, and made to another primary; those of the lanes to the first one still stand.
    They are given up, and a claim is won and covered on the new one."""
    other = await asyncio.to_thread(Fleet(fleet.nodes[0].binary, replicas=1, sentinels=0).start)
    try:
        primary = store._fleet.of(b"og:" + NAME)
        assert primary.waited is not None
        assert isinstance(primary._finder, Fixed)
        primary._finder._address = Address("127.0.0.1", other.nodes[0].port)
        primary.main.abort("its connection broke")
        claim = a_claim()
        deadline = time.monotonic() + 5
        while True:
            try:
                assert await store.claim(NAME, claim) is Done.WON
                break
            except StoreAway:
                assert time.monotonic() < deadline, "the lanes lead to the old primary"
                await store.wait_available(1)
        with other.nodes[1].client() as client:
            assert client.exists("og:" + NAME.decode())
    finally:
        other.close()


async def test_a_claim_that_a_lane_does_not_find_may_stand(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second after a failover the lanes may still lead to the old primary, which holds an older claim of the
    key: that says nothing of the claim that was just made on the new one, so it is asked for again, or released."""
    old = await asyncio.to_thread(Fleet(fleet.nodes[0].binary, replicas=1, sentinels=0).start)
    monkeypatch.setattr(Waited, "follow", lambda self, run_id: None)
    store, elsewhere = redis_store(f"{fleet.nodes[0].url}?{REPLICATED}1"), redis_store(old.nodes[0].url)
    await store.open()
    await elsewhere.open()
    try:
        older, mine = a_claim(), a_claim()
        assert await elsewhere.claim(NAME, older) is Done.WON
        primary = store._fleet.of(b"og:" + NAME)
        assert primary.waited is not None
        right = primary.waited
        servers = primary._common.servers
        there = Address("127.0.0.1", old.nodes[0].port)
        primary.waited = Waited(servers, Fixed(there), Nobody(), lambda: None)
        await primary.waited.open()
        with pytest.raises(StoreAway, match="not found where it had been made") as unknown:
            await store.claim(NAME, mine)
        assert unknown.value.ambiguous
        await primary.waited.close()
        primary.waited = right
        assert await store.claim(NAME, mine) is Done.WON
    finally:
        await elsewhere.close()
        await store.close()
        old.close()

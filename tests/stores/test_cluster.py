"""Records in a Redis Cluster: slots that move under load, a primary that is lost, one that is not fit. A real cluster
of three primaries with a replica each."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis.crc import key_slot

from gateway.app import open_store
from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.identity import Identity
from gateway.core.policy import Policy, Route
from gateway.core.record import Done, Found, Record, State
from gateway.ports import IdentityChanged, Nobody, StoreAway, StoreRefused
from gateway.stores.redis import Address, RedisStore, Severity, Trust
from gateway.stores.redis.cluster import TAGS, Range, View, elect, numbered, read_view
from tests.cluster import SLOTS, Node, RedisCluster
from tests.edge.stand import eventually
from tests.servers import RedisServer, preferred
from tests.stores.listening import listen
from tests.stores.worlds import FakeClock, a_claim, an_answer

#: Seconds for what comes at once, on a machine that may be busy.
SOON = 10.0
here = Identity.of([Route("all", "app", policy=Policy())], b"sesame")
elsewhere = Identity.of([Route("all", "app", policy=Policy(namespace=b"other"))], b"sesame")
TRUST = Trust(service="shop", identity=here)


class Ear(Nobody):
    """Hears alarms."""

    def __init__(self) -> None:
        self.alarms: list[str] = []

    def alarm(self, what: str, **facts: object) -> None:
        self.alarms.append(str(facts.get("finding", what)))


@asynccontextmanager
async def store_on(url: str, trust: Trust = TRUST, ear: Ear | None = None) -> AsyncIterator[AwaitableStore]:
    store = AwaitableStore(open_store(url, FakeClock(), ear or Ear(), prefix="og:", trust=trust))
    assert isinstance(store.port, RedisStore)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="module")
def standing() -> Iterator[RedisCluster]:
    cluster = RedisCluster(preferred()).start()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(standing: RedisCluster) -> RedisCluster:
    """Empty, and whole."""
    standing.flush()
    standing.until(standing.well, "the cluster is well")
    return standing


@pytest.fixture
async def store(cluster: RedisCluster) -> AsyncIterator[AwaitableStore]:
    async with store_on(cluster.url) as store:
        yield store


def keep(claim: Record) -> records.Settlement:
    return records.keep(claim, an_answer(), wall=0)


def key(name: bytes) -> bytes:
    return b"og:" + name


def names_in(slot: int, count: int) -> list[bytes]:
    """Names of records whose keys are in this slot."""
    every = (b"%043d" % n for n in itertools.count())
    return list(itertools.islice((name for name in every if key_slot(key(name)) == slot), count))


def names_of(cluster: RedisCluster, node: Node, count: int) -> list[bytes]:
    found: list[bytes] = []
    for n in range(1000):
        name = b"%043d" % n
        if len(found) < count and cluster.of(key(name)) is node:
            found.append(name)
    return found


async def patiently(store: AwaitableStore, name: bytes, claim: Record, seconds: float = SOON) -> Done | Found:
    """Claim as the exchange does: where the store is away, wait for it and ask again."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await store.claim(name, claim)
            except StoreAway:
                await asyncio.sleep(0.02)
                await store.wait_available(1)


# ── Slots that move ───────────────────────────────────────────────────────────────────────────────


async def test_the_whole_life_of_a_record_whose_slot_is_on_its_way(
    cluster: RedisCluster, store: AwaitableStore
) -> None:
    """A slot is on its way: what is new is made at its end (ASK), what was there before is still found at its start,
    and found at its end once it has been carried there. Nothing is done twice, and nobody is told anything else."""
    source, target = cluster.primaries[:2]
    slot = key_slot(key(names_of(cluster, source, 1)[0]))
    old, new = names_in(slot, 2)
    before, first, second = a_claim(), a_claim(), a_claim()
    assert await store.claim(old, before) is Done.WON
    asks = source.errors("ASK")
    with cluster.moving(slot, target):
        assert await store.claim(new, first) is Done.WON
        assert source.errors("ASK") > asks
        assert await store.claim(new, first) is Done.WON, "asked again"
        found = await store.claim(new, second)
        assert isinstance(found, Found)
        assert found.record.holder == first.holder
        assert await store.settle(new, keep(first)) is Done.DONE
        found = await store.claim(old, second)
        assert isinstance(found, Found)
        assert found.record.holder == before.holder
        cluster.carry(slot, source, target)
        found = await store.claim(old, second)
        assert isinstance(found, Found)
        assert found.record.holder == before.holder
        assert await store.settle(old, keep(before)) is Done.DONE
    assert cluster.owner(slot) is target
    for name in (old, new):
        found = await store.claim(name, a_claim())
        assert isinstance(found, Found)
        assert found.record.state is State.COMPLETED
        assert found.record.answer == an_answer()
    await asyncio.to_thread(cluster.move, slot, source)


@pytest.mark.usefixtures("patient_stores")
async def test_slots_that_move_under_load(cluster: RedisCluster, store: AwaitableStore) -> None:
    """Ten slots go back and forth while two processes claim and settle the same hundred names again and again: each is
    won by one, whatever the error replies say in between; no call fails, and MOVED and ASK have both been met."""
    source, target = cluster.primaries[0], cluster.primaries[2]
    slots = [key_slot(key(name)) for name in names_of(cluster, source, 10)]
    met = {code: source.errors(code) + target.errors(code) for code in ("MOVED", "ASK")}
    moving = True
    done = 0

    async def moves() -> None:
        nonlocal moving
        for turn in range(4):
            for slot in slots:
                await asyncio.to_thread(cluster.move, slot, source if turn % 2 else target)
        moving = False

    async def storm(other: AwaitableStore, name: bytes) -> None:
        """Both claim; one wins and keeps; both then see the answer; an operator frees the name."""
        nonlocal done
        while moving:
            claims = [a_claim(), a_claim()]
            told = await asyncio.gather(store.claim(name, claims[0]), other.claim(name, claims[1]))
            assert told.count(Done.WON) == 1, told
            winner = claims[told.index(Done.WON)]
            loser = told[1 - told.index(Done.WON)]
            assert isinstance(loser, Found)
            assert loser.record.holder == winner.holder
            assert await store.settle(name, keep(winner)) is Done.DONE
            found = await other.claim(name, a_claim())
            assert isinstance(found, Found)
            assert (found.record.holder, found.record.state) == (winner.holder, State.COMPLETED)
            stamp = records.Stamp(State.COMPLETED, winner.holder)
            assert await other.compare_and_swap(name, stamp, None) is Done.WON
            done += 1

    names = [n for slot in slots for n in names_in(slot, 10)]
    async with store_on(cluster.url) as other, asyncio.TaskGroup() as group:
        group.create_task(moves())
        for name in names:
            group.create_task(storm(other, name))
    assert done > len(names)
    for code, before in met.items():
        assert source.errors(code) + target.errors(code) > before, f"no {code} was met"


async def test_a_move_is_learnt(cluster: RedisCluster, store: AwaitableStore) -> None:
    """The first command after a move is sent on by MOVED; those behind it go to the new primary at once."""
    source, target = cluster.primaries[:2]
    name = names_of(cluster, source, 1)[0]
    slot = key_slot(key(name))
    await store.claim(name, a_claim())
    await asyncio.to_thread(cluster.move, slot, target)
    assert isinstance(await store.claim(name, a_claim()), Found)
    moved = source.errors("MOVED")
    for _ in range(100):
        assert isinstance(await store.claim(name, a_claim()), Found)
    assert source.errors("MOVED") == moved
    await asyncio.to_thread(cluster.move, slot, source)


async def test_a_node_that_joins(cluster: RedisCluster, store: AwaitableStore) -> None:
    """A slot goes to a node that nobody has heard of: it is connected to on its first redirection."""
    source = cluster.primaries[0]
    name = names_of(cluster, source, 1)[0]
    slot = key_slot(key(name))
    fresh = Node(source.binary, whole=False)
    await asyncio.to_thread(fresh.start)
    try:
        fresh.run("CLUSTER", "MEET", "127.0.0.1", source.port, source.bus)
        await eventually(lambda: len(fresh.run("CLUSTER", "NODES").splitlines()) == 7, "it knows all", SOON)
        await eventually(lambda: fresh.id in source.run("CLUSTER", "NODES").decode(), "it is known", SOON)
        await eventually(lambda: fresh.says("CLUSTER", "INFO")["cluster_state"] == "ok", "it is ready", SOON)
        claim = a_claim()
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", fresh.id)
        fresh.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        assert await store.claim(name, claim) is Done.WON
        assert fresh.run("DBSIZE") == 1
        assert await store.settle(name, keep(claim)) is Done.DONE
        cluster.end(slot, fresh)
        found = await store.claim(name, a_claim())
        assert isinstance(found, Found)
        assert found.record.state is State.COMPLETED
        await eventually(lambda: fresh.run("EXISTS", _marker_key(slot)), "it has a marker of its own", SOON)
        fresh.run("CLUSTER", "SETSLOT", slot, "MIGRATING", source.id)
        source.run("CLUSTER", "SETSLOT", slot, "IMPORTING", fresh.id)
        cluster.carry(slot, fresh, source)
        for node in (source, fresh, *cluster.primaries[1:]):
            node.run("CLUSTER", "SETSLOT", slot, "NODE", source.id)
        assert isinstance(await store.claim(name, a_claim()), Found)
    finally:
        await asyncio.to_thread(_forget, cluster, fresh)
        fresh.close()


def _marker_key(slot: int) -> str:
    return f"og:marker:shop:{{{numbered({slot: 1}.get)[1]}}}"


def _forget(cluster: RedisCluster, gone: Node) -> None:
    name = gone.id
    gone.kill()
    for node in cluster.running:
        node.run("CLUSTER", "FORGET", name)


# ── A primary that is lost ────────────────────────────────────────────────────────────────────────


async def test_a_primary_is_lost_and_its_replica_takes_its_place() -> None:
    """One primary is killed: claims of its keys are refused until its replica has been promoted, then what it held is
    found there; keys of the other primaries never notice. Of its absence there is a warning, by its name."""
    cluster = await asyncio.to_thread(RedisCluster(preferred()).start)
    try:
        async with store_on(cluster.url) as store:
            lost = cluster.primaries[1]
            theirs, others = names_of(cluster, lost, 20), names_of(cluster, cluster.primaries[0], 20)
            claims = [a_claim() for _ in theirs]
            for name, claim in zip(theirs, claims, strict=True):
                assert await store.claim(name, claim) is Done.WON
            assert lost.run("WAIT", 1, 1000) == 1
            lost.kill()
            await eventually(lambda: store.findings[:1] and "primary-away" in _names(store), "it is missed", SOON)
            assert store.available
            with pytest.raises(StoreAway):
                await store.claim(theirs[0], a_claim())
            began = asyncio.get_running_loop().time()
            waiting = asyncio.gather(*(patiently(store, name, a_claim()) for name in theirs))
            slowest, served = 0.0, 0
            while not waiting.done():
                at = asyncio.get_running_loop().time()
                await store.claim(others[served % 20], a_claim())
                slowest = max(slowest, asyncio.get_running_loop().time() - at)
                served += 1
                await asyncio.sleep(0.005)
            found = await waiting
            assert asyncio.get_running_loop().time() - began < SOON
            assert [one.record.holder for one in found if isinstance(one, Found)] == [one.holder for one in claims]
            assert served > 20
            assert slowest < 1.0
            await eventually(lambda: "primary-away" not in _names(store), "it is missed no more", SOON)
            assert cluster.of(key(theirs[0])) is cluster.replicas[1]
            # It comes back as a replica of its replica, and nobody asks it any more.
            await asyncio.to_thread(lost.start)
            await asyncio.to_thread(cluster.until, cluster.well, "it follows")
            assert isinstance(await store.claim(theirs[0], a_claim()), Found)
    finally:
        cluster.close()


def _names(store: AwaitableStore) -> dict[str, Severity]:
    return {found.name: found.severity for found in store.findings}


async def test_a_primary_that_another_has_replaced_is_left() -> None:
    """A primary is frozen while its replica is promoted, and goes on as if nothing had been: the others are believed,
    and what is claimed is claimed at the new one. A bell hears there too."""
    cluster = await asyncio.to_thread(RedisCluster(preferred()).start)
    old, new = cluster.primaries[0], cluster.replicas[0]
    try:
        async with store_on(cluster.url) as store:
            name, another = names_of(cluster, old, 2)
            claim, mine = a_claim(), a_claim()
            assert await store.claim(another, claim) is Done.WON
            assert old.run("WAIT", 1, 1000) == 1
            with listen(store, another) as bell:
                await eventually(lambda: bell.hears, "it hears", SOON)
                old.signal(signal.SIGSTOP)
                await asyncio.to_thread(cluster.until, lambda: new.leads, "the replica is promoted")
                assert await patiently(store, name, mine) is Done.WON
                assert new.run("EXISTS", key(name))
                await eventually(lambda: new.run("PUBSUB", "SHARDCHANNELS") == [key(another)], "it listens there", SOON)
                await eventually(lambda: bell.hears, "it hears", SOON)
                while await bell.rung(0.2):
                    pass
                old.signal(signal.SIGCONT)
                assert await store.settle(another, keep(claim)) is Done.DONE
                assert await bell.rung(SOON)
            found = await patiently(store, name, a_claim())
            assert isinstance(found, Found)
            assert found.record.holder == mine.holder
    finally:
        old.signal(signal.SIGCONT)
        cluster.close()


async def test_a_cluster_that_lets_nobody_write_says_so() -> None:
    """A primary without a replica is lost, and full coverage is asked for: the other primaries answer CLUSTERDOWN. The
    store is away, says why, and is back as soon as it is."""
    cluster = await asyncio.to_thread(RedisCluster(preferred(), replicas=False, whole=True).start)
    try:
        async with store_on(cluster.url) as store:
            name, lost = names_of(cluster, cluster.primaries[0], 1)[0], cluster.primaries[1]
            lost.kill()
            await eventually(lambda: not store.available, "it is away", SOON)
            assert store.trouble
            with pytest.raises(StoreAway) as away:
                await store.claim(name, a_claim())
            assert not away.value.ambiguous
            assert "CLUSTERDOWN" in away.value.why
            await asyncio.to_thread(lost.start)
            assert await patiently(store, name, a_claim()) is Done.WON
            await eventually(lambda: store.available, "it is back", SOON)
    finally:
        cluster.close()


async def test_one_node_that_answers_is_enough(cluster: RedisCluster) -> None:
    """The URL names a port on which nobody listens and a replica: the cluster is found."""
    async with store_on(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.replicas[2].port}/") as store:
        for n in range(30):
            assert await store.claim(b"%043d" % n, a_claim()) is Done.WON


# ── Before it is trusted ──────────────────────────────────────────────────────────────────────────


async def test_one_primary_that_evicts_is_refused_by_its_name(cluster: RedisCluster) -> None:
    """An evicting policy on one of three: its keys are refused, and it is named; those of the others are served. Set
    back, it is claimed from again."""
    bad, good = cluster.primaries[1:]
    mine, yours = names_of(cluster, bad, 2), names_of(cluster, good, 2)
    ear = Ear()
    async with store_on(cluster.url, ear=ear) as store:
        claim = a_claim()
        assert await store.claim(mine[0], claim) is Done.WON
        for setting in (("maxmemory-policy", "volatile-lru"), ("maxmemory", "64mb")):
            bad.run("CONFIG", "SET", *setting)
        try:
            await eventually(lambda: _names(store).get("evicts") is Severity.REFUSE, "it is seen", SOON)
            with pytest.raises(StoreRefused, match=rf"evicts: at 127\.0\.0\.1:{bad.port}: .*noeviction"):
                await store.claim(mine[1], a_claim())
            assert await store.settle(mine[0], keep(claim)) is Done.DONE
            assert await store.claim(yours[0], a_claim()) is Done.WON
            assert store.available
            assert ear.alarms == ["evicts"]
        finally:
            bad.run("CONFIG", "SET", "maxmemory-policy", "noeviction")
            bad.run("CONFIG", "SET", "maxmemory", "0")
        await eventually(lambda: "evicts" not in _names(store), "it is fit again", SOON)
        assert await store.claim(mine[1], a_claim()) is Done.WON


async def test_too_few_acknowledgements_are_counted_at_each_primary(cluster: RedisCluster) -> None:
    """`replicas=1` where each primary has one: claims wait for it, on the primary that they are on. While that
    replica stands still they are refused, and those of the other primaries are not. A claim whose slot is on its way
    waits for the replica at its end."""
    names = [names_of(cluster, primary, 2) for primary in cluster.primaries]
    async with store_on(f"{cluster.url}?durability=replicated&replicas=1&wait=100ms") as store:
        for own in names:
            assert await store.claim(own[0], a_claim()) is Done.WON
        assert all(primary.calls("wait") > 0 for primary in cluster.primaries)
        slot, target = key_slot(key(names[0][0])), cluster.primaries[1]
        on_its_way, waits = names_in(slot, 3)[-1], target.calls("wait")
        with cluster.moving(slot, target):
            assert await store.claim(on_its_way, a_claim()) is Done.WON
            assert target.calls("wait") > waits, "it waits where it was made"
        await asyncio.to_thread(cluster.move, slot, cluster.primaries[0])
        replica = cluster.replicas[0]
        replica.signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreAway, match="0 of 1 replicas have the write"):
                await store.claim(names[0][1], a_claim())
            assert await store.claim(names[1][1], a_claim()) is Done.WON
        finally:
            replica.signal(signal.SIGCONT)


async def test_a_marker_on_every_primary(cluster: RedisCluster, store: AwaitableStore) -> None:
    """Each primary has one, in a slot of its own, under the lowest number that has its slot there."""
    numbers = numbered({slot: cluster.primaries[min(slot // (SLOTS // 3), 2)] for slot in range(SLOTS)}.get)
    assert len(numbers) == 3
    for primary, number in numbers.items():
        assert primary.run("KEYS", "og:marker:*") == [f"og:marker:shop:{{{number}}}".encode()]


async def test_one_primary_that_was_emptied_is_an_alarm(cluster: RedisCluster, store: AwaitableStore) -> None:
    """FLUSHALL of one primary of three: within two looks it is an alarm at each gate, by its address."""
    one, two = Ear(), Ear()
    async with store_on(cluster.url, ear=one) as first, store_on(cluster.url, ear=two) as second:
        cluster.primaries[2].run("FLUSHALL")
        await eventually(lambda: one.alarms == two.alarms == ["amnesia"], "an alarm", SOON)
        assert all(f"at 127.0.0.1:{cluster.primaries[2].port}" in gate.findings[0].text for gate in (first, second))
        assert first.accept()
        assert "amnesia" not in _names(first)
        assert not first.accept()


async def test_a_marker_that_moves_with_its_slot_is_no_amnesia(cluster: RedisCluster) -> None:
    """The slot of a primary's marker goes to another primary and comes back: each has a marker all along, and
    nobody is alarmed."""
    ear = Ear()
    source, target = cluster.primaries[:2]
    slot = next(slot for slot in TAGS if cluster.owner(slot) is source)
    async with store_on(cluster.url, ear=ear) as store:
        for there in (target, source):
            await asyncio.to_thread(cluster.move, slot, there)
            for _ in range(20):
                for name in names_of(cluster, source, 2):
                    await patiently(store, name, a_claim())
                await asyncio.sleep(0.1)
            assert source.run("KEYS", "og:marker:*")
        assert ear.alarms == []
        assert "amnesia" not in _names(store)


async def test_another_identity_is_refused_on_every_primary(cluster: RedisCluster, store: AwaitableStore) -> None:
    """A gate of another configuration claims nothing anywhere, until it is told to accept new keys; then the former
    one does not. A marker that stands where slots once were is taken over too."""
    left = next(
        number for number, slot in enumerate(TAGS) if number > 9 and cluster.owner(slot) is cluster.primaries[0]
    )
    source = cluster.primaries[0]
    own = source.run("KEYS", "og:marker:*")[0]
    source.run("SET", f"og:marker:shop:{{{left}}}", source.run("GET", own))
    everywhere = [names_of(cluster, primary, 1)[0] for primary in cluster.primaries]
    async with store_on(cluster.url, replace(TRUST, identity=elsewhere)) as second:
        for name in everywhere:
            with pytest.raises(IdentityChanged):
                await second.claim(name, a_claim())
        assert second.trouble.startswith("identity-changed")
    async with store_on(cluster.url, replace(TRUST, identity=elsewhere, accept_new_keys=True)) as third:
        for name in everywhere:
            assert await third.claim(name, a_claim()) is Done.WON
        await eventually(lambda: not store.available, "the former one refuses", SOON)
        for name in everywhere:
            with pytest.raises(IdentityChanged):
                await store.claim(name, a_claim())
        await eventually(
            lambda: b"other" in source.run("GET", f"og:marker:shop:{{{left}}}"),
            "what was left behind is taken over",
            SOON,
        )


async def test_a_cluster_that_is_named_as_one_server(cluster: RedisCluster) -> None:
    """redis:// with the address of a node: refused, and the reason says what to write."""
    async with store_on(cluster.primaries[0].url) as store:
        assert not store.available
        with pytest.raises(StoreRefused, match=r"is-a-cluster: .*redis\+cluster://HOST,HOST,HOST"):
            await store.claim(b"n" * 43, a_claim())


async def test_one_server_that_is_named_as_a_cluster() -> None:
    """The gate starts all the same, and says what it was told."""
    server = RedisServer(preferred()).start()
    try:
        async with store_on(f"redis+cluster://127.0.0.1:{server.port}") as store:
            assert not store.available
            assert "cluster support disabled" in store.trouble
            with pytest.raises(StoreAway, match="cluster support disabled"):
                await store.claim(b"n" * 43, a_claim())
    finally:
        server.close()


# ── Bells ─────────────────────────────────────────────────────────────────────────────────────────


async def test_bells_follow_a_slot(cluster: RedisCluster, store: AwaitableStore) -> None:
    """Somebody waits for a record whose slot moves: the bell is subscribed at the new primary, rings for that, and
    rings for what is settled there. Whoever waits for another record is not disturbed."""
    source, target = cluster.primaries[:2]
    name, stays = names_of(cluster, source, 2)
    slot, claim = key_slot(key(name)), a_claim()
    await store.claim(name, claim)
    with listen(store, name) as bell, listen(store, stays) as other:
        await eventually(lambda: bell.hears and other.hears, "both hear", SOON)
        assert await bell.rung(SOON)
        assert await other.rung(SOON)
        assert sorted(source.run("PUBSUB", "SHARDCHANNELS")) == sorted((key(name), key(stays)))
        await asyncio.to_thread(cluster.move, slot, target)
        await eventually(lambda: target.run("PUBSUB", "SHARDCHANNELS") == [key(name)], "it is subscribed there", SOON)
        assert source.run("PUBSUB", "SHARDCHANNELS") == [key(stays)]
        assert await bell.rung(SOON), "it begins to hear, and whoever waits looks"
        assert bell.hears
        assert other.hears
        assert not await other.rung(0.1), "its connection was lost"
        while await bell.rung(0.2):
            pass
        assert await store.settle(name, keep(claim)) is Done.DONE
        assert await bell.rung(SOON)
    await eventually(lambda: target.run("PUBSUB", "SHARDCHANNELS") == [], "nothing is subscribed", SOON)
    await asyncio.to_thread(cluster.move, slot, source)


# ── The map ───────────────────────────────────────────────────────────────────────────────────────

A, B, C, D = (Address("127.0.0.1", port) for port in (1, 2, 3, 4))


def a_view(*owners: Address) -> View:
    return View(tuple(Range(at * 10, at * 10 + 9, owner) for at, owner in enumerate(owners)), frozenset())


def test_the_map_is_what_most_nodes_see() -> None:
    """A node that was frozen while another took its place still says that it has its slots: nobody else does."""
    stale, new = a_view(A, B, C), a_view(D, B, C)
    assert elect({A: stale, B: new, C: new}).ranges == new.ranges
    assert elect({A: stale, B: new}).ranges == new.ranges
    assert elect({A: stale}).ranges == stale.ranges
    assert elect({A: View((), frozenset()), B: new}).ranges == new.ranges
    assert elect({}).ranges == ()


def test_a_node_that_does_not_know_its_host_is_the_one_that_was_asked() -> None:
    """Redis announces an empty host, or `?`, where it has not been told its own."""
    for host in (b"", b"?", None):
        assert read_view([[0, 9, [host, 7, b"id"]]], A).ranges == (Range(0, 9, Address("127.0.0.1", 7)),)
    seen = read_view([[5, 9, [b"h", 1, b"i"], [b"r", 2, b"j"]], [0, 4, [b"g", 3, b"k"]]], A)
    assert [each.first for each in seen.ranges] == [0, 5]
    assert seen.replicas == {Address("r", 2)}
    with pytest.raises(ValueError, match="not a map"):
        read_view(b"OK", A)

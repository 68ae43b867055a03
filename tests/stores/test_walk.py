"""Walking through a store: every record is met, in batches, by its header alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app import open_store
from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.record import Found, Record
from gateway.ports import Catalogue, Nobody, Page, StoreAway
from gateway.stores.codec import HEADER, Unreadable, decode, encode, header
from tests.cluster import RedisCluster
from tests.servers import RedisServer, binaries, preferred
from tests.stores.worlds import (
    LEASE,
    WINDOW,
    WORLDS,
    FakeClock,
    World,
    _servers,
    a_claim,
    an_answer,
    every_store,
    redis_store,
)

MIB = b"x" * (1 << 20)


async def filled(world: World, count: int) -> dict[bytes, Record]:
    """So many records, each third with an answer of one mebibyte less each time, by name."""
    await world.store.open()
    made: dict[bytes, Record] = {}
    for number in range(count):
        name = b"%043d" % (number * 7919)
        claim = a_claim()
        await world.store.claim(name, claim)
        made[name] = claim
        if number % 10 == 0:
            settlement = records.keep(claim, an_answer(MIB), wall=1_700_000_000_000)
            await world.store.settle(name, settlement)
            assert settlement.record is not None
            made[name] = settlement.record
    return made


async def pages(store: object, most: int) -> list[Page]:
    """A whole walk."""
    assert isinstance(store.port, Catalogue)
    told: list[Page] = []
    cursor = ""
    while not told or cursor:
        told.append(await store.walk(cursor, most))
        cursor = told[-1].cursor
        assert len(told) < 1000, "the walk does not end"
    return told


@every_store
async def test_every_record_is_met_by_its_header(kind: str) -> None:
    """60 records, batches of about 10 → all of them, none with its answer, each with its age; the share behind
    grows to 1."""
    world = WORLDS[kind]()
    try:
        made = await filled(world, 60)
        await world.pass_time(2000)
        told = await pages(world.store, 10)
        met: dict[bytes, Found] = {name: found for page in told for name, found in page.records}
        assert met.keys() == made.keys()
        for name, found in met.items():
            seen = await world.store.get(name)
            assert seen is not None
            assert found.record.answer is None
            assert encode(seen.record).startswith(encode(records.replace(found.record, answer=None)))
            assert 2000 <= found.age < 30_000
        shares = [page.share for page in told]
        assert len(told) > 1
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert sum(page.looked for page in told) >= 60
        await world.pass_time(WINDOW + 1000)  # what is completed has ended; what is in flight has lapsed, and stands
        left = {name for page in await pages(world.store, 10) for name, _ in page.records}
        assert left == {name for name, record in made.items() if record.answer is None}
    finally:
        await world.close()


@pytest.mark.parametrize("kind", list(binaries()))
async def test_a_redis_is_never_stopped_for_it(kind: str) -> None:
    """SCAN, GETRANGE and PTTL are all that is asked, never KEYS; what is no record of ours is not told, and what cannot
    be read is counted; of six mebibytes of answers a few kilobytes leave the server."""
    world = WORLDS[kind]()
    try:
        await filled(world, 60)
        server = _servers[kind]
        assert isinstance(server, RedisServer)
        with server.client() as client:
            client.set("og:" + "u" * 43, b"\x63 another version", px=60_000)
            client.set("og:" + "v" * 43, b"without an end")
            client.lpush("og:" + "w" * 43, "a list")
            client.set("og:a-marker", b"no record")
            client.set("another's", b"no record")
            client.config_resetstat()
            told = await pages(world.store, 10)
            calls = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
            sent = client.info("stats")["total_net_output_bytes"]
        assert sum(page.unreadable for page in told) == 3
        assert sum(len(page.records) for page in told) >= 60
        assert {"scan", "getrange", "pttl"} <= calls
        assert not calls & {"keys", "mget", "dump"}
        assert sent < 300_000
    finally:
        await world.close()


async def test_a_prefix_is_no_pattern() -> None:
    """A prefix with stars and brackets finds its own records, and no others."""
    server = RedisServer(preferred()).start()
    store = AwaitableStore(open_store(server.url, FakeClock(), Nobody(), prefix="o*[g]?:"))
    try:
        await store.open()
        with server.client() as client:
            client.set("oxxg?:" + "n" * 43, encode(a_claim()), px=60_000)
        await store.claim(b"m" * 43, a_claim())
        told = await pages(store, 10)
        assert [name for page in told for name, _ in page.records] == [b"m" * 43]
        assert sum(page.looked for page in told) == 1
    finally:
        await store.close()
        server.close()


async def test_a_cluster_is_walked_primary_by_primary() -> None:
    """A cursor of a primary that has gone leads on to the next one; one that names nothing is refused."""
    world = WORLDS["cluster"]()
    try:
        await filled(world, 30)
        assert isinstance(_servers["cluster"], RedisCluster)
        assert isinstance(world.store.port, Catalogue)
        first = await world.store.walk("", 5)
        everything = {name for page in await pages(world.store, 50) for name, _ in page.records}
        assert len(everything) == 30
        assert first.cursor.startswith("127.0.0.1:")
        gone = await world.store.walk("127.0.0.1:0 77", 50)
        assert {name for name, _ in gone.records} <= everything
        assert (await world.store.walk("~ 77", 50)).cursor == ""
        for cursor in ("nowhere", "127.0.0.1:1 x", " 99999999999999999999"):
            with pytest.raises(ValueError, match="cursor"):
                await world.store.walk(cursor, 5)
    finally:
        await world.close()


async def test_a_store_that_is_away_says_so() -> None:
    """Nobody listens → StoreAway, not an empty store."""
    store = redis_store("redis://127.0.0.1:1/0")
    await store.open()
    try:
        with pytest.raises(StoreAway):
            await store.walk("", 10)
    finally:
        await store.close()


@given(
    st.binary(max_size=510).filter(lambda tags: len(tags) % 2 == 0),
    st.text(max_size=300).filter(lambda label: label.isascii()),
    st.booleans(),
    st.binary(max_size=2000),
)
def test_a_header_is_all_but_the_answer(tags: bytes, route: str, completed: bool, body: bytes) -> None:
    """The first HEADER bytes of any record tell what all of them tell, save for the answer."""
    claim = a_claim()
    claim = records.replace(claim, fingerprint=claim.fingerprint._replace(tags=tags), route=route)
    record = claim
    if completed:
        settled = records.keep(claim, an_answer(body), wall=1_700_000_000_000).record
        assert settled is not None
        record = settled
    value = encode(record)
    assert header(value[:HEADER]) == records.replace(decode(value), answer=None)


def test_a_header_that_is_cut_short_is_unreadable() -> None:
    """Any beginning of a record that ends within its header is refused; nothing is guessed."""
    value = encode(a_claim(lease=LEASE))
    for size in range(len(value)):
        with pytest.raises(Unreadable):
            header(value[:size])

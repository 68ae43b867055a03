"""What only Redis can do to the gate: refuse a part of a command, hang up at the wrong moment, be called oddly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.record import Done, Doubt, Found, Stamp, State
from gateway.ports import Nobody, StoreAway
from gateway.stores.redis import Address, RedisStore, Servers
from gateway.stores.redis.findings import Info
from gateway.stores.redis.link import Link
from gateway.stores.redis.pipeline import Pipeline
from tests.servers import RedisServer, binaries, preferred
from tests.stores.worlds import LEASE, WINDOW, a_claim, a_holder, an_answer, redis_store

NAME = b"n" * 43
NUMBERS = b"redis_version:"


@pytest.fixture(params=list(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    server = RedisServer(binaries()[request.param]).start()
    yield server
    server.close()


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[AwaitableStore]:
    store = redis_store(server.url)
    await store.open()
    yield store
    await store.close()


async def test_what_is_asked_again_is_written_again(server: RedisServer, store: AwaitableStore) -> None:
    """A claim, a takeover and a Keep whose reply was lost are each one write more when they are asked again: WAIT
    covers only what its own connection wrote."""
    first = a_claim()
    taker = records.takeover(first, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)
    stamp = Stamp(State.IN_DOUBT, first.holder)
    hold = records.hold(first, doubt=Doubt.LOST, status=0, wall=0)
    keep = records.keep(taker, an_answer(), wall=0)
    with server.client() as client:

        def writes() -> int:
            return int(client.info("persistence")["rdb_changes_since_last_save"])

        asked: list[tuple[Callable[[], Awaitable[Done | Found]], Done]] = [
            (lambda: store.claim(NAME, first), Done.WON),
            (lambda: store.settle(NAME, hold), Done.DONE),
            (lambda: store.compare_and_swap(NAME, stamp, taker), Done.WON),
            (lambda: store.settle(NAME, keep), Done.DONE),
        ]
        for ask, told in asked:
            for _ in range(2):
                before = writes()
                assert await ask() is told
                assert writes() == before + 1


async def test_a_refused_pttl_is_the_store_being_away(server: RedisServer) -> None:
    """An administrator takes PTTL away while a gate runs: whoever meets a record is told that the store is away, and
    why."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~*", "&*", "+@all")
    store = redis_store(server.url.replace("//", "//half:pw@"))
    await store.open()
    try:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "half", "-pttl")
        assert await store.claim(NAME, a_claim()) is Done.WON
        with pytest.raises(StoreAway, match="NOPERM"):
            await store.claim(NAME, a_claim())
    finally:
        await store.close()


class Between:
    """Passes everything on between a gate and a Redis, but changes the reply that names its version."""

    def __init__(self, to: int, change: Callable[[bytes, asyncio.StreamWriter], bytes]) -> None:
        self.to = to
        self.change = change
        self.came = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        there = await asyncio.open_connection("127.0.0.1", self.to)

        async def back() -> None:
            while data := await there[0].read(1 << 16):
                writer.write(self.change(data, writer) if NUMBERS in data else data)

        returning = asyncio.ensure_future(back())
        try:
            while data := await reader.read(1 << 16):
                there[1].write(data)
        finally:
            returning.cancel()
            there[1].close()
            writer.close()


async def served_in_the_end(change: Callable[[bytes, asyncio.StreamWriter], bytes]) -> Between:
    redis = RedisServer(preferred()).start()
    between = Between(redis.port, change)
    listening = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    store = redis_store(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0")
    try:
        await store.open()
        async with asyncio.timeout(10):
            claim = a_claim()
            while True:
                try:
                    assert await store.claim(NAME, claim) is Done.WON
                    break
                except StoreAway:
                    await store.wait_available(10)
                    await asyncio.sleep(0.01)
    finally:
        await store.close()
        listening.close()
        redis.close()
    return between


async def test_a_connection_that_has_ended_is_not_put_to_use(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first connection ends between the last reply of the greeting and the moment at which it would be used.
    Nobody would tell the store of its end a second time: another is made."""
    greet, left = Link._greet, [1]

    async def lost_at_the_end(self: Link, pipeline: Pipeline) -> Info:
        info = await greet(self, pipeline)
        if left:
            left.clear()
            pipeline.abort("gone")
        return info

    monkeypatch.setattr(Link, "_greet", lost_at_the_end)
    store = redis_store(server.url)
    await store.open()
    try:
        assert not store.available
        assert await store.wait_available(10)
        assert await store.claim(NAME, a_claim()) is Done.WON
    finally:
        await store.close()


async def test_a_connection_that_ends_as_it_is_made_is_made_again() -> None:
    """Redis says all of its greeting and hangs up, three times: the fourth connection serves."""
    left = 3

    def hangs_up(data: bytes, writer: asyncio.StreamWriter) -> bytes:
        nonlocal left
        if left:
            left -= 1
            writer.write(data)
            writer.close()
            return b""
        return data

    assert (await served_in_the_end(hangs_up)).came == 4


@pytest.mark.parametrize("odd", [b"$-1\r\n", b":1\r\n"])
async def test_a_greeting_that_nobody_foresaw_is_not_the_end(odd: bytes) -> None:
    """Something that is no version, twice; then the real one: the gate goes on asking."""
    left = 2

    def speaks_oddly(data: bytes, _: asyncio.StreamWriter) -> bytes:
        nonlocal left
        left -= 1
        return b"+OK\r\n" * 2 + odd if left >= 0 else data

    assert (await served_in_the_end(speaks_oddly)).came == 3


async def test_a_release_candidate_has_a_version() -> None:
    """`9.0-rc1` and its kin are read, and are not too old."""

    def candidate(data: bytes, _: asyncio.StreamWriter) -> bytes:
        at = data.index(NUMBERS) + len(NUMBERS)
        end = data.index(b"\r\n", at)
        return data[:at] + b"9.0-rc1xxxxxxxxx"[: end - at].ljust(end - at, b"x") + data[end:]

    assert (await served_in_the_end(candidate)).came == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
async def test_a_host_that_cannot_be_found_is_named(host: str) -> None:
    """The gate starts all the same, and says which host it does not find."""
    store = AwaitableStore(RedisStore(Servers((Address(host, 6379),)), Nobody()))
    await store.open()
    try:
        assert not store.available
        assert host in store.trouble
    finally:
        await store.close()

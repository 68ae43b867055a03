"""A store at its bound: nothing new is claimed, what is in flight is still settled, what is stored is shown."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.awaitable import AwaitableStore
from gateway.clock import HostClock
from gateway.core import record as records
from gateway.core.record import Done, Found, Record
from gateway.ports import StoreFull
from gateway.stores.memory import MemoryStore
from gateway.stores.sqlite import SqliteStore
from tests.servers import RedisServer, binaries
from tests.stores.worlds import FakeClock, a_claim, an_answer, redis_store

MOST = 100_000


def name(number: int) -> bytes:
    return b"n%042d" % number


async def until_full(store: AwaitableStore) -> list[Record]:
    """Claims, until there is no room for another."""
    claims: list[Record] = []
    while len(claims) < MOST:
        claim = a_claim()
        try:
            assert await store.claim(name(len(claims)), claim) is Done.WON
        except StoreFull:
            return claims
        claims.append(claim)
    raise AssertionError("it never got full")


async def settles_but_claims_no_more(store: AwaitableStore, *, answers: int, body: bytes) -> None:
    """At the bound the claims in flight are asked for again and settled, and shown; another is refused."""
    claims = await until_full(store)
    assert len(claims) >= answers
    assert await store.get(name(len(claims))) is None, "a claim that was refused left something"
    assert await store.claim(name(0), claims[0]) is Done.WON
    for number, claim in enumerate(claims[:answers]):
        assert await store.settle(name(number), records.keep(claim, an_answer(body), wall=0)) is Done.DONE
    found = await store.claim(name(0), a_claim())
    assert isinstance(found, Found)
    assert found.record.answer == an_answer(body)
    with pytest.raises(StoreFull):
        await store.claim(name(len(claims)), a_claim())


async def test_memory_at_its_number_of_records() -> None:
    """Full by number; once a window ends there is room again."""
    clock = FakeClock()
    store = AwaitableStore(MemoryStore(clock, max_records=50))
    await settles_but_claims_no_more(store, answers=50, body=b"{}")
    clock.passed += 10_000
    assert await store.claim(name(50), a_claim()) is Done.WON


async def test_memory_at_its_number_of_bytes() -> None:
    """Full by the size of answers; what a Release or a window's end frees is counted back."""
    clock = FakeClock()
    store = AwaitableStore(MemoryStore(clock, max_bytes=10_000))
    for number in range(3):
        claim = a_claim()
        assert await store.claim(name(number), claim) is Done.WON
        await store.settle(name(number), records.keep(claim, an_answer(b"x" * 4_000), wall=0))
    with pytest.raises(StoreFull):
        await store.claim(name(3), a_claim())
    clock.passed += 10_000
    for number in range(4, 20):
        assert await store.claim(name(number), a_claim()) is Done.WON


async def test_sqlite_at_its_size(tmp_path: Path) -> None:
    """Claims leave room: a hundred answers of a thousand bytes still fit behind the last of them."""
    store = AwaitableStore(SqliteStore(tmp_path / "keys.db", HostClock(), durability="process", max_bytes=1 << 20))
    await store.open()
    try:
        await settles_but_claims_no_more(store, answers=100, body=b"x" * 1_000)
        assert (tmp_path / "keys.db").stat().st_size <= 1 << 20
    finally:
        await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mount, folder = shutil.which("mount"), tmp_path / "disk"
    folder.mkdir()
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_sqlite_on_a_full_disk(small_disk: Path) -> None:
    """Claims leave the last of the disk to answers; what is on it is still shown."""
    (small_disk / "others").write_bytes(b"x" * (5 << 20))
    store = AwaitableStore(SqliteStore(small_disk / "keys.db", HostClock(), durability="process"))
    await store.open()
    try:
        await settles_but_claims_no_more(store, answers=50, body=b"x" * 1_000)
        (small_disk / "others").unlink()
        assert await store.claim(name(MOST), a_claim()) is Done.WON
    finally:
        await store.close()


@pytest.mark.parametrize("kind", list(binaries()))
async def test_redis_at_its_memory_limit(kind: str) -> None:
    """-OOM to a claim of a new key; an answer is still kept (allow-oom), and a completed record is still shown."""
    server = RedisServer(binaries()[kind], arguments=("--maxmemory-policy", "noeviction")).start()
    store = redis_store(server.url)
    await store.open()
    try:
        claim = a_claim()
        assert await store.claim(name(0), claim) is Done.WON
        with server.client() as client:
            client.config_set("maxmemory", 1)
        assert await store.settle(name(0), records.keep(claim, an_answer(), wall=0)) is Done.DONE
        found = await store.claim(name(0), a_claim())
        assert isinstance(found, Found)
        assert found.record.answer == an_answer()
        with pytest.raises(StoreFull):
            await store.claim(name(1), a_claim())
        assert await store.get(name(1)) is None
    finally:
        await store.close()
        server.close()

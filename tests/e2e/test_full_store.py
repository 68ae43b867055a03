"""A store that has no room for another key: clients, readiness, metrics, the log and the doctor agree on it, what is
stored is still replayed, and the gateway serves again on its own once there is room."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.app import App
from gateway.awaitable import AwaitableStore, result_of
from gateway.core import record as records
from gateway.core.record import Done, Found, Record
from gateway.doctor import Store, look_at
from gateway.ports import Nobody, StoreAway, StoreFull
from gateway.stores.findings import CALM, FULL, WRITES_REFUSED, ClaimRefusals, Finding, Severity
from gateway.stores.sqlite import SqliteStore
from tests.e2e.crowd import admin, eventually
from tests.harness import Exchange, GateProcess, Origin, Response, RunningGate, ask, configuration, gate
from tests.servers import RedisServer, binaries
from tests.stores.worlds import FakeClock, a_claim

#: Seconds within which a gateway has noticed that there is room again: the hysteresis, a look, and a busy machine.
RECOVERED = CALM + 25


class Alarms(Nobody):
    """Records the findings that raised an alarm, and those that the log says have ended."""

    def __init__(self) -> None:
        self.raised: list[str] = []
        self.ended: list[str] = []

    def alarm(self, what: str, **facts: object) -> None:
        self.raised.append(str(facts.get("finding", what)))

    def say(self, level: str, what: str, **facts: object) -> None:
        if level == "info":
            self.ended.append(str(facts["finding"]))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    mount, folder = shutil.which("mount"), tmp_path / "disk"
    folder.mkdir()
    command = [str(mount), "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, check=False).returncode:
        pytest.skip("a full disk was not tried: no file system can be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Fill a file system with another program's file, except for `leave` bytes."""
    other = disk / "other"
    with other.open("ab", buffering=0) as out:
        seen = os.statvfs(disk)
        left = seen.f_bavail * seen.f_frsize - leave
        try:
            while left > 0:
                left -= out.write(bytes(min(left, 1 << 16)))
        except OSError:
            pass
    return other


async def readiness(running: RunningGate) -> tuple[int, dict[str, object]]:
    return await admin(running.admin_port, "/ready/guarded")


def alarms(running: RunningGate, finding: str) -> list[dict[str, object]]:
    return [line for line in running.lines if line.get("level") == "alarm" and line.get("finding") == finding]


async def refused_for_want_of_room(running: RunningGate, key: str) -> None:
    """A new key is refused before anything runs, and the answer names the cause."""
    answer = await ask(running.port, key=key)
    assert (answer.status, answer.problem, answer.get("Retry-After")) == (503, "store-unavailable", "1")
    told = json.loads(answer.body)
    assert told["title"] == "The idempotency store is unavailable"
    assert told["detail"].startswith("The idempotency store is full: it has no room for a new key.")
    assert "The request was not executed" in told["detail"]
    assert (answer.label, answer.get("Idempotency-Outcome")) == ("refused", "no-effect")


async def is_full_and_recovers(
    running: RunningGate, origin: Origin, make_full: Callable[[], object], make_room: Callable[[], object]
) -> None:
    """Everybody who is asked says that the store is full while it is, and nobody afterwards."""
    first = await ask(running.port, key="before")
    assert first.label == "stored"
    assert await readiness(running) == (200, {"status": "ready"})
    make_full()
    # No request comes: readiness notices on its own.
    _, told = await eventually(lambda: readiness(running), lambda seen: seen[0] == 503)
    assert str(told["reason"]).startswith("store-unavailable: full: "), told
    assert told["findings"].keys() == {"full"}  # type: ignore[attr-defined]
    await refused_for_want_of_room(running, "refused")
    assert running.count("oncegate_store_finding", name="full") == 1
    assert (await ask(running.port, key="before")).replayed, "what is stored is served while the store is full"
    assert origin.effects == {b"before": 1}
    make_room()
    assert (await readiness(running))[0] == 503, "one look is not enough: the finding has hysteresis"
    await eventually(lambda: readiness(running), lambda seen: seen == (200, {"status": "ready"}), RECOVERED)
    assert running.count("oncegate_store_finding", name="full") == 0
    assert (await ask(running.port, key="refused")).label == "stored"
    assert origin.effects == {b"before": 1, b"refused": 1}
    assert len(alarms(running, "full")) == 1
    ended = [line for line in running.lines if line.get("finding") == "full" and line.get("level") == "info"]
    assert len(ended) == 1


async def test_sqlite_on_a_full_disk(origin: Origin, disk: Path) -> None:
    """Another program fills the disk, and deletes its file later."""
    text = configuration(origin.url, store=f"sqlite:///{disk}/keys.db", policy="store_wait: 0s")
    async with gate(text) as running:
        other = disk / "other"
        await is_full_and_recovers(running, origin, lambda: fill(disk), other.unlink)


@pytest.mark.parametrize("kind", list(binaries()))
async def test_redis_at_its_memory_limit(origin: Origin, kind: str) -> None:
    """Redis and Valkey past `maxmemory` with `noeviction`."""
    with RedisServer(binaries()[kind], aof=True) as server, server.client() as client:

        def limit(value: int) -> Callable[[], object]:
            return lambda: client.config_set("maxmemory", value)

        text = configuration(origin.url, store=server.url, policy="store_wait: 0s")
        async with gate(text) as running:
            await is_full_and_recovers(running, origin, limit(1), limit(0))


async def test_memory_at_its_bound(origin: Origin) -> None:
    """The memory store at `max_records`. Its windows end, and there is room again."""
    text = configuration(origin.url, store="memory://?max_records=3", policy="window: 3s, store_wait: 0s")
    async with gate(text) as running:
        for number in range(3):
            assert (await ask(running.port, key=f"k{number}")).label == "stored"
        status, told = await readiness(running)
        assert (status, told["findings"].keys()) == (503, {"full"})  # type: ignore[attr-defined]
        await refused_for_want_of_room(running, "refused")
        await eventually(lambda: readiness(running), lambda seen: seen[0] == 200, RECOVERED)
        assert (await ask(running.port, key="refused")).label == "stored"
        assert len(alarms(running, "full")) == 1


async def test_redis_that_refuses_writes_for_another_reason(origin: Origin) -> None:
    """A Redis with too few replicas (`min-replicas-to-write`) refuses every claim: readiness, the metric, an alarm and
    the doctor have it, as of a full one. It is not called full."""
    with RedisServer(next(iter(binaries().values())), aof=True) as server, server.client() as client:
        async with gate(configuration(origin.url, store=server.url, policy="store_wait: 0s")) as running:
            client.config_set("min-replicas-to-write", 1)
            _, told = await eventually(lambda: readiness(running), lambda seen: seen[0] == 503)
            assert str(told["reason"]).startswith("store-unavailable: writes-refused: Redis refuses writes because")
            answer = await ask(running.port, key="refused")
            assert (answer.status, answer.problem) == (503, "store-unavailable")
            assert b"full" not in answer.body
            report = await look_at(Store(server.url))
            assert not report.good
            assert "REFUSED  writes-refused: " in report.text
            client.config_set("min-replicas-to-write", 0)
            await eventually(lambda: readiness(running), lambda seen: seen[0] == 200, RECOVERED)
            assert (await look_at(Store(server.url))).good
            assert len(alarms(running, WRITES_REFUSED)) == 1


async def test_store_check_does_not_hide_a_full_redis(origin: Origin) -> None:
    """`store_check` says how far a server is trusted. One that is full refuses claims under each of its values."""
    with RedisServer(next(iter(binaries().values())), aof=True) as server, server.client() as client:
        client.config_set("maxmemory", 1)
        for check in ("warn", "off"):
            text = configuration(origin.url, store=server.url, top=f"store_check: {check}")
            async with gate(text) as running:
                assert FULL in (await readiness(running))[1]["findings"]  # type: ignore[operator]


async def test_a_bounded_process_cannot_write(origin: Origin, tmp_path: Path) -> None:
    """A gateway process may write no file longer than it is (RLIMIT_FSIZE, as a quota does): readiness is 503 with the
    finding `writes-refused`, and 200 once it may write again."""
    file = tmp_path / "keys.db"
    here = GateProcess(configuration(origin.url, store=f"sqlite:///{file}", policy="store_wait: 0s"))
    try:
        await here.start()
        assert (await ask(here.port, key="k1")).label == "stored"
        assert here.process is not None
        _, hard = resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE)
        longest = max(path.stat().st_size for path in tmp_path.iterdir())
        resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE, (longest, hard))
        assert (await ask(here.port, key="refused")).status == 503

        async def seen() -> tuple[int, dict[str, object]]:
            return await admin(here.admin_port, "/ready/guarded")

        _, told = await eventually(seen, lambda seen: seen[0] == 503)
        assert str(told["reason"]).startswith(("store-unavailable: writes-refused: ", "store-unavailable: full: "))
        assert (await ask(here.port, key="k1")).replayed
        resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await eventually(seen, lambda seen: seen[0] == 200, RECOVERED)
        assert (await ask(here.port, key="refused")).label == "stored"
    finally:
        here.close()


# ── The doctor ────────────────────────────────────────────────────────────────────────────────────


async def test_the_doctor_about_a_full_redis() -> None:
    """It is REFUSED with what to change, and the same server with room is served."""
    with RedisServer(next(iter(binaries().values())), aof=True) as server, server.client() as client:
        client.config_set("maxmemory", 1)
        report = await look_at(Store(server.url))
        assert not report.good
        assert "REFUSED  full: Redis has no memory for new keys: " in report.text
        assert "guarded requests would be refused" in report.text
        client.config_set("maxmemory", 0)
        assert (await look_at(Store(server.url))).good
        assert client.dbsize() == 0, "the doctor writes nothing"


async def test_the_doctor_about_a_full_disk(disk: Path) -> None:
    """A file on a disk without room is REFUSED; with room it is served, and no record was left in it."""
    store = AwaitableStore(SqliteStore(disk / "keys.db", FakeClock()))
    await store.open()
    await store.claim(b"n" * 43, a_claim())
    await store.close()
    url = f"sqlite:///{disk}/keys.db"
    assert (await look_at(Store(url))).good
    other = fill(disk, leave=1 << 20)
    report = await look_at(Store(url))
    assert not report.good
    assert "REFUSED  full: SQLite has no room for new keys: " in report.text
    other.unlink()
    assert (await look_at(Store(url))).good


# ── What a full SQLite can still do ───────────────────────────────────────────────────────────────


async def test_a_disk_that_the_records_filled_is_usable_again_when_they_end(disk: Path) -> None:
    """The store's own file fills the disk, and cannot shrink. Once its records have ended, their pages are room: claims
    are accepted again, although the disk itself stays full."""
    fill(disk, leave=12 << 20)
    clock, ear = FakeClock(), Alarms()
    store = AwaitableStore(SqliteStore(disk / "keys.db", clock, ear, durability="process", say=ear.say))
    await store.open()
    try:
        await claims_until_full(store)
        seen = os.statvfs(disk)
        assert seen.f_bavail * seen.f_frsize <= 2 << 20
        clock.passed += 3_600

        async def claimed() -> bool:
            clock.passed += 2.5  # the next sweep is due
            try:
                return await store.claim(b"y" * 43, a_claim()) is Done.WON
            except StoreAway:
                return False

        assert await eventually(claimed, bool)
        seen = os.statvfs(disk)
        assert seen.f_bavail * seen.f_frsize <= 2 << 20, "the disk is as full as it was"
    finally:
        await store.close()


async def claims_until_full(store: AwaitableStore) -> list[Record]:
    claims: list[Record] = []
    while len(claims) < 100_000:
        batch = [a_claim() for _ in range(200)]
        names = [b"n%042d" % (len(claims) + place) for place in range(200)]
        asked = (store.claim(name, claim) for name, claim in zip(names, batch, strict=True))
        results = await asyncio.gather(*asked, return_exceptions=True)
        for result, claim in zip(results, batch, strict=True):
            if isinstance(result, StoreFull):
                return claims
            assert result is Done.WON
            claims.append(claim)
    raise AssertionError("it never got full")


async def test_settlements_on_a_disk_that_has_nothing_left(disk: Path) -> None:
    """Claims stop with 2 MiB left. Then another program takes even those: Releases, Holds and Keeps without a body
    overwrite and delete what stands, and are done. Claims are refused, and nothing that was refused is found later."""
    fill(disk, leave=4 << 20)
    clock = FakeClock()
    store = AwaitableStore(SqliteStore(disk / "keys.db", clock, durability="process"))
    await store.open()
    try:
        claims = [a_claim() for _ in range(3)]
        for number, claim in enumerate(claims):
            assert await store.claim(b"n%042d" % number, claim) is Done.WON
        fill(disk, leave=1 << 20)
        clock.passed += 2.5
        await eventually(lambda: _short(store), bool)
        fill(disk)
        assert os.statvfs(disk).f_bavail == 0
        settlements = (
            records.release(claims[0], elapsed=0, wall=0),
            records.hold(claims[1], doubt=records.Doubt.LOST, status=0, wall=0),
            records.keep(claims[2], records.Answer(201, b"", None), wall=0),
        )
        for number, settlement in enumerate(settlements):
            assert await store.settle(b"n%042d" % number, settlement) is Done.DONE
        with pytest.raises(StoreFull):
            await store.claim(b"x" * 43, a_claim())
        (disk / "other").unlink()
        assert await store.get(b"x" * 43) is None
        assert await store.get(b"n%042d" % 0) is None
        for number, settlement in list(enumerate(settlements))[1:]:
            found = await store.get(b"n%042d" % number)
            assert isinstance(found, Found)
            assert found.record == settlement.record
    finally:
        await store.close()


async def _short(store: AwaitableStore) -> bool:
    return store.claims_refused != ""


async def test_a_lowered_max_page_count(tmp_path: Path) -> None:
    """SQLite itself says that the file is full (PRAGMA max_page_count), and the disk is not: it is `full` all the same,
    with one alarm, until a write succeeds and stays so."""
    ear, clock = Alarms(), FakeClock()
    store = AwaitableStore(SqliteStore(tmp_path / "keys.db", clock, ear, durability="process", say=ear.say))
    await store.open()
    try:
        await result_of(store._do, lambda db, now: db.execute("PRAGMA max_page_count = 8").fetchall())
        await claims_until_full(store)
        assert [found.name for found in store.findings] == ["full"]
        await result_of(store._do, lambda db, now: db.execute("PRAGMA max_page_count = 100000").fetchall())

        async def recovered() -> bool:
            clock.passed += 2.5
            return not store.findings

        await eventually(recovered, bool)
        assert await store.claim(b"z" * 43, a_claim()) is Done.WON
        assert (ear.raised, ear.ended) == (["full"], ["full"])
    finally:
        await store.close()


# ── Hysteresis ────────────────────────────────────────────────────────────────────────────────────


def test_the_finding_outlasts_single_successes() -> None:
    """A refusal makes it stand, each further one prolongs it, and it ends only after the store has accepted writes for
    the whole time."""
    now = 100.0
    refusals = ClaimRefusals(lambda: now)
    finding = Finding(FULL, Severity.REFUSE, "no room")
    refusals.accepted()
    assert refusals.findings == ()
    for _ in range(5):
        refusals.refused(finding)
        now += CALM - 0.1
        refusals.accepted()
        assert refusals.findings == (finding,)
    now += 0.2
    assert refusals.findings == (finding,), "time alone does not end it: the store must have accepted a write"
    refusals.accepted()
    assert refusals.findings == ()


async def test_a_store_at_the_edge_raises_one_alarm(origin: Origin) -> None:
    """A Redis that is full and not full by turns, several times a second: one alarm."""
    with RedisServer(next(iter(binaries().values())), aof=True) as server, server.client() as client:
        async with gate(configuration(origin.url, store=server.url, policy="store_wait: 0s")) as running:
            answers: list[Response] = []
            for number in range(12):
                client.config_set("maxmemory", number % 2)
                answers.append(await ask(running.port, key=f"k{number}"))
                await asyncio.sleep(0.25)
            assert [answer.status for answer in answers] == [201, 503] * 6
            assert running.count("oncegate_store_finding", name="full") == 1
            assert len(alarms(running, "full")) == 1


def bounded(app: App) -> None:
    assert isinstance(app.store.port, SqliteStore)
    app.store.port._max_bytes = 1 << 16


async def long_answer(exchange: Exchange) -> None:
    await exchange.respond(201, b"x" * 4000)


async def test_a_file_at_its_bound(origin: Origin, tmp_path: Path) -> None:
    """SQLite at `max_bytes`: full for clients and probes until windows end and the sweep makes room."""
    origin.answer = long_answer
    text = configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db", policy="window: 4s, store_wait: 0s")
    async with gate(text, prepare=bounded) as running:
        count = 0
        while (await ask(running.port, key=f"k{count}")).status == 201:
            count += 1
            assert count < 100, "it never got full"
        await refused_for_want_of_room(running, f"k{count}")
        _, told = await eventually(lambda: readiness(running), lambda seen: seen[0] == 503)
        assert told["findings"].keys() == {"full"}  # type: ignore[attr-defined]
        await eventually(lambda: readiness(running), lambda seen: seen[0] == 200, RECOVERED)
        assert (await ask(running.port, key=f"k{count}")).status == 201
        with closing(sqlite3.connect(tmp_path / "keys.db")) as db:
            names = [name for (name,) in db.execute("SELECT name FROM records")]
        assert all(len(name) == 43 for name in names), "a look leaves nothing in the file"

"""Records in SQLite and the clocks of their host: steps of the wall clock, restarts, reboots, time namespaces.

The files are real and really opened again; the clocks are the test's.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from gateway.awaitable import AwaitableStore
from gateway.clock import HostClock
from gateway.core.record import Done, Found, keep
from gateway.ports import Nobody
from gateway.stores.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteStore
from gateway.stores.store_clock import StoreClock, host_boot
from tests.stores.worlds import LEASE, a_claim, an_answer

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NAME, OTHER = b"n" * 43, b"o" * 43
LIFE = HOUR


class Host:
    """A host's clocks, in milliseconds, and its boot. `shift`: of the time namespace that a process is in."""

    def __init__(self) -> None:
        self.boottime, self.real, self.id = 5 * DAY, 1_700_000_000_000, "boot-1"
        self.shift = 0

    def now(self) -> float:
        return (self.boottime + self.shift) / 1000

    def wall(self) -> int:
        return self.real

    def boot(self) -> tuple[str, int]:
        return self.id, self.shift

    def passes(self, milliseconds: int) -> None:
        self.boottime += milliseconds
        self.real += milliseconds

    def steps(self, milliseconds: int) -> None:
        self.real += milliseconds

    def reboots(self, down: int) -> None:
        self.id += "'"
        self.boottime = MINUTE
        self.real += down

    def elsewhere(self, shift: int) -> Host:
        """The same host, as a process in another time namespace sees it."""
        other = Host()
        other.boottime, other.real, other.id, other.shift = self.boottime, self.real, self.id, shift
        return other


class Alarms(Nobody):
    """The alarms that were raised."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def alarm(self, what: str, **facts: object) -> None:
        self.heard.append(what)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@asynccontextmanager
async def opened(file: Path, host: Host, alarms: Alarms | None = None) -> AsyncIterator[AwaitableStore]:
    store = AwaitableStore(SqliteStore(file, host, alarms or Alarms(), durability="process", boot=host.boot))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def age(store: AwaitableStore, name: bytes = NAME) -> int | None:
    """Milliseconds since the record's last write, None where there is none."""
    found = await store.get(name)
    return None if found is None else found.age


async def at_rest(store: AwaitableStore) -> None:
    """Until the writer has finished what it does behind a call: a look at the clocks, if one is due."""
    await store.get(OTHER)
    await store.get(OTHER)


async def until_stepped(store: AwaitableStore, alarms: Alarms, count: int = 1) -> None:
    """Until the writer has looked at the clocks, which it does every two seconds and after work."""
    async with asyncio.timeout(10):
        while len(alarms.heard) < count:
            await store.get(OTHER)
            await asyncio.sleep(0.01)


# ── While the process runs ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", [2 * DAY, -2 * DAY, 3650 * DAY], ids=["ahead", "back", "ten years"])
async def test_a_step_ends_no_record_and_stretches_none(host: Host, file: Path, step: int) -> None:
    """The wall clock steps while a record has half an hour left: it is found and is not swept, a second claim of it
    is not won, and it ends after that half hour. One alarm and one finding say so; stepped back, the finding ends."""
    alarms = Alarms()
    async with opened(file, host, alarms) as store:
        assert await store.claim(NAME, claim := a_claim(life=LIFE)) is Done.WON
        await at_rest(store)
        host.steps(step)
        host.passes(LIFE // 2)
        await until_stepped(store, alarms)
        assert await age(store) == LIFE // 2
        found = await store.claim(NAME, a_claim(life=LIFE))
        assert isinstance(found, Found)
        assert found.record == claim
        (finding,) = store.findings
        assert finding.name == "clock-stepped"
        assert f"stepped by {step / 1000:+.0f} s" in finding.text
        host.passes(LIFE // 2 - 1)
        assert await age(store) == LIFE - 1
        assert await store.claim(OTHER, a_claim()) is Done.WON
        host.passes(1)
        assert await age(store) is None
        assert await store.claim(NAME, a_claim()) is Done.WON
        assert alarms.heard == [finding.text]
        await at_rest(store)
        host.steps(-step)
        host.passes(3_000)
        async with asyncio.timeout(10):
            while store.findings:
                await store.get(OTHER)
                await asyncio.sleep(0.01)


async def test_an_answer_outlives_a_step(host: Host, file: Path) -> None:
    """An answer is kept, the clock steps ahead by more than its window: it is replayed with the `expires` that clients
    were shown, until its window is over."""
    async with opened(file, host) as store:
        claim = a_claim()
        assert await store.claim(NAME, claim) is Done.WON
        settlement = keep(claim, an_answer(), wall=host.wall())
        assert settlement.record is not None
        assert await store.settle(NAME, settlement) is Done.DONE
        host.steps(DAY)
        host.passes(settlement.record.life - 1)
        found = await store.get(NAME)
        assert found is not None
        assert found.record == settlement.record
        host.passes(1)
        assert await store.get(NAME) is None


async def test_a_slew_is_no_step(host: Host, file: Path) -> None:
    """The wall clock runs faster by 500 ppm for six weeks, in looks two seconds apart, and once skips a leap second:
    no finding."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        time = StoreClock(host, host.boot)
        time.set(db)
        began = time.now()
        for _ in range(20_000):
            host.passes(2_000)
            host.steps(1)
            time.look(db)
        host.steps(-1_000)
        time.look(db)
        assert time.finding is None
        assert time.now() - began == 40_000_000
        again = StoreClock(host, host.boot)
        again.set(db)
        assert (again.finding, again.now()) == (None, time.now())


async def test_a_second_step_is_another_alarm(host: Host, file: Path) -> None:
    """Two steps: two alarms, the second with both together."""
    alarms = Alarms()
    async with opened(file, host, alarms) as store:
        for count in (1, 2):
            await at_rest(store)
            host.steps(HOUR)
            host.passes(5_000)
            await until_stepped(store, alarms, count)
    assert ["+3600 s" in alarms.heard[0], "+7200 s" in alarms.heard[1]] == [True, True]


# ── Across restarts ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", [2 * DAY, -2 * DAY], ids=["ahead", "back"])
async def test_a_step_while_nothing_runs(host: Host, file: Path, step: int) -> None:
    """Within one boot: the gateway stops, the clock steps, it starts: records have the life that they had left, less
    the time that passed; the start raises an alarm, and every later opening has the finding."""
    async with opened(file, host) as store:
        assert await store.claim(NAME, a_claim(life=LIFE)) is Done.WON
        host.passes(10 * MINUTE)
    host.passes(10 * MINUTE)
    host.steps(step)
    alarms = Alarms()
    async with opened(file, host, alarms) as store:
        assert await age(store) == 20 * MINUTE
        assert [each.name for each in store.findings] == ["clock-stepped"]
        assert len(alarms.heard) == 1
    async with opened(file, host) as store:
        assert [each.name for each in store.findings] == ["clock-stepped"]
        host.passes(LIFE - 20 * MINUTE)
        assert await age(store) is None


async def test_after_a_reboot_the_wall_clock_is_believed(host: Host, file: Path) -> None:
    """Another boot id, two hours later by the wall clock: what had one hour left is gone, what had three has one. No
    finding."""
    async with opened(file, host) as store:
        assert await store.claim(NAME, a_claim(life=HOUR)) is Done.WON
        assert await store.claim(OTHER, a_claim(life=3 * HOUR)) is Done.WON
    host.reboots(2 * HOUR)
    async with opened(file, host) as store:
        assert await age(store) is None
        assert await age(store, OTHER) == 2 * HOUR
        assert store.findings == ()


async def test_a_reboot_without_a_battery_stretches_by_the_downtime_alone(host: Host, file: Path) -> None:
    """After the reboot the wall clock is ten years back, and is set right a minute later: records have at most the life
    that they had when the store was last written, and the step gives and takes none."""
    async with opened(file, host) as store:
        assert await store.claim(NAME, a_claim(life=HOUR)) is Done.WON
        host.passes(20 * MINUTE)
        assert await store.claim(OTHER, a_claim()) is Done.WON  # notes the time
    host.reboots(-3650 * DAY)
    alarms = Alarms()
    async with opened(file, host, alarms) as store:
        assert await age(store) == 20 * MINUTE
        await at_rest(store)
        host.steps(3650 * DAY)
        host.passes(MINUTE)
        await until_stepped(store, alarms)
        assert await age(store) == 21 * MINUTE
        host.passes(HOUR - 21 * MINUTE)
        assert await age(store) is None


async def test_a_clock_that_was_set_right_is_not_counted_as_downtime(host: Host, file: Path) -> None:
    """The clock is two days behind when the store is first opened, and is set right while it runs. After a reboot of
    ten minutes a record has ten minutes less: not two days."""
    host.steps(-2 * DAY)
    alarms = Alarms()
    async with opened(file, host, alarms) as store:
        assert await store.claim(NAME, a_claim(life=HOUR)) is Done.WON
        await at_rest(store)
        host.steps(2 * DAY)
        host.passes(5_000)
        await until_stepped(store, alarms)
    host.reboots(10 * MINUTE)
    async with opened(file, host) as store:
        assert await age(store) == 10 * MINUTE + 5_000
        assert store.findings == ()


async def test_a_file_from_another_host_has_its_records(host: Host, file: Path, tmp_path: Path) -> None:
    """A copy on a host that has run for less long: another boot id, so the wall clock is believed."""
    async with opened(file, host) as store:
        assert await store.claim(NAME, a_claim(life=HOUR)) is Done.WON
    copy = Path(shutil.copy(file, tmp_path / "copy.db"))
    host.passes(10 * MINUTE)
    there = Host()
    there.boottime, there.real, there.id = HOUR, host.real, "there"
    async with opened(copy, there) as store:
        assert await age(store) == 10 * MINUTE


async def test_without_a_boot_id_every_opening_is_as_after_a_reboot(host: Host, file: Path) -> None:
    """A kernel that shows none: records live on by the wall clock, and while the process runs a step ends none."""
    host.id = ""
    alarms = Alarms()
    async with opened(file, host, alarms) as store:
        assert await store.claim(NAME, a_claim(life=HOUR)) is Done.WON
        await at_rest(store)
        host.steps(DAY)
        host.passes(10 * MINUTE)
        await until_stepped(store, alarms)
        assert await age(store) == 10 * MINUTE
    host.passes(MINUTE)
    async with opened(file, host) as store:
        assert await age(store) == 11 * MINUTE


# ── Several gateways on one file ──────────────────────────────────────────────────────────────────


async def test_processes_on_one_file_agree(host: Host, file: Path) -> None:
    """One opened it before a step, one after it, one in another time namespace: each sees the same age of a record,
    none wins a claim that another holds, and all agree when it ends."""
    namespaced = host.elsewhere(-3 * DAY)
    hosts = [host, namespaced]
    async with opened(file, host) as one:
        assert await one.claim(NAME, a_claim(life=HOUR)) is Done.WON
        for each in hosts:
            each.passes(MINUTE)
            each.steps(2 * DAY)
        async with opened(file, host) as two, opened(file, namespaced) as three:
            for store in (one, two, three):
                assert await age(store) == MINUTE
                assert isinstance(await store.claim(NAME, a_claim()), Found)
            for each in hosts:
                each.passes(HOUR - MINUTE)
            for store in (one, two, three):
                assert await age(store) is None
            assert await three.claim(NAME, a_claim()) is Done.WON
            assert isinstance(await one.claim(NAME, a_claim()), Found)
    async with opened(file, host) as store:
        (finding,) = store.findings
        assert "+172800 s" in finding.text, "one step, however many processes saw it"


def test_boottime_of_a_time_namespace_is_the_hosts() -> None:
    """A real process in a real time namespace, a day ahead: less the shift that it reads, its CLOCK_BOOTTIME is
    ours."""
    code = (
        "import json; from gateway.stores.store_clock import host_boot; from gateway.clock import HostClock;"
        "boot, shift = host_boot(); print(json.dumps([boot, shift, HostClock().now()]))"
    )
    command = ["unshare", "--time", "--boottime", "86400", "--fork", sys.executable, "-c", code]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    if "unshare" in ended.stderr:
        pytest.skip(f"no time namespace can be made here: {ended.stderr}")
    boot, shift, now = json.loads(ended.stdout)
    assert (boot, 0) == host_boot()
    assert boot
    assert shift == DAY
    assert abs(now - shift / 1000 - HostClock().now()) < 60


# ── Files of the version before ───────────────────────────────────────────────────────────────────

BEFORE = """
CREATE TABLE records (
    name BLOB NOT NULL PRIMARY KEY, state INTEGER NOT NULL, holder BLOB NOT NULL, lease INTEGER NOT NULL,
    life INTEGER NOT NULL, expires INTEGER NOT NULL, value BLOB NOT NULL
);
CREATE INDEX records_by_expiry ON records (expires);
"""


async def test_a_file_of_the_version_before(host: Host, file: Path, tmp_path: Path) -> None:
    """Its rows, which end by the wall clock, keep their life; the format keeps its number, so that the version before
    can be started again, and finds by the wall clock what was written since."""
    async with opened(tmp_path / "made.db", host) as store:
        assert await store.claim(NAME, a_claim(life=HOUR)) is Done.WON
    with closing(sqlite3.connect(tmp_path / "made.db")) as made, closing(sqlite3.connect(file)) as old:
        (row,) = made.execute("SELECT name, state, holder, lease, life, expires, value FROM records").fetchall()
        assert row[5] == host.wall() + HOUR
        old.executescript(BEFORE)
        old.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        old.commit()
    host.passes(10 * MINUTE)
    async with opened(file, host) as store:
        assert await age(store) == 10 * MINUTE
        host.steps(DAY)
        assert await age(store) == 10 * MINUTE
        host.steps(-DAY)
        assert await store.claim(OTHER, a_claim(life=LEASE)) is Done.WON
    with closing(sqlite3.connect(file)) as now:
        assert now.execute("PRAGMA user_version").fetchone() == (1,)
        (expires,) = now.execute("SELECT expires FROM records WHERE name = ?", (OTHER,)).fetchone()
        assert expires == host.wall() + LEASE


async def test_the_time_is_noted_once_a_minute(host: Host, file: Path) -> None:
    """However much is claimed, one write in a minute concerns the clock."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        time = StoreClock(host, host.boot)
        time.set(db)
        before = db.total_changes
        for _ in range(1_000):
            host.passes(100)
            time.note(db, time.now())
        assert db.total_changes - before == 1

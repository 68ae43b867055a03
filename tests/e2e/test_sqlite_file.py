"""The file of the SQLite store: not ours, not there, swapped, full, on the wrong disk; and shared by two gates."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.app import App
from gateway.awaitable import AwaitableStore
from gateway.clock import HostClock
from gateway.core import record as records
from gateway.core.record import Done, Found, Record
from gateway.ports import StoreFull, StoreUnusable
from gateway.stores import sqlite
from gateway.stores.sqlite import SqliteStore, file_system
from tests.e2e.crowd import admin, callers, eventually
from tests.harness import (
    Client,
    Exchange,
    GateProcess,
    Origin,
    Response,
    RunningGate,
    ask,
    configuration,
    gate,
    request,
)
from tests.stores.worlds import a_claim


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


def before(origin: Origin, file: Path, **how: str) -> str:
    return configuration(origin.url, store=f"sqlite:///{file}", **how)  # type: ignore[arg-type]


async def why_unusable(file: Path) -> str:
    with pytest.raises(StoreUnusable) as raised:
        await SqliteStore(file, HostClock()).open()
    return str(raised.value)


# ── Not ours ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_database_of_another_program_is_refused_and_left_alone(file: Path) -> None:
    """A file that another program made: refused, and not one byte of it is changed, nor a file put beside it."""
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
        db.execute("PRAGMA user_version = 42")
        db.commit()
    content = file.read_bytes()
    assert await why_unusable(file) == f"{file} belongs to another program; name another file"
    assert file.read_bytes() == content
    assert os.listdir(file.parent) == [file.name]


async def test_a_file_that_is_no_database_is_refused_and_left_alone(file: Path) -> None:
    """A file of something else altogether: refused, and left as it is."""
    file.write_bytes(b"these are the accounts of 2019\n" * 100)
    assert "file is not a database" in await why_unusable(file)
    assert file.read_bytes() == b"these are the accounts of 2019\n" * 100


async def test_a_file_of_another_version_is_refused_and_left_alone(file: Path) -> None:
    """A file that a later oncegate made: refused, with what can be done; nothing in it is changed."""
    store = AwaitableStore(SqliteStore(file, HostClock()))
    await store.open()
    await store.close()
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 2")
    content = file.read_bytes()
    why = await why_unusable(file)
    assert "was made by another version of oncegate (its format is 2, this one writes 1)" in why
    assert "start that version, or name another file" in why
    assert file.read_bytes() == content


async def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    """A folder that is not there is not made: the message names it."""
    why = await why_unusable(tmp_path / "no" / "keys.db")
    assert f"the folder {tmp_path}/no does not exist; make it first" in why
    assert os.listdir(tmp_path) == []


async def test_a_folder_in_its_place_is_refused(file: Path) -> None:
    """A folder where the file should be: refused at once, and it does not hang."""
    file.mkdir()
    assert "unable to open database file" in await why_unusable(file)


# ── On the wrong disk ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
async def test_a_network_file_system_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """On NFS and its kin SQLite's locks do not hold: refused, with what to use instead, and nothing is made."""
    monkeypatch.setattr(sqlite, "file_system", lambda folder: kind if folder == file.parent else "ext4")
    why = await why_unusable(file)
    assert f"is on a network file system ({kind})" in why
    assert "use a local disk, or a redis:// store" in why
    assert os.listdir(file.parent) == []


MOUNTS = b"""\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /srv rw,nosuid shared:5 master:2 - nfs4 nas:/srv rw,vers=4.2
31 30 0:27 / /srv/local rw - xfs /dev/sdb1 rw
32 22 0:28 / /mnt/two\\040words rw - cifs //nas/share rw
33 22 0:29 / /mnt/caf\xc3\xa9 rw - nfs nas:/cafe rw
34 22 0:30 / /mnt/\xff rw - fuse.sshfs nas:/odd rw
35 22 0:31 / /mnt/over rw - nfs nas:/over rw
36 35 0:32 / /mnt/over rw - tmpfs tmpfs rw
37 22 0:33 / /mnt/back\\134slash rw - 9p share rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib/oncegate", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/keys", "nfs4"),
        ("/srv/local/keys", "xfs"),
        ("/srvother", "ext4"),
        ("/mnt/two words/keys", "cifs"),
        ("/mnt/café", "nfs"),
        (os.fsdecode(b"/mnt/\xff/keys"), "fuse.sshfs"),
        ("/mnt/over/keys", "tmpfs"),
        ("/mnt/back\\slash", "9p"),
    ],
)
def test_the_file_system_of_a_folder(folder: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount that is nearest above the folder says what it is on; the last one where several lie on one point.
    Mount points are spelled in octets, and some of them escaped."""
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(MOUNTS)
    monkeypatch.setattr(sqlite, "MOUNTS", mounts)
    assert file_system(Path(folder)) == kind


def test_the_file_system_of_a_real_folder() -> None:
    """The kernel's own table is read: /proc is on proc."""
    assert file_system(Path("/proc/self")) == "proc"


# ── Swapped under the running gate ────────────────────────────────────────────────────────────────


async def guarded(running: RunningGate) -> tuple[int, dict[str, str]]:
    return await admin(running.admin_port, "/ready/guarded")


def swap(file: Path) -> None:
    """Another file in its place, as a restored backup comes."""
    other = file.with_name("backup.db")
    shutil.copy(file, other)
    os.replace(other, file)


@pytest.mark.parametrize(("what", "word"), [(swap, "replaced"), (os.remove, "removed")])
async def test_a_file_that_is_swapped_stops_guarded_requests(
    origin: Origin, file: Path, what: Callable[[Path], None], word: str
) -> None:
    """POST → 201; the file is replaced, or removed; the next POST is 503 store-unavailable, at once and not
    forwarded; /ready/guarded says why; /ready stays 200 and what is not guarded passes."""
    async with gate(before(origin, file)) as running:
        assert (await ask(running.port, key="k1")).label == "stored"
        what(file)
        async with asyncio.timeout(2):
            refused = await ask(running.port, key="k2")
            replay = await ask(running.port, key="k1")
        assert (refused.status, refused.problem, replay.problem) == (503, "store-unavailable", "store-unavailable")
        status, told = await guarded(running)
        assert status == 503
        assert f"{file} was {word} under the running gate; put the file back and restart the gate" in told["reason"]
        assert (await admin(running.admin_port, "/ready"))[0] == 200
        assert (await ask(running.port, "POST", "/open/orders")).status == 201
        assert origin.effects == {b"k1": 1, None: 1}


async def test_a_swapped_file_is_noticed_without_a_request(origin: Origin, file: Path) -> None:
    """Nobody sends anything; the file is replaced: /ready/guarded says so within moments."""
    async with gate(before(origin, file)) as running:
        assert (await guarded(running))[0] == 200
        swap(file)
        await eventually(lambda: guarded(running), lambda seen: "replaced" in seen[1].get("reason", ""))


# ── Full ──────────────────────────────────────────────────────────────────────────────────────────


def bounded(app: App) -> None:
    """The file may have 64 KiB: the same SQLITE_FULL that a full disk gives."""
    assert isinstance(app.store.port, SqliteStore)
    app.store.port._max_bytes = 1 << 16


async def created(exchange: Exchange) -> None:
    await exchange.respond()


async def answers_at_length(exchange: Exchange) -> None:
    key = exchange.request.key
    assert key is not None
    await exchange.respond(201, key * 1000)


async def test_a_full_disk_refuses_claims_and_loses_nothing(origin: Origin, file: Path) -> None:
    """POST after POST until the disk is full: then 503 store-unavailable, not forwarded. Whatever was answered
    201 is still answered so, and was run once; when the first answers' window ends their room is swept, and the
    POSTs that were refused run."""
    origin.answer = answers_at_length
    async with gate(before(origin, file, policy="window: 4s, store_wait: 0s"), prepare=bounded) as running:
        answers: dict[str, Response] = {}
        while (answer := await ask(running.port, key=f"k{len(answers)}")).status == 201:
            answers[f"k{len(answers)}"] = answer
            assert len(answers) < 100, "it never got full"
        refused = f"k{len(answers)}"
        assert len(answers) > 5
        assert (answer.status, answer.problem, answer.get("Retry-After")) == (503, "store-unavailable", "1")
        for key, given in answers.items():
            again = await ask(running.port, key=key)
            assert (again.status, again.body) == (201, given.body)
            assert again.label == ("replayed" if given.label == "stored" else given.label)
        assert origin.effects == {key.encode(): 1 for key in answers}
        status, told = await guarded(running)
        assert (status, told["findings"].keys()) == (503, {"full"}), "readiness says what every new key is told"
        # The window ends, the sweep makes room.
        await eventually(lambda: _status(running, refused), lambda status: status == 201)
        assert origin.effects[refused.encode()] == 1


async def _status(running: RunningGate, key: str) -> int:
    return (await ask(running.port, key=key)).status


async def test_a_bound_on_the_file_stops_claims_before_anything_runs(origin: Origin, file: Path) -> None:
    """A gate's process with `?max_bytes=1MiB` and answers of 20 kB: POSTs are stored until there is room for answers
    only; then 503 with Retry-After, not forwarded. No answer was lost for want of room, and all are replayed."""

    async def answers_at_great_length(exchange: Exchange) -> None:
        await exchange.respond(201, b"x" * 20_000)

    origin.answer = answers_at_great_length
    here = GateProcess(before(origin, Path(f"{file}?max_bytes=1MiB"), policy="store_wait: 0s"))
    try:
        await here.start()
        count = 0
        while (answer := await ask(here.port, key=f"k{count}")).status == 201:
            assert answer.label == "stored"
            count += 1
            assert count < 100, "it never got full"
        assert count > 20
        assert (answer.status, answer.problem, answer.get("Retry-After")) == (503, "store-unavailable", "1")
        assert origin.effects == {b"k%d" % n: 1 for n in range(count)}
        for n in range(count):
            assert (await ask(here.port, key=f"k{n}")).replayed
        assert len(origin.requests) == count
        assert file.stat().st_size <= 1 << 20
    finally:
        here.close()


async def test_a_crowd_meets_a_full_disk(origin: Origin, file: Path) -> None:
    """Four hundred first requests at once, and room for half of their claims at most: each is either 201, run once
    and given again, or 503 and not run."""
    origin.answer = answers_at_length
    async with gate(before(origin, file, policy="store_wait: 0s"), prepare=bounded) as running:
        async with callers(400, running.port) as crowd:
            first = await asyncio.gather(*(caller.send(request(key=f"k{n}")) for n, caller in enumerate(crowd)))
            again = await asyncio.gather(*(caller.send(request(key=f"k{n}")) for n, caller in enumerate(crowd)))
        statuses = Counter(answer.status for answer in first)
        assert statuses.keys() == {201, 503}
        assert statuses[201] > 5
        for n, (one, other) in enumerate(zip(first, again, strict=True)):
            key = f"k{n}".encode()
            if one.status == 201:
                assert (other.status, other.body, origin.effects[key]) == (201, one.body, 1)
            else:
                assert one.problem == "store-unavailable"
                assert origin.effects[key] == (other.status == 201)


async def until_full(store: SqliteStore) -> list[Record]:
    """Claims, under the names 1, 2, 3 …, until there is no room for another."""
    claims: list[Record] = []
    while True:
        claim = a_claim()
        try:
            await store.claim(b"n%042d" % (len(claims) + 1), claim)
        except StoreFull:
            return claims
        claims.append(claim)


async def test_what_finds_no_room_takes_nothing_else_with_it(file: Path) -> None:
    """A full file; a claim that finds no room is committed in one transaction with a look and with a Release: the
    claim is refused, and the others are done."""
    store = AwaitableStore(SqliteStore(file, HostClock(), max_bytes=1 << 16))
    await store.open()
    try:
        claims = await until_full(store)
        assert len(claims) > 50
        with closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")  # the store's writer waits, and what is asked meanwhile is one batch
            asked = [
                asyncio.create_task(each)
                for each in (
                    store.get(b"n%042d" % 1),
                    store.get(b"n%042d" % 2),
                    store.claim(b"n%042d" % 0, a_claim()),
                    store.settle(b"n%042d" % 2, records.release(claims[1], elapsed=0, wall=0)),
                    store.get(b"n%042d" % 3),
                )
            ]
            await asyncio.wait(asked, timeout=0.1)
            db.execute("ROLLBACK")
        one, two, claim, release, three = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(claim, StoreFull)
        assert release is Done.DONE
        for found, mine in ((one, claims[0]), (two, claims[1]), (three, claims[2])):
            assert isinstance(found, Found)
            assert found.record == mine
    finally:
        await store.close()


async def test_a_disk_that_takes_no_more(origin: Origin, file: Path) -> None:
    """The gate's process may write no file longer than it is (what a quota does to it): POSTs are 503 and not
    forwarded, what is not guarded passes; once there is room again the same POSTs run, and what was answered
    before is replayed."""
    origin.answer = answers_at_length
    here = GateProcess(before(origin, file, policy="store_wait: 0s"))
    try:
        await here.start()
        first = await ask(here.port, key="k1")
        assert first.label == "stored"
        assert here.process is not None
        _, hard = resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE)
        longest = max(path.stat().st_size for path in file.parent.iterdir())
        resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE, (longest, hard))
        for n in range(3):
            refused = await ask(here.port, key=f"refused-{n}")
            assert (refused.status, refused.problem) == (503, "store-unavailable")
        origin.answer = created
        assert (await ask(here.port, "POST", "/open/orders")).status == 201
        assert origin.effects == {b"k1": 1, None: 1}
        origin.answer = answers_at_length
        resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        for n in range(3):
            assert await eventually(lambda n=n: _given(here, f"refused-{n}"), lambda given: given[0] == 201)  # type: ignore[misc]
        again = await ask(here.port, key="k1")
        assert (again.body, again.replayed) == (first.body, True)
        assert origin.effects == {b"k1": 1, None: 1, b"refused-0": 1, b"refused-1": 1, b"refused-2": 1}
        here.kill()
        await here.start()
        for n in range(3):
            assert (await ask(here.port, key=f"refused-{n}")).replayed
    finally:
        here.close()


async def _given(here: GateProcess, key: str) -> tuple[int, str | None]:
    answer = await ask(here.port, key=key)
    return answer.status, answer.label


async def test_expired_records_are_swept(origin: Origin, file: Path) -> None:
    """An answer whose window is over leaves the file, without anybody asking for it."""
    async with gate(before(origin, file, policy="window: 50ms")) as running:
        for n in range(20):
            assert (await ask(running.port, key=f"k{n}")).label == "stored"

        async def records() -> int:
            with closing(sqlite3.connect(file)) as db:
                return int(db.execute("SELECT count(*) FROM records").fetchone()[0])

        await eventually(records, lambda count: count == 0)
        assert (await ask(running.port, key="k0")).label == "stored"
        assert origin.effects[b"k0"] == 2


# ── Shared ────────────────────────────────────────────────────────────────────────────────────────


async def test_two_processes_on_one_file_share_their_keys(origin: Origin, file: Path) -> None:
    """Two gates of one host on one file. A runs, B replays; while A's is in flight B's duplicate waits and has A's
    answer; and a crowd through both has one effect per key."""
    released = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        if exchange.request.key == b"slow":
            await released.wait()
        await exchange.respond(201, b'{"id":"%b"}' % (exchange.request.key or b""))

    origin.answer = hold
    one, other = GateProcess(before(origin, file)), GateProcess(before(origin, file))
    try:
        await asyncio.gather(one.start(), other.start())
        first = await ask(one.port, key="k1")
        again = await ask(other.port, key="k1")
        assert (first.label, again.label, again.body) == ("stored", "replayed", first.body)

        async with callers(2, one.port, other.port) as (leader, follower):
            leading = leader.send(request(key="slow"))
            await origin.until(2)
            following = follower.send(request(key="slow"))
            assert not (await asyncio.wait([following], timeout=0.2))[0]
            released.set()
            assert (await leading).label == "stored"
            assert ((await following).body, (await following).replayed) == ((await leading).body, True)

        async with callers(20, one.port, other.port) as crowd:
            for n in range(20):
                answers = await asyncio.gather(*[caller.send(request(key=f"crowd-{n}")) for caller in crowd])
                assert Counter(answer.label for answer in answers) == {"stored": 1, "replayed": 19}
        assert set(origin.effects.values()) == {1}
        assert len(origin.effects) == 22
    finally:
        one.close()
        other.close()


async def test_what_one_process_held_the_other_says(origin: Origin, file: Path) -> None:
    """A's upstream breaks off: the doubt stands in the file, and B's duplicate is told 409 in-doubt."""

    async def breaks_off(exchange: Exchange) -> None:
        exchange.reset()

    origin.answer = breaks_off
    async with gate(before(origin, file)) as one, gate(before(origin, file)) as other:
        with closing(await Client.connect(one.port)) as client:
            await client.send(request(key="k1"))
            assert (await client.read()).problem == "upstream-lost"
        assert (await ask(other.port, key="k1", body=b"")).problem == "in-doubt"
    assert origin.effects == {b"k1": 1}

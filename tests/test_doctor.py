"""`oncegate doctor` as a shell sees it: what it finds, what to change, and its exit code."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from gateway.awaitable import AwaitableStore
from gateway.cli import main
from gateway.clock import HostClock
from gateway.doctor import CHANGES, Store, look_at
from gateway.ports import StoreUnusable
from gateway.settings import Settings, load_text
from gateway.stores.findings import OF_WRITES
from gateway.stores.redis import reasons
from gateway.stores.redis.findings import judge
from gateway.stores.redis.large import RECORD_LIMIT
from gateway.stores.sqlite import SqliteStore
from gateway.stores.store_clock import CLOCK_STEPPED
from tests.cluster import RedisCluster
from tests.fleet import Fleet
from tests.harness import configuration
from tests.servers import RedisServer, binaries, free_port, preferred
from tests.stores.test_sentinels import Unsure
from tests.stores.worlds import redis_store
from tests.tls import Authority, SecureServer

EVICTS = ("--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru")


@dataclass
class Told:
    code: int
    out: str
    err: str
    seconds: float

    @property
    def words(self) -> str:
        """What was said, without its line breaks."""
        return " ".join(self.out.split())


def doctor(*arguments: str, folder: Path | None = None) -> Told:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "doctor", *arguments], cwd=folder, capture_output=True, text=True,
        timeout=30, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return Told(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)


def written(folder: Path, store: str, *, top: str = "", policy: str = "") -> str:
    file = folder / "gate.yaml"
    file.write_text(configuration("http://127.0.0.1:9", store=store, top=top, policy=policy, service="shop"))
    return str(file)


@pytest.fixture(params=list(binaries()))
def binary(request: pytest.FixtureRequest) -> Path:
    return binaries()[request.param]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer(preferred(), aof=True).start()
    yield server
    server.close()


def test_a_redis_that_evicts(binary: Path, tmp_path: Path) -> None:
    """It is named, with what to change on a Redis of one's own and on the managed ones; exit 69; and nothing was
    written."""
    server = RedisServer(binary, arguments=EVICTS).start()
    try:
        for arguments in (["--store", server.url], ["--config", written(tmp_path, server.url)]):
            told = doctor(*arguments)
            assert (told.code, told.err) == (69, "")
            assert "REFUSED evicts: at its limit of 67108864 bytes it forgets keys (volatile-lru)" in told.words
            for where in ("Redis, Valkey", "ElastiCache", "MemoryDB", "Memorystore", "Azure", "Upstash"):
                assert where in told.out
            assert "CONFIG SET maxmemory-policy noeviction" in told.words
            assert "WARNING no-persistence: " in told.words
            assert told.words.endswith("guarded requests would be refused, until what is REFUSED above is changed")
        with server.client() as client:
            assert client.dbsize() == 0
            client.config_set("maxmemory-policy", "noeviction")
        told = doctor("--store", server.url)
        assert told.code == 0
        assert "REFUSED" not in told.out
        assert told.words.endswith("guarded requests would be served")
    finally:
        server.close()


def test_a_redis_that_is_well(server: RedisServer) -> None:
    """Who it is and what it keeps; no limit is advice, and no more; exit 0."""
    told = doctor("--store", server.url)
    assert (told.code, told.err) == (0, "")
    assert f" at 127.0.0.1:{server.port}, a primary with 0 replicas\n" in told.out
    assert "ADVICE no-memory-limit: " in told.words
    assert "REFUSED" not in told.out
    assert "WARNING" not in told.out


def test_a_cluster(tmp_path: Path) -> None:
    """Every primary is looked at, and what is wrong with one of them says which; its marker too. One of its nodes under
    redis:// is no store."""
    cluster = RedisCluster(preferred(), replicas=False).start()
    try:
        told = doctor("--config", written(tmp_path, cluster.url))
        assert (told.code, told.err) == (0, "")
        for node in cluster.primaries:
            assert f" at 127.0.0.1:{node.port}, a primary with 0 replicas" in told.words
        bad = cluster.primaries[1]
        bad.run("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        bad.run("CONFIG", "SET", "maxmemory", "64mb")
        told = doctor("--store", cluster.url)
        assert told.code == 69
        assert told.words.count("REFUSED") == 2
        assert f"REFUSED evicts: at 127.0.0.1:{bad.port}: at its limit" in told.words
        told = doctor("--store", cluster.primaries[0].url)
        assert told.code == 69
        assert "REFUSED is-a-cluster: " in told.words
        for node in cluster.primaries:
            assert not node.run("DBSIZE")
    finally:
        cluster.close()
    told = doctor("--store", cluster.url)
    assert told.code == 69
    assert "REFUSED unreachable: " in told.words


def test_store_check_warn_makes_it_a_warning(tmp_path: Path) -> None:
    """The doctor says what the gate of this file would do."""
    server = RedisServer(preferred(), arguments=EVICTS).start()
    try:
        told = doctor("--config", written(tmp_path, server.url, top="store_check: warn"))
        assert told.code == 0
        assert "WARNING evicts: " in told.words
    finally:
        server.close()


def test_a_replica(binary: Path) -> None:
    """Named for what it is, and what to name instead; exit 69."""
    with (
        RedisServer(binary) as primary,
        RedisServer(binary, arguments=("--replicaof", f"127.0.0.1 {primary.port}")) as replica,
    ):
        told = doctor("--store", replica.url)
        assert told.code == 69
        assert "REFUSED read-only: " in told.words
        assert "the primary endpoint instead of the reader endpoint" in told.words
        deadline = time.monotonic() + 15
        while "a primary with 1 replicas" not in (told := doctor("--store", primary.url)).out:
            assert time.monotonic() < deadline
        assert "no-persistence" not in told.out
        told = doctor("--store", f"{primary.url}?durability=replicated&replicas=1")
        assert told.code == 0
        assert "a write counts once so many have it" in told.words


def test_another_configuration(server: RedisServer, tmp_path: Path) -> None:
    """With --config the marker is compared: the identity that gates of another file left there is refused."""
    with server.client() as client:
        client.set("og:marker:shop:", '{"born":"x","identity":{"format":1,"keys":[["pay",[],["x-id"]]],"secret":""}}')
    told = doctor("--config", written(tmp_path, server.url))
    assert told.code == 69
    assert "REFUSED identity-changed: og:marker:shop: was written by gates of another configuration" in told.words
    assert "it has namespace pay (scope public; key from x-id)" in told.words
    assert doctor("--store", server.url).code == 0


def test_a_store_that_is_out_of_reach() -> None:
    """Nobody listens, or somebody who never answers: 69 within five seconds, and no password is shown."""
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        for port in (free_port(), mute.getsockname()[1]):
            told = doctor("--store", f"redis://:swordfish@127.0.0.1:{port}/0")
            assert (told.code, told.err) == (69, "")
            assert "REFUSED unreachable: " in told.words
            assert f"127.0.0.1:{port}" in told.out
            assert "the host and the port in `store`" in told.words
            assert "swordfish" not in told.out
            assert told.seconds < 30, "five, and what the interpreter takes to start"


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def assert_named(url: str, name: str) -> None:
    """The doctor's finding has this name, and what a running gateway says of the store is that finding's text."""

    async def trouble() -> str:
        store = redis_store(url)
        await store.open()
        try:
            return store.trouble
        finally:
            await store.close()

    told = asyncio.run(look_at(Store(url)))
    said = " ".join(told.text.split())
    assert not told.good
    assert f"REFUSED {name}: " in said, said
    text = " ".join(asyncio.run(trouble()).split())
    assert text in said, (text, said)
    assert "swordfish" not in said


def test_the_cause_is_named_of_a_server(server: RedisServer) -> None:
    """A wrong password, a missing one, one that the server has not, a number of no database, a name that cannot be
    resolved, TLS that the server does not speak, a closed port: each has its own name and words, in the doctor
    and in a running gate."""
    at = f"127.0.0.1:{server.port}"
    for url, name, cause in (
        (f"redis://:swordfish@{at}/0", "wrong-password", "AUTH"),
        (f"redis://{at}/16", "no-database", "DB index is out of range"),
        (f"redis://no-such-host.invalid:{server.port}/0", "unreachable", "its name cannot be resolved"),
        (f"rediss://{at}/0", "unreachable", "no answer within 2 s; if it speaks no TLS: redis://"),
        (f"redis://127.0.0.1:{free_port()}/0", "unreachable", "refused"),
        (f"redis+cluster://{at}", "refused", "it is no cluster"),
    ):
        assert_named(url, name)
        assert cause in " ".join(asyncio.run(look_at(Store(url))).text.split()).replace(
            "Connect call failed", "refused"
        )
    with server.client() as client:
        client.config_set("requirepass", "correct-horse")
    for url, name, cause in (
        (f"redis://:swordfish@{at}/0", "wrong-password", "WRONGPASS"),
        (f"redis://nobody:swordfish@{at}/0", "wrong-password", "WRONGPASS"),
        (f"redis://{at}/0", "no-password", "NOAUTH"),
        (f"redis://{at}/16", "no-password", "NOAUTH"),
    ):
        assert_named(url, name)
        assert cause in asyncio.run(look_at(Store(url))).text
    assert asyncio.run(look_at(Store(f"redis://:correct-horse@{at}/15"))).good


async def test_the_cause_is_named_of_a_certificate(tmp_path: Path) -> None:
    """A server whose certificate is by an authority that is not trusted, and the one that is."""
    authority = Authority(tmp_path)
    secure = await SecureServer(preferred(), authority).start()
    try:
        stranger = secure.url(f"ca={authority.file('stranger.pem')}")
        told = await look_at(Store(stranger))
        assert not told.good
        said = " ".join(told.text.split())
        assert "REFUSED tls: " in said
        assert "its certificate is not trusted: " in said
        assert "CERTIFICATE_VERIFY_FAILED" in said
        assert (await look_at(Store(secure.url(authority.ca)))).good
    finally:
        await secure.close()


def test_the_cause_is_named_of_a_cluster() -> None:
    """A wrong password, a missing one; one of the nodes named with the number of a database. (A cluster of Valkey 9 may
    have several databases, and says that it has not this one.)"""
    cluster = RedisCluster(binaries()["redis-8-wheel"], replicas=False).start()
    try:
        node = cluster.primaries[0]
        assert_named(f"redis://127.0.0.1:{node.port}/1", "is-a-cluster")
        for each in cluster.primaries:
            each.run("CONFIG", "SET", "requirepass", "correct-horse")
        assert_named(cluster.url, "no-password")
        assert_named(cluster.url.replace("://", "://:swordfish@"), "wrong-password")
        dead = cluster.url.replace("://", f"://127.0.0.1:{free_port()},")
        assert "REFUSED  no-password: " in asyncio.run(look_at(Store(dead))).text, "one that answers says more"
    finally:
        cluster.close()


def test_the_cause_is_named_of_sentinels(tmp_path: Path) -> None:
    """A name that they do not know, a password that they want or do not take, a primary that wants one; and none of
    them that answers."""
    fleet = Fleet(preferred(), replicas=0, sentinels=1).start()
    try:
        at = fleet.url().partition("://")[2].rpartition("/")[0]
        assert_named(f"redis+sentinel://{at}/else", "no-primary")
        assert_named(f"redis+sentinel://127.0.0.1:{free_port()}/{fleet.url().rpartition('/')[2]}", "unreachable")
        assert_named(f"{fleet.url()}?sentinel_password=swordfish", "wrong-password")
        with fleet.primary().client() as client:
            client.config_set("requirepass", "correct-horse")
        assert_named(fleet.url(), "no-password")
    finally:
        fleet.close()
    strict = Unsure('requirepass "correct-horse"')
    strict.start(tmp_path)
    try:
        Fleet.until(lambda: listens(strict.port), "the Sentinel listens")
        assert_named(f"redis+sentinel://127.0.0.1:{strict.port}/payments", "no-password")
    finally:
        strict.close()


def test_a_user_who_may_not_do_everything(server: RedisServer, tmp_path: Path) -> None:
    """Commands, keys and channels that are lacking, and the line that gives them; who says that line is well. What is
    asked when a connection is made is among them, and what a gate would only ask for once somebody waits."""
    with server.client() as client:
        for rules in (
            ["resetchannels"],
            ["-evalsha", "-del", "-ssubscribe"],
            ["-info", "-script|load", "-spublish"],
            ["resetkeys", "~else:*"],
        ):
            client.execute_command("ACL", "SETUSER", "gate", "reset", "on", ">pw", "~og:*", "&og:*", "+@all", *rules)
            url = f"redis://gate:pw@127.0.0.1:{server.port}"
            given = {"resetchannels": ["&og:*"], "resetkeys": ["~og:*"]}.get(rules[0]) or [
                "+" + rule[1:] for rule in rules
            ]
            severe = rules[0] != "resetchannels"
            told = asyncio.run(look_at(Store(url)))
            said = " ".join(told.text.split())
            assert told.good is not severe, told.text
            assert f"{'REFUSED' if severe else 'WARNING'} not-permitted: " in said
            line = said.split("ACL SETUSER gate ")[1].split(" Redis, Valkey ")[0].split()
            assert sorted(line) == sorted(given)
            client.execute_command("ACL", "SETUSER", "gate", *line)
            told = asyncio.run(look_at(Store(url)))
            assert told.good
            assert "not-permitted" not in told.text
        client.execute_command("ACL", "SETUSER", "gate", "-eval")
        ended = doctor("--config", written(tmp_path, url))
        assert ended.code == 69
        assert "ACL SETUSER gate +eval Redis, Valkey that line, then ACL SAVE" in ended.words
        assert client.dbsize() == 0


def test_a_redis_whose_limits_are_below_max_response(server: RedisServer, tmp_path: Path) -> None:
    """Each limit at which Redis would refuse a record that the routes may keep is a warning, with both sizes; a smaller
    max_response, or a user who may not read the limits, is none."""
    settings = load_text(
        Path(written(tmp_path, server.url, policy="max_response: 4MiB")).read_text(), name="gate.yaml", environ={}
    )
    small = load_text(
        Path(written(tmp_path, server.url, policy="max_response: 512KiB")).read_text(), name="gate.yaml", environ={}
    )

    def looked(settings: Settings | None, url: str = server.url) -> str:
        report = asyncio.run(look_at(Store(url, settings)))
        assert report.good, "requests would be served"
        return " ".join(report.text.split())

    assert "record-limit" not in looked(settings)
    with server.client() as client:
        for name, value in (
            ("proto-max-bulk-len", "1mb"),
            ("client-query-buffer-limit", "1mb"),
            ("client-output-buffer-limit", "normal 4mb 0 0"),
        ):
            before = client.config_get(name)[name]
            client.config_set(name, value)
            said = looked(settings)
            assert "WARNING record-limit: it refuses records of the largest responses that the routes keep" in said
            assert f"{name} " in said
            assert "max_response is 4194304" in said
            assert "a smaller max_response of the routes" in said
            assert "record-limit" not in looked(small)
            assert "record-limit" not in looked(None)
            client.config_set(name, before)
        client.config_set("proto-max-bulk-len", "1mb")
        client.execute_command("ACL", "SETUSER", "gate", "on", ">pw", "~og:*", "&og:*", "+@all", "-config")
        assert "record-limit" not in looked(settings, f"redis://gate:pw@127.0.0.1:{server.port}")


def test_a_file_that_is_smaller_than_a_response(tmp_path: Path) -> None:
    """`check` notes that max_bytes has no room for the largest response; with room it does not."""
    for size, notes in (("1MiB", 1), ("2MiB", 0)):
        file = written(tmp_path, f"sqlite:///{tmp_path}/keys.db?max_bytes={size}", policy="max_response: 1MiB")
        done = CliRunner().invoke(main, ["check", file])
        assert (done.exit_code, done.stdout.count("note: max_bytes of the store")) == (0, notes), done.stdout


def test_what_memory_and_a_file_protect(tmp_path: Path) -> None:
    """One gateway; how durable; and no file is made by asking."""
    told = doctor("--store", "memory://")
    assert told.code == 0
    assert "this store protects one gateway" in told.out
    assert "a restart forgets" in told.out
    told = doctor("--store", f"sqlite:///{tmp_path}/keys.db?durability=process", folder=tmp_path)
    assert told.code == 0
    assert "this store protects one gateway" in told.out
    assert "survives kill -9, and not power loss" in told.words
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, " * 100)
    for place, why in (("nowhere/keys.db", "does not exist; make it first"), ("letter.txt", "is not a database")):
        told = doctor("--store", f"sqlite:///{tmp_path}/{place}")
        assert told.code == 69
        assert why in told.words


def refused_alike(folder: Path, file: Path) -> str:
    """What `run` says of this file and exits 69 for; the doctor says the same, exits 69, and leaves no file behind."""
    store = f"sqlite:///{quote(str(file))}"
    arguments = ["run", "--config", written(folder, store)]

    def there() -> list[Path]:
        return [path for path in sorted(folder.rglob("*")) if not path.name.endswith(("-wal", "-shm"))]

    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments], capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    said = " ".join(ended.stderr.removeprefix("oncegate: ").split())
    assert ended.returncode == 69, said
    before = there()
    told = doctor("--store", store)
    assert (told.code, told.err) == (69, "")
    assert f"REFUSED unusable: {said}" in told.words, (said, told.words)
    assert there() == before
    return said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with a store's file `keys.db` in it."""
    mount, folder = shutil.which("mount"), tmp_path / "disk"
    folder.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "tmpfs", folder], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        made(folder / "keys.db")
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def made(file: Path) -> None:
    """A store's file, empty."""
    store = AwaitableStore(SqliteStore(file, HostClock(), durability="process"))

    async def opened() -> None:
        await store.open()
        await store.close()

    asyncio.run(opened())


def test_a_file_system_that_is_read_only(disk: Path, tmp_path: Path) -> None:
    """`run` and the doctor refuse it alike, whether or not the file is there; mounted read-write both take it."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for name in ("keys.db", "new.db"):
        assert "its file system is mounted read-only. Mount it read-write" in refused_alike(tmp_path, disk / name)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    for name in ("keys.db", "new.db"):
        assert doctor("--store", f"sqlite:///{disk}/{name}").code == 0
    assert [path.name for path in disk.iterdir()] == ["keys.db"]


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    """A folder in which nobody makes files, one that is missing, a file in its place, a folder in the file's place, a
    name too long for its write-ahead log, a link into nowhere."""
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere" / "keys.db")
    for file, cause in (
        (Path("/proc/keys.db"), "unable to open database file (SQLITE_CANTOPEN)"),
        (tmp_path / "nowhere" / "keys.db", "does not exist; make it first"),
        (tmp_path / "letter.txt" / "keys.db", "does not exist; make it first"),
        (tmp_path / "folder", "it is a directory. Name another file in `store`."),
        (tmp_path / ("k" * 253), "unable to open database file (SQLITE_CANTOPEN)"),
        (tmp_path / "link.db", f"the folder {tmp_path}/nowhere does not exist; make it first"),
    ):
        assert cause in refused_alike(tmp_path, file)


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """A text, a damaged database, one that another program has locked."""
    (tmp_path / "letter.db").write_text("Dear Sir or Madam, " * 100)
    assert "file is not a database (SQLITE_NOTADB)" in refused_alike(tmp_path, tmp_path / "letter.db")
    torn = tmp_path / "torn.db"
    made(torn)
    torn.write_bytes(torn.read_bytes()[:100] + b"\xff" * (torn.stat().st_size - 100))
    assert "the file is damaged" in refused_alike(tmp_path, torn)
    locked = tmp_path / "locked.db"
    made(locked)
    with closing(sqlite3.connect(locked, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("PRAGMA user_version = 1")
        assert "another program has held a lock on it for 5 s" in refused_alike(tmp_path, locked)


def test_a_file_system_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite cannot write ahead (here by its own `unix-dotfile`, which shares no memory) the store is refused by
    the store and the doctor, and is not run in another journal mode."""
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **how: connect(f"file:{quote(str(path))}?vfs=unix-dotfile", uri=True, **how)
    )
    told = asyncio.run(look_at(Store(f"sqlite:///{tmp_path}/keys.db")))
    assert not told.good
    assert "no shared memory for a write-ahead log (the journal mode stays `delete`)" in " ".join(told.text.split())
    with pytest.raises(StoreUnusable, match="no shared memory"):
        made(tmp_path / "keys.db")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to look at: --config FILE, or --store URL"),
        (["--config", "a", "--store", "b"], "say what to look at"),
        (["--store", "mysql://db"], "--store: no store is called mysql://"),
        (["--config", "none.yaml"], "none.yaml: there is no such file"),
    ],
)
def test_what_cannot_be_looked_at_is_64(arguments: list[str], message: str, tmp_path: Path) -> None:
    """A command line or a file that cannot be read → why, exit 64."""
    told = doctor(*arguments, folder=tmp_path)
    assert (told.code, told.out) == (64, "")
    assert message in told.err


def test_every_finding_that_can_be_mended_says_where() -> None:
    """What a server's INFO can show, and what stands in the way of looking, has its places."""
    worst = {"maxmemory": "1", "maxmemory_policy": "allkeys-lru", "aof_enabled": "0"}
    followed = {"aof_enabled": "0", "connected_slaves": "2"}
    infos = (worst, followed, {"maxmemory": "0"}, {"maxmemory": "1"}, {"cluster_enabled": "1"})
    shown = {found.name for info in infos for found in judge(info)}
    causes = {name for name in vars(reasons).values() if isinstance(name, str) and name in CHANGES}
    assert {"wrong-password", "no-password", "no-database", "no-primary", "tls", "unreachable", "refused"} <= causes
    others = {*OF_WRITES, "too-old", "few-descriptors", RECORD_LIMIT, CLOCK_STEPPED}
    assert shown | causes | others == CHANGES.keys()

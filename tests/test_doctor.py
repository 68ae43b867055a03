"""`oncegate doctor` as a shell sees it: what it finds, what to change, and its exit code."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.doctor import CHANGES, Store, look_at
from gateway.stores.findings import OF_WRITES
from gateway.stores.redis.findings import judge
from tests.cluster import RedisCluster
from tests.harness import configuration
from tests.servers import RedisServer, binaries, free_port, preferred

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
            assert told.seconds < 7, "five, and what the interpreter takes to start"


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
    assert shown | {*OF_WRITES, "read-only", "too-old", "not-permitted", "unreachable"} == CHANGES.keys()

"""The tests' own servers: one that does not come up leaves nothing behind, nor do those that came up before it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import Node, RedisCluster
from tests.fleet import Fleet
from tests.servers import RedisServer, binaries, preferred
from tests.tls import Authority, SecureServer

#: A server that runs, and never says that it does.
MUTE = ("--rename-command", "PING", "")


class Broken(Exception):
    pass


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that is started from now on."""
    seen: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen.__init__

    def noted(self: subprocess.Popen[bytes], *arguments: object, **options: object) -> None:
        begin(self, *arguments, **options)  # type: ignore[call-overload]
        seen.append(self)

    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    return seen


def none_left(spawned: list[subprocess.Popen[bytes]], *, at_least: int) -> None:
    assert len(spawned) >= at_least
    assert [process.args for process in spawned if process.poll() is None] == []


def breaks(*_: object, **__: object) -> bool:
    raise Broken


def test_one_server(spawned: list[subprocess.Popen[bytes]]) -> None:
    server = RedisServer(preferred(), arguments=MUTE)
    with pytest.raises(Exception, match="PING"):
        server.start()
    none_left(spawned, at_least=1)
    assert not server.folder.exists()


@pytest.mark.parametrize("place", ["a replica", "in step", "a Sentinel", "they know each other"])
def test_a_primary_with_replicas_and_sentinels(
    spawned: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Wherever its set-up breaks."""
    fleet = Fleet(preferred(), replicas=1, sentinels=2)
    if place == "a replica":
        fleet.nodes[1].arguments += MUTE
    elif place == "a Sentinel":
        fleet.sentinels[1].start = breaks  # type: ignore[method-assign, assignment]
    else:
        monkeypatch.setattr(Fleet, {"in step": "in_step", "they know each other": "_all_know"}[place], breaks)
    with pytest.raises(Exception, match="PING" if place == "a replica" else None):
        fleet.start()
    none_left(spawned, at_least={"a replica": 2, "in step": 2, "a Sentinel": 3}.get(place, 4))


def test_a_cluster(spawned: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "says", breaks)
    with pytest.raises(Broken):
        RedisCluster(preferred(), replicas=False).start()
    none_left(spawned, at_least=3)


async def test_a_server_behind_its_tls(spawned: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """The port for TLS is taken."""
    binary = list(binaries().values())[-1]
    secure, blocker = SecureServer(binary, Authority(tmp_path)), RedisServer(preferred())
    blocker.port = secure.port
    with blocker:
        with pytest.raises((OSError, AssertionError)):
            await secure.start()
        none_left([process for process in spawned if process.args[0] != str(blocker.binary)], at_least=1)  # type: ignore[index]


def test_what_a_broken_test_leaves_ends_with_the_tests() -> None:
    """A process of tests that closes nothing, and fails: its server is gone when it is."""
    told = subprocess.run(
        [
            sys.executable, "-c",
            "from tests.servers import RedisServer, preferred\n"
            "server = RedisServer(preferred()).start()\n"
            "print(server.port, flush=True)\n"
            "raise SystemExit(3)",
        ],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert told.returncode == 3, told.stderr
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(asyncio.wait_for(asyncio.open_connection("127.0.0.1", int(told.stdout)), 5))

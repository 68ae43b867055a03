from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.admission import Admission
from tests.e2e.wiretap import Wiretap
from tests.harness import Origin
from tests.servers import RedisServer, binaries, preferred


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """An origin that counts its effects by key."""
    origin = await Origin().start()
    yield origin
    await origin.stop()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of this test's own, that keeps what it acknowledged."""
    server = RedisServer(preferred(), aof=True).start()
    yield server
    server.close()


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> Admission:
    """Record the direct admissions of a gateway in this process."""
    found = Admission()
    monkeypatch.setattr("gateway.edge.client.admit_directly", found.admit)
    return found


@pytest.fixture
async def tap(redis: RedisServer) -> AsyncIterator[Wiretap]:
    """A proxy before that Redis, which writes down what passes."""
    tap = await Wiretap(redis.port).start()
    yield tap
    await tap.stop()


@pytest.fixture
def store_url(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """The URL of a fresh store: `memory`, `sqlite`, or one on the server of that name."""
    servers: list[RedisServer] = []

    def make(kind: str) -> str:
        if kind == "memory":
            return "memory://"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/keys.db"
        server = RedisServer(binaries()[kind]).start()
        servers.append(server)
        return server.url

    yield make
    for server in servers:
        server.close()

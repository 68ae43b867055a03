"""Each kind of store with a hand on its time, so that one suite can hold all of them to one oracle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from gateway.app import open_store
from gateway.awaitable import AwaitableStore
from gateway.core.fingerprint import Fingerprint
from gateway.core.message import Answer
from gateway.core.record import HOLDER_BYTES, ClaimTerms, NewClaim, Record, claim
from gateway.ports import Nobody, Observer
from gateway.stores.memory import MemoryStore
from gateway.stores.redis import RedisStore
from gateway.stores.sqlite import SqliteStore
from tests.cluster import RedisCluster
from tests.servers import RedisServer, binaries, preferred

LEASE = 60_000
DOUBT_WINDOW = 600_000
WINDOW = 300_000
FINGERPRINT = Fingerprint(b"\x01\x02\x03\x04" + b"r" * 16 + b"c" * 16, b"t" * 12)


class FakeClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return 1_000.0 + self.passed

    def wall(self) -> int:
        return 1_700_000_000_000 + round(self.passed * 1000)


class World(Protocol):
    """A store, and how to let time pass for it."""

    store: AwaitableStore

    async def pass_time(self, milliseconds: int) -> None: ...

    async def close(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store: AwaitableStore = AwaitableStore(MemoryStore(self.clock))

    async def pass_time(self, milliseconds: int) -> None:
        self.clock.passed += milliseconds / 1000

    async def close(self) -> None:
        await self.store.close()


class SqliteWorld(MemoryWorld):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="oncegate-sqlite-")
        self.store = AwaitableStore(SqliteStore(Path(self.folder.name) / "keys.db", self.clock, durability="process"))

    async def close(self) -> None:
        await super().close()
        self.folder.cleanup()


def redis_store(url: str, observer: Observer | None = None) -> AwaitableStore:
    """The store of a Redis URL, as the gate makes it."""
    store = AwaitableStore(open_store(url, FakeClock(), observer or Nobody(), prefix="og:"))
    assert isinstance(store.port, RedisStore)
    return store


def age(server: RedisServer, milliseconds: int) -> None:
    """Shorten what every record of this server has left."""
    with server.client() as client:
        for name in client.scan_iter(match="og:" + "?" * 43):  # records, and not the marker
            left = client.pttl(name) - milliseconds
            client.pexpire(name, left) if left > 0 else client.delete(name)


class RedisWorld:
    """A Redis of its own. Time passes by shortening what every record has left, in the server."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        server.client().flushall()
        self.store: AwaitableStore = redis_store(server.url)

    async def pass_time(self, milliseconds: int) -> None:
        age(self.server, milliseconds)

    async def close(self) -> None:
        await self.store.close()


class ClusterWorld:
    """A cluster of three primaries. Time passes on each of them."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.cluster = cluster
        cluster.flush()
        self.store: AwaitableStore = redis_store(cluster.url)

    async def pass_time(self, milliseconds: int) -> None:
        for node in self.cluster.primaries:
            age(node, milliseconds)

    async def close(self) -> None:
        await self.store.close()


_servers: dict[str, RedisServer | RedisCluster] = {}


def _redis_world(name: str) -> Callable[[], World]:
    def make() -> World:
        if name not in _servers:
            _servers[name] = RedisServer(binaries()[name]).start()
        server = _servers[name]
        assert isinstance(server, RedisServer)
        return RedisWorld(server)

    return make


def _cluster_world() -> World:
    if "cluster" not in _servers:
        _servers["cluster"] = RedisCluster(preferred(), replicas=False).start()
    cluster = _servers["cluster"]
    assert isinstance(cluster, RedisCluster)
    return ClusterWorld(cluster)


def close_servers() -> None:
    while _servers:
        _servers.popitem()[1].close()


#: Every store that can be had here, with how to make a fresh one.
WORLDS: dict[str, Callable[[], World]] = {
    "memory": MemoryWorld,
    "sqlite": SqliteWorld,
    **{name: _redis_world(name) for name in binaries()},
    "cluster": _cluster_world,
}

every_store = pytest.mark.parametrize("kind", list(WORLDS))


def a_holder() -> bytes:
    return os.urandom(HOLDER_BYTES)


def a_claim(holder: bytes | None = None, *, lease: int = LEASE, life: int = LEASE + DOUBT_WINDOW) -> Record:
    return claim(
        FINGERPRINT,
        holder=holder or a_holder(),
        route="payments",
        lease=lease,
        life=life,
        window=WINDOW,
        wall=1_700_000_000_000,
    )


def a_new_claim(holder: bytes | None = None) -> NewClaim:
    """The claim of `a_claim` as a NewClaim."""
    terms = ClaimTerms(route="payments", lease=LEASE, life=LEASE + DOUBT_WINDOW, window=WINDOW)
    return NewClaim(terms, FINGERPRINT, holder or a_holder(), 1_700_000_000_000)


def an_answer(body: bytes = b'{"id":1}', status: int = 201) -> Answer:
    return Answer(status, b"Content-Type: application/json\r\nX-Twice: 1\r\nX-Twice: \xff\r\n", body)

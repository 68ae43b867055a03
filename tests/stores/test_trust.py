"""A Redis is looked at before it is trusted with a claim: how it is run, whose keys it holds, and whether they are all
still there. On every server that can be had here, each in a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway.app import open_store
from gateway.awaitable import AwaitableStore
from gateway.core.identity import Identity
from gateway.core.policy import Policy, Route
from gateway.core.record import Done, Found, keep
from gateway.ports import IdentityChanged, Nobody, StoreAway, StoreFull, StoreRefused
from gateway.stores.redis import RedisStore, Severity, Trust
from gateway.stores.redis.findings import (
    evicts,
    judge,
    no_file,
    no_memory_limit,
    read_info,
    tempered,
)
from gateway.stores.redis.marker import marker_key
from tests.servers import RedisServer, binaries, preferred
from tests.stores.worlds import FakeClock, a_claim, an_answer

MARKER = "og:marker:shop:"
#: An alarm comes within two seconds, says DESIGN §8; what a loaded machine needs besides is not ours.
IN_TIME = 2.0

here = Identity.of([Route("all", "app", policy=Policy())], b"sesame")
elsewhere = Identity.of([Route("all", "app", policy=Policy(namespace=b"other"))], b"sesame")
TRUST = Trust(service="shop", identity=here)


class Ear(Nobody):
    """Hears alarms, and what the store says besides."""

    def __init__(self) -> None:
        self.alarms: list[str] = []
        self.said: list[tuple[str, str]] = []

    def alarm(self, what: str, **facts: object) -> None:
        self.alarms.append(str(facts.get("finding", what)))

    def say(self, level: str, what: str, **facts: object) -> None:
        self.said.append((level, str(facts["finding"])))


@asynccontextmanager
async def store_on(server: RedisServer, trust: Trust = TRUST, ear: Ear | None = None) -> AsyncIterator[AwaitableStore]:
    ear = ear or Ear()
    store = AwaitableStore(open_store(server.url, FakeClock(), ear, prefix="og:", trust=trust, say=ear.say))
    assert isinstance(store.port, RedisStore)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=list(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    server = RedisServer(binaries()[request.param]).start()
    yield server
    server.close()


@pytest.fixture
def any_server() -> Iterator[RedisServer]:
    server = RedisServer(preferred()).start()
    yield server
    server.close()


def names(store: AwaitableStore) -> dict[str, Severity]:
    return {found.name: found.severity for found in store.findings}


async def within(seconds: float, met: Callable[[], object]) -> None:
    """`met` comes true in that time."""
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.01)


_counted = iter(range(10**6))


async def claim(store: AwaitableStore) -> Done | Found:
    """A claim of a key that nobody had before."""
    return await store.claim(b"%043d" % next(_counted), a_claim())


def configured(server: RedisServer, **settings: str) -> None:
    with server.client() as client:
        for name, value in settings.items():
            client.config_set(name.replace("_", "-"), value)


# ── How it is run ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-ttl", "allkeys-lru", "allkeys-random"])
@pytest.mark.parametrize("binary", list(binaries()))
async def test_a_server_that_evicts_is_refused_from_the_first_claim_on(binary: str, policy: str) -> None:
    """Started with a limit and an evicting policy, the volatile ones too: no claim is made, the reason names the
    setting; it is an alarm, once."""
    limits = ("--maxmemory", "64mb", "--maxmemory-policy", policy)
    server, ear = RedisServer(binaries()[binary], arguments=limits).start(), Ear()
    try:
        async with store_on(server, ear=ear) as store:
            assert names(store)["evicts"] is Severity.REFUSE
            with pytest.raises(StoreRefused, match=r"evicts: .*CONFIG SET maxmemory-policy noeviction"):
                await claim(store)
            assert not store.available
            assert policy in store.trouble
            await asyncio.sleep(2.2)  # two more looks
            assert ear.alarms == ["evicts"]
    finally:
        server.close()


async def test_an_eviction_policy_that_is_set_while_it_runs(server: RedisServer) -> None:
    """CONFIG SET under a running gate: claims stop within two seconds; what is in flight is still settled; and set
    back, they go on."""
    ear = Ear()
    async with store_on(server, ear=ear) as store:
        mine, name = a_claim(), b"m" * 43
        assert await store.claim(name, mine) is Done.WON
        configured(server, maxmemory="64mb", maxmemory_policy="volatile-lru")
        await within(IN_TIME, lambda: not store.available)
        with pytest.raises(StoreRefused, match="evicts"):
            await claim(store)
        assert await store.settle(name, keep(mine, an_answer(), wall=0)) is Done.DONE
        configured(server, maxmemory_policy="noeviction")
        assert await store.wait_available(IN_TIME)
        assert await claim(store) is Done.WON
        assert ear.alarms == ["evicts"]
        assert ("info", "evicts") in ear.said


async def test_store_check_warn_and_off(server: RedisServer) -> None:
    """warn: it is told and claims are made. off: nobody looks."""
    configured(server, maxmemory="64mb", maxmemory_policy="volatile-lru")
    for check, found in (("warn", {"evicts", "no-persistence"}), ("off", set())):
        ear = Ear()
        async with store_on(server, replace(TRUST, check=check), ear) as store:
            assert await claim(store) is Done.WON
            assert names(store) == dict.fromkeys(found, Severity.WARN)
            assert {name for _, name in ear.said} == found
            assert ear.alarms == []


async def test_no_file_and_no_replica_is_a_warning(server: RedisServer) -> None:
    """Neither AOF nor replica: said once, and served. With AOF it is no longer so."""
    ear = Ear()
    async with store_on(server, ear=ear) as store:
        assert names(store) == {"no-persistence": Severity.WARN}
        assert await claim(store) is Done.WON
        configured(server, appendonly="yes")
        await within(10, lambda: not store.findings)
        assert ear.said == [("warning", "no-persistence"), ("info", "no-persistence")]
        assert ear.alarms == []


async def test_a_replica_that_is_named_as_the_primary(server: RedisServer) -> None:
    """Its reason says so, and what to name instead; no claim is made."""
    replica = RedisServer(server.binary, arguments=("--replicaof", f"127.0.0.1 {server.port}")).start()
    try:
        async with store_on(replica) as store:
            assert not store.available
            assert "read-only replica: name its primary" in store.trouble
            with pytest.raises(StoreAway, match="read-only replica"):
                await claim(store)
        async with store_on(server) as store:
            await within(5, lambda: "no-persistence" not in names(store))  # it has a replica
    finally:
        replica.close()


def test_the_findings_are_what_info_says() -> None:
    """Pure functions of INFO; a field that a managed service leaves out, or leaves empty, is no finding."""
    assert judge({}) == judge(read_info(b"# Memory\r\nmaxmemory:\r\nredis_version:7.2\r\n"))
    assert [found.name for found in judge({"maxmemory": "0", "aof_enabled": "0"})] == [
        "no-persistence", "no-memory-limit",
    ]  # fmt: skip
    assert evicts({"maxmemory": "0", "maxmemory_policy": "allkeys-lru"}) is None
    assert evicts({"maxmemory": "1", "maxmemory_policy": "noeviction"}) is None
    silent = evicts({"maxmemory": "1"})
    assert silent is not None
    assert (silent.name, silent.severity) == ("eviction-unknown", Severity.ADVISE)
    assert no_file({"aof_enabled": "1"}) is None
    alone = no_file({"aof_enabled": "0", "connected_slaves": "1"})
    assert alone is not None
    assert (alone.name, alone.severity) == ("no-file-behind-replicas", Severity.ADVISE)
    bare = no_file({"aof_enabled": "0", "connected_slaves": "0"})
    assert bare is not None
    assert bare.name == "no-persistence"
    assert no_file({"aof_enabled": "1", "connected_slaves": "1"}) is None
    assert no_memory_limit({"maxmemory": "0"}) is not None
    bad = judge({"maxmemory": "1", "maxmemory_policy": "volatile-lru", "aof_enabled": "0", "connected_slaves": "0"})
    assert [found.severity for found in bad] == [Severity.REFUSE, Severity.WARN]
    assert tempered(bad, "strict") == bad
    assert [found.severity for found in tempered(bad, "warn")] == [Severity.WARN, Severity.WARN]
    assert tempered(bad, "off") == ()


# ── Whether the keys are still there ──────────────────────────────────────────────────────────────


async def test_the_marker_is_there_for_good(server: RedisServer) -> None:
    """Written at the start, without an expiry, readable, and without the secret."""
    async with store_on(server), store_on(server):
        with server.client() as client:
            assert client.ttl(MARKER) == -1
            told = json.loads(client.get(MARKER))
            assert Identity.from_json(told["identity"]) == here
            assert b"sesame" not in client.get(MARKER)
    async with store_on(server) as store:
        assert names(store) == {"no-persistence": Severity.WARN}
        with server.client() as client:
            assert json.loads(client.get(MARKER)) == told


async def flushed(server: RedisServer) -> None:
    with server.client() as client:
        before = client.info("server")["run_id"]
        client.flushall()
        assert client.info("server")["run_id"] == before


async def restarted_empty(server: RedisServer) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("lose", [flushed, restarted_empty])
async def test_a_store_that_forgot_is_an_alarm(
    server: RedisServer, lose: Callable[[RedisServer], Awaitable[None]]
) -> None:
    """FLUSHALL (the run id stays), or a restart without data: an alarm within two seconds at each of two gates,
    although only one of them writes the marker again; and claims go on."""
    one, two = Ear(), Ear()
    async with store_on(server, ear=one) as first, store_on(server, ear=two) as second:
        await lose(server)
        await within(IN_TIME, lambda: one.alarms == two.alarms == ["amnesia"])
        with server.client() as client:
            assert client.exists(MARKER)
        assert names(first)["amnesia"] is names(second)["amnesia"] is Severity.WARN
        assert await first.wait_available(IN_TIME)
        assert await claim(first) is Done.WON
        assert first.accept()
        assert not first.accept()
        assert "amnesia" not in names(first)
        await lose(server)
        await within(IN_TIME, lambda: one.alarms == ["amnesia", "amnesia"])


@pytest.mark.parametrize("lose", [flushed, restarted_empty])
async def test_on_amnesia_refuse(server: RedisServer, lose: Callable[[RedisServer], Awaitable[None]]) -> None:
    """No gate claims any more, whichever of them wrote the marker again, until each was told that it is known."""
    trust = replace(TRUST, on_amnesia="refuse")
    one, two = Ear(), Ear()
    async with store_on(server, trust, one) as first, store_on(server, trust, two) as second:
        await lose(server)
        await within(IN_TIME, lambda: one.alarms == two.alarms == ["amnesia"])
        for store in (first, second):
            with pytest.raises(StoreRefused, match="amnesia: og:marker:shop: vanished"):
                await claim(store)
            assert not store.available
        assert first.accept()
        assert first.available
        assert await claim(first) is Done.WON
        with pytest.raises(StoreRefused):
            await claim(second)


async def test_a_connection_that_breaks_is_no_amnesia(server: RedisServer) -> None:
    """Killed with AOF on and started again: everything is there, the marker too, and nobody is alarmed."""
    server.close()
    server = RedisServer(server.binary, aof=True).start()
    ear = Ear()
    try:
        async with store_on(server, ear=ear) as store:
            mine = a_claim()
            assert await store.claim(b"m" * 43, mine) is Done.WON
            await restarted_empty(server)
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert isinstance(await store.claim(b"m" * 43, a_claim()), Found)
                        break
                    except StoreAway:
                        await asyncio.sleep(0.01)
            await asyncio.sleep(1.2)
            assert (ear.alarms, store.findings) == ([], ())
    finally:
        server.close()


async def test_no_claim_before_the_marker_was_read(any_server: RedisServer) -> None:
    """The server is emptied while the gate's connection is away: not one claim is made over the new connection before
    the marker has been looked at."""
    trust = replace(TRUST, on_amnesia="refuse")
    async with store_on(any_server, trust) as store:
        for _ in range(5):
            await restarted_empty(any_server)
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert await claim(store) is not Done.WON, "a claim before the look"
                    except StoreRefused:
                        break
                    except StoreAway:
                        await asyncio.sleep(0)
            assert store.accept()


async def test_a_marker_that_cannot_be_read_is_no_trust(any_server: RedisServer) -> None:
    """A user without GET on the marker: no claim, and the reason is Redis' own."""
    with any_server.client() as client:
        client.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "~og:?????????????????????*", "&*", "+@all")
    blind = RedisServer(any_server.binary)
    blind.port = any_server.port
    store = AwaitableStore(
        open_store(f"redis://blind:pw@127.0.0.1:{blind.port}/0", FakeClock(), Nobody(), prefix="og:", trust=TRUST)
    )
    await store.open()
    try:
        with pytest.raises(StoreAway, match="look at its marker: NOPERM"):
            await store.claim(b"n" * 43, a_claim())
        assert "NOPERM" in store.trouble
    finally:
        await store.close()
        blind.close()


async def test_a_full_server_keeps_no_marker_and_is_no_amnesia(any_server: RedisServer) -> None:
    """At the memory limit the marker cannot be written: claims are refused for that reason alone, and the alarm names
    it; the marker is written as soon as there is room."""
    configured(any_server, maxmemory="1", maxmemory_policy="noeviction")
    ear = Ear()
    async with store_on(any_server, ear=ear) as store:
        with pytest.raises(StoreFull, match="OOM"):
            await claim(store)
        configured(any_server, maxmemory="0")
        with any_server.client() as client:
            await within(IN_TIME, lambda: client.exists(MARKER))
        assert await claim(store) is Done.WON
        assert ear.alarms == ["full"]


# ── Whose keys they are ───────────────────────────────────────────────────────────────────────────


async def test_another_identity_is_refused(server: RedisServer) -> None:
    """The second configuration on one store makes no claim, and says in what it differs; the first goes on."""
    ear = Ear()
    async with store_on(server) as first, store_on(server, replace(TRUST, identity=elsewhere), ear) as second:
        with pytest.raises(IdentityChanged, match=r"identity-changed: .*namespace other .*--accept-new-keys"):
            await claim(second)
        assert ear.alarms == ["identity-changed"]
        assert await claim(first) is Done.WON
        with server.client() as client:
            told = json.loads(client.get(MARKER))["identity"]
        assert Identity.from_json(told) == here


async def test_whatever_is_checked_the_identity_is(any_server: RedisServer) -> None:
    """store_check: off looks at no setting of the server, and at the identity all the same."""
    async with store_on(any_server), store_on(any_server, replace(TRUST, check="off", identity=elsewhere)) as second:
        with pytest.raises(IdentityChanged):
            await claim(second)


async def test_services_and_prefixes_have_markers_of_their_own(any_server: RedisServer) -> None:
    """Another service of the same Redis has another identity, and nobody minds."""
    async with store_on(any_server), store_on(any_server, Trust(service="bank", identity=elsewhere)) as bank:
        assert await claim(bank) is Done.WON


async def test_new_keys_are_accepted_once(server: RedisServer) -> None:
    """--accept-new-keys takes the store over: the former gates refuse within two seconds. When one of them takes it
    back, the first to have accepted does not fight over it. None of it is amnesia."""
    one, two = Ear(), Ear()
    accepting = replace(TRUST, identity=elsewhere, accept_new_keys=True)
    async with store_on(server, ear=one) as first:
        assert await claim(first) is Done.WON
        async with store_on(server, accepting, two) as second:
            assert await claim(second) is Done.WON
            await within(IN_TIME, lambda: not first.available)
            with pytest.raises(IdentityChanged):
                await claim(first)
            async with store_on(server, replace(TRUST, accept_new_keys=True)) as third:
                assert await claim(third) is Done.WON
                await within(IN_TIME, lambda: first.available and not second.available)
                with pytest.raises(IdentityChanged):
                    await claim(second)
                await asyncio.sleep(1.2)
                assert await claim(first) is Done.WON
    assert one.alarms == two.alarms == ["identity-changed"]


@pytest.mark.parametrize("odd", [b"", b"{", b"[]", b'{"born":"x","identity":{"format":2,"secret":"","keys":[]}}'])
async def test_a_marker_of_another_version_is_not_written_over(any_server: RedisServer, odd: bytes) -> None:
    """What cannot be read is another identity: refused, and left as it is."""
    with any_server.client() as client:
        client.set(MARKER, odd)
        async with store_on(any_server) as store:
            with pytest.raises(IdentityChanged):
                await claim(store)
        assert client.get(MARKER) == odd


def test_the_marker_is_called_as_no_record_is() -> None:
    """For no prefix and service does a marker have the name of a record, or of another service's marker."""
    assert marker_key("og:", "shop") == MARKER.encode()
    assert marker_key("og:", "a" * 43)[-1:] == b":"
    assert marker_key("a", "b:c") == marker_key("a", "b:c")
    assert marker_key("og:", "marker.x") != marker_key("og:marker:", "x")

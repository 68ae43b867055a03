"""A user of Redis who may do what the gate does and nothing else; and what is said when an administrator left
something out. The list stands in the code, in docs/redis.md, and is what these tests play with."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.crc import key_slot

from gateway.app import open_store, redis_servers
from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.identity import Identity
from gateway.core.record import Done, Doubt, Found, Stamp, State
from gateway.ports import StoreAway
from gateway.stores.redis import RedisStore, Severity, Trust, examine
from gateway.stores.redis.bells import PING_EVERY
from gateway.stores.redis.findings import Check
from tests.cluster import RedisCluster
from tests.edge.stand import eventually
from tests.servers import RedisServer, binaries, preferred
from tests.stores.listening import listen
from tests.stores.test_bells import SOON, Alarms, hearing, hold, keep, release, takeover
from tests.stores.worlds import FakeClock, a_claim, an_answer

PAGE = (Path(__file__).parent.parent.parent / "docs/redis.md").read_text()
NAME, OTHER, FREED = b"n" * 43, b"o" * 43, b"f" * 43
USER = "oncegate"
#: What an administrator must allow.
COMMANDS = (
    "SET", "GET", "PTTL", "DEL", "EVALSHA", "EVAL", "SCRIPT|LOAD", "INFO", "SELECT", "CLIENT|SETNAME", "WAIT",
    "SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", "PING", "CLUSTER|SLOTS", "ASKING",
    "SCAN", "GETRANGE",
)  # fmt: skip
#: What only a cluster is asked.
OF_CLUSTERS = ("CLUSTER|SLOTS", "ASKING")


def allow(server: RedisServer, *, less: str = "") -> str:
    """Make the user, `less` one command; his URL."""
    commands = [f"+{command.lower()}" for command in COMMANDS if command != less]
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", USER, "reset", "on", ">pw", "resetkeys", "~og:*", "resetchannels", "&og:*", "-@all",
            *commands,
        )  # fmt: skip
    return f"redis://{USER}:pw@127.0.0.1:{server.port}"


@asynccontextmanager
async def opened(url: str, alarms: Alarms | None = None, *, check: Check = "strict") -> AsyncIterator[AwaitableStore]:
    store = AwaitableStore(open_store(url, FakeClock(), alarms or Alarms(), prefix="og:", trust=Trust(check=check)))
    assert isinstance(store.port, RedisStore)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def every_verb(store: AwaitableStore, name: bytes = NAME) -> None:
    """Claim, ask again, wait for it, Hold, takeover, Release of the second run, Keep, replay, look, forget; a claim
    and its Release; an answer that is told again to a store that forgot; a walk through all."""
    claim = a_claim()
    assert await store.claim(name, claim) is Done.WON
    assert await store.claim(name, claim) is Done.WON
    with listen(store, name) as bell:
        await hearing(bell)
        assert await store.settle(name, hold(claim)) is Done.DONE
        assert await bell.rung(SOON)
    first = await store.get(name)
    assert first is not None
    second = takeover(first.record)
    assert await store.compare_and_swap(name, Stamp(State.IN_DOUBT, claim.holder), second) is Done.WON
    assert await store.settle(name, records.release(second, elapsed=0, wall=0)) is Done.DONE
    third = takeover(second)
    assert await store.compare_and_swap(name, Stamp(State.IN_DOUBT, second.holder), third) is Done.WON
    assert await store.settle(name, keep(third)) is Done.DONE
    found = await store.claim(name, a_claim())
    assert isinstance(found, Found)
    assert found.record.answer == an_answer()
    assert await store.compare_and_swap(name, Stamp(State.COMPLETED, third.holder), None) is Done.WON
    assert await store.get(name) is None
    claim = a_claim()
    assert await store.claim(name, claim) is Done.WON
    assert await store.settle(name, release(claim)) is Done.DONE
    assert await store.settle(name, keep(a_claim())) is Done.FORGOT
    page = await store.walk("", 100)
    met = {found for found, _ in page.records}
    while page.cursor:
        page = await store.walk(page.cursor, 100)
        met |= {found for found, _ in page.records}
    assert name in met


@pytest.fixture(params=list(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    server = RedisServer(binaries()[request.param]).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def standing() -> Iterator[RedisServer]:
    server = RedisServer(preferred()).start()
    yield server
    server.close()


@pytest.fixture
def one(standing: RedisServer) -> RedisServer:
    """A server that has nothing."""
    with standing.client() as client:
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    return standing


# ── What is enough ────────────────────────────────────────────────────────────────────────────────


def test_the_docs_have_the_list_of_the_code() -> None:
    """The ACL line of docs/redis.md is what `allow` here gives: the keys and channels of the prefix, every command of
    COMMANDS, and none besides."""
    line = re.search(r"^ACL SETUSER oncegate on >\S+ (resetkeys .*(?:(?<=\\)\n.*)*)$", PAGE, re.MULTILINE)
    assert line is not None
    words = line[1].replace("\\\n", " ").split()
    assert words[:5] == ["resetkeys", "~og:*", "resetchannels", "&og:*", "-@all"]
    assert sorted(words[5:]) == sorted(f"+{command.lower()}" for command in COMMANDS)


async def test_these_commands_are_enough(server: RedisServer) -> None:
    """Every verb, the marker, bells, a PING of theirs, a script that the server has forgotten, another database, and
    the doctor: with no refusal and no alarm; and nothing of the list but what a cluster is asked was not asked."""
    alarms, url = Alarms(), allow(server)
    with server.client() as client:
        client.config_resetstat()
        for database in ("", "/1"):
            async with opened(url + database, alarms) as store:
                assert store.trouble == ""
                await every_verb(store)
                client.script_flush()
                await every_verb(store, OTHER)
                await eventually(
                    lambda: client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] > 0, "a PING", SOON
                )
        for seen in await examine(redis_servers(url), "og:", "default", Identity.of(())):
            assert [each.name for each in seen.findings if each.severity is Severity.REFUSE] == []
        stats = client.info("commandstats")
        assert client.info("errorstats").get("errorstat_NOPERM") is None
        asked = {name.removeprefix("cmdstat_") for name in stats}
        needed = {command.lower() for command in COMMANDS if command not in (*OF_CLUSTERS, "WAIT")}
        assert needed <= asked | {"eval"}, needed - asked
    assert alarms.raised == []


async def test_they_are_enough_for_replicas(one: RedisServer) -> None:
    """durability=replicated: the lanes' WAIT."""
    replica = RedisServer(one.binary, arguments=("--replicaof", f"127.0.0.1 {one.port}"))
    with one.client() as client:
        client.config_set("repl-diskless-sync-delay", "0")
    await asyncio.to_thread(replica.start)
    try:
        url = f"{allow(one)}?durability=replicated&replicas=1&wait=2s"
        async with opened(url) as store:
            await eventually(lambda: store.available, "it is connected", SOON)
            await every_verb(store)
    finally:
        replica.close()


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster(preferred(), primaries=2, replicas=False)
    try:
        yield cluster.start()
    finally:
        cluster.close()


async def test_they_are_enough_for_a_cluster(cluster: RedisCluster) -> None:
    """Every verb on each primary, and while a slot is on its way. Without CLUSTER SLOTS nobody is found, and the reason
    names it; without ASKING what is on its way is refused, and what is not is served."""
    for node in cluster.nodes:
        allow(node)
    url = cluster.url.replace("//", f"//{USER}:pw@")
    slot = key_slot(b"og:" + NAME)
    target = next(node for node in cluster.nodes if node is not cluster.owner(slot))
    async with opened(url) as store:
        for name in (NAME, next(b"%043d" % n for n in range(99) if cluster.of(b"og:%043d" % n) is target)):
            await every_verb(store, name)
        with cluster.owner(slot).client() as client:
            client.delete(b"og:" + NAME)
        with cluster.moving(slot, target):
            claim = a_claim()
            assert await store.claim(NAME, claim) is Done.WON
            assert await store.settle(NAME, keep(claim)) is Done.DONE
            assert target.errors("NOPERM") == 0
            assert await store.compare_and_swap(NAME, Stamp(State.COMPLETED, claim.holder), None) is Done.WON
            allow(target, less="ASKING")  # on connections that have been looked at
            with pytest.raises(StoreAway, match=r"NOPERM.*asking|MOVED|from one to another"):
                await store.claim(NAME, a_claim())
            assert await store.claim(FREED, a_claim()) is Done.WON
    for node in cluster.nodes:
        allow(node, less="CLUSTER|SLOTS")
    async with opened(url) as store:
        assert not store.available
        assert re.search(r"NOPERM.*cluster\|slots", store.trouble), store.trouble


# ── What is missing is said ───────────────────────────────────────────────────────────────────────


async def cannot_claim(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """Nothing can be claimed, and the trouble says why."""
    assert not store.available
    with pytest.raises(StoreAway) as away:
        await store.claim(NAME, a_claim())
    assert not away.value.ambiguous
    return store.trouble


async def cannot_replay(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """Whoever meets a record is told that the store is away."""
    assert await store.claim(NAME, a_claim()) is Done.WON
    with pytest.raises(StoreAway) as away:
        await store.claim(NAME, a_claim())
    return str(away.value)


async def cannot_settle(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """An answer is not stored, and its key stays in flight."""
    claim = a_claim()
    assert await store.claim(NAME, claim) is Done.WON
    with pytest.raises(StoreAway) as away:
        await store.settle(NAME, keep(claim))
    return str(away.value)


async def cannot_free(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """A Release is not made, and its key stays in flight; answers are stored."""
    claim = a_claim()
    assert await store.claim(NAME, claim) is Done.WON
    with pytest.raises(StoreAway) as away:
        await store.settle(NAME, release(claim))
    assert await store.settle(NAME, keep(claim)) is Done.DONE
    return str(away.value)


async def cannot_settle_after_a_restart(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """While the server has the script all is well; once it has forgotten it, answers are not stored."""
    claim = a_claim()
    assert await store.claim(NAME, claim) is Done.WON
    assert await store.settle(NAME, keep(claim)) is Done.DONE
    with server.client() as client:
        client.script_flush()
    claim = a_claim()
    assert await store.claim(OTHER, claim) is Done.WON
    with pytest.raises(StoreAway) as away:
        await store.settle(OTHER, keep(claim))
    return str(away.value)


async def cannot_hear(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """Waiters look often instead, and an alarm says so."""
    with listen(store, NAME) as bell:
        await eventually(lambda: bool(alarms.raised), "it is refused", SOON)
        assert not bell.hears
    return alarms.raised[0]


async def cannot_wait(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """No claim counts."""
    with pytest.raises(StoreAway) as away:
        await store.claim(NAME, a_claim())
    assert away.value.ambiguous
    return str(away.value)


async def nobody_is_told(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """The write stands; who waits finds it by the slow look that stands behind every bell."""
    claim = a_claim()
    assert await store.claim(NAME, claim) is Done.WON
    with listen(store, NAME) as bell:
        await hearing(bell)
        while await bell.rung(0.05):
            pass
        assert await store.settle(NAME, keep(claim)) is Done.DONE
        assert not await bell.rung(0.1)
        looked = await store.get(NAME)
        assert looked is not None
        assert looked.record.answer == an_answer()
    return ""


async def all_is_well(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """It is housekeeping: every verb goes, and bells ring."""
    await every_verb(store)
    await asyncio.sleep(PING_EVERY * 1.1)
    await every_verb(store, OTHER)
    return ""


async def cannot_walk(store: AwaitableStore, alarms: Alarms, server: RedisServer) -> str:
    """Claims and answers are made; an operator who wants to see all of them is told why not."""
    claim = a_claim()
    assert await store.claim(NAME, claim) is Done.WON
    assert await store.settle(NAME, keep(claim)) is Done.DONE
    with pytest.raises(StoreAway) as away:
        await store.walk("", 100)
    return str(away.value)


@dataclass(frozen=True)
class Lack:
    """What is seen without a command, what is said of it, and how the store is named."""

    seen: Callable[[AwaitableStore, Alarms, RedisServer], Awaitable[str]]
    said: str
    options: str = ""


#: In a script Redis 7.0 does not say which command was refused; it says that the script's user may not.
IN_SCRIPT = r"NOPERM|can't run this command|No permissions|has no permissions"
LACKS = {
    "SET": Lack(cannot_claim, r"marker: NOPERM.*'set'"),
    "GET": Lack(cannot_claim, r"marker: NOPERM.*'get'"),
    "PTTL": Lack(cannot_replay, r"NOPERM.*'pttl'"),
    "DEL": Lack(cannot_free, IN_SCRIPT),
    "EVALSHA": Lack(cannot_settle, r"NOPERM.*'evalsha'"),
    "EVAL": Lack(cannot_settle_after_a_restart, r"NOPERM.*'eval'"),
    "SCRIPT|LOAD": Lack(cannot_claim, r"refused SCRIPT: NOPERM.*'script\|load'"),
    "INFO": Lack(cannot_claim, r"refused INFO: NOPERM.*'info'"),
    "SELECT": Lack(cannot_claim, r"refused SELECT: NOPERM.*'select'", "/1"),
    "CLIENT|SETNAME": Lack(cannot_claim, r"refused CLIENT: NOPERM.*'client\|setname'"),
    "WAIT": Lack(cannot_wait, r"refused WAIT: NOPERM.*'wait'", "?durability=replicated&replicas=1"),
    "SPUBLISH": Lack(nobody_is_told, ""),
    "SSUBSCRIBE": Lack(cannot_hear, r"SSUBSCRIBE; waiters poll.*NOPERM.*'ssubscribe'"),
    "SUNSUBSCRIBE": Lack(all_is_well, ""),
    "PING": Lack(all_is_well, ""),
    "SCAN": Lack(cannot_walk, r"NOPERM.*'scan'"),
    "GETRANGE": Lack(cannot_walk, r"NOPERM.*'getrange'"),
}


@pytest.mark.parametrize("command", LACKS)
async def test_a_command_that_is_missing_is_named(one: RedisServer, command: str) -> None:
    """Each one taken away, and nobody looks at permissions (store_check: off): what cannot be done is refused or left
    undone, never done wrongly, and somebody is told."""
    alarms, lack = Alarms(), LACKS[command]
    async with opened(allow(one, less=command) + lack.options, alarms, check="off") as store:
        said = await lack.seen(store, alarms, one)
    assert re.search(lack.said, said), said


#: What a gate can do without, and is told all the same.
SPARE = ("SPUBLISH", "PING")
#: What it meets when somebody waits; before that only the doctor looks.
OF_WAITERS = ("SSUBSCRIBE", "SUNSUBSCRIBE")
#: What is asked when a connection is made: without it there is none.
GREETING = ("SCRIPT|LOAD", "INFO", "SELECT", "CLIENT|SETNAME")


#: What only an operator asks for, who is told then.
OF_OPERATORS = ("SCAN", "GETRANGE")


@pytest.mark.parametrize("command", sorted(set(LACKS) - set(OF_WAITERS) - set(GREETING) - set(OF_OPERATORS)))
async def test_what_is_not_permitted_is_found_before_anything_is_claimed(one: RedisServer, command: str) -> None:
    """A finding, with the line that gives it. It is refused, or a warning where a record lives without; and it goes, on
    the same connection, soon after somebody has said that line."""
    url = allow(one, less=command) + LACKS[command].options.replace("replicas=1", "replicas=1&wait=10ms")
    async with opened(url) as store:
        (found,) = [each for each in store.findings if each.name == "not-permitted"]
        line = f"ACL SETUSER {USER} +{command.lower()}"
        assert found.text.endswith(f": {line}")
        if command in SPARE:
            assert found.severity is Severity.WARN
            assert store.available
        else:
            assert found.severity is Severity.REFUSE
            assert not store.available
            assert line in store.trouble
            with pytest.raises(StoreAway):
                await store.claim(NAME, a_claim())
        with one.client() as client:
            assert set(client.keys()) <= {b"og:marker:default:"}
            connected = client.info("commandstats")["cmdstat_auth"]["calls"]
            client.execute_command(*line.split())
            await eventually(lambda: store.findings == () or names(store) == ["no-persistence"], "it is gone", SOON)
            assert client.info("commandstats")["cmdstat_auth"]["calls"] == connected
        if "replicas" not in url:
            await every_verb(store)


def names(store: AwaitableStore) -> list[str]:
    return [each.name for each in store.findings]


@pytest.mark.parametrize("command", GREETING)
async def test_a_connection_that_is_not_permitted_says_what_is(one: RedisServer, command: str) -> None:
    """The reason ends with the line that gives it."""
    async with opened(allow(one, less=command) + "/1") as store:
        assert store.trouble.endswith(f"; ACL SETUSER {USER} +{command.lower()}"), store.trouble


async def test_keys_and_channels_of_the_prefix_are_found(one: RedisServer) -> None:
    """A user of another prefix: its keys are refused; of its channels alone, a warning."""
    for rules, severity, said in (
        (("resetkeys", "~shop:*"), Severity.REFUSE, "~og:*"),
        (("resetchannels", "&shop:*"), Severity.WARN, "&og:*"),
    ):
        with one.client() as client:
            client.execute_command("ACL", "SETUSER", USER, "reset", "on", ">pw", "~og:*", "&og:*", "+@all", *rules)
        async with opened(f"redis://{USER}:pw@127.0.0.1:{one.port}") as store:
            (found,) = [each for each in store.findings if each.name == "not-permitted"]
            assert found.severity is severity
            assert found.text.endswith(f": ACL SETUSER {USER} {said}")


async def test_what_is_played_leaves_nothing(server: RedisServer) -> None:
    """On every server: to look writes no key, publishes to nobody, and a user with the list lacks nothing."""
    async with opened(allow(server)) as store:
        assert "not-permitted" not in names(store)
    with server.client() as client:
        assert client.keys("*") == [b"og:marker:default:"]
        assert client.info("persistence")["rdb_changes_since_last_save"] == 1, (
            "the marker, and nothing else was written"
        )
        assert client.info("errorstats").get("errorstat_NOPERM") is None


async def test_each_primary_of_a_cluster_is_asked(cluster: RedisCluster) -> None:
    """A user who may do less on one node: claims of its keys are refused, with its address; the others' are made."""
    bad, good = cluster.nodes
    allow(good)
    allow(bad, less="EVALSHA")
    async with opened(cluster.url.replace("//", f"//{USER}:pw@")) as store:
        there = {cluster.of(b"og:%043d" % n): b"%043d" % n for n in range(99)}
        with pytest.raises(StoreAway, match=rf"at 127.0.0.1:{bad.port}: .*ACL SETUSER {USER} \+evalsha$"):
            await store.claim(there[bad], a_claim())
        await every_verb(store, there[good])
    allow(bad, less="ASKING")
    async with opened(cluster.url.replace("//", f"//{USER}:pw@")) as store:
        assert any("+asking" in each.text for each in store.findings)


def test_each_command_is_missed_once() -> None:
    assert set(LACKS) == set(COMMANDS) - set(OF_CLUSTERS)


async def test_whoever_waits_is_answered_without_a_publish(one: RedisServer) -> None:
    """`nobody_is_told` as a doubt is seen: Hold too stands, and a look shows it."""
    async with opened(allow(one, less="SPUBLISH")) as store:
        claim = a_claim()
        assert await store.claim(NAME, claim) is Done.WON
        assert await store.settle(NAME, records.hold(claim, doubt=Doubt.LOST, status=0, wall=0)) is Done.DONE
        seen = await store.get(NAME)
        assert seen is not None
        assert seen.record.state is State.IN_DOUBT

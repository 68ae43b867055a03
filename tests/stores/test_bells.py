"""Who waits for a record is told when it leaves its flight: on real servers, over one connection, and also after that
connection was lost, has hung, or was refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.record import Done, Doubt, Found, Record, Stamp, State
from gateway.ports import Nobody, StoreAway
from gateway.stores.redis import Address, RedisStore, Servers, fleet
from tests.edge.stand import eventually
from tests.fleet import Fleet
from tests.servers import RedisServer, binaries, preferred
from tests.stores.listening import Bell, listen
from tests.stores.worlds import LEASE, WINDOW, World, a_claim, a_holder, an_answer, redis_store

NAME = b"n" * 43
CHANNEL = b"og:" + NAME
#: Seconds for what comes at once, on a machine that may be busy.
SOON = 10.0

tells = pytest.mark.parametrize("kind", list(binaries()))
tells_nobody = pytest.mark.parametrize("kind", ["memory", "sqlite"])


def keep(claim: Record) -> records.Settlement:
    return records.keep(claim, an_answer(), wall=0)


def hold(claim: Record) -> records.Settlement:
    return records.hold(claim, doubt=Doubt.LOST, status=0, wall=0)


def release(claim: Record) -> records.Settlement:
    return records.release(claim, elapsed=0, wall=0)


def takeover(seen: Record) -> Record:
    return records.takeover(seen, holder=a_holder(), route="r", lease=LEASE, life=LEASE * 2, window=WINDOW, wall=0)


@contextlib.asynccontextmanager
async def another(url: str) -> AsyncIterator[AwaitableStore]:
    """The store as another process has it."""
    store = redis_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def hearing(bell: Bell) -> None:
    """Until it hears; it rings for that."""
    while not bell.hears:
        assert await bell.rung(SOON)


@pytest.fixture(params=list(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    server = RedisServer(binaries()[request.param]).start()
    yield server
    server.close()


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[AwaitableStore]:
    async with another(server.url) as store:
        yield store


# ── What rings ────────────────────────────────────────────────────────────────────────────────────


@tells_nobody
async def test_a_store_that_tells_nobody_says_so(world: World) -> None:
    """Its bells hear nothing, not even what this process settles: whoever waits has to look."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    with listen(world.store, NAME) as bell:
        await world.store.settle(NAME, keep(claim))
        assert not await bell.rung(0.02)
        assert not bell.hears


@tells
@pytest.mark.parametrize("settle", [keep, hold, release])
async def test_a_settlement_rings(world: World, settle: Callable[[Record], records.Settlement]) -> None:
    """A Keep, a Hold and a Release each wake whoever listens to that name."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    with listen(world.store, NAME) as bell:
        await hearing(bell)
        assert await world.store.settle(NAME, settle(claim)) is Done.DONE
        assert await bell.rung(SOON)
        found = await world.store.get(NAME)
        assert found is None or found.record.state is not State.IN_FLIGHT


@tells
async def test_what_was_forgotten_rings_as_it_is_told_again(world: World) -> None:
    """FLUSHALL does not ring; the Keep that finds nothing and is written all the same does."""
    with listen(world.store, NAME) as bell:
        await hearing(bell)
        assert await world.store.settle(NAME, keep(a_claim())) is Done.FORGOT
        assert await bell.rung(SOON)


@tells
async def test_an_operator_rings(world: World) -> None:
    """A key that is forgotten by hand while somebody waits for it is free: they are woken."""
    claim = a_claim()
    await world.store.claim(NAME, claim)
    with listen(world.store, NAME) as bell:
        await hearing(bell)
        assert await world.store.compare_and_swap(NAME, Stamp(State.IN_FLIGHT, claim.holder), None) is Done.WON
        assert await bell.rung(SOON)


async def test_only_what_ends_a_flight_rings(server: RedisServer, store: AwaitableStore) -> None:
    """Claims, takeovers, looks, what is asked again and what is refused publish nothing; of a whole life of a
    record, its Hold, the Release of its second run and its Keep are heard, each once."""
    first = a_claim()
    with server.client() as client:
        listener = client.pubsub()
        listener.ssubscribe(CHANNEL)
        assert listener.get_sharded_message(timeout=SOON)["type"] == "ssubscribe"
        await store.claim(NAME, first)
        await store.claim(NAME, first)
        await store.claim(NAME, a_claim())
        await store.get(NAME)
        await store.settle(NAME, keep(a_claim()))
        for _ in range(2):
            assert await store.settle(NAME, hold(first)) is Done.DONE  # 1
        second = takeover(first)
        for _ in range(2):
            assert await store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, first.holder), second) is Done.WON
        assert await store.settle(NAME, release(second)) is Done.DONE  # 2
        third = takeover(second)
        found = await store.get(NAME)
        assert found is not None
        assert await store.compare_and_swap(NAME, Stamp(State.IN_DOUBT, found.record.holder), third) is Done.WON
        for _ in range(2):
            assert await store.settle(NAME, keep(third)) is Done.DONE  # 3
        client.spublish(CHANNEL, "the end")
        told: list[bytes] = []
        while not told or told[-1] != b"the end":
            message = listener.get_sharded_message(timeout=SOON)
            assert message is not None
            told.append(message["data"])
        listener.close()
    assert told == [b"", b"", b"", b"the end"]


# ── Nothing is missed ─────────────────────────────────────────────────────────────────────────────


async def test_what_is_settled_before_it_hears_is_seen_by_the_look_behind_its_ring(
    server: RedisServer, store: AwaitableStore
) -> None:
    """The answer is stored after somebody began to listen and before Redis knows of it: the bell rings as soon as
    it hears, and the look behind that finds the answer. Nothing else will ever ring."""
    claim = a_claim()
    await store.claim(NAME, claim)
    async with another(server.url) as other:
        bell = listen(store, NAME)
        # Settled over a connection that is there, while the one that tells is being made.
        assert await other.settle(NAME, keep(claim)) is Done.DONE
        assert not bell.hears, "that was not the moment"
        assert await bell.rung(SOON)
        assert bell.hears
        found = await store.get(NAME)
        assert found is not None
        assert found.record.state is State.COMPLETED
        bell.close()


async def test_at_whatever_moment_it_is_settled_it_is_seen(server: RedisServer, store: AwaitableStore) -> None:
    """A few hundred names are listened to and settled at moments that lie close together, in every order: whoever
    looks after each ring sees each of them, and never has to wait in vain."""
    names = [b"%043d" % number for number in range(300)]
    claims = [a_claim() for _ in names]

    async def waits(name: bytes, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        with listen(store, name) as bell:
            while True:
                assert await bell.rung(SOON), "nobody rang"
                found = await store.get(name)
                assert found is not None
                if found.record.state is State.COMPLETED:
                    return

    async def settles(other: AwaitableStore, name: bytes, claim: Record, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await other.settle(name, keep(claim)) is Done.DONE

    async with another(server.url) as other:
        for name, claim in zip(names, claims, strict=True):
            await store.claim(name, claim)
        with listen(store, b"warm" * 10) as bell:
            await hearing(bell)
            await asyncio.gather(
                *(waits(name, number % 7) for number, name in enumerate(names)),
                *(settles(other, name, claims[number], number % 11) for number, name in enumerate(names)),
            )


async def test_a_connection_that_was_killed_is_made_again(server: RedisServer, store: AwaitableStore) -> None:
    """CLIENT KILL TYPE pubsub while somebody waits, and the Keep comes while nobody is subscribed: the bell knows that
    it is deaf, rings when it hears again, and hears what comes after."""
    claim, later = a_claim(), a_claim()
    await store.claim(NAME, claim)
    with listen(store, NAME) as bell, listen(store, b"l" * 43) as other, server.client() as client:
        await hearing(bell)
        await hearing(other)
        await other.rung(0.01)
        assert client.client_kill_filter(_type="pubsub") == 1
        async with asyncio.timeout(SOON):
            while bell.hears:
                await asyncio.sleep(0)
        await store.settle(NAME, keep(claim))
        assert await bell.rung(SOON)
        assert bell.hears
        assert await other.rung(SOON)
        await store.claim(b"l" * 43, later)
        await store.settle(b"l" * 43, keep(later))
        assert await other.rung(SOON)


class Tap:
    """Between a gate and a Redis. `freeze`: what the connection that subscribes is told gets stuck."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._frozen: set[int] = set()
        self._subscribers: set[int] = set()

    def freeze(self) -> None:
        self._frozen |= self._subscribers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._to)
        me = id(writer)

        async def back() -> None:
            while data := await there[0].read(1 << 16):
                if me not in self._frozen:
                    writer.write(data)

        returning = asyncio.ensure_future(back())
        try:
            while data := await reader.read(1 << 16):
                if b"SSUBSCRIBE" in data:
                    self._subscribers.add(me)
                there[1].write(data)
        except ConnectionError:
            pass
        finally:
            returning.cancel()
            there[1].close()
            writer.close()


async def test_a_connection_that_hangs_is_found_out() -> None:
    """Nothing comes any more and nobody says so: within four seconds an unanswered PING has ended the connection, and
    the bell rings over the next one."""
    server = RedisServer(preferred()).start()
    tap = Tap(server.port)
    listening = await asyncio.start_server(tap.serve, "127.0.0.1", 0)
    try:
        async with another(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0") as store:
            claim = a_claim()
            await store.claim(NAME, claim)
            with listen(store, NAME) as bell:
                await hearing(bell)
                tap.freeze()
                await store.settle(NAME, keep(claim))
                assert not await bell.rung(0.1)
                assert bell.hears, "it cannot know yet"
                began = asyncio.get_running_loop().time()
                assert await bell.rung(SOON)
                assert asyncio.get_running_loop().time() - began < 1.0 + 2.0 + 0.5 + 1.0
    finally:
        listening.close()
        server.close()


@pytest.fixture
def watched() -> Iterator[Fleet]:
    fleet = Fleet(preferred(), replicas=1).start()
    yield fleet
    fleet.close()


async def settled_on(store: AwaitableStore, claim: Record) -> Done:
    """As an exchange settles: sent until the store has answered. (The first may go to the frozen one: bells and records
    have connections of their own, and learn on their own that it says nothing.)"""
    async with asyncio.timeout(SOON):
        while True:
            with contextlib.suppress(StoreAway):
                return await store.settle(NAME, keep(claim))
            await asyncio.sleep(0.05)


async def test_bells_hear_the_next_primary(watched: Fleet) -> None:
    """The primary freezes and Sentinels promote another: bells hear what is settled there."""
    async with another(watched.url("durability=single")) as store:
        claim = a_claim()
        await store.claim(NAME, claim)
        with listen(store, NAME) as bell:
            await hearing(bell)
            old = watched.nodes[0]
            await asyncio.to_thread(watched.until, lambda: watched.in_step(old) == 1, "in step")
            watched.freeze(old)
            new = await asyncio.to_thread(watched.until_promoted, old)
            with new.client() as client:
                await eventually(lambda: client.pubsub_shardnumsub(CHANNEL) == [(CHANNEL, 1)], "subscribed", SOON)
            await hearing(bell)
            while await bell.rung(0.3):
                pass
            assert await settled_on(store, claim) is Done.DONE
            assert await bell.rung(SOON)
            watched.thaw(old)


@dataclass(frozen=True)
class Moving:
    """Finds the first of several servers, until they are turned round."""

    order: list[Address]
    promotable: None = None

    async def find(self) -> Address:
        return self.order[0]


@pytest.mark.parametrize("cut", [False, True])
async def test_bells_leave_a_primary_that_another_has_replaced(cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old primary lives on and says nothing, as on the far side of a partition; whether the connection of the
    records is left (`cut`: breaks) there or not, bells listen where records are settled now."""
    servers = [RedisServer(preferred()).start() for _ in range(2)]
    order = [Address("127.0.0.1", server.port) for server in servers]
    monkeypatch.setattr(fleet, "finder_of", lambda _: Moving(order))
    store = AwaitableStore(RedisStore(Servers(tuple(order)), Nobody()))
    await store.open()
    try:
        with listen(store, NAME) as bell, servers[0].client() as old, servers[1].client() as new:
            await hearing(bell)
            order.reverse()
            if cut:
                old.client_kill_filter(_type="normal", skipme=True)
            await eventually(lambda: new.pubsub_shardnumsub(CHANNEL) == [(CHANNEL, 1)], "subscribed", SOON)
            await eventually(lambda: old.pubsub_shardchannels() == [], "the old one is left", SOON)
            await hearing(bell)
            await asyncio.sleep(0.05)
            claim = a_claim()
            assert await store.claim(NAME, claim) is Done.WON
            while await bell.rung(0.1):
                pass
            await store.settle(NAME, keep(claim))
            assert await bell.rung(SOON)
    finally:
        await store.close()
        for server in servers:
            server.close()


# ── What it costs ─────────────────────────────────────────────────────────────────────────────────


def connections(client: redis.Redis) -> int:
    """Those of gates."""
    return len([one for one in client.client_list() if one["name"] == "oncegate"])


async def test_a_thousand_wait_over_one_connection(server: RedisServer, store: AwaitableStore) -> None:
    """Nobody waits: no connection. A thousand names: one, whoever listens to them. All are told; when all have left,
    nothing is subscribed any more."""
    names = [b"%043d" % number for number in range(1000)]
    with server.client() as client:
        assert connections(client) == 1
        bells = [listen(store, name) for name in names]
        for bell in bells:
            await hearing(bell)
        assert connections(client) == 2
        assert len(client.pubsub_shardchannels()) == 1000
        claims = [a_claim() for _ in names]
        await asyncio.gather(*(store.claim(name, claim) for name, claim in zip(names, claims, strict=True)))
        await asyncio.gather(*(store.settle(name, keep(claim)) for name, claim in zip(names, claims, strict=True)))
        assert all(await asyncio.gather(*(bell.rung(SOON) for bell in bells)))
        for bell in bells:
            bell.close()
        await eventually(lambda: client.pubsub_shardchannels() == [], "nothing is subscribed", SOON)
        assert connections(client) == 2


async def test_those_who_listen_to_one_name_are_counted(server: RedisServer, store: AwaitableStore) -> None:
    """Two listen to one record: it is subscribed once, both are told, and it is let go when both have left. Whoever
    comes to a name that is heard already is rung at once. A name that is left and taken up again is heard."""
    claim = a_claim()
    with server.client() as client:
        one = listen(store, NAME)
        await hearing(one)
        other = listen(store, NAME)
        assert other.hears
        assert await other.rung(0)
        assert client.pubsub_shardnumsub(CHANNEL) == [(CHANNEL, 1)]
        one.close()
        await store.claim(NAME, claim)
        await store.settle(NAME, hold(claim))
        assert await other.rung(SOON)
        other.close()
        with listen(store, NAME) as again:
            await hearing(again)
            await store.settle(NAME, keep(claim))
            assert await again.rung(SOON)
        await eventually(lambda: client.pubsub_shardchannels() == [], "nothing is subscribed", SOON)


class Alarms(Nobody):
    def __init__(self) -> None:
        self.raised: list[str] = []

    def alarm(self, what: str, **facts: object) -> None:
        self.raised.append(f"{what}: {facts}")


async def test_a_user_without_channels_settles_and_waits_all_the_same(server: RedisServer) -> None:
    """An administrator allows every command and no channel, which is what a new user has. The settlement stands
    although its publish is refused; bells say that they hear nothing; a person is told once."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~*", "resetchannels", "+@all")
    alarms = Alarms()
    store = redis_store(server.url.replace("//", "//half:pw@"), alarms)
    await store.open()
    try:
        claim = a_claim()
        assert await store.claim(NAME, claim) is Done.WON
        with listen(store, NAME) as bell, listen(store, b"o" * 43):
            await eventually(lambda: bool(alarms.raised), "it is refused", SOON)
            assert await store.settle(NAME, keep(claim)) is Done.DONE
            found = await store.get(NAME)
            assert isinstance(found, Found)
            assert found.record.state is State.COMPLETED
            assert not await bell.rung(0.1)
            assert not bell.hears
        assert len(alarms.raised) == 1
        assert "NOPERM" in alarms.raised[0]
    finally:
        await store.close()

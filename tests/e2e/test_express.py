"""The express way: a plain request comes to the same without a coroutine, and is handed over at every step."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import redis.asyncio as asyncredis

from gateway.core.key import Key, record_name
from gateway.core.record import Record, State
from gateway.edge import express
from gateway.edge.express import Express, Expressway
from gateway.exchange import Gate
from gateway.stores.codec import decode
from gateway.stores.redis.store import RedisStore
from tests.e2e.wiretap import Wiretap
from tests.edge.stand import ByHand, Edge, Peer, edge, eventually
from tests.harness import Client, Response, configuration, request
from tests.servers import RedisServer, free_port

BODY = b'{"amount":1999}'
#: Keys drawn at random, as clients should.
KEYS = [f"3f2a91c4-7e0b-4d58-9c36-{number:012x}" for number in range(50)]


@pytest.fixture
async def hand() -> AsyncIterator[ByHand]:
    """An origin whose every byte the test writes."""
    origin = await ByHand().start()
    yield origin
    await origin.stop()


class Road:
    """A gate before an origin by hand, one client of it, and what took the express way."""

    def __init__(self, gate: Edge, hand: ByHand, client: Client, peer: Peer, taken: list[str]) -> None:
        self.gate = gate
        self.hand = hand
        self.client = client
        self.peer = peer
        self.taken = taken
        self.handed_over: list[str] = []

    async def send(self, key: str, body: bytes = BODY, client: Client | None = None) -> None:
        await (client or self.client).send(request(key=key, body=body))

    async def arrives(self) -> bytes:
        """The next request's body, as the origin has it."""
        head = await self.peer.head()
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        return await self.peer.read(int(length[1]))

    async def first(self, key: str) -> Response:
        """A request that runs, answered 201."""
        await self.send(key)
        await self.arrives()
        await self.peer.answer(b'{"id":"%b"}' % key.encode(), 201, b"Content-Type: application/json\r\n")
        return await self.client.read()

    @property
    def alone(self) -> Express:
        """The only request that is under way, as long as nobody waits for it."""
        (found,) = self.gate.server.gate.flights.alone()
        assert isinstance(found, Express)
        return found

    def requests(self) -> float:
        """How many requests were counted, by any verdict."""
        return sum(
            self.gate.count("oncegate_requests_total", route="all", verdict=verdict)
            for verdict in ("pass", "refuse", "forward", "replay", "wait")
        )


async def warmed(client: Client, hand: ByHand) -> Peer:
    """What a first request has made ready: the door has met its head, and there is a connection to the origin."""
    await client.send(request(key="9b1e7f60-warm", body=BODY))
    peer = await hand.accept()
    await peer.head()
    await peer.read(len(BODY))
    await peer.answer(b"warm")
    assert (await client.read()).label == "stored"
    return peer


@pytest.fixture
async def road(
    request: pytest.FixtureRequest, hand: ByHand, tap: Wiretap, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Road]:
    """Warm: one request has gone the ordinary way, so that the next ones look like it."""
    upstream, policy = getattr(request, "param", ("timeout: 10s", ""))
    take, go_on = Expressway.take, Gate.go_on
    taken: list[str] = []

    def taking(self: Expressway, *arguments: object) -> Express | None:
        found = take(self, *arguments)  # type: ignore[arg-type]
        if found is not None:
            taken.append(found._text.decode())
        return found

    monkeypatch.setattr(Expressway, "take", taking)
    async with edge(configuration(hand.url, store=tap.url, upstream=upstream, policy=policy)) as gate:
        client = await gate.connect()
        road = Road(gate, hand, client, await warmed(client, hand), taken)

        def going_on(self: Gate, ask: object, visit: object, begun: object) -> None:
            road.handed_over.append(ask.key.text.decode())  # type: ignore[attr-defined]
            go_on(self, ask, visit, begun)  # type: ignore[arg-type]

        monkeypatch.setattr(Gate, "go_on", going_on)
        assert taken == []
        yield road


async def record(server: RedisServer, key: str) -> Record:
    name = record_name(b"test", b"default", (), Key(key.encode()))
    async with asyncredis.Redis(port=server.port) as client:
        value = await client.get(b"og:" + name)
    return decode(value)


# ── The same, with and without ────────────────────────────────────────────────────────────────────


async def both_ways(road: Road, does: Callable[[str], Awaitable[Response]]) -> tuple[Response, Response]:
    """What comes of it on the express way, and as an exchange."""
    fast = await does(KEYS[0])
    way, road.gate.server.express = road.gate.server.express, None
    slow = await does(KEYS[1])
    road.gate.server.express = way
    assert set(road.taken) == {KEYS[0]}
    return fast, slow


OF_THE_MOMENT = (b"date", b"idempotency-expires", b"idempotency-first-seen", b"x-request-id")


def shape(response: Response) -> tuple[object, ...]:
    """All of a response but what two requests differ in."""
    fields = [(name, b"" if name.lower() in OF_THE_MOMENT else value) for name, value in response.fields]
    if response.problem is not None:
        return response.status, fields, response.problem
    return response.status, fields, response.body.replace(KEYS[0].encode(), b"").replace(KEYS[1].encode(), b"")


async def test_a_first_request_is_answered_and_remembered_as_by_an_exchange(road: Road, redis: RedisServer) -> None:
    """The same response, field by field; the same record, but for its holder and its times; the same counts."""
    fast, slow = await both_ways(road, road.first)
    assert (fast.status, fast.label) == (201, "stored")
    assert shape(fast) == shape(slow)
    one, other = await record(redis, KEYS[0]), await record(redis, KEYS[1])
    assert (one.state, one.attempt, one.status) == (State.COMPLETED, 1, 201)
    assert one.expires - one.first_seen == pytest.approx(other.expires - other.first_seen, abs=500)
    assert one.expires - one.window >= one.first_seen
    assert one.answer is not None
    assert other.answer is not None
    fields = ("holder", "first_seen", "expires", "fingerprint", "answer")
    assert replace(one, **{name: getattr(other, name) for name in fields}) == other
    assert one.answer.head == other.answer.head
    assert one.fingerprint == other.fingerprint
    assert one.holder != other.holder
    assert road.handed_over == []
    assert road.gate.count("oncegate_requests_total", route="all", verdict="forward") == 3
    assert road.gate.count("oncegate_settlements_total", route="all", settlement="keep", reason="answered") == 3
    for metric, count in (("upstream", 3), ("store", 3)):
        labels = {"route": "all"} if metric == "upstream" else {"operation": "settle"}
        assert road.gate.count(f"oncegate_{metric}_seconds_count", **labels) == count


async def test_a_replay_is_the_same_as_an_exchanges(road: Road) -> None:
    """Field by field, whichever way the first one went."""

    async def twice(key: str) -> Response:
        await road.first(key)
        await road.send(key)
        return await road.client.read()

    fast, slow = await both_ways(road, twice)
    assert fast.replayed
    assert shape(fast) == shape(slow)
    assert road.taken == [KEYS[0], KEYS[0]]
    assert road.handed_over == []
    assert road.gate.count("oncegate_duplicates_total", route="all", kind="replayed") == 2
    assert road.gate.count("oncegate_duplicate_age_seconds_count", route="all") == 2


async def test_the_log_says_the_same(road: Road) -> None:
    """One line for each request, with the same words."""

    async def twice(key: str) -> Response:
        await road.first(key)
        await road.send(key)
        return await road.client.read()

    await both_ways(road, twice)
    await road.gate.settled()
    lines = [line for line in road.gate.running.lines if "verdict" in line][1:]
    assert [line["verdict"] for line in lines] == ["forward", "replay", "forward", "replay"]
    for fast, slow in zip(lines[:2], lines[2:], strict=True):
        assert fast.keys() == slow.keys()
        apart = {name for name in fast if fast[name] != slow[name]}
        assert all(name in ("time", "key") or name.endswith(("_ms", "_s")) for name in apart), apart


OUTCOMES = {
    "created": b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nok",
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    "broken": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\nno",
    "busy": b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\nno",
    "bare 503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno",
    "503 with Retry-After": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\nno",
    "an undefined status": b"HTTP/1.1 799 Odd\r\nContent-Length: 2\r\n\r\nno",
    "gateway timeout": b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 2\r\n\r\nno",
    "no effect": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nIdempotency-Outcome: no-effect\r\n\r\nno",
    "kept by its word": b"HTTP/1.1 429 Slow\r\nContent-Length: 2\r\nIdempotency-Outcome: keep\r\n\r\nno",
    "unknown": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nIdempotency-Outcome: unknown\r\n\r\nno",
    "a stream": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
    b"2\r\nno\r\n0\r\n\r\n",
    "sized lines": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/jsonl\r\n\r\n1\n",
    "over the limit": b"HTTP/1.1 200 OK\r\nContent-Length: 1100000\r\n\r\n" + b"x" * 1_100_000,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "without a body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "until close": b"HTTP/1.1 200 OK\r\n\r\nok",
    "no response": b"SSH-2.0-x\r\n\r\n",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize(
    "road",
    [("timeout: 10s", ""), ("timeout: 10s", "keep_only: [200, 201, 503]")],
    indirect=True,
    ids=["by default", "keep_only"],
)
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_every_outcome_comes_to_the_same(road: Road, redis: RedisServer, outcome: str) -> None:
    """Whatever comes back: the same answer, the same record, and the same answer to a duplicate."""
    seen: dict[str, list[object]] = {}
    data = OUTCOMES[outcome]

    ends = outcome in ("nothing", "until close", "no response")

    async def twice(key: str) -> None:
        seen[key] = []
        client = await road.gate.connect()
        await road.send(key, client=client)
        await road.arrives()
        await road.peer.send(data)
        if ends:
            road.peer.writer.close()
        first = await client.read()
        seen[key].append(shape(first))
        name = record_name(b"test", b"default", (), Key(key.encode()))
        async with asyncredis.Redis(port=redis.port) as store:
            value = await store.get(b"og:" + name)
        found = None if value is None else decode(value)
        seen[key].append(found and (found.state, found.doubt, found.status, found.attempt, found.life, found.window))
        client = await road.gate.connect()
        await road.send(key, client=client)
        if first.label == "released":
            await road.arrives()
            await road.peer.send(OUTCOMES["created"])
        seen[key].append(shape(await client.read()))
        if ends:  # the next one is sent over another connection
            other = await road.gate.connect()
            await road.send(KEYS[10 + len(seen)], client=other)
            road.peer = await road.hand.accept()
            await road.arrives()
            await road.peer.answer(b"ok")
            await other.read()

    await twice(KEYS[0])
    way, road.gate.server.express = road.gate.server.express, None
    await twice(KEYS[1])
    road.gate.server.express = way
    assert road.taken[0] == KEYS[0]
    assert seen[KEYS[0]] == seen[KEYS[1]]


@pytest.mark.parametrize("road", [("timeout: 10s, late: 0s", "")], indirect=True)
@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "it breaks off"])
async def test_a_long_answer_outlives_its_client_on_either_way(road: Road, ends: bool) -> None:
    """Its client leaves behind the head: the service is read to the end of its answer, and only then is it done."""
    size = 1_100_000

    async def left(key: str) -> None:
        client = await road.gate.connect()
        await road.send(key, client=client)
        await road.arrives()
        await road.peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await client.reader.readuntil(b"\r\n\r\n")
        client.reset()
        await eventually(lambda: len(road.gate.server.connections) == 1, "the client has gone")
        await road.peer.send(b"x" * (size - 1))
        assert [each.standing is not None for each in road.gate.server.gate.flights] == [True]
        if ends:
            await road.peer.send(b"x")
        else:
            road.peer.reset()
        await road.gate.settled()
        await road.send(key)
        again = await road.client.read()
        assert (again.status, again.problem) == (409, "response-not-kept" if ends else "in-doubt")

    for number in (0, 1):
        if number and not ends:
            await road.send(KEYS[9])
            road.peer = await road.hand.accept()
            await road.arrives()
            await road.peer.answer(b"ok")
            await road.client.read()
        way = road.gate.server.express
        if number:
            road.gate.server.express = None
        await left(KEYS[number])
        road.gate.server.express = way
    assert road.taken[0] == KEYS[0]
    assert KEYS[1] not in road.taken


# ── Handed over ───────────────────────────────────────────────────────────────────────────────────


async def duplicates(road: Road, key: str, count: int = 3) -> list[Client]:
    """So many duplicates at once, which all have arrived when this returns."""
    clients = [await road.gate.connect() for _ in range(count)]
    for client in clients:
        await road.send(key, client=client)
    flights = road.gate.server.gate.flights
    await eventually(lambda: not flights.alone() and flights.waiting == count, "the duplicates wait")
    return clients


async def answers(clients: list[Client]) -> list[tuple[int, bool, bytes]]:
    return [(said.status, said.replayed, said.body) for said in [await client.read() for client in clients]]


async def test_a_duplicate_attaches_before_the_claim_is_answered(road: Road, tap: Wiretap) -> None:
    """Redis has not said yet whose the key is: the duplicates wait for the first all the same, and get its answer."""
    tap.talks.clear()
    await road.send(KEYS[0])
    await eventually(lambda: road.gate.server.gate.flights.alone(), "it is under way")
    waiting = await duplicates(road, KEYS[0])
    tap.talks.set()
    await road.arrives()
    await road.peer.answer(b"once", 201)
    assert await answers([road.client, *waiting]) == [(201, False, b"once")] + [(201, True, b"once")] * 3
    assert road.handed_over == [KEYS[0]]
    assert road.requests() == 5


async def test_a_duplicate_attaches_while_the_service_works(road: Road) -> None:
    """It has the request: it gets it once."""
    await road.send(KEYS[0])
    await road.arrives()
    waiting = await duplicates(road, KEYS[0])
    await road.peer.answer(b"once", 201)
    assert await answers([road.client, *waiting]) == [(201, False, b"once")] + [(201, True, b"once")] * 3
    assert road.handed_over == [KEYS[0]]
    assert road.requests() == 5


async def test_a_duplicate_attaches_while_the_answer_is_being_kept(road: Road, tap: Wiretap) -> None:
    """It is told once the store has said that the answer stands."""
    await road.send(KEYS[0])
    await road.arrives()
    tap.talks.clear()
    await road.peer.answer(b"once", 201)
    await eventually(lambda: road.alone._answered, "the answer is being kept")
    waiting = await duplicates(road, KEYS[0])
    tap.talks.set()
    assert await answers([road.client, *waiting]) == [(201, False, b"once")] + [(201, True, b"once")] * 3
    assert road.handed_over == [KEYS[0]]
    assert road.requests() == 5
    assert road.gate.count("oncegate_settlements_total", route="all", settlement="keep", reason="answered") == 2


async def test_an_outcome_that_comes_as_it_is_handed_over_counts_once(road: Road) -> None:
    """A duplicate comes in the same turn as the response: the request is told of once, and settled once. (Found by a
    storm over three gates, which counted 1801 requests of 1800.)"""
    await road.send(KEYS[0])
    await road.arrives()
    attempt = road.alone._attempt
    assert attempt is not None
    connection = attempt._connection
    assert connection is not None
    flight = road.alone.joined()
    connection.data_received(b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\nonce")
    assert flight.attempt is attempt
    assert await answers([road.client]) == [(201, False, b"once")]
    await road.gate.settled()
    assert road.requests() == 2
    assert road.gate.count("oncegate_store_seconds_count", operation="settle") == 2


async def test_a_client_that_leaves_changes_nothing(road: Road) -> None:
    """The effect outlives the client: it runs once, and whoever asks again is given its answer."""
    leaving = await road.gate.connect()
    await road.send(KEYS[0], client=leaving)
    await road.arrives()
    assert road.taken == [KEYS[0]]
    leaving.reset()
    await eventually(lambda: len(road.gate.server.connections) == 1, "the client has left")
    await road.peer.answer(b"once", 201)
    await eventually(lambda: not len(road.gate.server.gate.flights), "it is settled")
    await road.send(KEYS[0])
    assert await answers([road.client]) == [(201, True, b"once")]
    assert road.requests() == 3
    assert road.handed_over == []


@pytest.mark.parametrize("road", [("timeout: 600ms, late: 10s", "")], indirect=True)
async def test_no_answer_in_time_is_a_504_and_the_late_one_is_kept(road: Road) -> None:
    """As an exchange does it: the client hears that nobody knows, and a retry is given what came of it."""
    await road.send(KEYS[0])
    await road.arrives()
    said = await road.client.read()
    assert (said.status, said.problem, said.label) == (504, "upstream-timeout", "in-doubt")
    await road.peer.answer(b"late", 201)
    await eventually(lambda: not len(road.gate.server.gate.flights), "it is settled")
    await road.send(KEYS[0])
    assert await answers([road.client]) == [(201, True, b"late")]
    assert road.handed_over == [KEYS[0]]


async def test_a_record_that_was_lost_is_told_again(road: Road, redis: RedisServer) -> None:
    """The store forgets the claim while the service works: the answer is written all the same, and that is an alarm."""
    road.gate.alarms = 1
    await road.send(KEYS[0])
    await road.arrives()
    with redis.client() as client:
        client.delete(b"og:" + record_name(b"test", b"default", (), Key(KEYS[0].encode())))
    await road.peer.answer(b"once", 201)
    assert await answers([road.client]) == [(201, False, b"once")]
    assert road.gate.count("oncegate_store_forgot_total") == 1
    await road.send(KEYS[0])
    assert await answers([road.client]) == [(201, True, b"once")]


async def test_another_holders_answer_is_everybodys(road: Road, redis: RedisServer) -> None:
    """While the service works another gate has answered under this key: this client is given that answer too."""
    road.gate.alarms = 1
    await road.first(KEYS[1])
    await road.send(KEYS[0])
    await road.arrives()
    names = [b"og:" + record_name(b"test", b"default", (), Key(key.encode())) for key in KEYS[:2]]
    with redis.client() as client:
        client.set(names[0], client.get(names[1]), keepttl=True)
    await road.peer.answer(b"mine", 201)
    said = await road.client.read()
    assert said.body == b'{"id":"%b"}' % KEYS[1].encode()
    assert said.replayed


async def test_a_key_that_is_used_again_for_something_else_is_refused(road: Road) -> None:
    """Another body, and other credentials: neither runs, and neither is given the answer."""
    await road.first(KEYS[0])
    await road.send(KEYS[0], b'{"amount":2}')
    said = await road.client.read()
    assert (said.status, said.problem) == (422, "key-reused")
    assert b"Different: body." in said.body
    for token in ("one", "two"):
        await road.client.send(request(key=KEYS[2], body=BODY, fields=[("Authorization", f"Bearer {token}")]))
        if token == "one":
            await road.arrives()
            await road.peer.answer(b"hers", 201)
        said = await road.client.read()
        assert (said.status, said.body == b"hers") == ((201, True) if token == "one" else (422, False))
    assert said.problem == "credentials-differ"


# ── Faults of ours ────────────────────────────────────────────────────────────────────────────────


def broken(*_: object, **__: object) -> object:
    raise RuntimeError("broken on purpose")


async def test_an_attempt_that_cannot_be_begun_holds_the_key(
    road: Road, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed may have sent something: it is not sent again, and the key is in doubt."""
    road.gate.alarms = 2
    monkeypatch.setattr("gateway.edge.upstream.GuardedUpstream.attempt", broken)
    await road.send(KEYS[0])
    said = await road.client.read()
    assert (said.status, said.problem) == (502, "upstream-lost")
    await eventually(lambda: not len(road.gate.running.app.settler), "the doubt is written")
    assert (await record(redis, KEYS[0])).state is State.IN_DOUBT
    monkeypatch.undo()
    await road.send(KEYS[0])
    said = await road.client.read()
    assert (said.status, said.problem) == (409, "in-doubt")


@pytest.mark.parametrize("fault", ["remembered", "own", "returned"])
async def test_a_fault_behind_the_response_loses_no_answer(
    road: Road, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Whatever fails here once the service has answered, the exchange that goes on does the rest."""
    road.gate.alarms = 1
    await road.send(KEYS[0])
    await road.arrives()
    monkeypatch.setattr(express, fault, broken)
    await road.peer.answer(b"once", 201)
    assert await answers([road.client]) == [(201, False, b"once")]
    assert road.handed_over == [KEYS[0]]
    assert road.requests() == 2


@pytest.mark.parametrize("fault", ["again", "own"])
async def test_a_fault_in_a_replay_loses_no_answer(road: Road, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The answer that was found is given by the exchange that goes on."""
    road.gate.alarms = 1
    first = await road.first(KEYS[0])
    monkeypatch.setattr(express, fault, broken)
    await road.send(KEYS[0])
    assert await answers([road.client]) == [(201, True, first.body)]
    assert road.handed_over == [KEYS[0]]
    assert road.requests() == 3


async def test_a_claim_that_cannot_be_asked_for_is_none(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store takes it in other ways nothing is left of the try: the exchange asks."""
    monkeypatch.setattr(RedisStore, "ask_claim", lambda *_: False)
    assert (await road.first(KEYS[0])).label == "stored"
    assert road.taken == []


async def test_a_cluster_that_is_away_hangs_nobody(hand: ByHand) -> None:
    """No slot has a primary: every request is told so at once, and nothing is left of the tries. (The first version
    cut the clients off, and each key was in flight for good.)"""
    away = f"redis+cluster://127.0.0.1:{free_port()}"
    async with edge(configuration(hand.url, store=away, policy="store_wait: 50ms")) as gate:
        client = await gate.connect()
        for key in (*KEYS[:5], KEYS[0]):
            await client.send(request(key=key, body=BODY))
            said = await client.read()
            assert (said.status, said.problem) == (503, "store-unavailable")
        assert gate.server.express is not None


async def test_a_body_that_does_not_fit_is_refused_once(hand: ByHand, redis: RedisServer) -> None:
    """A gate whose memory is full says so, and counts that once."""
    async with edge(configuration(hand.url, store=redis.url)) as gate:
        client = await gate.connect()
        road = Road(gate, hand, client, await warmed(client, hand), [])
        budget = gate.server.door.budget
        budget.taken += budget.total
        await road.send(KEYS[0])
        said = await client.read()
        budget.taken -= budget.total
        assert (said.status, said.problem) == (503, "overloaded")
        assert gate.count("oncegate_limits_total", limit="buffers") == 1


async def test_a_stop_waits_for_what_flies_alone(hand: ByHand, redis: RedisServer) -> None:
    """A client asks and leaves, and the gate is stopped: its answer is kept before the process ends."""
    async with edge(configuration(hand.url, store=redis.url)) as gate:
        client = await gate.connect()
        peer = await warmed(client, hand)
        road = Road(gate, hand, client, peer, [])
        await road.send(KEYS[1])
        await road.arrives()
        assert road.alone.name
        client.reset()
        await gate.emptied()
        stopping = asyncio.ensure_future(gate.running.app.stop())
        await eventually(lambda: gate.server.gate.flights.alone() == [], "it is an exchange")
        assert not stopping.done()
        await peer.answer(b"kept", 201)
        stopped = await stopping
        assert (stopped.cut_off, stopped.unsettled) == (0, 0)
        found = await record(redis, KEYS[1])
        assert found.answer is not None
        assert (found.state, found.answer.body) == (State.COMPLETED, b"kept")

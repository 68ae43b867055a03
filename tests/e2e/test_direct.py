"""The direct admission: a plain request comes to the same on it as on the general way, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import redis.asyncio as asyncredis

from gateway.core.key import Key, record_name
from gateway.core.record import Record, State
from gateway.edge.client import ClientConnection
from gateway.edge.upstream import GuardedAttempt
from gateway.engine.exchange import Exchange
from gateway.engine.machine import Phase
from gateway.stores.codec import decode
from tests.e2e.admission import Admission
from tests.e2e.wiretap import Wiretap
from tests.edge.stand import ByHand, Edge, Peer, edge, eventually, narrow_client
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


class Warm:
    """A gateway that has met the head of its requests, one client of it, and its connection to an origin by hand."""

    def __init__(self, gate: Edge, hand: ByHand, client: Client, peer: Peer, admission: Admission) -> None:
        self.gate = gate
        self.hand = hand
        self.client = client
        self.peer = peer
        self.admission = admission

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
    def machine(self) -> Exchange:
        """The machine of the only key in flight."""
        (found,) = self.gate.server.driver
        return found

    async def left(self) -> None:
        """Wait until only the first client is connected."""
        await eventually(lambda: len(self.gate.server.connections) == 1, "the other client has left")

    def requests(self) -> float:
        """How many requests were counted, by any verdict."""
        return sum(
            self.gate.count("oncegate_requests_total", route="all", verdict=verdict)
            for verdict in ("pass", "refuse", "forward", "replay", "wait")
        )


async def warm_up(client: Client, hand: ByHand) -> Peer:
    """Send a first request, the general way: the admission has met its head, and a connection to the origin stands."""
    await client.send(request(key="9b1e7f60-warm", body=BODY))
    peer = await hand.accept()
    await peer.head()
    await peer.read(len(BODY))
    await peer.answer(b"warm")
    assert (await client.read()).label == "stored"
    return peer


@pytest.fixture
async def warm(request: pytest.FixtureRequest, hand: ByHand, tap: Wiretap, admission: Admission) -> AsyncIterator[Warm]:
    upstream, policy = getattr(request, "param", ("timeout: 10s", ""))
    async with edge(configuration(hand.url, store=tap.url, upstream=upstream, policy=policy)) as gate:
        client = await gate.connect()
        peer = await warm_up(client, hand)
        assert admission.keys == []
        yield Warm(gate, hand, client, peer, admission)


def name_of(key: str) -> bytes:
    return record_name(b"test", b"default", (), Key(key.encode()))


async def record(server: RedisServer, key: str) -> Record:
    async with asyncredis.Redis(port=server.port) as client:
        value = await client.get(b"og:" + name_of(key))
    return decode(value)


# ── The same on either way ────────────────────────────────────────────────────────────────────────


async def both_ways(warm: Warm, does: Callable[[str], Awaitable[Response]]) -> tuple[Response, Response]:
    """Return what comes of it after a direct admission, and on the general way."""
    direct = await does(KEYS[0])
    warm.admission.direct = False
    general = await does(KEYS[1])
    warm.admission.direct = True
    assert set(warm.admission.keys) == {KEYS[0]}
    return direct, general


@dataclass(frozen=True)
class Kind:
    """A kind of request: what it carries, and the configuration that makes something of it."""

    policy: str = ""
    top: str = ""
    spell: str = "%s"
    fields: tuple[tuple[str, str], ...] = ()
    chunked: bool = False

    def request(self, key: str) -> bytes:
        if not self.chunked:
            return request(key=self.spell % key, body=BODY, fields=self.fields)
        coded = ("Transfer-Encoding", "chunked")
        sized = request(key=self.spell % key, fields=[*self.fields, coded]).replace(b"Content-Length: 0\r\n", b"")
        return sized + b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (5, BODY[:5], len(BODY) - 5, BODY[5:])


KINDS = {
    "plain": Kind(),
    "a quoted key": Kind(spell='"%s"'),
    "a quoted key, as the route asks": Kind("key: {format: sf-string}", spell='"%s"'),
    "a key of a format": Kind("key: {format: uuid}"),
    "a chunked body": Kind(chunked=True),
    "a page elsewhere": Kind(top="cors: {origins: ['https://shop.test']}", fields=(("Origin", "https://shop.test"),)),
    "a trusted proxy": Kind(top="trusted_proxies: [127.0.0.0/8]", fields=(("X-Forwarded-For", "192.0.2.7"),)),
    "no trusted proxy": Kind(top="trusted_proxies: [10.0.0.0/8]", fields=(("X-Forwarded-For", "192.0.2.7"),)),
    "a trace": Kind(fields=(("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),)),
    "canonical JSON": Kind("fingerprint: {body: canonical-json}", fields=(("Content-Type", "application/json"),)),
    "a scope": Kind("scope: ['header:X-Tenant']", fields=(("X-Tenant", "one"),)),
    "a field for the service": Kind("send_key: {to: header:X-Request-Key, as: uuid}"),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_request_comes_to_the_same(hand: ByHand, admission: Admission, kind: str) -> None:
    """The service gets the same request, the client the same response. Each way finds the record of the other."""
    sends = KINDS[kind]
    async with edge(configuration(hand.url, policy=sends.policy, top=sends.top)) as gate:
        client = await gate.connect()
        await client.send(sends.request(KEYS[2]))
        peer = await hand.accept()
        heads, first, replays = [], [], []
        for key in (KEYS[2], KEYS[0], KEYS[1]):
            if key != KEYS[2]:
                admission.direct = key == KEYS[0]
                await client.send(sends.request(key))
            heads.append(await peer.head())
            assert await peer.read(len(BODY)) == BODY
            await peer.answer(b"once", 201, b"Access-Control-Allow-Origin: *\r\n")
            first.append(shape(await client.read()))
        assert admission.keys == [KEYS[0]]
        for key in KEYS[:2]:
            admission.direct = key == KEYS[1]
            await client.send(sends.request(key))
            replays.append(await client.read())
        assert admission.keys == KEYS[:2]
        assert all(replay.replayed for replay in replays)
        assert shape(replays[0]) == shape(replays[1])
        assert first[1] == first[2] == first[0]
        sent = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
        assert sent.sub(b"", heads[1]) == sent.sub(b"", heads[2])
        await gate.settled()
        lines = [line for line in gate.running.lines if "verdict" in line]
        assert len({line["peer"] for line in lines}) == 1


OF_THE_MOMENT = (b"date", b"idempotency-expires", b"idempotency-first-seen", b"x-request-id")


def shape(response: Response) -> tuple[object, ...]:
    """All of a response but what two requests differ in."""
    fields = [(name, b"" if name.lower() in OF_THE_MOMENT else value) for name, value in response.fields]
    if response.problem is not None:
        return response.status, fields, response.problem
    return response.status, fields, response.body.replace(KEYS[0].encode(), b"").replace(KEYS[1].encode(), b"")


async def test_a_first_request_is_answered_and_stored_the_same(warm: Warm, redis: RedisServer) -> None:
    """The same response, field by field; the same record, but for its holder and its times; the same counts."""
    direct, general = await both_ways(warm, warm.first)
    assert (direct.status, direct.label) == (201, "stored")
    assert shape(direct) == shape(general)
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
    assert warm.gate.count("oncegate_requests_total", route="all", verdict="forward") == 3
    assert warm.gate.count("oncegate_settlements_total", route="all", settlement="keep", reason="answered") == 3
    for metric, count in (("upstream", 3), ("store", 3)):
        labels = {"route": "all"} if metric == "upstream" else {"operation": "settle"}
        assert warm.gate.count(f"oncegate_{metric}_seconds_count", **labels) == count


async def test_a_replay_is_the_same(warm: Warm) -> None:
    """Compare the replays field by field."""

    async def twice(key: str) -> Response:
        await warm.first(key)
        await warm.send(key)
        return await warm.client.read()

    direct, general = await both_ways(warm, twice)
    assert direct.replayed
    assert shape(direct) == shape(general)
    assert warm.admission.keys == [KEYS[0], KEYS[0]]
    assert warm.gate.count("oncegate_duplicates_total", route="all", kind="replayed") == 2
    assert warm.gate.count("oncegate_duplicate_age_seconds_count", route="all") == 2


async def test_the_log_says_the_same(warm: Warm) -> None:
    """One line for each request, with the same words."""

    async def twice(key: str) -> Response:
        await warm.first(key)
        await warm.send(key)
        return await warm.client.read()

    await both_ways(warm, twice)
    await warm.gate.settled()
    lines = [line for line in warm.gate.running.lines if "verdict" in line][1:]
    assert [line["verdict"] for line in lines] == ["forward", "replay", "forward", "replay"]
    for direct, general in zip(lines[:2], lines[2:], strict=True):
        assert direct.keys() == general.keys()
        apart = {name for name in direct if direct[name] != general[name]}
        assert all(name in ("time", "key") or name.endswith(("_ms", "_s")) for name in apart), apart


FORM_DATA = b'--x\r\nContent-Disposition: form-data; name="amount"\r\n\r\n1\r\n--x--\r\n'
#: Policy, what stands around the key, further fields and body of requests that are admitted directly too.
ADMITTED = {
    "a quoted key": ("", '"', [], BODY),
    "canonical JSON": ("fingerprint: {body: canonical-json}", "", [], b'{"b": 1.0, "a": 2}'),
    "a header that counts": ("fingerprint: {headers: [X-Currency]}", "", [("X-Currency", "EUR")], BODY),
    "a parameter that does not count": ("fingerprint: {ignore: ['query:t']}", "", [], BODY),
    "multipart": ("", "", [("Content-Type", "multipart/form-data; boundary=x")], FORM_DATA),
}


@pytest.mark.parametrize(
    ("warm", "around", "fields", "body"),
    [pytest.param(("timeout: 10s", policy), *how, id=name) for name, (policy, *how) in ADMITTED.items()],
    indirect=["warm"],
)
@pytest.mark.parametrize("direct_first", [True, False], ids=["direct first", "general first"])
async def test_either_way_finds_the_record_of_the_other(
    warm: Warm, around: str, fields: list[tuple[str, str]], body: bytes, direct_first: bool
) -> None:
    """The same name and the same fingerprint: the other way replays it, and refuses another request."""

    async def ask(key: str, body: bytes) -> None:
        await warm.client.send(request(key=f"{around}{key}{around}", fields=fields, body=body))

    await ask(KEYS[2], body)  # the admission meets this head
    await warm.arrives()
    await warm.peer.answer(b"met")
    assert (await warm.client.read()).label == "stored"
    before = len(warm.admission.keys)
    warm.admission.direct = direct_first
    await ask(KEYS[0], body)
    await warm.arrives()
    await warm.peer.answer(b"once", 201)
    assert await answers([warm.client]) == [(201, False, b"once")]
    warm.admission.direct = not direct_first
    await ask(KEYS[0], body)
    assert await answers([warm.client]) == [(201, True, b"once")]
    await ask(KEYS[0], body.replace(b"1", b"7"))
    assert (await warm.client.read()).problem == "key-reused"
    assert warm.admission.keys[before:] == ([KEYS[0]] if direct_first else [KEYS[0], KEYS[0]])


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
    "warm",
    [("timeout: 10s", ""), ("timeout: 10s", "keep_only: [200, 201, 503]")],
    indirect=True,
    ids=["by default", "keep_only"],
)
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_every_outcome_comes_to_the_same(warm: Warm, redis: RedisServer, outcome: str) -> None:
    """Whatever comes back: the same answer, the same record, and the same answer to a duplicate."""
    seen: dict[str, list[object]] = {}
    data = OUTCOMES[outcome]

    ends = outcome in ("nothing", "until close", "no response")

    async def twice(key: str) -> None:
        seen[key] = []
        client = await warm.gate.connect()
        await warm.send(key, client=client)
        await warm.arrives()
        await warm.peer.send(data)
        if ends:
            warm.peer.writer.close()
        first = await client.read()
        seen[key].append(shape(first))
        async with asyncredis.Redis(port=redis.port) as store:
            value = await store.get(b"og:" + name_of(key))
        found = None if value is None else decode(value)
        seen[key].append(found and (found.state, found.doubt, found.status, found.attempt, found.life, found.window))
        client = await warm.gate.connect()
        await warm.send(key, client=client)
        if first.label == "released":
            await warm.arrives()
            await warm.peer.send(OUTCOMES["created"])
        seen[key].append(shape(await client.read()))
        if ends:  # the next one is sent over another connection
            other = await warm.gate.connect()
            await warm.send(KEYS[10 + len(seen)], client=other)
            warm.peer = await warm.hand.accept()
            await warm.arrives()
            await warm.peer.answer(b"ok")
            await other.read()

    await twice(KEYS[0])
    warm.admission.direct = False
    await twice(KEYS[1])
    assert warm.admission.keys[0] == KEYS[0]
    assert KEYS[1] not in warm.admission.keys
    assert seen[KEYS[0]] == seen[KEYS[1]]


@pytest.mark.parametrize("warm", [("timeout: 10s, late: 0s", "")], indirect=True)
@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "it breaks off"])
async def test_a_long_answer_outlives_its_client_on_either_way(warm: Warm, ends: bool) -> None:
    """Its client leaves behind the head: the service is read to the end of its answer, and only then is it done."""
    size = 1_100_000

    async def left(key: str) -> None:
        client = await warm.gate.connect()
        await warm.send(key, client=client)
        await warm.arrives()
        await warm.peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await client.reader.readuntil(b"\r\n\r\n")
        client.reset()
        await warm.left()
        await warm.peer.send(b"x" * (size - 1))
        assert (warm.machine.phase, warm.machine.owns) == (Phase.STREAMING, True)
        if ends:
            await warm.peer.send(b"x")
        else:
            warm.peer.reset()
        await warm.gate.settled()
        await warm.send(key)
        again = await warm.client.read()
        assert (again.status, again.problem) == (409, "response-not-kept" if ends else "in-doubt")

    for number in (0, 1):
        if number and not ends:  # the next one is sent over another connection
            await warm.send(KEYS[9])
            warm.peer = await warm.hand.accept()
            await warm.arrives()
            await warm.peer.answer(b"ok")
            await warm.client.read()
        warm.admission.direct = not number
        await left(KEYS[number])
    assert warm.admission.keys[0] == KEYS[0]
    assert KEYS[1] not in warm.admission.keys


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "general"])
async def test_a_client_that_reads_a_long_answer_slowly_gets_all_of_it(warm: Warm, direct: bool) -> None:
    """The buffer of its connection fills up, and is read empty. Nothing runs a second time meanwhile."""
    warm.admission.direct = direct
    size = 8 << 20
    client = await narrow_client(warm.gate.port)
    warm.gate.clients.append(client)
    await warm.send(KEYS[0], client=client)
    await warm.arrives()
    (connection,) = (
        each for each in warm.gate.server.connections if isinstance(each, ClientConnection) and each._queue
    )
    sending = asyncio.create_task(
        warm.peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size)))
    )
    await eventually(lambda: connection.full, "the client's buffer is full")
    answer = await client.read(seconds=20)
    await sending
    assert (answer.status, len(answer.body), answer.label) == (200, size, "not-kept")
    await warm.gate.settled()
    assert bool(warm.admission.keys) is direct
    assert warm.hand.connections == 1
    assert warm.requests() == 2


# ── What happens meanwhile ────────────────────────────────────────────────────────────────────────


async def duplicates(warm: Warm, key: str, count: int = 3) -> list[Client]:
    """Send so many duplicates at once, and return when all wait."""
    clients = [await warm.gate.connect() for _ in range(count)]
    for client in clients:
        await warm.send(key, client=client)
    driver = warm.gate.server.driver
    await eventually(lambda: driver.waiting == count, "the duplicates wait")
    assert len(driver) == 1
    assert warm.admission.keys == [key] * (count + 1)
    return clients


async def answers(clients: list[Client]) -> list[tuple[int, bool, bytes]]:
    return [(said.status, said.replayed, said.body) for said in [await client.read() for client in clients]]


async def test_a_duplicate_attaches_before_the_claim_is_answered(warm: Warm, tap: Wiretap) -> None:
    """Redis has not replied to the claim: the duplicates wait for the first, and get its answer."""
    tap.talks.clear()
    await warm.send(KEYS[0])
    await eventually(lambda: len(warm.gate.server.driver), "it is under way")
    waiting = await duplicates(warm, KEYS[0])
    assert warm.machine.phase is Phase.CLAIMING
    tap.talks.set()
    await warm.arrives()
    await warm.peer.answer(b"once", 201)
    assert await answers([warm.client, *waiting]) == [(201, False, b"once")] + [(201, True, b"once")] * 3
    assert warm.requests() == 5


async def test_a_duplicate_attaches_while_the_service_works(warm: Warm) -> None:
    """The service gets the request once."""
    await warm.send(KEYS[0])
    await warm.arrives()
    waiting = await duplicates(warm, KEYS[0])
    await warm.peer.answer(b"once", 201)
    assert await answers([warm.client, *waiting]) == [(201, False, b"once")] + [(201, True, b"once")] * 3
    assert warm.requests() == 5


async def test_a_duplicate_attaches_while_the_answer_is_being_kept(warm: Warm, tap: Wiretap) -> None:
    """The duplicate is answered once the store has acknowledged the Keep."""
    await warm.send(KEYS[0])
    await warm.arrives()
    tap.talks.clear()
    await warm.peer.answer(b"once", 201)
    await eventually(lambda: warm.machine.phase is Phase.SETTLING, "the answer is being kept")
    waiting = await duplicates(warm, KEYS[0])
    tap.talks.set()
    assert await answers([warm.client, *waiting]) == [(201, False, b"once")] + [(201, True, b"once")] * 3
    assert warm.requests() == 5
    assert warm.gate.count("oncegate_settlements_total", route="all", settlement="keep", reason="answered") == 2


@pytest.mark.parametrize("duplicate_first", [True, False], ids=["the duplicate first", "the response first"])
async def test_a_duplicate_that_comes_in_the_same_turn_as_the_response(warm: Warm, duplicate_first: bool) -> None:
    """Both are answered, each is counted once, and the key is settled once."""
    mine = warm.gate.connection
    other = await warm.gate.connect()
    await eventually(lambda: len(warm.gate.server.connections) == 2, "the other client is connected")
    (duplicate,) = warm.gate.server.connections - {mine}
    assert isinstance(duplicate, ClientConnection)
    await warm.send(KEYS[0])
    await warm.arrives()
    assert warm.machine.run is not None
    attempt = warm.machine.run.attempt
    assert isinstance(attempt, GuardedAttempt)
    upstream = attempt._connection
    assert upstream is not None
    arrivals = [
        partial(duplicate.data_received, request(key=KEYS[0], body=BODY)),
        partial(upstream.data_received, b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\nonce"),
    ]
    for arrive in arrivals if duplicate_first else reversed(arrivals):
        arrive()
    assert warm.machine.phase is Phase.SETTLING
    assert await answers([warm.client, other]) == [(201, False, b"once"), (201, True, b"once")]
    await warm.gate.settled()
    assert warm.admission.keys == [KEYS[0]] * 2
    assert warm.requests() == 3
    assert warm.gate.count("oncegate_store_seconds_count", operation="settle") == 2


async def test_a_request_that_is_pipelined_behind_it_waits_its_turn(warm: Warm) -> None:
    """The first one runs once, and the second one is answered after it."""
    await warm.send(KEYS[0])
    assert await warm.arrives() == BODY
    await warm.send(KEYS[1])
    await eventually(lambda: len(warm.gate.connection._queue) == 2, "the second one is read")
    assert [machine.name for machine in warm.gate.server.driver] == [name_of(KEYS[0])]
    assert warm.admission.keys == [KEYS[0]]
    await warm.peer.answer(b"one", 201)
    assert await warm.arrives() == BODY
    await warm.peer.answer(b"two", 201)
    assert await answers([warm.client] * 2) == [(201, False, b"one"), (201, False, b"two")]
    assert warm.hand.connections == 1
    assert warm.requests() == 3


async def test_a_client_that_leaves_changes_nothing(warm: Warm) -> None:
    """The effect outlives the client: it runs once, and the next request is given its answer."""
    leaving = await warm.gate.connect()
    await warm.send(KEYS[0], client=leaving)
    await warm.arrives()
    assert warm.admission.keys == [KEYS[0]]
    leaving.reset()
    await warm.left()
    await warm.peer.answer(b"once", 201)
    await eventually(lambda: not len(warm.gate.server.driver), "it is settled")
    await warm.send(KEYS[0])
    assert await answers([warm.client]) == [(201, True, b"once")]
    assert warm.requests() == 3


@pytest.mark.parametrize("warm", [("timeout: 600ms, late: 10s", "")], indirect=True)
async def test_no_answer_in_time_is_a_504_and_the_late_one_is_kept(warm: Warm) -> None:
    """The client gets a 504, and a retry the answer that came later."""
    await warm.send(KEYS[0])
    await warm.arrives()
    said = await warm.client.read()
    assert warm.machine.phase is Phase.LATE
    assert (said.status, said.problem, said.label) == (504, "upstream-timeout", "in-doubt")
    await warm.peer.answer(b"late", 201)
    await eventually(lambda: not len(warm.gate.server.driver), "it is settled")
    await warm.send(KEYS[0])
    assert await answers([warm.client]) == [(201, True, b"late")]


async def test_a_record_that_was_lost_is_written_again(warm: Warm, redis: RedisServer) -> None:
    """The store loses the claim while the service works: the answer is written, and an alarm is raised."""
    warm.gate.alarms = 1
    await warm.send(KEYS[0])
    await warm.arrives()
    with redis.client() as client:
        client.delete(b"og:" + name_of(KEYS[0]))
    await warm.peer.answer(b"once", 201)
    assert await answers([warm.client]) == [(201, False, b"once")]
    assert warm.gate.count("oncegate_store_forgot_total") == 1
    await warm.send(KEYS[0])
    assert await answers([warm.client]) == [(201, True, b"once")]


async def test_another_holders_answer_goes_to_every_client(warm: Warm, redis: RedisServer) -> None:
    """While the service works, another gateway has stored an answer of this key: this client is given it too."""
    warm.gate.alarms = 1
    await warm.first(KEYS[1])
    await warm.send(KEYS[0])
    await warm.arrives()
    names = [b"og:" + name_of(key) for key in KEYS[:2]]
    with redis.client() as client:
        client.set(names[0], client.get(names[1]), keepttl=True)
    await warm.peer.answer(b"mine", 201)
    said = await warm.client.read()
    assert said.body == b'{"id":"%b"}' % KEYS[1].encode()
    assert said.replayed


async def test_a_key_that_is_reused_for_another_request_is_refused(warm: Warm) -> None:
    """Another body, and other credentials: neither runs, and neither is given the answer."""
    await warm.first(KEYS[0])
    await warm.send(KEYS[0], b'{"amount":2}')
    said = await warm.client.read()
    assert (said.status, said.problem) == (422, "key-reused")
    assert b"Different: body." in said.body
    for token in ("one", "two"):
        await warm.client.send(request(key=KEYS[2], body=BODY, fields=[("Authorization", f"Bearer {token}")]))
        if token == "one":
            await warm.arrives()
            await warm.peer.answer(b"hers", 201)
        said = await warm.client.read()
        assert (said.status, said.body == b"hers") == ((201, True) if token == "one" else (422, False))
    assert said.problem == "credentials-differ"


# ── Faults of the gateway ─────────────────────────────────────────────────────────────────────────


def broken(*_: object, **__: object) -> object:
    raise RuntimeError("broken on purpose")


async def test_an_attempt_that_cannot_be_begun_holds_the_key(
    warm: Warm, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that failed may have sent something: it is not sent again, and the key is in doubt."""
    warm.gate.alarms = 1
    monkeypatch.setattr("gateway.edge.upstream.GuardedUpstream.attempt", broken)
    await warm.send(KEYS[0])
    said = await warm.client.read()
    assert (said.status, said.problem) == (502, "upstream-lost")
    await eventually(lambda: not len(warm.gate.running.app.settler), "the doubt is written")
    assert (await record(redis, KEYS[0])).state is State.IN_DOUBT
    monkeypatch.undo()
    await warm.send(KEYS[0])
    said = await warm.client.read()
    assert (said.status, said.problem) == (409, "in-doubt")
    assert warm.requests() == 3


async def test_a_fault_before_the_keep_holds_the_key(
    warm: Warm, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service has answered, and its answer cannot be stored: its client is told that the outcome is unknown, and
    the request does not run again."""
    warm.gate.alarms = 1
    await warm.send(KEYS[0])
    await warm.arrives()
    with monkeypatch.context() as patched:
        patched.setattr("gateway.engine.exchange.settlement_of", broken)
        await warm.peer.answer(b"once", 201)
        said = await warm.client.read()
    assert (said.status, said.problem) == (502, "upstream-lost")
    await eventually(lambda: not len(warm.gate.running.app.settler), "the doubt is written")
    assert (await record(redis, KEYS[0])).state is State.IN_DOUBT
    await warm.send(KEYS[0])
    said = await warm.client.read()
    assert (said.status, said.problem) == (409, "in-doubt")
    assert warm.requests() == 3


@pytest.mark.parametrize("fault", ["returned", "own", "whole"])
async def test_a_fault_behind_the_keep_loses_no_answer(warm: Warm, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The response cannot be rendered: its client is cut off, and a retry is given the answer that was stored."""
    warm.gate.alarms = 1
    client = await warm.gate.connect()
    await warm.send(KEYS[0], client=client)
    await warm.arrives()
    with monkeypatch.context() as patched:
        patched.setattr(f"gateway.edge.render.{fault}", broken)
        await warm.peer.answer(b"once", 201)
        assert await client.ended()
    await warm.gate.settled()
    await warm.send(KEYS[0])
    assert await answers([warm.client]) == [(201, True, b"once")]
    assert warm.requests() == 3
    assert warm.gate.count("oncegate_settlements_total", route="all", settlement="keep", reason="answered") == 2


@pytest.mark.parametrize("fault", ["again", "own"])
async def test_a_replay_that_cannot_be_rendered_loses_no_answer(
    warm: Warm, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its client is cut off, and the next replay is whole."""
    warm.gate.alarms = 1
    first = await warm.first(KEYS[0])
    client = await warm.gate.connect()
    with monkeypatch.context() as patched:
        patched.setattr(f"gateway.edge.render.{fault}", broken)
        await warm.send(KEYS[0], client=client)
        assert await client.ended()
    await warm.gate.settled()
    await warm.send(KEYS[0])
    assert await answers([warm.client]) == [(201, True, first.body)]
    assert warm.requests() == 4


async def test_a_fault_in_the_decision_on_a_replay_refuses_it(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs, and nothing is left of it: a retry is given the answer."""
    warm.gate.alarms = 1
    first = await warm.first(KEYS[0])
    with monkeypatch.context() as patched:
        patched.setattr("gateway.engine.acquisition.Again", broken)
        await warm.send(KEYS[0])
        said = await warm.client.read()
    assert (said.status, said.problem) == (503, "overloaded")
    await warm.send(KEYS[0])
    assert await answers([warm.client]) == [(201, True, first.body)]
    assert warm.requests() == 4


# ── The general way ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "fields", "body"),
    [
        ("2024-01-02", [], BODY),
        (f'"{KEYS[0]} x"', [], BODY),
        (KEYS[0], [("X-New", "1")], BODY),
        (KEYS[0], [("Content-Encoding", "gzip")], BODY),
        (KEYS[0], [], bytes(300)),
    ],
    ids=["a weak key", "a key with a space", "a field that is new", "a coded body", "a body that is too large"],
)
@pytest.mark.parametrize("warm", [("timeout: 10s", "max_request: 256B")], indirect=True)
async def test_a_request_that_is_not_plain_goes_the_general_way(
    warm: Warm, key: str, fields: list[tuple[str, str]], body: bytes
) -> None:
    """Nothing is left of the look at it: it is answered and counted once, and not admitted directly."""
    await warm.client.send(request(key=key, body=body, fields=fields))
    if len(body) > 256:
        said = await warm.client.read()
        assert (said.status, said.problem) == (413, "body-too-large")
    else:
        await warm.arrives()
        await warm.peer.answer(b"once", 201)
        assert await answers([warm.client]) == [(201, False, b"once")]
    assert warm.admission.keys == []
    assert warm.requests() == 2


async def test_a_cluster_that_is_unavailable_leaves_no_request_without_an_answer(
    hand: ByHand, admission: Admission
) -> None:
    """No slot has a primary: every request is refused at once, and its key is in flight no more."""
    away = f"redis+cluster://127.0.0.1:{free_port()}"
    async with edge(configuration(hand.url, store=away, policy="store_wait: 50ms")) as gate:
        client = await gate.connect()
        for key in (*KEYS[:5], KEYS[0]):
            await client.send(request(key=key, body=BODY))
            said = await client.read()
            assert (said.status, said.problem) == (503, "store-unavailable")
            assert len(gate.server.driver) == 0
        assert admission.keys == [*KEYS[1:5], KEYS[0]]


async def test_a_body_that_does_not_fit_is_refused_once(hand: ByHand, redis: RedisServer, admission: Admission) -> None:
    """A gateway whose memory is full refuses it, and counts that once."""
    async with edge(configuration(hand.url, store=redis.url)) as gate:
        client = await gate.connect()
        warm = Warm(gate, hand, client, await warm_up(client, hand), admission)
        budget = gate.server.door.budget
        budget.taken += budget.total
        await warm.send(KEYS[0])
        said = await client.read()
        budget.taken -= budget.total
        assert (said.status, said.problem) == (503, "overloaded")
        assert gate.count("oncegate_limits_total", limit="buffers") == 1
        assert admission.keys == []


async def test_a_stop_waits_for_a_request_whose_client_has_left(
    hand: ByHand, redis: RedisServer, admission: Admission
) -> None:
    """A client sends its request and leaves, and the gateway is stopped: the answer is kept before the process ends."""
    async with edge(configuration(hand.url, store=redis.url)) as gate:
        client = await gate.connect()
        warm = Warm(gate, hand, client, await warm_up(client, hand), admission)
        await warm.send(KEYS[1])
        await warm.arrives()
        assert admission.keys == [KEYS[1]]
        client.reset()
        await gate.emptied()
        stopping = asyncio.ensure_future(gate.running.app.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        assert warm.machine.phase is Phase.FORWARDING
        await warm.peer.answer(b"kept", 201)
        stopped = await stopping
        assert (stopped.cut_off, stopped.unsettled) == (0, 0)
        found = await record(redis, KEYS[1])
        assert found.answer is not None
        assert (found.state, found.answer.body) == (State.COMPLETED, b"kept")

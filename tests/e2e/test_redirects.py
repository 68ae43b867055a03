"""A 307 or 308 to the same origin is followed: the operation runs once, its client gets the final answer, and a
repetition of the whole replays. Other redirects are passed on. Tests with a `way` hold on either way of admission."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.core.outcome import LostReason
from tests.e2e.admission import Admission
from tests.edge.stand import ByHand, Edge, Peer, edge, eventually, fields_of, values
from tests.harness import Client, Exchange, GateProcess, Origin, Response, ask, configuration, request
from tests.servers import RedisServer

#: Keys drawn at random, as clients should.
KEYS = [f"7c1d43aa-52f0-4be9-8a17-{number:012x}" for number in range(20)]
WARM = "0b8f7e11-0000-4000-8000-000000000000"
BODY = b'{"amount":1999}'
FIELDS = [("Content-Type", "application/json"), ("Authorization", "Bearer a"), ("X-Twice", "one"), ("X-Twice", "two")]


@pytest.fixture
async def hand() -> AsyncIterator[ByHand]:
    """An origin whose every byte the test writes."""
    origin = await ByHand().start()
    yield origin
    await origin.stop()


class Moved:
    """A service of which some paths have moved: `to` has where each leads, and what else that answer says."""

    def __init__(self, origin: Origin, **to: str) -> None:
        self.origin = origin
        self.status = 307
        self.to = {f"/{path}": location for path, location in to.items()}
        self.more: list[tuple[bytes, bytes]] = []
        self.body = b"moved"
        self.effects: Counter[str] = Counter()
        origin.answer = self._answer

    async def _answer(self, exchange: Exchange) -> None:
        target, key = exchange.request.target.decode(), (exchange.request.key or b"").decode()
        location = None if key == WARM else self.to.get(target)
        if location is None:
            self.effects[key] += 1
            await exchange.respond(201, b'{"at":"%b"}' % target.encode(), [(b"Location", b"/orders/17")])
            return
        fields = [(b"Location", each.encode("latin-1")) for each in location.split("\n") if each]
        await exchange.respond(self.status, self.body, [*fields, *self.more])

    @property
    def asked(self) -> list[str]:
        """The targets that were asked for, but for what made the gateway warm."""
        return [each.target.decode() for each in self.origin.requests if each.key != WARM.encode()]


class Drive:
    """A gateway whose requests of `send` are admitted directly or the general way."""

    def __init__(self, gate: Edge, client: Client) -> None:
        self.gate = gate
        self.client = client

    async def send(self, key: str, *, target: str = "/orders", body: bytes = BODY) -> Response:
        await self.client.send(request(target=target, key=key, body=body, fields=FIELDS))
        return await self.client.read()

    async def warm(self, target: str) -> None:
        """The door has met such a head, so that the next ones look like it."""
        assert (await self.send(WARM, target=target)).status in (201, 422)


@pytest.fixture(params=["general", "direct"])
def way(request: pytest.FixtureRequest, admission: Admission) -> Iterator[str]:
    """The way of admission. Sees to it that it was taken."""
    admission.direct = request.param == "direct"
    yield request.param
    assert bool(admission.keys) is admission.direct


@asynccontextmanager
async def driving(way: str, redis: RedisServer, url: str, warm: str = "/orders", **how: str) -> AsyncIterator[Drive]:
    async with edge(configuration(url, store=redis.url, **how)) as gate:  # type: ignore[arg-type]
        drive = Drive(gate, await gate.connect())
        if warm and way == "direct":
            await drive.warm(warm)
        yield drive


# ── Followed ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize(
    "location",
    ["/orders/", "http://gate.test/orders/", "HTTP://GATE.test:80/orders/#x", "{origin}/orders/", "./orders/"],
    ids=["a path", "the client's origin", "spelled otherwise", "the upstream's origin", "relative"],
)
async def test_the_operation_runs_once_and_a_repetition_replays(
    origin: Origin, redis: RedisServer, way: str, location: str, status: int
) -> None:
    """The client gets the final 201, and never sees the redirect. The second request is the first one, byte for byte,
    but for its target."""
    moved = Moved(origin, orders=location.format(origin=origin.url))
    moved.status = status
    async with driving(way, redis, origin.url) as drive:
        for label in ("stored", "replayed"):
            answer = await drive.send(KEYS[0])
            assert (answer.status, answer.body, answer.label) == (201, b'{"at":"/orders/"}', label)
        other = await drive.send(KEYS[0], body=b"another")
        assert (other.status, other.problem) == (422, "key-reused")
        assert moved.asked == ["/orders", "/orders/"]
        assert moved.effects[KEYS[0]] == 1
        first, second = origin.requests[-2:]
        assert (first.method, first.raw_fields, first.body) == (second.method, second.raw_fields, second.body)
        assert second.values(b"host") == [b"gate.test"]
        assert second.body == BODY
        assert origin.connections == 1
    lines = [line for line in drive.gate.running.lines if line.get("verdict") == "forward"]
    assert lines[-1]["detail"] == "(redirects followed: 1)"


async def test_a_crowd_of_duplicates_gets_the_final_answer(origin: Origin, redis: RedisServer, way: str) -> None:
    """Duplicates that arrive while the first is at any target get its answer."""
    moved = Moved(origin, orders="/a", a="/b")
    async with driving(way, redis, origin.url) as drive:
        crowd = [ask(drive.gate.port, key=KEYS[0], body=BODY, fields=FIELDS) for _ in range(20)]
        answers = await asyncio.gather(drive.send(KEYS[0]), *crowd)
        assert {(answer.status, answer.body) for answer in answers} == {(201, b'{"at":"/b"}')}
        assert moved.asked == ["/orders", "/a", "/b"]


async def test_three_redirects_are_followed_and_no_fourth(origin: Origin, redis: RedisServer, way: str) -> None:
    """The fourth one is passed on. Nothing ran by it, so that the client that follows it can run it."""
    moved = Moved(origin, orders="/a", a="/b", b="/c", x="/orders")
    async with driving(way, redis, origin.url) as drive:
        answer = await drive.send(KEYS[0])
        assert (answer.status, answer.body, answer.label) == (201, b'{"at":"/c"}', "stored")
    async with driving(way, redis, origin.url, "/x") as drive:
        answer = await drive.send(KEYS[1], target="/x")
        assert (answer.status, answer.label, answer.get("Location")) == (307, "released", "/c")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        assert moved.asked[-4:] == ["/x", "/orders", "/a", "/b"]
        assert moved.effects[KEYS[1]] == 0
        assert (await ask(drive.gate.port, target="/c", key=KEYS[1])).status == 201


async def test_a_redirect_that_comes_before_the_request_was_read(hand: ByHand, redis: RedisServer) -> None:
    """As services answer that look at the path alone: the request goes to the new target whole, by a connection of its
    own."""
    body = b"x" * (8 << 20)
    async with driving("general", redis, hand.url, "", policy="max_request: 16MiB") as drive:
        answering = asyncio.create_task(drive.send(KEYS[0], body=body))
        early = await hand.accept()
        await early.head()
        await early.answer(b"", 308, b"Location: /orders/\r\n")
        peer = await hand.accept()
        assert (await peer.head()).startswith(b"POST /orders/ HTTP/1.1\r\n")
        assert await peer.read(len(body)) == body
        await peer.answer(b"done", 201)
        assert (await answering).body == b"done"
        assert await early.ended()


async def test_a_redirect_whose_end_is_that_of_its_connection(hand: ByHand, redis: RedisServer) -> None:
    """As the simplest servers answer: HTTP/1.0 without a length."""
    async with driving("general", redis, hand.url, "") as drive:
        answering = asyncio.create_task(drive.send(KEYS[0]))
        peer = await hand.accept()
        await peer.head()
        await peer.send(b"HTTP/1.0 307 Moved\r\nLocation: /orders/\r\n\r\nmoved")
        peer.close()
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"done", 201)
        assert (await answering).label == "stored"


async def test_a_gateway_in_front_sees_the_final_answer(origin: Origin, redis: RedisServer) -> None:
    """The back gateway follows. What it passes on, the front one does not follow again."""
    moved = Moved(origin, orders="/orders/", loop="/loop")
    async with (
        edge(configuration(origin.url)) as back,
        edge(configuration(f"http://127.0.0.1:{back.port}")) as front,
    ):
        for label in ("stored", "replayed"):
            assert (await ask(front.port, key="k")).label == label
        answer = await ask(front.port, target="/loop", key="l")
        assert (answer.status, answer.label) == (307, "released")
        assert moved.asked == ["/orders", "/orders/", "/loop"]


# ── Passed on ─────────────────────────────────────────────────────────────────────────────────────

ELSEWHERE = {
    "another host": "http://other.example/orders/",
    "another port": "http://gate.test:8080/orders/",
    "an upgrade to https": "https://gate.test/orders/",
    "a host behind two slashes": "//other.example/orders/",
    "user information": "http://gate.test@other.example/orders/",
    "a user of this host": "http://user:word@gate.test/orders/",
    "a backslash": "/\\other.example/orders/",
    "not ASCII": "/\xf8rders/",
    "a space": "/orders of today",
    "itself": "/orders",
    "itself, as a fragment": "#there",
    "brackets without an address": "app://[orders]/1",
    "no location": "\n",
    "two locations": "/orders/\n/orders/",
    "a route of another upstream": "/other/orders",
    "no route": "/nowhere",
    "a path of two readings": "/open/..%2forders/",
}


@pytest.mark.parametrize("which", ELSEWHERE)
async def test_another_redirect_is_released_and_passed_on(
    origin: Origin, redis: RedisServer, way: str, which: str
) -> None:
    """Its client gets it as it is, and knows that nothing ran. Once the service leads to the same origin, the same key
    runs."""
    moved = Moved(origin, orders=ELSEWHERE[which])
    routes = """
  - {name: o, match: {path: /orders/**}, upstream: origin}
  - {name: other, match: {path: /other/**}, upstream: other}
  - {name: nowhere, match: {path: /nowhere/**, methods: [GET]}, upstream: origin}
"""
    text = configuration(origin.url, store=redis.url, routes=routes)
    text = text.replace("upstreams:\n", f"upstreams:\n  other: {{url: {origin.url}}}\n")
    text = text.replace("match: {path: /**}", "match: {path: /never}")
    async with edge(text) as gate:
        drive = Drive(gate, await gate.connect())
        if way == "direct":
            await drive.warm("/orders")
        for turn in range(2):
            answer = await drive.send(KEYS[0])
            assert (answer.status, answer.body, answer.label) == (307, b"moved", "released")
            assert answer.values("Idempotency-Outcome") == ["no-effect"]
            assert answer.values("Location") == [each for each in ELSEWHERE[which].split("\n") if each]
            assert moved.asked == ["/orders"] * (turn + 1)
        moved.to["/orders"] = "/orders/"
        assert (await drive.send(KEYS[0])).label == "stored"
        assert moved.effects[KEYS[0]] == 1


@pytest.mark.parametrize(
    ("more", "label", "effects"),
    [
        ([(b"Retry-After", b"1")], "released", 0),
        ([(b"Idempotency-Outcome", b"no-effect")], "released", 0),
        ([(b"Idempotency-Outcome", b"unknown")], "in-doubt", 0),
        ([(b"Idempotency-Outcome", b"keep")], "stored", 0),
    ],
)
async def test_a_redirect_that_declares_more_is_settled_by_that(
    origin: Origin, redis: RedisServer, way: str, more: list[tuple[bytes, bytes]], label: str, effects: int
) -> None:
    """It asks for patience, or says what became of the request: it is not followed."""
    moved = Moved(origin, orders="/orders/")
    moved.more = more
    async with driving(way, redis, origin.url) as drive:
        answer = await drive.send(KEYS[0])
        assert (answer.status, answer.label) == (307, label)
        assert moved.asked == ["/orders"]
        assert moved.effects[KEYS[0]] == effects


@pytest.mark.parametrize("size", [16 << 10, (16 << 10) + 1, 2 << 20])
async def test_a_redirect_with_a_long_body_is_passed_on(
    origin: Origin, redis: RedisServer, way: str, size: int
) -> None:
    """Up to 16 KiB it is followed. Beyond that, and beyond `max_response`, its client gets it whole."""
    moved = Moved(origin, orders="/orders/")
    moved.body = b"x" * size
    async with driving(way, redis, origin.url) as drive:
        answer = await drive.send(KEYS[0])
        if size <= 16 << 10:
            assert (answer.status, answer.label) == (201, "stored")
        else:
            assert (answer.status, answer.label, len(answer.body)) == (307, "released", size)
            assert moved.asked == ["/orders"]


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_other_redirects_are_answers(origin: Origin, redis: RedisServer, way: str, status: int) -> None:
    """They ask for another request, with GET: kept, passed on, and replayed."""
    moved = Moved(origin, orders="/orders/17")
    moved.status = status
    async with driving(way, redis, origin.url) as drive:
        for label in ("stored", "replayed"):
            answer = await drive.send(KEYS[0])
            assert (answer.status, answer.label, answer.get("Location")) == (status, label, "/orders/17")
        assert moved.asked == ["/orders"]


@pytest.mark.parametrize(
    ("policy", "label", "again"),
    [
        ("keep: [307]", "stored", (307, "replayed")),
        ("hold: [307]", "in-doubt", (409, "in-doubt")),
        ("release: [307]", "released", (307, "released")),
        ("keep: [308]", "stored", (201, "replayed")),
        ("keep_only: [201, 307]", "stored", (307, "replayed")),
        ("keep_only: 2xx", "stored", (201, "replayed")),
    ],
)
async def test_the_routes_word_wins(
    origin: Origin, redis: RedisServer, way: str, policy: str, label: str, again: tuple[int, str]
) -> None:
    """A route that names the status has said what it means. It is not followed."""
    moved = Moved(origin, orders="/orders/")
    async with driving(way, redis, origin.url, policy=policy) as drive:
        answer = await drive.send(KEYS[0])
        assert (answer.status, answer.label) == (again[0] if again[0] != 409 else 307, label)
        answer = await drive.send(KEYS[0])
        assert (answer.status, answer.label) == again
        assert moved.effects[KEYS[0]] == (again[0] == 201)


@pytest.mark.parametrize(
    ("target", "policy", "key"),
    [("/orders", "mode: shadow", "k"), ("/open/orders", "", "k"), ("/orders", "", None)],
    ids=["in shadow", "an unguarded route", "no key"],
)
async def test_what_is_not_guarded_is_not_followed(origin: Origin, target: str, policy: str, key: str | None) -> None:
    """It passes through as it is."""
    moved = Moved(origin, orders="/orders/")
    moved.to["/open/orders"] = "/orders/"
    async with edge(configuration(origin.url, policy=policy)) as gate:
        answer = await ask(gate.port, target=target, key=key)
        assert (answer.status, answer.label, answer.get("Location")) == (307, "unprotected", "/orders/")
        assert moved.asked == [target]


# ── Between the targets, and behind them ──────────────────────────────────────────────────────────


async def arrives(peer: Peer) -> bytes:
    """The target of the next request, which is read whole."""
    head = await peer.head()
    (length,) = values(fields_of(head), b"content-length")
    await peer.read(int(length))
    return head.split(b" ")[1]


@asynccontextmanager
async def by_hand(way: str, redis: RedisServer, hand: ByHand, **how: str) -> AsyncIterator[tuple[Drive, Peer]]:
    """Gives the gateway, and the connection to the origin that is idle."""
    async with driving(way, redis, hand.url, "", **how) as drive:
        warming = asyncio.create_task(drive.send(WARM))
        peer = await hand.accept()
        await arrives(peer)
        await peer.answer(b"warm")
        assert (await warming).status == 200
        yield drive, peer


@pytest.mark.parametrize("status", [307, 308])
async def test_a_second_target_that_cannot_be_reached(hand: ByHand, redis: RedisServer, way: str, status: int) -> None:
    """Not a byte was sent there, and the first one declared that nothing ran: the redirect is passed on, released."""
    async with by_hand(way, redis, hand) as (drive, peer):
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        hand._server.close()  # type: ignore[union-attr]
        await peer.answer(b"moved", status, b"Location: /orders/\r\nConnection: close\r\n")
        answer = await answering
        assert (answer.status, answer.body, answer.label) == (status, b"moved", "released")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        assert (await drive.send(KEYS[0])).problem == "upstream-unreachable"


@pytest.mark.parametrize(
    "part", [b"", b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\nhalf"], ids=["no", "half an"]
)
async def test_a_second_target_that_is_lost(hand: ByHand, redis: RedisServer, way: str, part: bytes) -> None:
    """It was sent there, and has half an answer or none: in doubt, as for any request. It is sent nowhere again."""
    async with by_hand(way, redis, hand) as (drive, peer):
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        await peer.answer(b"moved", 307, b"Location: /orders/\r\n")
        assert await arrives(peer) == b"/orders/"
        await peer.send(part)
        peer.close()
        answer = await answering
        assert (answer.status, answer.problem, answer.label) == (502, "upstream-lost", "in-doubt")
        assert (await drive.send(KEYS[0])).problem == "in-doubt"
        assert hand.connections == 1


async def test_a_redirect_that_is_cut_off(hand: ByHand, redis: RedisServer, way: str) -> None:
    """A redirect that is cut short is no whole answer: the key is in doubt, and it is not followed."""
    async with by_hand(way, redis, hand) as (drive, peer):
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        await peer.send(b"HTTP/1.1 307 Moved\r\nLocation: /orders/\r\nContent-Length: 9\r\n\r\nmo")
        peer.close()
        assert (await answering).problem == "upstream-lost"
        assert hand.connections == 1


async def test_a_second_target_that_does_not_answer_in_time(hand: ByHand, redis: RedisServer, way: str) -> None:
    """`timeout` bounds the whole: 504, and the late answer is kept."""
    async with by_hand(way, redis, hand, upstream="timeout: 400ms, late: 20s") as (drive, peer):
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        await peer.answer(b"moved", 307, b"Location: /orders/\r\n")
        assert await arrives(peer) == b"/orders/"
        assert (await answering).problem == "upstream-timeout"
        await peer.answer(b"late", 201)
        answer = await drive.send(KEYS[0])
        assert (answer.body, answer.replayed) == (b"late", True)


async def test_a_redirect_that_comes_late_is_not_followed(hand: ByHand, redis: RedisServer, way: str) -> None:
    """Past `timeout` no first byte is sent any more. Nothing ran, so the key is free."""
    async with by_hand(way, redis, hand, upstream="timeout: 300ms, late: 20s") as (drive, peer):
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        assert (await answering).problem == "upstream-timeout"
        waiting = asyncio.create_task(drive.send(KEYS[0]))
        await eventually(lambda: drive.gate.server.driver.waiting, "the duplicate waits")
        await peer.answer(b"moved", 307, b"Location: /orders/\r\n")
        answer = await waiting
        assert (answer.status, answer.label) == (307, "released")
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        await peer.answer(b"moved", 307, b"Location: /orders/\r\n")
        assert await arrives(peer) == b"/orders/"
        await peer.answer(b"done", 201)
        assert (await answering).label == "stored"


@asynccontextmanager
async def between(
    way: str, redis: RedisServer, hand: ByHand
) -> AsyncIterator[tuple[Drive, Peer, asyncio.Task[Response]]]:
    """A request that was redirected, and waits for a connection to its second target: another one has the only one
    there may be."""
    async with by_hand(way, redis, hand, upstream="connections: 1, timeout: 20s") as (drive, peer):
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        other = asyncio.create_task(ask(drive.gate.port, target="/other", key="other"))
        await eventually(lambda: drive.gate.pool.waiting == 1, "the other one waits")
        await peer.answer(b"moved", 307, b"Location: /orders/\r\n")
        assert await arrives(peer) == b"/other"
        await eventually(lambda: drive.gate.pool.waiting == 1, "the first one waits for its second target")
        yield drive, peer, answering
        await other


async def test_a_duplicate_that_comes_between_the_targets(hand: ByHand, redis: RedisServer, way: str) -> None:
    """It waits, as for any request, and gets the final answer."""
    async with between(way, redis, hand) as (drive, peer, answering):
        waiting = asyncio.create_task(ask(drive.gate.port, key=KEYS[0], body=BODY, fields=FIELDS))
        await eventually(lambda: drive.gate.server.driver.waiting == 1, "the duplicate waits")
        await peer.answer(b"other")
        assert await arrives(peer) == b"/orders/"
        await peer.answer(b"done", 201)
        assert ((await answering).body, (await waiting).body) == (b"done", b"done")


async def test_a_stop_between_the_targets(hand: ByHand, redis: RedisServer, way: str) -> None:
    """Nothing was sent to the second one, and the first one declared that nothing ran: the redirect, released."""
    async with between(way, redis, hand) as (drive, peer, answering):
        for machine in drive.gate.server.driver:
            attempt = machine.run and machine.run.attempt
            if attempt is not None and not attempt.sent:
                attempt.abandon(LostReason.STOPPED)
        answer = await answering
        assert (answer.status, answer.label, answer.get("Idempotency-Outcome")) == (307, "released", "no-effect")
        await peer.answer(b"other")


async def test_the_last_moment_to_send_comes_between_the_targets(hand: ByHand, redis: RedisServer, way: str) -> None:
    """No connection was free in time: the redirect, released, at that moment and not at the time-out."""
    timing = "connections: 1, timeout: 6s, late: 0s"  # which makes the last moment to send come after 3.05 s
    async with by_hand(way, redis, hand, upstream=timing, top="margin: 100ms") as (drive, peer):
        began = asyncio.get_running_loop().time()
        answering = asyncio.create_task(drive.send(KEYS[0]))
        assert await arrives(peer) == b"/orders"
        other = asyncio.create_task(ask(drive.gate.port, target="/other", key="other"))
        await eventually(lambda: drive.gate.pool.waiting == 1, "the other one waits")
        await peer.answer(b"moved", 307, b"Location: /orders/\r\n")
        assert await arrives(peer) == b"/other"
        answer = await answering
        assert (answer.status, answer.label, answer.get("Idempotency-Outcome")) == (307, "released", "no-effect")
        assert 3 < asyncio.get_running_loop().time() - began < 5.5
        await peer.answer(b"other")
        assert (await other).body == b"other"


async def test_a_gateway_that_dies_between_the_targets(hand: ByHand, redis: RedisServer) -> None:
    """A duplicate finds the claim, and once its lease is over a key in doubt. The service is not asked again."""
    text = configuration(
        hand.url, store=redis.url, policy="wait: 0s", upstream="connections: 1, timeout: 4s, late: 0s",
        top="margin: 100ms",
    )  # fmt: skip
    process = GateProcess(text)
    try:
        await process.start()
        first = asyncio.create_task(ask(process.port, key=KEYS[0]))
        peer = await hand.accept()
        assert await arrives(peer) == b"/orders"
        other = asyncio.create_task(ask(process.port, "GET", "/other", body=b""))
        await asyncio.sleep(0.1)  # it waits for the only connection; if it did not, it would be served now
        await peer.answer(b"moved", 307, b"Location: /orders/\r\n")
        assert (await peer.head()).startswith((b"GET /other ", b"POST /orders/ "))
        process.kill()
        for broken in (first, other):
            with pytest.raises(ConnectionError):
                await broken
        async with edge(text) as gate:
            assert (await ask(gate.port, key=KEYS[0])).problem in ("in-flight", "in-doubt")

            async def doubt() -> bool:
                return (await ask(gate.port, key=KEYS[0])).problem == "in-doubt"

            async with asyncio.timeout(20):
                while not await doubt():
                    await asyncio.sleep(0.1)
        assert hand.connections == 1
    finally:
        process.close()

"""Redis is not there: from the start, for a while, in the wrong shape. What needs no store does not notice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.crowd import Caller, admin, callers, eventually
from tests.harness import Exchange, GateProcess, Origin, RunningGate, ask, configuration, gate, request
from tests.servers import RedisServer, preferred


@pytest.fixture
def later() -> Iterator[RedisServer]:
    """A Redis that is not started yet."""
    server = RedisServer(preferred(), aof=True)
    yield server
    server.close()


def before(origin: Origin, redis: RedisServer, **how: str) -> str:
    return configuration(origin.url, store=redis.url, **how)  # type: ignore[arg-type]


async def guarded(running: RunningGate) -> tuple[int, dict[str, str]]:
    return await admin(running.admin_port, "/ready/guarded")


async def until_guarded(running: RunningGate) -> None:
    await eventually(lambda: guarded(running), lambda seen: seen[0] == 200)


# ── Absent at start ───────────────────────────────────────────────────────────────────────────────


async def test_without_redis_the_gate_starts_and_passes_what_needs_none(origin: Origin, later: RedisServer) -> None:
    """No Redis: the gate starts, /ready (with startup_wait: 0s) is 200, /ready/guarded 503 and says why; a guarded POST
    is 503 store-unavailable with Retry-After after store_wait, and not forwarded; what is not guarded passes."""
    async with gate(before(origin, later, policy="store_wait: 300ms", top="startup_wait: 0s")) as running:
        assert await admin(running.admin_port, "/ready") == (200, {"status": "ready", "store": "redis"})
        status, told = await guarded(running)
        assert status == 503
        assert told["reason"].startswith(f"store-unavailable: Redis at 127.0.0.1:{later.port} cannot be reached: ")
        assert "refused" in told["reason"]
        began = time.monotonic()
        refused = await ask(running.port, key="k1")
        assert 0.28 <= time.monotonic() - began < 2
        assert (refused.status, refused.problem, refused.label) == (503, "store-unavailable", "refused")
        assert (refused.get("Retry-After"), refused.get("X-Should-Retry")) == ("1", "true")
        assert refused.get("Idempotency-Outcome") == "no-effect"
        assert origin.requests == []
        for passing in (
            await ask(running.port, "POST", "/open/orders"),
            await ask(running.port, "GET", "/orders", body=b""),
            await ask(running.port, "POST", "/orders"),
        ):
            assert passing.status == 201
        assert len(origin.requests) == 3


async def test_when_redis_comes_guarded_requests_are_served(origin: Origin, later: RedisServer) -> None:
    """No Redis, a POST is refused; Redis comes up: without a restart /ready/guarded is 200 and the same POST runs."""
    async with gate(before(origin, later, policy="store_wait: 0s")) as running:
        assert (await ask(running.port, key="k1")).problem == "store-unavailable"
        await asyncio.to_thread(later.start)
        await until_guarded(running)
        assert (await ask(running.port, key="k1")).label == "stored"
        assert (await ask(running.port, key="k1")).label == "replayed"
        assert origin.effects == {b"k1": 1}


async def test_a_request_that_has_patience_is_served_when_redis_comes(origin: Origin, later: RedisServer) -> None:
    """No Redis; a POST waits (store_wait); Redis comes up: the POST is run, once, and its duplicates with it."""
    async with gate(before(origin, later, policy="store_wait: 20s")) as running, callers(5, running.port) as crowd:
        waiting = [caller.send(request(key="k1", body=b"1")) for caller in crowd]
        assert not (await asyncio.wait(waiting, timeout=0.2))[0]
        await asyncio.to_thread(later.start)
        answers = await asyncio.gather(*waiting)
        assert Counter(answer.label for answer in answers) == {"stored": 1, "replayed": 4}
        assert origin.effects == {b"k1": 1}


# ── Whether clients may be sent to a gateway that has not met its store ───────────────────────────


async def ready(running: RunningGate) -> tuple[int, dict[str, str]]:
    return await admin(running.admin_port, "/ready")


@pytest.mark.parametrize("policy", ["store_down: refuse", "store_down: forward"])
async def test_not_ready_until_redis_was_there_once(origin: Origin, later: RedisServer, policy: str) -> None:
    """No Redis at the start: /ready is 503 and gives the reason, whatever `store_down` is; unguarded traffic passes
    all the same. Redis comes: 200. Redis goes: /ready stays 200, /ready/guarded is 503."""
    async with gate(before(origin, later, policy=f"store_wait: 0s, {policy}")) as running:
        status, told = await ready(running)
        assert (status, told["status"]) == (503, "not ready")
        assert told["reason"].startswith(f"store-unavailable: Redis at 127.0.0.1:{later.port} cannot be reached: ")
        assert (await ask(running.port, "POST", "/open/orders")).status == 201
        await asyncio.to_thread(later.start)
        await eventually(lambda: ready(running), lambda seen: seen[0] == 200)
        assert (await guarded(running))[0] == 200
        later.kill()
        await eventually(lambda: guarded(running), lambda seen: seen[0] == 503)
        assert await ready(running) == (200, {"status": "ready", "store": "redis"})


async def test_ready_without_redis_once_startup_wait_is_over(origin: Origin, later: RedisServer) -> None:
    """startup_wait: 1s, and no Redis: /ready is 503, then 200, and the log says so; /ready/guarded stays 503."""
    async with gate(before(origin, later, top="startup_wait: 1s")) as running:
        assert (await ready(running))[0] == 503
        await eventually(lambda: ready(running), lambda seen: seen[0] == 200)
        assert (await guarded(running))[0] == 503
    messages = [line["message"] for line in running.lines if line["level"] == "warning"]
    assert "the store was not available within startup_wait; /ready does not wait for it any longer" in messages


async def test_a_redis_with_another_password_keeps_clients_away(origin: Origin, redis: RedisServer) -> None:
    """A rollout with a wrong password: /ready is 503 with WRONGPASS, so that it replaces no gateway that serves; Redis
    accepts the password: 200."""
    with redis.client() as client:
        client.config_set("requirepass", "correct-horse")
        store = redis.url.replace("//", "//:battery-staple@")
        async with gate(configuration(origin.url, store=store)) as running:
            status, told = await ready(running)
            assert status == 503
            assert told["reason"].startswith("store-unavailable: Redis refused AUTH: WRONGPASS ")
            client.config_set("requirepass", "battery-staple")
            await eventually(lambda: ready(running), lambda seen: seen[0] == 200)


@pytest.mark.parametrize("policy", ["guard: false", "mode: shadow"])
async def test_without_enforced_routes_no_store_is_waited_for(origin: Origin, later: RedisServer, policy: str) -> None:
    """No Redis, and no route whose keys protect anything: /ready is 200 at once."""
    async with gate(before(origin, later, policy=policy)) as running:
        assert (await ready(running))[0] == 200


async def test_the_wait_does_not_hold_up_a_stop(origin: Origin, later: RedisServer) -> None:
    """No Redis, startup_wait: 10m, SIGTERM: the process ends with exit code 0, as without it."""
    process = GateProcess(before(origin, later, top="startup_wait: 10m"))
    try:
        await process.start()
        assert (await admin(process.admin_port, "/ready"))[0] == 503
        assert await process.terminate() == 0
    finally:
        process.close()


# ── Gone for a while ──────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def under_load(origin: Origin, running: RunningGate) -> AsyncIterator[None]:
    """Three hundred keys from fifty clients that retry what they are told to retry, each key once more at the end;
    and ten clients whose requests are not guarded. What happens meanwhile is the caller's; then all must be well."""
    outcomes: dict[str, list[tuple[int, str | None]]] = {f"k{n}": [] for n in range(300)}
    over = asyncio.Event()
    passing: list[tuple[int, float]] = []

    async def takes_a_moment(exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        await exchange.respond(201, b'{"id":"%b"}' % (exchange.request.key or b"-"))

    async def pays(n: int) -> None:
        async with callers(1, running.port) as (caller,):
            for key in list(outcomes)[n::50]:
                for _ in range(2):
                    assert await insists(caller, key) == b'{"id":"%b"}' % key.encode()

    async def insists(caller: Caller, key: str) -> bytes:
        seen = outcomes[key]
        while True:
            answer = await caller.send(request(key=key, body=b'{"amount":1}'))
            seen.append((answer.status, answer.problem or answer.label))
            if answer.status == 201:
                return answer.body
            assert answer.get("X-Should-Retry") == "true", seen
            assert len(seen) < 200, seen
            await asyncio.sleep(0.1)  # a client's back-off

    async def browses() -> None:
        async with callers(1, running.port) as (caller,):
            while not over.is_set():
                began = time.monotonic()
                answer = await caller.send(request("GET", "/open/catalogue"))
                passing.append((answer.status, time.monotonic() - began))
                await asyncio.sleep(0.01)

    origin.answer = takes_a_moment
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        browsing = [group.create_task(browses()) for _ in range(10)]
        paying = [group.create_task(pays(n)) for n in range(50)]
        yield
        await asyncio.wait(paying)
        over.set()
        await asyncio.wait(browsing)
    for key, seen in outcomes.items():
        assert origin.effects[key.encode()] == 1, (key, seen)
    assert {status for status, _ in passing} == {201}
    assert len(passing) > 20  # there was such traffic
    slow = [seconds for _, seconds in passing if seconds > 2]
    assert slow == [], "unguarded traffic noticed"


async def failed(running: RunningGate) -> float:
    return sum(running.count("oncegate_store_errors_total", operation=verb) for verb in ("claim", "settle"))


async def away(running: RunningGate) -> bool:
    return (await guarded(running))[0] == 503


Outage = Callable[[RedisServer, RunningGate], Awaitable[None]]


async def killed(redis: RedisServer, running: RunningGate) -> None:
    redis.kill()
    await eventually(lambda: failed(running), lambda count: count > 0)
    assert await away(running)
    await asyncio.to_thread(redis.start)


async def stopped(redis: RedisServer, running: RunningGate) -> None:
    redis.signal(signal.SIGSTOP)
    try:
        # A store that hangs must come to look like one that is away, and stay so.
        await eventually(lambda: away(running), bool)
        refused = await ask(running.port, key="meanwhile")
        assert refused.problem == "store-unavailable"
    finally:
        redis.signal(signal.SIGCONT)


@pytest.mark.parametrize("outage", [killed, stopped], ids=["kill -9 and start", "SIGSTOP and SIGCONT"])
async def test_redis_goes_away_under_load(origin: Origin, redis: RedisServer, outage: Outage) -> None:
    """300 keys under way, Redis goes and comes back: no key has a second effect, every key is answered 201 in the
    end, its duplicate too; unguarded requests are all answered, none of them late; and the gate is well again."""
    async with gate(before(origin, redis, policy="store_wait: 500ms")) as running:
        async with under_load(origin, running):
            await origin.until(60)
            await outage(redis, running)
        assert await failed(running) > 0
        await until_guarded(running)
        assert (await ask(running.port, key="afterwards")).label == "stored"
        assert (await ask(running.port, key="afterwards")).label == "replayed"


async def test_an_answer_that_redis_did_not_take_is_given_and_told_to_redis_later(
    origin: Origin, redis: RedisServer
) -> None:
    """POST, claimed; Redis goes; the origin answers: the client has its 201, not-stored, and so has a duplicate
    here; Redis comes back: the answer is settled in the background, and a gate that is started then replays it."""
    released = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await released.wait()
        await exchange.respond(201, b'{"paid":true}')

    origin.answer = hold
    text = before(origin, redis, policy="store_wait: 0s")
    async with gate(text) as running, callers(2, running.port) as (first, other):
        answering = first.send(request(key="k1"))
        await origin.until(1)
        redis.kill()
        await eventually(lambda: away(running), bool)
        released.set()
        answer = await answering
        assert (answer.status, answer.label, answer.get("Idempotency-Expires")) == (201, "not-stored", None)
        again = await other.send(request(key="k1"))
        assert (again.status, again.body, again.label) == (201, answer.body, "not-stored")
        await asyncio.to_thread(redis.start)
        await eventually(lambda: _label(running, "k1"), lambda label: label == "replayed")
        async with gate(before(origin, redis)) as another:
            replay = await ask(another.port, key="k1", body=b"")
            assert (replay.body, replay.replayed) == (answer.body, True)
    assert origin.effects == {b"k1": 1}


async def _label(running: RunningGate, key: str) -> str | None:
    return (await ask(running.port, key=key, body=b"")).label


# ── Not the Redis that was meant ──────────────────────────────────────────────────────────────────


async def test_a_wrong_password_is_said_and_not_shown(origin: Origin, redis: RedisServer) -> None:
    """A wrong password: guarded routes 503 and /ready/guarded says WRONGPASS, without the password; once Redis
    accepts it they are served without a restart."""
    with redis.client() as client:
        client.config_set("requirepass", "correct-horse")
        store = redis.url.replace("//", "//:battery-staple@")
        async with gate(configuration(origin.url, store=store, policy="store_wait: 0s")) as running:
            status, told = await guarded(running)
            assert status == 503
            assert told["reason"].startswith("store-unavailable: Redis refused AUTH: WRONGPASS ")
            assert (await ask(running.port, key="k1")).problem == "store-unavailable"
            assert (await ask(running.port, "POST", "/open/orders")).status == 201
            client.config_set("requirepass", "battery-staple")
            await until_guarded(running)
            assert (await ask(running.port, key="k1")).label == "stored"
        assert "battery-staple" not in running.log.getvalue() + str(told)


async def test_a_missing_password_is_said(origin: Origin, redis: RedisServer) -> None:
    """A Redis that wants a password, and none in the URL: /ready/guarded says NOAUTH."""
    with redis.client() as client:
        client.config_set("requirepass", "correct-horse")
    async with gate(before(origin, redis, policy="store_wait: 0s")) as running:
        status, told = await guarded(running)
        assert status == 503
        assert "NOAUTH" in told["reason"]
        assert (await ask(running.port, key="k1")).problem == "store-unavailable"


async def _speaks_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await reader.read()
    writer.close()


async def _says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def _hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize(
    ("what", "reason"),
    [(_speaks_http, "spoke no RESP"), (_says_nothing, "no answer within"), (_hangs_up, "closed the connection")],
)
async def test_something_else_on_the_port_is_no_redis(
    origin: Origin, what: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], reason: str
) -> None:
    """A web server, something silent, something that hangs up on Redis's port: the gate starts, guarded routes are
    503 and the reason is told; no more connections are tried than a back-off allows."""
    came = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        try:
            await what(reader, writer)
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        store = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        async with gate(configuration(origin.url, store=store, policy="store_wait: 0s")) as running:
            await eventually(lambda: guarded(running), lambda seen: reason in seen[1].get("reason", ""))
            assert (await ask(running.port, key="k1")).problem == "store-unavailable"
            assert (await ask(running.port, "POST", "/open/orders")).status == 201
            assert origin.effects == {None: 1}
            assert came < 10

"""The gate is killed, or asked to stop; and so is its Redis. Real processes, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.e2e.crowd import admin, eventually
from tests.harness import Client, Exchange, GateProcess, Origin, Response, ask, configuration, request
from tests.servers import RedisServer, preferred

KINDS = ["sqlite", "redis"]


class Stand:
    """A gate in a process of its own, before `origin`, on a store that is said to survive."""

    def __init__(self, kind: str, folder: Path, origin: Origin, *, upstream: str = "", policy: str = "", top: str = ""):
        self.origin = origin
        self.redis = RedisServer(preferred(), aof=True).start() if kind == "redis" else None
        store = self.redis.url if self.redis is not None else f"sqlite:///{folder}/keys.db"
        self.gate = GateProcess(
            configuration(
                origin.url, store=store, upstream=upstream, policy=policy, top=f"log: {{format: json}}\n{top}"
            )
        )

    async def kill_everything(self) -> None:
        """kill -9 of the gate, and of its Redis; and both again."""
        self.gate.kill()
        if self.redis is not None:
            self.redis.kill()
            await asyncio.to_thread(self.redis.start)
        await self.gate.start()

    async def ask(self, key: str) -> Response:
        return await ask(self.gate.port, key=key)

    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.gate.log.read_text().splitlines()]

    def close(self) -> None:
        self.gate.close()
        if self.redis is not None:
            self.redis.close()


@asynccontextmanager
async def stand(kind: str, folder: Path, origin: Origin, **how: str) -> AsyncIterator[Stand]:
    here = Stand(kind, folder, origin, **how)
    try:
        await here.gate.start()
        yield here
    finally:
        here.close()


@pytest.fixture
def held(origin: Origin) -> Iterator[asyncio.Event]:
    """The origin runs its requests, and answers once this is set."""
    released = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await released.wait()
        await exchange.respond(201, b'{"done":true}')

    origin.answer = hold
    yield released
    released.set()


# ── kill -9 ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_outlives_kill_9(kind: str, tmp_path: Path, origin: Origin) -> None:
    """POST → 201; kill -9 of gate (and Redis); start; the same POST → the same 201, replayed, and no new effect."""
    async with stand(kind, tmp_path, origin) as here:
        first = await here.ask("k1")
        assert (first.status, first.label) == (201, "stored")
        await here.kill_everything()
        again = await here.ask("k1")
        assert (again.status, again.body, again.label) == (201, first.body, "replayed")
        assert again.replayed
        assert again.get("Idempotency-First-Seen") == first.get("Idempotency-First-Seen")
        assert again.get("Idempotency-Expires") == first.get("Idempotency-Expires")
        fresh = await here.ask("k2")
        assert (fresh.status, fresh.label) == (201, "stored")
        assert origin.effects == {b"k1": 1, b"k2": 1}


async def test_killed_in_flight_it_is_in_flight_and_then_in_doubt(tmp_path: Path, origin: Origin) -> None:
    """POST; the origin holds; kill -9 of gate (and Redis); start: 409 in-flight until the lease is over, then 409
    in-doubt, and never a second effect. On both stores at once, since a lease is waited for."""

    async def story(kind: str) -> None:
        # The lease is timeout + late + 5 s: 13 s, longer than a restart takes.
        async with stand(kind, tmp_path, origin, upstream="timeout: 8s, late: 0s", policy="wait: 0s") as here:
            with closing(await Client.connect(here.gate.port)) as client:
                await client.send(request(key=kind, body=b'{"amount":1}'))
                await eventually(lambda: _count(origin, kind), lambda count: count == 1)
                await here.kill_everything()
                assert await client.ended()
            seen = [await here.ask(kind)]
            while seen[-1].problem == "in-flight":
                assert (seen[-1].status, seen[-1].get("X-Should-Retry")) == (409, "true")
                assert seen[-1].get("Retry-After") in ("1", "2")
                assert len(seen) < 400
                await asyncio.sleep(0.1)
                seen.append(await here.ask(kind))
            assert len(seen) > 1, "the claim was trusted for its lease"
            doubtful = await here.ask(kind)
            for response in (seen[-1], doubtful):
                assert (response.status, response.problem, response.label) == (409, "in-doubt", "in-doubt")
                assert (response.get("Retry-After"), response.get("X-Should-Retry")) == (None, "false")

    released = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await released.wait()

    origin.answer = hold
    await asyncio.gather(*map(story, KINDS))
    released.set()
    assert origin.effects == {kind.encode(): 1 for kind in KINDS}


async def _count(origin: Origin, key: str) -> int:
    return origin.effects[key.encode()]


# ── SIGTERM ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_sigterm_answers_what_is_in_flight(
    kind: str, tmp_path: Path, origin: Origin, held: asyncio.Event
) -> None:
    """POST in flight; SIGTERM: nobody new is let in, the POST is answered 201, the closing sentence is said, the
    exit code is 0; and after a start its duplicate is replayed."""
    async with stand(kind, tmp_path, origin) as here:
        with (
            closing(await Client.connect(here.gate.port)) as idle,
            closing(await Client.connect(here.gate.port)) as busy,
        ):
            await busy.send(request(key="k1"))
            await origin.until(1)
            ended = asyncio.create_task(here.gate.terminate())
            await eventually(lambda: _refused(here.gate.port), bool)
            assert await idle.ended()
            assert (await admin(here.gate.admin_port, "/ready"))[0] == 503
            assert await admin(here.gate.admin_port, "/live") == (200, {"status": "live"})
            assert not ended.done()
            held.set()
            answer = await busy.read()
        assert (answer.status, answer.label, answer.get("Connection")) == (201, "stored", "close")
        assert await ended == 0
        assert here.log()[-1]["message"] == "stopped: everything in flight was answered and settled"
        await here.gate.start()
        again = await ask(here.gate.port, key="k1", body=b"")
        assert (again.body, again.replayed) == (answer.body, True)
        assert origin.effects == {b"k1": 1}


async def _refused(port: int) -> bool:
    try:
        client = await Client.connect(port)
    except ConnectionRefusedError:
        return True
    client.close()
    return False


async def test_past_its_grace_what_is_in_flight_is_put_in_doubt(
    tmp_path: Path, origin: Origin, held: asyncio.Event
) -> None:
    """POST in flight; SIGTERM; the grace is over: the client is told 502 upstream-lost, the exit code is 0, and
    after a start the duplicate is 409 in-doubt at once: the doubt was written down."""
    async with stand("sqlite", tmp_path, origin, top="grace: 200ms") as here:
        with closing(await Client.connect(here.gate.port)) as client:
            await client.send(request(key="k1", body=b'{"amount":1}'))
            await origin.until(1)
            assert await here.gate.terminate() == 0
            answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (502, "upstream-lost", "in-doubt")
        assert here.log()[-1]["message"] == "stopped: everything in flight was answered and settled"
        await here.gate.start()
        assert (await here.ask("k1")).problem == "in-doubt"
        assert origin.effects == {b"k1": 1}


async def test_a_second_signal_ends_it_at_once(tmp_path: Path, origin: Origin, held: asyncio.Event) -> None:
    """POST in flight; SIGTERM; SIGTERM again: it ends at once, not with 0, and the claim is still trusted."""
    async with stand("sqlite", tmp_path, origin, policy="wait: 0s") as here:
        with closing(await Client.connect(here.gate.port)) as client:
            await client.send(request(key="k1", body=b'{"amount":1}'))
            await origin.until(1)
            assert here.gate.process is not None
            here.gate.process.send_signal(signal.SIGTERM)
            await eventually(lambda: _refused(here.gate.port), bool)
            assert here.gate.process.poll() is None
            assert await here.gate.terminate(seconds=3) == 1
            assert await client.ended()
        await here.gate.start()
        assert (await here.ask("k1")).problem == "in-flight"
        assert origin.effects == {b"k1": 1}

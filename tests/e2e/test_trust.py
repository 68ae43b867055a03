"""What clients and operators see of a store that is not trusted: 503 by the right name, why on the admin listener, and
never a second effect or another's answer. One Redis, gates before one origin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.crowd import admin, eventually
from tests.harness import Origin, Response, RunningGate, ask, configuration, gate
from tests.servers import RedisServer, free_port
from tests.test_cli import Process

IN_TIME = 2.0


def text(origin: Origin, redis: RedisServer, **how: str) -> str:
    return configuration(origin.url, store=redis.url, service="shop", **how)  # type: ignore[arg-type]


async def posted(port: int, path: str) -> tuple[int, bytes]:
    answer = await ask(port, "POST", path, body=b"", host="127.0.0.1")
    return answer.status, answer.body


def configured(redis: RedisServer, **settings: str) -> None:
    with redis.client() as client:
        for name, value in settings.items():
            client.config_set(name.replace("_", "-"), value)


def alarms(running: RunningGate) -> list[object]:
    return [line["finding"] for line in running.lines if line["level"] == "alarm"]


@asynccontextmanager
async def process(folder: Path, file: str, *flags: str) -> AsyncIterator[tuple[int, int]]:
    """The command on a configuration; its port and its admin's."""
    folder.mkdir()
    (folder / "gate.yaml").write_text(file)
    port, admin_port = free_port(), free_port()
    here = Process(
        folder, "run", "--config", "gate.yaml", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin_port}",
        *flags,
    )  # fmt: skip
    try:
        await eventually(lambda: _live(admin_port), bool)  # one that refuses guarded requests is not ready yet
        yield port, admin_port
    finally:
        here.close()


async def _live(admin_port: int) -> bool:
    try:
        return (await admin(admin_port, "/live"))[0] == 200
    except ConnectionError:
        return False


# ── How it is run ─────────────────────────────────────────────────────────────────────────────────


async def test_a_redis_that_evicts_is_named_everywhere(origin: Origin, redis: RedisServer) -> None:
    """503 store-unavailable and nothing forwarded; /ready (such a store was not good yet) and /ready/guarded say by
    which name and what to change; the metric and one alarm say the same; mended, all of it is gone."""
    configured(redis, maxmemory="64mb", maxmemory_policy="volatile-lru")
    async with gate(text(origin, redis, policy="store_wait: 0s")) as running:
        refused = await ask(running.port, key="k1")
        assert (refused.status, refused.problem) == (503, "store-unavailable")
        assert (await ask(running.port, "GET", body=b"")).status == 201
        assert len(origin.requests) == 1
        assert (await admin(running.admin_port, "/ready"))[0] == 503
        status, told = await admin(running.admin_port, "/ready/guarded")
        assert status == 503
        assert told["reason"].startswith("store-unavailable: evicts: at its limit of ")
        assert "CONFIG SET maxmemory-policy noeviction" in told["reason"]
        assert list(told["findings"]) == ["evicts"]
        assert running.count("oncegate_store_finding", name="evicts") == 1
        configured(redis, maxmemory_policy="noeviction")
        assert (await eventually(lambda: ask(running.port, key="k1"), lambda seen: seen.status == 201, IN_TIME)).label
        assert await admin(running.admin_port, "/ready/guarded") == (200, {"status": "ready"})
        assert (await admin(running.admin_port, "/ready"))[0] == 200
        assert running.count("oncegate_store_finding", name="evicts") == 0
        assert alarms(running) == ["evicts"]
    assert origin.effects[b"k1"] == 1


# ── Whether the keys are still there ──────────────────────────────────────────────────────────────


async def test_a_store_that_forgot_waits_for_somebody_who_looks(origin: Origin, redis: RedisServer) -> None:
    """on_amnesia: refuse. After FLUSHALL the retry of what has run is 503, not a second effect; POST /store/accept,
    and it is the operator's word that it runs again."""
    async with gate(text(origin, redis, top="on_amnesia: refuse", policy="store_wait: 0s")) as running:
        assert (await ask(running.port, key="k1")).label == "stored"
        assert await posted(running.admin_port, "/store/accept") == (200, b'{"accepted": false}')
        with redis.client() as client:
            client.flushall()
        await eventually(
            lambda: admin(running.admin_port, "/ready/guarded"),
            lambda seen: seen[0] == 503 and "amnesia: og:marker:shop: vanished" in seen[1]["reason"],
            IN_TIME,
        )
        assert (await ask(running.port, key="k1")).problem == "store-unavailable"
        assert origin.effects[b"k1"] == 1
        assert await posted(running.admin_port, "/store/accept") == (200, b'{"accepted": true}')
        assert (await ask(running.port, key="k1")).label == "stored"
        assert alarms(running) == ["amnesia"]


async def test_by_default_a_store_that_forgot_is_an_alarm(origin: Origin, redis: RedisServer) -> None:
    """on_amnesia: warn. Alarm and metric within two seconds; it is served; the finding stands until it is accepted."""
    async with gate(text(origin, redis)) as running:
        with redis.client() as client:
            client.flushall()

        async def found() -> float:
            return running.count("oncegate_store_finding", name="amnesia")

        await eventually(found, bool, IN_TIME)
        assert (await ask(running.port, key="k1")).label == "stored"
        status, told = await admin(running.admin_port, "/ready/guarded")
        assert (status, list(told["findings"])) == (200, ["amnesia"])
        assert await posted(running.admin_port, "/store/accept") == (200, b'{"accepted": true}')
        assert await found() == 0
        assert alarms(running) == ["amnesia"]


# ── Whose keys they are ───────────────────────────────────────────────────────────────────────────

SAME = {
    "the same": {},
    "other route names": {"routes": "  - {name: extra, match: {path: /extra/**}, upstream: origin}"},
    "other windows and timeouts": {"policy": "window: 1h, wait: 1s, on_doubt: rerun", "upstream": "timeout: 5s"},
    "another fingerprint": {"policy": "fingerprint: {headers: [X-Currency]}, bind: [header:X-Account]"},
}
OTHER = {
    "another secret": {"top": "secret: sesame"},
    "another namespace": {"policy": "namespace: pay"},
    "another scope": {"policy": "scope: [header:X-Tenant-Id]"},
    "another key": {"policy": "key: {from: header:X-Request-Id}"},
}


@pytest.mark.parametrize("how", SAME.values(), ids=SAME)
async def test_a_configuration_of_the_same_keys_is_served(
    origin: Origin, redis: RedisServer, how: dict[str, str]
) -> None:
    """Names, order, windows, timeouts and fingerprints may differ between two gates on one store: what the one ran the
    other replays, or refuses as policy-changed, and runs nothing."""
    async with gate(text(origin, redis)) as first, gate(text(origin, redis, **how)) as second:
        assert (await ask(first.port, key="k1")).label == "stored"
        again = await ask(second.port, key="k1")
        assert again.label == "replayed" or again.problem == "policy-changed"
        assert origin.effects[b"k1"] == 1


@pytest.mark.parametrize("policy", ["store_wait: 0s", "store_down: forward"])
@pytest.mark.parametrize("how", OTHER.values(), ids=OTHER)
async def test_a_configuration_of_other_keys_is_refused(
    origin: Origin, redis: RedisServer, how: dict[str, str], policy: str
) -> None:
    """Another secret, namespace, scope or key: 503 identity-changed, whatever store_down says, and nothing runs: not
    what the first gate ran, nor anything new. What differs stands on /ready/guarded."""
    how = {**how, "policy": ", ".join(filter(None, (policy, how.get("policy", ""))))}
    fields = [("X-Tenant-Id", "t1"), ("X-Request-Id", "r1")]
    async with gate(text(origin, redis)) as first, gate(text(origin, redis, **how)) as second:
        assert (await ask(first.port, key="k1", fields=fields)).label == "stored"
        for key in ("k1", "k2"):
            refused = await ask(second.port, key=key, fields=fields)
            assert (refused.status, refused.problem, refused.label) == (503, "identity-changed", "refused")
            assert refused.get("Idempotency-Outcome") == "no-effect"
        assert len(origin.requests) == 1
        status, told = await admin(second.admin_port, "/ready/guarded")
        assert status == 503
        assert told["reason"].startswith("identity-changed: og:marker:shop: was written by gates of another ")
        assert "sesame" not in told["reason"]
        assert alarms(second) == ["identity-changed"]
        assert (await ask(first.port, key="k1", fields=fields)).label == "replayed"


async def test_a_store_that_is_away_does_not_make_other_keys_good(origin: Origin, redis: RedisServer) -> None:
    """store_down: forward, and the store whose marker was another's goes away: still identity-changed, and not run."""
    other = text(origin, redis, policy="store_down: forward, store_wait: 0s, namespace: pay")
    async with gate(text(origin, redis)), gate(other) as second:
        redis.kill()
        for key in ("k1", "k2"):
            assert (await ask(second.port, key=key)).problem == "identity-changed"
    assert origin.requests == []


async def test_accepting_new_keys_turns_the_others_away(origin: Origin, redis: RedisServer, tmp_path: Path) -> None:
    """Two configurations under a stream of requests, each sent twice to one gate. The second is refused; started with
    --accept-new-keys it serves, and within two seconds the first is refused. Every answer is a key's own or 503
    identity-changed; no key runs twice."""
    first_text = text(origin, redis)
    second_text = text(origin, redis, policy="namespace: pay")
    answers: list[tuple[str, Response]] = []
    stop = asyncio.Event()

    async def stream(name: str, port: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            key = f"{name}-{count}"
            answers.extend([(key, await ask(port, key=key)) for _ in range(2)])

    async def problem(port: int) -> str | None:
        return (await ask(port, key="probe")).problem

    async with process(tmp_path / "first", first_text) as (first, first_admin):
        async with process(tmp_path / "second", second_text) as (second, _):
            assert await problem(second) == "identity-changed"
        streams = [asyncio.create_task(stream("first", first))]
        async with process(tmp_path / "again", second_text, "--accept-new-keys") as (second, _):
            streams.append(asyncio.create_task(stream("second", second)))
            await eventually(lambda: problem(first), lambda seen: seen == "identity-changed", IN_TIME)
            assert (await admin(first_admin, "/ready/guarded"))[0] == 503
            assert await problem(second) is None
            await asyncio.sleep(1)
            stop.set()
            await asyncio.gather(*streams)
    assert len(answers) > 50
    for key, answer in answers:
        own = answer.status == 201 and answer.body == b'{"id":"%b"}' % key.encode()
        assert own or answer.problem == "identity-changed", (key, answer)
    assert {answer.label for key, answer in answers if key.startswith("second")} == {"stored", "replayed"}
    assert max(count for key, count in origin.effects.items() if key != b"probe") == 1

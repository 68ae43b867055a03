"""Fifty at once, for each of two hundred keys: one effect, one answer, and everybody has it."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tests.e2e.crowd import Caller, callers
from tests.harness import Exchange, Origin, Response, configuration, gate, request
from tests.servers import RedisServer, binaries

KEYS = 200
DUPLICATES = 50
#: Keys whose storms rage at the same time.
LANES = 8

OWN = {b"idempotent-replayed", b"idempotency-status", b"idempotency-first-seen", b"idempotency-expires"}
NOT_REPLAYED = {b"date", b"set-cookie", b"content-length", *OWN}


async def a_distinct_answer(exchange: Exchange) -> None:
    """Takes a moment, and never says the same twice: who has these bytes has them from this one run."""
    await asyncio.sleep(0.005)
    await exchange.respond(
        201,
        os.urandom(700),
        [
            (b"Content-Type", b"application/octet-stream"),
            (b"X-Twice", b"one"),
            (b"Link", b"</a>; rel=next"),
            (b"X-Twice", b"two, three"),
            (b"Set-Cookie", b"session=%b" % os.urandom(4).hex().encode()),
            (b"x-lOwEr", b"\xc3\xa9\xff"),
        ],
    )


async def storm(*ports: int) -> dict[str, list[Response]]:
    """Every key from all connections at the same moment, a few keys side by side."""
    answers: dict[str, list[Response]] = {}

    async def lane(n: int, keys: Sequence[str]) -> None:
        # Every other lane begins at the other gate, so that both come first for some keys.
        async with callers(DUPLICATES, *(ports if n % 2 else ports[::-1])) as crowd:
            for key in keys:
                answers[key] = await at_once(crowd, key)

    keys = [f"storm-{n:03}" for n in range(KEYS)]
    async with asyncio.timeout(120):
        await asyncio.gather(*(lane(n, keys[n::LANES]) for n in range(LANES)))
    return answers


async def at_once(crowd: Sequence[Caller], key: str) -> list[Response]:
    data = request(key=key, body=b'{"amount":100}', fields=[("Content-Type", "application/json")])
    return list(await asyncio.gather(*[caller.send(data) for caller in crowd]))


def end_to_end(response: Response) -> list[tuple[bytes, bytes]]:
    """The fields that a replay must carry, in their order and spelling."""
    return [field for field in response.fields if field[0].lower() not in NOT_REPLAYED]


def assert_one_effect_and_one_answer(origin: Origin, answers: dict[str, list[Response]]) -> None:
    assert len(answers) == KEYS
    assert origin.effects == Counter({key.encode(): 1 for key in answers})
    bodies = set()
    for key, responses in answers.items():
        assert len(responses) == DUPLICATES
        assert {response.status for response in responses} == {201}, key
        assert len({response.body for response in responses}) == 1, key
        first, *others = sorted(responses, key=lambda response: response.replayed)
        assert (first.replayed, first.label) == (False, "stored"), key
        assert {(other.replayed, other.label) for other in others} == {(True, "replayed")}, key
        assert len(first.values("Set-Cookie")) == 1
        assert first.values("X-Twice") == ["one", "two, three"]
        for other in others:
            assert end_to_end(other) == end_to_end(first), key
            assert other.values("Set-Cookie") == []
        bodies.add(first.body)
    assert len(bodies) == KEYS, "two keys were given one answer"


@pytest.mark.usefixtures("patient_stores")
@pytest.mark.parametrize("kind", ["memory", "sqlite", *binaries()])
async def test_fifty_at_once_have_one_effect(kind: str, origin: Origin, store_url: Callable[[str], str]) -> None:
    """50 duplicates at once for each of 200 keys: one effect per key at the origin; one status, byte-equal
    bodies and the same fields for all; all but the first say Idempotent-Replayed."""
    origin.answer = a_distinct_answer
    async with gate(configuration(origin.url, store=store_url(kind))) as running:
        answers = await storm(running.port)
        assert_one_effect_and_one_answer(origin, answers)
        caught = [
            running.count("oncegate_duplicates_total", route="all", kind=kind) for kind in ("attached", "replayed")
        ]
        assert sum(caught) == KEYS * (DUPLICATES - 1)
        assert caught[0] > 0, "nobody met an exchange in flight: that was no storm"
        assert running.count("oncegate_settlements_total", route="all", settlement="keep", reason="answered") == KEYS


@pytest.mark.usefixtures("patient_stores")
async def test_two_gates_on_one_redis_have_one_effect(origin: Origin, redis: RedisServer) -> None:
    """The same storm, half of it through each of two gates that share a Redis: still one effect per key."""
    origin.answer = a_distinct_answer
    async with (
        gate(configuration(origin.url, store=redis.url)) as one,
        gate(configuration(origin.url, store=redis.url)) as other,
    ):
        answers = await storm(one.port, other.port)
        assert_one_effect_and_one_answer(origin, answers)
        forwarded = [
            running.count("oncegate_requests_total", route="all", verdict="forward") for running in (one, other)
        ]
        assert sum(forwarded) == KEYS
        assert min(forwarded) > 0, "each gate was to win some keys, and lose some"

"""Two gates in a row, as behind a shared ingress: the front one settles as the back one did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.crowd import admin, eventually
from tests.harness import Exchange, Origin, Response, RunningGate, ask, configuration, gate
from tests.servers import RedisServer


@pytest.mark.parametrize(
    ("status", "declared", "back_policy"),
    [
        (500, b"unknown", ""),
        (422, b"unknown", ""),
        (418, b"", "hold: [418]"),
        (503, b"", ""),
        (799, b"", ""),
    ],
)
async def test_a_doubt_is_passed_on(origin: Origin, status: int, declared: bytes, back_policy: str) -> None:
    """What the back gate holds, the front gate holds: a retry is told 409 at the front, and runs nothing."""

    async def answer(exchange: Exchange) -> None:
        await exchange.respond(status, fields=[(b"Idempotency-Outcome", declared)] if declared else [])

    origin.answer = answer
    async with (
        gate(configuration(origin.url, policy=back_policy)) as back,
        gate(configuration(f"http://127.0.0.1:{back.port}")) as front,
    ):
        first = await ask(front.port, key="k")
        assert (first.status, first.label, first.values("Idempotency-Outcome")) == (status, "in-doubt", ["unknown"])
        again = await ask(front.port, key="k")
        assert (again.status, again.problem) == (409, "in-doubt")
    assert origin.effects[b"k"] == 1


@pytest.mark.parametrize(
    ("status", "declared", "back_policy"),
    [
        (500, b"no-effect", ""),
        (418, b"", "release: [418]"),
        (429, b"", ""),
    ],
)
async def test_a_release_is_passed_on(origin: Origin, status: int, declared: bytes, back_policy: str) -> None:
    """What the back gate frees, the front gate frees: a retry reaches the service, and its answer is stored by both."""
    left = 1

    async def answer(exchange: Exchange) -> None:
        nonlocal left
        if left:
            left -= 1
            await exchange.respond(status, fields=[(b"Idempotency-Outcome", declared)] if declared else [])
        else:
            await exchange.respond(201)

    origin.answer = answer
    async with (
        gate(configuration(origin.url, policy=back_policy)) as back,
        gate(configuration(f"http://127.0.0.1:{back.port}")) as front,
    ):
        first = await ask(front.port, key="k")
        assert (first.status, first.label, first.values("Idempotency-Outcome")) == (status, "released", ["no-effect"])
        again = await ask(front.port, key="k")
        assert (again.status, again.label, again.values("Idempotency-Outcome")) == (201, "stored", [])
    assert origin.effects[b"k"] == 2


@pytest.mark.parametrize(
    ("status", "declared", "back_policy"),
    [
        (503, b"keep", ""),
        (429, b"keep", ""),
        (799, b"keep", ""),
        (404, b"keep", ""),
        (503, b"", "keep: [503]"),
        (401, b"", "keep: [401]"),
    ],
)
async def test_an_answer_that_is_kept_against_its_status_is_passed_on(
    origin: Origin, status: int, declared: bytes, back_policy: str
) -> None:
    """What the back gateway stores, the front one stores, also from a replay: its own `release` and the meaning of the
    status do not count against what is known at the back."""
    fields = [(b"Idempotency-Outcome", declared)] if declared else []
    origin.answer = lambda exchange: exchange.respond(status, fields=fields)
    async with (
        gate(configuration(origin.url, policy=back_policy)) as back,
        gate(configuration(f"http://127.0.0.1:{back.port}", policy="release: [404]")) as front,
        gate(configuration(f"http://127.0.0.1:{back.port}", policy="release: [404]")) as later,
    ):
        for running, label in ((front, "stored"), (front, "replayed"), (later, "stored"), (later, "replayed")):
            answer = await ask(running.port, key="k")
            assert (answer.status, answer.label, answer.values("Idempotency-Outcome")) == (status, label, ["keep"])
    assert origin.effects[b"k"] == 1


async def test_an_ordinary_answer_carries_no_outcome(origin: Origin) -> None:
    """A gateway in front reads its status as this one does."""
    async with gate(configuration(origin.url)) as running:
        for label in ("stored", "replayed"):
            answer = await ask(running.port, key="k")
            assert (answer.status, answer.label, answer.values("Idempotency-Outcome")) == (201, label, [])


# ── The back gateway's store does not confirm its settlement ──────────────────────────────────────


class Unconfirmed:
    """A gateway before a gateway. The back one has claimed the key, its request is at the service, and its Redis is
    gone."""

    def __init__(self, origin: Origin, front: RunningGate, back: RunningGate, redis: RedisServer) -> None:
        self.origin = origin
        self.front = front
        self.back = back
        self._redis = redis

    async def back_again(self) -> None:
        """Start the store, and wait until the back gateway has settled."""
        await asyncio.to_thread(self._redis.start)
        await eventually(self._unsettled, lambda count: count == 0)

    async def _unsettled(self) -> int:
        return len(self.back.app.settler)


@asynccontextmanager
async def unconfirmed(
    origin: Origin, redis: RedisServer, status: int, declared: bytes
) -> AsyncIterator[tuple[Unconfirmed, list[Response]]]:
    """Gives what a client of the front gateway and a client of the back one, that waited there, were answered. The
    service answers so once, and then 201."""
    answers = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if len(origin.requests) > 1:
            await exchange.respond(201)
            return
        await answers.wait()
        await exchange.respond(status, fields=[(b"Idempotency-Outcome", declared)] if declared else [])

    origin.answer = answer
    async with (
        gate(configuration(origin.url, store=redis.url, policy="store_wait: 0s")) as back,
        gate(configuration(f"http://127.0.0.1:{back.port}")) as front,
    ):
        chain = Unconfirmed(origin, front, back, redis)

        async def ready() -> int:
            return (await admin(back.admin_port, "/ready/guarded"))[0]

        await eventually(ready, lambda status: status == 200)
        first = asyncio.create_task(ask(front.port, key="k"))
        await origin.until(1)
        waiter = asyncio.create_task(ask(back.port, key="k"))

        async def waiting() -> int:
            return int(back.count("oncegate_waiters", route="all"))

        await eventually(waiting, lambda count: count == 1)
        redis.kill()
        await eventually(ready, lambda status: status == 503)
        answers.set()
        yield chain, [await first, await waiter]


@pytest.mark.parametrize(("status", "declared"), [(500, b"no-effect"), (200, b"no-effect"), (429, b"")])
async def test_an_unconfirmed_release_is_passed_on(
    origin: Origin, redis: RedisServer, status: int, declared: bytes
) -> None:
    """Nothing ran, and every client hears so: of the front gateway, of the back one, and that joins later. The front
    one keeps nothing, so once the store is back the request runs."""
    async with unconfirmed(origin, redis, status, declared) as (chain, answers):
        answers += [await ask(chain.front.port, key="k"), await ask(chain.back.port, key="k")]
        for answer in answers:
            outcome = answer.values("Idempotency-Outcome")
            assert (answer.status, answer.label, outcome) == (status, "released", ["no-effect"])
        assert len(origin.requests) == 1
        await chain.back_again()
        again = await ask(chain.front.port, key="k")
        assert (again.status, again.label) == (201, "stored")
        assert (await ask(chain.front.port, key="k")).label == "replayed"
    assert len(origin.requests) == 2


@pytest.mark.parametrize(("status", "declared"), [(500, b"unknown"), (503, b""), (799, b"")])
async def test_an_unconfirmed_hold_is_passed_on(
    origin: Origin, redis: RedisServer, status: int, declared: bytes
) -> None:
    """The outcome is unknown, at both gateways, to every client, before and after the store is back."""
    async with unconfirmed(origin, redis, status, declared) as (chain, (first, waiter)):
        assert (first.status, first.label, first.values("Idempotency-Outcome")) == (status, "in-doubt", ["unknown"])
        doubts = [waiter, await ask(chain.front.port, key="k"), await ask(chain.back.port, key="k")]
        await chain.back_again()
        doubts += [await ask(chain.front.port, key="k"), await ask(chain.back.port, key="k")]
        for answer in doubts:
            outcome = answer.values("Idempotency-Outcome")
            assert (answer.status, answer.problem, outcome) == (409, "in-doubt", ["unknown"])
    assert len(origin.requests) == 1


@pytest.mark.parametrize(("status", "declared"), [(201, b""), (500, b""), (503, b"keep"), (429, b"keep")])
async def test_an_unconfirmed_answer_is_passed_on(
    origin: Origin, redis: RedisServer, status: int, declared: bytes
) -> None:
    """It ran: the front gateway stores the answer, and the back one gives it until its store has it, and then."""
    async with unconfirmed(origin, redis, status, declared) as (chain, (first, waiter)):
        outcome = ["keep"] if declared else []
        assert (first.label, waiter.label) == ("stored", "not-stored")
        later = await ask(chain.back.port, key="k")
        assert later.label == "not-stored"
        front = await ask(chain.front.port, key="k")
        assert front.label == "replayed"
        await chain.back_again()
        replay = await ask(chain.back.port, key="k")
        assert replay.label == "replayed"
        for answer in (first, waiter, later, front, replay):
            assert (answer.status, answer.values("Idempotency-Outcome")) == (status, outcome)
    assert len(origin.requests) == 1

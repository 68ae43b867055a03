"""Two gates in a row, as behind a shared ingress: the front one settles as the back one did."""

from __future__ import annotations

import pytest

from tests.harness import Exchange, Origin, ask, configuration, gate


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

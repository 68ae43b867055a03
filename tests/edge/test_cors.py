"""`cors`: what a browser lets the page of another origin read of the gate."""

from __future__ import annotations

import pytest

from tests.edge.stand import edge
from tests.harness import Exchange, Origin, Response, ask, configuration

SHOP = "https://shop.example"
NAMED = f"cors: {{origins: [{SHOP}, 'http://localhost:3000']}}"
ANYBODY = "cors: {origins: ['*']}"
OWN = {
    "Idempotency-Status", "Idempotent-Replayed", "Idempotency-Expires", "Idempotency-First-Seen",
    "Idempotency-Outcome",
}  # fmt: skip


def exposed(answer: Response) -> set[str]:
    return {name.strip() for value in answer.values("Access-Control-Expose-Headers") for name in value.split(",")}


def cors_of(answer: Response) -> dict[str, list[str]]:
    names = ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Vary")
    return {name: values for name in names if (values := answer.values(name))}


ALLOWED = {"Access-Control-Allow-Credentials": ["true"], "Vary": ["Origin"]}


@pytest.mark.parametrize(
    ("top", "origin_of_page", "expected"),
    [
        (NAMED, SHOP, {"Access-Control-Allow-Origin": [SHOP], **ALLOWED}),
        (NAMED, "http://localhost:3000", {"Access-Control-Allow-Origin": ["http://localhost:3000"], **ALLOWED}),
        (NAMED, "https://evil.example", {"Vary": ["Origin"]}),
        (NAMED, "https://shop.example.evil.example", {"Vary": ["Origin"]}),
        (NAMED, "http://shop.example", {"Vary": ["Origin"]}),
        (NAMED, "null", {"Vary": ["Origin"]}),
        (NAMED, None, {"Vary": ["Origin"]}),
        (ANYBODY, "https://evil.example", {"Access-Control-Allow-Origin": ["*"]}),
        (ANYBODY, None, {}),
        ("", SHOP, {}),
    ],
)
@pytest.mark.parametrize("refused_by", ["the head", "the exchange", "the tunnel"])
async def test_a_problem_is_for_the_pages_that_are_named(
    origin: Origin, top: str, origin_of_page: str | None, expected: dict[str, list[str]], refused_by: str
) -> None:
    """Wherever it comes from. One that is named may have sent credentials; `*` is told without; a cache is told that
    the answer is not for every page."""
    fields = [("Origin", origin_of_page)] if origin_of_page is not None else []
    async with edge(configuration(origin.url, top=top)) as gate:
        if refused_by == "the head":
            answer = await ask(gate.port, key='"', fields=fields)
        elif refused_by == "the exchange":
            await ask(gate.port, key="k", body=b"one")
            answer = await ask(gate.port, key="k", body=b"two", fields=fields)
        else:
            await origin.stop()
            answer = await ask(gate.port, target="/open/x", fields=fields)
        assert answer.problem in ("key-invalid", "key-reused", "upstream-unreachable")
        assert cors_of(answer) == expected
        readable = "Access-Control-Allow-Origin" in expected
        assert exposed(answer) == (
            {*OWN, "Retry-After", "X-Request-Id", "X-Should-Retry", "Stripe-Should-Retry"} if readable else set()
        )


@pytest.mark.parametrize("allows", [True, False], ids=["allows", "does not"])
@pytest.mark.parametrize("kind", ["first", "replayed", "tombstone", "passing"])
async def test_an_answer_of_the_service_exposes_the_gates_fields_where_it_may_be_read(
    origin: Origin, allows: bool, kind: str
) -> None:
    """Only where the service itself lets the page read it: then one line is added, and what the service said stays."""
    said = [("Access-Control-Allow-Origin", "https://other.example"), ("Access-Control-Expose-Headers", "X-Total")]

    async def answer(exchange: Exchange) -> None:
        body = b"x" * 2000 if kind == "tombstone" else b"ok"
        fields = [(name.encode(), value.encode()) for name, value in said] if allows else []
        await exchange.respond(200, body, fields)

    origin.answer = answer
    async with edge(configuration(origin.url, policy="max_response: 1KiB", top=NAMED)) as gate:
        target = "/open/x" if kind == "passing" else "/orders"
        for _ in range(2 if kind == "replayed" else 1):
            read = await ask(gate.port, target=target, key="k", fields=[("Origin", SHOP)])
        assert (read.status, read.replayed) == (200, kind == "replayed")
        assert exposed(read) == ({*OWN, "X-Total"} if allows else set())
        assert cors_of(read) == ({"Access-Control-Allow-Origin": ["https://other.example"]} if allows else {})
        assert read.values("Connection") == []


@pytest.mark.parametrize(("top", "page"), [(NAMED, None), ("", SHOP)], ids=["no page asks", "cors is not set"])
@pytest.mark.parametrize("target", ["/open/x", "/orders"])
async def test_else_an_answer_stays_as_it_is(origin: Origin, top: str, page: str | None, target: str) -> None:
    """Byte for byte."""

    async def answer(exchange: Exchange) -> None:
        await exchange.respond(200, b"ok", [(b"Access-Control-Allow-Origin", b"*")])

    origin.answer = answer
    async with edge(configuration(origin.url, top=top)) as gate:
        for _ in range(2):
            read = await ask(gate.port, target=target, key="k", fields=[("Origin", page)] if page else [])
            assert read.values("Access-Control-Expose-Headers") == []


@pytest.mark.parametrize("target", ["/open/x", "/orders"])
async def test_a_preflight_is_the_services_to_answer(origin: Origin, target: str) -> None:
    """It passes as it came, and so does the answer."""
    said = [(b"Access-Control-Allow-Origin", SHOP.encode()), (b"Access-Control-Allow-Methods", b"POST")]

    async def answer(exchange: Exchange) -> None:
        await exchange.respond(204, b"", said)

    origin.answer = answer
    asked = [("Origin", SHOP), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "x")]
    async with edge(configuration(origin.url, top=NAMED)) as gate:
        read = await ask(gate.port, "OPTIONS", target, fields=asked, body=b"")
        assert (read.status, read.fields) == (204, said)
        (received,) = origin.requests
        assert [received.values(name.lower().encode()) for name, _ in asked] == [[v.encode()] for _, v in asked]

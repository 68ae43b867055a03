"""Whose answer is it? One key, and a second request that differs from the first in one thing, or in two.

Every thing by which requests can differ, and every pair of them, on one Redis: only the request that is
equal in all of them is given the first one's answer.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from tests.harness import Exchange, Origin, Response, RunningGate, ask, configuration, gate
from tests.servers import RedisServer


@dataclass(frozen=True)
class Asked:
    """A request, and the gate to which it goes."""

    service: str = "shop"
    namespace: str = "default"
    method: str = "POST"
    host: str = "shop.example"
    target: str = "/charges?currency=eur"
    body: bytes = b'{"amount":100,"to":"alice"}'
    content_type: str | None = "application/json"
    content_encoding: str | None = None
    authorization: str | None = "Bearer token-of-alice"
    api_key: str | None = "sk_alice"
    cookie: str | None = None
    account: str | None = "acct_alice"
    tenant: str | None = "tenant_a"

    @property
    def fields(self) -> list[tuple[str, str]]:
        return [
            (name, value)
            for name, value in (
                ("Content-Type", self.content_type),
                ("Content-Encoding", self.content_encoding),
                ("Authorization", self.authorization),
                ("X-API-Key", self.api_key),
                ("Cookie", self.cookie),
                ("Stripe-Account", self.account),
                ("X-Tenant-Id", self.tenant),
            )
            if value is not None
        ]


#: By what a second request differs from the first: what it changes, and what it is then.
OWN = "a run of its own"
OTHER = "other credentials"
CHANGES: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "service": ({"service": "bank"}, OWN),
    "namespace": ({"namespace": "refunds"}, OWN),
    "scope": ({"tenant": "tenant_b"}, OWN),
    "authorization": ({"authorization": "Bearer token-of-mallory"}, OTHER),
    "no authorization": ({"authorization": None}, OTHER),
    "api key": ({"api_key": "sk_mallory"}, OTHER),
    "account": ({"account": "acct_mallory"}, OTHER),
    "no account": ({"account": None}, OTHER),
    "method": ({"method": "PATCH"}, "method"),
    "host": ({"host": "evil.example"}, "host"),
    "port": ({"host": "shop.example:8443"}, "host"),
    "target": ({"target": "/charges?currency=usd"}, "target"),
    "spelling": ({"target": "/charge%73?currency=eur"}, "target"),
    "content type": ({"content_type": "application/x-www-form-urlencoded"}, "content-type"),
    "no content type": ({"content_type": None}, "content-type"),
    "content encoding": ({"content_encoding": "gzip"}, "content-encoding"),
    "body": ({"body": b'{"amount":999,"to":"alice"}'}, "body"),
    "longer body": ({"body": b'{"amount":100,"to":"alice"} '}, "body"),
}
#: What is no difference: a client's library, or a proxy on the way, writes it one way or the other.
SAME: dict[str, dict[str, str | bytes | None]] = {
    "all equal": {},
    "host in capitals": {"host": "SHOP.example"},
    "content type with white space": {"content_type": "application/json  "},
    # A session cookie rotates; with another credential there it does not say who asks.
    "a cookie beside credentials": {"cookie": "theme=dark"},
}
#: Values of either side that no refusal may tell.
VALUES = [
    "alice", "mallory", "tenant_", "acct_", "sk_", "eur", "usd", "evil", "shop.example", "x-www-form", "gzip", "999",
]  # fmt: skip
PAIRS = [
    pair
    for pair in itertools.combinations(CHANGES, 2)
    # Two values of one thing are no pair.
    if not CHANGES[pair[0]][0].keys() & CHANGES[pair[1]][0].keys()
]


class World:
    """A gate for each service and namespace, all on one Redis, before one origin that never says the same twice."""

    def __init__(self, gates: dict[tuple[str, str], RunningGate], origin: Origin) -> None:
        self.gates = gates
        self.origin = origin
        self.runs = 0
        origin.answer = self.answer

    async def answer(self, exchange: Exchange) -> None:
        self.runs += 1
        await exchange.respond(201, b'{"run":%d,"secret":"of alice"}' % self.runs)

    async def ask(self, key: str, asked: Asked) -> Response:
        return await ask(
            self.gates[asked.service, asked.namespace].port,
            asked.method,
            asked.target,
            key=key,
            body=asked.body,
            host=asked.host,
            fields=asked.fields,
        )


@pytest.fixture
async def world(origin: Origin, redis: RedisServer) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        gates = {
            (service, namespace): await stack.enter_async_context(
                gate(
                    configuration(
                        origin.url,
                        store=redis.url,
                        service=service,
                        policy=f"namespace: {namespace}, scope: [header:X-Tenant-Id], "
                        "bind: [default, header:Stripe-Account]",
                        # Both know both namespaces, or one of them would be refused as identity-changed.
                        routes="\n".join(
                            f"  - {{name: {each}, match: {{path: /unused/{each}/**}}, upstream: origin, "
                            f"namespace: {each}, scope: [header:X-Tenant-Id]}}"
                            for each in ("default", "refunds")
                        ),
                    )
                )
            )
            for service in ("shop", "bank")
            for namespace in ("default", "refunds")
        }
        yield World(gates, origin)


async def assert_each_has_its_own(world: World, key: str, second: Asked, changes: Sequence[str]) -> None:
    """First → 201. Second → what its changes make of it. First again → its own answer, replayed."""
    first = Asked()
    answer = await world.ask(key, first)
    assert (answer.status, answer.label) == (201, "stored")
    runs = world.runs
    other = await world.ask(key, second)
    kinds = [CHANGES[change][1] for change in changes]
    if OWN in kinds:
        assert (other.status, other.label, other.replayed) == (201, "stored", False)
        assert other.body != answer.body
        assert world.runs == runs + 1
        again = await world.ask(key, second)
        assert (again.body, again.replayed) == (other.body, True)
    else:
        assert world.runs == runs, "it was run a second time"
        assert (other.status, other.label) == (422, "refused")
        document = json.loads(other.body)
        del document["request_id"]  # random: it may look like anything
        for value in VALUES:
            assert value not in json.dumps(document), "a refusal tells a value"
        if OTHER in kinds:
            assert other.problem == "credentials-differ"
            assert document["detail"].startswith("The first request may have taken effect.")
            for name in ("authorization", "api", "cookie", "account", "tenant", "header", "token"):
                assert name not in document["detail"].lower()
        else:
            assert other.problem == "key-reused"
            order = ["method", "host", "target", "content-type", "content-encoding", "body"]
            named = ", ".join(sorted(set(kinds), key=order.index))
            assert document["detail"].startswith(f"Different: {named}. ")
    again = await world.ask(key, first)
    assert (again.status, again.body, again.replayed) == (201, answer.body, True)


@pytest.mark.parametrize("same", SAME)
async def test_an_equal_request_is_replayed(world: World, same: str) -> None:
    """Equal in everything that counts: the first one's answer, replayed."""
    answer = await world.ask("k", Asked())
    again = await world.ask("k", replace(Asked(), **SAME[same]))  # type: ignore[arg-type]
    assert (again.status, again.body, again.replayed, world.runs) == (201, answer.body, True, 1)


async def test_a_request_that_differs_in_one_thing(world: World) -> None:
    """In service, namespace or scope: a run of its own. In credentials: 422 credentials-differ, naming nothing. In
    anything else: 422 key-reused, naming that one part. In no case the first one's body."""
    for n, change in enumerate(CHANGES):
        await assert_each_has_its_own(world, f"single-{n}", replace(Asked(), **CHANGES[change][0]), [change])  # type: ignore[arg-type]


async def test_a_request_that_differs_in_two_things(world: World) -> None:
    """For every pair: a run of its own where either names another record; else credentials come first; else both
    parts are named."""
    assert len(PAIRS) > 130
    for n, pair in enumerate(PAIRS):
        changed = {name: value for change in pair for name, value in CHANGES[change][0].items()}
        await assert_each_has_its_own(world, f"pair-{n}", replace(Asked(), **changed), pair)  # type: ignore[arg-type]


async def test_a_cookie_is_a_credential_where_it_is_the_only_one(world: World) -> None:
    """A browser has nothing but its cookie: the same one is replayed; another one, none, or one with a token beside
    it is 422 credentials-differ."""
    alice = replace(Asked(), authorization=None, api_key=None, cookie="session=alice")
    answer = await world.ask("k", alice)
    again = await world.ask("k", alice)
    assert (again.body, again.replayed) == (answer.body, True)
    for other in (
        replace(alice, cookie="session=mallory"),
        replace(alice, cookie="session=alice; theme=dark"),
        replace(alice, cookie=None),
        replace(alice, authorization="Bearer token-of-alice"),
        replace(alice, api_key="sk_alice"),
    ):
        refused = await world.ask("k", other)
        assert (refused.status, refused.problem) == (422, "credentials-differ")
    assert world.runs == 1


async def test_a_chain_of_two_services_with_one_key(origin: Origin, redis: RedisServer) -> None:
    """Two gates of two services on one Redis, called in a chain with one propagated key: each has its own record, so
    that neither is given the other's answer, at first and when all is sent again."""
    inner_text = configuration(origin.url, store=redis.url, service="ledger")
    async with gate(inner_text) as inner:
        shop = Origin()

        async def calls_the_ledger(exchange: Exchange) -> None:
            key = exchange.request.key
            assert key is not None
            booked = await ask(inner.port, target="/charges", key=key.decode(), body=exchange.request.body)
            await exchange.respond(201, b'{"shop":%b}' % booked.body)

        shop.answer = calls_the_ledger
        await shop.start()
        try:
            async with gate(configuration(shop.url, store=redis.url, service="shop")) as outer:
                first = await ask(outer.port, target="/charges", key="propagated")
                again = await ask(outer.port, target="/charges", key="propagated")
        finally:
            await shop.stop()
    assert first.body == again.body == b'{"shop":{"id":"propagated"}}'
    assert (first.label, again.label) == ("stored", "replayed")
    assert origin.effects == shop.effects == {b"propagated": 1}

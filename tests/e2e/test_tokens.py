"""Tokens through a real gate: a client whose token is refreshed between two tries, and one that shows another's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import load_text
from tests.harness import (
    Client,
    Exchange,
    GateProcess,
    Origin,
    Response,
    RunningGate,
    ask,
    configuration,
    gate,
    request,
)
from tests.tokens.issuer import EC_KEY, ISSUER, OTHER_RSA, RSA_KEY, jwk, published, token


def bearer(key: Any = EC_KEY, algorithm: str = "ES256", **claims: Any) -> list[tuple[str, str]]:
    """A token of alice, good for an hour from now; no two are alike."""
    now = int(time.time())
    made = token(key, algorithm, **{"exp": now + 3600, "jti": str(time.perf_counter_ns()), **claims})
    return [("Authorization", f"Bearer {made.decode()}")]


class Shop:
    """A gate with three kinds of routes, and its origin."""

    def __init__(self, gate: RunningGate | GateProcess, origin: Origin) -> None:
        self.gate = gate
        self.origin = origin

    async def ask(self, target: str, key: str, fields: list[tuple[str, str]], body: bytes = b"{}") -> Response:
        return await ask(self.gate.port, target=target, key=key, fields=fields, body=body)


def shops(origin: Origin, tmp_path: Path) -> str:
    """Its configuration."""
    keys = tmp_path / "keys.json"
    keys.write_bytes(published(jwk(EC_KEY, kid="e"), jwk(RSA_KEY, kid="r")))
    jwt = f"jwt: {{jwks: {keys}, issuer: '{ISSUER}'}}"
    routes = f"""
  - {{name: bound, match: {{path: /bound}}, upstream: origin}}
  - {{name: scoped, match: {{path: /scoped}}, upstream: origin, namespace: s, scope: [jwt:sub], bind: [], {jwt}}}
  - {{name: both, match: {{path: /both}}, upstream: origin, namespace: b, scope: [jwt:sub, cookie:shop], {jwt}}}
"""
    return configuration(origin.url, routes=routes)


@pytest.fixture
async def shop(origin: Origin, tmp_path: Path) -> AsyncIterator[Shop]:
    async with gate(shops(origin, tmp_path)) as running:
        yield Shop(running, origin)


@pytest.fixture
async def shop_apart(origin: Origin, tmp_path: Path) -> AsyncIterator[Shop]:
    """The same in a process of its own."""
    process = await GateProcess(shops(origin, tmp_path)).start()
    yield Shop(process, origin)
    process.close()


def runs(origin: Origin, key: str) -> int:
    return origin.effects[key.encode()]


async def test_a_401_frees_the_key_and_a_fresh_token_runs_it(shop: Shop) -> None:
    """The upstream found the token to be stale; nothing was done, so the next one is forwarded, whoever shows it."""
    stale, fresh = bearer(), bearer()

    async def only_fresh(exchange: Exchange) -> None:
        good = exchange.request.values(b"authorization") == [fresh[0][1].encode()]
        await exchange.respond(201 if good else 401, b"ok" if good else b"stale")

    shop.origin.answer = only_fresh
    for target in ("/bound", "/scoped"):
        first = await shop.ask(target, f"k{target}", stale)
        assert (first.status, first.label) == (401, "released")
        second = await shop.ask(target, f"k{target}", fresh)
        assert (second.status, second.label) == (201, "stored")
        assert runs(shop.origin, f"k{target}") == 2


async def test_a_lost_answer_and_a_fresh_token(shop_apart: Shop) -> None:
    """Bound by credentials it is 422, neither run nor replayed; scoped by who asks, alice is given her answer, and
    the same token as before gets it either way."""
    shop, first_token, fresh = shop_apart, bearer(), bearer()
    for target in ("/bound", "/scoped"):
        await _leave(shop, target, f"lost{target}", first_token)
        assert runs(shop.origin, f"lost{target}") == 1
    refused = await shop.ask("/bound", "lost/bound", fresh)
    assert (refused.status, refused.problem) == (422, "credentials-differ")
    replayed = await shop.ask("/scoped", "lost/scoped", fresh)
    assert (replayed.status, replayed.replayed, replayed.body) == (201, True, b'{"id":"lost/scoped"}')
    same = await shop.ask("/bound", "lost/bound", first_token)
    assert (same.status, same.replayed) == (201, True)
    assert runs(shop.origin, "lost/bound") == runs(shop.origin, "lost/scoped") == 1


async def _leave(shop: Shop, target: str, key: str, fields: list[tuple[str, str]]) -> None:
    """Ask, and hang up before the answer: it is lost to the client."""
    client = await Client.connect(shop.gate.port)
    count = len(shop.origin.requests)
    await client.send(request(target=target, key=key, fields=fields, body=b"{}"))
    await shop.origin.until(count + 1)
    client.reset()


async def test_one_key_of_two_people_is_two_operations(shop: Shop) -> None:
    """Each has an answer of his own and never the other's, whatever else their tokens say."""
    answers = {}
    for who in ("alice", "bob", "7", "alice "):
        first = await shop.ask("/scoped", "one", bearer(sub=who))
        again = await shop.ask("/scoped", "one", bearer(sub=who, other="claim"))
        assert (first.label, again.label) == ("stored", "replayed")
        answers[who] = first.get("Idempotency-First-Seen")
    assert runs(shop.origin, "one") == 4


async def test_what_does_not_verify_is_401_and_what_is_not_there_400(shop: Shop) -> None:
    """With a reason, a challenge, and nothing that ran; and the token is in no log."""
    cases = [
        (bearer(exp=int(time.time()) - 60), 401, "scope-invalid", b"expired"),
        (bearer(OTHER_RSA, "RS256"), 401, "scope-invalid", b"signature"),
        (bearer(RSA_KEY, "PS256"), 401, "scope-invalid", b"not accepted here"),
        (bearer(iss="https://evil/"), 401, "scope-invalid", b"another issuer"),
        (bearer(aud="other"), 401, "scope-invalid", b"another audience"),
        ([("Authorization", "Bearer sk_live_1")], 401, "scope-invalid", b"not a signed JWT"),
        (bearer(sub=None), 400, "scope-missing", b"claims no sub"),
        (bearer(sub=""), 400, "scope-missing", b"claims no sub"),
        ([("Authorization", "Basic YTpi")], 400, "scope-missing", b"no Bearer token"),
        (bearer() + bearer(), 400, "scope-missing", b"repeated"),
        ([], 400, "scope-missing", b"no Bearer token"),
    ]
    for fields, status, problem, why in cases:
        told = await shop.ask("/scoped", "refused", fields)
        assert (told.status, told.problem, told.label) == (status, problem, "refused"), told.body
        assert why in told.body
        challenge = 'Bearer error="invalid_token"' if status == 401 else None
        assert told.get("WWW-Authenticate") == challenge
        assert told.get("Idempotency-Outcome") == "no-effect"
    told = await shop.ask("/both", "refused", bearer())
    assert (told.status, told.problem) == (400, "scope-missing")
    assert b"The cookie shop is not there." in told.body
    assert runs(shop.origin, "refused") == 0
    assert isinstance(shop.gate, RunningGate)
    lines = str(shop.gate.lines)
    assert "scope-invalid" in lines
    assert "eyJ" not in lines


async def test_a_scope_of_several_is_all_of_them(shop: Shop) -> None:
    """The cookie's case counts, and its neighbours do not; with `bind` unset credentials are bound besides."""
    alice = bearer()
    shops = ["shop=1", "shop=2", "a=b; shop=3"]
    for cookie in shops:
        first = await shop.ask("/both", "all", [*alice, ("Cookie", cookie)])
        assert (first.status, first.label) == (201, "stored")
    again = await shop.ask("/both", "all", [*alice, ("Cookie", "shop=3; Shop=1; c=d")])
    assert again.replayed
    differ = await shop.ask("/both", "all", [*bearer(), ("Cookie", "shop=1")])
    assert (differ.status, differ.problem) == (422, "credentials-differ")
    twice = await shop.ask("/both", "all", [*alice, ("Cookie", "shop=1; shop=2")])
    assert (twice.status, twice.problem) == (400, "scope-missing")
    assert runs(shop.origin, "all") == 3


async def test_keys_that_cannot_be_had_are_a_503_and_the_rest_goes_on(origin: Origin) -> None:
    """An issuer that is away: nothing runs, nobody is called a liar; and other routes do not notice."""
    routes = f"""
  - {{name: scoped, match: {{path: /scoped}}, upstream: origin, namespace: s, scope: [jwt:sub],
     jwt: {{jwks: 'http://127.0.0.1:1/keys', issuer: '{ISSUER}'}}}}
"""
    async with gate(configuration(origin.url, routes=routes)) as running:
        told = await ask(running.port, target="/scoped", key="k", fields=bearer())
        assert (told.status, told.problem, told.get("Retry-After")) == (503, "scope-unverifiable", "1")
        assert told.get("X-Should-Retry") == "true"
        assert (await ask(running.port, target="/other", key="k")).status == 201
        assert origin.effects[b"k"] == 1
        (line,) = [line for line in running.lines if line.get("message") == "an issuer's keys cannot be fetched"]
        assert (line["level"], line["issuer"]) == ("warning", ISSUER)


async def test_the_issuers_of_a_configuration_that_is_read_anew(origin: Origin, tmp_path: Path) -> None:
    """A route's new issuer is known from the next request on, and one that no route names is watched no more; who was
    known already is not asked again, and his tokens are remembered."""
    (tmp_path / "new.json").write_bytes(published(jwk(OTHER_RSA)))
    before = shops(origin, tmp_path)
    route = "match: {path: /new}, upstream: origin, namespace: s, scope: [jwt:sub], bind: []"
    new = f"  - {{name: new, {route}, jwt: {{jwks: {tmp_path / 'new.json'}, issuer: '{ISSUER}'}}}}\n"
    after = before.replace("  - {name: open", f"{new}  - {{name: open")
    async with gate(before) as running:
        app = running.app
        assert (await ask(running.port, target="/scoped", key="k", fields=bearer())).label == "stored"
        assert len(app._issuers._tasks) == 1
        (known,) = app._issuers.provers
        await app.take_up(load_text(after, name="after.yaml", environ={}))
        assert len(app._issuers._tasks) == 2
        told = await ask(running.port, target="/new", key="new", fields=bearer(OTHER_RSA, "RS256"))
        assert told.label == "stored"
        refused = await ask(running.port, target="/scoped", key="new", fields=bearer(OTHER_RSA, "RS256"))
        assert refused.problem == "scope-invalid"
        await app.take_up(load_text(before, name="before.yaml", environ={}))
        assert list(app._issuers.provers) == [known]
        async with asyncio.timeout(5):
            while len(app._issuers._tasks) > 1:
                await asyncio.sleep(0.01)
        assert (await ask(running.port, target="/scoped", key="k", fields=bearer())).replayed

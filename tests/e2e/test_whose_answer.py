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

from tests.harness import Client, Exchange, Origin, Response, RunningGate, ask, configuration, gate
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
    soap_action: str | None = '"urn:charge"'
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
                ("SOAPAction", self.soap_action),
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
    "tenant by name": ({"host": "a.shop.example"}, "host"),
    "soap action": ({"soap_action": '"urn:refund"'}, "method"),
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
    "another port": {"host": "shop.example:8443"},
    "the default port, and the name's final dot": {"host": "shop.example.:80"},
    "content type with white space": {"content_type": "application/json  "},
    # A session cookie rotates; with another credential there it does not say who asks.
    "a cookie beside credentials": {"cookie": "theme=dark"},
}
#: Values of either side that no refusal may tell.
VALUES = [
    "alice", "mallory", "tenant_", "acct_", "sk_", "eur", "usd", "evil", "shop.example", "x-www-form", "gzip", "999",
    "urn:charge", "urn:refund",
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


async def send(port: int, host: str | None, *, key: str | None, cookie: str = "", method: str = "POST") -> Response:
    """A request with this Host; without any it is of HTTP/1.0."""
    lines = [f"{method} /orders HTTP/1.{0 if host is None else 1}", "Content-Type: text/plain", "Content-Length: 1"]
    lines += [f"Host: {host}"] * (host is not None) + [f"Idempotency-Key: {key}"] * (key is not None)
    lines += [f"Cookie: {cookie}"] * bool(cookie)
    client = await Client.connect(port)
    try:
        await client.send("\r\n".join([*lines, "", "x"]).encode())
        return await client.read(method=b"POST")
    finally:
        client.close()


#: Hosts by which clients reach an instance whose name says nothing: by its address, or by a forwarded port.
ADDRESSES = ("127.0.0.1:{port}", "10.0.3.9:8080", "10.0.3.9", "[::1]:{port}", "[2001:db8::7]", "localhost:{port}",
             "LocalHost.", "", None)  # fmt: skip


async def test_a_retry_through_another_instance_is_the_same_request(origin: Origin, redis: RedisServer) -> None:
    """Whatever the address and the port by which the client reaches it, and whatever way the first try took: plain
    requests by callbacks, HTTP/1.0 by a coroutine. A request that names a host differs from one that names none."""
    async with AsyncExitStack() as stack:
        texts = [configuration(origin.url, store=redis.url) for _ in range(2)]
        first, second = [await stack.enter_async_context(gate(text)) for text in texts]
        for n, (one, other) in enumerate(itertools.permutations(ADDRESSES, 2)):
            hosts = [
                each if each is None else each.format(port=at.port) for each, at in ((one, first), (other, second))
            ]
            answer = await send(first.port, hosts[0], key=f"k{n}")
            again = await send(second.port, hosts[1], key=f"k{n}")
            assert (answer.status, answer.label, again.status, again.label) == (201, "stored", 201, "replayed"), hosts
        refused = await send(second.port, "shop.example", key="k0")
        assert (refused.status, refused.problem) == (422, "key-reused")
        assert set(origin.effects.values()) == {1}


async def test_a_target_in_absolute_form_counts_by_its_host(origin: Origin) -> None:
    """RFC 9112 §3.2.2: the target's authority replaces Host."""
    async with gate(configuration(origin.url)) as running:
        for target, host, label in (
            ("/orders", "shop.example", "stored"),
            ("http://Shop.example:80/orders", "other.example", "replayed"),
            ("http://other.example/orders", "shop.example", "refused"),
        ):
            answer = await ask(running.port, target=target, key="k", host=host)
            assert answer.label == label, (target, host)


async def test_tenants_by_name_are_kept_apart_and_double_clicks_too(origin: Origin) -> None:
    """One service serves two tenants by Host. The same key is refused to the second, and the same form without a key
    runs once for each of them: a double click is one tenant's, through whichever port it comes."""
    async with gate(configuration(origin.url, policy="missing: derive")) as running:
        assert (await send(running.port, "a.example", key="k")).label == "stored"
        assert (await send(running.port, "b.example", key="k")).problem == "key-reused"
        for host, label in (
            ("a.example", "stored"), ("b.example", "stored"), ("A.example:81", "replayed"), ("b.example.", "replayed"),
            ("10.0.0.1:80", "stored"), ("10.0.0.2:81", "replayed"), ("c.example", "stored"),
        ):  # fmt: skip
            answer = await send(running.port, host, key=None)
            assert (answer.status, answer.label) == (201, label), host


async def test_a_route_can_leave_the_name_out(origin: Origin) -> None:
    """`host: false`: one operation by two names. Everything else still counts."""
    async with gate(configuration(origin.url, policy="fingerprint: {host: false}, missing: derive")) as running:
        for key in ("k", None):
            assert (await send(running.port, "a.example", key=key)).label == "stored"
            assert (await send(running.port, "b.example", key=key)).label == "replayed"
        assert (await send(running.port, "a.example", key="k", method="PATCH")).problem == "key-reused"


async def test_routes_that_an_address_or_a_port_tells_apart_share_no_answer(origin: Origin) -> None:
    """The name in `match.host` counts, although the other requests leave it out."""
    routes = "\n".join(
        f'  - {{name: r{n}, match: {{host: "{host}"}}, upstream: origin}}'
        for n, host in enumerate(("a.example:8443", "a.example:9443", "10.0.0.1", "10.0.0.2", "localhost", "[::1]:80"))
    )
    async with gate(configuration(origin.url, routes=routes)) as running:
        hosts = ("a.example:8443", "10.0.0.1", "localhost", "[::1]:80", "a.example", "10.0.0.3")
        for host in hosts:
            assert (await send(running.port, host, key=host.replace(":", "-"))).label == "stored"
        for host, other in itertools.permutations((*hosts, "a.example:9443", "10.0.0.2"), 2):
            if host in hosts:
                refused = await send(running.port, other, key=host.replace(":", "-"))
                assert refused.problem in ("key-reused", "policy-changed"), (host, other)
        assert set(origin.effects.values()) == {1}


#: A session, and what a load balancer, a bot filter and scripts of the page make of it from one response to the next.
SESSION = "session=1; theme=dark"
COOKIES = (
    SESSION,
    f"{SESSION}; AWSALB=a; AWSALBCORS=a;",
    f"AWSALB=b; {SESSION}; AWSALBCORS=b; AWSALBTG=t; AWSELB=e; AWSALBAPP-0=x",
    "session=1; __cf_bm=1; theme=dark; _cfuvid=2; cf_clearance=3; __cflb=4",
    f"ARRAffinity=1; ARRAffinitySameSite=1; ApplicationGatewayAffinityCORS=1; {SESSION}; GCLB=x",
    f"{SESSION}; BIGipServer~a~pool=1.2.3; TS01ab12cd=0; incap_ses_1_2=x; visid_incap_2=y; nlbi_2=z",
    f"{SESSION}; _abck=1~-1; ak_bmsc=1; bm_sv=2; bm_sz=3; datadome=4; aws-waf-token=5; SERVERID=s2",
    f"{SESSION}; _ga_4711=GS1.1.7; _dd_s=x; lb=1; lb_blue=2",
)
#: Another session: a name that is not on the list, or that one on the list only begins alike.
OTHER_COOKIES = (
    "session=2; theme=dark", "session=1", "theme=dark", "theme=dark; session=1", f"{SESSION}; awsalb=1", "",
    f"{SESSION}; AWSELBAuthSessionCookie-0=1", f"{SESSION}; AppServiceAuthSession=1", f"{SESSION}; MRHSession=1",
    f"{SESSION}; CF_Authorization=1", f"{SESSION}; NSC_AAAC=1", f"{SESSION}; AWSALBs=1", f"{SESSION}; X__cf_bm=1",
    f"{SESSION}; BIGipServe=1", f"{SESSION}; AWSALB",
    f"{SESSION}; _ga=GA1.2", f"{SESSION}; x=AWSALB=1", "AWSALB=1", "AWSALB=1; session=2",
)  # fmt: skip


async def test_cookies_of_infrastructure_say_nothing_of_who_asks(origin: Origin) -> None:
    """A retry, and a double click, are known whatever a load balancer, a bot filter or a script set in between; with
    another session, or any other cookie, a retry is refused and a click is another one. So is a cookie that a route
    lists besides."""
    async with gate(configuration(origin.url, policy="missing: derive, ignore_cookies: [lb, lb_*]")) as running:
        for key in ("k", None):
            labels = [(await send(running.port, "h", key=key, cookie=cookie)).label for cookie in COOKIES]
            assert labels == ["stored", *["replayed"] * (len(COOKIES) - 1)], key
        for cookie in OTHER_COOKIES:
            assert (await send(running.port, "h", key="k", cookie=cookie)).problem == "credentials-differ", cookie
        distinct = [(await send(running.port, "h", key=None, cookie=cookie)).label for cookie in OTHER_COOKIES[:6]]
        assert distinct == ["stored"] * 6
        assert (await send(running.port, "h", key="none")).label == "stored"
        assert (await send(running.port, "h", key="none", cookie="AWSALB=1; __cf_bm=2")).label == "replayed"
        assert (await send(running.port, "h", key="none", cookie="session=1")).problem == "credentials-differ"


async def test_a_cookie_that_a_route_binds_by_name_binds(origin: Origin) -> None:
    """`bind: cookie:SERVERID` means what it says, though the name is on the list."""
    async with gate(configuration(origin.url, policy="bind: [default, 'cookie:SERVERID']")) as running:
        assert (await send(running.port, "h", key="k", cookie=f"SERVERID=1; {SESSION}")).label == "stored"
        assert (await send(running.port, "h", key="k", cookie=f"{SESSION}; SERVERID=1; AWSALB=2")).label == "replayed"
        assert (await send(running.port, "h", key="k", cookie=f"SERVERID=2; {SESSION}")).problem == "credentials-differ"


async def test_a_field_that_selects_the_operation_counts(origin: Origin) -> None:
    """With a key another operation is a mismatch; without one it is no double click. Which field says it, counts."""
    chosen = [("X-HTTP-Method-Override", "PATCH"), ("X-HTTP-Method-Override", "DELETE"), ("X-HTTP-Method", "PATCH"),
              ("X-Method-Override", "PATCH"), ("SOAPAction", '"urn:a"'), ("SOAPAction", '"urn:b"'),
              ("X-Amz-Target", "DynamoDB_20120810.PutItem"), ("X-Amz-Target", "DynamoDB_20120810.DeleteItem"),
              ("Next-Action", "a1"), ("X-RestLi-Method", "BATCH_CREATE"),
              ("X-Shopify-Topic", "orders/create")]  # fmt: skip
    async with gate(configuration(origin.url, policy="missing: derive")) as running:
        for n, (name, value) in enumerate(chosen):
            for spelled, label in ((name, "stored"), (name.upper(), "replayed")):
                for key in (f"k{n}", None):
                    assert (await ask(running.port, key=key, fields=[(spelled, value)])).label == label, (name, value)
        for (n, _), (_, other) in itertools.permutations(enumerate(chosen), 2):
            refused = await ask(running.port, key=f"k{n}", fields=[other])
            assert refused.problem == "key-reused"
            assert json.loads(refused.body)["detail"].startswith("Different: method. ")
        assert (await ask(running.port, key="k0")).problem == "key-reused"
        same = [("X-Request-Id", "1"), ("User-Agent", "a"), ("SOAPActions", "1"), chosen[0]]
        assert (await ask(running.port, key="k0", fields=same)).replayed
        assert len(origin.requests) == 2 * len(chosen)


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

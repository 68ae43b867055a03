"""Keys where real APIs have them, through a gate on real sockets: one run, then its answer; and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.edge.door import Door, Head
from tests.harness import Client, Exchange, Origin, Response, RunningGate, ask, configuration, gate, request
from tests.servers import RedisServer

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
FORM = ("Content-Type", "application/x-www-form-urlencoded")
MULTIPART = ("Content-Type", "multipart/form-data; boundary=B")


@dataclass(frozen=True)
class Sent:
    """A request without any of the usual headers."""

    target: str = "/orders"
    body: bytes = b'{"amount":1}'
    fields: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    async def to(self, running: RunningGate) -> Response:
        return await ask(running.port, self.method, self.target, body=self.body, fields=self.fields)


def multipart(key: str) -> bytes:
    return (
        '--B\r\nContent-Disposition: form-data; name="amount"\r\n\r\n1\r\n'
        f'--B\r\nContent-Disposition: form-data; name="id"\r\n\r\n{key}\r\n--B--\r\n'
    ).encode()


#: by where the key stands: the YAML, the request with a key, and with another
SOURCES: dict[str, tuple[str, Sent, Sent]] = {
    name: (yaml, make(KEY), make(KEY[::-1]))
    for name, yaml, make in [
        ("header", "header:X-Request-Key", lambda key: Sent(fields=(("X-Request-Key", key),))),
        ("body", "'body:/order/id'", lambda key: Sent(body=json.dumps({"order": {"id": key}}).encode())),
        ("form", "form:id", lambda key: Sent(body=f"amount=1&id={key}".encode(), fields=(FORM,))),
        ("multipart", "form:id", lambda key: Sent(body=multipart(key), fields=(MULTIPART,))),
        ("query", "query:id", lambda key: Sent(target=f"/orders?a=1&id={key}")),
        ("path", "path:2", lambda key: Sent(target=f"/orders/{key}/pay")),
        ("cookie", "cookie:cart", lambda key: Sent(fields=(("Cookie", f"theme=dark; cart={key}"),))),
        ("composite", "[path:1, header:X-No, 'body:/id']", lambda key: Sent(
            body=json.dumps({"id": key}).encode(), fields=(("X-No", "7"),)
        )),
    ]
}  # fmt: skip


@pytest.mark.parametrize("where", SOURCES)
async def test_a_key_from_each_source_runs_once(origin: Origin, where: str) -> None:
    """One run and a replay; another key, another run; with another amount under the key, 422."""
    yaml, sent, other = SOURCES[where]
    async with gate(configuration(origin.url, policy=f"key: {{from: {yaml}}}")) as running:
        first = await sent.to(running)
        again = await sent.to(running)
        assert (first.status, first.label, again.label) == (201, "stored", "replayed")
        assert again.body == first.body
        assert len(origin.requests) == 1
        assert (await other.to(running)).label == "stored"
        assert len(origin.requests) == 2
        changed = await replace(sent, fields=(*sent.fields, ("Content-Encoding", "identity"))).to(running)
        assert (changed.status, changed.problem) == (422, "key-reused")
        assert len(origin.requests) == 2
        assert origin.requests[0].body == sent.body
        assert origin.requests[0].target == sent.target.encode()


@pytest.mark.parametrize("where", ["body", "composite"])
async def test_of_a_crowd_with_one_key_in_its_body_one_runs(origin: Origin, where: str) -> None:
    """They come at once, and attach to the first."""
    yaml, sent, _ = SOURCES[where]

    async def slowly(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await exchange.respond(201, b'{"id":1}')

    origin.answer = slowly
    async with gate(configuration(origin.url, policy=f"key: {{from: {yaml}}}")) as running:
        answers = await asyncio.gather(*(sent.to(running) for _ in range(20)))
    assert [answer.status for answer in answers] == [201] * 20
    assert sorted(answer.label or "" for answer in answers) == ["replayed"] * 19 + ["stored"]
    assert len(origin.requests) == 1


async def test_a_body_without_a_key_goes_through_or_is_refused(origin: Origin) -> None:
    """As `missing` says, and as it was sent: chunked or sized, with 100 Continue or without, another request behind."""
    text = configuration(
        origin.url,
        policy="key: {from: 'body:/id'}",
        routes="  - {name: strict, match: {path: /strict}, upstream: origin, key: {from: 'body:/id'}, missing: refuse}",
    )
    async with gate(text) as running:
        answer = await Sent().to(running)
        assert (answer.status, answer.label) == (201, "unprotected")
        assert origin.requests[0].body == b'{"amount":1}'
        refused = await Sent(target="/strict").to(running)
        assert (refused.status, refused.problem) == (400, "key-missing")
        client = await Client.connect(running.port)
        await client.send(b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await client.send(b"2\r\n{}\r\n0\r\n\r\n" + request(target="/b", body=b'{"id":"after-the-first"}'))
        assert (await client.read()).label == "unprotected"
        assert (await client.read()).label == "stored"
        client.close()
        put = await Sent(method="PUT", target="/strict").to(running)
        assert (put.status, put.label) == (201, "unprotected")
        assert running.count("oncegate_unprotected_total", route="all", reason="no_key") == 2
    assert [each.target for each in origin.requests] == [b"/orders", b"/a", b"/b", b"/strict"]
    assert origin.requests[1].body == b"{}"
    assert origin.requests[1].values(b"expect") == []


async def test_a_client_that_leaves_while_its_keyless_body_passes_gives_its_room_back(origin: Origin) -> None:
    """What was reserved for the body is free again, as if it had never been looked into."""
    held = asyncio.Event()

    async def later(exchange: Exchange) -> None:
        await held.wait()

    origin.answer = later
    async with gate(configuration(origin.url, policy="key: {from: 'body:/id'}")) as running:
        assert running.app._server is not None
        budget = running.app._server.shared.door.budget
        leaver = await Client.connect(running.port)
        await leaver.send(request(body=b'{"amount":1}'))
        await origin.until(1)
        assert budget.taken > 0
        leaver.reset()
        async with asyncio.timeout(10):
            while budget.taken:
                await asyncio.sleep(0.001)
        held.set()


BROKEN = {
    "not JSON": Sent(body=b'{"id":"secret-7"'),
    "a member twice": Sent(body=b'{"id":"secret-7","id":"secret-8"}'),
    "an object": Sent(body=b'{"id":{"secret":7}}'),
    "compressed": Sent(body=b'{"id":"secret-7"}', fields=(("Content-Encoding", "gzip"),)),
    "too short": Sent(body=b'{"id":"secret-7"}'),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_key_that_cannot_be_told_is_refused_by_the_rule_that_it_breaks(origin: Origin, what: str) -> None:
    """400 before anything ran, with no word of the key in it or in the log; and the connection goes on."""
    text = configuration(origin.url, policy="key: {from: 'body:/id', format: uuid, min_length: 30}")
    async with gate(text) as running:
        client = await Client.connect(running.port)
        sent = BROKEN[what]
        await client.send(request(body=sent.body, fields=sent.fields))
        answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (400, "key-invalid", "refused")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        await client.send(request(body=b'{"id":"%b"}' % KEY.encode()))
        assert (await client.read()).label == "stored"
        client.close()
        lines = running.lines
    assert len(origin.requests) == 1
    assert "secret" not in answer.body.decode()
    assert "secret" not in json.dumps(lines)


async def test_a_body_over_the_limit_is_413_before_its_key_is_looked_for(origin: Origin) -> None:
    """Declared or not."""
    async with gate(configuration(origin.url, policy="key: {from: 'body:/id'}, max_request: 1KiB")) as running:
        long = b'{"id":"k","x":"%b"}' % (b"x" * 2000)
        assert (await Sent(body=long).to(running)).problem == "body-too-large"
        client = await Client.connect(running.port)
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000)
        await client.send(b"\r\n0\r\n\r\n")
        assert (await client.read()).problem == "body-too-large"
        client.close()
    assert origin.requests == []


async def test_a_long_body_is_parsed_beside_the_loop(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, while others are answered; a short one where it is. The client of a long one may leave meanwhile:
    its request runs all the same, once."""
    held, threads, door_ask = threading.Event(), list[bool](), Door.ask

    def watched(door: Door, head: Head, body: bytes, *more: Any) -> Any:
        threads.append(threading.current_thread() is not threading.main_thread())
        if threads[-1]:
            assert held.wait(10)
        return door_ask(door, head, body, *more)

    monkeypatch.setattr(Door, "ask", watched)
    body = b'{"rows":[%b{}],"id":"%b"}' % (b'{"a":"b"},' * 20_000, KEY.encode())
    async with gate(configuration(origin.url, policy="key: {from: 'body:/id'}")) as running:
        leaver = await Client.connect(running.port)
        await leaver.send(request(body=body))
        async with asyncio.timeout(10):
            while not threads:
                await asyncio.sleep(0.001)
        leaver.close()
        assert (await ask(running.port, body=b'{"id":"while-it-is-parsed"}')).label == "stored"
        assert len(origin.requests) == 1
        held.set()
        await origin.until(2)
        assert (await ask(running.port, body=body)).label == "replayed"
        assert (await ask(running.port, body=body[:-1])).problem == "key-invalid"
        assert (await ask(running.port, body=body.replace(KEY.encode(), b""))).problem == "key-invalid"
        assert (await ask(running.port, body=body.replace(b"id", b"no"))).label == "unprotected"
        async with asyncio.timeout(10):
            assert running.app._server is not None
            while running.app._server.shared.door.budget.taken:
                await asyncio.sleep(0.001)
    assert threads == [True, False, True, True, True, True]
    assert len(origin.requests) == 3


async def test_a_double_click_runs_once_and_after_its_window_again(origin: Origin) -> None:
    """Two at once and one just after are one; other amounts, other credentials and other targets are others. After the
    window it is a new order."""
    text = configuration(origin.url, policy="missing: {derive: {window: 700ms}}, window: 7d")
    async with gate(text) as running:
        clicks = await asyncio.gather(*(Sent().to(running) for _ in range(5)))
        clicks.append(await Sent().to(running))
        assert sorted(each.label or "" for each in clicks) == ["replayed"] * 5 + ["stored"]
        assert len(origin.requests) == 1
        for other in (
            Sent(body=b'{"amount":2}'),
            Sent(target="/others"),
            Sent(fields=(("Authorization", "Bearer b"),)),
            Sent(method="PATCH"),
        ):
            assert (await other.to(running)).label == "stored"
        assert len(origin.requests) == 5
        async with asyncio.timeout(10):
            while (await Sent().to(running)).label != "stored":
                await asyncio.sleep(0.05)
        assert len(origin.requests) == 6
        assert (await ask(running.port, key=KEY)).label == "stored"
        assert (await ask(running.port, key=KEY)).label == "replayed"


async def test_a_derived_key_is_none_that_a_client_could_send(origin: Origin) -> None:
    """What it is shown in the log as, sent as a key, is another operation."""
    text = configuration(origin.url, policy="missing: derive", top="log: {keys: full}")
    async with gate(text) as running:
        assert (await Sent().to(running)).label == "stored"
        (line,) = [line for line in running.lines if line.get("verdict") == "forward"]
        again = await ask(running.port, key=str(line["key"]))
        assert again.label == "stored"
    assert len(origin.requests) == 2


async def test_a_derived_key_lives_for_its_own_window_in_redis(origin: Origin, redis: RedisServer) -> None:
    """Not for the route's: nobody who orders again tomorrow is given today's answer."""
    text = configuration(origin.url, store=redis.url, policy="missing: {derive: {window: 30s}}, window: 7d")
    async with gate(text) as running:
        assert (await Sent().to(running)).label == "stored"
        with redis.client() as client:
            lives = [client.pttl(name) for name in client.scan_iter("og:*") if b"marker" not in name]
    assert len(lives) == 1
    assert 0 < lives[0] <= 30_000


async def test_the_service_gets_the_key_in_its_own_field(origin: Origin) -> None:
    """As it is, or as a UUID that is the same at each try and another for another key; in place of what the client
    wrote there, however it spelled the name."""
    text = configuration(
        origin.url,
        policy="key: {from: 'body:/id'}, on_doubt: rerun, "
        "send_key: [header:X-Operation, {to: header:PayPal-Request-Id, as: uuid}]",
    )

    async def lost_at_first(exchange: Exchange) -> None:
        if len(origin.requests) == 1:
            exchange.reset()
        else:
            await exchange.respond()

    origin.answer = lost_at_first
    async with gate(text) as running:
        mimic = (("PayPal-Request-Id", "mine"), ("paypal_request_id", "mine"), ("X-OPERATION", "mine"))
        sent = Sent(body=b'{"id":"key 1"}', fields=mimic)
        assert (await sent.to(running)).status == 502
        assert (await sent.to(running)).status == 201
        assert (await Sent(body=b'{"id":"key 2"}').to(running)).status == 201
        refused = await replace(sent, fields=(("Connection", "PayPal-Request-Id"),)).to(running)
        assert refused.problem == "key-invalid"
    first, second, other = origin.requests
    assert second.values(b"idempotency-attempt") == [b"2"]
    for each in (first, second):
        assert each.values(b"x-operation") == [b'"key 1"']
        assert each.values(b"paypal-request-id") == first.values(b"paypal-request-id")
        assert len(each.values(b"paypal-request-id")) == 1
        assert not [value for _, value in each.fields if value == b"mine"]
    assert other.values(b"x-operation") == [b'"key 2"']
    assert other.values(b"paypal-request-id") != first.values(b"paypal-request-id")


@pytest.mark.parametrize("form", ["uuid", "ulid"])
async def test_a_key_of_a_format_is_one_key_in_either_case(origin: Origin, form: str) -> None:
    """In capitals and in small letters it is one record: the second request gets the first answer, and the log shows
    the canonical form. The service gets the field as its client wrote it, and `send_key` in the canonical form. Another
    body under the other spelling is still 422, and without a format the two spellings are two keys."""
    small = KEY if form == "uuid" else "01arz3ndektsv4rrffq69g5fav"
    canonical = small if form == "uuid" else small.upper()
    text = configuration(
        origin.url,
        policy=f"key: {{format: {form}}}, send_key: header:X-Operation",
        routes="  - {name: bytes, match: {path: /bytes}, upstream: origin, namespace: bytes}\n"
        "  - {name: same, match: {path: /same}, upstream: origin, namespace: same, "
        f"key: {{format: {form}}}, send_key: header:Idempotency-Key}}",
        top="log: {keys: full}",
    )
    async with gate(text) as running:
        first = await ask(running.port, key=small.swapcase())
        again = await ask(running.port, key=small)
        mixed = await ask(running.port, key=f'"{small[:20].upper()}{small[20:]}"')
        assert [each.label for each in (first, again, mixed)] == ["stored", "replayed", "replayed"]
        assert again.body == first.body
        assert (await ask(running.port, key=small, body=b'{"amount":2}')).problem == "key-reused"
        assert {line["key"] for line in running.lines if "verdict" in line} == {canonical}
        for key in (small, small.upper()):
            assert (await ask(running.port, target="/bytes", key=key)).label == "stored"
        assert (await ask(running.port, target="/same", key=canonical.swapcase())).label == "stored"
    assert len(origin.requests) == 4
    assert origin.requests[0].key == small.swapcase().encode()
    assert origin.requests[3].values(b"idempotency-key") == [canonical.encode()]
    assert origin.requests[0].values(b"x-operation") == [canonical.encode()]


async def test_a_uuid_in_a_body_runs_once_however_it_is_spelled(origin: Origin) -> None:
    """The body counts byte for byte, so the other spelling is 422; what counts as equal there is replayed."""
    policy = "key: {{from: 'body:/id', format: uuid}}, fingerprint: {{{}}}"
    for body, label in (("body: raw", "refused"), ("body: canonical-json, ignore: [/id]", "replayed")):
        async with gate(configuration(origin.url, policy=policy.format(body))) as running:
            assert (await Sent(body=b'{"id":"%b"}' % KEY.encode()).to(running)).label == "stored"
            again = await Sent(body=b'{"id":"%b"}' % KEY.upper().encode()).to(running)
            assert again.label == label
            assert again.problem == (None if label == "replayed" else "key-reused")
    assert len(origin.requests) == 2


async def test_a_shadow_sees_the_duplicate_in_the_other_spelling(origin: Origin) -> None:
    """It counts the duplicate that a route which enforces would have caught, and runs both requests."""
    async with gate(configuration(origin.url, policy="mode: shadow, key: {format: uuid}")) as running:
        assert (await ask(running.port, key=KEY)).label == "unprotected"

        def counted(verdict: str) -> float:
            return running.count("oncegate_shadow_requests_total", route="all", verdict=verdict, problem="")

        async with asyncio.timeout(10):
            while counted("forward") < 1:
                await asyncio.sleep(0.01)
            assert (await ask(running.port, key=KEY.upper())).label == "unprotected"
            while counted("replay") + counted("wait") < 1:
                await asyncio.sleep(0.01)
    assert len(origin.requests) == 2


async def test_gates_that_differ_in_the_format_of_keys_do_not_share_a_store(origin: Origin, redis: RedisServer) -> None:
    """One takes keys byte for byte, the other does not: neither would find what the other stored."""
    async with gate(configuration(origin.url, store=redis.url)) as one:
        assert (await ask(one.port, key=KEY.upper())).label == "stored"
        async with gate(configuration(origin.url, store=redis.url, policy="key: {format: uuid}")) as other:
            assert (await ask(other.port, key=KEY.upper())).problem == "identity-changed"
    assert len(origin.requests) == 1


@pytest.mark.parametrize("missing", ["refuse", "derive"])
async def test_a_byte_order_mark_before_the_json_hides_no_key(origin: Origin, missing: str) -> None:
    """The request runs once and the service gets its bytes unchanged. Another amount under the key is 422, and under
    `body: raw` the same JSON without the mark is other bytes."""
    mark, body = b"\xef\xbb\xbf", b'{"id":"%b","amount":1}' % KEY.encode()
    async with gate(configuration(origin.url, policy=f"key: {{from: 'body:/id'}}, missing: {missing}")) as running:
        assert (await Sent(body=mark + body).to(running)).label == "stored"
        assert (await Sent(body=mark + body).to(running)).label == "replayed"
        for other in (mark + body.replace(b"1}", b"2}"), body):
            assert (await Sent(body=other).to(running)).problem == "key-reused"
    (seen,) = origin.requests
    assert seen.body == mark + body


async def test_a_weak_key_is_counted_or_refused_and_never_told(origin: Origin) -> None:
    """By its kind, in the metric and in the log; where the route refuses it, with what to do."""
    text = configuration(
        origin.url,
        routes="  - {name: strict, match: {path: /strict}, upstream: origin, key: {weak: refuse}}",
    )
    async with gate(text) as running:
        for key in ("1764004578123", "41", "undefined", "aaaaaaaaaaaaaaaa", KEY):
            assert (await ask(running.port, key=key)).label == "stored"
        refused = await ask(running.port, target="/strict", key="1764004578123")
        assert (refused.status, refused.problem) == (400, "key-invalid")
        assert "looks like a point in time" in refused.body.decode()
        unset = await ask(running.port, target="/strict", key="{{$guid}}")
        assert (unset.status, unset.problem) == (400, "key-invalid")
        assert "looks like a variable that was never set; draw a UUID" in unset.body.decode()
        assert (await ask(running.port, target="/strict", key=KEY)).status in (201, 422)
        for kind, count in (("timestamp", 1), ("counter", 1), ("placeholder", 1), ("low_variety", 1)):
            assert running.count("oncegate_weak_keys_total", route="all", kind=kind) == count
        assert running.count("oncegate_weak_keys_total", route="strict", kind="timestamp") == 1
        lines = [line for line in running.lines if "verdict" in line]
    assert [line.get("weak_key") for line in lines] == [
        "timestamp", "counter", "placeholder", "low_variety", None, "timestamp", "placeholder", None,
    ]  # fmt: skip
    assert "1764004578123" not in json.dumps(lines) + refused.body.decode()


BOUND = {
    "query": ("query:tenant", Sent("/o?tenant=a"), Sent("/o?tenant=b"), Sent("/o?tenant=a&tenant=b")),
    "cookie": (
        "cookie:session",
        Sent(fields=(("Cookie", "session=a; x=1"),)),
        Sent(fields=(("Cookie", "session=b; x=1"),)),
        Sent(fields=(("Cookie", "session=a; session=b"),)),
    ),
    "path": ("path:2", Sent("/t/a"), Sent("/t/b"), Sent("/t//a")),
    "body": ("'body:/tenant'", Sent(body=b'{"tenant":"a"}'), Sent(body=b'{"tenant":"b"}'), Sent(body=b'{"tenant":')),
    "form": (
        "form:tenant",
        Sent(body=b"tenant=a", fields=(FORM,)),
        Sent(body=b"tenant=b", fields=(FORM,)),
        Sent(body=b"tenant=a&tenant=b", fields=(FORM,)),
    ),
}


@pytest.mark.parametrize("where", BOUND)
async def test_a_key_is_bound_to_what_the_route_says(origin: Origin, where: str) -> None:
    """Another value there is 422 credentials-differ, none too; one that cannot be told is 400, never nobody's."""
    yaml, mine, other, unclear = BOUND[where]
    async with gate(configuration(origin.url, policy=f"bind: [{yaml}]")) as running:

        async def keyed(sent: Sent) -> Response:
            return await replace(sent, fields=(("Idempotency-Key", KEY), *sent.fields)).to(running)

        assert (await keyed(mine)).label == "stored"
        assert (await keyed(mine)).label == "replayed"
        assert (await keyed(other)).problem == "credentials-differ"
        without = Sent("/o" if where == "query" else "/t" if where == "path" else "/orders", body=b"")
        assert (await keyed(without)).problem == "credentials-differ"
        refused = await keyed(unclear)
        assert (refused.status, refused.problem) == (400, "scope-missing")
    assert len(origin.requests) == 1


async def test_a_route_in_shadow_finds_keys_where_it_would(origin: Origin) -> None:
    """Of a body, short or long, and of a double click: what would have been caught is counted, and everything runs."""
    text = configuration(
        origin.url,
        policy="mode: shadow, key: {from: 'body:/id', weak: refuse}",
        routes="  - {name: clicks, match: {path: /clicks}, upstream: origin, mode: shadow, missing: derive}",
    )
    long = b'{"rows":[%b{}],"id":"%b"}' % (b'{"a":"b"},' * 5_000, KEY[::-1].encode())
    async with gate(text) as running:
        for _ in range(2):
            for sent in (
                Sent(body=b'{"id":"%b"}' % KEY.encode()),
                Sent(body=long),
                Sent(target="/clicks"),
                Sent(body=b'{"id":"41"}'),
                Sent(body=b'{"id":'),
                Sent(),
            ):
                answer = await sent.to(running)
                assert (answer.status, answer.label) == (201, "unprotected")

        def duplicates() -> list[float]:
            return [
                running.count("oncegate_shadow_duplicates_total", route=route, kind="replayed")
                + running.count("oncegate_shadow_duplicates_total", route=route, kind="attached")
                for route in ("all", "clicks")
            ]

        async with asyncio.timeout(10):
            while duplicates() != [2, 1]:
                await asyncio.sleep(0.01)
        assert running.count("oncegate_weak_keys_total", route="all", kind="counter") == 2
        refused = {"route": "all", "verdict": "refuse", "problem": "key-invalid"}
        assert running.count("oncegate_shadow_requests_total", **refused) == 4
    assert len(origin.requests) == 12


async def test_gates_that_differ_in_where_keys_stand_do_not_share_a_store(origin: Origin, redis: RedisServer) -> None:
    """Each would forget the other's keys: identity-changed, and no run."""
    async with gate(configuration(origin.url, store=redis.url, policy="key: {from: query:id}")) as one:
        assert (await Sent("/o?id=" + KEY).to(one)).label == "stored"
        async with gate(configuration(origin.url, store=redis.url, policy="key: {from: [query:id, path:1]}")) as other:
            assert (await Sent("/o?id=" + KEY).to(other)).problem == "identity-changed"
    assert len(origin.requests) == 1

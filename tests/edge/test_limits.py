"""Every limit: it bites where the file says, and `oncegate_limits_total` tells of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import pytest

from gateway.core.limit import Limit
from tests.edge.stand import GET, ByHand, Edge, drain, edge, eventually, head_of, keyed, narrow_client, post
from tests.harness import Client, ask, configuration


@contextlib.contextmanager
def bites(gate: Edge, limit: Limit, *, times: int = 1) -> Iterator[None]:
    """Within, this limit is met so often, and no other one."""
    yield
    counts = {each: gate.count("oncegate_limits_total", limit=each) for each in Limit}
    assert {each: count for each, count in counts.items() if count} == {limit: times}


Bite = Callable[[Edge, ByHand], Awaitable[None]]
BITES: dict[Limit, tuple[str, str, str, Bite]] = {}


def bite(limit: Limit, limits: str = "", *, policy: str = "", upstream: str = "") -> Callable[[Bite], Bite]:
    def add(test: Bite) -> Bite:
        BITES[limit] = (limits, policy, upstream, test)
        return test

    return add


async def refused(gate: Edge, sent: bytes, status: int, problem: str) -> Client:
    client = await gate.connect()
    await client.send(sent)
    answer = await client.read()
    assert (answer.status, answer.problem) == (status, problem)
    return client


@bite(Limit.HEAD, "head: 1KiB")
async def a_head_of_so_many_bytes(gate: Edge, hand: ByHand) -> None:
    await refused(gate, keyed("k", fields=b"X: " + b"x" * 1100 + b"\r\n"), 431, "head-too-large")


@bite(Limit.TARGET, "target: 100B")
async def a_target_of_so_many_bytes(gate: Edge, hand: ByHand) -> None:
    await refused(gate, GET.replace(b"/x", b"/" + b"x" * 100), 414, "target-too-long")


@bite(Limit.FIELDS, "fields: 5")
async def so_many_fields(gate: Edge, hand: ByHand) -> None:
    await refused(gate, keyed("k", fields=b"X: y\r\n" * 3), 431, "head-too-large")


@bite(Limit.HEAD_TIMEOUT, "head_timeout: 200ms")
async def a_head_in_so_much_time(gate: Edge, hand: ByHand) -> None:
    await refused(gate, b"GET / HT", 408, "request-timeout")


@bite(Limit.BODY_TIMEOUT, "body_timeout: 200ms")
async def a_body_without_a_byte_for_so_long(gate: Edge, hand: ByHand) -> None:
    await refused(gate, keyed("k", b"abc")[:-1], 408, "request-timeout")


@bite(Limit.BODY_RATE, "body_rate: 10KiB, body_grace: 1ms")
async def a_body_with_so_many_bytes_a_second(gate: Edge, hand: ByHand) -> None:
    client = await gate.connect()
    await client.send(keyed("k", b"x" * 100_000)[:-100_000])
    reading = asyncio.ensure_future(client.read())
    while not reading.done():  # it never rests for long, and never comes to an end
        client.writer.write(b"x" * 10)
        await asyncio.sleep(0.02)
    assert (reading.result().status, reading.result().problem) == (408, "request-timeout")


@bite(Limit.IDLE, "idle: 200ms")
async def an_idle_connection_for_so_long(gate: Edge, hand: ByHand) -> None:
    assert await drain(await gate.connect()) == b""


@bite(Limit.WRITE_TIMEOUT, "write_timeout: 300ms")
async def an_answer_that_nobody_takes_for_so_long(gate: Edge, hand: ByHand) -> None:
    client = await narrow_client(gate.port)
    gate.clients.append(client)
    client.writer.transport.pause_reading()
    await client.send(GET)
    peer = await hand.accept()
    await peer.head()
    peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (24 << 20) + b"x" * (8 << 20))
    assert await peer.ended()


@bite(Limit.RESPONSE_IDLE, "response_idle: 200ms")
async def a_response_that_stands_still_for_so_long(gate: Edge, hand: ByHand) -> None:
    client = await gate.connect()
    await client.send(GET)
    peer = await hand.accept()
    await peer.head()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    assert await peer.ended()


@bite(Limit.TUNNEL_IDLE, "tunnel_idle: 200ms, idle: 1ms")
async def a_silent_websocket_for_so_long(gate: Edge, hand: ByHand) -> None:
    client = await gate.connect()
    await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
    peer = await hand.accept()
    await peer.head()
    await peer.send(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await head_of(client)
    assert await client.ended()
    peer.close()


@bite(Limit.CONNECTIONS, "connections: 2")
async def so_many_clients(gate: Edge, hand: ByHand) -> None:
    await gate.connect(), await gate.connect()
    await eventually(lambda: len(gate.server.connections) == 2, "both are there")
    await refused(gate, b"", 503, "overloaded")


@bite(Limit.CONNECTIONS_PER_ADDRESS, "connections_per_address: 2")
async def so_many_clients_of_one_address(gate: Edge, hand: ByHand) -> None:
    await gate.connect(), await gate.connect()
    await eventually(lambda: len(gate.server.connections) == 2, "both are there")
    await refused(gate, b"", 503, "overloaded")
    elsewhere = Client(*await asyncio.open_connection("127.0.0.1", gate.port, local_addr=("127.0.0.2", 0)))
    gate.clients.append(elsewhere)
    await elsewhere.send(b"BREW\r\n\r\n")
    assert (await elsewhere.read()).status == 400


@bite(Limit.PIPELINED, "pipelined: 1")
async def so_many_requests_ahead(gate: Edge, hand: ByHand) -> None:
    client = await gate.connect()
    await client.send(keyed("a") + keyed("b"))
    peer = await hand.accept()
    for _ in range(2):
        await peer.head()
        await peer.answer()
        assert (await client.read()).status == 200


@bite(Limit.BUFFERS, "buffers: 10MiB")
async def bodies_of_so_many_bytes_in_all(gate: Edge, hand: ByHand) -> None:
    first = await gate.connect()
    await first.send(keyed("a", b"x" * 6_000_000)[:-6_000_000])
    await eventually(lambda: gate.server.door.budget.taken == 6_000_000, "there is room for the first")
    await refused(gate, keyed("b", b"x" * 6_000_000)[:-6_000_000], 503, "overloaded")
    first.reset()


async def waiting(gate: Edge, hand: ByHand, keys: str, last: str) -> None:
    """One that is not answered, duplicates that wait for it, and one more that may not."""
    clients = []
    for count, key in enumerate(keys, 1):
        clients.append(await gate.connect())
        await clients[-1].send(keyed(key))
        await eventually(lambda count=count: hand.connections + gate.server.driver.waiting == count, "it waits")
    await refused(gate, keyed(last), 409, "in-flight")
    for _ in set(keys):
        peer = await hand.accept()
        await peer.head()
        await peer.answer()
    for client in clients:
        assert (await client.read()).status == 200


@bite(Limit.WAITERS_PER_KEY, "waiters_per_key: 1")
async def so_many_who_wait_for_one_key(gate: Edge, hand: ByHand) -> None:
    await waiting(gate, hand, "aa", "a")


@bite(Limit.WAITERS, "waiters: 1")
async def so_many_who_wait(gate: Edge, hand: ByHand) -> None:
    await waiting(gate, hand, "aab", "b")


@bite(Limit.MAX_REQUEST, policy="max_request: 1KiB")
async def a_guarded_body_of_so_many_bytes(gate: Edge, hand: ByHand) -> None:
    await refused(gate, keyed("k", b"x" * 2000), 413, "body-too-large")


@bite(Limit.MAX_RESPONSE, policy="max_response: 1KiB")
async def an_answer_of_so_many_bytes(gate: Edge, hand: ByHand) -> None:
    asking = asyncio.ensure_future(ask(gate.port, key="k"))
    peer = await hand.accept()
    await peer.head()
    await peer.answer(b"x" * 2000)
    assert (await asking).body == b"x" * 2000
    peer.close()


@bite(Limit.UPSTREAM_CONNECTIONS, upstream="connections: 1")
async def so_many_connections_to_the_service(gate: Edge, hand: ByHand) -> None:
    first, second = await gate.connect(), await gate.connect()
    await first.send(GET)
    peer = await hand.accept()
    await peer.head()
    await second.send(post(b""))
    await eventually(lambda: gate.pool.waiting, "the second waits")
    await peer.answer()
    assert b"POST" in await peer.head()
    await peer.answer()
    for client in (first, second):
        assert (await client.read()).status == 200


@pytest.mark.parametrize("limit", BITES)
async def test_a_limit_bites_and_is_counted(hand: ByHand, limit: Limit) -> None:
    """Where the file says: this one, and no other."""
    limits, policy, upstream, test = BITES[limit]
    text = configuration(hand.url, top=f"limits: {{{limits}}}" if limits else "", policy=policy, upstream=upstream)
    async with edge(text) as gate:
        with bites(gate, limit):
            await test(gate, hand)


def test_every_limit_is_tested() -> None:
    """Here; the one of TLS beside it (test_tls_clients.py), and the process's own (tests/e2e/test_descriptors.py)."""
    assert {*BITES, Limit.HANDSHAKE, Limit.DESCRIPTORS} == set(Limit)


async def test_every_limit_is_shown_before_it_was_met(hand: ByHand) -> None:
    """An alert on a rate needs the zero."""
    async with edge(configuration(hand.url)) as gate:
        for limit in Limit:
            assert gate.running.app.tally.registry.get_sample_value("oncegate_limits_total", {"limit": limit}) == 0.0


# ── What they leave alone ─────────────────────────────────────────────────────────────────────────


async def test_a_slow_body_has_its_grace_and_its_rate(hand: ByHand) -> None:
    """Slow, but not too slow, it takes as long as it takes."""
    limits = "limits: {body_rate: 100B, body_grace: 1ms, body_timeout: 5s}"
    async with edge(configuration(hand.url, top=limits)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", b"x" * 1000)[:-1000])
        for _ in range(25):
            await client.send(b"x" * 40)
            await asyncio.sleep(0.1)
        peer = await hand.accept()
        await peer.head()
        assert await peer.read(1000) == b"x" * 1000
        await peer.answer()
        assert (await client.read()).status == 200


async def test_a_client_that_is_held_back_is_not_slow(hand: ByHand) -> None:
    """Whoever does not read the body is the service."""
    limits = "limits: {body_rate: 1MiB, body_grace: 1ms, body_timeout: 300ms}"
    async with edge(configuration(hand.url, top=limits)) as gate:
        client = await gate.connect()
        await client.send(keyed("slow") + post(b"", length=1 << 20))
        first = await hand.accept()
        await first.head()
        sending = asyncio.ensure_future(client.send(b"x" * (1 << 20)))
        await asyncio.sleep(2.2)  # two looks of the gate
        await first.answer()
        assert (await client.read()).status == 200
        await first.head()
        assert len(await first.read(1 << 20)) == 1 << 20
        await sending
        await first.answer()
        assert (await client.read()).status == 200


async def test_a_client_that_reads_slowly_is_not_cut(hand: ByHand) -> None:
    """It takes a little now and then: that is enough, also while the gate writes nothing new."""
    async with edge(configuration(hand.url, top="limits: {write_timeout: 1500ms}")) as gate:
        client = await narrow_client(gate.port)
        gate.clients.append(client)
        client.writer.transport.pause_reading()
        await client.send(keyed("k"))
        peer = await hand.accept()
        await peer.head()
        size = 400_000
        await peer.answer(b"x" * size)
        total = 0
        for _ in range(8):
            client.writer.transport.resume_reading()
            total += len(await client.reader.read(1 << 14))
            await asyncio.sleep(0.5)
        while total < size:
            total += len(await client.reader.read(1 << 16))
        assert gate.count("oncegate_limits_total", limit="write_timeout") == 0


async def test_a_trusted_proxy_brings_everybody(hand: ByHand) -> None:
    """Its connections are not counted by its address."""
    top = "trusted_proxies: [127.0.0.1]\nlimits: {connections_per_address: 1}"
    async with edge(configuration(hand.url, top=top)) as gate:
        clients = [await gate.connect() for _ in range(3)]
        for client in clients:
            await client.send(b"BREW\r\n\r\n")
            assert (await client.read()).status == 400


async def test_a_place_of_an_address_falls_free(hand: ByHand) -> None:
    """However its connection ended."""
    async with edge(configuration(hand.url, top="limits: {connections_per_address: 1}")) as gate:
        for end in (Client.close, Client.reset) * 2:
            client = await gate.connect()
            await client.send(b"GET")
            await eventually(lambda: gate.server.connections, "it is there")
            end(client)
            await gate.emptied()
        assert not gate.server._from
        assert gate.count("oncegate_limits_total", limit="connections_per_address") == 0

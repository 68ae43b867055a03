"""What a request costs at the store, and what the store is told, counted and read at the wire."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from gateway.stores.codec import HOLDER_AT, HOLDER_END, VERSION
from tests.e2e.crowd import Caller, callers, eventually
from tests.e2e.wiretap import FROM_REDIS, TO_REDIS, Wiretap, flushes, trips
from tests.harness import Exchange, Origin, Response, RunningGate, ask, configuration, gate, request
from tests.servers import RedisServer

CLAIM = ["SET", "PTTL"]
SETTLE = ["EVALSHA"]
NAME = re.compile(rb"og:[A-Za-z0-9_-]{43}")


@pytest.fixture
async def running(origin: Origin, tap: Wiretap) -> AsyncIterator[RunningGate]:
    async with gate(configuration(origin.url, store=tap.url)) as running:
        # Warm: the connection is greeted, the script is loaded.
        await ask(running.port, key="warm")
        await ask(running.port, key="warm")
        yield running


async def held(exchange: Exchange, released: asyncio.Event) -> None:
    await released.wait()
    await exchange.respond()


async def test_a_first_request_costs_two_trips(tap: Wiretap, running: RunningGate) -> None:
    """A first request: one flush (SET … NX GET PX with PTTL behind it) and one round trip to claim, one flush
    (EVALSHA) and one round trip to settle; and nothing more."""
    mark = len(tap.heard)
    assert (await ask(running.port, key="k1")).label == "stored"
    heard = tap.since(mark)
    assert flushes(heard) == [CLAIM, SETTLE]
    assert trips(heard) == 2
    claim, *_ = [chunk.commands for chunk in heard if chunk.direction == TO_REDIS]
    verb, name, _, *options, life = claim[0]
    assert (verb, options) == (b"SET", [b"NX", b"GET", b"PX"])
    assert int(life) == (60 + 30 + 5) * 1000 + 7 * 24 * 3600 * 1000
    assert claim[1] == [b"PTTL", name]


async def test_a_replay_costs_one_trip(tap: Wiretap, running: RunningGate) -> None:
    """A replay: the one flush of a claim, and one round trip."""
    await ask(running.port, key="k1")
    mark = len(tap.heard)
    assert (await ask(running.port, key="k1")).replayed
    heard = tap.since(mark)
    assert flushes(heard) == [CLAIM]
    assert trips(heard) == 1


async def test_a_refusal_costs_one_trip(tap: Wiretap, running: RunningGate) -> None:
    """A key that is used again for something else costs what a replay costs."""
    await ask(running.port, key="k1", body=b"one")
    mark = len(tap.heard)
    assert (await ask(running.port, key="k1", body=b"other")).problem == "key-reused"
    assert flushes(tap.since(mark)) == [CLAIM]


async def test_a_waiter_in_the_same_process_costs_nothing(origin: Origin, tap: Wiretap, running: RunningGate) -> None:
    """While the first is in flight, twenty duplicates attach to it: not a byte to Redis for any of them, neither
    while they wait nor when they are answered."""
    released = asyncio.Event()
    origin.answer = lambda exchange: held(exchange, released)
    data = request(key="k1", body=b'{"amount":1}')
    async with callers(21, running.port) as (first, *others):
        leading = first.send(data)
        await origin.until(2)
        mark = len(tap.heard)
        waiting = [other.send(data) for other in others]
        await eventually(lambda: _waiters(running), lambda count: count == 20)
        assert tap.since(mark) == []
        released.set()
        answers = await asyncio.gather(leading, *waiting)
        assert [answer.replayed for answer in answers] == [False] + [True] * 20
    assert flushes(tap.since(mark)) == [SETTLE]


async def _waiters(running: RunningGate) -> float:
    return running.count("oncegate_waiters", route="all")


async def test_requests_of_one_moment_share_a_flush(tap: Wiretap, running: RunningGate) -> None:
    """Sixteen first requests that arrive together are claimed in fewer flushes than there are requests, each
    with its own two commands."""
    async with callers(16, running.port) as crowd:
        mark = len(tap.heard)
        answers = await asyncio.gather(*(_one(caller, f"k{n}") for n, caller in enumerate(crowd)))
    assert {answer.label for answer in answers} == {"stored"}
    sent = flushes(tap.since(mark))
    assert Counter(itertools.chain(*sent)) == {"SET": 16, "PTTL": 16, "EVALSHA": 16}
    assert len([flush for flush in sent if "SET" in flush]) < 16


async def _one(caller: Caller, key: str) -> Response:
    return await caller.send(request(key=key))


async def test_a_lost_script_is_sent_again(tap: Wiretap, running: RunningGate, redis: RedisServer) -> None:
    """SCRIPT FLUSH under the running gate: the next settlement is answered NOSCRIPT, sent as EVAL, and stored."""
    with redis.client() as client:
        client.script_flush()
    mark = len(tap.heard)
    assert (await ask(running.port, key="k1")).label == "stored"
    assert flushes(tap.since(mark)) == [CLAIM, SETTLE, ["EVAL"]]
    mark = len(tap.heard)
    assert (await ask(running.port, key="k2")).label == "stored"
    assert flushes(tap.since(mark)) == [CLAIM, SETTLE]


GREETING = ["CLIENT", "SCRIPT", "INFO"]
#: What the user may do, on a key that nobody has.
PLAYED = ["SET", "GET", "PTTL", "DEL", "EVAL", "EVALSHA", "PING", "SPUBLISH"]
#: Whether the server accepts writes, on such a key too.
WRITES = ["SET"]
MARKER = ["GET"]


async def test_a_claim_whose_reply_is_lost_is_asked_again_by_its_holder(
    origin: Origin, tap: Wiretap, running: RunningGate
) -> None:
    """SET is done, and the connection ends before its reply: the gate connects anew, asks again with the same holder,
    is shown its own claim, writes it again, and runs the request: once, and stored."""
    mark = len(tap.heard)
    tap.lose_a_reply = True
    assert (await ask(running.port, key="k1")).label == "stored"
    heard = [chunk for chunk in tap.since(mark) if chunk.direction == TO_REDIS]
    assert flushes(heard) == [CLAIM, GREETING, PLAYED, WRITES, MARKER, CLAIM, ["EVALSHA"], SETTLE]
    first, _, _, _, _, again, rewritten, settled = [chunk.commands[0] for chunk in heard]
    assert first == again
    holder = first[2][HOLDER_AT:HOLDER_END]
    assert rewritten[3:] == [first[1], b"again", b"%d" % VERSION, holder]
    assert settled[3:7] == [first[1], b"change", b"%d" % VERSION, holder]
    assert (await ask(running.port, key="k1")).replayed
    assert origin.effects[b"k1"] == 1


async def test_a_settlement_whose_reply_is_lost_is_sent_again(
    origin: Origin, tap: Wiretap, running: RunningGate
) -> None:
    """The answer is written, and the connection ends before the reply: the client has its 201, not-stored, since
    nobody could say more; the same settlement is sent again, is told that it is done, and it is replayed then."""
    released = asyncio.Event()
    origin.answer = lambda exchange: held(exchange, released)
    async with callers(1, running.port) as (caller,):
        answering = caller.send(request(key="k1", body=b"1"))
        await origin.until(2)
        mark = len(tap.heard)
        tap.lose_a_reply = True
        released.set()
        answer = await answering
    assert (answer.status, answer.label) == (201, "not-stored")
    again = await eventually(lambda: ask(running.port, key="k1", body=b"1"), lambda seen: seen.label == "replayed")
    assert again.body == answer.body
    heard = [chunk for chunk in tap.since(mark) if chunk.direction == TO_REDIS]
    told = [chunk for chunk in heard if flushes([chunk]) == [SETTLE]]
    assert len(told) == 2
    assert told[0].data == told[1].data
    assert origin.effects[b"k1"] == 1
    assert running.count("oncegate_store_forgot_total") == 0


async def test_nothing_is_ever_searched(origin: Origin, tap: Wiretap) -> None:
    """From the connection's first byte through every kind of request, no command but those that touch one record
    by its name: no KEYS, no SCAN, no FLUSH, no SUBSCRIBE to everything."""
    async with gate(configuration(origin.url, store=tap.url, upstream="timeout: 100ms, late: 0s")) as running:
        for body in (b"one", b"one", b"other"):
            await ask(running.port, key="k1", body=body)
        origin.answer = _rate_limited
        await ask(running.port, key="k2")
        origin.answer = _broken
        await ask(running.port, key="k3")
        await ask(running.port, key="k3")
    said = {(*(word.upper() for word in command[: 2 if command[0] in (b"CLIENT", b"SCRIPT") else 1]),)
            for chunk in tap.heard if chunk.direction == TO_REDIS and flushes([chunk]) != [PLAYED]
            for command in chunk.commands}  # fmt: skip
    assert said == {
        (b"CLIENT", b"SETNAME"), (b"SCRIPT", b"LOAD"), (b"INFO",), (b"GET",), (b"SET",), (b"PTTL",), (b"EVALSHA",),
    }  # fmt: skip


async def _rate_limited(exchange: Exchange) -> None:
    await exchange.respond(429, b"slow down")


async def _broken(exchange: Exchange) -> None:
    exchange.reset()


async def test_no_key_and_no_credential_is_ever_told(
    origin: Origin, tap: Wiretap, running: RunningGate, redis: RedisServer
) -> None:
    """What Redis is told of a request is its name (the prefix and 43 characters), digests and the answer; neither
    the key, nor a credential, nor the request's target or body is anywhere in the bytes, in either direction."""
    secrets = {
        "Authorization": "Bearer tOkEn-4711",
        "X-API-Key": "sk_live_abcdef",
        "Cookie": "session=c00kie",
        "X-Tenant-Id": "tenant-0815",
    }
    fields = list(secrets.items())
    body = b'{"card":"4242424242424242"}'
    for key in ("my-very-own-key", "the-second-key"):
        first = await ask(running.port, target="/orders?voucher=SECRET", key=key, body=body, fields=fields)
        again = await ask(running.port, target="/orders?voucher=SECRET", key=key, body=body, fields=fields)
        assert (first.label, again.label) == ("stored", "replayed")
    origin.answer = _broken
    await ask(running.port, key="a-doubtful-key", body=body, fields=fields)
    told = b"".join(chunk.data for chunk in tap.heard)
    # The sample origin writes the key into its answer, and the answer is what Redis is for.
    answers = [b'{"id":"%b"}' % key for key in (b"warm", b"my-very-own-key", b"the-second-key")]
    for answer in answers:
        assert answer in told
        told = told.replace(answer, b"")
    for secret in (b"my-very-own-key", b"the-second-key", b"a-doubtful-key", b"tOkEn-4711", b"sk_live_abcdef",
                   b"c00kie", b"tenant-0815", b"voucher", b"4242424242424242", b"gate.test"):  # fmt: skip
        assert secret not in told, secret
    with redis.client() as client:
        names = client.keys("*")
    assert len(names) == 5
    assert [name for name in names if not NAME.fullmatch(name)] == [b"og:marker:test:"]
    named = {
        command[1 if command[0] == b"SET" else 3]
        for chunk in tap.heard
        if chunk.direction == TO_REDIS
        for command in chunk.commands
        if command[0] in (b"SET", b"EVALSHA") and flushes([chunk]) != [PLAYED] and b":permitted:" not in command[1]
    }
    assert named == set(names)
    assert FROM_REDIS in {chunk.direction for chunk in tap.heard}

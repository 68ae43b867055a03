"""What a record costs in Redis: our own bytes, the server's memory beside a plain SET of the same lengths, and the CPU
of a claim while records become many. `make test` goes to 10⁵ records, ONCEGATE_FAULTS=long to 10⁶; `-s` shows the
figures.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import pytest
import redis

from gateway.awaitable import AwaitableStore
from gateway.core import record as records
from gateway.core.fingerprint import Recipe, fingerprint
from gateway.core.key import Key, record_name
from gateway.core.message import Answer, Request
from gateway.core.record import Done, Record
from gateway.stores.codec import encode
from tests.servers import RedisServer, binaries, preferred
from tests.stores.worlds import WINDOW, a_claim, a_holder, redis_store

LONG = os.environ.get("ONCEGATE_FAULTS") == "long"
ROUTE = "a" * 10
ANSWER = Answer(201, b"Content-Type: application/json\r\n", b"{" + b"x" * 71 + b"}")

#: `used_memory` may be so many times that of plain SETs of the same lengths.
ABOVE_PLAIN = 1.05
#: A claim among many records may cost so many times that of one among a thousand.
FLAT = 1.15
FEW, MANY = 1_000, 1_000_000 if LONG else 100_000
BATCH, BATCHES = 250, 200 if LONG else 60
#: Records as they lie there, written by the server itself: loading them is not what is measured.
FILL = """
for n = ARGV[1], ARGV[2] do
  redis.call('SET', 'og:' .. string.format('%043d', n), ARGV[3], 'PX', 86400000 + n)
end
"""


def a_name(number: int) -> bytes:
    return record_name(b"shop", b"default", (), Key(b"order-%d" % number))


def a_record() -> Record:
    """A claim of a request with the plain recipe, on a route whose label has ten characters."""
    request = Request(
        b"POST", b"/orders", ((b"Host", b"shop.example"), (b"Content-Type", b"application/json")), b'{"amount":1}'
    )
    return replace(a_claim(), fingerprint=fingerprint(request, Recipe()), route=ROUTE)


def completed(claim: Record) -> Record:
    settlement = records.keep(claim, ANSWER, wall=claim.first_seen + 1000)
    assert settlement.record is not None
    return settlement.record


@pytest.fixture(params=list(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    server = RedisServer(binaries()[request.param]).start()
    yield server
    server.close()


def test_our_own_bytes() -> None:
    """A name and the header of a value are 150 bytes, whatever the key was. A completed record has five more, which
    part the head of its answer from the body; all else is the answer."""
    claim = a_record()
    name = b"og:" + a_name(1)
    assert len(name) + len(encode(claim)) <= 150
    assert len(name) == len(b"og:" + record_name(b"s" * 100, b"n" * 100, (), Key(b"k" * 255)))
    assert ANSWER.body is not None
    assert len(name) + len(encode(completed(claim))) - len(ANSWER.head) - len(ANSWER.body) <= 150 + 5


async def through_the_store(url: str, count: int) -> None:
    """So many keys are claimed and their answers kept."""
    store = redis_store(url)
    await store.open()
    try:
        template = a_record()
        for first in range(0, count, 500):
            claims = {a_name(n): replace(template, holder=a_holder()) for n in range(first, min(first + 500, count))}
            assert set(await asyncio.gather(*(store.claim(name, claim) for name, claim in claims.items()))) == {
                Done.WON
            }
            keeps = [(name, records.keep(claim, ANSWER, wall=claim.first_seen)) for name, claim in claims.items()]
            assert set(await asyncio.gather(*(store.settle(*each) for each in keeps))) == {Done.DONE}
    finally:
        await store.close()


def plainly(client: redis.Redis, count: int) -> None:
    """So many strings of the same lengths, by SET … PX."""
    value = b"x" * len(encode(completed(a_record())))
    for first in range(0, count, 500):
        pipe = client.pipeline(transaction=False)
        for n in range(first, min(first + 500, count)):
            pipe.set(b"pl:" + a_name(n), value, px=WINDOW)
        pipe.execute()


def grown(client: redis.Redis, before: int) -> int:
    """By how much the server's memory has grown, once nothing is on its way any more."""
    return min(int(client.info("memory")["used_memory"]) for _ in range(5)) - before


def emptied(client: redis.Redis) -> int:
    client.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]
    client.memory_purge()
    return min(int(client.info("memory")["used_memory"]) for _ in range(5))


async def test_a_record_takes_what_a_plain_string_takes(server: RedisServer) -> None:
    """20,000 completed records, claimed and kept by the store, against as many plain SETs of equal lengths in the same
    server: used_memory is at most 1.05 times as much."""
    count = 20_000
    with server.client() as client:
        plainly(client, 1000)  # whatever is allocated but once
        before = emptied(client)
        await through_the_store(server.url, count)
        assert client.dbsize() == count + 1, "the records, and the marker"
        ours = grown(client, before)
        before = emptied(client)
        plainly(client, count)
        plain = grown(client, before)
    print(f"{server.binary}: {ours / count:.0f} bytes a record, {plain / count:.0f} a plain string")
    assert ours <= ABOVE_PLAIN * plain


def cpu(client: redis.Redis) -> float:
    """Seconds of CPU that the server has used."""
    told = client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


class Side:
    """A server with so many records, and a store on it."""

    def __init__(self, binary: str, count: int) -> None:
        self.count = count
        self.server = RedisServer(binaries()[binary]).start()
        self.store: AwaitableStore = redis_store(self.server.url)
        self.client = self.server.client()
        self.servers_cpu: list[float] = []
        self.plain_cpu: list[float] = []
        self.our_cpu: list[float] = []
        self.bytes = 0
        self.stored = 0

    def fill(self) -> None:
        value = encode(completed(a_record()))
        before = emptied(self.client)
        fill = self.client.register_script(FILL)
        for first in range(0, self.count, 50_000):
            fill(args=[first, min(first + 50_000, self.count) - 1, value])
        assert self.client.dbsize() == self.count
        self.bytes = grown(self.client, before) // self.count
        self.stored = len(value) + 46
        self.client.config_set("hz", 1)  # its own housekeeping is not a claim's

    async def batch(self, claims: dict[bytes, Record], *, counts: bool) -> None:
        """Claims one behind the other in flushes of fifty, as a busy gate sends them; then they are gone again."""
        began_there, began_here = cpu(self.client), time.process_time()
        items = list(claims.items())
        for at in range(0, len(items), 50):
            won = await asyncio.gather(*(self.store.claim(*item) for item in items[at : at + 50]))
            assert set(won) == {Done.WON}
        here, there = time.process_time() - began_here, cpu(self.client) - began_there
        self.client.delete(*(b"og:" + name for name in claims))
        # Under other names, whose places in the server's memory nobody has just looked at.
        plain = {b"pl:" + name[::-1]: encode(claim) for name, claim in items}
        began_plain, names = cpu(self.client), list(plain)
        for at in range(0, len(names), 50):
            plainly = self.client.pipeline(transaction=False)
            for key in names[at : at + 50]:
                plainly.set(key, plain[key], px=WINDOW, nx=True, get=True)
                plainly.pttl(key)
            plainly.execute()
        by_plain = cpu(self.client) - began_plain
        self.client.delete(*names)
        if counts:
            self.plain_cpu.append(by_plain / len(claims) * 1e6)
            self.our_cpu.append(here / len(claims) * 1e6)
            self.servers_cpu.append(there / len(claims) * 1e6)

    async def close(self) -> None:
        await self.store.close()
        self.client.close()
        self.server.close()


async def test_a_claim_costs_the_same_among_many() -> None:
    """Batches of claims, in turn among a thousand records and among a hundred thousand (long: a million): what one
    costs us is the same within 15 %. What it costs the server grows with what is spread wider in its memory: within
    15 % as a plain SET … NX GET of equal lengths grows in the same server."""
    name = next(name for name, path in binaries().items() if path == preferred())
    few, many = Side(name, FEW), Side(name, MANY)
    try:
        for side in (few, many):
            await asyncio.to_thread(side.fill)
            await side.store.open()
        template, number = a_record(), 0
        for turn in range(BATCHES + 5):
            for side in (few, many) if turn % 2 else (many, few):
                claims = {a_name(number + n): replace(template, holder=a_holder()) for n in range(BATCH)}
                number += BATCH
                await side.batch(claims, counts=turn >= 5)
        for side in (few, many):
            ours, theirs, plain = map(median, (side.our_cpu, side.servers_cpu, side.plain_cpu))
            print(
                f"{side.count} records: {side.bytes} bytes each of used_memory for {side.stored} stored; a claim costs "
                f"us {ours:.1f} µs of CPU and the server {theirs:.1f} (a plain SET … NX GET {plain:.1f})"
            )
        assert median(many.our_cpu) <= FLAT * median(few.our_cpu)
        grows = median(many.servers_cpu) / median(few.servers_cpu)
        assert grows <= FLAT * median(many.plain_cpu) / median(few.plain_cpu)
    finally:
        await few.close()
        await many.close()

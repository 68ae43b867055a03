"""Two configurations, one store: a fleet is rolled from one to the other while clients retry the same keys through
whichever gate they meet.

What is named by the same names is shared, whatever else changes. What would be compared otherwise is refused as
`policy-changed`. What would be named otherwise makes the whole gate refuse, `identity-changed`. In no case does a key
run twice, and nobody is given another's answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.crowd import admin
from tests.harness import Exchange, Origin, Response, RunningGate, ask, configuration, gate
from tests.servers import RedisServer

TENANTS = ("acme", "globex")
#: So many keys of each tenant have run before the first gateway is replaced, and as many more before the second.
KEYS = 8
#: Seconds between the first try of one key and of the next, and from a key's first try to each of the others.
STEP, TRIES = 0.04, (0.0, 0.0, 0.25, 0.6)
PATIENCE = 60.0

How = Mapping[str, str]
TWO = """\
  - {name: payments, match: {path: /payments/**}, upstream: origin}
  - {name: orders, match: {path: /orders/**}, upstream: origin}"""
TURNED = "\n".join(TWO.splitlines()[::-1])
RENAMED = TWO.replace("name: payments", "name: pay").replace("name: orders", "name: baskets")
SHORT, LONG = "timeout: 2s, late: 1s", "timeout: 30s, late: 10s"

#: The old configuration and the new one.
SHARED: dict[str, tuple[How, How]] = {
    "names": ({"routes": TWO}, {"routes": RENAMED}),
    "order": ({"routes": TWO}, {"routes": TURNED}),
    "window": ({"policy": "window: 10m"}, {"policy": "window: 48h, doubt_window: 7d"}),
    "shorter timeout": ({"upstream": LONG}, {"upstream": SHORT}),
    "longer timeout": ({"upstream": SHORT}, {"upstream": LONG}),
}
COMPARED: dict[str, tuple[How, How]] = {
    "fingerprint with a header more": ({}, {"policy": "fingerprint: {headers: [X-Currency]}"}),
    "fingerprint with a header less": ({"policy": "fingerprint: {headers: [X-Currency]}"}, {}),
    "bind": ({}, {"policy": "bind: [default, header:X-Tenant-Id]"}),
}
NAMED: dict[str, tuple[How, How]] = {
    "scope": ({}, {"policy": "scope: [header:X-Tenant-Id]"}),
    "namespace": ({}, {"policy": "namespace: pay"}),
    "key source": ({}, {"policy": "key: {from: header:X-Request-Id}"}),
    "secret": ({"top": "secret: sesame"}, {"top": "secret: sesam"}),
}


@dataclass(frozen=True)
class Tried:
    """One try: whose, of which key, through a gate of which configuration, and what came."""

    tenant: str
    key: str
    new: bool
    answer: Response


class Roll:
    """Two gates, that are rolled one after the other, and their customers."""

    def __init__(self, origin: Origin, redis: RedisServer, old: How, new: How) -> None:
        self.origin = origin
        self.tried: list[Tried] = []
        self.ran: Counter[tuple[str, str]] = Counter()
        self._store = redis.url
        self._how = (old, new)
        self._open: list[AbstractAsyncContextManager[RunningGate]] = []
        self.gates: list[tuple[bool, RunningGate]] = []
        self.sent = 0
        self.over = False
        origin.answer = self._serve

    async def _serve(self, exchange: Exchange) -> None:
        """Takes a moment; its answer says whose it is, and is never the same twice."""
        tenant, key = (exchange.request.values(name)[0].decode() for name in (b"X-Tenant-Id", b"Idempotency-Key"))
        self.ran[tenant, key] += 1
        await asyncio.sleep(0.03)
        await exchange.respond(201, json.dumps([tenant, key, secrets.token_hex(4)]).encode())

    async def start(self, *, new: bool) -> None:
        how = self._how[new]
        context = gate(configuration(self.origin.url, store=self._store, service="shop", **how))  # type: ignore[arg-type]
        self.gates.append((new, await context.__aenter__()))
        self._open.append(context)

    async def stop(self, which: int = 0) -> None:
        """A gate, the oldest, is stopped: it is named to nobody any more, and ends what it has in flight."""
        self.gates.pop(which)
        await self._open.pop(which).__aexit__(None, None, None)

    async def close(self) -> None:
        while self._open:
            await self.stop()

    async def customer(self, tenant: str, key: str, after: float, *, patient: bool = True) -> None:
        """Asks whichever gate it meets, and again while it is told to."""
        await asyncio.sleep(after)
        fields = [
            ("X-Tenant-Id", tenant), ("Authorization", f"Bearer {tenant}"), ("X-Currency", "EUR"),
            ("X-Request-Id", key), ("Content-Type", "application/json"),
        ]  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            while True:
                new, running = random.choice(self.gates)
                try:
                    answer = await ask(running.port, target=f"/orders/{tenant}", key=key, fields=fields)
                except OSError:  # it has just been stopped
                    continue
                self.tried.append(Tried(tenant, key, new, answer))
                if not patient or not (answer.status == 503 or answer.problem == "in-flight"):
                    return
                await asyncio.sleep(0.05)

    async def load(self) -> None:
        """Send new keys until the roll is over, and `KEYS` more. Each key is sent twice at once and twice later; the
        text of every fourth key is used by both tenants."""
        after = 0
        async with asyncio.TaskGroup() as customers:
            while after < KEYS:
                after += self.over
                for tenant in TENANTS:
                    key = f"k{self.sent}" if self.sent % 4 == 0 else f"{tenant}-{self.sent}"
                    for wait in TRIES:
                        customers.create_task(self.customer(tenant, key, wait))
                self.sent += 1
                await asyncio.sleep(STEP)

    async def more_keys(self) -> None:
        """Wait until `KEYS` more keys of each tenant have run, however slow the machine is."""
        goal = len(self.ran) + KEYS * len(TENANTS)
        async with asyncio.timeout(PATIENCE):
            while len(self.ran) < goal:
                await asyncio.sleep(STEP / 4)

    def holds(self) -> None:
        """At most one effect for each operation, one answer of its own for all who have one."""
        assert max(self.ran.values()) == 1, self.ran.most_common(3)
        answers: defaultdict[tuple[str, str], set[bytes]] = defaultdict(set)
        for one in self.tried:
            if one.answer.status == 201:
                answers[one.tenant, one.key].add(one.answer.body)
        for (tenant, key), bodies in answers.items():
            assert len(bodies) == 1, (tenant, key)
            assert json.loads(bodies.pop())[:2] == [tenant, key], "another's answer"
        assert set(answers) == set(self.ran)

    def seen(self, *, new: bool) -> Counter[str]:
        """What gates of one configuration said, by the label of an answer or the slug of a problem."""
        return Counter(one.answer.problem or str(one.answer.label) for one in self.tried if one.new is new)


@asynccontextmanager
async def two_gates(origin: Origin, redis: RedisServer, old: How, new: How) -> AsyncIterator[Roll]:
    """Two gates of the old configuration."""
    roll = Roll(origin, redis, old, new)
    try:
        await roll.start(new=False)
        await roll.start(new=False)
        yield roll
    finally:
        await roll.close()


async def rolled_under_load(roll: Roll) -> None:
    """Both gates are replaced by new ones, one after the other, while the customers come; and then all come again."""
    load = asyncio.create_task(roll.load())
    for _ in range(2):
        await roll.more_keys()
        await roll.start(new=True)
        await roll.stop()
    roll.over = True
    await load
    await asyncio.gather(*(roll.customer(tenant, key, 0) for tenant, key in list(roll.ran)))


#: What every configuration says to a tenant who comes with the other's key.
BETWEEN_TENANTS = {"credentials-differ", "key-reused"}


@pytest.mark.parametrize("change", SHARED)
async def test_what_is_named_alike_is_shared(origin: Origin, redis: RedisServer, change: str) -> None:
    """Names, order, windows and timeouts of routes: what gates of the old configuration ran the new ones replay, and
    the other way round; nobody is refused for it, and no key runs twice."""
    async with two_gates(origin, redis, *SHARED[change]) as roll:
        await rolled_under_load(roll)
        roll.holds()
        for new in (False, True):
            assert roll.seen(new=new)["stored"] > 0
            assert set(roll.seen(new=new)) <= {"stored", "replayed", "in-flight", *BETWEEN_TENANTS}
        _crossed(roll)


@pytest.mark.parametrize("change", COMPARED)
async def test_what_is_compared_otherwise_is_refused(origin: Origin, redis: RedisServer, change: str) -> None:
    """Fingerprint and bind: under the other configuration a key that has run is 409 policy-changed; never a run, nor a
    422 that would send the client off with a new key, nor an answer that was not earned under these rules."""
    async with two_gates(origin, redis, *COMPARED[change]) as roll:
        await rolled_under_load(roll)
        roll.holds()
        for new in (False, True):
            assert roll.seen(new=new)["stored"] > 0
            assert set(roll.seen(new=new)) <= {"stored", "replayed", "in-flight", "policy-changed", *BETWEEN_TENANTS}
        assert roll.seen(new=True)["policy-changed"] > 0
        ran_under = {(one.tenant, one.key): one.new for one in roll.tried if one.answer.label == "stored"}
        for one in roll.tried:
            of_other = ran_under.get((one.tenant, one.key), one.new) is not one.new
            assert not (of_other and one.answer.status == 201)
            if one.answer.problem == "policy-changed":
                assert (one.answer.status, one.answer.label) == (409, "refused")
        _crossed(roll)


@pytest.mark.parametrize("change", NAMED)
async def test_what_is_named_otherwise_stops_the_roll(origin: Origin, redis: RedisServer, change: str) -> None:
    """Scope, namespace, key source and secret: a gate of the new configuration serves nothing that is guarded, 503
    identity-changed, and is not ready for it, so the roll stops at its first gate; customers who meet it retry and are
    served by the other. Started with the old configuration again it serves."""
    async with two_gates(origin, redis, *NAMED[change]) as roll:
        load = asyncio.create_task(roll.load())
        await roll.more_keys()
        await roll.start(new=True)
        await roll.stop()
        roll.over = True
        status, told = await admin(roll.gates[1][1].admin_port, "/ready/guarded")
        assert (status, told["reason"].partition(":")[0]) == (503, "identity-changed")
        await load
        assert roll.gates[0][0] is False
        await roll.stop(1)
        await roll.start(new=False)
        await asyncio.gather(*(roll.customer(tenant, key, 0) for tenant, key in list(roll.ran)))
        roll.holds()
        assert set(roll.seen(new=True)) == {"identity-changed"}
        assert set(roll.seen(new=False)) <= {"stored", "replayed", "in-flight", *BETWEEN_TENANTS}
        assert len(roll.ran) >= KEYS * len(TENANTS)


def _crossed(roll: Roll) -> None:
    """Keys were met by gates of both configurations, or this was no roll."""
    met: defaultdict[tuple[str, str], set[bool]] = defaultdict(set)
    for one in roll.tried:
        met[one.tenant, one.key].add(one.new)
    assert sum(len(each) == 2 for each in met.values()) >= KEYS

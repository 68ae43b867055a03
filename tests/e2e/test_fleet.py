"""Three gates, each a process, on one Redis, as a fleet runs: storms of duplicates through all of them."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from tests.e2e.crowd import callers
from tests.e2e.test_storms import a_distinct_answer, at_once, end_to_end
from tests.harness import GateProcess, Origin, Response, ask, configuration
from tests.servers import RedisServer, binaries, preferred

GATES = 3
KEYS = 60
COPIES = 30
#: Keys whose storms rage at the same time.
LANES = 6


@asynccontextmanager
async def fleet(text: str, count: int = GATES) -> AsyncIterator[list[GateProcess]]:
    gates = [GateProcess(text) for _ in range(count)]
    try:
        await asyncio.gather(*(gate.start() for gate in gates))
        yield gates
    finally:
        for gate in gates:
            gate.close()


def counts(gate: GateProcess) -> Counter[str]:
    """What a scrape of this gate shows of the route, by metric and verdict, kind or settlement."""
    with urllib.request.urlopen(f"http://127.0.0.1:{gate.admin_port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for family in parsed(text):
        for sample in family.samples:
            if sample.labels.get("route") == "all" and "le" not in sample.labels:
                for label in ("verdict", "kind", "settlement"):
                    if label in sample.labels:
                        found[f"{sample.name} {sample.labels[label]}"] += sample.value  # type: ignore[assignment]
                found[sample.name] += sample.value  # type: ignore[assignment]
    return found


async def storm(*ports: int) -> dict[str, list[Response]]:
    """Every key from ten keep-alive connections to each gate at the same moment, a few keys side by side."""
    answers: dict[str, list[Response]] = {}

    async def lane(n: int, keys: list[str]) -> None:
        turned = ports[n % len(ports) :] + ports[: n % len(ports)]  # so that each gate comes first for some keys
        async with callers(COPIES, *turned) as crowd:
            for key in keys:
                answers[key] = await at_once(crowd, key)

    keys = [f"fleet-{n:02}" for n in range(KEYS)]
    async with asyncio.timeout(40):
        await asyncio.gather(*(lane(n, keys[n::LANES]) for n in range(LANES)))
    return answers


def agree(answers: dict[str, list[Response]], origin: Origin) -> None:
    """One effect per key; one answer per key, byte for byte, and no two keys with the same; one client of each is told
    that it was stored, the others that theirs is a replay."""
    assert origin.effects == Counter({key.encode(): 1 for key in answers})
    for key, responses in answers.items():
        assert len({(response.status, response.body) for response in responses}) == 1, key
        assert Counter((response.label, response.replayed) for response in responses) == {
            ("stored", False): 1,
            ("replayed", True): COPIES - 1,
        }, key
        assert len({tuple(end_to_end(response)) for response in responses}) == 1, key
    assert len({responses[0].body for responses in answers.values()}) == len(answers) == KEYS


@pytest.fixture(params=[*binaries(), "replicated"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """A Redis of each kind, and one whose writes count once a replica has them."""
    if request.param != "replicated":
        with RedisServer(binaries()[request.param]) as server:
            yield server.url
        return
    with (
        RedisServer(preferred(), arguments=("--repl-diskless-sync-delay", "0")) as server,
        RedisServer(preferred(), arguments=("--replicaof", f"127.0.0.1 {server.port}")),
    ):
        with server.client() as client:
            for _ in range(200):
                client.set("in-step", 1, px=1000)
                if client.execute_command("WAIT", 1, 50) == 1:
                    break
        yield f"{server.url}?durability=replicated&replicas=1&wait=2s"


async def test_a_storm_over_three_gates_has_one_effect(origin: Origin, store: str) -> None:
    """30 copies of each of 60 keys at once, ten through each gate: one effect per key, byte-equal answers. What the
    three gates count adds up to what was sent, each had a share of the first requests and of the duplicates, and
    nothing is left in flight. A fourth gate, that has seen none of it, replays the same bytes."""
    origin.answer = a_distinct_answer
    text = configuration(origin.url, store=store)
    async with fleet(text) as gates:
        answers = await storm(*(gate.port for gate in gates))
        agree(answers, origin)
        each = await asyncio.gather(*(asyncio.to_thread(counts, gate) for gate in gates))
        total = sum(each, Counter[str]())
        assert total["oncegate_requests_total"] == KEYS * COPIES
        assert total["oncegate_requests_total forward"] == KEYS
        assert total["oncegate_duplicates_total"] == KEYS * (COPIES - 1)
        caught = [total[f"oncegate_duplicates_total {kind}"] for kind in ("attached", "replayed")]
        assert sum(caught) == KEYS * (COPIES - 1)
        assert total["oncegate_settlements_total"] == total["oncegate_settlements_total keep"] == KEYS
        for one in each:
            assert one["oncegate_requests_total forward"] > 0, "each gate was to win some keys"
            assert one["oncegate_duplicates_total attached"] > 0, "each gate was to have some who wait"
            assert one["oncegate_requests_total"] == KEYS * COPIES // GATES
        assert (total["oncegate_in_flight"], total["oncegate_waiters"]) == (0, 0)
        async with fleet(text, 1) as (newcomer,):
            for key, responses in list(answers.items())[::7]:
                again = await ask(
                    newcomer.port, key=key, body=b'{"amount":100}', fields=[("Content-Type", "application/json")]
                )
                assert (again.status, again.body, again.replayed) == (201, responses[0].body, True)
    assert sum(origin.effects.values()) == KEYS

"""A primary dies under load, and Sentinels put a replica in its place: real servers, real gates.

With durability `replicated`, and as many acknowledgements as there are replicas, no key runs twice. With
`single` what the replicas did not have yet is lost: the docs warn of it, and here it is seen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.stand import eventually
from tests.fleet import Fleet
from tests.servers import RedisServer, preferred

from .history import Seen
from .scenarios import names
from .stage import LEASE, TIMES, Gate, Stage

REPLICATED = "durability=replicated&replicas=2&wait=100ms"
SINGLE = "durability=single"
#: Seconds in which a failover is over, its dead primary back, and every client served.
PATIENCE = 45.0


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet(preferred()).start()
    yield fleet
    fleet.thaw(*(node for node in fleet.nodes if node.running))
    fleet.close()


async def succeeded(fleet: Fleet, old: RedisServer) -> RedisServer:
    """Another primary stands in its place, and the old one follows it."""
    new = await asyncio.to_thread(fleet.until_promoted, old)
    await asyncio.to_thread(fleet.rejoin, old, new)
    await asyncio.to_thread(fleet.until, lambda: fleet.in_step(new) == 2, "all replicas follow")
    await asyncio.to_thread(fleet.agree, new)
    return new


async def served(stage: Stage, gates: list[Gate], keys: list[str], copies: int) -> list[Seen]:
    """Each key asked for through all gates by clients who retry until the failover is over."""
    return await asyncio.gather(
        *(
            stage.retry(gates[copy % len(gates)], key, f"{key}/{copy}", origin="linger=0.02", seconds=PATIENCE)
            for key in keys
            for copy in range(copies)
        )
    )


async def test_a_primary_killed_under_load_doubles_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """The primary is killed while duplicates come through two gates, again and again: each key has one effect at
    most, every client is answered, and most keys are done."""
    async with Stage(tmp_path / "stage", fleet.url(REPLICATED)) as stage:
        gates = [await stage.gate(), await stage.gate()]
        primary, keys = fleet.nodes[0], []
        for turn in range(max(1, TIMES * 2)):
            fresh = names(f"killed-{turn}", 60)
            keys += fresh
            load = asyncio.create_task(served(stage, gates, fresh, 3))
            await asyncio.sleep(random.uniform(0.01, 0.15))
            primary.kill()
            primary = await succeeded(fleet, primary)
            seen = await load
            answered = {one.key for one in seen if one.status == 201}
            assert {one.status for one in seen} <= {201, 409}, seen
            assert len(answered) >= len(fresh) * 2 // 3
        await stage.settle(gates[0], keys)
        assert stage.faults() == []


async def lagging(fleet: Fleet, stage: Stage) -> list[Seen]:
    """The replicas have fallen behind while keys are asked for; the primary dies before they catch up."""
    gates = [await stage.gate(), await stage.gate()]
    keys = names("lagging", 10)
    old, replicas = fleet.nodes[0], fleet.nodes[1:]
    await asyncio.to_thread(fleet.leave_behind, old)
    await asyncio.gather(*(stage.ask(gates[n % 2], key, "first") for n, key in enumerate(keys)))
    old.kill()
    fleet.thaw(*replicas)
    await succeeded(fleet, old)
    seen = await served(stage, gates, keys, 2)
    await stage.settle(gates[0], keys)
    return seen


async def test_replicas_that_lag_double_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """What no replica has was not claimed: nothing ran before the failover, and everything runs after it."""
    async with Stage(tmp_path / "stage", fleet.url(REPLICATED)) as stage:
        seen = await lagging(fleet, stage)
        assert stage.faults() == []
        assert {one.status for one in seen} == {201}
        refused = [one for one in stage.history.read() if one.client == "first"]
        assert {(one.status, one.slug) for one in refused} == {(503, "store-unavailable")}


async def test_single_loses_what_replicas_lag_behind(fleet: Fleet, tmp_path: Path) -> None:
    """The warning of the docs, seen: with `single` these keys were claimed, run and answered; the replica that is
    promoted knows nothing of them; their retries run again."""
    async with Stage(tmp_path / "stage", fleet.url(SINGLE)) as stage:
        await lagging(fleet, stage)
        doubled = [fault for fault in stage.faults() if fault.endswith("2 effects")]
        assert len(doubled) == 10


async def test_an_old_primary_that_kept_a_replica_doubles_nothing(tmp_path: Path) -> None:
    """The primary freezes; one replica is promoted, the other stays with the old primary, which then goes on as if
    nothing had been. One acknowledgement would be had on both sides, so `replicas=1` is refused by name; with two
    the old side claims nothing."""
    fleet = await asyncio.to_thread(Fleet(preferred(), stubborn=1).start)
    try:
        async with Stage(tmp_path / "refused", fleet.url("durability=replicated&replicas=1")) as stage:
            gate = await stage.gate()
            refused = await stage.ask(gate, "refused")
            assert (refused.status, refused.slug) == (503, "store-unavailable")
            assert "replicas=1" in gate.ready_guarded()
            assert "use replicas=2" in gate.ready_guarded()
            assert stage.asked() == []
        async with Stage(tmp_path / "stage", fleet.url(REPLICATED)) as stage:
            gates = [await stage.gate(), await stage.gate()]
            keys, old = names("kept", 30), fleet.nodes[0]
            before = await served(stage, gates, keys[:10], 2)
            assert {one.status for one in before} == {201}
            fleet.freeze(old)
            load = asyncio.create_task(served(stage, gates, keys, 2))
            new = await asyncio.to_thread(fleet.until_promoted, old)
            fleet.thaw(old)
            await eventually(lambda: fleet.in_step(old) == 1, "the old primary and its replica go on", 5)
            await asyncio.sleep(LEASE)  # two sides: one with a replica, one without
            undone = {line.key for line in stage.asked()} - set(keys[:10])
            # The stubborn replica is killed and replaced, as its operator would do.
            fleet.nodes[-1].kill()
            await asyncio.to_thread(fleet.rejoin, fleet.nodes[-1], new)
            with old.client() as client:
                client.execute_command("REPLICAOF", "127.0.0.1", str(new.port))
            await asyncio.to_thread(fleet.until, lambda: fleet.in_step(new) == 2, "all replicas follow")
            seen = await load
            await stage.settle(gates[0], keys)
            assert stage.faults() == []
            assert {one.status for one in seen} <= {201, 409}
            assert undone == set(), "a key was won with one acknowledgement"
    finally:
        fleet.thaw(*(node for node in fleet.nodes if node.running))
        fleet.close()

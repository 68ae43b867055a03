"""A Redis Cluster under real gates: slots move, and a primary dies, while duplicates come through two of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import RedisCluster
from tests.servers import preferred

from .history import Seen
from .scenarios import names
from .stage import TIMES, Gate, Stage

#: Seconds in which every client is served.
PATIENCE = 25.0


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster(preferred()).start()
    yield cluster
    cluster.close()


async def served(stage: Stage, gates: list[Gate], keys: list[str], copies: int) -> list[Seen]:
    """Each key asked for through all gates by clients who retry."""
    return await asyncio.gather(
        *(
            stage.retry(gates[copy % len(gates)], key, f"{key}/{copy}", origin="linger=0.02", seconds=PATIENCE)
            for key in keys
            for copy in range(copies)
        )
    )


def redirections(cluster: RedisCluster) -> dict[str, int]:
    return {code: sum(node.errors(code) for node in cluster.running) for code in ("MOVED", "ASK")}


async def test_slots_that_move_under_gates_double_nothing(cluster: RedisCluster, tmp_path: Path) -> None:
    """Two thousand slots are on their way for most of the time, and arrive one after the other, while duplicates come
    through two gates: every client is answered, each key has one effect, and all its answers are byte-equal. Both
    redirections were met."""
    before = redirections(cluster)
    source, target = cluster.primaries[0], cluster.primaries[1]
    slots = range(2000)
    ids = {node: node.id for node in (source, target)}

    def on_their_way(start: bool) -> None:
        with source.client() as here, target.client() as there:
            for slot in slots:
                if start:
                    there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
                    here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
                    continue
                while keys := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                    here.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
                there.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
                here.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    async with Stage(tmp_path / "stage", cluster.url) as stage:
        gates = [await stage.gate(), await stage.gate()]
        keys: list[str] = []
        for start in (True, False):
            moves = asyncio.create_task(asyncio.to_thread(on_their_way, start))
            turn = 0
            while not moves.done() or not turn:
                fresh = names(f"moving-{start}-{turn}", 40)
                keys += fresh
                seen = await served(stage, gates, fresh, 3)
                assert {one.status for one in seen} == {201}, seen
                turn += 1
            await moves
        await stage.settle(gates[0], keys)
        assert stage.faults() == []
        done = [line.key for line in stage.asked()]
        assert sorted(done) == sorted(keys), "one effect per key, and no key without"
    after = redirections(cluster)
    assert after["MOVED"] > before["MOVED"]
    assert after["ASK"] > before["ASK"]


async def test_a_primary_of_a_cluster_killed_under_load_doubles_nothing(cluster: RedisCluster, tmp_path: Path) -> None:
    """With every acknowledgement asked for, a primary is killed while duplicates come through two gates: each key has
    one effect at most, every client is answered, and most keys are done."""
    async with Stage(tmp_path / "stage", f"{cluster.url}?durability=replicated&replicas=1&wait=100ms") as stage:
        gates = [await stage.gate(), await stage.gate()]
        keys: list[str] = []
        for turn in range(max(1, TIMES)):
            fresh = names(f"killed-{turn}", 60)
            keys += fresh
            load = asyncio.create_task(served(stage, gates, fresh, 3))
            await asyncio.sleep(random.uniform(0.01, 0.15))
            lost = next(node for node in random.sample(cluster.running, 6) if node.leads)
            lost.kill()
            await asyncio.to_thread(cluster.until, lambda: _leading(cluster) == 3, "another has its slots")
            # Only now: a primary that comes back empty before it was missed would take its replica's records away.
            await asyncio.to_thread(lost.start)
            await asyncio.to_thread(cluster.until, cluster.well, "it follows")
            seen = await load
            assert {one.status for one in seen} <= {201, 409}, seen
            assert len({one.key for one in seen if one.status == 201}) >= len(fresh) * 2 // 3
        await stage.settle(gates[0], keys)
        assert stage.faults() == []


def _leading(cluster: RedisCluster) -> int:
    return sum(node.leads for node in cluster.running)

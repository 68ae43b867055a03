"""Which Sentinel is believed where they differ."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.stores.redis.sentinels import Sentinels, Word, believed
from gateway.stores.redis.servers import Address, Servers
from tests.fleet import MASTER, Fleet, SentinelServer
from tests.servers import preferred

NEW, OLD = Address("127.0.0.1", 1), Address("127.0.0.1", 2)


@pytest.mark.parametrize(
    ("said", "is_primary"),
    [
        ([], None),
        ([(OLD, 1)], OLD),
        ([(OLD, 1), (NEW, 2)], NEW),
        ([(OLD, 1), (OLD, 1), (NEW, 2)], NEW),
        ([(OLD, 2), (NEW, 2), (NEW, 2)], NEW),
        ([(NEW, 2), (OLD, 2), (NEW, 2)], NEW),
        ([(OLD, 10), (OLD, 10), (NEW, 9)], OLD),
    ],
)
def test_the_latest_failover_counts_and_then_the_most(
    said: list[tuple[Address, int]], is_primary: Address | None
) -> None:
    """Whoever has the highest epoch knows of failovers that the others have not heard of; within one, most decide."""
    word = believed([Word(address, epoch, 1) for address, epoch in said])
    assert (word and word.address) == is_primary


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet(preferred(), replicas=1, sentinels=2)
    try:
        yield fleet.start()
    finally:
        fleet.close()


async def found(*sentinels: SentinelServer) -> Address:
    hosts = tuple(Address("127.0.0.1", sentinel.port) for sentinel in sentinels)
    return await Sentinels(Servers(hosts, master=MASTER)).find()


async def test_one_that_stays_behind_is_not_followed(fleet: Fleet, tmp_path: Path) -> None:
    """A Sentinel that holds a replica for the primary is first in the URL. It is believed neither among others nor
    alone; and the one that is right is believed alone."""
    primary, replica = fleet.nodes
    behind = SentinelServer(preferred(), replica.port).start(tmp_path)
    try:
        await asyncio.to_thread(
            fleet.until, lambda: _says(behind) == (replica.port, "slave"), "it holds on to a replica"
        )
        right = Address("127.0.0.1", primary.port)
        assert await found(behind, *fleet.sentinels) == right
        assert await found(behind, fleet.sentinels[0]) == right
        with pytest.raises(Exception, match="knows a primary `payments` that is up"):
            await found(behind)
    finally:
        behind.close()


async def test_one_that_hangs_costs_no_time_where_the_others_agree(fleet: Fleet) -> None:
    """A listener that never answers is waited for a moment, not its half second."""
    hung = SentinelServer(preferred(), 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung.port = silent.getsockname()[1]
        began = time.monotonic()
        assert await found(hung, *fleet.sentinels) == Address("127.0.0.1", fleet.nodes[0].port)
        assert time.monotonic() - began < 0.4


def _says(sentinel: SentinelServer) -> tuple[int, str]:
    try:
        with sentinel.client() as client:
            state = client.sentinel_master(MASTER)
    except OSError:
        return 0, ""
    return int(state["port"]), str(state["role-reported"])

"""Which Sentinel is believed where they differ."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from gateway.doctor import Store, look_at
from gateway.stores.redis.sentinels import Sentinels, Word, believed
from gateway.stores.redis.servers import Address, Servers
from tests.fleet import MASTER, Fleet, SentinelServer
from tests.servers import RedisServer, free_port, preferred
from tests.stores.test_bells import another

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


class Unsure(SentinelServer):
    """A Sentinel whose file has `lines` only."""

    def __init__(self, *lines: str) -> None:
        super().__init__(preferred(), 0)
        self._lines = (f"port {self.port}", "bind 127.0.0.1", *lines)


async def test_each_says_why_it_has_no_answer(tmp_path: Path) -> None:
    """A dead one, one that hangs, one that wants a password, one that knows no such primary, one that sees it as down,
    a server that is no Sentinel, and one that hangs up: each is named with its own reason, to the store's log and
    `/ready/guarded` (its trouble) and to the doctor."""
    down = f"sentinel monitor {MASTER} 127.0.0.1 {free_port()} 1", f"sentinel down-after-milliseconds {MASTER} 200"
    strict, ignorant, blind = Unsure('requirepass "secret"'), Unsure(), Unsure(*down)

    async def nobody_home(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    with ExitStack() as stack:
        for one in (strict, ignorant, blind):
            stack.callback(one.close)
            one.start(tmp_path)
        server = stack.enter_context(RedisServer(preferred()))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        rude = await asyncio.start_server(nobody_home, "127.0.0.1", 0)
        await asyncio.to_thread(Fleet.until, lambda: "s_down" in _flags(blind), "it is down to one of them")
        reasons = {
            free_port(): "Connect call failed|Connection refused",
            silent.getsockname()[1]: "no answer within 0.5 s",
            strict.port: "refused SENTINEL MASTER: NOAUTH",
            ignorant.port: "refused SENTINEL MASTER: ERR No such master",
            blind.port: r"it sees that server as down \([a-z_,]*s_down",
            server.port: "refused SENTINEL MASTER: ERR unknown command",
            rude.sockets[0].getsockname()[1]: r"hung up before it answered \(.*\); it may speak TLS only: rediss://",
        }
        url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in reasons)}/{MASTER}"
        async with another(url) as store:
            trouble = store.trouble
        said = " ".join((await look_at(Store(url))).text.split())
        rude.close()
        await rude.wait_closed()
    assert trouble.startswith(f"no Sentinel knows a primary `{MASTER}` that is up (")
    for port, reason in reasons.items():
        assert re.search(rf"127\.0\.0\.1:{port}: {reason}", trouble), (reason, trouble)
        assert re.search(rf"127\.0\.0\.1:{port}: {reason}", said), (reason, said)


def _flags(sentinel: SentinelServer) -> str:
    try:
        with sentinel.client() as client:
            return str(client.execute_command("SENTINEL", "MASTER", MASTER))
    except (OSError, redis.RedisError):
        return ""


def _says(sentinel: SentinelServer) -> tuple[int, str]:
    try:
        with sentinel.client() as client:
            state = client.sentinel_master(MASTER)
    except OSError:
        return 0, ""
    return int(state["port"]), str(state["role-reported"])

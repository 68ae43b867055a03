"""Floods of slow and of many clients, beside good ones: the good are served, memory stays, descriptors come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.floods import KINDS
from tests.edge.stand import eventually
from tests.harness import GateProcess, ask, configuration
from tests.servers import free_port

LONG = os.environ.get("ONCEGATE_FAULTS") == "long"
#: Seconds of each flood, how many flood at once, and good requests per second.
SECONDS = 30 if LONG else 3
FLOODERS = 1000 if LONG else 200
RATE = 100
#: Seconds until a good client counts as lost, and how many in a thousand may be.
PATIENCE = 20
LOST = 0.001
GROWTH = 64 << 20

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads the gate's memory from /proc")


def resident(gate: GateProcess) -> int:
    """Bytes of memory that the gate's process has now."""
    assert gate.process is not None
    return int(Path(f"/proc/{gate.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(gate: GateProcess) -> int:
    """How many files and sockets it has open."""
    assert gate.process is not None
    return len(os.listdir(f"/proc/{gate.process.pid}/fd"))


@asynccontextmanager
async def running(*role: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of the processes of tests.e2e.floods, which is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.floods", *map(str, role),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line_of(process: asyncio.subprocess.Process, seconds: float) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(seconds):
        return (await process.stdout.readline()).decode().strip()


async def effects(port: int) -> dict[str, int]:
    """How often the service has executed each key."""
    return dict(json.loads((await ask(port, "GET", "/effects", body=b"")).body))


#: All kinds at once; in the long form each kind alone too.
@pytest.mark.parametrize("kinds", [tuple(KINDS), *((kind,) for kind in KINDS if LONG)], ids=" + ".join)
async def test_a_flood_beside_good_clients(kinds: tuple[str, ...]) -> None:
    """A hundred good requests per second: 99.9 % and more are served, each once. The gate grows by 64 MiB at most,
    and when the flood is over it has no more descriptors open than before."""
    origin, many = free_port(), SECONDS * RATE
    gate = GateProcess(configuration(f"http://127.0.0.1:{origin}", top="limits: {head_timeout: 1s, body_timeout: 1s}"))
    async with running("serve", origin):
        try:
            await gate.start()
            files = descriptors(gate)
            async with asyncio.timeout(30):
                while (await ask(gate.port, "GET", "/open/effects", body=b"")).status != 201:
                    await asyncio.sleep(0.05)
            async with running("good", gate.port, "early", 20, RATE, PATIENCE) as warm_up:
                assert await line_of(warm_up, PATIENCE + 30) == "20"
            memory = most = resident(gate)
            async with running("flood", gate.port, FLOODERS, *kinds) as flood:
                assert await line_of(flood, 60) == "flooding"
                async with running("good", gate.port, "good", many, RATE, PATIENCE) as clients:
                    served = asyncio.ensure_future(line_of(clients, SECONDS + PATIENCE + 30))
                    while not served.done():
                        most = max(most, resident(gate))
                        await asyncio.sleep(0.01)
                    assert int(await served) >= many * (1 - LOST)
                assert flood.returncode is None
            assert most - memory <= GROWTH, f"{(most - memory) >> 20} MiB"
            assert max(count for key, count in (await effects(origin)).items() if key.startswith("good")) == 1
            # One more is made once, for clients that have closed their half of a connection (edge/halves.py).
            await eventually(lambda: descriptors(gate) <= files + 1, f"as many descriptors as before, {files}", 60)
        finally:
            gate.close()

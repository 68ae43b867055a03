"""Floods of slow and of many clients, beside good ones: the good are served, memory stays, descriptors come back."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.edge.stand import eventually, narrow_client
from tests.harness import Client, Exchange, GateProcess, Origin, configuration, request, reset

LONG = os.environ.get("ONCEGATE_FAULTS") == "long"
#: Seconds of each flood, how many flood at once, and good requests per second.
SECONDS = 30.0 if LONG else 3.0
FLOODERS = 1000 if LONG else 200
RATE = 100
#: How long a good client waits before it counts as lost, and how many in a thousand may be.
PATIENCE = 5.0
LOST = 0.001
GROWTH = 64 << 20
#: An answer that does not fit into the buffers on its way.
LARGE = bytes(8 << 20)

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads the gate's memory from /proc")


def resident(gate: GateProcess) -> int:
    """Bytes of memory that the gate's process has now."""
    assert gate.process is not None
    return int(Path(f"/proc/{gate.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(gate: GateProcess) -> int:
    """How many files and sockets it has open."""
    assert gate.process is not None
    return len(os.listdir(f"/proc/{gate.process.pid}/fd"))


# ── Flooders: each floods by one connection until it is cancelled, and again when it is closed ────


async def drip(client: Client, begin: bytes) -> None:
    """Send a beginning, and then a byte now and then, for ever."""
    await client.send(begin)
    while not client.reader.at_eof():
        await client.send(b"x")
        await asyncio.sleep(0.1)


async def slow_head(port: int) -> None:
    """Slowloris: a head that never ends."""
    await _by_one(await Client.connect(port), lambda client: drip(client, b"GET /open/x HTTP/1.1\r\nHost: a\r\nX: "))


async def slow_body(port: int) -> None:
    """R-U-Dead-Yet: a guarded body that never ends."""
    begin = b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: slow\r\nContent-Length: 1000000\r\n\r\n"
    await _by_one(await Client.connect(port), lambda client: drip(client, begin))


async def slow_read(port: int) -> None:
    """Asks for much, again and again, and reads nothing."""

    async def ask(client: Client) -> None:
        while True:
            await client.send(request("GET", "/open/large"))
            await asyncio.sleep(0.2)

    await _by_one(await narrow_client(port), ask)


async def no_word(port: int) -> None:
    """Connects, and says nothing."""

    async def wait(client: Client) -> None:
        await client.reader.read()

    await _by_one(await Client.connect(port), wait)


async def comes_and_goes(port: int) -> None:
    """Connects and is gone, as fast as it can; in the middle of a request, by a reset."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        sock.send(b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-")
        await asyncio.sleep(0.01)


async def _by_one(client: Client, flood: Callable[[Client], Awaitable[None]]) -> None:
    try:
        await flood(client)
    finally:
        reset(client.writer)


Flood = Callable[[int], Awaitable[None]]
KINDS = (slow_head, slow_body, slow_read, no_word, comes_and_goes)
#: All at once; in the long form each by itself besides.
FLOODS: list[tuple[Flood, ...]] = [KINDS, *((kind,) for kind in KINDS if LONG)]


@asynccontextmanager
async def flooded(port: int, floods: tuple[Flood, ...]) -> AsyncIterator[None]:
    """While it lasts, so many flooders are at it."""

    async def again(flood: Flood) -> None:
        while True:
            try:
                await flood(port)
            except (OSError, EOFError):
                await asyncio.sleep(0.05)

    tasks = [asyncio.ensure_future(again(floods[number % len(floods)])) for number in range(FLOODERS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def good(port: int, number: int) -> bool:
    """One keyed request on a connection of its own; whether it was served."""
    try:
        async with asyncio.timeout(PATIENCE):
            client = await Client.connect(port)
            try:
                await client.send(request(key=f"good-{number}", body=b"1"))
                answer = await client.read()
                return (answer.status, answer.label) == (201, "stored")
            finally:
                client.close()
    except (OSError, TimeoutError):
        return False


@pytest.mark.parametrize("floods", FLOODS, ids=lambda floods: " + ".join(flood.__name__ for flood in floods))
async def test_a_flood_beside_good_clients(floods: tuple[Flood, ...]) -> None:
    """A hundred good requests per second: 99.9 % and more are served, each once. The gate grows by 64 MiB at most,
    and when the flood is over it has as many descriptors open as before."""
    origin = await Origin().start()

    async def answer(exchange: Exchange) -> None:
        large = exchange.request.target == b"/open/large"
        await exchange.respond(201, LARGE if large else b"ok")

    origin.answer = answer
    gate = GateProcess(configuration(origin.url, top="limits: {head_timeout: 1s, body_timeout: 1s}"))
    try:
        await gate.start()
        files = descriptors(gate)
        assert all(await asyncio.gather(*(good(gate.port, -number) for number in range(1, 20))))
        memory = resident(gate)
        loop = asyncio.get_running_loop()
        most, tries = memory, []
        async with flooded(gate.port, floods):
            began = loop.time()
            while (passed := loop.time() - began) < SECONDS:
                while len(tries) < passed * RATE:
                    tries.append(asyncio.ensure_future(good(gate.port, len(tries))))
                most = max(most, resident(gate))
                await asyncio.sleep(0.01)
            served = sum(await asyncio.gather(*tries))
        assert len(tries) >= SECONDS * RATE * 0.9
        assert served >= len(tries) * (1 - LOST), f"{served} of {len(tries)}"
        assert most - memory <= GROWTH, f"{(most - memory) >> 20} MiB"
        assert max(count for key, count in origin.effects.items() if key and key.startswith(b"good")) == 1
        await eventually(lambda: descriptors(gate) <= files, f"as many descriptors as before, {files}", 15)
    finally:
        gate.close()
        await origin.stop()

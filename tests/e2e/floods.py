"""The other processes of test_floods: the service, the flooders and the good clients, each with a loop of its own.

    python -m tests.e2e.floods serve PORT
    python -m tests.e2e.floods flood PORT COUNT KIND…
    python -m tests.e2e.floods good PORT NAME COUNT RATE PATIENCE

`flood` prints a line when all of its flooders have connected once. `good` prints how many of its requests were
served. Each ends when its standard input ends, so none outlives the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from tests.edge.stand import narrow_client
from tests.harness import Client, Exchange, Origin, request, reset

T = TypeVar("T")
#: An answer that does not fit into the buffers on its way.
LARGE = bytes(8 << 20)

#: How many connections the flooders of this process have made.
connected = 0


async def counted(connecting: Awaitable[T]) -> T:
    """The connection that is made, counted."""
    global connected
    result = await connecting
    connected += 1
    return result


# ── Flooders: each floods by one connection until the process ends, and again when it is closed ───


async def drip(client: Client, begin: bytes) -> None:
    """Send a beginning, and then a byte now and then, for ever."""
    await client.send(begin)
    while not client.reader.at_eof():
        await client.send(b"x")
        await asyncio.sleep(0.1)


async def slow_head(port: int) -> None:
    """Slowloris: a head that never ends."""
    client = await counted(Client.connect(port))
    await by_one(client, lambda client: drip(client, b"GET /open/x HTTP/1.1\r\nHost: a\r\nX: "))


async def slow_body(port: int) -> None:
    """R-U-Dead-Yet: a guarded body that never ends."""
    begin = b"POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: slow\r\nContent-Length: 1000000\r\n\r\n"
    await by_one(await counted(Client.connect(port)), lambda client: drip(client, begin))


async def slow_read(port: int) -> None:
    """Asks for much, again and again, and reads nothing."""

    async def ask(client: Client) -> None:
        while True:
            await client.send(request("GET", "/open/large"))
            await asyncio.sleep(0.2)

    await by_one(await counted(narrow_client(port)), ask)


async def no_word(port: int) -> None:
    """Connects, and sends nothing."""

    async def wait(client: Client) -> None:
        await client.reader.read()

    await by_one(await counted(Client.connect(port)), wait)


async def comes_and_goes(port: int) -> None:
    """Connects and is gone, as fast as it can; in the middle of a request, by a reset."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await counted(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port)))
        sock.send(b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-")
        await asyncio.sleep(0.01)


async def by_one(client: Client, flood: Callable[[Client], Awaitable[None]]) -> None:
    try:
        await flood(client)
    finally:
        reset(client.writer)


KINDS = {flood.__name__: flood for flood in (slow_head, slow_body, slow_read, no_word, comes_and_goes)}


async def flood(port: int, count: int, kinds: list[str]) -> None:
    async def again(kind: str) -> None:
        while True:
            try:
                await KINDS[kind](port)
            except (OSError, EOFError):
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as flooders:
        for number in range(count):
            flooders.create_task(again(kinds[number % len(kinds)]))
        while connected < count:
            await asyncio.sleep(0.02)
        print("flooding", flush=True)


# ── Good clients ──────────────────────────────────────────────────────────────────────────────────


async def good(port: int, key: str, patience: float) -> bool:
    """Send one keyed request on a connection of its own. Returns whether it was served."""
    try:
        async with asyncio.timeout(patience):
            client = await Client.connect(port)
            try:
                await client.send(request(key=key, body=b"1"))
                answer = await client.read(seconds=patience)
                return (answer.status, answer.label) == (201, "stored")
            finally:
                client.close()
    except (OSError, TimeoutError):
        return False


async def good_clients(port: int, name: str, count: int, rate: float, patience: float) -> None:
    """Send `count` requests with keys of their own, `rate` of them per second. None waits for those before it."""
    loop = asyncio.get_running_loop()
    began, tries = loop.time(), []
    for number in range(count):
        await asyncio.sleep(began + number / rate - loop.time())
        tries.append(asyncio.ensure_future(good(port, f"{name}-{number}", patience)))
    print(sum(await asyncio.gather(*tries)), flush=True)


# ── The service ───────────────────────────────────────────────────────────────────────────────────


async def serve(port: int) -> None:
    """Large answers at /open/large; at /effects how often each key was executed, as JSON."""
    origin = Origin()

    async def answer(exchange: Exchange) -> None:
        if exchange.request.target == b"/effects":
            effects = {(key or b"").decode(): count for key, count in origin.effects.items()}
            await exchange.respond(200, json.dumps(effects).encode())
        else:
            await exchange.respond(201, LARGE if exchange.request.target == b"/open/large" else b"ok")

    origin.answer = answer
    await origin.start(port)
    await asyncio.Event().wait()


def main(role: str, *arguments: str) -> None:
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    port, *others = arguments
    if role == "serve":
        uvloop.run(serve(int(port)))
    elif role == "flood":
        uvloop.run(flood(int(port), int(others[0]), others[1:]))
    else:
        uvloop.run(good_clients(int(port), others[0], int(others[1]), float(others[2]), float(others[3])))


if __name__ == "__main__":
    main(*sys.argv[1:])

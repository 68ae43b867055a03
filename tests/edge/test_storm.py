"""Clients and upstreams that misbehave in every way at once, drawn at random: what must hold whatever happens.

`EDGE_STORM=N` draws N clients for each seed instead of a few hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections import Counter

import pytest

from tests.edge.stand import (
    SOON,
    Edge,
    edge,
    narrowed,
)
from tests.harness import Client, Exchange, Origin, configuration

CLIENTS = int(os.environ.get("EDGE_STORM", "150"))


class Moods:
    """An upstream that answers as the target asks it to: `/MOOD/…`."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    async def __call__(self, exchange: Exchange) -> None:
        mood = exchange.request.target.split(b"/")[2].decode()
        await asyncio.sleep(self.draw.choice((0, 0, 0.001, 0.01)))
        # (uvloop raises RuntimeError where something is written on a connection that is gone.)
        with contextlib.suppress(ConnectionError, RuntimeError):
            await getattr(self, f"_{mood}")(exchange)

    async def _plain(self, exchange: Exchange) -> None:
        await exchange.respond(201, b"body of " + (exchange.request.key or b"nobody"))

    async def _error(self, exchange: Exchange) -> None:
        await exchange.respond(self.draw.choice((400, 429, 500, 502, 503)), b"no")

    async def _empty(self, exchange: Exchange) -> None:
        await exchange.respond(204, b"")

    async def _chunked(self, exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for size in (1, 10, 1000, 50_000):
            await exchange.send(b"%x\r\n%b\r\n" % (size, b"x" * size))
            await asyncio.sleep(0)
        await exchange.send(b"0\r\n\r\n")

    async def _large(self, exchange: Exchange) -> None:
        await exchange.respond(200, b"x" * 600_000)

    async def _stream(self, exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(self.draw.randrange(5)):
            await exchange.send(b"5\r\nevent\r\n")
            await asyncio.sleep(0)
        await exchange.send(b"0\r\n\r\n")

    async def _small_stream(self, exchange: Exchange) -> None:
        await exchange.respond(200, b"event", [(b"X-Accel-Buffering", b"no")])

    async def _until_close(self, exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * self.draw.choice((0, 5, 100_000)))
        exchange.close()

    async def _interim(self, exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" * self.draw.choice((1, 3, 40)))
        await exchange.respond(200, b"after")

    async def _truncated(self, exchange: Exchange) -> None:
        whole = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 10\r\n\r\n0123456789"
        await exchange.send(whole[: self.draw.randrange(len(whole))])
        self.draw.choice((exchange.close, exchange.reset))()

    async def _rubbish(self, exchange: Exchange) -> None:
        await exchange.send(self.draw.randbytes(50))
        exchange.close()

    async def _surplus(self, exchange: Exchange) -> None:
        # In one packet. What comes later than the next request cannot be told from its answer.
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
        await exchange.send(answer % (5, b"asked") + answer % (7, b"surplus"))

    async def _closes(self, exchange: Exchange) -> None:
        await exchange.respond(200, b"bye", [(b"Connection", b"close")])
        exchange.close()

    async def _leaves(self, exchange: Exchange) -> None:
        await exchange.respond(200, b"bye")
        exchange.close()


MOODS = [name[1:] for name in vars(Moods) if not name.startswith("__")]


def drawn(draw: random.Random) -> tuple[bytes, bytes]:
    """A request of some kind, and its method."""
    mood = draw.choice(MOODS)
    guarded = draw.random() < 0.6
    method = draw.choice((b"POST", b"POST", b"POST", b"GET", b"HEAD", b"PUT")) if not guarded else b"POST"
    # The mood is part of what a key stands for: two requests with one key ask the same.
    target = b"/%b/%b/x" % (b"g" if guarded or draw.random() < 0.2 else b"open", mood.encode())
    fields = [b"Host: a"]
    body = b""
    if guarded:
        body = b"x" * 100
        fields.append(b"Idempotency-Key: %b-%d" % (mood.encode(), draw.randrange(CLIENTS // 4)))
    elif method in (b"POST", b"PUT"):
        body = b"y" * draw.choice((0, 1, 1000, 40_000, 300_000))
    if draw.random() < 0.1:
        fields += [b"Connection: Upgrade", b"Upgrade: h2c"]
    if draw.random() < 0.05:
        fields.append(b"Expect: 100-continue")
    if draw.random() < 0.05:
        fields.append(draw.choice((b"X\x00: y", b"Host: b", b"Content-Length: 1", b"Connection: close", b"X: \xff")))
    if method in (b"POST", b"PUT"):
        if draw.random() < 0.3:
            fields.append(b"Transfer-Encoding: chunked")
            cut = draw.randrange(len(body) + 1)
            parts = [part for part in (body[:cut], body[cut:]) if part]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
            body += draw.choice((b"0\r\n\r\n",) * 9 + (b"zzz\r\n",))
        else:
            fields.append(b"Content-Length: %d" % len(body))
    version = draw.choice((b"1.1",) * 9 + (b"1.0",))
    return b"%b %b HTTP/%b\r\n%b\r\n\r\n%b" % (method, target, version, b"\r\n".join(fields), body), method


async def misbehave(gate: Edge, draw: random.Random, seen: Counter[str]) -> None:
    """One client: some requests, cut into packets anyhow; then it reads, half-closes, leaves, or any of it."""
    sock = socket.socket()
    if draw.random() < 0.2:
        narrowed(sock)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gate.port))
    client = Client(*await asyncio.open_connection(sock=sock, limit=1 << 16))
    requests = [drawn(draw) for _ in range(draw.choice((1, 1, 1, 2, 3, 8, 30)))]
    data = b"".join(sent for sent, _ in requests)
    if draw.random() < 0.15:
        data = data[: draw.randrange(1, len(data) + 1)]
    manner = draw.choice(("reads", "reads", "reads", "half-closes", "leaves", "leaves early", "reads a little"))

    async def write() -> None:
        nonlocal data
        while data:
            size = draw.choice((1, 50, 5000, 1 << 20))
            piece, data = data[:size], data[size:]
            await client.send(piece)
            if draw.random() < 0.05:
                await asyncio.sleep(0.001)
        if manner == "half-closes":
            client.writer.write_eof()

    async def read() -> None:
        for _, method in requests:
            answer = await client.read(method=method, seconds=SOON)
            seen[str(answer.status)] += 1
            assert answer.status != 500 or answer.body == b"no" or method == b"HEAD"
            if manner == "reads a little":
                break

    with contextlib.suppress(OSError, TimeoutError):
        if manner == "leaves early":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(write(), draw.choice((0.0001, 0.005)))
        elif manner == "leaves":
            await write()
        else:
            writing = asyncio.ensure_future(write())
            try:
                await read()
            finally:
                writing.cancel()
                await asyncio.wait([writing])
                if not writing.cancelled():
                    writing.exception()
    draw.choice((client.close, client.reset))()


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm(origin: Origin, seed: int) -> None:
    """Every key has its effect at most once. When all is over nothing is left: no byte reserved, no connection in
    use or paused, no task, no flight; and nothing happened that nobody expected."""
    draw = random.Random(seed)
    origin.answer = Moods(random.Random(seed))
    seen: Counter[str] = Counter()
    text = configuration(
        origin.url,
        policy="max_response: 64KiB, wait: 2s",
        upstream=f"connections: {draw.choice((2, 8, 256))}, timeout: 2s, late: 200ms",
        top="limits: {idle: 1s, body_timeout: 500ms, head_timeout: 500ms}",
    )
    async with edge(text) as gate:
        turns = asyncio.Semaphore(25)

        async def one(own: random.Random) -> None:
            async with turns:
                await misbehave(gate, own, seen)

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(one(random.Random(draw.random())))
        await gate.emptied()
        await gate.settled()
    released = {b"error", b"interim"}  # a 429 frees its key
    for key, count in origin.effects.items():
        assert count == 1 or key is None or key.partition(b"-")[0] in released, (key, count)
    assert sum(seen.values()) > CLIENTS // 2, seen

"""Many callers at once. A storm is ten thousand requests, so these read responses without h11."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

from tests.harness import Response, ask

T = TypeVar("T")


class Caller(asyncio.Protocol):
    """One keep-alive connection, one request at a time. Reads responses with a Content-Length only."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Response] | None = None
        self._data = b""

    @classmethod
    async def connect(cls, port: int) -> Caller:
        _, caller = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return caller

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, data: bytes) -> asyncio.Future[Response]:
        """Write a request at once; the future has its response."""
        assert self._transport is not None
        assert self._waiting is None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.split(b"\r\n")
        fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        length = next((int(value) for name, value in fields if name.lower() == b"content-length"), 0)
        if len(rest) < length:
            return
        waiting, self._waiting = self._waiting, None
        assert waiting is not None, "a response that nobody asked for"
        self._data = rest[length:]
        if not waiting.done():
            waiting.set_result(Response(int(first[9:12]), fields, rest[:length], first[13:]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"the gate closed the connection: {error}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@asynccontextmanager
async def callers(count: int, *ports: int) -> AsyncIterator[list[Caller]]:
    """So many connections, to each of `ports` in turn."""
    found = await asyncio.gather(*(Caller.connect(ports[n % len(ports)]) for n in range(count)))
    try:
        yield list(found)
    finally:
        for caller in found:
            caller.close()


async def eventually(look: Callable[[], Awaitable[T]], wanted: Callable[[T], object], seconds: float = 15) -> T:
    """Look again and again until what is seen is wanted; AssertionError with what was seen last."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        seen = await look()
        if wanted(seen):
            return seen
        assert loop.time() < deadline, f"after {seconds:g} s it is still {seen!r}"
        await asyncio.sleep(0.02)


async def admin(port: int, path: str) -> tuple[int, dict[str, str]]:
    """What the admin listener says: status and JSON."""
    response = await ask(port, "GET", path, body=b"")
    return response.status, json.loads(response.body)

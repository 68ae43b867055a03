"""A proxy between a gate and its Redis that writes down what passes, chunk by chunk."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import hiredis

TO_REDIS, FROM_REDIS = "→", "←"


@dataclass(frozen=True)
class Chunk:
    """What was written at once: a flush of the sender, as long as it is small and the sender then waits."""

    direction: str
    data: bytes

    @property
    def commands(self) -> list[list[bytes]]:
        reader = hiredis.Reader()
        reader.feed(self.data)
        found: list[list[bytes]] = []
        while (command := reader.gets()) is not False:
            found.append(command)
        return found


class Wiretap:
    """Listens on `port`, forwards to the Redis on `to`."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.heard: list[Chunk] = []
        self.lose_a_reply = False
        #: While it is clear, what Redis says is held back.
        self.talks = asyncio.Event()
        self.talks.set()
        self.port = 0

    async def start(self) -> Wiretap:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def since(self, mark: int) -> list[Chunk]:
        """What passed since `len(heard)` was `mark`."""
        return self.heard[mark:]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(TO_REDIS, reader, there_writer))
                group.create_task(self._pump(FROM_REDIS, there_reader, writer))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            there_writer.close()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if direction == FROM_REDIS:
                await self.talks.wait()
            if direction == FROM_REDIS and self.lose_a_reply:
                # Redis has done it, and the connection ends before anybody hears of it.
                self.lose_a_reply = False
                break
            self.heard.append(Chunk(direction, data))
            writer.write(data)
        raise ConnectionResetError


def flushes(chunks: list[Chunk]) -> list[list[str]]:
    """The commands of each chunk that went to Redis, by their names."""
    return [
        [command[0].decode().upper() for command in chunk.commands] for chunk in chunks if chunk.direction == TO_REDIS
    ]


def trips(chunks: list[Chunk]) -> int:
    """How often somebody waited for Redis: the runs of chunks towards it."""
    return sum(
        chunk.direction == TO_REDIS and (n == 0 or chunks[n - 1].direction == FROM_REDIS)
        for n, chunk in enumerate(chunks)
    )

"""A TCP proxy that fails on purpose, in front of the store or of the origin.

`mode`: PASS; STALL (accept, and let nothing through); DEAF (let requests through, and no replies back);
REFUSE (reset whoever comes). `cut` breaks every connection at once. `trickle` lets one byte through at a
time. `hold` keeps single commands for Redis back: the client's connection breaks where the reply should
be, the server's stays open, and `deliver` sends the command after all, as often as is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from enum import Enum

import hiredis

from tests.harness import reset


class Mode(Enum):
    PASS = "pass"
    STALL = "stall"
    DEAF = "deaf"
    REFUSE = "refuse"


Command = list[bytes]


class Held:
    """One command that did not get there yet."""

    def __init__(self, command: Command, port: int) -> None:
        self.command = command
        self._port = port

    async def deliver(self) -> object:
        """Send it on, late; what the server says to it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            parser = hiredis.Reader(notEnoughData=Ellipsis)
            writer.write(hiredis.pack_command(tuple(self.command)))
            while (reply := parser.gets()) is Ellipsis:
                data = await reader.read(1 << 16)
                assert data, "the server closed the connection"
                parser.feed(data)
            return reply
        finally:
            writer.close()


class Proxy:
    """Between a gate and `port` of the loopback."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.mode = Mode.PASS
        self.trickle = 0.0
        self.held: list[Held] = []
        self.arrived = asyncio.Condition()
        self._wanted: Callable[[Command], bool] | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._stop_at: Callable[[Command], bool] = lambda _: True

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ── The hand of the test ──────────────────────────────────────────────────────────────────────

    def be(self, mode: Mode) -> None:
        """From now on; REFUSE breaks what is there too."""
        self.mode = mode
        if mode is Mode.REFUSE:
            self.cut()

    def cut(self) -> None:
        for pair in list(self._pairs):
            for writer in pair:
                reset(writer)

    def pause(self, at: Callable[[Command], bool] = lambda _: True) -> None:
        """Let requests go no further for now, from such a command on, without breaking anything."""
        self._stop_at = at
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def hold(self, wanted: Callable[[Command], bool] | None) -> None:
        """Hold back the commands that are wanted; None lets all through again."""
        self._wanted = wanted

    async def holds(self, count: int = 1, seconds: float = 10) -> None:
        async with asyncio.timeout(seconds), self.arrived:
            await self.arrived.wait_for(lambda: len(self.held) >= count)

    # ── Connections ───────────────────────────────────────────────────────────────────────────────

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.mode is Mode.REFUSE:
            reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            reset(writer)
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        back = asyncio.create_task(self._back(far_reader, writer))
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):  # `stop` ends it here
                await self._there(reader, far_writer, writer)
        finally:
            back.cancel()
            self._pairs.discard(pair)
            far_writer.close()
            writer.close()

    async def _there(self, reader: asyncio.StreamReader, far: asyncio.StreamWriter, near: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader(notEnoughData=Ellipsis)
        while data := await reader.read(1 << 16):
            if not self._flows.is_set() and self._stops(data):
                await self._flows.wait()
            if self.mode is Mode.STALL:
                continue
            if self._wanted is None:
                await self._write(far, data)
                continue
            # Commands begin anew with each piece that a gate writes: it writes whole ones.
            parser.feed(data)
            while (command := parser.gets()) is not Ellipsis:
                if self._wanted(command):
                    async with self.arrived:
                        self.held.append(Held(command, self.target))
                        self.arrived.notify_all()
                    reset(near)
                    return
                await self._write(far, hiredis.pack_command(tuple(command)))

    def _stops(self, data: bytes) -> bool:
        parser = hiredis.Reader(notEnoughData=Ellipsis)
        parser.feed(data)
        commands = iter(parser.gets, Ellipsis)
        return any(map(self._stop_at, commands))

    async def _back(self, far: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await far.read(1 << 16):
                if self.mode is Mode.PASS:
                    await self._write(near, data)
            near.close()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not self.trickle:
            writer.write(data)
            await writer.drain()
            return
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(self.trickle)


def claims(command: Command) -> bool:
    """`SET name value NX GET PX life`."""
    return command[0].upper() == b"SET"


def settles(command: Command) -> bool:
    """The script's `change`."""
    return command[0].upper() in (b"EVALSHA", b"EVAL") and b"change" in command

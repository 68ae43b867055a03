"""A TCP proxy that breaks what passes through it, on demand: before the store, or before an origin.

It cuts, stalls, half-opens, trickles; and before a Redis it can hold back a single command, until long
after its connection has died, and deliver it then, or deliver it again: what a network may do to a
command is done here to one that the test chooses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import hiredis

Command = list[bytes]


class Mode(Enum):
    """What happens to bytes from now on."""

    PASS = "pass"
    STALL = "stall"  # both ways are held; nothing is lost, nothing arrives
    DEAF = "deaf"  # half-open: what the client sends vanishes, and so does what comes back
    REFUSE = "refuse"  # new connections are closed at once; old ones are cut


@dataclass
class Held:
    """A command that was held back, on the way to the server."""

    matches: Callable[[Command], bool]
    caught: asyncio.Event = field(default_factory=asyncio.Event)
    command: Command = field(default_factory=list)
    _wire: Wire | None = None
    _rest: bytearray = field(default_factory=bytearray)

    async def deliver(self) -> None:
        """Give it to the server now, with what its connection had sent behind it, on the connection that it came by."""
        assert self._wire is not None, "nothing was caught"
        wire, self._wire = self._wire, None
        wire.holding = None
        await wire.give(_packed(self.command) + bytes(self._rest))

    async def deliver_again(self) -> None:
        """Give it to the server once more, on a connection of its own: a duplicate from the network."""
        assert self.command
        await self._proxy_again(self.command)

    _proxy_again: Callable[[Command], object] = field(default=lambda command: None)  # set by the proxy


def _packed(command: Command) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]
    return packed


class Wire:
    """One proxied connection."""

    def __init__(self, proxy: FaultyProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.reader = reader
        self.writer = writer
        self.up_reader: asyncio.StreamReader | None = None
        self.up_writer: asyncio.StreamWriter | None = None
        self.holding: Held | None = None
        self._commands = hiredis.Reader()

    async def run(self) -> None:
        self.up_reader, self.up_writer = await asyncio.open_connection("127.0.0.1", self.proxy.target)
        up = asyncio.create_task(self._upwards())
        down = asyncio.create_task(self._downwards())
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if self.holding is not None:
                # The gate gave this connection up; what it sent is still on its way.
                await self.proxy.until_delivered(self)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.wait({up, down})
            self.close()

    def close(self) -> None:
        self.writer.close()
        if self.up_writer is not None:
            self.up_writer.close()

    def cut(self) -> None:
        self.writer.transport.abort()
        if self.up_writer is not None:
            self.up_writer.transport.abort()

    async def give(self, data: bytes) -> None:
        """Hand bytes to the server."""
        assert self.up_writer is not None
        self.up_writer.write(data)
        await self.up_writer.drain()

    async def _upwards(self) -> None:
        while data := await self.reader.read(1 << 16):
            if not await self.proxy.gate_open(deaf=True):
                continue
            if self.proxy.resp:
                data = self._sift(data)
            if data:
                self.proxy.sent_up += len(data)
                await self.give(data)
                await self.proxy.slow(len(data))

    async def _downwards(self) -> None:
        assert self.up_reader is not None
        while data := await self.up_reader.read(1 << 16):
            if not await self.proxy.gate_open(deaf=True):
                continue
            for piece in self.proxy.pieces(data):
                self.writer.write(piece)
                await self.writer.drain()
                await self.proxy.slow(len(piece))

    def _sift(self, data: bytes) -> bytes:
        """What goes on of `data`: nothing of a command that is held, nor of what comes behind it."""
        self._commands.feed(data)
        passed = bytearray()
        while (command := self._commands.gets()) is not False:
            if self.holding is not None:
                self.holding._rest += _packed(command)
                continue
            held = self.proxy.wanted(command)
            if held is None:
                passed += _packed(command)
            else:
                held.command, held._wire, self.holding = command, self, held
                held.caught.set()
        return bytes(passed)


class FaultyProxy:
    """Listens on a port of its own and passes everything on to `target`, until it is told otherwise.

    `resp`: what passes are Redis commands, which can be held one by one.
    """

    def __init__(self, target: int, *, resp: bool = False) -> None:
        self.target = target
        self.resp = resp
        self.port = 0
        self.mode = Mode.PASS
        self.bytes_per_second = 0
        self.sent_up = 0
        self._open = asyncio.Event()
        self._open.set()
        self._wanted: list[Held] = []
        self._wires: set[Wire] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> FaultyProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ── Faults ────────────────────────────────────────────────────────────────────────────────────

    def set(self, mode: Mode) -> None:
        """From now on. Leaving STALL lets go what was held."""
        self.mode = mode
        if mode is Mode.STALL:
            self._open.clear()
        else:
            self._open.set()
        if mode is Mode.REFUSE:
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for wire in list(self._wires):
            wire.cut()

    def hold(self, matches: Callable[[Command], bool]) -> Held:
        """Hold back the next command that matches."""
        held = Held(matches)
        held._proxy_again = self._again
        self._wanted.append(held)
        return held

    # ── For the wires ─────────────────────────────────────────────────────────────────────────────

    def wanted(self, command: Command) -> Held | None:
        for held in self._wanted:
            if held.matches(command):
                self._wanted.remove(held)
                return held
        return None

    async def gate_open(self, *, deaf: bool) -> bool:
        """Waits out a stall; False where the bytes are to vanish."""
        await self._open.wait()
        return not (deaf and self.mode is Mode.DEAF)

    def pieces(self, data: bytes) -> list[bytes]:
        return [data[at : at + 1] for at in range(len(data))] if self.bytes_per_second else [data]

    async def slow(self, count: int) -> None:
        if self.bytes_per_second:
            await asyncio.sleep(count / self.bytes_per_second)

    async def until_delivered(self, wire: Wire) -> None:
        while wire.holding is not None:
            await asyncio.sleep(0.02)
        assert wire.up_reader is not None
        try:
            async with asyncio.timeout(0.5):
                while await wire.up_reader.read(1 << 16):
                    pass
        except TimeoutError:
            pass

    async def _again(self, command: Command) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(_packed(command))
        await writer.drain()
        await reader.read(1 << 16)
        writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        wire = Wire(self, reader, writer)
        self._wires.add(wire)
        try:
            if self.mode is not Mode.REFUSE:
                await wire.run()
        except (ConnectionError, OSError, asyncio.CancelledError):
            pass
        finally:
            wire.close()
            self._wires.discard(wire)
            self._tasks.discard(task)

"""What is written to clients leaves before the turn of the loop ends, in its order, and each answer by itself."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import cast

import pytest

from gateway.edge.outbox import Outbox
from tests.edge.stand import edge, keyed
from tests.harness import Origin, configuration


class Line:
    """Records what is written to it; may fail, or be closing."""

    def __init__(self, *, fails: bool = False, closing: bool = False) -> None:
        self.written: list[bytes] = []
        self.fails = fails
        self.closing = closing
        self.aborted = False

    def write(self, data: bytes) -> None:
        if self.fails:
            raise RuntimeError("the handler is closed")
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


def write(outbox: Outbox, line: Line, data: bytes) -> None:
    outbox.write(cast(asyncio.WriteTransport, line), data)


async def test_it_leaves_at_the_end_of_the_turn() -> None:
    """Nothing leaves at once; one turn later everything has, in the order in which it was said."""
    outbox, one, other = Outbox(asyncio.get_running_loop()), Line(), Line()
    write(outbox, one, b"1")
    write(outbox, other, b"2")
    write(outbox, one, b"3")
    assert one.written == other.written == []
    await asyncio.sleep(0)
    assert (one.written, other.written) == ([b"1", b"3"], [b"2"])


async def test_what_is_long_does_not_wait() -> None:
    """A stream is written at once, with what was said before it."""
    outbox, line = Outbox(asyncio.get_running_loop()), Line()
    write(outbox, line, b"head")
    write(outbox, line, b"x" * Outbox.MOST)
    assert line.written == [b"head", b"x" * Outbox.MOST]


@pytest.mark.parametrize("broken", [Line(fails=True), Line(closing=True)], ids=["fails", "closing"])
async def test_one_that_breaks_costs_the_others_nothing(broken: Line) -> None:
    """Its neighbours' answers leave all the same."""
    outbox, before, behind = Outbox(asyncio.get_running_loop()), Line(), Line()
    for line in (before, broken, behind):
        write(outbox, line, b"answer")
    outbox.flush()
    assert before.written == behind.written == [b"answer"]
    assert broken.written == []
    assert broken.aborted == broken.fails


async def test_an_end_that_comes_before_the_turn_is_over_costs_nothing(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client ends its side in the moment in which its answer is said and has not left: it is given it, and then the
    connection is closed."""
    say = Outbox.write

    def overtaken(outbox: Outbox, transport: asyncio.WriteTransport, data: bytes) -> None:
        say(outbox, transport, data)
        with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as sock:
            sock.shutdown(socket.SHUT_WR)

    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        monkeypatch.setattr(Outbox, "write", overtaken)
        await client.send(keyed("k"))
        assert (await client.read()).status == 201
        assert await client.reader.read() == b""

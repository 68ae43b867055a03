"""``python -m loadtest.scaling``: what a first request costs as the work grows.

CPU of the proxy per request (as in `bench.py`) over connections, with one worker and with two, beside nginx; over the
size of the request's body; over the number of keys that the store holds already. Rounds of all subjects are
interleaved.
The figures go to a table, and with `--svg FOLDER` into drawings.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import redis.asyncio as redis

from loadtest import drawing
from loadtest.load import Wrk
from loadtest.stand import HOST, Missing, Running, Stand

CONNECTIONS = (1, 8, 32, 128, 256, 512)
SIZES = (100, 1 << 10, 10 << 10, 100 << 10, 1 << 20, 10 << 20)
KEYS = (1_000, 10_000, 100_000, 1_000_000)
#: Bytes of a record as the comparison's answers make them, and of its name behind the prefix.
RECORD, NAME = 260, 32
#: What may differ from 10³ to 10⁶ keys, and from 8 to 512 connections.
FLAT = 0.15


@dataclass
class Line:
    """One subject's cost, in µs of CPU per request, by what grows."""

    name: str
    points: dict[int, list[float]] = field(default_factory=dict)

    def at(self, point: int) -> float:
        return median(self.points[point])

    def spread(self, points: tuple[int, ...], beside: Line) -> float:
        """By how much the dearest of these points is above the cheapest, each measured by what `beside` cost in the
        same moments: a machine that slows down for a minute would else look like growth."""
        costs = [
            median(mine / its for mine, its in zip(self.points[at], beside.points[at], strict=True)) for at in points
        ]
        return max(costs) / min(costs) - 1


class Scaling:
    """One run on one stand."""

    def __init__(self, stand: Stand, rounds: int, seconds: int) -> None:
        self._stand = stand
        self._rounds = rounds
        self._seconds = seconds
        self._wrk = Wrk()
        self._run = secrets.token_hex(8)
        self._stretch = 0
        origin = stand.nginx("origin")
        self._redis = stand.redis()
        store = f"redis://{HOST}:{self._redis.port}/0"
        self._plain = stand.nginx("plain", origin=origin.port)
        self._gate = stand.gate("gate-1", store, origin)
        self._gates = stand.gate("gate-2", store, origin, workers=2)
        # nginx's `return` answers before it has read a body, which the gate takes for no answer to it.
        reader = stand.counting_origin()
        self._plain_reads = stand.nginx("plain", origin=reader.port)
        self._gate_reads = stand.gate("gate-3", store, reader)
        self._gate_empty = stand.gate("gate-4", f"redis://{HOST}:{stand.redis().port}/0", origin)
        #: The same gate at 32 connections, each time that it was measured at others; and one whose store holds little.
        self.at_32 = Line("Oncegate at 32 connections")
        self.on_little = Line("with little in its store")

    def connections(self) -> list[Line]:
        subjects = {
            "nginx, plain proxy_pass": self._plain,
            "Oncegate, one worker": self._gate,
            "Oncegate, two workers": self._gates,
        }
        lines = [Line(name) for name in subjects]
        for _ in range(self._rounds):
            for count in CONNECTIONS:
                for line in lines:
                    self._measure(line, count, subjects[line.name], count)
                    if subjects[line.name] is self._gate:
                        self._measure(self.at_32, count, self._gate, 32)
        return lines

    def sizes(self) -> list[Line]:
        subjects = {"nginx, plain proxy_pass": self._plain_reads, "Oncegate, one worker": self._gate_reads}
        lines = [Line(name) for name in subjects]
        for _ in range(self._rounds):
            for size in SIZES:
                for line in lines:
                    self._measure(line, size, subjects[line.name], 8 if size < 1 << 20 else 2, size=size)
        return lines

    def keys(self) -> list[Line]:
        """What was measured before is forgotten first."""
        line, there = Line("Oncegate, one worker"), 0
        asyncio.run(self._empty())
        for count in KEYS:
            asyncio.run(self._fill(count - there))
            there = count
            for _ in range(self._rounds):
                self._measure(self.on_little, count, self._gate_empty, 32)
                self._measure(line, count, self._gate, 32)
        return [self.on_little, line]

    async def _empty(self) -> None:
        async with redis.Redis(host=HOST, port=self._redis.port) as client:
            async for batch in _batches(client):
                await client.delete(*batch)

    async def _fill(self, count: int) -> None:
        """So many records of others, with a life of their own."""
        async with redis.Redis(host=HOST, port=self._redis.port) as client:
            for at in range(0, count, 10_000):
                async with client.pipeline(transaction=False) as pipeline:
                    for _ in range(min(10_000, count - at)):
                        pipeline.set(b"og:" + secrets.token_bytes(NAME), b"r" * RECORD, px=24 * 3600 * 1000)
                    await pipeline.execute()

    def _measure(self, line: Line, point: int, server: Running, connections: int, *, size: int = 0) -> None:
        self._stretch += 1
        self._stand.forget_logs()
        prefix = f"{self._run}{self._stretch:010d}"
        spent = server.cpu_seconds()
        seconds = self._seconds * (1 if size < 1 << 20 else 4)  # of the largest few come in a second
        load = self._wrk.run(server.port, "/payments", connections, seconds, prefix, size=size)
        spent = server.cpu_seconds() - spent
        if load.refused or load.broken or not load.requests:
            raise Missing(f"{line.name} at {point}: {load.refused} refused, {load.broken} broken of {load.requests}")
        line.points.setdefault(point, []).append(spent / load.requests * 1e6)
        time.sleep(0.05)  # what the client left behind still arrives


async def _batches(client: redis.Redis) -> AsyncIterator[list[bytes]]:
    batch: list[bytes] = []
    async for name in client.scan_iter(match="og:*", count=1000):
        if len(name) > NAME:  # not the marker
            batch.append(name)
        if len(batch) >= 1000:
            yield batch
            batch = []
    if batch:
        yield batch


def shown(point: int) -> str:
    """A number in as few characters as it takes."""
    for unit, word in ((1 << 20, "M"), (1 << 10, "K")):
        if point % unit == 0:
            return f"{point // unit} {word}iB"
    for power, word in ((1_000_000, "10⁶"), (100_000, "10⁵"), (10_000, "10⁴"), (1_000, "10³")):
        if point == power:
            return word
    return str(point)


def table(title: str, lines: list[Line]) -> str:
    points = list(lines[0].points)
    rows = [("", *map(shown, points))]
    rows += [(line.name, *(f"{line.at(point):.0f}" for point in points)) for line in lines]
    if len(lines) > 1:
        base = lines[0].name.partition(",")[0]
        rows += [
            (f"{line.name} : {base}", *(f"{line.at(point) / lines[0].at(point):.1f} ×" for point in points))
            for line in lines[1:]
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = ["  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([title, *text])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=1, help="of one round")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="draw them there")
    told = parser.parse_args()
    try:
        with Stand() as stand:
            scaling = Scaling(stand, told.rounds, told.seconds)
            parts = {
                "by connections": scaling.connections(),
                "by bytes of the body, 8 connections (2 from 1 MiB on)": scaling.sizes(),
                "by keys in the store, 32 connections": scaling.keys(),
            }
    except Missing as why:
        print(f"cannot run: {why}", file=sys.stderr)
        return 69
    print("CPU of the proxy per first request, µs")
    for title, lines in parts.items():
        print("\n" + table(title, lines))
    gate, keys = parts["by connections"][1], parts["by keys in the store, 32 connections"][1]
    for what, spread in (
        ("from 8 to 512 connections", gate.spread(CONNECTIONS[1:], scaling.at_32)),
        ("from 10³ to 10⁶ keys", keys.spread(KEYS, scaling.on_little)),
    ):
        print(
            f"\n{what} the gate's cost differs by {spread:.0%}: {'flat' if spread <= 2 * FLAT else 'NOT FLAT'} (±15 %)"
        )
    if told.svg:
        for title, lines in parts.items():
            name = "-".join(title.partition(",")[0].split()[:2])
            series = {line.name: _middles(line) for line in lines}
            drawing.lines(told.svg / f"scaling-{name}.svg", f"CPU per first request, µs, {title}", series)
    return 0


def _middles(line: Line) -> dict[str, float]:
    return {shown(point): line.at(point) for point in line.points}


if __name__ == "__main__":
    sys.exit(main())

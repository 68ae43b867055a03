"""Putting load on a port: with wrk where it is installed, else with our own lanes (slower, same figures)."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import uvloop

from loadtest.lanes import Answer, Ask, drive, request
from loadtest.stand import HOST, PEERS, Missing

BODY = b'{"amount":1999,"currency":"eur","customer":"cus_9f3b2a7c41","description":"order 4711, two parcels, express."}'
assert len(BODY) == 110


@dataclass(frozen=True, slots=True)
class Load:
    """One stretch of load, as the client saw it. Latencies in microseconds."""

    requests: int
    seconds: float
    refused: int
    """answers of 400 and above"""
    broken: int
    """connections that failed, requests without an answer"""
    p50: float
    p99: float


class Generator(Protocol):
    """Loads one port. `prefix` begins each key; `pool` 0 sends a new key each time, n repeats the same n."""

    name: str

    def run(self, port: int, path: str, connections: int, seconds: int, prefix: str, pool: int = 0) -> Load: ...


class Wrk:
    """One thread of wrk."""

    name = "wrk -t1"

    def __init__(self, cores: str | None = None) -> None:
        binary = shutil.which("wrk")
        if binary is None:
            raise Missing("no wrk on PATH (Debian: wrk)")
        self._argv = [*(["taskset", "-c", cores] if cores else []), binary]

    def run(
        self,
        port: int,
        path: str,
        connections: int,
        seconds: int,
        prefix: str,
        pool: int = 0,
        *,
        size: int = 0,
        form: str = "plain",
        fields: Sequence[str] = (),
    ) -> Load:
        """Send requests. `size`: bytes of each body; 0 for the JSON that the comparison is written for. `form` and
        `fields` are those of peers/wrk.lua."""
        argv = [*self._argv, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=20s", "-s", str(PEERS / "wrk.lua")]
        argv += [f"http://{HOST}:{port}{path}", "--", prefix, str(pool), str(size), form, *fields]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, check=False)
        for line in done.stdout.splitlines():
            if line.startswith("RESULT "):
                return Load(**json.loads(line[7:]))
        raise RuntimeError(f"wrk said no result: {done.stdout[-300:]} {done.stderr[-300:]}")


class Lanes:
    """Our own client, in this process."""

    name = "loadtest.lanes"

    def run(self, port: int, path: str, connections: int, seconds: int, prefix: str, pool: int = 0) -> Load:
        taken: list[float] = []
        refused = broken = 0

        def answered(_: None, answer: Answer) -> None:
            nonlocal refused, broken
            if answer.status == 0:
                broken += 1
                return
            taken.append(answer.seconds)
            if answer.status >= 400:
                refused += 1

        asks = keyed(port, path, prefix, itertools.cycle(range(pool)) if pool else itertools.count())
        uvloop.run(drive(HOST, port, connections, asks, answered, seconds=seconds))
        taken.sort()
        p50, p99 = (taken[int(len(taken) * q)] * 1e6 if taken else 0.0 for q in (0.50, 0.99))
        return Load(len(taken), float(seconds), refused, broken, p50, p99)


def keyed(port: int, path: str, prefix: str, numbers: Iterator[int]) -> Iterator[Ask[None]]:
    """The POSTs of peers/wrk.lua, byte for byte the same body and keys."""
    fields = {"Content-Type": "application/json", "Idempotency-Key": "\0"}
    head, tail = request("POST", path, f"{HOST}:{port}", fields, BODY).split(b"\0")
    start = head + prefix.encode()
    for number in numbers:
        yield Ask(None, b"%s%010d%s" % (start, number, tail))


def answer_pool(port: int, path: str, prefix: str, pool: int) -> list[Answer]:
    """Have each key of a pool answered once, so that what follows are replays."""
    answers: list[Answer] = []
    asks = keyed(port, path, prefix, iter(range(pool)))
    asyncio.run(drive(HOST, port, 8, asks, lambda _, answer: answers.append(answer)))
    return answers

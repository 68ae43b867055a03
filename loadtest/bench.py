"""``make bench``: what the gate costs per request, beside nginx doing the same and nginx doing nothing.

CPU time of the proxy (utime + stime of all its processes and threads, from /proc) divided by the requests that the
client saw completed. Rounds are short and interleaved (A B C A B C …), so that whatever else the machine does falls on
all alike; the ratio within a round is what to quote. A round counts only if every answer was good and the origin
saw what it should have seen: every first request, not one replay.

What is missing on this machine (nginx, its Lua, wrk, Redis) is named and left out; the gate is measured in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from loadtest import drawing, figures
from loadtest.driver import effects
from loadtest.figures import CONNECTIONS, Cell, Figures, Round
from loadtest.lanes import ask, request
from loadtest.load import Generator, Lanes, Wrk, answer_pool
from loadtest.stand import HOST, SHM, Missing, Running, Stand, filesystem, machine, versions

POOL = 512
LATENCY_ROUNDS = 3
PATHS = {"first": "/payments", "replay": "/payments", "open": "/open/payments", "latency": "/payments"}


@dataclass(frozen=True, slots=True)
class Subject:
    """One proxy, and the loads that it is put under."""

    name: str
    server: Running
    kinds: tuple[str, ...]


class Bench:
    """One run: the stand, the client, and what has been measured so far."""

    def __init__(self, stand: Stand, told: argparse.Namespace) -> None:
        self.stand = stand
        self.told = told
        self._missing: dict[str, list[str]] = {}
        self._remarks: list[str] = []
        self.figures = Figures()
        self.subjects: list[Subject] = []
        # 26 characters before the ten of the number: keys as long as a UUID, unlike those of any other run.
        self._run = secrets.token_hex(8)
        self._stretch = 0
        pinned: tuple[str | None, str | None] = _cores() if told.pin else (None, None)
        self._proxy_cores, self._other_cores = pinned
        self.client: Generator = self._client()
        self.origin, self._seen = self._origin()
        self._start()

    @property
    def remarks(self) -> list[str]:
        """What is not as it would be on a machine that has everything."""
        return self._remarks + [f"left out: {'; '.join(names)}: {why}" for why, names in self._missing.items()]

    def _client(self) -> Generator:
        try:
            return Wrk(self._other_cores)
        except Missing as why:
            self._remarks.append(f"{why}; the load comes from loadtest.lanes, which asks less often")
            return Lanes()

    def _origin(self) -> tuple[Running, Callable[[], int]]:
        """An origin, and how to ask what it has seen."""
        try:
            origin = self.stand.nginx("origin", cores=self._other_cores)
        except Missing as why:
            self._remarks.append(f"{why}; loadtest.origin is the origin instead")
            counting = self.stand.counting_origin(cores=self._other_cores)
            return counting, lambda: asyncio.run(effects(HOST, counting.port))["total"]
        asked = 0

        def seen() -> int:
            nonlocal asked
            asked += 1  # the question itself is counted too
            answer = asyncio.run(ask(HOST, origin.port, request("GET", "/status", HOST)))
            found = re.search(rb"\n\s*\d+ \d+ (\d+)", answer.body)
            assert found is not None, answer
            return int(found[1]) - asked

        return origin, seen

    def _start(self) -> None:
        proxy, other = self._proxy_cores, self._other_cores
        redis = self._try("Redis", lambda: self.stand.redis(cores=other))
        self._add(figures.PLAIN, ("first",), lambda: self.stand.nginx("plain", cores=proxy, origin=self.origin.port))
        cache = self.stand.borrow(SHM) if os.access(SHM, os.W_OK) else self.stand.directory / "cache"
        self._add(
            figures.CACHE,
            ("replay",),
            lambda: self.stand.nginx("cache", cores=proxy, origin=self.origin.port, cache=cache),
        )
        if redis is None:
            self._missing.setdefault("there is no Redis", []).extend((figures.LUA, figures.GATE_REDIS))
        else:
            self._add(
                figures.LUA,
                ("first", "replay"),
                lambda: self.stand.nginx("lua", cores=proxy, origin=self.origin.port, redis=redis.port),
            )
            gate = self._add(
                figures.GATE_REDIS,
                ("first", "replay", "open"),
                lambda: self.stand.gate("gate-redis", f"redis://{HOST}:{redis.port}/0", self.origin, cores=proxy),
            )
            if gate is not None:
                time.sleep(1)
                self.figures.idle_mib = gate.resident_mib()
        disk = self.stand.on_disk()
        self.figures.disk = filesystem(disk)
        self._add(
            figures.GATE_SQLITE,
            ("first", "replay") if redis is not None else ("first", "replay", "open"),
            lambda: self.stand.gate(
                "gate-sqlite",
                f"sqlite:///{disk}/bench.db?durability=power",
                self.origin,
                cores=proxy,
            ),
        )

    def _try(self, name: str, start: Callable[[], Running]) -> Running | None:
        try:
            return start()
        except Missing as why:
            self._missing.setdefault(str(why), []).append(name)
            return None

    def _add(self, name: str, kinds: tuple[str, ...], start: Callable[[], Running]) -> Running | None:
        server = self._try(name, start)
        if server is not None:
            self.subjects.append(Subject(name, server, kinds))
        return server

    def cpu(self) -> None:
        """The rounds of the CPU table."""
        plan = [
            (subject, kind, Cell(subject.name, kind, self.told.connections))
            for kind in figures.LOADS
            for subject in self.subjects
            if kind in subject.kinds
        ]
        pools = {subject.name: self._pool(subject) for subject in self.subjects if "replay" in subject.kinds}
        for subject, kind, cell in plan:
            self._round(subject, kind, cell.connections, 1, pools.get(subject.name))
        for number in range(self.told.rounds):
            _progress(f"round {number + 1} of {self.told.rounds}")
            for subject, kind, cell in plan:
                cell.rounds.append(
                    self._round(subject, kind, cell.connections, self.told.seconds, pools.get(subject.name))
                )
        self.figures.cells += [cell for _, _, cell in plan]

    def latency(self) -> None:
        """First requests at several numbers of connections."""
        subjects = [Subject(figures.ORIGIN, self.origin, ("latency",))]
        subjects += [each for each in self.subjects if each.name in (figures.PLAIN, figures.LUA, figures.GATE_REDIS)]
        plan = [
            (subject, Cell(subject.name, "latency", connections)) for connections in CONNECTIONS for subject in subjects
        ]
        for number in range(LATENCY_ROUNDS):
            _progress(f"latency, round {number + 1} of {LATENCY_ROUNDS}")
            for subject, cell in plan:
                cell.rounds.append(self._round(subject, "latency", cell.connections, 1, None))
        self.figures.cells += [cell for _, cell in plan]

    def _prefix(self) -> str:
        self._stretch += 1
        return f"{self._run}{self._stretch:010d}"

    def _pool(self, subject: Subject) -> str:
        """The prefix of keys that this subject has answered."""
        prefix = self._prefix()
        answers = answer_pool(subject.server.port, PATHS["replay"], prefix, POOL)
        if bad := [answer.status for answer in answers if not 200 <= answer.status < 300]:
            self._remarks.append(f"{subject.name}: {len(bad)} of {POOL} keys to be replayed were answered {bad[0]}")
        return prefix

    def _round(self, subject: Subject, kind: str, connections: int, seconds: int, pool: str | None) -> Round:
        server = subject.server
        self.stand.forget_logs()
        seen, spent = self._seen(), server.cpu_seconds()
        if kind == "replay":
            assert pool is not None
            load = self.client.run(server.port, PATHS[kind], connections, seconds, pool, POOL)
        else:
            load = self.client.run(server.port, PATHS[kind], connections, seconds, self._prefix())
        spent = server.cpu_seconds() - spent
        time.sleep(0.05)  # what the client left behind still arrives
        return Round(load, spent, self._seen() - seen)


def _cores() -> tuple[str, str]:
    """The proxies' core, and those of all else."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        raise Missing("--pin needs two cores and taskset")
    return str(cores[0]), ",".join(map(str, cores[1:]))


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what} …", end="", file=sys.stderr, flush=True)


def _heading(told: argparse.Namespace, bench: Bench, busy: float) -> str:
    box = machine()
    parts = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"Oncegate bench, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        f"{box['cores']} cores of {box['processor']} ({box['architecture']}, Linux {box['kernel']}); {parts}",
        f"110-byte JSON POST, 73-byte JSON answer; load from {bench.client.name}{'; pinned' if told.pin else ''}; "
        f"SQLite on {bench.figures.disk}; the gate writes its log, the peers write none",
    ]
    if busy > 0.5:
        lines.append(f"This machine was busy (load {busy:.1f} at the start): trust the ratios, not the figures.")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description="CPU per request, beside nginx")
    parser.add_argument("--quick", action="store_true", help="without the latency part, three rounds")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=int, default=2, help="of one round")
    parser.add_argument("--connections", type=int, default=32, help="the budget is written for 32")
    parser.add_argument("--pin", action="store_true", help="the proxies on a core of their own (taskset)")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the CPU table there")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    told = parser.parse_args()
    if min(told.rounds or 1, told.seconds, told.connections) < 1:
        parser.error("rounds, seconds and connections are at least 1")
    told.rounds = told.rounds or (3 if told.quick else 5)
    return told


def main() -> int:
    told = _arguments()
    if not Path("/proc/self/stat").exists():
        print("The bench reads CPU times from /proc, so it needs Linux.", file=sys.stderr)
        return 69
    busy = os.getloadavg()[0]
    try:
        with Stand() as stand:
            bench = Bench(stand, told)
            print(_heading(told, bench, busy), flush=True)
            for each in bench.remarks:
                print(each, flush=True)
            bench.cpu()
            if not told.quick:
                bench.latency()
    except Missing as why:
        print(f"cannot run: {why}", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        return 130
    _progress("")
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print()
    print(bench.figures.pages(told.connections, told.rounds, told.seconds))
    if told.svg:
        title = f"CPU of the proxy per request at {told.connections} connections, µs"
        drawing.bars(told.svg, title, bench.figures.costs())
    if told.json:
        whole = {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "load_average_at_start": busy,
            "sqlite_on": bench.figures.disk,
            "options": {
                "rounds": told.rounds,
                "seconds": told.seconds,
                "pinned": told.pin,
                "client": bench.client.name,
            },
            "remarks": bench.remarks,
            **bench.figures.plain(told.connections),
        }
        told.json.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(cell.valid for cell in bench.figures.cells) else 1


if __name__ == "__main__":
    sys.exit(main())

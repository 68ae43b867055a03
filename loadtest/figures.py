"""From rounds to figures, from figures to the budget of docs/performance: values in, a page of text out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

from loadtest.load import Load

PLAIN = "nginx, plain proxy_pass"
CACHE = "nginx, its own cache (hit)"
LUA = "nginx + Lua + Redis"
ORIGIN = "straight to the origin"
GATE_REDIS = "Oncegate, Redis"
GATE_SQLITE = "Oncegate, SQLite (power)"

LOADS = {"first": "first request", "replay": "duplicate (replay)", "open": "pass-through"}
CONNECTIONS = (1, 8, 32, 128)


@dataclass(frozen=True, slots=True)
class Round:
    """One stretch of load on one subject: what the client saw, what it cost, what the origin saw."""

    load: Load
    cpu_seconds: float
    reached_origin: int

    @property
    def cpu_us(self) -> float:
        return self.cpu_seconds / self.load.requests * 1e6 if self.load.requests else 0.0

    def fault(self, kind: str, connections: int) -> str | None:
        """Why this round measured something else than it says; None if it did not.

        First and passed requests must all have reached the origin (what was under way at the end may come on top);
        replays must not have.
        """
        if not self.load.requests:
            return "no request completed"
        if self.load.refused:
            return f"{self.load.refused} of {self.load.requests} answers were 4xx or 5xx"
        if self.load.broken:
            return f"{self.load.broken} connections broke or timed out"
        least, most = self.load.requests, self.load.requests + connections
        if kind == "replay":
            least, most = 0, 0
        if not least <= self.reached_origin <= most:
            return f"{self.reached_origin} requests reached the origin, {self.load.requests} were answered"
        return None


@dataclass
class Cell:
    """All rounds of one subject under one load."""

    subject: str
    kind: str
    connections: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [fault for each in self.rounds if (fault := each.fault(self.kind, self.connections))]

    @property
    def valid(self) -> bool:
        return bool(self.rounds) and not self.faults

    def middle(self, figure: Callable[[Round], float]) -> float:
        return median(figure(each) for each in self.rounds)


def cpu_us(each: Round) -> float:
    return each.cpu_us


def per_second(each: Round) -> float:
    return each.load.requests / each.load.seconds


def p50(each: Round) -> float:
    return each.load.p50


def p99(each: Round) -> float:
    return each.load.p99


@dataclass(frozen=True, slots=True)
class Bound:
    """One row of the budget."""

    what: str
    measured: float | None
    budget: float | None
    beyond: float | None
    unit: str = "×"

    def row(self) -> tuple[str, ...]:
        def against(limit: float | None) -> str:
            if limit is None:
                return ""
            if self.measured is None:
                return f"≤ {limit:g}"
            return f"≤ {limit:g}  {'ok' if self.measured <= limit else 'OVER'}"

        measured = "–" if self.measured is None else f"{self.measured:.2f} {self.unit}"
        return (self.what, measured, against(self.budget), against(self.beyond))


@dataclass
class Figures:
    """Everything that one run measured."""

    cells: list[Cell] = field(default_factory=list)
    idle_mib: float | None = None
    disk: str = "unknown"
    """the file system below SQLite"""

    def cell(self, subject: str, kind: str, connections: int) -> Cell | None:
        for each in self.cells:
            if (each.subject, each.kind, each.connections) == (subject, kind, connections):
                return each
        return None

    def ratio(self, above: Cell | None, below: Cell | None, figure: Callable[[Round], float]) -> float | None:
        """The median of the ratios within each round, so that a drift of the machine divides itself out."""
        if above is None or below is None or not above.valid or not below.valid:
            return None
        pairs = [(figure(a), figure(b)) for a, b in zip(above.rounds, below.rounds, strict=False)]
        return median(a / b for a, b in pairs) if pairs and all(b for _, b in pairs) else None

    def budget(self, connections: int) -> list[Bound]:
        def cpu(above: tuple[str, str], below: tuple[str, str]) -> float | None:
            return self.ratio(self.cell(*above, connections), self.cell(*below, connections), cpu_us)

        def latency(at: int, figure: Callable[[Round], float]) -> float | None:
            return self.ratio(self.cell(GATE_REDIS, "latency", at), self.cell(LUA, "latency", at), figure)

        first, replay = (GATE_REDIS, "first"), (GATE_REDIS, "replay")
        return [
            Bound("first request, Redis : nginx plain", cpu(first, (PLAIN, "first")), 4, 2.5),
            Bound("first request, Redis : nginx + Lua + Redis", cpu(first, (LUA, "first")), 0.7, None),
            Bound("replay, Redis : nginx + Lua + Redis", cpu(replay, (LUA, "replay")), 0.75, None),
            Bound("replay, Redis : nginx cache hit", cpu(replay, (CACHE, "replay")), None, 1),
            Bound("pass-through : nginx plain", cpu((GATE_REDIS, "open"), (PLAIN, "first")), 2, 1.5),
            Bound("first request, SQLite power : Redis", cpu((GATE_SQLITE, "first"), first), 1.3, None),
            Bound("latency p50 at 1 : nginx + Lua + Redis", latency(1, p50), 1.3, 1),
            Bound("latency p99 at 128 : nginx + Lua + Redis", latency(128, p99), 1, 0.7),
            Bound("resident, idle", self.idle_mib, 64, None, "MiB"),
        ]

    def pages(self, connections: int, rounds: int, seconds: int) -> str:
        parts = [
            f"CPU of the proxy per request at {connections} connections: µs, median of {rounds} rounds of {seconds} s"
            " (least–most) · requests/s",
            _cpu_table([cell for cell in self.cells if cell.kind in LOADS]),
        ]
        if latencies := [cell for cell in self.cells if cell.kind == "latency"]:
            parts += [
                "Latency of first requests: p50 / p99, by connections (µs to 1 ms, then ms)",
                _latency_table(latencies),
            ]
        budget = [bound.row() for bound in self.budget(connections)]
        parts += [
            "Budget (median of the ratios within each round)",
            _table(("", "measured", "budget", "beyond"), budget),
        ]
        if faults := [
            f"  {cell.subject}, {cell.kind} at {cell.connections}: {cell.faults[0]}"
            for cell in self.cells
            if not cell.valid
        ]:
            parts.append("INVALID, and in no ratio:\n" + "\n".join(faults))
        return "\n\n".join(parts)

    def costs(self) -> dict[str, dict[str, float | None]]:
        """CPU per request in µs, by subject and kind of load; None where it was not measured as it should be."""
        costs: dict[str, dict[str, float | None]] = {}
        for cell in self.cells:
            if cell.kind in LOADS:
                costs.setdefault(cell.subject, {})[LOADS[cell.kind]] = cell.middle(cpu_us) if cell.valid else None
        return costs

    def plain(self, connections: int) -> dict[str, object]:
        """For --json."""
        return {
            "cells": [
                {
                    "subject": cell.subject,
                    "kind": cell.kind,
                    "connections": cell.connections,
                    "faults": cell.faults,
                    "cpu_us": [round(each.cpu_us, 2) for each in cell.rounds],
                    "requests_per_second": [round(per_second(each)) for each in cell.rounds],
                    "p50_us": [each.load.p50 for each in cell.rounds],
                    "p99_us": [each.load.p99 for each in cell.rounds],
                }
                for cell in self.cells
            ],
            "budget": [
                {"what": b.what, "measured": b.measured, "budget": b.budget, "beyond": b.beyond, "unit": b.unit}
                for b in self.budget(connections)
            ],
        }


def _cpu_table(cells: list[Cell]) -> str:
    def show(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        if not cell.valid:
            return "INVALID"
        each = [one.cpu_us for one in cell.rounds]
        return f"{cell.middle(cpu_us):.1f} ({min(each):.1f}–{max(each):.1f}) · {cell.middle(per_second):.0f}/s"

    return _grid(cells, {(kind, cells[0].connections): title for kind, title in LOADS.items()}, show)


def _latency_table(cells: list[Cell]) -> str:
    def show(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        return f"{_time(cell.middle(p50))} / {_time(cell.middle(p99))}" if cell.valid else "INVALID"

    return _grid(cells, {("latency", at): f"{at}" for at in CONNECTIONS}, show)


def _grid(cells: list[Cell], columns: dict[tuple[str, int], str], show: Callable[[Cell | None], str]) -> str:
    by_place = {(cell.subject, cell.kind, cell.connections): cell for cell in cells}
    subjects = dict.fromkeys(cell.subject for cell in cells)
    rows = [(subject, *(show(by_place.get((subject, *column))) for column in columns)) for subject in subjects]
    return _table(("", *columns.values()), rows)


def _time(microseconds: float) -> str:
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.1f} ms"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  " + "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

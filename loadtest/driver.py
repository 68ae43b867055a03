"""A storm of duplicates: ``python -m loadtest.driver [--through URL --origin URL] [--keys N] [--copies M] …``.

Every key is sent M times at once over K connections, and once more when its storm is over. Then it must be true
that all answers of a key are one answer (status, content type, every byte of the body), that exactly one of them is
not marked ``Idempotent-Replayed``, and that the origin (``loadtest.origin``, asked before and after) had
exactly one effect per key. Exit 1 and the first offending keys if not.

Without addresses it starts an origin, a store and the gate of this checkout for itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

import uvloop

from loadtest.lanes import Answer, Ask, ask, drive, request
from loadtest.load import BODY
from loadtest.stand import Missing, Stand


@dataclass
class Storm:
    """What was sent, what came back, and what is wrong with it."""

    keys: int
    copies: int
    late: int
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    firsts: int = 0
    replayed: int = 0
    latencies: list[float] = field(default_factory=list)
    effects: dict[str, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)

    def violated(self, rule: str, where: str) -> None:
        self.violations.setdefault(rule, []).append(where)

    def table(self) -> str:
        total = sum(self.statuses.values())
        taken = sorted(self.latencies) or [0.0]
        statuses = ", ".join(f"{count} × {status or 'no answer'}" for status, count in sorted(self.statuses.items()))
        rows = [
            ("sent", f"{self.keys} keys × ({self.copies} at once + {self.late} late)"),
            ("answers", f"{total} in {self.seconds:.2f} s ({total / max(self.seconds, 1e-9):.0f}/s)"),
            ("statuses", statuses),
            ("first answers", f"{self.firsts}"),
            ("replayed", f"{self.replayed}"),
            ("effects at the origin", ", ".join(f"{name} {count}" for name, count in self.effects.items())),
            ("latency p50 / p99", f"{taken[len(taken) // 2] * 1e3:.1f} / {taken[len(taken) * 99 // 100] * 1e3:.1f} ms"),
        ]
        rows += [
            (f"VIOLATED: {rule}", f"{len(where)} ×, e.g. {'; '.join(where[:3])}")
            for rule, where in self.violations.items()
        ]
        if not self.violations:
            rows.append(("violations", "none"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


async def effects(host: str, port: int) -> dict[str, int]:
    answer = await ask(host, port, request("GET", "/effects", f"{host}:{port}"))
    told: dict[str, int] = json.loads(answer.body)
    return told


def _order(keys: list[str], copies: int, late: int) -> Iterator[str]:
    """The copies of a key side by side, so that they are in flight together; later, every key again."""
    for key in keys:
        for _ in range(copies):
            yield key
    for _ in range(late):
        yield from keys


async def storm(
    through: tuple[str, int], origin: tuple[str, int], *, keys: int, copies: int, late: int, connections: int
) -> Storm:
    result = Storm(keys, copies, late)
    run = secrets.token_hex(10)
    names = [f"{run}-{number:08d}" for number in range(keys)]
    host = f"{through[0]}:{through[1]}"
    answers: dict[str, list[Answer]] = {name: [] for name in names}

    def asks() -> Iterator[Ask[str]]:
        for name in _order(names, copies, late):
            fields = {"Content-Type": "application/json", "Idempotency-Key": name}
            yield Ask(name, request("POST", "/payments", host, fields, BODY))

    before = await effects(*origin)
    started = perf_counter()
    await drive(*through, connections, asks(), lambda name, answer: answers[name].append(answer), patience=300)
    result.seconds = perf_counter() - started
    after = await effects(*origin)
    result.effects = {name: after[name] - before[name] for name in after}

    for name, got in answers.items():
        _judge(result, name, got)
    for what, wanted in (("total", keys), ("keys", keys), ("doubled", 0)):
        if result.effects[what] != wanted:
            result.violated("one effect per key", f"{what} is {result.effects[what]}, not {wanted}")
    return result


def _judge(result: Storm, name: str, got: list[Answer]) -> None:
    """The answers of one key must be one answer, given first hand once."""
    result.statuses.update(answer.status for answer in got)
    result.latencies += [answer.seconds for answer in got]
    replayed = sum(answer.replayed for answer in got)
    result.replayed += replayed
    result.firsts += len(got) - replayed
    if len(got) != result.copies + result.late:
        result.violated("every request is answered", f"{name}: {len(got)} answers")
    statuses = sorted({answer.status for answer in got})
    if len(statuses) != 1 or not 200 <= statuses[0] < 300:
        result.violated("one status, and a good one", f"{name}: {statuses}")
    if len({answer.body for answer in got}) != 1:
        result.violated("the same bytes", f"{name}: {len({answer.body for answer in got})} bodies")
    if len({answer.fields.get(b"content-type") for answer in got}) != 1:
        result.violated("the same content type", name)
    if len(got) - replayed != 1:
        result.violated("one answer not replayed", f"{name}: {len(got) - replayed}")


def _address(url: str) -> tuple[str, int]:
    split = urlsplit(url if "//" in url else f"//{url}")
    return split.hostname or "127.0.0.1", split.port or 80


def _own_store(stand: Stand, kind: str) -> str:
    if kind == "redis":
        return f"redis://127.0.0.1:{stand.redis().port}/0"
    return "memory://" if kind == "memory" else f"sqlite:///{stand.directory}/storm.db"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.driver", description="a storm of duplicates")
    parser.add_argument("--through", metavar="URL", help="the gate")
    parser.add_argument("--origin", metavar="URL", help="the loadtest.origin behind it")
    parser.add_argument("--store", choices=("redis", "sqlite", "memory"), default="redis", help="of its own gate")
    parser.add_argument("--delay", type=float, default=5.0, metavar="MS", help="of its own origin")
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=8, help="of each key, at once")
    parser.add_argument("--late", type=int, default=1, help="of each key, afterwards")
    parser.add_argument("--connections", type=int, default=64)
    told = parser.parse_args()
    if (told.through is None) != (told.origin is None):
        parser.error("--through and --origin go together")

    with contextlib.ExitStack() as stack:
        if told.through is None:
            stand = stack.enter_context(Stand())
            try:
                origin = stand.counting_origin(delay_ms=told.delay)
                store = _own_store(stand, told.store)
                gate = stand.gate(f"gate-{told.store}", store, origin)
            except Missing as why:
                print(f"cannot run: {why}", file=sys.stderr)
                return 69
            through, behind = ("127.0.0.1", gate.port), ("127.0.0.1", origin.port)
        else:
            through, behind = _address(told.through), _address(told.origin)
        print(f"storm through {through[0]}:{through[1]} over {told.connections} connections")
        try:
            result = uvloop.run(
                storm(
                    through,
                    behind,
                    keys=told.keys,
                    copies=told.copies,
                    late=told.late,
                    connections=told.connections,
                )
            )
        except OSError as error:
            print(f"storm broke off: {type(error).__name__} {error}", file=sys.stderr)
            return 1
    print(result.table())
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())

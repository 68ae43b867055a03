"""``python -m loadtest.compare TREE``: what a request costs this checkout, beside another checkout of the project.

Both gateways run on this interpreter, against the same origin. A round loads one after the other; which one is first
alternates. The ratio is the median of the ratios within a round. The first line of the table, for example, says what a
first request on Redis costs both. An interpreter without profile-guided optimisation understates both.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.load import Wrk, answer_pool
from loadtest.stand import HOST, ROOT, Missing, Running, Stand

POOL = 512
CONNECTIONS = 32


@dataclass(frozen=True)
class Case:
    """One kind of request: the gateway's configuration and what is sent."""

    store: Callable[[Stand], str]
    more: dict[str, object] = field(default_factory=dict)
    form: str = "plain"
    fields: tuple[str, ...] = ()


def _redis(stand: Stand) -> str:
    return f"redis://{HOST}:{stand.redis().port}/0"


def _replicated(stand: Stand) -> str:
    primary = stand.redis()
    stand.redis(replica_of=primary)
    return f"redis://{HOST}:{primary.port}/0?durability=replicated&replicas=1&wait=2s"


def _sqlite(stand: Stand) -> str:
    return f"sqlite:///{stand.borrow(stand.on_disk())}/keys.db?durability=power"


CASES = {
    "redis": Case(_redis),
    "sqlite": Case(_sqlite),
    "replicated": Case(_replicated),
    "traced": Case(
        _redis,
        {"tracing": {"endpoint": "@ORIGIN@/v1/traces"}},  # which answers 200, whatever it is sent
        fields=("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",),
    ),
    "cors": Case(_redis, {"cors": {"origins": ["https://shop.example"]}}, fields=("Origin: https://shop.example",)),
    "quoted": Case(_redis, form="quoted"),
    "chunked": Case(_redis, form="chunked"),
    "proxied": Case(_redis, {"trusted_proxies": ["127.0.0.0/8"]}, fields=("X-Forwarded-For: 192.0.2.7",)),
    "canonical": Case(_redis, {"defaults": {"fingerprint": {"body": "canonical-json"}}}),
}


class Comparison:
    """One case on both trees."""

    def __init__(self, stand: Stand, case: Case, old: Path, origin: Running) -> None:
        self._stand, self._case, self._wrk = stand, case, Wrk()
        more = json.loads(json.dumps(case.more).replace("@ORIGIN@", origin.url))
        self._gateways = [
            stand.gate(name, case.store(stand), origin, root=root, **more)
            for name, root in (("old", old), ("new", ROOT))
        ]
        self._pools = [self._pool(gateway) for gateway in self._gateways]

    def _pool(self, gateway: Running) -> str:
        """Have the keys answered that are replayed later. Return what they begin with."""
        prefix = secrets.token_hex(13)
        if bad := [each.status for each in answer_pool(gateway.port, "/payments", prefix, POOL) if each.status != 200]:
            raise Missing(f"{gateway.name}: {len(bad)} requests were answered {bad[0]}")
        return prefix

    def measure(self, kind: str, rounds: int, seconds: int) -> list[tuple[float, float]]:
        """Return µs of CPU per request, old and new, of each round. A round before them warms up."""
        costs = []
        for number in range(rounds + 1):
            cost = {which: self._round(which, kind, seconds) for which in ((0, 1) if number % 2 else (1, 0))}
            costs.append((cost[0], cost[1]))
        return costs[1:]

    def _round(self, which: int, kind: str, seconds: int) -> float:
        gateway, case = self._gateways[which], self._case
        self._stand.forget_logs()
        path = "/open/payments" if kind == "open" else "/payments"
        prefix, pool = (self._pools[which], POOL) if kind == "replay" else (secrets.token_hex(13), 0)
        spent = gateway.cpu_seconds()
        load = self._wrk.run(gateway.port, path, CONNECTIONS, seconds, prefix, pool, form=case.form, fields=case.fields)
        if load.refused or load.broken:
            raise Missing(f"{gateway.name}: {load.refused} refused and {load.broken} broken of {load.requests}")
        return (gateway.cpu_seconds() - spent) / load.requests * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.compare", description="CPU per request, old and new")
    parser.add_argument("tree", type=Path, help="the other checkout")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {' '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of one round")
    told = parser.parse_args()
    if unknown := [name for name in told.cases if name not in CASES]:
        parser.error(f"no such case: {' '.join(unknown)}")
    print(f"Python {sys.version.split()[0]} ({sys.executable})")
    print(f"{'':22}{'old':>8}{'new':>8}{'ratio':>8}  (least, greatest)")
    for name in told.cases or CASES:
        try:
            with Stand() as stand:
                comparison = Comparison(stand, CASES[name], told.tree.resolve(), stand.nginx("origin"))
                for kind in ("first", "replay", *(("open",) if name == "redis" else ())):
                    costs = comparison.measure(kind, told.rounds, told.seconds)
                    old, new = (median(each) for each in zip(*costs, strict=True))
                    ratios = sorted(new / old for old, new in costs)
                    print(
                        f"{name + ', ' + kind:22}{old:8.1f}{new:8.1f}{median(ratios):8.3f}"
                        f"  ({ratios[0]:.2f}, {ratios[-1]:.2f})",
                        flush=True,
                    )
        except Missing as why:
            print(f"{name}: {why}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m loadtest.soak``: ten minutes of requests and duplicates; do memory and descriptors stay as they were?

Answers live for ten seconds, so that the store stays as large as it is; the load comes and goes with its connections
every few seconds, as clients do.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from dataclasses import dataclass
from statistics import median

from loadtest.load import Wrk, answer_pool
from loadtest.stand import HOST, Missing, Running, Stand

CONNECTIONS = 64
STRETCH = 5
POOL = 512
#: What the middle of the last third may be above the middle of the first.
MIB, DESCRIPTORS = 8.0, 4


@dataclass(frozen=True, slots=True)
class Sample:
    """The gate between two stretches of load. `requests` of the one before."""

    seconds: float
    mib: float
    descriptors: int
    requests: int

    def __str__(self) -> str:
        return f"{self.seconds:6.0f} s   {self.mib:7.1f} MiB   {self.descriptors:4d} descriptors   {self.requests:8d}"


def soak(gate: Running, seconds: float) -> list[Sample]:
    """Load the gate for so long. Raises Missing where an answer is bad."""
    wrk, run, began = Wrk(), secrets.token_hex(7), time.monotonic()
    samples: list[Sample] = []
    while (passed := time.monotonic() - began) < seconds:
        fresh, again = (f"{run}{len(samples):010d}-{kind}" for kind in ("f", "r"))
        first = wrk.run(gate.port, "/payments", CONNECTIONS, STRETCH, fresh)
        answer_pool(gate.port, "/payments", again, POOL)
        replays = wrk.run(gate.port, "/payments", CONNECTIONS, STRETCH, again, POOL)
        for load in (first, replays):
            if load.refused or load.broken:
                raise Missing(f"{load.refused} refused, {load.broken} broken of {load.requests} after {passed:.0f} s")
        time.sleep(1.5)  # idle connections to the origin end after one second
        samples.append(Sample(passed, gate.resident_mib(), gate.descriptors(), first.requests + replays.requests))
        print(samples[-1], flush=True)
    return samples


def growth(samples: list[Sample]) -> tuple[float, float]:
    """By how many MiB and descriptors the last third is above the first, less the first sample: it warms up."""
    rest = samples[1:] or samples
    third = max(1, len(rest) // 3)
    early, late = rest[:third], rest[-third:]
    return (
        median(each.mib for each in late) - median(each.mib for each in early),
        median(each.descriptors for each in late) - median(each.descriptors for each in early),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.soak", description="memory and descriptors under load")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1)
    told = parser.parse_args()
    try:
        with Stand() as stand:
            origin, redis = stand.nginx("origin"), stand.redis()
            store = f"redis://{HOST}:{redis.port}/0"
            gate = stand.gate("gate", store, origin, workers=told.workers, window="10s")
            samples = soak(gate, told.minutes * 60)
    except Missing as why:
        print(f"cannot run: {why}", file=sys.stderr)
        return 69
    mib, descriptors = growth(samples)
    flat = mib <= MIB and descriptors <= DESCRIPTORS
    count = sum(each.requests for each in samples)
    print(f"\n{count} requests: {mib:+.1f} MiB, {descriptors:+.0f} descriptors: {'flat' if flat else 'NOT FLAT'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())

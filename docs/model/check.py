#!/usr/bin/env python3
"""Check the record protocol's model: with every rule it must hold, and without any one of them it must not.

Needs spin and gcc. Works in a temporary folder. `--long` checks larger crowds and more bad luck.
"""

# ruff: noqa: S603, T201 - it runs two compilers on its own files, and prints what came of it

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
#: Two runs at once: two cores, and at most twice this memory.
AT_ONCE = 2
MEGABYTES = 4_000
SECONDS = 120
LONG_SECONDS = 600
LONG_MEGABYTES = 9_000


@dataclass(frozen=True)
class Run:
    """One verification: a model, its switches, and whether it must hold."""

    name: str
    model: str
    switches: str
    holds: bool


def breaks(name: str, switches: str) -> Run:
    """What the docs say is outside of the promise, and is seen to be."""
    return Run(name, "lanes", switches, False)


def holds(name: str, model: str, switches: str) -> Run:
    return Run(name, model, switches, True)


def without(rule: str, model: str, switches: str = "") -> Run:
    return Run(f"without {rule}", model, f"{switches} -DWITHOUT_{rule}", False)


QUIET = "-DCRASHES=0 -DLOSSES=0"
LATE = f"{QUIET} -DDELAYS=1"
RERUN = f"-DRERUN {QUIET}"

PROTOCOL = (
    holds("two, under hold", "record", "-DN=2 -DENDS=1"),
    holds("two, a late command", "record", "-DN=2 -DDELAYS=1 -DENDS=1"),
    holds("three, lost replies", "record", "-DN=3 -DCRASHES=0"),
    holds("three, a crash", "record", "-DN=3 -DLOSSES=0"),
    holds("two, a store that forgets", "record", f"-DN=2 -DFORGETS=1 {QUIET}"),
    holds("two, under rerun", "record", "-DN=2 -DRERUN -DANSWERS_MAY_DIFFER"),
    holds("two, rerun, a late command", "record", "-DN=2 -DRERUN -DANSWERS_MAY_DIFFER -DCRASHES=0 -DDELAYS=1"),
    holds("three, under rerun", "record", f"-DN=3 {RERUN}"),
    holds("the lease", "lease", ""),
    holds("lanes: two, a failover", "lanes", "-DN=2"),
    holds("lanes: two, under rerun", "lanes", "-DN=2 -DRERUN"),
    holds("lanes: two replicas, twice", "lanes", "-DN=1 -DR=2 -DFAILOVERS=2 -DCRASHES=1 -DLOSSES=1"),
    holds("lanes: an old primary stays", "lanes", "-DN=1 -DR=2 -DLOSSES=1 -DCUT"),
)

#: Larger, and only with --long.
LARGER = (
    holds("three, a crash, lost replies", "record", "-DN=3"),
    holds("three, a late command", "record", f"-DN=3 {LATE}"),
    holds("three, rerun, a crash", "record", "-DN=3 -DRERUN -DANSWERS_MAY_DIFFER -DLOSSES=0"),
    holds("two, two lost replies", "record", "-DN=2 -DLOSSES=2 -DDELAYS=1"),
    holds("two pauses", "lease", "-DPAUSES=2"),
    holds("lanes: two, an old one stays", "lanes", "-DN=2 -DCUT"),
    holds("lanes: two replicas, rerun", "lanes", "-DN=1 -DR=2 -DRERUN -DFAILOVERS=2 -DLOSSES=1 -DCRASHES=1"),
)

#: What no rule of the gate closes.
OUTSIDE = (
    breaks("a second failover too soon", "-DN=1 -DHASTY -DFAILOVERS=2"),
    breaks("a primary emptied", "-DN=1 -DEMPTIED"),
    breaks("servers' clocks apart", "-DN=2 -DRERUN -DCLOCKS"),
)

RULES = (
    without("ATOMIC_CLAIM", "record", f"-DN=2 {QUIET}"),
    without("FRESH_HOLDER", "record", "-DN=3 -DCRASHES=0"),
    without("SETTLE_HOLDER", "record", f"-DN=3 {LATE}"),
    without("SETTLE_STATE", "record", f"-DN=2 {LATE}"),
    without("TAKE_HOLDER", "record", f"-DN=3 {RERUN}"),
    without("TAKE_STATE", "record", f"-DN=2 {RERUN}"),
    without("TAKE_LAPSE", "record", f"-DN=2 {RERUN}"),
    without("RELEASE_GOES_BACK", "record", f"-DN=3 {RERUN}"),
    without("MAX_ATTEMPTS", "record", f"-DN=3 {RERUN}"),
    without("LAPSE", "record", "-DN=2 -DLOSSES=0"),
    without("TELL_AGAIN", "record", f"-DN=1 -DFORGETS=1 {QUIET}"),
    without("GIVE_UP", "record", "-DN=2 -DCRASHES=0"),
    without("REPEAT", "record", f"-DN=2 {LATE}"),
    without("SETTLE_ON", "record", "-DN=2 -DCRASHES=0"),
    without("HOLD_UNKNOWN", "record", f"-DN=2 {QUIET}"),
    without("OUTLIVES_ITS_CLIENT", "record", f"-DN=2 {QUIET}"),
    without("READ_TO_ITS_END", "record", f"-DN=1 {QUIET}"),
    without("REMEMBER_FIRST", "record", "-DN=1 -DLOSSES=0"),
    without("ANSWER_FROM_RECORD", "record", f"-DN=2 {RERUN}"),
    without("T0", "lease"),
    without("SEND_BY", "lease"),
    without("DEADLINE", "lease"),
    without("BOOTTIME", "lease"),
    without("STORE_CLOCK", "lease"),
    without("TAKE_MARGIN", "lease"),
    without("CLAIM_LIFE", "lease"),
    without("FRESH_LIFE", "lease", "-DN=3 -DREPLY=0"),
    without("WAIT_CLAIM", "lanes", "-DN=1"),
    without("CLAIM_AGAIN", "lanes", "-DN=1 -DLOSSES=1"),
    without("WAIT_TAKEOVER", "lanes", "-DN=2 -DRERUN"),
    without("TAKE_AGAIN", "lanes", "-DN=2 -DRERUN -DLOSSES=1"),
    without("WAIT_KEEP", "lanes", "-DN=1"),
    without("KEEP_AGAIN", "lanes", "-DN=1 -DLOSSES=1"),
    without("KEEP_ON", "lanes", "-DN=1"),
    without("ALL_REPLICAS", "lanes", "-DN=1 -DR=2"),
    without("SHORT_IS_UNKNOWN", "lanes", "-DN=1"),
    without("LANE_IS_UNSURE", "lanes", "-DN=1"),
    without("RELEASE_AGAIN", "lanes", "-DN=1"),
    without("LEAVES", "lanes", "-DN=1 -DCUT"),
    without("LANES_FOLLOW", "lanes", "-DN=1 -DCUT"),
)


@dataclass(frozen=True)
class Result:
    run: Run
    seconds: float
    states: int = 0
    broken: str = ""  # the promise that did not hold
    trouble: str = ""  # why nothing is known

    @property
    def expected(self) -> bool:
        return not self.trouble and bool(self.broken) is not self.run.holds

    @property
    def said(self) -> str:
        if self.trouble:
            return self.trouble
        found = "a counterexample" if self.broken else "holds"
        return found if self.expected else f"NOT AS EXPECTED: {found}"


def check(run: Run, folder: Path, seconds: int, megabytes: int) -> Result:
    """Build the verifier of one run in a folder of its own, and let it search."""
    folder.mkdir()
    shutil.copy(HERE / f"{run.model}.pml", folder / "model.pml")
    begun = time.perf_counter()
    compiled = (
        ("spin", *run.switches.split(), "-a", "model.pml"),
        ("gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={megabytes}", "-o", "pan", "pan.c"),
    )
    for command in compiled:
        built = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
        if built.returncode:
            return Result(run, time.perf_counter() - begun, trouble=f"does not build: {built.stdout}{built.stderr}")
    # -E: where time itself runs out, in lease.pml, being unable to go on is no fault.
    deadlocks = ("-E",) if run.model == "lease" else ()
    try:
        searched = subprocess.run(
            ("./pan", *deadlocks, "-m100000", "-w24"),
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Result(run, time.perf_counter() - begun, trouble=f"not searched through in {seconds} s")
    return judged(run, searched.stdout, time.perf_counter() - begun)


def judged(run: Run, said: str, seconds: float) -> Result:
    """What the verifier's words come to. What was not searched through has not been shown to hold."""
    errors = re.search(r"errors: (\d+)", said)
    states = re.search(r"(\d+) states, stored", said)
    count = int(states[1]) if states else 0
    if errors is None:
        return Result(run, seconds, count, trouble=f"the verifier failed: {said[-300:]}")
    if int(errors[1]):
        broken = re.search(r"pan:1: (.*) \(at depth", said)
        return Result(run, seconds, count, broken=broken[1] if broken else "(not named)")
    if "Search not completed" in said or "max search depth too small" in said:
        return Result(run, seconds, count, trouble="not searched through: the memory or the depth given is too small")
    return Result(run, seconds, count)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--long"]):
        print("usage: check.py [--long]")
        return 64
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing:
        print(f"{' and '.join(missing)} not found. The model is checked by Spin, which compiles its verifier with gcc;")
        print("both are Debian packages: apt-get install spin gcc")
        return 69
    long = bool(arguments)
    runs = PROTOCOL + (LARGER if long else ()) + OUTSIDE + RULES
    seconds, megabytes, at_once = (LONG_SECONDS, LONG_MEGABYTES, 1) if long else (SECONDS, MEGABYTES, AT_ONCE)
    unexpected = 0
    with tempfile.TemporaryDirectory(prefix="oncegate-model-") as folder, ThreadPoolExecutor(at_once) as pool:
        folders = (Path(folder) / str(number) for number in range(len(runs)))
        for result in pool.map(lambda run, where: check(run, where, seconds, megabytes), runs, folders):
            unexpected += not result.expected
            print(
                f"{result.run.name:<28} {result.states:>10} states {result.seconds:6.1f} s  {result.said}", flush=True
            )
    print("as expected" if not unexpected else f"{unexpected} of {len(runs)} not as expected")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

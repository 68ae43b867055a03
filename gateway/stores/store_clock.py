"""The time by which records of an SQLite file end: CLOCK_BOOTTIME on a base that stands in the file.

A step of the wall clock moves neither. The base stays for as long as the host runs, so all processes on the file agree,
and a restart finds records with the life that they had left. After a reboot CLOCK_BOOTTIME begins again. The wall clock
then measures how long the host was down, and the store's time never goes back behind what was written last.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from ..ports import Clock
from .findings import Finding, Severity

SCHEMA = """
CREATE TABLE IF NOT EXISTS clock (
    one     INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    boot    TEXT NOT NULL,     -- the kernel's boot id
    base    INTEGER NOT NULL,  -- milliseconds: the store's time less CLOCK_BOOTTIME, while that boot lasts
    ahead   INTEGER NOT NULL,  -- the wall clock less the store's time, as last noted
    stepped INTEGER NOT NULL,  -- by how much the wall clock was stepped in that boot
    last    INTEGER NOT NULL   -- the store's time, as last noted
)
"""
_READ = "SELECT boot, base, ahead, stepped, last FROM clock"
_WRITE = "INSERT OR REPLACE INTO clock (one, boot, base, ahead, stepped, last) VALUES (1, ?, ?, ?, ?, ?)"
#: A step that another process has noted meanwhile is left as it is.
_NOTE = """
UPDATE clock SET last = max(last, ?1), ahead = CASE WHEN abs(ahead - ?2) <= ?3 THEN ?2 ELSE ahead END WHERE boot = ?4
"""

CLOCK_STEPPED = "clock-stepped"
#: Milliseconds since the last note that count as a step. Less is a slew, or a leap second, and is followed silently.
STEP = 2_000
#: Milliseconds after which a transaction also notes the time.
_NOTED_EVERY = 60_000
#: Milliseconds that may lie between the readings of both clocks.
_APART = 50

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = Path("/proc/self/timens_offsets")


def host_boot() -> tuple[str, int]:
    """Return the boot of this host, empty if it is unknown, and the milliseconds by which this process' time namespace
    shifts CLOCK_BOOTTIME (time_namespaces(7))."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        return "", 0
    try:
        lines = [line.split() for line in _OFFSETS.read_text().splitlines()]
    except OSError:
        lines = []
    shift = [int(seconds) * 1000 + int(rest) // 1_000_000 for name, seconds, rest in lines if name == "boottime"]
    return boot, shift[0] if shift else 0


class StoreClock:
    """The store's time, for the thread that has the file. `boot`: as `host_boot`."""

    def __init__(self, clock: Clock, boot: Callable[[], tuple[str, int]] = host_boot) -> None:
        self._clock = clock
        self._boot, self._shift = boot()
        self._base = self._ahead = self._noted = 0
        #: A step of the wall clock in this boot, until it is undone.
        self.finding: Finding | None = None

    def now(self) -> int:
        """Return the store's time in milliseconds: about those since 1970, by a clock that is never stepped."""
        return self._boottime() + self._base

    def set(self, db: sqlite3.Connection, *, opening: bool = True) -> None:
        """Read the base, and note a step, within a transaction that may write. `opening`: make the base if there is
        none of this boot. A process that runs keeps it, because its own CLOCK_BOOTTIME has gone on."""
        db.execute(SCHEMA)
        row = db.execute(_READ).fetchone()
        boottime, wall, _ = self._both()
        if row is None:
            written = (self._boot, wall - boottime, 0, 0, wall)  # records of a version that had no such table live on
        else:
            boot, base, ahead, stepped, last = row
            if opening and (boot != self._boot or not boot or boottime + base < last - STEP):
                now = max(wall - ahead, last)
                written = (self._boot, now - boottime, wall - now, 0, now)
            else:
                now = boottime + base
                stepped += wall - now - ahead if _is_step(wall - now - ahead) else 0
                written = (boot, base, ahead if stepped == row[3] else wall - now, stepped, last)
        if written != row:
            db.execute(_WRITE, written)
        _, self._base, _, stepped, self._noted = written
        self._ahead = wall - boottime - self._base
        self.finding = _finding(stepped)

    def look(self, db: sqlite3.Connection) -> None:
        """Compare both clocks, and note a step. Raises sqlite3.Error, with the transaction open."""
        row = db.execute(_READ).fetchone()
        boottime, wall, apart = self._both()
        if apart > _APART:
            return  # this process stood still between the two readings
        if row is not None:
            _, self._base, ahead, stepped, _ = row  # without a boot id each opening sets the base
            self._ahead = wall - boottime - self._base
            if not _is_step(self._ahead - ahead):
                self.finding = _finding(stepped)
                if abs(self._ahead - ahead) > STEP // 2:  # slews: the next look must not take them for a step
                    self._write(db, self.now())
                return
        db.execute("BEGIN IMMEDIATE")
        self.set(db, opening=False)
        db.execute("COMMIT")

    def note(self, db: sqlite3.Connection, now: int) -> None:
        """Note the time once a minute, within a transaction that writes anyway."""
        if now - self._noted >= _NOTED_EVERY:
            self._write(db, now)

    def _write(self, db: sqlite3.Connection, now: int) -> None:
        db.execute(_NOTE, (now, self._ahead, STEP, self._boot))
        self._noted = now

    def _boottime(self) -> int:
        return int(self._clock.now() * 1000) - self._shift

    def _both(self) -> tuple[int, int, int]:
        """Return both clocks, and how far apart they were read at most."""
        for _ in range(5):
            before, wall, after = self._boottime(), self._clock.wall(), self._boottime()
            if after - before <= _APART:
                break
        return after, wall, after - before


def _is_step(milliseconds: int) -> bool:
    return abs(milliseconds) > STEP


def _finding(stepped: int) -> Finding | None:
    if not _is_step(stepped):
        return None
    return Finding(
        CLOCK_STEPPED,
        Severity.WARN,
        f"The wall clock was stepped by {stepped / 1000:+.0f} s while this host ran. Records keep the life that they "
        "had left, because they follow CLOCK_BOOTTIME. Find out what sets the clock, and set it right before the next "
        "reboot: after that the wall clock is believed.",
    )

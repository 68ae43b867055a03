"""Records in this process: for trying out, and as the pure transitions made runnable. Survives nothing."""

from __future__ import annotations

import heapq

from ..core.record import Done, Found, Record, Settlement, Stamp, Write, claimed, replaced, settled
from ..ports import Clock

_SWEEP = 64


class MemoryStore:
    """A dict of records, each with the instant at which it ends, by the clock that it is given."""

    kind = "memory"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[bytes, tuple[Record, float]] = {}
        self._ends: list[tuple[float, bytes]] = []

    @property
    def available(self) -> bool:
        return True

    @property
    def trouble(self) -> str:
        return ""

    async def open(self) -> None: ...

    async def close(self) -> None:
        self._records.clear()
        self._ends.clear()

    async def wait_available(self, seconds: float) -> bool:
        return True

    async def claim(self, name: bytes, claim: Record) -> Done | Found:
        result, change = claimed(self._find(name), claim)
        return self._make(name, change, result)

    async def settle(self, name: bytes, settlement: Settlement) -> Done | Found:
        result, change = settled(self._find(name), settlement)
        return self._make(name, change, result)

    async def replace(self, name: bytes, stamp: Stamp, to: Record | None) -> Done | Found:
        result, change = replaced(self._find(name), stamp, to)
        return self._make(name, change, result)

    async def look(self, name: bytes) -> Found | None:
        return self._find(name)

    def __len__(self) -> int:
        self._sweep(len(self._ends))
        return len(self._records)

    def _find(self, name: bytes) -> Found | None:
        entry = self._records.get(name)
        if entry is None:
            return None
        record, ends = entry
        left = ends - self._clock.now()
        if left <= 0:
            del self._records[name]
            return None
        return Found(record, record.life - round(left * 1000))

    def _make(self, name: bytes, change: Record | Write, result: Done | Found) -> Done | Found:
        if isinstance(change, Record):
            ends = self._clock.now() + change.life / 1000
            self._records[name] = (change, ends)
            heapq.heappush(self._ends, (ends, name))
            self._sweep(_SWEEP)
        elif change is Write.DELETE:
            self._records.pop(name, None)
        return result

    def _sweep(self, most: int) -> None:
        now = self._clock.now()
        while self._ends and self._ends[0][0] <= now and most:
            _, name = heapq.heappop(self._ends)
            entry = self._records.get(name)
            if entry is not None and entry[1] <= now:
                del self._records[name]
            most -= 1

"""Records in this process: for trying out, and as the pure transitions made runnable. Survives nothing."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..core.record import (
    Change,
    Found,
    NewClaim,
    NewKeep,
    Record,
    Settlement,
    Stamp,
    Write,
    claimed,
    replaced,
    settled,
)
from ..ports import (
    ClaimReply,
    Clock,
    GetReply,
    Nobody,
    Observer,
    Page,
    StoreAway,
    StoreFull,
    Subscription,
    WriteReply,
)
from .codec import share_before
from .findings import FULL, ClaimRefusals, Finding, Severity, announce, unheard
from .replies import deliver

_SWEEP = 64
MAX_RECORDS = 100_000
MAX_BYTES = 256 << 20


class MemoryStore:
    """A dict of records, each with the instant at which it ends, by the clock that it is given.

    At `max_records`, or once the answers that it holds have `max_bytes`, claims are refused. Whoever has claimed
    before may settle: what is told is what happened, and it is bounded by what is in flight.

    With `replies_soon` it replies in the next turn of the loop, as a store behind a connection does: a reply within the
    call would be handled inside the parser of the connection that led to it.
    """

    kind = "memory"

    def __init__(
        self,
        clock: Clock,
        observer: Observer = Nobody(),  # noqa: B008  # a constant
        *,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
        replies_soon: bool = False,
        say: Callable[..., None] = unheard,
    ) -> None:
        self._clock = clock
        self._observer = observer
        self._say = say
        self._refusals = ClaimRefusals(clock.now)
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._replies_soon = replies_soon
        self._bytes = 0
        self._records: dict[bytes, tuple[Record, float]] = {}
        self._ends: list[tuple[float, bytes]] = []
        self._closed = False

    @property
    def available(self) -> bool:
        return True

    @property
    def trouble(self) -> str:
        return ""

    @property
    def claims_refused(self) -> str:
        return "; ".join(map(str, self.findings))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """`full`, while it is. Nothing looks at this store unasked, so each reading does."""
        self._look()
        return self._refusals.findings

    async def open(self) -> None:
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        self._records.clear()
        self._ends.clear()
        self._bytes = 0

    def when_available(self, seconds: float, reply: Callable[[bool], None]) -> None:
        deliver(reply, not self._closed, self._observer)

    def claim(self, name: bytes, claim: NewClaim | Record, reply: ClaimReply) -> None:
        record = claim.record if isinstance(claim, NewClaim) else claim
        self._do(name, lambda found: claimed(found, record), reply, claims=True)

    def settle(self, name: bytes, settlement: Settlement | NewKeep, reply: WriteReply) -> None:
        self._do(name, lambda found: settled(found, settlement), reply)

    def compare_and_swap(self, name: bytes, precondition: Stamp, to: Record | None, reply: WriteReply) -> None:
        self._do(name, lambda found: replaced(found, precondition, to), reply)

    def get(self, name: bytes, reply: GetReply) -> None:
        self._do(name, lambda found: (found, Write.LEAVE), reply)

    def subscribe(self, name: bytes, notify: Callable[[], None]) -> Subscription:
        return Subscription()  # no other process writes here

    def _do(
        self,
        name: bytes,
        transition: Callable[[Found | None], tuple[Any, Change]],
        reply: Callable[[Any], None],
        *,
        claims: bool = False,
    ) -> None:
        """Make a transition of the record now, and reply with its result: before returning, or in the next turn of the
        loop."""
        if self._closed:
            result: Any = StoreAway("the store is closed", ambiguous=False)
        else:
            result, change = transition(self._find(name))
            if claims and isinstance(change, Record) and self._full():
                self._look()
                if self._full():
                    why = f"{len(self._records)} records with {self._bytes} bytes of answers are in memory"
                    result, change = StoreFull(why), Write.LEAVE
            self._write(name, change)
        if self._replies_soon:
            asyncio.get_running_loop().call_soon(deliver, reply, result, self._observer)
        else:
            deliver(reply, result, self._observer)

    async def walk(self, cursor: str, most: int) -> Page:
        start = cursor.encode()
        names = heapq.nsmallest(most, (name for name in self._records if name > start))
        found = [(name, found) for name in names if (found := self._find(name)) is not None]
        records = tuple((name, Found(replace(seen.record, answer=None), seen.age)) for name, seen in found)
        on = names[-1].decode() if len(names) == most else ""
        return Page(records, on, len(names), 0, share_before(on))

    def _find(self, name: bytes) -> Found | None:
        entry = self._records.get(name)
        if entry is None:
            return None
        record, ends = entry
        left = ends - self._clock.now()
        if left <= 0:
            self._drop(name)
            return None
        return Found(record, record.life - round(left * 1000))

    def _write(self, name: bytes, change: Change) -> None:
        if isinstance(change, Record):
            ends = self._clock.now() + change.life / 1000
            self._drop(name)
            self._records[name] = (change, ends)
            self._bytes += _size(change)
            heapq.heappush(self._ends, (ends, name))
            self._sweep(_SWEEP)
        elif change is Write.DELETE:
            self._drop(name)

    def _look(self) -> None:
        """Sweep, and report a change between full and not full."""
        before = self._refusals.findings
        self._sweep(len(self._ends))
        if self._full():
            failed = f"the memory store has no room for new keys: it holds {self._max_records} records at most"
            cause = f"{failed}, and {self._max_bytes} bytes of answers"
            change = "Raise max_records or max_bytes in the store's URL, or shorten the windows of the routes."
            self._refusals.refused(Finding(FULL, Severity.REFUSE, f"{cause}. {change}"))
        else:
            self._refusals.accepted()
        announce(before, self._refusals.findings, self._observer, self._say)

    def _full(self) -> bool:
        return len(self._records) >= self._max_records or self._bytes >= self._max_bytes

    def _drop(self, name: bytes) -> None:
        entry = self._records.pop(name, None)
        if entry is not None:
            self._bytes -= _size(entry[0])

    def _sweep(self, most: int) -> None:
        now = self._clock.now()
        while self._ends and self._ends[0][0] <= now and most:
            _, name = heapq.heappop(self._ends)
            entry = self._records.get(name)
            if entry is not None and entry[1] <= now:
                self._drop(name)
            most -= 1


def _size(record: Record) -> int:
    answer = record.answer
    return 0 if answer is None else len(answer.head) + len(answer.body or b"")

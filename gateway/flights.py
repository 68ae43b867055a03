"""The exchanges of this process, by the name of their record, and who waits for each.

A duplicate that arrives here is told by its process, whatever the store has lost meanwhile, and costs
the store nothing. The table is looked up before the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .core.fingerprint import Fingerprint
from .core.limit import Limit
from .core.problem import Refusal
from .core.record import Found, Record
from .core.reply import Reply
from .core.values import value
from .ports import Attempt, Client, Clock


@value
class Told:
    """The exchange ended: this is what everybody attached to it is given."""

    reply: Reply


@value
class Stands:
    """The store holds a record: each decides on it by its own fingerprint and policy."""

    found: Found


@value
class LookAgain:
    """Whoever led has left, or its answer was for it alone: the next one leads."""


@value
class Failed:
    """The store could not be asked. Everybody who waited for it hears so at once, not one after another."""

    refusal: Refusal


Ending = Told | Stands | LookAgain | Failed
LOOK_AGAIN = LookAgain()

#: Why a waiter stopped waiting, where it was not for an ending.
TIMED_OUT = "timed out"
GONE = "gone"
CHANGED = "changed"

Waiter = asyncio.Future[Ending | str]


@dataclass(slots=True, eq=False)
class Flight:
    """One name of this process in flight. Its leader asks the store; the others wait for the leader.

    `standing` is the record whose claim stands, once that is known: the leader's own, or another
    process's that it watches.
    """

    name: bytes
    standing: Record | None = None
    fingerprint: Fingerprint | None = None
    attempt: Attempt | None = None
    ending: Ending | None = None
    lease_ends: float = 0.0
    #: The `context` of the leader's trace, once the key is its own.
    trace: bytes = b""
    _waiters: set[Waiter] = field(default_factory=set)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def claimed(self, record: Record, lease_ends: float) -> None:
        """It is known whose claim stands; `lease_ends` in the clock's seconds."""
        self.standing = record
        self.fingerprint = record.fingerprint
        self.lease_ends = lease_ends
        self._wake(CHANGED)

    def freed(self) -> None:
        """The claim that was watched is gone, and the next is not made yet: nobody is compared with it any more."""
        self.standing = self.fingerprint = None

    def end(self, ending: Ending) -> None:
        """Tell everybody who waits, and whoever still comes while the flight is listed."""
        self.ending = ending
        self._wake(ending)

    def _wake(self, news: Ending | str) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(news)

    async def news(self, client: Client, clock: Clock, until: float) -> Ending | str:
        """The next change: CHANGED, an ending; or TIMED_OUT, or GONE if the client hangs up."""
        if self.ending is not None:
            return self.ending
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        tell = _teller(waiter)
        timer = loop.call_later(max(until - clock.now(), 0), tell, TIMED_OUT)
        client.when_gone(lambda: tell(GONE))
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            client.when_gone(None)
            self._waiters.discard(waiter)


def _teller(waiter: Waiter) -> Callable[[str], None]:
    def tell(news: str) -> None:
        if not waiter.done():
            waiter.set_result(news)

    return tell


class Alone(Protocol):
    """A request that is in flight without a Flight, since nobody waits for it."""

    @property
    def name(self) -> bytes: ...

    @property
    def route(self) -> str | None:
        """The label of its route, once the key is its own."""

    def joined(self) -> Flight:
        """Somebody wants to wait for it, or to end it: it goes on as a flight, which is listed in its place."""


class Flights:
    """The table, with its caps: waiters per name and in all."""

    def __init__(self, *, per_key: int = 100, in_all: int = 10_000) -> None:
        self._by_name: dict[bytes, Flight | Alone] = {}
        self._per_key = per_key
        self._in_all = in_all
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Flight]:
        return iter([each for each in self._by_name.values() if isinstance(each, Flight)])

    def alone(self) -> list[Alone]:
        """Those that fly without a Flight."""
        return [each for each in self._by_name.values() if not isinstance(each, Flight)]

    def get(self, name: bytes) -> Flight | None:
        found = self._by_name.get(name)
        return found if found is None or isinstance(found, Flight) else found.joined()

    def open(self, name: bytes) -> Flight:
        """A new flight, listed from now on."""
        assert name not in self._by_name
        flight = self._by_name[name] = Flight(name)
        return flight

    def enter(self, alone: Alone) -> bool:
        """List a request that flies alone. False where somebody flies under its name."""
        return self._by_name.setdefault(alone.name, alone) is alone

    def join(self, alone: Alone) -> Flight:
        """List a flight in its place."""
        assert self._by_name[alone.name] is alone
        flight = self._by_name[alone.name] = Flight(alone.name)
        return flight

    def forget(self, flight: Flight | Alone) -> None:
        """List it no more. Whoever comes next asks the store."""
        if self._by_name.get(flight.name) is flight:
            del self._by_name[flight.name]

    def full(self, flight: Flight) -> Limit | None:
        """Which cap one waiter more would pass."""
        if flight.waiting >= self._per_key:
            return Limit.WAITERS_PER_KEY
        return Limit.WAITERS if self.waiting >= self._in_all else None

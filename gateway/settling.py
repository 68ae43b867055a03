"""Settlements that go on after their client was answered.

A settlement that the store has not acknowledged is sent again, with back-off, until the store has
answered or the record's life is over. A claim that was given up while nobody knows whether it was made
is released as persistently; and since the command that made it may still be on its way, the release is
repeated after one and five seconds and once more at the lease's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .awaitable import AwaitableStore
from .core.record import Done, Found, NewKeep, Record, Settlement, release, without_body
from .ports import Clock, Observer, RecordTooLarge, StoreAway, StoreFull
from .tasks import Tasks

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
#: Seconds after a release that found nothing at which it is sent again; the lease's end comes third.
_REPEATS = (1.0, 5.0)
#: … and the seconds for which the last repeat is tried where the store is away by then.
_LAST_REPEAT = 60.0


#: Seconds within which a route whose responses the store refuses raises one alarm.
_ALARM_EVERY = 60.0
#: Seconds for which a store may have no room for a response before it is settled without its body: that it ran is
#: remembered at least, if the gateway is stopped before there is room.
_FULL_FOR = 30.0


class Settler:
    """Owns the settlements of one gate that are still to be made."""

    def __init__(self, store: AwaitableStore, clock: Clock, observer: Observer) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._tasks = Tasks(lambda error: observer.alarm("settling failed", error=repr(error)))
        self._alarmed: dict[str, float] = {}
        self._repeats = Tasks(lambda error: observer.alarm("settling failed", error=repr(error)))

    def shortened(self, settlement: Settlement | NewKeep, away: StoreAway, route: str) -> Settlement | None:
        """Return the part of a Keep that fits if the store refuses its response: that the request ran. None if there
        is no body to leave out. Raises an alarm, at most one a minute for each route."""
        shorter = without_body(settlement)
        now = self._clock.now()
        if shorter is not None and now - self._alarmed.get(route, -_ALARM_EVERY) >= _ALARM_EVERY:
            self._alarmed[route] = now
            facts = {"size": away.size, "limit": away.limit} if isinstance(away, RecordTooLarge) else {}
            self._observer.alarm(
                f"a response was not kept: {away.why}. Lower max_response of the route, or give the store more room",
                route=route,
                **{name: value for name, value in facts.items() if value},
            )
        return shorter

    def __len__(self) -> int:
        """How many settlements the store has not acknowledged yet."""
        return len(self._tasks)

    def take(
        self,
        name: bytes,
        settlement: Settlement | NewKeep,
        *,
        route: str,
        until: float,
        ended: Callable[[Done | Found | None], None] | None = None,
        claimed: bool = True,
    ) -> None:
        """Settle in the background until `until` (the clock's seconds); `ended` hears how. Not `claimed`: the
        store was away when it should have been, so that to find nothing is no loss."""
        self._tasks.start(self._settle(name, settlement, route, until, ended, claimed))

    def give_up(self, name: bytes, claim: Record, *, t0: float) -> None:
        """Release a claim of ours of which nobody knows whether it was, or will yet be, made."""
        settlement = release(claim, elapsed=int((self._clock.now() - t0) * 1000), wall=self._clock.wall())
        lease_ends = t0 + claim.lease / 1000

        def again(result: Done | Found | None) -> None:
            if result is not None:
                self.repeat(name, settlement, claim.route, lease_ends)

        until = t0 + claim.life / 1000
        self._tasks.start(self._settle(name, settlement, claim.route, until, again, True))

    def repeat(self, name: bytes, settlement: Settlement | NewKeep, route: str, lease_ends: float) -> None:
        """A release found nothing to release: a claim on its way may land late. Send it again later."""
        self._repeats.start(self._repeat(name, settlement, route, lease_ends))

    async def finish(self, seconds: float) -> int:
        """Wait until all is acknowledged, at most so long; says how many settlements are left."""
        return await self._tasks.finish(seconds)

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._repeats.cancel()

    async def _settle(
        self,
        name: bytes,
        settlement: Settlement | NewKeep,
        route: str,
        until: float,
        ended: Callable[[Done | Found | None], None] | None,
        claimed: bool,
    ) -> None:
        result: Done | Found | None = None
        try:
            result = await self._persist(name, settlement, until, route)
            if result is Done.FORGOT and claimed:
                self._observer.store_forgot(route)
            elif result is None:
                self._observer.alarm("a settlement was never acknowledged", route=route, kind=settlement.kind.value)
        finally:
            if ended is not None:
                ended(result)

    async def _persist(
        self, name: bytes, settlement: Settlement | NewKeep, until: float, route: str
    ) -> Done | Found | None:
        pause, started = _FIRST_PAUSE, self._clock.now()
        while (left := until - self._clock.now()) > 0:
            begun = self._clock.now()
            try:
                result = await self._store.settle(name, settlement)
                self._observer.store_called("settle", self._clock.now() - begun, failed=False)
                return result
            except RecordTooLarge as refused:
                if (shorter := self.shortened(settlement, refused, route)) is None:
                    return None
                settlement = shorter
            except StoreAway as away:
                if isinstance(away, StoreFull) and self._clock.now() - started >= _FULL_FOR:
                    settlement = self.shortened(settlement, away, route) or settlement
                self._observer.store_called("settle", self._clock.now() - begun, failed=True)
                gone = not self._store.available
                if gone and await self._store.wait_available(min(_LONGEST_PAUSE, left)):
                    # The moment it is back: before those whom a claim of ours keeps waiting find that it has lapsed.
                    pause = _FIRST_PAUSE
                    continue
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 2, _LONGEST_PAUSE)
        return None

    async def _repeat(self, name: bytes, settlement: Settlement | NewKeep, route: str, lease_ends: float) -> None:
        started = self._clock.now()
        times = sorted((*(started + delay for delay in _REPEATS), lease_ends))
        acknowledged = True
        for at, until in zip(times, (*times[1:], times[-1] + _LAST_REPEAT), strict=True):
            if (left := at - self._clock.now()) > 0:
                await asyncio.sleep(left)
            elif acknowledged:
                continue
            acknowledged = await self._persist(name, settlement, until, route) is not None

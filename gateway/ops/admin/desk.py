"""What an operator does to records.

A record's *version* is its state and its holder: what the record protocol compares before every write, and what no
two contents of one record share. Whatever is asked is made by the store in one atomic step, and only if that version
still stands (`core.record.replaced`):

- between the look and the change it was settled, taken over, resolved by another operator: CHANGED, with what stands;
- we die before the step: nothing was made; after it: it was. Asked again it is CHANGED or GONE, never made twice;
- the owner of a resolved doubt still brings its answer: an operator's answer has a holder of its own, so the owner's
  client is told what everybody else is told; a key that was freed or forgotten takes the answer as it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Protocol

from ...awaitable import AwaitableStore
from ...core import record as records
from ...core.decide import outcome_line
from ...core.fields import fields_of
from ...core.message import Answer, Response, remembered
from ...core.policy import MARGIN
from ...core.record import Done, Doubt, Found, Record, Stamp, State
from ...ports import Catalogue, Clock, Page, StoreAway
from .forms import (
    Duplicate,
    Given,
    Orders,
    Outcome,
    Query,
    Result,
    Shown,
    StateWord,
    Verb,
    Walked,
    Which,
    instant_of,
    milliseconds_of,
)
from .recent import Recent

#: Names that are asked for at once; seconds after which a page ends all the same, that who asks may say how far it is.
BATCH = 200
PAGE_SECONDS = 0.5
#: Seconds between two batches, at least; else as long as the last batch took: half of the store's time is not ours.
PAUSE = 0.002
#: Seconds for which a store that did not say is waited for, to be asked again.
AGAIN_WITHIN = 2.0
#: Changes that are under way at once.
TOGETHER = 50

_CURSOR = re.compile(r"([0-9]{1,15})\.([!-~ ]+)")


class DeskAway(Exception):
    """The store was not asked, or did not say. `ambiguous`: something may have been written."""

    def __init__(self, why: str, *, ambiguous: bool) -> None:
        super().__init__(why)
        self.why = why
        self.ambiguous = ambiguous


class BadCursor(ValueError):
    """A cursor that no walk of this store has told."""


class Desk(Protocol):
    """Of this process, or of one of its workers. All raise DeskAway."""

    async def walk(self, query: Query) -> Walked:
        """A page. Raises BadCursor."""

    async def look(self, name: str) -> Shown | None:
        """What is remembered under this name."""

    async def recent(self, name: str) -> list[Duplicate]:
        """The duplicates of late under this name, the oldest first."""

    async def change(self, orders: Orders) -> list[Result]:
        """Do it, each by itself; an outcome for each."""


class LocalDesk:
    """The desk over this process's own store."""

    def __init__(self, store: AwaitableStore, clock: Clock, mint: Callable[[], bytes], recent: Recent) -> None:
        self._store = store
        self._clock = clock
        self._mint = mint
        self._recent = recent

    async def walk(self, query: Query) -> Walked:
        began, walked, cursor = self._clock.now(), 0, ""
        if query.cursor:
            found = _CURSOR.fullmatch(query.cursor)
            if found is None:
                raise BadCursor("is none that this gate has told")
            walked, cursor = int(found[1]), found[2]
        chosen: list[Shown] = []
        unreadable = 0
        while True:
            begun = self._clock.now()
            page = await self._page(cursor)
            walked += page.looked
            unreadable += page.unreadable
            chosen += (shown(name, found) for name, found in page.records if _meant(query, found))
            cursor = page.cursor
            if not cursor or len(chosen) >= query.limit or self._clock.now() - began >= PAGE_SECONDS:
                break
            await asyncio.sleep(max(PAUSE, self._clock.now() - begun))
        return Walked(
            records=chosen,
            cursor=f"{walked}.{cursor}" if cursor else "",
            walked=walked,
            unreadable=unreadable,
            progress=round(page.share, 4),
        )

    async def _page(self, cursor: str) -> Page:
        store = self._store.port
        if not isinstance(store, Catalogue):
            raise DeskAway("this store cannot be walked through", ambiguous=False)
        try:
            return await store.walk(cursor, BATCH)
        except ValueError as error:
            raise BadCursor(str(error)) from None
        except StoreAway as away:
            raise DeskAway(away.why, ambiguous=False) from away

    async def look(self, name: str) -> Shown | None:
        try:
            found = await self._store.get(name.encode())
        except StoreAway as away:
            raise DeskAway(away.why, ambiguous=False) from away
        return None if found is None else shown(name.encode(), found)

    async def recent(self, name: str) -> list[Duplicate]:
        return self._recent.of(name.encode())

    async def change(self, orders: Orders) -> list[Result]:
        answer = None if orders.answer is None else answer_of(orders.answer)
        results: list[Result] = []
        for start in range(0, len(orders.which), TOGETHER):
            some = orders.which[start : start + TOGETHER]
            results += await asyncio.gather(*(self._one(each, orders.verb, answer, orders.force) for each in some))
        return results

    async def _one(self, which: Which, verb: Verb, answer: Answer | None, force: bool) -> Result:
        name = which.name.encode()
        state, holder = version_of(which.version)
        try:
            seen = await self._store.get(name)
        except StoreAway as away:
            return Result(name=which.name, outcome=Outcome.AWAY, detail=away.why)
        if seen is None:
            return Result(name=which.name, outcome=Outcome.GONE, detail=_GONE)
        if seen.record.state is not state or seen.record.holder != holder:
            return Result(name=which.name, outcome=Outcome.CHANGED, detail=_CHANGED, record=shown(name, seen))
        if isinstance(lapse := _lapse(verb, seen.record, force), tuple):
            return Result(name=which.name, outcome=lapse[0], detail=lapse[1], record=shown(name, seen))
        to = None
        if verb is Verb.COMPLETE:
            assert answer is not None
            to = records.answered(seen.record, answer, holder=self._mint(), wall=self._clock.wall())
        unsure = ""
        try:
            try:
                made = await self._store.compare_and_swap(name, Stamp(state, holder, lapse), to)
            except StoreAway as away:
                if not away.ambiguous or not await self._store.wait_available(AGAIN_WITHIN):
                    raise
                # Asked again it is won by what stands, if that is this very answer (`core.record.made_before`).
                unsure = away.why
                made = await self._store.compare_and_swap(name, Stamp(state, holder, lapse), to)
        except StoreAway as away:
            outcome = Outcome.UNKNOWN if unsure or away.ambiguous else Outcome.AWAY
            return Result(name=which.name, outcome=outcome, detail=away.why)
        if unsure and made is not Done.WON:
            # It was made at first and has moved on since, or somebody else came first.
            return Result(name=which.name, outcome=Outcome.UNKNOWN, detail=unsure)
        if isinstance(made, Found):
            stands = made.record.state is state and made.record.holder == holder
            outcome, detail = (Outcome.IN_FLIGHT, _EARLY[verb]) if stands else (Outcome.CHANGED, _CHANGED)
            return Result(name=which.name, outcome=outcome, detail=detail, record=shown(name, made))
        if made is Done.GONE:
            return Result(name=which.name, outcome=Outcome.GONE, detail=_GONE)
        return Result(name=which.name, outcome=Outcome.MADE)


_GONE = "Nothing is remembered under this name any more."
_CHANGED = "It has changed since it was shown: look at it again."
_NOT_IN_DOUBT = "It is completed. Nobody changes what was answered; `forget` removes it, and its key runs again."
_EARLY = {
    Verb.COMPLETE: "Its gate may still bring the answer. A claim can be resolved 5 s past its lease.",
    Verb.RELEASE: "Its gate may be paused and still send. A claim that nobody settled can be released with force, once "
    "it is past its lease by one lease more.",
    Verb.FORGET: "Its gate may be alive, and the next request with this key would run beside it. Say force if you "
    "mean that.",
}


def _lapse(verb: Verb, record: Record, force: bool) -> int | tuple[Outcome, str] | None:
    """How far past its lease a claim in flight must be for this change (the store tests it), None where it need not;
    or why it is not made at all."""
    if verb is Verb.FORGET:
        return None if force or record.state is not State.IN_FLIGHT else (Outcome.IN_FLIGHT, _EARLY[verb])
    match record.state:
        case State.COMPLETED:
            return Outcome.NOT_IN_DOUBT, _NOT_IN_DOUBT
        case State.IN_DOUBT:
            return None
        case State.IN_FLIGHT:
            if verb is Verb.COMPLETE:
                return MARGIN
            return record.lease if force else (Outcome.IN_FLIGHT, _EARLY[verb])


def version_text(record: Record) -> str:
    """What a change names: the state and the holder."""
    return f"{int(record.state)}{record.holder.hex()}"


def version_of(text: str) -> tuple[State, bytes]:
    return State(int(text[0])), bytes.fromhex(text[1:])


def state_of(found: Found) -> StateWord:
    """What the record comes to now."""
    record = found.record
    if record.state is State.IN_DOUBT or record.lapsed(found.age):
        return StateWord.IN_DOUBT
    return StateWord.COMPLETED if record.state is State.COMPLETED else StateWord.IN_FLIGHT


def shown(name: bytes, found: Found) -> Shown:
    record = found.record
    state = state_of(found)
    doubt = Doubt.LAPSED if record.state is State.IN_FLIGHT else record.doubt
    return Shown(
        name=name.decode(),
        version=version_text(record),
        route=record.route,
        state=state,
        doubt=doubt.name.lower() if state is StateWord.IN_DOUBT else None,
        attempts=record.attempt,
        status=record.status or None,
        first_seen=instant_of(record.first_seen),
        written=instant_of(record.written),
        expires=instant_of(record.expires),
        age_s=max(found.age, 0) / 1000,
    )


def _meant(query: Query, found: Found) -> bool:
    record = found.record
    return (
        (query.route is None or record.route == query.route)
        and (query.state is None or state_of(found) is query.state)
        and (query.since is None or record.first_seen >= milliseconds_of(query.since))
        and (query.until is None or record.first_seen < milliseconds_of(query.until))
    )


def answer_of(given: Given) -> Answer:
    """The answer in the form in which it is remembered, framing and the gate's own fields left out."""
    lines = [(line.name.encode(), line.value.strip(" \t").encode("latin-1")) for line in given.headers]
    response = Response(given.status, fields_of(lines), given.bytes)
    return remembered(response, more=outcome_line(response))

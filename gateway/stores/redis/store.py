"""Records in Redis or Valkey: for a fleet. One key per record; the server expires them.

A claim is `SET key record NX GET PX life` with a `PTTL` behind it in the same flush (Redis 7.0 and later,
Valkey): won, or what stands in the way with its age. Every other write is one call of `script.lua`.

Durability `replicated`: a claim that was won is written once more on a lane with `WAIT` behind it (which
sees on that lane's own server that it stands), and only then counts; a takeover and a Keep go there at
once. A replay waits for no replica. Holds, releases and looks need none: losing them changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ...awaitable import result_of
from ...core.record import (
    Done,
    Found,
    Kind,
    NewClaim,
    NewKeep,
    Record,
    Settlement,
    Stamp,
    State,
    refused,
    without_body,
)
from ...ports import (
    ClaimReply,
    GetReply,
    Observer,
    Page,
    RecordTooLarge,
    RecordUnreadable,
    StoreAway,
    StoreFull,
    Subscription,
    WriteReply,
)
from ...tasks import Tasks
from ..codec import VERSION, Unreadable, decode, encode, stored
from ..findings import Finding, unheard
from ..replies import deliver
from .fleet import REDIRECTS, Fleet, sent_on
from .large import LARGE, too_large
from .link import LOOK, LOOK_SHA, SCRIPT, SHA
from .marker import Trust
from .pipeline import RedisError, Reply, pack
from .primary import Primary
from .servers import Servers
from .walk import walk

_VERSION = b"%d" % VERSION
#: `SET key value NX GET PX life` and `PTTL key`: packed so, the commands that every request sends cost a third.
_TAKE_AND_AGE = (
    b"*7\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nNX\r\n$3\r\nGET\r\n$2\r\nPX\r\n$%d\r\n%b\r\n"
    b"*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n"
)

#: A Keep, as `_change` packs it: what is the same for all has been filled in by the store.
_KEEP = (
    b"*13\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$%%d\r\n%%b\r\n$6\r\nchange\r\n$%d\r\n%b\r\n$12\r\n%%b\r\n"
    b"$%d\r\n%b\r\n$%%d\r\n%%b\r\n$%%d\r\n%%b\r\n$1\r\n1\r\n$0\r\n\r\n$1\r\n%d\r\n"
)


class RedisStore:
    """The store on `servers`, under `prefix`, as far as `trust` goes. `say` writes what is no alarm to the log."""

    kind = "redis"

    def __init__(
        self,
        servers: Servers,
        observer: Observer,
        *,
        prefix: str = "og:",
        trust: Trust = Trust(),  # noqa: B008  # a constant
        say: Callable[..., None] = unheard,
    ) -> None:
        self._prefix = prefix.encode()
        self.observer = observer
        self._up = self._closed = False
        self._waiters: dict[object, tuple[Callable[[bool], None], asyncio.TimerHandle]] = {}
        self.tasks = Tasks(lambda error: observer.alarm("a call of Redis failed", error=repr(error)))
        made = Fleet
        if servers.cluster:
            from .cluster import Cluster  # whose slots take 7 MiB of library

            made = Cluster
        states = _MOVABLE[Kind.KEEP]
        #: `_KEEP`, but for what differs between two Keeps.
        self.keep_command = _KEEP % (SHA, len(_VERSION), _VERSION, len(states), states, State.COMPLETED)
        self._fleet = made(servers, observer, prefix, trust, say, self._changed)

    # ── The port ──────────────────────────────────────────────────────────────────────────────────

    @property
    def available(self) -> bool:
        return self._up

    @property
    def trouble(self) -> str:
        return self._fleet.trouble

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._fleet.findings

    @property
    def claims_refused(self) -> str:
        return self._fleet.claims_refused

    async def open(self) -> None:
        self._closed = False
        await self._fleet.open()

    async def close(self) -> None:
        self._closed = True
        await self._fleet.close()
        await self.tasks.cancel()
        self._answer_waiters()

    def accept(self) -> bool:
        """What the store lost is known, and claims go on. False if it lost nothing."""
        return self._fleet.accept()

    def when_available(self, seconds: float, reply: Callable[[bool], None]) -> None:
        if self._up or self._closed:
            deliver(reply, self._up, self.observer)
            return
        timer = asyncio.get_running_loop().call_later(seconds, self._answer_waiter, waiter := object(), False)
        self._waiters[waiter] = reply, timer

    def _changed(self) -> None:
        self._up = not self._fleet.trouble
        if self._up and self._waiters:
            # Not at once: this may be within a change of what a waiter would use.
            asyncio.get_running_loop().call_soon(self._answer_waiters)

    def _answer_waiters(self) -> None:
        for waiter in tuple(self._waiters) if self._up or self._closed else ():
            self._answer_waiter(waiter, self._up)

    def _answer_waiter(self, waiter: object, available: bool) -> None:
        if (waiting := self._waiters.pop(waiter, None)) is not None:
            reply, timer = waiting
            timer.cancel()
            deliver(reply, available, self.observer)

    def claim(self, name: bytes, claim: NewClaim | Record, reply: ClaimReply) -> None:
        self.begin(_Claim(self, name, claim, reply))

    def settle(self, name: bytes, settlement: Settlement | NewKeep, reply: WriteReply) -> None:
        self.begin(_Settle(self, name, settlement, reply))

    def compare_and_swap(self, name: bytes, precondition: Stamp, to: Record | None, reply: WriteReply) -> None:
        words = _change(precondition.holder, b"%d" % precondition.state, to, lapsed_for=precondition.lapsed_for)
        takes = to is not None and to.state is State.IN_FLIGHT
        self.begin(_Swap(self, name, reply, words, claims=takes, waits=to is not None))

    def get(self, name: bytes, reply: GetReply) -> None:
        self.begin(_Script(self, name, reply))

    def subscribe(self, name: bytes, notify: Callable[[], None]) -> Subscription:
        return self._fleet.bells.subscribe(self._prefix + name, notify)

    async def walk(self, cursor: str, most: int) -> Page:
        return await walk(self._fleet.primaries, self._prefix, cursor, most)

    # ── Calls ─────────────────────────────────────────────────────────────────────────────────────

    def begin(self, call: _Call) -> None:
        """Send the first trip of a call; start a task for a large record."""
        try:
            primary = call.primary = self._fleet.of(self._prefix + call.name)
            if call.claims:
                primary.trusted()
            packed = call.packed(self._prefix + call.name)
            if len(packed) < LARGE:
                if call.waits and primary.waited is not None:
                    primary.waited.tell(packed, call)
                else:
                    primary.main.tell(packed, call.replies, call)
                return
        except StoreAway as away:
            call.end(away)
        else:
            call.go_on(None)


def _found(primary: Primary, value: bytes, left: int | RedisError) -> Found:
    if isinstance(left, RedisError):
        raise primary.away(left)
    if left == -1:
        raise RecordUnreadable("a record without an expiry: something else writes under this prefix")
    try:
        record = decode(value)
    except Unreadable as error:
        raise RecordUnreadable(f"Redis holds {error}") from error
    return Found(record, record.life - left)


def _scripted(key: bytes, words: tuple[bytes, ...]) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """The script of these words, by its digest and by its text, and its arguments."""
    return (SHA, SCRIPT, (b"1", key, words[0], _VERSION, *words[1:])) if words else (LOOK_SHA, LOOK, (b"1", key))


def _change(
    holder: bytes, states: bytes, to: Record | None, *, if_absent: bool = False, lapsed_for: int | None = None
) -> tuple[bytes, ...]:
    """The script's words for a change."""
    return (
        b"change",
        holder,
        states,
        b"" if to is None else encode(to),
        b"0" if to is None else b"%d" % to.life,
        b"1" if if_absent else b"0",
        b"" if lapsed_for is None else b"%d" % lapsed_for,
        b"" if to is None else b"%d" % to.state,
    )


#: The states that a settlement moves, as the script is told them.
_MOVABLE = {kind: b"".join(b"%d" % state for state in Settlement(kind, b"", None).movable) for kind in Kind}
_SETTLED = {1: Done.DONE, 2: Done.FORGOT, 0: Done.GONE}


# ── Calls of the port ─────────────────────────────────────────────────────────────────────────────

#: The result of a call whose first trip was not enough.
_MORE = object()


class _Call:
    """A call of the port. It is the `pipeline.ReplyReceiver` of its first trip, and ends with that reply or goes on in
    a task. `claims`: a claim must be permitted at its primary; `waits`: the write must be with the replicas."""

    __slots__ = ("claims", "name", "primary", "reply", "store", "waits")
    replies = 1
    primary: Primary

    def __init__(
        self, store: RedisStore, name: bytes, reply: Callable[[Any], None], *, claims: bool, waits: bool
    ) -> None:
        self.store = store
        self.name = name
        self.reply = reply
        self.claims = claims
        self.waits = waits

    def packed(self, key: bytes) -> bytes:
        """The command of the first trip."""
        raise NotImplementedError

    def read(self, said: Reply) -> Any:
        """The result by the reply to the first trip; _MORE if that takes more trips. Raises StoreAway."""
        raise NotImplementedError

    def more(self, said: Reply) -> Coroutine[Any, Any, Any]:
        """The rest of the call after the reply to the first trip, or all of it if `said` is None."""
        raise NotImplementedError

    def done(self) -> bool:
        return False

    def set_result(self, said: Reply, /) -> None:
        try:
            result = self.read(said)
        except Exception as error:
            result = _failure(error)
        if result is _MORE:
            self.go_on(said)
        else:
            self.end(result)

    def set_exception(self, away: StoreAway, /) -> None:
        self.end(away)

    def end(self, result: Any) -> None:
        deliver(self.reply, result, self.store.observer)

    def go_on(self, said: Reply) -> None:
        """Make the rest of the call in a task."""
        self.store.tasks.start(self._rest(said)).add_done_callback(self._ended)

    async def _rest(self, said: Reply) -> Any:
        try:
            return await self.more(said)
        except Exception as error:
            return _failure(error)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        # A task that is cancelled before it begins does not run at all.
        self.end(StoreAway("the store is closed", ambiguous=True) if task.cancelled() else task.result())


class _Claim(_Call):
    __slots__ = ("claim",)
    replies = 2

    def __init__(self, store: RedisStore, name: bytes, claim: NewClaim | Record, reply: ClaimReply) -> None:
        super().__init__(store, name, reply, claims=True, waits=False)  # the first trip only shows what stands
        self.claim = claim

    def packed(self, key: bytes) -> bytes:
        value, life = encode(self.claim), b"%d" % self.claim.life
        return _TAKE_AND_AGE % (len(key), key, len(value), value, len(life), life, len(key), key)

    def read(self, said: Reply) -> Any:
        value, left = said
        if value is None:
            return Done.WON if self.primary.waited is None else _MORE
        if type(value) is not bytes or type(left) is not int or left < 0:
            return _MORE
        claim = self.claim
        if isinstance(claim, NewClaim) and (answer := stored(value, claim.fingerprint.mark)) is not None:
            return answer
        found = _found(self.primary, value, left)
        return _MORE if self._unclear(found) else found

    def _unclear(self, found: Found) -> bool:
        """Whether it is this very claim, or one that has lapsed, or seems to, by two replies that were not one."""
        record = found.record
        mine = record.holder == self.claim.holder
        return record.state is State.IN_FLIGHT and (mine or found.age < 0 or record.lapsed(found.age))

    def go_on(self, said: Reply) -> None:
        if said is not None and said[0] is None:  # it is made, and counts once the replicas have it
            self._cover(self.reply)
        else:
            super().go_on(said)

    async def more(self, said: Reply) -> Any:
        store, life = self.store, b"%d" % self.claim.life
        key = store._prefix + self.name
        for _ in range(5):
            value, left = said = await self.primary.main.call(self.packed(key), 2) if said is None else said
            if value is not None and sent_on(said):
                # Neither was done, or the record was found and left between the two: both are asked again.
                each = pack(b"SET", key, encode(self.claim), b"NX", b"GET", b"PX", life), pack(b"PTTL", key)
                self.primary, (value, left) = await store._fleet.follow(self.primary, each, said, claims=True)
            said = None
            if isinstance(value, RedisError):
                return await self._refused(value)
            if value is None:
                return Done.WON if self.primary.waited is None else await result_of(self._cover)
            if left == -2:
                continue  # it ended between the two commands
            found = _found(self.primary, value, left)
            if not self._unclear(found):
                return found
            if found.record.holder == self.claim.holder:
                # Asked again. The record is written again, or WAIT would not cover it.
                return await result_of(self._cover)
            # The two commands are not one: it may have been settled between them. Look at both at once.
            if (seen := await result_of(store.get, self.name)) is not None:
                return seen
        raise StoreAway("the record ended again and again while it was claimed", ambiguous=False)

    def _cover(self, reply: ClaimReply) -> None:
        self.store.begin(_Cover(self.store, self.name, reply, (b"again", self.claim.holder), waits=True))

    async def _refused(self, error: RedisError) -> Found:
        """Claimed at a server that takes no writes for now, for want of room, of replicas or of a snapshot that
        succeeded: a completed record can still be replayed."""
        self.primary.wrote(error)
        if error.code in ("OOM", "NOREPLICAS", "MISCONF"):
            seen: Found | None = await result_of(self.store.get, self.name)
            if seen is not None:
                return seen
            if error.code == "OOM":
                raise StoreFull(f"Redis: {error}")
        raise too_large(error, 0) or self.primary.away(error)


class _Script(_Call):
    """A call of the script. Without words it is that of a get."""

    __slots__ = ("words",)

    def __init__(
        self,
        store: RedisStore,
        name: bytes,
        reply: Callable[[Any], None],
        words: tuple[bytes, ...] = (),
        *,
        claims: bool = False,
        waits: bool = False,
    ) -> None:
        super().__init__(store, name, reply, claims=claims, waits=waits)
        self.words = words

    def packed(self, key: bytes) -> bytes:
        sha, _, rest = _scripted(key, self.words)
        return pack(b"EVALSHA", sha, *rest)

    def shown(self, reply: Reply) -> Any:
        """The result by the script's reply. Raises StoreAway."""
        return None if reply == 0 else _found(self.primary, *reply)

    def read(self, said: Reply) -> Any:
        return _MORE if isinstance(said, RedisError) else self.shown(said)

    async def more(self, said: Reply) -> Any:
        return self.shown(await self.sent(said))

    async def sent(self, reply: Reply = None) -> Reply:
        """The script's reply, wherever the record is. `reply` is the one to the first trip, None before it."""
        fleet, waits, key = self.store._fleet, self.waits, self.store._prefix + self.name
        sha, script, rest = _scripted(key, self.words)
        packed, by_name = pack(b"EVALSHA", sha, *rest), True
        if reply is None:
            self.primary = fleet.of(key)
        while True:
            if reply is not None:
                pass
            elif len(packed) >= LARGE:
                reply = await self.primary.large.call(packed, waits=waits, key=key)
            elif waits and self.primary.waited is not None:
                reply = await self.primary.waited.call(packed)
            else:
                reply = await self.primary.main.call(packed)
            if isinstance(reply, RedisError) and reply.code in REDIRECTS:
                follow = fleet.follow(self.primary, (packed,), reply, claims=self.claims, waits=waits)
                self.primary, reply = await follow
            if not isinstance(reply, RedisError):
                return reply
            if not by_name or reply.code != "NOSCRIPT":
                raise too_large(reply, len(packed)) or self.primary.away(reply)
            packed, by_name = pack(b"EVAL", script, *rest), False
            self.primary, reply = fleet.of(key), None


class _Cover(_Script):
    """The end of a claim: write it again, if it is still in flight, and see that the replicas have it."""

    __slots__ = ()

    def shown(self, reply: Reply) -> Done:
        if reply != 1:
            # It ended, or this connection's server is another one (a failover), which may hold what the first does not:
            # nothing is known of the claim but that it may stand.
            raise StoreAway("the claim was not found where it had been made", ambiguous=True)
        return Done.WON

    def end(self, result: Any) -> None:
        # Whatever failed, the claim was made.
        super().end(StoreAway(result.why, ambiguous=True) if isinstance(result, StoreAway) else result)


class _Settle(_Script):
    __slots__ = ("settlement",)

    def __init__(self, store: RedisStore, name: bytes, settlement: Settlement | NewKeep, reply: WriteReply) -> None:
        super().__init__(store, name, reply, waits=settlement.kind is Kind.KEEP)
        self.settlement = settlement
        if not isinstance(settlement, NewKeep):
            self.words = _settling(settlement)

    def packed(self, key: bytes) -> bytes:
        settlement = self.settlement
        if isinstance(settlement, NewKeep):
            value, life = encode(settlement), b"%d" % settlement.claim.terms.window
            return self.store.keep_command % (len(key), key, settlement.holder, len(value), value, len(life), life)
        return super().packed(key)

    def shown(self, reply: Reply) -> Done | Found:
        return refused(_found(self.primary, *reply), self.settlement) if isinstance(reply, list) else _SETTLED[reply]

    async def more(self, said: Reply) -> Any:
        settlement = self.settlement
        self.words = self.words or _settling(settlement)
        try:
            return await super().more(said)
        except RecordTooLarge:
            if (shorter := without_body(settlement)) is not None:
                # It may stand, and be too large to be read: each look would end the connection for every request.
                words = _change(settlement.holder, b"%d" % State.COMPLETED, shorter.record)
                await _Script(self.store, self.name, self.reply, words).sent()
            raise


def _settling(settlement: Settlement | NewKeep) -> tuple[bytes, ...]:
    again = settlement.tells_again and settlement.record is not None
    return _change(settlement.holder, _MOVABLE[settlement.kind], settlement.record, if_absent=again)


class _Swap(_Script):
    __slots__ = ()

    def shown(self, reply: Reply) -> Done | Found:
        if isinstance(reply, list):
            return _found(self.primary, *reply)
        return Done.WON if reply == 1 else Done.GONE


def _failure(error: Exception) -> StoreAway:
    """What a call replies that raised `error`."""
    return error if isinstance(error, StoreAway) else StoreAway(f"Redis: {error!r}", ambiguous=True)

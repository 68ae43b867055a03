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
from .fleet import REDIRECTS, Fleet, One, sent_on
from .large import LARGE, too_large
from .link import LOOK, LOOK_SHA, SCRIPT, SHA
from .marker import Trust
from .pipeline import RedisError, Reply, pack
from .primary import Primary
from .servers import Servers
from .walk import walk

_VERSION = b"%d" % VERSION
#: A primary, and its reply.
_Asked = tuple[Primary, Any]
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

#: What an administrator must allow besides the commands of the records.
COMMANDS = (
    "SET", "GET", "PTTL", "DEL", "EVALSHA", "EVAL", "SCRIPT|LOAD", "INFO", "SELECT", "CLIENT|SETNAME", "WAIT",
    "SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", "PING", "CLUSTER|SLOTS", "ASKING",
    "SCAN", "GETRANGE",
)  # fmt: skip


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
        made: Callable[..., Fleet] = One
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

    @property
    def flushes(self) -> int:
        """Writes to the shared connections so far: what a trip is counted by."""
        return self._fleet.flushes

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
        self.begin(_Swap(self, name, precondition, to, reply))

    def get(self, name: bytes, reply: GetReply) -> None:
        self.begin(_Get(self, name, reply))

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
                    primary.waited.tell(packed, call, wrote=_wrote)
                else:
                    primary.main.tell(packed, call.replies, call)
                return
        except StoreAway as away:
            call.end(away)
        else:
            call.go_on(None)

    # ── Commands ──────────────────────────────────────────────────────────────────────────────────

    async def claim_at(self, primary: Primary, name: bytes, claim: Record, reply: Reply) -> Done | Found:
        """Claim at a primary. `reply` is that of the first trip, None before it."""
        key = self._prefix + name
        both = _taken(key, encode(claim), b"%d" % claim.life)
        for _ in range(5):
            if reply is None:
                reply = await primary.main.call(both, 2)
            value, left = said = reply
            reply = None
            if not (value is None or (type(value) is bytes and type(left) is int)) and sent_on(said):
                # Neither was done, or the record was found and left between the two: both are asked again.
                life = b"%d" % claim.life
                each = pack(b"SET", key, encode(claim), b"NX", b"GET", b"PX", life), pack(b"PTTL", key)
                primary, (value, left) = await self._fleet.follow(primary, each, said, claims=True)
            if isinstance(value, RedisError):
                return await self._claim_refused(name, primary, value)
            if value is None:
                return Done.WON if primary.waited is None else await self._cover(name, claim)
            if left == -2:
                continue  # it ended between the two commands
            found = _found(primary, value, left)
            record = found.record
            if record.state is State.IN_FLIGHT:
                if record.holder == claim.holder:
                    # Asked again. The record is written again, or WAIT would not cover it.
                    return await self._cover(name, claim)
                if _doubtful(found):
                    # The two commands are not one: it may have been settled between them. Look at both at once.
                    seen = await self._get(name)
                    if seen is None:
                        continue
                    return seen
            return found
        raise StoreAway("the record ended again and again while it was claimed", ambiguous=False)

    async def _cover(self, name: bytes, claim: Record) -> Done:
        """Write a claim of ours again, where it is still in flight; and see that the replicas have it."""
        try:
            _, reply = await self.script(name, b"again", claim.holder, waits=True)
        except StoreAway as away:
            raise StoreAway(away.why, ambiguous=True) from away  # it was made in any case
        return _covered(reply)

    async def settle_at(self, name: bytes, settlement: Settlement | NewKeep, asked: _Asked | None) -> Done | Found:
        waits = settlement.kind is Kind.KEEP
        try:
            primary, reply = await self.script(name, *_settling(settlement), waits=waits, asked=asked)
        except RecordTooLarge:
            if (shorter := without_body(settlement)) is not None:
                # It may stand, and be too large to be read: each look would end the connection for every request.
                await self.script(name, *_change(settlement.holder, b"%d" % State.COMPLETED, shorter.record))
            raise
        return _settled(primary, settlement, reply)

    async def _get(self, name: bytes) -> Found | None:
        return _shown(*await self.script(name))

    async def script(
        self, name: bytes, *words: bytes, waits: bool = False, claims: bool = False, asked: _Asked | None = None
    ) -> _Asked:
        """Call the script; without words, that of a get. `waits`: what was written must be with the replicas, where
        the durability asks for that; `claims`: a primary to which this is sent on must be one where claims may be
        made. `asked`: the primary that was asked before, and its reply."""
        key = self._prefix + name
        sha, script, rest = _scripted(key, words)
        packed, by_name = pack(b"EVALSHA", sha, *rest), True
        primary, reply = (self._fleet.of(key), None) if asked is None else asked
        while True:
            if reply is not None:
                pass
            elif len(packed) >= LARGE:
                reply = await primary.large.call(packed, wrote=_wrote if waits else None, key=key)
            elif waits and primary.waited is not None:
                reply = await primary.waited.call(packed, wrote=_wrote)
            else:
                reply = await primary.main.call(packed)
            if isinstance(reply, RedisError):
                if reply.code in REDIRECTS:
                    wrote = _wrote if waits else None
                    primary, reply = await self._fleet.follow(primary, (packed,), reply, claims=claims, wrote=wrote)
                if isinstance(reply, RedisError):
                    if by_name and reply.code == "NOSCRIPT":
                        packed, by_name = pack(b"EVAL", script, *rest), False
                        primary, reply = self._fleet.of(key), None
                        continue
                    raise too_large(reply, len(packed)) or primary.away(reply)
            return primary, reply

    async def _claim_refused(self, name: bytes, primary: Primary, error: RedisError) -> Found:
        """A claim at a server that takes no writes for now, for want of room, of replicas or of a snapshot that
        succeeded: a completed record can still be replayed."""
        primary.wrote(error)
        if error.code in ("OOM", "NOREPLICAS", "MISCONF"):
            seen = await self._get(name)
            if seen is not None:
                return seen
            if error.code == "OOM":
                raise StoreFull(f"Redis: {error}")
        if (refused := too_large(error, 0)) is not None:
            raise refused
        raise primary.away(error)


def _taken(key: bytes, value: bytes, life: bytes) -> bytes:
    return _TAKE_AND_AGE % (len(key), key, len(value), value, len(life), life, len(key), key)


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


def _doubtful(found: Found) -> bool:
    """Whether a claim in flight has lapsed, or seems to, by two replies that were not one."""
    return found.age < 0 or found.record.lapsed(found.age)


def _scripted(key: bytes, words: tuple[bytes, ...]) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """The script of these words, by its digest and by its text, and its arguments."""
    return (SHA, SCRIPT, (b"1", key, words[0], _VERSION, *words[1:])) if words else (LOOK_SHA, LOOK, (b"1", key))


def _change(
    holder: bytes,
    states: bytes,
    to: Record | None,
    *,
    if_absent: bool = False,
    lapsed_for: int | None = None,
    made: bytes = b"",
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
        made,
    )


def _settling(settlement: Settlement | NewKeep) -> tuple[bytes, ...]:
    record = settlement.record
    return _change(
        settlement.holder,
        _MOVABLE[settlement.kind],
        record,
        if_absent=settlement.tells_again and record is not None,
        made=b"" if record is None else b"%d" % record.state,
    )


def _swapping(stamp: Stamp, to: Record | None) -> tuple[bytes, ...]:
    made = b"" if to is None else b"%d" % to.state
    return _change(stamp.holder, b"%d" % stamp.state, to, lapsed_for=stamp.lapsed_for, made=made)


def _settled(primary: Primary, settlement: Settlement | NewKeep, reply: Reply) -> Done | Found:
    return refused(_found(primary, *reply), settlement) if isinstance(reply, list) else _SETTLED[reply]


def _covered(reply: Reply) -> Done:
    if reply != 1:
        # It ended, or this connection's server is another one (a failover), which may hold what the first does not:
        # nothing is known of the claim but that it may stand.
        raise StoreAway("the claim was not found where it had been made", ambiguous=True)
    return Done.WON


def _swapped(primary: Primary, reply: Reply) -> Done | Found:
    if isinstance(reply, list):
        return _found(primary, *reply)
    return Done.WON if reply == 1 else Done.GONE


def _shown(primary: Primary, reply: Reply) -> Found | None:
    return None if reply == 0 else _found(primary, *reply)


#: The states that a settlement moves, as the script is told them.
_MOVABLE = {kind: b"".join(b"%d" % state for state in Settlement(kind, b"", None).movable) for kind in Kind}
_SETTLED = {1: Done.DONE, 2: Done.FORGOT, 0: Done.GONE}


def _wrote(reply: Reply) -> bool:
    """Whether the script changed something: 1 and 2, not 0 and not the record that stands in the way."""
    return reply in (1, 2)


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
        return _taken(key, encode(self.claim), b"%d" % self.claim.life)

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
        record = found.record
        mine = record.holder == claim.holder
        return _MORE if record.state is State.IN_FLIGHT and (mine or _doubtful(found)) else found

    def more(self, said: Reply) -> Coroutine[Any, Any, Any]:
        claim = self.claim
        record = claim.record if isinstance(claim, NewClaim) else claim
        return self.store.claim_at(self.primary, self.name, record, said)

    def go_on(self, said: Reply) -> None:
        if said is not None and said[0] is None:  # it is made, and counts once the replicas have it
            self.store.begin(_Cover(self.store, self.name, self.claim.holder, self.reply))
        else:
            super().go_on(said)


class _Cover(_Call):
    """As `RedisStore._cover`, the end of a claim."""

    __slots__ = ("holder",)

    def __init__(self, store: RedisStore, name: bytes, holder: bytes, reply: ClaimReply) -> None:
        super().__init__(store, name, reply, claims=False, waits=True)
        self.holder = holder

    def packed(self, key: bytes) -> bytes:
        return _pack(key, (b"again", self.holder))

    def read(self, said: Reply) -> Any:
        return _MORE if isinstance(said, RedisError) else _covered(said)

    async def more(self, said: Reply) -> Done:
        asked = _asked(self.primary, said)
        _, reply = await self.store.script(self.name, b"again", self.holder, waits=True, asked=asked)
        return _covered(reply)

    def end(self, result: Any) -> None:
        # Whatever failed, the claim was made.
        super().end(StoreAway(result.why, ambiguous=True) if isinstance(result, StoreAway) else result)


class _Settle(_Call):
    __slots__ = ("settlement",)

    def __init__(self, store: RedisStore, name: bytes, settlement: Settlement | NewKeep, reply: WriteReply) -> None:
        super().__init__(store, name, reply, claims=False, waits=settlement.kind is Kind.KEEP)
        self.settlement = settlement

    def packed(self, key: bytes) -> bytes:
        settlement = self.settlement
        if isinstance(settlement, NewKeep):
            value, life = encode(settlement), b"%d" % settlement.claim.terms.window
            return self.store.keep_command % (len(key), key, settlement.holder, len(value), value, len(life), life)
        return _pack(key, _settling(settlement))

    def read(self, said: Reply) -> Any:
        return _MORE if isinstance(said, RedisError) else _settled(self.primary, self.settlement, said)

    def more(self, said: Reply) -> Coroutine[Any, Any, Any]:
        return self.store.settle_at(self.name, self.settlement, _asked(self.primary, said))


class _Swap(_Call):
    __slots__ = ("stamp", "to")

    def __init__(self, store: RedisStore, name: bytes, stamp: Stamp, to: Record | None, reply: WriteReply) -> None:
        takes = to is not None and to.state is State.IN_FLIGHT
        super().__init__(store, name, reply, claims=takes, waits=to is not None)
        self.stamp = stamp
        self.to = to

    def packed(self, key: bytes) -> bytes:
        return _pack(key, _swapping(self.stamp, self.to))

    def read(self, said: Reply) -> Any:
        return _MORE if isinstance(said, RedisError) else _swapped(self.primary, said)

    async def more(self, said: Reply) -> Done | Found:
        words = _swapping(self.stamp, self.to)
        asked = _asked(self.primary, said)
        return _swapped(*await self.store.script(self.name, *words, waits=self.waits, claims=self.claims, asked=asked))


class _Get(_Call):
    __slots__ = ()

    def __init__(self, store: RedisStore, name: bytes, reply: GetReply) -> None:
        super().__init__(store, name, reply, claims=False, waits=False)

    def packed(self, key: bytes) -> bytes:
        return _pack(key, ())

    def read(self, said: Reply) -> Any:
        return _MORE if isinstance(said, RedisError) else _shown(self.primary, said)

    async def more(self, said: Reply) -> Found | None:
        return _shown(*await self.store.script(self.name, asked=_asked(self.primary, said)))


def _asked(primary: Primary, said: Reply) -> _Asked | None:
    return None if said is None else (primary, said)


def _pack(key: bytes, words: tuple[bytes, ...]) -> bytes:
    sha, _, rest = _scripted(key, words)
    return pack(b"EVALSHA", sha, *rest)


def _failure(error: Exception) -> StoreAway:
    """What a call replies that raised `error`."""
    return error if isinstance(error, StoreAway) else StoreAway(f"Redis: {error!r}", ambiguous=True)

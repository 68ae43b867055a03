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

from ...core.record import Done, Found, Kind, Record, Settlement, Stamp, State, refused, without_body
from ...ports import Bell, Observer, Page, RecordTooLarge, RecordUnreadable, StoreAway, Stored, StoreFull, Told
from ..codec import VERSION, PlainForm, Unreadable, decode, encode, stored
from ..findings import Finding, unheard
from .fleet import REDIRECTS, Fleet, One, sent_on
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
        self._up = asyncio.Event()
        made: Callable[..., Fleet] = One
        if servers.cluster:
            from .cluster import Cluster  # whose slots take 7 MiB of library

            made = Cluster
        states = _MOVABLE[Kind.KEEP]
        self._keep = _KEEP % (SHA, len(_VERSION), _VERSION, len(states), states, State.COMPLETED)
        self._fleet = made(servers, observer, prefix, trust, say, self._changed)

    # ── The port ──────────────────────────────────────────────────────────────────────────────────

    @property
    def available(self) -> bool:
        return self._up.is_set()

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
        await self._fleet.open()

    async def close(self) -> None:
        await self._fleet.close()

    def accept(self) -> bool:
        """What the store lost is known, and claims go on. False if it lost nothing."""
        return self._fleet.accept()

    def _changed(self) -> None:
        if self._fleet.trouble:
            self._up.clear()
        else:
            self._up.set()

    async def wait_available(self, seconds: float) -> bool:
        if self._up.is_set():
            return True
        try:
            await asyncio.wait_for(self._up.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def claim(self, name: bytes, claim: Record) -> Coroutine[Any, Any, Done | Found]:
        return self.claim_on(name, claim, None)

    async def claim_on(self, name: bytes, claim: Record, reply: Reply) -> Done | Found:
        if reply is not None and reply[0] is None:
            return Done.WON  # it was asked where one trip is all, whatever that server has become since
        key = self._prefix + name
        try:
            primary = self._fleet.of(key)
        except StoreAway as away:
            raise away if reply is None else StoreAway(away.why, ambiguous=True) from away
        if reply is None:
            primary.trusted()
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
                if found.age < 0 or record.lapsed(found.age):
                    # The two commands are not one: it may have been settled between them. Look at both at once.
                    seen = await self.look(name)
                    if seen is None:
                        continue
                    return seen
            return found
        raise StoreAway("the record ended again and again while it was claimed", ambiguous=False)

    async def _cover(self, name: bytes, claim: Record) -> Done:
        """Write a claim of ours again, where it is still in flight; and see that the replicas have it."""
        try:
            _, reply = await self._script(name, b"again", claim.holder, waits=True)
        except StoreAway as away:
            raise StoreAway(away.why, ambiguous=True) from away  # it was made in any case
        if reply != 1:
            # It ended, or this connection's server is another one (a failover), which may hold what the first does
            # not: nothing is known of the claim but that it may stand.
            raise StoreAway("the claim was not found where it had been made", ambiguous=True)
        return Done.WON

    def settle(self, name: bytes, settlement: Settlement) -> Coroutine[Any, Any, Done | Found]:
        return self.settle_on(name, settlement, None)

    async def settle_on(self, name: bytes, settlement: Settlement, reply: Reply) -> Done | Found:
        record = settlement.record
        try:
            primary, reply = await self._change(
                name,
                settlement.holder,
                _MOVABLE[settlement.kind],
                record,
                if_absent=settlement.tells_again and record is not None,
                made=b"" if record is None else b"%d" % record.state,
                waits=settlement.kind is Kind.KEEP,
                reply=reply,
            )
        except RecordTooLarge:
            if (shorter := without_body(settlement)) is not None:
                # It may stand, and be too large to be read: each look would end the connection for every request.
                await self._change(name, settlement.holder, b"%d" % State.COMPLETED, shorter.record)
            raise
        if isinstance(reply, list):
            return refused(_found(primary, *reply), settlement)
        return _SETTLED[reply]

    # ── ports.Prompt ──────────────────────────────────────────────────────────────────────────────

    def form(self, *, route: str, lease: int, life: int, window: int) -> PlainForm:
        return PlainForm(route=route, lease=lease, life=life, window=window)

    def ask_claim(self, name: bytes, value: bytes, life: int, told: Told) -> bool:
        key = self._prefix + name
        primary = self._at_once(key)
        if primary is None or primary.refuses:
            return False
        pipeline = primary.main.pipeline
        assert pipeline is not None
        pipeline.tell(_taken(key, value, b"%d" % life), 2, told)
        return True

    def ask_keep(self, name: bytes, holder: bytes, value: bytes, life: int, told: Told) -> bool:
        key = self._prefix + name
        primary = self._at_once(key)
        if primary is None:
            return False
        pipeline = primary.main.pipeline
        assert pipeline is not None
        if len(value) >= LARGE:
            return False  # it has a connection of its own
        lasts = b"%d" % life
        pipeline.tell(self._keep % (len(key), key, holder, len(value), value, len(lasts), lasts), 1, told)
        return True

    def _at_once(self, key: bytes) -> Primary | None:
        """The primary of a key, where a write to it takes one trip; None where there is none, too."""
        try:
            primary = self._fleet.of(key)
        except StoreAway:  # nobody has its slot
            return None
        return None if primary.waited is not None or primary.main.pipeline is None else primary

    def won(self, reply: Reply) -> bool:
        return reply[0] is None

    def stored(self, reply: Reply, mark: bytes) -> Stored | None:
        value, left = reply
        return stored(value, mark) if type(value) is bytes and type(left) is int and left >= 0 else None

    def kept(self, reply: Reply) -> bool:
        return type(reply) is int and reply == 1

    async def replace(self, name: bytes, stamp: Stamp, to: Record | None) -> Done | Found:
        takes = to is not None and to.state is State.IN_FLIGHT
        made = b"" if to is None else b"%d" % to.state
        if takes:
            self._fleet.of(self._prefix + name).trusted()
        primary, reply = await self._change(
            name, stamp.holder, b"%d" % stamp.state, to, lapsed_for=stamp.lapsed_for, made=made,
            waits=to is not None, claims=takes,
        )  # fmt: skip
        if isinstance(reply, list):
            return _found(primary, *reply)
        return Done.WON if reply == 1 else Done.GONE

    async def look(self, name: bytes) -> Found | None:
        primary, reply = await self._script(name, b"")
        return None if reply == 0 else _found(primary, *reply)

    def listen(self, name: bytes) -> Bell:
        return self._fleet.bells.listen(self._prefix + name)

    async def walk(self, cursor: str, most: int) -> Page:
        return await walk(self._fleet.primaries, self._prefix, cursor, most)

    # ── Commands ──────────────────────────────────────────────────────────────────────────────────

    def _change(
        self,
        name: bytes,
        holder: bytes,
        states: bytes,
        to: Record | None,
        *,
        if_absent: bool = False,
        lapsed_for: int | None = None,
        made: bytes = b"",
        waits: bool = False,
        claims: bool = False,
        reply: Reply = None,
    ) -> Coroutine[Any, Any, tuple[Primary, Any]]:
        return self._script(
            name,
            b"change",
            holder,
            states,
            b"" if to is None else encode(to),
            b"0" if to is None else b"%d" % to.life,
            b"1" if if_absent else b"0",
            b"" if lapsed_for is None else b"%d" % lapsed_for,
            made,
            waits=waits,
            claims=claims,
            reply=reply,
        )

    async def _script(
        self,
        name: bytes,
        verb: bytes,
        *arguments: bytes,
        waits: bool = False,
        claims: bool = False,
        reply: Reply = None,
    ) -> tuple[Primary, Any]:
        """Without a verb it is a look. `waits`: what was written must be with the replicas, where the durability asks
        for that; `claims`: a primary to which this is sent on must be one where claims may be made. `reply`: what was
        answered when it was asked before."""
        key = self._prefix + name
        rest = (b"1", key, verb, _VERSION, *arguments) if verb else (b"1", key)
        sha, script = (SHA, SCRIPT) if verb else (LOOK_SHA, LOOK)
        packed, by_name = pack(b"EVALSHA", sha, *rest), True
        while True:
            primary = self._fleet.of(key)
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
                        packed, by_name, reply = pack(b"EVAL", script, *rest), False, None
                        continue
                    raise too_large(reply, len(packed)) or primary.away(reply)
            return primary, reply

    async def _claim_refused(self, name: bytes, primary: Primary, error: RedisError) -> Found:
        """A claim at a server that takes no writes for now, for want of room, of replicas or of a snapshot that
        succeeded: a completed record can still be replayed."""
        primary.wrote(error)
        if error.code in ("OOM", "NOREPLICAS", "MISCONF"):
            seen = await self.look(name)
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


#: The states that a settlement moves, as the script is told them.
_MOVABLE = {kind: b"".join(b"%d" % state for state in Settlement(kind, b"", None).movable) for kind in Kind}
_SETTLED = {1: Done.DONE, 2: Done.FORGOT, 0: Done.GONE}


def _wrote(reply: Reply) -> bool:
    """Whether the script changed something: 1 and 2, not 0 and not the record that stands in the way."""
    return reply in (1, 2)

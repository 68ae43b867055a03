"""Records in one Redis or Valkey: for a fleet. One key per record; the server expires them.

A claim is `SET key record NX GET PX life` with a `PTTL` behind it in the same flush (Redis 7.0 and later,
Valkey): won, or what stands in the way with its age. Every other write is one call of `script.lua`.

Durability `replicated`: a claim that was won is written once more on a lane with `WAIT` behind it (which
sees on that lane's own server that it stands), and only then counts; a takeover and a Keep go there at
once. A replay waits for no replica. Holds, releases and looks need none: losing them changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ...core.record import Done, Found, Kind, Record, Settlement, Stamp, State, refused
from ...ports import Bell, IdentityChanged, Observer, RecordUnreadable, StoreAway, StoreFull, StoreRefused
from ...tasks import Tasks
from ..codec import VERSION, Unreadable, decode, encode
from .bells import Bells
from .findings import Finding, Severity, judge, read_info, tempered
from .link import SCRIPT, SHA, Link, pack
from .marker import AMNESIA, IDENTITY_CHANGED, Marker, Trust
from .pipeline import Pipeline, RedisError, Reply
from .servers import Servers
from .waited import Waited

_VERSION = b"%d" % VERSION
#: Seconds between two looks at the server: an alarm comes within twice that.
LOOK_EVERY = 1.0

#: What an administrator must allow besides the commands of the records.
COMMANDS = (
    "SET", "GET", "PTTL", "DEL", "EVALSHA", "EVAL", "SCRIPT|LOAD", "INFO", "SELECT", "CLIENT|SETNAME", "WAIT",
    "SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", "PING",
)  # fmt: skip


def _unheard(level: str, what: str, **facts: object) -> None: ...


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
        say: Callable[..., None] = _unheard,
    ) -> None:
        self._servers = servers
        self._finder = servers.finder()
        self._prefix = prefix.encode()
        self._observer = observer
        self._main = Link(servers, self._finder, observer, self._changed)
        self._waited = Waited(servers, self._finder, observer, self._changed) if servers.replicas else None
        self._bells = Bells(servers, self._finder, observer)
        self._tasks = Tasks(lambda error: observer.alarm("looking at Redis failed", error=repr(error)))
        self._up = asyncio.Event()
        self._promotable: int | None = None
        self._check = trust.check
        self._marker = Marker(prefix, trust)
        self._say = say
        #: The connection over which the marker was to be looked at, and the one over which it was.
        self._seen: Pipeline | None = None
        self._met: Pipeline | None = None
        self._meeting: asyncio.Task[None] | None = None
        self._unmet = ""
        self._refused: Finding | None = None
        self.findings: tuple[Finding, ...] = ()

    # ── The port ──────────────────────────────────────────────────────────────────────────────────

    @property
    def available(self) -> bool:
        return self._up.is_set()

    @property
    def trouble(self) -> str:
        if self._main.pipeline is None:
            return self._main.trouble
        if self._waited is not None and self._waited.trouble:
            return self._waited.trouble
        if self._met is not self._main.pipeline:
            return self._unmet or "the marker of Redis has not been looked at yet"
        return "" if self._refused is None else str(self._refused)

    @property
    def flushes(self) -> int:
        """Writes to the shared connection so far: what a trip is counted by."""
        return self._main.pipeline.flushes if self._main.pipeline is not None else 0

    async def open(self) -> None:
        await self._main.open()
        if self._waited is not None:
            await self._waited.open()
        if self._meeting is not None:
            await asyncio.wait([self._meeting])
        self._tasks.start(self._look_around())

    async def close(self) -> None:
        await self._bells.close()
        await self._main.close()
        if self._waited is not None:
            await self._waited.close()
        await self._tasks.cancel()  # last: a connection that is made begins one
        await self._finder.close()

    async def wait_available(self, seconds: float) -> bool:
        if self._up.is_set():
            return True
        try:
            await asyncio.wait_for(self._up.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def claim(self, name: bytes, claim: Record) -> Done | Found:
        self._trusted()
        key = self._prefix + name
        packed = pack(b"SET", key, encode(claim), b"NX", b"GET", b"PX", b"%d" % claim.life)
        packed += pack(b"PTTL", key)
        for _ in range(5):
            value, left = await self._main.call(packed, 2)
            if isinstance(value, RedisError):
                return await self._claim_refused(name, value)
            if value is None:
                return Done.WON if self._waited is None else await self._cover(name, claim)
            if left == -2:
                continue  # it ended between the two commands
            found = self._found(value, left)
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

    async def _cover(self, name: bytes, claim: Record) -> Done | Found:
        """Write a claim of ours again, where it is still in flight; and see that the replicas have it."""
        try:
            reply = await self._script(name, b"again", claim.holder, waits=True)
        except StoreAway as away:
            raise StoreAway(away.why, ambiguous=True) from away  # it was made in any case
        if reply == 0:
            # It ended, or this connection's server is another one (a failover): nothing is known of it.
            raise StoreAway("the claim was gone as soon as it was made", ambiguous=True)
        return Done.WON if reply == 1 else self._found(*reply)

    async def settle(self, name: bytes, settlement: Settlement) -> Done | Found:
        record = settlement.record
        reply = await self._change(
            name,
            settlement.holder,
            b"".join(b"%d" % state for state in settlement.movable),
            record,
            if_absent=settlement.tells_again and record is not None,
            made=b"" if record is None else b"%d" % record.state,
            waits=settlement.kind is Kind.KEEP,
        )
        if isinstance(reply, list):
            return refused(self._found(*reply), settlement)
        return _SETTLED[reply]

    async def replace(self, name: bytes, stamp: Stamp, to: Record | None) -> Done | Found:
        takes = to is not None and to.state is State.IN_FLIGHT
        made = b"%d" % State.IN_FLIGHT if takes else b""
        if takes:
            self._trusted()
        reply = await self._change(
            name, stamp.holder, b"%d" % stamp.state, to, lapsed_for=stamp.lapsed_for, made=made, waits=takes
        )
        if isinstance(reply, list):
            return self._found(*reply)
        return Done.WON if reply == 1 else Done.GONE

    async def look(self, name: bytes) -> Found | None:
        reply = await self._script(name, b"look")
        return None if reply == 0 else self._found(*reply)

    def listen(self, name: bytes) -> Bell:
        return self._bells.listen(self._prefix + name)

    # ── Commands ──────────────────────────────────────────────────────────────────────────────────

    async def _change(
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
    ) -> Any:
        return await self._script(
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
        )

    async def _script(self, name: bytes, verb: bytes, *arguments: bytes, waits: bool = False) -> Any:
        rest = (b"1", self._prefix + name, verb, _VERSION, *arguments)
        reply = await self._call(pack(b"EVALSHA", SHA, *rest), waits)
        if isinstance(reply, RedisError) and reply.code == "NOSCRIPT":
            reply = await self._call(pack(b"EVAL", SCRIPT, *rest), waits)
        if isinstance(reply, RedisError):
            raise self._away(reply)
        return reply

    async def _call(self, packed: bytes, waits: bool) -> Reply:
        """`waits`: what was written must be with the replicas, where the durability asks for that."""
        if waits and self._waited is not None:
            return await self._waited.call(packed, wrote=_wrote)
        return await self._main.call(packed)

    async def _claim_refused(self, name: bytes, error: RedisError) -> Found:
        """A claim that finds no room or too few replicas: a completed record can still be replayed."""
        if error.code in ("OOM", "NOREPLICAS"):
            seen = await self.look(name)
            if seen is not None:
                return seen
            if error.code == "OOM":
                raise StoreFull(f"Redis: {error}")
        raise self._away(error)

    def _away(self, error: RedisError) -> StoreAway:
        """An error reply says that nothing was done. Some say that this server is the wrong one."""
        if error.code in ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH"):
            self._leave(f"Redis: {error}")
        return StoreAway(f"Redis: {error}", ambiguous=False)

    def _found(self, value: bytes, left: int | RedisError) -> Found:
        if isinstance(left, RedisError):
            raise self._away(left)
        if left == -1:
            raise RecordUnreadable("a record without an expiry: something else writes under this prefix")
        try:
            record = decode(value)
        except Unreadable as error:
            raise RecordUnreadable(f"Redis holds {error}") from error
        return Found(record, record.life - left)

    # ── The server ────────────────────────────────────────────────────────────────────────────────

    def _trusted(self) -> None:
        """Raises StoreAway where no claim may be made, whether or not the server would answer."""
        refused = self._refused
        if refused is not None and refused.name == IDENTITY_CHANGED:
            raise IdentityChanged(str(refused))
        if self._met is not self._main.pipeline:
            raise StoreAway(self.trouble, ambiguous=False)
        if refused is not None:
            raise StoreRefused(str(refused))

    def accept(self) -> bool:
        """What the store lost is known, and claims go on. False if it lost nothing."""
        accepted = self._marker.accept()
        self._changed()
        return accepted

    def _changed(self) -> None:
        """A connection was made or lost, or the server looked at."""
        if self._main.pipeline is not None:
            self._bells.follow(self._main.info.get("run_id"))
            if self._main.pipeline is not self._seen:
                self._seen = self._main.pipeline
                self._meeting = self._tasks.start(self._meet())
            self._judge()
        if self.trouble:
            self._up.clear()
        else:
            self._up.set()

    def _judge(self) -> None:
        of_server = judge(self._main.info, self._servers.replicas, self._promotable)
        # The marker's first: another identity outdoes whatever else speaks against a claim.
        found = (*self._marker.findings, *tempered(of_server, self._check))
        found = tuple(each for each in found if each.severity is not Severity.ADVISE)
        before, self.findings = self.findings, found
        self._refused = next((each for each in found if each.severity is Severity.REFUSE), None)
        for each in found:
            if each not in before:
                if each.severity is Severity.REFUSE or each.name == AMNESIA:
                    self._observer.alarm(each.text, finding=each.name, severity=each.severity.value)
                else:
                    self._say("warning", each.text, finding=each.name)
        for name in {each.name for each in before} - {each.name for each in found}:
            self._say("info", "what was found wrong with the store is no longer so", finding=name)

    async def _meet(self) -> None:
        """Look at the marker. Until that was done over a new connection nothing is claimed."""
        pipeline = self._main.pipeline
        try:
            await self._marker.read(self._main)
        except StoreAway as away:
            self._unmet = away.why
        else:
            self._met = pipeline
        self._changed()

    async def _look_around(self) -> None:
        """Once a second: is this still the server that takes writes, and is it still fit?"""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self._promotable = await self._finder.promotable()
            link = self._main
            if link.pipeline is None:
                continue
            address = link.address
            try:
                address = await self._finder.find()
            except StoreAway:
                pass  # nobody knows better
            if address != link.address:
                self._leave(f"the primary is at {address} now")
                continue
            try:
                reply = await link.call(pack(b"INFO"))
            except StoreAway:
                continue
            if isinstance(reply, RedisError):
                self._away(reply)
                continue
            link.info = read_info(reply)
            if link.info.get("role", "master") != "master":
                self._leave(f"Redis at {link.address} has become a read-only replica")
                continue
            if self._waited is not None:
                for lane in self._waited.lanes:
                    if lane.info.get("run_id") != link.info.get("run_id"):
                        lane.abort(f"the primary is at {link.address} now")
            await self._meet()

    def _leave(self, why: str) -> None:
        self._main.abort(why)
        if self._waited is not None:
            self._waited.abort(why)


_SETTLED = {1: Done.DONE, 2: Done.FORGOT, 0: Done.GONE}


def _wrote(reply: Reply) -> bool:
    """Whether the script changed something: 1 and 2, not 0 and not the record that stands in the way."""
    return reply in (1, 2)

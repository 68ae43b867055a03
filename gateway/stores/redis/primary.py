"""One server that takes writes, and all that belongs to it alone: its connections, its marker, its findings.

A plain Redis and one behind Sentinels have one of these, a cluster one per primary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from ...ports import IdentityChanged, Observer, StoreAway, StoreFull, StoreRefused
from ...tasks import Tasks
from ..findings import FULL, OF_WRITES, ClaimRefusals, Finding, Severity, announce
from .bells import Bells, Ear
from .findings import Check, judge, read_info, refuses_writes, tempered
from .large import LARGE, LargeWrites
from .link import Link
from .marker import AMNESIA, IDENTITY_CHANGED, Marker, prefix_of
from .permissions import a_write, lacking, nobodys, plays
from .pipeline import Pipeline, RedisError, Reply, pack
from .servers import Finder, Servers
from .waited import Waited

#: Seconds between two looks at the server: an alarm comes within twice that.
LOOK_EVERY = 1.0
#: Seconds for which a command that was sent to another primary waits for the connection there.
REACHED_WITHIN = 1.0
_ASKING = pack(b"ASKING")
#: Error replies of a server that is the wrong one, or no longer the one that it was.
_LEFT = ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH")


@dataclass(frozen=True, slots=True)
class Common:
    """What all primaries of a store have in common. `say` writes what is no alarm to the log; `ask` sends a command
    about the marker of a primary, to it or to where the marker's slot is."""

    servers: Servers
    observer: Observer
    bells: Bells
    check: Check
    say: Callable[..., None]
    ask: Callable[[Primary, bytes], Awaitable[Reply]]


class Primary:
    """The server that `finder` finds. `changed` is called with it whenever it may have become fit or unfit; `label`
    is what its findings call it."""

    def __init__(
        self,
        common: Common,
        finder: Finder,
        marker: Marker | None,
        changed: Callable[[Primary], None],
        *,
        label: str = "",
    ) -> None:
        servers, observer = common.servers, common.observer
        self.label = label
        self._common = common
        self._finder = finder
        self._told = changed
        self.main = Link(servers, finder, observer, self._changed)
        self.waited = Waited(servers, finder, observer, self._changed) if servers.replicas else None
        self.large = LargeWrites(servers, self.main)
        self.ear = Ear(servers, finder, observer, common.bells)
        self._ask_marker = partial(common.ask, self)
        self._tasks = Tasks(lambda error: observer.alarm("looking at Redis failed", error=repr(error)))
        self._promotable: int | None = None
        self._marker = marker
        #: The connection over which the marker was to be looked at, and the one over which it was.
        self._seen: Pipeline | None = None
        self._met: Pipeline | None = None
        self._meeting: asyncio.Task[None] | None = None
        self._unmet = ""
        #: Why its cluster lets nobody write, as it says itself.
        self.down = ""
        self._refused: Finding | None = None
        self._refusals = ClaimRefusals(lambda: asyncio.get_running_loop().time())
        #: What the user may not do, and the connection over which that was found out.
        self._lacking: tuple[Finding, ...] = ()
        self._played: Pipeline | None = None
        self._reached = asyncio.Event()
        self._known = asyncio.Event()
        self.findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        return f"Primary({self.main.address})"

    # ── What it is fit for ────────────────────────────────────────────────────────────────────────

    @property
    def trouble(self) -> str:
        """Why no claim can be made here; empty while one can."""
        if self.main.pipeline is None:
            return self.main.trouble
        if self.waited is not None and self.waited.trouble:
            return self.waited.trouble
        if self._met is not self.main.pipeline:
            if self._unmet and self._refused is not None:
                return str(self._refused)
            return self._unmet or "the marker of Redis has not been looked at yet"
        return self.down or ("" if self._refused is None else str(self._refused))

    def trusted(self) -> None:
        """Raises StoreAway where no claim may be made, whether or not the server would answer."""
        refused = self._refused
        if refused is not None and refused.name == IDENTITY_CHANGED:
            raise IdentityChanged(str(refused))
        if (self._met is not self.main.pipeline or self.down) and (not self._unmet or refused is None):
            finding = self._refusals.finding
            if finding is not None and finding.name == FULL and "OOM" in self._unmet:
                raise StoreFull(self.trouble)  # a server that was full when it was first met
            raise StoreAway(self.trouble, ambiguous=False)
        if refused is not None:
            raise StoreRefused(str(refused))

    def away(self, error: RedisError) -> StoreAway:
        """An error reply says that nothing was done. Some say that this server is the wrong one, or that its cluster
        has none for the slot."""
        if error.code in _LEFT:
            self.leave(f"Redis: {error}")
        elif error.code == "CLUSTERDOWN":
            self.down = f"Redis: {error}"
            self._changed()
        return StoreAway(f"Redis: {error}", ambiguous=False)

    @property
    def claims_refused(self) -> str:
        """Why the server refuses new claims although it answers; empty while it accepts them."""
        return "" if self._refusals.finding is None else str(self._refusals.finding)

    def wrote(self, reply: Reply) -> None:
        """Record what the server replied to a write of a new key."""
        before = self._refusals.finding
        if (finding := refuses_writes(reply)) is not None:
            self._refusals.refused(finding)
        elif not isinstance(reply, RedisError):
            self._refusals.accepted()
        if self._refusals.finding is not before:
            self._judge()

    def leave(self, why: str) -> None:
        self.main.abort(why)
        if self.waited is not None:
            self.waited.abort(why)

    def accept(self) -> bool:
        """What it lost is known, and claims go on. False if it lost nothing."""
        accepted = self._marker is not None and self._marker.accept()
        self._changed()
        return accepted

    # ── Connections ───────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """As `Link.open`."""
        await self.main.open()
        if self.waited is not None:
            await self.waited.open()
        if self._meeting is not None:
            await asyncio.wait([self._meeting])
        self._tasks.start(self._look_around())

    async def close(self) -> None:
        await self.ear.close()
        await self.main.close()
        if self.waited is not None:
            await self.waited.close()
        await self._tasks.cancel()  # last: a connection that is made begins one

    async def reached(self, *, claims: bool) -> None:
        """Wait for a connection that is being made; where a claim is to go over it, until it may. Raises StoreAway."""
        try:
            async with asyncio.timeout(REACHED_WITHIN):
                await self._reached.wait()
                if claims:
                    await self._known.wait()
        except TimeoutError:
            raise StoreAway(self.trouble or "Redis does not answer", ambiguous=False) from None
        if claims:
            self.trusted()

    async def ask(self, commands: tuple[bytes, ...], *, asking: bool, waits: bool) -> Reply:
        """The reply to commands that another primary has sent here: the list of them where there are several. With
        `asking` each is preceded by an ASKING: its slot is on its way here. `waits`: as for `Fleet.follow`."""
        count = len(commands)
        if asking:
            commands = tuple(_ASKING + command for command in commands)
            count *= 2
        packed = b"".join(commands)
        if len(packed) >= LARGE:
            return await self.large.call(packed, replies=count, waits=waits)
        if waits and self.waited is not None:
            return await self.waited.call(packed, replies=count)
        reply = await self.main.call(packed, count)
        if not asking:
            return reply
        return reply[1] if count == 2 else reply[1::2]

    # ── The look ──────────────────────────────────────────────────────────────────────────────────

    def mark(self, marker: Marker | None) -> None:
        """This marker stands here now."""
        if marker is not self._marker:
            self._marker = marker
            self._seen = self._met = None
            self._changed()

    def _changed(self) -> None:
        """A connection was made or lost, or the server looked at."""
        pipeline = self.main.pipeline
        if pipeline is not None:
            self.ear.follow(self.main.info.get("run_id"))
            if self.waited is not None:
                self.waited.follow(self.main.info.get("run_id"))
            if pipeline is not self._seen:
                self._seen = pipeline
                self._meeting = self._tasks.start(self.meet())
            self._judge()
        _when(self._reached, pipeline is not None and (self.waited is None or not self.waited.trouble))
        _when(self._known, pipeline is not None and self._met is pipeline)
        self._told(self)

    def _judge(self) -> None:
        servers = self._common.servers
        of_server = judge(self.main.info, servers.replicas, self._promotable, cluster=servers.cluster)
        # The marker's first: another identity outdoes whatever else speaks against a claim.
        of_marker = () if self._marker is None else self._marker.findings
        of_writes = self._refusals.findings
        found = (*of_marker, *tempered((*self._lacking, *of_writes, *of_server), self._common.check))
        found = tuple(each for each in found if each.severity is not Severity.ADVISE)
        if self.label:
            found = tuple(replace(each, text=f"at {self.label}: {each.text}") for each in found)
        before, self.findings = self.findings, found
        # A server that refuses writes may still be read: claims are sent, and it decides.
        refusing = (each for each in found if each.severity is Severity.REFUSE and each.name not in OF_WRITES)
        self._refused = next(refusing, None)
        announce(before, found, self._common.observer, self._common.say, alarming=(AMNESIA,), at=self.label)

    async def meet(self) -> None:
        """Look at the marker, and at whether the server accepts writes. Until that was done over a new connection
        nothing is claimed."""
        pipeline, marker = self.main.pipeline, self._marker
        try:
            if marker is not None:
                await self._play(marker)
                self.wrote(await self.main.call(a_write(nobodys(marker.key))))
                await marker.read(self._ask_marker)
        except StoreAway as away:
            self._unmet = away.why
            if "CLUSTERDOWN" in away.why:
                self.down = away.why
        else:
            if marker is self._marker:
                self._met, self._unmet, self.down = pipeline, "", ""
        self._changed()

    async def _play(self, marker: Marker) -> None:
        """Find out what the user may do: over a new connection, and for as long as something is lacking."""
        pipeline, servers = self.main.pipeline, self._common.servers
        if self._common.check == "off" or (pipeline is self._played and not self._lacking):
            return
        played = plays(servers, nobodys(marker.key))
        self._lacking = await lacking(self.main.call, played, servers, prefix_of(marker.key))
        self._played = pipeline

    async def _look_around(self) -> None:
        """Once a second: is this still the server that takes writes, and is it still fit?"""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self._promotable = self._finder.promotable
            link = self.main
            if link.pipeline is None:
                continue
            address = link.address
            try:
                address = await self._finder.find()
            except StoreAway:
                pass  # nobody knows better
            if address != link.address:
                self.leave(f"the primary is at {address} now")
                continue
            try:
                reply = await link.call(pack(b"INFO"))
            except StoreAway:
                continue
            if isinstance(reply, RedisError):
                self.away(reply)
                continue
            link.info = read_info(reply)
            if link.info.get("role", "master") != "master":
                self.leave(f"Redis at {link.address} has become a read-only replica")
                continue
            if self.waited is not None:
                self.waited.follow(link.info.get("run_id"))
            await self.meet()


def _when(event: asyncio.Event, so: bool) -> None:
    if so:
        event.set()
    else:
        event.clear()

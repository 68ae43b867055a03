"""The primaries of a Redis Cluster, and which of its 16384 slots each of them has.

**The map** is `CLUSTER SLOTS`, asked of every primary that we are connected to, over the connection of the records:
once a second, when a connection was lost, and when an error says that the map has changed (MOVED, CLUSTERDOWN). Where
they disagree most of them are right, and nobody is believed about himself against another: a primary that was frozen
while its replica was promoted still says that it has its slots. While most primaries are away every node that was
ever named is asked, the URL's first.

**MOVED and ASK** say that a command was not done. It is sent to the node that they name, which is connected to
if it must be, a few times at most. MOVED changes the map at once, for that slot; ASK (the slot is on its way,
and this key has gone ahead) changes nothing.

**A primary that is lost** is away for its own slots, until its replica stands in the map. Whatever speaks against
one (docs/redis.md) speaks against claims of its own keys only.

**Markers**: one on every primary. A name's slot is that of its hash tag, and the tags are numbers: a primary's marker
has the lowest number whose slot it has. So gates agree without a word, the marker moves with its slot, and a move
of other slots does not touch it. What is remembered of a marker is remembered by its number: when a slot comes back,
it is the same one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from ...ports import Observer, StoreAway, StoreUnusable
from ...tasks import Tasks
from ..findings import Finding, Severity
from .bells import Ear
from .fleet import Fleet, sent_on
from .link import ask
from .marker import Marker, Trust, marker_key
from .pipeline import RedisError, Reply, pack
from .primary import LOOK_EVERY, Primary
from .servers import Address, Fixed, Servers

T = TypeVar("T")

#: How often a command is sent on before it counts as not done.
REDIRECTED = 5
#: Seconds between two looks at the map where errors ask for them.
_SOONEST = 0.1
#: Seconds that a node may think about the map.
_VOTES_WITHIN = 0.5
#: Seconds for which a primary that has no slots any more is kept: what was asked there is answered first.
_KEPT = 5.0
_ASKED = pack(b"CLUSTER", b"SLOTS")
#: The slots of the hash tags 0, 1, 2, …: of 64 primaries with as many slots each, all but one or two have one of these.
TAGS = tuple(key_slot(b"%d" % number) for number in range(256))
_LAST_TAG = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """Slots from `first` to `last`, and who has them. `replicas` count for nothing where two are compared."""

    first: int
    last: int
    primary: Address


@dataclass(frozen=True, slots=True)
class View:
    """What one node says of the cluster."""

    ranges: tuple[Range, ...]
    replicas: frozenset[Address]


def read_view(reply: Reply, asked: Address) -> View:
    """`CLUSTER SLOTS` as the node at `asked` answers it. ValueError where that is something else."""
    ranges, replicas = [], set[Address]()
    try:
        for first, last, primary, *others in reply:
            ranges.append(Range(int(first), int(last), _address(primary, asked)))
            replicas.update(_address(other, asked) for other in others)
    except (TypeError, ValueError, IndexError):
        raise ValueError(f"not a map: {reply!r}") from None
    return View(tuple(sorted(ranges, key=lambda each: each.first)), frozenset(replicas))


def _address(node: list[bytes | int | None], asked: Address) -> Address:
    """A node that does not know its own host is the one that was asked, or stands beside it."""
    host = node[0].decode() if isinstance(node[0], bytes) else ""
    port = node[1]
    assert isinstance(port, int)
    return Address(host if host not in ("", "?") else asked.host, port)


def elect(views: dict[Address, View]) -> View:
    """The map that most nodes see, slot by slot. What one says of itself weighs half."""
    voted = {asked: view for asked, view in views.items() if view.ranges}
    replicas = frozenset[Address]().union(*(view.replicas for view in views.values()))
    maps = {view.ranges for view in voted.values()}
    if len(maps) <= 1:
        return View(next(iter(maps), ()), replicas)
    votes: list[Counter[Address]] = [Counter() for _ in range(SLOTS)]
    for asked, view in voted.items():
        for each in view.ranges:
            weight = 1 if each.primary == asked else 2
            for slot in range(each.first, each.last + 1):
                votes[slot][each.primary] += weight
    ranges: list[Range] = []
    for slot, counted in enumerate(votes):
        if not counted:
            continue
        owner = counted.most_common(1)[0][0]
        if ranges and ranges[-1].primary == owner and ranges[-1].last == slot - 1:
            ranges[-1] = replace(ranges[-1], last=slot)
        else:
            ranges.append(Range(slot, slot, owner))
    return View(tuple(ranges), replicas)


def numbered(owner: Callable[[int], T | None]) -> dict[T, int]:
    """The number of each one's marker, where `owner` says whose a slot is: the lowest whose slot it has."""
    wanted = {found for slot in range(SLOTS) if (found := owner(slot)) is not None}
    numbers: dict[T, int] = {}
    number = 0
    while len(numbers) < len(wanted) and number < _LAST_TAG:
        found = owner(TAGS[number] if number < len(TAGS) else key_slot(b"%d" % number))
        if found is not None:
            numbers.setdefault(found, number)
        number += 1
    return numbers


async def _seen(address: Address, question: Awaitable[Reply]) -> View | str:
    """What the node there sees, or why it does not say."""
    try:
        async with asyncio.timeout(_VOTES_WITHIN):
            reply = await question
        if isinstance(reply, RedisError):
            return f"Redis at {address} refused CLUSTER SLOTS: {reply}"
        return read_view(reply, address)
    except TimeoutError:
        return f"the node at {address} does not answer"
    except (StoreAway, ValueError) as error:
        return str(error)


class Cluster(Fleet):
    """A store of many primaries."""

    def __init__(
        self,
        servers: Servers,
        observer: Observer,
        prefix: str,
        trust: Trust,
        say: Callable[..., None],
        changed: Callable[[], None],
    ) -> None:
        super().__init__(servers, observer, prefix, trust, say, changed)
        self._tasks = Tasks(lambda error: observer.alarm("looking at the cluster failed", error=repr(error)))
        self._primaries: dict[Address, Primary] = {}
        self._wanted: dict[Address, float] = {}
        self._slots: list[Primary | None] = [None] * SLOTS
        self._view: View | None = None
        self._nodes = dict.fromkeys(servers.hosts)
        self._markers: dict[int, Marker] = {}
        self._unknown = "no node of the cluster has been asked yet"
        self._stale = asyncio.Event()

    # ── The fleet ─────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        await self._refresh(open_them=False)
        opened = await asyncio.gather(*(primary.open() for primary in self._mapped), return_exceptions=True)
        if failed := next(filter(None, opened), None):
            await self.close()
            raise failed
        self._tasks.start(self._look_around())

    async def close(self) -> None:
        await self._tasks.cancel()
        await asyncio.gather(*(primary.close() for primary in self._primaries.values()))

    def of(self, key: bytes) -> Primary:
        slot = key_slot(key)
        primary = self._slots[slot]
        if primary is None:
            self._stale.set()
            raise StoreAway(self._unknown or f"no primary of the cluster has slot {slot}", ambiguous=False)
        return primary

    async def follow(
        self,
        primary: Primary,
        commands: tuple[bytes, ...],
        reply: Reply,
        *,
        claims: bool = False,
        waits: bool = False,
    ) -> tuple[Primary, Reply]:
        for _ in range(REDIRECTED):
            told = sent_on(reply)
            if told is None:
                return primary, reply
            primary = self._named(primary, told)
            await primary.reached(claims=claims)
            reply = await primary.ask(commands, asking=told.code == "ASK", waits=waits)
        self._stale.set()
        raise StoreAway("the primaries of the cluster send us from one to another", ambiguous=False)

    @property
    def primaries(self) -> tuple[Primary, ...]:
        return tuple(sorted(self._mapped, key=lambda primary: primary.label))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all primaries, each name once, and a warning of each primary that is away while others are not."""
        by_name: defaultdict[str, list[Finding]] = defaultdict(list)
        for primary in self._mapped:
            for each in primary.findings:
                by_name[each.name].append(each)
            if primary.main.pipeline is None:
                text = f"{primary.main.trouble}; keys in its slots are refused, the others are served"
                by_name["primary-away"].append(Finding("primary-away", Severity.WARN, text))
        return tuple(
            sorted(
                (replace(same[0], text="; ".join(each.text for each in same)) for same in by_name.values()),
                key=lambda each: list(Severity).index(each.severity),
            )
        )

    def accept(self) -> bool:
        lost = [marker.accept() for marker in self._markers.values()]
        for primary in self._mapped:
            primary.accept()  # it judges anew
        return any(lost)

    # ── Redirections ──────────────────────────────────────────────────────────────────────────────

    def _named(self, primary: Primary, error: RedisError) -> Primary:
        """The primary that another names instead of itself."""
        _, slot, where = str(error).split()[:3]
        host, _, port = where.rpartition(":")
        asked = primary.main.address
        named = self._at(Address(host.strip("[]") or (asked.host if asked is not None else ""), int(port)))
        if error.code == "MOVED":
            self._stale.set()
            if self._slots[int(slot)] is not named:
                self._slots[int(slot)] = named
                if named not in self._mapped:
                    self._mapped = (*self._mapped, named)
                self.bells.rearranged()
        return named

    def _ear(self, key: bytes) -> Ear | None:
        primary = self._slots[key_slot(key)]
        return None if primary is None else primary.ear

    def _ear_moved(self, ear: Ear, error: RedisError) -> None:
        primary = next((one for one in self._primaries.values() if one.ear is ear), None)
        if primary is not None:
            self._named(primary, error)

    def _at(self, address: Address) -> Primary:
        """The primary there; where it is new, it is connected to."""
        self._wanted[address] = asyncio.get_running_loop().time()
        if (primary := self._primaries.get(address)) is None:
            primary = self._made(address)
            self._tasks.start(self._opened(primary))
        return primary

    def _made(self, address: Address) -> Primary:
        primary = Primary(self._common, Fixed(address), None, self._primary_changed, label=str(address))
        primary.main.address = address
        self._primaries[address] = primary
        self._wanted[address] = asyncio.get_running_loop().time()
        return primary

    async def _opened(self, primary: Primary) -> None:
        try:
            await primary.open()
        except StoreUnusable as error:
            primary.main.trouble = str(error)
            self._observer.alarm("a primary of the cluster cannot be used", error=str(error))

    def _primary_changed(self, primary: Primary) -> None:
        if primary.main.pipeline is None or primary.down:
            self._stale.set()
        self._told()

    # ── The map ───────────────────────────────────────────────────────────────────────────────────

    async def _look_around(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()
            await self._refresh()
            down = [primary for primary in self._mapped if primary.down and primary.main.pipeline is not None]
            await asyncio.gather(*(primary.meet() for primary in down))
            await self._retire()
            await self._take_over_the_others()
            await asyncio.sleep(_SOONEST)

    async def _refresh(self, *, open_them: bool = True) -> None:
        connected = {address: one.main for address, one in self._primaries.items() if one.main.pipeline is not None}
        views = await self._asked({address: link.call(_ASKED) for address, link in connected.items()})
        mapped = {one.main.address for one in self._mapped}
        if len(mapped & views.keys()) * 2 <= len(mapped):
            others = [address for address in self._nodes if address not in views]
            views |= await self._asked({each: ask(self._servers, each, b"CLUSTER", b"SLOTS") for each in others})
        if not any(view.ranges for view in views.values()):
            if views:
                self._unknown = "no primary of the cluster has any slot"
            return
        self._unknown = ""
        view = elect(views)
        self._nodes = dict.fromkeys((*self._servers.hosts, *(each.primary for each in view.ranges), *view.replicas))
        if self._view is None or view.ranges != self._view.ranges:
            self._apply(view, open_them=open_them)
        self._view = view

    async def _asked(self, questions: Mapping[Address, Awaitable[Reply]]) -> dict[Address, View]:
        """The views that came in time. Why the others did not is what is known of a cluster of which nothing is."""
        views = {}
        answers = await asyncio.gather(*(_seen(*each) for each in questions.items()))
        for address, seen in zip(questions, answers, strict=True):
            if isinstance(seen, View):
                views[address] = seen
            elif self._view is None:
                self._unknown = seen
        return views

    def _apply(self, view: View, *, open_them: bool) -> None:
        before = self._mapped
        slots: list[Primary | None] = [None] * SLOTS
        mapped: dict[Primary, None] = {}
        for each in view.ranges:
            if open_them or each.primary in self._primaries:
                primary = self._at(each.primary)
            else:
                primary = self._made(each.primary)
            mapped[primary] = None
            slots[each.first : each.last + 1] = [primary] * (each.last - each.first + 1)
        self._slots, self._mapped = slots, tuple(mapped)
        for primary, number in numbered(dict(enumerate(slots)).get).items():
            primary.mark(self._marker(number, first=not before))
        self.bells.rearranged()
        self._told()

    async def _retire(self) -> None:
        """Let go of who has no slots any more, once what was asked there has been answered."""
        now = asyncio.get_running_loop().time()
        for primary in self._mapped:
            if primary.main.address is not None:
                self._wanted[primary.main.address] = now
        for address, primary in list(self._primaries.items()):
            if primary not in self._mapped and now - self._wanted[address] > _KEPT:
                del self._primaries[address], self._wanted[address]
                await primary.close()

    # ── Markers ───────────────────────────────────────────────────────────────────────────────────

    def _marker(self, number: int, *, first: bool) -> Marker:
        """`first`: the cluster is met for the first time, and new keys are accepted where that was asked for."""
        if (marker := self._markers.get(number)) is None:
            key = marker_key(self._prefix, self._trust.service, number)
            marker = Marker(key, self._trust, accepts=first and self._trust.accept_new_keys)
            self._markers[number] = marker
        return marker

    async def _take_over_the_others(self) -> None:
        """New keys were accepted: on markers too that stand where slots once were, or one of them would come back with
        its slots as another identity's."""
        if not self._trust.accept_new_keys or not any(marker.taken_over for marker in self._markers.values()):
            return
        for marker in self._markers.values():
            marker.taken_over = False
        for number, slot in enumerate(TAGS):
            primary = self._slots[slot]
            if number not in self._markers and primary is not None:
                marker = Marker(marker_key(self._prefix, self._trust.service, number), self._trust, accepts=True)
                try:
                    await marker.take_over(partial(self._ask_marker, primary))
                except StoreAway:
                    continue

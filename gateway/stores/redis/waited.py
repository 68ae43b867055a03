"""Writes that count once every replica has them: durability `replicated`.

`WAIT` blocks its connection, so these writes have connections of their own (*lanes*), and go in batches:
whatever has queued up is written to a free lane with one `WAIT` behind it. While that waits, others
gather for the next lane. The reply to a command comes before the `WAIT` behind it ends, so that what turns
out to have written nothing waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from ...ports import Observer, StoreAway
from .link import Link
from .pipeline import RedisError, Reply, ReplyReceiver, pack
from .servers import Finder, Servers

#: How many batches may wait for their replicas at once.
LANES = 4


class Unacknowledged(StoreAway):
    """Too few replicas have a write. One that is larger than their output buffer never reaches them."""


def unacknowledged(acks: Reply, replicas: int) -> StoreAway | None:
    """What the reply to a WAIT says against the writes before it; None if so many replicas have them."""
    if isinstance(acks, RedisError):
        return StoreAway(f"Redis refused WAIT: {acks}", ambiguous=True)
    if acks < replicas:
        return Unacknowledged(f"{acks} of {replicas} replicas have the write", ambiguous=True)
    return None


class _Batch:
    """The writes that one WAIT covers. As `pipeline.ReplyReceiver` it receives the reply to that WAIT."""

    __slots__ = ("freed", "replicas", "written")

    def __init__(self, replicas: int, freed: Callable[[], None]) -> None:
        self.replicas = replicas
        self.freed = freed
        #: Callers whose command wrote something, with its reply.
        self.written: list[tuple[ReplyReceiver, Reply]] = []

    def done(self) -> bool:
        return False

    def set_result(self, acks: Reply, /) -> None:
        if (away := unacknowledged(acks, self.replicas)) is not None:
            self.set_exception(away)
        else:
            self.freed()
            for told, reply in self.written:
                if not told.done():
                    told.set_result(reply)

    def set_exception(self, away: StoreAway, /) -> None:
        self.freed()
        for told, _ in self.written:
            if not told.done():
                told.set_exception(away)


def wrote(reply: Reply) -> bool:
    """Whether the script changed something: 1 and 2, not 0 and not the record that stands in the way."""
    return reply in (1, 2)


class _Job:
    """One command. As `pipeline.ReplyReceiver` it receives its reply, which a write hands to its batch."""

    __slots__ = ("batch", "packed", "replies", "told")
    batch: _Batch

    def __init__(self, packed: bytes, replies: int, told: ReplyReceiver) -> None:
        self.packed = packed
        self.replies = replies
        self.told = told

    def done(self) -> bool:
        return self.told.done()

    def set_result(self, reply: Reply, /) -> None:
        if self.replies > 1:
            reply = reply[-1]
        if isinstance(reply, RedisError) or not wrote(reply):
            self.told.set_result(reply)
        else:
            self.batch.written.append((self.told, reply))

    def set_exception(self, away: StoreAway, /) -> None:
        self.told.set_exception(away)


class Waited:
    """The lanes of one store."""

    def __init__(self, servers: Servers, finder: Finder, observer: Observer, changed: Callable[[], None]) -> None:
        self._replicas = servers.replicas
        self._wait = pack(b"WAIT", b"%d" % servers.replicas, b"%d" % servers.wait)
        self._changed = changed
        self._queue: list[_Job] = []
        self._free: list[Link] = []
        self._pumping = False
        self.lanes = [
            Link(servers, finder, observer, self._lane_changed, patience=servers.wait / 1000) for _ in range(LANES)
        ]

    async def open(self) -> None:
        self._free = list(self.lanes)
        await asyncio.gather(*(lane.open() for lane in self.lanes))

    async def close(self) -> None:
        await asyncio.gather(*(lane.close() for lane in self.lanes))

    @property
    def trouble(self) -> str:
        """Why no lane is there; empty while one is."""
        return "" if any(lane.pipeline is not None for lane in self.lanes) else self.lanes[0].trouble

    def follow(self, run_id: str | None) -> None:
        """The shared connection is to this server now: lanes to another are given up, and made again."""
        for lane in self.lanes:
            if lane.pipeline is not None and lane.info.get("run_id") != run_id:
                lane.abort("the primary is another server now")

    def abort(self, why: str) -> None:
        for lane in self.lanes:
            lane.abort(why)

    async def call(self, packed: bytes, *, replies: int = 1) -> Reply:
        """As `tell`. Raises the StoreAway that comes instead of a reply."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.tell(packed, future, replies=replies)
        return await future

    def tell(self, packed: bytes, told: ReplyReceiver, *, replies: int = 1) -> None:
        """Send a command; `told` receives its reply (the last of `replies`), and if that says that the script wrote,
        only once the replicas have it. It receives StoreAway instead if too few have it (then it was written all the
        same), or if the connection was lost."""
        self._queue.append(_Job(packed, replies, told))
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        queue, self._queue = [job for job in self._queue if not job.done()], []
        if not queue:
            return
        lane = next((lane for lane in self._free if lane.pipeline is not None), None)
        if lane is not None:
            self._free.remove(lane)
            batch = _Batch(self._replicas, partial(self._freed, lane))
            for job in queue:
                job.batch = batch
                lane.tell(job.packed, job.replies, job)
            lane.tell(self._wait, 1, batch)
        elif trouble := self.trouble:
            for job in queue:
                job.set_exception(StoreAway(trouble, ambiguous=False))
        else:
            self._queue = queue

    def _freed(self, lane: Link) -> None:
        self._free.append(lane)
        if self._queue:
            self._pump_soon()

    def _lane_changed(self) -> None:
        self._changed()
        if self._queue:
            self._pump_soon()

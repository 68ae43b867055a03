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
from typing import Any

from ...ports import Observer, StoreAway
from .link import Link
from .pipeline import RedisError, Reply, pack
from .servers import Finder, Servers

#: How many batches may wait for their replicas at once.
LANES = 4


class _Job:
    """One command on its way: its reply, and the future of its batch's WAIT once it has left."""

    __slots__ = ("acks", "packed", "replies", "reply")

    def __init__(self, packed: bytes, replies: int, loop: asyncio.AbstractEventLoop) -> None:
        self.packed = packed
        self.replies = replies
        self.reply: asyncio.Future[Reply] = loop.create_future()
        self.acks: asyncio.Future[Reply] | None = None


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

    async def call(self, packed: bytes, *, wrote: Callable[[Reply], bool], replies: int = 1) -> Reply:
        """The reply to a command (the last of `replies`); where `wrote` says that it wrote, only once the replicas
        have it.

        Raises StoreAway: too few have it (then it was written all the same), or the connection was lost.
        """
        job = _Job(packed, replies, asyncio.get_running_loop())
        self._queue.append(job)
        self._pump_soon()
        reply = await job.reply
        if replies > 1:
            reply = reply[-1]
        if isinstance(reply, RedisError) or not wrote(reply):
            return reply
        assert job.acks is not None
        acks = await asyncio.shield(job.acks)  # it is the whole batch's
        if isinstance(acks, RedisError):
            raise StoreAway(f"Redis refused WAIT: {acks}", ambiguous=True)
        if acks < self._replicas:
            raise StoreAway(f"{acks} of {self._replicas} replicas have the write", ambiguous=True)
        return reply

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        queue = [job for job in self._queue if not job.reply.done()]  # who was cancelled asks for nothing
        if not queue:
            self._queue.clear()
            return
        lane = next((lane for lane in self._free if lane.pipeline is not None), None)
        if lane is None:
            self._queue = queue
            if trouble := self.trouble:
                self._queue = []
                for job in queue:
                    job.reply.set_exception(StoreAway(trouble, ambiguous=False))
            return
        self._queue = []
        self._free.remove(lane)
        sent = [lane.call(job.packed, job.replies) for job in queue]
        acks = lane.call(self._wait)
        for job, reply in zip(queue, sent, strict=True):
            job.acks = acks
            reply.add_done_callback(partial(_hand_on, job.reply))
        acks.add_done_callback(partial(self._freed, lane))

    def _freed(self, lane: Link, acks: asyncio.Future[Any]) -> None:
        acks.exception()  # each job hears of it by itself, if it still cares
        self._free.append(lane)
        if self._queue:
            self._pump_soon()

    def _lane_changed(self) -> None:
        self._changed()
        if self._queue:
            self._pump_soon()


def _hand_on(to: asyncio.Future[Reply], reply: asyncio.Future[Reply]) -> None:
    error = reply.exception()
    if to.done():
        return
    if error is not None:
        to.set_exception(error)
    else:
        to.set_result(reply.result())

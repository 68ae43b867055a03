"""Who waits for which record, and the one connection on which Redis tells of all of them.

A record's channel is its own key, sharded (`SSUBSCRIBE`, Redis 7.0 and later, Valkey): on a cluster it lies where
the record does. `script.lua` publishes there. RESP2 does: on this connection a message is told from a reply by its
first word, and all else is answered in order.

The connection is not the one that carries the records: Redis counts whoever subscribes as a `pubsub` client, with
bounds on what may lie unread for it that a few large replays would pass. It is made for the first who waits, who
looks often until then: many a gate never meets another's flight. From then on it is kept, and a `PING` finds out
when it has died without a word.
"""

from __future__ import annotations

import asyncio
from functools import partial

from ...ports import Bell, Observer
from ...tasks import Tasks
from .link import Link, pack
from .pipeline import Pipeline, RedisError, Reply
from .servers import Finder, Servers

#: Seconds between two PINGs. One that is not answered within the Link's time ends the connection.
PING_EVERY = 1.0
_PING = pack(b"PING")


class _Channel:
    """All who listen to one record, and the connection on which Redis has acknowledged that."""

    __slots__ = ("bells", "name", "on")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.bells: set[_RedisBell] = set()
        self.on: Pipeline | None = None

    def ring(self) -> None:
        for bell in self.bells:
            bell.ring()


class _RedisBell(Bell):
    """The bell of one who listens."""

    def __init__(self, bells: Bells, channel: _Channel) -> None:
        super().__init__()
        self._bells = bells
        self._channel = channel

    @property
    def hears(self) -> bool:
        return self._bells.hear(self._channel)

    def close(self) -> None:
        self._bells.leave(self, self._channel)


class Bells:
    """The bells of one store."""

    def __init__(self, servers: Servers, finder: Finder, observer: Observer) -> None:
        self._observer = observer
        self._link = Link(servers, finder, observer, self._changed, unasked=self._heard)
        self._tasks = Tasks(lambda error: observer.alarm("listening to Redis failed", error=repr(error)))
        self._channels: dict[bytes, _Channel] = {}
        self._begun = False
        self._refused = ""

    async def close(self) -> None:
        self._begun = True  # nobody opens it any more
        await self._tasks.cancel()
        await self._link.close()

    def listen(self, name: bytes) -> Bell:
        """A bell of the record under this key."""
        if (channel := self._channels.get(name)) is None:
            channel = self._channels[name] = _Channel(name)
            self._subscribe(channel)
        bell = _RedisBell(self, channel)
        channel.bells.add(bell)
        if bell.hears:
            bell.ring()
        if not self._begun:
            self._begun = True
            self._tasks.start(self._link.open())
            self._tasks.start(self._ping())
        return bell

    def hear(self, channel: _Channel) -> bool:
        return channel.on is not None and channel.on is self._link.pipeline

    def leave(self, bell: _RedisBell, channel: _Channel) -> None:
        channel.bells.discard(bell)
        if channel.bells or self._channels.get(channel.name) is not channel:
            return
        del self._channels[channel.name]
        if self._link.pipeline is not None:
            # Behind its SSUBSCRIBE, wherever that is, and before the next one for this name.
            self._ask(pack(b"SUNSUBSCRIBE", channel.name))

    def follow(self, run_id: str | None) -> None:
        """The records are on this server now: what is published elsewhere is not about them."""
        if self._link.pipeline is not None and self._link.info.get("run_id") != run_id:
            self._link.abort("the records are on another server")

    # ── The connection ────────────────────────────────────────────────────────────────────────────

    def _changed(self) -> None:
        """Made, or lost. On a new one everybody is subscribed again, and rung as soon as that is acknowledged."""
        if self._link.pipeline is not None:
            for channel in self._channels.values():
                self._subscribe(channel)

    def _subscribe(self, channel: _Channel) -> None:
        pipeline = self._link.pipeline
        if pipeline is not None:
            reply = pipeline.call(pack(b"SSUBSCRIBE", channel.name))
            reply.add_done_callback(partial(self._subscribed, channel, pipeline))

    def _subscribed(self, channel: _Channel, pipeline: Pipeline, done: asyncio.Future[Reply]) -> None:
        if done.cancelled() or done.exception() is not None:
            return  # the connection was lost; the next one begins anew
        match done.result():
            case [b"ssubscribe", channel.name, _]:
                channel.on = pipeline
                channel.ring()
            case RedisError() as error:
                # As long as it is so they look often, which is what they do where nobody rings.
                if self._refused != str(error):
                    self._refused = str(error)
                    self._observer.alarm("Redis refuses SSUBSCRIBE; waiters poll", error=str(error))
            case other:
                pipeline.abort(f"Redis answered SSUBSCRIBE with {other!r}")

    def _heard(self, reply: Reply) -> bool:
        match reply:
            case [b"smessage", name, _]:
                if (channel := self._channels.get(name)) is not None:
                    channel.ring()
                return True
        return False

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_EVERY)
            if self._link.pipeline is not None:
                self._ask(_PING)

    def _ask(self, packed: bytes) -> None:
        """Send what is answered, and whose answer tells nothing."""
        self._link.call(packed).add_done_callback(_seen)


def _seen(reply: asyncio.Future[Reply]) -> None:
    if not reply.cancelled():
        reply.exception()

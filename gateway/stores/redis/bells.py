"""Who waits for which record, and the one connection on which a primary tells of all of its own.

A record's channel is its own key, sharded (`SSUBSCRIBE`, Redis 7.0 and later, Valkey): on a cluster it lies where
the record does. `script.lua` publishes there. RESP2 does: on this connection a message is told from a reply by its
first word, and all else is answered in order.

The connection is not the one that carries the records: Redis counts whoever subscribes as a `pubsub` client, with
bounds on what may lie unread for it that a few large replays would pass. It is made for the first who waits, who
looks often until then: many a gate never meets another's flight. From then on it is kept, and a `PING` finds out
when it has died without a word.

A primary that gives a slot away ends what is subscribed there with a `sunsubscribe` that nobody asked for, and one
that never had it answers MOVED: the channel is subscribed anew where its slot is now. While a slot is on its way
its records may be settled at the other end already; who waits for one finds it by a look, or when the move ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from ...ports import Observer, Subscription
from ...tasks import Tasks
from .link import Link
from .pipeline import Pipeline, RedisError, Reply, ReplyReceiver, pack
from .servers import Finder, Servers

#: Seconds between two PINGs. One that is not answered within the Link's time ends the connection.
PING_EVERY = 1.0
_PING = pack(b"PING")
#: How often a channel may be sent on before it waits for the next PING's time.
_HOPS = 5


class _Channel:
    """All subscriptions to one record, and the connection on which Redis has acknowledged them."""

    __slots__ = ("ear", "hops", "name", "observer", "on", "subscriptions")

    def __init__(self, name: bytes, observer: Observer) -> None:
        self.name = name
        self.observer = observer
        self.subscriptions: set[_RedisSubscription] = set()
        self.ear: Ear | None = None
        self.on: Pipeline | None = None
        self.hops = 0

    def notify(self) -> None:
        for each in tuple(self.subscriptions):
            if each in self.subscriptions:  # an earlier one may have closed it
                self.notify_one(each)

    def notify_one(self, subscription: _RedisSubscription) -> None:
        try:
            subscription.notify()
        except Exception as error:
            self.observer.alarm("a notification of the store was not processed", error=repr(error))


class _RedisSubscription(Subscription):
    """One subscription; `notify` is its caller's."""

    def __init__(self, bells: Bells, channel: _Channel, notify: Callable[[], None]) -> None:
        self._bells = bells
        self._channel = channel
        self.notify = notify

    @property
    def active(self) -> bool:
        channel = self._channel
        return channel.on is not None and channel.ear is not None and channel.on is channel.ear.link.pipeline

    def close(self) -> None:
        self._bells.leave(self, self._channel)


class Ear:
    """The connection on which one primary tells."""

    def __init__(self, servers: Servers, finder: Finder, observer: Observer, bells: Bells) -> None:
        self.link = Link(servers, finder, observer, self._changed, unasked=self._heard)
        self._bells = bells
        self._tasks = Tasks(lambda error: observer.alarm("listening to Redis failed", error=repr(error)))
        self._begun = False
        #: What was asked to tell no more, by the reply that is to come: one that comes out of turn was not asked for.
        self._leaving: dict[ReplyReceiver, bytes] = {}

    async def close(self) -> None:
        self._begun = True  # nobody opens it any more
        await self._tasks.cancel()
        await self.link.close()

    def begin(self) -> None:
        """Somebody listens here: connect, and stay so."""
        if not self._begun:
            self._begun = True
            self._tasks.start(self.link.open())
            self._tasks.start(self._ping())

    def follow(self, run_id: str | None) -> None:
        """The records are on this server now: what is published elsewhere is not about them."""
        if self.link.pipeline is not None and self.link.info.get("run_id") != run_id:
            self.link.abort("the records are on another server")

    def leave(self, name: bytes) -> None:
        """Be told of this no more."""
        if self.link.pipeline is not None:
            # Behind its SSUBSCRIBE, wherever that is, and before the next one for this name.
            reply = self.link.call(pack(b"SUNSUBSCRIBE", name))
            self._leaving[reply] = name
            reply.add_done_callback(self._left)

    def _left(self, reply: asyncio.Future[Reply]) -> None:
        self._leaving.pop(reply, None)
        _seen(reply)

    def _changed(self) -> None:
        """Made, or lost. On a new one everybody is subscribed again, and rung as soon as that is acknowledged."""
        if self.link.pipeline is not None:
            self._bells.connected(self)

    def _heard(self, reply: Reply, turn: ReplyReceiver | None) -> bool:
        match reply:
            case [b"smessage", name, _]:
                self._bells.told(name)
                return True
            case [b"sunsubscribe", name, _] if turn is None or self._leaving.get(turn) != name:
                self._bells.sent_away(self, name)
                return True
        return False

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_EVERY)
            if self.link.pipeline is not None:
                self.link.call(_PING).add_done_callback(_seen)
            self._bells.again(self)


class Bells:
    """The bells of one store. `where`: the Ear at the primary that has a key, if any has; `moved`: a primary, by its
    Ear, has named another for a channel."""

    def __init__(
        self,
        observer: Observer,
        where: Callable[[bytes], Ear | None],
        moved: Callable[[Ear, RedisError], None],
    ) -> None:
        self._observer = observer
        self._where = where
        self._moved = moved
        self._channels: dict[bytes, _Channel] = {}
        self._homeless: set[_Channel] = set()
        self._refused = ""

    def subscribe(self, name: bytes, notify: Callable[[], None]) -> Subscription:
        """Subscribe to the record under this key."""
        if (channel := self._channels.get(name)) is None:
            channel = self._channels[name] = _Channel(name, self._observer)
            self._place(channel)
        subscription = _RedisSubscription(self, channel, notify)
        channel.subscriptions.add(subscription)
        if subscription.active:
            channel.notify_one(subscription)
        return subscription

    def leave(self, subscription: _RedisSubscription, channel: _Channel) -> None:
        channel.subscriptions.discard(subscription)
        if channel.subscriptions or self._channels.get(channel.name) is not channel:
            return
        del self._channels[channel.name]
        self._homeless.discard(channel)
        if channel.ear is not None:
            channel.ear.leave(channel.name)

    def rearranged(self) -> None:
        """Keys may have other primaries now."""
        for channel in self._channels.values():
            if self._where(channel.name) is not channel.ear:
                self._place(channel)

    # ── What an Ear says ──────────────────────────────────────────────────────────────────────────

    def connected(self, ear: Ear) -> None:
        for channel in self._channels.values():
            if channel.ear is ear:
                self._subscribe(channel)

    def told(self, name: bytes) -> None:
        if (channel := self._channels.get(name)) is not None:
            channel.notify()

    def sent_away(self, ear: Ear, name: bytes) -> None:
        """The primary there tells of this no more: its slot has left, or is about to."""
        channel = self._channels.get(name)
        if channel is not None and channel.ear is ear:
            channel.on = None
            self._place(channel)

    def again(self, ear: Ear) -> None:
        """A while has passed."""
        for channel in [one for one in self._homeless if one.ear is ear or one.ear is None]:
            channel.hops = 0
            self._place(channel)

    # ── Subscribing ───────────────────────────────────────────────────────────────────────────────

    def _place(self, channel: _Channel) -> None:
        """Listen for it where its key is now."""
        ear = self._where(channel.name)
        if channel.ear is not None and channel.ear is not ear:
            channel.ear.leave(channel.name)
        channel.ear = ear
        self._homeless.discard(channel)
        if ear is None:
            self._homeless.add(channel)  # until the primaries are rearranged
        else:
            ear.begin()
            self._subscribe(channel)

    def _subscribe(self, channel: _Channel) -> None:
        assert channel.ear is not None
        pipeline = channel.ear.link.pipeline
        if pipeline is not None:
            reply = pipeline.call(pack(b"SSUBSCRIBE", channel.name))
            reply.add_done_callback(partial(self._subscribed, channel, channel.ear, pipeline))

    def _subscribed(self, channel: _Channel, ear: Ear, pipeline: Pipeline, done: asyncio.Future[Reply]) -> None:
        if done.cancelled() or done.exception() is not None:
            return  # the connection was lost; the next one begins anew
        match done.result():
            case [b"ssubscribe", channel.name, _]:
                if channel.ear is ear:
                    channel.on = pipeline
                    channel.hops = 0
                    channel.notify()
            case RedisError(code="MOVED" | "CLUSTERDOWN" | "TRYAGAIN") as error:
                self._not_here(channel, ear, error)
            case RedisError() as error:
                # As long as it is so they look often, which is what they do where nobody rings.
                if self._refused != str(error):
                    self._refused = str(error)
                    self._observer.alarm("Redis refuses SSUBSCRIBE; waiters poll", error=str(error))
            case other:
                pipeline.abort(f"Redis answered SSUBSCRIBE with {other!r}")

    def _not_here(self, channel: _Channel, ear: Ear, error: RedisError) -> None:
        if self._channels.get(channel.name) is not channel or channel.ear is not ear:
            return
        channel.on = None
        channel.hops += 1
        if error.code == "MOVED" and channel.hops <= _HOPS:
            self._moved(ear, error)
            self._place(channel)
        else:
            self._homeless.add(channel)


def _seen(reply: asyncio.Future[Reply]) -> None:
    if not reply.cancelled():
        reply.exception()

"""One connection to a Redis, shared by everybody: what is asked in one tick of the loop is written
together, and replies are matched in order.

An awaited command of redis-py costs 50–90 µs of CPU, one here 3–10: parsing and packing are hiredis',
a command is one future, and a tick's commands are one write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import hiredis

from ...ports import StoreAway

Reply = Any


class ReplyReceiver(Protocol):
    """The receiver of the reply to a command: a future, or an object in its place. Exactly one of the two setters is
    called, unless it is done."""

    def done(self) -> bool:
        """Whether it no longer wants a reply."""

    def set_result(self, reply: Any, /) -> None:
        """Take the reply as it came."""

    def set_exception(self, away: StoreAway, /) -> None:
        """Take the reason why there is none."""


Unasked = Callable[[Reply, ReplyReceiver | None], bool]


class RedisError(Exception):
    """An error reply: the command was refused, and nothing was done. `code` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


_ERROR = hiredis.ReplyError


def pack(*words: bytes) -> bytes:
    """A command as it goes on the wire."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows tuples of one
    return packed


class Pipeline(asyncio.Protocol):
    """The connection. `lost` is called once when it ends, with the reason. `unasked` is shown each reply first, with
    the future of the command whose turn it is, and says whether it was one that belongs to no command (a published
    message)."""

    def __init__(self, lost: Callable[[str], None], unasked: Unasked | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._unasked = unasked
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._unsent: list[bytes] = []
        self._pending: deque[tuple[ReplyReceiver, int, float]] = deque()
        self._replies: list[Reply] = []
        self._written = 0
        self._asked = 0
        #: When the first of what is unsent was asked.
        self._tick = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def call(self, packed: bytes, replies: int = 1) -> asyncio.Future[Reply]:
        """Send one command, or several packed one after another, and await as many replies.

        The future has the reply, or the list of them where there are several; an error reply is an
        element of type RedisError. It fails with StoreAway when the connection ends first; that is
        ambiguous as soon as the command was handed to the transport.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        self.tell(packed, replies, future)
        return future

    def tell(self, packed: bytes, replies: int, told: ReplyReceiver) -> None:
        """As `call`, for somebody who is told at once, while the replies are read."""
        loop, unsent = self._loop, self._unsent
        if not unsent:  # what was usable at the first call of a tick is looked at again when all are written
            if not self.usable:
                told.set_exception(StoreAway("the connection to Redis is closed", ambiguous=False))
                return
            loop.call_soon(self._flush)
            self._tick = loop.time()
        unsent.append(packed)
        self._pending.append((told, replies, self._tick))
        self._asked += 1

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self.usable:
            assert self._transport is not None
            self._written = self._asked
            self._transport.write(b"".join(unsent) if len(unsent) > 1 else unsent[0])

    def data_received(self, data: bytes) -> None:
        reader, unasked, pending = self._reader, self._unasked, self._pending
        reader.feed(data)
        gets = reader.gets
        try:
            while (reply := gets()) is not Ellipsis:
                if isinstance(reply, _ERROR):
                    reply = RedisError(str(reply))
                elif unasked is not None and unasked(reply, pending[0][0] if pending else None):
                    continue
                if not pending:
                    self.abort("Redis sent a reply that nobody asked for")
                    return
                told, wanted, _ = pending[0]
                if wanted > 1:
                    replies = self._replies
                    replies.append(reply)
                    if len(replies) < wanted:
                        continue
                    reply, self._replies = replies, []
                pending.popleft()
                if not told.done():
                    told.set_result(reply)
                    if self._pending is not pending:  # whoever was told has ended the connection
                        return
        except hiredis.ProtocolError as error:
            self.abort(f"Redis spoke no RESP: {error}")

    def silent_for(self) -> float:
        """Seconds for which the oldest command has waited for its reply."""
        return self._loop.time() - self._pending[0][2] if self._pending else 0.0

    def abort(self, why: str) -> None:
        """End the connection at once."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._fail(why)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self._fail(f"the connection to Redis broke: {error}" if error else "Redis closed the connection")

    def _fail(self, why: str) -> None:
        pending, self._pending = self._pending, deque()
        self._unsent = []
        first = self._asked - len(pending)
        for position, (told, _, _) in enumerate(pending):
            try:
                if not told.done():
                    told.set_exception(StoreAway(why, ambiguous=first + position < self._written))
            except Exception as error:  # whatever one of them makes of it, the others must hear
                self._loop.call_exception_handler({"message": "somebody failed who was told", "exception": error})
        self._lost(why)

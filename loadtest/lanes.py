"""The client side: some connections, each sending its next request when its last was answered.

Callbacks only, so that one core asks a few tens of thousands of times a second; bytes in, values out. The
storm and the comparison (where wrk is missing) both stand on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar, cast

import httptools

T = TypeVar("T")


@dataclass(slots=True)
class Answer:
    """What came back for one request. `status` 0: the connection ended without a whole answer."""

    status: int = 0
    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0

    @property
    def replayed(self) -> bool:
        return b"idempotent-replayed" in self.fields


class Ask(NamedTuple, Generic[T]):
    """One request as it goes on the wire, with whatever its sender wants to know it by."""

    tag: T
    wire: bytes


class _Lane(asyncio.Protocol, Generic[T]):
    """One connection of a `_Fleet`; ends with it, or is replaced after a close."""

    def __init__(self, fleet: _Fleet[T]) -> None:
        self._fleet = fleet
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._asked: Ask[T] | None = None
        self._answer = Answer()
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fleet.open.add(self._transport)
        self._next()

    def _next(self) -> None:
        assert self._transport is not None
        ask = self._fleet.next()
        if ask is None:
            self._transport.close()
            return
        self._asked = ask
        self._answer = Answer()
        self._since = perf_counter()
        self._transport.write(ask.wire)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            assert self._transport is not None
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.fields[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._answer.body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 1xx: the answer itself is still to come
            self._answer = Answer()
            return
        assert self._asked is not None
        assert self._transport is not None
        self._answer.status = status
        self._answer.seconds = perf_counter() - self._since
        keep = self._parser.should_keep_alive()
        asked, self._asked = self._asked, None
        self._fleet.answered(asked.tag, self._answer)
        if keep:
            self._next()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self._fleet.answered(asked.tag, Answer(seconds=perf_counter() - self._since))
        assert self._transport is not None
        self._fleet.ended(self._transport)


class _Fleet(Generic[T]):
    """What the lanes share: the requests still to be sent, where answers go, when to stop."""

    def __init__(self, asks: Iterator[Ask[T]], answered: Callable[[T, Answer], None], seconds: float | None) -> None:
        self._asks = asks
        self._ends = None if seconds is None else perf_counter() + seconds
        self._ended = asyncio.Event()
        self.answered = answered
        self.exhausted = False
        self.open: set[asyncio.Transport] = set()

    def next(self) -> Ask[T] | None:
        if not self.exhausted and (self._ends is None or perf_counter() < self._ends):
            ask = next(self._asks, None)
            if ask is not None:
                return ask
        self.exhausted = True
        return None

    def ended(self, lane: asyncio.Transport) -> None:
        self.open.discard(lane)
        self._ended.set()

    async def one_ended(self) -> None:
        """Until a lane has ended, which may be long past."""
        await self._ended.wait()
        self._ended.clear()


async def drive(
    host: str,
    port: int,
    connections: int,
    asks: Iterator[Ask[T]],
    answered: Callable[[T, Answer], None],
    *,
    seconds: float | None = None,
    patience: float = 60.0,
) -> None:
    """Send `asks` over `connections` lanes until they, or the `seconds`, are used up.

    Every request that was sent is answered once, with status 0 where no answer came. A closed connection is
    opened again while there is more to send; one that cannot be opened raises OSError. A run that is not
    done `patience` seconds after its time raises TimeoutError.
    """
    loop = asyncio.get_running_loop()
    fleet = _Fleet(asks, answered, seconds)
    try:
        async with asyncio.timeout((seconds or 0.0) + patience):
            while True:
                while len(fleet.open) < connections and not fleet.exhausted:
                    await loop.create_connection(lambda: _Lane(fleet), host, port)
                if not fleet.open:
                    return
                await fleet.one_ended()
    finally:
        for lane in list(fleet.open):
            lane.abort()


async def ask(host: str, port: int, wire: bytes, patience: float = 10.0) -> Answer:
    """One request on a connection of its own."""
    answers: list[Answer] = []
    one = iter([Ask(None, wire)])
    await drive(host, port, 1, one, lambda _, answer: answers.append(answer), patience=patience)
    return answers[0]


def request(method: str, target: str, host: str, fields: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """The bytes of one HTTP/1.1 request."""
    head = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    head += [f"{name}: {value}" for name, value in (fields or {}).items()]
    if body or method in ("POST", "PUT", "PATCH"):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body

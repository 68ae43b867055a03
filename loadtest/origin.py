"""An origin that counts its effects: ``python -m loadtest.origin --port N [--ledger FILE] [--delay MS]``.

Every POST, PUT, PATCH or DELETE is one effect, counted under its ``Idempotency-Key`` at the moment the whole
request has arrived, before the delay and before any byte of the answer: what a payment service would have done
by then cannot be undone. The answer names the effect's number, so two executions never answer alike.

``GET /effects`` tells what happened: ``{"total": 3, "keys": 2, "doubled": 1}``: effects, distinct keys, keys
with more than one effect. Effects without a key count in ``total`` alone. With ``--ledger`` each effect appends
one line (its key) to the file with a single write, so that the count survives a kill -9 of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from typing import cast

import httptools
import uvloop

EFFECTFUL = frozenset((b"POST", b"PUT", b"PATCH", b"DELETE"))


class Effects:
    """What this origin has done, per key."""

    def __init__(self, ledger: str | None = None) -> None:
        self.total = 0
        self.doubled = 0
        self._by_key: dict[bytes, int] = {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._ledger = None if ledger is None else os.open(ledger, flags, 0o644)

    def happen(self, key: bytes) -> int:
        """One effect; returns its number."""
        self.total += 1
        if key:
            times = self._by_key.get(key, 0) + 1
            self._by_key[key] = times
            if times == 2:
                self.doubled += 1
        if self._ledger is not None:
            os.write(self._ledger, (key or b"-") + b"\n")
        return self.total

    def told(self) -> bytes:
        return json.dumps({"total": self.total, "keys": len(self._by_key), "doubled": self.doubled}).encode()


class OriginConnection(asyncio.Protocol):
    """One client; pipelined requests are answered in order, because every answer waits the same delay."""

    def __init__(self, effects: Effects, delay: float) -> None:
        self._effects = effects
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._key = b""
        self._target = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                self._transport.close()

    def on_message_begin(self) -> None:
        self._key = self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 15 and name.lower() == b"idempotency-key":
            self._key = value

    def on_message_complete(self) -> None:
        keep = self._parser.should_keep_alive()
        if self._parser.get_method() in EFFECTFUL:
            number = self._effects.happen(self._key)
            body = b'{"id":"pay_%08d","status":"succeeded","amount":1999,"currency":"eur"}' % number
            if self._delay:
                self._loop.call_later(self._delay, self._answer, b"201 Created", body, keep)
                return
            self._answer(b"201 Created", body, keep)
        elif self._target.partition(b"?")[0] == b"/effects":
            self._answer(b"200 OK", self._effects.told(), keep)
        else:
            self._answer(b"200 OK", b"{}", keep)

    def _answer(self, status: bytes, body: bytes, keep: bool) -> None:
        if self._transport is None:
            return
        self._transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
            % (status, len(body), b"" if keep else b"Connection: close\r\n", body)
        )
        if not keep:
            self._transport.close()


async def serve(host: str, port: int, effects: Effects, delay: float) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(lambda: OriginConnection(effects, delay), host, port, backlog=1024)
    print(f"origin on http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await stopped.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.origin", description="an origin that counts its effects")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one and prints it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--ledger", metavar="FILE", help="append one line per effect")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="between the effect and its answer")
    told = parser.parse_args()
    uvloop.run(serve(told.host, told.port, Effects(told.ledger), told.delay / 1000))


if __name__ == "__main__":
    main()

"""An origin in a process of its own that writes one line, with fsync, for each effect: what it did outlives everything.

    python -m tests.faults.ledger PORT FILE

Each request with a key and a whole body is an effect. What it answers is up to the client, in `X-Origin`, a list of
words: `wait=0.2` before the effect, `linger=0.5` between the effect and the answer, `status=503`,
`retry-after=1`, `cut` (end the connection where the answer should be), `short` (an answer cut within its body),
`stream=0.6` (an event stream of so many seconds in one transaction: the effect comes behind its last event, and none
if the connection ends before that),
`busy=T` (429 and no effect until that instant of CLOCK_MONOTONIC; written down as such).
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time

import h11


class Ledger:
    """The file, and the requests that are written into it."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._count = 0

    def write(self, key: str, *, effect: bool) -> dict[str, object]:
        self._count += 1
        line: dict[str, object] = {
            "key": key, "n": self._count, "nonce": secrets.token_hex(8), "at": time.monotonic(), "effect": effect,
        }  # fmt: skip
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)
        return line

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        try:
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(await reader.read(1 << 16))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.EndOfMessage):
                    assert request is not None
                    if not await self._answer(request, parser, reader, writer):
                        return
                    if parser.our_state is h11.MUST_CLOSE:
                        return
                    parser.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                    return
        except (h11.RemoteProtocolError, ConnectionError):
            pass  # a request that was cut has no effect
        finally:
            writer.close()

    async def _stream(
        self, key: str, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            writer.write(b"9\r\ndata: 1\n\n\r\n")
            await asyncio.sleep(seconds / 10)
            if reader.at_eof() or writer.transport.is_closing():
                self.write(key, effect=False)
                return
        self.write(key, effect=True)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _answer(
        self,
        request: h11.Request,
        parser: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        fields = {name.decode(): value.decode() for name, value in request.headers}
        words = dict(word.partition("=")[::2] for word in fields.get("x-origin", "").split())
        await asyncio.sleep(float(words.get("wait", 0)))
        busy = time.monotonic() < float(words.get("busy", 0))
        key = fields.get("idempotency-key")
        if "stream" in words:
            await self._stream(key or "", float(words["stream"]), reader, writer)
            return False
        line = self.write(key, effect=not busy) if key else {"key": "", "n": 0, "nonce": ""}
        await asyncio.sleep(float(words.get("linger", 0)))
        if "cut" in words:
            return False
        body = json.dumps({name: line[name] for name in ("key", "n", "nonce")}).encode()
        head = [("Content-Length", str(len(body))), ("Content-Type", "application/json")]
        if "retry-after" in words:
            head.append(("Retry-After", words["retry-after"]))
        status = 429 if busy else int(words.get("status", 201))
        if "short" in words:
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:10])
            await writer.drain()
            return False
        for event in (h11.Response(status_code=status, headers=head), h11.Data(data=body), h11.EndOfMessage()):
            writer.write(parser.send(event) or b"")
        await writer.drain()
        return True


async def main(port: int, path: str) -> None:
    ledger = Ledger(path)
    server = await asyncio.start_server(ledger.serve, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))

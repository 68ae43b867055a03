"""A shop on aiohttp that real clients are sent to, and a hop on the way that loses answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter

from aiohttp import web

from tests.harness import reset
from tests.servers import free_port

#: Bytes that are sent at once.
PIECE = 1 << 20


class Shop:
    """Counts payments by key; echoes, streams, takes and gives large files. `slow` seconds pass in each payment."""

    def __init__(self) -> None:
        self.port = free_port()
        self.payments: Counter[str] = Counter()
        self.asked: list[str] = []
        self.closed: list[int | None] = []
        self.slow = 0.0
        self.next_event = asyncio.Event()
        #: Where what has moved is now, and how often that was said.
        self.moved_to = "/pay"
        self.redirects = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Shop:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/pay", self._pay)
        app.router.add_post("/ask", self._events)
        app.router.add_post("/moved/{status}", self._moved)
        app.router.add_get("/open/events", self._events)
        app.router.add_get("/open/socket", self._socket)
        app.router.add_put("/open/file", self._take)
        app.router.add_get("/open/file/{size}", self._give)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.next_event.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _pay(self, request: web.Request) -> web.Response:
        allowed = {
            "Access-Control-Allow-Origin": request.headers.get("Origin", "*"),
            "Access-Control-Allow-Headers": "Idempotency-Key, Content-Type",
        }
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=allowed)
        body = await request.text()
        key = request.headers.get("Idempotency-Key", "-")
        self.payments[key] += 1
        self.asked.append(f"{request.method} {request.path_qs} {request.headers.get('User-Agent', '')}")
        await asyncio.sleep(self.slow)
        return web.json_response({"payment": self.payments.total(), "said": body}, status=201, headers=allowed)

    async def _moved(self, request: web.Request) -> web.Response:
        self.redirects += 1
        return web.Response(status=int(request.match_info["status"]), headers={"Location": self.moved_to})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.payments[request.headers.get("Idempotency-Key", "-")] += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b"id: %d\ndata: event %d\n\n" % (number, number))
            await self.next_event.wait()
            self.next_event.clear()
        return response

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=8 << 20)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_bytes(message.data)
        self.closed.append(socket.close_code)
        return socket

    async def _take(self, request: web.Request) -> web.Response:
        digest, size = hashlib.sha256(), 0
        async for data in request.content.iter_any():
            digest.update(data)
            size += len(data)
        return web.Response(text=f"{size} {digest.hexdigest()}")

    async def _give(self, request: web.Request) -> web.StreamResponse:
        size, piece = int(request.match_info["size"]), bytes(range(256)) * (PIECE // 256)
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        for _ in range(size // PIECE):
            await response.write(piece)
        return response


class Lossy:
    """A hop before `port` that resets a connection in place of the first byte of an answer, `lose` times."""

    def __init__(self, port: int, lose: int = 1) -> None:
        self.port = free_port()
        self.lose = lose
        self._far = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Lossy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        near, far = await asyncio.open_connection("127.0.0.1", self._far)
        there = asyncio.ensure_future(_copy(reader, far))
        try:
            while data := await near.read(1 << 16):
                if self.lose:
                    self.lose -= 1
                    reset(writer)
                    return
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            there.cancel()
            far.close()
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass

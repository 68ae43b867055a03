"""The listening side: where clients come in, and the way out."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable

from ..tasks import Tasks
from .client import ClientConnection
from .keepalive import keep_alive
from .line import NEXT_WORD
from .secure import Gatekeeper
from .shared import Shared

#: What a listener shows whoever comes in, and asks of them, as it is at that moment.
Papers = Callable[[], ssl.SSLContext]
#: Connections that the kernel keeps for a listener until they are let in.
_BACKLOG = 1024


class Server:
    """All listeners, and the connections that were let in."""

    def __init__(self, shared: Shared, tasks: Tasks) -> None:
        self.shared = shared
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(
        self, host: str, port: int, *, shared: bool = False, tls: Papers | None = None
    ) -> list[tuple[str, int]]:
        """Accept connections; says on which addresses. `shared`: with other processes that listen there too."""
        listener = await self._loop.create_server(
            self._guests(tls), host, port, backlog=_BACKLOG, reuse_port=shared or None, start_serving=False
        )
        for listening in listener.sockets:
            keep_alive(listening)  # whose options the connections inherit
        await listener.start_serving()
        self._add(listener)
        return [socket.getsockname()[:2] for socket in listener.sockets]

    async def listen_on(self, sock: socket.socket, *, tls: Papers | None = None) -> None:
        """Accept connections on a Unix socket that listens."""
        self._add(await self._loop.create_unix_server(self._guests(tls), sock=sock, backlog=_BACKLOG))

    def _guests(self, tls: Papers | None) -> Callable[[], asyncio.Protocol]:
        shared, tasks = self.shared, self._tasks
        if tls is None:
            return lambda: ClientConnection(shared)
        return lambda: Gatekeeper(shared, tls(), tasks)

    def _add(self, listener: asyncio.Server) -> None:
        self._listeners.append(listener)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(1.0, self._sweep)

    async def drain(self, seconds: float) -> int:
        """Accept no more, let what is under way be answered; says how many connections were cut off."""
        await self._let_in()
        for listener in self._listeners:
            listener.close()
        for _ in range(2):  # who was let in last is met at the next turn, and what he asks read at the one after
            await asyncio.sleep(0)
        self.shared.draining = True
        self.shared.emptied = asyncio.Event()
        for connection in list(self.shared.connections):
            connection.drain(NEXT_WORD)
        if self.shared.connections:
            try:
                await asyncio.wait_for(self.shared.emptied.wait(), seconds)
            except TimeoutError:
                pass
        return len(self.shared.connections)

    async def _let_in(self) -> None:
        """Whoever stands in a listener's queue has connected, and may have asked; closing the listener resets him.
        The loop lets in one at each turn. Nothing comes between the last look and the end of the listener, so that
        only who finishes his handshake in that moment is reset, and nothing of his has been read."""
        queue = select.poll()
        for listener in self._listeners:
            for sock in listener.sockets:
                queue.register(sock.fileno(), select.POLLIN)
        for _ in range(_BACKLOG):
            if not queue.poll(0):
                break
            await asyncio.sleep(0)

    def close(self) -> None:
        """Cut off whatever is left."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.shared.connections):
            connection.abort()
        self.shared.aside.close()
        self.shared.halves.close()
        self.shared.descriptors.close()

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(1.0, self._sweep)
        now = self._loop.time()
        self.shared.descriptors.check()
        for connection in list(self.shared.connections):
            connection.check(now)

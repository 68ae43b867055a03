"""The story: what clients do to a service when networks fail, and what the service sees of it."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections import Counter
from dataclasses import dataclass

import aiohttp

from ..app import App
from ..settings import Overrides, plain
from .sample import OrderService, serve


@dataclass(frozen=True, slots=True)
class Scene:
    """What was sent, what the service executed of it, and what the clients saw."""

    title: str
    sent: int
    executed: int
    saw: str


class Clients:
    """Everybody who calls the service, through the gate."""

    def __init__(self, session: aiohttp.ClientSession, url: str, service: OrderService) -> None:
        self._session = session
        self._url = url
        self._service = service

    async def order(self, key: str, amount: str = "12.50") -> str:
        """One request; what its sender saw."""
        body = f'{{"item": "book", "amount": {amount}}}'.encode()
        async with self._session.post(self._url, data=body, headers=_headers(key)) as answer:
            document = await answer.json(content_type=None)
            if answer.status >= 400:
                return f"{answer.status} {document['type'].rpartition(':')[2]}"
            return f"{answer.status} order {document['id']}" + (
                " (replayed)" if answer.headers.get("Idempotent-Replayed") else ""
            )

    async def give_up(self, key: str) -> None:
        """One request whose sender hangs up while the service works on it."""
        body = b'{"item": "book", "amount": 12.50}'
        async with self._service.started:
            sending = asyncio.get_running_loop().create_task(self._post_and_forget(key, body))
            await self._service.started.wait()
        sending.cancel()
        await asyncio.wait({sending})

    async def _post_and_forget(self, key: str, body: bytes) -> None:
        async with self._session.post(self._url, data=body, headers=_headers(key)):
            pass


def _headers(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key, "Content-Type": "application/json"}


async def play() -> list[Scene]:
    """Start a service and a gate on free ports, and play the story."""
    service = OrderService()
    runner, port = await serve(service)
    quiet = io.StringIO()
    overrides = Overrides(listen="127.0.0.1:0", admin="127.0.0.1:0", store="memory://")
    app = App(plain(f"http://127.0.0.1:{port}", environ={}, overrides=overrides), out=quiet)
    try:
        await app.start()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            url = f"http://127.0.0.1:{app.addresses[0][1]}/orders"
            return await _scenes(Clients(session, url, service), service)
    finally:
        await app.stop()
        await runner.cleanup()


async def _scenes(clients: Clients, service: OrderService) -> list[Scene]:
    scenes: list[Scene] = []

    def tell(title: str, key: str, sent: int, saw: list[str]) -> None:
        scenes.append(Scene(title, sent, service.executed[key], _summed(saw)))

    key = str(uuid.uuid4())
    # Both are under way at once, and either may win: who was executed is told first.
    saw = sorted(await asyncio.gather(clients.order(key), clients.order(key)), key=len)
    tell("Double click: the button is pressed twice", key, 2, saw)

    key = str(uuid.uuid4())
    await clients.give_up(key)
    saw = ["nothing: the network was gone", await clients.order(key)]
    tell("Lost response: the client gives up, and retries", key, 2, saw)

    key = str(uuid.uuid4())
    saw = [await clients.order(key, "12.50"), await clients.order(key, "99.00")]
    tell("Key reused: the same key with another amount", key, 2, saw)

    key = str(uuid.uuid4())
    saw = sorted(await asyncio.gather(*(clients.order(key) for _ in range(50))), key=len)
    tell("A storm: fifty copies at once", key, 50, saw)
    return scenes


def _summed(saw: list[str]) -> str:
    return ", ".join(f"{count} × {what}" if count > 1 else what for what, count in Counter(saw).items())


def table(scenes: list[Scene]) -> str:
    """The scenes as a table for a terminal."""
    heads = ("what happened", "sent", "executed", "what the clients saw")
    rows = [(scene.title, str(scene.sent), str(scene.executed), scene.saw) for scene in scenes]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(3)]

    def line(row: tuple[str, str, str, str]) -> str:
        return f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}"

    return "\n".join((line(heads), "  " + "─" * (sum(widths) + 6 + 22), *map(line, rows)))


def verdict(scenes: list[Scene]) -> tuple[bool, str]:
    """Whether nothing was executed twice (or not at all), and the sentence that says so."""
    sent, executed = sum(scene.sent for scene in scenes), sum(scene.executed for scene in scenes)
    wrong = [scene.title for scene in scenes if scene.executed != 1]
    if wrong:
        return False, f"Executed other than once: {'; '.join(wrong)}."
    return True, f"{sent} requests were sent for {len(scenes)} orders; the service executed {executed}."

"""A small order service that knows nothing of idempotency: every POST that reaches it is executed.

It takes its time over an order, as real ones do, and remembers how often each was executed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import Any

from aiohttp import web


def _json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """With an end of line, so that two answers of curl do not run into each other."""
    return web.Response(
        text=json.dumps(value) + "\n", status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


class OrderService:
    """Orders in memory. `executed` counts by idempotency key; keyless ones under the empty key."""

    def __init__(self, *, seconds_per_order: float = 0.15) -> None:
        self.seconds_per_order = seconds_per_order
        self.orders: list[dict[str, Any]] = []
        self.executed: Counter[str] = Counter()
        self.started = asyncio.Condition()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/orders", self._create)
        app.router.add_get("/orders", self._list)
        app.router.add_get("/", self._list)
        return app

    async def _create(self, request: web.Request) -> web.Response:
        try:
            order = json.loads(await request.read(), parse_float=Decimal)
            amount = Decimal(str(order["amount"]))
        except (ValueError, KeyError, TypeError, InvalidOperation):
            return _json({"error": 'send JSON such as {"item": "book", "amount": 12.50}'}, status=400)
        key = request.headers.get("Idempotency-Key", "")
        number = len(self.orders) + 1
        self.orders.append({"id": number, "item": str(order.get("item", "book")), "amount": f"{amount:.2f}"})
        self.executed[key] += 1
        async with self.started:
            self.started.notify_all()
        await asyncio.sleep(self.seconds_per_order)
        return _json(self.orders[number - 1], status=201, headers={"Location": f"/orders/{number}"})

    async def _list(self, _: web.Request) -> web.Response:
        return _json({"executed": len(self.orders), "orders": self.orders[-20:]})


async def serve(service: OrderService, host: str = "127.0.0.1", port: int = 0) -> tuple[web.AppRunner, int]:
    """Start it; the runner (clean it up in the end) and the port."""
    runner = web.AppRunner(service.app(), access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, runner.addresses[0][1]

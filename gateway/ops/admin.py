"""The admin listener: is it alive, is it ready, would it guard, and what has it counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from ..core.problem import Problem
from ..ports import Store
from .metrics import Tally

_IDENTITY_CHANGED = Problem.IDENTITY_CHANGED.slug


@dataclass(slots=True)
class Readiness:
    """Latches: `started` closes once, `stopping` closes once. `findings` are the store's, by name; `accept` is
    told that an operator knows of what the store lost, and says whether it lost anything."""

    store: Store
    note: str = ""
    started: bool = False
    stopping: bool = False
    findings: Callable[[], Mapping[str, str]] = dict
    accept: Callable[[], bool] = bool

    def guarded(self) -> str:
        """Why guarded routes would not be served; empty if they would."""
        if not self.started:
            return "the gate is starting"
        if self.stopping:
            return "the gate is stopping"
        if not self.store.available:
            trouble = self.store.trouble
            return trouble if trouble.startswith(_IDENTITY_CHANGED) else f"store-unavailable: {trouble}"
        return ""


def admin_app(
    readiness: Readiness, tally: Tally, extra: Callable[[web.Application], None] | None = None
) -> web.Application:
    """The application of the admin listener."""

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(_: web.Request) -> web.Response:
        # A store that is away does not clear it: unguarded traffic does not need the store.
        ok = readiness.started and not readiness.stopping
        told = {"status": "ready" if ok else "not ready", "store": readiness.store.kind}
        if readiness.note:
            told["note"] = readiness.note
        return web.json_response(told, status=200 if ok else 503)

    async def ready_guarded(_: web.Request) -> web.Response:
        why = readiness.guarded()
        told: dict[str, object] = {"status": "not ready", "reason": why} if why else {"status": "ready"}
        if findings := readiness.findings():
            told["findings"] = dict(findings)
        return web.json_response(told, status=503 if why else 200)

    async def accept(_: web.Request) -> web.Response:
        return web.json_response({"accepted": readiness.accept()})

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(tally.registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/live", live)
    app.router.add_get("/ready", ready)
    app.router.add_get("/ready/guarded", ready_guarded)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/store/accept", accept)
    if extra is not None:
        extra(app)
    return app

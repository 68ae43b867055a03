"""The admin listener: is it alive, is it ready, would it guard, and what has it counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry
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


@dataclass(frozen=True, slots=True)
class Ready:
    """Whether clients may be sent here, and `facts` beside it."""

    ready: bool
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guarded:
    """Why guarded routes would not be served, empty if they would; and what stands against the store."""

    why: str
    findings: Mapping[str, str] = field(default_factory=dict)


class Witness(Protocol):
    """Who is asked: this process of itself, or a parent of its workers."""

    async def ready(self) -> Ready: ...

    async def guarded(self) -> Guarded: ...

    async def accept(self) -> tuple[bool, str]:
        """Whether anything was lost and is accepted now; and why not all were told, if so."""
        ...

    async def metrics(self) -> CollectorRegistry: ...


@dataclass(frozen=True, slots=True)
class Itself:
    """The witness of a gate that is one process."""

    readiness: Readiness
    tally: Tally

    async def ready(self) -> Ready:
        # A store that is away does not clear it: unguarded traffic does not need the store.
        readiness = self.readiness
        facts = {"store": readiness.store.kind} | ({"note": readiness.note} if readiness.note else {})
        return Ready(readiness.started and not readiness.stopping, facts)

    async def guarded(self) -> Guarded:
        return Guarded(self.readiness.guarded(), self.readiness.findings())

    async def accept(self) -> tuple[bool, str]:
        return self.readiness.accept(), ""

    async def metrics(self) -> CollectorRegistry:
        return self.tally.registry


def admin_app(
    readiness: Readiness, tally: Tally, extra: Callable[[web.Application], None] | None = None
) -> web.Application:
    """The application of the admin listener of one process."""
    return admin_app_of(Itself(readiness, tally), extra)


def admin_app_of(witness: Witness, extra: Callable[[web.Application], None] | None = None) -> web.Application:
    """The application of the admin listener, which says what `witness` says."""

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(_: web.Request) -> web.Response:
        said = await witness.ready()
        told = {"status": "ready" if said.ready else "not ready", **said.facts}
        return web.json_response(told, status=200 if said.ready else 503)

    async def ready_guarded(_: web.Request) -> web.Response:
        said = await witness.guarded()
        told: dict[str, object] = {"status": "not ready", "reason": said.why} if said.why else {"status": "ready"}
        if said.findings:
            told["findings"] = dict(said.findings)
        return web.json_response(told, status=503 if said.why else 200)

    async def accept(_: web.Request) -> web.Response:
        accepted, why = await witness.accept()
        told: dict[str, object] = {"accepted": accepted}
        return web.json_response({**told, "reason": why} if why else told, status=503 if why else 200)

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(await witness.metrics()), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/live", live)
    app.router.add_get("/ready", ready)
    app.router.add_get("/ready/guarded", ready_guarded)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/store/accept", accept)
    if extra is not None:
        extra(app)
    return app

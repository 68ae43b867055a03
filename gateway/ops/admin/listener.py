"""The application of the admin listener: probes, metrics, and the rooms that are added to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from ..metrics import Tally
from . import problems
from .gatekeeper import Gatekeeper
from .readiness import Itself, Readiness, Witness

#: Bytes of one request: an answer that an operator gives, in base64, is the largest there is.
LONGEST_BODY = 4 << 20


def admin_app(
    readiness: Readiness,
    tally: Tally,
    extra: Callable[[web.Application], None] | None = None,
    gatekeeper: Gatekeeper = Gatekeeper(),  # noqa: B008  # a constant
) -> web.Application:
    """The application of the admin listener of one process."""
    return admin_app_of(Itself(readiness, tally), extra, gatekeeper)


def admin_app_of(
    witness: Witness,
    extra: Callable[[web.Application], None] | None = None,
    gatekeeper: Gatekeeper = Gatekeeper(),  # noqa: B008
) -> web.Application:
    """The application of the admin listener, which says what `witness` says; `extra` adds rooms of others."""

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(_: web.Request) -> web.Response:
        said = await witness.ready()
        return _readiness(said.why, said.facts)

    async def ready_guarded(_: web.Request) -> web.Response:
        said = await witness.guarded()
        return _readiness(said.why, {"findings": dict(said.findings)} if said.findings else {})

    async def accept(_: web.Request) -> web.Response:
        accepted, why = await witness.accept()
        told: dict[str, object] = {"accepted": accepted}
        return web.json_response({**told, "reason": why} if why else told, status=503 if why else 200)

    async def reload(_: web.Request) -> web.Response:
        if why := await witness.reread():
            raise problems.Failed(problems.AdminProblem.NOT_TAKEN_UP, why)
        return web.json_response({"reloaded": True})

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Hundreds of routes are megabytes, and half a second of work: requests go on meanwhile.
        body = await asyncio.to_thread(encode, await witness.metrics())
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application(middlewares=[problems.told, gatekeeper.middleware], client_max_size=LONGEST_BODY)
    app.router.add_get("/live", live)
    app.router.add_get("/ready", ready)
    app.router.add_get("/ready/guarded", ready_guarded)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/store/accept", accept)
    app.router.add_post("/reload", reload)
    if extra is not None:
        extra(app)
    return app


def _readiness(why: str, more: Mapping[str, object]) -> web.Response:
    told = {"status": "not ready", "reason": why} if why else {"status": "ready"}
    return web.json_response({**told, **more}, status=503 if why else 200)

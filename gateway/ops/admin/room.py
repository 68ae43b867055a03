"""/keys and its kin: what operators ask over HTTP, and the audit log beside it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from .audit import Audit, AuditFailed, Entry
from .desk import BadCursor, Desk, DeskAway
from .forms import (
    BulkCompleted,
    BulkReleased,
    BulkResolve,
    Change,
    Find,
    Forget,
    Json,
    Made,
    Once,
    Orders,
    Outcome,
    Query,
    Resolve,
    ResolveCompleted,
    Result,
    Shown,
    Step,
    Story,
    Verb,
    Which,
)
from .names import Names, Unnamed
from .openapi import document
from .problems import AdminProblem, Failed

T = TypeVar("T")

_FIND = TypeAdapter(Find)
_FORGET = TypeAdapter(Forget)
_QUERY = TypeAdapter(Query)
_RESOLVE: TypeAdapter[Any] = TypeAdapter(Resolve)
_BULK: TypeAdapter[Any] = TypeAdapter(BulkResolve)

#: The fields of a bulk change that say which records are meant.
_OF_A_WALK = set(Query.model_fields)
_REFUSED = {
    Outcome.GONE: AdminProblem.UNKNOWN,
    Outcome.CHANGED: AdminProblem.CHANGED,
    Outcome.NOT_IN_DOUBT: AdminProblem.NOT_IN_DOUBT,
    Outcome.IN_FLIGHT: AdminProblem.IN_FLIGHT,
    Outcome.AWAY: AdminProblem.STORE_AWAY,
    Outcome.UNKNOWN: AdminProblem.OUTCOME_UNKNOWN,
}


class Room:
    """The handlers. `configuration` tells the settings, secrets masked."""

    def __init__(
        self, desk: Desk, names: Callable[[], Names], audit: Audit, configuration: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._desk = desk
        self._names = names
        self._audit = audit
        self._configuration = configuration

    def add(self, app: web.Application) -> None:
        """Its routes."""
        router = app.router
        router.add_get("/keys", self.listed, allow_head=False)
        router.add_post("/keys/find", self.found)
        router.add_post("/keys/resolve", self.resolved_many)
        router.add_get("/keys/{name:[A-Za-z0-9_-]{43}}", self.shown, allow_head=False)
        router.add_post("/keys/{name:[A-Za-z0-9_-]{43}}/resolve", self.resolved)
        router.add_post("/keys/{name:[A-Za-z0-9_-]{43}}/forget", self.forgotten)
        router.add_get("/config", self.configured, allow_head=False)
        router.add_get("/openapi.json", self.documented, allow_head=False)

    # ── Looking ───────────────────────────────────────────────────────────────────────────────────

    async def listed(self, request: web.Request) -> web.Response:
        return _answer(await _asked(self._desk.walk(_query(request))))

    async def shown(self, request: web.Request) -> web.Response:
        return await self._story(request.match_info["name"])

    async def found(self, request: web.Request) -> web.Response:
        find = await _body(request, _FIND)
        try:
            name = self._names().of(find)
        except Unnamed as unnamed:
            raise _invalid([{"at": unnamed.where, "message": unnamed.why}]) from None
        return await self._story(name)

    async def _story(self, name: str) -> web.Response:
        record = await _asked(self._desk.look(name))
        if record is None:
            raise Failed(
                AdminProblem.UNKNOWN, "The key was never claimed, was freed, or its window is over.", name=name
            )
        return _answer(Story(record=record, duplicates=await _asked(self._desk.recent(name))))

    async def configured(self, request: web.Request) -> web.Response:
        return web.json_response(self._configuration())

    async def documented(self, request: web.Request) -> web.Response:
        return web.json_response(document())

    # ── Changing ──────────────────────────────────────────────────────────────────────────────────

    async def resolved(self, request: web.Request) -> web.Response:
        asked = await _body(request, _RESOLVE)
        answer = asked.answer if isinstance(asked, ResolveCompleted) else None
        verb = Verb.RELEASE if answer is None else Verb.COMPLETE
        return await self._once(request, asked, Orders(verb=verb, which=[], answer=answer, force=asked.force))

    async def forgotten(self, request: web.Request) -> web.Response:
        asked = await _body(request, _FORGET)
        return await self._once(request, asked, Orders(verb=Verb.FORGET, which=[], force=asked.force))

    async def _once(self, request: web.Request, asked: Once, orders: Orders) -> web.Response:
        which = Which(name=request.match_info["name"], version=asked.version)
        (result,), audit = await self._made(request, asked, orders.model_copy(update={"which": [which]}))
        if result.outcome is not Outcome.MADE:
            more: dict[str, Any] = {"audit": audit}
            if result.record is not None:
                more["record"] = result.record.model_dump(mode="json")
            raise Failed(_REFUSED[result.outcome], result.detail, **more)
        return _answer(Made(name=result.name, outcome=result.outcome, audit=audit))

    async def resolved_many(self, request: web.Request) -> web.Response:
        asked = cast(BulkCompleted | BulkReleased, await _body(request, _BULK))
        page = await _asked(self._desk.walk(Query.model_validate(asked.model_dump(include=_OF_A_WALK))))
        answer = asked.answer if isinstance(asked, BulkCompleted) else None
        if asked.dry_run:
            results = [
                Result(name=each.name, outcome=_would(each, answer is None), record=each) for each in page.records
            ]
            audit = "nothing to write"
        else:
            orders = Orders(
                verb=Verb.RELEASE if answer is None else Verb.COMPLETE,
                which=[Which(name=each.name, version=each.version) for each in page.records],
                answer=answer,
                force=asked.force,
            )
            results, audit = await self._made(request, asked, orders)
        step = Step(
            dry_run=asked.dry_run,
            results=results,
            cursor=page.cursor,
            walked=page.walked,
            progress=page.progress,
            audit=audit,
        )
        return _answer(step)

    async def _made(self, request: web.Request, asked: Change, orders: Orders) -> tuple[list[Result], str]:
        """What became of each; and whether that could be written down."""
        if not orders.which:
            return [], "nothing to write"
        about = _about(request, asked, orders)
        entries = [
            {"event": "asked", "id": secrets.token_hex(8), **about, "name": each.name, "version": each.version}
            for each in orders.which
        ]
        try:
            await self._audit.write(entries)
        except AuditFailed as failed:
            raise Failed(AdminProblem.AUDIT_FAILED, str(failed)) from failed
        try:
            results = await self._desk.change(orders)
        except DeskAway as away:
            outcome = Outcome.UNKNOWN if away.ambiguous else Outcome.AWAY
            results = [Result(name=each.name, outcome=outcome, detail=away.why) for each in orders.which]
        try:
            await self._audit.write([_ended(entry, each) for entry, each in zip(entries, results, strict=True)])
        except AuditFailed as failed:
            return results, f"the outcome could not be written down: {failed}"
        return results, "written"


def _about(request: web.Request, asked: Change, orders: Orders) -> Entry:
    """What an audit log says of a change: of an answer its status and size alone."""
    about: Entry = {"verb": orders.verb.value, "reason": asked.reason, "by": asked.by, "peer": request.remote}
    if orders.force:
        about["force"] = True
    if orders.answer is not None:
        about |= {"status": orders.answer.status, "body_bytes": len(orders.answer.bytes)}
    return about


def _ended(entry: Entry, result: Result) -> Entry:
    what = {"event": "ended", "id": entry["id"], "verb": entry["verb"], "name": entry["name"]}
    return {**what, "outcome": result.outcome.value, **({"detail": result.detail} if result.detail else {})}


def _would(record: Shown, release: bool) -> Outcome:
    """Of a dry run, as far as the record shows it."""
    if release and record.doubt == "lapsed" and record.version.startswith("1"):
        return Outcome.IN_FLIGHT
    return Outcome.WOULD


def _query(request: web.Request) -> Query:
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise _invalid([{"at": name, "message": "is repeated"}])
        given[name] = value
    return _read(_QUERY, lambda adapter: adapter.validate_strings(given))


async def _body(request: web.Request, adapter: TypeAdapter[T]) -> T:
    if request.content_type != "application/json":
        # Besides, a browser asks before it sends this type to another origin, and is not answered.
        raise web.HTTPUnsupportedMediaType(reason="Send application/json")
    body = await request.read()
    return _read(adapter, lambda adapter: adapter.validate_json(body))


def _read(adapter: TypeAdapter[T], read: Callable[[TypeAdapter[T]], T]) -> T:
    try:
        return read(adapter)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)
        raise _invalid([{"at": ".".join(map(str, each["loc"])), "message": each["msg"]} for each in wrong]) from None


def _invalid(errors: Sequence[Json]) -> Failed:
    first = errors[0]
    detail = f"{first['at']}: {first['message']}" if first["at"] else str(first["message"])
    return Failed(AdminProblem.INVALID, detail, errors=list(errors))


async def _asked(work: Any) -> Any:
    """What the desk says, its trouble as a problem."""
    try:
        return await work
    except DeskAway as away:
        raise Failed(AdminProblem.STORE_AWAY, away.why) from away
    except BadCursor as error:
        raise _invalid([{"at": "cursor", "message": str(error)}]) from None


def _answer(model: BaseModel) -> web.Response:
    return web.Response(body=model.model_dump_json().encode(), content_type="application/json")

"""The document of the operators' rooms (OpenAPI 3.1), made of the models that read and write them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from ... import __version__
from ...core.problem import PROBLEM_JSON
from .forms import BulkResolve, Find, Forget, Made, Problem, Query, Resolve, Step, Story, Walked

_REF = "#/components/schemas/{model}"
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The name of a record, as /keys and /keys/find tell it.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
}
_WHAT = {
    401: "A token is needed, or is another one",
    403: "Not without a token here, or not from a page of another origin",
    404: "Nothing is remembered under this name",
    409: "It has changed since it was shown, or cannot be changed so",
    413: "The body is too large",
    415: "The body is no application/json",
    422: "The request cannot be used",
    503: "The store or the audit log is away, or nobody knows whether it was made",
}


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The whole of it."""
    models: list[type[BaseModel]] = [Find, Forget, Made, Problem, Query, Step, Story, Walked]
    _, made = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas = made["$defs"]
    adapters: dict[str, TypeAdapter[Any]] = {"Resolve": TypeAdapter(Resolve), "BulkResolve": TypeAdapter(BulkResolve)}
    for name, adapter in adapters.items():
        schema = adapter.json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs")
        schemas[name] = schema
    query = schemas.pop("Query")
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": _without_null(schema)}
        for name, schema in query["properties"].items()
    ]
    looks, changes = (401, 403, 422, 503), (401, 403, 404, 409, 413, 415, 422, 503)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Oncegate: the keys of operators", "version": __version__},
        "security": [{"token": []}, {}],
        "paths": {
            "/keys": {"get": _operation("A page of a walk over all records", "Walked", looks, parameters=parameters)},
            "/keys/find": {
                "post": _operation("One key's story", "Story", (401, 403, 404, 413, 415, 422, 503), body="Find")
            },
            "/keys/resolve": {
                "post": _operation("One step of resolving many", "Step", (401, 403, 413, 415, 422, 503), "BulkResolve")
            },
            "/keys/{name}": {
                "parameters": [_NAME],
                "get": _operation("One record's story", "Story", (401, 403, 404, 503)),
            },
            "/keys/{name}/resolve": {
                "parameters": [_NAME],
                "post": _operation("Say what came of a doubt", "Made", changes, body="Resolve"),
            },
            "/keys/{name}/forget": {
                "parameters": [_NAME],
                "post": _operation("Remember nothing of it", "Made", changes, body="Forget"),
            },
            "/config": {"get": _operation("The settings, secrets masked", "", (401, 403))},
            "/openapi.json": {"get": _operation("This document", "", (401, 403))},
        },
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    summary: str, answer: str, failures: tuple[int, ...], body: str = "", parameters: list[Any] | None = None
) -> dict[str, Any]:
    schema = _ref(answer) if answer else {"type": "object"}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "As asked", "content": {"application/json": {"schema": schema}}},
            **{
                str(status): {
                    "description": _WHAT[status],
                    "content": {PROBLEM_JSON: {"schema": _ref("Problem")}},
                }
                for status in failures
            },
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return operation


def _ref(model: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=model)}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is left out is not there: `null` cannot be written in a query."""
    kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    if len(kinds) == 1:
        return {**rest, **kinds[0]}
    return {**schema} if not kinds else {**rest, "anyOf": kinds}

"""Requests that are made up with a key where a route looks for one, and the key that a route finds in them.

What a change of configuration does to live keys is asked of the code that reads keys, not of the fields that differ: a
single source names the same record wherever it stands, and the parts of a composite do not in another order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from .entity import steps
from .fields import Field
from .key import Unreadable, find
from .keyed import NO_RULE, Keyed, keyed
from .message import Request
from .policy import Policy
from .source import Place, Reader, Source


def carrying(method: bytes, target: bytes, policy: Policy) -> Iterator[Request]:
    """Requests of this method and target that carry a key, one for each field that may hold it. None where no request
    can: the path is too short, or one body would have to be JSON and a form."""
    if not policy.sources:
        for name in policy.headers:
            yield Request(method, target, ((name, b"key-1"),), b"")
    elif (request := _with(method, target, policy.sources)) is not None:
        yield request


def found_in(request: Request, policy: Policy) -> Keyed | Unreadable | None:
    """The key that a route of this policy finds there, whatever form it asks keys to have."""
    if policy.sources:
        return keyed(Reader(request), policy.sources, NO_RULE)
    key = find(request.fields, policy.headers)
    return key if key is None or isinstance(key, Unreadable) else Keyed(key)


def stretched(target: bytes, policy: Policy) -> bytes:
    """The target with as many segments as the route's key has need of."""
    most = max((int(source.name) for source in policy.sources if source.place is Place.PATH), default=0)
    path = target.rstrip(b"/")
    return path + b"/some" * (most - path.count(b"/")) if most > path.count(b"/") else target


def _with(method: bytes, target: bytes, sources: tuple[Source, ...]) -> Request | None:
    fields: list[Field] = []
    query: list[tuple[str, str]] = []
    form: list[tuple[str, str]] = []
    document: dict[str, Any] = {}
    segments = target.count(b"/")
    for number, source in enumerate(sources, 1):
        text, name = f"key-{number}", source.name
        match source.place:
            case Place.HEADER:
                fields.append((name.encode(), text.encode()))
            case Place.COOKIE:
                fields.append((b"cookie", f"{name}={text}".encode()))
            case Place.QUERY:
                query.append((name, text))
            case Place.FORM:
                form.append((name, text))
            case Place.BODY:
                if not _put(document, steps(name), text):
                    return None
            case Place.PATH:
                if int(name) > segments:
                    return None
    if document and form:
        return None
    if document:
        fields.append((b"content-type", b"application/json"))
    elif form:
        fields.append((b"content-type", b"application/x-www-form-urlencoded"))
    body = json.dumps(document) if document else urlencode(form)
    behind = f"?{urlencode(query)}" if query else ""
    return Request(method, target + behind.encode(), tuple(fields), body.encode())


def _put(document: dict[str, Any], path: list[str] | tuple[str, ...], text: str) -> bool:
    """Put `text` where a pointer leads; false where something else stands on the way."""
    for name in path[:-1]:
        document = document.setdefault(name, {})
        if not isinstance(document, dict):
            return False
    return bool(path) and document.setdefault(path[-1], text) == text

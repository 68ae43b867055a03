"""What went wrong, as RFC 9457 tells it. Of the unexpected the log hears, and the peer learns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ...core.problem import PROBLEM_JSON, written


class AdminProblem(Enum):
    """slug, status, title"""

    UNAUTHORIZED = "unauthorized", 401, "A token is needed"
    TOKEN_MISSING = "token-missing", 403, "This listener has no token, and is not on the loopback"
    FOREIGN = "foreign-origin", 403, "The request comes from a page of another origin"
    UNKNOWN = "key-unknown", 404, "Nothing is remembered under this name"
    CHANGED = "record-changed", 409, "The record is not the one that was shown"
    NOT_IN_DOUBT = "not-in-doubt", 409, "The record is not in doubt"
    IN_FLIGHT = "in-flight", 409, "The record is in flight"
    INVALID = "invalid", 422, "The request cannot be used"
    NOT_TAKEN_UP = "not-taken-up", 422, "The configuration was not taken up; what ran goes on"
    STORE_AWAY = "store-unavailable", 503, "The store cannot be asked; nothing was written"
    OUTCOME_UNKNOWN = "outcome-unknown", 503, "Nobody knows whether it was made; look again"
    AUDIT_FAILED = "audit-failed", 503, "The audit log cannot be written; nothing was changed"

    def __init__(self, slug: str, status: int, title: str) -> None:
        self.slug = slug
        self.status = status
        self.title = title


class Failed(Exception):
    """Ends a request with a problem; `more` stands beside its members."""

    def __init__(
        self, problem: AdminProblem, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.headers = headers
        self.more = more


def _answer(
    slug: str, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> web.Response:
    body = written(slug, status, title, detail, **more)
    return web.Response(body=body, status=status, content_type=PROBLEM_JSON, headers=headers)


@web.middleware
async def told(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure of a handler as a problem."""
    try:
        return await handler(request)
    except Failed as failed:
        problem = failed.problem
        return _answer(problem.slug, problem.status, problem.title, failed.detail, failed.headers, **failed.more)
    except web.HTTPException as error:
        phrase = HTTPStatus(error.status).phrase
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return _answer(phrase.lower().replace(" ", "-"), error.status, phrase, error.reason, allow)

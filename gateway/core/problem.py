"""Every refusal of the gate, in one table. RFC 9457 says how a problem is told.

`outcome` is for a gate in front of this one (`Idempotency-Outcome`): `no-effect` where this request
ran nothing, `unknown` where nobody knows, `keep` where it did run. `retry` is what an SDK is advised
(`X-Should-Retry`, `Stripe-Should-Retry`): True, False, or None for no advice.
"""

from __future__ import annotations

import json
from enum import Enum, StrEnum

from .limit import Limit
from .values import value


class Label(StrEnum):
    """The values of `Idempotency-Status`."""

    STORED = "stored"
    REPLAYED = "replayed"
    RELEASED = "released"
    IN_FLIGHT = "in-flight"
    IN_DOUBT = "in-doubt"
    NOT_KEPT = "not-kept"
    NOT_STORED = "not-stored"
    UNPROTECTED = "unprotected"
    REFUSED = "refused"


NO_EFFECT = "no-effect"
UNKNOWN = "unknown"
KEEP = "keep"

#: The media type of the body of a problem, and what its `type` begins with.
PROBLEM_JSON = "application/problem+json"
_URN = "urn:oncegate:problem:"


class Problem(Enum):
    """slug, status, title, what to do now, outcome, retry, label"""

    KEY_MISSING = (
        "key-missing",
        400,
        "This request needs an idempotency key",
        "Send the field Idempotency-Key with a fresh UUID for each operation, and the same one on every retry of it.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    KEY_INVALID = (
        "key-invalid",
        400,
        "The idempotency key cannot be read",
        "A key has 1 to 255 printable ASCII characters, sent once, bare or as a quoted string.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    SCOPE_MISSING = (
        "scope-missing",
        400,
        "The request does not say whose key this is",
        "Send the fields that this API's idempotency policy names as the scope of a key.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    SCOPE_INVALID = (
        "scope-invalid",
        401,
        "The request does not prove whose key this is",
        "Send a valid credential; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    SCOPE_UNVERIFIABLE = (
        "scope-unverifiable",
        503,
        "Whose key this is cannot be verified yet",
        "Nothing was run. Send the same request again in a moment.",
        NO_EFFECT,
        True,
        Label.REFUSED,
    )
    REQUEST_MALFORMED = (
        "request-malformed",
        400,
        "The request is not well-formed HTTP/1.1",
        "Correct the request; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    REQUEST_TIMEOUT = (
        "request-timeout",
        408,
        "The request did not arrive in time",
        "Send it again, with the same key; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    TARGET_TOO_LONG = (
        "target-too-long",
        414,
        "The request target is too long",
        "Move data from the query into the body; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    HEAD_TOO_LARGE = (
        "head-too-large",
        431,
        "The request's head is too large",
        "Send fewer or shorter fields; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    EXPECTATION_FAILED = (
        "expectation-failed",
        417,
        "The expectation is not supported",
        "Send Expect: 100-continue or no Expect field. The request was not executed.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    METHOD_NOT_ALLOWED = (
        "method-not-allowed",
        405,
        "The method is not allowed here",
        "Use one of the methods in the Allow field. The request was not executed.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    METHOD_UNSUPPORTED = (
        "method-unsupported",
        501,
        "The method is not supported",
        "Use a method that HTTP defines, in capital letters. The request was not executed.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    CODING_UNSUPPORTED = (
        "coding-unsupported",
        501,
        "The transfer coding is not supported",
        "Send the body chunked or with Content-Length; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    VERSION_UNSUPPORTED = (
        "version-unsupported",
        505,
        "The HTTP version is not supported",
        "Speak HTTP/1.1; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    KEY_REUSED = (
        "key-reused",
        422,
        "The idempotency key was used for another request",
        "Use a new key for a new operation; repeat a request unchanged to retry it. Nothing was run this time.",
        NO_EFFECT,
        False,
        Label.REFUSED,
    )
    CREDENTIALS_DIFFER = (
        "credentials-differ",
        422,
        "The idempotency key was used with other credentials",
        "The first request may have taken effect. Ask the service what became of it; do not send it again under a "
        "new key before you know. With the credentials of the first request its answer is replayed.",
        NO_EFFECT,
        False,
        Label.REFUSED,
    )
    IN_FLIGHT = (
        "in-flight",
        409,
        "A request with this key is still in flight",
        "Send the same request again in a moment: it will be given the first one's answer.",
        NO_EFFECT,
        True,
        Label.IN_FLIGHT,
    )
    IN_DOUBT = (
        "in-doubt",
        409,
        "Nobody knows whether the request with this key ran",
        "It was sent and no complete answer came back, so it will not be run again. Ask the service what became of "
        "it before you act; an operator can resolve the key.",
        UNKNOWN,
        False,
        Label.IN_DOUBT,
    )
    RESPONSE_NOT_KEPT = (
        "response-not-kept",
        409,
        "The request with this key ran, and its answer was not kept",
        "It is done and will not be run again; its answer was too large, or a stream. Read the result from the "
        "service.",
        KEEP,
        False,
        Label.NOT_KEPT,
    )
    POLICY_CHANGED = (
        "policy-changed",
        409,
        "The key was used under another policy of this API",
        "What counts as the same request has changed since, so the two cannot be compared. Nothing was run this time.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    BODY_TOO_LARGE = (
        "body-too-large",
        413,
        "The request's body is too large to be guarded",
        "Send a smaller body; nothing was run.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )
    STORE_UNAVAILABLE = (
        "store-unavailable",
        503,
        "The idempotency store is unavailable",
        "The request was not executed: without the store it could run twice. Retry the same request in a moment.",
        NO_EFFECT,
        True,
        Label.REFUSED,
    )
    IDENTITY_CHANGED = (
        "identity-changed",
        503,
        "The gate's configuration no longer names the store's keys",
        "Nothing was run. The operator must start the gate with --accept-new-keys or with the former configuration.",
        NO_EFFECT,
        True,
        Label.REFUSED,
    )
    OVERLOADED = (
        "overloaded",
        503,
        "The gate is at a limit",
        "Nothing was run. Send the same request again in a moment.",
        NO_EFFECT,
        True,
        Label.REFUSED,
    )
    UPSTREAM_UNREACHABLE = (
        "upstream-unreachable",
        502,
        "The service cannot be reached",
        "Nothing was run: no byte of the request reached the service. Send the same request again in a moment.",
        NO_EFFECT,
        True,
        Label.RELEASED,
    )
    UPSTREAM_LOST = (
        "upstream-lost",
        502,
        "The service's answer was lost",
        "The request was sent and no complete answer came back; nobody knows whether it ran. Ask the service before "
        "you act. The key is in doubt and will not be run again.",
        UNKNOWN,
        False,
        Label.IN_DOUBT,
    )
    UPSTREAM_TIMEOUT = (
        "upstream-timeout",
        504,
        "The service did not answer in time",
        "It may still do so: send the same request again, and you will be given its answer if one came.",
        UNKNOWN,
        True,
        Label.IN_DOUBT,
    )
    NO_ROUTE = (
        "no-route",
        404,
        "No route matches this request",
        "Check the Host and the path against the gate's configuration.",
        NO_EFFECT,
        None,
        Label.REFUSED,
    )

    def __init__(
        self, slug: str, status: int, title: str, detail: str, outcome: str, retry: bool | None, label: Label
    ) -> None:
        self.slug = slug
        self.status = status
        self.title = title
        self.detail = detail
        self.outcome = outcome
        self.retry = retry
        self.label = label
        self.type = _URN + slug


def written(slug: str, status: int, title: str, detail: str, **more: object) -> bytes:
    """Return the body of a problem (RFC 9457 §3), with the extension members `more`."""
    document = {"type": _URN + slug, "title": title, "status": status, "detail": detail, **more}
    return json.dumps(document, ensure_ascii=False).encode()


@value
class Refusal:
    """A problem as one request meets it. `more` is put before the problem's own advice, or `instead` in its place;
    `retry_after` is in seconds; `limit` is what it ran into, if that is why."""

    problem: Problem
    more: str = ""
    retry_after: int | None = None
    label: Label | None = None
    instead: str = ""
    limit: Limit | None = None

    @property
    def detail(self) -> str:
        """What to do now, for this request."""
        advice = self.instead or self.problem.detail
        return f"{self.more} {advice}" if self.more else advice

    @property
    def shown_as(self) -> Label:
        """The value of `Idempotency-Status`."""
        return self.label or self.problem.label

"""What the browser of a page elsewhere may be told (the Fetch standard's CORS protocol).

Without this a page reads a refusal as "network error", and whoever uses it clicks again. Preflights are the service's
to answer. Its answers stay as they are, but for one line where it lets the page read them at all: the names of the
gate's fields, which are then there to be read too.
"""

from __future__ import annotations

from ..core.fields import Fields

_FIELDS = b"Idempotency-Status, Idempotent-Replayed, Idempotency-Expires, Idempotency-First-Seen, Idempotency-Outcome"
EXPOSED = b"Access-Control-Expose-Headers: %b\r\n" % _FIELDS
_OF_PROBLEMS = (
    b"Access-Control-Expose-Headers: %b, Retry-After, X-Request-Id, X-Should-Retry, Stripe-Should-Retry\r\n" % _FIELDS
)
_VARY = b"Vary: Origin\r\n"
ALLOWS = b"access-control-allow-origin"


class Origins:
    """The origins whose pages may read what the gate says; or any, for a `*`."""

    def __init__(self, allowed: frozenset[bytes]) -> None:
        self._everyone = b"*" in allowed
        self._allowed = allowed

    def of_problem(self, fields: Fields) -> bytes:
        """The lines of a problem that answers a request with these fields. A page that is named may have sent its
        credentials, and is told nothing that is theirs."""
        if self._everyone:
            return b"Access-Control-Allow-Origin: *\r\n" + _OF_PROBLEMS if b"origin" in fields.shape.at else b""
        found = fields.all(b"origin")
        if len(found) != 1 or found[0] not in self._allowed:
            return _VARY
        return b"%bAccess-Control-Allow-Origin: %b\r\nAccess-Control-Allow-Credentials: true\r\n%b" % (
            _VARY,
            found[0],
            _OF_PROBLEMS,
        )

    def exposes(self, method: bytes, fields: Fields) -> bytes:
        """The line of an answer to such a request, where the service lets the page read it."""
        return EXPOSED if b"origin" in fields.shape.at and method != b"OPTIONS" else b""

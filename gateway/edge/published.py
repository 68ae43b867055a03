"""The policy where clients look for it: `GET /.well-known/idempotency` (RFC 8615) on the data listener.

The bytes are made from the configuration and from nothing else. A host is told of its own routes: which other hosts
there are is nobody's to know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

from ..core.document import document
from ..core.fields import Fields
from ..core.instant import http_date
from ..core.policy import Route, host_matcher
from .render import ALLOW, status_line

#: How long a client may go by what it has read, in seconds.
FRESH = 300


class Page:
    """The document as one host is told it."""

    __slots__ = ("body", "etag", "head")

    def __init__(self, routes: Sequence[Route]) -> None:
        self.body = json.dumps(document(routes), indent=2, ensure_ascii=False).encode() + b"\n"
        self.etag = b'"%b"' % blake2b(self.body, digest_size=12).hexdigest().encode()
        self.head = b"ETag: %b\r\nCache-Control: public, max-age=%d\r\n" % (self.etag, FRESH)


class Told:
    """It asks the gateway itself: for the published policy, or for what the server can do."""

    route: None = None

    def answer(
        self, method: bytes, host: bytes, fields: Fields, *, connection: bytes, wall: int, origin: bytes
    ) -> tuple[int, bytes]:
        """The status and bytes of the response. `wall` is in milliseconds since 1970."""
        raise NotImplementedError


class Published(Told):
    """The documents of one configuration, by what a request's Host matches."""

    def __init__(self, path: bytes, routes: Sequence[Route]) -> None:
        self.path = path
        self._routes = routes
        self._hosts = [(host, host_matcher(host)) for host in sorted({r.match.host for r in routes if r.match.host})]
        self._pages: dict[frozenset[str], Page] = {}
        self.page(b"")

    def asks(self, method: bytes, target: bytes) -> bool:
        """Whether a request is for the document. What else may be asked there is for the routes."""
        if not target.startswith(self.path) or method not in (b"GET", b"HEAD"):
            return False
        rest = target[len(self.path) :]
        return not rest or rest.startswith(b"?")

    def page(self, host: bytes) -> Page:
        """What a request to this Host is told. There are few: as many as sets of patterns that one host matches."""
        name = host.decode("latin-1").lower()
        mine = frozenset(pattern for pattern, matches in self._hosts if matches(name))
        page = self._pages.get(mine)
        if page is None:
            page = self._pages[mine] = Page(
                [route for route in self._routes if route.match.host is None or route.match.host in mine]
            )
        return page

    def answer(
        self, method: bytes, host: bytes, fields: Fields, *, connection: bytes, wall: int, origin: bytes
    ) -> tuple[int, bytes]:
        page = self.page(host)
        head = page.head + b"Date: %b\r\n" % http_date(wall // 1000) + origin + connection
        if _has(fields, page.etag):
            return 304, b"%b%b\r\n" % (status_line(304), head)
        framing = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(page.body)
        return 200, b"%b%b%b\r\n%b" % (status_line(200), head, framing, b"" if method == b"HEAD" else page.body)


class Asterisk(Told):
    """The answer to `OPTIONS *`, which asks for what the server as a whole can do (RFC 9110 §9.3.7)."""

    def answer(
        self, method: bytes, host: bytes, fields: Fields, *, connection: bytes, wall: int, origin: bytes
    ) -> tuple[int, bytes]:
        date = b"Date: %b\r\n" % http_date(wall // 1000)
        return 204, b"%b%b%b%b%b\r\n" % (status_line(204), ALLOW, date, origin, connection)


def _has(fields: Fields, etag: bytes) -> bool:
    """Whether the client has the document already (RFC 9110 §13.1.2; the comparison is weak)."""
    if b"if-none-match" not in fields.shape.at:
        return False
    members = b",".join(fields.all(b"if-none-match")).split(b",")
    return any(member.strip(b" \t").removeprefix(b"W/") in (etag, b"*") for member in members)

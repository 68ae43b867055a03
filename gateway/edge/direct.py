"""The short admission of a guarded request whose head looks like one that the admission remembers.

From its bytes to the machine of its key, without the objects that the general way makes. It decides nothing itself:
whatever is not plain is left to the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.decide import Guard
from ..core.fields import Fields, fields_of
from ..core.fingerprint import fingerprint
from ..core.key import Key, record_name
from ..core.message import Request
from ..core.policy import Route
from ..core.problem import Refusal
from ..core.sent import with_key
from ..engine.request import GuardedRequest
from .door import CANONICAL_HERE, Guarded, Head, scope_of
from .line import Line, Visit

if TYPE_CHECKING:
    from .shared import Shared


class DirectVisit(Visit):
    """Such a request, as the client of its machine. Its head is made if something asks for it."""

    http10 = False
    asked = True
    complete = True
    keep_alive = True

    def __init__(self, conn: Line, request: Request, route: Route, key: Key, started: float) -> None:
        self._conn = conn
        self._request = request
        self._route = route
        self._key = key
        self.size = self.reserved = len(request.body)
        self.started = started  # a visit that has not started would be begun, and its request admitted again

    def __getattr__(self, name: str) -> Any:
        request = self._request
        if name == "head":
            fields = fields_of(request.fields)
            self.head = Head(request.method, request.target, fields, "1.1", 0, secure=request.secure)
        elif name == "way":
            self.way = Guarded(self._route, Guard(self._key, ()))
        elif name == "chunks":
            self.chunks = []
        else:
            raise AttributeError(name)
        return getattr(self, name)


def admit_directly(
    server: Shared,
    conn: Line,
    peer: str,
    hop: str,
    secure: bool,
    certificate: bytes,
    read: tuple[bytes, bytes, Fields, bytes],
) -> tuple[DirectVisit, GuardedRequest] | None:
    """Make a guarded request of a message that was `read` whole. `peer` asked, `hop` handed it on, over TLS if
    `secure`; `certificate` is the SHA-256 of the client's, if it showed one. None, and nothing was done, if anything
    about it is not plain, or its body does not fit."""
    method, target, fields, body = read
    door = server.door
    met = door.recall(method, target, fields)
    if met is None or met.passes is not None:
        return None
    route = met.route
    policy = route.policy
    key, size = met.key_in(fields.values), len(body)
    if key is None or policy.bound or size > policy.max_request or not door.budget.has_room(size):
        return None
    if size >= CANONICAL_HERE and door.takes_long(route, body):
        return None
    scope = scope_of(route, fields, certificate) if policy.scope else ()
    if isinstance(scope, Refusal):
        return None
    request = Request(method, target, fields, body, peer, hop, secure)
    printed = fingerprint(request, policy.recipe, secret=door.secret, certificate=certificate)
    name = record_name(door.service, policy.namespace, scope, key, secret=door.secret)
    door.budget.take(size)
    door.meet(fields, route)
    driver = server.driver
    visit = DirectVisit(conn, request, route, key, driver.now())
    if policy.send_key:
        request = request._replace(fields=with_key(fields, policy.send_key, key, name))
    return visit, driver.request(visit, request, route, key, name, printed)


__all__ = ["DirectVisit", "admit_directly"]

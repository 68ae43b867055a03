"""The short admission of a guarded request whose head looks like one that the admission remembers.

From its bytes to the machine of its key, without the objects that the general way makes. It decides nothing itself:
whatever is not plain is left to the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.decide import Guard
from ..core.fields import Fields, fields_of
from ..core.fingerprint import fingerprint
from ..core.key import Key, plain_text, sent_name
from ..core.keyform import weakness
from ..core.message import Request
from ..core.policy import Route
from ..engine.request import GuardedRequest
from .door import CANONICAL_HERE, Framing, Guarded, Head, Met
from .visit import Host, Visit

if TYPE_CHECKING:
    from .shared import Shared


class DirectVisit(Visit):
    """Such a request, as the client of its machine. Its head is made if something asks for it."""

    http10 = False
    asked = True
    complete = True
    keep_alive = True

    def __init__(self, conn: Host, request: Request, route: Route, key: Key, started: float) -> None:
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
    server: Shared, conn: Host, peer: str, secure: bool, read: tuple[bytes, bytes, Fields, bytes]
) -> tuple[DirectVisit, GuardedRequest] | None:
    """Make a guarded request of a message that was `read` whole. None, and nothing was done, if anything about it is
    not plain, or its body does not fit."""
    method, target, fields, body = read
    door = server.door
    met = door.recall(method, target, fields)
    if met is None:
        return None
    if met.direct is None:
        met.direct = _is_direct(met, fields)
    if not met.direct:
        return None
    route = met.route
    policy = route.policy
    text, size = plain_text(fields.values[met.key]), len(body)
    if text is None or weakness(text) is not None or size > policy.max_request or not door.knows(fields):
        return None
    if not door.budget.has_room(size) or (size >= CANONICAL_HERE and door.takes_long(route, body)):
        return None
    request = Request(method, target, fields, body, peer, peer, secure)
    printed = fingerprint(request, policy.recipe, secret=door.secret)
    door.budget.take(size)
    door.fits(fields, route)
    key, driver = Key(text), server.driver
    visit = DirectVisit(conn, request, route, key, driver.now())
    name = sent_name(door.service, policy.namespace, text, secret=door.secret)
    return visit, driver.request(visit, request, route, key, name, printed)


def _is_direct(met: Met, fields: Fields) -> bool:
    policy = met.route.policy
    return (
        met.passes is None
        and met.key >= 0
        and fields.shape.made(Framing, Framing).length >= 0
        and not policy.bound
        and not policy.send_key
    )


__all__ = ["DirectVisit", "admit_directly"]

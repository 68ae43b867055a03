"""Whether what a route binds fits what its clients send.

A duplicate must repeat the credentials that its route binds. Some are made anew for every try (a signature over the
time, a challenge's answer): bound, they turn each honest retry into a 422. Others are not bound unless a route names
them: a request that is known by its signature alone can then be repeated by whoever knows its key. Neither shows before
a client sends it, so it is looked at as requests come, counted, and said once for each route.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.cookies import telling
from ..core.fields import Fields, Shape
from ..core.fingerprint import DEFAULT_BIND
from ..core.message import CREDENTIALS
from ..core.policy import Policy, Route

#: Schemes of Authorization that answer a challenge or sign the time: no two tries carry the same.
CHANGING = {
    b"aws4-hmac-sha256": "AWS SigV4",
    b"aws4-ecdsa-p256-sha256": "AWS SigV4A",
    b"digest": "Digest",
    b"hawk": "Hawk",
    b"mac": "MAC",
    b"negotiate": "Negotiate",
    b"oauth": "OAuth 1.0",
    b"signature": "Signature",
}
#: Fields that are made anew for every try.
_FRESH = {
    b"signature": "Signature",
    b"signature-input": "Signature-Input",
    b"dpop": "DPoP",
    b"x-amz-date": "X-Amz-Date",
    b"webhook-signature": "Webhook-Signature",
    b"webhook-timestamp": "Webhook-Timestamp",
    b"stripe-signature": "Stripe-Signature",
}
#: Those that say who sends a request.
_SIGNATURES = (b"signature", b"signature-input")
#: What a head of some shape may hold of this: where its Authorization is, and the names of fresh fields.
Suspects = tuple[int, tuple[bytes, ...]]
#: What the schemes begin with that nearly all clients send, and that stay the same: Bearer and Basic.
_STEADY = frozenset((b"Bear", b"bear", b"Basi", b"basi"))
_NOWHERE = -1


def suspects(shape: Shape) -> Suspects | None:
    """What of a head with these names has to be looked at; None where there is nothing."""
    places = shape.at.get(b"authorization", ())
    fresh = tuple(name for name in _FRESH if name in shape.at)
    return (places[0] if places else _NOWHERE, fresh) if places or fresh else None


#: The label of a request that only a signature identifies, if the route binds no part of it.
_UNBOUND = "unbound Signature"


def credentials(policy: Policy) -> frozenset[str]:
    """The labels under which requests of this policy can be counted as unfit."""
    bound = bound_by(policy)
    labels = {_FRESH[name] for name in _FRESH if name in bound}
    if b"authorization" in bound:
        labels |= set(CHANGING.values())
    if not elsewhere(policy):
        labels.add(_UNBOUND)
    return frozenset(labels)


class Fit:
    """Looks at guarded requests. `say` is told once for each route and credential, `count` for each request."""

    def __init__(self, say: Callable[[str], None], count: Callable[[str, str], None]) -> None:
        self._say = say
        self._count = count
        self._bound: dict[str, frozenset[bytes]] = {}
        self._said: set[tuple[str, str]] = set()

    def look(self, fields: Fields, route: Route) -> None:
        """At one request of this route, which costs next to nothing where it has no such fields."""
        found = fields.shape.made(suspects, suspects)
        if found is not None and (found[1] or fields.values[found[0]][:4] not in _STEADY):
            self._look(fields, route, *found)

    def _look(self, fields: Fields, route: Route, place: int, fresh: tuple[bytes, ...]) -> None:
        bound = self._bound_by(route)
        if place != _NOWHERE and b"authorization" in bound:
            scheme = CHANGING.get(fields.values[place].lstrip(b" \t").partition(b" ")[0].lower())
            if scheme is not None:
                self._changes(route, scheme, "Authorization")
        for name in fresh:
            if name in bound:
                self._changes(route, _FRESH[name], _FRESH[name])
        if (
            any(name in fresh for name in _SIGNATURES)
            and not _binds(fields, route.policy, bound.intersection(fields.shape.at))
            and not elsewhere(route.policy)
        ):
            self._anybody(route)

    def _bound_by(self, route: Route) -> frozenset[bytes]:
        bound = self._bound.get(route.name)
        if bound is None:
            bound = self._bound[route.name] = bound_by(route.policy)
        return bound

    def _changes(self, route: Route, credential: str, field: str) -> None:
        self._count(route.name, credential)
        self._once(
            route,
            credential,
            f"requests of route {route.name} carry {field} ({credential}), which is another on every try, and the "
            "route goes by it: no retry is then known as one (422 credentials-differ); name what stays the same, such "
            "as bind: [header:X-Client-Id]",
        )

    def _anybody(self, route: Route) -> None:
        self._count(route.name, _UNBOUND)
        self._once(
            route,
            _UNBOUND,
            f"requests of route {route.name} say who sends them by a Signature alone, and nothing of it is bound: "
            "whoever knows a key can be given its answer; bind a field that names the sender, such as "
            "bind: [header:X-Client-Id]",
        )

    def _once(self, route: Route, credential: str, what: str) -> None:
        if (route.name, credential) not in self._said:
            self._said.add((route.name, credential))
            self._say(what)


def _binds(fields: Fields, policy: Policy, there: frozenset[bytes]) -> bool:
    """Whether any of the fields that are there says whose a request is. Cookies of infrastructure do not, unless the
    route names the cookie or the field."""
    if there != {b"cookie"} or b"cookie" in policy.recipe.headers:
        return bool(there)
    sources = (*policy.recipe.bind, *(each.decode("latin-1") for each in policy.scope))
    if any(source.startswith("cookie:") or source == "header:cookie" for source in sources):
        return True
    return bool(telling(policy.recipe.ignore_cookies)(fields.all(b"cookie")))


def elsewhere(policy: Policy) -> bool:
    """Whether something that stands in no field (a certificate, a member of the body) says whose its requests are. A
    cookie stands in one."""
    sources = (*policy.recipe.elsewhere, *(each.decode("latin-1") for each in policy.scope))
    return any(not source.startswith(("header:", "cookie:", "jwt:")) for source in sources)


def bound_by(policy: Policy) -> frozenset[bytes]:
    """The names of fields, in lower case, whose values keep one sender's requests from another's, or that count as
    part of the request."""
    names = set(policy.recipe.headers)
    for source in (*policy.recipe.bind, *(each.decode("latin-1") for each in policy.scope)):
        if source == DEFAULT_BIND:
            names.update((*CREDENTIALS, b"cookie"))
        elif source.startswith("header:"):
            names.add(source.removeprefix("header:").encode())
        elif source.startswith("cookie:"):
            names.add(b"cookie")
        elif source.startswith("jwt:"):
            names.add(b"authorization")
    return frozenset(names)

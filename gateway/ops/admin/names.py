"""Which record a key has. The key's text is read, digested and let go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...core.key import COMPOSITE, LONGEST, SENT, Key, Unreadable, read, record_name, shadowed
from ...core.keyed import minted
from ...core.policy import Mode, Policy, Route
from ...core.scope import said
from ...core.source import Place
from .forms import Find


class Unnamed(ValueError):
    """What was said does not name a record: `why` quotes no key."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(why)
        self.where = where
        self.why = why


@dataclass(frozen=True, slots=True)
class Names:
    """By the service, the routes and the secret of a configuration."""

    service: bytes
    routes: Sequence[Route]
    secret: bytes = field(default=b"", repr=False)

    def of(self, find: Find) -> str:
        """The name of the key's record. Raises Unnamed."""
        policy = self._route(find.route).policy
        try:
            key = _key(find.key.encode("ascii"), policy)
        except UnicodeEncodeError:
            raise Unnamed("key", "has a character that is not ASCII") from None
        if isinstance(key, Unreadable):
            raise Unnamed("key", f"cannot be a key: {key.why}")
        origin = SENT if len(policy.sources) <= 1 else COMPOSITE
        origin = shadowed(origin) if policy.mode is Mode.SHADOW else origin
        parts = tuple((source, self._value(source, find.scope, policy)) for source in policy.scope)
        known = {source.decode("latin-1") for source in policy.scope}
        if others := sorted(set(map(str.lower, find.scope)) - set(map(str.lower, known))):
            told = f"its scope is {', '.join(sorted(known))}" if known else "it has no scope"
            raise Unnamed("scope", f"this route knows no {others[0][:100]}; {told}")
        return record_name(self.service, policy.namespace, parts, key, origin=origin, secret=self.secret).decode()

    def _value(self, source: bytes, scope: Mapping[str, str], policy: Policy) -> bytes:
        name = source.decode("latin-1")
        given = scope.get(name) or {each.lower(): value for each, value in scope.items()}.get(name.lower(), "")
        if not given.strip(" \t"):
            raise Unnamed("scope", f"{name} is missing: keys of this route belong to one")
        try:
            return said(source, given, policy.tokens)
        except ValueError as error:
            raise Unnamed("scope", f"{name}: {error}") from None

    def _route(self, label: str | None) -> Route:
        guarded = [route for route in self.routes if route.policy.guard]
        names = ", ".join(route.name for route in guarded)
        if label is not None:
            found = next((route for route in guarded if route.name == label), None)
            if found is None:
                raise Unnamed("route", f"no guarded route has this name; there are {names}")
            return found
        if not guarded:
            raise Unnamed("route", "no route of this gate is guarded")
        if len({_way(each.policy) for each in guarded}) > 1:
            raise Unnamed("route", f"is needed, since routes differ in namespace, scope or key; there are {names}")
        return guarded[0]


def _way(policy: Policy) -> tuple[object, ...]:
    """Return the parts of a policy that decide which record a key names."""
    return policy.namespace, policy.scope, policy.sources, policy.mode, policy.key_rule.spelling


#: The parts of a composite key, as `core.keyed` writes them.
_STRING = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'
_COMPOSITE = re.compile(f"({_STRING}), *".encode())


def _key(text: bytes, policy: Policy) -> Key | Unreadable:
    """The key that `text` spells where the policy finds keys: as its field has it, as it is, or part by part."""
    sources, canonical = policy.sources, policy.key_rule.format.canonical or bytes
    if not sources or (len(sources) == 1 and sources[0].place is Place.HEADER):
        key = read(text)
        return Key(canonical(key.text)) if isinstance(key, Key) else key
    if len(sources) == 1:
        if len(text) > LONGEST or not text.isascii() or not text.decode().isprintable():
            return Unreadable(f"a key has up to {LONGEST} printable ASCII characters")
        return Key(canonical(text))
    by_client = minted(sources)
    parts: list[bytes] = []
    at, rest = 0, text + b","
    while at < len(rest) and (found := _COMPOSITE.match(rest, at)) is not None:
        parts.append(found[1])
        at = found.end()
    if at < len(rest) or len(parts) != len(sources):
        order = ", ".join(map(str, sources))
        return Unreadable(f'it has {len(sources)} parts, each in quotation marks: "…", "…", in the order {order}')
    spelled = (canonical(part) if source in by_client else part for source, part in zip(sources, parts, strict=True))
    return Key(b", ".join(spelled))

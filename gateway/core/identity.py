"""What a gate's configuration makes of keys: two gates that differ in it do not find each other's records.

It stands in the store's marker, in words that a person can read, and is never secret: of `secret` there is
a keyed digest of a constant, by which another one shows. Names, order, windows and timeouts of routes are no
part of it, nor is what counts as the same request (that is compared with each record: `policy-changed`), nor are
routes in shadow, whose records protect nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .digest import Purpose, digest
from .keyed import minted
from .policy import Policy, Route

#: Of how records are named. Another one forgets every live key (tests/core/test_pinned.py).
FORMAT = 1

#: (namespace, scope, where a key is looked for) of a guarded route that enforces.
Keys = tuple[str, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Identity:
    """By what records are named. `keys` is a sorted set."""

    secret: str
    keys: tuple[Keys, ...]
    format: int = FORMAT

    @classmethod
    def of(cls, routes: Iterable[Route], secret: bytes = b"") -> Identity:
        """The identity of a configuration."""
        policies = [route.policy for route in routes if route.policy.enforced]
        keys = {(_text(policy.namespace), _scope(policy), _sources(policy)) for policy in policies}
        check = digest(Purpose.SECRET, (b"check",), secret)[:8] if secret else b""
        return cls(check.hex(), tuple(sorted(keys)))

    def as_json(self) -> dict[str, Any]:
        return {"format": self.format, "secret": self.secret, "keys": self.keys}

    @classmethod
    def from_json(cls, value: Any) -> Identity:
        """The identity that `as_json` told. Raises ValueError where that cannot be read."""
        try:
            keys = [(str(namespace), tuple(scope), tuple(sources)) for namespace, scope, sources in value["keys"]]
            return cls(str(value["secret"]), tuple(keys), int(value["format"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("no identity that this gate can read") from error

    def difference(self, other: Identity) -> str:
        """How `other` differs from this one, in words; empty where it does not."""
        if other.format != self.format:
            return f"it names records by format {other.format}, this gate by {self.format}"
        told = ["its `secret` is another"] if other.secret != self.secret else []
        told += [f"it has {_shown(keys)}" for keys in other.keys if keys not in self.keys]
        told += [f"this gate has {_shown(keys)}" for keys in self.keys if keys not in other.keys]
        if len(told) > 4:
            told[4:] = [f"and {len(told) - 4} more"]
        return "; ".join(told)


def _sources(policy: Policy) -> tuple[str, ...]:
    """Return the sources of a key: in any of some fields, or by all of the sources in their order. A format whose
    canonical spelling names records is part of it."""
    spelled = f" as {policy.key_rule.spelling}" if policy.key_rule.spelling else ""
    by_client = minted(policy.sources)
    sources = tuple(f"{source}{spelled if source in by_client else ''}" for source in policy.sources)
    return sources or tuple(sorted(_text(name) + spelled for name in policy.headers))


def _scope(policy: Policy) -> tuple[str, ...]:
    """A claim's issuer is part of what it says (`core.scope`)."""
    issuer = f" of {policy.tokens.issuer}" if policy.tokens is not None else ""
    return tuple(_text(source) + (issuer if source.startswith(b"jwt:") else "") for source in policy.scope)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _shown(keys: Keys) -> str:
    namespace, scope, sources = keys
    return f"namespace {namespace} (scope {', '.join(scope) or 'public'}; key from {', '.join(sources)})"


def dumped(value: dict[str, Any]) -> bytes:
    """JSON in the one spelling that is compared and pinned."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode()

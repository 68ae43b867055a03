"""One key per prefix and service that is always there: whose keys these are, and whether they are all still here.

It holds the identity of the gates that use it (core/identity.py) and, as `born`, a random word that whoever wrote
it first made up. Another identity: another configuration has taken the keys over, or this gate's has changed.
No marker, or one that was born anew: whatever else was here is gone too. (The run id does not show FLUSHALL; and
without `born` only the gate that writes the marker again would know that it had been away.)
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Literal

from ...core.identity import Identity, dumped
from ...core.problem import Problem
from ...ports import StoreAway
from .findings import Check, Finding, Severity
from .link import Link, pack
from .pipeline import RedisError, Reply

OnAmnesia = Literal["warn", "refuse"]
IDENTITY_CHANGED = Problem.IDENTITY_CHANGED.slug
AMNESIA = "amnesia"
#: Error replies of a server that has no room, too few replicas, or a disk that fails.
_NOT_NOW = ("OOM", "NOREPLICAS", "MISCONF")


@dataclass(frozen=True, slots=True)
class Trust:
    """What must hold before a store is trusted with claims. `accept_new_keys`: a marker of another identity is
    overwritten when it is first met."""

    check: Check = "strict"
    on_amnesia: OnAmnesia = "warn"
    service: str = "default"
    identity: Identity = field(default_factory=lambda: Identity.of(()))
    accept_new_keys: bool = False


def marker_key(prefix: str, service: str) -> bytes:
    """No record is called so under any prefix, nor another service's marker: neither the 43 characters of a
    record's name nor a service's name has a colon."""
    return f"{prefix}marker:{service}:".encode()


class Marker:
    """The marker as one process knows it."""

    def __init__(self, prefix: str, trust: Trust) -> None:
        self.key = marker_key(prefix, trust.service)
        self._identity = trust.identity
        self._accepts = trust.accept_new_keys
        self._severity = Severity.REFUSE if trust.on_amnesia == "refuse" else Severity.WARN
        self._born = ""
        self._difference = ""
        self._lost = 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        found = []
        if self._difference:
            found.append(differs(self.key, self._difference))
        if self._lost:
            times = "" if self._lost == 1 else f" ({self._lost} times)"
            found.append(
                Finding(
                    AMNESIA,
                    self._severity,
                    f"{self.key.decode()} vanished while this gate ran{times}, and the keys with it: Redis was "
                    "emptied, or came back without its data, and what had run may run again; find out why, then "
                    "POST /store/accept on the admin listener",
                )
            )
        return tuple(found)

    def accept(self) -> bool:
        """What was lost is known and accepted. False if nothing was."""
        lost, self._lost = self._lost, 0
        return lost > 0

    async def read(self, link: Link) -> None:
        """Look at it; write it where it is missing. Raises StoreAway where that was not answered."""
        value = await link.call(pack(b"GET", self.key))
        if isinstance(value, RedisError):
            raise StoreAway(f"Redis refused a look at its marker: {value}", ambiguous=False)
        if value is None:
            self._lost += bool(self._born)
            self._born = self._difference = ""
            value = await self._write(link)
            if value is None:
                return
        born, self._difference = read_marker(value, self._identity)
        if self._difference and self._accepts:
            await self._overwrite(link, born)
        if not self._difference:
            self._accepts = False  # once: whoever overwrites it later means this gate too
        if born and born != self._born:
            self._lost += bool(self._born)
            self._born = born

    async def _write(self, link: Link) -> bytes | None:
        """What stands there afterwards; None where Redis takes no writes for now. Then nothing can be claimed
        either, and it is written as soon as it can be."""
        mine = self._value(secrets.token_hex(8))
        found: Reply = await link.call(pack(b"SET", self.key, mine, b"NX", b"GET"))
        if isinstance(found, RedisError):
            if found.code in _NOT_NOW:
                return None
            raise StoreAway(f"Redis refused to keep a marker: {found}", ambiguous=False)
        return mine if found is None else bytes(found)

    async def _overwrite(self, link: Link, born: str) -> None:
        """XX, and born as it was: what is overwritten has not been away."""
        done: Reply = await link.call(pack(b"SET", self.key, self._value(born or secrets.token_hex(8)), b"XX"))
        if done == b"OK":
            self._difference = ""

    def _value(self, born: str) -> bytes:
        return dumped({"identity": self._identity.as_json(), "born": born})


def read_marker(value: bytes, mine: Identity) -> tuple[str, str]:
    """When a marker was born, and how its identity differs from `mine`."""
    try:
        told = json.loads(value)
        return str(told["born"]), mine.difference(Identity.from_json(told["identity"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", "it cannot be read by this version"


def differs(key: bytes, difference: str) -> Finding:
    """The finding about a marker of another identity."""
    return Finding(
        IDENTITY_CHANGED,
        Severity.REFUSE,
        f"{key.decode()} was written by gates of another configuration ({difference}), and under this one keys that "
        "live would not be found: go back to the former configuration, or start with --accept-new-keys",
    )

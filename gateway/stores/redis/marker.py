"""One key per prefix and service that is always there: whose keys these are, and whether they are all still here.

It holds the identity of the gates that use it (core/identity.py) and, as `born`, a random word that whoever wrote
it first made up. Another identity: another configuration has taken the keys over, or this gate's has changed.
No marker, or one that was born anew: whatever else was here is gone too. (The run id does not show FLUSHALL; and
without `born` only the gate that writes the marker again would know that it had been away.)

On a cluster every primary has one, under a name whose hash tag lies in one of its slots (cluster.py).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from ...core.identity import FORMAT, Identity, dumped
from ...core.problem import Problem
from ...ports import StoreAway
from ..findings import Finding, Severity
from .findings import Check
from .pipeline import RedisError, Reply, pack

OnAmnesia = Literal["warn", "refuse"]
#: Sends a command to where the marker is.
Ask = Callable[[bytes], Awaitable[Reply]]
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


def marker_key(prefix: str, service: str, tag: int | None = None) -> bytes:
    """No record is called so under any prefix, nor another service's marker: neither the 43 characters of a
    record's name nor a service's name has a colon. On a cluster `tag` decides in which slot it lies."""
    return f"{prefix}marker:{service}:{'' if tag is None else f'{{{tag}}}'}".encode()


def prefix_of(key: bytes) -> bytes:
    """What a marker's key, and every record's beside it, begins with."""
    return key.rsplit(b":", 2)[0].removesuffix(b"marker")


class Marker:
    """The marker as one process knows it."""

    def __init__(self, key: bytes, trust: Trust, *, accepts: bool) -> None:
        self.key = key
        self._identity = trust.identity
        self._accepts = accepts
        #: Whether it was another identity's when it was first met, and is this one's now.
        self.taken_over = False
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

    async def read(self, ask: Ask) -> None:
        """Look at it; write it where it is missing. Raises StoreAway where that was not answered."""
        value = await ask(pack(b"GET", self.key))
        if isinstance(value, RedisError):
            raise StoreAway(f"Redis refused a look at its marker: {value}", ambiguous=False)
        if value is None:
            self._lost += bool(self._born)
            self._born = self._difference = ""
            value = await self._write(ask)
            if value is None:
                return
        born, self._difference = read_marker(value, self._identity)
        if self._difference and (self._accepts or _names_nothing(value)):
            await self._overwrite(ask, born)
        if not self._difference:
            self._accepts = False  # once: whoever overwrites it later means this gate too
        if born and born != self._born:
            self._lost += bool(self._born)
            self._born = born

    async def take_over(self, ask: Ask) -> None:
        """Where it stands and is another identity's, it is this one's from now on."""
        value = await ask(pack(b"GET", self.key))
        if isinstance(value, bytes):
            born, difference = read_marker(value, self._identity)
            if difference:
                await self._overwrite(ask, born)

    async def _write(self, ask: Ask) -> bytes | None:
        """What stands there afterwards; None where Redis takes no writes for now. Then nothing can be claimed
        either, and it is written as soon as it can be."""
        mine = self._value(secrets.token_hex(8))
        found: Reply = await ask(pack(b"SET", self.key, mine, b"NX", b"GET"))
        if isinstance(found, RedisError):
            if found.code in _NOT_NOW:
                return None
            raise StoreAway(f"Redis refused to keep a marker: {found}", ambiguous=False)
        return mine if found is None else bytes(found)

    async def _overwrite(self, ask: Ask, born: str) -> None:
        """XX, and born as it was: what is overwritten has not been away."""
        done: Reply = await ask(pack(b"SET", self.key, self._value(born or secrets.token_hex(8)), b"XX"))
        if done == b"OK":
            self._difference = ""
            self.taken_over = True

    def _value(self, born: str) -> bytes:
        return dumped({"identity": self._identity.as_json(), "born": born})


def read_marker(value: bytes, mine: Identity) -> tuple[str, str]:
    """When a marker was born, and how its identity differs from `mine`."""
    try:
        told = json.loads(value)
        return str(told["born"]), mine.difference(Identity.from_json(told["identity"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", "it cannot be read by this version"


def _names_nothing(value: bytes) -> bool:
    """Whether a marker is that of gates that enforced nothing: whoever is first to enforce forgets no key."""
    try:
        found = Identity.from_json(json.loads(value)["identity"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return found.format == FORMAT and not found.keys


def differs(key: bytes, difference: str) -> Finding:
    """The finding about a marker of another identity."""
    return Finding(
        IDENTITY_CHANGED,
        Severity.REFUSE,
        f"{key.decode()} was written by gates of another configuration ({difference}), and under this one keys that "
        "live would not be found: go back to the former configuration, or start with --accept-new-keys",
    )

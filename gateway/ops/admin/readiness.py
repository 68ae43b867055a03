"""Is the gate alive, is it ready, would it guard: told by one process of itself, or by a parent of its workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry

from ...core.problem import Problem
from ...ports import Store
from ..metrics import Tally

_IDENTITY_CHANGED = Problem.IDENTITY_CHANGED.slug


async def _nothing_to_read() -> str:
    return "there is no file to read anew"


@dataclass(slots=True)
class Readiness:
    """Latches: `started` closes once, `stopping` closes once. `awaits_store` is true from a start without the store
    until the store was available once, or `startup_wait` is over. `findings` are the store's, by name; `exhausted` says
    whether no file descriptor is left; `accept` is
    told that an operator knows of what the store lost, and says whether it lost anything; `reread` reads the
    configuration anew, and says why it is not gone by, if so."""

    store: Store
    note: str = ""
    started: bool = False
    stopping: bool = False
    awaits_store: bool = False
    findings: Callable[[], Mapping[str, str]] = dict
    exhausted: Callable[[], bool] = bool
    accept: Callable[[], bool] = bool
    reread: Callable[[], Awaitable[str]] = _nothing_to_read

    def ready(self) -> str:
        """Return why clients may not be sent here; empty if they may.

        A store that is lost later changes nothing: unguarded traffic does not need it.
        """
        if not self.started:
            return "the gate is starting"
        if self.stopping:
            return "the gate is stopping"
        return self._store() if self.awaits_store else ""

    def guarded(self) -> str:
        """Why guarded routes would not be served; empty if they would."""
        if not self.started:
            return "the gate is starting"
        if self.stopping:
            return "the gate is stopping"
        if self.exhausted():
            return "file descriptors have run out: the service cannot be connected to (ulimit -n)"
        if why := self._store():
            return why
        refused = self.store.claims_refused
        return f"store-unavailable: {refused}" if refused else ""

    def _store(self) -> str:
        if self.store.available:
            return ""
        trouble = self.store.trouble
        return trouble if trouble.startswith(_IDENTITY_CHANGED) else f"store-unavailable: {trouble}"


@dataclass(frozen=True, slots=True)
class Ready:
    """Why clients may not be sent here, empty if they may; and `facts` beside it."""

    why: str
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guarded:
    """Why guarded routes would not be served, empty if they would; and what stands against the store."""

    why: str
    findings: Mapping[str, str] = field(default_factory=dict)


class Witness(Protocol):
    """Who is asked: this process of itself, or a parent of its workers."""

    async def ready(self) -> Ready: ...

    async def guarded(self) -> Guarded: ...

    async def accept(self) -> tuple[bool, str]:
        """Whether anything was lost and is accepted now; and why not all were told, if so."""
        ...

    async def reread(self) -> str:
        """Read the configuration anew, and go by it. Why not; empty where it was taken up."""
        ...

    async def metrics(self) -> CollectorRegistry:
        """Return a registry of the present values, which a thread may render."""
        ...


@dataclass(frozen=True, slots=True)
class Itself:
    """The witness of a gate that is one process."""

    readiness: Readiness
    tally: Tally

    async def ready(self) -> Ready:
        readiness = self.readiness
        facts = {"store": readiness.store.kind} | ({"note": readiness.note} if readiness.note else {})
        return Ready(readiness.ready(), facts)

    async def guarded(self) -> Guarded:
        return Guarded(self.readiness.guarded(), self.readiness.findings())

    async def accept(self) -> tuple[bool, str]:
        return self.readiness.accept(), ""

    async def reread(self) -> str:
        return await self.readiness.reread()

    async def metrics(self) -> CollectorRegistry:
        return self.tally.copy().registry

"""Which primary has a record: the one that there is, or on a cluster (cluster.py) the one that has its slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...ports import Observer
from ..findings import Finding
from .bells import Bells
from .marker import Marker, Trust, marker_key
from .pipeline import RedisError, Reply
from .primary import Common, Primary
from .sentinels import finder_of
from .servers import Servers

#: Error replies by which a cluster names the primary to ask instead. Nothing was done.
REDIRECTS = ("MOVED", "ASK")


def sent_on(reply: Reply) -> RedisError | None:
    """Where a reply, or one of a list of them, names another primary."""
    for each in reply if isinstance(reply, list) else (reply,):
        if isinstance(each, RedisError) and each.code in REDIRECTS:
            return each
    return None


class Fleet(Protocol):
    """The primaries of a store."""

    bells: Bells

    async def open(self) -> None:
        """As `Store.open`."""

    async def close(self) -> None: ...

    def of(self, key: bytes) -> Primary:
        """Where this key is. Raises StoreAway where nobody has it."""

    async def follow(
        self,
        primary: Primary,
        commands: tuple[bytes, ...],
        reply: Reply,
        *,
        claims: bool = False,
        wrote: Callable[[Reply], bool] | None = None,
    ) -> tuple[Primary, Reply]:
        """The reply to `commands` of a primary that sends nobody elsewhere, given the one of a primary that did.
        `claims`: only where a claim may be made; `wrote`: as for `Waited.call`. Raises StoreAway."""

    @property
    def primaries(self) -> tuple[Primary, ...]:
        """All of them, in an order that stays while they stay."""

    @property
    def trouble(self) -> str:
        """Why no claim can be made anywhere; empty while one can."""

    @property
    def claims_refused(self) -> str:
        """As `Store.claims_refused`: empty while one primary accepts claims."""

    @property
    def findings(self) -> tuple[Finding, ...]: ...

    @property
    def flushes(self) -> int: ...

    def accept(self) -> bool:
        """What was lost is known, and claims go on. False if nothing was lost."""


class One:
    """A store of one primary."""

    def __init__(
        self,
        servers: Servers,
        observer: Observer,
        prefix: str,
        trust: Trust,
        say: Callable[..., None],
        changed: Callable[[], None],
    ) -> None:
        finder = finder_of(servers)
        self.bells = Bells(observer, lambda _: self._primary.ear)
        common = Common(servers, observer, self.bells, trust.check, say)
        marker = Marker(marker_key(prefix, trust.service), trust, accepts=trust.accept_new_keys)
        self._primary = Primary(common, finder, marker, lambda _: changed())

    async def open(self) -> None:
        await self._primary.open()

    async def close(self) -> None:
        await self.bells.close()
        await self._primary.close()

    def of(self, key: bytes) -> Primary:
        return self._primary

    async def follow(
        self,
        primary: Primary,
        commands: tuple[bytes, ...],
        reply: Reply,
        *,
        claims: bool = False,
        wrote: Callable[[Reply], bool] | None = None,
    ) -> tuple[Primary, Reply]:
        return primary, reply  # it is a cluster's node, and refused as that

    @property
    def primaries(self) -> tuple[Primary, ...]:
        return (self._primary,)

    @property
    def trouble(self) -> str:
        return self._primary.trouble

    @property
    def claims_refused(self) -> str:
        return self._primary.claims_refused

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._primary.findings

    @property
    def flushes(self) -> int:
        return self._primary.main.pipeline.flushes if self._primary.main.pipeline is not None else 0

    def accept(self) -> bool:
        return self._primary.accept()

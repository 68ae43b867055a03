"""Which primary has a record: the one that there is, or on a cluster (cluster.py) the one that has its slot."""

from __future__ import annotations

from collections.abc import Callable

from ...ports import Observer
from ..findings import Finding
from .bells import Bells, Ear
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


class Fleet:
    """The primaries of a store: here there is one. `changed` is called whenever it may have become fit or unfit."""

    _primary: Primary

    def __init__(
        self,
        servers: Servers,
        observer: Observer,
        prefix: str,
        trust: Trust,
        say: Callable[..., None],
        changed: Callable[[], None],
    ) -> None:
        self._servers = servers
        self._observer = observer
        self._prefix = prefix
        self._trust = trust
        self._told = changed
        self.bells = Bells(observer, self._ear, self._ear_moved)
        self._common = Common(servers, observer, self.bells, trust.check, say, self._ask_marker)
        self._mapped: tuple[Primary, ...] = ()
        #: Why no primary is known.
        self._unknown = ""
        if not servers.cluster:
            marker = Marker(marker_key(prefix, trust.service), trust, accepts=trust.accept_new_keys)
            self._primary = Primary(self._common, finder_of(servers), marker, lambda _: changed())
            self._mapped = (self._primary,)

    async def open(self) -> None:
        """As `Store.open`."""
        await self._primary.open()

    async def close(self) -> None:
        await self._primary.close()

    def of(self, key: bytes) -> Primary:
        """Where this key is. Raises StoreAway where nobody has it."""
        return self._primary

    async def follow(
        self,
        primary: Primary,
        commands: tuple[bytes, ...],
        reply: Reply,
        *,
        claims: bool = False,
        waits: bool = False,
    ) -> tuple[Primary, Reply]:
        """The reply to `commands` of a primary that sends nobody elsewhere, given the one of a primary that did.
        `claims`: only where a claim may be made; `waits`: what was written must be with the replicas, if the
        durability asks for that. Raises StoreAway."""
        return primary, reply  # it is a cluster's node, and refused as that

    @property
    def primaries(self) -> tuple[Primary, ...]:
        """All of them, in an order that stays while they stay."""
        return self._mapped

    @property
    def trouble(self) -> str:
        """Why no claim can be made anywhere; empty while one can."""
        troubles = [primary.trouble for primary in self._mapped]
        return "" if "" in troubles else next(iter(troubles), self._unknown)

    @property
    def claims_refused(self) -> str:
        """As `Store.claims_refused`: empty while one primary accepts claims."""
        refused = [primary.claims_refused for primary in self._mapped]
        return "" if "" in refused else next(iter(refused), "")

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._primary.findings

    def accept(self) -> bool:
        """What was lost is known, and claims go on. False if nothing was lost."""
        return self._primary.accept()

    def _ear(self, key: bytes) -> Ear | None:
        """The Ear at the primary that has this key."""
        return self._primary.ear

    def _ear_moved(self, ear: Ear, error: RedisError) -> None:
        """A primary, by its Ear, has named another for a channel."""

    async def _ask_marker(self, primary: Primary, packed: bytes) -> Reply:
        reply = await primary.main.call(packed)
        return (await self.follow(primary, (packed,), reply))[1]

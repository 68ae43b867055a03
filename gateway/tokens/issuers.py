"""All issuers that a configuration trusts, and the watch over their keys."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..core.policy import Policy
from ..core.scope import Prove, Tokens
from ..ports import Clock
from ..tasks import Tasks

if TYPE_CHECKING:
    from .verify import Verifier

Name = tuple[Tokens, frozenset[str]]


class Issuers:
    """The issuers of the policies that it follows. `provers` verify their tokens."""

    def __init__(
        self,
        clock: Clock,
        say: Callable[..., None],
        failed: Callable[[BaseException], None],
        context: Callable[[str], ssl.SSLContext],
    ) -> None:
        self._clock = clock
        self._say = say
        self._context = context
        self._verifiers: dict[Name, Verifier] = {}
        self._watches: dict[Name, asyncio.Task[None]] = {}
        self._tasks = Tasks(failed)

    @property
    def provers(self) -> dict[Tokens, Prove]:
        return {tokens: verifier.prove for (tokens, _), verifier in self._verifiers.items()}

    async def follow(self, policies: Iterable[Policy]) -> None:
        """Know the issuers of these policies and no others. The keys of new ones are fetched once, and watched from
        then on; that they cannot be had is no error: what needs them is refused until they are there."""
        claims: dict[Tokens, set[str]] = {}
        for policy in policies:
            named = {source.removeprefix(b"jwt:").decode() for source in policy.scope if source.startswith(b"jwt:")}
            if policy.tokens is not None and named:
                claims.setdefault(policy.tokens, set()).update(named)
        names = [(tokens, frozenset(each)) for tokens, each in claims.items()]
        fresh = {name: self._verifier(name) for name in names if name not in self._verifiers}
        await asyncio.gather(*(verifier.keys.fetch() for verifier in fresh.values()))
        for name, verifier in fresh.items():
            self._watches[name] = self._tasks.start(verifier.keys.watch())
        for name in self._verifiers.keys() - set(names):
            self._watches.pop(name).cancel()
        known = self._verifiers | fresh
        self._verifiers = {name: known[name] for name in names}

    def _verifier(self, name: Name) -> Verifier:
        # Verifying takes 15 MiB of libraries, which only those keep in memory who verify.
        from .keys import Keys
        from .verify import Verifier

        tokens, claims = name
        context = None if tokens.ca is None else self._context(tokens.ca)
        return Verifier(Keys(tokens, self._clock, self._say, context=context), self._clock, claims)

    async def close(self) -> None:
        """Watch no more."""
        await self._tasks.cancel()


__all__ = ["Issuers"]

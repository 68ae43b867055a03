"""A subscription that a test awaits. The gateway itself is called back."""

from __future__ import annotations

import asyncio
from typing import Self

from gateway.awaitable import AwaitableStore
from gateway.ports import Subscription


class Bell:
    """A subscription that one waiter awaits."""

    def __init__(self) -> None:
        self._rang = asyncio.Event()
        self.subscription = Subscription()

    @property
    def hears(self) -> bool:
        """Whether a settlement made now would ring."""
        return self.subscription.active

    def ring(self) -> None:
        """Wake the waiter, or the next call of `rung`."""
        self._rang.set()

    async def rung(self, seconds: float) -> bool:
        """Wait for a ring, at most so long; return whether there was one. A ring that came before counts once."""
        try:
            async with asyncio.timeout(seconds):
                await self._rang.wait()
        except TimeoutError:
            return False
        self._rang.clear()
        return True

    def close(self) -> None:
        """End the subscription."""
        self.subscription.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listen(store: AwaitableStore, name: bytes) -> Bell:
    """Return a bell that rings when `Store.subscribe` would notify. The caller closes it."""
    bell = Bell()
    bell.subscription = store.port.subscribe(name, bell.ring)
    return bell

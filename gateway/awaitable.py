"""A store for callers that await.

`AwaitableStore` wraps a `ports.Store`: each verb returns its reply, or raises the StoreAway that came instead. A call
that is cancelled may have been done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from .core.record import Done, Found, NewClaim, NewKeep, Record, Settlement, Stamp
from .ports import Store


async def result_of(call: Callable[..., None], *arguments: Any) -> Any:
    """Make a call that takes a reply as its last argument, and return what the reply receives. Raises it if it is an
    exception."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    call(*arguments, partial(resolve, future))
    return await future


def resolve(future: asyncio.Future[Any], result: Any) -> None:
    """End a future with the result of a call. Does nothing if the future is cancelled."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class AwaitableStore:
    """The store `port` with awaitable verbs. Everything else is the store's own."""

    def __init__(self, port: Store) -> None:
        self.port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self.port, name)

    @property
    def kind(self) -> str:
        return self.port.kind

    @property
    def available(self) -> bool:
        return self.port.available

    @property
    def trouble(self) -> str:
        return self.port.trouble

    @property
    def claims_refused(self) -> str:
        return self.port.claims_refused

    async def open(self) -> None:
        await self.port.open()

    async def close(self) -> None:
        await self.port.close()

    async def claim(self, name: bytes, claim: Record | NewClaim) -> Done | Found:
        """As `Store.claim`; a completed record is always returned as Found. Raises StoreAway."""
        record = claim.record if isinstance(claim, NewClaim) else claim
        result: Done | Found = await result_of(self.port.claim, name, record)
        return result

    async def settle(self, name: bytes, settlement: Settlement | NewKeep) -> Done | Found:
        """As `Store.settle`. Raises StoreAway."""
        result: Done | Found = await result_of(self.port.settle, name, settlement)
        return result

    async def compare_and_swap(self, name: bytes, precondition: Stamp, to: Record | None) -> Done | Found:
        """As `Store.compare_and_swap`. Raises StoreAway."""
        result: Done | Found = await result_of(self.port.compare_and_swap, name, precondition, to)
        return result

    async def get(self, name: bytes) -> Found | None:
        """As `Store.get`. Raises StoreAway."""
        found: Found | None = await result_of(self.port.get, name)
        return found

    async def wait_available(self, seconds: float) -> bool:
        """Wait until the store is available, at most so long; return whether it is."""
        available: bool = await result_of(self.port.when_available, seconds)
        return available

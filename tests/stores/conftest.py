from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.stores.worlds import WORLDS, World, close_servers


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    yield
    close_servers()


@pytest.fixture
async def world(kind: str) -> AsyncIterator[World]:
    """A fresh store of this kind, open."""
    world = WORLDS[kind]()
    await world.store.open()
    yield world
    await world.close()

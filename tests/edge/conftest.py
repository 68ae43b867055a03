from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tests.edge.stand import ByHand
from tests.harness import Origin


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """A module that says BOTH_LOOPS runs on the standard loop too."""
    if getattr(item.getparent(pytest.Module).module, "BOTH_LOOPS", False):  # type: ignore[attr-defined, union-attr]
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return None


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """An origin that parses what it is sent with h11, strictly, and counts effects by key."""
    origin = await Origin().start()
    yield origin
    await origin.stop()


@pytest.fixture
async def hand() -> AsyncIterator[ByHand]:
    """An origin whose every byte the test writes."""
    origin = await ByHand().start()
    yield origin
    await origin.stop()


@pytest.fixture
async def narrow() -> AsyncIterator[ByHand]:
    """The same, with sockets that take little before they stall."""
    origin = await ByHand(narrow=True).start()
    yield origin
    await origin.stop()

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.edge.stand import ByHand
from tests.harness import Origin


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

"""The writer's thread outlives what nobody foresaw."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from gateway.core.record import Done
from gateway.ports import StoreAway
from tests.stores.worlds import SqliteWorld, a_claim


async def test_a_row_that_is_no_record_stops_nobody_else() -> None:
    """Something else wrote text where a record stands: that key's call fails, and the next key's is answered."""
    world = SqliteWorld()
    await world.store.open()
    broken, good = b"b" * 43, b"g" * 43
    assert await world.store.claim(broken, a_claim()) is Done.WON
    with sqlite3.connect(f"{world.folder.name}/keys.db") as other:
        other.execute("UPDATE records SET value = ? WHERE name = ?", ("text" * 100, broken))
    other.close()
    async with asyncio.timeout(10):
        with pytest.raises(StoreAway):
            await world.store.claim(broken, a_claim())
        assert await world.store.claim(good, a_claim()) is Done.WON
        await world.close()

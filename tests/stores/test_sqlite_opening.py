"""One fresh file, opened by several processes in the same instant."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from gateway.awaitable import AwaitableStore
from gateway.clock import HostClock
from gateway.core.record import Done
from gateway.stores.sqlite import SqliteStore
from tests.stores.worlds import a_claim

PROCESSES = 6
FILES = 150
NAME = b"n" * 43


def opens_them_all(folder: Path, ready: Barrier, told: SimpleQueue[list[str]]) -> None:
    """One process: it opens each of the files when all others do, and claims the same key in it."""

    async def opens(file: Path) -> str:
        store = AwaitableStore(SqliteStore(file, HostClock(), durability="process"))
        ready.wait(20)
        try:
            await store.open()
            return "won" if await store.claim(NAME, a_claim()) is Done.WON else "shown"
        except Exception as error:
            return f"{type(error).__name__}: {error}".replace(str(file), "FILE")
        finally:
            await store.close()

    told.put([asyncio.run(opens(folder / f"{number}.db")) for number in range(FILES)])


def test_a_fresh_file_is_opened_by_many_processes_at_once(tmp_path: Path) -> None:
    """Six processes open a file that is not there yet, in the same instant, 150 times over: each opens it every
    time, and of the key that all of them claim in it one has it."""
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Barrier(PROCESSES), spawn.SimpleQueue()
    processes = [
        spawn.Process(target=opens_them_all, args=(tmp_path, ready, told), daemon=True) for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    by_process = [told.get() for _ in processes]
    for process in processes:
        process.join(20)
    for number, each in enumerate(zip(*by_process, strict=True)):
        assert sorted(each) == ["shown"] * (PROCESSES - 1) + ["won"], f"file {number}"

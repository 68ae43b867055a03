"""Who changed what, and why: one JSON line each, in a file and in the log.

Before a change is made it is written down that it was asked for; after it, what became of it; both are on the disk
before the operator has an answer. A gate that dies between the two leaves `asked` without an end: what it did is
then read from the record. No key, body or credential is in it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...core.instant import instant
from ...ports import Clock

Entry = dict[str, Any]


class AuditFailed(Exception):
    """The file could not be written."""


class Audit:
    """`path`: the file, opened anew for each entry, so that it may be moved away; None for the log alone. `say` writes
    to the log."""

    def __init__(self, path: str | None, clock: Clock, say: Callable[..., None]) -> None:
        self._path = None if path is None else Path(path)
        self._clock = clock
        self._say = say
        self._turn = asyncio.Lock()

    async def write(self, entries: Sequence[Entry]) -> None:
        """All of them, on the disk when this returns. Raises AuditFailed, with none of them written."""
        if not entries:
            return
        time = instant(self._clock.wall()).decode()
        if self._path is not None:
            lines = "".join(json.dumps({"time": time, **entry}) + "\n" for entry in entries).encode()
            async with self._turn:
                try:
                    await asyncio.to_thread(_append, self._path, lines)
                except OSError as error:
                    self._say("alarm", "the audit log cannot be written", path=str(self._path), error=str(error))
                    raise AuditFailed(f"{self._path}: {error.strerror or error}") from error
        for entry in entries:
            self._say("audit", entry["event"], **{name: said for name, said in entry.items() if name != "event"})


def _append(path: Path, lines: bytes) -> None:
    fresh = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)  # half a line would spoil the next one
            raise
    finally:
        os.close(descriptor)
    if fresh:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

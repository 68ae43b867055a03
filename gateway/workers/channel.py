"""A socket pair between a parent and one worker: one JSON object per line, either way.

Its end is the message that matters most: a parent that reads it knows that the worker is gone, a worker that
reads it has no parent any more.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

#: Bytes of one message: a configuration, or a tally.
_LONGEST = 64 << 20
#: Bytes that may wait for a parent that does not read.
_UNREAD = 4 << 20


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        return cls(*await asyncio.open_connection(sock=end, limit=_LONGEST))

    @property
    def choked(self) -> bool:
        return self._writer.transport.get_write_buffer_size() > _UNREAD

    def say(self, **what: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(what).encode() + b"\n")

    async def hear(self) -> dict[str, Any] | None:
        """The next message; None when the other end is gone."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    async def close(self) -> None:
        """What was said is written first."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass

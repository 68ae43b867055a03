"""The log of one of several workers: their lines come out of one stdout, and each says whose it is."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import TextIO, cast

from ..ports import Account, Clock
from .log import Log

#: A write to a pipe up to this size is never mixed with another's.
_PIECE = select.PIPE_BUF


class WorkerLog(Log):
    """Says `worker` in every line."""

    def __init__(
        self, worker: int, clock: Clock, *, as_json: bool, keys: bool = False, encoding: str = "utf-8"
    ) -> None:
        self._worker = worker
        super().__init__(cast(TextIO, Whole(1, encoding)), clock, as_json=as_json, keys=keys)

    def _line(self, level: str, what: str, facts: dict[str, object]) -> str:
        return super()._line(level, what, {**facts, "worker": self._worker})

    def _json(self, account: Account) -> str:
        return f'{super()._json(account)[:-1]},"worker":{self._worker}}}'

    def _text(self, account: Account) -> str:
        return f"{super()._text(account)} worker={self._worker}"


class Whole:
    """A descriptor to which lines are written whole: as many at once as a pipe takes in one piece. A single line
    that is longer may be mixed with others' where stdout is a pipe."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._descriptor = descriptor
        self.encoding = encoding

    def write(self, text: str) -> None:
        for piece in pieces(text.encode(self.encoding, "backslashreplace"), _PIECE):
            done = 0
            while done < len(piece):
                done += os.write(self._descriptor, piece[done:])

    def flush(self) -> None: ...


def pieces(lines: bytes, most: int) -> Iterator[bytes]:
    """`lines` cut at ends of lines, into pieces of at most so many bytes, save for a line that is longer."""
    start = 0
    while len(lines) - start > most:
        end = lines.rfind(b"\n", start, start + most) + 1
        if not end:
            end = lines.find(b"\n", start) + 1 or len(lines)
        yield lines[start:end]
        start = end
    if start < len(lines):
        yield lines[start:]

"""The log of one of several workers: their lines come out of one stdout, and each says whose it is."""

from __future__ import annotations

from typing import TextIO

from ..ports import Account, Clock
from .log import Log


class WorkerLog(Log):
    """Says `worker` in every line."""

    def __init__(self, worker: int, out: TextIO, clock: Clock, *, as_json: bool, keys: bool = False) -> None:
        self._worker = worker
        super().__init__(out, clock, as_json=as_json, keys=keys)
        self._own_facts = {"worker": worker}

    def _line(self, level: str, what: str, facts: dict[str, object]) -> str:
        return super()._line(level, what, {**facts, **self._own_facts})

    def _json(self, account: Account) -> str:
        return f'{super()._json(account)[:-1]},"worker":{self._worker}}}'

    def _text(self, account: Account) -> str:
        return f"{super()._text(account)} worker={self._worker}"

"""The duplicates of late, of this process: the last of each of the last keys that had any."""

from __future__ import annotations

from collections import OrderedDict, deque

from ...ports import Account, Clock, DuplicateKind, Nobody
from ..observers import Deaf
from .forms import Duplicate, instant_of

#: How many keys are remembered, and how many duplicates of each.
KEYS = 1_000
OF_EACH = 20


class Recent(Deaf, Nobody):
    """An observer. A request that is no duplicate costs it one comparison. `worker` is the number of this process
    where there are several."""

    def __init__(self, clock: Clock, worker: int | None = None, *, keys: int = KEYS, of_each: int = OF_EACH) -> None:
        self._clock = clock
        self._worker = worker
        self._keys = keys
        self._of_each = of_each
        self._seen: OrderedDict[bytes, deque[tuple[int, str, DuplicateKind, int]]] = OrderedDict()

    def finished(self, account: Account) -> None:
        if account.duplicate is None:
            return
        seen = self._seen.get(account.name)
        if seen is None:
            seen = self._seen[account.name] = deque(maxlen=self._of_each)
            if len(self._seen) > self._keys:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(account.name)
        seen.append((self._clock.wall(), account.peer, account.duplicate, account.status))

    def of(self, name: bytes) -> list[Duplicate]:
        """The last duplicates under this name, the oldest first."""
        return [
            Duplicate(time=instant_of(time), client=peer, kind=kind.value, status=status, worker=self._worker)
            for time, peer, kind, status in self._seen.get(name, ())
        ]

"""Bounded memory of what was computed before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def make_room(stored: dict[K, Any] | set[K], entries: int) -> None:
    """Empty `stored` if it has so many entries. Clients choose the keys, and those in use are soon stored again."""
    if len(stored) >= entries:
        stored.clear()


class Memo(dict[K, V]):
    """What `compute` returned for each key, up to `entries` of them. A key that is not `storable`, such as a long one,
    is computed each time. A hit costs as much as one in a dictionary. Threads may share a memo."""

    def __init__(self, compute: Callable[[K], V], entries: int, storable: Callable[[K], bool] = lambda _: True) -> None:
        self._compute = compute
        self._entries = entries
        self._storable = storable

    def __missing__(self, key: K) -> V:
        computed = self._compute(key)
        if self._storable(key):
            make_room(self, self._entries)
            self[key] = computed
        return computed

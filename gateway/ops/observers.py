"""Several observers as one."""

from __future__ import annotations

from ..core.limit import Limit
from ..ports import Account, Observer


class Deaf:
    """An observer that does not care for single calls of the store, nor for limits."""

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None: ...

    def limited(self, limit: Limit) -> None: ...


class Observers:
    """Tells each in turn."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        #: Told of every call: only those who care.
        self._of_calls = [each.store_called for each in observers if not isinstance(each, Deaf)]
        self._finished = [each.finished for each in observers]

    def finished(self, account: Account) -> None:
        for finished in self._finished:
            finished(account)

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        for store_called in self._of_calls:
            store_called(operation, seconds, failed=failed)

    def store_forgot(self, route: str) -> None:
        for observer in self._observers:
            observer.store_forgot(route)

    def limited(self, limit: Limit) -> None:
        for observer in self._observers:
            observer.limited(limit)

    def alarm(self, what: str, **facts: object) -> None:
        for observer in self._observers:
            observer.alarm(what, **facts)

"""Several observers as one."""

from __future__ import annotations

from typing import Protocol

from ..core.limit import Limit
from ..ports import Account, Observer, VerdictName


class Deaf:
    """An observer that does not care for single calls of the store, nor for limits."""

    #: Whether it cares for a request whose account says that it passed.
    of_passing = False

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None: ...

    def limited(self, limit: Limit) -> None: ...


class _Called(Protocol):
    def __call__(self, operation: str, seconds: float, *, failed: bool) -> None: ...


class Observers:
    """Tells each in turn."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        #: Told of every call: only those who care, which is mostly one.
        self._of_calls: list[_Called] = [each.store_called for each in observers if not isinstance(each, Deaf)]
        self.store_called: _Called = self._of_calls[0] if len(self._of_calls) == 1 else self._each_called
        self._finished = [each.finished for each in observers]
        self._passed = [each.finished for each in observers if not isinstance(each, Deaf) or each.of_passing]

    def finished(self, account: Account) -> None:
        for finished in self._passed if account.verdict is VerdictName.PASS else self._finished:
            finished(account)

    def _each_called(self, operation: str, seconds: float, *, failed: bool) -> None:
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

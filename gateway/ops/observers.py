"""Several observers as one."""

from __future__ import annotations

from ..ports import Account, Observer


class Observers:
    """Tells each in turn."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def finished(self, account: Account) -> None:
        for observer in self._observers:
            observer.finished(account)

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        for observer in self._observers:
            observer.store_called(operation, seconds, failed=failed)

    def store_forgot(self, route: str) -> None:
        for observer in self._observers:
            observer.store_forgot(route)

    def alarm(self, what: str, **facts: object) -> None:
        for observer in self._observers:
            observer.alarm(what, **facts)

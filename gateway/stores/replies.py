"""How a store delivers a reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ports import Observer


def deliver(reply: Callable[[Any], None], result: Any, observer: Observer) -> None:
    """Call `reply` with the result of a call. An exception that it raises is reported and dropped: the other calls
    still get their replies."""
    try:
        reply(result)
    except Exception as error:
        observer.alarm("a reply of the store was not processed", error=repr(error))

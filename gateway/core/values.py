"""Values: compared by what they hold, and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """A dataclass that mypy holds to be frozen. The interpreter does not: a frozen one of thirteen fields takes 1.3 µs
    to make, and this one 0.2; a request makes a dozen."""
    return dataclass(slots=True, unsafe_hash=True)(cls)

"""What is wrong with a file, all of it, each with its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Where a value stands: the keys and indexes that lead to it.
Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where it stands, and what to write instead."""

    path: str
    line: int | None
    message: str


class Faults(Exception):
    """Everything that is wrong, in the order of the file. `str()` has a line for each."""

    def __init__(self, name: str, faults: Iterable[Fault]) -> None:
        self.name = name
        self.faults = tuple(sorted(dict.fromkeys(faults), key=lambda fault: fault.line or 0))
        super().__init__(name, self.faults)

    def __str__(self) -> str:
        return "\n".join(map(self._line, self.faults))

    def _line(self, fault: Fault) -> str:
        on_file = self.name and not fault.path.startswith("--")
        place = f"{self.name}:{fault.line}" if fault.line else self.name
        return ": ".join(filter(None, (place if on_file else "", fault.path, fault.message)))


def spelled(loc: Loc) -> str:
    """`routes[1].window`"""
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def short(text: str) -> str:
    """`text` as a fault quotes it: on one line, and not all of what is long."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= 60 else text[:59] + "…"

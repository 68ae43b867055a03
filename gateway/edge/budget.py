"""How many bytes of bodies the gate holds, in all."""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    """A total that many take from. What does not fit is refused, never waited for; `refused` is told each time."""

    __slots__ = ("_refused", "taken", "total")

    def __init__(self, total: int, refused: Callable[[], None] = lambda: None) -> None:
        self.total = total
        self._refused = refused
        self.taken = 0

    def take(self, size: int) -> bool:
        """Take `size` bytes; False, and nothing taken, if they do not fit."""
        if self.taken + size > self.total:
            self._refused()
            return False
        self.taken += size
        return True

    def hold(self, size: int) -> None:
        """Take `size` bytes whether or not they fit: they are in memory already. Less fits then."""
        self.taken += size

    def has_room(self, size: int) -> bool:
        """Whether so many would fit, for whoever gives them back at once."""
        return self.taken + size <= self.total

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.taken -= size

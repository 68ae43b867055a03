"""The fields of a head: lines as they came, and what their names alone say.

A client sends the same names in the same order again and again, and so does a service. What follows from the names
(which line is the Host, which travel on, how the block is written) is worked out once for such a *shape* and looked
up after that: walking and lower-casing the lines at every step was a third of what a request cost.

Field names and values are bytes exactly as they came: case, order, repetition and octets above 0x7f are the
sender's. Only comparison lower-cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar, overload

from .memo import Memo

Field = tuple[bytes, bytes]
T = TypeVar("T")


class Shape:
    """The names of a head, in their order. `at` has the positions of each, by its name in lower case; `size` the
    bytes that the names take; `blocks` how the lines at given positions are written."""

    __slots__ = ("_made", "at", "blocks", "lowered", "names", "size")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.names = names
        self.lowered = tuple(name.lower() for name in names)
        self.size = sum(map(len, names))
        positions: dict[bytes, list[int]] = {}
        for position, name in enumerate(self.lowered):
            positions.setdefault(name, []).append(position)
        self.at = {name: tuple(found) for name, found in positions.items()}
        self._made: dict[object, Any] = {}
        self.blocks = Memo(partial(Block, names), 64)

    def made(self, key: object, make: Callable[[Shape], T]) -> T:
        """What `make` says of this shape, made once. The keys must be few."""
        try:
            return self._made[key]  # type: ignore[no-any-return]
        except KeyError:
            made = self._made[key] = make(self)
            return made


class Block:
    """Some lines of a shape, each ended by CRLF, written by one formatting."""

    __slots__ = ("pick", "template")

    def __init__(self, names: tuple[bytes, ...], which: tuple[int, ...]) -> None:
        #: Takes the values that `pick` picks.
        self.template = b"".join(names[position].replace(b"%", b"%%") + b": %b\r\n" for position in which)
        self.pick = picker(which)


def picker(which: tuple[int, ...]) -> Callable[[Sequence[bytes]], tuple[bytes, ...]]:
    """What picks the values at these positions."""
    if len(which) > 1:
        return itemgetter(*which)
    return lambda values: tuple(values[position] for position in which)


#: The shape of a head with these names.
_shapes = Memo(Shape, 1024, lambda names: len(names) <= 64 and sum(map(len, names)) <= 2048)


class Fields(Sequence[Field]):
    """The lines of one head: a shape and its values. A sequence of pairs for whoever walks it."""

    __slots__ = ("shape", "values")

    def __init__(self, shape: Shape, values: Sequence[bytes]) -> None:
        self.shape = shape
        self.values = values

    def all(self, name: bytes) -> list[bytes]:
        """Every value under `name` (given in lower case), without surrounding white space."""
        return [self.values[position].strip(b" \t") for position in self.shape.at.get(name, ())]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Field]:
        return zip(self.shape.names, self.values, strict=True)

    @overload
    def __getitem__(self, index: int) -> Field: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Field]: ...

    def __getitem__(self, index: int | slice) -> Field | Sequence[Field]:
        if isinstance(index, slice):
            return list(self)[index]
        return self.shape.names[index], self.values[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def fields_of(pairs: Iterable[Field]) -> Fields:
    """The same lines with their shape."""
    if type(pairs) is Fields:
        return pairs
    each = list(pairs)
    return Fields(_shapes[tuple([name for name, _ in each])], [value for _, value in each])


def fields_in(lines: Sequence[bytes]) -> Fields:
    """The fields of a head as its parser tells them: a name and its value in turn."""
    return Fields(_shapes[tuple(lines[::2])], lines[1::2])


def pairs_in(lines: Sequence[bytes]) -> list[Field]:
    """The same as pairs."""
    return list(zip(lines[::2], lines[1::2], strict=True))


NONE = fields_of(())

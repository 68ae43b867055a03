"""The fields of a head: lines as they came, and what their names alone say.

A client sends the same names in the same order again and again, and so does a service. What follows from the names
(which line is the Host, which travel on, how the block is written) is worked out once for such a *shape* and looked
up after that: walking and lower-casing the lines at every step was a third of what a request cost.

Field names and values are bytes exactly as they came: case, order, repetition and octets above 0x7f are the
sender's. Only comparison lower-cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar, overload

Field = tuple[bytes, bytes]
T = TypeVar("T")

#: How many shapes are remembered, and of what size: a client that sends ever new names must not fill the memory.
_MOST = 1024
_MOST_NAMES = 64
_MOST_BYTES = 2048


class Shape:
    """The names of a head, in their order. `at` has the positions of each, by its name in lower case; `size` the
    bytes that the names take."""

    __slots__ = ("_blocks", "_made", "at", "lowered", "names", "size")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.names = names
        self.lowered = tuple(name.lower() for name in names)
        self.size = sum(map(len, names))
        positions: dict[bytes, list[int]] = {}
        for position, name in enumerate(self.lowered):
            positions.setdefault(name, []).append(position)
        self.at = {name: tuple(found) for name, found in positions.items()}
        self._made: dict[object, Any] = {}
        self._blocks: dict[tuple[int, ...], Block] = {}

    def made(self, key: object, make: Callable[[Shape], T]) -> T:
        """What `make` says of this shape, made once. The keys must be few."""
        try:
            return self._made[key]  # type: ignore[no-any-return]
        except KeyError:
            made = self._made[key] = make(self)
            return made

    def block(self, which: tuple[int, ...]) -> Block:
        """How the lines at these positions are written."""
        try:
            return self._blocks[which]
        except KeyError:
            if len(self._blocks) >= _MOST_NAMES:
                self._blocks.clear()
            block = self._blocks[which] = Block(self.names, which)
            return block


class Block:
    """Some lines of a shape, written by one formatting."""

    __slots__ = ("pick", "template")

    def __init__(self, names: tuple[bytes, ...], which: tuple[int, ...]) -> None:
        #: Takes the values that `pick` picks.
        self.template = b"".join(names[position].replace(b"%", b"%%") + b": %b\r\n" for position in which)
        self.pick = picker(which)

    def of(self, values: Sequence[bytes]) -> bytes:
        """The lines, each ended by CRLF."""
        return self.template % self.pick(values)


def picker(which: tuple[int, ...]) -> Callable[[Sequence[bytes]], tuple[bytes, ...]]:
    """What picks the values at these positions."""
    if len(which) > 1:
        return itemgetter(*which)
    return lambda values: tuple(values[position] for position in which)


_shapes: dict[tuple[bytes, ...], Shape] = {}


def shape_of(names: Sequence[bytes]) -> Shape:
    """The shape of a head with these names."""
    key = tuple(names)
    shape = _shapes.get(key)
    if shape is None:
        shape = Shape(key)
        if len(key) <= _MOST_NAMES and shape.size <= _MOST_BYTES:
            if len(_shapes) >= _MOST:
                _shapes.clear()
            _shapes[key] = shape
    return shape


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
    return Fields(shape_of([name for name, _ in each]), [value for _, value in each])


def fields_in(lines: Sequence[bytes]) -> Fields:
    """The fields of a head as its parser tells them: a name and its value in turn."""
    return Fields(shape_of(lines[::2]), lines[1::2])


def pairs_in(lines: Sequence[bytes]) -> list[Field]:
    """The same as pairs."""
    return list(zip(lines[::2], lines[1::2], strict=True))


NONE = fields_of(())

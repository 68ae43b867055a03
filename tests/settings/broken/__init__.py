"""Every broken file that we have thought of, with what `oncegate check` prints of it: one table, in rooms by place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.settings.files import WHOLE, indented

from .keys import KEYS
from .routes import ROUTES
from .stores import STORES
from .top import LISTENING, REST
from .upstreams import UPSTREAMS
from .whole import FILES

#: What is added, or put in a place; the path of the fault there; what is said of it.
Row = tuple[str, str, str]


@dataclass(frozen=True)
class Broken:
    """A file, and the lines that are printed of it; `FILE` stands for its name."""

    name: str
    text: str
    said: tuple[str, ...]

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is said, without where."""
        return tuple(line.split(": ", 2)[-1] for line in self.said)


def _in_the_route(rows: Iterable[Row]) -> Iterator[Broken]:
    for added, path, message in rows:
        yield Broken(f"route: {added}", WHOLE + indented(added), (f"FILE:6: routes[0].{path}: {message}",))


def _at_the_top(rows: Iterable[Row]) -> Iterator[Broken]:
    for added, path, message in rows:
        yield Broken(added, f"{WHOLE}{added}\n", (": ".join(filter(None, ("FILE:6", path, message))),))


def _as_the_upstream(rows: Iterable[Row]) -> Iterator[Broken]:
    for written, path, message in rows:
        text = WHOLE.replace('{url: "http://127.0.0.1:9000"}', written)
        yield Broken(f"upstream: {written}", text, (f"FILE:2: upstreams.app{path}: {message}",))


BROKEN = (
    *_in_the_route(ROUTES),
    *_in_the_route(KEYS),
    *_at_the_top(LISTENING),
    *_at_the_top(STORES),
    *_at_the_top(REST),
    *_as_the_upstream(UPSTREAMS),
    *(Broken(name, text, tuple(said)) for name, (text, said) in FILES.items()),
)

"""Sources: the places of a request at which one value stands, and how each is read.

`header:NAME`, `query:NAME`, `cookie:NAME` and `path:N` stand in the head; `body:/json/pointer` and `form:FIELD` in the
body, so that it must be there first. A value is read in one way or not at all: where the request says it twice, or in a
form that two readers may take differently, it is Unreadable, and the request is refused rather than guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never
from urllib.parse import unquote_to_bytes

from . import entity
from .cookies import cookies
from .entity import Found
from .fields import fields_of
from .key import Unreadable
from .message import Request


class Place(StrEnum):
    """Where a source's value stands."""

    HEADER = "header"
    QUERY = "query"
    COOKIE = "cookie"
    PATH = "path"
    BODY = "body"
    FORM = "form"


@dataclass(frozen=True, slots=True)
class Source:
    """One place. `name` is a field's name in lower case, a parameter, a cookie, a pointer, or the number of a segment
    (the first is 1)."""

    place: Place
    name: str

    def __str__(self) -> str:
        return f"{self.place}:{self.name}"

    @classmethod
    def of(cls, label: str) -> Source:
        """The source that `str` spelled so. Raises ValueError where it is none."""
        place, _, name = label.partition(":")
        return cls(Place(place), name)


_UNPARSED = object()


class Reader:
    """Reads sources in one request. The body is parsed once, when it is first asked for."""

    __slots__ = ("_document", "_fields", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self._fields = fields_of(request.fields)
        self._document: Any = _UNPARSED

    def read(self, source: Source) -> Found:
        """The octets that stand there; None where nothing does."""
        match source.place:
            case Place.HEADER:
                return _single(self._fields.all(source.name.encode()), f"the field {source.name} is repeated")
            case Place.QUERY:
                return entity.parameter(self.request.target.partition(b"?")[2], source.name, "the parameter")
            case Place.COOKIE:
                # RFC 6265 §4.2.1. Which of two cookies of one name counts, servers tell differently (§5.4).
                found = cookies(self._fields.all(b"cookie"), source.name.encode())
                return _single(found, "the cookie is there twice")
            case Place.PATH:
                return self._segment(int(source.name))
            case Place.BODY:
                return self._pointed(source.name)
            case Place.FORM:
                coded = self._coded()
                if coded is not None:
                    return coded
                return entity.form_field(self._fields.all(b"content-type"), self.request.body, source.name)
            case _:
                assert_never(source.place)

    def _segment(self, number: int) -> Found:
        path = self.request.target.partition(b"?")[0]
        opened = unquote_to_bytes(path)
        if b"//" in opened or b"/." in opened or b"\\" in opened:
            return Unreadable("the path has empty or dot segments, and reads in two ways")
        segments = path.split(b"/")
        if number >= len(segments) or not segments[number]:
            return None
        return unquote_to_bytes(segments[number])

    def _pointed(self, pointer: str) -> Found:
        if self._document is _UNPARSED:
            self._document = self._parsed()
        if isinstance(self._document, Unreadable):
            return self._document
        return entity.pointed(self._document, pointer)

    def _parsed(self) -> Any:
        if not self.request.body:
            return None
        coded = self._coded()
        return entity.parsed(self.request.body) if coded is None else coded

    def _coded(self) -> Unreadable | None:
        if any(coding.lower() != b"identity" for coding in self._fields.all(b"content-encoding")):
            return Unreadable("the body is compressed (Content-Encoding), and is not read so")
        return None


def _single(found: list[bytes], repeated: str) -> Found:
    if len(found) > 1:
        return Unreadable(repeated)
    return found[0] if found else None


def in_body(sources: Sequence[Source]) -> bool:
    """Whether the body must be there before all of them can be read."""
    return any(source.place in (Place.BODY, Place.FORM) for source in sources)

"""Multipart bodies without their boundaries, which clients choose at random for every try (RFC 2046 §5.1.1).

Whatever is left after the boundary is cut out counts: two requests have the same `Multipart` only if one is the other
with other boundaries. So each body that declares one boundary has one, also an empty body, a body without parts, a body
that is never closed, and a body whose lines end in bare line feeds (as Python's `email` writes them). A part that is
multipart itself loses its boundary too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_TYPE = b"multipart/"
#: A parameter, after a fold of the line if it stands in the head of a part. Read in their order, so that a quoted value
#: of another one may hold what looks like a boundary.
_PARAMETER = re.compile(rb';(?:[ \t]|\r?\n[ \t])*([^=;" \t\r\n]+)=(?:"((?:[^"\\]|\\.)*)"|([^;" \t\r\n]+))', re.DOTALL)
#: RFC 2046 §5.1.1 allows no more characters; only `form` insists on it.
_LONGEST = 70

#: The end of a delimiter line behind its boundary, by the line ending of the body.
_DELIMITED = {
    b"\r\n": re.compile(rb"(--)?[ \t]*(?=\r\n|\Z)"),
    b"\n": re.compile(rb"(--)?[ \t]*(?=\r?\n|\Z)"),
}
_HEAD_ENDS = re.compile(rb"\r?\n\r?\n")
_PART_TYPE = re.compile(rb"^content-type:(?:[^\r\n]|\r?\n[ \t])*", re.IGNORECASE | re.MULTILINE)
#: A longer head of a part is not read, and neither are parts at a deeper level: their boundaries count.
_LONGEST_HEAD = 8 << 10
_DEEPEST = 8
#: A body in which more lines than this begin like a delimiter line is not cut: its boundary counts.
_MOST_LINES = 10_000

#: Kinds of digest (`digest.body_digest`). The first segment of NESTED describes how the others belong together.
PLAIN = b"multipart"
NESTED = b"multipart nested"


class Multipart(NamedTuple):
    """A body without its boundary: its media type, and the kind and the segments of its digest."""

    content_type: bytes
    kind: bytes
    segments: list[bytes]


class _Cut(NamedTuple):
    """A body cut at its delimiter lines: the preamble, the parts and, if it is closed, the epilogue."""

    line_end: bytes
    segments: list[bytes]
    closed: bool


def multipart(types: Sequence[bytes], body: bytes) -> Multipart | None:
    """Cut the boundary out of a body with this `Content-Type`; None if that does not declare one boundary, or if the
    body has too many lines that begin with it."""
    if len(types) != 1:
        return None
    boundary = _boundary(types[0])
    if boundary is None:
        return None
    cut = _cut(body, boundary)
    if cut is None:
        return None
    shape, segments = _described(cut, _DEEPEST)
    content_type = _without_boundary(types[0])
    if cut.closed and cut.line_end == b"\r\n" and len(segments) == len(cut.segments):
        return Multipart(content_type, PLAIN, cut.segments)
    return Multipart(content_type, NESTED, [shape, *segments])


def form(content_type: bytes, body: bytes) -> list[bytes] | None:
    """The parts of a body, if it is exactly what RFC 2046 says; else None, because readers differ in what they make
    of it."""
    boundary = _boundary(content_type)
    if boundary is None or len(boundary) > _LONGEST:
        return None
    cut = _cut(body, boundary)
    return cut.segments[1:-1] if cut is not None and cut.closed and cut.line_end == b"\r\n" else None


def _boundary(content_type: bytes) -> bytes | None:
    """The one boundary of a multipart type; None if there is none, or more."""
    if content_type[: len(_TYPE)].lower() != _TYPE:
        return None
    found = [each for each in _PARAMETER.findall(content_type) if each[0].lower() == b"boundary"]
    if len(found) != 1:
        return None
    _, quoted, token = found[0]
    return re.sub(rb"\\(.)", rb"\1", quoted) or token or None


def _without_boundary(content_type: bytes) -> bytes:
    """A multipart type without its boundary, the other parameters byte for byte."""
    return _PARAMETER.sub(lambda found: b"" if found[1].lower() == b"boundary" else found[0], content_type)


def _cut(body: bytes, boundary: bytes) -> _Cut | None:
    """Cut `body` at lines that end in CRLF, or in bare line feeds if its first delimiter line stands between such. None
    if too many lines begin like one."""
    delimiter = b"--" + boundary
    start = 0 if body.startswith(delimiter) else body.find(b"\n" + delimiter) + 1 or -1
    for _ in range(_MOST_LINES):
        if start < 0:
            return _Cut(b"\r\n", [body], closed=False)
        found = _DELIMITED[b"\n"].match(body, start + len(delimiter))
        if found is not None:
            begins_bare = start > 0 and body[start - 2 : start] != b"\r\n"
            ends_bare = body[found.end() : found.end() + 1] == b"\n"
            return _cut_at(body, boundary, b"\n" if begins_bare or ends_bare else b"\r\n")
        start = body.find(b"\n" + delimiter, start) + 1 or -1
    return None


def _cut_at(body: bytes, boundary: bytes, line_end: bytes) -> _Cut | None:
    first, line, delimited = b"--" + boundary, line_end + b"--" + boundary, _DELIMITED[line_end]
    segments: list[bytes] = []
    position = 0
    start, behind = (0, len(first)) if body.startswith(first) else _next(body, line, 0)
    for _ in range(_MOST_LINES):
        if start < 0:
            return _Cut(line_end, [*segments, body[position:]], closed=False)
        found = delimited.match(body, behind)
        if found is not None:
            segments.append(body[position:start])
            position = found.end()
            if found[1]:
                return _Cut(line_end, [*segments, body[position:]], closed=True)
        start, behind = _next(body, line, position if found else start + 1)
    return None


def _next(body: bytes, line: bytes, position: int) -> tuple[int, int]:
    """Return the positions at which `line` begins and ends, from `position` on; a negative beginning if it does not
    occur."""
    start = body.find(line, position)
    return start, start + len(line)


def _described(cut: _Cut, deepest: int) -> tuple[bytes, list[bytes]]:
    """How a body is built, and its segments in one row: a part that is multipart itself becomes its head and its own
    segments. The first segment is the preamble, the last one of a closed body the epilogue, and from the description
    the row can be read back in one way only."""
    shape = [b"(" if cut.line_end == b"\r\n" else b"["]
    segments = cut.segments[:1]
    parts = cut.segments[1:-1] if cut.closed else cut.segments[1:]
    for part in parts:
        inner = _inner(part, deepest) if deepest else None
        if inner is None:
            shape.append(b"p")
            segments.append(part)
        else:
            shape.append(inner[0])
            segments += inner[1]
    shape.append(b")" if cut.closed else b"!")
    return b"".join(shape), segments + cut.segments[len(parts) + 1 :]


def _inner(part: bytes, deepest: int) -> tuple[bytes, list[bytes]] | None:
    """As `_described`, of a part whose head declares one boundary of its own; None for any other part."""
    ends = _HEAD_ENDS.search(part, 0, _LONGEST_HEAD)
    if ends is None:
        return None
    head = part[: ends.end()]
    if _TYPE not in head.lower():
        return None
    types = list(_PART_TYPE.finditer(head))
    if len(types) != 1:
        return None
    content_type = types[0][0].partition(b":")[2].lstrip(b" \t\r\n")
    boundary = _boundary(content_type)
    if boundary is None:
        return None
    cut = _cut(part[ends.end() :], boundary)
    if cut is None:
        return None
    shape, segments = _described(cut, deepest - 1)
    return shape, [head[: types[0].start()] + _without_boundary(types[0][0]) + head[types[0].end() :], *segments]

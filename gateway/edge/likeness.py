"""Messages that look like those before them: read by one match instead of field by field.

A client sends heads with the same names again and again, and so does a service. Once one has been parsed, an
expression is made of its names; a message that it matches, with exactly its body behind it, has been read. That is
one call of the matcher instead of nine of ours by the parser. Whatever does not match goes to llhttp as if nobody had
looked, so the expression may take too little, and never too much: one spelling of each line, no white space around a
value, HTTP/1.1, a path as target, and nothing that speaks of framing but one Content-Length (of a request also one
`Transfer-Encoding: chunked` instead) and a `Connection: keep-alive`. tests/edge/test_likeness.py holds it against
llhttp.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..core.fields import Fields, Shape
from .chunked import whole_body

#: Making an expression takes a millisecond, as long as ten messages, so whoever sends ever new names must not have one
#: made for each: one costs so much of a credit that every message which is parsed adds one to, up to a few of them.
COST = 16
MOST = 4 * COST
credit = MOST
#: Fields with which a head is left to llhttp, which reads more out of them than their values.
_LEFT_ALONE = frozenset((b"upgrade", b"expect", b"te", b"trailer", b"proxy-connection", b"http2-settings"))
_REQUEST = rb"(POST|PUT|PATCH|DELETE|GET) (/[!-\"$-~]*) HTTP/1\.1\r\n"
_RESPONSE = rb"HTTP/1\.1 (?!204|304)([2-9][0-9][0-9]) ([\t -~\x80-\xff]*)\r\n"
_VALUE = rb"([!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)"
_VALUES = {
    b"content-length": rb"(0|[1-9][0-9]{0,7})",
    b"transfer-encoding": rb"(chunked)",
    b"connection": rb"([Kk]eep-[Aa]live)",
}


class Likeness:
    """What messages with the names of `shape` look like. `match` is None until one was met that there was credit for,
    and for good where they are left to llhttp."""

    __slots__ = ("_begins", "_chunked", "_left", "length", "match", "shape")

    def __init__(self, shape: Shape, begins: bytes, must: bytes) -> None:
        at = shape.at
        self.shape = shape
        self._begins = begins
        self._chunked = b"transfer-encoding" in at
        self._left = (
            len(at.get(must, ())) != 1
            or not _LEFT_ALONE.isdisjoint(at)
            or (self._chunked and b"content-length" in at)
            or any(len(at.get(name, ())) > 1 for name in _VALUES)
        )
        lengths = at.get(b"content-length", ())
        #: Where the Content-Length stands among the groups; 0 where there is none.
        self.length = lengths[0] + 3 if lengths else 0
        self.match: Callable[[bytes], re.Match[bytes] | None] | None = None

    def met(self) -> Likeness | None:
        """Such a message was parsed. Returns what reads the next ones, where it can."""
        global credit
        if self.match is None and not self._left:
            if credit < COST:
                credit += 1
            else:
                credit -= COST
                names = zip(self.shape.names, self.shape.lowered, strict=True)
                lines = (re.escape(name) + b": " + _VALUES.get(lowered, _VALUE) + rb"\r\n" for name, lowered in names)
                self.match = re.compile(b"".join((self._begins, *lines, rb"\r\n"))).match
        return None if self.match is None else self

    def read(self, data: bytes) -> tuple[Any, ...] | None:
        """What `data` says, where it is one such message and nothing else: the two parts of its first line, its fields
        and its body. None where llhttp must say."""
        assert self.match is not None
        found = self.match(data)
        if found is None:
            return None
        if self._chunked:
            body = whole_body(data, found.end())
            if body is None:
                return None
        else:
            body = data[found.end() :]
            if len(body) != (int(found[self.length]) if self.length else 0):
                return None
        first, second, *values = found.groups()
        return first, second, Fields(self.shape, values), body


def of_requests(shape: Shape) -> Likeness:
    """Of the requests with these names."""
    return Likeness(shape, _REQUEST, b"host")


def of_responses(shape: Shape) -> Likeness:
    """Of the responses with these names. Those without a Content-Length end in other ways."""
    return Likeness(shape, _RESPONSE, b"content-length")

"""The end of a body in chunks (RFC 9112 §7.1), found without a search through what the chunks hold."""

from __future__ import annotations

import re

#: The size of a chunk, as its line begins. The parser takes any number of leading zeros, and refuses what is too large.
_SIZE = re.compile(rb"[0-9A-Fa-f]+(?=[;\r\n \t])")
#: The same spelled as nearly all clients do it: no leading zero, no extension.
_PLAIN_SIZE = re.compile(rb"(0|[1-9A-Fa-f][0-9A-Fa-f]{0,6})\r\n")


def whole_body(data: bytes, at: int) -> bytes | None:
    """Return what the chunks hold that `data` has from `at` to its end. None if they are not one whole body in plain
    chunks without trailers."""
    chunks: list[bytes] = []
    while (found := _PLAIN_SIZE.match(data, at)) is not None:
        begins = found.end()
        ends = begins + int(found[1], 16)
        at = ends + 2
        if data[ends:at] != b"\r\n":
            return None
        if ends == begins:
            return b"".join(chunks) if at == len(data) else None
        chunks.append(data[begins:ends])
    return None


class ChunkedBody:
    """Follows the framing of one body. It refuses nothing: the parser reads the same bytes."""

    __slots__ = ("_left", "_line", "_trailers")

    def __init__(self) -> None:
        #: Bytes of the present chunk that are still to come, with the line end behind it.
        self._left = 0
        #: The beginning of a line whose end has not arrived.
        self._line = b""
        self._trailers = False

    def end(self, data: bytes) -> int:
        """Return how many bytes of `data`, which comes next, belong to the body."""
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            ends = data.find(b"\n", at) + 1
            if not ends:
                self._line += data[at:]
                break
            line, self._line = self._line + data[at:ends], b""
            at = ends
            if self._trailers:
                if not line.strip(b"\r\n"):
                    return at
            elif (found := _SIZE.match(line)) is None:
                break  # malformed
            elif length := int(found[0], 16):
                self._left = length + 2
            else:
                self._trailers = True
        return size

"""Bytes that are no HTTP/1.1 request: which refusal helps their sender, and how an HTTP/2 client gets to see one."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..core.problem import Problem, Refusal

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(rb"[^ ]+ +[^ ]+ HTTP/[0-9]\.[0-9]\r?")
#: The PROXY protocol, in its versions 1 and 2.
_PROXY = re.compile(rb"PROXY (TCP4|TCP6|UNKNOWN)[ \r]")
_PROXY_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXIED = Refusal(
    Problem.REQUEST_MALFORMED,
    "The connection begins with the PROXY protocol, which is not supported.",
    instead="Turn it off at the load balancer and let it send X-Forwarded-For. The request was not executed.",
)


def beginning(data: bytes, why: str) -> Refusal | None:
    """The refusal of a message that begins with `data` and not with a known method; None while more bytes are needed.

    `why` is the parser's own reason, for a first line that is no request line.
    """
    if data.startswith(_PROXY_SIGNATURE):
        return _PROXIED
    if _PROXY_SIGNATURE.startswith(data):
        return None
    line, ended, _ = data.lstrip(b"\r\n").partition(b"\n")
    if _TOKEN.fullmatch(line.partition(b" ")[0]):
        if _PROXY.match(line):
            return _PROXIED
        if not ended:
            return None
        if _REQUEST_LINE.fullmatch(line):
            return Refusal(Problem.METHOD_UNSUPPORTED)
    return Refusal(Problem.REQUEST_MALFORMED, f"{why}.")


# ── HTTP/2 ────────────────────────────────────────────────────────────────────────────────────────

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
#: Bytes of a frame's own head.
_FRAME_HEAD = 9


class Http2:
    """Reads what follows the preface of an HTTP/2 client, up to its first request: `refuse` gets that one's stream.

    A client that is answered in HTTP/1.1 reports an empty or broken reply, so the refusal goes out in frames.
    """

    def __init__(self, write: Callable[[bytes], None], refuse: Callable[[int], None]) -> None:
        self._refuse = refuse
        self._data = b""
        write(_frame(_SETTINGS, 0, 0) + _frame(_SETTINGS, _ACK, 0))

    def feed_data(self, data: bytes) -> None:
        data = self._data + data
        while len(data) >= _FRAME_HEAD:
            if data[3] == _HEADERS:
                self._refuse(int.from_bytes(data[5:9], "big") & 0x7FFFFFFF)
                return
            size = _FRAME_HEAD + int.from_bytes(data[:3], "big")
            if len(data) < size:
                break
            data = data[size:]
        self._data = data


def in_frames(response: bytes, stream: int) -> bytes:
    """An HTTP/1.1 response with a body as HTTP/2. The end of the connection is to follow.

    No RST_STREAM and no GOAWAY: curl throws the response away if one of them arrives while it still sends the request.
    """
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    block = _field(b":status", status_line.split(b" ")[1])
    for name, _, value in (line.partition(b": ") for line in lines):
        if name != b"Connection":
            block += _field(name.lower(), value)
    return _frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, body)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _field(name: bytes, value: bytes) -> bytes:
    """A literal field without indexing (RFC 7541 §6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    """A literal without Huffman coding (RFC 7541 §5.1, §5.2)."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    left, size = len(text) - 127, b"\x7f"
    while left >= 128:
        size += bytes((left % 128 + 128,))
        left //= 128
    return size + bytes((left,)) + text

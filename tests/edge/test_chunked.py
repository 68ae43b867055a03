"""Bodies in chunks: their end is found, and what the chunks hold is not searched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.chunked import ChunkedBody
from gateway.edge.shared import Shared
from tests.edge.fuzz import Watched, Wire
from tests.edge.stand import ByHand, edge, eventually
from tests.harness import Origin, configuration

HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k-1\r\nTransfer-Encoding: chunked\r\n\r\n"
PACKET = 64 << 10


def in_chunks(parts: list[bytes], *, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + last


@given(
    st.lists(st.binary(max_size=40) | st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n"]), max_size=6),
    st.sampled_from([b"0\r\n\r\n", b"000;a=b\r\n\r\n", b"0\r\nX: y\r\nZ: 0\r\n\r\n", b"0" * 40 + b"\r\n\r\n"]),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_the_end_is_found_wherever_the_bytes_are_cut(parts: list[bytes], last: bytes, cuts: list[int]) -> None:
    """Whatever the chunks hold, with extensions and trailers: the body ends where it ends, and not before."""
    body = in_chunks(parts, last=last)
    sent = body + b"POST / HTTP/1.1\r\n\r\n"
    chunked, found, start = ChunkedBody(), 0, 0
    for end in (*sorted(cut for cut in cuts if cut < len(body)), len(sent)):
        found += chunked.end(sent[start:end])
        start = end
    assert found == len(body)


class Counting(Watched):
    """Counts the pieces in which bodies arrive."""

    def __init__(self, server: Shared) -> None:
        super().__init__(server)
        self.pieces = 0

    def on_body(self, data: bytes) -> None:
        self.pieces += 1
        super().on_body(data)


@pytest.mark.parametrize("filling", [b"x\r\n\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"\n0\r\n\r\n0\r\n\r\n", b"x"])
@pytest.mark.parametrize("target", [b"/open/a", b"/guarded"])
async def test_blank_lines_in_a_chunk_cost_nothing(origin: Origin, filling: bytes, target: bytes) -> None:
    """2 MiB in chunks of 64 KiB: as few pieces as of a body without line ends; and the request behind it runs."""
    data = (filling * (PACKET // len(filling) + 1))[:PACKET]
    sent = HEAD % target + in_chunks([data] * 32) + b"GET /open/b HTTP/1.1\r\nHost: a\r\n\r\n"
    async with edge(configuration(origin.url)) as gate:
        wire, connection = Wire(), Counting(gate.server)
        connection.connection_made(wire)
        for start in range(0, len(sent), PACKET):
            await eventually(lambda: wire.reading or wire.closed, "the gate reads on", 10)
            connection.data_received(sent[start : start + PACKET])
        await eventually(lambda: wire.written.count(b"HTTP/1.1 201") >= 2, "both are answered", 10)
        assert connection.pieces <= 32 * (PACKET // (16 << 10) + 3)
        connection.connection_lost(None)
        await gate.settled()
    bodies = [request.body for request in origin.requests]
    assert bodies == [data * 32, b""]


BODIES = {
    "blank lines": in_chunks([b"\r\n\r\n" * 64]),
    "last chunks in a chunk": in_chunks([b"0\r\n\r\n" * 64]),
    "a size with many zeros": b"0" * 40 + b"5\r\nhello\r\n0\r\n\r\n",
    "a last size with many zeros": in_chunks([b"hello"], last=b"0" * 40 + b"\r\n\r\n"),
}


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in bytes"])
@pytest.mark.parametrize("name", BODIES)
async def test_an_unknown_method_behind_a_body_in_chunks(origin: Origin, name: str, cut: bool) -> None:
    """It is refused for its method, and the request before it is served."""
    sent = HEAD % b"/open/a" + BODIES[name] + b"BREW /orders HTTP/1.1\r\nHost: a\r\n\r\n"
    async with edge(configuration(origin.url)) as gate:
        wire, connection = Wire(), Watched(gate.server)
        connection.connection_made(wire)
        for part in [bytes((byte,)) for byte in sent] if cut else [sent]:
            connection.data_received(part)
        await eventually(lambda: wire.written.count(b"HTTP/1.1 ") >= 2, "both are answered")
        assert wire.written.startswith(b"HTTP/1.1 201")
        assert b"HTTP/1.1 501" in wire.written
        connection.connection_lost(None)
        await gate.settled()
    assert len(origin.requests) == 1


@pytest.mark.parametrize("name", BODIES)
async def test_a_raw_target_behind_a_body_in_chunks(hand: ByHand, name: str) -> None:
    """It goes on byte for byte."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(HEAD % b"/orders" + BODIES[name] + b"GET /open/caf\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n")
        peer = await hand.accept()
        size = next(int(value) for field, value in await peer.fields() if field.lower() == b"content-length")
        await peer.read(size)
        await peer.answer()
        assert (await client.read()).status == 200
        assert (await peer.head()).startswith(b"GET /open/caf\xc3\xa9 HTTP/1.1\r\n")
        await peer.answer()
        assert (await client.read(method=b"GET")).status == 200

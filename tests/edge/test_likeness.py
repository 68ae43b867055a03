"""Messages that look like those before them are read as llhttp reads them, or left to it."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.fields import Field, Shape
from gateway.edge import likeness
from gateway.edge.client import ClientConnection
from gateway.edge.likeness import Likeness, of_requests, of_responses
from tests.edge.stand import ByHand, edge
from tests.harness import configuration

NAMES = [
    b"Host", b"host", b"Content-Length", b"content-length", b"Connection", b"Content-Type", b"Idempotency-Key", b"X",
    b"Transfer-Encoding", b"Upgrade", b"Expect", b"Proxy-Connection", b"Authorization", b"a.b-c", b"X+*|^", b"X_Y",
]  # fmt: skip
VALUES = [
    b"x", b"keep-alive", b"Keep-Alive", b"close", b"0", b"5", b"05", b"+5", b"5 ", b" 5", b"", b"a: b", b"a\tb",
    b"\xff", b"a\x00b", b"a\x7fb", b"a\nb", b"a\rb", b"chunked", b"100-continue", b"h2c", b"shop.example:80", b"5, 5",
    b"5\t",
]  # fmt: skip
LINES = [
    b"POST /pay HTTP/1.1", b"GET /?a=/b%20c HTTP/1.1", b"PUT /\xc3\xa4 HTTP/1.1", b"POST /a#b HTTP/1.1",
    b"HEAD / HTTP/1.1", b"POST http://x/ HTTP/1.1", b"POST /a b HTTP/1.1", b"POST /pay HTTP/1.0",
    b"POST  /pay HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 100 Continue", b"HTTP/1.1 201 a\tb", b"HTTP/1.1 599 \xff", b"HTTP/1.0 200 OK", b"HTTP/1.1 600 Odd",
]  # fmt: skip
ENDS = [b"\r\n", b"\n", b"\r", b"\r\n ", b" \r\n", b"\t\r\n"]
COLONS = [b": ", b":", b":  ", b" : ", b":\t"]
BODIES = [b"", b"12345", b"1234", b"123456", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
CHUNKS = [
    b"0\r\n", b"\r\n", b"5\r\n12345\r\n", b"a\r\n1234567890\r\n", b"A\r\n0\r\n\r\n12345\r\n", b"5;a=b\r\n12345\r\n",
    b"05\r\n12345\r\n", b"00\r\n", b"5 \r\n12345\r\n", b"5\n12345\n", b"4\r\n12345\r\n", b"6\r\n12345\r\n",
    b"+5\r\n12345\r\n", b"0x5\r\n12345\r\n", b"X: 1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"10000000\r\n",
]  # fmt: skip
WHOLE = b"5\r\n12345\r\nA\r\n1234567890\r\n0\r\n\r\n"


CHUNKED = [(b"Host", b": ", b"x", b"\r\n"), (b"Transfer-Encoding", b": ", b"chunked", b"\r\n")]


@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_a_whole_body_in_chunks_is_read(method: bytes) -> None:
    """What most clients send needs no parser."""
    like = ready(of_requests(Shape((b"Host", b"Transfer-Encoding"))))
    assert like is not None
    head = method + b" /pay HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    read = like.read(head + WHOLE)
    assert read is not None
    assert read[3] == b"123451234567890"
    assert [like.read(head + WHOLE[:-size]) for size in range(1, len(WHOLE))] == [None] * (len(WHOLE) - 1)


@settings(max_examples=3000, deadline=None)
@given(st.lists(st.sampled_from(CHUNKS), max_size=4))
def test_a_body_in_chunks_is_read_as_llhttp_reads_it(chunks: list[bytes]) -> None:
    """Of some pieces of chunks, those that are taken for a body are one, and end where llhttp sees its end."""
    like = ready(of_requests(Shape((b"Host", b"Transfer-Encoding"))))
    data = b"POST /pay HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join((*chunks, b"0\r\n\r\n"))
    assert like is not None
    read = like.read(data)
    if read is not None:
        heard = Heard(httptools.HttpRequestParser, data)
        assert (heard.before, heard.messages) == (1, 2)
        assert heard.said == (b"/pay", list(read[2]), read[3])


class Heard:
    """What llhttp says of some bytes."""

    def __init__(self, kind: type, data: bytes) -> None:
        self.fields: list[Field] = []
        self.body = self.target = self.reason = b""
        self.messages = 0
        self.upgrade = False
        parser = self.parser = kind(self)
        parser.feed_data(data)
        self.version = parser.get_http_version()
        self.upgrade = parser.should_upgrade()
        self.first = parser.get_method() if kind is httptools.HttpRequestParser else parser.get_status_code()
        # Whatever comes next is read anew: nothing is left over, and nothing is waited for.
        self.before = self.messages
        parser.feed_data(AGAIN[kind])

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        if not self.messages:
            self.keep_alive = self.parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.messages += 1
        if self.messages == 1:
            self.said = (self.target or self.reason, list(self.fields), self.body)


AGAIN = {
    httptools.HttpRequestParser: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    httptools.HttpResponseParser: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}


def ready(made: Likeness) -> Likeness | None:
    """As it is where there is credit for it."""
    likeness.credit = likeness.COST
    return made.met()


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from(LINES),
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(COLONS), st.sampled_from(VALUES), st.sampled_from(ENDS)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([*BODIES, WHOLE]) | st.lists(st.sampled_from(CHUNKS), max_size=4).map(b"".join),
    st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from([b"", b"\x00", b"\r\n", b" ", b":", b"\xff", b"0"])), max_size=2
    ),
    st.booleans(),
)
@example(LINES[0], [(b"Host", b": ", b"x", b"\r\n"), (b"Content-Length", b": ", b"5", b"\r\n")], b"12345", [], True)
@example(LINES[10], [(b"X", b": ", b"a: b", b"\r\n"), (b"Content-Length", b": ", b"5", b"\r\n")], b"12345", [], True)
@example(LINES[0], [(b"Host", b": ", b"x", b"\r\n"), (b"X", b": ", b"a: b", b"\r\n")], b"", [], True)
@example(LINES[0], CHUNKED, WHOLE, [], True)
@example(LINES[0], CHUNKED, WHOLE[:-2], [], True)
@example(LINES[0], CHUNKED, WHOLE + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", [], True)
def test_what_is_read_is_what_llhttp_reads(
    line: bytes,
    fields: list[tuple[bytes, bytes, bytes, bytes]],
    body: bytes,
    changes: list[tuple[int, bytes]],
    spelled: bool,
) -> None:
    """However a message is spelled: what is read by its looks, llhttp reads in the same words, as one message that ends
    where the bytes do, keeps its connection and upgrades nothing."""
    if spelled:  # else hardly any would look like a message
        fields = [(name, b": ", value, b"\r\n") for name, _, value, _ in fields]
    data = line + b"\r\n" + b"".join(b"".join(field) for field in fields) + b"\r\n" + body
    for at, piece in changes:
        data = data[:at] + piece + data[at + 1 :]
    shape = Shape(tuple(name for name, _, _, _ in fields))
    for made, kind in ((of_requests, httptools.HttpRequestParser), (of_responses, httptools.HttpResponseParser)):
        like = ready(made(shape))
        read = None if like is None else like.read(data)
        if read is None:
            continue
        first, second, said, content = read
        heard = Heard(kind, data)
        assert heard.before == 1
        assert heard.messages == 2
        assert heard.said == (second, list(said), content)
        assert (first if kind is httptools.HttpRequestParser else int(first)) == heard.first
        assert heard.version == "1.1"
        assert heard.keep_alive
        assert not heard.upgrade


def test_ever_new_names_have_no_expression_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand heads that are all named otherwise, one in sixteen has one made; a head that comes again has one
    soon."""
    monkeypatch.setattr(likeness, "credit", likeness.MOST)
    made = [of_requests(Shape((b"Host", b"X-%d" % number))).met() for number in range(1000)]
    assert sum(like is not None for like in made) == 4 + (1000 - 4) // (likeness.COST + 1)
    again = of_requests(Shape((b"Host", b"Again")))
    assert any(again.met() for _ in range(likeness.COST + 1))


@pytest.mark.parametrize(
    "names",
    [
        [b"X"], [b"Host", b"host"], [b"Host", b"Content-Length", b"content-length"],
        [b"Host", b"Transfer-Encoding", b"Content-Length"], [b"Host", b"Transfer-Encoding", b"transfer-encoding"],
        [b"Host", b"Upgrade", b"Connection"], [b"Host", b"Expect"], [b"Host", b"Connection", b"connection"],
    ],
)  # fmt: skip
def test_what_speaks_of_framing_is_left_to_llhttp(names: list[bytes]) -> None:
    """Nothing is guessed about a head that says more than how its body is framed."""
    assert ready(of_requests(Shape(tuple(names)))) is None
    assert ready(of_responses(Shape((b"Transfer-Encoding",)))) is None


#: With a name that no other test sends.
REQUEST = b"POST /open/x HTTP/1.1\r\nHost: a\r\nX-Likeness: 1\r\nContent-Length: 2\r\n\r\n%02d"


async def test_the_parser_is_not_asked_any_more(hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages like those before them go by without llhttp, on either side; another is parsed again."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        parsed: list[bytes] = []
        feed = ClientConnection._feed
        monkeypatch.setattr(ClientConnection, "_feed", lambda self, data: (parsed.append(data), feed(self, data))[0])
        peer = None
        for number in range(5):
            await client.send(REQUEST % number)
            peer = peer or await hand.accept()
            assert b"POST /open/x HTTP/1.1\r\n" in await peer.head()
            assert await peer.read(2) == b"%02d" % number
            await peer.answer(b"answer %d" % number)
            assert (await client.read()).body == b"answer %d" % number
        assert parsed == [REQUEST % 0]
        await client.send(REQUEST.replace(b"Host: a", b"Host:  a") % 5)
        await peer.head()
        await peer.read(2)
        await peer.answer(b"spelled otherwise")
        assert (await client.read()).body == b"spelled otherwise"
        assert len(parsed) == 2


async def test_a_body_is_never_taken_for_a_response(hand: ByHand) -> None:
    """A piece of a body that looks like a response, to the byte, is a piece of a body."""
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake"
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(REQUEST % 0)
        peer = await hand.accept()
        await peer.head()
        await peer.read(2)
        await peer.send(response)
        assert (await client.read()).body == b"fake"
        await client.send(REQUEST % 1)
        await peer.head()
        await peer.read(2)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n1" % (1 + 2 * len(response)))
        await client.reader.readuntil(b"\r\n\r\n")
        assert await client.reader.readexactly(1) == b"1"
        for _ in range(2):
            await peer.send(response)
            assert await client.reader.readexactly(len(response)) == response

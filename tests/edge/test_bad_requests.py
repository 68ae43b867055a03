"""Requests that are refused, and some that only look as if they should be: the status, the problem, how often the
upstream is asked, and whether the connection goes on. What the upstream is asked is parsed by h11, strictly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.edge.stand import (
    drain,
    edge,
    eventually,
)
from tests.harness import Origin, ask, configuration

KEY = b"Idempotency-Key: k\r\n"
HEAD = b"POST /orders HTTP/1.1\r\nHost: a\r\n"
#: A guarded request, up to the fields that a row adds.
POST = HEAD + KEY
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Row:
    """`closed`: whether the connection ends behind the answer. `forwards`: what reached the upstream by then."""

    sent: bytes
    status: int
    problem: str | None
    forwards: int = 0
    closed: bool = True

    @property
    def method(self) -> bytes:
        return b"GET" if self.sent.startswith(b"GET") else b"POST"


def malformed(sent: bytes) -> Row:
    """llhttp, or the door, cannot go on behind it."""
    return Row(sent, 400, "request-malformed")


def refused(sent: bytes, problem: str = "request-malformed", status: int = 400) -> Row:
    """It was read whole, so the connection goes on."""
    return Row(sent, status, problem, closed=False)


def served(sent: bytes, *, closed: bool = False) -> Row:
    return Row(sent, 201, None, forwards=1, closed=closed)


def with_key(value: bytes, extra: bytes = b"") -> bytes:
    return HEAD + b"Idempotency-Key: " + value + b"\r\n" + extra + EMPTY


ROWS = {
    # Two framings, or none (RFC 9112 §6)
    "a length and chunked": malformed(POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked and a length": malformed(POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "two lengths": malformed(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "one length twice": malformed(POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "a list of lengths": malformed(POST + b"Content-Length: 5, 5\r\n\r\nhello"),
    "a positive length": malformed(POST + b"Content-Length: +5\r\n\r\nhello"),
    "a negative length": malformed(POST + b"Content-Length: -5\r\n\r\nhello"),
    "a hexadecimal length": malformed(POST + b"Content-Length: 0x5\r\n\r\nhello"),
    "a length with a space in it": malformed(POST + b"Content-Length: 5 5\r\n\r\nhello"),
    "an empty length": malformed(POST + b"Content-Length:\r\n\r\nhello"),
    "a length in other digits": malformed(POST + b"Content-Length: \xd9\xa5\r\n\r\nhello"),
    "a length past all numbers": malformed(POST + b"Content-Length: 99999999999999999999\r\n\r\nhello"),
    "a length with a space before its colon": malformed(POST + b"Content-Length : 5\r\n\r\nhello"),
    "a length with a leading zero": served(POST + b"Content-Length: 005\r\n\r\nhello"),
    "gzip": Row(POST + b"Transfer-Encoding: gzip\r\n\r\n", 501, "coding-unsupported"),
    "identity": Row(POST + b"Transfer-Encoding: identity\r\n\r\n", 501, "coding-unsupported"),
    "gzip, chunked": refused(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "coding-unsupported", 501),
    "chunked twice": malformed(POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked in two fields": malformed(
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunked, identity": malformed(POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    "xchunked": Row(POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, "coding-unsupported"),
    "chunked with a parameter": Row(
        POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 501, "coding-unsupported"
    ),
    "chunked behind a vertical tab": malformed(POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "an empty coding": malformed(POST + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello"),
    "chunked with a space before its colon": malformed(POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "chunked in HTTP/1.0": Row(
        CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", 400, "request-malformed"
    ),
    # Chunks
    "a chunk size that is no number": malformed(CHUNKED + b"xyz\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk size": malformed(CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a prefix": malformed(CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a space behind it": malformed(CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "an empty chunk size": malformed(CHUNKED + b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk size past all numbers": malformed(CHUNKED + b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is longer than its size": malformed(CHUNKED + b"4\r\nhello\r\n0\r\n\r\n"),
    "a chunk without its line end": malformed(CHUNKED + b"5\r\nhello0\r\n\r\n"),
    "a chunk size ended by LF": malformed(CHUNKED + b"5\nhello\r\n0\r\n\r\n"),
    "a chunk extension with a LF in it": malformed(CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "chunks ended by LF": malformed(CHUNKED + b"5\r\nhello\r\n0\n\n"),
    "a length in the trailers": malformed(CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "chunks with extensions and trailers": served(CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
    # Lines and fields (§2.2, §5)
    "bare line feeds": malformed((POST + EMPTY).replace(b"\r\n", b"\n")),
    "one bare line feed": malformed(POST + b"X: a\n" + EMPTY),
    "a bare carriage return": malformed(POST + b"X: a\rb\r\n" + EMPTY),
    "a folded value": malformed(POST + b"X: a\r\n b\r\n" + EMPTY),
    "a field before the first": malformed(b"POST /orders HTTP/1.1\r\n Host: a\r\n" + KEY + EMPTY),
    "NUL in a value": malformed(POST + b"X: a\0b\r\n" + EMPTY),
    "a control byte in a value": malformed(POST + b"X: a\x1bb\r\n" + EMPTY),
    "DEL in a value": malformed(POST + b"X: a\x7fb\r\n" + EMPTY),
    "NUL in a name": malformed(POST + b"X\0Y: a\r\n" + EMPTY),
    "a space in a name": malformed(POST + b"X Y: a\r\n" + EMPTY),
    "another alphabet in a name": malformed(POST + b"X-\xc3\xa9: a\r\n" + EMPTY),
    "no name": malformed(POST + b": a\r\n" + EMPTY),
    "no colon": malformed(POST + b"X\r\n" + EMPTY),
    "other alphabets in a value": served(POST + b"X: caf\xe9 \xc3\xa9\r\n" + EMPTY),
    "empty lines before it": served(b"\r\n\r\n" + POST + EMPTY),
    # Host (§3.2)
    "no Host": refused(b"POST /orders HTTP/1.1\r\n" + KEY + EMPTY),
    "two Hosts": refused(POST + b"Host: b\r\n" + EMPTY),
    "one Host twice": refused(POST + b"host: a\r\n" + EMPTY),
    "a Host with a space": refused((POST + EMPTY).replace(b"Host: a", b"Host: a b")),
    "a Host with a path": refused((POST + EMPTY).replace(b"Host: a", b"Host: a/b")),
    "a Host with a user": refused((POST + EMPTY).replace(b"Host: a", b"Host: u@a")),
    "a Host with a scheme": refused((POST + EMPTY).replace(b"Host: a", b"Host: http://a")),
    "a Host with a port that is none": refused((POST + EMPTY).replace(b"Host: a", b"Host: a:b")),
    "half an address as a Host": refused((POST + EMPTY).replace(b"Host: a", b"Host: [::1")),
    "a Host in another alphabet": refused((POST + EMPTY).replace(b"Host: a", b"Host: \xc3\xa9")),
    "an address as a Host": served((POST + EMPTY).replace(b"Host: a", b"Host: [::1]:8080")),
    "no Host in HTTP/1.0": served((POST + EMPTY).replace(b"1.1\r\nHost: a", b"1.0"), closed=True),
    "two Hosts in HTTP/1.0": Row(
        (POST + b"Host: b\r\n" + EMPTY).replace(b"1.1", b"1.0"), 400, "request-malformed"
    ),
    # Targets (§3.2)
    "an absolute target": refused((POST + EMPTY).replace(b"/orders", b"http://a/orders")),
    "an authority as a target": malformed((POST + EMPTY).replace(b"/orders", b"a:80")),
    "a target without its slash": malformed((POST + EMPTY).replace(b"/orders", b"orders")),
    "an asterisk to POST": refused((POST + EMPTY).replace(b"/orders", b"*")),
    "an asterisk to OPTIONS": refused(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "no-route", 404),
    "a fragment": refused((POST + EMPTY).replace(b"/orders", b"/orders#a")),
    "a space in the target": malformed((POST + EMPTY).replace(b"/orders", b"/or ders")),
    "another alphabet in the target": malformed((POST + EMPTY).replace(b"/orders", b"/\xc3\xa9")),
    "a control byte in the target": malformed((POST + EMPTY).replace(b"/orders", b"/\x01")),
    "no target": malformed(b"POST HTTP/1.1\r\nHost: a\r\n" + KEY + EMPTY),
    "a path that reads two ways": refused((POST + EMPTY).replace(b"/orders", b"/open/../orders")),
    # Methods (RFC 9110 §9)
    "CONNECT": malformed(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    "CONNECT to a path": malformed(b"CONNECT /orders HTTP/1.1\r\nHost: a\r\n" + KEY + b"\r\n"),
    "an unknown method": malformed((POST + EMPTY).replace(b"POST", b"BREW")),
    "a method in lower case": malformed((POST + EMPTY).replace(b"POST", b"post")),
    "no method": malformed(b"/orders HTTP/1.1\r\nHost: a\r\n" + KEY + EMPTY),
    # Versions (RFC 9112 §2.3)
    "HTTP/2.0": Row((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/2.0"), 505, "version-unsupported"),
    "HTTP/2's preface": Row(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version-unsupported"),
    "HTTP/3.7": Row((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/3.7"), 505, "version-unsupported"),
    "HTTP/1.2": Row((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/1.2"), 505, "version-unsupported"),
    "HTTP/0.9": Row(b"GET /orders\r\n\r\n", 505, "version-unsupported"),
    "HTTP/0.9 by name": Row((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/0.9"), 505, "version-unsupported"),
    "http/1.1": malformed((POST + EMPTY).replace(b"HTTP/1.1", b"http/1.1")),
    "another protocol": malformed((POST + EMPTY).replace(b"HTTP/1.1", b"ICAP/1.0")),
    "something behind the version": malformed((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/1.1 x")),
    "TLS": malformed(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "SSH": malformed(b"SSH-2.0-OpenSSH_9.2\r\n"),
    # The key
    "an empty key": refused(with_key(b""), "key-invalid"),
    "an empty quoted key": refused(with_key(b'""'), "key-invalid"),
    "half a quoted key": refused(with_key(b'"k'), "key-invalid"),
    "a quoted key and more": refused(with_key(b'"k" l'), "key-invalid"),
    "a key with a space": refused(with_key(b"a b"), "key-invalid"),
    "a key in another alphabet": refused(with_key(b"caf\xc3\xa9"), "key-invalid"),
    "a key that is too long": refused(with_key(b"k" * 256), "key-invalid"),
    "a key as long as one may be": served(with_key(b"k" * 255)),
    "a key twice": refused(with_key(b"k", b"idempotency-KEY: k\r\n"), "key-invalid"),
    "two keys": refused(with_key(b"k", b"Idempotency-Key: l\r\n"), "key-invalid"),
    "two keys in two fields": refused(with_key(b"k", b"X-Idempotency-Key: l\r\n"), "key-invalid"),
    "one key in two fields and two spellings": served(with_key(b"k", b'X-Idempotency-Key: "k"\r\n')),
    "one key that cannot be read beside one that can": refused(
        with_key(b"k", b'X-Idempotency-Key: "k\r\n'), "key-invalid"
    ),
    # Connection
    "Connection names the key": refused(POST + b"Connection: Idempotency-Key\r\n" + EMPTY, "key-invalid"),
    "Connection names the other key": refused(POST + b"Connection: x-idempotency-key\r\n" + EMPTY, "key-invalid"),
    "Connection names the key that is not there": refused(
        HEAD + b"Connection: Idempotency-Key\r\n" + EMPTY, "key-invalid"
    ),
    "Connection names the credentials": refused(
        POST + b"Connection: keep-alive, Authorization\r\nAuthorization: Basic x\r\n" + EMPTY, "key-invalid"
    ),
    "Connection names the cookies": refused(POST + b"Connection: cookie\r\n" + EMPTY, "key-invalid"),
    "Connection names the content type": refused(POST + b"Connection: Content-Type\r\n" + EMPTY, "key-invalid"),
    "Connection names the length": refused(POST + b"Connection: Content-Length\r\n" + EMPTY, "key-invalid"),
    "Connection names the coding": refused(
        POST + b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "key-invalid"
    ),
    "Connection names Host": refused(POST + b"Connection: Host\r\n" + EMPTY),
    "Connection names Host, unguarded": refused(b"GET /open/x HTTP/1.1\r\nHost: a\r\nConnection: hOsT, x\r\n\r\n"),
    "Connection names what is for one hop": served(POST + b"Connection: TE, X-Mine\r\nTE: trailers\r\n" + EMPTY),
    # Expectations (RFC 9110 §10.1.1)
    "an expectation that nobody knows": malformed(POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\n"),
    "an expectation that nobody knows, and its body": malformed(
        POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "an expectation and another": malformed(POST + b"Expect: 100-continue, x\r\nContent-Length: 5\r\n\r\n"),
    # Sizes
    "a head that is too large": refused(POST + b"X: " + b"x" * (70 << 10) + b"\r\n" + EMPTY, "head-too-large", 431),
    "a head without end": Row(POST + b"X: " + b"x" * (200 << 10), 431, "head-too-large"),
    "too many fields": refused(POST + b"X: x\r\n" * 98 + EMPTY, "head-too-large", 431),
    "as many fields as there may be": served(POST + b"X: x\r\n" * 97 + EMPTY),
    "a target that is too long": refused(
        (POST + EMPTY).replace(b"/orders", b"/" + b"x" * (16 << 10)), "target-too-long", 414
    ),
    "a target as long as one may be": served((POST + EMPTY).replace(b"/orders", b"/" + b"x" * ((16 << 10) - 1))),
    "a target without end": Row(b"POST /" + b"x" * (200 << 10), 414, "target-too-long"),
    "a body that is too large by its length": Row(
        POST + b"Content-Length: 3000000\r\n\r\nhello", 413, "body-too-large"
    ),
    "a body that is too large, and there": Row(
        POST + b"Content-Length: 2000000\r\n\r\n" + b"x" * 2_000_000, 413, "body-too-large"
    ),
    "a chunked body that is too large": Row(
        CHUNKED + b"186a0\r\n" + b"x" * 100_000 + b"\r\n" + (b"186a0\r\n" + b"x" * 100_000 + b"\r\n") * 11,
        413,
        "body-too-large",
    ),
    "a body that may be as large as it likes, unguarded": served(
        b"POST /open/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000
    ),
    # The same rules where nothing is guarded
    "a length and chunked, unguarded": malformed(
        b"POST /open/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "no Host, unguarded": refused(b"GET /open/x HTTP/1.1\r\n\r\n"),
    "gzip, unguarded": Row(
        b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "coding-unsupported"
    ),
    "a folded value, unguarded": malformed(b"GET /open/x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
}  # fmt: skip

LIMITS = "defaults: {max_request: 1MiB}"


@pytest.mark.parametrize("name", ROWS)
async def test_a_bad_request(origin: Origin, name: str) -> None:
    """It is answered with its own problem, and nothing of it reaches the upstream; not even what stands behind
    it on a connection that is closed."""
    row = ROWS[name]
    async with edge(configuration(origin.url, top=LIMITS)) as gate:
        client = await gate.connect()
        behind = b"GET /open/behind HTTP/1.1\r\nHost: a\r\n\r\n"
        client.writer.write(row.sent)
        answer = await client.read(method=row.method)
        assert (answer.status, answer.problem) == (row.status, row.problem)
        assert len(origin.requests) == row.forwards
        if row.problem is not None:
            assert answer.label == "refused"
            assert answer.get("Idempotency-Outcome") == "no-effect"
        assert (answer.get("Connection") == "close") is row.closed
        if row.closed:
            client.writer.write(behind)
            assert await drain(client) == b""
            client.close()
            await gate.emptied()
            assert len(origin.requests) == row.forwards
        else:
            await client.send(behind)
            assert (await client.read(method=b"GET")).status == 201
            assert origin.requests[-1].target == b"/open/behind"
        # Whatever it was, it took no key.
        if row.forwards == 0:
            first = await ask(gate.port, key="k", body=b"", host="a")
            assert (first.status, first.label) == (201, "stored")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.closed and row.problem])
async def test_what_stands_behind_a_bad_request_is_not_read(origin: Origin, name: str) -> None:
    """In the same packet, as whoever smuggles sends it: one answer, and no forward."""
    row = ROWS[name]
    async with edge(configuration(origin.url, top=LIMITS)) as gate:
        client = await gate.connect()
        client.writer.write(row.sent + b"POST /open/smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 2)
        answer = await client.read(method=row.method)
        assert (answer.status, answer.problem) == (row.status, row.problem)
        assert await drain(client) == b""
        await gate.settled()
        assert origin.requests == []


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if len(row.sent) < 4096])
async def test_a_bad_request_in_small_pieces(origin: Origin, name: str) -> None:
    """How the bytes are cut into packets makes no difference. Fed to the gate's protocol byte by byte."""
    row = ROWS[name]
    async with edge(configuration(origin.url, top=LIMITS)) as gate:
        client = await gate.connect()
        await client.send(b"\r\n")
        await eventually(lambda: gate.server.connections, "it is connected")
        connection = gate.connection
        for byte in row.sent:
            connection.data_received(bytes((byte,)))
        answer = await client.read(method=row.method)
        assert (answer.status, answer.problem) == (row.status, row.problem)
        assert len(origin.requests) == row.forwards

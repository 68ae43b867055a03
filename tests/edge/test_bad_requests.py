"""Requests that are refused, and some that only look as if they should be: the status, the problem, how often the
upstream is asked, and whether the connection goes on. What the upstream is asked is parsed by h11, strictly, and must
be one message that no two readers can read in two ways."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.edge.stand import ByHand, drain, edge, eventually, head_of, piece
from tests.harness import Origin, Received, ask, configuration
from tests.tokens.issuer import EC_KEY, ISSUER, jwk, published

KEY = b"Idempotency-Key: k\r\n"
HEAD = b"POST /orders HTTP/1.1\r\nHost: a\r\n"
#: A guarded request, up to the fields that a row adds.
POST = HEAD + KEY
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Row:
    """`closed`: whether the connection ends behind the answer. `forwards`: what reached the upstream by then, and of
    it `target` (the client's own where it is not given), `host` and `body`."""

    sent: bytes
    status: int
    problem: str | None
    forwards: int = 0
    closed: bool = True
    target: bytes | None = None
    #: None: the upstream's own.
    host: bytes | None = b"a"
    body: bytes = b""

    @property
    def method(self) -> bytes:
        return b"GET" if self.sent.startswith(b"GET") else b"POST"


def malformed(sent: bytes) -> Row:
    """llhttp, or the door, cannot go on behind it."""
    return Row(sent, 400, "request-malformed")


def refused(sent: bytes, problem: str = "request-malformed", status: int = 400) -> Row:
    """It was read whole, so the connection goes on."""
    return Row(sent, status, problem, closed=False)


def unknown(sent: bytes) -> Row:
    """A method that HTTP does not define, or not for this gateway. It cannot be parsed any further."""
    return Row(sent, 501, "method-unsupported")


def unexpected(sent: bytes) -> Row:
    """An expectation other than 100-continue."""
    return Row(sent, 417, "expectation-failed")


def served(
    sent: bytes, *, closed: bool = False, target: bytes | None = None, host: bytes | None = b"a", body: bytes = b""
) -> Row:
    return Row(sent, 201, None, 1, closed, target, host, body)


def to(target: bytes, host: bytes = b"Host: a", version: bytes = b"HTTP/1.1", method: bytes = b"POST") -> bytes:
    return b"%b %b %b\r\n%b\r\n" % (method, target, version, host) + KEY + EMPTY


def hosted(host: bytes) -> bytes:
    return to(b"/orders", b"Host: " + host)


def keyless(method: bytes, target: bytes, extra: bytes = b"\r\n") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: a\r\n" % (method, target) + extra


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
    "a length with a leading zero": served(POST + b"Content-Length: 005\r\n\r\nhello", body=b"hello"),
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
    "chunks with extensions and trailers": served(CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", body=b"hello"),
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
    "an address as a Host": served((POST + EMPTY).replace(b"Host: a", b"Host: [::1]:8080"), host=b"[::1]:8080"),
    "no Host in HTTP/1.0": served((POST + EMPTY).replace(b"1.1\r\nHost: a", b"1.0"), closed=True, host=None),
    "two Hosts in HTTP/1.0": Row(
        (POST + b"Host: b\r\n" + EMPTY).replace(b"1.1", b"1.0"), 400, "request-malformed"
    ),
    # Targets (§3.2)
    "an authority as a target": malformed((POST + EMPTY).replace(b"/orders", b"a:80")),
    "a target without its slash": malformed((POST + EMPTY).replace(b"/orders", b"orders")),
    "an asterisk to POST": refused((POST + EMPTY).replace(b"/orders", b"*")),
    "an asterisk to OPTIONS": Row(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204, None, closed=False),
    "an asterisk to OPTIONS without Host": refused(b"OPTIONS * HTTP/1.1\r\n\r\n"),
    "an asterisk to OPTIONS with a body": Row(
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 204, None, closed=False
    ),
    "an asterisk to OPTIONS that may go no further": Row(
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n", 204, None, closed=False
    ),
    "a fragment": refused((POST + EMPTY).replace(b"/orders", b"/orders#a")),
    "a space in the target": malformed((POST + EMPTY).replace(b"/orders", b"/or ders")),
    "another alphabet in the target": served(to(b"/orders/caf\xc3\xa9")),
    "another alphabet in the query": served(to(b"/orders?a=\xff")),
    "another alphabet as a target": malformed((POST + EMPTY).replace(b"/orders", b"\xc3\xa9")),
    "another alphabet as a scheme": refused((POST + EMPTY).replace(b"/orders", b"\xc3\xa9://a/orders")),
    "another alphabet as an absolute target's host": refused(to(b"http://\xc3\xa9/orders")),
    "another alphabet in the version": malformed((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/1.\xc2\xb9")),
    "another alphabet behind the version": malformed((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/1.1\xc2\xa0")),
    "another alphabet's space in the target": malformed(
        (POST + EMPTY).replace(b"POST /orders", b"POST\xc2\xa0/orders")
    ),
    "another alphabet and a control byte in the target": malformed(to(b"/\xc3\xa9\x01")),
    "another alphabet and a fragment in the target": refused(to(b"/\xc3\xa9#a")),
    "another alphabet and a path that reads two ways": refused(to(b"/open/\xc3\xa9/../../orders")),
    "a control byte in the target": malformed((POST + EMPTY).replace(b"/orders", b"/\x01")),
    "no target": malformed(b"POST HTTP/1.1\r\nHost: a\r\n" + KEY + EMPTY),
    "a path that reads two ways": refused((POST + EMPTY).replace(b"/orders", b"/open/../orders")),
    # Methods (RFC 9110 §9)
    "CONNECT": malformed(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    "CONNECT to a path": malformed(b"CONNECT /orders HTTP/1.1\r\nHost: a\r\n" + KEY + b"\r\n"),
    "an unknown method": unknown((POST + EMPTY).replace(b"POST", b"BREW")),
    "a method in lower case": unknown((POST + EMPTY).replace(b"POST", b"post")),
    "a method with every kind of character": unknown((POST + EMPTY).replace(b"POST", b"!#$%&'*+-.^_`|~0aZ")),
    "an unknown method in HTTP/1.0": unknown((POST + EMPTY).replace(b"POST", b"BREW").replace(b"1.1", b"1.0")),
    "an unknown method and no version": malformed((POST + EMPTY).replace(b"POST", b"BREW").replace(b" HTTP/1.1", b"")),
    "an unknown method and another protocol": malformed(
        (POST + EMPTY).replace(b"POST", b"BREW").replace(b"HTTP", b"ICAP")
    ),
    "a method in another alphabet": malformed((POST + EMPTY).replace(b"POST", b"P\xc3\x96ST")),
    "a method of RTSP": unknown((POST + EMPTY).replace(b"POST", b"SETUP")),
    "a method that IIS traces with": unknown(keyless(b"TRACK", b"/orders")),
    "no method": malformed(b"/orders HTTP/1.1\r\nHost: a\r\n" + KEY + EMPTY),
    # Versions (RFC 9112 §2.3)
    "HTTP/2.0": Row((POST + EMPTY).replace(b"HTTP/1.1", b"HTTP/2.0"), 505, "version-unsupported"),
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
    "an expectation that nobody knows": unexpected(POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\n"),
    "an expectation that nobody knows, and its body": unexpected(
        POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "an expectation and another": unexpected(POST + b"Expect: 100-continue, x\r\nContent-Length: 5\r\n\r\n"),
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
        b"POST /open/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000,
        body=b"x" * 2_000_000,
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

#: More of them, by what they try.
ROWS |= {
    # A framing in disguise
    "a length that is a fraction": malformed(POST + b"Content-Length: 5.0\r\n\r\nhello"),
    "a length with an exponent": malformed(POST + b"Content-Length: 1e1\r\n\r\nhello"),
    "a length with an underscore": malformed(POST + b"Content-Length: 1_0\r\n\r\nhello"),
    "a length in quotes": malformed(POST + b'Content-Length: "5"\r\n\r\nhello'),
    "a length behind a comma": malformed(POST + b"Content-Length: ,5\r\n\r\nhello"),
    "a length and a vertical tab": malformed(POST + b"Content-Length: 5\x0b\r\n\r\nhello"),
    "a length between tabs": served(POST + b"Content-Length:\t5\t\r\n\r\nhello", body=b"hello"),
    "chunked in capitals behind a tab": served(
        POST + b"tRANSFER-eNCODING:\tCHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", body=b"hello"
    ),
    "chunked behind a comma": served(
        POST + b"Transfer-Encoding: ,chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", body=b"hello"
    ),
    "chunked before a comma": malformed(POST + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n"),
    "chunked in quotes": Row(POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 501, "coding-unsupported"),
    "chunked in a folded line": malformed(POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "chunked and NUL": malformed(POST + b"Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n"),
    "deflate, chunked": refused(
        POST + b"Transfer-Encoding: deflate, chunked\r\n\r\n0\r\n\r\n", "coding-unsupported", 501
    ),
    "identity, then chunked in another field": refused(
        POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "coding-unsupported", 501
    ),
    "a coding with an underscore": served(POST + b"Transfer_Encoding: chunked\r\n" + EMPTY),
    "a length with an underscore in its name": served(POST + b"Content_Length: 5\r\n" + EMPTY),
    "a GET with two framings": malformed(
        keyless(b"GET", b"/open/x", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    ),
    "a GET with a body": served(
        keyless(b"GET", b"/open/x", b"Content-Length: 5\r\n\r\nhello"), body=b"hello"
    ),
    # Chunks
    "a chunk size with zeros before it": served(
        CHUNKED + b"00000000000000000005\r\nhello\r\n000\r\n\r\n", body=b"hello"
    ),
    "a chunk size in capitals": served(CHUNKED + b"A\r\nhellohello\r\n0\r\n\r\n", body=b"hellohello"),
    "a chunk size behind a space": malformed(CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a sign": malformed(CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size ended by CR": malformed(CHUNKED + b"5\rhello\r\n0\r\n\r\n"),
    "a chunk ended by LF": malformed(CHUNKED + b"5\r\nhello\n0\r\n\r\n"),
    "a space before a chunk extension": malformed(CHUNKED + b"5 ;a\r\nhello\r\n0\r\n\r\n"),
    "a chunk extension with a CR in it": malformed(CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "a chunk extension with a quoted line end": malformed(CHUNKED + b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n'),
    "a chunk extension with NUL": malformed(CHUNKED + b"5;a=\0\r\nhello\r\n0\r\n\r\n"),
    "a folded trailer": malformed(CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n"),
    "NUL in a trailer": malformed(CHUNKED + b"0\r\nX: \0\r\n\r\n"),
    "a trailer without a colon": malformed(CHUNKED + b"0\r\nX\r\n\r\n"),
    "a coding in the trailers": malformed(CHUNKED + b"0\r\nTransfer-Encoding: gzip\r\n\r\n"),
    "another Host in the trailers": served(CHUNKED + b"0\r\nHost: b\r\n\r\n"),
    "another key in the trailers": served(CHUNKED + b"0\r\nIdempotency-Key: l\r\n\r\n"),
    # Lines
    "the head's end is a LF": malformed(POST + b"Content-Length: 0\r\n\n"),
    "two CR before a LF": malformed(POST + b"Content-Length: 0\r\r\n\r\n"),
    "lines ended by CR": malformed((POST + EMPTY).replace(b"\r\n", b"\r")),
    "a space before the method": malformed(b" " + POST + EMPTY),
    "a byte order mark": malformed(b"\xef\xbb\xbf" + POST + EMPTY),
    "tabs in the request line": malformed((POST + EMPTY).replace(b"POST /orders ", b"POST\t/orders\t")),
    "two spaces before the target": served((POST + EMPTY).replace(b"POST ", b"POST  "), target=b"/orders"),
    "a line end in the target": Row(to(b"/orders\r\nX: y"), 505, "version-unsupported"),
    "PROXY protocol": malformed(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + POST + EMPTY),
    "PROXY protocol without addresses": malformed(b"PROXY UNKNOWN\r\n" + POST + EMPTY),
    "half of PROXY protocol 2": malformed(b"\r\n\r\n\x00\r\nQUIX\n" + POST + EMPTY),
    "JSON": malformed(b'{"a":1}\r\n\r\n'),
    "a parenthesis in a name": malformed(POST + b"X(: a\r\n" + EMPTY),
    "a slash in a name": malformed(POST + b"X/Y: a\r\n" + EMPTY),
    "a tab and spaces in a value": served(POST + b"X: \t a\tb \t\r\n" + EMPTY),
    "no value": served(POST + b"X:\r\n" + EMPTY),
    # Host
    "an empty Host": served(to(b"/orders", b"Host:"), host=b""),
    "a Host with a port only": refused(hosted(b":80")),
    "a Host with a long port": refused(hosted(b"a:123456")),
    "a Host with an empty port": served(hosted(b"a:"), host=b"a:"),
    "a Host with a broken escape": refused(hosted(b"a%zz")),
    "a Host with an escape": served(hosted(b"a%41"), host=b"a%41"),
    "a Host with a query": refused(hosted(b"a?b")),
    "a Host with a fragment": refused(hosted(b"a#b")),
    "a Host with a backslash": refused(hosted(b"a\\b")),
    "a Host that is no address": refused(hosted(b"[1:2]")),
    "a Host with a zone": refused(hosted(b"[fe80::1%25eth0]")),
    "something behind an address as a Host": refused(hosted(b"[::1]a")),
    "a folded Host": malformed(to(b"/orders", b"Host:\r\n a")),
    "a Host with a space before its colon": malformed(to(b"/orders", b"Host : a")),
    "NUL in a Host": malformed(hosted(b"a\0b")),
    "a Host with an underscore": served(to(b"/orders", b"Host: a_b"), host=b"a_b"),
    # Targets in absolute form (RFC 9112 §3.2.2): their own host counts, and the path is what goes on
    "an absolute target": served(to(b"http://a/orders?q=1"), target=b"/orders?q=1"),
    "an absolute target for another host": served(to(b"http://b:80/orders"), target=b"/orders", host=b"b:80"),
    "an absolute target in capitals": served(to(b"HTTP://B/Orders"), target=b"/Orders", host=b"B"),
    "an absolute target without a path": served(to(b"http://a"), target=b"/"),
    "an absolute target with a query only": served(to(b"http://a?x=1"), target=b"/?x=1"),
    "an absolute target at an address": served(to(b"http://[::1]:8/orders"), target=b"/orders", host=b"[::1]:8"),
    "an absolute target in HTTP/1.0": served(
        to(b"http://a/orders", version=b"HTTP/1.0"), target=b"/orders", closed=True
    ),
    "an absolute target without Host in HTTP/1.0": served(
        to(b"http://b/orders", b"X: y", version=b"HTTP/1.0"), target=b"/orders", host=b"b", closed=True
    ),
    "an absolute target without Host": refused(to(b"http://a/orders", b"X: y")),
    "an absolute target and two Hosts": refused(to(b"http://a/orders", b"Host: a\r\nHost: b")),
    "an absolute target and a Host that is none": refused(to(b"http://a/orders", b"Host: a b")),
    "an absolute target with a user": refused(to(b"http://a@b/orders")),
    "an absolute target without a host": refused(to(b"http:///orders")),
    "an absolute target whose host is none": refused(to(b"http://a%zz/orders")),
    "an absolute target of a secured scheme": refused(to(b"https://a/orders")),
    "an absolute target of another scheme": refused(to(b"ftp://a/orders")),
    "an absolute target with a fragment": refused(to(b"http://a/orders#b")),
    "an absolute target that reads two ways": refused(to(b"http://a/open/../orders")),
    "OPTIONS to a whole server": Row(keyless(b"OPTIONS", b"http://a"), 204, None, closed=False),
    # Targets in origin form: byte for byte
    "a broken escape": refused(to(b"/orders/%zz")),
    "half an escape": refused(to(b"/orders/%")),
    "a fragment only": refused(to(b"/#")),
    "a query only": malformed(to(b"?orders")),
    "an escaped NUL": served(to(b"/orders/%00")),
    "doubled slashes": served(to(b"//orders//1")),
    "what should have been escaped": served(to(b'/orders/<>"{}|\\^`?[a]=\'')),
    "dot segments in the query": served(to(b"/orders?x=/../open/")),
    "parameters": served(to(b"/orders;a=b/1;c")),
    "DEL in the target": malformed(to(b"/orders\x7f")),
    # Methods and hops (RFC 9110 §7.6.2, §9.3.8)
    "OPTIONS that may go no further": refused(
        keyless(b"OPTIONS", b"/orders", b"Max-Forwards: 0\r\n\r\n"), "no-route", 404
    ),
    "OPTIONS that may go further": served(keyless(b"OPTIONS", b"/orders", b"Max-Forwards: 10\r\n\r\n")),
    "TRACE": refused(
        keyless(b"TRACE", b"/orders", b"Authorization: Basic x\r\nCookie: a=b\r\n\r\n"), "method-not-allowed", 405
    ),
    "TRACE of what is not guarded": refused(keyless(b"TRACE", b"/open/x"), "method-not-allowed", 405),
    "TRACE that may go no further": refused(
        keyless(b"TRACE", b"/orders", b"Max-Forwards: 00\r\n\r\n"), "method-not-allowed", 405
    ),
    "TRACE with a body": refused(
        keyless(b"TRACE", b"/orders", b"Content-Length: 5\r\n\r\nhello"), "method-not-allowed", 405
    ),
    "TRACE that its route names": served(keyless(b"TRACE", b"/traced")),
    "TRACE that its route names and that may go further": served(
        keyless(b"TRACE", b"/traced", b"Max-Forwards: 10\r\n\r\n")
    ),
    "TRACE that its route names and that may go no further": refused(
        keyless(b"TRACE", b"/traced", b"Max-Forwards: 00\r\n\r\n"), "no-route", 404
    ),
    "TRACE that its route names with hops in words": refused(
        keyless(b"TRACE", b"/traced", b"Max-Forwards: few\r\n\r\n")
    ),
    "TRACE that its route names with hops twice": refused(
        keyless(b"TRACE", b"/traced", b"Max-Forwards: 5\r\nMax-Forwards: 0\r\n\r\n")
    ),
    "TRACE that its route names with a body": refused(
        keyless(b"TRACE", b"/traced", b"Content-Length: 5\r\n\r\nhello")
    ),
    "POST that may go no further": served(POST + b"Max-Forwards: 0\r\n" + EMPTY),
    "a method of WebDAV": served(to(b"/orders", method=b"LOCK")),
    "a method that only begins like one": unknown(to(b"/orders", method=b"POSTX")),
    # Versions
    "HTTP/1.10": malformed(to(b"/orders", version=b"HTTP/1.10")),
    "HTTP/01.1": malformed(to(b"/orders", version=b"HTTP/01.1")),
    "HTTP/1.": malformed(to(b"/orders", version=b"HTTP/1.")),
    "HTTP/11": malformed(to(b"/orders", version=b"HTTP/11")),
    # Connection
    "Connection names an API key": refused(POST + b"Connection: X-API-Key\r\nX-API-Key: z\r\n" + EMPTY, "key-invalid"),
    "Connection names the key between tabs": refused(
        POST + b"Connection: \tidempotency-KEY\t\r\n" + EMPTY, "key-invalid"
    ),
    "Connection names the key in its second field": Row(
        POST + b"Connection: close\r\nConnection: x, Idempotency-Key\r\n" + EMPTY, 400, "key-invalid"
    ),
    "Connection names who sent it": served(
        POST + b"Connection: Via, X-Forwarded-For\r\nVia: 1.1 x\r\nX-Forwarded-For: 192.0.2.1\r\n" + EMPTY
    ),
    "Connection names nothing": served(POST + b"Connection: ,,\r\n" + EMPTY),
    "fields of old proxies": served(
        POST + b"Proxy-Connection: x\r\nKeep-Alive: timeout=5\r\nProxy-Authorization: Basic x\r\nTE: gzip\r\n" + EMPTY
    ),
    # Upgrades on a guarded request are ignored, with whatever stands behind them
    "an upgrade to HTTP/2": served(
        POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n" + EMPTY
    ),
    "an upgrade with a body": served(
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello", body=b"hello"
    ),
    "an upgrade with chunks": served(
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        body=b"hello",
    ),
    "an upgrade that Connection does not name": served(POST + b"Upgrade: h2c\r\n" + EMPTY),
    # Expectations
    "an expectation in HTTP/1.0": served(
        (POST + b"Expect: 100-continue\r\n" + EMPTY).replace(b"1.1", b"1.0"), closed=True
    ),
    "an expectation in capitals": served(
        POST + b"Expect: 100-Continue\r\nContent-Length: 5\r\n\r\nhello", body=b"hello"
    ),
}  # fmt: skip

#: Fields that are for one hop, and what nobody but the gate says of it.
ONE_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"upgrade",
    b"http2-settings", b"transfer_encoding", b"content_length", b"expect",
}  # fmt: skip


def lawful(received: Received, row: Row) -> None:
    """What the gate sends is one message, in one framing, for one host, with nothing of the last hop in it."""
    assert received.method == row.sent.split()[0]
    assert received.target == (row.target or row.sent.split()[1])
    assert received.body == row.body
    (host,) = received.values(b"host")
    assert host == row.host or (row.host is None and host.startswith(b"127.0.0.1:"))
    sized = any(word in row.sent.lower() for word in (b"content-length", b"chunked"))
    assert received.values(b"content-length") == ([b"%d" % len(row.body)] if sized else [])
    assert received.values(b"transfer-encoding") == []
    assert not ONE_HOP & {name.lower() for name, _ in received.fields}
    (via,) = received.values(b"via")
    assert via.endswith(b"1.1 oncegate")
    (chain,) = received.values(b"x-forwarded-for")
    assert chain.endswith(b"127.0.0.1")
    if row.host:
        assert received.values(b"x-forwarded-host") == [row.host]
    if b"Max-Forwards: 10" in row.sent:
        assert received.values(b"max-forwards") == [b"9"]


LIMITS = "defaults: {max_request: 1MiB}"
#: A route that wants what is refused unless a route wants it.
TRACED = "  - {name: traced, match: {path: /traced, methods: [GET, TRACE]}, upstream: origin}"


@pytest.mark.parametrize("name", ROWS)
async def test_a_bad_request(origin: Origin, name: str) -> None:
    """It is answered with its own problem, and nothing of it reaches the upstream; not even what stands behind
    it on a connection that is closed."""
    row = ROWS[name]
    async with edge(configuration(origin.url, top=LIMITS, routes=TRACED)) as gate:
        client = await gate.connect()
        behind = b"GET /open/behind HTTP/1.1\r\nHost: a\r\n\r\n"
        client.writer.write(row.sent)
        answer = await client.read(method=row.method)
        assert (answer.status, answer.problem) == (row.status, row.problem)
        assert len(origin.requests) == row.forwards
        for received in origin.requests:
            lawful(received, row)
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
    async with edge(configuration(origin.url, top=LIMITS, routes=TRACED)) as gate:
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
    async with edge(configuration(origin.url, top=LIMITS, routes=TRACED)) as gate:
        client = await gate.connect()
        await client.send(b"\r\n")
        await eventually(lambda: gate.server.connections, "it is connected")
        connection = gate.connection
        for byte in row.sent:
            connection.data_received(bytes((byte,)))
        answer = await client.read(method=row.method)
        assert (answer.status, answer.problem) == (row.status, row.problem)
        assert len(origin.requests) == row.forwards


@pytest.mark.parametrize(
    "name", [name for name, row in ROWS.items() if b"transfer-encoding" in row.sent.lower() and row.problem]
)
async def test_a_bad_coding_after_good_ones(origin: Origin, name: str) -> None:
    """The admission remembers heads by their names. A chunked request with these names makes no other coding good."""
    row = ROWS[name]
    async with edge(configuration(origin.url, top=LIMITS, routes=TRACED)) as gate:
        client = await gate.connect()
        for key in (b"3f2a91c4-7e0b", b"3f2a91c4-7e0c"):
            await client.send(
                HEAD + b"Idempotency-Key: " + key + b"\r\n" + CHUNKED[len(POST) :] + b"2\r\nab\r\n0\r\n\r\n"
            )
            assert (await client.read()).label == "stored"
        assert [received.body for received in origin.requests] == [b"ab", b"ab"]
        # A weak key would have the head looked at once more.
        client.writer.write(row.sent.replace(KEY, b"Idempotency-Key: 3f2a91c4-7e0d\r\n"))
        answer = await client.read(method=row.method)
        assert (answer.status, answer.problem) == (row.status, row.problem)
        assert len(origin.requests) == 2 + row.forwards


async def test_chunked_requests_pass_through_one_after_the_other(origin: Origin) -> None:
    """The head of the second is remembered from the first. Its body is whole all the same."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        for _ in range(3):
            await client.send(
                b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
            )
            assert (await client.read()).status == 201
        assert [received.body for received in origin.requests] == [b"ab"] * 3


# ── Refused by the head alone ─────────────────────────────────────────────────────────────────────

#: What is wrong with a head, and how it is refused. The fields that announce a body are added to each.
BY_HEAD = {
    "no Host": (b"POST /orders HTTP/1.1\r\n" + KEY, 400, "request-malformed"),
    "two Hosts": (HEAD + b"Host: b\r\n" + KEY, 400, "request-malformed"),
    "no route": (b"POST /nowhere HTTP/1.1\r\nHost: other.test\r\n" + KEY, 404, "no-route"),
    "a path that reads two ways": (b"POST /open/../orders HTTP/1.1\r\nHost: a\r\n" + KEY, 400, "request-malformed"),
    "no key": (HEAD, 400, "key-missing"),
    "two keys": (POST + b"Idempotency-Key: l\r\n", 400, "key-invalid"),
    "a malformed key": (HEAD + b'Idempotency-Key: "k\r\n', 400, "key-invalid"),
    "no scope": (b"POST /scoped HTTP/1.1\r\nHost: a\r\n" + KEY, 400, "scope-missing"),
    "an invalid token": (
        b"POST /proved HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer none\r\n" + KEY, 401, "scope-invalid"
    ),
    "Connection names the key": (POST + b"Connection: Idempotency-Key\r\n", 400, "key-invalid"),
    "a bad expectation": (POST + b"Expect: 200-ok\r\n", 417, "expectation-failed"),
    "TRACE": (b"TRACE /orders HTTP/1.1\r\nHost: a\r\n", 405, "method-not-allowed"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n", 204, None),
    "an unknown method": (b"BREW /orders HTTP/1.1\r\nHost: a\r\n", 501, "method-unsupported"),
    "a head that is too large": (POST + b"X: " + b"x" * (70 << 10) + b"\r\n", 431, "head-too-large"),
    "a target that is too long": (
        b"POST /" + b"x" * (16 << 10) + b" HTTP/1.1\r\nHost: a\r\n" + KEY, 414, "target-too-long"
    ),
    "a body that is too large": (b"POST /small HTTP/1.1\r\nHost: a\r\n" + KEY, 413, "body-too-large"),
    "a page of another origin": (HEAD + b"Origin: https://shop.test\r\n", 400, "key-missing"),
    "the published policy": (b"GET /.well-known/idempotency HTTP/1.1\r\nHost: a\r\n", 200, None),
}  # fmt: skip
#: How a body is announced, and what of it arrives with the head.
BODIES = {
    "a length and nothing of it": (b"Content-Length: 1000\r\n", b""),
    "a length and some of it": (b"Content-Length: 1000\r\n", b"abc"),
    "chunks and none": (b"Transfer-Encoding: chunked\r\n", b""),
    "chunks and half of one": (b"Transfer-Encoding: chunked\r\n", b"3e8\r\nabc"),
    "an expectation": (b"Content-Length: 1000\r\nExpect: 100-continue\r\n", b""),
}
#: No refusal may wait for one of these.
PATIENT = "limits: {body_timeout: 1h, body_rate: 0B, head_timeout: 1h}\ncors: {origins: ['https://shop.test']}"


def strict(origin: Origin, keys: Path) -> str:
    """A configuration in which every refusal that a head can bring about comes about."""
    jwks = keys / "keys.json"
    jwks.write_bytes(published(jwk(EC_KEY)))
    routes = f"""
  - {{name: small, match: {{path: /small}}, upstream: origin, max_request: 100B}}
  - {{name: scoped, match: {{path: /scoped}}, upstream: origin, scope: [header:X-Tenant]}}
  - {{name: proved, match: {{path: /proved}}, upstream: origin, namespace: p, scope: [jwt:sub], bind: [],
      jwt: {{jwks: {jwks}, issuer: '{ISSUER}'}}}}
  - {{name: strict, match: {{host: a, path: /orders}}, upstream: origin, missing: refuse}}
"""
    text = configuration(origin.url, top=PATIENT, routes=routes)
    return text.replace("{name: all, match: {path: /**}", "{name: all, match: {host: a, path: /**}")


@pytest.mark.parametrize("announced", BODIES)
@pytest.mark.parametrize("fault", BY_HEAD)
async def test_a_refusal_does_not_wait_for_the_body(origin: Origin, tmp_path: Path, fault: str, announced: str) -> None:
    """The final response comes at once, without a 100 before it. The client may then send the rest of its body without
    a reset, and the request behind that body is not run."""
    head, status, problem = BY_HEAD[fault]
    fields, body = BODIES[announced]
    if fault == "a body that is too large" and b"chunked" in fields:
        body = b"3e8\r\n" + b"x" * 200
    async with edge(strict(origin, tmp_path)) as gate:
        client = await gate.connect()
        await client.send(head + fields + b"\r\n" + body)
        first = await head_of(client)
        assert first.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nConnection: close\r\n" in first
        rest = b"x" * (1000 - len(body)) if b"Length" in fields else b"0\r\n\r\n"
        client.writer.write(rest + b"POST /open/smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        data = await drain(client)  # and no reset
        if problem is not None:
            assert json.loads(data)["type"] == f"urn:oncegate:problem:{problem}"
        client.close()
        await gate.emptied()
        assert origin.requests == []


async def test_a_refusal_leaves_a_connection_whose_body_has_arrived(origin: Origin) -> None:
    """A client that sends the body along with the head keeps its connection, because nothing is missing."""
    async with edge(configuration(origin.url, top=PATIENT)) as gate:
        client = await gate.connect()
        for size in (0, 100, 60_000):  # in one piece, and in several
            await client.send(with_key(b"").removesuffix(EMPTY) + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
            answer = await client.read()
            assert (answer.status, answer.problem, answer.get("Connection")) == (400, "key-invalid", None)


async def test_a_refusal_behind_a_slow_request_does_not_wait_for_its_body(hand: ByHand) -> None:
    """It waits for its turn and for nothing else."""
    async with edge(configuration(hand.url, top=PATIENT)) as gate:
        client = await gate.connect()
        await client.send(POST + EMPTY + with_key(b"").removesuffix(EMPTY) + b"Content-Length: 9\r\n\r\nx")
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"first")
        assert (await client.read()).body == b"first"
        answer = await client.read()
        assert (answer.status, answer.problem, answer.get("Connection")) == (400, "key-invalid", "close")
        assert await drain(client) == b""


@pytest.mark.parametrize("reason", ["its size", "the memory of all bodies"])
async def test_a_body_that_shows_itself_unfit_is_refused_at_once(origin: Origin, reason: str) -> None:
    """The first chunk that does not fit is enough. The response does not wait for the chunks behind it."""
    policy = "max_request: 100B" if reason == "its size" else ""
    async with edge(configuration(origin.url, top=PATIENT, policy=policy)) as gate:
        budget, held = gate.server.door.budget, 0
        if reason != "its size":
            held = budget.total - budget.taken
            assert budget.take(held)
        client = await gate.connect()
        await client.send(CHUNKED + b"65\r\n" + b"x" * 101 + b"\r\n")
        answer = await client.read()
        budget.give(held)
        expected = (413, "body-too-large") if policy else (503, "overloaded")
        assert (answer.status, answer.problem, answer.get("Connection")) == (*expected, "close")
        assert await drain(client) == b""
        assert origin.requests == []


# ── What is no HTTP/1.1 ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", [b"BREW", b"SETUP", b"TRACE"])
async def test_what_is_refused_for_its_method_behind_a_request(origin: Origin, method: bytes) -> None:
    """In one packet with the request before it, which is served."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        chunks = CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"
        sized = POST.replace(b": k", b": l") + b"Content-Length: 5\r\n\r\nhello"
        await client.send(keyless(b"GET", b"/open/x") + chunks + sized + keyless(method, b"/orders"))
        assert [(await client.read()).status for _ in range(3)] == [201, 201, 201]
        answer = await client.read()
        expected = (405, "method-not-allowed") if method == b"TRACE" else (501, "method-unsupported")
        assert (answer.status, answer.problem) == expected
        assert len(origin.requests) == 3


async def test_the_methods_that_are_allowed(origin: Origin) -> None:
    """`Allow` comes with 405, which needs it (RFC 9110 §15.5.6), and with the answer to `OPTIONS *`."""
    async with edge(configuration(origin.url)) as gate:
        for sent, status in ((keyless(b"TRACE", b"/orders"), 405), (keyless(b"OPTIONS", b"*"), 204)):
            client = await gate.connect()
            await client.send(sent)
            answer = await client.read()
            assert answer.status == status
            assert answer.get("Allow") == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        assert answer.body == b""
        assert answer.get("Content-Length") is None  # RFC 9110 §8.6
        assert origin.requests == []


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12),
        b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
    ],
    ids=["1, IPv4", "1, IPv6", "1, unknown", "2", "2, local"],
)
@pytest.mark.parametrize("cut", [False, True])
async def test_the_proxy_protocol_is_named_in_its_refusal(origin: Origin, header: bytes, cut: bool) -> None:
    """Its sender learns what to turn off; the request behind it is not run."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        if cut:
            for byte in header:
                await client.send(bytes((byte,)))
                await asyncio.sleep(0.001)
        else:
            await client.send(header + POST + EMPTY)
        answer = await client.read()
        assert (answer.status, answer.problem) == (400, "request-malformed")
        assert b"begins with the PROXY protocol, which is not supported. Turn it off" in answer.body
        assert await drain(client) == b""
        assert origin.requests == []


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize("cut", [False, True])
async def test_a_request_in_http_2_is_refused_in_http_2(origin: Origin, cut: bool) -> None:
    """SETTINGS come first, for a client that waits for them. A 505 with the problem follows on its stream,
    and then the end of the connection."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        asked = frame(8, 0, 0, b"\0\0\0\1") + frame(1, 4, 3, b"\x83\x86\x84\x41\x01a") + frame(0, 1, 3, b"hello")
        hello = PREFACE + frame(4, 0, 0)
        if cut:
            for byte in hello:
                await client.send(bytes((byte,)))
                await asyncio.sleep(0.001)
        else:
            await client.send(hello)
        assert await piece(client, 18) == frame(4, 0, 0) + frame(4, 1, 0)
        await client.send(asked)
        data, frames = await drain(client), []
        while data:
            size = 9 + int.from_bytes(data[:3], "big")
            frames.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:size]))
            data = data[size:]
        headers, body = frames
        assert headers[:3] == (1, 4, 3)
        assert headers[3].startswith(b"\x00\x07:status\x03505\x00\x0ccontent-type\x18application/problem+json\x00")
        assert body[:3] == (0, 1, 3)
        assert json.loads(body[3])["type"] == "urn:oncegate:problem:version-unsupported"
        client.close()
        assert origin.requests == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("arguments", [(), ("-d", "amount=1")], ids=["GET", "POST"])
async def test_curl_shows_why_http_2_is_refused(origin: Origin, arguments: tuple[str, ...]) -> None:
    """`curl --http2-prior-knowledge` prints the problem instead of "Empty reply from server"."""
    async with edge(configuration(origin.url)) as gate:
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-i", "--noproxy", "*", "--http2-prior-knowledge", *arguments,
            f"http://127.0.0.1:{gate.port}/orders", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        shown, _ = await curl.communicate()
        if b"does not support this" in shown:
            pytest.skip("this curl has no HTTP/2")
        assert shown.startswith(b"HTTP/2 505"), shown
        assert b'"urn:oncegate:problem:version-unsupported"' in shown
        if not arguments:  # else curl may find that it has not sent everything
            assert curl.returncode == 0
        assert origin.requests == []


async def test_http_2_behind_a_request_is_refused_in_http_1(origin: Origin) -> None:
    """Nothing may come between the answers of a connection that has begun in HTTP/1.1."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(POST + EMPTY + PREFACE)
        assert (await client.read()).status == 201
        answer = await client.read()
        assert (answer.status, answer.problem) == (505, "version-unsupported")


async def test_the_beginning_of_http_2_alone_is_not_awaited_for_ever(origin: Origin) -> None:
    """A client that sends no request behind its preface is let go after `head_timeout`."""
    async with edge(configuration(origin.url, top="limits: {head_timeout: 100ms}")) as gate:
        client = await gate.connect()
        await client.send(PREFACE + frame(4, 0, 0))
        assert (await drain(client)).startswith(frame(4, 0, 0))


# ── Targets with bytes that are not ASCII ─────────────────────────────────────────────────────────

RAW = {
    "UTF-8": b"/orders/caf\xc3\xa9",
    "in the query": b"/orders?name=J\xc3\xbcrgen&x=%C3%BC",
    "Latin-1": b"/orders/caf\xe9",
    "no text at all": b"/orders/\x80\xff\xfe",
    "beside escapes": b"/orders/%C3%A9\xc3\xa9%c3%a9",
    "first": b"/\xe2\x82\xac/orders",
    "long": b"/orders/" + b"\xe6\x97\xa5" * 5000,
}


def line_of(head: bytes) -> bytes:
    return head.partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "how", ["whole", "in bytes", "in halves", "behind another", "behind chunks", "behind line ends"]
)
@pytest.mark.parametrize("name", RAW)
async def test_a_target_in_another_alphabet_goes_on_byte_for_byte(hand: ByHand, name: str, how: str) -> None:
    """Guarded or not, and however the bytes are cut into packets. Fields in other alphabets stay as they are, too."""
    sent = to(RAW[name]).removesuffix(EMPTY) + b"X: caf\xc3\xa9\r\nContent-Length: 3\r\n\r\n\xc3\xa9!"
    if how == "in bytes" and len(sent) > 1000:
        pytest.skip("too many")
    before = {
        "behind another": keyless(b"POST", b"/open/x", b"Content-Length: 4\r\n\r\n\xc3\xa9\r\n"),
        "behind chunks": keyless(b"POST", b"/open/x", b"Transfer-Encoding: chunked\r\n\r\n2\r\n\xc3\xa9\r\n0\r\n\r\n"),
        "behind line ends": b"\r\n\r\n\r\n",
    }.get(how, b"")
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        pieces = [bytes((byte,)) for byte in sent] if how == "in bytes" else [before + sent]
        if how == "in halves":
            pieces = [sent[:20], sent[20:]]
        for part in pieces:
            await client.send(part)
            await asyncio.sleep(0.001 if len(pieces) > 1 else 0)
        peer = await hand.accept()
        if before.strip():
            await peer.head()
            body = b"\xc3\xa9\r\n" if how == "behind another" else b"2\r\n\xc3\xa9\r\n0\r\n\r\n"
            assert await peer.read(len(body)) == body
            await peer.answer()
            assert (await client.read()).status == 200
        head = await peer.head()
        assert line_of(head) == b"POST %b HTTP/1.1" % RAW[name]
        assert b"\r\nX: caf\xc3\xa9\r\n" in head
        assert await peer.read(3) == b"\xc3\xa9!"
        await peer.answer()
        assert (await client.read()).label == "stored"
        await client.send(keyless(b"GET", b"/open" + RAW[name]))
        assert line_of(await peer.head()) == b"GET /open%b HTTP/1.1" % RAW[name]
        await peer.answer()
        assert (await client.read(method=b"GET")).status == 200


async def test_a_target_in_another_alphabet_is_compared_byte_for_byte(hand: ByHand) -> None:
    """A repetition is replayed. The same path with escapes is another request."""
    async with edge(configuration(hand.url)) as gate:
        client = await gate.connect()
        await client.send(to(b"/orders/caf\xc3\xa9"))
        peer = await hand.accept()
        await peer.head()
        await peer.answer(b"first")
        assert (await client.read()).label == "stored"
        await client.send(to(b"/orders/caf\xc3\xa9"))
        again = await client.read()
        assert (again.body, again.replayed) == (b"first", True)
        await client.send(to(b"/orders/caf%C3%A9"))
        assert (await client.read()).problem == "key-reused"


@pytest.mark.parametrize("target", [b"/caf\xc3\xa9/1", b"/caf%C3%A9/1", b"/caf%c3%a9/1", b"/caf%C3\xa9/1"])
async def test_a_route_covers_both_spellings_of_its_path(hand: ByHand, target: bytes) -> None:
    """A service may read a raw byte as its escape, so neither spelling gets past the guard."""
    routes = "  - {name: cafe, match: {path: /caf%C3%A9/**}, upstream: origin, missing: refuse}"
    text = configuration(hand.url, routes=routes, policy="guard: false")
    async with edge(text) as gate:
        client = await gate.connect()
        await client.send(keyless(b"POST", target, EMPTY))
        assert (await client.read()).problem == "key-missing"
        assert hand.connections == 0

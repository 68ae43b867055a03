"""Redirects that ask for the same request: at the same origin, in every usable spelling, and in no other."""

from __future__ import annotations

import pytest

from gateway.core.message import Field, Request
from gateway.core.redirect import origin, same_origin_target

OWN = origin(b"http", b"10.0.0.5:9000")


def led(
    location: bytes, target: bytes = b"/v1/orders?a=1", *, secure: bool = False, fields: list[Field] | None = None
) -> bytes | None:
    head = [(b"Host", b"Shop.example:80"), *(fields or [])]
    if secure:
        head = [(b"Host", b"shop.example:443"), *(fields or [])]
    return same_origin_target(Request(b"POST", target, head, secure=secure), [location], OWN)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (b"/orders/", b"/orders/"),
        (b"/orders/?b=2&c=/x", b"/orders/?b=2&c=/x"),
        (b"/orders/#part?x", b"/orders/"),
        (b"/a%20b/%7e;v=1,2", b"/a%20b/%7e;v=1,2"),
        (b"/", b"/"),
        (b"http://shop.example/orders/", b"/orders/"),
        (b"HTTP://SHOP.example:80/orders/", b"/orders/"),
        (b"http://shop.example", b"/"),
        (b"http://shop.example?x", b"/?x"),
        (b"http://shop.example#x", b"/"),
        (b"http://10.0.0.5:9000/orders/", b"/orders/"),
        (b"orders/", b"/v1/orders/"),
        (b"./", b"/v1/"),
        (b"../v2/orders", b"/v2/orders"),
        (b"?b=2", b"/v1/orders?b=2"),
    ],
)
def test_a_target_at_the_same_origin(location: bytes, target: bytes) -> None:
    """A path; an absolute URL of the client's origin or of the upstream's; a relative reference (RFC 3986 §5)."""
    assert led(location) == target


@pytest.mark.parametrize(
    "location",
    [
        b"http://evil.example/orders/", b"http://shop.example.evil.example/", b"http://shop.example:8080/orders/",
        b"https://shop.example/orders/", b"https://shop.example:80/orders/", b"https://10.0.0.5:9000/",
        b"http://10.0.0.5/orders/", b"//shop.example/orders/", b"//orders", b"///orders", b"http://shop.example//orders",
        b"http://user@shop.example/orders/", b"http://user:word@shop.example/", b"http://shop.example@evil.example/",
        b"http:/orders/", b"http:orders/", b"http:///orders/", b"ftp://shop.example/", b"javascript:alert(1)", b"a:b",
        b"/\\evil.example/", b"\\\\evil.example/", b"/orders\\", b"http://shop.example\\@evil.example/",
        b"/or ders/", b"/orders/\t", b"/orders/\r\nX: y", b"/orders/\x00", b"/orders/\x7f", b"/\xf8", b"/\xc3\xb8",
        b"", b"#orders", b"ftp://[orders", b"app://[orders]/1",
    ],
)  # fmt: skip
def test_no_target_elsewhere(location: bytes) -> None:
    """Another host, port or scheme, user information, two slashes, backslashes, and what is no URL. (An empty
    reference is none here: it would lead to the request itself.)"""
    assert led(location) is None


def test_a_target_that_is_no_reference_has_nothing_relative_to_it() -> None:
    """Two slashes and a bracket begin an IPv6 address in a URL, and a path in a request."""
    assert led(b"orders/", b"//[orders") is None
    assert led(b"/orders/", b"//[orders") == b"/orders/"


def test_a_location_is_sent_once() -> None:
    request = Request(b"POST", b"/orders", [(b"Host", b"shop.example")])
    assert same_origin_target(request, [], OWN) is None
    assert same_origin_target(request, [b"/a", b"/a"], OWN) is None


def test_the_scheme_is_the_clients() -> None:
    """Over TLS, and behind a proxy that ends it and says so."""
    assert led(b"https://shop.example/orders/", secure=True) == b"/orders/"
    assert led(b"http://shop.example/orders/", secure=True) is None
    behind = [(b"X-Forwarded-Proto", b"https")]
    assert led(b"https://shop.example/orders/", fields=behind) is None, "its Host names port 80"
    behind.append((b"X-Forwarded-Host", b"www.shop.example"))
    assert led(b"https://www.shop.example/orders/", fields=behind) == b"/orders/"
    assert led(b"http://www.shop.example/orders/", fields=behind) is None

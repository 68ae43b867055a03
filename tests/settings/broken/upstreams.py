"""Broken upstreams: what stands on line 2, the path below `upstreams.app`, what is said."""

from __future__ import annotations

A_PEM_FILE = "use a PEM file with the certificates of the authorities that are trusted"

NUMBER = "is a number, and not the name or address of a host"

UPSTREAMS = [
    ("127.0.0.1:9000", "", "the scheme is missing; use http://127.0.0.1:9000"),
    ("':9000'", "", "the scheme is missing; use http://127.0.0.1:9000"),
    ("127.0.0.1:443", "", "the scheme is missing; use https://127.0.0.1:443"),
    ("http://9000", "", f"`9000` {NUMBER}; use a URL such as http://127.0.0.1:9000"),
    ("ftp://a", "", "an upstream speaks http or https, not ftp; use http://a"),
    (
        "http://a/v1",
        "",
        "holds a path, and a request goes on with the path that the client sent; use http://a",
    ),
    (
        "http://me:hunter2@a",
        "",
        "holds a user name or password, which is never sent; use http://HOST:PORT",
    ),
    (
        "https://a/v1",
        "",
        "holds a path, and a request goes on with the path that the client sent; use https://a",
    ),
    ("https://a..b", "", "`a..b` is not the name or address of a host; use a URL such as https://127.0.0.1:9000"),
    (
        f"http://{'a' * 64}",
        "",
        f"`{'a' * 59}…` is not the name or address of a host; use a URL such as http://127.0.0.1:9000",
    ),
    ("http://a:0", "", "0 is not a port (1–65535); use a URL such as http://127.0.0.1:9000"),
    ("7", "", "expected a mapping, found the number 7"),
    ("{timeout: 3s}", ".url", "is missing; use url: http://HOST:PORT"),
    ("{url: http://a, timout: 3s}", ".timout", "unknown field; did you mean `timeout`?"),
    ("{url: http://a, timeout: 0s}", ".timeout", "`0s` is no time at all; use 1ms or more"),
    ("{url: http://a, tls: {}}", ".tls", "is for a service that speaks TLS; use url: https://HOST:PORT, or remove it"),
    ("{url: https://a, tls: true}", ".tls", "expected a mapping, found the boolean true"),
    ("{url: https://a, tls: {verfy: false}}", ".tls.verfy", "unknown field; did you mean `verify`?"),
    ("{url: https://a, tls: {verify: 0}}", ".tls.verify", "expected true or false, found the number 0"),
    ("{url: https://a, tls: {ca: /no/such.pem}}", ".tls.ca", f"there is no such file: /no/such.pem; {A_PEM_FILE}"),
    ("{url: https://a, tls: {ca: /}}", ".tls.ca", f"/ cannot be read: Is a directory; {A_PEM_FILE}"),
    (
        "{url: https://a, tls: {ca: /dev/null}}",
        ".tls.ca",
        f"/dev/null holds no certificate that can be read; {A_PEM_FILE}",
    ),
    (
        "{url: https://a, tls: {ca: /no/such.pem, verify: false}}",
        ".tls.ca",
        "is for what `verify: false` leaves undone; remove one of the two",
    ),
    (
        "{url: https://a, tls: {server_name: 'https://b'}}",
        ".tls.server_name",
        "`https://b` is not the name or address of a host; use the name in the certificate alone, such as "
        "shop.internal",
    ),
    ("{url: http://a, connections: 0}", ".connections", "0 is out of bounds; use 1 to 1000000"),
]

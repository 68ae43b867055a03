"""The name in a Host field: the part that tells the tenants of one service apart.

An IP address and a port say which instance of the gateway a client has reached. The next try may reach another one.
"""

from __future__ import annotations

import re

from .memo import Memo

_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#: RFC 3986 §3.2.2. A name can look like neither form: its last label is not a number, and it has no brackets.
_ADDRESS = re.compile(rb"\[[0-9a-f:.]+\]|%b(?:\.%b){3}|localhost" % (_OCTET, _OCTET))
_PORT = re.compile(rb":[0-9]*\Z")


def site(host: bytes) -> bytes:
    """The name in `host`, in lower case, without a port and a final dot. Empty for an IP address and for localhost."""
    return _sites[host]


def _site(host: bytes) -> bytes:
    name = _PORT.sub(b"", host).lower().removesuffix(b".")
    return b"" if _ADDRESS.fullmatch(name) else name


_sites = Memo(_site, 1024, lambda host: len(host) <= 256)


def beyond_site(pattern: str) -> bytes:
    """The `match.host` of a route if it names an address or a port, which `site` leaves out; else nothing."""
    written = pattern.encode("latin-1")
    return b"" if site(written) == written else written

"""What stands in Host: a host as HTTP has it, with a port or none."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

from ..core.memo import Memo

_NAME = rb"[A-Za-z0-9\-._~!$&'()*+,;=]*"
#: RFC 3986 §3.2.2 and §3.2.3, without the empty name that it knows.
_HOST = re.compile(rb"(?:(?![:\[])%b(?:%%[0-9A-Fa-f]{2}%b)*|\[([^\]]+)\])(?::[0-9]{0,5})?" % (_NAME, _NAME))


def is_host(text: bytes) -> bool:
    """Whether `text` may stand in Host (RFC 9112 §3.2 wants a 400 where not)."""
    return _hosts[text]


def _is_host(text: bytes) -> bool:
    found = _HOST.fullmatch(text)
    if found is None or found[1] is None:
        return found is not None
    try:
        IPv6Address(found[1].decode("latin-1"))
    except ValueError:
        return False
    return b"%" not in found[1]  # a zone says something only on the host that has it (RFC 6874 §1)


_hosts = Memo(_is_host, 256, lambda text: len(text) <= 512)

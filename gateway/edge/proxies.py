"""Whose word is taken for where a request came from."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ..core.fields import Fields, Shape, fields_of
from ..core.memo import Memo

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """Those in front of the gate that are trusted."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        #: By its text: an address as text, empty if it is none, and whether it is one of them.
        self._read = Memo(self._known, 1024, lambda text: len(text) <= 64)

    def trusts(self, peer: str) -> bool:
        """Whether `peer` is one of them."""
        return self._read[peer][1]

    def client(self, peer: str, fields: Fields) -> str:
        """Who asked a trusted `peer`: of the addresses that the proxies wrote down, the last that is none of theirs.
        What stands left of it anybody may have written."""
        found = peer
        for member in reversed(b",".join(fields.all(b"x-forwarded-for")).split(b",")):
            address, trusted = self._read[member.strip(b" \t").decode("latin-1")]
            found = address or found
            if not trusted:
                break
        return found

    def _known(self, text: str) -> tuple[str, bool]:
        address = _address(text)
        if address is None:
            return "", False
        return str(address), any(address in network for network in self._networks)


def _address(text: str) -> _Address | None:
    """The address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def without_hearsay(fields: Fields) -> Fields:
    """The fields of a request by somebody who is not trusted, less what they say of others: `X-Forwarded-*`,
    `Forwarded` (RFC 7239) and `X-Real-IP`. Nothing reads them: no rule of a route, no upstream, no log."""
    kept = fields.shape.made(without_hearsay, _kept)
    return fields if len(kept) == len(fields) else fields_of([fields[position] for position in kept])


def _kept(shape: Shape) -> tuple[int, ...]:
    return tuple(
        position
        for position, name in enumerate(shape.lowered)
        if not name.startswith(b"x-forwarded-") and name not in (b"forwarded", b"x-real-ip")
    )

"""A look at a Redis by somebody who claims nothing and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.identity import Identity
from ...ports import Nobody, StoreUnusable
from .findings import Finding, Info, Severity, judge
from .link import Link, pack
from .marker import differs, marker_key, read_marker
from .servers import Servers


@dataclass(frozen=True, slots=True)
class Examined:
    """What there was to see. `address` is the server's that takes writes; `info` is empty where none was reached."""

    findings: tuple[Finding, ...]
    address: str = ""
    info: Info = field(default_factory=dict)


async def examine(servers: Servers, prefix: str, service: str, identity: Identity | None) -> Examined:
    """The findings about a Redis; with an `identity`, its marker's too."""
    finder = servers.finder()
    link = Link(servers, finder, Nobody(), lambda: None)
    try:
        try:
            await link.open()
        except StoreUnusable as error:
            return Examined((Finding("too-old", Severity.REFUSE, str(error)),), str(link.address or ""))
        if link.pipeline is None:
            # The link knows no names: it goes on trying whatever is in its way.
            name = "read-only" if "is a read-only replica" in link.trouble else "unreachable"
            return Examined((Finding(name, Severity.REFUSE, link.trouble),), str(link.address or ""))
        found = judge(link.info, servers.replicas, await finder.promotable())
        if identity is not None:
            found = (*await _of_marker(link, marker_key(prefix, service), identity), *found)
        return Examined(found, str(link.address), link.info)
    finally:
        await link.close()
        await finder.close()


async def _of_marker(link: Link, key: bytes, identity: Identity) -> tuple[Finding, ...]:
    value = await link.call(pack(b"GET", key))
    if value is None:
        return ()
    if not isinstance(value, bytes):
        return (Finding("unreachable", Severity.REFUSE, f"Redis refused a look at its marker: {value}"),)
    _, difference = read_marker(value, identity)
    return (differs(key, difference),) if difference else ()

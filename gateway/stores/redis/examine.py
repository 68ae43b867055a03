"""A look at a Redis by somebody who claims nothing and writes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from ...core.identity import Identity
from ...ports import Nobody, StoreAway, StoreUnusable
from ..findings import Finding, Severity
from .findings import Info, judge, refuses_writes
from .large import LIMITS, limits_of
from .link import SCRIPT, Link, ask, login, visit
from .marker import differs, marker_key, prefix_of, read_marker
from .permissions import a_write, greeting, lacking, nobodys, plays, subscribing
from .pipeline import Pipeline, RedisError, pack
from .reasons import NOT_PERMITTED, REFUSED, UNREACHABLE
from .sentinels import finder_of
from .servers import Address, Servers


@dataclass(frozen=True, slots=True)
class Examined:
    """What there was to see. `address` is the server's that takes writes; `info` is empty where none was reached."""

    findings: tuple[Finding, ...]
    address: str = ""
    info: Info = field(default_factory=dict)


async def examine(
    servers: Servers, prefix: str, service: str, identity: Identity | None, *, largest: int = 0
) -> tuple[Examined, ...]:
    """The findings about a Redis, of each of its primaries; with an `identity`, its marker's too. `largest`: bytes of
    the largest response that a route keeps."""
    if not servers.cluster:
        return (await _one(servers, marker_key(prefix, service), identity, largest),)
    from .cluster import View, elect, numbered, read_view  # see store.py

    views: dict[Address, View] = {}
    name, trouble = UNREACHABLE, ""
    for address in servers.hosts:
        try:
            views[address] = read_view(await ask(servers, address, b"CLUSTER", b"SLOTS"), address)
            break
        except (StoreAway, ValueError) as error:
            if name == UNREACHABLE:  # a node that answers says more than one that does not
                name, trouble = getattr(error, "name", UNREACHABLE), str(error)
    owned = elect(views).ranges
    if not owned:
        why = trouble or "no primary of the cluster has any slot"
        return (Examined((Finding(name, Severity.REFUSE, why),), str(servers.hosts[0])),)
    numbers = numbered({slot: each.primary for each in owned for slot in range(each.first, each.last + 1)}.get)
    return tuple(
        await asyncio.gather(
            *(
                _one(
                    replace(servers, hosts=(address,)),
                    marker_key(prefix, service, numbers.get(address)),
                    identity,
                    largest,
                )
                for address in dict.fromkeys(each.primary for each in owned)
            )
        )
    )


async def _one(servers: Servers, marker: bytes, identity: Identity | None, largest: int) -> Examined:
    finder = finder_of(servers)
    link = Link(servers, finder, Nobody(), lambda: None)
    try:
        try:
            await link.open()
        except StoreUnusable as error:
            return Examined((Finding("too-old", Severity.REFUSE, str(error)),), str(link.address or ""))
        lacks = await _permitted(servers, link, marker)
        if link.pipeline is None:
            return Examined(lacks or (Finding(link.cause, Severity.REFUSE, link.trouble),), str(link.address or ""))
        refusal = refuses_writes(await link.call(a_write(nobodys(marker))))
        refusals: tuple[Finding, ...] = () if refusal is None else (refusal,)
        if largest:
            refusals += limits_of(await link.call(LIMITS), largest)
        found = (
            *lacks,
            *refusals,
            *judge(link.info, servers.replicas, finder.promotable, cluster=servers.cluster),
        )
        if identity is not None and not lacks:
            found = (*await _of_marker(link, marker, identity), *found)
        return Examined(found, str(link.address), link.info)
    finally:
        await link.close()


async def _permitted(servers: Servers, link: Link, marker: bytes) -> tuple[Finding, ...]:
    """What the user may not do, of all that a gate does; nothing where the server cannot be asked."""
    key = nobodys(marker)
    played = (*greeting(servers, SCRIPT), *plays(servers, key), *subscribing(key))

    async def played_to(pipeline: Pipeline) -> tuple[Finding, ...]:
        for command in login(servers.user, servers.password):
            if isinstance(await pipeline.call(pack(*command)), RedisError):
                return ()
        return await lacking(pipeline.call, played, servers, prefix_of(marker))

    if link.address is None or (link.pipeline is None and link.cause != NOT_PERMITTED):
        return ()
    try:
        return await visit(servers, link.address, played_to)
    except StoreAway:
        return ()


async def _of_marker(link: Link, key: bytes, identity: Identity) -> tuple[Finding, ...]:
    value = await link.call(pack(b"GET", key))
    if value is None:
        return ()
    if not isinstance(value, bytes):
        return (Finding(REFUSED, Severity.REFUSE, f"Redis refused a look at its marker: {value}"),)
    _, difference = read_marker(value, identity)
    return (differs(key, difference),) if difference else ()

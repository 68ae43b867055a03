"""From one record to the next, over all primaries: SCAN in small batches, and of each record its header only.

Never KEYS, which stops the server for as long as it takes. What is asked goes over the connection of the records, a
batch at a time; whoever walks far pauses between batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...core.record import Found
from ...ports import Page, StoreAway
from ..codec import HEADER, NAME, Unreadable, header
from .fleet import REDIRECTS
from .pipeline import RedisError, pack
from .primary import Primary

_CURSOR = re.compile(r"(?:(?P<label>[^ ]*) )?(?P<at>[0-9]{1,20})")
#: What has a meaning in a pattern of MATCH.
_SPECIAL = re.compile(rb"([\\*?\[\]^])")


async def walk(primaries: Sequence[Primary], prefix: bytes, cursor: str, most: int) -> Page:
    """As `ports.Catalogue.walk`. A cursor is `LABEL AT`: which primary (of one alone the label is empty), and where in
    its own SCAN. One that has no slots any more is followed by the next."""
    if not primaries:
        raise StoreAway("no primary of the cluster is known", ambiguous=False)
    here, at = 0, b"0"
    if cursor:
        found = _CURSOR.fullmatch(cursor)
        if found is None or int(found["at"]) >= 1 << 64:
            raise ValueError("not a cursor of this store")
        label = found["label"] or ""
        here = next((place for place, each in enumerate(primaries) if each.label >= label), len(primaries))
        if here == len(primaries):
            return Page((), "", 0, 0, 1.0)
        at = found["at"].encode() if primaries[here].label == label else b"0"
    primary = primaries[here]
    pattern = _SPECIAL.sub(rb"\\\1", prefix) + b"?" * 43
    reply = await primary.main.call(pack(b"SCAN", at, b"MATCH", pattern, b"COUNT", b"%d" % most))
    if isinstance(reply, RedisError):
        raise primary.away(reply)
    next_at, keys = reply
    names = [key[len(prefix) :] for key in dict.fromkeys(keys) if NAME.fullmatch(key[len(prefix) :])]
    records, unreadable = await _headers(primary, prefix, names)
    share = (here + _share(int(next_at))) / len(primaries)
    if next_at == b"0":
        here += 1
        share = here / len(primaries)
    on = "" if here == len(primaries) else f"{primaries[here].label} {next_at.decode()}"
    return Page(tuple(records), on, len(names), unreadable, share)


async def _headers(primary: Primary, prefix: bytes, names: list[bytes]) -> tuple[list[tuple[bytes, Found]], int]:
    """Those that are still there, and how many cannot be read."""
    if not names:
        return [], 0
    asked = b"".join(
        pack(b"GETRANGE", prefix + name, b"0", b"%d" % (HEADER - 1)) + pack(b"PTTL", prefix + name) for name in names
    )
    replies = await primary.main.call(asked, 2 * len(names))
    records: list[tuple[bytes, Found]] = []
    unreadable = 0
    for name, value, left in zip(names, replies[::2], replies[1::2], strict=True):
        if isinstance(value, RedisError) or isinstance(left, RedisError):
            error = value if isinstance(value, RedisError) else left
            if error.code in REDIRECTS:
                continue  # its slot has gone to another primary, where the walk comes or has been
            if error.code != "WRONGTYPE":
                raise primary.away(error)
            unreadable += 1
        elif left == -1:
            unreadable += 1
        elif value and left != -2:
            try:
                record = header(value)
            except Unreadable:
                unreadable += 1
            else:
                records.append((name, Found(record, record.life - left)))
    return records, unreadable


def _share(at: int) -> float:
    """How much of a table lies behind a cursor of SCAN, which counts in its bits from the highest to the lowest
    (https://redis.io/docs/latest/commands/scan/): their mirror image behind the point."""
    share, weight = 0.0, 0.5
    while at:
        share += weight * (at & 1)
        at >>= 1
        weight /= 2
    return share

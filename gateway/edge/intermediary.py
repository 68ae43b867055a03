"""What a proxy rewrites in a head before anything is decided by it: a target in absolute form, and Max-Forwards."""

from __future__ import annotations

import re

from ..core.fields import Fields, fields_of

_ABSOLUTE = re.compile(rb"http(s?)://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)


def origin_form(method: bytes, target: bytes, *, secure: bool) -> tuple[bytes, bytes] | None:
    """The authority of a target in absolute form, and the target that is left for the next hop; None where it is not
    in absolute form.

    Every server must accept one, and goes by its authority instead of by Host (RFC 9112 §3.2.2). What is asked for as
    `https` must not be served over a connection that is not `secure` (RFC 9110 §7.4); the converse does no harm.
    """
    found = _ABSOLUTE.fullmatch(target)
    if found is None or (found[1] and not secure):
        return None
    authority, rest = found[2], found[3]
    if not rest and method == b"OPTIONS":
        return authority, b"*"  # RFC 9112 §3.2.4
    return authority, rest if rest.startswith(b"/") else b"/" + rest


def with_host(fields: Fields, host: bytes) -> Fields:
    """The same lines, with `host` in the place of the Host that is there, or first where none is."""
    if b"host" not in fields.shape.at:
        return fields_of([(b"Host", host), *fields])
    return _with(fields, b"host", host)


def one_hop_less(fields: Fields) -> Fields | None:
    """The fields of an OPTIONS or TRACE with one hop less in Max-Forwards (RFC 9110 §7.6.2); None where it may not be
    forwarded any more. Raises ValueError where it is no number."""
    hops = fields.all(b"max-forwards")
    if len(hops) != 1 or not hops[0].isdigit() or len(hops[0]) > 10:
        raise ValueError("Max-Forwards is not a number.")
    left = int(hops[0])
    return _with(fields, b"max-forwards", b"%d" % (left - 1)) if left else None


def _with(fields: Fields, name: bytes, value: bytes) -> Fields:
    values = list(fields.values)
    values[fields.shape.at[name][0]] = value
    return Fields(fields.shape, values)

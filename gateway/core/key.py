"""The key: where it stands in a request, how it is spelled, and the name of its record.

RFC 8941 §3.3.3 says what a quoted string is; draft-ietf-httpapi-idempotency-key-header asks for that
form, most clients send the bare one, and both mean the same key.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b

from .digest import Purpose, begun, digest, framed
from .fields import fields_of
from .message import CREDENTIALS, FRAMING, OPERATION_FIELDS, Lines, named_by_connection
from .values import value

#: Longest key, in characters after unquoting.
LONGEST = 255

DEFAULT_HEADERS = (b"idempotency-key", b"x-idempotency-key")

#: What `Connection` may not name on a request: a proxy would strip it before we, or the upstream, read it.
_NOT_PER_HOP = FRAMING.union(CREDENTIALS, OPERATION_FIELDS, (b"cookie", b"content-type", b"content-encoding", b"host"))

_BARE = re.compile(rb"[\x21-\x7e]+")
#: What most clients send: the bare form, and nothing else to be looked at.
plain = re.compile(rb"[\x21\x23-\x7e][\x21-\x7e]{,%d}" % (LONGEST - 1)).fullmatch
_PLAIN_IN_QUOTES = re.compile(rb'"([\x21\x23-\x5b\x5d-\x7e]{1,%d})"' % LONGEST).fullmatch
#: sf-string: DQUOTE *( unescaped / "\" ( DQUOTE / "\" ) ) DQUOTE
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
#: parameters: *( ";" *SP key [ "=" bare-item ] ), RFC 8941 §3.1.2
_PARAMETERS = re.compile(
    rb"(?:; *[a-z*][a-z0-9_\-.*]*"
    rb"(?:=(?:"
    rb"-?[0-9]{1,12}\.[0-9]{1,3}"  # decimal
    rb"|-?[0-9]{1,15}"  # integer
    rb'|"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'  # string
    rb"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*"  # token
    rb"|:[A-Za-z0-9+/=]*:"  # byte sequence
    rb"|\?[01]"  # boolean
    rb"))?)*"
)


@value
class Unreadable:
    """A key that is there and cannot be taken for one. `why` is for the client, and quotes no value; `weak` where it
    is refused for its weakness (keyform.Weakness)."""

    why: str
    weak: str = ""


@value
class Key:
    """A key as the client means it. Its text is never stored; `repr` does not show it."""

    text: bytes

    def __repr__(self) -> str:
        return f"Key(<{len(self.text)} characters>)"


def plain_text(value: bytes) -> bytes | None:
    """Return the text of a key that is spelled as most are: bare, or in quotes without a space or an escape. None if
    only `read` can tell."""
    if plain(value):
        return value
    quoted = _PLAIN_IN_QUOTES(value)
    return None if quoted is None else quoted[1]


def read(value: bytes) -> Key | Unreadable:
    """The key in one field value: a quoted string (parameters ignored) or the bare form."""
    if plain(value):
        return Key(value)
    value = value.strip(b" \t")
    if not value:
        return Unreadable("it is empty")
    if value.startswith(b'"'):
        quoted = _QUOTED.match(value)
        if quoted is None or _PARAMETERS.fullmatch(value, quoted.end()) is None:
            return Unreadable(
                'it begins with a quotation mark and is not a quoted string as RFC 8941 spells one: "…", '
                'with \\" and \\\\ as the only escapes'
            )
        text = quoted.group(1)
        if b"\\" in text:
            text = re.sub(rb"\\(.)", rb"\1", text)
        if not text:
            return Unreadable("it is empty")
    elif _BARE.fullmatch(value):
        text = value
    else:
        return Unreadable("it has a character that is not printable ASCII, or a space outside quotation marks")
    if len(text) > LONGEST:
        return Unreadable(f"it has {len(text)} characters; {LONGEST} is the most")
    return Key(text)


def find(
    fields: Lines,
    headers: Sequence[bytes] = DEFAULT_HEADERS,
    canonical: Callable[[bytes], bytes] | None = None,
) -> Key | Unreadable | None:
    """The key that a request carries in one of `headers` (lower case), or None. `canonical` spells its text in the one
    way of the route's key format."""
    fields = fields_of(fields)
    at, found = fields.shape.at, None
    for name in headers:
        positions = at.get(name)
        if positions is None:
            continue
        if len(positions) > 1:
            return Unreadable(f"the field {name.decode()} is repeated")
        key = read(fields.values[positions[0]])
        if isinstance(key, Unreadable):
            return key
        if canonical is not None:
            key = Key(canonical(key.text))
        if found is not None and key != found:
            return Unreadable("two fields carry different keys")
        found = key
    if b"connection" in at and (bad := misnamed(fields, headers)):
        return Unreadable(f"the Connection field names {bad}, which is not for one hop only")
    return found


def misnamed(fields: Lines, headers: Sequence[bytes] = DEFAULT_HEADERS) -> str | None:
    """The first end-to-end field (key, credentials, framing, Host) that `Connection` claims for one hop."""
    named = named_by_connection(fields)
    if not named:
        return None
    for name in sorted(named):
        if name in _NOT_PER_HOP or name in headers:
            return name.decode("latin-1")
    return None


#: One element of a scope: the label of its source (`header:x-tenant-id`) and the request's value there.
ScopePart = tuple[bytes, bytes]

SENT = b"sent"
DERIVED = b"derived"
COMPOSITE = b"composite"


def shadowed(origin: bytes) -> bytes:
    """The origin under which a route in shadow keeps what one that enforces keeps under `origin`."""
    return b"shadow of " + origin


def record_name(
    service: bytes,
    namespace: bytes,
    scope: Sequence[ScopePart],
    key: Key,
    *,
    origin: bytes = SENT,
    secret: bytes = b"",
) -> bytes:
    """The name of a record: 43 characters of unpadded base64url, from (service, namespace, scope, key).

    `origin` keeps keys that the gate derived, and those of several parts, apart from those that clients sent. No
    route's name is in it: renaming or reordering routes forgets no key.
    """
    if not scope:
        hasher = _namespace(service, namespace, origin, secret).copy()
        hasher.update(framed(key.text))
        digested = hasher.digest()
    else:
        parts = [service, namespace, origin, len(scope).to_bytes(2, "little")]
        for part in scope:
            parts += part
        parts.append(key.text)
        digested = digest(Purpose.NAME, parts, secret)
    return b2a_base64(digested, newline=False).translate(_URLSAFE)[:43]


#: From the alphabet of RFC 4648 §4 to that of §5.
_URLSAFE = bytes.maketrans(b"+/", b"-_")


@lru_cache(maxsize=1024)
def _namespace(service: bytes, namespace: bytes, origin: bytes, secret: bytes) -> blake2b:
    """What the names of all keys without a scope begin with, digested once."""
    return begun(Purpose.NAME, (service, namespace, origin, (0).to_bytes(2, "little")), secret)

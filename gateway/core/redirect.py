"""Redirects that ask for the same request elsewhere: 307 and 308 (RFC 9110 §15.4.8, §15.4.9)."""

from __future__ import annotations

import re
from urllib.parse import urljoin

from .fields import fields_of
from .message import Request

#: Statuses that ask for the same method and body at another target. 301, 302 and 303 do not.
REDIRECTS = frozenset((307, 308))

#: Visible ASCII without the backslash, which some clients read as a slash.
_URL = re.compile(rb"[!-\[\]-~]+")
#: A path that is not a host behind two slashes, and a query.
_TARGET = re.compile(rb"/(?!/)[!-~]*")
_ABSOLUTE = re.compile(rb"(?i)(https?)://([^/?]*)(.*)")
_PORTS = {b"http": b":80", b"https": b":443"}

#: Scheme and authority, in lower case and without a default port.
Origin = tuple[bytes, bytes]


def origin(scheme: bytes, authority: bytes) -> Origin:
    """The origin of these two, in the form in which origins are compared."""
    scheme, authority = scheme.lower(), authority.lower()
    return scheme, authority.removesuffix(_PORTS.get(scheme, b":"))


def same_origin_target(request: Request, location: list[bytes], own: Origin) -> bytes | None:
    """The target that a redirect of `request` names. `location` has the values of that field, and `own` is the
    upstream's origin. None if the location is unusable, or if its origin is neither the client's nor the upstream's."""
    if len(location) != 1:
        return None
    url = location[0].partition(b"#")[0]
    if _URL.fullmatch(url) is None:
        return None
    if (absolute := _ABSOLUTE.fullmatch(url)) is not None:
        if origin(absolute[1], absolute[2]) not in (own, *_origins_of(request)):
            return None
        url = absolute[3] if absolute[3].startswith(b"/") else b"/" + absolute[3]
    elif not url.startswith(b"/"):
        try:
            url = urljoin(request.target.decode("latin-1"), url.decode()).encode("latin-1")
        except ValueError:  # brackets without an IPv6 address in them, here or in the request's target
            return None
    return url if _TARGET.fullmatch(url) else None


def _origins_of(request: Request) -> list[Origin]:
    """The origins that the client may have used, as the forwarded fields name them: behind a proxy that ends TLS the
    fields of that proxy name them."""
    fields = fields_of(request.fields)
    scheme = b"https" if request.secure else b"http"
    if len(forwarded := fields.all(b"x-forwarded-proto")) == 1:
        scheme = forwarded[0]
    return [origin(scheme, host) for name in (b"host", b"x-forwarded-host") for host in fields.all(name)]

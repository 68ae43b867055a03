"""Fields that the file's shape does not have: what they most likely mean, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from .addresses import NOT_BUILT
from .fields import written
from .listeners import ListenerShape, ListenerTlsShape
from .model import SHAPES, AdminShape, FileShape, StoreShape, UpstreamShape
from .policy import KeyShape, MatchShape, PolicyShape, RouteShape
from .source import Scalar, Value

#: The field that a word most likely means in a mapping, and what to write. Other mappings may have a field of that name
#: that means something else.
_Words = Mapping[str, tuple[str, str]]


def _words(meant: str, advice: str, *names: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names, (meant, advice))


_OF_ROUTES: _Words = {
    **_words("match", "match: {path: /PREFIX/**}", "prefix", "path_prefix", "url", "uri", "location"),
    **_words("upstream", "upstream: NAME", "service", "backend", "proxy_pass"),
    **_words("key", "key: {from: header:NAME}", "keys", "header"),
}
_MEANS: Mapping[type[Any], _Words] = {
    MatchShape: {
        **_words("path", "path: /PREFIX/**", "prefix", "path_prefix"),
        **_words("path", "path: /PATH", "url", "uri", "location", "target"),
        **_words("", "only path, host and methods: nothing else is matched", "header", "headers", "query"),
    },
    RouteShape: _OF_ROUTES,
    PolicyShape: _words("key", "key: {from: header:NAME}", "keys", "header"),
    KeyShape: _words("from", "from: header:NAME", "name", "header", "headers", "field", "source"),
    UpstreamShape: {
        **_words("url", "url: http://HOST:PORT", "host", "port", "address", "server", "endpoint"),
        **_words("", "match: {path: /PREFIX/**} in a route, whose requests keep their path", "path", "prefix"),
    },
    FileShape: {
        **_words("listen", "listen: 127.0.0.1:8080", "host", "port", "address"),
        **_words("", "key: {from: header:NAME} in a route or `defaults`", "keys"),
    },
    AdminShape: {
        **_words("listen", "listen: 127.0.0.1:8081", "host", "port", "address"),
        **_words("token", "token: ${ONCEGATE_ADMIN_TOKEN}", "secret", "password"),
    },
    ListenerShape: _words("address", "address: 127.0.0.1:8080", "host", "port", "listen", "url"),
    ListenerTlsShape: _words("client_ca", "client_ca: FILE", "ca"),
    StoreShape: {
        **_words("url", "url: redis://HOST:PORT/DB", "host", "port", "address", "endpoint"),
        **_words("", "url: redis://USER:PASSWORD@HOST:PORT/DB", "user", "username", "password"),
        **_words("", "url: rediss://HOST:PORT/DB, and `ca` beside it for authorities of your own", "tls", "ssl"),
    },
}


#: What DESIGN names and this version does not have.
_TO_COME: Mapping[type[Any], tuple[str, ...]] = {AdminShape: ("tls",)}


def unknown(field: str, value: Value, shape: type[Any]) -> tuple[str, str]:
    """Return the complaint about `field`, which a mapping of this shape does not have, and the field that was most
    likely meant, or nothing."""
    here = written(shape)
    if field in _MEANS.get(shape, {}):
        meant, advice = _MEANS[shape][field]
        if isinstance(value, Scalar) and value.text.startswith("/") and len(value.text) <= 60:
            advice = advice.replace("/PREFIX/**", f"{value.text.rstrip('/')}/**").replace("/PATH", value.text)
        return f"unknown field. Use {advice}", meant
    if field in _TO_COME.get(shape, ()):
        return f"{NOT_BUILT}; remove it", ""
    for other, (place, _) in SHAPES.items():
        if field in written(other):
            meant = "match" if field in written(MatchShape) and shape is RouteShape else ""
            return f"not allowed here. It belongs in {place}", meant
    close = get_close_matches(field.lower().replace("-", "_"), [*here, *_TO_COME.get(shape, ())], 1, 0.6)
    if close:
        return f"unknown field; did you mean `{close[0]}`?", close[0]
    return "unknown field" + (f"; here stand {', '.join(here)}" if len(here) <= 12 else ""), ""

"""Broken keys: what is added to the route on line 6, the path below `routes[0]`, what is said."""

from __future__ import annotations

SOURCES = "header:NAME, body:/POINTER, form:FIELD, query:NAME, path:N or cookie:NAME"
KEYS = [
    ("key: {from: bdy:/id}", "key.from", f"no source is called `bdy`; use {SOURCES}"),
    ("key: {from: X-Id}", "key.from", "where X-Id stands is missing; use header:X-Id"),
    ("key: {from: 'body:id'}", "key.from", "a JSON pointer begins with / and has ~ only as ~0 and ~1; use body:/id"),
    (
        "key: {from: 'body:/a~2'}",
        "key.from",
        "a JSON pointer begins with / and has ~ only as ~0 and ~1; use body:/order/id",
    ),
    ("key: {from: 'body:'}", "key.from", "what is read there is missing, or too long; use body:/order/id"),
    ("key: {from: path:0}", "key.from", "segments of a path are counted from 1, up to 99; use path:2"),
    ("key: {from: 'query: a'}", "key.from", "no space belongs behind the colon; use query:a"),
    ("key: {from: 'cookie:a;b'}", "key.from", "`a;b` cannot be the name of a cookie; use cookie:checkout"),
    (
        "key: {from: 'header:TE'}",
        "key.from",
        "TE belongs to one connection and says nothing of the request; leave it out",
    ),
    (
        "key: {from: jwt:sub}",
        "key.from",
        f"the source `jwt` is known, but not built yet in this version; use {SOURCES}",
    ),
    ("key: {from: []}", "key.from", "names no source; use [header:X-Request-Key], or leave it out"),
    ("key: {from: [path:1, path:1]}", "key.from", "path:1 stands twice; keep one"),
    ("key: {from: [path:1, 'qury:a']}", "key.from[1]", f"no source is called `qury`; use {SOURCES}"),
    (
        "key: {format: guid}",
        "key.format",
        "expected any, sf-string, uuid, ulid or /PATTERN/, found `guid`; use uuid",
    ),
    ("key: {format: '/a'}", "key.format", "a pattern stands between two slashes; use /a/"),
    (
        "key: {format: '/(a/'}",
        "key.format",
        "`(a` is no pattern that is matched in linear time (RE2): missing ): (a",
    ),
    (
        "key: {format: '/(?=a)b/'}",
        "key.format",
        "`(?=a)b` is no pattern that is matched in linear time (RE2): invalid perl operator: (?=",
    ),
    ("key: {min_length: 256}", "key.min_length", "256 is out of bounds; use 1 to 255"),
    ("key: {weak: allow}", "key.weak", "expected count or refuse, found `allow`"),
    (
        "key: {from: query:id, format: sf-string}",
        "key.format",
        "sf-string is how a field spells a key, and query:id is none; use uuid, ulid or /PATTERN/",
    ),
    ("missing: {}", "missing", "expected pass, refuse or derive, found a mapping"),
    ("missing: {derive: {windw: 1s}}", "missing.derive.windw", "unknown field; did you mean `window`?"),
    (
        "missing: {derive: {from: [method, credentials]}}",
        "missing.derive.from",
        "nothing in it tells one request from the next; add target, body or a source",
    ),
    (
        "missing: {derive: {from: [methd]}}",
        "missing.derive.from[0]",
        "expected method, target, body, credentials or a source, found `methd`",
    ),
    ("send_key: X-Id", "send_key", "expected a field such as header:PayPal-Request-Id, found `X-Id`; use header:X-Id"),
    ("send_key: 'body:/id'", "send_key", "a body is the client's and is not changed; use header:NAME"),
    ("send_key: {as: uuid}", "send_key", "`to` is missing; use {to: header:PayPal-Request-Id, as: uuid}"),
    ("send_key: {to: header:A, as: hmac}", "send_key", "expected key or uuid, found `hmac`"),
    ("send_key: [header:A, header:a]", "send_key", "a stands twice; keep one"),
    (
        "send_key: header:Authorization",
        "send_key",
        "Authorization says something else to the service; use a field that is for the key",
    ),
    ("bind: [cokie:a]", "bind[0]", f"no source is called `cokie`; use {SOURCES}"),
    ("scope: [query:a]", "scope[0]", "a query says what is asked, and proves nothing of who asks; use header:NAME"),
]

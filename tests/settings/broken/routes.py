"""Broken routes: what is added to the route on line 6, the path below `routes[0]`, what is said."""

from __future__ import annotations

from gateway.core.scope import ALGORITHMS

PLACES = "header:NAME, body:/POINTER, form:FIELD, query:NAME, path:N or cookie:NAME"
NOT_BUILT = "known, but not built yet in this version"
JWT = "{jwks: https://id.example/.well-known/jwks.json, issuer: https://id.example/}"

ROUTES = [
    ("window: 48 hours", "window", "expected a duration such as 30s, found `48 hours`; use 48h"),
    ("window: 30", "window", "the number 30 has no unit; use 30s"),
    ("window: 1h30m", "window", "expected a duration such as 30s, found `1h30m`; use 90m"),
    ("window: 0s", "window", "`0s` is no time at all; use 1ms or more"),
    ("window: 11y", "window", "expected a duration such as 30s, found `11y`"),
    ("window: 4000d", "window", "`4000d` is longer than ten years; use 3650d at most"),
    ("window: -1h", "window", "expected a duration such as 30s, found `-1h`, which is negative"),
    ("window: [30s]", "window", "expected a duration such as 30s, found a list"),
    ("window:", "window", "expected a duration such as 30s, found nothing"),
    ("window: yes", "window", "expected a duration such as 30s, found the boolean yes"),
    ("windw: 48h", "windw", "unknown field; did you mean `window`?"),
    ("max-request: 1MiB", "max-request", "unknown field; did you mean `max_request`?"),
    ("timeout: 3s", "timeout", "does not stand here; it belongs in upstreams.NAME"),
    ("path: /x", "path", "does not stand here; it belongs in `match`"),
    ("zzz: 1", "zzz", "unknown field"),
    (
        "doubt_window: 30s",
        "doubt_window",
        "30s is shorter than the lease of 95s (timeout, late and 5s of `app`), in which a request may still "
        "run; use 95s or more",
    ),
    ("max_request: 1MB", "max_request", "expected a size such as 1MiB, found `1MB`; use 1MiB"),
    ("max_request: 2048", "max_request", "the number 2048 has no unit; use 2048B"),
    ("max_response: 1GiB", "max_response", "`1GiB` is too much; use 256MiB at most"),
    (
        "max_request: 300MiB",
        "max_request",
        "more than limits.buffers, which all bodies share; use 256MiB at most",
    ),
    (
        "stream_types: [ndjson]",
        "stream_types[0]",
        "expected a content type such as application/x-ndjson, found `ndjson`",
    ),
    (
        "stream_types: ['*/*']",
        "stream_types[0]",
        "expected a content type such as application/x-ndjson, found `*/*`",
    ),
    (
        "stream_types: ['multipart/mixed; deferSpec=20220824']",
        "stream_types[0]",
        "a parameter stands without its value; use multipart/mixed;deferSpec",
    ),
    (
        "stream_types:",
        "stream_types",
        "expected a list such as [default, application/x-feed], found nothing",
    ),
    ("max_attempts: 0", "max_attempts", "0 is out of bounds; use 1 to 255"),
    ("max_attempts: two", "max_attempts", "expected a number from 1 to 255, found `two`"),
    ("release: [200, 600]", "release[1]", "600 is not a final status code (200–599)"),
    ("release: 4xx", "release", "expected a status such as 409, found `4xx`"),
    ("release:", "release", "expected a list of statuses such as [409, 422], found nothing"),
    ("keep: {a: 1}", "keep", "expected a list of statuses such as [409, 422], found a mapping"),
    ("guard: 1", "guard", "expected true or false, found the number 1"),
    ('guard: "no"', "guard", "expected true or false, found `no`"),
    ("missing: refus", "missing", "expected pass, refuse or derive, found `refus`; use refuse"),
    ("on_doubt: [hold]", "on_doubt", "expected hold or rerun, found a list"),
    (
        "namespace: a b",
        "namespace",
        "`a b` is not a name: up to 64 letters, digits, `.`, `_` and `-`, a letter or digit first; use a-b",
    ),
    ("scope: [X-Tenant]", "scope[0]", "where X-Tenant stands is missing; use header:X-Tenant"),
    ("scope: [headr:X-Tenant]", "scope[0]", "no source is called `headr`; use header:X-Tenant"),
    ("scope: [public]", "scope[0]", "`public` stands alone; leave it out of the list"),
    ("scope:", "scope", "expected public or a list such as [header:X-Tenant-Id], found nothing"),
    (
        "bind: [header:TE]",
        "bind[0]",
        "TE belongs to one connection and says nothing of the request; leave it out",
    ),
    ("bind: ['header:a b']", "bind[0]", "`a b` cannot be the name of a header"),
    ("keep_headers: [header:ETag]", "keep_headers[0]", "the name stands alone here; use ETag"),
    (
        "keep_headers: [Date]",
        "keep_headers[0]",
        "Date is made anew for each replay, and kept where a signature covers it; leave it out",
    ),
    (
        "drop_headers: [Idempotency-Status]",
        "drop_headers[0]",
        "Idempotency-Status is the gate's own, and on every replay; leave it out",
    ),
    (
        "keep_headers: [Set-Cookie]",
        "keep_headers[0]",
        "Set-Cookie was for one client, and no replay carries it; leave it out",
    ),
    (
        "drop_headers: [Content-Encoding]",
        "drop_headers[0]",
        "without Content-Encoding nobody can read the body; leave it out",
    ),
    ("fingerprint: raw", "fingerprint", "expected a mapping, found `raw`"),
    (
        "fingerprint: {headers: [Host]}",
        "fingerprint.headers[0]",
        "host is part of every fingerprint; leave it out",
    ),
    (
        "key: header:X-Key",
        "key",
        "expected a mapping, found `header:X-Key`; use {from: header:X-Key}",
    ),
    ("match: /x", "match", "expected a mapping, found `/x`; use {path: /x}"),
    ("match: {path: x/**}", "match.path", "a path begins with a slash; use /x/**"),
    ("match: {path: /**/x}", "match.path", "** stands only as the last segment; use * within one"),
    ("match: {path: '/x?y'}", "match.path", "a path is matched without its query; use /x"),
    ("match: {path: '/x/{id}'}", "match.path", "a segment of any name is a star; use /x/*"),
    (
        "match: {path: /a//b/../c}",
        "match.path",
        "`/a//b/../c` is not how a path is spelled when it is matched; use /a/c",
    ),
    (
        "match: {path: /café}",
        "match.path",
        "`/café` is not how a path is spelled when it is matched; use /caf%C3%A9",
    ),
    ("match: {methods: [post]}", "match.methods[0]", "methods are written in capitals; use POST"),
    ("match: {host: 'http://a.b/c'}", "match.host", "a host is not a URL; use a.b"),
    ("match: {hosts: a}", "match.hosts", "unknown field; did you mean `host`?"),
    ("match: {colour: red}", "match.colour", "unknown field; here stand path, host, methods"),
    # What DESIGN names and this version does not do.
    ("mode: shadows", "mode", "expected enforce or shadow, found `shadows`; use shadow"),
    ("cors: [a]", "cors", "does not stand here; it belongs in the top level"),
    (
        "scope: [jwt:sub]",
        "scope",
        f"jwt:sub needs `jwt`, which says whose tokens prove it; write jwt: {JWT}",
    ),
    ("scope: ['jwt:']", "scope[0]", "the name of a claim stands behind the colon; use jwt:sub"),
    ("scope: ['jwt:a b']", "scope[0]", "the name of a claim stands behind the colon; use jwt:sub"),
    ("scope: ['cookie:']", "scope[0]", "the name of a cookie stands behind the colon; use cookie:session"),
    ("scope: ['cookie:a;b']", "scope[0]", "the name of a cookie stands behind the colon; use cookie:session"),
    ("scope: [client_cert:sub]", "scope[0]", "the certificate as a whole is meant; use client_cert"),
    (
        "scope: client_cert",
        "scope",
        "no listener asks clients for certificates; give one tls: {cert: FILE, client_ca: FILE}",
    ),
    ("bind: client_cert", "bind", f"the source `client_cert` is {NOT_BUILT}; use {PLACES}"),
    ("jwt: x", "jwt", "expected a mapping, found `x`; use {jwks: x}"),
    ("jwt: {jwks: https://a/, issuer: b}", "jwt", "nothing reads it; write scope: [jwt:sub] too, or remove it"),
    (
        "jwt: {jwks: '', issuer: b}\nscope: [jwt:sub]",
        "jwt.jwks",
        "expected a file or URL such as https://id.example/.well-known/jwks.json, found an empty string",
    ),
    (
        "jwt: {jwks: http://a/keys, issuer: b}\nscope: [jwt:sub]",
        "jwt.jwks",
        "over http whoever stands between could put his own keys there; use https://",
    ),
    (
        "jwt: {jwks: ftp://a/keys, issuer: b}\nscope: [jwt:sub]",
        "jwt.jwks",
        "expected the path of a file, or a URL that begins with https://",
    ),
    (
        "jwt: {jwks: https://u:p@a/, issuer: b}\nscope: [jwt:sub]",
        "jwt.jwks",
        "holds a user name, a password or a fragment, which are not sent; remove it",
    ),
    (
        "jwt: {jwks: /nowhere/keys.json, issuer: b}\nscope: [jwt:sub]",
        "jwt.jwks",
        "there is no such file; use a file with the issuer's public keys, or their https:// URL",
    ),
    ("jwt: {jwks: /dev/null, issuer: b}\nscope: [jwt:sub]", "jwt.jwks", "this is not JSON; use a JWK Set (RFC 7517)"),
    (
        "jwt: {jwks: https://a/, ca: /nowhere, issuer: b}\nscope: [jwt:sub]",
        "jwt.ca",
        "there is no such file: /nowhere; use a PEM file with the certificates of the authorities that are trusted",
    ),
    ("jwt: {issuer: b}\nscope: [jwt:sub]", "jwt.jwks", "is missing; write jwt: " + JWT),
    ("jwt: {jwks: https://a/}\nscope: [jwt:sub]", "jwt.issuer", "is missing; write jwt: " + JWT),
    (
        "jwt: {jwks: https://a/, issuer: b, algorithms: HS256}\nscope: [jwt:sub]",
        "jwt.algorithms",
        "HS256 is signed with a secret that whoever verifies could sign with too; use RS256",
    ),
    (
        "jwt: {jwks: https://a/, issuer: b, algorithms: [none]}\nscope: [jwt:sub]",
        "jwt.algorithms[0]",
        "a token without a signature proves nothing; use RS256",
    ),
    (
        "jwt: {jwks: https://a/, issuer: b, algorithms: [RS265]}\nscope: [jwt:sub]",
        "jwt.algorithms[0]",
        f"expected one of {', '.join(ALGORITHMS)}, found `RS265`; use RS256",
    ),
    (
        "jwt: {jwks: https://a/, issuer: b, algorithms: []}\nscope: [jwt:sub]",
        "jwt.algorithms",
        "names none, so that no token would verify; use [RS256]",
    ),
    (
        "jwt: {jwks: https://a/, issuer: b, leeway: 1h}\nscope: [jwt:sub]",
        "jwt.leeway",
        "so long after its expiry a token must not be taken; use 10m at most",
    ),
    (
        "jwt: {jwks: https://a/, issuer: b, refresh: 1s}\nscope: [jwt:sub]",
        "jwt.refresh",
        "whoever publishes the keys would be asked all the time; use 10s or more",
    ),
    (
        "fingerprint: {ignore: [/a]}",
        "fingerprint.ignore",
        "only what a body says can be left out of it; write body: canonical-json beside it",
    ),
    ("fingerprint: {host: a}", "fingerprint.host", "expected true or false, found `a`"),
    (
        "ignore_cookies: ['*']",
        "ignore_cookies[0]",
        "leaves out every cookie; use bind: [header:NAME], which names what does bind",
    ),
    ("ignore_cookies: ['cookie:lb']", "ignore_cookies[0]", "the name stands alone here; use lb"),
    (
        "ignore_cookies: ['a*b']",
        "ignore_cookies[0]",
        "expected the name of a cookie such as lb, or a prefix such as lb_*, found `a*b`",
    ),
    (
        "ignore_cookies: ['']",
        "ignore_cookies[0]",
        "expected the name of a cookie such as lb, or a prefix such as lb_*, found an empty string",
    ),
    (
        f"ignore_cookies: [{', '.join(f'c{n}' for n in range(65))}]",
        "ignore_cookies",
        "65 cookies are too many; use 64 at most, or prefixes",
    ),
    ("fingerprint: {body: json}", "fingerprint.body", "expected raw or canonical-json, found `json`"),
    (
        "fingerprint: {body: canonical-json, ignore: [a.b]}",
        "fingerprint.ignore[0]",
        "a JSON Pointer begins with a slash; use /a/b",
    ),
    (
        "fingerprint: {body: canonical-json, ignore: [/a~b]}",
        "fingerprint.ignore[0]",
        "~ is written ~0 in a JSON Pointer; use /a~0b",
    ),
    (
        "fingerprint: {body: canonical-json, ignore: [/a/-]}",
        "fingerprint.ignore[0]",
        "- is the element behind the last, which is never there; remove it",
    ),
]

"""The configuration as a transcript: what stands in a file, and what the gate says of it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.cli import main
from gateway.core.fingerprint import Recipe
from gateway.core.policy import DAY, HOUR, MINUTE, SECOND, Match, Missing, OnDoubt, Policy, Route
from gateway.core.scope import ALGORITHMS, Tokens
from gateway.settings import (
    Address,
    Fault,
    Faults,
    Limits,
    Listener,
    LogSettings,
    Overrides,
    Settings,
    TlsSettings,
    UnixPath,
    UpstreamSettings,
    load,
    load_text,
    plain,
    stores,
)
from gateway.settings import source as sources
from gateway.settings.model import SHAPES
from gateway.settings.units import duration, show_duration, show_size, size

CONFIG = Path(__file__).parent.parent / "config"

#: Five lines that are a whole file. What is added to them begins on line 6.
WHOLE = """\
upstreams:
  app: {url: "http://127.0.0.1:9000"}
routes:
  - name: all
    upstream: app
"""


def read(text: str, environ: dict[str, str] | None = None, **overrides: str) -> Settings:
    return load_text(text, name="gate.yaml", environ=environ or {}, overrides=Overrides(**overrides))


def faults(read: Callable[[], Settings]) -> list[Fault]:
    with pytest.raises(Faults) as raised:
        read()
    return list(raised.value.faults)


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def first(settings: Settings) -> Route:
    return settings.routes.routes[0]


# ── Whole files ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", sorted(CONFIG.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_that_we_ship_is_without_fault(path: Path) -> None:
    """No file in config/ needs anything of the environment, and each has a route for somebody."""
    assert load(path, environ={}).routes.routes


def test_the_ten_lines_are_ten() -> None:
    assert len((CONFIG / "minimal.yaml").read_text().splitlines()) == 10


def test_the_file_of_all_fields_has_all_fields() -> None:
    """Whoever adds a field to the model adds it to config/gateway.yaml, or this fails."""
    text = (CONFIG / "gateway.yaml").read_text()
    documented = set(re.findall(r"(?:^|[{,]) *(?:# |- )?([a-z_]+):", text, re.MULTILINE))
    assert {field for shape in SHAPES for field in shape.written()} - documented == set()


def test_the_file_of_all_fields_says_the_defaults() -> None:
    """Where config/gateway.yaml writes what a field is when it is left out, that is what it is."""
    shipped = load(CONFIG / "gateway.yaml", environ={})
    bare = read(WHOLE)
    assert shipped.routes.routes[-1].policy == Policy() == first(bare).policy
    assert shipped.limits == Limits() == bare.limits
    assert shipped.log == LogSettings() == bare.log
    assert (shipped.grace, shipped.prefix) == (95 * SECOND, "og:") == (bare.grace, bare.prefix)
    assert shipped.admin == bare.admin
    assert shipped.store == bare.store
    assert (shipped.upgrades, shipped.origins, shipped.trusted_proxies) == ({b"websocket"}, None, None)
    assert (bare.upgrades, bare.origins, bare.trusted_proxies) == ({b"websocket"}, None, None)
    assert (shipped.store_check, shipped.on_amnesia) == ("strict", "warn") == (bare.store_check, bare.on_amnesia)
    app = UpstreamSettings("app", "127.0.0.1", 9000)
    assert {replace(shipped.upstreams["shop"], name="app"), bare.upstreams["app"]} == {app}


def test_every_field_is_documented_where_it_is_declared() -> None:
    """One sentence each, that says what the field is when it is left out."""
    for shape in SHAPES:
        for field, said in shape.written().items():
            assert said.endswith("."), field
            assert "default" in said or "required" in said or "{" in said or field in ("limits", "log"), field


def test_a_file_says_what_the_gate_does() -> None:
    """Each field lands where the core reads it."""
    settings = read(
        """
service: shop
listen: :80
admin: {listen: "[::1]:81"}
store: rEdIs://:hunter2@redis/3
secret: sesame
prefix: "shop:"
upstreams:
  pay: {url: "http://[::1]", connect: 1s, timeout: 10s, late: 5s, connections: 8}
defaults: {missing: refuse, window: 2h, release: 409}
routes:
  - name: payments
    match: {path: "/payments/*/captures", host: "*.Shop.Example", methods: [POST, PATCH]}
    upstream: pay
    namespace: pay
    key: {from: "header:X-Request-Id"}
    scope: [header:X-Tenant, header:X-Realm]
    bind: [header:X-Account, default]
    fingerprint: {headers: [X-Currency, X-Amount]}
    doubt_window: 1h
    wait: 0s
    on_doubt: rerun
    max_attempts: 3
    hold: [500]
    keep: [429, 502]
    max_request: 2KiB
    max_response: 0B
    store_wait: 250ms
    keep_headers: [Content-Type]
    drop_headers: [ETag]
  - {name: rest, upstream: pay, guard: no, missing: pass, window: 8d}
limits: {waiters: 1_000}
log: {format: json, keys: full}
grace: 1m
store_check: warn
on_amnesia: refuse
upgrades: [WebSocket, SSH/2]
cors: {origins: [https://shop.example, "http://localhost:3000"]}
trusted_proxies: [10.0.0.0/8, "::1"]
"""
    )
    assert settings.upgrades == {b"websocket", b"ssh/2"}
    assert settings.origins == {b"https://shop.example", b"http://localhost:3000"}
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))
    timing = {"timeout": 10 * SECOND, "late": 5 * SECOND, "missing": Missing.REFUSE, "window": 2 * HOUR}
    payments = Policy(
        **timing,
        namespace=b"pay",
        headers=(b"x-request-id",),
        scope=(b"header:x-realm", b"header:x-tenant"),
        recipe=Recipe(("default", "header:x-account"), (b"x-amount", b"x-currency")),
        doubt_window=HOUR,
        wait=0,
        on_doubt=OnDoubt.RERUN,
        max_attempts=3,
        release=frozenset((409,)),
        hold=frozenset((500,)),
        keep=frozenset((429, 502)),
        max_request=2048,
        max_response=0,
        store_wait=250,
        keep_headers=frozenset((b"content-type",)),
        drop_headers=frozenset((b"etag",)),
    )
    rest = Policy(
        timeout=10 * SECOND,
        late=5 * SECOND,
        guard=False,
        window=8 * DAY,
        doubt_window=8 * DAY,
        release=frozenset((409,)),
    )
    match = Match("/payments/*/captures", "*.shop.example", frozenset((b"POST", b"PATCH")))
    assert settings.routes.routes == (
        Route("payments", "pay", match, payments),
        Route("rest", "pay", Match(), rest),
    )
    assert settings.upstreams == {"pay": UpstreamSettings("pay", "::1", 80, SECOND, 10_000, 5_000, 8)}
    assert (settings.service, settings.secret, settings.prefix) == ("shop", b"sesame", "shop:")
    assert ([each.address for each in settings.listen], settings.admin) == (
        [Address("0.0.0.0", 80)],
        Address("::1", 81),
    )
    assert settings.limits == Limits(waiters=1_000)
    assert settings.log == LogSettings("json", "full")
    assert settings.grace == MINUTE
    assert (settings.store_check, settings.on_amnesia) == ("warn", "refuse")


def test_an_upstream_over_tls() -> None:
    """A URL is enough, on port 443 and by the host's own name; what `tls` says besides lands where it is used."""
    plain_url = read(WHOLE.replace('{url: "http://127.0.0.1:9000"}', "https://shop.example")).upstreams["app"]
    assert plain_url == UpstreamSettings("app", "shop.example", 443, tls=TlsSettings("shop.example"))
    assert plain_url.tls is not None
    context = plain_url.tls.context
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2

    whole = "{url: https://10.0.0.1:8443, tls: {server_name: shop.internal, verify: false}}"
    careless = read(WHOLE.replace('{url: "http://127.0.0.1:9000"}', whole)).upstreams["app"]
    assert careless == UpstreamSettings("app", "10.0.0.1", 8443, tls=TlsSettings("shop.internal", verify=False))
    assert careless.tls is not None
    assert careless.tls.context.verify_mode == ssl.CERT_NONE


def test_the_authorities_of_a_file_stand_instead_of_the_system_s(tmp_path: Path) -> None:
    """Whoever names an authority trusts that one, and no other."""
    ca = tmp_path / "ca.pem"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca)
    text = WHOLE.replace('{url: "http://127.0.0.1:9000"}', f"{{url: https://a, tls: {{ca: {ca}}}}}")
    tls = read(text).upstreams["app"].tls
    assert tls == TlsSettings("a", str(ca))
    trusted = tls.context.get_ca_certs(binary_form=True)
    assert trusted == [ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())]


def test_what_the_file_of_all_fields_says_of_tls_is_read(tmp_path: Path) -> None:
    """The commented line of config/gateway.yaml, put to use."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    text = SHIPPED.replace("# tls: {", "tls: {").replace("http://127.0.0.1:9000 ", "https://127.0.0.1:9000 ")
    tls = read(text.replace("/etc/ssl/internal-ca.pem", str(ca))).upstreams["shop"].tls
    assert tls == TlsSettings("shop.internal", str(ca))


def test_what_is_trusted_is_read_where_the_core_reads_it(tmp_path: Path) -> None:
    """`jwt` in `defaults` is every route's that says nothing else; lists in any order are the same list; a file of
    keys is looked at before a port is bound."""
    (tmp_path / "keys.json").write_text('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}')
    text = """
upstreams: {app: http://a}
defaults: {jwt: {jwks: https://id.example/keys, issuer: https://id.example/}, scope: [jwt:sub]}
routes:
  - {name: a, match: {path: /a}, upstream: app}
  - name: b
    match: {path: /b}
    upstream: app
    scope: [jwt:tenant, cookie:Shop, header:X-B]
    bind: [header:X-B, default]
    fingerprint: {body: canonical-json, ignore: [/b, /a/0/c~1d]}
    jwt: {jwks: "http://localhost:1/keys", issuer: b, audience: [y, x], algorithms: EdDSA, leeway: 0s, refresh: 10s}
  - {name: c, match: {path: /c}, upstream: app, scope: public}
"""
    a, b, c = (route.policy for route in read(text).routes.routes)
    assert (a.scope, a.tokens) == ((b"jwt:sub",), Tokens("https://id.example/keys", "https://id.example/"))
    assert b.scope == (b"cookie:Shop", b"header:x-b", b"jwt:tenant")
    assert b.tokens == Tokens("http://localhost:1/keys", "b", ("x", "y"), ("EdDSA",), 0, 10 * SECOND)
    assert (b.recipe.bind, b.recipe.body) == (("default", "header:x-b"), "canonical-json")
    assert (b.recipe.ignore, b.recipe.pointers) == (("/a/0/c~1d", "/b"), (("a", "0", "c/d"), ("b",)))
    assert (c.scope, c.tokens) == ((), a.tokens)
    wrong = text.replace("https://id.example/keys", str(tmp_path / "keys.json"))
    assert [(fault.path, fault.message) for fault in faults(lambda: read(wrong))] == [
        (
            "defaults.jwt.jwks",
            "no key in the set can verify a signature (RSA of 2048 bits, P-256, P-384, P-521 or Ed25519); "
            "use a JWK Set (RFC 7517)",
        )
    ]


def test_grace_is_the_longest_lease() -> None:
    """A drain waits for whoever may still be running, unless the file says how long."""
    slow = WHOLE.replace("}", ", timeout: 5m}")
    assert read(slow).grace == 5 * MINUTE + 35 * SECOND


def test_nothing_shows_a_secret() -> None:
    """Neither the settings' repr nor what is shown of the store has a password or the secret in it."""
    settings = read(WHOLE + "service: a\nsecret: sesame\nstore: redis://me:hunter2@redis:6379/0\n")
    assert "hunter2" not in repr(settings) + settings.shown_store
    assert "sesame" not in repr(settings)
    assert settings.shown_store == "redis://…@redis:6379/0"


def test_a_long_secret_is_digested() -> None:
    """BLAKE2b takes keys of up to 64 bytes. This never changes, or every live key is forgotten."""
    short, long = "s" * 64, "é" * 33
    assert read(WHOLE + f"secret: {short}\n").secret == short.encode()
    assert read(WHOLE + f"secret: {long}\n").secret == blake2b(long.encode()).digest()


# ── Faults, one at a time ─────────────────────────────────────────────────────────────────────────

PLACES = "header:NAME, body:/POINTER, form:FIELD, query:NAME, path:N or cookie:NAME"
TO_COME = "known, but not built yet in this version; remove it"
NOT_BUILT = "known, but not built yet in this version"

JWT = "{jwks: https://id.example/.well-known/jwks.json, issuer: https://id.example/}"

#: Added to the route on line 6: path below routes[0], message.
IN_A_ROUTE = [
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
        "there is no such file; use a PEM file with the certificates of the authorities that are trusted",
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


@pytest.mark.parametrize(("added", "path", "message"), IN_A_ROUTE, ids=[case[0] for case in IN_A_ROUTE])
def test_a_fault_in_a_route(added: str, path: str, message: str) -> None:
    """Each is the only fault, stands on line 6, and says what to write."""
    text = WHOLE + indented(added)
    assert faults(lambda: read(text)) == [Fault(f"routes[0].{path}", 6, message)]


#: Added on line 6: path, message.
AT_THE_TOP = [
    ("servce: a", "servce", "unknown field; did you mean `service`?"),
    ("window: 1h", "window", "does not stand here; it belongs in a route or `defaults`"),
    (
        "service: 123",
        "service",
        'expected a name such as payments, found the number 123; in quotes it is text: "123"',
    ),
    (
        "service: on",
        "service",
        'expected a name such as payments, found the boolean on; in quotes it is text: "on"',
    ),
    ("service: ''", "service", "expected a name such as payments, found an empty string"),
    ("listen: localhost", "listen", "the port is missing; use localhost:8080"),
    ("listen: http://a:80/", "listen", "an address is not a URL; use a:80"),
    ("listen: ::1:8080", "listen", "an IPv6 address stands in brackets; use [::1]:8080"),
    ("listen: 127.0.0.1:65536", "listen", "65536 is not a port (0–65535)"),
    (
        "listen: true",
        "listen",
        'expected an address such as 127.0.0.1:8080, found the boolean true; in quotes it is text: "true"',
    ),
    ("admin: 127.0.0.1:1", "admin", "expected a mapping, found `127.0.0.1:1`; use {listen: 127.0.0.1:1}"),
    (
        "admin: {token: short}",
        "admin.token",
        "shorter than 16 characters can be guessed; make one: openssl rand -hex 32",
    ),
    (
        "admin: {token: 'two words of a token'}",
        "admin.token",
        "a token is letters, digits, ._~+/- and = at its end; make one: openssl rand -hex 32",
    ),
    (
        "admin: {token: 1234567890123456}",
        "admin.token",
        "expected a token such as ${ONCEGATE_ADMIN_TOKEN}, in quotes where it looks like a number",
    ),
    (
        "admin: {token_file: /nowhere/token}",
        "admin.token_file",
        "/nowhere/token cannot be read: No such file or directory",
    ),
    (
        "admin: {token_file: /dev/null}",
        "admin.token_file",
        "/dev/null holds no token: a token is letters, digits, ._~+/- and = at its end; make one: openssl rand -hex 32",
    ),
    (
        "admin: {token: abcdefghijklmnop, token_file: /dev/null}",
        "admin.token_file",
        "says what `token` says too; remove one of the two",
    ),
    (
        "admin: {audit: /nowhere/audit}",
        "admin.audit",
        "the folder of /nowhere/audit is not there; make it, or name another file",
    ),
    ("admin: {audit: /}", "admin.audit", "/ is a folder; name a file in it"),
    ("admin: {tls: {}}", "admin.tls", TO_COME),
    ("tls: {}", "tls", "does not stand here; it belongs in upstreams.NAME"),
    ("listen: []", "listen", "names no address; use 127.0.0.1:8080"),
    ("listen: unix:gate.sock", "listen", "expected the whole path of a Unix socket, such as unix:/run/oncegate.sock"),
    ("listen: unix:///gate.sock", "listen", "one slash begins the path; use unix:/gate.sock"),
    (f"listen: unix:/{'x' * 97}", "listen", "the path of a Unix socket has 96 bytes at most; use a shorter one"),
    ("listen: {mode: '0600'}", "listen.address", "is missing; use address: 127.0.0.1:8080"),
    ("listen: ['127.0.0.1:80', '::81']", "listen[1]", "expected an address such as 127.0.0.1:8080, found `::81`"),
    (
        "listen: ['0.0.0.0:80', '127.0.0.1:80']",
        "listen[1]",
        "127.0.0.1:80 is listened on already; remove one of the two",
    ),
    (
        "listen: {address: 127.0.0.1:80, mode: '0600'}",
        "listen.mode",
        "is for a Unix socket; remove it, or use unix:/PATH",
    ),
    ("listen: {address: unix:/a, mode: 9}", "listen", 'expected permissions such as "0660", found the number 9'),
    (
        "listen: {address: 127.0.0.1:80, tls: {}}",
        "listen.tls",
        "the gate needs a certificate; use {cert: FILE, key: FILE}",
    ),
    (
        "listen: {address: 127.0.0.1:80, tls: {cert: /none}}",
        "listen.tls",
        "cert, key: there is no such file; use PEM files with a certificate and its key",
    ),
    (
        "listen: {address: 127.0.0.1:80, tls: {cert: /none, clients: optional}}",
        "listen.tls.clients",
        "says nothing without client_ca: FILE, which signs their certificates",
    ),
    ("cors: ['*']", "cors", "expected a mapping, found a list"),
    (
        "cors: https://a.example",
        "cors",
        "expected a mapping, found `https://a.example`; use {origins: https://a.example}",
    ),
    ("cors: {}", "cors.origins", "is missing; use origins: [https://shop.example]"),
    ("cors: {origins: []}", "cors.origins", "names no origin; use [https://shop.example], or remove `cors`"),
    ("cors: {origins: [a.example]}", "cors.origins[0]", "the scheme is missing; use https://a.example"),
    (
        "cors: {origins: [https://a.example/]}",
        "cors.origins[0]",
        "`https://a.example/` is not how a browser spells an origin; use https://a.example",
    ),
    (
        "cors: {origins: ['https://A.example:443']}",
        "cors.origins[0]",
        "`https://A.example:443` is not how a browser spells an origin; use https://a.example",
    ),
    (
        "cors: {origins: ['https://*.example']}",
        "cors.origins[0]",
        "expected an origin such as https://shop.example, found `https://*.example`",
    ),
    (
        "cors: {origins: ['null']}",
        "cors.origins[0]",
        "null is what every sandboxed page and local file calls itself; leave it out",
    ),
    (
        "cors: {origins: ['*', https://a.example]}",
        "cors.origins",
        '`*` is every origin, so it stands alone; use ["*"], or name them',
    ),
    (
        "trusted_proxies: proxy",
        "trusted_proxies",
        "expected addresses such as 10.0.0.0/8, found `proxy`",
    ),
    (
        "trusted_proxies: [10.1.0.0/8]",
        "trusted_proxies[0]",
        "`10.1.0.0/8` has more bits than its mask; use 10.0.0.0/8",
    ),
    ("upgrades:", "upgrades", "expected a list of protocols such as [websocket], found nothing"),
    ("upgrades: [a b]", "upgrades[0]", "expected a protocol such as websocket, found `a b`"),
    (
        "upgrades: [H2C]",
        "upgrades[0]",
        "in H2C requests would reach the service past their guards; leave it out",
    ),
    (
        "upgrades: [HTTP/2.0]",
        "upgrades[0]",
        "in HTTP/2.0 requests would reach the service past their guards; leave it out",
    ),
    (
        "durability: replicated",
        "durability",
        "does not stand here; it belongs in `store`",
    ),
    ("store: {durability: power}", "store.url", "is missing; use url: redis://HOST:6379/0"),
    ("store: {}", "store.url", "is missing; use url: redis://HOST:6379/0"),
    (
        "store: {url: mysql://x, replicas: 2}",
        "store",
        "no store is called mysql://; use memory://, sqlite:/// or redis://",
    ),
    ("store: {url: mysql://x}", "store.url", "no store is called mysql://; use memory://, sqlite:/// or redis://"),
    ("store: [memory://]", "store", "expected a mapping, found a list"),
    ("store: {url: 'redis://h', durable: single}", "store.durable", "unknown field; did you mean `durability`?"),
    (
        "store: {url: 'redis://h', durability: full}",
        "store.durability",
        "`full` is not read; use single or replicated",
    ),
    (
        "store: {url: 'redis://h', durability: replicated}",
        "store",
        "replicas is missing: how many there are that can be promoted; use &replicas=1",
    ),
    (
        "store: {url: 'redis://h', durability: replicated, replicas: [1]}",
        "store.replicas",
        "expected a single value, found a list",
    ),
    (
        "store: {url: 'redis://h?durability=replicated', durability: replicated}",
        "store.durability",
        "stands in the URL too; write it once",
    ),
    ("store: {url: 'redis://h', ca: /a}", "store.ca", "`ca` is for a Redis that speaks TLS; use rediss://"),
    (
        "store: {url: 'redis://h', db: 1}",
        "store.db",
        "the number of a database stands behind the host; use redis://HOST:6379/1",
    ),
    (
        "store: {url: 'memory://', replicas: 1}",
        "store.replicas",
        "`replicas` is not read behind the ? of memory://; use max_records or max_bytes",
    ),
    ("store_check: loud", "store_check", "expected strict, warn or off, found `loud`"),
    ("store_check: no", "store_check", "expected strict, warn or off, found the boolean no"),
    ("on_amnesia: refused", "on_amnesia", "expected warn or refuse, found `refused`; use refuse"),
    ("store: mysql://x", "store", "no store is called mysql://; use memory://, sqlite:/// or redis://"),
    ("store: 'redis://:a#b@h'", "store", "a # cannot stand here; in a password write %23"),
    ("store: oncegate.db", "store", "expected memory://, sqlite:///PATH or redis://HOST:PORT/DB"),
    ("store: sqlite://a/b.db", "store", "a path stands behind three slashes; use sqlite:///a/b.db"),
    (
        "store: sqlite:///a?durability=full",
        "store",
        "durability: `full` is not read; use power (the default) or process",
    ),
    (
        "store: sqlite:///a?max_bytes=1GB",
        "store",
        "max_bytes: expected a size such as 1MiB, found `1GB`; use 1GiB",
    ),
    ("store: sqlite:///a?max_bytes=64KiB", "store", "max_bytes: `64KiB` is too little; use 1MiB or more"),
    (
        "store: sqlite:///a?max_byte=1GiB",
        "store",
        "`max_byte` is not read behind the ? of sqlite://; use durability or max_bytes",
    ),
    (
        "store: sqlite:///a?durability=power&durability=process",
        "store",
        "`durability` stands there twice; use it once",
    ),
    ("store: memory://?max_records=0", "store", "max_records: `0` is no number of records; use 100000"),
    ("store: memory://a", "store", "memory:// takes no place behind it; use memory://"),
    (
        "store: postgresql://h",
        "store",
        f"a store at postgresql:// is {NOT_BUILT}; use redis://, sqlite:/// or memory://",
    ),
    (
        "store: redis+cluster://a,b:7000/1",
        "store",
        "a cluster has one database, which has no number; use redis+cluster://HOST,HOST,HOST",
    ),
    ("store: redis+cluster://a?ca=/a", "store", "`ca` is for a Redis that speaks TLS; use rediss+cluster://"),
    ("store: redis+cluster://", "store", "the host is missing; use redis://127.0.0.1:6379/0"),
    (
        "store: redis+cluster://h/?db=1",
        "store",
        "`db` is not read behind the ? of redis+cluster://; use durability or replicas or wait",
    ),
    (
        "store: redis://:pa/ss@h:1",
        "store",
        "the host and port cannot be read (in a password write %2F for /, %3F for ? and %23 for #); "
        "use redis://:PASSWORD@HOST:6379/0",
    ),
    (
        "store: redis://h:1/0?durability=replicated",
        "store",
        "replicas is missing: how many there are that can be promoted; use &replicas=1",
    ),
    (
        "store: redis://h:1/0?replicas=2",
        "store",
        "replicas is for durability=replicated; write that too, or leave it out",
    ),
    (
        "store: redis://h:1/0?durability=replicated&replicas=0",
        "store",
        "replicas: `0` is no number of replicas; use 1 to 9",
    ),
    (
        "store: redis://h:1/0?durability=replicated&replicas=1&wait=1m",
        "store",
        "wait: `1m` is no time to wait for replicas; use 10ms to 2s",
    ),
    ("store: redis://h:1/0?ca=/a", "store", "`ca` is for a Redis that speaks TLS; use rediss://"),
    ("store: rediss://h:1/0?key=/a", "store", "key is for the certificate in cert; write that too"),
    (
        "store: rediss://h:1/0?ca=/a&verify=false",
        "store",
        "ca is for what verify=false leaves undone; leave one of the two out",
    ),
    (
        "store: rediss://h:1/0?cert=/no/such/file",
        "store",
        "cert, key: there is no such file; use PEM files with a certificate and its key",
    ),
    (
        "store: redis+sentinel://a,b,c",
        "store",
        "behind the Sentinels stands the name that they know the primary by; use redis+sentinel://HOST,HOST,HOST/NAME",
    ),
    (
        "store: redis+unix://h/run/redis.sock",
        "store",
        "the path of the socket is missing; use redis+unix:///run/redis.sock",
    ),
    (
        "store: redis://h:1",
        "service",
        "is missing, and a shared store needs it: two services on one Redis, called in a chain with one "
        "propagated key, would replay each other's answers; write service: NAME, or give --service NAME",
    ),
    ("store_scope: many", "store_scope", "expected single, found `many`"),
    ("secret: 31337", "secret", "expected text, found a number; put the secret in quotes"),
    (
        "secret:",
        "secret",
        "expected a secret such as ${ONCEGATE_SECRET}, found nothing",
    ),
    ("prefix: 'og:{a}'", "prefix", "braces would move every key to one slot of a Redis Cluster; use og:"),
    (
        "prefix: 'o g'",
        "prefix",
        "a prefix has up to 32 printable ASCII characters and no spaces; use og:",
    ),
    ("limits: {buffers: 2MiB}", "limits.buffers", "less than the max_request of a route; use 10MiB or more"),
    ("limits: {head: 1KB}", "limits.head", "expected a size such as 1MiB, found `1KB`; use 1KiB"),
    ("limits: {waiter: 1}", "limits.waiter", "unknown field; did you mean `waiters`?"),
    ("limits:", "limits", "expected a mapping, found nothing"),
    ("log: {format: xml}", "log.format", "expected auto, json or text, found `xml`"),
    ("grace: forever", "grace", "expected a duration such as 30s, found `forever`"),
    ("margin: 50ms", "margin", "50ms is less than clocks and schedulers may be late; use 100ms or more"),
    ("upstreams: {}", "upstreams", "is written twice, first on line 1; keep one"),
    (
        "admin: {listen: ':8080'}",
        "admin.listen",
        "the admin listener cannot share 127.0.0.1:8080 with the gate; use another port",
    ),
    ("defaults: {window: 2 d}", "defaults.window", "expected a duration such as 30s, found `2 d`; use 2d"),
    (
        "defaults: {doubt_window: 1s}",
        "defaults.doubt_window",
        "1s is shorter than the lease of 95s (timeout, late and 5s of `app`), in which a request may still "
        "run; use 95s or more",
    ),
    ("defaults: {name: a}", "defaults.name", "does not stand here; it belongs in a route"),
    # The environment, tags, merges.
    (
        "service: ${NAME}",
        "service",
        "the variable NAME is not set in the environment; export NAME=… first",
    ),
    (
        "service: ${NAME:-a}",
        "service",
        "`${NAME…}` holds more than a name; use ${NAME}, without a default",
    ),
    (
        "service: ${NAME",
        "service",
        "`${` is not closed; use ${NAME}, or $${ for the characters themselves",
    ),
    ("service: ${EMPTY}", "service", "expected a name such as payments, found an empty string"),
    ("service: !shout a", "service", "the tag !shout is not read; leave it out"),
    ("limits: {<<: 5}", "limits.<<", "merges mappings only"),
    ("[a, b]: c", "", "a key is a single word, not a list or a mapping"),
]


@pytest.mark.parametrize(("added", "path", "message"), AT_THE_TOP, ids=[case[0] for case in AT_THE_TOP])
def test_a_fault_at_the_top(added: str, path: str, message: str) -> None:
    """Each is the only fault, stands on line 6, and says what to write."""
    text = f"{WHOLE}{added}\n"
    assert faults(lambda: read(text, {"EMPTY": ""})) == [Fault(path, 6, message)]


A_PEM_FILE = "use a PEM file with the certificates of the authorities that are trusted"
#: The upstream on line 2: path below upstreams.app, message.
OF_AN_UPSTREAM = [
    ("127.0.0.1:9000", "", "the scheme is missing; use http://127.0.0.1:9000"),
    ("':9000'", "", "the scheme is missing; use http://127.0.0.1:9000"),
    ("127.0.0.1:443", "", "the scheme is missing; use https://127.0.0.1:443"),
    ("ftp://a", "", "an upstream speaks http or https, not ftp; use http://a"),
    (
        "http://a/v1",
        "",
        "holds a path, and a request goes on with the path that the client sent; use http://a",
    ),
    (
        "http://me:hunter2@a",
        "",
        "holds a user name or password, which is never sent; use http://HOST:PORT",
    ),
    (
        "https://a/v1",
        "",
        "holds a path, and a request goes on with the path that the client sent; use https://a",
    ),
    ("https://a..b", "", "`a..b` is not the name or address of a host; use a URL such as https://127.0.0.1:9000"),
    (
        f"http://{'a' * 64}",
        "",
        f"`{'a' * 59}…` is not the name or address of a host; use a URL such as http://127.0.0.1:9000",
    ),
    ("http://a:0", "", "0 is not a port (1–65535); use a URL such as http://127.0.0.1:9000"),
    ("7", "", "expected a mapping, found the number 7"),
    ("{timeout: 3s}", ".url", "is missing; use url: http://HOST:PORT"),
    ("{url: http://a, timout: 3s}", ".timout", "unknown field; did you mean `timeout`?"),
    ("{url: http://a, timeout: 0s}", ".timeout", "`0s` is no time at all; use 1ms or more"),
    ("{url: http://a, tls: {}}", ".tls", "is for a service that speaks TLS; use url: https://HOST:PORT, or remove it"),
    ("{url: https://a, tls: true}", ".tls", "expected a mapping, found the boolean true"),
    ("{url: https://a, tls: {verfy: false}}", ".tls.verfy", "unknown field; did you mean `verify`?"),
    ("{url: https://a, tls: {verify: 0}}", ".tls.verify", "expected true or false, found the number 0"),
    ("{url: https://a, tls: {ca: /no/such.pem}}", ".tls.ca", f"there is no such file; {A_PEM_FILE}"),
    ("{url: https://a, tls: {ca: /}}", ".tls.ca", f"cannot be read: Is a directory; {A_PEM_FILE}"),
    ("{url: https://a, tls: {ca: /dev/null}}", ".tls.ca", f"holds no certificate that can be read; {A_PEM_FILE}"),
    (
        "{url: https://a, tls: {ca: /no/such.pem, verify: false}}",
        ".tls.ca",
        "is for what `verify: false` leaves undone; remove one of the two",
    ),
    (
        "{url: https://a, tls: {server_name: 'https://b'}}",
        ".tls.server_name",
        "`https://b` is not the name or address of a host; use the name in the certificate alone, such as "
        "shop.internal",
    ),
    ("{url: http://a, connections: 0}", ".connections", "0 is out of bounds; use 1 to 1000000"),
]


@pytest.mark.parametrize(("upstream", "path", "message"), OF_AN_UPSTREAM, ids=[case[0] for case in OF_AN_UPSTREAM])
def test_a_fault_of_an_upstream(upstream: str, path: str, message: str) -> None:
    """Written as a URL alone, its path is that of the upstream."""
    text = WHOLE.replace('{url: "http://127.0.0.1:9000"}', upstream)
    assert faults(lambda: read(text)) == [Fault(f"upstreams.app{path}", 2, message)]


#: Whole files: text, and everything that is said of it.
OF_A_FILE = {
    "empty": ("", ["gate.yaml: the file is empty; it needs `upstreams` and `routes`"]),
    "only comments": ("# soon\n", ["gate.yaml: the file is empty; it needs `upstreams` and `routes`"]),
    "a list": (
        "# soon\n- a\n",
        ["gate.yaml:2: expected a mapping with `upstreams` and `routes`, found a list"],
    ),
    "no YAML": (
        "a: 1\nb: [1, 2\nc: 3\n",
        ["gate.yaml:3: this is not YAML: expected ',' or ']', but got ':'"],
    ),
    "tabs": ("a:\n\tb: 1\n", ["gate.yaml:2: this is not YAML: a tab; indent with spaces"]),
    "two documents": ("a: 1\n---\nb: 1\n", ["gate.yaml:2: a second document begins here; keep one in a file"]),
    "a control character": ("a: 1\nb: \x07\n", ["gate.yaml:2: the character '\\x07' cannot stand in YAML"]),
    "${…} in a flow": (
        "admin: {listen: ${ADMIN}}\n",
        ["gate.yaml:1: this is not YAML: expected ',' or '}', but got '{'; put ${…} in quotes inside { } or [ ]"],
    ),
    "a mapping in a mapping in a mapping …": (
        "a: " + "{a: " * 5000,
        ["gate.yaml: the values are nested too deep to be read"],
    ),
    "an alias of itself": ("a: &a [*a]\n", ["gate.yaml:1: an alias stands within what it stands for"]),
    "a merge of itself": ("a: &a\n  <<: *a\n", ["gate.yaml:2: a mapping merges itself"]),
    "no upstreams and no routes": (
        "service: a\n",
        [
            "gate.yaml: upstreams: no upstreams; write upstreams: {NAME: http://HOST:PORT}",
            "gate.yaml: routes: no routes, so every request would be a 404; "
            "write routes: [{name: all, upstream: NAME}]",
        ],
    ),
    "no route": (
        "upstreams: {app: http://a}\nroutes: []\n",
        ["gate.yaml:2: routes: no routes, so every request would be a 404; write routes: [{name: all, upstream: app}]"],
    ),
    "routes as a mapping": (
        "upstreams: {app: http://a}\nroutes:\n  all: {upstream: app}\n",
        ["gate.yaml:2: routes: expected a list, found a mapping"],
    ),
    "upstreams as a list": (
        "upstreams: [http://a]\nroutes: [{name: all, upstream: app}]\n",
        ["gate.yaml:1: upstreams: expected a mapping, found a list"],
    ),
    "an upstream by a name that is none": (
        "upstreams: {a b: http://a}\nroutes: [{name: all, upstream: a-b}]\n",
        [
            "gate.yaml:1: upstreams.a b: `a b` is not a name: up to 64 letters, digits, `.`, `_` and `-`, a "
            "letter or digit first; use a-b",
            "gate.yaml:2: routes[0].upstream: no upstream is called `a-b`; did you mean `a b`?",
        ],
    ),
    "a route without a name or an upstream": (
        "upstreams: {app: http://a}\nroutes:\n  - match: {path: /x}\n",
        [
            "gate.yaml:3: routes[0].name: is missing; use name: payments",
            "gate.yaml:3: routes[0].upstream: is missing; use upstream: app",
        ],
    ),
    "an unknown upstream": (
        WHOLE.replace("upstream: app", "upstream: ap"),
        ["gate.yaml:5: routes[0].upstream: no upstream is called `ap`; did you mean `app`?"],
    ),
    "two routes of one name": (
        WHOLE.replace("upstream: app", "upstream: app\n    match: {path: /x}") + "  - name: all\n    upstream: app\n",
        ["gate.yaml:7: routes[1].name: `all` is the name of routes[0] too, on line 4; use another"],
    ),
    "a route that the first leaves nothing to": (
        WHOLE + "  - {name: pay, upstream: app, match: {path: /pay}}\n",
        ["gate.yaml:6: routes[1].match: can never match: routes[0] (`all`) takes all of it; put this route before it"],
    ),
    "a list with a variable that is not set, and more": (
        WHOLE + "    scope: ['header:X-${A}', query:a, 'header:${B}']\n",
        [
            "gate.yaml:6: routes[0].scope[0]: the variable A is not set in the environment; export A=… first",
            "gate.yaml:6: routes[0].scope[2]: the variable B is not set in the environment; export B=… first",
            "gate.yaml:6: routes[0].scope[1]: a query says what is asked, and proves nothing of who asks; "
            "use header:NAME",
        ],
    ),
    "a status in two lists": (
        WHOLE + "    keep: [429, 409]\n    release: [409]\n",
        ["gate.yaml:7: routes[0].release: 409 cannot be both in release and in keep; take it out of one"],
    ),
    "a header in two lists": (
        "defaults: {keep_headers: [ETag, Link]}\n" + WHOLE + "    drop_headers: [etag]\n",
        [
            "gate.yaml:7: routes[0].drop_headers: etag cannot be both in keep_headers and in drop_headers; "
            "take it out of one"
        ],
    ),
    "a status in two lists, one of them in defaults": (
        "defaults: {hold: 500}\n" + WHOLE + "    release: [500]\n",
        ["gate.yaml:7: routes[0].release: 500 cannot be both in release and in hold; take it out of one"],
    ),
}


@pytest.mark.parametrize("case", OF_A_FILE)
def test_a_fault_of_a_file(case: str) -> None:
    """Rendered as a person sees it: the file, the line, the path, what to do."""
    text, said = OF_A_FILE[case]
    with pytest.raises(Faults) as raised:
        read(text)
    assert str(raised.value).splitlines() == said


def test_every_fault_is_told_at_once() -> None:
    """Those of YAML, of single values and of several together, in the order of the file."""
    with pytest.raises(Faults) as raised:
        read(
            """\
service: 5
listen: ${LISTEN}
upstreams:
  app: http://127.0.0.1:9000/v1
routes:
  - name: all
    upstream: ap
    window: 48 hours
    window: 48h
    keep: [200, 299, 600, x]
    release: 299
  - guard: maybe
    name: all
    upstream: app
    doubt_window: 1m
limits: {fields: many}
"""
        )
    assert str(raised.value).splitlines() == [
        'gate.yaml:1: service: expected a name such as payments, found the number 5; in quotes it is text: "5"',
        "gate.yaml:2: listen: the variable LISTEN is not set in the environment; export LISTEN=… first",
        "gate.yaml:4: upstreams.app: holds a path, and a request goes on with the path that the client sent; "
        "use http://127.0.0.1:9000",
        "gate.yaml:7: routes[0].upstream: no upstream is called `ap`; did you mean `app`?",
        "gate.yaml:8: routes[0].window: expected a duration such as 30s, found `48 hours`; use 48h",
        "gate.yaml:9: routes[0].window: is written twice, first on line 8; keep one",
        "gate.yaml:10: routes[0].keep[2]: 600 is not a final status code (200–599)",
        "gate.yaml:10: routes[0].keep[3]: expected a status such as 409, found `x`",
        "gate.yaml:12: routes[1].guard: expected true or false, found `maybe`",
        "gate.yaml:12: routes[1]: can never match: routes[0] (`all`) takes all of it; remove one of them",
        "gate.yaml:13: routes[1].name: `all` is the name of routes[0] too, on line 6; use another",
        "gate.yaml:16: limits.fields: expected a number from 1 to 1000000, found `many`",
    ]


def test_what_cannot_be_read_is_not_guessed_about() -> None:
    """A timeout that is wrong leaves the lease unknown, so nothing is said of the doubt window."""
    text = WHOLE.replace("}", ", timeout: 30}") + "    doubt_window: 1m\n"
    assert [fault.path for fault in faults(lambda: read(text))] == ["upstreams.app.timeout"]


COVERED = [
    ("/**", "/**", True),
    ("/pay", "/pay", True),
    ("/pay/**", "/pay", True),
    ("/pay/**", "/pay/refunds/**", True),
    ("/pay/**", "/payments", False),
    ("/pay", "/pay/**", False),
    ("/pay/*", "/pay/refunds", False),
    ("/**, methods: [POST]", "/**", False),
    ("/**, methods: [POST, PUT]", "/**, methods: [POST]", True),
    ("/**, methods: [POST]", "/**, methods: [POST, PUT]", False),
    ("/**, host: a", "/**, host: b", False),
    ("/**, host: a", "/**", False),
    ("/x, host: a", "/x, host: A", True),
]


@pytest.mark.parametrize(("earlier", "later", "covered"), COVERED)
def test_a_route_that_can_never_match_is_a_fault(earlier: str, later: str, covered: bool) -> None:
    """Only where the two spellings show it; a narrower route first is what an order is for."""
    text = f"""\
upstreams: {{app: http://a}}
routes:
  - {{name: a, upstream: app, match: {{path: {earlier}}}}}
  - {{name: b, upstream: app, match: {{path: {later}}}}}
"""
    if covered:
        assert [fault.path for fault in faults(lambda: read(text))] == ["routes[1].match"]
    else:
        assert len(read(text).routes.routes) == 2


# ── The environment, anchors ──────────────────────────────────────────────────────────────────────


def test_the_environment_is_read_inside_any_value() -> None:
    """In the middle of one, as a number, as a boolean; `$${` stands for itself; a lone $ is a lone $."""
    text = WHOLE + indented("guard: ${GUARD}\nmax_attempts: ${N}") + "listen: ${HOST}:80\nsecret: a$b$${c}\n"
    settings = read(text, {"GUARD": "false", "N": "7", "HOST": "10.0.0.1", "c": "no"})
    assert settings.listen == (Listener(Address("10.0.0.1", 80)),)
    assert settings.secret == b"a$b${c}"
    assert (first(settings).policy.guard, first(settings).policy.max_attempts) == (False, 7)


def test_what_the_environment_says_is_text() -> None:
    """A secret of digits needs no quotes, and YAML in a variable is not read as YAML."""
    assert read(WHOLE + "secret: ${S}\n", {"S": "31337"}).secret == b"31337"
    assert read(WHOLE + "secret: ${S}\n", {"S": "[a, ${S}]"}).secret == b"[a, ${S}]"


def test_anchors_and_merges_are_read() -> None:
    """A mapping's own fields win over those that it merges; a fault stands on the line that has it."""
    text = """\
upstreams: {app: http://a}
routes:
  - &first
    name: a
    upstream: app
    match: {path: /a}
    window: &two 2h
    missing: refuse
  - <<: *first
    name: b
    match: {path: /b}
    doubt_window: *two
"""
    _, merged = read(text).routes.routes
    assert (merged.name, merged.policy.window, merged.policy.missing) == ("b", 2 * HOUR, Missing.REFUSE)
    assert merged.policy.doubt_window == 2 * HOUR
    wrong = text.replace("2h", "2")
    assert [(fault.path, fault.line) for fault in faults(lambda: read(wrong))] == [
        ("routes[0].window", 7),
        ("routes[1].window", 7),
        ("routes[1].doubt_window", 12),
    ]


@pytest.mark.parametrize("link", ["[{0}, {0}]", "{{<<: [{0}, {0}]}}"])
def test_aliases_cannot_fill_the_memory(link: str) -> None:
    """A billion laughs end at fifty thousand, also where the laugh is a merge."""
    lines = ["a0: &a0 {a: 1}"] + [f"a{n}: &a{n} " + link.format(f"*a{n - 1}") for n in range(1, 40)]
    said = faults(lambda: read("\n".join(lines)))
    assert said[-1].message == f"the aliases unfold to more than {sources.MOST_VALUES} values"


# ── The store and where it runs ───────────────────────────────────────────────────────────────────

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
ONE_GATEWAY = (
    "this store protects one gateway; a second instance of the service needs redis. On Kubernetes use "
    "store: redis://HOST:6379/0, or write store_scope: single where there will only ever be one"
)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ("url: memory://", "memory://"),
        ("url: memory://, max_records: 10, max_bytes: 1MiB", "memory://?max_bytes=1MiB&max_records=10"),
        ("url: sqlite:///a.db, durability: process", "sqlite:///a.db?durability=process"),
        (
            "url: 'REDIS://:pw@h/1?wait=1s', durability: replicated, replicas: 2",
            "redis://:pw@h/1?wait=1s&durability=replicated&replicas=2",
        ),
        ("url: 'rediss://h', verify: false, server_name: r.internal", "rediss://h?server_name=r.internal&verify=false"),
        ("url: 'redis+unix:///run/redis.sock', db: 3", "redis+unix:///run/redis.sock?db=3"),
        (
            "url: 'redis+sentinel://a,b/shop', sentinel_user: me, sentinel_password: 'a&b?c=#%'",
            "redis+sentinel://a,b/shop?sentinel_user=me&sentinel_password=a%26b%3Fc%3D%23%25",
        ),
    ],
)
def test_fields_beside_a_store_s_url_are_part_of_it(fields: str, url: str) -> None:
    """The settings have one URL, however it was written; and what was escaped comes out as it went in."""
    settings = read(WHOLE + f"service: a\nstore: {{{fields}}}\n")
    assert settings.store == url
    if "sentinel" in url:
        assert stores.redis(url).sentinel_password == "a&b?c=#%"
        assert "a%26b" not in settings.shown_store
        assert settings.shown_store.endswith("&sentinel_password=…")


@pytest.mark.parametrize("store", ["memory://", "sqlite:////var/lib/a.db", "sqlite:///a?durability=process"])
def test_a_store_of_one_gateway_says_so_on_kubernetes(store: str) -> None:
    """A replica more, and two gates would each run the same key: the file must say that there is one."""
    text = WHOLE + f"store: {store}\n"
    assert read(text).store == store
    assert faults(lambda: read(text, KUBERNETES)) == [Fault("store_scope", 6, ONE_GATEWAY)]
    assert read(text + "store_scope: single\n", KUBERNETES).store_scope == "single"


@pytest.mark.parametrize("end", ["", "/"])
def test_a_cluster_is_named_by_any_of_its_nodes(end: str) -> None:
    """Its nodes, who we are to all of them, and what counts as written."""
    url = f"redis+cluster://me:pw@a,b:7000,[::1]:7001{end}?durability=replicated&replicas=1"
    place = stores.redis(read(WHOLE + f"service: a\nstore: {url}\n").store)
    assert place.cluster
    assert place.hosts == (("a", 6379), ("b", 7000), ("::1", 7001))
    assert (place.user, place.password, place.database, place.replicas) == ("me", "pw", 0, 1)
    assert not stores.redis("redis://h").cluster
    secure = stores.redis("rediss+cluster://h?server_name=r.internal")
    assert secure.tls is not None
    assert secure.tls.server_name == "r.internal"


def test_a_shared_store_needs_a_service() -> None:
    """From the file or from the command line, whichever of the two names the store."""
    redis = WHOLE + "store: redis://redis:6379/0\n"
    assert read(redis + "service: a\n", KUBERNETES).service == "a"
    assert read(redis, service="b").service == "b"
    assert read(redis, store="memory://").service == "default"
    assert [fault.path for fault in faults(lambda: read(WHOLE, store="redis://h"))] == ["service"]


# ── The command line ──────────────────────────────────────────────────────────────────────────────


def test_the_command_line_overrides_the_file() -> None:
    """What is typed is checked like what is written, and what was written is still checked."""
    text = WHOLE + "listen: 127.0.0.1:1\nadmin: {listen: 127.0.0.1:2}\nservice: a\n"
    settings = read(text, listen=":3", admin="4", store="memory://", service="b")
    assert ([each.address for each in settings.listen], settings.admin) == (
        [Address("0.0.0.0", 3)],
        Address("0.0.0.0", 4),
    )
    assert (settings.store, settings.service) == ("memory://", "b")
    with pytest.raises(Faults) as raised:
        read(WHOLE + "listen: x\n", listen="y", store="z://", service="a b")
    assert str(raised.value).splitlines() == [
        "--service: `a b` is not a name: up to 64 letters, digits, `.`, `_` and `-`, a letter or digit first; use a-b",
        "--listen: the port is missing; use y:8080",
        "--store: no store is called z://; use memory://, sqlite:/// or redis://",
        "gate.yaml:6: listen: the port is missing; use x:8080",
    ]


def test_without_a_file_every_path_is_guarded() -> None:
    """`oncegate run --upstream URL`: one route, the defaults, a SQLite file in the current directory."""
    settings = plain("http://127.0.0.1:9000", environ={})
    assert settings.routes.routes == (Route("all", "upstream", Match("/**"), Policy()),)
    assert settings.upstreams == {"upstream": UpstreamSettings("upstream", "127.0.0.1", 9000)}
    assert (settings.store, settings.service, settings.secret) == ("sqlite:///oncegate.db", "default", b"")
    assert settings.listen == (Listener(Address("127.0.0.1", 8080)),)


def test_without_a_file_faults_name_the_option() -> None:
    """There is no path and no line, so the option is the place."""
    with pytest.raises(Faults) as raised:
        plain("127.0.0.1:9000", environ=KUBERNETES, overrides=Overrides(listen="x"))
    assert str(raised.value).splitlines() == [
        "--upstream: the scheme is missing; use http://127.0.0.1:9000",
        "--listen: the port is missing; use x:8080",
        f"--store: {ONE_GATEWAY}",
    ]
    with pytest.raises(Faults, match="--service: is missing, and a shared store needs it"):
        plain("http://a", environ={}, overrides=Overrides(store="redis://h"))


# ── Files that cannot be read ─────────────────────────────────────────────────────────────────────


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Faults) as raised:
        load(tmp_path / "a.yaml", environ={})
    assert str(raised.value) == f"{tmp_path}/a.yaml: there is no such file"


def test_a_file_that_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(Faults, match="cannot be read: Is a directory"):
        load(tmp_path, environ={})


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    """The line of the first byte that is no UTF-8 is told; a byte order mark is no fault."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"service: a\n# caf\xe9\n")
    with pytest.raises(Faults) as raised:
        load(path, environ={})
    assert str(raised.value) == f"{path}:2: this is not UTF-8; save the file in that encoding"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    assert load(path, environ={}).service == "default"


# ── Units and addresses ───────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 3650 * DAY))
def test_a_duration_that_we_show_is_one_that_we_read(value: int) -> None:
    assert duration(show_duration(value), zero=True) == value


@given(st.integers(0, 1 << 40))
def test_a_size_that_we_show_is_one_that_we_read(value: int) -> None:
    assert size(show_size(value), most=1 << 40) == value


SPELLINGS = {
    duration: {
        1: ["{} ms", "{}msec", "{} milliseconds"],
        SECOND: ["{}", "{} s", "{}sec", "{} seconds"],
        MINUTE: ["{}min", "{} Minutes", "{}M"],
        HOUR: ["{} h", "{}hrs", "{} hours"],
        DAY: ["{} days", "{}D"],
        7 * DAY: ["{}w", "{} weeks"],
    },
    size: {
        1: ["{}", "{} bytes", "{}b"],
        1 << 10: ["{}k", "{}kB", "{} KiB"],
        1 << 20: ["{}M", "{}MB", "{} mib"],
        1 << 30: ["{}G", "{} gb"],
    },
}
CASES = [
    (unit, spelling, worth)
    for unit, spellings in SPELLINGS.items()
    for worth, each in spellings.items()
    for spelling in each
]


@given(st.sampled_from(CASES), st.integers(1, 500))
def test_the_value_that_we_advise_is_the_one_that_was_meant(
    case: tuple[Callable[..., int], str, int], number: int
) -> None:
    """Whatever the spelling, following the advice gives what was written."""
    unit, spelling, worth = case
    bounds = {"most": 1 << 40} if unit is size else {}
    with pytest.raises(ValueError, match="; use ") as raised:
        unit(spelling.format(number), **bounds)
    assert unit(str(raised.value).rpartition("; use ")[2], **bounds) == number * worth


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1.5h", "90m"),
        ("0.5s", "500ms"),
        ("1d 12h", "36h"),
        ("2h, 5 minutes", "125m"),
        ("1.0001ms", None),
        ("h", None),
        ("", None),
        ("5 fortnights", None),
        ("1_000s", "1000s"),
        ("٣s", None),
        ("9" * 5000 + "s", None),
    ],
)
def test_what_is_meant_by_a_duration(text: str, meant: str | None) -> None:
    """Advice is given only where it is certain."""
    with pytest.raises(ValueError, match="duration") as raised:
        duration(text)
    assert str(raised.value).partition("; use ")[2] == (meant or "")
    assert len(str(raised.value)) < 120


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8080", Address("0.0.0.0", 8080)),
        ("[::1]:8080", Address("::1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        (":8080", Address("0.0.0.0", 8080)),
        ("8080", Address("0.0.0.0", 8080)),
    ],
)
def test_an_address_is_read_and_shown(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", ":", "a", "a:b", "a:-1", "a:1:2", "[::1]", "[a]:1", "a b:1", "a:٣", "x@a:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"use |expected an address|is not"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "10.0.0.1:1", False),
        (":1", "10.0.0.1:1", True),
        ("[::]:1", "10.0.0.1:1", True),
        ("localhost:1", "127.0.0.1:1", True),
        (":0", ":0", False),
    ],
)
def test_two_listeners_cannot_share_a_port(one: str, other: str, overlap: bool) -> None:
    assert Address.parse(one).overlaps(Address.parse(other)) is overlap
    assert Address.parse(other).overlaps(Address.parse(one)) is overlap


# ── Whatever is in the file ───────────────────────────────────────────────────────────────────────

SHIPPED = (CONFIG / "gateway.yaml").read_text()
PIECES = re.findall(r"\w+|\s+|[^\w\s]", SHIPPED)
ODD = ["", "5", "-1", "yes", "~", "[]", "{}", "[[1]]", "{a: b}", "2020-01-01", ".inf", "1:30", "0x10", "'"]
ODD += ["!!set", "&a", "*a", "<<", "${", "${X}", "\t", "\0", "é", "/**", "http://", "redis://", "- ", "\n", ": "]


def faults_of(text: str, environ: dict[str, str] | None = None) -> tuple[Fault, ...]:
    """None where it has settings; and whatever is said is said in our words."""
    try:
        read(text, environ)
    except Faults as raised:
        said = raised
    else:
        return ()
    assert said.faults
    assert not re.search("pydantic|Input should|value_error|Scalar|ctx", str(said))
    return said.faults


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PIECES) - 1), st.sampled_from(ODD + PIECES)), max_size=6))
@example([])
def test_any_file_has_settings_or_faults(changes: list[tuple[int, str]]) -> None:
    """However a file is mangled: no other exception, faults in order, in our words and on a line of it."""
    pieces = list(PIECES)
    for at, piece in changes:
        pieces[at] = piece
    text = "".join(pieces)
    said = faults_of(text)
    lines = [fault.line or 0 for fault in said]
    assert lines == sorted(lines)
    assert max(lines, default=0) <= text.count("\n") + 1


VALUES = st.recursive(
    st.sampled_from(["x", "5", "yes", "~", "30s", "1MiB", "[]", "{}", '""', "header:X", "${X}"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(st.sampled_from(["path", "from", "a"]), inner), max_size=2).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=4,
)
FIELDS = sorted({field for shape in SHAPES for field in shape.written()})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 4]), st.sampled_from(FIELDS), VALUES), max_size=4))
def test_any_value_in_any_field_is_read_or_refused_in_our_words(added: list[tuple[int, str, str]]) -> None:
    """Every field meets every kind of value, at the top and in a route."""
    lines = sorted(added, key=lambda line: -line[0])
    text = WHOLE + "".join(f"{' ' * indent}{field}: {value}\n" for indent, field, value in lines)
    faults_of(text, {"X": "x"})


def test_the_scheme_of_a_store_may_stand_in_capitals() -> None:
    """`REDIS://` names what `redis://` names, and is handed on so that the store can read it."""
    assert read(WHOLE + "service: a\nstore: REDIS://h:1/0\n").store == "redis://h:1/0"


@pytest.mark.parametrize(
    ("admin", "refuses"),
    [
        ("{listen: 127.0.0.1:1}", False),
        ("{listen: 127.9.9.9:1}", False),
        ('{listen: "[::1]:1"}', False),
        ("{listen: localhost:1}", False),
        ("{listen: ':1'}", True),
        ("{listen: 10.0.0.1:1}", True),
        ("{listen: gate.internal:1}", True),
        ("{listen: ':1', token: abcdefghijklmnop}", False),
    ],
)
def test_an_admin_listener_that_refuses_operators_is_pointed_out(admin: str, refuses: bool) -> None:
    """Not on the loopback and without a token: no fault, and a note that says what to set."""
    settings = read(WHOLE + f"admin: {admin}\n")
    assert (settings.admin.loopback or bool(settings.admin_token)) is not refuses
    assert ["admin.token" in note for note in settings.notes] == [True] * refuses
    assert "abcdefghijklmnop" not in repr(settings)


def test_a_token_in_a_file_is_the_files_first_line_alone(tmp_path: Path) -> None:
    """Read once, the end of its line left out; two lines are no token, and are not quoted."""
    (tmp_path / "token").write_text("abcdefghijklmnop=\n")
    assert read(WHOLE + f"admin: {{token_file: {tmp_path}/token}}\n").admin_token == b"abcdefghijklmnop="
    (tmp_path / "token").write_text("abcdefghijklmnop\nsecond-line-of-it\n")
    with pytest.raises(Faults) as faults:
        read(WHOLE + f"admin: {{token_file: {tmp_path}/token}}\n")
    assert "holds no token" in str(faults.value)
    assert "second-line" not in str(faults.value)


def test_check_says_that_operators_would_be_refused(tmp_path: Path) -> None:
    """oncegate check FILE → good, exit 0, and a note where the admin listener has no token and is open to others."""
    file = tmp_path / "gate.yaml"
    for admin, notes in (("{listen: ':1'}", 1), ("{listen: 127.0.0.1:1}", 0)):
        file.write_text(WHOLE + f"admin: {admin}\n")
        done = CliRunner().invoke(main, ["check", str(file)])
        assert (done.exit_code, done.stdout.count("note: ")) == (0, notes), done.output


def test_the_command_line_moves_the_first_listener_and_nothing_else(tmp_path: Path) -> None:
    """Its TLS stays, and so do the others: nobody who passes --listen is served plainly for it."""
    cert = tmp_path / "gate.pem"
    trustme.CA().issue_cert("gate.test").private_key_and_cert_chain_pem.write_to_path(cert)
    text = WHOLE + f"listen: [{{address: ':443', tls: {{cert: {cert}}}}}, 'unix:/run/gate.sock']\n"
    for typed, moved in ((":8443", Address("0.0.0.0", 8443)), ("unix:/run/a", UnixPath("/run/a"))):
        first, second = read(text, listen=typed).listen
        assert first.address == moved
        assert first.tls is not None
        assert first.tls.cert == str(cert)
        assert (second.address, second.tls, second.mode) == (UnixPath("/run/gate.sock"), None, 0o660)

"""What is trusted: authorities, certificates, tokens."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from gateway.core.policy import SECOND
from gateway.core.scope import Tokens
from gateway.settings import (
    TlsSettings,
    UpstreamSettings,
)
from tests.settings.files import SHIPPED, WHOLE, faults, read


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
    fingerprint: {body: canonical-json, ignore: [/b, /a/0/c~1d], host: false}
    ignore_cookies: [lb_*, TS]
    jwt: {jwks: "http://localhost:1/keys", issuer: b, audience: [y, x], algorithms: EdDSA, leeway: 0s, refresh: 10s}
  - {name: c, match: {path: /c}, upstream: app, scope: public}
"""
    a, b, c = (route.policy for route in read(text).routes.routes)
    assert (a.scope, a.tokens) == ((b"jwt:sub",), Tokens("https://id.example/keys", "https://id.example/"))
    assert b.scope == (b"cookie:Shop", b"header:x-b", b"jwt:tenant")
    assert b.tokens == Tokens("http://localhost:1/keys", "b", ("x", "y"), ("EdDSA",), 0, 10 * SECOND)
    assert (b.recipe.bind, b.recipe.body) == (("default", "header:x-b"), "canonical-json")
    assert (b.recipe.host, b.recipe.hosted, b.recipe.ignore_cookies) == (False, None, ("TS", "lb_*"))
    assert (a.recipe.host, a.recipe.hosted, a.recipe.ignore_cookies) == (True, b"", ())
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

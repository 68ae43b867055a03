"""What an operator says of a scope is what a request shows for it."""

from __future__ import annotations

import hashlib

import pytest

from gateway.core.fields import fields_of
from gateway.core.scope import Proven, Tokens, said, shown

TOKENS = Tokens("keys.json", "https://a")


@pytest.mark.parametrize(
    ("source", "given", "field"),
    [
        (b"header:x-tenant", " acme ", (b"X-Tenant", b"acme")),
        (b"header:x-tenant", "caf\u00e9", (b"X-Tenant", b"caf\xe9")),
        (b"cookie:Shop", "1", (b"Cookie", b"shop=2; Shop=1")),
        (b"jwt:sub", "alice", (b"Authorization", b"Bearer sub:alice")),
        (b"jwt:sub", "7", (b"Authorization", b"Bearer sub:7")),
        (b"jwt:org", "int:-7", (b"Authorization", b"bearer org:7")),
    ],
)
def test_an_operator_names_what_a_request_shows(source: bytes, given: str, field: tuple[bytes, bytes]) -> None:
    """Fields, cookies, claims; a number is not its text."""

    def prove(token: bytes) -> Proven:
        name, _, value = token.decode().partition(":")
        return Proven(TOKENS.issuer, {name: -int(value) if name == "org" else value})

    assert shown((source,), fields_of([field]), b"", prove) == ((source, said(source, given, TOKENS)),)


def test_a_certificate_is_named_by_its_digest() -> None:
    """As openssl writes it, too."""
    digest = hashlib.sha256(b"DER").digest()
    for given in (digest.hex(), digest.hex(":").upper()):
        assert said(b"client_cert", given, None) == digest
    for given in ("", "alice", digest.hex()[:-2], "zz" * 32):
        with pytest.raises(ValueError, match="64 hexadecimals"):
            said(b"client_cert", given, None)


def test_a_number_must_be_one() -> None:
    """Nor is it guessed at."""
    with pytest.raises(ValueError, match="behind int:"):
        said(b"jwt:org", "int:seven", TOKENS)

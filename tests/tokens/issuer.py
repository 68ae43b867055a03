"""An issuer: keys of every kind, what it publishes, tokens that it signs; and a clock that is moved by hand."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://id.example/"
#: The instant at which tokens are issued, in seconds since 1970.
NOW = 1_700_000_000


class StoppedClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> int:
        return NOW * 1000 + int(self.seconds * 1000)


RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
EC_384 = ec.generate_private_key(ec.SECP384R1())
EC_521 = ec.generate_private_key(ec.SECP521R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, **members: object) -> dict[str, Any]:
    """A key as a JWK Set shows it; the public part of a private one."""
    public = key.public_key() if hasattr(key, "public_key") else key
    algorithm = {"RSA": RSAAlgorithm, "EC": ECAlgorithm}.get(type(public).__name__[:-9].lstrip("_"), OKPAlgorithm)
    made: dict[str, Any] = algorithm.to_jwk(public, as_dict=True)
    return {**made, **members}


def published(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def token(key: Any = RSA_KEY, algorithm: str = "RS256", header: dict[str, Any] | None = None, **changed: Any) -> bytes:
    """A token of `alice` for an hour; with claims changed, added, or taken away (None)."""
    claims = {"iss": ISSUER, "sub": "alice", "exp": NOW + 3600, **changed}
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None}, key, algorithm, headers=header
    ).encode()


def by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None = None) -> bytes:
    """A token as no library would write it: signed by HMAC with `secret`, or not at all."""
    parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, claims)]
    signed = b".".join(parts)
    signature = hmac.new(secret, signed, hashlib.sha256).digest() if secret is not None else b""
    return signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")

"""The public keys of an issuer, as RFC 7517 publishes them, and what each may verify.

A key is bound to its kind of signature here, where it is read: a token's header chooses among what its key can do and
the route allows, and never how a key is understood (RFC 8725 §3.1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

#: Bytes of a set of keys, and keys in it.
LARGEST = 256 << 10
MOST = 100
#: Bits of an RSA key (RFC 7518 §3.3).
_SHORTEST_RSA = 2048

_RSA = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
_BY_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
#: RFC 9864 gives EdDSA over Ed25519 a name of its own.
_SAME = {"Ed25519": "EdDSA"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, its id if it has one, and the algorithms that it may verify."""

    kid: str | None
    algorithms: frozenset[str]
    key: Any = field(repr=False)


def published(data: bytes) -> tuple[PublicKey, ...]:
    """The keys in a JWK Set that can verify signatures; those of other uses and kinds are left out (RFC 7517 §5).

    Raises ValueError, in words for whoever publishes them, where there is none, or where a private one is shown.
    """
    if len(data) > LARGEST:
        raise ValueError(f"the set is larger than {LARGEST >> 10} KiB")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("this is not JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError('this is not a set of keys, {"keys": […]}')
    if len(keys) > MOST:
        raise ValueError(f"the set has more than {MOST} keys")
    found = tuple(key for each in keys if isinstance(each, dict) and (key := _key(each)) is not None)
    if not found:
        raise ValueError("no key in the set can verify a signature (RSA of 2048 bits, P-256, P-384, P-521 or Ed25519)")
    return found


def _key(jwk: dict[str, Any]) -> PublicKey | None:
    kind, curve, kid, declared = (jwk.get(name) for name in ("kty", "crv", "kid", "alg"))
    if "d" in jwk:
        raise ValueError("the set shows a private key; publish the public ones alone, and make new ones")
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    if kind == "RSA":
        algorithms = _RSA
    elif kind in ("EC", "OKP") and isinstance(curve, str) and curve in _BY_CURVE:
        algorithms = frozenset((_BY_CURVE[curve],))
    else:
        return None
    if declared is not None:
        algorithms &= {_SAME.get(declared, declared) if isinstance(declared, str) else ""}
    if not algorithms or (kid is not None and not isinstance(kid, str)):
        return None
    try:
        key = jwt.PyJWK.from_dict(jwk, min(algorithms)).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < _SHORTEST_RSA:
        return None
    return PublicKey(kid, algorithms, key)


__all__ = ["LARGEST", "MOST", "PublicKey", "published"]

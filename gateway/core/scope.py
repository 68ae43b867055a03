"""Whose key it is: the sources of a scope, and what a request shows for each.

A scope keeps tenants apart in the record's name: two requests that differ in it have nothing to do with each other. So
it is either there and whole, or the request is refused; an empty scope would be everybody's. What anybody can write
(`header:`, `cookie:`) keeps apart those that the service itself tells apart by it; `jwt:` and `client_cert` are proven
to the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from .cookies import cookies
from .digest import framed
from .fields import Fields
from .key import ScopePart
from .problem import Problem, Refusal
from .values import value

CLIENT_CERT = b"client_cert"

#: Signatures by which a token may be known. Asymmetric ones alone: whoever holds a public key could sign with it, were
#: it taken for the secret of an HMAC (RFC 8725 §2.1); and `none` signs nothing.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Whose tokens are trusted. `jwks` is a file or an https:// URL with the keys, `ca` the file with the authorities
    of that URL, None for the system's; durations in milliseconds."""

    jwks: str
    issuer: str
    audience: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ("ES256", "RS256")
    leeway: int = 30_000
    refresh: int = 300_000
    ca: str | None = None


#: What a claim may be, to stand for somebody. (A boolean or a list says something of him.)
Claim = str | int


@value
class Proven:
    """A token that verified: who issued it, and what it claims."""

    issuer: str
    claims: Mapping[str, Claim]


class Unproven(Enum):
    """Why a token proves nothing. Each is told to the client; none quotes the token."""

    MALFORMED = "The token is not a signed JWT."
    ALGORITHM = "The token is signed in a way that is not accepted here."
    UNKNOWN_KEY = "The token is signed with a key that its issuer does not publish."
    SIGNATURE = "The token's signature does not verify."
    EXPIRED = "The token has expired."
    NOT_YET = "The token is not valid yet."
    ISSUER = "The token is from another issuer."
    AUDIENCE = "The token is for another audience."
    CLAIMS = "The token lacks an expiry, or a claim of it is malformed."
    #: The gate's fault, or nobody's: it may verify in a moment.
    NO_KEYS = "The issuer's keys are being fetched."


Prove = Callable[[bytes], Proven | Unproven]


def nobody(token: bytes) -> Unproven:
    """The proof of a route that trusts no issuer."""
    return Unproven.NO_KEYS


def shown(
    sources: tuple[bytes, ...], fields: Fields, certificate: bytes, prove: Prove
) -> tuple[ScopePart, ...] | Refusal:
    """What a request shows for each source, in their order. `certificate` is the SHA-256 of the client's, in DER, or
    empty; `prove` verifies a token."""
    parts: list[ScopePart] = []
    for source in sources:
        kind, _, name = source.partition(b":")
        if kind == b"jwt":
            found = _claim(name.decode(), fields, prove)
        elif kind == b"cookie":
            found = _single(cookies(fields.all(b"cookie"), name), "cookie", name)
        elif kind == CLIENT_CERT:
            found = certificate or _missing("The connection shows no client certificate.")
        else:
            found = _single(fields.all(name), "field", name)
        if isinstance(found, Refusal):
            return found
        parts.append((source, found))
    return tuple(parts)


def _missing(why: str) -> Refusal:
    return Refusal(Problem.SCOPE_MISSING, why)


def _single(found: list[bytes], what: str, name: bytes) -> bytes | Refusal:
    if len(found) == 1 and found[0]:
        return found[0]
    how = "is not there" if not found else "is empty" if len(found) == 1 else "is repeated"
    return _missing(f"The {what} {name.decode('latin-1')} {how}.")


def _claim(name: str, fields: Fields, prove: Prove) -> bytes | Refusal:
    """A claim of the bearer's token (RFC 6750 §2.1), with its issuer: two of them may give one name to two people."""
    found = fields.all(b"authorization")
    if len(found) > 1:
        return _missing("The field Authorization is repeated.")
    scheme, _, token = found[0].partition(b" ") if found else (b"", b"", b"")
    if scheme.lower() != b"bearer":
        return _missing("The field Authorization carries no Bearer token.")
    proven = prove(token.strip(b" "))
    if proven is Unproven.NO_KEYS:
        return Refusal(Problem.SCOPE_UNVERIFIABLE, retry_after=1)
    if isinstance(proven, Unproven):
        return Refusal(Problem.SCOPE_INVALID, proven.value)
    claim = proven.claims.get(name)
    if claim is None or claim == "":
        return _missing(f"The token claims no {name}.")
    return _claimed(proven.issuer, claim)


def _claimed(issuer: str, claim: Claim) -> bytes:
    kind = b"n" if isinstance(claim, int) else b"s"
    return framed(issuer.encode()) + kind + str(claim).encode("utf-8", "surrogatepass")


#: How an operator writes a claim that is a number.
NUMBER = "int:"


def said(source: bytes, value: str, tokens: Tokens | None) -> bytes:
    """What a request would show that an operator speaks of: text for fields, cookies and claims (a number as `int:7`),
    the SHA-256 in hexadecimals for a certificate. Raises ValueError with words for him."""
    if source == CLIENT_CERT:
        try:
            digest = bytes.fromhex(value.replace(":", ""))
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise ValueError("expected the SHA-256 of the certificate in DER, as 64 hexadecimals")
        return digest
    if source.startswith(b"jwt:"):
        number = value.removeprefix(NUMBER)
        if value.startswith(NUMBER) and not number.removeprefix("-").isdecimal():
            raise ValueError(f"expected a number behind {NUMBER}")
        return _claimed(tokens.issuer if tokens else "", int(number) if value.startswith(NUMBER) else value)
    try:
        return value.strip(" \t").encode("latin-1")
    except UnicodeEncodeError:
        return value.strip(" \t").encode()

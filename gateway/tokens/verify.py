"""One token: proven, or why not (RFC 7519, RFC 8725).

The header of a token says nothing that is believed: its algorithm must be one of the route's, its key one of the
issuer's that is made for that algorithm; `jku`, `jwk` and `x5u` are not looked at, and what a header calls critical is
refused. What was proven is remembered by the token's digest until it expires or the issuer's keys change, for a client
sends one token with many requests, and a signature takes longer to verify than all else that the gate does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

import jwt

from ..core.scope import Claim, Proven, Unproven
from ..core.values import value
from ..ports import Clock
from .keys import Keys

#: Tokens that are remembered, of each issuer.
REMEMBERED = 10_000
#: Keys that are tried for a token that names none.
_TRIED = 4

_WHY: tuple[tuple[type[jwt.PyJWTError], Unproven], ...] = (
    (jwt.InvalidSignatureError, Unproven.SIGNATURE),
    (jwt.InvalidAudienceError, Unproven.AUDIENCE),
    (jwt.InvalidIssuerError, Unproven.ISSUER),
    (jwt.InvalidAlgorithmError, Unproven.ALGORITHM),
    (jwt.DecodeError, Unproven.MALFORMED),
)


@value
class _Known:
    proven: Proven
    until: int
    generation: int


class Verifier:
    """Verifies the tokens of one issuer. `claims` are those that scopes name; no others are kept."""

    def __init__(self, keys: Keys, clock: Clock, claims: Iterable[str]) -> None:
        self.keys = keys
        self._clock = clock
        self._claims = frozenset(claims)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def prove(self, token: bytes) -> Proven | Unproven:
        """What `token` proves now."""
        if not self.keys.trusted:
            self.keys.ask()
            return Unproven.NO_KEYS
        name = blake2b(token, digest_size=32).digest()
        known = self._known.get(name)
        if known is not None:
            if known.generation == self.keys.generation and self._clock.wall() < known.until:
                self._known.move_to_end(name)
                return known.proven
            del self._known[name]
        return self._verified(name, token)

    def _verified(self, name: bytes, token: bytes) -> Proven | Unproven:
        tokens = self.keys.tokens
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return Unproven.MALFORMED
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in tokens.algorithms or "crit" in header or header.get("b64", True) is not True:
            return Unproven.ALGORITHM
        fitting = self.keys.fitting(kid, algorithm)
        if not fitting:
            return Unproven.NO_KEYS if self.keys.ask() else Unproven.UNKNOWN_KEY
        found: _Known | Unproven = Unproven.SIGNATURE
        for key in fitting[:_TRIED]:
            found = self._by(key.key, algorithm, token)
            if found is not Unproven.SIGNATURE:
                break
        if isinstance(found, Unproven):
            return found
        self._known[name] = found
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found.proven

    def _by(self, key: object, algorithm: str, token: bytes) -> _Known | Unproven:
        tokens = self.keys.tokens
        try:
            claims = jwt.decode(
                token,
                key,  # type: ignore[arg-type]
                algorithms=[algorithm],
                audience=list(tokens.audience) or None,
                issuer=tokens.issuer,
                # The times are compared with the gate's own clock, below.
                options={
                    "require": ["exp", "iss", *(["aud"] if tokens.audience else [])],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.MissingRequiredClaimError as error:
            return Unproven.AUDIENCE if error.claim == "aud" else Unproven.CLAIMS
        except jwt.PyJWTError as error:
            return next((why for kind, why in _WHY if isinstance(error, kind)), Unproven.CLAIMS)
        except (ValueError, TypeError, RecursionError):
            return Unproven.MALFORMED
        expires, begins = _instant(claims.get("exp")), _instant(claims.get("nbf", 0))
        if expires is None or begins is None:
            return Unproven.CLAIMS
        now = self._clock.wall()
        if now >= expires + tokens.leeway:
            return Unproven.EXPIRED
        if now < begins - tokens.leeway:
            return Unproven.NOT_YET
        kept = {name: claim for name in self._claims if (claim := _who(claims.get(name))) is not None}
        return _Known(Proven(tokens.issuer, kept), expires + tokens.leeway, self.keys.generation)


def _instant(claim: object) -> int | None:
    """A NumericDate (RFC 7519 §2) in milliseconds."""
    if isinstance(claim, bool) or not isinstance(claim, int | float) or not abs(claim) < 1e12:
        return None
    return int(claim * 1000)


def _who(claim: object) -> Claim | None:
    """`claim` where it can stand for somebody."""
    return claim if isinstance(claim, str | int) and not isinstance(claim, bool) else None


__all__ = ["REMEMBERED", "Verifier"]

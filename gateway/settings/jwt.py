"""The shape of `jwt`: whose tokens prove what a scope says."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainValidator

from ..core.scope import Tokens
from . import scopes, values
from .fields import Duration, DurationOrZero, FileName, Shape

_TOKENS = Tokens("", "")

LONGEST_LEEWAY = 600_000
SHORTEST_REFRESH = 10_000
_LATE = "so long after its expiry a token must not be taken; use 10m at most"
_OFTEN = "whoever publishes the keys would be asked all the time; use 10s or more"


class JwtShape(Shape):
    jwks: Annotated[str, PlainValidator(scopes.jwks)] = ""
    """Where the issuer's public keys are: a file, or an https:// URL, read anew each `refresh`; required."""
    ca: FileName | None = None
    """A PEM file with the authorities that are trusted for that URL; the system's by default."""
    issuer: Annotated[str, PlainValidator(scopes.text("an issuer such as https://id.example/"))] = ""
    """What a token's `iss` must be, to the letter; required."""
    audience: Annotated[
        frozenset[Annotated[str, PlainValidator(scopes.text("an audience such as payments"))]],
        BeforeValidator(values.listing("a list of audiences such as [payments]")),
    ] = frozenset()
    """Of which one must be in a token's `aud`; none by default, and then a token with an `aud` is refused."""
    algorithms: Annotated[
        frozenset[Annotated[str, PlainValidator(scopes.algorithm)]],
        BeforeValidator(values.listing("a list of algorithms such as [RS256]")),
    ] = frozenset(_TOKENS.algorithms)
    """By which a token may be signed, asymmetric ones alone; [RS256, ES256] by default."""
    leeway: Annotated[DurationOrZero, AfterValidator(values.bounded(_LATE, most=LONGEST_LEEWAY))] = _TOKENS.leeway
    """How far the issuer's clock may be from this one, a duration of up to 10m; 30s by default."""
    refresh: Annotated[Duration, AfterValidator(values.bounded(_OFTEN, least=SHORTEST_REFRESH))] = _TOKENS.refresh
    """How often the keys are read anew, a duration of at least 10s; 5m by default."""

    def tokens(self) -> Tokens:
        """The same for the core, with its sets in order."""
        told: dict[str, Any] = {name: tuple(sorted(it)) if isinstance(it, frozenset) else it for name, it in self}
        return Tokens(**told)

"""The shape of `jwt`: whose tokens prove what a scope says."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, PlainValidator

from ..core.scope import Tokens
from . import scopes, values
from .fields import Shape

_TOKENS = Tokens("", "")


class JwtShape(Shape):
    ALONE = "jwks"
    PLACE = "a route or `defaults`, in `jwt`"

    jwks: Annotated[str, PlainValidator(scopes.jwks)] = Field(
        "",
        description="Where the issuer's public keys are: a file, or an https:// URL, read anew each `refresh`; "
        "required.",
    )
    ca: Annotated[str | None, PlainValidator(values.file)] = Field(
        None,
        description="A PEM file with the authorities that are trusted for that URL; the system's by default.",
    )
    issuer: Annotated[str, PlainValidator(scopes.text("an issuer such as https://id.example/"))] = Field(
        "", description="What a token's `iss` must be, to the letter; required."
    )
    audience: Annotated[
        frozenset[Annotated[str, PlainValidator(scopes.text("an audience such as payments"))]],
        BeforeValidator(values.listing("a list of audiences such as [payments]")),
    ] = Field(
        frozenset(),
        description="Of which one must be in a token's `aud`; none by default, and then a token with an `aud` is "
        "refused.",
    )
    algorithms: Annotated[
        frozenset[Annotated[str, PlainValidator(scopes.algorithm)]],
        BeforeValidator(values.listing("a list of algorithms such as [RS256]")),
    ] = Field(
        frozenset(_TOKENS.algorithms),
        description="By which a token may be signed, asymmetric ones alone; [RS256, ES256] by default.",
    )
    leeway: Annotated[int, PlainValidator(scopes.leeway)] = Field(
        _TOKENS.leeway,
        description="How far the issuer's clock may be from this one, a duration of up to 10m; 30s by default.",
    )
    refresh: Annotated[int, PlainValidator(scopes.refresh)] = Field(
        _TOKENS.refresh,
        description="How often the keys are read anew, a duration of at least 10s; 5m by default.",
    )

    def tokens(self) -> Tokens:
        """The same for the core."""
        return Tokens(
            self.jwks,
            self.issuer,
            tuple(sorted(self.audience)),
            tuple(sorted(self.algorithms)),
            self.leeway,
            self.refresh,
            self.ca,
        )

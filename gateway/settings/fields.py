"""What the shapes of the file are made of: their base, and the fields that stand in several."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator

from . import values
from .addresses import Address, Network

MILLION = 1_000_000

Duration = Annotated[int, PlainValidator(values.duration)]
DurationOrZero = Annotated[int, PlainValidator(values.duration_or_zero)]
Flag = Annotated[bool, PlainValidator(values.flag)]
Name = Annotated[str, PlainValidator(values.name)]
Many = Annotated[int, PlainValidator(values.count(least=1, most=MILLION))]
ManyOrNone = Annotated[int, PlainValidator(values.count(least=0, most=MILLION))]
Listen = Annotated[Address, PlainValidator(values.address)]
Protocols = Annotated[
    frozenset[Annotated[bytes, PlainValidator(values.protocol)]],
    BeforeValidator(values.listing("a list of protocols such as [websocket]")),
]
Origins = Annotated[
    frozenset[Annotated[bytes, PlainValidator(values.origin)]],
    BeforeValidator(values.listing("a list of origins such as [https://shop.example]")),
]
Networks = Annotated[
    tuple[Annotated[Network, PlainValidator(values.network)], ...],
    BeforeValidator(values.listing("a list of addresses such as [10.0.0.0/8]")),
]
Statuses = Annotated[
    frozenset[Annotated[int, PlainValidator(values.status)]],
    BeforeValidator(values.listing("a list of statuses such as [409, 422]")),
]


class Shape(BaseModel):
    """A mapping of the file. TO_COME: fields that this version does not have yet. ALONE: the field that a
    bare value in the mapping's place most likely means."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    TO_COME: ClassVar[frozenset[str]] = frozenset()
    ALONE: ClassVar[str] = ""
    PLACE: ClassVar[str] = ""

    @classmethod
    def written(cls) -> dict[str, str]:
        """The fields as the file spells them, and what is said of each."""
        return {field.alias or name: field.description or "" for name, field in cls.model_fields.items()}

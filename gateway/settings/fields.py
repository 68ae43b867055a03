"""What the shapes of the file are made of: their base, and the fields that stand in several."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator

from . import values
from .addresses import Network, network

MILLION = 1_000_000

Duration = Annotated[int, PlainValidator(values.duration)]
DurationOrZero = Annotated[int, PlainValidator(values.duration_or_zero)]
Flag = Annotated[bool, PlainValidator(values.flag)]
Name = Annotated[str, PlainValidator(values.name)]
Many = Annotated[int, PlainValidator(values.count(least=1, most=MILLION))]
ManyOrNone = Annotated[int, PlainValidator(values.count(least=0, most=MILLION))]
#: Whether it can be read is looked at later, with what it is for.
FileName = Annotated[str, PlainValidator(values.parsed("the path of a file such as /etc/ssl/ca.pem", str))]
Protocols = Annotated[
    frozenset[Annotated[bytes, PlainValidator(values.protocol)]],
    BeforeValidator(values.listing("a list of protocols such as [websocket]")),
]
Origins = Annotated[
    frozenset[Annotated[bytes, PlainValidator(values.origin)]],
    BeforeValidator(values.listing("a list of origins such as [https://shop.example]")),
]
Networks = Annotated[
    tuple[Annotated[Network, PlainValidator(values.parsed("addresses such as 10.0.0.0/8", network))], ...],
    BeforeValidator(values.listing("a list of addresses such as [10.0.0.0/8]")),
]
Statuses = Annotated[
    frozenset[Annotated[int, PlainValidator(values.status)]],
    BeforeValidator(values.listing("a list of statuses such as [409, 422]")),
]


class Shape(BaseModel):
    """A mapping of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def written(shape: type[Any]) -> list[str]:
    """The fields of a mapping, as the file spells them."""
    if issubclass(shape, Shape):
        return [field.alias or name for name, field in shape.model_fields.items()]
    return [field.name for field in fields(shape)]

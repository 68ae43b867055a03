"""Where clients come in: TCP addresses and Unix sockets, each with TLS or without."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from . import values
from .addresses import Address, UnixPath
from .fields import Shape
from .source import Kind, Scalar

MinimumVersion = Literal["1.2", "1.3"]
Clients = Literal["required", "optional"]

#: What a Unix socket is created with: whoever runs the gate, and their group.
MODE = 0o660


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """TLS on a listener. `context` is what the files were checked with, and what is used. `client_ca` where clients
    are asked for a certificate."""

    context: ssl.SSLContext = field(compare=False, repr=False)
    cert: str
    key: str | None = None
    minimum: MinimumVersion = "1.2"
    client_ca: str | None = None
    clients: Clients = "required"


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener. `mode` is for a Unix socket."""

    address: Address | UnixPath
    tls: ListenerTls | None = None
    mode: int = MODE


def listening(value: object) -> Address | UnixPath:
    if isinstance(value, Scalar) and value.kind is Kind.TEXT and value.text.startswith("unix:"):
        return UnixPath.parse(value.text)
    return values.address(value)


def parse(text: str) -> Address | UnixPath:
    """What the command line says."""
    return UnixPath.parse(text) if text.startswith("unix:") else Address.parse(text)


def _mode(value: object) -> int:
    """Permissions, in octal as `chmod` takes them."""
    match value:
        case Scalar(text, Kind.TEXT | Kind.NUMBER) if re.fullmatch(r"(?:0o?)?[0-7]{3}", text):
            return int(text[-3:], 8)
    raise ValueError(f'expected permissions such as "0660", found {values.found(value)}')


class ListenerTlsShape(Shape):
    PLACE = "listen.tls"

    cert: Annotated[str | None, PlainValidator(values.file)] = Field(
        None,
        description="A PEM file with the gate's certificate and those between it and its authority; required.",
    )
    key: Annotated[str | None, PlainValidator(values.file)] = Field(
        None, description="A PEM file with its key, where that stands apart; the same file by default."
    )
    minimum: Annotated[MinimumVersion, PlainValidator(values.one_of({"1.2": "1.2", "1.3": "1.3"}))] = Field(
        "1.2", description="The oldest version of TLS that is spoken: 1.2 or 1.3; 1.2 by default."
    )
    client_ca: Annotated[str | None, PlainValidator(values.file)] = Field(
        None,
        description="A PEM file with the authorities that sign the certificates of clients; clients are asked for "
        "none by default.",
    )
    clients: Annotated[Clients, PlainValidator(values.one_of({"required": "required", "optional": "optional"}))] = (
        Field("required", description="Whether a client must show one: required or optional; required by default.")
    )


class ListenerShape(Shape):
    ALONE = "address"
    PLACE = "listen"

    address: Annotated[Address | UnixPath, PlainValidator(listening)] = Field(
        Address("127.0.0.1", 8080),
        description="HOST:PORT, :PORT for every interface (a port alone is refused), or unix:/PATH for a Unix socket; "
        "required.",
    )
    mode: Annotated[int, PlainValidator(_mode)] = Field(
        MODE, description='The permissions of a Unix socket, such as "0660", which is the default.'
    )
    tls: ListenerTlsShape | None = Field(
        None, description="TLS, as {cert: FILE, key: FILE}; none by default: HTTP is spoken plainly."
    )


def _each(value: object) -> object:
    """One listener, or a list of them; each an address or a mapping."""
    every = value if isinstance(value, list) else [value]
    if not every:
        raise ValueError("names no address; use 127.0.0.1:8080")
    return [{"address": each} if isinstance(each, Scalar) else each for each in every]


Listeners = Annotated[list[ListenerShape], BeforeValidator(_each)]

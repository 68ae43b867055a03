"""Where clients come in: TCP addresses and Unix sockets, each with TLS or without."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, PlainValidator

from . import values
from .addresses import Address, UnixPath
from .fields import FileName, Shape
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


def parse(text: str) -> Address | UnixPath:
    """The address or the socket that `text` names. ValueError with the corrected value where it names none."""
    return UnixPath.parse(text) if text.startswith("unix:") else Address.parse(text)


def _mode(value: object) -> int:
    """Permissions, in octal as `chmod` takes them."""
    match value:
        case Scalar(text, Kind.TEXT | Kind.NUMBER) if re.fullmatch(r"(?:0o?)?[0-7]{3}", text):
            return int(text[-3:], 8)
    raise ValueError(f'expected permissions such as "0660", found {values.found(value)}')


class ListenerTlsShape(Shape):
    cert: FileName | None = None
    """A PEM file with the gate's certificate and those between it and its authority; required."""
    key: FileName | None = None
    """A PEM file with its key, where that stands apart; the same file by default."""
    minimum: Annotated[MinimumVersion, PlainValidator(values.one_of(get_args(MinimumVersion)))] = "1.2"
    """The oldest version of TLS that is spoken: 1.2 or 1.3; 1.2 by default."""
    client_ca: FileName | None = None
    """A PEM file with the authorities that sign the certificates of clients; clients are asked for none by default."""
    clients: Annotated[Clients, PlainValidator(values.one_of(get_args(Clients)))] = "required"
    """Whether a client must show one: required or optional; required by default."""


class ListenerShape(Shape):
    address: Annotated[Address | UnixPath, PlainValidator(values.address), AfterValidator(parse)] = Address(
        "127.0.0.1", 8080
    )
    """HOST:PORT, :PORT for every interface (a port alone is refused), or unix:/PATH for a Unix socket; required."""
    mode: Annotated[int, PlainValidator(_mode)] = MODE
    """The permissions of a Unix socket, such as "0660", which is the default."""
    tls: ListenerTlsShape | None = None
    """TLS, as {cert: FILE, key: FILE}; none by default: HTTP is spoken plainly."""


def _each(value: object) -> object:
    """One listener, or a list of them; each an address or a mapping."""
    every = value if isinstance(value, list) else [value]
    if not every:
        raise ValueError("names no address; use 127.0.0.1:8080")
    return [{"address": each} if isinstance(each, Scalar) else each for each in every]


Listeners = Annotated[list[ListenerShape], BeforeValidator(_each)]

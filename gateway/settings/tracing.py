"""Where traces go, and how many of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainValidator

from . import addresses, values
from .addresses import URL
from .fields import Name
from .source import Kind, Scalar

_EXAMPLE = "http://collector:4318/v1/traces"


def collector(value: object) -> str:
    """The whole URL of a collector that takes OTLP over HTTP. Never quoted where it may hold a password."""
    found = URL.fullmatch(value.text) if isinstance(value, Scalar) and value.kind is Kind.TEXT else None
    if found is None:
        raise ValueError(f"expected a URL such as {_EXAMPLE}, found {values.found(value)}")
    scheme, where, path = found["scheme"].lower(), found["where"], found["path"]
    if scheme not in ("http", "https"):
        raise ValueError(f"spans are sent over http or https, not {scheme}; use {_EXAMPLE}")
    if found["user"] is not None or "@" in path:
        raise ValueError(
            "holds a user name or password; what a collector asks for goes into OTEL_EXPORTER_OTLP_HEADERS "
            "(docs/tracing.md)"
        )
    if found["query"] or found["fragment"] or not re.fullmatch(r"[\x21-\x7e]*", path):
        raise ValueError(f"expected a URL without a query, such as {_EXAMPLE}")
    addresses.host_and_port(where, 443 if scheme == "https" else 80)
    if path in ("", "/"):
        raise ValueError(f"the path is missing; use {scheme}://{where}/v1/traces")
    return found.string


def share(value: object) -> float:
    """A share of all traces."""
    match value:
        case Scalar(text, Kind.TEXT | Kind.NUMBER) if re.fullmatch(r"(?:0?\.[0-9]{1,9}|[01](?:\.0{0,9})?)", text):
            return float(text)
        case Scalar(text, Kind.TEXT | Kind.NUMBER) if found := re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", text):
            raise ValueError(f"a share is written as a number from 0 to 1; use {float(found[1]) / 100:g}")
    raise ValueError(f"expected a share from 0 to 1 such as 0.1, found {values.found(value)}")


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Where traces go."""

    endpoint: Annotated[str, PlainValidator(collector)] = ""
    """Where spans are sent as OTLP over HTTP, a whole URL such as http://collector:4318/v1/traces; required."""
    sample: Annotated[float, PlainValidator(share)] = 1.0
    """Which share of the traces that begin here are recorded, from 0 to 1 (of those that begin before the gate, whoever
    began them has decided); 1 by default."""
    service: Name = "oncegate"
    """What the gate calls itself in traces, a name; oncegate by default."""

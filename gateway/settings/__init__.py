"""The configuration: one YAML file, checked whole before any port is bound.

source   text → values that remember their lines, `${NAME}` read
model    the shape of the file, each field documented where it is declared
listeners where clients come in
values   what a field takes, and what is said of anything else (units, addresses)
tracing  where traces go, and what must be installed for that
tls      the authorities that a service's certificate is checked against
check    what fields must agree on; Settings, or every fault with its place
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from . import check
from .addresses import Address, UnixPath
from .faults import Fault, Faults
from .listeners import Listener
from .result import Limits, LogSettings, Overrides, Settings, TlsSettings, UpstreamSettings
from .source import Scalar, Source, read
from .tracing import TracingSettings

__all__ = [
    "Address",
    "Fault",
    "Faults",
    "Limits",
    "Listener",
    "LogSettings",
    "Overrides",
    "Settings",
    "TlsSettings",
    "TracingSettings",
    "UnixPath",
    "UpstreamSettings",
    "load",
    "load_text",
    "plain",
    "read_text",
]

_NONE = Overrides()


def load(path: Path, *, environ: Mapping[str, str], overrides: Overrides = _NONE) -> Settings:
    """The settings in the file at `path`. Raises Faults, which says all that is wrong with it."""
    return load_text(read_text(path), name=str(path), environ=environ, overrides=overrides)


def read_text(path: Path) -> str:
    """What the file at `path` says. Raises Faults where it cannot be read."""
    name = str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Faults(name, [Fault("", None, "there is no such file")]) from None
    except OSError as error:
        raise Faults(name, [Fault("", None, f"cannot be read: {error.strerror}")]) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Faults(name, [Fault("", line, "this is not UTF-8; save the file in that encoding")]) from None


def load_text(text: str, *, name: str, environ: Mapping[str, str], overrides: Overrides = _NONE) -> Settings:
    """The settings in `text`, whose faults are those of the file `name`."""
    source = read(text, name=name, environ=environ)
    return check.settings(source, name=name, environ=environ, overrides=overrides)


#: Where the faults of `plain` stand: on the command line.
_OPTIONS = {"upstreams": "--upstream", "service": "--service", "store_scope": "--store"}


def plain(upstream: str, *, environ: Mapping[str, str], overrides: Overrides = _NONE) -> Settings:
    """The settings without a file: every path of one upstream guarded by the defaults."""
    source = Source(
        {
            "upstreams": {"upstream": {"url": Scalar(upstream)}},
            "routes": [{"name": Scalar("all"), "upstream": Scalar("upstream")}],
        }
    )
    try:
        return check.settings(source, name="", environ=environ, overrides=overrides)
    except Faults as faults:
        placed = [
            replace(fault, path=_OPTIONS.get(fault.path.partition(".")[0], fault.path)) for fault in faults.faults
        ]
        raise Faults("", placed) from None

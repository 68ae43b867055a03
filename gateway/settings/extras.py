"""What is installed only where it is asked for: `pip install 'oncegate[NAME]'`."""

from __future__ import annotations

import importlib

#: Of the packages that an extra brings, what the gate imports.
_NEEDED = {
    "jwt": ("jwt.api_jwt", "cryptography.hazmat.primitives.asymmetric.rsa"),
    "otel": ("opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
}


def missing(extra: str) -> str:
    """What must be installed before what needs it can be used; empty where all of it is there."""
    for module in _NEEDED[extra]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            absent = (getattr(error, "name", None) or module).partition(".")[0]
            what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be used ({error})"
            return f"needs the extra `{extra}`: {absent} {what}; pip install 'oncegate[{extra}]', or remove it"
    return ""

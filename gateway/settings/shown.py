"""The settings as they are in effect, for people: secrets masked, durations and sizes with their units."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from .result import Settings
from .units import show_duration, show_size

MASK = "…"
_DURATIONS = frozenset(
    (
        "connect", "timeout", "late", "window", "doubt_window", "wait", "store_wait", "margin", "lease", "claim_life",
        "send_by", "ends_by", "grace", "startup_wait", "head_timeout", "body_timeout", "idle", "response_idle",
        "tunnel_idle",
    )
)  # fmt: skip
_SIZES = frozenset(("max_request", "max_response", "head", "target", "buffers"))


def shown(settings: Settings) -> dict[str, Any]:
    """All of them. A field that its own `repr` hides is a secret here too, unless it is taken apart."""
    told = _mapping(settings)
    told["store"] = settings.shown_store
    told["routes"] = [_value("", route) for route in settings.routes.routes]
    return told


def _mapping(value: Any) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for each in fields(value):
        if each.repr:
            told[each.name] = _value(each.name, getattr(value, each.name))
        elif each.compare:
            told[each.name] = MASK if getattr(value, each.name) else None
    return told


def _value(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | str) or (isinstance(value, Enum) and isinstance(value.value, str)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        return show_duration(value) if name in _DURATIONS else show_size(value) if name in _SIZES else value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if hasattr(value, "items"):
        return {str(key): _value("", element) for key, element in value.items()}
    if isinstance(value, frozenset | set):
        return sorted((_value("", element) for element in value), key=str)
    if isinstance(value, list | tuple):
        return [_value("", element) for element in value]
    if is_dataclass(value) and not hasattr(value, "parse"):
        return _mapping(value)
    return str(value)

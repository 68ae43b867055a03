"""What the tests of the configuration share: the shortest whole file, and how one is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.policy import Route
from gateway.settings import (
    Fault,
    Faults,
    Overrides,
    Settings,
    load_text,
)

CONFIG = Path(__file__).parents[2] / "config"
SHIPPED = (CONFIG / "gateway.yaml").read_text()
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
ONE_GATEWAY = (
    "this store protects one gateway; a second instance of the service needs redis. On Kubernetes use "
    "store: redis://HOST:6379/0, or write store_scope: single where there will only ever be one"
)

#: Five lines that are a whole file. What is added to them begins on line 6.
WHOLE = """\
upstreams:
  app: {url: "http://127.0.0.1:9000"}
routes:
  - name: all
    upstream: app
"""


def read(text: str, environ: dict[str, str] | None = None, **overrides: str) -> Settings:
    return load_text(text, name="gate.yaml", environ=environ or {}, overrides=Overrides(**overrides))


def faults(read: Callable[[], Settings]) -> list[Fault]:
    with pytest.raises(Faults) as raised:
        read()
    return list(raised.value.faults)


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def first(settings: Settings) -> Route:
    return settings.routes.routes[0]

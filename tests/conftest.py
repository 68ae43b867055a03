from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from gateway.edge import likeness


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The tests run on the loop that the gate runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def _credit() -> None:
    """No test goes another way because those before it had many heads read."""
    likeness.credit = likeness.MOST


@pytest.fixture
def patient_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a Redis of this test take 30 s for a command: its gateways share one loop with the clients, the service and
    whatever else this machine does."""
    monkeypatch.setattr("gateway.stores.redis.link.COMMAND_TIMEOUT", 30)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Whoever reads the last lines knows what did not run."""
    skipped = [str(each.longrepr) for each in terminalreporter.stats.get("skipped", ())]
    left_out = sum("make test-containers" in why for why in skipped)
    if left_out:
        terminalreporter.write_line(f"containers: {left_out} tests not run; `make test-containers` runs them")
    left_out = sum("network namespaces" in why for why in skipped)
    if left_out:
        terminalreporter.write_line(f"vanished hosts: {left_out} tests not run; they need network namespaces")

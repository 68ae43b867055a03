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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Whoever reads the last lines knows what did not run."""
    left_out = [
        each for each in terminalreporter.stats.get("skipped", ()) if "make test-containers" in str(each.longrepr)
    ]
    if left_out:
        terminalreporter.write_line(f"containers: {len(left_out)} tests not run; `make test-containers` runs them")

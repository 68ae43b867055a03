"""Container tests are run by `make test-containers`: the image alone takes longer to build than `make test` may give
them. The last lines of any run say whether they ran."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import docker
import pytest
from docker.errors import DockerException

from tests.containers import bases
from tests.containers.composed import Composed

WANTED = os.environ.get("ONCEGATE_CONTAINERS") == "run"
_said: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("containers") and not WANTED:
            item.add_marker(pytest.mark.skip(reason="container tests are run by `make test-containers`"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _said:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The engine. Without one the tests fail: whoever wants them has asked for them."""
    try:
        client = docker.from_env(timeout=bases.SECONDS_TO_MAKE)
        client.ping()
    except DockerException as error:
        pytest.fail(f"no container engine answers: {error}")
    _said.append(f"containers: ran against engine {client.version()['Version']}")
    with contextlib.closing(client):
        yield client


@pytest.fixture(scope="session")
def images(engine: docker.DockerClient) -> dict[str, str]:
    """The images to start from, by what they are."""
    found = bases.provide(engine)
    _said.extend(f"containers: {name} {state}" for name, state in found.items() if state != "pulled")
    return found


@pytest.fixture(scope="session")
def composed(
    engine: docker.DockerClient, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Composed]:
    """The compose file, up and healthy; nothing of it is left behind but the image."""
    project = Composed(tmp_path_factory.mktemp("tree"), engine, images)
    project.build()
    try:
        project.up()
        yield project
    finally:
        project.down()


@pytest.fixture
def log_of_gate(composed: Composed) -> Iterator[None]:
    """Shows the gate's log where a test fails."""
    yield
    print(composed.container("gate").logs(tail=50).decode(errors="replace"))

"""The compose file, started as a person starts it, from a copy of the tree and on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import docker
from docker.errors import APIError
from docker.models.containers import Container

from tests.containers import bases
from tests.servers import free_port

IMAGE = "oncegate:test"
#: All that an image and the compose file are made of.
PARTS = ("Dockerfile", ".dockerignore", "docker-compose.yml", "pyproject.toml", "requirements.lock", "README.md",
         "LICENSE", "gateway", "config", "deploy")  # fmt: skip
BUILDING = 900
STARTING = 300


def command() -> list[str] | None:
    """The compose tool that is here, if any."""
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
        if plugin.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def copied(folder: Path) -> Path:
    """The tree without what is not committed; and the authorities that pip trusts here, where it was told any."""
    for part in PARTS:
        source = bases.ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    if trusted := os.environ.get("PIP_CERT"):
        shutil.copy(trusted, folder / "trust.pem")
    return folder


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for it, looking four times a second."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.25)


class Composed:
    """One project of the compose file."""

    def __init__(self, folder: Path, client: docker.DockerClient, found: dict[str, str]) -> None:
        self.folder = copied(folder)
        self.client = client
        self.project = f"oncegate-test-{os.getpid()}"
        self.stands_in = "stand-in" in found.values()
        self.services = [name for name in ("redis", "orders", "gate", "prometheus", "grafana")
                         if found.get(bases.names().get(name, ""), "pulled") != "absent"]  # fmt: skip
        self.port, self.admin, self.prometheus, self.grafana = (free_port() for _ in range(4))

    def run(self, *arguments: str, seconds: float) -> str:
        tool = command()
        assert tool is not None, "no compose tool: install docker-compose, or Docker's compose plugin"
        environ = {
            **os.environ,
            "ONCEGATE_IMAGE": IMAGE,
            "ONCEGATE_PORT": str(self.port),
            "ONCEGATE_ADMIN_PORT": str(self.admin),
            "PROMETHEUS_PORT": str(self.prometheus),
            "GRAFANA_PORT": str(self.grafana),
            # A stand-in is made where names are not resolved within a build's own network.
            **({"BUILD_NETWORK": "host", "DOCKER_BUILDKIT": "0"} if self.stands_in else {}),
        }
        done = subprocess.run(
            [*tool, "--project-name", self.project, *arguments],
            cwd=self.folder, env=environ, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def build(self) -> None:
        """Build the image, and leave no earlier one behind without a name."""
        before = {image.id for image in self.client.images.list(IMAGE)}
        self.run("build", "gate", seconds=BUILDING)
        now = {image.id for image in self.client.images.list(IMAGE)}
        # What is needed again next time is the newest stage, for its layers.
        stages = self.client.images.list(filters={"label": "oncegate.stage=build", "dangling": True})
        stages.sort(key=lambda image: str(image.attrs["Created"]))
        for old in (before - now) | {stage.id for stage in stages[:-1]}:
            with contextlib.suppress(APIError):
                self.client.images.remove(old)

    def up(self) -> None:
        self.run("up", "--detach", "--no-build", *self.services, seconds=STARTING)
        self.until_healthy("gate")

    def down(self) -> None:
        self.run("down", "--volumes", "--timeout", "5", seconds=STARTING)

    def container(self, service: str) -> Container:
        wanted = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        (found,) = self.client.containers.list(all=True, filters={"label": wanted})
        return found

    def until_healthy(self, service: str, seconds: float = 60) -> None:
        until(lambda: health(self.container(service)) == "healthy", seconds, f"{service} is healthy")

    def executed(self) -> int:
        """How many orders the service has executed in its life."""
        return int(get_json(f"http://127.0.0.1:{self.port}/orders")["executed"])

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What the composed Prometheus says."""
        answer = get_json(f"http://127.0.0.1:{self.prometheus}/api/v1/query?{urlencode({'query': expression})}")
        return list(answer["data"]["result"])


def health(container: Container) -> str:
    """What the image's own check has found."""
    container.reload()
    return str(container.attrs["State"].get("Health", {}).get("Status", "none"))


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)

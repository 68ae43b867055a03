"""The images that the gate's image and the compose file start from, pulled; or, where no registry can be reached,
stand-ins under the same names, made from Debian's packages with mmdebstrap or debootstrap.

    python -m tests.containers.bases          make what is missing; exit 1 if something cannot be had

A stand-in carries the label `oncegate.stand-in` with the Debian release that it was made from. A stand-in of the
present release is used again, one of another release is replaced. To build one from new packages, `docker image rm` it.
Grafana has no package in Debian, and so no stand-in: where it cannot be pulled, its service is left out.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import docker
import yaml
from docker.errors import APIError, DockerException, ImageNotFound
from requests.exceptions import RequestException

ROOT = Path(__file__).parent.parent.parent
LABEL = "oncegate.stand-in"
#: The release whose Python is the one that the image ships (PYTHON_IMAGE of the Dockerfile).
SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
#: A file system that is merged from the start (the hook) needs no usrmerge, and with it no perl.
HOOKS = "/usr/share/mmdebstrap/hooks/merged-usr"
PACKAGES = "usr-is-merged,python3-venv,ca-certificates"
SECONDS_TO_PULL = 120
SECONDS_TO_MAKE = 900

#: Its user has the number that the official image's has, which manifests name.
REDIS = """
FROM {python}
RUN groupadd --system --gid 999 redis && useradd --system --uid 999 --gid 999 redis \\
 && apt-get update && apt-get install --yes --no-install-recommends redis-server \\
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \\
 && mkdir --parents /data && chown redis:redis /data
VOLUME /data
WORKDIR /data
USER redis
LABEL {label}={suite}
CMD ["redis-server"]
"""

#: The packages of the server and its tool alone: its web pages' libraries are not needed to scrape and to judge.
PROMETHEUS = """
FROM {python}
RUN apt-get update && cd /tmp && apt-get download prometheus promtool \
 && dpkg -x prometheus_*.deb unpacked && dpkg -x promtool_*.deb unpacked \
 && mv unpacked/usr/bin/prometheus unpacked/usr/bin/promtool /bin/ \
 && rm -rf /tmp/* /var/lib/apt/lists/* /var/cache/apt/*.bin \
 && mkdir --parents /prometheus && chown nobody /prometheus
USER nobody
VOLUME /prometheus
WORKDIR /prometheus
LABEL {label}={suite}
ENTRYPOINT ["/bin/prometheus"]
"""


def _composed(service: str) -> str:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return str(services[service]["image"])


def names() -> dict[str, str]:
    """The images that are needed, as the Dockerfile and the compose file name them."""
    python = re.search(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert python is not None
    return {"python": python[1]} | {name: _composed(name) for name in ("redis", "prometheus", "grafana")}


def has(client: docker.DockerClient, name: str) -> bool:
    """Whether the engine has this image: pulled, or a stand-in of the present release."""
    try:
        image = client.images.get(name)
    except ImageNotFound:
        return False
    return (image.labels or {}).get(LABEL, SUITE) == SUITE


def missing(client: docker.DockerClient) -> list[str]:
    """The images without which no container test can run."""
    return [name for what, name in names().items() if what != "grafana" and not has(client, name)]


def provide(client: docker.DockerClient) -> dict[str, str]:
    """Pull or make what is missing; says of each image what it is: `pulled`, `stand-in` or `absent`."""
    wanted = names()
    return {name: _provided(client, what, name, wanted["python"]) for what, name in wanted.items()}


def _provided(client: docker.DockerClient, what: str, name: str, python: str) -> str:
    if not has(client, name) and not _pulled(name):
        match what:
            case "python":
                _make_python(client, name)
            case "redis":
                _build(client, name, REDIS.format(python=python, label=LABEL, suite=SUITE))
            case "prometheus":
                _build(client, name, PROMETHEUS.format(python=python, label=LABEL, suite=SUITE))
            case _:
                return "absent"
    labels = client.images.get(name).labels or {}
    return "stand-in" if LABEL in labels else "pulled"


def _pulled(name: str) -> bool:
    try:
        docker.from_env(timeout=SECONDS_TO_PULL).images.pull(name)
    except (APIError, RequestException):
        return False
    return True


def _build(client: docker.DockerClient, name: str, dockerfile: str) -> None:
    client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=name, network_mode="host", rm=True, forcerm=True)


def _make_python(client: docker.DockerClient, name: str) -> None:
    repository, _, tag = name.rpartition(":")
    with tempfile.TemporaryDirectory(prefix="oncegate-base-") as folder:
        archive = Path(folder) / "base.tar"
        _root_file_system(Path(folder), archive)
        client.api.import_image(
            src=str(archive),
            repository=repository,
            tag=tag,
            changes=[f"LABEL {LABEL}={SUITE}", "ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "CMD python3"],
        )


def _root_file_system(folder: Path, archive: Path) -> None:
    if tool := shutil.which("mmdebstrap"):
        slim = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "info", "locale")]
        _run(
            [tool, "--variant=apt", f"--hook-dir={HOOKS}", f"--include={PACKAGES}", *slim, SUITE, str(archive), MIRROR]
        )
    elif tool := shutil.which("debootstrap"):
        root = folder / "root"
        _run([tool, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), MIRROR])
        slim = [f"--exclude=./usr/share/{part}/*" for part in ("doc", "man", "info", "locale")]
        unneeded = ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
        _run(["tar", "--create", "--numeric-owner", "--file", str(archive), "--directory", str(root), *slim, *unneeded,
              "."])  # fmt: skip
    else:
        raise RuntimeError("no registry answers, and neither mmdebstrap nor debootstrap is here: install one of them")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_MAKE)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-2000:]}")


def main() -> int:
    try:
        found = provide(docker.from_env(timeout=SECONDS_TO_MAKE))
    except (DockerException, RuntimeError, RequestException) as error:
        print(f"no base images: {error}", file=sys.stderr)
        return 1
    for name, state in found.items():
        print(f"{name:32} {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

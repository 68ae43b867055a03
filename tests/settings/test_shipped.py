"""Every configuration that we ship or show is one that `oncegate check` takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
import yaml
from click.testing import CliRunner

from gateway.cli import main

from .files import CONFIG

ROOT = CONFIG.parent
#: What the shown files take from the environment.
ENVIRON = {
    "KUBERNETES_SERVICE_HOST": None,
    "ONCEGATE_ADMIN_TOKEN": "0123456789abcdef",
    "ONCEGATE_SECRET": "sesame",
    "ONCEGATE_STORE": "redis://:hunter2@redis:6379/0",
    "REDIS_PASSWORD": "hunter2",
}
#: What a block of a page leaves out, because it is about something else.
REST = {
    "service": "shop",
    "upstreams": {"shop": "http://127.0.0.1:9000"},
    "routes": [{"name": "all", "upstream": "shop"}],
}


def shipped() -> Iterator[tuple[str, str]]:
    """Each whole file, by its path; those within a manifest of Kubernetes by the manifest's."""
    for folder in ("config", "deploy"):
        for path in sorted(ROOT.joinpath(folder).rglob("*.y*ml")):
            for document in yaml.safe_load_all(path.read_text()):
                if "upstreams" in document:
                    yield str(path.relative_to(ROOT)), path.read_text()
                elif document.get("kind") == "ConfigMap" and "gateway.yaml" in document["data"]:
                    yield str(path.relative_to(ROOT)), document["data"]["gateway.yaml"]


def shown() -> Iterator[tuple[str, str]]:
    """Each block of YAML of each page that is a configuration, with what it leaves out, by page and number."""
    for page in (ROOT / "README.md", *sorted(ROOT.joinpath("docs").rglob("*.md")), ROOT / "deploy/README.md"):
        for number, block in enumerate(re.findall(r"^```ya?ml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            said = yaml.safe_load(block)
            left_out = {name: value for name, value in REST.items() if name not in said}
            if said.keys() & {"upstreams", "routes", "listen", "admin", "store", "defaults", *REST}:
                yield f"{page.relative_to(ROOT)} {number}", block + (yaml.safe_dump(left_out) if left_out else "")


SHIPPED, SHOWN = dict(shipped()), dict(shown())


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the certificates and folders that the files name, at the places that a test may write to."""
    monkeypatch.chdir(tmp_path)
    authority = trustme.CA()
    issued = authority.issue_cert("gate.test")
    authority.cert_pem.write_to_path("clients-ca.pem")
    authority.cert_pem.write_to_path("internal-ca.pem")
    issued.cert_chain_pems[0].write_to_path("server.pem")
    issued.private_key_pem.write_to_path("server.key")
    return tmp_path


@pytest.mark.parametrize("name", [*SHIPPED, *SHOWN])
def test_a_configuration_of_ours_is_good(name: str, around: Path) -> None:
    """oncegate check FILE → `good`, exit 0. What a file names in /etc or /var is looked for beside it here."""
    text = (SHIPPED | SHOWN)[name]
    text = re.sub(r"/(?:etc/ssl|var/log/oncegate)/", f"{around}/", text)
    file = around / "gate.yaml"
    file.write_text(text)
    done = CliRunner().invoke(main, ["check", str(file)], env=ENVIRON)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{file}: good: ")


def test_they_are_all_there() -> None:
    """Every file in config/, both of deploy/, the three blocks of the README and those of the pages."""
    files = {str(path.relative_to(ROOT)) for path in CONFIG.rglob("*.yaml")}
    assert SHIPPED.keys() == files | {"deploy/kubernetes/config.yaml", "deploy/systemd/gateway.yaml"}
    assert {name.partition(" ")[0] for name in SHOWN} >= {"README.md", "docs/admin.md", "docs/edge.md", "docs/redis.md"}

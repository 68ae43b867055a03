"""The manifests of deploy/kubernetes, by kind and name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent.parent.parent / "deploy/kubernetes"
Manifest = dict[str, Any]


def every() -> list[Manifest]:
    """All documents of all files."""
    return [each for path in sorted(FOLDER.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def one(kind: str, name: str) -> Manifest:
    """The manifest of this kind and name."""
    (found,) = [each for each in every() if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pod(manifest: Manifest) -> Manifest:
    """The pod's spec of a Deployment or a StatefulSet."""
    spec: Manifest = manifest["spec"]["template"]["spec"]
    return spec


def containers(spec: Manifest) -> list[Manifest]:
    """Its containers, the sidecars among them."""
    return [*spec.get("initContainers", ()), *spec["containers"]]


def gate() -> Manifest:
    """The gate's container."""
    (found,) = pod(one("Deployment", "orders"))["initContainers"]
    return dict(found)


def settings_text() -> str:
    """The gate's configuration, as the ConfigMap has it."""
    return str(one("ConfigMap", "orders-gate")["data"]["gateway.yaml"])


def environment() -> dict[str, str]:
    """The gate's variables, as the Deployment takes them from the Secret."""
    references = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in gate()["env"]}
    return {name: one("Secret", it["name"])["stringData"][it["key"]] for name, it in references.items()}


def store() -> str:
    """The store's URL."""
    return environment()["ONCEGATE_STORE"]

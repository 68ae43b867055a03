"""The manifests: valid to Kubernetes' own schemas, and what one says of another is so."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest

from gateway import __version__
from gateway.settings import load_text
from tests.containers.bases import names
from tests.deploy.manifests import Manifest, containers, environment, every, gate, one, pod, settings_text, store

WORKLOADS = [each for each in every() if each["kind"] in ("Deployment", "StatefulSet")]
MI = 1 << 20


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


@pytest.mark.parametrize("version", ["1.30", "1.33"])
@pytest.mark.parametrize("manifest", every(), ids=named)
def test_each_is_valid(manifest: Manifest, version: str) -> None:
    """By the schema of its kind, which allows no field that it does not know."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_configuration_loads_and_is_a_fleet_s() -> None:
    """The ConfigMap's file is sound with the Secret's URL, and its store is one that two pods can share."""
    settings = load_text(settings_text(), name="gateway.yaml", environ=environment())
    assert settings.store.startswith("redis://")
    assert one("Deployment", "orders")["spec"]["replicas"] == 2
    assert settings.admin_token, "operators are refused without one, for the listener is not on the loopback"
    (upstream,) = settings.upstreams.values()
    assert upstream.host == "127.0.0.1", "the service is in the same pod"
    (service,) = pod(one("Deployment", "orders"))["containers"]
    assert "ports" not in service, "clients would come past the gate"
    assert service["args"][-4:] == ["--host", upstream.host, "--port", str(upstream.port)]


def test_a_pod_has_time_to_stop() -> None:
    """The service's wait, and the gate's whole grace (the longest lease) after it."""
    settings = load_text(settings_text(), name="gateway.yaml", environ=environment())
    spec = pod(one("Deployment", "orders"))
    (service,) = spec["containers"]
    waits = service["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert settings.grace / 1000 == 95
    assert spec["terminationGracePeriodSeconds"] >= waits + settings.grace / 1000


def test_the_gate_is_a_sidecar_with_probes_on_its_own_listeners() -> None:
    """It goes on beside the service; its ports are those of its configuration; its probes ask what the admin listener
    has; a store that is away restarts nothing."""
    settings = load_text(settings_text(), name="gateway.yaml", environ=environment())
    container = gate()
    assert container["restartPolicy"] == "Always"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.listen[0].address.port, "admin": settings.admin.port}
    assert {settings.listen[0].address.host, settings.admin.host} == {"0.0.0.0"}
    asked = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {each["port"] for each in asked.values()} == {"admin"}
    assert {probe: each["path"] for probe, each in asked.items()} == {
        "startupProbe": "/live", "readinessProbe": "/ready", "livenessProbe": "/live",
    }  # fmt: skip
    annotations = one("Deployment", "orders")["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == ports["admin"]


def test_a_rollout_with_a_wrong_secret_fails_before_it_replaces_a_pod() -> None:
    """No pod that serves is given up for one that is not ready, and a gate without its store is not ready for longer
    than a rollout may make no progress."""
    settings = load_text(settings_text(), name="gateway.yaml", environ=environment())
    deployment = one("Deployment", "orders")["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert settings.startup_wait / 1000 > deployment["progressDeadlineSeconds"]


def test_the_gate_has_room_for_its_buffers() -> None:
    """The limit of memory is above limits.buffers and what the process itself takes."""
    settings = load_text(settings_text(), name="gateway.yaml", environ=environment())
    assert int(gate()["resources"]["limits"]["memory"].removesuffix("Mi")) * MI >= settings.limits.buffers + 128 * MI
    assert "cpu" not in gate()["resources"]["limits"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_every_container_is_held_tight(workload: Manifest) -> None:
    """No root, nothing to write to but its volumes, no capability, no token; requests and a limit of memory."""
    spec = pod(workload)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in containers(spec):
        held = container["securityContext"]
        assert held["readOnlyRootFilesystem"]
        assert held["allowPrivilegeEscalation"] is False
        assert held["capabilities"] == {"drop": ["ALL"]}
        assert held.get("runAsUser", spec["securityContext"].get("runAsUser", 0)) > 0
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_what_is_mounted_and_read_is_there(workload: Manifest) -> None:
    """Every mount has its volume, every volume its ConfigMap, Secret or claim, every variable its key; a file that an
    argument names is in a mount."""
    spec = pod(workload)
    claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
    volumes: dict[str, Any] = {volume["name"]: volume for volume in spec.get("volumes", ())}
    files: dict[str, set[str]] = {}
    for name, volume in volumes.items():
        if "configMap" in volume:
            files[name] = set(one("ConfigMap", volume["configMap"]["name"])["data"])
        else:
            keys = one("Secret", volume["secret"]["secretName"])["stringData"]
            assert all(item["key"] in keys for item in volume["secret"]["items"])
            files[name] = {item["path"] for item in volume["secret"]["items"]}
    used = set()
    for container in containers(spec):
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}
        assert set(mounts.values()) <= claims | volumes.keys()
        used |= set(mounts.values())
        for argument in container["args"]:
            if argument.startswith("/"):
                folder, _, file = argument.rpartition("/")
                assert file in files[mounts[folder]], argument
        for variable in container.get("env", ()):
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["key"] in one("Secret", reference["name"])["stringData"]
    assert used == claims | volumes.keys()


def test_the_images_are_those_of_the_project() -> None:
    """The gate's is of this version; the Redis is the composed one."""
    for container in containers(pod(one("Deployment", "orders"))):
        assert container["image"] == f"oncegate:{__version__}"
    (redis,) = containers(pod(one("StatefulSet", "orders-keys")))
    assert redis["image"] == names()["redis"]


def test_services_find_their_pods_and_ports() -> None:
    """A Service's selector is that of one workload, and its target a port by that name; so for the budget."""
    for service in [each for each in every() if each["kind"] == "Service"]:
        (workload,) = [
            each for each in WORKLOADS if each["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
        ]
        ports = {port["name"] for each in containers(pod(workload)) for port in each.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    labels = one("Deployment", "orders")["spec"]["template"]["metadata"]["labels"]
    assert one("PodDisruptionBudget", "orders")["spec"]["selector"]["matchLabels"] == labels
    for workload in WORKLOADS:
        assert workload["spec"]["selector"]["matchLabels"] == workload["spec"]["template"]["metadata"]["labels"]


def test_the_store_is_a_redis_that_keeps_what_it_acknowledges() -> None:
    """The URL leads to the Redis' Service, with its password; it has its file, evicts nothing, and leaves a quarter of
    its memory free."""
    url = urlsplit(store())
    assert url.hostname == one("Service", "orders-keys")["metadata"]["name"]
    assert url.port == one("Service", "orders-keys")["spec"]["ports"][0]["port"]
    secret = one("Secret", "orders-keys")["stringData"]
    said = dict(line.split(" ", 1) for line in secret["redis.conf"].splitlines() if line and line[0] != "#")
    assert url.password == said["requirepass"] == secret["password"]
    assert said["appendonly"] == "yes"
    assert said["appendfsync"] == "always"
    assert said["maxmemory-policy"] == "noeviction"
    (redis,) = containers(pod(one("StatefulSet", "orders-keys")))
    limit = int(redis["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert int(said["maxmemory"].removesuffix("mb")) == limit * 3 // 4
    assert {mount["mountPath"] for mount in redis["volumeMounts"]} >= {said["dir"]}


def test_the_network_lets_through_what_is_needed_and_no_more() -> None:
    """Clients reach the gate's port and the scraper the admin's; only gates reach the Redis; the Redis calls nobody."""
    gates, keys = one("NetworkPolicy", "orders")["spec"], one("NetworkPolicy", "orders-keys")["spec"]
    deployment, redis = one("Deployment", "orders"), one("StatefulSet", "orders-keys")
    assert gates["podSelector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    assert keys["podSelector"]["matchLabels"] == redis["spec"]["selector"]["matchLabels"]
    for policy in (gates, keys):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    http, admin = ({port["port"] for port in rule["ports"]} for rule in gates["ingress"])
    assert http == {8080}
    assert admin == {8081}
    assert [rule["from"] for rule in keys["ingress"]] == [[{"podSelector": gates["podSelector"]}]]
    to_store, to_names = gates["egress"]
    assert to_store == {"to": [{"podSelector": keys["podSelector"]}], "ports": keys["ingress"][0]["ports"]}
    assert {(port["protocol"], port["port"]) for port in to_names["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert keys["egress"] == []

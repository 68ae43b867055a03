"""The pods of deploy/kubernetes, played by the engine: a service with a gate in its network, twice, over one Redis,
each as its manifest says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from tests.containers.composed import IMAGE, Composed, get_json, until
from tests.deploy.manifests import Manifest, containers, environment, gate, one, pod, settings_text
from tests.harness import Response, ask
from tests.servers import free_port

pytestmark = pytest.mark.containers
ORDER = b'{"item": "book", "amount": 12.50}'
MIB = 1 << 20


def as_written(manifest: Manifest, spec: Manifest) -> dict[str, Any]:
    """What a manifest says of how a container runs, in the engine's words."""
    pods, held = spec["securityContext"], manifest["securityContext"]
    user, group = (held.get(each, pods.get(each)) for each in ("runAsUser", "runAsGroup"))
    return {
        "command": manifest["args"],
        "user": f"{user}:{group}",
        "read_only": held["readOnlyRootFilesystem"],
        "cap_drop": held["capabilities"]["drop"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": int(manifest["resources"]["limits"]["memory"].removesuffix("Mi")) * MIB,
        "detach": True,
    }


class Pod:
    """A service, and the gate in its network. What it has started is in `started`, whatever comes after."""

    def __init__(
        self, client: docker.DockerClient, network: str, name: str, settings: Path, started: list[Container]
    ) -> None:
        spec = pod(one("Deployment", "orders"))
        (service,) = spec["containers"]
        self.ports = {port["name"]: free_port() for port in gate()["ports"]}
        self.service: Container = client.containers.run(
            IMAGE, name=f"{name}-service", network=network, healthcheck={"test": ["NONE"]},
            ports={f"{port['containerPort']}/tcp": ("127.0.0.1", self.ports[port["name"]]) for port in gate()["ports"]},
            **as_written(service, spec),
        )  # fmt: skip
        started.append(self.service)
        (mount,) = gate()["volumeMounts"]
        self.gate: Container = client.containers.run(
            IMAGE, name=f"{name}-gate", network_mode=f"container:{self.service.id}",
            environment=environment(),
            volumes={str(settings): {"bind": mount["mountPath"], "mode": "ro"}},
            **as_written(gate(), spec),
        )  # fmt: skip
        started.append(self.gate)

    def ready(self) -> bool:
        """Whether every probe of the manifest would pass."""
        try:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = gate()[probe]["httpGet"]
                get_json(f"http://127.0.0.1:{self.ports[asked['port']]}{asked['path']}")
        except OSError:
            return False
        return True

    def executed(self) -> int:
        return int(get_json(f"http://127.0.0.1:{self.ports['http']}/orders")["executed"])


@pytest.fixture(scope="module")
def pods(
    engine: docker.DockerClient, composed: Composed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Pod]]:
    """Two pods and the Redis, on a network of their own on which it has its Service's name."""
    name = f"oncegate-pods-{os.getpid()}"
    folder = tmp_path_factory.mktemp("mounted")
    secret = one("Secret", "orders-keys")["stringData"]
    for path, text in (("gate/gateway.yaml", settings_text()), ("redis/redis.conf", secret["redis.conf"])):
        (folder / path).parent.mkdir(mode=0o755)
        (folder / path).write_text(text)
    spec = pod(one("StatefulSet", "orders-keys"))
    (keys,) = containers(spec)
    started: list[Container] = []
    network = engine.networks.create(name, driver="bridge")
    try:
        mounts = {mount["name"]: mount["mountPath"] for mount in keys["volumeMounts"]}
        redis = engine.containers.create(
            keys["image"], name=f"{name}-redis", environment={"REDISCLI_AUTH": secret["password"]},
            tmpfs={mounts["data"]: f"uid={spec['securityContext']['runAsUser']},mode=0700"},
            volumes={str(folder / "redis"): {"bind": mounts["config"], "mode": "ro"}},
            **{key: value for key, value in as_written(keys, spec).items() if key != "detach"},
        )  # fmt: skip
        started.append(redis)
        engine.networks.get("bridge").disconnect(redis)
        network.connect(redis, aliases=[one("Service", "orders-keys")["metadata"]["name"]])
        redis.start()
        probe = keys["readinessProbe"]["exec"]["command"]
        until(lambda: redis.exec_run(probe).exit_code == 0, 30, "the Redis is ready")
        count = one("Deployment", "orders")["spec"]["replicas"]
        found = [Pod(engine, name, f"{name}-{number}", folder / "gate", started) for number in range(count)]
        for each in found:
            until(each.ready, 30, "a pod is ready")
        yield found
    finally:
        for container in reversed(started):
            print(container.name, container.logs(tail=20).decode(errors="replace"))
            container.remove(force=True, v=True)
        with contextlib.suppress(docker.errors.APIError):
            network.remove()


def storm(ports: list[int], key: str, copies: int = 20) -> list[Response]:
    async def go() -> list[Response]:
        return await asyncio.gather(
            *(ask(port, key=key, body=ORDER, seconds=60) for port in ports for _ in range(copies))
        )

    return asyncio.run(go())


def test_the_pods_have_one_memory(pods: list[Pod]) -> None:
    """Twenty copies to each pod at once → one execution in both services together, and one answer."""
    before = sum(each.executed() for each in pods)
    answers = storm([each.ports["http"] for each in pods], uuid.uuid4().hex)
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers}) == 1
    assert sum(answer.replayed for answer in answers) == len(answers) - 1
    assert sum(each.executed() for each in pods) == before + 1


def test_a_client_that_lost_its_pod_has_its_answer_from_the_other(pods: list[Pod]) -> None:
    """An order in one pod, whose gate is then stopped; its duplicate at the other pod is a replay. The gate ended by
    itself, and starts again."""
    one_pod, other = pods
    key = uuid.uuid4().hex
    (first,) = storm([one_pod.ports["http"]], key, copies=1)
    before = other.executed()
    one_pod.gate.stop(timeout=pod(one("Deployment", "orders"))["terminationGracePeriodSeconds"])
    one_pod.gate.reload()
    assert one_pod.gate.attrs["State"]["ExitCode"] == 0
    (again,) = storm([other.ports["http"]], key, copies=1)
    assert again.replayed
    assert json.loads(again.body) == json.loads(first.body)
    assert other.executed() == before
    one_pod.gate.start()
    until(one_pod.ready, 30, "the pod is ready again")


def test_nobody_comes_past_the_gate(pods: list[Pod]) -> None:
    """The service answers in its own pod, and nobody else can speak to it."""
    one_pod, other = pods
    one_pod.service.reload()
    (network,) = one_pod.service.attrs["NetworkSettings"]["Networks"].values()
    for host, reached, by in ((network["IPAddress"], False, other.service), ("127.0.0.1", True, one_pod.gate)):
        look = f"import socket; socket.create_connection(({host!r}, 9000), timeout=3)"
        assert (by.exec_run(shlex.join(["python3", "-c", look])).exit_code == 0) is reached, host


def test_the_manifest_s_limits_hold(pods: list[Pod]) -> None:
    """The gate runs as the manifest's user, on a file system that is read only, within its memory."""
    for each in pods:
        assert each.gate.exec_run(["id", "-u"]).output.strip() == b"10001"
        assert each.gate.exec_run(["touch", "/tmp/it"]).exit_code != 0
        usage = each.gate.stats(stream=False)["memory_stats"]["usage"]
        assert usage < 128 * MIB


def test_operators_ask_within_the_pod(pods: list[Pod]) -> None:
    """`oncegate keys` in the gate's container finds an order, with the token that the manifest gives it; whoever asks
    from outside without one is refused, and still sees metrics."""
    one_pod, _ = pods
    key = uuid.uuid4().hex
    storm([one_pod.ports["http"]], key, copies=1)
    shown = one_pod.gate.exec_run(["oncegate", "keys", "show", key, "--route", "orders", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["record"]["state"] == "completed"
    admin = one_pod.ports["admin"]
    assert asyncio.run(ask(admin, "GET", "/keys", body=b"")).status == 401
    assert asyncio.run(ask(admin, "GET", "/metrics", body=b"")).status == 200

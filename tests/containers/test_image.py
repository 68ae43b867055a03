"""The image: who it runs as, what is in it and what is not, and what its check notices."""

from __future__ import annotations

import json
import signal

import docker
import pytest

from tests.containers.composed import IMAGE, Composed, until

pytestmark = pytest.mark.containers
MIB = 1 << 20
MB = 10**6


def inside(engine: docker.DockerClient, script: str) -> str:
    """What a shell in a container of the image prints."""
    out: bytes = engine.containers.run(
        IMAGE, ["-c", script], entrypoint="/bin/sh", remove=True, network_mode="none", read_only=True
    )
    return out.decode()


def test_it_is_small(engine: docker.DockerClient, composed: Composed) -> None:
    """150 MB with its base, of which 32 MB are ours at most."""
    image = engine.images.get(IMAGE)
    ours = sum(layer["Size"] for layer in image.history() if "COPY" in layer["CreatedBy"])
    assert image.attrs["Size"] <= 150 * MB
    assert 10 * MB < ours <= 32 * MB


def test_what_it_says_of_itself(engine: docker.DockerClient, composed: Composed) -> None:
    """A numbered user who is not root, a check, a stop signal, the two ports; no part of the build is remembered."""
    image = engine.images.get(IMAGE)
    config = image.attrs["Config"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["StopSignal"] == "SIGTERM"
    assert set(config["ExposedPorts"]) == {"8080/tcp", "8081/tcp"}
    told = json.dumps([image.history(), config])
    assert "PIP_" not in told
    assert "trust.pem" not in told


def test_nothing_in_it_builds_or_installs(engine: docker.DockerClient, composed: Composed) -> None:
    """No compiler, linker or make; no pip; no authorities of the build's."""
    tools = "gcc cc g++ c++ clang ld as make strip cargo rustc go"
    assert inside(engine, f"for tool in {tools}; do command -v $tool; done; true") == ""
    assert inside(engine, "find / -xdev -name trust.pem 2>/dev/null; ls /src 2>/dev/null; true") == ""
    for package in ("pip", "setuptools", "wheel"):
        assert inside(engine, f"/opt/oncegate/bin/python3 -c 'import {package}' 2>/dev/null || echo none") == "none\n"


def test_every_library_of_it_still_loads(engine: docker.DockerClient, composed: Composed) -> None:
    """Stripped of their symbols, all extensions are imported; and bytecode is there, since none can be written."""
    script = (
        "import pathlib, importlib, sysconfig; root = pathlib.Path(sysconfig.get_paths()['purelib']); "
        "found = [p for p in root.rglob('*.so')]; "
        "names = ['.'.join(p.relative_to(root).with_name(p.name.split('.')[0]).parts) for p in found]; "
        "[importlib.import_module(name) for name in names]; "
        "print(len(found), sum(1 for p in (root / 'gateway').rglob('*.pyc')))"
    )
    libraries, compiled = inside(engine, f'python3 -c "{script}"').split()
    assert int(libraries) >= 10
    assert int(compiled) >= 50
    assert inside(engine, "oncegate --version").startswith("oncegate, version ")


def test_it_runs_as_nobody_on_a_file_system_that_is_read_only(composed: Composed) -> None:
    """In the composed gate: the user, no capability, no way to gain one, and no place to write to."""
    gate = composed.container("gate")
    status = gate.exec_run(["cat", "/proc/1/status"]).output.decode()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {"10001"}
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    for place in ("/", "/tmp", "/opt/oncegate", "/etc/oncegate/gateway.yaml", "/home", "/var"):
        assert gate.exec_run(["sh", "-c", f"touch {place}/it 2>/dev/null || echo >> {place}"]).exit_code != 0, place


def test_its_check_notices_a_gate_that_hangs(composed: Composed) -> None:
    """The check says yes; the gate is stopped in its tracks, and it says no; it goes on, and so does the check."""
    gate = composed.container("gate")
    check = gate.attrs["Config"]["Healthcheck"]["Test"][1:]
    assert gate.exec_run(check).exit_code == 0
    gate.kill(signal=signal.SIGSTOP)
    try:
        assert gate.exec_run(check).exit_code != 0
    finally:
        gate.kill(signal=signal.SIGCONT)
    until(lambda: gate.exec_run(check).exit_code == 0, 10, "the gate answers again")
    composed.until_healthy("gate")

"""The unit: systemd accepts it and finds little to attack, and it stops as slowly as the gate may need."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.exits import USAGE
from gateway.settings import load_text

FOLDER = Path(__file__).parent.parent.parent / "deploy/systemd"
UNIT = FOLDER / "oncegate.service"
INSTALLED = "/opt/oncegate/bin/oncegate"
ANALYZE = shutil.which("systemd-analyze")


def section(name: str) -> dict[str, str]:
    """The section, the last of each field."""
    read = configparser.RawConfigParser(strict=False)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string(UNIT.read_text())
    return dict(read[name])


def environment() -> dict[str, str]:
    return dict(line.split("=", 1) for line in (FOLDER / "environment").read_text().splitlines())


def test_its_configuration_loads() -> None:
    """With the variables of the file beside it; the admin listener is the host's own."""
    settings = load_text((FOLDER / "gateway.yaml").read_text(), name="gateway.yaml", environ=environment())
    assert settings.store.startswith("redis://")
    assert settings.admin.host == "127.0.0.1"


def test_it_stops_as_slowly_as_the_gate_may_need_and_does_not_try_a_broken_file_again() -> None:
    """Longer than the gate's grace; SIGTERM, to the parent of the workers first; 64 is final."""
    settings = load_text((FOLDER / "gateway.yaml").read_text(), name="gateway.yaml", environ=environment())
    said = section("Service")
    assert int(said["TimeoutStopSec"]) > settings.grace / 1000
    assert (said["KillSignal"], said["KillMode"]) == ("SIGTERM", "mixed")
    assert said["RestartPreventExitStatus"] == str(USAGE)
    assert said["ExecStart"] == f"{INSTALLED} run --config /etc/oncegate/gateway.yaml"
    assert said["ExecStartPre"] == f"{INSTALLED} check /etc/oncegate/gateway.yaml"


def test_it_starts_after_time_synchronisation_and_sees_the_boot_id() -> None:
    """The wall clock is believed after a reboot, and a restart within one boot is told by the kernel's boot id, which
    ProcSubset=pid would hide."""
    said = section("Unit")
    assert "time-sync.target" in said["After"].split()
    assert "time-sync.target" in said["Wants"].split()
    assert "ProcSubset" not in section("Service")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_it(tmp_path: Path) -> None:
    """No unknown field, no value that cannot be read, nothing to warn of."""
    assert ANALYZE is not None
    here = Path(sys.executable).parent / "oncegate"
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(INSTALLED, str(here)))
    done = subprocess.run([ANALYZE, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30)
    of_ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert done.returncode == 0, done.stderr
    assert of_ours == []


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_it_exposes_little() -> None:
    """By systemd's own measure, of 10 (a plain unit has 9.6): a network service, and else nothing."""
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, "security", "--offline=yes", "--no-pager", str(UNIT)], capture_output=True, text=True, timeout=30
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd cannot judge a file: {done.stderr.strip()[:200]}")
    assert float(found[1]) <= 2.0, done.stdout

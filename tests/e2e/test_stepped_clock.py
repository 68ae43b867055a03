"""Real gateways on one SQLite file, on a host whose wall clock is stepped while they run and while they do not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.crowd import admin, eventually
from tests.harness import GateProcess, Origin, ask, configuration

DAY = 86_400_000


class Stepped(GateProcess):
    """A gateway on such a host."""

    module = "tests.e2e.stepped"

    async def alarms(self) -> list[str]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [str(line["message"]) for line in lines if line.get("finding") == "clock-stepped"]

    async def findings(self) -> dict[str, str]:
        status, told = await admin(self.admin_port, "/ready/guarded")
        assert status == 200
        return dict(told.get("findings", {}))  # type: ignore[call-overload]


def doctor(store: str, environ: dict[str, str]) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.e2e.stepped", "doctor", "--store", store], capture_output=True, text=True,
        timeout=30, env={**os.environ, **environ}, check=True,
    )  # fmt: skip
    return " ".join(ended.stdout.split())


@pytest.mark.parametrize("step", [2 * DAY, -2 * DAY], ids=["ahead", "back"])
async def test_no_step_of_the_wall_clock_ends_a_window(origin: Origin, tmp_path: Path, step: int) -> None:
    """Two gateways on one file, a window of a day. The clock steps by two: a retry at either is replayed, each raises
    an alarm, and the doctor has a finding. Both are killed, the clock steps once more, they start again: a retry is
    replayed, and nothing has run twice. Keys that were claimed after the step are replayed as well."""
    wall, store = tmp_path / "wall", f"sqlite:///{tmp_path}/keys.db"
    wall.write_text("0")
    environ = {"WALL_CLOCK": str(wall)}
    text = configuration(origin.url, store=store, policy="window: 24h, wait: 1s")
    gates = [Stepped(text, environ=environ) for _ in range(2)]
    try:
        for gate in gates:
            await gate.start()
        assert (await ask(gates[0].port, key="k1")).label == "stored"
        assert "clock-stepped" not in await asyncio.to_thread(doctor, store, environ)
        wall.write_text(str(step))
        for gate in gates:
            assert (await ask(gate.port, key="k1")).label == "replayed"
            await eventually(gate.findings, lambda found: "clock-stepped" in found)
            assert (await ask(gate.port, key="k1")).label == "replayed", "it was not swept"
            (alarm,) = await eventually(gate.alarms, bool)
            assert f"stepped by {step / 1000:+.0f} s" in alarm
        assert (await ask(gates[1].port, key="k2")).label == "stored"
        assert "WARNING clock-stepped: The wall clock was stepped by" in await asyncio.to_thread(doctor, store, environ)
        for gate in gates:
            gate.kill()
        wall.write_text(str(2 * step))
        for gate in gates:
            await gate.start()
            for key in ("k1", "k2"):
                assert (await ask(gate.port, key=key)).label == "replayed"
        assert f"{2 * step / 1000:+.0f} s" in (await gates[0].findings())["clock-stepped"]
        assert origin.effects == {b"k1": 1, b"k2": 1}
    finally:
        for gate in gates:
            gate.close()

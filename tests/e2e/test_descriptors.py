"""A gate that runs out of file descriptors: RLIMIT_NOFILE of a real process, lowered while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.test_attach import metric
from tests.edge.stand import SOON, eventually, keyed
from tests.harness import Client, GateProcess, Origin, ask, configuration, request

OUT = "file descriptors have run out, or nearly: raise the limit (ulimit -n)"
BACK = "file descriptors are left again"


class Gate(GateProcess):
    """A gate, and an operator who is connected already."""

    async def start(self) -> Gate:
        await super().start()
        assert self.process is not None
        self.pid = self.process.pid
        self.usual = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        self.operator = await Client.connect(self.admin_port)
        assert (await self.asked("/ready/guarded"))[0] == 200
        return self

    async def asked(self, path: str) -> tuple[int, str]:
        await self.operator.send(request("GET", path))
        answer = await self.operator.read(method=b"GET")
        return answer.status, answer.body.decode()

    def used(self) -> list[int]:
        return sorted(int(each) for each in os.listdir(f"/proc/{self.pid}/fd"))

    def limit(self, most: int | None = None) -> None:
        """So many, or none more than there are; without gaps below them."""
        if most is None:
            used = set(self.used())
            most = next(number for number in range(len(used) + 1) if number not in used)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (most, self.usual[1]))

    def spare(self) -> int:
        """The one that the gate keeps to be given up."""
        return next(each for each in self.used() if os.readlink(f"/proc/{self.pid}/fd/{each}") == "/")

    def unlimit(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, self.usual)

    def said(self, message: str) -> list[dict[str, object]]:
        text = self.log.read_text()
        lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return [line for line in lines if line.get("message") == message]

    def worked(self) -> float:
        """Seconds of processor time."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
async def gate(origin: Origin, tmp_path: Path) -> AsyncIterator[Gate]:
    gate = Gate(configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db"))
    try:
        yield await gate.start()
        gate.operator.close()
    finally:
        gate.close()


async def more(gate: Gate, count: int) -> tuple[list[Client], int]:
    """So many clients; those that stay, and how many were cut off."""
    clients = [await Client.connect(gate.port) for _ in range(count)]
    await gate.asked("/live")  # it has met them all
    await asyncio.sleep(0.1)
    stay = [client for client in clients if not client.reader.at_eof() and client.reader.exception() is None]
    for client in clients:
        if client not in stay:
            client.close()
    return stay, count - len(stay)


async def served(client: Client, key: str, *, replayed: bool = False) -> None:
    """Guarded, and not."""
    for data in (keyed(key), keyed(key).replace(b"/orders", b"/open/x")):
        await client.send(data)
        answer = await client.read()
        assert answer.status == 201
        assert answer.replayed == (replayed and b"/orders" in data)


async def test_more_clients_than_descriptors(gate: Gate, origin: Origin) -> None:
    """Those that are too many are cut off, counted, and told to the log once; those that are in are served, because the
    service's connections have their descriptors; so are operators. When some leave, others come in."""
    gate.limit(128)
    clients, cut = await more(gate, 200)
    assert 50 < len(clients) < 120
    assert cut == await metric(gate, "oncegate_limits_total", limit="descriptors")
    for number, client in enumerate(clients[:10]):
        await served(client, f"k{number}")
    assert (await gate.asked("/ready/guarded"))[0] == 200
    await eventually(lambda: gate.said(OUT), "the log has it")
    assert [(line["level"], line["limit"]) for line in gate.said(OUT)] == [("alarm", 128)]
    for client in clients:
        client.close()
    await eventually(lambda: gate.said(BACK), "the log has that too")
    for number in range(10):
        client = await Client.connect(gate.port)
        await served(client, f"k{number}", replayed=True)
        client.close()
    assert {origin.effects[b"k%d" % number] for number in range(10)} == {3}, "one guarded, two that are not"


async def test_none_for_the_service(gate: Gate, origin: Origin) -> None:
    """503 `overloaded`: nothing ran, and the key is free. /ready/guarded and the log say why, once; when there are some
    again the same request runs, once."""
    client = await Client.connect(gate.port)
    await served(client, "before")
    idle = len(gate.used())
    await eventually(lambda: len(gate.used()) < idle, "the service's connection was idle too long")
    gate.limit(8)
    for path, label in ((b"/orders", "released"), (b"/open/x", "unprotected")):
        await client.send(keyed("none").replace(b"/orders", path))
        answer = await client.read()
        assert (answer.status, answer.problem, answer.label) == (503, "overloaded", label)
        assert answer.get("Idempotency-Outcome") == "no-effect"
    await unready(gate)
    await client.send(keyed("before"))
    assert (await client.read()).replayed
    gate.unlimit()
    await eventually(lambda: gate.said(BACK), "the log has that too")
    assert (await gate.asked("/ready/guarded"))[0] == 200
    assert await counted(gate) >= 3
    assert len(gate.said(OUT)) == 1
    await served(client, "none")
    assert (await ask(gate.port, key="none", body=b"", host="a")).replayed
    assert origin.effects[b"none"] == 2, "one guarded, one that is not"
    client.close()


@pytest.mark.parametrize("spare", [False, True], ids=["libuv keeps one", "the gate alone keeps one"])
async def test_none_for_whoever_comes(gate: Gate, origin: Origin, spare: bool) -> None:
    """He is cut off, and the gate does not spin; once there are some again he is served. Also where libuv cannot have
    its own for letting him in back."""
    gate.limit(gate.spare() + 1 if spare else None)
    await unready(gate)
    began, worked = time.monotonic(), gate.worked()
    strangers = []
    for _ in range(5):
        with contextlib.suppress(OSError):
            strangers.append(await Client.connect(gate.port))
    for stranger in strangers:
        assert await stranger.ended(SOON)
        stranger.close()
    await eventually(lambda: time.monotonic() - began > 3, "it had time to spin")
    assert gate.worked() - worked < (time.monotonic() - began) / 3
    gate.unlimit()
    await eventually(lambda: gate.said(BACK), "there are some again")
    client = await Client.connect(gate.port)
    await served(client, "k")
    client.close()


async def unready(gate: Gate) -> None:
    async with asyncio.timeout(SOON):
        while (said := await gate.asked("/ready/guarded"))[0] == 200:
            await asyncio.sleep(0.05)
    assert "file descriptors have run out" in said[1]


async def counted(gate: Gate) -> float:
    _, page = await gate.asked("/metrics")
    (line,) = [each for each in page.splitlines() if each.startswith('oncegate_limits_total{limit="descriptors"}')]
    return float(line.split()[1])


async def test_none_for_the_service_takes_no_room_for_good(origin: Origin, tmp_path: Path) -> None:
    """What passes through and could not be connected for want of a descriptor counts no more once it is refused: as
    many as may pass at once are, and when there are descriptors again the next one goes through."""
    gate = Gate(configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db", upstream="connections: 4"))
    try:
        await gate.start()
        client = await Client.connect(gate.port)
        await served(client, "before")
        idle = len(gate.used())
        await eventually(lambda: len(gate.used()) < idle, "the service's connection was idle too long")
        gate.limit(8)
        for _ in range(3):
            await client.send(keyed("none").replace(b"/orders", b"/open/x"))
            answer = await client.read()
            assert (answer.status, answer.problem) == (503, "overloaded")
        gate.unlimit()
        await eventually(lambda: gate.said(BACK), "there are some again")
        async with asyncio.timeout(SOON):
            await served(client, "after")
        client.close()
        gate.operator.close()
    finally:
        gate.close()


JAIL = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", 'mount -t tmpfs none /dev; exec "$@"', "sh")


@pytest.mark.skipif(
    subprocess.run((*JAIL, "true"), capture_output=True, check=False).returncode != 0,
    reason="user namespaces are not allowed here",
)
async def test_a_jail_without_dev(origin: Origin) -> None:
    """Where there is no /dev/null, none is missed: clients are served past the second in which it is looked whether
    descriptors are left."""
    gate = Gate(configuration(origin.url))
    gate.before = JAIL
    try:
        await gate.start()
        assert not Path(f"/proc/{gate.pid}/root/dev/null").exists()
        checks = 2.2
        await asyncio.sleep(checks)
        client = await Client.connect(gate.port)
        await served(client, "k")
        assert not gate.said(OUT)
        client.close()
        gate.operator.close()
    finally:
        gate.close()


TOO_LOW = (
    "the limit of file descriptors is too low: it is {}, and `limits.connections` with the `connections` of the "
    "upstreams needs 10276"
)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("soft", "hard"), [(256, 12_000), (256, 300)], ids=["raised", "too low"])
async def test_a_low_soft_limit_is_raised_or_reported(
    origin: Origin, tmp_path: Path, soft: int, hard: int, workers: int
) -> None:
    """A gateway that is started with a soft limit of 256 descriptors has its hard limit. If that is below what the
    configuration allows, one warning at the start and a finding of doctor say both numbers; neither is there if it is
    not."""
    gate = GateProcess(
        configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db"),
        arguments=("--workers", str(workers)) if workers > 1 else (),
    )
    limits = ("prlimit", f"--nofile={soft}:{hard}")
    gate.before = limits
    try:
        await gate.start()
        assert gate.process is not None
        await eventually(lambda: '"listening"' in gate.log.read_text(), "all workers serve")
        await asyncio.sleep(0.3)  # what follows that line is gathered for a moment
        lines = [json.loads(line) for line in gate.log.read_text().splitlines()]
        pids = [line["pid"] for line in lines if line["message"] == "a worker serves"]
        assert len(pids) == (workers if workers > 1 else 0)
        for pid in (gate.process.pid, *pids):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
        said = [
            (line["level"], line["message"].partition(". ")[0]) for line in lines if "descriptors" in line["message"]
        ]
        doctor = await asyncio.to_thread(
            subprocess.run,
            [*limits, sys.executable, "-m", "gateway.cli", "doctor", "--config", str(gate.file)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        found = " ".join(doctor.stdout.split())
        if hard == 12_000:
            assert said == []
            assert "few-descriptors" not in found
        else:
            assert said == [("warning", TOO_LOW.format(hard))]
            assert f"WARNING few-descriptors: {TOO_LOW.format(hard)}" in found
            assert "LimitNOFILE" in found
    finally:
        gate.close()

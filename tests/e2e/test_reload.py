"""A configuration that is read anew while the gate runs: SIGHUP to real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.edge.stand import eventually
from tests.harness import Client, Exchange, GateProcess, Origin, ask, configuration, request

TAKEN = "the configuration was read anew"
NOT_TAKEN = "the configuration was not taken up; what ran goes on"


class Gate(GateProcess):
    """A gate whose file is written anew."""

    def said(self, message: str) -> list[dict[str, object]]:
        text = self.log.read_text()
        lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return [line for line in lines if line.get("message") == message]

    def hang_up(self, text: str) -> None:
        """Write the file, and have it read."""
        self.file.write_text(text)
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    async def take_up(self, text: str) -> None:
        before = len(self.said(TAKEN))
        self.hang_up(text)
        await eventually(lambda: len(self.said(TAKEN)) > before or self.said(NOT_TAKEN), "it is read", 10)
        assert not self.said(NOT_TAKEN), self.said(NOT_TAKEN)

    async def refuse(self, text: str) -> str:
        """Why it does not take it up."""
        before = len(self.said(NOT_TAKEN))
        self.hang_up(text)
        await eventually(lambda: len(self.said(NOT_TAKEN)) > before, "it is refused", 10)
        return str(self.said(NOT_TAKEN)[-1]["reason"])

    async def told_to_reload(self) -> tuple[int, dict[str, str]]:
        """What POST /reload says."""
        url = f"http://127.0.0.1:{self.admin_port}/reload"
        async with aiohttp.ClientSession() as session, session.post(url) as answer:
            return answer.status, await answer.json(content_type=None)

    async def ask(self, key: str, target: str = "/orders") -> tuple[int, bytes, str | None]:
        client = await Client.connect(self.port)
        try:
            await client.send(request(key=key, target=target))
            answer = await client.read(method=b"POST")
            return answer.status, answer.body, answer.get("Idempotency-Status")
        finally:
            client.close()


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@asynccontextmanager
async def running(text: str, workers: int = 1) -> AsyncIterator[Gate]:
    gate = Gate(text, arguments=("--workers", str(workers)) if workers > 1 else ())
    try:
        yield await gate.start()
    finally:
        gate.close()


@asynccontextmanager
async def origins() -> AsyncIterator[tuple[Origin, Origin]]:
    async def says(exchange: Exchange, who: bytes) -> None:
        await exchange.respond(201, who)

    one, other = Origin(lambda exchange: says(exchange, b"one")), Origin(lambda exchange: says(exchange, b"other"))
    try:
        yield await one.start(), await other.start()
    finally:
        await one.stop()
        await other.stop()


def text(origin: Origin, folder: Path, **more: str) -> str:
    return configuration(origin.url, store=f"sqlite:///{folder}/keys.db", **more)


async def test_another_upstream_without_dropping_a_connection(workers: int, tmp_path: Path) -> None:
    """Requests on connections that were there before go to the new upstream; what was stored is replayed; what is
    under way at the old one is answered from there."""
    async with origins() as (one, other), running(text(one, tmp_path), workers) as gate:
        assert await gate.ask("before") == (201, b"one", "stored")
        let_go = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await let_go.wait()
            await exchange.respond(201, b"slow")

        clients = [await Client.connect(gate.port) for _ in range(6)]
        for number, client in enumerate(clients):
            await client.send(request(key=f"warm-{number}"))
            assert (await client.read(method=b"POST")).body == b"one"
        one.answer = slow
        under_way = asyncio.create_task(gate.ask("under-way"))
        await one.until(8)
        await gate.take_up(text(other, tmp_path))
        for number, client in enumerate(clients):
            await client.send(request(key=f"after-{number}"))
            assert (await client.read(method=b"POST")).body == b"other"
            client.close()
        let_go.set()
        assert await under_way == (201, b"slow", "stored")
        assert await gate.ask("before") == (201, b"one", "replayed")
        assert await gate.ask("under-way") == (201, b"slow", "replayed")
        assert [len(each.requests) for each in (one, other)] == [8, 6]


async def test_routes_and_windows(workers: int, tmp_path: Path) -> None:
    """A path that was open is guarded from then on, and a window lasts as long as the new file says."""
    async with origins() as (one, _), running(text(one, tmp_path), workers) as gate:
        assert [await gate.ask("k", "/open/x") for _ in range(2)] == [(201, b"one", "unprotected")] * 2
        guarded = "  - {name: was-open, match: {path: /open/x}, upstream: origin, window: 1s}"
        await gate.take_up(text(one, tmp_path, routes=guarded))
        assert [(await gate.ask("k", "/open/x"))[2] for _ in range(2)] == ["stored", "replayed"]
        await asyncio.sleep(1.2)
        assert (await gate.ask("k", "/open/x"))[2] == "stored"


async def test_counters_of_a_new_route_are_at_0(workers: int, tmp_path: Path) -> None:
    """A route that a reload adds has its counters at 0 before its first request, with several workers too. What the
    removed route has counted stays."""
    async with origins() as (one, _), running(text(one, tmp_path), workers) as gate:
        doubts = 'oncegate_doubts_total{reason="lost",route="%s"}'

        async def samples() -> dict[str, str]:
            page = (await ask(gate.admin_port, "GET", "/metrics", body=b"")).body.decode()
            return dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))  # type: ignore[misc]

        before = await samples()
        assert before[doubts % "all"] == "0.0"
        assert doubts % "added" not in before
        await gate.ask("k")
        added = "  - {name: added, match: {path: /added/**}, upstream: origin}"
        await gate.take_up(text(one, tmp_path, routes=added).replace("name: all", "name: others"))
        found = await samples()
        assert found[doubts % "added"] == found[doubts % "others"] == found[doubts % "all"] == "0.0"
        assert found['oncegate_duplicates_total{kind="replayed",route="added"}'] == "0.0"
        assert found['oncegate_requests_total{route="all",verdict="forward"}'] == "1.0"
        await gate.ask("other", "/added/x")
        await gate.ask("other", "/added/x")
        found = await samples()
        assert found['oncegate_duplicates_total{kind="replayed",route="added"}'] == "1.0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("upstream: origin, guard: false", "upstream: nowhere, guard: false"), "nowhere"),
        (("service: test", "service: test\nnot_a_field: 1"), "not_a_field"),
        (("service: test", "service: another"), "identity-changed: `service`"),
        (("service: test", "service: test\nprefix: 'other:'"), "identity-changed: `prefix`"),
        (("service: test", "service: test\nsecret: a-secret-of-thirty-two-characters!"), "identity-changed: `secret`"),
        (("match: {path: /**}", "match: {path: /**}, namespace: fresh"), "identity-changed: live keys"),
        (("service: test", "service: test\nlimits: {connections: 7}"), "`limits` is another"),
        (("keys.db", "other.db"), "`store` is another"),
        (("service: test", "service: test\nlog: {keys: full}"), "`log` is another"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_refused_changes_nothing(change: tuple[str, str], reason: str, tmp_path: Path) -> None:
    """A file with faults, or of other keys, or of another listener: the log says why, and the gate goes on as it
    was, with none of what else the file changes."""
    async with origins() as (one, other), running(text(one, tmp_path)) as gate:
        assert await gate.ask("before") == (201, b"one", "stored")
        assert reason in await gate.refuse(text(other, tmp_path).replace(*change))
        assert await gate.ask("before") == (201, b"one", "replayed")
        assert await gate.ask("after") == (201, b"one", "stored")
        gate.file.unlink()
        assert gate.process is not None
        gate.process.send_signal(signal.SIGHUP)
        await eventually(lambda: len(gate.said(NOT_TAKEN)) == 2, "a file that is gone is refused too", 10)
        assert "no such file" in str(gate.said(NOT_TAKEN)[-1]["reason"])


async def test_a_worker_that_is_started_again_goes_by_the_new_file(tmp_path: Path) -> None:
    """kill -9 of both workers after the file was read anew."""
    async with origins() as (one, other), running(text(one, tmp_path), 2) as gate:
        await gate.take_up(text(other, tmp_path))
        for line in gate.said("a worker serves"):
            os.kill(int(str(line["pid"])), signal.SIGKILL)
        await eventually(lambda: len(gate.said("a worker serves")) == 4, "two others serve", 20)
        assert [(await gate.ask(f"k{n}"))[1] for n in range(8)] == [b"other"] * 8


async def test_under_load_nobody_notices(workers: int, tmp_path: Path) -> None:
    """Ten files in a row while clients ask: every request is answered 201, each key by one upstream."""
    async with origins() as (one, other), running(text(one, tmp_path), workers) as gate:
        ends = asyncio.Event()
        seen: list[tuple[int, bytes, str | None]] = []

        async def asks(number: int) -> None:
            count = 0
            while not ends.is_set():
                count += 1
                seen.extend([await gate.ask(f"{number}-{count}") for _ in range(2)])

        load = [asyncio.create_task(asks(number)) for number in range(4)]
        for turn in range(10):
            await gate.take_up(text((other, one)[turn % 2], tmp_path))
        ends.set()
        await asyncio.gather(*load)
        assert {(status, label) for status, _, label in seen} == {(201, "stored"), (201, "replayed")}
        assert set(one.effects.values()) | set(other.effects.values()) == {1}
        assert not one.effects.keys() & other.effects.keys()
        assert sum(one.effects.values()) + sum(other.effects.values()) == len(seen) // 2


async def test_over_the_admin_listener(workers: int, tmp_path: Path) -> None:
    """POST /reload does as SIGHUP does, and says in its answer what came of it."""
    async with origins() as (one, other), running(text(one, tmp_path), workers) as gate:
        gate.file.write_text(text(other, tmp_path))
        assert await gate.told_to_reload() == (200, {"reloaded": True})
        assert [(await gate.ask(f"k{n}"))[1] for n in range(4)] == [b"other"] * 4
        gate.file.write_text(text(one, tmp_path).replace("service: test", "service: another"))
        status, problem = await gate.told_to_reload()
        assert (status, problem["type"]) == (422, "urn:oncegate:problem:not-taken-up")
        assert "identity-changed: `service`" in problem["detail"]
        await eventually(lambda: len(gate.said(NOT_TAKEN)) == 1, "the log says it too", 5)
        assert (await gate.ask("after"))[1] == b"other"

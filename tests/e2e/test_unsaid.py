"""An answer that the gate fails to say, for a fault of its own: a real gate with such a fault (speechless.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from tests.edge.stand import SOON, drain, eventually, keyed
from tests.harness import Client, Exchange, GateProcess, Origin, ask, configuration

UNSAID = "an answer could not be said; its client was cut off"


class Speechless(GateProcess):
    module = "tests.e2e.speechless"


@pytest.mark.parametrize("size", [4, 24 << 20], ids=["an answer that is kept", "one that is not"])
async def test_a_client_that_cannot_be_answered_is_cut_off(origin: Origin, tmp_path: Path, size: int) -> None:
    """At once, and so is whoever waits for the same answer; what he asked behind it is not begun. The log has it as an
    alarm. What was settled stands: a gate without the fault tells it, and nothing runs again."""
    let_go, over = asyncio.Event(), asyncio.Event()

    async def teapot(exchange: Exchange) -> None:
        if exchange.request.key != b"k":
            await exchange.respond(201, b"well")
            return
        await let_go.wait()
        with contextlib.suppress(ConnectionError):
            await exchange.respond(418, b"x" * size)
        over.set()

    origin.answer = teapot
    text = configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db")
    gate = await Speechless(text).start()
    try:
        clients = [await Client.connect(gate.port) for _ in range(2)]
        for client in clients:
            await client.send(keyed("k") + keyed("behind"))
            await origin.until(1)
        let_go.set()
        assert await drain(clients[0]) == b""
        if size == 4:
            assert await drain(clients[1]) == b""
        else:
            assert (await clients[1].read()).problem == "response-not-kept"
        for client in clients:
            client.close()

        def cut() -> list[dict[str, object]]:
            return [json.loads(line) for line in gate.log.read_text().splitlines() if UNSAID in line]

        await eventually(lambda: len(cut()) == (2 if size == 4 else 1), "the log has each")
        assert {(line["level"], line["error"]) for line in cut()} == {("alarm", "RuntimeError('a fault of the gate')")}
        async with asyncio.timeout(SOON):
            await over.wait()  # nobody reads the rest, so the service's connection has ended
        assert (await ask(gate.port, key="other")).status == 201
        page = (await ask(gate.admin_port, "GET", "/metrics", body=b"")).body.decode()
        assert 'oncegate_in_flight{route="all"} 0.0' in page
        assert await gate.terminate() == 0, "nothing is left that a drain would wait for"
    finally:
        gate.close()
    gate = await GateProcess(text).start()
    try:
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.problem) == ((418, None) if size == 4 else (409, "response-not-kept"))
        assert origin.effects[b"k"] == 1
    finally:
        gate.close()

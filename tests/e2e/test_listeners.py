"""A gate on several listeners at once, as one process and as several: TCP, TLS, and a Unix socket."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest
import trustme

from tests.e2e.crowd import eventually
from tests.edge.stand import keyed
from tests.harness import Client, GateProcess, Origin, configuration, free_port

ARGUMENTS = {"one process": (), "two workers": ("--workers", "2")}


class Listening:
    """A configuration with three listeners, and clients of each."""

    def __init__(self, origin: Origin, folder: Path) -> None:
        ca = trustme.CA()
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "gate.pem")
        self.context = ssl.create_default_context()
        ca.configure_trust(self.context)
        self.socket, self.secure = folder / "gate.sock", free_port()
        self.text = configuration(
            origin.url,
            store=f"sqlite:///{folder}/keys.db",
            listen=f"['127.0.0.1:1', 'unix:{self.socket}', "
            f"{{address: '127.0.0.1:{self.secure}', tls: {{cert: {folder / 'gate.pem'}}}}}]",
        )

    async def client(self, gate: GateProcess, way: str) -> Client:
        if way == "socket":
            return Client(*await asyncio.open_unix_connection(self.socket))
        port, tls = (self.secure, self.context) if way == "TLS" else (gate.port, None)
        return Client(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
async def test_one_gate_on_three_listeners(origin: Origin, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A key is one key, whichever way a request comes in; `--listen` moves the first listener only. On a stop what is
    in flight is answered, and the socket goes."""
    listening = Listening(origin, tmp_path)
    gate = GateProcess(listening.text, arguments=arguments)
    await gate.start()
    try:
        replayed = []
        for way in ("plain", "socket", "TLS") * 4:
            client = await listening.client(gate, way)
            await client.send(keyed("k"))
            answer = await client.read()
            assert answer.status == 201, way
            replayed.append(answer.replayed)
            client.close()
        assert replayed == [False] + [True] * 11
        assert len(origin.requests) == 1

        held = asyncio.Event()
        answer_at_once = origin.answer

        async def later(exchange: object) -> None:
            await held.wait()
            await answer_at_once(exchange)  # type: ignore[arg-type]

        origin.answer = later
        clients = [await listening.client(gate, way) for way in ("plain", "socket", "TLS")]
        for number, client in enumerate(clients):
            await client.send(keyed(f"late-{number}"))
        await origin.until(4)
        stopping = asyncio.ensure_future(gate.terminate())
        await asyncio.sleep(0.3)
        held.set()
        for client in clients:
            assert (await client.read()).status == 201
            client.close()
        assert await stopping == 0
        assert f"127.0.0.1:{gate.port}, unix:{listening.socket}, 127.0.0.1:{listening.secure}" in gate.log.read_text()
        assert not listening.socket.exists()
    finally:
        gate.close()


async def test_a_socket_outlives_the_worker_that_it_served(origin: Origin, tmp_path: Path) -> None:
    """Whoever connects while one is started again waits for it, or is served by the other. A gate that was killed is
    followed by one that takes over what it left."""
    listening = Listening(origin, tmp_path)
    gate = GateProcess(listening.text, arguments=ARGUMENTS["two workers"])
    await gate.start()
    try:
        for _ in range(2):
            for worker in children(gate):
                os.kill(worker, 9)
            client = await listening.client(gate, "socket")
            await client.send(keyed("k"))
            assert (await client.read()).status == 201
            client.close()

            async def workers() -> int:
                return len(children(gate))

            await eventually(workers, lambda count: count == 2)
        assert origin.effects[b"k"] == 1
        gate.kill()
        assert listening.socket.exists()
        await gate.start()
        client = await listening.client(gate, "socket")
        await client.send(keyed("k"))
        assert (await client.read()).replayed
        client.close()
        assert await gate.terminate() == 0
        assert not listening.socket.exists()
    finally:
        gate.close()


def children(gate: GateProcess) -> list[int]:
    assert gate.process is not None
    pid = gate.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

"""Unix sockets: to listen on, and services behind them."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.edge import unix
from tests.edge.stand import GET, edge, keyed
from tests.harness import Client, Exchange, Origin, ask, configuration


class Behind(Origin):
    """An origin behind a Unix socket."""

    async def listen(self, path: Path) -> Behind:
        self._server = await asyncio.start_unix_server(self._serve, path, limit=1 << 24)
        return self


async def connect(path: Path) -> Client:
    return Client(*await asyncio.open_unix_connection(path, limit=1 << 24))


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    origin = await Behind().listen(tmp_path / "service.sock")
    yield origin
    await origin.stop()


async def test_clients_come_in_by_a_socket_and_by_addresses_at_once(origin: Origin, tmp_path: Path) -> None:
    """One gate, whichever way a duplicate takes. The socket has the permissions that the file says."""
    path = tmp_path / "gate.sock"
    listen = f"['127.0.0.1:0', '127.0.0.1:0', {{address: 'unix:{path}', mode: '0600'}}]"
    async with edge(configuration(origin.url, listen=listen)) as gate:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["gate.sock"]
        client = await connect(path)
        await client.send(keyed("k", b'{"amount":1}', fields=b"Content-Type: application/json\r\n"))
        assert (await client.read()).replayed is False
        client.close()
        (_, first), (_, second), (name, _) = gate.running.app.addresses
        assert name == f"unix:{path}"
        assert first != second
        for port in (first, second):
            again = Client(*await asyncio.open_connection("127.0.0.1", port))
            await again.send(keyed("k", b'{"amount":1}', fields=b"Content-Type: application/json\r\n"))
            assert (await again.read()).replayed is True
            again.close()
        assert len(origin.requests) == 1
        assert origin.requests[0].values(b"x-forwarded-for") == []
    assert not path.exists()


async def test_what_a_dead_gate_left_behind_is_replaced(origin: Origin, tmp_path: Path) -> None:
    """Nobody listens on it any more."""
    path = tmp_path / "gate.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with edge(configuration(origin.url, listen=f"unix:{path}")):
        client = await connect(path)
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201
        client.close()


async def test_a_socket_on_which_somebody_listens_is_left_alone(origin: Origin, tmp_path: Path) -> None:
    """The second gate does not start, and the first goes on."""
    path = tmp_path / "gate.sock"
    async with edge(configuration(origin.url, listen=f"unix:{path}")):
        with pytest.raises(OSError, match=f"bind on unix:{path}: address already in use"):
            async with edge(configuration(origin.url, listen=f"unix:{path}")):
                pass
        client = await connect(path)
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201
        client.close()
    assert os.listdir(tmp_path) == []


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file, a folder, a link to one."""
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.write_text("mine")
    folder.mkdir()
    link.symlink_to(file)
    for path in (file, folder, link):
        with pytest.raises(OSError, match="what is there is no socket"):
            unix.bind(str(path), 0o660)
    assert file.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link"]


async def test_at_its_end_a_gate_removes_only_its_own(origin: Origin, tmp_path: Path) -> None:
    """Another's that has taken its place stays."""
    path = tmp_path / "gate.sock"
    async with edge(configuration(origin.url, listen=f"unix:{path}")):
        path.unlink()
        other = unix.bind(str(path), 0o660)
    assert path.exists()
    other.close()


async def test_a_service_behind_a_socket(behind: Behind, tmp_path: Path) -> None:
    """Guarded, replayed and passed through; Host is the client's own."""
    async with edge(configuration(f"'unix:{tmp_path / 'service.sock'}'")) as gate:
        for replayed in (False, True):
            answer = await ask(gate.port, key="k")
            assert (answer.status, answer.replayed) == (201, replayed)
        assert (await ask(gate.port, "GET", "/open/x", body=b"")).status == 201
        assert [received.values(b"host") for received in behind.requests] == [[b"gate.test"], [b"gate.test"]]
        client = await gate.connect()
        await client.send(b"GET /open/old HTTP/1.0\r\n\r\n")
        assert (await client.read(method=b"GET")).status == 201
        assert behind.requests[-1].values(b"host") == [b"localhost"]


async def test_a_service_whose_socket_is_not_there_was_sent_nothing(tmp_path: Path) -> None:
    """The key is free, and the log says which socket."""
    async with edge(configuration(f"'unix:{tmp_path / 'none.sock'}'")) as gate:
        answer = await ask(gate.port, key="k")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        assert any(f"unix:{tmp_path / 'none.sock'}" in str(line.get("detail")) for line in gate.running.lines)


async def test_an_answer_through_a_socket_that_breaks_is_in_doubt(behind: Behind, tmp_path: Path) -> None:
    """What holds for TCP holds here."""

    async def breaks(exchange: Exchange) -> None:
        exchange.reset()

    behind.answer = breaks
    async with edge(configuration(f"'unix:{tmp_path / 'service.sock'}'")) as gate:
        answer = await ask(gate.port, key="k")
        assert (answer.status, answer.problem) == (502, "upstream-lost")

"""Certificates that are renewed while the gate runs: files written anew; SIGHUP or POST /reload to real processes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.e2e.test_reload import Gate, running, workers
from tests.edge.stand import keyed
from tests.harness import Client, Exchange, Origin, configuration, free_port

__all__ = ["workers"]


class Files:
    """A listener's certificate, its key and the authority of its clients; and of a service the authority, and what
    the gate shows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.ca, self.clients = trustme.CA(), trustme.CA()
        self.renew()
        self.ask_for(self.clients)

    def path(self, name: str) -> Path:
        return self.folder / name

    def renew(self, *, key: bool = True) -> bytes:
        """Another certificate for the listener, in DER; of another key than the file of keys has, if not `key`."""
        made = self.ca.issue_cert("127.0.0.1")
        made.cert_chain_pems[0].write_to_path(self.path("gate.crt"))
        if key:
            made.private_key_pem.write_to_path(self.path("gate.key"))
        return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    def ask_for(self, ca: trustme.CA) -> None:
        """Clients of this authority and of no other."""
        ca.cert_pem.write_to_path(self.path("clients.pem"))

    def text(self, origin: Origin, *, asks: bool = False, **more: str) -> str:
        client_ca = f", client_ca: {self.path('clients.pem')}" if asks else ""
        tls = f"{{cert: {self.path('gate.crt')}, key: {self.path('gate.key')}{client_ca}}}"
        return configuration(
            more.pop("url", origin.url),
            store=f"sqlite:///{self.folder}/keys.db",
            listen=f"['127.0.0.1:1', {{address: '127.0.0.1:{self.port}', tls: {tls}}}]",
            **more,
        )

    async def connect(self, by: trustme.CA | None = None) -> Client:
        """A client that has made its handshake, with a certificate of `by`."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if by is not None:
            by.issue_cert("client.test").configure_cert(context)
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, ssl=context))

    async def shown(self) -> set[bytes]:
        """The certificates that whoever comes now is shown: by every worker, as far as eight connections meet them."""
        seen = set()
        for _ in range(8):
            client = await self.connect()
            seen.add(client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            await leave(client)
        return seen


async def leave(client: Client) -> None:
    """At once, and be gone."""
    client.writer.transport.abort()
    with contextlib.suppress(OSError):
        await client.writer.wait_closed()


async def told(gate: Gate) -> None:
    """POST /reload."""
    assert await gate.told_to_reload() == (200, {"reloaded": True})


async def test_a_renewed_certificate_is_shown_to_whoever_comes_next(
    origin: Origin, tmp_path: Path, workers: int
) -> None:
    """Whoever was there before goes on: what is in flight on his connection is answered, and the next request too."""
    files = Files(tmp_path)
    first = files.renew()
    at_once, let_go = origin.answer, asyncio.Event()

    async def later(exchange: Exchange) -> None:
        await let_go.wait()
        await at_once(exchange)

    async with running(files.text(origin), workers) as gate:
        assert await files.shown() == {first}
        clients = [await files.connect() for _ in range(4)]
        origin.answer = later
        for number, client in enumerate(clients):
            await client.send(keyed(f"slow-{number}"))
        await origin.until(4)
        renewed = files.renew()
        await gate.take_up(gate.file.read_text())
        assert await files.shown() == {renewed}
        again = files.renew()
        await told(gate)
        assert await files.shown() == {again}
        let_go.set()
        for number, client in enumerate(clients):
            assert (await client.read()).status == 201
            await client.send(keyed(f"slow-{number}"))
            assert (await client.read()).replayed
            await leave(client)
        assert set(origin.effects.values()) == {1}


async def test_a_file_that_is_not_good_changes_nothing(origin: Origin, tmp_path: Path, workers: int) -> None:
    """The log, and the answer to POST /reload, say which file and why. Once it is mended it is taken up."""
    files = Files(tmp_path)
    shown = files.renew()
    cert, key, clients = files.path("gate.crt"), files.path("gate.key"), files.path("clients.pem")

    def half() -> None:
        cert.write_text(cert.read_text()[:200])

    faults: list[tuple[Callable[[], object], Path, str]] = [
        (cert.unlink, cert, "no such file"),
        (key.unlink, key, "no such file"),
        (lambda: files.renew(key=False), key, "KEY_VALUES_MISMATCH"),
        (lambda: cert.write_text("renewed"), cert, "PEM"),
        (half, cert, "PEM"),
        (lambda: clients.write_text(""), clients, "holds no certificate"),
        (clients.unlink, clients, "no such file"),
    ]
    text = files.text(origin, asks=True).replace("clients.pem", "clients.pem, clients: optional")
    async with running(text, workers) as gate:
        for spoil, bad, why in faults if workers == 1 else faults[2:3]:
            files.renew()
            spoil()
            reason = await gate.refuse(text)
            status, problem = await gate.told_to_reload()
            assert (status, problem["type"]) == (422, "urn:oncegate:problem:not-taken-up")
            for said in (reason, problem["detail"]):
                assert "listen[1].tls" in said
                assert str(bad) in said
                assert why in said
            assert await files.shown() == {shown}
            mended = files.renew()
            files.ask_for(files.clients)
            await told(gate)
            assert await files.shown() == {mended}
            shown = mended


async def test_clients_of_an_authority_that_is_gone_are_let_in_no_more(origin: Origin, tmp_path: Path) -> None:
    """The new authority's are. Who is in stays in."""
    files, other = Files(tmp_path), trustme.CA()
    async with running(files.text(origin, asks=True)) as gate:
        inside = await files.connect(files.clients)
        await inside.send(keyed("a"))
        assert (await inside.read()).status == 201
        files.ask_for(other)
        await told(gate)
        for _ in range(4):
            outside = await files.connect(files.clients)  # TLS 1.3: it is told after its own side has finished
            await outside.send(keyed("b"))
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await outside.read()
            await leave(outside)
        fresh = await files.connect(other)
        for client, status in ((inside, 201), (fresh, 422)):  # another certificate is another credential
            await client.send(keyed("a"))
            assert (await client.read()).status == status
            await leave(client)
        assert origin.effects == {b"a": 1}


class Secure(Origin):
    """A service over TLS that asks who the gate is."""

    def __init__(self, ca: trustme.CA, asks: trustme.CA) -> None:
        super().__init__()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.maximum_version = ssl.TLSVersion.TLSv1_2  # where a refusal is a part of the handshake
        self.context.verify_mode = ssl.CERT_REQUIRED
        ca.issue_cert("127.0.0.1").configure_cert(self.context)
        asks.configure_trust(self.context)

    async def start(self, port: int = 0) -> Secure:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self.context, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super()._serve(reader, writer)
        finally:
            writer.transport.abort()  # a farewell over TLS would outlive the test


async def test_a_service_whose_authority_changed_is_reached_after_a_reload(tmp_path: Path) -> None:
    """The gate's own certificate for it is read anew too; a file that is not good changes nothing."""
    ca, gates = trustme.CA(), trustme.CA()
    files, service = Files(tmp_path), await Secure(ca, gates).start()

    def shown_by_gate(by: trustme.CA) -> None:
        by.issue_cert("gate.test").private_key_and_cert_chain_pem.write_to_path(files.path("own.pem"))

    trustme.CA().cert_pem.write_to_path(files.path("service.pem"))
    shown_by_gate(trustme.CA())
    tls = f"tls: {{ca: {files.path('service.pem')}, cert: {files.path('own.pem')}}}"
    text = files.text(service, url=f"https://127.0.0.1:{service.port}", upstream=tls)
    try:
        async with running(text, 2) as gate:
            assert [(await gate.ask("k"))[0] for _ in range(2)] == [502, 502]
            ca.cert_pem.write_to_path(files.path("service.pem"))
            await gate.take_up(text)
            assert [(await gate.ask("k"))[0] for _ in range(2)] == [502, 502], "it does not know the gate yet"
            files.path("own.pem").write_text("renewed")
            assert str(files.path("own.pem")) in await gate.refuse(text)
            shown_by_gate(gates)
            assert (await gate.told_to_reload())[0] == 200
            assert [(await gate.ask("k"))[::2] for _ in range(2)] == [(201, "stored"), (201, "replayed")]
            assert service.effects == {b"k": 1}
    finally:
        await service.stop()

"""A service that asks the gate for a certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from gateway.settings import Faults, load_text
from tests.edge.stand import edge
from tests.harness import Origin, ask, configuration


class Asking(Origin):
    """An origin over TLS, for whoever shows a certificate that `ca` has signed."""

    async def listen(self, ca: trustme.CA) -> Asking:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Of 1.2, where who is refused hears so within the handshake.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        ca.issue_cert("127.0.0.1").configure_cert(context)
        ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, by in (("gate", ca), ("stranger", trustme.CA())):
        certificate = by.issue_cert("gate.test")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    origin = await Asking().listen(ca)
    yield origin
    await origin.stop()


def text(asking: Asking, folder: Path, tls: str = "") -> str:
    """A gate before it."""
    own = f", {tls.format(folder=folder)}" if tls else ""
    return configuration(f"https://127.0.0.1:{asking.port}", upstream=f"tls: {{ca: {folder / 'ca.pem'}{own}}}")


@pytest.mark.parametrize("tls", ["cert: {folder}/gate.crt, key: {folder}/gate.key", "cert: {folder}/gate.pem"])
async def test_the_gate_shows_its_certificate(asking: Asking, tmp_path: Path, tls: str) -> None:
    """From two files or one."""
    async with edge(text(asking, tmp_path, tls)) as gate:
        assert (await ask(gate.port, key="k")).status == 201
        assert (await ask(gate.port, key="k")).replayed


@pytest.mark.parametrize("tls", ["", "cert: {folder}/stranger.pem"], ids=["none", "a stranger's"])
async def test_without_a_good_one_nothing_is_sent(asking: Asking, tmp_path: Path, tls: str) -> None:
    """The handshake fails, so the key is free."""
    async with edge(text(asking, tmp_path, tls)) as gate:
        answer = await ask(gate.port, key="k")
        assert (answer.status, answer.problem) == (502, "upstream-unreachable")
        assert answer.get("Idempotency-Outcome") == "no-effect"
        assert asking.requests == []


@pytest.mark.parametrize(
    ("tls", "fault"),
    [
        ("key: {folder}/gate.key", "tls.key: is the key of a certificate; write cert: FILE beside it"),
        (
            "cert: {folder}/none",
            "tls.cert: there is no such file: .*/none; use PEM files with a certificate and its key",
        ),
        ("cert: {folder}/gate.crt", "tls.cert: no certificate with its key can be read"),
        ("cert: {folder}/gate.crt, key: {folder}/stranger.key", "tls.cert: no certificate with its key can be read"),
    ],
    ids=["a key alone", "no file", "no key", "another's key"],
)
async def test_files_that_are_no_pair_are_a_fault_of_the_file(
    asking: Asking, tmp_path: Path, tls: str, fault: str
) -> None:
    """Before a port is bound."""
    with pytest.raises(Faults, match="upstreams.origin." + fault):
        load_text(text(asking, tmp_path, tls), name="test.yaml", environ={})

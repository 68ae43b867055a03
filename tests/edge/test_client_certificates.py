"""Certificates of clients as a scope and as a credential, over real TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from tests.edge.stand import Edge, edge
from tests.harness import Client, Origin, Response, configuration, request


class Certified:
    """A gate with two listeners: one asks clients for certificates, and takes who has none; one has no TLS."""

    def __init__(self, stand: Edge, ca: trustme.CA) -> None:
        self.stand = stand
        self.ca = ca

    @property
    def address(self) -> tuple[str, int]:
        """The address of the listener with TLS: `localhost` may be an IPv6 address first."""
        host, port = self.stand.running.app.addresses[1][:2]
        return host, port

    def context(self, certificate: trustme.LeafCert | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context

    async def ask(self, certificate: trustme.LeafCert | None, key: str, target: str, times: int = 1) -> Response:
        """The last of some requests on one connection."""
        streams = await asyncio.open_connection(
            *self.address, ssl=self.context(certificate), server_hostname="127.0.0.1"
        )
        client = Client(*streams)
        try:
            for _ in range(times):
                await client.send(request(target=target, key=key, body=b"{}"))
                told = await client.read()
            return told
        finally:
            client.close()
            await streams[1].wait_closed()


@pytest.fixture
async def certified(origin: Origin, tmp_path: Path) -> AsyncIterator[Certified]:
    ca = trustme.CA()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "gate.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    routes = "  - {name: a, match: {path: /scoped}, upstream: origin, namespace: s, scope: [client_cert], bind: []}"
    tls = f"{{cert: {tmp_path}/gate.pem, client_ca: {tmp_path}/ca.pem, clients: optional}}"
    listen = f"listen: ['127.0.0.1:0', {{address: 'localhost:0', tls: {tls}}}]"
    text = configuration(origin.url, routes=routes).replace("listen: 127.0.0.1:0", listen, 1)
    async with edge(text) as stand:
        yield Certified(stand, ca)


async def test_each_certificate_has_keys_of_its_own(certified: Certified, origin: Origin) -> None:
    """Told by the whole of it: another one for the same name is another. Without one there is no scope, and so it is on
    a connection without TLS."""
    ca = certified.ca
    alice, renewed, bob = ca.issue_cert("alice"), ca.issue_cert("alice"), ca.issue_cert("bob")
    for certificate in (alice, renewed, bob):
        assert (await certified.ask(certificate, "k", "/scoped")).label == "stored"
        assert (await certified.ask(certificate, "k", "/scoped", times=3)).replayed
    assert origin.effects[b"k"] == 3
    none = await certified.ask(None, "k", "/scoped")
    assert (none.status, none.problem) == (400, "scope-missing")
    assert b"shows no client certificate" in none.body
    plain = await certified.stand.connect()
    await plain.send(request(target="/scoped", key="k"))
    assert (await plain.read()).problem == "scope-missing"
    assert origin.effects[b"k"] == 3


async def test_a_certificate_is_a_credential_where_nothing_else_is_said(certified: Certified, origin: Origin) -> None:
    """One of the default set: another one, or none, is not given the answer."""
    alice, bob = certified.ca.issue_cert("alice"), certified.ca.issue_cert("bob")
    assert (await certified.ask(alice, "k", "/orders")).label == "stored"
    assert (await certified.ask(alice, "k", "/orders")).replayed
    for other in (bob, None):
        refused = await certified.ask(other, "k", "/orders")
        assert (refused.status, refused.problem) == (422, "credentials-differ")
    assert origin.effects[b"k"] == 1

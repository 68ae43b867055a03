"""What is typed beside a file, or in place of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from gateway.core.policy import Match, Policy, Route
from gateway.settings import (
    Address,
    Faults,
    Listener,
    Overrides,
    UnixPath,
    UpstreamSettings,
    plain,
)
from tests.settings.files import KUBERNETES, ONE_GATEWAY, WHOLE, read


def test_the_command_line_overrides_the_file() -> None:
    """What is typed is checked like what is written, and what was written is still checked."""
    text = WHOLE + "listen: 127.0.0.1:1\nadmin: {listen: 127.0.0.1:2}\nservice: a\n"
    settings = read(text, listen=":3", admin=":4", store="memory://", service="b")
    assert ([each.address for each in settings.listen], settings.admin) == (
        [Address("0.0.0.0", 3)],
        Address("0.0.0.0", 4),
    )
    assert (settings.store, settings.service) == ("memory://", "b")
    with pytest.raises(Faults) as raised:
        read(WHOLE + "listen: x\n", listen="y", store="z://", service="a b")
    assert str(raised.value).splitlines() == [
        "--service: `a b` is not a name: up to 64 letters, digits, `.`, `_` and `-`, a letter or digit first; use a-b",
        "--listen: the port is missing; use y:8080",
        "--store: no store is called z://; use memory://, sqlite:/// or redis://",
        "gate.yaml:6: listen: the port is missing; use x:8080",
    ]


def test_a_port_alone_is_refused_on_the_command_line() -> None:
    """--listen and --admin refuse a port without an address, with both spellings."""
    with pytest.raises(Faults) as raised:
        read(WHOLE, listen="18080", admin="18081")
    assert str(raised.value).splitlines() == [
        f"--{option}: {port} names a port and no interface. Use 127.0.0.1:{port} for this host only, or 0.0.0.0:{port} "
        "for every interface"
        for option, port in (("listen", 18080), ("admin", 18081))
    ]
    with pytest.raises(Faults, match=r"--upstream: the scheme is missing; use http://127\.0\.0\.1:9000"):
        plain("9000", environ={})


def test_without_a_file_every_path_is_guarded() -> None:
    """`oncegate run --upstream URL`: one route, the defaults, a SQLite file in the current directory."""
    settings = plain("http://127.0.0.1:9000", environ={})
    assert settings.routes.routes == (Route("all", "upstream", Match("/**"), Policy()),)
    assert settings.upstreams == {"upstream": UpstreamSettings("upstream", "127.0.0.1", 9000)}
    assert (settings.store, settings.service, settings.secret) == ("sqlite:///oncegate.db", "default", b"")
    assert settings.listen == (Listener(Address("127.0.0.1", 8080)),)


def test_without_a_file_faults_name_the_option() -> None:
    """There is no path and no line, so the option is the place."""
    with pytest.raises(Faults) as raised:
        plain("127.0.0.1:9000", environ=KUBERNETES, overrides=Overrides(listen="x"))
    assert str(raised.value).splitlines() == [
        "--upstream: the scheme is missing; use http://127.0.0.1:9000",
        "--listen: the port is missing; use x:8080",
        f"--store: {ONE_GATEWAY}",
    ]
    with pytest.raises(Faults, match="--service: is missing, and a shared store needs it"):
        plain("http://a", environ={}, overrides=Overrides(store="redis://h"))


def test_the_command_line_moves_the_first_listener_and_nothing_else(tmp_path: Path) -> None:
    """Its TLS stays, and so do the others: nobody who passes --listen is served plainly for it."""
    cert = tmp_path / "gate.pem"
    trustme.CA().issue_cert("gate.test").private_key_and_cert_chain_pem.write_to_path(cert)
    text = WHOLE + f"listen: [{{address: ':443', tls: {{cert: {cert}}}}}, 'unix:/run/gate.sock']\n"
    for typed, moved in ((":8443", Address("0.0.0.0", 8443)), ("unix:/run/a", UnixPath("/run/a"))):
        first, second = read(text, listen=typed).listen
        assert first.address == moved
        assert first.tls is not None
        assert first.tls.cert == str(cert)
        assert (second.address, second.tls, second.mode) == (UnixPath("/run/gate.sock"), None, 0o660)

"""`trusted_proxies`: whose word is taken for where a request came from, and what becomes of everybody else's."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from gateway.core.fields import fields_of
from gateway.edge.proxies import Proxies
from tests.edge.stand import edge
from tests.harness import Origin, ask, configuration

HEARSAY = [
    ("X-Forwarded-For", "192.0.2.1, 10.0.0.9"),
    ("X-Forwarded-Proto", "https"),
    ("x-forwarded-host", "shop.example"),
    ("X-Forwarded-Port", "443"),
    ("X-Forwarded-Prefix", "/shop"),
    ("Forwarded", "for=192.0.2.1;proto=https"),
    ("X-Real-IP", "192.0.2.1"),
]
NAMES = tuple(name.lower().encode() for name, _ in HEARSAY)

TRUSTS_US = "trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]"
TRUSTS_OTHERS = "trusted_proxies: [10.0.0.0/8, '::1']"
TRUSTS_NOBODY = "trusted_proxies: []"


@pytest.mark.parametrize(("target", "key"), [("/open/x", None), ("/orders", "k")], ids=["unguarded", "guarded"])
@pytest.mark.parametrize("top", [TRUSTS_OTHERS, TRUSTS_NOBODY])
async def test_what_somebody_else_says_is_replaced(origin: Origin, top: str, target: str, key: str | None) -> None:
    """For, Proto and Host are the gate's own, the others are gone; the log names who is connected."""
    async with edge(configuration(origin.url, top=top)) as gate:
        assert (await ask(gate.port, target=target, key=key, fields=HEARSAY)).status == 201
        (received,) = origin.requests
        assert {name: received.values(name) for name in NAMES} == {
            b"x-forwarded-for": [b"127.0.0.1"],
            b"x-forwarded-proto": [b"http"],
            b"x-forwarded-host": [b"gate.test"],
            b"x-forwarded-port": [],
            b"x-forwarded-prefix": [],
            b"forwarded": [],
            b"x-real-ip": [],
        }


@pytest.mark.parametrize(("target", "key"), [("/open/x", None), ("/orders", "k")], ids=["unguarded", "guarded"])
@pytest.mark.parametrize("top", [TRUSTS_US, ""], ids=["trusted", "not set"])
async def test_what_a_trusted_proxy_says_goes_on(origin: Origin, top: str, target: str, key: str | None) -> None:
    """With whoever is connected added to the chain: the proxy, not the client that it speaks of. So it is, from
    everybody, where the field is not set."""
    async with edge(configuration(origin.url, top=top)) as gate:
        assert (await ask(gate.port, target=target, key=key, fields=HEARSAY)).status == 201
        (received,) = origin.requests
        assert {name: received.values(name) for name in NAMES} == {
            name.lower().encode(): [value.encode() + (b", 127.0.0.1" if name == "X-Forwarded-For" else b"")]
            for name, value in HEARSAY
        }


@pytest.mark.parametrize(("top", "peer"), [(TRUSTS_US, "192.0.2.1"), (TRUSTS_OTHERS, "127.0.0.1"), ("", "127.0.0.1")])
async def test_the_log_names_the_client_that_is_believed(origin: Origin, top: str, peer: str) -> None:
    """The first address from the right that is no trusted proxy's; whoever is connected, where nobody is trusted."""
    async with edge(configuration(origin.url, top=top)) as gate:
        await ask(gate.port, key="k", fields=HEARSAY)
        (line,) = [line for line in gate.running.lines if line.get("route") == "all"]
        assert line["peer"] == peer


async def test_no_rule_of_a_route_goes_by_what_is_not_believed(origin: Origin) -> None:
    """A scope that a proxy sets is missing where somebody else sets it."""
    text = configuration(origin.url, policy="scope: [header:X-Forwarded-Host]", top=TRUSTS_OTHERS)
    async with edge(text) as gate:
        assert (await ask(gate.port, key="k", fields=HEARSAY)).problem == "scope-missing"
        assert origin.requests == []


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["10.0.0.3, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),  # what stands left of it the client may have written
        (["192.0.2.1", "192.0.2.2, 10.0.0.2"], "192.0.2.2"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["2001:db8::1, ::ffff:10.0.0.2"], "2001:db8::1"),
        (["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
        (["unknown"], "10.0.0.1"),
        ([""], "10.0.0.1"),
        ([], "10.0.0.1"),
    ],
)
def test_who_is_taken_for_the_client(chain: list[str], client: str) -> None:
    """From the right, past every trusted address, as far as the chain can be read."""
    proxies = Proxies([ip_network("10.0.0.0/8")])
    fields = fields_of([(b"X-Forwarded-For", value.encode()) for value in chain])
    assert proxies.client("10.0.0.1", fields) == client


def test_who_is_trusted() -> None:
    """By address, of either family, in either notation; nobody without one."""
    proxies = Proxies([ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")])
    trusted = [peer for peer in ("10.1.2.3", "::ffff:10.0.0.1", "2001:db8::1", "11.0.0.1", "2001:db9::1", "")
               if proxies.trusts(peer)]  # fmt: skip
    assert trusted == ["10.1.2.3", "::ffff:10.0.0.1", "2001:db8::1"]

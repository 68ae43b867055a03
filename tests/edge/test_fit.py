"""A route whose `bind` does not fit what its clients send is said so: once in the log, and counted for each request."""

from __future__ import annotations

import pytest

from tests.edge.stand import edge
from tests.harness import Origin, ask, configuration

SIGV4 = ("Authorization", "AWS4-HMAC-SHA256 Credential=AKID/20260101/eu/execute-api/aws4_request, Signature=0a")
SIGNED = [("Signature-Input", 'sig=("@method");created=1'), ("Signature", "sig=:AA==:")]

#: What a route says, what its clients send, and what is counted of it.
UNFIT = [
    ("", [SIGV4], "AWS SigV4"),
    ("", [("authorization", 'digest username="u", nonce="n"')], "Digest"),
    ("", [("Authorization", 'OAuth oauth_timestamp="1"')], "OAuth 1.0"),
    ("", [("Authorization", 'Signature keyId="k",signature="x"')], "Signature"),
    ("scope: ['header:Authorization']", [SIGV4], "AWS SigV4"),
    ("bind: [default, 'header:DPoP']", [("Authorization", "DPoP token"), ("DPoP", "proof")], "DPoP"),
    ("fingerprint: {headers: [Signature-Input]}, bind: ['header:X-Client']", [*SIGNED, ("X-Client", "c")],
     "Signature-Input"),
    ("", SIGNED, "unbound Signature"),
    ("", [*SIGNED, ("Cookie", "AWSALB=1; __cf_bm=2")], "unbound Signature"),
    ("ignore_cookies: [lb]", [*SIGNED, ("Cookie", "AWSALB=1; lb=2")], "unbound Signature"),
    ("bind: ['header:X-Client']", SIGNED, "unbound Signature"),
    ("bind: ['cookie:session']", SIGNED, "unbound Signature"),
    ("bind: [default, 'body:/client']", [SIGV4], "AWS SigV4"),
    ("bind: ['query:client', 'header:Signature']", SIGNED, "Signature"),
]  # fmt: skip

FIT = [
    ("", [("Authorization", "Bearer t")]),
    ("", [("Authorization", "DPoP token"), ("DPoP", "proof")]),
    ("", [("Authorization", "Bearer t"), *SIGNED]),
    ("bind: ['header:X-Client']", [SIGV4, ("X-Client", "c")]),
    ("bind: ['header:X-Client']", [*SIGNED, ("X-Client", "c")]),
    ("bind: []", [SIGV4]),
    ("bind: ['cookie:session']", [SIGV4, ("Cookie", "session=1")]),
    ("bind: ['cookie:session']", [*SIGNED, ("Cookie", "session=1")]),
    ("bind: ['cookie:SERVERID']", [*SIGNED, ("Cookie", "SERVERID=1")]),
    ("", [*SIGNED, ("Cookie", "AWSALB=1; session=1")]),
    *((f"bind: ['{source}']", [*SIGNED]) for source in ("body:/amount", "query:client", "path:1")),
    *((f"bind: ['{source}']", [SIGV4]) for source in ("body:/amount", "query:client", "path:1")),
    ("guard: false", [SIGV4]),
]


@pytest.mark.parametrize(("policy", "sent", "credential"), UNFIT, ids=[f"{n}-{it[2]}" for n, it in enumerate(UNFIT)])
async def test_what_does_not_fit(origin: Origin, policy: str, sent: list[tuple[str, str]], credential: str) -> None:
    """Two requests with it: two are counted, one line names the route, the credential and what to write."""
    async with edge(configuration(origin.url, policy=policy)) as gate:
        for key in ("a", "b"):
            assert (await ask(gate.port, key=key, fields=sent)).label == "stored"
        assert gate.count("oncegate_unfit_credentials_total", route="all", credential=credential) == 2
        notes = [str(line["message"]) for line in gate.running.lines if line["level"] == "note"]
    (said,) = [note for note in notes if "route all" in note]
    assert credential.removeprefix("unbound ") in said
    assert "bind: [header:X-Client-Id]" in said
    assert "AKID" not in said


@pytest.mark.parametrize(("policy", "sent"), FIT, ids=range(len(FIT)))
async def test_what_fits(origin: Origin, policy: str, sent: list[tuple[str, str]]) -> None:
    """Credentials that stay the same, that are not bound, or on a route that guards nothing: not a word."""
    async with edge(configuration(origin.url, policy=policy)) as gate:
        assert (await ask(gate.port, key="k", fields=sent)).status == 201
        assert not gate.running.app.tally._unfit
        assert not [line for line in gate.running.lines if "route all" in str(line.get("message"))]


async def test_each_route_is_told_by_its_own_rules(origin: Origin) -> None:
    """The same fields on two routes, one of which does not bind them."""
    routes = "  - {name: free, match: {path: /free}, upstream: origin, bind: []}"
    async with edge(configuration(origin.url, routes=routes)) as gate:
        for target in ("/free", "/orders"):
            await ask(gate.port, target=target, key=target, fields=[SIGV4])
        counted = dict(gate.running.app.tally._unfit)
    assert counted == {("all", "AWS SigV4"): 1}

"""Many spellings of one target, before a service that reads them all as one.

The service normalises as RFC 3986 §6.2.2 says and merges slashes. Whatever it serves under the guarded path must have
come through the guard: with a key it runs once, however often it is sent; without one it is refused, as the route
wants it.
Spellings that only other services take for the same are in SECURITY.md.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.edge.stand import Edge, edge
from tests.harness import Client, Exchange, Origin, configuration, request

SPELLINGS = [
    "/pay/card", "/pay//card", "//pay/card", "///pay///card", "/pay/./card", "/./pay/card", "/././pay/./card",
    "/pay/x/../card", "/x/../pay/card", "/x/y/../../pay/card", "/../pay/card", "/../../pay/card", "/pay/../pay/card",
    "/open/../pay/card", "/open/x/../../pay/card", "/open//../pay/card", "/open/./../pay/card",
    "/open/%2e%2e/pay/card", "/open/%2E%2E/pay/card", "/open/.%2e/pay/card", "/open/%2e./pay/card",
    "/%70ay/card", "/p%61y/card", "/pa%79/card", "/%70%61%79/card", "/pay/%63ard", "/pay/c%61rd", "/pay/car%64",
    "/%70%61%79/%63%61%72%64", "/pay/%2e/card", "/%2e/pay/card", "/pay/%2E/%2e/card", "/pay/x/%2e%2e/card",
    "/pay//./card", "/pay/.//card", "//open/../pay//card", "/open/..//pay/card", "/pay/x//../card",
    "/%2e%2e/pay/card", "/open/%2e%2e//p%61y/./c%61rd", "/pay/card?a=1", "/pay/./card?a=/../open/",
    "/open/../%70ay/card?x", "/pay/card?",
]  # fmt: skip
METHODS = ["POST", "PATCH", "PUT", "DELETE"]

ROUTES = "  - {name: pay, match: {path: /pay/**}, upstream: origin, missing: refuse}"
#: The guard before, behind and around what is open.
TABLES = {
    "the rest is open": ROUTES,
    "its last segment alone is guarded": ROUTES.replace("/pay/**", "/pay/card"),
    "all segments below are guarded": ROUTES.replace("/pay/**", "/*/card"),
}


def served_as(target: str) -> str:
    """The path as the service reads it: unreserved escapes decoded, slashes merged, dot segments removed; in the
    words of RFC 3986, and by other code than the gate's."""
    path = re.sub(r"%([0-9A-Fa-f]{2})", _decoded, target.partition("?")[0])
    path = re.sub("/+", "/", path)
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


def _decoded(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character.isascii() and (character.isalnum() or character in "-._~") else found[0]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_service_reads_them_as_one(spelling: str) -> None:
    """Or the table below would prove nothing."""
    assert served_as(spelling) == "/pay/card"


@pytest.mark.parametrize("table", TABLES)
async def test_no_spelling_runs_twice_or_gets_past_the_guard(origin: Origin, table: str) -> None:
    """Each spelling and method twice with one key, once without. What the service ran under the guarded path it ran
    once per key, labelled as guarded; a spelling that could lead past the guard is refused; each goes on byte for
    byte."""
    effects: Counter[tuple[str, bytes | None]] = Counter()
    targets: set[str] = set()

    async def serve(exchange: Exchange) -> None:
        received = exchange.request
        targets.add(received.target.decode())
        effects[served_as(received.target.decode()), received.key] += 1
        await exchange.respond(201, b"paid")

    origin.answer = serve
    async with edge(configuration(origin.url, routes=TABLES[table], policy="guard: false")) as gate:
        client = await gate.connect()
        for method in METHODS:
            for number, spelling in enumerate(SPELLINGS):
                await _try(gate, client, method, spelling, f"{method}-{number}")
        assert effects
        assert max(effects.values()) == 1
        assert {path for path, _ in effects} == {"/pay/card"}
        assert targets <= set(SPELLINGS)
        assert {"/pay/card", "/pay/card?a=1"} <= targets


async def _try(gate: Edge, client: Client, method: str, spelling: str, key: str) -> None:
    labels = []
    for _ in range(2):
        await client.send(request(method, spelling, key=key))
        answer = await client.read(method=method.encode())
        labels.append((answer.status, answer.label))
    assert labels in (
        [(201, "stored"), (201, "replayed")],
        [(400, "refused")] * 2,
    ), (method, spelling, labels)
    if method in ("POST", "PATCH"):  # PUT and DELETE pass without one, being idempotent by themselves
        await client.send(request(method, spelling))
        answer = await client.read(method=method.encode())
        assert (answer.status, answer.problem) in ((400, "key-missing"), (400, "request-malformed")), spelling


async def test_one_key_in_every_spelling_runs_once(origin: Origin) -> None:
    """The target is part of what was asked, byte for byte: whoever spells it otherwise is told that the key was
    used."""
    async with edge(configuration(origin.url, routes=ROUTES, policy="guard: false")) as gate:
        client = await gate.connect()
        seen: Counter[str | None] = Counter()
        for spelling in SPELLINGS:
            await client.send(request("POST", spelling, key="k"))
            seen[(await client.read()).problem] += 1
        assert origin.effects == {b"k": 1}
        assert set(seen) == {None, "key-reused", "request-malformed"}
        assert seen[None] == 1


#: What only some services take for the guarded path, and what the gate makes of it before one that does not.
ELSEWHERE = [
    "/PAY/card", "/pay;v=1/card", "/pay\\card", "/pay%2Fcard", "/pay%5Ccard", "/pay/card%00", "/pay/card.",
    "/%2570ay/card",
]  # fmt: skip


@pytest.mark.parametrize("spelling", ELSEWHERE)
async def test_what_only_other_services_take_for_it_is_written_down(origin: Origin, spelling: str) -> None:
    """SECURITY.md names the spelling. Here it is another path, and goes on as it came or not at all."""
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    assert f"`{spelling}`" in page
    assert served_as(spelling) != "/pay/card"
    async with edge(configuration(origin.url, routes=ROUTES, policy="guard: false")) as gate:
        client = await gate.connect()
        await client.send(request("POST", spelling, key="k"))
        answer = await client.read()
        row = next(line for line in page.splitlines() if f"`{spelling}`" in line)
        assert f"| {answer.label} |" in row, (answer.label, row)
        assert [received.target.decode() for received in origin.requests] == (
            [] if answer.label == "refused" else [spelling]
        )

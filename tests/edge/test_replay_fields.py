"""Which fields of an answer a duplicate is given, on the wire."""

from __future__ import annotations

import asyncio

from tests.edge.stand import edge
from tests.harness import Exchange, Origin, ask, configuration

SIGNED = "Mon, 02 Jan 2006 15:04:05 GMT"


async def test_a_replay_has_one_date_its_own_or_the_one_that_was_signed(origin: Origin) -> None:
    """Date is made anew on a replay; where RFC 9421's signature covers it, it is the upstream's. Never two."""

    async def answer(exchange: Exchange) -> None:
        covered = b'sig=("date" "@status")' if exchange.request.key == b"signed" else b'sig=("@status")'
        fields = [(b"Date", SIGNED.encode()), (b"Signature-Input", covered), (b"Signature", b"sig=:AA==:")]
        await exchange.respond(201, b"done", fields)

    origin.answer = answer
    async with edge(configuration(origin.url)) as gate:
        for key, kept in (("signed", True), ("plain", False)):
            first, again = [await ask(gate.port, key=key) for _ in range(2)]
            assert first.values("Date") == [SIGNED]
            assert again.replayed
            assert len(again.values("Date")) == 1
            assert (again.get("Date") == SIGNED) == kept
            assert again.get("Signature-Input") == first.get("Signature-Input")


async def test_cookies_and_challenges_are_not_replayed(origin: Origin) -> None:
    """`keep: [401]`: the stored 401 is given again without its challenge and its cookie; the first one has both."""

    async def answer(exchange: Exchange) -> None:
        fields = [(b"WWW-Authenticate", b'Digest nonce="1"'), (b"Set-Cookie", b"s=1"), (b"Location", b"/1")]
        await exchange.respond(401, b"who?", fields)

    origin.answer = answer
    async with edge(configuration(origin.url, policy="keep: [401]")) as gate:
        first, again = [await ask(gate.port, key="k") for _ in range(2)]
        assert (first.get("WWW-Authenticate"), first.get("Set-Cookie")) == ('Digest nonce="1"', "s=1")
        assert (again.status, again.body, again.replayed, again.get("Location")) == (401, b"who?", True, "/1")
        assert again.get("WWW-Authenticate") is None
        assert again.get("Set-Cookie") is None


async def test_who_waits_for_a_401_is_challenged_too(origin: Origin) -> None:
    """A 401 is released; the duplicate that waited for it gets it with its challenge, and no cookie."""
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.respond(401, b"who?", [(b"WWW-Authenticate", b"Bearer"), (b"Set-Cookie", b"s=1")])

    origin.answer = answer
    async with edge(configuration(origin.url)) as gate:
        first = asyncio.create_task(ask(gate.port, key="k"))
        await origin.until(1)
        second = asyncio.create_task(ask(gate.port, key="k"))
        async with asyncio.timeout(10):
            while not gate.server.driver.waiting:
                await asyncio.sleep(0.002)
        go_on.set()
        for response in (await first, await second):
            assert (response.status, response.label, response.get("WWW-Authenticate")) == (401, "released", "Bearer")
        assert ((await first).get("Set-Cookie"), (await second).get("Set-Cookie")) == ("s=1", None)
    assert len(origin.requests) == 1


async def test_the_lists_of_a_route(origin: Origin) -> None:
    """`keep_headers` is all that a replay carries, but for the coding of the body; `drop_headers` takes more away."""
    fields = [(b"Content-Encoding", b"gzip"), (b"ETag", b"x"), (b"Location", b"/1"), (b"X-Trace", b"1")]
    origin.answer = lambda exchange: exchange.respond(201, b"\x1f\x8b", fields)
    for policy, carried in (("keep_headers: [Location]", "Location"), ("drop_headers: [ETag, X-Trace]", "Location")):
        async with edge(configuration(origin.url, policy=policy)) as gate:
            _, again = [await ask(gate.port, key="k") for _ in range(2)]
            assert again.replayed
            names = {name.decode() for name, _ in again.fields}
            assert names & {"Content-Encoding", "ETag", "Location", "X-Trace"} == {"Content-Encoding", carried}

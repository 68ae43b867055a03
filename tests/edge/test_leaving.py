"""A listener that closes: whoever has connected is heard, though his first word is still on its way."""

from __future__ import annotations

import asyncio

import pytest

from tests.edge.stand import GET, edge
from tests.harness import Client, Origin, configuration

BOTH_LOOPS = True
ON_ITS_WAY = 0.03


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for its 100 ms must not decide."""
    for room in ("server", "client"):
        monkeypatch.setattr(f"gateway.edge.{room}.NEXT_WORD", 2.0)


async def heard(client: Client) -> None:
    await client.send(GET)
    answer = await client.read(method=b"GET")
    assert (answer.status, answer.get("Connection")) == (201, "close")


@pytest.mark.usefixtures("patient")
async def test_who_has_connected_and_not_asked_yet_is_answered(origin: Origin) -> None:
    """Ten clients connect; the gate is told to stop; what they ask comes 30 ms later: all ten are answered, told to
    close, and the stop has cut nobody off."""
    async with edge(configuration(origin.url)) as gate:
        clients = [await gate.connect() for _ in range(10)]
        stopping = asyncio.ensure_future(gate.listening.drain(5))
        await asyncio.sleep(ON_ITS_WAY)
        assert not stopping.done()
        await asyncio.gather(*map(heard, clients))
        for client in clients:
            client.close()
        assert await stopping == 0


@pytest.mark.usefixtures("patient")
async def test_who_was_just_answered_may_ask_again(origin: Origin) -> None:
    """On a connection that is kept, the next request of a busy client is on its way when the stop comes."""
    async with edge(configuration(origin.url)) as gate:
        client = await gate.connect()
        await client.send(GET)
        assert (await client.read(method=b"GET")).status == 201
        stopping = asyncio.ensure_future(gate.listening.drain(5))
        await asyncio.sleep(ON_ITS_WAY)
        await heard(client)
        client.close()
        assert await stopping == 0


async def test_who_says_nothing_is_closed_soon(origin: Origin) -> None:
    """A tenth of a second after he was last heard of, not after the grace."""
    async with edge(configuration(origin.url)) as gate:
        silent = await gate.connect()
        began = asyncio.get_running_loop().time()
        assert await gate.listening.drain(5) == 0
        assert 0.05 < asyncio.get_running_loop().time() - began < 1
        assert await silent.ended()


@pytest.mark.usefixtures("patient")
async def test_who_is_let_in_last_is_heard(origin: Origin) -> None:
    """The loop meets a client whom the kernel had let in when the stop had already begun: he is answered if he asks,
    and closed soon if he says nothing."""
    async with edge(configuration(origin.url)) as gate:
        gate.server.draining = True
        asks, silent = await gate.connect(), await gate.connect()
        await asyncio.sleep(ON_ITS_WAY)
        await heard(asks)
        asks.close()
        assert await silent.ended()

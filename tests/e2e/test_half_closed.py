"""Clients that end their side while they wait. Real processes: a half-closed client is answered, and one that resets
is gone at once, whatever it said before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.e2e.test_attach import metric
from tests.edge.stand import SOON, drain, keyed
from tests.harness import Client, Exchange, GateProcess, Origin, configuration

#: What a duplicate waits at most: much longer than anything here takes.
WAIT = 50.0


@dataclass
class Scene:
    """A gate that lets one duplicate wait, and a service that answers once it is let go."""

    gate: GateProcess
    origin: Origin
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, target: bytes = b"/orders") -> Client:
        client = await Client.connect(self.gate.port)
        await client.send(keyed("k").replace(b"/orders", target))
        return client

    async def answer(self, exchange: Exchange) -> None:
        waiting = asyncio.ensure_future(self.let_go.wait())
        left = asyncio.ensure_future(exchange.reader.read(1))
        await asyncio.wait((waiting, left), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if left.done():
            self.over.set()
        else:
            left.cancel()
            await exchange.respond(201, b"one")

    async def waiting(self, count: int) -> None:
        async with asyncio.timeout(SOON):
            while await metric(self.gate, "oncegate_waiters") != count:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def scene(origin: Origin) -> AsyncIterator[Scene]:
    text = configuration(origin.url, policy=f"wait: {WAIT:g}s", top="limits: {waiters_per_key: 1, write_timeout: 60s}")
    gate = GateProcess(text)
    made = Scene(gate, origin)
    origin.answer = made.answer
    try:
        await gate.start()
        yield made
    finally:
        gate.close()


async def test_a_half_closed_client_holds_its_place_and_is_answered(origin: Origin) -> None:
    """The first and a duplicate: both have said that they ask no more (`nc -N`), and read their answers."""
    async with scene(origin) as here:
        first = await here.ask()
        await origin.until(1)
        duplicate = await here.ask()
        await here.waiting(1)
        for client in (first, duplicate):
            client.writer.write_eof()
        refused = await here.ask()
        assert (await refused.read()).problem == "in-flight", "its place is taken"
        refused.close()
        here.let_go.set()
        for client, replayed in ((first, False), (duplicate, True)):
            answer = await client.read()
            assert (answer.status, answer.replayed, answer.get("Connection")) == (201, replayed, "close")
            assert await drain(client) == b""
            client.close()
        assert origin.effects == {b"k": 1}


@pytest.mark.parametrize("half_closed", [True, False], ids=["half-closed before", "not before"])
async def test_a_client_that_resets_leaves_its_place_at_once(origin: Origin, half_closed: bool) -> None:
    """Another duplicate takes it, and is answered."""
    async with scene(origin) as here:
        first = await here.ask()
        await origin.until(1)
        duplicate = await here.ask()
        await here.waiting(1)
        if half_closed:
            duplicate.writer.write_eof()
            refused = await here.ask()
            assert (await refused.read()).problem == "in-flight", "its place is taken"
            refused.close()
        began = time.monotonic()
        duplicate.reset()
        await here.waiting(0)
        assert time.monotonic() - began < WAIT / 10
        other = await here.ask()
        await here.waiting(1)
        here.let_go.set()
        for client, replayed in ((first, False), (other, True)):
            answer = await client.read()
            assert (answer.status, answer.replayed) == (201, replayed)
            client.close()
        assert origin.effects == {b"k": 1}


async def test_a_first_client_that_resets_leaves_its_request_to_go_on(origin: Origin) -> None:
    """Half-closed or not, what it began is stored for its retry."""
    async with scene(origin) as here:
        first = await here.ask()
        await origin.until(1)
        first.writer.write_eof()
        await here.waiting(0)
        first.reset()
        retry = await here.ask()
        await here.waiting(1)
        here.let_go.set()
        answer = await retry.read()
        assert (answer.status, answer.replayed) == (201, True)
        retry.close()
        assert origin.effects == {b"k": 1}


async def test_nothing_is_kept_open_for_an_unguarded_client_that_reset(origin: Origin) -> None:
    """The service hears of it, as without the gate."""
    async with scene(origin) as here:
        client = await here.ask(b"/open/x")
        await origin.until(1)
        client.writer.write_eof()
        await here.waiting(0)  # what was asked later has been answered: its end was heard before its reset
        client.reset()
        async with asyncio.timeout(SOON):
            await here.over.wait()

"""Three gates in a row, one key through all of them, one Redis under all of them, and faults in the middle.

    clients ─▶ order's gate ─▶ order ─▶ (middle) ─▶ payment's gate ─▶ payment ─▶ inventory's gate ─▶ (last) ─▶ inventory

Every hop has its effect first and then asks the next, and retries; so does every client. In brackets stand proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.failpoints import Point
from tests.edge.stand import eventually
from tests.harness import configuration
from tests.servers import RedisServer, free_port, preferred

from .history import Effect, Seen, asked, faults, now
from .hop import Caller
from .proxy import Mode, Proxy
from .scenarios import names
from .stage import TIMES, Gate


class Link(NamedTuple):
    """A hop and the `timeout` of its gate, in seconds: each shorter than that of the one before it."""

    hop: str
    timeout: float

    @property
    def lease(self) -> float:
        return self.timeout + 0.5 + 0.5  # late and margin, as in stage.py

    @property
    def patience(self) -> float:
        """For how long the hop asks the next gate: it answers before its own gate gives it up."""
        return self.timeout - 0.4


SHOP = (Link("order", 4.0), Link("payment", 2.0), Link("inventory", 1.0))


class Chain:
    """The gates, hops and proxies of one run, and who asks the gates. `service`: one name for all, if not its own."""

    def __init__(self, folder: Path, links: tuple[Link, ...] = SHOP, *, service: str = "", defect: str = "") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.links = links
        self.callers: dict[str, Caller] = {}
        self.gates: dict[str, Gate] = {}
        self._service = service
        self._defect = defect
        self._end = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Chain:
        async with contextlib.AsyncExitStack() as end:
            self._redis = RedisServer(preferred())
            end.callback(self._redis.close)
            await asyncio.to_thread(self._redis.start)
            ports = [free_port() for _ in self.links]
            self.last = await Proxy(ports[-1]).start()
            end.push_async_callback(self.last.stop)
            for link, port in zip(self.links, ports, strict=True):
                self.gates[link.hop] = gate = self._gate(link, self.last.port if link is self.links[-1] else port)
                end.callback(gate.close)
                self.callers[link.hop] = caller = Caller(self.folder, link.hop, gate.port)
                end.push_async_callback(caller.close)
            self.middle = await Proxy(self.gates[self.links[1].hop].port).start()
            end.push_async_callback(self.middle.stop)
            for at, link in enumerate(self.links):
                arguments = [str(self.folder), link.hop, str(ports[at])]
                if at + 1 < len(self.links):
                    following = self.links[at + 1].hop
                    gate_port = self.gates[following].port if at else self.middle.port
                    arguments += [following, str(gate_port), str(link.patience)]
                process = subprocess.Popen([sys.executable, "-m", "tests.faults.hop", *arguments])
                end.callback(process.wait)
                end.callback(process.kill)
            await asyncio.gather(*map(_listens, ports))
            self._end = end.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end.aclose()

    def _gate(self, link: Link, origin: int) -> Gate:
        text = configuration(
            f"http://127.0.0.1:{origin}",
            service=self._service or link.hop,
            store=self._redis.url,
            policy="store_wait: 500ms, wait: 1s",
            upstream=f"timeout: {link.timeout * 1000:.0f}ms, late: 500ms, connect: 500ms",
            top="margin: 500ms\ngrace: 2s",
        )
        return Gate(text, defect=self._defect)

    async def open(self, failpoint: str = "") -> None:
        """Start the gates; the second with a failpoint, if it shall have one."""
        self.arm(failpoint)
        await asyncio.gather(*(gate.start() for gate in self.gates.values()))

    def arm(self, failpoint: str) -> None:
        """From its next start on."""
        self.gates[self.links[1].hop]._environ["ONCEGATE_FAILPOINT"] = failpoint

    # ── Clients ───────────────────────────────────────────────────────────────────────────────────

    async def crowd(self, keys: list[str], *, copies: int = 3, spread: float = 0.4) -> list[Seen]:
        """Each key asked for at the first gate by so many clients, at any moment of `spread`, each of whom retries."""

        async def one(key: str, copy: int, after: float) -> Seen:
            await asyncio.sleep(after)
            first = self.links[0]
            return await self.callers[first.hop].retry(
                key, f"{key}/{copy}", words="linger=0.05", seconds=first.lease * 2
            )

        moments = {key: random.uniform(0, spread) for key in keys}
        return await asyncio.gather(*(one(key, copy, moments[key]) for key in keys for copy in range(copies)))

    async def settle(self, keys: list[str], since: float) -> list[Seen]:
        """Wait until every lease from before `since` is over by a second; then ask each gate once for each key that
        got behind it. What the first gate says."""
        await asyncio.sleep(max(since + self.links[0].lease + 1 - now(), 0))
        got = {link.hop: keys if at == 0 else sorted(self.made(link.hop)) for at, link in enumerate(self.links)}
        asks = [self.callers[hop].ask(key, "last", final=True) for hop, those in got.items() for key in those]
        return (await asyncio.gather(*asks))[: len(keys)]

    async def breaks(self, wire: Proxy, hop: str, crowd: asyncio.Task[list[Seen]]) -> None:
        """Cut the wire four times, each time a moment after the hop behind it has done something, while the crowd
        lasts; every other time what is on it trickles."""
        for turn in range(4):
            wire.trickle = (0, 0.0005)[turn % 2]
            await self._until_more(hop, crowd)
            await asyncio.sleep(random.uniform(0, (0.1, 0.3)[turn % 2]))
            wire.cut()
        wire.trickle = 0

    async def _until_more(self, hop: str, crowd: asyncio.Task[list[Seen]]) -> None:
        count = len(self.made(hop))
        await eventually(lambda: crowd.done() or len(self.made(hop)) > count, f"{hop} has done one more", 10)

    # ── Verdict ───────────────────────────────────────────────────────────────────────────────────

    def made(self, hop: str) -> dict[str, Effect]:
        """What the hop did, by key."""
        return {effect.key: effect for effect in asked(self.folder / f"{hop}.jsonl")}

    def faults(self) -> list[str]:
        """The checker over every hop, and whether what each gate said to anybody nests what the hops below it did."""
        made = [(link.hop, self.made(link.hop)) for link in self.links]
        found: list[str] = []
        for at, (hop, _) in enumerate(made):
            seen = self.callers[hop].history.read()
            found += [f"{hop}: {fault}" for fault in faults(seen, asked(self.folder / f"{hop}.jsonl"))]
            whole = {(one.key, one.body) for one in seen if one.status == 201}
            found += [f"{hop}: {key} has {body}" for key, body in sorted(whole) if not _nested(key, body, made[at:])]
            orphans = made[at][1].keys() - made[max(at - 1, 0)][1].keys()
            found += [f"{hop}: {key} was done, and nothing before it" for key in sorted(orphans)]
        return found


def _nested(key: str, body: str, made: Iterable[tuple[str, dict[str, Effect]]]) -> bool:
    """Whether this is the answer of the first hop, in it that of the second, and so on to the last; each with the
    nonce that stands in its ledger."""
    try:
        inner = json.loads(body)
    except ValueError:
        return False
    for hop, effects in made:
        if inner is None or key not in effects:
            return False
        if (inner["hop"], inner["key"], inner["nonce"]) != (hop, key, effects[key].nonce):
            return False
        inner = inner["next"]
    return inner is None


async def _listens(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


# ── Faults in the middle ──────────────────────────────────────────────────────────────────────────

#: Where the second gate dies, three places in each turn.
POINTS = (
    Point.SENT, Point.HALF_REPLIED, Point.HEAD_READ, Point.STORED,
    Point.CLAIMED, Point.CONNECTED, Point.FIRST_BYTE, Point.BODY_READ,
)  # fmt: skip


async def broken(folder: Path, defect: str, *, points: Iterable[Point]) -> list[str]:
    """One chain, and everything that breaks in its middle, one after the other."""
    points = list(points)
    found: list[str] = []
    async with Chain(folder, defect=defect) as chain:
        before = names("before", 12)
        await chain.open(f"{points[0].value}:kill@{len(before) + 3}")
        found += _refused("nothing was broken yet", await chain.crowd(before))
        keys, running = list(before), []

        payment = chain.gates["payment"]
        for turn, point in enumerate(points):
            fresh = names(point.value, 8)
            keys += fresh
            running.append(asyncio.create_task(chain.crowd(fresh, spread=0.8)))
            assert payment.process is not None
            assert await asyncio.to_thread(payment.process.wait, 10) == -signal.SIGKILL, payment.log.read_text()
            chain.arm(f"{points[turn + 1].value}:kill@3" if turn + 1 < len(points) else "")
            await payment.start()
        await asyncio.gather(*running)

        # Whoever asks a gate again gets what the gate has: a wire before a gate that breaks costs nothing.
        fresh = names("middle", 10)
        keys += fresh
        crowd = asyncio.create_task(chain.crowd(fresh, spread=1.2))
        await chain.breaks(chain.middle, "payment", crowd)
        found += _refused("the wire before its gate broke", await crowd)

        # A wire behind a gate costs what was on it.
        fresh = names("last", 10)
        keys += fresh
        crowd = asyncio.create_task(chain.crowd(fresh, spread=1.2))
        await chain.breaks(chain.last, "inventory", crowd)
        await crowd

        # The last hop does it, and its gate never hears so.
        fresh = names("deaf", 3)
        keys += fresh
        chain.last.be(Mode.DEAF)
        await chain.crowd(fresh, spread=0)
        chain.last.cut()
        chain.last.be(Mode.PASS)
        whole = now()

        after = names("after", 12)
        keys += after
        found += _refused("everything was whole again", await chain.crowd(after))
        last = await chain.settle(keys, whole)
        done = sum(one.status == 201 for one in last)
        if done < len(keys) / 2:
            found.append(f"only {done} of {len(keys)} keys are done")
        return found + chain.faults()


def _refused(when: str, seen: Iterable[Seen]) -> list[str]:
    return [f"{one.client}: {when}, and it is {one.status} {one.slug}: {one.body}" for one in seen if one.status != 201]


async def test_one_effect_at_every_hop(tmp_path: Path) -> None:
    """The gate in the middle is killed, the wires before it and behind the last one are cut and slowed down, and every
    key has three clients: no hop has two effects of a key, and whoever is answered is given what all three did."""
    for turn in range(TIMES):
        points = [POINTS[(turn * 3 + at) % len(POINTS)] for at in range(3)]
        assert await broken(tmp_path / str(turn), "", points=points) == []


# ── Why a service has a name ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("service", ["", "shop"], ids=["their own names", "one name"])
async def test_two_services_under_one_name_do_not_run(service: str, tmp_path: Path) -> None:
    """Under one name on one Redis the second service never has its effect: its gate takes the key for the first
    one's. A request that differs is refused; one that does not waits for itself, or is given the first one's answer."""
    async with Chain(tmp_path, SHOP[1:], service=service) as chain:
        await chain.open()
        payment, inventory = chain.callers["payment"], chain.callers["inventory"]
        differs, equal, alone = await asyncio.gather(
            payment.ask("differs"),
            payment.ask("equal", words="as=payment"),
            payment.ask("later", words="alone"),
        )
        later = await inventory.ask("later", like="payment")
        assert chain.made("payment").keys() == {"differs", "equal", "later"}
        assert alone.status == 201
        if not service:
            assert (differs.status, equal.status, later.status) == (201, 201, 201)
            assert json.loads(differs.body)["next"]["hop"] == json.loads(equal.body)["next"]["hop"] == "inventory"
            assert json.loads(later.body)["hop"] == "inventory"
            assert chain.made("inventory").keys() == {"differs", "equal", "later"}
            return
        assert (differs.status, differs.label) == (422, "stored")
        assert json.loads(differs.body)["next"]["type"] == "urn:oncegate:problem:key-reused"
        assert (equal.status, equal.label) == (504, "in-doubt")
        tries = [one.slug for one in inventory.history.read() if one.key == "equal"]
        assert tries[0] == "in-flight"
        assert set(tries) <= {"in-flight", ""}  # the last one is given up when the hop's time is over
        assert (later.status, later.replayed, later.body) == (201, True, alone.body)
        assert chain.made("inventory") == {}

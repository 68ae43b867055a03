"""What can go wrong, one scene each. A scene says what of the promise did not hold; nothing if all did.

Each is played on the gate as it is (test_promise.py), where nothing may be found, and on gates with one
defect (test_defects.py), where something must be.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis.asyncio as redis

from gateway.failpoints import Point
from tests.edge.stand import eventually
from tests.harness import Client, request, reset

from .history import now
from .proxy import Mode, claims, settles
from .stage import LEASE, TIMES, Gate, Stage

Scene = Callable[[Path, str], Awaitable[list[str]]]

MARGIN = 0.5


def names(what: str, count: int) -> list[str]:
    return [f"{what}-{n}" for n in range(count)]


# ── Processes ─────────────────────────────────────────────────────────────────────────────────────


async def killed(folder: Path, defect: str, *, store: str, point: Point, copies: int = 3) -> list[str]:
    """A gate dies when a third exchange gets to `point`; another takes its place; all clients retry. With one copy of
    each request nothing waits for its run."""
    async with Stage(folder, store, defect=defect) as stage:
        keys: list[str] = []
        doomed = await stage.gate(failpoint=f"{point.value}:kill@3")
        assert doomed.process is not None
        for turn in range(4):  # on a busy machine exchanges may end before they get there
            fresh = names(f"{point.value}-{turn}", 8)
            keys += fresh
            # Side by side, so that others stand at any other place when it dies; and one a little after the other, so
            # that what the first were answered has left in a turn of the loop before it does.
            tries = [
                stage.ask(doomed, key, f"{key}/{copy}", origin=f"linger={0.02 + 0.004 * number:.3f}")
                for number, key in enumerate(fresh)
                for copy in range(copies)
            ]
            await asyncio.gather(*tries)
            if doomed.reached:
                break
        await asyncio.to_thread(doomed.process.wait, 10)
        assert doomed.reached, f"{point.value} was not reached"
        heir = await stage.gate()
        await stage.crowd([heir], keys, 2)
        await stage.settle(heir, keys)
        return stage.faults()


async def paused(folder: Path, defect: str) -> list[str]:
    """A gate is stopped between its claim and its first byte until the lease is over: it sends nothing then."""
    async with Stage(folder, "redis", defect=defect) as stage:
        sleeper, other = await stage.gate(failpoint="claimed:stop@1"), await stage.gate()
        first = asyncio.create_task(stage.ask(sleeper, "paused", "first"))
        await eventually(lambda: sleeper.reached, "it has claimed, and stands still", 10)
        during = await stage.retry(other, "paused", "second")
        assert sleeper.process is not None
        sleeper.process.send_signal(signal.SIGCONT)
        await first
        late = [f"it was sent past its lease, {line}" for line in stage.asked()]
        await stage.settle(other, ["paused"])
        found = late + stage.faults()
        if during.slug != "in-doubt":
            found.append(f"while its owner stood still past its lease, the key was {during}")
        return found


async def drained(folder: Path, defect: str) -> list[str]:
    """A rolling restart under load: whatever is in flight at SIGTERM is answered, and the gate exits 0."""
    async with Stage(folder, "redis", defect=defect) as stage:
        old, new = await stage.gate(), await stage.gate()
        keys = names("drained", 20)
        asked = [asyncio.create_task(stage.ask(old, key, "old", origin="linger=0.4")) for key in keys]
        await stage.until_asked(len(keys))
        code = await old.terminate()
        seen = await asyncio.gather(*asked)
        await stage.settle(new, keys)
        found = stage.faults()
        found += [f"{one.key}: lost in a rolling restart: {one.status} {one.slug}" for one in seen if one.status != 201]
        return found + ([f"exit code {code}"] if code else [])


async def second_signal(folder: Path, defect: str) -> list[str]:
    """SIGTERM twice: the second ends the gate at once; what was in flight is as if it had been killed."""
    async with Stage(folder, "sqlite", defect=defect) as stage:
        gate = await stage.gate()
        keys = names("twice", 5)
        asked = [asyncio.create_task(stage.ask(gate, key, "first", origin="linger=0.9")) for key in keys]
        await stage.until_asked(len(keys))
        assert gate.process is not None
        gate.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        found = [] if gate.process.poll() is None else ["the first signal ended it at once"]
        began = now()
        code = await gate.terminate()
        if code != 1 or now() - began > 0.4:
            found.append(f"the second signal ended it with {code} after {now() - began:.1f} s")
        await asyncio.gather(*asked)
        heir = await stage.gate()
        await stage.crowd([heir], keys, 1)
        await stage.settle(heir, keys)
        return found + stage.faults()


# ── Clients ───────────────────────────────────────────────────────────────────────────────────────


async def cut_clients(folder: Path, defect: str, *, count: int = 60 if TIMES == 1 else 500) -> list[str]:
    """Clients are cut off at a random byte of their request, or while they wait; then they retry. What was cut
    before its body ended does not run."""
    dice = random.Random(str(folder.name))
    async with Stage(folder, "sqlite", defect=defect) as stage:
        gate = await stage.gate()
        keys, partial, lost = names("cut", count), set(), set()

        async def cut(key: str) -> None:
            data = request(key=key, body=b'{"amount":1}', fields=[("X-Origin", "linger=0.1")])
            at = dice.choice((len(data), dice.randrange(1, len(data))))
            if at < len(data):
                partial.add(key)
            client = await Client.connect(gate.port)
            client.writer.write(data[:at])
            await client.writer.drain()
            await asyncio.sleep(dice.uniform(0.0, 0.08))
            if dice.random() < 0.5:
                client.writer.close()
            else:
                lost.add(key)  # a reset takes what its reader has not read yet
                reset(client.writer)

        await asyncio.gather(*map(cut, keys))
        surely = set(keys) - partial - lost
        with contextlib.suppress(AssertionError):  # said below, by name
            await eventually(lambda: surely <= {effect.key for effect in stage.asked()}, "all that was sent has run", 5)
        await asyncio.sleep(0.3)
        ran = {effect.key for effect in stage.asked()}
        found = [f"{key}: its body never ended, and it ran" for key in sorted(ran & partial)]
        found += [f"{key}: it was sent whole, and did not run" for key in sorted(surely - ran)]
        await stage.crowd([gate], keys, 2, origin="linger=0.1")
        await stage.settle(gate, keys)
        found += stage.faults()
        answered = {seen.key for seen in stage.history.read() if seen.final and seen.status == 201}
        return found + [f"{key}: the answer was lost with its client" for key in sorted(set(keys) - answered)]


async def crowd(folder: Path, defect: str) -> list[str]:
    """Two gates on one Redis, and duplicates of the same keys through both at once."""
    async with Stage(folder, "redis", defect=defect) as stage:
        gates = [await stage.gate(), await stage.gate()]
        keys = names("crowd", 20)
        await stage.crowd(gates, keys, 6, origin="linger=0.05")
        await stage.settle(gates[0], keys)
        return stage.faults()


async def another_body(folder: Path, defect: str, *, store: str = "sqlite") -> list[str]:
    """A key is used again for another request: refused, whatever the state; nobody gets another's answer."""
    async with Stage(folder, store, defect=defect) as stage:
        gate = await stage.gate()
        first = asyncio.create_task(stage.ask(gate, "reused", "first", origin="linger=0.3"))
        await asyncio.sleep(0.1)
        found = []
        for when in ("in flight", "completed"):
            client = await Client.connect(gate.port)
            await client.send(request(key="reused", body=b'{"amount":99}'))
            answer = await client.read(method=b"POST")
            client.close()
            if answer.status != 422:
                found.append(f"another body under a key that is {when} was answered {answer.status}")
            await first
        return found + stage.faults()


# ── Upstreams ─────────────────────────────────────────────────────────────────────────────────────


async def upstream_fails(
    folder: Path, defect: str, *, origin: str, store: str = "sqlite", copies: int = 3
) -> list[str]:
    """The origin has done it, and what it says does not say so: never run again; every duplicate is told so."""
    async with Stage(folder, store, defect=defect) as stage:
        gate = await stage.gate()
        keys = names(origin.partition("=")[0], 5)
        await stage.crowd([gate], keys, copies, origin=origin)
        await stage.settle(gate, keys, origin=origin)
        return stage.faults()


async def readers_leave(folder: Path, defect: str, *, store: str = "sqlite") -> list[str]:
    """The origin does it behind the last event of a stream, and rolls back if the connection breaks. Its clients leave
    in the middle: it is done all the same, and nobody is told so before."""
    dice = random.Random(str(folder.name))
    async with Stage(folder, store, defect=defect) as stage:
        gate = await stage.gate()
        keys = names("stream", 10)

        async def leave(key: str) -> None:
            client = await Client.connect(gate.port)
            await client.send(request(key=key, body=b'{"amount":1}', fields=[("X-Origin", "stream=0.6")]))
            async with asyncio.timeout(5):
                await client.reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            if dice.random() < 0.5:
                client.writer.close()
            else:
                reset(client.writer)

        await asyncio.gather(*(leave(key) for key in keys), stage.crowd([gate], keys, 2, origin="stream=0.6"))
        await stage.settle(gate, keys)
        done = {effect.key for effect in stage.asked() if effect.effect}
        return stage.faults() + [f"{key}: it was rolled back with its reader" for key in keys if key not in done]


async def late_answer(folder: Path, defect: str) -> list[str]:
    """An answer that comes after `timeout` and within `late`: its client had a 504; its retry gets the answer."""
    async with Stage(folder, "sqlite", defect=defect) as stage:
        gate = await stage.gate()
        keys = names("late", 5)
        first = await asyncio.gather(*(stage.ask(gate, key, "first", origin="linger=1.2") for key in keys))
        retried = await asyncio.gather(*(stage.retry(gate, key, "again") for key in keys))
        await stage.settle(gate, keys)
        found = stage.faults()
        found += [f"{one.key}: {one.status} {one.slug}" for one in first if one.slug != "upstream-timeout"]
        return found + [f"{one.key}: the late answer was lost: {one.slug}" for one in retried if one.status != 201]


# ── The store ─────────────────────────────────────────────────────────────────────────────────────


async def short_window(folder: Path, defect: str) -> list[str]:
    """A window shorter than the exchange: the claim is not lost by it."""
    async with Stage(folder, "redis", defect=defect, policy="window: 300ms") as stage:
        one, other = await stage.gate(), await stage.gate()
        keys = names("short", 5)
        first = [asyncio.create_task(stage.ask(one, key, "first", origin="linger=0.8")) for key in keys]
        await asyncio.sleep(0.5)
        await asyncio.gather(*first, *(stage.ask(other, key, "second") for key in keys))
        return stage.faults()


async def skewed(folder: Path, defect: str) -> list[str]:
    """One gate's wall clock is an hour ahead: leases are told by the store's clock, so nothing changes."""
    async with Stage(folder, "redis", defect=defect, policy="on_doubt: rerun") as stage:
        one, ahead = await stage.gate(), await stage.gate(skew=3600)
        keys = names("skewed", 5)
        first = [asyncio.create_task(stage.ask(one, key, "first", origin="linger=0.6")) for key in keys]
        await asyncio.sleep(0.2)
        await asyncio.gather(*first, *(stage.retry(ahead, key, "second") for key in keys))
        await stage.settle(one, keys)
        return stage.faults()


async def late_release(folder: Path, defect: str) -> list[str]:
    """A Release is held back, made anew by its holder, and delivered once the key was claimed again elsewhere."""
    async with Stage(folder, "redis", defect=defect) as stage:
        proxy = await stage.proxy(store=True)
        one, other = await stage.gate(store=proxy), await stage.gate()
        proxy.hold(settles)
        first = asyncio.create_task(stage.ask(one, "late", "first", origin=f"busy={now() + 60}"))
        await proxy.holds()
        proxy.hold(None)
        await first
        await asyncio.sleep(0.3)
        # As an SDK does: the Release that the holder makes anew takes as long as its connection needs to come back.
        second = asyncio.create_task(stage.retry(other, "late", "second", origin="linger=0.7"))
        await stage.until_asked(2)
        for _ in range(2):
            await proxy.held[0].deliver()
        await asyncio.gather(second, stage.retry(one, "late", "third"))
        await stage.settle(one, ["late"])
        return stage.faults()


async def late_claim(folder: Path, defect: str) -> list[str]:
    """A claim is held back, asked for again and released; then it lands. It is gone by the lease's end."""
    async with Stage(folder, "redis", defect=defect) as stage:
        proxy = await stage.proxy(store=True)
        gate = await stage.gate(store=proxy)
        proxy.hold(claims)
        first = asyncio.create_task(stage.ask(gate, "late", "first", origin=f"busy={now() + 60}"))
        await proxy.holds()
        proxy.hold(None)
        await first
        await asyncio.sleep(0.2)
        await proxy.held[0].deliver()
        await stage.settle(gate, ["late"])
        found = stage.faults()
        last = stage.history.read()[-1]
        return found if last.status == 201 else [*found, f"an orphan stands in the way: {last.status} {last.slug}"]


async def keep_meets_takeover(folder: Path, defect: str, *, count: int = 20 if TIMES == 1 else 100) -> list[str]:
    """A Keep delayed past its lease and a takeover reach the store together, in any order: one answer each."""
    async with Stage(folder, "redis", defect=defect, policy="on_doubt: rerun") as stage:
        slow, fast = await stage.proxy(store=True), await stage.proxy(store=True)
        one, other = await stage.gate(store=slow), await stage.gate(store=fast)
        keys = names("meets", count)
        first = [asyncio.create_task(stage.ask(one, key, "first", origin="linger=0.9")) for key in keys]
        await stage.until_asked(count)
        slow.pause(at=settles)  # a look at the server held back so long would end the connection
        began = now()
        # The claims were made a moment ago: past their lease and its margin, and not past the store's patience.
        await asyncio.sleep(LEASE + MARGIN + 0.1)
        fast.pause(at=settles)
        second = [asyncio.create_task(stage.ask(other, key, "second")) for key in keys]
        await asyncio.sleep(0.1)  # every takeover has read the claim that it takes over, and stands at the store's door
        for proxy in random.sample((slow, fast), 2):
            proxy.resume()
            await asyncio.sleep(random.uniform(0.0, 0.01))
        assert now() - began < LEASE + 1.5, "the machine is too slow for this scene"
        await asyncio.gather(*first, *second)
        await stage.settle(other, keys)
        return stage.faults(most=2)


#: The state of a claim, as its record has it.
IN_FLIGHT = 1


async def forgets(folder: Path, defect: str, *, all_of_it: bool = True) -> list[str]:
    """FLUSHALL, or one record deleted, while requests are in flight: the records are written again, an alarm is raised
    within two seconds of the answers, and retries replay. A busy machine may be late with it; then it tries again."""
    async with Stage(folder, "redis", defect=defect) as stage:
        gate = await stage.gate()
        assert stage.redis is not None
        for number in range(8):
            keys = names(f"forgets-{number}", 10)
            before = await asyncio.to_thread(gate.metric, "oncegate_store_forgot_total")
            asked = len(stage.asked())
            first = [asyncio.create_task(stage.ask(gate, key, "first", origin="linger=0.8")) for key in keys]
            await stage.until_asked(asked + len(keys))
            async with redis.Redis(port=stage.redis.port) as client:
                names_of_records = await client.keys("og:" + "?" * 43)
                records = [
                    name for name in names_of_records if (await client.getrange(name, 1, 1))[0] & 15 == IN_FLIGHT
                ]
                lost = records if all_of_it else records[:1]
                await (client.flushall() if all_of_it else client.delete(*lost))
            in_time = not any(task.done() for task in first)
            await asyncio.gather(*first)
            if in_time:
                break
        answered = now()
        alarms = await asyncio.to_thread(gate.metric, "oncegate_store_forgot_total") - before
        found = [] if now() - answered < 2 and alarms == len(lost) else [f"{alarms} alarms for {len(lost)} records"]
        await stage.crowd([gate], keys, 2)
        await stage.settle(gate, keys)
        return found + stage.faults()


async def store_faults(folder: Path, defect: str, *, rounds: int = 6) -> list[str]:
    """The store's connection is cut, stalled, deafened and refused while duplicates come through two gates; who
    is unguarded does not notice."""
    async with Stage(folder, "redis", defect=defect) as stage:
        proxy = await stage.proxy(store=True)
        gates = [await stage.gate(store=proxy), await stage.gate(store=proxy)]
        keys: list[str] = []
        found: list[str] = []
        for turn, (mode, linger) in enumerate(
            [(mode, linger) for mode in (Mode.STALL, Mode.DEAF, Mode.REFUSE) for linger in (0.0, 0.3)][:rounds]
        ):
            fresh = names(f"{mode.value}-{turn}", 15)
            keys += fresh
            running = asyncio.create_task(stage.crowd(gates, fresh, 4, origin=f"linger={linger}"))
            await asyncio.sleep(0.02)
            proxy.be(mode)
            found += await _unguarded(gates[turn % 2], 30)
            await asyncio.sleep(0.3)
            proxy.cut()
            proxy.be(Mode.PASS)
            await running
        await stage.settle(gates[0], keys)
        return found + stage.faults()


async def _unguarded(gate: Gate, count: int) -> list[str]:
    found = []
    for _ in range(count):
        began = now()
        client = await Client.connect(gate.port)
        await client.send(request("GET", "/open/thing"))
        answer = await client.read(method=b"GET")
        client.close()
        if answer.status != 201 or now() - began > 1:
            found.append(f"unguarded traffic noticed: {answer.status} after {now() - began:.2f} s")
    return found


# ── Waiters ───────────────────────────────────────────────────────────────────────────────────────


async def release_storm(folder: Path, defect: str) -> list[str]:
    """90 waiters on each of two gateways while the origin answers 429: each round costs a forward or two per gateway,
    its waiters share that answer, and all are answered in the end, none later than `wait` and a second."""
    async with Stage(folder, "redis", defect=defect, wait="3s") as stage:
        gates = [await stage.gate(), await stage.gate()]
        origin = f"busy={now() + 2} wait=0.02"
        crowd = [stage.retry(gates[n % 2], "storm", f"storm/{n}", origin=origin) for n in range(180)]
        found = [f"{one.client} was never answered" for one in await asyncio.gather(*crowd) if one.status != 201]
        found += [f"{one.client} waited too long" for one in stage.history.read() if one.ended - one.began > 3 + 1]
        found += stage.faults()
        forwards = Counter(line.effect for line in stage.asked())
        # A forward answers up to 90 waiters; without sharing it answers one.
        refused = sum(one.status == 429 for one in stage.history.read())
        if refused < 10 * forwards[False]:
            found.append(
                f"{forwards[False]} forwards for {refused} answers while the origin was busy: nothing is shared"
            )
        # A round is 0.02 s at the origin and 0.1 s until the retry: 17 of them, a forward from each gate.
        if forwards[False] > 50:
            found.append(f"{forwards[False]} forwards while the origin was busy: a herd")
        return found

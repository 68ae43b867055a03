"""`run --workers N`: one gate that is several processes. Real processes, real signals, real stores."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.request
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from gateway import __version__
from gateway.plan import Plan
from tests.e2e.crowd import Caller, admin, callers, eventually
from tests.e2e.test_storms import DUPLICATES, KEYS, a_distinct_answer, assert_one_effect_and_one_answer, storm
from tests.harness import Client, Exchange, GateProcess, Origin, Response, ask, configuration, request
from tests.servers import RedisServer, preferred

WORKERS = 4
KINDS = ["sqlite", "redis"]


class Gate(GateProcess):
    """A gate of several workers."""

    def __init__(self, text: str, *arguments: str, count: int = WORKERS) -> None:
        super().__init__(text, arguments=("--workers", str(count), *arguments))

    async def start(self) -> Gate:
        """Until it is ready and has said so: a line is written a moment after it was said."""
        before = len(self.said("listening"))
        await super().start()

        async def listening() -> int:
            return len(self.said("listening"))

        await eventually(listening, lambda count: count > before)
        return self

    @property
    def lines(self) -> list[dict[str, object]]:
        """The log so far; a line that is not JSON fails the test."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def said(self, message: str) -> list[dict[str, object]]:
        return [line for line in self.lines if line.get("message") == message]

    @property
    def pids(self) -> dict[int, int]:
        """Of each worker, by its number."""
        return {int(str(line["worker"])): int(str(line["pid"])) for line in self.said("a worker serves")}

    async def scrape(self) -> dict[str, float]:
        """Every sample of one scrape, by name and labels as they are written."""
        answer = await ask(self.admin_port, "GET", "/metrics", body=b"")
        assert answer.status == 200
        found: dict[str, float] = {}
        for family in parsed(answer.body.decode()):
            for sample in family.samples:
                written = sample.name + json.dumps(sample.labels, sort_keys=True)
                assert written not in found, "one scrape shows one set"
                found[written] = sample.value
        return found

    async def requests(self, verdict: str = "") -> float:
        """How many were counted."""
        found = await self.scrape()
        return sum(
            count
            for written, count in found.items()
            if written.startswith("oncegate_requests_total") and verdict in written
        )

    async def up(self) -> str:
        return (await admin(self.admin_port, "/ready"))[1]["workers"]

    async def restarted(self, number: int, pid: int) -> int:
        """Another process serves in the place of `pid`; says which."""

        async def now() -> int:
            return self.pids[number]

        return await eventually(now, lambda found: found != pid)


@asynccontextmanager
async def workers(text: str, *arguments: str, count: int = WORKERS) -> AsyncIterator[Gate]:
    gate = Gate(text, *arguments, count=count)
    try:
        yield await gate.start()
    finally:
        gate.close()


def alive(pid: int) -> bool:
    """Whether the process is there, and not one that has died and waits to be asked of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pids: dict[int, int], seconds: float) -> None:
    async def left() -> list[int]:
        return [pid for pid in pids.values() if alive(pid)]

    await eventually(left, lambda pids: not pids, seconds)


@pytest.fixture
def held(origin: Origin) -> Iterator[asyncio.Event]:
    """The origin runs its requests, and answers once this is set."""
    released = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await released.wait()
        await exchange.respond(201, b'{"done":true}')

    origin.answer = hold
    yield released
    released.set()


# ── One gate ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_a_storm_over_four_workers_has_one_effect(
    kind: str, origin: Origin, store_url: Callable[[str], str], redis: RedisServer
) -> None:
    """50 duplicates at once for each of 200 keys, over 400 connections to 4 workers: one effect per key, byte-equal
    answers; every worker had a share; one scrape adds up to what was sent, with no label that tells them apart."""
    origin.answer = a_distinct_answer
    store = redis.url if kind == "redis" else store_url(kind)
    async with workers(configuration(origin.url, store=store, policy="wait: 30s")) as gate:
        answers = await storm(gate.port)
        assert_one_effect_and_one_answer(origin, answers)
        sent = KEYS * DUPLICATES
        assert await gate.requests() == sent
        assert await gate.requests("forward") == KEYS
        found = await gate.scrape()
        assert found['oncegate_settlements_total{"reason": "answered", "route": "all", "settlement": "keep"}'] == KEYS
        assert found['oncegate_upstream_seconds_count{"route": "all"}'] == KEYS
        assert found['oncegate_upstream_seconds_bucket{"le": "+Inf", "route": "all"}'] == KEYS
        assert not any("pid" in written for written in found)
        assert await gate.terminate() == 0
        shares = Counter(line["worker"] for line in gate.lines if line.get("route") == "all")
        assert shares.total() == sent, "each request has one line, whole"
        assert set(shares) == {1, 2, 3, 4}
        assert min(shares.values()) > sent / WORKERS / 4, f"they are spread: {shares}"


async def test_it_starts_as_one_gate_does(origin: Origin, store_url: Callable[[str], str]) -> None:
    """The first words are said once and count the workers; /ready counts those that serve; /live is 200."""
    async with workers(configuration(origin.url, store=store_url("sqlite"))) as gate:
        (first,) = gate.said("listening")
        assert (first["addresses"], first["admin"]) == (f"127.0.0.1:{gate.port}", f"127.0.0.1:{gate.admin_port}")
        assert (first["store"], first["service"], first["workers"]) == ("sqlite", "test", WORKERS)
        note = "this store protects one gateway; a second instance of the service needs redis"
        assert len(gate.said(note)) == 1
        assert await admin(gate.admin_port, "/ready") == (
            200, {"status": "ready", "store": "sqlite", "note": note, "workers": "4 of 4"},
        )  # fmt: skip
        assert await admin(gate.admin_port, "/live") == (200, {"status": "live"})
        assert await admin(gate.admin_port, "/ready/guarded") == (200, {"status": "ready"})
        assert (await gate.scrape())["oncegate_workers{}"] == WORKERS


# ── A worker dies ─────────────────────────────────────────────────────────────────────────────────


async def test_a_killed_worker_is_started_again_and_what_it_counted_stays(
    origin: Origin, store_url: Callable[[str], str]
) -> None:
    """kill -9 of each worker in turn: another serves in its place, from the configuration that was checked (the file
    is broken by now); the alarm says how it ended; no total goes down, and what follows is added to it."""
    async with workers(configuration(origin.url, store=store_url("sqlite"))) as gate:
        for n in range(40):
            assert (await ask(gate.port, key=f"k{n}")).status == 201
        await asyncio.sleep(1.5)  # a worker reports each second, unasked; a scrape would ask it
        gate.file.write_text("nothing: of this\n")
        for number, pid in sorted(gate.pids.items()):
            os.kill(pid, signal.SIGKILL)
            await gate.restarted(number, pid)
        found = await gate.scrape()
        assert await gate.requests() == 40
        assert found['oncegate_overhead_seconds_count{"route": "all", "verdict": "forward"}'] == 40
        assert (found["oncegate_worker_deaths_total{}"], found["oncegate_alarms_total{}"]) == (4, 4)
        assert await gate.up() == "4 of 4"
        for n in range(40):
            assert (await ask(gate.port, key=f"k{n}")).replayed
        assert await gate.requests() == 80
        alarms = gate.said("a worker died; another is started in its place")
        assert [(line["worker"], line["ended"], line["after_s"]) for line in alarms] == [
            (number, "killed by SIGKILL", 0.1) for number in (1, 2, 3, 4)
        ]
        assert await gate.terminate() == 0


async def test_workers_are_ready_once_one_has_met_the_store(origin: Origin) -> None:
    """No Redis at the start: all workers serve, and /ready of their parent is 503 with the reason. Redis comes: 200.
    Redis goes, and every worker is killed and started again without it: /ready stays 200."""
    redis = RedisServer(preferred())
    gate = Unready(configuration(origin.url, store=redis.url), count=2)
    try:
        await gate.start()
        status, told = await admin(gate.admin_port, "/ready")
        assert (status, told["workers"]) == (503, "2 of 2")
        assert told["reason"].startswith(f"store-unavailable: Redis at 127.0.0.1:{redis.port} cannot be reached: ")
        assert (await ask(gate.port, "POST", "/open/orders")).status == 201
        await asyncio.to_thread(redis.start)

        async def ready() -> int:
            return (await admin(gate.admin_port, "/ready"))[0]

        await eventually(ready, lambda status: status == 200)
        redis.kill()
        for number, pid in gate.pids.items():
            os.kill(pid, signal.SIGKILL)
            await gate.restarted(number, pid)
        assert await ready() == 200
        assert (await admin(gate.admin_port, "/ready/guarded"))[0] == 503
    finally:
        gate.close()
        redis.close()


class Unready(Gate):
    """Workers whose parent is started once its admin listener answers and all serve, ready or not."""

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/live", timeout=2):
                return True
        except OSError:
            return False


async def test_one_that_dies_again_is_waited_for_longer(origin: Origin, store_url: Callable[[str], str]) -> None:
    """The same worker killed three times in a row: it comes back after 100, 200, 400 ms; the other serves on."""
    async with workers(configuration(origin.url, store=store_url("sqlite")), count=2) as gate:
        for _ in range(3):
            pid = gate.pids[1]
            os.kill(pid, signal.SIGKILL)
            await eventually(gate.up, lambda up: up == "1 of 2")
            assert (await ask(gate.port, key="k1")).status == 201
            assert (await admin(gate.admin_port, "/ready"))[0] == 200
            await gate.restarted(1, pid)
        alarms = gate.said("a worker died; another is started in its place")
        assert [line["after_s"] for line in alarms] == [0.1, 0.2, 0.4]
        assert origin.effects == {b"k1": 1}


class Customer:
    """One connection after the other; each key is asked for until it is answered, and once more."""

    def __init__(self, port: int, name: str, *, fresh: bool = False) -> None:
        """`fresh`: each key is asked for on a connection of its own."""
        self.port, self.name, self.fresh = port, name, fresh
        self.answers: defaultdict[str, list[Response]] = defaultdict(list)
        self.when: list[float] = []
        #: When a connection broke, and how many answers had come through it in its last 1.5 seconds.
        self.broken: list[tuple[float, int]] = []
        self.unanswered: list[str] = []
        self.stop = False

    async def shop(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        caller: Caller | None = None
        while not self.stop:
            key = f"{self.name}-{number}"
            try:
                if caller is None:
                    caller, mine = await Caller.connect(self.port), list[float]()
                self.answers[key].append(await caller.send(request(key=key, body=b'{"amount":1}')))
            except ConnectionRefusedError:
                return
            except ConnectionError:
                self.unanswered.append(key)
                now = loop.time()
                self.broken.append((now, sum(now - then < 1.5 for then in mine)))
                caller = None
                continue
            mine.append(loop.time())
            if len(self.answers[key]) == 2:
                number += 1
                if self.fresh:
                    caller.close()
                    caller = None
        if caller is not None:
            caller.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_kill_9_of_a_worker_under_load(
    kind: str, origin: Origin, store_url: Callable[[str], str], redis: RedisServer
) -> None:
    """24 customers shop; kill -9 of one worker: those at the others notice nothing, no key runs twice, every answer
    of a key is the same bytes; scrapes never go down, and what is missing at the end the dead one answered in its
    last moments."""

    async def takes_a_moment(exchange: Exchange) -> None:
        await asyncio.sleep(0.01)
        await exchange.respond(201, os.urandom(40).hex().encode())

    origin.answer = takes_a_moment
    store = redis.url if kind == "redis" else store_url(kind)
    async with workers(configuration(origin.url, store=store, policy="wait: 100ms")) as gate:
        crowd = [Customer(gate.port, f"c{n}") for n in range(24)]
        scrapes: list[dict[str, float]] = []
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            for customer in crowd:
                group.create_task(customer.shop())
            for n in range(16):
                await asyncio.sleep(0.25)
                scrapes.append(await gate.scrape())
                if n == 5:
                    pid = gate.pids[2]
                    os.kill(pid, signal.SIGKILL)
            await gate.restarted(2, pid)
            for customer in crowd:
                customer.stop = True
        answered = [answers for customer in crowd for answers in customer.answers.values()]
        assert len(answered) > 100
        assert max(origin.effects.values()) == 1, "a key ran twice"
        for answers in answered:
            good = {answer.body for answer in answers if answer.status == 201}
            assert len(good) <= 1
            # Who was cut off asks again: it is in flight until its lease is over.
            assert {answer.problem for answer in answers if answer.status != 201} <= {"in-flight"}
        for before, after in pairwise(scrapes):
            for written, value in before.items():
                if "_total" in written or "_count" in written or "_bucket" in written:
                    assert after[written] >= value, written
        broken = [ends for customer in crowd for ends in customer.broken]
        assert 0 < len(broken) < len(crowd), "those at the other workers noticed nothing"
        missing = sum(map(len, answered)) - await gate.requests()
        assert missing <= sum(last for _, last in broken)
        print(f"{kind}: {sum(map(len, answered))} answers, {len(broken)} cut off, {missing:g} not counted")


# ── One drain ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_sigterm_answers_what_is_in_flight_at_every_worker(
    kind: str, origin: Origin, store_url: Callable[[str], str], redis: RedisServer, held: asyncio.Event
) -> None:
    """40 requests in flight at 4 workers; SIGTERM of the parent: nobody new is let in, /ready is 503 and /live 200;
    all 40 are answered 201; it ends with 0, after one closing sentence, and no worker is left."""
    store = redis.url if kind == "redis" else store_url(kind)
    async with workers(configuration(origin.url, store=store)) as gate:
        async with callers(40, gate.port) as crowd:
            asked = [caller.send(request(key=f"k{n}", body=b"{}")) for n, caller in enumerate(crowd)]
            await origin.until(40)
            ended = asyncio.create_task(gate.terminate())
            await eventually(lambda: refused(gate.port), bool)
            assert (await admin(gate.admin_port, "/ready"))[0] == 503
            assert (await admin(gate.admin_port, "/ready/guarded"))[1]["reason"] == "the gate is stopping"
            assert await admin(gate.admin_port, "/live") == (200, {"status": "live"})
            assert not ended.done()
            held.set()
            for answer in await asyncio.gather(*asked):
                assert (answer.status, answer.label, answer.get("Connection")) == (201, "stored", "close")
        assert await ended == 0
        assert gate.lines[-1]["message"] == "stopped: everything in flight was answered and settled"
        assert "worker" not in gate.lines[-1]
        assert not any(map(alive, gate.pids.values()))
        assert set(origin.effects.values()) == {1}


async def refused(port: int) -> bool:
    try:
        client = await Client.connect(port)
    except ConnectionRefusedError:
        return True
    client.close()
    return False


@pytest.mark.parametrize("count", [1, WORKERS])
async def test_whoever_stands_in_the_queue_is_let_in_first(
    count: int, origin: Origin, store_url: Callable[[str], str]
) -> None:
    """All processes stand still; 60 clients connect and ask, and stand in the listeners' queues; SIGTERM, and they go
    on: all 60 are answered 201, and it ends with 0. With one process and with four."""
    async with workers(configuration(origin.url, store=store_url("sqlite")), count=count) as gate:
        assert gate.process is not None
        pids = list(gate.pids.values()) or [gate.process.pid]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        async with callers(60, gate.port) as crowd:
            asked = [caller.send(request(key=f"k{n}", body=b"{}")) for n, caller in enumerate(crowd)]
            await asyncio.sleep(0.2)
            ended = asyncio.create_task(gate.terminate())
            await asyncio.sleep(0.2)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            answers = await asyncio.gather(*asked, return_exceptions=True)
        assert Counter(a.status if isinstance(a, Response) else repr(a) for a in answers) == {201: 60}
        assert await ended == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_sigterm_under_load_leaves_nobody_without_his_answer(
    kind: str, origin: Origin, store_url: Callable[[str], str], redis: RedisServer
) -> None:
    """24 customers shop, a new connection for each key; SIGTERM: whoever was not answered had not been heard, so none
    of his keys has had an effect; it ends with 0, and everything was settled."""

    async def takes_a_moment(exchange: Exchange) -> None:
        await asyncio.sleep(0.02)
        await exchange.respond(201, b"{}")

    origin.answer = takes_a_moment
    store = redis.url if kind == "redis" else store_url(kind)
    async with workers(configuration(origin.url, store=store)) as gate:
        crowd = [Customer(gate.port, f"c{n}", fresh=True) for n in range(24)]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for customer in crowd:
                group.create_task(customer.shop())
            await origin.until(200)
            assert await gate.terminate() == 0
        assert gate.lines[-1]["message"] == "stopped: everything in flight was answered and settled"
        unanswered = [key for customer in crowd for key in customer.unanswered if key not in customer.answers]
        assert [key for key in unanswered if origin.effects[key.encode()]] == []
        assert {answer.status for c in crowd for answers in c.answers.values() for answer in answers} == {201}
        print(f"{kind}: {sum(len(c.answers) for c in crowd)} keys answered, {len(unanswered)} not heard")


async def test_one_that_dies_in_the_drain_is_told(
    origin: Origin, store_url: Callable[[str], str], held: asyncio.Event
) -> None:
    """In flight; SIGTERM; kill -9 of a worker: the others answer; it is not started again, an alarm says so, and the
    exit code is not 0."""
    async with workers(configuration(origin.url, store=store_url("sqlite"))) as gate:
        async with callers(24, gate.port) as crowd:
            asked = [caller.send(request(key=f"k{n}", body=b"{}")) for n, caller in enumerate(crowd)]
            await origin.until(24)
            ended = asyncio.create_task(gate.terminate())
            await eventually(lambda: refused(gate.port), bool)
            os.kill(gate.pids[4], signal.SIGKILL)
            await gone({4: gate.pids[4]}, 2)
            held.set()
            answers = await asyncio.gather(*asked, return_exceptions=True)
        assert await ended == 1
        answered = [answer for answer in answers if isinstance(answer, Response)]
        assert 0 < len(answered) < 24
        assert {answer.status for answer in answered} == {201}
        (alarm,) = gate.said("a worker died while it stopped")
        assert (alarm["worker"], alarm["ended"]) == (4, "killed by SIGKILL")
        assert len(gate.said("a worker serves")) == WORKERS


async def test_a_signal_while_it_starts_is_enough(origin: Origin, store_url: Callable[[str], str]) -> None:
    """SIGTERM before the workers serve: /live is 200 and /ready 503 until then; it ends with 0, and leaves nobody."""
    gate = Gate(configuration(origin.url, store=store_url("sqlite")))
    starting = asyncio.create_task(gate.start())
    try:

        async def live() -> bool:
            with suppress(ConnectionError):
                return (await admin(gate.admin_port, "/live"))[0] == 200
            return False

        await eventually(live, bool)
        assert (await admin(gate.admin_port, "/ready"))[0] == 503
        assert gate.process is not None
        children = Path(f"/proc/{gate.process.pid}/task/{gate.process.pid}/children").read_text().split()
        assert len(children) == WORKERS
        assert await gate.terminate(5) == 0
        assert not any(alive(int(pid)) for pid in children)
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError, AssertionError):
            await starting
        gate.close()


async def test_past_its_grace_every_worker_writes_its_doubts_down(
    origin: Origin, store_url: Callable[[str], str], held: asyncio.Event
) -> None:
    """12 in flight; SIGTERM; the grace is over: all are told 502 in-doubt, exit code 0; after a start 409 in-doubt."""
    text = configuration(origin.url, store=store_url("sqlite"), top="grace: 300ms")
    async with workers(text) as gate:
        async with callers(12, gate.port) as crowd:
            asked = [caller.send(request(key=f"k{n}", body=b'{"amount":1}')) for n, caller in enumerate(crowd)]
            await origin.until(12)
            assert await gate.terminate() == 0
            assert {(a.status, a.problem) for a in await asyncio.gather(*asked)} == {(502, "upstream-lost")}
        await gate.start()
        assert {(await ask(gate.port, key=f"k{n}")).problem for n in range(12)} == {"in-doubt"}


async def test_a_second_signal_ends_all_at_once(
    origin: Origin, store_url: Callable[[str], str], held: asyncio.Event
) -> None:
    """In flight; SIGTERM; SIGTERM again: the parent ends with 1 and every worker with it."""
    async with workers(configuration(origin.url, store=store_url("sqlite"))) as gate:
        with closing(await Client.connect(gate.port)) as client:
            await client.send(request(key="k1", body=b"{}"))
            await origin.until(1)
            assert gate.process is not None
            gate.process.send_signal(signal.SIGTERM)
            await eventually(lambda: refused(gate.port), bool)
            assert gate.process.poll() is None
            assert await gate.terminate(seconds=3) == 1
            await gone(gate.pids, 1)
            assert await client.ended()


async def test_sigterm_to_every_process_is_one_drain(
    origin: Origin, store_url: Callable[[str], str], held: asyncio.Event
) -> None:
    """SIGTERM to the parent and to each worker, as a service manager sends it, and SIGINT to all workers, as a terminal
    does: still one drain, and what is in flight is answered."""
    async with workers(configuration(origin.url, store=store_url("sqlite"))) as gate:
        assert gate.process is not None
        async with callers(12, gate.port) as crowd:
            asked = [caller.send(request(key=f"k{n}", body=b"{}")) for n, caller in enumerate(crowd)]
            await origin.until(12)
            for pid in gate.pids.values():
                os.kill(pid, signal.SIGINT)
            gate.process.send_signal(signal.SIGTERM)
            for pid in gate.pids.values():
                os.kill(pid, signal.SIGTERM)
            await eventually(lambda: refused(gate.port), bool)
            held.set()
            assert {answer.status for answer in await asyncio.gather(*asked)} == {201}
        assert await asyncio.to_thread(gate.process.wait, 10) == 0
        assert gate.said("a worker died; another is started in its place") == []


async def test_no_worker_outlives_its_parent(origin: Origin, store_url: Callable[[str], str]) -> None:
    """kill -9 of the parent: two seconds later no worker is there, one that stood still included; a new gate starts."""
    async with workers(configuration(origin.url, store=store_url("sqlite"))) as gate:
        pids = gate.pids
        os.kill(pids[3], signal.SIGSTOP)
        gate.kill()
        await gone(pids, 2)
        await gate.start()
        assert (await ask(gate.port, key="k1")).status == 201


# ── What the workers are asked ────────────────────────────────────────────────────────────────────


async def test_ready_guarded_is_what_all_of_them_say(origin: Origin, redis: RedisServer) -> None:
    """Redis goes: /ready stays 200, /ready/guarded is 503 and names the reason; it comes back: 200. A worker that
    stands still: 503 with its number, while /ready is 200 and /metrics answers."""
    async with workers(configuration(origin.url, store=redis.url)) as gate:
        redis.kill()
        status, told = await eventually(lambda: admin(gate.admin_port, "/ready/guarded"), lambda said: said[0] == 503)
        assert told["reason"].startswith("store-unavailable: ")
        assert "Redis" in told["reason"]
        assert (await admin(gate.admin_port, "/ready"))[0] == 200
        await asyncio.to_thread(redis.start)
        await eventually(lambda: admin(gate.admin_port, "/ready/guarded"), lambda said: said[0] == 200)
        os.kill(gate.pids[2], signal.SIGSTOP)
        status, told = await admin(gate.admin_port, "/ready/guarded")
        assert (status, told["reason"]) == (503, "worker 2 does not answer")
        assert (await admin(gate.admin_port, "/ready"))[0] == 200
        assert (await gate.scrape())["oncegate_workers{}"] == WORKERS
        answer = await ask(gate.admin_port, "POST", "/store/accept", host="127.0.0.1")
        assert answer.status == 503
        assert "silent: 2" in json.loads(answer.body)["reason"]
        os.kill(gate.pids[2], signal.SIGCONT)
        await eventually(lambda: admin(gate.admin_port, "/ready/guarded"), lambda said: said[0] == 200)


async def test_store_accept_reaches_every_worker(origin: Origin, redis: RedisServer) -> None:
    """on_amnesia: refuse; FLUSHALL: every worker refuses; POST /store/accept once: every worker serves."""
    text = configuration(origin.url, store=redis.url, top="on_amnesia: refuse", policy="store_wait: 0s")
    async with workers(text) as gate:
        with redis.client() as operator:
            operator.flushall()

        async def statuses(name: str) -> set[int]:
            """Of 40 connections, so that every worker is met."""
            async with callers(40, gate.port) as crowd:
                asked = [c.send(request(key=f"{name}-{n}", body=b"{}")) for n, c in enumerate(crowd)]
                return {answer.status for answer in await asyncio.gather(*asked)}

        rounds = iter(range(1000))
        await eventually(lambda: statuses(f"lost-{next(rounds)}"), lambda seen: seen == {503})
        status, told = await admin(gate.admin_port, "/ready/guarded")
        assert status == 503
        assert "vanished" in str(told)
        assert "amnesia" in told["findings"]
        assert (await gate.scrape())['oncegate_store_finding{"name": "amnesia"}'] == 1, "it stands once, not four times"
        answer = await ask(gate.admin_port, "POST", "/store/accept", host="127.0.0.1")
        assert json.loads(answer.body) == {"accepted": True}
        assert await statuses("found") == {201}
        assert await admin(gate.admin_port, "/ready/guarded") == (200, {"status": "ready"})
        assert json.loads((await ask(gate.admin_port, "POST", "/store/accept", host="127.0.0.1")).body) == {
            "accepted": False
        }


async def test_new_keys_are_accepted_when_the_gate_starts_and_not_when_a_worker_does(
    origin: Origin, redis: RedisServer
) -> None:
    """Four workers with --accept-new-keys take a store over without a fight. When later another configuration takes
    it over, a worker that is started again does not take it back."""
    mine = configuration(origin.url, store=redis.url, policy="namespace: mine")
    other = configuration(origin.url, store=redis.url, policy="namespace: other")
    async with workers(other, count=2) as before:
        assert (await ask(before.port, key="k1")).status == 201
    async with workers(mine, "--accept-new-keys") as gate:
        await eventually(lambda: admin(gate.admin_port, "/ready/guarded"), lambda said: said[0] == 200)
        async with workers(other, "--accept-new-keys", count=2) as rival:
            await eventually(lambda: admin(gate.admin_port, "/ready/guarded"), lambda said: said[0] == 503)
            pid = gate.pids[1]
            os.kill(pid, signal.SIGKILL)
            await gate.restarted(1, pid)
            # It has looked at the marker before it serves.
            with redis.client() as operator:
                assert b'"other"' in operator.get("og:marker:test:")
            assert (await admin(gate.admin_port, "/ready/guarded"))[1]["reason"].startswith("identity-changed")
            assert (await admin(rival.admin_port, "/ready/guarded"))[0] == 200


# ── Starts that fail ──────────────────────────────────────────────────────────────────────────────


async def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """The command's exit code, and what it says on stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "run", "--upstream", "http://127.0.0.1:9", "--admin", "127.0.0.1:0",
        *arguments,
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            _, said = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_the_address_of_another_gate_is_69(
    tmp_path: Path, origin: Origin, store_url: Callable[[str], str]
) -> None:
    """A second gate with workers on the same address: exit 69 and the address, though the kernel would let them share;
    and the first goes on."""
    async with workers(configuration(origin.url, store=store_url("sqlite")), count=2) as gate:
        for count in ("1", "2"):
            code, said = await run(tmp_path, "--listen", f"127.0.0.1:{gate.port}", "--workers", count)
            assert code == 69
            (line,) = said.splitlines()
            assert line.startswith("oncegate: an address cannot be bound: ")
            assert str(gate.port) in line
            assert "in use" in line
        assert (await ask(gate.port, key="k1")).status == 201


async def test_a_store_that_can_never_work_is_69_and_said_once(tmp_path: Path) -> None:
    """Four workers on a file that is no database: why, one line, exit 69, as with one process."""
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, " * 100)
    told = [
        await run(tmp_path, "--listen", "127.0.0.1:0", "--store", "sqlite:///letter.txt", "--workers", count)
        for count in ("1", "4")
    ]
    assert told[0] == told[1]
    assert told[0][0] == 69
    assert len(told[0][1].splitlines()) == 1


async def test_a_worker_of_another_version_does_not_start() -> None:
    """The package was installed anew under a parent that runs: its next worker says so, and does not serve."""
    mine, its = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.workers.child", str(its.fileno()), "1", str(os.getpid()),
        pass_fds=(its.fileno(),),
    )  # fmt: skip
    its.close()
    reader, writer = await asyncio.open_connection(sock=mine)
    try:
        begin = {"version": "0.0.1", "plan": Plan().as_json(), "addresses": [], "accept_new_keys": False}
        writer.write(json.dumps(begin).encode() + b"\n")
        code, why = json.loads(await asyncio.wait_for(reader.readline(), 15))["gave_up"]
        assert (code, await asyncio.wait_for(process.wait(), 5)) == (69, 69)
        assert f"this is version {__version__}, and its parent 0.0.1" in why
    finally:
        writer.close()


async def test_port_0_is_one_port_for_all(origin: Origin, store_url: Callable[[str], str]) -> None:
    """--listen 127.0.0.1:0 → one port that the parent has chosen; every worker serves there."""
    gate = Gate(configuration(origin.url, store=store_url("sqlite")), count=2)
    gate.port = 0
    try:
        await gate.start()
        (first,) = gate.said("listening")
        port = int(str(first["addresses"]).rpartition(":")[2])
        async with callers(20, port) as crowd:
            asked = [caller.send(request(key=f"k{n}", body=b"{}")) for n, caller in enumerate(crowd)]
            assert {answer.status for answer in await asyncio.gather(*asked)} == {201}
        assert await gate.terminate() == 0
        assert {line["worker"] for line in gate.lines if line.get("route") == "all"} == {1, 2}
    finally:
        gate.close()

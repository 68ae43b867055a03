"""The parent of several workers: no request goes through it.

It reserves the address, so that a port that is taken is told at once and stays ours while workers come and go;
serves the admin listener, asking its workers; starts them, and starts again whoever dies; ends them together.

A worker is a fresh process, not a fork: when one has to be started again the parent has a loop and a thread, and a
fork of that is a process with locks that nobody will ever release. It costs half a second and the memory of its code.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TextIO

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .. import __version__
from ..app import ONE_GATEWAY, Lifecycle, Stopped, expect
from ..ops.admin import Guarded, Ready, admin_app_of
from ..ops.capture import capture
from ..ops.log import Log
from ..ops.merged import Merged
from ..ops.metrics import Tally
from ..ops.observers import Observers
from ..plan import Plan
from ..reload import READ_ANEW, Refused, read_anew
from ..settings import Listener, Settings, UnixPath
from ..tasks import Tasks
from .channel import Channel
from .desk import WorkersDesk

#: A socket address: host and port.
Bound = tuple[str, int]

#: Seconds before a dead worker is started again: at first, at most, and after how long a life at first again.
_FIRST, _MOST, _STEADY = 0.1, 5.0, 10.0
#: Seconds that a worker has to answer its parent. Less than the patience of whoever probes us.
_PATIENCE = 0.5
#: … and to read a configuration.
_READING = 10.0
#: The same where it asks the store for an operator.
_AT_DESK = 10.0
#: Seconds past the grace after which a worker that is to stop is ended, and for which one that hung up may linger.
_OVERTIME = 10.0
_LINGER = 5.0


class GaveUp(Exception):
    """A gate that cannot start: with which exit code, and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


async def run(plan: Plan, settings: Settings, count: int, *, accept_new_keys: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; says the exit code. Raises GaveUp or OSError where it cannot start."""
    return await Parent(plan, settings, count, accept_new_keys=accept_new_keys).serve()


def reserve(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to the address in the way that workers share it, on which nobody listens: they get no client.
    Raises OSError where somebody else has it, be it another gate's workers, with whom ours would share it too."""
    held: list[socket.socket] = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, proto, _, address in dict.fromkeys(found):
            if port:
                with _bound(family, kind, proto, address, shared=False):
                    pass
            held.append(_bound(family, kind, proto, address, shared=True))
    except BaseException:
        for each in held:
            each.close()
        raise
    return held


def _bound(family: int, kind: int, proto: int, address: Any, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        why = os.strerror(error.errno or errno.EADDRINUSE).lower()
        raise OSError(error.errno, f"error while attempting to bind on address {address[:2]!r}: {why}") from None
    return sock


@dataclass(slots=True)
class Worker:
    """One worker's place, and the process that has it now."""

    number: int
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    up: bool = False
    gave_up: tuple[int, str] | None = None
    stopped: tuple[int, int] | None = None
    plan: Plan | None = None
    asked: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Parent(Lifecycle):
    """`serve` is all of its life."""

    def __init__(
        self, plan: Plan, settings: Settings, count: int, *, accept_new_keys: bool = False, out: TextIO | None = None
    ) -> None:
        super().__init__(settings, out)
        self._plan = plan
        self._accept_new_keys = accept_new_keys
        self.log = Log(self._out, self.clock, as_json=self._as_json)
        capture(self.log)
        tally = self._tally = Tally()
        expect(tally, settings)
        self.observer = Observers(tally, self.log)
        self._workers = [Worker(number) for number in range(1, count + 1)]
        self._deaths = 0
        self._merged = Merged(tally, self._families)
        self._asked = 0
        #: Of each listener its addresses, or of a Unix socket the descriptor that workers are handed.
        self._places: list[list[Bound] | int] = []
        self._started = False
        self._ready = False
        self._stop = asyncio.Event()
        self._failed: GaveUp | None = None
        self._graceless = 0
        self._tasks = Tasks(lambda error: self._fail(GaveUp(1, f"a worker could not be kept: {error!r}")))

    async def serve(self) -> int:
        try:
            for listener in self.settings.listen:
                self._reserve(listener)
            await self._start_admin(WorkersDesk(self._ask_a_desk, self._ask_every_desk), partial(admin_app_of, self))
            self._on_signals(self._asked_to_stop)
            for worker in self._workers:
                self._tasks.start(self._keep(worker))
            await self._stop.wait()
            await self._end()
        finally:
            self._signal(signal.SIGKILL)
            await self._stack.aclose()
            self.log.close()
        if self._failed is not None:
            raise self._failed
        return 1 if self._graceless else 0

    def _reserve(self, listener: Listener) -> None:
        address = listener.address
        if isinstance(address, UnixPath):
            self._places.append(self._bind_unix(address.path, listener.mode).fileno())
            self.addresses.append((str(address), 0))
            return
        bound: list[Bound] = []
        for each in reserve(address.host, address.port):
            self._stack.callback(each.close)
            bound.append(each.getsockname()[:2])
        self._places.append(bound)
        self.addresses += bound

    # ── The end ───────────────────────────────────────────────────────────────────────────────────

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._signal(signal.SIGKILL)
            os._exit(1)
        self._stop.set()

    def _fail(self, why: GaveUp) -> None:
        self._failed = self._failed or why
        self._stop.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            worker.signal(number)

    async def _end(self) -> None:
        """All together: accept no more, and answer what is in flight."""
        await self._upkeep.cancel()
        grace = self.settings.grace / 1000
        if self._failed is None:
            self.log.say("info", "stopping", workers=self._up, grace_s=grace)
            self._signal(signal.SIGTERM)
        if await self._tasks.finish(grace + _OVERTIME):
            self.observer.alarm("workers did not end in time, and were killed")
            self._signal(signal.SIGKILL)
        await self._tasks.finish(_LINGER)
        if self._failed is None:
            ends = [worker.stopped for worker in self._workers if worker.stopped is not None]
            self.log.say("info", str(Stopped(sum(cut for cut, _ in ends), sum(left for _, left in ends))))

    # ── One worker after the other ────────────────────────────────────────────────────────────────

    async def _keep(self, worker: Worker) -> None:
        """Somebody is at this place, until all stop."""
        pause = _FIRST
        while True:
            began = self.clock.now()
            try:
                pid, status = await self._one(worker)
                ended = worker.gave_up[1] if worker.gave_up else _how(status)
            except OSError as error:  # no memory for another process, or too many of them
                pid, status, ended = 0, 1, f"it could not be started: {error.strerror}"
            if self._stop.is_set():
                # Before it has clients a worker needs no grace.
                if worker.stopped is None and status != -signal.SIGTERM and self._failed is None:
                    self._graceless += 1
                    self.observer.alarm("a worker died while it stopped", worker=worker.number, ended=ended)
                return
            if not self._started and status > 0:
                self._fail(GaveUp(*(worker.gave_up or (status, f"a worker could not start: {ended}"))))
                return
            if self.clock.now() - began > _STEADY:
                pause = _FIRST
            self._deaths += 1
            self.observer.alarm(
                "a worker died; another is started in its place",
                worker=worker.number,
                pid=pid,
                ended=ended,
                after_s=pause,
            )
            try:
                await asyncio.wait_for(self._stop.wait(), pause)
                return
            except TimeoutError:
                pause = min(pause * 2, _MOST)

    async def _one(self, worker: Worker) -> tuple[int, int]:
        """The life of one process; says its pid and how it ended."""
        worker.gave_up = worker.stopped = None
        mine, its = socket.socketpair()
        shared = [place for place in self._places if isinstance(place, int)]
        try:
            process = worker.process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "gateway.workers.child", str(its.fileno()), str(worker.number),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=(its.fileno(), *shared),
                # Where we were found is where it is found, whatever else lies in the folder that we run in.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        except BaseException:
            mine.close()
            raise
        finally:
            its.close()
        channel = worker.channel = await Channel.over(mine)
        if self._stop.is_set():
            worker.signal(signal.SIGTERM)
        # Once every worker has met the store what stands there was accepted; later it would be somebody else's.
        accepts = self._accept_new_keys and not self._started
        worker.plan = self._plan
        channel.say(version=__version__, plan=worker.plan.as_json(), places=self._places, accept_new_keys=accepts)
        try:
            while (told := await channel.hear()) is not None:
                self._heard(worker, told)
        finally:
            worker.up = False
            worker.channel = None
            self._merged.leave(worker.number)
            for waiting in worker.asked.values():
                waiting.cancel()
            worker.asked.clear()
            await channel.close()
        try:
            await asyncio.wait_for(process.wait(), _LINGER)
        except TimeoutError:
            worker.signal(signal.SIGKILL)
        return process.pid, await process.wait()

    def _heard(self, worker: Worker, told: dict[str, Any]) -> None:
        if "told" in told:
            self._merged.tell(worker.number, told["told"]["metrics"])
        if (waiting := worker.asked.get(told.get("id", 0))) is not None and not waiting.done():
            waiting.set_result(told)
        if "gave_up" in told:
            code, why = told["gave_up"]
            worker.gave_up = (code, why)
        if "stopped" in told:
            cut_off, unsettled = told["stopped"]
            worker.stopped = (cut_off, unsettled)
        if "up" in told:
            worker.up = True
            assert worker.process is not None
            self.log.say("info", "a worker serves", worker=worker.number, pid=worker.process.pid)
            if worker.plan is not self._plan:  # it was on its way when the file was read anew
                self._upkeep.start(self._catch_up(worker))
            if not self._started and self._up == len(self._workers):
                self._all_up()

    def _all_up(self) -> None:
        self._started = True
        self._announce(self._kind, self._note, workers=len(self._workers))

    # ── What they are asked ───────────────────────────────────────────────────────────────────────

    @property
    def _up(self) -> int:
        return sum(worker.up for worker in self._workers)

    @property
    def _kind(self) -> str:
        return "sqlite" if self.settings.store.startswith("sqlite:") else "redis"

    @property
    def _note(self) -> str:
        return "" if self._kind == "redis" else ONE_GATEWAY

    async def _ask(
        self, what: str, seconds: float = _PATIENCE, **more: Any
    ) -> list[tuple[Worker, dict[str, Any] | None]]:
        """What each worker that serves says; None of one that does not answer."""
        serving = [worker for worker in self._workers if worker.up]
        answers = await asyncio.gather(*(self._ask_one(each, what, seconds, **more) for each in serving))
        return list(zip(serving, answers, strict=True))

    async def _ask_one(
        self, worker: Worker, what: str, seconds: float = _PATIENCE, **more: Any
    ) -> dict[str, Any] | None:
        if worker.channel is None or worker.channel.choked:
            return None
        self._asked += 1
        number = self._asked
        waiting = worker.asked[number] = asyncio.get_running_loop().create_future()
        worker.channel.say(**{what: number}, **more)
        done, _ = await asyncio.wait((waiting,), timeout=seconds)
        worker.asked.pop(number, None)
        return waiting.result() if done and not waiting.cancelled() else None

    # ── The configuration read anew ───────────────────────────────────────────────────────────────

    async def reload(self) -> None:
        """Read the file anew, and let all workers go by it. Raises Refused; what it was read for is taken up by none
        then, or where that is said by some."""
        async with self._reloading:
            plan, settings = await read_anew(self._plan, self.settings)
            self._plan, self.settings = plan, settings
            expect(self._tally, settings)
            answers = await self._ask("reload", _READING, plan=plan.as_json())
            for worker, answer in answers:
                if answer is not None and not answer["why"]:
                    worker.plan = plan
            behind = [
                f"worker {worker.number} {'does not answer' if answer is None else 'says: ' + answer['why']}"
                for worker, answer in answers
                if answer is None or answer["why"]
            ]
            if behind:
                raise Refused(f"not every worker took it up; read it again ({'; '.join(behind)})")
            self.log.say("info", READ_ANEW, routes=len(settings.routes.routes), workers=len(answers))

    async def _catch_up(self, worker: Worker) -> None:
        async with self._reloading:
            plan = self._plan
            answer = await self._ask_one(worker, "reload", _READING, plan=plan.as_json())
            if answer is None or answer["why"]:
                self.observer.alarm("a worker goes by an older configuration", worker=worker.number)
            else:
                worker.plan = plan

    # ── The desk of operators ─────────────────────────────────────────────────────────────────────

    async def _ask_a_desk(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Of the first worker that serves. It is asked once: what was not answered may have been done."""
        serving = next((worker for worker in self._workers if worker.up), None)
        if serving is None:
            return {"away": "no worker serves", "ambiguous": False}
        told = await self._ask_one(serving, "desk", _AT_DESK, asked=asked)
        return None if told is None else told["desk"]

    async def _ask_every_desk(self, asked: dict[str, Any]) -> list[dict[str, Any] | None]:
        serving = [worker for worker in self._workers if worker.up]
        answers = await asyncio.gather(*(self._ask_one(each, "desk", asked=asked) for each in serving))
        return [None if told is None else told["desk"] for told in answers]

    # ── ops.admin.Witness ─────────────────────────────────────────────────────────────────────────

    async def ready(self) -> Ready:
        """One ready worker is enough: the kernel sends no connection to a dead one. The first worker that is ready
        closes a latch: they share the store, and a worker that is started again must not clear what the others
        serve."""
        why = self._not_serving() or ("" if self._up else "no worker serves")
        if not why and not self._ready:
            answers = await self._ask("tell")
            reasons = [answer["told"]["ready"] for _, answer in answers if answer is not None]
            why = "" if "" in reasons else next(iter(reasons), "no worker answers")
            self._ready = not why
        facts = {"store": self._kind} | ({"note": self._note} if self._note else {})
        return Ready(why, {**facts, "workers": f"{self._up} of {len(self._workers)}"})

    def _not_serving(self) -> str:
        if not self._started:
            return "the gate is starting"
        return "the gate is stopping" if self._stop.is_set() else ""

    async def guarded(self) -> Guarded:
        """All who serve must say so: a client cannot choose whom it meets."""
        if not_serving := self._not_serving():
            return Guarded(not_serving)
        why, findings = "", dict[str, str]()
        answers = await self._ask("tell")
        for worker, answer in answers:
            if answer is None:
                why = why or (f"worker {worker.number} does not answer" if worker.up else "")
                continue
            why = why or answer["told"]["why"]
            findings |= answer["told"]["findings"]
        return Guarded(why or ("" if answers else "no worker serves"), findings)

    async def accept(self) -> tuple[bool, str]:
        answers = await self._ask("accept")
        silent = [str(worker.number) for worker, answer in answers if answer is None]
        why = f"not every worker was told; ask again (silent: {', '.join(silent)})" if silent else ""
        return any(answer is not None and answer["accepted"] for _, answer in answers), why

    async def metrics(self) -> CollectorRegistry:
        """Of one that does not answer, what it told last."""
        await self._ask("tell")
        return self._merged.snapshot()

    # ── Its own metrics ───────────────────────────────────────────────────────────────────────────

    def _families(self) -> Iterable[Metric]:
        serving = GaugeMetricFamily("oncegate_workers", "Workers that serve")
        serving.add_metric((), self._up)
        yield serving
        deaths = CounterMetricFamily("oncegate_worker_deaths", "Workers that died and were started again")
        deaths.add_metric((), self._deaths)
        yield deaths


def _how(status: int) -> str:
    """How a process ended."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"

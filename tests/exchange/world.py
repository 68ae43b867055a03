"""One store, one service, and as many gates before them as a test wants; under virtual time.

A world that is left is asked whether anything stayed behind: a flight, a waiter, a task, a settlement, a
stream that nobody reads, a client that was not answered or was answered twice, a key that ran twice.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from gateway.awaitable import AwaitableStore
from gateway.core.fingerprint import fingerprint
from gateway.core.key import Key, record_name
from gateway.core.limit import Limit
from gateway.core.message import Field, Request
from gateway.core.policy import SECOND, Policy, Route
from gateway.core.problem import Refusal
from gateway.core.record import Found, Record, State
from gateway.core.reply import Again, First, Live, Reply
from gateway.exchange import Ask, Exchange, Gate
from gateway.flights import Flights
from gateway.ports import Account, Stream
from gateway.settling import Settler
from gateway.stores.memory import MemoryStore
from gateway.tasks import Tasks

from .upstream import Service
from .virtual import VirtualClock
from .wire import Belfry, Wire

#: Short enough to be told in round numbers: a lease of 20 s, of which 15 may be used.
POLICY = Policy(
    window=3600 * SECOND, doubt_window=600 * SECOND, timeout=10 * SECOND, late=5 * SECOND, margin=5 * SECOND
)
LEASE = POLICY.lease / 1000


class Client:
    """Whoever waits for a reply: what it was told, and when. It may leave."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.gone = False
        self.replies: list[Reply] = []
        self.received = b""
        self.ended: bool | None = None
        self.at: float | None = None
        self.stream: Stream | None = None
        self.account: Account | None = None
        self._on_gone: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._answered = asyncio.Event()

    def __repr__(self) -> str:
        return f"<client {self.name}: {self.said or ('gone' if self.gone else 'waits')}>"

    # ── ports.Client ──────────────────────────────────────────────────────────────────────────────

    def reply(self, reply: Reply, stream: Stream | None = None) -> None:
        self._on_gone = None
        if self.gone:
            if stream is not None:
                stream.detach()
            return
        self.replies.append(reply)
        self.at = self._loop.time()
        self._answered.set()
        if stream is not None:
            self.stream = stream
            stream.attach(self)

    def when_gone(self, call: Callable[[], None] | None) -> None:
        self._on_gone = call
        if call is not None and self.gone:
            call()

    # ── ports.Sink ────────────────────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        self.received += data

    def end(self, *, clean: bool) -> None:
        self.ended = clean

    # ── The hand of the test ──────────────────────────────────────────────────────────────────────

    def leave(self) -> None:
        """Hang up."""
        self.gone = True
        call, self._on_gone = self._on_gone, None
        if call is not None:
            call()
        if self.stream is not None:
            self.stream.detach()

    async def answer(self) -> str:
        """What it is told, once it is."""
        await self._answered.wait()
        return self.said

    @property
    def said(self) -> str:
        """What it was told, as a line of a transcript; empty while it waits."""
        return shown(self.replies[0]) if self.replies else ""

    @property
    def reply_given(self) -> Reply:
        return self.replies[0]

    @property
    def problem(self) -> Refusal:
        reply = self.replies[0]
        assert isinstance(reply, Refusal)
        return reply

    @property
    def complete(self) -> bytes | None:
        """The body of a complete answer, where it was given one."""
        match self.replies:
            case [First(response)]:
                return response.body
            case [Again(answer)]:
                return answer.body
        return None


def shown(reply: Reply) -> str:
    """`201 stored: run 1`, `201 replayed: run 1`, `409 in-doubt`."""
    match reply:
        case First(response, label):
            return f"{response.status} {label}: {_text(response.body)}"
        case Again(answer, label):
            told = label if label != "replayed" or reply.replayed else f"{label} (unmarked)"
            return f"{answer.status} {told}: {_text(answer.body)}"
        case Live(response, label):
            return f"{response.status} {label}, live"
        case Refusal():
            mark = "" if reply.problem.label is reply.shown_as else f" ({reply.shown_as})"
            return f"{reply.problem.status} {reply.problem.slug}{mark}"


def _text(body: bytes | None) -> str:
    return (body or b"").decode("latin-1")


class Notebook:
    """The observer that remembers."""

    def __init__(self) -> None:
        self.accounts: list[Account] = []
        self.calls: list[tuple[str, bool]] = []
        self.forgot = 0
        self.alarms: list[str] = []

    def finished(self, account: Account) -> None:
        self.accounts.append(account)

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        self.calls.append((operation, failed))

    def limited(self, limit: Limit) -> None: ...

    def store_forgot(self, route: str) -> None:
        self.forgot += 1

    def alarm(self, what: str, **facts: object) -> None:
        self.alarms.append(what)


def ask(
    key: str = "k",
    *,
    body: bytes = b"{}",
    fields: Iterable[Field] = (),
    policy: Policy = POLICY,
    route: str = "payments",
) -> Ask:
    """A guarded request as the door makes it."""
    name = Key(key.encode())
    request = Request(
        b"POST", b"/payments", [(b"Host", b"shop"), (b"Idempotency-Key", key.encode()), *fields], body, "192.0.2.1"
    )
    return Ask(
        request,
        Route(route, "service", policy=policy),
        name,
        record_name(b"shop", policy.namespace, (), name),
        fingerprint(request, policy.recipe),
    )


@dataclass
class Process:
    """One gate, with its own wire to the store. `halt` is what kill -9 is to it."""

    world: World
    wire: Wire
    observer: Notebook
    gate: Gate
    tasks: Tasks
    settler: Settler
    errors: list[BaseException]
    clients: list[Client] = field(default_factory=list)
    halted: bool = False

    def send(self, asked: Ask | None = None, client: Client | None = None, *, by: Driver | None = None) -> Client:
        """A client sends a request. `by`: what is done to the task of its exchange."""
        client = client or Client(str(len(self.clients)))
        self.clients.append(client)
        asked = asked or ask(policy=self.world.policy)
        exchange = Exchange(self.gate, asked, client)
        client.account = exchange.account
        self.tasks.start(exchange.run() if by is None else by.drive(exchange.run()))
        return client

    def crowd(self, count: int, asked: Ask | None = None) -> list[Client]:
        return [self.send(asked) for _ in range(count)]

    def halt(self) -> None:
        """It is dead: nothing of it runs on, its clients' connections break. What it wrote to its wire arrives."""
        self.halted = True
        self.wire.cut(arrives=True)
        for client in self.clients:
            client.gone = True

    @property
    def flights(self) -> Flights:
        return self.gate.flights


class World:
    """See the module. `rings`: its store tells who listens, as Redis does."""

    def __init__(self, policy: Policy = POLICY, *, rings: bool = False, **changes: Any) -> None:
        self.policy = replace(policy, **changes)
        self.belfry = Belfry() if rings else None
        self.loop = asyncio.get_running_loop()
        self.clock = VirtualClock(self.loop)
        self.store = AwaitableStore(MemoryStore(self.clock))
        self.service = Service(self.clock)
        self.processes: list[Process] = []
        self.most_effects = 1
        self.expected_errors = 0
        self._minted = 0

    def process(self, *, latency: float = 0.0005, per_key: int = 100, in_all: int = 10_000) -> Process:
        """One more gate on the same store."""
        wire = Wire(self.store.port, latency=latency, belfry=self.belfry)
        observer = Notebook()
        errors: list[BaseException] = []
        tasks = Tasks(errors.append)
        settler = Settler(wire, self.clock, observer)
        gate = Gate(
            wire,
            {"service": self.service},
            self.clock,
            observer,
            Flights(per_key=per_key, in_all=in_all),
            settler,
            mint=self.mint,
            jitter=lambda: 0.5,
            tasks=tasks,
        )
        process = Process(self, wire, observer, gate, tasks, settler, errors)
        self.processes.append(process)
        return process

    def mint(self) -> bytes:
        self._minted += 1
        return b"%012d" % self._minted

    def ask(self, key: str = "k", **more: Any) -> Ask:
        return ask(key, policy=more.pop("policy", self.policy), **more)

    async def passes(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @property
    def time(self) -> float:
        return self.loop.time()

    async def look(self, key: str = "k") -> Found | None:
        """What the store holds."""
        return await self.store.get(self.ask(key).name)

    async def store_forgets(self) -> None:
        """The store loses all its records."""
        await self.store.close()
        await self.store.open()

    async def state(self, key: str = "k") -> str:
        """`absent`, `in flight #1`, `lapsed #1`, `completed #1`, `in doubt #1`."""
        found = await self.look(key)
        if found is None:
            return "absent"
        record = found.record
        name = "lapsed" if record.lapsed(found.age) else record.state.name.lower().replace("_", " ")
        return f"{name} #{record.attempt}"

    async def record(self, key: str = "k") -> Record:
        found = await self.look(key)
        assert found is not None
        return found.record

    async def put_in_doubt(self, key: str = "k", *, attempt: int = 1) -> None:
        """As if a gate that is dead now had lost its answer."""
        from gateway.core import record as records

        asked, policy = self.ask(key), self.policy
        claim = records.claim(
            asked.fingerprint,
            holder=self.mint(),
            route="payments",
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=self.clock.wall(),
        )
        await self.store.claim(asked.name, claim)
        await self.store.settle(
            asked.name,
            records.hold(replace(claim, attempt=attempt), doubt=records.Doubt.LOST, status=0, wall=self.clock.wall()),
        )

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.quiet()
            self.nothing_is_left()

    async def quiet(self) -> None:
        """Until every lease is over, and what is repeated at its end."""
        await asyncio.sleep(self.policy.lease / 1000 + self.policy.wait / 1000 + 1)

    def nothing_is_left(self) -> None:
        live = [process for process in self.processes if not process.halted]
        for process in live:
            assert len(process.flights) == 0, "a flight stayed behind"
            assert process.flights.waiting == 0, "a waiter stayed behind"
            assert not process.wire.bells, "a bell stayed behind"
            assert len(process.tasks) == 0, "an exchange stayed behind"
            assert len(process.settler) == 0, "a settlement stayed behind"
            assert len(process.errors) == self.expected_errors, process.errors
            for client in process.clients:
                assert len(client.replies) <= 1, f"{client} was answered {len(client.replies)} times"
                assert client.gone or client.replies, f"{client} was never answered"
            assert len(process.observer.accounts) == len(process.clients), "an account for each, and only one"
        if live == self.processes:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks stayed behind: {left}"
        for attempt in self.service.attempts:
            assert not attempt.open or any(process.halted for process in self.processes), "a connection stayed open"
        for key, count in self.service.effects.items():
            assert count <= self.most_effects, f"{key!r} had {count} effects"


# ── What can be done to a task ────────────────────────────────────────────────────────────────────


class Driver:
    """Runs a coroutine, and does something at its n-th suspension. `reached` says whether it came so far."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reached = False

    async def drive(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` as a coroutine of its own: a task takes no generator (since Python 3.12)."""
        return await self._steps(work)

    @types.coroutine
    def _steps(self, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        count = 0
        error: BaseException | None = None
        while True:
            try:
                waited = work.send(None) if error is None else work.throw(error)
            except StopIteration as stop:
                return stop.value
            error = None
            count += 1
            if count == self.at:
                self.reached = True
                waited = self.act(waited)
            try:
                yield waited
                if count == self.at:
                    yield from self.after()
            except BaseException as raised:
                error = raised

    def act(self, waited: Any) -> Any:
        """At the suspension: what the task waits for, or something else in its place."""
        return waited

    def after(self) -> Generator[Any, Any, None]:
        """When it would go on."""
        return
        yield


class CancelWaiting(Driver):
    """Cancels the task while it waits there: at once, or after so many seconds if it still does."""

    def __init__(self, at: int, seconds: float = 0.0) -> None:
        super().__init__(at)
        self.seconds = seconds
        self.reached = False
        self.waits = False

    def act(self, waited: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.waits = True

        def strike() -> None:
            if self.waits:
                task.cancel()

        asyncio.get_running_loop().call_later(self.seconds, strike)
        return waited

    def after(self) -> Generator[Any, Any, None]:
        self.waits = False
        return
        yield


class CancelWoken(Driver):
    """Cancels the task when what it waited for is there, and it has not seen it yet: the result is lost."""

    def act(self, waited: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        if waited is None:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            # Ours is called before the task's own, which is added when the future reaches it.
            waiting = waited._asyncio_future_blocking
            waited.add_done_callback(lambda _: task.cancel())
            waited._asyncio_future_blocking = waiting
        return waited


class Kill(Driver):
    """The process dies there: the task never goes on, and nothing else of the process does."""

    def __init__(self, at: int, process: Process) -> None:
        super().__init__(at)
        self.process = process

    def after(self) -> Generator[Any, Any, None]:
        self.process.halt()
        yield from asyncio.get_running_loop().create_future()


class Pause(Driver):
    """The process stands still there, for so many seconds."""

    def __init__(self, at: int, seconds: float) -> None:
        super().__init__(at)
        self.seconds = seconds

    def after(self) -> Generator[Any, Any, None]:
        yield from asyncio.sleep(self.seconds).__await__()


__all__ = ["LEASE", "POLICY", "CancelWaiting", "CancelWoken", "Client", "Driver", "Kill", "Pause", "State", "World"]

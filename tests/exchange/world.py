"""One store, one service, and as many gateways before them as a test needs; under virtual time.

A world that is left is checked for leftovers: a key in flight, a waiter, a timer, a subscription, a task, a settlement,
a stream that is not read, a client that was not answered or was answered twice, a key that ran twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from gateway.awaitable import AwaitableStore
from gateway.core.fingerprint import Fingerprint, fingerprint
from gateway.core.key import Key, record_name
from gateway.core.limit import Limit
from gateway.core.message import Field, Request
from gateway.core.policy import SECOND, Policy, Route
from gateway.core.problem import Refusal
from gateway.core.record import Found, Record, State
from gateway.core.reply import Again, First, Live, Reply
from gateway.edge.budget import Budget
from gateway.engine.driver import Driver
from gateway.engine.io import Io
from gateway.engine.request import GuardedRequest
from gateway.ports import Account, Stream
from gateway.settling import Settler
from gateway.stores.memory import MemoryStore

from .interrupt import Cut, Interruption, Kill, Killed, Pause, ProcessLoop, Stop, Wheel
from .upstream import Service, Upstream
from .virtual import VirtualClock
from .wire import Belfry, Wire

#: Short enough to be told in round numbers: a lease of 20 s, of which 15 may be used.
POLICY = Policy(
    window=3600 * SECOND, doubt_window=600 * SECOND, timeout=10 * SECOND, late=5 * SECOND, margin=5 * SECOND
)
LEASE = POLICY.lease / 1000


class Client:
    """A client that waits for a reply: what it got, and when. It may leave."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.gone = False
        #: Its process was cut before it was answered: it need not be.
        self.cut = False
        self.here: ProcessLoop | None = None
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

    def cut_off(self) -> None:
        self.gone = True
        self._on_gone = None

    # ── ports.Sink ────────────────────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        self.received += data

    def end(self, *, clean: bool) -> None:
        self.ended = clean

    # ── The hand of the test ──────────────────────────────────────────────────────────────────────

    def leave(self) -> None:
        """Hang up."""
        self.gone = True
        if self.here is not None:
            self.here.call_soon(self._report_gone)
        if self.stream is not None:
            self.stream.detach()

    def _report_gone(self) -> None:
        call, self._on_gone = self._on_gone, None
        if call is not None:
            call()

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


@dataclass(frozen=True)
class Ask:
    """A guarded request before a client sends it."""

    request: Request
    route: Route
    key: Key
    name: bytes
    fingerprint: Fingerprint

    def of(self, client: Client, now: float) -> GuardedRequest:
        """As the edge makes it of a client's request."""
        return GuardedRequest(client, self.request, self.route, self.key, self.name, self.fingerprint, started=now)


class Notebook:
    """The observer that remembers."""

    def __init__(self) -> None:
        self.accounts: list[Account] = []
        self.calls: list[tuple[str, bool]] = []
        self.forgot = 0
        self.alarms: list[str] = []
        self.limits: list[Limit] = []

    def finished(self, account: Account) -> None:
        self.accounts.append(account)

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None:
        self.calls.append((operation, failed))

    def limited(self, limit: Limit) -> None:
        self.limits.append(limit)

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
    """A guarded request."""
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


#: Calls of `Io` that change nothing outside of the machine but a metric.
READS = frozenset(
    {"now", "wall", "mint", "jitter", "stopping", "subscribed", "upstream", "full", "limited"}
    | {"store_called", "attempted", "store_forgot", "alarm", "failed", "shortened"}
)


class InterruptibleDriver(Driver):
    """The driver of one process. After each call of a machine, something may befall the process."""

    def __init__(self, process: Process, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.process = process
        self._loop = process.here  # type: ignore[assignment]


def _interruptible(name: str) -> Callable[..., Any]:
    method = getattr(Driver, name)

    def call(self: InterruptibleDriver, *arguments: Any, **more: Any) -> Any:
        result = method(self, *arguments, **more)
        self.process.point(name)
        return result

    return call


for _name, _call in vars(Io).items():
    if callable(_call) and not _name.startswith("_") and _name not in READS:
        setattr(InterruptibleDriver, _name, _interruptible(_name))


class Process:
    """One gateway, with its own wire to the store."""

    def __init__(self, world: World, *, latency: float, per_key: int, in_all: int, buffers: int, short: bool) -> None:
        self.world = world
        self.here = ProcessLoop(world.loop, self._callback)  # type: ignore[arg-type]
        self.wire = Wire(world.store.port, latency=latency, belfry=world.belfry, here=self.here, short=short)
        self.observer = Notebook()
        self.errors: list[BaseException] = []
        self.clients: list[Client] = []
        self.settler = Settler(AwaitableStore(self.wire), world.clock, self.observer)
        self.wheel = Wheel(self.here, world.clock.now)
        self.budget = Budget(buffers, lambda: self.observer.limited(Limit.BUFFERS))
        self.driver = InterruptibleDriver(
            self,
            self.wire,
            {"service": Upstream(world.service, self.here)},
            world.clock,
            self.observer,
            self.settler,
            self.wheel,
            self.budget,
            mint=world.mint,
            jitter=lambda: 0.5,
            failed=self.errors.append,
            per_key=per_key,
            in_all=in_all,
        )
        self._interruption: Interruption | None = None

    def send(self, asked: Ask | None = None, client: Client | None = None, *, by: Interruption | None = None) -> Client:
        """A client sends a request. `by`: what befalls the process at a point from then on."""
        client = client or Client(str(len(self.clients)))
        client.here = self.here
        client.gone = client.gone or self.halted
        self.clients.append(client)
        self._interruption = by or self._interruption
        asked = asked or ask(policy=self.world.policy)

        def begin() -> None:
            request = asked.of(client, self.world.clock.now())
            client.account = request.summary
            self.driver.begin(request)

        self.here.call_soon(begin)
        return client

    def crowd(self, count: int, asked: Ask | None = None) -> list[Client]:
        return [self.send(asked) for _ in range(count)]

    # ── What befalls it ───────────────────────────────────────────────────────────────────────────

    def _callback(self, name: str) -> None:
        if self._interruption is not None:
            self._interruption.point(self, name)

    def point(self, name: str) -> None:
        """A machine has made a call."""
        self._callback(name)
        if self.halted:
            raise Killed

    @property
    def halted(self) -> bool:
        return self.here.dead

    def halt(self) -> None:
        """It is dead: nothing of it runs on, its clients' connections break. What it wrote to its wire arrives."""
        self.here.dead = True
        for client in self.clients:
            client.gone = True

    def pause(self, seconds: float) -> None:
        """Stand still from now on, between two callbacks."""
        self.here.stop_for(seconds)

    def stand_still(self, seconds: float) -> None:
        """Stand still in the middle of a callback."""
        self.here.stand_still(seconds)

    def stop(self) -> None:
        self.driver.stop()

    def cut(self) -> None:
        for client in self.clients:
            client.cut = client.cut or not client.replies
        self.driver.cut()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.here.call_later(seconds, call)

    def nothing_is_left(self) -> None:
        """Nothing stayed behind in it."""
        driver = self.driver
        assert len(driver) == 0, "a key stayed behind"
        assert driver.waiting == len(self.wheel) == 0, "a waiter stayed behind"
        assert not driver._timers, "a timer stayed behind"
        assert not driver._tails, "a stream stayed behind"
        assert len(driver._subscriptions) == len(self.wire.subscriptions) == 0, "a subscription stayed behind"
        assert len(self.settler) == 0, "a settlement stayed behind"
        assert self.budget.taken == 0, "bytes of a response stayed counted"


class World:
    """See the module. `rings`: its store notifies subscribers, as Redis does."""

    def __init__(self, policy: Policy = POLICY, *, rings: bool = False, **changes: Any) -> None:
        self.policy = replace(policy, **changes)
        self.belfry = Belfry() if rings else None
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._failed)
        #: What callbacks have raised.
        self.errors: list[dict[str, Any]] = []
        self.clock = VirtualClock(self.loop)
        self.store = AwaitableStore(MemoryStore(self.clock))
        self.service = Service(self.clock)
        self.processes: list[Process] = []
        self.most_effects = 1
        self.expected_errors = 0
        self._minted = 0

    def process(
        self, *, latency: float = 0.0005, per_key: int = 100, in_all: int = 10_000, buffers: int = 1 << 20
    ) -> Process:
        """One more gateway on the same store."""
        # Every second one replies to a claim with the record, in place of the stored answer.
        short = len(self.processes) % 2 == 0
        process = Process(self, latency=latency, per_key=per_key, in_all=in_all, buffers=buffers, short=short)
        self.processes.append(process)
        return process

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Killed):
            self.errors.append(context)

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
        assert not self.errors, self.errors
        for process in live:
            process.nothing_is_left()
            assert len(process.errors) == self.expected_errors, process.errors
            for client in process.clients:
                assert len(client.replies) <= 1, f"{client} was answered {len(client.replies)} times"
                assert client.gone or client.cut or client.replies, f"{client} was never answered"
            assert len(process.observer.accounts) == len(process.clients), "an account for each, and only one"
        if live == self.processes:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks stayed behind: {left}"
        for attempt in self.service.attempts:
            assert not attempt.open or any(process.halted for process in self.processes), "a connection stayed open"
        for key, count in self.service.effects.items():
            assert count <= self.most_effects, f"{key!r} had {count} effects"


__all__ = ["LEASE", "POLICY", "Client", "Cut", "Interruption", "Kill", "Pause", "Process", "State", "Stop", "World"]

"""What holds for any configuration that is accepted, any service, any crowd, and any bad luck.

A story is drawn: who asks when, what the service does, what befalls the wires. Afterwards the history of the store
and of the service is read back, and each promise is looked for in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.core.outcome import LostReason, NotSentReason
from gateway.core.policy import OnDoubt, Policy, StoreDown
from gateway.core.record import Done, Found, Kind, Record, Settlement, State
from gateway.core.reply import Again, First

from .upstream import NEVER, Plan
from .virtual import TICK, run
from .wire import Fault, Landed
from .world import POLICY, Client, Cut, Interruption, Kill, Pause, Process, Stop, World


def stories(count: int) -> settings:
    """So many, and the same ones on every run."""
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )


#: The wire's way there and back, with what the virtual clock adds.
TRIP = 0.002


# ── What may be drawn ─────────────────────────────────────────────────────────────────────────────

milliseconds = st.one_of(st.integers(1, 50), st.integers(1, 5_000), st.integers(1, 90_000))
or_none = st.one_of(st.just(0), milliseconds)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any that `check` accepts: the doubt window is no shorter than the lease, and nothing else is asked."""
    timing = {"timeout": draw(milliseconds), "late": draw(or_none), "margin": draw(st.sampled_from([20, 500, 5_000]))}
    lease = Policy(**timing).lease
    return Policy(
        **timing,
        window=draw(st.one_of(milliseconds, st.just(10_000_000))),
        doubt_window=lease + draw(st.one_of(or_none, st.just(10_000_000))),
        wait=draw(or_none),
        max_response=draw(st.integers(0, 40)),
        store_wait=draw(or_none),
    )


EVENTS = st.just(((b"Content-Type", b"text/event-stream"),))


def plans(scale: float) -> st.SearchStrategy[Plan]:
    """Whatever a service may do, within some of `scale` seconds."""
    spans = st.one_of(
        st.floats(0, 0.05), st.floats(0, scale), st.floats(0, 3 * scale), st.sampled_from([scale, scale / 2, NEVER])
    )
    status = st.sampled_from([200, 201, 404, 500])
    common: dict[str, st.SearchStrategy[object]] = {"connect": spans, "after": spans, "drip": spans}
    return st.one_of(
        st.builds(Plan, **common, status=status),
        st.builds(Plan, **common, status=status, body=st.binary(max_size=80)),
        st.builds(Plan, **common, status=st.sampled_from([502, 503, 504])),
        st.builds(Plan, **common, status=st.sampled_from([401, 425, 429]), effect=st.just(False)),
        st.builds(Plan, **common, status=status, fields=EVENTS, cuts=st.booleans()),
        st.builds(Plan, **common, status=status, closes=st.just(True)),
        st.builds(Plan, **common, breaks=st.sampled_from(LostReason)),
        st.builds(Plan, connect=spans, fails=st.sampled_from(NotSentReason)),
    )


@dataclass(frozen=True)
class Asks:
    """One request: when, at which process, and when its client leaves."""

    at: float
    process: int = 0
    leaves: float | None = None


@dataclass(frozen=True)
class Story:
    policy: Policy
    plans: list[Plan]
    asks: list[Asks]
    faults: dict[tuple[int, str], list[Fault]] = field(default_factory=dict)
    cuts: list[tuple[float, int, float, bool]] = field(default_factory=list)
    struck: tuple[int, Callable[[], Interruption]] | None = None
    rings: bool = False


def crowds(scale: float, processes: int, most: int = 6) -> st.SearchStrategy[list[Asks]]:
    moments = st.one_of(st.floats(0, 0.05), st.floats(0, scale), st.floats(0, 3 * scale))
    return st.lists(
        st.builds(
            Asks, at=moments, process=st.integers(0, processes - 1), leaves=st.one_of(st.none(), st.none(), moments)
        ),
        max_size=most,
    ).map(lambda asks: [Asks(0.0), *asks])


@st.composite
def peaceful(draw: st.DrawFn) -> Story:
    """Any configuration, any service; the store does what it should."""
    policy = draw(policies())
    scale = policy.lease / 1000
    told = draw(st.lists(plans(scale), min_size=1, max_size=3))
    return Story(policy, told, draw(crowds(scale, 2)), rings=draw(st.booleans()))


#: Until just before the lease's end, after which no command lands any more.
delays = st.one_of(st.floats(0, 1), st.floats(0, 16))
faults = st.one_of(
    st.just(Fault(lost=True)),
    st.just(Fault(dropped=True)),
    st.builds(Fault, late=delays),
    st.builds(Fault, slow=st.floats(0, 4)),
    st.just(Fault()),
)
#: A claim may find no room. A settlement may be delivered twice; a claim whose reply came may not: no
#: connection repeats by itself what was answered.
FAULTS = {
    "claim": st.one_of(faults, st.just(Fault(full=True))),
    "settle": st.one_of(faults, st.builds(Fault, again=delays)),
    "compare_and_swap": st.one_of(faults, st.builds(Fault, again=delays)),
    "get": faults,
}


@st.composite
def unlucky(draw: st.DrawFn, on_doubt: OnDoubt, store_down: StoreDown = StoreDown.REFUSE) -> Story:
    """A plain configuration, and whatever can befall the wires; one process may die or stand still."""
    asks = draw(crowds(20.0, 2))
    wires: dict[tuple[int, str], list[Fault]] = {}
    for process in range(2):
        for verb, kinds in FAULTS.items():
            befalls = draw(st.lists(kinds, max_size=4))
            if befalls:
                wires[process, verb] = befalls
    cuts = draw(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 1), st.floats(0, 30), st.booleans()), max_size=2))
    struck = None
    if draw(st.booleans()):
        at = draw(st.integers(1, 40))
        interruptions = [
            partial(Cut, at),
            partial(Stop, at),
            partial(Kill, at),
            *(partial(Pause, at, long) for long in (1.0, 15.0, 31.0)),
        ]
        struck = draw(st.integers(0, len(asks) - 1)), draw(st.sampled_from(interruptions))
    return Story(
        Policy(
            window=POLICY.window,
            doubt_window=POLICY.doubt_window,
            timeout=POLICY.timeout,
            late=POLICY.late,
            margin=POLICY.margin,
            on_doubt=on_doubt,
            store_down=store_down,
            max_attempts=draw(st.integers(2, 3)),
        ),
        draw(st.lists(plans(12.0), min_size=1, max_size=4)),
        asks,
        wires,
        cuts,
        struck,
        draw(st.booleans()),
    )  # fmt: skip


# ── Telling a story ───────────────────────────────────────────────────────────────────────────────


@dataclass
class History:
    world: World
    clients: list[Client]
    gates: list[Process]

    @property
    def landed(self) -> list[Landed]:
        """Everything that reached the store, in its order."""
        return sorted((command for gate in self.gates for command in gate.wire.landed), key=lambda each: each.at)


async def tell(story: Story) -> History:
    world = World(story.policy, rings=story.rings)
    gates = [world.process(), world.process()]
    world.service.will(*story.plans)
    clients: list[Client] = []
    for (process, verb), befalls in story.faults.items():
        gates[process].wire.next(verb, *befalls)
    for at, process, seconds, arrives in story.cuts:
        world.loop.call_later(at, _cut, gates[process], seconds, arrives)
    for number, asks in sorted(enumerate(story.asks), key=lambda each: each[1].at):
        if asks.at > world.time:
            await world.passes(asks.at - world.time)
        gate = gates[asks.process]
        if gate.halted:
            continue
        by = story.struck[1]() if story.struck is not None and story.struck[0] == number else None
        client = gate.send(by=by)
        clients.append(client)
        if asks.leaves is not None:
            world.loop.call_later(asks.leaves, client.leave)
    return History(world, clients, gates)


def _cut(gate: Process, seconds: float, arrives: bool) -> None:
    if not gate.halted:
        gate.wire.cut(seconds, arrives=arrives)


# ── Reading it back ───────────────────────────────────────────────────────────────────────────────


def no_run_while_one_may_have_run(history: History, *, most: int = 1) -> None:
    """Between two effects of a key its record ended: its window, or its doubt window, was over."""
    ends = [
        command.at + record.life / 1000
        for command in history.landed
        if (record := _written(command)) is not None and record.state is not State.IN_FLIGHT
    ]
    effects = [ran.at for ran in history.world.service.ran if ran.effect]
    since = 0
    for sooner, later in itertools.pairwise(effects):
        if any(sooner <= end <= later + TRIP for end in ends):
            since = 0
        else:
            since += 1
            assert since < most, f"a second effect at {later:.3f} s, after the one at {sooner:.3f} s"


def _written(command: Landed) -> Record | None:
    """The record that a command put in place."""
    if command.verb == "settle" and command.result in (Done.DONE, Done.FORGOT):
        assert isinstance(command.what, Settlement)
        return command.what.record
    if command.verb in ("claim", "compare_and_swap") and command.result is Done.WON:
        assert isinstance(command.what, Record)
        return command.what
    return None


def answers_agree(history: History) -> None:
    """Whoever was given a complete answer of a run was given the same status and body."""
    given = set()
    for client in history.clients:
        for reply in client.replies:
            match reply:
                case First(response, label) if label in ("stored", "not-stored", "not-kept"):
                    given.add((response.status, response.body))
                case Again(answer, label) if label in ("replayed", "not-stored"):
                    given.add((answer.status, answer.body))
                case _:
                    pass
    given = {answer for answer in given if answer[0] not in (401, 425, 429)}
    assert len(given) <= 1, given


def every_exchange_ends_in_its_lease(history: History) -> None:
    """A claim's settlement reaches the store before the lease is over, and finds the record alive. A stream that was
    held may be kept later, when it has ended."""
    begun: dict[bytes, float] = {}
    held: set[bytes] = set()
    for command in history.landed:
        if command.verb in ("claim", "compare_and_swap") and command.result is Done.WON:
            begun.setdefault(command.what.holder, command.at)
        elif command.verb == "settle" and command.what.kind is Kind.KEEP and command.what.holder in held:
            assert command.what.record is not None
            assert command.what.record.answer is not None
            assert command.what.record.answer.body is None
        elif command.verb == "settle":
            if command.what.kind is Kind.HOLD:
                held.add(command.what.holder)
            lease = history.world.policy.lease / 1000
            assert command.at - begun[command.what.holder] <= lease + TICK
            if command.what.kind is not Kind.RELEASE:
                assert command.result is Done.DONE


def everybody_was_answered(history: History) -> None:
    for client in history.clients:
        assert len(client.replies) <= 1
        assert client.gone or client.cut or client.replies, f"{client} was never answered"


async def nothing_stays(history: History) -> None:
    """Once those have left who still read a stream."""
    for client in history.clients:
        if client.ended is None and client.stream is not None:
            client.leave()
    await history.world.passes(0.1)
    assert not history.world.errors
    for gate in history.gates:
        if not gate.halted:
            gate.nothing_is_left()
            assert not gate.errors
    if not any(gate.halted for gate in history.gates):
        for attempt in history.world.service.attempts:
            assert attempt.stream is None or attempt.stream.over, "a stream that nobody reads and nobody closed"


def by_its_lease(found: Found | None, at: float) -> None:
    """Nobody's claim is trusted any more."""
    assert found is None or found.record.state is not State.IN_FLIGHT or found.record.lapsed(found.age), (
        f"{found.record} is in flight at {at:.3f} s, and its lease is not over"
    )


# ── The properties ────────────────────────────────────────────────────────────────────────────────


@stories(400)
@given(peaceful())
def test_any_configuration_with_any_service(story: Story) -> None:
    """No record dies before its exchange has ended; every exchange ends before its lease; one effect for a key while
    its record lives; one answer; every client answered exactly once; nothing left behind."""

    async def body() -> None:
        history = await tell(story)
        world = history.world
        await world.passes((2 * story.policy.lease + story.policy.wait) / 1000 + 11)
        if all(plan.drip < NEVER / 10 for plan in story.plans):
            await world.passes(10 * story.policy.lease / 1000)
        everybody_was_answered(history)
        no_run_while_one_may_have_run(history)
        every_exchange_ends_in_its_lease(history)
        if story.policy.window >= 10_000_000:
            answers_agree(history)
        await nothing_stays(history)
        by_its_lease(await world.look(), world.time)
        assert sum(gate.observer.forgot for gate in history.gates) == 0

    run(body())


@stories(700)
@given(unlucky(OnDoubt.HOLD))
def test_any_bad_luck_under_hold(story: Story) -> None:
    """Replies lost, commands late and twice, the store away, a process killed or standing still: under `hold` never a
    second effect, never two answers, no key stuck past its lease, no doubt where nothing was sent."""

    async def body() -> None:
        history = await tell(story)
        world = history.world
        await world.passes(60 - min(world.time, 59))
        no_run_while_one_may_have_run(history)
        answers_agree(history)
        await world.passes(POLICY.lease / 1000 + 31)
        everybody_was_answered(history)
        await nothing_stays(history)
        found = await world.look()
        by_its_lease(found, world.time)
        if not any(attempt.sent for attempt in world.service.attempts) and not any(
            gate.halted for gate in history.gates
        ):
            assert found is None, f"{found.record} although no byte was sent"
        stored = [client for client in history.clients if "stored" in client.said and "not-stored" not in client.said]
        if stored:
            assert found is not None
            assert found.record.state is State.COMPLETED

    run(body())


@stories(500)
@given(unlucky(OnDoubt.RERUN))
def test_any_bad_luck_under_rerun(story: Story) -> None:
    """The same under `rerun`: never more effects than attempts are allowed, no key stuck, everybody answered."""

    async def body() -> None:
        history = await tell(story)
        world = history.world
        await world.passes(100 - min(world.time, 99))
        effects = [ran for ran in world.service.ran if ran.effect]
        assert len(effects) <= story.policy.max_attempts
        assert all(number <= story.policy.max_attempts for number in world.service.numbers)
        await world.passes(POLICY.lease / 1000 + 31)
        everybody_was_answered(history)
        await nothing_stays(history)
        by_its_lease(await world.look(), world.time)

    run(body())


@stories(300)
@given(unlucky(OnDoubt.HOLD, StoreDown.FORWARD))
def test_any_bad_luck_with_runs_without_the_store(story: Story) -> None:
    """The same under `store_down: forward`, which accepts a second run: no key stuck, every client answered, nothing
    left behind."""

    async def body() -> None:
        history = await tell(story)
        world = history.world
        await world.passes(100 - min(world.time, 99) + POLICY.lease / 1000 + 31)
        everybody_was_answered(history)
        await nothing_stays(history)
        by_its_lease(await world.look(), world.time)

    run(body())


@stories(60)
@given(
    st.integers(2, 4),
    st.floats(0.001, 3),
    st.sampled_from([401, 429]),
    st.lists(st.floats(0, 2), min_size=20, max_size=20),
)
@example(2, 1.0, 429, [0.0] * 20)
def test_never_a_herd(gates: int, after: float, status: int, moments: list[float]) -> None:
    """However duplicates of a key that is freed again and again are spread over gates: in any one stay of theirs each
    gate forwards at most once."""

    async def body() -> None:
        async with World() as world:
            processes = [world.process() for _ in range(gates)]
            world.service.will(Plan(after=after + 2, status=status, effect=False))
            for number, moment in enumerate(moments):
                world.loop.call_later(moment, processes[number % gates].send)
            await world.passes(2.1)
            await world.passes(25)
            assert len(world.service.ran) <= gates

    run(body())

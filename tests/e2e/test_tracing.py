"""Traces: real gates, real stores, a real collector; what it is sent, and what the origin sees."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.core.record import State
from gateway.stores.codec import decode
from tests.collector import CLIENT, Collector, collecting
from tests.harness import Exchange, GateProcess, Origin, Received, ask, configuration, gate
from tests.servers import RedisServer, free_port

_numbers = itertools.count(1)


def a_trace() -> str:
    return f"{next(_numbers):032x}"


def part_of(trace: str, *, flags: str = "01", span: str = "00f067aa0ba902b7") -> tuple[str, str]:
    return "traceparent", f"00-{trace}-{span}-{flags}"


def traced(collector: Collector | str, *, sample: str = "1") -> str:
    endpoint = collector if isinstance(collector, str) else collector.endpoint
    return f'tracing: {{endpoint: "{endpoint}", sample: {sample}, service: gate}}'


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@asynccontextmanager
async def gates(
    *texts: str, arguments: tuple[str, ...] = (), environ: dict[str, str] | None = None
) -> AsyncIterator[list[GateProcess]]:
    """A gate in a process of its own for each configuration."""
    async with AsyncExitStack() as stack:
        made = [GateProcess(text, arguments=arguments, environ=environ) for text in texts]
        for gate in made:
            stack.callback(gate.close)
        await asyncio.gather(*(gate.start() for gate in made))
        yield made


class Held:
    """An origin's answer that waits until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.go.wait()
        await exchange.respond()


async def test_first_and_replay_across_two_gates(origin: Origin, redis: RedisServer, collector: Collector) -> None:
    """The first request: one span in its client's trace, with the claim, the attempt and the settlement below it; the
    origin is told of the attempt's. Its replay at another gate, in another trace: a claim and nothing else, and a
    link to the first. Nothing of either request is in the spans, and a replay in another trace is a replay."""
    text = configuration(origin.url, store=redis.url, top=traced(collector))
    first, second = a_trace(), a_trace()
    secret = [("Authorization", "Bearer token-4711"), ("X-Note", "note-4711")]
    more = {"key": "key-4711", "body": b'{"card":"body-4711"}', "target": "/orders?target-4711"}
    async with gates(text, text) as (one, other):
        state = ("tracestate", "vendor=a,other=b")
        answer = await ask(one.port, **more, fields=[*secret, part_of(first), state])
        assert (answer.status, answer.label) == (201, "stored")
        tree = await collector.tree(first, "claim", "upstream", "settle")
        server, upstream = tree["server"], tree["upstream"]
        (seen,) = origin.requests
        assert seen.values(b"traceparent") == [f"00-{first}-{upstream.id}-01".encode()]
        assert seen.values(b"tracestate") == [b"vendor=a,other=b"]

        again = await ask(other.port, **more, fields=[*secret, part_of(second)])
        assert (again.body, again.label) == (answer.body, "replayed")
        replay = (await collector.tree(second, "claim"))["server"]
        assert replay.links == [(first, server.id)]
        assert len(origin.requests) == 1

    assert (server.name, server.parent, server.links) == ("POST all", "00f067aa0ba902b7", [])
    assert server.told == {
        "http.request.method": "POST",
        "http.response.status_code": 201,
        "oncegate.route": "all",
        "oncegate.verdict": "forward",
        "oncegate.status": "stored",
        "oncegate.attempt": 1,
        "oncegate.settlement": "keep",
        "oncegate.reason": "answered",
    }
    assert upstream.kind == CLIENT
    assert upstream.told == {
        "http.response.status_code": 201,
        "oncegate.attempt": 1,
        "oncegate.outcome": "answered",
    }
    assert server.start <= tree["claim"].start <= tree["claim"].end <= upstream.start
    assert upstream.end <= tree["settle"].start <= tree["settle"].end <= server.end
    assert replay.told["oncegate.verdict"] == "replay"
    assert replay.told["oncegate.duplicate"] == "replayed"
    assert (server.resource["service.name"], server.resource["oncegate.service"]) == ("gate", "test")
    assert not any(span.failed for span in collector.spans)
    assert b"4711" not in collector.raw


ODD = [
    [("Traceparent", "not one"), ("tracestate", "a=b")],
    [("traceparent", "one"), ("traceparent", "two"), ("tracestate", "a=b"), ("tracestate", "c=d")],
    [("tracestate", "a=b")],
    [],
]


def of_traces(seen: Received) -> list[tuple[str, str]]:
    """What a request said of traces, as it came."""
    return [(name.decode(), value.decode()) for name, value in seen.raw_fields if name.lower().startswith(b"trace")]


async def test_a_gate_that_traces_nothing_changes_nothing(origin: Origin) -> None:
    """Whatever a client says of traces, the origin hears it: on guarded routes and on others."""
    said = [*ODD, [("TraceParent", part_of(a_trace())[1]), ("tracestate", "a=b")]]
    async with gate(configuration(origin.url)) as running:
        for number, fields in enumerate(said):
            await ask(running.port, key=f"k{number}", fields=fields)
            await ask(running.port, key=f"k{number}", target="/open/a", fields=fields)
    assert [of_traces(seen) for seen in origin.requests] == [each for each in said for _ in range(2)]


async def test_what_is_not_guarded_is_not_traced(origin: Origin, collector: Collector) -> None:
    """A gate that traces passes the traces of what it does not guard on as they are, and records nothing of them."""
    said = [*ODD, [("TraceParent", part_of(a_trace())[1]), ("tracestate", "a=b")]]
    async with gate(configuration(origin.url, top=traced(collector))) as running:
        for fields in said:
            await ask(running.port, key="k", target="/open/a", fields=fields)
            await ask(running.port, "GET", "/orders", fields=fields, body=b"")
        await ask(running.port, key="k", fields=[part_of(trace := a_trace())])
    assert [of_traces(seen) for seen in origin.requests[:-1]] == [each for each in said for _ in range(2)]
    assert {span.trace for span in collector.spans} == {trace}


async def test_what_else_the_origin_sees_is_what_the_client_sent(origin: Origin, collector: Collector) -> None:
    """A gate that traces and one that does not forward the same lines in the same order, but for the parent's span in
    traceparent, which keeps its place and its case. A tracestate that nobody can read goes on, and is not logged."""
    fields = [
        ("X-B", "1"),
        ("TraceParent", part_of(trace := a_trace())[1]),
        ("x-A", " 2 "),
        ("tracestate", "a=b,=4711"),
    ]
    async with gate(configuration(origin.url)) as off:
        await ask(off.port, key="k", fields=fields)
    async with gate(configuration(origin.url, top=traced(collector))) as on:
        await ask(on.port, key="k", fields=fields)
        tree = await collector.tree(trace, "claim", "upstream", "settle")
    assert not any("4711" in str(line) or "spans" in str(line) for line in on.lines)
    without, with_ = (request.raw_fields for request in origin.requests)
    assert dict(without)[b"TraceParent"] == part_of(trace)[1].encode()
    said = f"00-{trace}-{tree['upstream'].id}-01".encode()
    assert with_ == [(name, said if name == b"TraceParent" else value) for name, value in without]


async def test_a_trace_that_cannot_be_read_begins_here(origin: Origin, collector: Collector) -> None:
    """The origin has one traceparent, of a trace that the gate began, and no tracestate of another."""
    async with gate(configuration(origin.url, top=traced(collector))) as running:
        for number, fields in enumerate(ODD):
            await ask(running.port, key=f"k{number}", fields=fields)
    for seen in origin.requests:
        ((name, said),) = of_traces(seen)
        _, trace, parent, flags = said.split("-")
        tree = await collector.tree(trace, "claim", "upstream", "settle")
        assert (name.lower(), tree["server"].parent, tree["upstream"].id, flags) == ("traceparent", "", parent, "01")


async def test_who_waits_is_linked_to_whom_it_waits_for(
    origin: Origin, redis: RedisServer, collector: Collector
) -> None:
    """Two duplicates while the first is in flight, one at its own gate and one at another: each has a wait, and a link
    to the first; the one elsewhere has asked the store before."""
    origin.answer = held = Held()
    text = configuration(origin.url, store=redis.url, top=traced(collector))
    first, here, there = a_trace(), a_trace(), a_trace()
    async with gates(text, text) as (one, other):
        leading = asyncio.ensure_future(ask(one.port, key="k", fields=[part_of(first)]))
        await origin.until(1)
        waiting = [
            asyncio.ensure_future(ask(gate.port, key="k", fields=[part_of(trace), ("X-Retry", "yes")]))
            for gate, trace in ((one, here), (other, there))
        ]
        for gate in (one, other):
            await until_waits(gate)
        held.go.set()
        assert (await leading).label == "stored"
        assert [(await each).label for each in waiting] == ["replayed", "replayed"]
        run = (await collector.tree(first, "claim", "upstream", "settle"))["server"]
        attached = await collector.tree(here, "wait")
        watched = await collector.tree(there, "claim", "wait")
    assert attached["server"].links == watched["server"].links == [(first, run.id)]
    for tree in (attached, watched):
        assert tree["server"].told["oncegate.duplicate"] == "attached"
        assert tree["wait"].end <= tree["server"].end
    assert len(origin.requests) == 1


async def until_waits(gate: GateProcess, seconds: float = 10) -> None:
    """Wait until a duplicate waits at this gate, or watches another's flight there."""
    async with asyncio.timeout(seconds):
        while True:
            page = (await ask(gate.admin_port, "GET", "/metrics", body=b"")).body.decode()
            counts = [
                float(line.rpartition(" ")[2])
                for line in page.splitlines()
                if line.startswith(("oncegate_waiters{", 'oncegate_store_seconds_count{operation="look"'))
            ]
            if any(counts):
                return
            await asyncio.sleep(0.02)


async def test_a_doubt_and_its_duplicate(origin: Origin, redis: RedisServer, collector: Collector) -> None:
    """An attempt that is lost is a failed span with its reason, and is held; a duplicate is refused, and has no
    attempt. Under `rerun` the takeover is a claim of its own, and the attempt says which it is."""

    async def dies(exchange: Exchange) -> None:
        exchange.reset()

    origin.answer = dies
    text = configuration(
        origin.url,
        store=redis.url,
        top=traced(collector),
        routes="  - {name: again, match: {path: /again}, upstream: origin, on_doubt: rerun}",
    )
    lost, refused, once, twice = (a_trace() for _ in range(4))
    async with gate(text) as running:
        assert (await ask(running.port, key="k", fields=[part_of(lost)])).problem == "upstream-lost"
        assert (await ask(running.port, key="k", fields=[part_of(refused)])).problem == "in-doubt"
        run = await collector.tree(lost, "claim", "upstream", "settle")
        doubt = (await collector.tree(refused, "claim"))["server"]

        await ask(running.port, key="r", target="/again", fields=[part_of(once)])
        await ask(running.port, key="r", target="/again", fields=[part_of(twice)])
        await collector.until(lambda: collector.servers(twice))
        second = collector.below(collector.servers(twice)[0])
    assert (run["server"].failed, run["upstream"].failed, run["settle"].failed) == (True, True, False)
    assert run["upstream"].told == {"oncegate.outcome": "lost", "error.type": "closed", "oncegate.attempt": 1}
    assert (run["server"].told["oncegate.settlement"], run["server"].told["oncegate.reason"]) == ("hold", "lost")
    assert (doubt.told["oncegate.problem"], doubt.told["oncegate.verdict"], doubt.failed) == (
        "in-doubt",
        "refuse",
        False,
    )
    assert [span.name for span in second] == ["claim", "claim", "upstream", "settle"]
    assert second[1].told["oncegate.operation"] == "takeover"
    assert second[2].told["oncegate.attempt"] == 2


async def test_what_is_not_sampled(origin: Origin, redis: RedisServer, collector: Collector) -> None:
    """Where the client's trace is not recorded, its words go on untouched; where none is and the share is 0, the origin
    is told that this one is not. Neither leaves a trace in the record, and no span is sent. Where the client's is
    recorded, so is the gate's, whatever the share; only then is its record longer."""
    text = configuration(origin.url, store=redis.url, top=traced(collector, sample="0"))
    trace, theirs = a_trace(), part_of(a_trace(), flags="00")
    async with gate(text) as running:
        await ask(running.port, key="a", fields=[theirs, ("tracestate", "a=b")])
        await ask(running.port, key="b")
        with redis.client() as client:
            plain = [client.get(name) for name in client.scan_iter("og:*", 1000) if len(name) == 46]
        await ask(running.port, key="c", fields=[part_of(trace)])
        run = (await collector.tree(trace, "claim", "upstream", "settle"))["server"]
        with redis.client() as client:
            every = [client.get(name) for name in client.scan_iter("og:*", 1000) if len(name) == 46]
    assert [value[0] for value in plain] == [1, 1]
    (kept,) = [decode(value) for value in every if value not in plain]
    assert (kept.state, kept.trace.hex()) == (State.COMPLETED, trace + run.id)
    assert len(max(every, key=len)) - len(plain[0]) == 24
    untouched, told, _ = map(of_traces, origin.requests)
    assert untouched == [theirs, ("tracestate", "a=b")]
    assert [name for name, _ in told] == ["traceparent"]
    assert told[0][1].endswith("-00")
    assert {span.trace for span in collector.spans} == {trace}


@pytest.mark.parametrize("how", ["dead", "mute", "broken"])
async def test_a_collector_that_is_gone_is_harmless(origin: Origin, collector: Collector, how: str) -> None:
    """Nobody listens, or somebody who never answers, or answers 500: requests are served as ever, the log has one line
    of it, and a stop waits for it as long as its grace has left, or a second. What the environment says for the
    collector, and cannot be read, is not in the log."""
    collector.mute, collector.status = how == "mute", 500
    endpoint = f"http://127.0.0.1:{free_port()}/v1/traces" if how == "dead" else collector
    text = configuration(origin.url, top=f"grace: 1s\n{traced(endpoint)}")
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "Bearer 4711"} if how == "mute" else {}
    async with gates(text, environ=environ) as (one,):
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            told = "spans cannot be sent" in one.log.read_text()
            if number >= 50 and told and (how == "dead" or collector.posts >= {"mute": 1, "broken": 3}[how]):
                break
            began = loop.time()
            assert (await ask(one.port, key=f"k{number}", seconds=5)).label == "stored"
            assert loop.time() - began < 2
        began = loop.time()
        assert await one.terminate(15) == 0
        assert loop.time() - began < 4
        log = one.log.read_text()
    assert log.count("spans cannot be sent") == 1
    assert log.count("the last spans were not sent") <= 1
    assert "Traceback" not in log
    assert "4711" not in log
    assert len(log.splitlines()) <= number + 10


async def test_a_stop_sends_what_there_is(origin: Origin, collector: Collector) -> None:
    """A gate that is stopped the moment after its last answer, before what it gathers would be sent: every span is
    there once it has ended."""
    async with gates(configuration(origin.url, top=traced(collector))) as (one,):
        traces = [a_trace() for _ in range(20)]
        for trace in traces:
            await ask(one.port, key=trace, fields=[part_of(trace)])
        assert await one.terminate() == 0
        assert {len(collector.servers(trace)) for trace in traces} == {1}
        assert len(collector.spans) == 4 * len(traces)


async def test_each_worker_sends_its_own(origin: Origin, redis: RedisServer, collector: Collector) -> None:
    """With two workers there are spans of both, and a replay by either is linked to the run of whichever ran it."""
    text = configuration(origin.url, store=redis.url, top=traced(collector))
    async with gates(text, arguments=("--workers", "2")) as (one,):
        first = a_trace()
        await ask(one.port, key="k", fields=[part_of(first)])
        run = (await collector.tree(first, "claim", "upstream", "settle"))["server"]
        replays = []
        while len({span.resource["oncegate.worker"] for span in collector.spans}) < 2:
            replays.append(trace := a_trace())
            assert len(replays) < 64
            await ask(one.port, key="k", fields=[part_of(trace)])
            if len(replays) % 8 == 0:
                await collector.until(lambda: all(collector.servers(each) for each in replays))
        await collector.until(lambda: all(collector.servers(each) for each in replays))
    for trace in replays:
        (server,) = collector.servers(trace)
        assert server.links == [(first, run.id)]
    assert len({span.resource["service.instance.id"] for span in collector.spans}) == 2


async def test_without_the_extra_a_gate_that_traces_nothing_serves(origin: Origin, tmp_path: Path) -> None:
    """Nothing of it is loaded where no traces are asked for."""
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('no such module', name='opentelemetry')\n")
    gate = GateProcess(configuration(origin.url), environ={"PYTHONPATH": str(tmp_path)})
    try:
        await gate.start()
        assert (await ask(gate.port, key="k")).label == "stored"
    finally:
        gate.close()

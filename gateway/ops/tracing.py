"""Traces of guarded requests, for OpenTelemetry: what the extra `otel` brings is imported here and nowhere else.

What a request went through is noted while it goes, as a few numbers; the spans are made of that at its end, all at
once, and handed to a queue that a thread of OpenTelemetry's own empties towards the collector. A collector that is
slow, or gone, costs an exchange nothing: past the queue's bound spans are dropped. What is needed before the end are
ids alone: that of our span at the upstream, which is the parent of whatever the service records, and those that are
remembered with the answer, to which the span of a replay links.

No span has a key, a target, a body, or what a client or a service said in a field.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .. import __version__
from ..core.fields import Fields, fields_of
from ..core.message import Request
from ..core.outcome import Answered, Lost, NotSent, Outcome
from ..ports import UNTRACED, Account, Clock, Nobody, Observer, Trace
from .observers import Deaf

#: Spans that wait for the collector at most; how many are sent at once; for how many milliseconds they are gathered.
_QUEUE, _BATCH, _GATHER_MS = 8192, 512, 500
#: Seconds that a batch may take, tries included; and what is left of them at a stop, within the grace.
_TIMEOUT, _FAREWELL = 10.0, 5.0
#: The log hears of spans that cannot be sent so often at most, in seconds.
COMPLAINS_EVERY = 60.0
#: Calls of the store that one request records: a store that comes and goes makes many.
_MOST_STEPS = 64

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_FAILED = Status(StatusCode.ERROR)
_FINE = Status(StatusCode.UNSET)
_NO_PARENT = Context()
#: What OpenTelemetry calls the others is _OTHER: a method is the client's to choose.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))

Attributes = dict[str, str | int | float | bool]


class Traces(Deaf, Nobody):
    """The observer that records traces and sends them to a collector. `begin` makes the `Trace` of each request."""

    of_passing = True  # an exchange that failed before its verdict has a trace to be ended

    def __init__(
        self,
        endpoint: str,
        sample: float,
        service: str,
        clock: Clock,
        say: Callable[..., None],
        *,
        of: str,
        worker: int | None = None,
    ) -> None:
        """`service` is what the gate calls itself, `of` the API whose keys these are, `worker` the number of this
        process where there are several."""
        self.observers: tuple[Observer, ...] = (self,)
        self.clock = clock
        self.drawn = RandomIdGenerator()
        self._endpoint = endpoint
        self._complaints = _Complaints(clock, say, endpoint)
        self._sampler = ParentBased(TraceIdRatioBased(sample))
        self._propagator = TraceContextTextMapPropagator()
        about = {
            "service.name": service,
            "service.version": __version__,
            "service.instance.id": str(uuid.uuid4()),
            "host.name": socket.gethostname(),
            "oncegate.service": of,
        }
        self._resource = Resource.create(about if worker is None else {**about, "oncegate.worker": worker})
        self._scope = InstrumentationScope("oncegate", __version__)
        self._exporter: OTLPSpanExporter | None = None
        self._processor: BatchSpanProcessor | None = None

    def open(self) -> None:
        """Start the thread that sends. In the process that serves: no thread outlives a fork."""
        self._complaints.listen()
        self._exporter = OTLPSpanExporter(endpoint=self._endpoint, timeout=_TIMEOUT)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=_QUEUE,
            schedule_delay_millis=_GATHER_MS,
            max_export_batch_size=_BATCH,
        )

    async def close(self, seconds: float = 1.0) -> None:
        """Send what there is, at most so long. A second call does nothing."""
        processor, exporter = self._processor, self._exporter
        self._processor = self._exporter = None
        if processor is None or exporter is None:
            return
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def send() -> None:
            processor.shutdown()  # type: ignore[no-untyped-call]
            try:
                loop.call_soon_threadsafe(sent.set)
            except RuntimeError:
                pass  # nobody waits any more

        # Not of the loop's executor, for whose threads the interpreter would wait at its end.
        threading.Thread(target=send, name="oncegate-farewell", daemon=True).start()
        try:
            async with asyncio.timeout(min(seconds, _FAREWELL)):
                await sent.wait()
        except TimeoutError:
            exporter.shutdown()  # type: ignore[no-untyped-call]  # it tries no more
            self._complaints.late()
        finally:
            self._complaints.close()

    def begin(self, request: Request, now: float) -> Trace:
        """The trace of a guarded request that arrived at `now`: part of the one that its client is in, as `traceparent`
        says, or the first of a new one."""
        try:
            return self._begun(request, now)
        except Exception as error:  # OpenTelemetry's, in what a client sends
            self._complaints.hear(f"a trace was not begun: {error!r}")
            return UNTRACED

    def _begun(self, request: Request, now: float) -> Trace:
        fields = fields_of(request.fields)
        parent = self._parent(fields) if b"traceparent" in fields.shape.at else None
        if parent is None:
            context, trace = _NO_PARENT, self.drawn.generate_trace_id()
        else:
            context, trace = set_span_in_context(NonRecordingSpan(parent), _NO_PARENT), parent.trace_id
        if self._sampler.should_sample(context, trace, "").decision is Decision.RECORD_AND_SAMPLE:
            return Recorded(self, parent, trace, now)
        # Whoever began it records no more of it, and we are none of its parents; where nobody did, that is told onward.
        return UNTRACED if parent is not None else Unrecorded(trace, self.drawn.generate_span_id())

    def _parent(self, fields: Fields) -> SpanContext | None:
        """What the client said, where it can be read (W3C Trace Context §3.2, §3.3)."""
        told = fields.all(b"traceparent")
        if len(told) != 1:
            return None
        carrier = {"traceparent": told[0].decode("latin-1")}
        if states := fields.all(b"tracestate"):
            carrier["tracestate"] = b",".join(states).decode("latin-1")
        found = get_current_span(self._propagator.extract(carrier, _NO_PARENT)).get_span_context()
        return found if found.is_valid else None

    def finished(self, account: Account) -> None:
        if isinstance(account.trace, Recorded):
            try:
                account.trace.tell(account, self.clock.now())
            except Exception as error:
                self._complaints.hear(f"spans were not made: {error!r}")

    def span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes,
        times: tuple[int, int],
        *,
        failed: bool,
        links: tuple[Link, ...] = (),
    ) -> None:
        """Hand over a span that has ended. Times in nanoseconds since 1970.

        It is made as what a span is once it has ended: one that the SDK's tracer makes may be added to by many threads
        until then, and costs five times as much.
        """
        if self._processor is not None:
            self._processor.on_end(
                ReadableSpan(
                    name,
                    context,
                    parent,
                    self._resource,
                    attributes,
                    links=links,
                    kind=kind,
                    status=_FAILED if failed else _FINE,
                    start_time=times[0],
                    end_time=times[1],
                    instrumentation_scope=self._scope,
                )
            )


class Unrecorded(Trace):
    """A trace that begins here and is not recorded: the service is told so, or it would begin one of its own."""

    __slots__ = ("_said",)

    def __init__(self, trace: int, span: int) -> None:
        self._said = b"00-%032x-%016x-00" % (trace, span)

    def onward(self, request: Request) -> Request:
        return request._replace(fields=with_parent(fields_of(request.fields), self._said, goes_on=False))


class Recorded(Trace):
    """A trace that is recorded."""

    __slots__ = (
        "_links", "_parent", "_sent", "_span", "_started", "_steps", "_trace", "_traces", "_upstream",
        "_waits", "_wall", "context",
    )  # fmt: skip

    def __init__(self, traces: Traces, parent: SpanContext | None, trace: int, now: float) -> None:
        self._traces = traces
        self._parent = parent
        self._trace = trace
        self._span = traces.drawn.generate_span_id()
        self.context = trace.to_bytes(16) + self._span.to_bytes(8)
        self._started = now
        #: To the microsecond, which the clock of the records is not: beside spans of other services that shows.
        self._wall = time.time_ns()
        self._steps: list[tuple[str, float, float, Attributes, bool]] = []
        self._links: list[bytes] = []
        self._upstream = 0
        self._sent = 0.0
        self._waits: float | None = None

    # ── ports.Trace ───────────────────────────────────────────────────────────────────────────────

    def onward(self, request: Request) -> Request:
        self._upstream = self._traces.drawn.generate_span_id()
        self._sent = self._traces.clock.now()
        flags = _SAMPLED if self._parent is None else self._parent.trace_flags
        said = b"00-%032x-%016x-%02x" % (self._trace, self._upstream, flags)
        return request._replace(fields=with_parent(fields_of(request.fields), said, goes_on=self._parent is not None))

    def called(self, operation: str, begun: float, took: float, *, failed: bool) -> None:
        if operation == "look":
            return  # part of the wait
        self._waited(begun)
        name = "settle" if operation == "settle" else "claim"
        self._step(name, begun, begun + took, {"oncegate.operation": operation}, failed)

    def waits(self, since: float) -> None:
        if self._waits is None:
            self._waits = since

    def attempted(self, outcome: Outcome, begun: float, took: float) -> None:
        match outcome:
            case Answered(response):
                told: Attributes = {"oncegate.outcome": "answered", "http.response.status_code": response.status}
                failed = response.status >= 400
            case NotSent(reason):
                told, failed = {"oncegate.outcome": "not_sent", "error.type": reason.value}, True
            case Lost(reason=why):
                told, failed = {"oncegate.outcome": "lost", "error.type": why.value}, True
        self._step("upstream", begun, begun + took, told, failed)

    def follows(self, context: bytes) -> None:
        if len(context) == 24 and context not in self._links:
            self._links.append(context)

    # ── At its end ────────────────────────────────────────────────────────────────────────────────

    def _waited(self, until: float) -> None:
        since, self._waits = self._waits, None
        if since is not None:
            self._step("wait", since, max(until, since), {}, False)

    def _step(self, name: str, begun: float, ended: float, attributes: Attributes, failed: bool) -> None:
        if len(self._steps) < _MOST_STEPS:
            self._steps.append((name, begun, ended, attributes, failed))

    def tell(self, account: Account, now: float) -> None:
        """Make the spans of what happened."""
        traces = self._traces
        self._waited(min(self._started + account.total, now))
        if self._upstream and not any(step[0] == "upstream" for step in self._steps):
            self._step("upstream", self._sent, now, {"oncegate.outcome": "unknown", "error.type": "cancelled"}, True)
        method = account.method.decode("latin-1")
        told = _attributes(account, method if method in _METHODS else "_OTHER")
        links = tuple(
            Link(
                SpanContext(int.from_bytes(each[:16]), int.from_bytes(each[16:]), is_remote=True, trace_flags=_SAMPLED)
            )
            for each in self._links
        )
        mine = self._of(self._span)
        server = f"{told['http.request.method']} {account.route}"
        whole = (self._wall, self._nanoseconds(now))
        traces.span(server, mine, self._parent, SpanKind.SERVER, told, whole, failed=account.status >= 500, links=links)
        for name, begun, ended, attributes, failed in self._steps:
            kind, number = SpanKind.INTERNAL, 0
            if name == "upstream":
                kind, number = SpanKind.CLIENT, self._upstream
                attributes["oncegate.attempt"] = account.attempt
            context = self._of(number or traces.drawn.generate_span_id())
            times = (self._nanoseconds(begun), self._nanoseconds(ended))
            traces.span(name, context, mine, kind, attributes, times, failed=failed)

    def _of(self, span: int) -> SpanContext:
        """The context of a span of ours."""
        if self._parent is None:
            return SpanContext(self._trace, span, is_remote=False, trace_flags=_SAMPLED)
        return SpanContext(self._trace, span, False, self._parent.trace_flags, self._parent.trace_state)

    def _nanoseconds(self, instant: float) -> int:
        return self._wall + max(int((instant - self._started) * 1e9), 0)


def _attributes(account: Account, method: str) -> Attributes:
    """What is said of a request: words of ours, and nothing of its own but method and status."""
    told: dict[str, Any] = {
        "http.request.method": method,
        "http.response.status_code": account.status or None,
        "oncegate.route": account.route,
        "oncegate.verdict": account.verdict.value,
        "oncegate.duplicate": account.duplicate and account.duplicate.value,
        "oncegate.status": str(account.label) or None,
        "oncegate.problem": account.problem or None,
        "oncegate.attempt": account.attempt or None,
        "oncegate.settlement": account.settlement and account.settlement.value,
        "oncegate.reason": account.reason and account.reason.value,
        "oncegate.unprotected": account.unprotected or None,
    }
    return {name: said for name, said in told.items() if said is not None}


def with_parent(fields: Fields, parent: bytes, *, goes_on: bool) -> Fields:
    """The same lines with `parent` as their one `traceparent`, in the place of the one that is there, or last. Where
    the trace does not go on (what was said of one could not be read, or nothing was), `tracestate` says nothing any
    more (W3C Trace Context §4.3)."""
    at = fields.shape.at
    found = at.get(b"traceparent", ())
    if len(found) == 1 and (goes_on or b"tracestate" not in at):
        values = list(fields.values)
        values[found[0]] = parent
        return Fields(fields.shape, values)
    gone = (b"traceparent",) if goes_on else (b"traceparent", b"tracestate")
    lines = [line for line in fields if line[0].lower() not in gone]
    return fields_of([*lines, (b"traceparent", parent)])


def _said(record: logging.LogRecord) -> str:
    """What is told, less the values where they may be what the environment says (a collector's password)."""
    known = record.name.startswith(("opentelemetry.exporter.", "opentelemetry.sdk."))
    return record.getMessage() if known else str(record.msg)


class _Complaints(logging.Handler):
    """What OpenTelemetry says of its troubles, from whatever thread, as lines of our log: one in a while."""

    def __init__(self, clock: Clock, say: Callable[..., None], endpoint: str) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._say = say
        self._endpoint = endpoint
        self._logger = logging.getLogger("opentelemetry")
        self._next = 0.0
        self._unsaid = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = self._clock.now()
        self._logger.addHandler(self)
        self._logger.propagate = False

    def close(self) -> None:
        # The logger stays as it is: what a thread that is given up still says is nobody's business.
        self._logger.removeHandler(self)
        self._logger.addHandler(logging.NullHandler())
        self._loop = None
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        loop = self._loop
        # What it says of a client's tracestate is the client's business, and would keep silent what is ours.
        if loop is not None and not record.name.startswith("opentelemetry.trace"):
            try:
                loop.call_soon_threadsafe(self.hear, _said(record))
            except RuntimeError:
                pass  # the loop is closed

    def hear(self, why: str) -> None:
        """Say it, unless something was said a moment ago."""
        now = self._clock.now()
        if now < self._next:
            self._unsaid += 1
            return
        self._next = now + COMPLAINS_EVERY
        unsaid, self._unsaid = self._unsaid, 0
        more = {"unsaid": unsaid} if unsaid else {}
        self._say("warning", "spans cannot be sent", endpoint=self._endpoint, reason=why, **more)

    def late(self) -> None:
        self._say("warning", "the last spans were not sent", endpoint=self._endpoint)


__all__ = ["COMPLAINS_EVERY", "Recorded", "Traces", "Unrecorded", "with_parent"]

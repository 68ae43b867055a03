"""A collector of the tests' own: OTLP over HTTP, decoded by OpenTelemetry's own protobuf."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from opentelemetry.proto.trace.v1.trace_pb2 import Status

SERVER, CLIENT = Wire.SPAN_KIND_SERVER, Wire.SPAN_KIND_CLIENT


@dataclass
class Span:
    """A span as it came, ids in hexadecimal."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start: int
    end: int
    failed: bool
    told: dict[str, object]
    links: list[tuple[str, str]]
    resource: dict[str, object] = field(repr=False)


def _read(attributes: object) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}  # type: ignore[attr-defined]


class Collector:
    """What it has been sent. It answers with `status`; while `mute`, never."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        self.mute = False
        self.status = 200
        self.posts = 0
        self._came = asyncio.Condition()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    async def take(self, request: web.Request) -> web.Response:
        """`POST /v1/traces`."""
        data = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        self.raw += data
        async with self._came:
            self.posts += 1
            for of_resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                resource = _read(of_resource.resource.attributes)
                for scope in of_resource.scope_spans:
                    self.spans += [_span(wire, resource) for wire in scope.spans]
            self._came.notify_all()
        if self.mute:
            await asyncio.Event().wait()
        return web.Response(status=self.status, content_type="application/x-protobuf")

    async def until(self, enough: Callable[[], object], seconds: float = 10) -> None:
        """Wait until what has come is `enough`."""
        async with asyncio.timeout(seconds), self._came:
            await self._came.wait_for(enough)

    async def tree(self, trace: str, *names: str) -> dict[str, Span]:
        """The spans of the one server span in this trace, by their names; the server's own is `server`. Waits until
        they are there, and holds them to be these (`server` aside) and no others."""
        await self.until(lambda: self.servers(trace))
        (server,) = self.servers(trace)
        # They are handed over in one go: what is not in this batch is in the next.
        await self.until(lambda: len(self.below(server)) >= len(names))
        below = self.below(server)
        assert [span.name for span in below] == list(names)
        return {"server": server, **{span.name: span for span in below}}

    def servers(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace and span.kind == SERVER]

    def below(self, server: Span) -> list[Span]:
        """Its children, the earliest first."""
        found = [span for span in self.spans if (span.trace, span.parent) == (server.trace, server.id)]
        return sorted(found, key=lambda span: span.start)


def _span(wire: Wire, resource: dict[str, object]) -> Span:
    return Span(
        wire.name,
        wire.trace_id.hex(),
        wire.span_id.hex(),
        wire.parent_span_id.hex(),
        wire.kind,
        wire.start_time_unix_nano,
        wire.end_time_unix_nano,
        wire.status.code == Status.STATUS_CODE_ERROR,
        _read(wire.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in wire.links],
        resource,
    )


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.port = runner.addresses[0][1]
    try:
        yield collector
    finally:
        await runner.cleanup()

"""A guarded request at a key: the client that waits for its answer, and the summary that is logged of it."""

from __future__ import annotations

from typing import Protocol

from ..account import CAUGHT, Account, DuplicateKind, VerdictName
from ..core.fingerprint import Fingerprint
from ..core.key import Key
from ..core.message import Request, preferred_wait
from ..core.policy import Route
from ..core.problem import Refusal
from ..core.reply import Again, Reply
from ..core.values import value
from ..ports import Client, Stream
from ..trace import UNTRACED, Trace


class Waiting(Protocol):
    """The part of a machine that a waiting request needs."""

    def left(self, request: GuardedRequest) -> None: ...

    def wait_over(self, request: GuardedRequest) -> None: ...


@value
class Identified:
    """A guarded request, read whole: its key, the name of its record, and its fingerprint. `weak` says why the key is
    weak, empty if it is not."""

    request: Request
    route: Route
    key: Key
    name: bytes
    fingerprint: Fingerprint
    weak: str = ""


class GuardedRequest:
    """One guarded request, read whole. `started` is in the clock's seconds."""

    __slots__ = (
        "client", "fingerprint", "machine", "mark", "name", "policy", "request", "started", "summary", "terms", "tick",
        "upstream", "wait_until", "waits_since",
    )  # fmt: skip

    def __init__(
        self,
        client: Client,
        request: Request,
        route: Route,
        key: Key,
        name: bytes,
        fingerprint: Fingerprint,
        *,
        started: float,
        weak: str = "",
        trace: Trace = UNTRACED,
    ) -> None:
        self.client = client
        self.request = request
        self.policy = route.policy
        self.upstream = route.upstream
        self.name = name
        self.fingerprint = fingerprint
        self.mark = fingerprint.mark
        self.terms = route.terms
        self.started = started
        self.wait_until = started + self.policy.wait / 1000
        self.waits_since = 0.0
        #: The machine at which it waits, and the tick of its deadline in the timer wheel; None while it does not wait.
        self.machine: Waiting | None = None
        self.tick = 0
        summary = self.summary = Account(route.name, request.method, request.target, request.peer)
        summary.key = key
        summary.name = name
        summary.request_bytes = len(request.body)
        if weak:
            summary.weak = weak
        if trace is not UNTRACED:
            summary.trace = trace

    def due(self) -> None:
        """Report to its machine that it has waited as long as it may."""
        if self.machine is not None:
            self.machine.wait_over(self)

    def gone(self) -> None:
        """Report to its machine that its client has left."""
        if self.machine is not None:
            self.machine.left(self)

    def drop_body(self) -> None:
        """Forget the body: it has been sent and is not needed again."""
        self.request = self.request._replace(body=b"")

    def begin_waiting(self, now: float) -> None:
        """Mark it as waiting. `Prefer: wait` may shorten its limit."""
        summary = self.summary
        if summary.verdict is not VerdictName.WAIT:
            summary.verdict = VerdictName.WAIT
            self.waits_since = now
            preferred = preferred_wait(self.request.fields)
            if preferred is not None:
                self.wait_until = min(self.wait_until, self.started + preferred / 1000)
        summary.trace.waits(now)

    def answer_duplicate(
        self, reply: Reply, first_seen: int | None, *, trace: bytes, attached: bool, now: float, wall: int
    ) -> None:
        """Answer it from the record or the run of another request. `first_seen` is when the key was first seen, in
        milliseconds since 1970. `attached`: it shares the reply of a run of this process. `trace` is the context of
        that run."""
        summary = self.summary
        waited = summary.verdict is VerdictName.WAIT
        if first_seen is not None:
            summary.age = max(0.0, (wall - first_seen) / 1000)
        summary.trace.follows(trace)
        if attached:
            summary.duplicate = DuplicateKind.ATTACHED
        if isinstance(reply, Refusal):
            summary.duplicate = CAUGHT.get(reply.problem, summary.duplicate)
            if not waited:
                summary.verdict = VerdictName.REFUSE
        elif isinstance(reply, Again):
            summary.duplicate = DuplicateKind.ATTACHED if waited else DuplicateKind.REPLAYED
            if not waited:
                summary.verdict = VerdictName.REPLAY
        self.answer(reply, None, now=now)

    def refuse(self, refusal: Refusal, detail: str, *, now: float) -> None:
        """Answer it with a refusal that has nothing to do with another request."""
        if detail:
            self.summary.detail = detail
        if self.summary.verdict is VerdictName.PASS:
            self.summary.verdict = VerdictName.REFUSE
        self.answer(refusal, None, now=now)

    def answer(self, reply: Reply, stream: Stream | None, *, now: float) -> None:
        """Answer it once. A second answer is dropped, and its stream detached."""
        summary = self.summary
        if summary.total != 0.0:
            if stream is not None:
                stream.detach()
            return
        if isinstance(reply, Refusal):
            summary.refused(reply)
        else:
            response = reply.answer if isinstance(reply, Again) else reply.response
            summary.status = response.status
            summary.label = reply.label
            summary.response_bytes = len(response.body or b"")
        summary.total = now - self.started or 1e-9
        if summary.verdict is VerdictName.WAIT:
            summary.waited = now - self.waits_since
        self.client.reply(reply, stream)


__all__ = ["GuardedRequest", "Identified"]

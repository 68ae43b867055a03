"""What the machine of a key calls: the only way in which it reaches a store, an upstream, a client or a clock.

No call blocks. A call may trigger an event of the machine before it returns; the machine queues that event until its
own handler has ended. The calls that answer or finish requests, background work, and the bookkeeping of the driver
(`disarm`, `cancel_timer`, `unsubscribe`, `forget` and the observer) never raise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from ..core.limit import Limit
from ..core.outcome import LostReason, Outcome
from ..core.problem import Refusal
from ..core.record import Done, Found, NewClaim, NewKeep, Record, Settlement, Stamp
from ..core.reply import Again, Reply
from ..ports import Attempt, RecordTooLarge, Stream, Upstream
from .request import GuardedRequest


class RequestEvents(Protocol):
    """The machine of a key, as far as its requests go. No event of a machine raises."""

    name: bytes

    @property
    def waiting(self) -> int:
        """How many requests wait at the key."""

    def left(self, request: GuardedRequest) -> None: ...

    def wait_over(self, request: GuardedRequest) -> None: ...


class StoreEvents(RequestEvents, Protocol):
    """The machine, as far as its record goes."""

    def store_replied(self, result: Any) -> None: ...

    def store_back(self, up: bool) -> None: ...

    def notified(self) -> None: ...

    def timer(self) -> None: ...


class RunEvents(StoreEvents, Protocol):
    """The machine, as far as the run of its request goes."""

    def attempt_ended(self, outcome: Outcome | None) -> None: ...

    def stream_ended(self, outcome: Outcome | None) -> None: ...

    def retried(self, result: Done | Found | None) -> None: ...


class Io(Protocol):
    """The driver, as a machine sees it. Instants are the clock's, in seconds."""

    @property
    def stopping(self) -> bool:
        """Whether nothing is forwarded any more."""

    # Clock and chance

    def now(self) -> float: ...

    def wall(self) -> int:
        """Return the time of day in milliseconds since 1970."""

    def mint(self) -> bytes:
        """Return a new holder id."""

    def jitter(self) -> float:
        """Return a number from 0 to 1."""

    def timer(self, machine: StoreEvents, at: float) -> None:
        """Call `machine.timer()` at this instant, in place of an earlier one."""

    def cancel_timer(self, machine: RequestEvents) -> None: ...

    # Store: each of the first four is followed by one `machine.store_replied(result)`

    def claim(self, machine: StoreEvents, claim: NewClaim | Record) -> None: ...

    def compare_and_swap(self, machine: StoreEvents, precondition: Stamp, claim: Record) -> None: ...

    def get(self, machine: StoreEvents) -> None: ...

    def settle(self, machine: RunEvents, settlement: Settlement | NewKeep) -> None: ...

    def subscribe(self, machine: StoreEvents) -> None:
        """Call `machine.notified()` when the record may have been settled."""

    def subscribed(self, machine: StoreEvents) -> bool:
        """Return whether the subscription is active, so that a settlement made now would call `machine.notified()`."""

    def unsubscribe(self, machine: StoreEvents) -> None: ...

    def wait_for_store(self, machine: StoreEvents, until: float) -> None:
        """Call `machine.store_back(up)` once: true as soon as the store is available, false at `until`."""

    # Upstream

    def upstream(self, request: GuardedRequest) -> Upstream:
        """Return the service of its route, which a reload may have replaced. Raises KeyError if there is none."""

    def forward(
        self,
        machine: RunEvents,
        request: GuardedRequest,
        upstream: Upstream,
        *,
        number: int,
        send_by: float,
        until: float,
    ) -> Attempt:
        """Begin the attempt of a request. `machine.attempt_ended(outcome)` follows, or
        `machine.attempt_ended(None)` at `until`."""

    def wait_for_attempt(self, machine: RunEvents, attempt: Attempt, until: float) -> None:
        """Go on waiting for `machine.attempt_ended`."""

    def wait_for_stream(self, machine: RunEvents, stream: Stream, until: float) -> None:
        """Call `machine.stream_ended(outcome)` at the end of the response, or `machine.stream_ended(None)` at
        `until`."""

    def abandon(self, attempt: Attempt, reason: LostReason) -> None:
        """End the attempt, or the stream of its response. Any outcome is reported during this call; none follows."""

    def read_on(self, attempt: Attempt, until: float) -> None:
        """Read a response to its end although its claim is settled. After `until`, stop unless its client still
        reads."""

    # Requests

    def full(self, machine: RequestEvents) -> Limit | None:
        """Return the cap that one more waiter would exceed."""

    def limited(self, limit: Limit) -> None:
        """Count a request that a cap refused."""

    def arm(self, machine: RequestEvents, request: GuardedRequest) -> None:
        """Count the request as a waiter. Call `machine.wait_over(request)` at its `wait_until` and
        `machine.left(request)` if its client leaves."""

    def disarm(self, request: GuardedRequest) -> None: ...

    def answer(self, request: GuardedRequest, reply: Reply, stream: Stream | None = None) -> None:
        """Answer the claimant with the outcome of its own run. Its summary is not finished by that."""

    def share(
        self,
        replies: Iterable[tuple[GuardedRequest, Reply]],
        record: Record | None = None,
        *,
        trace: bytes = b"",
        attached: bool = False,
    ) -> None:
        """Answer duplicates and finish their summaries. `record` is the record that they met. `attached`: they share
        the reply of a run of this process."""

    def replay(self, request: GuardedRequest, reply: Again) -> None:
        """Answer a request from a stored response, and finish its summary."""

    def refuse(self, requests: Iterable[GuardedRequest], refusal: Refusal, detail: str = "") -> None:
        """Refuse requests for a reason that has nothing to do with other requests, and finish their summaries."""

    def finish(self, request: GuardedRequest) -> None:
        """Report the summary of a request, once."""

    def rejoin(self, request: GuardedRequest) -> None:
        """Look in the table again: this machine has ended."""

    def disconnect(self, requests: Iterable[GuardedRequest]) -> None:
        """Close the connections of these requests: they cannot be answered."""

    # Background work

    def retry_settlement(
        self,
        machine: RunEvents,
        settlement: Settlement | NewKeep,
        route: str,
        *,
        until: float,
        held: int,
        claimed: bool,
        unprotected: bool,
    ) -> None:
        """Settle in the background until `until`; `machine.retried(result)` follows. `held`: the bytes of the
        response's body, which stays in memory until then. They count in `limits.buffers`. If they do not fit, the
        settlement of an unprotected run is dropped. `claimed`: a missing record counts as lost by the store, unless
        the run was unprotected."""

    def shortened(self, settlement: Settlement | NewKeep, refused: RecordTooLarge, route: str) -> Settlement | None:
        """Return the settlement without the response that the store refuses, None if there is none to leave out."""

    def abandon_claim(self, machine: StoreEvents, claim: NewClaim | Record, t0: float) -> None:
        """Release this claim in the background, repeatedly, until it can no longer land."""

    def repeat_release(
        self, machine: RunEvents, settlement: Settlement | NewKeep, route: str, lease_ends: float
    ) -> None:
        """Repeat a Release later, since a delayed claim of the same holder may still land."""

    # The table and the observer

    def forget(self, machine: RequestEvents) -> None:
        """Remove the machine from the table."""

    def store_called(
        self, request: GuardedRequest | None, operation: str, began: float, now: float, *, failed: bool
    ) -> None: ...

    def attempted(self, request: GuardedRequest, outcome: Outcome, began: float, now: float) -> None: ...

    def store_forgot(self, route: str) -> None: ...

    def alarm(self, what: str, route: str) -> None: ...

    def failed(self, error: BaseException) -> None:
        """Report a fault of the gateway."""


__all__ = ["Io", "RequestEvents", "RunEvents", "StoreEvents"]

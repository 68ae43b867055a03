"""Gates with one defect each, switched on by name, so that the suite can be seen to fail.

    ONCEGATE_DEFECT=NAME python -m tests.faults.defects run --config …

Each is a fault that systems of this kind have had. Nothing of it is in the product: the gate is started
from here, and one thing in it is replaced. `ONCEGATE_SKEW` sets this gate's wall clock ahead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import Any

import gateway.core.decide as decide
import gateway.core.policy as policy
import gateway.core.record as record
import gateway.edge.client as client
import gateway.edge.express as express
import gateway.edge.server as server
import gateway.edge.shared as shared
import gateway.edge.upstream as upstream
import gateway.edge.visit as visits
import gateway.exchange as exchange
import gateway.settling as settling
import gateway.stores.redis.link as link
import gateway.stores.redis.store as redis_store
from gateway import app, cli, clock, flights
from gateway.awaitable import result_of
from gateway.core.outcome import Answered, LostReason
from gateway.core.record import Done, Found, Kind
from gateway.ports import StoreAway
from gateway.stores.redis.pipeline import pack

DEFECTS: dict[str, Callable[[], None]] = {}


def defect(install: Callable[[], None]) -> Callable[[], None]:
    """A defect of exchanges: nothing goes the express way, where it would not be met."""

    def installed() -> None:
        shared.Shared._express = lambda self: None  # type: ignore[method-assign]
        install()

    DEFECTS[install.__name__.replace("_", "-")] = installed
    return install


def express_defect(install: Callable[[], None]) -> Callable[[], None]:
    DEFECTS[install.__name__.replace("_", "-")] = install
    return install


def _rewrite_script(right: bytes, wrong: bytes) -> None:
    """Replace a part of the script, which must be there, in what is sent to Redis."""
    script = link.SCRIPT.replace(right, wrong)
    assert script != link.SCRIPT, right
    link.SCRIPT = redis_store.SCRIPT = script
    link.SHA = redis_store.SHA = hashlib.sha1(script).hexdigest().encode()


def _claim_life(life: Callable[[Any], int]) -> None:
    """Let claims be written to live for another time."""
    made = policy.Policy.__post_init__

    def after(self: Any) -> None:
        made(self)
        object.__setattr__(self, "claim_life", life(self))

    policy.Policy.__post_init__ = after  # type: ignore[method-assign]


def _release(reason: LostReason) -> None:
    """Settle what was lost for this reason by a Release."""
    settle = decide.settle

    def released(outcome: Any, rules: Any) -> Any:
        verdict = settle(outcome, rules)
        if getattr(outcome, "reason", None) is reason:
            return dataclasses.replace(verdict, kind=Kind.RELEASE)
        return verdict

    exchange.settle = released


@defect
def check_then_set() -> None:
    """The claim looks, and then sets: two gates find nothing and both set."""

    async def look_and_set(store: Any, name: bytes, mine: Any, reply: Any) -> None:
        try:
            if (found := await result_of(store.get, name)) is None:
                key = store._prefix + name
                packed = pack(b"SET", key, redis_store.encode(mine), b"PX", b"%d" % mine.life)
                await store._fleet.of(key).main.call(packed)
            reply(found or Done.WON)
        except StoreAway as away:
            reply(away)

    def claim(self: Any, name: bytes, mine: Any, reply: Any) -> None:
        self.tasks.start(look_and_set(self, name, mine, reply))

    redis_store.RedisStore.claim = claim  # type: ignore[method-assign]


@defect
def holder_without_state() -> None:
    """The script compares the holder and not the state: a takeover moves a record that was completed meanwhile."""
    compared = b"if holder ~= ARGV[3] or not string.find(ARGV[4], tostring(state), 1, true) then"
    _rewrite_script(compared, b"if holder ~= ARGV[3] then")


@defect
def cancel_on_disconnect() -> None:
    """The exchange ends with its client."""
    running: dict[Any, asyncio.Task[Any]] = {}
    leave = visits.Visit.leave

    def begin(self: Any, ask: Any, client: Any) -> None:
        running[client] = self.tasks.start(exchange.Exchange(self, ask, client).run())

    def left(self: Any) -> None:
        leave(self)
        if self in running:
            running.pop(self).cancel()

    exchange.Gate.begin = begin  # type: ignore[method-assign]
    visits.Visit.leave = left  # type: ignore[method-assign]


@defect
def release_on_timeout() -> None:
    """No answer in time is taken for "not done"."""
    _release(LostReason.TIMEOUT)


@defect
def release_on_loss() -> None:
    """A connection that breaks after the request was sent is taken for "not done"."""
    _release(LostReason.CLOSED)


@defect
def bare_503_released() -> None:
    """A 503 without Retry-After is taken for "not done"."""
    decide.RELEASED = policy.RELEASED | {503}


@defect
def lease_by_the_local_clock() -> None:
    """A record's age is told by this gate's own wall clock."""
    lapsed = record.Record.lapsed

    def by_wall(self: Any, age: int) -> bool:
        return lapsed(self, clock.HostClock().wall() - self.written)

    record.Record.lapsed = by_wall  # type: ignore[method-assign]
    resolve = decide.resolve

    def resolved(found: Any, mine: Any, rules: Any) -> Any:
        age = clock.HostClock().wall() - found.record.written
        return resolve(Found(found.record, age), mine, rules)

    exchange.resolve = resolved
    _rewrite_script(b"if ARGV[8] ~= '' and state == 1 then", b"if false then")


@defect
def answer_before_store() -> None:
    """The client is told first, and the record is written a moment later."""
    opened = app.open_store
    later: set[asyncio.TimerHandle] = set()

    def open_store(*where: Any, **how: Any) -> Any:
        store = opened(*where, **how)
        settle = store.settle

        def at_once(name: bytes, settlement: Any, reply: Any) -> None:
            later.add(asyncio.get_running_loop().call_later(0.02, settle, name, settlement, lambda _: None))
            reply(Done.DONE)

        store.settle = at_once  # type: ignore[method-assign]
        return store

    app.open_store = open_store


@defect
def holder_id_reused() -> None:
    """Every claim has the same holder."""
    app.Mint.holder = lambda self: b"x" * record.HOLDER_BYTES  # type: ignore[method-assign]


@defect
def claim_lives_for_the_window() -> None:
    """The claim is written to live for the window of its answer."""
    _claim_life(lambda self: self.window)


@defect
def lapse_frees_the_key() -> None:
    """The claim lives for its lease, and then the key is free again."""
    _claim_life(lambda self: self.lease)


@defect
def waiter_stampede() -> None:
    """Whoever waits goes to the store and the upstream by itself when a release wakes it."""
    flights.Flights.get = lambda self, name: None  # type: ignore[method-assign]

    def opened(self: Any, name: bytes) -> Any:
        flight = flights.Flight(name)
        self._by_name[(name, id(flight))] = flight
        return flight

    flights.Flights.open = opened  # type: ignore[method-assign]
    flights.Flights.forget = lambda self, flight: self._by_name.pop((flight.name, id(flight)), None)  # type: ignore[method-assign]
    exchange.JITTER = 0.0


@defect
def not_told_again() -> None:
    """A Keep that finds nothing writes nothing: the store forgot, and so does the gate."""
    record.Settlement.tells_again = property(lambda self: False)  # type: ignore[assignment,method-assign]


@defect
def release_not_repeated() -> None:
    """A claim of which nobody knew is released once, and may land after that."""
    settling.Settler.repeat = lambda self, *args, **more: None  # type: ignore[method-assign]


@defect
def deadline_from_the_send() -> None:
    """The deadline counts from when the process gets to send, and not from the claim."""
    attempt = exchange.Exchange._attempt

    async def late(self: Any, flight: Any, claim: Any) -> Any:
        self.t0 = self.gate.clock.now()
        return await attempt(self, flight, claim)

    exchange.Exchange._attempt = late  # type: ignore[method-assign]


@defect
def sent_again_when_lost() -> None:
    """The request is written again on a new connection when the first one breaks (as HTTP clients do for PUT)."""
    lost = upstream.GuardedAttempt.lost

    def again(self: Any, reason: Any, detail: str) -> None:
        if reason is LostReason.CLOSED and self not in tried:
            tried.add(self)
            self._data, self._connection, self._head = written[self], None, None
            self._pool.acquire(self)
            return
        lost(self, reason, detail)

    connected = upstream.GuardedAttempt.connected

    def remembering(self: Any, connection: Any) -> None:
        written[self] = self._data
        connected(self, connection)

    tried: set[Any] = set()
    written: dict[Any, bytes] = {}
    upstream.GuardedAttempt.lost = again  # type: ignore[method-assign]
    upstream.GuardedAttempt.connected = remembering  # type: ignore[method-assign]


@defect
def truncation_kept() -> None:
    """An answer that was cut within its body is taken for one that ended."""
    lost = upstream.GuardedAttempt.lost

    def kept(self: Any, reason: Any, detail: str) -> None:
        if self._head is not None and self.stream is None:
            self._conclude(Answered(upstream.Response(self._head.status, self._head.fields, b"".join(self._chunks))))
            return
        lost(self, reason, detail)

    upstream.GuardedAttempt.lost = kept  # type: ignore[method-assign]


@defect
def reset_by_its_reader() -> None:
    """A client that leaves takes the service's connection along."""
    detach = upstream.LiveStream.detach

    def resets(self: Any) -> None:
        self._let_go = True
        detach(self)

    upstream.LiveStream.detach = resets  # type: ignore[method-assign]


@defect
def done_at_its_head() -> None:
    """An answer that cannot be stored is settled as done at its head."""

    async def flow(self: Any, response: Any, stream: Any, claim: Any) -> Any:
        self._reply(exchange.Live(response, exchange.Label.NOT_KEPT, claim.first_seen), stream)
        return stream._answered

    exchange.Exchange._flow = flow  # type: ignore[method-assign]


@defect
def fingerprint_ignored() -> None:
    """The key alone says what the request is."""
    decide.difference = exchange.difference = lambda theirs, mine: None


@defect
def stopped_at_once() -> None:
    """SIGTERM ends the process with whatever is in flight."""

    async def stop(self: Any) -> Any:
        os._exit(0)

    app.App.stop = stop  # type: ignore[method-assign]


@defect
def guests_cut_off() -> None:
    """A drain closes at once whatever was accepted and has not asked yet, and whoever stands in the queue."""
    drain = client.ClientConnection.drain
    client.ClientConnection.drain = lambda self, quiet=0.0: drain(self)  # type: ignore[method-assign]

    async def nobody(self: Any) -> None:
        pass

    server.Server._let_in = nobody  # type: ignore[method-assign]


@defect
def drained_without_settling() -> None:
    """A drain is over when the last client is gone; what runs for those who have hung up is left as it is."""

    async def stop(self: Any) -> Any:
        await self._server.drain(self.settings.grace / 1000)
        self.log.say("info", "stopped: everything in flight was answered and settled")
        self.log.close()
        os._exit(0)

    app.App.stop = stop  # type: ignore[method-assign]


@defect
def body_not_awaited() -> None:
    """A guarded request is forwarded when its connection ends, with as much of its body as came."""
    eof = client.ClientConnection.connection_lost

    def lost(self: Any, error: Any) -> None:
        visit = self._reading
        if visit is not None and isinstance(visit.way, client.Guarded):
            body = b"".join(visit.chunks)
            self.server.gate.begin(self.server.door.ask(visit.head, body, self._peer, visit.way), visit)
        eof(self, error)

    client.ClientConnection.connection_lost = lost  # type: ignore[method-assign]


@express_defect
def express_answers_first() -> None:
    """On the express way the client is told first, and the record is written a moment later."""
    kept = redis_store.RedisStore.ask_keep
    later: set[asyncio.TimerHandle] = set()

    def at_leisure(self: Any, name: bytes, holder: bytes, value: bytes, life: int, told: Any) -> bool:
        class Nobody:
            def done(self) -> bool:
                return True

        loop = asyncio.get_running_loop()
        later.add(loop.call_later(0.02, kept, self, name, holder, value, life, Nobody()))
        loop.call_soon(told.set_result, 1)
        return True

    redis_store.RedisStore.ask_keep = at_leisure  # type: ignore[method-assign]


@express_defect
def express_replays_anything() -> None:
    """On the express way the key alone says what the request is."""
    stored = redis_store.stored
    redis_store.stored = lambda value, mark: stored(value, value[17:53])


@express_defect
def express_tries_again() -> None:
    """On the express way a request whose connection broke is sent once more."""
    keep = express.Express._keep

    def again(self: Any, outcome: Any) -> None:
        if getattr(outcome, "reason", None) is LostReason.CLOSED and not hasattr(self, "tried"):
            self.tried = True
            self._forward(self._sent_at, self.started + 1)
        else:
            keep(self, outcome)

    express.Express._keep = again  # type: ignore[method-assign]


@express_defect
def express_not_mustered() -> None:
    """A stop waits for tasks alone, and ends what goes the express way."""
    exchange.Gate.muster = lambda self: None  # type: ignore[method-assign]


def main() -> None:
    name, skew = os.environ.get("ONCEGATE_DEFECT", ""), float(os.environ.get("ONCEGATE_SKEW") or 0)
    if skew:
        wall = clock.HostClock.wall
        clock.HostClock.wall = lambda self: wall(self) + int(skew * 1000)  # type: ignore[method-assign]
    if name:
        DEFECTS[name]()
    cli.main()


if __name__ == "__main__":
    main()

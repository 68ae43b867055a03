"""Gateways with one defect each, switched on by name, so that the suite can be seen to fail.

    ONCEGATE_DEFECT=NAME python -m tests.faults.defects run --config …

Each is a fault that systems of this kind have had. Nothing of it is in the product: the gateway is started from here,
and one function in it is replaced. `ONCEGATE_SKEW` sets the wall clock of this gateway ahead.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from typing import Any

import gateway.core.decide as decide
import gateway.core.policy as policy
import gateway.core.record as record
import gateway.edge.client as client
import gateway.edge.line as lines
import gateway.edge.server as server
import gateway.edge.upstream as upstream
import gateway.engine.acquisition as acquisition
import gateway.engine.driver as driver
import gateway.engine.exchange as exchange
import gateway.engine.machine as machine
import gateway.settling as settling
import gateway.stores.redis.link as link
import gateway.stores.redis.store as redis_store
from gateway import app, cli, clock, failpoints
from gateway.awaitable import result_of
from gateway.core.outcome import Answered, Lost, LostReason, NotSent, NotSentReason
from gateway.core.record import Done, Found
from gateway.failpoints import Point
from gateway.ports import StoreAway
from gateway.stores.redis.pipeline import pack

DEFECTS: dict[str, Callable[[], None]] = {}


def defect(install: Callable[[], None]) -> Callable[[], None]:
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
    """Take an attempt that was lost for this reason for one that sent nothing: its claim is released."""
    conclude = exchange.Exchange._conclude

    def not_done(self: Any, run: Any, outcome: Any, now: float) -> None:
        if isinstance(outcome, Lost) and outcome.reason is reason:
            outcome = NotSent(NotSentReason.UNREACHABLE, outcome.detail)
        conclude(self, run, outcome, now)

    exchange.Exchange._conclude = not_done  # type: ignore[method-assign]


@defect
def check_then_set() -> None:
    """A claim reads, and then sets: two gateways find nothing and both set."""

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
    """The run of a request ends with its client."""
    running: dict[Any, Any] = {}
    begin, leave = driver.Driver.begin, lines.Visit.leave

    def begun(self: Any, request: Any) -> None:
        running[request.client] = self, request
        begin(self, request)

    def left(self: Any) -> None:
        leave(self)
        if self in running:
            machines, request = running.pop(self)
            for each in machines:
                if each.claimant is request:
                    each.cut()

    driver.Driver.begin = begun  # type: ignore[method-assign]
    lines.Visit.leave = left  # type: ignore[method-assign]


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
    """The age of a record is read from the wall clock of this gateway."""
    lapsed = record.Record.lapsed

    def by_wall(self: Any, age: int) -> bool:
        return lapsed(self, clock.HostClock().wall() - self.written)

    record.Record.lapsed = by_wall  # type: ignore[method-assign]
    resolve = decide.resolve

    def resolved(found: Any, mine: Any, rules: Any) -> Any:
        age = clock.HostClock().wall() - found.record.written
        return resolve(Found(found.record, age), mine, rules)

    acquisition.resolve = exchange.resolve = resolved
    _rewrite_script(b"if ARGV[8] ~= '' and state == 1 then", b"if false then")


@defect
def answer_before_store() -> None:
    """The client is answered first, and the record is written a moment later."""
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
    """Each waiter claims on its own, and at once, when a release notifies it."""

    def begin(self: Any, request: Any) -> None:
        own = exchange.Exchange(self, request)
        self._table[request.name, id(own)] = own
        own.begin()

    def forget(self: Any, own: Any) -> None:
        self._table.pop((own.name, id(own)), None)

    driver.Driver.begin = driver.Driver.rejoin = begin  # type: ignore[method-assign]
    driver.Driver.forget = forget  # type: ignore[method-assign]
    acquisition.JITTER = 0.0


@defect
def not_told_again() -> None:
    """A Keep that finds nothing writes nothing: what the store lost stays lost."""
    record.Settlement.tells_again = property(lambda self: False)  # type: ignore[assignment,method-assign]
    record.NewKeep.tells_again = False
    # A plain Keep is packed in one piece, with this flag in it.
    packed = redis_store._KEEP
    redis_store._KEEP = packed.replace(b"$1\r\n1\r\n$0\r\n", b"$1\r\n0\r\n$0\r\n")
    assert packed != redis_store._KEEP


@defect
def release_not_repeated() -> None:
    """A claim whose reply was lost is released once, and may land after that."""
    settling.Settler.repeat = lambda self, *args, **more: None  # type: ignore[method-assign]


@defect
def deadline_from_the_send() -> None:
    """The deadlines count from the moment of the send, and not from the claim."""
    forward = driver.Driver.forward

    def late(self: Any, machine: Any, request: Any, to: Any, *, number: int, send_by: float, until: float) -> Any:
        if failpoints.armed:
            failpoints.reach(Point.CLAIMED)  # a process stands still before it reads the clock
        passed, run = self.now() - machine.t0, machine.run
        machine.t0 += passed
        run.t0 += passed
        run.ends_by += passed
        return forward(self, machine, request, to, number=number, send_by=send_by + passed, until=until + passed)

    driver.Driver.forward = late  # type: ignore[method-assign]


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
    """A response that cannot be stored is settled as done at its head."""

    def settle_at_once(self: Any, run: Any, outcome: Any) -> None:
        self._settle(run, outcome, decide.settle(outcome, run.policy), self.io.now())

    exchange.Exchange._stream = settle_at_once  # type: ignore[method-assign]


@defect
def fingerprint_ignored() -> None:
    """Requests with one key are taken for the same request."""
    decide.difference = machine.difference = exchange.difference = lambda seen, mine: None


@defect
def replays_anything() -> None:
    """The short reply of the store to a claim, a stored response, goes to any request with the key."""
    stored = redis_store.stored
    redis_store.stored = lambda value, mark: stored(value, value[17:53])


@defect
def stopped_at_once() -> None:
    """SIGTERM ends the process with what is in flight."""

    async def stop(self: Any) -> Any:
        os._exit(0)

    app.App.stop = stop  # type: ignore[method-assign]


@defect
def guests_cut_off() -> None:
    """A drain closes connections that have sent nothing yet, and those in the queue of a listener."""
    drain = client.ClientConnection.drain
    client.ClientConnection.drain = lambda self, quiet=0.0: drain(self)  # type: ignore[method-assign]

    async def let_in(self: Any) -> None:
        pass

    server.Server._let_in = let_in  # type: ignore[method-assign]


@defect
def drained_without_settling() -> None:
    """A drain ends with the last client. Runs of clients that have hung up are not settled."""

    async def stop(self: Any) -> Any:
        await self._server.drain(self.settings.grace / 1000)
        self.log.say("info", "stopped: everything in flight was answered and settled")
        self.log.close()
        os._exit(0)

    app.App.stop = stop  # type: ignore[method-assign]


@defect
def runs_not_awaited() -> None:
    """A stop waits for clients alone, and ends the runs of clients that have hung up."""

    async def drain(self: Any, seconds: float) -> int:
        return 0

    driver.Driver.drain = drain  # type: ignore[method-assign]


@defect
def body_not_awaited() -> None:
    """A guarded request is forwarded when its connection ends, with the part of its body that arrived."""
    connection_lost = client.ClientConnection.connection_lost

    def lost(self: Any, error: Any) -> None:
        visit = self._reading
        if visit is not None and isinstance(visit.way, client.Guarded):
            self._body_complete(visit)
        connection_lost(self, error)

    client.ClientConnection.connection_lost = lost  # type: ignore[method-assign]


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

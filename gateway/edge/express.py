"""The express: a guarded request of which everything is plain, and which nobody waits for, from its bytes to its answer
without a coroutine.

    taken     its head looks like one that the door remembers, its key and its fingerprint like most; the claim is asked
    claimed   won: one attempt · an answer stands, to this very request: the replay
    answered  whole, and to be kept: the Keep is told
    kept      the answer goes to the client

It does what `exchange.Exchange` would, in the same order and under the same deadlines, while each step comes to what it
nearly always does. Whatever else comes (another reply of the store, or none; another outcome, or none in time; somebody
who wants to wait for it; a stop) makes an exchange of it at the point where it stands, which then decides what that
means. So there is no rule of the protocol here: whether a key may be claimed, what an outcome means and what a
settlement does is read from the same places, and where the answer is not the plain one, it is not given here.

At every step: killed or paused, the lease lapses, as with an exchange. Its client may leave: nothing here waits for it.
There is no task to be cancelled; what is under way is listed among the flights, and a stop makes exchanges of it all
(`Gate.muster`). It saves a third of what a request costs as an exchange (loadtest/README.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

from .. import failpoints
from ..core import record as records
from ..core.decide import SAYS, Guard, Reason, kept
from ..core.fields import Fields, fields_of
from ..core.fingerprint import Plain, of_plain, plainly
from ..core.key import Key, plain, sent_name
from ..core.keyform import weakness
from ..core.message import Answer, Request, Response, remembered
from ..core.outcome import Answered, Completeness, Outcome
from ..core.problem import Label
from ..core.record import Done, Found, Kind
from ..exchange import Ask, Begun, Gate, redirects_followed
from ..failpoints import Point
from ..flights import Flight
from ..ports import Account, DuplicateKind, Prompt, StoreAway, Stored, VerdictName
from ..trace import untraced
from .door import Door, Framing, Guarded, Head, Met
from .render import CLOSE, REPLAYED, again, own, returned, whole
from .upstream import GuardedAttempt, GuardedUpstream
from .visit import Host, Visit


class Lane:
    """What the requests of one `Met` have in common."""

    __slots__ = ("form", "kept", "key", "limit", "policy", "route")

    def __init__(self, met: Met, prompt: Prompt) -> None:
        route = self.route = met.route
        policy = self.policy = route.policy
        self.key = met.key
        self.limit = policy.max_request
        self.kept = kept(policy)
        self.form = prompt.form(route=route.name, lease=policy.lease, life=policy.claim_life, window=policy.window)


class Expressway:
    """Takes the plain requests that come through one door."""

    def __init__(self, door: Door, gate: Gate, prompt: Prompt) -> None:
        self.door = door
        self.gate = gate
        self.prompt = prompt

    def take(self, conn: Host, peer: str, secure: bool, read: tuple[bytes, bytes, Fields, bytes]) -> Express | None:
        """Begin the exchange of a request, if all of it is plain. None, and nothing was done, where it is not."""
        method, target, fields, body = read
        door, gate = self.door, self.gate
        met = door.recall(method, target, fields)
        if met is None or gate.stopping:
            return None
        lane = met.lane
        if lane is None:
            lane = met.lane = self._lane(met, fields)
        if type(lane) is not Lane:
            return None
        text = fields.values[lane.key]
        if len(body) > lane.limit or not plain(text) or weakness(text) is not None or not door.knows(fields):
            return None
        printed = plainly(fields, method, target, body, lane.policy.recipe, door.secret)
        if printed is None:
            return None
        name = sent_name(door.service, lane.policy.namespace, text, secret=door.secret)
        request = Request(method, target, fields, body, peer, peer, secure)
        express = Express(conn, self, lane, request, name, text, printed)
        if not gate.flights.enter(express):
            return None
        begun = False
        try:
            begun = express.begin()
        finally:
            if not begun:
                gate.flights.forget(express)
        if not begun:
            return None
        door.fits(fields, lane.route)
        return express

    def _lane(self, met: Met, fields: Fields) -> Lane | bool:
        """How such requests go; False where more is to be asked of them than is asked here."""
        policy = met.route.policy
        if (
            met.passes is not None
            or met.key < 0
            or fields.shape.made(Framing, Framing).length < 0
            or policy.bound
            or policy.send_key
            or not isinstance(self.gate.upstreams.get(met.route.upstream), GuardedUpstream)
            or self.gate.trace is not untraced
        ):
            return False
        return Lane(met, self.prompt)


class Express(Visit):
    """One such request. `flights.Alone`, and `ports.Told` of the store's replies."""

    http10 = False
    asked = True
    complete = True
    keep_alive = True
    #: Of the attempt, once it was begun.
    _attempt: GuardedAttempt | None = None
    _sending = False
    _failure: Exception | None = None
    _won_after = 0.0
    _sent_at = 0.0
    #: What came back, once it is being kept: the response, what is remembered of it, when it came, and the time of day.
    _answered: tuple[Response, Answer, float, int] | None = None
    #: Where the store's next reply goes, once this is an exchange.
    _onward: asyncio.Future[Any] | None = None
    #: Its answer is said, or cannot be.
    _over = False
    _flight: Flight | None = None

    def __init__(
        self, conn: Host, way: Expressway, lane: Lane, request: Request, name: bytes, text: bytes, printed: Plain
    ) -> None:
        gate = way.gate
        self._conn = conn
        self._way = way
        self._lane = lane
        self._request = request
        self.name = name
        self._text = text
        self._printed = printed
        self._holder = gate.mint()
        self.started = gate.clock.now()
        self._wall = gate.clock.wall()

    @property
    def route(self) -> str | None:
        return self._lane.route.name if self._won_after else None

    # ── The way ───────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> bool:
        """Ask for the claim. False, and nothing was done, where its body does not fit, or the store takes the claim in
        other ways."""
        lane, door = self._lane, self._way.door
        size = len(self._request.body)
        if not door.budget.has_room(size):
            return False
        mark, tags = self._printed
        value = lane.form.claim(mark, tags, holder=self._holder, wall=self._wall)
        self.size = size
        if not self._way.prompt.ask_claim(self.name, value, lane.policy.claim_life, self):
            return False
        door.budget.take(size)
        self.reserved = size
        return True

    def done(self) -> bool:
        """`ports.Told`: it wants to be told."""
        return self._onward is not None and self._onward.done()

    def set_result(self, reply: Any) -> None:
        if self._onward is not None:
            self._onward.set_result(reply)
            return
        try:
            if self._answered is not None:
                self._kept(reply)
            else:
                self._claimed(reply)
        except Exception as error:
            read = self._sending and self._answered is None  # and its attempt is what failed
            self._failed(error, None if read else _comes(reply))

    def set_exception(self, away: StoreAway) -> None:
        if self._onward is not None:
            self._onward.set_exception(away)
            return
        try:
            self._hand_over(_raises(away))
        except Exception as error:
            self._failed(error, _raises(away))

    def _claimed(self, reply: Any) -> None:
        prompt, gate = self._way.prompt, self._way.gate
        now = gate.clock.now()
        if prompt.won(reply):
            policy = self._lane.policy
            send_by = self.started + policy.send_by / 1000
            if now <= send_by and not gate.stopping:
                self._won_after = now - self.started
                gate.observer.store_called("claim", self._won_after, failed=False)
                self._forward(now, send_by)
                return
        elif (answer := prompt.stored(reply, self._printed[0])) is not None:
            gate.observer.store_called("claim", now - self.started, failed=False)
            self._replay(answer, now)
            return
        self._hand_over(_comes(reply))

    def _forward(self, now: float, send_by: float) -> None:
        if failpoints.armed:
            failpoints.reach(Point.CLAIMED)
        lane = self._lane
        upstream = cast(
            GuardedUpstream, self._way.gate.upstreams[lane.route.upstream]
        )  # it may have been taken up anew
        self._sent_at = now
        self._sending = True
        policy = lane.policy
        attempt = upstream.attempt(
            self._request,
            number=1,
            send_by=send_by,
            limit=policy.max_response,
            streams=policy.streams,
            follows=policy.follows,
        )
        self._attempt = attempt
        attempt.tell(self._came, self.started + policy.timeout / 1000)

    def _came(self, outcome: Outcome | None) -> None:
        try:
            self._keep(outcome)
        except Exception as error:
            self._failed(error, None)

    def _keep(self, outcome: Outcome | None) -> None:
        if type(outcome) is not Answered or outcome.completeness is not Completeness.WHOLE:
            self._hand_over(None)
            return
        lane, response, clock = self._lane, outcome.response, self._way.gate.clock
        if response.status not in lane.kept or not SAYS.isdisjoint(fields_of(response.fields).shape.at):
            self._hand_over(None)
            return
        policy = lane.policy
        answer = remembered(response, keep=policy.keep_headers, drop=policy.drop_headers)
        wall = clock.wall()
        mark, tags = self._printed
        value = lane.form.kept(
            mark,
            tags,
            holder=self._holder,
            first_seen=self._wall,
            wall=wall,
            status=response.status,
            head=answer.head,
            body=response.body,
        )
        self._answered = response, answer, clock.now(), wall
        if not self._way.prompt.ask_keep(self.name, self._holder, value, policy.window, self):
            self._answered = None  # nobody was told
            self._hand_over(None)

    def _kept(self, reply: Any) -> None:
        gate = self._way.gate
        assert self._answered is not None
        if not self._way.prompt.kept(reply):
            self._hand_over(_comes(reply))
            return
        response, answer, answered, wall = self._answered
        now = gate.clock.now()
        gate.observer.store_called("settle", now - answered, failed=False)
        if failpoints.armed:
            failpoints.reach(Point.STORED)
        body = response.body
        account = self._account(VerdictName.FORWARD, Label.STORED, response.status, now, body)
        account.attempt = 1
        account.settlement, account.reason = Kind.KEEP, Reason.ANSWERED
        account.claim, account.settle, account.upstream = self._won_after, now - answered, answered - self._sent_at
        account.record_bytes = len(answer.head) + len(body)
        assert self._attempt is not None
        if self._attempt.followed:
            account.detail = redirects_followed(self._attempt.followed)
        lines = own(Label.STORED, self._wall, wall + self._lane.policy.window)
        self._say(account, returned(response.fields, wall), lines, b"", body)

    def _replay(self, stored: Stored, now: float) -> None:
        status, head, body, first_seen, expires = stored
        wall = self._way.gate.clock.wall()
        account = self._account(VerdictName.REPLAY, Label.REPLAYED, status, now, body)
        account.duplicate = DuplicateKind.REPLAYED
        account.claim = account.total
        account.age = max(0.0, (wall - first_seen) / 1000)
        self._say(account, again(head, wall), own(Label.REPLAYED, first_seen, expires), REPLAYED, body)

    def _account(self, verdict: VerdictName, label: Label, status: int, now: float, body: bytes) -> Account:
        request = self._request
        account = Account(self._lane.route.name, request.method, request.target, request.peer, verdict)
        account.label = label
        account.status = status
        account.key = Key(self._text)
        account.name = self.name
        account.total = now - self.started or 1e-9
        account.request_bytes = self.size
        account.response_bytes = len(body)
        return account

    def _say(self, account: Account, fields: bytes, lines: bytes, replayed: bytes, body: bytes) -> None:
        gate, conn = self._way.gate, self._conn
        self._over = True
        gate.flights.forget(self)
        try:
            if self.gone:
                conn.give_back(self)
            else:
                self.answered = True
                connection = b"" if self.keeps_alive() else CLOSE
                data = whole(account.status, fields, lines, replayed, connection, body)
                conn.write(conn.half(data) if failpoints.armed else data)
                conn.done(self)
        except Exception as error:
            conn.unsaid(error)
        finally:
            gate.observer.finished(account)

    # ── What goes on as an exchange ───────────────────────────────────────────────────────────────

    def joined(self) -> Flight:
        """`flights.Alone`. What was asked of the store, or of the service, is what the exchange waits for."""
        if self._attempt is None or self._answered is not None:
            onward: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            onward.add_done_callback(_heard)
            self._onward = onward
            self._hand_over(lambda: onward)
        else:
            self._hand_over(None)
        assert self._flight is not None
        return self._flight

    def _failed(self, error: Exception, reply: Reply | None) -> None:
        """A fault of ours. The exchange that goes on does what was to be done, or lets go of the key as it must."""
        gate = self._way.gate
        gate.tasks.failed(error)
        if self._flight is not None or self._over:
            return
        self._failure = error
        try:
            self._hand_over(reply)
        except Exception as again:  # then the lease must lapse; its client, and whoever waits, must not wait for that
            gate.tasks.failed(again)
            gate.flights.forget(self)
            self._conn.unsaid(again)

    def _hand_over(self, reply: Reply | None) -> None:
        """Go on as an exchange. `reply` awaits what the store says to what it was asked last; None where that has been
        read, and the attempt is under way or has ended."""
        gate, lane, request, policy = self._way.gate, self._lane, self._request, self._lane.policy
        key = Key(self._text)
        self.head = Head(request.method, request.target, fields_of(request.fields), "1.1", 0, secure=request.secure)
        self.way = Guarded(lane.route, Guard(key, ()))
        self.chunks = []
        printed = of_plain(self._printed)
        claim = records.claim(
            printed,
            holder=self._holder,
            route=lane.route.name,
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=self._wall,
        )
        prompt, name = self._way.prompt, self.name
        settlement, answered = None, 0.0
        claimed = settled = None
        if self._answered is not None:
            _, answer, answered, wall = self._answered
            made = settlement = records.keep(claim, answer, wall=wall)
            if reply is not None:
                settled = partial(_on, reply, lambda said: prompt.settle_on(name, made, said))
        elif reply is not None:
            claimed = partial(_on, reply, lambda said: prompt.claim_on(name, claim, said))
        flight = self._flight = gate.flights.join(self)
        flight.attempt = self._attempt
        if self._attempt is not None:
            self._attempt.hush()
        begun = Begun(
            flight,
            self.started,
            claim,
            claimed,
            self._won_after or None,
            self._attempt,
            self._sent_at,
            self._failure,
            settlement,
            answered,
            settled,
        )
        gate.go_on(Ask(request, lane.route, key, name, printed), self, begun)


#: Awaits what the store says.
Reply = Callable[[], Awaitable[Any]]


async def _on(reply: Reply, then: Callable[[Any], Awaitable[Done | Found]]) -> Done | Found:
    return await then(await reply())


def _comes(reply: Any) -> Reply:
    async def said() -> Any:
        return reply

    return said


def _raises(error: Exception) -> Reply:
    async def raised() -> Any:
        raise error

    return raised


def _heard(reply: asyncio.Future[Any]) -> None:
    """Nobody may have waited for it any more."""
    if not reply.cancelled():
        reply.exception()

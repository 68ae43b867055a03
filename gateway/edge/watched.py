"""A tunnel that is watched: what passes on a route in shadow, and what the gate would have made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..core.decide import Guard, Later, Refuse, settle
from ..core.fields import Field
from ..core.message import Response
from ..core.outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from ..core.problem import Problem, Refusal
from ..core.record import Kind
from ..engine.request import Identified
from ..ports import Account
from ..shadow import Shadow, Shadows
from .aside import Aside
from .connection import Head as ResponseHead
from .door import Door, Guarded, Head, Passing, Refused, too_large
from .tunnel import Tunnel
from .upstream import unstorable

Told = TypeVar("Told", bound=Callable[..., None])


def quietly(tell: Told) -> Told:
    """Whatever goes wrong in watching is reported, and ends the watching; what is watched goes on."""

    def telling(watch: Watch, *arguments: Any) -> None:
        if not watch.blind:
            try:
                tell(watch, *arguments)
            except Exception as error:
                watch.close()
                watch.failed(error)

    return telling  # type: ignore[return-value]


class Watch:
    """One request on a route in shadow, as it passes. Its body is held, within the limits of a guarded one, until
    it is whole; of the response no more than its head."""

    def __init__(self, door: Door, shadows: Shadows, aside: Aside, head: Head, way: Passing, peer: str) -> None:
        assert way.would is not None
        self._door = door
        self._shadows = shadows
        self._aside = aside
        self._head = head
        self._way = way
        self._would: Guard | Later | Refuse = way.would
        self._chunks: list[bytes] = []
        self._held = 0
        self._size = 0
        self._response: ResponseHead | None = None
        self._came = 0
        #: Why the response could not be stored, once that is known.
        self._form: Completeness | None = None
        self._shadow: Shadow | None = None
        self._outcome: Outcome | None = None
        self._over = False
        self.account = Account(way.route.name, head.method, head.target, peer, shadow=True)
        #: Nothing more is to be seen.
        self.blind = False
        if head.length is not None:
            self._grown(head.length)

    def failed(self, error: Exception) -> None:
        self._shadows.tasks.failed(error)

    def _grown(self, size: int) -> None:
        limit = self._way.route.policy.max_request
        if size > limit and not isinstance(self._would, Refuse):
            self._refused(too_large(limit))

    def _refused(self, refusal: Refusal) -> None:
        self._would = Refuse(refusal)
        self._let_go()

    @quietly
    def request_body(self, data: bytes) -> None:
        self._size += len(data)
        self._grown(self._size)
        if not isinstance(self._would, Refuse):
            if self._door.budget.take(len(data)):
                self._held += len(data)
                self._chunks.append(data)
            else:
                self._refused(Refusal(Problem.OVERLOADED))

    @quietly
    def request_end(self) -> None:
        """It is whole: what would be done with it?"""
        account, would, way = self.account, self._would, self._way
        account.request_bytes = self._size
        if isinstance(would, Refuse):
            self.blind = True
            account.weak = would.weak or ""
            self._shadows.refused(account, would.refusal)
            return
        body = b"".join(self._chunks)
        self._let_go()
        guarded = Guarded(way.route, would)
        self._door.meet(self._head.fields, way.route)
        if self._door.takes_long(way.route, body):
            self._shadows.tasks.start(self._ask_aside(guarded, body))
        else:
            self._begin(self._ask(guarded, body))

    def _ask(self, guarded: Guarded, body: bytes) -> Identified | Passing | Refused:
        return self._door.ask(self._head, body, self.account.peer, guarded, shadow=True)

    async def _ask_aside(self, guarded: Guarded, body: bytes) -> None:
        self._begin(await self._aside.run(self._ask, guarded, body))

    def _begin(self, ask: Identified | Passing | Refused) -> None:
        account = self.account
        match ask:
            case Identified():
                account.key, account.name, account.weak = ask.key, ask.name, ask.weak
                self._shadow = self._shadows.begin(account, ask.route, ask.fingerprint)
                if self._over:
                    self._shadow.ended(self._outcome)
            case Refused(refusal, weak=weak):
                self.blind = True
                account.weak = weak
                self._shadows.refused(account, refusal)
            case Passing():
                self.blind = True  # without a key, as it does now

    @quietly
    def response_head(self, head: ResponseHead) -> None:
        self._response = head
        policy = self._way.route.policy
        if (form := unstorable(head, policy.streams, policy.max_response)) is not None:
            self._not_kept(form)

    @quietly
    def response_body(self, size: int) -> None:
        self._came += size
        if self._came > self._way.route.policy.max_response and self._form is None:
            self._not_kept(Completeness.OVER_LIMIT)

    @quietly
    def response_end(self) -> None:
        assert self._response is not None
        whole = Completeness.UNTIL_CLOSE if self._response.until_close else Completeness.WHOLE
        self._conclude(self._answered(self._form or whole))
        self._passed()

    def _answered(self, completeness: Completeness) -> Answered:
        assert self._response is not None
        return Answered(Response(self._response.status, self._response.fields), completeness)

    def _not_kept(self, form: Completeness) -> None:
        """It could not be stored. What its status says is known at its head; what would be kept, at its end."""
        self._form = form
        answered = self._answered(form)
        if settle(answered, self._way.route.policy).kind is not Kind.KEEP:
            self._conclude(answered)

    @quietly
    def ended(self, outcome: Outcome | None) -> None:
        """Nothing whole came back; None: the client left, and the tunnel with it."""
        self._conclude(self._answered(self._form) if outcome is None and self._form is not None else outcome)
        self._passed()

    def _conclude(self, outcome: Outcome | None) -> None:
        if not self._over:
            self._over, self._outcome = True, outcome
            if self._shadow is not None:
                self._shadow.ended(outcome)

    def _passed(self) -> None:
        """Nothing more comes. (An exchange begins with a whole body: a request that broke off would have had none.)"""
        if self._shadow is None:
            self.blind = True
            self._let_go()

    def close(self) -> None:
        """Look no further."""
        self.blind = True
        self._let_go()
        self._conclude(None)

    def _let_go(self) -> None:
        held, self._held, self._chunks = self._held, 0, []
        self._door.budget.give(held)


class WatchedTunnel(Tunnel):
    """The tunnel of a route in shadow."""

    def __init__(self, watch: Watch, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._watch = watch

    def request_body(self, data: bytes) -> None:
        super().request_body(data)
        if not self._over:
            self._watch.request_body(data)

    def request_end(self, trailers: Sequence[Field] = ()) -> None:
        super().request_end(trailers)
        self._watch.request_end()

    def detach(self) -> None:
        if not self._over:
            self._watch.ended(None if self._connection is not None else NotSent(NotSentReason.STOPPED))
        super().detach()

    def unconnected(self, reason: NotSentReason, detail: str) -> None:
        self._watch.ended(NotSent(reason, detail))
        super().unconnected(reason, detail)

    def switched(self, head: ResponseHead, rest: bytes) -> bool:
        self._watch.ended(Lost(LostReason.UPGRADED, status=head.status))
        return super().switched(head, rest)

    def head(self, head: ResponseHead) -> None:
        super().head(head)
        self._watch.response_head(head)

    def body(self, data: bytes) -> None:
        super().body(data)
        self._watch.response_body(len(data))

    def end(self) -> None:
        if not self._over:
            self._watch.response_end()
        super().end()

    def lost(self, reason: LostReason, detail: str) -> None:
        self._watch.ended(Lost(reason, detail, self.status))
        super().lost(reason, detail)

    def due(self) -> None:
        sent, before = self._connection is not None, self._over
        super().due()
        if self._over and not before:
            self._watch.ended(Lost(LostReason.TIMEOUT) if sent else NotSent(NotSentReason.NO_CONNECTION))

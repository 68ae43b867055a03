"""A route in shadow: every request goes through as if nothing guarded it, and the gate works out beside it what it
would have done.

What it remembers for that stands under names of its own (`core.key.shadowed`), without the answers: no gate that
enforces ever finds it, and a shadow never finds what one of those has stored. Nothing here is waited for by a request,
by a settlement or by a drain: a store that is away, or slow, is counted and costs no more than the figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import assert_never

from .account import CAUGHT
from .awaitable import AwaitableStore
from .core import record as records
from .core.conclusion import settlement_of, status_of
from .core.decide import Forward, PassReason, Reason, Refuse, Replay, Settle, Wait, resolve, settle
from .core.fingerprint import Fingerprint
from .core.message import Answer, Response
from .core.outcome import Answered, Outcome
from .core.policy import Route, StoreDown
from .core.problem import Label, Problem, Refusal
from .core.record import Done, Found, Kind, Stamp
from .ports import (
    Account,
    Clock,
    DuplicateKind,
    IdentityChanged,
    Observer,
    RecordTooLarge,
    RecordUnreadable,
    StoreAway,
    StoreFull,
    StoreRefused,
    VerdictName,
)
from .tasks import Tasks

#: Looks that wait for the store at once. Past them a request is counted like one that the store did not answer.
MOST = 1000
#: How soon a store that did not answer is asked again, in seconds.
_AGAIN = 0.02
#: How long those that are under way at a stop may take, in seconds.
_FAREWELL = 1.0

_LABELS = {Kind.KEEP: Label.STORED, Kind.HOLD: Label.IN_DOUBT, Kind.RELEASE: Label.RELEASED}


class Shadows:
    """What the shadows of a process share. `asking` of them wait for the store."""

    def __init__(
        self,
        store: AwaitableStore,
        clock: Clock,
        observer: Observer,
        mint: Callable[[], bytes],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.store = store
        self.clock = clock
        self.observer = observer
        self.mint = mint
        self.asking = 0
        self.tasks = Tasks(failed)

    async def close(self) -> None:
        """Let those that are about to end do so, and end the others: their claims lapse."""
        await self.tasks.finish(_FAREWELL)
        await self.tasks.cancel()

    def refused(self, account: Account, refusal: Refusal) -> None:
        """The request would have been refused."""
        told(account, refusal)
        self.observer.finished(account)

    def begin(self, account: Account, route: Route, fingerprint: Fingerprint) -> Shadow:
        """Look for the record that `account` names."""
        shadow = Shadow(self, account, route, fingerprint)
        self.tasks.start(shadow.run())
        return shadow


class Shadow:
    """One request that would have been guarded. It is told of the outcome by `ended`."""

    def __init__(self, shadows: Shadows, account: Account, route: Route, fingerprint: Fingerprint) -> None:
        gate = self._shadows = shadows
        self._account = account
        self._policy = policy = route.policy
        #: What whoever reads the store sees: no route is called so.
        self._label = f"{route.name}/shadow"
        self._fingerprint = fingerprint
        self._began = gate.clock.now()
        self._outcome: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._claim = records.claim(
            fingerprint,
            holder=gate.mint(),
            route=self._label,
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=gate.clock.wall(),
        )

    def ended(self, outcome: Outcome | None) -> None:
        """What came back; None where the client left before it did, for which an exchange would have stayed."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    async def run(self) -> None:
        """Decide as an exchange would have, settle as it would have, and tell the observer of it once."""
        try:
            if await self._decide():
                await self._settle(await self._outcome)
        except StoreAway as away:
            self._without_store(away)
        self._shadows.observer.finished(self._account)

    async def _decide(self) -> bool:
        """What would have become of it goes to the account. Says whether it would have been run. Raises StoreAway."""
        gate, account, claim = self._shadows, self._account, self._claim
        found = await self._asked("claim", lambda: gate.store.claim(account.name, claim))
        while isinstance(found, Found):
            account.age = max(0.0, (gate.clock.wall() - found.record.first_seen) / 1000)
            verdict = resolve(found, self._fingerprint, self._policy)
            if not isinstance(verdict, Forward):
                self._duplicate(verdict)
                return False
            found = await self._take_over(verdict.seen)
        account.verdict, account.attempt = VerdictName.FORWARD, self._claim.attempt
        return True

    def _duplicate(self, verdict: Replay | Refuse | Wait) -> None:
        account = self._account
        match verdict:
            case Replay(record):
                account.verdict, account.duplicate = VerdictName.REPLAY, DuplicateKind.REPLAYED
                account.status, account.label = record.status, Label.REPLAYED
            case Refuse(refusal):
                told(account, refusal)
            case Wait():
                account.verdict, account.duplicate = VerdictName.WAIT, DuplicateKind.ATTACHED
            case _:
                assert_never(verdict)

    async def _take_over(self, seen: Found) -> Done | Found:
        gate, policy, name = self._shadows, self._policy, self._account.name
        claim = self._claim = records.takeover(
            seen.record,
            holder=gate.mint(),
            route=self._label,
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=gate.clock.wall(),
        )
        stamp = Stamp(seen.record.state, seen.record.holder, policy.margin)
        return await self._asked("takeover", lambda: gate.store.compare_and_swap(name, stamp, claim))

    async def _settle(self, outcome: Outcome | None) -> None:
        """A settlement that the store does not answer is not sent again: the claim lapses, and later figures say in
        doubt where they might have said replayed."""
        gate, account, claim = self._shadows, self._account, self._claim
        wall = gate.clock.wall()
        if outcome is None:
            account.detail = "the client left; an exchange would have gone on"
            outcome, verdict = Answered(Response(0, ())), Settle(Kind.KEEP, Reason.ANSWERED)
        else:
            verdict = settle(outcome, self._policy)
        account.settlement, account.reason = verdict.kind, verdict.reason
        account.status = status_of(outcome)
        answer = Answer(account.status, b"", None if verdict.tombstone else b"")
        elapsed = int((gate.clock.now() - self._began) * 1000)
        settlement = settlement_of(verdict, outcome, claim, self._policy, elapsed=elapsed, wall=wall, answer=answer)
        account.label = _LABELS[verdict.kind] if not verdict.tombstone else Label.NOT_KEPT
        try:
            await self._asked("settle", lambda: gate.store.settle(account.name, settlement))
        except StoreAway as away:
            account.detail = away.why

    async def _asked(self, operation: str, call: Callable[[], Awaitable[Done | Found]]) -> Done | Found:
        """What the store says, which is waited for as long as the route would have."""
        gate = shadows = self._shadows
        if shadows.asking >= MOST:
            raise StoreAway(f"{MOST} looks of shadows wait for the store already", ambiguous=False)
        shadows.asking += 1
        give_up = gate.clock.now() + self._policy.store_wait / 1000
        try:
            while True:
                begun = gate.clock.now()
                try:
                    result = await call()
                except StoreAway as away:
                    gate.observer.store_called(operation, gate.clock.now() - begun, failed=True)
                    left = give_up - gate.clock.now()
                    if isinstance(away, StoreFull | StoreRefused | RecordTooLarge | RecordUnreadable) or left <= 0:
                        raise
                    await asyncio.sleep(min(_AGAIN, left))
                    if not await gate.store.wait_available(max(give_up - gate.clock.now(), 0.0)):
                        raise
                    continue
                gate.observer.store_called(operation, gate.clock.now() - begun, failed=False)
                return result
        finally:
            shadows.asking -= 1

    def _without_store(self, away: StoreAway) -> None:
        """What becomes of a request whose store is away is its route's to say."""
        account, changed = self._account, isinstance(away, IdentityChanged)
        account.detail = away.why
        forwards = self._policy.store_down is StoreDown.FORWARD
        if forwards and not changed and not isinstance(away, RecordUnreadable):
            account.verdict, account.unprotected = VerdictName.FORWARD, PassReason.STORE_DOWN.value
        else:
            told(account, Refusal(Problem.IDENTITY_CHANGED if changed else Problem.STORE_UNAVAILABLE))


def told(account: Account, refusal: Refusal) -> None:
    """The request would have been refused so."""
    problem = refusal.problem
    account.verdict, account.duplicate = VerdictName.REFUSE, CAUGHT.get(problem)
    account.problem, account.status, account.label = problem.slug, problem.status, refusal.shown_as

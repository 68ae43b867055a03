"""A route in shadow: every request goes through as if nothing guarded it, and the gate works out beside it what it
would have done.

What it remembers for that stands under names of its own (`core.key.shadowed`), without the answers: no gate that
enforces ever finds it, and a shadow never finds what one of those has stored. Nothing here is waited for by a request,
by a settlement or by a drain: a store that is away, or slow, is counted and costs no more than the figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, assert_never

from .account import CAUGHT
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
    Store,
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

#: Failures that a repetition would meet again.
_FOR_GOOD = (StoreFull, StoreRefused, RecordTooLarge, RecordUnreadable)

_LABELS = {Kind.KEEP: Label.STORED, Kind.HOLD: Label.IN_DOUBT, Kind.RELEASE: Label.RELEASED}


class Shadows:
    """The context that the shadows of a process share. `asking` of them wait for the store."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        observer: Observer,
        mint: Callable[[], bytes],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.store = store
        self.clock = clock
        self.observer = observer
        self.mint = mint
        self.failed = failed
        self.asking = 0
        self.tasks = Tasks(failed)
        self.live: set[Shadow] = set()

    async def close(self) -> None:
        """Let those that are about to end do so, and forget the others: their claims lapse."""
        await self.tasks.finish(_FAREWELL)
        await self.tasks.cancel()
        end = self.clock.now() + _FAREWELL
        while self.live and self.clock.now() < end:  # noqa: ASYNC110  # no shadow sets an event for a stop
            await asyncio.sleep(_AGAIN)
        self.live.clear()

    def refused(self, account: Account, refusal: Refusal) -> None:
        """The request would have been refused."""
        refuse(account, refusal)
        self.observer.finished(account)

    def begin(self, account: Account, route: Route, fingerprint: Fingerprint) -> Shadow:
        """Look for the record that `account` names."""
        shadow = Shadow(self, account, route, fingerprint)
        self.live.add(shadow)
        shadow.claim()
        return shadow


class Shadow:
    """One request that would have been guarded. `ended` reports its outcome."""

    def __init__(self, shadows: Shadows, account: Account, route: Route, fingerprint: Fingerprint) -> None:
        self._shadows = shadows
        self._account = account
        self._policy = policy = route.policy
        #: In the store no route has this name.
        self._label = f"{route.name}/shadow"
        self._fingerprint = fingerprint
        self._began = shadows.clock.now()
        self._would_run = self._over = False
        self._outcome: Outcome | None = None
        self._claim = records.claim(
            fingerprint,
            holder=shadows.mint(),
            route=self._label,
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=shadows.clock.wall(),
        )

    def claim(self) -> None:
        """Claim the key, and decide as the machine of a key would."""
        self._ask("claim", partial(self._shadows.store.claim, self._account.name, self._claim), self._decide)

    def ended(self, outcome: Outcome | None) -> None:
        """Report the outcome of the request; None if its client left before there was one."""
        if not self._over:
            self._over, self._outcome = True, outcome
            if self._would_run:
                self._settle(outcome)

    def _decide(self, result: Done | Found) -> None:
        account = self._account
        if isinstance(result, Found):
            account.age = max(0.0, (self._shadows.clock.wall() - result.record.first_seen) / 1000)
            verdict = resolve(result, self._fingerprint, self._policy)
            if isinstance(verdict, Forward):
                self._take_over(verdict.seen)
            else:
                self._duplicate(verdict)
                self._finish()
            return
        account.verdict, account.attempt = VerdictName.FORWARD, self._claim.attempt
        self._would_run = True
        if self._over:
            self._settle(self._outcome)

    def _duplicate(self, verdict: Replay | Refuse | Wait) -> None:
        account = self._account
        match verdict:
            case Replay(record):
                account.verdict, account.duplicate = VerdictName.REPLAY, DuplicateKind.REPLAYED
                account.status, account.label = record.status, Label.REPLAYED
            case Refuse(refusal):
                refuse(account, refusal)
            case Wait():
                account.verdict, account.duplicate = VerdictName.WAIT, DuplicateKind.ATTACHED
            case _:
                assert_never(verdict)

    def _take_over(self, seen: Found) -> None:
        shadows, policy = self._shadows, self._policy
        claim = self._claim = records.takeover(
            seen.record,
            holder=shadows.mint(),
            route=self._label,
            lease=policy.lease,
            life=policy.claim_life,
            window=policy.window,
            wall=shadows.clock.wall(),
        )
        stamp = Stamp(seen.record.state, seen.record.holder, policy.margin)
        self._ask("takeover", partial(shadows.store.compare_and_swap, self._account.name, stamp, claim), self._decide)

    def _settle(self, outcome: Outcome | None) -> None:
        """Settle once. A settlement that the store does not acknowledge is not sent again: the claim lapses, and later
        figures have in doubt where they might have had replayed."""
        shadows, account, claim = self._shadows, self._account, self._claim
        wall = shadows.clock.wall()
        if outcome is None:
            account.detail = "the client left; an exchange would have gone on"
            outcome, verdict = Answered(Response(0, ())), Settle(Kind.KEEP, Reason.ANSWERED)
        else:
            verdict = settle(outcome, self._policy)
        account.settlement, account.reason = verdict.kind, verdict.reason
        account.status = status_of(outcome)
        answer = Answer(account.status, b"", None if verdict.tombstone else b"")
        elapsed = int((shadows.clock.now() - self._began) * 1000)
        settlement = settlement_of(verdict, outcome, claim, self._policy, elapsed=elapsed, wall=wall, answer=answer)
        account.label = _LABELS[verdict.kind] if not verdict.tombstone else Label.NOT_KEPT
        self._ask("settle", partial(shadows.store.settle, account.name, settlement), lambda _: self._finish())

    def _ask(
        self, operation: str, call: Callable[[Callable[[Any], None]], None], then: Callable[[Done | Found], None]
    ) -> None:
        """Call the store, again for as long as the route would wait for it, and go on with its result."""
        shadows = self._shadows
        if shadows.asking >= MOST:
            self._failed(StoreAway(f"{MOST} looks of shadows wait for the store already", ambiguous=False))
            return
        shadows.asking += 1
        _Call(shadows, operation, call, self._policy.store_wait / 1000, then, self._failed).send()

    def _failed(self, away: StoreAway) -> None:
        if self._would_run:
            self._account.detail = away.why
        else:
            self._without_store(away)
        self._finish()

    def _finish(self) -> None:
        if self in self._shadows.live:
            self._shadows.live.remove(self)
            self._shadows.observer.finished(self._account)

    def _without_store(self, away: StoreAway) -> None:
        """What becomes of a request whose store is away is its route's to say."""
        account, changed = self._account, isinstance(away, IdentityChanged)
        account.detail = away.why
        forwards = self._policy.store_down is StoreDown.FORWARD
        if forwards and not changed and not isinstance(away, RecordUnreadable):
            account.verdict, account.unprotected = VerdictName.FORWARD, PassReason.STORE_DOWN.value
        else:
            refuse(account, Refusal(Problem.IDENTITY_CHANGED if changed else Problem.STORE_UNAVAILABLE))


class _Call:
    """One call of the store for a shadow, with its repetitions."""

    def __init__(
        self,
        shadows: Shadows,
        operation: str,
        call: Callable[[Callable[[Any], None]], None],
        patience: float,
        then: Callable[[Done | Found], None],
        failed: Callable[[StoreAway], None],
    ) -> None:
        self._shadows = shadows
        self._operation = operation
        self._call = call
        self._give_up = shadows.clock.now() + patience
        self._then = then
        self._failed = failed
        self._began = 0.0
        self._away: StoreAway | None = None

    def send(self) -> None:
        self._began = self._shadows.clock.now()
        self._call(self._replied)

    def _replied(self, result: Done | Found | StoreAway) -> None:
        shadows = self._shadows
        now = shadows.clock.now()
        failed = isinstance(result, StoreAway)
        shadows.observer.store_called(self._operation, now - self._began, failed=failed)
        if not isinstance(result, StoreAway):
            shadows.asking -= 1
            self._then(result)
        elif isinstance(result, _FOR_GOOD) or now >= self._give_up:
            self._end(result)
        else:
            self._away = result
            asyncio.get_running_loop().call_later(min(_AGAIN, self._give_up - now), self._wait)

    def _wait(self) -> None:
        left = max(self._give_up - self._shadows.clock.now(), 0.0)
        self._shadows.store.when_available(left, self._back)

    def _back(self, up: bool) -> None:
        if up:
            self.send()
        else:
            assert self._away is not None
            self._end(self._away)

    def _end(self, away: StoreAway) -> None:
        self._shadows.asking -= 1
        self._failed(away)


def refuse(account: Account, refusal: Refusal) -> None:
    """Summarise a request that would have been refused."""
    account.verdict, account.duplicate = VerdictName.REFUSE, CAUGHT.get(refusal.problem)
    account.refused(refusal)

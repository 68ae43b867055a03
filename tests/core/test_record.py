"""The life of a record: every transition, one by one, and then any number of them in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.core.fingerprint import Fingerprint
from gateway.core.message import Answer
from gateway.core.record import (
    Change,
    Done,
    Doubt,
    Found,
    Kind,
    Record,
    Settlement,
    Stamp,
    State,
    Write,
    answered,
    claim,
    claimed,
    hold,
    keep,
    refused,
    release,
    replaced,
    settled,
    takeover,
)

MINE, OTHERS = b"mine........", b"another's..."
PRINT = Fingerprint(b"rcpe" + b"r" * 16 + b"c" * 16, b"t" * 12)
ANSWER = Answer(201, b"Location: /1\r\n", b"{}")
LEASE, DOUBT_WINDOW, WINDOW, MARGIN = 95_000, 600_000, 50_000, 5_000
WALL = 1_700_000_000_000


def first_claim(holder: bytes = MINE, *, wall: int = WALL) -> Record:
    return claim(PRINT, holder=holder, route="r", lease=LEASE, life=LEASE + DOUBT_WINDOW, window=WINDOW, wall=wall)


def second_claim(seen: Record, holder: bytes = MINE, *, wall: int = WALL) -> Record:
    return takeover(seen, holder=holder, route="r", lease=LEASE, life=LEASE + DOUBT_WINDOW, window=WINDOW, wall=wall)


def in_doubt(of: Record) -> Record:
    record = hold(of, doubt=Doubt.LOST, status=0, wall=WALL).record
    assert record is not None
    return record


def completed(of: Record) -> Record:
    record = keep(of, ANSWER, wall=WALL).record
    assert record is not None
    return record


def standing(what: str) -> Found | None:
    """What a write meets, from its name in the tables below."""
    if what == "absent":
        return None
    state, whose = what.split(", ")[:2]
    record = first_claim(MINE if whose == "mine" else OTHERS)
    if state == "in flight":
        return Found(record, LEASE if what.endswith("lapsed") else LEASE - 1)
    return Found(in_doubt(record) if state == "in doubt" else completed(record), 7)


#: Everything that a write may meet. A lapse changes nothing for a claim or a settlement: only who takes over asks.
STANDING = [
    "absent",
    "in flight, mine",
    "in flight, mine, lapsed",
    "in flight, another's",
    "in flight, another's, lapsed",
    "in doubt, mine",
    "in doubt, another's",
    "completed, mine",
    "completed, another's",
]

# ── Every transition of the table ─────────────────────────────────────────────────────────────────

WRITTEN, FOUND = "written", "found"

CLAIM = {
    "absent": (Done.WON, WRITTEN),
    "in flight, mine": (Done.WON, Write.AGAIN),
    "in flight, mine, lapsed": (Done.WON, Write.AGAIN),
}
SETTLE: dict[str, dict[str, tuple[Done | str, Write | str]]] = {
    "keep": {
        "absent": (Done.FORGOT, WRITTEN),
        "in flight, mine": (Done.DONE, WRITTEN),
        "in flight, mine, lapsed": (Done.DONE, WRITTEN),
        "in doubt, mine": (Done.DONE, WRITTEN),
        "completed, mine": (Done.DONE, Write.AGAIN),
    },
    "hold": {
        "absent": (Done.FORGOT, WRITTEN),
        "in flight, mine": (Done.DONE, WRITTEN),
        "in flight, mine, lapsed": (Done.DONE, WRITTEN),
        "in doubt, mine": (Done.DONE, Write.AGAIN),
    },
    "release of attempt 1": {
        "absent": (Done.GONE, Write.LEAVE),
        "in flight, mine": (Done.DONE, Write.DELETE),
        "in flight, mine, lapsed": (Done.DONE, Write.DELETE),
    },
    "release of attempt 2": {
        "absent": (Done.GONE, Write.LEAVE),
        "in flight, mine": (Done.DONE, WRITTEN),
        "in flight, mine, lapsed": (Done.DONE, WRITTEN),
        "in doubt, mine": (Done.DONE, Write.AGAIN),
    },
}
ELSE = (FOUND, Write.LEAVE)


def settlement(what: str) -> Settlement:
    mine = first_claim()
    match what:
        case "keep":
            return keep(mine, ANSWER, wall=WALL)
        case "hold":
            return hold(mine, doubt=Doubt.TIMEOUT, status=0, wall=WALL)
        case "release of attempt 1":
            return release(mine, elapsed=10, wall=WALL)
        case _:
            return release(second_claim(in_doubt(first_claim(OTHERS))), elapsed=10, wall=WALL)


def told(result: Done | Found, change: Change, found: Found | None, meant: Record | None) -> tuple[object, object]:
    """A transition as the tables write it."""
    return (
        FOUND if result is found and found is not None else result,
        WRITTEN if change is meant and meant is not None else change,
    )


@pytest.mark.parametrize("what", STANDING)
def test_a_claim(what: str) -> None:
    """Made from absent; asked again by its holder it is won while still in flight, and written again."""
    found, mine = standing(what), first_claim()
    assert told(*claimed(found, mine), found, mine) == CLAIM.get(what, ELSE)


@pytest.mark.parametrize("what", STANDING)
@pytest.mark.parametrize("kind", SETTLE)
def test_a_settlement(kind: str, what: str) -> None:
    """Made from the states that it moves, under its own holder; nothing else changes, and nothing silently."""
    found, mine = standing(what), settlement(kind)
    assert told(*settled(found, mine), found, mine.record) == SETTLE[kind].get(what, ELSE)


@pytest.mark.parametrize("what", STANDING[1:])
@pytest.mark.parametrize("kind", SETTLE)
def test_a_store_that_moved_nothing_asks_what_that_means(kind: str, what: str) -> None:
    """`refused`, which the stores call on what their script found, says the same as `settled`."""
    found, mine = standing(what), settlement(kind)
    assert found is not None
    if SETTLE[kind].get(what, ELSE)[1] in (Write.LEAVE, Write.AGAIN):
        assert refused(found, mine) == settled(found, mine)[0]


#: (what the stamp saw, lapsed_for, what stands now, its age): whether the change is made
STAMPS = [
    ("in doubt", None, "in doubt", 0, True),
    ("in doubt", MARGIN, "in doubt", 0, True),  # a doubt written down need not lapse
    ("in doubt", None, "in flight", LEASE + MARGIN, False),
    ("in doubt", None, "completed", 0, False),
    ("in flight", None, "in flight", 0, True),
    ("in flight", 0, "in flight", LEASE - 1, False),
    ("in flight", 0, "in flight", LEASE, True),
    ("in flight", MARGIN, "in flight", LEASE, False),
    ("in flight", MARGIN, "in flight", LEASE + MARGIN - 1, False),
    ("in flight", MARGIN, "in flight", LEASE + MARGIN, True),
    ("in flight", LEASE, "in flight", 2 * LEASE - 1, False),
    ("in flight", LEASE, "in flight", 2 * LEASE, True),
    ("in flight", MARGIN, "in doubt", LEASE + MARGIN, False),
    ("in flight", MARGIN, "completed", LEASE + MARGIN, False),
    ("completed", None, "completed", 0, True),
    ("completed", MARGIN, "completed", 0, True),
    ("completed", None, "in flight", 0, False),
    ("completed", None, "in doubt", 0, False),
]
STATES = {"in flight": State.IN_FLIGHT, "in doubt": State.IN_DOUBT, "completed": State.COMPLETED}


@pytest.mark.parametrize(("saw", "lapsed_for", "stands", "age", "made"), STAMPS)
def test_a_change_under_a_stamp(saw: str, lapsed_for: int | None, stands: str, age: int, made: bool) -> None:
    """Made if the state and the holder that were seen still stand, and the lapse does that was asked for."""
    mine = first_claim()
    record = {"in flight": mine, "in doubt": in_doubt(mine), "completed": completed(mine)}[stands]
    found = Found(record, age)
    stamp = Stamp(STATES[saw], MINE, lapsed_for)
    to = second_claim(record, OTHERS)
    assert stamp.stands(found) is made
    assert told(*replaced(found, stamp, to), found, to) == ((Done.WON, WRITTEN) if made else ELSE)
    assert told(*replaced(found, stamp, None), found, None) == ((Done.WON, Write.DELETE) if made else ELSE)


@pytest.mark.parametrize("state", STATES.values())
def test_a_change_under_the_stamp_of_another_holder_is_never_made(state: State) -> None:
    """The same state under a holder that was not seen is not what was seen."""
    for what in STANDING[1:]:
        found = standing(what)
        assert found is not None
        assert replaced(found, Stamp(state, b"a third one.."), None) == (found, Write.LEAVE)


def test_a_takeover_asked_again_is_won_and_written_again() -> None:
    """What stands is its own claim, in flight: the reply was lost. Once it has been settled it is won no more."""
    seen = in_doubt(first_claim(OTHERS))
    stamp, mine = Stamp(State.IN_DOUBT, OTHERS), second_claim(seen)
    assert replaced(Found(mine, 5), stamp, mine) == (Done.WON, Write.AGAIN)
    for settled_since in (completed(mine), in_doubt(mine)):
        found = Found(settled_since, 5)
        assert replaced(found, stamp, mine) == (found, Write.LEAVE)


def test_an_operators_answer_asked_again_is_won_and_written_again() -> None:
    """It has a holder of its own, so what stands under that one is it."""
    seen = in_doubt(first_claim(OTHERS))
    stamp, mine = Stamp(State.IN_DOUBT, OTHERS), answered(seen, ANSWER, holder=MINE, wall=WALL)
    assert replaced(Found(seen, 5), stamp, mine) == (Done.WON, mine)
    assert replaced(Found(mine, 5), stamp, mine) == (Done.WON, Write.AGAIN)
    other = answered(seen, ANSWER, holder=b"a third one.", wall=WALL)
    assert replaced(Found(other, 5), stamp, mine) == (Found(other, 5), Write.LEAVE)


def test_an_operators_answer_lives_for_the_claims_window_and_is_nobodys_to_move() -> None:
    """The owner of the doubt, late, finds that another's record stands."""
    claim = first_claim(OTHERS)
    record = answered(in_doubt(claim), ANSWER, holder=MINE, wall=WALL + 7)
    assert (record.state, record.life, record.expires, record.doubt) == (
        State.COMPLETED, WINDOW, WALL + 7 + WINDOW, Doubt.NONE,
    )  # fmt: skip
    assert (record.first_seen, record.attempt, record.status) == (claim.first_seen, 1, ANSWER.status)
    late = keep(claim, ANSWER, wall=WALL + 8)
    assert settled(Found(record, 1), late) == (Found(record, 1), Write.LEAVE)


def test_a_change_of_what_is_gone() -> None:
    """Nothing is put where nothing is found: an operator's answer is for the record that was shown."""
    assert replaced(None, Stamp(State.IN_DOUBT, OTHERS), first_claim()) == (Done.GONE, Write.LEAVE)
    assert replaced(None, Stamp(State.COMPLETED, OTHERS), None) == (Done.GONE, Write.LEAVE)


# ── The records that are written ──────────────────────────────────────────────────────────────────


def test_a_claim_lives_for_its_lease_and_its_doubt_window() -> None:
    """So that a window shorter than the exchange cannot lose it, and a lapse is remembered as long as a doubt."""
    made = first_claim()
    assert (made.state, made.attempt, made.status, made.doubt, made.answer) == (State.IN_FLIGHT, 1, 0, Doubt.NONE, None)
    assert (made.first_seen, made.written, made.expires) == (WALL, WALL, WALL + LEASE + DOUBT_WINDOW)
    assert (made.life, made.lease, made.window) == (LEASE + DOUBT_WINDOW, LEASE, WINDOW)
    assert (made.holder, made.fingerprint, made.route) == (MINE, PRINT, "r")


def test_an_answer_lives_for_its_claims_window_from_now() -> None:
    """The claim's own window, whatever the configuration says by then."""
    mine = first_claim()
    made = keep(mine, ANSWER, wall=WALL + 500)
    assert (made.kind, made.holder) == (Kind.KEEP, MINE)
    assert made.record == replace(
        mine, state=State.COMPLETED, expires=WALL + 500 + WINDOW, life=WINDOW, status=201, answer=ANSWER
    )


def test_a_doubt_lives_for_its_doubt_window_from_now() -> None:
    """What is left of the claim's life once its lease is taken off."""
    mine = first_claim()
    made = hold(mine, doubt=Doubt.STATUS, status=504, wall=WALL + 500)
    assert (made.kind, made.holder) == (Kind.HOLD, MINE)
    assert made.record == replace(
        mine,
        state=State.IN_DOUBT,
        expires=WALL + 500 + DOUBT_WINDOW,
        life=DOUBT_WINDOW,
        status=504,
        doubt=Doubt.STATUS,
    )


def test_a_doubt_remembers_what_the_service_last_said() -> None:
    """A second attempt that said nothing does not wipe out what the first one said."""
    said = hold(first_claim(), doubt=Doubt.STATUS, status=504, wall=WALL).record
    assert said is not None
    again = hold(second_claim(said, OTHERS), doubt=Doubt.LOST, status=0, wall=WALL).record
    assert again is not None
    assert (again.attempt, again.status, again.doubt) == (2, 504, Doubt.LOST)


def test_a_takeover_is_a_fresh_claim_of_the_same_request() -> None:
    """A holder, a life and a lease of its own; the first sight and the fingerprint are the first one's."""
    seen = in_doubt(first_claim(OTHERS))
    made = takeover(seen, holder=MINE, route="new", lease=10, life=30, window=20, wall=WALL + 9)
    assert made == Record(State.IN_FLIGHT, MINE, 2, PRINT, "new", WALL, WALL + 39, 30, 10, 20, 0, seen.doubt)
    assert made.written == WALL + 9
    third = takeover(in_doubt(made), holder=OTHERS, route="new", lease=10, life=30, window=20, wall=WALL)
    assert third.attempt == 3


def test_a_first_attempt_that_did_not_run_frees_its_key() -> None:
    """Nothing is left of it."""
    assert release(first_claim(), elapsed=10, wall=WALL) == Settlement(Kind.RELEASE, MINE, None)


def test_a_takeover_that_did_not_run_goes_back_in_doubt_for_what_is_left() -> None:
    """It may not free the key: the first attempt is as doubtful as before. Nor does it count as an attempt."""
    mine = second_claim(in_doubt(first_claim(OTHERS)), wall=WALL)
    made = release(mine, elapsed=1_000, wall=WALL + 1_000)
    assert (made.kind, made.holder) == (Kind.RELEASE, MINE)
    back = made.record
    assert back is not None
    assert (back.state, back.attempt, back.holder, back.answer) == (State.IN_DOUBT, 1, MINE, None)
    assert back.doubt is in_doubt(first_claim(OTHERS)).doubt
    lapsed = release(second_claim(first_claim(OTHERS), wall=WALL), elapsed=1_000, wall=WALL).record
    assert lapsed is not None
    assert lapsed.doubt is Doubt.LAPSED  # what was taken over had only lapsed
    assert back.expires == mine.expires
    assert back.life == mine.life - 1_000
    assert back.first_seen == WALL


def test_a_release_after_the_end_of_its_life_still_writes_a_life() -> None:
    """A life of nothing would be a record for ever in one store and an error in another."""
    mine = second_claim(in_doubt(first_claim(OTHERS)))
    back = release(mine, elapsed=mine.life + 5, wall=WALL).record
    assert back is not None
    assert back.life == 1
    assert back.expires == WALL + 1


def test_a_claim_lapses_at_its_lease_and_nothing_else_does() -> None:
    """A claim past its lease is in doubt without anybody writing so."""
    mine = first_claim()
    assert not mine.lapsed(LEASE - 1)
    assert mine.lapsed(LEASE)
    assert not in_doubt(mine).lapsed(10 * LEASE)
    assert not completed(mine).lapsed(10 * LEASE)
    assert Found(mine, 1_000).left == mine.life - 1_000


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (first_claim(), "<in_flight #1 by 6d696e65>"),
        (in_doubt(second_claim(first_claim(OTHERS))), "<in_doubt #2 by 6d696e65>"),
        (completed(first_claim(OTHERS)), "<completed #1 by 616e6f74 201>"),
    ],
)
def test_the_repr_of_a_record_is_worth_asserting_on(record: Record, shown: str) -> None:
    """State, attempt, holder, status; nothing of the request or its answer."""
    assert repr(record) == shown


# ── Any number of them, in any order ──────────────────────────────────────────────────────────────


@dataclass
class Owner:
    """A process that has asked for the key: what it sent, what it was told, and whether it ran the request."""

    claim: Record
    t0: int
    stamp: Stamp | None = None
    won: bool = False
    ran: bool = False
    settlement: Settlement | None = None

    @property
    def dead(self) -> bool:
        """After any settlement was sent for it, a holder id is dead."""
        return self.settlement is not None

    def live(self, now: int) -> bool:
        """Whether it holds the key, as far as it knows, and its deadline has not passed."""
        return self.won and not self.dead and now < self.t0 + LEASE


class Life(RuleBasedStateMachine):
    """One key, one store, one service that counts its effects, and processes that come, pause and die.

    Nothing happens in good time here: claims are asked again and land late, even after their owner has
    given up; settlements arrive late, twice or not at all; whoever takes over may have looked long ago.
    The store forgets nothing and no operator steps in: that is `Troubled`, below.
    """

    MAX_ATTEMPTS = 3

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.entry: tuple[Record, int] | None = None
        self.owners: list[Owner] = []
        self.looks: list[Found] = []
        self.effects = 0
        self.meddled = False

    # The store: what any is, with the pure transitions inside.

    def find(self) -> Found | None:
        if self.entry is not None and self.now - self.entry[1] >= self.entry[0].life:
            if not self.meddled:
                assert not any(owner.live(self.now) for owner in self.owners), "no record ends before its owner"
            self.entry = None
            self.effects = 0  # the promise is for as long as the record lives
        return None if self.entry is None else Found(self.entry[0], self.now - self.entry[1])

    def make(self, change: Change, stamp: Stamp | None = None) -> None:
        before = self.entry
        if isinstance(change, Record):
            self.entry = (change, self.now)
        elif change is Write.DELETE:
            self.entry = None
        if before is not None and before[0].state is State.COMPLETED and self.entry != before:
            assert stamp is not None, "a completed record moves by replaced() alone"
            assert (stamp.state, stamp.holder) == (State.COMPLETED, before[0].holder), "and by its own stamp"

    # What processes do.

    def mint(self) -> bytes:
        return len(self.owners).to_bytes(12, "big")

    def asks(self, owner: Owner) -> None:
        """An owner's claim, or takeover, arrives."""
        found, before = self.find(), self.entry
        if owner.stamp is None:
            result, change = claimed(found, owner.claim)
            assert (change is owner.claim) == (found is None), "a claim is made from absent"
        else:
            result, change = replaced(found, owner.stamp, owner.claim)
        self.make(change, owner.stamp)
        if change is not owner.claim:
            assert self.entry == before, "asked again, a claim keeps its life"
        holds = result is Done.WON or (
            isinstance(result, Found)
            and result.record.holder == owner.claim.holder
            and result.record.state is State.IN_FLIGHT
        )
        if holds and not owner.dead:
            owner.won = True

    @rule()
    def somebody_claims(self) -> None:
        owner = Owner(first_claim(self.mint(), wall=self.now), self.now)
        self.owners.append(owner)
        self.asks(owner)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def a_claim_lands_again_or_late(self, data: st.DataObject) -> None:
        self.asks(data.draw(st.sampled_from(self.owners)))

    @rule()
    def somebody_looks(self) -> None:
        if (found := self.find()) is not None:
            self.looks.append(found)

    @precondition(lambda self: self.looks)
    @rule(data=st.data(), by=st.sampled_from([0, MARGIN, LEASE, LEASE + MARGIN]))
    def somebody_takes_over_what_it_saw(self, data: st.DataObject, by: int) -> None:
        self.now += by
        self.takes_over(data.draw(st.sampled_from(self.looks)).record)

    @precondition(lambda self: self.entry is not None)
    @rule(ran=st.booleans())
    def somebody_takes_over_at_once(self, ran: bool) -> None:
        """What it sees; and then it runs the request, or finds that it cannot be sent and says so."""
        if (found := self.find()) is None or (owner := self.takes_over(found.record)) is None or not owner.won:
            return
        if ran:
            owner.ran = True
            self.effects += 1
        else:
            owner.settlement = release(owner.claim, elapsed=0, wall=self.now)
            self.settles(owner)

    def takes_over(self, seen: Record) -> Owner | None:
        if seen.state is State.COMPLETED or seen.attempt >= self.MAX_ATTEMPTS:
            return None
        fresh = second_claim(seen, self.mint(), wall=self.now)
        owner = Owner(fresh, self.now, Stamp(seen.state, seen.holder, MARGIN))
        self.owners.append(owner)
        self.asks(owner)
        return owner

    @precondition(lambda self: any(owner.live(self.now) and not owner.ran for owner in self.owners))
    @rule(data=st.data())
    def an_owner_runs_the_request(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from([o for o in self.owners if o.live(self.now) and not o.ran]))
        if self.now < owner.t0 + LEASE // 2:
            owner.ran = True
            self.effects += 1

    @precondition(lambda self: any(not owner.dead for owner in self.owners))
    @rule(data=st.data(), kept=st.booleans())
    def an_owner_sends_its_settlement(self, data: st.DataObject, kept: bool) -> None:
        """In time, or after a pause of any length; a claim that was never won is given up."""
        owner = data.draw(st.sampled_from([owner for owner in self.owners if not owner.dead]))
        if not owner.ran:
            owner.settlement = release(owner.claim, elapsed=self.now - owner.t0, wall=self.now)
        elif kept:
            owner.settlement = keep(owner.claim, ANSWER, wall=self.now)
        else:
            owner.settlement = hold(owner.claim, doubt=Doubt.LOST, status=0, wall=self.now)

    @precondition(lambda self: any(owner.dead for owner in self.owners))
    @rule(data=st.data())
    def a_settlement_arrives(self, data: st.DataObject) -> None:
        self.settles(data.draw(st.sampled_from([owner for owner in self.owners if owner.dead])))

    @precondition(lambda self: self.entry is None)
    @rule(later=st.sampled_from([0, 500]))
    def somebody_gets_through(self, later: int) -> None:
        """As it goes nearly always: claimed, run, kept."""
        self.somebody_claims()
        owner = self.owners[-1]
        self.effects += 1
        self.now += later
        owner.ran, owner.settlement = True, keep(owner.claim, ANSWER, wall=self.now)
        self.settles(owner)
        assert self.entry == (owner.settlement.record, self.now)

    def settles(self, owner: Owner) -> None:
        """An owner's settlement arrives, for the first time or once more."""
        settlement = owner.settlement
        assert settlement is not None
        found, before = self.find(), self.entry
        result, change = settled(found, settlement)
        self.make(change)
        if found is None:
            if settlement.kind is Kind.RELEASE:
                assert (result, self.entry) == (Done.GONE, None)
            else:
                assert result is Done.FORGOT
                assert self.entry == (settlement.record, self.now), "what an absent key is told is written"
        elif found.record.holder != settlement.holder:
            assert result == found
            assert self.entry == before, "a settlement of a dead holder changes nothing of another's"
        elif settlement.kind is Kind.KEEP:
            assert result is Done.DONE
            assert self.entry is not None
            assert self.entry[0].state is State.COMPLETED
        if before is not None and self.entry is None:
            assert (settlement.kind, owner.claim.attempt) == (Kind.RELEASE, 1), "a doubtful key is never freed"
        if settlement.kind is Kind.RELEASE and self.entry != before and self.entry is not None:
            assert self.entry[0].state is State.IN_DOUBT
            assert self.entry[0].attempt == owner.claim.attempt - 1

    @rule(by=st.sampled_from([1, 500, 20_000, WINDOW, MARGIN, LEASE // 2, LEASE, LEASE + MARGIN, DOUBT_WINDOW]))
    def time_goes_on(self, by: int) -> None:
        self.now += by
        self.find()

    # What always holds.

    @invariant()
    def one_owner_at_most_may_send(self) -> None:
        """Of all who were told that the key is theirs, and whose deadline has not passed."""
        if not self.meddled:
            assert sum(owner.live(self.now) for owner in self.owners) <= 1

    @invariant()
    def it_ran_no_more_often_than_the_record_says(self) -> None:
        """Once per attempt at most, and never more often than the policy allows."""
        if not self.meddled:
            assert self.effects <= (self.entry[0].attempt if self.entry else 0) <= self.MAX_ATTEMPTS

    @invariant()
    def a_record_is_what_its_state_says(self) -> None:
        if self.entry is not None:
            record = self.entry[0]
            assert (record.answer is not None) == (record.state is State.COMPLETED)
            assert record.doubt is not Doubt.NONE or record.state is not State.IN_DOUBT
            assert record.life > 0


class Troubled(Life):
    """The same, with a store that loses what it acknowledged and operators who decide on what they saw.

    How often it ran is then no longer the protocol's to promise; what a write may touch still is.
    """

    @precondition(lambda self: self.entry is not None)
    @rule()
    def the_store_forgets(self) -> None:
        self.entry = None
        self.meddled = True

    @precondition(lambda self: self.looks)
    @rule(data=st.data(), answered=st.booleans())
    def an_operator_decides(self, data: st.DataObject, answered: bool) -> None:
        seen = data.draw(st.sampled_from(self.looks)).record
        found, before = self.find(), self.entry
        stamp = Stamp(seen.state, seen.holder)
        result, change = replaced(found, stamp, completed(seen) if answered else None)
        self.make(change, stamp)
        if found is not None and (found.record.state, found.record.holder) == (seen.state, seen.holder):
            assert result is Done.WON
            assert (self.entry is not None) == answered
            self.meddled = True
        elif answered and found is not None and found.record.holder == seen.holder and found.record.answer is not None:
            # Its own exchange has answered meanwhile, which cannot be told from an operator's answer asked for again.
            assert result is Done.WON
            assert self.entry == before
        else:
            assert result == (Done.GONE if found is None else found)
            assert self.entry == before


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestTroubled = Troubled.TestCase
TestTroubled.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

"""The table of docs/model/README.md is what the models, their checker, the code and the tests say."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from gateway.clock import HostClock
from gateway.core.record import Stamp
from gateway.engine.exchange import Exchange
from gateway.engine.machine import Phase
from tests.engine.support import NAME
from tests.engine.test_table import CELLS, PHASES, RUNNING, SENT_AGAIN, Cell, Scene, Seen, is_impossible

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "docs/model"
MODELS = ["record", "lease", "lanes"]


def rows() -> dict[str, list[str]]:
    """The table's cells, by switch."""
    lines = re.findall(r"^\| `([A-Z0-9_]+)` \|(.*)\|$", (MODEL / "README.md").read_text(), re.MULTILINE)
    return {switch: [cell.strip() for cell in rest.split("|")] for switch, rest in lines}


def named(cell: str) -> list[tuple[str, str]]:
    """`file:function`, of each that a cell names."""
    return re.findall(r"`([\w/.]+):(\w+)`", cell)


def switches(model: str) -> list[str]:
    text = (MODEL / f"{model}.pml").read_text()
    return sorted(set(re.findall(r"(?:ifdef|ifndef) WITHOUT_(\w+)", text)))


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("oncegate_model_check", MODEL / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("model", MODELS)
def test_every_switch_is_taken_away_once(model: str, check: ModuleType) -> None:
    """Each rule of a model has one run without it, which must find a counterexample."""
    runs = [run for run in check.RULES if run.model == model]
    assert sorted(run.name.removeprefix("without ") for run in runs) == switches(model)
    for run in runs:
        assert not run.holds
        assert [run.name.replace(" ", "_").upper()] == re.findall(r"-D(WITHOUT_\w+)", run.switches)


def test_the_protocol_is_checked_with_every_rule(check: ModuleType) -> None:
    """Nothing is taken away from what must hold."""
    for run in (*check.PROTOCOL, *check.LARGER):
        assert run.holds
        assert "WITHOUT" not in run.switches


def test_every_switch_has_its_row() -> None:
    """And no row a switch that is gone."""
    assert sorted(rows()) == sorted(switch for model in MODELS for switch in switches(model))


def test_what_is_outside_of_the_promise_is_said(check: ModuleType) -> None:
    """Each run that must break with every rule has its word in the README, and that word is a switch of the model."""
    text, model = (MODEL / "README.md").read_text(), (MODEL / "lanes.pml").read_text()
    for run in check.OUTSIDE:
        assert not run.holds
        assert "WITHOUT" not in run.switches
        words = set(re.findall(r"-D([A-Z]+)\b", run.switches)) & {"HASTY", "EMPTIED", "CLOCKS"}
        assert len(words) == 1, run.switches
        word = words.pop()
        assert f"`{word}`" in text
        assert f"#ifdef {word}" in model


@pytest.mark.parametrize("switch", list(rows()))
def test_what_a_row_names_is_there(switch: str) -> None:
    """The functions in which the rule stands, and the tests that show it."""
    _, code, tests, _ = rows()[switch]
    for folder, cell in (("gateway", code), ("tests", tests)):
        assert named(cell), f"{switch} names nothing in {folder}/"
        for file, function in named(cell):
            assert re.search(
                rf"(def|function) {function}\(|^    {function}: ", (ROOT / folder / file).read_text(), re.MULTILINE
            ), f"{switch}: {file} {function}"


SAID = [
    ("State-vector 200 byte\n 7 states, stored\n... errors: 0\n", "holds", 7),
    ("pan:1: assertion violated (x) (at depth 3)\n 9 states, stored\n errors: 1\n", "broken", 9),
    ("pan: reached -DMEMLIM bound\nWarning: Search not completed\n 9 states, stored\n errors: 0\n", "unknown", 9),
    ("error: max search depth too small\n 9 states, stored\n errors: 0\n", "unknown", 9),
    ("", "unknown", 0),
]


@pytest.mark.parametrize(("said", "means", "states"), SAID, ids=["holds", "broken", "memory", "depth", "nothing"])
def test_what_was_not_searched_through_does_not_hold(said: str, means: str, states: int, check: ModuleType) -> None:
    """The checker's reading of the verifier: out of memory or depth is neither a proof nor a counterexample."""
    for run in (check.PROTOCOL[0], check.RULES[0]):
        result = check.judged(run, said, 1.0)
        assert result.states == states
        assert bool(result.trouble) is (means == "unknown")
        assert bool(result.broken) is (means == "broken")
        assert result.expected is (means == ("holds" if run.holds else "broken"))


def test_without_spin_it_says_what_to_install(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Neither spin nor gcc on PATH: exit 69, and the Debian packages by name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check.main([]) == 69
    assert "apt-get install spin gcc" in capsys.readouterr().out


def test_the_gates_clock_is_the_one_that_counts_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_BOOTTIME, by its number: the two clocks tell the same until a host has slept."""
    monkeypatch.setattr(time, "clock_gettime", float)
    assert HostClock().now() == time.CLOCK_BOOTTIME


# ── The rules of the model, held against the table of the machine ──────────────────────────────────


class Row(NamedTuple):
    """A cell of the table that tests/engine/test_table.py plays. Pairs are before and after the event."""

    before: Phase
    situation: str
    event: str
    after: Phase
    effects: tuple[str, ...]
    #: Whether a reply to the claim was lost before the event.
    lost: bool
    holders: tuple[bytes, bytes]
    t0: tuple[float, float]
    now: float
    #: The end of the run, counted from `t0`, and by the policy.
    lasts: tuple[float, float]
    #: What a takeover requires of the record, and the margin of the policy.
    precondition: Stamp | None
    margin: int

    @property
    def sends(self) -> bool:
        """Whether a claim or a takeover is sent."""
        return "claim" in self.effects or "take over" in self.effects

    def replies(self) -> list[str]:
        """The replies, without `answer` and `share`."""
        return [effect.partition(" ")[2] for effect in self.effects if effect.startswith(("answer ", "share "))]

    def has(self, effect: str, *, after: str = "") -> bool:
        """Whether it has this effect, and has it after that one."""
        at = self.effects.index(effect) if effect in self.effects else -1
        return at >= 0 and (not after or after in self.effects[:at])


def row(cell: Cell) -> Row:
    """Play a cell. A millisecond passes before the event, so that an instant is not that of the claim by chance."""
    phase, situation, event = cell
    scene = PHASES[phase][situation]()
    scene.io.time += 0.001
    scene.io.took()
    machine = scene.machine
    lost, holder, t0 = machine.ambiguous, holder_of(machine), machine.t0
    seen = Seen(scene, event)
    machine = scene.io.table.get(NAME, machine)  # a request that joins a machine in DONE has one of its own
    return Row(
        phase, situation, event, seen.phase, seen.effects, lost, (holder, holder_of(machine)), (t0, machine.t0),
        scene.io.time, lasts(scene, machine), machine._precondition, scene.policy.margin,
    )  # fmt: skip


def holder_of(machine: Exchange) -> bytes:
    return b"" if machine.claim is None else machine.claim.holder


def lasts(scene: Scene, machine: Exchange) -> tuple[float, float]:
    allowed = scene.policy.ends_by / 1000
    return (allowed if machine.run is None else round(machine.run.ends_by - machine.run.t0, 6)), allowed


@pytest.fixture(scope="module")
def table() -> dict[Cell, Row]:
    return {cell: row(cell) for cell in CELLS if not is_impossible(cell)}


ACQUIRING = (Phase.CLAIMING, Phase.TAKING_OVER, Phase.BACKING_OFF)
UNSETTLED = (Phase.SETTLING, Phase.KEEPING)
#: Events by which a machine ends in the middle.
ENDS = ("cut", "fault", "unexpected exception")
#: Replies to a settlement that was carried out.
DONE = ("done", "recreated", "not found")
TOO_LATE = ("won: after `send_by`", "won: while stopping")
#: Ends of an attempt after which its request may have run.
UNKNOWN = (
    "attempt_ended: lost", "attempt_ended: none at `ends_by`", "attempt_ended: stream, past `ends_by`",
    "stream_ended: lost", "stream_ended: not in time",
)  # fmt: skip


def gives_up(row: Row) -> bool:
    """A claim that may have been made, or may yet be, is abandoned when it is not used."""
    if row.before not in ACQUIRING or row.holders[0] == row.holders[1]:
        return True
    return "abandon_claim" in row.effects or not (row.lost or row.event in ENDS)


def repeats(row: Row) -> bool:
    """The Release of a claim that found nothing, or of which a reply was lost, is repeated."""
    releases = row.before is Phase.SETTLING and (row.situation.startswith("Release") or row.situation == SENT_AGAIN)
    if not releases or row.after is row.before:
        return True
    return "repeat_release" in row.effects or not (row.lost or row.event == "not found")


def settles_on(row: Row) -> bool:
    """A settlement that the store has not acknowledged is sent again, in this phase or in the background."""
    failed = row.event.startswith("failed") or row.event in ENDS
    if row.before not in UNSETTLED or not failed:
        return True
    return "settle in the background" in row.effects or "settle keep" in row.effects


def holds_unknown(row: Row) -> bool:
    """A run that may have had an effect is held. It is released only if its attempt, once abandoned, has sent
    nothing."""
    if row.before not in RUNNING:
        return True
    unsent = row.event == "attempt_ended: not sent" or row.situation == "nothing sent yet"
    if {"settle release", "abandon_claim"} & {*row.effects}:
        return unsent and (row.event not in ENDS or row.has("abandon_claim", after="abandon attempt"))
    if row.event in ("cut", "fault"):
        return row.has("settle hold in the background", after="abandon attempt")
    return row.event not in UNKNOWN or row.after is row.before or "settle hold" in row.effects


def outlives(row: Row) -> bool:
    """Nothing happens when the client of the claimant leaves."""
    return row.event != "left: the claimant" or (row.after is row.before and not row.effects)


def reads_to_the_end(row: Row) -> bool:
    """A stream is kept when it has ended, not at its head, and nothing is kept that did not end."""
    keeps = "settle keep" in row.effects
    if row.event == "attempt_ended: stream" and row.before in (Phase.FORWARDING, Phase.LATE):
        return row.after is Phase.STREAMING and not any(effect.startswith("settle") for effect in row.effects)
    if row.before in (*RUNNING, Phase.OVERDUE):
        return not keeps or row.event in ("attempt_ended: whole response", "stream_ended: whole")
    return True


def remembers_first(row: Row) -> bool:
    """Before the store has acknowledged the settlement there is no answer of the run but a 504, a stream, or, after a
    fault, that its outcome is unknown. `stored` and `replayed` come with the acknowledgement. An answer of this run
    has the status 201, one of another holder 200."""
    if any(reply in ("201 stored", "201 replayed") for reply in row.replies()):
        return row.before is Phase.SETTLING and row.event in DONE
    if row.before not in RUNNING:
        return True
    early = {"504 upstream-timeout", "200 live", "409 in-flight", "422"}
    if row.event in ENDS:
        early |= {"502 upstream-lost", "the remembered reply"}
    return {*row.replies()} <= early


def answers_from_record(row: Row) -> bool:
    """If another holder's record is found at the settlement, no request gets the outcome of this run."""
    if row.before not in UNSETTLED or not row.event.startswith("found"):
        return True
    return {*row.replies()} <= {"200 replayed", "409 in-doubt"} and "end stream" not in row.effects


def counts_from_the_claim(row: Row) -> bool:
    """`t0` is read before a claim is sent for the first time, and stays: a repeated command and a reply leave it."""
    first = row.sends and row.event != "store_back: up"
    if first:
        return row.t0[1] == row.now
    return row.holders[0] != row.holders[1] or row.t0[0] == row.t0[1]


def sends_in_time(row: Row) -> bool:
    """A claim that was won too late, or while stopping, is released unused."""
    forwards = any(effect.startswith("forward") for effect in row.effects)
    if row.before in (Phase.CLAIMING, Phase.TAKING_OVER) and row.event in TOO_LATE:
        return not forwards and "settle release" in row.effects
    return not forwards or row.before in ACQUIRING


def ends_in_time(row: Row) -> bool:
    """One end, counted from `t0`. At it the attempt is abandoned first, then the claim is settled."""
    if row.lasts[0] != row.lasts[1]:
        return False
    if row.before in RUNNING and row.event.startswith("attempt_ended") and row.event.endswith("`ends_by`"):
        ignored = row.before is Phase.STREAMING  # its attempt has ended
        return ignored or (row.after is Phase.SETTLING and row.has("settle hold", after="abandon attempt"))
    return row.before is not Phase.STREAMING or row.event != "stream_ended: not in time" or row.has("settle hold")


def has_fresh_holders(row: Row) -> bool:
    """Each claim and each takeover has its own holder. A command that is sent again has that of the first time."""
    if not row.sends:
        return True
    before, after = row.holders
    return bool(after) and (before == after) is (row.event == "store_back: up")


def takes_with_margin(row: Row) -> bool:
    """A key is taken over from a doubt or past its lapse, and the store tests the margin again."""
    if "take over" not in row.effects:
        return True
    # The Hold of its own that the store has acknowledged is such a doubt too.
    held = row.before is Phase.SETTLING and row.situation.startswith("Hold") and row.event in ("done", "recreated")
    seen = held or row.event in ("found: in doubt", "found: lapsed", "store_back: up")
    return seen and row.precondition is not None and row.precondition.lapsed_for == row.margin


#: By switch: the rule, and for some cells an outcome that breaks it.
BROKEN: dict[str, tuple[Callable[[Row], bool], dict[Cell, dict[str, Any]]]] = {
    "GIVE_UP": (
        gives_up,
        {
            (Phase.CLAIMING, "sent again", "found: in flight"): {"effects": ("wait", "set timer")},
            (Phase.CLAIMING, "", "cut"): {"effects": ("end", "finish")},
            (Phase.TAKING_OVER, "sent again", "not found"): {"effects": ("claim",)},
            (Phase.BACKING_OFF, "reply lost", "timer: after the patience"): {"effects": ("end", "refuse 503")},
        },
    ),
    "REPEAT": (
        repeats,
        {
            (Phase.SETTLING, SENT_AGAIN, "done"): {"effects": ("end", "answer 502 upstream-unreachable")},
            (Phase.SETTLING, SENT_AGAIN, "found: in flight"): {"effects": ("alarm", "answer 409 in-doubt")},
            (Phase.SETTLING, "Release, not sent", "not found"): {"effects": ("end",)},
        },
    ),
    "SETTLE_ON": (
        settles_on,
        {
            (Phase.SETTLING, "Keep", "failed: reply lost"): {"effects": ("answer 201 not-stored",)},
            (Phase.SETTLING, "Release of an answer", "cut"): {"effects": ("abandon attempt", "end", "finish")},
            (Phase.KEEPING, "", "failed: not sent"): {"after": Phase.DONE, "effects": ("end", "end stream")},
        },
    ),
    "HOLD_UNKNOWN": (
        holds_unknown,
        {
            (Phase.FORWARDING, "", "attempt_ended: lost"): {"effects": ("settle release",)},
            (Phase.FORWARDING, "", "cut"): {"effects": ("abandon attempt", "abandon_claim", "end", "finish")},
            (Phase.FORWARDING, "nothing sent yet", "cut"): {"effects": ("abandon_claim", "abandon attempt", "end")},
            (Phase.LATE, "", "attempt_ended: none at `ends_by`"): {"effects": ("abandon attempt", "settle release")},
            (Phase.STREAMING, "", "stream_ended: lost"): {"effects": ("settle keep",)},
        },
    ),
    "OUTLIVES_ITS_CLIENT": (
        outlives,
        {
            (Phase.FORWARDING, "", "left: the claimant"): {"effects": ("abandon attempt", "settle hold")},
            (Phase.CLAIMING, "", "left: the claimant"): {"after": Phase.DONE},
        },
    ),
    "READ_TO_ITS_END": (
        reads_to_the_end,
        {
            (Phase.FORWARDING, "", "attempt_ended: stream"): {
                "after": Phase.SETTLING,
                "effects": ("answer 200 live", "settle keep"),
            },
            (Phase.STREAMING, "", "stream_ended: not in time"): {"effects": ("settle keep",)},
            (Phase.OVERDUE, "", "stream_ended: lost"): {"effects": ("settle keep",)},
        },
    ),
    "REMEMBER_FIRST": (
        remembers_first,
        {
            (Phase.FORWARDING, "", "attempt_ended: whole response"): {"effects": ("answer 201 stored", "settle keep")},
            (Phase.LATE, "", "attempt_ended: lost"): {"effects": ("settle hold", "share 409 in-doubt")},
            (Phase.SETTLING, "Keep", "failed: reply lost"): {
                "effects": ("settle in the background", "answer 201 stored"),
            },
            (Phase.SETTLING, "Keep", "joined: the same request"): {"effects": ("share 201 replayed",)},
        },
    ),
    "ANSWER_FROM_RECORD": (
        answers_from_record,
        {
            (Phase.SETTLING, "Keep", "found: completed"): {"effects": ("alarm", "end", "answer 201 not-stored")},
            (Phase.SETTLING, "Hold", "found: in flight"): {"effects": ("alarm", "answer 502 upstream-lost")},
            (Phase.KEEPING, "", "found: completed"): {"effects": ("alarm", "end", "end stream")},
        },
    ),
    "T0": (
        counts_from_the_claim,
        {
            (Phase.CLAIMING, "", "won: in time"): {"t0": (1000.0, 1000.001)},
            (Phase.BACKING_OFF, "reply lost", "store_back: up"): {"t0": (1000.0, 1000.001)},
            (Phase.PAUSING, "", "timer: in time"): {"t0": (1000.0, 1000.0)},
        },
    ),
    "SEND_BY": (
        sends_in_time,
        {
            (Phase.CLAIMING, "", "won: after `send_by`"): {"effects": ("forward",)},
            (Phase.TAKING_OVER, "sent again", "won: after `send_by`"): {"effects": ("forward (second run)",)},
            (Phase.WATCHING, "", "found: nothing"): {"effects": ("forward",)},
        },
    ),
    "DEADLINE": (
        ends_in_time,
        {
            (Phase.CLAIMING, "", "won: in time"): {"lasts": (31.0, 30.0)},
            (Phase.LATE, "", "attempt_ended: none at `ends_by`"): {"after": Phase.LATE, "effects": ()},
            (Phase.FORWARDING, "", "attempt_ended: none at `ends_by`"): {"effects": ("settle hold", "abandon attempt")},
            (Phase.FORWARDING, "", "attempt_ended: stream, past `ends_by`"): {"after": Phase.STREAMING},
            (Phase.STREAMING, "", "stream_ended: not in time"): {"after": Phase.STREAMING, "effects": ()},
        },
    ),
    "FRESH_HOLDER": (
        has_fresh_holders,
        {
            (Phase.TAKING_OVER, "", "not found"): {"holders": (b"1", b"1")},
            (Phase.TAKING_OVER, "sent again", "found: in doubt"): {"holders": (b"1", b"1")},
            (Phase.SETTLING, "Release of a stream", "done"): {"holders": (b"1", b"1")},
            (Phase.BACKING_OFF, "reply lost", "store_back: up"): {"holders": (b"1", b"2")},
        },
    ),
    "TAKE_MARGIN": (
        takes_with_margin,
        {
            (Phase.WATCHING, "`on_doubt: rerun`", "found: in flight"): {"effects": ("take over",)},
            (Phase.WATCHING, "`on_doubt: rerun`", "found: lapsed"): {"margin": -1},
            (Phase.TAKING_OVER, "", "found: lapsed"): {"precondition": None},
        },
    ),
}


@pytest.mark.parametrize("switch", BROKEN)
def test_the_table_of_the_machine_keeps_the_rules_of_the_model(switch: str, table: dict[Cell, Row]) -> None:
    rule, _ = BROKEN[switch]
    assert [row[:5] for row in table.values() if not rule(row)] == []


@pytest.mark.parametrize("switch", BROKEN)
def test_a_table_that_breaks_a_rule_is_found(switch: str, table: dict[Cell, Row]) -> None:
    """A rule fails for a cell whose outcome is the opposite."""
    rule, mutations = BROKEN[switch]
    assert switch in switches("record") + switches("lease")
    for cell, changes in mutations.items():
        assert rule(table[cell])
        mutated = table[cell]._replace(**changes)
        assert mutated != table[cell]
        assert not rule(mutated), cell

"""The table of docs/model/README.md is what the models, their checker, the code and the tests say."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from gateway.clock import HostClock

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

"""Broken files, and what the command says of each: its exit code, the line, the place, and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main

from .broken import BROKEN, Broken

#: Of this environment a row may say something; nothing else of ours is in it.
ENVIRON = {"EMPTY": "", "NAME": None, "A": None, "B": None, "ADMIN": None, "KUBERNETES_SERVICE_HOST": None}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_check_says_what_is_wrong_where_and_what_to_write(broken: Broken, tmp_path: Path) -> None:
    """oncegate check FILE → nothing on stdout; on stderr these lines and no others, each with its place; exit 64."""
    file = tmp_path / "gate.yaml"
    file.write_text(broken.text)
    done = CliRunner().invoke(main, ["check", str(file)], env=ENVIRON)
    assert done.stderr.splitlines() == [line.replace("FILE", str(file), 1) for line in broken.said]
    assert (done.exit_code, done.stdout) == (64, "")


def test_the_table_is_worth_its_name() -> None:
    """No row stands twice; its complaints are of hundreds of kinds, whatever they quote; most say what to write."""
    complaints = [complaint for broken in BROKEN for complaint in broken.complaints]
    kinds = {re.sub(r"`[^`]*`|\d+", "…", complaint.partition("; ")[0]) for complaint in complaints}
    advice = [complaint for complaint in complaints if re.search(r"; |did you mean|in quotes|belongs in", complaint)]
    assert len({broken.text for broken in BROKEN}) == len({broken.name for broken in BROKEN}) == len(BROKEN)
    assert len(BROKEN) >= 250
    assert len(kinds) >= 120
    assert len(advice) / len(complaints) > 0.7


#: The value that a row is about, on the line of the complaint: quoted in it, or all that stands behind the field.
QUOTED = r"(?<=[ \['])({})(?=[\s,\]}}'])"
ALONE = r"(?m)^( *\w+: )([^\s{\['\"].*)$"


def mended(broken: Broken) -> str | None:
    """The file with the value that the complaint ends in; nothing where it does not end in one, or names no place."""
    said = (
        re.fullmatch(r"FILE:(\d+): (?:[^`]*`(\S+)`)?.*; use (\S+)", broken.said[0]) if len(broken.said) == 1 else None
    )
    if said is None or broken.name.startswith("store: ") or "HOST" in said[3]:
        return None  # of a URL a part is advised, or its form
    lines = broken.text.splitlines(keepends=True)
    at, wrong, right = int(said[1]) - 1, said[2], said[3]
    if right.startswith("["):
        right = f'"{right}"' if ":" in right else right
    if wrong and len(re.findall(QUOTED.format(re.escape(wrong)), lines[at])) == 1:
        lines[at] = re.sub(QUOTED.format(re.escape(wrong)), lambda _: right, lines[at])
    elif re.search(ALONE, lines[at]):
        lines[at] = re.sub(ALONE, lambda found: found[1] + right, lines[at])
    else:
        return None
    return "".join(lines)


def test_a_value_that_is_advised_is_one_that_is_taken(tmp_path: Path) -> None:
    """Where a complaint ends in the value to write, the file with that one in its place is good."""
    tried = 0
    for broken in BROKEN:
        if (text := mended(broken)) is not None:
            file = tmp_path / "gate.yaml"
            file.write_text(text)
            done = CliRunner().invoke(main, ["check", str(file)], env=ENVIRON)
            assert (done.exit_code, done.stderr) == (0, ""), broken
            tried += 1
    assert tried >= 25

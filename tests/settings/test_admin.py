"""The admin listener: who is let in, and what `check` says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.settings import (
    Faults,
)
from tests.settings.files import WHOLE, read


@pytest.mark.parametrize(
    ("admin", "refuses"),
    [
        ("{listen: 127.0.0.1:1}", False),
        ("{listen: 127.9.9.9:1}", False),
        ('{listen: "[::1]:1"}', False),
        ("{listen: localhost:1}", False),
        ("{listen: ':1'}", True),
        ("{listen: 10.0.0.1:1}", True),
        ("{listen: gate.internal:1}", True),
        ("{listen: ':1', token: abcdefghijklmnop}", False),
    ],
)
def test_an_admin_listener_that_refuses_operators_is_pointed_out(admin: str, refuses: bool) -> None:
    """Not on the loopback and without a token: no fault, and a note that says what to set."""
    settings = read(WHOLE + f"admin: {admin}\n")
    assert (settings.admin.loopback or bool(settings.admin_token)) is not refuses
    assert ["admin.token" in note for note in settings.notes] == [True] * refuses
    assert "abcdefghijklmnop" not in repr(settings)


def test_a_token_in_a_file_is_the_files_first_line_alone(tmp_path: Path) -> None:
    """Read once, the end of its line left out; two lines are no token, and are not quoted."""
    (tmp_path / "token").write_text("abcdefghijklmnop=\n")
    assert read(WHOLE + f"admin: {{token_file: {tmp_path}/token}}\n").admin_token == b"abcdefghijklmnop="
    (tmp_path / "token").write_text("abcdefghijklmnop\nsecond-line-of-it\n")
    with pytest.raises(Faults) as faults:
        read(WHOLE + f"admin: {{token_file: {tmp_path}/token}}\n")
    assert "holds no token" in str(faults.value)
    assert "second-line" not in str(faults.value)


def test_check_says_that_operators_would_be_refused(tmp_path: Path) -> None:
    """oncegate check FILE → good, exit 0, and a note where the admin listener has no token and is open to others."""
    file = tmp_path / "gate.yaml"
    for admin, notes in (("{listen: ':1'}", 1), ("{listen: 127.0.0.1:1}", 0)):
        file.write_text(WHOLE + f"admin: {admin}\n")
        done = CliRunner().invoke(main, ["check", str(file)])
        assert (done.exit_code, done.stdout.count("note: ")) == (0, notes), done.output

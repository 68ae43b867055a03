"""What stands in a file and means something else: variables, anchors, merges; and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.policy import HOUR, Missing
from gateway.settings import (
    Address,
    Faults,
    Listener,
    load,
)
from gateway.settings import source as sources
from tests.settings.files import WHOLE, faults, first, indented, read


def test_the_environment_is_read_inside_any_value() -> None:
    """In the middle of one, as a number, as a boolean; `$${` stands for itself; a lone $ is a lone $."""
    text = WHOLE + indented("guard: ${GUARD}\nmax_attempts: ${N}") + "listen: ${HOST}:80\nsecret: a$b$${c}\n"
    settings = read(text, {"GUARD": "false", "N": "7", "HOST": "10.0.0.1", "c": "no"})
    assert settings.listen == (Listener(Address("10.0.0.1", 80)),)
    assert settings.secret == b"a$b${c}"
    assert (first(settings).policy.guard, first(settings).policy.max_attempts) == (False, 7)


def test_what_the_environment_says_is_text() -> None:
    """A secret of digits needs no quotes, and YAML in a variable is not read as YAML."""
    assert read(WHOLE + "secret: ${S}\n", {"S": "31337"}).secret == b"31337"
    assert read(WHOLE + "secret: ${S}\n", {"S": "[a, ${S}]"}).secret == b"[a, ${S}]"


def test_anchors_and_merges_are_read() -> None:
    """A mapping's own fields win over those that it merges; a fault stands on the line that has it."""
    text = """\
upstreams: {app: http://a}
routes:
  - &first
    name: a
    upstream: app
    match: {path: /a}
    window: &two 2h
    missing: refuse
  - <<: *first
    name: b
    match: {path: /b}
    doubt_window: *two
"""
    _, merged = read(text).routes.routes
    assert (merged.name, merged.policy.window, merged.policy.missing) == ("b", 2 * HOUR, Missing.REFUSE)
    assert merged.policy.doubt_window == 2 * HOUR
    wrong = text.replace("2h", "2")
    assert [(fault.path, fault.line) for fault in faults(lambda: read(wrong))] == [
        ("routes[0].window", 7),
        ("routes[1].window", 7),
        ("routes[1].doubt_window", 12),
    ]


@pytest.mark.parametrize("link", ["[{0}, {0}]", "{{<<: [{0}, {0}]}}"])
def test_aliases_cannot_fill_the_memory(link: str) -> None:
    """A billion laughs end at fifty thousand, also where the laugh is a merge."""
    lines = ["a0: &a0 {a: 1}"] + [f"a{n}: &a{n} " + link.format(f"*a{n - 1}") for n in range(1, 40)]
    said = faults(lambda: read("\n".join(lines)))
    assert said[-1].message == f"the aliases unfold to more than {sources.MOST_VALUES} values"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Faults) as raised:
        load(tmp_path / "a.yaml", environ={})
    assert str(raised.value) == f"{tmp_path}/a.yaml: there is no such file"


def test_a_file_that_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(Faults, match="cannot be read: Is a directory"):
        load(tmp_path, environ={})


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    """The line of the first byte that is no UTF-8 is told; a byte order mark is no fault."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"service: a\n# caf\xe9\n")
    with pytest.raises(Faults) as raised:
        load(path, environ={})
    assert str(raised.value) == f"{path}:2: this is not UTF-8; save the file in that encoding"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    assert load(path, environ={}).service == "default"

"""Whatever is in the file: settings, or faults in our words."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.settings import (
    Fault,
    Faults,
)
from gateway.settings.fields import written
from gateway.settings.model import SHAPES
from tests.settings.files import SHIPPED, WHOLE, read

PIECES = re.findall(r"\w+|\s+|[^\w\s]", SHIPPED)
ODD = ["", "5", "-1", "yes", "~", "[]", "{}", "[[1]]", "{a: b}", "2020-01-01", ".inf", "1:30", "0x10", "'"]
ODD += ["!!set", "&a", "*a", "<<", "${", "${X}", "\t", "\0", "é", "/**", "http://", "redis://", "- ", "\n", ": "]


def faults_of(text: str, environ: dict[str, str] | None = None) -> tuple[Fault, ...]:
    """None where it has settings; and whatever is said is said in our words."""
    try:
        read(text, environ)
    except Faults as raised:
        said = raised
    else:
        return ()
    assert said.faults
    assert not re.search("pydantic|Input should|value_error|Scalar|ctx", str(said))
    return said.faults


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PIECES) - 1), st.sampled_from(ODD + PIECES)), max_size=6))
@example([])
def test_any_file_has_settings_or_faults(changes: list[tuple[int, str]]) -> None:
    """However a file is mangled: no other exception, faults in order, in our words and on a line of it."""
    pieces = list(PIECES)
    for at, piece in changes:
        pieces[at] = piece
    text = "".join(pieces)
    said = faults_of(text)
    lines = [fault.line or 0 for fault in said]
    assert lines == sorted(lines)
    assert max(lines, default=0) <= text.count("\n") + 1


VALUES = st.recursive(
    st.sampled_from(["x", "5", "yes", "~", "30s", "1MiB", "[]", "{}", '""', "header:X", "${X}"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(st.sampled_from(["path", "from", "a"]), inner), max_size=2).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=4,
)
FIELDS = sorted({field for shape in SHAPES for field in written(shape)})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 4]), st.sampled_from(FIELDS), VALUES), max_size=4))
def test_any_value_in_any_field_is_read_or_refused_in_our_words(added: list[tuple[int, str, str]]) -> None:
    """Every field meets every kind of value, at the top and in a route."""
    lines = sorted(added, key=lambda line: -line[0])
    text = WHOLE + "".join(f"{' ' * indent}{field}: {value}\n" for indent, field, value in lines)
    faults_of(text, {"X": "x"})

"""Multipart bodies without their boundaries: where they are cut, how parts within parts are, and what still counts."""

from __future__ import annotations

from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.core.multipart import NESTED, PLAIN, Multipart, form, multipart


def cut(body: bytes, boundary: bytes = b"B", kind: bytes = b"mixed") -> Multipart:
    """The body without this boundary."""
    found = multipart([b'multipart/%b; boundary="%b"' % (kind, boundary)], body)
    assert found is not None
    return found


#: Bodies, and the preamble, the parts and the epilogue of each.
SEGMENTS = [
    # the whole of a plain form
    (b"--B\r\nH: 1\r\n\r\n1\r\n--B--", [b"", b"\r\nH: 1\r\n\r\n1", b""]),
    (b"--B\r\n1\r\n--B\r\n2\r\n--B--\r\n", [b"", b"\r\n1", b"\r\n2", b"\r\n"]),
    (b"pre\r\n--B\r\n1\r\n--B--\r\nepi", [b"pre", b"\r\n1", b"\r\nepi"]),
    # without parts, as `new FormData()` sends it
    (b"--B--\r\n", [b"", b"\r\n"]),
    (b"--B--", [b"", b""]),
    (b" --B\r\n1\r\n--B--", [b" --B\r\n1", b""]),
    # white space after a delimiter is a transport's padding
    (b"--B \t\r\n1\r\n--B-- \r\n", [b"", b"\r\n1", b"\r\n"]),
    # the boundary's text inside content is content: in a line, at a line's start with more behind it, after LF alone
    (b"--B\r\nx--B\r\n--Bx\r\n--B-\r\n\n--B\r\n--B--", [b"", b"\r\nx--B\r\n--Bx\r\n--B-\r\n\n--B", b""]),
    (b"--B\r\n--B--x\r\n--B--", [b"", b"\r\n--B--x", b""]),
    # two delimiter lines in a row share a line break, and hold a part without even an empty line
    (b"--B\r\n--B\r\n--B--", [b"", b"", b"", b""]),
    # after the close, everything is epilogue
    (b"--B\r\n1\r\n--B--\r\n--B\r\n2\r\n--B--", [b"", b"\r\n1", b"\r\n--B\r\n2\r\n--B--"]),
]


@pytest.mark.parametrize(("body", "segments"), SEGMENTS)
def test_a_body_is_cut_at_its_delimiter_lines_only(body: bytes, segments: list[bytes]) -> None:
    """A delimiter is a whole line; anything else that looks like one is content."""
    assert cut(body) == (b"multipart/mixed", PLAIN, segments)
    assert form(b"multipart/mixed; boundary=B", body) == segments[1:-1]


#: Bodies that RFC 2046 does not provide for, and the description and the segments of each.
UNUSUAL = [
    (b"--B\r\n1\r\n--B", b"(pp!", [b"", b"\r\n1", b""]),
    (b"--B\r\n1\r\n--B-", b"(p!", [b"", b"\r\n1\r\n--B-"]),
    (b"--B\r\n1\r\n--C--", b"(p!", [b"", b"\r\n1\r\n--C--"]),
    (b"--B\n1\n--B\n2\n--B--\n", b"[pp)", [b"", b"\n1", b"\n2", b"\n"]),
    (b"--B\r\n1\n--B\n2\r\n--B", b"(pp!", [b"", b"\r\n1\n--B\n2", b""]),
    (b"pre\n--B\r\n1\r\n--B--", b"[p)", [b"pre", b"\r\n1\r", b""]),
    (b"\n--Bx\n\n--B--", b"[)", [b"\n--Bx\n", b""]),
    (b"--B\n1\n--B\r\n2\r\n\n--B--", b"[pp)", [b"", b"\n1", b"\r\n2\r\n", b""]),
    (b"--B\n1\n", b"[p!", [b"", b"\n1\n"]),
    (b"\n--Bx", b"(!", [b"\n--Bx"]),
    (b"1", b"(!", [b"1"]),
    (b"", b"(!", [b""]),
]


@pytest.mark.parametrize(("body", "shape", "segments"), UNUSUAL)
def test_a_body_that_is_not_closed_or_has_bare_line_feeds_is_cut_too(
    body: bytes, shape: bytes, segments: list[bytes]
) -> None:
    """The description says which it is, and no field of a form is read from it."""
    assert cut(body) == (b"multipart/mixed", NESTED, [shape, *segments])
    assert form(b"multipart/mixed; boundary=B", body) is None


def test_a_boundary_is_text_not_a_pattern() -> None:
    """RFC 2046 allows `+`, `.`, `(`, `?` in it, and 70 characters. No form is read that has more."""
    for boundary, parts in ((b"a.+(?)b", [b"\r\n1"]), (b"x" * 70, [b"\r\n1"]), (b"x" * 71, None)):
        body = b"--%b\r\n1\r\n--%b--" % (boundary, boundary)
        assert form(b'multipart/form-data; boundary="%b"' % boundary, body) == parts
        assert cut(body, boundary) == cut(b"--B\r\n1\r\n--B--")
    assert cut(b"--axx(?)b\r\n1\r\n--axx(?)b--", b"a.+(?)b").segments[0] == b"(!"


@pytest.mark.parametrize("content_type", [b"multipart/mixed", b"multipart/mixed; boundary=", b"text/plain; boundary=B"])
def test_without_a_boundary_there_is_nothing_to_cut(content_type: bytes) -> None:
    """Nor with two, or with two types."""
    body = b"--B\r\n1\r\n--B--"
    assert multipart([content_type], body) is form(content_type, body) is None
    assert multipart([b"multipart/mixed; boundary=B; boundary=B"], body) is None
    assert multipart([b"multipart/mixed; boundary=B", b"text/plain"], body) is None
    assert multipart([], body) is None


# ── Parts within parts ────────────────────────────────────────────────────────────────────────────

#: A batch of OData, an invoice of several files as RFC 2388 sends it, SOAP with attachments in a mixed body.
NESTS = {
    "odata": (
        b"--%o\r\nContent-Type: multipart/mixed; boundary=%i\r\n\r\n--%i\r\nContent-Type: application/http\r\n\r\n"
        b"POST /orders HTTP/1.1\r\n\r\n1\r\n--%i--\r\n--%o\r\n\r\n2\r\n--%o--\r\n"
    ),
    "files": (
        b'--%o\r\nContent-Disposition: form-data; name="files"\r\ncontent-type:Multipart/Mixed;\r\n\tboundary="%i"\r\n'
        b"\r\n--%i\r\n\r\n1\r\n--%i\r\n\r\n2\r\n--%i--\r\n--%o--"
    ),
    "open": b"--%o\r\nContent-Type: multipart/related; type=a; boundary=%i; start=b\r\n\r\n--%i\r\n\r\n1\r\n--%o--",
    "empty": b"--%o\r\nContent-Type: multipart/mixed; boundary=%i\r\n\r\n--%i--\r\n--%o--\r\n1",
    "line feeds": (b"--%o\nContent-Type: multipart/mixed;\n boundary=%i\n\n--%i\n\n1\n--%i--\n--%o\n\n2\n--%o--\n"),
}


@pytest.mark.parametrize("title", NESTS)
def test_the_boundary_of_a_part_is_cut_out_too(title: str) -> None:
    """Neither boundary counts, and all else does: a value, the head of a part, the level at which a part stands."""

    def made(outer: bytes = b"O", inner: bytes = b"I", old: bytes = b"", new: bytes = b"") -> Multipart:
        body = NESTS[title].replace(old, new) if old else NESTS[title]
        return cut(body.replace(b"%o", outer).replace(b"%i", inner), outer)

    first = made()
    assert first == made(b"other") == made(inner=b"another") == made(b"a.b", b"=_c")
    others = [made(old=b"1", new=b"3"), made(old=b"boundary=", new=b"x=y; boundary="), made(old=b"%i", new=b"%o")]
    assert len({(each.kind, *each.segments) for each in [first, *others]}) == 4


def test_a_part_that_only_mentions_a_type_counts_whole() -> None:
    """In its content, in a head of two types, or without one boundary; and below the eighth level."""
    kind = b"Content-Type: multipart/mixed; boundary=%b"
    for head in (b"\r\n" + kind, kind + b"\r\nContent-Type: text/plain", kind + b"; boundary=x", b"X-" + kind):
        bodies = [b"--B\r\n%b\r\n\r\n--%b--\r\n--B--" % (head.replace(b"%b", each), each) for each in (b"C", b"D")]
        one, other = map(cut, bodies)
        assert one.kind == other.kind == PLAIN
        assert one != other

    def deep(levels: int, innermost: bytes) -> bytes:
        body = b"--%b--" % innermost
        for level in range(levels):
            boundary = innermost if level == 0 else b"L%d" % (level - 1)
            body = b"--L%d\r\n%b\r\n\r\n%b\r\n--L%d--" % (level, kind.replace(b"%b", boundary), body, level)
        return body

    assert cut(deep(8, b"C"), b"L7") == cut(deep(8, b"D"), b"L7")
    assert cut(deep(9, b"C"), b"L8") != cut(deep(9, b"D"), b"L8")


def test_what_the_library_of_python_writes_is_the_same_each_time() -> None:
    """It draws a boundary for each message and ends lines in bare line feeds; an upload to Google's APIs is sent so."""

    def message(amount: str) -> Multipart:
        related = MIMEMultipart("related")
        related.attach(MIMEText(f'{{"amount":{amount}}}', "json"))
        inner = MIMEMultipart("alternative")
        inner.attach(MIMEText("text"))
        inner.attach(MIMEApplication(b"\x00\xff"))
        related.attach(inner)
        head, _, body = related.as_bytes().partition(b"\n\n")
        content_type = head.partition(b"Content-Type: ")[2].partition(b"\nMIME")[0].replace(b"\n", b"")
        found = multipart([content_type], body)
        assert found is not None
        return found

    assert message("1") == message("1") != message("2")


# ── Properties ────────────────────────────────────────────────────────────────────────────────────

contents = st.lists(st.text("a\r\n-B", max_size=5).map(str.encode), max_size=3)
boundaries = st.text("B-x", min_size=1, max_size=3).map(str.encode)


@given(contents, boundaries, boundaries)
def test_two_boundaries_around_the_same_parts_are_one_request(parts: list[bytes], one: bytes, other: bytes) -> None:
    """Whenever both bodies are what their boundary says: parts that hold no delimiter line of it."""
    made = []
    for boundary in (one, other):
        body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--"
        found = cut(body, boundary)
        assume(found.segments == [b"", *(b"\r\n" + part for part in parts), b""])
        made.append(found)
    assert made[0] == made[1]


Tree = bytes | list["Tree"]
trees: st.SearchStrategy[Tree] = st.recursive(
    st.text("a\r\n-", max_size=4).map(str.encode), lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


def spelled(tree: Tree, boundary: bytes, line_end: bytes) -> bytes:
    """A part, or a body of parts whose boundary is `boundary` and a digit for each level."""
    if isinstance(tree, bytes):
        return line_end + tree
    within = boundary + b"0"
    body = b"".join(
        b"--"
        + boundary
        + line_end
        + (b"Content-Type: multipart/mixed; boundary=" + within if isinstance(each, list) else b"")
        + line_end * (1 + isinstance(each, list))
        + spelled(each, within, line_end)
        + line_end
        for each in tree
    )
    return body + b"--" + boundary + b"--"


@given(st.lists(trees, max_size=3), st.lists(trees, max_size=3), st.sampled_from([b"\r\n", b"\n"]))
def test_two_trees_of_parts_are_two_requests(one: list[Tree], other: list[Tree], line_end: bytes) -> None:
    """However parts are nested and whatever they hold; and one tree is one request under any boundary."""
    first, second = (cut(spelled(tree, b"=BB=", line_end), b"=BB=") for tree in (one, other))
    assert (first == second) == (one == other)
    assert first == cut(spelled(one, b"other", line_end), b"other")


@pytest.mark.parametrize("line", [b"\n--B", b"\r\n--B", b"\n--Bx\n"], ids=["bare", "whole", "near"])
def test_a_body_with_too_many_delimiters_is_not_cut(line: bytes) -> None:
    """It counts whole, with its boundary; one with a little less is cut."""
    few, many = (line * n + b"\r\n--B--\r\n" for n in (9_000, 11_000))
    assert multipart([b"multipart/mixed; boundary=B"], few) is not None
    assert multipart([b"multipart/mixed; boundary=B"], many) is None
    assert form(b"multipart/mixed; boundary=B", many) is None
    inner = b"--C\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n" + many + b"\r\n--C--\r\n"
    outer = multipart([b"multipart/mixed; boundary=C"], inner)
    assert outer is not None
    assert any(many in segment for segment in outer.segments)


def test_a_boundary_in_the_value_of_another_parameter_is_none() -> None:
    """Parameters are read in their order: the boundary that readers take is cut out, and the other value counts."""
    one, other = (
        multipart(
            [b'multipart/mixed; x="; boundary=no"; boundary=%b' % each], b"--%b\r\n\r\na\r\n--%b--\r\n" % (each, each)
        )
        for each in (b"B", b"C")
    )
    assert one == other
    assert one is not None
    assert one.content_type == b'multipart/mixed; x="; boundary=no"'
    assert multipart([b'multipart/mixed; x="; boundary=B"'], b"--B--\r\n") is None

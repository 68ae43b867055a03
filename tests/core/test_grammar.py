"""The string of RFC 8941 against a second reading of the RFC: its parsing algorithm (§4.2), step by step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.key import Key, Unreadable, read
from gateway.core.keyed import quoted, written

LOWER = b"abcdefghijklmnopqrstuvwxyz"
ALPHA = LOWER + LOWER.upper()
DIGIT = b"0123456789"
TCHAR = b"!#$%&'*+-.^_`|~" + ALPHA + DIGIT


class Fail(Exception):
    """Parsing fails."""


class Parser:
    """§4.2.3, §4.2.3.2, §4.2.3.3 and §4.2.4 to §4.2.8, for an Item whose bare item is a String."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def peek(self) -> bytes:
        return self.text[:1]

    def take(self) -> bytes:
        if not self.text:
            raise Fail
        first, self.text = self.text[:1], self.text[1:]
        return first

    def item(self) -> bytes:
        self.text = self.text.strip(b" \t")  # OWS around a field's value, RFC 9110 §5.5
        found = self.string()
        while self.peek() == b";":
            self.take()
            while self.peek() == b" ":
                self.take()
            self.key()
            if self.peek() == b"=":
                self.take()
                self.bare_item()
        if self.text:
            raise Fail
        return found

    def key(self) -> None:
        if self.take() not in [bytes([each]) for each in LOWER + b"*"]:
            raise Fail
        while self.peek() and self.peek() in LOWER + DIGIT + b"_-.*":
            self.take()

    def bare_item(self) -> None:
        first = self.peek()
        if not first:
            raise Fail
        if first in b"-" + DIGIT:
            self.number()
        elif first == b'"':
            self.string()
        elif first == b"*" or first in ALPHA:
            while self.peek() and self.peek() in TCHAR + b":/":
                self.take()
        elif first == b":":
            self.take()
            while (taken := self.take()) != b":":
                if taken not in ALPHA + DIGIT + b"+/=":
                    raise Fail
        elif first == b"?":
            self.take()
            if self.take() not in (b"0", b"1"):
                raise Fail
        else:
            raise Fail

    def number(self) -> None:
        if self.peek() == b"-":
            self.take()
        if not self.peek() or self.peek() not in DIGIT:
            raise Fail
        spelled, decimal = b"", False
        while self.peek() and self.peek() in DIGIT + b".":
            if self.peek() == b".":
                if decimal:
                    break
                if len(spelled) > 12:
                    raise Fail
                decimal = True
            spelled += self.take()
            if len(spelled) > (16 if decimal else 15):
                raise Fail
        if decimal and not 1 <= len(spelled.partition(b".")[2]) <= 3:
            raise Fail

    def string(self) -> bytes:
        found = b""
        if self.take() != b'"':
            raise Fail
        while (taken := self.take()) != b'"':
            if taken == b"\\":
                taken = self.take()
                if taken not in (b'"', b"\\"):
                    raise Fail
            elif not 0x20 <= taken[0] <= 0x7E:
                raise Fail
            found += taken
        return found


def by_the_rfc(value: bytes) -> bytes | None:
    try:
        return Parser(value).item()
    except Fail:
        return None


def agrees(value: bytes) -> None:
    found, expected = read(value), by_the_rfc(value)
    if expected is None:
        assert isinstance(found, Unreadable)
        assert "RFC 8941" in found.why
    elif 1 <= len(expected) <= 255:
        assert found == Key(expected)
    else:
        assert isinstance(found, Unreadable)
        assert "RFC 8941" not in found.why


printable = st.text([chr(code) for code in range(0x20, 0x7F)], max_size=20).map(str.encode)
tokens = st.builds(
    bytes.__add__,
    st.sampled_from([bytes([each]) for each in ALPHA + b"*"]),
    st.lists(st.sampled_from(list(TCHAR + b":/")), max_size=6).map(bytes),
)
keys = st.builds(
    bytes.__add__,
    st.sampled_from([bytes([each]) for each in LOWER + b"*"]),
    st.lists(st.sampled_from(list(LOWER + DIGIT + b"_-.*")), max_size=6).map(bytes),
)
integers = st.integers(-(10**15) + 1, 10**15 - 1).map(b"%d".__mod__)
decimals = st.builds(
    lambda sign, whole, part: b"%b%d.%b" % (sign, whole, part),
    st.sampled_from([b"", b"-"]),
    st.integers(0, 10**12 - 1),
    st.lists(st.sampled_from(list(DIGIT)), min_size=1, max_size=3).map(bytes),
)
sequences = st.lists(st.sampled_from(list(ALPHA + DIGIT + b"+/=")), max_size=8).map(lambda each: b":%b:" % bytes(each))
bare_items = st.one_of(integers, decimals, printable.map(quoted), tokens, sequences, st.sampled_from([b"?0", b"?1"]))
parameters = st.lists(
    st.builds(
        lambda spaces, key, value: b";%b%b%b" % (spaces, key, value),
        st.sampled_from([b"", b" ", b"   "]),
        keys,
        st.none().map(lambda _: b"") | bare_items.map(lambda item: b"=" + item),
    ),
    max_size=4,
).map(b"".join)
valid = st.builds(lambda text, more: quoted(text) + more, printable, parameters)


@settings(max_examples=300, deadline=None)
@given(printable, parameters, st.sampled_from([b"", b" ", b"\t "]))
def test_every_string_with_any_parameters_is_read(text: bytes, more: bytes, around: bytes) -> None:
    """All that the grammar writes is accepted, for the text that it writes."""
    value = around + quoted(text) + more + around
    assert by_the_rfc(value) == text
    agrees(value)


@settings(max_examples=400, deadline=None)
@given(valid, st.data())
def test_a_string_with_a_letter_changed_is_read_just_where_the_grammar_reads_it(
    value: bytes, data: st.DataObject
) -> None:
    """One octet taken out, put in or replaced: accepted if it is a string still, and otherwise refused."""
    at = data.draw(st.integers(1, len(value)))
    octet = data.draw(st.binary(max_size=1) | st.sampled_from([b'"', b"\\", b";", b" ", b"=", b":", b".", b"?", b"\t"]))
    agrees(value[:at] + octet + value[at + data.draw(st.integers(0, 1)) :])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(list(b'"\\; =ab*:?.-09A\t\x7f\xe9')), max_size=16).map(bytes))
def test_whatever_begins_with_a_quotation_mark(rest: bytes) -> None:
    """Out of the grammar's own letters, in any order."""
    agrees(b'"' + rest)


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(rb"-?[0-9]{0,17}(\.[0-9]{0,5})?", fullmatch=True)
    | st.from_regex(rb"[?][0-9a]?[0-9]?", fullmatch=True)
    | st.from_regex(rb":?[A-Za-z0-9+/=_-]{0,5}:?", fullmatch=True)
    | st.from_regex(rb"[A-Z*@!][a-z:/@!]{0,3}", fullmatch=True)
)
def test_a_parameter_s_value_on_either_side_of_the_grammar(item: bytes) -> None:
    """Numbers with a digit too many, booleans that are none, bytes and tokens with a letter of the other alphabet."""
    agrees(b'"k";a=' + item)


@given(printable.filter(bool))
def test_a_key_that_we_write_is_the_key_that_is_read(text: bytes) -> None:
    """Bare where it can be, else in quotes."""
    assert read(written(Key(text))) == Key(text)

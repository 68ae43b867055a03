"""JSON by what it says: the vectors of RFC 8785, and every body that two readers could take for two things."""

from __future__ import annotations

import json
import struct
from decimal import Decimal

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.canonical import DEEPEST, canonical
from gateway.core.entity import steps

# ── RFC 8785 ──────────────────────────────────────────────────────────────────────────────────────

#: RFC 8785, Appendix B: the bits of a double, and how it is written.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}

#: Documents, and their canonical form: RFC 8785 §3.2.2 and §3.2.3, and what its authors test besides.
DOCUMENTS = {
    "§3.2.2": (
        r"""{
          "numbers": [333333333.3333333, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
          "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
          "literals": [null, true, false]
        }""",
        r"""{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"""
        r""""string":"€$\u000f\nA'B\"\\\\\"/"}""",
    ),
    "§3.2.3": (
        r"""{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
             "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",
             "\u00f6": "Latin Small Letter O With Diaeresis"}""",
        '{"\\r":"Carriage Return","1":"One","\u0080":"Control","ö":"Latin Small Letter O With Diaeresis",'
        '"€":"Euro Sign","😀":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}',
    ),
    "arrays": ('[ 56,\n { "d": true, "10": null, "1": [ ] } ]', '[56,{"1":[],"10":null,"d":true}]'),
    "structures": (
        '{"1": {"f": {"f": "hi","F": 5} ,"\\n": 56.0}, "10": { }, "": "empty", "a": { }, "111": [ ], "A": { }}',
        '{"":"empty","1":{"\\n":56,"f":{"F":5,"f":"hi"}},"10":{},"111":[],"A":{},"a":{}}',
    ),
    "no normalisation": ('{"Unnormalized Unicode":"A\\u030a"}', '{"Unnormalized Unicode":"A\u030a"}'),
    "controls": (
        '{"a":"\\u007f\\u0008\\t\\f\\r\\u0000\\u001F</script>"}',
        '{"a":"\x7f\\b\\t\\f\\r\\u0000\\u001f</script>"}',
    ),
    "a string alone": ('  "\\u0061" ', '"a"'),
    "a number alone": ("-0.0", "0"),
}


@pytest.mark.parametrize("bits", NUMBERS)
def test_the_numbers_of_the_rfc(bits: str) -> None:
    """As ECMAScript writes them, whichever way they came."""
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert rfc8785.dumps(number).decode() == NUMBERS[bits]
    for spelled in (repr(number), f"{number:.17g}", NUMBERS[bits]):
        if Decimal(spelled) == Decimal(NUMBERS[bits]):
            assert canonical(spelled.encode()) == NUMBERS[bits].encode()


@pytest.mark.parametrize("title", DOCUMENTS)
def test_the_documents_of_the_rfc(title: str) -> None:
    """And what is canonical stays as it is."""
    given, expected = DOCUMENTS[title]
    assert rfc8785.dumps(json.loads(given)).decode() == expected
    assert canonical(given.encode()) == expected.encode()
    assert canonical(expected.encode()) == expected.encode()


def test_the_one_number_of_the_rfc_that_no_double_holds() -> None:
    """§3.2.2 rounds 333333333.33333329. A request may mean what it says, so it has no canonical form here."""
    assert rfc8785.dumps(json.loads("333333333.33333329")) == b"333333333.3333333"
    assert canonical(b"333333333.33333329") is None


def written(number: float) -> str:
    """ECMA-262, Number::toString, from its text: digits `s`, of which there are `k`, and the point behind the `n`th."""
    if number == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(abs(number))).normalize().as_tuple()
    assert not sign
    s, k = "".join(map(str, digits)), len(digits)
    n = k + int(exponent)
    minus = "-" if number < 0 else ""
    if k <= n <= 21:
        return minus + s + "0" * (n - k)
    if 0 < n <= 21:
        return minus + s[:n] + "." + s[n:]
    if -6 < n <= 0:
        return minus + "0." + "0" * -n + s
    power = f"e{'+' if n > 0 else '-'}{abs(n - 1)}"
    return minus + s[0] + ("." + s[1:] if k > 1 else "") + power


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1e21)
@example(1e-6)
@example(1e-7)
@example(123456789012345680000.0)
def test_any_double_is_written_as_ecmascript_says(number: float) -> None:
    """Against the text of its standard, not against another library."""
    assert rfc8785.dumps(number).decode() == written(number)
    assert canonical(repr(number).encode()) == written(number).encode()


# ── What has no canonical form ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"a=1",
        b"{",
        b'{"a":1}x',
        b'{"a":1,}',
        b"[01]",
        b"[1.]",
        b"[+1]",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b'"\x01"',
        b'"\xff"',
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b" \xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":1}',
        b'[{"b":{"a":1,"a":1}}]',
        b'"\\ud800"',
        b'{"\\udc00":1}',
        b"9007199254740993",
        b"100000000000000000000001",
        b"0.1000000000000000055",
        b"1.00000000000000001",
        b"1e-400",
        b"1" * 5000,
        b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
        b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1),
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_two_readers_could_take_for_two_things_has_no_form(body: bytes) -> None:
    """Not JSON, not UTF-8, a name twice, half a surrogate pair, a number that no double holds, too deep."""
    assert canonical(body) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"[1]", b" [\n1.0\t]\r"),
        (b"[100]", b"[1e2]"),
        (b"[0]", b"[-0]"),
        (b"[0.1]", b"[0.10]"),
        (b"[10000000000000000]", b"[1e16]"),
        (b"[9007199254740992]", b"[9007199254740992.0]"),
        (b'{"a":1,"b":2}', b'{"b":2,"a":1}'),
        (b'"/"', b'"\\/"'),
        ('"é"'.encode(), b'"\\u00E9"'),
        (b'{"a":1}', b'\xef\xbb\xbf{ "a":1}'),
        (b"[" * DEEPEST + b"]" * DEEPEST, b" [" * DEEPEST + b"] " * DEEPEST),
    ],
)
def test_spellings_of_one_thing_are_one(one: bytes, other: bytes) -> None:
    """White space, the order of members, escapes, the forms of a number, and a byte order mark before the text."""
    assert canonical(one) == canonical(other) is not None


# ── What is left out ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pointers", "left"),
    [
        (["/a"], {"b": [{"c": 1, "d": 2}, 3, 4], "m~n": {"": 5}, "x/y": 6}),
        (["/b/0/c"], {"a": 0, "b": [{"d": 2}, 3, 4], "m~n": {"": 5}, "x/y": 6}),
        (["/b/0", "/b/1"], {"a": 0, "b": [4], "m~n": {"": 5}, "x/y": 6}),
        (["/b/1", "/b/0/d", "/b/1"], {"a": 0, "b": [{"c": 1}, 4], "m~n": {"": 5}, "x/y": 6}),
        (["/b", "/b/0/c"], {"a": 0, "m~n": {"": 5}, "x/y": 6}),
        (["/m~0n/", "/x~1y"], {"a": 0, "b": [{"c": 1, "d": 2}, 3, 4], "m~n": {}}),
        (
            ["/z", "/b/3", "/b/00", "/b/-1", "/b/x", "/a/b", "/b/0/c/d", "/", "/b/1/0"],
            {"a": 0, "b": [{"c": 1, "d": 2}, 3, 4], "m~n": {"": 5}, "x/y": 6},
        ),
    ],
)
def test_what_pointers_leave_out(pointers: list[str], left: object) -> None:
    """RFC 6901: names with their escapes, indexes of arrays; what is not there is no fault. All are followed in the
    document as it came."""
    body = b'{"a": 0, "b": [{"c": 1, "d": 2}, 3, 4], "m~n": {"": 5}, "x/y": 6}'
    assert canonical(body, [steps(each) for each in pointers]) == rfc8785.dumps(left)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "a", "/~", "/a~2", "a/b", "/~0~"])
def test_what_is_no_pointer(text: str) -> None:
    """And the whole document cannot be left out."""
    with pytest.raises(ValueError, match="JSON pointer"):
        steps(text)


def test_a_tilde_before_a_one_is_no_slash() -> None:
    """RFC 6901 §4: ~01 is the name ~1."""
    assert steps("/~01") == ["~1"]
    assert canonical(b'{"~1":1,"/":2}', [steps("/~01")]) == b'{"/":2}'


def test_a_body_that_is_no_object_loses_nothing() -> None:
    """A pointer into an array's first element finds none in a string."""
    assert canonical(b'"a"', [steps("/0")]) == b'"a"'
    assert canonical(b"[1,2]", [steps("/0")]) == b"[2]"

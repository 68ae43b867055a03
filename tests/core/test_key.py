"""The key: how it is spelled, where it stands, and what names its record."""

from __future__ import annotations

from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.key import DERIVED, SENT, Key, ScopePart, Unreadable, find, misnamed, read, record_name
from gateway.core.message import Field

# ── One value ─────────────────────────────────────────────────────────────────────────────────────

PRINTABLE = bytes(range(0x21, 0x7F))

ACCEPTED = [
    # bare: every printable character except the space; a quotation mark anywhere but first
    (b"k", b"k"),
    (b"8e03978e-40d5-43e8-bc93-6894a57f9324", b"8e03978e-40d5-43e8-bc93-6894a57f9324"),
    (b" \t k\t ", b"k"),
    (PRINTABLE.replace(b'"', b""), PRINTABLE.replace(b'"', b"")),
    (b'a"b"', b'a"b"'),
    (b"\\", b"\\"),
    (b"%22k%22", b"%22k%22"),
    (b"'k'", b"'k'"),
    (b"k;a=1", b"k;a=1"),  # parameters belong to the quoted form; a bare key is all of it
    (b"a,b", b"a,b"),
    (b"x" * 255, b"x" * 255),
    # quoted
    (b'"k"', b"k"),
    (b' \t"k" \t', b"k"),
    (b'"a b"', b"a b"),
    (b'" "', b" "),
    (b'" k "', b" k "),
    (rb'"\""', b'"'),
    (rb'"\\"', b"\\"),
    (rb'"a\"b\\c"', rb'a"b\c'),
    (rb'"\\\""', rb"\""),
    (rb'"\\n"', rb"\n"),
    (b'"k;a=1"', b"k;a=1"),
    (b'"' + b"x" * 255 + b'"', b"x" * 255),
    (b'"' + rb"\"" * 255 + b'"', b'"' * 255),  # the length counts after unquoting
    # parameters are ignored: no value, and each kind of bare item (RFC 8941 §3.1.2, §3.3)
    (b'"k";a', b"k"),
    (b'"k";*a_-.*9', b"k"),
    (b'"k";   a', b"k"),
    (b'"k";a=0', b"k"),
    (b'"k";a=-999999999999999', b"k"),
    (b'"k";a=999999999999.999', b"k"),
    (b'"k";a=-1.5', b"k"),
    (b'"k";a=""', b"k"),
    (rb'"k";a="x;\"y\\"', b"k"),
    (b'"k";a=tok', b"k"),
    (b'"k";a=*a/b:c!#$%&\'*+-.^_`|~', b"k"),
    (b'"k";a=:aGVsbG8=:', b"k"),
    (b'"k";a=::', b"k"),
    (b'"k";a=?0', b"k"),
    (b'"k";a=?1', b"k"),
    (b'"k";a;b=2; c="3";a=?1', b"k"),
    (b'"k";' + b"a" * 300, b"k"),
]

REFUSED = [
    # nothing there
    (b"", "empty"),
    (b" \t ", "empty"),
    (b'""', "empty"),
    (b'"";a=1', "empty"),
    # bare
    (b"a b", "printable"),
    (b"a\tb", "printable"),
    (b"a\x00b", "printable"),
    (b"a\r", "printable"),
    (b"a\n", "printable"),
    (b"a\x7f", "printable"),
    (b"caf\xc3\xa9", "printable"),
    (b"\x80", "printable"),
    (b"a, b", "printable"),
    (b"x" * 256, "256"),
    # quoted, and not closed, or closed too early
    (b'"', "quotation"),
    (b'"k', "quotation"),
    (b'"""', "quotation"),
    (rb'"k\"', "quotation"),
    (b'"a"b"', "quotation"),
    (b'"k"x', "quotation"),
    (b'"k" x', "quotation"),
    (b'"k""l"', "quotation"),
    (b'"k", "k"', "quotation"),
    (b'"k","k"', "quotation"),
    # escapes and characters
    (rb'"\n"', "quotation"),
    (rb'"\a"', "quotation"),
    (rb'"\x41"', "quotation"),
    (b'"a\x00b"', "quotation"),
    (b'"a\tb"', "quotation"),
    (b'"a\nb"', "quotation"),
    (b'"a\x1fb"', "quotation"),
    (b'"a\x7fb"', "quotation"),
    (b'"caf\xc3\xa9"', "quotation"),
    (b'"\\\xff"', "quotation"),
    (b'"' + b"x" * 256 + b'"', "256"),
    (b'"' + rb"\\" * 256 + b'"', "256"),
    # parameters
    (b'"k";', "quotation"),
    (b'"k";;a', "quotation"),
    (b'"k" ;a', "quotation"),  # no space stands before the semicolon
    (b'"k";\ta', "quotation"),
    (b'"k";A=1', "quotation"),
    (b'"k";1=1', "quotation"),
    (b'"k";a=', "quotation"),
    (b'"k";a =1', "quotation"),
    (b'"k";a= 1', "quotation"),
    (b'"k";a=1000000000000000', "quotation"),
    (b'"k";a=1000000000000.0', "quotation"),
    (b'"k";a=1.', "quotation"),
    (b'"k";a=.1', "quotation"),
    (b'"k";a=1.1234', "quotation"),
    (b'"k";a=--1', "quotation"),
    (b'"k";a=+1', "quotation"),
    (b'"k";a="x', "quotation"),
    (rb'"k";a="\x"', "quotation"),
    (b'"k";a="\xe9"', "quotation"),
    (b'"k";a=:aGk', "quotation"),
    (b'"k";a=:a-b:', "quotation"),
    (b'"k";a=?2', "quotation"),
    (b'"k";a=?', "quotation"),
    (b'"k";a=@1659578233', "quotation"),  # a Date, of RFC 9651
    (b'"k";a=(1 2)', "quotation"),
    (b'"k";a=1,b', "quotation"),
]


@pytest.mark.parametrize(("value", "text"), ACCEPTED)
def test_a_value_that_is_a_key(value: bytes, text: bytes) -> None:
    """An RFC 8941 string, its parameters ignored, or the bare form."""
    assert read(value) == Key(text)


@pytest.mark.parametrize(("value", "why"), REFUSED)
def test_a_value_that_is_no_key(value: bytes, why: str) -> None:
    """What begins with a quotation mark is a whole quoted string; 1 to 255 printable characters."""
    found = read(value)
    assert isinstance(found, Unreadable)
    assert why in found.why


def quoted(text: bytes) -> bytes:
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


texts = st.text([chr(code) for code in range(0x20, 0x7F)], min_size=1, max_size=255).map(str.encode)
bare_texts = texts.filter(lambda text: b" " not in text and not text.startswith(b'"'))


@given(texts)
def test_any_printable_string_quoted_properly_reads_back(text: bytes) -> None:
    """Nothing that can be written in quotes is lost or changed."""
    assert read(quoted(text)) == Key(text)


@given(bare_texts)
def test_quoted_and_bare_are_one_key(text: bytes) -> None:
    """The draft's form and the one that most clients send name the same record."""
    assert read(text) == read(quoted(text)) == read(quoted(text) + b"; v=1") == Key(text)


@given(st.binary(max_size=300) | st.binary(max_size=20).map(lambda inner: b'"' + inner + b'"'))
def test_read_answers_for_any_bytes(value: bytes) -> None:
    """A key of 1 to 255 printable characters or a reason; never an exception, never a longer key."""
    found = read(value)
    if isinstance(found, Key):
        assert 1 <= len(found.text) <= 255
        assert all(0x20 <= byte <= 0x7E for byte in found.text)


@given(texts.filter(lambda text: len(text) > 3))
def test_the_repr_of_a_key_never_shows_it(text: bytes) -> None:
    """A key in a traceback or a log line would be a secret in the open."""
    key = Key(text)
    shown = repr(key)
    assert shown == f"Key(<{len(text)} characters>)"
    assert f"{key}" == shown


@pytest.mark.parametrize("value", [b'"pa55phrase', b"pa55phrase \x01", b'"' + b"pa55phrase" * 30 + b'"'])
def test_a_refusal_never_quotes_the_value(value: bytes) -> None:
    """The reason goes to the client, and from there into logs."""
    found = read(value)
    assert isinstance(found, Unreadable)
    assert "pa55" not in found.why


# ── Where it stands ───────────────────────────────────────────────────────────────────────────────

IK, XIK = b"Idempotency-Key", b"X-Idempotency-Key"


@pytest.mark.parametrize(
    "fields",
    [
        [(IK, b"k")],
        [(XIK, b"k")],
        [(b"IDEMPOTENCY-KEY", b"k")],
        [(b"idempotency-key", b' "k" ')],
        [(IK, b"k"), (XIK, b"k")],
        [(IK, b"k"), (XIK, b'"k";a=1')],
        [(IK, b"k"), (b"Idempotency-Keys", b"l"), (b"Key", b"m")],
        [(IK, b"k"), (b"Connection", b"keep-alive, Upgrade, HTTP2-Settings, TE")],
    ],
)
def test_a_request_that_carries_one_key(fields: list[Field]) -> None:
    """Under either name, or both if they say the same."""
    assert find(fields) == Key(b"k")


@pytest.mark.parametrize("fields", [[], [(b"Host", b"h")], [(b"Request-Id", b"k")], [(b"Connection", b"close")]])
def test_a_request_without_a_key(fields: list[Field]) -> None:
    """None, which is not the same as a key that cannot be read."""
    assert find(fields) is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([(IK, b"k"), (IK, b"k")], "the field idempotency-key is repeated"),
        ([(IK, b"k"), (b"IDEMPOTENCY-KEY", b"k")], "the field idempotency-key is repeated"),
        ([(XIK, b"k"), (IK, b"k"), (XIK, b"k")], "the field x-idempotency-key is repeated"),
        ([(IK, b"k"), (XIK, b"l")], "two fields carry different keys"),
        ([(IK, b"k"), (XIK, b"K")], "two fields carry different keys"),
        ([(IK, b"k"), (XIK, b"k ;a=1")], "printable"),
        ([(IK, b"k"), (XIK, b"")], "empty"),
        ([(IK, b""), (XIK, b"k")], "empty"),
        ([(IK, b"")], "empty"),
    ],
)
def test_a_request_whose_key_cannot_be_told(fields: list[Field], why: str) -> None:
    """A repeated field, two that differ, and one bad value among good ones: refused, never chosen from."""
    found = find(fields)
    assert isinstance(found, Unreadable)
    assert why in found.why


NOT_FOR_ONE_HOP = [
    b"Idempotency-Key",
    b"X-Idempotency-Key",
    b"Authorization",
    b"X-API-Key",
    b"Api-Key",
    b"Cookie",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Content-Type",
    b"Content-Encoding",
    b"Host",
]


@pytest.mark.parametrize("name", NOT_FOR_ONE_HOP, ids=bytes.decode)
def test_connection_may_not_name_what_the_gate_goes_by(name: bytes) -> None:
    """Key, credentials, framing or Host: the next hop would be told something else than was fingerprinted."""
    for value in (name, b"close, " + name.lower(), name.upper() + b"\t,close"):
        found = find([(IK, b"k"), (b"connection", value)])
        assert isinstance(found, Unreadable)
        assert f"the Connection field names {name.decode().lower()}," in found.why


def test_a_route_with_its_own_header_reads_that_one_only() -> None:
    """And the others are fields like any."""
    fields = [(IK, b"k"), (b"Request-Id", b'"r"'), (b"Connection", IK)]
    assert find(fields, (b"request-id",)) == Key(b"r")
    assert misnamed(fields, (b"request-id",)) is None
    assert misnamed([(b"Connection", b"Request-Id")], (b"request-id",)) == "request-id"
    assert misnamed([(b"Connection", b"Request-Id")]) is None


# ── The name of its record ────────────────────────────────────────────────────────────────────────

K = Key(b"k")


def test_a_name_is_43_characters_of_base64url() -> None:
    """32 bytes, whole: nothing of the digest is cut off."""
    name = record_name(b"shop", b"default", (), K)
    assert len(name) == 43
    assert len(urlsafe_b64decode(name + b"=")) == 32


def test_every_element_of_a_name_counts() -> None:
    """Service, namespace, scope (label and value), key, origin and secret: change one, name another record."""
    scope = ((b"header:x-tenant", b"t"),)
    names = [
        record_name(b"shop", b"default", scope, K),
        record_name(b"Shop", b"default", scope, K),
        record_name(b"shop", b"other", scope, K),
        record_name(b"shop", b"default", (), K),
        record_name(b"shop", b"default", ((b"header:x-org", b"t"),), K),
        record_name(b"shop", b"default", ((b"header:x-tenant", b"u"),), K),
        record_name(b"shop", b"default", (*scope, (b"", b"")), K),
        record_name(b"shop", b"default", scope, Key(b"K")),
        record_name(b"shop", b"default", scope, K, origin=DERIVED),
        record_name(b"shop", b"default", scope, K, secret=b"s"),
        record_name(b"shop", b"default", scope, K, secret=b"t"),
    ]
    assert len(set(names)) == len(names)
    assert record_name(b"shop", b"default", scope, K, origin=SENT) == names[0]


def test_the_key_is_not_in_the_name() -> None:
    """Nobody reads a key from the name of its record."""
    assert b"4711" not in record_name(b"shop", b"default", (), Key(b"order-4711"))


few = st.text("ab", max_size=2).map(str.encode)
scopes = st.lists(st.tuples(few, few), max_size=2).map(tuple)
Name = tuple[bytes, bytes, tuple[ScopePart, ...], bytes, bytes, bytes]
named = st.tuples(few, few, scopes, few, st.sampled_from([SENT, DERIVED]), st.sampled_from([b"", b"s"]))


def name_of(parts: Name) -> bytes:
    service, namespace, scope, text, origin, secret = parts
    return record_name(service, namespace, scope, Key(text), origin=origin, secret=secret)


@given(named, named)
def test_two_names_are_equal_just_when_all_that_they_name_is(one: Name, other: Name) -> None:
    """Letters pushed from one element into its neighbour name another record, never the same one."""
    assert (name_of(one) == name_of(other)) == (one == other)


@given(named, few.filter(bool))
def test_no_letter_moves_unseen_from_one_element_to_the_next(parts: Name, letters: bytes) -> None:
    """(`ab`, `c`) and (`a`, `bc`) are two places; so are a longer scope and a longer key."""
    service, namespace, scope, text, origin, secret = parts
    places = [
        (service + letters, namespace, scope, text, origin, secret),
        (service, letters + namespace, scope, text, origin, secret),
        (service, namespace, (*scope, (letters, b"")), text, origin, secret),
        (service, namespace, (*scope, (b"", letters)), text, origin, secret),
        (service, namespace, scope, letters + text, origin, secret),
    ]
    assert len({name_of(place) for place in places}) == len(set(places)) == 5

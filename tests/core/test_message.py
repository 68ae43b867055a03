"""Which fields travel, and which a replay carries."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from gateway.core.message import (
    Answer,
    Response,
    forwarded,
    listed,
    named_by_connection,
    remembered,
    returned_lines,
    values,
)

PER_HOP = [
    b"Connection",
    b"Keep-Alive",
    b"Proxy-Authenticate",
    b"Proxy-Authorization",
    b"Proxy-Connection",
    b"TE",
    b"Trailer",
    b"Transfer-Encoding",
    b"Upgrade",
    b"Content-Length",
]
OURS = [
    b"Idempotent-Replayed",
    b"Idempotency-Status",
    b"Idempotency-Expires",
    b"Idempotency-First-Seen",
    b"Idempotency-Outcome",
]
BEFORE, AFTER = (b"X-Before", b"1"), (b"X-After", b"2")


def on_the_wire(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


@pytest.mark.parametrize("name", PER_HOP, ids=bytes.decode)
@pytest.mark.parametrize("spell", [bytes, bytes.lower, bytes.upper], ids=["as-is", "lower", "upper"])
def test_a_field_for_one_hop_goes_no_further(name: bytes, spell: type[bytes]) -> None:
    """Hop-by-hop fields and framing stop here, in any case, in both directions; their neighbours go on."""
    fields = [BEFORE, (spell(name), b"value"), AFTER]
    assert forwarded(fields) == [BEFORE, AFTER]
    assert returned_lines(fields) == on_the_wire([BEFORE, AFTER])


def test_what_connection_names_goes_no_further() -> None:
    """Every member of every Connection field, in any case, with any white space, once or repeated."""
    fields = [
        (b"X-Once", b"1"),
        (b"Connection", b"close, X-Once,\tx-TWICE ,, "),
        (b"x-twice", b"2"),
        (b"X-TWICE", b"3"),
        (b"CONNECTION", b"X-Other"),
        (b"x-other", b"4"),
        (b"X-Once-More", b"5"),
    ]
    assert forwarded(fields) == [(b"X-Once-More", b"5")]
    assert returned_lines(fields) == on_the_wire([(b"X-Once-More", b"5")])
    assert named_by_connection(fields) == {b"close", b"x-once", b"x-twice", b"x-other"}


def test_connection_takes_only_what_it_names() -> None:
    """`Connection: close` costs no end-to-end field, and an empty one none either."""
    rest = [(b"Close-Up", b"1"), (b"Host", b"shop.example"), (b"", b"nameless")]
    assert forwarded([(b"Connection", b"close"), *rest]) == rest
    assert forwarded([(b"Connection", b""), *rest]) == rest
    assert forwarded([(b"Connection", b" , ,"), *rest]) == rest


def test_a_field_of_the_length_of_connection_is_not_connection() -> None:
    """What is looked for is the name."""
    fields = [(b"X-Ten-Long", b"x-after"), AFTER]
    assert len(b"X-Ten-Long") == len(b"Connection")
    assert forwarded(fields) == fields


@pytest.mark.parametrize("name", OURS, ids=bytes.decode)
def test_the_gates_own_words_are_taken_out_of_a_response(name: bytes) -> None:
    """What the upstream says under the gate's names is removed, or a client would believe it."""
    assert returned_lines([BEFORE, (name, b"true"), (name.lower(), b"x"), (name.upper(), b"y"), AFTER]) == on_the_wire(
        [BEFORE, AFTER]
    )


def test_the_key_goes_on_to_the_upstream_under_its_own_name() -> None:
    """The upstream may put a unique constraint on it."""
    fields = [(b"Idempotency-Key", b'"k"'), (b"X-Idempotency-Key", b"k"), (b"Host", b"h"), (b"Cookie", b"a=1")]
    assert forwarded(fields) == fields


def test_what_travels_travels_untouched() -> None:
    """Order, case, repetition, white space and octets above 0x7f are the sender's."""
    fields = [
        (b"x-B", b"  padded\t"),
        (b"X-a", b""),
        (b"X-B", b"caf\xc3\xa9 \xff"),
        (b"x-A", b"1, 2"),
        (b"X-a", b"1"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"Date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
    ]
    assert forwarded(fields) == fields
    assert returned_lines(fields) == on_the_wire(fields)


def test_values_are_found_in_any_case_and_trimmed() -> None:
    """All of them, in their order, an empty one too; only optional white space (SP, HTAB) is trimmed."""
    fields = [(b"X-A", b" 1\t"), (b"x-a", b""), (b"X-B", b"no"), (b"X-A", b"\x0b2\xa0"), (b"X-AA", b"no")]
    assert values(fields, b"x-a") == [b"1", b"", b"\x0b2\xa0"]
    assert values(fields, b"x-c") == []


def test_a_list_field_is_read_over_all_its_lines() -> None:
    """RFC 9110 §5.6.1: empty members do not count."""
    fields = [(b"Connection", b" Close ,,TE"), (b"connection", b"\tUpgrade,")]
    assert listed(fields, b"connection") == [b"close", b"te", b"upgrade"]


def test_field_lines_as_they_go_on_the_wire() -> None:
    """Names and values as they were, one line each."""
    assert returned_lines([(b"X-A", b"1"), (b"x-b", b"\xff")]) == b"X-A: 1\r\nx-b: \xff\r\n"
    assert returned_lines([]) == b""


# ── What a replay carries ─────────────────────────────────────────────────────────────────────────

PAID = Response(
    201,
    [
        (b"Date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
        (b"Content-Type", b"application/json"),
        (b"SET-COOKIE", b"session=1"),
        (b"Set-Cookie2", b"old=1"),
        (b"Location", b"/payments/1"),
        (b"Connection", b"X-Hop"),
        (b"X-Hop", b"here"),
        (b"Content-Length", b"8"),
        (b"Idempotency-Status", b"stored"),
        (b"Link", b"</a>"),
        (b"link", b"</b>"),
    ],
    b'{"id":1}',
)


def test_a_replay_carries_all_but_what_speaks_of_the_moment() -> None:
    """Date, Set-Cookie and what is for one hop are not remembered; the rest is, in its order and case."""
    head = b"Content-Type: application/json\r\nLocation: /payments/1\r\nLink: </a>\r\nlink: </b>\r\n"
    assert remembered(PAID) == Answer(201, head, b'{"id":1}')


def test_a_route_names_what_else_a_replay_drops() -> None:
    """`drop` takes away; nothing else changes."""
    answer = remembered(PAID, drop=frozenset((b"link", b"location")))
    assert answer == Answer(201, b"Content-Type: application/json\r\n", b'{"id":1}')


def test_a_route_names_all_that_a_replay_keeps() -> None:
    """`keep` lists the only fields that are carried; an empty one carries none."""
    assert remembered(PAID, keep=frozenset((b"location", b"x-absent"))).head == b"Location: /payments/1\r\n"
    assert remembered(PAID, keep=frozenset()).head == b""


def test_drop_is_stronger_than_keep() -> None:
    """A field in both lists is not carried."""
    both = frozenset((b"link",))
    assert remembered(PAID, keep=both | {b"location"}, drop=both).head == b"Location: /payments/1\r\n"


@pytest.mark.parametrize("name", [b"date", b"set-cookie", b"set-cookie2", b"x-hop", b"idempotency-status"])
def test_keep_brings_nothing_back_that_never_survives(name: bytes) -> None:
    """One client's cookie is not another's, whatever the route lists."""
    assert remembered(PAID, keep=frozenset((name,))).head == b""


CHALLENGED = Response(
    401,
    [
        (b"WWW-Authenticate", b'Digest nonce="1"'),
        (b"www-authenticate", b"Bearer"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"Authentication-Info", b'nextnonce="2"'),
        (b"Proxy-Authentication-Info", b'nextnonce="3"'),
        (b"ETag", b'"x"'),
    ],
)


def test_a_challenge_is_spent_once_it_was_answered() -> None:
    """No challenge, and no proof that belongs to one, is on a replay, unless the route lists it (but for one hop)."""
    assert remembered(CHALLENGED).head == b'ETag: "x"\r\n'
    listed = remembered(CHALLENGED, keep=frozenset((b"www-authenticate", b"proxy-authenticate"))).head
    assert listed == b'WWW-Authenticate: Digest nonce="1"\r\nwww-authenticate: Bearer\r\n'


def test_who_is_told_at_once_is_challenged_too() -> None:
    """What is released is given to those who wait, and a 401 without its challenge would be none (RFC 9110 §15.5.2)."""
    assert remembered(CHALLENGED, replayed=False).head.count(b"uthenticate: ") == 2
    assert b"Set-Cookie" not in remembered(PAID, replayed=False).head


def test_a_body_goes_with_its_coding() -> None:
    """Content-Encoding survives any list: without it nobody can read the bytes."""
    coded = Response(200, [(b"Content-Encoding", b"gzip"), (b"ETag", b"x")], b"...")
    for lists in ({"keep": frozenset[bytes]()}, {"drop": frozenset((b"content-encoding", b"etag"))}):
        assert remembered(coded, **lists).head == b"Content-Encoding: gzip\r\n"  # type: ignore[arg-type]


TODAY = b"Tue, 24 Nov 2026 10:00:00 GMT"
INPUT, SIGNATURE = b"Signature-Input", b"Signature"


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        (INPUT, b'sig1=("@status" "date" "content-digest");created=1;keyid="k"', True),
        (INPUT, b'sig1=("@status");created=1, sig2=("Date";sf);keyid="k"', True),
        (INPUT, b'sig1=("@status" "content-digest");created=1;keyid="date"', False),
        (INPUT, b'sig1=("x-date" "expiry-date");created=1', False),
        (SIGNATURE, b'keyId="k",headers="(request-target) date digest",signature="x"', True),
        (SIGNATURE, b'keyId="k",headers="x-date digest",signature="x"', False),
        (SIGNATURE, b"sig1=:ZGF0ZQ==:", False),
        (b"X-Signed", b'("date")', False),
    ],
)
def test_a_date_is_kept_where_a_signature_covers_it(name: bytes, value: bytes, kept: bool) -> None:
    """RFC 9421's components, and the list of the drafts before it; no other word that has `date` in it."""
    head = remembered(Response(200, [(name, value), (b"date", TODAY), (b"ETag", b"x")])).head
    assert head == (b"Date: %b\r\n" % TODAY if kept else b"") + b"%b: %b\r\nETag: x\r\n" % (name, value)


def test_two_dates_are_none() -> None:
    """Which of them was signed nobody knows: a replay has one of its own."""
    twice = [(INPUT, b's=("date")'), (b"Date", TODAY), (b"Date", TODAY)]
    assert b"Date" not in remembered(Response(200, twice)).head


def test_a_tombstone_has_no_body_and_an_empty_body_is_no_tombstone() -> None:
    """None: it ran, and its answer cannot be replayed. Empty: that *is* its answer."""
    assert remembered(PAID, tombstone=True) == Answer(201, remembered(PAID).head, None)
    assert remembered(Response(204, [])) == Answer(204, b"", b"")

"""A record that is not whole is refused, never guessed at."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import record as records
from gateway.core.message import Answer
from gateway.core.record import Record
from gateway.stores.codec import Unreadable, decode, encode
from tests.stores.worlds import FINGERPRINT, a_claim

claims = st.builds(
    lambda route, tags: replace(a_claim(b"h" * 12), route=route, fingerprint=FINGERPRINT._replace(tags=tags)),
    st.text(max_size=40),
    st.integers(0, 8).flatmap(lambda n: st.binary(min_size=2 * n, max_size=2 * n)),
)


@given(claims)
def test_no_part_of_a_claim_is_a_record(claim: Record) -> None:
    """Cut anywhere, a record without an answer is unreadable."""
    whole = encode(claim)
    assert decode(whole) == claim
    for length in range(len(whole)):
        with pytest.raises(Unreadable):
            decode(whole[:length])


@given(claims, st.binary(max_size=60), st.none() | st.binary(max_size=20))
def test_a_completed_record_shows_every_cut_but_one_in_its_body(claim: Record, head: bytes, body: bytes | None) -> None:
    """Cut anywhere before its body, a completed record is unreadable; the body runs to the end, whatever that is."""
    record = records.keep(claim, Answer(200, head, body), wall=0).record
    assert record is not None
    whole = encode(record)
    assert decode(whole) == record
    for length in range(len(whole) - len(body or b"")):
        with pytest.raises(Unreadable):
            decode(whole[:length])


@pytest.mark.parametrize("route", ["é" * 128, "€" * 90, "a" + "𝄞" * 70])
def test_a_long_label_is_cut_between_characters(route: str) -> None:
    """A label of more than 255 bytes loses whole characters, and is read again."""
    label = decode(encode(replace(a_claim(), route=route))).route
    assert route.startswith(label)
    assert 251 < len(label.encode()) <= 255

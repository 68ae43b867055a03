"""A record that remembers the trace of its run, on every store that can be had here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core import record as records
from gateway.core.message import Answer
from gateway.core.record import Done, Found, Record, Stamp, State
from gateway.stores.codec import Unreadable, decode, encode, header
from tests.stores.worlds import World, a_claim, an_answer, every_store

NAME = b"n" * 43
TRACE = bytes(range(24))


def kept(claim: Record, trace: bytes = TRACE) -> Record:
    record = records.keep(claim, an_answer(), wall=0, trace=trace).record
    assert record is not None
    return record


@every_store
async def test_it_is_found_settled_again_and_forgotten_like_any_other(world: World) -> None:
    """What was kept with a trace is found with it, is done when it is kept again (its reply was lost), refuses another
    claim, and is forgotten by an operator who saw it."""
    claim = a_claim()
    assert await world.store.claim(NAME, claim) is Done.WON
    settlement = records.keep(claim, an_answer(), wall=0, trace=TRACE)
    assert await world.store.settle(NAME, settlement) is Done.DONE
    assert await world.store.settle(NAME, settlement) is Done.DONE
    found = await world.store.claim(NAME, a_claim())
    assert isinstance(found, Found)
    assert found.record == settlement.record
    assert found.record.trace == TRACE
    assert await world.store.compare_and_swap(NAME, Stamp(State.COMPLETED, claim.holder), None) is Done.WON
    assert await world.store.get(NAME) is None


def test_only_what_has_a_trace_is_of_version_2() -> None:
    """Without one a record is what it was, byte for byte; with one it is 24 bytes longer."""
    without, with_ = encode(kept(a_claim(b"h" * 12), b"")), encode(kept(a_claim(b"h" * 12)))
    assert (without[0], with_[0], len(with_) - len(without)) == (1, 2, 24)
    assert without[1:].replace(b"", b"") == with_.replace(TRACE, b"")[1:]
    assert header(with_) == replace(kept(a_claim(b"h" * 12)), answer=None)


@pytest.mark.parametrize(
    "answer", [Answer(201, b"A: b\r\n", b"x"), Answer(201, b"", None)], ids=["answer", "tombstone"]
)
def test_every_cut_before_its_body_is_seen(answer: Answer) -> None:
    """As with a record of version 1."""
    record = records.keep(a_claim(b"h" * 12), answer, wall=0, trace=TRACE).record
    assert record is not None
    whole = encode(record)
    assert decode(whole) == record
    for length in range(len(whole) - len(answer.body or b"")):
        with pytest.raises(Unreadable):
            decode(whole[:length])


@pytest.mark.parametrize("version", [0, 3, 255])
def test_another_version_is_refused(version: int) -> None:
    """By its number."""
    whole = encode(kept(a_claim(b"h" * 12)))
    with pytest.raises(Unreadable, match=f"version {version}; this gate reads versions 1 to 2"):
        decode(bytes((version,)) + whole[1:])

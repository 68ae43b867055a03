"""The checker can fail: each rule of the promise, broken in a history of its own, is found."""

from __future__ import annotations

import json

from .history import Effect, Seen, faults

BODY = json.dumps({"key": "k", "n": 1, "nonce": "aa"})
DONE = Effect("k", 1, "aa", 10.0)
FIRST = Seen("k", "first", 9.0, 11.0, 201, "", "stored", False, BODY)
AGAIN = Seen("k", "second", 12.0, 13.0, 201, "", "replayed", True, BODY, final=True)


def test_a_good_history_has_no_faults() -> None:
    """One effect, its answer to everybody, a defined end."""
    lost = Seen("k", "third", 9.0, 9.5)
    doubt = Seen("j", "last", 12.0, 13.0, 409, "in-doubt", final=True)
    assert faults([FIRST, lost, AGAIN, doubt], [DONE]) == []


def test_a_second_effect_is_found() -> None:
    assert faults([FIRST], [DONE, Effect("k", 2, "bb", 11.0)]) == ["k: 2 effects"]
    assert faults([FIRST], [DONE, Effect("k", 2, "bb", 11.0)], most=2) == []


def test_two_answers_of_one_key_are_found() -> None:
    other = Seen("k", "second", 12.0, 13.0, 201, "", "replayed", True, BODY + " ")
    assert faults([FIRST, other], [DONE]) == ["k: 2 different answers"]


def test_an_answer_of_another_key_is_found() -> None:
    stranger = Seen("j", "x", 12.0, 13.0, 201, "", "replayed", True, BODY)
    assert faults([stranger], [DONE]) == [f"j: x was given an answer that is no effect's of this key: {BODY}"]


def test_an_answer_before_its_effect_is_found() -> None:
    early = Seen("k", "x", 8.0, 9.0, 201, "", "replayed", True, BODY)
    assert faults([early], [DONE]) == ["k: x was answered before the effect"]


def test_what_is_told_to_be_done_and_is_not_is_found() -> None:
    """Before its effect, or where it was rolled back."""
    told = Seen("k", "x", 12.0, 13.0, 409, "response-not-kept", "not-kept")
    assert faults([told], [DONE]) == []
    for effects in ([], [Effect("k", 1, "aa", 13.5)], [Effect("k", 1, "aa", 12.0, effect=False)]):
        assert faults([told], effects) == ["k: x is told that it is done, and it was not"]


def test_a_key_that_is_stuck_is_found() -> None:
    """In flight when every lease is over, or a connection that breaks then."""
    stuck = Seen("k", "last", 20.0, 21.0, 409, "in-flight", final=True)
    broken = Seen("k", "last", 20.0, 21.0, final=True)
    assert faults([stuck, broken], [DONE]) == ["k: at the end it is 409 in-flight", "k: at the end it is 0 "]


def test_an_answer_that_was_said_to_be_stored_and_is_not_is_found() -> None:
    doubt = Seen("k", "second", 12.0, 13.0, 409, "in-doubt", "in-doubt")
    before = Seen("k", "third", 10.5, 13.0, 409, "in-flight", "in-flight")
    told = "k: second is told in-doubt after the answer was said to be stored"
    assert faults([FIRST, doubt, before], [DONE]) == [told]


def test_what_was_asked_and_not_done_is_no_effect() -> None:
    assert faults([FIRST], [Effect("k", 0, "zz", 9.5, effect=False), DONE]) == []

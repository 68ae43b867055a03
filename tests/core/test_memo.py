"""A memo computes once, and stays within its bounds."""

from __future__ import annotations

from gateway.core.memo import Memo


def test_a_full_memo_is_emptied() -> None:
    """A client that sends ever new keys fills no memory, and what is asked for again is stored again."""
    computed: list[int] = []

    def twice(key: int) -> int:
        computed.append(key)
        return 2 * key

    memo = Memo(twice, 3, lambda key: key < 100)
    assert [memo[key] for key in (1, 2, 3, 1, 2, 3)] == [2, 4, 6, 2, 4, 6]
    assert computed == [1, 2, 3]
    assert memo[4] == 8
    assert dict(memo) == {4: 8}
    assert memo[1] == 2
    assert computed == [1, 2, 3, 4, 1]


def test_what_is_not_storable_is_computed_each_time() -> None:
    """A long key leaves no trace, and what is stored stays."""
    computed: list[bytes] = []
    memo = Memo(computed.append, 1, lambda key: len(key) < 4)
    for key in (b"abc", b"abcd", b"abcd", b"abc"):
        memo[key]
    assert computed == [b"abc", b"abcd", b"abcd"]
    assert list(memo) == [b"abc"]

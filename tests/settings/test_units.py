"""Durations, sizes and addresses, in every spelling."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.policy import DAY, HOUR, MINUTE, SECOND
from gateway.settings import (
    Address,
)
from gateway.settings.units import duration, show_duration, show_size, size


@given(st.integers(0, 3650 * DAY))
def test_a_duration_that_we_show_is_one_that_we_read(value: int) -> None:
    assert duration(show_duration(value), zero=True) == value


@given(st.integers(0, 1 << 40))
def test_a_size_that_we_show_is_one_that_we_read(value: int) -> None:
    assert size(show_size(value), most=1 << 40) == value


SPELLINGS = {
    duration: {
        1: ["{} ms", "{}msec", "{} milliseconds"],
        SECOND: ["{}", "{} s", "{}sec", "{} seconds"],
        MINUTE: ["{}min", "{} Minutes", "{}M"],
        HOUR: ["{} h", "{}hrs", "{} hours"],
        DAY: ["{} days", "{}D"],
        7 * DAY: ["{}w", "{} weeks"],
    },
    size: {
        1: ["{}", "{} bytes", "{}b"],
        1 << 10: ["{}k", "{}kB", "{} KiB"],
        1 << 20: ["{}M", "{}MB", "{} mib"],
        1 << 30: ["{}G", "{} gb"],
    },
}
CASES = [
    (unit, spelling, worth)
    for unit, spellings in SPELLINGS.items()
    for worth, each in spellings.items()
    for spelling in each
]


@given(st.sampled_from(CASES), st.integers(1, 500))
def test_the_value_that_we_advise_is_the_one_that_was_meant(
    case: tuple[Callable[..., int], str, int], number: int
) -> None:
    """Whatever the spelling, following the advice gives what was written."""
    unit, spelling, worth = case
    bounds = {"most": 1 << 40} if unit is size else {}
    with pytest.raises(ValueError, match="; use ") as raised:
        unit(spelling.format(number), **bounds)
    assert unit(str(raised.value).rpartition("; use ")[2], **bounds) == number * worth


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1.5h", "90m"),
        ("0.5s", "500ms"),
        ("1d 12h", "36h"),
        ("2h, 5 minutes", "125m"),
        ("1.0001ms", None),
        ("h", None),
        ("", None),
        ("5 fortnights", None),
        ("1_000s", "1000s"),
        ("٣s", None),
        ("9" * 5000 + "s", None),
    ],
)
def test_what_is_meant_by_a_duration(text: str, meant: str | None) -> None:
    """Advice is given only where it is certain."""
    with pytest.raises(ValueError, match="duration") as raised:
        duration(text)
    assert str(raised.value).partition("; use ")[2] == (meant or "")
    assert len(str(raised.value)) < 120


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8080", Address("0.0.0.0", 8080)),
        ("[::1]:8080", Address("::1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        (":8080", Address("0.0.0.0", 8080)),
    ],
)
def test_an_address_is_read_and_shown(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["0", "80", "18080", "08080"])
def test_a_port_alone_is_no_address(text: str) -> None:
    """It would bind every interface unnoticed: the refusal shows both spellings, and each of them is accepted. `:80`,
    which shows that the host is left out, still means every interface."""
    with pytest.raises(ValueError, match="names a port and no interface") as raised:
        Address.parse(text)
    spellings = re.findall(r"[\d.]+:\d+", str(raised.value))
    number = int(text)
    assert [Address.parse(each) for each in spellings] == [Address("127.0.0.1", number), Address("0.0.0.0", number)]
    assert Address.parse(f":{text}") == Address("0.0.0.0", number)


@pytest.mark.parametrize("text", ["", ":", "a", "a:b", "a:-1", "a:1:2", "[::1]", "[a]:1", "a b:1", "a:٣", "x@a:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"use |expected an address|is not"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "10.0.0.1:1", False),
        (":1", "10.0.0.1:1", True),
        ("[::]:1", "10.0.0.1:1", True),
        ("localhost:1", "127.0.0.1:1", True),
        (":0", ":0", False),
    ],
)
def test_two_listeners_cannot_share_a_port(one: str, other: str, overlap: bool) -> None:
    assert Address.parse(one).overlaps(Address.parse(other)) is overlap
    assert Address.parse(other).overlaps(Address.parse(one)) is overlap

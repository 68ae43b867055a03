"""What a file says of keys: what is read of it, and what is said of what cannot be."""

from __future__ import annotations

import time

import pytest

from gateway.core.keyed import Derive, Part
from gateway.core.keyform import ANY, SF_STRING, ULID, UUID, WeakKeys
from gateway.core.policy import DAY, MINUTE, Missing, Policy, Route
from gateway.core.sent import SendKey, SentAs
from gateway.core.source import Place, Source
from tests.settings.files import WHOLE, first, read


def route(added: str, top: str = "") -> Route:
    return first(read(f"{top}{WHOLE}    {added}\n"))


def policy(added: str) -> Policy:
    return route(added).policy


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ("body:/order/id", Source(Place.BODY, "/order/id")),
        ("body:/a~1b/0/~0", Source(Place.BODY, "/a~1b/0/~0")),
        ("form:order_id", Source(Place.FORM, "order_id")),
        ("query:X", Source(Place.QUERY, "X")),
        ("path:2", Source(Place.PATH, "2")),
        ("cookie:cart", Source(Place.COOKIE, "cart")),
    ],
)
def test_a_key_from_each_place(written: str, source: Source) -> None:
    """The one source is looked in, and no header beside it."""
    found = policy(f"key: {{from: '{written}'}}")
    assert (found.sources, found.headers) == ((source,), ())
    assert str(source) == written
    assert Source.of(written) == source
    assert found.parses_body == written.startswith(("body", "form"))


def test_a_key_from_one_header_or_from_several() -> None:
    """One header is found by its name as ever; of several each is a part, in the order of the list."""
    assert policy("key: {from: header:X-Id}") == policy("key: {from: [header:X-Id]}") == Policy(headers=(b"x-id",))
    several = policy("key: {from: [path:1, 'header:X-Id']}")
    assert several.sources == (Source(Place.PATH, "1"), Source(Place.HEADER, "x-id"))
    assert b"x-id" in several.per_request


def test_the_rule_of_a_key() -> None:
    """Formats by name, the least length, and what becomes of a weak one."""
    for name, form in (("any", ANY), ("sf-string", SF_STRING), ("uuid", UUID), ("ulid", ULID)):
        assert policy(f"key: {{format: {name}}}").key_rule.format == form
    rule = policy("key: {format: '/[A-Z]{2}[0-9]+/', min_length: 20, weak: refuse}").key_rule
    assert (rule.min_length, rule.weak, rule.plain) == (20, WeakKeys.REFUSE, False)
    assert [bool(rule.format.matches(text)) for text in (b"AB1", b"xAB1", b"AB1x", b"AB")] == [
        True,
        False,
        False,
        False,
    ]


def test_no_pattern_takes_long() -> None:
    """What takes a backtracking engine longer than the universe has lasted takes this one microseconds."""
    found = policy("key: {format: '/(a|a|aa)*(a+)+(a*)*b/'}").key_rule.format
    began = time.perf_counter()
    assert not found.matches(b"a" * 255)
    assert time.perf_counter() - began < 0.5


def test_a_key_that_is_missing_is_derived() -> None:
    """The word alone takes the four and ten seconds; the route's window is not that of a derived key."""
    found = route("missing: derive", top="defaults: {window: 7d}\n")
    assert found.policy.missing is Missing.DERIVE
    assert found.policy.derive == Derive(tuple(sorted(Part)), 10_000)
    assert (found.policy.window, found.derived.policy.window) == (7 * DAY, 10_000)
    assert found.derived.policy.doubt_window == 10 * MINUTE
    assert found.derived.policy.lease == found.policy.lease
    narrow = policy("missing: {derive: {from: [query:cart, method], window: 3s}}")
    assert narrow.derive == Derive((Part.METHOD, Source(Place.QUERY, "cart")), 3000)
    assert policy("missing: {derive: {}}") == policy("missing: derive")
    assert policy("missing: refuse").missing is Missing.REFUSE


def test_a_long_exchange_outlives_the_doubt_of_a_derived_key_never() -> None:
    """A doubt window below the lease would forget a claim that still runs."""
    text = WHOLE.replace("}", ", timeout: 30m}")
    found = first(read(text + "    missing: derive\n"))
    assert found.derived.policy.doubt_window == found.policy.lease > 30 * MINUTE


def test_fields_in_which_the_service_gets_the_key() -> None:
    """One, one with its form, or several."""
    plain, uuid = SendKey(b"X-Id"), SendKey(b"PayPal-Request-Id", SentAs.UUID)
    assert policy("send_key: header:X-Id").send_key == (plain,)
    assert policy("send_key: {to: header:PayPal-Request-Id, as: uuid}").send_key == (uuid,)
    both = policy("send_key: [header:X-Id, {to: header:PayPal-Request-Id, as: uuid}]")
    assert both.send_key == (plain, uuid)
    assert {b"x-id", b"paypal-request-id"} <= set(both.per_request)


def test_a_key_is_bound_to_any_source() -> None:
    """In any order; those that stand in no field are read where they stand."""
    found = policy("bind: [query:tenant, 'body:/a', header:X-A, default]")
    assert found.recipe.bind == ("default", "body:/a", "header:x-a", "query:tenant")
    assert found.bound == (Source(Place.BODY, "/a"), Source(Place.QUERY, "tenant"))
    assert found.parses_body

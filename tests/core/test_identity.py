"""What a configuration makes of keys, and what of it shows when it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.identity import Identity, dumped
from gateway.core.keyform import SF_STRING, ULID, UUID, Format, KeyRule
from gateway.core.policy import DAY, Match, OnDoubt, Policy, Route
from gateway.core.scope import Tokens
from gateway.core.source import Source

PAY = Route("pay", "app", Match("/pay/**"), Policy(scope=(b"header:x-tenant",)))
ORDERS = Route("orders", "app", Match("/orders/**"), Policy(namespace=b"orders", headers=(b"x-request-id",)))
REST = Route("rest", "app", policy=Policy(namespace=b"open", guard=False))
HERE = [PAY, ORDERS, REST]


def changed(route: Route, **policy: object) -> Route:
    return replace(route, policy=replace(route.policy, **policy))  # type: ignore[arg-type]


def test_the_identity_is_spelled_in_one_way() -> None:
    """It stands in the stores of others: a spelling that changes refuses every claim after an upgrade. Never mended by
    pinning what came out (see test_pinned.py)."""
    assert dumped(Identity.of(HERE, b"sesame").as_json()) == (
        b'{"format":1,"keys":[["default",["header:x-tenant"],["idempotency-key","x-idempotency-key"]],'
        b'["orders",[],["x-request-id"]]],"secret":"e94d29b982bc68da"}'
    )
    assert dumped(Identity.of([]).as_json()) == b'{"format":1,"keys":[],"secret":""}'


@pytest.mark.parametrize(
    "routes",
    [
        [ORDERS, PAY, REST],
        [PAY, ORDERS],
        [replace(PAY, name="payments", upstream="other", match=Match("/payments/**")), ORDERS],
        [*HERE, replace(ORDERS, name="again")],
        [changed(PAY, window=2 * DAY, doubt_window=9 * DAY, wait=0, on_doubt=OnDoubt.RERUN, timeout=5, late=0), ORDERS],
        [PAY, changed(ORDERS, headers=(b"x-request-id",), max_request=1, keep=frozenset((429,)))],
    ],
    ids=["order", "an unguarded route", "names and paths", "one more of the same", "timing", "sizes and statuses"],
)
def test_what_names_no_record_is_no_part_of_it(routes: list[Route]) -> None:
    """Names, order, windows and timeouts of routes may change under a running fleet."""
    assert Identity.of(routes, b"sesame") == Identity.of(HERE, b"sesame")


@pytest.mark.parametrize(
    ("routes", "secret", "told"),
    [
        (HERE, b"other", "its `secret` is another"),
        (HERE, b"", "its `secret` is another"),
        ([changed(PAY, namespace=b"pay"), ORDERS], b"sesame", "namespace pay (scope header:x-tenant"),
        ([changed(PAY, scope=()), ORDERS], b"sesame", "it has namespace default (scope public;"),
        ([PAY, changed(ORDERS, headers=(b"x-id",))], b"sesame", "key from x-id)"),
        ([PAY], b"sesame", "this gate has namespace orders (scope public; key from x-request-id)"),
        ([*HERE, changed(REST, guard=True)], b"sesame", "it has namespace open"),
    ],
    ids=["secret", "no secret", "namespace", "scope", "key", "one fewer", "one more"],
)
def test_what_names_records_is_all_of_it(routes: list[Route], secret: bytes, told: str) -> None:
    """Another secret, namespace, scope or source of the key: the identity differs, and says in what, without the
    secret."""
    here, there = Identity.of(HERE, b"sesame"), Identity.of(routes, secret)
    assert here != there
    assert told in here.difference(there)
    assert here.difference(here) == ""
    assert "sesame" not in here.difference(there)


def test_the_issuer_of_a_claim_is_part_of_what_names_records() -> None:
    """`sub: 1` of another issuer is somebody else; where nothing is claimed, whom one trusts is nothing."""
    one, other = (Tokens("keys.json", issuer) for issuer in ("https://a", "https://b"))
    here, there = (Identity.of([changed(PAY, scope=(b"jwt:sub",), tokens=each)]) for each in (one, other))
    assert here != there
    assert "scope jwt:sub of https://b" in here.difference(there)
    moved = Tokens("https://a/keys", "https://a", ("x",), ("EdDSA",), 0, 10_000)
    assert Identity.of([changed(PAY, scope=(b"jwt:sub",), tokens=moved)]) == here
    assert Identity.of([changed(PAY, tokens=one)]) == Identity.of([PAY])


def test_the_order_of_default_headers_is_nothing() -> None:
    """A key is looked for in all of them at once."""
    turned = changed(PAY, headers=tuple(reversed(PAY.policy.headers)))
    assert Identity.of([turned]) == Identity.of([PAY])


def test_a_format_that_spells_keys_in_one_way_is_part_of_it() -> None:
    """A gateway that takes keys byte for byte does not find a UUID in capitals. A pattern or a length names nothing."""
    here = Identity.of([ORDERS])
    there = Identity.of([changed(ORDERS, key_rule=KeyRule(UUID))])
    assert here != there
    assert "key from x-request-id as uuid)" in here.difference(there)
    assert Identity.of([changed(ORDERS, key_rule=KeyRule(ULID))]) != there
    two = (Source.of("path:2"), Source.of("header:x-id"))
    composite = Identity.of([changed(ORDERS, headers=(), sources=two, key_rule=KeyRule(ULID))])
    assert composite.keys == (("orders", (), ("path:2", "header:x-id as ulid")),)
    for rule in (KeyRule(SF_STRING), KeyRule(min_length=20), KeyRule(Format("/[a-z]+/", bytes.islower))):
        assert Identity.of([changed(ORDERS, key_rule=rule)]) == here


def test_it_is_read_as_it_was_told() -> None:
    """And what is none is refused as such."""
    identity = Identity.of(HERE, b"sesame")
    assert Identity.from_json(identity.as_json()) == identity
    for odd in (None, [], {}, {"format": 1, "secret": "", "keys": [1]}, {"format": "x", "secret": "", "keys": []}):
        with pytest.raises(ValueError, match="no identity"):
            Identity.from_json(odd)


def test_a_long_difference_is_cut_short() -> None:
    """A log line is no place for three hundred namespaces."""
    many = [changed(PAY, namespace=b"n%d" % n) for n in range(300)]
    told = Identity.of(HERE).difference(Identity.of(many))
    assert told.endswith("and 298 more")
    assert len(told) < 600

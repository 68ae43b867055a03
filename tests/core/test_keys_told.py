"""What clients are told of a route's keys, and owners of a change of where those stand."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.policy import markdown
from gateway.core.changes import Effect, changes
from gateway.core.document import rules_of
from gateway.core.keyed import Derive, Part
from gateway.core.keyform import SF_STRING, UUID, Format, KeyRule, WeakKeys
from gateway.core.policy import Match, Missing, Policy, Route, RouteTable
from gateway.core.sent import SendKey
from gateway.core.source import Source

QUERY, BODY = Source.of("query:id"), Source.of("body:/id")


def test_what_clients_are_told_of_keys() -> None:
    """Where one stands, of which parts it is, its rule, and how a double click is known."""
    plain = rules_of(Policy())["key"]
    assert plain["in"] == ["header:Idempotency-Key", "header:X-Idempotency-Key"]
    assert not plain.keys() & {"min_length", "weak", "parts_of_one_key", "derived_otherwise"}
    told = rules_of(
        Policy(
            headers=(),
            sources=(QUERY, Source.of("header:x-id")),
            key_rule=KeyRule(UUID, 36, WeakKeys.REFUSE),
            missing=Missing.DERIVE,
            derive=Derive((Part.METHOD, BODY), 5000),
        )
    )["key"]
    assert told["in"] == ["query:id", "header:X-Id"]
    assert told["parts_of_one_key"] is True
    assert (told["format"], told["min_length"], told["required"]) == ("uuid", 36, False)
    assert told["weak"].startswith("refused")
    assert told["derived_otherwise"] == {"from": ["method", "body:/id"], "window_seconds": 5.0}
    assert "RFC 8941" in rules_of(Policy(key_rule=KeyRule(SF_STRING)))["key"]["format"]
    assert "RFC 8941" not in rules_of(Policy(headers=(), sources=(BODY,)))["key"]["format"]


def test_the_page_says_it_in_words() -> None:
    """In one row, which a bar in a pattern does not break."""
    policy = Policy(
        headers=(),
        sources=(QUERY, BODY),
        key_rule=KeyRule(Format("/a|b/", len), 2),
        missing=Missing.DERIVE,
        derive=Derive((Part.METHOD, BODY), 5000),
    )
    (row,) = [
        line for line in markdown((Route("all", "app", policy=policy),)).splitlines() if line.startswith("| Key ")
    ]
    assert row == (
        r"| Key | in `query:id` and `body:/id`: /a\|b/, 2 characters at least; without one a request is known by "
        "`method`, `body:/id`, for 5s |"
    )


def effects(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Effect]]:
    tables = [RouteTable([Route("all", "app", Match(), Policy(**each))]) for each in (old, new)]
    return [(change.what, change.effect) for change in changes(tables[0], tables[1], lambda each: f"{each} ms")]


FROM_QUERY = {"headers": (), "sources": (QUERY,)}
DERIVES = {"missing": Missing.DERIVE}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({}, FROM_QUERY, [("key", Effect.FORGETS)]),
        ({}, {**FROM_QUERY, "missing": Missing.REFUSE}, [("key", Effect.REFUSES)]),
        (FROM_QUERY, {}, [("key", Effect.FORGETS)]),
        (FROM_QUERY, {"headers": (), "sources": (QUERY, BODY)}, [("key", Effect.FORGETS)]),
        (
            {"headers": (), "sources": (BODY, QUERY)},
            {"headers": (), "sources": (QUERY, BODY)},
            [("key", Effect.FORGETS)],
        ),
        (FROM_QUERY, FROM_QUERY, []),
        ({}, {"key_rule": KeyRule(UUID)}, [("key", Effect.REFUSES)]),
        ({"key_rule": KeyRule(UUID)}, {}, []),
        ({}, {"key_rule": KeyRule(min_length=9)}, [("key", Effect.REFUSES)]),
        ({}, {"key_rule": KeyRule(weak=WeakKeys.REFUSE)}, [("key", Effect.REFUSES)]),
        (DERIVES, {}, [("missing", Effect.FORGETS)]),
        ({}, DERIVES, []),
        (DERIVES, {**DERIVES, "derive": Derive((Part.BODY,))}, [("missing", Effect.FORGETS)]),
        ({}, {"send_key": (SendKey(b"X-Id"),)}, [("send_key", Effect.NOTE)]),
    ],
)
def test_what_a_change_of_keys_does_to_those_that_live(
    old: dict[str, Any], new: dict[str, Any], found: list[tuple[str, Effect]]
) -> None:
    """Another place or order of parts forgets, a stricter rule refuses, a laxer one does nothing."""
    assert effects(old, new) == found

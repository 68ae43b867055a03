"""What clients are told of a route's keys, and owners of a change of where those stand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.commands.policy import markdown
from gateway.core.changes import Effect, changes
from gateway.core.decide import Guard, Later, Pass, Refuse, admit, identify
from gateway.core.document import rules_of
from gateway.core.fingerprint import CANONICAL_JSON, Recipe
from gateway.core.key import record_name
from gateway.core.keyed import Derive, Part
from gateway.core.keyform import SF_STRING, UUID, Format, KeyRule, WeakKeys
from gateway.core.message import Request
from gateway.core.policy import Match, Missing, Policy, Route, RouteTable
from gateway.core.sent import SendKey, SentAs
from gateway.core.source import Place, Reader, Source

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
    assert told["derived_otherwise"] == {
        "from": ["method", "body:/id"],
        "window_seconds": 5.0,
        "remembered_seconds": 600.0,
    }
    assert (told["otherwise"], plain["otherwise"]) == ("derived", "unprotected")
    sends = (SendKey(b"PayPal-Request-Id", SentAs.UUID), SendKey(b"X-Operation"))
    assert rules_of(Policy(send_key=sends))["key"]["service_gets_it_in"] == [
        {"in": "header:PayPal-Request-Id", "as": "uuid"},
        {"in": "header:X-Operation", "as": "key"},
    ]
    assert "RFC 8941" in rules_of(Policy(key_rule=KeyRule(SF_STRING)))["key"]["format"]
    assert "RFC 8941" not in rules_of(Policy(headers=(), sources=(BODY,)))["key"]["format"]


def test_the_page_says_it_in_words() -> None:
    """In rows, which a bar in a pattern does not break."""
    policy = Policy(
        headers=(),
        sources=(QUERY, BODY),
        key_rule=KeyRule(Format("/a|b/", len), 2),
        missing=Missing.DERIVE,
        derive=Derive((Part.METHOD, BODY), 5000),
        send_key=(SendKey(b"PayPal-Request-Id", SentAs.UUID),),
    )
    rows = rows_of(policy)
    assert rows["Key"] == "these together: the query parameter `id` and the member `/id` of the JSON body"
    assert rows["A key is"] == r"each: what `/a\|b/` matches, 2 characters at least"
    assert rows["Without a key"].startswith(
        "a request like one before it is taken for its double, for 5s from the answer"
    )
    assert "alike are those of the same method and member `/id` of the JSON body" in rows["Without a key"]
    assert "`PayPal-Request-Id` as a UUID" in rows["The service gets it"]


def rows_of(policy: Policy) -> dict[str, str]:
    """The rows of a route's table on the page, by their names."""
    page = markdown((Route("all", "app", policy=policy),))
    table = page.partition("\n## ")[2].partition("\n\n## ")[0]
    lines = [line.removeprefix("| ").removesuffix(" |") for line in table.splitlines() if line.startswith("| ")]
    return dict(line.split(" | ", 1) for line in lines[1:])


SAID = {
    "header:x-id": "the field `X-Id`",
    "query:id": "the query parameter `id`",
    "cookie:c": "the cookie `c`",
    "path:2": "segment 2 of the path",
    "body:/a/b": "the member `/a/b` of the JSON body",
    "form:f`f": "the form field ``f`f``",
}


@pytest.mark.parametrize("source", SAID)
def test_the_page_names_every_place(source: str) -> None:
    """Each source of a key, of what is bound, and of a key that is derived: in words, not as the file spells it."""
    rows = rows_of(
        Policy(
            headers=(),
            sources=(Source.of(source),),
            recipe=Recipe((source,)),
            missing=Missing.DERIVE,
            derive=Derive((Source.of(source), Part.CREDENTIALS)),
        )
    )
    assert rows["Key"] == SAID[source]
    assert SAID[source] in rows["Same sender"]
    words = SAID[source].removeprefix("the ")
    assert f"of the same {words} and sender" in rows["Without a key"]


def test_the_page_says_who_is_asked_and_how_bodies_are_read() -> None:
    """A claim, a certificate, a cookie; JSON that counts by what it says, less what is ignored; a weak key refused."""
    rows = rows_of(
        Policy(
            scope=(b"jwt:sub", b"client_cert", b"cookie:t", b"header:x-tenant"),
            recipe=Recipe(body=CANONICAL_JSON, ignore=("/sent_at",)),
            key_rule=KeyRule(UUID, weak=WeakKeys.REFUSE),
        )
    )
    assert rows["Whose key"] == (
        "of each the claim `sub` of the Bearer token, the client certificate, the cookie `t` and the field `X-Tenant`, "
        "which must be there"
    )
    assert "(of JSON what it says, however it is spelled, less `/sent_at`)" in rows["Same request"]
    signed = Recipe(body=CANONICAL_JSON, ignore=("/at", "form:sign", "query:signature", "query:ts"))
    assert rows_of(Policy(recipe=signed))["Same request"].startswith(
        "method, host, target, content-type, content-encoding, body (of JSON what it says, however it is spelled, less "
        "`/at`; less the query parameter `signature`, the query parameter `ts` and the form field `sign`); otherwise"
    )
    raw = rows_of(Policy(recipe=Recipe(ignore=("query:ts",))))["Same request"]
    assert "body (less the query parameter `ts`); otherwise" in raw
    assert rows["A key is"].startswith("a UUID; refused: a point in time")
    assert rows["Same request"].startswith("method, host, target, ")
    assert "or else `Cookie` without those of load balancers, bot filters and analytics, as" in rows["Same sender"]
    rows = rows_of(Policy(recipe=Recipe(host=False, ignore_cookies=("lb", "lb_*"))))
    assert rows["Same request"].startswith("method, target, ")
    assert "analytics (and `lb`, `lb_*`), as far as" in rows["Same sender"]
    assert rows["Without a key"] == "a request is run, and not protected"
    assert rows_of(Policy(missing=Missing.REFUSE))["Without a key"].startswith("a request is refused; a PUT or DELETE")


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
        ({}, {"headers": (), "sources": (BODY,), "missing": Missing.REFUSE}, [("key", Effect.FORGETS)]),
        (FROM_QUERY, {}, [("key", Effect.FORGETS)]),
        (FROM_QUERY, {"headers": (), "sources": (QUERY, BODY)}, [("key", Effect.FORGETS)]),
        (
            {"headers": (), "sources": (BODY, QUERY)},
            {"headers": (), "sources": (QUERY, BODY)},
            [("key", Effect.FORGETS)],
        ),
        (FROM_QUERY, FROM_QUERY, []),
        ({}, {"key_rule": KeyRule(UUID)}, [("key", Effect.FORGETS), ("key", Effect.REFUSES)]),
        ({"key_rule": KeyRule(UUID)}, {}, [("key", Effect.FORGETS)]),
        ({"key_rule": KeyRule(UUID)}, {"key_rule": KeyRule(UUID, 36)}, [("key", Effect.REFUSES)]),
        ({}, {"key_rule": KeyRule(Format("/[a-z]+/", bytes.islower))}, [("key", Effect.REFUSES)]),
        ({}, {"key_rule": KeyRule(min_length=9)}, [("key", Effect.REFUSES)]),
        ({}, {"key_rule": KeyRule(weak=WeakKeys.REFUSE)}, [("key", Effect.REFUSES)]),
        (DERIVES, {}, [("missing", Effect.FORGETS)]),
        ({}, DERIVES, []),
        (DERIVES, {**DERIVES, "derive": Derive((Part.BODY,))}, [("missing", Effect.FORGETS)]),
        (DERIVES, {**DERIVES, "derive": Derive(window=5_000)}, [("missing", Effect.NOTE)]),
        (DERIVES, {**DERIVES, "derive": Derive(window=20_000)}, []),
        (
            DERIVES,
            {**DERIVES, "recipe": Recipe(())},
            [("missing", Effect.FORGETS), ("fingerprint", Effect.REFUSES)],
        ),
        (
            {"headers": (b"x-id",)},
            {"headers": (), "sources": (Source.of("header:x-id"), Source.of("path:1"))},
            [("key", Effect.FORGETS)],
        ),
        ({}, {"send_key": (SendKey(b"X-Id"),)}, [("send_key", Effect.NOTE)]),
    ],
)
def test_what_a_change_of_keys_does_to_those_that_live(
    old: dict[str, Any], new: dict[str, Any], found: list[tuple[str, Effect]]
) -> None:
    """Another place or order of parts forgets, a stricter rule refuses, a laxer one does nothing."""
    assert effects(old, new) == found


def test_an_example_carries_its_key_where_it_stands() -> None:
    """What is said of a change names a request that has a key: in the body, and in a path that is long enough."""
    old = Policy(headers=(), sources=(Source.of("path:3"), BODY))
    tables = [RouteTable([Route("all", "app", Match("/orders/**"), each)]) for each in (old, Policy())]
    (change,) = changes(tables[0], tables[1], lambda each: f"{each} ms")
    assert change.example == "POST any.example/orders/some/some, its key in path:3, body:/id"
    assert "a key in path:3, body:/id is not looked at any more" in change.text


def test_a_put_without_its_key_runs_again() -> None:
    """Where `missing: refuse` makes a POST a 400, a PUT passes without a key: its retry is forgotten."""
    methods = frozenset((b"POST", b"PUT"))
    policies = (Policy(), Policy(headers=(b"x-key",), missing=Missing.REFUSE))
    tables = [RouteTable([Route("all", "app", Match(methods=methods), each)]) for each in policies]
    found = [(each.effect, each.example) for each in changes(tables[0], tables[1], str)]
    assert found == [(Effect.FORGETS, "PUT any.example/"), (Effect.REFUSES, "POST any.example/")]


SOURCES = st.lists(
    st.sampled_from(
        [Source.of(each) for each in ("header:x-id", "query:id", "cookie:c", "path:1", "body:/a/b", "body:/c")]
    ),
    min_size=1,
    max_size=3,
    unique=True,
)
POLICIES = st.builds(
    lambda sources, missing: Policy(
        headers=(sources[0].name.encode(),) if sources == [Source.of("header:x-id")] else (),
        sources=() if sources == [Source.of("header:x-id")] else tuple(sources),
        missing=missing,
    ),
    SOURCES,
    st.sampled_from([Missing.PASS, Missing.REFUSE]),
)


@settings(max_examples=300, deadline=None)
@given(POLICIES, POLICIES, st.fixed_dictionaries({name: st.booleans() for name in ("x-id", "id", "c", "/a/b", "/c")}))
def test_no_key_is_forgotten_unseen(old: Policy, new: Policy, there: dict[str, bool]) -> None:
    """Any two rules, any request that carries some of what they name: where its retry runs again (it has no key any
    more, or its record another name) that is told; and where nothing is told its record is found."""
    body = {**({"a": {"b": "body-1"}} if there["/a/b"] else {}), **({"c": "body-2"} if there["/c"] else {})}
    fields = [(b"X-Id", b"head-1")] if there["x-id"] else []
    fields += [(b"Cookie", b"c=cookie-1")] if there["c"] else []
    request = Request(
        b"POST", b"/some" + (b"?id=q-1" if there["id"] else b""), tuple(fields), json.dumps(body).encode()
    )
    before, after = (name_of(request, each) for each in (old, new))
    tables = [RouteTable([Route("all", "app", policy=each)]) for each in (old, new)]
    told = [change.effect for change in changes(tables[0], tables[1], str) if change.what == "key"]
    if isinstance(before, bytes) and before != after:
        assert told
        assert Effect.FORGETS in told or not isinstance(after, bytes | Pass) or Place.QUERY in places(new)
    if old == new:
        assert not told


def places(policy: Policy) -> set[Place]:
    return {source.place for source in policy.sources} or {Place.QUERY}  # a field or a parameter that is for keys


def name_of(request: Request, policy: Policy) -> bytes | Pass | Refuse:
    """The name of its record, by the looks that a request is given; or what becomes of it without one."""
    verdict = admit(request.method, request.fields, policy, request.target)
    if isinstance(verdict, Later):
        verdict = identify(request, policy, verdict, Reader(request), credentials=b"")
    if not isinstance(verdict, Guard):
        return verdict  # type: ignore[return-value]
    return record_name(b"s", policy.namespace, verdict.scope, verdict.key, origin=verdict.origin)

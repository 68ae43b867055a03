"""What a change of configuration does to keys that live when it is made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.changes import Change, Effect, changes
from gateway.core.fingerprint import Recipe
from gateway.core.keyed import Derive, Part
from gateway.core.policy import HOUR, Match, Missing, Mode, OnDoubt, Policy, Route, RouteTable, StoreDown
from gateway.core.scope import Tokens


def table(*routes: Route) -> RouteTable:
    return RouteTable(routes)


def route(name: str = "all", path: str = "/**", upstream: str = "app", **policy: Any) -> Route:
    return Route(name, upstream, Match(path), Policy(**policy))


def between(old: RouteTable, new: RouteTable) -> list[Change]:
    return changes(old, new, lambda duration: f"{duration // HOUR}h")


def told(old: RouteTable, new: RouteTable) -> list[tuple[str, str, str | None, str | None]]:
    return [(each.effect.value, each.what, each.before, each.after) for each in between(old, new)]


#: What a route says after it said nothing, and what that does to its keys.
ONE_FIELD = {
    "namespace": ({"namespace": b"other"}, "forgets"),
    "scope": ({"scope": (b"header:x-tenant",)}, "forgets"),
    "key": ({"headers": (b"x-key",)}, "forgets"),
    "guard": ({"guard": False}, "forgets"),
    "mode": ({"mode": Mode.SHADOW}, "forgets"),
    "on_doubt": ({"on_doubt": OnDoubt.RERUN}, "forgets"),
    "fingerprint": ({"recipe": Recipe(headers=(b"x-currency",))}, "refuses"),
    "host": ({"recipe": Recipe(host=False)}, "refuses"),
    "ignore_cookies": ({"recipe": Recipe(ignore_cookies=("lb",))}, "refuses"),
    "max_request": ({"max_request": 1}, "refuses"),
    "window": ({"window": HOUR}, "note"),
    "doubt_window": ({"doubt_window": HOUR}, "note"),
    "store_down": ({"store_down": StoreDown.FORWARD}, "note"),
}


@pytest.mark.parametrize("what", ONE_FIELD)
def test_one_field(what: str) -> None:
    """Each field that a live key notices, by name and with its effect; the way back is said too where it has one."""
    policy, effect = ONE_FIELD[what]
    said = "fingerprint" if "recipe" in policy else what
    assert told(table(route()), table(route(**policy))) == [(effect, said, "all", "all")]


@pytest.mark.parametrize(
    ("part", "recipe"),
    [
        (Part.TARGET, Recipe(host=False)),
        (Part.TARGET, Recipe(ignore=("query:sig",))),
        (Part.BODY, Recipe(ignore=("form:sig",))),
        (Part.BODY, Recipe(body="canonical-json")),
        (Part.CREDENTIALS, Recipe(ignore_cookies=("lb",))),
        (Part.CREDENTIALS, Recipe(bind=())),
    ],
)
def test_a_derived_key_is_read_by_the_recipe(part: Part, recipe: Recipe) -> None:
    """Another reading of a part that keys are derived from forgets them; of one that they are not, it does not."""
    for parts in ((part, Part.METHOD), tuple(each for each in Part if each is not part)):
        derives = {"missing": Missing.DERIVE, "derive": Derive(parts)}
        found = told(table(route(**derives)), table(route(**derives, recipe=recipe)))
        forgotten = [("forgets", "missing", "all", "all")] if part in parts else []
        assert found == [*forgotten, ("refuses", "fingerprint", "all", "all")]


def test_another_issuer_forgets_what_its_claims_named() -> None:
    """And where no claim names a key, or only the place of the keys changes, nothing."""
    a, b, moved = Tokens("k", "https://a"), Tokens("k", "https://b"), Tokens("https://a/k", "https://a")
    claimed = {"scope": (b"jwt:sub",)}
    old = table(route(**claimed, tokens=a))
    assert told(old, table(route(**claimed, tokens=b))) == [("forgets", "jwt", "all", "all")]
    assert told(old, table(route(**claimed, tokens=moved))) == []
    assert told(table(route(tokens=a)), table(route(tokens=b))) == []


def test_what_no_live_key_notices() -> None:
    """A new name, another order, a longer window, one more header for the key, what a replay carries: nothing."""
    old = table(route("a", "/a/**"), route("b", "/b/**"))
    new = table(
        route("bees", "/b/**", window=48 * HOUR, headers=(b"x-key", b"x-idempotency-key", b"idempotency-key")),
        route("ays", "/a/**", drop_headers=frozenset((b"etag",)), wait=0),
        route("new", "/c/**", namespace=b"c"),
    )
    assert told(old, new) == []


def test_a_key_that_is_not_looked_at_is_missing() -> None:
    """`missing: refuse` turns what would run again into a 400."""
    new = table(route(headers=(b"x-key",), missing=Missing.REFUSE))
    assert told(table(route()), new) == [("refuses", "key", "all", "all")]


def test_targets_that_move_between_routes() -> None:
    """A new route that takes part of another's requests: only those that move are concerned, with one of them shown."""
    old = table(route("all", "/**"))
    new = table(route("pay", "/payments/*/refunds", namespace=b"pay"), route("all", "/**"))
    (change,) = between(old, new)
    assert (change.effect, change.what, change.before, change.after) == (Effect.FORGETS, "namespace", "all", "pay")
    assert change.text == "default becomes pay: no key that lives is found"
    assert change.example == "POST any.example/payments/some/refunds"


def test_an_order_that_changes_who_takes_a_request() -> None:
    """Two routes that overlap change places: what both match moves from one namespace to the other."""
    one, other = route("one", "/*/b", namespace=b"one"), route("other", "/a/*", namespace=b"other")
    assert told(table(one, other), table(other, one)) == [("forgets", "namespace", "one", "other")]
    (change,) = between(table(one, other), table(other, one))
    assert change.example == "POST any.example/a/b"


def test_two_stars_in_one_segment_may_mean_one_word() -> None:
    """/v1* and /*-beta have /v1some-beta in common."""
    (change,) = between(
        table(route("one", "/v1*")), table(route("two", "/*-beta", namespace=b"b"), route("one", "/v1*"))
    )
    assert (change.after, change.example) == ("two", "POST any.example/v1some-beta")


def test_methods_and_hosts_tell_routes_apart() -> None:
    """Only PATCH, only one host, moves to a route with keys of its own."""
    all_of_it = route()
    patch = Route("patch", "app", Match("/**", methods=frozenset((b"PATCH",))), Policy(namespace=b"p"))
    shop = Route("shop", "app", Match("/**", host="*.shop.example"), Policy(namespace=b"s"))
    (change,) = between(table(all_of_it), table(patch, all_of_it))
    assert change.example.startswith("PATCH ")
    (change,) = between(table(all_of_it), table(shop, all_of_it))
    assert change.example == "POST some.shop.example/"


def test_a_route_that_is_gone() -> None:
    """No route: a retry is a 404. Another upstream: a note."""
    assert told(table(route()), table(route(path="/b/**"))) == [("refuses", "route", "all", None)]
    assert told(table(route()), table(route(upstream="other"))) == [("note", "upstream", "all", "all")]


def test_what_protected_nothing_has_nothing_to_lose() -> None:
    """Unguarded before, or in shadow: no change of it is told."""
    for policy in ({"guard": False}, {"mode": Mode.SHADOW}):
        assert told(table(route(**policy)), table(route(namespace=b"other"))) == []  # type: ignore[arg-type]


SEGMENT = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "x"])
PATTERN = st.builds(
    lambda segments, below: "/" + "/".join(segments) + ("/**" if below and segments else "**" if below else ""),
    st.lists(SEGMENT, max_size=3),
    st.booleans(),
)
ROUTES = st.lists(st.tuples(PATTERN, st.sampled_from([b"one", b"two"])), min_size=1, max_size=4)
PATH = st.lists(st.sampled_from(["a", "b", "ab", "aab", "x", "xb", "q"]), max_size=4).map(lambda it: "/" + "/".join(it))


def made_of(routes: list[tuple[str, bytes]]) -> RouteTable:
    return table(*(route(f"{n} {path}", path, namespace=namespace) for n, (path, namespace) in enumerate(routes)))


@settings(max_examples=300, deadline=None)
@given(ROUTES, ROUTES, PATH)
def test_no_request_moves_unseen(before: list[tuple[str, bytes]], after: list[tuple[str, bytes]], path: str) -> None:
    """Any two tables, any path: where a retry would look under another namespace, its pair of routes is told."""
    old, new = made_of(before), made_of(after)
    was, now = (each.match(b"POST", b"any.example", path.encode()) for each in (old, new))
    if isinstance(was, Route) and isinstance(now, Route) and was.policy.namespace != now.policy.namespace:
        assert ("forgets", "namespace", was.name, now.name) in told(old, new)

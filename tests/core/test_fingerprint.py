"""What counts as the same request, and what is said when it is not."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.cookies import INFRASTRUCTURE
from gateway.core.digest import Purpose, body_digest, digest, tag
from gateway.core.fingerprint import (
    Difference,
    Fingerprint,
    Recipe,
    difference,
    differing_parts,
    fingerprint,
    selects_account,
)
from gateway.core.host import beyond_site, site
from gateway.core.message import Field, Request, named_by_connection
from gateway.edge.authority import is_host

PLAIN = Recipe()


def fields(**changed: bytes | list[bytes] | None) -> list[Field]:
    """The fields of the sample request, with some changed, added, repeated (a list) or taken away (None)."""
    chosen: dict[str, bytes | list[bytes] | None] = {
        "Host": b"shop.example",
        "Authorization": b"Bearer a",
        "Content-Type": b"application/json",
    }
    chosen.update({name.replace("_", "-"): value for name, value in changed.items()})
    return [
        (name.encode(), each)
        for name, value in chosen.items()
        if value is not None
        for each in (value if isinstance(value, list) else [value])
    ]


def request(
    method: bytes = b"POST",
    target: bytes = b"/payments?n=1",
    body: bytes = b'{"amount":1}',
    **changed: bytes | list[bytes] | None,
) -> Request:
    return Request(method, target, fields(**changed), body)


def seen(request: Request, recipe: Recipe = PLAIN, *, certificate: bytes = b"") -> Fingerprint:
    return fingerprint(request, recipe, certificate=certificate)


# ── Every part counts, and says its own name ──────────────────────────────────────────────────────

#: One change per part, and the name that the 422 gives it.
CHANGES = {
    "method": {"method": b"PATCH"},
    "host": {"Host": b"shop2.example"},
    "target": {"target": b"/payments?n=2"},
    "content-type": {"Content_Type": b"application/json; charset=utf-8"},
    "content-encoding": {"Content_Encoding": b"gzip"},
    "body": {"body": b'{"amount":2}'},
    "x-amount": {"X_Amount": b"1"},
}
WITH_AMOUNT = Recipe(headers=(b"x-amount",))


@pytest.mark.parametrize("part", CHANGES)
def test_a_part_that_changes_is_another_request_and_is_named(part: str) -> None:
    """Difference REQUEST, and the one part that differs."""
    first, mine = seen(request(), WITH_AMOUNT), seen(request(**CHANGES[part]), WITH_AMOUNT)
    assert difference(first, mine) is Difference.REQUEST
    assert differing_parts(first, mine, WITH_AMOUNT) == [part]
    assert mine.credentials == first.credentials


@pytest.mark.parametrize("pair", list(combinations(CHANGES, 2)), ids="+".join)
def test_two_parts_that_change_are_both_named(pair: tuple[str, str]) -> None:
    """In the recipe's order; and two requests that differ from a third differ from each other."""
    one, other = pair
    first = seen(request(), WITH_AMOUNT)
    both = seen(request(**(CHANGES[one] | CHANGES[other])), WITH_AMOUNT)
    assert difference(first, both) is Difference.REQUEST
    assert differing_parts(first, both, WITH_AMOUNT) == [one, other]
    only_one, only_other = seen(request(**CHANGES[one]), WITH_AMOUNT), seen(request(**CHANGES[other]), WITH_AMOUNT)
    assert difference(only_one, only_other) is Difference.REQUEST
    assert differing_parts(only_one, only_other, WITH_AMOUNT) == [one, other]


@pytest.mark.parametrize("part", [None, *CHANGES])
def test_other_credentials_come_before_another_request(part: str | None) -> None:
    """Whoever shows other credentials learns nothing of the request, not even that it differs."""
    changed = {"Authorization": b"Bearer b", **(CHANGES[part] if part else {})}
    mine = seen(request(**changed), WITH_AMOUNT)
    assert difference(seen(request(), WITH_AMOUNT), mine) is Difference.CREDENTIALS


def test_credentials_are_no_part_of_the_request_and_have_no_tag() -> None:
    """Two bytes of a password's digest would be two bytes for a guesser."""
    first, mine = seen(request()), seen(request(Authorization=b"Bearer b", X_API_Key=b"k", Cookie=b"a=1"))
    assert first.request == mine.request
    assert first.tags == mine.tags
    assert differing_parts(first, mine, PLAIN) == []


@pytest.mark.parametrize("recipe", [WITH_AMOUNT, Recipe(bind=()), Recipe(bind=("default", "header:x-org"))])
def test_an_unknown_recipe_comes_first(recipe: Recipe) -> None:
    """Nothing can be said of what another recipe digested; even the same request cannot be compared."""
    assert recipe.id != PLAIN.id
    assert difference(seen(request(), recipe), seen(request())) is Difference.RECIPE
    assert difference(seen(request(Authorization=b"b"), recipe), seen(request(b"PUT"))) is Difference.RECIPE


def test_the_same_request_does_not_differ() -> None:
    """None is what lets a duplicate be replayed."""
    assert difference(seen(request()), seen(request())) is None


def test_where_only_the_full_digest_knows_no_part_is_named() -> None:
    """Two bytes per part may collide; the 16 bytes decide."""
    first = seen(request())
    other = first._replace(mark=first.recipe + bytes(16) + first.credentials)
    assert differing_parts(first, other, PLAIN) == []
    assert difference(first, other) is Difference.REQUEST


def test_its_size_is_what_a_record_has_room_for() -> None:
    """4 bytes of recipe, 16 and 16 of digest, 2 for each part in the recipe's order."""
    made = seen(request(), WITH_AMOUNT)
    assert (len(made.recipe), len(made.request), len(made.credentials)) == (4, 16, 16)
    assert WITH_AMOUNT.parts == ("method", "host", "target", "content-type", "content-encoding", "body", "x-amount")
    assert len(made.tags) == 2 * len(WITH_AMOUNT.parts)


def test_its_repr_is_short_and_shows_no_whole_digest() -> None:
    """For logs and failing assertions."""
    made = seen(request())
    assert repr(made) == f"Fingerprint({made.request[:4].hex()}… by {made.credentials[:4].hex()}…)"


# ── What may change between two tries ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changed",
    [
        {"Host": b"SHOP.Example"},
        {"Host": b"  shop.example\t"},
        {"Host": b"shop.example:80"},
        {"Host": b"Shop.Example.:8443"},
        {"Host": b"shop.example."},
        {"Content_Type": b"\tapplication/json "},
        {"Authorization": b" Bearer a "},
        {"User_Agent": b"sdk/2"},
        {"Traceparent": b"00-1"},
        {"Idempotency_Key": b"k"},
        {"Date": b"now"},
        {"Accept": b"*/*"},
        {"Content_Length": b"12"},
    ],
    ids=str,
)
def test_what_a_retry_may_change(changed: dict[str, bytes]) -> None:
    """The case, the port and the final dot of Host, white space around values, and every field that does not count."""
    assert seen(request(**changed)) == seen(request())


def test_the_case_and_order_of_fields_do_not_count() -> None:
    """An intermediary may change both."""
    first = request(Content_Encoding=b"gzip", X_Amount=b"1", X_API_Key=b"k")
    turned = first._replace(fields=[(name.upper(), value) for name, value in reversed(first.fields)])
    assert seen(turned, WITH_AMOUNT) == seen(first, WITH_AMOUNT)


@pytest.mark.parametrize(
    "changed",
    [
        {"target": b"/payments?n=%31"},
        {"target": b"//payments?n=1"},
        {"target": b"/Payments?n=1"},
        {"target": b"/payments?n=1&"},
        {"method": b"post"},
        {"Content_Type": b"Application/json"},
        {"Content_Type": b"application/json;"},
        {"body": b'{"amount": 1}'},
        {"Host": b"a.shop.example"},
        {"Host": b"shop.example.."},
        {"Host": b"10.0.3.7"},
    ],
    ids=str,
)
def test_what_it_may_not(changed: dict[str, bytes]) -> None:
    """Target and body are taken byte for byte: who asks with other bytes may mean something else."""
    assert difference(seen(request()), seen(request(**changed))) is Difference.REQUEST


COUNTED = ["Host", "Content_Type", "Content_Encoding", "X_Amount"]


@pytest.mark.parametrize("name", COUNTED)
def test_absent_empty_and_repeated_are_three_things(name: str) -> None:
    """None of them may stand for another, in any part that a field gives."""
    variants: list[bytes | list[bytes] | None] = [None, b"", [b"", b""], b"a", [b"a", b"a"], [b"a", b"b"], [b"b", b"a"]]
    made = {seen(request(**{name: each}), WITH_AMOUNT).request for each in variants}
    assert len(made) == len(variants) - (name == "Host")  # an empty Host names no host, as none does


@pytest.mark.parametrize("name", ["Authorization", "X_API_Key", "Api_Key", "Cookie"])
def test_so_it_is_with_credentials(name: str) -> None:
    """An empty credential is not none, and one sent twice is not the same as once."""
    variants: list[bytes | list[bytes] | None] = [None, b"", [b"", b""], b"a", [b"a", b"a"], [b"a", b"b"], [b"b", b"a"]]
    alone: dict[str, bytes | list[bytes] | None] = {"Authorization": None}
    made = {seen(request(**(alone | {name: each}))).credentials for each in variants}
    assert len(made) == len(variants)


# ── Credentials ───────────────────────────────────────────────────────────────────────────────────


def credentials(recipe: Recipe = PLAIN, *, certificate: bytes = b"", **sent: bytes | None) -> bytes:
    return seen(request(**{"Authorization": None, **sent}), recipe, certificate=certificate).credentials


def test_each_credential_counts_and_none_stands_for_another() -> None:
    """The same secret under another name is another credential."""
    made = [
        credentials(),
        credentials(Authorization=b"s"),
        credentials(X_API_Key=b"s"),
        credentials(Api_Key=b"s"),
        credentials(Cookie=b"s"),
        credentials(certificate=b"s"),
        credentials(Authorization=b"s", X_API_Key=b"s"),
        credentials(Authorization=b"s", Api_Key=b"s"),
        credentials(Authorization=b"s", certificate=b"s"),
        credentials(X_API_Key=b"s", Api_Key=b"s"),
    ]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("other", ["Authorization", "X_API_Key", "Api_Key", "certificate"])
def test_cookies_count_only_where_there_is_no_other_credential(other: str) -> None:
    """Analytics cookies change from try to try; they may not cost a client that shows a token its answer."""
    assert credentials(**{other: b"s"}, Cookie=b"a=1") == credentials(**{other: b"s"}, Cookie=b"a=2")
    assert credentials(Cookie=b"a=1") != credentials(Cookie=b"a=2")


def test_cookies_count_whole() -> None:
    """The gate does not know which of them is the session."""
    assert len({credentials(Cookie=c) for c in (b"a=1; b=2", b"b=2; a=1", b"a=1", b"A=1; b=2")}) == 4


def test_a_route_binds_what_it_names_instead() -> None:
    """`bind` replaces the default set; `default` in it stands for that; [] binds nothing."""
    nothing, org = Recipe(bind=()), Recipe(bind=("header:x-org",))
    assert credentials(nothing, Authorization=b"a", Cookie=b"c", certificate=b"d") == credentials(nothing)
    assert credentials(org, X_Org=b"1") != credentials(org, X_Org=b"2")
    assert credentials(org, X_Org=b"1", Authorization=b"a") == credentials(org, X_Org=b"1", certificate=b"b")
    both = Recipe(bind=("default", "header:x-org"))
    made = [
        credentials(both, Authorization=b"a", X_Org=b"1"),
        credentials(both, Authorization=b"b", X_Org=b"1"),
        credentials(both, Authorization=b"a", X_Org=b"2"),
        credentials(both, Authorization=b"a"),
        credentials(both, X_Org=b"1"),
        credentials(both, X_Org=b""),
        credentials(both, Cookie=b"c"),
    ]
    assert len(set(made)) == len(made)


def test_a_header_of_the_recipe_is_asked_for_not_bound() -> None:
    """Its change is another request (422 `key-reused`), not somebody else."""
    first, mine = (seen(request(X_Amount=each), WITH_AMOUNT) for each in (b"1", b"2"))
    assert first.credentials == mine.credentials
    assert difference(first, mine) is Difference.REQUEST


def test_a_secret_keys_all_of_it() -> None:
    """Whoever can read the store cannot try out guesses; not at a tag of two bytes either."""
    plain = fingerprint(request(), PLAIN)
    keyed = fingerprint(request(), PLAIN, secret=b"s")
    assert keyed == fingerprint(request(), PLAIN, secret=b"s")
    assert keyed.request != plain.request
    assert keyed.credentials != plain.credentials
    assert all(keyed.tags[at : at + 2] != plain.tags[at : at + 2] for at in range(0, 12, 2))
    assert keyed.recipe == plain.recipe


def test_fields_that_look_like_an_account_are_pointed_out() -> None:
    """In any case of letters; a name that only contains such a word is none."""
    sent = ["X-Tenant-Id", "Stripe-Account", "OpenAI-Organization", "x-tenant-id", "X-Org", "Tenant", "X-Accounting"]
    found = {name for name in sent if selects_account(name.encode())}
    assert found == {"X-Tenant-Id", "Stripe-Account", "OpenAI-Organization", "x-tenant-id"}


# ── Recipes ───────────────────────────────────────────────────────────────────────────────────────


def test_each_recipe_has_an_id_of_its_own() -> None:
    """What is bound, what counts besides, and in which order."""
    recipes = [
        Recipe(),
        Recipe(bind=()),
        Recipe(bind=("header:a",)),
        Recipe(bind=("default", "header:a")),
        Recipe(bind=("header:a", "default")),
        Recipe(headers=(b"a",)),
        Recipe(headers=(b"b",)),
        Recipe(headers=(b"a", b"b")),
        Recipe(headers=(b"b", b"a")),
        Recipe(bind=("header:a",), headers=(b"a",)),
    ]
    assert len({recipe.id for recipe in recipes}) == len(recipes)
    assert Recipe().id == PLAIN.id


# ── Multipart ─────────────────────────────────────────────────────────────────────────────────────

FORM = b'--%b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--%b\r\n\r\n2\r\n--%b--\r\n'


def form(boundary: bytes, *, body: bytes = FORM, written: bytes | None = None, kind: bytes = b"form-data") -> Request:
    """A multipart request; `written` is how the boundary stands in the field, where that differs."""
    shown = boundary if written is None else written
    return request(
        body=body.replace(b"%b", boundary), Content_Type=b"multipart/" + kind + b"; boundary=" + shown + b"; x=y"
    )


def test_a_boundary_chosen_anew_is_the_same_request() -> None:
    """RFC 2046 §5.1.1: it is random for every try, in the field and at every delimiter line."""
    first = seen(form(b"AaB03x"))
    assert seen(form(b"----WebKitFormBoundary7MA4YWxk")) == first
    assert seen(form(b"a b.c", written=b'"a b.c"')) == first
    assert seen(form(b'q"\\q', written=rb'"q\"\\q"')) == first
    assert seen(form(b"x" * 70)) == first


@pytest.mark.parametrize(
    "other",
    [
        form(b"B", kind=b"mixed"),
        form(b"B", body=FORM.replace(b"1", b"3")),
        form(b"B", body=FORM.replace(b"1\r\n--%b\r\n\r\n2", b"12")),
        form(b"B", body=FORM.replace(b'"a"', b'"b"')),
        form(b"B", body=b"preamble\r\n" + FORM),
        form(b"B", body=FORM + b"epilogue"),
        form(b"B", body=FORM[:-2]),
    ],
)
def test_all_else_of_a_form_counts(other: Request) -> None:
    """Its kind, each part's fields and content, how it is cut, preamble and epilogue."""
    assert difference(seen(form(b"B")), seen(other)) is Difference.REQUEST


def test_the_parameters_of_a_form_besides_the_boundary_count() -> None:
    """Only the boundary is cut out of the field."""
    plain = b"multipart/form-data; boundary=B"
    body = FORM.replace(b"%b", b"B")
    made = [seen(request(body=body, Content_Type=each)) for each in (plain, plain + b"; x=y", plain + b"; x=z")]
    assert len({each.request for each in made}) == 3
    assert differing_parts(made[0], made[1], PLAIN) == ["content-type"]


#: Bodies that some clients send and RFC 2046 does not provide for, and those that only look strange.
UNUSUAL = {
    "no parts": b"--%b--\r\n",
    "no parts, and no line end": b"--%b--",
    "no parts, after a preamble": b"preamble\r\n--%b--\r\nepilogue",
    "no body": b"",
    "no delimiter": b"1",
    "no closing delimiter": b"--%b\r\n\r\n1\r\n--%b\r\n\r\n2\r\n",
    "line feeds only": FORM.replace(b"\r\n", b"\n"),
    "line feeds only, and not closed": FORM.replace(b"\r\n", b"\n")[:-3],
    "padding": FORM.replace(b"%b\r", b"%b \t\r"),
}


@pytest.mark.parametrize("title", UNUSUAL)
def test_a_boundary_never_counts(title: str) -> None:
    """Whatever the body is: another boundary is the same request, and any other byte is another request."""
    body, mixed = UNUSUAL[title], b"mixed"
    first = seen(form(b"AaB03x", body=body))
    for boundary in (b"----WebKitFormBoundary7MA4YWxk", b"x" * 70, b"y" * 71, b"=_B"):
        assert seen(form(boundary, body=body)) == first
    assert seen(form(b"a b;c", body=body, written=b'"a b;c"')) == first
    others = {body + b"x", b"x" + body, body + b"\r\n", body.replace(b"1", b"3"), b"--%b\r\n\r\n3\r\n--%b--"} - {body}
    made = {seen(form(b"B", body=other)).request for other in others}
    made |= {seen(form(b"B", body=body, kind=mixed)).request, first.request}
    assert len(made) == len(others) + 2
    assert seen(request(body=body, Content_Type=b"text/plain")).request not in made


@pytest.mark.parametrize(
    ("title", "kind", "body"),
    [
        ("not a form", b"application/json; boundary=%b", FORM),
        ("a type that begins alike", b"multiparts/form-data; boundary=%b", FORM),
        ("two boundaries", b"multipart/form-data; boundary=%b; boundary=%b", FORM),
        ("an unclosed quotation", b'multipart/form-data; boundary="%b', FORM),
        ("an empty boundary", b'multipart/form-data; boundary=""', FORM.replace(b"%b", b"")),
        ("a parameter that ends alike", b"multipart/form-data; xboundary=%b", FORM),
        ("no boundary", b"multipart/form-data", FORM),
    ],
)
def test_without_one_boundary_every_byte_counts(title: str, kind: bytes, body: bytes) -> None:
    """Such a body is digested raw, and the same bytes are still the same request."""

    def made(boundary: bytes) -> Fingerprint:
        return seen(request(body=body.replace(b"%b", boundary), Content_Type=kind.replace(b"%b", boundary)))

    assert made(b"B") == made(b"B")
    if b"%b" in body:
        assert difference(made(b"B"), made(b"C")) is Difference.REQUEST
    parts = [b"POST", b"\x01shop.example", b"/payments?n=1", b"\x01" + kind.replace(b"%b", b"B"), b"\x00"]
    raw = body_digest(b"raw", [body.replace(b"%b", b"B")])
    assert made(b"B").request == digest(Purpose.REQUEST, [*parts, raw])[:16]


def test_two_content_types_are_no_form() -> None:
    """Which of them the service reads, nobody knows."""
    types = [[b"multipart/form-data; boundary=" + each, b"text/plain"] for each in (b"B", b"C")]
    bodies = [FORM.replace(b"%b", each) for each in (b"B", b"C")]
    one, other = (seen(request(body=body, Content_Type=kind)) for body, kind in zip(bodies, types, strict=True))
    assert differing_parts(one, other, PLAIN) == ["content-type", "body"]


# ── No two requests share a fingerprint ───────────────────────────────────────────────────────────

hosts = st.sampled_from([None, b"", b"a", b"A", b"ab", b"a:1", b"10.0.0.1:80", b"[::1]"])
letters = st.text("aA/;\x00", max_size=3).map(str.encode)
kinds = st.sampled_from([None, b"", b"a", b"A", b" a", b"a;"])
Parts = tuple[bytes, bytes | None, bytes, bytes | None, bytes]
parts = st.tuples(letters, hosts, letters, kinds, letters)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Parts, Parts]:
    """Two that differ in little or nothing: each part of the second is the first's, or drawn anew."""
    one, fresh = draw(parts), draw(parts)
    keep = draw(st.lists(st.booleans(), min_size=5, max_size=5))
    method, host, target, kind, body = (a if kept else b for a, b, kept in zip(one, fresh, keep, strict=True))
    return one, (method, host, target, kind, body)


def made_of(parts: Parts) -> Fingerprint:
    method, host, target, kind, body = parts
    return seen(request(method, target, body, Host=host, Content_Type=kind))


def meant(parts: Parts) -> Parts:
    method, host, target, kind, body = parts
    name = (host or b"").lower().partition(b":")[0]
    named = None if name in (b"", b"10.0.0.1", b"[") else name
    return method, named, target, kind and kind.strip(), body


@given(neighbours())
def test_fingerprints_are_equal_just_when_requests_are(pair: tuple[Parts, Parts]) -> None:
    """(method, host, target, content type, body): distinct ones never share a digest, equal ones always do."""
    one, other = pair
    same = meant(one) == meant(other)
    assert (made_of(one).request == made_of(other).request) == same
    assert (difference(made_of(one), made_of(other)) is None) == same


@given(parts)
def test_the_parts_named_are_the_parts_that_differ(one: Parts) -> None:
    """Against the sample request: never a part that is equal, never one left out."""
    sample: Parts = (b"a", b"a", b"a", b"a", b"a")
    names = ("method", "host", "target", "content-type", "body")
    expected = [name for name, x, y in zip(names, meant(one), sample, strict=True) if x != y]
    assert differing_parts(made_of(sample), made_of(one), PLAIN) == expected


@given(st.lists(st.text("ab", max_size=3).map(str.encode), max_size=4), st.data())
def test_moving_a_byte_from_one_part_to_the_next_changes_the_digest(row: list[bytes], data: st.DataObject) -> None:
    """Each part stands behind its length, so the encoding is injective."""
    other = data.draw(st.lists(st.text("ab", max_size=3).map(str.encode), max_size=4))
    for purpose in (Purpose.REQUEST, Purpose.NAME):
        assert (digest(purpose, row) == digest(purpose, other)) == (row == other)
    assert (body_digest(b"raw", row) == body_digest(b"raw", other)) == (row == other)
    for at in range(len(row) - 1):
        if row[at]:
            moved = [*row[:at], row[at][:-1], row[at][-1:] + row[at + 1], *row[at + 2 :]]
            assert digest(Purpose.REQUEST, moved) != digest(Purpose.REQUEST, row)
            assert body_digest(b"multipart", moved) != body_digest(b"multipart", row)


def test_a_digest_for_one_purpose_means_nothing_for_another() -> None:
    """Personalisation (RFC 7693 §2.8); and a secret changes every one of them."""
    made = [digest(purpose, (b"a",), secret) for purpose in Purpose for secret in (b"", b"s", b"t")]
    assert len(set(made)) == len(made) == 3 * len(Purpose)
    assert {len(each) for each in made} == {32}
    assert body_digest(b"raw", [b"a"]) != body_digest(b"multipart", [b"a"])


def test_a_tag_is_its_own_parts() -> None:
    """The same value in two parts has two tags, or a swap could be read off."""
    assert tag(b"host", b"a") != tag(b"target", b"a")
    assert tag(b"host", b"a") == tag(b"host", b"a", b"")
    assert tag(b"host", b"a", b"s") != tag(b"host", b"a")
    assert len(tag(b"host", b"a")) == 2


def test_long_fields_are_not_remembered() -> None:
    """What clients repeat is read once; whoever sends ever new types, hosts and targets of 16 KiB fills no memory."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            long = b"%d" % number * 4000
            fields = [
                (b"Host", long),
                (b"Content-Type", b"text/" + long),
                (b"Connection", long),
                (b"Cookie", long + b"=1"),
            ]
            request = Request(b"POST", b"/" + long, fields, b"x")
            assert fingerprint(request, Recipe()) == fingerprint(request, Recipe())
            is_host(long)
            named_by_connection(fields)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 << 20


# ── Left out ──────────────────────────────────────────────────────────────────────────────────────

SIGNED = Recipe(ignore=("form:sign", "query:sig", "query:t s"))
URLENCODED = b"application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("target", "same"),
    [
        (
            "/p?a=1&sig=x",
            ["/p?a=1&sig=y", "/p?sig=y&a=1", "/p?a=1", "/p?a=1&%73ig=x", "/p?a=1&sig", "/p?sig&a=1&sig=z"],
        ),
        ("/p?sig=x", ["/p", "/p?sig=y", "/p?t+s=1&sig=", "/p?t%20s=1"]),
        ("/p?a=1&b=2&sig=x", ["/p?a=1&t+s=5&b=2"]),
    ],
)
def test_parameters_that_are_left_out_do_not_count(target: str, same: list[str]) -> None:
    """Whatever they say, wherever they stand, and whether they are there."""
    for other in same:
        assert seen(request(target=target.encode()), SIGNED) == seen(request(target=other.encode()), SIGNED), other
    assert seen(request(target=target.encode())) != seen(request(target=same[0].encode()))


@pytest.mark.parametrize(
    "other", ["/p?a=2&sig=x", "/p?a=1&b=1&sig=x", "/p?sig=x", "/q?a=1&sig=x", "/p?a=1&SIG=x", "/p?a=1&sig2=x",
              "/p?a=1&sig%=x", "/p?a=1;sig=x", "/p?a=1&sig=x;b=1", "/p?a=%31&sig=x", "/p?&a=1", "/p/sig=x?a=1",
              "/p?x=sig&a=1"],
)  # fmt: skip
def test_all_other_parameters_count(other: str) -> None:
    """Byte for byte and in their order; and a name that only looks alike is another."""
    first, mine = (seen(request(target=each), SIGNED) for each in (b"/p?a=1&sig=x", other.encode()))
    assert differing_parts(first, mine, SIGNED) == ["target"]


def form_of(*fields: tuple[bytes, bytes], boundary: bytes = b"B") -> bytes:
    parts = (b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary, *each) for each in fields)
    return b"".join(parts) + b"--%b--\r\n" % boundary


def test_fields_of_a_form_that_are_left_out_do_not_count() -> None:
    """Urlencoded and multipart alike, and all other fields do."""

    def of(body: bytes, kind: bytes = URLENCODED, recipe: Recipe = SIGNED, **changed: bytes) -> Fingerprint:
        return seen(request(body=body, Content_Type=kind, **changed), recipe)

    first = of(b"a=1&sign=x")
    assert first == of(b"sign=y&a=1") == of(b"a=1") == of(b"a=1&%73ign=+")
    assert of(b"sign=x") == of(b"sign=y") != of(b"")
    for other in (b"a=2&sign=x", b"a=1&sign2=x", b"a=1&", b"b=1&a=1"):
        assert differing_parts(first, of(other), SIGNED) == ["body"], other
    assert of(b"a=1&sign=x", URLENCODED + b"; charset=utf-8") == of(b"a=1&sign=y", URLENCODED + b"; charset=utf-8")
    kind = b"multipart/form-data; boundary=%b"
    several = [
        of(form_of((b"a", b"1"), (b"sign", sign), boundary=boundary), kind % boundary)
        for sign, boundary in ((b"x", b"B"), (b"y", b"B"), (b"x", b"C"))
    ]
    assert several[0] == several[1] == several[2] == of(form_of((b"a", b"1")), kind % b"B")
    assert of(form_of((b"a", b"2"), (b"sign", b"x")), kind % b"B") != several[0]
    assert of(form_of((b"sign", b"x")), kind % b"B") == of(form_of((b"sign", b"y")), kind % b"B")


@pytest.mark.parametrize(
    ("title", "kind", "body", "changed"),
    [
        ("compressed", URLENCODED, b"a=1&sign=x", {"Content_Encoding": b"gzip"}),
        ("no form", b"text/plain", b"a=1&sign=x", {}),
        ("a semicolon in a value", URLENCODED, b"a=1&sign=1;b=x", {}),
        ("a type that begins alike", URLENCODED + b"x", b"a=1&sign=x", {}),
        ("too many fields", URLENCODED, b"a=1&" * 10_001 + b"sign=x", {}),
        (
            "a name in the content",
            b"multipart/form-data; boundary=B",
            b"--B\r\n\r\n" + form_of((b"sign", b"x"))[5:],
            {},
        ),
        (
            "a file",
            b"multipart/form-data; boundary=B",
            form_of((b"sign", b"x")).replace(b'"sign"', b'"sign"; filename=f'),
            {},
        ),
        (
            "two names",
            b"multipart/form-data; boundary=B",
            form_of((b"sign", b"x")).replace(b'"sign"', b'"sign"; name=b'),
            {},
        ),
        ("not closed", b"multipart/form-data; boundary=B", form_of((b"sign", b"x")).replace(b"B--", b"B-"), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_read_as_a_form_counts_whole(
    title: str, kind: bytes, body: bytes, changed: dict[str, bytes]
) -> None:
    """Another value in it is another request: nothing is left out of what may mean something else to the service."""
    bodies = [body, body.replace(b"x", b"y")]
    first, mine = (seen(request(body=each, Content_Type=kind, **changed), SIGNED) for each in bodies)
    assert differing_parts(first, mine, SIGNED) == ["body"]


def test_a_form_less_its_fields_is_no_raw_body() -> None:
    """And JSON is read as before beside what is left out of forms."""
    both = Recipe(body="canonical-json", ignore=("/at", "form:sign", "query:sig"))
    assert (both.pointers, both.parameters, both.form_fields) == ((("at",),), {b"sig"}, {b"sign"})
    one, other = (request(target=b"/?sig=" + n, body=b'{"at": %b, "a": 1}' % n) for n in (b"1", b"2"))
    assert seen(one, both) == seen(other, both)
    assert seen(one, both) != seen(request(target=b"/?sig=1", body=b'{"at":1,"a":2}'), both)
    assert len({Recipe(ignore=each).id for each in ((), ("query:a",), ("form:a",), ("query:a", "form:a"))}) == 4


# ── Host, and the list of cookies ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"Shop.Example", b"shop.example"),
        (b"shop.example:443", b"shop.example"),
        (b"shop.example:", b"shop.example"),
        (b"shop.example.:80", b"shop.example"),
        (b"tenant.localhost:80", b"tenant.localhost"),
        (b"10.0.3.7.nip.io", b"10.0.3.7.nip.io"),
        (b"a10.0.3.7", b"a10.0.3.7"),
        (b"10.0.3", b"10.0.3"),
        (b"10.0.3.256", b"10.0.3.256"),
        (b"010.0.3.7", b"010.0.3.7"),
        (b"1.2.3.4.5", b"1.2.3.4.5"),
        (b"xn--lden-ppa.example", b"xn--lden-ppa.example"),
        (b"10.0.3.7", b""),
        (b"255.255.255.255:65535", b""),
        (b"10.0.3.7.:80", b""),
        (b"[::1]", b""),
        (b"[2001:DB8::7]:8080", b""),
        (b"[::ffff:10.0.0.1]:80", b""),
        (b"LOCALHOST:8080", b""),
        (b"localhost.", b""),
        (b"", b""),
        (b"x" * 300 + b":80", b"x" * 300),
    ],
)
def test_the_name_in_a_host(host: bytes, name: bytes) -> None:
    """An address is exactly four decimal octets, what brackets hold, or localhost: whatever else looks like one may be
    a tenant's name."""
    assert site(host) == name
    assert beyond_site(host.decode()) == (host if host != name else b"")


def test_each_cookie_of_the_list_is_left_out_and_no_other() -> None:
    """By its exact name, or by its prefix with anything behind it; in any place, any field, any spacing."""
    for listed in INFRASTRUCTURE:
        name = listed.encode().replace(b"*", b"x1")
        for sent in (b"%b=1; s=1", b"s=1;%b=2", b"s=1; %b=", b"s=1; %b = 3; %b=4"):
            assert credentials(Cookie=sent.replace(b"%b", name)) == credentials(Cookie=b"s=1"), listed
        assert credentials(Cookie=name + b"=1") == credentials(), listed
        for other in (name.swapcase() + b"=1", b"x" + name + b"=1", name, b"s=" + name + b"=1"):
            assert credentials(Cookie=b"s=1; " + other) != credentials(Cookie=b"s=1"), listed
        if not listed.endswith("*"):
            assert credentials(Cookie=b"s=1; " + name + b"-=1") != credentials(Cookie=b"s=1"), listed
    assert credentials(Cookie=b"s=1; " + b"BIGipServer" + b"x" * 500 + b"=1") == credentials(Cookie=b"s=1")


def test_a_route_lists_cookies_of_its_own() -> None:
    """Names and prefixes, besides those of the list; and only for the default set."""
    mine = Recipe(ignore_cookies=("lb", "lb_*"))
    for cookie in (b"s=1; lb=1", b"lb_a=1; s=1; AWSALB=2"):
        assert credentials(mine, Cookie=cookie) == credentials(mine, Cookie=b"s=1")
        assert credentials(Cookie=cookie) != credentials(Cookie=b"s=1")
    assert credentials(mine, Cookie=b"s=1; lbs=1") != credentials(mine, Cookie=b"s=1")
    field = Recipe(bind=("header:cookie",))
    assert credentials(field, Cookie=b"AWSALB=1") != credentials(field, Cookie=b"AWSALB=2")

"""Equal requests share a fingerprint, distinct ones never do; under every way in which bodies may count.

The oracle is told nothing of digests: it says what a request means, as a value, and two requests are the same where
their meanings are.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.fields import fields_of
from gateway.core.fingerprint import (
    CANONICAL_JSON,
    RAW,
    Fingerprint,
    Recipe,
    difference,
    fingerprint,
)
from gateway.core.key import Key, record_name
from gateway.core.message import Field, Request
from gateway.core.multipart import multipart
from gateway.core.policy import Policy
from gateway.core.problem import Refusal
from gateway.core.scope import Proven, shown

#: How many times as many examples the long form tries.
TIMES = 20 if os.environ.get("ONCEGATE_FAULTS") == "long" else 1

# ── Requests, each thing spelled in several ways ──────────────────────────────────────────────────

SCALARS = st.sampled_from(["0", "-0", "1", "1.0", "10e-1", "2", "9007199254740993", "1e400", '"1"', '"a"', '"\\u0061"',
                           '"\\ud800"', "true", "null", '""'])  # fmt: skip
NAMES = st.sampled_from(['"a"', '"\\u0061"', '"b"', '"at"'])
SPACE = st.sampled_from(["", " ", "\n"])


def _array(parts: tuple[str, list[str]]) -> str:
    return "[" + f",{parts[0]}".join(parts[1]) + "]"


def _object(parts: tuple[str, list[tuple[str, str]]]) -> str:
    space, pairs = parts
    return "{" + ",".join(f"{space}{name}{space}:{value}" for name, value in pairs) + "}"


JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.tuples(SPACE, st.lists(inner, max_size=2)).map(_array)
        | st.tuples(SPACE, st.lists(st.tuples(NAMES, inner), max_size=3)).map(_object)
    ),
    max_leaves=4,
)
FORMS = st.tuples(st.sampled_from(["B", "C"]), st.lists(st.sampled_from(["x", "x\r\n", "--B", "1"]), max_size=3))
BODIES = (
    st.tuples(SPACE, JSON).map(lambda parts: (parts[0] + parts[1]).encode())
    | st.sampled_from(
        [b"", b"a=1", b"a=2", b"b=1&a=1", b"%61=2&b=1", b"b=1", b"{", b'{"a":1', b'\xef\xbb\xbf"a"', b'"a"']
    )
    | FORMS.map(
        lambda form: "".join([f"--{form[0]}\r\n\r\n{part}\r\n" for part in form[1]] + [f"--{form[0]}--\r\n"]).encode()
    )
)
TYPES = st.sampled_from(
    [
        None,
        "application/json",
        "application/vnd.a+json; charset=UTF-8",
        "application/json;charset=x",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/mixed; boundary=B",
        "multipart/mixed; boundary=C",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    hosts = [b"a", b"A", b"b", b"a:1", b"A.", b"b.:2", b"10.0.0.1", b"[::1]:1", b"localhost:2", b"10.0.0.1.b"]
    fields: list[Field] = [(b"Host", draw(st.sampled_from(hosts)))]
    if (kind := draw(TYPES)) is not None:
        fields.append((b"Content-Type", kind.encode()))
    fields += draw(st.lists(st.sampled_from([(b"X-A", b"1"), (b"x-a", b"2"), (b"Content-Encoding", b"gzip"),
                                             (b"Other", b"1"), (b"SOAPAction", b"a"),
                                             (b"X-Amz-Target", b"a")]), max_size=2))  # fmt: skip
    return Request(
        draw(st.sampled_from([b"POST", b"PATCH"])),
        draw(st.sampled_from([b"/", b"/?", b"/?q=1", b"/?q=2&a=1", b"/?a=1&q", b"/?a=1"])),
        fields,
        draw(BODIES),
    )


RECIPES = st.builds(
    Recipe,
    bind=st.just(()),
    headers=st.sampled_from([(), (b"x-a",), (b"other", b"x-a")]),
    body=st.sampled_from([RAW, CANONICAL_JSON]),
    ignore=st.sampled_from([(), ("/a",), ("/0", "/1"), ("/a/b", "/at"), ("query:q",), ("/a", "form:a", "query:q")]),
    host=st.booleans(),
    beyond_site=st.sampled_from([b"", b"a:1"]),
    ignore_cookies=st.sampled_from([(), ("/a",)]),
)

# ── The oracle ────────────────────────────────────────────────────────────────────────────────────


class NoForm(Exception):
    pass


def read(text: str) -> Any:
    """JSON as a value that only an equal document is equal to. (Numbers are decimals; True is not 1.)"""

    def pairs(found: list[tuple[str, Any]]) -> Any:
        if len({name for name, _ in found}) != len(found):
            raise NoForm
        return dict(found)

    def number(written: str) -> Decimal:
        if not float("-inf") < float(written) < float("inf") or Decimal(repr(float(written))) != Decimal(written):
            raise NoForm
        return Decimal(written)

    return json.loads(text, object_pairs_hook=pairs, parse_int=number, parse_float=number)


def without(value: Any, pointers: Sequence[str]) -> Any:
    """Rebuilt, less each place whose path is one of `pointers`."""

    def rebuilt(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            kept = {
                name: rebuilt(each, f"{path}/{name}")
                for name, each in value.items()
                if f"{path}/{name}" not in pointers
            }
            return ("object", frozenset(kept.items()))
        if isinstance(value, list):
            return (
                "array",
                tuple(rebuilt(each, f"{path}/{n}") for n, each in enumerate(value) if f"{path}/{n}" not in pointers),
            )
        if isinstance(value, str):
            value.encode()
        return (type(value).__name__, value)

    return rebuilt(value, "")


def meaning(request: Request, recipe: Recipe) -> Any:
    """What a request asks for."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in request.fields:
        found.setdefault(name.lower(), []).append(value)
    kind = found.get(b"content-type", [None])[0]
    body: Any = ("raw", request.body)
    if recipe.body == CANONICAL_JSON and b"content-encoding" not in found and (
        kind is None or (b"json" in kind and b"charset=x" not in kind)
    ):  # fmt: skip
        try:
            text = request.body.removeprefix(b"\xef\xbb\xbf").decode()
            body = ("json", without(read(text), recipe.ignore))
        except (ValueError, NoForm):
            pass
    if kind == b"application/x-www-form-urlencoded" and "form:a" in recipe.ignore and b"content-encoding" not in found:
        body = ("form", tuple(each for each in request.body.split(b"&") if each[:2] != b"a=" and each[:4] != b"%61="))
    if kind is not None and kind.startswith(b"multipart"):
        parts, *form = by_regular_expression(request.body, kind[-1:])
        kind, body = b"multipart/mixed", ("multipart", tuple(parts), *form)
    headers = tuple(tuple(found.get(name, ())) for name in recipe.headers)
    codings = tuple(found.get(b"content-encoding", ()))
    operation = [found.get(name) for name in (b"soapaction", b"x-amz-target")]
    method = request.method, *(None if each is None else tuple(each) for each in operation)
    host, target = named(found[b"host"][0], recipe), asked_for(request.target, recipe)
    return method, host, target, kind, codings, body, headers


def asked_for(target: bytes, recipe: Recipe) -> Any:
    """The path and the parameters that count; None without any."""
    path, mark, query = target.partition(b"?")
    pairs = [pair for pair in query.split(b"&") if "query:q" not in recipe.ignore or pair.partition(b"=")[0] != b"q"]
    return path, tuple(pairs) if pairs and mark else None


def named(host: bytes, recipe: Recipe) -> bytes:
    """Whom a host names: nobody in particular, where that is an address, or where names do not count."""
    name = host.lower().partition(b":")[0].rstrip(b".")
    return name if recipe.host and name in (b"a", b"b", b"10.0.0.1.b") else b""


def by_regular_expression(body: bytes, boundary: bytes) -> tuple[list[bytes], bytes, bool]:
    """The same cut, said in two expressions (and ten times as slow): the segments, how lines end, and whether the last
    delimiter closes the body."""
    delimiter = rb"--" + re.escape(boundary) + rb"(--)?[ \t]*"
    first = re.search(rb"(\A|\r?\n)" + delimiter + rb"(?=(\r?\n|\Z))", body)
    bare = first is not None and b"\n" in (first[1], first[3])
    end = rb"\r?\n" if bare else rb"\r\n"
    segments: list[bytes] = []
    position = 0
    for found in re.finditer(rb"(?:\A|%b)%b(?=%b|\Z)" % (rb"\n" if bare else rb"\r\n", delimiter, end), body):
        segments.append(body[position : found.start()])
        position = found.end()
        if found[1]:
            return [*segments, body[position:]], b"\n" if bare else b"\r\n", True
    return [*segments, body[position:]], b"\n" if bare else b"\r\n", False


#: How a client may spell a body otherwise on its next try; some of these say something else.
RESPELLINGS = [(b"", b""), (b'"a"', b'"\\u0061"'), (b"1", b"1.0"), (b"1.0", b"1"), (b"1", b"2"), (b",", b", "),
               (b":", b" :"), (b"x", b"y"), (b"--B", b"--C"), (b'"a":1', b'"a":2'), (b'"at"', b'"b"')]  # fmt: skip


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Request, Request]:
    """Two requests that differ in one thing, or in its spelling, or in all; and again as often in nothing."""
    one, other = draw(requests()), draw(requests())
    match draw(st.sampled_from(["spelling", "spelling", "body", "field", "target", "method", "all"])):
        case "spelling":
            change = draw(st.sampled_from(RESPELLINGS))
            fields = [(name, value.replace(b"boundary=B", b"boundary=C")) for name, value in one.fields]
            turned = fields if change[1] == b"--C" else one.fields
            return one, one._replace(body=one.body.replace(*change), fields=turned)
        case "body":
            return one, one._replace(body=other.body)
        case "field":
            return one, one._replace(fields=other.fields)
        case "target":
            return one, one._replace(target=other.target)
        case "method":
            return one, one._replace(method=other.method)
    return one, other


@settings(max_examples=600 * TIMES)
@given(pairs(), RECIPES)
def test_two_requests_share_a_fingerprint_if_they_mean_the_same(two: tuple[Request, Request], recipe: Recipe) -> None:
    """And only then: of any two requests, under any recipe."""
    one, other = two
    prints = fingerprint(one, recipe), fingerprint(other, recipe)
    assert (prints[0] == prints[1]) == (meaning(one, recipe) == meaning(other, recipe))


#: Bodies of which some are one in one way of counting and not in another.
SPELLED = [b'{"a":1}', b'{"a": 1.0}', b'{"a":1,"b":{}}', b'{"a":1,"a":1}', b'{"a":9007199254740993}',
           b'{"a":9007199254740992}', b"--B\r\n\r\n1\r\n--B--", b"--C\r\n\r\n1\r\n--C--", b"a"]  # fmt: skip
DECLARED = [None, "application/json", "application/json;charset=x", "text/plain", "multipart/mixed; boundary=B",
            "multipart/mixed; boundary=C"]  # fmt: skip


@pytest.mark.parametrize(
    "recipe", [Recipe(()), Recipe((), body=CANONICAL_JSON), Recipe((), body=CANONICAL_JSON, ignore=("/b",))]
)
def test_each_pair_of_bodies_types_and_codings(recipe: Recipe) -> None:
    """All pairs of these, not a choice of them."""
    found: dict[Fingerprint, set[Any]] = {}
    meanings: dict[Any, set[Fingerprint]] = {}
    for body, kind, coded in itertools.product(SPELLED, DECLARED, (False, True)):
        fields = [(b"Host", b"a")] + [(b"Content-Type", (kind or "").encode())] * (kind is not None)
        request = Request(b"POST", b"/", fields + [(b"Content-Encoding", b"gzip")] * coded, body)
        made, meant = fingerprint(request, recipe), meaning(request, recipe)
        found.setdefault(made, set()).add(meant)
        meanings.setdefault(meant, set()).add(made)
    assert {len(each) for each in (*found.values(), *meanings.values())} == {1}
    assert len(found) < len(SPELLED) * len(DECLARED) * 2  # some are one


@given(requests(), RECIPES, RECIPES)
def test_two_recipes_never_share_one(request: Request, one: Recipe, other: Recipe) -> None:
    """What was digested in one way is not compared with what was digested in another."""
    assert (fingerprint(request, one).recipe == fingerprint(request, other).recipe) == (one == other)


@settings(max_examples=200 * TIMES)
@given(
    st.lists(st.sampled_from([b"--B", b"\r\n", b"--", b"-", b" ", b"x", b"\n", b"B", b"\t"]), max_size=14).map(
        b"".join
    ),
    st.sampled_from([b"B", b"-", b"--", b"B-", b"\r\n--B"]),
)
def test_a_form_is_cut_where_its_grammar_says(body: bytes, boundary: bytes) -> None:
    """Against the regular expression of RFC 2046's delimiter lines."""
    found = multipart([b'multipart/mixed; boundary="%b"' % boundary], body)
    segments, line_end, closed = by_regular_expression(body, boundary)
    shape = (b"(" if line_end == b"\r\n" else b"[") + b"p" * (len(segments) - 1 - closed) + (b")" if closed else b"!")
    assert found is not None
    assert found.segments == (segments if shape.startswith(b"(") and closed else [shape, *segments])


# ── Whose answer ──────────────────────────────────────────────────────────────────────────────────

WHO = st.sampled_from([b"", b"1", b"2", b"a=1"])
SOURCES = ["header:x-tenant", "header:authorization", "cookie:shop", "cookie:till", "jwt:sub", "jwt:org", "client_cert"]
#: Tokens, and what they prove; each claim of every kind that says who.
PROVEN = {
    b"t1": Proven("https://a", {"sub": "1", "org": "1"}),
    b"t1 anew": Proven("https://a", {"org": "1", "sub": "1"}),
    b"a number": Proven("https://a", {"sub": 1, "org": "1"}),
    b"another issuer": Proven("https://b", {"sub": "1", "org": "1"}),
    b"no org": Proven("https://a", {"sub": "1"}),
    b"swapped": Proven("https://a", {"sub": "org", "org": "sub"}),
    b"run together": Proven("https://as", {"sub": "1"}),
}


@st.composite
def askers(draw: st.DrawFn) -> tuple[list[Field], bytes]:
    """Somebody: his fields, and his certificate."""
    fields: list[Field] = [(b"Host", b"a")]
    fields += [(b"X-Tenant", tenant) for tenant in draw(st.lists(WHO, max_size=2))]
    if (token := draw(st.sampled_from([None, *PROVEN]))) is not None:
        fields.append((b"Authorization", b"Bearer " + token))
    if cookie := draw(st.sampled_from([None, b"shop=1", b"shop=2; till=1", b"till=1;shop=2", b"shop=1; shop=2"])):
        fields.append((b"Cookie", cookie))
    return fields, draw(st.sampled_from([b"", b"c" * 32, b"d" * 32]))


Asker = tuple[list[Field], bytes]


def says(asker: Asker, source: str) -> Any:
    """What an asker shows for one source; None where it shows nothing that can be used."""
    fields, certificate = asker
    kind, _, name = source.partition(":")
    found = [
        value.decode() for field, value in fields if field.decode().lower() == (name if kind == "header" else "cookie")
    ]
    if kind == "client_cert":
        return certificate or None
    if kind == "cookie":
        found = [
            value
            for field in found
            for key, _, value in (pair.strip().partition("=") for pair in field.split(";"))
            if key == name
        ]
    if kind == "jwt":
        tokens = [PROVEN[value.removeprefix(b"Bearer ")] for field, value in fields if field == b"Authorization"]
        claims = [(token.issuer, type(token.claims.get(name)), token.claims.get(name)) for token in tokens]
        return claims[0] if claims and claims[0][2] is not None else None
    return found[0] if len(found) == 1 and found[0] else None


@pytest.mark.parametrize("source", ["jwt:sub", "jwt:org"])
def test_no_two_tokens_share_a_scope_that_prove_different_people(source: str) -> None:
    """All pairs: another issuer's, a number for text, names run together; and a token made anew is the same person."""
    scopes: dict[Any, set[Any]] = {}
    for token in PROVEN:
        fields = [(b"Authorization", b"Bearer " + token)]
        part = shown((source.encode(),), fields_of(fields), b"", PROVEN.__getitem__)
        scopes.setdefault(says((fields, b""), source), set()).add(part if isinstance(part, tuple) else None)
    assert {len(parts) for parts in scopes.values()} == {1}
    assert len({next(iter(parts)) for parts in scopes.values()}) == len(scopes) > 2


@st.composite
def two_askers(draw: st.DrawFn) -> tuple[Asker, Asker]:
    """Two who differ in one thing that they show, or in all."""
    one, other = draw(askers()), draw(askers())
    what = draw(st.sampled_from([b"Authorization", b"Cookie", b"X-Tenant", b"certificate", b"all"]))
    if what == b"all":
        return one, other
    if what == b"certificate":
        return one, (one[0], other[1])
    kept = [field for field in one[0] if field[0] != what]
    return one, (kept + [field for field in other[0] if field[0] == what], one[1])


@settings(max_examples=600 * TIMES)
@given(
    two_askers(),
    st.lists(st.sampled_from(SOURCES), unique=True, max_size=2).map(lambda found: tuple(sorted(found))),
    st.lists(st.sampled_from(["default", "header:x-tenant"]), unique=True, max_size=2).map(tuple),
    st.sampled_from([(b"s", b"s", b"s"), (b"s", b"s", b"t"), (b"s", b"t", b"s"), (b"t", b"s", b"s")]),
)
def test_no_answer_crosses(
    two: tuple[Asker, Asker], scope: tuple[str, ...], bind: tuple[str, ...], there: tuple[bytes, ...]
) -> None:
    """An answer is replayed where service, namespace, key, everything that the scope names and everything that is
    bound are the same; never otherwise. And an asker that lacks a part of the scope is refused."""
    (one, other), here = two, (b"s", b"s", b"s")
    recipe = Recipe(bind)
    policy = Policy(scope=tuple(each.encode() for each in scope))
    named = []
    for (fields, certificate), (service, namespace, key) in ((one, here), (other, there)):
        found = shown(policy.scope, fields_of(fields), certificate, PROVEN.__getitem__)
        whole = all(says((fields, certificate), source) is not None for source in scope)
        assert isinstance(found, Refusal) != whole
        if isinstance(found, Refusal):
            return
        request = Request(b"POST", b"/", fields, b"")
        named.append(
            (record_name(service, namespace, found, Key(key)), fingerprint(request, recipe, certificate=certificate))
        )
    (name, first), (again, second) = named
    assert (name == again) == (here == there and all(says(one, each) == says(other, each) for each in scope))
    if name == again:
        assert (difference(first, second) is None) == (bound(one, bind) == bound(other, bind))


def bound(asker: Asker, bind: tuple[str, ...]) -> Any:
    """The credentials that count, in the order in which a route lists them."""
    fields, certificate = asker

    def every(name: bytes) -> list[bytes]:
        return [value for field, value in fields if field.lower() == name]

    return [
        [every(b"authorization"), certificate, every(b"cookie") * (not every(b"authorization") and not certificate)]
        if source == "default"
        else every(b"x-tenant")
        for source in bind
    ]

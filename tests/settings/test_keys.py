"""What a file says of keys: what is read of it, and what is said of what cannot be."""

from __future__ import annotations

import time

import pytest

from gateway.core.keyed import Derive, Part
from gateway.core.keyform import ANY, SF_STRING, ULID, UUID, WeakKeys
from gateway.core.policy import DAY, MINUTE, Missing, Policy, Route
from gateway.core.sent import SendKey, SentAs
from gateway.core.source import Place, Source
from gateway.settings import Faults, load_text

WHOLE = "upstreams: {app: 'http://127.0.0.1:9000'}\nroutes:\n  - name: all\n    upstream: app\n"


def route(added: str, top: str = "") -> Route:
    return load_text(f"{top}{WHOLE}    {added}\n", name="gate.yaml", environ={}).routes.routes[0]


def policy(added: str) -> Policy:
    return route(added).policy


def fault(added: str) -> tuple[str, str]:
    with pytest.raises(Faults) as raised:
        policy(added)
    (found,) = raised.value.faults
    assert found.line == 5
    return found.path.removeprefix("routes[0]."), found.message


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
    text = WHOLE.replace("'http://127.0.0.1:9000'", "{url: 'http://127.0.0.1:9000', timeout: 30m}")
    found = load_text(text + "    missing: derive\n", name="gate.yaml", environ={}).routes.routes[0]
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


SOURCES = "header:NAME, body:/POINTER, form:FIELD, query:NAME, path:N or cookie:NAME"
FAULTS = [
    ("key: {from: bdy:/id}", "key.from", f"no source is called `bdy`; use {SOURCES}"),
    ("key: {from: X-Id}", "key.from", "where X-Id stands is missing; use header:X-Id"),
    ("key: {from: 'body:id'}", "key.from", "a JSON pointer begins with / and has ~ only as ~0 and ~1; use body:/id"),
    (
        "key: {from: 'body:/a~2'}",
        "key.from",
        "a JSON pointer begins with / and has ~ only as ~0 and ~1; use body:/order/id",
    ),
    ("key: {from: 'body:'}", "key.from", "what is read there is missing, or too long; use body:/order/id"),
    ("key: {from: path:0}", "key.from", "segments of a path are counted from 1, up to 99; use path:2"),
    ("key: {from: 'query: a'}", "key.from", "no space belongs behind the colon; use query:a"),
    ("key: {from: 'cookie:a;b'}", "key.from", "`a;b` cannot be the name of a cookie; use cookie:checkout"),
    (
        "key: {from: 'header:TE'}",
        "key.from",
        "TE belongs to one connection and says nothing of the request; leave it out",
    ),
    (
        "key: {from: jwt:sub}",
        "key.from",
        f"the source `jwt` is known, but not built yet in this version; use {SOURCES}",
    ),
    ("key: {from: []}", "key.from", "names no source; use [header:X-Request-Key], or leave it out"),
    ("key: {from: [path:1, path:1]}", "key.from", "path:1 stands twice; keep one"),
    ("key: {from: [path:1, 'qury:a']}", "key.from[1]", f"no source is called `qury`; use {SOURCES}"),
    (
        "key: {format: guid}",
        "key.format",
        "expected any, sf-string, uuid, ulid or /PATTERN/, found `guid`; use uuid",
    ),
    ("key: {format: '/a'}", "key.format", "a pattern stands between two slashes; use /a/"),
    (
        "key: {format: '/(a/'}",
        "key.format",
        "`(a` is no pattern that is matched in linear time (RE2): missing ): (a",
    ),
    (
        "key: {format: '/(?=a)b/'}",
        "key.format",
        "`(?=a)b` is no pattern that is matched in linear time (RE2): invalid perl operator: (?=",
    ),
    ("key: {min_length: 256}", "key.min_length", "256 is out of bounds; use 1 to 255"),
    ("key: {weak: allow}", "key.weak", "expected count or refuse, found `allow`"),
    (
        "key: {from: query:id, format: sf-string}",
        "key.format",
        "sf-string is how a field spells a key, and query:id is none; use uuid, ulid or /PATTERN/",
    ),
    ("missing: {}", "missing", "expected pass, refuse or derive, found a mapping"),
    ("missing: {derive: {windw: 1s}}", "missing.derive.windw", "unknown field; did you mean `window`?"),
    (
        "missing: {derive: {from: [method, credentials]}}",
        "missing.derive.from",
        "nothing in it tells one request from the next; add target, body or a source",
    ),
    (
        "missing: {derive: {from: [methd]}}",
        "missing.derive.from[0]",
        "expected method, target, body, credentials or a source, found `methd`",
    ),
    ("send_key: X-Id", "send_key", "expected a field such as header:PayPal-Request-Id, found `X-Id`; use header:X-Id"),
    ("send_key: 'body:/id'", "send_key", "a body is the client's and is not changed; use header:NAME"),
    ("send_key: {as: uuid}", "send_key", "`to` is missing; use {to: header:PayPal-Request-Id, as: uuid}"),
    ("send_key: {to: header:A, as: hmac}", "send_key", "expected key or uuid, found `hmac`"),
    ("send_key: [header:A, header:a]", "send_key", "a stands twice; keep one"),
    (
        "send_key: header:Authorization",
        "send_key",
        "Authorization says something else to the service; use a field that is for the key",
    ),
    ("bind: [cokie:a]", "bind[0]", f"no source is called `cokie`; use {SOURCES}"),
    ("scope: [query:a]", "scope[0]", "a query says what is asked, and proves nothing of who asks; use header:NAME"),
]


@pytest.mark.parametrize(("added", "path", "message"), FAULTS, ids=[case[0] for case in FAULTS])
def test_a_fault_of_a_key(added: str, path: str, message: str) -> None:
    """Its place, and what to write."""
    assert fault(added) == (path, message)

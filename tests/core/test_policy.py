"""Which route a request belongs to, and that no spelling of its path walks past a guard."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.policy import AMBIGUOUS, Match, Policy, Route, RouteTable, glob, normalised
from gateway.settings.source import Scalar
from gateway.settings.values import status


def route(name: str, path: str = "/**", host: str | None = None, methods: str = "", *, guard: bool = True) -> Route:
    wanted = frozenset(methods.encode().split()) or None
    return Route(name, "upstream", Match(path, host, wanted), Policy(guard=guard))


def led(table: RouteTable, target: str, *, method: str = "POST", host: str = "shop.example") -> str | None:
    """The name of the route that a request is led to, AMBIGUOUS, or None."""
    found = table.match(method.encode(), host.encode(), target.encode("latin-1"))
    return found.name if isinstance(found, Route) else repr(found) if found is not None else None


# ── Which route ───────────────────────────────────────────────────────────────────────────────────


def test_the_first_route_that_matches_wins() -> None:
    """In the order of the file, however specific a later one is."""
    table = RouteTable([route("all-of-it", "/a/**"), route("one", "/a/b"), route("rest", "/**")])
    assert led(table, "/a/b") == "all-of-it"
    assert led(table, "/b") == "rest"
    assert led(RouteTable([route("one", "/a/b"), route("all-of-it", "/a/**")]), "/a/b") == "one"


def test_where_no_route_matches_there_is_none() -> None:
    """Which the gate answers with 404 `no-route`."""
    table = RouteTable([route("a", "/a/**")])
    assert led(table, "/b") is None
    assert led(RouteTable([]), "/a") is None


@pytest.mark.parametrize(
    ("pattern", "target", "matches"),
    [
        # exact
        ("/x", "/x", True),
        ("/x", "/x?y=/z", True),
        ("/x", "/x?", True),
        ("/x", "/x/", False),
        ("/x", "/xy", False),
        ("/x", "/X", False),
        ("/x", "/", False),
        ("/x/", "/x/", True),
        ("/x/", "/x", False),
        ("/", "/", True),
        ("/", "/x", False),
        # `**`: the path itself, its slash, and all below
        ("/x/**", "/x", True),
        ("/x/**", "/x?y", True),
        ("/x/**", "/x/", True),
        ("/x/**", "/x/y", True),
        ("/x/**", "/x/y/z/", True),
        ("/x/**", "/xy", False),
        ("/x/**", "/x.json", False),
        ("/x/**", "/y/x/", False),
        ("/x/**", "/", False),
        ("/**", "/", True),
        ("/**", "/x/y?z", True),
        # `*`: within one segment
        ("/x/*", "/x/y", True),
        ("/x/*", "/x/", True),
        ("/x/*", "/x", False),
        ("/x/*", "/x/y/z", False),
        ("/x/*/z", "/x/y/z", True),
        ("/x/*/z", "/x/y/y/z", False),
        ("/x/a*c", "/x/ac", True),
        ("/x/a*c", "/x/abbc", True),
        ("/x/a*c", "/x/ab/c", False),
        ("/*/x/*", "/v1/x/2", True),
        ("/x/*/**", "/x/y", True),
        ("/x/*/**", "/x/y/z/1", True),
        ("/x/*/**", "/x", False),
        # every other character is itself
        ("/x.y", "/xzy", False),
        ("/x+", "/xx", False),
        ("/x+", "/x+", True),
        ("/(x|y)", "/x", False),
        ("/x%2Fy", "/x%2Fy", True),
        ("/x%2Fy", "/x/y", False),
    ],
)
def test_what_a_path_matches(pattern: str, target: str, matches: bool) -> None:
    """`*` within a segment; a last `**` for the path itself, its slash, and all below; the query never."""
    assert led(RouteTable([route("it", pattern)]), target) == ("it" if matches else None)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "'/'"),
        ("x", "'/x'"),
        ("**", "'/**'"),
        ("/**/x", "last segment"),
        ("/x**", "last segment"),
        ("/x/**y", "last segment"),
        ("/x/**/", "last segment"),
        ("/**/**", "last segment"),
    ],
)
def test_a_path_that_is_none(pattern: str, why: str) -> None:
    """Refused with the corrected value."""
    with pytest.raises(ValueError, match=re.escape(why)):
        glob(pattern)


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("shop.example", "shop.example", True),
        ("shop.example", "SHOP.Example", True),
        ("Shop.Example", "shop.example", True),
        ("shop.example", "shop.example:8080", True),
        ("shop.example", "shop.example:80", True),
        ("shop.example", "a.shop.example", False),
        ("shop.example", "shop.example.org", False),
        ("shop.example", "shopxexample", False),
        ("shop.example", "shop.example:80:80", False),
        ("shop.example", "shop.example:x", False),
        ("shop.example", "", False),
        ("shop.example:8080", "shop.example:8080", True),
        ("shop.example:8080", "shop.example", False),
        ("shop.example:8080", "shop.example:80", False),
        ("*.shop.example", "a.shop.example", True),
        ("*.shop.example", "A.b.shop.example:1", True),
        ("*.shop.example", "shop.example", False),
        ("*.shop.example", ".shop.example", False),
        ("*.shop.example", "ashop.example", False),
        ("*.shop.example", "x:1.shop.example", False),
        ("*.shop.example:1", "a.shop.example:1", True),
        ("*.shop.example:1", "a.shop.example", False),
        ("[::1]", "[::1]", True),
        ("[::1]", "[::1]:8080", True),
        ("[::1]:8080", "[::1]", False),
        ("127.0.0.1", "127.0.0.1:9", True),
    ],
)
def test_what_a_host_matches(pattern: str, host: str, matches: bool) -> None:
    """Any case; any port where the pattern names none; `*.` for subdomains, at least one label of them."""
    assert led(RouteTable([route("it", host=pattern)]), "/", host=host) == ("it" if matches else None)


def test_a_route_without_a_host_takes_any() -> None:
    """A request without Host too, and one with octets above 0x7f."""
    table = RouteTable([route("named", host="shop.example"), route("any")])
    assert led(table, "/", host="") == "any"
    assert table.match(b"POST", b"caf\xc3\xa9", b"/") is table.routes[1]


def test_methods_are_compared_as_they_are_written() -> None:
    """A route that names none takes all; methods are case-sensitive (RFC 9110 §9.1)."""
    table = RouteTable([route("posts", "/a", methods="POST PATCH"), route("rest")])
    assert led(table, "/a") == "posts"
    assert led(table, "/a", method="PATCH") == "posts"
    assert led(table, "/a", method="PUT") == "rest"
    assert led(table, "/a", method="post") == "rest"
    assert led(table, "/a", method="POSTS") == "rest"


def test_a_route_matches_only_where_all_its_conditions_do() -> None:
    """Path, host and method together."""
    table = RouteTable([route("it", "/a", "shop.example", "POST")])
    assert led(table, "/a") == "it"
    assert led(table, "/b") is None
    assert led(table, "/a", host="other.example") is None
    assert led(table, "/a", method="PUT") is None


def test_statuses_of_a_policy_are_final_ones() -> None:
    """1xx never ends an exchange; the message names the value."""
    assert [status(Scalar(good)) for good in ("200", "599")] == [200, 599]
    for bad in ("199", "600", "100", "0"):
        with pytest.raises(ValueError, match=f"^{bad} is not a final status code"):
            status(Scalar(bad))
    with pytest.raises(ValueError, match=r"^expected a status such as 409, found `-1`$"):
        status(Scalar("-1"))


def test_the_deadlines_of_an_exchange_follow_from_two_settings() -> None:
    """lease = timeout + late + margin; nothing is sent past min(timeout, lease/2); it ends a margin before."""
    policy = Policy(timeout=60_000, late=30_000, margin=5_000, doubt_window=1_000_000, window=1)
    assert policy.lease == 95_000
    assert policy.claim_life == 1_095_000
    assert policy.send_by == 47_500
    assert policy.ends_by == 90_000
    assert Policy(timeout=1_000, late=30_000).send_by == 1_000


# ── The spellings of a path ───────────────────────────────────────────────────────────────────────

SPELLINGS = [
    ("/a/b", "/a/b"),
    ("/", "/"),
    ("", ""),
    # unreserved escapes are decoded, in either case of their digits …
    ("/%61", "/a"),
    ("/%7E%7e%2D%2d%2E%2e%5F%5f", "/~~--..__"),
    ("/%41%5A%5a%7A%7a%30%39", "/AZZzz09"),
    # … and no others: reserved ones, the percent sign, controls, space, octets above 0x7f
    ("/a%2Fb", "/a%2Fb"),
    ("/%25", "/%25"),
    ("/%20%00%0A%7F%3A%40%5B%60%7B%C3%A9", "/%20%00%0A%7F%3A%40%5B%60%7B%C3%A9"),
    # once only: an upstream that decodes once sees the same
    ("/%2561", "/%2561"),
    ("/%252e%252e/a", "/%252e%252e/a"),
    ("/a/%252F/b", "/a/%252F/b"),
    # dot segments (RFC 3986 §5.2.4)
    ("/./a", "/a"),
    ("/a/.", "/a/"),
    ("/a/./b", "/a/b"),
    ("/a/..", "/"),
    ("/a/../", "/"),
    ("/a/../b", "/b"),
    ("/a/b/..", "/a/"),
    ("/a/b/../..", "/"),
    ("/a/b/c/./../../g", "/a/g"),
    ("/.", "/"),
    ("/./", "/"),
    # never above the root
    ("/..", "/"),
    ("/../", "/"),
    ("/../../a", "/a"),
    ("/a/../../../b", "/b"),
    ("/a/../..", "/"),
    # encoded, or half encoded
    ("/%2e/a", "/a"),
    ("/%2E%2e/a", "/a"),
    ("/a/.%2e/b", "/b"),
    ("/a/%2E./b", "/b"),
    ("/a/b/%2e%2e", "/a/"),
    # what only looks like one
    ("/...", "/..."),
    ("/a/.b/..c/d./e..", "/a/.b/..c/d./e.."),
    ("/a/..%2Fb", "/a/..%2Fb"),
    ("/a/..;/b", "/a/..;/b"),
    # slashes are merged
    ("//", "/"),
    ("//a", "/a"),
    ("/a//b", "/a/b"),
    ("/a///", "/a/"),
    ("///a////b/", "/a/b/"),
    # all at once
    ("//%61/.//%2e%2E//../b//", "/b/"),
    ("/a/./..//b/%2e/", "/b/"),
]


@pytest.mark.parametrize(("spelled", "plain"), SPELLINGS)
def test_how_a_path_is_read(spelled: str, plain: str) -> None:
    """Unreserved escapes decoded, slashes merged, dot segments removed; RFC 3986 §6.2.2.2 and §6.2.2.3."""
    assert normalised(spelled) == plain


def test_only_the_path_of_a_target_is_read() -> None:
    """What stands behind the question mark leads nowhere."""
    table = RouteTable([route("plain", "/a/b"), route("escaped", "/caf%C3%A9")])
    assert led(table, "/a/b?c=//../%61?d") == "plain"
    assert led(table, "/caf\xc3\xa9") == led(table, "/caf\xc3\xa9?/a/b") == "escaped"
    table = RouteTable([route("a", "/a"), route("rest")])
    assert led(table, "/a?x=/../b//%61") == "a"
    assert led(table, "/b?/../a") == "rest"


SHOP = RouteTable(
    [
        route("payments", "/payments/**"),
        route("assets", "/payments-assets/**", guard=False),
        route("rest", guard=False),
    ]
)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/payments/a/../b", "payments"),
        ("/payments//1", "payments"),
        ("/payments/%31", "payments"),
        ("/payments/.", "payments"),
        ("/payments/%252e%252e/x", "payments"),
        ("/a/../b", "rest"),
        ("//b", "rest"),
        # the two forms lead to two routes
        ("//payments/1", "AMBIGUOUS"),
        ("/%70ayments/1", "AMBIGUOUS"),
        ("/./payments/1", "AMBIGUOUS"),
        ("/x/../payments", "AMBIGUOUS"),
        ("/../payments", "AMBIGUOUS"),
        ("/x/%2e%2e/payments/1", "AMBIGUOUS"),
        ("/payments/../x", "AMBIGUOUS"),
        ("/payments/..", "AMBIGUOUS"),
        ("/payments/%2e%2E/payments-assets/x", "AMBIGUOUS"),
        ("/payments%2Dassets/1", "AMBIGUOUS"),
    ],
)
def test_a_path_that_reads_two_ways_is_refused(target: str, name: str) -> None:
    """A spelling does no harm where both forms lead to one route; where they do not, nobody guesses."""
    assert led(SHOP, target) == name


def test_a_route_and_no_route_are_two_ways_too() -> None:
    """The bytes that go on are the client's, and the table says nothing of them."""
    table = RouteTable([route("payments", "/payments/**")])
    assert led(table, "//payments") == "AMBIGUOUS"
    assert led(table, "/payments/../x") == "AMBIGUOUS"
    assert led(table, "//x") is None


segments = st.sampled_from(
    [
        "",
        "",
        ".",
        "..",
        "a",
        "b",
        "payments",
        "%70ayments",
        "%2e",
        "%2E%2e",
        ".%2e",
        "%2E.",
        "...",
        "a.",
        "%2F",
        "%252e",
    ]
)
paths = st.lists(segments, min_size=1, max_size=7).map(lambda row: "/" + "/".join(row))


@given(paths)
def test_a_path_once_read_is_read_the_same_again(path: str) -> None:
    """normalised(normalised(p)) == normalised(p), for any path of dot, empty and encoded segments."""
    assert normalised(normalised(path)) == normalised(path)


@given(paths)
def test_no_dot_segment_and_no_empty_one_is_left(path: str) -> None:
    """It begins with a slash, has no two in a row, and no segment that leads anywhere but down."""
    plain = normalised(path)
    assert plain.startswith("/")
    assert "//" not in plain
    assert not {".", ".."} & set(plain.split("/"))


# ── Upstreams, as others have written them ────────────────────────────────────────────────────────
#
# A guard holds if no target that some upstream serves under /payments is led to a route without one.

UNRESERVED = {
    f"%{code:02x}": chr(code) for code in b"-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
}


def decode_unreserved(path: str) -> str:
    """RFC 3986 §6.2.2.2."""
    return re.sub("%[0-9a-fA-F]{2}", lambda found: UNRESERVED.get(found[0].lower(), found[0]), path)


def remove_dot_segments(path: str) -> str:
    """RFC 3986 §5.2.4, step by step."""
    source, out = path, ""
    while source:
        if source.startswith("../"):
            source = source[3:]
        elif source.startswith(("./", "/./")):
            source = source[2:]
        elif source == "/.":
            source = "/"
        elif source.startswith("/../") or source == "/..":
            source = "/" + source[4:]
            out = out[: out.rfind("/")] if "/" in out else ""
        elif source in (".", ".."):
            source = ""
        else:
            cut = source.find("/", 1)
            cut = len(source) if cut < 0 else cut
            out, source = out + source[:cut], source[cut:]
    return out


def merge_slashes(path: str) -> str:
    return re.sub("/+", "/", path)


def decode_all(path: str) -> str:
    """What WSGI calls PATH_INFO, ASGI `path`, Go `URL.Path`: every escape decoded, once."""
    return unquote(path, "latin-1")


def in_turn(*steps: Callable[[str], str]) -> Callable[[str], str]:
    return lambda path: reduce(lambda so_far, step: step(so_far), steps, path)


UPSTREAMS = [
    pytest.param(in_turn(), id="takes the bytes as they are"),
    pytest.param(
        in_turn(decode_unreserved, merge_slashes, remove_dot_segments), id="decodes, merges, then removes dots"
    ),
    pytest.param(in_turn(decode_unreserved, remove_dot_segments), id="RFC 3986 §6.2.2"),
    pytest.param(in_turn(decode_unreserved, remove_dot_segments, merge_slashes), id="the same, then merges"),
    pytest.param(merge_slashes, id="only merges"),
    pytest.param(remove_dot_segments, id="only removes dots"),
    pytest.param(decode_unreserved, id="only decodes"),
    pytest.param(in_turn(decode_unreserved, merge_slashes), id="decodes and merges"),
    pytest.param(in_turn(merge_slashes, remove_dot_segments), id="merges and removes dots"),
    pytest.param(in_turn(remove_dot_segments, decode_unreserved), id="removes dots, then decodes"),
    pytest.param(decode_all, id="decodes everything (WSGI, ASGI)"),
    pytest.param(in_turn(decode_all, merge_slashes, remove_dot_segments), id="decodes everything, then path.Clean"),
]


@pytest.mark.parametrize("read", UPSTREAMS)
@given(path=paths)
@example(path="/%70ayments//..")
@example(path="/./payments//..")
@example(path="//payments/..")
@example(path="//payments/%2e%2e")
@example(path="/./payments/%2e%2e")
@example(path="/payments%2F1")
@example(path="/payments%2F%252e")
@example(path="/x/..//payments")
@example(path="/../payments")
def test_no_spelling_of_a_guarded_path_gets_past_its_guard(read: Callable[[str], str], path: str) -> None:
    """Whatever an upstream serves under /payments was led to the guarded route, or refused."""
    served = read(path)
    if served == "/payments" or served.startswith("/payments/"):
        assert led(SHOP, path) in ("payments", "AMBIGUOUS")


@given(paths)
def test_a_path_is_read_as_its_steps_say(path: str) -> None:
    """Against the three steps as their own authors wrote them, in the order of nginx and of Go's path.Clean."""
    assert normalised(path) == remove_dot_segments(merge_slashes(decode_unreserved(path)))


@pytest.mark.parametrize("path", ["/%%341", "/%2%65%2%65/x", "/%%37%30ayments"])
def test_a_path_with_a_broken_escape_is_read_once_and_for_all_or_refused(path: str) -> None:
    """RFC 3986 §2.1 knows no lone percent sign. The parser lets one through, so the reading must bear it."""
    assert normalised(normalised(path)) == normalised(path) or led(SHOP, path) == "AMBIGUOUS"


@pytest.mark.parametrize("target", ["/caf%c3%a9/1", "/caf%C3%a9/1"])
def test_the_case_of_an_escape_does_not_hide_a_guarded_path(target: str) -> None:
    """RFC 3986 §6.2.2.1: `%c3` and `%C3` are one octet."""
    table = RouteTable([route("café", "/caf%C3%A9/**"), route("rest", guard=False)])
    assert led(table, "/caf%C3%A9/1") == "café"
    assert led(table, target) in ("café", "AMBIGUOUS")


@pytest.mark.parametrize("host", ["shop.example.", "shop.example:", "shop.example.:8080"])
def test_a_spelling_of_host_does_not_get_past_a_guard(host: str) -> None:
    """RFC 3986 §3.2.2, §6.2.3: the root's dot and an empty port change nothing; nginx, for one, takes both."""
    table = RouteTable([route("shop", host="shop.example"), route("rest", guard=False)])
    assert led(table, "/", host=host) == "shop"


@pytest.mark.parametrize("crooked", [b"/x/../", b"//", b"/%2e%2e/", b"/.%2f"])
def test_a_long_crooked_path_is_refused_before_it_is_read_in_every_way(crooked: bytes) -> None:
    """Kilobytes of dot segments or doubled slashes cost milliseconds to read; nobody honest sends them."""
    table = RouteTable([Route("all", "u")])
    assert table.match(b"POST", b"h", b"/a" + crooked * 10) is table.routes[0]
    assert table.match(b"POST", b"h", b"/a" + crooked * 1500) is AMBIGUOUS
    assert table.match(b"POST", b"h", b"/a" + b"%20" * 1500) is table.routes[0]

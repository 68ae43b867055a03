"""Broken files: the whole text, and everything that is said of it, line by line."""

from __future__ import annotations

from tests.settings.files import WHOLE

BEHIND = """  - {name: two, match: {path: /two/**}, upstream: app}
  - {name: three, match: {path: /three}, upstream: app}
  - {name: all, upstream: app}
"""


def _first(route: str, *said: str) -> tuple[str, list[str]]:
    """A file whose first route is broken, before three that it would take all of if it matched every path."""
    text = f"upstreams: {{app: http://a}}\nroutes:\n  - {{name: one, upstream: app, {route}}}\n{BEHIND}"
    return text, [f"FILE:3: routes[0].{each}" for each in said]


def _upstream(fields: str, *said: str) -> tuple[str, list[str]]:
    text = f"upstreams: {{app: {fields}}}\nroutes: [{{name: all, upstream: app}}]\n"
    return text, [f"FILE:1: upstreams.app.{each}" for each in said]


FILES = {
    "a broken path leaves other routes alone": _first(
        "match: {path: one}", "match.path: a path begins with a slash; use /one"
    ),
    "a broken method leaves other routes alone": _first(
        "match: {methods: [A B]}", "match.methods[0]: expected a method such as POST, found `A B`"
    ),
    "a prefix is a path": _first("match: {prefix: /x}", "match.prefix: unknown field. Use path: /x/**"),
    "a prefix of no text is a path": _first("match: {prefix: 3}", "match.prefix: unknown field. Use path: /PREFIX/**"),
    "a URL in a match": _first("match: {url: /x}", "match.url: unknown field. Use path: /x"),
    "a path misspelled": _first("match: {pth: /x}", "match.pth: unknown field; did you mean `path`?"),
    "a match misspelled": _first("mtch: {path: /x}", "mtch: unknown field; did you mean `match`?"),
    "a path without its match": _first("path: /x", "path: not allowed here. It belongs in `match`"),
    "a good route that takes all": (
        _first("match: {path: /**}")[0],
        [
            f"FILE:{line}: routes[{n}]{place}: can never match: routes[0] (`one`) takes all of it; {advice}"
            for line, n, place, advice in (
                (4, 1, ".match", "put this route before it"),
                (5, 2, ".match", "put this route before it"),
                (6, 3, "", "remove one of them"),
            )
        ],
    ),
    "host and port of an upstream": _upstream(
        "{host: a, port: 80}",
        "host: unknown field. Use url: http://HOST:PORT",
        "port: unknown field. Use url: http://HOST:PORT",
    ),
    "a url misspelled": _upstream("{ur: http://a}", "ur: unknown field; did you mean `url`?"),
    "an upstream's URL in a route": (
        "upstreams: {app: http://a}\nroutes: [{name: all, upstream: 'http://a'}]\n",
        [
            "FILE:2: routes[0].upstream: expected a name such as payments, found a URL. Write the URL under "
            "`upstreams`, and its name here"
        ],
    ),
    "empty": ("", ["FILE: the file is empty; it needs `upstreams` and `routes`"]),
    "only comments": ("# soon\n", ["FILE: the file is empty; it needs `upstreams` and `routes`"]),
    "a list": (
        "# soon\n- a\n",
        ["FILE:2: expected a mapping with `upstreams` and `routes`, found a list"],
    ),
    "no YAML": (
        "a: 1\nb: [1, 2\nc: 3\n",
        ["FILE:3: this is not YAML: expected ',' or ']', but got ':'"],
    ),
    "tabs": ("a:\n\tb: 1\n", ["FILE:2: this is not YAML: a tab; indent with spaces"]),
    "two documents": ("a: 1\n---\nb: 1\n", ["FILE:2: a second document begins here; keep one in a file"]),
    "a control character": ("a: 1\nb: \x07\n", ["FILE:2: the character '\\x07' cannot stand in YAML"]),
    "${…} in a flow": (
        "admin: {listen: ${ADMIN}}\n",
        ["FILE:1: this is not YAML: expected ',' or '}', but got '{'; put ${…} in quotes inside { } or [ ]"],
    ),
    "a mapping in a mapping in a mapping …": (
        "a: " + "{a: " * 5000,
        ["FILE: the values are nested too deep to be read"],
    ),
    "an alias of itself": ("a: &a [*a]\n", ["FILE:1: an alias stands within what it stands for"]),
    "a merge of itself": ("a: &a\n  <<: *a\n", ["FILE:2: a mapping merges itself"]),
    "no upstreams and no routes": (
        "service: a\n",
        [
            "FILE: upstreams: no upstreams; write upstreams: {NAME: http://HOST:PORT}",
            "FILE: routes: no routes, so every request would be a 404; write routes: [{name: all, upstream: NAME}]",
        ],
    ),
    "no route": (
        "upstreams: {app: http://a}\nroutes: []\n",
        ["FILE:2: routes: no routes, so every request would be a 404; write routes: [{name: all, upstream: app}]"],
    ),
    "routes as a mapping": (
        "upstreams: {app: http://a}\nroutes:\n  all: {upstream: app}\n",
        ["FILE:2: routes: expected a list, found a mapping"],
    ),
    "upstreams as a list": (
        "upstreams: [http://a]\nroutes: [{name: all, upstream: app}]\n",
        ["FILE:1: upstreams: expected a mapping, found a list"],
    ),
    "an upstream by a name that is none": (
        "upstreams: {a b: http://a}\nroutes: [{name: all, upstream: a-b}]\n",
        [
            "FILE:1: upstreams.a b: `a b` is not a name: up to 64 letters, digits, `.`, `_` and `-`, a "
            "letter or digit first; use a-b",
            "FILE:2: routes[0].upstream: no upstream is called `a-b`; did you mean `a b`?",
        ],
    ),
    "a route without a name or an upstream": (
        "upstreams: {app: http://a}\nroutes:\n  - match: {path: /x}\n",
        [
            "FILE:3: routes[0].name: is missing; use name: payments",
            "FILE:3: routes[0].upstream: is missing; use upstream: app",
        ],
    ),
    "an unknown upstream": (
        WHOLE.replace("upstream: app", "upstream: ap"),
        ["FILE:5: routes[0].upstream: no upstream is called `ap`; did you mean `app`?"],
    ),
    "two routes of one name": (
        WHOLE.replace("upstream: app", "upstream: app\n    match: {path: /x}") + "  - name: all\n    upstream: app\n",
        ["FILE:7: routes[1].name: `all` is the name of routes[0] too, on line 4; use another"],
    ),
    "a route that the first leaves nothing to": (
        WHOLE + "  - {name: pay, upstream: app, match: {path: /pay}}\n",
        ["FILE:6: routes[1].match: can never match: routes[0] (`all`) takes all of it; put this route before it"],
    ),
    "a list with a variable that is not set, and more": (
        WHOLE + "    scope: ['header:X-${A}', query:a, 'header:${B}']\n",
        [
            "FILE:6: routes[0].scope[0]: the variable A is not set in the environment; export A=… first",
            "FILE:6: routes[0].scope[2]: the variable B is not set in the environment; export B=… first",
            "FILE:6: routes[0].scope[1]: a query says what is asked, and proves nothing of who asks; use header:NAME",
        ],
    ),
    "a status in two lists": (
        WHOLE + "    keep: [429, 409]\n    release: [409]\n",
        ["FILE:7: routes[0].release: 409 cannot be both in release and in keep; take it out of one"],
    ),
    "a header in two lists": (
        "defaults: {keep_headers: [ETag, Link]}\n" + WHOLE + "    drop_headers: [etag]\n",
        ["FILE:7: routes[0].drop_headers: etag cannot be both in keep_headers and in drop_headers; take it out of one"],
    ),
    "keep_only beside another list": (
        WHOLE + "    keep_only: 2xx\n    release: [404]\n",
        [
            "FILE:7: routes[0].release: keep_only cannot stand beside release: it says what every status means; "
            "use release: []"
        ],
    ),
    "keep_only beside lists in defaults": (
        "defaults: {hold: 500, keep: 429}\n" + WHOLE + "    keep_only: [200, 204]\n",
        [
            "FILE:7: routes[0].keep_only: keep_only cannot stand beside hold and keep: it says what every status "
            "means; use hold: [], keep: []"
        ],
    ),
    "a status in two lists, one of them in defaults": (
        "defaults: {hold: 500}\n" + WHOLE + "    release: [500]\n",
        ["FILE:7: routes[0].release: 500 cannot be both in release and in hold; take it out of one"],
    ),
}

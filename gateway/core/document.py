"""What an API's clients may know of its idempotency policy, as plain values: it is published as JSON and as Markdown.

It says what a client can see anyway, or must know to retry rightly. It never says where a request goes on to, what a
route, an upstream, a namespace or the service is called, nor anything of the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .decide import settle
from .fields import NONE, Fields, fields_of
from .fingerprint import DEFAULT_BIND
from .key import LONGEST
from .keyform import ANY, WeakKeys
from .message import ALWAYS_REPLAYED, CHALLENGES, CREDENTIALS, NEVER_REPLAYED, Response
from .outcome import Answered
from .policy import UNDEFINED, Missing, OnDoubt, Policy, Route, StoreDown
from .problem import Label, Problem
from .record import Kind
from .source import Place

#: Of the document's form. A client that knows it ignores members that it does not know.
VERSION = 1

#: The problems that a client of a guarded route meets for its key.
_PROBLEMS = (
    Problem.KEY_MISSING,
    Problem.KEY_INVALID,
    Problem.SCOPE_MISSING,
    Problem.KEY_REUSED,
    Problem.CREDENTIALS_DIFFER,
    Problem.IN_FLIGHT,
    Problem.IN_DOUBT,
    Problem.RESPONSE_NOT_KEPT,
    Problem.POLICY_CHANGED,
    Problem.BODY_TOO_LARGE,
    Problem.STORE_UNAVAILABLE,
)
_RESPONSE_FIELDS = {
    "Idempotency-Status": ", ".join(Label),
    "Idempotent-Replayed": "true on an answer that was given before",
    "Idempotency-Expires": "until when the answer is replayed (RFC 3339), on stored and replayed answers",
    "Idempotency-First-Seen": "when the first request with this key came (RFC 3339), on stored and replayed answers",
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document for these routes, in their order, of which the first that matches a request counts. What comes
    behind the last guarded one is left out, as nothing there is guarded either."""
    listed = list(routes)
    while listed and not listed[-1].policy.enforced:
        listed.pop()
    return {
        "version": VERSION,
        "unsafe_methods_only": True,
        "response_fields": _RESPONSE_FIELDS,
        "problems": [
            {"type": each.type, "status": each.status, "title": each.title, "retry": each.retry} for each in _PROBLEMS
        ],
        "routes": [route_of(each) for each in listed],
    }


def route_of(route: Route) -> dict[str, Any]:
    """One route: which requests it is for, and what holds for them."""
    match, policy = route.match, route.policy
    told: dict[str, Any] = {
        "path": match.path,
        "methods": None if match.methods is None else sorted(map(_text, match.methods)),
        "guarded": policy.enforced,
    }
    return {**told, **rules_of(policy)} if policy.enforced else told


def rules_of(policy: Policy) -> dict[str, Any]:
    """What holds for the requests of a guarded route. Durations in seconds, sizes in bytes."""
    kept = policy.keep_headers
    return {
        "key": {
            "in": [f"header:{_title(name)}" for name in policy.headers],
            "required": policy.missing is Missing.REFUSE,
            "format": f"1 to {LONGEST} printable ASCII characters, bare or as a quoted string (RFC 8941)",
            "max_length": LONGEST,
            "otherwise": _WITHOUT[policy.missing],
            **_key(policy),
        },
        "scope": [_source(source.decode("latin-1")) for source in policy.scope],
        "same_request": {
            "parts": _parts(policy),
            "body": policy.recipe.body,
            "body_without": [each for each in policy.recipe.ignore if not each.startswith("query:")],
            "target_without": [each for each in policy.recipe.ignore if each.startswith("query:")],
            "credentials": _credentials(policy),
            "cookie_otherwise": DEFAULT_BIND in policy.recipe.bind,
            "cookie_without": list(policy.recipe.ignore_cookies),
            "max_body_bytes": policy.max_request,
            "otherwise": [_conflict(Problem.KEY_REUSED), _conflict(Problem.CREDENTIALS_DIFFER)],
        },
        "window_seconds": policy.window / 1000,
        "kept": {
            "max_body_bytes": policy.max_response,
            "only_fields": None if kept is None else sorted(map(_title, kept | ALWAYS_REPLAYED)),
            "not_fields": sorted(
                map(_title, NEVER_REPLAYED.union(policy.drop_headers, CHALLENGES if kept is None else ()))
            ),
            "otherwise": _conflict(Problem.RESPONSE_NOT_KEPT),
        },
        "in_flight": {"wait_seconds": policy.wait / 1000, "then": _conflict(Problem.IN_FLIGHT)},
        "in_doubt": {
            "then": "run again" if policy.on_doubt is OnDoubt.RERUN else _conflict(Problem.IN_DOUBT),
            "max_attempts": policy.max_attempts if policy.on_doubt is OnDoubt.RERUN else 1,
            "remembered_seconds": policy.doubt_window / 1000,
        },
        "statuses": _meanings(policy),
        "without_store": "unprotected"
        if policy.store_down is StoreDown.FORWARD
        else _conflict(Problem.STORE_UNAVAILABLE),
    }


def _parts(policy: Policy) -> list[str]:
    """The parts of a request that count."""
    recipe = policy.recipe
    parts = [part for part in recipe.parts[:6] if part != "host" or recipe.host]
    return parts + [_title(name) for name in recipe.headers]


#: What becomes of a request without a key. (PUT and DELETE pass without one, whatever the route says.)
_WITHOUT = {Missing.PASS: "unprotected", Missing.REFUSE: "refused", Missing.DERIVE: "derived"}


def _key(policy: Policy) -> dict[str, Any]:
    """What a route says of its keys where it says more than what all do."""
    rule, told = policy.key_rule, dict[str, Any]()
    if policy.sources:
        told["in"] = [_source(str(source)) for source in policy.sources]
        if len(policy.sources) > 1:
            told["parts_of_one_key"] = True
        if not any(source.place is Place.HEADER for source in policy.sources):
            told["format"] = f"1 to {LONGEST} printable ASCII characters"
    if rule.format != ANY:
        told["format"] = (
            f"a quoted string (RFC 8941) of 1 to {LONGEST} characters" if rule.in_quotes else rule.format.name
        )
    if rule.min_length > 1:
        told["min_length"] = rule.min_length
    if rule.weak is WeakKeys.REFUSE:
        told["weak"] = "refused: a point in time, a counter, an unset variable, few different characters"
    if policy.missing is Missing.DERIVE:
        told["derived_otherwise"] = {
            "from": [_source(str(part)) for part in policy.derive.parts],
            "window_seconds": policy.derive.window / 1000,
            "remembered_seconds": policy.of_derived.doubt_window / 1000,
        }
    if policy.send_key:
        told["service_gets_it_in"] = [
            {"in": f"header:{_text(send.field)}", "as": send.form.value} for send in policy.send_key
        ]
    return told


def _meanings(policy: Policy) -> dict[str, Any]:
    """Describe what the statuses of answers mean. `only_kept` is None unless every other answer frees the key."""

    def meaning(status: int, fields: Fields = NONE) -> str:
        return _MEANINGS[settle(Answered(Response(status, fields)), policy).kind]

    means = {status: meaning(status) for status in range(200, UNDEFINED)}
    return {
        "only_kept": None if policy.keep_only is None else sorted(policy.keep_only),
        "key_is_free_again": [status for status, each in means.items() if each == _MEANINGS[Kind.RELEASE]],
        "outcome_is_unknown": [status for status, each in means.items() if each == _MEANINGS[Kind.HOLD]],
        "503_with_retry_after": meaning(503, _RETRY_AFTER),
        "600_to_999": meaning(UNDEFINED),
    }


_MEANINGS = {Kind.KEEP: "answer", Kind.RELEASE: "key_is_free_again", Kind.HOLD: "outcome_is_unknown"}
_RETRY_AFTER = fields_of(((b"retry-after", b"1"),))


def _conflict(problem: Problem) -> dict[str, Any]:
    return {"status": problem.status, "type": problem.type}


def _credentials(policy: Policy) -> list[str]:
    """What a duplicate must repeat of who sends it. (A cookie counts, by default, where none of these is there.)"""
    found: list[str] = []
    for source in policy.recipe.bind:
        if source == DEFAULT_BIND:
            found += [f"header:{_title(name)}" for name in CREDENTIALS]
        else:
            found.append(_source(source))
    return found


def _source(source: str) -> str:
    kind, _, name = source.partition(":")
    return f"header:{_title(name.encode('latin-1'))}" if kind == "header" else source


_SPELLED = {b"x-api-key": "X-API-Key", b"etag": "ETag", b"www-authenticate": "WWW-Authenticate"}


def _title(name: bytes) -> str:
    """A field's name as people write it."""
    return _SPELLED.get(name) or "-".join(word.capitalize() for word in _text(name).split("-"))


def _text(value: bytes) -> str:
    return value.decode("latin-1")

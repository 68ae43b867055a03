"""Which live keys a change of configuration would forget.

A record is named by (service, namespace, scope, key), so what counts is not which fields differ but what becomes of a
retry: it is sent again after the change, and either finds its record under the same name and is answered, or it does
not. So requests are made up that tell the routes of both configurations apart, and each is followed through both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import islice, product

from .keyform import ANY, KeyRule, WeakKeys
from .policy import Missing, Mode, OnDoubt, Policy, Route, RouteTable, StoreDown
from .values import value

#: Requests that are followed at most. They grow with the paths of both files, times their hosts and methods.
MOST = 50_000


class Effect(Enum):
    """What a change does to keys that live when it is made."""

    FORGETS = "forgets"  # a retry of what has run would run again
    REFUSES = "refuses"  # a retry is refused that was answered before; nothing runs twice
    NOTE = "note"  # live keys are found and answered as before; something else changes


@value
class Change:
    """One thing that changes for the requests that went to the route `before` and go to `after` (None: for all of
    them, or to no route). `example` is one of them."""

    effect: Effect
    what: str
    text: str
    before: str | None = None
    after: str | None = None
    example: str = ""


@value
class Probe:
    """A request that is made up."""

    method: bytes
    host: bytes
    target: bytes

    def __str__(self) -> str:
        return f"{self.method.decode()} {self.host.decode('latin-1')}{self.target.decode('latin-1')}"


def changes(old: RouteTable, new: RouteTable, show: Callable[[int], str]) -> list[Change]:
    """What changes from `old` to `new`, once for each pair of routes; what forgets most comes first. `show` spells a
    duration in milliseconds."""
    found: dict[tuple[str | None, str | None, str], Change] = {}
    for probe in probes(old, new):
        before = old.match(probe.method, probe.host, probe.target)
        if not isinstance(before, Route) or not before.policy.enforced:
            continue
        after = new.match(probe.method, probe.host, probe.target)
        route = after if isinstance(after, Route) else None
        for effect, what, text in _followed(before.policy, route, before, show):
            name = None if route is None else route.name
            found.setdefault((before.name, name, what), Change(effect, what, text, before.name, name, str(probe)))
    order = list(Effect)
    return sorted(found.values(), key=lambda change: order.index(change.effect))


def _followed(
    old: Policy, route: Route | None, before: Route, show: Callable[[int], str]
) -> Iterator[tuple[Effect, str, str]]:
    """What a retry meets on `route` that was first sent under `old`."""
    if route is None:
        yield Effect.REFUSES, "route", "no route matches them any more: a retry is a 404"
        return
    new = route.policy
    if not new.guard:
        yield Effect.FORGETS, "guard", "nothing guards them any more: a retry runs again"
        return
    if new.mode is Mode.SHADOW:
        yield Effect.FORGETS, "mode", "they are in shadow: a retry runs again"
        return
    yield from _named(old, new)
    if old.recipe.id != new.recipe.id:
        text = "what counts as the same request changes: a retry is a 409 policy-changed until its key's window ends"
        yield Effect.REFUSES, "fingerprint", text
    if new.max_request < old.max_request:
        yield Effect.REFUSES, "max_request", f"a retry with a body over {new.max_request} bytes is a 413"
    if new.window < old.window:
        text = (
            f"{show(old.window)} becomes {show(new.window)}, for answers stored from then on; stored ones keep theirs"
        )
        yield Effect.NOTE, "window", text
    if new.doubt_window < old.doubt_window:
        text = f"{show(old.doubt_window)} becomes {show(new.doubt_window)}, for keys claimed from then on"
        yield Effect.NOTE, "doubt_window", text
    if old.on_doubt is OnDoubt.HOLD and new.on_doubt is OnDoubt.RERUN:
        yield Effect.FORGETS, "on_doubt", "hold becomes rerun: a retry of a key that is in doubt runs again"
    elif new.on_doubt is OnDoubt.RERUN and new.max_attempts > old.max_attempts:
        yield Effect.FORGETS, "max_attempts", "more attempts: a retry of a key that is in doubt may run again"
    if old.store_down is StoreDown.REFUSE and new.store_down is StoreDown.FORWARD:
        yield Effect.NOTE, "store_down", "while the store is away requests run unprotected"
    if before.upstream != route.upstream:
        yield (
            Effect.NOTE,
            "upstream",
            "they go to another upstream; keys that live are answered with what the former said",
        )


def _named(old: Policy, new: Policy) -> Iterator[tuple[Effect, str, str]]:
    """Of what the name of a record is made."""
    if old.namespace != new.namespace:
        text = f"{_shown((old.namespace,))} becomes {_shown((new.namespace,))}: no key that lives is found"
        yield Effect.FORGETS, "namespace", text
    if old.scope != new.scope:
        before, after = _shown(old.scope) or "public", _shown(new.scope) or "public"
        yield Effect.FORGETS, "scope", f"{before} becomes {after}: no key that lives is found"
    elif any(source.startswith(b"jwt:") for source in new.scope) and _issuer(old) != _issuer(new):
        text = f"the issuer {_issuer(old)} becomes {_issuer(new)}: no key that lives is found"
        yield Effect.FORGETS, "jwt", text
    if gone := _gone(old, new):
        where = f"a key in {gone} is not looked at any more: "
        if new.missing is Missing.REFUSE:
            yield Effect.REFUSES, "key", where + "a retry that carries it there is a 400 key-missing"
        else:
            yield Effect.FORGETS, "key", where + "a retry that carries it there runs again"
    if new.key_rule != old.key_rule and _stricter(old.key_rule, new.key_rule):
        yield Effect.REFUSES, "key", "another rule of keys: a retry whose key does not keep it is a 400 key-invalid"
    if old.missing is Missing.DERIVE and (new.missing is not Missing.DERIVE or old.derive.parts != new.derive.parts):
        text = f"keys are derived otherwise: a double click within {old.derive.window} ms of the change runs again"
        yield Effect.FORGETS, "missing", text
    if old.send_key != new.send_key:
        text = "another send_key: a retry that is run again tells the service another key, or none"
        yield Effect.NOTE, "send_key", text


def _issuer(policy: Policy) -> str:
    return policy.tokens.issuer if policy.tokens else "none"


def _gone(old: Policy, new: Policy) -> str:
    """Where keys of old stood and are not found any more. All parts of a composite are one place."""
    if old.sources:
        # One header or source by itself names the same record wherever it stood; a retry is sent where it was.
        return "" if old.sources == new.sources else ", ".join(map(str, old.sources))
    return _shown(name for name in old.headers if name not in new.headers)


def _stricter(old: KeyRule, new: KeyRule) -> bool:
    """Whether a key that was taken may be refused now."""
    return (
        (new.format != old.format and new.format != ANY)
        or new.min_length > old.min_length
        or (new.weak is WeakKeys.REFUSE and old.weak is WeakKeys.COUNT)
    )


def _shown(names: Iterable[bytes]) -> str:
    return ", ".join(name.decode("latin-1") for name in names)


# ── Requests that tell routes apart ───────────────────────────────────────────────────────────────


def probes(*tables: RouteTable) -> Iterator[Probe]:
    """Requests for each route of these tables, and for whatever any two of their paths have in common."""
    matches = [route.match for table in tables for route in table.routes]
    paths = _paths(sorted({match.path for match in matches}))
    hosts = sorted({host for match in matches if match.host for host in _hosts(match.host)} | {"any.example"})
    named = {method for match in matches for method in match.methods or ()}
    methods = [b"POST", *sorted({b"PATCH", *named} - {b"POST"})]
    every = product(paths, hosts, methods)
    return (Probe(method, host.encode("latin-1"), path.encode()) for path, host, method in islice(every, MOST))


def _hosts(pattern: str) -> list[str]:
    """Hosts of a pattern: itself, or for `*.` one below it; and one that a narrower pattern may take from it."""
    return [pattern.replace("*.", "some.", 1)] if pattern.startswith("*.") else [pattern]


def _paths(patterns: list[str]) -> list[str]:
    """Paths that match the patterns: their stars filled by a word of nobody's and by what others have in that place,
    their `/**` by nothing, by one segment, by two. What two patterns have in common is a path of the longer one."""
    segments = [pattern.removesuffix("/**").split("/") for pattern in patterns]
    found: dict[str, None] = {}
    for pattern in patterns:
        stem = pattern.removesuffix("/**").split("/")
        for path in _filled(stem, segments):
            found[path or "/"] = None
            if pattern.endswith("/**"):
                found[f"{path}/some"] = found[f"{path}/some/thing"] = None
    return list(found)


def _filled(stem: list[str], others: list[list[str]]) -> Iterator[str]:
    choices = []
    for place, segment in enumerate(stem):
        if "*" not in segment:
            choices.append([segment])
            continue
        there = sorted({other[place] for other in others if place < len(other)})
        choices.append(
            [segment.replace("*", "some"), *(_common(segment, each) for each in there if _meets(segment, each))]
        )
    return ("/".join(each) for each in islice(product(*choices), 256))


def _common(one: str, other: str) -> str:
    """A word that both segments match, where they meet."""
    if "*" not in other:
        return other
    first, second = one.split("*"), other.split("*")
    head, tail = max(first[0], second[0], key=len), max(first[-1], second[-1], key=len)
    return "some".join((head, *first[1:-1], *second[1:-1], tail))


def _meets(one: str, other: str) -> bool:
    """Whether two segments have a word in common, as far as their ends show it."""
    if "*" not in one and "*" not in other:
        return one == other
    if "*" not in one:
        one, other = other, one
    head, tail = one.split("*")[0], one.rsplit("*", 1)[1]
    if "*" in other:
        first, last = other.split("*")[0], other.rsplit("*", 1)[1]
        return (head.startswith(first) or first.startswith(head)) and (tail.endswith(last) or last.endswith(tail))
    return len(other) >= len(head) + len(tail) and other.startswith(head) and other.endswith(tail)

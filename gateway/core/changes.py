"""Which live keys a change of configuration would forget.

A record is named by (service, namespace, scope, key), so what counts is not which fields differ but what becomes of a
retry: it is sent again after the change, and either finds its record under the same name and is answered, or it does
not. So requests are made up that tell the routes of both configurations apart, and each is followed through both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import Enum
from itertools import islice, product

from .carried import carrying, found_in, stretched
from .decide import IDEMPOTENT
from .key import Unreadable
from .keyed import Keyed, Part
from .keyform import ANY, KeyRule, WeakKeys
from .policy import Missing, Mode, OnDoubt, Policy, Route, RouteTable, StoreDown
from .source import Place
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
    #: Where its key stands, if not in a field of the usual names.
    keyed: str = ""

    def __str__(self) -> str:
        where = f", its key in {self.keyed}" if self.keyed else ""
        return f"{self.method.decode()} {self.host.decode('latin-1')}{self.target.decode('latin-1')}{where}"


def changes(old: RouteTable, new: RouteTable, show: Callable[[int], str]) -> list[Change]:
    """What changes from `old` to `new`, once for each pair of routes; what forgets most comes first. `show` spells a
    duration in milliseconds."""
    found: dict[tuple[str | None, str | None, str, Effect], Change] = {}
    seen: set[tuple[str, str | None, Probe | bytes]] = set()
    for made in probes(old, new):
        before = old.match(made.method, made.host, made.target)
        if not isinstance(before, Route) or not before.policy.enforced:
            continue
        probe = _with_key(made, old, before)
        after = new.match(probe.method, probe.host, probe.target)
        route = after if isinstance(after, Route) else None
        name = None if route is None else route.name
        # One look at a pair of routes and a method is enough, unless the path is part of a key.
        look = (before.name, name, probe if _by_path(before, route) else probe.method)
        if look in seen:
            continue
        seen.add(look)
        for effect, what, text in _followed(before.policy, route, before, probe, show):
            change = Change(effect, what, text, before.name, name, str(probe))
            found.setdefault((before.name, name, what, effect), change)
    order = list(Effect)
    return sorted(found.values(), key=lambda change: order.index(change.effect))


def _with_key(probe: Probe, table: RouteTable, route: Route) -> Probe:
    """The request with its key where `route` looks for it, as far as it then still goes there."""
    where = ", ".join(map(str, route.policy.sources))
    target = stretched(probe.target, route.policy)
    if table.match(probe.method, probe.host, target) is not route:
        target = probe.target
    return replace(probe, target=target, keyed=where)


def _by_path(*routes: Route | None) -> bool:
    return any(source.place is Place.PATH for route in routes if route for source in route.policy.sources)


def _followed(
    old: Policy, route: Route | None, before: Route, probe: Probe, show: Callable[[int], str]
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
    yield from _named(old, new, probe, show)
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


def _named(old: Policy, new: Policy, probe: Probe, show: Callable[[int], str]) -> Iterator[tuple[Effect, str, str]]:
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
    yield from _keyed(old, new, probe)
    if new.key_rule != old.key_rule and _stricter(old.key_rule, new.key_rule):
        yield Effect.REFUSES, "key", "another rule of keys: a retry whose key does not keep it is a 400 key-invalid"
    if new.key_rule.spelling != old.key_rule.spelling:
        text = "another format of keys: a retry whose key is not in the format's canonical spelling runs again"
        yield Effect.FORGETS, "key", text
    if old.missing is Missing.DERIVE:
        # What binds a derived key is part of who sends the request.
        if new.missing is not Missing.DERIVE or _derived_from(old) != _derived_from(new):
            moment = show(old.derive.window)
            text = f"keys are derived otherwise, or no more: a double click within {moment} of the change runs again"
            yield Effect.FORGETS, "missing", text
        elif new.derive.window < old.derive.window:
            text = f"a double click is known for {show(new.derive.window)}, no more for {show(old.derive.window)}"
            yield Effect.NOTE, "missing", text
    if old.send_key != new.send_key:
        text = "another send_key: a retry that is run again tells the service another key, or none"
        yield Effect.NOTE, "send_key", text


def _issuer(policy: Policy) -> str:
    return policy.tokens.issuer if policy.tokens else "none"


def _keyed(old: Policy, new: Policy, probe: Probe) -> Iterator[tuple[Effect, str, str]]:
    """What becomes of a retry whose key stands where it stood. Each field that may hold one is tried."""
    if (old.headers, old.sources) == (new.headers, new.sources):
        return
    retries = list(carrying(probe.method, probe.target, old))
    fates: dict[tuple[Effect, str], list[str]] = {}
    where = [probe.keyed] if old.sources else [name.decode("latin-1") for name in old.headers]
    for name, request in zip(where, retries, strict=False):
        fate = _fate(found_in(request, old), found_in(request, new), new, probe.method)
        if fate is not None:
            fates.setdefault(fate, []).append(name)
    if not retries:
        fates[Effect.FORGETS, "is looked for elsewhere: a retry that carries it there may run again"] = [probe.keyed]
    for (effect, text), names in fates.items():
        yield effect, "key", f"a key in {', '.join(names)} {text}"


#: Where requests carry something that was no key before.
_FILLED_ANYWAY = frozenset((Place.BODY, Place.FORM, Place.COOKIE, Place.PATH))


def _fate(
    before: Keyed | Unreadable | None, after: Keyed | Unreadable | None, new: Policy, method: bytes
) -> tuple[Effect, str] | None:
    """What a retry comes to whose key was `before` and is `after`; None where its record is found."""
    if not isinstance(before, Keyed):
        return None
    if isinstance(after, Unreadable):
        return Effect.FORGETS, "is a part of one now: a retry that carries it there runs again, or is a 400 key-invalid"
    if after is None:
        gone = "is not looked at any more: a retry that carries it there"
        if new.missing is Missing.REFUSE and method not in IDEMPOTENT:
            if any(source.place in _FILLED_ANYWAY for source in new.sources):
                now = ", ".join(map(str, new.sources))
                return Effect.FORGETS, f"{gone} is a 400 key-missing, or runs again if it carries {now} too"
            return Effect.REFUSES, f"{gone} is a 400 key-missing"
        return Effect.FORGETS, f"{gone} runs again"
    if (before.key, before.origin) != (after.key, after.origin):
        return Effect.FORGETS, "names another record now: a retry that carries it there runs again"
    return None


def _derived_from(policy: Policy) -> list[tuple[object, ...]]:
    """The parts of a derived key, each with what decides how it is read."""
    recipe = policy.recipe
    by: dict[object, tuple[object, ...]] = {
        Part.TARGET: (recipe.hosted, recipe.parameters),
        Part.BODY: (recipe.body, recipe.pointers, recipe.form_fields),
        Part.CREDENTIALS: (recipe.bind, recipe.ignore_cookies),
    }
    return [(part, by.get(part)) for part in policy.derive.parts]


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
    below = (re.sub(r"^\*\.", "some.", match.host) for match in matches if match.host)
    hosts = sorted({*below, "any.example"})
    named = {method for match in matches for method in match.methods or ()}
    methods = [b"POST", *sorted({b"PATCH", *named} - {b"POST"})]
    every = product(paths, hosts, methods)
    return (Probe(method, host.encode("latin-1"), path.encode()) for path, host, method in islice(every, MOST))


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

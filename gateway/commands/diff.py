"""`oncegate diff`: which live keys a change of configuration would forget."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ..core.changes import Change, Effect, changes
from ..core.identity import Identity
from ..settings import Settings, addresses, stores
from ..settings.units import show_duration
from .speaking import load

#: A retry would run again, or be refused: somebody should look before the change is made.
LOOK = 1

_TITLES = {
    Effect.FORGETS: "would forget live keys (a retry of what has run would run again)",
    Effect.REFUSES: "would refuse retries that are answered today",
    Effect.NOTE: "to know (live keys are found)",
}


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Which live keys a change from OLD to NEW would forget.

    Exit 0: none, and no retry would be refused; 1: some, or some would be; 64: a file has faults.
    """
    found = between(load(old), load(new))
    click.echo(_json(found) if as_json else _text(found))
    sys.exit(LOOK if any(change.effect is not Effect.NOTE for change in found) else 0)


def between(old: Settings, new: Settings) -> list[Change]:
    """All that changes for keys that live under `old`, what forgets first."""
    everywhere = list(_of_all(old, new))
    found = [*everywhere, *changes(old.routes, new.routes, show_duration)]
    if not everywhere and addresses.scheme_of(new.store) in stores.REDIS:
        before, after = (Identity.of(each.routes.routes, each.secret) for each in (old, new))
        if before.keys and (difference := after.difference(before)):
            text = (
                f"the store's marker names other keys ({difference}): until gates are started with --accept-new-keys "
                "their guarded requests are 503 identity-changed, and then those of gates that still have the former"
            )
            found.append(Change(Effect.REFUSES, "marker", text))
    order = list(Effect)
    return sorted(found, key=lambda change: order.index(change.effect))


def _of_all(old: Settings, new: Settings) -> list[Change]:
    """What every record is named or found by."""
    if not any(route.policy.enforced for route in old.routes.routes):
        return []
    told = []
    before, after = _place(old.store), _place(new.store)
    if before == after == _MEMORY:
        told.append(("store", "memory:// begins empty at every start"))
    elif not _same(before, after):
        told.append(("store", f"{old.shown_store} becomes {new.shown_store}, and the keys stay behind"))
    if old.service != new.service:
        told.append(("service", f"{old.service} becomes {new.service}"))
    if old.secret != new.secret:
        told.append(("secret", "another secret names records otherwise"))
    if old.prefix != new.prefix and isinstance(after, stores.RedisPlace):
        told.append(("prefix", f"{old.prefix} becomes {new.prefix}"))
    return [Change(Effect.FORGETS, what, f"{text}: no key that lives is found") for what, text in told]


_MEMORY = "memory"


def _place(url: str) -> stores.RedisPlace | str:
    """Where a store keeps its records."""
    scheme = addresses.scheme_of(url)
    if scheme in stores.REDIS:
        return stores.redis(url)
    return _MEMORY if scheme == "memory" else url.partition("?")[0]


def _same(one: stores.RedisPlace | str, other: stores.RedisPlace | str) -> bool:
    """Whether two names are of one place. Of Sentinels and of a cluster's nodes, any that both have leads there."""
    if not isinstance(one, stores.RedisPlace) or not isinstance(other, stores.RedisPlace):
        return one == other
    if (one.path, one.master, one.database, one.cluster) != (other.path, other.master, other.database, other.cluster):
        return False
    if one.master or one.cluster:
        return not set(one.hosts).isdisjoint(other.hosts)
    return one.hosts == other.hosts


def _json(found: list[Change]) -> str:
    told = [
        {
            "effect": change.effect.value,
            "what": change.what,
            "text": change.text,
            "old_route": change.before,
            "new_route": change.after,
            "example": change.example or None,
        }
        for change in found
    ]
    forgets = any(change.effect is Effect.FORGETS for change in found)
    refuses = any(change.effect is Effect.REFUSES for change in found)
    return json.dumps({"forgets": forgets, "refuses": refuses, "changes": told}, indent=2, ensure_ascii=False)


def _text(found: list[Change]) -> str:
    lines: list[str] = []
    for effect in Effect:
        mine = [change for change in found if change.effect is effect]
        if mine:
            lines += [f"{_TITLES[effect]}:", *map(_line, mine), ""]
    if not any(change.effect is Effect.FORGETS for change in found):
        lines.append("no live key would be forgotten")
    return "\n".join(lines).rstrip()


def _line(change: Change) -> str:
    if change.before is None:
        return f"  {change.what}: {change.text}"
    where = change.before if change.before == change.after else f"{change.before} → {change.after or 'no route'}"
    return f"  {where}: {change.what}: {change.text}  (as in {change.example})"

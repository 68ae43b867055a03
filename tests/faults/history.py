"""What the clients of one run saw, line by line, and the one checker over it."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """One try of one client: when it began and ended, and what came. `status` 0: the connection broke."""

    key: str
    client: str
    began: float
    ended: float
    status: int = 0
    slug: str = ""
    label: str = ""
    replayed: bool = False
    body: str = ""
    final: bool = False


class History:
    """JSON lines in a file, so that a run that died can be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def add(self, seen: Seen) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(seen)) + "\n")

    def read(self) -> list[Seen]:
        return [Seen(**json.loads(line)) for line in self.path.read_text().splitlines()]


@dataclass(frozen=True)
class Effect:
    key: str
    n: int
    nonce: str
    at: float
    effect: bool = True


def asked(ledger: Path) -> list[Effect]:
    """What reached the origin, and whether it did it. A line that is still being written is none yet."""
    lines = ledger.read_text().splitlines(keepends=True) if ledger.exists() else []
    return [Effect(**json.loads(line)) for line in lines if line.endswith("\n")]


#: What a key's state may be once every lease is over, by the answer that it gives: (status, problem).
DEFINED = frozenset(((201, ""), (409, "in-doubt"), (409, "response-not-kept")))


def faults(seen: Iterable[Seen], done: Iterable[Effect], *, most: int = 1) -> list[str]:
    """What of the promise does not hold in this history; nothing if all does.

    effects per key ≤ `most` · all complete answers per key byte-equal · an answer is an effect's, and comes
    after it · what a client is told to be done was done before · what was said to be stored is there for
    whoever asks later · whoever asked last, after every lease was over, found the key in a defined state.
    """
    seen = list(seen)
    found: list[str] = []
    by_key: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in done:
        if effect.effect:
            by_key[effect.key].append(effect)
    for key, made in by_key.items():
        if len(made) > most:
            found.append(f"{key}: {len(made)} effects")
    answers: defaultdict[str, dict[str, Seen]] = defaultdict(dict)
    for one in seen:
        if one.slug == "response-not-kept" and not any(effect.at <= one.ended for effect in by_key[one.key]):
            found.append(f"{one.key}: {one.client} is told that it is done, and it was not")
        if one.final and (one.status, one.slug) not in DEFINED:
            found.append(f"{one.key}: at the end it is {one.status} {one.slug or one.label}")
        if one.status != 201:
            continue
        answers[one.key].setdefault(one.body, one)
        effect = next((effect for effect in by_key[one.key] if effect.nonce == _nonce(one.body)), None)
        if effect is None:
            found.append(f"{one.key}: {one.client} was given an answer that is no effect's of this key: {one.body}")
        elif effect.at > one.ended:
            found.append(f"{one.key}: {one.client} was answered before the effect")
    stored: dict[str, float] = {}
    for one in seen:
        if one.label in ("stored", "replayed"):
            stored[one.key] = min(one.ended, stored.get(one.key, one.ended))
    found += [
        f"{one.key}: {one.client} is told {one.slug} after the answer was said to be stored"
        for one in seen
        if one.began > stored.get(one.key, one.began) and one.slug in ("in-doubt", "in-flight")
    ]
    for key, bodies in answers.items():
        if len(bodies) > 1:
            found.append(f"{key}: {len(bodies)} different answers")
    return found


def _nonce(body: str) -> str:
    try:
        return str(json.loads(body)["nonce"])
    except (ValueError, KeyError):
        return "not whole"


def now() -> float:
    """CLOCK_MONOTONIC: one clock for all processes of the host."""
    return time.monotonic()

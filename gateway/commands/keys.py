"""`oncegate keys`: what an operator asks of a running gate, through its admin listener.

Exit codes: 0 done · 1 refused (it changed, is not there, is not in doubt) · 64 not a request · 69 the listener or the
store cannot be reached · 77 the token is missing or wrong.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from ..exits import UNAVAILABLE, USAGE
from ..settings import Address, units
from .speaking import give_up

REFUSED = 1
NO_PERMISSION = 77
#: Seconds that the listener may take for one answer: more than a parent waits for its workers.
PATIENCE = 30.0
TOKEN = "ONCEGATE_ADMIN_TOKEN"  # noqa: S105

Json = dict[str, Any]


class Refused(Exception):
    """The listener answered with a problem, or not at all. `code` is the exit code."""

    def __init__(self, code: int, message: str, problem: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.problem = problem or {}


@dataclass(frozen=True, slots=True)
class Listener:
    """The admin listener of a gate, and whether what it says is shown as JSON."""

    address: Address
    token: str = field(repr=False)
    as_json: bool

    def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """Its answer. Raises Refused."""
        headers = {"Accept": "application/json", "Host": str(self.address)}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=PATIENCE)
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
            told = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            message = (
                f"the admin listener at {self.address} does not answer: {error}; does the gate run? "
                "--admin HOST:PORT (or ONCEGATE_ADMIN) names another one"
            )
            if method == "POST":
                message += "; what was asked may have been done: look again"
            raise Refused(UNAVAILABLE, message) from None
        except ValueError:
            raise Refused(UNAVAILABLE, f"what listens at {self.address} is no admin listener") from None
        finally:
            connection.close()
        if response.status != 200:
            raise _refused(response.status, told)
        if not isinstance(told, dict):
            raise Refused(UNAVAILABLE, f"what listens at {self.address} is no admin listener")
        return told


def _refused(status: int, told: Json) -> Refused:
    message = f"{told.get('title', status)}: {told.get('detail', '')}"
    if status in (401, 403):
        return Refused(NO_PERMISSION, f"{message} (--token, or {TOKEN} in the environment)", told)
    if status in (400, 422):
        return Refused(USAGE, message, told)
    return Refused(UNAVAILABLE if status >= 500 else REFUSED, message, told)


# ── What is typed ─────────────────────────────────────────────────────────────────────────────────


class When(click.ParamType):  # type: ignore[type-arg]
    """An instant: RFC 3339, or how long ago (`10m`, `7d`)."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            return (datetime.now(UTC) - timedelta(milliseconds=units.duration(text))).isoformat()
        except ValueError:
            pass
        try:
            when = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            self.fail(f"expected an instant such as 2026-01-31T12:00:00Z, or how long ago such as 10m; found {text}")
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).isoformat()


class Place(click.ParamType):  # type: ignore[type-arg]
    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        text = str(value)
        try:
            return Address.parse(f"127.0.0.1:{text}" if text.isdecimal() else text)
        except ValueError as error:
            self.fail(str(error))


Option = Callable[[Callable[..., None]], Callable[..., None]]


def _as_one(argument: str, make: Callable[..., object], *options: Option) -> Option:
    """Options that a command gets as one argument: what `make` makes of those that its parameters name."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            taken = {name: given.pop(name) for name in signature(make).parameters}
            command(**given, **{argument: make(**taken)})

        for option in reversed(options):
            option(run)
        return run

    return add


@dataclass(frozen=True, slots=True)
class Which:
    """The key that a command is about."""

    key: str | None
    record: str | None
    route: str | None
    scope: Sequence[str]

    def story(self, listener: Listener) -> Json:
        """What the listener tells of it. Raises Refused."""
        if (self.key is None) == (self.record is None):
            raise click.UsageError("say which: KEY, or --name NAME")
        if self.record is not None:
            return listener.ask("GET", f"/keys/{self.record}")
        key = sys.stdin.readline().rstrip("\r\n") if self.key == "-" else self.key
        parts = {}
        for each in self.scope:
            source, equals, value = each.partition("=")
            if not equals:
                raise click.UsageError(f"--scope is SOURCE=VALUE, such as header:X-Tenant-Id=acme; found {each}")
            parts[source] = value
        return listener.ask("POST", "/keys/find", _said(key=key, route=self.route, scope=parts or None))


def _span(since: str | None, until: str | None) -> Json:
    return _said(since=since, until=until)


def _why(reason: str, by: str | None, force: bool) -> Json:
    return _said(reason=reason, by=by, force=force or None)


def _said(**what: Any) -> Json:
    return {name: said for name, said in what.items() if said is not None}


_LISTENER = _as_one(
    "listener",
    Listener,
    click.option(
        "--admin",
        "address",
        type=Place(),
        default="127.0.0.1:8081",
        envvar="ONCEGATE_ADMIN",
        show_default=True,
        metavar="HOST:PORT",
        help="The gate's admin listener.",
    ),
    click.option("--token", envvar=TOKEN, default="", metavar="TOKEN", help=f"Its token; {TOKEN} keeps it out of ps."),
    click.option("--json", "as_json", is_flag=True, help="What the listener said, as JSON."),
)
_CHOSEN = _as_one(
    "span",
    _span,
    click.option("--route", metavar="NAME", help="Of this route."),
    click.option("--since", type=When(), metavar="WHEN", help="First seen since: an instant, or how long ago (2h)."),
    click.option("--until", type=When(), metavar="WHEN", help="First seen before: an instant, or how long ago (10m)."),
)
_ROUTE = click.option("--route", metavar="NAME", help="The route, where they differ in namespace or scope.")
_KEY = _as_one(
    "which",
    Which,
    click.argument("key", required=False),
    click.option("--name", "record", metavar="NAME", help="The record's name, as `list` shows it, instead of a KEY."),
    click.option("--scope", multiple=True, metavar="SOURCE=VALUE", help="Whose key: header:X-Tenant-Id=acme."),
)
_VERSION = click.option(
    "--version", metavar="VERSION", help="Only this version, as `show` told it; else what is shown now."
)
_YES = click.option("--yes", is_flag=True, help="Ask nothing.")
_REASON = _as_one(
    "why",
    _why,
    click.option("--reason", required=True, metavar="TEXT", help="Why, for the audit log."),
    click.option("--by", default=lambda: os.environ.get("USER"), metavar="NAME", help="Who, for the audit log; $USER."),
    click.option("--force", is_flag=True, help="Also where its gate may be alive."),
)


@click.group(name="keys")
def keys() -> None:
    """Look at records, and say what became of those in doubt, through the admin listener of a running gate."""


# ── Looking ───────────────────────────────────────────────────────────────────────────────────────


@keys.command(name="list")
@_CHOSEN
@click.option("--state", type=click.Choice(["in-flight", "in-doubt", "completed"]), help="In this state.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many at most.")
@_LISTENER
def listed(route: str | None, span: Json, state: str | None, limit: int, listener: Listener) -> None:
    """The records of a store, in no order; an interrupted walk says where it stands."""
    asked = _said(route=route, **span, state=state)
    found: list[Json] = []
    page: Json = {"walked": 0, "cursor": ""}
    with _telling(listener):
        for page in _pages(listener, asked, limit, found):
            _progress(page, f"{len(found)} found")
    more = bool(page["cursor"]) or len(found) > limit
    shown = found[:limit]
    if listener.as_json:
        _print_json({"records": shown, "walked": page["walked"], "more": more})
        return
    _table(_COLUMNS, shown)
    tail = "; there are more: say --limit" if more else ""
    click.echo(f"{len(shown)} found, {page['walked']} records walked{tail}", err=True)


def _pages(listener: Listener, asked: Json, limit: int, found: list[Json]) -> Iterator[Json]:
    """One page after another until there are enough. A record that was met twice is listed once."""
    cursor, names = "", set[str]()
    while True:
        query = {**asked, "limit": min(limit, 1000), **({"cursor": cursor} if cursor else {})}
        page = listener.ask("GET", f"/keys?{urlencode(query)}")
        for record in page["records"]:
            if record["name"] not in names:
                names.add(record["name"])
                found.append(record)
        cursor = page["cursor"]
        yield page
        if not cursor or len(found) >= limit:
            return


@keys.command(name="show")
@_ROUTE
@_KEY
@_LISTENER
def show(which: Which, listener: Listener) -> None:
    """One key's story. KEY is what the client sent; `-` reads it from the standard input."""
    with _telling(listener):
        story = which.story(listener)
    if listener.as_json:
        _print_json(story)
    else:
        _tell(story)


# ── Changing ──────────────────────────────────────────────────────────────────────────────────────


@keys.command(name="resolve")
@_CHOSEN
@_KEY
@click.option("--as", "as_", type=click.Choice(["completed", "released"]), required=True, help="What came of it.")
@click.option("--state", type=click.Choice(["in-doubt"]), help="Of many, those in doubt; there are no others.")
@click.option("--status", type=click.IntRange(200, 599), help="Of the answer that duplicates get (completed).")
@click.option("--header", multiple=True, metavar="NAME:VALUE", help="A field of that answer.")
@click.option("--body", metavar="TEXT", help="Its body; @FILE reads a file.")
@_VERSION
@click.option("--dry-run", is_flag=True, help="Of many: what would be resolved, and nothing is.")
@_YES
@_REASON
@_LISTENER
def resolve(
    span: Json,
    which: Which,
    as_: str,
    state: str | None,
    status: int | None,
    header: Sequence[str],
    body: str | None,
    version: str | None,
    dry_run: bool,
    yes: bool,
    why: Json,
    listener: Listener,
) -> None:
    """Say what became of a key in doubt, or of all those of a route and time (without KEY)."""
    change = {**why, "as": as_}
    if as_ == "completed":
        change["answer"] = _answer(status, header, body)
    elif status is not None or header or body is not None:
        raise click.UsageError("--status, --header and --body are of an answer: say --as completed")
    if which.key is None and which.record is None:
        if not (which.route or span):
            raise click.UsageError("say which: KEY, --name, or of many --route, --since, --until")
        change |= _said(route=which.route, **span)
        _resolve_many(listener, change, dry_run=dry_run, yes=yes)
        return
    if dry_run:
        raise click.UsageError("--dry-run is for many; `oncegate keys show` shows one")
    _once(listener, "resolve", change, which, version, yes=yes)


@keys.command(name="forget")
@_ROUTE
@_KEY
@_VERSION
@_YES
@_REASON
@_LISTENER
def forget(which: Which, version: str | None, yes: bool, why: Json, listener: Listener) -> None:
    """Remember nothing of a key: its next request runs."""
    _once(listener, "forget", why, which, version, yes=yes)


def _once(listener: Listener, verb: str, change: Json, which: Which, version: str | None, *, yes: bool) -> None:
    """Show it, ask, and change what was shown: if that has changed meanwhile, nothing is made."""
    with _telling(listener):
        story = which.story(listener)
        shown = story["record"]
        if not listener.as_json:
            _tell(story, err=True)
        if not yes:
            _confirm(f"{verb} it?")
        path = f"/keys/{shown['name']}/{verb}"
        made = listener.ask("POST", path, {**change, "version": version or shown["version"]})
    if listener.as_json:
        _print_json(made)
    else:
        click.echo(f"{verb}: {made['outcome']}" + _audit(made))


def _resolve_many(listener: Listener, change: Json, *, dry_run: bool, yes: bool) -> None:
    if not dry_run and not yes:
        _confirm("resolve all of them? (--dry-run shows which)")
    results: list[Json] = []
    cursor, step = "", Json()
    with _telling(listener):
        while True:
            asked = {**change, "dry_run": dry_run, **({"cursor": cursor} if cursor else {})}
            try:
                step = listener.ask("POST", "/keys/resolve", asked)
            except Refused as refused:
                done = sum(each["outcome"] == "made" for each in results)
                message = f"{refused}; {done} were resolved before. The same command goes on where this one stopped"
                raise Refused(refused.code, message, refused.problem) from None
            results += step["results"]
            cursor = step["cursor"]
            _progress(step, f"{len(results)} in doubt")
            if not cursor:
                break
    counts = Counter(each["outcome"] for each in results)
    if listener.as_json:
        _print_json({"dry_run": dry_run, "walked": step["walked"], "outcomes": counts, "results": results})
    else:
        records = [{**(each.get("record") or {}), **each, "state": each["outcome"]} for each in results]
        _table(_COLUMNS, records if dry_run else [each for each in records if each["outcome"] != "made"])
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none in doubt"
        click.echo(f"{told}; {step['walked']} records walked" + _audit(step))
    if not dry_run and set(counts) - {"made", "gone"}:
        sys.exit(REFUSED)


def _answer(status: int | None, header: Sequence[str], body: str | None) -> Json:
    if status is None:
        raise click.UsageError("--as completed needs the answer that duplicates get: --status, --header, --body")
    lines = []
    for each in header:
        name, colon, value = each.partition(":")
        if not colon:
            raise click.UsageError(f"--header is NAME:VALUE, found {each}")
        lines.append({"name": name.strip(), "value": value.strip()})
    answer: Json = {"status": status, "headers": lines}
    if body is not None and body.startswith("@"):
        try:
            answer["body_base64"] = base64.b64encode(Path(body[1:]).read_bytes()).decode()
        except OSError as error:
            raise click.UsageError(f"{body[1:]} cannot be read: {error.strerror}") from None
    elif body is not None:
        answer["body"] = body
    return answer


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to be asked: say --yes")
    if not click.confirm(question, err=True):
        raise Refused(REFUSED, "nothing was changed")


# ── Telling ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _telling(listener: Listener) -> Iterator[None]:
    """Ends the program with what went wrong; clears the line of progress before anything else is said."""
    refused: Refused | None = None
    try:
        yield
    except Refused as error:
        refused = error
    finally:
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)
    if refused is not None:
        if listener.as_json and refused.problem:
            _print_json(refused.problem)
        give_up(refused.code, str(refused))


def _progress(page: Json, what: str) -> None:
    """One line that changes, where a person looks on."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{page['progress']:4.0%}  {page['walked']} records walked, {what}", nl=False, err=True)


def _print_json(what: Json) -> None:
    click.echo(json.dumps(what, indent=2, ensure_ascii=False))


def _audit(made: Json) -> str:
    said = made.get("audit", "written")
    return "" if said in ("written", "nothing to write") else f" (audit: {said})"


_COLUMNS = ("state", "route", "attempts", "status", "doubt", "first_seen", "name")


def _table(columns: Sequence[str], records: Sequence[Json], *, err: bool = False) -> None:
    if not records:
        return
    rows = [[column.replace("_", " ").upper() for column in columns]]
    rows += ([_cell(record.get(column)) for column in columns] for record in records)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), err=err)


def _cell(value: Any) -> str:
    """As it may be shown on a terminal."""
    text = "–" if value is None or value == "" else str(value)
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _tell(story: Json, *, err: bool = False) -> None:
    record = story["record"]
    for field_name in ("state", "doubt", "status", "attempts", "route", "first_seen", "written", "expires", "version",
                       "name"):  # fmt: skip
        if record[field_name] is not None:
            click.echo(f"{field_name.replace('_', ' '):11} {_cell(record[field_name])}", err=err)
    duplicates = story["duplicates"]
    if not duplicates:
        click.echo("no duplicates of late", err=err)
        return
    click.echo(err=err)
    _table(("time", "client", "kind", "status"), duplicates, err=err)

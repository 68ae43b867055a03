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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
    """The admin listener of a gate."""

    address: Address
    token: str = field(default="", repr=False)

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


def _options(*options: Option) -> Option:
    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_LISTENER = _options(
    click.option(
        "--admin",
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
_CHOSEN = _options(
    click.option("--route", metavar="NAME", help="Of this route."),
    click.option("--since", type=When(), metavar="WHEN", help="First seen since: an instant, or how long ago (2h)."),
    click.option("--until", type=When(), metavar="WHEN", help="First seen before: an instant, or how long ago (10m)."),
)
_KEY = _options(
    click.option("--name", "record", metavar="NAME", help="The record's name, as `list` shows it, instead of a KEY."),
    click.option("--scope", multiple=True, metavar="SOURCE=VALUE", help="Whose key: header:X-Tenant-Id=acme."),
)
_REASON = _options(
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
def listed(
    route: str | None,
    since: str | None,
    until: str | None,
    state: str | None,
    limit: int,
    admin: Address,
    token: str,
    as_json: bool,
) -> None:
    """The records of a store, in no order; an interrupted walk says where it stands."""
    asked = _said(route=route, since=since, until=until, state=state)
    found: list[Json] = []
    page: Json = {"walked": 0, "cursor": ""}
    with _telling(as_json):
        for page in _pages(Listener(admin, token), asked, limit, found):
            _progress(page, f"{len(found)} found")
    more = bool(page["cursor"]) or len(found) > limit
    shown = found[:limit]
    if as_json:
        _print_json({"records": shown, "walked": page["walked"], "more": more})
        return
    _table(shown)
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
@click.argument("key", required=False)
@click.option("--route", metavar="NAME", help="The route, where they differ in namespace or scope.")
@_KEY
@_LISTENER
def show(
    key: str | None,
    route: str | None,
    record: str | None,
    scope: Sequence[str],
    admin: Address,
    token: str,
    as_json: bool,
) -> None:
    """One key's story. KEY is what the client sent; `-` reads it from the standard input."""
    with _telling(as_json):
        story = _story(Listener(admin, token), key, record, route, scope)
    if as_json:
        _print_json(story)
    else:
        _tell(story)


# ── Changing ──────────────────────────────────────────────────────────────────────────────────────


@keys.command(name="resolve")
@click.argument("key", required=False)
@_CHOSEN
@_KEY
@click.option("--as", "as_", type=click.Choice(["completed", "released"]), required=True, help="What came of it.")
@click.option("--state", type=click.Choice(["in-doubt"]), help="Of many, those in doubt; there are no others.")
@click.option("--status", type=click.IntRange(200, 599), help="Of the answer that duplicates get (completed).")
@click.option("--header", multiple=True, metavar="NAME:VALUE", help="A field of that answer.")
@click.option("--body", metavar="TEXT", help="Its body; @FILE reads a file.")
@click.option("--version", metavar="VERSION", help="Only this version, as `show` told it; else what is shown now.")
@click.option("--dry-run", is_flag=True, help="Of many: what would be resolved, and nothing is.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@_REASON
@_LISTENER
def resolve(
    key: str | None,
    route: str | None,
    since: str | None,
    until: str | None,
    record: str | None,
    scope: Sequence[str],
    as_: str,
    state: str | None,
    status: int | None,
    header: Sequence[str],
    body: str | None,
    version: str | None,
    dry_run: bool,
    yes: bool,
    reason: str,
    by: str | None,
    force: bool,
    admin: Address,
    token: str,
    as_json: bool,
) -> None:
    """Say what became of a key in doubt, or of all those of a route and time (without KEY)."""
    change = _said(reason=reason, by=by, force=force or None, **{"as": as_})
    if as_ == "completed":
        change["answer"] = _answer(status, header, body)
    elif status is not None or header or body is not None:
        raise click.UsageError("--status, --header and --body are of an answer: say --as completed")
    listener = Listener(admin, token)
    if key is None and record is None:
        if not (route or since or until):
            raise click.UsageError("say which: KEY, --name, or of many --route, --since, --until")
        change |= _said(route=route, since=since, until=until)
        _resolve_many(listener, change, dry_run=dry_run, yes=yes, as_json=as_json)
        return
    if dry_run:
        raise click.UsageError("--dry-run is for many; `oncegate keys show` shows one")
    _once(listener, "resolve", change, (key, record, route, scope), version, yes=yes, as_json=as_json)


@keys.command(name="forget")
@click.argument("key", required=False)
@click.option("--route", metavar="NAME", help="The route, where they differ in namespace or scope.")
@_KEY
@click.option("--version", metavar="VERSION", help="Only this version, as `show` told it; else what is shown now.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@_REASON
@_LISTENER
def forget(
    key: str | None,
    route: str | None,
    record: str | None,
    scope: Sequence[str],
    version: str | None,
    yes: bool,
    reason: str,
    by: str | None,
    force: bool,
    admin: Address,
    token: str,
    as_json: bool,
) -> None:
    """Remember nothing of a key: its next request runs."""
    change = _said(reason=reason, by=by, force=force or None)
    _once(Listener(admin, token), "forget", change, (key, record, route, scope), version, yes=yes, as_json=as_json)


Said = tuple[str | None, str | None, str | None, Sequence[str]]


def _once(
    listener: Listener, verb: str, change: Json, said: Said, version: str | None, *, yes: bool, as_json: bool
) -> None:
    """Show it, ask, and change what was shown: if that has changed meanwhile, nothing is made."""
    key, record, route, scope = said
    with _telling(as_json):
        story = _story(listener, key, record, route, scope)
        shown = story["record"]
        if not as_json:
            _tell(story, err=True)
        if not yes:
            _confirm(f"{verb} it?")
        path = f"/keys/{shown['name']}/{verb}"
        made = listener.ask("POST", path, {**change, "version": version or shown["version"]})
    if as_json:
        _print_json(made)
    else:
        click.echo(f"{verb}: {made['outcome']}" + _audit(made))


def _resolve_many(listener: Listener, change: Json, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    if not dry_run and not yes:
        _confirm("resolve all of them? (--dry-run shows which)")
    results: list[Json] = []
    cursor, step = "", Json()
    with _telling(as_json):
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
    counts: dict[str, int] = {}
    for each in results:
        counts[each["outcome"]] = counts.get(each["outcome"], 0) + 1
    if as_json:
        _print_json({"dry_run": dry_run, "walked": step["walked"], "outcomes": counts, "results": results})
    else:
        records = [{**(each.get("record") or {}), **each, "state": each["outcome"]} for each in results]
        _table(records if dry_run else [each for each in records if each["outcome"] != "made"])
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


def _story(listener: Listener, key: str | None, record: str | None, route: str | None, scope: Sequence[str]) -> Json:
    if (key is None) == (record is None):
        raise click.UsageError("say which: KEY, or --name NAME")
    if record is not None:
        return listener.ask("GET", f"/keys/{record}")
    if key == "-":
        key = sys.stdin.readline().rstrip("\r\n")
    parts = {}
    for each in scope:
        source, equals, value = each.partition("=")
        if not equals:
            raise click.UsageError(f"--scope is SOURCE=VALUE, such as header:X-Tenant-Id=acme; found {each}")
        parts[source] = value
    return listener.ask("POST", "/keys/find", _said(key=key, route=route, scope=parts or None))


def _said(**what: Any) -> Json:
    return {name: said for name, said in what.items() if said is not None}


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to be asked: say --yes")
    if not click.confirm(question, err=True):
        raise Refused(REFUSED, "nothing was changed")


# ── Telling ───────────────────────────────────────────────────────────────────────────────────────


class _telling:  # noqa: N801  # a with statement reads it as a verb
    """Ends the program with what went wrong; clears the line of progress before anything else is said."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)
        if isinstance(error, Refused):
            if self._as_json and error.problem:
                _print_json(error.problem)
            give_up(error.code, str(error))


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


def _table(records: Sequence[Json]) -> None:
    if records:
        _rows(_COLUMNS, ([_cell(record.get(column)) for column in _COLUMNS] for record in records))


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, err: bool = False) -> None:
    told = [[each.replace("_", " ").upper() for each in header], *rows]
    widths = [max(len(row[place]) for row in told) for place in range(len(header))]
    for row in told:
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
    _rows(
        ("time", "client", "kind", "status"),
        ([_cell(each[column]) for column in ("time", "client", "kind", "status")] for each in duplicates),
        err=err,
    )

"""`oncegate policy`: what is published at /.well-known/idempotency, as Markdown for an API's own documentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..core.document import document, route_of
from ..core.policy import Route
from ..settings.units import show_duration, show_size
from .places import code, listed
from .speaking import load


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def policy(file: Path) -> None:
    """What clients are told of FILE's routes, as Markdown for an API's docs; exit 0 or 64."""
    click.echo(markdown(load(file).routes.routes), nl=False)


def markdown(routes: tuple[Route, ...]) -> str:
    """A page for the clients of these routes. It names nothing that the published document does not, but for the
    hosts, each of which is there told of its own."""
    told = document(routes)
    lines = [
        "# Idempotency",
        "",
        "Send each operation with a key of its own, and the same key with every retry of it, unchanged. The operation "
        "then runs at most once, and every retry is given the first one's answer. GET, HEAD and OPTIONS need no key.",
        "",
    ]
    for route in routes[: len(told["routes"])]:
        lines += _route(route)
    lines += [
        "Whatever matches none of these is not guarded. The first that matches a request counts.",
        "",
        "## Fields of responses",
        "",
        *_table(("field", "value"), ((f"`{name}`", said) for name, said in told["response_fields"].items())),
        "## Refusals",
        "",
        "Refusals are `application/problem+json` (RFC 9457).",
        "",
        *_table(("status", "type", "meaning", "send it again?"), map(_problem, told["problems"])),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _problem(problem: dict[str, Any]) -> tuple[str, ...]:
    again = {True: "yes", False: "no", None: "once corrected"}[problem["retry"]]
    return str(problem["status"]), f"`{problem['type']}`", problem["title"], again


def _route(route: Route) -> Iterator[str]:
    told = route_of(route)
    methods = ", ".join(told["methods"]) if told["methods"] else "Any method"
    host = f" on {_escaped(route.match.host)}" if route.match.host else ""
    yield f"## {methods} `{told['path']}`{host}"
    yield ""
    if told["guarded"]:
        yield from _table(("", ""), (*_keys(told["key"]), *_rules(told)))
    else:
        yield "Not guarded: a retry runs again."
        yield ""


def _rules(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    same, kept, doubt, statuses = (told[name] for name in ("same_request", "kept", "in_doubt", "statuses"))
    if told["scope"]:
        yield "Whose key", f"of each {listed(told['scope'], 'and')}, which must be there"
    yield "Same request", f"{', '.join(same['parts'])}{_read_as(same)}; otherwise {_conflict(same['otherwise'][0])}"
    if same["credentials"]:
        conflict = _conflict(same["otherwise"][1])
        sent = f"{listed(same['credentials'], 'and')}{_or_cookie(same)}, as far as they are sent"
        yield "Same sender", f"{sent}; otherwise {conflict}"
    yield "Body", f"up to {show_size(same['max_body_bytes'])}"
    yield "Replayed for", _duration(told["window_seconds"])
    carried = "all fields" if kept["only_fields"] is None else _codes(kept["only_fields"])
    but = f" but {_codes(kept['not_fields'])}" if kept["only_fields"] is None else ""
    limit = show_size(kept["max_body_bytes"])
    yield (
        "A replay carries",
        f"status, body and {carried}{but}; a body over {limit} is not kept: {_conflict(kept['otherwise'])}",
    )
    flight = told["in_flight"]
    yield (
        "While it runs",
        f"a duplicate waits up to {_duration(flight['wait_seconds'])}, then {_conflict(flight['then'])}",
    )
    then = doubt["then"]
    outcome = f"up to {doubt['max_attempts']} runs in all" if isinstance(then, str) else _conflict(then)
    yield "Outcome unknown", f"{outcome}, for {_duration(doubt['remembered_seconds'])}"
    if statuses["only_kept"] is not None:
        yield "The key is free again after", f"any answer but {', '.join(_ranges(statuses['only_kept']))}"
        return
    free = [str(status) for status in statuses["key_is_free_again"] if status != 503]
    if statuses["503_with_retry_after"] == "key_is_free_again":
        free.append("503 with Retry-After")
    yield "The key is free again after", ", ".join(free)
    yield "Nobody knows after", ", ".join((*map(str, statuses["outcome_is_unknown"]), "600 to 999"))


def _ranges(statuses: list[int]) -> list[str]:
    """Ascending numbers, those that follow each other as `200 to 299`."""
    runs: list[list[int]] = []
    for status in statuses:
        if runs and status == runs[-1][1] + 1:
            runs[-1][1] = status
        else:
            runs.append([status, status])
    return [str(first) if first == last else f"{first} to {last}" for first, last in runs]


def _keys(key: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a key stands, what it must be, what becomes of a request without one, and what the service gets."""
    if key.get("parts_of_one_key"):
        yield "Key", f"these together: {listed(key['in'], 'and')}"
    else:
        yield "Key", listed(key["in"], "or")
    least = f", {key['min_length']} characters at least" if "min_length" in key else ""
    weak = f"; {key['weak']}" if "weak" in key else ""
    each = "each: " if key.get("parts_of_one_key") else ""
    yield "A key is", f"{each}{_format(key['format'])}{least}{weak}"
    yield "Without a key", _without(key)
    if told := key.get("service_gets_it_in"):
        sent = (f"`{each['in'].removeprefix('header:')}`{' as a UUID' * (each['as'] == 'uuid')}" for each in told)
        yield "The service gets it", f"where you sent it, and in {' and '.join(sent)}, in place of what you sent there"


def _format(name: str) -> str:
    known = {"uuid": "a UUID", "ulid": "a ULID"}
    return known.get(name) or (f"what {code(name)} matches" if name.startswith("/") else _escaped(name))


def _without(key: dict[str, Any]) -> str:
    passes = "; a PUT or DELETE is run, and not protected"
    if derived := key.get("derived_otherwise"):
        moment, doubt = _duration(derived["window_seconds"]), _duration(derived["remembered_seconds"])
        same = listed(derived["from"], "and", article="")
        double = f"a request like one before it is taken for its double, for {moment} from the answer"
        return f"{double}, or {doubt} while the outcome is unknown; alike are those of the same {same}{passes}"
    return f"a request is refused{passes}" if key["required"] else "a request is run, and not protected"


def _read_as(same: dict[str, Any]) -> str:
    """How target and body are compared, if not byte for byte."""
    pointers = [each for each in same["body_without"] if each.startswith("/")]
    said = [f"of JSON what it says, however it is spelled{_less(pointers)}"] if same["body"] != "raw" else []
    sources = same["target_without"] + [each for each in same["body_without"] if each not in pointers]
    said += [f"less {listed(sources, 'and')}"] if sources else []
    return f" ({'; '.join(said)})" if said else ""


def _less(names: list[str]) -> str:
    return f", less {_codes(names)}" if names else ""


def _or_cookie(same: dict[str, Any]) -> str:
    """Name the credentials that count if no other one is sent."""
    if not same["cookie_otherwise"]:
        return ""
    more = f" (and {_codes(same['cookie_without'])})" if same["cookie_without"] else ""
    return f", or else `Cookie` without those of load balancers, bot filters and analytics{more}"


def _conflict(conflict: dict[str, Any]) -> str:
    return f"{conflict['status']} `{conflict['type']}`"


def _duration(seconds: float) -> str:
    return show_duration(int(seconds * 1000))


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _escaped(text: str) -> str:
    return text.replace("*", "\\*")


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""

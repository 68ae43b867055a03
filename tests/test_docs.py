"""What the documents say is what the code does."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.core.cookies import INFRASTRUCTURE
from gateway.core.limit import Limit
from gateway.core.message import OPERATION_FIELDS
from gateway.core.policy import Policy
from gateway.core.problem import Label, Problem
from gateway.ops.metrics import Tally
from gateway.reload import FIXED
from gateway.settings import Limits, UpstreamSettings, load_text
from gateway.settings.units import show_duration, show_size

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("problem", list(Problem), ids=lambda problem: problem.slug)
def test_every_problem_stands_in_the_docs_as_the_code_has_it(problem: Problem) -> None:
    """docs/problems.md has one row for each problem, with the status, words and advice of the code."""
    retry = {True: "yes", False: "no", None: ""}[problem.retry]
    row = (
        f"| `{problem.slug}` | {problem.status} | {problem.title} | {problem.detail} | `{problem.outcome}` | {retry} |"
    )
    assert (ROOT / "docs/problems.md").read_text().splitlines().count(row) == 1


def test_the_docs_list_no_problem_that_is_gone() -> None:
    """Nor a slug that the code does not know."""
    slugs = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/problems.md").read_text(), re.MULTILINE)
    assert sorted(slugs) == sorted(problem.slug for problem in Problem)


def test_the_docs_list_what_counts_of_a_request() -> None:
    """docs/scopes.md lists every cookie that is left out of the binding, and every field that selects the operation."""
    page = (ROOT / "docs/scopes.md").read_text()
    rows = re.findall(r"^\| (?:load balancers|bot filters|analytics).*?\| (.*) \|$", page, re.MULTILINE)
    assert re.findall(r"`([^`]+)`", " ".join(rows)) == list(INFRASTRUCTURE)
    method = page.partition("**Method.**")[2].partition("\n\n")[0]
    listed = {name.lower().encode() for name in re.findall(r"`([A-Za-z-]+)`", method)}
    assert listed - {b"headers"} == set(OPERATION_FIELDS)


def test_the_configuration_in_the_readme_is_that_of_the_files() -> None:
    """Each YAML block of the README is a file of config/, byte for byte, and loads."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    files = {path.read_text(): path for path in (ROOT / "config").rglob("*.yaml")}
    assert len(blocks) == 3
    for block in blocks:
        assert block in files
        load_text(block, name=str(files[block]), environ={})


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "deploy/README.md",
        "docs/admin.md",
        "docs/clients.md",
        "docs/concepts.md",
        "docs/design.md",
        "docs/edge.md",
        "docs/keys.md",
        "docs/metrics.md",
        "docs/operations.md",
        "docs/problems.md",
        "docs/redis.md",
        "docs/runbook.md",
        "docs/scopes.md",
        "docs/tracing.md",
        "docs/upstreams.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of a page names a file that is there."""
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    for target in targets:
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", ["clients", "concepts", "operations", "tracing", "upstreams"])
def test_links_to_a_heading_lead_to_one(page: str) -> None:
    """Every link with a # names a heading of the page that it leads to, as GitHub spells it."""
    text = (ROOT / f"docs/{page}.md").read_text()
    for target, heading in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", text):
        there = (ROOT / "docs" / target).read_text() if target else text
        headings = re.findall(r"^#+ (.+)$", there, re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], heading


def _rows(page: str, first: str) -> list[list[str]]:
    """The rows of the tables of a page, cell by cell, whose first cell is like this pattern."""
    text = (ROOT / page).read_text()
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    return [row for row in rows if re.fullmatch(first, row[0])]


def test_what_clients_are_told_of_each_problem() -> None:
    """docs/clients.md has one row for each, with its status, what it means for the effect, and whether to try again."""
    ran = {"no-effect": "not this time", "unknown": "nobody knows", "keep": "yes"}
    again = {True: "yes", False: "no", None: "–"}
    problems = {problem.slug: problem for problem in Problem}
    rows = [row for row in _rows("docs/clients.md", r"`[a-z-]+`") if len(row) == 5]
    assert sorted(row[0].strip("`") for row in rows) == sorted(problems)
    for slug, status, effect, retry, advice in rows:
        problem = problems[slug.strip("`")]
        assert (status, effect, retry) == (str(problem.status), ran[problem.outcome], again[problem.retry]), slug
        assert advice.endswith((".", ")")), slug


def test_what_clients_are_told_of_each_label() -> None:
    """docs/clients.md has one row for each value of Idempotency-Status."""
    rows = [row for row in _rows("docs/clients.md", r"`[a-z-]+`") if len(row) == 3]
    assert sorted(row[0].strip("`") for row in rows) == sorted(Label)


def test_the_metrics_that_operators_are_told_of_are_there() -> None:
    """Each metric that a page names is one that a gate shows."""
    shown = {sample.name for sample in Tally().collect()} | {"oncegate_workers", "oncegate_worker_deaths"}
    for page in ("clients", "concepts", "operations"):
        for name in set(re.findall(r"oncegate_[a-z_]+", (ROOT / f"docs/{page}.md").read_text())):
            assert re.sub("_(total|bucket|count|sum)$", "", name) in shown, f"{page}: {name}"


def test_what_a_reload_takes_up_is_told() -> None:
    """docs/operations.md names each field that needs a start."""
    told = {"admin_token": "admin", "audit": "admin", "on_amnesia": "store"}
    (row,) = _rows("docs/operations.md", "routes, their order.*")
    fixed = {told.get(name, "store" if name.startswith("store_") else name) for name in FIXED}
    assert set(re.findall("`([a-z_]+)`", row[1])) == fixed


def test_the_unique_constraint_of_the_docs_refuses_a_second_run() -> None:
    """The SQL of docs/upstreams.md, run: one row comes back of the first, none of the second; another account's is
    another."""
    table, insert = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/upstreams.md").read_text(), re.DOTALL)
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(table)

        def runs(account: str) -> bool:
            return bool(database.execute(insert, {"account": account, "key": "k", "amount": 1}).fetchall())

        assert [runs("a"), runs("a"), runs("b")] == [True, False, True]


def test_the_docs_never_promise_what_nobody_can() -> None:
    """No page says "exactly once"."""
    for page in (*ROOT.glob("*.md"), *ROOT.joinpath("docs").rglob("*.md")):
        assert "exactly once" not in page.read_text().lower(), page
    assert "exactly once" not in (ROOT / "gateway/demo/story.py").read_text().lower()


def test_every_limit_stands_in_the_docs_as_the_code_has_it() -> None:
    """docs/edge.md has one row for each, in the order of the code, with its default; and names no other. Whatever is a
    field of `limits` is either one of them or said in a row."""
    text = (ROOT / "docs/edge.md").read_text().partition("## Limits")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9A-Za-z]+) \| (.+) \|$", text, re.MULTILINE)
    policy, limits = Policy(), Limits()
    elsewhere = {
        Limit.MAX_REQUEST: policy.max_request,
        Limit.MAX_RESPONSE: policy.max_response,
        Limit.UPSTREAM_CONNECTIONS: UpstreamSettings("", "", 0).connections,
    }

    def shown(limit: str) -> str:
        if limit == Limit.DESCRIPTORS:
            return "ulimit"
        value: int = elsewhere[Limit(limit)] if limit in elsewhere else getattr(limits, limit)
        if limit in ("head", "target", "buffers", "body_rate", "max_request", "max_response"):
            return show_size(value)
        return show_duration(value) if "timeout" in limit or "idle" in limit or limit == "handshake" else str(value)

    assert [(name, default) for name, default, _ in rows] == [(limit, shown(limit)) for limit in Limit]
    for field in dataclasses.fields(Limits):
        assert field.name in set(Limit) or f"`{field.name}` ({show_duration(getattr(limits, field.name))})" in text

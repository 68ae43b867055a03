"""What the documents say is what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from gateway.core.limit import Limit
from gateway.core.policy import Policy
from gateway.core.problem import Problem
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
        "docs/design.md",
        "docs/edge.md",
        "docs/keys.md",
        "docs/metrics.md",
        "docs/problems.md",
        "docs/redis.md",
        "docs/runbook.md",
        "docs/scopes.md",
        "docs/upstreams.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of a page names a file that is there."""
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    for target in targets:
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


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
        value: int = elsewhere[Limit(limit)] if limit in elsewhere else getattr(limits, limit)
        if limit in ("head", "target", "buffers", "body_rate", "max_request", "max_response"):
            return show_size(value)
        return show_duration(value) if "timeout" in limit or "idle" in limit or limit == "handshake" else str(value)

    assert [(name, default) for name, default, _ in rows] == [(limit, shown(limit)) for limit in Limit]
    for field in dataclasses.fields(Limits):
        assert field.name in set(Limit) or f"`{field.name}` ({show_duration(getattr(limits, field.name))})" in text

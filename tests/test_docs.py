"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.core.problem import Problem
from gateway.settings import load_text

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

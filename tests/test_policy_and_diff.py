"""`oncegate policy` and `oncegate diff`, as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import CONFIG, oncegate

REDIS = """\
service: shop
store: redis://:hunter2@redis:6379/0
upstreams: {app: "http://10.1.2.3:9000"}
routes:
  - {name: pay, match: {path: /pay/**, host: "*.shop.example", methods: [POST]}, upstream: app, missing: refuse}
  - {name: all, upstream: app, window: 48h}
"""


def files(folder: Path, old: str, new: str) -> tuple[str, str]:
    for name, text in (("old", old), ("new", new)):
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / "old.yaml"), str(folder / "new.yaml")


# ── diff ──────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_forgotten_is_0(tmp_path: Path) -> None:
    """A route renamed, another window longer, a password changed, an option of the store's → one line, exit 0."""
    new = REDIS.replace("name: pay", "name: payments").replace("48h", "3d").replace("hunter2", "hunter3")
    new = new.replace("6379/0", "6379/0?durability=replicated&replicas=1")
    result = oncegate("diff", *files(tmp_path, REDIS, new))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "no live key would be forgotten\n", "")


def test_a_shorter_window_is_a_note(tmp_path: Path) -> None:
    """It is said, and no key that lives is concerned: exit 0."""
    result = oncegate("diff", *files(tmp_path, REDIS, REDIS.replace("48h", "1h")))
    assert result.exit_code == 0
    assert "all: window: 2d becomes 1h, for answers stored from then on; stored ones keep theirs" in result.stdout
    assert result.stdout.endswith("no live key would be forgotten\n")


#: What names or holds every record: the old words, the new ones, and what is said.
OF_ALL = {
    "service": ("service: shop", "service: till", "shop becomes till"),
    "store": ("redis:6379/0", "redis:6379/1", "redis://…@redis:6379/0 becomes redis://…@redis:6379/1"),
    "prefix": ("service: shop", "prefix: 'x:'\nservice: shop", "og: becomes x:"),
    "secret": ("service: shop", "secret: sesame\nservice: shop", "another secret names records otherwise"),
}


@pytest.mark.parametrize("what", OF_ALL)
def test_what_every_record_is_named_by(tmp_path: Path, what: str) -> None:
    """service, store, prefix, secret → that no live key is found, without a password or the secret; exit 1."""
    before, after, said = OF_ALL[what]
    result = oncegate("diff", *files(tmp_path, REDIS, REDIS.replace(before, after)))
    assert result.exit_code == 1
    assert f"  {what}: {said}" in result.stdout
    assert "no key that lives is found" in result.stdout
    assert "hunter2" not in result.stdout
    assert "sesame" not in result.stdout


def test_a_moved_target_as_json(tmp_path: Path) -> None:
    """--json → whether keys are forgotten, and each change with its routes and a request as an example; exit 1."""
    new = REDIS.replace("missing: refuse", "missing: refuse, namespace: pay")
    result = oncegate("diff", "--json", *files(tmp_path, REDIS, new))
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["forgets"], told["refuses"]) == (True, True)
    namespace, marker = told["changes"]
    assert namespace == {
        "effect": "forgets",
        "what": "namespace",
        "text": "default becomes pay: no key that lives is found",
        "old_route": "pay",
        "new_route": "pay",
        "example": "POST some.shop.example/pay",
    }
    assert (marker["effect"], marker["what"], marker["example"]) == ("refuses", "marker", None)
    assert "--accept-new-keys" in marker["text"]


def test_a_fleet_that_grows_is_the_same_store(tmp_path: Path) -> None:
    """One more Sentinel, or node of a cluster, leads to the same place; other ones do not."""
    for scheme in ("redis+sentinel://s1,s2/shop", "redis+cluster://s1,s2"):
        old = REDIS.replace("redis://:hunter2@redis:6379/0", scheme)
        assert oncegate("diff", *files(tmp_path, old, old.replace("s1,s2", "s2,s3"))).exit_code == 0
        assert oncegate("diff", *files(tmp_path, old, old.replace("s1,s2", "t1,t2"))).exit_code == 1


def test_memory_forgets_at_every_start(tmp_path: Path) -> None:
    """The same file twice: a gate in memory begins anew all the same."""
    text = REDIS.replace("redis://:hunter2@redis:6379/0", "memory://")
    result = oncegate("diff", *files(tmp_path, text, text))
    assert (result.exit_code, "memory:// begins empty" in result.stdout) == (1, True)


def test_a_faulty_file_is_64(tmp_path: Path) -> None:
    """Either of the two: its faults on stderr, nothing on stdout."""
    for old, new in ((REDIS, REDIS + "    nonsense: 1\n"), ("routes: 1\n", REDIS)):
        result = oncegate("diff", *files(tmp_path, old, new))
        assert (result.exit_code, result.stdout) == (64, "")
        assert result.stderr


# ── policy ────────────────────────────────────────────────────────────────────────────────────────


def test_the_policy_as_markdown(tmp_path: Path) -> None:
    """policy FILE → a page with a table for each route and the refusals, and nothing that is behind the gate."""
    unguarded = "  - {name: files, match: {path: /f/*}, upstream: app, guard: false}\n"
    text = REDIS.replace("  - {name: all", unguarded + "  - {name: all")
    file, _ = files(tmp_path, text, "")
    result = oncegate("policy", file)
    assert (result.exit_code, result.stderr) == (0, "")
    page = result.stdout
    assert "## POST `/pay/**` on \\*.shop.example\n" in page
    assert "| Without a key | a request is refused; a PUT or DELETE is run, and not protected |" in page
    assert "## Any method `/f/*`\n\nNot guarded" in page
    assert "| Replayed for | 2d |" in page
    assert "| 422 | `urn:oncegate:problem:key-reused` |" in page
    for hidden in ("10.1.2.3", "redis", "hunter2", "files", "og:"):
        assert hidden not in page, hidden
    for row in (line for line in page.splitlines() if line.startswith("|")):
        assert row.endswith("|")


@pytest.mark.parametrize("file", sorted(CONFIG.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_that_we_ship_has_a_policy(file: Path) -> None:
    """A page for each, and a change to itself forgets nothing."""
    page = oncegate("policy", str(file)).stdout
    assert page.startswith("# Idempotency\n")
    assert page.count("\n## ") >= 3
    assert oncegate("diff", str(file), str(file)).exit_code == 0


def test_a_policy_of_a_faulty_file_is_64(tmp_path: Path) -> None:
    """Its faults on stderr."""
    file, _ = files(tmp_path, "routes: 1\n", "")
    result = oncegate("policy", file)
    assert (result.exit_code, result.stdout) == (64, "")
    assert result.stderr

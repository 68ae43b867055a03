"""What a newcomer copies from the pages is run: each ```sh block as it stands, in bash, before a real gate.

Only the ports are others, so that tests can run side by side, and `make` is told not to make its environment anew. If
the next block is ```text, it is what the ```sh block prints: these lines in this order, `…` for anything (a line, or
a part of one).

Whoever adds a shell block to a page adds it to a story here, or to `ELSEWHERE` with the place where it is run or the
reason why it cannot be; else `test_every_shell_block_is_run` fails.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from gateway.cli import main
from tests.servers import RedisServer, free_port, preferred

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "deploy/README.md", ROOT / "loadtest/README.md")
)
#: The ports that the pages name: the gate's, its operators', the service's, and Redis'.
NAMED = ("8080", "8081", "9000", "6379")
#: Seconds for a story: a few, where the machine does nothing else.
PATIENCE = 100
#: What the README says first, for blocks that do not follow it.
INSTALLED = "export PATH=$PWD/.venv/bin:$PATH\n"

#: Blocks that no story here plays, by the page and what they begin with.
ELSEWHERE = {
    ("README.md", "docker compose up"): "tests/containers/test_composed.py",
    ("deploy/README.md", "docker build"): "tests/containers/test_image.py",
    ("deploy/README.md", "kubectl apply"): "needs a cluster; the files are held against the schemas in tests/deploy",
    ("docs/clients.md", "# URL is where"): "tests/e2e/test_recipes.py",
    ("docs/admin.md", "oncegate keys list"): "tests/test_keys.py; its options are looked up below",
    ("CONTRIBUTING.md", "make test "): "this is one of them",
    ("CONTRIBUTING.md", "make model"): "minutes, and Spin",
}


@dataclass(frozen=True)
class Block:
    """A ```sh block of a page, and what the page says that it prints."""

    page: str
    heading: str
    text: str
    prints: str

    def __str__(self) -> str:
        return f"{self.page}, {self.heading}: {self.text.splitlines()[0]}"


def _blocks(page: str) -> Iterator[Block]:
    # Of what split returns, every second part stands between fences: its first line is the language.
    prose, *rest = re.split(r"^```", (ROOT / page).read_text(), flags=re.MULTILINE)
    heading = ""
    for place in range(0, len(rest), 2):
        heading = (re.findall(r"^#+ (.+)$", prose, re.MULTILINE) or [heading])[-1]
        language, _, text = rest[place].partition("\n")
        prose = rest[place + 1]
        below, _, prints = rest[place + 2].partition("\n") if place + 2 < len(rest) else ("", "", "")
        if language == "sh":
            yield Block(page, heading, text, prints if below == "text" else "")


BLOCKS = [block for page in PAGES for block in _blocks(page)]


def section(page: str, heading: str) -> list[Block]:
    """The blocks under a heading, without those that are run elsewhere."""
    found = [block for block in BLOCKS if (block.page, block.heading) == (page, heading)]
    return [block for block in found if not elsewhere(block)]


def elsewhere(block: Block) -> bool:
    return any(block.page == page and block.text.startswith(words) for page, words in ELSEWHERE)


@dataclass
class Desk:
    """A folder as a fresh clone is, with ports of its own, and a `make` that leaves the environment as it is."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {port: free_port() for port in NAMED})
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(ROOT / "config", self.folder / "config")
        shutil.copy(ROOT / "Makefile", self.folder)
        (self.folder / ".venv").mkdir()
        (self.folder / ".venv/bin").symlink_to(BIN)
        for file in (self.folder / "config").rglob("*.yaml"):
            file.write_text(self.here(file.read_text()))
        make = self.folder / "tools/make"
        make.parent.mkdir()
        words = f"LISTEN=127.0.0.1:{self.ports['8080']} ADMIN=127.0.0.1:{self.ports['8081']}"
        make.write_text(f'#!/bin/sh\nexec {shutil.which("make")} -o .venv/.installed {words} "$@"\n')
        make.chmod(0o755)
        (self.folder / ".venv/.installed").touch()
        self.environment = {
            **os.environ,
            "PATH": f"{make.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ONCEGATE_ADMIN": f"127.0.0.1:{self.ports['8081']}",
        }

    def here(self, text: str) -> str:
        """A text of the pages with this desk's ports."""
        return re.sub(rf"\b({'|'.join(NAMED)})\b", lambda port: str(self.ports[port[1]]), text)

    def plays(self, blocks: list[Block], before: str = "", after: str = "") -> list[str]:
        """What each block prints, all of them run in one shell that ends at the first that fails."""
        assert blocks
        mark = "\n─── the next block\n"
        script = f"printf '{mark}'\n".join(self.here(block.text).rstrip() + "\n" for block in blocks)
        script = f"set -euo pipefail\n{before}\nprintf '{mark}'\n{script}\n{after}"
        out, err = self.folder / "stdout", self.folder / "stderr"  # files: what is left running would hold pipes open
        with out.open("wb") as to, err.open("wb") as why:
            shell = subprocess.Popen(
                ["bash", "-c", script], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=to,
                stderr=why, start_new_session=True,
            )  # fmt: skip
        try:
            code = shell.wait(PATIENCE)
        finally:
            _end(shell.pid)
            shell.wait(10)
        said = out.read_text()
        assert code == 0, f"{said}\n{err.read_text()}"
        printed = said.split(mark)[1:]
        for block, output in zip(blocks, printed, strict=True):
            follows(self.here(block.prints), output, str(block))
        return printed

    @contextmanager
    def left_running(self, block: Block) -> Iterator[str]:
        """A block that does not end by itself; what it has printed by the time that the gate is ready."""
        log = self.folder / "running.log"
        with log.open("wb") as out:
            shell = subprocess.Popen(
                ["bash", "-euc", INSTALLED + self.here(block.text)], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + PATIENCE
            while "listening" not in log.read_text():  # said once it is ready
                assert shell.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield log.read_text()
        finally:
            _end(shell.pid)
            shell.wait(10)


def _end(session: int) -> None:
    """End what a shell of ours has left behind: its session is its process group."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def follows(said: str, printed: str, where: str) -> None:
    """The lines that a page shows are among those that were printed, in their order; `…` is anything."""
    lines = iter(printed.replace("\r", "").splitlines())
    for line in said.splitlines():
        if line.strip() == "…":
            continue
        wanted = re.compile(".*".join(re.escape(part) for part in line.split("…")))
        assert any(wanted.fullmatch(each) for each in lines), f"{where}: `{line}` is not in\n{printed}"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# ── The README ────────────────────────────────────────────────────────────────────────────────────


def test_sixty_seconds(desk: Desk) -> None:
    """`make run` in one terminal, all the others in a second one; what is printed is what the page shows."""
    run, *others = section("README.md", "Try it in 60 seconds")
    with desk.left_running(run) as said:
        answers, *_ = desk.plays(others)
    assert answers.splitlines().count("HTTP/1.1 201 Created") == 2, "the first runs into the second"
    for curl in re.findall(r"curl .*?(?=   #)", said):
        assert str(desk.ports["8080"]) in curl or str(desk.ports["8081"]) in curl


def test_what_make_run_prints_can_be_copied(desk: Desk) -> None:
    """The four lines that it says to try do what they say beside them."""
    run, *_ = section("README.md", "Try it in 60 seconds")
    with desk.left_running(run) as said:
        tries = [line.strip() for line in said.splitlines() if line.startswith("  curl")]
        printed = desk.plays([Block("make run", "what it prints", line, "") for line in tries])
    assert [re.findall(r"^Idempotency-Status: (.+)$", each, re.MULTILINE) for each in printed] == [
        ["stored"], ["replayed"], ["refused"], [],
    ]  # fmt: skip
    assert 'oncegate_duplicates_total{kind="replayed",route="all"} 1.0' in printed[-1].splitlines()


def test_a_sidecar_in_ten_minutes(desk: Desk) -> None:
    """The steps, one after the other; then two gates' worth of Redis."""
    *steps, more = section("README.md", "A sidecar in ten minutes")
    assert len(steps) == 5
    printed = desk.plays(steps)
    stored, replayed = re.findall(r'"id": (\d+)', printed[2])
    assert stored == replayed
    assert "stopped: everything in flight was answered and settled" in (desk.folder / "gate.log").read_text()
    with RedisServer(preferred(), arguments=("--maxmemory-policy", "noeviction")) as redis:
        desk.ports["6379"] = redis.port
        doctor, run = more.text.splitlines()
        judged = Block(more.page, more.heading, doctor, "…\nguarded requests would be served\n")
        desk.plays([judged], before=INSTALLED)
        with desk.left_running(Block(more.page, more.heading, run, "")) as said:
            assert '"store":"redis"' in said


def test_duplicates_are_seen_and_a_first_order_of_compose_is_a_first_order(desk: Desk) -> None:
    """The metrics that the README greps are there once a duplicate was caught."""
    run, *_ = section("README.md", "Try it in 60 seconds")
    (order,) = section("README.md", "Deploy")
    (look,) = section("README.md", "See the duplicates")
    with desk.left_running(run):
        first, again, seen = desk.plays([order, order, look])
    assert ("Idempotency-Status: stored" in first, "Idempotency-Status: replayed" in again) == (True, True)
    assert 'oncegate_duplicates_total{kind="replayed",route="all"} 1.0' in seen.splitlines()


def test_a_newcomer_reads_little_before_the_first_command() -> None:
    """Fewer than 150 words, drawing included."""
    before, _, _ = (ROOT / "README.md").read_text().partition("```sh\n")
    assert len(before.split()) < 150


def test_the_readme_says_what_a_newcomer_looks_for() -> None:
    """What it promises and what not, a sidecar, the stores, the duplicates, the price."""
    headings = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert headings[:6] == [
        "Try it in 60 seconds", "What it promises", "What it does not", "A sidecar in ten minutes", "Stores",
        "See the duplicates",
    ]  # fmt: skip
    assert "What it costs" in headings


# ── The docs ──────────────────────────────────────────────────────────────────────────────────────

GATE = f"""
{INSTALLED}cp config/examples/sidecar.yaml gateway.yaml
oncegate run --config gateway.yaml > gate.log & gate=$!
until curl -sf http://127.0.0.1:8081/ready >/dev/null; do sleep 0.1; done
"""


def test_operators_commands(desk: Desk) -> None:
    """Those of operations.md, runbook.md and redis.md, beside a gate that runs; the backup is one, and goes back."""
    pages = ("docs/operations.md", "docs/runbook.md", "docs/redis.md")
    blocks = [block for block in BLOCKS if block.page in pages and not elsewhere(block)]
    backup = [block for block in blocks if block.heading == "Backup and restore"]
    open_files = [block for block in blocks if block.text.startswith("ulimit")]
    assert (len(backup), len(open_files)) == (2, 1)
    living = [
        Block(each.page, each.heading, _at_home(each.text), each.prints)
        for each in blocks
        if each not in (backup[1], *open_files) and (each not in backup or shutil.which("sqlite3"))
    ]
    printed = desk.plays(living, before=desk.here(GATE), after="kill $gate && wait $gate")
    assert any('{"accepted": false}' in each for each in printed)
    assert any("no live key would be forgotten" in each for each in printed)
    assert "the configuration was read anew" in (desk.folder / "gate.log").read_text()
    if shutil.which("sqlite3"):
        desk.plays([backup[1]])
        doctor = Block("", "", "oncegate doctor --config gateway.yaml", "…\nguarded requests would be served\n")
        desk.plays([doctor], before=INSTALLED)
    if _may_open(16_384):
        desk.plays(open_files)


def _at_home(text: str) -> str:
    """A command with the folder's file for the host's, and the gate's own PID."""
    return text.replace("/etc/oncegate/gateway.yaml", "gateway.yaml").replace("PID", "$gate")


def _may_open(files: int) -> bool:
    return subprocess.run(["bash", "-c", f"ulimit -n {files}"], check=False, stderr=subprocess.DEVNULL).returncode == 0


# ── All of them ───────────────────────────────────────────────────────────────────────────────────


def test_every_shell_block_is_run() -> None:
    """In a story above, or elsewhere; and nothing is said of a block that is gone."""
    played = {
        *section("README.md", "Try it in 60 seconds"), *section("README.md", "A sidecar in ten minutes"),
        *section("README.md", "See the duplicates"), *section("README.md", "Deploy"),
    }  # fmt: skip
    played |= {each for each in BLOCKS if each.page in ("docs/operations.md", "docs/runbook.md", "docs/redis.md")}
    assert [str(block) for block in BLOCKS if block not in played and not elsewhere(block)] == []
    for page, words in ELSEWHERE:
        assert any(block.page == page and block.text.startswith(words) for block in BLOCKS), (page, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_is_one(page: str) -> None:
    """`oncegate COMMAND --option`, wherever it stands: the command has it."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / page).read_text())
    for words in re.findall(r"(?<![\w/-])oncegate ((?:[a-z-]+ )*[^\n`]*)", text):
        command: click.Command = main
        for word in words.split():
            if isinstance(command, click.Group) and word.strip("`.,:;)") in command.commands:
                command = command.commands[word.strip("`.,:;)")]
            else:
                break
        if command is main:
            continue
        if isinstance(command, click.Group):
            continue  # `oncegate keys list|show|…`
        options = {name for each in command.params for name in each.opts} | {"--help"}
        for option in re.findall(r"(?<=\s)(--[a-z-]+)", words.partition("#")[0]):
            assert option in options, f"{page}: oncegate {command.name} {option}"


def test_the_page_of_metrics_says_what_each_kind_of_duplicate_means() -> None:
    """One row each, in docs/metrics.md."""
    from gateway.ports import DuplicateKind

    rows = re.findall(r"^\| `(\w+)` \| (?:given|kept|told) ", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(DuplicateKind)


def test_what_follows_is_what_is_looked_for() -> None:
    """A line that is not there, or stands elsewhere, is told."""
    follows("a\n…\nc…e\n", "a\nb\ncde\n", "")
    for wrong in ("b\na\n", "a\nd\n"):
        with pytest.raises(AssertionError, match="is not in"):
            follows(wrong, "a\nb\nc\n", "")

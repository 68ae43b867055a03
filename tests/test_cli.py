"""The command as a shell sees it: what it says, where, and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway import __version__
from gateway.cli import main
from tests.e2e.crowd import admin, eventually
from tests.harness import Origin, ask, configuration
from tests.servers import free_port

CONFIG = Path(__file__).parent.parent / "config"


def oncegate(*arguments: str) -> Result:
    """The command, in this process. A gate that starts where none should is told to stop, and so ends with 0."""
    bound = threading.Timer(15, os.kill, (os.getpid(), signal.SIGTERM))
    bound.start()
    try:
        return CliRunner().invoke(main, arguments)
    finally:
        bound.cancel()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


# ── What needs no gate ────────────────────────────────────────────────────────────────────────────


def test_version() -> None:
    """--version → the version, exit 0."""
    result = oncegate("--version")
    assert (result.exit_code, result.stdout) == (0, f"oncegate, version {__version__}\n")


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_names_the_commands(word: str) -> None:
    """--help → what it is and its commands; of a command, its options; exit 0."""
    result = oncegate(word)
    assert result.exit_code == 0
    assert "one key, one effect, the same answer" in result.stdout
    for command in ("run", "check", "demo", "sample-service"):
        assert f"\n  {command} " in result.stdout
    result = oncegate("run", word)
    assert result.exit_code == 0
    for option in ("--config FILE", "--upstream URL", "--listen HOST:PORT", "--admin HOST:PORT", "--store URL",
                   "--service NAME", "--workers N"):  # fmt: skip
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--bogus"], "No such option '--bogus'"),
        (["run", "--listen"], "Option '--listen' requires an argument"),
        (["run", "something"], "unexpected extra argument"),
        (["run", "--workers", "0"], "Invalid value for '--workers': 0 is not in the range 1<=x<=256"),
        (["check"], "Missing argument 'FILE'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_a_command_that_is_not_understood_is_64(arguments: list[str], message: str) -> None:
    """A command line that cannot be read → what is wrong with it on stderr, exit 64 (EX_USAGE)."""
    result = oncegate(*arguments)
    assert (result.exit_code, result.stdout) == (64, "")
    assert message in result.stderr


def test_check_of_a_good_file() -> None:
    """check FILE → one line that says what is in it, exit 0."""
    result = oncegate("check", str(CONFIG / "minimal.yaml"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{CONFIG}/minimal.yaml: good: 1 route, 1 of them guarded, 1 upstream\n"


FAULTY = """\
listen: 127.0.0.1:{port}
admin: {{listen: 127.0.0.1:{admin}}}
store: memory://
upstreams:
  app: http://127.0.0.1:9000
routes:
  - name: all
    upstream: ap
    widow: 1h
    wait: 5
"""


def faulty(folder: Path, port: int = 8080, admin: int = 8081) -> Path:
    file = folder / "faulty.yaml"
    file.write_text(FAULTY.format(port=port, admin=admin))
    return file


def test_check_of_a_bad_file_tells_all_of_its_faults(tmp_path: Path) -> None:
    """check FILE with three faults → a line for each, with file, line, path and what to write; exit 64."""
    file = faulty(tmp_path)
    result = oncegate("check", str(file))
    assert (result.exit_code, result.stdout) == (64, "")
    first, second, third = result.stderr.splitlines()
    assert first.startswith(f"{file}:8: routes[0].upstream: ")
    assert "did you mean `app`?" in first
    assert second == f"{file}:9: routes[0].widow: unknown field; did you mean `window`?"
    assert third.startswith(f"{file}:10: routes[0].wait: ")
    assert "use 5s" in third


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    """check of no file → it says so, exit 64, and no traceback."""
    result = oncegate("check", str(tmp_path / "none.yaml"))
    assert result.exit_code == 64
    assert result.stderr == f"{tmp_path}/none.yaml: there is no such file\n"


# ── What keeps a gate from starting ───────────────────────────────────────────────────────────────


def test_run_with_a_file_and_an_upstream_is_64() -> None:
    """run --config … --upstream … → which of the two, exit 64."""
    result = oncegate("run", "--config", str(CONFIG / "minimal.yaml"), "--upstream", "http://127.0.0.1:9000")
    assert (result.exit_code, result.stdout) == (64, "")
    assert result.stderr == ("oncegate: --upstream and --config do not go together: the file names its upstreams\n")


def test_run_with_neither_says_what_to_write() -> None:
    """run → both ways to start, and the demo; exit 64."""
    result = oncegate("run")
    assert (result.exit_code, result.stdout) == (64, "")
    for words in ("--upstream http://127.0.0.1:9000", "--config FILE", "oncegate demo"):
        assert words in result.stderr


def test_run_of_a_bad_file_tells_all_of_its_faults_and_binds_nothing(tmp_path: Path, taken: int) -> None:
    """run with a faulty file whose ports are taken → its faults and not the ports: none was bound; exit 64."""
    result = oncegate("run", "--config", str(faulty(tmp_path, taken, taken + 1 if taken < 65535 else 1)))
    assert (result.exit_code, result.stdout) == (64, "")
    assert len(result.stderr.splitlines()) == 3
    assert "bound" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--listen", "8080:80800"], "--listen: "),
        (["--upstream", "https://bank.example/v1"], "--upstream: holds a path"),
        (["--store", "redis://127.0.0.1:6379/0"], "--service: is missing, and a shared store needs it"),
        (["--store", "mysql://db"], "--store: no store is called mysql://"),
        (["--service", "a b"], "--service: `a b` is not a name"),
        (["--admin", "127.0.0.1:8080"], "the admin listener cannot share 127.0.0.1:8080 with the gate"),
    ],
)
def test_a_bad_flag_is_named(flags: list[str], fault: str) -> None:
    """run with a flag that cannot be → the flag and what to write instead, exit 64."""
    result = oncegate("run", "--upstream", "http://127.0.0.1:9000", *flags)
    assert (result.exit_code, result.stdout) == (64, "")
    assert fault in result.stderr


def test_run_with_every_fault_of_the_flags_at_once() -> None:
    """Two bad flags → two lines."""
    result = oncegate("run", "--upstream", "nowhere", "--listen", "here")
    assert result.exit_code == 64
    assert [line.partition(":")[0] for line in sorted(result.stderr.splitlines())] == ["--listen", "--upstream"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_69_and_named(taken: int, tmp_path: Path, workers: str) -> None:
    """run on a port that is taken → which, exit 69, one line and no traceback; for the gate's and the admin's; with
    one process and with several."""
    for mine, other in (("--listen", "--admin"), ("--admin", "--listen")):
        result = oncegate(
            "run", "--upstream", "http://127.0.0.1:9000", "--store", f"sqlite:///{tmp_path}/keys.db", mine,
            f"127.0.0.1:{taken}", other, f"127.0.0.1:{free_port()}", "--workers", workers,
        )  # fmt: skip
        assert result.exit_code == 69
        (line,) = result.stderr.splitlines()
        assert line.startswith("oncegate: an address cannot be bound: ")
        assert str(taken) in line
        assert "in use" in line
        assert "--listen (or `listen` in the file) is where clients come in, --admin (or `admin`)" in line


def test_a_port_of_the_sample_service_in_use_is_69(taken: int) -> None:
    """sample-service on a port that is taken → one line that says what to do, exit 69, and no traceback."""
    result = oncegate("sample-service", "--port", str(taken))
    assert (result.exit_code, result.stdout) == (69, "")
    (line,) = result.stderr.splitlines()
    assert "in use" in line
    assert line.endswith("; choose another port with --port")


def test_several_workers_on_memory_are_64(taken: int) -> None:
    """run --workers 2 with memory:// → what to use instead, exit 64, and nothing was bound; one worker is none."""
    here = ["run", "--upstream", "http://127.0.0.1:9000", "--listen", f"127.0.0.1:{taken}", "--store", "memory://"]
    result = oncegate(*here, "--workers", "2")
    assert (result.exit_code, result.stdout) == (64, "")
    assert result.stderr == (
        "oncegate: --workers: 2 processes cannot share memory://, and each would run every key; "
        "use sqlite:///oncegate.db or redis://HOST:PORT/0\n"
    )
    assert oncegate(*here, "--workers", "1").exit_code == 69


def test_a_store_that_can_never_work_is_69(tmp_path: Path) -> None:
    """run with the file of the store in a folder that is not there, or on a file of something else → why, exit 69,
    and nothing is bound or made."""
    port = free_port()
    here = ["run", "--upstream", "http://127.0.0.1:9", "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0"]
    result = oncegate(*here, "--store", f"sqlite:///{tmp_path}/missing/keys.db")
    assert (result.exit_code, result.stdout) == (69, "")
    assert result.stderr == (
        f"oncegate: {tmp_path}/missing/keys.db: the folder {tmp_path}/missing does not exist; make it first\n"
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, " * 100)
    result = oncegate(*here, "--store", f"sqlite:///{tmp_path}/letter.txt")
    assert result.exit_code == 69
    assert "file is not a database" in result.stderr


# ── A gate that starts ────────────────────────────────────────────────────────────────────────────


class Process:
    """The command, in a process of its own in `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.err = folder / "stderr"
        self.out = folder / "stdout"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", *arguments], cwd=folder, stdout=out, stderr=err,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip

    def messages(self) -> list[str]:
        return [json.loads(line).get("message", "") for line in self.out.read_text().splitlines()]

    async def ends(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 15)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_without_a_file(tmp_path: Path, number: signal.Signals) -> None:
    """run --upstream URL → every path guarded, records in ./oncegate.db; the log says where it listens and what
    the store is good for; SIGTERM, and Ctrl-C, end it with 0 and a closing sentence; nothing on stderr."""
    origin = await Origin().start()
    port, admin_port = free_port(), free_port()
    here = Process(
        tmp_path, "run", "--upstream", origin.url, "--listen", f"127.0.0.1:{port}", "--admin",
        f"127.0.0.1:{admin_port}",
    )  # fmt: skip
    try:
        await eventually(lambda: _ready(admin_port), bool)
        first = await ask(port, target="/any/where", key="k1")
        again = await ask(port, target="/any/where", key="k1")
        assert (first.label, again.label, origin.effects) == ("stored", "replayed", {b"k1": 1})
        assert (tmp_path / "oncegate.db").is_file()
        assert await here.ends(number) == 0
        told = [json.loads(line) for line in here.out.read_text().splitlines()]
        assert (told[0]["addresses"], told[0]["admin"]) == (f"127.0.0.1:{port}", f"127.0.0.1:{admin_port}")
        assert told[1]["message"] == "this store protects one gateway; a second instance of the service needs redis"
        assert told[-1]["message"] == "stopped: everything in flight was answered and settled"
        assert here.err.read_text() == ""
    finally:
        here.close()
        await origin.stop()


async def _ready(admin_port: int) -> bool:
    try:
        return (await admin(admin_port, "/ready"))[0] == 200
    except ConnectionError:
        return False


async def test_flags_override_the_file(tmp_path: Path) -> None:
    """run --config FILE with flags → listens where the flags say, on the store that they name, escapes and all."""
    origin = await Origin().start()
    file = tmp_path / "gate.yaml"
    file.write_text(configuration(origin.url, store="memory://", listen=1, admin=2))
    port, admin_port = free_port(), free_port()
    here = Process(
        tmp_path, "run", "--config", str(file), "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin_port}",
        "--store", f"sqlite:///{tmp_path}/odd%23name.db?durability=process",
    )  # fmt: skip
    try:
        await eventually(lambda: _ready(admin_port), bool)
        assert (await ask(port, key="k1")).label == "stored"
        assert (tmp_path / "odd#name.db").is_file()
        assert await here.ends(signal.SIGTERM) == 0
    finally:
        here.close()
        await origin.stop()

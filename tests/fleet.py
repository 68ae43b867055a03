"""One primary, its replicas and the Sentinels over them: real servers of our own on the loopback."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import redis

from tests.servers import RedisServer, free_port, spawn

MASTER = "payments"
#: Milliseconds after which a Sentinel holds a silent server for down.
DOWN_AFTER = 1000
OPTIONS = {"down-after-milliseconds": DOWN_AFTER, "failover-timeout": 3000, "parallel-syncs": 5}


class SentinelServer:
    """One Sentinel. Two of three must agree that a primary is down."""

    def __init__(self, binary: Path, primary: int, *, quorum: int = 2) -> None:
        self.port = free_port()
        self._binary = binary
        self._quorum = quorum
        self._lines: tuple[str, ...] = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"sentinel monitor {MASTER} 127.0.0.1 {primary} {quorum}",
            *(f"sentinel {option} {MASTER} {value}" for option, value in OPTIONS.items()),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, folder: Path) -> SentinelServer:
        file = folder / f"sentinel-{self.port}.conf"
        file.write_text("\n".join(self._lines) + "\n")
        self._process = spawn(str(self._binary), str(file), "--sentinel", "--loglevel", "warning")
        return self

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5, decode_responses=True)

    def names(self) -> int:
        """The port of the primary that it names; 0 where it names none."""
        try:
            with self.client() as client:
                return int(client.sentinel_get_master_addr_by_name(MASTER)[1])
        except (redis.RedisError, TypeError):
            return 0

    def monitor(self, primary: int) -> None:
        """Begin anew with this primary."""
        with self.client() as client:
            client.sentinel_remove(MASTER)
            client.sentinel_monitor(MASTER, "127.0.0.1", primary, self._quorum)
            for option, value in OPTIONS.items():
                client.sentinel_set(MASTER, option, value)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Fleet:
    """`nodes[0]` is the first primary."""

    def __init__(self, binary: Path, *, replicas: int = 2, sentinels: int = 3, stubborn: int = 0) -> None:
        """The last `stubborn` replicas cannot be told to follow another primary."""
        primary = RedisServer(binary)
        follow = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        deaf = (
            "--rename-command",
            "REPLICAOF",
            "OBEY",
            "--rename-command",
            "SLAVEOF",
            "FOLLOW",
            "--replica-priority",
            "0",
        )
        self.nodes = [primary] + [
            RedisServer(binary, arguments=follow + (deaf if n >= replicas - stubborn else ())) for n in range(replicas)
        ]
        primary.arguments = ("--repl-diskless-sync-delay", "0")
        self.sentinels = [SentinelServer(binary, primary.port) for _ in range(sentinels)]

    def start(self) -> Fleet:
        """Start all, and wait until they know each other; where one does not come, none stays."""
        with ExitStack() as undo:
            undo.callback(self.close)
            self._start()
            undo.pop_all()
        return self

    def _start(self) -> None:
        for node in self.nodes:
            node.start()
        self.until(lambda: self.in_step(self.nodes[0]) == len(self.nodes) - 1, "all replicas are in step")
        for sentinel in self.sentinels:
            sentinel.start(self.nodes[0].folder)
        self.until(self._all_know, "the Sentinels know each other and all replicas")

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        for node in self.nodes:
            node.close()

    def url(self, options: str = "") -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{MASTER}" + (f"?{options}" if options else "")

    # ── What is ───────────────────────────────────────────────────────────────────────────────────

    def in_step(self, node: RedisServer) -> int:
        """How many replicas acknowledge a write to `node`. (One that is `online` may take a second to do so.)"""
        try:
            with node.client() as client:
                client.set("in-step", 1, px=1000)
                return int(client.execute_command("WAIT", len(self.nodes) - 1, 50))
        except redis.RedisError:
            return 0

    def primary(self) -> RedisServer | None:
        """The primary that most Sentinels name."""
        named = [port for sentinel in self.sentinels if (port := sentinel.names())]
        port = max(set(named), key=named.count) if named else 0
        return next((node for node in self.nodes if node.port == port), None)

    def _all_know(self) -> bool:
        for sentinel in self.sentinels:
            try:
                with sentinel.client() as client:
                    state = client.sentinel_master(MASTER)
            except redis.RedisError:
                return False
            if int(state["num-slaves"]) != len(self.nodes) - 1:
                return False
            if int(state["num-other-sentinels"]) != len(self.sentinels) - 1:
                return False
        return True

    # ── What is done to it ────────────────────────────────────────────────────────────────────────

    def until_promoted(self, old: RedisServer, seconds: float = 40) -> RedisServer:
        """Wait until the Sentinels have put another in the place of `old`."""
        self.until(lambda: self.primary() not in (None, old), "another primary is named", seconds)
        primary = self.primary()
        assert primary is not None
        return primary

    def agreed(self, primary: RedisServer) -> bool:
        """Whether all Sentinels name this one."""
        return all(sentinel.names() == primary.port for sentinel in self.sentinels)

    def agree(self, primary: RedisServer, seconds: float = 15) -> None:
        """Wait until all Sentinels name this primary and know who follows it. One of them may stay behind for as long
        as one looks (decision 12), and two that do would elect nobody when this one dies: whoever runs them tells it
        anew."""
        deadline = time.monotonic() + seconds
        while not self.agreed(primary) and time.monotonic() < deadline:
            time.sleep(0.05)
        for sentinel in self.sentinels:
            if sentinel.names() != primary.port:
                sentinel.monitor(primary.port)
        self.until(self._all_know, "the Sentinels know each other and all replicas")

    def rejoin(self, node: RedisServer, primary: RedisServer) -> None:
        """Start a dead node again, as a replica (whoever restarts a pod does so; a Sentinel would in ten seconds)."""
        node.arguments = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        node.start()

    def freeze(self, *nodes: RedisServer) -> None:
        for node in nodes:
            node.signal(signal.SIGSTOP)

    def leave_behind(self, primary: RedisServer) -> None:
        """Freeze all replicas of it, and fill the sockets to them: what is written now does not leave the primary.
        (A frozen replica would still find in its socket what came while it was.)"""
        self.freeze(*(node for node in self.nodes if node is not primary))
        with primary.client() as client:
            for _ in range(4):
                client.set("filling", b"x" * (8 << 20), px=1000)

    def thaw(self, *nodes: RedisServer) -> None:
        for node in nodes:
            node.signal(signal.SIGCONT)

    @staticmethod
    def until(what: object, claim: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not what():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"not in {seconds} s: {claim}"
            time.sleep(0.05)

"""One run: a ledger, a store, gates before them, clients that retry, and the history of it all.

The times of DESIGN are made short so that leases lapse while one waits: timeout 1 s, late 0.5 s, a margin
of 0.5 s, so a lease of 2 s. Lapses of different keys go side by side.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import h11

from gateway.failpoints import REACHED
from tests.edge.stand import eventually
from tests.harness import Client, GateProcess, configuration, request
from tests.servers import RedisServer, free_port, preferred

from .history import Effect, History, Seen, asked, faults, now
from .proxy import Proxy

LEASE = 2.0
#: `make faults` says `long`: everything is done this many times as often.
TIMES = 10 if os.environ.get("ONCEGATE_FAULTS") == "long" else 1

_TIMES = "timeout: 1s, late: 500ms, connect: 500ms"
_POLICY = "store_wait: 500ms"


class Gate(GateProcess):
    """A gate process whose death is expected; `defect` names one of tests/faults/defects.py."""

    def __init__(self, text: str, *, failpoint: str = "", defect: str = "", skew: float = 0, workers: int = 1) -> None:
        environ = {"ONCEGATE_FAILPOINT": failpoint, "ONCEGATE_DEFECT": defect, "ONCEGATE_SKEW": str(skew)}
        super().__init__(text, environ=environ, arguments=("--workers", str(workers)))
        if defect or skew:
            self.module = "tests.faults.defects"

    async def start(self) -> Gate:
        """As any gate; where a failpoint is armed, clients that retry may end it before it is seen to be ready."""
        try:
            await super().start()
        except AssertionError:
            assert self.process is not None
            if not self._environ["ONCEGATE_FAILPOINT"] or self.process.poll() != -signal.SIGKILL:
                raise
        return self

    def metric(self, name: str) -> float:
        """The sum of a counter's values, as a scrape shows them now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def ready_guarded(self) -> str:
        """What /ready/guarded says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/ready/guarded", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    @property
    def lines(self) -> list[dict[str, object]]:
        """The log so far, of each process that this gate was."""
        text = self.log.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def reached(self) -> bool:
        """Whether its failpoint was reached."""
        return REACHED in self.log.read_text()


class Stage:
    """Everything of one run, in one folder. `store`: sqlite, redis, or the URL of one that stands already."""

    def __init__(
        self, folder: Path, store: str, *, defect: str = "", wait: str = "1s", policy: str = "",
        origin: str = "tests.faults.ledger", upstream: str = _TIMES,
    ) -> None:  # fmt: skip
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.kind = store
        self.defect = defect
        self.origin = origin
        self.upstream = upstream
        self.policy = ", ".join(filter(None, (_POLICY, f"wait: {wait}", policy)))
        self.history = History(folder / "history.jsonl")
        self.ledger = folder / "ledger.jsonl"
        self.port = free_port()
        self.redis: RedisServer | None = None
        self.proxies: list[Proxy] = []
        self.gates: list[Gate] = []
        self._origin: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Stage:
        self._origin = subprocess.Popen([sys.executable, "-m", self.origin, str(self.port), str(self.ledger)])
        if self.kind == "redis":
            self.redis = await asyncio.to_thread(RedisServer(preferred()).start)
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return self

    async def __aexit__(self, *_: object) -> None:
        for gate in self.gates:
            gate.close()
        for proxy in self.proxies:
            await proxy.stop()
        if self.redis is not None:
            self.redis.close()
        assert self._origin is not None
        self._origin.kill()
        self._origin.wait()

    @property
    def store(self) -> str:
        if "://" in self.kind:
            return self.kind
        if self.redis is not None:
            return f"redis://127.0.0.1:{self.redis.port}/0"
        return f"sqlite:///{self.folder}/keys.db"

    async def proxy(self, *, store: bool) -> Proxy:
        """One more proxy: in front of the store, or of the origin."""
        assert self.redis is not None or not store
        proxy = await Proxy(self.redis.port if store and self.redis else self.port).start()
        self.proxies.append(proxy)
        return proxy

    async def gate(
        self,
        *,
        failpoint: str = "",
        store: Proxy | None = None,
        origin: Proxy | None = None,
        skew: float = 0,
        workers: int = 1,
    ) -> Gate:
        """One more gate. `skew`: by how many seconds its wall clock is ahead."""
        text = configuration(
            f"http://127.0.0.1:{origin.port if origin else self.port}",
            store=f"redis://127.0.0.1:{store.port}/0" if store else self.store,
            policy=self.policy,
            upstream=self.upstream,
            top="margin: 500ms\ngrace: 2s",
        )
        gate = Gate(text, failpoint=failpoint, defect=self.defect, skew=skew, workers=workers)
        self.gates.append(gate)
        await gate.start()
        return gate

    # ── Clients ───────────────────────────────────────────────────────────────────────────────────

    async def ask(
        self, gate: Gate, key: str, client: str = "", *, origin: str = "", final: bool = False, seconds: float = 8
    ) -> Seen:
        """One try, written into the history."""
        began = now()
        seen = Seen(key, client, began, began)
        try:
            connection = await Client.connect(gate.port)
            try:
                fields = [("X-Origin", origin)] if origin else []
                await connection.send(request(key=key, body=b'{"amount":1}', fields=fields))
                answer = await connection.read(method=b"POST", seconds=seconds)
            finally:
                connection.close()
        except (OSError, EOFError, TimeoutError, h11.RemoteProtocolError, AssertionError):
            seen = Seen(key, client, began, now(), final=final)
        else:
            problem = answer.get("Content-Type") == "application/problem+json"
            slug = json.loads(answer.body)["type"].rpartition(":")[2] if problem else ""
            seen = Seen(
                key, client, began, now(), answer.status, slug, answer.get("Idempotency-Status") or "",
                answer.get("Idempotent-Replayed") == "true", answer.body.decode(), final,
            )  # fmt: skip
        self.history.add(seen)
        return seen

    async def retry(
        self, gate: Gate, key: str, client: str = "", *, origin: str = "", seconds: float = LEASE * 3
    ) -> Seen:
        """Ask as a good SDK does: again after a broken connection, 409 in-flight, 429 and 503."""
        deadline = now() + seconds
        while True:
            seen = await self.ask(gate, key, client, origin=origin)
            if seen.status not in (0, 429, 503) and seen.slug != "in-flight":
                return seen
            if now() > deadline:
                return seen
            await asyncio.sleep(0.1)

    async def crowd(self, gates: list[Gate], keys: list[str], copies: int, *, origin: str = "") -> None:
        """Each key asked for by so many clients at once, each of whom retries."""
        await asyncio.gather(
            *(
                self.retry(gates[copy % len(gates)], key, f"{key}/{copy}", origin=origin)
                for key in keys
                for copy in range(copies)
            )
        )

    async def settle(self, gate: Gate, keys: list[str], *, origin: str = "") -> None:
        """Wait until every lease is over by a second, then ask once for each key: its state is defined."""
        await asyncio.sleep(LEASE + 1)
        await asyncio.gather(*(self.ask(gate, key, "last", origin=origin, final=True) for key in keys))

    # ── Verdict ───────────────────────────────────────────────────────────────────────────────────

    def asked(self) -> list[Effect]:
        return asked(self.ledger)

    async def until_asked(self, count: int) -> None:
        """Wait until so many requests have reached the origin and are written down."""
        try:
            await eventually(lambda: len(self.asked()) >= count, f"the origin has {count} requests", 10)
        except AssertionError as error:
            raise AssertionError(f"{error}; it has {self.asked()}, and clients saw {self.history.read()}") from None

    def faults(self, *, most: int = 1) -> list[str]:
        return faults(self.history.read(), self.asked(), most=most)

"""The log: one canonical line per guarded request, and alarms. JSON, or for people on a terminal.

Lines are gathered for a moment and written by a thread of the log's own: a pipe that nobody reads must
not stop the gate. Past a bound lines are dropped, and the next one says how many.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from functools import lru_cache
from typing import TextIO

from ..core.instant import instant
from ..ports import Account, Clock, DuplicateKind, VerdictName

#: Seconds for which lines are gathered; how many gathers may wait for the writer.
_GATHER = 0.1
_WAITING = 100


class Log:
    """The observer that writes. `keys`: show the key's text instead of a short digest."""

    def __init__(self, out: TextIO, clock: Clock, *, as_json: bool, keys: bool = False) -> None:
        self._out = out
        self._clock = clock
        self._format = self._json if as_json else self._text
        self._as_json = as_json
        self._encoding = getattr(out, "encoding", None) or "utf-8"
        self._keys = keys
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._queue: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="oncegate-log", daemon=True)
        self._thread.start()

    # ── ports.Observer ────────────────────────────────────────────────────────────────────────────

    def finished(self, account: Account) -> None:
        if account.verdict is not VerdictName.PASS:
            self._put(self._format(account))

    def store_called(self, operation: str, seconds: float, *, failed: bool) -> None: ...

    def store_forgot(self, route: str) -> None:
        self.alarm("the store forgot a claim that it had acknowledged; it was told again", route=route)

    def alarm(self, what: str, **facts: object) -> None:
        self.say("alarm", what, **facts)

    # ── Lines ─────────────────────────────────────────────────────────────────────────────────────

    def say(self, level: str, what: str, **facts: object) -> None:
        """A line that is not about a request."""
        self._put(self._line(level, what, facts))

    def _line(self, level: str, what: str, facts: dict[str, object]) -> str:
        if self._as_json:
            return json.dumps({"time": self._now(), "level": level, "message": what, **facts}, default=str)
        told = "".join(f" {name}={value}" for name, value in facts.items())
        return self._printable(f"{self._now()[11:23]} {level:5} {what}{told}")

    def _json(self, account: Account) -> str:
        parts = [
            f'{{"time":"{self._now()}","level":"info","route":{_quoted(account.route)},'
            f'"method":{_quoted(account.method.decode("latin-1"))},"verdict":"{account.verdict}",'
            f'"status":{account.status},"idempotency":"{account.label}"'
        ]
        if account.name:
            parts.append(f'"key":{self._key(account)}')
        if account.duplicate is not None:
            parts.append(f'"duplicate":"{account.duplicate}"')
        if account.settlement is not None and account.reason is not None:
            parts.append(f'"settlement":"{account.settlement.value}","reason":"{account.reason.value}"')
        if account.problem:
            parts.append(f'"problem":"{account.problem}"')
        if account.attempt:
            parts.append(f'"attempt":{account.attempt}')
        for name, seconds in (
            ("total_ms", account.total),
            ("upstream_ms", account.upstream),
            ("claim_ms", account.claim),
            ("settle_ms", account.settle),
        ):
            if seconds is not None:
                parts.append(f'"{name}":{seconds * 1000:.3f}')
        if account.age is not None:
            parts.append(f'"age_s":{account.age:.3f}')
        parts.append(f'"peer":{_quoted(account.peer)},"request_bytes":{account.request_bytes}')
        if account.response_bytes:
            parts.append(f'"response_bytes":{account.response_bytes}')
        if account.detail:
            parts.append(f'"detail":{json.dumps(account.detail)}')
        return ",".join(parts) + "}"

    def _text(self, account: Account) -> str:
        what = account.problem or account.label
        how = " attached" if account.duplicate is DuplicateKind.ATTACHED else ""  # the others are what `what` says
        took = f"{account.total * 1000:.1f} ms"
        if account.upstream is not None:
            took += f" (upstream {account.upstream * 1000:.1f})"
        asked = b"%b %b" % (account.method, account.target)
        line = f"{self._now()[11:23]} {asked.decode('ascii', 'backslashreplace')} {account.status} {what}{how} {took}"
        if account.name:
            line += f" key={self._key(account)}"
        return self._printable(line + (f" {account.detail}" if account.detail else ""))

    def _printable(self, line: str) -> str:
        """One line that moves no terminal, in what the output can encode."""
        if not line.isprintable():
            line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        return line.encode(self._encoding, "backslashreplace").decode(self._encoding)

    def _key(self, account: Account) -> str:
        if self._keys and account.key is not None:
            return json.dumps(account.key.text.decode("latin-1"))
        return f'"{account.name[:12].decode()}"'

    def _now(self) -> str:
        return instant(self._clock.wall()).decode()

    # ── Writing ───────────────────────────────────────────────────────────────────────────────────

    def _put(self, line: str) -> None:
        self._lines.append(line)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(_GATHER, self._hand_over)
            except RuntimeError:  # before the loop runs, and after
                self._hand_over()

    def _hand_over(self) -> None:
        self._timer = None
        count = len(self._lines)
        if text := self._gathered():
            try:
                self._queue.put_nowait(text)
                self._dropped = 0
            except queue.Full:
                self._dropped += count

    def _gathered(self) -> str:
        """The lines of a moment, and how many were dropped before them."""
        lines, self._lines = self._lines, []
        if self._dropped:
            lines.append(self._line("warning", "log lines were dropped", {"count": self._dropped}))
        return "".join(f"{line}\n" for line in lines)

    def _write(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                self._out.write(text)
                self._out.flush()
            except OSError:
                pass  # a full disk, which may have room again later; or a reader that left, which costs little
            except ValueError:
                return  # it is closed

    def close(self, seconds: float = 2.0) -> None:
        """Write what there is, at most so long."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            if text := self._gathered():
                self._queue.put(text, timeout=seconds)
                self._dropped = 0
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return json.dumps(text)

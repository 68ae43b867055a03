"""The log: one canonical line per guarded request, and alarms. JSON, or for people on a terminal.

Each line of JSON begins with `time`, `level` and `message` (capture.py has those of libraries). A
guarded request's message is `request`.

Lines are gathered for a moment and written by a thread of the log's own: a pipe that nobody reads must
not stop the gate. Past a bound lines are dropped, and the next one says how many.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import select
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TextIO

from ..core.decide import Reason
from ..core.instant import instant
from ..core.instant import second_of as _second
from ..core.problem import UNKNOWN, Problem
from ..core.record import Kind
from ..ports import Account, Clock, DuplicateKind, VerdictName
from .observers import Deaf

#: Seconds for which lines are gathered; how many gathers may wait for the writer.
_GATHER = 0.1
_WAITING = 100
#: A write to a pipe up to this size is never mixed with another's.
_PIECE = select.PIPE_BUF
#: The message of a line about a request.
REQUEST = "request"
#: Problems that an operator must look at: the outcome is unknown, or nothing is served before somebody acts.
_ERRORS = frozenset(
    problem.slug
    for problem in Problem
    if problem.status >= 500 and (problem.outcome == UNKNOWN or problem is Problem.IDENTITY_CHANGED)
)


def level_of(status: int, problem: str, *, shadow: bool = False) -> str:
    """The level of a request's line. Only the gateway's own 5xx is more than `info`: a 5xx of the service is passed on,
    and a problem in shadow mode reaches no client."""
    if status < 500 or not problem or shadow:
        return "info"
    return "error" if problem in _ERRORS else "warning"


class Log(Deaf):
    """The observer that writes. `keys`: show the key's text instead of a short digest."""

    def __init__(self, out: TextIO, clock: Clock, *, as_json: bool, keys: bool = False) -> None:
        self._encoding = getattr(out, "encoding", None) or "utf-8"
        self._out: TextIO | LineWriter
        try:
            self._out = LineWriter(out.fileno(), self._encoding)
        except (OSError, ValueError):  # in memory, or closed
            self._out = out
        self._clock = clock
        self._format = self._json if as_json else self._text
        self.as_json = as_json
        self._keys = keys
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._queue: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._dropped = 0
        #: Facts of each line of this process.
        self._own_facts: dict[str, object] = {}
        #: The last instant that was written, and how.
        self._at = 0
        self._written = ""
        self._writer = threading.Thread(target=self._write, name="oncegate-log", daemon=True)
        self._writer.start()

    # ── ports.Observer ────────────────────────────────────────────────────────────────────────────

    def finished(self, account: Account) -> None:
        if account.verdict is not VerdictName.PASS:
            self._put(self._format(account))

    def store_forgot(self, route: str) -> None:
        self.alarm("the store forgot a claim that it had acknowledged; it was told again", route=route)

    def alarm(self, what: str, **facts: object) -> None:
        self.say("alarm", what, **facts)

    # ── Lines ─────────────────────────────────────────────────────────────────────────────────────

    def say(self, level: str, what: str, **facts: object) -> None:
        """A line that is not about a request."""
        self._put(self._line(level, what, facts))

    def _line(self, level: str, what: str, facts: dict[str, object]) -> str:
        if self.as_json:
            return _dumped({"time": self._now(), "level": level, "message": what, **facts})
        told = "".join(f" {name}={value}" for name, value in facts.items())
        return self._printable(f"{self._now()[11:23]} {level:5} {what}{told}")

    def _json(self, account: Account) -> str:
        alike = _alike(
            account.route,
            account.method,
            account.verdict,
            account.status,
            account.label,
            account.duplicate,
            account.settlement,
            account.reason,
            account.problem,
            account.attempt,
            account.peer,
            account.shadow,
        )
        key = ""
        if account.name:
            key = f',"key":{self._key(account)}' if self._keys else f',"key":"{account.name[:12].decode()}"'
        line = f'{{"time":"{self._now()}",{alike},"total_ms":{account.total * 1000:.3f}{key}'
        if account.upstream is not None:
            line += f',"upstream_ms":{account.upstream * 1000:.3f}'
        if account.claim is not None:
            line += f',"claim_ms":{account.claim * 1000:.3f}'
        if account.settle is not None:
            line += f',"settle_ms":{account.settle * 1000:.3f}'
        if account.waited is not None:
            line += f',"waited_ms":{account.waited * 1000:.3f}'
        if account.age is not None:
            line += f',"age_s":{account.age:.3f}'
        if account.weak:
            line += f',"weak_key":"{account.weak}"'
        sizes = f',"request_bytes":{account.request_bytes}'
        if account.response_bytes:
            sizes += f',"response_bytes":{account.response_bytes}'
        if account.detail:
            sizes += f',"detail":{json.dumps(account.detail)}'
        return f"{line}{sizes}}}"

    def _text(self, account: Account) -> str:
        what = account.problem or account.label
        how = " attached" if account.duplicate is DuplicateKind.ATTACHED else ""  # the others are what `what` says
        took = f"{account.total * 1000:.1f} ms"
        if account.upstream is not None:
            took += f" (upstream {account.upstream * 1000:.1f})"
        path, query, _ = account.target.partition(b"?")
        # Tokens, vouchers and keys stand in queries: that there is one is told, and not what it says.
        asked = b"%b %b%b" % (account.method, path, query and b"?...")
        level = level_of(account.status, account.problem, shadow=account.shadow)
        if level != "info":
            asked = level.encode() + b" " + asked
        if account.shadow:
            # It never got that status from us: the line says what it would have come to.
            what, how = f"would {account.verdict} {what}", ""
        line = f"{self._now()[11:23]} {asked.decode('ascii', 'backslashreplace')} {account.status} {what}{how} {took}"
        if account.name:
            line += f" key={self._key(account)}"
        if account.weak:
            line += f" weak_key={account.weak}"
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
        wall = self._clock.wall()
        if wall != self._at:
            second, rest = divmod(wall, 1000)
            self._at, self._written = wall, f"{_second(second)}.{rest:03d}Z"
        return self._written

    # ── Writing ───────────────────────────────────────────────────────────────────────────────────

    def say_at_once(self, level: str, what: str, **facts: object) -> None:
        """As `say`, from any thread. The line is not gathered with others, and goes to stderr after `close`."""
        text = line(self._clock.wall(), level, what, **facts, **self._own_facts) + "\n"
        try:
            if self._writer.is_alive():
                self._queue.put_nowait(text)
            else:
                os.write(2, text.encode())
        except (OSError, queue.Full):
            pass  # there is nowhere left to report it

    def _put(self, line: str) -> None:
        self._lines.append(line + "\n")
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
            lines.append(self._line("warning", "log lines were dropped", {"count": self._dropped}) + "\n")
        return "".join(lines)

    def _write(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                self._out.write(text)
                self._out.flush()
            except OSError:
                pass  # a full disk, which may have room again later; or a reader that left, which costs little
            except ValueError:
                return  # it is closed
        if isinstance(self._out, LineWriter):
            self._out.close()

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
        self._writer.join(seconds)


class LineWriter:
    """Writes lines to the descriptor of a file, past its buffer.

    Each write has as many whole lines as a pipe takes in one piece, so that lines of several processes are not mixed.
    Only a line that is longer may be. A buffer would do harm. A thread that is blocked in a buffered write holds the
    lock of the buffer, and the interpreter flushes stdout when it exits and aborts if it cannot get that lock. With a
    full pipe as stdout a drained process ended with SIGABRT on Python 3.13.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        # A number of its own: that of a closed file may be a connection's next.
        self._descriptor = os.dup(descriptor)
        self._encoding = encoding

    def write(self, text: str) -> None:
        for piece in pieces(text.encode(self._encoding, "backslashreplace"), _PIECE):
            done = 0
            while done < len(piece):
                done += os.write(self._descriptor, piece[done:])

    def flush(self) -> None: ...

    def close(self) -> None:
        os.close(self._descriptor)


def pieces(lines: bytes, most: int) -> Iterator[bytes]:
    """`lines` cut at ends of lines, into pieces of at most so many bytes, save for a line that is longer."""
    start = 0
    while len(lines) - start > most:
        end = lines.rfind(b"\n", start, start + most) + 1
        if not end:
            end = lines.find(b"\n", start) + 1 or len(lines)
        yield lines[start:end]
        start = end
    if start < len(lines):
        yield lines[start:]


@lru_cache(maxsize=1024)
def _alike(
    route: str,
    method: bytes,
    verdict: VerdictName,
    status: int,
    label: str,
    duplicate: DuplicateKind | None,
    settlement: Kind | None,
    reason: Reason | None,
    problem: str,
    attempt: int,
    peer: str,
    shadow: bool,
) -> str:
    """What the lines of many requests have in common."""
    told: dict[str, object] = {
        "level": level_of(status, problem, shadow=shadow),
        "message": REQUEST,
        "route": route,
        "mode": "shadow" if shadow else None,
        "method": method.decode("latin-1"),
        "verdict": verdict,
        "status": status,
        "idempotency": label,
        "duplicate": duplicate,
        "settlement": settlement,
        "reason": reason,
        "problem": problem or None,
        "attempt": attempt or None,
        "peer": peer,
    }
    return _dumped({name: said for name, said in told.items() if said is not None})[1:-1]


def line(wall: int, level: str, what: str, **facts: object) -> str:
    """One line of JSON, at this instant in milliseconds since 1970."""
    return _dumped({"time": instant(wall).decode(), "level": level, "message": what, **facts})


def _dumped(told: Mapping[str, object]) -> str:
    """The one spelling of JSON that the log has."""
    return json.dumps(told, default=str, separators=(",", ":"))

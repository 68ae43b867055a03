"""The log: one line per guarded request, that a machine can read, and that tells nobody's secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gateway.app import App
from gateway.clock import HostClock
from gateway.core.key import Key
from gateway.core.problem import Label, Problem
from gateway.ops.capture import capture
from gateway.ops.log import Log, level_of
from gateway.ports import Account, VerdictName
from gateway.settings import load_text
from tests.e2e.crowd import admin, callers, eventually
from tests.e2e.test_attach import metric
from tests.harness import Client, Exchange, GateProcess, Origin, RunningGate, ask, configuration, gate, request
from tests.servers import free_port

WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
ALWAYS = {
    "time", "level", "message", "route", "method", "verdict", "status", "idempotency", "total_ms", "peer",
    "request_bytes",
}  # fmt: skip


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    origin = await Origin().start()
    yield origin
    await origin.stop()


def requests(running: RunningGate) -> list[dict[str, object]]:
    """The lines that are about requests."""
    return [line for line in running.lines if line["message"] == "request"]


def words(line: dict[str, object], *names: str) -> list[object]:
    return [line.get(name) for name in names]


# ── What it says ──────────────────────────────────────────────────────────────────────────────────


async def test_one_line_for_each_guarded_request(origin: Origin) -> None:
    """First, replay, key reused, other credentials, lost, in doubt, key invalid: a line for each, in the words that
    the client, the metrics and the design use. What is not guarded has none."""
    async with gate(configuration(origin.url)) as running:
        await ask(running.port, key="order-4711", body=b"12345")
        await ask(running.port, key="order-4711", body=b"12345")
        await ask(running.port, key="order-4711", body=b"other")
        await ask(running.port, key="order-4711", body=b"12345", fields=[("Authorization", "Bearer x")])

        async def breaks_off(exchange: Exchange) -> None:
            exchange.reset()

        origin.answer = breaks_off
        await ask(running.port, key="order-4712")
        await ask(running.port, key="order-4712")
        await ask(running.port, key="not a key")
        await ask(running.port, "GET", body=b"")
        await ask(running.port, "POST", "/open/x", key="k3")
        lines = requests(running)
    facts = ("verdict", "status", "idempotency", "duplicate", "settlement", "reason", "problem", "attempt")
    assert [words(line, *facts) for line in lines] == [
        ["forward", 201, "stored", None, "keep", "answered", None, 1],
        ["replay", 201, "replayed", "replayed", None, None, None, None],
        ["refuse", 422, "refused", "key_reused", None, None, "key-reused", None],
        ["refuse", 422, "refused", "credentials_differ", None, None, "credentials-differ", None],
        ["forward", 502, "in-doubt", None, "hold", "lost", "upstream-lost", 1],
        ["refuse", 409, "in-doubt", "in_doubt", None, None, "in-doubt", None],
        ["refuse", 400, "refused", None, None, None, "key-invalid", None],
    ]
    for line in lines:
        assert line.keys() >= ALWAYS
        assert words(line, "route", "method", "peer") == ["all", "POST", "127.0.0.1"]
        assert line["level"] == ("error" if line["status"] == 502 else "info")
        assert WHEN.fullmatch(str(line["time"]))
        assert 0 < float(str(line["total_ms"])) < 10_000
    first, replay, *_ = lines
    assert first.keys() == ALWAYS | {
        "key", "settlement", "reason", "attempt", "upstream_ms", "claim_ms", "settle_ms", "response_bytes",
    }  # fmt: skip
    assert replay.keys() == ALWAYS | {"key", "duplicate", "claim_ms", "age_s", "response_bytes"}
    assert words(first, "request_bytes", "response_bytes") == [5, len(b'{"id":"order-4711"}')]


async def test_a_line_for_each_that_waited(origin: Origin) -> None:
    """Two attach to a request in flight, one of them hangs up: three lines, of which two say `wait`."""
    released = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await released.wait()
        await exchange.respond()

    origin.answer = hold
    async with gate(configuration(origin.url)) as running, callers(2, running.port) as (first, other):
        leading = first.send(request(key="k1"))
        await origin.until(1)
        following = other.send(request(key="k1"))
        with closing(await Client.connect(running.port)) as client:
            await client.send(request(key="k1"))
            await eventually(lambda: _waiters(running), lambda count: count == 2)
            client.reset()
            await eventually(lambda: _waiters(running), lambda count: count == 1)
        released.set()
        await asyncio.gather(leading, following)
        lines = requests(running)
    assert sorted((words(line, "verdict", "status", "idempotency", "duplicate") for line in lines), key=str) == [
        ["forward", 201, "stored", None],
        ["wait", 0, "", None],
        ["wait", 201, "replayed", "attached"],
    ]


async def _waiters(running: RunningGate) -> float:
    return running.count("oncegate_waiters", route="all")


async def test_a_request_that_was_refused_for_want_of_a_store_is_told(origin: Origin) -> None:
    """The store is away: the 503 has its line too, with the reason for the operator."""
    store = f"redis://127.0.0.1:{free_port()}/0"
    async with gate(configuration(origin.url, store=store, policy="store_wait: 0s")) as running:
        await ask(running.port, key="k1")
        lines = requests(running)
    assert [words(line, "verdict", "status", "problem") for line in lines] == [["refuse", 503, "store-unavailable"]]
    assert "cannot be reached" in str(lines[0]["detail"])


async def test_start_and_stop_are_told(origin: Origin) -> None:
    """The first line says where it listens, the next what the store is good for; the last ones that it stops, and
    what came of it."""
    async with gate(configuration(origin.url)) as running:
        pass
    listening, note, stopping, stopped = running.lines
    assert words(listening, "level", "message", "store", "service") == ["info", "listening", "memory", "test"]
    assert listening["addresses"] == f"127.0.0.1:{running.port}"
    assert (note["level"], note["message"]) == (
        "note", "this store protects one gateway; a second instance of the service needs redis",
    )  # fmt: skip
    assert words(stopping, "level", "message", "in_flight") == ["info", "stopping", 0]
    assert stopped["message"] == "stopped: everything in flight was answered and settled"


async def test_an_absent_store_is_told_at_start(origin: Origin) -> None:
    """The store is away when the gate starts: a warning with the reason."""
    async with gate(configuration(origin.url, store=f"redis://127.0.0.1:{free_port()}/0")) as running:
        _, warning, *_ = running.lines
    assert words(warning, "level", "message") == ["warning", "the store is away; guarded requests are refused"]
    assert "cannot be reached" in str(warning["reason"])


# ── What it does not say ──────────────────────────────────────────────────────────────────────────

SECRETS = {
    "key": "my-very-own-key",
    "body": '{"card":"4242424242424242"}',
    "Authorization": "Bearer tOkEn-4711",
    "X-API-Key": "sk_live_abcdef",
    "Cookie": "session=c00kie",
}


async def tell_secrets(running: RunningGate, origin: Origin) -> None:
    fields = [(name, value) for name, value in SECRETS.items() if name not in ("key", "body")]
    body = SECRETS["body"].encode()
    for _ in range(2):
        await ask(running.port, target="/orders?voucher=GRATIS", key=SECRETS["key"], body=body, fields=fields)
    await ask(running.port, target="/orders", key=SECRETS["key"], body=body)
    await ask(running.port, target="/orders", key=SECRETS["key"], body=body, fields=fields)
    await ask(running.port, target="/orders", key=f'"{SECRETS["key"]}', body=body, fields=fields)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("form", ["json", "text"])
async def test_no_key_body_or_credential_is_in_it(origin: Origin, form: str) -> None:
    """Neither key, body, credential nor cookie in any line; the key is a short digest, the same on each of its
    lines and another for another key."""
    async with gate(configuration(origin.url, top=f"log: {{format: {form}}}")) as running:
        await tell_secrets(running, origin)
        await ask(running.port, key="another-key")
        running.app.log.close()
        told = running.log.getvalue()
    for secret in (*SECRETS.values(), "tOkEn", "sk_live", "c00kie", "4242424242424242", "another-key"):
        assert secret not in told, secret
    shown = re.findall(r'(?:"key":|key=)"([^"]*)"', told)
    assert len(shown) == 5
    assert len(set(shown[:4])) == 1
    assert shown[4] != shown[0]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{12}", digest) for digest in shown)


@pytest.mark.parametrize("form", ["json", "text"])
async def test_keys_are_shown_where_the_operator_wants_it(origin: Origin, form: str) -> None:
    """`log: {keys: full}`: the key as the client meant it, in quotes; and still no body and no credential."""
    async with gate(configuration(origin.url, top=f"log: {{format: {form}, keys: full}}")) as running:
        await tell_secrets(running, origin)
        await ask(running.port, key='"a \\"quoted\\" key"')
        running.app.log.close()
        told = running.log.getvalue()
    shown = re.findall(r'(?:"key":|key=)("(?:[^"\\]|\\.)*")', told)
    assert [json.loads(each) for each in shown] == [SECRETS["key"]] * 4 + ['a "quoted" key']
    for secret in ("tOkEn", "sk_live", "c00kie", "4242424242424242"):
        assert secret not in told, secret


# ── What cannot break it ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "target",
    ['/"},{"level":"alarm', "/back\\slash\\", "/%0a%00%22", "/?q='\"<script>", "/\xff\xfe\x9b31m\xc3\xa9", "/{}[]|^`"],
)
async def test_a_nasty_target_is_one_line(origin: Origin, target: str) -> None:
    """Quotes, backslashes, escapes and octets in the target: each request is one line that can be parsed, and in
    the text form one line of printable ASCII, that moves no terminal."""
    for form in ("json", "text"):
        async with gate(configuration(origin.url, top=f"log: {{format: {form}}}")) as running:
            status = (await ask(running.port, target=target, key="k1")).status
            again = (await ask(running.port, target=target, key="k1")).status
            running.app.log.close()
            lines = running.log.getvalue().splitlines()
        assert status == again
        about = [line for line in lines if f" {status} " in line or f'"status":{status}' in line]
        assert len(about) == 2, lines
        for line in about:
            assert line.isascii()
            assert line.isprintable()
            if form == "json":
                assert json.loads(line)["status"] == status


NASTY = ['"', "\\", 'a","level":"alarm', "line\nbreak", "\x1b[2J", "fe80::1%eth0", "\u2028", "é"]


@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_that_it_is_given_can_break_a_line(nasty: str) -> None:
    """Whatever stands in the peer's address, the method, the route, the key or the detail: one line, that parses to
    what was given."""
    out = io.StringIO()
    log = Log(out, HostClock(), as_json=True, keys=True)
    log.finished(
        Account(
            nasty,
            nasty.encode(),
            b"/" + nasty.encode(),
            nasty,
            VerdictName.REFUSE,
            key=Key(nasty.encode()),
            name=b"n" * 43,
            detail=nasty,
        )
    )
    log.alarm(nasty, why=nasty, error=ValueError(nasty))
    log.close()
    about, alarm = (json.loads(line) for line in out.getvalue().split("\n")[:-1])
    assert words(about, "route", "peer", "detail") == [nasty] * 3
    assert words(about, "method", "key") == [nasty.encode().decode("latin-1")] * 2
    assert words(alarm, "level", "message", "why", "error") == ["alarm", nasty, nasty, nasty]


@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_that_it_is_given_can_break_a_line_for_people(nasty: str) -> None:
    """The same in the text form: one printable line each, in an encoding that can say little: no terminal is moved,
    and no line is lost."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="")
    log = Log(out, HostClock(), as_json=False, keys=True)
    log.finished(
        Account(
            "all",
            nasty.encode(),
            b"/" + nasty.encode(),
            nasty,
            VerdictName.REFUSE,
            label=Label.REFUSED,
            key=Key(nasty.encode()),
            name=b"n" * 43,
            detail=nasty,
        )
    )
    log.alarm("something", why=nasty)
    log.close()
    out.seek(0)
    about, alarm, rest = out.read().split("\n")
    assert rest == ""
    assert about.isprintable(), about
    assert " refused 0.0 ms key=" in about
    assert alarm.isprintable(), alarm
    assert " alarm something why=" in alarm


def a_refusal() -> Account:
    return Account("all", b"POST", b"/", "127.0.0.1", VerdictName.REFUSE, status=400)


def test_what_was_dropped_is_counted() -> None:
    """A pipe that nobody reads: what does not fit in the waiting room is dropped, and nobody waits; once it is read
    again a line says how many, and each one is either there or counted."""
    reading, writing = os.pipe()
    with open(writing, "w") as out, open(reading, "rb") as pipe:
        log = Log(out, HostClock(), as_json=True)
        sent = 3_000

        def speak() -> None:
            for n in range(sent):
                log.say("info", f"line {n}", padding="x" * 100)

        speaking = threading.Thread(target=speak, daemon=True)
        speaking.start()
        speaking.join(5)
        assert not speaking.is_alive(), "somebody waited for the pipe"
        lines = [json.loads(pipe.readline()) for _ in range(50)]  # somebody reads again
        log.say("info", "and on")

        def end() -> None:
            log.close()
            out.close()

        ending = threading.Thread(target=end)
        ending.start()
        lines += [json.loads(line) for line in pipe]
        ending.join()
    drops = [line for line in lines if line["message"] == "log lines were dropped"]
    assert sum(line["count"] for line in drops) == sent + 1 - (len(lines) - len(drops)) > 1_000
    assert {line["level"] for line in drops} == {"warning"}
    assert all(WHEN.fullmatch(line["time"]) for line in lines)


async def test_a_pipe_that_nobody_reads_does_not_stop_the_gate(origin: Origin, tmp_path: Path) -> None:
    """The gate's stdout is a full pipe: thousands of requests are answered all the same, and SIGTERM ends it with 0
    in a few seconds."""
    port, admin_port = free_port(), free_port()
    file = tmp_path / "gate.yaml"
    file.write_text(configuration(origin.url, listen=port, admin=admin_port))
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "run", "--config", str(file)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        await eventually(lambda: _ready(admin_port), bool)
        async with asyncio.timeout(30), callers(20, port) as crowd:
            for n in range(100):
                answers = await asyncio.gather(*[caller.send(request(key=f"k{n}")) for caller in crowd])
                assert {answer.status for answer in answers} == {201}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert 2_000 > len(process.stdout.read().splitlines()) > 100, "the pipe was to be full"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _ready(admin_port: int) -> bool:
    try:
        return (await admin(admin_port, "/ready"))[0] == 200
    except ConnectionError:
        return False


async def test_a_reader_that_left_does_not_stop_the_gate(origin: Origin) -> None:
    """The reader of the log is gone (EPIPE): the gate answers, and stops well."""
    reading, writing = os.pipe()
    with open(writing, "w") as out:
        app = App(load_text(configuration(origin.url), name="test.yaml", environ={}), out=out)
        await app.start()
        os.close(reading)
        port = app.addresses[0][1]
        for n in range(20):
            assert (await ask(port, key=f"k{n}")).status == 201
        assert str(await app.stop()) == "stopped: everything in flight was answered and settled"
        with suppress(BrokenPipeError):
            out.close()


async def test_a_full_disk_for_a_while_does_not_silence_it_for_good(origin: Origin, tmp_path: Path) -> None:
    """Writing fails once, as on a full disk: what comes later is written."""

    class Disk(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    log = Log(disk, HostClock(), as_json=True)
    log.finished(a_refusal())
    await eventually(lambda: _waiting(log), lambda waiting: waiting == 0)
    disk.full = False
    log.say("info", "there is room again")
    log.close()
    assert "there is room again" in disk.getvalue()


async def _waiting(log: Log) -> int:
    await asyncio.sleep(0.12)  # the lines of a moment are gathered
    return log._queue.qsize()


# ── For people ────────────────────────────────────────────────────────────────────────────────────


async def test_on_a_terminal_it_is_for_people(origin: Origin) -> None:
    """On a terminal a line reads `10:00:00.123 POST /orders 201 stored 3.1 ms …`, and no JSON; `log: {format: json}`
    writes JSON all the same."""

    async def told(top: str) -> list[str]:
        master, terminal = pty.openpty()
        try:
            with open(terminal, "w") as out:
                app = App(load_text(configuration(origin.url, top=top), name="test.yaml", environ={}), out=out)
                await app.start()
                await ask(app.addresses[0][1], key="order-4711")
                await ask(app.addresses[0][1], key="order-4711")
                await app.stop()
                return os.read(master, 1 << 16).decode().splitlines()
        finally:
            os.close(master)

    lines = await told("")
    first = next(line for line in lines if "/orders 201 stored" in line)
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} POST /orders 201 stored \d+\.\d ms \(upstream \d+\.\d\) key="[\w-]{12}"', first
    )
    assert any(re.search(r"POST /orders 201 replayed \d+\.\d ms key=", line) for line in lines)
    assert not any(line.startswith("{") for line in lines)
    assert all(line.startswith("{") for line in await told("log: {format: json}"))


async def test_an_armed_failpoint_is_an_alarm_at_the_start(origin: Origin) -> None:
    """A gateway that starts with ONCEGATE_FAILPOINT raises an alarm that names it; one that starts without it does not.
    When it is reached the line that says so is JSON with the same keys."""
    for spec in ("", "sent:kill"):
        gate = GateProcess(configuration(origin.url), environ={"ONCEGATE_FAILPOINT": spec})
        try:
            await gate.start()
            assert await metric(gate, "oncegate_alarms_total") == (1 if spec else 0)
            if spec:
                async with asyncio.timeout(10):
                    while "a failpoint is armed" not in gate.log.read_text():
                        await asyncio.sleep(0.02)
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError, AssertionError)):
                    await ask(gate.port, key="k")
            else:
                assert (await ask(gate.port, key="k")).status == 201
                await gate.terminate()
            alarms = [line for line in map(json.loads, gate.log.read_text().splitlines()) if line["level"] == "alarm"]
            assert [line["failpoint"] for line in alarms] == ([spec] * 2 if spec else [])
            assert [line["message"][:11] for line in alarms] == (["a failpoint"] * 2 if spec else [])
        finally:
            gate.close()


# ── Levels ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["json", "text"])
async def test_a_5xx_of_the_gateway_is_no_info(origin: Origin, form: str) -> None:
    """In doubt or lost is `error`, what ran nothing is `warning`; a 5xx of the service and a refusal below 500 are
    `info`. Text says so before the method."""

    async def by_path(exchange: Exchange) -> None:
        match exchange.request.target:
            case b"/reset":
                exchange.reset()
            case b"/hasty/never":
                await exchange.reader.read()
            case target:
                await exchange.respond(int(target[1:]))

    origin.answer = by_path
    written = configuration(
        origin.url,
        top=f"log: {{format: {form}}}",
        routes="""
  - {name: nowhere, match: {path: /nowhere}, upstream: nowhere}
  - {name: hasty, match: {path: /hasty/**}, upstream: hasty}
""",
    ).replace(
        "upstreams:\n",
        f"upstreams:\n  nowhere: http://127.0.0.1:{free_port()}\n"
        f"  hasty: {{url: {origin.url}, timeout: 100ms, late: 0s}}\n",
    )
    expected = {
        "/reset": (502, "error"),
        "/hasty/never": (504, "error"),
        "/nowhere": (502, "warning"),
        "/500": (500, "info"),
        "/502": (502, "info"),
        "/201": (201, "info"),
    }
    async with gate(written) as running:
        for target, (status, _) in expected.items():
            assert (await ask(running.port, target=target, key=target)).status == status
        assert (await ask(running.port, target="/reset", key="/reset")).status == 409
        await eventually(lambda: _count(running, "hold"), lambda count: count >= 2)
        running.app.log.close()
        lines = running.log.getvalue().splitlines()
    if form == "json":
        told = [(line["status"], line["level"]) for line in map(json.loads, lines) if line["message"] == "request"]
        assert sorted(told) == sorted([*expected.values(), (409, "info")])
    else:
        told_in_text = sorted(line[13:].partition(" /")[0] for line in lines if " POST /" in line)
        assert told_in_text == sorted([*["POST"] * 4, "warning POST", *["error POST"] * 2])


async def _count(running: RunningGate, settlement: str) -> float:
    return sum(
        running.count("oncegate_settlements_total", route=route, settlement=settlement, reason=reason)
        for route, reason in (("all", "lost"), ("hasty", "timeout"))
    )


@pytest.mark.parametrize("problem", [problem for problem in Problem if problem.status >= 500])
def test_every_5xx_has_its_level(problem: Problem) -> None:
    """Of each problem that is a 5xx: `error` if the outcome is unknown or an operator must act, else `warning`. The
    same status of the service, and the same problem in shadow mode, are `info`."""
    level = level_of(problem.status, problem.slug)
    unknown = problem in (Problem.UPSTREAM_LOST, Problem.UPSTREAM_TIMEOUT)
    assert level == ("error" if unknown or problem is Problem.IDENTITY_CHANGED else "warning")
    assert level_of(problem.status, "") == level_of(problem.status, problem.slug, shadow=True) == "info"


# ── One spelling ──────────────────────────────────────────────────────────────────────────────────

#: What a process does besides: everything by which Python and its libraries report something.
NOISE = """
import asyncio, logging, os, threading, warnings
from gateway.app import App

start, stop = App.start, App.stop


class Breaks:
    def __del__(self):
        raise RuntimeError("in a finalizer")


def fails():
    raise RuntimeError("in a thread")


async def dies():
    raise RuntimeError("in a task")


async def noisy_start(self):
    await start(self)
    try:
        raise ValueError("two\\nlines")
    except ValueError:
        logging.getLogger("library").exception("it %s", "failed")
    logging.getLogger("library").warning("a format that %s does not fit %s", 1)
    logging.getLogger("library").info("of no interest")
    warnings.warn("an old call", DeprecationWarning, stacklevel=1)
    warnings.warn("a careless call", UserWarning, stacklevel=1)
    Breaks()
    thread = threading.Thread(target=fails, name="of-a-library")
    thread.start()
    thread.join()
    task = asyncio.ensure_future(dies())
    await asyncio.sleep(0)
    del task
    asyncio.get_running_loop().call_exception_handler({"message": "a callback failed"})


async def noisy_stop(self):
    stopped = await stop(self)
    if "FAILS_AT_THE_END" in os.environ:
        raise RuntimeError("after the log was closed")
    return stopped


App.start, App.stop = noisy_start, noisy_stop
"""


@pytest.mark.parametrize("workers", [1, 2])
async def test_each_line_is_json_with_the_same_keys(origin: Origin, workers: int, tmp_path: Path) -> None:
    """What the process writes to stdout and stderr, from its start to its end: each line is one object in one spelling
    that begins with time, level and message. Requests, alarms, a worker that died, records of libraries, warnings, and
    tracebacks of tasks, threads, finalizers and of the process itself are among them."""
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    gate = GateProcess(
        configuration(origin.url, store=f"sqlite:///{tmp_path}/keys.db", top="log: {format: json}"),
        environ={"PYTHONPATH": str(tmp_path)} | ({} if workers > 1 else {"FAILS_AT_THE_END": "1"}),
        arguments=("--workers", str(workers)) if workers > 1 else (),
    )
    try:
        await gate.start()
        assert (await ask(gate.port, key="k")).status == 201
        assert (await ask(gate.port, key="k")).replayed
        gate.file.write_text("not: this\n")
        assert gate.process is not None
        gate.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(20):
            while "not taken up" not in gate.log.read_text():
                await asyncio.sleep(0.05)
        await gate.terminate()
        text = gate.log.read_text()
    finally:
        gate.close()
    lines = [json.loads(line) for line in text.splitlines()]
    for line, written in zip(lines, text.splitlines(), strict=True):
        assert list(line)[:3] == ["time", "level", "message"]
        assert WHEN.fullmatch(line["time"])
        assert line["level"] in ("info", "note", "warning", "error", "alarm")
        assert " " not in re.sub(r'"(?:[^"\\]|\\.)*"', "", written), "no space between tokens"
    said = {(line["level"], line["message"].partition("\n")[0]) for line in lines}
    assert said >= {
        ("info", "request"), ("info", "listening"), ("info", "stopping"), ("error", "it failed"),
        ("warning", "a format that %s does not fit %s"), ("error", "a callback failed"),
        ("error", "Task exception was never retrieved"), ("error", "an exception ended a thread"),
        ("alarm", "the configuration was not taken up; what ran goes on"),
    }  # fmt: skip
    assert any(level == "warning" and "UserWarning: a careless call" in message for level, message in said)
    traces = [line["traceback"] for line in lines if "traceback" in line]
    for error in ("two\nlines", "in a thread", "in a task", "in a finalizer"):
        assert any(f"Error: {error}" in trace for trace in traces), error
    if workers == 1:
        assert ("error", "an exception was not caught") in said
        assert "RuntimeError: after the log was closed" in lines[-1]["traceback"]
    else:
        assert {line["worker"] for line in lines if line["message"] == "it failed"} == {1, 2}
    assert "of no interest" not in text


@pytest.mark.parametrize("form", ["json", "auto"])
def test_why_it_did_not_start_is_said_in_the_same_spelling(origin: Origin, form: str, tmp_path: Path) -> None:
    """An address that is taken, with `log: {format: json}`: one line of JSON on stderr, exit 69. By default it is a
    sentence for people."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        file = tmp_path / "gate.yaml"
        listen = taken.getsockname()[1]
        file.write_text(configuration("http://127.0.0.1:9", listen=listen, top=f"log: {{format: {form}}}"))
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "run", "--config", str(file)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (69, "")
    if form == "auto":
        assert done.stderr.startswith("oncegate: an address cannot be bound")
        return
    line = json.loads(done.stderr)
    assert list(line) == ["time", "level", "message", "reason", "exit_code"]
    assert (line["level"], line["message"], line["exit_code"]) == ("error", "the gateway did not start", 69)
    assert line["reason"].startswith("an address cannot be bound")


def test_a_log_for_people_leaves_tracebacks_as_they_are() -> None:
    """Only a log of JSON takes what libraries report."""
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, list(logging.getLogger().handlers))
    log = Log(io.StringIO(), HostClock(), as_json=False)
    capture(log)
    log.close()
    assert hooks == (sys.excepthook, threading.excepthook, sys.unraisablehook, logging.getLogger().handlers)

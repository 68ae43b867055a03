"""`oncegate keys` against a running gate: what a person types, and sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.harness import Exchange, Origin, RunningGate, ask, configuration, gate
from tests.servers import free_port

TOKEN = "an-operators-token-0123456789"


@dataclass
class Typed:
    code: int
    out: str
    err: str


@dataclass
class Terminal:
    """Whoever types commands before this gate."""

    gate: RunningGate
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, *words: str, token: str = TOKEN, given: str = "", admin: str = "") -> Typed:
        environ = {"ONCEGATE_ADMIN_TOKEN": token, "USER": "ada"}
        place = ["--admin", admin or f"127.0.0.1:{self.gate.admin_port}"]
        async with self.turn:  # each has the terminal for itself
            done = await asyncio.to_thread(
                CliRunner().invoke, main, ["keys", *words, *place], input=given, env=environ, prog_name="oncegate"
            )
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Typed(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    """Before a gate with three keys in doubt, one of them of a tenant, and one that is paid."""

    async def answer(exchange: Exchange) -> None:
        await exchange.respond(201 if exchange.request.key == b"paid" else 504)

    origin = await Origin(answer).start()
    routes = "  - {name: tenants, match: {path: /t/**}, upstream: origin, scope: [header:X-Tenant-Id]}"
    text = configuration(origin.url, routes=routes).replace(
        "admin: {", f"admin: {{token: {TOKEN}, audit: {tmp_path}/audit.jsonl, "
    )
    async with gate(text) as running:
        for key in ("paid", "lost-1", "lost-2"):
            await ask(running.port, "POST", "/pay", key=key)
        await ask(running.port, "POST", "/t/pay", key="lost-3", fields=[("X-Tenant-Id", "acme")])
        yield Terminal(running)
    await origin.stop()


async def test_a_key_is_found_shown_and_resolved(terminal: Terminal, tmp_path: Path) -> None:
    """list → a table; show KEY → its story; resolve KEY --as completed → duplicates get that answer; forget KEY → gone;
    what was typed as a reason, and by whom, is in the audit log."""
    listed, shown, tenant = await asyncio.gather(
        terminal("list", "--state", "in-doubt", "--until", "0s"),
        terminal("show", "-", "--route", "all", given="lost-1\n"),
        terminal("show", "lost-3", "--route", "tenants", "--scope", "header:X-Tenant-Id=acme", "--json"),
    )
    assert listed.code == 64, "an instant is no duration of nothing"
    listed = await terminal("list", "--state", "in-doubt", "--since", "1h")
    lines = listed.out.splitlines()
    assert (listed.code, lines[0].split()) == (
        0, ["STATE", "ROUTE", "ATTEMPTS", "STATUS", "DOUBT", "FIRST", "SEEN", "NAME"],
    )  # fmt: skip
    assert sorted(line.split()[:5] for line in lines[1:]) == [
        ["in-doubt", "all", "1", "504", "status"], ["in-doubt", "all", "1", "504", "status"],
        ["in-doubt", "tenants", "1", "504", "status"],
    ]  # fmt: skip
    assert listed.err == "3 found, 4 records walked\n"
    assert shown.code == 0
    assert shown.out.splitlines()[:3] == ["state       in-doubt", "doubt       status", "status      504"]
    story = json.loads(tenant.out)
    assert (story["record"]["route"], story["record"]["state"]) == ("tenants", "in-doubt")

    (tmp_path / "answer.json").write_bytes(b'{"paid":true}')
    resolved, forgotten = await asyncio.gather(
        terminal(
            "resolve", "lost-1", "--route", "all", "--as", "completed", "--status", "201", "--header", "X-By: hand",
            "--body", f"@{tmp_path}/answer.json", "--reason", "seen at the bank", "--yes",
        ),
        terminal("forget", "--name", story["record"]["name"], "--reason", "a test", "--yes", "--json"),
    )  # fmt: skip
    assert (resolved.code, resolved.out) == (0, "resolve: made\n")
    assert (forgotten.code, json.loads(forgotten.out)["outcome"]) == (0, "made")
    replay = await ask(terminal.gate.port, "POST", "/pay", key="lost-1")
    assert (replay.status, replay.body, replay.get("X-By")) == (201, b'{"paid":true}', "hand")
    audited = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {(each["reason"], each["by"]) for each in audited if each["event"] == "asked"} == {
        ("seen at the bank", "ada"), ("a test", "ada"),
    }  # fmt: skip


async def test_many_are_resolved_once_a_dry_run_has_shown_them(terminal: Terminal) -> None:
    """--dry-run lists them and changes nothing; the same without it and with --yes resolves them."""
    many = ("resolve", "--route", "all", "--since", "1h", "--state", "in-doubt", "--as", "released", "--reason", "why")
    dry = await terminal(*many, "--dry-run")
    assert dry.code == 0
    assert dry.out.splitlines()[-1] == "2 would-be-made; 4 records walked"
    assert len(dry.out.splitlines()) == 4
    unasked = await terminal(*many)
    assert (unasked.code, "--yes" in unasked.err) == (64, True)
    done = await terminal(*many, "--yes", "--json")
    assert (done.code, json.loads(done.out)["outcomes"]) == (0, {"made": 2})
    left = await terminal("list", "--json")
    assert sorted(each["state"] for each in json.loads(left.out)["records"]) == ["completed", "in-doubt"]


async def test_what_cannot_be_done_says_why(terminal: Terminal) -> None:
    """A wrong token is 77; nobody there 69; a key that is unknown, or a version that is another, 1; nonsense 64: each
    with one line, and the key is not in it."""
    why = ("--reason", "why", "--yes")
    told = await asyncio.gather(
        terminal("list", token="another-token-of-no-use"),
        terminal("list", admin=f"127.0.0.1:{free_port()}"),
        terminal("show", "SECRET-KEY", "--route", "all"),
        terminal("resolve", "lost-1", "--route", "all", "--as", "released", "--version", "3" + "0" * 24, *why),
        terminal("resolve", "paid", "--route", "all", "--as", "released", *why),
        terminal("show", "SECRET-KEY"),
        terminal("show", "lost-3", "--route", "tenants"),
        terminal("resolve", "--as", "released", *why),
        terminal("resolve", "lost-1", "--as", "completed", *why),
    )
    assert [each.code for each in told] == [77, 69, 1, 1, 1, 64, 64, 64, 64]
    for each, words in zip(
        told,
        (
            "ONCEGATE_ADMIN_TOKEN", "does not answer", "Nothing is remembered", "not the one that was shown",
            "not in doubt", "routes differ", "header:x-tenant-id is missing", "say which", "--status",
        ),
        strict=True,
    ):  # fmt: skip
        assert words in each.err
        assert "SECRET-KEY" not in each.err + each.out

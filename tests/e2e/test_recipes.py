"""The recipes of docs/clients.md, taken from the page and run: through a gate in a process of its own, behind a hop
that loses answers, and before a service that does what it is asked and says nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from tests.e2e.service import Lossy
from tests.harness import Exchange, GateProcess, Origin, configuration

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
BODY = b'{"amount": 12.50}'


def code(language: str) -> str:
    """All of the page's code in one language, in the order of the page."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, language
    return "\n\n".join(found)


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    """What the page's Python defines."""
    names: dict[str, Any] = {}
    exec(compile(code("python"), "docs/clients.md", "exec"), names)
    return names


async def run(*command: str, environ: dict[str, str] | None = None) -> str:
    def done() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)

    ended = await asyncio.to_thread(done)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


#: Sends one payment to a URL, under a key; says the status and the body of what its caller is given.
Pay = Callable[[dict[str, Any], Path, str, str], Awaitable[tuple[int, bytes]]]


async def with_httpx(recipes: dict[str, Any], folder: Path, url: str, key: str) -> tuple[int, bytes]:
    def pay() -> tuple[int, bytes]:
        with httpx.Client(trust_env=False) as client:
            answer: httpx.Response = recipes["pay"](client, url, key, BODY)
            return answer.status_code, answer.content

    return await asyncio.to_thread(pay)


async def with_aiohttp(recipes: dict[str, Any], folder: Path, url: str, key: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session:
        said: tuple[int, bytes] = await recipes["pay_with_aiohttp"](session, url, key, BODY)
        return said


async def with_requests(recipes: dict[str, Any], folder: Path, url: str, key: str) -> tuple[int, bytes]:
    def pay() -> tuple[int, bytes]:
        with recipes["session_that_retries"]() as session:
            session.trust_env = False
            answer = session.post(url, data=BODY, headers={"Idempotency-Key": key}, timeout=65)
            return answer.status_code, answer.content

    return await asyncio.to_thread(pay)


async def with_curl(recipes: dict[str, Any], folder: Path, url: str, key: str) -> tuple[int, bytes]:
    script = re.sub("^key=.*$", f"key={key}", code("sh"), flags=re.MULTILINE)
    assert f"key={key}\n" in script
    status = await run("sh", "-ec", f"cd '{folder}'\n{script}", environ={**os.environ, "URL": url, "NO_PROXY": "*"})
    return int(status), (folder / "answer").read_bytes()


async def with_fetch(recipes: dict[str, Any], folder: Path, url: str, key: str) -> tuple[int, bytes]:
    (folder / "pay.mjs").write_text(
        code("js") + f"const answer = await pay({json.dumps(url)}, {json.dumps(key)}, {json.dumps(BODY.decode())});\n"
        "console.log(JSON.stringify([answer.status, await answer.text()]));\n"
    )
    status, body = json.loads(await run("node", str(folder / "pay.mjs")))
    return status, body.encode()


JAVA = """
import java.io.IOException;
import java.net.URI;
import java.net.http.*;
import java.time.Duration;
import java.util.Optional;

public class Pay {
    %s
    public static void main(String[] words) throws Exception {
        var answer = pay(HttpClient.newHttpClient(), URI.create(words[0]), words[1], words[2].getBytes());
        System.out.println(answer.statusCode() + " " + new String(answer.body()));
    }
}
"""


async def with_java(recipes: dict[str, Any], folder: Path, url: str, key: str) -> tuple[int, bytes]:
    (folder / "Pay.java").write_text(JAVA % code("java"))
    status, _, body = (await run("java", str(folder / "Pay.java"), url, key, BODY.decode())).partition(" ")
    return int(status), body.encode()


CLIENTS: dict[str, tuple[str | None, Pay]] = {
    "httpx": (None, with_httpx),
    "aiohttp": (None, with_aiohttp),
    "requests": (None, with_requests),
    "curl": ("curl", with_curl),
    "fetch": ("node", with_fetch),
    "java": ("javac", with_java),
}
#: Those whose program is here. Java's takes seconds to compile, and is run in the long form.
HERE = {
    name: pay
    for name, (program, pay) in CLIENTS.items()
    if (program is None or shutil.which(program)) and (name != "java" or os.environ.get("ONCEGATE_FAULTS") == "long")
}
BRISK = {name: pay for name, pay in HERE.items() if name != "java"}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for name in HERE:
        (tmp_path / name).mkdir()
    return {name: tmp_path / name for name in HERE}


async def all_of(pays: dict[str, Awaitable[tuple[int, bytes]]]) -> dict[str, tuple[int, Any]]:
    """Status and document that each client was given."""
    said = await asyncio.gather(*pays.values())
    return {name: (status, json.loads(body)) for name, (status, body) in zip(pays, said, strict=True)}


@asynccontextmanager
async def behind_a_gate(url: str) -> AsyncIterator[GateProcess]:
    gate = GateProcess(configuration(url))
    try:
        yield await gate.start()
    finally:
        gate.close()


@asynccontextmanager
async def service(answer: Callable[[Exchange], Awaitable[None]]) -> AsyncIterator[Origin]:
    origin = await Origin(answer).start()
    try:
        yield origin
    finally:
        await origin.stop()


async def test_a_lost_answer_is_had_again(recipes: dict[str, Any], folders: dict[str, Path]) -> None:
    """An answer is lost on its way to each client; it tries again, and is given that answer, of one payment."""

    async def pays(exchange: Exchange) -> None:
        said = {"nonce": secrets.token_hex(8), "body": exchange.request.body.decode()}
        nonces[(exchange.request.key or b"").decode()] = said
        await exchange.respond(201, json.dumps(said).encode())

    nonces: dict[str, dict[str, str]] = {}
    async with service(pays) as origin, behind_a_gate(origin.url) as gate, AsyncExitStack() as stack:
        hops = {name: await stack.enter_async_context(Lossy(gate.port, 1)) for name in HERE}
        said = await all_of(
            {
                name: pay(recipes, folders[name], f"http://127.0.0.1:{hops[name].port}/pay", name)
                for name, pay in HERE.items()
            }
        )
        assert not any(hop.lose for hop in hops.values())
    assert origin.effects == {name.encode(): 1 for name in HERE}
    assert said == {name: (201, nonces[name]) for name in HERE}
    assert {each["body"] for each in nonces.values()} == {BODY.decode()}


async def test_what_is_in_doubt_is_told(recipes: dict[str, Any], folders: dict[str, Path]) -> None:
    """The service did it and hung up: each client is told that nobody knows, one way or the other, and nothing ran
    a second time."""

    async def hangs_up(exchange: Exchange) -> None:
        exchange.reset()

    async with service(hangs_up) as origin, behind_a_gate(origin.url) as gate:
        url = f"http://127.0.0.1:{gate.port}/pay"
        said = await all_of({name: pay(recipes, folders[name], url, name) for name, pay in BRISK.items()})
    told = {name: (status, document["type"].rpartition(":")[2]) for name, (status, document) in said.items()}
    by_status = dict.fromkeys(BRISK.keys() & {"requests", "curl"}, (409, "in-doubt"))
    assert told == dict.fromkeys(BRISK, (502, "upstream-lost")) | by_status
    assert origin.effects == {name.encode(): 1 for name in BRISK}


async def test_a_service_that_asks_for_patience_is_given_it(recipes: dict[str, Any], folders: dict[str, Path]) -> None:
    """503 with Retry-After, then it does it: tried again, and not sooner than was asked for."""
    times: defaultdict[bytes | None, list[float]] = defaultdict(list)

    async def busy(exchange: Exchange) -> None:
        tries = times[exchange.request.key]
        tries.append(asyncio.get_running_loop().time())
        if len(tries) == 1:
            await exchange.respond(503, b"busy", [(b"Retry-After", b"1")])
        else:
            await exchange.respond(201, b'{"payment": 1}')

    async with service(busy) as origin, behind_a_gate(origin.url) as gate:
        url = f"http://127.0.0.1:{gate.port}/pay"
        said = await all_of({name: pay(recipes, folders[name], url, name) for name, pay in BRISK.items()})
    assert said == dict.fromkeys(BRISK, (201, {"payment": 1}))
    for name in BRISK:
        first, second = times[name.encode()]
        assert second - first >= 0.95, name


async def test_stripes_sdk_with_a_key_of_ones_own(recipes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's key is the one that is sent, in every try and in a later call."""
    monkeypatch.setenv("NO_PROXY", "*")

    async def intent(exchange: Exchange) -> None:
        body = b'{"id": "pi_1", "object": "payment_intent"}'
        await exchange.respond(200, body, [(b"Content-Type", b"application/json")])

    async with service(intent) as origin, behind_a_gate(origin.url) as gate, Lossy(gate.port, 1) as hop:
        charge = partial(recipes["charge"], f"http://127.0.0.1:{hop.port}", "order-4711", 1250)
        assert [(await asyncio.to_thread(charge)).id for _ in range(2)] == ["pi_1", "pi_1"]
        assert hop.lose == 0
    assert origin.effects == {b"order-4711": 1}

"""Clients as people have them, unchanged, through a gate in a process of its own; with their own retries where they
have any, and a hop on the way that loses the first answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import aiohttp
import aiohttp.web
import httpx
import pytest
import requests
import urllib3
import websockets

from tests.e2e.service import PIECE, Lossy, Shop
from tests.harness import GateProcess, configuration
from tests.servers import binaries, free_port

LONG = os.environ.get("ONCEGATE_FAULTS") == "long"
#: Bytes of a large file each way, and by how much the gate may grow while it passes.
LARGE = 1 << 30 if LONG else 64 << 20
GROWTH = 32 << 20


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with Shop() as shop:
        yield shop


@pytest.fixture
async def gate(shop: Shop) -> AsyncIterator[GateProcess]:
    """A gate that lets a duplicate wait for 100 ms, so that some are told that the first is under way."""
    gate = GateProcess(configuration(shop.url, policy="wait: 100ms", top="cors: {origins: ['*']}"))
    try:
        yield await gate.start()
        assert await gate.terminate() == 0
        assert '"level":"alarm"' not in gate.log.read_text().replace(" ", "")
    finally:
        gate.close()


async def run(*command: str, seconds: float = 300) -> str:
    """A program's output; it must succeed."""
    done = await asyncio.to_thread(partial(subprocess.run, command, capture_output=True, timeout=seconds))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
async def test_curl_retries(shop: Shop, gate: GateProcess) -> None:
    """`--retry --retry-all-errors` sends the payment again; it was made once, and curl is told of it."""
    async with Lossy(gate.port) as hop:
        said = await run(
            "curl", "-sS", "-i", "--noproxy", "*", "--retry", "3", "--retry-all-errors", "--retry-delay", "1",
            "-H", "Idempotency-Key: curl", "-d", "amount=1", f"http://127.0.0.1:{hop.port}/pay",
        )  # fmt: skip
        assert hop.lose == 0
    assert '"payment": 1' in said
    assert "Idempotent-Replayed: true" in said
    assert shop.payments == {"curl": 1}


@needs_curl
async def test_curl_as_a_client_of_a_proxy(shop: Shop, gate: GateProcess) -> None:
    """`--proxy` asks in absolute form (RFC 9112 §3.2.2): it is the path that the service is asked for."""
    said = await run(
        "curl", "-sS", "--noproxy", "", "--proxy", f"http://127.0.0.1:{gate.port}",
        "-H", "Idempotency-Key: k", "-d", "amount=1", "http://shop.example/pay?a=1",
    )  # fmt: skip
    assert json.loads(said)["payment"] == 1
    assert shop.asked[0].startswith("POST /pay?a=1 ")


async def test_requests_with_urllib3s_retry(shop: Shop, gate: GateProcess) -> None:
    """A session that retries POST by itself: one payment, and the answer that got lost."""

    def pay(port: int) -> requests.Response:
        retry = urllib3.Retry(total=3, backoff_factor=0.05, allowed_methods=None, status_forcelist=[502, 503, 504])
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
            return session.post(
                f"http://127.0.0.1:{port}/pay", json={"amount": 1}, headers={"Idempotency-Key": "requests"}, timeout=20
            )

    async with Lossy(gate.port, 2) as hop:
        answer = await asyncio.to_thread(pay, hop.port)
        assert hop.lose == 0
    assert (answer.status_code, answer.json()["payment"]) == (201, 1)
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert shop.payments == {"requests": 1}


async def test_aiohttp_repeats_by_itself(shop: Shop, gate: GateProcess) -> None:
    """It sends a PUT again, unasked, where its kept connection breaks; the payment is made once."""
    async with Lossy(gate.port, 0) as hop, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{hop.port}/pay"
        async with session.put(url, data=b"first", headers={"Idempotency-Key": "first"}) as answer:
            assert answer.status == 201
        hop.lose = 1
        async with session.put(url, data=b"1", headers={"Idempotency-Key": "aiohttp"}) as answer:
            assert (answer.status, answer.headers["Idempotent-Replayed"]) == (201, "true")
        assert hop.lose == 0
    assert shop.payments == {"first": 1, "aiohttp": 1}


async def test_httpx_in_a_loop(shop: Shop, gate: GateProcess) -> None:
    """Many at once on one pool, each tried until there is an answer: one payment per key, the same for all."""
    async with Lossy(gate.port, 5) as hop, httpx.AsyncClient(trust_env=False, timeout=20) as client:

        async def pay(key: str) -> bytes:
            while True:
                try:
                    answer = await client.post(
                        f"http://127.0.0.1:{hop.port}/pay", json={"key": key}, headers={"Idempotency-Key": key}
                    )
                except httpx.TransportError:
                    continue
                if answer.status_code == 201:
                    return answer.content
                await asyncio.sleep(0.05)

        keys = [f"httpx-{number}" for number in range(10)]
        answers = await asyncio.gather(*(pay(key) for key in keys for _ in range(3)))
        assert hop.lose == 0
    assert shop.payments == dict.fromkeys(keys, 1)
    assert len(set(answers)) == len(keys)


async def test_a_websocket_client(shop: Shop, gate: GateProcess) -> None:
    """`websockets`, who checks every frame strictly: both ways, large and small, and a close that is answered."""
    async with websockets.connect(f"ws://127.0.0.1:{gate.port}/open/socket", max_size=8 << 20, proxy=None) as socket:
        for size in (0, 1, 125, 126, 70_000, 2 << 20):
            data = os.urandom(size)
            await socket.send(data)
            assert await socket.recv() == data
        await (await socket.ping())
        await socket.close(4000)
    assert (socket.close_code, shop.closed) == (1000, [4000])


@pytest.mark.parametrize("keyed", [False, True], ids=["GET", "POST with a key"])
async def test_a_client_of_server_sent_events(shop: Shop, gate: GateProcess, keyed: bool) -> None:
    """Each event is read before the next is sent. One that answered a keyed POST ran; it is not run again."""
    method, target = ("POST", "/ask") if keyed else ("GET", "/open/events")
    headers = {"Idempotency-Key": "k"} if keyed else {}
    url = f"http://127.0.0.1:{gate.port}{target}"
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        seen = []
        async with client.stream(method, url, headers=headers) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    seen.append(line)
                    shop.next_event.set()
        assert seen == ["data: event 0", "data: event 1", "data: event 2"]
        if keyed:
            again = await client.post(url, headers=headers)
            assert (again.status_code, again.json()["type"]) == (409, "urn:oncegate:problem:response-not-kept")
            assert shop.payments == {"k": 1}


# ── Clients that follow redirects ─────────────────────────────────────────────────────────────────


async def with_requests(url: str, key: str) -> tuple[int, bytes]:
    def post() -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.post(url, json={"amount": 1}, headers={"Idempotency-Key": key}, timeout=20)

    answer = await asyncio.to_thread(post)
    return answer.status_code, answer.content


async def with_httpx(url: str, key: str) -> tuple[int, bytes]:
    async with httpx.AsyncClient(trust_env=False, timeout=20, follow_redirects=True) as client:
        answer = await client.post(url, json={"amount": 1}, headers={"Idempotency-Key": key})
        return answer.status_code, answer.content


async def with_aiohttp(url: str, key: str) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"amount": 1}, headers={"Idempotency-Key": key}) as answer,
    ):
        return answer.status, await answer.read()


async def with_curl(url: str, key: str) -> tuple[int, bytes]:
    said = await run(
        "curl", "-sS", "-L", "--location-trusted", "--noproxy", "*", "-w", "\n%{http_code}",
        "-H", f"Idempotency-Key: {key}", "-H", "Authorization: Bearer a", "-d", "amount=1", url,
    )  # fmt: skip
    body, _, status = said.rpartition("\n")
    return int(status), body.encode()


FOLLOWERS = {
    "requests": with_requests,
    "httpx": with_httpx,
    "aiohttp": with_aiohttp,
    "curl": pytest.param(with_curl, marks=needs_curl),
}


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, store_url: Callable[[str], str]) -> str:
    """SQLite, before which every request is an exchange, and Redis."""
    return store_url(next(iter(binaries())) if request.param == "redis" else "sqlite")


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("post", FOLLOWERS.values(), ids=FOLLOWERS)
async def test_a_redirect_to_the_same_origin(
    shop: Shop, store: str, post: Callable[[str, str], Awaitable[tuple[int, bytes]]], status: int
) -> None:
    """The payment is made once, the client has its 201, and so has each repetition of the whole."""
    gate = GateProcess(configuration(shop.url, store=store))
    try:
        await gate.start()
        answers = {await post(f"http://127.0.0.1:{gate.port}/moved/{status}", "moved") for _ in range(3)}
        assert await gate.terminate() == 0
    finally:
        gate.close()
    ((code, body),) = answers
    assert (code, json.loads(body)["payment"]) == (201, 1)
    assert shop.payments == {"moved": 1}
    assert shop.redirects == 1


@pytest.mark.parametrize("post", FOLLOWERS.values(), ids=FOLLOWERS)
async def test_a_redirect_to_another_origin(
    shop: Shop, store: str, post: Callable[[str, str], Awaitable[tuple[int, bytes]]]
) -> None:
    """The gateway passes it on, the client follows it under its key, and the gateway of that origin guards it there."""
    async with Shop() as other:
        gates = [
            GateProcess(configuration(at.url, store=store, service=name))
            for name, at in (("shop", shop), ("other", other))
        ]
        try:
            for gate in gates:
                await gate.start()
            shop.moved_to = f"http://127.0.0.1:{gates[1].port}/pay"
            answers = {await post(f"http://127.0.0.1:{gates[0].port}/moved/307", "moved") for _ in range(3)}
        finally:
            for gate in gates:
                gate.close()
        assert {code for code, _ in answers} == {201}
        assert len(answers) == 1
        assert (shop.payments, other.payments) == ({}, {"moved": 1})
        assert shop.redirects == 3


# ── Large files ───────────────────────────────────────────────────────────────────────────────────


def resident(gate: GateProcess) -> int:
    """The most memory that the gate's process has had, in bytes."""
    assert gate.process is not None
    status = Path(f"/proc/{gate.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10


@needs_curl
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
async def test_a_large_file_either_way(gate: GateProcess, tmp_path: Path) -> None:
    """Whole, by curl, and the gate's memory stays flat: sized and chunked up, and down, faster than curl takes it."""
    file, digest = tmp_path / "file", hashlib.sha256()
    with file.open("wb") as out:
        for _ in range(LARGE // PIECE):
            piece = os.urandom(4096) + bytes(PIECE - 4096)
            digest.update(piece)
            out.write(piece)
    url = f"http://127.0.0.1:{gate.port}/open/file"
    curl = ("curl", "-sS", "--noproxy", "*")
    before = resident(gate)
    expected = f"{LARGE} {digest.hexdigest()}"
    assert await run(*curl, "-T", str(file), url) == expected
    assert await run(*curl, "-T", str(file), "-H", "Transfer-Encoding: chunked", url) == expected
    file.unlink()
    came = await run(
        *curl, "--limit-rate", "50M", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", f"{url}/{LARGE}"
    )
    assert came == f"200 {LARGE}"
    assert resident(gate) - before < GROWTH


# ── A proxy in front that retries ─────────────────────────────────────────────────────────────────

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream gates {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://gates;
      proxy_http_version 1.1;
      proxy_next_upstream error timeout http_502 http_503 http_504 non_idempotent;
      proxy_next_upstream_tries 4;
    }}
  }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
async def test_nginx_that_retries_by_itself(shop: Shop, gate: GateProcess, tmp_path: Path) -> None:
    """`proxy_next_upstream non_idempotent` sends a POST again to whatever is next. Its client never learns of it, and
    the payment is made once. The service itself, asked so, makes it four times."""
    nginx = shutil.which("nginx")
    assert nginx is not None

    async def pay(far: int, key: str, lose: int) -> requests.Response:
        folder, port = tmp_path / key, free_port()
        folder.mkdir()
        hops = [Lossy(far, 1) for _ in range(lose)] + [Lossy(far, 0)]
        for hop in hops:
            await hop.__aenter__()
        servers = " ".join(f"server 127.0.0.1:{hop.port} max_fails=0;" for hop in hops)
        (folder / "conf").write_text(NGINX.format(folder=folder, servers=servers, port=port))
        process = subprocess.Popen([nginx, "-c", str(folder / "conf"), "-p", str(folder), "-e", str(folder / "log")])
        try:
            async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
                while True:
                    try:
                        return await client.post(
                            f"http://127.0.0.1:{port}/pay", headers={"Idempotency-Key": key}, content=b"1"
                        )
                    except httpx.ConnectError:
                        await asyncio.sleep(0.02)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 10)
            for hop in hops:
                await hop.__aexit__()
            assert not any(hop.lose for hop in hops)

    answer = await pay(gate.port, "guarded", 3)
    assert (answer.status_code, answer.headers["Idempotent-Replayed"]) == (201, "true")
    assert shop.payments["guarded"] == 1
    assert (await pay(shop.port, "unguarded", 3)).status_code == 201
    assert shop.payments["unguarded"] == 4


# ── A browser ─────────────────────────────────────────────────────────────────────────────────────

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

PAGE = """<!doctype html><title>shop</title>
<form id="form"><input name="amount" value="7"><button>Pay</button></form>
<script>
const form = document.getElementById("form"), key = "page-1";
const seen = [];
async function pay() {
  const answer = await fetch("GATE/pay", {
    method: "POST", headers: {"Idempotency-Key": key, "Content-Type": "application/json"},
    body: JSON.stringify(Object.fromEntries(new FormData(form))),
  });
  const document = await answer.json();
  return {status: answer.status, type: document.type, payment: document.payment, said: document.said,
    label: answer.headers.get("Idempotency-Status"), replayed: answer.headers.get("Idempotent-Replayed"),
    again: answer.headers.get("Retry-After")};
}
form.addEventListener("submit", event => {
  event.preventDefault();
  seen.push(pay().catch(error => ({error: String(error)})));
});
addEventListener("load", async () => {
  form.querySelector("button").click();
  form.querySelector("button").click();
  const answers = await Promise.all(seen);
  answers.push(await pay().catch(error => ({error: String(error)})));
  fetch("/report", {method: "POST", body: JSON.stringify(answers)});
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_browser_that_submits_a_form_twice(shop: Shop, gate: GateProcess, tmp_path: Path) -> None:
    """A page of another origin, in Chromium. One payment; the second click reads a problem that says what to do, and
    a third, behind the first's answer, is given that answer."""
    assert CHROMIUM is not None
    shop.slow = 1.0
    reports: asyncio.Queue[list[dict[str, object]]] = asyncio.Queue()

    async def page(_: aiohttp.web.Request) -> aiohttp.web.Response:
        text = PAGE.replace("GATE", f"http://127.0.0.1:{gate.port}")
        return aiohttp.web.Response(text=text, content_type="text/html")

    async def report(request: aiohttp.web.Request) -> aiohttp.web.Response:
        reports.put_nowait(await request.json())
        return aiohttp.web.Response()

    app = aiohttp.web.Application()
    app.router.add_get("/", page)
    app.router.add_post("/report", report)
    runner = aiohttp.web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", port).start()
    browser = subprocess.Popen(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--no-proxy-server", "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            "--remote-debugging-port=0", f"http://localhost:{port}/",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            answers = await reports.get()
    finally:
        browser.kill()
        browser.wait()
        await runner.cleanup()
    first = next(answer for answer in answers if answer.get("status") == 201)
    second = next(answer for answer in answers if answer.get("status") == 409)
    assert (first["payment"], first["said"], first["label"]) == (1, '{"amount":"7"}', "stored")
    assert (second["type"], second["label"]) == ("urn:oncegate:problem:in-flight", "in-flight")
    assert second["again"] is not None
    assert (answers[-1]["payment"], answers[-1]["replayed"]) == (1, "true")
    assert shop.payments == {"page-1": 1}

"""What is told to those who run a gate holds nothing of what clients and services said to each other.

A real gate on a Redis with a password is driven down every path, with values that are met nowhere else in all that it
is sent, answered and configured with; then everything that it printed and shows is searched for them, in their own
letters and as they are encoded most often.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.harness import Client, Exchange, GateProcess, Origin, Response, ask, configuration, request
from tests.servers import RedisServer, free_port, preferred

#: What nobody who reads a log, a scrape or a terminal may meet, by where it stands.
SECRETS = {
    "key": "kEy+Of/Alice-51c6e3",
    "other key": "kEy-oF-Bob-77f0a1",
    "body": "bOdY-4242-9b1d",
    "Authorization": "tOkEn-7f3a-0c2d",
    "other Authorization": "tOkEn-of-Mallory-1b1b",
    "X-Api-Key": "aPi-22c1-77aa",
    "cookie": "cOoKiE-88e0-13fe",
    "query": "vOuChEr-13aa-90d2",
    "tenant": "tEnAnT-9d41-6c6c",
    "account": "aCcOuNt-77ab-0101",
    "a field": "fIeLd-31e9-aaaa",
    "response body": "rEcEiPt-5512-e0e0",
    "response field": "sErVeD-6f6f-2a2a",
    "response cookie": "sEt-CoOkIe-4a61-bb",
    "store password": "sToRe-0d77-pAsS",
    "secret of names": "nAmEs-f00d-sEcReT",
    "admin token": "aDmIn-c0ffee-0123456789",
}
ORDER = f"/orders?voucher={SECRETS['query']}"
SENT = [
    ("Authorization", f"Bearer {SECRETS['Authorization']}"),
    ("X-Api-Key", SECRETS["X-Api-Key"]),
    ("Cookie", f"session={SECRETS['cookie']}"),
    ("X-Tenant-Id", SECRETS["tenant"]),
    ("X-Account-Id", SECRETS["account"]),
    ("X-Note", SECRETS["a field"]),
]
POLICY = "wait: 0s, store_wait: 0s, max_request: 2KiB, max_response: 1KiB, scope: ['header:X-Tenant-Id']"


def spellings(secret: str) -> Iterator[str]:
    """As it was written, and as it is written where bytes are not welcome; all in small letters."""
    raw = secret.encode()
    yield secret.lower()
    yield quote(secret, safe="").lower()
    yield raw.hex()
    # Within other text base64 begins at any of three places; what its neighbours touch is left out.
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + raw).decode().rstrip("=")
        yield encoded[4 if before else 0 : -2].lower()


def found(told: str) -> set[str]:
    """The places of the secrets that stand in this text."""
    told = told.lower()
    return {place for place, secret in SECRETS.items() if any(spelled in told for spelled in spellings(secret))}


class Counter:
    """The shop behind the gate. What it says is a secret too."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def answer(self, exchange: Exchange) -> None:
        target = exchange.request.target
        if target.startswith(b"/lost"):
            exchange.reset()
            return
        if target.startswith(b"/slow"):
            await self.go_on.wait()
        body = json.dumps(
            {"receipt": SECRETS["response body"], "more": "." * 2000 * target.startswith(b"/big")}
        ).encode()
        fields = [("X-Served", SECRETS["response field"]), ("Set-Cookie", f"sid={SECRETS['response cookie']}")]
        await exchange.respond(201, body, [(name.encode(), value.encode()) for name, value in fields])


class Stand:
    """The gate, its store and the shop."""

    def __init__(self, gate: GateProcess, redis: RedisServer, origin: Origin, counter: Counter) -> None:
        self.gate, self.redis, self.origin, self.counter = gate, redis, origin, counter

    async def buy(
        self, target: str = ORDER, *, key: str | None = SECRETS["key"], body: str = SECRETS["body"], bearer: str = ""
    ) -> Response:
        fields = [("Authorization", f"Bearer {bearer}"), *SENT[1:]] if bearer else SENT
        return await ask(self.gate.port, "POST", target, key=key, body=f'{{"card":"{body}"}}'.encode(), fields=fields)

    async def every_path(self) -> list[str]:
        """What each try was told, in one word."""
        told = []

        async def tell(answer: Response) -> None:
            told.append(answer.problem or str(answer.label))

        await tell(await self.buy())
        await tell(await self.buy())
        await tell(await self.buy(body="another-body"))
        await tell(await self.buy(ORDER + "&page=2"))
        await tell(await self.buy(bearer=SECRETS["other Authorization"]))
        await tell(await self.buy(key=None))
        await tell(await self.buy(key=f'"{SECRETS["other key"]}'))
        await tell(await self.buy(key=SECRETS["other key"], body="x" * 3000 + SECRETS["body"]))
        for _ in range(2):
            await tell(await self.buy("/lost" + ORDER, key=f"{SECRETS['other key']}-lost"))
            await tell(await self.buy("/big" + ORDER, key=f"{SECRETS['other key']}-big"))
            await tell(await self.buy("/away" + ORDER, key=f"{SECRETS['other key']}-away"))
        await tell(await ask(self.gate.port, key=SECRETS["key"], fields=SENT[:3]))  # of no tenant
        await tell(await self.buy("/open" + ORDER))
        with closing(await Client.connect(self.gate.port)) as first:
            slow = request(target="/slow" + ORDER, key=f"{SECRETS['other key']}-slow", fields=SENT, body=b"{}")
            before = len(self.origin.requests)
            await first.send(slow)
            await self.origin.until(before + 1)
            with closing(await Client.connect(self.gate.port)) as second:
                await second.send(slow)
                await tell(await second.read())
            self.counter.go_on.set()
            await tell(await first.read())
        with closing(await Client.connect(self.gate.port)) as rude:
            head = "".join(f"{name}: {value}\r\n" for name, value in SENT)
            await rude.send(f"POST {ORDER} HTTP/1.1\r\nHost: a\r\n{head}{SECRETS['a field']} no colon\r\n\r\n".encode())
            await tell(await rude.read())
        return told

    async def without_its_store(self) -> list[str]:
        """The Redis dies, and comes back without a password: the gate's own is refused."""
        self.redis.kill()
        told = [str((await self.buy(key="while-away")).problem)]
        await asyncio.to_thread(self.redis.start)
        told.append(str((await self.buy(key="while-open")).problem))
        return told

    async def admin(self) -> dict[str, str]:
        """What each endpoint shows, to one with the token."""
        token = [("Authorization", f"Bearer {SECRETS['admin token']}")]
        paths = ("/live", "/ready", "/ready/guarded", "/metrics", "/config", "/keys", "/openapi.json", "/nowhere")
        shown = {}
        for path in paths:
            for fields in (token, []):
                answer = await ask(self.gate.admin_port, "GET", path, body=b"", host="127.0.0.1", fields=fields)
                shown[f"GET {path} {'with' if fields else 'without'} token"] = f"{answer.fields} {answer.body.decode()}"
        sought = json.dumps({"key": SECRETS["key"], "route": "all", "scope": {"header:X-Tenant-Id": SECRETS["tenant"]}})
        fields = [*token, ("Content-Type", "application/json")]
        answer = await ask(
            self.gate.admin_port, "POST", "/keys/find", body=sought.encode(), host="127.0.0.1", fields=fields
        )
        shown["POST /keys/find"] = answer.body.decode()
        return shown

    async def typed(self) -> dict[str, str]:
        """What each command prints."""
        file, place = str(self.gate.file), ("--admin", f"127.0.0.1:{self.gate.admin_port}")
        show = ("keys", "show", "-", "--route", "all", "--scope", f"header:X-Tenant-Id={SECRETS['tenant']}", *place)
        commands = [
            (("check", file), ""), (("policy", file), ""), (("diff", file, file), ""),
            (("doctor", "--config", file), ""), (("doctor", "--store", store(self.redis)), ""),
            (("keys", "list", *place), ""), (("keys", "list", "--json", *place), ""),
            (show, SECRETS["key"] + "\n"), ((*show, "--json"), SECRETS["key"] + "\n"),
        ]  # fmt: skip
        said = {}
        for words, given in commands:
            environ = {"ONCEGATE_ADMIN_TOKEN": SECRETS["admin token"]}
            done = await asyncio.to_thread(CliRunner().invoke, main, words, input=given, env=environ)
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            said[" ".join(words[:2])] = f"{done.exit_code} {done.stdout}{done.stderr}"
        return said


def store(redis: RedisServer) -> str:
    return f"redis://:{SECRETS['store password']}@127.0.0.1:{redis.port}/0"


@asynccontextmanager
async def stand(log: str) -> AsyncIterator[Stand]:
    counter = Counter()
    origin = await Origin(counter.answer).start()
    redis = await asyncio.to_thread(RedisServer(preferred()).start)
    with redis.client() as client:
        client.config_set("requirepass", SECRETS["store password"])
    text = configuration(
        origin.url, store=store(redis), policy=POLICY,
        routes=f"  - {{name: away, match: {{path: /away/**}}, upstream: away, {POLICY}}}\n"
               "  - {name: strict, match: {path: /strict/**}, upstream: origin, missing: refuse}",
        top=f"log: {{{log}}}\nsecret: {SECRETS['secret of names']}",
    )  # fmt: skip
    text = text.replace("upstreams:\n", f"upstreams:\n  away: http://127.0.0.1:{free_port()}\n")
    text = text.replace("admin: {", f"admin: {{token: {SECRETS['admin token']}, ")
    gate = GateProcess(text)
    try:
        await gate.start()
        yield Stand(gate, redis, origin, counter)
    finally:
        counter.go_on.set()
        gate.close()
        redis.close()
        await origin.stop()


TOLD = [
    "stored", "replayed", "key-reused", "key-reused", "credentials-differ", "unprotected", "key-invalid",
    "body-too-large", "upstream-lost", "not-kept", "upstream-unreachable", "in-doubt", "response-not-kept",
    "upstream-unreachable", "scope-missing", "unprotected", "in-flight", "stored", "request-malformed",
]  # fmt: skip


@pytest.mark.parametrize("form", ["json", "text"])
async def test_nobody_who_runs_it_reads_what_clients_and_services_said(form: str) -> None:
    """First, replay, mismatch, refused, lost, in doubt, in flight, too big, malformed, without a store: nothing of key,
    body, credentials, cookies, query, answers, passwords is in any line, metric, endpoint or command's output."""
    async with stand(f"format: {form}") as here:
        assert await here.every_path() == TOLD
        told = await here.admin() | await here.typed()
        assert await here.without_its_store() == ["store-unavailable", "store-unavailable"]
        told |= {f"{name}, later": text for name, text in (await here.admin()).items()}
        assert await here.gate.terminate() == 0
        told["log"] = here.gate.log.read_text()
    assert {name: found(text) for name, text in told.items() if found(text)} == {}


async def test_what_is_searched_for_was_there_to_be_found() -> None:
    """`log: {keys: full}` → the keys stand in the log, and nothing else does; all the rest reached the service or the
    client. So a search that finds nothing has looked for something."""
    async with stand("format: json, keys: full") as here:
        await here.every_path()
        answer = await here.buy()
        assert found(f"{answer.fields} {answer.body!r}") == {"response body", "response field"}
        assert found(str(here.origin.requests)) == {
            "key", "other key", "body", "Authorization", "X-Api-Key", "cookie", "query", "tenant", "account", "a field",
        }  # fmt: skip
        assert await here.gate.terminate() == 0
        assert found(here.gate.log.read_text()) == {"key", "other key"}
        assert found(here.gate.file.read_text()) == {"store password", "secret of names", "admin token"}


def test_the_search_knows_each_spelling() -> None:
    """A secret is found as it is, in other letters, percent-encoded, in hexadecimal, and in base64 at any place."""
    secret = SECRETS["key"]
    encoded = (base64.b64encode(b"." * before + secret.encode() + b"behind").decode() for before in range(4))
    for told in (secret, secret.upper(), quote(secret, safe=""), secret.encode().hex(), *encoded):
        assert found(f"before {told} behind") == {"key"}, told
    assert found("nothing of the kind") == set()


#: Files that are wrong close to a secret: what is wrong must be said without it.
CLOSE = [
    "store: redis://:{}@h:x",
    "store: redis://:{}@h:1/0?durabilty=single",
    "store: redis://me:{}@/0",
    "store: 'redis://:{}#more@h'",
    "store: postgresql://me:{}@h",
    "store: {{url: 'redis+sentinel://h', sentinel_password: {}}}",
    "store: {{url: 'redis://:{}@h', replicas: 0}}",
    "secret: [{}]",
    "secret: {{a: {}}}",
    "admin: {{token: 'two {}'}}",
    "admin: {{token: [{}]}}",
    "upstreams: {{app: 'http://me:{}@a'}}",
]


@pytest.mark.parametrize("close", CLOSE)
def test_what_is_wrong_close_to_a_secret_is_said_without_it(close: str, tmp_path: Path) -> None:
    """oncegate check FILE → what is wrong with it, exit 64, and not the secret."""
    file = tmp_path / "gate.yaml"
    upstreams = "" if close.startswith("upstreams") else "upstreams: {app: 'http://a'}\n"
    file.write_text(
        f"service: a\n{upstreams}routes: [{{name: all, upstream: app}}]\n{close.format(SECRETS['store password'])}\n"
    )
    done = CliRunner().invoke(main, ["check", str(file)])
    assert (done.exit_code, done.stdout) == (64, "")
    assert found(done.stderr) == set(), done.stderr

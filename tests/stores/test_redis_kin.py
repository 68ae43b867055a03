"""Every way to a Redis: over TLS, with a user and a password, a database, a Unix socket, Sentinels that ask who one is.

Each is gone by two processes' stores through the whole life of a record, with a bell. On every server that can be had
here; for one that was built without TLS it is spoken in front of it (tests/tls.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.core.record import Done, Found, State
from gateway.ports import StoreAway
from gateway.settings import stores
from tests.fleet import MASTER, SentinelServer
from tests.servers import RedisServer, binaries, free_port, preferred
from tests.stores.listening import listen
from tests.stores.test_bells import SOON, another, hearing, keep
from tests.stores.worlds import a_claim, an_answer
from tests.tls import NAME as SERVER_NAME
from tests.tls import Authority, Front, SecureServer, tls_lines

NAME = b"n" * 43
#: What an administrator may think of, and what a URL cannot hold as it is.
USER, PASSWORD = "gate:é", "p@ss:w/ord?#%[]& ✓"


HUNG_UP = "reset by peer|Broken pipe|Redis closed the connection"
WANTS_ONE = r"(hung up before it answered \(.*\)|cannot be reached: .*); it most likely wants a client certificate"


def encoded(user: str = USER, password: str = PASSWORD) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@"


async def whole(url: str) -> None:
    """A claim; a waiter of another process, who is told of its answer, and replays it; a look."""
    stores.store(url)
    async with another(url) as first, another(url) as second:
        assert (first.trouble, second.trouble) == ("", "")
        claim = a_claim()
        assert await first.claim(NAME, claim) is Done.WON
        with listen(second, NAME) as bell:
            await hearing(bell)
            found = await second.claim(NAME, a_claim())
            assert isinstance(found, Found)
            assert (found.record.state, found.record.holder) == (State.IN_FLIGHT, claim.holder)
            assert await first.settle(NAME, keep(claim)) is Done.DONE
            assert await bell.rung(SOON)
            replayed = await second.claim(NAME, a_claim())
            assert isinstance(replayed, Found)
            assert replayed.record.state is State.COMPLETED
            assert replayed.record.answer == an_answer()
        looked = await first.get(NAME)
        assert looked is not None
        assert looked.record == replayed.record


async def refused(url: str, *reasons: str) -> None:
    """No claim is made, and whoever asks is told why; a reason with | says one of two."""
    stores.store(url)
    async with another(url) as store:
        assert not store.available
        for reason in reasons:
            assert re.search(reason, store.trouble), store.trouble
        with pytest.raises(StoreAway) as away:
            await store.claim(NAME, a_claim())
        assert not away.value.ambiguous
        assert PASSWORD not in store.trouble


@pytest.fixture(params=list(binaries()))
def binary(request: pytest.FixtureRequest) -> Path:
    return binaries()[request.param]


@pytest.fixture
def server(binary: Path) -> Iterator[RedisServer]:
    server = RedisServer(binary).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def secure(binary: Path, authority: Authority) -> AsyncIterator[SecureServer]:
    server = await SecureServer(binary, authority).start()
    yield server
    await server.close()


@pytest.fixture
async def choosy(binary: Path, authority: Authority) -> AsyncIterator[SecureServer]:
    """A server that serves only who shows a certificate."""
    server = await SecureServer(binary, authority, clients=True).start()
    yield server
    await server.close()


@pytest.fixture
async def named(binary: Path, authority: Authority) -> AsyncIterator[SecureServer]:
    """A server whose certificate is for a name, and not for the address at which it is reached."""
    server = await SecureServer(binary, authority, certificate="named").start()
    yield server
    await server.close()


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_is_known_by_its_authority(secure: SecureServer, authority: Authority) -> None:
    """rediss:// with ca: a whole life. With another authority, or those of the system: refused, and the reason says
    that the certificate is not trusted. The server has seen no command."""
    await whole(secure.url(authority.ca))
    with secure.server.client() as client:
        client.flushall()
        client.config_resetstat()
        await refused(secure.url(f"ca={authority.file('stranger.pem')}"), f"127.0.0.1:{secure.port}", "CERTIFICATE_")
        await refused(secure.url(), f"127.0.0.1:{secure.port}", "CERTIFICATE_VERIFY_FAILED")
        assert set(client.info("commandstats")) <= {"cmdstat_config|resetstat", "cmdstat_info"}


async def test_verify_false_asks_nobody(named: SecureServer) -> None:
    """Neither authority nor name is asked for; it is TLS all the same."""
    await whole(named.url("verify=false"))


async def test_a_server_is_known_by_its_name(named: SecureServer, authority: Authority) -> None:
    """A certificate for another name than the URL's host: server_name says which. Without it, or with another, the
    reason names what did not match."""
    await whole(named.url(authority.ca, f"server_name={SERVER_NAME}"))
    await refused(named.url(authority.ca), "IP address mismatch", "127.0.0.1")
    await refused(named.url(authority.ca, "server_name=redis.example"), "Hostname mismatch", "redis.example")


async def test_a_server_that_asks_who_we_are(choosy: SecureServer, authority: Authority) -> None:
    """cert and key, or cert with both in one file: a whole life. With no certificate, or a stranger's: refused. (The
    server says why in an alert, after the handshake has ended for us, and hangs up: the alert may be lost in that.)"""
    await whole(choosy.url(authority.ca, authority.client()))
    with choosy.server.client() as client:
        client.flushall()
    await whole(choosy.url(authority.ca, f"cert={authority.file('client.pem')}"))
    at = f"Redis at 127.0.0.1:{choosy.port} {WANTS_ONE}"
    await refused(choosy.url(authority.ca), at, f"CERTIFICATE_REQUIRED|{HUNG_UP}")
    await refused(choosy.url(authority.ca, authority.client("stranger-client")), at, f"ALERT_UNKNOWN_CA|{HUNG_UP}")


async def test_who_speaks_no_tls_is_named(authority: Authority) -> None:
    """rediss:// to a plain port is refused, with its address, and redis:// to a port that speaks TLS."""
    secure = await SecureServer(preferred(), authority).start()
    try:
        plain = secure.server.port
        await refused(f"rediss://127.0.0.1:{plain}?{authority.ca}", f"127.0.0.1:{plain}")
        if secure.native:  # what stands before the others lets plain words through
            at = f"Redis at 127.0.0.1:{secure.port} hung up before it answered"
            await refused(f"redis://127.0.0.1:{secure.port}", at, HUNG_UP, "it may speak TLS only: rediss://")
    finally:
        await secure.close()


async def test_replicas_are_waited_for_over_tls(secure: SecureServer, authority: Authority) -> None:
    """The lanes of durability=replicated are made the same way as the connection of the records."""
    replica = RedisServer(secure.server.binary, arguments=("--replicaof", f"127.0.0.1 {secure.server.port}"))
    await asyncio.to_thread(replica.start)
    try:
        with secure.server.client() as client:
            client.config_set("repl-diskless-sync-delay", "0")
            for _ in range(200):
                client.set("in-step", 1, px=1000)
                if client.execute_command("WAIT", 1, 50) == 1:
                    break
        await whole(secure.url(authority.ca, "durability=replicated", "replicas=1", "wait=2s"))
        with replica.client() as client:
            assert client.exists("og:" + NAME.decode())
    finally:
        replica.close()


# ── Who one is, and where ─────────────────────────────────────────────────────────────────────────


async def test_a_user_and_a_password_of_any_characters(server: RedisServer) -> None:
    """Percent-encoded, both are what the administrator wrote. With another password, or none, the reason is the
    server's own, and holds no password."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~og:*", "&og:*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "off")
    at = f"127.0.0.1:{server.port}"
    await whole(f"redis://{encoded()}{at}")
    await refused(f"redis://{encoded(password=PASSWORD + 'x')}{at}", "refused AUTH: WRONGPASS")
    await refused(f"redis://{encoded(user='who')}{at}", "refused AUTH: WRONGPASS")
    await refused(f"redis://{at}", "NOAUTH")


async def test_a_password_alone_is_the_default_user_s(server: RedisServer) -> None:
    """requirepass, and redis://:PASSWORD@HOST."""
    with server.client() as client:
        client.config_set("requirepass", PASSWORD)
    at = f"127.0.0.1:{server.port}"
    await whole(f"redis://:{quote(PASSWORD, safe='')}@{at}")
    await refused(f"redis://:wrong@{at}", "refused AUTH: WRONGPASS")
    await refused(f"redis://{at}", "NOAUTH")


@pytest.mark.parametrize("user", ["gate@", "gate:@"])
def test_a_user_without_a_password_is_a_fault(user: str) -> None:
    """It would have logged in as nobody; who means a password is told how it is written."""
    for scheme in ("redis://", "rediss+sentinel://", "redis+unix://"):
        with pytest.raises(ValueError, match="a password stands behind a colon; use :PASSWORD@ or USER:PASSWORD@"):
            stores.store(f"{scheme}{user}{'/redis.sock' if 'unix' in scheme else 'h/payments'}")


async def test_a_database_has_a_number(server: RedisServer) -> None:
    """The record lies in that database and in no other; a number that the server has not is named."""
    at = f"redis://127.0.0.1:{server.port}"
    await whole(f"{at}/3")
    with server.client() as client:
        assert {"db3"} == set(client.info("keyspace"))
    await refused(f"{at}/99", "refused SELECT", "out of range")


@pytest.mark.parametrize("scheme", ["unix", "redis+unix"])
async def test_a_unix_socket(binary: Path, scheme: str) -> None:
    """By its path, percent-encoded, with user, password and database; one that is not there is named."""
    server = RedisServer(binary)
    path = str(server.folder / "a socket.sock")
    server.arguments += ("--unixsocket", path)
    server.start()
    try:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~og:*", "&og:*", "+@all")
        await whole(f"{scheme}://{quote(path)}")
        await whole(f"{scheme}://{encoded()}{quote(path)}?db=2")
        with server.client() as client:
            assert {"db0", "db2"} == set(client.info("keyspace"))
        await refused(f"{scheme}://{path[:-9]}gone.sock", "gone.sock cannot be reached", "No such file")
    finally:
        server.close()


# ── Sentinels ─────────────────────────────────────────────────────────────────────────────────────

SENTINEL_USER, SENTINEL_PASSWORD = "watch:er", "s&nt=nel?é"
#: What a Sentinel must allow a gate.
OF_SENTINEL = "-@all +sentinel|master"


class Sentinel(SentinelServer):
    """A Sentinel alone, with more lines in its file."""

    def __init__(self, binary: Path, primary: int, *lines: str) -> None:
        super().__init__(binary, primary, quorum=1)
        self._lines += lines


async def until_it_answers(sentinel: SentinelServer) -> None:
    async with asyncio.timeout(15):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", sentinel.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def passed(name: str = SENTINEL_PASSWORD) -> str:
    return f"sentinel_password={quote(name, safe='')}"


async def test_sentinels_that_ask_for_a_password(server: RedisServer) -> None:
    """requirepass at the Sentinel, another password at the primary: each is given its own. A wrong one, or none, is
    refused with the Sentinel's address."""
    with server.client() as client:
        client.config_set("requirepass", PASSWORD)
    sentinel = Sentinel(
        server.binary, server.port, f'requirepass "{SENTINEL_PASSWORD}"', f'sentinel auth-pass {MASTER} "{PASSWORD}"'
    ).start(server.folder)
    try:
        await until_it_answers(sentinel)
        url = f"redis+sentinel://:{quote(PASSWORD, safe='')}@127.0.0.1:{sentinel.port}/{MASTER}/1"
        await whole(f"{url}?{passed()}")
        await refused(f"{url}?{passed('wrong')}", f"127.0.0.1:{sentinel.port}: refused AUTH: WRONGPASS")
        await refused(url, f"127.0.0.1:{sentinel.port}: refused SENTINEL MASTER: NOAUTH")
    finally:
        sentinel.close()


async def test_sentinels_with_users(server: RedisServer) -> None:
    """A Sentinel's user who may ask for a primary and nothing else is enough; the docs say so."""
    user = f'user "{SENTINEL_USER}" on >{SENTINEL_PASSWORD} resetchannels {OF_SENTINEL}'
    sentinel = Sentinel(server.binary, server.port, user, "user default off").start(server.folder)
    try:
        await until_it_answers(sentinel)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{MASTER}?{passed()}"
        await whole(f"{url}&sentinel_user={quote(SENTINEL_USER, safe='')}")
        await refused(url, f"127.0.0.1:{sentinel.port}: refused AUTH: WRONGPASS")
    finally:
        sentinel.close()
    page = (Path(__file__).parent.parent.parent / "docs/redis.md").read_text()
    assert f"resetchannels {OF_SENTINEL}\n" in page


async def test_sentinels_over_tls(choosy: SecureServer, authority: Authority) -> None:
    """rediss+sentinel://: Sentinels and the primary that they name, each with certificates on both sides, and a
    password for each. An authority that did not sign theirs finds no primary."""
    with choosy.server.client() as client:
        client.config_set("requirepass", PASSWORD)
    port = free_port()
    lines = [f'requirepass "{SENTINEL_PASSWORD}"', f'sentinel auth-pass {MASTER} "{PASSWORD}"']
    if choosy.native:
        words: tuple[str, ...] = tls_lines(authority, port, "server", clients=True)
        pairs = zip(words[::2], words[1::2], strict=True)
        lines += [f"{name.removeprefix('--')} {value}" for name, value in pairs] + ["tls-replication yes"]
    sentinel = Sentinel(choosy.server.binary, choosy.port, *lines).start(choosy.server.folder)
    front = None if choosy.native else await Front(port, sentinel.port, authority, "server", clients=True).start()
    try:
        await until_it_answers(sentinel)
        url = f"rediss+sentinel://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/{MASTER}?{passed()}"
        await whole(f"{url}&{authority.ca}&{authority.client()}")
        stranger = f"ca={authority.file('stranger.pem')}"
        await refused(f"{url}&{stranger}&{authority.client()}", f"127.0.0.1:{port}: .*CERTIFICATE_VERIFY_FAILED")
        await refused(f"{url}&{authority.ca}", f"127.0.0.1:{port}: {WANTS_ONE}")
    finally:
        if front is not None:
            await front.close()
        sentinel.close()


async def test_dead_sentinels_are_passed_over(server: RedisServer) -> None:
    """Two of three are gone with their hosts: the third is asked at once, and not after the others have been asked
    again and again."""
    sentinel = Sentinel(server.binary, server.port).start(server.folder)
    try:
        await until_it_answers(sentinel)
        began = time.monotonic()
        await whole(
            f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/{MASTER}"
        )
        assert time.monotonic() - began < 2
    finally:
        sentinel.close()

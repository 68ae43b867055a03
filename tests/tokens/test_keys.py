"""An issuer's keys, from real servers: one that changes them, and ones that are slow, endless, away or a stranger's."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.clock import HostClock
from gateway.core.scope import Tokens
from gateway.jwks import LARGEST
from gateway.settings import tls
from gateway.tasks import Tasks
from gateway.tokens import keys as room
from gateway.tokens.keys import Keys
from tests.tokens.issuer import EC_KEY, ISSUER, RSA_KEY, jwk, published


class Publisher:
    """A server of keys whose every answer the test writes."""

    def __init__(self) -> None:
        self.answer = whole(published(jwk(RSA_KEY, kid="r")))
        self.asked: list[bytes] = []
        self.endless = False
        self.slow = asyncio.Event()
        self.slow.set()
        self._server: asyncio.Server | None = None

    async def start(self, context: ssl.SSLContext | None = None) -> Publisher:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        return self

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            await self.slow.wait()
            writer.write(self.answer)
            await writer.drain()
            while self.endless:
                writer.write(b" " * 65536)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def stop(self) -> None:
        self.slow.set()
        if self._server is not None:
            self._server.close()


def whole(body: bytes, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%bConnection: close\r\n\r\n%b" % (status, len(body), fields, body)


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    publisher = await Publisher().start()
    yield publisher
    publisher.stop()


Said = list[tuple[str, str, dict[str, Any]]]


def keys_at(jwks: str, said: Said, *, refresh: int = 300_000, context: ssl.SSLContext | None = None) -> Keys:
    def say(level: str, what: str, **facts: object) -> None:
        said.append((level, what, facts))

    return Keys(Tokens(jwks, ISSUER, refresh=refresh), HostClock(), say, context=context)


async def eventually(met: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not met():
            await asyncio.sleep(0.01)


async def test_keys_are_fetched_and_what_cannot_be_fetched_changes_nothing(publisher: Publisher) -> None:
    """The reason is told once, and once more that it is over; meanwhile the keys of before stand."""
    said: Said = []
    keys = keys_at(f"http://127.0.0.1:{publisher.port}/keys?a=b", said)
    assert not keys.trusted
    assert await keys.fetch()
    assert (keys.trusted, keys.generation, len(keys.fitting("r", "RS256"))) == (True, 1, 1)
    assert publisher.asked[0].startswith(b"GET /keys?a=b HTTP/1.1\r\n")
    good = publisher.answer
    for publisher.answer, reason in (
        (whole(b"", b"503 No"), "answered 503"),
        (whole(b"<html>"), "this is not JSON"),
        (whole(b"", b"302 Found", b"Location: http://127.0.0.1:1/\r\n"), "answered 302"),
        (whole(b" " * (LARGEST + 1)), "the set is larger than 256 KiB"),
        (good[:-9], ""),
        (b"", ""),
    ):
        said.clear()
        assert not await keys.fetch()
        assert not await keys.fetch()
        assert [(level, what) for level, what, _ in said] == [("warning", "an issuer's keys cannot be fetched")]
        assert reason in said[0][2]["reason"]
        assert said[0][2]["issuer"] == ISSUER
        assert (keys.trusted, keys.generation, len(keys.fitting("r", "RS256"))) == (True, 1, 1)
        publisher.answer = good
        assert await keys.fetch()
        assert said[1][:2] == ("note", "an issuer's keys are fetched again")
    assert keys.generation == 1


async def test_an_endless_answer_is_read_no_further_than_a_set_may_be(publisher: Publisher) -> None:
    """Without a length, for as long as the gate would read: it leaves soon after 256 KiB, and says why."""
    publisher.answer, publisher.endless = b"HTTP/1.1 200 OK\r\n\r\n", True
    said: Said = []
    assert not await keys_at(f"http://127.0.0.1:{publisher.port}/", said).fetch()
    assert said[0][2]["reason"] == "the set is larger than 256 KiB"


async def test_a_slow_issuer_is_not_waited_for(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds by default."""
    monkeypatch.setattr(room, "PATIENCE", 0.1)
    publisher.slow.clear()
    said: Said = []
    assert not await keys_at(f"http://127.0.0.1:{publisher.port}/", said).fetch()
    assert said[0][2]["reason"] == "no answer within 0.1 s"


async def test_over_tls_the_issuer_must_be_who_it_says(tmp_path: Path) -> None:
    """By the authorities of `ca`; a stranger's certificate for the same address is none."""
    mine, stranger = trustme.CA(), trustme.CA()
    mine.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = tls.context(str(tmp_path / "ca.pem"), verify=True)
    for ca, fetched in ((mine, True), (stranger, False)):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(server)
        publisher = await Publisher().start(server)
        said: Said = []
        assert await keys_at(f"https://127.0.0.1:{publisher.port}/", said, context=context).fetch() is fetched
        assert bool(publisher.asked) is fetched
        publisher.stop()


async def test_a_file_is_read_anew(tmp_path: Path) -> None:
    """So that keys which a deployment puts there come into use."""
    file = tmp_path / "keys.json"
    file.write_bytes(published(jwk(RSA_KEY, kid="r")))
    keys = keys_at(str(file), [])
    assert await keys.fetch()
    file.write_bytes(published(jwk(EC_KEY, kid="e")))
    assert await keys.fetch()
    assert (keys.generation, len(keys.fitting("r", "RS256")), len(keys.fitting("e", "ES256"))) == (2, 0, 1)
    file.unlink()
    assert not await keys.fetch()
    assert len(keys.fitting("e", "ES256")) == 1


async def test_keys_are_watched(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched each `refresh`; at once where a token names one that is new, and so again after AGAIN at the earliest."""
    monkeypatch.setattr(room, "AGAIN", 0.3)
    keys = keys_at(f"http://127.0.0.1:{publisher.port}/", [], refresh=60_000)
    tasks = Tasks(lambda error: None)
    await keys.fetch()
    tasks.start(keys.watch())
    try:
        assert not keys.ask()  # that was a moment ago
        await asyncio.sleep(0.35)
        publisher.answer = whole(published(jwk(EC_KEY, kid="e")))
        assert keys.ask()
        await eventually(lambda: keys.fitting("e", "ES256"))
        assert len(publisher.asked) == 2
        assert not keys.ask()
    finally:
        await tasks.cancel()
    often = keys_at(f"http://127.0.0.1:{publisher.port}/", [], refresh=50)
    await often.fetch()
    tasks.start(often.watch())
    await eventually(lambda: len(publisher.asked) >= 5)
    await tasks.cancel()


async def test_an_issuer_that_is_away_at_first_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sooner than each `refresh`."""
    monkeypatch.setattr(room, "AGAIN", 0.05)
    keys = keys_at(str(tmp_path / "keys.json"), [], refresh=3_600_000)
    assert not await keys.fetch()
    tasks = Tasks(lambda error: None)
    tasks.start(keys.watch())
    (tmp_path / "keys.json").write_bytes(published(jwk(RSA_KEY)))
    await eventually(lambda: keys.trusted)
    await tasks.cancel()

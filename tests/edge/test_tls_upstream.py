"""Upstreams over TLS. The origin's side of TLS is done by hand too, on Python's ssl over the bytes of a socket, so
that a test says which record comes when, and whether the end is announced. On uvloop, which the gate runs on, and on
the standard loop, because the two differ in what they tell of an end."""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from gateway.core.outcome import NotSentReason
from gateway.edge.connection import Connection
from gateway.edge.pool import Pool
from tests.edge.stand import GET, OK, SOON, ByHand, Edge, Peer, edge, eventually, head_of, keyed, not_kept, post
from tests.harness import Client, Response, ask, configuration

BOTH_LOOPS = True

EVER = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Authority:
    """An authority that the gate trusts, by its file, and one that it does not."""

    ca: trustme.CA
    stranger: trustme.CA
    file: Path

    def context(self, *names: str, until: datetime.datetime = EVER, by: trustme.CA | None = None) -> ssl.SSLContext:
        """A server with a certificate for `names`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        since = min(until, datetime.datetime.now(datetime.UTC)) - datetime.timedelta(days=30)
        certificate = (by or self.ca).issue_cert(*(names or ("127.0.0.1",)), not_before=since, not_after=until)
        certificate.configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca = trustme.CA()
    ca.cert_pem.write_to_path(file)
    return Authority(ca, trustme.CA(), file)


@pytest.fixture(scope="module")
def good(authority: Authority) -> ssl.SSLContext:
    return authority.context()


@pytest.fixture(scope="module")
def older(authority: Authority) -> ssl.SSLContext:
    """The same with TLS 1.2, whose handshake the server is the last to speak in."""
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def over_tls(hand: ByHand, authority: Authority, *, tls: str = "", upstream: str = "", **others: str) -> str:
    """The configuration of a gate before `hand` over TLS, and what `tls` says besides the authority's file."""
    given = f"tls: {{{tls or f'ca: {authority.file}'}}}"
    url = hand.url.replace("http://", "https://")
    return configuration(url, upstream=f"{given}, {upstream}" if upstream else given, **others)


class Secret:
    """The origin's end of a connection over TLS."""

    def __init__(self, peer: Peer, context: ssl.SSLContext) -> None:
        self.peer = peer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._heard = b""

    async def handshake(self, behind: bytes = b"") -> Secret:
        """Until this side is finished. `behind` goes out in one piece with its last message."""
        async with asyncio.timeout(SOON):
            while True:
                try:
                    self.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self.more()
                except ssl.SSLError:
                    await self._flush()
                    raise
        if behind:
            self.tls.write(behind)
        await self._flush()
        return self

    async def more(self) -> bytes:
        """Bytes from the wire, as they are."""
        data = await self.peer.reader.read(1 << 16)
        if not data:
            raise ConnectionError("the gate has left")
        self._incoming.write(data)
        return data

    async def head(self) -> bytes:
        async with asyncio.timeout(SOON):
            while b"\r\n\r\n" not in self._heard:
                try:
                    self._heard += self.tls.read(1 << 16)
                except ssl.SSLWantReadError:
                    await self.more()
        head, _, self._heard = self._heard.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    async def asked(self) -> bytes:
        """The head of the first request, after the handshake."""
        await self.handshake()
        return await self.head()

    def sealed(self, data: bytes = b"", *, farewell: bool = False) -> bytes:
        """`data` as records for the wire, and a close_notify behind them."""
        if data:
            self.tls.write(data)
        if farewell:
            with pytest.raises(ssl.SSLWantReadError):
                self.tls.unwrap()
        return self._outgoing.read()

    async def send(self, data: bytes = b"", *, farewell: bool = False) -> None:
        await self.peer.send(self.sealed(data, farewell=farewell))

    async def answer(self, body: bytes = b"ok", status: int = 200) -> None:
        await self.send(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self.peer.send(data)


async def accepted(hand: ByHand, context: ssl.SSLContext) -> Secret:
    return await Secret(await hand.accept(), context).handshake()


class Wanting:
    """Whoever wants a connection of a pool, and writes down what it is told."""

    guarded = True

    def __init__(self) -> None:
        self.told: asyncio.Future[Connection | tuple[NotSentReason, str]] = asyncio.get_running_loop().create_future()

    def connected(self, connection: Connection) -> None:
        self.told.set_result(connection)

    def unconnected(self, reason: NotSentReason, detail: str) -> None:
        self.told.set_result((reason, detail))


async def no_connection(pool: Pool) -> str:
    """What the pool says of a connection that it could not make."""
    wanting = Wanting()
    pool.acquire(wanting)
    async with asyncio.timeout(SOON):
        told = await wanting.told
    assert isinstance(told, tuple), told
    reason, detail = told
    assert reason is NotSentReason.UNREACHABLE
    host, _, why = detail.partition(": ")
    assert host == f"{pool.place.host}:{pool.place.port}"
    return why


def said(answer: Response) -> tuple[int, str | None, str | None, str | None]:
    return answer.status, answer.problem, answer.label, answer.get("Idempotency-Outcome")


UNREACHABLE = (502, "upstream-unreachable", "released", "no-effect")
LOST = (502, "upstream-lost", "in-doubt", "unknown")
IN_DOUBT = (409, "in-doubt", "in-doubt", "unknown")


async def served(gate: Edge, hand: ByHand, context: ssl.SSLContext, key: str) -> None:
    """A request under `key` is served, over a connection that is made for it."""
    client = await gate.connect()
    await client.send(keyed(key))
    secret = await accepted(hand, context)
    await secret.head()
    await secret.answer(key.encode(), 201)
    answer = await client.read()
    assert (answer.status, answer.body, answer.label) == (201, key.encode(), "stored")


# ── What works ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", ["good", "older"])
async def test_a_keyed_request_goes_over_tls_and_its_answer_is_replayed(
    hand: ByHand, authority: Authority, version: str, request: pytest.FixtureRequest
) -> None:
    """TLS 1.2 and 1.3, HTTP/1.1 agreed on, the certificate checked. The Host is the client's, and
    X-Forwarded-Proto tells how the client came, not how the gate goes on."""
    async with edge(over_tls(hand, authority)) as gate:
        client = await gate.connect()
        await client.send(keyed("k", b"body"))
        secret = await accepted(hand, request.getfixturevalue(version))
        head = await secret.head()
        assert head.startswith(b"POST /orders HTTP/1.1\r\nHost: a\r\n")
        assert b"\r\nX-Forwarded-Proto: http\r\n" in head
        assert secret.tls.selected_alpn_protocol() == "http/1.1"
        assert secret.tls.version() == {"good": "TLSv1.3", "older": "TLSv1.2"}[version]
        await secret.answer(b"done", 201)
        answer = await client.read()
        assert (answer.status, answer.body, answer.label) == (201, b"done", "stored")
        again = await ask(gate.port, key="k", body=b"body", host="a")
        assert (again.status, again.body, again.label) == (201, b"done", "replayed")
        assert hand.connections == 1


@pytest.mark.parametrize("version", ["good", "older"])
async def test_a_connection_over_tls_is_used_again(
    hand: ByHand, authority: Authority, version: str, request: pytest.FixtureRequest
) -> None:
    """The tickets that a server of TLS 1.3 sends behind the handshake are no reason to make a new one. For four
    seconds; then it is closed."""
    async with edge(over_tls(hand, authority)) as gate:
        client = await gate.connect()
        await client.send(GET)
        secret = await accepted(hand, request.getfixturevalue(version))
        for body, idle in ((b"first", 0), (b"second", 3.9), (b"third", 3.9)):
            if idle:
                gate.pool._idle[0].idle_since -= idle
                await client.send(GET)
            await secret.head()
            await secret.answer(body)
            assert (await client.read(method=b"GET")).body == body
            await eventually(lambda: gate.pool._idle, "the connection is idle")
        assert hand.connections == 1
        gate.pool._idle[0].idle_since -= 4.1
        await client.send(keyed("k"))
        fresh = await accepted(hand, request.getfixturevalue(version))
        await fresh.head()
        await fresh.answer(b"fourth")
        assert (await client.read()).body == b"fourth"
        assert await secret.peer.ended()


async def test_tickets_that_come_while_it_is_idle_cost_a_handshake_and_no_answer(
    hand: ByHand, authority: Authority, good: ssl.SSLContext
) -> None:
    """Records that lie unread could be anything: the connection is left. Read by the loop they were tickets, and
    the connection is as good as before."""
    async with edge(over_tls(hand, authority)) as gate:
        wanting = Wanting()
        gate.pool.acquire(wanting)
        secret = Secret(await hand.accept(), good)
        await secret.more()
        with pytest.raises(ssl.SSLWantReadError):
            secret.tls.do_handshake()
        await secret._flush()
        connection = await wanting.told
        assert isinstance(connection, Connection)
        await secret.more()
        secret.tls.do_handshake()  # the gate's last message; the tickets are made, and not sent yet
        assert connection.quiet()
        os.write(secret.peer.writer.get_extra_info("socket").fileno(), secret.sealed())
        assert not connection.quiet()
        await eventually(connection.quiet, "the loop has read the tickets")
        gate.pool.release(connection)


async def test_what_is_not_guarded_streams_over_tls(hand: ByHand, authority: Authority, good: ssl.SSLContext) -> None:
    """Both ways, by chunks, through the same pool."""
    async with edge(over_tls(hand, authority)) as gate:
        client = await gate.connect()
        await client.send(b"POST /open/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        secret = await accepted(hand, good)
        assert (await secret.head()).startswith(b"POST /open/x HTTP/1.1\r\n")
        await secret.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        await head_of(client)
        await secret.send(b"3\r\nxyz\r\n")
        assert await client.reader.readexactly(8) == b"3\r\nxyz\r\n"
        await client.send(b"0\r\n\r\n")
        while b"0\r\n\r\n" not in secret._heard:
            await secret.more()
            secret._heard += secret.tls.read(1 << 16)
        assert secret._heard == b"2\r\nab\r\n0\r\n\r\n"
        await secret.send(b"0\r\n\r\n")
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"


# ── Who answers ───────────────────────────────────────────────────────────────────────────────────

#: What the server shows, what `tls` says besides the authority, and what is said of it.
REFUSED: dict[str, tuple[Callable[[Authority], ssl.SSLContext], str]] = {
    "another authority": (
        lambda authority: authority.context(by=authority.stranger),
        "certificate verify failed: unable to get local issuer certificate",
    ),
    "another host": (
        lambda authority: authority.context("shop.internal", "127.0.0.2"),
        "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.1'.",
    ),
    "expired": (
        lambda authority: authority.context(until=LONG_AGO),
        "certificate verify failed: certificate has expired",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_server_that_cannot_show_who_it_is_is_sent_nothing(
    hand: ByHand, authority: Authority, good: ssl.SSLContext, name: str
) -> None:
    """502 and released: not a byte of the request went out. The detail says what failed. Once the certificate is
    right the same key runs."""
    certificate, why = REFUSED[name]
    context = certificate(authority)

    async def refused() -> None:
        secret = Secret(await hand.accept(), context)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await secret.asked()
        assert secret._heard == b""
        assert await secret.peer.ended()

    async with edge(over_tls(hand, authority)) as gate:
        answer, _ = await asyncio.gather(ask(gate.port, key="k", body=b"", host="a"), refused())
        assert said(answer) == UNREACHABLE
        told, _ = await asyncio.gather(no_connection(gate.pool), refused())
        assert told == why
        passing, _ = await asyncio.gather(ask(gate.port, "GET", "/open/x"), refused())
        assert (passing.status, passing.problem) == (502, "upstream-unreachable")
        await served(gate, hand, good, "k")


async def test_the_name_in_the_certificate_can_be_said(hand: ByHand, authority: Authority) -> None:
    """`server_name` is what is asked for (SNI) and what the certificate must carry; the address is another's."""
    asked: list[str | None] = []
    context = authority.context("shop.internal")
    context.sni_callback = lambda _, name, __: asked.append(name)  # type: ignore[assignment]
    async with edge(over_tls(hand, authority, tls=f"ca: {authority.file}, server_name: shop.internal")) as gate:
        await served(gate, hand, context, "k")
    assert asked == ["shop.internal"]
    async with edge(over_tls(hand, authority, tls=f"ca: {authority.file}, server_name: till.internal")) as gate:
        told, _ = await asyncio.gather(no_connection(gate.pool), _in_vain(hand, context))
        assert told == ("certificate verify failed: Hostname mismatch, certificate is not valid for 'till.internal'.")


async def _in_vain(hand: ByHand, context: ssl.SSLContext) -> None:
    secret = Secret(await hand.accept(), context)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await secret.asked()


async def test_whoever_answers_is_taken_where_the_file_says_so(hand: ByHand, authority: Authority) -> None:
    """`verify: false`: a stranger's expired certificate for another host does. The log warns of it at the start."""
    context = authority.context("elsewhere.example", until=LONG_AGO, by=authority.stranger)
    async with edge(over_tls(hand, authority, tls="verify: false")) as gate:
        await served(gate, hand, context, "k")
        (warning,) = [line for line in gate.running.lines if line["level"] == "warning"]
        assert warning["upstream"] == "origin"
        assert "verify" in str(warning["message"])


# ── Handshakes that come to nothing ───────────────────────────────────────────────────────────────


async def test_a_handshake_that_stalls_is_given_up(hand: ByHand, authority: Authority, good: ssl.SSLContext) -> None:
    """`connect` covers it: the connection is left, the key is free."""
    async with edge(over_tls(hand, authority, upstream="connect: 300ms")) as gate:
        answer = await ask(gate.port, key="k", body=b"", host="a")
        assert said(answer) == UNREACHABLE
        assert await (await hand.accept()).ended()
        assert await no_connection(gate.pool) == "no TLS handshake in 0.3 s"
        assert await (await hand.accept()).ended()
        await served(gate, hand, good, "k")


HELLO_REPLIES = {
    "plain text": (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "the TLS handshake failed: "),
    "an alert": (b"\x15\x03\x03\x00\x02\x02\x28", "the TLS handshake failed: "),
    "nothing": (b"", "closed in the TLS handshake"),
    "half a record": (b"\x16\x03\x03\x00\x40\x02", "closed in the TLS handshake"),
}


@pytest.mark.parametrize("name", HELLO_REPLIES)
async def test_a_server_that_does_not_finish_the_handshake_is_sent_nothing(
    hand: ByHand, authority: Authority, good: ssl.SSLContext, name: str
) -> None:
    """A plain-text server behind https, a refusal, an end: 502 and released."""
    reply, why = HELLO_REPLIES[name]

    async def replying() -> None:
        peer = await hand.accept()
        assert (await peer.read(1)) == b"\x16"  # a handshake, and no request
        await peer.send(reply)
        peer.close()

    async with edge(over_tls(hand, authority)) as gate:
        answer, _ = await asyncio.gather(ask(gate.port, key="k", body=b"", host="a"), replying())
        assert said(answer) == UNREACHABLE
        told, _ = await asyncio.gather(no_connection(gate.pool), replying())
        assert told.startswith(why)
        await served(gate, hand, good, "k")


async def test_a_server_that_speaks_before_it_was_asked_is_not_asked(
    hand: ByHand, authority: Authority, older: ssl.SSLContext
) -> None:
    """With its last message of the handshake comes a response: it would be taken for the answer to a request that
    the server has not seen."""
    early = OK + b"Content-Length: 5\r\n\r\nwrong"
    async with edge(over_tls(hand, authority)) as gate:
        told, _ = await asyncio.gather(no_connection(gate.pool), _greeting(hand, older, early))
        assert told == "spoke before it was asked"
        answer, _ = await asyncio.gather(ask(gate.port, key="k", body=b"", host="a"), _greeting(hand, older, early))
        assert said(answer) == UNREACHABLE
        await served(gate, hand, older, "k")


async def _greeting(hand: ByHand, context: ssl.SSLContext, data: bytes) -> None:
    secret = Secret(await hand.accept(), context)
    await secret.handshake(behind=data)
    assert await secret.peer.ended()


async def test_a_client_that_is_refused_after_its_request_went_out_is_in_doubt(
    hand: ByHand, authority: Authority, good: ssl.SSLContext
) -> None:
    """A server of TLS 1.3 that wants the gate's certificate says so when the gate's handshake is over and the
    request is on its way. It has most likely not run; nobody here can know."""
    strict = authority.context()
    strict.load_verify_locations(cafile=str(authority.file))
    strict.verify_mode = ssl.CERT_REQUIRED
    async with edge(over_tls(hand, authority)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        secret = Secret(await hand.accept(), strict)
        await secret.more()
        with pytest.raises(ssl.SSLWantReadError):
            secret.tls.do_handshake()
        await secret._flush()
        async with asyncio.timeout(SOON):
            wire = b""
            while _records(wire).count(23) < 3:  # its empty certificate, its last message, and the request
                wire += await secret.more()
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            await secret.handshake()
        secret.peer.close()
        assert said(await client.read()) == LOST
        assert said(await ask(gate.port, key="k", body=b"", host="a")) == IN_DOUBT
        assert hand.connections == 1
        await served(gate, hand, good, "next")


def _records(wire: bytes) -> list[int]:
    """The types of the whole records in `wire` (23 is encrypted with the keys of the handshake or later)."""
    kinds = []
    while len(wire) >= 5 and len(wire) >= (size := 5 + int.from_bytes(wire[3:5])):
        kinds.append(wire[0])
        wire = wire[size:]
    return kinds


# ── Ends, and bytes that nobody asked for ─────────────────────────────────────────────────────────


async def used(gate: Edge, hand: ByHand, context: ssl.SSLContext) -> tuple[Client, Secret]:
    """A client whose first request was answered, and the connection that lies idle since."""
    client = await gate.connect()
    await client.send(GET)
    secret = await accepted(hand, context)
    await secret.head()
    await secret.answer(b"first")
    assert (await client.read(method=b"GET")).body == b"first"
    await eventually(lambda: gate.pool._idle, "the connection is idle")
    return client, secret


STIRRING = {
    "farewell": (b"", True),
    "surplus": (OK + b"Content-Length: 5\r\n\r\nwrong", False),
    "a byte": (b"x", False),
}


@pytest.mark.parametrize("unread", [False, True], ids=["read", "unread"])
@pytest.mark.parametrize("name", STIRRING)
async def test_an_idle_connection_that_stirs_is_given_up(
    hand: ByHand, authority: Authority, good: ssl.SSLContext, name: str, unread: bool
) -> None:
    """A close_notify or any byte, whether the loop has read it or it lies in the kernel behind the client's next
    request: that one is written to another connection, once, and gets its own answer. (It is not guarded: a guarded
    one takes a turn for its claim, in which the loop reads. And it is a POST, which is not tried again.)"""
    data, farewell = STIRRING[name]
    async with edge(over_tls(hand, authority)) as gate:
        client, secret = await used(gate, hand, good)
        sealed = secret.sealed(data, farewell=farewell)
        if unread:  # the loop is ours, and stands still between the two
            os.write(client.writer.get_extra_info("socket").fileno(), post(b"next"))
            os.write(secret.peer.writer.get_extra_info("socket").fileno(), sealed)
        else:
            await secret.peer.send(sealed)
            await eventually(lambda: not gate.pool._idle, "the gate has noticed")
            await client.send(post(b"next"))
        fresh = await accepted(hand, good)
        assert (await fresh.head()).startswith(b"POST /open/x HTTP/1.1\r\n")
        await fresh.answer(b"second", 201)
        answer = await client.read()
        assert (answer.status, answer.body) == (201, b"second")
        assert await secret.peer.ended()
        assert hand.connections == 2


@pytest.mark.parametrize(
    ("surplus", "farewell"), [(b"", True), (b"HTTP/1.1 200 OK\r\n", False)], ids=["farewell", "surplus"]
)
async def test_what_comes_in_one_piece_with_an_answer_is_not_the_next_one_s(
    hand: ByHand, authority: Authority, good: ssl.SSLContext, surplus: bytes, farewell: bool
) -> None:
    """Another request waits for the connection, and the socket has nothing more to say: it is given a fresh one,
    and is neither lost nor answered with somebody else's bytes."""
    async with edge(over_tls(hand, authority, upstream="connections: 1")) as gate:
        first, second = await gate.connect(), await gate.connect()
        await first.send(keyed("one"))
        secret = await accepted(hand, good)
        await secret.head()
        await second.send(keyed("two"))
        await eventually(lambda: gate.pool.waiting, "the second waits")
        body = OK + b"Content-Length: 3\r\n\r\none"
        await secret.peer.send(secret.sealed(body) + secret.sealed(surplus, farewell=farewell))
        answer = await first.read()
        assert (answer.status, answer.body, answer.label) == (200, b"one", "stored")
        fresh = await accepted(hand, good)
        assert b"\r\nIdempotency-Key: two\r\n" in await fresh.head()
        await fresh.answer(b"two")
        answer = await second.read()
        assert (answer.body, answer.label) == (b"two", "stored")


#: What comes of the answer before the end.
CUT_OFF = {
    "a head": OK + b"Content-Le",
    "a sized body": OK + b"Content-Length: 9\r\n\r\nhalf",
    "a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    "a body without length": OK + b"\r\nhalf",
}


@pytest.mark.parametrize("farewell", [False, True], ids=["cut", "farewell"])
@pytest.mark.parametrize("name", CUT_OFF)
async def test_an_answer_that_is_cut_off_is_none(
    hand: ByHand, authority: Authority, good: ssl.SSLContext, name: str, farewell: bool
) -> None:
    """Lost, and in doubt, with a close_notify or without. A body without length is ended by a close_notify, and
    by that alone: it is given to its client and not kept. Without one, anybody on the way could have ended it.

    uvloop tells such an end as a lost connection only; asyncio tells it like any other (see
    `Connection._said_farewell`)."""
    async with edge(over_tls(hand, authority)) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        secret = await accepted(hand, good)
        await secret.head()
        await secret.send(CUT_OFF[name], farewell=farewell)
        secret.peer.close()
        if name == "a body without length" and farewell:
            answer = await client.read()
            assert (answer.status, answer.body, answer.label) == (200, b"half", "not-kept")
            await not_kept(gate, 200)
        else:
            assert said(await client.read()) == LOST
            assert said(await ask(gate.port, key="k", body=b"", host="a")) == IN_DOUBT
        assert hand.connections == 1
        await served(gate, hand, good, "next")


@pytest.mark.parametrize("farewell", [False, True], ids=["cut", "farewell"])
async def test_the_end_right_behind_a_long_answer_takes_nothing_from_it(
    hand: ByHand, authority: Authority, good: ssl.SSLContext, farewell: bool
) -> None:
    """An answer over the limit is held back until its tombstone is written. Meanwhile the rest and the end come
    in: the client still gets every byte. (uvloop's TLS, when paused, reads on and drops what it holds at the end.)"""
    body = os.urandom(200 << 10)
    async with edge(over_tls(hand, authority, policy="max_response: 1KiB")) as gate:
        client = await gate.connect()
        await client.send(keyed("k"))
        secret = await accepted(hand, good)
        await secret.head()
        head = OK + b"Content-Length: %d\r\n\r\n" % len(body)
        await secret.send(head + body, farewell=farewell)
        secret.peer.close()
        answer = await client.read()
        assert (answer.status, answer.label) == (200, "not-kept")
        assert answer.body == body
        await not_kept(gate, 200)


# ── Answers before the question was whole ─────────────────────────────────────────────────────────

LONG = 6 << 20


@pytest.mark.parametrize("status", [200, 413])
async def test_an_answer_that_begins_before_the_request_was_written(
    narrow: ByHand, authority: Authority, good: ssl.SSLContext, status: int
) -> None:
    """Most of the request is encrypted and waits below TLS, where TLS itself does not count it. A yes to what was
    not read is no answer; a whole 413 is one."""
    async with edge(over_tls(narrow, authority)) as gate:
        client = await gate.connect()
        client.writer.write(keyed("k", b"x" * LONG))
        secret = await accepted(narrow, good)
        await secret.head()
        secret.peer.writer.transport.pause_reading()
        await secret.answer(b"much", status)
        answer = await client.read()
        again = await ask(gate.port, key="k", body=b"x" * LONG, host="a")
        if status == 200:
            assert said(answer) == LOST
            assert said(again) == IN_DOUBT
        else:
            assert (answer.status, answer.body, answer.label) == (413, b"much", "stored")
            assert (again.status, again.body, again.label) == (413, b"much", "replayed")
        secret.peer.writer.transport.resume_reading()
        assert await secret.peer.ended()
        assert narrow.connections == 1

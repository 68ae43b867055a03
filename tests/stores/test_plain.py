"""NewClaim and NewKeep as bytes, and the commands that are sent of them: those of the Record, to the byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import record as records
from gateway.core.fields import fields_of
from gateway.core.fingerprint import Fingerprint, Recipe, counted, fingerprint
from gateway.core.message import Answer, Request
from gateway.core.record import ClaimTerms, Done, Doubt, Found, NewClaim, NewKeep, State
from gateway.ports import Nobody, StoreAway
from gateway.stores.codec import decode, encode, stored
from gateway.stores.redis import store as store_module
from gateway.stores.redis.pipeline import Pipeline, RedisError, pack
from gateway.stores.redis.servers import Address, Servers
from gateway.stores.redis.store import RedisStore
from tests.stores.worlds import FINGERPRINT, a_claim, a_new_claim

times = st.integers(0, 2**48 - 1)
durations = st.integers(1, 2**40 - 1)
prints = st.builds(
    lambda digests, tags: Fingerprint(FINGERPRINT.recipe + digests, tags),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 8).flatmap(lambda n: st.binary(min_size=2 * n, max_size=2 * n)),
)
holders = st.binary(min_size=12, max_size=12)


@given(prints, holders, st.text(max_size=300), st.integers(0, 2**46), durations, durations, durations, st.data())
def test_a_new_claim_and_its_keep_are_encoded_as_their_records(
    printed: Any, holder: bytes, route: str, wall: int, lease: int, life: int, window: int, data: st.DataObject
) -> None:
    """A claim and its answer, for any route, instants, durations and bytes."""
    claim = records.claim(printed, holder=holder, route=route, lease=lease, life=life, window=window, wall=wall)
    later = data.draw(st.integers(wall, wall + 10**9))
    answer = Answer(
        data.draw(st.integers(200, 599)), data.draw(st.binary(max_size=60)), data.draw(st.binary(max_size=60))
    )
    kept = records.keep(claim, answer, wall=later).record
    assert kept is not None
    assert answer.body is not None
    value = encode(kept)
    terms = ClaimTerms(route=route, lease=lease, life=life, window=window)
    new = NewClaim(terms, printed, holder, wall)
    keep = NewKeep(new, answer.status, answer.head, answer.body, later)
    for _ in range(2):  # the encoder of the terms is made, and then found
        assert encode(new) == encode(claim)
        assert encode(keep) == value
    assert new.record == claim
    assert new.record is new.record
    assert keep.record == kept
    assert keep.record is keep.record
    settlement = records.keep(claim, answer, wall=later)
    for name in ("kind", "holder", "record", "movable", "tells_again"):
        assert getattr(keep, name) == getattr(settlement, name)
    assert records.without_body(keep) == records.without_body(settlement)
    assert stored(value, printed.mark) == (answer.status, answer.head, answer.body, wall, kept.expires)


@given(
    prints,
    st.sampled_from(State),
    st.sampled_from(Doubt),
    st.none() | st.builds(Answer, st.just(201), st.binary(max_size=20), st.none() | st.binary(max_size=20)),
    st.sampled_from([b"", b"t" * 24]),
    st.integers(0, 400),
    st.booleans(),
)
def test_an_answer_is_read_where_it_is_one(
    printed: Any, state: State, doubt: Doubt, answer: Answer | None, trace: bytes, cut: int, mine: bool
) -> None:
    """Of any record, cut anywhere: the answer of a completed one of this very request, with its body; of no other."""
    record = replace(a_claim(), state=state, doubt=doubt, answer=answer, trace=trace, fingerprint=printed, status=201)
    value = encode(record)
    value = value[: len(value) - min(cut, len(value))]
    found = stored(value, printed.mark if mine else b"\0" * 36)
    try:
        told = decode(value)
    except ValueError:
        assert found is None
        return
    if (
        not mine
        or told.state is not State.COMPLETED
        or told.answer is None
        or told.answer.body is None
        or doubt is not Doubt.NONE
    ):
        assert found is None
    else:
        assert found == (201, told.answer.head, told.answer.body, told.first_seen, told.expires)


names = [
    b"Host",
    b"Content-Type",
    b"Content-Encoding",
    b"Authorization",
    b"X-API-Key",
    b"Cookie",
    b"X-Tenant",
    b"Accept",
    b"SOAPAction",
    b"X-Amz-Target",
]
said = [
    b"h:1",
    b"10.0.0.1",
    b"AWSALB=1; a=2",
    b"",
    b" a",
    b"application/json",
    b"multipart/form-data; boundary=x",
    b"MULTIPART/mixed",
    b"gzip",
    b"x" * 600,
]
recipes = [
    Recipe(), Recipe(bind=()), Recipe(bind=("default", "header:x-tenant")), Recipe(bind=("header:x-tenant",)),
    Recipe(headers=(b"accept",)), Recipe(body="canonical-json"), Recipe(bind=("cookie:session",)),
    Recipe(host=False), Recipe(beyond_site=b"h:1"), Recipe(ignore_cookies=("a",)),
]  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(names), st.sampled_from(said)), max_size=6),
    st.sampled_from([b"/", b"/pay?n=1", b"/" + b"x" * 600]),
    st.binary(max_size=40) | st.just(b"x" * 20_000),
    st.sampled_from(recipes),
    st.sampled_from([b"", b"secret"]),
)
def test_a_remembered_beginning_changes_no_fingerprint(
    lines: list[tuple[bytes, bytes]], target: bytes, body: bytes, recipe: Recipe, secret: bytes
) -> None:
    """The digest of a request up to its body is remembered. Digested from the start, the fingerprint is the same."""
    request = Request(b"POST", target, fields_of(lines), body)
    elsewhere: dict[str, bytes | None] = dict.fromkeys(recipe.elsewhere, b"s")
    printed = fingerprint(request, recipe, secret=secret, elsewhere=elsewhere)
    content = counted(request, recipe)
    assert printed == fingerprint(request, recipe, secret=secret, elsewhere=elsewhere, content=content)


class Pipe:
    """Records the commands that are sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, int]] = []

    def tell(self, packed: bytes, replies: int, told: object) -> None:
        self.sent.append((packed, replies))


async def test_the_commands_of_new_records_are_those_of_their_records() -> None:
    """The commands of a claim and of a Keep, word for word: a NewClaim and a NewKeep send those of their records."""
    store = RedisStore(Servers((Address("127.0.0.1", 1),)), Nobody(), prefix="some:")
    (primary,) = store._fleet.primaries
    pipe = Pipe()
    primary.main.pipeline = pipe  # type: ignore[assignment]
    primary._met = pipe  # type: ignore[assignment]
    new = a_new_claim()
    claim = new.record
    keep = NewKeep(new, 200, b"A: b\r\n", b"body", 5)
    value = encode(keep.record)
    for each in (claim, new):
        store.claim(b"name", each, print)
    for settlement in (records.keep(claim, Answer(200, b"A: b\r\n", b"body"), wall=5), keep):
        store.settle(b"name", settlement, print)
    claims, keeps = pipe.sent[:2], pipe.sent[2:]
    assert len(claims) == len(keeps) == 2
    assert len(set(claims)) == len(set(keeps)) == 1
    assert claims[0][0].startswith(pack(b"SET", b"some:name", encode(claim), b"NX", b"GET", b"PX", b"%d" % claim.life))
    assert value in keeps[0][0]
    assert (claims[0][1], keeps[0][1]) == (2, 1)


async def test_whoever_fails_when_told_costs_nobody_else_the_news() -> None:
    """A connection ends under three commands, and the first that hears of it fails: the others hear it too, and the
    connection is known to be lost."""
    lost: list[str] = []
    unexpected: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unexpected.append(context["exception"]))

    class Failing:
        def done(self) -> bool:
            return False

        def set_result(self, reply: Any) -> None: ...

        def set_exception(self, away: StoreAway) -> None:
            raise RuntimeError("failed on purpose")

    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _, pipeline = await loop.create_connection(lambda: Pipeline(lost.append), *server.sockets[0].getsockname())
    pipeline.tell(pack(b"PING"), 1, Failing())
    behind = pipeline.call(pack(b"PING"))
    pipeline.abort("it is over")
    with pytest.raises(StoreAway, match="it is over"):
        await asyncio.wait_for(behind, 5)
    assert lost == ["it is over"]
    assert [str(error) for error in unexpected] == ["failed on purpose"]
    await gone.wait()
    server.close()
    loop.set_exception_handler(None)


def call_of(make: Callable[..., Any], *arguments: Any) -> Any:
    """A call of the port at a primary that does not wait for replicas."""
    call = make(SimpleNamespace(observer=Nobody()), b"name", *arguments, print)
    call.primary = SimpleNamespace(waited=None)
    return call


def test_the_reply_to_a_keep_is_read_as_what_came_of_it() -> None:
    """Made, written again, or gone. An error is not final: the script is sent again."""
    keep = call_of(store_module._Settle, NewKeep(a_new_claim(), 200, b"", b"", 5))
    assert [keep.read(reply) for reply in (1, 2, 0)] == [Done.DONE, Done.FORGOT, Done.GONE]
    assert keep.read(RedisError("NOSCRIPT")) is store_module._MORE


def test_a_record_without_an_expiry_is_not_replayed() -> None:
    """Nor one whose time to live is an error, or that ended between the two commands: it is read again."""
    new = a_new_claim()
    value = encode(NewKeep(new, 200, b"", b"body", 5))
    claim = call_of(store_module._Claim, a_new_claim())
    assert claim.read([value, 5])[:3] == (200, b"", b"body")
    assert claim.read([None, -2]) is Done.WON
    for left in (-1, -2, RedisError("ERR"), None):
        assert claim.read([value, left]) is store_module._MORE
    found = call_of(store_module._Claim, a_claim()).read([value, 5])
    assert isinstance(found, Found)
    assert found.record == decode(value)

"""What operators do to records, over HTTP: real gates of one process and of two workers, on SQLite and on Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.core import record as records
from gateway.core.record import Done, Doubt, Found
from gateway.ops.admin.desk import DeskAway, LocalDesk
from gateway.ops.admin.forms import Given, Orders, Outcome, Verb, Which
from gateway.ops.admin.recent import Recent
from gateway.ports import Account, DuplicateKind, StoreAway
from gateway.workers.desk import WorkersDesk
from tests.edge.stand import eventually
from tests.harness import Exchange, GateProcess, Origin, Response, ask, configuration, gate
from tests.servers import RedisServer, preferred
from tests.stores.worlds import DOUBT_WINDOW, LEASE, WORLDS, FakeClock, World, a_claim, a_holder, an_answer, every_store

TOKEN = "an-operators-token-0123456789"
NAME = b"n" * 43


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """Says 504 to /doubt, so that nobody knows whether it ran."""

    async def answer(exchange: Exchange) -> None:
        doubtful = exchange.request.target.startswith(b"/doubt")
        await exchange.respond(504 if doubtful else 201, b'{"from":"the service"}')

    origin = await Origin(answer).start()
    yield origin
    await origin.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    server = RedisServer(preferred()).start()
    yield server
    server.close()


@dataclass
class Desk:
    """A running gate, and who asks its admin listener."""

    port: int
    admin: int
    log: Callable[[], str]
    audit: Path

    async def get(self, path: str) -> tuple[int, Any]:
        return self._read(await ask(self.admin, "GET", path, body=b"", host="127.0.0.1", fields=self._fields))

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        fields = [*self._fields, ("Content-Type", "application/json")]
        answer = await ask(self.admin, "POST", path, body=json.dumps(body).encode(), host="127.0.0.1", fields=fields)
        return self._read(answer)

    _fields = (("Authorization", f"Bearer {TOKEN}"),)

    def _read(self, answer: Response) -> tuple[int, Any]:
        told = json.loads(answer.body)
        kind = "application/json" if answer.status == 200 else "application/problem+json"
        assert (answer.get("Content-Type") or "").partition(";")[0] == kind, told
        return answer.status, told

    async def story(self, key: str, **more: Any) -> Any:
        status, told = await self.post("/keys/find", key=key, **more)
        assert status == 200, told
        return told

    async def doubt(self, key: str) -> Any:
        """A record in doubt under this key."""
        answer = await ask(self.port, "POST", "/doubt", key=key)
        assert (answer.status, answer.label) == (504, "in-doubt")
        return (await self.story(key))["record"]

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@asynccontextmanager
async def running(kind: str, workers: int, origin: Origin, server: RedisServer, tmp_path: Path) -> AsyncIterator[Desk]:
    if kind == "redis":
        with server.client() as client:
            client.flushall()
    store = server.url if kind == "redis" else f"sqlite:///{tmp_path}/keys.db?durability=process"
    text = configuration(origin.url, store=store).replace(
        "admin: {", f"admin: {{token: {TOKEN}, audit: {tmp_path}/audit.jsonl, "
    )
    audit = tmp_path / "audit.jsonl"
    if workers == 1:
        async with gate(text) as one:
            yield Desk(one.port, one.admin_port, one.log.getvalue, audit)
        return
    process = GateProcess(text, arguments=("--workers", str(workers)))
    try:
        await process.start()
        yield Desk(process.port, process.admin_port, process.log.read_text, audit)
    finally:
        process.close()


@pytest.fixture(params=[("sqlite", 1), ("redis", 1), ("sqlite", 2), ("redis", 2)], ids=lambda of: f"{of[0]}-{of[1]}")
async def desk(
    request: pytest.FixtureRequest, origin: Origin, server: RedisServer, tmp_path: Path
) -> AsyncIterator[Desk]:
    kind, workers = request.param
    async with running(kind, workers, origin, server, tmp_path) as one:
        yield one


async def test_an_operators_answer_is_an_answer_to_a_gateway_in_front_too(
    origin: Origin, server: RedisServer, tmp_path: Path
) -> None:
    """By its status alone a 504 would be held there."""
    async with running("sqlite", 1, origin, server, tmp_path) as desk:
        record = await desk.doubt("k")
        asked = {
            "as": "completed",
            "answer": {"status": 504, "body": "no"},
            "reason": "x",
            "version": record["version"],
        }
        assert (await desk.post(f"/keys/{record['name']}/resolve", **asked))[0] == 200
        replay = await ask(desk.port, "POST", "/doubt", key="k")
        assert (replay.status, replay.label, replay.get("Idempotency-Outcome")) == (504, "replayed", "keep")


async def test_the_day_of_an_operator(desk: Desk, origin: Origin) -> None:
    """Records are listed, found by key, told with their duplicates, resolved and forgotten; each change is written down
    before it is answered; no key, body or credential is in the log or in the audit."""
    for number in range(5):
        await ask(desk.port, "POST", "/pay", key=f"paid-{number}")
    first, second, third = [await desk.doubt(f"SECRET-KEY-{n}") for n in range(3)]
    again = await ask(desk.port, "POST", "/doubt", key="SECRET-KEY-0", fields=[("Authorization", "Bearer CREDENTIAL")])
    assert again.problem == "credentials-differ"
    assert (await ask(desk.port, "POST", "/doubt", key="SECRET-KEY-0")).problem == "in-doubt"

    # The story of one.
    story = await desk.story("SECRET-KEY-0", route="all")
    assert story["record"] == first | {"age_s": story["record"]["age_s"]}
    assert [first[name] for name in ("state", "doubt", "status", "attempts", "route")] == [
        "in-doubt", "status", 504, 1, "all",
    ]  # fmt: skip
    assert [(each["client"], each["kind"]) for each in story["duplicates"]] == [
        ("127.0.0.1", "credentials_differ"), ("127.0.0.1", "in_doubt"),
    ]  # fmt: skip
    assert (await desk.get(f"/keys/{first['name']}"))[1]["record"]["version"] == first["version"]
    assert (await desk.post("/keys/find", key="never-sent"))[0] == 404

    # The list.
    status, listed = await desk.get("/keys?state=in-doubt&route=all&limit=1000")
    assert status == 200
    assert {each["name"] for each in listed["records"]} == {each["name"] for each in (first, second, third)}
    assert (listed["walked"], listed["cursor"], listed["unreadable"], listed["progress"]) == (8, "", 0, 1)
    assert len((await desk.get("/keys"))[1]["records"]) == 8
    assert (await desk.get("/keys?route=open"))[1]["records"] == []
    assert (await desk.get("/keys?until=2020-01-01T00:00:00Z"))[1]["records"] == []
    assert len((await desk.get("/keys?since=2020-01-01T00:00:00Z"))[1]["records"]) == 8

    # It did run: the answer is what duplicates get.
    given = {"status": 200, "headers": [{"name": "X-By", "value": "hand"}], "body": "SECRET-BODY"}
    asked = {"as": "completed", "answer": given, "reason": "the bank says so", "by": "ada", "version": first["version"]}
    path = f"/keys/{first['name']}/resolve"
    assert await desk.post(path, **asked) == (
        200, {"name": first["name"], "outcome": "made", "audit": "written"},
    )  # fmt: skip
    replay = await ask(desk.port, "POST", "/doubt", key="SECRET-KEY-0")
    assert (replay.status, replay.body, replay.get("X-By"), replay.replayed) == (200, b"SECRET-BODY", "hand", True)
    status, told = await desk.post(path, **asked)
    assert (status, told["type"]) == (409, "urn:oncegate:problem:record-changed")
    assert told["record"]["state"] == "completed"

    # A completed record is moved by nobody; by its new version neither.
    status, told = await desk.post(path, **{**asked, "version": told["record"]["version"]})
    assert (status, told["type"]) == (409, "urn:oncegate:problem:not-in-doubt")

    # It did not run: the key is free, and its next request runs.
    effects = origin.effects[b"SECRET-KEY-1"]
    path = f"/keys/{second['name']}/resolve"
    assert (await desk.post(path, **{"as": "released"}, reason="no trace of it", version=second["version"]))[0] == 200
    assert (await desk.get(f"/keys/{second['name']}"))[0] == 404
    assert (await desk.post(path, **{"as": "released"}, reason="again", version=second["version"]))[0] == 404
    assert (await ask(desk.port, "POST", "/doubt", key="SECRET-KEY-1")).label == "in-doubt"
    assert origin.effects[b"SECRET-KEY-1"] == effects + 1

    # Forgotten.
    status, _ = await desk.post(f"/keys/{third['name']}/forget", version=third["version"], reason="a test key")
    assert status == 200
    assert (await desk.post("/keys/find", key="SECRET-KEY-2"))[0] == 404

    # The audit: what was asked stands before what became of it.
    told = desk.audited()
    assert [(each["event"], each["verb"], each.get("outcome")) for each in told] == [
        ("asked", "complete", None), ("ended", "complete", "made"),
        ("asked", "complete", None), ("ended", "complete", "changed"),
        ("asked", "complete", None), ("ended", "complete", "not-in-doubt"),
        ("asked", "release", None), ("ended", "release", "made"),
        ("asked", "release", None), ("ended", "release", "gone"),
        ("asked", "forget", None), ("ended", "forget", "made"),
    ]  # fmt: skip
    assert (told[0]["reason"], told[0]["by"], told[0]["status"], told[0]["body_bytes"], told[0]["peer"]) == (
        "the bank says so", "ada", 200, 11, "127.0.0.1",
    )  # fmt: skip
    assert [each["id"] for each in told[::2]] == [each["id"] for each in told[1::2]]

    # Nothing of what is a client's is written anywhere.
    await eventually(lambda: desk.log().count('"level":"audit"') == 12, "twelve lines in the log")
    written = desk.log() + desk.audit.read_text()
    for secret in ("SECRET-KEY", "SECRET-BODY", "CREDENTIAL", TOKEN):
        assert secret not in written


@pytest.mark.parametrize("desk", [("sqlite", 1), ("redis", 2)], ids=str, indirect=True)
async def test_many_at_once(desk: Desk) -> None:
    """A dry run says which, and changes nothing; the same with dry_run false resolves them, step by step, and leaves
    what is not meant."""
    doubts = [await desk.doubt(f"many-{n}") for n in range(7)]
    await ask(desk.port, "POST", "/pay", key="paid")
    asked = {"as": "released", "reason": "the service was down", "route": "all"}
    status, step = await desk.post("/keys/resolve", **asked)
    assert (status, step["dry_run"], step["cursor"]) == (200, True, "")
    assert {each["name"] for each in step["results"]} == {each["name"] for each in doubts}
    assert {each["outcome"] for each in step["results"]} == {"would-be-made"}
    assert len((await desk.get("/keys?state=in-doubt"))[1]["records"]) == 7
    assert not desk.audit.exists()
    assert (await desk.post("/keys/resolve", **{**asked, "route": "open"}, dry_run=False))[1]["results"] == []
    status, step = await desk.post("/keys/resolve", **asked, dry_run=False)
    assert (status, [each["outcome"] for each in step["results"]]) == (200, ["made"] * 7)
    left = (await desk.get("/keys"))[1]["records"]
    assert [each["state"] for each in left] == ["completed"]
    assert len(desk.audited()) == 14


@pytest.mark.parametrize("desk", [("sqlite", 1)], ids=str, indirect=True)
async def test_bad_bodies_are_422(desk: Desk) -> None:
    """A body that is no JSON, or not of its form, is a problem that says where; another type is 415; a method 405."""
    record = await desk.doubt("bad")
    path = f"/keys/{record['name']}/resolve"
    good = {"as": "released", "reason": "why", "version": record["version"]}
    for wrong, at in (
        ({"reason": ""}, "reason"), ({"version": "1"}, "version"), ({"more": 1}, "more"), ({"as": "done"}, ""),
        ({"as": "completed"}, "answer"), ({"reason": "two\nlines"}, "reason"), ({"force": "perhaps"}, "force"),
        ({"as": "completed", "answer": {"status": 99}}, "answer.status"),
        ({"as": "completed", "answer": {"status": 204, "body": "x"}}, "answer"),
        ({"as": "completed", "answer": {"status": 200, "headers": [{"name": "A", "value": "b\r\nC: d"}]}}, "headers"),
    ):  # fmt: skip
        status, told = await desk.post(path, **{**good, **wrong})
        assert (status, told["type"]) == (422, "urn:oncegate:problem:invalid")
        assert at in told["errors"][0]["at"], told
    fields = [("Authorization", f"Bearer {TOKEN}"), ("Content-Type", "application/json")]
    assert (await ask(desk.admin, "POST", path, body=b"{", host="127.0.0.1", fields=fields)).status == 422
    assert (await ask(desk.admin, "POST", path, body=b"{}", host="127.0.0.1", fields=fields[:1])).status == 415
    assert (await desk.get(path))[0] == 405
    for query in ("limit=0", "state=lost", "cursor=nowhere", "limit=1&limit=2", "since=yesterday", "key=x"):
        assert (await desk.get(f"/keys?{query}"))[0] == 422, query
    assert (await desk.story("bad"))["record"]["version"] == record["version"]


# ── The protocol beneath ──────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def a_desk(kind: str) -> AsyncIterator[tuple[World, LocalDesk]]:
    world = WORLDS[kind]()
    await world.store.open()
    clock = FakeClock()
    try:
        yield world, LocalDesk(world.store, clock, a_holder, Recent(clock))
    finally:
        await world.close()


async def change(desk: LocalDesk, verb: Verb, version: str, *, force: bool = False) -> Outcome:
    answer = Given(status=200, body="by hand") if verb is Verb.COMPLETE else None
    which = [Which(name=NAME.decode(), version=version)]
    (result,) = await desk.change(Orders(verb=verb, which=which, answer=answer, force=force))
    return result.outcome


async def version(desk: LocalDesk) -> str:
    seen = await desk.look(NAME.decode())
    assert seen is not None
    return seen.version


@every_store
async def test_a_late_answer_meets_an_operators(kind: str) -> None:
    """In doubt, resolved as completed; its owner still brings an answer → it is told what stands, and nothing moves.
    Released instead → the late answer is kept, and told as one that the store forgot."""
    async with a_desk(kind) as (world, desk):
        claim = a_claim()
        await world.store.claim(NAME, claim)
        await world.store.settle(NAME, records.hold(claim, doubt=Doubt.LOST, status=0, wall=0))
        assert await change(desk, Verb.COMPLETE, await version(desk)) is Outcome.MADE
        late = await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0))
        assert isinstance(late, Found)
        stands = await world.store.get(NAME)
        assert stands is not None
        assert stands.record.answer is not None
        assert (stands.record.answer.status, stands.record.answer.body) == (200, b"by hand")
        assert stands.record.life == claim.window

        assert await change(desk, Verb.FORGET, await version(desk)) is Outcome.MADE
        second = a_claim()
        await world.store.claim(NAME, second)
        await world.store.settle(NAME, records.hold(second, doubt=Doubt.LOST, status=0, wall=0))
        assert await change(desk, Verb.RELEASE, await version(desk)) is Outcome.MADE
        assert await world.store.settle(NAME, records.keep(second, an_answer(), wall=0)) is Done.FORGOT


@every_store
async def test_nothing_is_made_of_what_has_changed_since(kind: str) -> None:
    """Shown in doubt; its owner's late Keep, or a takeover, comes before the operator → CHANGED, and it stands."""
    async with a_desk(kind) as (world, desk):
        claim = a_claim()
        await world.store.claim(NAME, claim)
        await world.store.settle(NAME, records.hold(claim, doubt=Doubt.LOST, status=0, wall=0))
        shown = await version(desk)
        assert await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0)) is Done.DONE
        for verb in Verb:
            assert await change(desk, verb, shown, force=True) is Outcome.CHANGED
        stands = await world.store.get(NAME)
        assert stands is not None
        assert stands.record.answer == an_answer()


@every_store
async def test_it_changes_between_the_desks_look_and_its_write(kind: str) -> None:
    """The desk has looked, and then the owner's Keep comes → the store finds another state, and nothing is made."""
    async with a_desk(kind) as (world, desk):
        for verb in Verb:
            claim = a_claim()
            await world.store.claim(NAME, claim)
            await world.store.settle(NAME, records.hold(claim, doubt=Doubt.LOST, status=0, wall=0))
            shown = await version(desk)
            look = world.store.get

            async def then_it_is_kept(name: bytes, look: Any = look, claim: Any = claim) -> Found | None:
                seen: Found | None = await look(name)
                await world.store.settle(NAME, records.keep(claim, an_answer(), wall=0))
                return seen

            world.store.get = then_it_is_kept  # type: ignore[method-assign]
            assert await change(desk, verb, shown) is Outcome.CHANGED
            world.store.get = look  # type: ignore[method-assign]
            stands = await world.store.get(NAME)
            assert stands is not None
            assert stands.record.answer == an_answer()
            assert await change(desk, Verb.FORGET, await version(desk)) is Outcome.MADE


@pytest.mark.parametrize("verb", list(Verb))
@every_store
async def test_a_store_that_did_not_say_is_asked_again(kind: str, verb: Verb) -> None:
    """The reply to a change is lost → an answer that was made is found made; of what was removed nobody knows whether
    it was by us. Away again: nobody knows either."""
    async with a_desk(kind) as (world, desk):
        claim = a_claim()
        await world.store.claim(NAME, claim)
        await world.store.settle(NAME, records.hold(claim, doubt=Doubt.LOST, status=0, wall=0))
        replace, lost = world.store.compare_and_swap, [True]

        async def replies_are_lost(*asked: Any) -> Done | Found:
            made = await replace(*asked)
            if lost and lost.pop():
                raise StoreAway("the reply was lost", ambiguous=True)
            return made

        world.store.compare_and_swap = replies_are_lost  # type: ignore[method-assign]
        shown = await version(desk)
        assert await change(desk, verb, shown) is (Outcome.MADE if verb is Verb.COMPLETE else Outcome.UNKNOWN)
        stands = await world.store.get(NAME)
        assert (stands is not None) is (verb is Verb.COMPLETE)
        if stands is not None:
            lost += [True, True]
            assert await change(desk, Verb.FORGET, await version(desk)) is Outcome.UNKNOWN


@every_store
async def test_a_claim_that_nobody_settled(kind: str) -> None:
    """In flight: nothing without force. Past its lease: completed once 5 s more are over; released with force, once one
    lease more is over; forgotten with force at any time. The answer of a flight that was forgotten is kept."""
    async with a_desk(kind) as (world, desk):
        claim = a_claim(life=2 * LEASE + DOUBT_WINDOW)
        await world.store.claim(NAME, claim)
        shown = await version(desk)
        for verb in Verb:
            assert await change(desk, verb, shown) is Outcome.IN_FLIGHT
        assert await change(desk, Verb.RELEASE, shown, force=True) is Outcome.IN_FLIGHT
        await world.pass_time(LEASE + 1000)
        for verb in Verb:
            assert await change(desk, verb, shown) is Outcome.IN_FLIGHT
        assert await change(desk, Verb.RELEASE, shown, force=True) is Outcome.IN_FLIGHT
        seen = await desk.look(NAME.decode())
        assert seen is not None
        assert (seen.state, seen.doubt) == ("in-doubt", "lapsed")
        await world.pass_time(LEASE)
        assert await change(desk, Verb.RELEASE, shown) is Outcome.IN_FLIGHT
        assert await change(desk, Verb.RELEASE, shown, force=True) is Outcome.MADE

        other = a_claim()
        await world.store.claim(NAME, other)
        await world.pass_time(LEASE + 5500)
        assert await change(desk, Verb.COMPLETE, await version(desk)) is Outcome.MADE
        assert await change(desk, Verb.FORGET, await version(desk)) is Outcome.MADE

        flying = a_claim()
        await world.store.claim(NAME, flying)
        assert await change(desk, Verb.FORGET, await version(desk), force=True) is Outcome.MADE
        assert await world.store.settle(NAME, records.keep(flying, an_answer(), wall=0)) is Done.FORGOT


# ── The rooms around it ───────────────────────────────────────────────────────────────────────────


async def test_a_worker_that_does_not_answer_may_have_done_it() -> None:
    """Asked to change: nobody knows. Asked to look: nothing was written."""

    async def silent(asked: dict[str, Any]) -> None:
        return None

    async def nobody(asked: dict[str, Any]) -> list[dict[str, Any] | None]:
        return [None]

    desk = WorkersDesk(silent, nobody)
    with pytest.raises(DeskAway) as changed:
        await desk.change(Orders(verb=Verb.FORGET, which=[]))
    assert changed.value.ambiguous
    with pytest.raises(DeskAway) as looked:
        await desk.look(NAME.decode())
    assert not looked.value.ambiguous
    assert await desk.recent(NAME.decode()) == []


def test_recent_duplicates_are_bounded_and_of_their_own_key() -> None:
    """The last 3 of each of the last 2 keys; what was no duplicate is not among them."""
    recent = Recent(FakeClock(), keys=2, of_each=3)
    for name, kind, status in (
        *((b"a", DuplicateKind.REPLAYED, 200 + n) for n in range(5)),
        (b"b", None, 201),
        (b"b", DuplicateKind.IN_DOUBT, 409),
    ):  # fmt: skip
        recent.finished(Account("r", b"POST", b"/", "10.0.0.1", duplicate=kind, name=name, status=status))
    assert [each.status for each in recent.of(b"a")] == [202, 203, 204]
    assert [(each.kind, each.client) for each in recent.of(b"b")] == [("in_doubt", "10.0.0.1")]
    recent.finished(Account("r", b"POST", b"/", "10.0.0.1", duplicate=DuplicateKind.ATTACHED, name=b"c"))
    assert recent.of(b"a") == []
    assert len(recent.of(b"c")) == 1


async def test_every_kind_of_key_is_found_by_what_was_sent(origin: Origin) -> None:
    """In a field, quoted or bare; in the body; of two parts; in shadow; in any spelling of its format: each is found by
    the key that its route reads, and not by another route's."""
    routes = """
  - {name: body, match: {path: /body}, upstream: origin, key: {from: body:/id}, namespace: body}
  - {name: two, match: {path: /two}, upstream: origin, key: {from: [header:X-A, query:b]}, namespace: two}
  - {name: shade, match: {path: /shade}, upstream: origin, mode: shadow, namespace: shade}
  - {name: uuid, match: {path: /uuid}, upstream: origin, key: {format: uuid}}
  - {name: pair, match: {path: /pair/*}, upstream: origin, key: {from: [path:2, header:X-A], format: uuid}}"""
    async with gate(configuration(origin.url, routes=routes)) as one:
        desk = Desk(one.port, one.admin_port, str, Path("/nowhere"))
        await ask(one.port, "POST", "/all", key='"quoted \\" one"')
        json_field = [("Content-Type", "application/json")]
        await ask(one.port, "POST", "/body", body=b'{"id":"\\"in a body"}', fields=json_field)
        await ask(one.port, "POST", "/two?b=second", fields=[("X-A", 'fir"st')])
        await ask(one.port, "POST", "/shade", key="shadow-key")
        listed: dict[str, str] = {}
        async with asyncio.timeout(5):
            while len(listed) < 4:  # a shadow writes behind its request
                listed = {each["route"]: each["name"] for each in (await desk.get("/keys"))[1]["records"]}
        for route, key in (
            ("all", '"quoted \\" one"'), ("body", '"in a body'), ("two", '"fir\\"st", "second"'),
            ("shade", "shadow-key"),
        ):  # fmt: skip
            assert (await desk.story(key, route=route))["record"]["name"] == listed[
                "shade/shadow" if route == "shade" else route
            ], route
        capitals = "8E03978E-40D5-43E8-BC93-6894A57F9324"
        await ask(one.port, "POST", "/uuid", key=capitals)
        await ask(one.port, "POST", "/pair/Acme", fields=[("X-A", capitals)])
        for key, route in (
            (capitals, "uuid"), (capitals.lower(), "uuid"), (f'"{capitals.title()}"', "uuid"),
            (f'"Acme", "{capitals}"', "pair"), (f'"Acme", "{capitals.lower()}"', "pair"),
        ):  # fmt: skip
            assert (await desk.story(key, route=route))["record"]["route"] == route, key
        assert (await desk.post("/keys/find", key=f'"acme", "{capitals}"', route="pair"))[0] == 404
        assert (await desk.post("/keys/find", key="fir", route="two"))[0] == 422
        assert (await desk.post("/keys/find", key="shadow-key", route="all"))[0] == 404
        assert "is needed" in (await desk.post("/keys/find", key="x"))[1]["detail"]

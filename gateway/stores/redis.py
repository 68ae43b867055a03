"""Records in one Redis or Valkey: for a fleet. One key per record; the server expires them.

A claim is `SET key record NX GET PX life` with a `PTTL` behind it in the same flush (Redis 7.0 and later,
Valkey): won, or what stands in the way with its age. Every other write is one call of `script.lua`.

The connection is made, and made again, in the background. While it is away calls fail at once; whoever
has patience asks `wait_available`. A command that goes unanswered for `COMMAND_TIMEOUT` ends the
connection: a store that hangs must not look like one that thinks.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from importlib.resources import files
from typing import Any

import hiredis
from redis.asyncio.connection import parse_url

from ..core.record import Done, Found, Record, Settlement, Stamp, State, refused
from ..ports import Observer, RecordUnreadable, StoreAway, StoreFull, StoreUnusable
from ..tasks import Tasks
from .codec import VERSION, Unreadable, decode, encode
from .pipeline import Pipeline, RedisError

#: Seconds after which an unanswered command ends its connection.
COMMAND_TIMEOUT = 2.0
CONNECT_TIMEOUT = 2.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_OLDEST = (7, 0)

_SCRIPT = files(__package__).joinpath("script.lua").read_bytes()
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_VERSION = b"%d" % VERSION

#: Commands of a connection's first flush that an administrator must allow besides those of the records.
COMMANDS = ("SET", "GET", "PTTL", "DEL", "EVALSHA", "EVAL", "SCRIPT|LOAD", "INFO", "SELECT", "CLIENT|SETNAME")


class RedisStore:
    """The store at `url` (`redis://[[user:]password@]host[:port][/db]`), under `prefix`."""

    kind = "redis"

    def __init__(self, url: str, observer: Observer, *, prefix: str = "og:") -> None:
        try:
            where = parse_url(url)
        except ValueError as error:
            raise StoreUnusable(f"the store's URL cannot be read: {error}") from error
        self._where: dict[str, Any] = dict(where)
        self._address = (self._where.get("host", "localhost"), int(self._where.get("port", 6379)))
        self._prefix = prefix.encode()
        self._observer = observer
        self._tasks = Tasks(lambda error: observer.alarm("the Redis connector failed", error=repr(error)))
        self._pipeline: Pipeline | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._trouble = "not connected yet"

    # ── The port ──────────────────────────────────────────────────────────────────────────────────

    @property
    def available(self) -> bool:
        return self._pipeline is not None

    @property
    def trouble(self) -> str:
        return self._trouble

    @property
    def flushes(self) -> int:
        """Writes to the connection so far: what a trip is counted by."""
        return self._pipeline.flushes if self._pipeline is not None else 0

    async def open(self) -> None:
        try:
            await self._connect()
        except StoreUnusable:
            raise
        except Exception as error:
            self._failed(error)
        self._tasks.start(self._stay_connected())
        self._tasks.start(self._watch())

    async def close(self) -> None:
        await self._tasks.cancel()
        if self._pipeline is not None:
            self._pipeline.abort("the store is closed")

    async def wait_available(self, seconds: float) -> bool:
        if not self._up.is_set():
            try:
                await asyncio.wait_for(self._up.wait(), seconds)
            except TimeoutError:
                return False
        return True

    async def claim(self, name: bytes, claim: Record) -> Done | Found:
        key = self._prefix + name
        packed = _pack(b"SET", key, encode(claim), b"NX", b"GET", b"PX", b"%d" % claim.life)
        packed += _pack(b"PTTL", key)
        for _ in range(5):
            value, left = await self._call(packed, 2)
            if isinstance(value, RedisError):
                return await self._claim_refused(name, value)
            if value is None:
                return Done.WON
            if left == -2:
                continue  # it ended between the two commands
            found = self._found(value, left)
            record = found.record
            if record.state is State.IN_FLIGHT:
                if record.holder == claim.holder:
                    # Asked again. The record is written again, or WAIT would not cover it.
                    again = await self._script(name, b"again", claim.holder)
                    if again == 1:
                        return Done.WON
                    if again == 0:
                        continue
                    return self._found(*again)
                if found.age < 0 or record.lapsed(found.age):
                    # The two commands are not one: it may have been settled between them. Look at both at once.
                    seen = await self.look(name)
                    if seen is None:
                        continue
                    return seen
            return found
        raise StoreAway("the record ended again and again while it was claimed", ambiguous=False)

    async def settle(self, name: bytes, settlement: Settlement) -> Done | Found:
        record = settlement.record
        reply = await self._change(
            name,
            settlement.holder,
            b"".join(b"%d" % state for state in settlement.movable),
            record,
            if_absent=settlement.tells_again and record is not None,
            made=b"" if record is None else b"%d" % record.state,
        )
        if isinstance(reply, list):
            return refused(self._found(*reply), settlement)
        return _SETTLED[reply]

    async def replace(self, name: bytes, stamp: Stamp, to: Record | None) -> Done | Found:
        takes = to is not None and to.state is State.IN_FLIGHT
        made = b"%d" % State.IN_FLIGHT if takes else b""
        reply = await self._change(name, stamp.holder, b"%d" % stamp.state, to, lapsed_for=stamp.lapsed_for, made=made)
        if isinstance(reply, list):
            return self._found(*reply)
        return Done.WON if reply == 1 else Done.GONE

    async def look(self, name: bytes) -> Found | None:
        reply = await self._script(name, b"look")
        return None if reply == 0 else self._found(*reply)

    # ── Commands ──────────────────────────────────────────────────────────────────────────────────

    async def _change(
        self,
        name: bytes,
        holder: bytes,
        states: bytes,
        to: Record | None,
        *,
        if_absent: bool = False,
        lapsed_for: int | None = None,
        made: bytes = b"",
    ) -> Any:
        return await self._script(
            name,
            b"change",
            holder,
            states,
            b"" if to is None else encode(to),
            b"0" if to is None else b"%d" % to.life,
            b"1" if if_absent else b"0",
            b"" if lapsed_for is None else b"%d" % lapsed_for,
            made,
        )

    async def _script(self, name: bytes, verb: bytes, *arguments: bytes) -> Any:
        rest = (b"1", self._prefix + name, verb, _VERSION, *arguments)
        reply = await self._call(_pack(b"EVALSHA", _SHA, *rest))
        if isinstance(reply, RedisError) and reply.code == "NOSCRIPT":
            reply = await self._call(_pack(b"EVAL", _SCRIPT, *rest))
        if isinstance(reply, RedisError):
            raise self._away(reply)
        return reply

    def _call(self, packed: bytes, replies: int = 1) -> asyncio.Future[Any]:
        pipeline = self._pipeline
        if pipeline is None:
            raise StoreAway(self._trouble, ambiguous=False)
        return pipeline.call(packed, replies)

    async def _claim_refused(self, name: bytes, error: RedisError) -> Found:
        """A claim that finds no room or too few replicas: a completed record can still be replayed."""
        if error.code in ("OOM", "NOREPLICAS"):
            seen = await self.look(name)
            if seen is not None:
                return seen
            if error.code == "OOM":
                raise StoreFull(f"Redis: {error}")
        raise self._away(error)

    def _away(self, error: RedisError) -> StoreAway:
        """An error reply says that nothing was done. Some say that this server is the wrong one."""
        if error.code in ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH") and self._pipeline is not None:
            self._pipeline.abort(f"Redis: {error}")
        return StoreAway(f"Redis: {error}", ambiguous=False)

    def _found(self, value: bytes, left: int | RedisError) -> Found:
        if isinstance(left, RedisError):
            raise self._away(left)
        if left == -1:
            raise RecordUnreadable("a record without an expiry: something else writes under this prefix")
        try:
            record = decode(value)
        except Unreadable as error:
            raise RecordUnreadable(f"Redis holds {error}") from error
        return Found(record, record.life - left)

    # ── The connection ────────────────────────────────────────────────────────────────────────────

    def _lost(self, why: str) -> None:
        self._pipeline = None
        self._trouble = why
        self._up.clear()
        self._down.set()

    def _failed(self, error: Exception) -> None:
        """No connection was made. Whatever the reason, it is shown, and another is tried."""
        if isinstance(error, StoreAway | StoreUnusable):
            self._lost(str(error))
            return
        host, port = self._address
        self._lost(f"Redis at {host}:{port} cannot be talked to: {error!r}")
        self._observer.alarm("the Redis connector failed", error=repr(error))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        host, port = self._address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, pipeline = await loop.create_connection(lambda: Pipeline(self._lost), host, port)
                try:
                    await self._greet(pipeline)
                except BaseException:
                    pipeline.abort("the handshake failed")
                    raise
        except OSError as error:  # TimeoutError is one
            raise StoreAway(
                f"Redis at {host}:{port} cannot be reached: {str(error) or 'timed out'}", ambiguous=False
            ) from error
        if not pipeline.usable:  # it was lost while we were on our way here, and nobody would tell us again
            raise StoreAway(f"Redis at {host}:{port} closed the connection", ambiguous=False)
        self._pipeline = pipeline
        self._trouble = ""
        self._down.clear()
        self._up.set()

    async def _greet(self, pipeline: Pipeline) -> None:
        where = self._where
        commands: list[tuple[bytes, ...]] = []
        if (password := where.get("password")) is not None:
            user = where.get("username")
            commands.append((b"AUTH", *((user.encode(),) if user else ()), password.encode()))
        if where.get("db"):
            commands.append((b"SELECT", b"%d" % int(where["db"])))
        commands += [(b"CLIENT", b"SETNAME", b"oncegate"), (b"SCRIPT", b"LOAD", _SCRIPT), (b"INFO", b"server")]
        replies = await asyncio.gather(*(pipeline.call(_pack(*command)) for command in commands))
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, RedisError):
                raise StoreAway(f"Redis refused {command[0].decode()}: {reply}", ambiguous=False)
        info = dict(line.split(":", 1) for line in replies[-1].decode().splitlines() if ":" in line)
        version = info.get("redis_version", "0.0")
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST:  # 8.0-rc1 is one
            raise StoreUnusable(f"Redis {version} is too old: SET … NX GET needs Redis 7.0 or later, or Valkey")

    async def _stay_connected(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            if self._pipeline is None:
                try:
                    await self._connect()
                    pause = _FIRST_PAUSE
                except Exception as error:
                    self._failed(error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                await self._down.wait()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(COMMAND_TIMEOUT / 4)
            pipeline = self._pipeline
            if pipeline is not None and pipeline.silent_for() > COMMAND_TIMEOUT:
                pipeline.abort(f"Redis did not answer within {COMMAND_TIMEOUT:g} s")


_SETTLED = {1: Done.DONE, 2: Done.FORGOT, 0: Done.GONE}


def _pack(*words: bytes) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows tuples of one
    return packed

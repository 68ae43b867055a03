"""A connection to the server that takes writes, and that is kept: made, watched, and made again.

While it is away calls fail at once; whoever has patience waits for the store. A command that goes
unanswered for its time ends the connection: a store that hangs must not look like one that thinks.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TypeVar

from ...ports import Observer, StoreAway, StoreUnusable
from ...tasks import Tasks
from .findings import Info, read_info
from .permissions import line
from .pipeline import Pipeline, RedisError, Reply, ReplyReceiver, Unasked, pack
from .reasons import READ_ONLY, UNREACHABLE, Unreached, hung_up, refused, unreached
from .servers import Address, Finder, Servers, Tls

T = TypeVar("T")

#: Seconds after which an unanswered command ends its connection.
COMMAND_TIMEOUT = 2.0
CONNECT_TIMEOUT = 2.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_OLDEST = (7, 0)

SCRIPT = files(__package__).joinpath("script.lua").read_bytes()
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()
LOOK = files(__package__).joinpath("look.lua").read_bytes()
LOOK_SHA = hashlib.sha1(LOOK, usedforsecurity=False).hexdigest().encode()


class Link:
    """One such connection. `changed` is called whenever it is made or lost; `patience`: seconds that a command
    may take beyond `COMMAND_TIMEOUT`; `unasked`: the Pipeline's."""

    def __init__(
        self,
        servers: Servers,
        finder: Finder,
        observer: Observer,
        changed: Callable[[], None],
        *,
        patience: float = 0.0,
        unasked: Unasked | None = None,
    ) -> None:
        self._servers = servers
        self._finder = finder
        self._observer = observer
        self._changed = changed
        self._unasked = unasked
        self._timeout = COMMAND_TIMEOUT + patience
        self._tasks = Tasks(lambda error: observer.alarm("the Redis connector failed", error=repr(error)))
        self._down = asyncio.Event()
        self.pipeline: Pipeline | None = None
        self.address: Address | None = None
        self.info: Info = {}
        self.trouble = "not connected yet"
        #: The name of the finding for that, of the last attempt to connect.
        self.cause = UNREACHABLE

    async def open(self) -> None:
        """Connect, and stay connected. Raises StoreUnusable; a server that is away is no error."""
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
        self.abort("the store is closed")

    def abort(self, why: str) -> None:
        """End the connection; another is made."""
        if self.pipeline is not None:
            self.pipeline.abort(why)

    def call(self, packed: bytes, replies: int = 1) -> asyncio.Future[Reply]:
        """As `Pipeline.call`. Raises StoreAway where there is no connection."""
        pipeline = self.pipeline
        if pipeline is None:
            raise StoreAway(self.trouble, ambiguous=False)
        return pipeline.call(packed, replies)

    def tell(self, packed: bytes, replies: int, told: ReplyReceiver) -> None:
        """As `Pipeline.tell`. Raises StoreAway if there is no connection."""
        pipeline = self.pipeline
        if pipeline is None:
            raise StoreAway(self.trouble, ambiguous=False)
        pipeline.tell(packed, replies, told)

    # ── Making it ─────────────────────────────────────────────────────────────────────────────────

    def _lost(self, why: str) -> None:
        self.pipeline = None
        self.trouble = why
        self._down.set()
        self._changed()

    def _failed(self, error: Exception) -> None:
        """No connection was made. Whatever the reason, it is shown, and another is tried."""
        self.cause = error.name if isinstance(error, Unreached) else UNREACHABLE
        if isinstance(error, StoreAway | StoreUnusable):
            self._lost(str(error))
            return
        self._lost(f"Redis at {self.address or self._servers.hosts[0]} cannot be talked to: {error!r}")
        self._observer.alarm("the Redis connector failed", error=repr(error))

    async def _connect(self) -> None:
        address = self.address = await self._finder.find()
        pipeline, info = await _met(
            self._servers, address, self._greet, within=CONNECT_TIMEOUT, lost=self._lost, unasked=self._unasked
        )
        if not pipeline.usable:  # it was lost while we were on our way here, and nobody would tell us again
            raise StoreAway(f"Redis at {address} closed the connection", ambiguous=False)
        self.info = info
        self.pipeline = pipeline
        self.trouble = ""
        self._down.clear()
        self._changed()

    async def _greet(self, pipeline: Pipeline) -> Info:
        info = read_info(await logged_in(self._servers, pipeline, (b"SCRIPT", b"LOAD", SCRIPT), (b"INFO",)))
        version = info.get("redis_version", "0.0")
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST:  # 8.0-rc1 is one
            raise StoreUnusable(f"Redis {version} is too old: SET … NX GET needs Redis 7.0 or later, or Valkey")
        if info.get("role", "master") != "master":
            raise Unreached(
                READ_ONLY,
                f"Redis at {self.address} is a read-only replica: name its primary in the store's URL, or its "
                "Sentinels (redis+sentinel://HOST,HOST,HOST/NAME)",
            )
        return info

    async def _stay_connected(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            if self.pipeline is None:
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
            pipeline = self.pipeline
            if pipeline is not None and pipeline.silent_for() > self._timeout:
                pipeline.abort(f"Redis did not answer within {self._timeout:g} s")


async def ask(servers: Servers, address: Address, *words: bytes) -> Reply:
    """The reply to one command, over a connection for it alone. Raises StoreAway."""
    return await visit(servers, address, lambda pipeline: logged_in(servers, pipeline, words))


async def visit(
    servers: Servers, address: Address, does: Callable[[Pipeline], Awaitable[T]], *, within: float = CONNECT_TIMEOUT
) -> T:
    """What comes of a few words with a server, over a connection for them alone. Raises StoreAway."""
    pipeline, result = await _met(servers, address, does, within=within)
    pipeline.abort("it was asked")
    return result


async def _met(
    servers: Servers,
    address: Address,
    does: Callable[[Pipeline], Awaitable[T]],
    *,
    within: float,
    lost: Callable[[str], None] = lambda _: None,
    unasked: Unasked | None = None,
) -> tuple[Pipeline, T]:
    """A new connection, and what came of the first words over it. Raises StoreAway, which names the server if it was
    not reached, or hung up. `within`: the seconds for both; `lost` and `unasked`: the Pipeline's."""
    try:
        async with asyncio.timeout(within):
            pipeline = await reach(servers.tls, address, lost, unasked)
            try:
                return pipeline, await does(pipeline)
            except BaseException as error:
                usable = pipeline.usable
                pipeline.abort("the handshake failed")
                if usable or not isinstance(error, StoreAway):
                    raise
                reason = hung_up(error.why, servers.tls, socket=bool(address.path))
                raise Unreached(reason.name, f"Redis at {address} {reason.why}") from error
    except OSError as error:  # TimeoutError is one
        reason = unreached(error, servers.tls, within=CONNECT_TIMEOUT)
        raise Unreached(reason.name, f"Redis at {address} cannot be reached: {reason.why}") from error


async def reach(tls: Tls | None, address: Address, lost: Callable[[str], None], unasked: Unasked | None) -> Pipeline:
    """A new connection to a server. Raises OSError. `lost` and `unasked`: the Pipeline's."""
    loop = asyncio.get_running_loop()
    if address.path:
        _, pipeline = await loop.create_unix_connection(lambda: Pipeline(lost, unasked), address.path)
        return pipeline
    context = name = None
    if tls is not None:
        context, name = tls.context, tls.server_name or address.host
    _, pipeline = await loop.create_connection(
        lambda: Pipeline(lost, unasked), address.host, address.port, ssl=context, server_hostname=name
    )
    return pipeline


def login(user: str, password: str) -> tuple[tuple[bytes, ...], ...]:
    """The command that says who we are, if we are anybody."""
    return ((b"AUTH", *((user.encode(),) if user else ()), password.encode()),) if password else ()


async def logged_in(servers: Servers, pipeline: Pipeline, *then: tuple[bytes, ...]) -> Reply:
    """Say who we are; the reply to the last of the commands behind that. Raises StoreAway where any is refused."""
    commands = list(login(servers.user, servers.password))
    if servers.database:
        commands.append((b"SELECT", b"%d" % servers.database))
    commands += [(b"CLIENT", b"SETNAME", b"oncegate"), *then]
    replies = await asyncio.gather(*(pipeline.call(pack(*command)) for command in commands))
    failed = [pair for pair in zip(commands, replies, strict=True) if isinstance(pair[1], RedisError)]
    if failed:
        command, error = failed[0]
        rules = [_rule(command) for command, error in failed if error.code == "NOPERM"]
        reason = refused(command[0].decode(), error, f"; {line(servers, rules)}" if rules else "")
        raise Unreached(reason.name, f"Redis {reason.why}")
    return replies[-1]


def _rule(command: tuple[bytes, ...]) -> str:
    """What permits it."""
    words = command[: 2 if command[0] in (b"CLIENT", b"SCRIPT", b"CLUSTER") else 1]
    return "+" + b"|".join(words).decode().lower()

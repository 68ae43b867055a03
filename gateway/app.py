"""The composition root: build, start, drain, stop. The only room that knows all the others."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit

from aiohttp import web

from . import failpoints
from .awaitable import AwaitableStore
from .clock import HostClock
from .core.limit import Limit
from .core.record import HOLDER_BYTES
from .edge import descriptors, unix
from .edge.budget import Budget
from .edge.connector import Place, Tls
from .edge.deadlines import Deadlines
from .edge.descriptors import Descriptors
from .edge.door import Bounds, Door
from .edge.fit import credentials
from .edge.origins import Origins
from .edge.pool import Pool
from .edge.proxies import Proxies
from .edge.published import Published
from .edge.server import Papers, Server
from .edge.shared import Patience, Shared
from .edge.upstream import GuardedUpstream
from .edge.wire import RequestHeads
from .engine.driver import Driver
from .ops.admin import Audit, Desk, Gatekeeper, LocalDesk, Names, Readiness, Recent, Room, admin_app
from .ops.log import Log
from .ops.metrics import Tally
from .ops.observers import Observers
from .ops.traced import traces
from .ops.worker_log import WorkerLog
from .plan import Plan
from .ports import Clock, Observer, StoreUnusable, Upstream
from .reload import READ_ANEW, Refused, attempted, identity, read_anew
from .settings import Settings, UnixPath, UpstreamSettings, tls
from .settings import stores as urls
from .settings.shown import shown as settings_shown
from .settling import Settler
from .shadow import Shadows
from .stores.memory import MAX_BYTES, MAX_RECORDS, MemoryStore
from .stores.redis import Address, RedisStore, Servers, Trust
from .stores.redis import Tls as RedisTls
from .stores.sqlite import SqliteStore
from .tasks import Tasks
from .tokens.issuers import Issuers


class Mint:
    """Holder ids from the kernel's randomness, drawn for many claims at once (a system call each costs more)."""

    _DRAWN = 256

    def __init__(self) -> None:
        self._ids: list[bytes] = []

    def holder(self) -> bytes:
        """An id that no other claim has."""
        if not self._ids:
            drawn = secrets.token_bytes(HOLDER_BYTES * self._DRAWN)
            self._ids = [drawn[at : at + HOLDER_BYTES] for at in range(0, len(drawn), HOLDER_BYTES)]
        return self._ids.pop()


ONE_GATEWAY = "this store protects one gateway; a second instance of the service needs redis"


def open_store(
    url: str,
    clock: Clock,
    observer: Observer,
    *,
    prefix: str,
    trust: Trust | None = None,
    say: Callable[..., None] = lambda level, what, **facts: None,
) -> MemoryStore | SqliteStore | RedisStore:
    """The store of a URL that the settings have accepted. A Redis is trusted as `trust` says."""
    parts, options = urlsplit(url), urls.options(url)
    if parts.scheme == "memory":
        return MemoryStore(
            clock,
            observer,
            max_records=int(options.get("max_records", MAX_RECORDS)),
            max_bytes=int(options.get("max_bytes", MAX_BYTES)),
            replies_soon=True,
            say=say,
        )
    if parts.scheme == "sqlite":
        return SqliteStore(
            Path(unquote(parts.path[1:])),  # three slashes and a relative path, or four and an absolute one
            clock,
            observer,
            durability=str(options.get("durability", "power")),
            max_bytes=int(options.get("max_bytes", 0)),
            say=say,
        )
    return RedisStore(redis_servers(url), observer, prefix=prefix, trust=trust or Trust(), say=say)


def redis_servers(url: str) -> Servers:
    """The servers of a Redis store's URL that the settings have accepted."""
    return _servers(urls.redis(url))


def _servers(place: urls.RedisPlace) -> Servers:
    return Servers(
        (Address("", 0, place.path),) if place.path else tuple(Address(*host) for host in place.hosts),
        master=place.master,
        database=place.database,
        user=place.user,
        password=place.password,
        sentinel_user=place.sentinel_user,
        sentinel_password=place.sentinel_password,
        replicas=place.replicas,
        wait=place.wait,
        tls=None if (secure := place.tls) is None else RedisTls(secure.context, secure.server_name),
        cluster=place.cluster,
    )


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a graceful stop came to."""

    cut_off: int
    unsettled: int

    def __str__(self) -> str:
        if not self.cut_off and not self.unsettled:
            return "stopped: everything in flight was answered and settled"
        return (
            f"stopped: {self.cut_off} connections were cut off, {self.unsettled} settlements were not acknowledged "
            "(their claims lapse and are then in doubt)"
        )


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one of several workers: its number, and what it shares with the others of each listener of the
    file, in their order: its addresses, or of a Unix socket the descriptor. What concerns all of them (the admin
    listener, the first words) is their parent's."""

    worker: int
    places: tuple[tuple[tuple[str, int], ...] | int, ...]


class Lifecycle:
    """The part that a process of its own and the parent of several workers share: addresses, the admin listener,
    signals, and the configuration that is read anew. A subclass sets `log` and `observer`, and has `reload`."""

    log: Log
    observer: Observer

    def __init__(self, settings: Settings, out: TextIO | None) -> None:
        self.settings = settings
        self.clock = HostClock()
        self._out = out or sys.stdout
        self._as_json = settings.log.format == "json" or (settings.log.format == "auto" and not self._out.isatty())
        self.addresses: list[tuple[str, int]] = []
        self.admin_addresses: list[tuple[str, int]] = []
        self._stack = AsyncExitStack()
        self._reloading = asyncio.Lock()
        self._upkeep = Tasks(lambda error: self.observer.alarm("reading the configuration failed", error=repr(error)))

    async def reload(self) -> None:
        """Read the file anew, and go by it. Raises Refused."""
        raise NotImplementedError

    async def reread(self) -> str:
        """As `reload`; says why not, to the log too."""
        return await attempted(self.reload, self.observer)

    def _on_signals(self, stop: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._upkeep.start(self.reread()))

    def _bind_unix(self, path: str, mode: int) -> socket.socket:
        sock = unix.bind(path, mode)
        self._stack.callback(sock.close)
        self._stack.callback(unix.remove, path, unix.inode(path))
        return sock

    async def _start_admin(
        self, desk: Desk, app: Callable[[Callable[[web.Application], None], Gatekeeper], web.Application]
    ) -> None:
        settings = self.settings
        audit = Audit(settings.audit, self.clock, self.log.say)
        room = Room(desk, self._names, audit, lambda: settings_shown(self.settings))
        gatekeeper = Gatekeeper(settings.admin_token, settings.admin.loopback)
        runner = web.AppRunner(app(room.add, gatekeeper), access_log=None, handle_signals=False)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.admin.host, settings.admin.port).start()
        self.admin_addresses = [tuple(bound[:2]) for bound in runner.addresses]

    def _names(self) -> Names:
        return Names(self.settings.service.encode(), self.settings.routes.routes, self.settings.secret)

    def _announce(self, store: str, note: str, **facts: object) -> None:
        self.log.say(
            "info",
            "listening",
            addresses=shown(self.addresses),
            admin=shown(self.admin_addresses),
            store=store,
            service=self.settings.service,
            **facts,
        )
        for text in filter(None, (note, *self.settings.notes)):
            self.log.say("note", text)
        for warning in host_warnings(self.settings):
            self.log.say("warning", warning)


class App(Lifecycle):
    """One gate, from its settings. `start`, then `serve` until a signal, or `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        plan: Plan | None = None,
        out: TextIO | None = None,
        accept_new_keys: bool = False,
        seat: Seat | None = None,
    ) -> None:
        """`plan`: where the settings came from, to be read anew."""
        super().__init__(settings, out)
        full = settings.log.keys == "full"
        if seat is None:
            self.log = Log(self._out, self.clock, as_json=self._as_json, keys=full)
        else:
            self.log = WorkerLog(seat.worker, self._out, self.clock, as_json=self._as_json, keys=full)
        self._seat = seat
        self.tally = Tally()
        worker = None if seat is None else seat.worker
        recent = Recent(self.clock, worker)
        self._traces = traces(settings.tracing, self.clock, self.log.say, of=settings.service, worker=worker)
        self.observer = Observers(self.tally, self.log, recent, *self._traces.observers)
        trust = Trust(
            settings.store_check,
            settings.on_amnesia,
            settings.service,
            identity(settings),
            accept_new_keys,
        )
        store = open_store(
            settings.store, self.clock, self.observer, prefix=settings.prefix, trust=trust, say=self.log.say
        )
        self.store = AwaitableStore(store)
        self._mint = Mint()
        self.desk = LocalDesk(self.store, self.clock, self._mint.holder, recent)
        self.tasks = Tasks(lambda error: self.observer.alarm("an exchange failed", error=repr(error)))
        self.settler = Settler(self.store, self.clock, self.observer)
        self.readiness = Readiness(store, note="" if store.kind == "redis" else ONE_GATEWAY)
        self.readiness.reread = self.reread
        self.readiness.findings = lambda: {found.name: found.text for found in store.findings}
        self.tally.findings = lambda: dict.fromkeys((found.name for found in store.findings), 1)
        if isinstance(store, RedisStore):
            self.readiness.accept = store.accept
        self._plan = plan
        self._waiting = Tasks(lambda error: self.observer.alarm("waiting for the store failed", error=repr(error)))
        self._issuers = Issuers(
            self.clock,
            self.log.say,
            lambda error: self.observer.alarm("the watch over an issuer's keys failed", error=repr(error)),
            lambda ca: tls.context(ca, verify=True),
        )
        self._descriptors = Descriptors(self.observer, self.log.say)
        self.readiness.exhausted = lambda: self._descriptors.out
        self._pools: dict[str, Pool] = {}
        self._retired: list[Pool] = []
        self._server: Server | None = None
        self._driver: Driver | None = None
        self._upstreams: dict[str, Upstream] = {}

    async def start(self) -> None:
        """Open the store and bind the listeners. Raises StoreUnusable or OSError, with nothing left open."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            self.log.close()
            raise

    async def _start(self) -> None:
        settings, limits = self.settings, self.settings.limits
        self._traces.open()
        self._stack.push_async_callback(self._traces.close)
        await self.store.open()
        self._stack.push_async_callback(self.store.close)
        self._await_store()
        self._stack.push_async_callback(self.settler.close)
        self._budget = Budget(limits.buffers, lambda: self.observer.limited(Limit.BUFFERS))
        wheel = Deadlines(self.clock, self.tasks.failed)
        self._stack.callback(wheel.close)
        driver = self._driver = Driver(
            self.store.port,
            self._upstreams,
            self.clock,
            self.observer,
            self.settler,
            wheel,
            self._budget,
            mint=self._mint.holder,
            jitter=random.random,
            failed=self.tasks.failed,
            per_key=limits.waiters_per_key,
            in_all=limits.waiters,
            trace=self._traces.begin,
        )
        shadows = Shadows(self.store.port, self.clock, self.observer, self._mint.holder, self.tasks.failed)
        expect(self.tally, settings)
        self.tally.in_flight = driver.in_flight
        self.tally.waiters = driver.waiters
        await self._issuers.follow(route.policy for route in settings.routes.routes)
        self._stack.push_async_callback(self._issuers.close)
        heads = self._heads(settings)
        self._reach(settings, heads)
        patience = Patience(
            head=limits.head_timeout / 1000,
            body=limits.body_timeout / 1000,
            rate=limits.body_rate,
            grace=limits.body_grace / 1000,
            write=limits.write_timeout / 1000,
            idle=limits.idle / 1000,
            response=limits.response_idle / 1000,
            tunnel=limits.tunnel_idle / 1000,
            handshake=limits.handshake / 1000,
            connections=limits.connections,
            per_address=limits.connections_per_address,
            pipelined=limits.pipelined,
        )
        shared = Shared(
            self._door(settings),
            driver,
            shadows,
            self.tasks,
            self._pools,
            self.clock,
            self.observer,
            self._descriptors,
            patience,
            protocols=settings.upgrades,
            heads=heads,
            origins=_origins(settings),
            proxies=_proxies(settings),
        )
        server = self._server = Server(shared, self.tasks)
        self._stack.callback(self._close_pools)
        self._stack.callback(driver.cut)
        self._stack.push_async_callback(self.tasks.cancel)
        self._stack.push_async_callback(shared.shadows.close)
        self._stack.callback(server.close)
        if self._seat is not None:
            for number, place in enumerate(self._seat.places):
                await self._take(server, number, place)
            self.readiness.started = True
        else:
            await self._start_admin(self.desk, partial(admin_app, self.readiness, self.tally))
            for number in range(len(settings.listen)):
                await self._listen(server, number)
            self.readiness.started = True
            self._announce(self.store.kind, self.readiness.note)
        if failpoints.armed:
            self.observer.alarm(
                "a failpoint is armed: this process kills or stops itself on purpose. Unset ONCEGATE_FAILPOINT outside "
                "of tests",
                failpoint=failpoints.spec,
            )
        if not self.store.available:
            self.log.say("warning", "the store is away; guarded requests are refused", reason=self.store.trouble)

    def _await_store(self) -> None:
        """Hold `/ready` back until the store was available once. Without enforced routes nothing depends on it."""
        needed = self.settings.startup_wait and any(route.policy.enforced for route in self.settings.routes.routes)
        if self.store.available or not needed:
            return
        self.readiness.awaits_store = True
        self._waiting.start(self._first_available(self.settings.startup_wait / 1000))
        self._stack.push_async_callback(self._waiting.cancel)

    async def _first_available(self, seconds: float) -> None:
        available = await self.store.wait_available(seconds)
        self.readiness.awaits_store = False
        if not available:
            self.log.say(
                "warning",
                "the store was not available within startup_wait; /ready does not wait for it any longer",
                reason=self.store.trouble,
            )

    def _papers(self, number: int) -> Papers | None:
        """What a listener shows from the next connection on; files that are read anew are another context."""

        def now() -> ssl.SSLContext:
            tls = self.settings.listen[number].tls
            assert tls is not None
            return tls.context

        return None if self.settings.listen[number].tls is None else now

    async def _listen(self, server: Server, number: int) -> None:
        listener, tls = self.settings.listen[number], self._papers(number)
        address = listener.address
        if isinstance(address, UnixPath):
            await server.listen_on(self._bind_unix(address.path, listener.mode), tls=tls)
            self.addresses.append((str(address), 0))
        else:
            self.addresses += await server.listen(address.host, address.port, tls=tls)

    async def _take(self, server: Server, number: int, place: tuple[tuple[str, int], ...] | int) -> None:
        tls = self._papers(number)
        if isinstance(place, int):
            sock = socket.socket(fileno=place)
            self._stack.callback(sock.close)
            await server.listen_on(sock, tls=tls)
            self.addresses.append((str(self.settings.listen[number].address), 0))
            return
        for host, port in place:
            self.addresses += await server.listen(host, port, shared=True, tls=tls)

    # ── What a configuration makes, at the start and when it is read anew ─────────────────────────────

    def _heads(self, settings: Settings) -> RequestHeads:
        policies = [route.policy for route in settings.routes.routes]
        return RequestHeads(frozenset(name for policy in policies for name in policy.per_request))

    def _door(self, settings: Settings) -> Door:
        limits = settings.limits
        return Door(
            settings.routes,
            service=settings.service.encode(),
            secret=settings.secret,
            bounds=Bounds(limits.head, limits.target, limits.fields),
            budget=self._budget,
            hint=lambda what: self.log.say("note", what),
            unfit=self.tally.unfit,
            published=_published(settings),
            provers=self._issuers.provers,
        )

    def _reach(self, settings: Settings, heads: RequestHeads) -> None:
        """A pool for each upstream that is new or another than it was; one whose files were read anew may be. Nobody is
        sent to one that is gone, and who is on the way to it arrives."""
        for retired in [each for each in self._retired if not each.opened]:
            retired.close()
            self._retired.remove(retired)
        for name, upstream in settings.upstreams.items():
            pool = self._pools.get(name)
            if pool is None or upstream.tls is not None or pool.place != _place(upstream):
                if pool is not None:
                    pool.retire()
                    self._retired.append(pool)
                self._pools[name] = pool = Pool(_place(upstream), self.clock, self.tasks, self._descriptors.limited)
            self._upstreams[name] = GuardedUpstream(pool, self._budget, heads, partial(settings.routes.leads_to, name))
            if upstream.tls is not None and not upstream.tls.verify:
                self.log.say("warning", "whoever answers is taken for this upstream: verify is false", upstream=name)

    def _close_pools(self) -> None:
        for pool in (*self._pools.values(), *self._retired):
            pool.close()

    async def take_up(self, settings: Settings) -> None:
        """Go by these settings from the next request on. `reload.differences` has found nothing against them. Keys of
        issuers that are new are fetched first."""
        assert self._server is not None
        await self._issuers.follow(route.policy for route in settings.routes.routes)
        heads, door = self._heads(settings), self._door(settings)
        self._reach(settings, heads)
        expect(self.tally, settings)
        self._server.shared.take_up(door, heads, settings.upgrades, _origins(settings), _proxies(settings))
        self.settings = settings

    async def reload(self) -> None:
        """Read the file anew, and go by it. Raises Refused, and then goes by what it went by."""
        async with self._reloading:
            if self._plan is None:
                raise Refused("there is no file to read anew")
            self._plan, settings = await read_anew(self._plan, self.settings)
            await self.take_up(settings)
            self.log.say("info", READ_ANEW, routes=len(settings.routes.routes))

    async def serve(self) -> Stopped:
        """Until SIGTERM or SIGINT; then drain. A second signal ends the process at once."""
        stop = asyncio.Event()

        def asked() -> None:
            if stop.is_set():
                os._exit(1)
            stop.set()

        self._on_signals(asked)
        await stop.wait()
        return await self.stop()

    async def stop(self) -> Stopped:
        """Accept no more; finish what is in flight within the grace; settle or hold the rest; say so."""
        driver = self._driver
        assert self._server is not None and driver is not None
        self.readiness.stopping = True
        await self._upkeep.cancel()
        grace = self.settings.grace / 1000
        began = self.clock.now()
        under_way = len(self.tasks) + driver.under_way
        self.log.say("info", "stopping", in_flight=under_way, grace_s=grace)
        await self._server.drain(grace)
        await self.tasks.finish(max(grace - (self.clock.now() - began), 0))
        await driver.drain(max(grace - (self.clock.now() - began), 0))
        driver.stop()
        await driver.drain(1.0)
        await self.tasks.cancel()
        driver.cut()  # before the settler is waited for: what was under way is handed to it
        unsettled = await self.settler.finish(max(grace - (self.clock.now() - began), 1.0))
        await self._traces.close(max(grace - (self.clock.now() - began), 1.0))
        cut_off = len(self._server.shared.connections)  # those that were told 502 or 503 a moment ago are not
        await self._stack.aclose()
        stopped = Stopped(cut_off, unsettled)
        self.log.say("info", str(stopped))
        self.log.close()
        return stopped


def host_warnings(settings: Settings) -> tuple[str, ...]:
    """Return hints about settings of this host that an operator should correct. `descriptors.raise_limit` comes
    first."""
    upstreams = (upstream.connections for upstream in settings.upstreams.values())
    return tuple(filter(None, (descriptors.shortage(settings.limits.connections, upstreams),)))


def expect(tally: Tally, settings: Settings) -> None:
    """Expose each label set that these settings bound, from 0 on."""
    tally.expect(settings.routes.routes, credentials)


def _published(settings: Settings) -> Published | None:
    path = settings.policy_path
    return None if path is None else Published(path.encode(), settings.routes.routes)


def _origins(settings: Settings) -> Origins | None:
    return None if settings.origins is None else Origins(settings.origins)


def _proxies(settings: Settings) -> Proxies | None:
    return None if settings.trusted_proxies is None else Proxies(settings.trusted_proxies)


def _place(upstream: UpstreamSettings) -> Place:
    tls = None if upstream.tls is None else Tls(upstream.tls.context, upstream.tls.server_name)
    return Place(
        upstream.name, upstream.host, upstream.port, upstream.connect / 1000, upstream.connections, tls, upstream.path
    )


def settle_in() -> None:
    """After the start: what was made so far stays for good, and the collector need not look at it again and again.
    What a request makes is freed by reference counts; cycles are rare, so the youngest generation may grow."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def shown(addresses: list[tuple[str, int]]) -> str:
    return ", ".join(
        host if host.startswith("unix:") else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for host, port in addresses
    )


__all__ = [
    "App",
    "Lifecycle",
    "Seat",
    "Stopped",
    "StoreUnusable",
    "expect",
    "host_warnings",
    "open_store",
    "settle_in",
]

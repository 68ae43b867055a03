"""`oncegate doctor`: the findings about a store, for a person, with what to change and where.

It claims nothing, and in Redis it writes nothing. What is wrong is judged where the gate judges it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from .app import ONE_GATEWAY, host_warnings, open_store, redis_servers
from .clock import HostClock
from .core.identity import Identity
from .edge.descriptors import raise_limit
from .ports import Nobody, StoreUnusable
from .settings import Settings
from .settings import stores as urls
from .settings.addresses import without_password
from .stores.redis import Examined, Finding, Severity, examine, tempered

#: Seconds after which a store counts as out of reach.
PATIENCE = 5.0

_PLAIN = "Redis, Valkey"
#: Where what is to be changed is changed.
CHANGES: dict[str, dict[str, str]] = {
    "evicts": {
        _PLAIN: "CONFIG SET maxmemory-policy noeviction, and the same line in its configuration file",
        "Amazon ElastiCache": "a parameter group of your own with maxmemory-policy = noeviction (the default groups "
        "say volatile-lru and cannot be changed)",
        "Amazon MemoryDB": "maxmemory-policy = noeviction in its parameter group",
        "Google Memorystore": "gcloud redis instances update NAME --update-redis-config=maxmemory-policy=noeviction "
        "(for Valkey: gcloud memorystore instances update NAME --update-engine-configs=maxmemory-policy=noeviction)",
        "Azure Cache for Redis": "Advanced settings, maxmemory-policy, noeviction (Azure Managed Redis: the database's "
        "eviction policy, NoEviction)",
        "Redis Cloud": "the database's data eviction policy, no eviction",
        "Upstash": "Configuration, Eviction: off",
        "another service": "look for maxmemory-policy or eviction policy; volatile-* evicts records too",
    },
    "no-persistence": {
        _PLAIN: "CONFIG SET appendonly yes, and appendonly yes in its configuration file; with appendfsync everysec a "
        "power loss costs a second, with always nothing",
        "Amazon ElastiCache": "a replica in another zone, with durability=replicated; or MemoryDB, which keeps a log",
        "Amazon MemoryDB": "nothing: its log keeps every write, whatever this server says",
        "Google Memorystore": "the Standard tier, which has a replica; or persistence, AOF, where it is offered",
        "Azure Cache for Redis": "Data persistence, AOF (Premium and Managed Redis)",
        "Redis Cloud": "Data persistence, append-only file",
        "Upstash": "nothing: it writes to disk by itself",
    },
    "no-file-behind-replicas": {
        _PLAIN: "CONFIG SET appendonly yes on primary and replicas, and the same line in their files",
        "a managed service": "nothing: it promotes a replica, and starts no empty primary again",
    },
    "no-memory-limit": {
        _PLAIN: "CONFIG SET maxmemory 3gb (say), and the same in its configuration file",
        "a managed service": "nothing: it sets the limit",
    },
    "unreachable": {
        "the gate's file": "the host and the port in `store`, as known on this machine (--store URL tries another)",
        _PLAIN: "is it up, and does it listen on that address (`bind`)? redis-cli -u URL PING from here must say PONG",
        "a managed service": "its endpoint, the network and firewall between, and rediss:// where it speaks only TLS",
    },
    "wrong-password": {
        "the gate's file": "the user and the password in `store` (before Sentinels sentinel_user and "
        "sentinel_password too)",
        _PLAIN: "ACL LIST, or requirepass in its configuration; redis-cli -u URL PING from here must say PONG",
        "a managed service": "its access key or AUTH token, which may have been rotated; the user by its full name",
    },
    "no-password": {
        "the gate's file": "store: redis://:PASSWORD@HOST, or redis://USER:PASSWORD@HOST (before Sentinels "
        "sentinel_password too)",
    },
    "no-database": {
        "the gate's file": "the number behind the host in `store`: redis://HOST:PORT/0",
        _PLAIN: "databases in its configuration, one more than the highest number",
        "a managed service": "most have database 0 only",
    },
    "tls": {
        "the gate's file": "rediss:// where the server speaks TLS, redis:// where it does not; ca, cert, key and "
        "server_name (docs/redis.md)",
    },
    "refused": {
        _PLAIN: "what it says: a server that is loading serves in a moment; protected mode wants a password or a bind",
    },
    "no-primary": {
        "the gate's file": "the name behind the Sentinels in `store`, and their addresses (26379 by default)",
        "Sentinel": "SENTINEL MASTERS says what it watches, and whether it is up; during a failover wait for its end",
    },
    "clock-stepped": {
        "this host": "what sets its clock (timedatectl, chronyc tracking, the hypervisor); let the gateway start after "
        "time synchronisation (After=time-sync.target)",
    },
    "read-only": {
        _PLAIN: "name the primary, or the Sentinels: redis+sentinel://HOST,HOST,HOST/NAME",
        "Amazon ElastiCache, MemoryDB": "the primary endpoint instead of the reader endpoint",
        "Google Memorystore": "the primary endpoint instead of the read endpoint",
    },
    "is-a-cluster": {
        "the gate's file": "store: redis+cluster://HOST,HOST (rediss+cluster:// over TLS), with any of its nodes",
        "Amazon ElastiCache, MemoryDB": "redis+cluster:// or rediss+cluster:// with the configuration endpoint",
    },
    "too-old": {
        _PLAIN: "Redis 7.0 or later, or Valkey",
        "a managed service": "an engine version of 7.0 or later; Azure Cache for Redis has 6, Azure Managed Redis 7",
    },
}
CHANGES["not-permitted"] = {
    _PLAIN: "that line, then ACL SAVE; or the same words in the user's line of its configuration",
    "Amazon ElastiCache, MemoryDB": "the user's access string, with the same words",
    "Azure Cache for Redis": "Data Access Configuration, a custom access policy with the same words",
    "Redis Cloud": "Data Access Control, the Redis ACL of the user's role",
}
CHANGES["full"] = {
    "the gate's file": "max_bytes in a store's URL of sqlite:, max_bytes or max_records in one of memory:; a shorter "
    "`window` of the routes that store most",
    "a disk": "free space on it: claims are accepted again within seconds, and nothing need be restarted",
    _PLAIN: "CONFIG SET maxmemory 3gb (say), and the same line in its configuration file; maxmemory-policy stays "
    "noeviction",
    "a managed service": "a larger node or plan",
}
CHANGES["writes-refused"] = {
    "SQLite": "free space, quotas and mount options of its disk; another program that has the file open",
    _PLAIN: "MISCONF: its log says why it cannot save (mostly a full disk). NOREPLICAS: bring the replicas back, or "
    "lower min-replicas-to-write",
}
CHANGES["few-descriptors"] = {
    "systemd": "LimitNOFILE=16384 in the unit",
    "a container": "--ulimit nofile=16384:16384, or ulimits: {nofile: 16384} in a compose file",
    "a shell": "ulimit -n 16384 as root, before `oncegate run`",
}
CHANGES["record-limit"] = {
    "the gate's file": "a smaller max_response of the routes",
    _PLAIN: "CONFIG SET of that limit, and the same line in its configuration file",
    "a managed service": "a larger node or plan, if its limits depend on that",
}
CHANGES["eviction-unknown"] = CHANGES["evicts"]

#: Of records, where no configuration says otherwise.
PREFIX = "og:"
_SEVERITIES = {Severity.REFUSE: "REFUSED", Severity.WARN: "WARNING", Severity.ADVISE: "ADVICE"}
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Store:
    """What is to be looked at: a store, and with a configuration who uses it and how."""

    url: str
    settings: Settings | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, in words; `good` where guarded requests would be served."""

    text: str
    good: bool


async def look_at(store: Store) -> Report:
    """The report on a store whose URL the settings have accepted."""
    scheme = urlsplit(store.url).scheme
    if scheme == "memory":
        kept = "records die with the process: a restart forgets every key that had run, so it is for trying out"
        return _report(store, "memory", (), (ONE_GATEWAY, kept))
    if scheme == "sqlite":
        return await _sqlite(store)
    return await _redis(store)


async def _redis(store: Store) -> Report:
    servers, settings = redis_servers(store.url), store.settings
    prefix, service, identity, largest = PREFIX, "", None, 0
    if settings is not None:
        prefix, service = settings.prefix, settings.service
        identity = Identity.of(settings.routes.routes, settings.secret)
        largest = settings.largest_response
    try:
        async with asyncio.timeout(PATIENCE):
            seen = await examine(servers, prefix, service, identity, largest=largest)
    except TimeoutError:
        why = f"it did not answer within {PATIENCE:g} s"
        return _report(store, "", (Finding("unreachable", Severity.REFUSE, why),), ())
    findings = [
        replace(each, text=f"at {one.address}: {each.text}") if len(seen) > 1 else each
        for one in seen
        for each in one.findings
    ]
    if settings is not None and settings.store_check != "strict":
        findings = list(tempered(tuple(findings), "warn"))
    what = ", ".join(_primary(one) for one in seen if one.info)
    info = next((one.info for one in seen if one.info), {})
    notes = []
    if info:
        waits = f"replicas={servers.replicas}: a write counts once so many have it"
        notes.append(f"durability={'replicated, ' + waits if servers.replicas else 'single: a failover may forget'}")
        if settings is None:
            notes.append("with --config FILE the identity of its keys is compared too")
    return _report(store, what, tuple(findings), notes)


def _primary(seen: Examined) -> str:
    info = seen.info
    engine = info.get("server_name", "redis").capitalize()
    version = info.get(f"{engine.lower()}_version", info.get("redis_version", ""))
    return f"{engine} {version} at {seen.address}, a primary with {info.get('connected_slaves', '0')} replicas"


async def _sqlite(store: Store) -> Report:
    path, findings = _file(store.url), tuple[Finding, ...]()
    options, beside = urls.options(store.url), _beside(path)
    try:
        if beside is None:
            findings = await _opened(store.url)
        else:
            findings = await _tried(store.url, path, beside)
    except StoreUnusable as error:
        findings = (Finding("unusable", Severity.REFUSE, str(error)),)
    power = options.get("durability", "power") == "power"
    notes = (
        ONE_GATEWAY,
        "durability=power: what was acknowledged survives kill -9 and power loss"
        if power
        else "durability=process: what was acknowledged survives kill -9, and not power loss",
    )
    return _report(store, f"SQLite, {path}" + ("" if beside is None else " (not there yet)"), findings, notes)


async def _opened(url: str) -> tuple[Finding, ...]:
    """Open the store as `run` does, and close it; return its findings. Raises StoreUnusable."""
    store = open_store(url, HostClock(), Nobody(), prefix="")
    await store.open()
    try:
        return store.findings
    finally:
        await store.close()


def _beside(path: Path) -> Path | None:
    """Return a free name beside a file that is not there yet; None if it is there."""
    if os.path.exists(path):
        return None
    place = Path(os.path.realpath(path))  # `run` makes the target of a link
    # At least as long: SQLite adds -wal to the name, which may then be too long.
    return place.with_name(f".oncegate-doctor-{secrets.token_hex(8)}".ljust(len(place.name), "x"))


async def _tried(url: str, path: Path, tried: Path) -> tuple[Finding, ...]:
    """Open `tried` instead of `path`, and remove it: a gateway may open `path` at any moment, and must not lose it.
    Raises StoreUnusable."""
    try:
        return await _opened(f"sqlite:///{quote(str(tried))}?{urlsplit(url).query}")
    except StoreUnusable as error:
        raise StoreUnusable(str(error).replace(str(tried), str(path))) from None
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                os.unlink(f"{tried}{suffix}")


def _file(url: str) -> Path:
    return Path(unquote(urlsplit(url).path[1:])).absolute()


def _report(store: Store, what: str, findings: tuple[Finding, ...], notes: tuple[str, ...] | list[str]) -> Report:
    if store.settings is not None:
        raise_limit()  # as `oncegate run` does
        about_host = host_warnings(store.settings)
        findings = (*findings, *(Finding("few-descriptors", Severity.WARN, each) for each in about_host))
    lines = [without_password(store.url) + (f": {what}" if what else "")]
    for each in findings:
        lines += ["", *_wrapped(f"{_SEVERITIES[each.severity]:8} {each.name}: {each.text}", "", " " * 9)]
        changes = CHANGES.get(each.name, {})
        wide = max(map(len, changes), default=0)
        for where, change in changes.items():
            lines += _wrapped(f"{where:{wide}}  {change}", " " * 9, " " * (wide + 11))
    lines += ["", *(line for note in notes for line in _wrapped(note, "", "  "))]
    good = not any(each.severity is Severity.REFUSE for each in findings)
    if good:
        lines.append("guarded requests would be served")
    else:
        lines.append("guarded requests would be refused, until what is REFUSED above is changed")
    return Report("\n".join(lines), good)


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )

"""What the URL of a store says: where it is, and how it is to be used. No refusal quotes what may be a password.

::

    memory://[?max_records=N&max_bytes=SIZE]
    sqlite:///PATH[?durability=power|process&max_bytes=SIZE]
    redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]
    rediss://…                                               the same over TLS
    redis+unix://[[USER]:PASSWORD@]/PATH[?db=DB]             also unix://
    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT],HOST,HOST/NAME[/DB]     also rediss+sentinel://
    redis+cluster://[[USER]:PASSWORD@]HOST[:PORT],HOST,HOST  also rediss+cluster://

Behind a Redis' `?`: `durability=single|replicated`, and with `replicated` `replicas=N` and `wait=DURATION`;
over TLS `ca`, `cert`, `key` (files), `server_name` and `verify=false`; before Sentinels
`sentinel_user` and `sentinel_password`. Of a cluster any of its nodes are named, and one that answers is enough; user,
password and TLS are the same for all of them.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from . import tls, units
from .addresses import NOT_BUILT, URL, host_and_port, scheme_of, server_name
from .faults import short

_TO_COME = ("postgresql", "postgres")
REDIS = (
    "redis", "rediss", "redis+unix", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster",
)  # fmt: skip
#: How long replicas may take to have a write: as long as a client's patience leaves room for.
_LONGEST_WAIT = 2_000


@dataclass(frozen=True, slots=True)
class RedisTls:
    """How a Redis that speaks TLS is known, and who we are to it. `context` is what the files were checked with."""

    context: ssl.SSLContext = field(repr=False, compare=False)
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """What a Redis store's URL names. `hosts` are Sentinels where `master` is given, and nodes of a `cluster`; `wait`
    in milliseconds; `replicas` 0 is durability `single`."""

    hosts: tuple[tuple[str, int], ...]
    path: str = ""
    master: str = ""
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    sentinel_user: str = ""
    sentinel_password: str = field(default="", repr=False)
    replicas: int = 0
    wait: int = 200
    tls: RedisTls | None = None
    cluster: bool = False


def store(url: str) -> str:
    """`url`, where it names a store that this version has. ValueError with what to write instead."""
    found = check_scheme(url)
    scheme = found["scheme"].lower()
    if found["fragment"]:
        raise ValueError("a # cannot stand here; in a password write %23")
    if scheme in REDIS:
        redis(url)
    else:
        (_memory if scheme == "memory" else _sqlite)(found)
        options(url)
    return scheme + url[len(scheme) :]  # RFC 3986 §3.1: a scheme is the same in capitals


def check_scheme(url: str) -> re.Match[str]:
    """The parts of a URL of some store."""
    found = URL.fullmatch(url)
    if found is None:
        raise ValueError("expected memory://, sqlite:///PATH or redis://HOST:PORT/DB")
    scheme = found["scheme"].lower()
    if scheme in _TO_COME:
        raise ValueError(f"a store at {scheme}:// is {NOT_BUILT}; use redis://, sqlite:/// or memory://")
    if scheme not in _OPTIONS:
        raise ValueError(f"no store is called {scheme}://; use memory://, sqlite:/// or redis://")
    return found


def with_option(url: str, name: str, text: str) -> str:
    """`url` with one more option, which stands in a field beside it. ValueError where it cannot be that."""
    scheme = scheme_of(url)
    if name == "db" and scheme.endswith("+cluster"):
        raise ValueError("a cluster has one database, which has no number; leave it out")
    if name == "db" and name not in _OPTIONS[scheme] and scheme in REDIS:
        raise ValueError("the number of a database stands behind the host; use redis://HOST:6379/1")
    _known(scheme, name)
    if re.search(rf"[?&]{name}(?:=|&|$)", url):
        raise ValueError("stands in the URL too; write it once")
    value = quote(text, safe="/")
    _OPTIONS[scheme][name](value)
    return f"{url}{'&' if '?' in url else '?'}{name}={value}"


def options(url: str) -> dict[str, int | str]:
    """What stands behind the `?` of a store's URL. ValueError where `store` would not accept it."""
    read: dict[str, int | str] = {}
    scheme, query = scheme_of(url), url.partition("?")[2]
    for pair in query.split("&") if query else ():
        name, _, text = pair.partition("=")
        _known(scheme, name)
        if name in read:
            raise ValueError(f"`{name}` stands there twice; use it once")
        try:
            read[name] = _OPTIONS[scheme][name](text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return read


def redis(url: str) -> RedisPlace:
    """What a Redis store's URL names. ValueError where `store` would not accept it."""
    found = URL.fullmatch(url)
    assert found is not None
    scheme = found["scheme"].lower()
    read = options(url)
    user, password = _credentials(found["user"])
    path, master, database, hosts = "", "", "", tuple[tuple[str, int], ...]()
    if scheme in ("unix", "redis+unix"):
        path, database = unquote(found["path"]), str(read.pop("db", ""))
        if found["where"] or path in ("", "/"):
            raise ValueError("the path of the socket is missing; use redis+unix:///run/redis.sock")
    elif scheme.endswith("+sentinel"):
        hosts = tuple(_redis_host(host, 26379) for host in found["where"].split(","))
        named = re.fullmatch(r"/([A-Za-z0-9._-]+)(?:/([0-9]{1,5}))?", found["path"])
        if named is None:
            raise ValueError(
                f"behind the Sentinels stands the name that they know the primary by; use {scheme}://HOST,HOST,HOST/NAME"
            )
        master, database = named[1], named[2] or ""
    elif scheme.endswith("+cluster"):
        hosts = tuple(_redis_host(host, 6379) for host in found["where"].split(","))
        if found["path"] not in ("", "/"):
            raise ValueError(f"a cluster has one database, which has no number; use {scheme}://HOST,HOST,HOST")
    else:
        hosts = (_redis_host(found["where"], 6379),)
        if not re.fullmatch(r"(?:/[0-9]{0,5})?", found["path"]):
            raise ValueError("behind the host stands the number of a database; use /0")
        database = found["path"][1:]
    replicas = _replicas(read)
    return RedisPlace(
        hosts,
        path,
        master,
        int(database or 0),
        user,
        password,
        str(read.get("sentinel_user", "")),
        str(read.get("sentinel_password", "")),
        replicas,
        int(read.get("wait", 200)),
        _tls(read) if scheme.startswith("rediss") else None,
        scheme.endswith("+cluster"),
    )


def _replicas(read: dict[str, int | str]) -> int:
    if read.get("durability", "single") == "replicated":
        if "replicas" not in read:
            raise ValueError("replicas is missing: how many there are that can be promoted; use &replicas=1")
        return int(read["replicas"])
    for name in ("replicas", "wait"):
        if name in read:
            raise ValueError(f"{name} is for durability=replicated; write that too, or leave it out")
    return 0


def _tls(read: dict[str, int | str]) -> RedisTls:
    verify = read.get("verify", "true") == "true"
    ca, cert, key, name = (str(read[it]) if it in read else None for it in ("ca", "cert", "key", "server_name"))
    if ca is not None and not verify:
        raise ValueError("ca is for what verify=false leaves undone; leave one of the two out")
    if key is not None and cert is None:
        raise ValueError("key is for the certificate in cert; write that too")
    context = tls.context(ca, verify=verify)
    if cert is not None:
        tls.identify(context, cert, key)
    return RedisTls(context, name)


def _credentials(user: str | None) -> tuple[str, str]:
    """`USER:PASSWORD@`, or `:PASSWORD@`. A word alone is a user to redis-py and a password to redis-cli: it is neither
    here, or a gate would log in as nobody."""
    name, _, password = (user or "").partition(":")
    if name and not password:
        raise ValueError("a password stands behind a colon; use :PASSWORD@ or USER:PASSWORD@")
    return unquote(name), unquote(password)


def _redis_host(where: str, otherwise: int) -> tuple[str, int]:
    if not where:
        raise ValueError("the host is missing; use redis://127.0.0.1:6379/0")
    try:
        return host_and_port(where, otherwise)
    except ValueError:
        raise ValueError(
            "the host and port cannot be read (in a password write %2F for /, %3F for ? and %23 for #); "
            "use redis://:PASSWORD@HOST:6379/0"
        ) from None


def _memory(found: re.Match[str]) -> None:
    if found["where"] or found["path"] or found["user"] is not None:
        raise ValueError("memory:// takes no place behind it; use memory://")


def _sqlite(found: re.Match[str]) -> None:
    path = found["path"]
    if found["where"] or found["user"] is not None:
        raise ValueError(f"a path stands behind three slashes; use sqlite:///{found['where']}{path}")
    if path.endswith("/") or not path:
        raise ValueError("the file is missing; use sqlite:///oncegate.db, or sqlite:////var/lib/oncegate.db")
    if path.startswith("/:memory:"):
        raise ValueError("a database in memory protects nothing; use memory://")


def _matching(pattern: str, refusal: str, make: Callable[[str], int | str] = str) -> Callable[[str], int | str]:
    """An option that `pattern` matches as a whole. `refusal` says what another one is, and what to use."""

    def read(text: str) -> int | str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"`{short(text)}` {refusal}")
        return make(text)

    return read


def _bytes(text: str) -> int:
    return units.size(text, least=1 << 20, most=1 << 44)


def _wait(text: str) -> int:
    if not 10 <= (wait := units.duration(text)) <= _LONGEST_WAIT:
        raise ValueError(f"`{short(text)}` is no time to wait for replicas; use 10ms to 2s")
    return wait


_DURABLE: dict[str, Callable[[str], int | str]] = {
    "durability": _matching("single|replicated", "is not read; use single or replicated"),
    "replicas": _matching("[1-9]", "is no number of replicas; use 1 to 9", int),
    "wait": _wait,
}
_TLS: dict[str, Callable[[str], int | str]] = {
    "ca": unquote,
    "cert": unquote,
    "key": unquote,
    "server_name": server_name,
    "verify": _matching("true|false", "is not read; use true or false"),
}
_SENTINEL: dict[str, Callable[[str], int | str]] = {"sentinel_user": unquote, "sentinel_password": unquote}
_DATABASE = _matching("[0-9]{1,5}", "is no number of a database; use 0")
_OPTIONS: dict[str, dict[str, Callable[[str], int | str]]] = {
    "memory": {
        "max_records": _matching("[1-9][0-9]{0,8}", "is no number of records; use 100000", int),
        "max_bytes": _bytes,
    },
    "sqlite": {
        "durability": _matching("power|process", "is not read; use power (the default) or process"),
        "max_bytes": _bytes,
    },
    "redis": _DURABLE,
    "rediss": _DURABLE | _TLS,
    "unix": _DURABLE | {"db": _DATABASE},
    "redis+unix": _DURABLE | {"db": _DATABASE},
    "redis+sentinel": _DURABLE | _SENTINEL,
    "rediss+sentinel": _DURABLE | _SENTINEL | _TLS,
    "redis+cluster": _DURABLE,
    "rediss+cluster": _DURABLE | _TLS,
}


def _known(scheme: str, name: str) -> None:
    known = _OPTIONS[scheme]
    if name in known:
        return
    if name in _TLS and scheme.startswith("redis"):
        raise ValueError(f"`{name}` is for a Redis that speaks TLS; use {scheme.replace('redis', 'rediss')}://")
    raise ValueError(f"`{short(name)}` is not read behind the ? of {scheme}://; use {' or '.join(known)}")

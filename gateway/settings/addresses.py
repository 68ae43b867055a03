"""Where to listen, where to forward, where to store. No refusal quotes what may be a password."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from .faults import short

EVERY_INTERFACE = "0.0.0.0"  # noqa: S104

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?")
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<user>[^/?#]*)@)?(?P<where>[^/?#]*)"
    r"(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?P<fragment>#.*)?",
    re.DOTALL,
)
_STORES_TO_COME = ("rediss", "unix", "redis+unix", "redis+sentinel", "redis+cluster", "postgresql", "postgres")
NOT_BUILT = "known, but not built yet in this version"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Written `0.0.0.0:8080`, `[::1]:8080`, or with the port alone for every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that `text` names. ValueError with the corrected value where it names none."""
        if (url := _URL.fullmatch(text)) is not None:
            raise ValueError(f"an address is not a URL; use {url['where'] or '127.0.0.1:8080'}")
        host, colon, port = text.rpartition(":")
        if text.count(":") > 1 and not text.startswith("["):
            if _is_ipv6(host) and port.isdecimal():
                raise ValueError(f"an IPv6 address stands in brackets; use [{host}]:{port}")
            raise ValueError(f"expected an address such as 127.0.0.1:8080, found `{short(text)}`")
        if not colon and _HOST.fullmatch(text) and not text.isdecimal():
            raise ValueError(f"the port is missing; use {text}:8080")
        if not port.isascii() or not port.isdecimal():
            raise ValueError(f"expected an address such as 127.0.0.1:8080, found `{short(text)}`")
        return cls(_host(host) if host else EVERY_INTERFACE, _port(port, least=0))

    def overlaps(self, other: Address) -> bool:
        """Whether both cannot be listened on at once. Port 0 is whichever is free."""
        if self.port != other.port or not self.port:
            return False
        everywhere = (EVERY_INTERFACE, "::")
        mine, theirs = ("127.0.0.1" if host == "localhost" else host for host in (self.host, other.host))
        return mine == theirs or mine in everywhere or theirs in everywhere


def upstream(url: str) -> tuple[str, int]:
    """The host and port of `http://HOST:PORT`."""
    found = _URL.fullmatch(url)
    if found is None:
        try:
            meant = Address.parse(url)
        except ValueError:
            raise ValueError("expected a URL such as http://127.0.0.1:9000") from None
        host = "127.0.0.1" if meant.host == EVERY_INTERFACE else meant.host
        raise ValueError(f"the scheme is missing; use http://{Address(host, meant.port)}")
    scheme, where = found["scheme"].lower(), found["where"]
    if scheme == "https":
        raise ValueError(f"https is {NOT_BUILT}; use http://")
    if scheme != "http":
        raise ValueError(f"an upstream speaks http, not {scheme}; use http://{where or '127.0.0.1:9000'}")
    if found["user"] is not None or "@" in found["path"]:
        raise ValueError("holds a user name or password, which is never sent; use http://HOST:PORT")
    if found["path"] not in ("", "/") or found["query"] or found["fragment"]:
        raise ValueError(f"holds a path, and a request goes on with the path that the client sent; use http://{where}")
    try:
        host, port = _host_and_port(where, 80)
    except ValueError as error:
        raise ValueError(f"{error}; use a URL such as http://127.0.0.1:9000") from None
    return host, port or 80


def store(url: str) -> str:
    """`url`, where it names a store that this version has."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("expected memory://, sqlite:///PATH or redis://HOST:PORT/DB")
    scheme = found["scheme"].lower()
    if scheme in _STORES_TO_COME:
        raise ValueError(f"a store at {scheme}:// is {NOT_BUILT}; use redis://, sqlite:/// or memory://")
    if scheme not in _STORES:
        raise ValueError(f"no store is called {scheme}://; use memory://, sqlite:/// or redis://")
    if found["fragment"]:
        raise ValueError("a # cannot stand here; in a password write %23")
    _STORES[scheme](found)
    return url


def scheme_of(url: str) -> str:
    return url.partition(":")[0].lower()


def without_password(url: str) -> str:
    """`url` as it may be shown to people."""
    return re.sub(r"//[^/?#]*@", "//…@", url)


def _memory(found: re.Match[str]) -> None:
    if found["where"] or found["path"] or found["query"] or found["user"] is not None:
        raise ValueError("memory:// takes nothing behind it; use memory://")


def _sqlite(found: re.Match[str]) -> None:
    path = found["path"]
    if found["where"] or found["user"] is not None:
        raise ValueError(f"a path stands behind three slashes; use sqlite:///{found['where']}{path}")
    if path.endswith("/") or not path:
        raise ValueError("the file is missing; use sqlite:///oncegate.db, or sqlite:////var/lib/oncegate.db")
    if path.startswith("/:memory:"):
        raise ValueError("a database in memory protects nothing; use memory://")
    if found["query"] not in (None, "?durability=power", "?durability=process"):
        raise ValueError(f"`{found['query']}` is not read; use ?durability=power (the default) or ?durability=process")


def _redis(found: re.Match[str]) -> None:
    if not found["where"]:
        raise ValueError("the host is missing; use redis://127.0.0.1:6379/0")
    try:
        _host_and_port(found["where"], 6379)
    except ValueError:
        raise ValueError(
            "the host and port cannot be read (in a password write %2F for /, %3F for ? and %23 for #); "
            "use redis://:PASSWORD@HOST:6379/0"
        ) from None
    if not re.fullmatch(r"(?:/[0-9]{0,5})?", found["path"]):
        raise ValueError("behind the host stands the number of a database; use /0")
    if (query := found["query"]) is not None:
        named = [pair.partition("=")[0] for pair in query[1:].split("&")]
        if any(name in ("durability", "replicas", "wait") for name in named):
            raise ValueError(f"durability is {NOT_BUILT}; leave out everything from the ? on")
        raise ValueError("nothing behind a ? is read; leave it out")


_STORES = {"memory": _memory, "sqlite": _sqlite, "redis": _redis}


def _host_and_port(where: str, otherwise: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]+))?", where)
    if found is None:
        raise ValueError("the host and port cannot be read")
    return _host(found[1]), _port(found[2], least=1) if found[2] else otherwise


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        if not _is_ipv6(text[1:-1]):
            raise ValueError(f"`{short(text)}` is not an IPv6 address")
        return text[1:-1]
    if not _HOST.fullmatch(text):
        raise ValueError(f"`{short(text)}` is not the name or address of a host")
    return text


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _port(text: str, *, least: int) -> int:
    if len(text) > 5 or not least <= int(text) <= 65535:
        raise ValueError(f"{short(text)} is not a port ({least}–65535)")
    return int(text)

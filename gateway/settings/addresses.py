"""Where to listen, where to forward, where to store. No refusal quotes what may be a password."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from . import units
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
#: The schemes of an upstream, and the port where the URL names none.
_PORTS = {"http": 80, "https": 443}


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


class Upstream(NamedTuple):
    """Where a service listens, and whether it speaks TLS there."""

    host: str
    port: int
    tls: bool = False


def upstream(url: str) -> Upstream:
    """What `http://HOST:PORT` or `https://HOST:PORT` names."""
    found = _URL.fullmatch(url)
    if found is None:
        try:
            meant = Address.parse(url)
        except ValueError:
            raise ValueError("expected a URL such as http://127.0.0.1:9000") from None
        host = "127.0.0.1" if meant.host == EVERY_INTERFACE else meant.host
        meant_scheme = "https" if meant.port == _PORTS["https"] else "http"
        raise ValueError(f"the scheme is missing; use {meant_scheme}://{Address(host, meant.port)}")
    scheme, where = found["scheme"].lower(), found["where"]
    if scheme not in _PORTS:
        raise ValueError(f"an upstream speaks http or https, not {scheme}; use http://{where or '127.0.0.1:9000'}")
    if found["user"] is not None or "@" in found["path"]:
        raise ValueError(f"holds a user name or password, which is never sent; use {scheme}://HOST:PORT")
    if found["path"] not in ("", "/") or found["query"] or found["fragment"]:
        meant_url = f"{scheme}://{where}"
        raise ValueError(f"holds a path, and a request goes on with the path that the client sent; use {meant_url}")
    try:
        host, port = _host_and_port(where, _PORTS[scheme])
    except ValueError as error:
        raise ValueError(f"{error}; use a URL such as {scheme}://127.0.0.1:9000") from None
    return Upstream(host, port, scheme == "https")


def server_name(text: str) -> str:
    """The name, or the address, that a certificate is made out to."""
    try:
        return _host(text)
    except ValueError as error:
        raise ValueError(f"{error}; use the name in the certificate alone, such as shop.internal") from None


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
    return scheme + url[len(scheme) :]  # RFC 3986 §3.1: a scheme is the same in capitals


def store_options(url: str) -> dict[str, int | str]:
    """What stands behind the `?` of a store's URL that `store` has accepted."""
    scheme, query = scheme_of(url), url.partition("?")[2]
    return _options(scheme, query) if query and scheme in _OPTIONS else {}


def scheme_of(url: str) -> str:
    return url.partition(":")[0].lower()


def without_password(url: str) -> str:
    """`url` as it may be shown to people."""
    return re.sub(r"//[^/?#]*@", "//…@", url)


def _memory(found: re.Match[str]) -> None:
    if found["where"] or found["path"] or found["user"] is not None:
        raise ValueError("memory:// takes no place behind it; use memory://")
    if found["query"] is not None:
        _options("memory", found["query"][1:])


def _sqlite(found: re.Match[str]) -> None:
    path = found["path"]
    if found["where"] or found["user"] is not None:
        raise ValueError(f"a path stands behind three slashes; use sqlite:///{found['where']}{path}")
    if path.endswith("/") or not path:
        raise ValueError("the file is missing; use sqlite:///oncegate.db, or sqlite:////var/lib/oncegate.db")
    if path.startswith("/:memory:"):
        raise ValueError("a database in memory protects nothing; use memory://")
    if found["query"] is not None:
        _options("sqlite", found["query"][1:])


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


def _durability(text: str) -> str:
    if text not in ("power", "process"):
        raise ValueError(f"`{short(text)}` is not read; use power (the default) or process")
    return text


def _records(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"`{short(text)}` is no number of records; use 100000")
    return int(text)


def _bytes(text: str) -> int:
    return units.size(text, least=1 << 20, most=1 << 44)


_OPTIONS: dict[str, dict[str, Callable[[str], int | str]]] = {
    "memory": {"max_records": _records, "max_bytes": _bytes},
    "sqlite": {"durability": _durability, "max_bytes": _bytes},
}


def _options(scheme: str, query: str) -> dict[str, int | str]:
    known, read = _OPTIONS[scheme], dict[str, int | str]()
    for pair in query.split("&"):
        name, _, text = pair.partition("=")
        if name not in known:
            raise ValueError(f"`{short(name)}` is not read behind the ? of {scheme}://; use {' or '.join(known)}")
        if name in read:
            raise ValueError(f"`{name}` stands there twice; use it once")
        try:
            read[name] = known[name](text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return read


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
    # A label of a name has 1 to 63 characters (RFC 1035 §2.3.4), or no resolver takes it.
    if not _HOST.fullmatch(text) or not all(0 < len(label) < 64 for label in text.split(".")):
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

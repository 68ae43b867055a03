"""Where to listen, and where to forward. No refusal quotes what may be a password."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import NamedTuple

from .faults import short

EVERY_INTERFACE = "0.0.0.0"  # noqa: S104

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?")
URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<user>[^/?#]*)@)?(?P<where>[^/?#]*)"
    r"(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?P<fragment>#.*)?",
    re.DOTALL,
)
NOT_BUILT = "known, but not built yet in this version"
#: The schemes of an upstream, and the port where the URL names none.
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on, written `0.0.0.0:8080`, `[::1]:8080`, or `:8080` for every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that `text` names. ValueError with the corrected value where it names none."""
        if (url := URL.fullmatch(text)) is not None:
            raise ValueError(f"an address is not a URL; use {url['where'] or '127.0.0.1:8080'}")
        host, colon, port = text.rpartition(":")
        if text.isascii() and text.isdecimal():
            number = _port(text, least=0)
            raise ValueError(
                f"{number} names a port and no interface. Use 127.0.0.1:{number} for this host only, or "
                f"0.0.0.0:{number} for every interface"
            )
        if text.count(":") > 1 and not text.startswith("["):
            if _is_ipv6(host) and port.isdecimal():
                raise ValueError(f"an IPv6 address stands in brackets; use [{host}]:{port}")
            raise ValueError(f"expected an address such as 127.0.0.1:8080, found `{short(text)}`")
        if not colon and _HOST.fullmatch(text) and not text.isdecimal():
            raise ValueError(f"the port is missing; use {text}:8080")
        if not port.isascii() or not port.isdecimal():
            raise ValueError(f"expected an address such as 127.0.0.1:8080, found `{short(text)}`")
        return cls(_host(host) if host else EVERY_INTERFACE, _port(port, least=0))

    @property
    def loopback(self) -> bool:
        """Whether nobody but this host can connect."""
        return loopback(self.host)

    def overlaps(self, other: Address | UnixPath) -> bool:
        """Whether both cannot be listened on at once. Port 0 is whichever is free."""
        if isinstance(other, UnixPath) or self.port != other.port or not self.port:
            return False
        everywhere = (EVERY_INTERFACE, "::")
        mine, theirs = ("127.0.0.1" if host == "localhost" else host for host in (self.host, other.host))
        return mine == theirs or mine in everywhere or theirs in everywhere


#: Bytes of a Unix socket's path: the kernel takes 108, and a new socket is made under a longer name first.
_LONGEST_PATH = 96


@dataclass(frozen=True, slots=True)
class UnixPath:
    """A Unix socket. Written `unix:/run/oncegate.sock`."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @classmethod
    def parse(cls, text: str) -> UnixPath:
        """The socket that `text` names. ValueError with the corrected value where it names none."""
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            raise ValueError(f"one slash begins the path; use unix:/{path.lstrip('/')}")
        if not path.startswith("/") or path.endswith("/") or "\0" in path:
            raise ValueError("expected the whole path of a Unix socket, such as unix:/run/oncegate.sock")
        if len(path.encode()) > _LONGEST_PATH:
            raise ValueError(f"the path of a Unix socket has {_LONGEST_PATH} bytes at most; use a shorter one")
        return cls(path)

    def overlaps(self, other: Address | UnixPath) -> bool:
        """Whether both cannot be listened on at once."""
        return self == other


class Upstream(NamedTuple):
    """Where a service listens, and whether it speaks TLS there. `path` is that of a Unix socket, which has no host and
    port."""

    host: str
    port: int
    tls: bool = False
    path: str = ""


def upstream(url: str) -> Upstream:
    """What `http://HOST:PORT`, `https://HOST:PORT` or `unix:/PATH` names."""
    if url.startswith("unix:"):
        return Upstream("localhost", 80, path=UnixPath.parse(url).path)
    found = URL.fullmatch(url)
    if found is None:
        try:
            meant = Address.parse(f":{url}" if url.isdecimal() else url)
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
        host, port = host_and_port(where, _PORTS[scheme])
    except ValueError as error:
        raise ValueError(f"{error}; use a URL such as {scheme}://127.0.0.1:9000") from None
    return Upstream(host, port, scheme == "https")


def server_name(text: str) -> str:
    """The name, or the address, that a certificate is made out to."""
    try:
        return _host(text)
    except ValueError as error:
        raise ValueError(f"{error}; use the name in the certificate alone, such as shop.internal") from None


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network(text: str) -> Network:
    """The addresses that `10.0.0.0/8` or `::1` names."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"expected addresses such as 10.0.0.0/8, found `{short(text)}`") from None
    raise ValueError(f"`{short(text)}` has more bits than its mask; use {meant}")


def loopback(host: str) -> bool:
    """Whether `host` is this one. A name other than localhost may lead anywhere."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def scheme_of(url: str) -> str:
    return url.partition(":")[0].lower()


def without_password(url: str) -> str:
    """`url` as it may be shown to people."""
    return re.sub(r"([?&]\w*password=)[^&#]*", r"\1…", re.sub(r"//[^/?#]*@", "//…@", url))


def host_and_port(where: str, otherwise: int) -> tuple[str, int]:
    """What `HOST[:PORT]` names. ValueError where it names none."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]+))?", where)
    if found is None:
        raise ValueError("the host and port cannot be read")
    return _host(found[1]), _port(found[2], least=1) if found[2] else otherwise


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        if not _is_ipv6(text[1:-1]):
            raise ValueError(f"`{short(text)}` is not an IPv6 address")
        return text[1:-1]
    if text.isascii() and text.isdecimal():
        raise ValueError(f"`{short(text)}` is a number, and not the name or address of a host")
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

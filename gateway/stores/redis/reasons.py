"""Why there is no connection to a server, in words that say what to look at."""

from __future__ import annotations

from .servers import Tls

_CERTIFICATE = (
    "; it most likely wants a client certificate, by an authority that it trusts: `cert` and `key` in the store's URL"
)
_PLAIN = "; it may speak TLS only: rediss:// in the store's URL"


def unreached(error: OSError, tls: Tls | None, *, within: float) -> str:
    """Of an attempt to connect. `within`: the seconds that it had."""
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no answer within {within:g} s"
    said = str(error) or repr(error)
    return said + (_CERTIFICATE if tls is not None and "ALERT" in said else "")


def hung_up(why: str, tls: Tls | None, *, socket: bool = False) -> str:
    """Of a connection that ended before anything was answered over it. A server that wants a certificate says so in an
    alert behind the handshake (TLS 1.3), which its hanging up may overtake. `socket`: a Unix socket's, which no TLS
    is spoken over."""
    return f"hung up before it answered ({why})" + ("" if socket else _PLAIN if tls is None else _CERTIFICATE)

"""Why a server cannot be used, in words that say what to look at, and under the name of the finding for it."""

from __future__ import annotations

import socket
import ssl

from ...ports import StoreAway
from .pipeline import RedisError
from .servers import Tls

_CERTIFICATE = (
    "; it most likely wants a client certificate, by an authority that it trusts: `cert` and `key` in the store's URL"
)
_PLAIN = "; it may speak TLS only: rediss:// in the store's URL"
_NO_TLS = "; it may speak no TLS: redis:// in the store's URL"

UNREACHABLE, TLS, REFUSED, READ_ONLY, IS_A_CLUSTER = "unreachable", "tls", "refused", "read-only", "is-a-cluster"
WRONG_PASSWORD, NO_PASSWORD, NO_DATABASE = "wrong-password", "no-password", "no-database"
NOT_PERMITTED, NO_PRIMARY = "not-permitted", "no-primary"

#: Error codes of Redis that say the cause alone, whatever was asked.
_CODES = {"WRONGPASS": WRONG_PASSWORD, "NOAUTH": NO_PASSWORD, "NOPERM": NOT_PERMITTED}
_HINTS = {
    WRONG_PASSWORD: "; check the user and the password in the store's URL",
    NO_PASSWORD: "; it wants a password: redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST",
    NO_DATABASE: "; it has no database of that number (16 by default, from 0 to 15): redis://HOST/0",
    IS_A_CLUSTER: "; name it as a cluster: redis+cluster://HOST,HOST,HOST",
}


class Unreached(StoreAway):
    """A server that cannot be used, and the `name` of the finding for it. Nothing was done."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why, ambiguous=False)
        self.name = name


def unreached(error: OSError, tls: Tls | None, *, within: float) -> Unreached:
    """Of an attempt to connect. `within`: the seconds that it had."""
    if isinstance(error, TimeoutError) and not error.errno:
        hint = "" if tls is None else "; if it speaks no TLS: redis:// in the store's URL"
        return Unreached(UNREACHABLE, f"no answer within {within:g} s{hint}")
    said = str(error) or repr(error)
    if isinstance(error, socket.gaierror):
        return Unreached(UNREACHABLE, f"its name cannot be resolved ({said})")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreached(TLS, f"its certificate is not trusted: {said}")
    if isinstance(error, ssl.SSLError):
        hint = _CERTIFICATE if "ALERT" in said else _NO_TLS
        return Unreached(TLS, f"the TLS handshake failed: {said}{hint}")
    return Unreached(UNREACHABLE, said)


def hung_up(why: str, tls: Tls | None, *, socket: bool = False) -> Unreached:
    """Of a connection that ended before anything was answered over it. A server that wants a certificate says so in an
    alert behind the handshake (TLS 1.3), which its hanging up may overtake. `socket`: a Unix socket's, which no TLS
    is spoken over."""
    hint = "" if socket else _PLAIN if tls is None else _CERTIFICATE
    return Unreached(UNREACHABLE if tls is None else TLS, f"hung up before it answered ({why}){hint}")


def refused(command: str, error: RedisError, hint: str = "") -> Unreached:
    """Return the reason that an error reply to one of the first commands on a connection gives. `hint` stands in for
    what the cause itself says to look at."""
    name = _CODES.get(error.code, REFUSED)
    if name == REFUSED and command == "SELECT":
        name = IS_A_CLUSTER if "cluster mode" in str(error) else NO_DATABASE if error.code == "ERR" else REFUSED
    elif command == "CLUSTER" and "cluster support disabled" in str(error):
        hint = "; it is no cluster: redis://HOST"
    elif name == REFUSED and command == "AUTH" and error.code == "ERR":
        name = WRONG_PASSWORD  # the server has no password, or knows no users
    return Unreached(name, f"refused {command}: {error}{hint or _HINTS.get(name, '')}")

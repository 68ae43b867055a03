"""How a server that speaks TLS is known, and how a listener shows who it is. Contexts are made where the file is
checked, and used for every connection until it is read anew: another is made then, because one that lives trusts for
good whom it once trusted, and goes on resuming the sessions that it began."""

from __future__ import annotations

import ssl
from pathlib import Path

_INSTEAD = "use a PEM file with the certificates of the authorities that are trusted"


def context(ca: str | None, *, verify: bool, protocol: str = "") -> ssl.SSLContext:
    """A client's context: TLS 1.2 or later, certificates checked against `ca` or else the system's store, and
    `protocol` asked for by ALPN.

    ValueError where `ca` is no such file. Nothing is resumed, and there is no early data: Python's ssl sends
    none, so no byte of a request leaves before the handshake is finished.
    """
    pem = None if ca is None else _pem(ca)
    try:
        made = ssl.create_default_context(cafile=None if pem is None else ca)
    except (ssl.SSLError, OSError):
        raise ValueError(f"{ca} holds no certificate that can be read; {_INSTEAD}") from None
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # In a handshake of TLS 1.2 within the connection, what was written would wait where nobody can count it: an
    # answer that came before the request had left would be taken for one that came after.
    made.options |= ssl.OP_NO_RENEGOTIATION
    if protocol:
        made.set_alpn_protocols([protocol])
    return made


def identify(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    """Show the certificate in `cert` to whoever asks for one. ValueError where the files hold no such pair."""
    for path in dict.fromkeys((cert, key or cert)):
        try:
            _pem(path, "use PEM files with a certificate and its key")
        except ValueError as error:
            raise ValueError(f"cert, key: {error}") from None
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")  # nobody is there to be asked for one
    except (ssl.SSLError, OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        where = cert if key is None else f"{cert} and {key}"
        raise ValueError(
            f"cert, key: no certificate with its key can be read from {where} ({why}); use PEM files"
        ) from None


def _pem(path: str, instead: str = _INSTEAD) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"there is no such file: {path}; {instead}") from None
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read: {why}; {instead}") from None


_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def serving(cert: str, key: str | None, *, minimum: str, client_ca: str | None, required: bool) -> ssl.SSLContext:
    """A listener's context: the certificate in `cert`, TLS of `minimum` or later; clients must show a certificate
    that `client_ca` has signed, or may, where there is one.

    ValueError where the files hold no such thing; its first argument is the field.
    """
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = _VERSIONS[minimum]
    made.options |= ssl.OP_NO_RENEGOTIATION
    # Of tickets one is enough, and it is sent after the handshake, where a client that never reads would not read it.
    made.num_tickets = 1
    made.set_alpn_protocols(["http/1.1"])
    identify(made, cert, key)
    if client_ca is not None:
        _pem(client_ca)
        try:
            made.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError):
            raise ValueError(f"{client_ca} holds no certificate that can be read; {_INSTEAD}") from None
        made.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return made

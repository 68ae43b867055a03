"""What a connection shows of its client."""

from __future__ import annotations

import asyncio
import ssl
from hashlib import sha256


def shown_certificate(transport: asyncio.Transport) -> bytes:
    """The SHA-256 of the certificate that the client has shown, in DER; empty where it has shown none."""
    secure = transport.get_extra_info("ssl_object")
    shown = secure.getpeercert(binary_form=True) if isinstance(secure, ssl.SSLObject) else None
    return sha256(shown).digest() if shown else b""

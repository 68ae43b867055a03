"""Who may come in. Probes and metrics are for everybody who can connect; all else is for operators."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from .problems import AdminProblem, Failed

#: What an orchestrator asks, and a scraper. Nothing of a key is in it.
OPEN = frozenset(("/live", "/ready", "/ready/guarded", "/metrics"))


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Lets operators in by `token` (RFC 6750), compared in constant time. Without one they come from this host only:
    where the listener is not on the `loopback` they are refused."""

    token: bytes = field(default=b"", repr=False)
    loopback: bool = True

    @property
    def middleware(self) -> Middleware:
        @web.middleware
        async def keeps(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path not in OPEN:
                self._look_at(request)
            return await handler(request)

        return keeps

    def _look_at(self, request: web.Request) -> None:
        """Raises Failed where the request may not come in."""
        self._refuse_pages(request)
        if not self.token:
            if not self.loopback:
                raise Failed(
                    AdminProblem.TOKEN_MISSING,
                    "Set admin.token or admin.token_file, or listen on 127.0.0.1; until then this listener serves "
                    "/live, /ready, /ready/guarded and /metrics alone.",
                )
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise Failed(
                AdminProblem.UNAUTHORIZED,
                "Send the field Authorization: Bearer TOKEN.",
                headers={"WWW-Authenticate": 'Bearer realm="oncegate"'},
            )
        if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self.token):
            raise Failed(
                AdminProblem.UNAUTHORIZED,
                "The token is another one.",
                headers={"WWW-Authenticate": 'Bearer realm="oncegate", error="invalid_token"'},
            )

    def _refuse_pages(self, request: web.Request) -> None:
        """A page that a browser on this host shows can reach the loopback too: by its own name for our address, or
        with a form that asks nobody first. Where no token is asked for these are the only doors to close."""
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Failed(AdminProblem.FOREIGN, "Ask from a command line, or from this listener's own pages.")
        if not self.token and self.loopback and not _names_this_host(host):
            raise Failed(AdminProblem.FOREIGN, "Ask by address: the field Host names 127.0.0.1, [::1] or localhost.")


def _names_this_host(host: str) -> bool:
    try:
        name = URL(f"http://{host}").host or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

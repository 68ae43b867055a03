"""TCP keepalive: the kernel finds out that a host has vanished, although nothing is sent to it."""

from __future__ import annotations

import socket
from typing import Protocol

#: Seconds of silence before the first probe, seconds between two probes, and how many without an answer end a
#: connection: after two minutes.
IDLE = 60
INTERVAL = 10
PROBES = 6


class Socket(Protocol):
    """A socket, or what an event loop shows of one."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def keep_alive(sock: Socket | None) -> None:
    """Probe the peer of this TCP socket, and the peers of the connections that it accepts. None for a closed one."""
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, IDLE), (socket.TCP_KEEPINTVL, INTERVAL), (socket.TCP_KEEPCNT, PROBES)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)

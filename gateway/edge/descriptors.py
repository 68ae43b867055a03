"""File descriptors: whether some are left (RLIMIT_NOFILE), and what is done where none are.

The loop tells nobody that it could not accept: libuv lets whoever stands in the queue in by a descriptor that it keeps
for that, and closes him at once, without a word; without it, it tries again and again, and takes a whole core. So some
are kept free of clients, for the service, the store and operators. The kernel gives the lowest that is free: the number
of a client's own says how many are taken. Once a second it is looked whether one can be had at all. While none can, the
one that is kept here is given up, so that the loop can let in each who comes, and he be cut off.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Callable, Iterable

from ..core.limit import Limit
from ..ports import Observer

#: What an OSError says of it: none left to this process, or to the host.
EXHAUSTED = (errno.EMFILE, errno.ENFILE)
#: Kept free of clients: so many, or an eighth where there are few.
_KEPT = 64
#: Opened for nothing, which asks for no permission; elsewhere than on Linux, to be read.
_AS_A_PLACE: int = getattr(os, "O_PATH", os.O_RDONLY)
#: Needed besides those of clients and upstreams: the store, listeners, files.
_BESIDES = 20


def raise_limit() -> None:
    """Raise this process's soft limit to its hard limit: many systems set the soft one for interactive programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems report a hard limit that no process can have
            pass


def shortage(clients: int, upstreams: Iterable[int]) -> str:
    """Why the limit is too low for so many clients and connections to upstreams; empty if it is not."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = clients + sum(upstreams) + _BESIDES
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return ""
    return (
        f"the limit of file descriptors is too low: it is {limit}, and `limits.connections` with the `connections` of "
        f"the upstreams needs {needed}. Raise the hard limit (ulimit -Hn), or lower `limits.connections`"
    )


class Descriptors:
    """Those of this process. `say` is told when some are left again."""

    def __init__(self, observer: Observer, say: Callable[..., None]) -> None:
        self._observer = observer
        self._say = say
        self._spare = _open()
        self._met = self._alarmed = False
        #: None can be had: whoever comes in is cut off.
        self.out = False

    def short(self, transport: asyncio.BaseTransport) -> Limit | None:
        """Whether this client's descriptor is one of those that are kept free. He is cut off without a word: one who
        is told something stays until he has read it."""
        if self.out:
            return Limit.DESCRIPTORS
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most == resource.RLIM_INFINITY:
            return None
        socket = transport.get_extra_info("socket")
        if socket is None:
            return None
        # The kernel gives the lowest number that is free.
        free = most - socket.fileno()
        return Limit.DESCRIPTORS if free <= min(_KEPT, most // 8) else None

    def limited(self, limit: Limit) -> None:
        """As the observer's, with an alarm where it is this limit: one, until some are left again."""
        self._observer.limited(limit)
        if limit is Limit.DESCRIPTORS:
            self._met = True
            if not self._alarmed:
                self._alarmed = True
                most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                self._observer.alarm(
                    "file descriptors have run out, or nearly: raise the limit (ulimit -n)", limit=most
                )

    def check(self) -> None:
        """Once a second."""
        if self._spare < 0:
            self._spare = _open()
        probe = _open()
        if probe >= 0:
            os.close(probe)
        self.out = probe < 0 or self._spare < 0
        if self.out:
            self.limited(Limit.DESCRIPTORS)
            self._give_up()
        elif self._alarmed and not self._met:
            self._alarmed = False
            self._say("info", "file descriptors are left again")
        self._met = self.out

    def _give_up(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def close(self) -> None:
        self._give_up()


def _open() -> int:
    """A descriptor, or -1 where none is left. Of the root, which is there in a jail without /dev too."""
    try:
        return os.open("/", _AS_A_PLACE | os.O_CLOEXEC)
    except OSError:
        return -1

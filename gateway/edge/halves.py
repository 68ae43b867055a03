"""Clients that have ended their side and still wait for an answer: are they there?

Behind an end a loop reads nothing more, and so does not hear of a reset before it writes, which may be when a long wait
is over. The kernel hears of it: such connections stand in an epoll that asks for nothing but errors, once each, and
the loop watches that. An end alone says nothing: whoever closes his socket whole looks the same, until he is sent
something, as one who has only asked all he wanted (`nc -N`, `shutdown(SHUT_WR)`), and is answered.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable


class Halves:
    """Those of one loop. Where there is no epoll nobody is watched, and a reset is heard with the next byte."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, descriptor: int, abort: Callable[[], None]) -> None:
        """Call `abort` once the connection whose socket is `descriptor` is reset."""
        if not hasattr(select, "epoll"):
            return
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._loop.add_reader(self._epoll.fileno(), self._look)
            self._epoll.register(descriptor, select.EPOLLET)
        except OSError:  # no descriptor is left, or it has gone: nobody is watched
            return
        self._watched[descriptor] = abort

    def forget(self, descriptor: int, abort: Callable[[], None]) -> None:
        """It is gone, and the kernel has forgotten it with its socket; the descriptor may be another's by now."""
        if self._watched.get(descriptor) == abort:
            del self._watched[descriptor]

    def _look(self) -> None:
        assert self._epoll is not None
        for descriptor, event in self._epoll.poll(0):
            if event & select.EPOLLERR and (abort := self._watched.pop(descriptor, None)) is not None:
                abort()

    def close(self) -> None:
        self._watched.clear()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

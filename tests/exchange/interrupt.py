"""What can befall a process at any moment: it is cut, stopped, killed, or stands still.

Everything that happens in a process begins with a callback of its `ProcessLoop`, and everything that it does to others
is a call of its driver. Both are points. An `Interruption` happens at the n-th point of its process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .virtual import VirtualLoop


class Killed(BaseException):
    """The process has ended: it leaves the handler that it was in. No handler of an error may notice that."""


class Process(Protocol):
    """What an interruption needs of a process."""

    def cut(self) -> None: ...

    def stop(self) -> None: ...

    def halt(self) -> None: ...

    def stand_still(self, seconds: float) -> None: ...

    def later(self, seconds: float, call: Callable[[], None]) -> None: ...


class Callback:
    """A callback of a process. It may be cancelled until it runs, also while it is held back."""

    def __init__(self, process: ProcessLoop, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._process = process
        self._call = call
        self._arguments = arguments
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def run(self) -> None:
        process = self._process
        if self.cancelled or process.dead:
            return
        if process.still:
            process.held.append(self)
            return
        process.point("callback")
        if not (self.cancelled or process.dead):
            self._call(*self._arguments)


class ProcessLoop:
    """The callbacks and timers of one process: dropped once it is dead, held back while it stands still."""

    def __init__(self, loop: VirtualLoop, point: Callable[[str], None] = lambda name: None) -> None:
        self._loop = loop
        self.point = point
        self.dead = False
        self.still = False
        self.held: list[Callback] = []
        self.time = loop.time

    def call_soon(self, call: Callable[..., None], *arguments: Any) -> Callback:
        callback = Callback(self, call, arguments)
        self._loop.call_soon(callback.run)
        return callback

    def call_later(self, delay: float, call: Callable[..., None], *arguments: Any) -> Callback:
        callback = Callback(self, call, arguments)
        self._loop.call_later(delay, callback.run)
        return callback

    def stand_still(self, seconds: float) -> None:
        """Let time pass for all other processes, in the middle of a handler of this one."""
        self.still = True
        if not self._loop.run_for(seconds):
            self.dead = True
            raise Killed
        self.go_on()

    def stop_for(self, seconds: float) -> None:
        """Stand still from now on for so long. Between two handlers."""
        self.still = True
        self._loop.call_later(seconds, self.go_on)

    def go_on(self) -> None:
        self.still = False
        held, self.held = self.held, []
        for callback in held:
            self._loop.call_soon(callback.run)


class Wheel:
    """The deadlines of waiters, exact to the microsecond."""

    def __init__(self, loop: ProcessLoop, now: Callable[[], float]) -> None:
        self._loop = loop
        self._now = now
        self._timers: dict[int, Callback] = {}
        self._set = 0

    def __len__(self) -> int:
        return len(self._timers)

    def set(self, who: Any, at: float) -> int:
        tick = self._set = self._set + 1
        self._timers[tick] = self._loop.call_later(max(at - self._now(), 0), self._due, who, tick)
        return tick

    def clear(self, who: Any, tick: int) -> None:
        if (timer := self._timers.pop(tick, None)) is not None:
            timer.cancel()

    def _due(self, who: Any, tick: int) -> None:
        del self._timers[tick]
        who.due()


class Interruption:
    """Happens once, at the n-th point of a process, or after its first call of a name. `reached` says whether the
    process came so far."""

    def __init__(self, at: int | str) -> None:
        self.at = at
        self.reached = False
        self._count = 0

    def point(self, process: Process, name: str) -> None:
        self._count += 1
        if not self.reached and self.at in (self._count, name):
            self.reached = True
            self.act(process)

    def act(self, process: Process) -> None:
        raise NotImplementedError


class Cut(Interruption):
    """The machines of the process are cut: at once, or after so many seconds."""

    def __init__(self, at: int | str, seconds: float = 0.0) -> None:
        super().__init__(at)
        self.seconds = seconds

    def act(self, process: Process) -> None:
        if self.seconds:
            process.later(self.seconds, process.cut)
        else:
            process.cut()


class Stop(Interruption):
    """The grace of the process is over: it is stopped, and cut a second later."""

    def act(self, process: Process) -> None:
        process.stop()
        process.later(1.0, process.cut)


class Kill(Interruption):
    """The process ends there: nothing of it runs on, and what it wrote arrives."""

    def act(self, process: Process) -> None:
        process.halt()


class Pause(Interruption):
    """The process stands still there, for so many seconds."""

    def __init__(self, at: int | str, seconds: float) -> None:
        super().__init__(at)
        self.seconds = seconds

    def act(self, process: Process) -> None:
        process.stand_still(self.seconds)


__all__ = ["Cut", "Interruption", "Kill", "Killed", "Pause", "ProcessLoop", "Stop", "Wheel"]

"""One worker: `python -m gateway.workers.child DESCRIPTOR NUMBER PARENT`, started by a parent and by nobody else."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from typing import Any

import uvloop

from .. import __version__, failpoints
from ..app import App, Seat, StoreUnusable, settle_in
from ..exits import UNAVAILABLE, USAGE, unbound
from ..ops.capture import capture
from ..plan import Plan
from ..settings import Faults
from ..tasks import Tasks
from .channel import Channel
from .desk import answer

#: Seconds between two reports that nobody asked for: what a kill -9 can take from the totals.
_EVERY = 1.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    descriptor, number, parent = map(int, sys.argv[1:])
    # A terminal sends SIGINT to all of them; how they end is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    sys.exit(uvloop.run(_work(socket.socket(fileno=descriptor), number)))


def _die_with(parent: int) -> None:
    """Where the kernel can, it ends a worker whose parent is gone; elsewhere the worker reads the channel's end."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


async def _work(end: socket.socket, number: int) -> int:
    channel = await Channel.over(end)
    begin = await channel.hear()
    if begin is None:
        return 1
    plan = Plan.from_json(begin["plan"])
    code, why = 0, ""
    try:
        if begin["version"] != __version__:  # it was installed anew since its parent started
            raise StoreUnusable(
                f"this is version {__version__}, and its parent {begin['version']}; start the gate anew"
            )
        if spec := os.environ.get("ONCEGATE_FAILPOINT"):
            failpoints.arm(spec)
        seat = Seat(number, tuple(each if isinstance(each, int) else _pairs(each) for each in begin["places"]))
        app = App(plan.settings(), accept_new_keys=begin["accept_new_keys"], seat=seat)
        capture(app.log)
        await app.start()
    except Faults as faults:
        code, why = USAGE, str(faults)
    except StoreUnusable as error:
        code, why = UNAVAILABLE, str(error)
    except OSError as error:
        code, why = UNAVAILABLE, unbound(error)
    if code:
        channel.say(gave_up=[code, why])
        await channel.close()
        return code
    settle_in()
    await Worker(app, channel).serve()
    return 0


def _pairs(addresses: list[list[Any]]) -> tuple[tuple[str, int], ...]:
    return tuple((host, port) for host, port in addresses)


class Worker:
    """A gate that has started, and its parent."""

    def __init__(self, app: App, channel: Channel) -> None:
        self._app = app
        self._channel = channel
        self._stop = asyncio.Event()
        self._tasks = Tasks(lambda error: app.observer.alarm("a worker does not hear its parent", error=repr(error)))

    async def serve(self) -> None:
        """Until SIGTERM; then drain. More of them change nothing: a service manager may send one to every process,
        and so does the parent."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        self._tasks.start(self._hear())
        self._tasks.start(self._report())
        self._channel.say(up=True)
        await self._stop.wait()
        stopped = await self._app.stop()
        self._channel.say(told=self._told(), stopped=[stopped.cut_off, stopped.unsettled])
        await self._tasks.cancel()
        await self._channel.close()

    async def _hear(self) -> None:
        while (asked := await self._channel.hear()) is not None:
            if "accept" in asked:
                self._channel.say(id=asked["accept"], accepted=self._app.readiness.accept())
            elif "reload" in asked:
                self._channel.say(id=asked["reload"], why=await self._reload(Plan.from_json(asked["plan"])))
            elif "desk" in asked:
                self._tasks.start(self._at_desk(asked["desk"], asked["asked"]))
            elif "tell" in asked:
                self._channel.say(id=asked["tell"], told=self._told())
        os._exit(1)  # without a parent nobody would end us

    async def _reload(self, plan: Plan) -> str:
        """Go by another plan, which the parent has found to be good; says why not."""
        try:
            settings = await asyncio.to_thread(plan.settings)
        except Faults as faults:
            return str(faults)
        await self._app.take_up(settings)
        return ""

    async def _at_desk(self, number: int, asked: dict[str, Any]) -> None:
        self._channel.say(id=number, desk=await answer(self._app.desk, asked))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            if not self._channel.choked:
                self._channel.say(told=self._told())

    def _told(self) -> dict[str, object]:
        readiness = self._app.readiness
        return {
            "ready": readiness.ready(),
            "why": readiness.guarded(),
            "findings": dict(readiness.findings()),
            "metrics": self._app.tally.state(),
        }


if __name__ == "__main__":
    main()

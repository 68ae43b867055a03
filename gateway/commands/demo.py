"""`oncegate demo`, and the sample service by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click
import uvloop

from ..app import App
from ..demo import sample, story
from ..exits import UNAVAILABLE
from ..settings import Overrides, plain
from .speaking import give_up, serving


@click.command()
@click.option("--serve", is_flag=True, help="Leave the sample service and a gate running, to try by hand.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True, help="With --serve.")
@click.option("--admin", metavar="HOST:PORT", default="127.0.0.1:8081", show_default=True, help="With --serve.")
def demo(serve: bool, listen: str, admin: str) -> None:
    """A sample order service behind the gate, a burst of duplicates, and what happened, in a table."""
    if serve:
        serving(lambda: _serve_sample(Overrides(listen=listen, admin=admin)))
        return
    scenes = uvloop.run(story.play())
    good, sentence = story.verdict(scenes)
    click.echo(f"\n{story.table(scenes)}\n\n  {sentence}\n")
    sys.exit(0 if good else 1)


async def _serve_sample(overrides: Overrides) -> None:
    runner, port = await sample.serve(sample.OrderService())
    try:
        app = App(plain(f"http://127.0.0.1:{port}", environ=os.environ, overrides=overrides))
        await app.start()
        click.echo(_TRY.format(url=f"http://{overrides.listen}", admin=f"http://{overrides.admin}"))
        await app.serve()
    finally:
        await runner.cleanup()


_TRY = """
A sample order service is behind the gate. Try, in another terminal:

  curl -i {url}/orders -H 'Idempotency-Key: order-1' -d '{{"item": "book", "amount": 12.50}}'   # runs
  curl -i {url}/orders -H 'Idempotency-Key: order-1' -d '{{"item": "book", "amount": 12.50}}'   # replayed
  curl -i {url}/orders -H 'Idempotency-Key: order-1' -d '{{"item": "book", "amount": 99.00}}'   # refused: 422
  curl -s {admin}/metrics | grep '^oncegate_duplicates_total.*replayed'     # the duplicate that was caught

What follows is the gate's log, a line for each guarded request. Ctrl-C stops both.
"""


@click.command()
@click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help="The address that it listens on.")
@click.option("--port", metavar="PORT", default=9000, show_default=True, help="The port that it listens on.")
def sample_service(host: str, port: int) -> None:
    """The sample order service by itself, to put a gate before."""
    serving(lambda: _sample_alone(host, port))


async def _sample_alone(host: str, port: int) -> None:
    try:
        runner, bound = await sample.serve(sample.OrderService(), host, port)
    except OSError as error:
        give_up(UNAVAILABLE, f"{error.strerror or error}; choose another port with --port")
    click.echo(f"the sample order service listens on {host}:{bound}")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()

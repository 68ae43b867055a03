"""`oncegate`: the command line. Exit codes follow sysexits: 64 a bad configuration, 69 a store that can
never work, 0 after a graceful stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import uvloop

from . import __version__, doctor, failpoints, workers
from .app import App, StoreUnusable, settle_in
from .demo import sample, story
from .exits import UNAVAILABLE, USAGE, unbound
from .plan import Plan
from .settings import Faults, Overrides, Settings, load, plain, read_text, stores

T = TypeVar("T")

#: Click would say 2, which sysexits does not know.
click.UsageError.exit_code = USAGE


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="oncegate")
def main() -> None:
    """An idempotency gateway: one key, one effect, the same answer."""


def _give_up(code: int, message: str) -> NoReturn:
    click.echo(f"oncegate: {message}", err=True)
    sys.exit(code)


def _planned(config: Path | None, upstream: str | None, overrides: Overrides) -> tuple[Plan, Settings]:
    if config is not None and upstream is not None:
        _give_up(USAGE, "--upstream and --config do not go together: the file names its upstreams")
    if config is None and upstream is None:
        _give_up(
            USAGE,
            "say what to guard: --upstream http://127.0.0.1:9000 for one service with the defaults, "
            "or --config FILE (see config/minimal.yaml); `oncegate demo` shows what it does",
        )
    try:
        text = None if config is None else read_text(config)
        plan = Plan(text, str(config or ""), upstream or "", overrides)
        return plan, plan.settings()
    except Faults as faults:
        click.echo(str(faults), err=True)
        sys.exit(USAGE)


@main.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration.")
@click.option("--upstream", metavar="URL", help="Guard this service with the defaults, without a file.")
@click.option("--listen", metavar="HOST:PORT", help="Where clients come in.")
@click.option("--admin", metavar="HOST:PORT", help="Where /live, /ready and /metrics are.")
@click.option("--store", metavar="URL", help="memory://, sqlite:///PATH or redis://HOST:PORT/DB.")
@click.option("--service", metavar="NAME", help="The API whose keys these are; needed with a shared store.")
@click.option(
    "--workers",
    "count",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the address; for more than one core. Not with memory://.",
)
@click.option(
    "--accept-new-keys",
    is_flag=True,
    help="Take over a Redis whose marker names another configuration's keys: they are forgotten.",
)
def run(
    config: Path | None,
    upstream: str | None,
    listen: str | None,
    admin: str | None,
    store: str | None,
    service: str | None,
    count: int,
    accept_new_keys: bool,
) -> None:
    """Run the gate until SIGTERM or SIGINT."""
    plan, settings = _planned(config, upstream, Overrides(listen=listen, admin=admin, store=store, service=service))
    if count > 1 and settings.store.startswith("memory:"):
        _give_up(
            USAGE,
            f"--workers: {count} processes cannot share memory://, and each would run every key; "
            "use sqlite:///oncegate.db or redis://HOST:PORT/0",
        )
    if spec := os.environ.get("ONCEGATE_FAILPOINT"):
        try:
            failpoints.arm(spec)
        except ValueError as error:
            _give_up(USAGE, str(error))
    if count == 1:
        _serving(lambda: _run(plan, settings, accept_new_keys))
    else:
        sys.exit(_serving(lambda: workers.run(plan, settings, count, accept_new_keys=accept_new_keys)))


def _serving(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return uvloop.run(work())
    except Faults as faults:
        click.echo(str(faults), err=True)
        sys.exit(USAGE)
    except StoreUnusable as error:
        _give_up(UNAVAILABLE, str(error))
    except workers.GaveUp as error:
        _give_up(error.code, str(error))
    except OSError as error:
        _give_up(UNAVAILABLE, unbound(error))


async def _run(plan: Plan, settings: Settings, accept_new_keys: bool) -> None:
    app = App(settings, plan=plan, accept_new_keys=accept_new_keys)
    await app.start()
    settle_in()
    await app.serve()


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration: every fault with its path and line; exit 0 or 64."""
    try:
        settings = load(file, environ=os.environ)
    except Faults as faults:
        click.echo(str(faults), err=True)
        sys.exit(USAGE)
    routes = settings.routes.routes
    guarded = sum(route.policy.guard for route in routes)
    click.echo(f"{file}: good: {len(routes)} routes, {guarded} of them guarded, {len(settings.upstreams)} upstreams")


@main.command(name="doctor")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration.")
@click.option("--store", metavar="URL", help="memory://, sqlite:///PATH or redis://HOST:PORT/DB.")
def diagnose(config: Path | None, store: str | None) -> None:
    """Look at the store: what would make it lose keys, and what to change; exit 0 or 69."""
    if (config is None) == (store is None):
        _give_up(USAGE, "say what to look at: --config FILE, or --store URL")
    try:
        settings = None if config is None else load(config, environ=os.environ)
        url = settings.store if settings is not None else stores.store(store or "")
    except Faults as faults:
        click.echo(str(faults), err=True)
        sys.exit(USAGE)
    except ValueError as error:
        _give_up(USAGE, f"--store: {error}")
    report = uvloop.run(doctor.look_at(doctor.Store(url, settings)))
    click.echo(report.text)
    sys.exit(0 if report.good else UNAVAILABLE)


@main.command()
@click.option("--serve", is_flag=True, help="Leave the sample service and a gate running, to try by hand.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True, help="With --serve.")
@click.option("--admin", metavar="HOST:PORT", default="127.0.0.1:8081", show_default=True, help="With --serve.")
def demo(serve: bool, listen: str, admin: str) -> None:
    """A sample order service behind the gate, a burst of duplicates, and what happened, in a table."""
    if serve:
        _serving(lambda: _serve_sample(Overrides(listen=listen, admin=admin)))
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
        click.echo(_TRY.format(url="http://" + (overrides.listen or "")))
        await app.serve()
    finally:
        await runner.cleanup()


_TRY = """
A sample order service is behind the gate. Try, in another terminal:

  curl -i {url}/orders -H 'Idempotency-Key: order-1' -d '{{"item": "book", "amount": 12.50}}'   # runs
  curl -i {url}/orders -H 'Idempotency-Key: order-1' -d '{{"item": "book", "amount": 12.50}}'   # replayed
  curl -i {url}/orders -H 'Idempotency-Key: order-1' -d '{{"item": "book", "amount": 99.00}}'   # refused: 422

Ctrl-C stops it.
"""


@main.command(hidden=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=9000, show_default=True)
def sample_service(host: str, port: int) -> None:
    """The sample order service by itself, for the compose file."""
    uvloop.run(_sample_alone(host, port))


async def _sample_alone(host: str, port: int) -> None:
    runner, bound = await sample.serve(sample.OrderService(), host, port)
    click.echo(f"the sample order service listens on {host}:{bound}")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    main()

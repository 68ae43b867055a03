"""`oncegate run`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import click

from .. import failpoints, workers
from ..app import App, settle_in
from ..edge.descriptors import raise_limit
from ..exits import USAGE
from ..ops.capture import capture
from ..plan import Plan
from ..settings import Faults, Overrides, Settings, read_text
from .speaking import faulty, give_up, serving


@click.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration.")
@click.option("--upstream", metavar="URL", help="Guard this service with the defaults, without a file.")
@click.option("--listen", metavar="HOST:PORT", help="Where clients come in; or unix:/PATH.")
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
    as_json = settings.log.format == "json"
    if count > 1 and settings.store.startswith("memory:"):
        give_up(
            USAGE,
            f"--workers: {count} processes cannot share memory://, and each would run every key; "
            "use sqlite:///oncegate.db or redis://HOST:PORT/0",
            as_json=as_json,
        )
    if spec := os.environ.get("ONCEGATE_FAILPOINT"):
        try:
            failpoints.arm(spec)
        except ValueError as error:
            give_up(USAGE, str(error), as_json=as_json)
    raise_limit()
    if count == 1:
        serving(lambda: _run(plan, settings, accept_new_keys), as_json=as_json)
    else:
        work = partial(workers.run, plan, settings, count, accept_new_keys=accept_new_keys)
        sys.exit(serving(work, as_json=as_json))


def _planned(config: Path | None, upstream: str | None, overrides: Overrides) -> tuple[Plan, Settings]:
    if config is not None and upstream is not None:
        give_up(USAGE, "--upstream and --config do not go together: the file names its upstreams")
    if config is None and upstream is None:
        give_up(
            USAGE,
            "say what to guard: --upstream http://127.0.0.1:9000 for one service with the defaults, "
            "or --config FILE (see config/minimal.yaml); `oncegate demo` shows what it does",
        )
    try:
        text = None if config is None else read_text(config)
        plan = Plan(text, str(config or ""), upstream or "", overrides)
        return plan, plan.settings()
    except Faults as faults:
        faulty(faults)


async def _run(plan: Plan, settings: Settings, accept_new_keys: bool) -> None:
    app = App(settings, plan=plan, accept_new_keys=accept_new_keys)
    capture(app.log)
    await app.start()
    settle_in()
    await app.serve()

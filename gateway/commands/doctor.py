"""`oncegate doctor`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import uvloop

from .. import doctor
from ..exits import UNAVAILABLE, USAGE
from ..settings import stores
from .speaking import give_up, load


@click.command(name="doctor")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration.")
@click.option("--store", metavar="URL", help="memory://, sqlite:///PATH or redis://HOST:PORT/DB.")
def diagnose(config: Path | None, store: str | None) -> None:
    """Look at the store: what would make it lose keys, and what to change; exit 0 or 69."""
    if (config is None) == (store is None):
        give_up(USAGE, "say what to look at: --config FILE, or --store URL")
    settings = None if config is None else load(config)
    try:
        url = settings.store if settings is not None else stores.store(store or "")
    except ValueError as error:
        give_up(USAGE, f"--store: {error}")
    report = uvloop.run(doctor.look_at(doctor.Store(url, settings)))
    click.echo(report.text)
    sys.exit(0 if report.good else UNAVAILABLE)

"""`oncegate check`."""

from __future__ import annotations

from pathlib import Path

import click

from .speaking import load


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration: every fault with its path and line; exit 0 or 64."""
    settings = load(file)
    routes = settings.routes.routes
    guarded = sum(route.policy.guard for route in routes)
    upstreams = len(settings.upstreams)
    click.echo(
        f"{file}: good: {_many(len(routes), 'route')}, {guarded} of them guarded, {_many(upstreams, 'upstream')}"
    )
    for note in settings.notes:
        click.echo(f"{file}: note: {note}")


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" + "s" * (count != 1)

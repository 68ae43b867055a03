"""`oncegate`: the command line. Exit codes follow sysexits: 64 a bad configuration, 69 a store that can
never work, 0 after a graceful stop."""

from __future__ import annotations

import click

from . import __version__
from .commands.check import check
from .commands.demo import demo, sample_service
from .commands.diff import diff
from .commands.doctor import diagnose
from .commands.keys import keys
from .commands.policy import policy
from .commands.run import run
from .exits import USAGE

#: Click would say 2, which sysexits does not know.
click.UsageError.exit_code = USAGE


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `oncegate demo`; then `oncegate run --upstream http://127.0.0.1:9000` guards your service.",
)
@click.version_option(__version__, prog_name="oncegate")
def main() -> None:
    """An idempotency gateway: one key, one effect, the same answer."""


for word in (run, check, keys, policy, diff, diagnose, demo, sample_service):
    main.add_command(word)


if __name__ == "__main__":
    main()

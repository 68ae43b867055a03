"""How a command gives up, and how it runs what may."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import uvloop

from .. import workers
from ..app import StoreUnusable
from ..clock import HostClock
from ..exits import UNAVAILABLE, USAGE, unbound
from ..ops.log import line
from ..settings import Faults, Settings
from ..settings import load as load_file

T = TypeVar("T")


def give_up(code: int, message: str, *, as_json: bool = False) -> NoReturn:
    """Say why on stderr, and exit with `code`. `as_json`: as a line of the log."""
    if as_json:
        message = line(HostClock().wall(), "error", "the gateway did not start", reason=message, exit_code=code)
    else:
        message = f"oncegate: {message}"
    click.echo(message, err=True)
    sys.exit(code)


def faulty(faults: Faults) -> NoReturn:
    """Say all that is wrong with a file, and exit with 64."""
    click.echo(str(faults), err=True)
    sys.exit(USAGE)


def load(file: Path) -> Settings:
    """The settings of `file`; exits with 64 where it has faults."""
    try:
        return load_file(file, environ=os.environ)
    except Faults as faults:
        faulty(faults)


def serving(work: Callable[[], Coroutine[Any, Any, T]], *, as_json: bool = False) -> T:
    """Run `work` to its end; what keeps a gate from serving is said, with its exit code."""
    try:
        return uvloop.run(work())
    except Faults as faults:
        faulty(faults)
    except StoreUnusable as error:
        give_up(UNAVAILABLE, str(error), as_json=as_json)
    except workers.GaveUp as error:
        give_up(error.code, str(error), as_json=as_json)
    except OSError as error:
        give_up(UNAVAILABLE, unbound(error), as_json=as_json)

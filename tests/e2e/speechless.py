"""`python -m tests.e2e.speechless run …`: a gate that fails while it says an answer of status 418."""

from __future__ import annotations

from typing import Any

import gateway.edge.line as line
from gateway import cli
from gateway.core.reply import Again
from gateway.edge.render import render


def failing(reply: Any, **how: Any) -> bytes:
    said = reply.answer if isinstance(reply, Again) else reply.response
    if said.status == 418:
        raise RuntimeError("a fault of the gate")
    return render(reply, **how)


if __name__ == "__main__":
    line.render = failing
    cli.main()

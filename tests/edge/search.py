"""A search for bytes that break the edge, guided by what of its code they reach: atheris, which is libFuzzer.

    python -m tests.edge.search -max_total_time=600 FOLDER tests/edge/corpus

What it finds to reach more is written into FOLDER. What breaks is written beside, as `crash-…`, and can be given again.
The first byte says into how many pieces the rest is cut.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["gateway.edge", "gateway.core"]):
    from tests.edge.fuzz import Stand


def main() -> None:
    """Search until the time given is over, or something breaks."""
    stand = Stand()

    def one(data: bytes) -> None:
        if data:
            step = max(1, (len(data) - 1) // (data[0] % 8 + 1))
            stand.feed(data[1:], tuple(range(step, len(data), step)))

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""The log of one of several workers that write to one stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from gateway.ops.log import pieces


@given(st.lists(st.integers(0, 30).map(lambda n: b"x" * n + b"\n")).map(b"".join), st.integers(1, 40))
def test_pieces_are_whole_lines(lines: bytes, most: int) -> None:
    """Cut anywhere: nothing is lost, each piece ends with a line, and is longer than it may be only as one line."""
    found = list(pieces(lines, most))
    assert b"".join(found) == lines
    for piece in found:
        assert piece.endswith(b"\n")
        assert len(piece) <= most or piece.count(b"\n") == 1


WRITER = """
import sys
from gateway.clock import HostClock
from gateway.ops.worker_log import WorkerLog
log = WorkerLog(int(sys.argv[1]), sys.stdout, HostClock(), as_json=True)
log._queue.maxsize = 0
print("ready", file=sys.stderr, flush=True)
sys.stdin.read()
for n in range(4000):
    log._lines.append(log._line("info", "x" * (n % 300), {"n": n}) + "\\n")
    if n % 50 == 49:
        log._hand_over()
log.close(30)
"""


def test_lines_of_several_processes_are_not_mixed_in_a_pipe() -> None:
    """Three processes write 4,000 lines each into one pipe, many at once: 12,000 lines come out, each whole, and each
    says whose it is."""
    out, into = os.pipe()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(number)],
            stdin=subprocess.PIPE,
            stdout=into,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(3)
    ]
    os.close(into)
    for writer in writers:
        assert writer.stderr is not None
        assert writer.stderr.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    with os.fdopen(out, "rb") as reader:
        lines = [json.loads(line) for line in reader]
    for writer in writers:
        assert writer.stderr is not None
        with writer.stderr as said:
            assert said.read() == b""
        assert writer.wait(10) == 0
    for number in range(3):
        assert [line["n"] for line in lines if line["worker"] == number] == list(range(4000))

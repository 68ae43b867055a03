"""Whatever bytes a client sends, the gate answers in HTTP or closes, holds nothing back, and forwards nothing that it
refused. Found by Hypothesis from pieces of HTTP; the long form searches with atheris besides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.edge.fuzz import CORPUS, Stand
from tests.edge.test_bad_requests import ROWS

LONG = os.environ.get("ONCEGATE_FAULTS") == "long"

LINES = st.sampled_from(
    [
        b"POST /orders HTTP/1.1\r\n", b"POST /open/x HTTP/1.1\r\n", b"GET /open/x HTTP/1.1\r\n",
        b"HEAD /open/x HTTP/1.1\r\n", b"PUT /orders HTTP/1.0\r\n", b"OPTIONS * HTTP/1.1\r\n",
        b"POST http://b/orders HTTP/1.1\r\n", b"DELETE /open/../orders HTTP/1.1\r\n", b"CONNECT a:80 HTTP/1.1\r\n",
        b"TRACE /open/x HTTP/1.1\r\n", b"POST /orders HTTP/2.0\r\n", b"BREW /orders HTTP/1.1\r\n",
        b"POST /orders/caf\xc3\xa9 HTTP/1.1\r\n", b"GET /open/\xff HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    ]
)  # fmt: skip
FIELDS = st.sampled_from(
    [
        b"Host: a\r\n", b"Host: b\r\n", b"Host: a b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
        b"Content-Length: 70000\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
        b"Connection: close\r\n", b"Connection: keep-alive, X\r\n", b"Connection: Idempotency-Key\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n",
        b"Expect: x\r\n", b"Max-Forwards: 0\r\n", b"X: a\r\n b\r\n", b"X: \xff\r\n", b"X : y\r\n", b"X: a\n",
        b"\0: \r\n",
        b"Trailer: X\r\n", b"TE: trailers\r\n", b"Content_Length: 5\r\n", b"Prefer: wait=0\r\n",
        b"X: " + b"x" * 9000 + b"\r\n",
    ]
)  # fmt: skip
KEYS = st.integers(0, 10**9).map(lambda number: b"Idempotency-Key: k%d\r\n" % number)
BODIES = st.sampled_from(
    [
        b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", b"0\r\n\r\n",
        b"5\r\nhello",
        b"fffffffff\r\nhello", b"-1\r\n\r\n", b"x" * 70_000, b"\x88\x80\0\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
)  # fmt: skip
HEADS = st.tuples(
    LINES, st.lists(st.just(b"Host: a\r\n") | FIELDS | KEYS, max_size=6), st.sampled_from([b"\r\n"] * 8 + [b"\n", b""])
).map(lambda head: head[0] + b"".join(head[1]) + head[2])
WHOLE = st.tuples(
    st.sampled_from([b"POST /orders", b"PUT /orders", b"GET /open/x", b"HEAD /open/x", b"POST /open/x"]),
    st.one_of(st.just(b""), KEYS),
    st.sampled_from(
        [
            b"\r\n", b"Content-Length: 5\r\n\r\nhello",
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
            b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
            b"Max-Forwards: 7\r\nX_Y: z\r\nX: caf\xe9\r\n\r\n", b"TE: trailers\r\nConnection: TE, X\r\nX: y\r\n\r\n",
        ]
    ),
).map(lambda part: part[0] + b" HTTP/1.1\r\nHost: a\r\n" + part[1] + part[2])  # fmt: skip
STREAMS = st.lists(WHOLE | WHOLE | WHOLE | HEADS | BODIES | st.binary(max_size=20), min_size=1, max_size=8).map(
    b"".join
)


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    stand = Stand()
    yield stand
    stand.close()
    tried = stand.forwarded + stand.refused
    if tried > 200:  # side by side another process may have tried it all
        assert stand.forwarded > tried // 20, "hardly anything came through: nothing was tried"
        assert stand.refused > tried // 20, "hardly anything was refused: nothing was tried"


#: What breaks is not made smaller: the gate that it broke is the one that would be asked again.
SEARCH = settings(
    max_examples=2000 if LONG else 250,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
)


@SEARCH
@given(STREAMS, st.lists(st.integers(0, 400), max_size=5).map(tuple))
def test_any_stream_of_pieces(stand: Stand, sent: bytes, cuts: tuple[int, ...]) -> None:
    """However it is cut into packets: see tests/edge/fuzz.py for what must hold."""
    stand.feed(sent, cuts)


SEEDS = [row.sent for row in ROWS.values() if len(row.sent) < 4096]


@SEARCH
@given(st.sampled_from(SEEDS), st.sampled_from(SEEDS), st.data())
def test_any_request_with_a_few_bytes_changed(stand: Stand, sent: bytes, other: bytes, data: st.DataObject) -> None:
    """A raw request of the table, another behind it, and some bytes of both replaced, taken out or doubled."""
    changed = bytearray(sent + other)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        size = data.draw(st.integers(0, 4))
        changed[at : at + size] = data.draw(
            st.sampled_from([b"", b"\r\n", b"\n", b"\0", b" ", b"0", b"\xff", b":", b",", b"%"])
        )
    stand.feed(bytes(changed).replace(b"Idempotency-Key: k\r\n", b""))


def test_what_was_found_before(stand: Stand) -> None:
    """Each file of the corpus: the streams by which a search reached all that it did."""
    files = [file for file in CORPUS.iterdir() if file.is_file()]
    assert len(files) > 20
    for file in files:
        data = file.read_bytes()
        step = max(1, (len(data) - 1) // (data[0] % 8 + 1))
        stand.feed(data[1:], tuple(range(step, len(data), step)))


@pytest.mark.skipif(not LONG, reason="the long form: make faults")
def test_a_search_that_is_guided(tmp_path: Path) -> None:
    """Ten minutes of atheris, from the corpus on."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    seconds = int(os.environ.get("ONCEGATE_FUZZ_SECONDS", "600"))
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.edge.search", f"-max_total_time={seconds}", "-timeout=20", "-max_len=4096",
            f"-artifact_prefix={tmp_path}/", str(tmp_path), str(CORPUS),
        ],
        cwd=Path(__file__).parents[2], capture_output=True, timeout=seconds + 120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    assert b"Done " in done.stderr

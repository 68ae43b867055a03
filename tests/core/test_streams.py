"""Which content types are streams."""

from __future__ import annotations

import pytest

from gateway.core.policy import Policy
from gateway.core.streams import stream_types

BUILT_IN = Policy().streams


@pytest.mark.parametrize(
    "content_type",
    [
        b"text/event-stream",
        b"Text/Event-Stream; charset=utf-8",
        b"  text/event-stream  ;charset=utf-8",
        b"multipart/x-mixed-replace; boundary=frame",
        b"application/x-ndjson",
        b"application/ndjson;charset=utf-8",
        b"application/jsonl",
        b"application/x-jsonlines",
        b"application/json-lines",
        b"application/json-seq",
        b"application/geo+json-seq",
        b"application/stream+json",
        b"application/x-json-stream",
        b"application/grpc",
        b"application/grpc+proto",
        b"application/grpc-web-text",
        b"application/connect+json",
        b"application/connect+proto",
        b"application/vnd.amazon.eventstream",
        b'multipart/mixed; boundary="-"; deferSpec=20220824',
        b"multipart/mixed;boundary=graphql;subscriptionSpec=1.0",
        b'multipart/mixed; SubscriptionSpec = "1.0"; boundary=graphql',
        b"multipart/mixed; boundary=-; incrementalSpec=v0.2",
        b"multipart/mixed; " + b"x" * 200 + b"=1; deferSpec=1",
    ],
)
def test_a_content_type_that_says_so_is_a_stream(content_type: bytes) -> None:
    """A stream type matches in any case and with any parameters."""
    assert BUILT_IN.match(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"application/json-patch+json",
        b"application/geo+json",
        b"application/json-seqs",
        b"text/event-streams",
        b"x-text/event-stream",
        b"text/plain; type=text/event-stream",
        b"multipart/mixed",
        b"multipart/mixed; boundary=deferSpec",
        b'multipart/mixed; boundary="a;deferSpec=1"',
        b'multipart/mixed; boundary="a\\";deferSpec=1"',
        b"multipart/mixed; xdeferSpec=1",
        b"multipart/form-data; boundary=x; deferSpec=1",
        b"application/connect",
        b"application/vnd.amazon.eventstream+json",
    ],
)
def test_other_content_types_are_none(content_type: bytes) -> None:
    """A type that only resembles one is kept and replayed, and so is a finite `multipart/mixed`."""
    assert not BUILT_IN.match(content_type)


def test_a_list_replaces_the_built_in_one_unless_it_names_it() -> None:
    """`default` stands for the built-in list, as in `bind`."""
    own = stream_types(("application/x-feed*", "text/csv;live"))
    assert [own.match(each) for each in (b"application/x-feed+json", b"text/csv; Live=yes")] == [True, True]
    assert [own.match(each) for each in (b"text/event-stream", b"text/csv")] == [False, False]
    both = stream_types(("default", "application/x-feed*"))
    assert [both.match(each) for each in (b"application/x-feed+json", b"text/event-stream")] == [True, True]
    assert not any(stream_types(()).match(each) for each in (b"text/event-stream", b"", b"multipart/mixed;deferSpec=1"))

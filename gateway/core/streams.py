"""Which responses are streams. A stream goes to its client piece by piece, and is not kept.

A response whose content type says so is a stream, unless it declares its length: then it has an end that is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from .memo import Memo

#: Stands for STREAM_TYPES in a list of types.
DEFAULT = "default"
#: Content types of responses that arrive in pieces, each of which is meant to be read at once. A star stands for
#: anything; behind a semicolon stands a parameter that the content type must have.
STREAM_TYPES = (
    "text/event-stream",
    "multipart/x-mixed-replace",
    # JSON documents one after another, by whatever name
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonl",
    "application/jsonlines",
    "application/x-jsonlines",
    "application/json-lines",
    "application/x-json-lines",
    "application/ldjson",
    "application/x-ldjson",
    "application/json-seq",
    "application/*+json-seq",
    "application/stream+json",
    "application/x-json-stream",
    # remote procedure calls
    "application/grpc*",
    "application/connect+*",
    "application/vnd.amazon.eventstream",
    # GraphQL: results that follow the first one, and subscriptions
    "multipart/mixed;deferSpec",
    "multipart/mixed;incrementalSpec",
    "multipart/mixed;subscriptionSpec",
)

_WORD = r"[!#$%&'+.^_`|~0-9A-Za-z-]+"
#: A content type as a list of types spells it.
PATTERN = re.compile(rf"{_WORD}/(?:[!#$%&'+.^_`|~0-9A-Za-z-]|\*)+(?:;{_WORD})?")
#: One parameter of a content type (RFC 9110 §5.6.6): a quoted value may hold a semicolon.
_PARAMETER = re.compile(rb';([^=;"]*)(?:=(?:[ \t]*"(?:[^"\\]|\\.)*"|[^;"]*))?', re.DOTALL)


class StreamTypes:
    """The content types that a list of patterns matches."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._with_parameter = {parameter.encode(): _any_of(media) for parameter, media in _by_parameter(patterns)}
        self._plain = self._with_parameter.pop(b"", _any_of([]))
        self._remembered = Memo(self._match, 256, lambda content_type: len(content_type) <= 128)

    def match(self, content_type: bytes) -> bool:
        """Whether a response of this content type is a stream."""
        return self._remembered[content_type]

    def _match(self, content_type: bytes) -> bool:
        lowered = content_type.lower()
        media = lowered.partition(b";")[0].strip(b" \t")
        if self._plain.fullmatch(media):
            return True
        wanted = {name for name, expression in self._with_parameter.items() if expression.fullmatch(media)}
        if not wanted:
            return False
        return not wanted.isdisjoint(each[1].strip(b" \t") for each in _PARAMETER.finditer(lowered))


def _by_parameter(patterns: tuple[str, ...]) -> Iterable[tuple[str, list[str]]]:
    """The media types that each parameter stands with, and those without one, in lower case."""
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        for each in STREAM_TYPES if pattern == DEFAULT else (pattern,):
            media, _, parameter = each.lower().partition(";")
            found.setdefault(parameter, []).append(media)
    return found.items()


def _any_of(media: list[str]) -> re.Pattern[bytes]:
    """An expression that matches these media types, and nothing if there are none."""
    expressions = (".*".join(map(re.escape, each.split("*"))) for each in media)
    return re.compile(("|".join(expressions) or "(?!)").encode())


@lru_cache(maxsize=256)
def stream_types(patterns: tuple[str, ...]) -> StreamTypes:
    """The matcher of these patterns. Equal lists share one."""
    return StreamTypes(patterns)

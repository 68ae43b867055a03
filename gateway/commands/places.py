"""The places of a request in words, for people who write clients."""

from __future__ import annotations

from collections.abc import Sequence

_PLACES = {
    "header": "field {}",
    "query": "query parameter {}",
    "cookie": "cookie {}",
    "form": "form field {}",
    "body": "member {} of the JSON body",
    "jwt": "claim {} of the Bearer token",
}
_WHOLE = {"client_cert": "client certificate", "credentials": "sender"}


def place(source: str, article: str = "the ") -> str:
    """One source, as `body:/order/id`, or a part of a request, as `method`."""
    kind, colon, name = source.partition(":")
    if kind == "path":
        return f"segment {name} of the path"
    if colon and kind in _PLACES:
        return article + _PLACES[kind].format(code(name))
    return article + _WHOLE.get(source, source)


def listed(sources: Sequence[str], joint: str, article: str = "the ") -> str:
    """Several, the last two joined by `joint`."""
    words = [place(source, article) for source in sources]
    return f" {joint} ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def code(text: str) -> str:
    """A text as Markdown shows it unchanged: between more backticks than stand in it (CommonMark §6.1)."""
    ticks = "`" * (1 + max(map(len, "".join(c if c == "`" else " " for c in text).split()), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"

"""How whose key it is, and what is the same request, are written: sources, tokens, JSON Pointers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path

from ..core.entity import steps
from ..core.scope import ALGORITHMS, CLIENT_CERT, Tokens
from . import addresses, tls, values
from .faults import short
from .source import Scalar

#: A claim's name is any string (RFC 7519 §4); these are the ones that can be written behind `jwt:`.
_CLAIM = re.compile(r"[\x21-\x7e]{1,128}")


def scope_source(value: object) -> str:
    """`header:NAME`, `cookie:NAME`, `jwt:CLAIM` or `client_cert`."""
    if isinstance(value, Scalar) and value.text == "public":
        raise ValueError("`public` stands alone; leave it out of the list")
    text = value.text if isinstance(value, Scalar) else ""
    kind, _, name = text.partition(":")
    if text == CLIENT_CERT.decode():
        return text
    if kind == CLIENT_CERT.decode():
        raise ValueError(f"the certificate as a whole is meant; use {CLIENT_CERT.decode()}")
    if kind == "jwt":
        if not _CLAIM.fullmatch(name):
            raise ValueError("the name of a claim stands behind the colon; use jwt:sub")
        return text
    if kind != "cookie":
        return values.source(value)
    if not values.TOKEN.fullmatch(name):
        raise ValueError("the name of a cookie stands behind the colon; use cookie:session")
    return text


def ignored_cookie(value: object) -> str:
    """The name of a cookie, or a prefix of names that ends in `*`."""
    text = value.text if isinstance(value, Scalar) else ""
    if text == "*":
        raise ValueError("leaves out every cookie; use bind: [header:NAME], which names what does bind")
    if text.startswith("cookie:"):
        raise ValueError(f"the name stands alone here; use {short(text.removeprefix('cookie:'))}")
    if not values.TOKEN.fullmatch(text.removesuffix("*")) or "*" in text[:-1]:
        raise ValueError(
            f"expected the name of a cookie such as lb, or a prefix such as lb_*, found {values.found(value)}"
        )
    return text


def pointer(value: object) -> str:
    """A JSON Pointer (RFC 6901)."""
    if not isinstance(value, Scalar) or not value.text:
        raise ValueError(f"expected a JSON Pointer such as /metadata/sent_at, found {values.found(value)}")
    text = value.text
    if not text.startswith("/"):
        meant = text.removeprefix("body:").removeprefix("$.").removeprefix("/").replace(".", "/")
        raise ValueError(f"a JSON Pointer begins with a slash; use /{short(meant)}")
    try:
        tokens = steps(text)
    except ValueError:
        raise ValueError(f"~ is written ~0 in a JSON Pointer; use {re.sub('~(?![01])', '~0', text)}") from None
    if tokens[-1] == "-":
        raise ValueError("- is the element behind the last, which is never there; remove it")
    return text


def jwks(value: object) -> str:
    """A file, or a URL by which nobody on the way can put keys of his own there."""
    if not isinstance(value, Scalar) or not value.text:
        raise ValueError(
            f"expected a file or URL such as https://id.example/.well-known/jwks.json, found {values.found(value)}"
        )
    text = value.text
    url = addresses.URL.fullmatch(text)
    if url is None:
        return text
    scheme = url["scheme"].lower()
    if scheme not in ("http", "https"):
        raise ValueError("expected the path of a file, or a URL that begins with https://")
    if url["user"] is not None or url["fragment"]:
        raise ValueError("holds a user name, a password or a fragment, which are not sent; remove it")
    host, _ = addresses.host_and_port(url["where"], 443)
    if scheme == "http" and not addresses.loopback(host):
        raise ValueError("over http whoever stands between could put his own keys there; use https://")
    return text


def text(expected: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if isinstance(value, Scalar) and re.fullmatch(r"[\x21-\x7e]{1,512}", value.text):
            return value.text
        raise ValueError(f"expected {expected}, found {values.found(value)}")

    return read


def algorithm(value: object) -> str:
    """One by which a token may be signed: an asymmetric one."""
    text = value.text if isinstance(value, Scalar) else ""
    if text in ALGORITHMS:
        return text
    if text.upper().startswith("HS"):
        raise ValueError(f"{text} is signed with a secret that whoever verifies could sign with too; use RS256")
    if text.lower() == "none":
        raise ValueError("a token without a signature proves nothing; use RS256")
    meant = get_close_matches(text, ALGORITHMS, 1, 0.6)
    raise ValueError(
        f"expected one of {', '.join(ALGORITHMS)}, found {values.found(value)}" + (f"; use {meant[0]}" if meant else "")
    )


def unusable(tokens: Tokens) -> Iterator[tuple[str, str]]:
    """What is wrong with files that `jwt` names: its field, and what to do."""
    if "://" not in tokens.jwks:
        if tokens.ca is not None:
            yield "ca", "is for keys that are fetched from a URL; remove it"
        from ..jwks import LARGEST, published  # see tokens/issuers.py

        try:
            with Path(tokens.jwks).open("rb") as file:
                published(file.read(LARGEST + 1))
        except FileNotFoundError:
            yield "jwks", "there is no such file; use a file with the issuer's public keys, or their https:// URL"
        except OSError as error:
            yield "jwks", f"cannot be read: {error.strerror}"
        except ValueError as error:
            yield "jwks", f"{error}; use a JWK Set (RFC 7517)"
    elif tokens.ca is not None:
        try:
            tls.context(tokens.ca, verify=True)
        except ValueError as error:
            yield "ca", str(error)

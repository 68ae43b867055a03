"""Whole files: each field lands where the core reads it, and config/gateway.yaml has and says them all."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace
from hashlib import blake2b
from ipaddress import ip_network
from typing import cast

import pytest

from gateway.core.fingerprint import Recipe
from gateway.core.policy import DAY, HOUR, MINUTE, SECOND, Match, Missing, OnDoubt, Policy, Route
from gateway.settings import (
    Address,
    Limits,
    LogSettings,
    UpstreamSettings,
    load,
)
from gateway.settings.fields import written
from gateway.settings.model import SHAPES
from gateway.settings.policy import PolicyShape, RouteShape
from tests.settings.files import CONFIG, WHOLE, first, read


def test_the_ten_lines_are_ten() -> None:
    assert len((CONFIG / "minimal.yaml").read_text().splitlines()) == 10


def test_the_file_of_all_fields_has_all_fields() -> None:
    """Whoever adds a field to the model adds it to config/gateway.yaml, or this fails."""
    text = (CONFIG / "gateway.yaml").read_text()
    documented = set(re.findall(r"(?:^|[{,]) *(?:# |- )?([a-z_]+):", text, re.MULTILINE))
    assert {field for shape in SHAPES for field in written(shape)} - documented == set()


def test_the_file_of_all_fields_says_the_defaults() -> None:
    """Where config/gateway.yaml writes what a field is when it is left out, that is what it is."""
    shipped = load(CONFIG / "gateway.yaml", environ={})
    bare = read(WHOLE)
    assert shipped.routes.routes[-1].policy == Policy() == first(bare).policy
    assert shipped.limits == Limits() == bare.limits
    assert shipped.log == LogSettings() == bare.log
    assert (shipped.grace, shipped.prefix) == (95 * SECOND, "og:") == (bare.grace, bare.prefix)
    assert shipped.admin == bare.admin
    assert shipped.store == bare.store
    assert (shipped.upgrades, shipped.origins, shipped.trusted_proxies) == ({b"websocket"}, None, None)
    assert (bare.upgrades, bare.origins, bare.trusted_proxies) == ({b"websocket"}, None, None)
    assert (shipped.store_check, shipped.on_amnesia) == ("strict", "warn") == (bare.store_check, bare.on_amnesia)
    app = UpstreamSettings("app", "127.0.0.1", 9000)
    assert {replace(shipped.upstreams["shop"], name="app"), bare.upstreams["app"]} == {app}


@pytest.mark.parametrize(
    ("written", "statuses"),
    [
        ("2xx", set(range(200, 300))),
        ("204", {204}),
        ("[200, 201, 503]", {200, 201, 503}),
        ('"2xx"', set(range(200, 300))),
    ],
)
def test_the_statuses_that_alone_are_kept(written: str, statuses: set[int]) -> None:
    """A class by its word, or a list; a route may empty the lists of `defaults` that would contradict it."""
    text = f"defaults: {{release: 404}}\n{WHOLE}    keep_only: {written}\n    release: []\n"
    assert first(read(text)).policy.keep_only == statuses
    assert first(read(WHOLE)).policy.keep_only is None


def documented(shape: type) -> dict[str, str]:
    """The fields that `shape` declares itself, and what stands below each."""
    body = cast(ast.ClassDef, ast.parse(inspect.getsource(shape)).body[0]).body
    said: dict[str, str] = {}
    for field, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            words = below.value if isinstance(below, ast.Expr) else None
            said[ast.unparse(field.target)] = ast.literal_eval(words) if isinstance(words, ast.Constant) else ""
    return said


def test_every_field_is_documented_where_it_is_declared() -> None:
    """One sentence each, that says what the field is when it is left out."""
    for shape in SHAPES:
        inherited = written(PolicyShape) if shape is RouteShape else []
        assert len(documented(shape)) == len(written(shape)) - len(inherited), shape
        for field, said in documented(shape).items():
            assert said.endswith("."), field
            assert "default" in said or "required" in said or "{" in said or field in ("limits", "log"), field


def test_a_file_says_what_the_gate_does() -> None:
    """Each field lands where the core reads it."""
    settings = read(
        """
service: shop
listen: :80
admin: {listen: "[::1]:81"}
store: rEdIs://:hunter2@redis/3
secret: sesame
prefix: "shop:"
upstreams:
  pay: {url: "http://[::1]", connect: 1s, timeout: 10s, late: 5s, connections: 8}
defaults: {missing: refuse, window: 2h, release: 409}
routes:
  - name: payments
    match: {path: "/payments/*/captures", host: "*.Shop.Example", methods: [POST, PATCH]}
    upstream: pay
    namespace: pay
    key: {from: "header:X-Request-Id"}
    scope: [header:X-Tenant, header:X-Realm]
    bind: [header:X-Account, default]
    fingerprint: {headers: [X-Currency, X-Amount]}
    doubt_window: 1h
    wait: 0s
    on_doubt: rerun
    max_attempts: 3
    hold: [500]
    keep: [429, 502]
    max_request: 2KiB
    max_response: 0B
    stream_types: [Application/X-Feed, default, "multipart/mixed;live"]
    store_wait: 250ms
    keep_headers: [Content-Type]
    drop_headers: [ETag]
  - {name: rest, upstream: pay, guard: no, missing: pass, window: 8d}
limits: {waiters: 1_000}
log: {format: json, keys: full}
grace: 1m
startup_wait: 2m
store_check: warn
on_amnesia: refuse
upgrades: [WebSocket, SSH/2]
cors: {origins: [https://shop.example, "http://localhost:3000"]}
trusted_proxies: [10.0.0.0/8, "::1"]
"""
    )
    assert settings.upgrades == {b"websocket", b"ssh/2"}
    assert settings.origins == {b"https://shop.example", b"http://localhost:3000"}
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))
    timing = {"timeout": 10 * SECOND, "late": 5 * SECOND, "missing": Missing.REFUSE, "window": 2 * HOUR}
    payments = Policy(
        **timing,
        namespace=b"pay",
        headers=(b"x-request-id",),
        scope=(b"header:x-realm", b"header:x-tenant"),
        recipe=Recipe(("default", "header:x-account"), (b"x-amount", b"x-currency")),
        doubt_window=HOUR,
        wait=0,
        on_doubt=OnDoubt.RERUN,
        max_attempts=3,
        release=frozenset((409,)),
        hold=frozenset((500,)),
        keep=frozenset((429, 502)),
        max_request=2048,
        max_response=0,
        stream_types=("default", "application/x-feed", "multipart/mixed;live"),
        store_wait=250,
        keep_headers=frozenset((b"content-type",)),
        drop_headers=frozenset((b"etag",)),
    )
    rest = Policy(
        timeout=10 * SECOND,
        late=5 * SECOND,
        guard=False,
        window=8 * DAY,
        doubt_window=8 * DAY,
        release=frozenset((409,)),
    )
    match = Match("/payments/*/captures", "*.shop.example", frozenset((b"POST", b"PATCH")))
    assert settings.routes.routes == (
        Route("payments", "pay", match, payments),
        Route("rest", "pay", Match(), rest),
    )
    assert settings.upstreams == {"pay": UpstreamSettings("pay", "::1", 80, SECOND, 10_000, 5_000, 8)}
    assert (settings.service, settings.secret, settings.prefix) == ("shop", b"sesame", "shop:")
    assert ([each.address for each in settings.listen], settings.admin) == (
        [Address("0.0.0.0", 80)],
        Address("::1", 81),
    )
    assert settings.limits == Limits(waiters=1_000)
    assert settings.log == LogSettings("json", "full")
    assert settings.grace == MINUTE
    assert settings.startup_wait == 2 * MINUTE
    assert (settings.store_check, settings.on_amnesia) == ("warn", "refuse")


def test_grace_is_the_longest_lease() -> None:
    """A drain waits for whoever may still be running, unless the file says how long."""
    slow = WHOLE.replace("}", ", timeout: 5m}")
    assert read(slow).grace == 5 * MINUTE + 35 * SECOND


def test_nothing_shows_a_secret() -> None:
    """Neither the settings' repr nor what is shown of the store has a password or the secret in it."""
    settings = read(WHOLE + "service: a\nsecret: sesame\nstore: redis://me:hunter2@redis:6379/0\n")
    assert "hunter2" not in repr(settings) + settings.shown_store
    assert "sesame" not in repr(settings)
    assert settings.shown_store == "redis://…@redis:6379/0"


def test_a_long_secret_is_digested() -> None:
    """BLAKE2b takes keys of up to 64 bytes. This never changes, or every live key is forgotten."""
    short, long = "s" * 64, "é" * 33
    assert read(WHOLE + f"secret: {short}\n").secret == short.encode()
    assert read(WHOLE + f"secret: {long}\n").secret == blake2b(long.encode()).digest()

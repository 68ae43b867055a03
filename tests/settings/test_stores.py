"""The store and where it runs."""

from __future__ import annotations

import pytest

from gateway.settings import (
    Fault,
    stores,
)
from tests.settings.files import KUBERNETES, ONE_GATEWAY, WHOLE, faults, read


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ("url: memory://", "memory://"),
        ("url: memory://, max_records: 10, max_bytes: 1MiB", "memory://?max_bytes=1MiB&max_records=10"),
        ("url: sqlite:///a.db, durability: process", "sqlite:///a.db?durability=process"),
        (
            "url: 'REDIS://:pw@h/1?wait=1s', durability: replicated, replicas: 2",
            "redis://:pw@h/1?wait=1s&durability=replicated&replicas=2",
        ),
        ("url: 'rediss://h', verify: false, server_name: r.internal", "rediss://h?server_name=r.internal&verify=false"),
        ("url: 'redis+unix:///run/redis.sock', db: 3", "redis+unix:///run/redis.sock?db=3"),
        (
            "url: 'redis+sentinel://a,b/shop', sentinel_user: me, sentinel_password: 'a&b?c=#%'",
            "redis+sentinel://a,b/shop?sentinel_user=me&sentinel_password=a%26b%3Fc%3D%23%25",
        ),
    ],
)
def test_fields_beside_a_store_s_url_are_part_of_it(fields: str, url: str) -> None:
    """The settings have one URL, however it was written; and what was escaped comes out as it went in."""
    settings = read(WHOLE + f"service: a\nstore: {{{fields}}}\n")
    assert settings.store == url
    if "sentinel" in url:
        assert stores.redis(url).sentinel_password == "a&b?c=#%"
        assert "a%26b" not in settings.shown_store
        assert settings.shown_store.endswith("&sentinel_password=…")


@pytest.mark.parametrize("store", ["memory://", "sqlite:////var/lib/a.db", "sqlite:///a?durability=process"])
def test_a_store_of_one_gateway_says_so_on_kubernetes(store: str) -> None:
    """A replica more, and two gates would each run the same key: the file must say that there is one."""
    text = WHOLE + f"store: {store}\n"
    assert read(text).store == store
    assert faults(lambda: read(text, KUBERNETES)) == [Fault("store_scope", 6, ONE_GATEWAY)]
    assert read(text + "store_scope: single\n", KUBERNETES).store_scope == "single"


@pytest.mark.parametrize("end", ["", "/"])
def test_a_cluster_is_named_by_any_of_its_nodes(end: str) -> None:
    """Its nodes, who we are to all of them, and what counts as written."""
    url = f"redis+cluster://me:pw@a,b:7000,[::1]:7001{end}?durability=replicated&replicas=1"
    place = stores.redis(read(WHOLE + f"service: a\nstore: {url}\n").store)
    assert place.cluster
    assert place.hosts == (("a", 6379), ("b", 7000), ("::1", 7001))
    assert (place.user, place.password, place.database, place.replicas) == ("me", "pw", 0, 1)
    assert not stores.redis("redis://h").cluster
    secure = stores.redis("rediss+cluster://h?server_name=r.internal")
    assert secure.tls is not None
    assert secure.tls.server_name == "r.internal"


def test_a_shared_store_needs_a_service() -> None:
    """From the file or from the command line, whichever of the two names the store."""
    redis = WHOLE + "store: redis://redis:6379/0\n"
    assert read(redis + "service: a\n", KUBERNETES).service == "a"
    assert read(redis, service="b").service == "b"
    assert read(redis, store="memory://").service == "default"
    assert [fault.path for fault in faults(lambda: read(WHOLE, store="redis://h"))] == ["service"]


def test_the_scheme_of_a_store_may_stand_in_capitals() -> None:
    """`REDIS://` names what `redis://` names, and is handed on so that the store can read it."""
    assert read(WHOLE + "service: a\nstore: REDIS://h:1/0\n").store == "redis://h:1/0"

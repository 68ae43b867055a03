"""Broken stores: what is added on line 6, its path, what is said."""

from __future__ import annotations

NOT_BUILT = "known, but not built yet in this version"

STORES = [
    (
        "durability: replicated",
        "durability",
        "not allowed here. It belongs in `store`",
    ),
    ("store: {durability: power}", "store.url", "is missing; use url: redis://HOST:6379/0"),
    ("store: {}", "store.url", "is missing; use url: redis://HOST:6379/0"),
    (
        "store: {url: mysql://x, replicas: 2}",
        "store",
        "no store is called mysql://; use memory://, sqlite:/// or redis://",
    ),
    ("store: {url: mysql://x}", "store.url", "no store is called mysql://; use memory://, sqlite:/// or redis://"),
    ("store: [memory://]", "store", "expected a mapping, found a list"),
    ("store: {url: 'redis://h', durable: single}", "store.durable", "unknown field; did you mean `durability`?"),
    (
        "store: {url: 'redis://h', durability: full}",
        "store.durability",
        "`full` is not read; use single or replicated",
    ),
    (
        "store: {url: 'redis://h', durability: replicated}",
        "store",
        "replicas is missing: how many there are that can be promoted; use &replicas=1",
    ),
    (
        "store: {url: 'redis://h', durability: replicated, replicas: [1]}",
        "store.replicas",
        "expected a single value, found a list",
    ),
    (
        "store: {url: 'redis://h?durability=replicated', durability: replicated}",
        "store.durability",
        "stands in the URL too; write it once",
    ),
    ("store: {url: 'redis://h', ca: /a}", "store.ca", "`ca` is for a Redis that speaks TLS; use rediss://"),
    (
        "store: {url: 'redis://h', db: 1}",
        "store.db",
        "the number of a database stands behind the host; use redis://HOST:6379/1",
    ),
    (
        "store: {url: 'memory://', replicas: 1}",
        "store.replicas",
        "`replicas` is not read behind the ? of memory://; use max_records or max_bytes",
    ),
    ("store_check: loud", "store_check", "expected strict, warn or off, found `loud`"),
    ("store_check: no", "store_check", "expected strict, warn or off, found the boolean no"),
    ("on_amnesia: refused", "on_amnesia", "expected warn or refuse, found `refused`; use refuse"),
    ("store: mysql://x", "store", "no store is called mysql://; use memory://, sqlite:/// or redis://"),
    ("store: 'redis://:a#b@h'", "store", "a # cannot stand here; in a password write %23"),
    ("store: oncegate.db", "store", "expected memory://, sqlite:///PATH or redis://HOST:PORT/DB"),
    ("store: sqlite://a/b.db", "store", "a path stands behind three slashes; use sqlite:///a/b.db"),
    (
        "store: sqlite:///a?durability=full",
        "store",
        "durability: `full` is not read; use power (the default) or process",
    ),
    (
        "store: sqlite:///a?max_bytes=1GB",
        "store",
        "max_bytes: expected a size such as 1MiB, found `1GB`; use 1GiB",
    ),
    ("store: sqlite:///a?max_bytes=64KiB", "store", "max_bytes: `64KiB` is too little; use 1MiB or more"),
    (
        "store: sqlite:///a?max_byte=1GiB",
        "store",
        "`max_byte` is not read behind the ? of sqlite://; use durability or max_bytes",
    ),
    (
        "store: sqlite:///a?durability=power&durability=process",
        "store",
        "`durability` stands there twice; use it once",
    ),
    ("store: memory://?max_records=0", "store", "max_records: `0` is no number of records; use 100000"),
    ("store: memory://a", "store", "memory:// takes no place behind it; use memory://"),
    (
        "store: postgresql://h",
        "store",
        f"a store at postgresql:// is {NOT_BUILT}; use redis://, sqlite:/// or memory://",
    ),
    (
        "store: redis+cluster://a,b:7000/1",
        "store",
        "a cluster has one database, which has no number; use redis+cluster://HOST,HOST,HOST",
    ),
    ("store: redis+cluster://a?ca=/a", "store", "`ca` is for a Redis that speaks TLS; use rediss+cluster://"),
    ("store: redis+cluster://", "store", "the host is missing; use redis://127.0.0.1:6379/0"),
    (
        "store: redis+cluster://h/?db=1",
        "store",
        "`db` is not read behind the ? of redis+cluster://; use durability or replicas or wait",
    ),
    (
        "store: redis://:pa/ss@h:1",
        "store",
        "the host and port cannot be read (in a password write %2F for /, %3F for ? and %23 for #); "
        "use redis://:PASSWORD@HOST:6379/0",
    ),
    (
        "store: redis://h:1/0?durability=replicated",
        "store",
        "replicas is missing: how many there are that can be promoted; use &replicas=1",
    ),
    (
        "store: redis://h:1/0?replicas=2",
        "store",
        "replicas is for durability=replicated; write that too, or leave it out",
    ),
    (
        "store: redis://h:1/0?durability=replicated&replicas=0",
        "store",
        "replicas: `0` is no number of replicas; use 1 to 9",
    ),
    (
        "store: redis://h:1/0?durability=replicated&replicas=1&wait=1m",
        "store",
        "wait: `1m` is no time to wait for replicas; use 10ms to 2s",
    ),
    ("store: redis://h:1/0?ca=/a", "store", "`ca` is for a Redis that speaks TLS; use rediss://"),
    ("store: rediss://h:1/0?key=/a", "store", "key is for the certificate in cert; write that too"),
    (
        "store: rediss://h:1/0?ca=/a&verify=false",
        "store",
        "ca is for what verify=false leaves undone; leave one of the two out",
    ),
    (
        "store: rediss://h:1/0?cert=/no/such/file",
        "store",
        "cert, key: there is no such file: /no/such/file; use PEM files with a certificate and its key",
    ),
    (
        "store: redis+sentinel://a,b,c",
        "store",
        "behind the Sentinels stands the name that they know the primary by; use redis+sentinel://HOST,HOST,HOST/NAME",
    ),
    (
        "store: redis+unix://h/run/redis.sock",
        "store",
        "the path of the socket is missing; use redis+unix:///run/redis.sock",
    ),
    (
        "store: redis://h:1",
        "service",
        "is missing, and a shared store needs it: two services on one Redis, called in a chain with one "
        "propagated key, would replay each other's answers; write service: NAME, or give --service NAME",
    ),
    ("store_scope: many", "store_scope", "expected single, found `many`"),
]

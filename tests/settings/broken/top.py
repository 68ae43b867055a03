"""Broken fields of the top level: what is added on line 6, its path, what is said."""

from __future__ import annotations

TO_COME = "known, but not built yet in this version; remove it"

ALONE = "{0} names a port and no interface. Use 127.0.0.1:{0} for this host only, or 0.0.0.0:{0} for every interface"

LISTENING = [
    ("servce: a", "servce", "unknown field; did you mean `service`?"),
    ("window: 1h", "window", "not allowed here. It belongs in a route or `defaults`"),
    (
        "service: 123",
        "service",
        'expected a name such as payments, found the number 123; in quotes it is text: "123"',
    ),
    (
        "service: on",
        "service",
        'expected a name such as payments, found the boolean on; in quotes it is text: "on"',
    ),
    ("service: ''", "service", "expected a name such as payments, found an empty string"),
    ("listen: 18080", "listen", ALONE.format("18080")),
    ("listen: '18080'", "listen", ALONE.format("18080")),
    ("listen: ['127.0.0.1:80', 81]", "listen[1]", ALONE.format("81")),
    ("listen: {address: 18080}", "listen", ALONE.format("18080")),
    ("listen: 99999", "listen", "99999 is not a port (0–65535)"),
    ("admin: {listen: 18081}", "admin.listen", ALONE.format("18081")),
    ("listen: localhost", "listen", "the port is missing; use localhost:8080"),
    ("listen: http://a:80/", "listen", "an address is not a URL; use a:80"),
    ("listen: ::1:8080", "listen", "an IPv6 address stands in brackets; use [::1]:8080"),
    ("listen: 127.0.0.1:65536", "listen", "65536 is not a port (0–65535)"),
    (
        "listen: true",
        "listen",
        'expected an address such as 127.0.0.1:8080, found the boolean true; in quotes it is text: "true"',
    ),
    ("admin: 127.0.0.1:1", "admin", "expected a mapping, found `127.0.0.1:1`; use {listen: 127.0.0.1:1}"),
    (
        "admin: {token: short}",
        "admin.token",
        "shorter than 16 characters can be guessed; make one: openssl rand -hex 32",
    ),
    (
        "admin: {token: 'two words of a token'}",
        "admin.token",
        "a token is letters, digits, ._~+/- and = at its end; make one: openssl rand -hex 32",
    ),
    (
        "admin: {token: 1234567890123456}",
        "admin.token",
        "expected a token such as ${ONCEGATE_ADMIN_TOKEN}, in quotes where it looks like a number",
    ),
    (
        "admin: {token_file: /nowhere/token}",
        "admin.token_file",
        "/nowhere/token cannot be read: No such file or directory",
    ),
    (
        "admin: {token_file: /dev/null}",
        "admin.token_file",
        "/dev/null holds no token: a token is letters, digits, ._~+/- and = at its end; make one: openssl rand -hex 32",
    ),
    (
        "admin: {token: abcdefghijklmnop, token_file: /dev/null}",
        "admin.token_file",
        "says what `token` says too; remove one of the two",
    ),
    (
        "admin: {audit: /nowhere/audit}",
        "admin.audit",
        "the folder of /nowhere/audit is not there; make it, or name another file",
    ),
    ("admin: {audit: /}", "admin.audit", "/ is a folder; name a file in it"),
    ("admin: {tls: {}}", "admin.tls", TO_COME),
    ("tls: {}", "tls", "not allowed here. It belongs in upstreams.NAME"),
    ("listen: []", "listen", "names no address; use 127.0.0.1:8080"),
    ("listen: unix:gate.sock", "listen", "expected the whole path of a Unix socket, such as unix:/run/oncegate.sock"),
    ("listen: unix:///gate.sock", "listen", "one slash begins the path; use unix:/gate.sock"),
    (f"listen: unix:/{'x' * 97}", "listen", "the path of a Unix socket has 96 bytes at most; use a shorter one"),
    ("listen: {mode: '0600'}", "listen.address", "is missing; use address: 127.0.0.1:8080"),
    ("listen: ['127.0.0.1:80', '::81']", "listen[1]", "expected an address such as 127.0.0.1:8080, found `::81`"),
    (
        "listen: ['0.0.0.0:80', '127.0.0.1:80']",
        "listen[1]",
        "127.0.0.1:80 is listened on already; remove one of the two",
    ),
    (
        "listen: {address: 127.0.0.1:80, mode: '0600'}",
        "listen.mode",
        "is for a Unix socket; remove it, or use unix:/PATH",
    ),
    ("listen: {address: unix:/a, mode: 9}", "listen", 'expected permissions such as "0660", found the number 9'),
    (
        "listen: {address: 127.0.0.1:80, tls: {}}",
        "listen.tls",
        "the gate needs a certificate; use {cert: FILE, key: FILE}",
    ),
    (
        "listen: {address: 127.0.0.1:80, tls: {cert: /none}}",
        "listen.tls",
        "cert, key: there is no such file: /none; use PEM files with a certificate and its key",
    ),
    (
        "listen: {address: 127.0.0.1:80, tls: {cert: /none, clients: optional}}",
        "listen.tls.clients",
        "says nothing without client_ca: FILE, which signs their certificates",
    ),
    ("cors: ['*']", "cors", "expected a mapping, found a list"),
    (
        "cors: https://a.example",
        "cors",
        "expected a mapping, found `https://a.example`; use {origins: https://a.example}",
    ),
    ("cors: {}", "cors.origins", "is missing; use origins: [https://shop.example]"),
    ("cors: {origins: []}", "cors.origins", "names no origin; use [https://shop.example], or remove `cors`"),
    ("cors: {origins: [a.example]}", "cors.origins[0]", "the scheme is missing; use https://a.example"),
    (
        "cors: {origins: [https://a.example/]}",
        "cors.origins[0]",
        "`https://a.example/` is not how a browser spells an origin; use https://a.example",
    ),
    (
        "cors: {origins: ['https://A.example:443']}",
        "cors.origins[0]",
        "`https://A.example:443` is not how a browser spells an origin; use https://a.example",
    ),
    (
        "cors: {origins: ['https://*.example']}",
        "cors.origins[0]",
        "expected an origin such as https://shop.example, found `https://*.example`",
    ),
    (
        "cors: {origins: ['null']}",
        "cors.origins[0]",
        "null is what every sandboxed page and local file calls itself; leave it out",
    ),
    (
        "cors: {origins: ['*', https://a.example]}",
        "cors.origins",
        '`*` is every origin, so it stands alone; use ["*"], or name them',
    ),
    (
        "trusted_proxies: proxy",
        "trusted_proxies",
        "expected addresses such as 10.0.0.0/8, found `proxy`",
    ),
    (
        "trusted_proxies: [10.1.0.0/8]",
        "trusted_proxies[0]",
        "`10.1.0.0/8` has more bits than its mask; use 10.0.0.0/8",
    ),
    ("upgrades:", "upgrades", "expected a list of protocols such as [websocket], found nothing"),
    ("upgrades: [a b]", "upgrades[0]", "expected a protocol such as websocket, found `a b`"),
    (
        "upgrades: [H2C]",
        "upgrades[0]",
        "in H2C requests would reach the service past their guards; leave it out",
    ),
    (
        "upgrades: [HTTP/2.0]",
        "upgrades[0]",
        "in HTTP/2.0 requests would reach the service past their guards; leave it out",
    ),
]

REST = [
    ("secret: 31337", "secret", "expected text, found a number; put the secret in quotes"),
    (
        "secret:",
        "secret",
        "expected a secret such as ${ONCEGATE_SECRET}, found nothing",
    ),
    ("prefix: 'og:{a}'", "prefix", "braces would move every key to one slot of a Redis Cluster; use og:"),
    (
        "prefix: 'o g'",
        "prefix",
        "a prefix has up to 32 printable ASCII characters and no spaces; use og:",
    ),
    ("limits: {buffers: 2MiB}", "limits.buffers", "less than the max_request of a route; use 10MiB or more"),
    ("limits: {head: 1KB}", "limits.head", "expected a size such as 1MiB, found `1KB`; use 1KiB"),
    ("limits: {waiter: 1}", "limits.waiter", "unknown field; did you mean `waiters`?"),
    ("limits:", "limits", "expected a mapping, found nothing"),
    ("log: {format: xml}", "log.format", "expected auto, json or text, found `xml`"),
    ("grace: forever", "grace", "expected a duration such as 30s, found `forever`"),
    ("margin: 50ms", "margin", "50ms is less than clocks and schedulers may be late; use 100ms or more"),
    ("upstreams: {}", "upstreams", "is written twice, first on line 1; keep one"),
    (
        "admin: {listen: ':8080'}",
        "admin.listen",
        "the admin listener cannot share 127.0.0.1:8080 with the gate; use another port",
    ),
    ("defaults: {window: 2 d}", "defaults.window", "expected a duration such as 30s, found `2 d`; use 2d"),
    (
        "defaults: {doubt_window: 1s}",
        "defaults.doubt_window",
        "1s is shorter than the lease of 95s (timeout, late and 5s of `app`), in which a request may still "
        "run; use 95s or more",
    ),
    ("defaults: {name: a}", "defaults.name", "not allowed here. It belongs in a route"),
    # The environment, tags, merges.
    ("service: ${NAME}", "service", "the variable NAME is not set in the environment; export NAME=… first"),
    (
        "service: ${NAME:-a}",
        "service",
        "`${NAME…}` holds more than a name; use ${NAME}, without a default",
    ),
    (
        "service: ${NAME",
        "service",
        "`${` is not closed; use ${NAME}, or $${ for the characters themselves",
    ),
    ("service: ${EMPTY}", "service", "expected a name such as payments, found an empty string"),
    ("service: !shout a", "service", "the tag !shout is not read; leave it out"),
    ("limits: {<<: 5}", "limits.<<", "merges mappings only"),
    ("[a, b]: c", "", "a key is a single word, not a list or a mapping"),
]

"""Faults that stand together: all are told at once, none is guessed about, and some are of two routes."""

from __future__ import annotations

import pytest

from gateway.settings import (
    Faults,
)
from tests.settings.files import WHOLE, faults, read


def test_every_fault_is_told_at_once() -> None:
    """Those of YAML, of single values and of several together, in the order of the file."""
    with pytest.raises(Faults) as raised:
        read(
            """\
service: 5
listen: ${LISTEN}
upstreams:
  app: http://127.0.0.1:9000/v1
routes:
  - name: all
    upstream: ap
    window: 48 hours
    window: 48h
    keep: [200, 299, 600, x]
    release: 299
  - guard: maybe
    name: all
    upstream: app
    doubt_window: 1m
limits: {fields: many}
"""
        )
    assert str(raised.value).splitlines() == [
        'gate.yaml:1: service: expected a name such as payments, found the number 5; in quotes it is text: "5"',
        "gate.yaml:2: listen: the variable LISTEN is not set in the environment; export LISTEN=… first",
        "gate.yaml:4: upstreams.app: holds a path, and a request goes on with the path that the client sent; "
        "use http://127.0.0.1:9000",
        "gate.yaml:7: routes[0].upstream: no upstream is called `ap`; did you mean `app`?",
        "gate.yaml:8: routes[0].window: expected a duration such as 30s, found `48 hours`; use 48h",
        "gate.yaml:9: routes[0].window: is written twice, first on line 8; keep one",
        "gate.yaml:10: routes[0].keep[2]: 600 is not a final status code (200–599)",
        "gate.yaml:10: routes[0].keep[3]: expected a status such as 409, found `x`",
        "gate.yaml:12: routes[1].guard: expected true or false, found `maybe`",
        "gate.yaml:12: routes[1]: can never match: routes[0] (`all`) takes all of it; remove one of them",
        "gate.yaml:13: routes[1].name: `all` is the name of routes[0] too, on line 6; use another",
        "gate.yaml:16: limits.fields: expected a number from 1 to 1000000, found `many`",
    ]


def test_what_cannot_be_read_is_not_guessed_about() -> None:
    """A timeout that is wrong leaves the lease unknown, so nothing is said of the doubt window."""
    text = WHOLE.replace("}", ", timeout: 30}") + "    doubt_window: 1m\n"
    assert [fault.path for fault in faults(lambda: read(text))] == ["upstreams.app.timeout"]


COVERED = [
    ("/**", "/**", True),
    ("/pay", "/pay", True),
    ("/pay/**", "/pay", True),
    ("/pay/**", "/pay/refunds/**", True),
    ("/pay/**", "/payments", False),
    ("/pay", "/pay/**", False),
    ("/pay/*", "/pay/refunds", False),
    ("/**, methods: [POST]", "/**", False),
    ("/**, methods: [POST, PUT]", "/**, methods: [POST]", True),
    ("/**, methods: [POST]", "/**, methods: [POST, PUT]", False),
    ("/**, host: a", "/**, host: b", False),
    ("/**, host: a", "/**", False),
    ("/x, host: a", "/x, host: A", True),
]


@pytest.mark.parametrize(("earlier", "later", "covered"), COVERED)
def test_a_route_that_can_never_match_is_a_fault(earlier: str, later: str, covered: bool) -> None:
    """Only where the two spellings show it; a narrower route first is what an order is for."""
    text = f"""\
upstreams: {{app: http://a}}
routes:
  - {{name: a, upstream: app, match: {{path: {earlier}}}}}
  - {{name: b, upstream: app, match: {{path: {later}}}}}
"""
    if covered:
        assert [fault.path for fault in faults(lambda: read(text))] == ["routes[1].match"]
    else:
        assert len(read(text).routes.routes) == 2

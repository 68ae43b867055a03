"""Names with `_`: what a server that hands fields on as variables would take for a field that the gate goes by."""

from __future__ import annotations

import pytest

from tests.edge.stand import edge
from tests.harness import Origin, Received, ask, configuration

#: Dropped on the way to the service wherever they come.
MIMICS = (
    "Content_Length", "CONTENT_LENGTH", "Transfer_Encoding", "Keep_Alive", "Content_Type", "Content_Encoding",
    "X_Forwarded_For", "X_Forwarded-For", "X-Forwarded_For", "X_Forwarded_Proto", "X_Forwarded_Port", "X_Real_IP",
    "Idempotency_Key", "idempotency_key", "X_Idempotency_Key", "Idempotency_Attempt", "Idempotency_Anything",
    "X_Api_Key", "Api_Key", "Proxy_Authorization", "HTTP2_Settings", "X_Tenant", "X-Acting_For",
    "X_HTTP_Method_Override", "X_Amz_Target", "X-HTTP_Method",
)  # fmt: skip

POLICY = "scope: [header:X-Tenant], bind: [header:X-Acting-For], fingerprint: {headers: [X-Version]}"


def as_variables(received: Received) -> dict[str, list[bytes]]:
    """The fields as CGI (RFC 3875 §4.1.18) and WSGI name them."""
    found: dict[str, list[bytes]] = {}
    for name, value in received.raw_fields:
        found.setdefault(name.decode().upper().replace("-", "_"), []).append(value)
    return found


@pytest.mark.parametrize("key", ["k", None], ids=["guarded", "unguarded"])
async def test_a_name_that_mimics_another_goes_no_further(origin: Origin, key: str | None) -> None:
    """Framing, the gate's own names, credentials, keys, and what the routes go by. The real ones say what they
    said, and every other name with `_` stays as it came."""
    sent = [(name, "evil") for name in MIMICS]
    real = [("X-Tenant", "a"), ("X-Acting-For", "b"), ("X-Api-Key", "c"), ("X-Forwarded-Proto", "https")]
    async with edge(configuration(origin.url, policy=POLICY)) as gate:
        answer = await ask(
            gate.port, key=key, body=b"five!", fields=[*sent, *real, ("X_Custom", "kept"), ("my_name", "too")]
        )
        assert answer.status == 201
        (received,) = origin.requests
        assert b"evil" not in [value for _, value in received.raw_fields]
        variables = as_variables(received)
        assert variables["X_CUSTOM"] == [b"kept"]
        assert variables["MY_NAME"] == [b"too"]
        assert variables["CONTENT_LENGTH"] == [b"5"]
        assert variables["X_TENANT"] == [b"a"]
        assert variables["X_ACTING_FOR"] == [b"b"]
        assert variables["X_API_KEY"] == [b"c"]
        assert variables["X_FORWARDED_FOR"] == [b"127.0.0.1"]
        assert variables["X_FORWARDED_PROTO"] == [b"https"]
        assert variables.get("IDEMPOTENCY_KEY", []) == ([b"k"] if key else [])


async def test_a_name_in_both_spellings_is_one(origin: Origin) -> None:
    """Whatever it is: the service would read one of the two, and nobody knows which."""
    async with edge(configuration(origin.url)) as gate:
        for names in (("X-Amount", "X_Amount"), ("x_amount", "X-Amount"), ("X_Amount",)):
            await ask(gate.port, "GET", "/open/x", fields=[(name, name) for name in names], body=b"")
        assert [as_variables(received)["X_AMOUNT"] for received in origin.requests] == [
            [b"X-Amount"],
            [b"X-Amount"],
            [b"X_Amount"],
        ]


async def test_what_a_tenant_may_not_say_twice(origin: Origin) -> None:
    """A scope, or a key, in the other spelling is none: the first is missing, the second leaves it unguarded, and
    the service sees neither."""
    async with edge(configuration(origin.url, policy="scope: [header:X-Tenant]")) as gate:
        refused = await ask(gate.port, key="k", fields=[("X_Tenant", "a")])
        assert refused.problem == "scope-missing"
        passed = await ask(gate.port, fields=[("Idempotency_Key", "k"), ("X_Tenant", "a")])
        assert (passed.status, passed.label) == (201, "unprotected")
        (received,) = origin.requests
        assert not {"IDEMPOTENCY_KEY", "X_TENANT"} & as_variables(received).keys()

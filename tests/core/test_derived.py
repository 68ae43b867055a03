"""A key for a request that brings none, and the fields in which the service is told a key."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid5

import pytest

from gateway.core.decide import Guard, Later, Pass, PassReason, Refuse, admit, identify
from gateway.core.fields import fields_of
from gateway.core.fingerprint import CANONICAL_JSON, Recipe, fingerprint
from gateway.core.key import DERIVED, Key
from gateway.core.keyed import Derive, Part
from gateway.core.message import Field, Request
from gateway.core.policy import DERIVED_DOUBT, Missing, Policy, Route
from gateway.core.problem import Problem
from gateway.core.sent import NAMESPACE, SendKey, SentAs, with_key
from gateway.core.source import Reader, Source

DERIVES = Policy(missing=Missing.DERIVE)
BEARER: Field = (b"Authorization", b"Bearer a")
FIRST = Request(b"POST", b"/orders?a=1", [(b"Host", b"h"), BEARER], b'{"item":"x","n":1}')


def decided(request: Request, policy: Policy = DERIVES, secret: bytes = b"") -> Pass | Refuse | Guard:
    """As the door does it: by the head, and then with the body."""
    verdict = admit(request.method, request.fields, policy, request.target)
    if not isinstance(verdict, Later):
        return verdict
    credentials = fingerprint(request, policy.recipe).credentials
    return identify(request, policy, verdict, Reader(request), credentials=credentials, secret=secret)


def key_of(request: Request, policy: Policy = DERIVES, secret: bytes = b"") -> Key:
    verdict = decided(request, policy, secret)
    assert isinstance(verdict, Guard), verdict
    assert verdict.origin == DERIVED
    assert verdict.weak is None
    return verdict.key


OTHERS = {
    Part.METHOD: FIRST._replace(method=b"PATCH"),
    Part.TARGET: FIRST._replace(target=b"/orders?a=2"),
    Part.BODY: FIRST._replace(body=b'{"item":"x","n":2}'),
    Part.CREDENTIALS: FIRST._replace(fields=[(b"Host", b"h"), (b"Authorization", b"Bearer b")]),
}


@pytest.mark.parametrize("part", list(Part))
def test_what_a_key_is_derived_from_tells_requests_apart(part: Part) -> None:
    """Of the four, each counts; left out, it does not. What is no part of it never does."""
    assert key_of(FIRST) == key_of(FIRST._replace(fields=[*FIRST.fields, (b"User-Agent", b"x")]))
    assert key_of(OTHERS[part]) != key_of(FIRST)
    less = replace(DERIVES, derive=Derive(tuple(each for each in Part if each is not part)))
    assert key_of(OTHERS[part], less) == key_of(FIRST, less)
    assert key_of(FIRST, secret=b"s") != key_of(FIRST)


def test_a_derived_key_reads_a_request_as_its_fingerprint_does() -> None:
    """The name in Host, and no address or port; the field that selects the operation; JSON by what it says, and less
    what the route ignores."""

    def at(host: bytes, *fields: Field, body: bytes = FIRST.body) -> Request:
        return FIRST._replace(fields=[(b"Host", host), BEARER, *fields], body=body)

    assert key_of(at(b"h")) == key_of(at(b"H.:81")) != key_of(at(b"i"))
    assert key_of(at(b"10.0.0.1")) == key_of(at(b"[::1]:80")) == key_of(FIRST._replace(fields=[BEARER]))
    anywhere = replace(DERIVES, recipe=Recipe(host=False))
    assert key_of(at(b"h"), anywhere) == key_of(at(b"i"), anywhere)
    assert key_of(at(b"h", (b"SOAPAction", b"a"))) != key_of(at(b"h", (b"SOAPAction", b"b"))) != key_of(at(b"h"))
    canonical = replace(DERIVES, recipe=Recipe(body=CANONICAL_JSON, ignore=("/at",)))
    spelled = [b'{"n": 1, "at": 7}', b'{"at":8,"n":1.0}']
    assert len({key_of(at(b"h", body=each), canonical).text for each in spelled}) == 1
    assert key_of(at(b"h", body=spelled[0])) != key_of(at(b"h", body=spelled[1]))
    assert key_of(at(b"h", body=b'{"n": 2}'), canonical) != key_of(at(b"h", body=spelled[0]), canonical)


def test_a_multipart_body_sent_again_has_another_boundary() -> None:
    """It is the same body all the same, and another one where a part of it is another."""

    def form(boundary: bytes, text: bytes) -> Request:
        body = b'--%b\r\nContent-Disposition: form-data; name="a"\r\n\r\n%b\r\n--%b--' % (boundary, text, boundary)
        return Request(b"POST", b"/", [(b"Content-Type", b"multipart/form-data; boundary=" + boundary)], body)

    assert key_of(form(b"one", b"1")) == key_of(form(b"two", b"1")) != key_of(form(b"two", b"2"))


def test_a_source_that_a_key_is_derived_from_must_be_there() -> None:
    """Without it all requests would be one: refused, as is one that cannot be read. Of two values, two keys."""
    policy = replace(DERIVES, derive=Derive((Part.METHOD, Source.of("body:/item"))))
    assert key_of(FIRST, policy) == key_of(FIRST._replace(body=b'{"item":"x"}'), policy)
    assert key_of(FIRST, policy) != key_of(FIRST._replace(body=b'{"item":"y"}'), policy)
    for body, problem in ((b"{}", Problem.KEY_MISSING), (b"{", Problem.KEY_INVALID), (b"", Problem.KEY_MISSING)):
        verdict = decided(FIRST._replace(body=body), policy)
        assert isinstance(verdict, Refuse)
        assert verdict.refusal.problem is problem


def test_who_brings_a_key_is_given_no_other() -> None:
    """Nor is whoever needs none: PUT and DELETE pass, safe methods too."""
    verdict = decided(FIRST._replace(fields=[(b"Idempotency-Key", b"k"), *FIRST.fields]))
    assert isinstance(verdict, Guard)
    assert verdict.key == Key(b"k")
    assert verdict.origin != DERIVED
    for method in (b"PUT", b"DELETE"):
        assert decided(FIRST._replace(method=method)) == Pass(PassReason.NO_KEY)
    assert decided(FIRST._replace(method=b"GET")) == Pass(PassReason.SAFE_METHOD)


def test_connection_may_not_name_what_a_key_is_derived_from() -> None:
    """The service would be sent the request without its credentials."""
    verdict = decided(FIRST._replace(fields=[*FIRST.fields, (b"Connection", b"Authorization")]))
    assert isinstance(verdict, Refuse)
    assert verdict.refusal.problem is Problem.KEY_INVALID


def test_the_rules_of_a_derived_key() -> None:
    """Its own window, and ten minutes of doubt, or the lease."""
    route = Route("r", "app", policy=replace(DERIVES, timeout=20 * DERIVED_DOUBT))
    assert route.derived.policy.window == 10_000
    assert route.derived.policy.doubt_window == route.policy.lease
    assert route.derived.derived is route.derived
    assert Route("r", "app").derived.policy == Policy()


# ── Sent ──────────────────────────────────────────────────────────────────────────────────────────

NAME = b"9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo"


def test_the_service_is_told_the_key_in_its_own_field() -> None:
    """In place of what the client sent there; quoted where it could not be read bare; or as a UUID of its record."""
    fields = fields_of([(b"Host", b"h"), (b"paypal-request-id", b"mine"), (b"Idempotency-Key", b"k")])
    sent = with_key(fields, [SendKey(b"PayPal-Request-Id"), SendKey(b"X-Id", SentAs.UUID)], Key(b"a b"), NAME)
    assert list(sent) == [
        (b"Host", b"h"),
        (b"Idempotency-Key", b"k"),
        (b"PayPal-Request-Id", b'"a b"'),
        (b"X-Id", b"cb700834-7e63-5106-87c4-575fd803e09c"),
    ]


def test_a_uuid_that_is_sent_never_changes() -> None:
    """The service would take a retry for another request. Never mended by pinning what came out."""
    assert UUID("7c1c5a52-0d0e-5b58-9d5f-6f0c6b1f3a01") == NAMESPACE
    made = uuid5(NAMESPACE, NAME.decode())
    assert (made.version, str(made)) == (5, "cb700834-7e63-5106-87c4-575fd803e09c")


# ── Bound ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_bound_elsewhere_counts_as_a_credential() -> None:
    """Another value, none, and an empty one are four fingerprints; one that nobody read is an error, not nothing."""
    recipe = Recipe(("default", "query:tenant"))
    assert recipe.elsewhere == ("query:tenant",)
    assert b"query:tenant" not in recipe.fields
    made = {
        fingerprint(FIRST, recipe, elsewhere={"query:tenant": value}).credentials for value in (b"a", b"b", b"", None)
    }
    assert len(made) == 4
    with pytest.raises(KeyError):
        fingerprint(FIRST, recipe)

"""What stands in the stores of others: these values never change.

A record is found under its name, compared by its fingerprint and read from its bytes, by whichever
version of the gate comes next. A change here forgets every live key or takes every retry for another
request. A test that fails in this file is not mended by pinning what came out: a new format gets a new
version byte, a new recipe or a new purpose, and the old one goes on being read beside it.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

import pytest

from gateway.core.fingerprint import Fingerprint, Recipe, fingerprint
from gateway.core.key import DERIVED, SENT, Key, ScopePart, read, record_name
from gateway.core.message import Answer, Field, Request
from gateway.core.record import HOLDER_BYTES, Doubt, Record, State
from gateway.stores.codec import HOLDER_AT, HOLDER_END, STATE_AT, decode, encode


class Input(NamedTuple):
    """A fixed request and what names it; `key` is the field's value as it was sent."""

    key: bytes
    request: Request
    service: bytes = b"default"
    namespace: bytes = b"default"
    scope: tuple[ScopePart, ...] = ()
    origin: bytes = SENT
    secret: bytes = b""
    recipe: Recipe = Recipe()
    certificate: bytes = b""


HOST: Field = (b"Host", b"shop.example")
JSON: Field = (b"Content-Type", b"application/json")
BEARER: Field = (b"Authorization", b"Bearer eyJhbGciOiJIUzI1NiJ9.e30.x")


def post(
    *fields: Field, target: bytes = b"/payments", body: bytes = b'{"amount":100}', method: bytes = b"POST"
) -> Request:
    return Request(method, target, list(fields), body)


PLAIN = post(HOST, JSON, BEARER)
UUID = b"8e03978e-40d5-43e8-bc93-6894a57f9324"
FORM = b'preamble\r\n--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--B \t\r\n\r\n--b\r\n--B--\r\nepilogue'

NESTED = b"--B\r\nContent-Type: multipart/mixed; boundary=C\r\n\r\n--C\r\n\r\n1\r\n--C--\r\n--B--"


def multipart(boundary: bytes, body: bytes = FORM) -> Request:
    return post(HOST, BEARER, (b"Content-Type", b"multipart/form-data; boundary=" + boundary + b"; x=y"), body=body)


INPUTS = {
    "the plain one": Input(UUID, PLAIN),
    "quoted, with parameters": Input(b'"' + UUID + b'";v=1; q=?0', PLAIN),
    "a key of one character": Input(b"k", PLAIN),
    "a key of 255 characters": Input(b"k" * 255, PLAIN),
    "a key with spaces": Input(b'" a key  with spaces "', PLAIN),
    "a key with escapes": Input(rb'"a \"key\" with \\escapes\\"', PLAIN),
    "a service": Input(UUID, PLAIN, service=b"shop"),
    "a service and a namespace": Input(UUID, PLAIN, service=b"shop", namespace=b"refunds"),
    "a service in UTF-8": Input(UUID, PLAIN, service="läden/支付".encode(), namespace=b""),
    "a scope": Input(UUID, PLAIN, scope=((b"header:x-tenant-id", b"acme"),)),
    "a scope of two": Input(
        UUID, PLAIN, scope=((b"header:x-tenant-id", b"acme"), (b"header:authorization", b"Bearer caf\xc3\xa9"))
    ),
    "a derived key": Input(UUID, PLAIN, namespace=b"derived", origin=DERIVED),
    "a secret": Input(UUID, PLAIN, secret=b"correct horse battery staple"),
    "a secret of 64 bytes": Input(UUID, PLAIN, secret=bytes(range(64))),
    "no fields and no body": Input(UUID, Request(b"POST", b"/", [], b"")),
    "no content type": Input(UUID, post(HOST, BEARER)),
    "an empty content type": Input(UUID, post(HOST, BEARER, (b"Content-Type", b" \t"))),
    "two content types": Input(UUID, post(HOST, BEARER, JSON, (b"content-type", b"text/plain"))),
    "a host in capitals with a port": Input(UUID, post((b"HOST", b"  Shop.EXAMPLE:8443\t"), JSON, BEARER)),
    "an address as host": Input(UUID, post((b"Host", b"[::1]:8080"), JSON, BEARER)),
    "a method and an operation in fields": Input(
        UUID, post(HOST, JSON, BEARER, (b"SOAPAction", b'"urn:a"'), (b"X-HTTP-Method-Override", b"PATCH"))
    ),
    "a query, escapes and octets": Input(
        UUID, post(HOST, JSON, BEARER, target=b"/p/%7eb/../c?d=%20&e=\xff", method=b"PATCH")
    ),
    "a target of 511 bytes": Input(UUID, post(HOST, JSON, BEARER, target=b"/" + b"x" * 510)),
    "a target of 512 bytes": Input(UUID, post(HOST, JSON, BEARER, target=b"/" + b"x" * 511)),
    "a coding and a body of 70 000 bytes": Input(
        UUID, post(HOST, JSON, BEARER, (b"Content-Encoding", b"gzip"), body=bytes(range(256)) * 273 + bytes(112))
    ),
    "three credentials and a cookie": Input(
        UUID, post(HOST, JSON, (b"Api-Key", b"a"), (b"Cookie", b"c=1"), (b"X-API-Key", b"b"), BEARER, (b"api-key", b""))
    ),
    "cookies only": Input(UUID, post(HOST, JSON, (b"Cookie", b"session=1; theme=dark"), (b"Cookie", b"x=2"))),
    "cookies of a load balancer and a session": Input(
        UUID, post(HOST, JSON, (b"Cookie", b"AWSALB=1; session=1; theme=dark; __cf_bm=2"), (b"Cookie", b"x=2"))
    ),
    "a client certificate": Input(
        UUID, post(HOST, JSON, (b"Cookie", b"session=1")), certificate=b"\x30\x82\x01\x0a" + bytes(range(200))
    ),
    "a multipart form": Input(UUID, multipart(b"B")),
    "a multipart form that is not closed": Input(UUID, multipart(b'"B"', FORM[:-12])),
    "a multipart form without parts": Input(UUID, multipart(b"B", b"--B--\r\n")),
    "a multipart body within a form": Input(UUID, multipart(b"B", NESTED)),
    "nothing bound, two fields in the recipe": Input(
        UUID,
        post(HOST, JSON, BEARER, (b"X-Amount", b"1"), (b"x-amount", b"2")),
        recipe=Recipe(bind=(), headers=(b"x-amount", b"x-currency")),
    ),
    "all that a recipe can say": Input(
        UUID,
        post(HOST, JSON, (b"Cookie", b"lb_1=1; session=1")),
        recipe=Recipe(beyond_site=b"shop.example:8443", ignore_cookies=("lb_*",)),
    ),
    "bound besides, and all at once": Input(
        b'"\\"all\\" at once"',
        post(HOST, JSON, BEARER, (b"X-Org", b"o"), (b"X-Currency", b"EUR"), method=b"DELETE", body=b""),
        service=b"shop",
        namespace=b"orders",
        scope=((b"header:x-org", b"o"),),
        secret=b"s",
        recipe=Recipe(bind=("default", "header:x-org", "header:x-absent"), headers=(b"x-currency",)),
        certificate=b"\x30\x03",
    ),
}

#: Name of the record; then, in hex, recipe · request · credentials · tags.
PINNED: dict[str, tuple[str, str]] = {
    "the plain one": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "quoted, with parameters": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a key of one character": (
        "YiX8P9fUIscbI_OnsnMPvMYssCrG6MK3d0g-e2A7iqM",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a key of 255 characters": (
        "4aD5rnIca-W0hFYRwaSHUKEgInj7Pxd7Iuok9iW-vo0",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a key with spaces": (
        "KuuXyuFADP191__8d5cmB7e3hh9T8S06kfjUA73j_0g",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a key with escapes": (
        "SAjGuoeWcZiCI3gd7_BTeJ0BJI2lNbbQYnMcptlWP5k",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a service": (
        "8k2B-eLS_PuU1C3scsotnVTL2GSQTmki51nEStV_xZI",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a service and a namespace": (
        "LO7yk_th4KoGyZAes-s_7ZvWUraMKg5Wt7DNBVfySUA",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a service in UTF-8": (
        "otyFb27YRoBq26cDXFejfxbGYbJU0IJIDruCoSKsG-c",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a scope": (
        "kfkYxJrODGeyRpFzm6GIoMQCXAuzYExyAqX7JF-65Cc",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a scope of two": (
        "Od4GVoY40YzLLy3uF7de16zsrj0iYVXsLZ3tizzqisg",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a derived key": (
        "fA5k53hbTUxwbYGlILRis0AinJGqlYazFFY6mWs1lB0",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "a secret": (
        "wi-0MbdAGUTGFxXM52PARa3XL_NwYJtOJLV8N45Gtfk",
        "18d7e191 f82b48c081f955554d88a39016ed416a 72c3f2e9783ff11ee41dee2de8f16445 6c2bfd557e26b8ee5eea597a",
    ),
    "a secret of 64 bytes": (
        "u6W6Zj5cG-RF6lOBtBnuXGbZha58NRleGTmOGBKtxyE",
        "18d7e191 9bff973efe6daf76b7f33d397868b3a3 01e10932a47ddf113b399883b664f8e0 3dc722d8bfe6c4fa629fdf1f",
    ),
    "no fields and no body": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 b42ec698832479c256e21a71bf7dfad1 052a2f104c34febfe42e9b673a94160d 8981751894c3aa83c433aedb",
    ),
    "no content type": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 f84ae111c4310f4a5a04d6b59457c660 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6aa83c433bcdb",
    ),
    "an empty content type": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 f33a801f26496c5e7f385b78a93bf9a8 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6b821c433bcdb",
    ),
    "two content types": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 3e0ca3882e70075e25bc7e490b1a16e9 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6c70ec433bcdb",
    ),
    "a host in capitals with a port": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 964bce026b6631f66c36e3023db339d3 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1dac433bcdb",
    ),
    "an address as host": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 6fe4d88cda5a94f3c3c0f2c9e4f0614a effbff32ddcbdc4dc9d097a588793298 898175185ba6d1dac433bcdb",
    ),
    "a method and an operation in fields": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 f64c470af1490383a6dac58389ca0367 effbff32ddcbdc4dc9d097a588793298 3a790dc65ba6d1dac433bcdb",
    ),
    "a query, escapes and octets": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 656d9d4c07c05f971941fa69825e145f effbff32ddcbdc4dc9d097a588793298 de010dc6e44ed1dac433bcdb",
    ),
    "a target of 511 bytes": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 524a0b178a3f9490c1e5838c788d8aac effbff32ddcbdc4dc9d097a588793298 89810dc6d924d1dac433bcdb",
    ),
    "a target of 512 bytes": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 3630c89cd0e05eb21a166e3f50e5a8a4 effbff32ddcbdc4dc9d097a588793298 89810dc6e3ded1dac433bcdb",
    ),
    "a coding and a body of 70 000 bytes": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 598d317e0b168bb78eaee0e4b2721402 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6d1da5a7b74ef",
    ),
    "three credentials and a cookie": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 964bce026b6631f66c36e3023db339d3 673be7732036e7867577ab73438e31d2 89810dc65ba6d1dac433bcdb",
    ),
    "cookies only": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 964bce026b6631f66c36e3023db339d3 b8dbb69348a4dee30611ea792f05abbe 89810dc65ba6d1dac433bcdb",
    ),
    "cookies of a load balancer and a session": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 964bce026b6631f66c36e3023db339d3 b8dbb69348a4dee30611ea792f05abbe 89810dc65ba6d1dac433bcdb",
    ),
    "a client certificate": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 964bce026b6631f66c36e3023db339d3 1fb11471e05004a94696e0904febd824 89810dc65ba6d1dac433bcdb",
    ),
    "a multipart form": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 293fca6dd908dfbc106972452e7312bf effbff32ddcbdc4dc9d097a588793298 89810dc65ba6f22ec433b6b4",
    ),
    "a multipart form that is not closed": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 4de823067ea31233d79b4f7fd3980ae2 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6f22ec4332b37",
    ),
    "a multipart form without parts": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 32502d6aab9199ea00aa384c0928120e effbff32ddcbdc4dc9d097a588793298 89810dc65ba6f22ec4330b49",
    ),
    "a multipart body within a form": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "18d7e191 30e5a7d0ee137cf2b15f5b338141abb2 effbff32ddcbdc4dc9d097a588793298 89810dc65ba6f22ec4331ed6",
    ),
    "nothing bound, two fields in the recipe": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "b9834ccd 08de867dde27201caa1b702fca55d777 052a2f104c34febfe42e9b673a94160d 89810dc65ba6d1dac433bcdb4f5235d0",
    ),
    "all that a recipe can say": (
        "9pzJGZDYvOH2u1OLo2TuznRYxbKyNurLcDGWsdsLmuo",
        "26a87971 13fba9e040f8c91d27c1f9847af7430c 7691737ee238cf7233704e1d381f8456 8981c6d05ba6d1dac433bcdb",
    ),
    "bound besides, and all at once": (
        "lEc2iXZ-WI6TqgmB_JHgNYcm7D5fJXU-I1oRrNBgkHE",
        "0ca69d00 ff3bf6a37dd31a936d78578b87f0e052 9e0332da305a08fa37c47bcf27924fcc 6ff5a715e21843e3f96d3233ffb3",
    ),
}


def name_of(given: Input) -> bytes:
    key = read(given.key)
    assert isinstance(key, Key)
    return record_name(given.service, given.namespace, given.scope, key, origin=given.origin, secret=given.secret)


def fingerprint_of(given: Input) -> Fingerprint:
    return fingerprint(given.request, given.recipe, secret=given.secret, certificate=given.certificate)


@pytest.mark.parametrize("title", INPUTS)
def test_a_record_is_found_under_the_name_it_was_stored_under(title: str) -> None:
    """For ever: another name is a key forgotten, and a request run twice."""
    assert name_of(INPUTS[title]).decode() == PINNED[title][0]


@pytest.mark.parametrize("title", INPUTS)
def test_a_request_is_taken_for_the_one_that_was_stored(title: str) -> None:
    """For ever: another fingerprint is a retry refused."""
    made = fingerprint_of(INPUTS[title])
    assert " ".join(map(bytes.hex, (made.recipe, made.request, made.credentials, made.tags))) == PINNED[title][1]


def test_each_input_is_pinned() -> None:
    """None is dropped on the way, and only two spellings of one request share a name and a fingerprint."""
    assert list(PINNED) == list(INPUTS)
    assert len(INPUTS) == 36
    assert PINNED["quoted, with parameters"] == PINNED["the plain one"] == PINNED["a host in capitals with a port"]
    assert PINNED["cookies of a load balancer and a session"] == PINNED["cookies only"]
    assert len(set(PINNED.values())) == 33


def framed(person: bytes, *parts: bytes) -> bytes:
    """The digest, in a few words of hashlib: every part behind its length in eight bytes, little-endian."""
    text = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return blake2b(text, digest_size=32, person=person).digest()


def test_the_plain_one_can_be_made_without_the_gate() -> None:
    """So that the format is what this says, and not only what the code does."""
    name = framed(b"oncegate/name", b"default", b"default", b"sent", b"\0\0", UUID)
    made = fingerprint_of(INPUTS["the plain one"])
    body = framed(b"oncegate/body", b"raw", b'{"amount":100}')
    host, kind, coding = b"\x01shop.example", b"\x01application/json", b"\x00"
    assert urlsafe_b64decode(name_of(INPUTS["the plain one"]) + b"=") == name
    assert made.request == framed(b"oncegate/request", b"POST", host, b"/payments", kind, coding, body)[:16]
    assert made.credentials == framed(b"oncegate/bound", b"authorization", b"\x01" + BEARER[1])[:16]
    parts = {
        b"method": b"POST",
        b"host": host,
        b"target": b"/payments",
        b"content-type": kind,
        b"content-encoding": coding,
    }
    tags = [framed(b"oncegate/part", part, value)[:2] for part, value in parts.items()]
    assert made.tags == b"".join(tags) + body[:2]
    assert made.recipe == framed(b"oncegate/recipe", b"2", b"raw", b"host", b"", b"1", b"default", b"0", b"0", b"0")[:4]


RECIPES = [
    (Recipe(), "18d7e191"),
    (Recipe(bind=()), "a292bf7e"),
    (Recipe(bind=("header:x-tenant-id",)), "8c6c062d"),
    (Recipe(bind=("default", "header:x-tenant-id")), "4071d0c7"),
    (Recipe(host=False), "34427b3d"),
    (Recipe(beyond_site=b"shop.example:8443"), "b75be7ae"),
    (Recipe(body="canonical-json", ignore=("/a", "/b")), "fb0722b1"),
    (Recipe(ignore_cookies=("lb", "lb_*")), "4c2bf3d2"),
    (Recipe(headers=(b"x-amount",)), "6f3be05f"),
    (Recipe(bind=("header:x-tenant-id", "default"), headers=(b"x-amount", b"x-currency")), "b5197fec"),
]


@pytest.mark.parametrize(("recipe", "pinned"), RECIPES)
def test_a_recipe_keeps_its_id(recipe: Recipe, pinned: str) -> None:
    """Another id is 409 `policy-changed` for every live key of the route."""
    assert recipe.id.hex() == pinned


# ── The bytes of a record ─────────────────────────────────────────────────────────────────────────

PRINT = Fingerprint(b"\xa1\xa2\xa3\xa4" + bytes(range(16)) + bytes(range(16, 32)), bytes(range(64, 76)))
RECORDS = {
    "in flight": Record(
        State.IN_FLIGHT,
        b"holder of 12",
        2,
        PRINT,
        "payments",
        first_seen=1_700_000_000_000,
        expires=1_700_604_895_001,
        life=604_895_001,
        lease=95_000,
        window=86_400_000,
    ),
    "completed": Record(
        State.COMPLETED,
        bytes(range(0xF4, 0x100)),
        1,
        PRINT,
        "Läden",
        first_seen=1_700_000_000_000,
        expires=1_700_086_400_321,
        life=86_400_000,
        lease=95_000,
        window=86_400_000,
        status=201,
        answer=Answer(201, b"Content-Type: text/plain\r\nX-A: \xff\r\n", b"\x00body\r\n"),
    ),
    "in doubt": Record(
        State.IN_DOUBT,
        b"holder of 12",
        1,
        Fingerprint(b"\0\0\0\0" + b"\xff" * 16 + bytes(16), b""),
        "",
        first_seen=0,
        expires=(1 << 48) - 1,
        life=(1 << 40) - 1,
        lease=1,
        window=(1 << 40) - 1,
        status=599,
        doubt=Doubt.LAPSED,
    ),
}
BYTES: dict[str, str] = {
    "in flight": (
        "01010268 6f6c6465 72206f66 20313200 00a1a2a3 a4000102 03040506 0708090a 0b0c0d0e 0f101112 "
        "13141516 1718191a 1b1c1d1e 1f0068e5 cf8b0119 5ff3f38b 0119f70d 24001873 01000000 5c260500 "
        "06404142 43444546 4748494a 4b087061 796d656e 7473"
    ),
    "completed": (
        "010201f4 f5f6f7f8 f9fafbfc fdfeffc9 00a1a2a3 a4000102 03040506 0708090a 0b0c0d0e 0f101112 "
        "13141516 1718191a 1b1c1d1e 1f0068e5 cf8b0141 c50bd58b 01005c26 05001873 01000000 5c260500 "
        "06404142 43444546 4748494a 4b064cc3 a464656e 01220000 00436f6e 74656e74 2d547970 653a2074 "
        "6578742f 706c6169 6e0d0a58 2d413a20 ff0d0a00 626f6479 0d0a"
    ),
    "in doubt": (
        "01630168 6f6c6465 72206f66 20313257 02000000 00ffffff ffffffff ffffffff ffffffff ff000000 "
        "00000000 00000000 00000000 00000000 000000ff ffffffff ffffffff ffff0100 000000ff ffffffff "
        "0000"
    ),
}


@pytest.mark.parametrize("title", RECORDS)
def test_a_record_is_written_as_it_was(title: str) -> None:
    """Version 1, byte for byte."""
    assert encode(RECORDS[title]).hex(" ", -4) == BYTES[title]


@pytest.mark.parametrize("title", RECORDS)
def test_a_record_is_read_as_it_was_written(title: str) -> None:
    """Nothing is lost on the way, and the bytes of an older gate are read."""
    assert decode(bytes.fromhex(BYTES[title])) == RECORDS[title]


def test_a_tombstone_is_not_an_empty_answer() -> None:
    """One byte tells them apart."""
    for body in (None, b""):
        written = replace(RECORDS["completed"], answer=Answer(201, b"", body))
        assert decode(encode(written)) == written


@pytest.mark.parametrize("title", RECORDS)
def test_what_scripts_rely_on_stands_where_they_look(title: str) -> None:
    """Version, state and holder, at offsets that no later version moves."""
    value, record = bytes.fromhex(BYTES[title]), RECORDS[title]
    assert (STATE_AT, HOLDER_AT, HOLDER_END) == (1, 3, 15)
    assert value[0] == 1
    assert value[STATE_AT] & 15 == record.state
    assert value[HOLDER_AT:HOLDER_END] == record.holder
    assert len(record.holder) == HOLDER_BYTES


def test_the_numbers_of_states_and_doubts_are_written_down() -> None:
    """They stand in every record."""
    assert {state.name: int(state) for state in State} == {"IN_FLIGHT": 1, "COMPLETED": 2, "IN_DOUBT": 3}
    doubts = {"NONE": 0, "LOST": 1, "TIMEOUT": 2, "STATUS": 3, "DECLARED": 4, "STOPPED": 5, "LAPSED": 6}
    assert {doubt.name: int(doubt) for doubt in Doubt} == doubts

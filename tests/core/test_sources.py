"""Keys out of every place of a request: what is one key, what is another, and what is none."""

from __future__ import annotations

import json
from itertools import product
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.decide import Guard, Refuse, admit
from gateway.core.key import COMPOSITE, SENT, Key, Unreadable, record_name
from gateway.core.keyed import Keyed, keyed, quoted
from gateway.core.keyform import ANY, SF_STRING, ULID, UUID, Format, KeyRule, WeakKeys
from gateway.core.message import Field, Request
from gateway.core.policy import Policy
from gateway.core.source import Place, Reader, Source

JSON: Field = (b"Content-Type", b"application/json")
FORM: Field = (b"Content-Type", b"application/x-www-form-urlencoded")
MULTIPART: Field = (b"Content-Type", b'multipart/form-data; boundary="B"')


def of(request: Request, *labels: str, rule: KeyRule | None = None) -> Keyed | Unreadable | None:
    return keyed(Reader(request), [Source.of(label) for label in labels], rule or KeyRule())


def text_of(request: Request, label: str) -> bytes | None:
    """The key that stands there; None where there is none. Raises where it cannot be told."""
    found = of(request, label)
    assert not isinstance(found, Unreadable), found.why
    return None if found is None else found.key.text


def why(request: Request, *labels: str, rule: KeyRule | None = None) -> str:
    found = of(request, *labels, rule=rule)
    assert isinstance(found, Unreadable), found
    return found.why


def post(*fields: Field, target: bytes = b"/v1/orders/7", body: bytes = b"") -> Request:
    return Request(b"POST", target, list(fields), body)


def part(name: str, text: str, more: str = "") -> str:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{text}\r\n'


# ── Each place ────────────────────────────────────────────────────────────────────────────────────

READ: list[tuple[str, Request, bytes | None]] = [
    ("header:x-id", post((b"X-ID", b' "k 1";v=2 ')), b"k 1"),
    ("header:x-id", post((b"X-ID", b"k1")), b"k1"),
    ("header:x-id", post(), None),
    ("query:id", post(target=b"/?a=1&id=k%201%2b&b"), b"k 1+"),
    ("query:id", post(target=b"/?%69d=a+b"), b"a b"),
    ("query:id", post(target=b"/?ID=k&idd=l&d=%zz"), None),
    ("query:id", post(), None),
    ("cookie:id", post((b"Cookie", b"a=1; id=k=1;b"), (b"Cookie", b"c=2")), b"k=1"),
    ("cookie:id", post((b"Cookie", b"ID=k; xid=l")), None),
    ("path:3", post(), b"7"),
    ("path:1", post(target=b"/a%20b/c?d"), b"a b"),
    ("path:4", post(), None),
    ("path:3", post(target=b"/v1/orders/"), None),
    ("body:/id", post(JSON, body=b'{"id":"k","x":{"id":"l"}}'), b"k"),
    ("body:/a~1b/1/~0", post(body=b'{"a/b":[0,{"~":"k\\u0041"}]}'), b"kA"),
    ("body:/id", post(body=b'{"id": 1234567890123456789012345}'), b"1234567890123456789012345"),
    ("body:/id", post(body=b'{"x":1,"x":2,"id":"k"}'), b"k"),
    ("body:/id", post(body=b'{"id":null}'), None),
    ("body:/id/x", post(body=b'{"id":"k"}'), None),
    ("body:/id", post(body=b'\xef\xbb\xbf{"id":"k"}'), b"k"),
    ("body:/3", post(body=b"[1]"), None),
    ("body:/01", post(body=b"[1,2]"), None),
    ("body:/id", post(body=b'"k"'), None),
    ("body:/id", post(), None),
    ("form:id", post(FORM, body=b"a=1&id=k+1%21"), b"k 1!"),
    ("form:id", post(FORM, body=b"a=1"), None),
    ("form:id", post(), None),
    ("form:id", post(MULTIPART, body=(part("a", "1") + part("id", "k 1") + "--B--").encode()), b"k 1"),
    ("form:id", post(MULTIPART, body=(part("a", "1") + "--B--").encode()), None),
]


@pytest.mark.parametrize(("label", "request_", "key"), READ)
def test_a_key_is_read_where_it_stands(label: str, request_: Request, key: bytes | None) -> None:
    """Or it is not there, which is another thing than that it cannot be read."""
    assert text_of(request_, label) == key


REFUSED: list[tuple[str, Request, str]] = [
    ("header:x-id", post((b"X-Id", b"k"), (b"x-id", b"k")), "the field x-id is repeated"),
    ("header:x-id", post((b"X-Id", b'"k')), "quotation"),
    ("query:id", post(target=b"/?id=k&%69d=k"), "the parameter is there twice"),
    ("query:id", post(target=b"/?id=%zz"), "broken escape"),
    ("query:id", post(target=b"/?id="), "empty"),
    ("query:id", post(target=b"/?id"), "empty"),
    ("query:id", post(target=b"/?id=%00"), "printable"),
    ("query:id", post(target=b"/?id=%C3%A9"), "printable"),
    ("query:id", post(target=b"/?id=" + b"k" * 256), "255"),
    ("query:id", post(target=b"/?" + b"&" * 10_001), "more than 10000"),
    ("cookie:id", post((b"Cookie", b"id=k; id=k")), "the cookie is there twice"),
    ("cookie:id", post((b"Cookie", b"id=k"), (b"Cookie", b"id=k")), "the cookie is there twice"),
    ("path:2", post(target=b"/a//b"), "reads in two ways"),
    ("path:2", post(target=b"/a/../b"), "reads in two ways"),
    ("path:2", post(target=b"/a/%2e%2e/b"), "reads in two ways"),
    ("path:2", post(target=b"/a%2F/b"), "reads in two ways"),
    ("body:/id", post(body=b'{"id":"k","id":"k"}'), "twice"),
    ("body:/a/id", post(body=b'{"a":{"id":"k"},"b":1,"a":{"id":"k"}}'), "twice"),
    ("body:/id", post(body=b'{"id":"k"'), "not JSON"),
    ("body:/id", post(body=b'{"id":"k"} x'), "not JSON"),
    ("body:/id", post(body=b'{"id":NaN}'), "not JSON"),
    ("body:/id", post(body=b'{"id":"k","x":-Infinity}'), "not JSON"),
    ("body:/id", post(body=b'{"id":"\xff"}'), "not JSON"),
    ("body:/id", post(body='{"id":"k"}'.encode("utf-16")), "not JSON"),
    ("body:/id", post(body=b'\xef\xbb\xbf\xef\xbb\xbf{"id":"k"}'), "not JSON"),
    ("body:/id", post(body='{"id":"k"}'.encode("utf-16-be")), "not JSON"),
    ("body:/id", post(body=b'{"id":"a\nb"}'), "not JSON"),
    ("body:/id", post(body=b"[" * 100_000), "not JSON"),
    ("body:/id", post(body=b'{"a":%b,"id":"k"}' % (b"9" * 5000)), "not JSON"),
    ("body:/id", post(body=b'{"id":"k","a":[%b0]}' % (b"0," * 250_000)), "more than 250000 values"),
    ("body:/id", post(body=b'{"id":1.0}'), "fraction"),
    ("body:/id", post(body=b'{"id":1e3}'), "fraction"),
    ("body:/id", post(body=b'{"id":true}'), "boolean"),
    ("body:/id", post(body=b'{"id":{}}'), "object or an array"),
    ("body:/id", post(body=b'{"id":["k"]}'), "object or an array"),
    ("body:/id", post(body=b'{"id":"\\ud800"}'), "surrogate"),
    ("body:/id", post(body=b'{"id":""}'), "empty"),
    ("body:/id", post((b"Content-Encoding", b"gzip"), body=b'{"id":"k"}'), "compressed"),
    ("form:id", post(FORM, (b"Content-Encoding", b"br"), body=b"id=k"), "compressed"),
    ("form:id", post(FORM, body=b"id=k&id=k"), "twice"),
    ("form:id", post(JSON, body=b'{"id":"k"}'), "not a form"),
    ("form:id", post(FORM, FORM, body=b"id=k"), "not a form"),
    ("form:id", post(body=b"id=k"), "not a form"),
    ("form:id", post(MULTIPART, body=part("id", "k").encode()), "not the multipart form"),
    ("form:id", post(MULTIPART, body=(part("id", "k") * 2 + "--B--").encode()), "twice"),
    ("form:id", post(MULTIPART, body=(part("id", "k", '; filename="a"') + "--B--").encode()), "a file"),
    ("form:id", post(MULTIPART, body=(part("id", "k", "; name*=utf-8''x") + "--B--").encode()), "in two ways"),
    ("form:id", post(MULTIPART, body=(part("id", "k", '; name="x"') + "--B--").encode()), "one name"),
    ("form:id", post(MULTIPART, body=b"--B\r\nX: y\r\n\r\nk\r\n--B--"), "one name"),
]


@pytest.mark.parametrize(("label", "request_", "said"), REFUSED)
def test_what_two_readers_may_take_differently_is_no_key(label: str, request_: Request, said: str) -> None:
    """Twice, broken, compressed, of another type: refused with the reason, never chosen from."""
    assert said in why(request_, label)


# ── Formats ───────────────────────────────────────────────────────────────────────────────────────

SOME_UUID = b"8E03978e-40d5-43e8-bc93-6894a57f9324"
SOME_ULID = b"01ARZ3NDEKTSV4RRFFQ69G5FAV"
HEX = Format("/[0-9a-f]+/", lambda text: all(byte in b"0123456789abcdef" for byte in text))

FORMED: list[tuple[Format, bytes, bool]] = [
    (UUID, SOME_UUID, True),
    (UUID, SOME_UUID[:-1], False),
    (UUID, SOME_UUID + b"0", False),
    (UUID, b"0" + SOME_UUID, False),
    (UUID, b"{" + SOME_UUID + b"}", False),
    (UUID, SOME_UUID.replace(b"-", b""), False),
    (UUID, SOME_UUID.replace(b"8", b"g"), False),
    (ULID, SOME_ULID, True),
    (ULID, SOME_ULID.lower(), True),
    (ULID, b"8" + SOME_ULID[1:], False),
    (ULID, SOME_ULID.replace(b"A", b"U"), False),
    (ULID, SOME_ULID + b"0", False),
    (HEX, b"0af", True),
    (HEX, b"0ag", False),
    (ANY, b"x", True),
]


@pytest.mark.parametrize(("form", "text", "kept"), FORMED)
@pytest.mark.parametrize("label", ["query:id", "header:x-id"])
def test_a_format_is_for_the_whole_key(label: str, form: Format, text: bytes, kept: bool) -> None:
    """A key of it is taken; anything else is refused with the format's name, and the key is not quoted."""
    request = post((b"X-Id", text), target=b"/?id=" + quote(text).encode())
    if kept:
        canonical = form.canonical or bytes
        assert of(request, label, rule=KeyRule(form)).key.text == canonical(text)  # type: ignore[union-attr]
    else:
        said = why(request, label, rule=KeyRule(form))
        assert form.name in said
        assert text.decode() not in said


SMALL_UUID = SOME_UUID.lower()
SPELLINGS = [
    (UUID, SMALL_UUID.upper(), SMALL_UUID),
    (UUID, SOME_UUID, SMALL_UUID),
    (ULID, SOME_ULID.lower(), SOME_ULID),
    (ULID, SOME_ULID[:9].lower() + SOME_ULID[9:], SOME_ULID),
    (HEX, b"0af4", b"0af4"),
    (ANY, SMALL_UUID.upper(), SMALL_UUID.upper()),
    (SF_STRING, SMALL_UUID.upper(), SMALL_UUID.upper()),
    (Format("/[0-9A-Fa-f-]{36}/", UUID.matches), SMALL_UUID.upper(), SMALL_UUID.upper()),
]


@pytest.mark.parametrize(("form", "sent", "named"), SPELLINGS)
def test_a_format_has_one_spelling_that_names_the_record(form: Format, sent: bytes, named: bytes) -> None:
    """A UUID in capitals is the UUID in small letters, and a ULID in small letters is the ULID in capitals. A pattern,
    a quoted string and any other key stay byte for byte."""
    assert of(post((b"X-Id", b'"%b"' % sent)), "header:x-id", rule=KeyRule(form)) == Keyed(Key(named))
    found = admit(b"POST", [(b"Idempotency-Key", b'"%b"' % sent)], Policy(key_rule=KeyRule(form)))
    assert isinstance(found, Guard)
    assert found.key == Key(named)


def test_two_fields_may_spell_one_uuid_in_two_ways() -> None:
    """With the format they carry one key. Without it they are two keys, which is refused."""
    fields = [(b"Idempotency-Key", SMALL_UUID), (b"X-Idempotency-Key", SMALL_UUID.upper())]
    found = admit(b"POST", fields, Policy(key_rule=KeyRule(UUID)))
    assert isinstance(found, Guard)
    assert found.key == Key(SMALL_UUID)
    assert isinstance(admit(b"POST", fields, Policy()), Refuse)


def test_of_a_composite_key_the_parts_of_the_client_have_the_format() -> None:
    """A segment of the path beside them stays byte for byte."""
    request = post((b"X-Id", SMALL_UUID.upper()), target=b"/Acme/pay")
    found = of(request, "path:1", "header:x-id", rule=KeyRule(UUID))
    assert isinstance(found, Keyed)
    assert found.key == Key(b'"Acme", "%b"' % SMALL_UUID)


def test_a_key_that_is_too_short_or_not_in_quotes() -> None:
    """Which rule it breaks."""
    assert "20 is the least" in why(post((b"X-Id", b"k" * 19)), "header:x-id", rule=KeyRule(min_length=20))
    assert of(post((b"X-Id", b"k" * 20)), "header:x-id", rule=KeyRule(min_length=20)) is not None
    assert "RFC 8941" in why(post((b"X-Id", b"k")), "header:x-id", rule=KeyRule(SF_STRING))
    assert of(post((b"X-Id", b'"k"')), "header:x-id", rule=KeyRule(SF_STRING)).key == Key(b"k")  # type: ignore[union-attr]


WEAK: list[tuple[bytes, str | None]] = [
    (b"1764004578", "timestamp"),
    (b"1764004578123", "timestamp"),
    (b"1764004578123456789", "timestamp"),
    (b"1764004578.25", "timestamp"),
    (b"2026-11-24T17:16:18.123Z", "timestamp"),
    (b"20261124171618", "timestamp"),
    (b"2026-11-24", "timestamp"),
    (b"7", "counter"),
    (b"000000123456", "counter"),
    (b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "low_variety"),
    (b"00000000-0000-0000-0000-000000000000", "low_variety"),
    (b"test", "low_variety"),
    *(
        (unset, "placeholder")
        for unset in (
            b"undefined",
            b"null",
            b"None",
            b"nil",
            b"NaN",
            b"-Infinity",
            b"(null)",
            b"<nil>",
            b"string",
            b"Guid",
            b"[object Object]",
            b"[object Promise]",
            b"<function uuid4 at 0x7f3ad0b4c0e0>",
            b"Optional.empty",
            b"<bound method Order.key of <shop.Order object at 0x7f3ad0b4c0e0>>",
            b"%!s(<nil>)",
            b"%!d(string=id)",
            b"{{$guid}}",
            b"{{ uuid4() }}",
            b"${uuid}",
            b"${{ github.run_id }}",
            b"#{SecureRandom.uuid}",
            b"{uuid}",
            b"{0}",
            b"{}",
            b"{% uuid 'v4' %}",
            b"<%= uuid %>",
            b"$(uuidgen)",
            b"$(cat /proc/sys/kernel/random/uuid)",
            b"$((RANDOM))",
            b"`uuidgen`",
            b"$KEY",
            b"%KEY%",
            b"%s",
            b"%(key)s",
            b"[[uuid]]",
            b"<uuid>",
            b"<your-key-here>",
            b"uuid()",
            b"order-undefined",
            b"undefined-undefined",
            b"payment_${orderId}",
            b"__UUID__",
            b"user:null:charge",
        )
    ),
    (SOME_UUID, None),
    *(
        (ordinary, None)
        for ordinary in (
            b"{%b}" % SOME_UUID,
            b"<20261130.4711.abc@mail.example>",
            b"order-4711-undefined",
            b"{{env}}-8e03978e40d5",
            b"annulled",
            b"nonexistent",
            b"Vilnius",
            b"nullify-order-seven",
            b"$2b$12$R9h/cIPz0gi.URNNX3kh2O",
            b"caf%C3%A9-of-the-day",
            b"kJhGfTyUiOpLkJh",
            b"a{b}c9",
            b"<8e03978e>",
        )
    ),
    (SOME_ULID, None),
    (b"order-4711", None),
    (b"9999999999999", None),
]


@pytest.mark.parametrize(("text", "weak"), WEAK[:-1])
def test_a_key_that_two_may_choose_alike(text: bytes, weak: str | None) -> None:
    """A point in time, a counter, few characters: named; refused where the route says so, and never quoted."""
    request = post((b"X-Id", quoted(text)))
    found = of(request, "header:x-id")
    assert isinstance(found, Keyed)
    assert found.weak == weak
    strict = of(request, "header:x-id", rule=KeyRule(weak=WeakKeys.REFUSE))
    if weak is None:
        assert strict == found
    else:
        assert isinstance(strict, Unreadable)
        assert text.decode() not in strict.why


# ── Composites ────────────────────────────────────────────────────────────────────────────────────


def test_the_parts_of_a_key_stand_apart() -> None:
    """(`a`, `b`) and the single key that is spelled like it are two; so are (`a, b`, `c`) and (`a`, `b, c`)."""
    two = of(post(target=b"/?x=a&y=b"), "query:x", "query:y")
    assert two == Keyed(Key(b'"a", "b"'), COMPOSITE, two.weak)  # type: ignore[union-attr]
    one = of(post(target=b"/?x=%22a%22%2C%20%22b%22"), "query:x")
    assert isinstance(one, Keyed)
    assert isinstance(two, Keyed)
    assert one.key == two.key
    names = {record_name(b"s", b"n", (), each.key, origin=each.origin) for each in (one, two)}
    assert len(names) == 2


def test_a_part_that_is_not_there() -> None:
    """All of them: no key. Some: no key that could be told. A segment of the path is there by itself and counts for
    neither."""
    assert of(post(target=b"/?z=1"), "query:x", "query:y") is None
    assert why(post(target=b"/?x=1"), "query:x", "query:y") == "its part query:y is not there"
    assert of(post(), "path:1", "header:x-id") is None
    assert why(post((b"X-Id", b"k")), "path:9", "header:x-id") == "its part path:9 is not there"
    assert why(post(target=b"/?x=1&y=%zz"), "query:x", "query:y").startswith("of its part query:y: ")


def test_a_rule_is_for_what_a_client_mints() -> None:
    """Not for the path beside it; and a composite is weak only if all that was minted is."""
    rule = KeyRule(UUID, weak=WeakKeys.REFUSE)
    request = post((b"X-Id", SOME_UUID), (b"X-No", b"1"), target=b"/orders/1")
    assert isinstance(of(request, "path:1", "header:x-id", rule=rule), Keyed)
    assert "of its part header:x-no" in why(request, "header:x-id", "header:x-no", rule=rule)
    assert of(request, "header:x-id", "header:x-no").weak is None  # type: ignore[union-attr]
    assert of(request, "path:1", "header:x-no").weak == "counter"  # type: ignore[union-attr]


# ── Equal requests, and distinct ones ─────────────────────────────────────────────────────────────

LABELS = ["header:x-id", "query:id", "cookie:id", "path:2", "body:/a/id", "form:id"]
letters = st.text("a,\"\\ b%&;='=+/0", min_size=1, max_size=4)


def spelled(values: dict[str, str], draw: st.DrawFn) -> Request:
    """A request that says these values, each at its source, in one of the ways in which that may be spelled."""
    flip = draw(st.booleans())
    fields: list[Field] = [(b"Accept", b"*/*")]
    path, query, body = "/x", "a=1", b""
    for label, text in values.items():
        match Source.of(label).place:
            case Place.HEADER:
                fields.append((b"X-Id" if flip else b"x-ID", quoted(text.encode()) + (b";v=1" if flip else b"")))
            case Place.QUERY:
                query = f"id={quote_plus(text)}" if flip else f"b=&%69d={quote(text, safe='')}"
            case Place.COOKIE:
                fields.append((b"Cookie", b"id=" + text.encode() if flip else b"a=1;  id=" + text.encode() + b" ;b=2"))
            case Place.PATH:
                path = f"/x/{quote(text, safe='')}" + ("/y" if flip else "")
            case Place.BODY:
                escaped = "".join(f"\\u{ord(letter):04x}" for letter in text)
                document = {"b": [1, {}], "a": {"id": text}}
                body = json.dumps(document).encode() if flip else b'{"a": {"id": "%b"}}' % escaped.encode()
            case Place.FORM:
                if flip:
                    fields.append(FORM)
                    body = b"a=1&id=" + quote_plus(text).encode()
                else:
                    fields.append(MULTIPART)
                    body = (part("b", "1") + part("id", text) + "--B--").encode()
    return Request(b"POST", f"{path}?{query}".encode(), fields, body)


def is_spellable(label: str, text: str) -> bool:
    match Source.of(label).place:
        case Place.COOKIE:
            return ";" not in text and text == text.strip()
        case Place.PATH:
            return not any(odd in f"/{text}/" for odd in ("//", "/.", "\\"))
    return True


@st.composite
def two_of_one_route(draw: st.DrawFn) -> tuple[list[str], list[dict[str, str]], list[Request]]:
    """A route's sources, and two requests with values there: equal ones often, and much alike otherwise."""
    labels = draw(st.permutations(LABELS).flatmap(lambda order: st.integers(1, 5).map(lambda n: order[:n])))
    if "body:/a/id" in labels and "form:id" in labels:
        labels.remove("form:id")  # a body is one or the other
    each = {label: letters.filter(lambda text, label=label: is_spellable(label, text)) for label in labels}
    one = draw(st.fixed_dictionaries(each))
    other = dict(one)
    for label in draw(st.lists(st.sampled_from(labels), max_size=2)):
        other[label] = draw(each[label])
    if draw(st.booleans()) and len(labels) > 1:  # the same letters, cut at another place
        first, second = labels[:2]
        moved = one[first] + one[second][:1], one[second][1:]
        if all(moved) and is_spellable(first, moved[0]) and is_spellable(second, moved[1]):
            other[first], other[second] = moved
    return labels, [one, other], [spelled(one, draw), spelled(other, draw)]


def name_of(found: Keyed) -> bytes:
    return record_name(b"shop", b"default", (), found.key, origin=found.origin)


@settings(max_examples=250, deadline=None)
@given(two_of_one_route())
def test_distinct_keys_never_share_a_name_and_equal_ones_always_do(
    given_: tuple[list[str], list[dict[str, str]], list[Request]],
) -> None:
    """Over all sets of sources, in any order, however each value is spelled: the same record just where every value
    is the same."""
    labels, values, requests = given_
    found = [of(request, *labels) for request in requests]
    assert all(isinstance(each, Keyed) for each in found), found
    one, other = found
    assert isinstance(one, Keyed)
    assert isinstance(other, Keyed)
    assert one.origin == (COMPOSITE if len(labels) > 1 else SENT)
    assert (name_of(one) == name_of(other)) == (values[0] == values[1])


def minted(form: Format) -> st.SearchStrategy[str]:
    if form == UUID:
        return st.uuids().map(str)
    if form == ULID:
        return st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=25, max_size=25).map(lambda text: "0" + text)
    if form == HEX:
        return st.text("0123456789abcdef", min_size=1, max_size=20)
    return letters


@pytest.mark.parametrize(("label", "form"), list(product(LABELS, [ANY, UUID, ULID, HEX])))
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_every_source_with_every_format(label: str, form: Format, data: st.DataObject) -> None:
    """A key of the format is the same key from whichever place; two keys are two records."""
    texts = [data.draw(minted(form).filter(lambda text: is_spellable(label, text))) for _ in range(2)]
    requests = [data.draw(st.composite(lambda draw, text=text: spelled({label: text}, draw))()) for text in texts]
    found = [of(request, label, rule=KeyRule(form)) for request in requests]
    for each, text in zip(found, texts, strict=True):
        assert isinstance(each, Keyed), each
        assert each.key == Key(text.encode())
        assert name_of(each) == record_name(b"shop", b"default", (), Key(text.encode()))
    assert (found[0] == found[1]) == (texts[0] == texts[1])
    if form in (UUID, ULID):
        text = texts[0].swapcase()
        swapped = data.draw(st.composite(lambda draw: spelled({label: text}, draw))())
        assert of(swapped, label, rule=KeyRule(form)) == found[0]

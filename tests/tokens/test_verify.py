"""What a token proves, and every way in which it proves nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.core.scope import ALGORITHMS, Proven, Tokens, Unproven
from gateway.jwks import LARGEST
from gateway.jwks import published as parsed
from gateway.tokens import verify
from gateway.tokens.keys import AGAIN, TRUSTED, Keys, Unfetched
from gateway.tokens.verify import Verifier
from tests.tokens.issuer import (
    EC_384,
    EC_521,
    EC_KEY,
    ED_KEY,
    ISSUER,
    NOW,
    OTHER_RSA,
    RSA_KEY,
    StoppedClock,
    by_hand,
    jwk,
    published,
    token,
)

ALL = published(
    jwk(RSA_KEY, kid="r"),
    jwk(EC_KEY, kid="e"),
    jwk(EC_384, kid="e384"),
    jwk(EC_521, kid="e521"),
    jwk(ED_KEY, kid="o"),
    jwk(OTHER_RSA, kid="r2"),
)


class Published:
    """Keys as they are published, read by `Keys` from the test's hand."""

    def __init__(self, data: bytes = ALL, **changed: Any) -> None:
        self.data: bytes | None = data
        self.clock = StoppedClock()
        self.keys = Keys(Tokens("by hand", ISSUER, **changed), self.clock, lambda *_, **__: None)
        self.keys._read = self.read  # type: ignore[method-assign]

    async def read(self) -> bytes:
        if self.data is None:
            raise Unfetched("away")
        return self.data

    async def verifier(self, *claims: str) -> Verifier:
        assert await self.keys.fetch()
        return Verifier(self.keys, self.clock, claims or ("sub",))


@pytest.fixture
async def verifier() -> Verifier:
    return await Published(algorithms=ALGORITHMS).verifier()


ALICE = Proven(ISSUER, {"sub": "alice"})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_each_algorithm_verifies_with_a_key_of_its_kind(verifier: Verifier, algorithm: str) -> None:
    """Named by its key or not; and not with a key of another kind, whatever the header says."""
    keys = {"ES256": (EC_KEY, "e"), "ES384": (EC_384, "e384"), "ES512": (EC_521, "e521"), "EdDSA": (ED_KEY, "o")}
    key, kid = keys.get(algorithm, (RSA_KEY, "r"))
    assert verifier.prove(token(key, algorithm, {"kid": kid})) == ALICE
    assert verifier.prove(token(key, algorithm)) == ALICE
    other = "e" if kid != "e" else "r"
    assert verifier.prove(token(key, algorithm, {"kid": other}, jti="1")) is Unproven.UNKNOWN_KEY


PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DER = RSA_KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
CLAIMS = {"iss": ISSUER, "sub": "alice", "exp": NOW + 3600}
GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(b".")

FORGED = {
    "none": (by_hand({"alg": "none"}, CLAIMS), Unproven.ALGORITHM),
    "None": (by_hand({"alg": "None"}, CLAIMS), Unproven.ALGORITHM),
    "no algorithm": (by_hand({"kid": "r"}, CLAIMS), Unproven.ALGORITHM),
    "an HMAC with the public key as text": (by_hand({"alg": "HS256", "kid": "r"}, CLAIMS, PEM), Unproven.ALGORITHM),
    "an HMAC with the public key as DER": (by_hand({"alg": "HS256"}, CLAIMS, DER), Unproven.ALGORITHM),
    "an HMAC that says RS256": (by_hand({"alg": "RS256"}, CLAIMS, PEM), Unproven.SIGNATURE),
    "an empty signature": (by_hand({"alg": "RS256"}, CLAIMS), Unproven.SIGNATURE),
    "an algorithm that is not allowed": (token(algorithm="PS256"), Unproven.ALGORITHM),
    "another's key": (token(rsa.generate_private_key(65537, 2048)), Unproven.SIGNATURE),
    "another's key under a known name": (token(OTHER_RSA, header={"kid": "r"}), Unproven.SIGNATURE),
    "a key in its header": (token(OTHER_RSA, header={"kid": "r", "jwk": jwk(OTHER_RSA)}), Unproven.SIGNATURE),
    "a place for its key": (token(OTHER_RSA, header={"kid": "r", "jku": "https://evil/"}), Unproven.SIGNATURE),
    "other claims": (b".".join((HEAD, token(sub="mallory").split(b".")[1], SIGNATURE)), Unproven.SIGNATURE),
    "cut": (GOOD[:-2], Unproven.SIGNATURE),
    "critical": (token(header={"crit": ["exp"], "exp": 1}), Unproven.MALFORMED),
    "two parts": (HEAD + b"." + BODY, Unproven.MALFORMED),
    "four parts": (GOOD + b".x", Unproven.MALFORMED),
    "not base64": (b"\xff.\xff.\xff", Unproven.MALFORMED),
    "empty": (b"", Unproven.MALFORMED),
    "a static key": (b"sk_live_1", Unproven.MALFORMED),
    "a header that is a list": (by_hand([], CLAIMS), Unproven.MALFORMED),  # type: ignore[arg-type]
    "a deep header": (b"eyJh" * 4000 + b".x.x", Unproven.MALFORMED),
    "a kid that is a number": (by_hand({"alg": "RS256", "kid": 1}, CLAIMS, b""), Unproven.MALFORMED),
    "another issuer": (token(iss="https://id.example"), Unproven.ISSUER),
    "no issuer": (token(iss=None), Unproven.CLAIMS),
    "an audience": (token(aud="payments"), Unproven.AUDIENCE),
    "no expiry": (token(exp=None), Unproven.CLAIMS),
    "an expiry of text": (token(exp=str(NOW + 3600)), Unproven.CLAIMS),
    "an expiry of true": (token(exp=True), Unproven.CLAIMS),
    "an endless expiry": (token(exp=1e300), Unproven.CLAIMS),
    "expired": (token(exp=NOW - 30), Unproven.EXPIRED),
    "not yet": (token(nbf=NOW + 31), Unproven.NOT_YET),
    "a beginning of text": (token(nbf="x"), Unproven.CLAIMS),
    "a subject that is a list": (token(sub=["alice"]), Unproven.CLAIMS),
}


@pytest.mark.parametrize("title", FORGED)
async def test_what_proves_nothing(title: str) -> None:
    """Each with its reason, twice over; and the good one beside it is believed before and after."""
    verifier = await Published(algorithms=("RS256",)).verifier()
    forged, why = FORGED[title]
    assert verifier.prove(GOOD) == ALICE
    assert verifier.prove(forged) is why
    assert verifier.prove(forged) is why
    assert verifier.prove(GOOD) == ALICE
    assert len(verifier) == 1


async def test_the_reasons_quote_no_token() -> None:
    """Whoever reads a problem or a log learns nothing to replay."""
    assert all(len(why.value) < 90 and "{" not in why.value for why in Unproven)


async def test_clocks_may_differ_by_the_leeway_and_no_more() -> None:
    """30 s by default, on both ends."""
    verifier = await Published().verifier()
    assert verifier.prove(token(exp=NOW - 29)) == ALICE
    assert verifier.prove(token(exp=NOW - 30)) is Unproven.EXPIRED
    assert verifier.prove(token(nbf=NOW + 30)) == ALICE
    assert verifier.prove(token(nbf=NOW + 31)) is Unproven.NOT_YET
    strict = await Published(leeway=0).verifier()
    assert strict.prove(token(exp=NOW)) is Unproven.EXPIRED
    assert strict.prove(token(exp=NOW + 1)) == ALICE


async def test_an_audience_that_is_named_must_be_there() -> None:
    """One of the route's in the token's; RFC 7519 §4.1.3 has it as text or a list."""
    verifier = await Published(audience=("payments", "refunds")).verifier()
    assert verifier.prove(token(aud="refunds")) == ALICE
    assert verifier.prove(token(aud=["other", "payments"])) == ALICE
    assert verifier.prove(token(aud="other")) is Unproven.AUDIENCE
    assert verifier.prove(token(aud=[])) is Unproven.AUDIENCE
    assert verifier.prove(token()) is Unproven.AUDIENCE


async def test_only_what_a_scope_names_and_can_stand_for_somebody_is_kept() -> None:
    """Text and numbers; not true, not lists, not null."""
    verifier = await Published().verifier("sub", "org", "admin", "roles", "https://a/b")
    proven = verifier.prove(token(org=7, admin=True, roles=["a"], **{"https://a/b": "x"}, email="alice@example"))
    assert proven == Proven(ISSUER, {"sub": "alice", "org": 7, "https://a/b": "x"})


async def test_a_token_that_was_believed_is_not_believed_past_its_end() -> None:
    """It is remembered to save its signature's time, not to be trusted longer."""
    published = Published()
    verifier = await published.verifier()
    good = token(exp=NOW + 60)
    assert verifier.prove(good) == ALICE
    published.clock.seconds = 89.9
    assert verifier.prove(good) == ALICE
    published.clock.seconds = 90
    assert verifier.prove(good) is Unproven.EXPIRED
    assert len(verifier) == 0


async def test_a_token_that_was_believed_is_not_believed_when_its_key_is_withdrawn() -> None:
    """The issuer's own way to say so."""
    published = Published()
    verifier = await published.verifier()
    assert verifier.prove(token(header={"kid": "r"})) == ALICE
    published.data = globals()["published"](jwk(EC_KEY, kid="e"))
    published.clock.seconds = AGAIN
    assert await published.keys.fetch()
    assert verifier.prove(token(header={"kid": "r"})) is Unproven.UNKNOWN_KEY


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token that was used longest ago goes first; it is verified again when it comes back."""
    monkeypatch.setattr(verify, "REMEMBERED", 3)
    verifier = await Published().verifier()
    tokens = [token(EC_KEY, "ES256", jti=str(n)) for n in range(4)]
    for each in (*tokens[:3], tokens[0], tokens[3]):
        assert verifier.prove(each) == ALICE
    assert len(verifier) == 3
    times: list[bytes] = []
    original = verifier._verified
    monkeypatch.setattr(verifier, "_verified", lambda name, given: times.append(given) or original(name, given))
    for each in (tokens[0], tokens[3], tokens[2], tokens[1]):
        assert verifier.prove(each) == ALICE
    assert times == [tokens[1]]


async def test_keys_that_are_not_there_are_no_reason_to_disbelieve() -> None:
    """Nobody can say: 503, not 401. Those that were fetched last are trusted for a day, and no longer."""
    published = Published()
    none_yet = Verifier(published.keys, published.clock, ("sub",))
    assert none_yet.prove(GOOD) is Unproven.NO_KEYS
    assert none_yet.prove(b"sk_live_1") is Unproven.NO_KEYS
    verifier = await published.verifier()
    published.data = None
    published.clock.seconds = TRUSTED - 1
    assert not await published.keys.fetch()
    late = token(exp=NOW + 10 * 86_400)
    assert verifier.prove(late) == ALICE
    published.clock.seconds = TRUSTED
    assert verifier.prove(late) is Unproven.NO_KEYS


async def test_a_key_of_a_new_name_has_the_keys_fetched_anew_and_not_more_often_than_now_and_then() -> None:
    """A made-up name cannot make the gate ask its issuer all the time."""
    published = Published()
    verifier = await published.verifier()
    unknown = token(OTHER_RSA, header={"kid": "new"})
    assert verifier.prove(unknown) is Unproven.UNKNOWN_KEY  # fetched a moment ago
    published.clock.seconds = AGAIN
    assert verifier.prove(unknown) is Unproven.NO_KEYS
    assert verifier.prove(unknown) is Unproven.NO_KEYS
    published.data = globals()["published"](jwk(OTHER_RSA, kid="new"))
    assert await published.keys.fetch()
    assert verifier.prove(unknown) == ALICE
    assert verifier.prove(token(header={"kid": "r"})) is Unproven.UNKNOWN_KEY


# ── What is published ─────────────────────────────────────────────────────────────────────────────


def test_keys_of_other_uses_and_kinds_are_left_out() -> None:
    """RFC 7517 §5: whoever does not understand a key goes on without it."""
    weak = rsa.generate_private_key(65537, 1024)
    keys = parsed(
        published(
            jwk(RSA_KEY, kid="for encryption", use="enc"),
            jwk(RSA_KEY, kid="to sign", key_ops=["sign"]),
            jwk(RSA_KEY, kid="for an HMAC", alg="HS256"),
            jwk(RSA_KEY, kid="of another kind", alg="ES256"),
            jwk(weak, kid="short"),
            {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "RS256"},
            {"kty": "RSA", "n": "x", "e": "AQAB", "kid": "broken"},
            {"kty": "EC", "crv": "secp256k1", "x": "x", "y": "y"},
            {"kty": "AKP"},
            {"kid": 5, **{k: v for k, v in jwk(RSA_KEY).items() if k != "kid"}},
            jwk(RSA_KEY, kid="one", alg="PS512", use="sig", key_ops=["verify"]),
            jwk(EC_KEY),
        )
    )
    assert [(key.kid, sorted(key.algorithms)) for key in keys] == [("one", ["PS512"]), (None, ["ES256"])]


def _private() -> dict[str, Any]:
    from jwt.algorithms import RSAAlgorithm

    return dict(RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a set of keys"),
        (b'{"keys": {}}', "not a set of keys"),
        (b'{"keys": []}', "no key in the set"),
        (b'{"keys": [1, null]}', "no key in the set"),
        (json.dumps({"keys": [{}] * 101}).encode(), "more than 100"),
        (b" " * (LARGEST + 1), "larger than 256 KiB"),
        (published(_private()), "private key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_set_of_public_keys(data: bytes, why: str) -> None:
    """Each says what is wrong with it; and a private key that was published is one no more."""
    with pytest.raises(ValueError, match=why):
        parsed(data)

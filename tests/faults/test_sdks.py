"""Real SDKs of payment APIs, with the keys and the retries that they come with, before origins that do it and say 503.

Both mint an Idempotency-Key, keep it for all their tries, and take a 503 for "try again". The origin is in
impatient.py. Each route comes twice: as it is by default, and with `release: [503]`, the mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import httpx
import modern_treasury
import pytest
import requests
import stripe

from .history import Effect
from .impatient import GIVE_UP
from .stage import Gate, Stage

#: What the gate says of a key in doubt; a person reads it in the exception.
ADVICE = "Ask the service what became of it before you act"


@dataclass
class Payment:
    """One call of an SDK: what left and came, try by try, and what its caller got."""

    statuses: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    id: str = ""
    error: Exception | None = None

    def tried(self, answer: requests.Response | httpx.Response, *_: object, **__: object) -> None:
        """The SDK's own transport calls this with each answer, before the SDK sees it."""
        self.statuses.append(answer.status_code)
        self.labels.append(answer.headers.get("Idempotency-Status"))
        key = answer.request.headers["Idempotency-Key"]
        self.keys.append(key.decode() if isinstance(key, bytes) else key)

    @property
    def key(self) -> str:
        """The key, which was the same in every try."""
        (key,) = set(self.keys)
        return key


Sdk = Callable[[int, str, str | None, Payment], None]


def with_stripe(port: int, origin: str, key: str | None, payment: Payment) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.hooks["response"].append(payment.tried)
        client = stripe.StripeClient(
            "sk_test_1",
            base_addresses={"api": f"http://127.0.0.1:{port}"},
            max_network_retries=3,
            http_client=stripe.RequestsClient(session=session),
        )
        options: stripe.RequestOptions = {"headers": {"X-Origin": origin}, "idempotency_key": key}
        try:
            payment.id = client.v1.payment_intents.create({"amount": 1000, "currency": "eur"}, options).id
        except stripe.StripeError as error:
            payment.error = error


def with_modern_treasury(port: int, origin: str, key: str | None, payment: Payment) -> None:
    with modern_treasury.ModernTreasury(
        api_key="key",
        organization_id="org",
        base_url=f"http://127.0.0.1:{port}",
        max_retries=3,
        http_client=httpx.Client(trust_env=False, event_hooks={"response": [payment.tried]}),
    ) as client:
        try:
            payment.id = client.payment_orders.create(
                amount=1000,
                direction="credit",
                originating_account_id="mine",
                type="ach",
                extra_headers={"X-Origin": origin},
                idempotency_key=key,
            ).id
        except modern_treasury.APIError as error:
            payment.error = error


SDKS = [pytest.param(with_stripe, id="stripe"), pytest.param(with_modern_treasury, id="modern-treasury")]


async def pay(sdk: Sdk, gate: Gate, origin: str, *, key: str | None = None) -> Payment:
    payment = Payment()
    await asyncio.to_thread(partial(sdk, gate.port, origin, key, payment))
    return payment


@dataclass
class Shop:
    """One origin, a gate with the default policy, and one with the mistake."""

    stage: Stage
    gate: Gate
    mistaken: Gate

    def asked(self, payment: Payment) -> list[Effect]:
        return [line for line in self.stage.asked() if line.key == payment.key]

    def effects(self, payment: Payment) -> list[Effect]:
        return [line for line in self.asked(payment) if line.effect]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """For all tests of this file, each of which has keys of its own; so not on the loop of any one of them."""
    stage = Stage(tmp_path_factory.mktemp("sdks"), "sqlite", origin="tests.faults.impatient")

    async def opened() -> Shop:
        await stage.__aenter__()
        right = await stage.gate()
        stage.policy += ", release: [503]"
        return Shop(stage, right, await stage.gate())

    with asyncio.Runner() as runner:
        try:
            yield runner.run(opened())
        finally:
            runner.run(stage.__aexit__())


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe's back-off begins at its own setting; Modern Treasury's stays as it comes, half a second."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.05)


@pytest.mark.parametrize("origin", GIVE_UP)
@pytest.mark.parametrize("sdk", SDKS)
async def test_a_503_after_the_effect_is_one_effect(sdk: Sdk, origin: str, shop: Shop) -> None:
    """The SDK is given the 503, tries again with its key, is told 409 in-doubt and not to retry, and stops. One
    effect; and its caller reads in the exception what to do."""
    payment = await pay(sdk, shop.gate, origin)
    assert len(shop.effects(payment)) == 1
    assert payment.statuses == [503, 409]
    assert payment.labels == ["in-doubt", "in-doubt"]
    assert _status(payment) == 409
    assert ADVICE in str(payment.error)


@pytest.mark.parametrize("origin", GIVE_UP)
@pytest.mark.parametrize("sdk", SDKS)
async def test_a_503_that_is_released_is_two_effects(sdk: Sdk, origin: str, shop: Shop) -> None:
    """The twin: with `release: [503]` the SDK's second try runs again, and its caller sees one good payment."""
    payment = await pay(sdk, shop.mistaken, origin)
    assert payment.statuses == [503, 200]
    assert payment.labels == ["released", "stored"]
    first, second = shop.effects(payment)
    assert payment.error is None
    assert payment.id == second.nonce != first.nonce


@pytest.mark.parametrize("sdk", SDKS)
async def test_a_503_that_says_when_to_retry_is_retried(sdk: Sdk, shop: Shop) -> None:
    """An origin that has done nothing says so with Retry-After: the SDK's second try is the one effect, and a call
    with its key later is given that answer."""
    payment = await pay(sdk, shop.gate, "busy")
    assert payment.statuses == [503, 200]
    assert payment.labels == ["released", "stored"]
    assert [line.effect for line in shop.asked(payment)] == [False, True]
    assert payment.id == shop.effects(payment)[0].nonce
    again = await pay(sdk, shop.gate, "busy", key=payment.key)
    assert (again.labels, again.id) == (["replayed"], payment.id)
    assert len(shop.asked(payment)) == 2


@pytest.mark.parametrize("sdk", SDKS)
async def test_an_answer_that_is_lost_is_one_effect(sdk: Sdk, shop: Shop) -> None:
    """The origin does it and ends the connection: the SDK is told 502 and not to retry, and stops. Its caller who
    calls again with that key is told 409; nothing runs again."""
    payment = await pay(sdk, shop.gate, "cut")
    assert (payment.statuses, payment.labels) == ([502], ["in-doubt"])
    assert _status(payment) == 502
    assert "nobody knows whether it ran" in str(payment.error)
    again = await pay(sdk, shop.gate, "cut", key=payment.key)
    assert len(shop.effects(payment)) == 1
    assert (again.statuses, again.labels) == ([409], ["in-doubt"])
    assert ADVICE in str(again.error)


def _status(payment: Payment) -> int | None:
    """The status that the exception carries."""
    if isinstance(payment.error, stripe.StripeError):
        return payment.error.http_status
    assert isinstance(payment.error, modern_treasury.APIStatusError)
    return payment.error.status_code

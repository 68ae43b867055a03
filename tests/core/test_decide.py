"""The three decisions: admit, resolve, settle. Each table here is DESIGN's, written out once more by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.decide import (
    Forward,
    Guard,
    Pass,
    PassReason,
    Reason,
    Refuse,
    Replay,
    Settle,
    Wait,
    admit,
    in_doubt,
    outcome_line,
    resolve,
    settle,
)
from gateway.core.fingerprint import Fingerprint, Recipe, fingerprint
from gateway.core.key import Key
from gateway.core.keyform import SF_STRING, UUID, KeyRule, WeakKeys, Weakness
from gateway.core.message import Answer, Field, Request, Response
from gateway.core.outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason
from gateway.core.policy import Missing, OnDoubt, Policy
from gateway.core.problem import Problem
from gateway.core.record import Doubt, Found, Kind, Record, State

# ── admit ─────────────────────────────────────────────────────────────────────────────────────────

KEY: Field = (b"Idempotency-Key", b"k")
BAD: Field = (b"Idempotency-Key", b'"k')
OPEN, CLOSED = Policy(guard=False), Policy()
STRICT = Policy(missing=Missing.REFUSE)
GUARD = Guard(Key(b"k"), (), weak=Weakness.LOW_VARIETY)
METHODS = ["GET", "HEAD", "OPTIONS", "TRACE", "POST", "PATCH", "PUT", "DELETE", "REPORT"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("fields", [[], [KEY], [BAD], [KEY, KEY]], ids=["no key", "key", "bad key", "two keys"])
@pytest.mark.parametrize("policy", [CLOSED, STRICT, OPEN], ids=["guarded", "strict", "unguarded"])
def test_a_safe_method_passes(method: str, fields: list[Field], policy: Policy) -> None:
    """RFC 9110 §9.2.1: it has no effect to protect, whatever key it carries."""
    assert admit(method.encode(), fields, policy) == Pass(PassReason.SAFE_METHOD)


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE", "REPORT", "get"])
def test_any_other_method_with_a_key_is_guarded(method: str) -> None:
    """PUT and DELETE too; and methods are case-sensitive, so `get` is not GET."""
    assert admit(method.encode(), [KEY], CLOSED) == GUARD
    assert admit(method.encode(), [KEY], STRICT) == GUARD


@pytest.mark.parametrize(
    ("method", "policy", "verdict"),
    [
        ("POST", CLOSED, Pass(PassReason.NO_KEY)),
        ("PATCH", CLOSED, Pass(PassReason.NO_KEY)),
        ("PUT", CLOSED, Pass(PassReason.NO_KEY)),
        ("DELETE", CLOSED, Pass(PassReason.NO_KEY)),
        ("PUT", STRICT, Pass(PassReason.NO_KEY)),
        ("DELETE", STRICT, Pass(PassReason.NO_KEY)),
        ("POST", STRICT, Problem.KEY_MISSING),
        ("PATCH", STRICT, Problem.KEY_MISSING),
        ("REPORT", STRICT, Problem.KEY_MISSING),
    ],
)
def test_without_a_key_the_route_decides(method: str, policy: Policy, verdict: Pass | Problem) -> None:
    """`missing`; but PUT and DELETE always pass, being idempotent by HTTP's own rules (RFC 9110 §9.2.2)."""
    found = admit(method.encode(), [(b"Host", b"h")], policy)
    assert (found.refusal.problem if isinstance(found, Refuse) else found) == verdict


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("policy", [CLOSED, STRICT], ids=["guarded", "strict"])
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([BAD], "quotation"),
        ([KEY, KEY], "repeated"),
        ([KEY, (b"X-Idempotency-Key", b"l")], "different keys"),
        ([KEY, (b"Connection", b"Idempotency-Key")], "idempotency-key, which is not for one hop only"),
        ([KEY, (b"Connection", b"Authorization")], "authorization, which is not for one hop only"),
    ],
)
def test_a_key_that_cannot_be_read_is_refused(method: str, policy: Policy, fields: list[Field], why: str) -> None:
    """Never silently unprotected: 400 `key-invalid`, and the detail says what is wrong."""
    verdict = admit(method.encode(), fields, policy)
    assert isinstance(verdict, Refuse)
    assert verdict.refusal.problem is Problem.KEY_INVALID
    assert why in verdict.refusal.detail
    assert verdict.refusal.detail.endswith(Problem.KEY_INVALID.detail)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], PassReason.UNGUARDED_ROUTE),
        ([KEY], PassReason.KEY_ON_UNGUARDED_ROUTE),
        ([BAD], PassReason.KEY_ON_UNGUARDED_ROUTE),
        ([(b"Connection", b"authorization")], PassReason.UNGUARDED_ROUTE),
    ],
)
def test_an_unguarded_route_passes_everything(fields: list[Field], reason: PassReason) -> None:
    """A key there, readable or not, promises nothing; its client is told so."""
    assert admit(b"POST", fields, OPEN) == Pass(reason)
    assert admit(b"POST", fields, replace(OPEN, missing=Missing.REFUSE)) == Pass(reason)


def test_who_is_told_that_it_is_unprotected() -> None:
    """Whoever might have counted on it: a key that does not count, no key where one would, or a shadow."""
    told = {reason for reason in PassReason if reason.unprotected}
    assert told == set(PassReason) - {PassReason.SAFE_METHOD, PassReason.UNGUARDED_ROUTE}
    assert PassReason.SHADOW in told


def test_a_route_reads_the_key_where_it_says() -> None:
    """Its own header, and no other."""
    policy = Policy(headers=(b"request-id",), missing=Missing.REFUSE)
    assert admit(b"POST", [(b"Request-ID", b"k")], policy) == GUARD
    verdict = admit(b"POST", [KEY], policy)
    assert isinstance(verdict, Refuse)
    assert verdict.refusal.problem is Problem.KEY_MISSING


@pytest.mark.parametrize(
    ("rule", "value", "why"),
    [
        (KeyRule(UUID), b"not-a-uuid", "it has not the format that this route asks for, uuid"),
        (KeyRule(UUID), b'"8e03978e-40d5-43e8-bc93-6894a57f9324"', ""),
        (KeyRule(SF_STRING), b"bare", "it has not the format that this route asks for, a quoted string"),
        (KeyRule(SF_STRING), b' "quoted";v=1', ""),
        (KeyRule(min_length=9), b'"8 letter"', "it has 8 characters; 9 is the least here"),
        (KeyRule(min_length=8), b'"8 letter"', ""),
        (KeyRule(weak=WeakKeys.REFUSE), b"41", "it looks like a counter"),
        (KeyRule(weak=WeakKeys.COUNT), b"41", ""),
    ],
)
def test_a_route_s_rule_is_for_the_usual_fields_too(rule: KeyRule, value: bytes, why: str) -> None:
    """400 `key-invalid`, that says which rule; a key that keeps it is guarded."""
    verdict = admit(b"POST", [(b"Idempotency-Key", value)], Policy(key_rule=rule))
    if why:
        assert isinstance(verdict, Refuse)
        assert verdict.refusal.problem is Problem.KEY_INVALID
        assert verdict.refusal.more.startswith(f"The key cannot be used: {why}")
    else:
        assert isinstance(verdict, Guard)


SCOPED = Policy(scope=(b"header:x-tenant", b"header:authorization"))
TENANT: Field = (b"X-Tenant", b" t ")
AUTH: Field = (b"Authorization", b"Bearer a")


def test_the_scope_is_read_in_the_routes_order() -> None:
    """Each value under the label of its source, trimmed."""
    verdict = admit(b"POST", [AUTH, KEY, TENANT], SCOPED)
    assert isinstance(verdict, Guard)
    assert verdict.scope == ((b"header:x-tenant", b"t"), (b"header:authorization", b"Bearer a"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([KEY, AUTH], "The field x-tenant is not there."),
        ([KEY, TENANT], "The field authorization is not there."),
        ([KEY, AUTH, (b"X-Tenant", b" ")], "The field x-tenant is empty."),
        ([KEY, AUTH, TENANT, TENANT], "The field x-tenant is repeated."),
        ([KEY, AUTH, (b"X-Tenant", b""), (b"X-Tenant", b"")], "The field x-tenant is repeated."),
    ],
)
def test_a_scope_that_cannot_be_told_is_refused(fields: list[Field], why: str) -> None:
    """Whose key it is must be one value: absent, empty and repeated are 400 `scope-missing`."""
    verdict = admit(b"POST", fields, SCOPED)
    assert isinstance(verdict, Refuse)
    assert verdict.refusal.problem is Problem.SCOPE_MISSING
    assert verdict.refusal.detail.startswith(why)


def test_without_a_key_no_scope_is_asked_for() -> None:
    """It passes, or is refused for its key."""
    assert admit(b"POST", [], SCOPED) == Pass(PassReason.NO_KEY)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(scope=(b"header:x-tenant",)),
        Policy(recipe=Recipe(bind=("header:x-tenant",))),
        Policy(recipe=Recipe(bind=("default", "header:x-tenant"))),
    ],
    ids=["scope", "bind", "bind with default"],
)
def test_connection_may_not_name_what_a_route_binds(policy: Policy) -> None:
    """DESIGN §3: the credentials. The gate would go by a tenant that the upstream never sees."""
    verdict = admit(b"POST", [KEY, TENANT, (b"Connection", b"X-Tenant")], policy)
    assert isinstance(verdict, Refuse)


# ── resolve ───────────────────────────────────────────────────────────────────────────────────────

REQUEST = Request(b"POST", b"/payments", [(b"Host", b"h"), AUTH], b"{}")
PRINT = fingerprint(REQUEST, Recipe())
LEASE, MARGIN = 95_000, 5_000
HOLD, RERUN = Policy(), Policy(on_doubt=OnDoubt.RERUN)
ANSWER = Answer(201, b"Location: /1\r\n", b"{}")


def record(state: State, *, attempt: int = 1, status: int = 0, answer: Answer | None = None) -> Record:
    doubt = Doubt.LOST if state is State.IN_DOUBT else Doubt.NONE
    return Record(state, b"h" * 12, attempt, PRINT, "r", 1, 2, 700_000, LEASE, 3_000, status, doubt, answer)


IN_FLIGHT = record(State.IN_FLIGHT)
IN_DOUBT = record(State.IN_DOUBT)
COMPLETED = record(State.COMPLETED, status=201, answer=ANSWER)
TOMBSTONE = record(State.COMPLETED, status=201, answer=Answer(201, b"", None))
SECOND = record(State.IN_FLIGHT, attempt=2)
SECOND_DOUBT = record(State.IN_DOUBT, attempt=2)

#: (record, age, under `hold`, under `rerun`)
DUPLICATES = [
    (IN_FLIGHT, 0, "wait", "wait"),
    (IN_FLIGHT, LEASE - 1, "wait", "wait"),
    (IN_FLIGHT, LEASE, "in-doubt", "wait"),  # who takes over lets a margin pass first
    (IN_FLIGHT, LEASE + MARGIN - 1, "in-doubt", "wait"),
    (IN_FLIGHT, LEASE + MARGIN, "in-doubt", "forward"),
    (IN_DOUBT, 0, "in-doubt", "forward"),
    (IN_DOUBT, 10 * LEASE, "in-doubt", "forward"),
    (SECOND, 0, "wait", "wait"),
    (SECOND, LEASE + MARGIN, "in-doubt", "in-doubt"),  # max_attempts is 2
    (SECOND_DOUBT, 0, "in-doubt", "in-doubt"),
    (COMPLETED, 0, "replay", "replay"),
    (COMPLETED, 10 * LEASE, "replay", "replay"),
    (TOMBSTONE, 0, "response-not-kept", "response-not-kept"),
    (replace(TOMBSTONE, answer=None), 0, "response-not-kept", "response-not-kept"),
]


def said(verdict: Replay | Refuse | Wait | Forward) -> str:
    return verdict.refusal.problem.slug if isinstance(verdict, Refuse) else type(verdict).__name__.lower()


@pytest.mark.parametrize(("stands", "age", "hold", "rerun"), DUPLICATES)
def test_a_duplicate(stands: Record, age: int, hold: str, rerun: str) -> None:
    """Completed: replayed. In flight: waits. In doubt, written or lapsed: as `on_doubt` says."""
    found = Found(stands, age)
    assert said(resolve(found, PRINT, HOLD)) == hold
    assert said(resolve(found, PRINT, RERUN)) == rerun


OTHERS = {
    "other content": (fingerprint(REQUEST._replace(body=b"[]"), Recipe()), "key-reused"),
    "other credentials": (fingerprint(REQUEST._replace(fields=[(b"Host", b"h")]), Recipe()), "credentials-differ"),
    "both": (fingerprint(REQUEST._replace(body=b"[]", fields=[]), Recipe()), "credentials-differ"),
    "another recipe": (fingerprint(REQUEST, Recipe(bind=())), "policy-changed"),
    "all three": (fingerprint(Request(b"PUT", b"/", []), Recipe(bind=())), "policy-changed"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(("stands", "age"), [(stands, age) for stands, age, *_ in DUPLICATES])
@pytest.mark.parametrize("policy", [HOLD, RERUN], ids=["hold", "rerun"])
def test_another_request_is_refused_in_every_state(other: str, stands: Record, age: int, policy: Policy) -> None:
    """The fingerprint is compared first: recipe (409), credentials (422), request (422). Never a run."""
    mine, slug = OTHERS[other]
    assert said(resolve(Found(stands, age), mine, policy)) == slug


def test_what_the_verdicts_carry() -> None:
    """The record to replay; what is left of the lease; what was seen, for the stamp of a takeover."""
    assert resolve(Found(COMPLETED, 5), PRINT, HOLD) == Replay(COMPLETED)
    assert resolve(Found(IN_FLIGHT, 40_000), PRINT, HOLD) == Wait(55_000)
    assert resolve(Found(IN_DOUBT, 5), PRINT, RERUN) == Forward(Found(IN_DOUBT, 5))


def test_a_live_key_keeps_its_own_lease() -> None:
    """The record's lease counts, not that of a configuration that came later."""
    short = replace(IN_FLIGHT, lease=10_000)
    assert resolve(Found(short, 9_999), PRINT, HOLD) == Wait(1)
    assert said(resolve(Found(short, 10_000), PRINT, HOLD)) == "in-doubt"


@pytest.mark.parametrize(("most", "attempts"), [(1, []), (2, [1]), (4, [1, 2, 3])])
def test_a_key_is_run_again_up_to_max_attempts(most: int, attempts: list[int]) -> None:
    """And held after that."""
    policy = replace(RERUN, max_attempts=most)
    stands = [record(State.IN_DOUBT, attempt=number) for number in range(1, 6)]
    assert [each.attempt for each in stands if isinstance(resolve(Found(each, 0), PRINT, policy), Forward)] == attempts


def test_a_takeover_waits_for_the_margin_of_its_policy() -> None:
    """One setting, for both sides of the lease."""
    policy = replace(RERUN, margin=7)
    assert resolve(Found(IN_FLIGHT, LEASE + 6), PRINT, policy) == Wait(1)
    assert said(resolve(Found(IN_FLIGHT, LEASE + 7), PRINT, policy)) == "forward"


def detail(stands: Record, mine: Fingerprint = PRINT, policy: Policy = HOLD, age: int = 0) -> str:
    verdict = resolve(Found(stands, age), mine, policy)
    assert isinstance(verdict, Refuse)
    return verdict.refusal.detail


def test_a_reused_key_is_told_which_parts_differ_and_never_a_value() -> None:
    """`method`, `host`, `target`, `content-type`, `content-encoding`, `body`, or a field's name."""
    recipe = Recipe(headers=(b"x-amount",))
    policy = Policy(recipe=recipe)
    fields: list[Field] = [(b"X-Amount", b"SECRET-1"), (b"Content-Type", b"text/SECRET-2"), AUTH]
    first = Request(b"POST", b"/SECRET-3", [(b"Host", b"h"), AUTH], b"SECRET-4")
    stands = replace(COMPLETED, fingerprint=fingerprint(first, recipe))
    mine = fingerprint(Request(b"PUT", b"/SECRET-5", fields, b"SECRET-6"), recipe)
    told = detail(stands, mine, policy)
    assert told.startswith("Different: method, host, target, content-type, body, x-amount.")
    assert told.endswith(Problem.KEY_REUSED.detail)
    assert "SECRET" not in told


def test_where_no_part_can_be_named_it_is_still_refused() -> None:
    """Tags of two bytes may collide."""
    told = detail(COMPLETED, PRINT._replace(mark=PRINT.mark[:4] + bytes(16) + PRINT.mark[20:]))
    assert told.startswith("The two requests differ.")


@pytest.mark.parametrize("status", [400, 404, 409, 422, 499])
def test_who_corrects_a_refused_request_is_told_to_use_a_new_key(status: int) -> None:
    """The first one's answer was a 4xx, and it stands."""
    stands = replace(COMPLETED, status=status)
    assert f"was answered {status}; a corrected request" in detail(stands, OTHERS["other content"][0])


@pytest.mark.parametrize("stands", [replace(COMPLETED, status=status) for status in (200, 399, 500)] + [IN_FLIGHT])
def test_who_changes_one_that_was_not_refused_is_not(stands: Record) -> None:
    """A 2xx or 5xx, or no answer yet, is no invitation to pay again."""
    assert "a corrected request" not in detail(stands, OTHERS["other content"][0])


@pytest.mark.parametrize("stands", [replace(IN_DOUBT, status=408), replace(SECOND, status=408)], ids=repr)
def test_a_4xx_that_left_a_doubt_is_no_invitation_either(stands: Record) -> None:
    """DESIGN §7 says *the stored answer*: a 408 that was held may still take effect."""
    assert "a corrected request" not in detail(stands, OTHERS["other content"][0])


@pytest.mark.parametrize("stands", [COMPLETED, replace(COMPLETED, status=404), IN_DOUBT, IN_FLIGHT])
def test_other_credentials_are_told_nothing_more(stands: Record) -> None:
    """Not what differs, not what the first was answered: the same words in every state."""
    told = detail(stands, OTHERS["both"][0])
    assert told == Problem.CREDENTIALS_DIFFER.detail
    assert "may have taken effect" in told
    assert "new key before you know" in told


def test_what_is_known_of_a_doubt() -> None:
    """Since when, which attempt, and what the service last said, if it said anything. Of a claim whose owner
    died nobody knows that it was sent."""
    at = {"expires": 1_800_000_700_000, "first_seen": 1_800_000_000_000}  # its life is 700 s
    since = "2027-01-15T08:00:00.000Z"
    assert in_doubt(replace(IN_DOUBT, **at)).more == f"Attempt 1 was sent, and the key is in doubt since {since}."
    assert in_doubt(replace(SECOND_DOUBT, **at, status=504)).more == (
        f"Attempt 2 was sent, and the key is in doubt since {since}; the service last said 504."
    )
    died = f"Attempt 1 may have been sent: its gateway died or stood still. First seen at {since}."
    assert in_doubt(replace(IN_FLIGHT, **at)).more == died
    assert in_doubt(replace(IN_DOUBT, **at, doubt=Doubt.LAPSED)).more == died
    assert detail(TOMBSTONE).startswith("The service answered 201.")


# ── settle ────────────────────────────────────────────────────────────────────────────────────────

RETRY_AFTER: Field = (b"Retry-After", b"1")
RELEASED = {307, 308, 401, 407, 421, 423, 425, 429}
HELD = {408, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527, 598, 599}


def answered(
    status: int, *fields: Field, completeness: Completeness = Completeness.WHOLE, policy: Policy = HOLD
) -> Settle:
    return settle(Answered(Response(status, list(fields), b"{}"), completeness), policy)


def outcome(text: bytes) -> Field:
    return (b"Idempotency-Outcome", text)


KEPT = Settle(Kind.KEEP, Reason.ANSWERED)
FREED = Settle(Kind.RELEASE, Reason.STATUS)
LEFT = Settle(Kind.HOLD, Reason.STATUS, doubt=Doubt.STATUS)
FREED_BY_WORD = Settle(Kind.RELEASE, Reason.DECLARED)
KEPT_BY_WORD = Settle(Kind.KEEP, Reason.DECLARED)
LEFT_BY_WORD = Settle(Kind.HOLD, Reason.DECLARED, doubt=Doubt.DECLARED)


def test_what_every_status_means() -> None:
    """Keep, but for 307 308 401 407 421 423 425 429 (Release) and 408 502 503 504 520–527 598 599 (Hold)."""
    expected = {status: FREED if status in RELEASED else LEFT if status in HELD else KEPT for status in range(200, 600)}
    assert {status: answered(status) for status in range(200, 600)} == expected


def test_a_status_that_http_does_not_define_is_held() -> None:
    """600 to 999 mean what a bare 5xx of a proxy means; Retry-After changes nothing; the service may declare more."""
    undefined = range(600, 1000)
    assert {answered(status) for status in undefined} == {LEFT}
    assert {answered(status, RETRY_AFTER) for status in undefined} == {LEFT}
    assert {answered(status, completeness=Completeness.UNTIL_CLOSE) for status in undefined} == {LEFT}
    assert {answered(status, outcome(b"keep")) for status in undefined} == {KEPT_BY_WORD}
    assert {answered(status, outcome(b"no-effect")) for status in undefined} == {FREED_BY_WORD}


def test_what_every_status_means_with_retry_after() -> None:
    """It changes one: a 503 that says when to come back is a 503 of somebody who did nothing."""
    expected = {status: FREED if status in RELEASED else LEFT if status in HELD else KEPT for status in range(200, 600)}
    expected[503] = FREED
    assert {status: answered(status, RETRY_AFTER) for status in range(200, 600)} == expected
    assert answered(503, (b"retry-after", b"Fri, 31 Dec 1999 23:59:59 GMT")) == FREED
    assert answered(503, (b"X-Retry-In", b"1"), (b"Retry-After-X", b"1")) == LEFT


def test_what_the_service_declares_is_stronger_than_any_status() -> None:
    """`no-effect`, `unknown` and `keep`, on every status there is."""
    every = range(200, 600)
    assert {answered(status, outcome(b"no-effect")) for status in every} == {FREED_BY_WORD}
    assert {answered(status, outcome(b"unknown")) for status in every} == {LEFT_BY_WORD}
    assert {answered(status, outcome(b"keep")) for status in every} == {KEPT_BY_WORD}
    assert {answered(status, outcome(b"keep"), RETRY_AFTER) for status in every} == {KEPT_BY_WORD}


LISTS = Policy(release=frozenset((409, 502)), hold=frozenset((401, 500)), keep=frozenset((404, 429, 503, 504)))


def test_what_the_service_declares_is_stronger_than_the_routes_lists() -> None:
    """Who answered knows more than who configured."""
    for status in LISTS.release | LISTS.hold | LISTS.keep:
        assert answered(status, outcome(b"no-effect"), policy=LISTS) == FREED_BY_WORD
        assert answered(status, outcome(b"unknown"), policy=LISTS) == LEFT_BY_WORD
        assert answered(status, outcome(b"keep"), policy=LISTS) == KEPT_BY_WORD


@pytest.mark.parametrize(
    ("field", "verdict"),
    [
        ((b"idempotency-outcome", b"no-effect"), FREED_BY_WORD),
        ((b"IDEMPOTENCY-OUTCOME", b" \tNo-Effect "), FREED_BY_WORD),
        ((b"Idempotency-Outcome", b"UNKNOWN"), LEFT_BY_WORD),
        ((b"Idempotency-Outcomes", b"unknown"), KEPT),
        ((b"Idempotency-Result", b"unknown"), KEPT),
        ((b"X-Idempotency-Outcome", b"no-effect"), KEPT),
    ],
)
def test_how_a_declaration_is_spelled(field: Field, verdict: Settle) -> None:
    """Field and value in any case, white space around it; no other name will do."""
    assert answered(200, field) == verdict


@pytest.mark.parametrize("text", [b"", b"noeffect", b"no-effect, keep", b"release", b'"unknown"'])
def test_a_declaration_that_is_none_frees_and_holds_nothing(text: bytes) -> None:
    """The status decides, as if nothing had been said."""
    assert answered(200, outcome(text)).kind is Kind.KEEP
    assert answered(429, outcome(text)) == FREED
    assert answered(504, outcome(text)) == LEFT


def test_a_declaration_that_is_none_is_no_reason() -> None:
    """Logs and metrics say why: the service answered, it declared nothing."""
    assert answered(200, outcome(b"maybe")) == KEPT


def test_of_two_declarations_none_frees_the_key() -> None:
    """A service that says both `unknown` (or `keep`) and `no-effect` has not said that nothing ran."""
    for first in (b"unknown", b"keep"):
        for fields in ([outcome(first), outcome(b"no-effect")], [outcome(b"no-effect"), outcome(first)]):
            assert answered(200, *fields).kind is not Kind.RELEASE


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(409, FREED), (502, FREED), (401, LEFT), (500, LEFT), (404, KEPT), (429, KEPT), (504, KEPT), (503, KEPT)],
)
def test_a_route_moves_statuses_between_the_rows(status: int, verdict: Settle) -> None:
    """`release`, `hold` and `keep`, from whichever row they stood in; with or without Retry-After."""
    assert answered(status, policy=LISTS) == verdict
    assert answered(status, RETRY_AFTER, policy=LISTS) == verdict


SUCCESSES = Policy(keep_only=frozenset(range(200, 300)))
FOUR = Policy(keep_only=frozenset((200, 204, 404, 503)))


@pytest.mark.parametrize("policy", [SUCCESSES, FOUR], ids=["2xx", "a list"])
def test_only_some_statuses_are_kept(policy: Policy) -> None:
    """Every other one frees the key, also those that are held by default, whatever form its body has."""
    assert policy.keep_only is not None
    for status in range(200, 1000):
        verdict = KEPT if status in policy.keep_only else FREED
        assert answered(status, policy=policy) == answered(status, RETRY_AFTER, policy=policy) == verdict
        for completeness in Completeness:
            assert answered(status, completeness=completeness, policy=policy).kind is verdict.kind
    over = answered(200, completeness=Completeness.OVER_LIMIT, policy=policy)
    assert over == Settle(Kind.KEEP, Reason.OVER_LIMIT, tombstone=True)


def test_what_is_declared_or_unknown_counts_before_the_statuses_that_are_kept() -> None:
    """The service knows more than its status says, and a lost answer has none."""
    for status in (200, 404, 500, 504, 700):
        assert answered(status, outcome(b"no-effect"), policy=SUCCESSES) == FREED_BY_WORD
        assert answered(status, outcome(b"unknown"), policy=SUCCESSES) == LEFT_BY_WORD
        assert answered(status, outcome(b"keep"), policy=SUCCESSES) == KEPT_BY_WORD
    for reason in LostReason:
        for last in (0, 200, 500):
            assert settle(Lost(reason, last), SUCCESSES) == settle(Lost(reason, last), Policy())
    for why in NotSentReason:
        assert settle(NotSent(why), SUCCESSES) == settle(NotSent(why), Policy())


def test_a_kept_answer_says_so_where_its_status_does_not() -> None:
    """A gateway in front reads the status: `keep` goes with what it would release or hold, and with a declaration."""

    def said(status: int, *fields: Field) -> bytes:
        return outcome_line(Response(status, list(fields)))

    line = b"Idempotency-Outcome: keep\r\n"
    assert {status for status in range(200, 1000) if said(status)} == RELEASED | HELD | set(range(600, 1000))
    assert {said(status) for status in range(200, 1000)} == {b"", line}
    assert {said(status, outcome(b"keep")) for status in range(200, 1000)} == {line}
    assert {said(200, outcome(word)) for word in (b"unknown", b"no-effect", b"maybe")} == {b""}


def test_a_route_moves_no_other_status() -> None:
    """What is in no list of the route stays in its row."""
    rest = set(range(200, 600)) - LISTS.release - LISTS.hold - LISTS.keep
    assert {status: answered(status, policy=LISTS) for status in rest} == {status: answered(status) for status in rest}


def test_a_503_is_moved_whole() -> None:
    """`hold: [503]` holds one with Retry-After; `release: [503]` frees a bare one."""
    assert answered(503, RETRY_AFTER, policy=Policy(hold=frozenset((503,)))) == LEFT
    assert answered(503, policy=Policy(release=frozenset((503,)))) == FREED


@pytest.mark.parametrize(
    ("completeness", "reason"),
    [
        (Completeness.OVER_LIMIT, Reason.OVER_LIMIT),
        (Completeness.STREAM, Reason.STREAM),
        (Completeness.UNTIL_CLOSE, Reason.UNTIL_CLOSE),
    ],
)
def test_a_response_that_is_not_kept_whole_is_kept_as_a_tombstone(completeness: Completeness, reason: Reason) -> None:
    """It ran. Its status and what it declared settle first, as for any response."""
    tombstone = Settle(Kind.KEEP, reason, tombstone=True)
    assert answered(200, completeness=completeness) == tombstone
    assert answered(500, completeness=completeness) == tombstone
    assert answered(504, outcome(b"keep"), completeness=completeness) == tombstone
    assert answered(504, completeness=completeness, policy=LISTS) == tombstone
    assert answered(429, completeness=completeness) == FREED
    assert answered(502, completeness=completeness) == LEFT
    assert answered(200, outcome(b"no-effect"), completeness=completeness) == FREED_BY_WORD
    assert answered(200, outcome(b"unknown"), completeness=completeness) == LEFT_BY_WORD


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (NotSentReason.UNREACHABLE, Reason.UNREACHABLE),
        (NotSentReason.NO_CONNECTION, Reason.NO_CONNECTION),
        (NotSentReason.TOO_LATE, Reason.TOO_LATE),
        (NotSentReason.STOPPED, Reason.STOPPED),
    ],
)
def test_what_was_not_sent_is_released(why: NotSentReason, reason: Reason) -> None:
    """No byte of it reached the upstream, so nothing ran."""
    assert settle(NotSent(why, "detail"), HOLD) == Settle(Kind.RELEASE, reason)


@pytest.mark.parametrize(
    ("why", "reason", "doubt"),
    [
        (LostReason.CLOSED, Reason.LOST, Doubt.LOST),
        (LostReason.MALFORMED, Reason.LOST, Doubt.LOST),
        (LostReason.EARLY, Reason.LOST, Doubt.LOST),
        (LostReason.UPGRADED, Reason.LOST, Doubt.LOST),
        (LostReason.TIMEOUT, Reason.TIMEOUT, Doubt.TIMEOUT),
        (LostReason.STOPPED, Reason.STOPPED, Doubt.STOPPED),
    ],
)
@pytest.mark.parametrize("status", [0, 200, 401, 503])
def test_what_was_lost_is_held(why: LostReason, reason: Reason, doubt: Doubt, status: int) -> None:
    """Bytes were sent and no complete answer came: nobody knows, whatever a head without an end said."""
    everything = Policy(release=frozenset(range(200, 600)))
    for policy in (HOLD, RERUN, everything):
        assert settle(Lost(why, "detail", status), policy) == Settle(Kind.HOLD, reason, doubt=doubt)


@pytest.mark.parametrize("reasons", [NotSentReason, LostReason, Completeness])
def test_the_tables_above_leave_nothing_out(reasons: type[NotSentReason | LostReason | Completeness]) -> None:
    """A reason that is added has to be decided on, here too."""
    assert len(reasons) == {NotSentReason: 4, LostReason: 6, Completeness: 4}[reasons]

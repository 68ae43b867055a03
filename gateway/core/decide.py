"""The three decisions of an exchange: admit, resolve, settle. Total functions; each verdict has its reason.

admit    may this request pass, must it be refused, or is it guarded, and under which key?
resolve  a record was found under its name: replay, refuse, wait, or take over?
settle   something came back from the upstream: keep, release or hold?
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import assert_never

from .fields import Fields, fields_of
from .fingerprint import Counted, Difference, Fingerprint, counted, difference, differing_parts
from .instant import instant
from .key import SENT, Key, ScopePart, Unreadable, find, misnamed
from .keyed import NO_STRING, Keyed, derived, keyed
from .keyform import Weakness, weakness
from .message import Lines, Request, Response
from .outcome import Answered, Completeness, Lost, LostReason, NotSent, NotSentReason, Outcome
from .policy import HELD, RELEASED, UNDEFINED, Missing, OnDoubt, Policy
from .problem import Problem, Refusal
from .record import Doubt, Found, Kind, Record, State
from .scope import Prove, nobody, shown
from .source import Reader, in_body
from .values import value

#: Methods that HTTP defines as safe (RFC 9110 §9.2.1) are never guarded …
SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
#: … and those that it defines as idempotent need no key to be repeated (§9.2.2).
IDEMPOTENT = frozenset((b"PUT", b"DELETE"))


class PassReason(Enum):
    """Why a request goes through unguarded."""

    SAFE_METHOD = "safe_method"
    UNGUARDED_ROUTE = "unguarded_route"
    KEY_ON_UNGUARDED_ROUTE = "key_on_unguarded_route"
    NO_KEY = "no_key"
    STORE_DOWN = "store_down"
    SHADOW = "shadow"

    #: Whether the client is told so, and it is counted.
    unprotected: bool


for _reason in PassReason:
    _reason.unprotected = _reason not in (PassReason.SAFE_METHOD, PassReason.UNGUARDED_ROUTE)


@value
class Pass:
    """Stream it through: no store, no limit on its body."""

    reason: PassReason


_UNGUARDED = Pass(PassReason.UNGUARDED_ROUTE)
_KEYED_UNGUARDED = Pass(PassReason.KEY_ON_UNGUARDED_ROUTE)


@value
class Refuse:
    """Answer it with a problem."""

    refusal: Refusal
    weak: Weakness | None = None


@value
class Guard:
    """It is guarded under this key, in this scope."""

    key: Key
    scope: tuple[ScopePart, ...]
    origin: bytes = SENT
    weak: Weakness | None = None


@value
class Later:
    """It may be guarded, in this scope; its key is known once its body is there (`identify`)."""

    scope: tuple[ScopePart, ...]


@value
class Forward:
    """Run it a second time: take over the claim that was found."""

    seen: Found


@value
class Replay:
    """Give the stored answer."""

    record: Record


@value
class Wait:
    """Another request with this key is in flight. `lease_left` is in milliseconds."""

    lease_left: int


def admit(
    method: bytes,
    fields: Lines,
    policy: Policy,
    target: bytes = b"/",
    *,
    certificate: bytes = b"",
    prove: Prove = nobody,
) -> Pass | Refuse | Guard | Later:
    """Decide on a request's head. `certificate` is the SHA-256 of the client's, in DER, where it showed one; `prove`
    verifies a token for this policy."""
    if method in SAFE:
        return Pass(PassReason.SAFE_METHOD)
    fields = fields_of(fields)
    found: Keyed | Unreadable | None = None
    late = False
    if not policy.sources:
        if not policy.guard:  # what the key says does not matter
            return _UNGUARDED if fields.shape.at.keys().isdisjoint(policy.headers) else _KEYED_UNGUARDED
        found = _in_headers(fields, policy)
    elif in_body(policy.sources):
        late = policy.guard
    else:
        found = keyed(Reader(Request(method, target, fields)), policy.sources, policy.key_rule)
    if not policy.guard:
        return _UNGUARDED if found is None else _KEYED_UNGUARDED
    if found is None and not late:
        missing = _without_key(method, policy)
        if missing is not None:
            return missing
        late = True
    if isinstance(found, Unreadable):
        return _invalid(found)
    if b"connection" in fields.shape.at and (bad := misnamed(fields, policy.per_request)):
        return _invalid(Unreadable(f"the Connection field names {bad}, which is not for one hop only"))
    scope = shown(policy.scope, fields, certificate, prove) if policy.scope else ()
    if isinstance(scope, Refusal):
        return Refuse(scope)
    return Later(scope) if found is None else Guard(found.key, scope, found.origin, found.weak)


def identify(
    request: Request,
    policy: Policy,
    later: Later,
    reader: Reader,
    *,
    credentials: bytes,
    content: Counted | None = None,
    secret: bytes = b"",
) -> Pass | Refuse | Guard:
    """Decide on a request whose key its head did not tell. `credentials` has the digest of what binds it;
    `content` is what counts of it, if the caller has read that."""
    found: Keyed | Unreadable | None = None
    if in_body(policy.sources):
        found = keyed(reader, policy.sources, policy.key_rule)
    if found is None:
        missing = _without_key(request.method, policy)
        if missing is not None:
            return missing
        found = derived(reader, policy.derive, content or counted(request, policy.recipe), credentials, secret)
    if found is None:
        return Refuse(Refusal(Problem.KEY_MISSING, "Nor is there what this route derives one from."))
    if isinstance(found, Unreadable):
        return _invalid(found)
    return Guard(found.key, later.scope, found.origin, found.weak)


def _in_headers(fields: Fields, policy: Policy) -> Keyed | Unreadable | None:
    rule = policy.key_rule
    key = find(fields, policy.headers, rule.format.canonical)
    if not isinstance(key, Key):
        return key
    if rule.in_quotes and not all(each.startswith(b'"') for name in policy.headers for each in fields.all(name)):
        return Unreadable(NO_STRING)
    if not rule.plain and (fault := rule.fault(key.text)):
        return Unreadable(fault)
    weak = weakness(key.text)
    if weak is not None and (refused := rule.refusal(weak)) is not None:
        return refused
    return Keyed(key, SENT, weak)


def _without_key(method: bytes, policy: Policy) -> Pass | Refuse | None:
    """What becomes of a request without a key; None where one is derived."""
    if policy.missing is Missing.PASS or method in IDEMPOTENT:
        return Pass(PassReason.NO_KEY)
    return Refuse(Refusal(Problem.KEY_MISSING)) if policy.missing is Missing.REFUSE else None


def _invalid(key: Unreadable) -> Refuse:
    weak = Weakness(key.weak) if key.weak else None
    return Refuse(Refusal(Problem.KEY_INVALID, f"The key cannot be used: {key.why}."), weak)


def resolve(found: Found, mine: Fingerprint, policy: Policy) -> Replay | Refuse | Wait | Forward:
    """Decide on a duplicate. The fingerprint is compared first, in every state."""
    record = found.record
    different = difference(record.fingerprint, mine)
    if different is not None:
        return Refuse(mismatch(different, record, mine, policy))
    if record.state is State.COMPLETED:
        if record.answer is None or record.answer.body is None:
            return Refuse(Refusal(Problem.RESPONSE_NOT_KEPT, f"The service answered {record.status}."))
        return Replay(record)
    if record.state is State.IN_FLIGHT and not record.lapsed(found.age):
        return Wait(record.lease - found.age)
    if policy.on_doubt is OnDoubt.RERUN and record.attempt < policy.max_attempts:
        if record.state is State.IN_DOUBT or found.age >= record.lease + policy.margin:
            return Forward(found)
        return Wait(record.lease + policy.margin - found.age)  # and then take it over
    return Refuse(in_doubt(record))


def mismatch(different: Difference, record: Record, mine: Fingerprint, policy: Policy) -> Refusal:
    """The refusal of a request that is not the one its key was used for. It names parts, never values."""
    match different:
        case Difference.RECIPE:
            return Refusal(Problem.POLICY_CHANGED)
        case Difference.CREDENTIALS:
            return Refusal(Problem.CREDENTIALS_DIFFER)
        case Difference.REQUEST:
            parts = differing_parts(record.fingerprint, mine, policy.recipe)
            more = f"Different: {', '.join(parts)}." if parts else "The two requests differ."
            if record.state is State.COMPLETED and 400 <= record.status < 500:
                more += (
                    f" The first request was answered {record.status}; a corrected request is a new operation "
                    "and needs a new key."
                )
            return Refusal(Problem.KEY_REUSED, more)
        case _:
            assert_never(different)


def in_doubt(record: Record) -> Refusal:
    """What is known of a key in doubt: since when, which attempt, and what the upstream last said."""
    if record.state is State.IN_FLIGHT or record.doubt is Doubt.LAPSED:
        known = f"Attempt {record.attempt} may have been sent: its gateway died or stood still. First seen at "
        known += instant(record.first_seen).decode()
    else:
        known = f"Attempt {record.attempt} was sent, and the key is in doubt since {instant(record.written).decode()}"
    if record.status:
        known += f"; the service last said {record.status}"
    return Refusal(Problem.IN_DOUBT, known + ".")


class Reason(StrEnum):
    """Why a claim is settled as it is. Metrics and logs say these words."""

    ANSWERED = "answered"
    STATUS = "status"
    DECLARED = "declared"
    OVER_LIMIT = "over_limit"
    STREAM = "stream"
    UNTIL_CLOSE = "until_close"
    UNREACHABLE = "unreachable"
    NO_CONNECTION = "no_connection"
    TOO_LATE = "too_late"
    STOPPED = "stopped"
    LOST = "lost"
    TIMEOUT = "timeout"


@value
class Settle:
    """The verdict on an outcome. `tombstone`: it is kept without its body. `doubt` is set for a Hold."""

    kind: Kind
    reason: Reason
    tombstone: bool = False
    doubt: Doubt = Doubt.NONE


_PLAIN_KEEP = Settle(Kind.KEEP, Reason.ANSWERED)
_DECLARATIONS = {
    b"no-effect": Settle(Kind.RELEASE, Reason.DECLARED),
    b"unknown": Settle(Kind.HOLD, Reason.DECLARED, doubt=Doubt.DECLARED),
}
_RELEASE_STATUS = Settle(Kind.RELEASE, Reason.STATUS)
_HOLD_STATUS = Settle(Kind.HOLD, Reason.STATUS, doubt=Doubt.STATUS)


def settle(outcome: Outcome, policy: Policy) -> Settle:
    """Store the outcome of anything that may have had an effect; free the key for anything that is
    declared not to have; hold what nobody knows."""
    match outcome:
        case Answered():
            return _settle_answer(outcome, policy)
        case NotSent():
            return _NOT_SENT[outcome.reason]
        case Lost():
            return _LOST.get(outcome.reason, _BROKEN)
        case _:
            assert_never(outcome)


#: Fields of a response by which its status may come to mean something else.
SAYS = frozenset((b"idempotency-outcome", b"retry-after"))


#: Statuses that are released or held by default.
_DOUBTFUL = RELEASED | HELD


def outcome_line(response: Response) -> bytes:
    """The field line that a kept response needs for a gateway in front of this one: that one would settle it
    otherwise by its status, or the service has declared `keep`. Empty for other responses."""
    status, fields = response.status, fields_of(response.fields)
    doubtful = status in _DOUBTFUL or status >= UNDEFINED
    return b"Idempotency-Outcome: keep\r\n" if doubtful or _declared(fields) == b"keep" else b""


def _declared(fields: Fields) -> bytes | None:
    """Return the outcome that the service declares. Of two declarations the most cautious one counts: a service that
    makes two has not said that nothing ran."""
    if b"idempotency-outcome" not in fields.shape.at:
        return None
    said = {word.lower() for word in fields.all(b"idempotency-outcome")}
    return next((word for word in (b"unknown", b"keep", b"no-effect") if word in said), None)


def _settle_answer(answered: Answered, policy: Policy) -> Settle:
    response = answered.response
    status = response.status
    fields = fields_of(response.fields)
    declared = _declared(fields)
    if declared is not None and declared in _DECLARATIONS:
        return _DECLARATIONS[declared]
    if declared != b"keep" and policy.keep_only is not None:
        if status not in policy.keep_only:
            return _RELEASE_STATUS
    elif declared != b"keep":
        if status in policy.release:
            return _RELEASE_STATUS
        if status in policy.hold:
            return _HOLD_STATUS
        if status not in policy.keep:
            if status in RELEASED or (status == 503 and b"retry-after" in fields.shape.at):
                return _RELEASE_STATUS
            if status in HELD or status >= UNDEFINED:
                return _HOLD_STATUS
    if answered.completeness is Completeness.WHOLE:
        return _PLAIN_KEEP if declared is None else Settle(Kind.KEEP, Reason.DECLARED)
    return _TOMBSTONE[answered.completeness]


_TOMBSTONE = {
    each: Settle(Kind.KEEP, Reason(each.value), tombstone=True)
    for each in Completeness
    if each is not Completeness.WHOLE
}
_NOT_SENT = {each: Settle(Kind.RELEASE, Reason(each.value)) for each in NotSentReason}
_BROKEN = Settle(Kind.HOLD, Reason.LOST, doubt=Doubt.LOST)
_LOST = {
    LostReason.TIMEOUT: Settle(Kind.HOLD, Reason.TIMEOUT, doubt=Doubt.TIMEOUT),
    LostReason.STOPPED: Settle(Kind.HOLD, Reason.STOPPED, doubt=Doubt.STOPPED),
}

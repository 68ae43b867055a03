"""What operators ask and are told. The bodies of the listener, the messages between a parent and its workers, and the
published document are all these models."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ...core.instant import instant

#: Text that moves no terminal and ends no line.
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[123][0-9a-f]{24}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=_PRINTABLE)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=_PRINTABLE)]


def instant_of(milliseconds: int) -> str:
    """RFC 3339, or as near as a clock that was wrong by centuries lets us come."""
    try:
        return instant(milliseconds).decode()
    except (ValueError, OverflowError, OSError):
        return "9999-12-31T23:59:59.999Z"


def milliseconds_of(when: datetime) -> int:
    return int(when.astimezone(UTC).timestamp() * 1000)


class Form(BaseModel):
    """What is asked: a field that is not known is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Told(BaseModel):
    """What is answered."""

    model_config = ConfigDict(frozen=True)


class StateWord(StrEnum):
    """What a record comes to: a claim past its lease is in doubt, whether or not anybody wrote so."""

    IN_FLIGHT = "in-flight"
    IN_DOUBT = "in-doubt"
    COMPLETED = "completed"


# ── Records ───────────────────────────────────────────────────────────────────────────────────────


class Shown(Told):
    """A record, without its answer. A change is asked for with `version`, and is made only if it is still this one."""

    name: Name
    version: Version
    route: str = Field(description="The label of the route that claimed it.")
    state: StateWord
    doubt: str | None = Field(description="Why nobody knows whether it ran; `lapsed`: its gate died or was paused.")
    attempts: int
    status: int | None = Field(description="What the service last said.")
    first_seen: str
    written: str = Field(description="The last write, by its writer's clock.")
    expires: str
    age_s: float = Field(description="Seconds since the last write, by the store's clock.")


class Duplicate(Told):
    """One request that was caught as a duplicate."""

    time: str
    client: str
    kind: str
    status: int
    worker: int | None = None


class Story(Told):
    """One key: what is remembered of it, and its duplicates of late, of every process of this gate since it started."""

    record: Shown
    duplicates: list[Duplicate]


class Chosen(Form):
    """Which records are meant."""

    route: Label | None = None
    since: AwareDatetime | None = Field(None, description="First seen at this instant or later.")
    until: AwareDatetime | None = Field(None, description="First seen before this instant.")


class Query(Chosen):
    """A page of a walk. It ends with the batch in which `limit` was reached, so it may have a few more."""

    state: StateWord | None = None
    limit: int = Field(100, ge=1, le=1000)
    cursor: str = Field("", max_length=200)


class Walked(Told):
    """What a walk met. It goes on at `cursor`, until that is empty: a page without records is not the end."""

    records: list[Shown]
    cursor: str
    walked: int = Field(description="How many names were met since the walk began.")
    unreadable: int = Field(description="How many of this page's names this version cannot read.")
    progress: float = Field(description="How much of the store lies behind, from 0 to 1, about.")


class Find(Form):
    """A key as its client sent it. It names the record and is kept nowhere."""

    key: str = Field(min_length=1, max_length=1024)
    route: Label | None = Field(None, description="Where routes differ in namespace or scope.")
    scope: dict[str, Annotated[str, StringConstraints(max_length=8192)]] = Field(
        {}, description="The value of each source of the route's scope, such as header:x-tenant-id."
    )


# ── Changes ───────────────────────────────────────────────────────────────────────────────────────


class Line(Form):
    """A field of an answer."""

    name: Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$")]
    value: Annotated[str, StringConstraints(max_length=8192, pattern=r"^[\x21-\x7e\x80-\xff \t]*$")]


class Given(Form):
    """The answer that duplicates get from now on, as the service would have given it."""

    status: int = Field(ge=200, le=599)
    headers: list[Line] = Field(default_factory=list, max_length=100)
    body: str = Field("", description="Text, sent as UTF-8.")
    body_base64: Annotated[str, StringConstraints(pattern=r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")] = Field("", description="The same for bytes.")  # fmt: skip  # noqa: E501

    @model_validator(mode="after")
    def _one_body(self) -> Given:
        if self.body and self.body_base64:
            raise ValueError("has two bodies; leave out body or body_base64")
        if (self.body or self.body_base64) and self.status in (204, 304):
            raise ValueError(f"a {self.status} has no body; leave it out")
        return self

    @property
    def bytes(self) -> bytes:
        return b64decode(self.body_base64) if self.body_base64 else self.body.encode()


class Change(Form):
    reason: Words = Field(description="Why, for the audit log.")
    by: Words | None = Field(None, description="Who, for the audit log: nobody checks it.")
    force: bool = Field(False, description="Also where its gate may be alive.")


class Completed(Form):
    as_: Literal["completed"] = Field(alias="as")
    answer: Given


class Released(Form):
    as_: Literal["released"] = Field(alias="as")


class Once(Change):
    version: Version = Field(description="Of the record as it was shown.")


class ResolveCompleted(Once, Completed):
    """It ran, and this is its answer."""


class ResolveReleased(Once, Released):
    """It did not run: the key is free."""


class Forget(Once):
    """Remember nothing of the key: its next request runs."""


class Bulk(Change, Chosen):
    """One step of many: what the page of a walk has in doubt. Repeat it with its cursor until that is empty."""

    state: Literal["in-doubt"] = "in-doubt"
    dry_run: bool = True
    limit: int = Field(200, ge=1, le=1000)
    cursor: str = Field("", max_length=200)


class BulkCompleted(Bulk, Completed):
    """They ran, and all of them have this answer."""


class BulkReleased(Bulk, Released):
    """They did not run."""


Resolve = Annotated[ResolveCompleted | ResolveReleased, Field(discriminator="as_")]
BulkResolve = Annotated[BulkCompleted | BulkReleased, Field(discriminator="as_")]


class Verb(StrEnum):
    COMPLETE = "complete"
    RELEASE = "release"
    FORGET = "forget"


class Which(Form):
    name: Name
    version: Version


class Orders(Form):
    """The same change of several records."""

    verb: Verb
    which: list[Which]
    answer: Given | None = None
    force: bool = False


class Outcome(StrEnum):
    """What became of one change. Only MADE and UNKNOWN may have written something."""

    MADE = "made"
    WOULD = "would-be-made"
    GONE = "gone"
    CHANGED = "changed"
    NOT_IN_DOUBT = "not-in-doubt"
    IN_FLIGHT = "in-flight"
    AWAY = "store-unavailable"
    UNKNOWN = "unknown"


class Result(Told):
    """Of one change. `record`: what stands now, where the change was refused for it."""

    name: Name
    outcome: Outcome
    detail: str = ""
    record: Shown | None = None


class Made(Told):
    """A change was made. `audit` says if its outcome could not be written down: that it was asked for is."""

    name: Name
    outcome: Outcome
    audit: str = "written"


class Step(Told):
    """What one step came to."""

    dry_run: bool
    results: list[Result]
    cursor: str
    walked: int
    progress: float
    audit: str = "written"


class Problem(Told):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str


Json = dict[str, Any]

"""The key in a field of the upstream's own, so that the service dedupes too: PayPal-Request-Id and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from uuid import UUID, uuid5

from .fields import Fields, fields_of
from .key import Key
from .keyed import written

#: Of the UUIDs that are made of records' names. It never changes: the service would take a retry for another request.
NAMESPACE = UUID("7c1c5a52-0d0e-5b58-9d5f-6f0c6b1f3a01")


class SentAs(Enum):
    """How the upstream is told the key: its text, or a UUID that follows from service, namespace, scope and key."""

    KEY = "key"
    UUID = "uuid"


@dataclass(frozen=True, slots=True)
class SendKey:
    """One field that the upstream gets. `field` is its name as it is written."""

    field: bytes
    form: SentAs = SentAs.KEY


def with_key(fields: Fields, sends: Sequence[SendKey], key: Key, name: bytes) -> Fields:
    """The fields of a request with those that the route adds; what the client sent under their names is left out.

    `name` is the record's: two tenants who chose one key are two operations at the service too.
    """
    taken = {send.field.lower() for send in sends}
    kept = [line for line in fields if line[0].lower() not in taken]
    return fields_of(kept + [(send.field, _value(send.form, key, name)) for send in sends])


def _value(form: SentAs, key: Key, name: bytes) -> bytes:
    return written(key) if form is SentAs.KEY else str(uuid5(NAMESPACE, name.decode())).encode()

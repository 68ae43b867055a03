"""What a server says of itself (`INFO`), and what is wrong with it for keys that must not be lost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Info = dict[str, str]


def read_info(reply: bytes) -> Info:
    """The fields of an `INFO` reply."""
    return dict(line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)


class Severity(Enum):
    """What a finding means: claims are refused, or people are told."""

    REFUSE = "refuse"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the store: a name, and what it means and what to change."""

    name: str
    severity: Severity
    text: str


def replicas_wrong(info: Info, replicas: int, promotable: int | None) -> Finding | None:
    """With fewer acknowledgements than replicas that can be promoted, both sides of a failover win the same
    key (seen with two replicas and one acknowledgement)."""
    if not replicas:
        return None
    connected = int(info.get("connected_slaves", "0"))
    there = max(connected, promotable or 0)
    if there <= replicas:
        return None
    return Finding(
        "too-few-acknowledgements",
        Severity.REFUSE,
        f"the primary has {there} replicas and replicas={replicas} of them must have a write: one that has it not "
        f"could be promoted, and a key be won twice; use replicas={there}",
    )

"""What a server says of itself (`INFO`), and what is wrong with it for keys that must not be lost."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from ..findings import FULL, OF_WRITES, WRITES_REFUSED, Finding, Severity
from .pipeline import RedisError, Reply

Info = dict[str, str]
#: What becomes of a finding that would refuse claims.
Check = Literal["strict", "warn", "off"]


def read_info(reply: bytes) -> Info:
    """The fields of an `INFO` reply."""
    return dict(line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)


def judge(
    info: Info, replicas: int = 0, promotable: int | None = None, *, cluster: bool = False
) -> tuple[Finding, ...]:
    """All that `info` shows of a primary, the worst first. `cluster`: it was named as a node of one."""
    found = (
        evicts(info),
        replicas_wrong(info, replicas, promotable),
        None if cluster else of_cluster(info),
        no_file(info),
        no_memory_limit(info),
    )
    return tuple(sorted(filter(None, found), key=lambda each: list(Severity).index(each.severity)))


def tempered(findings: tuple[Finding, ...], check: Check) -> tuple[Finding, ...]:
    """The findings as `store_check` takes them. A server that refuses writes does so under each of them."""
    match check:
        case "strict":
            return findings
        case "warn":
            return tuple(
                replace(each, severity=Severity.WARN)
                if each.severity is Severity.REFUSE and each.name not in OF_WRITES
                else each
                for each in findings
            )
        case "off":
            return tuple(each for each in findings if each.name in OF_WRITES)


#: Error replies by which a server refuses every new key for now: the finding, what failed, and what to do.
_REFUSALS = {
    "OOM": (
        FULL,
        "Redis has no memory for new keys",
        "Raise maxmemory, or shorten the windows of the routes; do not let it evict.",
    ),
    "MISCONF": (
        WRITES_REFUSED,
        "Redis refuses writes because it cannot save them",
        "Free its disk, or correct what its log names.",
    ),
    "NOREPLICAS": (
        WRITES_REFUSED,
        "Redis refuses writes because it has too few replicas",
        "Bring its replicas back, or lower min-replicas-to-write.",
    ),
}


def refuses_writes(reply: Reply) -> Finding | None:
    """The finding about a server whose reply to a write is an error that every new key gets."""
    if not isinstance(reply, RedisError) or reply.code not in _REFUSALS:
        return None
    name, failed, change = _REFUSALS[reply.code]
    cause = str(reply).partition(" ")[2].rstrip(" .")
    return Finding(name, Severity.REFUSE, f"{failed}: {cause}. {change}")


def evicts(info: Info) -> Finding | None:
    """A server that makes room by forgetting. 6,000 acknowledged claims into 4 MiB: every evicting policy lost
    a third of them, the `volatile-*` ones too, since every record has an expiry."""
    limit, policy = _number(info, "maxmemory"), info.get("maxmemory_policy", "")
    if not limit or policy == "noeviction":
        return None
    if not policy:
        return Finding(
            "eviction-unknown",
            Severity.ADVISE,
            "the server has a memory limit and does not say whether it evicts at it; see that its eviction policy is "
            "`noeviction`",
        )
    return Finding(
        "evicts",
        Severity.REFUSE,
        f"at its limit of {limit} bytes it forgets keys ({policy}), and a forgotten key is a request that runs twice: "
        "CONFIG SET maxmemory-policy noeviction (managed services default to volatile-lru and call it a parameter "
        "group, or a maxmemory-policy setting); claims then stop at the limit, answers do not",
    )


def replicas_wrong(info: Info, replicas: int, promotable: int | None) -> Finding | None:
    """With fewer acknowledgements than replicas that can be promoted, both sides of a failover win the same
    key (seen with two replicas and one acknowledgement)."""
    if not replicas:
        return None
    connected = _number(info, "connected_slaves")
    there = max(connected, promotable or 0)
    if there <= replicas:
        return None
    return Finding(
        "too-few-acknowledgements",
        Severity.REFUSE,
        f"the primary has {there} replicas and replicas={replicas} of them must have a write: one that has it not "
        f"could be promoted, and a key be won twice; use replicas={there}",
    )


def of_cluster(info: Info) -> Finding | None:
    """A node of a cluster has some of the keys, and says so of each of the others."""
    if info.get("cluster_enabled") != "1":
        return None
    return Finding(
        "is-a-cluster",
        Severity.REFUSE,
        "it is one node of a cluster, and most keys are elsewhere: name it as one, redis+cluster://HOST,HOST,HOST "
        "(over TLS rediss+cluster://)",
    )


def no_file(info: Info) -> Finding | None:
    """A server without an append-only file. kill -9 of one as Debian configures it kept none of three claims; with AOF,
    all three. A primary with replicas that is killed, and started again before Sentinels promote another, is empty, and
    its replicas empty themselves to follow it: a claim that `WAIT` had seen on all of them was won a second time.
    Managed services never start a primary again, so that is advice."""
    if info.get("aof_enabled") != "0":
        return None
    if not _number(info, "connected_slaves"):
        return Finding(
            "no-persistence",
            Severity.WARN,
            "it has neither an append-only file nor a replica: a crash forgets keys that it had acknowledged, back to "
            "its last snapshot; CONFIG SET appendonly yes, or give it replicas and use durability=replicated",
        )
    return Finding(
        "no-file-behind-replicas",
        Severity.ADVISE,
        "it has replicas and no append-only file: started again before another is promoted it is empty, or as old as "
        "its last snapshot, and its replicas copy that; CONFIG SET appendonly yes, or let nothing start it again, "
        "and write on_amnesia: refuse",
    )


def no_memory_limit(info: Info) -> Finding | None:
    """The kernel ends a Redis that outgrows its container, and a gate cannot see that container: most servers
    without a limit are well. So this is advice for who asks, and no line in the log of everybody else."""
    if info.get("maxmemory") != "0":
        return None
    return Finding(
        "no-memory-limit",
        Severity.ADVISE,
        "it has no memory limit: in a container that has one the kernel ends it there, with all that it has not "
        "written; set maxmemory to three quarters of what it may use, with maxmemory-policy noeviction",
    )


def _number(info: Info, field: str) -> int:
    found = re.match(r"\d+", info.get(field, ""))
    return int(found[0]) if found else 0

"""What the gate's user may do (ACL), found out by doing it where nothing comes of it.

Each command that a record's life needs is played on a key, and a channel, that nobody has: `SET … XX`, a script that
no server has. A server looks at permissions before anything else, so that NOPERM is the only reply that says something.
(`ACL DRYRUN` would ask the same, and is an administrator's to run.)
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..findings import Finding, Severity
from .pipeline import RedisError, Reply, pack
from .servers import Servers

NAME = "not-permitted"
_NO_SCRIPT = b"0" * 40


@dataclass(frozen=True, slots=True)
class Play:
    """How a command is played, and what would become of a gate that may not use it."""

    command: str
    words: tuple[bytes, ...]
    without: str
    severity: Severity = Severity.REFUSE


_LATE = "duplicates that wait at other gates are answered up to seconds late"
_KEYS = Play("keys", (), "nothing could be claimed")
_CHANNELS = Play("channels", (), _LATE, Severity.WARN)


def _set(key: bytes) -> tuple[bytes, ...]:
    return (b"SET", key, b"", b"XX", b"GET", b"PX", b"1")


def a_write(key: bytes) -> bytes:
    """A write that a server refuses as it would refuse a claim, and that changes nothing if `key` does not exist."""
    return pack(*_set(key))


def plays(servers: Servers, key: bytes) -> tuple[Play, ...]:
    """Of what is asked over the connection of the records, and the lanes."""
    found = [
        Play("set", _set(key), "nothing could be claimed"),
        Play("get", (b"GET", key), "nothing could be claimed"),
        Play("pttl", (b"PTTL", key), "no duplicate could be answered"),
        Play("del", (b"DEL", key), "no key could be freed"),
        Play("eval", (b"EVAL", b"return 0", b"1", key), "no answer could be stored after a failover"),
        Play("evalsha", (b"EVALSHA", _NO_SCRIPT, b"1", key), "no answer could be stored"),
        Play("ping", (b"PING",), "a connection that died in silence is found out late", Severity.WARN),
        Play("spublish", (b"SPUBLISH", key, b""), _LATE, Severity.WARN),
    ]
    if servers.replicas:
        found.append(Play("wait", (b"WAIT", b"0", b"0"), "no claim would count"))
    if servers.cluster:
        found.append(Play("asking", (b"ASKING",), "keys whose slot is on its way would be refused"))
    return tuple(found)


def subscribing(key: bytes) -> tuple[Play, ...]:
    """Of what is asked over the connection of the bells. In this order, and last of all."""
    return (
        Play("ssubscribe", (b"SSUBSCRIBE", key), _LATE, Severity.WARN),
        Play("sunsubscribe", (b"SUNSUBSCRIBE", key), "what was listened to stays subscribed", Severity.WARN),
    )


def greeting(servers: Servers, script: bytes) -> tuple[Play, ...]:
    """Of what is asked when a connection is made."""
    found = [
        Play("client|setname", (b"CLIENT", b"SETNAME", b"oncegate"), "no connection is made"),
        Play("script|load", (b"SCRIPT", b"LOAD", script), "no connection is made"),
        Play("info", (b"INFO",), "no connection is made"),
    ]
    if servers.database:
        found.insert(0, Play("select", (b"SELECT", b"%d" % servers.database), "no connection is made"))
    if servers.cluster:
        found.append(Play("cluster|slots", (b"CLUSTER", b"SLOTS"), "no connection is made"))
    return tuple(found)


def nobodys(beside: bytes) -> bytes:
    """A key that nobody has, in the slot of this one and under its prefix."""
    return beside + b"permitted:" + secrets.token_hex(8).encode()


async def lacking(
    call: Callable[[bytes], asyncio.Future[Reply]], played: tuple[Play, ...], servers: Servers, prefix: bytes
) -> tuple[Finding, ...]:
    """The finding about what the user may not do, if there is any. Raises StoreAway."""
    replies = await asyncio.gather(*(call(pack(*play.words)) for play in played))
    missing: dict[str, Play] = {}
    for play, reply in zip(played, replies, strict=True):
        if isinstance(reply, RedisError) and reply.code == "NOPERM":
            rule, lack = _missing(play, str(reply), prefix.decode())
            missing[rule] = lack
    if not missing:
        return ()
    vital = any(lack.severity is Severity.REFUSE for lack in missing.values())
    without = dict.fromkeys(lack.without for lack in missing.values())
    return (
        Finding(
            NAME,
            Severity.REFUSE if vital else Severity.WARN,
            f"the user of the store's URL may not do all that the gate does, and {'; '.join(without)}: "
            f"{line(servers, missing)}",
        ),
    )


def _missing(play: Play, said: str, prefix: str) -> tuple[str, Play]:
    """What gives the permission, and what it is for. Commands are looked at before keys, and keys before channels."""
    if "channel" in said and "to run the" not in said:
        return f"&{prefix}*", _CHANNELS
    if "key" in said and "to run the" not in said:
        return f"~{prefix}*", _KEYS
    return f"+{play.command}", play


def line(servers: Servers, rules: Iterable[str]) -> str:
    """What an administrator says to give `rules` to the gate's user."""
    return f"ACL SETUSER {servers.user or 'default'} {' '.join(rules)}"

"""What a running gate takes up of a configuration that is read anew, and what it refuses.

Routes, policies, upstreams, `cors`, `trusted_proxies`, `upgrades` and `grace` change while it runs. Where it listens,
its store, its limits and its log are what it was built on. What names records cannot change at all: each live key
would be forgotten, and its retry would run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .core.identity import Identity
from .plan import Plan
from .ports import Observer
from .settings import Faults, Settings

#: Fields of the settings that a running gate stands on.
FIXED = (
    "listen",
    "admin",
    "admin_token",
    "audit",
    "store",
    "store_scope",
    "store_check",
    "on_amnesia",
    "startup_wait",
    "limits",
    "log",
    "tracing",
)
#: … and that name its records, besides what routes say.
_NAMING = ("service", "prefix", "secret")


#: What the log says once a file was read anew.
READ_ANEW = "the configuration was read anew"
NOT_TAKEN_UP = "the configuration was not taken up; what ran goes on"


class Refused(Exception):
    """A configuration that is not taken up, and why. What ran goes on."""


def differences(running: Settings, wanted: Settings) -> list[str]:
    """Why `wanted` cannot be taken up by a gate that runs `running`; empty where it can."""
    found = [
        f"identity-changed: `{name}` is another, and every live key would be forgotten"
        for name in _NAMING
        if getattr(running, name) != getattr(wanted, name)
    ]
    if not found and (told := identity(running).difference(identity(wanted))):
        found.append(f"identity-changed: live keys would be forgotten; of the new file: {told}")
    found += [
        f"`{name}` is another: it changes when the gate is started anew"
        for name in FIXED
        if getattr(running, name) != getattr(wanted, name)
    ]
    return found


def identity(settings: Settings) -> Identity:
    """By what these settings name records."""
    return Identity.of(settings.routes.routes, settings.secret)


async def read_anew(plan: Plan, running: Settings) -> tuple[Plan, Settings]:
    """The plan's file as it is now. Raises Refused where it has faults, or differs in what cannot change."""
    if plan.text is None:
        raise Refused("there is no file to read anew: the gate was started with --upstream")
    try:
        fresh, wanted = await asyncio.to_thread(_read, plan)
    except Faults as faults:
        raise Refused(str(faults)) from None
    if found := differences(running, wanted):
        raise Refused("; ".join(found))
    return fresh, wanted


def _read(plan: Plan) -> tuple[Plan, Settings]:
    fresh = plan.anew()
    return fresh, fresh.settings()


async def attempted(reload: Callable[[], Awaitable[None]], observer: Observer) -> str:
    """Why `reload` was refused, told to the log too; empty where it was not."""
    try:
        await reload()
    except Refused as refused:
        observer.alarm(NOT_TAKEN_UP, reason=str(refused))
        return str(refused)
    return ""

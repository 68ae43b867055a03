"""The desk of a parent: it has no store, and asks its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import BaseModel, ValidationError

from ..ops.admin.desk import BadCursor, Desk, DeskAway
from ..ops.admin.forms import Duplicate, Orders, Query, Result, Shown, Walked

#: Asks a worker, or every worker: what each said, None of one that did not.
AskOne = Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any] | None]]
AskAll = Callable[[dict[str, Any]], Coroutine[Any, Any, list[dict[str, Any] | None]]]


class WorkersDesk:
    """Any worker can look and change, since they share the store; each has its own duplicates of late."""

    def __init__(self, ask_one: AskOne, ask_all: AskAll) -> None:
        self._ask_one = ask_one
        self._ask_all = ask_all

    async def walk(self, query: Query) -> Walked:
        return Walked.model_validate(await self._asked("walk", query))

    async def look(self, name: str) -> Shown | None:
        told = await self._asked("look", name)
        return None if told is None else Shown.model_validate(told)

    async def recent(self, name: str) -> list[Duplicate]:
        answers = await self._ask_all({"verb": "recent", "with": name})
        told = [Duplicate.model_validate(each) for answer in answers if answer for each in answer.get("told", ())]
        return sorted(told, key=lambda each: each.time)

    async def change(self, orders: Orders) -> list[Result]:
        told = await self._asked("change", orders)
        return [Result.model_validate(each) for each in told]

    async def _asked(self, verb: str, what: BaseModel | str) -> Any:
        said = what if isinstance(what, str) else what.model_dump(mode="json", by_alias=True)
        answer = await self._ask_one({"verb": verb, "with": said})
        if answer is None:
            # It may have been asked, and have died or been slow.
            raise DeskAway("no worker has answered", ambiguous=verb == "change")
        if "cursor" in answer:
            raise BadCursor(answer["cursor"])
        if "away" in answer:
            raise DeskAway(answer["away"], ambiguous=answer["ambiguous"])
        return answer["told"]


async def answer(desk: Desk, asked: dict[str, Any]) -> dict[str, Any]:
    """What a worker says to its parent."""
    said = asked["with"]
    try:
        match asked["verb"]:
            case "walk":
                return {"told": (await desk.walk(Query.model_validate(said))).model_dump(mode="json")}
            case "look":
                record = await desk.look(said)
                return {"told": None if record is None else record.model_dump(mode="json")}
            case "recent":
                return {"told": [each.model_dump(mode="json") for each in await desk.recent(said)]}
            case "change":
                results = await desk.change(Orders.model_validate(said))
                return {"told": [each.model_dump(mode="json") for each in results]}
    except BadCursor as error:
        return {"cursor": str(error)}
    except DeskAway as away:
        return {"away": away.why, "ambiguous": away.ambiguous}
    except asyncio.CancelledError:
        raise
    except (ValidationError, Exception) as error:
        return {"away": f"a worker failed: {type(error).__name__}", "ambiguous": asked["verb"] == "change"}
    return {"away": "a worker does not know what it was asked", "ambiguous": False}

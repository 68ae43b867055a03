"""A service in the middle of a chain, in a process of its own: it has its effect, and then asks the next gate
under the same key, as a good client does.

    python -m tests.faults.hop FOLDER HOP PORT [NEXT GATE SECONDS]

Its effect is a line in FOLDER/HOP.jsonl, as ledger.py writes them, before it asks the gate of NEXT for up to
SECONDS; each try becomes a line of FOLDER/NEXT.seen.jsonl. What it answers names its own effect and nests the answer of
the next. Once its line is written it never says `no-effect`, whatever the next gate says of its own part.

`X-Origin` goes with the request down the chain: `linger=0.2` between the effect and what follows, `alone` (the next is
not asked), `as=HOP` (the next is asked with the request that is meant for HOP, byte for byte).
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
from aiohttp import web

from .history import History, Seen, now
from .ledger import Ledger

#: Problems after which the gate's own advice is to ask again (`X-Should-Retry: true`).
AGAIN = ("in-flight", "upstream-timeout", "upstream-unreachable")
#: Makes a body of a size that a cut can hit.
NOTE = "-" * 120


class Caller:
    """Whoever asks the gate of one hop; every try becomes a line of that gate's history."""

    def __init__(self, folder: Path, hop: str, port: int) -> None:
        self.hop = hop
        self.port = port
        self.history = History(folder / f"{hop}.seen.jsonl")
        # A connection for each try: what breaks, breaks one.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))

    async def close(self) -> None:
        await self._session.close()

    async def ask(
        self, key: str, client: str = "", *, words: str = "", like: str = "", final: bool = False, seconds: float = 8
    ) -> Seen:
        """One try. `like`: the hop for which the request would be right, if not for this one."""
        hop, began = like or self.hop, now()
        fields = {"Host": f"{hop}.test", "Idempotency-Key": key, "X-Origin": words}
        try:
            async with self._session.post(
                f"http://127.0.0.1:{self.port}/{hop}",
                json={"hop": hop, "amount": 1, "note": NOTE},
                headers=fields,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as answer:
                body = await answer.text()
        except (aiohttp.ClientError, OSError, TimeoutError):
            seen = Seen(key, client, began, now(), final=final)
        else:
            problem = answer.content_type == "application/problem+json"
            seen = Seen(
                key, client, began, now(), answer.status,
                json.loads(body)["type"].rpartition(":")[2] if problem else "",
                answer.headers.get("Idempotency-Status", ""),
                answer.headers.get("Idempotent-Replayed") == "true", body, final,
            )  # fmt: skip
        self.history.add(seen)
        return seen

    async def retry(self, key: str, client: str = "", *, words: str = "", like: str = "", seconds: float) -> Seen:
        """Ask again after a broken connection, 429, 503, and where the gate advises it; the last answer."""
        deadline = now() + seconds
        while True:
            seen = await self.ask(key, client, words=words, like=like, seconds=deadline - now())
            again = seen.status in (0, 429, 503) or seen.slug in AGAIN
            if not again or now() + 0.1 > deadline:
                return seen
            await asyncio.sleep(0.1)


class Hop:
    """The service; `following` is None for the last of a chain."""

    def __init__(self, folder: Path, name: str, following: Caller | None, seconds: float) -> None:
        self.name = name
        self._ledger = Ledger(str(folder / f"{name}.jsonl"))
        self._following = following
        self._seconds = seconds

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        began = now()
        try:
            await request.read()
        except (ConnectionError, web.RequestPayloadError):
            return web.Response(status=400)  # a request that was cut has no effect; nobody hears this
        words = request.headers.get("X-Origin", "")
        said = dict(word.partition("=")[::2] for word in words.split())
        key = request.headers["Idempotency-Key"]
        line = self._ledger.write(key, effect=True)
        mine: dict[str, object] = {"hop": self.name, **{name: line[name] for name in ("key", "n", "nonce")}}
        await asyncio.sleep(float(said.get("linger", 0)))
        if self._following is None or "alone" in said:
            return self._answer(201, {**mine, "next": None})
        seen = await self._following.retry(
            key, self.name, words=words, like=said.get("as", ""), seconds=began + self._seconds - now()
        )
        try:
            below = json.loads(seen.body)
        except ValueError:
            below = None
        if seen.status == 201 and below is not None:
            return self._answer(201, {**mine, "next": below})
        if 400 <= seen.status < 500 and seen.label == "refused":
            # The last word of the next gate, and no retry changes it. Nothing ran there, and here it did: that is
            # this hop's answer, once and for all.
            return self._answer(seen.status, {**mine, "next": below}, "keep")
        # In doubt; or time ran out, and what was asked may still be under way.
        return self._answer(502 if seen.label == "in-doubt" else 504, {**mine, "next": below}, "unknown")

    @staticmethod
    def _answer(status: int, body: dict[str, object], outcome: str = "") -> web.Response:
        return web.json_response(body, status=status, headers={"Idempotency-Outcome": outcome} if outcome else None)


async def main(folder: Path, name: str, port: int, following: str = "", gate: int = 0, seconds: float = 0) -> None:
    caller = Caller(folder, following, gate) if following else None
    server = web.Server(Hop(folder, name, caller, seconds).serve, access_log=None)
    await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    folder, name, port, *rest = sys.argv[1:]
    if rest:
        asyncio.run(main(Path(folder), name, int(port), rest[0], int(rest[1]), float(rest[2])))
    else:
        asyncio.run(main(Path(folder), name, int(port)))

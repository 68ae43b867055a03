"""The keys of one issuer: read from a file or fetched, and again and again, since issuers change them.

While they cannot be had, those that were fetched last are trusted for a day. A token that names a key that is not
among them has them fetched anew, so that a key that has come into use is known within a second; and at most so often
that nobody makes the gate ask all the time by making names up.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp

from ..core.scope import Tokens
from ..jwks import LARGEST, PublicKey, published
from ..ports import Clock

#: Seconds that a fetch may take.
PATIENCE = 5.0
#: Seconds after a fetch that failed, and between two that unknown keys ask for.
AGAIN = 10.0
#: Seconds for which keys are trusted that cannot be fetched anew.
TRUSTED = 86_400.0


class Unfetched(Exception):
    """The keys could not be had. The message says why."""


class Keys:
    """What an issuer publishes, as it was last seen. `generation` grows when that is something else."""

    def __init__(
        self, tokens: Tokens, clock: Clock, say: Callable[..., None], *, context: ssl.SSLContext | None = None
    ) -> None:
        self.tokens = tokens
        self.generation = 0
        self._clock = clock
        self._say = say
        self._context = context
        self._keys: tuple[PublicKey, ...] = ()
        self._fetched = -TRUSTED
        self._tried = -AGAIN
        self._fetching = False
        self._failing = False
        self._asked = asyncio.Event()

    @property
    def trusted(self) -> bool:
        """Whether there are any, and lately seen."""
        return bool(self._keys) and self._clock.now() - self._fetched < TRUSTED

    def fitting(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Those by which a token of this header may be signed. (A token need not name its key.)"""
        return [key for key in self._keys if algorithm in key.algorithms and (kid is None or key.kid in (None, kid))]

    def ask(self) -> bool:
        """Have them fetched anew, if that was not done a moment ago; says whether they are being fetched."""
        if not self._fetching and self._clock.now() - self._tried >= AGAIN:
            self._fetching = True
            self._asked.set()
        return self._fetching

    async def fetch(self) -> bool:
        """Fetch them once; says whether that succeeded. Never raises, and takes no longer than PATIENCE."""
        self._fetching = True
        try:
            async with asyncio.timeout(PATIENCE):
                keys = published(await self._read())
        except (Unfetched, ValueError, TimeoutError) as error:
            if not self._failing:
                self._failing = True
                why = str(error) or f"no answer within {PATIENCE:g} s"
                self._say("warning", "an issuer's keys cannot be fetched", issuer=self.tokens.issuer, reason=why)
            return False
        finally:
            self._fetching = False
            self._tried = self._clock.now()
        self._fetched = self._clock.now()
        if keys != self._keys:
            self._keys = keys
            self.generation += 1
        if self._failing:
            self._failing = False
            self._say("note", "an issuer's keys are fetched again", issuer=self.tokens.issuer)
        return True

    async def watch(self) -> None:
        """Fetch them again and again, until this is cancelled."""
        fetched = self.trusted
        while True:
            try:
                async with asyncio.timeout(self.tokens.refresh / 1000 if fetched else AGAIN):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            fetched = await self.fetch()

    async def _read(self) -> bytes:
        """What is published, and not much more of it than is read. Raises Unfetched."""
        where = self.tokens.jwks
        try:
            if "://" not in where:
                return await asyncio.to_thread(_file, where)
            async with (
                aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
                session.get(where, ssl=self._context or True, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise Unfetched(f"answered {response.status}")
                data = b""
                async for piece in response.content.iter_chunked(64 << 10):
                    data += piece
                    if len(data) > LARGEST:
                        break
                return data
        except (aiohttp.ClientError, OSError) as error:
            raise Unfetched(str(error) or type(error).__name__) from error


def _file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(LARGEST + 1)


__all__ = ["AGAIN", "PATIENCE", "TRUSTED", "Keys", "Unfetched"]

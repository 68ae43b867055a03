"""A release: three gates on one Redis are stopped and started again one after the other, while customers buy.

A customer does what a client behind a TCP balancer sees: it goes to the gates in turn, and to the next where nobody
listens; keeps its connection for as long as it may; waits a moment between connecting and speaking; and sometimes hangs
up in the middle and asks again elsewhere. Half of what is asked for is a key that somebody has asked for before.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.test_storms import end_to_end
from tests.harness import Client, Response, request

from .history import Seen, now
from .stage import Gate, Stage

#: Processes of each gate.
WORKERS = (1, 2, 1)
CUSTOMERS = 12
#: Seconds that a customer looks round between two purchases, at most.
LOOKS = 0.03
#: Seconds after which a customer does not trust a connection that was quiet. A drain hears whoever speaks within 0.1 s
#: of the last word (`NEXT_WORD`), so this leaves it as much again for a machine that is busy.
TRUSTED = 0.05
#: How often a customer who has connected says nothing for a moment.
QUIET = 0.6
#: Requests on one connection, at most.
KEPT = 8
#: How often a customer hangs up before it has its answer, and the seconds that this one takes: longer than a drain that
#: waits for clients alone.
IMPATIENT, LONG = 0.25, 0.5
#: That reach the service before the first gate is stopped, between two, and after the last.
PURCHASES = 20
#: Keys that customers ask for again: the last so many.
RECENT = 60
STOPPED = "stopped: everything in flight was answered and settled"


def lasting(response: Response) -> list[tuple[bytes, bytes]]:
    """The fields that are the same in every answer of a key: whichever connection it is for, and whenever."""
    return [field for field in end_to_end(response) if field[0].lower() not in (b"date", b"connection")]


class Street:
    """Where the gates are, what was asked for, and what every customer saw."""

    def __init__(self, stage: Stage, gates: Sequence[Gate]) -> None:
        self.stage = stage
        self.gates = gates
        self.open = True
        self.keys: list[str] = []
        self.seen: Counter[str] = Counter()
        self.found: list[str] = []
        self.answers: dict[str, Response] = {}

    def key(self, dice: random.Random) -> str:
        """A new one, or one of the last."""
        if self.keys and dice.random() < 0.5:
            return dice.choice(self.keys[-RECENT:])
        self.keys.append(f"rolling-{len(self.keys)}")
        return self.keys[-1]

    def answered(self, key: str, client: str, began: float, answer: Response) -> bool:
        """Write it down; whether the customer has what he wanted. A 503 says that he may ask again."""
        body = answer.body.decode()
        self.stage.history.add(
            Seen(key, client, began, now(), answer.status, answer.problem or "", answer.label or "",
                 answer.replayed, body)
        )  # fmt: skip
        self.seen[f"{answer.status} {answer.label}"] += 1
        if answer.status == 201:
            first = self.answers.setdefault(key, answer)
            if (lasting(answer), body) != (lasting(first), first.body.decode()):
                self.found.append(f"{key}: {client} was given {answer}, and another {first}")
            return True
        retryable = answer.status == 503 and answer.get("Retry-After") and answer.get("X-Should-Retry") == "true"
        if not retryable:
            self.found.append(f"{key}: {client} noticed {answer.status} {answer.problem} {answer.label}")
        return not retryable


class Customer:
    """One after the other, on connections of its own."""

    def __init__(self, street: Street, number: int) -> None:
        self.street = street
        self.name = f"c{number}"
        self._dice = random.Random(number)
        self._at = number
        self._client: Client | None = None
        self._spoke = 0.0
        self._left = 0

    async def shop(self) -> None:
        """Until the street is closed."""
        while self.street.open:
            await self.buy(self.street.key(self._dice))
            await asyncio.sleep(self._dice.uniform(0, LOOKS))
        self._leave()

    async def buy(self, key: str) -> None:
        """Ask until there is an answer."""
        while True:
            impatient = self._dice.random() < IMPATIENT
            origin = f"linger={LONG if impatient else self._dice.choice((0, 0.01, 0.03))}"
            data = request(key=key, body=b'{"amount":1}', fields=[("X-Origin", origin)])
            if await self._ask(key, data, impatient=impatient):
                return
            await asyncio.sleep(0.05)

    async def _ask(self, key: str, data: bytes, *, impatient: bool) -> bool:
        if self._client is None or not self._left or now() - self._spoke > TRUSTED:
            await self._connect()
            if self._dice.random() < QUIET:
                await asyncio.sleep(0.02)  # has connected, and says nothing yet
                if now() - self._spoke > TRUSTED:
                    return False
        client, began = self._client, now()
        assert client is not None
        if client.writer.is_closing():  # reset before he had spoken: no more than a connection that was refused
            self.street.seen["closed before he spoke"] += 1
            self._leave()
            return False
        self._spoke, self._left = began, self._left - 1
        try:
            client.writer.write(data)
            if impatient:
                await asyncio.sleep(0.01)
                self.street.seen["hung up"] += 1
                client.reset()
                self._client = None
                return False
            answer = await client.read(seconds=8)
        except (OSError, TimeoutError) as error:
            self.street.found.append(f"{key}: {self.name} noticed {error!r} after {now() - began:.3f} s")
            self._leave()
            return False
        if answer.get("Connection") == "close":
            self._leave()
        return self.street.answered(key, self.name, began, answer)

    async def _connect(self) -> None:
        """To the next gate that somebody listens at. Connecting on the loopback does not block."""
        self._leave()
        for _ in range(len(self.street.gates)):
            self._at += 1
            self._spoke = now()
            try:
                sock = socket.create_connection(
                    ("127.0.0.1", self.street.gates[self._at % len(self.street.gates)].port)
                )
            except ConnectionRefusedError:
                self.street.seen["refused"] += 1
                continue
            self._client, self._left = Client(*await asyncio.open_connection(sock=sock)), KEPT
            return
        raise AssertionError("nobody listens at any gate")

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None


async def rolling(folder: Path, defect: str) -> list[str]:
    """A release under load: no customer notices more than a refused connection or a 503 that says try again; one effect
    and one answer for each key; each gate ends with 0 and has settled everything."""
    async with Stage(folder, "redis", defect=defect, wait="5s", upstream="timeout: 5s, late: 1s, connect: 2s") as stage:
        gates = await asyncio.gather(*(stage.gate(workers=1 if defect else count) for count in WORKERS))
        street = Street(stage, gates)
        codes = []
        async with asyncio.TaskGroup() as group:
            for number in range(CUSTOMERS):
                group.create_task(Customer(street, number).shop())
            for gate in gates:
                await stage.until_asked(len(stage.asked()) + PURCHASES)
                codes.append(await gate.terminate())
                await gate.start()
            await stage.until_asked(len(stage.asked()) + PURCHASES)
            street.open = False
        found = street.found + stage.faults()
        found += [f"{key}: no effect" for key in {*street.keys} - {effect.key for effect in stage.asked()}]
        for gate, code in zip(gates, codes, strict=True):
            said = [line["message"] for line in gate.lines if str(line.get("message")).startswith("stopped")]
            if code or set(said) != {STOPPED}:
                found.append(f"{gate.port} ended with {code} and {said}")
        if not defect:
            assert street.seen["refused"], "no customer met a gate that was away"
            assert street.seen["201 replayed"] > len(street.keys) / 4, street.seen
        print(f"{len(street.keys)} keys: {dict(street.seen)}")
        return found

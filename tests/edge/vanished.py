"""A host that vanishes in the middle of a response: `python -m tests.edge.vanished client`, or `service`.

Run by test_keepalive.py in a network namespace of its own, as its root. The host that vanishes is another namespace: a
pair of virtual interfaces connects the two, until the far one goes down.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

from gateway.edge import keepalive
from tests.edge.stand import GET, OK, SOON, ByHand, drain, edge, head_of, keyed
from tests.harness import ask, configuration

NEAR, FAR, PORT = "192.0.2.1", "192.0.2.2", 8080
HALF = OK + b"Content-Length: 100\r\n\r\nhalf"
LIMITS = "limits: {response_idle: 1h, write_timeout: 1h}"


class FarHost:
    """The other namespace, and the one process in it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, role: str) -> FarHost:
        host = cls(
            await asyncio.create_subprocess_exec(
                "unshare",
                "--net",
                sys.executable,
                "-m",
                "tests.edge.vanished",
                f"far-{role}",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert await host.says() == "begun"
        pid = str(host._process.pid)
        near, far = ("ip",), ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
        for command in (
            (*near, "link", "set", "lo", "up"),
            (*near, "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", pid),
            (*near, "addr", "add", f"{NEAR}/24", "dev", "near"),
            (*near, "link", "set", "near", "up"),
            (*far, "addr", "add", f"{FAR}/24", "dev", "far"),
            (*far, "link", "set", "far", "up"),
        ):
            subprocess.run(command, check=True)
        return host

    async def says(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(SOON):
            return (await self._process.stdout.readline()).decode().strip()

    async def hears(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    def vanish(self) -> None:
        target = f"--net=/proc/{self._process.pid}/ns/net"
        subprocess.run(("nsenter", target, "ip", "link", "set", "far", "down"), check=True)

    async def stop(self) -> None:
        self._process.kill()
        await self._process.wait()


async def client_vanishes() -> None:
    """The gateway closes both connections: the client's, and the one to the service that it held."""
    hand, host = await ByHand().start(), await FarHost.start("client")
    listening = configuration(hand.url, top=LIMITS, listen=f"{NEAR}:{PORT}")
    async with edge(listening) as gate:
        await host.hears("")
        peer = await hand.accept()
        await peer.head()
        await peer.send(HALF)
        assert await host.says() == "half"
        host.vanish()
        async with asyncio.timeout(30):
            assert await peer.reader.read() == b""
        await gate.emptied()
    await host.stop()
    await hand.stop()


async def service_vanishes() -> None:
    """A client sees that its response broke off, and what was guarded is in doubt."""
    host = await FarHost.start("service")
    await host.hears("")
    assert await host.says() == "listening"
    async with edge(configuration(f"http://{FAR}:{PORT}", top=LIMITS, upstream="timeout: 1h")) as gate:
        passing, guarded = await gate.connect(), await gate.connect()
        await passing.send(GET)
        await head_of(passing)
        await guarded.send(keyed("k"))
        assert await host.says() == "half"
        assert await host.says() == "half"
        host.vanish()
        async with asyncio.timeout(30):
            assert await drain(passing) == b"half"
            answer = await guarded.read()
        assert (answer.status, answer.problem) == (502, "upstream-lost")
        again = await ask(gate.port, key="k", body=b"", host="a")
        assert (again.status, again.problem) == (409, "in-doubt")
    await host.stop()


def far_client() -> None:
    with socket.create_connection((NEAR, PORT), timeout=SOON) as sock:
        sock.sendall(GET)
        sock.recv(1 << 16)
        print("half", flush=True)
        sys.stdin.readline()


def far_service() -> None:
    with socket.create_server((FAR, PORT)) as listener:
        print("listening", flush=True)
        held = []
        for _ in range(2):
            sock, _ = listener.accept()
            sock.recv(1 << 16)
            sock.sendall(HALF)
            held.append(sock)
            print("half", flush=True)
        sys.stdin.readline()


def main(role: str) -> None:
    if role.startswith("far-"):
        print("begun", flush=True)
        sys.stdin.readline()
        {"far-client": far_client, "far-service": far_service}[role]()
    else:
        signal.alarm(90)  # a gateway that does not notice would wait for its clients; the far host ends with this one
        keepalive.IDLE = keepalive.INTERVAL = 1
        keepalive.PROBES = 2
        asyncio.run({"client": client_vanishes, "service": service_vanishes}[role]())


if __name__ == "__main__":
    main(sys.argv[1])

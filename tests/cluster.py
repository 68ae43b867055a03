"""A Redis Cluster of our own on the loopback: real servers, primaries with a replica each, slots that can be moved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from tests.servers import RedisServer, free_port

#: Milliseconds after which a silent node counts as lost.
NODE_TIMEOUT = 1000
SLOTS = 16384


class Node(RedisServer):
    """One node. It keeps its address and what it knows of the others when it is started again."""

    def __init__(self, binary: Path, *, whole: bool) -> None:
        self.bus = free_port()
        super().__init__(
            binary,
            arguments=(
                "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(self.bus),
                "--cluster-node-timeout", str(NODE_TIMEOUT), "--cluster-allow-replica-migration", "no",
                "--cluster-require-full-coverage", "yes" if whole else "no", "--repl-diskless-sync-delay", "0",
            ),
        )  # fmt: skip

    @property
    def announced(self) -> int:
        """The port at which the others reach it, and clients are sent to it."""
        return self.port

    @property
    def id(self) -> str:
        return str(self.run("CLUSTER", "MYID").decode())

    def run(self, *words: object) -> Any:
        """The reply to a command, as it comes."""
        with self.client() as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def says(self, *words: str) -> dict[str, str]:
        """The fields of a reply that is a text of them."""
        lines = self.run(*words).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    @property
    def leads(self) -> bool:
        return self.says("INFO", "replication")["role"] == "master"

    def calls(self, command: str) -> int:
        """How often it was asked this."""
        with self.client() as client:
            told = client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
        return int(told["calls"])

    def errors(self, code: str) -> int:
        """How often it has answered so."""
        with self.client() as client:
            told = client.info("errorstats").get(f"errorstat_{code}", {"count": 0})
        return int(told["count"])


class RedisCluster:
    """`primaries[n]` has the n-th part of the slots at first, and `replicas[n]` follows it. `whole`: where slots are
    lost nothing is served (which is Redis' default)."""

    def __init__(self, binary: Path, *, primaries: int = 3, replicas: bool = True, whole: bool = False) -> None:
        self._made_of = binary, primaries, replicas, whole
        self._nodes()

    def _nodes(self) -> None:
        _, primaries, replicas, _ = self._made_of
        self.primaries = [self._node() for _ in range(primaries)]
        self.replicas = [self._node() for _ in range(primaries if replicas else 0)]

    def _node(self) -> Node:
        binary, _, _, whole = self._made_of
        return Node(binary, whole=whole)

    @property
    def nodes(self) -> list[Node]:
        return self.primaries + self.replicas

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.running]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> RedisCluster:
        for left in (2, 1, 0):
            try:
                self._start()
                return self
            except (redis.RedisError, AssertionError):
                self.close()
                if not left:
                    raise
                self._nodes()  # a port, or that of the bus, was taken meanwhile: the next have others
            except BaseException:
                self.close()
                raise
        raise AssertionError

    def _start(self) -> None:
        for number, node in enumerate(self.nodes):
            node.start()
            node.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        share = SLOTS // len(self.primaries)
        for number, node in enumerate(self.primaries):
            last = SLOTS - 1 if node is self.primaries[-1] else (number + 1) * share - 1
            node.run("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        first = self.nodes[0]
        for node in self.nodes[1:]:
            node.run("CLUSTER", "MEET", "127.0.0.1", first.announced, first.bus)
        self.until(lambda: all(self._knows(node) == len(self.nodes) for node in self.nodes), "all know each other")
        for primary, replica in zip(self.primaries, self.replicas, strict=False):
            replica.run("CLUSTER", "REPLICATE", primary.id)
        self.until(self.well, "the cluster is ready, and its replicas are in step")

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    # ── What is ───────────────────────────────────────────────────────────────────────────────────

    def owner(self, slot: int) -> Node:
        """Who has a slot, as most nodes see it."""
        seen: list[int] = []
        for node in self.running:
            for first, last, primary, *_ in node.run("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    seen.append(int(primary[1]))
        port = max(set(seen), key=seen.count)
        return next(node for node in self.nodes if port in (node.port, node.announced))

    def of(self, key: bytes) -> Node:
        """Who has this key."""
        return self.owner(key_slot(key))

    def well(self) -> bool:
        """Every node that runs sees all slots served and nobody lost, and every primary has its replica's ear."""
        try:
            for node in self.running:
                told = node.says("CLUSTER", "INFO")
                if told["cluster_state"] != "ok" or int(told["cluster_slots_fail"]):
                    return False
                role = node.says("INFO", "replication")
                if role["role"] == "slave" and role["master_link_status"] != "up":
                    return False
                if role["role"] == "master" and self.replicas and role["connected_slaves"] == "0":
                    return False
        except redis.RedisError:
            return False
        return True

    @staticmethod
    def _knows(node: Node) -> int:
        """How many nodes it has shaken hands with."""
        return sum("handshake" not in line for line in node.run("CLUSTER", "NODES").decode().splitlines())

    def flush(self) -> None:
        for node in self.running:
            if node.leads:
                node.run("FLUSHALL")

    # ── Slots that move ───────────────────────────────────────────────────────────────────────────

    def begin(self, slot: int, source: Node, target: Node) -> None:
        """The slot is on its way: what is not in the source any more is asked for with ASK."""
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def carry(self, slot: int, source: Node, target: Node) -> int:
        """What is in the slot goes over; says how many keys did."""
        carried = 0
        while keys := source.run("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.run("MIGRATE", "127.0.0.1", target.announced, "", 0, 5000, "KEYS", *keys)
            carried += len(keys)
        return carried

    def end(self, slot: int, target: Node) -> None:
        """The slot has arrived, and all primaries are told."""
        name = target.id
        told = [target, *(node for node in self.running if node is not target)]
        for node in told:
            if node.leads:
                node.run("CLUSTER", "SETSLOT", slot, "NODE", name)

    def move(self, slot: int, target: Node) -> None:
        source = self.owner(slot)
        if source is not target:
            self.begin(slot, source, target)
            self.carry(slot, source, target)
            self.end(slot, target)

    @contextmanager
    def moving(self, slot: int, target: Node) -> Iterator[Node]:
        """The slot is on its way while this goes on, its keys still in the source; then it arrives."""
        source = self.owner(slot)
        self.begin(slot, source, target)
        try:
            yield source
        finally:
            self.carry(slot, source, target)
            self.end(slot, target)

    @staticmethod
    def until(what: Callable[[], object], claim: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not in {seconds} s: {claim}"
            time.sleep(0.05)

"""Gates before a Redis Cluster that is reached over TLS, with a certificate of ours: rediss+cluster://."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from tests.e2e.test_fleet import fleet
from tests.e2e.test_storms import a_distinct_answer
from tests.harness import GateProcess, Origin, Response, ask, configuration
from tests.servers import preferred
from tests.stores.test_redis_kin import whole
from tests.tls import Authority, SecureCluster, speaks_tls

KEYS = [f"secure-{n:02}" for n in range(30)]

pytestmark = pytest.mark.skipif(not speaks_tls(preferred()), reason="this server was built without TLS")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def cluster(authority: Authority) -> Iterator[SecureCluster]:
    cluster = SecureCluster(preferred(), authority)
    try:
        yield cluster.start()
    finally:
        cluster.close()


async def asked(gates: list[GateProcess], keys: list[str], copies: int = 2) -> dict[str, list[Response]]:
    """Each key so often, at once, through each gate in turn."""

    async def one(key: str) -> list[Response]:
        ports = [gates[copy % len(gates)].port for copy in range(copies)]
        return await asyncio.gather(*(ask(port, key=key) for port in ports))

    answers = await asyncio.gather(*(one(key) for key in keys))
    return dict(zip(keys, answers, strict=True))


def bodies(answers: dict[str, list[Response]]) -> dict[str, set[bytes]]:
    return {key: {response.body for response in responses} for key, responses in answers.items()}


def of_gates(cluster: SecureCluster) -> list[tuple[bool, bool]]:
    """Of each connection of a gate: whether it is at its node's port for TLS, and whether at its plain one."""
    return [
        (one["laddr"].endswith(f":{node.announced}"), one["laddr"].endswith(f":{node.port}"))
        for node in cluster.nodes
        for one in _clients(node)
        if one["name"] == "oncegate"
    ]


def _clients(node: object) -> list[dict[str, str]]:
    with node.client() as client:  # type: ignore[attr-defined]
        found: list[dict[str, str]] = client.client_list()
        return found


async def test_a_fleet_on_a_cluster_over_tls(origin: Origin, cluster: SecureCluster, authority: Authority) -> None:
    """Two gates with certificates, keys on every primary, two copies of each at once: one effect each, and the other
    copy its replay. A slot moves: while it is on its way (its record still behind, or gone ahead) and afterwards every
    key is replayed, byte for byte, and none runs again; a new key of that slot is claimed where it went. Every
    connection of the gates is over TLS."""
    origin.answer = a_distinct_answer
    url = f"{cluster.url}?{authority.ca}&{authority.client()}"
    async with fleet(configuration(origin.url, store=url), 2) as gates:
        first = await asked(gates, KEYS)
        for responses in first.values():
            assert Counter((one.label, one.replayed) for one in responses) == {
                ("stored", False): 1,
                ("replayed", True): 1,
            }
        moved = next(key for key in cluster.primaries[0].run("KEYS", "*") if not key.startswith(b"og:marker:"))
        slot, target = key_slot(moved), cluster.primaries[1]
        assert all(node.run("DBSIZE") > 1 for node in cluster.nodes), "every primary has keys, and its marker"

        async def replayed(when: str) -> None:
            again = await asked(gates, KEYS)
            assert {one.label for responses in again.values() for one in responses} == {"replayed"}, when
            assert bodies(again) == bodies(first), when

        with cluster.moving(slot, target) as source:
            await replayed("its record is still behind")
            assert cluster.carry(slot, source, target) == 1
            await replayed("its record has gone ahead")
            assert source.errors("ASK") > 0
        assert cluster.owner(slot) is target
        await replayed("it has arrived")
        assert target.run("EXISTS", moved) == 1
        assert origin.effects == Counter({key.encode(): 1 for key in KEYS})
        connected = await asyncio.to_thread(of_gates, cluster)
        assert len(connected) >= len(gates) * len(cluster.nodes)
        assert set(connected) == {(True, False)}


async def test_bells_ring_over_tls(cluster: SecureCluster, authority: Authority) -> None:
    """Two stores, and the whole life of a record: who waits at one is told by the other."""
    await whole(f"{cluster.url}?{authority.ca}&{authority.client()}")


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ("nothing", "most likely wants a client certificate"),
        ("a stranger's", "most likely wants a client certificate"),
        ("another authority", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
async def test_who_does_not_fit_claims_nothing(
    origin: Origin, cluster: SecureCluster, authority: Authority, shown: str, reason: str
) -> None:
    """Without a certificate, with a stranger's, or where the nodes are signed by an authority that the gate does not
    trust: guarded requests are 503 and nothing runs; `/ready/guarded` names a node, and why."""
    options = {
        "nothing": authority.ca,
        "a stranger's": f"{authority.ca}&{authority.client('stranger-client')}",
        "another authority": f"ca={authority.file('stranger.pem')}&{authority.client()}",
    }[shown]
    text = configuration(origin.url, store=f"{cluster.url}?{options}", policy="store_wait: 0s", top="startup_wait: 0s")
    gate = GateProcess(text)
    try:
        await gate.start()
        answer = await ask(gate.port, key="unseen")
        assert (answer.status, answer.label) == (503, "refused")
        told = await asyncio.to_thread(unready, gate)
        assert reason in told, told
        assert any(f"Redis at 127.0.0.1:{node.announced} " in told for node in cluster.nodes)
        assert origin.effects == Counter()
    finally:
        gate.close()


def unready(gate: GateProcess) -> str:
    """What `/ready/guarded` says against the gate."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{gate.admin_port}/ready/guarded", timeout=5)
    assert refused.value.code == 503
    with refused.value as answer:
        return str(json.load(answer)["reason"])

"""The compose file: duplicates through it while its parts are restarted and stopped, and who reaches what."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid

import pytest

from tests.containers.composed import Composed, get_json, until
from tests.harness import Response, ask

pytestmark = [pytest.mark.containers, pytest.mark.usefixtures("log_of_gate")]

ORDER = b'{"item": "book", "amount": 12.50}'


def post(composed: Composed, key: str, body: bytes = ORDER) -> Response:
    return asyncio.run(ask(composed.port, key=key, body=body, seconds=60))


def number(response: Response) -> int:
    assert response.status == 201, (response.status, response.body)
    return int(json.loads(response.body)["id"])


async def insist(port: int, key: str, tries: int = 200) -> Response:
    """A client that sends its request again, under the same key, until it has the order."""
    response = None
    for _ in range(tries):
        try:
            response = await ask(port, key=key, body=ORDER, seconds=60)
            if response.status == 201:
                return response
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(0.1)
    raise AssertionError(f"{key}: no answer in {tries} tries; the last was {response}")


def test_fifty_copies_at_once_are_one_order(composed: Composed) -> None:
    """Fifty copies → one execution, fifty equal answers, 49 of them marked as replays; another body → 422."""
    before, key = composed.executed(), uuid.uuid4().hex

    async def storm() -> list[Response]:
        return await asyncio.gather(*(ask(composed.port, key=key, body=ORDER, seconds=60) for _ in range(50)))

    answers = asyncio.run(storm())
    assert composed.executed() == before + 1
    assert len({number(answer) for answer in answers}) == 1
    assert sum(answer.replayed for answer in answers) == 49
    assert post(composed, key, b'{"item": "book", "amount": 1}').problem == "key-reused"


@pytest.mark.parametrize("service", ["gate", "redis"])
@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_key_outlives_a_restart(composed: Composed, service: str, how: str) -> None:
    """An order; the gate or the Redis is restarted, or killed with SIGKILL and started; its duplicate is a replay."""
    key = uuid.uuid4().hex
    first = post(composed, key)
    before = composed.executed()
    container = composed.container(service)
    if how == "restart":
        container.restart(timeout=100)
    else:
        container.kill()
        container.start()
    composed.until_healthy(service)
    composed.until_healthy("gate")
    again = asyncio.run(insist(composed.port, key))
    assert again.replayed
    assert again.body == first.body
    assert composed.executed() == before


def test_a_stop_under_load_loses_nothing_and_doubles_nothing(composed: Composed) -> None:
    """Twenty clients order without pause, each key twice at once; `docker stop`, start. Every key has one order, the
    same for both of its copies, and the gate ended by itself (0), long before it would have been killed."""
    before, gate = composed.executed(), composed.container("gate")
    tokens = itertools.count()
    answers: dict[str, list[int]] = {}

    async def client(stopped: asyncio.Event) -> None:
        rest = 3  # so many orders after the gate is there again
        while rest:
            key = f"load-{composed.project}-{next(tokens)}"
            pair = await asyncio.gather(insist(composed.port, key), insist(composed.port, key))
            answers[key] = [number(each) for each in pair]
            rest -= stopped.is_set()

    def stop_and_start() -> int:
        gate.stop(timeout=100)
        gate.reload()
        code = int(gate.attrs["State"]["ExitCode"])
        gate.start()
        return code

    async def load() -> int:
        stopped = asyncio.Event()
        clients = [asyncio.ensure_future(client(stopped)) for _ in range(20)]
        while len(answers) < 60:  # bounded by insist()
            await asyncio.wait(clients, timeout=0.05)
        async with asyncio.timeout(110):
            code = await asyncio.to_thread(stop_and_start)
        stopped.set()
        await asyncio.gather(*clients)
        return code

    assert asyncio.run(load()) == 0
    composed.until_healthy("gate")
    assert all(first == second for first, second in answers.values())
    orders = {first for first, _ in answers.values()}
    assert len(orders) == len(answers) >= 120
    assert composed.executed() == before + len(answers)


def test_what_the_admin_port_shows_outside(composed: Composed) -> None:
    """From outside of the container: readiness and metrics."""
    for path in ("/live", "/ready", "/ready/guarded", "/metrics"):
        assert asyncio.run(ask(composed.admin, "GET", path, body=b"")).status == 200, path


def test_what_the_admin_port_refuses_outside(composed: Composed) -> None:
    """What is for operators: nobody has a token here, and the listener is not on the loopback."""
    for method, path in (("POST", "/store/accept"), ("GET", "/keys"), ("GET", "/config"), ("POST", "/keys/resolve")):
        refused = asyncio.run(ask(composed.admin, method, path, body=b""))
        assert refused.status == 403, path
        assert b"token-missing" in refused.body, path


def test_only_the_gate_reaches_the_store(composed: Composed) -> None:
    """The Redis has no port on this machine, and its name means nothing to the service."""
    assert composed.container("redis").ports.get("6379/tcp") is None
    look = ["python3", "-c", "import socket; socket.create_connection(('redis', 6379), timeout=3)"]
    assert composed.container("orders").exec_run(look).exit_code != 0
    assert composed.container("gate").exec_run(look).exit_code == 0


def test_prometheus_sees_the_gate_and_knows_the_alerts(composed: Composed) -> None:
    """It scrapes what was caught and has the alerts of the file; its own tool accepts the file, and plays every case of
    tests.yml (in a folder that it may write to)."""
    post(composed, "scraped")
    post(composed, "scraped")
    until(lambda: composed.query('oncegate_duplicates_total{route="orders",kind="replayed"}'), 30, "a scrape")
    (up,) = composed.query('up{job="oncegate"}')
    assert up["value"][1] == "1"
    rules = get_json(f"http://127.0.0.1:{composed.prometheus}/api/v1/rules")["data"]["groups"]
    assert {rule["name"] for group in rules for rule in group["rules"]} >= {"OncegateStoreForgot", "OncegateDown"}
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
    for words in ("check config /etc/prometheus/prometheus.yml", "test rules /etc/prometheus/tests.yml"):
        tool = ["/bin/promtool", *words.split()]
        done = composed.container("prometheus").exec_run(tool, environment={"TMPDIR": "/prometheus"})
        assert done.exit_code == 0, done.output


def test_grafana_has_the_dashboard(composed: Composed) -> None:
    """Anybody on this machine sees it, without a password."""
    if "grafana" not in composed.services:
        pytest.skip("Grafana's image cannot be had here, and Debian has no package of it")
    found = f"http://127.0.0.1:{composed.grafana}/api/dashboards/uid/oncegate"

    def there() -> bool:
        try:
            return bool(get_json(found)["dashboard"]["panels"])
        except OSError:
            return False

    until(there, 90, "Grafana has provisioned it")

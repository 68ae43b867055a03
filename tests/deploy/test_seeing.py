"""The page of metrics, the dashboard and the alerts name what a real gate shows, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from gateway.core.decide import PassReason, Reason
from gateway.core.keyform import Weakness
from gateway.core.problem import Problem
from gateway.core.record import Kind
from gateway.ops.metrics import Tally
from gateway.ports import DuplicateKind, VerdictName
from gateway.stores.findings import OF_WRITES
from gateway.stores.redis.marker import AMNESIA
from tests.deploy.expressions import TARGET, Asked, read
from tests.e2e.crowd import callers, eventually
from tests.harness import ask, gate, request
from tests.ops.test_metrics import Origins, Scrape, scrape, text
from tests.servers import RedisServer, preferred

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/metrics.md"
RUNBOOK = ROOT / "docs/runbook.md"
DASHBOARD = ROOT / "deploy/grafana/oncegate.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"

#: The values of labels whose values are few.
DOMAINS: dict[str, set[str]] = {
    "verdict": {each.value for each in VerdictName},
    "kind": {each.value for each in DuplicateKind},
    "settlement": {each.value for each in Kind},
    "reason": {each.value for each in Reason} | {each.value for each in PassReason if each.unprotected},
    "problem": {each.slug for each in Problem},
    "operation": {"claim", "settle", "takeover", "look"},
    "name": {AMNESIA, *OF_WRITES},
    "job": {"oncegate"},
}


# ── What is written ───────────────────────────────────────────────────────────────────────────────


@cache
def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def filled(expression: str) -> str:
    """The expression as Grafana sends it."""
    expression = expression.replace("$__rate_interval", "1m").replace("$__range", "1h")
    return re.sub(r"\$(instance|route)", ".*", expression)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def asked_everywhere() -> Iterator[tuple[str, Asked]]:
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], read(filled(target["expr"]))
    for rule in rules():
        yield rule["alert"], read(rule["expr"])
    for expression in re.findall(r"`((?:sum|histogram_quantile).*?)`", PAGE.read_text()):
        yield PAGE.name, read(expression.replace("\\|", "|"))


# ── What is there ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def origin() -> AsyncIterator[Origins]:
    origin = Origins()
    await origin.start()
    yield origin
    origin.released.set()
    await origin.stop()


async def lived(origin: Origins) -> list[Scrape]:
    """Scrapes of a gate to which something of everything happens."""
    server = RedisServer(preferred()).start()
    try:
        looked_at = "routes:\n  - {name: dim, match: {path: /dim/**}, upstream: origin, mode: shadow}\n"
        written = text(origin, store=server.url, policy="store_wait: 0s").replace("routes:\n", looked_at)
        async with gate(written) as running:
            with server.client() as client:
                assert client.config_get("appendonly")["appendonly"] == "no"
            for target in ("/plain", "/plain", "/reset", "/nowhere"):
                await ask(running.port, target=target, key=target)
            await ask(running.port, target="/plain")  # without a key
            signed = [("Authorization", "Digest username=a")]
            await ask(running.port, target="/plain", key="signed", fields=signed)
            await ask(running.port, target="/plain", key="1700000000")
            for _ in range(2):
                await ask(running.port, target="/dim/plain", key="dim")
            await eventually(
                lambda: scrape(running),
                lambda seen: seen.values("oncegate_shadow_duplicates_total", "route") == {("dim",): 1},
            )
            async with callers(2, running.port) as (first, second):
                data = request(target="/held", key="held")
                answering = first.send(data)
                await origin.until(8)
                following = second.send(data)
                under_way = await eventually(
                    lambda: scrape(running), lambda seen: seen.values("oncegate_waiters", "route") == {("all",): 1}
                )
                origin.released.set()
                await answering
                await following
            server.kill()
            assert (await ask(running.port, key="away")).problem == "store-unavailable"
            return [under_way, await scrape(running)]
    finally:
        server.close()


async def test_all_that_dashboard_and_alerts_ask_for_is_in_a_scrape(origin: Origins) -> None:
    """Each metric of each expression is a sample of a gate that lived a little, each label that it matches or groups by
    is on that sample, and each value that it matches is one that the code can write."""
    samples: dict[str, set[str]] = {"up": set()}
    for seen in await lived(origin):
        for family in seen.families.values():
            for sample in family.samples:
                samples.setdefault(sample.name, set()).update(sample.labels)
    count = 0
    for where, asked in asked_everywhere():
        assert asked.selected, where
        for selected in asked.selected:
            count += 1
            assert selected.metric in samples, f"{where}: no {selected.metric}"
            there = samples[selected.metric] | TARGET
            assert selected.labels <= there, f"{where}: {selected.metric} has {there}"
            for label, values in selected.matched:
                if label in DOMAINS:
                    assert set(values) <= DOMAINS[label], f"{where}: {label} is never one of {values}"
        for labels, metrics in asked.grouped:
            for metric in metrics:
                assert labels <= samples[metric] | TARGET, f"{where}: {metric} is not to be grouped by {labels}"
    assert count > 50


# ── The page ──────────────────────────────────────────────────────────────────────────────────────


def declared() -> dict[str, tuple[str, set[str]]]:
    """Each metric of the code: its type and its labels."""
    tally = Tally()
    families: list[Metric] = list(tally.collect())
    return {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, set(family._labelnames))  # type: ignore[attr-defined]
        for family in families
    }


def test_the_page_has_every_metric_with_its_labels_and_no_other() -> None:
    """One row each, with the type and the labels of the code."""
    rows = re.findall(r"^\| `(oncegate_\w+)` \| (\w+) \| ([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    written = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(written)
    assert written == declared()


def test_the_page_has_every_value_of_every_label() -> None:
    """Verdicts, kinds, settlements, reasons and operations, and no other."""
    rows = dict(re.findall(r"^\| (`?\w+`?(?: of [a-z ]+)?) \| ((?:`\w+`(?:, )?)+) \|$", PAGE.read_text(), re.MULTILINE))
    written = {name.replace("`", ""): set(re.findall(r"`(\w+)`", values)) for name, values in rows.items()}
    assert written == {
        "verdict": DOMAINS["verdict"],
        "kind": DOMAINS["kind"],
        "kind of weak keys": {each.value for each in Weakness},
        "settlement": DOMAINS["settlement"],
        "reason of settlements and doubts": {each.value for each in Reason},
        "reason of unprotected": {each.value for each in PassReason if each.unprotected},
        "operation": DOMAINS["operation"],
    }


# ── The dashboard ─────────────────────────────────────────────────────────────────────────────────


def test_the_legends_say_what_the_expressions_answer() -> None:
    """A legend's {{label}} is one that its expression keeps, and lines that differ have names that differ."""
    for panel in panels():
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named == read(filled(target["expr"])).answers, (panel["title"], target["legendFormat"])


def test_the_dashboard_shows_every_metric() -> None:
    """Nothing is counted that nobody looks at."""
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", selected.metric)
        for panel in panels()
        for target in panel["targets"]
        for selected in read(filled(target["expr"])).selected
    }
    assert shown == declared().keys()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    """Every cell of the grid has one panel at most, within its 24 columns; ids are given once."""
    taken: set[tuple[int, int]] = set()
    everything = json.loads(DASHBOARD.read_text())["panels"]
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in everything}) == len(everything)


def test_what_is_provisioned_is_there() -> None:
    """Grafana's source is the composed Prometheus, which reads our rules and scrapes the composed gate."""
    composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/oncegate.yaml").read_text())[
        "providers"
    ]
    mounts = dict(mount.split(":")[:2] for mount in composed["grafana"]["volumes"])
    assert f"{provider['options']['path']}/{DASHBOARD.name}" == mounts[f"./{DASHBOARD.relative_to(ROOT)}"]
    for service in composed.values():
        for mount in service.get("volumes", ()):
            if mount.startswith("./"):
                assert (ROOT / mount.split(":")[0]).exists(), mount
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert prometheus["rule_files"] == [ALERTS.name]
    (job,) = prometheus["scrape_configs"]
    assert job["job_name"] in DOMAINS["job"]
    assert job["static_configs"] == [{"targets": ["gate:8081"]}]


@pytest.mark.parametrize("evaluate", ["by hand", "by Prometheus"])
async def test_the_first_row_shows_the_first_duplicate_and_the_first_doubt(
    origin: Origins, evaluate: str, tmp_path: Path
) -> None:
    """One order sent twice and one request in doubt, between two scrapes of a gateway that had no request before: the
    first row says 1 and 1."""
    async with gate(text(origin)) as running:
        before = await scrape(running)
        assert [(await ask(running.port, key="order-1")).label for _ in range(2)] == ["stored", "replayed"]
        assert (await ask(running.port, target="/reset", key="order-2")).problem == "upstream-lost"
        after = await scrape(running)
    expressions = {
        panel["title"]: filled(panel["targets"][0]["expr"]) for panel in panels() if panel["gridPos"]["y"] == 0
    }
    expected = {"Duplicates caught": 1, "Claims that the store forgot": 0, "Ran unguarded": 0, "Put in doubt": 1}
    assert expressions.keys() == expected.keys()
    if evaluate == "by hand":
        assert {title: rise(expression, before, after) for title, expression in expressions.items()} == expected
        return
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    old = samples(before)
    series = [
        {"series": name, "values": f"{old[name]:g}x9 {value:g}x20" if name in old else f"_x9 {value:g}x20"}
        for name, value in samples(after).items()
    ]
    asked = [
        {
            "expr": f"round({expression} or vector(0))",
            "eval_time": "25m",
            "exp_samples": [{"labels": "{}", "value": expected[title]}],
        }
        for title, expression in expressions.items()
    ]
    file = tmp_path / "first_row.yml"
    file.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}))
    done = subprocess.run([tool, "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def samples(seen: Scrape) -> dict[str, float]:
    """Each counter of a scrape, as a series of one Prometheus target."""
    return {
        sample.name
        + "{"
        + ",".join(f'{name}="{value}"' for name, value in (sample.labels | INSTANCE).items())
        + "}": sample.value
        for family in seen.families.values()
        for sample in family.samples
        if family.type == "counter" and sample.name.endswith("_total")
    }


INSTANCE = {"instance": "gate:8081", "job": "oncegate"}


def rise(expression: str, before: Scrape, after: Scrape) -> float:
    """What `sum(increase(…))` makes of two scrapes: a series counts from its first sample on."""
    asked = read(expression)
    assert expression.startswith("sum(increase(")
    (selected,) = asked.selected
    wanted = {label: values for label, values in selected.matched if values and values != (".*",)}

    def matching(seen: Scrape) -> dict[tuple[tuple[str, str], ...], float]:
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for sample in seen.families[selected.metric].samples
            if sample.name == selected.metric
            and all(sample.labels[label] in values for label, values in wanted.items())
        }

    old = matching(before)
    return sum(value - old.get(labels, value) for labels, value in matching(after).items())


# ── The alerts ────────────────────────────────────────────────────────────────────────────────────


def anchor(heading: str) -> str:
    """What leads to a heading, as GitHub and GitLab spell it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_a_link_of_an_alert_can_be_opened() -> None:
    """What is before the # is an address in full, said in one place; what is behind it is one heading of the runbook.
    What the README shows is what prometheus.yml has, and the cases play it set and unset."""
    headings = [anchor(each) for each in re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)]
    for rule in rules():
        assert headings.count(rule["annotations"]["runbook_url"].rpartition("#")[2]) == 1, rule["alert"]
    shipped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    page = (ROOT / "deploy/README.md").read_text().partition("## Prometheus and the runbook")[2]
    (shown,) = re.findall(r"```yaml\n(.*?)```", page.partition("\n## ")[0], re.DOTALL)
    for said in (shipped, yaml.safe_load(shown)):
        base = urlsplit(said["global"]["external_labels"]["oncegate_runbook"])
        assert (base.scheme, base.fragment) == ("https", "")
        assert base.netloc.endswith(".example"), "a placeholder is nobody's"
    cases = yaml.safe_load((ALERTS.parent / "tests.yml").read_text())["tests"]
    assert {case.get("external_labels", {}).get("oncegate_runbook") for case in cases} == {
        None, shipped["global"]["external_labels"]["oncegate_runbook"],
    }  # fmt: skip


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    """Its link leads to a heading of the runbook, which says its severity, what it means and what to do."""
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL))
    assert [rule["alert"] for rule in rules()] == list(sections)
    for rule in rules():
        said = sections[rule["alert"]]
        base = '{{ or $externalLabels.oncegate_runbook "docs/runbook.md" }}'
        assert rule["annotations"]["runbook_url"] == f"{base}#{anchor(rule['alert'])}"
        assert said.startswith(f"*{rule['labels']['severity']}: "), rule["alert"]
        assert "**Meaning.**" in said, rule["alert"]
        assert ("**At three in the morning.**" if rule["labels"]["severity"] == "page" else "**") in said
        assert "**What to do.**" in said or "**At three in the morning.**" in said, rule["alert"]


def test_what_an_alert_tells_is_in_its_answer() -> None:
    """A summary's {{ $labels.X }} is a label that the expression keeps."""
    for rule in rules():
        asked = read(rule["expr"])
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert named <= (TARGET if asked.answers is None else asked.answers), rule["alert"]


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    """deploy/prometheus/tests.yml, by Prometheus' own tool; on machines without one `make test-containers` does it."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    for command in (["check", "rules", "--lint-fatal", "alerts.yml"], ["test", "rules", "tests.yml"]):
        done = subprocess.run([tool, *command], cwd=ALERTS.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_played() -> None:
    """Each has a case in which it fires, and one in which it does not."""
    cases = [case for test in yaml.safe_load((ALERTS.parent / "tests.yml").read_text())["tests"]
             for case in test["alert_rule_test"]]  # fmt: skip
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fires == silent == {rule["alert"] for rule in rules()}

"""`tracing` in the file: what is taken, what is said of the rest, and what must be installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.plan import Plan
from gateway.reload import differences
from gateway.settings import Faults, Settings, TracingSettings, load_text
from gateway.settings.shown import shown

WHOLE = """
upstreams: {app: "http://127.0.0.1:9000"}
routes: [{name: all, upstream: app}]
"""


def read(text: str) -> Settings:
    return load_text(text, name="test.yaml", environ={})


@contextmanager
def fault(path: str, *words: str) -> Iterator[None]:
    """One fault, at this path, that says these words, and no password."""
    with pytest.raises(Faults) as raised:
        yield
    (found,) = raised.value.faults
    assert found.path == path
    for word in words:
        assert word in found.message
    assert "hunter2" not in str(raised.value)


def test_what_is_written_is_what_holds() -> None:
    """None by default; an endpoint alone is enough, and a share and a name may stand beside it."""
    assert read(WHOLE).tracing is None
    url = "http://collector:4318/v1/traces"
    assert read(WHOLE + f"tracing: {{endpoint: '{url}'}}").tracing == TracingSettings(url, 1.0, "oncegate")
    whole = read(WHOLE + "tracing: {endpoint: 'https://[::1]/custom', sample: 0.25, service: edge}")
    assert whole.tracing == TracingSettings("https://[::1]/custom", 0.25, "edge")
    assert shown(whole)["tracing"] == {"endpoint": "https://[::1]/custom", "sample": 0.25, "service": "edge"}


@pytest.mark.parametrize("share", ["0", "1", "0.5", ".5", "1.0", "0.000001"])
def test_a_share_is_a_number_from_0_to_1(share: str) -> None:
    settings = read(WHOLE + f"tracing: {{endpoint: 'http://c:1/t', sample: {share}}}")
    assert settings.tracing is not None
    assert settings.tracing.sample == float(share)


@pytest.mark.parametrize(
    ("written", "path", "words"),
    [
        ("{sample: 0.1}", "tracing.endpoint", ["is missing", "http://collector:4318/v1/traces"]),
        ("http://collector:4318/v1/traces", "tracing", ["{endpoint: http://collector:4318/v1/traces}"]),
        ("{endpoint: 'http://collector:4318'}", "tracing.endpoint", ["use http://collector:4318/v1/traces"]),
        ("{endpoint: 'http://collector:4318/'}", "tracing.endpoint", ["use http://collector:4318/v1/traces"]),
        ("{endpoint: 'grpc://collector:4317'}", "tracing.endpoint", ["http or https"]),
        ("{endpoint: 'collector:4318'}", "tracing.endpoint", ["expected a URL"]),
        ("{endpoint: 'http://collector:99999/v1/traces'}", "tracing.endpoint", ["not a port"]),
        ("{endpoint: 'http://u:hunter2@c:1/t'}", "tracing.endpoint", ["OTEL_EXPORTER_OTLP_HEADERS"]),
        ("{endpoint: 'http://c:1/t?key=hunter2'}", "tracing.endpoint", ["without a query"]),
        ("{endpoint: 'http://c:1/t', sample: 2}", "tracing.sample", ["from 0 to 1"]),
        ("{endpoint: 'http://c:1/t', sample: -1}", "tracing.sample", ["from 0 to 1"]),
        ("{endpoint: 'http://c:1/t', sample: 10%}", "tracing.sample", ["use 0.1"]),
        ("{endpoint: 'http://c:1/t', sampel: 1}", "tracing.sampel", ["did you mean `sample`?"]),
    ],
)
def test_anything_else_is_a_fault(written: str, path: str, words: list[str]) -> None:
    """With what to write instead, and never with what may be a password."""
    with fault(path, *words):
        read(WHOLE + f"tracing: {written}")


@pytest.mark.parametrize("policy", ["fingerprint: {headers: [TraceParent]}", "bind: [default, header:tracestate]"])
def test_no_fingerprint_sees_a_trace(policy: str) -> None:
    """A retry comes in another trace: a route that asks it to repeat the first one's would answer 422."""
    with pytest.raises(Faults, match="another with every retry"):
        read(WHOLE.replace("upstream: app}]", f"upstream: app, {policy}}}]"))


def test_another_tracing_needs_a_start() -> None:
    """It is fixed while a gate runs."""
    one, other = read(WHOLE), read(WHOLE + "tracing: {endpoint: 'http://c:1/t'}")
    assert differences(one, other) == ["`tracing` is another: it changes when the gate is started anew"]
    assert differences(other, Plan(WHOLE + "tracing: {endpoint: 'http://c:1/t'}").settings()) == []


#: What asks for each extra, and the library that is then wanted first.
WANTING = {
    "otel": ("tracing: {endpoint: 'http://c:1/t'}", "tracing", "opentelemetry"),
    "jwt": (
        "defaults: {scope: ['jwt:sub'], jwt: {jwks: 'https://id.example/keys', issuer: 'https://id.example/'}}",
        "defaults.jwt", "jwt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("word", ["check", "run"])
@pytest.mark.parametrize("extra", WANTING)
def test_without_the_extra_that_is_told(extra: str, tmp_path: Path, word: str) -> None:
    """`check` and `run` end with 64 and say what to install, with the line; nothing was bound."""
    line, place, library = WANTING[extra]
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('no such module', name='{library}')\n")
    without_the_extra = {"PYTHONPATH": str(tmp_path)}
    file = tmp_path / "gateway.yaml"
    file.write_text(f"{WHOLE}listen: 127.0.0.1:0\n{line}\n")
    words = [str(file)] if word == "check" else ["--config", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", word, *words],
        capture_output=True, text=True, timeout=20, env={**os.environ, **without_the_extra},
    )  # fmt: skip
    assert done.returncode == 64
    assert f"{place}: needs the extra `{extra}`: {library} is not installed" in done.stderr
    assert f"pip install 'oncegate[{extra}]'" in done.stderr
    assert ":5: " in done.stderr
    assert "listening" not in done.stdout

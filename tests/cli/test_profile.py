from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.profile import _duration_s, profile
from edgekit.errors import UsageError
from tests.bundle_samples import write
from tests.conversions import run_main

pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("profile") / "bundle").root)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(profile, arguments, catch_exceptions=False)


def test_the_table_names_place_numbers_and_what_is_not_given(path: str) -> None:
    done = run(
        path, "--runtime", "null", "--threads", "1", "--batch", "1", "--batch", "4096", "--seconds", "0.1"
    )
    assert done.exit_code == 0
    lines = done.output.splitlines()
    header = next(line.split() for line in lines if line.startswith("runtime"))
    rows = [line.split() for line in lines if line.startswith("null  ")]
    assert header[-1] == "verdict"
    assert [row[:4] for row in rows] == [
        ["null", "tflite-fp32", "1", "1"],
        ["null", "tflite-fp32", "1", "4096"],
    ]
    assert {row[-1] for row in rows} <= {"stable", "unstable", "unknown"}
    assert "measured on: " in done.output
    assert "p99.9 not given: needs 10000 samples, got" in done.output
    assert "null was asked for by hand" in done.output


def test_json(path: str) -> None:
    done = run(path, "--runtime", "null", "--threads", "1", "--seconds", "0.1", "--json")
    report = json.loads(done.output)
    assert list(report) == ["schema", "identity", "measurements"]
    assert list(report["identity"]) == [
        "place", "target", "device", "board", "soc", "isa", "cores", "governor", "governors", "power_mode", "kernel", "system",
        "load_average", "python",
        "edgekit", "bundle", "digest",
    ]  # fmt: skip
    (row,) = report["measurements"]
    assert row["latency_ms"]["min"] <= row["latency_ms"]["mean"]
    assert ("p99.9" in row["latency_ms"]["refused"]) is (row["latency_ms"]["n"] < 10_000)


def test_what_else_can_be_measured_is_in_tables_and_json(path: str) -> None:
    words = [
        path, "--runtime", "null", "--threads", "1", "--seconds", "0.1", "--sustain", "1s", "--through-daemon",
    ]  # fmt: skip
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "sustained 1 s" in done.output
    assert "through the daemon  " in done.output
    assert "The daemon's cost: " in done.output
    assert " not read: " in done.output or "hottest zone" in done.output
    (row,) = json.loads(run(*words, "--json").output)["measurements"]
    assert row["sustained"]["runs"] > 0
    assert row["through_daemon"]["through_daemon"]["n"] >= 60
    assert (row["ops"], row["idle_gaps"]) == (None, [])


def test_pauses_are_those_of_the_default_and_more(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr("edgekit.endurance.GAPS_S", (0.0,))
    done = run(
        path, "--runtime", "null", "--threads", "1", "--seconds", "0.1", "--idle-gaps", "--gap", "0.01"
    )
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines() if line.strip().startswith(("0 ", "0.01 "))]
    assert [(row[0], row[1]) for row in rows] == [("0", "30"), ("0.01", "30")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top", "3"], "--top has no meaning here: expected --ops with it"),
        (["--gap", "3"], "--gap has no meaning here: expected --idle-gaps with it"),
        (["--overwrite"], "--overwrite has no meaning here: expected --report with it"),
        (["--sustain", "soon"], "--sustain is no length of time: got 'soon'"),
        (["--sustain", "0.5s"], "1 s to 24 h"),
        (["--sustain", "25h"], "1 s to 24 h"),
        (["--pick", "--ops"], "--ops has no meaning with --pick"),
        (["--unpin", "--through-daemon"], "--through-daemon has no meaning with --unpin"),
        (["--unpin", "--report", "x"], "--unpin measures nothing"),
    ],
)
def test_options_that_would_be_ignored(
    path: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_main(["profile", path, *words], capsys)
    assert said.code == 2
    assert message in said.line


def test_on_a_device_the_same_is_asked_for(path: str) -> None:
    pytest.importorskip("cryptography", reason="needs edgekit-deploy[agent]")
    from edgekit.cli.on_device import _words

    words = ["--ops", "--top", "3", "--idle-gaps", "--gap", "2.0", "--through-daemon", "--sustain", "10m"]
    context = profile.make_context("profile", [path, "--on", "ssh://pi@host", *words])
    assert _words(context) == (tuple(words), ())
    context = profile.make_context("profile", [path, "--on", "ssh://pi@host", "--report", "out"])
    with pytest.raises(UsageError, match="--report has no meaning with --on"):
        _words(context)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("30", 30.0), (" 2m ", 120.0)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert _duration_s(text) == seconds


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "jetson-orin-nano"], 5, "TensorrtExecutionProvider"),
        (["--device", "jetson-orin-nan"], 2, "Did you mean 'jetson-orin-nano'"),
        (["--runtime", "tensorrt"], 2, "unknown runtime 'tensorrt'"),
        (["--threads", "0"], 2, "--threads"),
    ],
)
def test_what_cannot_be_measured(path: str, arguments: list[str], code: int, message: str) -> None:
    command = [sys.executable, "-m", "edgekit", "profile", path, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr


def test_a_missing_bundle(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "profile", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no bundle at" in done.stderr

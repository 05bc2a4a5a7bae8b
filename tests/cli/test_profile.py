from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.profile import profile
from tests.bundle_samples import write

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

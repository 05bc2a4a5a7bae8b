from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from edgekit.bundle import open_bundle, slice_bundle
from edgekit.manifest import GateResult, MetricEvidence, ParityEvidence, Plan
from tests.bundle_samples import artifact, write
from tests.cli.running import Ran, edgekit

pytestmark = pytest.mark.device

Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return partial(edgekit, capsys, monkeypatch, "inspect")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    parity = ParityEvidence(n=64, max_error=1.5e-6, p95_error=1e-7, argmax_agreement=1.0)
    metric = MetricEvidence("top1", 1000, 0.981, 0.9805, 0.05, -0.1, 0.31)
    made = {
        "tflite-fp32": artifact("tflite-fp32", gate=GateResult("accepted", ("fits",), parity, metric)),
        "onnx-fp16": artifact("onnx-fp16", gate=GateResult("unproven", ("too few samples",), parity)),
    }
    plan = Plan("raspberry-pi-4", "tflite-fp32", "litert", ("CPU",), 4, reasons=("no int8 here",))
    return write(tmp_path / "b", artifacts=made, plan=plan, labels=("a", "b", "c")).root


def test_what_a_person_sees(run: Run, root: Path) -> None:
    done = run(root)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "quadrants, version 1, classification"
    assert "inputs      image float32[-1, 4, 4, 1]" in lines
    assert "outputs     probabilities float32[-1, 3]" in lines
    assert "golden set  32 samples, real" in lines
    header, fp16, fp32 = (line.split() for line in lines[lines.index("artifacts") + 1 :][:3])
    assert header[:3] == ["artifact", "size", "precision"]
    assert fp32[0] == "tflite-fp32"
    assert fp32[4:] == ["1.5e-06", "0.9805", "+0.05", "≤", "0.31", "1000", "accepted"]
    assert fp16[-1] == "unproven"
    assert "onnx-fp16: too few samples" in lines
    assert lines[-2:] == [
        "plan for raspberry-pi-4: tflite-fp32 in litert on CPU, 4 threads",
        "  no int8 here",
    ]
    assert "\x1b" not in done.out


def test_json_is_the_manifest_with_what_is_here(run: Run, root: Path) -> None:
    done = run(root, "--json")
    manifest = msgspec.json.decode((root / "manifest.json").read_bytes())
    for each in manifest["artifacts"].values():
        each["bytes"] = sum(manifest["files"][name]["bytes"] for name in each["files"])
        each["kept"] = True
    data = done.data
    assert (data.pop("path"), data.pop("slice"), data.pop("digest")) == (
        str(root),
        False,
        (root / "manifest.sha256").read_text()[:64],
    )
    assert data == manifest


def test_a_slice_says_what_is_not_here(run: Run, root: Path, tmp_path: Path) -> None:
    slice_bundle(open_bundle(root), ["onnx-fp16"], tmp_path / "s")
    assert "KiB, not here" in run(tmp_path / "s").out
    data = run(tmp_path / "s", "--json").data
    assert data["slice"] is True
    assert {name: each["kept"] for name, each in data["artifacts"].items()} == {
        "onnx-fp16": True,
        "tflite-fp32": False,
    }


def test_not_there_and_damaged(run: Run, root: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere").code == 2
    (root / "reference.json").write_bytes(b"{ }")
    done = run(root)
    assert (done.code, done.out) == (6, "")
    assert "reference.json is damaged" in done.err

"""A graph whose answers hang on the order of its sums: an artifact may be as far off as the source is from itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx

from tests.conversions import run_main

pytestmark = pytest.mark.convert


def write(folder: Path, offset: float) -> Path:
    """Write a convolution whose bias the normalisation behind it takes off again; fused, nothing is rounded between."""
    random, node = np.random.default_rng(0), onnx.helper.make_node
    weights = {
        "w": random.standard_normal((8, 3, 1, 1)),
        "bias": np.full(8, offset),
        "scale": np.ones(8),
        "shift": np.zeros(8),
        "mean": np.full(8, offset),
        "var": np.ones(8),
    }
    value = onnx.helper.make_tensor_value_info
    nodes = [
        node("Conv", ["x", "w", "bias"], ["c"]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "offset",
        [value("x", 1, ["n", 3, 4, 4])],
        [value("y", 1, ["n", 8, 4, 4])],
        [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    images = random.standard_normal((40, 3, 4, 4)).astype(np.float32)
    np.savez(folder / "data.npz", x=images)
    return folder / "net.onnx"


def converted(
    folder: Path, offset: float, capsys: pytest.CaptureFixture[str], format_: str = "onnx"
) -> tuple[int, dict[str, Any]]:
    words = [
        "convert",
        write(folder, offset),
        "-t",
        "x86-64",
        "--format",
        format_,
        "--precision",
        "fp32",
    ]
    words += ["--task", "other", "--calibration", folder / "data.npz", "-o", folder / "out"]
    said = run_main(words, capsys)
    (row,) = json.loads((folder / "out.report" / "report.json").read_text())["artifacts"]
    return said.code, row


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_what_only_the_optimiser_moves_is_accepted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    code, row = converted(tmp_path, 1.5e5, capsys, format_)
    assert (code, row["status"]) == (0, "accepted")
    assert 1e-4 < row["parity"]["max_error"] < 5e-3
    assert "the source's own outputs move by" in row["reasons"][-1]


def test_what_moves_further_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, row = converted(tmp_path, 3e6, capsys)
    assert (code, row["status"]) == (4, "refused")
    assert "largest error is" in row["reasons"][0]


def test_a_graph_that_nothing_moves_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, row = converted(tmp_path, 0.0, capsys)
    assert (code, row["status"]) == (0, "accepted")
    assert not any("own outputs" in reason for reason in row["reasons"])

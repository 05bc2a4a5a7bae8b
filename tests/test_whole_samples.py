"""Models without an axis for samples: a state [2, B, k] and a number beside the input, each call one sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx

import edgekit
from edgekit.data import read_data
from edgekit.errors import UsageError
from edgekit.streams import SampleFolder
from edgekit.tensors import TensorSpec, join_samples, one_sample, sample_specs, takes_whole
from tests.conversions import run_main

pytestmark = pytest.mark.convert

INPUT = TensorSpec("input", "float32", (-1, 8))
STATE = TensorSpec("state", "float32", (2, -1, 4))
RATE = TensorSpec("rate", "int64", ())
SPECS = (INPUT, STATE, RATE)


@pytest.mark.parametrize(
    ("shapes", "whole"),
    [
        ([(-1, 8)], False),
        ([(1, 8), (-1, 3)], False),
        ([(4, 8), (4, 3)], True),  # a fixed batch
        ([(4, 8)], True),
        ([(-1, 8), ()], True),
        ([(-1, 8), (2, -1, 4)], True),
        ([(1, 8), (2, 1, 4)], True),
    ],
)
def test_which_models_take_a_sample_whole(shapes: list[tuple[int, ...]], whole: bool) -> None:
    specs = [TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]
    assert takes_whole(specs) == whole
    assert [spec.shape for spec in sample_specs(specs)] == [
        (-1, *shape) if whole else shape for shape in shapes
    ]


def data(n: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "input": random.standard_normal((n, 1, 8)).astype(np.float32),
        "state": random.standard_normal((n, 2, 1, 4)).astype(np.float32),
        "rate": random.integers(1, 3, n),
    }


def test_samples_come_apart_and_together_again() -> None:
    arrays = data(5)
    rows = [one_sample(SPECS, arrays, i) for i in range(5)]
    assert [rows[0][spec.name].shape for spec in SPECS] == [(1, 8), (2, 1, 4), ()]
    again = join_samples(SPECS, rows)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_data_of_whole_samples_is_read_and_streamed(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **data(6))  # type: ignore[arg-type]  # numpy's stub takes the names for options
    held = read_data(tmp_path / "d.npz", SPECS)
    assert held.n == 6
    streamed = read_data(tmp_path / "d.npz", SPECS, scratch=tmp_path / "s")
    np.testing.assert_array_equal(streamed.take(np.array([4, 1]))["state"], data(6)["state"][[4, 1]])
    folder = SampleFolder(tmp_path / "s")
    assert [folder[2][spec.name].shape for spec in SPECS] == [(1, 8), (2, 1, 4), ()]
    wrong = data(6) | {"state": np.zeros((6, 2, 4), np.float32)}
    np.savez(tmp_path / "w.npz", **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"'state' has the wrong shape"):
        read_data(tmp_path / "w.npz", SPECS)


def write_model(path: Path) -> None:
    """Write y = rate * (input W + both rows of the state) and the state that follows."""
    random = np.random.default_rng(1)
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    nodes = [
        node("MatMul", ["input", "w"], ["hidden"]),
        node("ReduceSum", ["state", "axis"], ["memory"], keepdims=0),
        node("Add", ["hidden", "memory"], ["sum"]),
        node("Cast", ["rate"], ["factor"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["sum", "factor"], ["output"]),
        node("Tanh", ["sum"], ["squashed"]),
        node("Unsqueeze", ["squashed", "axis"], ["row"]),
        node("Concat", ["row", "row"], ["stateN"], axis=0),
    ]
    weights = {"w": random.standard_normal((8, 4)).astype(np.float32), "axis": np.array([0], np.int64)}
    graph = onnx.helper.make_graph(
        nodes,
        "recurrent",
        [value("input", 1, ["b", 8]), value("state", 1, [2, "b", 4]), value("rate", 7, [])],
        [value("output", 1, ["b", 4]), value("stateN", 1, [2, "b", 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def test_such_a_model_becomes_a_bundle_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "net.onnx")
    np.savez(tmp_path / "d.npz", **data(40))  # type: ignore[arg-type]
    words = ["convert", tmp_path / "net.onnx", "-t", "x86-64", "-o", tmp_path / "out", "--task", "other"]
    words += ["--precision", "fp32", "--calibration", tmp_path / "d.npz"]
    said = run_main([*words, "--format", "onnx", "--format", "openvino"], capsys)
    assert said.code == 0, said.err
    for runtime in ("onnxruntime", "openvino"):
        proved = run_main(["verify", tmp_path / "out", "--runtime", runtime], capsys)
        assert proved.code == 0, proved.err
        assert "golden set: passed, 32 samples" in proved.out
    model = edgekit.load(tmp_path / "out", runtime="onnxruntime", monitor=False)
    feed = one_sample(SPECS, data(1), 0)
    answer = model.session.run(feed)
    assert {name: array.shape for name, array in answer.items()} == {"output": (1, 4), "stateN": (2, 1, 4)}
    model.close()
    measured = run_main(["profile", tmp_path / "out", "--seconds", "0.1", "--threads", "1"], capsys)
    assert measured.code == 0, measured.err
    batched = run_main(["profile", tmp_path / "out", "--batch", "2"], capsys)
    assert "takes one sample in a call" in batched.line

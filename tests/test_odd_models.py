"""Models that are not float tensors with a free batch: text, empty tensors, other types, no input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper

import edgekit
from tests.conversions import run_main

pytestmark = pytest.mark.convert


def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: np.ndarray) -> None:
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def convert(folder: Path, capsys: pytest.CaptureFixture[str], *more: str, **data: np.ndarray) -> Any:
    words = ["convert", folder / "m.onnx", "-t", "x86-64", "-o", folder / "out", "--task", "other"]
    words += ["--format", "onnx", "--precision", "fp32", *more]
    if data:
        np.savez(folder / "d.npz", **data)  # type: ignore[arg-type]  # numpy's stub takes the names for options
        words += ["--calibration", folder / "d.npz"]
    return run_main(words, capsys)


def coder(*, wrong: bool = False) -> Any:
    said = ["zero", "one", "other"]
    return helper.make_node(
        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_strings=["a", "b", "ü"],
        values_strings=said[::-1] if wrong else said, default_string="none",
    )  # fmt: skip


def test_text_goes_in_and_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = helper.make_tensor_value_info
    shapes = [value("x", TensorProto.STRING, ["n", 2])], [value("y", TensorProto.STRING, ["n", 2])]
    write(tmp_path / "m.onnx", [coder()], *shapes)
    words = np.array([["a", "b"], ["ü", "?"]] * 20)
    done = convert(tmp_path, capsys, x=words)
    assert done.code == 0, done.err
    proved = run_main(["verify", tmp_path / "out"], capsys)
    assert "golden set: passed" in proved.out, proved.err
    model = edgekit.load(tmp_path / "out", monitor=False)
    answer = model.session.run({"x": words[:2].astype(object)})["y"]
    assert answer.tolist() == [["zero", "one"], ["other", "none"]]
    model.close()


def test_text_that_is_another_fails_the_golden_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.gate import Policy, judge, load_limits, measure_parity
    from edgekit.golden import compare_outputs

    right = {"y": np.array([["zero"], ["one"]] * 20, dtype=object)}
    wrong = {"y": right["y"].copy()}
    wrong["y"][3] = "zero"
    assert compare_outputs(right, right, "other") == (0.0, None)
    assert compare_outputs(right, wrong, "other") == (1.0, None)
    seen = measure_parity(right, wrong, argmax=False, pairs={"y": right["y"][:2]})
    assert (seen.max_error, seen.batch2_error) == (1.0, 0.0)
    assert judge("fp32", Policy(), load_limits(), parity=seen).verdict == "refused"


def test_an_input_without_elements_is_data_where_the_model_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = helper.make_tensor_value_info
    write(
        tmp_path / "m.onnx", [helper.make_node("CastLike", ["x", "like"], ["y"])],
        [value("x", TensorProto.FLOAT, [3, 4]), value("like", TensorProto.FLOAT16, [0])],
        [value("y", TensorProto.FLOAT16, [3, 4])],
    )  # fmt: skip
    x = np.random.default_rng(0).random((40, 3, 4)).astype(np.float32)
    done = convert(tmp_path, capsys, x=x, like=np.zeros((40, 0), np.float16))
    assert done.code == 0, done.err
    none = convert(tmp_path, capsys, "--overwrite", x=x[:0], like=np.zeros((0, 0), np.float16))
    assert none.code == 2
    assert "is empty" in none.line


@pytest.mark.parametrize(
    ("node", "inputs", "output", "said"),
    [
        (
            helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
            [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n", 2])],
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
            "the model's input 'x' is of a type that no data can be given or judged in: got bfloat16",
        ),
        (
            helper.make_node("SequenceConstruct", ["x"], ["y"]),
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
            helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None),
            "the model's output 'y' is of a type that no data can be given or judged in: got seq(tensor(float))",
        ),
        (
            helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0]),
            [],
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]),
            "the model has no input",
        ),
    ],
)
def test_what_no_data_can_be_given_to_is_refused(
    node: Any, inputs: list[Any], output: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "m.onnx", [node], inputs, [output])
    done = convert(tmp_path, capsys)
    assert done.code == 3
    assert said in done.line
    assert not (tmp_path / "out").exists()


def test_an_output_whose_rows_are_not_the_samples_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As behind a suppression of boxes: how many there are depends on the data."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("NonZero", ["x"], ["found"]), helper.make_node("Transpose", ["found"], ["y"])]
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 3])], [value("y", TensorProto.INT64, ["found", 2])]
    write(tmp_path / "m.onnx", nodes, inputs, outputs)
    done = convert(tmp_path, capsys, x=np.tile(np.array([[1.0, 0.0, 2.0]], np.float32), (40, 1)))
    assert done.code == 3
    assert "output 'y' has not one row for each sample: got [64, 2] of 32 samples" in done.line
    assert "[[postprocess]]" in done.line


def test_an_output_without_the_samples_axis_has_it_put_in_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Squeeze", ["x", "axis"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    inputs, outputs = [value("x", TensorProto.FLOAT, [1, 3])], [value("y", TensorProto.FLOAT, [3])]
    write(tmp_path / "m.onnx", nodes, inputs, outputs, axis=np.array([0]))
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    done = convert(tmp_path, capsys, "--format", "openvino", x=x)
    assert done.code == 0, done.err
    for runtime in ("onnxruntime", "openvino"):
        proved = run_main(["verify", tmp_path / "out", "--runtime", runtime], capsys)
        assert "golden set: passed, 32 samples" in proved.out, proved.err

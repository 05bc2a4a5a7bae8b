"""What the evidence cannot carry is refused or said: class names that do not fit, labels of another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.convert import ConvertOutcome, ConvertRequest, convert
from edgekit.errors import UsageError
from edgekit.samples import synthetic_inputs
from edgekit.tensors import TensorSpec

pytestmark = pytest.mark.convert

CLASSES, FEATURES, SAMPLES = 3, 4, 120
WEIGHTS = np.random.default_rng(0).standard_normal((FEATURES, CLASSES)).astype(np.float32)
INPUTS = np.random.default_rng(1).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
RIGHT = (INPUTS @ WEIGHTS).argmax(axis=1)


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model with three scores."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def converted(model: Path, out: Path, truth: np.ndarray | None, **changes: Any) -> ConvertOutcome:
    """Convert to float32 with these labels."""
    data = None
    if truth is not None:
        data = out.with_name("data.npz")
        np.savez(data, x=INPUTS, y=truth)
    return convert(
        ConvertRequest(model, "jetson", out, precisions=("fp32",), evaluation=data, jobs=1, **changes)
    )


def test_text_labels_of_fewer_classes_than_the_model_has_are_refused(model: Path, tmp_path: Path) -> None:
    labels = np.array(["cat", "zebra"])[RIGHT % 2]
    with pytest.raises(
        UsageError, match=r"got 2 \(cat, zebra\), expected 3, one for each score\. .*--labels"
    ):
        converted(model, tmp_path / "out", labels, task="classification")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d")])
def test_class_names_of_another_number_are_refused(
    model: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match="the class names do not fit the model"):
        converted(model, tmp_path / "out", RIGHT, labels=names)


def test_the_order_of_text_labels_is_said_where_nobody_gave_it(model: Path, tmp_path: Path) -> None:
    text = np.array(["ant", "bee", "cow"])[RIGHT]
    guessed = converted(model, tmp_path / "guessed", text, task="classification")
    assert "classes in alphabetical order: ant, bee, cow (--labels says otherwise)" in guessed.notes
    given = converted(model, tmp_path / "given", text, task="classification", labels=("ant", "bee", "cow"))
    assert not any("alphabetical" in note for note in given.notes)
    assert given.bundle.manifest.labels == guessed.bundle.manifest.labels == ("ant", "bee", "cow")


def test_labels_that_the_source_does_not_meet_are_doubted(model: Path, tmp_path: Path) -> None:
    shifted = converted(model, tmp_path / "shifted", (RIGHT + 1) % CLASSES)
    assert (
        "the source itself has top1 0, no better than guessing one of 3 classes: do the labels fit the model?"
        in shifted.notes
    )
    right = converted(model, tmp_path / "right", RIGHT)
    assert not any("guessing" in note for note in right.notes)


def test_parity_on_answers_that_never_vary_is_doubted(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "nothing"], ["y"])],
        "still",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", FEATURES])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "nothing")],
    )
    path = tmp_path / "still.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    outcome = converted(path, tmp_path / "out", None)
    assert "the source gives the same answer to all 64 parity inputs: parity shows little" in outcome.notes


@pytest.mark.parametrize("name", ["", "a/b", "../up", "..", "two\nlines", "\x1b[31m", "x" * 201])
def test_a_name_that_no_address_and_no_report_can_hold_is_refused(
    model: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="the bundle's name cannot be used"):
        converted(model, tmp_path / "out", None, name=name)


@pytest.mark.parametrize("name", ["<b>modèle 7", "x" * 200])
def test_any_other_name_is_the_bundles(model: Path, tmp_path: Path, name: str) -> None:
    assert converted(model, tmp_path / "out", None, name=name).bundle.manifest.name == name


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127), ("int32", 0, 1)])
def test_made_up_whole_numbers_span_what_the_input_may_be(dtype: str, low: int, high: int) -> None:
    made = synthetic_inputs([TensorSpec("x", dtype, (-1, 500))], 64, seed=0)["x"]
    assert made.dtype == dtype
    assert (made.min(), made.max()) == (low, high)


def test_a_file_where_the_report_goes_is_told_before_the_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.report").write_text("mine")
    with pytest.raises(UsageError, match=r"out\.report is in the way"):
        converted(model, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.report").read_text() == "mine"


def test_a_label_column_without_data_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--label-column names a column of no data"):
        converted(model, tmp_path / "out", None, label_column="y")
    assert not (tmp_path / "out").exists()

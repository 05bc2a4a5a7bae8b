"""A host that computes float16 in float32 hides an overflow: what the target would do is what counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.convert import ConvertOutcome, ConvertRequest, convert
from edgekit.errors import RefusedError

pytestmark = pytest.mark.convert


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x · 300, then · 1/300: right in float32, and in float16 as long as x stays below 218."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "up"], ["big"]),
            helper.make_node("MatMul", ["big", "down"], ["y"]),
        ],
        "up-and-down",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(np.eye(4, dtype=np.float32) * 300, "up"),
            numpy_helper.from_array(np.eye(4, dtype=np.float32) / 300, "down"),
        ],
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def converted(
    model: Path, tmp_path: Path, target: str, most: float, precision: str, formats: tuple[str, ...] = ()
) -> ConvertOutcome:
    data = tmp_path / "data.npz"
    x = np.random.default_rng(0).uniform(0, most, (64, 4)).astype(np.float32)
    x[0, 0] = most
    np.savez(data, x=x, y=x)
    request = ConvertRequest(
        model,
        target,
        tmp_path / "out",
        precisions=(precision,),
        formats=formats,
        evaluation=data,
        task="regression",
        jobs=1,
    )
    return convert(request)


@pytest.mark.parametrize(
    ("target", "precision"), [("jetson", "fp16"), ("intel-npu", "fp16"), ("intel-npu", "fp32")]
)
def test_an_overflow_on_the_target_is_refused(
    model: Path, tmp_path: Path, target: str, precision: str
) -> None:
    with pytest.raises(RefusedError, match=r"reaches 7\.65e\+04, and float16 ends at 65504"):
        converted(model, tmp_path, target, 255.0, precision)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "precision", "peak"), [("jetson", "fp16", 60000.0), ("jetson", "fp32", None)]
)
def test_what_fits_is_accepted_with_its_peak(
    model: Path, tmp_path: Path, target: str, precision: str, peak: float | None
) -> None:
    (row,) = converted(model, tmp_path, target, 200.0, precision).rows
    assert row.status == "accepted"
    assert row.gate is not None
    assert row.gate.parity is not None
    assert row.gate.parity.float_peak == peak


@pytest.mark.parametrize("target", ["x86-64", "raspberry-pi-4"])
def test_a_cpu_that_casts_to_float32_does_not_overflow(model: Path, tmp_path: Path, target: str) -> None:
    data = converted(model, tmp_path, target, 255.0, "fp16", ("onnx",))
    (row,) = data.rows
    assert row.status == "accepted"
    assert row.gate is not None
    assert row.gate.parity is not None
    assert row.gate.parity.float_peak is None


def test_on_a_core_with_half_precision_arithmetic_it_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="float16 ends at 65504"):
        converted(model, tmp_path, "raspberry-pi-5", 255.0, "fp16", ("onnx",))


def test_without_data_half_precision_is_unproven_and_not_planned(model: Path, tmp_path: Path) -> None:
    outcome = convert(ConvertRequest(model, "jetson", tmp_path / "out", jobs=1))
    assert {row.name: row.status for row in outcome.rows} == {
        "onnx-fp32": "accepted",
        "onnx-fp16": "unproven",
        "onnx-int8": "skipped",
    }
    assert outcome.plan.artifact == "onnx-fp32"

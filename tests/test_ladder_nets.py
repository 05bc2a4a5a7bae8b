"""The ladder's networks: right in float, four of them lost in plain int8, none in EdgeKit's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("nncf")
import onnx
import onnxruntime as ort
import openvino as ov

from edgekit.converters.base import SourceModel
from edgekit.converters.onnx_openvino import OnnxToOpenVino
from edgekit.converters.openvino_int8 import OpenVinoToInt8
from edgekit.manifest import Recipe
from edgekit.tensors import TensorSpec
from tests.converters.nets import int8, make, stored
from tests.ladder_nets import LEAST, LEAST_ACCURACY, NETS, LadderNet, ladder_net

pytestmark = [
    pytest.mark.convert,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # NNCF's own imports
]

#: Those that plain int8 loses.
LOST = ("depthwise", "outlier", "scales", "wide-skip")
#: Trained in seconds.
QUICK = ("scales", "wide-skip")


def some(names: tuple[str, ...]) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in names]


def data(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def float_accuracy(net: LadderNet) -> float:
    evaluation = data(net.evaluation)
    session = ort.InferenceSession(str(net.model), providers=["CPUExecutionProvider"])
    answers = session.run(["scores"], {"x": evaluation["x"]})[0]
    return float((answers.argmax(1) == evaluation["y"]).mean())


def accuracy(path: Path, net: LadderNet) -> float:
    compiled = ov.Core().compile_model(str(path), "CPU")
    evaluation = data(net.evaluation)
    answers = [compiled(x[None])[0].argmax() for x in evaluation["x"]]
    return float((np.array(answers) == evaluation["y"]).mean())


def drop_by_hand(net: LadderNet, folder: Path) -> float:
    """Return what NNCF at its defaults loses, in percentage points."""
    import nncf

    calibration = data(net.calibration)["x"]
    samples = nncf.Dataset([{"x": x[None]} for x in calibration])
    model = nncf.quantize(ov.convert_model(str(net.model)), samples, subset_size=len(calibration))
    ov.save_model(model, str(folder / "hand.xml"))
    return 100.0 * (float_accuracy(net) - accuracy(folder / "hand.xml", net))


def drop_by_converter(net: LadderNet, folder: Path) -> float:
    """Return what the first rung loses, with the 7-bit weights of a CPU that may lack VNNI."""
    shape = data(net.calibration)["x"].shape[1:]
    specs = (TensorSpec("x", "float32", (-1, *shape)),), (TensorSpec("scores", "float32", (-1, -1)),)
    exact = make(
        OnnxToOpenVino(),
        SourceModel("onnx", net.model, *specs),
        folder / "f",
        Recipe(("x",), "fp32", options={"static": False}),
    )
    made = make(
        OpenVinoToInt8(),
        SourceModel("openvino", Path(exact.path), *specs),
        folder / "i",
        int8(reduce_range=True),
        stored(folder / "calibration", {"x": data(net.calibration)["x"]}),
    )
    return 100.0 * (float_accuracy(net) - accuracy(Path(made.path), net))


@pytest.mark.parametrize("name", some(tuple(NETS)))
def test_a_net_is_right_in_float_and_its_batch_is_free(name: str) -> None:
    net = ladder_net(name)
    assert float_accuracy(net) >= LEAST.get(name, LEAST_ACCURACY)
    model = onnx.load(str(net.model))
    assert model.opset_import[0].version == 17
    assert [value.name for value in model.graph.input] == ["x"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert len(data(net.calibration)["x"]) == 200
    assert {key: len(values) for key, values in data(net.evaluation).items()} == {"x": 1000, "y": 1000}


@pytest.mark.parametrize("name", some(LOST))
def test_plain_int8_loses_a_net_that_the_converter_keeps(name: str, tmp_path: Path) -> None:
    net = ladder_net(name)
    assert drop_by_hand(net, tmp_path) > 20.0
    assert drop_by_converter(net, tmp_path) <= 1.0


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in NETS if name not in LOST])
def test_the_others_are_kept_by_both(name: str, tmp_path: Path) -> None:
    net = ladder_net(name)
    assert drop_by_hand(net, tmp_path) <= 1.5
    assert drop_by_converter(net, tmp_path) <= 1.5

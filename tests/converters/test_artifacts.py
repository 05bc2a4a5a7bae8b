"""What each converter leaves in a bundle: operators, types, shapes, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.converters import CONVERTERS, Converted
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.process import Worker, WorkerLimits
from edgekit.streams import store_samples
from edgekit.tasks import Convert
from edgekit.tensors import TensorSpec
from tests.conversions import converted_twice, reference_onnx

onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.convert

SPECS = (TensorSpec("image", "float32", (-1, 28, 28, 1)),), (TensorSpec("output_0", "float32", (-1, 10)),)


def path_of(bundle: Bundle, name: str) -> Path:
    return bundle.root / bundle.manifest.artifacts[name].path


def graph(target: str, name: str) -> Any:
    return onnx.load(str(path_of(converted_twice(target)[0], name)))


def weights(model: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def interface(model: Any) -> list[tuple[str, int]]:
    return [(v.name, v.type.tensor_type.elem_type) for v in (*model.graph.input, *model.graph.output)]


FLOATS = [("image", 1), ("output_0", 1)]


def test_every_onnx_is_written_for_the_oldest_reader_and_takes_floats() -> None:
    for target, name in (
        ("raspberry-pi-4", "onnx-fp32"),
        ("raspberry-pi-4", "onnx-int8"),
        ("jetson", "onnx-fp16"),
        ("jetson", "onnx-int8"),
    ):
        model = graph(target, name)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 8
        assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 17)]
        assert interface(model) == FLOATS
        assert model.producer_name == "edgekit"


def test_fp16_keeps_half_weights_and_casts_at_the_edges() -> None:
    model = graph("jetson", "onnx-fp16")
    layers = [w for w in weights(model).values() if w.size > 10 and w.dtype.kind == "f"]
    assert {w.dtype for w in layers} == {np.dtype(np.float16)}
    assert model.graph.node[0].op_type == "Cast"
    assert model.graph.node[-1].op_type == "Cast"


def quantized(target: str) -> tuple[dict[str, np.ndarray], list[Any]]:
    model = graph(target, "onnx-int8")
    return weights(model), list(model.graph.node)


def activation_points(target: str) -> list[np.ndarray]:
    arrays, nodes = quantized(target)
    return [arrays[node.input[2]] for node in nodes if node.op_type == "QuantizeLinear"]


def test_tensorrt_gets_signed_zero_points_of_zero_and_float_biases() -> None:
    points = activation_points("jetson")
    assert len(points) >= 6
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    arrays, nodes = quantized("jetson")
    biases = [node.input[2] for node in nodes if node.op_type in ("Conv", "Gemm")]
    assert len(biases) == 5
    assert all(arrays[name].dtype == np.float32 for name in biases)


def test_arm_gets_signed_activations_with_their_own_zero_points() -> None:
    points = activation_points("raspberry-pi-4")
    assert {point.dtype for point in points} == {np.dtype(np.int8)}
    assert any(point.any() for point in points)


@pytest.mark.parametrize("target", ["jetson", "raspberry-pi-4"])
def test_weights_are_signed_per_channel_and_symmetric(target: str) -> None:
    arrays, nodes = quantized(target)
    dequantized = {n.output[0]: n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] in arrays}
    layers = [dequantized[n.input[1]] for n in nodes if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == 5
    for node in layers:
        values, scale, point = (arrays[name] for name in node.input)
        assert values.dtype == np.int8
        assert (
            scale.size
            == {(32, 1, 3, 3): 32, (64, 32, 3, 3): 64, (128, 64, 3, 3): 128, (1152, 128): 128, (128, 10): 10}[
                values.shape
            ]
        )
        assert not point.any()
        assert values.min() >= -127 or target == "jetson"
        assert np.abs(values.astype(int)).max() >= 126


def test_tflite_has_builtin_operators_and_float_edges_only() -> None:
    from ai_edge_litert.interpreter import Interpreter

    bundle, _ = converted_twice("raspberry-pi-4")
    for name in ("tflite-fp32", "tflite-int8", "tflite-int8-dynamic"):
        interpreter = Interpreter(model_path=str(path_of(bundle, name)))
        interpreter.allocate_tensors()
        for details in (*interpreter.get_input_details(), *interpreter.get_output_details()):
            assert details["dtype"] == np.float32
        kinds = {op["op_name"] for op in interpreter._get_ops_details()}
        assert not {kind for kind in kinds if "Flex" in kind or "CUSTOM" in kind}
        types = Counter(d["dtype"] for d in interpreter.get_tensor_details())
        assert (types[np.int8] >= 10) == (name == "tflite-int8")


def test_the_npu_gets_fixed_shapes_and_the_manifest_says_so() -> None:
    import openvino as ov

    bundle, _ = converted_twice("intel-npu")
    for name in ("openvino-fp32", "openvino-fp16", "openvino-int8"):
        model = ov.Core().read_model(str(path_of(bundle, name)))
        assert list(model.input("image").shape) == [1, 28, 28, 1]
        assert not model.is_dynamic()
        assert bundle.manifest.artifacts[name].inputs[0].shape == (1, 28, 28, 1)
        assert {port.get_any_name() for port in model.outputs} == {"output_0"}
    assert bundle.manifest.inputs[0].shape == (-1, 28, 28, 1)
    kinds = Counter(
        op.get_type_name() for op in ov.Core().read_model(str(path_of(bundle, "openvino-int8"))).get_ops()
    )
    assert kinds["FakeQuantize"] >= 5


def test_openvino_names_nothing_of_the_machine_that_made_it() -> None:
    bundle, _ = converted_twice("intel-npu")
    for name in ("openvino-fp32", "openvino-int8"):
        text = path_of(bundle, name).read_text()
        assert str(Path.home()) not in text
        assert "/tmp" not in text
        assert "edgekit-" not in text


# One converter at a time, in a worker


@pytest.fixture(scope="module", name="worker")
def _worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), WorkerLimits())
    yield worker
    worker.close()


def convert(
    worker: Worker, name: str, source: Path, out: Path, recipe: Recipe, calibration: Path | None = None
) -> Converted:
    out.mkdir()
    task = Convert(
        CONVERTERS[name], "onnx", str(source), *SPECS, (recipe,), str(calibration) if calibration else None, str(out)
    )  # fmt: skip
    (part,) = [answer.part for answer in worker.ask(task) if answer.part is not None]
    return part


@pytest.fixture(scope="module", name="images")
def _images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).random((20, 28, 28, 1)).astype(np.float32)
    return store_samples(tmp_path_factory.mktemp("images") / "c", {"image": images})


def int8(**options: str | bool) -> Recipe:
    usual: dict[str, Any] = {
        "activation": "uint8",
        "symmetric_activations": False,
        "reduce_range": False,
        "per_channel": True,
    }
    return Recipe(route=("onnx-int8",), precision="int8", options={**usual, **options})


def test_x86_without_vnni_gets_seven_bit_weights(worker: Worker, images: Path, tmp_path: Path) -> None:
    for reduce_range, most in ((True, 64), (False, 127)):
        made = convert(
            worker,
            "onnx-int8",
            reference_onnx(),
            tmp_path / f"{most}",
            int8(reduce_range=reduce_range),
            images,
        )
        arrays = weights(onnx.load(made.path))
        layers = [w for w in arrays.values() if w.dtype == np.int8 and w.size > 200]
        assert max(int(np.abs(w.astype(int)).max()) for w in layers) == most
        assert {a.dtype for a in arrays.values() if a.ndim == 0 and a.dtype.kind in "iu"} == {
            np.dtype(np.uint8)
        }


@pytest.mark.parametrize("name", ["onnx-int8", "openvino-int8"])
def test_static_int8_asks_for_calibration(worker: Worker, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConversionError, match=f"{name} needs calibration data. Give --calibration"):
        convert(worker, name, reference_onnx(), tmp_path / "o", int8())


def test_a_newer_opset_than_the_target_reads_is_lowered(worker: Worker, tmp_path: Path) -> None:
    recipe = Recipe(route=("onnx-fp32",), precision="fp32", options={"opset": 13, "ir": 7})
    made = onnx.load(convert(worker, "onnx-fp32", reference_onnx(), tmp_path / "o", recipe).path)
    assert (made.ir_version, made.opset_import[0].version) == (7, 13)
    onnx.checker.check_model(made, full_check=True)


def test_free_sizes_beyond_the_batch_stop_a_target_of_fixed_shapes(worker: Worker, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    takes, gives = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "length"]) for n in ("x", "y"))
    proto = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [takes], [gives])
    onnx.save(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(tmp_path / "m.onnx"),
    )
    takes_any, gives_any = (TensorSpec(name, "float32", (-1, -1)) for name in ("x", "y"))
    (tmp_path / "o").mkdir()
    task = Convert(
        CONVERTERS["onnx-openvino"],
        "onnx",
        str(tmp_path / "m.onnx"),
        (takes_any,),
        (gives_any,),
        (Recipe(route=("onnx-openvino",), precision="fp32", options={"static": True}),),
        None,
        str(tmp_path / "o"),
    )
    with pytest.raises(ConversionError, match="input 'x' has free sizes beyond the batch"):
        list(worker.ask(task))

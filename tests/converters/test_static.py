"""Fixed shapes for targets that take no others: what is written, by every route to ONNX, and what the plan makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx

from edgekit.bundle import open_bundle
from edgekit.choose import InstalledRuntime, choose
from edgekit.converters.base import SourceModel, frozen
from edgekit.converters.onnx_dynamic import OnnxToDynamic
from edgekit.converters.onnx_fp32 import OnnxToOnnx
from edgekit.converters.onnx_int8 import OnnxToInt8
from edgekit.converters.onnx_static import freeze
from edgekit.devices import load_profile
from edgekit.errors import ConversionError, UsageError
from edgekit.manifest import Recipe
from edgekit.runtimes import ModelFiles, SessionOptions, get_runtime
from edgekit.sources.base import SourceOptions
from edgekit.tensors import TensorSpec
from tests.conversions import data_options, reference_onnx, run_main
from tests.converters.nets import convolutions, graph, images, int8, make, node, run, source_of, stored
from tests.corpus import reference_cnn

pytestmark = pytest.mark.convert

STATIC = Recipe(("x",), "fp32", options={"opset": 17, "ir": 8, "static": True})
FREE = Recipe(("x",), "fp32", options={"opset": 17, "ir": 8})


def shapes(path: str) -> list[list[Any]]:
    values = onnx.load(path).graph
    return [
        [d.dim_value if d.HasField("dim_value") else d.dim_param or -1 for d in v.type.tensor_type.shape.dim]
        for v in (*values.input, *values.output)
    ]


def own(model: Any, folder: Path) -> SourceModel:
    """Return a user's ONNX file as the first converter gets it."""
    source = source_of(model, folder)
    return SourceModel("onnx-source", source.path, source.inputs, source.outputs, SourceOptions())


def flattening() -> Any:
    """Return a net that computes a shape from the batch, as exporters write `reshape(x, [len(x), -1])`."""
    weights = {"zero": np.array(0, np.int64), "rest": np.array([-1], np.int64)}
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n"),
        node("Unsqueeze", "n axes", "n1"),
        node("Concat", "n1 rest", "wanted", axis=0),
        node("Reshape", "x wanted", "y"),
    ]
    weights["axes"] = np.array([0], np.int64)
    return graph(nodes, {"x": ["n", 3, 4]}, {"y": ["m", "k"]}, weights)


def test_the_batch_and_what_follows_from_it_are_fixed(tmp_path: Path) -> None:
    source = own(flattening(), tmp_path)
    free = make(OnnxToOnnx(), source, tmp_path / "free", FREE)
    made = make(OnnxToOnnx(), source, tmp_path / "static", STATIC)
    assert shapes(free.path) == [["n", 3, 4], ["m", "k"]]
    assert shapes(made.path) == [[1, 3, 4], [1, 12]]
    assert free.inputs[0].shape == (-1, 3, 4)
    assert made.inputs[0].shape == (1, 3, 4)
    onnx.checker.check_model(made.path, full_check=True)
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_array_equal(run(made.path, {"x": x})[0], x.reshape(1, 12))


def test_what_depends_on_values_stays_free_under_its_own_name() -> None:
    net = graph(
        [node("NonZero", "x", "z"), node("Cast", "z", "y", to=1)], {"x": ["n", 4]}, {"y": [2, "found"]}, {}
    )
    freeze(net, (TensorSpec("x", "float32", (1, 4)),))
    dims = net.graph.output[0].type.tensor_type.shape.dim
    assert (dims[0].dim_value, dims[1].dim_param) == (2, "found")


def test_every_precision_made_of_it_is_fixed_too(tmp_path: Path) -> None:
    from edgekit.converters.onnx_fp16 import OnnxToFp16

    made = make(OnnxToOnnx(), own(convolutions(), tmp_path), tmp_path / "fp32", STATIC)
    source = SourceModel("onnx", Path(made.path), made.inputs, made.outputs)
    samples = stored(tmp_path / "calibration", images(8))
    others = [
        make(OnnxToFp16(), source, tmp_path / "fp16"),
        make(OnnxToInt8(), source, tmp_path / "int8", int8(), samples),
        make(OnnxToDynamic(), source, tmp_path / "dynamic"),
    ]
    for each in (made, *others):
        assert each.inputs[0].shape == (1, 3, 16, 16)
        assert shapes(each.path) == [[1, 3, 16, 16], [1, 10]]


def test_another_batch_is_refused_before_the_native_call(tmp_path: Path) -> None:
    made = make(OnnxToOnnx(), own(convolutions(), tmp_path), tmp_path / "o", STATIC)
    session = get_runtime("onnxruntime").load(
        ModelFiles(Path(made.path), made.inputs, made.outputs), SessionOptions()
    )
    assert session.run(images(1))["y"].shape == (1, 10)
    with pytest.raises(UsageError, match="wrong shape"):
        session.run(images(2))


def test_weights_outside_the_file_are_kept(tmp_path: Path) -> None:
    net = graph(
        [node("MatMul", "x w", "y")], {"x": ["n", 8]}, {"y": ["n", 8]}, {"w": np.eye(8, dtype=np.float32)}
    )
    onnx.save(net, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w", size_threshold=0)
    spec = (TensorSpec("x", "float32", (-1, 8)),)
    source = SourceModel("onnx-source", tmp_path / "m.onnx", spec, (TensorSpec("y", "float32", (-1, 8)),))
    made = make(OnnxToOnnx(), source, tmp_path / "o", STATIC)
    assert shapes(made.path) == [[1, 8], [1, 8]]
    x = np.arange(8, dtype=np.float32)[None]
    np.testing.assert_array_equal(run(made.path, {"x": x})[0], x)


def test_free_sizes_beyond_the_batch_are_refused_by_name(tmp_path: Path) -> None:
    net = graph([node("Relu", "x", "y")], {"x": ["n", 3, "h", "w"]}, {"y": ["n", 3, "h", "w"]}, {})
    source = own(net, tmp_path)
    with pytest.raises(ConversionError, match="input 'x' has free sizes beyond the batch") as caught:
        make(OnnxToOnnx(), source, tmp_path / "o", STATIC)
    assert "--input-shape" in str(caught.value.hint)
    fixed = (TensorSpec("x", "float32", (-1, 3, 8, 8)),)
    options = SourceOptions(input_shapes={"x": (-1, 3, 8, 8)})
    given = SourceModel("onnx-source", source.path, fixed, source.outputs, options)
    assert shapes(make(OnnxToOnnx(), given, tmp_path / "p", STATIC).path) == [[1, 3, 8, 8]] * 2


def test_a_forest_is_fixed_too(tmp_path: Path) -> None:
    skops_io = pytest.importorskip("skops.io")
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    from edgekit.converters.sklearn_onnx import SklearnToOnnx

    x, y = load_iris(return_X_y=True)
    skops_io.dump(RandomForestClassifier(5, random_state=0).fit(x, y), tmp_path / "model.skops")
    specs = (TensorSpec("input", "float32", (-1, 4)),), (TensorSpec("label", "int64", (-1,)),)
    made = make(
        SklearnToOnnx(), SourceModel("sklearn", tmp_path / "model.skops", *specs), tmp_path / "o", STATIC
    )
    assert made.inputs[0].shape == (1, 4)
    assert shapes(made.path) == [[1, 4], [-1], [-1, 3]]  # ONNX infers no shapes behind trees


def test_a_torch_export_is_fixed_too(tmp_path: Path) -> None:
    from edgekit.converters.torch_onnx import finish

    net = convolutions()
    onnx.save(net, str(tmp_path / "exported.onnx"))  # what both exporters of torch end in
    source = source_of(net, tmp_path)
    (tmp_path / "o").mkdir()
    assert shapes(str(finish(tmp_path / "exported.onnx", source, STATIC, tmp_path / "o"))) == [
        [1, 3, 16, 16],
        [1, 10],
    ]


def test_what_is_fixed_already_stays() -> None:
    specs = (TensorSpec("x", "float32", (4, 3)), TensorSpec("k", "int64", ()))
    assert frozen(specs) == specs


def test_kria_plans_its_fpga_and_takes_fixed_shapes_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference_cnn()
    words = ("convert", reference_onnx(), "--target", "kria", "-o", tmp_path / "b", *data_options())
    said = run_main(words, capsys)
    assert said.code == 0, said.err
    assert "plan: onnx-int8 in onnxruntime on VitisAIExecutionProvider → CPUExecutionProvider" in said.out
    assert "kria takes fixed shapes only: a batch of 1 in onnx-fp32, onnx-int8" in said.out
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.inputs[0].shape == (-1, 28, 28, 1)
    for artifact in manifest.artifacts.values():
        assert artifact.gate.verdict == "accepted"
        assert artifact.inputs[0].shape == (1, 28, 28, 1)
        assert shapes(str(tmp_path / "b" / artifact.path))[0] == [1, 28, 28, 1]
    kria = load_profile("kria")
    providers = ("VitisAIExecutionProvider", "CPUExecutionProvider")
    there = {"onnxruntime": InstalledRuntime("onnxruntime 1.16.0", providers)}
    assert choose(kria, manifest, there, forced=True).providers == providers
    without = {"onnxruntime": InstalledRuntime("onnxruntime 1.31.1", ("CPUExecutionProvider",))}
    plan = choose(kria, manifest, without)
    assert plan.providers == ("CPUExecutionProvider",)
    assert "onnxruntime has no VitisAIExecutionProvider here: stepping down" in plan.reasons

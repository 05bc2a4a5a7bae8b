"""ONNX files as sources: where weights lie, what is quantized already, sizes that the user fixes, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx

from edgekit.converters.base import SourceModel
from edgekit.converters.onnx_dynamic import OnnxToDynamic
from edgekit.converters.onnx_fp32 import OnnxToOnnx
from edgekit.converters.onnx_int8 import OnnxToInt8
from edgekit.errors import ConversionError, InvalidFileError, UsageError
from edgekit.manifest import Recipe
from edgekit.sources.base import SourceOptions
from edgekit.sources.onnx import OnnxSource
from edgekit.sources.onnx_graph import precision_of, read_model
from tests.conversions import environment
from tests.converters.nets import convolutions, graph, images, int8, make, node, source_of, stored

pytestmark = pytest.mark.convert


def outside(folder: Path, location: str = "w.data") -> Path:
    net = graph(
        [node("MatMul", "x w", "y")], {"x": ["n", 8]}, {"y": ["n", 8]}, {"w": np.eye(8, dtype=np.float32)}
    )
    path = folder / "m.onnx"
    onnx.save(net, str(path), save_as_external_data=True, location="w.data", size_threshold=0)
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    source = OnnxSource(outside(tmp_path), SourceOptions())
    x = np.arange(8, dtype=np.float32)[None]
    assert np.array_equal(source.run({"x": x})["y"], x)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", ""])
def test_weights_elsewhere_are_refused_before_they_are_opened(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 256)
    with pytest.raises(InvalidFileError, match=r"m\.onnx has weights outside its folder"):
        OnnxSource(outside(folder, location), SourceOptions())


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 256)
    path = outside(folder)
    (folder / "w.data").unlink()
    (folder / "w.data").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidFileError, match="weights outside its folder"):
        OnnxSource(path, SourceOptions())


def test_weights_that_are_missing_or_cut_off_are_told(tmp_path: Path) -> None:
    path = outside(tmp_path)
    (tmp_path / "w.data").write_bytes(b"\0" * 100)
    with pytest.raises(
        InvalidFileError, match=r"w\.data, the weights of m\.onnx, is too short: got 100 bytes"
    ):
        OnnxSource(path, SourceOptions())
    (tmp_path / "w.data").unlink()
    with pytest.raises(InvalidFileError, match=r"keeps its weights in w\.data, which is missing"):
        OnnxSource(path, SourceOptions())


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x08"])
def test_what_is_no_onnx_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(InvalidFileError, match=r"m\.onnx is not an ONNX file"):
        OnnxSource(tmp_path / "m.onnx", SourceOptions())


# Quantized already


def test_a_quantized_source_is_recognised(tmp_path: Path) -> None:
    source = source_of(convolutions(), tmp_path)
    assert OnnxSource(source.path, SourceOptions()).quantized == ""
    samples = stored(tmp_path / "s", images(8))
    static = make(OnnxToInt8(), source, tmp_path / "a", int8(), samples).path
    dynamic = make(OnnxToDynamic(), source, tmp_path / "b").path
    opened = OnnxSource(Path(static), SourceOptions())
    assert (opened.quantized, opened.notes) == ("int8", ("the source is quantized already: int8",))
    assert OnnxSource(Path(dynamic), SourceOptions()).quantized == "int8-dynamic"


def test_weights_stored_as_integers_are_int8_dynamic_and_a_lookup_is_not() -> None:
    wide = np.zeros((64, 64), np.int8)
    nodes = [node("Cast", "w", "f", to=1), node("Mul", "f s", "r"), node("MatMul", "x r", "y")]
    x, y = {"x": ["n", 64]}, {"y": ["n", 64]}
    assert precision_of(graph(nodes, x, y, {"w": wide, "s": np.float32(0.1)})) == "int8-dynamic"
    lookup = {"w": np.zeros((64, 64), np.float32), "t": np.zeros(16, np.uint8)}
    assert precision_of(graph([node("MatMul", "x w", "y")], x, y, lookup)) == ""
    joined = [node("QLinearMatMul", "x s z w s z s z", "y")]
    assert precision_of(graph(joined, x, y, {"w": wide, "s": np.float32(0.1), "z": np.int8(0)})) == "int8"


# Sizes that the user fixes


def test_free_sizes_can_be_fixed(tmp_path: Path) -> None:
    net = graph([node("Relu", "x", "y")], {"x": ["n", 3, "h", "w"]}, {"y": ["n", 3, "h", "w"]}, {})
    onnx.save(net, str(tmp_path / "m.onnx"))
    options = SourceOptions(input_shapes={"x": (-1, 3, 48, 192)})
    source = OnnxSource(tmp_path / "m.onnx", options)
    assert source.inputs[0].shape == (-1, 3, 48, 192)
    started = SourceModel("onnx-source", tmp_path / "m.onnx", source.inputs, source.outputs, options)
    recipe = Recipe(("onnx-fp32",), "fp32", options={"opset": 17, "ir": 8})
    made = OnnxSource(Path(make(OnnxToOnnx(), started, tmp_path / "o", recipe).path), SourceOptions())
    assert made.inputs[0].shape == (-1, 3, 48, 192)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"x": (1, 4, 48, 192)}, "x cannot take this shape: got .1, 4, 48, 192"),
        ({"x": (1, 3)}, "x cannot take this shape"),
        ({"image": (1, 3, 48, 192)}, "the model has no input 'image'"),
    ],
)
def test_shapes_that_contradict_the_model_are_refused(tmp_path: Path, shapes: Any, said: str) -> None:
    net = graph([node("Relu", "x", "y")], {"x": ["n", 3, "h", "w"]}, {"y": ["n", 3, "h", "w"]}, {})
    onnx.save(net, str(tmp_path / "m.onnx"))
    with pytest.raises(UsageError, match=said):
        OnnxSource(tmp_path / "m.onnx", SourceOptions(input_shapes=shapes))


def test_an_opset_newer_than_the_runtimes_is_lowered_or_refused(tmp_path: Path) -> None:
    for name, op, error in (("a", "Gelu", ""), ("b", "BitwiseNot", "BitwiseNot")):
        nodes = [node(op, "x", "y")]
        if op == "BitwiseNot":
            nodes = [node("Cast", "x", "i", to=6), node(op, "i", "j"), node("Cast", "j", "y", to=1)]
        net = graph(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {}, opset=20, ir=9)
        onnx.save(net, str(tmp_path / f"{name}.onnx"))
        source = OnnxSource(tmp_path / f"{name}.onnx", SourceOptions())
        started = SourceModel("onnx-source", tmp_path / f"{name}.onnx", source.inputs, source.outputs)
        recipe = Recipe(("onnx-fp32",), "fp32", options={"opset": 17, "ir": 8})
        if error:
            with pytest.raises(ConversionError, match=f"{error} .*no form that the target's runtime reads"):
                make(OnnxToOnnx(), started, tmp_path / f"o{name}", recipe)
            continue
        made = OnnxSource(
            Path(make(OnnxToOnnx(), started, tmp_path / f"o{name}", recipe).path), SourceOptions()
        )
        x = np.linspace(-3, 3, 4, dtype=np.float32)[None]
        np.testing.assert_allclose(made.run({"x": x})["y"], source.run({"x": x})["y"], atol=1e-5)
        assert read_model(tmp_path / f"o{name}" / "onnx-fp32" / "model.onnx").ir_version == 8


# Memory

_MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np
import onnxruntime, onnx
from edgekit.sources.base import SourceOptions
from edgekit.sources.onnx import OnnxSource
from edgekit.converters.base import SourceModel
from edgekit.converters.onnx_fp32 import OnnxToOnnx
from edgekit.manifest import Recipe

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
path = Path(sys.argv[1])
source = OnnxSource(path, SourceOptions())
source.run({"x": np.ones((1, 1024), np.float32)})
started = SourceModel("onnx-source", path, source.inputs, source.outputs)
del source
recipe = Recipe(("onnx-fp32",), "fp32", options={"opset": int(sys.argv[3]), "ir": 8})
list(OnnxToOnnx().convert(started, [recipe], [], Path(sys.argv[2])))
print(peak() - before)
"""


def large(folder: Path, mib: int, opset: int) -> Path:
    """Write a chain of matrices of `mib` MiB outside the file, a block at a time."""
    count = mib // 4
    names = [f"w{i}" for i in range(count)]
    nodes = [node("MatMul", f"v{i} {name}", f"v{i + 1}") for i, name in enumerate(names)]
    nodes += [node("ReduceMean", f"v{count} axes", "y")]
    nodes[0].input[0] = "x"
    net = graph(
        nodes, {"x": ["n", 1024]}, {"y": ["n", 1]}, {"axes": np.array([1], np.int64)}, opset=opset, ir=8
    )
    row = np.eye(1024, dtype=np.float32).tobytes()
    with (folder / "w.data").open("wb") as stream:
        for i, name in enumerate(names):
            tensor = net.graph.initializer.add(name=name, data_type=1, dims=[1024, 1024], data_location=1)
            for key, said in (
                ("location", "w.data"),
                ("offset", str(i * len(row))),
                ("length", str(len(row))),
            ):
                tensor.external_data.add(key=key, value=said)
            stream.write(row)
    (folder / "m.onnx").write_bytes(net.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize("mib", [300, pytest.param(2200, marks=pytest.mark.soak)])
def test_a_large_model_takes_at_most_half_as_much_again_in_memory(tmp_path: Path, mib: int) -> None:
    path = large(tmp_path, mib, 18)
    (tmp_path / "out").mkdir()
    child = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(path), str(tmp_path / "out"), "17"],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < 1.5 * mib
    made = tmp_path / "out" / "onnx-fp32"
    assert sorted(file.name for file in made.iterdir()) == (
        ["model.onnx"] if mib < 2000 else ["model.onnx", "model.onnx.data"]
    )
    x = np.arange(1024, dtype=np.float32)[None]
    answers = OnnxSource(made / "model.onnx", SourceOptions()).run({"x": x})
    assert answers["y"] == pytest.approx(511.5)

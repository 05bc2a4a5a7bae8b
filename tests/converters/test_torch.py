"""Programs and TorchScript to ONNX and TFLite: what is made, and by the real command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import open_bundle
from edgekit.converters import CONVERTERS, Converted
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.process import Worker, WorkerLimits
from edgekit.sources import SourceOptions
from edgekit.tasks import Convert, Describe, RunSource
from tests.conversions import run_main
from tests.torch_models import SHAPE, digits, exported, scripted, two_inputs

pytestmark = pytest.mark.convert
onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

OPTIONS = {"opset": 17, "ir": 8}
SCRIPT = SourceOptions(input_shapes={"input_0": (-1, *SHAPE)})


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), WorkerLimits(time_s=300))
    yield worker
    worker.close()


@pytest.fixture
def make(worker: Worker, tmp_path: Path) -> Callable[..., Converted]:
    """Describe a model and convert it, in a worker, as `edgekit convert` does."""

    def made(
        kind: str, path: Path, name: str, options: SourceOptions | None = None, **recipe: Any
    ) -> Converted:
        given = options or SourceOptions()
        described = next(a.described for a in worker.ask(Describe(kind, str(path), given)) if a.described)
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        recipes = (Recipe(route=(name,), precision="fp32", options={**OPTIONS, **recipe}),)
        task = Convert(
            CONVERTERS[name],
            kind,
            str(path),
            described.inputs,
            described.outputs,
            recipes,
            None,
            str(out),
            given,
        )
        return next(a.part for a in worker.ask(task) if a.part)

    return made


def test_a_program_to_onnx(make: Callable[..., Converted]) -> None:
    made = make("torch-export", exported(), "torch-onnx")
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert made.files == (made.path,)
    assert model.opset_import[0].version == 17
    assert model.ir_version == 8
    assert not model.functions
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 2
    assert "BatchNormalization" not in operators  # folded
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["input", "output_0"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for batch in (1, 2, 5):
        same_answers(made.path, digits(batch, 3)[0])


def same_answers(path: str, images: np.ndarray, name: str = "input") -> None:
    import onnxruntime

    from edgekit.sources.torch import TorchExportSource

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = TorchExportSource(exported(), SourceOptions()).run({"input": images})["output_0"]
    np.testing.assert_allclose(session.run(None, {name: images})[0], expected, atol=1e-5)


def test_the_same_program_gives_the_same_bytes(make: Callable[..., Converted]) -> None:
    for name in ("torch-onnx", "torch-tflite"):
        one, two = (make("torch-export", exported(), name) for _ in range(2))
        assert Path(one.path).read_bytes() == Path(two.path).read_bytes()


@pytest.mark.parametrize("opset", [13, 15, 18])
def test_the_opset_is_what_the_target_reads(make: Callable[..., Converted], opset: int) -> None:
    """The exporter starts at 18; torch alone would keep that, and say so in its log."""
    made = make("torch-export", exported(), "torch-onnx", opset=opset)
    assert onnx.load(made.path).opset_import[0].version == opset
    same_answers(made.path, digits(2, 4)[0])


def test_nested_inputs_keep_their_order(make: Callable[..., Converted]) -> None:
    import onnxruntime

    made = make("torch-export", two_inputs(), "torch-onnx")
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    assert names == ["left", "rest_a", "rest_b", "scale"]
    feed = {name: np.full((1, 3), i + 1, np.float32) for i, name in enumerate(names)}
    assert [float(a[0, 0]) for a in session.run(["output_0", "output_1", "output_2"], feed)] == [7, 7, 1]


def test_nested_inputs_in_tflite(make: Callable[..., Converted]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    made = make("torch-export", two_inputs(), "torch-tflite")
    assert {spec.shape for spec in made.inputs} == {(1, 3)}
    run = Interpreter(made.path).get_signature_runner("serving_default")
    feed = {
        name: np.full((1, 3), i + 1, np.float32)
        for i, name in enumerate(["left", "rest_a", "rest_b", "scale"])
    }
    answer = {name: float(array[0, 0]) for name, array in run(**feed).items()}
    assert answer == {"output_0": 7, "output_1": 7, "output_2": 1}


def test_where_the_newer_exporter_fails_the_older_one_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this process, since the first exporter is made to fail."""
    from edgekit.converters.base import SourceModel
    from edgekit.converters.torch_onnx import TorchToOnnx
    from edgekit.sources.torch import TorchExportSource
    from edgekit.streams import NO_SAMPLES

    def fail(*_: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("edgekit.converters.torch_onnx._export_program", fail)
    source = TorchExportSource(exported(), SourceOptions())
    model = SourceModel("torch-export", exported(), source.inputs, source.outputs)
    recipe = Recipe(route=("torch-onnx",), precision="fp32", options=dict(OPTIONS))
    (made,) = TorchToOnnx().convert(model, [recipe], NO_SAMPLES, tmp_path)
    assert onnx.load(made.path).opset_import[0].version == 17
    for batch in (1, 3):
        same_answers(made.path, digits(batch, 5)[0])
    nested = TorchExportSource(two_inputs(), SourceOptions())
    model = SourceModel("torch-export", two_inputs(), nested.inputs, nested.outputs)
    (tmp_path / "nested").mkdir()
    (made,) = TorchToOnnx().convert(model, [recipe], NO_SAMPLES, tmp_path / "nested")
    assert [v.name for v in onnx.load(made.path).graph.input] == ["left", "rest_a", "rest_b", "scale"]
    monkeypatch.setattr("edgekit.converters.torch_onnx.export_traced", fail)
    (tmp_path / "again").mkdir()
    with pytest.raises(
        ConversionError, match="cannot export the program: no such operator; the older exporter: no such"
    ):
        list(TorchToOnnx().convert(model, [recipe], NO_SAMPLES, tmp_path / "again"))


def test_a_program_to_tflite(make: Callable[..., Converted]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    from edgekit.sources.torch import TorchExportSource

    made = make("torch-export", exported(), "torch-tflite")
    assert [(s.name, s.shape) for s in made.inputs] == [("input", (1, *SHAPE))]
    assert set(made.tools) == {"torch", "litert-torch", "litert-converter"}
    interpreter = Interpreter(made.path)
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["input"], "outputs": ["output_0"]}
    }
    image = digits(1, 6)[0]
    answer = interpreter.get_signature_runner("serving_default")(input=image)["output_0"]
    expected = TorchExportSource(exported(), SourceOptions()).run({"input": image})["output_0"]
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_a_size_beside_the_batch_is_not_free_in_tflite(
    make: Callable[..., Converted], tmp_path: Path
) -> None:
    import torch

    free = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 8),), dynamic_shapes={"input": {1: free}})
    path = tmp_path / "free.pt2"
    torch.export.save(program, path)
    with pytest.raises(ConversionError, match=r"free ones beside its batch.*\[1, -1\].*sizes fixed"):
        make("torch-export", path, "torch-tflite")


def test_torchscript_to_onnx(make: Callable[..., Converted]) -> None:
    made = make("torchscript", scripted(), "torchscript-onnx", SCRIPT)
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["input_0", "output_0"]
    for batch in (1, 2, 5):
        same_answers(made.path, digits(batch, 7)[0], "input_0")


def test_torchscript_of_a_fixed_batch(make: Callable[..., Converted]) -> None:
    fixed = SourceOptions(input_shapes={"input_0": (1, *SHAPE)})
    made = make("torchscript", scripted(), "torchscript-onnx", fixed)
    sizes = [d.dim_value for d in onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [1, *SHAPE]


def test_the_worker_reads_no_hostile_file(worker: Worker, tmp_path: Path) -> None:
    from edgekit.errors import InvalidFileError
    from tests.torch_attacks import make as hostile

    path, marker = hostile(exported(), tmp_path, "sample inputs")
    task = RunSource("torch-export", str(path), "", "", options=SourceOptions())
    with pytest.raises(InvalidFileError, match="may run code when it is read"):
        list(worker.ask(task))
    assert not marker.exists()


def save_data(folder: Path, name: str) -> list[str]:
    images, labels = digits(400, 8)
    np.savez(folder / "calibration.npz", **{name: images[:100]})  # type: ignore[arg-type]  # numpy's stub takes the name for an option
    np.savez(folder / "eval.npz", **{name: images[100:]}, y=labels[100:])  # type: ignore[arg-type]
    return ["--calibration", str(folder / "calibration.npz"), "--eval", str(folder / "eval.npz")]


def test_a_program_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "convert",
        exported(),
        "--target",
        "x86-64",
        "-o",
        tmp_path / "out",
        *save_data(tmp_path, "input"),
    ]
    words += [option for name in ("tflite", "onnx", "openvino") for option in ("--format", name)]
    said = run_main([*words, "--precision", "fp32", "--precision", "int8"], capsys)
    assert said.code == 0, said.err
    artifacts = open_bundle(tmp_path / "out").manifest.artifacts
    assert {name: artifact.gate.verdict for name, artifact in artifacts.items()} == {
        f"{name}-{precision}": "accepted" for name in ("tflite", "onnx", "openvino") for precision in ("fp32", "int8")
    }  # fmt: skip
    assert artifacts["tflite-int8"].recipe.route == ("torch-tflite", "tflite-quant")
    assert artifacts["openvino-int8"].inputs[0].shape == (-1, *SHAPE)


def test_torchscript_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "convert",
        scripted(),
        "--target",
        "x86-64",
        "-o",
        tmp_path / "out",
        *save_data(tmp_path, "input_0"),
    ]
    words += [
        "--input-shape",
        "input_0=-1,1,28,28",
        "--precision",
        "fp32",
        "--format",
        "onnx",
        "--format",
        "openvino",
    ]
    said = run_main(words, capsys)
    assert said.code == 0, said.err
    artifacts = open_bundle(tmp_path / "out").manifest.artifacts
    assert {name: artifact.gate.verdict for name, artifact in artifacts.items()} == {
        "onnx-fp32": "accepted", "openvino-fp32": "accepted",
    }  # fmt: skip

"""TFLite files as sources: their names, what is refused by name, and how they are quantized."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.converters import CONVERTERS
from edgekit.errors import ConversionError, EdgeKitError, InvalidFileError, UsageError
from edgekit.manifest import Recipe
from edgekit.process import Worker, WorkerDiedError, WorkerLimits
from edgekit.sources import SourceOptions, check_options, identify
from edgekit.sources.signatures import choose_signature
from edgekit.sources.tflite import notes_on
from edgekit.sources.tflite_graph import Operator, Subgraph, Tensor, TfliteGraph, precision_of, read_graph
from edgekit.tasks import Convert, Describe, Described, RunSource
from tests.models.fetch import fetch
from tests.tflite_files import write_unary

pytest.importorskip("ai_edge_litert")

pytestmark = pytest.mark.convert


@pytest.fixture(scope="module", name="worker")
def _worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), WorkerLimits())
    yield worker
    worker.close()


def describe(worker: Worker, path: Path, options: SourceOptions | None = None) -> Described:
    task = Describe(identify(path), str(path), options or SourceOptions())
    (found,) = [answer.described for answer in worker.ask(task) if answer.described is not None]
    return found


def run(worker: Worker, path: Path, **feed: np.ndarray) -> dict[str, np.ndarray]:
    given, out = path.with_suffix(".in.npz"), path.with_suffix(".out.npz")
    np.savez(given, **feed)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    list(worker.ask(RunSource("tflite", str(path), str(given), str(out))))
    with np.load(out) as answers:
        return dict(answers)


def canonical(worker: Worker, path: Path, out: Path, options: SourceOptions | None = None) -> Path:
    options = options or SourceOptions()
    source = describe(worker, path, options)
    recipe = Recipe(("tflite-fp32",), "fp32")
    out.mkdir()
    task = Convert(
        CONVERTERS["tflite-fp32"], "tflite-source", str(path), source.inputs, source.outputs, (recipe,), None, str(out), options
    )  # fmt: skip
    (part,) = [answer.part for answer in worker.ask(task) if answer.part is not None]
    return Path(part.path)


X = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -0.5]], np.float32)


# Names and answers


def test_the_signatures_names_are_the_models(worker: Worker, tmp_path: Path) -> None:
    path = write_unary(tmp_path / "m.tflite", signatures={"serving_default": ("given", "answer")})
    source = describe(worker, path)
    assert [(s.name, s.shape, s.dtype) for s in source.inputs] == [("given", (-1, 3), "float32")]
    assert [s.name for s in source.outputs] == ["answer"]
    assert source.quantized == ""
    assert source.notes == ()
    assert run(worker, path, given=X)["answer"] == pytest.approx(-X)


def test_a_file_without_a_signature_goes_by_its_tensors_and_gets_one(worker: Worker, tmp_path: Path) -> None:
    path = write_unary(tmp_path / "m.tflite", ("NEG", "ABS"))
    source = describe(worker, path)
    assert ([s.name for s in source.inputs], [s.name for s in source.outputs]) == (["v0"], ["v2"])
    graph = read_graph(canonical(worker, path, tmp_path / "o"))
    assert graph.signatures == {"serving_default": (0, {"v0": 0}, {"v2": 2})}


def test_a_fixed_batch_is_fed_one_by_one(worker: Worker, tmp_path: Path) -> None:
    path = write_unary(tmp_path / "m.tflite", free=False)
    assert describe(worker, path).inputs[0].shape == (1, 3)
    assert run(worker, path, v0=X)["v1"] == pytest.approx(-X)


def test_a_signature_is_chosen_and_becomes_the_only_one(worker: Worker, tmp_path: Path) -> None:
    path = write_unary(tmp_path / "m.tflite", signatures={"one": ("a", "b"), "two": ("c", "d")})
    with pytest.raises(UsageError, match=r"several signatures.*got one, two. Choose one with --signature"):
        describe(worker, path)
    options = SourceOptions(signature="two")
    assert describe(worker, path, options).inputs[0].name == "c"
    graph = read_graph(canonical(worker, path, tmp_path / "o", options))
    assert graph.signatures == {"serving_default": (0, {"c": 0}, {"d": 1})}


def test_signatures_are_chosen_by_rules() -> None:
    assert choose_signature(["b", "a"], "a", "m") == "a"
    assert choose_signature(["a", "serving_default"], "", "m") == "serving_default"
    assert choose_signature(["a"], "", "m") == "a"
    with pytest.raises(UsageError, match="m has no signature 'c': expected one of a, b"):
        choose_signature(["b", "a"], "c", "m")
    with pytest.raises(ConversionError, match="m has no signature"):
        choose_signature([], "", "m")


def test_the_vendors_dynamic_range_file_is_known_for_what_it_is(worker: Worker) -> None:
    path = fetch("D4") / "fer" / "data" / "emotion_model_quantized.tflite"
    source = describe(worker, path)
    assert source.quantized == "int8-dynamic"
    assert source.notes == ("the source is quantized already: int8-dynamic",)
    assert ([s.name for s in source.inputs], [s.name for s in source.outputs]) == (["x"], ["Identity"])


# What is refused, by name


def test_custom_operators_are_named(worker: Worker, tmp_path: Path) -> None:
    own = write_unary(tmp_path / "own.tflite", custom="MyFilter")
    with pytest.raises(
        ConversionError, match=r"own\.tflite needs operators that TFLite does not have: MyFilter$"
    ):
        describe(worker, own)
    flex = write_unary(tmp_path / "flex.tflite", custom="FlexSinh")
    with pytest.raises(
        ConversionError, match=r"does not have: FlexSinh. Convert the model .* TensorFlow's own Sinh"
    ):
        describe(worker, flex)


@pytest.mark.parametrize("name", ["tflite-onnx", "tflite-openvino"])
def test_state_between_calls_is_refused_where_no_format_has_it(
    worker: Worker, tmp_path: Path, name: str
) -> None:
    path = write_unary(tmp_path / "m.tflite", ("READ_VARIABLE",), signatures={"serving_default": ("a", "b")})
    recipe = Recipe((name,), "fp32", options={"opset": 17, "ir": 8, "static": False})
    (tmp_path / "o").mkdir()
    task = Convert(CONVERTERS[name], "tflite", str(path), (), (), (recipe,), None, str(tmp_path / "o"))
    with pytest.raises(ConversionError, match="resource variables, in which the model keeps its state"):
        list(worker.ask(task))


def test_tensors_inside_may_share_a_name_with_an_output(worker: Worker, tmp_path: Path) -> None:
    path = write_unary(tmp_path / "m.tflite", ("NEG", "ABS"), names=("x", "same", "same"))
    assert describe(worker, path).outputs[0].name == "same"


def test_what_is_no_tflite_says_so(worker: Worker, tmp_path: Path) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(b"\x08\x00\x00\x00ONNX and so on")
    with pytest.raises(
        InvalidFileError, match=r"other\.tflite is not a TFLite file: got a file that starts with"
    ):
        identify(other)
    with pytest.raises(UsageError, match="--custom-objects means nothing to a source of the kind tflite"):
        check_options("tflite", SourceOptions(custom_objects="own.py"))


def test_damaged_files_end_in_an_error_each(worker: Worker, tmp_path: Path) -> None:
    whole = write_unary(
        tmp_path / "m.tflite", ("NEG", "ABS"), signatures={"serving_default": ("a", "b")}
    ).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for number in range(60):
        data = bytearray(whole[: random.integers(16, len(whole))] if number % 3 == 0 else whole)
        for place in random.integers(8, len(data), 6):
            data[place] = random.integers(256)
        path = tmp_path / f"damaged-{number}.tflite"
        path.write_bytes(bytes(data))
        fault = fault_of(worker, path)
        assert not isinstance(fault, WorkerDiedError), number
        assert fault is None or path.name in str(fault)
        refused += fault is not None
    assert refused > 30


def fault_of(worker: Worker, path: Path) -> EdgeKitError | None:
    """Return why a file cannot be read; some damage leaves it readable."""
    try:
        describe(worker, path)
    except (InvalidFileError, ConversionError) as error:
        return error
    return None


# How a file is quantized


def graph_of(*tensors: Tensor, kind: str = "CONV_2D") -> TfliteGraph:
    numbers = tuple(range(len(tensors)))
    return TfliteGraph((Subgraph(tensors, (Operator(kind, numbers, ()),), (), ()),))


def tensor(type_: str, scales: int = 0, *, constant: bool = False) -> Tensor:
    return Tensor("t", type_, constant, scales, (1,))


@pytest.mark.parametrize(
    ("graph", "precision"),
    [
        (graph_of(tensor("FLOAT32"), tensor("FLOAT32", constant=True)), ""),
        (graph_of(tensor("FLOAT16", constant=True), kind="DEQUANTIZE"), "fp16"),
        (graph_of(tensor("FLOAT32"), tensor("INT8", 8, constant=True)), "int8-dynamic"),
        (graph_of(tensor("INT8", 8, constant=True), kind="DEQUANTIZE"), "int8-dynamic"),
        (graph_of(tensor("INT8", 1), tensor("INT8", 8, constant=True)), "int8"),
        (graph_of(tensor("UINT8", 1), tensor("UINT8", 1, constant=True)), "int8"),
        (graph_of(tensor("INT16", 1), tensor("INT8", 8, constant=True)), "int16x8"),
        (graph_of(tensor("INT8", 1), kind="DEQUANTIZE"), ""),
        (graph_of(tensor("INT32"), tensor("INT32", constant=True), kind="GATHER"), ""),
        (graph_of(tensor("INT8"), kind="CAST"), ""),
    ],
)
def test_precision_is_read_from_the_operators_inputs(graph: TfliteGraph, precision: str) -> None:
    assert precision_of(graph) == precision


def test_state_between_calls_is_noted() -> None:
    assert notes_on(graph_of(tensor("RESOURCE"), kind="READ_VARIABLE"))[0].startswith(
        "the source keeps state"
    )
    assert notes_on(graph_of(tensor("FLOAT32"))) == ()

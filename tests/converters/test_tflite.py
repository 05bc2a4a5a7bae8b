"""TFLite: every precision from every source, and the ways in which it goes wrong without a word."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.converters import CONVERTERS, Converted
from edgekit.converters.tflite_checks import HEAVY, activation_share, check_precision
from edgekit.converters.tflite_layers import decibels, dequantized, mixed_scales, quantization
from edgekit.converters.tflite_ranges import clip, observe, run_each
from edgekit.errors import ConversionError, MachineError, UsageError
from edgekit.manifest import Recipe
from edgekit.process import Worker, WorkerLimits
from edgekit.runtimes import ModelFiles, SessionOptions, get_runtime
from edgekit.sources import SourceOptions
from edgekit.sources.tflite_graph import TfliteGraph, precision_of, read_graph
from edgekit.streams import store_samples
from edgekit.tasks import Convert, Describe, Described, MeasureLayers, RunSource
from tests.conversions import environment, run_main
from tests.corpus import ROOT, reference_cnn
from tests.tflite_files import write_unary

pytestmark = pytest.mark.convert

ONNX: dict[str, Any] = {"opset": 17, "ir": 8}
PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8", "int16x8")


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tflite-models")
    words = [
        sys.executable,
        str(ROOT / "tests" / "tflite_models.py"),
        str(folder),
        str(reference_cnn().model),
    ]
    subprocess.run(words, check=True, capture_output=True, env=environment())
    return folder


@pytest.fixture(scope="module", name="worker")
def _worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), WorkerLimits())
    yield worker
    worker.close()


@pytest.fixture(scope="module", name="digits")
def _digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with np.load(reference_cnn().calibration) as data:
        return store_samples(tmp_path_factory.mktemp("digits") / "c", {"image": data["image"]})


@pytest.fixture(scope="module", name="cnn")
def _cnn(worker: Worker, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Give the reference CNN as float TFLite."""
    return make(worker, "keras-tflite", "savedmodel", models / "cnn", tmp_path_factory.mktemp("cnn"))


class Made:
    """An artifact with what it takes and gives."""

    def __init__(self, converted: Converted) -> None:
        self.path, self.inputs, self.outputs = Path(converted.path), converted.inputs, converted.outputs
        self.converted = converted

    @property
    def graph(self) -> TfliteGraph:
        return read_graph(self.path)

    def run(self, runtime: str = "litert", **feed: np.ndarray) -> dict[str, np.ndarray]:
        files = ModelFiles(self.path, self.inputs, self.outputs)
        session = get_runtime(runtime).load(files, SessionOptions())
        rows: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self.outputs}
        for i in range(len(next(iter(feed.values())))):
            for name, value in session.run({k: v[i : i + 1] for k, v in feed.items()}).items():
                rows[name].append(np.array(value))  # the next run may overwrite it
        answers = {name: np.concatenate(values) for name, values in rows.items()}
        session.close()
        return answers


def describe(worker: Worker, kind: str, path: Path, options: SourceOptions | None = None) -> Described:
    (found,) = [
        a.described
        for a in worker.ask(Describe(kind.removesuffix("-source"), str(path), options or SourceOptions()))
        if a.described is not None
    ]
    return found


def make(
    worker: Worker,
    name: str,
    kind: str,
    source: Path | Made,
    out: Path,
    recipe: Recipe | None = None,
    calibration: Path | None = None,
    options: SourceOptions | None = None,
) -> Made:
    options = options or SourceOptions()
    specs: Any = source if isinstance(source, Made) else describe(worker, kind, source, options)
    path = source.path if isinstance(source, Made) else source
    recipe = recipe or Recipe(route=(name,), precision="fp32", options=ONNX | {"static": False})
    out.mkdir(exist_ok=True)
    task = Convert(
        CONVERTERS[name],
        kind,
        str(path),
        specs.inputs,
        specs.outputs,
        (recipe,),
        str(calibration) if calibration else None,
        str(out),
        options,
    )
    (part,) = [answer.part for answer in worker.ask(task) if answer.part is not None]
    return Made(part)


def quantize(
    worker: Worker,
    source: Made,
    out: Path,
    precision: str = "int8",
    calibration: Path | None = None,
    method: str = "minmax",
    float_layers: tuple[str, ...] = (),
    **options: Any,
) -> Made:
    recipe = Recipe(("tflite-quant",), precision, method, 0, options, float_layers)
    return make(worker, "tflite-quant", "tflite", source, out, recipe, calibration)


def evaluation() -> tuple[np.ndarray, np.ndarray]:
    with np.load(reference_cnn().evaluation) as data:
        return data["image"], data["y"]


def accuracy(made: Made) -> float:
    images, labels = evaluation()
    (scores,) = made.run(image=images).values()
    return float((scores.argmax(axis=1) == labels).mean())


def interface_types(made: Made) -> set[str]:
    main = made.graph.subgraphs[0]
    return {main.tensors[i].type for i in (*main.inputs, *main.outputs)}


# Every precision, by both converters


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_the_reference_cnn_keeps_its_accuracy_at_every_precision(
    worker: Worker, cnn: Made, digits: Path, tmp_path: Path, precision: str
) -> None:
    made = quantize(worker, cnn, tmp_path / "a", precision, digits)
    assert precision_of(made.graph) == precision
    assert interface_types(made) == {"FLOAT32"}
    assert set(made.graph.signatures) == {"serving_default"}
    assert accuracy(made) == pytest.approx(accuracy(cnn), abs=0.003)
    share = {"fp16": 0.55}.get(precision, 0.3)
    assert made.path.stat().st_size < share * cnn.path.stat().st_size
    again = quantize(worker, cnn, tmp_path / "b", precision, digits)
    assert again.path.read_bytes() == made.path.read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorflows_own_quantizer_makes_every_precision_too(
    worker: Worker, models: Path, digits: Path, tmp_path: Path, precision: str
) -> None:
    recipe = Recipe(("keras-tflite",), precision, "minmax")
    made = make(worker, "keras-tflite", "savedmodel", models / "cnn", tmp_path / "o", recipe, digits)
    assert precision_of(made.graph) == precision.replace("fp32", "")
    assert interface_types(made) == {"FLOAT32"}
    assert accuracy(made) >= 0.98


def test_weights_alone_in_eight_bits_leave_the_arithmetic_float(
    worker: Worker, cnn: Made, tmp_path: Path
) -> None:
    made = quantize(worker, cnn, tmp_path / "o", "int8-dynamic", weight_only=True)
    kinds = [operator.kind for _, operator in made.graph.operators()]
    assert kinds.count("DEQUANTIZE") == 5
    images, _ = evaluation()
    exact, rough = (m.run(image=images[:20])["output_0"] for m in (cnn, made))
    assert np.abs(exact - rough).max() < 0.02


def test_where_integers_lose_too_much_int8_dynamic_keeps_them_to_the_weights(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", models / "loud.keras", "-t", "raspberry-pi-4", "--eval", models / "loud.npz"]
    words += ["--format", "tflite", "--precision", "int8-dynamic", "-o", tmp_path / "out"]
    said = run_main(words, capsys)
    assert said.code == 0, said.err
    assert "3 recipes tried, kept: keras-tflite → tflite-quant, weight only" in said.out
    (row,) = json.loads((tmp_path / "out.report" / "report.json").read_text())["artifacts"]
    assert row["status"] == "accepted"
    assert [a["status"] for a in row["attempts"]] == ["refused", "refused", "accepted"]
    assert abs(row["metric"]["drop_pp"]) < 1.0


def test_a_source_that_computes_in_integers_is_the_measure_of_its_own_rounding(
    worker: Worker, cnn: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its float artifact is off by what the source rounds, more than what two float artifacts may differ by."""
    made = quantize(worker, cnn, tmp_path / "o", "int8-dynamic")
    with np.load(reference_cnn().evaluation) as data:
        np.savez(tmp_path / "eval.npz", **{cnn.inputs[0].name: data["image"], "y": data["y"]})
    words = ["convert", made.path, "-t", "raspberry-pi-4", "--format", "onnx", "--precision", "fp32"]
    words += ["-o", tmp_path / "out", "--eval", tmp_path / "eval.npz"]
    refused = run_main(words, capsys)
    assert refused.code == 3
    assert "the source is int8-dynamic already; --requantize makes fp32 of it" in refused.line
    said = run_main([*words, "--requantize"], capsys)
    assert said.code == 0, said.err
    (row,) = json.loads((tmp_path / "out.report" / "report.json").read_text())["artifacts"]
    assert row["status"] == "accepted"
    assert row["parity"]["max_error"] > 1e-4


# Calibration


@pytest.mark.parametrize("converter", ["tflite-quant", "keras-tflite"])
def test_ranges_come_from_the_data_given(
    worker: Worker, cnn: Made, models: Path, tmp_path: Path, converter: str
) -> None:
    random = np.random.default_rng(0)
    scales = []
    for factor in (1.0, 10.0):
        data = {"image": random.random((8, 28, 28, 1)).astype(np.float32) * np.float32(factor)}
        samples = store_samples(tmp_path / f"c{factor}", data)
        recipe = Recipe((converter,), "int8", "minmax")
        kind, source = ("tflite", cnn) if converter == "tflite-quant" else ("savedmodel", models / "cnn")
        made = make(worker, converter, kind, source, tmp_path / f"o{factor}", recipe, samples)
        scales.append(first_scale(made))
    assert scales[1] / scales[0] == pytest.approx(10.0, rel=0.05)


def first_scale(made: Made) -> float:
    from ai_edge_litert.interpreter import Interpreter

    (quantize_input,) = [
        operator.outputs[0] for _, operator in made.graph.operators() if operator.kind == "QUANTIZE"
    ][:1]
    details = {d["index"]: d for d in Interpreter(model_path=str(made.path)).get_tensor_details()}
    return float(details[quantize_input]["quantization"][0])


def test_an_artifact_whose_calibration_was_ignored_is_refused(
    worker: Worker, cnn: Made, tmp_path: Path
) -> None:
    """Dynamic-range weights under the name of static int8: what a converter does that ignores the data."""
    dynamic = quantize(worker, cnn, tmp_path / "o", "int8-dynamic")
    for precision in ("int8", "int16x8"):
        assert activation_share(dynamic.graph, precision) == 0.0
        with pytest.raises(
            ConversionError, match=f"made no {precision}: calibration data was ignored: got int8-dyn"
        ):
            check_precision(dynamic.path, precision)
    with pytest.raises(ConversionError, match="quantized what was to stay float: got int8-dynamic"):
        check_precision(dynamic.path, "fp32")
    check_precision(dynamic.path, "int8-dynamic")
    check_precision(cnn.path, "fp32")


class Stream:
    """Samples that remember how many of them were alive at once."""

    def __init__(self, n: int) -> None:
        self.n, self.most, self.alive = n, 0, weakref.WeakSet[Any]()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        class Array(np.ndarray[Any, Any]):  # a plain array takes no weak reference in a set
            __hash__ = object.__hash__  # type: ignore[assignment]

        gc.collect()
        self.most = max(self.most, len(self.alive) + 1)
        value = np.full((1, 28, 28, 1), index, np.float32).view(Array)
        self.alive.add(value)
        return {"image": value}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(self.n))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_calibration_holds_a_few_samples_at_a_time(cnn: Made, method: str) -> None:
    stream = Stream(40)
    ranges = observe(cnn.path, stream, method, 255)
    assert stream.most <= 3
    low, high = ranges["serving_default_image:0"]
    assert low == 0.0
    assert (high == 39.0) if method == "minmax" else (20.0 < high <= 39.0)


def test_the_order_of_samples_does_not_matter(cnn: Made) -> None:
    """A moving average of extremes, as LiteRT's own calibrator keeps, would forget the first."""
    values = [5.0, 1.0, 1.0, 1.0]
    forward = [{"image": np.full((1, 28, 28, 1), v, np.float32)} for v in values]
    first = observe(cnn.path, forward, "minmax", 255)
    assert first == observe(cnn.path, forward[::-1], "minmax", 255)
    assert first["serving_default_image:0"] == (0.0, 5.0)


def test_a_sample_that_is_not_finite_is_named(cnn: Made) -> None:
    bad = [{"image": np.full((1, 28, 28, 1), np.nan, np.float32)}]
    with pytest.raises(ConversionError, match="is not finite on a calibration sample"):
        observe(cnn.path, bad, "minmax", 255)
    with pytest.raises(
        ConversionError, match="unknown calibration 'guess': expected one of minmax, percentile, mse"
    ):
        observe(cnn.path, bad, "guess", 255)


def test_clipping_cuts_an_outlier_and_keeps_zero() -> None:
    histogram = np.zeros(2048, np.int64)
    histogram[:200] = 1000
    histogram[-1] = 1
    seen = (0.0, 2048.0)
    assert clip(seen, histogram, "minmax", 255) == seen
    assert clip(seen, histogram, "percentile", 255) == (0.0, 200.0)
    low, high = clip(seen, histogram, "mse", 255)
    assert (low, high < 2048.0) == (0.0, True)
    assert clip(seen, histogram, "mse", 65535)[1] > high, "with more steps there is less to gain by clipping"
    assert clip((-1.0, 1.0), np.zeros(2048, np.int64), "mse", 255) == (-1.0, 1.0)
    inside = np.zeros(2048, np.int64)
    inside[1500:1600] = 10
    assert clip((-1.0, 1.0), inside, "percentile", 255)[0] == 0.0


def test_a_large_tensor_is_sampled_in_all_its_channels(tmp_path: Path) -> None:
    """One channel of three is large: a fixed stride would see it always or never."""
    path = write_unary(tmp_path / "m.tflite", signatures={"serving_default": ("x", "y")})
    x = np.full((1 << 16, 3), 0.5, np.float32)
    x[:, 2] = 4.0
    low, high = observe(path, [{"x": x}], "percentile", 255)["v0"]
    assert low == 0.0
    assert high == pytest.approx(4.0, abs=0.01)
    few = np.full((1 << 16, 3), 0.5, np.float32)
    few[0, 0] = 4.0
    assert observe(path, [{"x": few}], "percentile", 255)["v0"][1] < 0.6


# Layers


def test_layers_are_measured_and_kept_float(worker: Worker, cnn: Made, digits: Path, tmp_path: Path) -> None:
    made = quantize(worker, cnn, tmp_path / "o", "int8", digits)
    recipe = Recipe(("tflite-quant",), "int8", "minmax")
    task = MeasureLayers(
        CONVERTERS["tflite-quant"], "tflite", str(cnn.path), cnn.inputs, cnn.outputs, recipe, str(made.path), str(digits)
    )  # fmt: skip
    (ratios,) = [a.layers for a in worker.ask(task) if a.layers is not None]
    assert len(ratios) == 6, "five weighted layers and the softmax"
    assert list(ratios.values()) == sorted(ratios.values())
    assert all(25.0 < ratio < 70.0 for ratio in ratios.values())
    worst = next(iter(ratios))
    kept = quantize(worker, cnn, tmp_path / "k", "int8", digits, float_layers=(worst,))
    types = {t.name: t.type for t in kept.graph.subgraphs[0].tensors}
    assert types[worst] == "FLOAT32"
    assert activation_share(kept.graph, "int8") == pytest.approx(4 / 5)
    assert activation_share(made.graph, "int8") == 1.0


def test_ratios_are_decibels_within_bounds() -> None:
    assert decibels(100.0, 1.0) == pytest.approx(20.0)
    assert decibels(1.0, 0.0) == 120.0
    assert decibels(0.0, 1.0) == -120.0
    assert decibels(1e-30, 1.0) == -120.0


def test_one_scale_for_a_depthwise_layer_collapses_and_one_for_each_channel_rescues(
    worker: Worker, models: Path, digits: Path, tmp_path: Path
) -> None:
    source = make(worker, "keras-tflite", "keras", models / "depthwise.keras", tmp_path / "f")
    exact = accuracy(source)
    assert exact >= 0.98
    whole = quantize(worker, source, tmp_path / "t", "int8", digits, per_channel=False)
    assert accuracy(whole) < 0.5
    each = quantize(worker, source, tmp_path / "c", "int8", digits)
    assert accuracy(each) >= exact - 0.01


def test_bias_correction_takes_back_the_mean_error_of_each_layer(
    worker: Worker, cnn: Made, digits: Path, tmp_path: Path
) -> None:
    few = [{"image": image[None]} for image in evaluation()[0][:64]]
    exact = means(cnn, few)
    errors = {}
    for corrected in (False, True):
        made = quantize(
            worker,
            cnn,
            tmp_path / f"{corrected}",
            "int8",
            digits,
            per_channel=False,
            bias_correction=corrected,
        )
        rough = means(made, few)
        errors[corrected] = {name: np.abs(exact[name] - rough[name]).mean() for name in rough}
    assert len(errors[True]) == 5
    gains = [errors[True][name] / errors[False][name] for name in errors[True]]
    assert max(gains) < 1.3
    assert np.mean(gains) < 0.7, gains


def means(made: Made, few: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of every weighted layer's output, [channels], by its name."""
    main = made.graph.subgraphs[0]
    numbers = {main.tensors[op.outputs[0]].name: op.outputs[0] for op in main.operators if op.kind in HEAVY}
    points = quantization(made.path)
    sums = dict.fromkeys(numbers, np.zeros(1))
    for values in run_each(made.path, few, numbers):
        for name, value in values.items():
            scaled = main.tensors[numbers[name]].scales
            exact = dequantized(value, points[numbers[name]]) if scaled else value.astype(np.float64)
            sums[name] = sums[name] + exact.mean(axis=tuple(range(exact.ndim - 1)))
    return {name: total / len(few) for name, total in sums.items()}


# Boxes and scores


def test_boxes_and_scores_in_one_output_keep_their_own_steps(
    worker: Worker, models: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    samples = store_samples(tmp_path / "c", {"x": x})
    recipe = Recipe(("keras-tflite",), "int8", "minmax")
    with pytest.raises(ConversionError, match="one scale for parts that are joined in an output"):
        make(worker, "keras-tflite", "keras", models / "boxes.keras", tmp_path / "k", recipe, samples)
    source = make(worker, "keras-tflite", "keras", models / "boxes.keras", tmp_path / "f")
    made = quantize(worker, source, tmp_path / "q", "int8", samples)
    assert precision_of(made.graph) == "int8"
    main = made.graph.subgraphs[0]
    joints = [op for op in main.operators if op.kind == "CONCATENATION"]
    assert {main.tensors[op.outputs[0]].type for op in joints} == {"FLOAT32"}
    (exact,), (rough,) = source.run(x=x).values(), made.run(x=x).values()
    assert np.abs(exact[..., 4:] - rough[..., 4:]).max() < 0.05, "scores lie within [0, 1]"
    assert np.abs(exact[..., :4] - rough[..., :4]).max() < 0.05 * 640


def test_parts_that_are_alike_may_share_a_scale(worker: Worker, models: Path, tmp_path: Path) -> None:
    graph = make(worker, "keras-tflite", "keras", models / "boxes.keras", tmp_path / "f").graph
    main = graph.subgraphs[0]
    (joint,) = [op for op in main.operators if op.kind == "CONCATENATION"]
    names = [main.tensors[i].name for i in joint.inputs]
    out = main.tensors[joint.outputs[0]].name
    assert mixed_scales(graph, {names[0]: (-7.0, 1.0), names[1]: (0.0, 1.0)}) == []
    assert out in mixed_scales(graph, {names[0]: (-9.0, 1.0), names[1]: (0.0, 1.0)})
    assert mixed_scales(graph, {names[0]: (0.0, 0.0), names[1]: (0.0, 1.0)}) == []


# Signatures, and operators that TFLite lacks


def test_a_signature_is_chosen_by_name_or_because_it_is_the_only_one(
    worker: Worker, models: Path, tmp_path: Path
) -> None:
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    with pytest.raises(UsageError, match=r"several signatures.*got double, triple.*--signature"):
        describe(worker, "savedmodel", models / "several")
    with pytest.raises(UsageError, match="no signature 'other': expected one of double, triple"):
        describe(worker, "savedmodel", models / "several", SourceOptions(signature="other"))
    for folder, signature, factor in (("several", "double", 2), ("several", "triple", 3), ("only", "", 3)):
        options = SourceOptions(signature=signature)
        for name, runtime in (("keras-tflite", "litert"), ("keras-onnx", "onnxruntime")):
            out = tmp_path / f"{folder}-{signature}-{name}"
            made = make(worker, name, "savedmodel", models / folder, out, options=options)
            assert made.run(runtime, x=x)["y"] == pytest.approx(factor * x)


def test_openvino_reads_a_savedmodel_without_a_format_between(
    worker: Worker, models: Path, tmp_path: Path
) -> None:
    recipe = Recipe(("savedmodel-openvino",), "fp32", options={"static": True})
    made = make(worker, "savedmodel-openvino", "savedmodel", models / "cnn", tmp_path / "a", recipe)
    assert made.inputs[0].shape == (1, 28, 28, 1)
    images, labels = evaluation()
    (scores,) = made.run("openvino", image=images[:200]).values()
    assert (scores.argmax(axis=1) == labels[:200]).mean() >= 0.97
    again = make(worker, "savedmodel-openvino", "savedmodel", models / "cnn", tmp_path / "b", recipe)
    assert again.path.read_bytes() == made.path.read_bytes()
    options = SourceOptions(signature="triple")
    with pytest.raises(ConversionError, match="OpenVINO reads serving_default alone: got triple"):
        make(
            worker,
            "savedmodel-openvino",
            "savedmodel",
            models / "several",
            tmp_path / "c",
            recipe,
            None,
            options,
        )


def test_a_flex_operator_is_named_and_onnx_and_openvino_are_made_all_the_same(
    worker: Worker, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="operators that TFLite does not have: Sinh"):
        make(worker, "keras-tflite", "savedmodel", models / "flex", tmp_path / "t")
    x = np.array([[-1.0, 0.0, 3.0]], np.float32)
    onnx = make(worker, "keras-onnx", "savedmodel", models / "flex", tmp_path / "o")
    assert onnx.run("onnxruntime", x=x)["y"] == pytest.approx(np.sinh(x) + 1.0, abs=1e-5)
    recipe = Recipe(("savedmodel-openvino",), "fp32", options={"static": False})
    ir = make(worker, "savedmodel-openvino", "savedmodel", models / "flex", tmp_path / "v", recipe)
    assert ir.run("openvino", x=x)["y"] == pytest.approx(np.sinh(x) + 1.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_layer_over_a_free_time_axis_gets_a_batch_of_one(
    worker: Worker, models: Path, tmp_path: Path, kind: str
) -> None:
    path = models / f"{kind}.keras"
    made = make(worker, "keras-tflite", "keras", path, tmp_path / "o")
    assert made.inputs[0].shape == (1, -1, 6)
    kinds = {operator.kind for _, operator in made.graph.operators()}
    assert not made.graph.custom
    assert not made.graph.has_state, kinds
    for length in (5, 12):
        x = np.random.default_rng(length).standard_normal((1, length, 6)).astype(np.float32)
        x[:, -2:] = 0.0  # masked
        given, out = tmp_path / f"{length}.in.npz", tmp_path / f"{length}.out.npz"
        np.savez(given, x=x)
        list(worker.ask(RunSource("keras", str(path), str(given), str(out))))
        with np.load(out) as want:
            assert made.run(x=x)["output_0"] == pytest.approx(want["output_0"], abs=1e-5)


# From a TFLite source


def user_file(made: Made, tmp_path: Path) -> Path:
    path = tmp_path / "user.tflite"
    path.write_bytes(made.path.read_bytes())
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_source_says_how_it_is_quantized_and_goes_through_as_it_is(
    worker: Worker, cnn: Made, digits: Path, tmp_path: Path, precision: str
) -> None:
    made = cnn if precision == "fp32" else quantize(worker, cnn, tmp_path / "q", precision, digits)
    path = user_file(made, tmp_path)
    assert describe(worker, "tflite", path).quantized == precision.replace("fp32", "")
    canonical = make(worker, "tflite-fp32", "tflite-source", path, tmp_path / "o")
    assert canonical.path.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic", "int8", "int16x8"])
def test_the_float_twin_of_a_quantized_source_is_float_and_near(
    worker: Worker, cnn: Made, digits: Path, tmp_path: Path, precision: str
) -> None:
    path = user_file(quantize(worker, cnn, tmp_path / "q", precision, digits), tmp_path)
    options = SourceOptions(requantize=True)
    twin = make(worker, "tflite-fp32", "tflite-source", path, tmp_path / "o", options=options)
    assert precision_of(twin.graph) == ""
    assert accuracy(twin) == pytest.approx(accuracy(cnn), abs=0.003)
    again = quantize(worker, twin, tmp_path / "a", "int8", digits)
    assert accuracy(again) >= 0.98


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic", "int8"])
def test_tflite_becomes_onnx_under_the_signatures_names(
    worker: Worker, cnn: Made, digits: Path, tmp_path: Path, precision: str
) -> None:
    source = cnn if precision == "fp32" else quantize(worker, cnn, tmp_path / "q", precision, digits)
    made = make(worker, "tflite-onnx", "tflite", source, tmp_path / "o")
    images, _ = evaluation()
    exact, got = (
        source.run(image=images[:50])["output_0"],
        made.run("onnxruntime", image=images[:50])["output_0"],
    )
    tolerance = {"fp32": 1e-5, "int8-dynamic": 0.05, "int8": 0.05}[precision]
    assert np.abs(exact - got).max() < tolerance
    again = make(worker, "tflite-onnx", "tflite", source, tmp_path / "b")
    assert again.path.read_bytes() == made.path.read_bytes()


def test_tflite_becomes_onnx_of_fixed_shapes(worker: Worker, cnn: Made, tmp_path: Path) -> None:
    recipe = Recipe(("tflite-onnx",), "fp32", options=ONNX | {"static": True})
    made = make(worker, "tflite-onnx", "tflite", cnn, tmp_path / "o", recipe)
    assert made.inputs[0].shape == (1, 28, 28, 1)
    images, labels = evaluation()
    got = made.run("onnxruntime", image=images[:50])["output_0"]
    assert (got.argmax(axis=1) == labels[:50]).mean() >= 0.95
    made.inputs = cnn.inputs  # past the check of shapes: the file itself takes no other
    session = get_runtime("onnxruntime").load(
        ModelFiles(made.path, made.inputs, made.outputs), SessionOptions()
    )
    with pytest.raises(MachineError, match=r"Got: 2 Expected: 1"):
        session.run({"image": images[:2]})


@pytest.mark.parametrize(("static", "precision"), [(True, "fp32"), (False, "fp32"), (False, "int8")])
def test_tflite_becomes_openvino_under_the_signatures_names(
    worker: Worker, cnn: Made, digits: Path, tmp_path: Path, static: bool, precision: str
) -> None:
    source = cnn if precision == "fp32" else quantize(worker, cnn, tmp_path / "q", precision, digits)
    recipe = Recipe(("tflite-openvino",), "fp32", options={"static": static})
    made = make(worker, "tflite-openvino", "tflite", source, tmp_path / "o", recipe)
    assert made.inputs[0].shape == ((1 if static else -1), 28, 28, 1)
    images, labels = evaluation()
    got = made.run("openvino", image=images[:50])["output_0"]
    assert (got.argmax(axis=1) == labels[:50]).mean() >= 0.95

"""Every task through real converters, real runtimes and the gate's own examination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.converters import Converted
from edgekit.data import Dataset
from edgekit.devices import load_profile
from edgekit.factory import Factory, Product
from edgekit.gate import Policy, load_limits
from edgekit.golden import run_golden, tolerance_for
from edgekit.judging import Examination, Judged
from edgekit.manifest import Recipe
from edgekit.metrics import get_metric
from edgekit.postprocess import check_postprocess, read_postprocess
from edgekit.process import WorkerLimits
from edgekit.recipes import recipe_for
from edgekit.routes import Route, converters, find_routes
from edgekit.runtimes import ModelFiles, SessionOptions, get_runtime
from edgekit.samples import gather_samples
from edgekit.sequences import check_state, driven_inputs, run_sequence, with_states
from tests.corpus import reference_cnn, reference_detector

pytestmark = pytest.mark.convert

TARGET = "x86-64"


@dataclass
class Study:
    """One model with its data, as `convert` has it, in the words of its parts."""

    factory: Factory
    kind: str
    model: Path
    task: str
    evaluation: Dataset
    calibration: Dataset | None = None
    metric: str | None = None
    steps: tuple[dict[str, Any], ...] = ()
    state: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = self.factory.describe(self.kind, self.model)
        check_postprocess(self.steps, self.source.outputs)
        check_state(self.state, self.source.inputs, self.source.outputs)
        specs = driven_inputs(self.source.inputs, self.state)
        samples = gather_samples(specs, self.calibration, self.evaluation, load_limits().data, 0, self.state)
        evaluated = self.run(self.evaluation.inputs)
        reference = self.run(samples.parity)
        self.golden = samples.choose_golden("real", self.task, reference, evaluated, self.run)
        self.examination = Examination(
            factory=self.factory,
            profile=load_profile(TARGET),
            task=self.task,
            policy=Policy(),
            parity=samples.parity,
            reference=reference,
            golden=self.golden.inputs,
            calibration=self.calibration,
            evaluation=self.evaluation,
            evaluated=evaluated,
            metric=get_metric(self.metric, self.task),
            postprocess=self.steps,
            state=self.state,
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.factory.run_source(self.kind, self.model, inputs, self.state)

    def make(self, format_: str, precision: str) -> Converted:
        profile, samples = load_profile(TARGET), self.calibration.n if self.calibration else 0
        name = f"{format_}-{precision}"

        def recipe(along: Route, to: str, of: str) -> Recipe:
            return recipe_for(profile, along, to, of, samples)

        made = self.factory.make(
            self.kind,
            self.model,
            self.source,
            {name: recipe(find_routes(converters(), self.kind, format_, precision)[0], format_, precision)},
            lambda along, to: recipe(along, to, "fp32"),
            self._stored(),
            lambda _what, _done, _all: None,
        )[name]
        assert isinstance(made, Product), made
        return made.converted

    def _stored(self) -> Path | None:
        if self.calibration is None:
            return None
        inputs: Mapping[str, np.ndarray] = self.calibration.inputs
        if self.state:
            inputs = with_states(inputs, self.run(inputs), self.state)
        return self.factory.store_calibration(inputs)

    def judge(self, format_: str, precision: str) -> Judged:
        return self.examination.judge(
            self.make(format_, precision), format_, precision, calibrated=precision == "int8"
        )


@contextmanager
def opened_factory(scratch: Path) -> Iterator[Factory]:
    """Give a factory, which is for one source: it keeps what it made on the way."""
    scratch.mkdir(exist_ok=True)
    factory = Factory(scratch, WorkerLimits(), 1)
    try:
        yield factory
    finally:
        factory.close()


# Detection


def detection_data() -> tuple[Dataset, Dataset]:
    detector = reference_detector()
    with np.load(detector.evaluation) as file:
        evaluation = Dataset({"image": file["image"]}, file["y"].astype(np.float64), (), "eval.npz")
    with np.load(detector.calibration) as file:
        return evaluation, Dataset({"image": file["image"]}, None, (), "calibration.npz")


@pytest.fixture(scope="module", name="detector")
def _detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    evaluation, calibration = detection_data()
    files = reference_detector()
    with opened_factory(tmp_path_factory.mktemp("factory")) as factory:
        yield Study(
            factory,
            "keras",
            files.model,
            "detection",
            evaluation,
            calibration,
            steps=read_postprocess(files.preprocess),
        )


@pytest.mark.parametrize(
    ("format_", "precision"),
    [
        ("tflite", "fp32"),
        ("onnx", "fp32"),
        ("openvino", "fp32"),
        ("tflite", "int8"),
        ("onnx", "int8"),
        ("openvino", "int8"),
    ],
)
def test_the_detector_keeps_its_precision(detector: Study, format_: str, precision: str) -> None:
    judged = detector.judge(format_, precision)
    metric, parity = judged.gate.metric, judged.gate.parity
    assert judged.gate.verdict == "accepted", judged.gate.reasons
    assert metric is not None
    assert parity is not None
    assert (metric.name, metric.n) == ("map", 500)
    assert metric.source > 0.7
    assert metric.drop_pp <= 1.0
    assert parity.active_error is not None
    assert parity.active_error < (1e-3 if precision == "fp32" else 0.1)
    assert parity.argmax_agreement is None


def joined_graph(path: Path, model: Path, step: float) -> Path:
    """Save the detector's ONNX with boxes and scores in one output, rounded to multiples of `step`.

    That is what one int8 scale for both does; 0 leaves the values as they are.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx.load(model)
    boxes, scores = (output.name for output in proto.graph.output)
    nodes = [
        helper.make_node("Mul", [boxes, "pixels"], ["wide"]),
        helper.make_node("Concat", ["wide", scores], ["all"], axis=2),
    ]
    constants = {"pixels": np.float32(96.0 / 12.0)}
    if step:
        constants["step"] = np.float32(step)
        nodes += [
            helper.make_node("Div", ["all", "step"], ["steps"]),
            helper.make_node("Round", ["steps"], ["whole"]),
            helper.make_node("Mul", ["whole", "step"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["all"], ["y"]))
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
    )
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 432, 14]))
    onnx.save(proto, path)
    return path


def test_boxes_and_scores_on_one_scale_are_refused(detector: Study, tmp_path: Path) -> None:
    """The errors are small beside the boxes' range: only the scores' own range shows what is lost."""
    made = detector.make("onnx", "fp32")
    whole = joined_graph(tmp_path / "whole.onnx", Path(made.path), 0.0)
    boxes, nms = detector.steps
    study = Study(
        detector.factory,  # what it kept came by other routes: from Keras
        "onnx",
        whole,
        "detection",
        detector.evaluation,
        steps=(
            boxes | {"boxes": "y", "scores": "y", "variances": [v / 8.0 for v in (0.1, 0.1, 0.2, 0.2)]},
            nms,
        ),
    )
    artifact = study.make("onnx", "fp32")
    right = study.examination.judge(artifact, "onnx", "fp32", calibrated=False)
    assert right.gate.verdict == "accepted", right.gate.reasons
    values = study.examination.reference["y"]
    step = float(np.ptp(values)) / 255.0
    crushed = joined_graph(tmp_path / "crushed.onnx", Path(made.path), step)
    broken = replace_file(artifact, crushed)
    blind = replace(study.examination, evaluation=None, evaluated=None, metric=None)
    judged = blind.judge(broken, "onnx", "int8", calibrated=False)
    assert judged.gate.verdict == "refused", judged.gate.parity
    assert any("scores that say something" in reason for reason in judged.gate.reasons)
    as_one = replace(blind, task="other", postprocess=()).judge(broken, "onnx", "int8", calibrated=False)
    assert as_one.gate.verdict == "unproven"  # what a check of the whole output would say


def replace_file(artifact: Converted, path: Path) -> Converted:
    import msgspec

    return msgspec.structs.replace(artifact, path=str(path), files=(str(path),))


def test_a_class_that_is_never_detected_any_more_is_refused(detector: Study, tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    artifact = detector.make("onnx", "fp32")
    proto = onnx.load(artifact.path)
    scores = artifact.output_names.get("scores", "scores")
    for node in proto.graph.node:
        node.output[:] = ["before" if name == scores else name for name in node.output]
    mask = np.ones((1, 1, 10), np.float32)
    mask[..., 3] = 0.0
    proto.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    proto.graph.node.append(helper.make_node("Mul", ["before", "mask"], [scores]))
    path = tmp_path / "blind.onnx"
    onnx.save(proto, path)
    judged = detector.examination.judge(replace_file(artifact, path), "onnx", "int8", calibrated=False)
    assert "class 3 is never answered, though the source answers it" in judged.gate.reasons
    assert judged.gate.metric is not None
    assert judged.gate.metric.drop_pp > 5.0


# State


def recurrent(path: Path, decay: float) -> Path:
    """Save a leaky sum: next = decay * h + x, y = tanh(next); one step from zero is the same for any decay."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "decay"], ["kept"]),
            helper.make_node("Add", ["kept", "x"], ["next"]),
            helper.make_node("Tanh", ["next"], ["y"]),
        ],
        "leaky",
        [value("x"), value("h")],
        [value("y"), value("next")],
        [numpy_helper.from_array(decay * np.eye(4, dtype=np.float32), "decay")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module", name="sequence")
def _sequence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    path = recurrent(tmp_path_factory.mktemp("leaky") / "leaky.onnx", 0.98)
    x = np.random.default_rng(0).normal(0.05, 0.1, (205, 4)).astype(np.float32)
    evaluation = Dataset({"x": x}, None, (), "eval.npz")
    with opened_factory(tmp_path_factory.mktemp("factory")) as factory:
        yield Study(
            factory,
            "onnx",
            path,
            "generation",
            evaluation,
            metric="snr",
            calibration=Dataset({"x": x[:60]}, None, (), "calibration.npz"),
            state={"h": "next"},
        )


def test_a_state_is_fed_back_in_source_artifact_and_golden_set(sequence: Study) -> None:
    for format_ in ("onnx", "openvino"):
        artifact = sequence.make(format_, "fp32")
        judged = sequence.examination.judge(artifact, format_, "fp32", calibrated=False)
        assert judged.gate.verdict == "accepted", judged.gate.reasons
        assert judged.gate.parity is not None
        assert judged.gate.parity.n == 205
        assert judged.gate.parity.batch2_error is None
        assert judged.scored.p50_ms > 0.0
    h, x = np.zeros(4), sequence.evaluation.inputs["x"]
    assert sequence.examination.evaluated is not None
    for i in range(20):
        h = 0.98 * h + x[i]
        assert sequence.examination.evaluated["next"][i] == pytest.approx(h, abs=1e-5)
    assert sequence.examination.evaluated["next"][20] == pytest.approx(x[20])
    assert sequence.golden.n == 20
    assert np.array_equal(sequence.golden.inputs["x"], x[:20])


def test_an_error_that_only_the_state_shows_is_refused(sequence: Study, tmp_path: Path) -> None:
    """Every first step is right to the last bit; after twenty the state is off by a fifth."""
    artifact = sequence.make("onnx", "fp32")
    forgetful = replace_file(artifact, recurrent(tmp_path / "forgetful.onnx", 0.9))
    judged = sequence.examination.judge(forgetful, "onnx", "fp32", calibrated=False)
    assert judged.gate.verdict == "refused"
    first = {name: values[::20] for name, values in judged.answers.items()}
    assert sequence.examination.evaluated is not None
    for name, values in sequence.examination.evaluated.items():
        assert np.array_equal(first[name][:11], values[::20])


def test_the_golden_set_of_a_sequence_fails_a_forgetful_artifact(sequence: Study, tmp_path: Path) -> None:
    artifact = sequence.make("onnx", "fp32")
    runtime = get_runtime("onnxruntime")

    def opened(path: str) -> Any:
        files = ModelFiles(
            Path(path), artifact.inputs, artifact.outputs, artifact.input_names, artifact.output_names
        )
        return runtime.load(files, SessionOptions(threads=1))

    session = opened(artifact.path)
    answers = run_sequence(session.run, sequence.golden.inputs, sequence.state, session.inputs)
    tolerance = tolerance_for(answers, sequence.golden, precision="fp32", task="generation")
    for n in (None, 8):
        outcome = run_golden(
            session, sequence.golden, tolerance, task="generation", n=n, state=sequence.state
        )
        assert outcome.passed, outcome.reason
    broken = opened(str(recurrent(tmp_path / "forgetful.onnx", 0.9)))
    assert not run_golden(
        broken, sequence.golden, tolerance, task="generation", n=8, state=sequence.state
    ).passed


def test_static_int8_of_a_stateful_model_calibrates_on_the_states_it_meets(sequence: Study) -> None:
    judged = sequence.judge("onnx", "int8")
    parity = judged.gate.parity
    assert parity is not None
    assert parity.p95_error <= 0.05, judged.gate
    assert parity.snr_db is not None
    assert parity.snr_db > 10.0


# Embedding, segmentation, generation


def convolutions(path: Path, task: str) -> Path:
    """Save a small network with fixed random weights: 28 × 28 pictures in, what the task wants out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)

    def weights(*shape: int) -> np.ndarray:
        values: np.ndarray = random.normal(size=shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        return values.astype(np.float32)

    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=pads, kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c1"], ["r1"]),
    ]
    constants = {"w1": weights(8, 1, 3, 3)}
    ends: dict[str, tuple[list[int], list[Any]]] = {
        "embedding": (
            [16],
            [
                helper.make_node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2], kernel_shape=[3, 3]),
                helper.make_node("Relu", ["c2"], ["r2"]),
                helper.make_node("Flatten", ["r2"], ["flat"]),
                helper.make_node("MatMul", ["flat", "w3"], ["y"]),
            ],
        ),
        "segmentation": (
            [3, 28, 28],
            [helper.make_node("Conv", ["r1", "w4", "b4"], ["y"], pads=pads, kernel_shape=[3, 3])],
        ),
        "generation": (
            [1, 28, 28],
            [helper.make_node("Conv", ["r1", "w5"], ["y"], pads=pads, kernel_shape=[3, 3])],
        ),
    }
    shape, more = ends[task]
    every = {"w2": weights(16, 8, 3, 3), "w3": weights(16, 16 * 13 * 13).T.copy(), "w4": weights(3, 8, 3, 3),
        "b4": np.array([0.5, 0.0, -0.5], np.float32),  # empty pixels must not be a tie
             "w5": weights(1, 8, 3, 3)}  # fmt: skip
    used = {name for node in more for name in node.input}
    constants |= {name: value for name, value in every.items() if name in used}
    graph = helper.make_graph(
        nodes + more,
        task,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(reference_cnn().evaluation) as file:
        images, classes = np.moveaxis(file["image"], -1, 1), file["y"]
    return images[:400], classes[:400]


@pytest.mark.parametrize(
    ("task", "metric", "labelled"),
    [
        ("embedding", "cosine", False),
        ("embedding", "recall@1", True),
        ("segmentation", "miou", True),
        ("generation", "psnr", False),
        ("generation", "ssim", False),
        ("generation", "snr", True),
    ],
)
def test_other_tasks_at_float_and_int8(task: str, metric: str, labelled: bool, tmp_path: Path) -> None:
    images, classes = digits()
    path = convolutions(tmp_path / "net.onnx", task)
    with opened_factory(tmp_path / "factory") as factory:
        targets = factory.run_source("onnx", path, {"x": images})["y"]
        labels = {
            "embedding": classes,
            "segmentation": targets.argmax(axis=1) if targets.ndim == 4 else None,
            "generation": targets + np.random.default_rng(0).normal(0, 0.1, targets.shape),
        }[task]
        study = Study(
            factory,
            "onnx",
            path,
            task,
            Dataset({"x": images}, labels if labelled else None, (), "eval.npz"),
            Dataset({"x": images[:100]}, None, (), "calibration.npz"),
            metric=metric,
        )
        for precision in ("fp32", "int8"):
            judged = study.judge("onnx", precision)
            # recall on 400 samples moves by quarters of a point, too coarse to prove a loss below the budget
            coarse = precision == "int8" and metric == "recall@1"
            assert judged.gate.verdict in (("accepted", "unproven") if coarse else ("accepted",)), judged.gate
            seen = judged.gate.metric
            assert seen is not None
            assert seen.name == metric
            assert seen.drop_pp <= (0.01 if precision == "fp32" else 1.0)
        flat = replace_file(
            study.make("onnx", "fp32"), convolutions_without_weights(path, tmp_path / "dead.onnx")
        )
        dead = study.examination.judge(flat, "onnx", "int8", calibrated=False)
        assert dead.gate.verdict == "refused"


def convolutions_without_weights(path: Path, out: Path) -> Path:
    """Save the network with half of its first filters at zero."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            values = numpy_helper.to_array(tensor).copy()
            values[::2] = 0.0
            tensor.CopyFrom(numpy_helper.from_array(values, "w1"))
    onnx.save(model, out)
    return out

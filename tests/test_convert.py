from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle, open_bundle
from edgekit.convert import ConvertOutcome, ConvertRequest, convert
from edgekit.converters import CONVERTERS
from edgekit.errors import ConversionError, RefusedError, UsageError
from edgekit.gate import Policy
from edgekit.process import WorkerLimits
from tests.conversions import (
    command,
    converted_twice,
    data_options,
    environment,
    reference_onnx,
    run_main,
)
from tests.corpus import ROOT, ReferenceCnn

pytestmark = pytest.mark.convert

TARGETS = ("raspberry-pi-4", "jetson", "intel-npu")


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see what conversions leave in the folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))


@pytest.fixture(name="cnn")
def _cnn(reference_cnn: ReferenceCnn) -> ReferenceCnn:
    return reference_cnn


@pytest.fixture(name="out")
def _out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def part(path: Path, source: Path, rows: slice | np.ndarray, scale: float = 1.0) -> Path:
    """Write some rows of a data file, its images scaled."""
    data = {name: values[rows] for name, values in arrays(source).items()}
    data["image"] = (data["image"] * scale).astype(np.float32)
    np.savez(path, **data)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    return path


def request(cnn: ReferenceCnn, out: Path, **changes: Any) -> ConvertRequest:
    """Return the request for static int8 ONNX from the reference CNN's ONNX, which needs no TensorFlow."""
    usual: dict[str, Any] = {
        "model": reference_onnx(),
        "target": "jetson",
        "out": out,
        "calibration": cnn.calibration,
        "evaluation": cnn.evaluation,
    }
    return ConvertRequest(**{**usual, **changes})


def statuses(outcome: ConvertOutcome) -> dict[str, str]:
    return {row.name: row.status for row in outcome.rows}


def report_of(out: Path) -> dict[str, Any]:
    """Return the report, by artifact under `artifacts`."""
    data: dict[str, Any] = json.loads((out.with_name(out.name + ".report") / "report.json").read_text())
    page = (out.with_name(out.name + ".report") / "report.html").read_text(encoding="utf-8")
    metric = next((row["metric"]["name"] for row in data["artifacts"] if row["metric"]), "metric")
    assert f">{metric}, source</th>" in page
    assert f">{metric}, artifact</th>" in page
    data["artifacts"] = {row["artifact"]: row for row in data["artifacts"]}
    return data


def refused(asked: ConvertRequest, words: str) -> dict[str, Any]:
    """Convert what must be refused with exit code 4; return the artifacts of its report."""
    with pytest.raises(RefusedError, match=words) as error:
        convert(asked)
    assert error.value.exit_code == 4
    assert "report is in" in str(error.value)
    assert not asked.out.exists()
    left = report_of(asked.out)
    assert left["plan"] is None
    assert left["digest"] is None
    rows: dict[str, Any] = left["artifacts"]
    return rows


# What comes out


@pytest.mark.parametrize("target", TARGETS)
def test_twice_in_two_processes_is_the_same_digest(target: str) -> None:
    first, second = converted_twice(target)
    assert first.digest == second.digest
    assert first.manifest == second.manifest


@pytest.mark.parametrize("target", TARGETS)
def test_the_reference_cnn_is_accepted_for_every_target(target: str) -> None:
    bundle, _ = converted_twice(target)
    for name, artifact in bundle.manifest.artifacts.items():
        gate = artifact.gate
        assert gate.verdict == "accepted", name
        assert gate.metric is not None
        assert gate.metric.n == 1000
        assert abs(gate.metric.drop_pp) <= 0.5
        assert gate.metric.bound_pp <= 1.0
        assert gate.parity is not None
        assert gate.parity.n == 256
        assert gate.parity.batch2_error is None or gate.parity.batch2_error < 1e-4


def size(bundle: Bundle, name: str) -> int:
    return sum(bundle.manifest.files[file].bytes for file in bundle.manifest.artifacts[name].files)


def test_int8_is_under_a_third_of_the_size() -> None:
    pi, npu = converted_twice("raspberry-pi-4")[0], converted_twice("intel-npu")[0]
    assert size(pi, "tflite-int8") <= 0.30 * size(pi, "tflite-fp32")
    assert size(pi, "onnx-int8") <= 0.30 * size(pi, "onnx-fp32")
    assert size(npu, "openvino-int8") <= 0.30 * size(npu, "openvino-fp32")


def test_the_jetson_bundle_suits_tensorrt() -> None:
    bundle, _ = converted_twice("jetson")
    plan, artifacts = bundle.manifest.plan, bundle.manifest.artifacts
    assert set(artifacts) == {"onnx-fp32", "onnx-fp16", "onnx-int8"}
    assert plan.artifact == "onnx-fp16"
    assert plan.providers == (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    )
    assert artifacts["onnx-int8"].recipe.options["symmetric_activations"] is True


def test_a_bundle_holds_no_measured_time(cnn: ReferenceCnn) -> None:
    bundle, _ = converted_twice("raspberry-pi-4")
    manifest = (bundle.root / "manifest.json").read_text()
    assert "p50" not in manifest
    assert "seconds" not in manifest
    report = report_of(bundle.root)
    assert report["digest"] == bundle.digest
    assert report["source"]["sha256"] == bundle.manifest.source.sha256
    assert all(row["p50_ms"] > 0 and row["p50_place"] == "host" for row in report["artifacts"].values())
    assert bundle.manifest.labels == tuple(cnn.labels.read_text().split())


def test_names_and_names_of_classes_are_the_sources() -> None:
    bundle, _ = converted_twice("raspberry-pi-4")
    assert [(spec.name, spec.dtype, spec.shape) for spec in bundle.manifest.inputs] == [
        ("image", "float32", (-1, 28, 28, 1))
    ]
    assert [(spec.name, spec.shape) for spec in bundle.manifest.outputs] == [("output_0", (-1, 10))]
    assert bundle.manifest.task == "classification"
    assert (bundle.manifest.name, bundle.manifest.version) == ("digits", 1)


def test_a_saved_model_gives_what_its_keras_file_gives(cnn: ReferenceCnn, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    script = (
        "import sys, keras\n"
        "keras.saving.load_model(sys.argv[1]).export(sys.argv[2], format='tf_saved_model', verbose=False)"
    )
    words = [command()[0], "-c", script, str(cnn.model), str(folder)]
    subprocess.run(words, check=True, capture_output=True, env=environment())
    small = part(tmp_path / "eval.npz", cnn.evaluation, slice(300))
    outcome = convert(
        request(
            cnn,
            out,
            model=folder,
            target="raspberry-pi-4",
            precisions=("fp32",),
            evaluation=small,
            name="saved",
            version=3,
        )
    )
    assert statuses(outcome) == {"tflite-fp32": "accepted", "onnx-fp32": "accepted"}
    assert (outcome.bundle.manifest.name, outcome.bundle.manifest.version) == ("saved", 3)
    assert outcome.bundle.manifest.source.kind == "savedmodel"
    from_keras = converted_twice("raspberry-pi-4")[0]
    for file in ("artifacts/tflite-fp32/model.tflite", "artifacts/onnx-fp32/model.onnx"):
        assert outcome.bundle.manifest.files[file].bytes == pytest.approx(
            from_keras.manifest.files[file].bytes, rel=0.01
        )


def test_an_onnx_source_gives_the_artifacts_that_keras_gave(cnn: ReferenceCnn, out: Path) -> None:
    outcome = convert(request(cnn, out))
    assert statuses(outcome) == dict.fromkeys(("onnx-fp32", "onnx-fp16", "onnx-int8"), "accepted")
    from_keras = converted_twice("jetson")[0].manifest.files
    for file in ("onnx-fp32", "onnx-fp16", "onnx-int8"):
        path = f"artifacts/{file}/model.onnx"
        assert outcome.bundle.manifest.files[path].sha256 == from_keras[path].sha256
    assert outcome.bundle.manifest.source.kind == "onnx"


def test_a_zip_is_the_same_bundle(cnn: ReferenceCnn, tmp_path: Path) -> None:
    quick = {"precisions": ("fp32",), "calibration": None}
    folder = convert(request(cnn, tmp_path / "bundle", **quick))
    packed = convert(request(cnn, tmp_path / "bundle.edgekit", **quick))
    assert (tmp_path / "bundle.edgekit").is_file()
    assert packed.bundle.digest == folder.bundle.digest
    assert open_bundle(tmp_path / "bundle.edgekit").digest == folder.bundle.digest
    assert packed.report == tmp_path / "bundle.report"


def test_nothing_but_the_bundle_and_its_report_is_left(cnn: ReferenceCnn, out: Path, tmp_path: Path) -> None:
    convert(request(cnn, out, precisions=("fp32",), calibration=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.report", "temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []


# The gate says no


def test_unscaled_calibration_is_refused(
    cnn: ReferenceCnn, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unscaled = part(tmp_path / "calibration.npz", cnn.calibration, slice(None), 255.0)
    said = run_main(
        [
            "convert", cnn.model, "-t", "raspberry-pi-4", "-o", out, "--format", "tflite", "--precision", "int8",
            *data_options(calibration=unscaled),
        ],
        capsys,
    )  # fmt: skip
    assert said.code == 4
    assert "tflite-int8 was asked for and refused: " in said.line
    rows = report_of(out)["artifacts"]
    assert not out.exists()
    (reason,) = [r for r in rows["tflite-int8"]["reasons"] if "calibration does not fit" in r]
    assert "input 'image' spans [0, 25" in reason
    assert "is one of them not scaled?" in reason


def test_unscaled_evaluation_data_is_refused_and_what_needs_no_calibration_remains(
    cnn: ReferenceCnn, out: Path, tmp_path: Path
) -> None:
    unscaled = part(tmp_path / "eval.npz", cnn.evaluation, slice(300), 255.0)
    outcome = convert(request(cnn, out, evaluation=unscaled))
    assert statuses(outcome) == {"onnx-fp32": "accepted", "onnx-fp16": "accepted", "onnx-int8": "refused"}
    (reason,) = [r for r in outcome.rows[2].reasons if r.startswith("calibration does not fit")]
    assert "spans [0, 0.99" in reason
    assert "in calibration and [0, 25" in reason
    assert set(outcome.bundle.manifest.artifacts) == {"onnx-fp32", "onnx-fp16"}
    assert not (out / "artifacts" / "onnx-int8").exists()


def test_a_source_below_the_least_metric_leaves_nothing(
    cnn: ReferenceCnn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_main(
        ["convert", reference_onnx(), "-t", "jetson", "-o", out, *data_options(), "--min-metric", "0.999"], capsys
    )  # fmt: skip
    assert said.code == 4
    assert "no artifact was accepted: onnx-fp32: the source itself has top1 0.98" in said.line
    assert "--min-metric is 0.999" in said.line
    rows = report_of(out)["artifacts"]
    assert {row["status"] for row in rows.values()} == {"refused"}
    assert not out.exists()


@pytest.fixture(name="doubles")
def _doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Give the table of converters to change; workers find the doubles."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    table = dict(CONVERTERS)
    yield CONVERTERS
    CONVERTERS.clear()
    CONVERTERS.update(table)


def test_a_constant_and_two_swapped_classes_are_refused(
    cnn: ReferenceCnn, out: Path, doubles: dict[str, str]
) -> None:
    doubles["keras-tflite"] = "tests.doubles:ConstantTflite"
    doubles["keras-onnx"] = "tests.doubles:SwappedClassesOnnx"
    rows = refused(request(cnn, out, model=cnn.model, target="raspberry-pi-4"), "no artifact was accepted")
    assert {row["status"] for row in rows.values()} == {"refused"}
    for name, row in rows.items():
        if name.startswith("tflite"):
            assert "an output is the same whatever goes in, while the source's varies" in row["reasons"]
    assert any("largest error" in reason for reason in rows["onnx-fp32"]["reasons"])
    assert any(reason.startswith("argmax agrees on ") for reason in rows["onnx-int8"]["reasons"])
    assert rows["onnx-int8"]["metric"]["drop_pp"] > 15.0


def test_int8_that_loses_is_refused_and_float_ships(cnn: ReferenceCnn, out: Path, tmp_path: Path) -> None:
    """One unit a thousand times the others: the same function in float, none left in eight bits."""
    model, files = tmp_path / "outlier.keras", tmp_path / "truth"
    script = ROOT / "tests" / "outlier_net.py"
    words = [command()[0], str(script), str(cnn.model), str(cnn.calibration), str(model), str(files)]
    subprocess.run(words, check=True, capture_output=True, env=environment())
    truth = _true_accuracy(files, cnn)
    assert truth["fp32"] > 0.97
    assert truth["fp32"] - truth["int8"] >= 0.02
    outcome = convert(request(cnn, out, model=model, target="raspberry-pi-4", formats=("tflite",)))
    assert statuses(outcome) == {
        "tflite-fp32": "accepted",
        "tflite-int8": "refused",
        "tflite-int8-dynamic": "accepted",  # by its weights alone
        "tflite-int16x8": "accepted",  # these two stand in for the int8 that no rung could save
        "tflite-fp16": "accepted",
    }
    row = next(row for row in outcome.rows if row.name == "tflite-int8")
    assert len(row.attempts) > 1
    plain = row.attempts[0]
    assert plain.metric is not None
    assert plain.metric.source - plain.metric.artifact == pytest.approx(
        truth["fp32"] - truth["int8"], abs=0.005
    )
    rows = refused(
        request(
            cnn,
            tmp_path / "named",
            model=model,
            target="raspberry-pi-4",
            formats=("tflite",),
            precisions=("fp32", "int8"),
            recipes={"tflite-int8": plain.recipe},
        ),
        "tflite-int8 was asked for and refused: ",
    )
    assert (rows["tflite-fp32"]["status"], rows["tflite-int8"]["status"]) == ("accepted", "refused")


def _true_accuracy(folder: Path, cnn: ReferenceCnn) -> dict[str, float]:
    """Return the top-1 of TFLite files on the held-out digits, by LiteRT alone."""
    from ai_edge_litert.interpreter import Interpreter

    data, found = arrays(cnn.evaluation), {}
    for file in folder.glob("*.tflite"):
        interpreter = Interpreter(model_path=str(file))
        interpreter.allocate_tensors()
        takes, gives = (
            interpreter.get_input_details()[0]["index"],
            interpreter.get_output_details()[0]["index"],
        )
        right = 0
        for image, label in zip(data["image"], data["y"], strict=True):
            interpreter.set_tensor(takes, image[None])
            interpreter.invoke()
            right += int(interpreter.get_tensor(gives).argmax()) == int(label)
        found[file.stem] = right / len(data["y"])
    return found


def test_forty_samples_prove_nothing_and_say_how_many_would(
    cnn: ReferenceCnn, out: Path, tmp_path: Path
) -> None:
    few = part(tmp_path / "eval.npz", cnn.evaluation, slice(0, 1000, 25))
    outcome = convert(request(cnn, out, evaluation=few))
    assert statuses(outcome) == {"onnx-fp32": "accepted", "onnx-fp16": "accepted", "onnx-int8": "unproven"}
    row = next(row for row in outcome.rows if row.name == "onnx-int8")
    assert row.gate is not None
    assert row.gate.metric is not None
    assert (row.gate.metric.n, row.gate.metric.needed_n) == (40, 268)
    assert "40 samples are too few for a budget of 1 pp, about 268 samples would decide" in row.reasons[0]
    assert outcome.bundle.manifest.artifacts["onnx-int8"].gate.verdict == "unproven"
    assert outcome.plan.artifact == "onnx-fp16"


def test_strict_refuses_what_is_unproven(cnn: ReferenceCnn, out: Path, tmp_path: Path) -> None:
    few = part(tmp_path / "eval.npz", cnn.evaluation, slice(0, 1000, 25))
    rows = refused(
        request(cnn, out, evaluation=few, precisions=("int8",), policy=Policy(strict=True)),
        "onnx-int8 was asked for and refused: top1 drops",
    )
    assert rows["onnx-int8"]["reasons"][-1] == "--strict refuses what is unproven"


def test_unproven_alone_ships_only_when_allowed(cnn: ReferenceCnn, tmp_path: Path) -> None:
    """Asked for by name and not refused: there is a bundle, but no plan may choose it unasked."""
    alone = {"precisions": ("int8",), "evaluation": None}
    outcome = convert(request(cnn, tmp_path / "allowed", **alone, allow_unproven=True))
    assert statuses(outcome) == {"onnx-int8": "unproven"}
    assert outcome.plan.artifact == "onnx-int8"
    assert "accuracy not measured: no --eval" in outcome.notes


def test_no_data_means_no_static_int8_and_no_measured_accuracy(
    cnn: ReferenceCnn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_main(["convert", reference_onnx(), "--target", "jetson", "-o", out], capsys)
    assert said.code == 0
    assert "onnx-int8: static int8 needs --calibration" in said.out
    assert "note: accuracy not measured: no --eval" in said.out
    assert "note: no data at all: parity on seeded random inputs in [0, 1)" in said.out
    bundle = open_bundle(out)
    assert set(bundle.manifest.artifacts) == {"onnx-fp32", "onnx-fp16"}
    assert all(a.gate.metric is None for a in bundle.manifest.artifacts.values())
    assert bundle.manifest.golden.origin == "synthetic"


def test_a_budget_nothing_can_meet_leaves_int8_unproven(cnn: ReferenceCnn, out: Path) -> None:
    outcome = convert(request(cnn, out, policy=Policy(max_drop_pp=0.0)))
    assert statuses(outcome)["onnx-int8"] == "unproven"
    assert statuses(outcome)["onnx-fp16"] == "accepted"


def test_the_next_route_is_taken_when_the_first_is_refused_or_fails(
    cnn: ReferenceCnn, out: Path, doubles: dict[str, str]
) -> None:
    whole = dict(doubles)
    for name in whole:
        del doubles[name]
    doubles["swapped"] = "tests.doubles:SwappedClassesFromOnnx"
    doubles["failing"] = "tests.doubles:FailingOnnx"
    doubles.update(whole)
    outcome = convert(request(cnn, out, precisions=("fp32",)))
    (row,) = outcome.rows
    assert (row.status, row.recipe and row.recipe.route) == ("accepted", ("onnx-fp32",))
    assert len(row.reasons) == 3
    assert row.reasons[1].startswith("refused by swapped: largest error")
    assert row.reasons[2] == "failed by failing: no luck with fp32"


def test_the_last_routes_failure_is_told_with_the_others(
    cnn: ReferenceCnn, out: Path, doubles: dict[str, str]
) -> None:
    doubles["onnx-fp32"] = "tests.doubles:SwappedClassesFromOnnx"
    doubles["second"] = "tests.doubles:FailingOnnx"
    with pytest.raises(RefusedError, match="onnx-fp32 was asked for and refused: largest error"):
        convert(request(cnn, out, precisions=("fp32",)))
    row = report_of(out)["artifacts"]["onnx-fp32"]
    assert "failed by second: no luck with fp32" in row["reasons"]
    assert [attempt["status"] for attempt in row["attempts"]] == ["refused", "failed"]


def test_layers_that_cannot_be_measured_cost_nothing_else(
    cnn: ReferenceCnn, out: Path, doubles: dict[str, str]
) -> None:
    doubles["onnx-int8"] = "tests.doubles:DyingLayers"
    outcome = convert(request(cnn, out, precisions=("int8",)))
    (row,) = outcome.rows
    assert (row.status, row.layers) == ("accepted", {})


def test_a_graph_that_was_simplified_wrongly_is_refused(
    out: Path, tmp_path: Path, doubles: dict[str, str]
) -> None:
    """It loads, runs and has the right shapes; only its columns come in the other order."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ends = {"starts": [-1], "ends": [-(1 << 31)], "axes": [1], "steps": [-1]}
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", *ends], ["s"]), helper.make_node("Mul", ["s", "w"], ["y"])],
        "reversed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in ends.items()),
            numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "reversed.onnx"))
    asked = ConvertRequest(tmp_path / "reversed.onnx", "x86-64", out, formats=("onnx",), precisions=("fp32",))
    assert statuses(convert(asked)) == {"onnx-fp32": "accepted"}
    doubles["onnx-fp32"] = "tests.doubles:SimplifiedOnnx"
    refused(replace(asked, out=tmp_path / "wrong"), "onnx-fp32 was asked for and refused: largest error is ")


# Tasks and labels


def test_outputs_that_the_metric_cannot_read_are_told_before_any_work(
    cnn: ReferenceCnn, out: Path, tmp_path: Path, doubles: dict[str, str]
) -> None:
    doubles["onnx-fp32"] = "tests.doubles:SleepingFp16"  # converting would take ten minutes
    data = arrays(cnn.evaluation)
    boxes = np.tile(np.array([0, 0, 1, 1, 3], np.float32), (len(data["y"]), 1, 1))
    np.savez(tmp_path / "eval.npz", image=data["image"], y=boxes)
    with pytest.raises(UsageError, match="the outputs hold no detections"):
        convert(request(cnn, out, evaluation=tmp_path / "eval.npz", task="detection"))
    assert not out.with_name(out.name + ".report").exists()


def test_labels_outside_the_models_classes_are_named(cnn: ReferenceCnn, out: Path, tmp_path: Path) -> None:
    data = arrays(cnn.evaluation)
    np.savez(tmp_path / "eval.npz", image=data["image"], y=data["y"] + 1)
    with pytest.raises(
        UsageError, match=r"label \d+ is no class: got 10, expected a whole number from 0 to 9"
    ):
        convert(request(cnn, out, evaluation=tmp_path / "eval.npz"))


@pytest.mark.parametrize(("option", "value"), [("metric", "top1"), ("policy", Policy(min_metric=0.5))])
def test_an_option_that_needs_labels_says_so(cnn: ReferenceCnn, out: Path, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=r"metric needs labelled data. Give --eval"):
        convert(request(cnn, out, evaluation=None, **{option: value}))


def test_a_metric_of_another_task_is_refused(cnn: ReferenceCnn, out: Path) -> None:
    with pytest.raises(UsageError, match="metric 'mae' is not for the task 'classification'"):
        convert(request(cnn, out, metric="mae"))


def test_other_metrics_judge_too(cnn: ReferenceCnn, out: Path) -> None:
    outcome = convert(request(cnn, out, metric="macro_f1", precisions=("int8",)))
    (row,) = outcome.rows
    assert row.gate is not None
    assert row.gate.metric is not None
    assert row.gate.metric.name == "macro_f1"
    assert row.status == "accepted"


def tiny_onnx(path: Path, kind: str) -> None:
    """Write a one-layer model of four features: `sigmoid` answers [N, 1] in (0, 1), `linear` any number."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((4, 1)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["score"])]
    nodes.append(helper.make_node("Sigmoid" if kind == "sigmoid" else "Identity", ["score"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def tiny_data(path: Path, labels: str) -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((1000, 4)).astype(np.float32)
    score = x @ np.random.default_rng(0).standard_normal((4, 1)).astype(np.float32)[:, 0]
    if labels == "classes":
        clear = np.abs(score) > 0.5  # eight bits may rightly turn what lies on the line
        np.savez(path, x=x[clear], y=(score[clear] > 0).astype(np.int64))
    else:
        np.savez(path, x=x, y=score)


def test_a_single_sigmoid_tells_two_classes(out: Path, tmp_path: Path, doubles: dict[str, str]) -> None:
    tiny_onnx(tmp_path / "tiny.onnx", "sigmoid")
    tiny_data(tmp_path / "data.npz", "classes")
    asked = ConvertRequest(
        model=tmp_path / "tiny.onnx",
        target="jetson",
        out=out,
        task="classification",
        calibration=tmp_path / "data.npz",
        evaluation=tmp_path / "data.npz",
    )
    outcome = convert(asked)
    assert set(statuses(outcome).values()) == {"accepted"}
    gate = outcome.bundle.manifest.artifacts["onnx-int8"].gate
    assert gate.metric is not None
    assert (gate.metric.name, gate.metric.source) == ("top1", 1.0)
    doubles["onnx-int8"] = "tests.doubles:NegatedInt8"
    second = convert(changed(asked, out=tmp_path / "second"))
    row = next(row for row in second.rows if row.name == "onnx-int8")
    assert row.status == "refused"
    assert any("argmax agrees on 0.0%" in reason for reason in row.reasons)


def changed(asked: ConvertRequest, **changes: Any) -> ConvertRequest:
    import dataclasses

    return dataclasses.replace(asked, **changes)


def test_a_regression_is_judged_by_its_error(out: Path, tmp_path: Path) -> None:
    tiny_onnx(tmp_path / "tiny.onnx", "linear")
    tiny_data(tmp_path / "data.npz", "targets")
    outcome = convert(
        ConvertRequest(
            model=tmp_path / "tiny.onnx",
            target="jetson",
            out=out,
            calibration=tmp_path / "data.npz",
            evaluation=tmp_path / "data.npz",
        )
    )
    assert outcome.task == "regression"
    assert set(statuses(outcome).values()) == {"accepted"}
    gate = outcome.bundle.manifest.artifacts["onnx-int8"].gate
    assert gate.metric is not None
    assert gate.metric.name == "mae"
    assert 0.0 < gate.metric.drop_pp < 1.0


# Workers that die


def test_a_worker_killed_during_one_recipe_leaves_that_row_and_makes_the_others(
    cnn: ReferenceCnn, out: Path, tmp_path: Path, doubles: dict[str, str]
) -> None:
    doubles["onnx-fp32"] = "tests.doubles:KilledAtFp16"
    del doubles["onnx-fp16"]  # or this route would be taken next
    outcome = convert(request(cnn, out, precisions=(), formats=("onnx",)))
    assert statuses(outcome) == {"onnx-fp32": "accepted", "onnx-fp16": "failed", "onnx-int8": "accepted"}
    row = next(row for row in outcome.rows if row.name == "onnx-fp16")
    assert row.reasons[0].startswith("the worker was killed by SIGKILL")
    assert not list(out.glob("artifacts/onnx-fp16*"))
    assert set(open_bundle(out).manifest.artifacts) == {"onnx-fp32", "onnx-int8"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.report", "temporary"]


def test_killed_for_a_precision_asked_for_by_name_is_exit_3_and_no_bundle(
    cnn: ReferenceCnn, out: Path, doubles: dict[str, str]
) -> None:
    doubles["onnx-fp32"] = "tests.doubles:KilledAtFp16"
    del doubles["onnx-fp16"]
    with pytest.raises(
        ConversionError, match="onnx-fp16 was asked for and failed: the worker was killed"
    ) as error:
        convert(request(cnn, out, precisions=("fp32", "fp16")))
    assert error.value.exit_code == 3
    assert not out.exists()
    assert report_of(out)["artifacts"]["onnx-fp32"]["status"] == "accepted"


def test_a_recipe_over_the_time_limit_is_stopped_once(
    cnn: ReferenceCnn, out: Path, tmp_path: Path, doubles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_TEST_STARTS", str(tmp_path / "starts"))
    doubles["onnx-fp16"] = "tests.doubles:SleepingFp16"
    outcome = convert(request(cnn, out, calibration=None, evaluation=None, limits=WorkerLimits(time_s=8.0)))
    assert statuses(outcome) == {"onnx-fp32": "accepted", "onnx-fp16": "failed", "onnx-int8": "skipped"}
    row = next(row for row in outcome.rows if row.name == "onnx-fp16")
    assert "was stopped at the time limit of 8 s" in row.reasons[0]
    assert (tmp_path / "starts").read_text() == "x"


def test_a_recipe_over_the_memory_limit_is_stopped(
    cnn: ReferenceCnn, out: Path, doubles: dict[str, str]
) -> None:
    doubles["onnx-fp16"] = "tests.doubles:GreedyFp16"
    outcome = convert(
        request(cnn, out, calibration=None, evaluation=None, limits=WorkerLimits(memory_mib=1500.0))
    )
    assert statuses(outcome) == {"onnx-fp32": "accepted", "onnx-fp16": "failed", "onnx-int8": "skipped"}
    row = next(row for row in outcome.rows if row.name == "onnx-fp16")
    assert "was stopped at the memory limit of 1500 MiB" in row.reasons[0]


def test_a_converter_that_makes_less_than_it_was_asked_for_fails(
    cnn: ReferenceCnn, out: Path, doubles: dict[str, str]
) -> None:
    doubles["onnx-fp16"] = "tests.doubles:LazyFp16"
    outcome = convert(request(cnn, out, calibration=None, evaluation=None))
    row = next(row for row in outcome.rows if row.name == "onnx-fp16")
    assert (row.status, row.reasons[0]) == ("failed", "converter onnx-fp16 made no onnx-fp16")


# Ctrl-C


def workers_of(folder: Path) -> list[int]:
    """Return the processes whose working folder is inside `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = str((process / "cwd").readlink()).startswith(str(folder))
        except OSError:
            continue
        if inside:
            found.append(int(process.name))
    return found


def wait_for(condition: Any, what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("moment", "by", "code"),
    [
        ("describing", signal.SIGINT, 130),
        ("converting", signal.SIGINT, 130),
        ("converting", signal.SIGTERM, 143),
    ],
)
def test_being_told_to_end_leaves_nothing_behind(
    cnn: ReferenceCnn, out: Path, tmp_path: Path, moment: str, by: signal.Signals, code: int
) -> None:
    """A converter that would sleep for ten minutes must not hold the command back."""
    temporary, flag = tmp_path / "temporary", tmp_path / "asleep"
    script = (
        "import sys\nfrom edgekit.cli import main\nfrom edgekit.converters import CONVERTERS\n"
        "CONVERTERS['onnx-fp32'] = 'tests.doubles:AsleepOnnx'\n"
        "sys.argv[0] = 'edgekit'\nmain()\n"
    )
    words = [command()[0], "-c", script, "convert", str(reference_onnx()), "-t", "jetson", "-o", str(out)]
    child = subprocess.Popen(
        [*words, *data_options()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(EDGEKIT_TEST_FLAG=str(flag)),
        start_new_session=True,
    )
    wait_for(lambda: workers_of(temporary) if moment == "describing" else flag.exists(), moment)
    os.killpg(child.pid, by)
    said, error = child.communicate(timeout=30)
    assert child.returncode == code, error
    assert error.strip().splitlines()[-1:] == (["edgekit: interrupted"] if by == signal.SIGINT else [])
    assert "Traceback" not in error + said
    assert not out.exists()
    assert list(temporary.iterdir()) == []
    wait_for(lambda: not workers_of(temporary), "the workers to end", 10.0)
    assert sorted(path.name for path in tmp_path.iterdir() if path != flag) == ["temporary"]

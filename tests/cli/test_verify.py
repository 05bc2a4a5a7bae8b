from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.bundle import pack, slice_bundle, write_bundle
from edgekit.golden import GoldenSet, encode_golden
from edgekit.manifest import Golden, Plan
from tests.bundle_samples import artifact, files, golden, manifest, write
from tests.cli.running import Ran, edgekit

pytestmark = pytest.mark.device

Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return partial(edgekit, capsys, monkeypatch, "verify")


@pytest.mark.parametrize("kind", ["folder", "archive", "slice"])
def test_a_whole_bundle_passes(run: Run, tmp_path: Path, kind: str) -> None:
    bundle = write(tmp_path / "b")
    path = {
        "folder": lambda: bundle.root,
        "archive": lambda: pack(bundle, tmp_path / "b.edgekit"),
        "slice": lambda: slice_bundle(bundle, ["tflite-fp32"], tmp_path / "s").root,
    }[kind]()
    done = run(path, "--runtime", "null")
    assert done.code == 0, done.err
    assert bundle.digest in done.out
    assert f"hashes: {5 if kind == 'slice' else 7} files are what the manifest says" in done.out
    assert "golden set: passed, 32 samples" in done.out


def test_json(run: Run, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    data = run(bundle.root, "--runtime", "null", "--json").data
    assert list(data) == [
        "path",
        "name",
        "version",
        "digest",
        "hashes",
        "files",
        "plan",
        "placement",
        "golden",
    ]
    assert data["digest"] == bundle.digest
    assert (data["plan"]["runtime"], data["plan"]["artifact"]) == ("null", "tflite-fp32")
    golden_result = data["golden"]
    assert golden_result.pop("reason")
    assert golden_result == {"passed": True, "n": 32, "max_error": 0.0, "agreement": 32}


def test_hashes_only_runs_nothing(run: Run, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    done = run(bundle.root, "--hashes-only")
    assert done.code == 0
    assert "golden set" not in done.out
    data = run(bundle.root, "--hashes-only", "--json").data
    assert data["plan"] is data["golden"] is data["placement"] is None
    done = run(bundle.root, "--hashes-only", "--runtime", "null")
    assert done.code == 2
    assert "--hashes-only runs nothing, so --runtime has no meaning" in done.err


@pytest.mark.parametrize(
    "name", ["manifest.json", "golden.npz", "reference.json", "artifacts/onnx-fp16/weights.bin"]
)
def test_one_flipped_byte(run: Run, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "b").root / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = run(tmp_path / "b", "--runtime", "null")
    assert (done.code, done.out) == (6, "")
    assert name in done.err
    assert done.err.count("\n") == 1


def test_a_device_that_is_not_here(run: Run, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    done = run(bundle.root, "--device", "jetson-orin-nano", "--runtime", "onnxruntime")
    assert done.code == 5
    assert "--allow-fallback" in done.err or "edgekit-deploy[onnx]" in done.err
    done = run(bundle.root, "--device", "toaster")
    assert done.code == 2
    done = run(bundle.root, "--allow-fallback")
    assert done.code == 2
    assert "--allow-fallback has no meaning here" in done.err
    done = run(bundle.root, "--runtime", "tensorrt")
    assert done.code == 2
    done = run(bundle.root, "--runtime", "null", "--artifact", "nope")
    assert done.code == 2


def test_another_artifact(run: Run, tmp_path: Path) -> None:
    done = run(write(tmp_path / "b").root, "--runtime", "null", "--artifact", "onnx-fp16", "--json")
    assert done.data["plan"]["artifact"] == "onnx-fp16"


def test_no_tolerance_is_a_fault_of_the_bundle(run: Run, tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", golden=Golden(32, "real", {}))
    done = run(bundle.root, "--runtime", "null")
    assert done.code == 6
    assert "no golden tolerance of tflite-fp32" in done.err


def linear_onnx(weights: np.ndarray) -> bytes:
    helper = pytest.importorskip("onnx.helper")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    kinds = pytest.importorskip("onnx").TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "quadrants",
        [helper.make_tensor_value_info("image", kinds.FLOAT, ["n", 4, 4, 1])],
        [helper.make_tensor_value_info("probabilities", kinds.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made: bytes = model.SerializeToString()
    return made


def quadrant_weights() -> np.ndarray:
    weights = np.zeros((4, 4, 3), np.float32)
    weights[:2, :2, 0] = weights[2:, :2, 1] = weights[:2, 2:, 2] = 2.0
    return weights.reshape(16, 3)


def onnx_bundle(out: Path, weights: np.ndarray, chosen: GoldenSet | None = None) -> Path:
    chosen = chosen or golden()
    path = "artifacts/onnx-fp32/model.onnx"
    made: dict[str, Any] = {"onnx-fp32": artifact("onnx-fp32", path=path, files=(path,))}
    whole = manifest(chosen, ("onnx-fp32",), artifacts=made, plan=Plan("x86-64", "onnx-fp32", "onnxruntime"))
    contents = files(chosen, whole) | {path: linear_onnx(weights), "golden.npz": encode_golden(chosen)}
    return write_bundle(out, whole, contents).root


@pytest.mark.convert
def test_a_real_model_in_a_real_runtime(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run(onnx_bundle(tmp_path / "right", quadrant_weights()), "--runtime", "onnxruntime", "--json")
    assert done.code == 0, done.err
    assert done.data["golden"]["max_error"] < 1e-5
    assert "CPUExecutionProvider" in done.data["placement"]


@pytest.mark.convert
def test_a_real_model_that_is_wrong_is_refused(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    swapped = quadrant_weights()[:, [1, 0, 2]]
    done = run(onnx_bundle(tmp_path / "wrong", swapped), "--runtime", "onnxruntime")
    assert done.code == 4
    assert "golden set: failed" in done.out
    assert "the golden set fails with onnx-fp32 in onnxruntime" in done.err
    done = run(tmp_path / "wrong", "--runtime", "onnxruntime", "--json")
    assert (done.code, done.data["golden"]["passed"]) == (4, False)


@pytest.mark.convert
def test_nan_is_refused_and_its_json_is_json(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run(
        onnx_bundle(tmp_path / "nan", quadrant_weights() * np.nan), "--runtime", "onnxruntime", "--json"
    )
    assert done.code == 4
    assert msgspec.json.decode(done.out)["golden"]["max_error"] is None

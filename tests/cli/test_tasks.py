"""Bundles of other tasks on the command line: what their steps and their state make of raw outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import write_bundle
from edgekit.golden import GoldenSet
from edgekit.manifest import Golden, GoldenTolerance
from edgekit.tensors import TensorSpec
from tests.bundle_samples import INPUT, artifact, files, manifest, samples
from tests.cli.running import Ran, edgekit

pytestmark = pytest.mark.device

Run = Callable[..., Ran]
NAME = "tflite-fp32"
STEPS: tuple[dict[str, Any], ...] = (
    {
        "kind": "boxes",
        "boxes": "boxes",
        "scores": "scores",
        "coding": "cxcywh",
        "size": [200, 100],
        "activation": "sigmoid",
    },
    {"kind": "nms", "iou": 0.5, "score_threshold": 0.3, "max_per_image": 5},
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return partial(edgekit, capsys, monkeypatch)


def write(
    out: Path,
    task: str,
    inputs: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    specs: tuple[TensorSpec, ...] = (INPUT,),
    **changes: Any,
) -> Path:
    """Write a bundle whose golden set, which `null` answers, is all of the data."""
    n = len(next(iter(inputs.values())))
    chosen = GoldenSet(inputs, outputs, "real")
    gives = tuple(TensorSpec(name, str(a.dtype), (-1, *a.shape[1:])) for name, a in outputs.items())
    made = manifest(
        chosen,
        task=task,
        inputs=specs,
        outputs=gives,
        artifacts={NAME: artifact(NAME, inputs=specs, outputs=gives)},
        golden=Golden(n, "real", {NAME: GoldenTolerance(0.01)}),
        **changes,
    )
    return write_bundle(out, made, files(chosen, made)).root


def detector(tmp_path: Path) -> tuple[Path, Path]:
    """Return a bundle that finds one object in each picture, twice, and its labelled data."""
    inputs, _, labels = samples(8)
    boxes = np.tile(
        np.array([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.38], [0.1, 0.1, 0.1, 0.1]], np.float32), (8, 1, 1)
    )
    scores = np.full((8, 3, 3), -4.0, np.float32)
    scores[np.arange(8), 0, labels] = 2.0
    scores[np.arange(8), 1, labels] = 1.0
    root = write(
        tmp_path / "b", "detection", inputs, {"boxes": boxes, "scores": scores},
        postprocess=STEPS, labels=("up", "down", "right"),
    )  # fmt: skip
    truth = np.full((8, 2, 5), -1.0, np.float32)
    truth[:, 0] = [80, 30, 120, 70, 0]
    truth[:, 0, 4] = labels
    np.savez(tmp_path / "data.npz", image=inputs["image"], y=truth)
    return root, tmp_path / "data.npz"


def test_run_prints_what_a_detector_found(run: Run, tmp_path: Path) -> None:
    root, data = detector(tmp_path)
    names, labels = ("up", "down", "right"), samples(8)[2]
    done = run("run", root, data, "--runtime", "null", "--json")
    assert done.code == 0, done.err
    predictions = done.data["predictions"]
    assert [[one["label"] for one in sample] for sample in predictions] == [[names[c]] for c in labels]
    assert predictions[0][0]["box"] == pytest.approx([80, 30, 120, 70])
    assert predictions[0][0]["score"] == pytest.approx(1 / (1 + np.exp(-2.0)))
    done = run("run", root, data, "--runtime", "null")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()[-8:]]
    assert rows[3] == ["3", names[labels[3]], "0.8808", "80.0", "30.0", "120.0", "70.0"]


def test_run_writes_raw_outputs_and_detections(run: Run, tmp_path: Path) -> None:
    root, data = detector(tmp_path)
    done = run("run", root, data, "--runtime", "null", "--output", tmp_path / "out.npz")
    assert done.code == 0, done.err
    with np.load(tmp_path / "out.npz") as file:
        assert {name: file[name].shape for name in file} == {
            "boxes": (8, 3, 4),
            "scores": (8, 3, 3),
            "detections": (8, 5, 6),
        }
        assert file["scores"].min() == -4.0


@pytest.mark.convert
def test_eval_scores_detections(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    root, data = detector(tmp_path)
    done = run("eval", root, data, "--runtime", "null", "--json")
    assert done.code == 0, done.err
    assert (done.data["metric"], done.data["value"], done.data["confusion"]) == (
        "map",
        pytest.approx(1.0),
        None,
    )
    with np.load(data) as file:
        image, truth = file["image"], file["y"]
    truth[:, 0, :4] += 8.0  # an overlap of 1024 in 2176 square pixels
    np.savez(data, image=image, y=truth)
    done = run("eval", root, data, "--runtime", "null", "--metric", "map50")
    assert done.code == 0, done.err
    assert "map50 0, 95 % interval 0 to 0 (bootstrap), n = 8" in done.out


def test_a_detector_verifies(run: Run, tmp_path: Path) -> None:
    done = run("verify", detector(tmp_path)[0], "--runtime", "null")
    assert done.code == 0, done.err
    assert "golden set: passed, 8 samples" in done.out


def test_eval_of_an_embedding_retrieves_and_says_what_it_lacks(run: Run, tmp_path: Path) -> None:
    inputs, outputs, labels = samples(30)
    root = write(tmp_path / "b", "embedding", inputs, outputs)
    np.savez(tmp_path / "data.npz", image=inputs["image"], y=labels)
    done = run("eval", root, tmp_path / "data.npz", "--runtime", "null")
    assert done.code == 2
    assert "cosine compares with the source model, which is not in a bundle" in done.err
    assert "recall@1, recall@5" in done.err
    done = run("eval", root, tmp_path / "data.npz", "--runtime", "null", "--metric", "recall@1", "--json")
    assert done.code == 0, done.err
    assert (done.data["interval"], done.data["n"]) == ("wilson", 30)
    assert done.data["value"] > 0.7


def counter(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Return a bundle that adds up what goes in, and its data: one sequence."""
    x = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    total = np.cumsum(x, axis=0, dtype=np.float32)
    specs = (TensorSpec("x", "float32", (-1, 1)), TensorSpec("h", "float32", (-1, 1)))
    outputs = {"y": 2.0 * total, "next": total}
    return write(tmp_path / "b", "regression", {"x": x}, outputs, specs, state={"h": "next"}), x


def test_a_stateful_bundle_needs_no_state_in_the_data(run: Run, tmp_path: Path) -> None:
    root, x = counter(tmp_path)
    np.savez(tmp_path / "data.npz", x=x, y=2.0 * np.cumsum(x))
    done = run("verify", root, "--runtime", "null")
    assert done.code == 0, done.err
    assert "golden set: passed, 20 samples" in done.out
    done = run("eval", root, tmp_path / "data.npz", "--runtime", "null", "--json")
    assert done.code == 0, done.err
    assert done.data["value"] == pytest.approx(0.0, abs=1e-5)
    np.save(tmp_path / "x.npy", x)
    done = run("run", root, tmp_path / "x.npy", "--runtime", "null", "--json")
    assert done.code == 0, done.err
    assert done.data["n"] == 20

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.data import Dataset
from edgekit.errors import RefusedError
from edgekit.evaluate import bootstrap_interval, class_scores, score, wilson_interval
from edgekit.manifest import Plan
from edgekit.metrics import METRICS
from tests.bundle_samples import golden, samples, write
from tests.cli.running import Ran, edgekit
from tests.cli.test_verify import onnx_bundle, quadrant_weights

pytestmark = pytest.mark.device

Run = Callable[..., Ran]
PLAN = Plan("x86-64", "tflite-fp32", "null")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return partial(edgekit, capsys, monkeypatch, "eval")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "b", labels=("up", "down", "right")).root


def golden_data(folder: Path, wrong: int) -> Path:
    """Save the golden inputs, which `null` answers, with the first few labels wrong."""
    chosen = golden()
    labels = chosen.outputs["probabilities"].argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 3
    np.savez(folder / "data.npz", image=chosen.inputs["image"], y=labels)
    return folder / "data.npz"


def test_json(run: Run, root: Path, tmp_path: Path) -> None:
    done = run(root, golden_data(tmp_path, 2), "--runtime", "null", "--json")
    assert (done.code, done.err) == (0, "")
    data = done.data
    assert list(data) == [
        "path", "digest", "metric", "value", "low", "high", "interval", "n", "classes", "confusion", "plan",
    ]  # fmt: skip
    assert (data["metric"], data["value"], data["n"], data["interval"]) == ("top1", 30 / 32, 32, "wilson")
    assert (data["low"], data["high"]) == pytest.approx(wilson_interval(30, 32))
    assert data["classes"] == ["up", "down", "right"]
    assert np.trace(data["confusion"]) == 30
    assert np.sum(data["confusion"]) == 32


def test_what_a_person_sees(run: Run, root: Path, tmp_path: Path) -> None:
    done = run(root, golden_data(tmp_path, 0), "--runtime", "null", "--metric", "macro_f1")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "macro_f1 1, 95 % interval 1 to 1 (bootstrap), n = 32" in lines
    assert lines[-3].split()[0] == "up"
    assert lines[-3].split()[2:] == ["1.000", "1.000"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--metric", "mae"), 2, "'mae' is not for the task 'classification'"),
        (("--label-column", "y"), 2, "--label-column is for .csv files"),
        (("--artifact", "nope"), 2, "'nope' is unknown"),
        (("--metric", "top5"), 2, "top5 says nothing here"),
    ],
)
def test_what_cannot_be_meant(
    run: Run, root: Path, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    done = run(root, golden_data(tmp_path, 0), "--runtime", "null", *options)
    assert done.code == code
    assert said in done.err


def test_bad_data(run: Run, root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path / "nowhere.npz", "--runtime", "null")
    assert done.code == 2
    assert "no evaluation data at" in done.err
    inputs, _, labels = samples(10)
    np.savez(tmp_path / "d.npz", image=inputs["image"], y=labels + 1)
    done = run(root, tmp_path / "d.npz", "--runtime", "null")
    assert done.code == 2
    assert "is no class: got 3, expected a whole number from 0 to 2" in done.err
    np.savez(tmp_path / "d.npz", image=inputs["image"])
    done = run(root, tmp_path / "d.npz", "--runtime", "null")
    assert done.code == 2
    assert "has no labels" in done.err


def test_labels_by_name(run: Run, root: Path, tmp_path: Path) -> None:
    chosen = golden()
    names = np.array(["up", "down", "right"])[chosen.outputs["probabilities"].argmax(1)]
    np.savez(tmp_path / "d.npz", x=chosen.inputs["image"], y=names)
    assert run(root, tmp_path / "d.npz", "--runtime", "null", "--json").data["value"] == 1.0


@pytest.mark.convert
def test_a_real_model_on_fresh_data(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    root = onnx_bundle(tmp_path / "b", quadrant_weights())
    inputs, _, labels = samples(200, seed=5)
    np.savez(tmp_path / "d.npz", image=inputs["image"], y=labels)
    done = run(root, tmp_path / "d.npz", "--runtime", "onnxruntime", "--json")
    assert done.code == 0, done.err
    assert done.data["value"] == 1.0
    labels[:50] = (labels[:50] + 1) % 3
    np.savez(tmp_path / "d.npz", image=inputs["image"], y=labels)
    assert run(root, tmp_path / "d.npz", "--runtime", "onnxruntime", "--json").data["value"] == 0.75


# The library under it


def test_wilson_against_published_values() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_holds_the_share_and_is_symmetric(n: int, share: float) -> None:
    right = round(share * n)
    low, high = wilson_interval(right, n)
    assert 0.0 <= low <= right / n <= high <= 1.0
    mirrored = wilson_interval(n - right, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    error = np.random.default_rng(0).exponential(size=2000)
    outputs, labels = {"o": error[:, None]}, np.zeros(2000)
    low, high = bootstrap_interval(METRICS["mae"], outputs, labels)
    half = 1.96 * error.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((error.mean() - half, error.mean() + half), abs=half / 5)
    assert (low, high) == bootstrap_interval(METRICS["mae"], outputs, labels)


def test_regression_has_no_classes() -> None:
    data = Dataset({"x": np.zeros((4, 1))}, np.arange(4.0), (), "x")
    found = score(METRICS["rmse"], {"o": np.arange(4.0)[:, None] + 2}, data, (), PLAN)
    assert (found.value, found.low, found.high, found.confusion, found.class_names) == (
        2.0,
        2.0,
        2.0,
        None,
        (),
    )


def test_what_is_not_finite_is_refused() -> None:
    data = Dataset({"x": np.zeros((2, 1))}, np.arange(2), (), "x")
    with pytest.raises(
        RefusedError, match="tflite-fp32 answers sample 1 with a value of 'o' that is not finite"
    ):
        score(METRICS["top1"], {"o": np.array([[1.0, 0.0], [np.nan, 0.0]])}, data, (), PLAN)


def test_classes_by_hand() -> None:
    up, down, left = class_scores(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), ["up", "down", "left"])
    assert (up.n, up.recall, up.precision, up.mistaken_for, up.mistakes) == (4, 0.75, 0.6, "down", 1)
    assert (down.recall, down.precision, down.mistaken_for, down.mistakes) == (0.5, 2 / 3, "up", 2)
    assert np.isnan([left.recall, left.precision]).all()
    assert left.mistaken_for == ""

"""scikit-learn to ONNX: answers, thresholds, types and the real command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import open_bundle
from edgekit.converters import CONVERTERS, Converted, get_converter
from edgekit.converters.base import SourceModel
from edgekit.converters.sklearn_onnx import boundary_rows, floor32
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.recipes import want
from edgekit.sources import SourceOptions
from edgekit.sources.sklearn import SklearnSource
from edgekit.streams import NO_SAMPLES
from tests.conversions import run_main

pytestmark = pytest.mark.convert
onnx = pytest.importorskip("onnx")
pytest.importorskip("sklearn")
skops_io = pytest.importorskip("skops.io")


def neighbours_in_float32(count: int = 400, features: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return a table whose values are float32 numbers and their next ones, so that thresholds lie between the two.

    Half of such thresholds round up to float32, onto a value that they are to part from the other.
    """
    random = np.random.default_rng(0)
    low = random.uniform(0.1, 5, (8, features)).astype(np.float32)
    picked = random.integers(0, 8, (count, features))
    up = random.integers(0, 2, (count, features))
    base = np.take_along_axis(low, picked, axis=0)
    table = np.where(up, np.nextafter(base, np.float32(np.inf)), base).astype(np.float64)
    return table, (up.sum(axis=1) + picked[:, 0]) % 2


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    import sklearn.datasets

    table, target = getattr(sklearn.datasets, f"load_{kind}")(return_X_y=True)
    return np.asarray(table), np.asarray(target)


def scaled(estimator: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator)


def _models() -> dict[str, tuple[Callable[[], Any], str]]:
    from sklearn import ensemble, linear_model, neighbors, neural_network, svm, tree

    return {
        "random forest": (lambda: ensemble.RandomForestClassifier(20, random_state=0), "breast_cancer"),
        "extra trees": (lambda: ensemble.ExtraTreesClassifier(20, random_state=0), "digits"),
        "forest behind a scaler": (
            lambda: scaled(ensemble.RandomForestClassifier(20, random_state=0)),
            "wine",
        ),
        "regression tree": (lambda: tree.DecisionTreeRegressor(random_state=0), "diabetes"),
        "gradient boosting": (
            lambda: ensemble.GradientBoostingClassifier(n_estimators=20, random_state=0),
            "wine",
        ),
        "boosting by histograms": (
            lambda: ensemble.HistGradientBoostingClassifier(max_iter=20),
            "breast_cancer",
        ),
        "regression by histograms": (lambda: ensemble.HistGradientBoostingRegressor(max_iter=20), "diabetes"),
        "logistic regression": (lambda: scaled(linear_model.LogisticRegression()), "iris"),
        "support vectors": (lambda: scaled(svm.SVC(probability=True, random_state=0)), "iris"),
        "support vectors without probabilities": (lambda: scaled(svm.SVC()), "wine"),
        "linear support vectors": (lambda: scaled(svm.LinearSVC()), "iris"),
        "ridge": (lambda: scaled(linear_model.Ridge()), "diabetes"),
        "perceptron": (
            lambda: scaled(neural_network.MLPClassifier((32,), max_iter=80, random_state=0)),
            "digits",
        ),
        "neighbours": (lambda: scaled(neighbors.KNeighborsClassifier()), "iris"),
    }


def trained(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    import warnings

    make, kind = _models()[name]
    table, target = data(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on convergence and on what the next version will not have
        return make().fit(table, target), table.astype(np.float32), target


def convert(folder: Path, model: Any, **options: Any) -> tuple[SklearnSource, Converted]:
    path = folder / "model.skops"
    skops_io.dump(model, path)
    source = SklearnSource(path, SourceOptions())
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    recipe = Recipe(route=("sklearn-onnx",), precision="fp32", options={"opset": 17, "ir": 8, **options})
    origin = SourceModel("sklearn", path, source.inputs, source.outputs)
    (made,) = get_converter("sklearn-onnx").convert(origin, [recipe], NO_SAMPLES, out)
    return source, made


def answers(made: Converted, table: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": table}), strict=True))


@pytest.mark.parametrize("name", _models())
def test_onnx_answers_as_the_estimator(tmp_path: Path, name: str) -> None:
    model, table, _ = trained(name)
    source, made = convert(tmp_path, model)
    written = onnx.load(made.path)
    versions = {opset.domain: opset.version for opset in written.opset_import}
    assert len(versions) == len(written.opset_import)
    assert (versions[""], written.ir_version) == (17, 8)
    assert versions.get("ai.onnx.ml", 0) <= 3
    assert [v.name for v in written.graph.output] == [spec.name for spec in source.outputs]
    assert "ZipMap" not in [node.op_type for node in written.graph.node]
    for rows in (table, boundary_rows(source)):
        got, expected = answers(made, rows), source.run({"input": rows})
        for key, value in expected.items():
            assert got[key].dtype == value.dtype
            if key == "label" and "probabilities" in expected:
                best = np.sort(expected["probabilities"], axis=1)
                clear = best[:, -1] - best[:, -2] > 1e-6  # where two classes tie, either is right
                np.testing.assert_array_equal(got[key][clear], value[clear])
            else:
                np.testing.assert_allclose(got[key], value, atol=1e-5 * max(1.0, float(np.ptp(value))))


def test_a_tree_behind_categories(tmp_path: Path) -> None:
    """Rows that are no category are an error in scikit-learn: those that are tried here are."""
    from tests.models.pipelines import train

    made_of = train("one-hot-tree-diabetes")
    source, made = convert(tmp_path, made_of.estimator)
    operators = [node.op_type for node in onnx.load(made.path).graph.node]
    assert operators[0] == "Cast"  # to float64, since trees follow
    table = made_of.test_x.astype(np.float32)
    got, expected = answers(made, table)["output"], source.run({"input": table})["output"]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert len(np.unique(source.run({"input": boundary_rows(source)})["output"])) > 5


def test_the_same_estimator_gives_the_same_bytes(tmp_path: Path) -> None:
    model, _, _ = trained("gradient boosting")
    one, two = (convert(tmp_path, model)[1] for _ in range(2))
    assert Path(one.path).read_bytes() == Path(two.path).read_bytes()


def test_named_and_odd_classes_are_numbered(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    table, labels = data("iris")
    for names in (np.array(["a", "b", "c"]), np.array([7, -1, 40])):
        source, made = convert(tmp_path, LogisticRegression(max_iter=500).fit(table, names[labels]))
        got = answers(made, table.astype(np.float32))
        np.testing.assert_array_equal(got["label"], source.run({"input": table.astype(np.float32)})["label"])
        assert set(got["label"]) == {0, 1, 2}


# Thresholds


def test_rounding_down() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate(
        [random.normal(size=2000), 10.0 ** random.uniform(-44, 38, 2000), [0.0, -0.5, 1e39, -1e39]]
    )
    floors = floor32(values)
    assert floors.dtype == np.float32
    assert (floors.astype(np.float64) <= values).all()
    with np.errstate(over="ignore"):
        above = np.nextafter(floors, np.float32(np.inf))
    assert (above.astype(np.float64) > values).all()
    assert floors[-2:].tolist() == [np.finfo(np.float32).max, -np.inf]


def on_the_thresholds() -> dict[str, Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    return {
        "forest": RandomForestClassifier(12, random_state=0),
        "histograms": HistGradientBoostingClassifier(max_iter=12, min_samples_leaf=2),
    }


@pytest.mark.parametrize("kind", ["forest", "histograms"])
def test_a_forest_whose_samples_lie_on_its_thresholds(tmp_path: Path, kind: str) -> None:
    table, labels = neighbours_in_float32()
    source, made = convert(tmp_path, on_the_thresholds()[kind].fit(table, labels))
    for rows in (table.astype(np.float32), boundary_rows(source)):
        got, expected = answers(made, rows), source.run({"input": rows})
        np.testing.assert_allclose(got["probabilities"], expected["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        ("forest", "skl2onnx.common.tree_ensemble.sklearn_threshold"),
        ("histograms", "edgekit.converters.sklearn_onnx.floor32"),
    ],
)
def test_thresholds_rounded_to_the_nearest_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rounds: str
) -> None:
    """The check sees what the rounding prevents: with plain rounding, rows on the thresholds change their branch."""
    table, labels = neighbours_in_float32()
    model = on_the_thresholds()[kind].fit(table, labels)
    monkeypatch.setattr(rounds, lambda value, *_: np.float32(value))
    with pytest.raises(ConversionError, match="rows on the thresholds of its trees"):
        convert(tmp_path, model)


def test_rows_at_the_thresholds_are_at_them(tmp_path: Path) -> None:
    model, _, _ = trained("forest behind a scaler")
    path = tmp_path / "model.skops"
    skops_io.dump(model, path)
    rows = boundary_rows(SklearnSource(path, SourceOptions()))
    scaler, forest = model.steps[0][1], model.steps[1][1]
    thresholds = {
        f: np.concatenate([t.tree_.threshold[t.tree_.feature == f] for t in forest]) for f in range(13)
    }
    inside = scaler.transform(rows.astype(np.float64))
    near = np.stack(
        [np.abs(inside[:, f, None] - thresholds[f]).min(axis=1) for f in range(13) if len(thresholds[f])]
    )
    assert (near.min(axis=0) < 1e-5).all()


def test_steps_before_trees_on_float64_are_refused_where_they_flip(tmp_path: Path) -> None:
    """Gradient boosting over histograms compares float64 with float64, which ONNX's trees do not."""
    table, labels = data("breast_cancer")
    model = scaled(on_the_thresholds()["histograms"]).fit(table, labels)
    with pytest.raises(ConversionError, match=r"rows on the thresholds.*Put no step before the trees"):
        convert(tmp_path, model)


# The command


def test_only_onnx_and_float32() -> None:
    table = {name: get_converter(name) for name in CONVERTERS}
    assert want(table, "sklearn", "onnx", "fp32", calibrated=True, by_name=True).routes == [("sklearn-onnx",)]
    for format_, precision in (("onnx", "int8"), ("onnx", "fp16"), ("openvino", "fp32"), ("tflite", "fp32")):
        refused = want(table, "sklearn", format_, precision, calibrated=True, by_name=True)
        assert not refused.routes
        assert refused.skipped.startswith(
            f"no route from sklearn to {format_}-{precision}: a scikit-learn model"
        )


@pytest.mark.parametrize("name", ["random forest", "support vectors without probabilities", "ridge"])
def test_an_estimator_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    model, table, target = trained(name)
    skops_io.dump(model, tmp_path / "model.skops")
    truth = target.astype(np.float32) if name == "ridge" else target
    np.savez(tmp_path / "eval.npz", input=table, y=truth)
    task = "regression" if name == "ridge" else "classification"
    words = ["convert", tmp_path / "model.skops", "--target", "x86-64", "--format", "onnx", "--task", task]
    said = run_main([*words, "--eval", tmp_path / "eval.npz", "-o", tmp_path / "out"], capsys)
    assert said.code == 0, said.err
    bundle = open_bundle(tmp_path / "out")
    assert {n: a.gate.verdict for n, a in bundle.manifest.artifacts.items()} == {"onnx-fp32": "accepted"}


def test_a_tflite_by_name_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _, _ = trained("ridge")
    skops_io.dump(model, tmp_path / "model.skops")
    words = ["convert", tmp_path / "model.skops", "--target", "x86-64", "-o", tmp_path / "out"]
    said = run_main([*words, "--format", "tflite", "--precision", "fp32"], capsys)
    assert said.code == 3
    assert "a scikit-learn model becomes onnx-fp32 only" in said.line


def test_one_reason_of_several_artifacts_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, _ = trained("ridge")
    skops_io.dump(model, tmp_path / "model.skops")
    said = run_main(
        ["convert", tmp_path / "model.skops", "-t", "raspberry-pi-4", "-o", tmp_path / "out"], capsys
    )
    assert said.code == 0, said.err
    (told,) = [line for line in said.out.splitlines() if "no route" in line]
    names, _, reason = told.partition(": ")
    assert names.split(", ") == ["tflite-fp32", "tflite-int8", "tflite-int8-dynamic", "onnx-int8"]
    assert reason.startswith("no route from sklearn to them: a scikit-learn model becomes onnx-fp32 only")

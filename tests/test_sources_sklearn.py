from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ConversionError, EdgeKitError, InvalidFileError
from edgekit.sources import SourceOptions, identify
from edgekit.sources.sklearn import SklearnSource, load_estimator

pytestmark = pytest.mark.convert
pytest.importorskip("sklearn")
skops_io = pytest.importorskip("skops.io")

TRUSTED = SourceOptions(trust_pickle=True)


def iris() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return x, y


def forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(5, random_state=0).fit(*iris())


def dump(folder: Path, model: Any) -> Path:
    path = folder / "model.skops"
    skops_io.dump(model, path)
    return path


def test_a_classifier(tmp_path: Path) -> None:
    path = dump(tmp_path, forest())
    assert identify(path) == "sklearn"
    source = SklearnSource(path, SourceOptions())
    assert [(s.name, s.dtype, s.shape) for s in source.inputs] == [("input", "float32", (-1, 4))]
    assert [(s.name, s.dtype, s.shape) for s in source.outputs] == [
        ("label", "int64", (-1,)),
        ("probabilities", "float32", (-1, 3)),
    ]
    assert source.notes == ()
    table = iris()[0].astype(np.float32)
    answer = source.run({"input": table})
    wide = table.astype(np.float64)
    np.testing.assert_array_equal(answer["label"], forest().predict(wide))
    np.testing.assert_array_equal(answer["probabilities"], forest().predict_proba(wide).astype(np.float32))


def test_a_regressor(tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge

    source = SklearnSource(dump(tmp_path, Ridge().fit(*iris())), SourceOptions())
    assert [(s.name, s.dtype, s.shape) for s in source.outputs] == [("output", "float32", (-1, 1))]


def test_named_classes_become_numbers(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    table, labels = iris()
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    source = SklearnSource(
        dump(tmp_path, LogisticRegression(max_iter=500).fit(table, names)), SourceOptions()
    )
    assert source.notes == ("labels are numbers of classes: 0 = setosa, 1 = versicolor, 2 = virginica",)
    answer = source.run({"input": table.astype(np.float32)})
    np.testing.assert_array_equal(answer["label"], answer["probabilities"].argmax(1))
    assert (answer["label"] == labels).mean() > 0.9


def test_a_search_is_what_it_found(tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}).fit(*iris())
    path = dump(tmp_path, search)
    assert type(SklearnSource(path, SourceOptions()).estimator).__name__ == "Ridge"


@pytest.mark.parametrize("kind", ["text", "clusters", "two labels"])
def test_what_is_no_table_to_one_answer(tmp_path: Path, kind: str) -> None:
    from sklearn.cluster import KMeans
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder
    from sklearn.tree import DecisionTreeClassifier

    table, labels = iris()
    if kind == "text":
        words = np.array([["a"], ["b"]] * 75)
        model: Any = make_pipeline(OrdinalEncoder(), DecisionTreeClassifier()).fit(words, labels)
        refusal, error = (
            "cannot read|does not take a table of numbers.*columns chosen by number",
            EdgeKitError,
        )
    elif kind == "clusters":
        model = KMeans(3, n_init=1).fit(table)
        refusal, error = "holds a KMeans: expected a classifier or a regressor", ConversionError
    else:
        model = DecisionTreeClassifier().fit(table, np.stack([labels, labels], axis=1))
        refusal, error = "several labels for each row", ConversionError
    with pytest.raises(error, match=refusal):
        SklearnSource(dump(tmp_path, model), SourceOptions())


# Files that may run code


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib"])
def test_a_pickle_is_read_only_when_trusted(tmp_path: Path, suffix: str) -> None:
    marker, path = tmp_path / "made", tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Hostile(marker)))
    assert identify(path) == "sklearn"
    with pytest.raises(
        InvalidFileError, match=r"is a pickle: reading it runs.*skops\.io\.dump.*--trust-pickle"
    ):
        SklearnSource(path, SourceOptions())
    assert not marker.exists()
    with pytest.raises(InvalidFileError, match="holds no fitted classifier or regressor: got NoneType"):
        SklearnSource(path, TRUSTED)
    assert marker.exists()  # the file is hostile indeed


@pytest.mark.parametrize("compressed", [0, 3])
def test_a_trusted_pickle_answers(tmp_path: Path, compressed: int) -> None:
    import joblib

    path = tmp_path / "model.joblib"
    joblib.dump(forest(), path, compress=compressed)
    assert SklearnSource(path, TRUSTED).outputs[1].name == "probabilities"
    plain = tmp_path / "model.pkl"
    plain.write_bytes(pickle.dumps(forest()))
    assert SklearnSource(plain, TRUSTED).outputs[1].name == "probabilities"


def test_a_type_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.tree import DecisionTreeClassifier

    model = make_pipeline(FunctionTransformer(doubled), DecisionTreeClassifier()).fit(*iris())
    path = dump(tmp_path, model)
    with pytest.raises(
        InvalidFileError, match=r"may run code.*tests\.test_sources_sklearn\.doubled.*--trust-pickle"
    ):
        SklearnSource(path, SourceOptions())
    assert SklearnSource(path, TRUSTED).outputs[0].name == "label"


def doubled(table: np.ndarray) -> np.ndarray:
    return table * 2


def test_a_hostile_skops_file(tmp_path: Path) -> None:
    """A schema that asks for a function of the system."""
    path = dump(tmp_path, forest())
    with zipfile.ZipFile(path) as archive:
        schema = archive.read("schema.json").decode()
    marker = tmp_path / "made"
    evil = schema.replace('"__class__": "Tree"', '"__class__": "system"').replace(
        '"sklearn.tree._tree"', '"posix"'
    )
    assert evil != schema
    target = tmp_path / "evil.skops"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, evil if name == "schema.json" else old.read(name))
    with pytest.raises(InvalidFileError, match=r"may run code when it is read: posix\.system"):
        SklearnSource(target, SourceOptions())
    assert not marker.exists()


def boosted() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=3).fit(*iris())


def neighbours() -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(algorithm="kd_tree").fit(*iris())


def _break_tree(model: Any) -> None:
    model.estimators_[0].tree_.children_left[0] = 10**6


def _loop_tree(model: Any) -> None:
    model.estimators_[0].tree_.children_right[2] = 0


def _widen_tree(model: Any) -> None:
    model.estimators_[0].tree_.feature[0] = 400


def _break_predictor(model: Any) -> None:
    model._predictors[0][0].nodes["left"][0] = 10**6


def _break_table(model: Any) -> None:
    np.asarray(model._tree.idx_array)[0] = 10**6


@pytest.mark.parametrize(
    ("make", "damage"),
    [
        (forest, _break_tree),
        (forest, _loop_tree),
        (forest, _widen_tree),
        (boosted, _break_predictor),
        (neighbours, _break_table),
    ],
)
def test_native_code_follows_no_number_out_of_its_array(
    tmp_path: Path, make: Callable[[], Any], damage: Callable[[Any], None]
) -> None:
    model = make()
    load_estimator(dump(tmp_path, model), trusted=False)
    damage(model)
    with pytest.raises(InvalidFileError, match="points outside of itself"):
        load_estimator(dump(tmp_path, model), trusted=False)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_are_told(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(dump(tmp_path, forest()).read_bytes())
    for place in random.integers(0, len(data), 12):
        data[place] = random.integers(0, 256)
    path = tmp_path / "damaged.skops"
    path.write_bytes(data[: random.integers(len(data) // 2, len(data) + 1)] if seed % 2 else data)
    try:
        if identify(path) == "sklearn":
            SklearnSource(path, SourceOptions())
    except (InvalidFileError, ConversionError):
        return
    pytest.fail("twelve changed bytes are no sound archive")


def test_another_version_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pkl"
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.setattr("sklearn.base.__version__", "1.0.0")
        path.write_bytes(pickle.dumps(forest()))
    (note,) = SklearnSource(path, TRUSTED).notes
    assert "version 1.0.0" in note

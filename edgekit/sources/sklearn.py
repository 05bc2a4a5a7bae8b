"""scikit-learn estimators and pipelines: `.skops`, and pickles of users who trust them.

A skops file names every type in it. Beside those that skops itself trusts, these are taken: trees and neighbour
tables of scikit-learn, which skops leaves out since native code follows the numbers in them. Their numbers are
checked here before any of that code runs. Any other type is refused by name.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError, InvalidFileError
from edgekit.sources.base import Source, SourceOptions, first_line
from edgekit.sources.pickles import check_members
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SklearnSource", "bare", "load_estimator", "parts", "plausible_rows"]

_TREE = "sklearn.tree._tree.Tree"
_PREDICTOR = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
#: Types that `_check_numbers` makes safe, and plain holders of numbers.
_TAKEN = frozenset({
    _TREE,
    _PREDICTOR,
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
})  # fmt: skip
#: More class names than this are not told.
_MOST_NAMES = 20


def load_estimator(path: Path, *, trusted: bool) -> tuple[Any, tuple[str, ...]]:
    """Return the estimator in a file, and what a user should know of it.

    Args:
        path: `.skops`, or a pickle as pickle or joblib write it.
        trusted: Whether code in the file may run.

    Raises:
        InvalidFileError: It is damaged, may run code, or holds no fitted estimator.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            estimator = (
                _load_skops(path, trusted=trusted)
                if path.suffix.lower() == ".skops"
                else _load_pickle(path, trusted)
            )
        except InvalidFileError:
            raise
        except Exception as error:  # both raise what the file makes them
            raise InvalidFileError(f"scikit-learn cannot read {path.name}: {first_line(error)}") from error
    if not hasattr(estimator, "predict") or not hasattr(estimator, "n_features_in_"):
        raise InvalidFileError(
            f"{path.name} holds no fitted classifier or regressor", got=type(estimator).__name__
        )
    _check_numbers(path, estimator)
    notes = {
        str(w.message).partition("\n")[0] for w in said if w.category.__name__ == "InconsistentVersionWarning"
    }
    return estimator, tuple(sorted(notes)[:1])


def _load_skops(path: Path, *, trusted: bool) -> Any:
    import skops.io

    with zipfile.ZipFile(path) as archive:
        check_members(path, archive.infolist())
    unknown = set(skops.io.get_untrusted_types(file=path))
    refused = sorted(unknown - _TAKEN)
    if refused and not trusted:
        raise InvalidFileError(
            f"{path.name} holds a type that may run code when it is read: {', '.join(refused)}",
            hint="Only if you trust whoever made the file, give --trust-pickle.",
        )
    return skops.io.load(path, trusted=sorted(unknown))


def _load_pickle(path: Path, trusted: bool) -> Any:
    if not trusted:
        raise InvalidFileError(
            f"{path.name} is a pickle: reading it runs whatever code its maker put into it",
            hint="Save the model with skops.io.dump(model, 'model.skops'), or, if you trust the file, "
            "give --trust-pickle.",
        )
    import joblib

    return joblib.load(path)


def parts(estimator: Any) -> Iterator[Any]:
    """Yield every object of scikit-learn inside an estimator, itself first."""
    import numpy as np

    stack, seen = [estimator], set()
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (list, tuple)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, np.ndarray) and item.dtype == object:
            stack.extend(item.ravel().tolist())
        elif type(item).__module__.startswith("sklearn."):
            yield item
            stack.extend(getattr(item, "__dict__", {}).values())


def _check_numbers(path: Path, estimator: Any) -> None:
    """Refuse trees and neighbour tables whose numbers lead native code out of their arrays."""
    features = int(estimator.n_features_in_)
    for part in parts(estimator):
        kind = f"{type(part).__module__}.{type(part).__name__}"
        sound = True
        if kind == _TREE:
            sound = _follows(
                part.children_left, part.children_right, part.feature, int(part.n_features), part.node_count
            )
        elif kind == _PREDICTOR:
            inner = part.nodes[part.nodes["is_leaf"] == 0]
            sound = _predictor_is_sound(part.nodes, inner, features)
        elif hasattr(part, "get_arrays") and kind in _TAKEN:
            data, index, nodes, _ = part.get_arrays()
            sound = _table_is_sound(len(data), index, nodes)
        if not sound:
            raise InvalidFileError(f"{path.name} is damaged: a {kind} points outside of itself")


def _follows(left: Any, right: Any, feature: Any, features: int, count: int) -> bool:
    """Tell whether every child of a tree comes after its parent, and every feature is there."""
    import numpy as np

    numbers = np.arange(count)
    inner = left != -1
    children = np.concatenate([left[inner], right[inner]])
    parents = np.concatenate([numbers[inner], numbers[inner]])
    used = feature[inner]
    return bool(
        len(left) == len(right) == len(feature) == count
        and (right[~inner] == -1).all()
        and (children > parents).all()
        and (children < count).all()
        and (used >= 0).all()
        and (used < features).all()
    )


def _predictor_is_sound(nodes: Any, inner: Any, features: int) -> bool:
    import numpy as np

    parents = np.flatnonzero(nodes["is_leaf"] == 0)
    used = inner["feature_idx"]
    return bool(
        all(((inner[side] > parents) & (inner[side] < len(nodes))).all() for side in ("left", "right"))
        and ((used >= 0) & (used < features)).all()
        and not inner["is_categorical"].any()
    )


def _table_is_sound(count: int, index: Any, nodes: Any) -> bool:
    import numpy as np

    return bool(
        (np.sort(index) == np.arange(count)).all()
        and (
            (nodes["idx_start"] >= 0) & (nodes["idx_start"] <= nodes["idx_end"]) & (nodes["idx_end"] <= count)
        ).all()
    )


def bare(estimator: Any) -> Any:
    """Return what a search over parameters found, or the estimator itself."""
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    return estimator


def plausible_rows(estimator: Any, features: int, count: int, seed: int) -> np.ndarray:
    """Return rows that an estimator takes: known categories where it encodes them, else near what it was fitted on.

    Args:
        estimator: Fitted.
        features: Of its table.
        count: Of rows.
        seed: Of the random numbers.

    Returns:
        float32 [count, features].
    """
    import numpy as np

    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, features))
    for columns, step in _first_steps(estimator, list(range(features))):
        for number, column in enumerate(columns):
            if hasattr(step, "categories_"):
                rows[:, column] = random.choice(step.categories_[number].astype(np.float64), count)
            elif getattr(step, "mean_", None) is not None and getattr(step, "scale_", None) is not None:
                rows[:, column] = step.mean_[number] + step.scale_[number] * rows[:, column]
    return rows.astype(np.float32)


def _first_steps(estimator: Any, columns: list[int]) -> Iterator[tuple[list[int], Any]]:
    """Yield the steps that see the table as it is, with the numbers of the columns that each is given."""
    if hasattr(estimator, "steps"):
        yield from _first_steps(estimator.steps[0][1], columns)
    elif hasattr(estimator, "transformers_"):
        places = estimator._transformer_to_input_indices  # noqa: SLF001  # columns by number, however they were given
        for name, step, _ in estimator.transformers_:
            yield from _first_steps(step, [columns[number] for number in places[name]])
    else:
        yield columns, estimator


class SklearnSource(Source):
    """An estimator over one table of numbers: `input` float32 [N, F].

    A classifier answers `label` int64 [N] (the class's number in `classes_`) and, where it has them, `probabilities`
    float32 [N, C]; a regressor answers `output` float32 [N, T]. It computes in float64, as scikit-learn does on
    what numpy and pandas hold by default.
    """

    packages = ("scikit-learn",)
    environment = "sklearn"
    heeds = ("trust_pickle",)

    def __init__(self, path: Path, options: SourceOptions) -> None:
        from sklearn.base import is_classifier, is_regressor

        loaded, notes = load_estimator(path, trusted=options.trust_pickle)
        self.estimator = bare(loaded)
        self.classes: Any = None
        self.inputs = (TensorSpec("input", "float32", (-1, int(loaded.n_features_in_))),)
        if is_classifier(self.estimator):
            self.classes = _classes(self.estimator, path.name)
            notes += _names_of(self.classes)
        elif not is_regressor(self.estimator):
            raise ConversionError(
                f"{path.name} holds a {type(self.estimator).__name__}", expected="a classifier or a regressor"
            )
        self.notes = notes
        self.outputs = self._outputs(path.name)

    def _outputs(self, file: str) -> tuple[TensorSpec, ...]:
        try:
            answer = self._run(plausible_rows(self.estimator, self.inputs[0].shape[1], 2, 0))
        except Exception as error:  # scikit-learn, or whatever stands in the pipeline
            raise ConversionError(
                f"{file} does not take a table of numbers: {first_line(error)}",
                hint="Fit it on one array of numbers, its columns chosen by number.",
            ) from error
        return tuple(
            TensorSpec(name, array.dtype.name, (-1, *array.shape[1:])) for name, array in answer.items()
        )

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the estimator's answers."""
        return self._run(feed["input"])

    def _run(self, table: np.ndarray) -> dict[str, np.ndarray]:
        import numpy as np

        wide = table.astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # it was fitted on named columns; their order is the same
            answer = self.estimator.predict(wide)
            if self.classes is None:
                return {"output": np.asarray(answer).reshape(len(wide), -1).astype(np.float32)}
            outputs = {"label": np.searchsorted(self.classes, answer).astype(np.int64)}
            if hasattr(self.estimator, "predict_proba"):
                outputs["probabilities"] = self.estimator.predict_proba(wide).astype(np.float32)
            return outputs


def _classes(estimator: Any, file: str) -> Any:
    import numpy as np

    classes = estimator.classes_
    if not isinstance(classes, np.ndarray) or classes.ndim != 1:
        raise ConversionError(
            f"{file} answers several labels for each row", expected="a classifier of one label"
        )
    return classes


def _names_of(classes: Any) -> tuple[str, ...]:
    """Return the note on class names; none where a class is its own number."""
    import numpy as np

    if classes.dtype.kind in "iu" and np.array_equal(classes, np.arange(len(classes))):
        return ()
    shown = ", ".join(f"{i} = {name}" for i, name in enumerate(classes[:_MOST_NAMES]))
    more = ", …" if len(classes) > _MOST_NAMES else ""
    return (f"labels are numbers of classes: {shown}{more}",)

"""Eight scikit-learn pipelines on data that ships with scikit-learn, and the samples held out for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["PIPELINES", "Pipeline", "Trained", "train"]


@dataclass(frozen=True)
class Pipeline:
    """What is trained on what.

    Attributes:
        task: `classification` or `regression`.
        data: Name of the loader in `sklearn.datasets`.
        make: Returns the estimator, not fitted.
    """

    task: str
    data: str
    make: Callable[[], Any]


@dataclass(frozen=True)
class Trained:
    """A fitted estimator and its data.

    Attributes:
        estimator: The pipeline.
        train_x: float64 [N, F].
        test_x: float64 [M, F].
        test_y: int64 [M], the class, or float64 [M], the target.
    """

    estimator: Any
    train_x: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def _scaled(estimator: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator)


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(60, random_state=0)


def _boosting() -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(random_state=0)


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return _scaled(LogisticRegression())


def _svc() -> Any:
    from sklearn.svm import SVC

    return _scaled(SVC(random_state=0))


def _ridge() -> Any:
    from sklearn.linear_model import Ridge

    return _scaled(Ridge())


def _histogram_boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=60, random_state=0)


def _perceptron() -> Any:
    from sklearn.neural_network import MLPClassifier

    return _scaled(MLPClassifier((64,), max_iter=400, random_state=0))


def _one_hot_tree() -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.tree import DecisionTreeRegressor

    scaled = [column for column in range(10) if column != 1]
    columns = ColumnTransformer([("sex", OneHotEncoder(), [1]), ("rest", StandardScaler(), scaled)])
    return make_pipeline(columns, DecisionTreeRegressor(max_depth=5, random_state=0))


PIPELINES = {
    "forest-digits": Pipeline("classification", "load_digits", _forest),
    "boosting-cancer": Pipeline("classification", "load_breast_cancer", _boosting),
    "logistic-iris": Pipeline("classification", "load_iris", _logistic),
    "svc-wine": Pipeline("classification", "load_wine", _svc),
    "ridge-diabetes": Pipeline("regression", "load_diabetes", _ridge),
    "histogram-boosting-cancer": Pipeline("classification", "load_breast_cancer", _histogram_boosting),
    "perceptron-digits": Pipeline("classification", "load_digits", _perceptron),
    "one-hot-tree-diabetes": Pipeline("regression", "load_diabetes", _one_hot_tree),
}


def train(name: str) -> Trained:
    """Fit a pipeline on two thirds of its data; the rest is held out."""
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    pipeline = PIPELINES[name]
    raw = {"scaled": False} if pipeline.data == "load_diabetes" else {}  # so that its sex column is 1 or 2
    x, y = getattr(sklearn.datasets, pipeline.data)(return_X_y=True, **raw)
    strata = y if pipeline.task == "classification" else None
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=1 / 3, random_state=0, stratify=strata
    )
    estimator = pipeline.make().fit(train_x, train_y)
    kind = np.int64 if pipeline.task == "classification" else np.float64
    return Trained(estimator, train_x, test_x, test_y.astype(kind))

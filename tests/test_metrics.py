"""Metrics against numbers worked out by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.golden import margins
from edgekit.metrics import (
    METRICS,
    confusion_matrix,
    default_metric,
    get_metric,
    infer_task,
    predicted_classes,
    scored_output,
)
from edgekit.monitor.reference import classify, detect_activation
from edgekit.predict import top_classes

pytestmark = pytest.mark.device


def one_hot(predicted: list[int], classes: int) -> dict[str, np.ndarray]:
    return {"probabilities": np.eye(classes, dtype=np.float32)[predicted]}


def value(name: str, predicted: list[int], labels: list[int], classes: int = 3) -> float:
    return METRICS[name].value(one_hot(predicted, classes), np.array(labels))


@pytest.mark.parametrize(
    ("outputs", "labels", "task"),
    [
        ([[0.2, 0.8], [0.5, 0.5]], None, "classification"),
        ([[-3.0, 9.0], [4.0, 1.0]], [1, 0], "classification"),
        ([[-3.0, 9.0], [4.0, 1.0]], [[1.0, 0.5], [0.5, 1.0]], "regression"),
        ([[0.2], [0.9]], [0, 1], "classification"),
        ([0.2, 0.9], [0, 1], "classification"),
        ([[0.2], [0.9]], [0.0, 1.0], "regression"),
        ([[0.2], [0.9]], [0, 2], "regression"),
        ([[0.2], [0.9]], [1, 1], "regression"),
        ([[0.2], [1.9]], [0, 1], "regression"),
        ([[0.2], [0.9]], None, "other"),
    ],
)
def test_what_a_model_seems_to_do(outputs: list[object], labels: list[object] | None, task: str) -> None:
    given = None if labels is None else np.array(labels)
    assert infer_task({"y": np.array(outputs, np.float32)}, given) == task


def test_top1_by_hand() -> None:
    assert value("top1", [0, 1, 2, 2], [0, 1, 1, 2]) == 0.75


def test_macro_f1_by_hand() -> None:
    # class 0: precision 1/2, recall 1/1; class 1: 0/1, 0/2; class 2: 1/1, 1/1
    assert value("macro_f1", [0, 0, 1, 2], [0, 1, 1, 2]) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert value("macro_f1", [0, 0, 2, 2], [0, 1, 1, 2]) == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)


def test_macro_recall_looks_at_the_labels_classes_only() -> None:
    assert value("macro_recall", [0, 0, 2, 2], [0, 1, 1, 0]) == pytest.approx((1 / 2 + 0) / 2)


def test_a_class_that_is_only_predicted_counts_in_f1() -> None:
    assert value("macro_f1", [0, 2], [0, 0]) == pytest.approx((2 / 3 + 0) / 2)


def test_top5_by_hand() -> None:
    scores = np.tile(np.array([6.0, 5, 4, 3, 2, 1, 0], np.float32), (3, 1))
    labels = np.array([0, 4, 5])
    assert METRICS["top5"].value({"o": scores}, labels) == pytest.approx(2 / 3)
    right = METRICS["top5"].per_sample({"o": scores}, labels)
    assert right is not None
    assert right.tolist() == [1.0, 1.0, 0.0]


def test_ties_go_to_the_first_classes() -> None:
    scores = {"o": np.zeros((7, 7), np.float32)}
    assert METRICS["top5"].value(scores, np.arange(7)) == pytest.approx(5 / 7)
    assert METRICS["top1"].value(scores, np.arange(7)) == pytest.approx(1 / 7)


def test_top5_needs_more_than_five_classes() -> None:
    with pytest.raises(UsageError, match="got 5 classes, expected more than 5"):
        value("top5", [0], [0], classes=5)


def test_errors_by_hand() -> None:
    outputs, labels = {"o": np.array([[1.0], [2.0], [5.0]], np.float32)}, np.array([1.0, 4.0, 4.0])
    assert METRICS["mae"].value(outputs, labels) == pytest.approx(1.0)
    assert METRICS["rmse"].value(outputs, labels) == pytest.approx(np.sqrt(5 / 3))
    assert METRICS["r2"].value(outputs, labels) == pytest.approx(1 - 5 / 6)
    assert METRICS["r2"].value(outputs, np.full(3, 2.0)) == 0.0
    assert METRICS["r2"].value({"o": np.full((3, 1), 2.0)}, np.full(3, 2.0)) == 1.0


def test_targets_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match=r"targets do not fit the output: got \[3\], expected \[3, 2\]"):
        METRICS["mae"].value({"o": np.zeros((3, 2))}, np.zeros(3))


def test_per_sample_is_the_metric_where_it_exists() -> None:
    outputs, labels = one_hot([0, 1, 2, 2], 6), np.array([0, 1, 1, 5])
    for metric in (METRICS[name] for name in ("top1", "top5", "macro_f1", "macro_recall")):
        right = metric.per_sample(outputs, labels)
        assert (right is not None) == (metric.name in ("top1", "top5"))
        if right is not None:
            assert right.mean() == metric.value(outputs, labels)


def test_the_output_called_like_probabilities_is_scored() -> None:
    label, scores = np.zeros(2, np.int64), np.eye(2, dtype=np.float32)
    assert scored_output({"label": label, "probabilities": scores}) is scores
    assert scored_output({"label": label, "output_probability": scores}) is scores
    assert scored_output({"label": label, "scores": scores}) is label


def test_a_single_logit_is_class_1_above_zero_as_the_monitor_has_it() -> None:
    logits = np.array([[-3.0], [-0.2], [0.2], [0.4], [3.0]], np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    assert predicted_classes({"z": logits}).tolist() == labels.tolist()
    assert classify(logits, detect_activation(logits))[0].tolist() == labels.tolist()
    assert METRICS["top1"].value({"z": logits}, labels) == 1.0
    best = top_classes({"z": logits}, ("no", "yes"), 1)
    assert best is not None
    assert [guesses[0].label for guesses in best] == ["no", "no", "yes", "yes", "yes"]
    shares = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(margins({"z": logits}), np.abs(2.0 * shares[:, 0] - 1.0))


def test_single_scores_and_labels_as_outputs() -> None:
    assert predicted_classes({"p": np.array([[0.2], [0.5], [0.51]])}).tolist() == [0, 0, 1]
    assert predicted_classes({"p": np.array([0.2, 0.9])}).tolist() == [0, 1]
    assert predicted_classes({"label": np.array([4, 2])}).tolist() == [4, 2]
    assert predicted_classes({"o": np.eye(3).reshape(3, 1, 1, 3)}).tolist() == [0, 1, 2]


def test_a_map_of_scores_is_no_classification() -> None:
    with pytest.raises(UsageError, match="holds no class scores"):
        predicted_classes({"o": np.zeros((2, 4, 4, 3), np.float32)})


def test_confusion_matrix_by_hand() -> None:
    matrix = confusion_matrix(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_names() -> None:
    assert default_metric("classification") == "top1"
    assert default_metric("regression") == "mae"
    assert get_metric(None, "regression").name == "mae"
    assert get_metric("macro_f1", "classification").name == "macro_f1"
    assert default_metric("detection") == "map"
    with pytest.raises(UsageError, match="no metric for the task 'other'"):
        default_metric("other")
    with pytest.raises(
        UsageError, match="'mae' is not for the task 'classification': expected one of top1, top5"
    ):
        get_metric("mae", "classification")
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["ece", "mae", "rmse"]
    assert {metric.name for metric in METRICS.values()} == set(METRICS)


@pytest.mark.convert
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(6, 12), n=st.integers(2, 60))
def test_classification_agrees_with_scikit_learn(seed: int, classes: int, n: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    scores, labels = random.random((n, classes)), random.integers(0, classes, n)
    outputs, predicted = {"o": scores}, scores.argmax(1)
    every = np.arange(classes)
    expected = {
        "top1": sklearn.accuracy_score(labels, predicted),
        "top5": sklearn.top_k_accuracy_score(labels, scores, k=5, labels=every),
        "macro_f1": sklearn.f1_score(labels, predicted, average="macro", zero_division=0),
        "macro_recall": sklearn.recall_score(
            labels, predicted, average="macro", labels=np.unique(labels), zero_division=0
        ),
    }
    for name, want in expected.items():
        assert METRICS[name].value(outputs, labels) == pytest.approx(want), name
    matrix = confusion_matrix(predicted, labels, classes)
    assert np.array_equal(matrix, sklearn.confusion_matrix(labels, predicted, labels=every))


@pytest.mark.convert
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 4), n=st.integers(2, 60))
def test_regression_agrees_with_scikit_learn(seed: int, width: int, n: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    got, want = random.normal(size=(n, width)), random.normal(size=(n, width))
    outputs = {"o": got}
    assert METRICS["mae"].value(outputs, want) == pytest.approx(sklearn.mean_absolute_error(want, got))
    assert METRICS["rmse"].value(outputs, want) == pytest.approx(
        np.sqrt(sklearn.mean_squared_error(want, got))
    )
    assert METRICS["r2"].value(outputs, want) == pytest.approx(sklearn.r2_score(want, got))

"""Metrics: how good a model's outputs are, given the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from edgekit.errors import UsageError

__all__ = [
    "METRICS",
    "Metric",
    "both_classes",
    "confusion_matrix",
    "default_metric",
    "get_metric",
    "infer_task",
    "predicted_classes",
    "scored_output",
]

Outputs = Mapping[str, np.ndarray]


class Metric(msgspec.Struct, frozen=True):
    """One way to score.

    Attributes:
        name: Its name on the command line.
        higher_is_better: False for errors.
        tasks: Tasks that it makes sense for.
        value: Takes the outputs by name, float [N, …], and the labels [N, …]; returns the score.
        per_sample: The same arguments; returns 1.0 where a sample is right and 0.0 where it is wrong,
            float64 [N], for a metric that is the mean of that; None for every other metric.
    """

    name: str
    higher_is_better: bool
    tasks: tuple[str, ...]
    value: Callable[[Outputs, np.ndarray], float]
    per_sample: Callable[[Outputs, np.ndarray], np.ndarray | None]


def scored_output(outputs: Outputs) -> np.ndarray:
    """Return the output that metrics look at: the one called like `probabilities`, else the first."""
    for name, array in outputs.items():
        if "probabilit" in name.lower():
            return array
    return next(iter(outputs.values()))


def _scores(outputs: Outputs) -> np.ndarray:
    """Return class scores, float [N, C]; a single score of a positive class becomes two columns, see `both_classes`."""
    scores = np.asarray(scored_output(outputs))
    flat = scores.reshape(len(scores), -1)
    if scores.dtype.kind not in "fiu" or (scores.ndim > 2 and flat.shape[1] != scores.shape[-1]):
        raise UsageError(
            "the output holds no class scores",
            got=f"{scores.dtype} {list(scores.shape)}",
            expected="float [N, classes]",
        )
    return both_classes(flat) if flat.shape[1] == 1 else flat


#: A probability is not further outside [0, 1] than this.
_RANGE_TOLERANCE = 1e-3


def both_classes(positive: np.ndarray) -> np.ndarray:
    """Return the scores of both classes of a model that gives one for the positive class only.

    Args:
        positive: float [N, 1]; where one lies outside [0, 1], all are taken as logits.

    Returns:
        float64 [N, 2]: what is left of 1 beside a probability, and 0 beside a logit.
    """
    wide = positive.astype(np.float64)
    logits = wide.min(initial=0.0) < -_RANGE_TOLERANCE or wide.max(initial=0.0) > 1.0 + _RANGE_TOLERANCE
    return np.hstack([np.zeros_like(wide) if logits else 1.0 - wide, wide])


def predicted_classes(outputs: Outputs) -> np.ndarray:
    """Return the predicted class of each sample, int64 [N].

    The argmax of the scores; a single score is the positive class's probability (above one half is class 1) or
    logit (above zero is); a whole-number output is the class itself.
    """
    array = np.asarray(scored_output(outputs))
    if array.dtype.kind in "iub" and array.size == len(array):
        return array.reshape(-1).astype(np.int64)
    best: np.ndarray = _scores(outputs).argmax(axis=1)
    return best.astype(np.int64)


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count samples by label and prediction.

    Args:
        predicted: int [N] in [0, classes).
        labels: int [N] in [0, classes).
        classes: How many classes there are.

    Returns:
        int64 [classes, classes]; row = label, column = prediction.
    """
    cells = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    counts: np.ndarray = np.bincount(cells, minlength=classes * classes)
    return counts.reshape(classes, classes)


def _confusion(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    predicted, truth = predicted_classes(outputs), np.asarray(labels).astype(np.int64)
    most = max(predicted.max(initial=-1), truth.max(initial=-1))
    return confusion_matrix(predicted, truth, int(most) + 1)


def _top1_right(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    right: np.ndarray = predicted_classes(outputs) == labels
    return right.astype(np.float64)


def _top5_right(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
    scores = _scores(outputs)
    if scores.shape[1] <= 5:
        raise UsageError("top5 says nothing here", got=f"{scores.shape[1]} classes", expected="more than 5")
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :5]
    right: np.ndarray = (best == np.asarray(labels)[:, None]).any(axis=1)
    return right.astype(np.float64)


def _top1(outputs: Outputs, labels: np.ndarray) -> float:
    return float(_top1_right(outputs, labels).mean())


def _top5(outputs: Outputs, labels: np.ndarray) -> float:
    return float(_top5_right(outputs, labels).mean())


def _macro_f1(outputs: Outputs, labels: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur as a label or as a prediction."""
    matrix = _confusion(outputs, labels)
    both = matrix.sum(axis=0) + matrix.sum(axis=1)
    seen = both > 0
    return float(np.mean(2.0 * np.diag(matrix)[seen] / both[seen]))


def _macro_recall(outputs: Outputs, labels: np.ndarray) -> float:
    """Return the mean recall over the classes that occur as a label (balanced accuracy)."""
    matrix = _confusion(outputs, labels)
    support = matrix.sum(axis=1)
    seen = support > 0
    return float(np.mean(np.diag(matrix)[seen] / support[seen]))


def _residuals(outputs: Outputs, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return prediction minus target, and the targets, both float64 [N, K]."""
    got = np.asarray(scored_output(outputs), np.float64)
    want = np.asarray(labels, np.float64)
    if got.size != want.size or len(got) != len(want):
        raise UsageError("targets do not fit the output", got=list(want.shape), expected=list(got.shape))
    want = want.reshape(len(want), -1)
    return got.reshape(want.shape) - want, want


def _mae(outputs: Outputs, labels: np.ndarray) -> float:
    return float(np.abs(_residuals(outputs, labels)[0]).mean())


def _rmse(outputs: Outputs, labels: np.ndarray) -> float:
    return float(np.sqrt((_residuals(outputs, labels)[0] ** 2).mean()))


def _r2(outputs: Outputs, labels: np.ndarray) -> float:
    """Return the mean R² over the targets; of a constant target, 1 where it is hit exactly, else 0."""
    error, want = _residuals(outputs, labels)
    unexplained = (error**2).sum(axis=0)
    total = ((want - want.mean(axis=0)) ** 2).sum(axis=0)
    constant = total == 0.0
    shares = 1.0 - unexplained / np.where(constant, 1.0, total)
    return float(np.where(constant, (unexplained == 0.0).astype(np.float64), shares).mean())


def _not_per_sample(outputs: Outputs, labels: np.ndarray) -> None:
    """Say that the metric is no mean over samples."""


#: Name to metric. Adding one is a function, a line here and a test.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", True, ("classification",), _top1, _top1_right),
        Metric("top5", True, ("classification",), _top5, _top5_right),
        Metric("macro_f1", True, ("classification",), _macro_f1, _not_per_sample),
        Metric("macro_recall", True, ("classification",), _macro_recall, _not_per_sample),
        Metric("mae", False, ("regression",), _mae, _not_per_sample),
        Metric("rmse", False, ("regression",), _rmse, _not_per_sample),
        Metric("r2", True, ("regression",), _r2, _not_per_sample),
    )
}

_DEFAULTS = {"classification": "top1", "regression": "mae"}


def infer_task(outputs: Outputs, labels: np.ndarray | None) -> str:
    """Return what a model seems to do: `classification`, `regression`, or `other` where nothing tells.

    Rows of probabilities, or of scores beside whole-number labels, are classes; so is one probability beside
    labels that are 0 and 1.

    Args:
        outputs: The model's, by name, float [N, …].
        labels: [N, …]; None where there are none. Text is classes already.
    """
    first = next(iter(outputs.values()))
    truth = np.empty(0) if labels is None else labels
    whole = truth.dtype.kind in "iu"
    if first.ndim == 2 and first.shape[1] >= 2:
        shares = bool((first >= 0).all()) and bool((abs(first.sum(axis=1) - 1) < 1e-3).all())
        classes = shares or whole
    else:
        one = first.size == len(first) and bool(((first >= 0) & (first <= 1)).all())
        classes = one and whole and set(np.unique(truth)) == {0, 1}
    if classes:
        return "classification"
    return "other" if labels is None else "regression"


def default_metric(task: str) -> str:
    """Return the name of the metric that a task is scored by when nobody names one.

    Raises:
        UsageError: The task has no metric yet.
    """
    if task not in _DEFAULTS:
        raise UsageError(f"no metric for the task {task!r}", expected="one of " + ", ".join(_DEFAULTS))
    return _DEFAULTS[task]


def get_metric(name: str | None, task: str) -> Metric:
    """Return the metric called `name`, or the task's default.

    Raises:
        UsageError: No metric has that name, or it does not fit the task.
    """
    chosen = name or default_metric(task)
    known = [metric.name for metric in METRICS.values() if task in metric.tasks]
    if chosen not in known:
        raise UsageError(
            f"metric {chosen!r} is not for the task {task!r}", expected="one of " + ", ".join(known)
        )
    return METRICS[chosen]

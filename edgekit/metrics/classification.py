"""Classification: shares of right answers, F1 and recall by class."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UsageError
from edgekit.metrics.base import Metric, Outputs, not_per_sample, scored_output

__all__ = ["METRICS", "both_classes", "class_scores_of", "confusion_matrix", "predicted_classes"]


def class_scores_of(outputs: Outputs) -> np.ndarray:
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
    best: np.ndarray = class_scores_of(outputs).argmax(axis=1)
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
    scores = class_scores_of(outputs)
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


_TASKS = ("classification",)

METRICS = (
    Metric("top1", True, _TASKS, _top1, _top1_right),
    Metric("top5", True, _TASKS, _top5, _top5_right),
    Metric("macro_f1", True, _TASKS, _macro_f1, not_per_sample),
    Metric("macro_recall", True, _TASKS, _macro_recall, not_per_sample),
)

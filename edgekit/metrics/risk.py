"""Binary risk tasks: how well one score ranks the positive class, and how honest a probability is.

Labels are 0 and 1; the score is the second of two columns, or the only one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.errors import UsageError
from edgekit.metrics.base import Outputs, Resampler, prepared_metric
from edgekit.metrics.classification import class_scores_of

__all__ = ["CALIBRATION_BINS", "LEAST_PRECISION", "METRICS"]

#: Bins of equal width between 0 and 1 of the expected calibration error.
CALIBRATION_BINS = 15
#: Precision that `recall_at_precision` demands.
LEAST_PRECISION = 0.9

#: Takes true and false positives at each threshold, from the highest score down, float64 [T].
Curve = Callable[[np.ndarray, np.ndarray], float]


def _positive_scores(outputs: Outputs, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positive class's score, float64 [N], and whether each sample is positive, bool [N]."""
    scores = class_scores_of(outputs).astype(np.float64)
    if scores.shape[1] != 2:
        raise UsageError(
            "a binary metric needs a binary score", got=f"{scores.shape[1]} classes", expected="2"
        )
    truth = np.asarray(labels)
    if truth.shape != (len(scores),) or not np.isin(truth, (0, 1)).all():
        raise UsageError("a binary metric needs labels that are 0 or 1, one for each sample")
    # beside two logits only their difference ranks; beside two shares the first is what the second leaves
    shares = bool((scores >= 0).all()) and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3)
    return scores[:, 1] if shares else scores[:, 1] - scores[:, 0], truth == 1


def _from_curve(curve: Curve) -> Callable[[Outputs, np.ndarray], Resampler]:
    """Return what prepares a metric of the true and false positives: the samples are sorted once."""

    def prepare(outputs: Outputs, labels: np.ndarray) -> Resampler:
        scores, positive = _positive_scores(outputs, labels)
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores cross together
        hits = positive[order]

        def value(index: np.ndarray) -> float:
            weights = np.bincount(index, minlength=len(order))[order].astype(np.float64)
            true = np.cumsum(weights * hits)[last]
            return curve(true, np.cumsum(weights)[last] - true)

        return value

    return prepare


def _roc_auc(true: np.ndarray, false: np.ndarray) -> float:
    """Return the area under the ROC curve by trapezes, which is the share of pairs ranked right.

    A resample of one class only ranks nothing and counts as one half.

    Source: T. Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006), 861-874.
    """
    if not true[-1] or not false[-1]:
        return 0.5
    x, y = np.append(0.0, false), np.append(0.0, true)
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / (2.0 * true[-1] * false[-1]))


def _precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    shares: np.ndarray = true / np.maximum(true + false, 1.0)
    return shares


def _pr_auc(true: np.ndarray, false: np.ndarray) -> float:
    """Return the average precision: Σ (R_k - R_{k-1}) P_k over the thresholds, without interpolation.

    Source: scikit-learn, `average_precision_score`; a linear interpolation would be too optimistic
    (J. Davis and M. Goadrich, The relationship between precision-recall and ROC curves, ICML 2006).
    """
    if not true[-1]:
        return 0.0
    return float((np.diff(np.append(0.0, true)) * _precision(true, false)).sum() / true[-1])


def _recall_at_precision(true: np.ndarray, false: np.ndarray) -> float:
    """Return the highest recall of any threshold whose precision is at least `LEAST_PRECISION`; 0 if none is."""
    enough = (_precision(true, false) >= LEAST_PRECISION) & (true > 0)
    return float(true[enough].max() / true[-1]) if enough.any() else 0.0


def _prepare_ece(outputs: Outputs, labels: np.ndarray) -> Resampler:
    """Prepare the expected calibration error: Σ_b (n_b / N) |accuracy_b - confidence_b|, bins (lower, upper].

    Of any number of classes; the confidence is the largest probability. Scores that are no probabilities are
    taken as logits.

    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017, equation 5.
    """
    shares = _probabilities(class_scores_of(outputs).astype(np.float64))
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == np.asarray(labels)
    where = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gap = right.astype(np.float64) - confidence

    def value(index: np.ndarray) -> float:
        sums = np.bincount(where[index], weights=gap[index], minlength=CALIBRATION_BINS)
        return float(np.abs(sums).sum() / len(index))

    return value


def _probabilities(scores: np.ndarray) -> np.ndarray:
    if (scores >= -1e-3).all() and np.allclose(scores.sum(axis=1), 1.0, atol=1e-2):
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


_TASKS = ("classification",)

METRICS = (
    prepared_metric("roc_auc", _TASKS, _from_curve(_roc_auc)),
    prepared_metric("pr_auc", _TASKS, _from_curve(_pr_auc)),
    prepared_metric("recall_at_precision", _TASKS, _from_curve(_recall_at_precision)),
    prepared_metric("ece", _TASKS, _prepare_ece, higher_is_better=False),
)

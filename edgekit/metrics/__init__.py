"""Metrics: how good a model's outputs are, given the labels, or beside the source's own outputs.

One file for each task. A drop is always in percentage points: `base.drop_in_points` says of what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.metrics import classification, detection, embedding, generation, regression, risk, segmentation
from edgekit.metrics.base import Metric, Outputs, Resampler, drop_in_points, resampler, scored_output
from edgekit.metrics.classification import both_classes, confusion_matrix, predicted_classes
from edgekit.metrics.detection import detected_classes, detections_in
from edgekit.metrics.embedding import cosines
from edgekit.metrics.generation import signal_to_noise
from edgekit.metrics.segmentation import predicted_mask

__all__ = [
    "METRICS",
    "Metric",
    "Outputs",
    "Resampler",
    "both_classes",
    "confusion_matrix",
    "cosines",
    "default_metric",
    "detected_classes",
    "detections_in",
    "drop_in_points",
    "get_metric",
    "infer_task",
    "labels_needed",
    "predicted_classes",
    "predicted_mask",
    "resampler",
    "scored_output",
    "signal_to_noise",
]

#: Name to metric. Adding one is a function, a line in its task's file and a test.
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for task in (classification, risk, regression, detection, segmentation, embedding, generation)
    for metric in task.METRICS
}

_DEFAULTS = {
    "classification": "top1",
    "regression": "mae",
    "detection": "map",
    "segmentation": "miou",
    "embedding": "cosine",
    "generation": "psnr",
}


def infer_task(
    outputs: Outputs, labels: np.ndarray | None, postprocess: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return what a model seems to do: `classification`, `regression`, …, or `other` where nothing tells.

    Steps that decode boxes or masks say it themselves. Rows of probabilities, or of scores beside whole-number
    labels, are classes; so is one probability beside labels that are 0 and 1.

    Args:
        outputs: The model's, by name, float [N, …].
        labels: [N, …]; None where there are none. Text is classes already.
        postprocess: The bundle's steps.
    """
    kinds = {step.get("kind") for step in postprocess}
    if kinds & {"boxes", "nms"}:
        return "detection"
    if kinds & {"argmax", "resize-mask"}:
        return "segmentation"
    first = scored_output(outputs)
    truth = np.empty(0) if labels is None else labels
    whole = truth.dtype.kind in "iu"
    if first.dtype.kind in "iub" and first.size == len(first):  # the class itself
        return "classification" if labels is None or whole else "regression"
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


def labels_needed(name: str | None, task: str | None) -> bool:
    """Tell whether evaluation data must carry labels: not where the source's own outputs will do.

    Args:
        name: The metric asked for; None for the task's default.
        task: The task asked for; None where it is still to be inferred.
    """
    chosen = name or _DEFAULTS.get(task or "", "")
    return chosen not in METRICS or METRICS[chosen].target == "labels"

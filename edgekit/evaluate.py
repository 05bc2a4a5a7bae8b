"""Scoring a bundle on labelled data: the task's metric with its interval, and where it errs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.data import Dataset, class_labels, read_data
from edgekit.errors import RefusedError, UsageError
from edgekit.golden import run_samples
from edgekit.local import session_here
from edgekit.metrics import (
    METRICS,
    Metric,
    confusion_matrix,
    get_metric,
    predicted_classes,
    resampler,
    scored_output,
)
from edgekit.postprocess import finish
from edgekit.sequences import driven_inputs

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.manifest import Plan

__all__ = [
    "ClassScore",
    "Evaluation",
    "bootstrap_interval",
    "class_scores",
    "evaluate",
    "score",
    "wilson_interval",
]

#: The 97.5 % quantile of the standard normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Evaluation:
    """How well an artifact does on labelled data.

    Attributes:
        metric: The metric's name.
        value: Its value.
        low: Lower end of the two-sided 95 % interval.
        high: Upper end of the two-sided 95 % interval.
        interval: How the interval was made: `wilson` or `bootstrap`.
        n: Samples.
        confusion: int64 [classes, classes], row = label, column = prediction; None where there are no classes.
        class_names: Names of the classes, as many as `confusion` has rows; empty where there are no classes.
        plan: How it was run.
    """

    metric: str
    value: float
    low: float
    high: float
    interval: str
    n: int
    confusion: np.ndarray | None
    class_names: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True)
class ClassScore:
    """One class: how many samples have it, the share of them found, the share of its predictions that are right.

    Attributes:
        recall: NaN where no sample has the class.
        precision: NaN where the class was never predicted.
        mistaken_for: The class most often predicted in its place; empty where there is none.
        mistakes: How often that one was.
    """

    name: str
    n: int
    recall: float
    precision: float
    mistaken_for: str
    mistakes: int


def evaluate(
    bundle: Bundle,
    data: Path,
    *,
    metric: str | None = None,
    artifact: str | None = None,
    label_column: str | None = None,
    device: str | None = None,
    runtime: str | None = None,
    allow_fallback: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score a bundle on labelled data, as it would run on this machine.

    Args:
        bundle: The bundle.
        data: What `edgekit.data.read_data` reads.
        metric: Name of the metric; None for the task's own.
        artifact: The only artifact to consider; None to leave the choice to the plan.
        label_column: Column of a table that holds the labels.
        device: Profile to go by; None for the detected device.
        runtime: The only runtime to consider.
        allow_fallback: Whether a device or runtime given by hand may step down.
        progress: Is told (phrase, samples done, samples in all).

    Raises:
        UsageError: The metric does not fit the task or needs the source model, or the data does not fit the model.
        RefusedError: An output is not finite.
    """
    manifest = bundle.manifest
    chosen = get_metric(metric, manifest.task)
    if chosen.target == "source":
        raise UsageError(
            f"{chosen.name} compares with the source model, which is not in a bundle",
            expected="another --metric: "
            + ", ".join(m.name for m in METRICS.values() if manifest.task in m.tasks and m != chosen),
        )
    with session_here(
        bundle, device=device, runtime=runtime, artifact=artifact, allow_fallback=allow_fallback
    ) as (plan, session):
        dataset = read_data(
            data,
            driven_inputs(session.inputs, manifest.state),
            preprocess=manifest.preprocess,
            label_column=label_column,
            need_labels=True,
            class_names=manifest.labels,
        )
        outputs = run_samples(session, dataset.inputs, progress, manifest.state)
    _refuse_non_finite(outputs, plan)
    return score(chosen, finish(manifest.postprocess, outputs), dataset, manifest.labels, plan)


def score(
    metric: Metric, outputs: Mapping[str, np.ndarray], data: Dataset, names: Sequence[str], plan: Plan
) -> Evaluation:
    """Return the evaluation of outputs that are there already.

    Args:
        metric: What to score.
        outputs: By name, float [N, …], after the bundle's postprocessing.
        data: The labelled data.
        names: The model's class names, where it has any.
        plan: How the outputs came about.
    """
    assert data.labels is not None
    _refuse_non_finite(outputs, plan)
    labels, matrix = data.labels, None
    classes: tuple[str, ...] = ()
    if "classification" in metric.tasks:
        count = _class_count(outputs, names)
        labels = class_labels(labels, count)
        matrix = confusion_matrix(predicted_classes(outputs), labels, count)
        classes = tuple(names) if len(names) == count else tuple(str(index) for index in range(count))
    right = metric.per_sample(outputs, labels)
    if right is not None:
        kind, (low, high) = "wilson", wilson_interval(int(right.sum()), len(right))
    else:
        kind, (low, high) = "bootstrap", bootstrap_interval(metric, outputs, labels)
    value = metric.value(outputs, labels)
    return Evaluation(metric.name, value, low, high, kind, data.n, matrix, classes, plan)


def _refuse_non_finite(outputs: Mapping[str, np.ndarray], plan: Plan) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            sample = int(np.argwhere(~np.isfinite(array))[0][0])
            raise RefusedError(
                f"{plan.artifact} answers sample {sample} with a value of {name!r} that is not finite"
            )


def _class_count(outputs: Mapping[str, np.ndarray], names: Sequence[str]) -> int:
    """Return how many classes the model tells apart: by its scores, else by its names, else by its answers."""
    scores = scored_output(outputs)
    width = scores.size // len(scores)
    if scores.dtype.kind == "f":
        return max(width, 2)
    return len(names) or int(predicted_classes(outputs).max()) + 1


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Return the two-sided 95 % score interval of a share.

    Source: E. B. Wilson, Probable inference, Journal of the American Statistical Association 22 (1927), 209-212.

    Example:
        >>> [round(end, 4) for end in wilson_interval(8, 10)]
        [0.4902, 0.9433]
    """
    share, z2 = right / n, _Z * _Z
    centre = share + z2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    # at the ends the formula is exact, the arithmetic is not
    return (0.0 if right == 0 else low), (1.0 if right == n else high)


def bootstrap_interval(
    metric: Metric,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Return the two-sided 95 % percentile interval of any metric, by resampling the samples.

    Source: B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979), 1-26.
    """
    random = np.random.default_rng(seed)
    n, value_of = len(labels), resampler(metric, outputs, labels)
    values = [value_of(random.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def class_scores(confusion: np.ndarray, names: Sequence[str]) -> list[ClassScore]:
    """Return what the confusion matrix says of each class, in the classes' order."""
    support, predicted, right = confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)
    wrong = confusion - np.diag(right)
    worst = wrong.argmax(axis=1)
    return [
        ClassScore(
            name=name,
            n=int(support[index]),
            recall=float(right[index] / support[index]) if support[index] else math.nan,
            precision=float(right[index] / predicted[index]) if predicted[index] else math.nan,
            mistaken_for=names[worst[index]] if wrong[index].any() else "",
            mistakes=int(wrong[index].max()),
        )
        for index, name in enumerate(names)
    ]

"""What a metric is, what it is resampled by, and how a drop of it becomes percentage points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import numpy as np

__all__ = [
    "CEILING_DB",
    "POINTS_PER_DB",
    "Metric",
    "Outputs",
    "Resampler",
    "drop_in_points",
    "not_per_sample",
    "prepared_metric",
    "resampler",
    "scored_output",
]

Outputs = Mapping[str, np.ndarray]
#: Takes sample indices, int64 [n], and returns the metric's value on those samples.
Resampler = Callable[[np.ndarray], float]

#: A drop of half a decibel against labels is one percentage point: the whole scale is 50 dB.
POINTS_PER_DB = 2.0
#: What a perfect copy scores in dB: a finite number, since evidence is stored as JSON.
CEILING_DB = 100.0


class Metric(msgspec.Struct, frozen=True):
    """One way to score.

    Attributes:
        name: Its name on the command line.
        higher_is_better: False for errors.
        tasks: Tasks that it makes sense for.
        value: Takes the outputs by name, float [N, …], and the labels [N, …]; returns the score.
        per_sample: The same arguments; returns 1.0 where a sample is right and 0.0 where it is wrong,
            float64, for a metric that is the mean of that; None for every other metric.
        prepare: The same arguments; does once what does not depend on the resample, and returns the function
            that scores one. None where `value` on the samples taken is all there is.
        unit: What the value is: a `share`, an error in the labels' units (`label-range`), or `decibel`. It
            says how a drop becomes percentage points, see `drop_in_points`.
        target: What the outputs are held against: `labels`, the source model's own outputs (`source`), or
            labels where there are any and else the source's (`either`).
    """

    name: str
    higher_is_better: bool
    tasks: tuple[str, ...]
    value: Callable[[Outputs, np.ndarray], float]
    per_sample: Callable[[Outputs, np.ndarray], np.ndarray | None]
    prepare: Callable[[Outputs, np.ndarray], Resampler] | None = None
    unit: Literal["share", "label-range", "decibel"] = "share"
    target: Literal["labels", "source", "either"] = "labels"


def not_per_sample(outputs: Outputs, labels: np.ndarray) -> None:
    """Say that the metric is no mean over right and wrong samples."""


def prepared_metric(
    name: str,
    tasks: tuple[str, ...],
    prepare: Callable[[Outputs, np.ndarray], Resampler],
    *,
    higher_is_better: bool = True,
    unit: Literal["share", "label-range", "decibel"] = "share",
    target: Literal["labels", "source", "either"] = "labels",
) -> Metric:
    """Return a metric whose value is that of its resampler on every sample once."""

    def value(outputs: Outputs, labels: np.ndarray) -> float:
        return prepare(outputs, labels)(np.arange(len(labels)))

    return Metric(name, higher_is_better, tasks, value, not_per_sample, prepare, unit, target)


def resampler(metric: Metric, outputs: Outputs, labels: np.ndarray) -> Resampler:
    """Return the function that scores any resample of these samples.

    Args:
        metric: What to score.
        outputs: By name, [N, …].
        labels: [N, …].
    """
    if metric.prepare is not None:
        return metric.prepare(outputs, labels)

    def value(index: np.ndarray) -> float:
        return metric.value({name: array[index] for name, array in outputs.items()}, labels[index])

    return value


def drop_in_points(
    metric: Metric, source: float, artifact: float, labels: np.ndarray, *, against_source: bool = False
) -> float:
    """Return how much worse the artifact is than the source, in percentage points; negative if better.

    One percentage point is
    - of a share: 0.01 of it;
    - of an error in the labels' units: 1 % of the labels' range;
    - of decibels against labels: 0.5 dB, which is 1 % of a scale of 50 dB;
    - of decibels against the source's own outputs: a deviation of 1 % of the signal (of its range for PSNR, of
      its root mean square for SNR), 10^(-dB / 20). A copy at 40 dB has lost one point.

    Args:
        metric: What was scored.
        source: The source's value.
        artifact: The artifact's value.
        labels: What both were held against, [N, …].
        against_source: Whether that was the source's own output.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    if metric.unit == "decibel" and against_source:
        return 100.0 * float(10.0 ** (-artifact / 20.0) - 10.0 ** (-source / 20.0))
    if metric.unit == "decibel":
        return sign * POINTS_PER_DB * (source - artifact)
    if metric.unit == "label-range":
        return sign * (100.0 / (float(np.ptp(labels)) or 1.0)) * (source - artifact)
    return sign * 100.0 * (source - artifact)


def scored_output(outputs: Outputs) -> np.ndarray:
    """Return the output that metrics look at: the one called like `probabilities`, else the first."""
    for name, array in outputs.items():
        if "probabilit" in name.lower():
            return array
    return next(iter(outputs.values()))

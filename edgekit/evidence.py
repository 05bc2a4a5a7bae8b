"""What a report shows of an artifact's answers beside the source's: confusion, worst samples. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from edgekit.metrics import predicted_classes, scored_output
from edgekit.metrics.classification import class_scores_of

__all__ = ["MOST_CLASSES", "WorstSample", "confusion", "worst_samples"]

#: A square of more classes is not kept.
MOST_CLASSES = 1000
#: A picture's longer side, at most, in pixels: a report is no album.
_LARGEST = 96
#: Numbers of a sample that is no picture, at most.
_LONGEST = 512
_TOP = 3


class WorstSample(msgspec.Struct, frozen=True):
    """One of the samples on which an artifact is furthest from its source.

    Attributes:
        index: Its place in the data.
        error: Largest absolute error, as a fraction of the output's range.
        label: The true class's name; None where unknown.
        source: The source's best three, (class name, score); empty where there are no classes.
        artifact: The artifact's best three.
        picture: uint8 [H, W, 1 or 3], or a row of float32; None where the input is neither.
    """

    index: int
    error: float
    label: str | None = None
    source: tuple[tuple[str, float], ...] = ()
    artifact: tuple[tuple[str, float], ...] = ()
    picture: Any = None


def confusion(
    reference: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]
) -> tuple[tuple[int, ...], ...] | None:
    """Return how often the source's class (row) became the artifact's (column); None where there are no classes.

    Args:
        reference: The source's outputs of a classification, [N, …] by name.
        answers: The artifact's, of the same samples.
    """
    before, after = _classes(reference), _classes(answers)
    if before is None or after is None or before.shape != after.shape or not before.size:
        return None
    scores = scored_output(reference)
    count = max(int(before.max()), int(after.max())) + 1
    if scores.dtype.kind == "f":
        count = max(count, scores.size // len(scores), 2)
    if min(int(before.min()), int(after.min())) < 0 or count > MOST_CLASSES:
        return None
    matrix = np.bincount(before * count + after, minlength=count * count).reshape(count, count)
    return tuple(tuple(row) for row in matrix.tolist())


def _classes(outputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return each sample's class, int64 [N]; None where the scored output tells none."""
    scores = scored_output(outputs)
    if scores.dtype.kind not in "fiu" or (
        scores.ndim > 1 and scores.size // max(1, len(scores)) != scores.shape[-1]
    ):
        return None
    return np.asarray(predicted_classes(outputs), np.int64).reshape(len(scores))


def worst_samples(
    reference: Mapping[str, np.ndarray],
    answers: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    task: str,
    n: int = 8,
    names: Sequence[str] = (),
) -> tuple[WorstSample, ...]:
    """Return the samples on which an artifact is furthest from its source, worst first.

    Of a classification, those whose class changed come first.

    Args:
        reference: The source's outputs, [N, …] by name.
        answers: The artifact's, of the same samples.
        inputs: What went in, [N, …] by name.
        labels: True classes, integers [N]; None where unknown.
        task: The model's.
        n: How many, at most.
        names: Of the classes, in the model's order.
    """
    errors = _errors(reference, answers)
    classes = task == "classification"
    before, after = (_classes(reference), _classes(answers)) if classes else (None, None)
    changed = before != after if before is not None and after is not None else np.zeros(len(errors), bool)
    order = np.lexsort((np.arange(len(errors)), -errors, ~changed))[:n]
    return tuple(
        WorstSample(
            index=int(i),
            error=float(errors[i]),
            label=_label(labels, int(i), names) if classes else None,
            source=_best(reference, int(i), names) if before is not None else (),
            artifact=_best(answers, int(i), names) if after is not None else (),
            picture=_picture(inputs, int(i)),
        )
        for i in order
        if errors[i] > 0.0
    )


def _errors(reference: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return each sample's largest absolute error, as a fraction of its output's range; infinity where not finite."""
    count = len(next(iter(reference.values())))
    worst = np.zeros(count)
    for name, wanted in reference.items():
        if wanted.dtype.kind not in "fiub" or not wanted.size:
            continue
        want, got = (np.asarray(a, np.float64).reshape(count, -1) for a in (wanted, answers[name]))
        spread = float(want.max() - want.min()) or 1.0
        difference = np.abs(got - want).max(axis=1) / spread
        worst = np.maximum(worst, np.where(np.isfinite(difference), difference, np.inf))
    return worst


def _label(labels: np.ndarray | None, i: int, names: Sequence[str]) -> str | None:
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None
    return _name(int(labels[i]), names)


def _name(number: int, names: Sequence[str]) -> str:
    return names[number] if 0 <= number < len(names) else f"class {number}"


def _best(outputs: Mapping[str, np.ndarray], i: int, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    if scored_output(outputs).dtype.kind != "f":  # the class itself
        return ((_name(int(predicted_classes(outputs)[i]), names), 1.0),)
    row = class_scores_of(outputs)[i]
    order = np.argsort(-np.nan_to_num(row, nan=-np.inf), kind="stable")[:_TOP]
    return tuple((_name(int(k), names), float(row[k])) for k in order)


def _picture(inputs: Mapping[str, np.ndarray], i: int) -> np.ndarray | None:
    """Return a sample as a picture where one of its inputs is one, else the first row of numbers."""
    samples = [np.asarray(array[i]) for array in inputs.values()]
    for sample in samples:
        picture = _as_picture(sample)
        if picture is not None:
            return picture
    numbers = next((s for s in samples if s.dtype.kind in "fiub" and s.size > 1), None)
    return np.asarray(numbers, np.float32).ravel()[:_LONGEST] if numbers is not None else None


def _as_picture(sample: np.ndarray) -> np.ndarray | None:
    """Return uint8 [H, W, 1 or 3]; floats are stretched unless they lie in [0, 1]."""
    if sample.dtype.kind not in "fu" or sample.ndim not in (2, 3) or min(sample.shape) < 1:
        return None
    if sample.ndim == 2:
        sample = sample[:, :, None]
    elif sample.shape[2] not in (1, 3):
        sample = np.moveaxis(sample, 0, 2)
    if sample.shape[2] not in (1, 3) or min(sample.shape[:2]) < 4:
        return None
    step = -(-max(sample.shape[:2]) // _LARGEST)
    return _bytes(sample[::step, ::step])


def _bytes(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    values = np.nan_to_num(np.asarray(pixels, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0.0 or high > 1.0:
        values = (values - low) / ((high - low) or 1.0)
    return np.ascontiguousarray(np.rint(values * 255.0).astype(np.uint8))

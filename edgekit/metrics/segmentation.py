"""Segmentation: the mean intersection over union."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UsageError
from edgekit.metrics.base import Outputs, Resampler, prepared_metric, scored_output
from edgekit.metrics.classification import both_classes

__all__ = ["IGNORED", "METRICS", "predicted_mask"]

#: Label of pixels that count for nothing, as Pascal VOC has it; so does every negative label.
IGNORED = 255


def predicted_mask(outputs: Outputs, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the class of each pixel, int64 [N, H, W].

    Args:
        outputs: A map of classes, whole numbers [N, H, W]; or scores, float [N, H, W, C] or [N, C, H, W],
            where a single channel is the positive class's probability or logit.
        shape: [N, H, W] of the labels, which tells where the channels are; None to go by the smaller of the two
            axes.
    """
    array = np.asarray(scored_output(outputs))
    if array.dtype.kind in "iub":
        array = array.reshape(array.shape[:3]) if array.ndim == 4 and 1 in array.shape[3:] else array
        return array.astype(np.int64)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise UsageError(
            "the output holds no map of class scores",
            got=f"{array.dtype} {list(array.shape)}",
            expected="whole numbers [N, H, W], or float [N, H, W, C] or [N, C, H, W]",
        )
    scores = array if _channels_last(array, shape) else np.moveaxis(array, 1, -1)
    if scores.shape[-1] == 1:
        flat = both_classes(scores.reshape(-1, 1))
        scores = flat.reshape(*scores.shape[:3], 2)
    best: np.ndarray = scores.argmax(axis=-1)
    return best


def _channels_last(array: np.ndarray, shape: tuple[int, ...] | None) -> bool:
    if shape is None:
        return bool(array.shape[-1] <= array.shape[1])
    if array.shape[1:3] != shape[1:] and array.shape[2:] != shape[1:]:
        raise UsageError(
            "the labels have not the output's size",
            got=list(shape),
            expected=f"[N, H, W] of an output {list(array.shape)}",
            hint="Resize the output with a step resize-mask in [[postprocess]], or the labels.",
        )
    return bool(array.shape[1:3] == shape[1:])


def _prepare_miou(outputs: Outputs, labels: np.ndarray) -> Resampler:
    """Prepare the mean IoU: pixels are counted once for each image and class, and add up in any resample.

    The mean over the classes that occur as a label or an answer of n_ii / (t_i + Σ_j n_ji - n_ii).

    Source: J. Long, E. Shelhamer, T. Darrell, Fully convolutional networks for semantic segmentation, CVPR 2015.
    """
    truth = np.asarray(labels)
    if truth.ndim == 4 and truth.shape[-1] == 1:
        truth = truth[..., 0]
    if truth.ndim != 3 or not np.array_equal(truth, np.floor(truth)):
        raise UsageError("masks are whole numbers", got=list(truth.shape), expected="[N, H, W]")
    answers = predicted_mask(outputs, truth.shape)
    if answers.shape != truth.shape:
        raise UsageError(
            "the labels have not the output's size", got=list(truth.shape), expected=list(answers.shape)
        )
    counted = (truth >= 0) & (truth != IGNORED)
    classes = int(max(truth[counted].max(initial=0), answers.max(initial=0))) + 1
    both, labelled, answered = (
        _count(chosen, where, classes)
        for chosen, where in (
            (answers, counted & (answers == truth)),
            (truth.astype(np.int64), counted),
            (answers, counted),
        )
    )
    union = labelled + answered - both

    def value(index: np.ndarray) -> float:
        weights = np.bincount(index, minlength=len(truth)).astype(np.float64)
        whole, shared = weights @ union, weights @ both
        seen = whole > 0
        return float((shared[seen] / whole[seen]).mean()) if seen.any() else 0.0

    return value


def _count(classes_of: np.ndarray, where: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of each class in each image, float64 [N, classes]."""
    return np.stack(
        [
            np.bincount(picture[mask], minlength=classes).astype(np.float64)
            for picture, mask in zip(classes_of, where, strict=True)
        ]
    )


METRICS = (prepared_metric("miou", ("segmentation",), _prepare_miou),)

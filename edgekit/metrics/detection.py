"""Detection: COCO's mean average precision, cheap enough to resample."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import UnavailableError, UsageError
from edgekit.metrics.base import Outputs, Resampler, prepared_metric

__all__ = ["DETECTIONS", "METRICS", "detected_classes", "detections_in"]

#: The output that the step `nms` writes.
DETECTIONS = "detections"
#: Of one picture and class, as COCO counts.
_MOST_DETECTIONS = 100


@dataclass(frozen=True)
class _ClassMatches:
    """All detections of one class, best first, and what each is at every IoU threshold.

    Attributes:
        image: Place of the picture that each comes from, int64 [D].
        hit: Whether it found an object, float64 [T, D].
        objects: Labelled objects in each picture, float64 [N].
    """

    image: np.ndarray
    hit: np.ndarray
    objects: np.ndarray


def detections_in(outputs: Outputs) -> np.ndarray:
    """Return the detections, float [N, K, 6]: x1, y1, x2, y2, score, class; a class of -1 pads.

    Raises:
        UsageError: The outputs are raw: nothing decodes them.
    """
    found = outputs.get(DETECTIONS)
    if found is None and len(outputs) == 1:
        found = next(iter(outputs.values()))
    if found is None or found.ndim != 3 or found.shape[-1] != 6:
        raise UsageError(
            "the outputs hold no detections",
            got=", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items()),
            expected="[N, K, 6]: x1, y1, x2, y2, score, class",
            hint="Say how they are decoded with [[postprocess]] steps boxes and nms.",
        )
    return np.asarray(found)


def detected_classes(outputs: Outputs, least: float) -> np.ndarray:
    """Return the class of every detection that scores at least `least`, int64 [M]."""
    rows = detections_in(outputs).reshape(-1, 6)
    classes: np.ndarray = rows[(rows[:, 5] >= 0) & (rows[:, 4] >= least), 5]
    return classes.astype(np.int64)


def _check_labels(labels: np.ndarray, pictures: int) -> np.ndarray:
    boxes = np.asarray(labels, np.float64)
    if boxes.ndim != 3 or boxes.shape[-1] != 5 or len(boxes) != pictures:
        raise UsageError(
            "the labels are no boxes",
            got=list(boxes.shape),
            expected=f"[{pictures}, M, 5]: x1, y1, x2, y2, class, padded with class -1",
        )
    real = boxes[..., 4] >= 0
    wrong = real & (
        (boxes[..., 2] < boxes[..., 0]) | (boxes[..., 3] < boxes[..., 1]) | (boxes[..., 4] % 1 != 0)
    )
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        raise UsageError(
            f"label {place[1]} of sample {place[0]} is no box", got=boxes[tuple(place)].tolist(),
            expected="x1, y1, x2, y2, class with x1 <= x2, y1 <= y2 and a whole class",
        )  # fmt: skip
    if not real.any():
        raise UsageError("the labels hold no box at all: every class is -1")
    return boxes


def _coco(rows: list[dict[str, Any]], pictures: int, classes: list[int]) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise UnavailableError(
            "mAP needs pycocotools", hint="Run: pip install 'edgekit-deploy[convert]'."
        ) from error
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(pictures)],
        "categories": [{"id": c} for c in classes],
        "annotations": [row | {"id": i + 1, "iscrowd": 0} for i, row in enumerate(rows)],
    }
    coco.createIndex()
    return coco


def _row(picture: int, box: np.ndarray, **more: float) -> dict[str, Any]:
    x1, y1, x2, y2 = box[:4].tolist()
    width, height = x2 - x1, y2 - y1
    return {"image_id": picture, "bbox": [x1, y1, width, height], "area": width * height, **more}


def _evaluate(
    detections: np.ndarray, labels: np.ndarray, thresholds: np.ndarray
) -> tuple[list[Any], list[int]]:
    """Return pycocotools' matches of each class and picture, classes outside, and the classes."""
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        classes = sorted({int(c) for c in labels[..., 4].ravel() if c >= 0})
        truth = [
            _row(i, box, category_id=int(box[4]))
            for i, boxes in enumerate(labels)
            for box in boxes
            if box[4] >= 0
        ]
        found = [
            _row(i, box, score=float(box[4]), category_id=int(box[5]))
            for i, boxes in enumerate(detections)
            for box in boxes
            if int(box[5]) in classes
        ]
        gold = _coco(truth, len(labels), classes)
        ours = _coco(found, len(labels), classes)
        from pycocotools.cocoeval import COCOeval

        run = COCOeval(gold, ours, "bbox")
        run.params.iouThrs = thresholds
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.maxDets = [_MOST_DETECTIONS]
        run.evaluate()
    return run.evalImgs, classes


def _matches(detections: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> list[_ClassMatches]:
    every, classes = _evaluate(detections, labels, thresholds)
    n = len(labels)
    found = []
    for k in range(len(classes)):
        images = every[k * n : (k + 1) * n]
        seen = [image for image in images if image is not None]
        scores = np.concatenate([image["dtScores"] for image in seen])
        order = np.argsort(-scores, kind="mergesort")
        hit = np.concatenate([image["dtMatches"] for image in seen], axis=1)[:, order] > 0
        place = np.repeat([image["image_id"] for image in seen], [len(image["dtScores"]) for image in seen])
        objects = [0.0 if image is None else float(len(image["gtIds"])) for image in images]
        found.append(_ClassMatches(place.astype(np.int64)[order], hit.astype(np.float64), np.array(objects)))
    return found


def _average_precision(matches: _ClassMatches, weights: np.ndarray) -> float | None:
    """Return one class's precision, averaged over 101 recalls and all thresholds; None without an object.

    What `COCOeval.accumulate` computes when each picture is there as often as `weights` says: a picture twice is
    each of its detections twice in a row, and the falling envelope of the precision hides what is between.

    Args:
        matches: Of the class.
        weights: How often each picture counts, float64 [N].
    """
    objects = float(weights @ matches.objects)
    if not objects:
        return None
    there = weights[matches.image]
    true = np.cumsum(matches.hit * there, axis=1)
    if not true.shape[1]:
        return 0.0
    precision = true / (np.cumsum(there) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recalls = np.linspace(0.0, 1.0, 101)
    total = 0.0
    for recall, heights in zip(true / objects, envelope, strict=True):
        places = np.searchsorted(recall, recalls, side="left")
        total += float(heights[places[places < len(heights)]].sum())
    return total / (len(recalls) * len(true))


def _prepare_map(thresholds: np.ndarray) -> Callable[[Outputs, np.ndarray], Resampler]:
    """Return what prepares the mean average precision over classes that have an object.

    Source: T.-Y. Lin et al., Microsoft COCO, ECCV 2014, as `pycocotools` computes it for areas of any size and
    100 detections a picture: matches by `COCOeval.evaluate`, once; the rest is repeated for each resample.
    """

    def prepare(outputs: Outputs, labels: np.ndarray) -> Resampler:
        detections = detections_in(outputs)
        boxes = _check_labels(labels, len(detections))
        every = _matches(detections, boxes, thresholds)

        def value(index: np.ndarray) -> float:
            weights = np.bincount(index, minlength=len(boxes)).astype(np.float64)
            parts = [_average_precision(matches, weights) for matches in every]
            there = [part for part in parts if part is not None]
            return float(np.mean(there)) if there else 0.0

        return value

    return prepare


_TASKS = ("detection",)

METRICS = (
    prepared_metric("map", _TASKS, _prepare_map(np.linspace(0.5, 0.95, 10))),
    prepared_metric("map50", _TASKS, _prepare_map(np.array([0.5]))),
)

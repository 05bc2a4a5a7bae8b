"""Boxes: what a detector's raw numbers mean, and which of overlapping boxes stay. On a device: numpy only."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Literal

import msgspec
import numpy as np

from edgekit.errors import UsageError

__all__ = [
    "LARGEST_SIDE",
    "MOST_ANCHORS",
    "MOST_CANDIDATES",
    "MOST_DETECTIONS",
    "Boxes",
    "Grid",
    "Nms",
    "anchor_boxes",
    "check_range",
    "decode_boxes",
    "sigmoid",
    "softmax",
    "suppress",
]

#: Bounds of the work that a bundle may ask of a device.
MOST_ANCHORS = 200_000
MOST_CANDIDATES = 5_000
MOST_DETECTIONS = 1_000
LARGEST_SIDE = 8_192
#: A box never grows beyond 62.5 anchors: exp of more would overflow (as torchvision's decoder has it).
_MOST_GROWTH = float(np.log(1000.0 / 16.0))


def check_range(what: str, value: int, low: int, high: int) -> None:
    """Refuse a number outside [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{what} must be from {low} to {high}, is {value}")


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Anchors on the cells of one feature map, row by row, and within a cell in the order of `sizes`.

    Attributes:
        rows: Cells from top to bottom.
        columns: Cells from left to right.
        sizes: Width and height of each anchor of a cell, as shares of the picture (in pixels with `pixels`).
    """

    rows: int
    columns: int
    sizes: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse an empty grid, and sizes that are none."""
        check_range("rows", self.rows, 1, LARGEST_SIDE)
        check_range("columns", self.columns, 1, LARGEST_SIDE)
        check_range("anchors of a grid", self.count, 1, MOST_ANCHORS)
        if not all(isfinite(side) and side > 0.0 for size in self.sizes for side in size):
            raise ValueError("sizes are positive")

    @property
    def count(self) -> int:
        """How many anchors it has."""
        return self.rows * self.columns * len(self.sizes)


class Boxes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="boxes"):
    """Decode boxes: `boxes`, float32 [N, A, 4] (x1, y1, x2, y2 in pixels), and `scores`, float32 [N, A, C].

    Attributes:
        boxes: Name of the output with the coded boxes, [N, A, 4].
        scores: Name of the output with the scores, [N, A, C]; the same as `boxes` where both are one output
            [N, A, 4 + C], boxes first.
        coding: `xyxy`, `cxcywh` (centre and size), or `ssd-anchors`: with the variances v, centre
            x = v0 t_x w_a + x_a and width w = w_a exp(v2 t_w), likewise y and the height.
        size: Width and height of the picture in pixels.
        units: Whether the coded boxes and the anchors are shares of the picture (`normalised`) or `pixels`.
        anchors: (centre x, centre y, width, height) of each anchor.
        grids: Or the feature maps they stand on, in the order of the outputs' rows.
        variances: Of `ssd-anchors`.
        activation: Of the scores: `none`, `sigmoid` or `softmax` over the classes.
        background: The class that means nothing is there, taken out; those behind it move up by one.
        transposed: The outputs are [N, 4, A] and [N, C, A].
        objectness: The first score is the share of any object; the others are multiplied by it.
        clip: Cut boxes at the picture's border.
    """

    boxes: str
    scores: str
    coding: Literal["xyxy", "cxcywh", "ssd-anchors"]
    size: tuple[int, int]
    units: Literal["normalised", "pixels"] = "normalised"
    anchors: tuple[tuple[float, float, float, float], ...] = ()
    grids: tuple[Grid, ...] = ()
    variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    background: int | None = None
    transposed: bool = False
    objectness: bool = False
    clip: bool = True

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        for side in self.size:
            check_range("size", side, 1, LARGEST_SIDE)
        if (self.coding == "ssd-anchors") != bool(self.anchors or self.grids):
            raise ValueError("anchors or grids belong to the coding ssd-anchors, and to no other")
        if self.anchors and self.grids:
            raise ValueError("anchors come from a list or from grids, not from both")
        if self.coding == "ssd-anchors":
            check_range("anchors", self.count, 1, MOST_ANCHORS)
        numbers = (*self.variances, *(number for anchor in self.anchors for number in anchor))
        if not all(map(isfinite, numbers)) or min(self.variances) <= 0.0:
            raise ValueError("anchors are finite and variances positive")
        if any(min(anchor[2:]) <= 0.0 for anchor in self.anchors):
            raise ValueError("anchors have positive sizes")
        if self.background is not None and self.background < 0:
            raise ValueError("background is a class, 0 or more")

    @property
    def count(self) -> int:
        """How many anchors there are; 0 without any."""
        return len(self.anchors) or sum(grid.count for grid in self.grids)


class Nms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="nms"):
    """Keep the best of overlapping boxes: `detections`, float32 [N, K, 6] (x1, y1, x2, y2, score, class).

    K is `max_per_image`; rows are the best first, and a class of -1 pads. It takes `boxes` and `scores`, as the
    step `boxes` leaves them, out of the outputs.

    Attributes:
        iou: A box that overlaps a better one by more than this goes.
        score_threshold: A score must be above this.
        max_per_image: Most detections of a picture.
        class_aware: Boxes of different classes do not touch each other.
        multi_label: A box may stand for every class above the threshold, not for its best one only.
        candidates: Most boxes of a picture that are compared: the best ones.
    """

    iou: float = 0.5
    score_threshold: float = 0.05
    max_per_image: int = 100
    class_aware: bool = True
    multi_label: bool = False
    candidates: int = 1000

    def __post_init__(self) -> None:
        """Refuse thresholds that are no shares, and unbounded work."""
        if not 0.0 <= self.iou <= 1.0 or not 0.0 <= self.score_threshold < 1.0:
            raise ValueError("iou is a share, and so is score_threshold, which is below 1")
        check_range("max_per_image", self.max_per_image, 1, MOST_DETECTIONS)
        check_range("candidates", self.candidates, 1, MOST_CANDIDATES)


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    """Return shares that sum to one along `axis`, without an overflow."""
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), without an overflow on either side."""
    power = np.exp(-np.abs(values))
    shares: np.ndarray = np.where(values >= 0, 1.0, power) / (1.0 + power)
    return shares.astype(values.dtype)


def anchor_boxes(step: Boxes) -> np.ndarray:
    """Return the anchors, float64 [A, 4]: centre x, centre y, width and height, in the units of the step."""
    if step.anchors:
        return np.array(step.anchors, np.float64)
    width, height = step.size if step.units == "pixels" else (1, 1)
    return np.concatenate([_grid_anchors(grid, width, height) for grid in step.grids])


def _grid_anchors(grid: Grid, width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[: grid.rows, : grid.columns].astype(np.float64)
    centres = np.stack([(x + 0.5) / grid.columns * width, (y + 0.5) / grid.rows * height], axis=-1)
    shapes = np.array(grid.sizes, np.float64)
    whole = (grid.rows, grid.columns, len(shapes), 2)
    both = [np.broadcast_to(centres[:, :, None], whole), np.broadcast_to(shapes, whole)]
    return np.concatenate(both, axis=-1).reshape(-1, 4)


def decode_boxes(step: Boxes, boxes: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return `boxes`, float32 [N, A, 4], and `scores`, float32 [N, A, C], as the step says.

    Raises:
        UsageError: The outputs have other shapes than the step, or each other.
    """
    if boxes.ndim != 3 or scores.ndim != 3:
        raise UsageError("boxes and scores have three axes", got=[list(boxes.shape), list(scores.shape)])
    if step.transposed:
        boxes, scores = boxes.transpose(0, 2, 1), scores.transpose(0, 2, 1)
    if step.boxes == step.scores:
        boxes, scores = boxes[..., :4], scores[..., 4:]
    if boxes.shape[-1] != 4 or boxes.shape[:2] != scores.shape[:2] or step.count not in (0, boxes.shape[1]):
        raise UsageError(
            "boxes, scores and anchors do not fit each other",
            got=f"boxes {list(boxes.shape)}, scores {list(scores.shape)}, {step.count} anchors",
        )
    return {
        "boxes": _corners(step, boxes.astype(np.float64)).astype(np.float32),
        "scores": _class_scores(step, scores.astype(np.float64)).astype(np.float32),
    }


def _corners(step: Boxes, coded: np.ndarray) -> np.ndarray:
    """Return x1, y1, x2, y2 in pixels, float64 [N, A, 4]."""
    if step.coding == "ssd-anchors":
        anchors, variances = anchor_boxes(step), np.array(step.variances)
        scaled = coded * variances
        centre = scaled[..., :2] * anchors[:, 2:] + anchors[:, :2]
        side = anchors[:, 2:] * np.exp(np.minimum(scaled[..., 2:], _MOST_GROWTH))
        corners = np.concatenate([centre - side / 2.0, centre + side / 2.0], axis=-1)
    elif step.coding == "cxcywh":
        centre, side = coded[..., :2], coded[..., 2:]
        corners = np.concatenate([centre - side / 2.0, centre + side / 2.0], axis=-1)
    else:
        corners = coded
    if step.units == "normalised":
        corners = corners * np.array(step.size * 2, np.float64)
    return np.clip(corners, 0.0, np.array(step.size * 2, np.float64)) if step.clip else corners


def _class_scores(step: Boxes, scores: np.ndarray) -> np.ndarray:
    if step.activation == "sigmoid":
        scores = sigmoid(scores)
    elif step.activation == "softmax":
        scores = softmax(scores, -1)
    if step.objectness:
        scores = scores[..., :1] * scores[..., 1:]
    if step.background is not None:
        if step.background >= scores.shape[-1]:
            raise UsageError(
                "the background is no class", got=step.background, expected=f"below {scores.shape[-1]}"
            )
        scores = np.delete(scores, step.background, axis=-1)
    if not scores.shape[-1]:
        raise UsageError("no class is left in the scores")
    return scores


def suppress(step: Nms, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return `detections`, float32 [N, K, 6], of boxes [N, A, 4] and scores [N, A, C]."""
    found = np.zeros((len(boxes), step.max_per_image, 6), np.float32)
    found[..., 5] = -1.0
    for i in range(len(boxes)):
        rows = _candidates(step, boxes[i], scores[i])
        kept = rows[list(_best_apart(rows, step))]
        found[i, : len(kept)] = kept
    return found


def _candidates(step: Nms, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the best boxes above the threshold, float32 [M, 6], best first; equal ones in their order."""
    if step.multi_label:
        anchor, index = np.nonzero(scores > step.score_threshold)
    else:
        index = scores.argmax(axis=1)
        anchor = np.flatnonzero(scores.max(axis=1) > step.score_threshold)
        index = index[anchor]
    values = scores[anchor, index]
    order = np.argsort(-values, kind="stable")[: step.candidates]
    return np.column_stack([boxes[anchor], values, index]).astype(np.float32)[order]


def _best_apart(rows: np.ndarray, step: Nms) -> Iterator[int]:
    """Yield the rows that no better one overlaps too much: greedy, best first."""
    x1, y1, x2, y2 = rows[:, :4].astype(np.float64).T
    areas = np.maximum(x2 - x1, 0.0) * np.maximum(y2 - y1, 0.0)
    left = np.ones(len(rows), bool)
    for _ in range(step.max_per_image):
        if not left.any():
            return
        best = int(left.argmax())
        yield best
        width = np.minimum(x2, x2[best]) - np.maximum(x1, x1[best])
        height = np.minimum(y2, y2[best]) - np.maximum(y1, y1[best])
        shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        union = areas + areas[best] - shared
        over = shared > step.iou * union
        left &= ~(over & (rows[:, 5] == rows[best, 5])) if step.class_aware else ~over
        left[best] = False

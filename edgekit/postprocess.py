"""Postprocessing as data: what a model's raw outputs mean, applied by one pure function.

The steps are the bundle's `postprocess`, read from `[[postprocess]]` tables beside the `[[preprocess]]` ones. They
run in order on the outputs by name; each takes what it needs and leaves the rest. On a device: numpy only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgekit.errors import UsageError
from edgekit.tensors import TensorSpec

__all__ = [
    "Argmax",
    "Boxes",
    "Detection",
    "Grid",
    "Nms",
    "ResizeMask",
    "Sigmoid",
    "Softmax",
    "Step",
    "TopK",
    "anchor_boxes",
    "box_columns",
    "check_postprocess",
    "detections",
    "finish",
    "parse_postprocess",
    "postprocess",
    "read_postprocess",
]

#: Bounds of the work that a bundle may ask of a device.
MOST_ANCHORS = 200_000
MOST_CANDIDATES = 5_000
MOST_DETECTIONS = 1_000
MOST_STEPS = 16
_LARGEST_SIDE = 8_192
#: A box never grows beyond 62.5 anchors: exp of more would overflow (as torchvision's decoder has it).
_MOST_GROWTH = float(np.log(1000.0 / 16.0))


class Softmax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="softmax"):
    """Turn logits into shares that sum to one, in place.

    Attributes:
        output: Name of the output, float.
        axis: The classes' axis.
    """

    output: str
    axis: int = -1


class Sigmoid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="sigmoid"):
    """Turn each logit into a probability of its own, in place.

    Attributes:
        output: Name of the output, float.
    """

    output: str


class TopK(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="top-k"):
    """Add `classes`, int64 [N, k], and `scores`, float [N, k]: the best first, equal ones in their order.

    Attributes:
        output: Name of the output, [N, C]; it stays.
        k: How many; all where there are fewer.
    """

    output: str
    k: int

    def __post_init__(self) -> None:
        """Refuse a count that makes no sense."""
        _in_range("k", self.k, 1, 1000)


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
        _in_range("rows", self.rows, 1, _LARGEST_SIDE)
        _in_range("columns", self.columns, 1, _LARGEST_SIDE)
        _in_range("anchors of a grid", self.count, 1, MOST_ANCHORS)
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
            _in_range("size", side, 1, _LARGEST_SIDE)
        if (self.coding == "ssd-anchors") != bool(self.anchors or self.grids):
            raise ValueError("anchors or grids belong to the coding ssd-anchors, and to no other")
        if self.anchors and self.grids:
            raise ValueError("anchors come from a list or from grids, not from both")
        if self.coding == "ssd-anchors":
            _in_range("anchors", self.count, 1, MOST_ANCHORS)
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
        _in_range("max_per_image", self.max_per_image, 1, MOST_DETECTIONS)
        _in_range("candidates", self.candidates, 1, MOST_CANDIDATES)


class Argmax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="argmax"):
    """Turn scores into the best class, int32, in place; of equal ones the first.

    Attributes:
        output: Name of the output: scores of each pixel, [N, H, W, C] or [N, C, H, W].
        axis: The classes' axis.
    """

    output: str
    axis: int = -1


class ResizeMask(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="resize-mask"
):
    """Bring a map to another size, in place, each pixel from the one whose area holds its centre.

    Row y comes from row floor((2 y + 1) h / (2 H)), whole numbers throughout.

    Attributes:
        output: Name of the output, [N, H, W] or [N, H, W, C].
        size: Width and height that it shall have, in pixels.
    """

    output: str
    size: tuple[int, int]

    def __post_init__(self) -> None:
        """Refuse a size that is none."""
        for side in self.size:
            _in_range("size", side, 1, _LARGEST_SIDE)


Step = Softmax | Sigmoid | TopK | Boxes | Nms | Argmax | ResizeMask
_KINDS = {"softmax": Softmax, "sigmoid": Sigmoid, "top-k": TopK, "boxes": Boxes, "nms": Nms, "argmax": Argmax,
          "resize-mask": ResizeMask}  # fmt: skip


def _in_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what} must be from {low} to {high}, is {value}")


@dataclass(frozen=True)
class Detection:
    """One object that was found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the model's picture.
        score: How sure the model is, 0 to 1.
        index: Its class.
    """

    box: tuple[float, float, float, float]
    score: float
    index: int


# Reading


def read_postprocess(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """Read the postprocessing from a TOML file with a table `[[postprocess]]` for each step.

    Returns:
        The steps as the manifest keeps them; none where the file has no such table.

    Raises:
        UsageError: It is not there, is no TOML, or a step is malformed.
    """
    source = Path(path)
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        import tomli as toml
    try:
        tables = toml.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {source}: {error}") from error
    steps = tables.get("postprocess", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UsageError(
            f"{source}: postprocess is no list of tables", expected="[[postprocess]] for each step"
        )
    parse_postprocess(steps)
    return tuple(steps)


def parse_postprocess(steps: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Return the steps, checked one by one and in their order.

    Raises:
        UsageError: Naming the first step that is malformed, or that finds nothing to work on.
    """
    if len(steps) > MOST_STEPS:
        raise UsageError("too many postprocess steps", got=len(steps), expected=f"at most {MOST_STEPS}")
    parsed = tuple(_parse(step, number) for number, step in enumerate(steps, 1))
    decoded = False
    for number, step in enumerate(parsed, 1):
        if isinstance(step, Nms) and not decoded:
            raise UsageError(
                f"postprocess step {number} (nms) has no boxes", hint="Put a step boxes before it."
            )
        if isinstance(step, Boxes) and decoded:
            raise UsageError(f"postprocess step {number} decodes boxes a second time")
        decoded = isinstance(step, Boxes) or (decoded and not isinstance(step, Nms))
    return parsed


def _parse(step: Mapping[str, Any], number: int) -> Step:
    kind = step.get("kind")
    struct = _KINDS.get(kind) if isinstance(kind, str) else None
    if struct is None:
        raise UsageError(
            f"postprocess step {number} is of no known kind", got=repr(kind), expected=", ".join(_KINDS)
        )
    try:
        parsed: Step = msgspec.convert(dict(step), struct)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(
            f"postprocess step {number} ({kind}): {error}",
            expected="the fields " + ", ".join(struct.__struct_fields__),
        ) from error
    return parsed


def check_postprocess(steps: Sequence[Mapping[str, Any]], outputs: Sequence[TensorSpec]) -> tuple[Step, ...]:
    """Return the steps, checked against what the model gives: before any work.

    Args:
        steps: The bundle's steps.
        outputs: The model's outputs.

    Raises:
        UsageError: A step names an output that is not there, or whose shape it cannot take.
    """
    parsed = parse_postprocess(steps)
    shapes = {spec.name: spec.shape for spec in outputs}
    for number, step in enumerate(parsed, 1):
        for name in _taken(step):
            if name not in shapes:
                raise UsageError(
                    f"postprocess step {number} takes {name!r}, which is no output",
                    expected=", ".join(shapes),
                )
        if isinstance(step, Boxes):
            _check_boxes(step, shapes[step.boxes], shapes[step.scores], number)
    return parsed


def _taken(step: Step) -> tuple[str, ...]:
    if isinstance(step, Nms):
        return ()
    return (step.boxes, step.scores) if isinstance(step, Boxes) else (step.output,)


def _check_boxes(step: Boxes, boxes: tuple[int, ...], scores: tuple[int, ...], number: int) -> None:
    rows, columns = (2, 1) if step.transposed else (1, 2)
    together = step.boxes == step.scores
    if len(boxes) != 3 or len(scores) != 3:
        raise UsageError(f"postprocess step {number}: boxes and scores have three axes", got=[boxes, scores])
    if boxes[columns] != -1 and (boxes[columns] < 5 if together else boxes[columns] != 4):
        raise UsageError(
            f"postprocess step {number}: output {step.boxes!r} holds no boxes",
            got=list(boxes),
            expected="4 numbers a box" + (", then its scores" if together else ""),
        )
    counts = {boxes[rows], scores[rows], step.count or -1} - {-1}
    if len(counts) > 1:
        raise UsageError(
            f"postprocess step {number}: boxes, scores and anchors differ in number",
            got=f"{boxes[rows]} boxes, {scores[rows]} scores, {step.count} anchors",
        )


def box_columns(steps: Sequence[Step]) -> dict[str, tuple[int, ...]]:
    """Return which outputs hold boxes and scores in one, and where the columns of each kind end.

    By output name, for `(4, 5)`: columns 0 to 3, column 4 (the objectness), and the rest.
    """
    return {
        step.boxes: (4, 5) if step.objectness else (4,)
        for step in steps
        if isinstance(step, Boxes) and step.boxes == step.scores and not step.transposed
    }


# Applying


def postprocess(steps: Sequence[Step], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what the outputs mean.

    Args:
        steps: From `parse_postprocess`.
        outputs: The model's raw outputs by name, [N, …].

    Raises:
        UsageError: An output is not there, or not of the shape that a step takes.
    """
    found = dict(outputs)
    for step in steps:
        for name in _taken(step):
            if name not in found:
                raise UsageError(f"postprocess takes {name!r}", got=", ".join(found))
        found = _apply(step, found)
    return found


def finish(steps: Sequence[Mapping[str, Any]], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what metrics look at: the outputs after every step but `top-k`, which only presents.

    Args:
        steps: The bundle's steps.
        outputs: The model's raw outputs by name, [N, …].
    """
    parsed = parse_postprocess(steps)
    return postprocess([step for step in parsed if not isinstance(step, TopK)], outputs)


def _apply(step: Step, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    match step:
        case Softmax():
            return found | {step.output: _softmax(found[step.output], step.axis)}
        case Sigmoid():
            return found | {step.output: _sigmoid(found[step.output])}
        case TopK():
            return found | _top_k(found[step.output], step.k)
        case Argmax():
            return found | {step.output: found[step.output].argmax(axis=step.axis).astype(np.int32)}
        case ResizeMask():
            return found | {step.output: _resize(found[step.output], step.size)}
        case Boxes():
            rest = {name: array for name, array in found.items() if name not in (step.boxes, step.scores)}
            return rest | _decode(step, found[step.boxes], found[step.scores])
        case Nms():
            rest = {name: array for name, array in found.items() if name not in ("boxes", "scores")}
            return rest | {"detections": _suppress(step, found["boxes"], found["scores"])}


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def _sigmoid(values: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), without an overflow on either side."""
    power = np.exp(-np.abs(values))
    shares: np.ndarray = np.where(values >= 0, 1.0, power) / (1.0 + power)
    return shares.astype(values.dtype)


def _top_k(scores: np.ndarray, k: int) -> dict[str, np.ndarray]:
    if scores.ndim != 2:
        raise UsageError("top-k takes class scores", got=list(scores.shape), expected="[N, classes]")
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k]
    return {"classes": best.astype(np.int64), "scores": np.take_along_axis(scores, best, axis=1)}


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.ndim not in (3, 4):
        raise UsageError(
            "resize-mask takes a map", got=list(values.shape), expected="[N, H, W] or [N, H, W, C]"
        )
    width, height = size
    rows = (2 * np.arange(height) + 1) * values.shape[1] // (2 * height)
    columns = (2 * np.arange(width) + 1) * values.shape[2] // (2 * width)
    return np.ascontiguousarray(values[:, rows][:, :, columns])


# Boxes


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


def _decode(step: Boxes, boxes: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
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
        scores = _sigmoid(scores)
    elif step.activation == "softmax":
        scores = _softmax(scores, -1)
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


def _suppress(step: Nms, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
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


def detections(array: np.ndarray) -> list[tuple[Detection, ...]]:
    """Return the detections of each sample, best first.

    Args:
        array: The output `detections`, float [N, K, 6].
    """
    return [
        tuple(
            Detection((row[0], row[1], row[2], row[3]), row[4], int(row[5]))
            for row in sample.tolist()
            if row[5] >= 0
        )
        for sample in np.asarray(array, np.float64)
    ]

"""Postprocessing as data: what a model's raw outputs mean, applied by one pure function.

The steps are the bundle's `postprocess`, read from `[[postprocess]]` tables beside the `[[preprocess]]` ones. They
run in order on the outputs by name; each takes what it needs and leaves the rest. On a device: numpy only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit.boxes import (
    LARGEST_SIDE,
    Boxes,
    Grid,
    Nms,
    anchor_boxes,
    check_range,
    decode_boxes,
    sigmoid,
    softmax,
    suppress,
)
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
    "check_postprocess",
    "detections",
    "finish",
    "parse_postprocess",
    "postprocess",
    "read_postprocess",
]

#: Bound of the work that a bundle may ask of a device, as those in `edgekit.boxes`.
MOST_STEPS = 16


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
        check_range("k", self.k, 1, 1000)


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
            check_range("size", side, 1, LARGEST_SIDE)


Step = Softmax | Sigmoid | TopK | Boxes | Nms | Argmax | ResizeMask
_KINDS = {"softmax": Softmax, "sigmoid": Sigmoid, "top-k": TopK, "boxes": Boxes, "nms": Nms, "argmax": Argmax,
          "resize-mask": ResizeMask}  # fmt: skip


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
            return found | {step.output: softmax(found[step.output], step.axis)}
        case Sigmoid():
            return found | {step.output: sigmoid(found[step.output])}
        case TopK():
            return found | _top_k(found[step.output], step.k)
        case Argmax():
            return found | {step.output: found[step.output].argmax(axis=step.axis).astype(np.int32)}
        case ResizeMask():
            return found | {step.output: _resize(found[step.output], step.size)}
        case Boxes():
            rest = {name: array for name, array in found.items() if name not in (step.boxes, step.scores)}
            return rest | decode_boxes(step, found[step.boxes], found[step.scores])
        case Nms():
            rest = {name: array for name, array in found.items() if name not in ("boxes", "scores")}
            return rest | {"detections": suppress(step, found["boxes"], found["scores"])}


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

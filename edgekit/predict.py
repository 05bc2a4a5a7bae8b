"""Predictions on a user's arrays and pictures: what `edgekit run` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.data import read_data
from edgekit.errors import UsageError
from edgekit.golden import run_samples
from edgekit.images import SUFFIXES
from edgekit.metrics import both_classes, detections_in, scored_output
from edgekit.postprocess import detections
from edgekit.preprocess import Preprocessor
from edgekit.sequences import driven_inputs

if TYPE_CHECKING:
    from edgekit.model import Model

__all__ = ["Found", "Guess", "found_objects", "predict_file", "read_input", "top_classes"]


@dataclass(frozen=True)
class Guess:
    """One class that the model thinks of.

    Attributes:
        index: The class.
        label: Its name; the index in digits where the bundle names no classes.
        score: What the model gives it; None where the output is the class itself.
    """

    index: int
    label: str
    score: float | None


@dataclass(frozen=True)
class Found:
    """One object that a detector found.

    Attributes:
        index: Its class.
        label: The class's name; the index in digits where the bundle names no classes.
        score: How sure the model is, 0 to 1.
        box: x1, y1, x2, y2 in pixels of the model's picture.
    """

    index: int
    label: str
    score: float
    box: tuple[float, float, float, float]


def predict_file(
    model: Model,
    path: str | os.PathLike[str],
    progress: Callable[[str, int, int], None] | None = None,
    *,
    label_column: str | None = None,
) -> dict[str, np.ndarray]:
    """Run a model on every sample of a file or folder, one at a time.

    Args:
        model: The loaded model.
        path: What `read_input` reads.
        progress: Is told (phrase, samples done, samples in all).
        label_column: A column of a `.csv` that is no feature, and left out.

    Returns:
        Arrays by output name, [N, …], as the model gives them. Of a model with a state, samples are consecutive
        steps, see `edgekit.sequences`.
    """
    inputs = read_input(model, Path(path), label_column)
    with model.lock:
        return run_samples(model.session, inputs, progress, model.manifest.state)


def read_input(model: Model, path: Path, label_column: str | None = None) -> dict[str, np.ndarray]:
    """Return the samples of a file or folder by input name, [N, …].

    Args:
        model: Says what it takes, and how pictures become that.
        path: One image file, a folder of images, `.npz`, `.npy`, `.csv` or `.parquet`.
        label_column: A column of a `.csv` that is no feature, and left out.

    Raises:
        UsageError: It is not there, or does not fit; the message names the array, sample, row or file.
    """
    manifest = model.manifest
    inputs = driven_inputs(model.inputs, manifest.state)
    if path.suffix.lower() in SUFFIXES and not path.is_dir() and label_column is None:
        if len(inputs) != 1:
            raise UsageError(
                f"{path} is one picture, {model.name} takes {len(inputs)} inputs", hint="Give an .npz."
            )
        return Preprocessor(manifest.preprocess, inputs).image(path, f"{model.name}: {path}")
    data = read_data(
        path,
        inputs,
        preprocess=manifest.preprocess,
        label_column=label_column,
        what="input data",
        class_names=manifest.labels,
        every_row=True,
    )
    return dict(data.inputs)


def top_classes(
    outputs: Mapping[str, np.ndarray], labels: Sequence[str], k: int
) -> list[tuple[Guess, ...]] | None:
    """Return the k best classes of each sample, best first; None where the outputs hold no class scores.

    Args:
        outputs: Arrays by output name, [N, …].
        labels: Class names; empty where the bundle has none.
        k: How many.
    """
    scores = np.asarray(scored_output(outputs))
    if scores.dtype.kind in "iub" and scores.size == len(scores):
        return [(Guess(int(c), _label(labels, int(c)), None),) for c in scores.reshape(-1)]
    if scores.dtype.kind not in "fiu" or scores.size != len(scores) * scores.shape[-1]:
        return None
    table = scores.reshape(len(scores), -1).astype(np.float64)
    if table.shape[1] == 1:
        table = both_classes(table)
    order = np.argsort(-table, axis=1, kind="stable")[:, :k]
    return [
        tuple(Guess(int(c), _label(labels, int(c)), float(row[c])) for c in best)
        for row, best in zip(table, order, strict=True)
    ]


def found_objects(outputs: Mapping[str, np.ndarray], labels: Sequence[str]) -> list[tuple[Found, ...]]:
    """Return the objects in each sample, the surest first.

    Args:
        outputs: After the bundle's postprocessing, with `detections`, float [N, K, 6].
        labels: Class names; empty where the bundle has none.

    Raises:
        UsageError: The outputs hold no detections.
    """
    return [
        tuple(Found(one.index, _label(labels, one.index), one.score, one.box) for one in sample)
        for sample in detections(detections_in(outputs))
    ]


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if 0 <= index < len(labels) else str(index)

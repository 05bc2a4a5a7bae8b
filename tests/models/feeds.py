"""What the bare tools are calibrated with and compared on: whole feeds, one sample each, the same for both sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.models import Model
from tests.models.build import save_arrays

__all__ = ["Feed", "Feeds", "feeds_of", "load_feeds", "save_feeds"]

#: One call's inputs by name, with a batch of one where the model batches.
Feed = dict[str, np.ndarray]

CALIBRATION_MOST = 200
LABELLED_MOST = 512
UNLABELLED_MOST = 128


@dataclass(frozen=True)
class Feeds:
    """Samples of one model.

    Attributes:
        calibration: Up to 200; none where the model's inputs do not batch, as for EdgeKit.
        comparison: Up to 512 with labels, else up to 128.
        labels: [N] of the comparison; None without.
    """

    calibration: list[Feed]
    comparison: list[Feed]
    labels: np.ndarray | None


def feeds_of(model: Model) -> Feeds:
    """Return a model's samples; those to compare on are its evaluation data where there are any."""
    if model.steps is not None:
        return Feeds([], _whole(_arrays(model.steps)), None)
    assert model.calibration is not None
    calibration = _arrays(model.calibration)
    if model.evaluation is None:
        return Feeds(_single(calibration, CALIBRATION_MOST), _single(calibration, UNLABELLED_MOST), None)
    labelled = _arrays(model.evaluation)
    labels = labelled.pop("y")[:LABELLED_MOST]
    return Feeds(_single(calibration, CALIBRATION_MOST), _single(labelled, LABELLED_MOST), labels)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _whole(arrays: dict[str, np.ndarray]) -> list[Feed]:
    n = len(next(iter(arrays.values())))
    return [{name: np.asarray(array[index]) for name, array in arrays.items()} for index in range(n)]


def _single(arrays: dict[str, np.ndarray], most: int) -> list[Feed]:
    n = min(most, len(next(iter(arrays.values()))))
    return [{name: array[index : index + 1] for name, array in arrays.items()} for index in range(n)]


def save_feeds(path: Path, feeds: list[Feed]) -> None:
    """Write feeds for a child; every feed has the same names and shapes."""
    names = feeds[0] if feeds else {}
    save_arrays(path, {name: np.stack([feed[name] for feed in feeds]) for name in names})


def load_feeds(path: Path) -> list[Feed]:
    """Read what `save_feeds` wrote."""
    arrays = _arrays(path)
    return _whole(arrays) if arrays else []

"""What a scikit-learn file holds, for `check`: the estimators of its pipeline, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.check.survey import OpUse, Surveyed, merged
from edgekit.sources.base import SourceOptions

__all__ = ["survey"]


def survey(path: Path, options: SourceOptions, opset: int) -> Surveyed:  # noqa: ARG001  one of a table of surveys
    """Read an estimator or a pipeline."""
    from edgekit.sources.sklearn import SklearnSource, parts

    source = SklearnSource(path, options)
    sizes = [(int(a.size), int(a.nbytes)) for part in parts(source.estimator) for a in _arrays(part)]
    return Surveyed(
        dialect="sklearn",
        inputs=source.inputs,
        outputs=source.outputs,
        ops=merged(_use(step) for step in _steps(source.estimator)),
        parameters=sum(size for size, _ in sizes),
        parameter_bytes=sum(size for _, size in sizes),
        notes=source.notes,
    )


def _steps(estimator: Any) -> Iterator[Any]:
    """Yield what stands in pipelines, unions and tables of columns; an ensemble is one step, whatever is in it."""
    for name in ("steps", "transformers_", "transformer_list"):
        for entry in getattr(estimator, name, ()):
            if not isinstance(entry[1], str):  # "passthrough", "drop"
                yield from _steps(entry[1])
        if hasattr(estimator, name):
            return
    yield estimator


def _use(step: Any) -> OpUse:
    own = type(step).__module__.startswith("sklearn.")
    return OpUse(name=type(step).__name__, form="" if own else "custom")


def _arrays(part: Any) -> Iterator[Any]:
    """Yield the arrays of one object of scikit-learn that hold floats, or nodes of trees."""
    import numpy as np

    tree = hasattr(part, "node_count")
    held = [part.value, part.threshold] if tree else list(getattr(part, "__dict__", {}).values())
    flat = [item for value in held for item in (value if isinstance(value, list) else [value])]
    yield from (array for array in flat if isinstance(array, np.ndarray) and array.dtype.kind in "fV")

"""Parity: how far an artifact's outputs are from the source's on the same inputs. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgekit.manifest import ParityEvidence
from edgekit.metrics import cosines, predicted_classes, predicted_mask, scored_output, signal_to_noise
from edgekit.postprocess import Boxes, finish, parse_postprocess

__all__ = ["OutputPart", "as_numbers", "is_text", "measure_parity", "output_parts"]

#: A score says something where it is further than this share of its range from what most anchors answer.
_TELLING = 0.25
#: An embedding or a signal is judged by its worst, but for one in twenty.
_WORST = 0.05


@dataclass(frozen=True)
class OutputPart:
    """Values that share one range: an output, or the columns of it that are of one kind.

    Attributes:
        output: The output's name.
        kind: `boxes` or `scores` of a detector; empty for everything else.
        axis: Where the columns are.
        first: The first column.
        last: The column behind the last; None for all that are left.
    """

    output: str
    kind: Literal["", "boxes", "scores"] = ""
    axis: int = -1
    first: int = 0
    last: int | None = None

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the part of the output."""
        if self.first == 0 and self.last is None:
            return array
        return np.moveaxis(np.moveaxis(array, self.axis, -1)[..., self.first : self.last], -1, self.axis)


def output_parts(
    outputs: Mapping[str, np.ndarray], task: str, steps: Sequence[Mapping[str, Any]] = ()
) -> list[OutputPart]:
    """Return what has a range of its own.

    Boxes in pixels beside scores between 0 and 1 would hide any error of the scores. Where a detector gives both
    in one output, its boxes, its first score (a confidence, with many) and the rest are apart.

    Args:
        outputs: By name, [N, …].
        task: The model's task.
        steps: The bundle's postprocessing; where it is silent, four columns are boxes, and of one output with more
            the first four are, along the shorter of its two axes.
    """
    if task != "detection":
        return [OutputPart(name) for name in outputs]
    step = next((s for s in parse_postprocess(steps) if isinstance(s, Boxes)), None)
    parts: list[OutputPart] = []
    for name, array in outputs.items():
        axis = _columns_axis(array) if step is None else (1 if step.transposed else 2)
        if array.ndim == 3 and _holds_both(name, array.shape[axis], step, alone=len(outputs) == 1):
            parts += [
                OutputPart(name, "boxes", axis, 0, 4),
                OutputPart(name, "scores", axis, 4, 5),
                *([OutputPart(name, "scores", axis, 5)] if array.shape[axis] > 5 else []),
            ]
        else:
            parts.append(OutputPart(name, _kind(name, array, step)))
    return parts


def _columns_axis(array: np.ndarray) -> int:
    return 1 if array.ndim == 3 and array.shape[1] < array.shape[2] else 2


def _holds_both(name: str, columns: int, step: Boxes | None, *, alone: bool) -> bool:
    if step is not None:
        return name == step.boxes == step.scores and columns > 4
    return alone and columns > 5


def _kind(name: str, array: np.ndarray, step: Boxes | None) -> Literal["", "boxes", "scores"]:
    if step is not None:
        return "boxes" if name == step.boxes else "scores" if name == step.scores else ""
    if array.dtype.kind != "f" or array.ndim < 2:
        return ""
    return "boxes" if array.shape[-1] == 4 else "scores"


def measure_parity(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    *,
    argmax: bool,
    targets: bool = False,
    pairs: Mapping[str, np.ndarray] | None = None,
    task: str = "",
    steps: Sequence[Mapping[str, Any]] = (),
) -> ParityEvidence:
    """Compare an artifact's outputs with the source's on the same inputs.

    Errors are shares of each output's range. The columns of a regression's targets are each measured by their
    own: beside a target in the thousands one between 0 and 1 would vanish, and be lost without a trace. So are
    the boxes and the scores of a detector, see `output_parts`.

    Args:
        reference: The source's outputs by name, float [N, …].
        outputs: The artifact's outputs by name, same shapes.
        argmax: Whether the outputs tell classes.
        targets: Whether the columns of the output that metrics look at are targets of a regression.
        pairs: The artifact's outputs for the first two samples as one batch of two; None where it takes none.
        task: The model's task: what more than errors is measured.
        steps: The bundle's postprocessing.
    """
    n = len(next(iter(reference.values())))
    for name, want in reference.items():
        got = np.asarray(outputs[name])
        if got.shape != want.shape or not (is_text(got) or np.isfinite(got.astype(np.float64)).all()):
            return ParityEvidence(n=n, max_error=1.0, p95_error=1.0, finite=False)
    measured = [
        _measure_part(
            part, reference, outputs, pairs, by_column=targets and _is_scored(part.output, reference)
        )
        for part in output_parts(reference, task, steps)
        if reference[part.output].size
    ] or [_Measured(0.0, 0.0, 0.0, 0.0, constant=False, active=None)]
    active = [m.active for m in measured if m.active is not None]
    more = _by_task(task, reference, outputs, steps)
    return ParityEvidence(
        n=n,
        max_error=max(m.biggest for m in measured),
        p95_error=max(m.p95 for m in measured),
        argmax_agreement=_agreement(reference, outputs) if argmax else more.pop("argmax_agreement", None),
        batch2_error=max(m.batch2 for m in measured) if pairs is not None else None,
        batch2_p95=max(m.batch2_p95 for m in measured) if pairs is not None else None,
        constant=any(m.constant for m in measured),
        active_error=max(active) if active else None,
        **more,
    )


@dataclass(frozen=True)
class _Measured:
    """What one part showed; errors are shares of its range."""

    biggest: float
    p95: float
    batch2: float
    batch2_p95: float
    constant: bool
    active: float | None


def _is_scored(name: str, reference: Mapping[str, np.ndarray]) -> bool:
    return reference[name] is scored_output(reference)


def _measure_part(
    part: OutputPart,
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    pairs: Mapping[str, np.ndarray] | None,
    *,
    by_column: bool,
) -> _Measured:
    whole = reference[part.output]
    expected, got = (part.of(as_numbers(each, whole)) for each in (whole, outputs[part.output]))
    scale = np.ones(()) if is_text(whole) else _scale(expected, by_column=by_column)
    error = np.abs(got - expected) / scale
    apart = np.zeros(1)
    if pairs is not None:
        # another shape may not even have the part
        pair, alone = pairs[part.output], as_numbers(outputs[part.output], whole)[:2]
        fits = pair.shape == alone.shape
        together = as_numbers(pair, whole[:2]) if fits else alone
        apart = _difference(part.of(together), part.of(alone), scale) if fits else np.ones(1)
    return _Measured(
        biggest=float(error.max(initial=0.0)),
        p95=_p95(error, scale),
        batch2=float(apart.max(initial=0.0)),
        batch2_p95=_p95(apart, scale),
        constant=_varies(expected) and not _varies(got),
        active=_active_error(expected, error) if part.kind == "scores" else None,
    )


def is_text(array: np.ndarray) -> bool:
    """Tell whether an output holds text."""
    return array.dtype.kind in "OSU"


def as_numbers(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return an output as numbers, float64 of its shape: of text, 0 where it is that of `like`, 1 where it is not."""
    if not is_text(array):
        return np.asarray(array, np.float64)
    other: np.ndarray = array.astype(str) != like.astype(str)
    return other.astype(np.float64)


def _scale(expected: np.ndarray, *, by_column: bool) -> np.ndarray:
    """Return what errors are shares of, float64 [] or, `by_column` of [N, K], [K]: the range, over 0.

    A column that never varies has none of its own and goes by the range of all.
    """
    whole = float(np.ptp(expected)) or max(float(np.abs(expected).max(initial=0.0)), 1e-12)
    if not by_column or expected.ndim != 2:
        return np.array(whole)
    ranges: np.ndarray = np.ptp(expected, axis=0)
    return np.where(ranges > 0.0, ranges, whole)


def _p95(error: np.ndarray, scale: np.ndarray) -> float:
    """Return the 95th percentile of the errors, of the worst column where each has its own `scale`."""
    return float(np.quantile(error, 0.95, axis=0 if scale.ndim else None).max())


def _difference(together: np.ndarray, alone: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the differences as shares of `scale`, float64 like both; 1 where one is none: NaN."""
    if not np.isfinite(together).all():
        return np.ones_like(alone)
    apart: np.ndarray = np.abs(together - alone) / scale
    return apart


def _varies(values: np.ndarray) -> bool:
    return len(values) > 1 and bool((values != values[:1]).any())


def _active_error(expected: np.ndarray, error: np.ndarray) -> float:
    """Return the median error where the source's scores say something, 0 where none does.

    Nearly every anchor of a detector sees nothing: scores that are all gone would be right nearly everywhere.
    """
    telling = np.abs(expected - np.median(expected)) > _TELLING * float(np.ptp(expected))
    return float(np.median(error[telling])) if telling.any() else 0.0


def _agreement(reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> float:
    ours = {name: outputs[name] for name in reference}
    return float((predicted_classes(reference) == predicted_classes(ours)).mean())


def _by_task(
    task: str,
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    steps: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what else counts: the angle of an embedding, the noise of a signal, the class of each pixel."""
    ours = {name: outputs[name] for name in reference}
    if task == "embedding":
        return {"cosine": float(np.quantile(cosines(scored_output(ours), scored_output(reference)), _WORST))}
    if task == "generation":
        got, want = (np.asarray(scored_output(arrays), np.float64) for arrays in (ours, reference))
        return {"snr_db": float(np.quantile(signal_to_noise(got, want), _WORST))}
    if task == "segmentation":
        theirs, mine = (predicted_mask(finish(steps, arrays)) for arrays in (reference, ours))
        return {"argmax_agreement": float((theirs == mine).mean())}
    return {}

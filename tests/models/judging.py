"""Right or wrong: what an artifact answered against what its source answered, as numbers and a verdict. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LIMITS", "Judgement", "Limits", "judge"]


@dataclass(frozen=True)
class Limits:
    """What a precision must keep; errors as shares of the source output's range.

    Attributes:
        max_error: Largest error of any value; None where quantization makes it meaningless.
        p95_error: 95th percentile of the errors.
        agreement: Share of samples with the same class.
    """

    max_error: float | None
    p95_error: float
    agreement: float


LIMITS = {
    "fp32": Limits(1e-4, 1e-4, 0.99),
    "fp16": Limits(5e-3, 5e-3, 0.99),
    "int8-dynamic": Limits(None, 0.05, 0.97),
    "int8": Limits(None, 0.05, 0.97),
    "int16x8": Limits(None, 0.01, 0.99),
}
#: Most that the accuracy may lose, in percentage points.
MAX_DROP_PP = 1.0


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        right: Whether everything is within the limits.
        reason: The first thing that is not; empty when right.
        max_error: Largest error over the outputs, as a share of each output's range.
        p95_error: Largest 95th percentile over the outputs.
        agreement: Share of samples with the same class; None where there are no classes.
        source_metric: Accuracy of the source, 0 to 1, where there are labels of classes.
        metric: The artifact's.
    """

    right: bool
    reason: str
    max_error: float = float("nan")
    p95_error: float = float("nan")
    agreement: float | None = None
    source_metric: float | None = None
    metric: float | None = None


def judge(
    source: Sequence[np.ndarray],
    artifact: Sequence[np.ndarray],
    precision: str,
    *,
    classes: bool,
    labels: np.ndarray | None,
) -> Judgement:
    """Compare all answers, each output stacked over the samples: [samples, …].

    Tools rename and reorder outputs. Each of the source's is compared with that of the artifact's that is of
    its shape and nearest to it: the bare tool has the benefit of the doubt.

    Args:
        source: The source's outputs.
        artifact: The artifact's, in any order.
        precision: Whose limits apply.
        classes: Whether the outputs are scores of classes.
        labels: int64 [samples], the right class; None without.
    """
    pairs = _pair([_flat(array) for array in source], [_flat(array) for array in artifact])
    if pairs is None:
        shapes = [list(array.shape[1:]) for array in artifact]
        return Judgement(
            False, f"outputs have the shapes {shapes}, not {[list(a.shape[1:]) for a in source]}"
        )
    if not all(np.isfinite(got).all() for want, got in pairs if np.isfinite(want).all()):
        return Judgement(False, "answers hold NaN or infinity")
    errors = [_errors(want, got) for want, got in pairs]
    found = Judgement(
        True,
        "",
        max(float(error.max()) for error in errors),
        max(float(np.percentile(error, 95)) for error in errors),
        *(_class_numbers(pairs, labels) if classes else (None, None, None)),
    )
    reason = _fault(found, LIMITS[precision])
    return found if not reason else Judgement(False, reason, *list(vars(found).values())[2:])


def _pair(
    source: Sequence[np.ndarray], artifact: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    left = list(artifact)
    pairs = []
    for want in source:
        fitting = [index for index, got in enumerate(left) if got.shape == want.shape]
        if not fitting:
            return None
        nearest = min(fitting, key=lambda index: _distance(want, left[index]))
        pairs.append((want.astype(np.float64), left.pop(nearest).astype(np.float64)))
    return pairs


def _flat(array: np.ndarray) -> np.ndarray:
    """Leave out the axes of size one, which tools add and drop."""
    return array.reshape(len(array), *(size for size in array.shape[1:] if size != 1))


def _distance(want: np.ndarray, got: np.ndarray) -> float:
    away = np.abs(want.astype(np.float64) - got.astype(np.float64)).mean()
    return float(away) if np.isfinite(away) else float("inf")


def _errors(want: np.ndarray, got: np.ndarray) -> np.ndarray:
    span = float(want.max() - want.min()) or float(np.abs(want).max()) or 1.0
    errors: np.ndarray = np.abs(want - got) / span
    return errors


def _class_numbers(
    pairs: list[tuple[np.ndarray, np.ndarray]], labels: np.ndarray | None
) -> tuple[float | None, float | None, float | None]:
    scores = next(((w, g) for w, g in pairs if w.ndim >= 2 and w.shape[-1] > 1), None)
    if scores is None:
        return None, None, None
    want, got = (np.argmax(array, axis=-1).reshape(len(array), -1) for array in scores)
    agreement = float((want == got).mean())
    if labels is None or want.shape[1] != 1:
        return agreement, None, None
    return agreement, float((want[:, 0] == labels).mean()), float((got[:, 0] == labels).mean())


def _fault(found: Judgement, limits: Limits) -> str:
    if limits.max_error is not None and found.max_error > limits.max_error:
        return f"largest error {found.max_error:.2g} of the range, more than {limits.max_error:g}"
    if found.p95_error > limits.p95_error:
        return f"95 % of the errors reach {found.p95_error:.2g} of the range, more than {limits.p95_error:g}"
    if found.agreement is not None and found.agreement < limits.agreement:
        return f"{found.agreement:.1%} of the classes agree, fewer than {limits.agreement:.0%}"
    if found.metric is not None and found.source_metric is not None:
        drop_pp = 100 * (found.source_metric - found.metric)
        if drop_pp > MAX_DROP_PP:
            return f"accuracy drops by {drop_pp:.1f} percentage points"
    return ""

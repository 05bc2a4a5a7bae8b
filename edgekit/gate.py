"""The gate: an artifact is accepted, unproven or refused, with reasons. Pure functions over evidence.

The limits are data, in `gate_limits.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec

from edgekit.bounds import MOST_SAMPLES, bootstrap_bounds, needed_samples, tango_bounds
from edgekit.errors import UsageError
from edgekit.manifest import CalibrationFit, GateResult, MetricEvidence, ParityEvidence
from edgekit.metrics import METRICS, drop_in_points, resampler, scored_output
from edgekit.metrics.base import not_per_sample
from edgekit.parity import measure_parity

if TYPE_CHECKING:
    import numpy as np

    from edgekit.metrics import Metric

__all__ = [
    "STRICT",
    "DataLimits",
    "Limits",
    "Policy",
    "PrecisionLimits",
    "TaskLimits",
    "compare_ranges",
    "data_faults",
    "judge",
    "load_limits",
    "lost_classes",
    "measure_metric",
    "measure_parity",
]

#: The last reason of what `--strict` refused, and nothing else did.
STRICT = "--strict refuses what is unproven"


class PrecisionLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one precision; None where the precision has none. See `gate_limits.toml`."""

    max_error: float | None = None
    p95_error: float | None = None
    batch2_error: float | None = None
    batch2_p95: float | None = None
    argmax_agreement: float | None = None
    active_error: float | None = None
    cosine: float | None = None
    snr_db: float | None = None


class TaskLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one task changes in the limits of one precision; None for what stays. See `gate_limits.toml`."""

    p95_error: float | None = None
    batch2_error: float | None = None
    argmax_agreement: float | None = None
    active_error: float | None = None
    cosine: float | None = None
    snr_db: float | None = None


class DataLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits on the data. See `gate_limits.toml`."""

    parity_samples: int
    parity_most: int
    calibration_shift: float
    float16_most: float
    lost_class_answers: int
    lost_class_score: float
    bootstrap_samples: int


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All limits of the gate."""

    precision: dict[str, PrecisionLimits]
    data: DataLimits
    task: dict[str, dict[str, TaskLimits]] = {}

    def of(self, precision: str, task: str = "") -> PrecisionLimits:
        """Return the limits of a precision, as the task changes them."""
        changes = self.task.get(task, {}).get(precision, TaskLimits())
        given = {name: value for name, value in msgspec.structs.asdict(changes).items() if value is not None}
        return msgspec.structs.replace(self.precision[precision], **given)


class Policy(msgspec.Struct, frozen=True):
    """What the user asked of the gate.

    Attributes:
        max_drop_pp: The accuracy budget in percentage points.
        min_metric: The least value the source itself must reach; None for no such demand.
        strict: Refuse what is unproven.
    """

    max_drop_pp: float = 1.0
    min_metric: float | None = None
    strict: bool = False


@cache
def load_limits() -> Limits:
    """Return the limits that ship with EdgeKit."""
    return msgspec.toml.decode((files("edgekit") / "gate_limits.toml").read_bytes(), type=Limits)


def measure_metric(
    metric: Metric,
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    *,
    max_drop_pp: float,
    seed: int = 0,
) -> MetricEvidence:
    """Score source and artifact on the same samples, with a one-sided 95 % paired bound of the drop.

    Shares of right answers use Tango's score bound, everything else a paired percentile bootstrap. The drop
    is in percentage points; `edgekit.metrics.drop_in_points` says of what.

    Args:
        metric: What to score.
        reference: The source's outputs after its postprocessing, float [N, …].
        outputs: The artifact's outputs after the same, same shapes.
        labels: [N, …]; None to hold both against the source's own outputs, where the metric allows that.
        max_drop_pp: The budget, to tell how many samples would decide.
        seed: Of the bootstrap.

    Raises:
        UsageError: The metric needs labels.
    """
    against_source = metric.target == "source" or (metric.target == "either" and labels is None)
    if against_source:
        labels = scored_output(reference)
    if labels is None:
        raise UsageError(f"{metric.name} needs labels", hint="Give --eval with labels.")
    source, artifact = metric.value(reference, labels), metric.value(outputs, labels)
    right, kept = metric.per_sample(reference, labels), metric.per_sample(outputs, labels)
    if right is not None and kept is not None:
        n = len(right)
        lost, gained = int((right > kept).sum()), int((right < kept).sum())
        low, high = tango_bounds(lost, gained, n)
        return MetricEvidence(
            name=metric.name,
            n=n,
            source=source,
            artifact=artifact,
            drop_pp=100.0 * (lost - gained) / n,
            low_pp=100.0 * low,
            bound_pp=100.0 * high,
            needed_n=_needed_pairs(lost / n, gained / n, n, max_drop_pp),
        )
    return _bootstrapped(metric, reference, outputs, labels, max_drop_pp, seed, against_source=against_source)


def _needed_pairs(lost: float, gained: float, n: int, max_drop_pp: float) -> int | None:
    """Return how many samples would decide at these rates of lost and gained pairs; None where n does."""

    def decides(size: int) -> bool:
        low, high = tango_bounds(lost * size, gained * size, size)
        return 100.0 * high <= max_drop_pp or (100.0 * (lost - gained) > max_drop_pp and low > 0.0)

    return None if decides(n) else needed_samples(decides, n)


def _bootstrapped(
    metric: Metric,
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    max_drop_pp: float,
    seed: int,
    *,
    against_source: bool,
) -> MetricEvidence:
    import numpy as np

    theirs, ours = (resampler(metric, arrays, labels) for arrays in (reference, outputs))

    def drop(index: np.ndarray) -> float:
        return drop_in_points(metric, theirs(index), ours(index), labels, against_source=against_source)

    n = len(labels)
    every = np.arange(n)
    observed = drop(every)
    low, high = bootstrap_bounds(drop, n, seed)
    low, high = min(low, observed), max(high, observed)
    return MetricEvidence(
        name=metric.name,
        n=n,
        source=theirs(every),
        artifact=ours(every),
        drop_pp=observed,
        low_pp=low,
        bound_pp=high,
        needed_n=_needed_resampled(observed, low, high, n, max_drop_pp),
    )


def _needed_resampled(drop: float, low: float, high: float, n: int, budget: float) -> int | None:
    """Return how many samples would decide if bounds narrow by the root of n; None where n does, 0 where none.

    Inside the budget the upper bound must come under it, beyond it the lower bound must come over zero.
    """
    fewest = load_limits().data.bootstrap_samples
    if drop > budget:
        return None if low > 0.0 else _scaled(n, drop - low, drop)
    if high <= budget:
        return None if n >= fewest else fewest
    if drop == budget:
        return 0
    needed = _scaled(n, high - drop, budget - drop)
    return max(fewest, needed) if needed else 0


def _scaled(n: int, width: float, room: float) -> int:
    """Return the samples that narrow a bound's width to `room`; 0 where that is beyond reach."""
    needed = n * (width / room) ** 2
    return int(needed) + 1 if needed < MOST_SAMPLES else 0


def lost_classes(reference: np.ndarray, answers: np.ndarray, least: int) -> tuple[int, ...]:
    """Return the classes that the source answers at least `least` times and the artifact never.

    A rare class can vanish without a trace in the share of right answers.

    Args:
        reference: The source's predicted classes, int64 [N].
        answers: The artifact's, int64 [N].
        least: Fewest answers of the source that count.
    """
    import numpy as np

    classes, counts = np.unique(reference, return_counts=True)
    return tuple(int(c) for c in classes[counts >= least] if not (answers == c).any())


def compare_ranges(
    calibration: Mapping[str, np.ndarray], evaluation: Mapping[str, np.ndarray]
) -> tuple[CalibrationFit, ...]:
    """Return the 1st and 99th percentile of every float input in both data sets."""
    import numpy as np

    def ends(values: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(values, [0.01, 0.99])
        return float(low), float(high)

    return tuple(
        CalibrationFit(name, ends(values), ends(evaluation[name]))
        for name, values in calibration.items()
        if values.dtype.kind == "f" and name in evaluation
    )


def judge(
    precision: str,
    policy: Policy,
    limits: Limits,
    *,
    parity: ParityEvidence,
    metric: MetricEvidence | None = None,
    calibration_fit: Sequence[CalibrationFit] = (),
    noise: bool = False,
    lost: Sequence[int] = (),
    task: str = "",
) -> GateResult:
    """Return the verdict on one artifact of a model with this `task`.

    refused: parity failed, a class is `lost`, the calibration data does not fit, the source itself is too bad, or the drop is
    real (above the budget, and above zero at 95 %). accepted: the drop's upper bound is inside the budget, or
    the artifact is float, its parity is proven and no drop is real. unproven: a quantized artifact whose
    sample is too small to tell, or that was not measured; half precision that ran on `noise` only (random
    inputs, whose scale need not be the real one, cannot rule out an overflow).
    """
    against = [
        *_parity_faults(parity, limits.of(precision, task), limits.data, task),
        *data_faults(calibration_fit, metric, policy, limits),
        *(f"class {c} is never answered, though the source answers it" for c in lost),
    ]
    verdict, why = ("refused", against) if against else _weigh(precision, metric, policy, limits)
    if verdict == "accepted" and noise and parity.float_peak is not None and precision == "fp16":
        verdict = "unproven"
        why = ["half precision was tried on random inputs only: give --calibration or --eval"]
    if verdict == "unproven" and policy.strict:
        verdict, why = "refused", [*why, STRICT]
    return GateResult(
        verdict=verdict,  # type: ignore[arg-type]
        reasons=tuple(why),
        parity=parity,
        metric=metric,
        calibration_fit=tuple(calibration_fit),
    )


def data_faults(
    fits: Sequence[CalibrationFit], metric: MetricEvidence | None, policy: Policy, limits: Limits
) -> list[str]:
    """Return what is wrong with the data or with the source itself, which no other recipe mends."""
    return [
        *_calibration_faults(fits, limits.data.calibration_shift),
        *_source_faults(metric, policy),
    ]


def _parity_faults(parity: ParityEvidence, limit: PrecisionLimits, data: DataLimits, task: str) -> list[str]:
    if not parity.finite:
        return ["an output is not finite, or has not the source's shape"]
    faults = []
    if parity.constant:
        faults.append("an output is the same whatever goes in, while the source's varies")
    if parity.n < data.parity_samples:
        faults.append(f"parity on {parity.n} samples, at least {data.parity_samples} are needed")
    for name, got, most in (
        ("largest error", parity.max_error, limit.max_error),
        ("95th percentile of the error", parity.p95_error, limit.p95_error),
        ("error of a batch of two", parity.batch2_error, limit.batch2_error),
        ("95th percentile of the error of a batch of two", parity.batch2_p95, limit.batch2_p95),
        ("median error of the scores that say something", parity.active_error, limit.active_error),
    ):
        if most is not None and got is not None and not got <= most:
            faults.append(f"{name} is {got:.3g} of the output's range, limit {most:g}")
    if parity.float_peak is not None and not parity.float_peak <= data.float16_most:
        faults.append(
            f"a value inside the network reaches {parity.float_peak:.3g}, and float16 ends at {data.float16_most:g}: "
            "hardware that computes in half precision would overflow"
        )
    least = limit.argmax_agreement
    if least is not None and parity.argmax_agreement is not None and not parity.argmax_agreement >= least:
        what = "pixels" if task == "segmentation" else "samples"
        faults.append(f"argmax agrees on {parity.argmax_agreement:.1%} of {what}, limit {least:.0%}")
    for name, got, least in (
        ("cosine to the source's embedding", parity.cosine, limit.cosine),
        ("signal-to-noise ratio against the source in dB", parity.snr_db, limit.snr_db),
    ):
        if least is not None and got is not None and not got >= least:
            faults.append(f"the {name} is {got:.4g} on one sample in twenty, limit {least:g}")
    return faults


def _calibration_faults(fits: Sequence[CalibrationFit], most: float) -> list[str]:
    faults = []
    for fit in fits:
        (low_c, high_c), (low_e, high_e) = fit.calibration, fit.evaluation
        width = max(high_c - low_c, high_e - low_e)
        if max(abs(low_c - low_e), abs(high_c - high_e)) > most * width:
            faults.append(
                f"calibration does not fit the evaluation data: input {fit.input!r} spans "
                f"[{low_c:.3g}, {high_c:.3g}] in calibration and [{low_e:.3g}, {high_e:.3g}] in evaluation; "
                "is one of them not scaled?"
            )
    return faults


def _source_faults(metric: MetricEvidence | None, policy: Policy) -> list[str]:
    if policy.min_metric is None or metric is None:
        return []
    upwards = METRICS[metric.name].higher_is_better
    fine = metric.source >= policy.min_metric if upwards else metric.source <= policy.min_metric
    if fine:
        return []
    return [f"the source itself has {metric.name} {metric.source:.4g}, --min-metric is {policy.min_metric:g}"]


def _weigh(
    precision: str, metric: MetricEvidence | None, policy: Policy, limits: Limits
) -> tuple[str, list[str]]:
    budget, floats = policy.max_drop_pp, precision in ("fp32", "fp16")
    if metric is None:
        if floats:
            return "accepted", ["parity holds; accuracy not measured"]
        return "unproven", ["quantized and accuracy not measured: give --eval with labels"]
    said = f"{metric.name} drops {metric.drop_pp:+.2f} pp, at most {metric.bound_pp:.2f} pp at 95 %"
    paired = METRICS[metric.name].per_sample is not not_per_sample
    enough = paired or metric.n >= limits.data.bootstrap_samples
    if metric.bound_pp <= budget and enough:
        return "accepted", [f"{said} (n = {metric.n}, budget {budget:g})"]
    if metric.drop_pp > budget and metric.low_pp > 0.0:
        return "refused", [f"{said}; the drop is real (n = {metric.n}, budget {budget:g})"]
    if floats:
        return "accepted", [f"parity holds; {said} (n = {metric.n})"]
    needed = (
        f"about {metric.needed_n} samples would decide"
        if metric.needed_n
        else "no larger sample will help while the drop stays"
    )
    return "unproven", [f"{said}; {metric.n} samples are too few for a budget of {budget:g} pp, {needed}"]

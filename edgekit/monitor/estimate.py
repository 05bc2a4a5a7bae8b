"""Accuracy without labels: binned confidence-based performance estimation (CBPE), with an honest interval.

Each confidence bin brings the hit rate that the reference saw in it. That is right under a covariate shift that
stays within the reference's confidences, and blind to a change of what the right answer is (concept shift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.monitor.reference import Reference
from edgekit.monitor.schema import AccuracyEstimate

__all__ = ["MAX_UNSUPPORTED", "MIN_REFERENCE", "MIN_SAMPLES", "estimate_accuracy"]

#: Fewer samples than this say nothing worth showing.
MIN_SAMPLES = 30
#: A reference of fewer labelled samples than this cannot carry an estimate.
MIN_REFERENCE = 100
#: Largest share of confidences outside the reference's for which the estimate is believed.
MAX_UNSUPPORTED = 0.05
#: Largest share of outputs with NaN or infinity for which the estimate is believed.
MAX_NONFINITE = 0.01
_Z95 = 1.959963984540054  # the normal quantile of 0.975

_FEW_SAMPLES = "few-samples"
_SMALL_REFERENCE = "small-reference"
_OUTSIDE_REFERENCE = "confidence-outside-reference"
_NONFINITE = "nonfinite-outputs"


def estimate_accuracy(
    reference: Reference, confidence: Sequence[int] | np.ndarray, nonfinite: int = 0
) -> AccuracyEstimate | None:
    """Estimate the accuracy over the samples counted in `confidence`.

    With n_b of n samples in bin b, and h_b hits among the m_b reference samples there, r_b = h_b / m_b:

        accuracy = Σ n_b r_b / n
        SE² = Σ n_b v_b / n² + Σ (n_b / n)² v_b / m_b

    The first term is the chance of the window, the second that of the reference, which is often forgotten.
    v_b = r(1 − r) is taken at r = (h_b + ½) / (m_b + 1): a bin of m hits out of m is not a certainty. The
    interval is ± 1.96 SE, within [0, 1]. A share of samples outside the reference's confidences is counted
    with the nearest bin's rate, while the interval allows for all and for none of them being right.

    Args:
        reference: Of the artifact that ran.
        confidence: Counts by confidence bin, B + 2 entries.
        nonfinite: Samples whose output held NaN or infinity, beside those counted.

    Returns:
        The estimate; None where there is nothing to estimate from: no sample, or no labelled reference.
    """
    if not reference.labelled:
        return None
    counted = np.asarray(confidence, np.float64)
    n = int(counted.sum())
    if not n:
        return None
    rates = reference.rates()
    share = counted / n
    estimate = float(share @ rates)
    reach = _Z95 * math.sqrt(_variance(reference, counted, n))
    outside, rates_outside = share[[0, -1]], rates[[0, -1]]
    flags = _flags(reference, n, float(outside.sum()), nonfinite)
    return AccuracyEstimate(
        estimate=estimate,
        low=max(0.0, estimate - reach - float(outside @ rates_outside)),
        high=min(1.0, estimate + reach + float(outside @ (1.0 - rates_outside))),
        n=n,
        valid=not flags,
        flags=flags,
    )


def _variance(reference: Reference, counted: np.ndarray, n: int) -> float:
    """Return SE² over the bins that the reference supports."""
    hits, seen = np.array(reference.hits, np.float64), np.array(reference.counts, np.float64)
    smoothed = (hits + 0.5) / (seen + 1.0)
    spread = smoothed * (1.0 - smoothed)
    inner = counted[1:-1]
    return float((inner * spread).sum() / n**2 + ((inner / n) ** 2 * spread / seen).sum())


def _flags(reference: Reference, n: int, outside: float, nonfinite: int) -> tuple[str, ...]:
    """Return why the estimate must not be believed."""
    reasons = (
        (_FEW_SAMPLES, n < MIN_SAMPLES),
        (_SMALL_REFERENCE, sum(reference.counts) < MIN_REFERENCE),
        (_OUTSIDE_REFERENCE, outside > MAX_UNSUPPORTED),
        (_NONFINITE, nonfinite > MAX_NONFINITE * (n + nonfinite)),
    )
    return tuple(flag for flag, holds in reasons if holds)

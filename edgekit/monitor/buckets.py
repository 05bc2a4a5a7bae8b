"""Latency in base-2 exponential buckets: exact to merge, and what OTLP and Prometheus call the same.

Bucket i at scale s holds (2^(i/2^s), 2^((i+1)/2^s)] seconds. The edges of a scale are a subset of those of the
next, so histograms of different devices, windows and scales merge without error. At scale 5 a quantile is within
1.08 % of a true value (DDSketch, Masson, Rim & Lee 2019, with γ = 2^(1/32)).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

import numpy as np

from edgekit.monitor.schema import LatencyHistogram

__all__ = [
    "HIGHEST_S",
    "LOWEST_S",
    "SCALE",
    "LatencyBuckets",
    "bucket_index",
    "bucket_indices",
    "cumulative",
    "downscale",
    "merge",
    "observations",
    "quantile",
    "relative_error",
    "to_ticks",
]

SCALE = 5
_STEPS = 1 << SCALE
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -24, 12
#: Latencies outside (60 ns, 68 min] count in the first or last bucket, which bounds a histogram's size.
LOWEST_S, HIGHEST_S = 2.0**_LOWEST_EXPONENT, 2.0**_HIGHEST_EXPONENT
_FIRST, _LAST = _LOWEST_EXPONENT * _STEPS, _HIGHEST_EXPONENT * _STEPS - 1
#: Lower edges of the buckets of one octave, [1, 2).
_EDGES = tuple(2.0 ** (step / _STEPS) for step in range(_STEPS))
_EDGE_ARRAY = np.array(_EDGES)
#: Sums are kept in units of 2^-30 s (0.93 ns): integers add exactly, and their sum is exact as a float64
#: up to 2^23 s, so that merging is associative in the sum too.
_TICKS_PER_S = float(1 << 30)


def bucket_index(seconds: float) -> int:
    """Return the bucket of one positive latency in seconds, at `SCALE`."""
    mantissa, exponent = math.frexp(min(seconds, HIGHEST_S))
    return max(_FIRST, (exponent - 1) * _STEPS + bisect_left(_EDGES, 2.0 * mantissa) - 1)


def bucket_indices(seconds: np.ndarray) -> np.ndarray:
    """Return the buckets of positive latencies.

    Args:
        seconds: float64 [n], > 0.

    Returns:
        int64 [n], at `SCALE`.
    """
    mantissa, exponent = np.frexp(np.minimum(seconds, HIGHEST_S))
    within = np.searchsorted(_EDGE_ARRAY, 2.0 * mantissa, side="left") - 1
    indices: np.ndarray = np.maximum((exponent.astype(np.int64) - 1) * _STEPS + within, _FIRST)
    return indices


def to_ticks(seconds: float) -> int:
    """Return one latency in units of 2^-30 s, as the sums count it."""
    return round(min(seconds, HIGHEST_S) * _TICKS_PER_S)


class LatencyBuckets:
    """Counts that grow only as wide as the latencies seen.

    Args:
        dtype: Of the counts: uint32 in a window (4 bytes a bucket, at most 1,152 buckets), int64 for ever.
    """

    def __init__(self, dtype: type[np.uint32 | np.int64] = np.uint32) -> None:
        self._counts = np.zeros(0, dtype)
        self._offset = 0
        self._zero = 0
        self._ticks = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the counts take."""
        return self._counts.nbytes

    def add(self, seconds: np.ndarray) -> None:
        """Count latencies.

        Args:
            seconds: float64 [n]. What is not above zero counts as zero: a clock that did not move.
        """
        positive = seconds[seconds > 0]
        self._zero += seconds.size - positive.size
        if not positive.size:
            return
        ticks = np.rint(np.minimum(positive, HIGHEST_S) * _TICKS_PER_S).astype(np.int64)
        self._ticks += int(ticks.sum())
        indices = bucket_indices(positive)
        first = int(indices.min())
        self._add_counts(first, np.bincount(indices - first))

    def add_counted(self, counts: Mapping[int, int], zero: int, ticks: int) -> None:
        """Add latencies that were counted one at a time.

        Args:
            counts: Bucket to count.
            zero: Latencies of zero.
            ticks: Sum of the latencies by `to_ticks`.
        """
        for index, count in counts.items():
            self._add_counts(index, np.array([count]))
        self._zero += zero
        self._ticks += ticks

    def add_all(self, other: LatencyBuckets) -> None:
        """Add what another has counted; the other stays as it is."""
        if other._counts.size:
            self._add_counts(other._offset, other._counts)
        self._zero += other._zero
        self._ticks += other._ticks

    def _add_counts(self, first: int, counts: np.ndarray) -> None:
        self._cover(first, first + counts.size)
        start = first - self._offset
        self._counts[start : start + counts.size] += counts.astype(self._counts.dtype)

    def _cover(self, start: int, stop: int) -> None:
        if not self._counts.size:
            self._offset, self._counts = start, np.zeros(stop - start, self._counts.dtype)
            return
        before = max(0, self._offset - start)
        after = max(0, stop - self._offset - self._counts.size)
        if before or after:
            self._counts = np.pad(self._counts, (before, after))
            self._offset -= before

    def histogram(self) -> LatencyHistogram:
        """Return what was counted, as it travels."""
        return LatencyHistogram(
            tuple(self._counts.tolist()),
            self._offset if self._counts.size else 0,
            SCALE,
            self._zero,
            self._ticks / _TICKS_PER_S,
        )


def observations(histogram: LatencyHistogram) -> int:
    """Return how many latencies were counted."""
    return sum(histogram.counts) + histogram.zero


def relative_error(scale: int = SCALE) -> float:
    """Return the largest relative error of a quantile: (γ − 1) / (γ + 1), with γ = 2^(1/2^scale)."""
    gamma: float = 2.0 ** (2.0**-scale)
    return (gamma - 1.0) / (gamma + 1.0)


def downscale(histogram: LatencyHistogram, scale: int) -> LatencyHistogram:
    """Return the same counts in wider buckets.

    Raises:
        ValueError: The scale is finer than the histogram's.
    """
    if scale > histogram.scale:
        raise ValueError(f"scale {histogram.scale} cannot be refined to {scale}")
    shift = histogram.scale - scale
    wider: dict[int, int] = {}
    for index, count in enumerate(histogram.counts, histogram.offset):
        wider[index >> shift] = wider.get(index >> shift, 0) + count
    return _trimmed(wider, scale, histogram.zero, histogram.sum_s)


def merge(a: LatencyHistogram, b: LatencyHistogram) -> LatencyHistogram:
    """Return both together, at the coarser scale of the two. Associative and commutative, without error."""
    scale = min(a.scale, b.scale)
    total: dict[int, int] = {}
    for part in (downscale(a, scale), downscale(b, scale)):
        for index, count in enumerate(part.counts, part.offset):
            total[index] = total.get(index, 0) + count
    return _trimmed(total, scale, a.zero + b.zero, a.sum_s + b.sum_s)


def _trimmed(counts: Mapping[int, int], scale: int, zero: int, sum_s: float) -> LatencyHistogram:
    """Return the one form that equal histograms share: no empty bucket at either end."""
    filled = [index for index, count in counts.items() if count]
    if not filled:
        return LatencyHistogram((), 0, scale, zero, sum_s)
    first, last = min(filled), max(filled)
    return LatencyHistogram(
        tuple(counts.get(index, 0) for index in range(first, last + 1)), first, scale, zero, sum_s
    )


def quantile(histogram: LatencyHistogram, q: float) -> float | None:
    """Return the ⌈q·n⌉-th smallest latency in seconds, to within `relative_error(scale)`.

    Args:
        histogram: What was counted.
        q: A share in [0, 1].

    Returns:
        The latency; None where nothing was counted.
    """
    total = observations(histogram)
    if not total:
        return None
    rank = max(1, math.ceil(q * total - 1e-9))  # 0.1 · 30 is a hair above 3 in floating point
    below = histogram.zero
    if rank <= below:
        return 0.0
    index = histogram.offset - 1
    for index, count in enumerate(histogram.counts, histogram.offset):  # noqa: B007
        below += count
        if rank <= below:
            break
    gamma: float = 2.0 ** (2.0**-histogram.scale)
    upper: float = 2.0 ** ((index + 1) / 2.0**histogram.scale)
    return upper * 2.0 / (gamma + 1.0)


def cumulative(
    histogram: LatencyHistogram, *, scale: int = 0, lowest_exponent: int = -17, highest_exponent: int = 5
) -> list[tuple[float, int]]:
    """Return `(le, count of latencies ≤ le)` as Prometheus' classic histogram has them; the counts are exact.

    Args:
        histogram: What was counted.
        scale: 2^scale bounds for each doubling.
        lowest_exponent: The first bound is 2^lowest_exponent seconds.
        highest_exponent: The last finite bound is 2^highest_exponent seconds.

    Returns:
        The same bounds whatever was counted, so that a scraper sees one set of series; `+Inf` comes last.
    """
    coarse = downscale(histogram, scale)
    steps = 1 << scale
    rows: list[tuple[float, int]] = []
    for bound in range(lowest_exponent * steps, highest_exponent * steps + 1):
        reached = max(0, bound - coarse.offset)  # buckets whose upper edge is at or below the bound
        rows.append((2.0 ** (bound / steps), coarse.zero + sum(coarse.counts[:reached])))
    return [*rows, (math.inf, observations(histogram))]

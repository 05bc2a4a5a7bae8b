"""What a row of latencies says: its percentiles as far as it supports them, each with its interval.

Pure functions on arrays of nanoseconds.
"""

from __future__ import annotations

import msgspec
import numpy as np

__all__ = ["PERCENTILES", "Latency", "Slice", "needed_samples", "order_interval", "slices", "summarise"]

#: The percentiles that are reported where the sample supports them.
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

#: A percentile needs this many samples beyond it: fewer, and one stray sample moves it.
_BEYOND = 10

#: Two-sided level of the intervals.
_LEVEL = 0.95


class Latency(msgspec.Struct, frozen=True):
    """Latency of single calls, in milliseconds.

    Attributes:
        n: Calls measured.
        mad: Median absolute deviation from the median.
        percentiles: `p50` … to its value, of those that the sample supports.
        refused: `p99` … to why it is not given.
        cov: Coefficient of variation: the standard deviation as a share of the mean.
        max_at_s: When the slowest call began, in seconds after the first; None where not noted down.
        intervals: `p50` … to the two-sided 95 % interval of the value, of those given. It takes the calls for
            independent; neighbours are alike, so it is the least that the value is unsure by.
    """

    n: int
    min: float
    mean: float
    max: float
    mad: float
    percentiles: dict[str, float]
    refused: dict[str, str]
    cov: float = 0.0
    max_at_s: float | None = None
    intervals: dict[str, tuple[float, float]] = {}


class Slice(msgspec.Struct, frozen=True):
    """The calls that began in one stretch of a run, in milliseconds.

    Attributes:
        at_s: Where the stretch begins, in seconds after the first call.
        n: Calls.
    """

    at_s: float
    n: int
    min: float
    p50: float
    max: float


def needed_samples(percentile: float) -> int:
    """Return how many samples a percentile needs: ten beyond it.

    >>> [needed_samples(p) for p in (50.0, 90.0, 99.0, 99.9)]
    [20, 100, 1000, 10000]
    """
    return round(_BEYOND / (1 - percentile / 100))


def order_interval(n: int, percentile: float, level: float = _LEVEL) -> tuple[int, int] | None:
    """Return the ranks, from 1, of the two samples between which a percentile lies with a probability of `level`.

    Whatever the distribution: of n independent samples, those below the percentile are binomial (H. A. David and
    H. N. Nagaraja, Order Statistics, 3rd edition, section 7.1).

    Args:
        n: Samples.
        percentile: In (0, 100).
        level: Two-sided.

    Returns:
        None where the sample has no such two.

    >>> order_interval(100, 50.0), order_interval(1000, 99.0), order_interval(20, 99.0)
    ((40, 61), (983, 997), None)
    """
    p = percentile / 100
    half = int(12 * (n * p * (1 - p)) ** 0.5) + 12  # beyond it there is nothing that a float would hold
    low, high = max(0, round(n * p) - half), min(n, round(n * p) + half)
    k = np.arange(low, high)
    steps = np.log((n - k) / (k + 1.0)) + np.log(p / (1 - p))
    log_mass = np.concatenate([[0.0], np.cumsum(steps)])
    mass = np.exp(log_mass - log_mass.max())
    below = np.cumsum(mass) / mass.sum()  # P(at most low + i samples lie below)
    tail = (1 - level) / 2
    lower = low + int(np.searchsorted(below, tail, side="right"))
    upper = low + int(np.searchsorted(below, 1 - tail)) + 1
    return (lower, upper) if lower >= 1 and upper <= n else None


def summarise(durations_ns: np.ndarray, starts_ns: np.ndarray | None = None) -> Latency:
    """Summarise latencies; percentiles only as far as the sample supports them.

    Args:
        durations_ns: int64 [n], n >= 1, one call each, in nanoseconds.
        starts_ns: int64 [n], when each call began, by any clock.
    """
    n = len(durations_ns)
    times_ms = durations_ns / 1e6
    in_order = np.sort(times_ms)
    given: dict[str, float] = {}
    refused: dict[str, str] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for percentile in PERCENTILES:
        name = f"p{percentile:g}"
        if n < needed_samples(percentile):
            refused[name] = f"needs {needed_samples(percentile)} samples, got {n}"
            continue
        given[name] = float(np.percentile(in_order, percentile, method="inverted_cdf"))
        ranks = order_interval(n, percentile)
        if ranks is not None:
            intervals[name] = (float(in_order[ranks[0] - 1]), float(in_order[ranks[1] - 1]))
    mean, slowest = float(times_ms.mean()), int(times_ms.argmax())
    return Latency(
        n=n,
        min=float(in_order[0]),
        mean=mean,
        max=float(in_order[-1]),
        mad=float(np.median(np.abs(times_ms - np.median(times_ms)))),
        percentiles=given,
        refused=refused,
        cov=float(times_ms.std() / mean) if mean else 0.0,
        max_at_s=None if starts_ns is None else float(starts_ns[slowest] - starts_ns[0]) / 1e9,
        intervals=intervals,
    )


def slices(durations_ns: np.ndarray, starts_ns: np.ndarray, most: int) -> tuple[Slice, ...]:
    """Return the run in at most `most` stretches of equal length, those without a call left out.

    Args:
        durations_ns: int64 [n], n >= 1.
        starts_ns: int64 [n], ascending.
        most: At least 1.
    """
    after_s = (starts_ns - starts_ns[0]) / 1e9
    edges = np.linspace(0.0, float(after_s[-1]), min(most, len(after_s)) + 1)[:-1]
    first = np.searchsorted(after_s, edges)
    found = []
    for at_s, begin, end in zip(edges, first, [*first[1:], len(after_s)], strict=True):
        if begin < end:
            times_ms = durations_ns[begin:end] / 1e6
            found.append(
                Slice(
                    round(float(at_s), 6),
                    int(end - begin),
                    float(times_ms.min()),
                    float(np.median(times_ms)),
                    float(times_ms.max()),
                )
            )
    return tuple(found)

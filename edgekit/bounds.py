"""One-sided confidence bounds for a paired drop: the same samples through the source and the artifact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MOST_SAMPLES", "Z_95", "bootstrap_bounds", "needed_samples", "tango_bounds", "tango_upper"]

#: 95 % quantile of the standard normal distribution.
Z_95 = 1.6448536269514722

#: More samples than this nobody will label.
MOST_SAMPLES = 10_000_000


def _score(lost: float, gained: float, n: float, drop: float) -> float:
    """Return Tango's score statistic for the hypothesis that the true drop is `drop`."""
    a = 2.0 * n
    b = -lost - gained + (2.0 * n - lost + gained) * drop
    c = -gained * drop * (1.0 - drop)
    # the larger root of a q² + b q + c: the maximum-likelihood share of gained pairs at this drop
    q = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * q + drop * (1.0 - drop))
    difference = lost - gained - n * drop
    return difference / math.sqrt(variance) if variance > 0.0 else math.copysign(math.inf, difference)


def tango_upper(lost: float, gained: float, n: float, z: float = Z_95) -> float:
    """Return the upper score bound of a difference of paired proportions.

    Source: T. Tango, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17 (1998), 891-908.

    Args:
        lost: Pairs that the source gets right and the artifact wrong.
        gained: Pairs that the source gets wrong and the artifact right.
        n: All pairs.
        z: Normal quantile of the one-sided level.

    Returns:
        The bound as a fraction in (-1, 1]; z²/(n + z²) when no pair differs.
    """
    low, high = (lost - gained) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if _score(lost, gained, n, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def tango_bounds(lost: float, gained: float, n: float) -> tuple[float, float]:
    """Return the one-sided 95 % lower and upper bounds of the drop (lost - gained) / n, as fractions."""
    return -tango_upper(gained, lost, n), tango_upper(lost, gained, n)


def bootstrap_bounds(
    drop: Callable[[np.ndarray], float], n: int, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """Return the one-sided 95 % percentile bounds of any paired drop.

    Source: B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979), 1-26.

    Args:
        drop: Takes int64 [n] sample indices, returns the drop on those samples.
        n: Samples.
        seed: Of the resampling.
        resamples: How many.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    drops = [drop(random.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(drops, [0.05, 0.95])
    return float(low), float(high)


def needed_samples(decides: Callable[[int], bool], n: int) -> int:
    """Return the least sample size from `n` on that decides, by doubling and halving; 0 where none does.

    Args:
        decides: Whether a sample of that size would decide, at the rates seen so far; monotone.
        n: The size that did not.
    """
    high = n
    while not decides(high):
        high *= 2
        if high > MOST_SAMPLES:
            return 0
    low = max(high // 2, n - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high

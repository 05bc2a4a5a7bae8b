"""Calibration that streams: one histogram for each tensor, and the range that a method keeps of it.

A histogram has a fixed number of bins whose width is a power of two. When a value lies outside, the width doubles
and pairs of bins merge. Bins lie at whole multiples of their width, so what comes out depends on the values alone,
not on their order nor on how they were parted: histograms of parts merge into the histogram of the whole, exactly.
Memory is one histogram for each tensor, however many samples there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from edgekit.errors import ConversionError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "METHODS",
    "Histogram",
    "Range",
    "choose_range",
    "expected_error",
    "extremes",
    "observe",
]

#: Smallest and largest value of a tensor, in its own unit.
Range = tuple[float, float]

_BINS = 2048
#: Share of the values, in percent, that `percentile` keeps.
_PERCENTILE = 99.99
#: `mse` tries this many ends on each side, from 1/16 of the extreme to all of it, evenly in the logarithm.
_ENDS, _SMALLEST_SHARE = 65, 1.0 / 16.0
#: A bin is at least this much narrower than its values: what float32 cannot tell apart shares one.
_FINEST = 2.0**-23
#: Powers of two up to this one, and down to its negative, are normal numbers of float32 with room to spare.
_NORMAL = 64


class Histogram:
    """Counts of a tensor's values, and its exact extremes.

    Args:
        bins: Most bins in use; between half of them and all are, once two values differ.

    Attributes:
        n: Values seen.
        zeros: Those of them that are exactly zero, which every integer grid holds exactly.
        low: Smallest value; infinity before the first.
        high: Largest value; minus infinity before the first.
    """

    def __init__(self, bins: int = _BINS) -> None:
        import numpy as np

        self.n, self.zeros = 0, 0
        self.low, self.high = math.inf, -math.inf
        self._bins = bins
        self._power = 0  # a bin is 2 ** power wide
        self._first = 0  # number of the first bin: its left end is first * 2 ** power
        self._counts: np.ndarray = np.zeros(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count values.

        Args:
            values: Any float or integer dtype, any shape, finite.

        Raises:
            ConversionError: A value is not finite.
        """
        import numpy as np

        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ConversionError("a value is not finite", got=f"{low} to {high}")
        self._grow(min(self.low, low), max(self.high, high))
        self._counts += np.bincount(self._numbers(values), minlength=len(self._counts))
        self.n += int(values.size)
        self.zeros += int(values.size - np.count_nonzero(values))

    def _numbers(self, values: np.ndarray) -> np.ndarray:
        """Return the bin of each value, int64 [n]; bins are numbered from the first in use."""
        import numpy as np

        # float32 holds bins' numbers exactly, and scaling by a power of two as long as that is a normal number
        narrow = values.dtype == np.float32 and abs(self._power) < _NORMAL
        scaled = values.ravel().astype(np.float32 if narrow else np.float64)
        np.floor(np.ldexp(scaled, -self._power, out=scaled), out=scaled)
        scaled -= self._first
        return scaled.astype(np.int64)

    def merge(self, other: Histogram) -> None:
        """Count what another histogram of as many bins has counted."""
        if not other.n:
            return
        self._grow(min(self.low, other.low), max(self.high, other.high))
        first, counts = _coarsen(other._first, other._counts, self._power - other._power)
        at = first - self._first
        self._counts[at : at + len(counts)] += counts
        self.n += other.n
        self.zeros += other.zeros

    def state(self) -> tuple[int, int, float, float, int, int, int, bytes]:
        """Return all of it as plain values, for `of`."""
        counts = self._counts.astype("<i8").tobytes()
        return self.n, self.zeros, self.low, self.high, self._bins, self._power, self._first, counts

    @classmethod
    def of(cls, state: tuple[int, int, float, float, int, int, int, bytes]) -> Histogram:
        """Return the histogram whose `state` this was."""
        import numpy as np

        made = cls(state[4])
        made.n, made.zeros, made.low, made.high, _, made._power, made._first, counts = state
        made._counts = np.frombuffer(counts, "<i8").astype(np.int64)
        return made

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bins' edges, float64 [b + 1], and their counts, int64 [b]."""
        import numpy as np

        edges = np.ldexp(
            np.arange(self._first, self._first + len(self._counts) + 1, dtype=np.float64), self._power
        )
        return edges, self._counts

    def _grow(self, low: float, high: float) -> None:
        """Make room for values between `low` and `high`; the bins are as narrow as their number allows."""
        import numpy as np

        power = _width(low, high, self._bins)
        first, counts = _coarsen(self._first, self._counts, power - self._power if self.n else 0)
        start = math.floor(math.ldexp(low, -power))
        grown = np.zeros(math.floor(math.ldexp(high, -power)) - start + 1, np.int64)
        if self.n:
            grown[first - start : first - start + len(counts)] = counts
        self._power, self._first, self._counts = power, start, grown
        self.low, self.high = low, high


def _width(low: float, high: float, bins: int) -> int:
    """Return the smallest power of two whose multiples between `low` and `high` bound at most `bins` bins."""
    finest = max(abs(low), abs(high)) * _FINEST
    width = max(finest, (high - low) / bins, 2.0**-149)
    power = math.frexp(width)[1] - 2
    while math.ldexp(1.0, power) < finest or (
        math.floor(math.ldexp(high, -power)) - math.floor(math.ldexp(low, -power)) >= bins
    ):
        power += 1
    return power


def _coarsen(first: int, counts: np.ndarray, steps: int) -> tuple[int, np.ndarray]:
    """Return the number of the first bin and the counts when every bin is 2 ** steps as wide."""
    import numpy as np

    if steps == 0 or not len(counts):
        return first, counts
    start = first >> steps
    wide = np.zeros(((first + len(counts) - 1) >> steps) - start + 1, np.int64)
    np.add.at(wide, ((first + np.arange(len(counts))) >> steps) - start, counts)
    return start, wide


def extremes(low: float, high: float) -> Range:
    """Return the range that holds all values and zero, which padding and ReLU need exactly."""
    return min(0.0, low), max(0.0, high)


def choose_range(histogram: Histogram, method: str, *, bits: int = 8, symmetric: bool = False) -> Range:
    """Return the range that a method keeps of what was seen; it always holds zero.

    `minmax` keeps all of it, `percentile` the middle 99.99 %, and `mse` the range with which 2^bits steps lose the
    least by rounding and clipping together; see `expected_error`.

    Args:
        histogram: Of the tensor's values.
        method: One of `METHODS`.
        bits: Of the integers.
        symmetric: The two ends are each other's negative.

    Raises:
        UsageError: The method is unknown.
    """
    if method not in METHODS:
        raise UsageError(f"unknown calibration {method!r}", expected="one of " + ", ".join(METHODS))
    if not histogram.n:
        return 0.0, 0.0
    low, high = METHODS[method](histogram, bits, symmetric)
    if symmetric:
        high = max(-low, high)
        return -high, high
    return low, high


def expected_error(
    histogram: Histogram, low: np.ndarray, high: np.ndarray, *, bits: int = 8, symmetric: bool = False
) -> np.ndarray:
    """Return the sum of squared errors that integers of a range are expected to make on the values seen.

    Inside the range a value is off by up to half a step, evenly: step² / 12 (Widrow and Kollár, Quantization
    Noise, §1). Outside it is off by its distance to the end. Zeros are exact.

    Args:
        histogram: Of the tensor's values.
        low: float64 [k], lower ends, none above zero.
        high: float64 [k], upper ends, none below zero.
        bits: Of the integers.
        symmetric: The grid has a zero in its middle and two ends of the same size: one step less.

    Returns:
        float64 [k].
    """
    step = (high - low) / (2**bits - (2 if symmetric else 1))
    below, under = _tail(histogram, low, upper=False)
    above, over = _tail(histogram, high, upper=True)
    # the counts inside could be a hair negative where an end cuts through the zeros' own bin
    inside = (histogram.n - histogram.zeros - below - above).clip(min=0.0)
    result: np.ndarray = inside * step**2 / 12.0 + under + over
    return result


def _tail(histogram: Histogram, ends: np.ndarray, *, upper: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return how many values lie beyond each end, float64 [k], and the sum of their squared distances to it."""
    import numpy as np

    edges, counts = histogram.table()
    # nothing lies outside the extremes, though the outermost bins reach further
    centres = np.clip((edges[:-1] + edges[1:]) / 2.0, histogram.low, histogram.high)
    side, weights, cuts = (centres, counts, ends) if upper else (-centres[::-1], counts[::-1], -ends)
    moments = [np.concatenate([np.cumsum((weights * side**p)[::-1])[::-1], [0.0]]) for p in (0, 1, 2)]
    first = np.searchsorted(side, cuts, side="right")
    n, total, squares = (moment[first] for moment in moments)
    return n, np.maximum(0.0, squares - 2.0 * cuts * total + cuts**2 * n)


def _minmax(histogram: Histogram, bits: int, symmetric: bool) -> Range:  # noqa: ARG001
    return extremes(histogram.low, histogram.high)


def _percentile(histogram: Histogram, bits: int, symmetric: bool) -> Range:  # noqa: ARG001
    import numpy as np

    edges, counts = histogram.table()
    tail = (100.0 - _PERCENTILE) / 200.0 * histogram.n
    first = int(np.searchsorted(counts.cumsum(), tail, side="right"))
    last = len(counts) - int(np.searchsorted(counts[::-1].cumsum(), tail, side="right"))
    low, high = max(float(edges[first]), histogram.low), min(float(edges[last]), histogram.high)
    return extremes(low, high)


def _least_error(histogram: Histogram, bits: int, symmetric: bool) -> Range:
    import numpy as np

    lowest, highest = extremes(histogram.low, histogram.high)
    shares = np.geomspace(1.0, _SMALLEST_SHARE, _ENDS)
    if symmetric:
        high = max(-lowest, highest) * shares
        low = -high
    else:
        grid = np.meshgrid(_ends(lowest, shares), _ends(highest, shares), indexing="ij")
        low, high = (axis.ravel() for axis in grid)
    best = int(np.argmin(expected_error(histogram, low, high, bits=bits, symmetric=symmetric)))
    return float(low[best]), float(high[best])


def _ends(extreme: float, shares: np.ndarray) -> np.ndarray:
    """Return the ends to try on one side: only zero where no value lies there."""
    return extreme * (shares if extreme else shares[:1])


#: Method to its range of a histogram, given the bits of the integers and whether their grid is symmetric.
METHODS: Mapping[str, Callable[[Histogram, int, bool], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _least_error,
}


def observe(runs: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Histogram]:
    """Return one histogram for each tensor of many runs, each given as arrays by tensor name.

    Raises:
        ConversionError: A value is not finite; names the tensor.
    """
    found: dict[str, Histogram] = {}
    for values in runs:
        for name, value in values.items():
            histogram = found.setdefault(name, Histogram())
            try:
                histogram.add(value)
            except ConversionError as error:
                raise ConversionError(f"tensor {name!r} is not finite on a calibration sample") from error
    return found

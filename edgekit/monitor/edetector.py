"""An alarm whose false-alarm rate is promised, not tuned: the Shiryaev–Roberts e-detector.

For x in [0, 1] and the null "given the past, the mean of x is at least m", each factor 1 + λ(m − x) has mean at
most one, so M_t = (1 + M_{t−1}) · (1 + λ(m − x_t)) grows by at most one a sample on average. An alarm at M ≥ A
that starts again from zero therefore takes away at least A, and in N samples the expected number of false alarms
is at most N / A. Nothing is assumed about independence (Shin, Ramdas & Rinaldo, "E-detectors", 2023). Here x is
the hit rate of the confidence bin a sample falls in, and M the mean over several λ, which is an e-detector again.
"""

from __future__ import annotations

import math
import random
from typing import Literal

import msgspec
import numpy as np

from edgekit.errors import UsageError
from edgekit.monitor.reference import Reference

__all__ = [
    "BETS",
    "AlarmBudget",
    "EDetector",
    "Thinner",
    "Transition",
    "log_threshold",
    "null_mean",
    "promise",
]

#: The λ of the mixture: from small lasting drops to large sudden ones.
BETS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
#: λ stays this share below 1 / (1 − m), at which one sample could take all evidence away for ever.
_BET_LIMIT = 0.99
_SECONDS_PER_YEAR = 31_557_600.0  # the Julian year
_Z99 = 2.3263478740408408  # the normal quantile of 0.99
#: Fed samples without new evidence after which an alarm clears, at the least.
_MIN_QUIET = 1000
#: And at least as many as this many times the climb that led to the alarm: a small drop needs longer to show.
_QUIET_PER_CLIMB = 4
#: How many seconds' worth of samples may be saved up, so that a late fold loses nothing.
_BURST_S = 10.0


class AlarmBudget(msgspec.Struct, frozen=True):
    """What a device may cost its operator in false alarms.

    Attributes:
        false_alarms_per_device_year: Expected, over all detectors of the device.
        samples_per_s: At most so many samples a second are fed to each detector; the others are left out.

    Raises:
        UsageError: One of them is not above zero.
    """

    false_alarms_per_device_year: float = 1.0
    samples_per_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a promise that nobody can keep."""
        for name in ("false_alarms_per_device_year", "samples_per_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is out of range", got=getattr(self, name), expected="above 0")


class Transition(msgspec.Struct, frozen=True):
    """An alarm that went on or off.

    Attributes:
        kind: Which.
        samples: Fed samples that it rests on: the climb from √A to A, or the quiet ones.
    """

    kind: Literal["alarm", "cleared"]
    samples: int


def log_threshold(budget: AlarmBudget, detectors: int = 1) -> float:
    """Return ln A for one of `detectors` detectors that share the budget of a device evenly."""
    fed_per_year = budget.samples_per_s * _SECONDS_PER_YEAR
    return math.log(fed_per_year * detectors / budget.false_alarms_per_device_year)


def null_mean(reference: Reference) -> float:
    """Return m: a one-sided 99 % lower confidence bound of the mean of x where nothing has changed.

    The reference's own mean is that of a sample of the world, so it is off by sd(x) / √n. A null mean that is
    too high by 0.1 percentage points multiplies the false alarms by twenty.
    """
    rates, counts = reference.rates()[1:-1], np.array(reference.counts, np.float64)
    n = counts.sum()
    mean = float(counts @ rates / n)
    variance = float(counts @ (rates - mean) ** 2 / (n - 1.0)) if n > 1 else 0.25
    return min(1.0, max(0.0, mean - _Z99 * math.sqrt(variance / float(n))))


def promise(reference: Reference, budget: AlarmBudget, detectors: int, mean: float) -> str:
    """Return what is promised about false alarms, with the conditions under which it holds."""
    return (
        f"at most {budget.false_alarms_per_device_year:g} false alarm(s) expected per device and year, shared by "
        f"{detectors} detector(s) fed at most {budget.samples_per_s:g} samples/s each; holds while, without a real "
        f"drop, P(correct) given the past averages at least {mean:.4f} (99 % lower bound from "
        f"{sum(reference.counts)} reference samples): inputs that come in runs, as video frames "
        "do, and a site or an hour whose normal inputs are harder than the reference break it"
    )


class EDetector:
    """A mixture of Shiryaev–Roberts e-detectors, kept in logarithms so that nothing overflows.

    An alarm goes on once, when the evidence reaches A, and the evidence then starts again from zero. It goes
    off when, for a quiet time, the evidence has stayed below √A: 1,000 fed samples, or four times the climb from
    √A to A if that is longer, so that a drop that lasts keeps its alarm on. While it is on, evidence that reaches
    A again starts again from zero in silence.

    Args:
        null_mean: m, the least mean of x in [0, 1] where nothing is wrong.
        log_threshold: ln A.

    Attributes:
        alarm: Whether it is on.
        crossings: How often the evidence has reached A: what the promise counts, alarm on or off.
    """

    def __init__(self, null_mean: float, log_threshold: float) -> None:
        self.null_mean = null_mean
        self.log_threshold = log_threshold
        self.alarm = False
        self.crossings = 0
        limit = _BET_LIMIT / (1.0 - null_mean) if null_mean < 1.0 else math.inf
        self._bets = np.minimum(BETS, limit)
        self._log_m = np.full(len(BETS), -math.inf)
        self._climb = 0  # samples since the evidence was last below √A
        self._quiet = 0  # samples since it was last at or above √A
        self._quiet_needed = _MIN_QUIET

    @property
    def log_e(self) -> float:
        """Natural logarithm of the evidence, the mean over the bets; -inf before the first sample."""
        return float(_log_mean(self._log_m[None, :])[0])

    def update(self, x: np.ndarray) -> list[Transition]:
        """Feed samples in the order they came.

        Args:
            x: float64 [n] in [0, 1].

        Returns:
            Each time the alarm went on or off.
        """
        transitions: list[Transition] = []
        start = 0
        while start < x.size:
            start += self._feed_to_event(x[start:], transitions)
        return transitions

    def _feed_to_event(self, x: np.ndarray, transitions: list[Transition]) -> int:
        """Feed samples up to the first at which something happens; return how many were fed."""
        path = self._path(x)
        evidence = _log_mean(path)
        hot = evidence >= self.log_threshold / 2.0
        climb, quiet = _run_lengths(hot, self._climb), _run_lengths(~hot, self._quiet)
        crossed = evidence >= self.log_threshold
        cleared = (quiet >= self._quiet_needed) & self.alarm
        events = np.flatnonzero(crossed | cleared)
        last = int(events[0]) if events.size else x.size - 1
        self._log_m, self._climb, self._quiet = path[last], int(climb[last]), int(quiet[last])
        if crossed[last]:
            self._restart(transitions)
        elif cleared[last]:
            self.alarm = False
            transitions.append(Transition("cleared", self._quiet))
        return last + 1

    def _restart(self, transitions: list[Transition]) -> None:
        """Take the evidence away at A; say so unless the alarm is on already."""
        self.crossings += 1
        if not self.alarm:
            self.alarm = True
            self._quiet_needed = max(_MIN_QUIET, _QUIET_PER_CLIMB * self._climb)
            transitions.append(Transition("alarm", self._climb))
        self._log_m = np.full(len(BETS), -math.inf)
        self._climb = 0

    def _path(self, x: np.ndarray) -> np.ndarray:
        """Return ln M after each sample, [n, bets], from M_t = e^{S_t} (M_0 + Σ_{j ≤ t} e^{−S_{j−1}})."""
        growth = np.log1p(self._bets * (self.null_mean - x[:, None]))
        total = np.cumsum(growth, axis=0)
        start = np.logaddexp(self._log_m, 0.0)  # M_0 + e^{−S_0}
        return total + np.logaddexp.accumulate(np.vstack([start, -total[:-1]]), axis=0)


def _log_mean(logs: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean over the last axis."""
    mean: np.ndarray = np.logaddexp.reduce(logs, axis=-1) - math.log(logs.shape[-1])
    return mean


def _run_lengths(flags: np.ndarray, carried: int) -> np.ndarray:
    """Return for each place how many true flags in a row end there; `carried` came before the first."""
    places = np.arange(flags.size)
    lengths: np.ndarray = places - np.maximum.accumulate(np.where(flags, -1 - carried, places))
    return lengths


class Thinner:
    """Let through at most so many samples a second, chosen at random.

    Every k-th sample would not do: where k divides the number of cameras that take turns, it would feed some of
    them only.

    Args:
        samples_per_s: The rate; what is not used is saved up for at most ten seconds.
        now_s: A monotonic clock.
        chance: What draws them.
    """

    def __init__(self, samples_per_s: float, now_s: float, chance: random.Random) -> None:
        self._rate = samples_per_s
        self._chance = chance
        self._last_s = now_s
        self._saved = 0.0

    def take(self, available: int, now_s: float) -> np.ndarray:
        """Return which of `available` samples to feed: int64 [≤ available], ascending."""
        earned = self._rate * (now_s - self._last_s)
        self._saved = min(self._saved + earned, max(1.0, self._rate * _BURST_S))
        self._last_s = now_s
        taken = min(available, int(self._saved))
        self._saved -= taken
        return np.array(sorted(self._chance.sample(range(available), taken)), np.int64)

"""Whether latencies describe the model or the moment: what was unsteady, and what may have caused it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

__all__ = ["Conditions", "Stability", "is_settled", "judge_stability"]

#: Warm-up is over when this many consecutive blocks have medians this close to their own median.
_SETTLED_BLOCKS = 5
_SETTLED_WITHIN = 0.05

#: Steady state: slices of the run, and how far their medians may lie apart, and drift from first to last.
_SLICES = 10
_LEAST_SAMPLES = 50
_SPREAD_LIMIT = 0.10
_DRIFT_LIMIT = 0.05
_SLOW_LIMIT = 0.05  # share of samples slower than twice the median

#: What other processes may take, in cores, and a hypervisor, as a share of all cores.
_OTHERS_LIMIT = 0.5
_STOLEN_LIMIT = 0.02


class Conditions(msgspec.Struct, frozen=True):
    """What else went on while the latencies were taken.

    Attributes:
        settled: Whether the warm-up came to rest.
        cores: CPU cores of the machine.
        others_cores: Cores that other processes kept busy, on average.
        stolen: Share of the machine's time that its hypervisor gave to somebody else.
        governor: CPU frequency governor, empty where there is none to see.
        throttled: What slowed the processor down meanwhile, in words: `the firmware reports under-voltage`.
        busiest: The other processes that took most, by name, in cores; as far as they can be seen.
    """

    settled: bool
    cores: int
    others_cores: float
    stolen: float = 0.0
    governor: str = ""
    throttled: tuple[str, ...] = ()
    busiest: dict[str, float] = {}


class Stability(msgspec.Struct, frozen=True):
    """Whether the latencies came from a machine at rest.

    Attributes:
        verdict: `stable`, `unstable`, or `unknown` where there are too few calls to tell.
        reasons: What was unsteady, and what may have caused it.
        spread: Largest minus smallest median of the run's slices, as a share of the median.
        drift: Change of the median from the first third of the run to the last, as a share.
        slow_share: Share of the calls that took more than twice the median.
    """

    verdict: str
    reasons: tuple[str, ...]
    spread: float = 0.0
    drift: float = 0.0
    slow_share: float = 0.0


def is_settled(medians: Sequence[float]) -> bool:
    """Tell whether the last block medians (any unit) have stopped moving.

    >>> is_settled([9.0, 1.0, 1.01, 0.99, 1.0, 1.02])
    True
    >>> is_settled([1.0, 1.1, 1.2, 1.3, 1.4])
    False
    """
    last = np.asarray(medians[-_SETTLED_BLOCKS:])
    if len(last) < _SETTLED_BLOCKS:
        return False
    middle = float(np.median(last))
    return bool(np.all(np.abs(last - middle) <= _SETTLED_WITHIN * middle))


def judge_stability(durations_ns: np.ndarray, conditions: Conditions) -> Stability:
    """Judge whether the latencies describe the model or the moment.

    Args:
        durations_ns: int64 [n], in the order measured, in nanoseconds.
        conditions: What else went on.
    """
    causes = _causes(conditions)
    if len(durations_ns) < _LEAST_SAMPLES:
        few = f"{len(durations_ns)} calls are too few to tell (needs {_LEAST_SAMPLES}): give more --seconds"
        return Stability("unknown", (few, *causes))
    middle = float(np.median(durations_ns))
    medians = [float(np.median(each)) for each in np.array_split(durations_ns, _SLICES)]
    spread = (max(medians) - min(medians)) / middle
    first, _, last = (float(np.median(each)) for each in np.array_split(durations_ns, 3))
    drift = last / first - 1
    slow = float(np.mean(durations_ns > 2 * middle))
    symptoms = [
        (not conditions.settled, "the warm-up did not settle"),
        (spread > _SPREAD_LIMIT, f"medians of {_SLICES} slices lie {spread:.0%} apart"),
        (abs(drift) > _DRIFT_LIMIT, f"the median drifted by {drift:+.0%} from the first third to the last"),
        (slow > _SLOW_LIMIT, f"{slow:.1%} of the calls took more than twice the median"),
        (conditions.others_cores > _OTHERS_LIMIT, "the machine was busy"),
        (bool(conditions.throttled), "the processor was slowed down"),
    ]
    reasons = [text for holds, text in symptoms if holds]
    if not reasons:
        return Stability("stable", (), spread, drift, slow)
    return Stability("unstable", (*reasons, *(causes or ("no cause was seen",))), spread, drift, slow)


def _causes(conditions: Conditions) -> tuple[str, ...]:
    governor = conditions.governor
    found = [
        (
            conditions.others_cores > _OTHERS_LIMIT,
            f"because other processes used {conditions.others_cores:.1f} of {conditions.cores} cores"
            + _named(conditions.busiest),
        ),
        *((True, f"because {each}") for each in conditions.throttled),
        (
            conditions.stolen > _STOLEN_LIMIT,
            f"because the hypervisor took {conditions.stolen:.0%} of the CPU time",
        ),
        (
            bool(governor) and governor != "performance",
            f"perhaps because the CPU frequency governor is {governor}",
        ),
    ]
    return tuple(text for holds, text in found if holds)


def _named(busiest: Mapping[str, float]) -> str:
    """Return the processes and their cores in brackets; nothing where none is known."""
    return f" ({', '.join(f'{name} {cores:.1f}' for name, cores in busiest.items())})" if busiest else ""

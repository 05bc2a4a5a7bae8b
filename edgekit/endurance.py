"""What back-to-back calls do not show: the first call after a pause, and how a model runs after minutes of load."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns

import msgspec
import numpy as np

from edgekit.runtimes import Session
from edgekit.sensors import Heat, Sensors, energy_j, heat_of
from edgekit.steady import look
from edgekit.timing import Slice

__all__ = ["GAPS_S", "GapLatency", "Sustained", "probe_gaps", "sustain"]

#: The pauses that are tried unless others are given, in seconds.
GAPS_S = (0.0, 1.0, 10.0)

#: Calls after a pause: as many as fit into this time, within these limits.
_PROBE_S = 12.0
_LEAST_PROBES, _MOST_PROBES = 3, 30
#: Back-to-back calls before each pause, so that every pause begins hot.
_HEAT = 5

#: A sustained run is told in this many windows, none shorter than a second.
_WINDOWS = 120
#: What its first and its last stretch are, and the most of the run that each may be.
_EDGE_S = 60.0
_EDGE_SHARE = 1 / 3
#: How long the machine is watched at rest before, for the power that the model is not to blame for.
_REST_S = 5.0
#: Calls of an edge whose latency is kept, in order to take its median; then every second, every fourth …
_KEPT = 200_000

Tell = Callable[[str, float], None]
Feed = Mapping[str, np.ndarray]


class GapLatency(msgspec.Struct, frozen=True):
    """Single calls after a pause, in milliseconds; too few for percentiles.

    Attributes:
        gap_s: The pause before each, asleep; 0 for back-to-back calls.
        n: Calls.
        over_hot: Median over that of back-to-back calls; None where those were not measured.
    """

    gap_s: float
    n: int
    min_ms: float
    median_ms: float
    max_ms: float
    over_hot: float | None = None


def probe_gaps(session: Session, feed: Feed, gaps_s: Sequence[float], tell: Tell) -> tuple[GapLatency, ...]:
    """Time single calls after pauses: clocks have sunk, threads sleep, caches are cold.

    Args:
        session: Warm.
        feed: Its inputs.
        gaps_s: Pauses, in seconds.
        tell: Called with the phase and its share.
    """
    found: list[GapLatency] = []
    for rank, gap_s in enumerate(gaps_s):
        times_ms = []
        count = _MOST_PROBES if not gap_s else int(_PROBE_S / gap_s)
        count = min(_MOST_PROBES, max(_LEAST_PROBES, count))
        for done in range(count):
            tell(f"after {gap_s:g} s idle", (rank + done / count) / len(gaps_s))
            for _ in range(_HEAT):
                session.run(feed)
            if gap_s:
                time.sleep(gap_s)
            begin = perf_counter_ns()
            session.run(feed)
            times_ms.append((perf_counter_ns() - begin) / 1e6)
        found.append(GapLatency(gap_s, count, min(times_ms), float(np.median(times_ms)), max(times_ms)))
    hot = next((each.median_ms for each in found if each.gap_s == 0), None)
    return tuple(
        msgspec.structs.replace(each, over_hot=each.median_ms / hot if hot else None) for each in found
    )


class Sustained(msgspec.Struct, frozen=True):
    """A run of minutes without a pause.

    Attributes:
        seconds: Its length.
        runs: Calls.
        edge_s: How long the first and the last stretch are that are compared.
        first_p50_ms: Median of the first stretch.
        last_p50_ms: Of the last.
        change: last / first - 1.
        windows: The run in stretches, in milliseconds.
        temperatures_c: Hottest zone at the end of each window; empty where there is none.
        heat: What the sensors said over the whole run.
        energy_j: What processor or module used in the run, in joules; None where it cannot be read.
        energy_of: What that is of: `RAPL packages`, `VDD_IN`; empty where there is none.
        rest_w: Power at rest before the run, in watts.
        energy_per_run_mj: Above what rest takes, in millijoules per call.
    """

    seconds: float
    runs: int
    edge_s: float
    first_p50_ms: float
    last_p50_ms: float
    change: float
    windows: tuple[Slice, ...]
    temperatures_c: tuple[float, ...]
    heat: Heat
    energy_j: float | None = None
    energy_of: str = ""
    rest_w: float | None = None
    energy_per_run_mj: float | None = None


class _Edge:
    """The latencies of the first or the last stretch, in bounded memory: every k-th once there are many."""

    def __init__(self) -> None:
        self.times, self._step, self._turn = array("q"), 1, 0

    def add(self, block: array[int]) -> None:
        self.times.extend(block[self._turn :: self._step])
        self._turn = -(len(block) - self._turn) % self._step
        while len(self.times) > _KEPT:
            self.times, self._step, self._turn = self.times[::2], 2 * self._step, 0

    def p50_ms(self) -> float:
        return float(np.median(np.frombuffer(self.times, np.int64))) / 1e6


class _Record:
    """What a sustained run leaves behind: its windows, its first and its last stretch.

    Args:
        start_ns: When it begins.
        end_ns: When it is to end.
        edge_s: Length of the first and of the last stretch.
    """

    def __init__(self, start_ns: int, end_ns: int, edge_s: float) -> None:
        self.windows: list[Slice] = []
        self.first, self.last, self.runs = _Edge(), _Edge(), 0
        self._start, self._end, self._edge_ns = start_ns, end_ns, edge_s * 1e9

    def edges_ms(self) -> tuple[float, float]:
        """Return the median latency of the first and of the last stretch; where none began in that, of the last window."""
        return self.first.p50_ms(), self.last.p50_ms() if self.last.times else self.windows[-1].p50

    def add(self, began_ns: int, block: array[int]) -> None:
        """Take the latencies of a window, in ns, at least one."""
        times_ms = np.frombuffer(block, np.int64) / 1e6
        at_s = (began_ns - self._start) / 1e9
        low, middle, high = (float(of(times_ms)) for of in (np.min, np.median, np.max))
        self.windows.append(Slice(at_s, len(block), low, middle, high))
        self.runs += len(block)
        if began_ns - self._start < self._edge_ns:
            self.first.add(block)
        if self._end - began_ns <= self._edge_ns:  # windows begin late, never early
            self.last.add(block)


def sustain(session: Session, feed: Feed, seconds: float, tell: Tell, *, root: str = "/") -> Sustained:
    """Run without a pause for minutes, and say what became of latency, temperature and power.

    Args:
        session: Warm.
        feed: Its inputs.
        seconds: How long.
        tell: Called with the phase and its share.
        root: Where the sensors are looked for.
    """
    tell("at rest", 0.0)
    rest_w = _rest_w(min(_REST_S, seconds / 10), root)
    edge_s = min(_EDGE_S, seconds * _EDGE_SHARE)
    window_ns = int(min(max(1.0, seconds / _WINDOWS), seconds * _EDGE_SHARE) * 1e9)
    looks = [look(root, ask_firmware=True)]
    start = now = perf_counter_ns()
    end = start + int(seconds * 1e9)
    record = _Record(start, end, edge_s)
    while now < end:
        began = now
        block, now = _window(session, feed, min(end, began + window_ns))
        record.add(began, block)
        looks.append(look(root, ask_firmware=now >= end))
        tell("sustained", (now - start) / (end - start))
    wall_s = (now - start) / 1e9
    first, last = record.edges_ms()
    energy, source = _energy_j(looks, wall_s)
    above_j = None if energy is None or rest_w is None else energy - rest_w * wall_s
    return Sustained(
        seconds=wall_s,
        runs=record.runs,
        edge_s=edge_s,
        first_p50_ms=first,
        last_p50_ms=last,
        change=last / first - 1,
        windows=tuple(record.windows),
        temperatures_c=tuple(each.hottest_c for each in looks[1:] if each.hottest_c is not None),
        heat=heat_of(looks, wall_s),
        energy_j=energy,
        energy_of=source,
        rest_w=rest_w,
        energy_per_run_mj=None if above_j is None else 1e3 * above_j / record.runs,
    )


def _window(session: Session, feed: Feed, until_ns: int) -> tuple[array[int], int]:
    """Run until then, once at least; return the latencies in ns and the time."""
    block = array("q")
    run, clock = session.run, perf_counter_ns
    now = 0
    while now < until_ns:
        begin = clock()
        run(feed)
        now = clock()
        block.append(now - begin)
    return block, now


def _rest_w(seconds: float, root: str) -> float | None:
    """Return the power of a machine at rest, watched for a while; None where it cannot be read."""
    looks = [look(root)]
    start = time.monotonic()
    for _ in range(2):
        time.sleep(seconds / 2)
        looks.append(look(root))
    wall_s = time.monotonic() - start
    energy, _ = _energy_j(looks, wall_s)
    return energy / wall_s if energy is not None else None


def _energy_j(looks: Sequence[Sensors], wall_s: float) -> tuple[float | None, str]:
    """Return the energy used over the looks and what told it: RAPL's counters, or a rail's power over time."""
    counted = energy_j(looks)
    if counted is not None:
        return counted, "RAPL packages"
    powers = [each.module_mw for each in looks if each.module_mw is not None]
    if not powers:
        return None, ""
    return sum(powers) / len(powers) / 1e3 * wall_s, "the module's rail"
